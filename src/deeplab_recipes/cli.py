"""deeplab VERB key=value ...: every verb is a Hydra app over yamls/.

Nothing heavy is imported before the settings are composed, so that --help and --cfg answer at once.
"""

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from deeplab_recipes import config

# MisconfigurationException is Lightning's, OutOfMemoryError torch's; by name, since neither is imported here.
ERRORS = (ValueError, OSError, FloatingPointError, ImportError)
ERROR_NAMES = ("MisconfigurationException", "OutOfMemoryError")
PEER_LOST = re.compile("Connection (closed|reset) by peer|NCCL|remote process exited")  # of torch.distributed
RUN_DIR = "DEEPLAB_RUN_DIR"  # how the first process of a node tells the others where the run goes


def main(verb: str | None = None) -> None:
    """Run a verb: the command line's first word, or `verb` for a script that is one."""
    command = list(sys.argv)
    if verb is None:
        if len(sys.argv) < 2 or sys.argv[1] not in VERBS:
            sys.exit(_usage(sys.argv[1:2]))
        verb = sys.argv.pop(1)
    folder = str(config.yamls_folder())
    _refuse_typos(folder, verb, sys.argv[1:])

    import hydra

    def task(settings: DictConfig) -> Any:
        sys.argv[:] = command  # with its verb: Lightning starts the other ranks from it
        return _report_errors(lambda: VERBS[verb][0](settings))

    hydra.main(version_base="1.3", config_path=folder, config_name=verb)(task)()


def train(settings: DictConfig) -> float:
    """Train a recipe, evaluate it and leave a run directory; returns the last mean IoU, for sweeps."""
    values = _plain(settings)
    values["run_dir"] = _run_dir(values)
    overrides = config.differences(_recipe_alone(), values)
    from deeplab_recipes.training import train as train_run

    run = config.assemble(values, overrides)
    _refuse_sweep_over_devices(run.split.world_size)
    result = train_run(run, resume=values["resume"], settings=values)
    return result["evaluations"][0]["miou"]


def _refuse_sweep_over_devices(world_size: int) -> None:
    """Processes that Lightning starts would each begin the whole sweep anew."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if world_size > 1 and HydraConfig.get().mode == RunMode.MULTIRUN:
        raise ValueError(
            f"a sweep (-m) runs each trial on one device, this one would use {world_size}: set trainer.devices=1, or "
            "start one command (or cluster job) for each trial"
        )


def plan(settings: DictConfig) -> None:
    """Print what a training will do, before it does it."""
    values = _plain(settings)
    overrides = config.differences(_recipe_alone(), values)
    print(config.assemble_plan(values, overrides))


VERBS: Mapping[str, tuple[Callable[[DictConfig], Any], str]] = {
    "train": (train, "train and evaluate a recipe, e.g. deeplab train +recipe=quickstart"),
    "plan": (plan, "say what a training will do and how it differs from the published one, before it starts"),
}


def _usage(given: Sequence[str]) -> str:
    lines = ["usage: deeplab VERB key=value ...   (deeplab VERB --help lists the settings)", ""]
    lines += [f"  {name:<10}{text}" for name, (_, text) in VERBS.items()]
    if given and given[0] not in ("-h", "--help"):
        lines.insert(0, f"error: there is no verb {given[0]!r}; {config.suggestion(given[0], VERBS)}")
    return "\n".join(lines)


def _refuse_typos(folder: str, verb: str, arguments: Sequence[str]) -> None:
    """Compose once to find an unknown key or group, which Hydra reports without saying what it might have been."""
    overrides = [a for a in arguments if a not in ("-m", "--multirun")]
    if any(a.startswith("-") for a in overrides) or overrides != list(arguments):
        return
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    with initialize_config_dir(folder, version_base="1.3"):
        try:
            compose(verb, overrides)
        except HydraException as error:
            recipe = [o for o in overrides if o.startswith("+recipe=")]
            text = f"{error}\n{error.__cause__ or ''}"
            sys.exit(f"error: {config.explain_override(text, _known(verb, recipe), _options(folder))}")


def _known(verb: str, recipe: Sequence[str]) -> list[str]:
    from hydra import compose
    from hydra.errors import HydraException

    try:
        settings = compose(verb, list(recipe))
    except HydraException:
        settings = compose(verb)
    leaves = config.leaves(OmegaConf.to_container(settings, resolve=False))
    return sorted({*leaves, *(name.rpartition(".")[0] for name in leaves if "." in name)})


def _options(folder: str) -> list[str]:
    files = (path.relative_to(folder).with_suffix("") for path in Path(folder).rglob("*.yaml"))
    return sorted(str(path) for path in files if len(path.parts) > 1)


def _plain(settings: DictConfig) -> dict[str, Any]:
    values = OmegaConf.to_container(settings, resolve=True)
    assert isinstance(values, dict)
    return values


def _recipe_alone() -> dict[str, Any]:
    """Return the settings of the recipe without the command line's other overrides."""
    from hydra import compose
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    recipe = [o for o in hydra.overrides.task if o.lstrip("+").startswith("recipe=")]
    return _plain(compose(hydra.job.config_name, recipe))


def _run_dir(values: Mapping[str, Any]) -> str:
    """Return where the run goes; the same for all processes of it."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if values["run_dir"]:
        return str(values["run_dir"])
    if values["resume"] == "auto":
        raise ValueError("resume=auto needs run_dir=DIR, the run to go on with")
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        return hydra.runtime.output_dir
    outside = "WORLD_SIZE" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1
    if outside and RUN_DIR not in os.environ:
        raise ValueError("started by torchrun or SLURM: set run_dir=DIR, so that all processes agree on it")
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return os.environ.setdefault(RUN_DIR, f"runs/{values['name']}/{stamp}")


def _report_errors(action: Callable[[], Any]) -> Any:
    """Run `action`; what is the user's to mend becomes one message instead of a traceback."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        return action()
    try:
        return action()
    except Exception as error:
        if isinstance(error, RuntimeError) and PEER_LOST.search(str(error)):
            sys.exit(f"{_rank()}stopped, because another process of this run did; its own message says why")
        if not isinstance(error, ERRORS) and type(error).__name__ not in ERROR_NAMES:
            raise
        print(f"{_rank()}error: {_message(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; go on with run_dir=... resume=auto", file=sys.stderr)
        sys.exit(130)


def _rank() -> str:
    """Name this process where there are several."""
    rank = next((os.environ[key] for key in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if key in os.environ), None)
    return "" if rank is None else f"[rank {rank}] "


def _message(error: BaseException) -> str:
    text = str(error).strip()
    if text.startswith("Caught "):  # a loader process failed: torch quotes its whole traceback
        text = text.splitlines()[-1].partition(": ")[2]
    return f"{text}\n(HYDRA_FULL_ERROR=1 shows where it happened)"
