"""Published DeepLab models: where each is, what it is said to reach, and how it becomes a checkpoint of this package.

The addresses and numbers are those of research/deeplab's model zoo (g3doc/model_zoo.md) and of mmsegmentation's
metafiles. mmsegmentation's file names end in the first digits of their sha256; TensorFlow published no checksums.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deeplab_recipes.model.choices import choose

TENSORFLOW = "http://download.tensorflow.org/models/"
MMSEGMENTATION = "https://mmassets.onedl.ai/mmsegmentation/v0.5/"
PREFIX = "zoo:"


@dataclass(frozen=True)
class Published:
    """A published model.

    Attributes:
        name: what it is called here, beginning with its data set.
        source: the program that it is of, one of `importers.SOURCES`.
        address: of its file.
        classes: the data set, by whose names its logits go.
        miou: protocol -> published mIoU, on the validation images unless it says test.
        sha256: the first digits, where they were published, else empty.
        fetched: whether the authors of this package ever had the file. Where not, its import is tested on models of the
            same make with other weights.
    """

    name: str
    source: str
    address: str
    classes: str
    miou: Mapping[str, float]
    sha256: str = ""
    fetched: bool = False

    @property
    def filename(self) -> str:
        """What the file is called in torch.hub's cache."""
        return self.address.rpartition("/")[2]

    def __str__(self) -> str:
        """Return name, mIoU with its protocol, and address, in three lines."""
        scores = "; ".join(f"{miou:.2f} mIoU ({protocol})" for protocol, miou in self.miou.items())
        seen = "" if self.fetched else "  [never fetched by the authors]"
        return f"{self.name}\n    {self.source}: {scores}\n    {self.address}{seen}"


SINGLE, MULTI = "output stride 16, single scale", "output stride 8, multi-scale and flip"
TEST = f"{MULTI}, test"
# (name, file, mIoU); the frozen graphs are at output stride 8 but for the narrow ones.
TENSORFLOW_ROWS = (
    ("voc_mobilenet_v2", "deeplabv3_mnv2_pascal_train_aug_2018_01_29", {SINGLE: 75.32, MULTI: 77.33}),
    ("voc_mobilenet_v2_trainval", "deeplabv3_mnv2_pascal_trainval_2018_01_29", {TEST: 80.25}),
    ("voc_mobilenet_v2_050", "deeplabv3_mnv2_dm05_pascal_trainaug_2018_10_01", {SINGLE: 70.19}),
    (
        "voc_mobilenet_v2_050_trainval",
        "deeplabv3_mnv2_dm05_pascal_trainval_2018_10_01",
        {"output stride 8, single scale, test": 71.83},
    ),
    ("voc_xception65", "deeplabv3_pascal_train_aug_2018_01_04", {SINGLE: 82.20, MULTI: 83.58}),
    ("voc_xception65_trainval", "deeplabv3_pascal_trainval_2018_01_04", {TEST: 87.80}),
    ("cityscapes_mobilenet_v2", "deeplabv3_mnv2_cityscapes_train_2018_02_05", {SINGLE: 70.71, MULTI: 73.57}),
    ("cityscapes_xception65", "deeplabv3_cityscapes_train_2018_02_06", {SINGLE: 78.79, MULTI: 80.42}),
    ("cityscapes_xception71_dpc", "deeplab_cityscapes_xception71_trainfine_2018_09_08", {SINGLE: 80.31}),
    ("cityscapes_xception71_dpc_trainval", "deeplab_cityscapes_xception71_trainvalfine_2018_09_08", {TEST: 82.66}),
    ("ade20k_mobilenet_v2", "deeplabv3_mnv2_ade20k_train_2018_12_03", {f"{SINGLE}, long side 257": 32.04}),
    ("ade20k_xception65", "deeplabv3_xception_ade20k_train_2018_05_29", {f"{MULTI}, long side 513": 45.65}),
)
# (model and training, its date and digits, mIoU at a single scale, with multi-scale and flip)
MMSEGMENTATION_ROWS = (
    ("deeplabv3plus_r50-d8_512x1024_40k_cityscapes", "20200605_094610-d222ffcd", 79.61, 81.01),
    ("deeplabv3plus_r101-d8_512x1024_40k_cityscapes", "20200605_094614-3769eecf", 80.21, 81.82),
    ("deeplabv3plus_r50-d8_512x1024_80k_cityscapes", "20200606_114049-f9fb496d", 80.09, 81.13),
    ("deeplabv3plus_r101-d8_512x1024_80k_cityscapes", "20200606_114143-068fcfe9", 80.97, 82.03),
    ("deeplabv3plus_r50-d8_512x512_80k_ade20k", "20200614_185028-bf1400d8", 42.72, 43.75),
    ("deeplabv3plus_r101-d8_512x512_80k_ade20k", "20200615_014139-d5730af7", 44.6, 46.06),
    ("deeplabv3plus_r50-d8_512x512_160k_ade20k", "20200615_124504-6135c7e0", 43.95, 44.93),
    ("deeplabv3plus_r101-d8_512x512_160k_ade20k", "20200615_123232-38ed86bb", 45.47, 46.35),
    ("deeplabv3plus_r50-d8_512x512_20k_voc12aug", "20200617_102323-aad58ef1", 75.93, 77.5),
    ("deeplabv3plus_r101-d8_512x512_20k_voc12aug", "20200617_102345-c7ff3d56", 77.22, 78.59),
    ("deeplabv3plus_r50-d8_512x512_40k_voc12aug", "20200613_161759-e1b43aa9", 76.81, 77.57),
    ("deeplabv3plus_r101-d8_512x512_40k_voc12aug", "20200613_205333-faf03387", 78.62, 79.53),
    ("deeplabv3_r50-d8_512x1024_40k_cityscapes", "20200605_022449-acadc2f8", 79.09, 80.45),
    ("deeplabv3_r101-d8_512x1024_40k_cityscapes", "20200605_012241-7fd3f799", 77.12, 79.61),
    ("deeplabv3_r50-d8_512x1024_80k_cityscapes", "20200606_113404-b92cfdd4", 79.32, 80.57),
    ("deeplabv3_r101-d8_512x1024_80k_cityscapes", "20200606_113503-9e428899", 80.2, 81.21),
    ("deeplabv3_r50-d8_512x512_80k_ade20k", "20200614_185028-0bb3f844", 42.42, 43.28),
    ("deeplabv3_r101-d8_512x512_80k_ade20k", "20200615_021256-d89c7fa4", 44.08, 45.19),
    ("deeplabv3_r50-d8_512x512_160k_ade20k", "20200615_123227-5d0ee427", 42.66, 44.09),
    ("deeplabv3_r101-d8_512x512_160k_ade20k", "20200615_105816-b1f72b3b", 45.0, 46.66),
    ("deeplabv3_r50-d8_512x512_20k_voc12aug", "20200617_010906-596905ef", 76.17, 77.42),
    ("deeplabv3_r101-d8_512x512_20k_voc12aug", "20200617_010932-8d13832f", 78.7, 79.95),
    ("deeplabv3_r50-d8_512x512_40k_voc12aug", "20200613_161546-2ae96e7e", 77.68, 78.78),
    ("deeplabv3_r101-d8_512x512_40k_voc12aug", "20200613_161432-0017d784", 77.92, 79.18),
)


