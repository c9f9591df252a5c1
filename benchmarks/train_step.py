"""How fast is a training step, and how much memory does it take? Ours against the same net and other nets elsewhere.

    python benchmarks/train_step.py                             toy size on a CPU, full size on a GPU
    python benchmarks/train_step.py --check-losses              does our fast step learn what a plain float32 one does?
    python benchmarks/train_step.py --backbone resnet18 --crop 96 --only ours same --output benchmarks/results/NAME.md

A step is forward, loss, backward and optimizer (SGD with momentum and weight decay), on one batch that lies on the
device; no data loading. Ours is `SegmentationModule` under the trainer that a recipe gets. Every contestant is a
process of its own; they take turns, so that a machine that slows down does so for all, and ratios are taken within a
round. FLOPs are those of one image's forward pass (2 per multiply-add); a step is counted as three of them.
"""

import argparse
import importlib.metadata
import itertools
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplab_recipes import SegmentationModule, build_deeplab
from deeplab_recipes.losses import SegmentationLoss
from deeplab_recipes.methods import ChannelsLast
from deeplab_recipes.optimization import DecoupledSGDW, constant
from deeplab_recipes.planning import forward_flops
from deeplab_recipes.record import hardware
from deeplab_recipes.reporting import Reporter
from deeplab_recipes.trainer import TrainerSettings, keep_freed_memory
from deeplab_recipes.training import quiet

IGNORE, FOREVER = 255, 10**6
SGD = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}
EQUAL_WORK = 0.03  # nets whose FLOPs differ by less do equal work
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LIGHTNING = {"float32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
INSTALL = {
    "mmseg": "onedl-mmsegmentation onedl-mmcv onedl-mmengine ftfy regex",
    "segmentation_models_pytorch": "segmentation-models-pytorch",
}
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Size:
    """What every contestant is given."""

    backbone: str
    crop: int
    batch: int
    output_stride: int
    classes: int
    threads: int
    device: str
    steps: int  # of a turn


@dataclass(frozen=True)
class Contestant:
    """A row: whose net and loop, and how they are set up."""

    name: str
    peer: str
    precision: str = "float32"
    channels_last: bool = False
    fused: bool = False
    decoupled: bool = False
    compiled: bool = False
    cudnn_benchmark: bool = False
    keep_memory: bool = False  # glibc keeps freed memory, as in our training on a CPU
    variation: bool = False  # of ours


def contestants(device: str, *, compiled: bool) -> list[Contestant]:
    gpu = device == "cuda"
    auto = {v: k for k, v in LIGHTNING.items()}[_trainer_settings(device).resolved_precision()]
    ours = Contestant("ours", "ours", auto, channels_last=True, keep_memory=not gpu)
    amp, best = "fp16" if gpu else auto, {"precision": auto, "channels_last": True, "cudnn_benchmark": gpu}
    rows = [
        ours,
        Contestant("same net, plain loop, as Composer sets it up", "same", amp),
        Contestant("same net, plain loop, best", "same", **best),
        Contestant("mmsegmentation EncoderDecoder", "mmseg"),
        Contestant("mmsegmentation EncoderDecoder, best", "mmseg", **best),
        Contestant("segmentation_models_pytorch DeepLabV3Plus", "smp"),
        Contestant("segmentation_models_pytorch DeepLabV3Plus, best", "smp", **best),
        Contestant("torchvision deeplabv3 (another net: no decoder)", "torchvision"),
        Contestant("torchvision deeplabv3, best", "torchvision", **best),
        replace(ours, name="a plain loop with our settings, freed memory kept", peer="same", variation=True),
        replace(ours, name="ours, fused SGD", fused=True, variation=True),
        replace(ours, name="ours, DecoupledSGDW", decoupled=True, variation=True),
    ]
    if gpu:
        rows.append(replace(ours, name="ours, cudnn.benchmark", cudnn_benchmark=True, variation=True))
    else:
        rows.append(replace(ours, name="ours, freed memory not kept", keep_memory=False, variation=True))
    if compiled:
        rows.append(replace(ours, name="ours, torch.compile", compiled=True, variation=True))
    return [*rows, Contestant("matrix product", "matmul", "bf16")]


# The nets, each with its own loss


def same(size: Size) -> tuple[nn.Module, Loss]:
    """Our net, but for logits that are resized in the precision that they come in, and torch's mean."""
    model = our_model(size)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        logits = model.head(model.backbone(images))
        logits = F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)
        return F.cross_entropy(logits, labels, ignore_index=IGNORE)

    return model, loss


