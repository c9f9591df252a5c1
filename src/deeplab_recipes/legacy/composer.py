"""Composer: the YAML blocks of its DeepLabv3+ model card, and calls of `composer_deeplabv3(...)`."""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from deeplab_recipes.legacy import kinds
from deeplab_recipes.legacy.tables import Choice, Key, Refused, Table, Translation, apply, flatten

SYSTEM = "Composer's YAML"
CALL_SYSTEM = "Composer's composer_deeplabv3(...)"
CALL = "composer_deeplabv3"
# torchvision's files: the digits are the start of their sha256
WEIGHTS = {
    "resnet101-63fe2227": "imagenet1k_v1",
    "resnet101-5d3b4d8f": "imagenet1k_v1",
    "resnet101-cd907fc2": "imagenet1k_v2",
    "resnet50-0676ba61": "imagenet1k_v1",
    "resnet50-19c8e357": "imagenet1k_v1",
    "resnet50-11ad3fa6": "imagenet1k_v2",
}
ADE20K_CLASSES = 150
MODEL_DEFAULTS: Mapping[str, Any] = {
    "backbone_arch": "resnet101",
    "sync_bn": True,
    "use_plus": True,
    "cross_entropy_weight": 1.0,
    "dice_weight": 0.0,
    "initializers": [],
}


def _weights(pretrained: bool, values: Mapping[str, Any]) -> str:
    url, architecture = values.get("backbone_url", ""), values["backbone_arch"]
    if not pretrained:
        return "model.backbone_weights=none"
    name = PurePosixPath(url).stem
    if url and name not in WEIGHTS:
        raise ValueError(
            f"backbone_url={url} is none of {', '.join(WEIGHTS)}; take it out, and give model.backbone_weights=FILE"
        )
    if url and not name.startswith(f"{architecture}-"):
        raise ValueError(f"backbone_url={url} does not hold a {architecture}'s weights, which backbone_arch asks for")
    return f"model.backbone_weights={WEIGHTS.get(name, 'imagenet1k_v1')}"


def _duration(text: str, values: Mapping[str, Any]) -> list[str]:
    if text.endswith("ep"):
        return [f"trainer.max_epochs={text[:-2]}"]
    return ["trainer.max_epochs=null", f"trainer.max_steps={text[:-2]}"]


IGNORED = "every data set here brings its own number for pixels to ignore (255 in training)"
MODEL: Table = {
    "num_classes": Key(kinds.COUNT, ""),
    "backbone_arch": Choice({name: f"model.backbone={name}" for name in ("resnet50", "resnet101")}),
    "use_plus": Choice({True: "model.head=deeplabv3plus", False: "model.head=deeplabv3"}),
    "is_backbone_pretrained": Key(kinds.SWITCH, _weights),
    "backbone_url": Key(kinds.Kind("an address, or an empty one", lambda v: isinstance(v, str)), ""),
    "backbone_weights": Choice(
        {
            None: "model.backbone_weights=none",
            "IMAGENET1K_V1": "model.backbone_weights=imagenet1k_v1",
            "IMAGENET1K_V2": "model.backbone_weights=imagenet1k_v2",
        }
    ),
    "initializers": Key(
        kinds.Kind(
            "a list of kaiming_normal, bn_ones",
            lambda v: isinstance(v, list) and all(name in ("kaiming_normal", "bn_ones") for name in v),
        ),
        "model.initializers={}",
    ),
    "sync_bn": Key(kinds.SWITCH, "trainer.sync_batchnorm={}"),
    "cross_entropy_weight": Key(kinds.NOT_NEGATIVE, "loss.cross_entropy={}"),
    "dice_weight": Key(kinds.NOT_NEGATIVE, "loss.dice={}"),
    "ignore_index": Key(kinds.WHOLE, "", IGNORED),
}
OPTIMIZERS = ("sgd", "decoupled_sgdw")
OPTIMIZER: Table = {
    "lr": Key(kinds.POSITIVE, "optimizer.lr={}"),
    "momentum": Key(kinds.SHARE, "optimizer.momentum={}"),
    "weight_decay": Key(kinds.NOT_NEGATIVE, "optimizer.weight_decay={}"),
    "dampening": Key(kinds.SHARE, "optimizer.dampening={}"),
    "nesterov": Key(kinds.SWITCH, "optimizer.nesterov={}"),
}
OPTIMIZER_DEFAULTS = {"momentum": 0, "weight_decay": 0, "dampening": 0, "nesterov": False}
SCHEDULES: Mapping[str, Table] = {
    "polynomial": {
        "power": Key(kinds.POSITIVE, "schedule.power={}"),
        "alpha_f": Key(kinds.SHARE, "schedule.alpha_f={}"),
        "t_max": Choice({"1dur": ""}),
    },
    "cosine_decay": {"alpha_f": Key(kinds.SHARE, "schedule.alpha_f={}"), "t_max": Choice({"1dur": ""})},
    "constant": {},
}
SCHEDULE_NAMES = {"polynomial": "polynomial", "cosine_decay": "cosine", "constant": "constant"}
SCHEDULE_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "polynomial": {"alpha_f": 0.0},
    "cosine_decay": {"alpha_f": 0.0},
    "constant": {},
}
TOP: Table = {
    "max_duration": Key(
        kinds.Kind(
            "epochs as 127ep, or batches as 90000ba", lambda v: re.fullmatch(r"[1-9]\d*(ep|ba)", str(v)) is not None
        ),
        _duration,
    ),
    "train_batch_size": Key(kinds.COUNT, "batch_size={}"),
    "eval_batch_size": Key(kinds.COUNT, "evaluate_batch_size={}", "there of all devices, here of each"),
    "seed": Key(kinds.NATURAL, "seed={}"),
    "precision": Choice(
        {
            "amp": "trainer.precision=16-mixed",
            "amp_fp16": "trainer.precision=16-mixed",
            "amp_bf16": "trainer.precision=bf16-mixed",
            "bf16": "trainer.precision=bf16-mixed",
            "fp32": "trainer.precision=32-true",
        }
    ),
    "grad_accum": Refused("microbatch_size=IMAGES says how many images a device takes at a time"),
}
OF_RECIPE = ("max_duration", "train_batch_size", "precision")  # what the recipe says where the YAML does not


