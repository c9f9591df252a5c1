"""How large, how fast and how hungry is every backbone, alone, beside the same one of other packages?

    python benchmarks/backbones.py                              513 x 513, output strides 16 and 8
    python benchmarks/backbones.py --small --only xception41    does it run?
    python benchmarks/backbones.py --output benchmarks/results/NAME.md

Nets are asked for the feature maps that a DeepLab head takes. Each is a process of its own; those of one backbone take
turns, so that a machine that slows down does so for all, and ratios are taken within a round. Each is measured in both
memory layouts, and its better one counts. A training step is forward, backward and SGD; no data loading. GFLOP are of
one image's forward pass, 2 per multiply-add. Peak memory is that of a training step, weights and momentum included.
"""

import argparse
import copy
import importlib.metadata
import multiprocessing
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deeplab_recipes.model.backbones import BACKBONES, XCEPTIONS, build_backbone
from deeplab_recipes.record import hardware
from deeplab_recipes.trainer import keep_freed_memory

LAYOUTS = {"channels last": torch.channels_last, "NCHW": torch.contiguous_format}
EQUAL_WORK = 0.03  # nets whose FLOPs differ by less do equal work
INSTALL = {
    "mmsegmentation": "onedl-mmsegmentation onedl-mmcv onedl-mmengine ftfy regex",
    "segmentation_models_pytorch": "segmentation-models-pytorch",
}
VERSIONS = ("torch", "torchvision", "onedl-mmsegmentation", "segmentation-models-pytorch", "timm")


@dataclass(frozen=True)
class Size:
    """What every net is given."""

    crop: int
    batch: int
    device: str
    threads: int
    steps: int  # of a turn


@dataclass(frozen=True)
class Contestant:
    """A row."""

    backbone: str
    output_stride: int
    owner: str
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """What the row is called."""
        return ", ".join([self.owner, *(f"{key}={value}" for key, value in self.options)])


# The nets: feature maps from images, in a tuple or list


def ours(row: Contestant) -> nn.Module:
    return build_backbone(row.backbone, output_stride=row.output_stride, **dict(row.options))


def torchvision(row: Contestant) -> nn.Module:
    from torchvision.models import get_model
    from torchvision.models._utils import IntermediateLayerGetter

    dilated = [False, row.output_stride == 8, True]
    network = get_model(row.backbone, weights=None, replace_stride_with_dilation=dilated)
    return Listed(IntermediateLayerGetter(network, {"layer1": "low", "layer3": "middle", "layer4": "high"}))


class Listed(nn.Module):
    """A net that gives a mapping, as one that gives a list."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps."""
        return list(self.network(images).values())


def segmentation_models_pytorch(row: Contestant) -> nn.Module:
    from segmentation_models_pytorch.encoders import get_encoder

    name = f"tu-{row.backbone}" if row.backbone in XCEPTIONS else row.backbone  # timm's
    return get_encoder(name, weights=None, output_stride=row.output_stride)


def mmsegmentation(row: Contestant) -> nn.Module:
    import mmseg.models.backbones as nets

    eight = row.output_stride == 8
    if row.backbone == "mobilenet_v2":
        strides = (1, 2, 2, 1 if eight else 2, 1, 1, 1)
        dilations = (1, 1, 1, 2, 2, 4, 4) if eight else (1, 1, 1, 1, 1, 2, 2)
        return nets.MobileNetV2(strides=strides, dilations=dilations, out_indices=(1, 4, 6))
    depth, _, stem = row.backbone.removeprefix("resnet").partition("_")
    strides, dilations = ((1, 2, 1, 1), (1, 1, 2, 4)) if eight else ((1, 2, 2, 1), (1, 1, 1, 2))
    build = nets.ResNetV1c if stem else nets.ResNet
    return build(depth=int(depth), strides=strides, dilations=dilations, contract_dilation=True)


RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
# Whose nets there are, and which of the backbones each has at output strides 16 and 8.
OWNERS: dict[str, tuple[Callable[[Contestant], nn.Module], tuple[str, ...]]] = {
    "ours": (ours, tuple(BACKBONES)),
    "torchvision": (torchvision, ("resnet50", "resnet101")),
    "segmentation_models_pytorch": (segmentation_models_pytorch, (*RESNETS, "mobilenet_v2", *XCEPTIONS)),
    "mmsegmentation": (mmsegmentation, (*RESNETS, "resnet50_v1c", "resnet101_v1c", "mobilenet_v2")),
}


