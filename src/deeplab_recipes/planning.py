"""What a run will do, worked out before it starts: batches per device, steps, memory, hours, deviations."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deeplab_recipes.model import DeepLab
from deeplab_recipes.model.freezing import keeps_statistics
from deeplab_recipes.trainer import TrainerSettings

# On a CPU a step is timed at this size and scaled by its operations: the real one can take minutes.
PROBE_SIZE = 129


@dataclass(frozen=True)
class BatchSplit:
    """How a global batch is spread.

    Attributes:
        batch_size: global batch.
        world_size: devices.
        per_device: images of a step on each device.
        microbatch: images of one forward and backward pass.
        accumulation: passes per optimizer step.
        bn_batch: images whose statistics a batch norm layer sees together; 0 where it is frozen.
    """

    batch_size: int
    world_size: int
    per_device: int
    microbatch: int
    accumulation: int
    bn_batch: int


def split_batch(
    batch_size: int,
    world_size: int,
    *,
    microbatch_size: int | None = None,
    sync_batchnorm: bool = False,
    frozen_batchnorm: bool = False,
) -> BatchSplit:
    """Divide a global batch over devices and microbatches.

    Raises:
        ValueError: for a division with a remainder (names the nearest sizes that divide), or one image per
            batch norm.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    if batch_size % world_size:
        low = batch_size - batch_size % world_size
        near = f"{low} or {low + world_size}" if low else str(world_size)
        raise ValueError(f"batch_size={batch_size} does not divide over {world_size} devices; nearest are {near}")
    if microbatch_size is not None and microbatch_size < 1:
        raise ValueError(f"microbatch_size is {microbatch_size}; it must be at least 1, or null")
    per_device = batch_size // world_size
    microbatch = per_device if microbatch_size is None else microbatch_size
    if microbatch > per_device or per_device % microbatch:
        divisors = [n for n in range(1, per_device + 1) if per_device % n == 0]
        near = sorted(divisors, key=lambda n: abs(n - microbatch))[:2]
        raise ValueError(
            f"microbatch_size={microbatch} does not divide the {per_device} images of each device "
            f"(batch_size={batch_size} over {world_size} devices); "
            f"nearest are {' and '.join(map(str, sorted(near)))}"
        )
    bn_batch = 0 if frozen_batchnorm else microbatch * (world_size if sync_batchnorm else 1)
    if bn_batch == 1:
        raise ValueError(
            "each batch norm would see a single image, which cannot be normalised behind the head's image "
            f"pooling: batch_size={batch_size} over {world_size} devices in microbatches of {microbatch}. "
            "Use a batch of at least 2 images per device, or trainer.sync_batchnorm=true on several GPUs"
        )
    return BatchSplit(batch_size, world_size, per_device, microbatch, per_device // microbatch, bn_batch)


def split_for(
    batch_size: int, trainer: TrainerSettings, model: Mapping[str, Any], *, microbatch_size: int | None = None
) -> BatchSplit:
    """Divide a run's batch; errors as `split_batch`.

    Args:
        batch_size: global batch.
        trainer: says how many devices there are, and what batch norm sees.
        model: the arguments of the model.
        microbatch_size: images per pass, or None.
    """
    return split_batch(
        batch_size,
        trainer.world_size(),
        microbatch_size=microbatch_size,
        sync_batchnorm=trainer.sync_batchnorm and trainer.on_gpu(),
        frozen_batchnorm=keeps_statistics(model.get("freeze_batchnorm", "none")),
    )


def forward_flops(model: nn.Module, height: int, width: int) -> int:
    """Count floating-point operations (2 per multiply-add) of one image's forward pass."""
    meta = _on_meta(model)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        meta.eval()(torch.empty(1, 3, height, width, device="meta"))
    return counter.get_total_flops()


def saved_bytes(model: nn.Module, height: int, width: int) -> int:
    """Return the bytes of one image's activations that the backward pass needs, in float32."""
    meta = _on_meta(model).train()
    seen: dict[int, int] = {}
    parameters = {p.untyped_storage()._cdata for p in meta.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            seen[storage._cdata] = tensor.numel() * tensor.element_size()
        kept.append(storage)  # a freed storage's address could come back as another's
        return tensor

    kept: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        _all_logits(meta, torch.empty(2, 3, height, width, device="meta"))
    return sum(seen.values()) // 2


def estimate_memory(model: nn.Module, *, images: int, crop: tuple[int, int], mixed: bool) -> int:
    """Estimate the bytes that training holds on a device: weights, gradients, momentum and activations.

    Workspace of the convolution library and fragmentation are not in it.
    """
    weights = sum(p.numel() for p in model.parameters()) * 4
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad) * 4
    activations = saved_bytes(model, *crop) * images
    return weights + 2 * learning + (activations // 2 if mixed else activations)


def seconds_per_image(
    model: nn.Module, *, crop: tuple[int, int], images: int, autocast: torch.dtype | None, gpu: bool = False
) -> float:
    """Time a forward and backward pass of a copy of the model on this machine.

    On a GPU the real microbatch is timed (at least two images, for batch norm); on a CPU two small images,
    scaled by the number of operations.
    """
    device = torch.device("cuda" if gpu else "cpu")
    size = crop if gpu else (min(crop[0], PROBE_SIZE), min(crop[1], PROBE_SIZE))
    count = max(images, 2) if gpu else 2
    model = copy.deepcopy(model).to(device).train()
    batch = torch.randn(count, 3, *size, device=device)

    def step() -> None:
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            loss = sum(logits.float().square().mean() for logits in _all_logits(model, batch))
        loss.backward()
        model.zero_grad(set_to_none=True)
        if gpu:
            torch.cuda.synchronize()

    scale = forward_flops(model, *crop) / forward_flops(model, *size)
    return min(_timed(step) for _ in range(4 if gpu else 2)) / count * scale


def _all_logits(model: DeepLab, images: Tensor) -> tuple[Tensor, ...]:
    """Return what training computes: an auxiliary head's logits too."""
    if getattr(model, "auxiliary_head", None) is None:
        return (model(images),)
    return model.forward_with_auxiliary(images)


def _timed(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _on_meta(model: nn.Module) -> nn.Module:
    with torch.device("meta"):
        return copy.deepcopy(model).to("meta")


@dataclass(frozen=True)
class Published:
    """What a recipe reproduces.

    Args:
        source: who published it, and where.
        training_images: images of the training part.
        miou, miou_std: mean IoU in 0..100 and its standard deviation over seeds.
        protocol: evaluation protocol of `miou`.
        devices, hardware, hours: what it ran on, and how long.
        bn_batch: images that a batch norm layer saw together.
        precision: as `trainer.precision`.
    """

    source: str
    training_images: int
    miou: float | None = None
    miou_std: float | None = None
    protocol: str | None = None
    devices: int | None = None
    hardware: str | None = None
    hours: float | None = None
    bn_batch: int | None = None
    precision: str | None = None

    def __str__(self) -> str:
        if self.miou is None:
            return f"no number ({self.source})"
        spread = f" +/- {self.miou_std}" if self.miou_std else ""
        cost = f" in {self.hours} h on {self.hardware}" if self.hours else ""
        return f"{self.miou}{spread} mIoU ({self.protocol}){cost}; {self.source}"


def deviations(
    overrides: Mapping[str, tuple[Any, Any]],
    published: Published | None,
    split: BatchSplit,
    precision: str,
    normalize: str,
) -> list[str]:
    """List how a run differs from the published one, in words.

    Args:
        overrides: leaves that differ from the recipe: name -> (recipe's value, this run's).
        published: what the recipe reproduces.
        split: this run's batches.
        precision: this run's, after it was fitted to the device.
        normalize: of the loss.
    """
    lines = [f"{key}: {_shown(then)} -> {_shown(now)}" for key, (then, now) in overrides.items()]
    if published is None:
        return lines
    if published.devices not in (None, split.world_size) and normalize == "device":
        lines.append(f"devices: {published.devices} -> {split.world_size} (each takes the mean loss of its own images)")
    if published.bn_batch not in (None, split.bn_batch):
        lines.append(f"images per batch norm: {published.bn_batch} -> {split.bn_batch}")
    if published.precision not in (None, precision):
        lines.append(f"precision: {published.precision} -> {precision}")
    return lines


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value)


def describe(
    *,
    name: str,
    model: DeepLab,
    backbone_weights: str | None,
    crop: tuple[int, int],
    training_images: int,
    batch_size: int,
    microbatch_size: int | None,
    trainer: TrainerSettings,
    published: Published | None,
    overrides: Mapping[str, tuple[Any, Any]],
    normalize: str,
    measure: bool,
    notes: Sequence[str] = (),
) -> str:
    """Return the plan of a training as text; arguments as in `training.Run`.

    With `measure` a step is timed on this machine for the estimate of hours. `notes` are what training would say of
    itself before it starts.

    Raises:
        ValueError: for batches that do not divide.
    """
    precision = trainer.resolved_precision()
    split = split_for(batch_size, trainer, model.arguments, microbatch_size=microbatch_size)
    per_epoch = training_images // batch_size
    if per_epoch == 0:
        raise ValueError(f"batch_size={batch_size} is larger than the training part ({training_images} samples)")
    steps = trainer.steps(per_epoch)
    rows = [
        ("training images", f"{training_images:,}"),
        ("steps", f"{steps:,} ({_epochs(steps / per_epoch)} of {per_epoch:,})"),
        ("global batch", f"{split.batch_size} = {split.world_size} x {split.per_device} images"),
        ("microbatch", f"{split.microbatch} images, accumulated {split.accumulation} x"),
        ("images per batch norm", str(split.bn_batch or "frozen")),
        ("backbone weights", backbone_weights or "none"),
        ("precision", precision),
        *_cost_rows(model, crop, split, precision),
        *(_hours_row(model, crop, split, precision, steps, gpu=trainer.on_gpu()) if measure else ()),
        ("published", str(published) if published else "nothing"),
    ]
    lines = [f"plan of {name}", *(f"  {key:<22} {value}" for key, value in rows)]
    changes = deviations(overrides, published, split, precision, normalize)
    reference = "the published setting" if published else "the recipe"
    lines.append(f"  differs from {reference} in" if changes else f"  nothing differs from {reference}")
    return "\n".join([*lines, *(f"    - {change}" for change in changes), *(f"  note: {note}" for note in notes)])


def _epochs(number: float) -> str:
    return f"{number:.4g} epoch{'' if number == 1 else 's'}"


def _cost_rows(model: DeepLab, crop: tuple[int, int], split: BatchSplit, precision: str) -> list[tuple[str, str]]:
    memory = estimate_memory(model, images=split.microbatch, crop=crop, mixed=precision.endswith("mixed"))
    flops = forward_flops(model, *crop)
    return [
        ("crop", f"{crop[0]} x {crop[1]}, {flops / 1e9:,.0f} GFLOP forward per image"),
        ("parameters", f"{sum(p.numel() for p in model.parameters()):,}"),
        ("memory per device", f"about {memory / 1e9:.1f} GB (weights, momentum, gradients, activations)"),
    ]


def _hours_row(
    model: DeepLab, crop: tuple[int, int], split: BatchSplit, precision: str, steps: int, *, gpu: bool
) -> list[tuple[str, str]]:
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    seconds = seconds_per_image(model, crop=crop, images=split.microbatch, autocast=dtype, gpu=gpu)
    hours = seconds * split.per_device * steps / 3600
    shown = f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}"
    return [("hours here", f"about {shown} ({seconds:.3g} s an image, evaluation not counted)")]
