"""mmsegmentation's DeepLabV3 and DeepLabV3+ on ResNet-50 and -101: a .pth of its runner, or one that it published.

The heads are mmsegmentation's own here too, and the backbone's blocks carry torchvision's names in both, so that only
the prefixes differ. What tensors cannot tell (strides, atrous rates, sizes) is read from the configuration that the
file carries as text, where it does; else it is that of the published ``d8`` models.
"""

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from deeplab_recipes.model.choices import choose
from deeplab_recipes.model.importers.base import Colour, Imported
from deeplab_recipes.model.importers.torch_file import count_tensors, read_file, state_dict

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
PREFIXES = {"backbone.": "backbone.", "decode_head.": "head.", "auxiliary_head.": "auxiliary_head."}
DEPTHS = {6: "50", 23: "101"}  # blocks of the third stage
HEADS = {"DepthwiseSeparableASPPHead": "deeplabv3plus", "ASPPHead": "deeplabv3"}
# Tensors with which mmsegmentation's other models begin, and what they are.
ELSEWHERE = {
    "data_preprocessor.": "the input's normalisation, which the card holds",
    "ema_": "a second, averaged copy of the weights",
    "backbone.fc.": "the ImageNet classifier",
}
STRIDES = {(1, 2, 1, 1): ((1, 1, 2, 4), 8), (1, 2, 2, 1): ((1, 1, 1, 2), 16), (1, 2, 2, 2): ((1, 1, 1, 1), 32)}
LARGEST = (2048, 512)  # of the scales at which mmsegmentation evaluates ADE20k and Pascal VOC
SQUARE = [512, 512]


def read(file: Path, *, output_stride: int | None = None, head: str | None = None) -> Imported:
    """Read a checkpoint of mmsegmentation.

    Args:
        file: a .pth with ``state_dict`` and perhaps ``meta``, or a state dict alone.
        output_stride: that the model was trained with; None: the configuration's in the file, or 8.
        head: deeplabv3plus or deeplabv3, to be sure; None: as the tensors tell.

    Raises:
        FileNotFoundError, ValueError: it cannot be read, or is not of one of these models.
    """
    content = read_file(file)
    state = state_dict(file, content.get("state_dict", content), "state_dict")
    meta = content.get("meta") if "state_dict" in content else None
    meta = meta if isinstance(meta, Mapping) else {}
    settings = _configuration(meta)
    kept, unused = _sort(state)
    found = _architecture(file, kept)
    if head not in (None, found["head"]):
        raise ValueError(f"head={head}, but {file} holds a {found['head']}; valid are {', '.join(HEADS.values())}")
    found |= _settings(file, settings, found, output_stride)
    classes, palette = _classes(meta, found["num_classes"])
    aside = {key: value for key, value in content.items() if key not in ("state_dict", "meta")}
    if "state_dict" in content:
        unused |= {f"{key} ({count_tensors(value)} tensors)": _state_of(key) for key, value in aside.items()}
    mean, std = _normalisation(settings)
    size = {"protocol": "keep_ratio", "evaluate_sizes": {"square": SQUARE, "keep_ratio": _scale(settings, meta)}}
    renamed = {_rename(key): value for key, value in kept.items()}
    return Imported(found, renamed, mean, std, classes, size, unused, palette)


