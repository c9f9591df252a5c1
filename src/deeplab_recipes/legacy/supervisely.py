"""Supervisely's DeepLab v3+ plugin: its training and inference JSON.

The plugin squashes image and labels to `input_size`, changes neither colour nor scale, learns with Adam, keeps batch
norm as its weights have it, and fills what the JSON leaves out from DEFAULTS (source: plugins/nn/deeplab_v3plus).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from deeplab_recipes.legacy import kinds
from deeplab_recipes.legacy.tables import Choice, Key, Table, Translation, apply, flatten, sizes

SYSTEM = "Supervisely's training JSON"
SIDES = ("left", "top", "right", "bottom")
BASE = ("+recipe=finetune",)
DEFAULTS: Mapping[str, Any] = {
    "lr": 1e-4,
    "epochs": 2,
    "val_every": 1,
    "batch_size.train": 1,
    "batch_size.val": 1,
    "input_size.width": 513,
    "input_size.height": 513,
    "gpu_devices": [0],
    "dataset_tags.train": "train",
    "dataset_tags.val": "val",
    "special_classes.background": "bg",
    "special_classes.neutral": "neutral",
    "weights_init_type": "transfer_learning",
    "atrous_rates": [8, 12, 18],
    "output_stride": 16,
    "backbone": "xception_65",
}


def _global_batch(images: int, values: Mapping[str, Any]) -> str:
    """The plugin's batch is that of one GPU."""
    return f"batch_size={images * len(values['gpu_devices'])}"


def _size(height: int, values: Mapping[str, Any]) -> list[str]:
    return sizes(height, values["input_size.width"], "square")


def _rates(rates: Sequence[int], values: Mapping[str, Any]) -> str | list[str]:
    """The 1x1 branch is one of our rates; the published MobileNetV2 has no other."""
    if values["backbone"] == "mobilenet_v2":
        if rates and rates != DEFAULTS["atrous_rates"]:
            raise ValueError("leave it out: mobilenet_v2 has no atrous branches; model.head=tensorflow would have")
        return []
    return f"model.aspp_dilations=[{','.join(map(str, [1, *rates]))}]"


def _on_corrupt(images: int, values: Mapping[str, Any]) -> str:
    return f"data.on_corrupt={'skip' if images else 'raise'}"


ONE_NUMBER = "data.workers is one number for both parts, and that of train is taken"
NUMBERS = kinds.list_of(kinds.NATURAL)
DEVICES = kinds.Kind(f"{NUMBERS.says}, none twice", lambda v: NUMBERS.accepts(v) and len({*v}) == len(v))
TABLE: Table = {
    "lr": Key(kinds.POSITIVE, "optimizer.lr={}"),
    "epochs": Key(kinds.COUNT, "trainer.max_epochs={}"),
    "val_every": Key(kinds.POSITIVE, "trainer.evaluate_every={}"),
    "batch_size.train": Key(kinds.COUNT, _global_batch),
    "batch_size.val": Key(kinds.COUNT, "evaluate_batch_size={}"),
    "input_size.height": Key(kinds.COUNT, _size),
    "input_size.width": Key(kinds.COUNT, ""),  # with the height
    "gpu_devices": Key(DEVICES, "trainer.devices={}"),
    "data_workers.train": Key(kinds.NATURAL, "data.workers={}"),
    "data_workers.val": Key(kinds.NATURAL, "", ONE_NUMBER),
    "dataset_tags.train": Key(kinds.TEXT, "data.source.train_tag={}"),
    "dataset_tags.val": Key(kinds.TEXT, "data.source.validation_tag={}"),
    "special_classes.background": Key(kinds.TEXT, "data.source.background={}"),
    "special_classes.neutral": Key(kinds.TEXT, "data.source.neutral={}"),
    "weights_init_type": Choice(
        {"transfer_learning": "init=transfer_learning", "continue_training": "init=continue_training"}
    ),
    "backbone": Choice(
        {
            "xception_65": "model=tensorflow_xception65",
            "mobilenet_v2": "model=tensorflow_mobilenet_v2",
        }
    ),
    "output_stride": Choice({stride: f"model.output_stride={stride}" for stride in (8, 16, 32)}),
    "atrous_rates": Key(kinds.list_of(kinds.COUNT, empty=True), _rates),
    "weight_decay": Key(
        kinds.POSITIVE,
        "optimizer.weight_decay={}",
        "the plugin left it out of its loss, here it acts; 0 is what it did",
    ),
    "allow_corrupted_samples.train": Key(
        kinds.NATURAL, _on_corrupt, "data.on_corrupt is raise or skip, without a number"
    ),
    "allow_corrupted_samples.val": Key(kinds.NATURAL, "", "data.on_corrupt is one for both parts, that of train"),
}


