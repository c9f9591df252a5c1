"""Does an imported model of bonlime/keras-deeplab-v3-plus answer as the running Keras model does? Both in one process.

    python benchmarks/parity_keras.py --original CHECKOUT --images FILE [FILE ...]

`--original` is a checkout of that repository, whose model.py runs unchanged; it needs tensorflow, tf_keras and h5py.
Each model gets random weights and batch norm statistics, is saved by Keras (`save_weights`, .h5), imported as
`deeplab import source=keras` does, and both take the same random tensors and parts of the photographs.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TF_USE_LEGACY_KERAS"] = "1"  # the original is of Keras 2

import argparse
import importlib.metadata
import importlib.util
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torchvision  # noqa: F401  brings triton, whose LLVM must be loaded before TensorFlow's: else the process aborts
from PIL import Image

from deeplab_recipes import load_predictor, record
from deeplab_recipes.importing import import_model

CLASSES = 21
MODELS: dict[str, dict[str, Any]] = {
    "MobileNetV2, alpha 1.0": {"backbone": "mobilenetv2", "alpha": 1.0},
    "MobileNetV2, alpha 0.5": {"backbone": "mobilenetv2", "alpha": 0.5},
    "MobileNetV2, alpha 1.4": {"backbone": "mobilenetv2", "alpha": 1.4},
    "Xception, output stride 16": {"backbone": "xception", "OS": 16},
    "Xception, output stride 8": {"backbone": "xception", "OS": 8},
}
SIZES = ((129, 161), (128, 192), (97, 130))
LIMITS = {"difference over range": 1e-5, "labels": 0.9999}


def original(checkout: Path) -> ModuleType:
    """Return the checkout's model.py, whose imports from TensorFlow's own copy of Keras are given those of tf_keras."""
    import tensorflow as tf
    import tf_keras

    tf.compat.v1.disable_v2_tensorshape()  # it reads shape[i].value
    inside = {".models": tf_keras.models, ".layers": tf_keras.layers, ".backend": tf_keras.backend}
    inside |= {".utils.layer_utils": tf_keras.utils, ".utils.data_utils": tf_keras.utils}
    inside |= {"": tf_keras, ".applications.imagenet_utils": tf_keras.applications.imagenet_utils}
    sys.modules.update({f"tensorflow.python.keras{name}": module for name, module in inside.items()})
    spec = importlib.util.spec_from_file_location("bonlime_model", checkout / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def randomise(model: Any, seed: int = 0) -> None:
    """Give every weight a value of its own, batch norms' statistics too."""
    rng = np.random.default_rng(seed)
    ranges = {"moving_variance": (0.5, 1.5), "gamma": (0.5, 1.0)}
    for weight in model.weights:
        kind = weight.name.rpartition("/")[2].partition(":")[0]
        shape = tuple(int(side) for side in weight.shape)
        if len(shape) == 1:
            weight.assign(rng.uniform(*ranges.get(kind, (-0.2, 0.2)), shape).astype(np.float32))
        else:
            fan = shape[0] * shape[1] * (1 if "depthwise" in kind else shape[2])
            weight.assign(rng.normal(0, (2 / fan) ** 0.5, shape).astype(np.float32))


def inputs(images: Sequence[Path], size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Give tensors (1, H, W, 3) in -1..1: a random one, and a part of each photograph."""
    yield np.random.default_rng(size).uniform(-1, 1, (1, *size, 3)).astype(np.float32)
    for path in images:
        pixels = np.asarray(Image.open(path).convert("RGB"), np.float32)
        yield (pixels[None, : size[0], : size[1]] - np.float32(127.5)) / np.float32(127.5)


def compare(module: ModuleType, settings: dict[str, Any], images: Sequence[Path], folder: Path) -> list[np.ndarray]:
    """Return (difference, range, share of equal labels) of every input."""
    import tf_keras

    found, stride = [], {"output_stride": settings["OS"]} if "OS" in settings else {}
    predictor = None
    for size in SIZES:
        tf_keras.backend.clear_session()
        theirs = module.Deeplabv3(weights=None, input_shape=(*size, 3), classes=CLASSES, **settings)
        randomise(theirs)
        if predictor is None:
            theirs.save_weights(folder / "m.h5")
            import_model("keras", folder / "m.h5", folder / "m.ckpt", overwrite=True, **stride)
            predictor = load_predictor(folder / "m.ckpt")
        for tensor in inputs(images, size):
            logits = np.asarray(theirs(tensor, training=False))
            with torch.inference_mode():
                ours = predictor.model(torch.from_numpy(tensor).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
            found.append(numbers(logits, ours))
    return found


def numbers(theirs: np.ndarray, ours: np.ndarray) -> np.ndarray:
    """Return difference, range and share of equal labels of logits (..., classes)."""
    equal = (theirs.argmax(-1) == ours.argmax(-1)).mean()
    return np.array([np.abs(theirs - ours).max(), np.ptp(theirs), equal])


def row(name: str, found: Sequence[np.ndarray]) -> str:
    """Return a row of the table, the worst of all inputs.

    Raises:
        ValueError: it is beyond the limits.
    """
    difference = max(f[0] for f in found)
    over = max(f[0] / f[1] for f in found)
    equal = min(f[2] for f in found)
    if not (over <= LIMITS["difference over range"] and equal >= LIMITS["labels"]):
        raise ValueError(f"{name}: {over:.1e} over the range, {100 * equal:.3f} % equal; the limits are {LIMITS}")
    return f"| {name} | {difference:.1e} | {over:.1e} | {100 * equal:.3f} % |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--original", type=Path, required=True)
    parser.add_argument("--images", type=Path, nargs="+", required=True)
    parser.add_argument("--only", default="", help="of the models, those whose name holds this")
    given = parser.parse_args()
    module = original(given.original)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "tensorflow", "tf_keras"))
    print(f"{date.today()}, {record.hardware(1, gpu=False)}, {versions}; float32, sizes {SIZES}\n")
    print("| model | largest difference of the logits | over their range | labels equal |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in ((name, settings) for name, settings in MODELS.items() if given.only in name):
            print(row(name, compare(module, settings, given.images, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
