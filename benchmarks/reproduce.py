"""What does a recipe reach over several seeds? Runs the real command for each, and compares with what was published.

    python benchmarks/reproduce.py quickstart --seeds 17,18,19
    python benchmarks/reproduce.py camvid_mobilenet_v2 --write -- data.root=DIR model.backbone_weights=FILE
    python benchmarks/reproduce.py ade20k_composer --read RUN_DIR RUN_DIR RUN_DIR      runs that are finished already

Each seed has its run directory under --runs: one that is finished is read, one that was stopped goes on. Arguments
after `--` go to every command. `--write` puts the numbers into the recipe's row of recipes/README.md and the printed
table into benchmarks/results/; a shorter schedule or other settings stand in the row beside the recipe's own number.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from deeplab_recipes import config

REPOSITORY = Path(__file__).resolve().parents[1]
TABLE = REPOSITORY / "recipes" / "README.md"
RESULTS = REPOSITORY / "benchmarks" / "results"
SEEDS = "17,18,19"
CONFIDENCE = 0.95
COLUMN = "reproduced"  # of the table
OWN = ("seed", "run_dir", "resume")  # settings that this script gives each command
LENGTHS = {"trainer.max_epochs": "epochs", "trainer.max_steps": "steps"}
# Neutral elsewhere, but what is found in a run directory has to have been asked for, and a best of many evaluations is
# higher than a best of few.
ASKED = ("data.root", "trainer.precision", "trainer.evaluate_every")
SAME = ("batch_size", "bn_batch", "world_size", "steps", "precision")  # of result.json, over all seeds
VERSIONS = ("python", "torch", "torchvision", "onedl-mmsegmentation", "pytorch-lightning")
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A finished run: where it lies, its result.json and its config.yaml."""

    folder: Path
    result: Settings
    settings: Settings

    def evaluation(self, checkpoint: str) -> Settings:
        """Return that of the "last" or the "best" weights."""
        return next(e for e in self.result["evaluations"] if e["checkpoint"] == checkpoint)

    def commit(self) -> str:
        """Return ten digits, and + where files were changed since."""
        commit = self.result["commit"]
        return f"{commit[:10]}{'+' if self.result['dirty'] else ''}" if commit else "unknown"


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation and half the confidence interval of the mean; one value has the first only."""

    count: int
    mean: float
    deviation: float | None
    margin: float | None


def summarise(values: Sequence[float]) -> Summary:
    """Sum up a number of independent runs; the interval is Student's."""
    from scipy.stats import t  # mmsegmentation brings it

    count, mean = len(values), statistics.fmean(values)
    if count == 1:
        return Summary(count, mean, None, None)
    deviation = statistics.stdev(values)
    return Summary(count, mean, deviation, float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * deviation / count**0.5)


# Running and reading.


def composed(recipe: str, overrides: Sequence[str] = ()) -> Settings:
    """Return the settings of the command with these overrides.

    Raises:
        ValueError: if there is no such recipe, or no such setting.
    """
    folder = config.yamls_folder()
    recipes = sorted(path.stem for path in (folder / "recipe").glob("*.yaml"))
    if recipe not in recipes:
        raise ValueError(f"there is no recipe {recipe!r}; {config.suggestion(recipe, recipes)}")
    with initialize_config_dir(str(folder), version_base="1.3"):
        try:
            settings = compose("train", [f"+recipe={recipe}", *overrides])
        except HydraException as error:
            raise ValueError(str(error).splitlines()[0]) from None
    return OmegaConf.to_container(settings, resolve=True)


def run_seed(recipe: str, seed: int, folder: Path, overrides: Sequence[str]) -> Run:
    """Run, go on with, or merely read one seed.

    Raises:
        ValueError: if the run directory holds other settings, or the command fails.
    """
    command = ["train.py", f"+recipe={recipe}", *overrides, f"seed={seed}", f"run_dir={folder}", "resume=auto"]
    require_asked(folder, composed(recipe, [*overrides, f"seed={seed}"]))
    if status(folder) != "finished":
        print("$ python", " ".join(command), file=sys.stderr, flush=True)
        code = subprocess.run([sys.executable, *command], cwd=REPOSITORY).returncode
        if code:
            raise ValueError(f"seed {seed}: the command ended with status {code}; what it said is above")
    return read_run(folder)


