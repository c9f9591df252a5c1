"""How many training samples a second does one core make? Every pipeline in one process, in turn.

    python benchmarks/input_pipeline.py --ade20k DIR --camvid DIR [--output benchmarks/results/NAME.md]

Each contestant reads the same image and label files, resizes at a random scale in [0.5, 2], crops 512 x 512 (CamVid:
320 x 320) by the same rule, flips, pads, and leaves a batch of 16 samples. A round lets every contestant make
`--samples` of them; the table gives the median over rounds, and ratios are medians of the ratios within a round.
Photometric changes are left to the device (or out), or made on the CPU by all. The enlarged set is made in a temporary
folder.
"""

import argparse
import importlib.util
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from deeplab_recipes.data import SegmentationDataModule
from deeplab_recipes.data.dataset import SegmentationDataset, collate
from deeplab_recipes.data.kept import keep
from deeplab_recipes.data.labels import IGNORE
from deeplab_recipes.data.sampler import Draw
from deeplab_recipes.data.shards.convert import convert
from deeplab_recipes.data.shards.source import Shards
from deeplab_recipes.data.sources import ADE20k, CamVid
from deeplab_recipes.data.sources.base import Pair, Source
from deeplab_recipes.data.transforms import MEAN_PIXEL, TrainingTransform
from deeplab_recipes.record import hardware

BATCH = 16
Maker = Callable[[Sequence[Draw]], Any]


@dataclass(frozen=True)
class DataSet:
    """Files, and the keep_ratio recipe's sizes for them."""

    name: str
    source: Source
    base: tuple[int, int]
    crop: tuple[int, int]
    reduce_zero: bool
    folder: Path  # for the shards

    def shards(self) -> Shards:
        """Return the training part as shards, which are made the first time."""
        output = self.folder / f"{self.name} shards"
        if not output.exists():
            convert(lambda root: self.source, "", output, splits=("train",), progress=False)
        return Shards(output)

    def pairs(self) -> list[Pair]:
        """Return the training part."""
        return self.source.pairs("train")


# The sets.


def data_sets(ade20k: Path | None, camvid: Path | None, folder: Path, limit: int) -> Iterator[DataSet]:
    if ade20k:
        settings = {"base": (2048, 512), "crop": (512, 512), "reduce_zero": True, "folder": folder}
        yield DataSet("ade20k_mini", ADE20k(ade20k), **settings)
        enlarged = folder / "enlarged"
        enlarge(ADE20k(ade20k).pairs("train")[:limit], enlarged)
        yield DataSet("ade20k_mini enlarged to 683 x 512", ADE20k(enlarged), **settings)
    if camvid:
        yield DataSet("CamVid", CamVid(camvid), (480, 360), (320, 320), reduce_zero=False, folder=folder)


def enlarge(pairs: Sequence[Pair], root: Path) -> None:
    """Write the pairs 4/3 as large, which makes a long side of 512 one of 683."""
    for kind in ("images", "annotations"):
        (root / kind / "training").mkdir(parents=True)
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(enlarge_pair, root=root), pairs))


def enlarge_pair(pair: Pair, *, root: Path) -> None:
    image, label = Image.open(pair.image).convert("RGB"), Image.open(pair.label)
    size = tuple(round(side * 683 / 512) for side in image.size)
    image.resize(size, Image.Resampling.BICUBIC).save(root / "images/training" / pair.image.name, quality=76)
    label.resize(size, Image.Resampling.NEAREST).save(root / "annotations/training" / pair.label.name)


# The contestants: each makes a batch of samples.


def ours(data: DataSet, *, photometric: bool) -> Maker:
    transform = TrainingTransform(
        "keep_ratio", data.crop, data.base, photometric="keep_ratio", colours_here=photometric
    )
    dataset = SegmentationDataset(data.source, "train", transform, seed=0)
    return lambda draws: collate(dataset.__getitems__(draws))


def ours_from_shards(data: DataSet, *, photometric: bool) -> Maker:
    transform = TrainingTransform(
        "keep_ratio", data.crop, data.base, photometric="keep_ratio", colours_here=photometric
    )
    dataset = SegmentationDataset(data.shards(), "train", transform, seed=0)
    return lambda draws: collate(dataset.__getitems__(draws))


