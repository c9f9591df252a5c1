"""tonandr's deeplabv3plus_keras: its JSON, of which `hps` is the training and `nn_arch` the network.

Source: the repository's code of that time. Its L2 penalty is wd * w^2, whose gradient is 2 wd w.
"""

from collections.abc import Mapping
from typing import Any

from deeplab_recipes.config import literal
from deeplab_recipes.legacy import kinds
from deeplab_recipes.legacy.tables import Choice, Key, Refused, Table, Translation, apply, flatten, sizes

SYSTEM = "tonandr's JSON"
BASE = ("+recipe=voc_dense_prediction_cell",)
PUBLISHED = [  # model.dense_prediction_cell's, without its import of torch
    {"op": "conv", "kernel": 3, "rate": rate, "input": source}
    for rate, source in (([1, 6], -1), ([18, 15], 0), ([6, 3], 1), ([1, 1], 0), ([6, 21], 0))
]
CELL = ("reduction_size", "concat_channels", "conv_rate_multiplier", "depth_multiplier")
BRANCHES = kinds.Kind(
    "a list of branches as {op: conv, kernel: 3, rate: [1, 6], input: -1}",
    lambda v: isinstance(v, list) and v != [] and all(isinstance(branch, Mapping) for branch in v),
)


def _devices(multi: bool, values: Mapping[str, Any]) -> str:
    return f"trainer.devices={values.get('num_gpus', 'auto') if multi else 1}"


def _betas(beta_1: float, values: Mapping[str, Any]) -> str:
    return f"optimizer.betas=[{beta_1},{values.get('hps.beta_2', 0.999)}]"


def _doubled(decay: float, values: Mapping[str, Any]) -> str:
    return f"optimizer.weight_decay={2 * decay}"


def _share_of_batch(momentum: float, values: Mapping[str, Any]) -> str:
    """Keras keeps `momentum` of the old statistics, torch takes in its momentum of the new."""
    return f"model.batchnorm_momentum={{head:{round(1 - momentum, 12)}}}"


def _size(side: int, values: Mapping[str, Any]) -> list[str]:
    return sizes(side, side, "keep_ratio")


def _cell(branches: list[Any], values: Mapping[str, Any]) -> str:
    numbers = {key: values[f"nn_arch.{key}"] for key in CELL if f"nn_arch.{key}" in values}
    named = "published" if branches == PUBLISHED else branches
    return f"model.dense_prediction_cell={literal({'branches': named, **numbers})}"


def _decay(decay: float, values: Mapping[str, Any]) -> list[str]:
    if decay and values.get("hps.reduce_lr_factor", 1) != 1:
        raise ValueError("there is one schedule at a time here, and reduce_lr_factor is another: set it to 1")
    return ["schedule=inverse_time", f"schedule.decay={decay}"] if decay else []


def _factor(factor: float, values: Mapping[str, Any]) -> list[str]:
    """The factor of an epoch; what `decay` says stands for factor 1."""
    if values.get("hps.decay"):
        return []
    return ["schedule=exponential", f"schedule.factor={factor}", "schedule.every=epoch"]


CONTINUES = "model_loading=true begins with weights that the JSON does not hold: weights=FILE or weights=zoo:NAME"
PLATEAU = "a factor of each epoch here; its code took it where the loss stood still"
EVALUATES = Refused("training reads mode=train only; the verb evaluate is to come")
TABLE: Table = {
    "mode": Choice({"train": "", "evaluate": EVALUATES}),
    "raw_data_path": Key(kinds.TEXT, "data.root={}"),
    "model_loading": Choice({False: "", True: "init=continue_training"}),
    "multi_gpu": Key(kinds.SWITCH, _devices),
    "num_gpus": Key(kinds.COUNT, "", "read with multi_gpu=true only, as there"),
    "hps.lr": Key(kinds.POSITIVE, "optimizer.lr={}"),
    "hps.beta_1": Key(kinds.SHARE, _betas),
    "hps.beta_2": Key(kinds.SHARE, ""),  # with beta_1
    "hps.decay": Key(kinds.NOT_NEGATIVE, _decay),
    "hps.epochs": Key(kinds.COUNT, "trainer.max_epochs={}"),
    "hps.batch_size": Key(kinds.COUNT, "batch_size={}"),
    "hps.weight_decay": Key(kinds.NOT_NEGATIVE, _doubled, "doubled: its penalty is wd w^2, torch's wd w^2 / 2"),
    "hps.bn_momentum": Key(
        kinds.SHARE, _share_of_batch, "the share that is kept there, the share that is taken in here"
    ),
    "hps.bn_scale": Key(kinds.SWITCH, "model.batchnorm_scale={}"),
    "hps.reduce_lr_factor": Key(
        kinds.Kind("a number above 0 and at most 1", lambda v: kinds.POSITIVE.accepts(v) and v <= 1), _factor, PLATEAU
    ),
    "nn_arch.output_stride": Choice({stride: f"model.output_stride={stride}" for stride in (8, 16, 32)}),
    "nn_arch.image_size": Key(kinds.COUNT, _size),
    "nn_arch.num_classes": Key(
        kinds.Kind("21, as VOC has; another data set brings its own number: data=NAME", lambda v: v == 21), ""
    ),
    "nn_arch.mv2_depth_multiplier": Key(kinds.POSITIVE, "model.width_multiplier={}"),
    "nn_arch.dropout_rate": Key(kinds.SHARE, "model.dropout={}"),
    "nn_arch.encoder_middle_conf": Key(BRANCHES, _cell),
    **{f"nn_arch.{key}": Key(kinds.COUNT, "") for key in CELL},  # with encoder_middle_conf
}


def translate(content: Mapping[str, Any]) -> Translation:
    """Translate the JSON.

    Raises:
        ValueError: for an unknown key or a value that its key does not take.
    """
    translation = Translation(SYSTEM, list(BASE))
    given = flatten(content, TABLE)
    apply(TABLE, given, {}, translation)
    lone = [key for key in CELL if f"nn_arch.{key}" in given and "nn_arch.encoder_middle_conf" not in given]
    if lone:
        raise ValueError(f"nn_arch.{lone[0]} is a number of encoder_middle_conf, which is missing")
    if given.get("hps.beta_2") is not None and "hps.beta_1" not in given:
        translation.overrides.append(_betas(0.9, given))
    if given.get("model_loading"):
        translation.needed["weights"] = CONTINUES
    return translation
