"""bonlime's keras-deeplab-v3-plus: calls of `Deeplabv3(...)`.

A call says what the network is, and nothing of training: that is the recipe finetune's. Source: the repository's
model.py. Its MobileNetV2 has output stride 8 whatever OS says, and no atrous branch and no decoder.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from deeplab_recipes.legacy import kinds
from deeplab_recipes.legacy.tables import Choice, Key, Refused, Table, Translation, apply, flatten, sizes

SYSTEM = "bonlime's Deeplabv3(...)"
CALL = "Deeplabv3"
ORDER = ("weights", "input_tensor", "input_shape", "classes", "backbone", "OS", "alpha", "activation")
BASE = ("+recipe=finetune",)
VOC_CLASSES = 21
DEFAULTS: Mapping[str, Any] = {
    "weights": "pascal_voc",
    "input_shape": [512, 512, 3],
    "classes": VOC_CLASSES,
    "backbone": "mobilenetv2",
    "OS": 16,
    "alpha": 1.0,
}
ZOO = {"pascal_voc": "voc", "cityscapes": "cityscapes"}
SHAPE = kinds.Kind(
    "(height, width, 3), or (None, None, 3) for any size",
    lambda v: (
        isinstance(v, list)
        and len(v) == 3
        and v[2] == 3
        and (v[:2] == [None, None] or all(kinds.COUNT.accepts(n) and n >= 33 for n in v[:2]))
    ),
)


def _is_mobile(values: Mapping[str, Any]) -> bool:
    return values["backbone"] == "mobilenetv2"


def _weights(name: str | None, values: Mapping[str, Any]) -> list[str]:
    """Its own classes keep the last layer; another number of them begins it anew."""
    if name is None:
        return ["weights=null", "model.freeze_batchnorm=none"]  # statistics that are to be found first
    backbone = "mobilenet_v2" if _is_mobile(values) else "xception65"
    return [f"weights=zoo:{ZOO[name]}_{backbone}", "init=transfer_learning"]


def _size(shape: Sequence[Any], values: Mapping[str, Any]) -> list[str]:
    return [] if shape[0] is None else sizes(shape[0], shape[1], "square")


def _output_stride(stride: int, values: Mapping[str, Any]) -> str:
    return f"model.output_stride={8 if _is_mobile(values) else stride}"


def _width(alpha: float, values: Mapping[str, Any]) -> list[str]:
    if values["weights"] is not None and _is_mobile(values) and alpha != 1:
        raise ValueError("weights exist for alpha=1 only; weights=None trains another width from the start")
    return [f"model.width_multiplier={alpha}"] if _is_mobile(values) else []


LOGITS = Refused("training and its losses take logits here; predictor.logits(image).softmax(0) gives probabilities")
TABLE: Table = {
    "backbone": Choice(
        {
            "mobilenetv2": "model=tensorflow_mobilenet_v2",
            "xception": "model=tensorflow_xception65",
        }
    ),
    "weights": Key(
        kinds.Kind("'pascal_voc', 'cityscapes' or None", lambda v: v is None or (isinstance(v, str) and v in ZOO)),
        _weights,
    ),
    "input_shape": Key(SHAPE, _size),
    "input_tensor": Choice({None: ""}),
    "classes": Key(kinds.COUNT, "", "the data bring their classes, whatever their number"),
    "OS": Key(
        kinds.Kind("8 or 16", lambda v: kinds.COUNT.accepts(v) and v in (8, 16)),
        _output_stride,
        "xception's only, as there",
    ),
    "alpha": Key(kinds.POSITIVE, _width, "mobilenetv2's only, as there"),
    "activation": Choice({None: "", "softmax": LOGITS, "sigmoid": LOGITS}),
}


def translate_call(arguments: Mapping[str, Any]) -> Translation:
    """Translate the arguments of `Deeplabv3`, by name.

    Raises:
        ValueError: for an unknown argument or a value that it does not take.
    """
    translation = Translation(SYSTEM, list(BASE))
    given = flatten(arguments, TABLE)
    values = apply(TABLE, given, DEFAULTS, translation)
    translation.needed["data"] = (
        f"classes={values['classes']}, and the call does not say of what: data=NAME data.root=DIR names the data, "
        f"which bring their classes: folder_square for your own, voc_square has {VOC_CLASSES}"
    )
    return translation
