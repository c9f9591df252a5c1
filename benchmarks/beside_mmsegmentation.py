"""Does the package train as well as mmsegmentation does? The same training twice, each side by its own parts.

    python benchmarks/beside_mmsegmentation.py --data DIR --weights FILE --output benchmarks/results/NAME.md

`--data` is CamVid's folder, `--weights` torchvision's MobileNetV2 ImageNet weights. Ours is the package: its loader,
network, loss, schedule and loop. Theirs is mmsegmentation's segmentor, backbone, head, loss, transforms, preprocessor
and metric with mmengine's sampler and PolyLR and torch's SGD, in the plain loop below. Both start from the same
ImageNet weights and draw the rest by themselves, so single numbers differ by chance: what counts is the mean over
seeds. A finished run is kept in --keep and not done again.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, redirect_stdout
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytorch_lightning as pl
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from deeplab_recipes import SegmentationDataModule, build_deeplab, record
from deeplab_recipes.data.sources import CamVid
from deeplab_recipes.losses import SegmentationLoss
from deeplab_recipes.metrics import MeanIoU
from deeplab_recipes.optimization import polynomial
from deeplab_recipes.trainer import TrainerSettings, keep_freed_memory
from deeplab_recipes.training import Run, quiet, train

CLASSES, IGNORE, UNLABELLED = 11, 255, 11
BASE, SCALES, MAX_SHARE = (480, 360), (0.5, 2.0), 0.75
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CHANNELS, DILATIONS, LOW_CHANNELS, DROPOUT = 128, (1, 6, 12, 18), 48, 0.1
LR, MOMENTUM, DECAY, POWER, LAST_LR = 0.01, 0.9, 5e-4, 0.9, 1e-4
BATCH, WINDOW = 8, 20  # images of a step; steps of which the rate is taken
LAST_INVERTED_RESIDUAL = 17  # of torchvision's `features`; the layer behind it serves the classifier
SIDES = ("ours", "theirs")
KEEP = Path("runs/beside_mmsegmentation.json")
Scored = Iterable[tuple[Tensor, Tensor]]  # predicted and true labels (H, W) of each image; 255 is ignored
Outcome = dict[str, Any]  # what is kept of a run


@dataclass(frozen=True)
class Setting:
    """What both sides share and a user may choose."""

    data: str
    weights: str
    steps: int
    crop: int
    precision: str

    def autocast(self) -> AbstractContextManager[None]:
        """Compute in bf16 where that is the precision."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16-mixed")


# Ours: the package.


def train_ours(setting: Setting, seed: int) -> Outcome:
    # What the run says of itself ends with a folder that is removed here.
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        run = our_run(setting, seed, Path(folder) / "run")
        result = train(run)
    outcome = score(our_predictions(run, setting))
    reported = result["evaluations"][0]["miou"]
    if abs(outcome["miou"] - reported) > 1e-3:
        raise ValueError(f"the run reports {reported} mIoU, counted again it is {outcome['miou']}")
    return {"images_per_second": result["images_per_second"], **outcome}


def our_run(setting: Setting, seed: int, folder: Path) -> Run:
    return Run(
        name="beside_mmsegmentation",
        model=partial(our_network, weights=setting.weights),
        data=our_data(setting, seed),
        # mmsegmentation divides by all pixels unless told otherwise.
        loss=SegmentationLoss(denominator="all"),
        optimizer=partial(torch.optim.SGD, lr=LR, momentum=MOMENTUM, weight_decay=DECAY),
        schedule=partial(polynomial, power=POWER, alpha_f=LAST_LR / LR),
        schedule_ends="at_last_step",
        trainer=TrainerSettings(
            max_steps=setting.steps,
            evaluate_every=setting.steps,  # epochs: never before the end
            accelerator="cpu",
            devices=1,
            precision=setting.precision,
            log_every=WINDOW,
            progress=False,
        ),
        seed=seed,
        run_dir=folder,
        pictures=0,
    )


def our_network(num_classes: int, *, weights: str | None) -> nn.Module:
    return build_deeplab(
        num_classes,
        backbone="mobilenet_v2",
        output_stride=16,
        aspp_dilations=DILATIONS,
        aspp_channels=CHANNELS,
        decoder_channels=LOW_CHANNELS,
        dropout=DROPOUT,
        backbone_weights=weights,
    )


