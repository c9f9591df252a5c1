"""Sweeps: the table over the trials, the Optuna study behind a search, and the end of trials that fall behind."""

from deeplab_recipes.sweeping.pruning import PruneTrial
from deeplab_recipes.sweeping.report import read_trials, write_report
from deeplab_recipes.sweeping.study import StudySettings

__all__ = ["PruneTrial", "StudySettings", "read_trials", "write_report"]
