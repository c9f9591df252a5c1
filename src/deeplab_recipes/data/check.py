"""Finding unusable data before training: sizes of all pairs by their headers, content of a sample."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from deeplab_recipes.data.dataset import OnCorrupt
from deeplab_recipes.data.reading import picture_size
from deeplab_recipes.data.sources.base import Pair, Source, read_pair, require_same_size


def check_pairs(
    pairs: Sequence[Pair],
    source: Source,
    *,
    samples: int,
    on_corrupt: OnCorrupt = "raise",
    compare_sizes: bool = True,
) -> None:
    """Compare image and label sizes of all pairs by their headers, and decode `samples` pairs spread evenly over them.

    With `on_corrupt="skip"` unusable pairs are left for training to skip and count, unless every pair of the
    sample is one: then it is the set that does not fit (another label encoding, say), not a file.

    Raises:
        ValueError: names the first file that cannot be used, and why.
    """
    if samples == 0:
        return
    count = min(samples, len(pairs))
    chosen = [pairs[i] for i in np.linspace(0, len(pairs) - 1, count).astype(int)]
    with ThreadPoolExecutor(8) as pool:
        if on_corrupt == "skip":
            problems = list(pool.map(lambda pair: _problem(pair, source), chosen))
            if all(problems):
                raise ValueError(f"none of the {count} pairs looked at can be used. The first: {problems[0]}")
            return
        for _ in pool.map(
            lambda pair: require_same_size(pair, picture_size(pair.image), source.label_size(pair)),
            pairs if compare_sizes else (),
        ):
            pass
        for _ in pool.map(lambda pair: read_pair(pair, source), chosen):
            pass


def _problem(pair: Pair, source: Source) -> str | None:
    try:
        read_pair(pair, source)
    except ValueError as error:
        return str(error)
    return None


def _check_sizes(pair: Pair, source: Source) -> None:
    require_same_size(pair, picture_size(pair.image), source.label_size(pair))