def ours_kept(data: DataSet, *, photometric: bool) -> Maker:
    """Either from the second epoch on, of a set whose decoded pairs fit into memory: files are not read again."""
    transform = TrainingTransform(
        "keep_ratio", data.crop, data.base, photometric="keep_ratio", colours_here=photometric
    )
    dataset = SegmentationDataset(data.shards(), "train", transform, seed=0)
    dataset.kept = keep(dataset.pairs, devices=1)
    for i in range(len(dataset)):
        dataset[Draw(0, i)]
    return lambda draws: collate(dataset.__getitems__(draws))


def mmsegmentation(data: DataSet, *, photometric: bool) -> Maker:
    from mmcv.transforms import LoadImageFromFile, RandomFlip, RandomResize
    from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs, PhotoMetricDistortion, RandomCrop

    steps = [
        LoadImageFromFile(),
        LoadAnnotations(reduce_zero_label=data.reduce_zero),
        RandomResize(scale=data.base, ratio_range=(0.5, 2.0), keep_ratio=True),
        RandomCrop(data.crop, cat_max_ratio=0.75),
        RandomFlip(prob=0.5),
        *([PhotoMetricDistortion()] if photometric else []),
        PackSegInputs(),
    ]
    pairs, given = data.pairs(), {"reduce_zero_label": data.reduce_zero, "seg_fields": []}

    def make(draws: Sequence[Draw]) -> list[dict]:
        samples = []
        for draw in draws:
            pair = pairs[draw.index]
            sample = {"img_path": str(pair.image), "seg_map_path": str(pair.label), **given, "seg_fields": []}
            for step in steps:
                sample = step(sample)
            samples.append(sample)
        return samples

    return make