def _sort(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Part the tensors into the model's and others, with the reason."""
    unused = {key: reason for key in state for start, reason in ELSEWHERE.items() if key.startswith(start)}
    return {key: value for key, value in state.items() if key not in unused}, unused


def _rename(key: str) -> str:
    for theirs, ours in PREFIXES.items():
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return key  # has no place, which `base.build` says


def _architecture(file: Path, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of `build_deeplab` that the tensors tell."""
    blocks = len({match[1] for key in state if (match := re.match(r"backbone\.layer3\.(\d+)\.", key))})
    needed = {"backbone.layer1.0.conv3.weight", "decode_head.conv_seg.weight"}
    if blocks not in DEPTHS or not needed <= state.keys():
        raise ValueError(
            f"{file} is no DeepLab on a ResNet-50 or -101 of mmsegmentation: its tensors begin with "
            f"{', '.join(sorted({key.partition('.')[0] for key in state})[:5])}, its third stage has {blocks} blocks. "
            "Valid are deeplabv3 and deeplabv3plus with ResNet or ResNetV1c"
        )
    plus = "decode_head.c1_bottleneck.conv.weight" in state
    if "decode_head.aspp_modules.0.conv.weight" not in state or "decode_head.image_pool.1.conv.weight" not in state:
        raise ValueError(f"{file} has another head than DeepLabV3's or DeepLabV3+'s: there is no ASPP in it")
    classes, channels = state["decode_head.conv_seg.weight"].shape[:2]
    return {
        "num_classes": classes,
        "backbone": f"resnet{DEPTHS[blocks]}" + ("_v1c" if "backbone.stem.0.weight" in state else ""),
        "head": "deeplabv3plus" if plus else "deeplabv3",
        "aspp_channels": channels,
        **({"decoder_channels": state["decode_head.c1_bottleneck.conv.weight"].shape[0]} if plus else {}),
        "auxiliary_head": any(key.startswith("auxiliary_head.") for key in state),
    }


def _settings(
    file: Path, settings: Mapping[str, Any], found: Mapping[str, Any], output_stride: int | None
) -> dict[str, Any]:
    """Return the arguments that only the configuration tells, where the file has one."""
    model = _part(settings, "model")
    backbone, head = _part(model, "backbone"), _part(model, "decode_head")
    _refuse_other(file, backbone, head)
    strides = tuple(backbone.get("strides", (1, 2, 1, 1)))
    stride = STRIDES[strides][1]
    common: dict[str, Any] = {"dropout": float(head.get("dropout_ratio", 0.1))}
    common |= {"align_corners": True} if head.get("align_corners") else {}
    rates = head.get("dilations")
    if output_stride not in (None, stride):
        # As given: rebuilt at another stride, mmsegmentation would need other rates too.
        return {"output_stride": output_stride, "aspp_dilations": None, **common}
    published = {8: [1, 12, 24, 36], 16: [1, 6, 12, 18]}
    own = None if rates is None or list(rates) == published.get(stride) else list(rates)
    return {"output_stride": stride, "aspp_dilations": own, **common}


def _refuse_other(file: Path, backbone: Mapping[str, Any], head: Mapping[str, Any]) -> None:
    """Refuse what would give other logits although the tensors fit."""
    strides = tuple(backbone.get("strides", (1, 2, 1, 1)))
    dilations, stride = choose("backbone strides", str(strides), {str(key): value for key, value in STRIDES.items()})
    problems = {
        f"dilations={backbone.get('dilations')}": tuple(backbone.get("dilations", dilations)) != dilations,
        "contract_dilation=False": bool(backbone) and stride < 32 and not backbone.get("contract_dilation", False),
        "style='caffe'": backbone.get("style", "pytorch") != "pytorch",
        "multi_grid": backbone.get("multi_grid") is not None,
        f"decode_head type {head.get('type')}": head.get("type", "ASPPHead") not in HEADS,
    }
    found = [name for name, present in problems.items() if present]
    if found:
        raise ValueError(f"{file}: its configuration says {', '.join(found)}, which no model here has")


def _classes(meta: Mapping[str, Any], count: int) -> tuple[tuple[str, ...] | None, tuple[Colour, ...] | None]:
    """Return names and colours, which mmsegmentation 0.x and 1.x keep in different places."""
    names, colours = meta.get("CLASSES"), meta.get("PALETTE")
    later = meta.get("dataset_meta")
    if isinstance(later, Mapping):
        names, colours = later.get("classes", later.get("CLASSES", names)), later.get("palette", later.get("PALETTE"))
    classes = tuple(map(str, names)) if isinstance(names, Sequence) and len(names) == count else None
    if not isinstance(colours, Sequence) or len(colours) != count:
        return classes, None
    return classes, tuple((int(r), int(g), int(b)) for r, g, b in colours)


def _state_of(key: str) -> str:
    return "the optimizer's state; training begins anew" if "optim" in key else "the training's own state"


def _configuration(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration that a file carries as Python text, which is read and never run; {} without one."""
    text = meta.get("cfg", meta.get("config"))
    if not isinstance(text, str):
        return {}
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return {}
    values: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            values[node.targets[0].id] = _value(node.value, values)
    return values


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """Return what a literal, a dict(...) or a name of an earlier value stands for; None for anything else."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {word.arg: _value(word.value, names) for word in node.keywords if word.arg}
    if isinstance(node, ast.Dict):
        return {_value(k, names): _value(v, names) for k, v in zip(node.keys, node.values, strict=True) if k}
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item, names) for item in node.elts]
    if isinstance(node, ast.Name):
        return names.get(node.id)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return None


def _part(settings: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = settings.get(key)
    return part if isinstance(part, Mapping) else {}


def _normalisation(settings: Mapping[str, Any]) -> tuple[Any, Any]:
    for part in (_part(_part(settings, "model"), "data_preprocessor"), _part(settings, "data_preprocessor"),
                 _part(settings, "img_norm_cfg")):  # fmt: skip
        if part.get("mean") and part.get("std"):
            return tuple(map(float, part["mean"])), tuple(map(float, part["std"]))
    return MEAN, STD


def _scale(settings: Mapping[str, Any], meta: Mapping[str, Any]) -> list[int]:
    """Return the (long, short) side to which images are resized for evaluation."""
    for step in settings.get("test_pipeline") or ():
        if isinstance(step, Mapping):
            scale = step.get("img_scale", step.get("scale"))  # 0.x: of MultiScaleFlipAug; 1.x: of Resize
            if isinstance(scale, list) and len(scale) == 2:
                return [max(scale), min(scale)]
    names = _classes(meta, 19)[0]
    return [2048, 1024] if names and names[:2] == ("road", "sidewalk") else list(LARGEST)
