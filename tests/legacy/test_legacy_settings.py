"""Every published configuration, composed with the real YAMLs: what each of its keys is in the resolved settings."""

import json
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from legacy_blocks import (
    BRANCHES,
    COMPOSER_OWN,
    COMPOSER_TYPICAL,
    FILES,
    SUPERVISELY,
    TONANDR,
    TONANDR_ROOT,
    changed,
    leaves,
)
from omegaconf import OmegaConf
from yaml import safe_load

from deeplab_recipes import config
from deeplab_recipes.legacy import tonandr, translate
from deeplab_recipes.model.dense_prediction_cell import PUBLISHED

EXPECTED: dict[str, dict[str, dict[str, Any]]] = {  # key -> the settings it decides
    "supervisely": {
        "lr": {"optimizer.lr": 0.001},
        "epochs": {"trainer.max_epochs": 2},
        "val_every": {"trainer.evaluate_every": 0.5},
        "batch_size.val": {"evaluate_batch_size": 6},
        "batch_size.train": {"batch_size": 12},
        "input_size.width": {"data.crop_size": [256, 256]},
        "input_size.height": {"data.base_size": [256, 256], "data.evaluate_sizes.square": [256, 256]},
        "gpu_devices": {"trainer.devices": [0]},
        "dataset_tags.val": {"data.source.validation_tag": "val"},
        "dataset_tags.train": {"data.source.train_tag": "train"},
        "special_classes.neutral": {"data.source.neutral": "neutral"},
        "special_classes.background": {"data.source.background": "bg"},
        "weights_init_type": {"init": "continue_training"},
        "": {  # what the plugin does whatever the JSON says, and its defaults
            "data.source._target_": "deeplab_recipes.data.sources.Supervisely",
            "data.pipeline": "square",
            "protocol": "square",
            "data.scale_range": [1.0, 1.0],
            "data.flip": 0.0,
            "data.photometric": "none",
            "data.mean": [127.5, 127.5, 127.5],
            "data.std": [127.5, 127.5, 127.5],
            "optimizer._target_": "torch.optim.Adam",
            "optimizer.betas": [0.9, 0.999],
            "optimizer.eps": 1e-8,
            "optimizer.weight_decay": 0.0,
            "schedule._target_": "deeplab_recipes.optimization.constant",
            "model.backbone": "xception65",
            "model.head": "tensorflow",
            "model.output_stride": 16,
            "model.aspp_dilations": [1, 8, 12, 18],
            "model.freeze_batchnorm": "statistics",
        },
    },
    "tonandr": {
        "mode": {},
        "raw_data_path": {"data.root": TONANDR_ROOT},
        "model_loading": {"weights": None},
        "multi_gpu": {"trainer.devices": 1},
        "num_gpus": {},  # a note says that it is not read
        "hps.lr": {"optimizer.lr": 0.0001},
        "hps.beta_1": {"optimizer.betas": [0.5, 0.99]},
        "hps.beta_2": {"optimizer.betas": [0.5, 0.99]},
        "hps.decay": {"schedule._target_": "deeplab_recipes.optimization.Exponential"},
        "hps.epochs": {"trainer.max_epochs": 120},
        "hps.batch_size": {"batch_size": 6},
        "hps.weight_decay": {"optimizer.weight_decay": 8e-5},
        "hps.bn_momentum": {"model.batchnorm_momentum.head": 0.9},
        "hps.bn_scale": {"model.batchnorm_scale": True},
        "hps.reduce_lr_factor": {"schedule.factor": 0.99999, "schedule.every": "epoch"},
        "nn_arch.output_stride": {"model.output_stride": 8},
        "nn_arch.image_size": {"data.crop_size": [224, 224], "data.base_size": [224, 224]},
        "nn_arch.num_classes": {"data.source._target_": "deeplab_recipes.data.sources.PascalVOC"},
        "nn_arch.mv2_depth_multiplier": {"model.width_multiplier": 1, "model.backbone": "mobilenet_v2"},
        "nn_arch.depth_multiplier": {"model.dense_prediction_cell.depth_multiplier": 1},
        "nn_arch.conv_rate_multiplier": {"model.dense_prediction_cell.conv_rate_multiplier": 2},
        "nn_arch.reduction_size": {"model.dense_prediction_cell.reduction_size": 256},
        "nn_arch.dropout_rate": {"model.dropout": 0.1},
        "nn_arch.concat_channels": {"model.dense_prediction_cell.concat_channels": 256},
        "nn_arch.encoder_middle_conf": {"model.dense_prediction_cell.branches": "published"},
        "": {"model.head": "dense_prediction_cell", "optimizer._target_": "torch.optim.Adam"},
    },
    "composer_typical": {
        "model.deeplabv3.initializers": {"model.initializers": ["kaiming_normal", "bn_ones"]},
        "model.deeplabv3.num_classes": {"data.source._target_": "deeplab_recipes.data.sources.ADE20k"},
        "model.deeplabv3.backbone_arch": {"model.backbone": "resnet101"},
        "model.deeplabv3.is_backbone_pretrained": {"model.backbone_weights": "imagenet1k_v1"},
        "model.deeplabv3.use_plus": {"model.head": "deeplabv3plus"},
        "model.deeplabv3.sync_bn": {"trainer.sync_batchnorm": True},
        "optimizer.sgd.lr": {"optimizer.lr": 0.01, "optimizer._target_": "torch.optim.SGD"},
        "optimizer.sgd.momentum": {"optimizer.momentum": 0.9},
        "optimizer.sgd.weight_decay": {"optimizer.weight_decay": 5e-4},
        "optimizer.sgd.dampening": {"optimizer.dampening": 0},
        "optimizer.sgd.nesterov": {"optimizer.nesterov": False},
        "schedulers": {
            "schedule._target_": "deeplab_recipes.optimization.polynomial",
            "schedule.alpha_f": 0.01,
            "schedule.power": 0.9,
        },
        "max_duration": {"trainer.max_epochs": 127, "trainer.max_steps": -1},
        "train_batch_size": {"batch_size": 16},
        "precision": {"trainer.precision": "16-mixed"},
    },
    "composer_own": {
        "model.deeplabv3.initializers": {"model.initializers": ["kaiming_normal", "bn_ones"]},
        "model.deeplabv3.num_classes": {"data.source._target_": "deeplab_recipes.data.sources.ADE20k"},
        "model.deeplabv3.backbone_arch": {"model.backbone": "resnet101"},
        "model.deeplabv3.is_backbone_pretrained": {"model.backbone_weights": "imagenet1k_v2"},
        "model.deeplabv3.use_plus": {"model.head": "deeplabv3plus"},
        "model.deeplabv3.sync_bn": {"trainer.sync_batchnorm": True},
        "model.deeplabv3.backbone_url": {"model.backbone_weights": "imagenet1k_v2"},
        "optimizer.decoupled_sgdw.lr": {
            "optimizer.lr": 0.01,
            "optimizer._target_": "deeplab_recipes.optimization.DecoupledSGDW",
        },
        "optimizer.decoupled_sgdw.momentum": {"optimizer.momentum": 0.9},
        "optimizer.decoupled_sgdw.weight_decay": {"optimizer.weight_decay": 2e-5},
        "optimizer.decoupled_sgdw.dampening": {"optimizer.dampening": 0},
        "optimizer.decoupled_sgdw.nesterov": {"optimizer.nesterov": False},
        "schedulers": {"schedule._target_": "deeplab_recipes.optimization.cosine", "schedule.alpha_f": 0.0},
        "max_duration": {"trainer.max_epochs": 128, "trainer.max_steps": -1},
        "train_batch_size": {"batch_size": 32},
        "precision": {"trainer.precision": "16-mixed"},
    },
    "composer_call": {
        "num_classes": {"data.source._target_": "deeplab_recipes.data.sources.ADE20k"},
        "backbone_arch": {"model.backbone": "resnet101"},
        "is_backbone_pretrained": {"model.backbone_weights": "imagenet1k_v2"},
        "backbone_url": {"model.backbone_weights": "imagenet1k_v2"},
        "sync_bn": {"trainer.sync_batchnorm": False},
        "": {
            "model.head": "deeplabv3plus",
            "model.initializers": [],
            "loss.cross_entropy": 1.0,
            "loss.dice": 0.0,
        },
    },
    "bonlime": {
        "input_shape": {"data.crop_size": [384, 384]},
        "classes": {},  # the data's, see the test of what the command line has to add
        "": {
            "weights": "zoo:voc_mobilenet_v2",
            "init": "transfer_learning",
            "model.backbone": "mobilenet_v2",
            "model.head": "tensorflow_short",
            "model.output_stride": 8,
            "model.width_multiplier": 1.0,
            "data.mean": [127.5, 127.5, 127.5],
            "data.std": [127.5, 127.5, 127.5],
        },
    },
    "asahi417": {
        "data": {
            "data.source._target_": "deeplab_recipes.data.sources.PascalVOC",
            "data.source.training_list": "train",
            "trainer.max_steps": 30000,
            "trainer.max_epochs": None,
        },
        "crop_size": {"data.crop_size": [321, 321]},
        "aspp_depth": {"model.aspp_channels": 128},
        "backbone": {"model.backbone": "xception41", "data.mean": [127.5, 127.5, 127.5]},
        "batch_size": {"batch_size": 12},
        "off_decoder": {"model.decoder": False},
        "": {  # pascal.py's
            "optimizer._target_": "torch.optim.SGD",
            "optimizer.lr": 0.001,
            "optimizer.momentum": 0.9,
            "optimizer.weight_decay": 4e-5,
            "schedule._target_": "deeplab_recipes.optimization.polynomial",
            "schedule.power": 0.9,
            "schedule.alpha_f": 0.0,
            "model.output_stride": 16,
            "model.freeze_batchnorm": "none",
        },
    },
    "asahi417_every_flag": {
        "data": {"data.source._target_": "deeplab_recipes.data.sources.PascalVOC"},
        "model": {"model.head": "tensorflow"},
        "batch_size": {"batch_size": 4},
        "learning_rate": {"optimizer.lr": 0.007},
        "weight_decay": {"optimizer.weight_decay": 1e-4},
        "aspp_depth": {"model.aspp_channels": 256},
        "crop_size": {"data.crop_size": [513, 513]},
        "output_stride": {"model.output_stride": 8, "model.aspp_dilations": None},
        "off_decoder": {"model.decoder": False},
        "off_fine_tune_batch_norm": {"model.freeze_batchnorm": "statistics"},
        "backbone": {"model.backbone": "xception65"},
    },
}


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(config.yamls_folder()), version_base="1.3"):
        return OmegaConf.to_container(compose("train", list(overrides)), resolve=True)