def our_model(size: Size, **options: Any) -> nn.Module:
    return build_deeplab(size.classes, backbone=size.backbone, output_stride=size.output_stride, **options)


def mmseg(size: Size) -> tuple[nn.Module, Loss]:
    """mmsegmentation's segmentor with the blocks of our net; its loss counts right pixels too."""
    from mmengine.structures import PixelData
    from mmseg.models.segmentors import EncoderDecoder
    from mmseg.structures import SegDataSample

    model = EncoderDecoder(**_mmseg_settings(size), train_cfg={}, test_cfg={"mode": "whole"})

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        samples = [SegDataSample(gt_sem_seg=PixelData(data=label[None])) for label in labels]
        return sum(value for name, value in model.loss(images, samples).items() if "loss" in name)

    return model, loss


def _mmseg_settings(size: Size) -> dict[str, Any]:
    eight, depth = size.output_stride == 8, int(size.backbone.removeprefix("resnet"))
    norm, last = {"type": "BN"}, 512 if depth < 50 else 2048
    backbone = {"type": "ResNet", "depth": depth, "norm_cfg": norm, "contract_dilation": True}
    backbone["strides"], backbone["dilations"] = ((1, 2, 1, 1), (1, 1, 2, 4)) if eight else ((1, 2, 2, 1), (1, 1, 1, 2))
    head = {
        "type": "DepthwiseSeparableASPPHead", "in_channels": last, "in_index": 3, "channels": 512,
        "dilations": (1, 12, 24, 36) if eight else (1, 6, 12, 18), "c1_in_channels": last // 8, "c1_channels": 48,
        "dropout_ratio": 0.1, "num_classes": size.classes, "norm_cfg": norm, "align_corners": False,
        "loss_decode": {"type": "CrossEntropyLoss"},
    }  # fmt: skip
    return {"backbone": backbone, "decode_head": head}


def smp(size: Size) -> tuple[nn.Module, Loss]:
    from segmentation_models_pytorch import DeepLabV3Plus

    options = {"encoder_weights": None, "encoder_output_stride": size.output_stride, "classes": size.classes}
    model = DeepLabV3Plus(size.backbone, **options)
    return model, lambda images, labels: F.cross_entropy(model(images), labels, ignore_index=IGNORE)


def torchvision(size: Size) -> tuple[nn.Module, Loss]:
    from torchvision.models import segmentation

    name = f"deeplabv3_{size.backbone}"
    if not hasattr(segmentation, name) or size.output_stride != 8:
        raise ValueError("torchvision has deeplabv3 with resnet50 and resnet101 at output stride 8 only")
    options = {"weights": None, "weights_backbone": None, "aux_loss": None, "num_classes": size.classes}
    model = getattr(segmentation, name)(**options)
    return model, lambda images, labels: F.cross_entropy(model(images)["out"], labels, ignore_index=IGNORE)


PEERS: dict[str, Callable[[Size], tuple[nn.Module, Loss]]] = {
    "same": same,
    "mmseg": mmseg,
    "smp": smp,
    "torchvision": torchvision,
}
MODULES = {"mmseg": ("mmseg.models.segmentors",), "smp": ("segmentation_models_pytorch",)}


# The loops: each calls `tick` before every step


def run_plain(contestant: Contestant, size: Size, batch: dict[str, Tensor], start: Callable, tick: Callable) -> None:
    """The loop that anybody would write."""
    model, loss = PEERS[contestant.peer](size)
    start(model)
    layout = torch.channels_last if contestant.channels_last else torch.contiguous_format
    model.to(size.device, memory_format=layout).train()
    optimizer = _sgd(contestant)(model.parameters())
    images, labels = batch["image"].contiguous(memory_format=layout), batch["label"].long()
    step = partial(plain_step, loss, optimizer, _scaler(contestant, size), _autocast(contestant, size))
    for _ in itertools.count():
        tick()
        step(images, labels)


def plain_step(
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    autocast: Callable[[], AbstractContextManager],
    images: Tensor,
    labels: Tensor,
) -> Tensor:
    optimizer.zero_grad()
    with autocast():
        value = loss(images, labels)
    scaler.scale(value).backward()
    scaler.step(optimizer)
    scaler.update()
    return value.detach()


