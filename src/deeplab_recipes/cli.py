"""deeplab VERB key=value ...: every verb is a Hydra app over yamls/.

Nothing heavy is imported before the settings are composed, so that --help and --cfg answer at once.
"""

import gc
import os
import re
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf

from deeplab_recipes import config
from deeplab_recipes.notices import ending_on_notice, rank

# MisconfigurationException is Lightning's, OutOfMemoryError torch's; by name, since neither is imported here.
ERRORS = (ValueError, OSError, FloatingPointError, ImportError)
ERROR_NAMES = ("MisconfigurationException", "OutOfMemoryError")
# What torch.distributed says when another process is gone.
PEER_LOST = re.compile("Connection (closed|reset) by peer|remote process exited|communicator was aborted")
# What torch says of a loader process that the system ended; one that crashed is a defect.
WORKER_LOST = re.compile(
    r"DataLoader worker \(pid.*\) (exited unexpectedly(?! with)|is killed by signal: (Killed|Bus error))"
)
RUN_DIR = "DEEPLAB_RUN_DIR"  # how the first process of a node tells the others where the run goes
MULTIRUN = ("-m", "--multirun")
SWEEPS: list[Path] = []  # the folder of the sweep that this command began, if any: see `SweepReport`


def main(verb: str | None = None) -> None:
    """Run a verb: the command line's first word, or `verb` for a script that is one."""
    named = verb is None
    if verb is None:
        if len(sys.argv) < 2 or sys.argv[1] not in VERBS:
            sys.exit(_usage(sys.argv[1:2]))
        verb = sys.argv[1]
    # Before anything keeps the arguments: the other ranks are started with what the file says, not with its name.
    sys.argv[1 + named :] = _expand(verb, sys.argv[1 + named :])
    command = list(sys.argv)
    del sys.argv[1 : 1 + named]
    with ending_on_notice() if verb == "train" else nullcontext():
        _run(verb, command)


def _run(verb: str, command: list[str]) -> None:
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in MULTIRUN)  # Hydra takes -m at the start only
    folder = str(config.yamls_folder())
    _refuse_typos(folder, verb, sys.argv[1:])

    import hydra

    def task(settings: DictConfig) -> Any:
        sys.argv[:] = command  # with its verb: Lightning starts the other ranks from it
        action = VERBS[verb][0]
        return report_errors(lambda: _trial(settings) if verb == "train" and _sweeping() else action(settings))

    SWEEPS.clear()
    failed = 0
    try:
        hydra.main(version_base="1.3", config_path=folder, config_name=verb)(task)()
    finally:  # a sweep that was stopped has rows too
        failed = _report_sweep()
    if failed:
        sys.exit(1)


def train(settings: DictConfig) -> float:
    """Train a recipe, evaluate it and leave a run directory; returns the last mean IoU, for sweeps."""
    values = _plain(settings)
    values.pop("sweep", None)
    values["run_dir"] = _run_dir(values)
    overrides = config.differences(_recipe_alone(), values)
    from deeplab_recipes.training import train as train_run

    run = config.assemble(values, overrides)
    result = train_run(run, resume=values["resume"], settings=values)
    return result["evaluations"][0]["miou"]


def _trial(settings: DictConfig) -> float | None:
    """Train one trial of a sweep. What fails is noted in the trial's folder and said, and the sweep goes on."""
    from hydra.core.hydra_config import HydraConfig

    from deeplab_recipes.record import write_json
    from deeplab_recipes.sweeping.report import NOTE

    job = HydraConfig.get()
    overrides, searched = list(job.overrides.task), isinstance(settings.trial, DictConfig)
    number = settings.trial.number if searched else job.job.num
    folder = Path(job.runtime.output_dir)
    _refuse_sweep(settings, folder / NOTE)
    note = {"number": number, "overrides": overrides, "run_dir": os.path.abspath(settings.run_dir or folder)}
    write_json(folder / NOTE, note)
    given = {word.lower() for word in sys.argv}  # Hydra writes false as False, and ~a as ~a=null
    words = [o.removesuffix("=null") if o.startswith("~") else o for o in overrides]
    chosen = [word for word in words if word.lower() not in given and not word.startswith(("sweep.", "trial."))]
    print(f"trial {number}: {' '.join(chosen)}", file=sys.stderr)
    try:
        return train(settings)
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or not _is_users(error):
            traceback.print_exc()
        print(f"error: trial {number}: {_message(error)}", file=sys.stderr)
        write_json(folder / NOTE, {**note, "error": str(error).strip() or type(error).__name__})
        return None
    finally:
        if "wandb" in sys.modules:
            sys.modules["wandb"].finish()  # its logger would go on with this trial's run in the next
        gc.collect()  # the next trial needs this one's memory


