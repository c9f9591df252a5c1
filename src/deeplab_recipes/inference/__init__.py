"""Using a trained checkpoint."""

from deeplab_recipes.inference.predictor import Predictor, load_predictor

__all__ = ["Predictor", "load_predictor"]
