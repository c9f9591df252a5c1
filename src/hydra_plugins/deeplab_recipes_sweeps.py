"""Hydra's side of sweeps: a sweeper on current Optuna, and the note of where a sweep is.

Hydra takes sweepers from the namespace package hydra_plugins alone, so this file lives here. It is imported at every
start: nothing heavy at the top. What a study is and how trials are pruned is in `deeplab_recipes.sweeping`.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

    from deeplab_recipes.sweeping import StudySettings


class SweepReport(Callback):
    """Tells the command where the sweep that it begins will be; it reads the results there when all is over.

    Hydra does not call `on_multirun_end` after an error or Ctrl-C, so the report is not made here.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the sweep's folder."""
        from deeplab_recipes import cli

        cli.SWEEPS[:] = [Path(config.hydra.sweep.dir)]


class OptunaSweeper(Sweeper):
    """Asks Optuna for values, launches trials with them, and tells it their last mIoU.

    The search space is written in Hydra's own sweep syntax; the section `sweep` holds the rest, see
    `deeplab_recipes.sweeping.StudySettings`.
    """

    def __init__(self) -> None:
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands over."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until the study has as many as it is to have; `arguments` are the command line's overrides."""
        from deeplab_recipes.cli import report_errors

        report_errors(lambda: self._sweep(arguments))

    def _sweep(self, arguments: Sequence[str]) -> None:
        from deeplab_recipes import cli
        from deeplab_recipes.sweeping import read_trials, study

        cli.SWEEPS.clear()  # what is refused here leaves no table
        settings = self._settings()
        fixed, space = search_space(arguments)
        with study.only_process(settings.storage):
            opened = study.open_study(settings, _question(fixed, space))
            trials = read_trials(self._folder())
            study.refuse_foreign_trials(opened, trials, self._folder())
            study.repeat_killed(opened, trials)
            cli.SWEEPS.append(self._folder())
            while (left := settings.n_trials - study.count_done(opened)) > 0:
                trials = [study.ask(opened, settings, space) for _ in range(min(left, settings.n_jobs))]
                self._run(opened, trials, fixed)

    def _settings(self) -> "StudySettings":
        from deeplab_recipes import config

        verb = self.config.hydra.job.config_name
        if verb != "train":
            raise ValueError(f"sweep=optuna searches trainings, and {verb} is none: use it with train")
        return config.build(OmegaConf.to_container(self.config.sweep, resolve=True), "sweep")

    def _folder(self) -> Path:
        return Path(self.config.hydra.sweep.dir)

    def _run(self, opened: "optuna.Study", trials: Sequence["optuna.Trial"], fixed: Sequence[str]) -> None:
        """Run trials together, and tell the study what each left in its folder.

        After Ctrl-C they stay "running" in the study, and the next search repeats them.
        """
        from deeplab_recipes.sweeping import report, study

        name = opened.study_name.replace("'", r"\'")
        batch = [
            [*fixed, *_overrides(trial.params), f"sweep.study_name='{name}'", f"trial.number={trial.number}"]
            for trial in trials
        ]
        numbers, problem = [trial.number for trial in trials], None
        try:
            self.launcher.launch(batch, initial_job_idx=numbers[0])
        except Exception as error:  # a job that died takes down the launch, but not the other jobs' results
            problem = error
        known = {trial.number: trial for trial in report.read_trials(self._folder())}
        if problem and not known.keys() & set(numbers):
            raise problem
        for number in numbers:
            study.tell(opened, number, known.get(number))
        if problem:
            print(f"error: of trials {numbers} a job died: {problem}", file=sys.stderr)


def search_space(arguments: Sequence[str]) -> tuple[list[str], dict[str, "BaseDistribution"]]:
    """Split overrides into those that hold for every trial, and setting -> what Optuna may choose from.

    Raises:
        ValueError: if nothing is left to choose, or a range makes no sense.
    """
    overrides = OverridesParser.create().parse_overrides(list(arguments))
    fixed = [override.input_line for override in overrides if not override.is_sweep_override()]
    space = {o.get_key_element(): distribution(o) for o in overrides if o.is_sweep_override()}
    if not space:
        raise ValueError(
            "sweep=optuna has nothing to search; give a setting a range, as 'optimizer.lr=tag(log,interval(0.01,1))', "
            "or a list, as optimizer=sgd,adamw"
        )
    return fixed, space


def distribution(override: Override) -> "BaseDistribution":
    """Return what Optuna may choose from, for an override in Hydra's sweep syntax.

    interval(a,b) is a number, int(interval(a,b)) a whole one, both with their ends; range(a,b,step) leaves out b;
    tag(log,...) searches orders of magnitude; lists, choice(...) and glob(...) are choices without an order.

    Raises:
        ValueError: if the range is empty, or has no logarithm.
    """
    from optuna import distributions

    value = override.value()
    try:
        if isinstance(value, IntervalSweep):
            whole = isinstance(value.start, int) and isinstance(value.end, int)
            kind = distributions.IntDistribution if whole else distributions.FloatDistribution
            return kind(value.start, value.end, log="log" in value.tags)
        if isinstance(value, RangeSweep):
            numbers = sorted(value.range())
            kind = distributions.IntDistribution if isinstance(numbers[0], int) else distributions.FloatDistribution
            return kind(numbers[0], numbers[-1], step=abs(value.step), log="log" in value.tags)
        return distributions.CategoricalDistribution(list(override.sweep_string_iterator()))
    except (ValueError, IndexError) as error:
        raise ValueError(f"{override.input_line} cannot be searched: {error}") from None


def _overrides(values: Mapping[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in values.items()]


def _question(fixed: Sequence[str], space: Mapping[str, "BaseDistribution"]) -> list[str]:
    """Say what a study is about; where its trials run, and how many, may change."""
    from deeplab_recipes.config import NEUTRAL

    free = {"sweep", "launcher", "trial", *NEUTRAL} - {"trainer.evaluate_every"}  # pruning compares evaluations
    names = [(text, text.lstrip("+").partition("=")[0]) for text in fixed]
    settings = [text for text, name in names if name not in free and name.partition(".")[0] not in free]
    return sorted([*settings, *(f"{key}={value}" for key, value in space.items())])


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="deeplab_recipes_optuna",
    node={"_target_": f"{__name__}.OptunaSweeper"},
    provider="deeplab-recipes",
)
