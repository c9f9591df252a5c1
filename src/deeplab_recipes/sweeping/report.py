"""What a sweep found: one row a trial, as a table, sweep.csv and sweep.png."""

import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOTE = "trial.json"  # in a trial's folder: number, overrides, run_dir, and error if it failed
OF_THE_SWEEP = ("sweep", "trial", "launcher", "hydra")  # settings that say how to sweep, not what was tried
MOST_LABELS = 8  # beyond these an axis shows the trials' numbers
MOST_TICKS = 4  # up to these an axis names the values themselves
FINISHED, PRUNED, FAILED = "#1f5fa8", "#7a7a7a", "#b3261e"
MEAN = "#d98200"


@dataclass(frozen=True)
class Trial:
    """One row.

    Args:
        number: within the sweep.
        overrides: setting -> value as it was written.
        run_dir: where the run is.
        status: finished, pruned, failed, stopped (by hand) or unfinished (its process is gone).
        last: mIoU of the last evaluation, 0..100, or None.
        best: mIoU of the best.
        hours: of training and evaluation, or None.
        reason: why it failed.
    """

    number: int
    overrides: Mapping[str, str]
    run_dir: str
    status: str
    last: float | None = None
    best: float | None = None
    hours: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class OverSeeds:
    """The trials that differ in their seed only: mean and sample standard deviation of the last mIoU, 0..100."""

    settings: Mapping[str, str]
    seeds: Sequence[str]
    mean: float
    std: float


def read_trials(folder: str | Path) -> list[Trial]:
    """Read the trials of a sweep from their notes and their runs' result.json, in the order of their numbers."""
    return sorted((read_trial(path.parent) for path in Path(folder).rglob(NOTE)), key=lambda trial: trial.number)


def read_trial(folder: Path) -> Trial:
    """Read one trial.

    Raises:
        FileNotFoundError: if none was begun there.
    """
    note = json.loads((folder / NOTE).read_text())
    path = Path(note["run_dir"]) / "result.json"
    # A run that failed before it began has no record; one at the same place is then another run's.
    result = json.loads(path.read_text()) if path.exists() and not note.get("error") else {}
    evaluations = {e["checkpoint"]: e["miou"] for e in result.get("evaluations", ())}
    return Trial(
        number=note["number"],
        overrides=_named(note["overrides"]),
        run_dir=note["run_dir"],
        status=_status(note, result),
        last=evaluations.get("last"),
        best=evaluations.get("best"),
        hours=result.get("hours"),
        reason=note.get("error", ""),
    )


def _named(overrides: Sequence[str]) -> dict[str, str]:
    pairs = (text.lstrip("+").partition("=") for text in overrides)
    return {key: value for key, _, value in pairs if key.split(".")[0] not in OF_THE_SWEEP}


def _status(note: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    if note.get("error"):
        return "failed"
    status = result.get("status", "running")
    return "unfinished" if status == "running" else status.partition(":")[0]


def differing(trials: Sequence[Trial]) -> list[str]:
    """Return the settings whose values are not the same in all trials."""
    keys = dict.fromkeys(key for trial in trials for key in trial.overrides)
    return [key for key in keys if len({trial.overrides.get(key) for trial in trials}) > 1]


def over_seeds(trials: Sequence[Trial]) -> list[OverSeeds]:
    """Return mean and standard deviation where a setting was finished with at least two seeds."""
    keys = [key for key in differing(trials) if key != "seed"]
    groups: dict[tuple[str, ...], list[Trial]] = {}
    for trial in trials:
        if _counts(trial) and "seed" in trial.overrides:
            groups.setdefault(tuple(trial.overrides.get(key, "") for key in keys), []).append(trial)
    rows = []
    for values, group in groups.items():
        seeds = sorted({trial.overrides["seed"] for trial in group}, key=lambda seed: (len(seed), seed))
        if len(seeds) > 1:
            mious = [trial.last for trial in group]
            settings = dict(zip(keys, values, strict=True))
            rows.append(OverSeeds(settings, seeds, statistics.mean(mious), statistics.stdev(mious)))
    return rows


def table(trials: Sequence[Trial]) -> str:
    """Return the trials as text: a row each, means over seeds, the best, and why trials failed."""
    keys = differing(trials)
    rows = [["trial", *keys, "mIoU last", "mIoU best", "hours", "status", "run directory"]]
    for trial in trials:
        values = [_shown(trial.overrides.get(key, "-")) for key in keys]
        numbers = [_number(trial.last, 2), _number(trial.best, 2), _number(trial.hours, 3)]
        rows.append([str(trial.number), *values, *numbers, trial.status, _relative(trial.run_dir)])
    lines = [_columns(rows), *map(_mean_line, over_seeds(trials))]
    finished = [trial for trial in trials if _counts(trial)]
    if len(finished) > 1:
        best = max(finished, key=lambda trial: trial.last)
        lines.append(f"highest last mIoU: {best.last:.2f}, trial {best.number}{_spelled(best.overrides, keys)}")
    lines += [f"trial {trial.number} failed: {trial.reason}" for trial in trials if trial.status == "failed"]
    return "\n".join(lines)


def _counts(trial: Trial) -> bool:
    return trial.status == "finished" and trial.last is not None


def _mean_line(row: OverSeeds) -> str:
    settings = _spelled(row.settings, list(row.settings))
    return f"mean over seeds {', '.join(row.seeds)}{settings}: {row.mean:.2f} ± {row.std:.2f}"


def _spelled(overrides: Mapping[str, str], keys: Sequence[str]) -> str:
    text = " ".join(f"{key}={_shown(overrides[key])}" for key in keys if key in overrides)
    return f" ({text})" if text else ""


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return "\n".join("  ".join(row).rstrip() for row in padded)


def _shown(value: str) -> str:
    """Shorten what a search drew: 0.0374540118 to 0.03745."""
    number = _as_number(value)
    return f"{number:.4g}" if number is not None and "." in value and len(value) > 6 else value


def _as_number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _relative(folder: str) -> str:
    path = Path(folder)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else folder


def write_report(folder: str | Path, trials: Sequence[Trial]) -> None:
    """Write sweep.csv into the sweep's folder, and sweep.png where there are different numbers to show."""
    keys = differing(trials)
    with (Path(folder) / "sweep.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", *keys, "miou_last", "miou_best", "hours", "status", "run_dir", "reason"])
        for t in trials:
            values = [t.overrides.get(key, "") for key in keys]
            writer.writerow([t.number, *values, t.last, t.best, t.hours, t.status, t.run_dir, t.reason])
    if len({trial.last for trial in trials if trial.last is not None}) > 1:
        draw(trials, Path(folder) / "sweep.png")