def translate(content: Mapping[str, Any]) -> Translation:
    """Translate the YAML.

    The recipe follows from the optimizer: the model card's typical one trains with sgd, Composer's own with
    decoupled_sgdw.

    Raises:
        ValueError: for an unknown key or a value that its key does not take.
    """
    valid = ("model", "optimizer", "schedulers", *TOP)
    flatten({key: value for key, value in content.items() if key not in valid[:3]}, TOP)
    model = _only("model", content.get("model"), ("deeplabv3",))[1]
    optimizer, settings = _only("optimizer", content.get("optimizer"), OPTIMIZERS)
    recipe = "ade20k_typical" if optimizer == "sgd" else "ade20k_composer"
    translation = Translation(SYSTEM, [f"+recipe={recipe}", f"optimizer={optimizer}"])
    _apply_section("model.deeplabv3", MODEL, model, _model_defaults(model), translation)
    _require_classes(model, "model.deeplabv3.num_classes", translation)
    if "lr" not in settings:
        raise ValueError(f"optimizer.{optimizer} lacks lr")
    _apply_section(f"optimizer.{optimizer}", OPTIMIZER, settings, OPTIMIZER_DEFAULTS, translation)
    _apply_schedule(content.get("schedulers"), translation)
    apply(TOP, {key: content[key] for key in TOP if key in content}, {}, translation)
    absent = [key for key in OF_RECIPE if key not in content]
    if absent:
        translation.notes.append(f"{', '.join(absent)}: not given, so as {recipe} has it")
    return translation


def translate_call(arguments: Mapping[str, Any]) -> Translation:
    """Translate the arguments of `composer_deeplabv3`, by name; the training is that of ade20k_composer.

    Raises:
        ValueError: for an unknown argument or a value that it does not take.
    """
    translation = Translation(CALL_SYSTEM, ["+recipe=ade20k_composer"])
    given = flatten(arguments, MODEL)
    if "num_classes" not in given:
        raise ValueError(f"{CALL} lacks num_classes")
    apply(MODEL, given, _model_defaults(given), translation)
    _require_classes(given, "num_classes", translation)
    return translation


def _model_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return Composer's defaults; weights came by a switch first, and later by name."""
    by_name = "backbone_weights" in given
    if by_name and ("is_backbone_pretrained" in given or "backbone_url" in given):
        raise ValueError("backbone_weights replaces is_backbone_pretrained and backbone_url; give one of both")
    return {**MODEL_DEFAULTS, **({} if by_name else {"is_backbone_pretrained": True})}


def _require_classes(given: Mapping[str, Any], key: str, translation: Translation) -> None:
    if given.get("num_classes", ADE20K_CLASSES) != ADE20K_CLASSES:
        translation.needed["data"] = (
            f"{key}={given['num_classes']}, and ADE20k has {ADE20K_CLASSES}: data=NAME data.root=DIR names the data, "
            "which bring their classes"
        )
        translation.notes.append(f"{key}={given['num_classes']}: the data bring their classes, whatever their number")


def _only(key: str, value: Any, valid: Sequence[str]) -> tuple[str, Mapping[str, Any]]:
    """Return the one name below a key, and what it holds."""
    if isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in valid:
        name, below = next(iter(value.items()))
        if below is None or isinstance(below, Mapping):
            return name, below or {}
    given = ", ".join(map(str, value)) if isinstance(value, Mapping) else repr(value)
    raise ValueError(f"{key} is {given}; it takes one of {', '.join(valid)}, with its settings below")


def _apply_section(
    prefix: str, table: Table, given: Mapping[str, Any], defaults: Mapping[str, Any], into: Translation
) -> None:
    try:
        apply(table, flatten(given, table), defaults, into)
    except ValueError as error:
        raise ValueError(f"{prefix}: {error}") from None


def _apply_schedule(schedulers: Any, translation: Translation) -> None:
    if not isinstance(schedulers, list) or len(schedulers) != 1:
        raise ValueError(f"schedulers is {schedulers!r}; it takes a list of one of {', '.join(SCHEDULES)}")
    name, settings = _only("schedulers", schedulers[0], tuple(SCHEDULES))
    if name == "polynomial" and "power" not in settings:
        raise ValueError("schedulers.polynomial lacks power")
    translation.overrides.append(f"schedule={SCHEDULE_NAMES[name]}")
    _apply_section(f"schedulers.{name}", SCHEDULES[name], settings, SCHEDULE_DEFAULTS[name], translation)