def our_data(setting: Setting, seed: int) -> SegmentationDataModule:
    return SegmentationDataModule(
        CamVid,
        setting.data,
        batch_size=BATCH,
        crop_size=(setting.crop, setting.crop),
        base_size=BASE,
        scale_range=SCALES,
        max_class_share=MAX_SHARE,
        evaluate_sizes={"keep_ratio": BASE},
        pipeline="keep_ratio",
        protocol="keep_ratio",
        photometric="keep_ratio",
        workers=1,
        seed=seed,
    )


@torch.no_grad()
def our_predictions(run: Run, setting: Setting) -> Iterator[tuple[Tensor, Tensor]]:
    network = run.network.eval()
    for parts in run.data.evaluation_dataloader("validation"):
        for part in parts:
            with setting.autocast():
                logits = network(run.data.normalize(part["image"]))
            yield from zip(logits.argmax(1), part["label"], strict=True)


# Theirs: mmsegmentation.


def train_theirs(setting: Setting, seed: int) -> Outcome:
    pl.seed_everything(seed, verbose=False)
    segmentor = their_segmentor(setting.crop)
    fill_backbone(segmentor.backbone, setting.weights)
    require_same_network(segmentor, our_network(CLASSES, weights=setting.weights))
    rate = their_loop(segmentor, their_batches(setting, seed), setting)
    return {"images_per_second": round(rate, 2), **score(their_predictions(segmentor, setting))}


def their_segmentor(crop: int) -> nn.Module:
    from mmengine.config import ConfigDict
    from mmengine.logging import MMLogger
    from mmseg.models.data_preprocessor import SegDataPreProcessor
    from mmseg.models.segmentors import EncoderDecoder

    MMLogger.get_instance("beside_mmsegmentation", log_level="ERROR")  # init_weights tells of every parameter
    preprocessor = SegDataPreProcessor(
        mean=MEAN, std=STD, bgr_to_rgb=True, pad_val=0, seg_pad_val=UNLABELLED, size=(crop, crop)
    )
    segmentor = EncoderDecoder(
        data_preprocessor=preprocessor,
        backbone=their_backbone(),
        decode_head=their_head(),
        train_cfg={},
        test_cfg=ConfigDict(mode="whole"),
    )
    segmentor.init_weights()
    dilate_like_torchvision(segmentor.backbone)
    return segmentor


def their_backbone() -> dict[str, Any]:
    """Output stride 16, features after the layers with 24 and 320 channels."""
    return {
        "type": "MobileNetV2",
        "strides": (1, 2, 2, 2, 1, 1, 1),
        "dilations": (1, 1, 1, 1, 1, 1, 2),
        "out_indices": (1, 6),
        "norm_cfg": {"type": "BN"},
    }


def their_head() -> dict[str, Any]:
    return {
        "type": "DepthwiseSeparableASPPHead",
        "in_channels": 320,
        "in_index": 1,
        "channels": CHANNELS,
        "dilations": DILATIONS,
        "c1_in_channels": 24,
        "c1_channels": LOW_CHANNELS,
        "dropout_ratio": DROPOUT,
        "num_classes": CLASSES,
        "norm_cfg": {"type": "BN"},
        "align_corners": False,
        "ignore_index": UNLABELLED,
        "loss_decode": {"type": "CrossEntropyLoss", "loss_weight": 1.0},
    }


def dilate_like_torchvision(backbone: nn.Module) -> None:
    """Dilate the later blocks of the layer that lost its stride; mmsegmentation dilates a layer's first block only."""
    for block in list(backbone.layer6)[1:]:
        depthwise = block.conv[1].conv
        depthwise.dilation = depthwise.padding = (2, 2)


def fill_backbone(backbone: nn.Module, weights: str | Path) -> None:
    """Copy torchvision's weights into mmsegmentation's MobileNetV2, by the order of convolutions and batch norms.

    Raises:
        ValueError: where kind, number or shapes differ.
    """
    network = torchvision.models.mobilenet_v2()
    state = torch.load(weights, map_location="cpu", weights_only=True)
    network.features.load_state_dict({k.removeprefix("features."): v for k, v in state.items() if "features." in k})
    copy_layers(network.features[: LAST_INVERTED_RESIDUAL + 1], backbone)