def draw(trials: Sequence[Trial], path: str | Path) -> None:
    """Draw mIoU by trial, or by value where one numeric setting was swept, with mean and deviation over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained", dpi=120)
    axes = figure.add_subplot()
    places = _places(axes, trials)
    _draw_trials(axes, trials, places)
    _draw_means(axes, trials, places)
    axes.set_ylabel("mIoU of the last evaluation")
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        figure.legend(loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path)


def _places(axes: "Axes", trials: Sequence[Trial]) -> dict[int, float]:
    """Lay out the horizontal axis; returns trial number -> place on it."""
    keys = [key for key in differing(trials) if key != "seed"]
    numbers = [_as_number(trial.overrides.get(keys[0], "")) for trial in trials] if len(keys) == 1 else [None]
    if None not in numbers:
        axes.set_xlabel(keys[0])
        _scale(axes, sorted(set(numbers)))
        return {trial.number: number for trial, number in zip(trials, numbers, strict=True)}
    shown = keys or differing(trials)
    labels = {trial.number: "\n".join(_shown(trial.overrides.get(key, "-")) for key in shown) for trial in trials}
    if len(set(labels.values())) > MOST_LABELS or not shown:
        labels, shown = {number: str(number) for number in labels}, ["trial"]
    ticks = {label: place for place, label in enumerate(dict.fromkeys(labels.values()))}
    axes.set_xticks(list(ticks.values()), list(ticks))
    axes.set_xlim(-0.5, len(ticks) - 0.5)
    axes.set_xlabel(", ".join(shown))
    return {number: ticks[label] for number, label in labels.items()}


def _scale(axes: "Axes", values: Sequence[float]) -> None:
    """Make room for values, in order, on a logarithmic axis where they have logarithms."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = values[0], values[-1]
    if low > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1000 else (1,)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        margin = (high / low) ** 0.06
        axes.set_xlim(low / margin, high * margin)
    else:
        margin = 0.06 * (high - low)
        axes.set_xlim(low - margin, high + margin)
    if len(values) <= MOST_TICKS:
        axes.set_xticks(values, [f"{value:.4g}" for value in values])


def _draw_trials(axes: "Axes", trials: Sequence[Trial], places: Mapping[int, float]) -> None:
    for status, colour, face in (("finished", FINISHED, FINISHED), ("pruned", PRUNED, "none")):
        points = [(places[t.number], t.last) for t in trials if t.status == status and t.last is not None]
        if points:
            places_and_mious = zip(*points, strict=True)
            axes.scatter(*places_and_mious, edgecolors=colour, facecolors=face, label=status, zorder=3, alpha=0.7)
    lost = [places[t.number] for t in trials if t.status == "failed"]
    if lost:  # they have no mIoU: on the lower edge
        edge = axes.get_xaxis_transform()
        axes.scatter(lost, [0.02] * len(lost), color=FAILED, marker="x", label="failed", transform=edge, clip_on=False)


def _draw_means(axes: "Axes", trials: Sequence[Trial], places: Mapping[int, float]) -> None:
    label = "mean ± standard deviation over seeds"
    for row in over_seeds(trials):
        if not row.settings:  # seeds alone differ, and each has a place of its own
            axes.axhline(row.mean, color=MEAN, label=f"{row.mean:.2f} ± {row.std:.2f}")
            axes.axhspan(row.mean - row.std, row.mean + row.std, color=MEAN, alpha=0.15)
            continue
        same = (t for t in trials if all(t.overrides.get(k, "") == v for k, v in row.settings.items()))
        place = places[next(same).number]
        axes.errorbar(place, row.mean, row.std, color=MEAN, marker="D", capsize=6, label=label, zorder=4)
        label = None
