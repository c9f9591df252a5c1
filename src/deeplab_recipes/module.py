"""The LightningModule: one training step, one evaluation step, optimizer and schedule."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import interpolate
from torch.optim.lr_scheduler import LambdaLR

from deeplab_recipes.losses import SegmentationLoss
from deeplab_recipes.metrics import MeanIoU
from deeplab_recipes.optimization import ParameterRules
from deeplab_recipes.optimization.schedules import Schedule, by_step

Batch = dict[str, Tensor]
ScheduleEnds = Literal["after_last_step", "at_last_step"]


class SegmentationModule(pl.LightningModule):
    """Trains any module that maps normalised images (B, 3, H, W) to logits (B, C, H, W).

    A training batch is this device's whole share of the global batch, and one `training_step` is one
    optimizer step: the share is split into microbatches here, so the loss is the share's own mean whatever
    the split, and the schedule advances once per step. (That is why optimization is manual.)

    Args:
        model: the network.
        loss: called with logits, labels, `count` and `group_sum`; see `SegmentationLoss`.
        optimizer: called with parameter groups.
        schedule: the factor on the learning rate at tau, the fraction of all steps done, or a `StepSchedule`.
        schedule_ends: "after_last_step": tau is the step over all steps; "at_last_step": over one less, so that the
            last step is taken at tau 1, as mmengine does.
        num_classes: C.
        parameters: which of them learn faster, slower or without weight decay; None: all alike.
        microbatch_size: images of one forward and backward pass; None: the whole share.
        total_steps: optimizer steps of the whole run, which the schedule spans; None asks the trainer.
        steps_per_epoch: for a schedule that counts epochs.
        seed: of dropout, which follows from (seed, step, rank) and so is the same in a run that was resumed.
        card: what a checkpoint carries for those who use it later (class names, colours, sizes); no objects.

    Raises:
        ValueError: for a microbatch below 1; in training, for Dice or hard pixels normalised globally where that has
            no exact form.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: SegmentationLoss,
        optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        schedule: Schedule,
        num_classes: int,
        schedule_ends: ScheduleEnds = "after_last_step",
        parameters: ParameterRules | None = None,
        microbatch_size: int | None = None,
        total_steps: int | None = None,
        steps_per_epoch: int | None = None,
        seed: int = 0,
        card: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if microbatch_size is not None and microbatch_size < 1:
            raise ValueError(f"microbatch_size is {microbatch_size}; it must be at least 1")
        self.automatic_optimization = False
        self.model, self.loss = model, loss
        self.optimizer, self.schedule, self.schedule_ends = optimizer, schedule, schedule_ends
        self.parameter_rules = parameters or ParameterRules()
        self.microbatch_size, self.total_steps = microbatch_size, total_steps
        self.steps_per_epoch = steps_per_epoch
        self.seed, self.card = seed, card or {}
        self.miou = MeanIoU(num_classes, ignore_index=loss.ignore_index)
        self.evaluation: dict[str, Any] = {}
        self.corrupt = {"train": set[int](), "validation": set[int]()}

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C, H, W) for normalised images (B, 3, H, W)."""
        return self.model(images)

    def configure_optimizers(self) -> dict[str, Any]:
        """Build the optimizer and its schedule over all steps of the run."""
        optimizer = self.parameter_rules.build(self.optimizer, self.model)
        # The trainer would open the training data to count, before a resumed run's place in them is known.
        total = self.total_steps or max(int(self.trainer.estimated_stepping_batches), 1)
        ends = {"at_last_step": self.schedule_ends == "at_last_step"}
        factor = by_step(self.schedule, total=total, steps_per_epoch=self.steps_per_epoch, **ends)
        scheduler = LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Take one optimizer step on this device's share of the global batch; return the losses, detached."""
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        self._seed_step()
        count = self._count(batch["label"])
        totals: dict[str, Tensor] = {}
        parts = self._split(batch)
        for i, part in enumerate(parts):
            share = len(part["label"]) / len(batch["label"])
            with self._synchronised(last=i == len(parts) - 1):
                values = self._losses(part, count, share)
                self.manual_backward(values["loss"])
            for name, value in values.items():
                totals[name] = totals.get(name, 0) + value.detach()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        self._note_corrupt("train", batch)
        return totals

    def on_validation_epoch_start(self) -> None:
        """Begin a fresh count, with one batch norm for all: the first device's, which the checkpoint holds."""
        self.miou.reset()
        if self._world_size() > 1:
            for buffer in self.model.buffers():
                distributed.broadcast(buffer, 0)

    def validation_step(self, batch: list[Batch], batch_idx: int) -> None:
        """Count a batch of images; logits go to the size of the labels first."""
        for part in batch:
            self.miou.update(resize_logits(self(part["image"]), part["label"].shape[-2:]), part["label"])
            self._note_corrupt("validation", part)

    def on_validation_epoch_end(self) -> None:
        """Log the mean IoU over all devices, and keep it with the classes' own in `evaluation`."""
        miou = self.miou.compute()
        self.log("miou", miou.float(), logger=False, sync_dist=True)  # the same on all devices already
        self.evaluation = {
            "step": self.trainer.global_step,
            "miou": float(miou),
            "per_class": self.miou.per_class().tolist(),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the card."""
        checkpoint["deeplab"] = self.card

    def _seed_step(self) -> None:
        sequence = np.random.SeedSequence([self.seed, self.global_step, self.global_rank])
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))

    def _split(self, batch: Batch) -> list[Batch]:
        size = self.microbatch_size or len(batch["label"])
        images, labels = batch["image"].split(size), batch["label"].split(size)
        self.loss.require_exact(len(images), self._world_size())
        return [{"image": i, "label": t} for i, t in zip(images, labels, strict=True)]

    def _count(self, labels: Tensor) -> Tensor:
        """Pixels that the cross entropy is divided by: this device's, or its even share of all devices'."""
        count = self.loss.count(labels)
        if self.loss.normalize == "device" or self._world_size() == 1:
            return count
        count = count.double()
        distributed.all_reduce(count)
        # Gradients are averaged over devices afterwards, so each divides by a world_size-th of all pixels.
        return count / self._world_size()

    def _group_sum(self) -> Callable[[Tensor], Tensor] | None:
        return _DeviceSum.apply if self.loss.normalize == "global" and self._world_size() > 1 else None

    def _losses(self, part: Batch, count: Tensor, share: float) -> dict[str, Tensor]:
        """Return what a microbatch, `share` of the device's images, adds to each loss."""
        if not self.loss.auxiliary:
            return self._shares(self(part["image"]), part["label"], count, share)
        logits, auxiliary = self.model.forward_with_auxiliary(part["image"])
        values = self._shares(logits, part["label"], count, share)
        values["auxiliary"] = self._shares(auxiliary, part["label"], count, share)["loss"]
        return {**values, "loss": values["loss"] + self.loss.auxiliary * values["auxiliary"]}

    def _shares(self, logits: Tensor, labels: Tensor, count: Tensor, share: float) -> dict[str, Tensor]:
        """Cross entropy is divided by the whole count already; what is a mean over its own pass is not."""
        values = dict(self.loss(logits, labels, count=count, group_sum=self._group_sum(), step=self.global_step))
        del values["loss"]
        values = {name: value * share if name in self.loss.per_pass else value for name, value in values.items()}
        return {"loss": sum(self.loss.weights[name] * value for name, value in values.items()), **values}

    def _synchronised(self, *, last: bool) -> AbstractContextManager[None]:
        """Devices exchange gradients in the last backward pass of a step only."""
        strategy = self.trainer.strategy
        if last or not hasattr(strategy, "block_backward_sync"):
            return nullcontext()
        return strategy.block_backward_sync()

    def _world_size(self) -> int:
        return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1

    def _note_corrupt(self, split: str, batch: Batch) -> None:
        # Only with data.on_corrupt=skip can a sample be marked; then names matter more than a stalled device.
        if self.card.get("on_corrupt") == "skip" and batch["corrupt"].any():
            self.corrupt[split].update(batch["index"][batch["corrupt"]].tolist())


class _DeviceSum(torch.autograd.Function):
    """Sum over all devices. What each device makes of the sum adds to the gradient of every one."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Return the sum."""
        values = values.clone()
        distributed.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the sum of all devices' gradients."""
        gradient = gradient.clone()
        distributed.all_reduce(gradient)
        return gradient


def resize_logits(logits: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Resize logits (B, C, H, W) bilinearly, corners not aligned."""
    if logits.shape[-2:] == torch.Size(size):
        return logits
    return interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)
