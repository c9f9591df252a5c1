"""TensorFlow's research/deeplab: frozen graphs and checkpoints of MobileNetV2 and Xception, read without TensorFlow.

A frozen graph tells all of the model. A checkpoint holds names and shapes only: of its output stride, atrous rates and
dense prediction cell the file says nothing, and hints do.
"""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from deeplab_recipes.model.dense_prediction_cell import Cell, CellSpec, parse_cell
from deeplab_recipes.model.heads import DILATIONS
from deeplab_recipes.model.importers.base import Imported
from deeplab_recipes.model.importers.graph_def import VARIABLES, FrozenGraph
from deeplab_recipes.model.importers.slim import (
    BLOCK_CHANNELS,
    EPSILON,
    LEVEL,
    STEM_CHANNELS,
    WIDTHS,
    Keys,
    Place,
    convert,
    find_width,
    head_keys,
    mobilenet_place,
    named,
)
from deeplab_recipes.model.importers.tensor_bundle import Checkpoint

MOBILENET, CELL = "MobilenetV2", "meta_architecture"
XCEPTIONS = {"xception_41": "xception41", "xception_65": "xception65", "xception_71": "xception71"}
CROP = (513, 513)  # what research/deeplab pads images to unless told otherwise
DECAY = {MOBILENET: 0.997, "xception": 0.9997, "head": 0.9997}  # of batch norm's averages, in its training script
HEAD_SCOPES = ("image_pooling", "aspp0", "concat_projection", "decoder", CELL)
NO_MODEL = {  # parts of a name that tell of training or of another task -> why they are left out
    r"global_step$": "counts training steps",
    r"(^|/)(Momentum|Adam|Adam_1|RMSProp|RMSProp_1)$": "the optimizer's state",
    r"ExponentialMovingAverage$": "an average of weights; the weights themselves are taken",
    r"^MobilenetV2/(Conv_1|Logits)/": "of the classifier that the backbone was trained with",
    r"^xception_\d+/logits/": "of the classifier that the backbone was trained with",
    r"^(beta[12]_power|save|train_op|learning_rate)": "the optimizer's state",
}


class Source(Protocol):
    """What a frozen graph and a checkpoint have in common."""

    file: Path
    graph: FrozenGraph | None

    def names(self) -> list[str]:
        """Return the names of all tensors."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""

    def tensor(self, name: str) -> np.ndarray:
        """Return a tensor."""


class _GraphSource:
    def __init__(self, file: Path) -> None:
        self.file, self.graph = file, FrozenGraph(file)

    def names(self) -> list[str]:
        return list(self.graph.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.graph.tensors[name].shape

    def tensor(self, name: str) -> np.ndarray:
        return self.graph.tensors[name]


class _CheckpointSource:
    graph = None

    def __init__(self, file: Path) -> None:
        self.file, self.checkpoint = file, Checkpoint(file)

    def names(self) -> list[str]:
        return list(self.checkpoint.entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.checkpoint.shape(name)

    def tensor(self, name: str) -> np.ndarray:
        return self.checkpoint.tensor(name)


def read(
    file: str | Path,
    *,
    output_stride: int | None = None,
    width_multiplier: float | None = None,
    head: str | None = None,
    dense_prediction_cell: CellSpec = None,
) -> Imported:
    """Read a frozen graph (.pb, or the .tar.gz of the model zoo) or a checkpoint (its prefix, .index or .data file).

    Args:
        file: the file.
        output_stride: of a checkpoint: 8, 16 or 32; its atrous rates are those usual at that. A graph says it.
        width_multiplier: of MobileNetV2's channels, only to be compared: the shapes say it.
        head: only to be compared: the names say it.
        dense_prediction_cell: of a checkpoint that has one; of a graph only to be compared.

    Returns:
        The model. Its input is prepared as the exported graph does: images are padded to its crop size.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another program's file, an architecture that is not imported, a damaged file, a hint that is
            missing or that the file contradicts.
    """
    source = _source(Path(file))
    names, unused = _sorted_out(source)
    scope = _backbone_scope(source, names)
    if source.graph:
        _require_known_operations(source, scope)
    hints = {"output_stride": output_stride, "width_multiplier": width_multiplier, "head": head}
    hints["dense_prediction_cell"] = dense_prediction_cell
    model, branches = _model(source, names, scope, dense_prediction_cell, output_stride)
    _require_agreement(source, model, hints)
    keys = {**_backbone_keys(scope, names), **_head_keys(names, branches)}
    state = _state(source, names, keys)
    unused |= _further_passes(source, names)
    return Imported(model, state, (LEVEL,) * 3, (LEVEL,) * 3, None, _size(source), unused, used=len(names))


def _source(file: Path) -> Source:
    if file.suffix in (".pb", ".gz", ".tar", ".tgz"):
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {file}")
        return _GraphSource(file)
    if file.is_dir():
        raise ValueError(f"{file} is a folder; name the frozen graph (.pb) or the checkpoint (its .index) in it")
    if file.suffix in (".h5", ".hdf5", ".pth", ".pt", ".ckpt.pt", ".tflite"):
        raise ValueError(f"{file} is neither a frozen graph (.pb) nor a checkpoint (.index); its source is another one")
    return _CheckpointSource(file)


def _sorted_out(source: Source) -> tuple[list[str], dict[str, str]]:
    """Return the names of the model's tensors, and why the others are not used, like ones in one line."""
    names, groups = [], {}
    for name in source.names():
        reason = next((why for pattern, why in NO_MODEL.items() if re.search(pattern, name)), None)
        if reason is None:
            names.append(name)
        else:
            groups.setdefault(reason, []).append(name)
    unused = {_listed(members): reason for reason, members in groups.items()}
    if source.graph is not None and source.graph.constants:
        unused[f"{source.graph.constants} constants of the graph"] = "sizes, axes and the like, read where they matter"
    return names, unused