def _sweeping() -> bool:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.get().mode == RunMode.MULTIRUN


def _refuse_sweep(settings: DictConfig, note: Path) -> None:
    """Find what no trial of this sweep could do, before it leaves a trace."""
    problem, world_size = None, 1
    with suppress(ValueError):  # wrong settings are the trial's own to report
        world_size = config.build(_plain(settings)["trainer"], "trainer").world_size()
    if world_size > 1:  # processes that Lightning starts would each begin the whole sweep anew
        problem = (
            f"a sweep (-m) runs each trial on one device, this one would use {world_size}: set trainer.devices=1, or "
            "start one command (or cluster job) for each trial"
        )
    elif note.exists():
        problem = f"{note.parent} holds a trial of another sweep; choose another folder: hydra.sweep.dir=DIR"
    if problem:
        SWEEPS.clear()
        raise ValueError(problem)


def _report_sweep() -> int:
    """Print the table of this command's sweep, write it down, and return how many trials failed."""
    if not SWEEPS:
        return 0
    from deeplab_recipes.sweeping.report import read_trials, table, write_report

    trials = read_trials(SWEEPS[0])
    if trials:
        write_report(SWEEPS[0], trials)
        print(f"\n{table(trials)}\nthis table is in {SWEEPS[0] / 'sweep.csv'}")
    return sum(trial.status == "failed" for trial in trials)


def plan(settings: DictConfig) -> None:
    """Print what a training will do, before it does it."""
    values = _plain(settings)
    if values.pop("sweep", None):
        raise ValueError("sweep=optuna searches trainings; a plan is of one: leave it out")
    overrides = config.differences(_recipe_alone(), values)
    print(config.assemble_plan(values, overrides))


def download(settings: DictConfig) -> None:
    """Fetch a data set, check and unpack it, and say what to do with it."""
    from deeplab_recipes.data.download.fetch import download as fetch_set
    from deeplab_recipes.data.download.fetch import find_set
    from deeplab_recipes.data.download.sets import SETS

    values = _plain(settings)
    mandatory = {"set": f"the data set to fetch, one of {', '.join(SETS)}", "root": "the folder that is to hold it"}
    config.require_settings(fetch_set, values, mandatory=mandatory)
    chosen, root = find_set(values.pop("set")), Path(str(values.pop("root"))).expanduser()
    try:
        fetch_set(chosen, root, **values)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    folder = _word("data.root", root)
    recipe = f"+recipe={chosen.recipe}" if chosen.recipe else chosen.settings()
    print(f"next:  deeplab check {chosen.settings()} {folder}\n       deeplab train {recipe} {folder}")


def _word(key: str, path: Path) -> str:
    """Return key=path as it is typed: quoted for Hydra's grammar where that needs it, and then for the shell."""
    return shlex.quote(f"{key}={config.quoted(str(path))}")


def check(settings: DictConfig) -> None:
    """Read a whole data set and say what is wrong with it; exit code 1 if training would be."""
    values = _plain(settings)
    if "sweep" in values or _sweeping():
        raise ValueError("a check is of one data set: leave out sweep=... and -m")
    source = config.assemble_source(values, _recipe_alone())
    from deeplab_recipes.data.checking.check import check_set
    from deeplab_recipes.data.checking.report import as_text

    data = values["data"]
    output = values["output"] or f"runs/check/{datetime.now().strftime('%Y-%m-%d_%H-%M-%S')}"
    try:
        report = check_set(
            source,
            where=str(data["root"]),
            output=output,
            sheet_pairs=values["sheet_pairs"],
            workers=data["workers"],
            on_corrupt=data["on_corrupt"],
        )
    except KeyboardInterrupt:
        print("stopped before the end: nothing is known of this data set", file=sys.stderr)
        sys.exit(130)
    print(f"{as_text(report)}\nmore in {output}: {', '.join(sorted(path.name for path in Path(output).iterdir()))}")
    if report.problems:
        sys.exit(1)


