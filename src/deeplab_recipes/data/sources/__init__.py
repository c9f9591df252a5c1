"""Data sets on disk."""

from deeplab_recipes.data.sources.ade20k import ADE20k
from deeplab_recipes.data.sources.camvid import CamVid
from deeplab_recipes.data.sources.cityscapes import Cityscapes
from deeplab_recipes.data.sources.coco_stuff import COCOStuff
from deeplab_recipes.data.sources.drawn import DrawnScenes
from deeplab_recipes.data.sources.folder import Folder
from deeplab_recipes.data.sources.supervisely import Supervisely
from deeplab_recipes.data.sources.tfrecord import TFRecords
from deeplab_recipes.data.sources.voc import PascalVOC

__all__ = [
    "ADE20k",
    "COCOStuff",
    "CamVid",
    "Cityscapes",
    "DrawnScenes",
    "Folder",
    "PascalVOC",
    "Supervisely",
    "TFRecords",
]