def _listed(names: list[str]) -> str:
    """Name tensors: all of them where they are few, else how many end alike."""
    if len(names) <= 6:
        return ", ".join(names)
    endings = Counter(name.rsplit("/", 1)[-1] for name in names)
    return ", ".join(f"{count} of the name .../{ending}" for ending, count in endings.items())


def _backbone_scope(source: Source, names: list[str]) -> str:
    scopes = {name.split("/", 1)[0] for name in names}
    found = [scope for scope in (MOBILENET, *XCEPTIONS) if scope in scopes]
    if len(found) != 1:
        there = ", ".join(sorted(scopes)[:5]) or "no weights"
        raise ValueError(
            f"{source.file} has no {MOBILENET} or {', '.join(XCEPTIONS)}, the imported ones; it has {there}"
        )
    if not any(name.startswith("logits/") for name in names):
        raise ValueError(f"{source.file} has no logits/: it is a classifier's backbone, not a DeepLab")
    return found[0]


def _model(
    source: Source, names: list[str], scope: str, cell: CellSpec, stride: int | None
) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments of `build_deeplab`, and the scopes of the encoder's branches in their order."""
    stride = _output_stride(source, names, scope) if source.graph else stride
    if stride is None:
        raise ValueError(f"{source.file}: a checkpoint does not say its output stride; give it: output_stride=16, say")
    if stride not in DILATIONS:
        raise ValueError(f"output_stride must be one of {', '.join(map(str, DILATIONS))}, got {stride!r}")
    last = _last_layer(source, names)
    decoder = "decoder/feature_projection0/weights" in names
    arguments = {"num_classes": source.shape(f"{last}/weights")[3], "output_stride": stride, "dropout": 0.1}
    arguments |= _backbone(source, names, scope, stride)
    head, branches = _head(source, names, stride, cell, decoder=decoder)
    if decoder:
        head["decoder_channels"] = source.shape("decoder/feature_projection0/weights")[3]
        head |= {"low_level_features": "depthwise"} if scope == MOBILENET else {}
    decay = {"backbone": DECAY.get(scope, DECAY["xception"]), "head": DECAY["head"]}
    momentum = {part: round(1 - value, 6) for part, value in decay.items()}
    epsilon = _epsilon(source, scope)
    return {**arguments, **head, "batchnorm_momentum": momentum, "batchnorm_epsilon": epsilon}, branches


def _last_layer(source: Source, names: list[str]) -> str:
    found = sorted({_layer(name) for name in names if name.startswith("logits/")})
    if len(found) != 1:
        raise ValueError(f"{source.file} has {len(found)} last layers ({', '.join(found)}); one is imported")
    return found[0]