def groups(backbones: list[str], strides: list[int]) -> Iterator[list[Contestant]]:
    """Yield the rows that are compared with each other, ours first."""
    for backbone in backbones:
        for stride in strides:
            rows = [Contestant(backbone, stride, owner) for owner, (_, has) in OWNERS.items() if backbone in has]
            if backbone == "mobilenet_v2":
                rows.insert(1, Contestant(backbone, stride, "ours", (("padding", "same"),)))
            yield rows


# One process for each net


def serve(connection: Connection, row: Contestant, size: Size) -> None:
    """Build a net, say how large it is, and run the turns that come through the connection."""
    try:
        warnings.simplefilter("ignore")
        torch.set_num_threads(size.threads)
        torch.manual_seed(0)
        if size.device == "cpu":
            keep_freed_memory()
        network = OWNERS[row.owner][0](row)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        connection.send({"parameters": parameters, "flops": flops(network, size.crop)})
        turns = Turns(network.to(size.device), size)
        while True:
            connection.send(turns.take(*connection.recv()))
    except (EOFError, ConnectionError):
        return  # the main process has seen enough
    except Exception as error:  # whatever keeps a peer from running belongs into its row
        with suppress(ConnectionError):
            connection.send({"error": reason(error, row)})


def reason(error: Exception, row: Contestant) -> str:
    """Return what a row says in place of numbers."""
    if isinstance(error, ImportError) and row.owner in INSTALL:
        return f"not installed: pip install {INSTALL[row.owner]}"
    return f"not run: {' '.join(str(error).split())[:120]}"


def flops(network: nn.Module, crop: int) -> int:
    """Count floating-point operations of one image's forward pass."""
    network = copy.deepcopy(network).to("meta")
    network.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, crop, crop, device="meta"))
    return counter.get_total_flops()


def resident(what: str) -> int:
    """Return this process's resident memory (VmRSS) or its peak (VmHWM), in bytes; 0 elsewhere than on Linux."""
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(what)), 0)
    return 0


class Turns:
    """Timed passes of one net."""

    def __init__(self, network: nn.Module, size: Size) -> None:
        self.network, self.size = network, size
        self.optimizer = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=0.9)
        self.images = torch.randn(size.batch, 3, size.crop, size.crop, device=size.device)
        self.gpu = size.device == "cuda"
        self.before = resident("VmRSS") - sum(4 * parameter.numel() for parameter in network.parameters())

    def take(self, work: str, layout: str) -> dict[str, float]:
        """Return seconds of a pass and the peak memory in bytes; the first pass finds cold caches and is not timed."""
        layout = LAYOUTS[layout]
        self.network.to(memory_format=layout).train(work == "train")
        images, one = self.images.contiguous(memory_format=layout), getattr(self, f"_{work}")
        self._clear()
        one(images)
        self._synchronise()
        began = time.perf_counter()
        for _ in range(self.size.steps):
            one(images)
        self._synchronise()
        seconds = (time.perf_counter() - began) / self.size.steps
        return {"seconds": seconds, "memory": self._peak()}

    def _inference(self, images: Tensor) -> None:
        with torch.inference_mode(), self._autocast():
            self.network(images)

    def _train(self, images: Tensor) -> None:
        with self._autocast():
            features = self.network(images)
            loss = features[-1].float().square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.size.device, dtype=torch.float16 if self.gpu else torch.bfloat16, enabled=self.gpu)

    def _synchronise(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()

    def _clear(self) -> None:
        if self.gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            with suppress(OSError):  # Linux: the peak starts again at what there is now
                Path("/proc/self/clear_refs").write_text("5")

    def _peak(self) -> float:
        if self.gpu:
            peak = torch.cuda.max_memory_allocated()
            torch.cuda.empty_cache()  # the others need it
            return peak
        return resident("VmHWM") - self.before


@dataclass
class Worker:
    """A net's process, as the main one sees it."""

    row: Contestant
    connection: Connection
    process: multiprocessing.Process
    parameters: int = 0
    flops: int = 0
    error: str = ""
    seconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    peak: dict[str, float] = field(default_factory=dict)

    def receive(self) -> dict[str, Any]:
        """Return what the process says; if that is an error, keep it."""
        try:
            answer = self.connection.recv()
        except EOFError:
            answer = {"error": "not run: its process died"}
        self.error = self.error or answer.get("error", "")
        return answer

    def turn(self, work: str, layout: str, *, warm: bool) -> None:
        """Let it run, and keep the time unless it only warms up."""
        if self.error:
            return
        self.connection.send((work, layout))
        answer = self.receive()
        if "seconds" in answer and not warm:
            self.seconds.setdefault((work, layout), []).append(answer["seconds"])
            if work == "train":
                self.peak[layout] = max(answer["memory"], self.peak.get(layout, 0))

    def best(self, work: str) -> str:
        """Return its faster layout."""
        return min(LAYOUTS, key=lambda layout: statistics.median(self.seconds[work, layout]))

    def end(self) -> None:
        """End it: it sees the closed connection."""
        self.connection.close()
        self.process.join(20)
        self.process.kill()


def start(row: Contestant, size: Size) -> Worker:
    # The server imports once for all; but a fork of a process that may have asked CUDA something cannot use it.
    context = multiprocessing.get_context("spawn" if size.device == "cuda" else "forkserver")
    context.set_forkserver_preload(["__main__"])
    connection, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, row, size), daemon=True)
    process.start()
    theirs.close()
    worker = Worker(row, connection, process)
    answer = worker.receive()
    worker.parameters, worker.flops = answer.get("parameters", 0), answer.get("flops", 0)
    return worker


