"""Does an imported TensorFlow model give TensorFlow's answer? Both run in one process on the same photographs.

    python benchmarks/parity_tensorflow.py --models DIR --photographs DIR [DIR ...] [--graph FILE ...] [--output FILE]

Besides this package it needs `pip install tensorflow tf-keras tf-slim`. `--models` is a checkout of tensorflow/models
with research/deeplab, whose own model.py and export_model.py build the networks: weights are random, batch norm's
statistics those of two photographs times random factors (residual branches small beside what they are added to, see
BRANCH_SCALE), and each is written as a checkpoint and as a frozen graph.
`--graph` adds graphs with trained weights. Each graph is imported (`deeplab import source=tensorflow`), loaded
(`load_predictor`) and given the same images as the graph: photographs of several sizes, even and odd. What is compared
are the logits of the whole padded image, and the labels at the photograph's own size. The last two columns say how far
the logits of each side are from those of the imported model in float64, on the first photograph. It ends with an error
where a row is beyond the LIMITS.
"""

import argparse
import copy
import importlib.metadata
import sys
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from deeplab_recipes import load_predictor, record
from deeplab_recipes.importing import import_model
from deeplab_recipes.model.importers.tensorflow import read

CELL = "research/deeplab/core/dense_prediction_cell_branch5_top1_cityscapes.json"
RATES = {16: [6, 12, 18], 8: [12, 24, 36]}
DECODER = {"decoder_output_stride": ["4"]}
NETWORKS = {  # export_model.py's flags
    "MobileNetV2, ASPP": {"model_variant": "mobilenet_v2", "output_stride": 16, "atrous_rates": RATES[16]},
    "Xception-65, ASPP, decoder": {
        "model_variant": "xception_65", "output_stride": 16, "atrous_rates": RATES[16], **DECODER,
    },
    "Xception-71, DPC, decoder": {
        "model_variant": "xception_71", "output_stride": 16, "dense_prediction_cell_json": CELL, **DECODER,
    },
    "MobileNetV2, DPC, OS 8": {
        "model_variant": "mobilenet_v2", "output_stride": 8, "dense_prediction_cell_json": CELL,
    },
    "MobileNetV2 x 1.4, ASPP, decoder": {
        "model_variant": "mobilenet_v2", "output_stride": 16, "atrous_rates": RATES[16], "depth_multiplier": 1.4,
        **DECODER,
    },
    "MobileNetV2 x 0.35, short head, OS 8": {
        "model_variant": "mobilenet_v2", "output_stride": 8, "depth_multiplier": 0.35,
    },
    "MobileNetV2, short head, resizes to 321..401": {
        "model_variant": "mobilenet_v2", "output_stride": 16, "crop_size": [401, 401], "min_resize_value": 321,
        "max_resize_value": 401, "resize_factor": 16,
    },
    "MobileNetV2, ASPP, decoder, no image pooling": {
        "model_variant": "mobilenet_v2", "output_stride": 16, "atrous_rates": RATES[16],
        "add_image_level_feature": False, **DECODER,
    },
    "Xception-41, ASPP, OS 8, multi-grid 1 2 4": {
        "model_variant": "xception_41", "output_stride": 8, "atrous_rates": RATES[8], "multi_grid": [1, 2, 4],
    },
}  # fmt: skip
CLASSES = 21
SIDES = (None, 513, 481, 400, 321)  # the longer sides at which photographs are shown; None: as they are
COLUMNS = (
    "model", "weights", "images", "logits, largest difference / range", "labels equal, %", "classes in the labels",
    "TensorFlow from float64 / range", "ours from float64 / range",
)  # fmt: skip
LIMITS = {"logits": 1e-3, "labels": 0.9999}
PACKAGES = ("tensorflow", "tf-keras", "tf-slim")


@dataclass
class Row:
    """One model's comparison: differences over the range of TensorFlow's logits, and the share of equal labels."""

    name: str
    weights: str
    images: int
    logits: float
    labels: float
    classes: int
    theirs_from_double: float
    ours_from_double: float

    def __str__(self):
        numbers = f"{self.images} | {self.logits:.1e} | {100 * self.labels:.4f} | {self.classes}"
        doubled = f"{self.theirs_from_double:.1e} | {self.ours_from_double:.1e}"
        return f"| {self.name} | {self.weights} | {numbers} | {doubled} |"

    def beyond(self):
        """Return whether it is beyond the limits."""
        return not (self.logits <= LIMITS["logits"] and self.labels >= LIMITS["labels"])


def photographs(folders, count):
    """Return photographs from all folders in turns, each at another size; longer sides are at most 513."""
    files = [sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg")) for folder in folders]
    files = [found or sorted(folder.rglob("*.png")) for found, folder in zip(files, folders, strict=True)]
    found = []
    for i in range(count):
        part = files[i % len(files)]
        image = Image.open(part[(i * 7) % len(part)]).convert("RGB")
        longest = max(image.size)
        side = SIDES[i % len(SIDES)] or min(longest, 513)
        size = tuple(max(int(length * side / longest), 1) for length in image.size)
        found.append(np.asarray(image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)))
    return found


