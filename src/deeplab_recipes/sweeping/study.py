"""The Optuna study behind a search: settings, storage, and going on where it stopped.

Optuna is an extra, so it is imported where it is used.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplab_recipes import locking
from deeplab_recipes.sweeping.report import Trial

if TYPE_CHECKING:
    import optuna

QUESTION = "question"  # the study's own note of what it searches
ENDED = ("finished", "pruned", "failed")  # by themselves
AGAIN = "again"  # a trial's note: the number of the killed one that it repeats


@dataclass(frozen=True)
class StudySettings:
    """How to search; the direction is always towards higher mIoU.

    Args:
        study_name: of the study in its storage; the same name goes on with it.
        storage: a file (an Optuna journal), or the address of a database (anything with "://").
        sampler: called with `seed`, gives an Optuna sampler.
        pruner: an Optuna pruner, or None. It acts in the trials: see `PruneTrial`.
        n_trials: in all, with those that the study has already.
        n_jobs: trials that are started together.
        seed: of the values that are tried.

    Raises:
        ValueError: for a number below 1, or no name.
    """

    study_name: str
    storage: str
    sampler: Callable[..., Any]
    pruner: Any = None
    n_trials: int = 20
    n_jobs: int = 1
    seed: int = 17

    def __post_init__(self) -> None:
        for name in ("n_trials", "n_jobs"):
            if getattr(self, name) < 1:
                raise ValueError(f"sweep.{name} is {getattr(self, name)}; it must be at least 1")
        if not self.study_name:
            raise ValueError("sweep.study_name is empty; name the study, as sweep.study_name=lr")


def open_storage(storage: str) -> "optuna.storages.BaseStorage":
    """Open a study's storage; a file is made where there is none.

    Raises:
        ValueError: if it cannot be opened.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        if "://" in storage:
            return optuna.storages.get_storage(storage)
        return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(storage))
    except Exception as error:  # each database has errors of its own
        raise ValueError(
            f"sweep.storage={storage} cannot be opened ({error}); name a file, or a database as sqlite:///FILE or "
            "postgresql://USER:PASSWORD@HOST/NAME"
        ) from None


@contextmanager
def only_process(storage: str) -> Iterator[None]:
    """Hold a file storage for this search alone: trials that run elsewhere would count as killed.

    A database is not held: one search at a time is then the user's to see to.

    Raises:
        ValueError: if another search holds it.
    """
    if "://" in storage:
        yield
        return
    Path(storage).parent.mkdir(parents=True, exist_ok=True)
    refusal = f"another search ({{holder}}) is at work on {storage}: wait for it, or choose another sweep.study_name"
    with locking.only_process(f"{storage}.running", refusal):
        yield


def open_study(settings: StudySettings, question: Sequence[str]) -> "optuna.Study":
    """Open a study, or begin it.

    Args:
        settings: where it is.
        question: what is searched and with which settings, an item each; kept in the study.

    Raises:
        ValueError: if the study of that name is about something else.
    """
    import optuna

    storage, name = open_storage(settings.storage), settings.study_name
    study = optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
    then, now = set(study.user_attrs.get(QUESTION, question)), set(question)
    if then != now:
        there, here = (", ".join(sorted(items)) or "nothing" for items in (then - now, now - then))
        raise ValueError(
            f"the study {name!r} in {settings.storage} asks something else: {there} there, {here} here; begin another "
            "with sweep.study_name=NAME, or go on with the same settings"
        )
    study.set_user_attr(QUESTION, list(question))
    return study


def repeat_killed(study: "optuna.Study", trials: Sequence[Trial]) -> list[int]:
    """Mark trials that a kill left running as failed, and put their values in line again; returns their numbers.

    Args:
        study: whose trials.
        trials: what lies in the sweep's folder; those that came to an end before the study heard of it are told now.
    """
    from optuna.trial import TrialState

    ended = {trial.number: trial for trial in trials if trial.status in ENDED}
    killed = []
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        if trial.number in ended:
            tell(study, trial.number, ended[trial.number])
            continue
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params, user_attrs={AGAIN: trial.number})
        killed.append(trial.number)
    return killed


def count_done(study: "optuna.Study") -> int:
    """Count the trials that came to an end by themselves: finished, pruned or failed, but not killed."""
    killed = _killed(study)
    return sum(trial.state.is_finished() and trial.number not in killed for trial in study.trials)


def _killed(study: "optuna.Study") -> set[int]:
    return {trial.user_attrs[AGAIN] for trial in study.trials if AGAIN in trial.user_attrs}


def ask(
    study: "optuna.Study", settings: StudySettings, space: Mapping[str, "optuna.distributions.BaseDistribution"]
) -> "optuna.Trial":
    """Begin a trial; its values follow from (seed, place in the study, results so far), also in a resumed search."""
    place = len(study.trials) - len(_killed(study))
    seed = np.random.SeedSequence([settings.seed, place]).generate_state(1)[0]
    study.sampler = settings.sampler(seed=int(seed))
    return study.ask(dict(space))


def tell(study: "optuna.Study", number: int, outcome: Trial | None) -> None:
    """Enter what became of a trial: the last mIoU, or that it was pruned or failed."""
    from optuna.trial import TrialState

    if outcome is not None and outcome.status == "finished":
        study.tell(number, outcome.last)
    else:
        pruned = outcome is not None and outcome.status == "pruned"
        study.tell(number, state=TrialState.PRUNED if pruned else TrialState.FAIL)


def refuse_foreign_trials(study: "optuna.Study", trials: Sequence[Trial], folder: Path) -> None:
    """Raise ValueError where a new study would write among the trials of another."""
    if trials and not study.trials:
        raise ValueError(
            f"{folder} holds {len(trials)} trials of another study; choose another sweep.study_name, or remove it"
        )