def _scaler(contestant: Contestant, size: Size) -> torch.amp.GradScaler:
    return torch.amp.GradScaler(size.device, enabled=contestant.precision == "fp16")


def _autocast(contestant: Contestant, size: Size) -> Callable[[], AbstractContextManager]:
    dtype = DTYPES[contestant.precision]
    return lambda: torch.autocast(size.device, dtype=dtype, enabled=dtype != torch.float32)


def _sgd(contestant: Contestant) -> Callable[..., torch.optim.Optimizer]:
    if contestant.decoupled:
        return partial(DecoupledSGDW, **SGD)
    return partial(torch.optim.SGD, **SGD, fused=True if contestant.fused else None)


def run_ours(contestant: Contestant, size: Size, batch: dict[str, Tensor], start: Callable, tick: Callable) -> None:
    """A recipe's module, trainer and reports."""
    model = our_model(size)
    start(model)
    if contestant.compiled:
        model.compile()
    images = batch["image"].contiguous(memory_format=torch.channels_last)
    fit_ours(contestant, size, model, [{**batch, "image": images}], FOREVER, BeforeSteps(tick))


def fit_ours(
    contestant: Contestant, size: Size, model: nn.Module, batches: list, steps: int, callback: pl.Callback
) -> None:
    module = SegmentationModule(
        model,
        loss=SegmentationLoss(),
        optimizer=_sgd(contestant),
        schedule=constant,
        num_classes=size.classes,
        total_steps=steps,
    )
    settings = _trainer_settings(size.device, precision=LIGHTNING[contestant.precision], max_steps=steps)
    with tempfile.TemporaryDirectory() as folder, quiet():
        reporter = Reporter(Path(folder) / "metrics.csv", batch_size=size.batch, progress=False)
        callbacks = [reporter, callback, ChannelsLast()]
        trainer = settings.build(callbacks=callbacks, loggers=[], steps_per_epoch=steps, run_dir=Path(folder))
        trainer.fit(module, Repeated(batches, steps))


def _trainer_settings(device: str, **options: Any) -> TrainerSettings:
    accelerator = "gpu" if device == "cuda" else "cpu"
    return TrainerSettings(**{"max_steps": 1, **options}, accelerator=accelerator, devices=1, progress=False)