def convert(settings: DictConfig) -> None:
    """Write a data set as shards."""
    conversion = config.assemble_conversion(_plain(settings), _alone(("data=",))["data"])
    try:
        print(conversion())
    except KeyboardInterrupt:
        print("stopped; the same command goes on with what is left", file=sys.stderr)
        sys.exit(130)


def import_weights(settings: DictConfig) -> None:
    """Turn another program's weights into a checkpoint of this package, and say what was found."""
    values = _plain(settings)
    if values["source"] == config.MISSING:
        raise ValueError("source=... is missing: the program that wrote the file; deeplab import --help lists them")
    if values["source"] == "zoo":
        _import_published(values)
        return
    from deeplab_recipes.importing import import_model
    from deeplab_recipes.model.choices import choose
    from deeplab_recipes.model.importers import SOURCES

    choose("source", str(values["source"]), dict.fromkeys((*SOURCES, "zoo")))
    config.require_settings(import_model, values, mandatory=IMPORT_SETTINGS)
    if values.pop("name") is not None:
        raise ValueError("name=... is for source=zoo; of a file of your own give file=...")
    for key in ("file", "output"):
        if values[key] is None:
            raise ValueError(f"{key}=... is missing: {IMPORT_SETTINGS[key]}")
    print(import_model(**{**values, "file": str(values["file"]), "output": str(values["output"])}))


IMPORT_SETTINGS = {
    "source": "the program that wrote the file",
    "file": "what that program wrote",
    "output": "the checkpoint to write",
    "name": "of a published model",
}


def _import_published(values: dict[str, Any]) -> None:
    """Fetch a published model, or list them all where none is named."""
    from deeplab_recipes.model.zoo import MODELS, find

    known = ("source", "name", "output", "overwrite")
    stray = [f"{key}={value}" for key, value in values.items() if key not in known and value is not None]
    if stray:
        raise ValueError(f"{stray[0]} has no part in source=zoo, which takes name, output and overwrite")
    if values["name"] is None:
        print("\n".join(map(str, MODELS.values())))
        print("deeplab import source=zoo name=NAME output=MODEL.ckpt fetches one; a training takes weights=zoo:NAME")
        return
    model = find(str(values["name"]))
    if values["output"] is None:
        raise ValueError(f"output=... is missing: {IMPORT_SETTINGS['output']}")
    from deeplab_recipes.published import import_published

    config.require_settings(
        import_published,
        {**dict.fromkeys(IMPORT_SETTINGS), **{key: values[key] for key in known}},
        mandatory=IMPORT_SETTINGS,
    )
    print(import_published(model, str(values["output"]), overwrite=values["overwrite"]))


VERBS: Mapping[str, tuple[Callable[[DictConfig], Any], str]] = {
    "train": (train, "train and evaluate a recipe, e.g. deeplab train +recipe=quickstart"),
    "plan": (plan, "say what a training will do and how it differs from the published one, before it starts"),
    "download": (download, "fetch a data set, e.g. deeplab download set=ade20k root=data"),
    "check": (
        check,
        "read a whole data set and what is wrong with it, e.g. deeplab check data=camvid data.root=DIR",
    ),
    "convert": (convert, "write a data set as shards, e.g. deeplab convert data=camvid data.root=DIR output=DIR"),
    "import": (
        import_weights,
        "make a checkpoint of another program's weights, e.g. deeplab import source=mmsegmentation file=F output=F",
    ),
}


FROM = re.compile(r"\+{0,2}from=(.*)", re.DOTALL)
TRANSLATING = ("train", "plan", "check")  # the verbs that take an older program's configuration


