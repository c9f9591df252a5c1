"""Optimizers and learning-rate schedules of the published trainings."""

from deeplab_recipes.optimization.decoupled_sgdw import DecoupledSGDW
from deeplab_recipes.optimization.parameter_groups import ParameterRules
from deeplab_recipes.optimization.schedules import Exponential, InverseTime, constant, cosine, polynomial

__all__ = ["DecoupledSGDW", "Exponential", "InverseTime", "ParameterRules", "constant", "cosine", "polynomial"]