def measure(rows: list[Contestant], size: Size, rounds: int) -> list[Worker]:
    """Let the rows of a group take turns; return them with their times."""
    workers = []
    try:
        workers = [start(row, size) for row in rows]
        for number in range(rounds + 1):
            for work in ("inference", "train"):
                for layout in LAYOUTS:
                    for worker in workers:
                        worker.turn(work, layout, warm=number == 0)
    finally:
        for worker in workers:
            worker.end()
    return workers


# The table

HEADER = [
    "| backbone | output stride | net | parameters | GFLOP | inference, images/s | ours is faster by | "
    "training, images/s | ours is faster by | peak memory |",
    "|---|---|---|---|---|---|---|---|---|---|",
]


def heading(size: Size, rounds: int) -> str:
    versions = f"python {platform.python_version()}"
    for name in VERSIONS:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions += f", {name} {importlib.metadata.version(name)}"
    precision = "fp16 autocast" if size.device == "cuda" else f"float32, {size.threads} threads"
    return (
        f"{date.today()}, {hardware(1, gpu=size.device == 'cuda')}, {versions}\n\n"
        f"{size.crop} x {size.crop}, batch {size.batch}, {precision}, {rounds} rounds of {size.steps} passes"
    )


def line(worker: Worker, first: Worker, size: Size) -> str:
    """Return a row of the table; ratios are those of the rows' better layouts, in the median round."""
    row = worker.row
    begin = f"| {row.backbone} | {row.output_stride} | {row.name} |"
    if worker.error:
        return f"{begin} {worker.error} | - | - | - | - | - | - |"
    equal = worker is not first and abs(worker.flops / first.flops - 1) < EQUAL_WORK
    cells = [f"{worker.parameters / 1e6:.2f} M", f"{worker.flops / 1e9:.2f}{' (equal work)' if equal else ''}"]
    for work in ("inference", "train"):
        seconds = worker.seconds[work, worker.best(work)]
        cells.append(f"{size.batch / statistics.median(seconds):.4g} ({worker.best(work)})")
        cells.append("-" if worker is first else faster(first.seconds[work, first.best(work)], seconds))
    memory = worker.peak[worker.best("train")]
    return " | ".join([begin[:-2], *cells, f"{memory / 1e9:.2f} GB" if memory > 0 else "-"]) + " |"


def faster(mine: list[float], theirs: list[float]) -> str:
    return f"{statistics.median(b / a for a, b in zip(mine, theirs, strict=True)):.2f}"


def arguments() -> argparse.Namespace:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if gpu else "cpu")
    parser.add_argument("--small", action="store_true", help="65 x 65, one round of one pass")
    parser.add_argument("--crop", type=int, default=513)
    parser.add_argument("--batch", type=int, default=8 if gpu else 2)
    parser.add_argument("--output-stride", type=int, nargs="*", default=[16, 8], choices=(8, 16, 32))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10 if gpu else 1, help="of a turn")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="*", default=list(BACKBONES), choices=list(BACKBONES), metavar="BACKBONE")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    os.environ.update(OMP_NUM_THREADS=str(given.threads), PYTHONWARNINGS="ignore")  # of the processes
    crop, rounds, steps = (65, 1, 1) if given.small else (given.crop, given.rounds, given.steps)
    size = Size(crop, given.batch, given.device, given.threads, steps)
    lines = [heading(size, rounds), "", *HEADER]
    print("\n".join(lines), flush=True)
    for rows in groups(given.only, given.output_stride):
        workers = measure(rows, size, rounds)
        lines += [line(worker, workers[0], size) for worker in workers]
        print("\n".join(lines[-len(workers) :]), flush=True)
    if given.output:
        given.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