def _backbone(source: Source, names: list[str], scope: str, stride: int) -> dict[str, Any]:
    if scope == MOBILENET:
        width, divisor = _width(source, names)
        return {"backbone": "mobilenet_v2", "width_multiplier": width, "width_divisor": divisor, "padding": "same"}
    grid = _multi_grid(source, scope, stride) if source.graph else None
    return {"backbone": XCEPTIONS[scope], **({} if grid is None else {"multi_grid": grid})}


def _multi_grid(source: Source, scope: str, stride: int) -> list[int] | None:
    """Return the factors on the rates of the last block, which are 32 / stride where there are none."""
    unit = f"{scope}/exit_flow/block2/unit_1/xception_module"
    rates = [_rate(source, f"{unit}/separable_conv{i}_depthwise") for i in (1, 2, 3)]
    factors = [rate * stride // 32 for rate in rates]
    return None if factors == [1, 1, 1] else factors


def _width(source: Source, names: list[str]) -> tuple[float, int]:
    """Return the width multiplier and divisor that give MobileNetV2's channels."""
    blocks = range(len(BLOCK_CHANNELS))
    projections = [f"{MOBILENET}/expanded_conv{f'_{i}' if i else ''}/project/weights" for i in blocks]
    layers = [f"{MOBILENET}/Conv/weights", *projections]
    missing = [name for name in layers if name not in names]
    if missing:
        raise ValueError(f"{source.file} is no whole {MOBILENET}: {missing[0]} is missing")
    found = [source.shape(name)[3] for name in layers]
    widths = (*WIDTHS, found[-1] / BLOCK_CHANNELS[-1])
    width = find_width(found, (STEM_CHANNELS, *BLOCK_CHANNELS), widths, (8, 1))
    if width is None:
        raise ValueError(f"{source.file}: no width multiplier gives MobileNetV2 the channels {found}")
    return width


def _output_stride(source: Source, names: list[str], scope: str) -> int:
    """Return the product of the backbone's strides, those of the shortcuts beside them left out."""
    stride = 1
    for name in names:
        layer = name.rsplit("/", 1)[0]
        if name.startswith(f"{scope}/") and name.endswith("weights") and not layer.endswith("shortcut"):
            stride *= source.graph.strides(layer)[0]
    return stride


def _head(
    source: Source, names: list[str], stride: int, cell: CellSpec, *, decoder: bool
) -> tuple[dict[str, Any], list[str]]:
    if any(name.startswith(f"{CELL}/") for name in names):
        return _cell_head(source, names, stride, cell, decoder=decoder)
    if "concat_projection/weights" not in names or "aspp0/weights" not in names:
        raise ValueError(f"{source.file} has no aspp0 with concat_projection; heads without them are not imported")
    pooled = "image_pooling/weights" in names  # add_image_level_feature
    if pooled and source.graph:
        _require_whole_pooling(source, stride)
    scopes = ["aspp0"] + [f"aspp{i}" for i in range(1, 9) if f"aspp{i}_depthwise/depthwise_weights" in names]
    common = {"aspp_channels": source.shape("concat_projection/weights")[3]}
    common |= {} if pooled else {"image_pooling": False}
    if scopes == ["aspp0"] and not decoder:
        return {"head": "tensorflow_short", **common}, scopes
    dilations = [1] + [_rate(source, f"{name}_depthwise") for name in scopes[1:]] if source.graph else None
    if scopes == ["aspp0"]:
        dilations = [1]
    elif dilations is None and len(scopes) != len(DILATIONS[stride]):
        raise ValueError(f"{source.file} has {len(scopes) - 1} atrous branches, whose rates a checkpoint does not say")
    usual = dilations is not None and tuple(dilations) == DILATIONS[stride]
    return {
        "head": "tensorflow",
        "aspp_dilations": None if usual else dilations,
        "decoder": decoder,
        **common,
    }, scopes


def _rate(source: Source, scope: str) -> int:
    height, width = source.graph.rates(scope)
    if height != width:
        raise ValueError(f"{source.file}: {scope} has rates {height} and {width}, an ASPP branch takes one for both")
    return height


def _require_whole_pooling(source: Source, stride: int) -> None:
    """Refuse image pooling over less than the whole map: it would be another model here."""
    whole = [(side - 1) // stride + 1 for side in _crop_size(source)]
    pooled = source.graph.pooling("image_pooling")
    if pooled is None or (pooled != (0, 0) and list(pooled) != whole):
        raise ValueError(
            f"{source.file} pools {pooled} of the {tuple(whole)} features of an image (image_pooling_crop_size); "
            "export it with image_pooling_crop_size=crop_size"
        )


def _cell_head(
    source: Source, names: list[str], stride: int, cell: CellSpec, *, decoder: bool
) -> tuple[dict[str, Any], list[str]]:
    pattern = re.compile(rf"{CELL}/(branch\d+)(_depthwise/depthwise_weights|/weights)")
    count = len({match[1] for match in map(pattern.fullmatch, names) if match})
    scopes = [f"{CELL}/branch{i}" for i in range(count)]
    if source.graph:
        cell = _described_cell(source, names, scopes, stride)
    elif cell is None:
        raise ValueError(
            f"{source.file}: a checkpoint does not say how the branches of its dense prediction cell are connected; "
            "give dense_prediction_cell=published or its JSON file, or import the frozen graph"
        )
    elif len(parse_cell(cell).branches) != count:
        raise ValueError(f"{source.file} has a cell of {count} branches, dense_prediction_cell another number")
    channels = source.shape(f"{CELL}/concat_projection/weights")[3]
    head = {"head": "dense_prediction_cell", "dense_prediction_cell": cell, "decoder": decoder}
    return {**head, "aspp_channels": channels}, scopes


def _described_cell(source: Source, names: list[str], scopes: list[str], stride: int) -> Any:
    """Return a cell as its JSON has it, with rates for output stride 16 where they can be had back."""
    branches = [_branch(source, names, scopes, i, stride) for i in range(len(scopes))]
    factor = max(1, 16 // stride)
    separable = [b for b in branches if b["op"] == "conv" and b["kernel"] != [1, 1]]
    if any(rate % factor for branch in separable for rate in branch["rate"]):
        return {"branches": branches, "conv_rate_multiplier": 1}
    for branch in separable:
        branch["rate"] = [rate // factor for rate in branch["rate"]]
    return branches


def _branch(source: Source, names: list[str], scopes: list[str], number: int, stride: int) -> dict[str, Any]:
    scope = scopes[number]
    separable = f"{scope}_depthwise/depthwise_weights" in names
    first = f"{scope}_depthwise" if separable else scope
    earlier = [f"{name}{ending}" for name in scopes[:number] for ending in ("_pointwise", "")]
    read_from = source.graph.reads_from(first, earlier)
    common = {"input": -1 if read_from is None else scopes.index(read_from.removesuffix("_pointwise"))}
    pooled = source.graph.pooling(first)
    if pooled is not None:
        sides = _crop_size(source)
        grid = [_grid(side, stride, size) for side, size in zip(sides, pooled, strict=True)]
        return {"op": "pyramid_pooling", "grid_size": grid, **common}
    kernel = list(source.shape(f"{first}/{'depthwise_' if separable else ''}weights")[:2])
    return {"op": "conv", "kernel": kernel, "rate": list(source.graph.rates(first)), **common}


def _grid(side: int, stride: int, pooled: int) -> int:
    """Return into how many parts a side is divided where `pooled` features are averaged."""
    return next((n for n in range(1, side) if int((side - 1) / (stride * n) + 1) == pooled), 1)


def _epsilon(source: Source, scope: str) -> dict[str, float]:
    """Return what is added to the variances, from the graph where there is one."""
    if source.graph is None:
        return dict(EPSILON)
    heads = ("concat_projection", f"{CELL}/concat_projection")
    found = {"backbone": source.graph.epsilon(_first_layer(scope))}
    found["head"] = next(filter(None, map(source.graph.epsilon, heads)), None)
    # cuDNN's smallest, 1.001e-5, stands in graphs for the 1e-5 that was asked for.
    return {part: EPSILON[part] if value is None else float(f"{value:.2g}") for part, value in found.items()}


def _size(source: Source) -> dict[str, Any]:
    """Return how the exported graph prepares an image, see `preparation.Padded`."""
    limits = source.graph.input_range() if source.graph else None
    size = {"protocol": "padded", "evaluate_sizes": {"padded": list(_crop_size(source))}}
    return {**size, **({} if limits is None else {"resize_range": limits})}


def _crop_size(source: Source) -> tuple[int, int]:
    found = source.graph.crop_size() if source.graph else None
    return found or CROP


def _require_agreement(source: Source, model: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    for key, value in hints.items():
        found = model.get(key)
        if value is None or value == found:
            continue
        if found is None:
            raise ValueError(f"{key}={value}, but {source.file} has none; leave it out")
        if key != "dense_prediction_cell" or _filled(value, model) != _filled(found, model):
            raise ValueError(f"{key}={value}, but {source.file} has {key}={found}; leave it out")


def _filled(cell: CellSpec, model: Mapping[str, Any]) -> Cell:
    """Return a cell, which can be written in several ways, as the model has it."""
    return parse_cell(cell).filled(model["aspp_channels"], model["output_stride"])


def _require_known_operations(source: Source, scope: str) -> None:
    """Refuse graphs that compute something else with the same tensors."""
    graph = source.graph
    pixel, scaling = graph.padding_pixel(), graph.scaling(_first_layer(scope))
    if pixel not in (None, (LEVEL,) * 3):
        raise ValueError(f"{source.file} pads with {pixel}, the imported models with {(LEVEL,) * 3}: another input")
    if scaling is not None and not np.allclose(scaling, (1 / LEVEL, 1), rtol=1e-4):
        raise ValueError(
            f"{source.file} scales images by {scaling}, the imported models by 2 / 255 less 1: another input"
        )
    if not graph.aligns_corners():
        raise ValueError(f"{source.file} resizes with corners not aligned; research/deeplab aligns them: another model")
    bounded = [part for part in (*XCEPTIONS, *HEAD_SCOPES) if "Relu6" in graph.operations(part)]
    if bounded:
        raise ValueError(f"{source.file} bounds activations in {bounded[0]} (use_bounded_activation), not imported")


def _further_passes(source: Source, names: list[str]) -> dict[str, str]:
    """Say where the graph averages over scales or flips: imported is one pass over the image."""
    last = _last_layer(source, names)
    passes = source.graph.uses(f"{last}/weights") if source.graph else 1
    if passes <= 1:
        return {}
    return {f"{passes - 1} further passes": "the graph averages over scales or flips; imported is one plain pass"}


def _first_layer(scope: str) -> str:
    return f"{scope}/Conv" if scope == MOBILENET else f"{scope}/entry_flow/conv1_1"


def _backbone_keys(scope: str, names: list[str]) -> Keys:
    layers = sorted({_layer(name) for name in names if name.startswith(f"{scope}/")})
    place = mobilenet_place if scope == MOBILENET else _xception_place
    return {layer: keys for layer in layers if (keys := place(layer.removeprefix(f"{scope}/"))) is not None}


def _layer(name: str) -> str:
    """Return the scope of the layer that a tensor is of."""
    return re.sub(r"(/BatchNorm)?/[^/]+$", "", name)


def _xception_place(layer: str) -> Place:
    return named("backbone." + layer.replace("/xception_module", "").replace("/", "."))


def _head_keys(names: list[str], branches: list[str]) -> Keys:
    """Return the keys of the head's layers; both encoders have ``branches`` and ``concat_projection``."""
    last = next(_layer(name) for name in names if name.startswith("logits/"))
    encoder = f"{CELL}/" if branches[0].startswith(CELL) else ""
    return head_keys(branches, last, encoder=encoder, decoder="decoder/")


def _state(source: Source, names: list[str], keys: Keys) -> dict[str, Tensor]:
    """Return the state dict.

    Raises:
        ValueError: a tensor of the model has no place here.
    """
    state: dict[str, Tensor] = {}
    for name in names:
        layer, kind = _layer(name), name.rsplit("/", 1)[-1]
        if layer not in keys or kind not in VARIABLES:
            raise ValueError(f"{source.file}: {name} has no place in the models that are imported; it would be lost")
        key, value = convert(kind, keys[layer], source.tensor(name))
        state[key] = value
    return {**state, **_left_out(state, keys)}


def _left_out(state: Mapping[str, Tensor], keys: Keys) -> dict[str, Tensor]:
    """Return what batch norms have here and not there: a count, and where scale or center is false 1 or 0."""
    added: dict[str, Tensor] = {}
    for _, norm in keys.values():
        mean = state.get(f"{norm}.running_mean")
        if mean is None:
            continue
        added[f"{norm}.num_batches_tracked"] = torch.tensor(0)
        for part, value in (("weight", 1.0), ("bias", 0.0)):
            if f"{norm}.{part}" not in state:
                added[f"{norm}.{part}"] = torch.full_like(mean, value)
    return added