def torchvision(data: DataSet, *, photometric: bool) -> Maker:
    from torchvision import tv_tensors
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional as F

    fill = {tv_tensors.Image: list(MEAN_PIXEL), tv_tensors.Mask: IGNORE}
    rest = v2.Compose(
        [
            v2.RandomCrop(data.crop, pad_if_needed=True, fill=fill),
            v2.RandomHorizontalFlip(0.5),
            *([v2.RandomPhotometricDistort()] if photometric else []),
        ]
    )
    pairs = data.pairs()

    def sample(draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        pair = pairs[draw.index]
        image = tv_tensors.Image(F.pil_to_tensor(Image.open(pair.image).convert("RGB")))
        mask = tv_tensors.Mask(F.pil_to_tensor(Image.open(pair.label)))
        size = rescaled(image.shape[-2:], data.base)
        return rest(F.resize(image, size, antialias=True), F.resize(mask, size))

    return lambda draws: torch.utils.data.default_collate([sample(draw) for draw in draws])


def albumentations(data: DataSet, *, photometric: bool) -> Maker:
    import albumentations as A

    fill = {"fill": MEAN_PIXEL, "fill_mask": IGNORE, "position": "top_left"}
    rest = A.Compose(
        [
            A.PadIfNeeded(*data.crop, border_mode=cv2.BORDER_CONSTANT, **fill),
            A.RandomCrop(*data.crop),
            A.HorizontalFlip(p=0.5),
            *([A.ColorJitter(32 / 255, 0.5, 0.5, 18 / 180, p=1)] if photometric else []),
        ]
    )
    pairs = data.pairs()

    def sample(draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        pair = pairs[draw.index]
        image = cv2.cvtColor(cv2.imread(str(pair.image)), cv2.COLOR_BGR2RGB)
        mask = cv2.imread(str(pair.label), cv2.IMREAD_UNCHANGED)
        size = rescaled(image.shape[:2], data.base)[::-1]
        image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        done = rest(image=image, mask=cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST))
        return torch.from_numpy(done["image"]), torch.from_numpy(done["mask"])

    return lambda draws: torch.utils.data.default_collate([sample(draw) for draw in draws])


def composer(data: DataSet, *, photometric: bool) -> Maker:
    """Composer's way: Pillow all through, squashed to a square of 512 times the scale."""
    import torchvision.transforms as T
    import torchvision.transforms.functional as F

    jitter = T.ColorJitter(32 / 255, 0.5, 0.5, 18 / 255)
    pairs, rng = data.pairs(), np.random.default_rng(0)

    def crop_window(label: Image.Image) -> tuple[int, int, int, int]:
        for _ in range(11):
            window = T.RandomCrop.get_params(
                label, tuple(min(c, s) for c, s in zip(data.crop, label.size[::-1], strict=True))
            )
            counts = np.bincount(np.asarray(F.crop(label, *window)).ravel(), minlength=256)[1:]
            if np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < 0.75:
                break
        return window

    def sample(draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        pair = pairs[draw.index]
        size = [int(512 * rng.uniform(0.5, 2))] * 2
        image = F.resize(Image.open(pair.image).convert("RGB"), size, T.InterpolationMode.BILINEAR)
        label = F.resize(Image.open(pair.label), size, T.InterpolationMode.NEAREST)
        window = crop_window(label)
        image, label = F.crop(image, *window), F.crop(label, *window)
        if rng.random() < 0.5:
            image, label = F.hflip(image), F.hflip(label)
        image = jitter(image) if photometric else image
        right, below = data.crop[1] - image.width, data.crop[0] - image.height
        padding = [right // 2, below // 2, right - right // 2, below - below // 2]
        image, label = F.pad(image, padding, fill=MEAN_PIXEL), F.pad(label, padding)
        return F.pil_to_tensor(image), F.pil_to_tensor(label)

    return lambda draws: torch.utils.data.default_collate([sample(draw) for draw in draws])


def bare_decode(data: DataSet, *, photometric: bool) -> Maker:
    """The limit: nothing but the JPEGs, decoded whole."""
    import simplejpeg

    contents = [pair.image.read_bytes() for pair in data.pairs()]
    return lambda draws: [simplejpeg.decode_jpeg(contents[draw.index]) for draw in draws]


def rescaled(size: Sequence[int], base: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) at a random scale, the aspect kept."""
    scale = np.random.uniform(0.5, 2)
    factor = min(base[0] * scale / max(size), base[1] * scale / min(size))
    return round(size[0] * factor), round(size[1] * factor)


CONTESTANTS: dict[str, Callable[..., Maker]] = {
    "ours, folder": ours,
    "ours, shards": ours_from_shards,
    "ours, decoded pairs in memory": ours_kept,
    "mmsegmentation": mmsegmentation,
    "torchvision v2": torchvision,
    "albumentations": albumentations,
    "PIL, Composer's way": composer,
    "bare JPEG decode (simplejpeg)": bare_decode,
}


# Measuring.


def rate(make: Maker, draws: Sequence[Draw]) -> float:
    start = time.perf_counter()
    for first in range(0, len(draws), BATCH):
        make(draws[first : first + BATCH])
    return len(draws) / (time.perf_counter() - start)


def measure(makers: dict[str, Maker], size: int, samples: int, rounds: int) -> dict[str, list[float]]:
    """Return every contestant's rates, one for each round; the first round warms up and does not count."""
    rng = np.random.default_rng(0)
    rates: dict[str, list[float]] = {name: [] for name in makers}
    for number in range(rounds + 1):
        draws = [Draw(number, int(i)) for i in rng.integers(size, size=samples)]
        for name, make in makers.items():
            result = rate(make, draws)
            if number:
                rates[name].append(result)
    return rates


def table(data: DataSet, without: dict[str, list[float]], with_colours: dict[str, list[float]]) -> str:
    lines = [
        f"## {data.name}",
        "",
        "| pipeline | images/s, photometric on the device or not at all | images/s, photometric on the CPU |",
        "|---|---|---|",
    ]
    for name in without:
        cells = [f"{statistics.median(r[name]):.0f}" if name in r else "" for r in (without, with_colours)]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return "\n".join([*lines, "", *ratios(without, with_colours)])


def ratios(without: dict[str, list[float]], with_colours: dict[str, list[float]]) -> list[str]:
    def ratio(over: list[float], under: list[float]) -> str:
        return f"{statistics.median(a / b for a, b in zip(over, under, strict=True)):.2f}"

    lines = []
    for name in [n for n in without if n.startswith("ours")]:
        theirs = with_colours["mmsegmentation"]
        lines.append(f"- {name} / mmsegmentation as it ships (photometric on its CPU): {ratio(without[name], theirs)}")
        if name in with_colours:
            lines.append(
                f"- {name} / mmsegmentation, photometric on the CPU for both: {ratio(with_colours[name], theirs)}"
            )
        bare = without["bare JPEG decode (simplejpeg)"]
        lines.append(f"- {name} / bare JPEG decode: {ratio(without[name], bare)}")
    return lines


def one_core() -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def compare(data: DataSet, samples: int, rounds: int) -> str:
    results = []
    for photometric in (False, True):
        makers = {}
        for name, build in CONTESTANTS.items():
            if name == "albumentations" and importlib.util.find_spec("albumentations") is None:
                continue
            makers[name] = build(data, photometric=photometric)
        results.append((makers, photometric))
    every = {f"{name}|{colours}": make for makers, colours in results for name, make in makers.items()}
    rates = measure(every, len(data.pairs()), samples, rounds)
    split = [{key.split("|")[0]: v for key, v in rates.items() if key.endswith(f"|{c}")} for c in (False, True)]
    split[1].pop("bare JPEG decode (simplejpeg)")
    return table(data, *split)


# Loader processes, on all cores.


def module(data: DataSet, workers: int) -> SegmentationDataModule:
    return SegmentationDataModule(
        lambda root: data.source,
        "",
        batch_size=BATCH,
        pipeline="keep_ratio",
        crop_size=data.crop,
        base_size=data.base,
        evaluate_sizes={"keep_ratio": data.base},
        protocol="keep_ratio",
        photometric="keep_ratio",
        workers=workers,
        keep_decoded="none",
    )


def batches(data: DataSet, workers: int) -> Iterator[tuple[int, list[int]]]:
    """Give the samples so far and the loader processes' numbers after each batch, epoch after epoch."""
    loader, samples = module(data, workers).train_dataloader(), 0
    while True:
        iterator = iter(loader)
        for batch in iterator:
            samples += len(batch["label"])
            yield samples, [process.pid for process in iterator._workers]


def loader_rate(data: DataSet, workers: int, samples: int) -> float:
    """Return images per second of a loader that has been running for a while."""
    stream = batches(data, workers)
    for done, _ in stream:
        if done >= samples // 4:
            break
    first, start = done, time.perf_counter()
    for done, _ in stream:
        if done - first >= samples:
            return (done - first) / (time.perf_counter() - start)
    raise AssertionError("the loader ended")


def resident(pids: Sequence[int]) -> float:
    """Return the processes' resident memory in MB, pages that they share counted once."""
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1e3


def memory(data: DataSet, workers: int, marks: Sequence[int]) -> list[float]:
    """Return the workers' memory after so many samples."""
    left, found = list(marks), []
    for done, pids in batches(data, workers):
        if done >= left[0]:
            found.append(resident(pids))
            left.pop(0)
            if not left:
                return found
    raise AssertionError("the loader ended")


def loaders(data: DataSet, rounds: int) -> str:
    one, two = ([loader_rate(data, workers, 1000) for _ in range(rounds)] for workers in (1, 2))
    marks = (500, 1000, 2500, 5000, 10_000)
    used = memory(data, 4, marks)
    after = ", ".join(f"{mb:.0f} MB after {mark:,}" for mark, mb in zip(marks, used, strict=True))
    return "\n".join(
        [
            f"## Loader processes, {data.name}",
            "",
            f"- one worker {statistics.median(one):.0f} images/s, two {statistics.median(two):.0f}: "
            f"{statistics.median(two) / statistics.median(one):.2f}",
            f"- memory of 4 workers (proportional share): {after} samples",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ade20k", type=Path, help="ade20k_mini, or ADE20k")
    parser.add_argument("--camvid", type=Path)
    parser.add_argument("--samples", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--enlarged", type=int, default=400, help="how many pairs to enlarge")
    parser.add_argument("--no-loaders", action="store_true", help="leave the loader processes out")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    packages = ("torch", "torchvision", "onedl-mmsegmentation", "simplejpeg", "pillow", "numpy")
    text = [f"{date.today()}, one core of {hardware(1, gpu=False)}, python {platform.python_version()}, "]
    text[0] += ", ".join(f"{name} {version(name)}" for name in packages)
    with tempfile.TemporaryDirectory() as folder:
        sets = list(data_sets(given.ade20k, given.camvid, Path(folder), given.enlarged))
        if sets and not given.no_loaders:  # before this process is tied to one core
            text.append(loaders(sets[0], given.rounds))
            print(text[-1], flush=True)
        one_core()
        for data in sets:
            text.append(compare(data, given.samples, given.rounds))
            print(text[-1], flush=True)
    if given.output:
        given.output.write_text("# Input pipeline\n\n" + "\n\n".join(text) + "\n")


if __name__ == "__main__":
    main()