def _tensorflow(name: str, file: str, miou: Mapping[str, float]) -> Published:
    return Published(name, "tensorflow", f"{TENSORFLOW}{file}.tar.gz", name.partition("_")[0], miou)


def _mmsegmentation(training: str, version: str, single: float, multi: float) -> Published:
    """Name deeplabv3plus_r101-d8_512x512_160k_ade20k ade20k_mmseg_resnet101_160k; only DeepLabV3 is named as such."""
    head, depth, _, schedule, data = training.replace("-", "_").replace("_d8", "").split("_")
    classes = data.removesuffix("12aug")
    variant = "" if head == "deeplabv3plus" else f"{head}_"
    return Published(
        name=f"{classes}_mmseg_{variant}{depth.replace('r', 'resnet')}_{schedule}",
        source="mmsegmentation",
        address=f"{MMSEGMENTATION}{head}/{training}/{training}_{version}.pth",
        classes=classes,
        miou={"keep_ratio, single scale": single, "keep_ratio, multi-scale and flip": multi},
        sha256=version.rpartition("-")[2],
    )


MODELS: dict[str, Published] = {
    model.name: model
    for model in (
        *(_tensorflow(*row) for row in TENSORFLOW_ROWS),
        *(_mmsegmentation(*row) for row in MMSEGMENTATION_ROWS),
    )
}


def find(name: str) -> Published:
    """Return a published model by its name, also with ``zoo:`` before it.

    Raises:
        ValueError: there is none of that name; lists them.
    """
    return choose("published model", name.removeprefix(PREFIX), MODELS)


def fetch(name: str) -> Path:
    """Return a published model as a checkpoint of this package, fetched and imported where it is not there yet.

    Both its file and the checkpoint are kept in torch.hub's cache.

    Args:
        name: a key of `MODELS`, also with ``zoo:`` before it.

    Raises:
        ValueError: there is no such model, or its file is not what was published.
        ConnectionError: it cannot be fetched; says where to put it by hand.
        OSError: it cannot be written.
    """
    # The card names the data set's classes, of which the model knows nothing: hence not at the top.
    from deeplab_recipes.published import fetch_checkpoint

    return fetch_checkpoint(find(name))
