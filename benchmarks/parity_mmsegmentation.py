"""Does an imported mmsegmentation model answer as mmsegmentation does? Both in one process, from the same weights.

    python benchmarks/parity_mmsegmentation.py --images FILE [FILE ...]

Each model is built by mmsegmentation from the configuration that it ships, with random weights and batch norm
statistics, and saved with that configuration as its runner would; `deeplab import` makes a checkpoint of the file. Then
both take the same normalised tensors (random, and parts of the photographs, at odd and even sizes), and the photographs
themselves: theirs through mmsegmentation's test pipeline, preprocessor and `test_step`, ours through `load_predictor`.
"""

import argparse
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate

from deeplab_recipes import load_predictor, record
from deeplab_recipes.importing import import_model
from deeplab_recipes.inference.predictor import Predictor

CONFIGURATIONS = {
    "DeepLabV3+ R-50": "deeplabv3plus/deeplabv3plus_r50-d8_4xb4-160k_ade20k-512x512.py",
    "DeepLabV3+ R-101": "deeplabv3plus/deeplabv3plus_r101-d8_4xb4-160k_ade20k-512x512.py",
    "DeepLabV3 R-50": "deeplabv3/deeplabv3_r50-d8_4xb4-160k_ade20k-512x512.py",
    "DeepLabV3 R-101": "deeplabv3/deeplabv3_r101-d8_4xb4-160k_ade20k-512x512.py",
}
SIZES = ((129, 129), (128, 192), (97, 161))
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
RANGES = {"running_var": (0.5, 1.5), "weight": (0.2, 0.8), "running_mean": (-0.2, 0.2), "bias": (-0.2, 0.2)}
LIMIT = 1e-5


def original(configuration: str, **changes: Any) -> tuple[nn.Module, Any]:
    """Build mmsegmentation's model of one of its configurations, with random weights; gives the configuration too.

    `changes` are of the configuration's entries, by their keys' whole path.
    """
    import mmseg
    from mmengine.config import Config
    from mmengine.model import revert_sync_batchnorm
    from mmseg.registry import MODELS
    from mmseg.utils import register_all_modules

    register_all_modules()
    settings = Config.fromfile(Path(mmseg.__file__).parent / ".mim" / "configs" / configuration)
    settings.model.pretrained = None
    settings.merge_from_dict(changes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = revert_sync_batchnorm(MODELS.build(settings.model))
    return randomise(model), settings


def randomise(model: nn.Module) -> nn.Module:
    """Give every tensor a value of its own, batch norms' statistics too."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 1:
            low, high = RANGES[name.rpartition(".")[2]]
            tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
        elif tensor.ndim > 1:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5)
    return model.eval()


def imported(model: nn.Module, settings: Any, folder: Path) -> Predictor:
    """Save as mmsegmentation's runner does, import, and load what came of it."""
    classes = [f"class {i}" for i in range(settings.model.decode_head.num_classes)]
    meta = {"cfg": settings.pretty_text, "dataset_meta": {"classes": classes}}
    torch.save({"state_dict": model.state_dict(), "meta": meta}, folder / "m.pth")
    report = import_model("mmsegmentation", folder / "m.pth", folder / "m.ckpt", overwrite=True)
    assert not report.unused, report.unused
    return load_predictor(folder / "m.ckpt")


def inputs(images: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    """Give named normalised tensors (1, 3, H, W)."""
    for i, (height, width) in enumerate(SIZES):
        yield "random", torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(i))
    for path in images:
        pixels = np.asarray(Image.open(path).convert("RGB"), np.float32)
        scaled = torch.from_numpy((pixels - np.float32(MEAN)) / np.float32(STD)).permute(2, 0, 1)[None]
        for height, width in SIZES:
            yield "photograph", scaled[..., :height, :width]


@torch.inference_mode()
def network_difference(model: nn.Module, ours: nn.Module, tensors: Iterator[tuple[str, Tensor]]) -> dict[str, float]:
    worst: dict[str, float] = {}
    for kind, tensor in tensors:
        logits = interpolate(model(tensor, mode="tensor"), tensor.shape[-2:], mode="bilinear", align_corners=False)
        worst[kind] = max(worst.get(kind, 0.0), float((logits - ours(tensor)).abs().max()))
    return worst


@torch.inference_mode()
def whole_difference(model: nn.Module, settings: Any, predictor: Predictor, path: Path) -> Mapping[str, float]:
    """Compare from the file to the logits at the photograph's size."""
    from mmcv.transforms import Compose

    steps = [step for step in settings.test_pipeline if step["type"] != "LoadAnnotations"]
    packed = Compose(steps)({"img_path": str(path)})
    theirs = model.test_step({"inputs": [packed["inputs"]], "data_samples": [packed["data_samples"]]})[0]
    ours = predictor.logits(np.asarray(Image.open(path).convert("RGB")))
    logits, labels = theirs.seg_logits.data, theirs.pred_sem_seg.data[0]
    return {
        "difference": float((logits - ours).abs().max()),
        "range": float(logits.max() - logits.min()),
        "labels equal": float((labels == ours.argmax(0)).double().mean()),
    }


def compare(configuration: str, images: Sequence[Path], folder: Path) -> dict[str, float]:
    """Return a row's numbers, the worst of all inputs."""
    model, settings = original(configuration)
    predictor = imported(model, settings, folder)
    networks = network_difference(model, predictor.model, inputs(images))
    wholes = [whole_difference(model, settings, predictor, path) for path in images]
    return {
        **networks,
        "whole": max(whole["difference"] for whole in wholes),
        "range": max(whole["range"] for whole in wholes),
        "labels equal": min(whole["labels equal"] for whole in wholes),
    }


def row(name: str, found: Mapping[str, float]) -> str:
    """Return a row of the table.

    Raises:
        ValueError: a difference is beyond the limit.
    """
    differences = [found[key] for key in ("random", "photograph", "whole")]
    if not max(differences) <= LIMIT:
        raise ValueError(f"{name} differs by {max(differences):.1e}, more than {LIMIT:.0e}")
    shown = " | ".join(f"{difference:.1e}" for difference in differences)
    return f"| {name} | {shown} | {found['range']:.1f} | {100 * found['labels equal']:.3f} % |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, nargs="+", required=True)
    images = parser.parse_args().images
    logging.disable(logging.WARNING)
    versions = ", ".join(f"{name} {record.versions()[name]}" for name in ("torch", "onedl-mmsegmentation"))
    print(f"{date.today()}, {record.hardware(1, gpu=False)}, {versions}; float32, largest difference of the logits\n")
    print("| model | random input | photographs' parts | whole photograph, file to logits | range | labels equal |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, configuration in CONFIGURATIONS.items():
            print(row(name, compare(configuration, images, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