def _expand(verb: str, arguments: Sequence[str]) -> list[str]:
    """Replace +from=FILE by the settings that FILE stands for; what else the command line says wins over them."""
    files = [found[1] for found in map(FROM.fullmatch, arguments) if found]
    if not files:
        return list(arguments)
    if verb not in TRANSLATING:
        _refuse(f"+from={files[0]}: {verb} does not take it; {', '.join(TRANSLATING)} do")
    if len(files) > 1:
        _refuse(f"+from stands there {len(files)} times; one file can be translated at a time")
    from deeplab_recipes.legacy import translate_file

    try:
        translation = translate_file(files[0].strip("'\""))
    except (ValueError, OSError) as error:
        _refuse(str(error))
    others = [word for word in arguments if not FROM.fullmatch(word)]
    given = {word.lstrip("+~").partition("=")[0] for word in others}
    asks = verb != "check" and not any(word.startswith("-") and word not in MULTIRUN for word in others)
    missing = [why for key, why in translation.needed.items() if asks and key not in given]
    if missing:
        _refuse(f"{files[0]}: {'; '.join(missing)}")
    words = [word for word in translation.overrides if word.lstrip("+").partition("=")[0] not in given]
    if rank() in (None, "0"):
        notes = "".join(f"note: {note}\n" for note in translation.notes)
        command = shlex.join(["deeplab", verb, *words, *others])
        print(f"{translation.system}, {files[0]}, in this package's settings:\n{notes}\n{command}\n", file=sys.stderr)
    return [*words, *others]


def _usage(given: Sequence[str]) -> str:
    lines = ["usage: deeplab VERB key=value ...   (deeplab VERB --help lists the settings)", ""]
    lines += [f"  {name:<10}{text}" for name, (_, text) in VERBS.items()]
    if given and given[0] not in ("-h", "--help"):
        lines.insert(0, f"error: there is no verb {given[0]!r}; {config.suggestion(given[0], VERBS)}")
    return "\n".join(lines)


def _refuse_typos(folder: str, verb: str, arguments: Sequence[str]) -> None:
    """Compose to find an unknown key or group, which Hydra reports without saying what it might have been."""
    overrides = [a for a in arguments if a not in MULTIRUN]
    if any(a.startswith("-") for a in overrides):
        return
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    groups = {option.split("/")[0] for option in _options(folder)}
    with initialize_config_dir(folder, version_base="1.3"):
        try:
            parsed = _parse(overrides)
            for variant in _variants(parsed, groups):
                hydra = compose(verb, variant, return_hydra_config=True).hydra
        except HydraException as error:
            chosen = [o for o in overrides if o.lstrip("+").partition("=")[0] in groups]
            text = f"{error}\n{error.__cause__ or ''}"
            if "hydra/launcher/submitit" in text:
                _refuse(config.missing_extra("hydra-submitit-launcher", "slurm"))
            _refuse(config.explain_override(text, _known(verb, chosen), _options(folder), partial(_leaves_of, verb)))
    _refuse_stray_sweep(parsed, hydra, many=overrides != list(arguments) or str(hydra.mode) == "RunMode.MULTIRUN")


def _refuse(problem: str) -> NoReturn:
    """End with the exit code of wrong settings; of a check 1 says that the data are wrong."""
    print(f"error: {problem}", file=sys.stderr)
    sys.exit(2)


def _parse(overrides: Sequence[str]) -> list[Any]:
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(list(overrides))


def _variants(parsed: Sequence[Any], groups: Collection[str]) -> Iterator[list[str]]:
    """Give the trials of a sweep in which each choice of a swept group occurs; of other settings the first value."""
    first = [_values(override)[0] for override in parsed]
    yield first
    for i, override in enumerate(parsed):
        if override.key_or_group in groups:
            yield from ([*first[:i], value, *first[i + 1 :]] for value in _values(override)[1:])


def _values(override: Any) -> list[str]:
    if not override.is_sweep_override():
        return [override.input_line]
    if override.is_interval_sweep():
        return [f"{override.get_key_element()}={override.value().start}"]
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _refuse_stray_sweep(parsed: Sequence[Any], hydra: DictConfig, *, many: bool) -> None:
    """Several values need -m, an interval a search, and SLURM's launcher SLURM."""
    if hydra.launcher._target_.endswith("SlurmLauncher") and shutil.which("srun") is None:
        _refuse("launcher=slurm finds no srun here; start it where jobs are submitted, or leave launcher out")
    for override in parsed:
        if override.is_sweep_override() and not many:
            _refuse(f"{override.input_line} names several values; -m runs a trial with each, in one sweep")
        if override.is_interval_sweep() and "Basic" in hydra.sweeper._target_:
            _refuse(f"{override.input_line} is an interval, for a search to draw from: add sweep=optuna")


