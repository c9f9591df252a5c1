"""Pruning: a trial of a search reports its validation mIoU, and ends where it falls behind the others.

The study is reached through its storage alone, so a trial may run in any process, on any machine that sees it.
"""

from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl

from deeplab_recipes.sweeping.study import open_storage

if TYPE_CHECKING:
    import optuna


def open_trial(storage: str, study_name: str, number: int, pruner: Any) -> "optuna.Trial":
    """Return a running trial of a study.

    Raises:
        ValueError: if there is none.
    """
    import optuna

    opened = open_storage(storage)
    try:
        study = optuna.load_study(study_name=study_name, storage=opened, pruner=pruner or optuna.pruners.NopPruner())
        study_id = opened.get_study_id_from_name(study_name)
        return optuna.Trial(study, opened.get_trial_id_from_study_id_trial_number(study_id, number))
    except KeyError:
        raise ValueError(
            f"there is no trial {number} of a study {study_name!r} in {storage}; sweep=optuna sets trial=, a run of "
            "its own has trial=null"
        ) from None


def falls_behind(trial: "optuna.Trial", miou: float, evaluation: int) -> bool:
    """Report the mIoU (0..100) of a trial's evaluation (1, 2, ...); returns whether the pruner would stop it."""
    trial.report(miou, evaluation)
    return trial.should_prune()


class PruneTrial(pl.Callback):
    """Reports every evaluation to the study, and stops the run when the pruner says so.

    Args:
        storage: the study's, as in `StudySettings`.
        study_name: its name there.
        number: of this trial.
        pruner: an Optuna pruner; None never stops a run.

    Raises:
        ValueError: if there is no such trial.
    """

    def __init__(self, *, storage: str, study_name: str, number: int, pruner: Any = None) -> None:
        self.trial = open_trial(storage, study_name, number, pruner)
        self.evaluations = 0
        self.pruned = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report, and stop; at the end of training there is nothing left to save."""
        self.evaluations += 1
        behind = trainer.is_global_zero and falls_behind(self.trial, pl_module.evaluation["miou"], self.evaluations)
        under_way = trainer.state.fn == "fit" and trainer.global_step < trainer.estimated_stepping_batches
        self.pruned = bool(trainer.strategy.broadcast(behind)) and under_way
        trainer.should_stop = trainer.should_stop or self.pruned