class BeforeSteps(pl.Callback):
    """Calls a function before each step."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self.tick = tick

    def on_train_batch_start(self, *_: Any) -> None:
        """Call it."""
        self.tick()


class Repeated:
    """Batches over and over, as a loader."""

    def __init__(self, batches: list, steps: int) -> None:
        self.batches, self.steps = batches, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return itertools.islice(itertools.cycle(self.batches), self.steps)


def run_matmul(contestant: Contestant, size: Size, batch: dict, start: Callable, tick: Callable) -> None:
    """One large product: what the device reaches at best."""
    n = matrix_size(size)
    left, right = (torch.randn(n, n, device=size.device, dtype=torch.bfloat16) for _ in range(2))
    start(None)
    for _ in itertools.count():
        tick()
        torch.mm(left, right)


def matrix_size(size: Size) -> int:
    return 8192 if size.device == "cuda" else 2048


# One process for each contestant


def serve(connection: Connection, contestant: Contestant, size: Size) -> None:
    """Build a contestant and run its steps in the turns that come through the connection."""
    try:
        warnings.simplefilter("ignore")
        for name in MODULES.get(contestant.peer, ()):
            importlib.import_module(name)
        _set_up(contestant, size)
        turns = Turns(connection, size)
        run = {"ours": run_ours, "matmul": run_matmul}.get(contestant.peer, run_plain)
        run(contestant, size, make_batch(size), turns.start, turns.tick)
    except (EOFError, ConnectionError):
        return  # the main process has seen enough
    except Exception as error:  # whatever keeps a peer from running belongs into its row
        with suppress(ConnectionError):
            connection.send({"error": _reason(error), "memory": isinstance(error, torch.OutOfMemoryError)})


def _set_up(contestant: Contestant, size: Size) -> None:
    torch.set_num_threads(size.threads)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = contestant.cudnn_benchmark
    if contestant.keep_memory:
        keep_freed_memory()


def _reason(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name in INSTALL:
        return f"not installed: pip install {INSTALL[error.name]}"
    return f"not run: {' '.join(str(error).split())[:160]}"


def make_batch(size: Size, *, seed: int = 0) -> dict[str, Tensor]:
    """Images of coloured blocks with noise, a class each, and labels as a data module gives them."""
    generator = torch.Generator().manual_seed(seed)
    cells = -(-size.crop // 16)
    labels = torch.randint(0, size.classes, (size.batch, cells, cells), generator=generator)
    colours = torch.randn(size.classes, 3, generator=torch.Generator().manual_seed(0))
    labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, : size.crop, : size.crop]
    images = colours[labels].permute(0, 3, 1, 2)
    images = images + 0.3 * torch.randn(images.shape, generator=generator)
    labels[:, : size.crop // 16] = IGNORE
    images = images.to(size.device, memory_format=torch.contiguous_format)
    return {"image": images, "label": labels.to(size.device, torch.uint8)}


class Turns:
    """The clock of a contestant's process: waits for its turn before a step, and reports how long it took."""

    def __init__(self, connection: Connection, size: Size) -> None:
        self.connection, self.size = connection, size
        self.left, self.began, self.before = 0, 0.0, 0

    def start(self, model: nn.Module | None) -> None:
        """Report that the contestant is ready, and the size of its net."""
        flops = 2 * matrix_size(self.size) ** 3 if model is None else forward_flops(model, *2 * (self.size.crop,))
        self.before = _resident("VmRSS") - (sum(4 * p.numel() for p in model.parameters()) if model else 0)
        self.connection.send({"flops": flops})

    def tick(self) -> None:
        """Be called before each step."""
        if self.left == 0:
            if self.began:
                self._report()
            self.left = self.connection.recv() + 1  # the first step of a turn finds cold caches and is not timed
            self.began = 0.0
        elif not self.began:
            self._synchronise()
            self.began = time.perf_counter()
        self.left -= 1

    def _report(self) -> None:
        self._synchronise()
        seconds = (time.perf_counter() - self.began) / self.size.steps
        gpu = self.size.device == "cuda"
        memory = torch.cuda.max_memory_allocated() if gpu else _resident("VmHWM") - self.before
        if gpu:
            torch.cuda.empty_cache()  # the others need it
        self.connection.send({"seconds": seconds, "memory": memory})

    def _synchronise(self) -> None:
        if self.size.device == "cuda":
            torch.cuda.synchronize()


def _resident(field: str) -> int:
    """Return this process's resident memory (VmRSS) or its peak (VmHWM), in bytes; 0 elsewhere than on Linux."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


class Worker:
    """A contestant's process, as the main one sees it."""

    def __init__(self, contestant: Contestant, size: Size) -> None:
        self.contestant, self.size = contestant, size
        # The server imports once for all; but a fork of a process that may have asked CUDA something cannot use it.
        context = multiprocessing.get_context("spawn" if size.device == "cuda" else "forkserver")
        context.set_forkserver_preload(["__main__", *itertools.chain(*MODULES.values())])
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, contestant, size), daemon=True)
        self.process.start()
        theirs.close()
        self.seconds: list[float] = []
        self.peak, self.flops, self.error, self.out_of_memory = 0, 0, "", False
        self.flops = self._receive().get("flops", 0)
        self.turn()  # warm up
        self.seconds.clear()

    def turn(self) -> None:
        """Let it run its steps and report."""
        if self.error:
            return
        self.connection.send(self.size.steps)
        answer = self._receive()
        if "seconds" in answer:
            self.seconds.append(answer["seconds"])
            self.peak = answer["memory"]

    def _receive(self) -> dict[str, Any]:
        try:
            answer = self.connection.recv()
        except EOFError:
            answer = {"error": "not run: its process died", "memory": False}
        if "error" in answer:
            self.error, self.out_of_memory = answer["error"], answer["memory"]
        return answer

    def end(self) -> None:
        """End it: it sees the closed connection, and tidies up."""
        self.connection.close()
        self.process.join(20)
        self.process.kill()