def require_asked(folder: Path, asked: Settings) -> None:
    """Raise ValueError if `folder` holds a run with other settings."""
    path = folder / "config.yaml"
    if not path.exists():
        return
    changes = differences(asked, yaml.safe_load(path.read_text()), also=(*ASKED, "seed"))
    if changes:
        raise ValueError(f"{folder} holds a run with other settings ({listed(changes)}): choose another --runs")


def read_result(folder: Path) -> Settings | None:
    """Read a run's record, or return None where there is none.

    Raises:
        ValueError: if the file cannot be read.
    """
    path = folder / "result.json"
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be read ({error}): it was cut or edited; take the run out, or train it anew"
        ) from None


def status(folder: Path) -> str | None:
    result = read_result(folder)
    return result["status"] if result is not None else None


def read_run(folder: Path) -> Run:
    """Read a finished run.

    Raises:
        ValueError: if there is none.
    """
    found = status(folder)
    if found is None:
        raise ValueError(f"{folder} holds no run: there is no result.json in it")
    if found != "finished":
        raise ValueError(f"the run in {folder} has not finished ({found}): go on with it by resume=auto")
    return Run(folder, read_result(folder), yaml.safe_load((folder / "config.yaml").read_text()))


def differences(one: Settings, other: Settings, also: Sequence[str] = ()) -> dict[str, tuple[Any, Any]]:
    """Return the settings that change what a run is, and those in `also`: name -> (the one's, the other's)."""
    changes = {key: pair for key, pair in config.differences(one, other).items() if key not in OWN}
    first, second = config.leaves(one), config.leaves(other)
    return changes | {key: (first.get(key), second.get(key)) for key in also if first.get(key) != second.get(key)}


