"""Sweeps: the table over the trials, the Optuna study behind a search, and the end of trials that fall behind.

`PruneTrial` is in `sweeping.pruning`: it needs Lightning, and what starts a sweep and reports on it does not.
"""

from deeplab_recipes.sweeping.report import read_trials, write_report
from deeplab_recipes.sweeping.study import StudySettings

__all__ = ["StudySettings", "read_trials", "write_report"]
