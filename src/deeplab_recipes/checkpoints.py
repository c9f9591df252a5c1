"""Checkpoints: written whole or not at all, and readable without running code from the file."""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from deeplab_recipes.model.weights import why_unreadable

FORMAT_VERSION = 1
IMPORT = "deeplab import makes a checkpoint of another program's file"
ADDED = {  # arguments of the model that older checkpoints lack; others that they lack are None
    "auxiliary_head": False,
    "freeze_batchnorm": "none",
    "freeze_backbone": 0,
    "image_pooling": True,
    "batchnorm_momentum": 0.1,
    "batchnorm_scale": True,
    "width_divisor": 8,
    "padding": "symmetric",
    "low_level_features": "block",
}
SPELLED = {"freeze_batchnorm": {False: "none", True: "statistics"}}  # values that they spell otherwise


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, then renames: the earlier checkpoint survives a full disk or a kill."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`.

        Raises:
            OSError: if it cannot be written; the message names the cause and what is still there.
        """
        target = Path(path)
        try:
            write_whole(checkpoint, target)
        except (OSError, RuntimeError) as error:
            kept = f"the earlier {target} is unharmed" if target.exists() else "there was none before"
            raise OSError(
                f"cannot save the checkpoint {target}: {why_unwritten(error)}; {kept}. "
                "Free space or choose another run_dir, "
                f"then go on with resume=auto run_dir={target.parent.parent}"
            ) from error


def write_whole(checkpoint: Mapping[str, Any], target: Path) -> None:
    """Write beside `target`, then rename: it is there whole, or as it was.

    Raises:
        OSError, RuntimeError: as torch has them, if it cannot be written.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        with suppress(OSError):
            temporary.unlink()


def why_unwritten(error: BaseException) -> str:
    """Return the system's reason, which torch hides behind an error of its own while it closes the file."""
    chain: list[BaseException] = [error]
    while (earlier := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(earlier)
    system = [e for e in chain if isinstance(e, OSError) and e.strerror]
    return system[-1].strerror if system else str(error)


def card_of(*, name: str, seed: int, data: Any, network: Any, optimizer: Callable[..., Any]) -> dict[str, Any]:
    """Return what a checkpoint carries besides weights: builtins.

    Args:
        name: of the recipe.
        seed: of the run.
        data: its data module.
        network: the model.
        optimizer: called with parameters.
    """
    defaults = optimizer(network.parameters()).defaults
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}
    settings = {f"optimizer.{k}": v for k, v in plain.items() if isinstance(v, int | float | list | None)}
    return {
        "format_version": FORMAT_VERSION,
        "recipe": name,
        "classes": list(data.source.classes),
        "palette": [list(colour) for colour in data.source.palette],
        "model": dict(network.arguments),
        "protocol": data.protocol,
        "evaluate_sizes": {name: list(size) for name, size in data.evaluate_sizes.items()},
        "mean": list(data.mean),
        "std": list(data.std),
        "on_corrupt": data.on_corrupt,
        "training": {"name": name, "seed": seed, "batch_size": data.batch_size, **settings},
    }


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of this package onto the CPU; no code from the file is run.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no checkpoint, one of another program, or of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        problem = f"{path} is a folder; name the file in it" if path.is_dir() else f"no checkpoint at {path}"
        raise FileNotFoundError(problem)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no checkpoint can fail in any way
        reason = f"is no checkpoint that can be read safely ({why_unreadable(error)})"
        raise ValueError(f"{path} {reason}; {IMPORT}") from None
    card = checkpoint.get("deeplab") if isinstance(checkpoint, Mapping) else None
    version = card.get("format_version") if isinstance(card, Mapping) else None
    if not isinstance(version, int):
        lacks = "it has no 'deeplab' entry with a format_version"
        raise ValueError(f"{path} was not written by deeplab-recipes: {lacks}; {IMPORT}")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format {version}, this version reads up to {FORMAT_VERSION}; install a newer deeplab-recipes"
        )
    return checkpoint