def given(name: str) -> set[str]:
    """Return the keys of a published configuration."""
    content = {
        "supervisely": SUPERVISELY,
        "tonandr": TONANDR,
        "composer_typical": safe_load(COMPOSER_TYPICAL),
        "composer_own": safe_load(COMPOSER_OWN),
    }
    if name in content:
        return {*leaves(content[name])}
    words = {
        "composer_call": "num_classes backbone_arch is_backbone_pretrained backbone_url sync_bn",
        "bonlime": "input_shape classes",
        "asahi417": "data crop_size aspp_depth backbone batch_size off_decoder",
        "asahi417_every_flag": "data model batch_size learning_rate weight_decay aspp_depth crop_size output_stride "
        "off_decoder off_fine_tune_batch_norm backbone",
    }
    return {*words[name].split()}


@pytest.mark.parametrize("name", EXPECTED)
def test_every_key_is_its_setting(name: str) -> None:
    assert given(name) == {*EXPECTED[name]} - {""}
    found = composed(*translate(FILES[name]).overrides)
    for key, settings in EXPECTED[name].items():
        values = {setting: OmegaConf.select(OmegaConf.create(found), setting) for setting in settings}
        plain = {k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in values.items()}
        assert plain == settings, key


@pytest.mark.parametrize("name", EXPECTED)
def test_every_override_is_a_setting_and_builds(name: str) -> None:
    """No +key is needed but the recipe: what does not exist is refused by Hydra, what does not fit by the parts."""
    overrides = translate(FILES[name]).overrides
    assert [o for o in overrides if o.startswith("+")] == [overrides[0]]
    found = composed(*overrides)
    model = {**found["model"], "backbone_weights": None}
    if model["backbone"] != "resnet101":
        assert config.build(model, "model")(num_classes=5).num_classes == 5
    for part in ("optimizer", "schedule", "loss", "parameters", "trainer"):
        config.build(found[part], part)


