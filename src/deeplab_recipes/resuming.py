"""Going on with a run: what may change on the way, and what was so until there."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from deeplab_recipes import config
from deeplab_recipes.checkpoints import SPELLED, load_checkpoint, require_same_task, require_same_training

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
NO_RUN_DIR = "resume=auto needs run_dir=DIR, the run to go on with"
OF_THE_COMMAND = ("run_dir", "resume", "trial")
MACHINE = ("commit", "dirty", "world_size", "microbatch_size", "bn_batch", "precision", "hardware", "versions")


def find_checkpoint(
    resume: str | Path | None,
    *,
    run_dir: Path | None,
    weights: str | None,
    card: Mapping[str, Any],
    steps: int,
    settings: Mapping[str, Any] | None,
    first: bool = True,
) -> tuple[Path | None, int]:
    """Return the checkpoint to go on from, and its step, after a look inside; None and 0 where a run begins.

    Args:
        resume: a checkpoint, "auto" for the newest of `run_dir`, or None.
        run_dir: where the run goes; None where that is not known yet.
        weights: what the run is to begin with.
        card: its own, see `checkpoints.card_of`.
        steps: that it is to have.
        settings: resolved ones, or None.
        first: whether this is the first process: the others start when it has written its record already.

    Raises:
        FileExistsError: if `run_dir` holds another run.
        FileNotFoundError, ValueError: if there is no such checkpoint, it does not fit, or has nothing left to do.
    """
    if resume == "auto" and run_dir is None:
        raise ValueError(NO_RUN_DIR)
    newest = None if run_dir is None else run_dir / "checkpoints" / "last.ckpt"
    given = newest if resume == "auto" and newest.exists() else resume
    path = Path(given) if given not in (None, "auto") else None
    if first and run_dir is not None:
        _require_own(run_dir, path, resume)
    if path is None:
        return None, 0
    content = load_checkpoint(path)
    if first:
        require_one_beginning(path, weights)
    require_same_task(path, content["deeplab"], card)
    require_same_training(path, content["deeplab"], card)
    if settings is not None and first:
        require_same_settings(path, settings)
    # A run that was killed between its last step and its record still has that to do.
    elsewhere = newest is None or path.resolve() != newest.resolve()
    if content["global_step"] >= steps and (elsewhere or _is_finished(run_dir)):
        raise ValueError(
            f"{path} has done {content['global_step']} steps and this run is to have {steps}: nothing is left "
            "to do; raise trainer.max_epochs or trainer.max_steps"
        )
    return path, content["global_step"]


def _require_own(run_dir: Path, checkpoint: Path | None, resume: str | Path | None) -> None:
    """Refuse to write over another run."""
    own = checkpoint is not None and run_of(checkpoint) == run_dir.resolve()
    if (run_dir / "result.json").exists() and resume != "auto" and not own:
        of_another = "" if checkpoint is None else f", and {checkpoint} is not of it"
        raise FileExistsError(
            f"run_dir={run_dir} holds a run already{of_another}; choose another run_dir, or go on with it: resume=auto"
        )


def _is_finished(run_dir: Path) -> bool:
    path = run_dir / "result.json"
    return path.exists() and json.loads(path.read_text())["status"] == "finished"


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
