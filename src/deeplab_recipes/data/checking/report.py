"""What an inspection found, as problems and remarks, in words and as plain containers for JSON."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from deeplab_recipes.data.checking.guesses import guess, guess_numbering, look_at_all
from deeplab_recipes.data.checking.inspection import Inspection, Tally, Twins
from deeplab_recipes.data.files import guess_names, shown
from deeplab_recipes.data.labels import IGNORE
from deeplab_recipes.data.sources.base import Pair, Source, UnpairedError

NAMED = 5  # files that the text names of each entry; the JSON names all
LONGEST = 600  # characters of a line about a file
LISTED = 20  # classes that a sentence names
STOPPING = {
    "unreadable": "{n} cannot be read",
    "labels": "{n} with labels that do not fit the {classes} classes",
    "size": "{n} whose image and labels differ in size",
}
HARMLESS = {
    "damaged": "{n} with damaged places that decoders pass over",
    "empty": "{n} without any labelled pixel",
    "turned": "{n} with an EXIF orientation, which training does not apply: labels have to lie as the image is stored",
    "mode L": "{n} grey: training uses three equal channels",
    "mode CMYK": "{n} in CMYK: training converts it to RGB; look at the colours on the contact sheet",
    "mode RGBA": "{n} in RGBA: training drops the alpha channel, whatever colours lie under it",
}
OTHER_MODE = "{n} in Pillow's mode {mode}: training converts it to RGB"
MOSTLY_IGNORED = 0.5


@dataclass(frozen=True)
class Entry:
    """A problem or a remark.

    Args:
        kind: one word or two, for programs.
        part: "train", "validation" or None for both.
        text: what it is, in a sentence without a full stop.
        guess: what may have gone wrong.
        files: (file, what is wrong with it) for all files concerned.
    """

    kind: str
    part: str | None
    text: str
    guess: str | None = None
    files: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Report:
    """All there is to say about a data set.

    Args:
        source: the data set.
        where: its folder.
        parts: a tally for each part.
        problems: what training would stop at or learn wrongly.
        remarks: what it would not.
        seconds: that reading took.
    """

    source: Source
    where: str
    parts: Mapping[str, Tally]
    problems: Sequence[Entry]
    remarks: Sequence[Entry]
    seconds: float


def judge(
    inspection: Inspection,
    source: Source,
    pairs: Mapping[str, Sequence[Pair]],
    *,
    skip: bool = False,
) -> tuple[list[Entry], list[Entry]]:
    """Sort what was found into problems and remarks.

    Args:
        inspection: of `pairs`.
        source: the data set.
        pairs: by part.
        skip: whether training leaves out what it cannot use (data.on_corrupt=skip).
    """
    problems, remarks = [], []
    for part, tally in inspection.parts.items():
        stopping = list(_findings(part, tally, STOPPING, source))
        if skip and len(tally.unusable) < tally.pairs:
            remarks += [
                replace(entry, text=f"{entry.text}: data.on_corrupt=skip leaves them out") for entry in stopping
            ]
        else:
            problems += stopping
        problems += _one_class(part, tally, source, pairs[part])
        remarks += _findings(part, tally, HARMLESS | _modes(tally), source)
        remarks += _mostly_ignored(part, tally)
    problems += _across(inspection.twins, pairs)
    remarks += _within(inspection.twins, pairs)
    remarks += _absent(inspection.parts, source)
    return problems, remarks


def unpaired(part: str, error: UnpairedError) -> list[Entry]:
    """Return an entry for images without labels, and one for labels without images."""
    entries = []
    for files, what, partner in ((error.images, "image", "label"), (error.labels, "label", "image")):
        if files:
            listed = tuple((str(file), f"{file} has no {partner}") for file in files)
            text = f"{_count(len(files), what)} without {'an' if partner == 'image' else 'a'} {partner}"
            entries.append(Entry(f"no {partner}", part, text, guess_names(error.images, error.labels), listed))
    return entries


def as_text(report: Report) -> str:
    """Return the report for a reader; the verdict stands last."""
    name = type(report.source).__name__
    count = sum(tally.pairs for tally in report.parts.values())
    rate = f"{count} pairs read in {report.seconds:.1f} s ({count / max(report.seconds, 1e-9):.0f} a second)"
    blocks = [f"{name} in {shown(report.where)}: {len(report.source.classes)} classes, {rate}"]
    blocks += [_parts_table(report.parts), _class_table(report.parts, report.source)] if count else []
    blocks += [_entries("remark", report.remarks), _entries("problem", report.problems)]
    blocks.append(_verdict(report))
    return "\n\n".join(block for block in blocks if block)


def as_containers(report: Report) -> dict[str, Any]:
    """Return the report as what JSON holds."""
    return {
        "source": type(report.source).__name__,
        "root": report.where,
        "sound": not report.problems,
        "classes": list(report.source.classes),
        "palette": [list(map(int, colour)) for colour in report.source.palette],
        "seconds": round(report.seconds, 3),
        "parts": {part: _tally_containers(tally, report.source) for part, tally in report.parts.items()},
        "problems": [_entry_containers(entry) for entry in report.problems],
        "remarks": [_entry_containers(entry) for entry in report.remarks],
    }


def _findings(part: str, tally: Tally, titles: Mapping[str, str], source: Source) -> Iterable[Entry]:
    for kind, title in titles.items():
        found = [finding for finding in tally.findings if finding.kind == kind]
        if found:
            text = title.format(n=_count(len(found), _what(kind)), classes=len(source.classes))
            cause = guess(tally.stored, source) if kind == "labels" else None
            yield Entry(kind, part, text, cause, tuple((f.file, f.message) for f in found))


def _what(kind: str) -> str:
    return {"unreadable": "file", "size": "pair", "labels": "pair", "empty": "pair"}.get(kind, "image")


def _modes(tally: Tally) -> dict[str, str]:
    """Return titles for modes that have none of their own."""
    modes = sorted({f.kind for f in tally.findings if f.kind.startswith("mode ")} - HARMLESS.keys())
    return {kind: OTHER_MODE.replace("{mode}", kind.removeprefix("mode ")) for kind in modes}


def _one_class(part: str, tally: Tally, source: Source, pairs: Sequence[Pair]) -> Iterable[Entry]:
    """A single class, or none, in a whole part: nothing can be learned, or measured."""
    usable = tally.pairs - len(tally.unusable)
    occurs = np.flatnonzero(tally.pixels[: len(source.classes)])
    if usable == 0 or len(occurs) > 1 or (len(occurs) == 1 and len(source.classes) == 1):
        return
    stored = look_at_all(pair.label for pair in pairs[:: max(1, len(pairs) // 16)])
    what = f"every labelled pixel is {source.classes[occurs[0]]}" if len(occurs) else "no pixel is labelled"
    values = ", ".join(map(str, np.flatnonzero(stored.values)[:8]))
    cause = guess(stored, source) or (f"the pictures hold {values}" if values else None)
    yield Entry("one class", part, f"{what}, in all of {_count(usable, 'pair')}", cause)


def _mostly_ignored(part: str, tally: Tally) -> Iterable[Entry]:
    share = _ignored_share(tally)
    if share > MOSTLY_IGNORED:
        yield Entry("mostly ignored", part, f"{share:.1%} of all pixels are not labelled, and so are ignored")


def _across(twins: Sequence[Twins], pairs: Mapping[str, Sequence[Pair]]) -> list[Entry]:
    both = [twin for twin in twins if len({part for part, _ in twin.places}) > 1]
    if not both:
        return []
    text = (
        f"{_count(len(both), 'image')} in both train and validation (the same decoded pixels): mIoU would be too high"
    )
    return [Entry("in both parts", None, text, None, tuple(_twin_lines(both, pairs)))]


def _within(twins: Sequence[Twins], pairs: Mapping[str, Sequence[Pair]]) -> list[Entry]:
    entries = []
    for part in pairs:
        twice = [twin for twin in twins if sum(p == part for p, _ in twin.places) > 1]
        if twice:
            differ = sum(not twin.same_labels for twin in twice)
            note = f", {differ} of them with different labels" if differ else ""
            text = f"{_count(len(twice), 'image')} there more than once (the same decoded pixels){note}"
            entries.append(Entry("twice", part, text, None, tuple(_twin_lines(twice, pairs))))
    return entries


def _twin_lines(twins: Sequence[Twins], pairs: Mapping[str, Sequence[Pair]]) -> Iterable[tuple[str, str]]:
    for twin in twins:
        files = [str(pairs[part][index].image) for part, index in twin.places]
        note = "" if twin.same_labels else "different labels: "
        yield files[0], note + " = ".join(files)


def _absent(parts: Mapping[str, Tally], source: Source) -> list[Entry]:
    """Classes that never occur, and what that may mean."""
    count = len(source.classes)
    occurs = {part: tally.pixels[:count] > 0 for part, tally in parts.items() if tally.pixels.any()}
    if not occurs:
        return []
    entries = []
    never = ~np.any(list(occurs.values()), axis=0)
    if never.any():
        cause = guess_numbering(~never, source)
        text = f"{_classes(never)} nowhere: {_names(never, source)}"
        entries.append(Entry("absent classes", None, text, cause))
    if "train" in occurs and "validation" in occurs and (missing := occurs["validation"] & ~occurs["train"]).any():
        text = f"{_classes(missing)} in validation but not in train: {_names(missing, source)}"
        entries.append(Entry("untrained classes", None, text))
    return entries


def _classes(chosen: np.ndarray) -> str:
    count = int(chosen.sum())
    return f"{count} class{'es occur' if count > 1 else ' occurs'}"


def _names(chosen: np.ndarray, source: Source) -> str:
    names = [shown(source.classes[c]) for c in np.flatnonzero(chosen)]
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _ignored_share(tally: Tally) -> float:
    return float(tally.pixels[IGNORE] / max(tally.pixels.sum(), 1))


def _parts_table(parts: Mapping[str, Tally]) -> str:
    rows = [("part", "pairs", "usable", "not labelled", "smallest", "largest (width x height)")]
    for part, tally in parts.items():
        sizes = sorted(tally.sizes, key=lambda size: size[0] * size[1])
        ends = [f"{size[1]} x {size[0]}" for size in (sizes[:1] + sizes[-1:])] or ["-", "-"]
        usable = tally.pairs - len(tally.unusable)
        rows.append((part, f"{tally.pairs:,}", f"{usable:,}", f"{_ignored_share(tally):.1%}", *ends))
    return _aligned(rows, left=(0, 4, 5))


def _class_table(parts: Mapping[str, Tally], source: Source) -> str:
    """Return a row for each class: its share of the labelled pixels, and its images, in each part."""
    columns = [cell for part in parts for cell in (f"{part}: pixels", "share", "images")]
    rows = [("class", *columns)]
    labelled = {part: max(tally.pixels[: len(source.classes)].sum(), 1) for part, tally in parts.items()}
    for number, name in enumerate(source.classes):
        cells = [f"{number:>3} {shown(name)}"]
        for part, tally in parts.items():
            pixels, images = tally.pixels[number], tally.images[number]
            share = f"{pixels / labelled[part]:.2%}" if pixels else "never"
            cells += [f"{pixels:,}", share, f"{images:,}"]
        rows.append(tuple(cells))
    return _aligned(rows, left=(0,))


def _aligned(rows: Sequence[Sequence[str]], *, left: Sequence[int]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _entries(what: str, entries: Sequence[Entry]) -> str:
    lines = []
    for entry in entries:
        part = f"{entry.part}: " if entry.part else ""
        lines.append(f"{what}: {part}{shown(entry.text)}")
        lines += [f"    guess: {shown(entry.guess)}"] if entry.guess else []
        lines += [f"    {_cut(shown(message))}" for _, message in entry.files[:NAMED]]
        more = len(entry.files) - NAMED
        lines += [f"    and {more:,} more (report.json names them all)"] if more > 0 else []
    return "\n".join(lines)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def _verdict(report: Report) -> str:
    remarks = _count(len(report.remarks), "remark")
    if report.problems:
        problems = _count(len(report.problems), "problem")
        return f"{problems}, {remarks}: training would stop at or learn from what is wrong"
    return f"sound: no problems, {remarks}"


def _tally_containers(tally: Tally, source: Source) -> dict[str, Any]:
    counts = zip(source.classes, tally.pixels.tolist(), tally.images.tolist(), strict=False)
    return {
        "pairs": tally.pairs,
        "usable": tally.pairs - len(tally.unusable),
        "classes": [{"name": name, "pixels": pixels, "images": images} for name, pixels, images in counts],
        "ignored_pixels": int(tally.pixels[IGNORE]),
        "ignored_share": _ignored_share(tally),
        "images_without_labelled_pixels": tally.empty,
        "sizes": {f"{w}x{h}": count for (h, w), count in tally.sizes.most_common()},
    }


def _entry_containers(entry: Entry) -> dict[str, Any]:
    files = [{"file": file, "message": message} for file, message in entry.files]
    return {"kind": entry.kind, "part": entry.part, "text": entry.text, "guess": entry.guess, "files": files}