def translate(content: Mapping[str, Any]) -> Translation:
    """Translate a training JSON.

    Raises:
        ValueError: for an unknown key or a value that its key does not take.
    """
    translation = Translation(SYSTEM, list(BASE))
    apply(TABLE, flatten(content, TABLE), DEFAULTS, translation)
    translation.needed["data.root"] = "the JSON does not say where the project is: data.root=DIR, which holds meta.json"
    if content.get("weights_init_type") is not None:
        translation.needed["weights"] = (
            f"weights_init_type={content['weights_init_type']} begins with weights that the JSON does not hold: "
            "weights=FILE or weights=zoo:NAME, or for none weights=null init=transfer_learning"
        )
    return translation


BOUND = kinds.Kind(
    "a size as '10px' or '10%'",
    lambda v: isinstance(v, str) and v.removesuffix("px").removesuffix("%").isdigit() and not v.isdigit(),
)
CLASS_NAMES = kinds.Kind(
    "'__all__' or a list of class names",
    lambda v: v == "__all__" or (isinstance(v, list) and all(map(kinds.TEXT.accepts, v))),
)
SUFFIX = kinds.Kind("a word, or an empty one", lambda v: isinstance(v, str))
LATER = "waits for the verb predict"
NO_TAGS = "without effect: a segmentation model gives no tags"
# No setting of training: each note says what a key is in Python, or what it waits for.
INFERENCE_TABLE: Table = {
    "model.gpu_device": Key(kinds.NATURAL, "", "predictor = load_predictor(CHECKPOINT, device='cuda:NUMBER')"),
    "model.min_score_threshold": Key(kinds.SHARE, "", LATER),
    "mode.name": Choice(
        dict.fromkeys(("full_image", "roi", "bboxes", "sliding_window"), ""),
        "full_image is predictor(image); the other modes wait for the verb predict",
    ),
    "mode.model_classes.save_classes": Key(CLASS_NAMES, "", "labels count predictor.classes: keep those you want"),
    "mode.model_classes.add_suffix": Key(SUFFIX, "", "[name + suffix for name in predictor.classes]"),
    "mode.model_tags.save_names": Key(CLASS_NAMES, "", NO_TAGS),
    "mode.model_tags.add_suffix": Key(SUFFIX, "", NO_TAGS),
    "mode.save_probabilities": Key(kinds.SWITCH, "", "predictor.logits(image).softmax(0)"),
    **{f"mode.{group}.{side}": Key(BOUND, "", LATER) for group in ("bounds", "padding") for side in SIDES},
    **{f"mode.window.{side}": Key(kinds.COUNT, "", LATER) for side in ("width", "height")},
    **{f"mode.min_overlap.{side}": Key(kinds.NATURAL, "", LATER) for side in ("x", "y")},
    "mode.save": Key(kinds.SWITCH, "", LATER),
    "mode.class_name": Key(kinds.TEXT, "", LATER),
    "mode.from_classes": Key(CLASS_NAMES, "", LATER),
    "mode.add_suffix": Key(SUFFIX, "", LATER),
}


def refuse_inference(content: Mapping[str, Any]) -> NoReturn:
    """Check an inference JSON, and say what its keys are.

    Raises:
        ValueError: always: no verb of today takes it.
    """
    translation = Translation("Supervisely's inference JSON")
    apply(INFERENCE_TABLE, flatten(content, INFERENCE_TABLE), {}, translation)
    keys = "\n  ".join(translation.notes)
    raise ValueError(
        "this is an inference configuration, for the verb predict, which this version does not have; training takes "
        f"none of it. In Python (from deeplab_recipes import load_predictor):\n  {keys}"
    )
