"""The configurations that the five programs' READMEs publish, as files of theirs."""

import json
from typing import Any

SUPERVISELY: dict[str, Any] = {
    "lr": 0.001,
    "epochs": 2,
    "val_every": 0.5,
    "batch_size": {"val": 6, "train": 12},
    "input_size": {"width": 256, "height": 256},
    "gpu_devices": [0],
    "dataset_tags": {"val": "val", "train": "train"},
    "special_classes": {"neutral": "neutral", "background": "bg"},
    "weights_init_type": "continue_training",
}
SUPERVISELY_INFERENCE: dict[str, Any] = {
    "model": {"gpu_device": 0},
    "mode": {"name": "full_image", "model_classes": {"save_classes": "__all__", "add_suffix": "_dl"}},
}
BRANCHES = [
    {"kernel": 3, "rate": [1, 6], "op": "conv", "input": -1},
    {"kernel": 3, "rate": [18, 15], "op": "conv", "input": 0},
    {"kernel": 3, "rate": [6, 3], "op": "conv", "input": 1},
    {"kernel": 3, "rate": [1, 1], "op": "conv", "input": 0},
    {"kernel": 3, "rate": [6, 21], "op": "conv", "input": 0},
]
TONANDR_ROOT = r"D:\workspace\ai-platform\tasks\computer-vision\semantic-segmentation\deeplabv3plus_keras\resource"
TONANDR: dict[str, Any] = {
    "mode": "train",
    "raw_data_path": TONANDR_ROOT,
    "model_loading": False,
    "multi_gpu": False,
    "num_gpus": 4,
    "hps": {
        "lr": 0.0001,
        "beta_1": 0.5,
        "beta_2": 0.99,
        "decay": 0.0,
        "epochs": 120,
        "batch_size": 6,
        "weight_decay": 0.00004,
        "bn_momentum": 0.1,
        "bn_scale": True,
        "reduce_lr_factor": 0.99999,
    },
    "nn_arch": {
        "output_stride": 8,
        "image_size": 224,
        "num_classes": 21,
        "mv2_depth_multiplier": 1,
        "depth_multiplier": 1,
        "conv_rate_multiplier": 2,
        "reduction_size": 256,
        "dropout_rate": 0.1,
        "concat_channels": 256,
        "encoder_middle_conf": BRANCHES,
    },
}
COMPOSER_TYPICAL = """
model:
  deeplabv3:
    initializers:
      - kaiming_normal
      - bn_ones
    num_classes: 150
    backbone_arch: resnet101
    is_backbone_pretrained: true
    use_plus: true
    sync_bn: true
optimizer:
  sgd:
    lr: 0.01
    momentum: 0.9
    weight_decay: 5.0e-4
    dampening: 0
    nesterov: false
schedulers:
  - polynomial:
      alpha_f: 0.01
      power: 0.9
max_duration: 127ep
train_batch_size: 16
precision: amp
"""
COMPOSER_OWN = """
model:
  deeplabv3:
    initializers:
      - kaiming_normal
      - bn_ones
    num_classes: 150
    backbone_arch: resnet101
    is_backbone_pretrained: true
    use_plus: true
    sync_bn: true
    backbone_url: https://download.pytorch.org/models/resnet101-cd907fc2.pth
optimizer:
  decoupled_sgdw:
    lr: 0.01
    momentum: 0.9
    weight_decay: 2.0e-5
    dampening: 0
    nesterov: false
schedulers:
  - cosine_decay:
      t_max: 1dur
max_duration: 128ep
train_batch_size: 32
precision: amp
"""
COMPOSER_CALL = """
from composer.models import composer_deeplabv3

model = composer_deeplabv3(num_classes=150, backbone_arch="resnet101", is_backbone_pretrained=True,
                           backbone_url="https://download.pytorch.org/models/resnet101-cd907fc2.pth", sync_bn=False)
"""
# as the README has it, with a space that does not break
BONLIME_CALL = (
    "from deeplab.model import Deeplabv3\n"
    "deeplab_model = Deeplabv3(input_shape=(384, 384, 3), classes=4)\N{NO-BREAK SPACE} \n"
)
BONLIME_ANY_SIZE = "deeplab_model = Deeplabv3(input_shape=(None, None, 3), classes=4)\n"
ASAHI417 = (
    "python ./bin/train.py -d pascal --crop_size 321 --aspp_depth 128 --backbone xception_41 -b 12 --off_decoder\n"
)
ASAHI417_EVERY_FLAG = """
# every flag of the usage, by its long name
./bin/build_tfrecord.py --data pascal
./bin/train.py --data pascal --model deeplab --batch_size 4 --learning_rate 0.007 --weight_decay 0.0001 \\
    --aspp_depth 256 --crop_size 513 --output_stride 8 --off_decoder --off_fine_tune_batch_norm --backbone xception_65
"""
FILES = {
    "supervisely": json.dumps(SUPERVISELY),
    "tonandr": json.dumps(TONANDR),
    "composer_typical": COMPOSER_TYPICAL,
    "composer_own": COMPOSER_OWN,
    "composer_call": COMPOSER_CALL,
    "bonlime": BONLIME_CALL,
    "bonlime_any_size": BONLIME_ANY_SIZE,
    "asahi417": ASAHI417,
    "asahi417_every_flag": ASAHI417_EVERY_FLAG,
}


def leaves(content: Any, prefix: str = "") -> dict[str, Any]:
    """Return {"a.b": value}; lists are values."""
    if not isinstance(content, dict):
        return {prefix.rstrip("."): content}
    return {key: value for name, below in content.items() for key, value in leaves(below, f"{prefix}{name}.").items()}


def changed(content: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return a copy in which a.b is value."""
    name, _, below = key.partition(".")
    return {**content, name: changed(content.get(name, {}), below, value) if below else value}