def _known(verb: str, chosen: Sequence[str]) -> list[str]:
    """Return all settings with these choices of groups, or without where they cannot be."""
    from hydra import compose
    from hydra.errors import HydraException

    try:
        settings = compose(verb, list(chosen))
    except HydraException:
        settings = compose(verb)
    leaves = config.leaves(OmegaConf.to_container(settings, resolve=False))
    return sorted({*leaves, *(name.rpartition(".")[0] for name in leaves if "." in name)})


def _leaves_of(verb: str, group: str, choice: str) -> list[str]:
    """Return all settings with one choice of a group."""
    from hydra.errors import HydraException

    with suppress(HydraException):
        return _known(verb, [f"{group}={choice}"])
    return []


def _options(folder: str) -> list[str]:
    files = (path.relative_to(folder).with_suffix("") for path in Path(folder).rglob("*.yaml"))
    return sorted(str(path) for path in files if len(path.parts) > 1)


def _plain(settings: DictConfig) -> dict[str, Any]:
    values = OmegaConf.to_container(settings, resolve=True)
    assert isinstance(values, dict)
    return values


def _recipe_alone() -> dict[str, Any]:
    """Return the settings of the recipe without the command line's other overrides."""
    return _alone(("recipe=",))


def _alone(choices: tuple[str, ...]) -> dict[str, Any]:
    """Return the settings with those of the command line's overrides that begin with one of `choices`."""
    from hydra import compose
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    chosen = [o for o in hydra.overrides.task if o.lstrip("+").startswith(choices)]
    return _plain(compose(hydra.job.config_name, chosen))


def _run_dir(values: Mapping[str, Any]) -> str:
    """Return where the run goes; the same for all processes of it."""
    from hydra.core.hydra_config import HydraConfig

    if values["run_dir"]:
        return str(values["run_dir"])
    if values["resume"] == "auto":
        from deeplab_recipes.resuming import NO_RUN_DIR

        raise ValueError(NO_RUN_DIR)
    if _sweeping():
        return HydraConfig.get().runtime.output_dir
    outside = "WORLD_SIZE" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1
    if outside and RUN_DIR not in os.environ:
        raise ValueError("started by torchrun or SLURM: set run_dir=DIR, so that all processes agree on it")
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return os.environ.setdefault(RUN_DIR, f"runs/{values['name']}/{stamp}")


def report_errors(action: Callable[[], Any]) -> Any:
    """Run `action`; what is the user's to mend becomes one message instead of a traceback."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        return action()
    try:
        return action()
    except Exception as error:
        if isinstance(error, RuntimeError) and PEER_LOST.search(str(error)):
            print(f"{_rank()}error: {str(error).splitlines()[0]}", file=sys.stderr)
            sys.exit(f"{_rank()}stopped, because another process of this run did; its own message says why")
        if not _is_users(error):
            raise
        print(f"{_rank()}error: {_message(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; go on with run_dir=... resume=auto, or the same search again", file=sys.stderr)
        sys.exit(130)


def _rank() -> str:
    """Name this process where there are several."""
    return "" if rank() is None else f"[rank {rank()}] "


def _is_users(error: BaseException) -> bool:
    return isinstance(error, ERRORS) or type(error).__name__ in ERROR_NAMES or _lost_worker(error) is not None


def _lost_worker(error: BaseException) -> str | None:
    """Return what to do where a loader process was ended from outside, most often for want of memory."""
    if not isinstance(error, RuntimeError):
        return None
    reason = error.__cause__ if "DataLoader worker" in str(error.__cause__) else error
    found = WORKER_LOST.search(str(reason))
    if found is None:
        return None
    if found[2] == "Bus error":
        advice = "shared memory (/dev/shm) is full: give it more (docker run --shm-size=8g)"
    else:
        advice = "most often because memory ran out: give the run more"
    return f"{found[0]}, {advice}, or set a lower data.workers; go on with run_dir=... resume=auto"


def _message(error: BaseException) -> str:
    text = _lost_worker(error) or str(error).strip()
    if text.startswith("Caught "):  # a loader process failed: torch quotes its whole traceback
        text = text.splitlines()[-1].partition(": ")[2]
    return f"{text}\n(HYDRA_FULL_ERROR=1 shows where it happened)"
