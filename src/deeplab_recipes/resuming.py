"""Going on with a run: what may change on the way, and what was so until there."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from deeplab_recipes import config
from deeplab_recipes.checkpoints import SPELLED

# Settings that a run may go on with beside neutral ones: it is made longer, or has to fit another machine.
MAY_CHANGE = ("trainer.max_epochs", "trainer.max_steps", "microbatch_size")
# Settings that runs of earlier versions lack -> what stands for how it was then; those of the model: see `checkpoints`.
ADDED = {
    "init": "transfer_learning",
    "data.scale_step": 0.0,
    "parameters._target_": "deeplab_recipes.optimization.ParameterRules",
    "parameters.backbone_lr": 1.0,
    "parameters.last_layers_lr": 1.0,
    "parameters.last_layers": "logits",
    "parameters.bias_lr": 1.0,
    "parameters.no_weight_decay": [],
}
OF_THE_COMMAND = ("run_dir", "resume", "trial")
MACHINE = ("commit", "dirty", "world_size", "microbatch_size", "bn_batch", "precision", "hardware", "versions")


def run_of(checkpoint: Path) -> Path:
    """Return the directory of the run that wrote a checkpoint."""
    return checkpoint.resolve().parent.parent


def require_same_settings(checkpoint: Path, settings: Mapping[str, Any]) -> None:
    """Check that a run goes on with the settings that its record will claim for the whole of it.

    Args:
        checkpoint: to go on from; the settings of its run are read where they are still beside it.
        settings: resolved ones of this run, as plain containers.

    Raises:
        ValueError: names the first that changes what is computed.
    """
    earlier = earlier_settings(checkpoint) or settings
    known = config.leaves(earlier)
    for key, (there, here) in config.differences(earlier, settings).items():
        before = key not in known and (key.startswith("model.") or ADDED.get(key) == here)
        if key not in MAY_CHANGE and not before and not _moved(there, here) and not _respelled(key, there, here):
            raise ValueError(
                f"{checkpoint} was trained with {key}={_shown(there)}, this run has {key}={_shown(here)}; resume with "
                f"the settings it was trained with ({run_of(checkpoint) / 'config.yaml'}), or start a new run"
            )


def require_one_beginning(checkpoint: Path, weights: str | None) -> None:
    """Check that `weights` are those that the run of a checkpoint began with: they act at its start only.

    Raises:
        ValueError: if it began otherwise, or its settings are not beside the checkpoint to tell.
    """
    if weights is None:
        return
    earlier = earlier_settings(checkpoint)
    began = None if earlier is None else earlier.get("weights")
    if began != weights and not _moved(began, weights):
        how = "its settings are not beside it" if earlier is None else f"its run began with weights={_shown(began)}"
        raise ValueError(
            f"weights={weights} begins a run, and {checkpoint} goes on with one ({how}): leave weights out to go on "
            "with it, or resume to begin anew"
        )


def beginning(checkpoint: Path) -> dict[str, Any]:
    """Return what the record of a checkpoint's run says of the weights that it began with."""
    path = run_of(checkpoint) / "result.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    return {"weights": before["weights"]} if "weights" in before else {}


def earlier_settings(checkpoint: Path) -> Mapping[str, Any] | None:
    """Return the settings of the run that wrote a checkpoint, or None where they are not beside it."""
    path = run_of(checkpoint) / "config.yaml"
    return yaml.safe_load(path.read_text()) if path.is_file() else None


def sessions(
    checkpoint: Path, step: int, result: Mapping[str, Any], settings: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Return what result.json says of the sessions before this one.

    Args:
        checkpoint: that this session begins with.
        step: of the checkpoint.
        result: this session's opening record.
        settings: of this session, or None.

    Returns:
        For each session that was gone on from: the `step` where; as `until_then` those of `MACHINE` that were
        others before; and the settings that were changed there, name -> [before, after].
    """
    path = run_of(checkpoint) / "result.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    until_then = {key: before[key] for key in MACHINE if key in before and before[key] != result[key]}
    note = {"step": step, "until_then": until_then, "changes": _changes(earlier_settings(checkpoint), settings)}
    return [*before.get("resumed", []), note]


def _changes(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> dict[str, Sequence[Any]]:
    if before is None or after is None:
        return {}
    then, now = config.leaves(before), config.leaves(after)
    keys = [key for key in {**then, **now} if key.split(".")[0] not in OF_THE_COMMAND]
    return {key: [then.get(key), now.get(key)] for key in keys if then.get(key) != now.get(key)}


def _respelled(key: str, there: Any, here: Any) -> bool:
    """Whether a setting of the model says in a new word what it said in an old one; the checkpoint was compared."""
    words = SPELLED.get(key.removeprefix("model."), {})
    return isinstance(there, bool) and words.get(there) == here


def _moved(there: Any, here: Any) -> bool:
    """Whether both are a file of the same name, as weights that lie elsewhere on another machine."""
    return all(isinstance(value, str) and "/" in value for value in (there, here)) and (
        Path(there).name == Path(here).name
    )


def _shown(value: Any) -> str:
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))
