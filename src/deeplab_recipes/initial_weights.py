"""What a training begins with: the weights of a checkpoint, whole or without the last layers."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from deeplab_recipes.checkpoints import load_checkpoint, model_differences
from deeplab_recipes.config import literal
from deeplab_recipes.model import DeepLab, zoo
from deeplab_recipes.model.arguments import resolved
from deeplab_recipes.model.fitting import misfit
from deeplab_recipes.record import sha256

Init = Literal["transfer_learning", "continue_training"]
INITS = ("transfer_learning", "continue_training")
LAST_LAYER, AUXILIARY = "conv_seg", "auxiliary_head"
# Arguments of the model that no tensor and no meaning of one depends on; a different number of dilations shows itself.
FREE = (
    *("num_classes", "output_stride", "aspp_dilations", "dropout", "auxiliary_head", "freeze_batchnorm"),
    *("freeze_backbone", "backbone_weights", "initializers", "batchnorm_momentum"),
)


@dataclass(frozen=True)
class InitialWeights:
    """What was taken from a checkpoint.

    Args:
        file: the checkpoint.
        init: "transfer_learning" or "continue_training".
        taken: number of tensors.
        left_out: those of the file that were not -> why.
        fresh: those of the model that keep the values they were built with -> why.
        remarks: what else a user may not expect.
    """

    file: Path
    init: Init
    taken: int
    left_out: Mapping[str, str]
    fresh: Mapping[str, str]
    remarks: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """Return what result.json says of it."""
        names = {"left_out": dict(self.left_out), "fresh": dict(self.fresh)}
        return {"file": str(self.file), "sha256": sha256(self.file), "init": self.init, "taken": self.taken, **names}

    def notes(self) -> list[str]:
        """Return it in words."""
        taken = f"weights: {self.taken} tensors of {self.file} ({self.init})"
        new = {name: why for name, why in self.fresh.items() if name not in self.left_out}
        lists = (*_by_reason("left out", self.left_out), *_by_reason("new", new))
        return [taken, *lists, *self.remarks]


def _by_reason(title: str, names: Mapping[str, str]) -> list[str]:
    return [
        f"weights: {title} {', '.join(name for name in names if names[name] == reason)}: {reason}"
        for reason in dict.fromkeys(names.values())
    ]


def check_choice(weights: str | None, init: str) -> None:
    """Raise ValueError for an unknown `init`, or one that says what to take of weights that are not given."""
    if init not in INITS:
        raise ValueError(f"init is {init!r}; valid are {', '.join(INITS)}")
    if weights is not None and not weights.strip():
        raise ValueError("weights is empty; it takes FILE, zoo:NAME or null")
    if weights is None and init != INITS[0]:
        raise ValueError(
            f"init={init} says what to take of weights, and there are none: weights=FILE or weights=zoo:NAME"
        )


def locate_weights(weights: str) -> Path:
    """Return the checkpoint that `weights` names, a file or zoo:NAME; the zoo's are fetched.

    Raises:
        ValueError: where the zoo has no such weights.
        ConnectionError: where they cannot be fetched.
    """
    return zoo.fetch(weights) if weights.startswith(zoo.PREFIX) else Path(weights).expanduser()


def weights_at_hand(weights: str) -> Path | None:
    """Return the checkpoint that `weights` names without fetching it; None where it is still to be fetched.

    Raises:
        ValueError: where the zoo has no such weights.
    """
    if not weights.startswith(zoo.PREFIX):
        return Path(weights).expanduser()
    from deeplab_recipes.published import checkpoint_of

    path = checkpoint_of(zoo.find(weights))
    return path if path.exists() else None


def load_initial_weights(
    network: DeepLab, weights: str, *, init: Init, classes: Sequence[str], card: Mapping[str, Any] | None = None
) -> InitialWeights:
    """Load a checkpoint's weights into a network, in place; every weight that `init` asks for, or an error.

    Args:
        network: to fill.
        weights: a checkpoint of this package, or zoo:NAME.
        init: "transfer_learning" takes all but the last layers (each `conv_seg`); "continue_training" takes all, and
            the classes have to be the same in the same order.
        classes: those that the network is to learn.
        card: of the run; a different normalisation of the images is remarked on.

    Raises:
        FileNotFoundError, ValueError: if the file is no checkpoint, holds another backbone or head, or other classes.
        ConnectionError: where weights of the zoo cannot be fetched.
    """
    check_choice(weights, init)
    path = locate_weights(weights)
    content = load_checkpoint(path)
    theirs = content["deeplab"]
    _require_architecture(path, theirs["model"], network.arguments)
    if init == "continue_training":
        _require_classes(path, theirs["classes"], classes)
    state = {k.removeprefix("model."): v for k, v in content["state_dict"].items() if k.startswith("model.")}
    left_out, fresh = _left_out(state, network, init), _fresh(state, network, init, path)
    wanted = {name: value for name, value in state.items() if name not in left_out}
    problem = misfit(network.state_dict(), wanted, optional=fresh)
    if problem:
        raise ValueError(f"{path} does not fit the model: tensors {problem}")
    network.load_state_dict(wanted, strict=False)
    return InitialWeights(path, init, len(wanted), left_out, fresh, _remarks(path, theirs, card or {}))


def _require_architecture(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    found = {k: v for k, v in model_differences(resolved(theirs), resolved(ours)).items() if k not in FREE}
    if found:
        words = ", ".join(f"model.{key} is {there!r} there and {here!r} here" for key, (there, here) in found.items())
        # All that is written in another way: what is alike with this backbone need not be with theirs. A model's file
        # lists what acts on its own backbone and head only, and ++ sets the rest too.
        build = {k: there for k, (there, _) in model_differences(theirs, ours).items() if k not in FREE}
        fix = " ".join(shlex.quote(f"++model.{key}={literal(value)}") for key, value in build.items())
        raise ValueError(f"{path} holds the weights of another model: {words}. Build that one: {fix}")


def _require_classes(path: Path, theirs: Sequence[str], ours: Sequence[str]) -> None:
    if list(theirs) == list(ours):
        return
    place = {name: i for i, name in enumerate(ours)}
    moved = [f"{n} {i} -> {place[n]}" for i, n in enumerate(theirs) if n in place and place[n] != i]
    lists = {
        "missing here": [name for name in theirs if name not in place],
        "extra here": [name for name in ours if name not in theirs],
        "moved": moved,
    }
    words = "; ".join(f"{title}: {', '.join(names)}" for title, names in lists.items() if names)
    raise ValueError(
        f"init=continue_training needs the classes that {path} was trained on, in their order: {words}. "
        "init=transfer_learning takes all but the last layer"
    )


def _left_out(state: Mapping[str, Tensor], network: DeepLab, init: Init) -> dict[str, str]:
    found = {}
    for name in state:
        words = name.split(".")
        if words[0] == AUXILIARY and network.auxiliary_head is None:
            found[name] = "model.auxiliary_head is false"
        elif LAST_LAYER in words and init == "transfer_learning":
            found[name] = "the last layer, which transfer_learning learns anew"
    return found


def _fresh(state: Mapping[str, Tensor], network: DeepLab, init: Init, path: Path) -> dict[str, str]:
    new = init == "transfer_learning"
    has_auxiliary = any(name.startswith(f"{AUXILIARY}.") for name in state)
    if not has_auxiliary and network.auxiliary_head is not None and not new:
        raise ValueError(
            f"init=continue_training takes every weight, and {path} has none of an auxiliary head: "
            "model.auxiliary_head=false loss.auxiliary=0, or init=transfer_learning"
        )
    reasons = {}
    for name in network.state_dict():
        words = name.split(".")
        if words[0] == AUXILIARY and not has_auxiliary:
            reasons[name] = "the file has no auxiliary head"
        elif LAST_LAYER in words and new:
            reasons[name] = "the last layer, which transfer_learning learns anew"
    return reasons


def _remarks(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> tuple[str, ...]:
    changed = [key for key in ("mean", "std") if key in ours and list(theirs[key]) != list(ours[key])]
    words = ", ".join(f"data.{key}={list(theirs[key])}" for key in changed)
    return (f"{path} learned from images normalised with {words}, this run has another",) if changed else ()
