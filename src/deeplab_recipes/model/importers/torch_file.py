"""Files of other programs that were saved by PyTorch: read without running anything that they hold.

Beside tensors such a file may hold objects (a log's history, a schedule), which torch refuses to make. Here each is
replaced by a stand-in without content, since weights are wanted and not the history.
"""

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from deeplab_recipes.model.weights import why_unreadable

PLAIN_DICTS = ("collections.defaultdict",)


class StandIn:
    """An object of the file that was not made; whatever it is given is dropped."""

    def __new__(cls, *arguments: object) -> "StandIn":
        """Return one, whatever the file calls it with."""
        return object.__new__(cls)

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def read_file(path: Path) -> Mapping[str, Any]:
    """Read what torch.save wrote; no code from the file is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no PyTorch file, is damaged, or its own parts are objects rather than tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    objects: list[str] = []
    try:
        if zipfile.is_zipfile(path):  # torch lists the objects of its newer format only
            objects = get_unsafe_globals_in_checkpoint(path)
        with safe_globals(_stand_ins(objects)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # foreign bytes fail in many ways
        if objects or "GLOBAL" in str(error):  # torch's word for a function or class that it will not call
            raise ValueError(_refusal(path)) from error
        raise ValueError(f"{path} is no PyTorch checkpoint, or is damaged ({why_unreadable(error)})") from error
    if isinstance(content, StandIn):
        raise ValueError(_refusal(path))
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not the dict that a checkpoint is")
    return content


def state_dict(path: Path, content: object, where: str) -> dict[str, Tensor]:
    """Return `content` as a state dict without the prefix ``module.`` of a model that several devices trained.

    Raises:
        ValueError: it holds something else than tensors; names the first.
    """
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} holds no state dict under {where}, but a {type(content).__name__}")
    other = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if other:
        found = f"{other[0]} (a {type(content[other[0]]).__name__})"
        raise ValueError(f"{path}: {where} holds other things than tensors: {found}")
    return {str(key).removeprefix("module."): value.contiguous() for key, value in content.items()}


def count_tensors(content: object) -> int:
    """Count the tensors in nested dicts and lists."""
    if isinstance(content, Tensor):
        return 1
    items: Iterable[Any] = ()
    if isinstance(content, Mapping):
        items = content.values()
    elif isinstance(content, list | tuple):
        items = content
    return sum(map(count_tensors, items))


def _stand_ins(names: Iterable[str]) -> list[Any]:
    def empty(*arguments: object) -> dict[Any, Any]:
        return {}

    # A class of its own for each: torch looks an allowed object up by what it is, too.
    return [(empty if name in PLAIN_DICTS else type("StandIn", (StandIn,), {}), name) for name in names]


def _refusal(path: Path) -> str:
    return (
        f"{path} holds Python objects where tensors are expected, which could run code and are refused. If you trust "
        "it, load it where it was made and save what is wanted alone: torch.save({'state_dict': {k: v.cpu() for k, v "
        "in model.state_dict().items()}, 'meta': {'CLASSES': [names]}}, FILE)"
    )
