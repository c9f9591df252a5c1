"""The Semantic Boundaries Dataset's labels as Pascal VOC's: SegmentationClassAug and the lists that go with it.

The augmented training part is VOC's training images, with VOC's own labels, and every image of SBD (training and
validation) that is not in VOC's validation part, with SBD's: 1,464 + 9,118 = 10,582.
"""

import shutil
from pathlib import Path

from PIL import Image

from deeplab_recipes.fetching.progress import Meter

CLASSES = 21  # SBD numbers them as VOC does


def convert_sbd(sbd: Path, voc: Path, into: Path) -> None:
    """Write the labels of the augmented training part, and the lists aug.txt and trainaug.txt.

    Args:
        sbd: holds cls/*.mat, train.txt and val.txt.
        voc: VOC2012 with its own lists and labels.
        into: gets ImageSets/Segmentation/ and SegmentationClassAug/, as `voc` has them.

    Raises:
        ValueError: for a label file that cannot be read or holds what is no class; names it.
        FileNotFoundError: where a list or a label is missing.
    """
    lists = voc / "ImageSets" / "Segmentation"
    train, validation = _names(lists / "train.txt"), _names(lists / "val.txt")
    extra = sorted((_names(sbd / "train.txt") | _names(sbd / "val.txt")) - train - validation)
    absent = [name for name in extra if not (sbd / "cls" / f"{name}.mat").is_file()]
    if absent:
        raise FileNotFoundError(f"SBD lacks the labels of {len(absent)} of its images: {', '.join(absent[:3])}, ...")
    labels = into / "SegmentationClassAug"
    labels.mkdir(parents=True)
    palette = _palette(voc / "SegmentationClass" / f"{min(train)}.png")
    with Meter("convert labels", sum((sbd / "cls" / f"{name}.mat").stat().st_size for name in extra)) as meter:
        for name in extra:
            source = sbd / "cls" / f"{name}.mat"
            _write_labels(source, labels / f"{name}.png", palette)
            meter.add(source.stat().st_size)
    for name in train:
        shutil.copyfile(voc / "SegmentationClass" / f"{name}.png", labels / f"{name}.png")
    _write_list(into / "ImageSets" / "Segmentation" / "aug.txt", extra)
    _write_list(into / "ImageSets" / "Segmentation" / "trainaug.txt", sorted([*train, *extra]))


def _names(path: Path) -> set[str]:
    return set(path.read_text().split())


def _write_list(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def _palette(path: Path) -> list[int]:
    """Return VOC's 256 colours; with fewer, Pillow would write fewer bits and cut the labels."""
    with Image.open(path) as picture:
        colours = picture.getpalette() or []
    return colours + [0] * (3 * 256 - len(colours))


def _write_labels(source: Path, target: Path, palette: list[int]) -> None:
    """Turn one MATLAB file into a label picture; GTcls.Segmentation holds the classes (H, W) uint8."""
    import numpy as np
    from scipy.io import loadmat

    try:
        truth = loadmat(source, squeeze_me=True, struct_as_record=False)["GTcls"].Segmentation
        labels = np.asarray(truth, dtype=np.uint8)
    except Exception as error:  # scipy fails in many ways on foreign bytes
        raise ValueError(f"{source.name} cannot be read as SBD's labels ({error})") from error
    if labels.ndim != 2 or labels.max() >= CLASSES:
        found = f"{labels.shape} with values up to {labels.max()}"
        raise ValueError(f"{source.name} holds {found}; expected (H, W) with 0..{CLASSES - 1}")
    picture = Image.fromarray(labels)
    picture.putpalette(palette)
    picture.save(target)