def listed(changes: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{key}: {now} there, {then} here" for key, (then, now) in changes.items())


# What may be put together.


def require_comparable(recipe: str, runs: Sequence[Run]) -> None:
    """Look whether a mean over these runs means something.

    Raises:
        ValueError: names the first run that does not belong, and why.
    """
    seen: dict[int, Path] = {}
    for run in runs:
        if run.result["recipe"] != recipe:
            raise ValueError(f"{run.folder} is a run of {run.result['recipe']}, not of {recipe}")
        if (seed := run.result["seed"]) in seen:
            raise ValueError(f"{run.folder} and {seen[seed]} have the same seed ({seed}): they are no two samples")
        seen[seed] = run.folder
        require_like(runs[0], run)
        require_protocol(run)


def require_like(first: Run, run: Run) -> None:
    """Raise ValueError where two runs differ in more than the seed."""
    changes = differences(run.settings, first.settings, also=("trainer.evaluate_every",))
    changes |= {key: (run.result[key], first.result[key]) for key in SAME if run.result[key] != first.result[key]}
    found = [r.evaluation("last")["protocol"] for r in (run, first)]
    if found[0] != found[1]:
        changes["protocol"] = (found[0], found[1])
    if run.result["data"]["fingerprint"] != first.result["data"]["fingerprint"]:
        changes["data"] = ("another set", "one")
    if changes:
        raise ValueError(
            f"{run.folder} and {first.folder} differ in more than the seed: "
            + ", ".join(f"{key} is {here} and {there}" for key, (here, there) in changes.items())
        )


def require_protocol(run: Run) -> None:
    """Raise ValueError where the published number has another protocol."""
    found, published = run.evaluation("last")["protocol"], (run.result["published"] or {}).get("protocol")
    if published not in (None, found):
        raise ValueError(
            f"{run.folder} was evaluated by the protocol {found}, the published number by {published}: they are not "
            f"comparable; evaluate with protocol={published}"
        )


# The table that is printed.


def report(recipe: str, runs: Sequence[Run]) -> str:
    """Return the numbers over all seeds, and what they can be held against."""
    runs = sorted(runs, key=lambda run: run.result["seed"])
    protocol = runs[0].evaluation("last")["protocol"]
    seeds = ", ".join(str(run.result["seed"]) for run in runs)
    return "\n".join(
        [
            heading(runs),
            "",
            f"`{command(recipe, runs[0])}`, N = {seeds}",
            "",
            f"| seed | mIoU of the last weights ({protocol}, validation) | mIoU of the best | steps | minutes | "
            "images/s | precision | commit |",
            "|---|---|---|---|---|---|---|---|",
            *(seed_row(run) for run in runs),
            *summary_rows(runs),
            "",
            *commit_lines(runs),
            published_line(runs[0]),
            *deviation_lines(runs),
        ]
    )


def command(recipe: str, run: Run) -> str:
    """Return what such a run is made with, after its settings."""
    groups = swapped_groups(recipe, run.settings)
    base = composed(recipe, groups)
    changes, known = differences(base, run.settings, also=ASKED), config.leaves(base)
    words = [("" if key in known else "+") + assignment(key, now) for key, (_, now) in changes.items()]
    return " ".join(["python train.py", f"+recipe={recipe}", *groups, *words, "seed=N"])


def swapped_groups(recipe: str, settings: Settings) -> list[str]:
    """Return the choices, as schedule=cosine, where a section is built by something else than the recipe's."""
    targets = [key for key in differences(composed(recipe), settings) if key.endswith("._target_")]
    sections = dict.fromkeys(key.split(".")[0] for key in targets)
    return [closest_choice(recipe, section, settings) for section in sections if choices(section)]


def closest_choice(recipe: str, section: str, settings: Settings) -> str:
    """Return the group's choice from which the fewest settings differ."""

    def distance(choice: str) -> int:
        return len(differences({section: composed(recipe, [choice])[section]}, {section: settings[section]}))

    return min((f"{section}={name}" for name in choices(section)), key=distance)


def choices(section: str) -> list[str]:
    return sorted(path.stem for path in (config.yamls_folder() / section).glob("*.yaml"))


def assignment(key: str, value: Any) -> str:
    shown = {"None": "null", "True": "true", "False": "false"}.get(str(value), value)
    return without_folders(f"{key}={shown}").replace(" ", "")


def heading(runs: Sequence[Run]) -> str:
    hardware = " and ".join(sorted({run.result["hardware"] for run in runs}))
    found = [(name, sorted({run.result["versions"].get(name, "none") for run in runs})) for name in VERSIONS]
    return ", ".join([str(date.today()), hardware, *(f"{name} {' or '.join(several)}" for name, several in found)])


def seed_row(run: Run) -> str:
    last, best = (run.evaluation(checkpoint)["miou"] for checkpoint in ("last", "best"))
    minutes, rate = run.result["hours"] * 60, run.result["images_per_second"]
    numbers = f"{last:.2f} | {best:.2f} | {run.result['steps']} | {minutes:.1f} | {rate:.1f}"
    return f"| {run.result['seed']} | {numbers} | {run.result['precision']} | {run.commit()} |"


def summary_rows(runs: Sequence[Run]) -> list[str]:
    last, best = (summarise(mious(runs, checkpoint)) for checkpoint in ("last", "best"))
    minutes = summarise([run.result["hours"] * 60 for run in runs]).mean
    rate = summarise([run.result["images_per_second"] for run in runs]).mean
    name = f"mean ± sample standard deviation (n={last.count})" if last.deviation is not None else "mean (n=1)"
    rows = [f"| {name} | {spread(last)} | {spread(best)} | | {minutes:.1f} | {rate:.1f} | | |"]
    if last.margin is not None:
        rows.append(f"| 95 % t-interval of the mean | {interval(last)} | {interval(best)} | | | | | |")
    if published := published_number(runs[0]):
        rows.append(f"| published ({runs[0].result['published']['protocol']}) | {published} | | | | | | |")
    return rows


def published_number(run: Run) -> str:
    """Return "45.764 ± 0.29", or nothing."""
    published = run.result["published"] or {}
    if published.get("miou") is None:
        return ""
    return f"{published['miou']}" + (f" ± {published['miou_std']}" if published["miou_std"] else "")


def mious(runs: Sequence[Run], checkpoint: str) -> list[float]:
    return [run.evaluation(checkpoint)["miou"] for run in runs]


def spread(summary: Summary) -> str:
    return f"{summary.mean:.2f}" + (f" ± {summary.deviation:.2f}" if summary.deviation is not None else "")


def interval(summary: Summary) -> str:
    return f"{summary.mean - summary.margin:.2f} to {summary.mean + summary.margin:.2f}"


def published_line(run: Run) -> str:
    if not published_number(run):
        return "Nothing is published for this recipe."
    published = run.result["published"]
    where = [f"{published[key]}{unit}" for key, unit in (("hardware", ""), ("hours", " h")) if published[key]]
    return f"Published: {', '.join([published['source'], *where])}."


def commit_lines(runs: Sequence[Run]) -> list[str]:
    """Say so where not all was trained by the same program; a resumed run may itself be of several commits."""
    earlier = [
        s["until_then"]["commit"] for r in runs for s in r.result.get("resumed", ()) if "commit" in s["until_then"]
    ]
    if len({run.commit() for run in runs} | {commit[:10] if commit else "unknown" for commit in earlier}) == 1:
        return []
    resumed = f", and were resumed from {', '.join(sorted({str(c)[:10] for c in earlier}))}" if earlier else ""
    return [f"The runs are of different commits{resumed}.", ""]


def deviation_lines(runs: Sequence[Run]) -> list[str]:
    reference = "the published setting" if runs[0].result["published"] else "the recipe"
    found = list(dict.fromkeys(d for run in runs for d in run.result["deviations"] if not d.startswith("seed:")))
    if not found:
        return [f"Nothing differs from {reference} (but for the seed)."]
    return [f"Differs from {reference} (beside the seed) in", "", *(f"- {without_folders(d)}" for d in found)]


def without_folders(text: str) -> str:
    """Leave the name of absolute paths: folders say where, not what."""
    return re.sub(r"(^|(?<=[\s=]))/\S*/", "", text)


# The row of recipes/README.md.


def qualifiers(recipe: Settings, run: Settings, published_command: str) -> list[str]:
    """Return in what settings, beyond those that the row's command asks for, a run is not the recipe's."""
    changes = differences(recipe, run)
    words = [length(key, config.leaves(recipe), now) for key, (_, now) in changes.items() if key in LENGTHS]
    for key, (_, now) in changes.items():
        follows = key == "schedule.steps" and now == run["trainer"]["max_steps"]
        if key not in LENGTHS and not follows and f" {key}=" not in published_command:
            words.append(assignment(key, now))
    return [word for word in words if word]


def length(key: str, recipe: Settings, now: Any) -> str:
    """Return "8 of 22 epochs", or what else the schedule was changed to; nothing where a limit was lifted."""
    if now in (None, -1):
        return ""
    then, unit = recipe[key], LENGTHS[key]
    if then in (None, -1):
        key = next(other for other in LENGTHS if other != key)
        return f"{now} {unit} in place of {recipe[key]} {LENGTHS[key]}"
    return f"{now} of {then} {unit}" if now < then else f"{now} {unit} in place of {then}"


def entry(runs: Sequence[Run], words: Sequence[str], link: str) -> str:
    """Return what the row is to say of these runs."""
    seeds = f"{len(runs)} seeds" if len(runs) > 1 else f"seed {runs[0].result['seed']}"
    return f"[{spread(summarise(mious(runs, 'last')))}]({link}) ({', '.join([seeds, *words])})"


def merged(cell: str, new: str) -> str:
    """Put an entry in the place of the one with the same qualifiers, or behind all; the recipe's own stays first."""
    parts = [part for part in cell.split("; ") if part]
    places = [i for i, part in enumerate(parts) if entry_qualifiers(part) == entry_qualifiers(new)]
    if places:
        parts[places[0]] = new
    elif entry_qualifiers(new):
        parts.append(new)
    else:
        parts.insert(0, new)
    return "; ".join(parts)


def entry_qualifiers(part: str) -> list[str]:
    """Return what follows the seeds in the closing parenthesis."""
    closing = re.search(r"\(([^()]*)\)$", part)
    return closing[1].split(", ")[1:] if closing else []


def row_of(text: str, recipe: str) -> tuple[int, int, list[str]]:
    """Find a recipe's row: its line, the number of the column, and its cells.

    Raises:
        ValueError: if the table has no such row or column.
    """
    lines = text.splitlines()
    heads = [[cell.strip() for cell in line.split("|")] for line in lines if line.startswith("| recipe |")]
    if not heads or COLUMN not in heads[0]:
        raise ValueError(f"the table has no column {COLUMN!r}")
    for number, line in enumerate(lines):
        if line.startswith(f"| [{recipe}]("):
            return number, heads[0].index(COLUMN), line.split("|")
    raise ValueError(f"the table has no row for {recipe}: add one that begins with | [{recipe}]({recipe}.md) |")


def with_row(text: str, recipe: str, change: Callable[[str], str]) -> str:
    """Return the table with the row's cell changed and all else as it was."""
    number, column, cells = row_of(text, recipe)
    lines = text.splitlines(keepends=True)
    cells[column] = f" {change(cells[column].strip())} "
    end = lines[number][len(lines[number].rstrip("\r\n")) :]
    lines[number] = "|".join(cells) + end
    return "".join(lines)


def write(recipe: str, runs: Sequence[Run], text: str, *, table: Path = TABLE, results: Path = RESULTS) -> Path:
    """Write the results file and the row that leads to it; returns the file."""
    before = table.read_text()
    words = qualifiers(composed(recipe), runs[0].settings, row_of(before, recipe)[2][-2])
    # Runs with other settings or seeds have a file of their own: the row may lead to both.
    taken = sorted(run.result["seed"] for run in runs)
    others = [] if taken == seeds(SEEDS) else [f"seed{'s' * (len(taken) > 1)}", *map(str, taken)]
    name = re.sub(r"\W+", "_", "_".join([f"reproduce_{recipe}", *words, *others])).strip("_")
    file = results / f"{date.today()}_{name}.md"
    new = entry(runs, words, f"../benchmarks/results/{file.name}")
    table.write_text(with_row(before, recipe, lambda cell: merged(cell, new)))
    file.write_text(f"# {recipe} over seeds\n\n{text}\n\nPrinted by `python benchmarks/reproduce.py {recipe}`.\n")
    return file


# The command line.


def parse(given: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", metavar="RECIPE")
    parser.add_argument("--seeds", default=SEEDS)
    parser.add_argument("--read", nargs="+", type=Path, default=[], metavar="RUN_DIR")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="default: runs/reproduce/RECIPE")
    parser.add_argument("--write", action="store_true")
    split = list(given).index("--") if "--" in given else len(given)
    return parser.parse_args(given[:split]), list(given[split + 1 :])


def seeds(text: str) -> list[int]:
    """Read 17,18,19.

    Raises:
        ValueError: if it is no list of different whole numbers.
    """
    words = text.split(",")
    found = {int(word): None for word in words if word.isdecimal()}
    if len(found) < len(words):
        raise ValueError(f"--seeds is {text!r}; it takes different whole numbers, like {SEEDS}")
    return list(found)


def require_overrides(overrides: Sequence[str], *, reading: bool) -> None:
    """Raise ValueError for overrides that have no place here."""
    if reading and overrides:
        raise ValueError("--read takes runs as they are: leave the settings after -- out")
    for override in overrides:
        if override.startswith("-") or override.partition("=")[0].lstrip("+~") in (*OWN, "recipe"):
            raise ValueError(f"{override} cannot be given here: the script sets recipe, {', '.join(OWN)} itself")


def reproduce(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    recipe = arguments.recipe
    composed(recipe)
    require_overrides(overrides, reading=bool(arguments.read))
    if arguments.write:
        row_of(TABLE.read_text(), recipe)  # now, not after the last hour
    folder = (arguments.runs or REPOSITORY / "runs" / "reproduce" / recipe).resolve()
    runs = [read_run(path) for path in arguments.read] or [
        run_seed(recipe, seed, folder / f"seed_{seed}", overrides) for seed in seeds(arguments.seeds)
    ]
    require_comparable(recipe, runs)
    text = report(recipe, runs)
    print(text)
    if arguments.write:
        print(
            f"wrote {write(recipe, runs, text).relative_to(REPOSITORY)} and the row in {TABLE.relative_to(REPOSITORY)}"
        )


def main() -> None:
    try:
        reproduce(*parse(sys.argv[1:]))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