def measure(rows: list[Contestant], size: Size, rounds: int, *, fit: bool = False) -> list[Worker]:
    """Let all take turns; return them with their times. With `fit`, stop where the first does not fit into memory."""
    workers = []
    try:
        for row in rows:
            workers.append(Worker(row, size))
            if fit and workers[-1].out_of_memory:
                return workers
            print(f"  {workers[-1].error or 'ready'}: {row.name}", flush=True)
        for number in range(rounds):
            print(f"  round {number + 1} of {rounds}", flush=True)
            for worker in workers:
                worker.turn()
    finally:
        for worker in workers:
            worker.end()
    return workers


def measure_fitting(rows: list[Contestant], size: Size, rounds: int) -> list[Worker]:
    """Halve the batch until everyone's step fits into the device's memory."""
    while True:
        workers = measure(rows, size, rounds, fit=size.batch > 2)
        if size.batch <= 2 or not any(w.out_of_memory for w in workers):
            return workers
        size = replace(size, batch=size.batch // 2)
        print(f"  out of memory: again with batch {size.batch}", flush=True)


# The table


def table(workers: list[Worker], size: Size, rounds: int) -> str:
    ours, matmul = workers[0], workers[-1]
    if ours.error or matmul.error:
        raise SystemExit(f"nothing to compare with: {ours.error or matmul.error}")
    rate = matmul.flops / statistics.median(matmul.seconds)
    peers = [peer_row(w, ours, rate) for w in workers[:-1] if not w.contestant.variation]
    variations = [variation_row(w, ours) for w in workers[:-1] if w.contestant.variation]
    return "\n".join(
        [
            heading(size, rounds, rate),
            "",
            "| step | layout | precision | GFLOP forward per image | images/s, median (quartiles) | "
            "ours is faster by (quartiles) | per FLOP | share of the matrix rate | peak memory |",
            "|---|---|---|---|---|---|---|---|---|",
            *peers,
            "",
            "| variation of ours | images/s, median (quartiles) | faster by (quartiles) | pays | peak memory |",
            "|---|---|---|---|---|",
            *variations,
        ]
    )


def heading(size: Size, rounds: int, rate: float) -> str:
    versions = f"python {platform.python_version()}, torch {torch.__version__}"
    versions += "".join(f", {name} {importlib.metadata.version(name)}" for name in _installed())
    return (
        f"{date.today()}, {hardware(1, gpu=size.device == 'cuda')}, {versions}\n\n"
        f"{size.backbone}, output stride {size.output_stride}, {size.crop} x {size.crop}, batch {size.batch}, "
        f"{size.classes} classes, {size.threads} threads, {rounds} rounds of {size.steps} steps; bf16 matrix product "
        f"of {matrix_size(size)}: {rate / 1e12:.3g} TFLOP/s"
    )


def _installed() -> list[str]:
    names = ("torchvision", "pytorch-lightning", "onedl-mmsegmentation", "segmentation-models-pytorch")
    return [name for name in names if _has(name)]


def _has(name: str) -> bool:
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def peer_row(worker: Worker, ours: Worker, rate: float) -> str:
    row = worker.contestant
    layout = "channels last" if row.channels_last else "NCHW"
    start = f"| {row.name} | {layout} | {row.precision} |"
    if worker.error:
        return f"{start} {worker.error} | - | - | - | - | - |"
    work = worker.flops / ours.flops
    ratios = [theirs / mine for theirs, mine in zip(worker.seconds, ours.seconds, strict=True)]
    equal = " (equal work)" if abs(work - 1) < EQUAL_WORK else ""
    share = statistics.median(3 * worker.flops * worker.size.batch / s / rate for s in worker.seconds)
    return (
        f"{start} {worker.flops / 1e9:.1f}{equal} | {images_per_second(worker)} | {spread(ratios)} | "
        f"{statistics.median(ratios) / work:.2f} | {share:.0%} | {memory(worker)} |"
    )


def variation_row(worker: Worker, ours: Worker) -> str:
    if worker.error:
        return f"| {worker.contestant.name} | {worker.error} | - | - | - |"
    ratios = [mine / theirs for theirs, mine in zip(worker.seconds, ours.seconds, strict=True)]
    pays = "yes" if quartiles(ratios)[0] > 1 else "no"  # faster in three rounds of four
    name = worker.contestant.name
    return f"| {name} | {images_per_second(worker)} | {spread(ratios)} | {pays} | {memory(worker)} |"


def images_per_second(worker: Worker) -> str:
    low, middle, high = quartiles([worker.size.batch / s for s in worker.seconds])
    digits = 3 if high < 10 else 1
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def spread(ratios: list[float]) -> str:
    low, middle, high = quartiles(ratios)
    return f"{middle:.3f} ({low:.2f} to {high:.2f})"


def quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, method="inclusive") if len(values) > 1 else values * 3


