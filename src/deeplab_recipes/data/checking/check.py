"""Finding unusable data: the quick look that training takes before its first step, and the full check."""

import json
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from deeplab_recipes.data.checking.contact_sheet import contact_sheet
from deeplab_recipes.data.checking.guesses import guess, guess_sizes, look_at_all
from deeplab_recipes.data.checking.inspection import inspect
from deeplab_recipes.data.checking.report import Entry, Report, as_containers, as_text, judge, unpaired
from deeplab_recipes.data.labels import IGNORE
from deeplab_recipes.data.packed import spread
from deeplab_recipes.data.pictures import picture_size
from deeplab_recipes.data.sources.base import Pair, Source, UnpairedError, read_pair, require_same_size
from deeplab_recipes.machine import cores

if TYPE_CHECKING:  # it needs torch, which a check does not
    from deeplab_recipes.data.dataset import OnCorrupt

PARTS = ("train", "validation")
REPORT, TEXT, SHEET = "report.json", "report.txt", "contact_sheet.png"


def check_pairs(
    pairs: Sequence[Pair],
    source: Source,
    *,
    samples: int,
    on_corrupt: "OnCorrupt" = "raise",
    compare_sizes: bool = True,
) -> None:
    """Compare image and label sizes of all pairs by their headers, and decode `samples` pairs spread evenly over them.

    With `on_corrupt="skip"` unusable pairs are left for training to skip and count, unless every pair of the
    sample is one: then it is the set that does not fit (another label encoding, say), not a file. Labels of a
    single class give a warning.

    Raises:
        ValueError: names the first file that cannot be used, why, and what may have gone wrong; or classes that
            cannot be told apart.
    """
    if samples == 0:
        return
    require_classes(source)
    count = min(samples, len(pairs))
    chosen = spread(pairs, count)
    with ThreadPoolExecutor(8) as pool:
        if on_corrupt == "raise" and compare_sizes:
            for _ in pool.map(lambda pair: _check_sizes(pair, source), pairs):
                pass
        results = list(pool.map(lambda pair: _usable_classes(pair, source), chosen))
    problems = [result for result in results if isinstance(result, str)]
    if on_corrupt == "skip" and len(problems) == count:
        first = f"none of the {count} pairs looked at can be used. The first: {problems[0]}"
        raise ValueError(first + _guessed(chosen, source))
    if on_corrupt == "raise" and problems:
        raise ValueError(problems[0] + _guessed(chosen, source))
    _warn_of_one_class([r for r in results if not isinstance(r, str)], chosen, source)


def check_set(
    source: Source,
    *,
    where: str,
    output: str | Path,
    sheet_pairs: int = 24,
    workers: int | str = "auto",
    on_corrupt: "OnCorrupt" = "raise",
) -> Report:
    """Read every pair of both parts; write the report as JSON and as text, and a contact sheet.

    Args:
        source: the data set.
        where: its folder, as the report is to name it.
        output: the folder to write to; it must not hold a report.
        sheet_pairs: pairs on the contact sheet; 0 draws none.
        workers: processes that read, 0 reads in this one; "auto": one for each core.
        on_corrupt: with "skip", what training would skip is a remark, not a problem.

    Raises:
        FileNotFoundError, ValueError: if neither part has any pair.
        OSError: if `output` holds a report or cannot be written.
    """
    begin = time.perf_counter()
    pairs, problems = find_pairs(source)
    output = _fresh_folder(Path(output))
    inspection = inspect(pairs, source, processes=cores() if workers == "auto" else int(workers))
    seconds = time.perf_counter() - begin
    found, remarks = judge(inspection, source, pairs, skip=on_corrupt == "skip")
    classes = class_problems(source)
    report = Report(source, where, inspection.parts, [*classes, *problems, *found], remarks, seconds)
    usable = {part: _without(pairs[part], inspection.parts[part].unusable) for part in pairs}
    _write(report, contact_sheet(usable, source, count=0 if classes else sheet_pairs), output)
    return report


def _write(report: Report, sheet: Image.Image | None, folder: Path) -> None:
    if sheet is not None:
        sheet.save(folder / SHEET)
    (folder / TEXT).write_text(as_text(report) + "\n", encoding="utf-8")
    (folder / REPORT).write_text(json.dumps(as_containers(report), indent=1) + "\n")