def copy_layers(source: nn.Module, target: nn.Module) -> None:
    ours, theirs = layers(source), layers(target)
    if len(ours) != len(theirs):
        raise ValueError(f"the backbones have {len(ours)} and {len(theirs)} convolutions and batch norms")
    for number, (here, there) in enumerate(zip(ours, theirs, strict=True)):
        shapes = [(type(m).__name__, {k: tuple(v.shape) for k, v in m.state_dict().items()}) for m in (here, there)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"layer {number} is {shapes[0]} in torchvision's backbone, {shapes[1]} in mmsegmentation's"
            )
        there.load_state_dict(here.state_dict())


def layers(network: nn.Module) -> list[nn.Module]:
    return [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]


@torch.no_grad()
def require_same_network(segmentor: nn.Module, ours: nn.Module) -> None:
    """Compare the backbones' features of a random image, and the heads' parameters by shape.

    Raises:
        ValueError: if they differ.
    """
    image = torch.randn(1, 3, 200, 264, generator=torch.Generator().manual_seed(0))
    mine, their = ours.eval().backbone(image), segmentor.eval().backbone(image)
    for name, a, b in (("low", mine.low, their[0]), ("high", mine.high, their[1])):
        if a.shape != b.shape or not torch.allclose(a, b, rtol=0, atol=1e-5):
            raise ValueError(f"the backbones' {name} features differ: shapes {tuple(a.shape)} and {tuple(b.shape)}")
    heads = [[tuple(p.shape) for p in head.parameters()] for head in (ours.head, segmentor.decode_head)]
    if heads[0] != heads[1]:
        raise ValueError("the heads' parameters differ in shape")


def their_batches(setting: Setting, seed: int) -> Iterator[dict[str, Any]]:
    from mmcv.transforms import LoadImageFromFile, RandomFlip, RandomResize
    from mmengine.dataset import InfiniteSampler, worker_init_fn
    from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs, PhotoMetricDistortion, RandomCrop

    crop = RandomCrop((setting.crop, setting.crop), cat_max_ratio=MAX_SHARE, ignore_index=UNLABELLED)
    resize = RandomResize(scale=BASE, ratio_range=SCALES, keep_ratio=True)
    augment = [resize, crop, RandomFlip(prob=0.5), PhotoMetricDistortion()]
    dataset = their_dataset(setting, "train", [LoadImageFromFile(), LoadAnnotations(), *augment, PackSegInputs()])
    sampler = InfiniteSampler(dataset, seed=seed)
    seeds = partial(worker_init_fn, num_workers=1, rank=0, seed=seed)
    return iter(their_loader(dataset, batch_size=BATCH, sampler=sampler, worker_init_fn=seeds))


def their_dataset(setting: Setting, part: str, pipeline: list[Callable[..., Any]]) -> Any:
    from mmseg.datasets import BaseSegDataset

    return BaseSegDataset(
        data_root=setting.data,
        data_prefix={"img_path": part, "seg_map_path": f"{part}annot"},
        metainfo={"classes": CamVid.classes, "palette": CamVid.palette},
        ignore_index=UNLABELLED,
        pipeline=pipeline,
        test_mode=part != "train",
    )


def their_loader(dataset: Any, **options: Any) -> DataLoader:
    from mmengine.dataset import pseudo_collate

    return DataLoader(dataset, num_workers=1, collate_fn=pseudo_collate, **options)


