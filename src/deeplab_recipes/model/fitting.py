"""Whether tensors from a file are those that a model has."""

from collections.abc import Collection, Mapping

from torch import Tensor

SHOWN = 3  # names of each kind


def misfit(
    expected: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    *,
    optional: Collection[str] = (),
    stray: str = "unexpected",
) -> str:
    """Say in which names and shapes tensors differ from those that a model has; nothing where they do not.

    Args:
        expected: the model's.
        state: those it is to get.
        optional: names of the model that may be missing.
        stray: the word for a tensor that the model does not have.
    """
    problems = {
        "missing": [key for key in expected if key not in state and key not in optional],
        stray: [key for key in state if key not in expected],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} for {tuple(expected[key].shape)}"
            for key in expected
            if key in state and state[key].shape != expected[key].shape
        ],
    }
    return "; ".join(f"{len(keys)} {kind} ({', '.join(keys[:SHOWN])})" for kind, keys in problems.items() if keys)