def find_pairs(source: Source) -> tuple[dict[str, list[Pair]], list[Entry]]:
    """Return the pairs of both parts, and what was wrong with finding them.

    Raises:
        FileNotFoundError, ValueError: if neither part can be found at all.
    """
    pairs: dict[str, list[Pair]] = {}
    problems: list[Entry] = []
    errors: list[ValueError | OSError] = []
    for part in PARTS:
        try:
            pairs[part] = source.pairs(part)
        except UnpairedError as error:
            pairs[part] = list(error.pairs)
            problems += unpaired(part, error)
        except (ValueError, OSError) as error:
            pairs[part] = []
            errors.append(error)
            problems.append(Entry("no part", part, str(error)))
    if len(errors) == len(PARTS):
        raise errors[0]
    return pairs, problems


def require_classes(source: Source) -> None:
    """Raise ValueError if a class is listed twice or has no colour; names it."""
    for entry in class_problems(source):
        raise ValueError(entry.text)


def class_problems(source: Source) -> list[Entry]:
    """Return what is wrong with the list of classes and colours."""
    classes, palette = list(source.classes), list(source.palette)
    twice = sorted({name for name in classes if classes.count(name) > 1})
    entries = []
    if twice:
        numbers = ", ".join(str(i) for i, name in enumerate(classes) if name == twice[0])
        text = f"class {twice[0]!r} is listed twice (numbers {numbers}); give each class a name of its own"
        entries.append(Entry("class twice", None, text))
    if len(palette) != len(classes):
        text = f"there are {len(classes)} classes but {len(palette)} colours in the palette; give one for each class"
        entries.append(Entry("palette", None, text))
    wrong = [c for c in palette if len(c) != 3 or not all(0 <= int(level) <= 255 for level in c)]
    if wrong:
        entries.append(
            Entry(
                "palette",
                None,
                f"the palette holds {wrong[0]}, which is no colour; each class takes three numbers 0..255",
            )
        )
    return entries


def _check_sizes(pair: Pair, source: Source) -> None:
    image, labels = picture_size(pair.image), source.label_size(pair)
    try:
        require_same_size(pair, image, labels)
    except ValueError as error:
        raise ValueError(f"{error}{guess_sizes(image, labels)}") from None


def _usable_classes(pair: Pair, source: Source) -> set[int] | str:
    """Return the classes of a pair, or why it cannot be used."""
    try:
        _, labels = read_pair(pair, source)
    except ValueError as error:
        return str(error)
    return set(np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist())


def _guessed(pairs: Sequence[Pair], source: Source) -> str:
    """Return a guess about the pairs whose labels are at fault, or nothing."""
    faulty = []
    for pair in pairs:
        try:
            source.labels(pair)
        except ValueError:
            faulty.append(pair.label)
    text = guess(look_at_all(faulty), source)
    return f". Guess: {text}" if text else ""


def _warn_of_one_class(classes: Sequence[set[int]], pairs: Sequence[Pair], source: Source) -> None:
    occurring = set().union(*classes) - {IGNORE}
    if not classes or len(occurring) > 1 or len(source.classes) == 1:
        return
    what = f"every labelled pixel is {source.classes[occurring.pop()]}" if occurring else "no pixel is labelled"
    text = guess(look_at_all(pair.label for pair in pairs), source)
    about = f"in the {len(pairs)} pairs looked at, like {pairs[0].label}, {what}"
    warnings.warn(f"{about}. {f'Guess: {text}' if text else 'Look at all of them with deeplab check'}", stacklevel=3)


def _without(pairs: Sequence[Pair], unusable: Sequence[int]) -> list[Pair]:
    left_out = set(unusable)
    return [pair for i, pair in enumerate(pairs) if i not in left_out]


def _fresh_folder(folder: Path) -> Path:
    """Make the folder, and find out before any reading whether it can be written."""
    if (folder / REPORT).exists():
        raise FileExistsError(f"output={folder} holds a report already; choose another folder: output=DIR")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TEXT).touch()
        (folder / TEXT).unlink()
    except OSError as error:
        raise OSError(f"output={folder} cannot be written ({error.strerror}); choose another: output=DIR") from None
    return folder
