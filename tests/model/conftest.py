import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """On a shared machine the threads' waiting for each other makes these small networks 200 times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def mobilenet_weights() -> Path:
    folder = os.environ.get("DEEPLAB_DATA")
    path = Path(folder or ".", "weights", "mobilenet_v2_imagenet_features.pth")
    if folder is None or not path.is_file():
        pytest.skip("needs DEEPLAB_DATA, a folder with weights/mobilenet_v2_imagenet_features.pth")
    return path
