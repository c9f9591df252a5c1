"""What the parts of a run have to agree in: looked at for `train` and `plan` alike, before anything is trained."""

from collections.abc import Callable, Sequence
from typing import Any

from deeplab_recipes.hard_pixels import OHEM
from deeplab_recipes.losses import SegmentationLoss
from deeplab_recipes.model import DeepLab
from deeplab_recipes.model.factory import BATCHNORM_MOMENTUM
from deeplab_recipes.model.freezing import keeps_statistics
from deeplab_recipes.optimization import ParameterRules
from deeplab_recipes.optimization.schedules import Schedule, by_step
from deeplab_recipes.planning import BatchSplit
from deeplab_recipes.trainer import TrainerSettings

Counts = Callable[[], tuple[Sequence[int], Sequence[int]]]


def build_network(
    model: Callable[..., DeepLab],
    *,
    classes: Sequence[str],
    split: BatchSplit,
    loss: SegmentationLoss,
    optimizer: Callable[..., Any],
    parameters: ParameterRules,
    schedule: Schedule,
    schedule_ends: str,
    count: Counts | None,
    crop: tuple[int, int],
    **replaced: Any,
) -> DeepLab:
    """Build the network, and refuse now, not when training starts, what does not go with the other parts.

    Args:
        model: called with `num_classes`, gives the network.
        classes: their names.
        split: the run's batches.
        loss, optimizer, parameters, schedule, schedule_ends: as in `training.Run`; the loss gets its class weights.
        count: as in `class_weights.resolve_weights`; None: weights that count the labels are not worked out.
        crop: (height, width) of training samples.
        **replaced: arguments of `model` that are not to be as its settings say.

    Raises:
        ValueError: for a setting that cannot work, or that another one leaves without effect.
    """
    loss.require_exact(split.accumulation, split.world_size)
    if isinstance(loss.hard_pixels, OHEM):
        loss.hard_pixels.require_acting(crop)
    if count is not None or not isinstance(loss.class_weights, str):
        loss.set_classes(classes, count or (lambda: ((), ())))
    network = model(num_classes=len(classes), **replaced)
    loss.require_head(network.auxiliary_head)
    by_step(schedule, total=1, steps_per_epoch=1, at_last_step=schedule_ends == "at_last_step")
    parameters.require_acting(network)
    try:
        parameters.build(optimizer, network)
    except ValueError as error:
        raise ValueError(f"optimizer: {error}") from None
    return network


def notes(
    network: DeepLab,
    *,
    split: BatchSplit,
    loss: SegmentationLoss,
    trainer: TrainerSettings,
    parameters: ParameterRules,
    steps: int,
    trained_backbone: bool,
    trained: bool,
) -> list[str]:
    """List what a user may not expect: settings without effect here, and batch norm's share of the batch.

    Args:
        network: of the run.
        split, loss, trainer, parameters: the run's.
        steps: optimizer steps of the whole run.
        trained_backbone: whether the backbone begins with weights from somewhere.
        trained: whether all of the network does.
    """
    found = []
    if trainer.sync_batchnorm and not (trainer.on_gpu() and split.world_size > 1):
        where = "without a GPU" if split.world_size > 1 else "on one device"
        found.append(f"trainer.sync_batchnorm=true has no effect {where}")
    if 0 < split.bn_batch < split.batch_size:
        found.append(f"batch norm sees {split.bn_batch} images at a time, the batch has {split.batch_size}")
    if network.freeze_backbone and not trained_backbone:
        found.append("model.freeze_backbone keeps random weights: give weights=FILE or model.backbone_weights")
    if keeps_statistics(network.freeze_batchnorm):
        found += _notes_of_kept_statistics(network, trained=trained)
    found += parameters.notes()
    found += [] if loss.hard_pixels is None else loss.hard_pixels.notes(steps)
    if loss.hard_pixels is not None and split.microbatch < split.batch_size:
        found.append(f"hard pixels are chosen among {split.microbatch} images at a time")
    if trainer.precision not in ("auto", trainer.resolved_precision()):
        found.append(f"{trainer.precision} needs a GPU; computing in {trainer.resolved_precision()}")
    return found


def _notes_of_kept_statistics(network: DeepLab, *, trained: bool) -> list[str]:
    found = []
    if not trained:
        found.append(
            f"model.freeze_batchnorm={network.freeze_batchnorm} keeps statistics that no training has found (mean 0, "
            "variance 1 where there are no weights): give weights=FILE"
        )
    if network.arguments["batchnorm_momentum"] != BATCHNORM_MOMENTUM:
        found.append(f"model.batchnorm_momentum has no effect with model.freeze_batchnorm={network.freeze_batchnorm}")
    return found