def memory(worker: Worker) -> str:
    return f"{worker.peak / 1e9:.2f} GB" if worker.peak > 0 else "-"


# Equal in result


def check_losses(size: Size, row: Contestant, steps: int = 50) -> str:
    """Compare loss curves from the same weights: a plain float32 NCHW loop, the same with autocast, and ours."""
    torch.manual_seed(0)
    model = our_model(size, dropout=0.0)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [make_batch(size, seed=seed) for seed in range(4)]
    curves = {}
    for name, precision in (("float32", "float32"), ("autocast", row.precision)):
        model.load_state_dict(start)
        curves[name] = plain_curve(replace(row, precision=precision), size, model, batches, steps)
    model.load_state_dict(start)
    curves["ours"] = our_curve(row, size, model, batches, steps)
    return verdict(curves, row)


def plain_curve(row: Contestant, size: Size, model: nn.Module, batches: list, steps: int) -> Tensor:
    model.to(size.device, memory_format=torch.contiguous_format).train()
    step = partial(
        plain_step,
        lambda images, labels: F.cross_entropy(model(images), labels, ignore_index=IGNORE),
        _sgd(row)(model.parameters()),
        _scaler(row, size),
        _autocast(row, size),
    )
    return torch.stack([step(b["image"], b["label"].long()) for b in Repeated(batches, steps)]).cpu()


def our_curve(row: Contestant, size: Size, model: nn.Module, batches: list, steps: int) -> Tensor:
    collected: list[Tensor] = []
    callback = pl.Callback()
    callback.on_train_batch_end = lambda trainer, module, outputs, *_: collected.append(outputs["loss"])
    batches = [{**b, "image": b["image"].contiguous(memory_format=torch.channels_last)} for b in batches]
    fit_ours(row, size, model, batches, steps, callback)
    return torch.stack(collected).cpu()


def verdict(curves: dict[str, Tensor], row: Contestant) -> str:
    reference = curves["float32"]
    noise, ours = (((curves[n] - reference).abs() / reference).mean().item() for n in ("autocast", "ours"))
    shown = [f"{name:<10}" + "".join(f"{v:>9.4f}" for v in curve[::7].tolist()) for name, curve in curves.items()]
    equal = ours <= max(2 * noise, 0.01)
    return "\n".join(
        [
            f"loss of every 7th of {len(reference)} steps",
            *shown,
            f"mean difference from the eager NCHW float32 loop: {noise:.2%} for the same loop in {row.precision}, "
            f"{ours:.2%} for ours: {'equal' if equal else 'NOT EQUAL'} within the noise of the precision",
        ]
    )


def arguments() -> argparse.Namespace:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if gpu else "cpu")
    parser.add_argument("--backbone", default="resnet101" if gpu else "resnet50")
    parser.add_argument("--crop", type=int, default=512 if gpu else 128)
    parser.add_argument("--batch", type=int, help="default: 2; on a GPU the largest power of two up to 16 that fits")
    parser.add_argument("--output-stride", type=int, default=8, choices=(8, 16))
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10 if gpu else 2, help="of a turn")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--compile", action="store_true", default=gpu, help="a row with torch.compile (GPU: always)")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="rows of ours, same, mmseg, ...")
    parser.add_argument("--check-losses", action="store_true")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    # Read when the contestants' processes start.
    os.environ.update(OMP_NUM_THREADS=str(given.threads), PYTHONWARNINGS="ignore")
    torch.set_num_threads(given.threads)
    batch = given.batch or (16 if given.device == "cuda" else 2)
    sizes = (given.backbone, given.crop, batch, given.output_stride, given.classes, given.threads)
    size = Size(*sizes, given.device, given.steps)
    rows = contestants(given.device, compiled=given.compile)
    if given.check_losses:
        text = check_losses(size, rows[0])
    else:
        chosen = [row for row in rows if not given.only or row.peer in ("ours", "matmul", *given.only)]
        run = measure if given.batch else measure_fitting
        workers = run(chosen, size, given.rounds)
        size = workers[0].size
        text = table(workers, size, given.rounds)
    print(text)
    if given.output:
        given.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