def require_same_task(path: str | Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Check that a checkpoint's card fits this run's classes and model.

    Raises:
        ValueError: names the first difference.
    """
    if list(theirs["classes"]) != list(ours["classes"]):
        raise ValueError(
            f"{path} was trained on other classes: {_difference(theirs['classes'], ours['classes'])}. "
            "Resume with the data it was trained on, or start a new run"
        )
    for key, (there, here) in model_differences(theirs["model"], ours["model"]).items():
        raise ValueError(f"{path} holds another model: model.{key} is {there!r} there and {here!r} here")


def model_differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the arguments in which two models differ: name -> (theirs, ours)."""
    found = {key: (_argument(theirs, key), _argument(ours, key)) for key in {**ours, **theirs}}
    return {key: (there, here) for key, (there, here) in found.items() if there != here}


def _argument(arguments: Mapping[str, Any], key: str) -> Any:
    value = arguments.get(key, ADDED.get(key))
    return SPELLED.get(key, {}).get(value, value) if isinstance(value, bool) else value


def require_same_training(path: str | Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Check that a run goes on as it began: the optimizer's state in the checkpoint would win over new settings.

    Raises:
        ValueError: names the first difference, or says that the file holds no training.
    """
    if "imported" in theirs:
        raise ValueError(
            f"{path} holds imported weights, and no training to go on with; begin one with them: weights={path} "
            "init=continue_training"
        )
    for key, here in ours["training"].items():
        there = theirs.get("training", {}).get(key)
        if there != here:
            raise ValueError(
                f"{path} was trained with {key}={there!r}, this run has {here!r}; resume with the settings it was "
                "trained with, or start a new run"
            )


def _difference(theirs: list[str], ours: list[str]) -> str:
    if len(theirs) != len(ours):
        return f"{len(theirs)} there ({_shortened(theirs)}), {len(ours)} here ({_shortened(ours)})"
    i = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
    return f"class {i} is {theirs[i]!r} there and {ours[i]!r} here"


def _shortened(names: list[str]) -> str:
    return ", ".join([*names[:4], "..."] if len(names) > 4 else names)


class NonFiniteError(FloatingPointError):
    """A loss or weight that is NaN or infinite.

    Args:
        step: the step (0-based) in which it came up.
        message: what was found.
    """

    def __init__(self, step: int, message: str) -> None:
        super().__init__(message)
        self.step = step


class Checkpoints(pl.Callback):
    """Saves last.ckpt after every evaluation, and best.ckpt whenever the mean IoU is the highest so far.

    Args:
        folder: where they go.

    Raises:
        NonFiniteError: in training, instead of saving weights that are not finite.
    """

    def __init__(self, folder: str | Path) -> None:
        self.last, self.best = Path(folder) / "last.ckpt", Path(folder) / "best.ckpt"
        self.best_evaluation: dict[str, Any] = {}
        self.evaluated_step = self.saved_step = -1
        self._earlier, self._started = 0.0, time.perf_counter()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, and clear away what a killed process did not finish writing."""
        if trainer.is_global_zero:
            for unfinished in self.last.parent.glob(".*.part"):
                unfinished.unlink()
        self._started = time.perf_counter()

    def seconds(self) -> float:
        """Return how long the run has been training and evaluating, with the time before it was resumed."""
        return self._earlier + time.perf_counter() - self._started

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, and note whether these weights are the best."""
        self.evaluated_step = trainer.global_step
        better = pl_module.evaluation["miou"] > self.best_evaluation.get("miou", -1.0)
        if better:
            self.best_evaluation = dict(pl_module.evaluation)
        if trainer.state.fn == "fit":
            self.save(trainer)
        if better and trainer.is_global_zero:
            if trainer.state.fn != "fit":  # the end was saved before it was evaluated
                self._note_best()
            _link(self.last, self.best)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the end, where the last evaluation was earlier."""
        if self.saved_step != trainer.global_step:
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Write last.ckpt; all devices call it."""
        module = trainer.lightning_module
        values = [t.detach() for t in chain(module.parameters(), module.buffers()) if t.is_floating_point()]
        norms = torch._foreach_norm(values)
        if not torch.stack(norms).isfinite().all():
            step = trainer.global_step
            raise NonFiniteError(step - 1, f"the weights are not finite after step {step}")
        trainer.save_checkpoint(self.last)
        self.saved_step = trainer.global_step

    def _note_best(self) -> None:
        checkpoint = torch.load(self.last, map_location="cpu", weights_only=True)
        checkpoint["callbacks"][self.state_key] = self.state_dict()
        AtomicCheckpointIO().save_checkpoint(checkpoint, self.last)

    def state_dict(self) -> dict[str, Any]:
        """Return what goes into the checkpoint itself."""
        return {"best_evaluation": self.best_evaluation, "seconds": self.seconds()}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note the best weights where a kill came between last.ckpt, which says that it holds them, and best.ckpt."""
        best_step = checkpoint["callbacks"].get(self.state_key, {}).get("best_evaluation", {}).get("step")
        ours = trainer.ckpt_path is not None and Path(trainer.ckpt_path).resolve() == self.last.resolve()
        linked = self.best.exists() and self.best.samefile(self.last)
        if trainer.is_global_zero and ours and best_step == checkpoint["global_step"] and not linked:
            _link(self.last, self.best)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back, unless the run goes on in another directory: the best checkpoint is not there."""
        self._earlier = state_dict["seconds"]
        if self.best.exists():
            self.best_evaluation = state_dict["best_evaluation"]


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, not a second copy: the first is only ever replaced, never written to."""
    temporary = target.with_name(f".{target.name}.part")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # a file system without hard links
        temporary.write_bytes(source.read_bytes())
    temporary.replace(target)
