"""The data module: a source, its transforms, and loaders for any number of devices."""

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from deeplab_recipes.data.check import check_pairs
from deeplab_recipes.data.colours import Photometric
from deeplab_recipes.data.counting import count_classes
from deeplab_recipes.data.dataset import OnCorrupt, SegmentationDataset, collate, collate_by_size
from deeplab_recipes.data.device import normalize, prepare
from deeplab_recipes.data.files import size_of
from deeplab_recipes.data.kept import keep
from deeplab_recipes.data.sampler import EvaluationSampler, TrainingSampler
from deeplab_recipes.data.shards import Shards, open_source
from deeplab_recipes.data.sources.base import Source
from deeplab_recipes.data.stores import is_bucket
from deeplab_recipes.data.transforms import (
    MEAN,
    PIPELINES,
    STD,
    EvaluationTransform,
    Pipeline,
    TrainingTransform,
)
from deeplab_recipes.machine import cores
from deeplab_recipes.signals import held_back, leave_notices_to_parent


class SegmentationDataModule(pl.LightningDataModule):
    """Training and evaluation batches of a data source.

    A training batch is {"image" (B, 3, H, W) normalised floats, "label" (B, H, W) uint8, "index" (B,),
    "corrupt" (B,)} on the device, B being this device's share of the global batch; an evaluation batch is a
    list of such, one for each image size.

    Args:
        source: called with `root`, gives the data set.
        root: folder of the data, in the source's layout or as shards (see `data.shards`), or shards at s3://....
        batch_size: GLOBAL training batch.
        evaluate_batch_size: images per device in evaluation.
        pipeline: "square" or "keep_ratio", the training transform (see `data.transforms`).
        crop_size: (height, width) of training samples.
        base_size: size at scale 1, as the pipeline reads it; None: each image's own.
        scale_range, scale_step, max_class_share, flip: see `TrainingTransform`.
        photometric: whose colour changes, "square", "keep_ratio" or "none".
        photometric_on: where they are made, "device" or "workers" (on whole levels of 0..255).
        protocol: evaluation protocol, "square" or "keep_ratio".
        reduced_decoding: see `TrainingTransform`.
        evaluate_sizes: the size of each protocol, as `EvaluationTransform` reads it.
        mean, std: normalisation, in levels of 0..255.
        workers: loader processes per device, or "auto".
        keep_decoded: "auto": training pairs stay in memory where a quarter of what is free suffices; or "none".
        check_samples: pairs decoded before training starts, spread over each part; 0 looks at none.
        on_corrupt: "raise" or "skip", see `SegmentationDataset`.
        cache: where copies of shards in a bucket are kept, see `Shards`.
        seed: of order and draws.

    Raises:
        ValueError, FileNotFoundError: for settings or data that cannot be trained on.
    """

    def __init__(
        self,
        source: Callable[[str], Source],
        root: str | Path,
        *,
        batch_size: int,
        crop_size: Sequence[int],
        base_size: Sequence[int] | None,
        evaluate_sizes: Mapping[str, Sequence[int]],
        evaluate_batch_size: int = 1,
        pipeline: Pipeline = "square",
        protocol: Pipeline = "square",
        photometric: Photometric = "none",
        photometric_on: Literal["device", "workers"] = "device",
        scale_range: Sequence[float] = (0.5, 2.0),
        scale_step: float = 0.0,
        max_class_share: float = 0.75,
        flip: float = 0.5,
        reduced_decoding: bool = False,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        workers: int | str = "auto",
        keep_decoded: Literal["auto", "none"] = "auto",
        check_samples: int = 64,
        on_corrupt: OnCorrupt = "raise",
        cache: str | None = None,
        seed: int = 17,
    ) -> None:
        super().__init__()
        _require("data.pipeline", pipeline, PIPELINES)
        _require("data.photometric", photometric, (*PIPELINES, "none"))
        _require("data.photometric_on", photometric_on, ("device", "workers"))
        _require("data.on_corrupt", on_corrupt, ("raise", "skip"))
        self.root = str(root) if is_bucket(root) else Path(root)
        self.source = open_source(source, root, cache=cache)
        self.batch_size = _whole("batch_size", batch_size, least=1)
        self.evaluate_batch_size = _whole("evaluate_batch_size", evaluate_batch_size, least=1)
        self.photometric = photometric if photometric_on == "device" else "none"  # what the device does
        self.protocol, self.on_corrupt = protocol, on_corrupt
        self.seed = _whole("seed", seed, least=0)
        self.mean, self.std = _channels("data.mean", mean, above=-1), _channels("data.std", std, above=0)
        self.workers = workers if workers == "auto" else _whole("data.workers", workers, least=0)
        self.keep_decoded = _require("data.keep_decoded", keep_decoded, ("auto", "none"))
        self.check_samples = _whole("data.check_samples", check_samples, least=0)
        self.training_transform = TrainingTransform(
            pipeline=pipeline,
            crop_size=_size("data.crop_size", crop_size),
            base_size=None if base_size is None else _size("data.base_size", base_size),
            scale_range=_range("data.scale_range", scale_range),
            scale_step=_step("data.scale_step", scale_step, scale_range),
            max_class_share=_fraction("data.max_class_share", max_class_share),
            flip=_fraction("data.flip", flip),
            photometric=photometric,
            colours_here=photometric_on == "workers",
            reduced_decoding=reduced_decoding,
        )
        self.evaluate_sizes = {
            _require("data.evaluate_sizes", name, PIPELINES): _size(f"data.evaluate_sizes.{name}", size)
            for name, size in evaluate_sizes.items()
        }
        _require("protocol", protocol, tuple(self.evaluate_sizes))
        self.evaluation_transform = EvaluationTransform(protocol, self.evaluate_sizes[protocol])
        self._datasets: dict[str, SegmentationDataset] = {}
        self._restored_steps = 0

    def setup(self, stage: str) -> None:
        """Forget the steps of an earlier run."""
        self._restored_steps = 0

    def state_dict(self) -> dict[str, int]:
        """Return the steps taken, for the checkpoint."""
        return {"steps": self._steps_done()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take over a checkpoint's steps; Lightning may load samples before it restores its own count."""
        self._restored_steps = state_dict["steps"]

    @property
    def num_classes(self) -> int:
        """Number of classes of the source."""
        return len(self.source.classes)

    def dataset(self, split: str, *, training: bool) -> SegmentationDataset:
        """Return a part with the training or the evaluation transform; made once."""
        key = f"{split}:{training}"
        if key not in self._datasets:
            transform = self.training_transform if training else self.evaluation_transform
            self._datasets[key] = SegmentationDataset(
                self.source, split, transform, seed=self.seed, on_corrupt=self.on_corrupt
            )
        return self._datasets[key]

    def check(self) -> None:
        """Look for data that training would stumble over: quick, before the first step.

        Raises:
            ValueError: names the first file that cannot be used, and why.
        """
        for split, training in (("train", True), ("validation", False)):
            dataset = self.dataset(split, training=training)
            compared = isinstance(self.source, Shards)  # by the conversion; a bucket's headers are far away
            check_pairs(
                dataset.pairs,
                dataset.source,
                samples=self.check_samples,
                on_corrupt=self.on_corrupt,
                compare_sizes=not compared,
            )

    def count_classes(self) -> tuple[list[int], list[int]]:
        """Count the pixels of each class in the training labels; see `counting.count_classes`."""
        dataset = self.dataset("train", training=True)
        return count_classes(dataset.source, dataset.pairs, skip_unreadable=self.on_corrupt == "skip")

    def sampler(
        self, *, rank: int = 0, world_size: int = 1, steps_done: Callable[[], int] | None = None
    ) -> TrainingSampler:
        """Return the order of training samples of one device; see `TrainingSampler`."""
        size = len(self.dataset("train", training=True))
        return TrainingSampler(
            size, self.batch_size, seed=self.seed, rank=rank, world_size=world_size, steps_done=steps_done
        )

    def train_dataloader(self) -> DataLoader:
        """Return this device's loader; a resumed run goes on after the last batch it took."""
        rank, world_size = self._place()
        sampler = self.sampler(rank=rank, world_size=world_size, steps_done=self._steps_done)
        dataset = self.dataset("train", training=True)
        if self.keep_decoded == "auto" and dataset.kept is None:
            dataset.kept = keep(dataset.pairs, devices=self.trainer.num_devices if self.trainer else 1)
        share = self.batch_size // world_size
        return self._loader(dataset, sampler, batch_size=share, collate_fn=collate, persistent_workers=True)

    def val_dataloader(self) -> DataLoader:
        """Return this device's loader over the validation part."""
        return self.evaluation_dataloader("validation")

    def evaluation_dataloader(self, split: str) -> DataLoader:
        """Return this device's loader over a part, every image once over all devices."""
        rank, world_size = self._place()
        dataset = self.dataset(split, training=False)
        sampler = EvaluationSampler(len(dataset), rank=rank, world_size=world_size)
        return self._loader(dataset, sampler, batch_size=self.evaluate_batch_size, collate_fn=collate_by_size)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change colours and normalise on the device."""
        if isinstance(batch, list):
            return [{**part, "image": self.normalize(part["image"])} for part in batch]
        images = prepare(
            batch["image"],
            content=batch["content"],
            colour=batch["colour"],
            photometric=self.photometric,
            mean=self.mean,
            std=self.std,
            dtype=self._dtype(),
        )
        return {"image": images, **{key: batch[key] for key in ("label", "index", "corrupt")}}

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise (B, 3, H, W) uint8 for the model."""
        return normalize(images, mean=self.mean, std=self.std, dtype=self._dtype())

    def fingerprint(self) -> str:
        """Return a sha256 over classes and the names and sizes of all files of both parts."""
        digest = hashlib.sha256("\n".join(self.source.classes).encode())
        for split, training in (("train", True), ("validation", False)):
            for pair in self.dataset(split, training=training).pairs:
                for file in (pair.image, pair.label):
                    digest.update(os.fsencode(f"{split}/{file.name}:{size_of(file)}\n"))
        return digest.hexdigest()

    def _dtype(self) -> torch.dtype:
        """The model's: float64 where that was asked for; autocast begins at float32."""
        return self.trainer.lightning_module.dtype if self.trainer else torch.float32

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _steps_done(self) -> int:
        return max(self._restored_steps, self.trainer.global_step if self.trainer else 0)

    def _loader(
        self, dataset: SegmentationDataset, sampler: Any, *, persistent_workers: bool = False, **options: Any
    ) -> DataLoader:
        workers = self._worker_count()
        return NotifiedLoader(
            dataset,
            sampler=sampler,
            num_workers=workers,
            worker_init_fn=partial(_start_worker, parent=os.getpid()),
            # The loader draws a number for its workers, how often depends on them; dropout must not notice.
            generator=torch.Generator(),
            pin_memory=torch.cuda.is_available(),
            persistent_workers=persistent_workers and workers > 0,
            **options,
        )

    def _worker_count(self) -> int:
        if self.workers != "auto":
            return self.workers
        local_devices = self.trainer.num_devices if self.trainer else 1
        spare = 0 if torch.cuda.is_available() else 1  # where the processor trains, it keeps a core for that
        return min(8, max(1, cores() // local_devices - spare))


class NotifiedLoader(DataLoader):
    """A loader whose processes cannot get a signal before they are ready for it."""

    def __iter__(self) -> Any:
        with held_back():
            return super().__iter__()


def _start_worker(worker: int, *, parent: int) -> None:
    """Workers share the cores as it is; OpenCV would start threads on all of them in each of them."""
    cv2.setNumThreads(0)
    leave_notices_to_parent(parent)


def _require(setting: str, value: Any, valid: Sequence[str]) -> Any:
    if value not in valid:
        raise ValueError(f"{setting} is {value!r}; valid are {', '.join(valid)}")
    return value


def _whole(setting: str, value: Any, *, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        other = ' or "auto"' if setting == "data.workers" else ""
        raise ValueError(f"{setting} is {value!r}; it takes a whole number of at least {least}{other}")
    return value


def _numbers(value: Any, count: int) -> bool:
    """Whether `value` is a sequence of that many finite numbers (a list, a tuple or OmegaConf's list)."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != count:
        return False
    return all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in value)


def _size(setting: str, value: Any) -> tuple[int, int]:
    if not _numbers(value, 2) or any(v != int(v) or v < 33 for v in value):
        raise ValueError(f"{setting} is {value}; it takes two whole numbers of at least 33, like [512,512]")
    return int(value[0]), int(value[1])


def _range(setting: str, value: Any) -> tuple[float, float]:
    if not _numbers(value, 2) or not 0 < value[0] <= value[1]:
        raise ValueError(f"{setting} is {value}; it takes two numbers 0 < low <= high, like [0.5,2.0]")
    return float(value[0]), float(value[1])


def _step(setting: str, value: Any, scales: Sequence[float]) -> float:
    if not _numbers([value], 1) or not 0 <= value <= scales[1] - scales[0]:
        raise ValueError(
            f"{setting} is {value!r}; it takes 0 or a number up to the length of data.scale_range={scales}"
        )
    return float(value)


def _channels(setting: str, value: Any, *, above: float) -> tuple[float, ...]:
    if not _numbers(value, 3) or any(v <= above for v in value):
        raise ValueError(f"{setting} is {value}; it takes three numbers above {above}, in levels of 0..255")
    return tuple(float(v) for v in value)


def _fraction(setting: str, value: Any) -> float:
    if not _numbers([value], 1) or not 0 <= value <= 1:
        raise ValueError(f"{setting} is {value!r}; it must be in [0, 1]")
    return float(value)