@pytest.mark.parametrize("name", ["composer_typical", "composer_own"])
def test_composers_blocks_are_the_recipes(name: str) -> None:
    overrides = translate(FILES[name]).overrides
    assert config.leaves(composed(*overrides)) == config.leaves(composed(overrides[0]))


@pytest.mark.parametrize(
    "line",
    [f"train.py -d {data} --backbone {b}" for data, b in (("pascal", "resnet_v1_101"), ("ade20k", "xception_71"))],
)
def test_asahi417s_other_choices_compose(line: str) -> None:
    found = composed(*translate(line).overrides)
    assert found["model"]["backbone"] in ("resnet101", "xception71")
    assert found["data"]["mean"] == ([123.15, 115.9, 103.06] if "resnet" in line else [127.5] * 3)
    assert (found["model"]["freeze_batchnorm"], found["trainer"]["max_steps"]) in (
        ("none", 30_000),
        ("statistics", 300_000),
    )


def test_tonandrs_network_is_built_from_its_json() -> None:
    found = composed(*translate(FILES["tonandr"]).overrides)
    model = config.build({**found["model"], "backbone_weights": None}, "model")(num_classes=21)
    assert model.arguments["dense_prediction_cell"]["conv_rate_multiplier"] == 2
    rates = [m.dilation for m in model.head.modules() if getattr(m, "groups", 1) > 1]
    assert rates == [(2, 12), (36, 30), (12, 6), (2, 2), (12, 42)]
    norms = [m for m in model.head.modules() if hasattr(m, "running_mean")]
    assert {norm.momentum for norm in norms} == {0.9}


def test_tonandrs_branches() -> None:
    assert [*PUBLISHED] == tonandr.PUBLISHED == BRANCHES

    def cell(branches: list[dict[str, Any]]) -> dict[str, Any]:
        text = json.dumps(changed(TONANDR, "nn_arch.encoder_middle_conf", branches))
        return composed(*translate(text).overrides)["model"]

    assert cell(BRANCHES[:2])["dense_prediction_cell"]["branches"] == BRANCHES[:2]
    wrong = {**cell([BRANCHES[0], {**BRANCHES[1], "input": 3}]), "backbone_weights": None}
    with pytest.raises(ValueError, match=r"dense_prediction_cell, branch 1: input is 3; valid: -1"):
        config.build(wrong, "model")(num_classes=21)


@pytest.mark.parametrize(("name", "recipe"), [("tonandr", "voc_dense_prediction_cell"), ("asahi417", "voc_minimal")])
def test_readmes_own_settings_are_the_recipes(name: str, recipe: str) -> None:
    """Nothing differs but where it runs."""
    found, own = composed(*translate(FILES[name]).overrides), composed(f"+recipe={recipe}")
    assert config.differences(own, found) == {}
