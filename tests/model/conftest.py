from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def mobilenet_weights(real_data: Callable[[str], Path]) -> Path:
    return real_data("weights/mobilenet_v2_imagenet_features.pth")