def compare(name, weights, graph, folder, images):
    """Import a graph and run both sides on each image."""
    from original_tensorflow import Graph

    output = folder / f"{graph.stem}.ckpt"
    import_model("tensorflow", graph, output, overwrite=True)
    theirs = Graph(graph)
    row = Row(name, weights, len(images), *numbers(theirs, load_predictor(output), images))
    theirs.session.close()
    return row


def numbers(theirs, ours, images):
    """Return a row's numbers.

    Args:
        theirs: gives labels (H, W), and logits (C, H', W') of the prepared image, for an image (H, W, 3) uint8.
        ours: the predictor.
        images: of any sizes.
    """
    difference, equal, pixels, seen, doubled = 0.0, 0, 0, set(), None
    for image in images:
        labels, logits = theirs(image)
        tensor = ours.preparation.input(image, ours.device)
        found = output(ours.model, tensor)
        difference = max(difference, away(found, logits, logits))
        equal += int((ours(image) == labels).sum())
        pixels += labels.size
        seen |= set(np.unique(labels).tolist())
        if doubled is None:
            exact = output(copy.deepcopy(ours.model).double(), tensor.double())
            doubled = away(logits, exact, logits), away(found, exact, logits)
    return difference, equal / pixels, len(seen), *doubled


@torch.inference_mode()
def output(model, tensor):
    """Return logits (C, H, W) of a tensor (1, 3, H, W)."""
    return model(tensor)[0].numpy()


def away(one, other, reference):
    """Return the largest difference over the reference's range."""
    return float(np.abs(one - other).max() / np.ptp(reference))


def require_same_weights(graph, checkpoint, flags):
    """Refuse to go on where the checkpoint, imported by itself, gives other weights than the graph made from it."""
    hints = {"output_stride": flags["output_stride"]}
    if "dense_prediction_cell_json" in flags:
        hints["dense_prediction_cell"] = "published"
    one, other = read(graph), read(checkpoint, **hints)
    said = {"multi_grid": None, "dense_prediction_cell": None}  # by the graph alone
    if {**one.model, **said} != {**other.model, **said}:
        raise SystemExit(f"{graph}: the checkpoint is imported as another model:\n{one.model}\n{other.model}")
    if one.state.keys() != other.state.keys() or any(not v.equal(other.state[k]) for k, v in one.state.items()):
        raise SystemExit(f"{graph}: the checkpoint is imported with other weights")


def rows(options, images):
    """Yield a row for each graph with trained weights, and for each network."""
    from original_tensorflow import SIZE, Original

    with tempfile.TemporaryDirectory() as temporary:
        for graph in options.graph:
            yield compare(graph.stem, "trained", graph, Path(temporary), images)
        original = Original(options.models)
        size = Image.Resampling.BILINEAR
        shown = [np.asarray(Image.fromarray(image).resize((SIZE, SIZE), size)) for image in images[:2]]
        for seed, (name, flags) in enumerate(NETWORKS.items()):
            if options.only and options.only not in name:
                continue
            flags = dict(flags, num_classes=CLASSES)
            if "dense_prediction_cell_json" in flags:
                flags["dense_prediction_cell_json"] = str(options.models / CELL)
            folder = Path(temporary) / str(seed)
            checkpoint, graph = original.write(folder, np.stack(shown), seed, **flags)
            if "min_resize_value" not in flags:
                require_same_weights(graph, checkpoint, flags)
            yield compare(name, "random", graph, folder, images)


def heading():
    """Return what was run on what."""
    versions = {key: value for key, value in record.versions().items() if key in ("python", "torch", "numpy", "pillow")}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    commit = record.commit()
    changed = " with changes" if commit["dirty"] else ""
    return f"{date.today()}, {record.hardware(1, gpu=False)}, {named}, commit {str(commit['commit'])[:10]}{changed}"


def parsed(words):
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="a checkout of tensorflow/models")
    parser.add_argument("--photographs", type=Path, nargs="+", required=True, help="folders with .jpg or .png files")
    parser.add_argument("--graph", type=Path, nargs="*", default=[], help="frozen graphs with trained weights")
    parser.add_argument("--images", type=int, default=10, help="how many photographs each model sees")
    parser.add_argument("--only", default="", help="of the random networks, those whose name holds this")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--output", type=Path, help="where the table is written to as well")
    return parser.parse_args(words)


def write_table(found, images, path):
    """Print rows as they come, and write them to a file where one is named; gives the names beyond the limits."""
    sizes = ", ".join(f"{image.shape[0]} x {image.shape[1]}" for image in images)
    lines = [heading(), "", f"Photographs of {sizes}.", "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    print("\n".join(lines), flush=True)
    beyond = []
    for row in found:
        print(row, flush=True)
        lines.append(str(row))
        beyond += [row.name] if row.beyond() else []
        if path:
            path.write_text("\n".join(lines) + "\n")
    return beyond


def main():
    options = parsed(sys.argv[1:])
    torch.set_num_threads(options.threads)
    images = photographs(options.photographs, options.images)
    beyond = write_table(rows(options, images), images, options.output)
    if beyond:
        raise SystemExit(f"error: beyond the limits {LIMITS}: {', '.join(beyond)}")


if __name__ == "__main__":
    main()