def their_loop(segmentor: nn.Module, batches: Iterator[dict[str, Any]], setting: Setting) -> float:
    """Train; returns images/s as the package counts them: the median over windows, without the first."""
    from mmengine.optim import PolyLR

    optimizer = torch.optim.SGD(segmentor.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    schedule = PolyLR(optimizer, power=POWER, eta_min=LAST_LR, begin=0, end=setting.steps, by_epoch=False)
    segmentor.train()
    rates, done, start = [], 0, time.perf_counter()
    for step in range(1, setting.steps + 1):
        data = segmentor.data_preprocessor(next(batches), training=True)
        with setting.autocast():
            loss, _ = segmentor.parse_losses(segmentor.loss(**data))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % WINDOW == 0 or step == setting.steps:
            rates.append((step - done) * BATCH / (time.perf_counter() - start))
            done, start = step, time.perf_counter()
    return statistics.median_high(rates[1:] or rates)


@torch.no_grad()
def their_predictions(segmentor: nn.Module, setting: Setting) -> Iterator[tuple[Tensor, Tensor]]:
    from mmcv.transforms import LoadImageFromFile, Resize
    from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs

    segmentor.eval()
    pipeline = [LoadImageFromFile(), Resize(scale=BASE, keep_ratio=True), LoadAnnotations(), PackSegInputs()]
    for batch in their_loader(their_dataset(setting, "val", pipeline), batch_size=1):
        data = segmentor.data_preprocessor(batch, training=False)
        with setting.autocast():
            samples = segmentor.predict(**data)
        for sample in samples:
            truth = sample.gt_sem_seg.data[0]
            yield sample.pred_sem_seg.data[0], torch.where(truth == UNLABELLED, IGNORE, truth)


# Scores.


def score(pairs: Scored) -> Outcome:
    """Count by the package's metric and by mmsegmentation's.

    Raises:
        ValueError: if their areas differ anywhere.
    """
    from mmseg.evaluation import IoUMetric

    metric = MeanIoU(CLASSES, ignore_index=IGNORE)
    areas = torch.zeros(4, CLASSES, dtype=torch.float64)
    for prediction, truth in pairs:
        metric.update(prediction[None], truth[None])
        # Image by image: float32 counts exactly up to 2^24 pixels.
        found = IoUMetric.intersect_and_union(prediction.long(), truth.long(), CLASSES, IGNORE)
        areas += torch.stack(found).double()
    theirs = IoUMetric.total_area_to_metrics(*areas)["IoU"]
    require_same_areas(metric.confusion.double(), areas)
    return {
        "miou": float(metric.compute()),
        "miou_by_mmsegmentation": 100 * float(np.nanmean(theirs)),
        "per_class": metric.per_class().tolist(),
        "truth": areas[3].long().tolist(),
    }


def require_same_areas(matrix: Tensor, areas: Tensor) -> None:
    intersection = matrix.diagonal()
    ours = [intersection, matrix.sum(0) + matrix.sum(1) - intersection, matrix.sum(0), matrix.sum(1)]
    if not torch.equal(torch.stack(ours), areas):
        raise ValueError("the two metrics count different areas")


# Runs, kept one by one.


def finish(setting: Setting, seeds: list[int], sides: list[str], keep: Path) -> dict[str, Outcome]:
    """Run what `keep` does not hold yet; returns all that it holds for these seeds, by "side/seed"."""
    runs = kept_runs(setting, keep)
    for seed, side in ((seed, side) for seed in seeds for side in sides):
        name = f"{side}/{seed}"
        if name not in runs:
            print(f"{name}: {setting.steps} steps ...", file=sys.stderr, flush=True)
            runs[name] = one_run(side, setting, seed)
            keep.parent.mkdir(parents=True, exist_ok=True)
            record.write_json(keep, {"setting": asdict(setting), "runs": runs})
        print(f"{name}: {runs[name]['miou']:.2f} mIoU, {runs[name]['minutes']:.1f} min", file=sys.stderr, flush=True)
    return {name: run for name, run in runs.items() if int(name.partition("/")[2]) in seeds}


def kept_runs(setting: Setting, keep: Path) -> dict[str, Outcome]:
    """Return the runs of an earlier call.

    Raises:
        ValueError: if they were made with other settings.
    """
    if not keep.exists():
        return {}
    content = json.loads(keep.read_text())
    for name, here in asdict(setting).items():
        there = content["setting"][name]
        if there != here:
            raise ValueError(f"{keep} holds runs with {name}={there}, this is {name}={here}: choose another --keep")
    return content["runs"]


def one_run(side: str, setting: Setting, seed: int) -> Outcome:
    start = time.perf_counter()
    with quiet():
        outcome = {"ours": train_ours, "theirs": train_theirs}[side](setting, seed)
    minutes = (time.perf_counter() - start) / 60
    where = {"hardware": record.hardware(1, gpu=False), "threads": torch.get_num_threads(), **record.commit()}
    return {**outcome, "minutes": round(minutes, 2), **where, "versions": record.versions()}


# The table.


def report(setting: Setting, runs: Mapping[str, Outcome]) -> str:
    seeds = sorted({int(name.partition("/")[2]) for name in runs})
    columns = [[runs.get(f"{side}/{seed}") for seed in seeds] for side in SIDES]
    require_same_truth(runs)
    return "\n".join(
        [
            *heading(setting, runs),
            "",
            "| seed | mIoU, ours | mIoU, mmsegmentation | images/s, ours | images/s, mmsegmentation | commit |",
            "|---|---|---|---|---|---|",
            *(row(str(seed), *pair) for seed, pair in zip(seeds, zip(*columns, strict=True), strict=True)),
            mean_row(columns),
            "",
            verdict(*(mious(column) for column in columns)),
        ]
    )


def heading(setting: Setting, runs: Mapping[str, Outcome]) -> list[str]:
    any_run = next(iter(runs.values()))
    names = ("python", "torch", "torchvision", "onedl-mmsegmentation", "onedl-mmcv")
    versions = ", ".join(f"{name} {any_run['versions'][name]}" for name in names if name in any_run["versions"])
    return [
        f"{date.today()}, {any_run['hardware']}, {any_run['threads']} thread, {versions}",
        "",
        f"CamVid, MobileNetV2 at output stride 16 with ImageNet weights, DeepLabv3+ head of {CHANNELS} channels; "
        f"{setting.steps} steps of {BATCH} crops of {setting.crop} x {setting.crop}, SGD {LR}, {setting.precision}; "
        "mIoU of the last weights on the validation part, whole images at their own size (keep_ratio).",
    ]


def require_same_truth(runs: Mapping[str, Outcome]) -> None:
    """Raise ValueError where two runs were scored against different labels."""
    if len({tuple(run["truth"]) for run in runs.values()}) > 1:
        raise ValueError("the runs were scored against different true labels")


def row(name: str, ours: Outcome | None, theirs: Outcome | None) -> str:
    runs = (ours, theirs)
    scores = [f"{run['miou']:.2f}" if run else "not run" for run in runs]
    rates = [f"{run['images_per_second']:.1f}" if run else "not run" for run in runs]
    commits = {f"{run['commit'][:10]}{'+' if run['dirty'] else ''}" for run in runs if run and run["commit"]}
    return f"| {name} | {' | '.join([*scores, *rates])} | {', '.join(sorted(commits)) or 'unknown'} |"


def mean_row(columns: list[list[Outcome | None]]) -> str:
    rates = [[run["images_per_second"] for run in column if run] for column in columns]
    cells = [spread(mious(column)) for column in columns] + [spread(rate, digits=1) for rate in rates]
    return f"| mean ± standard deviation | {' | '.join(cells)} | |"


def mious(column: list[Outcome | None]) -> list[float]:
    return [run["miou"] for run in column if run]


def spread(values: list[float], digits: int = 2) -> str:
    if not values:
        return "not run"
    if len(values) == 1:
        return f"{values[0]:.{digits}f} (n=1)"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def verdict(ours: list[float], theirs: list[float]) -> str:
    """Compare the means; the measure is mmsegmentation's own spread."""
    if len(ours) < 2 or len(theirs) < 2:
        return "No verdict: it takes two seeds of each."
    difference, deviation = statistics.mean(ours) - statistics.mean(theirs), statistics.stdev(theirs)
    holds = "not below" if difference >= -deviation else "BELOW"
    return (
        f"Ours minus mmsegmentation's: {difference:+.2f}. Our mean is {holds} theirs by more than one standard "
        f"deviation of theirs ({deviation:.2f}; n={len(ours)} and {len(theirs)})."
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CamVid's folder")
    parser.add_argument("--weights", type=Path, required=True, help="torchvision's MobileNetV2 ImageNet weights")
    parser.add_argument("--seeds", default="17,18,19")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    parser.add_argument("--only", choices=SIDES)
    parser.add_argument("--keep", type=Path, default=KEEP, help=f"finished runs; default {KEEP}")
    parser.add_argument("--output", type=Path, help="also write the table here")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    if given.steps < 1:
        sys.exit(f"error: --steps is {given.steps}; it must be at least 1")
    cv2.setNumThreads(0)  # as both sides' own launchers do
    keep_freed_memory()  # the package does so when it trains: here for both
    try:
        seeds = [int(seed) for seed in given.seeds.split(",")]
        setting = Setting(str(given.data), str(given.weights), given.steps, given.crop, given.precision)
        text = report(setting, finish(setting, seeds, [given.only] if given.only else list(SIDES), given.keep))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(text)
    if given.output:
        given.output.write_text(f"# Beside mmsegmentation\n\n{text}\n")


if __name__ == "__main__":
    main()
