"""Every shipped recipe: its numbers are the published ones, and it builds and takes a step with its own parts."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deeplab_recipes import config
from deeplab_recipes.config import leaves
from deeplab_recipes.training import train

RECIPES = sorted(path.stem for path in (config.yamls_folder() / "recipe").glob("*.yaml"))
REPOSITORY = Path(__file__).parents[2]

ADE20K_SQUARE = {
    "data.source._target_": "deeplab_recipes.data.sources.ADE20k",
    "data.source.drop_grey": True,
    "data.pipeline": "square",
    "data.crop_size": [512, 512],
    "data.base_size": [512, 512],
    "data.scale_range": [0.5, 2.0],
    "data.max_class_share": 0.75,
    "data.flip": 0.5,
    "data.photometric": "square",
    "data.evaluate_sizes.square": [512, 512],
    "data.mean": [123.675, 116.28, 103.53],
    "data.std": [58.395, 57.12, 57.375],
    "protocol": "square",
    "model.backbone": "resnet101",
    "model.head": "deeplabv3plus",
    "model.output_stride": 8,
    "model.aspp_dilations": None,
    "model.aspp_channels": 512,
    "model.decoder_channels": 48,
    "model.dropout": 0.1,
    "model.initializers": ["kaiming_normal", "bn_ones"],
    "loss.cross_entropy": 1.0,
    "loss.dice": 0.0,
    "loss.denominator": "valid",
    "loss.normalize": "device",
    "optimizer.lr": 0.01,
    "optimizer.momentum": 0.9,
    "optimizer.dampening": 0,
    "optimizer.nesterov": False,
    "trainer.precision": "16-mixed",
    "trainer.sync_batchnorm": True,
    "seed": 17,
    "microbatch_size": None,
    "published.devices": 8,
    "published.protocol": "square",
    "published.training_images": 20206,
}
MMSEG = {
    "data.pipeline": "keep_ratio",
    "data.scale_range": [0.5, 2.0],
    "data.scale_step": 0.0,
    "data.max_class_share": 0.75,
    "data.photometric": "keep_ratio",
    "protocol": "keep_ratio",
    "model.backbone": "resnet101_v1c",
    "model.head": "deeplabv3plus",
    "model.output_stride": 8,
    "model.aspp_channels": 512,
    "model.backbone_weights": "openmmlab",
    "model.auxiliary_head": True,
    "loss.auxiliary": 0.4,
    "loss.denominator": "all",
    "loss.hard_pixels": None,
    "loss.class_weights": None,
    "optimizer._target_": "torch.optim.SGD",
    "optimizer.lr": 0.01,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 5.0e-4,
    "schedule.power": 0.9,
    "schedule.alpha_f": 0.01,
    "schedule_ends": "at_last_step",
    "trainer.max_epochs": None,
    "trainer.precision": "32-true",
    "trainer.sync_batchnorm": True,
    "published.devices": 4,
}
VOC_TENSORFLOW = {
    "data.source._target_": "deeplab_recipes.data.sources.PascalVOC",
    "data.source.training_list": "trainaug",
    "data.pipeline": "keep_ratio",
    "data.crop_size": [513, 513],
    "data.base_size": None,
    "data.scale_range": [0.5, 2.0],
    "data.scale_step": 0.25,
    "data.max_class_share": 1.0,
    "data.flip": 0.5,
    "data.photometric": "none",
    "data.mean": [127.5] * 3,
    "data.std": [127.5] * 3,
    "data.evaluate_sizes.keep_ratio": [513, 513],
    "protocol": "keep_ratio",
    "model.output_stride": 16,
    "model.aspp_channels": 256,
    "model.freeze_batchnorm": "none",
    "loss.cross_entropy": 1.0,
    "loss.denominator": "valid",
    "loss.hard_pixels": None,
    "optimizer._target_": "torch.optim.SGD",
    "optimizer.lr": 0.007,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 4.0e-5,
    "parameters.bias_lr": 2.0,
    "parameters.last_layers_lr": 1.0,
    "parameters.no_weight_decay": ["norms", "biases", "depthwise"],
    "schedule._target_": "deeplab_recipes.optimization.polynomial",
    "schedule.power": 0.9,
    "schedule.alpha_f": 0.0,
    "schedule_ends": "after_last_step",
    "batch_size": 16,
    "trainer.max_epochs": None,
    "trainer.max_steps": 30_000,
    "published.training_images": 10582,
}
NUMBERS: dict[str, dict[str, Any]] = {
    "voc_mmseg_40k": {
        **MMSEG,
        "data.source._target_": "deeplab_recipes.data.sources.PascalVOC",
        "data.source.training_list": "trainaug",
        "data.crop_size": [512, 512],
        "data.base_size": [2048, 512],
        "data.evaluate_sizes.keep_ratio": [2048, 512],
        "batch_size": 16,
        "trainer.max_steps": 40_000,
        "trainer.evaluate_every": 6.0514,  # of 661 steps: 4,000
        "published.miou": 78.62,
        "published.bn_batch": 16,
        "published.training_images": 10582,
    },
    "cityscapes_mmseg_80k": {
        **MMSEG,
        "data.source._target_": "deeplab_recipes.data.sources.Cityscapes",
        "data.crop_size": [512, 1024],
        "data.base_size": [2048, 1024],
        "data.evaluate_sizes.keep_ratio": [2048, 1024],
        "batch_size": 8,
        "trainer.max_steps": 80_000,
        "trainer.evaluate_every": 21.5633,  # of 371 steps: 8,000
        "published.miou": 80.97,
        "published.bn_batch": 8,
        "published.training_images": 2975,
    },
    "voc_tensorflow_mobilenet_v2": {
        **VOC_TENSORFLOW,
        "model.backbone": "mobilenet_v2",
        "model.width_multiplier": 1.0,
        "model.head": "tensorflow_short",
        "model.padding": "same",
        "model.batchnorm_epsilon.backbone": 1e-3,
        "model.batchnorm_epsilon.head": 1e-5,
        "model.batchnorm_momentum.backbone": 1 - 0.997,
        "model.batchnorm_momentum.head": 1 - 0.9997,
        "published.miou": 75.32,
    },
    "voc_tensorflow_xception65": {
        **VOC_TENSORFLOW,
        "model.backbone": "xception65",
        "model.head": "tensorflow",
        "model.decoder": True,
        "model.aspp_dilations": None,
        "model.batchnorm_momentum": 1 - 0.9997,
        "published.miou": 82.20,
    },
    "voc_minimal": {
        **VOC_TENSORFLOW,
        "data.source.training_list": "train",
        "data.crop_size": [321, 321],
        "model.backbone": "xception41",
        "model.head": "tensorflow",
        "model.decoder": False,
        "model.aspp_channels": 128,
        "optimizer.lr": 0.001,
        "parameters.bias_lr": 1.0,
        "loss.denominator": "all",
        "batch_size": 12,
        "published.training_images": 1464,
        "published.devices": 1,
    },
    "voc_dense_prediction_cell": {
        "data.source._target_": "deeplab_recipes.data.sources.PascalVOC",
        "data.source.training_list": "train",
        "data.crop_size": [224, 224],
        "data.base_size": [224, 224],
        "data.scale_range": [1.0, 1.0],
        "data.flip": 0.0,
        "data.evaluate_sizes.keep_ratio": [224, 224],
        "model.backbone": "mobilenet_v2",
        "model.head": "dense_prediction_cell",
        "model.output_stride": 8,
        "model.dropout": 0.1,
        "model.dense_prediction_cell.branches": "published",
        "model.dense_prediction_cell.reduction_size": 256,
        "model.dense_prediction_cell.concat_channels": 256,
        "model.dense_prediction_cell.conv_rate_multiplier": 2,
        "model.dense_prediction_cell.depth_multiplier": 1,
        "model.batchnorm_momentum.head": 0.9,
        "optimizer._target_": "torch.optim.Adam",
        "optimizer.lr": 1e-4,
        "optimizer.betas": [0.5, 0.99],
        "optimizer.weight_decay": 8e-5,  # Keras' penalty of 4e-5 is twice torch's
        "schedule._target_": "deeplab_recipes.optimization.Exponential",
        "schedule.factor": 0.99999,
        "schedule.every": "epoch",
        "batch_size": 6,
        "trainer.max_epochs": 120,
        "published.miou": 9.8,
        "published.training_images": 1464,
    },
    "finetune": {
        "data.source._target_": "deeplab_recipes.data.sources.Supervisely",
        "model.freeze_batchnorm": "statistics",  # the plugin's fine_tune_batch_norm=False
        "data.source.train_tag": "train",
        "data.source.validation_tag": "val",
        "data.source.background": "bg",
        "data.source.neutral": "neutral",
        "data.pipeline": "square",
        "data.crop_size": [256, 256],
        "data.base_size": [256, 256],
        "data.evaluate_sizes.square": [256, 256],
        "protocol": "square",
        "init": "transfer_learning",
        "optimizer.lr": 0.001,
        "batch_size": 12,
        "evaluate_batch_size": 6,
        "trainer.max_epochs": 2,
        "trainer.evaluate_every": 0.5,
    },
    "ade20k_typical": {
        **ADE20K_SQUARE,
        "optimizer._target_": "torch.optim.SGD",
        "optimizer.weight_decay": 5.0e-4,
        "schedule._target_": "deeplab_recipes.optimization.polynomial",
        "schedule.power": 0.9,
        "schedule.alpha_f": 0.01,
        "trainer.max_epochs": 127,
        "batch_size": 16,
        "model.backbone_weights": "imagenet1k_v1",
        "published.miou": 44.17,
        "published.miou_std": 0.17,
        "published.hours": 6.385,
    },
    "ade20k_composer": {
        **ADE20K_SQUARE,
        "optimizer._target_": "deeplab_recipes.optimization.DecoupledSGDW",
        "optimizer.weight_decay": 2.0e-5,
        "schedule._target_": "deeplab_recipes.optimization.cosine",
        "schedule.alpha_f": 0.0,
        "trainer.max_epochs": 128,
        "batch_size": 32,
        "model.backbone_weights": "imagenet1k_v2",
        "published.miou": 45.764,
        "published.miou_std": 0.29,
        "published.hours": 4.67,
    },
    "ade20k_mmseg_160k": {
        **ADE20K_SQUARE,
        "data.source.drop_grey": False,
        "data.pipeline": "keep_ratio",
        "data.base_size": [2048, 512],
        "data.photometric": "keep_ratio",
        "data.evaluate_sizes.keep_ratio": [2048, 512],
        "protocol": "keep_ratio",
        "model.backbone": "resnet101_v1c",
        "model.initializers": [],
        "model.backbone_weights": "openmmlab",
        "model.auxiliary_head": True,
        "loss.auxiliary": 0.4,
        "loss.denominator": "all",
        "optimizer._target_": "torch.optim.SGD",
        "optimizer.weight_decay": 5.0e-4,
        "schedule._target_": "deeplab_recipes.optimization.polynomial",
        "schedule.power": 0.9,
        "schedule.alpha_f": 0.01,  # of lr 0.01: mmsegmentation's eta_min of 1e-4
        "trainer.max_epochs": None,
        "trainer.max_steps": 160_000,
        "trainer.evaluate_every": 12.6683,  # of 1263 steps: 16,000
        "schedule_ends": "at_last_step",
        "trainer.precision": "32-true",
        "batch_size": 16,
        "published.miou": 45.47,
        "published.devices": 4,
        "published.bn_batch": 16,
        "published.protocol": "keep_ratio",
        "published.training_images": 20210,
    },
    "camvid_mobilenet_v2": {
        "data.source._target_": "deeplab_recipes.data.sources.CamVid",
        "data.evaluate_sizes.keep_ratio": [480, 360],
        "protocol": "keep_ratio",
        "model.backbone": "mobilenet_v2",
        "model.output_stride": 16,
    },
    "quickstart": {"data.source._target_": "deeplab_recipes.data.sources.DrawnScenes", "protocol": "keep_ratio"},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_numbers_are_the_published_ones(recipe: str, compose_settings: Callable[..., dict[str, Any]]) -> None:
    found = leaves(compose_settings(f"+recipe={recipe}"))
    for key, expected in NUMBERS[recipe].items():
        assert found[key] == (pytest.approx(expected) if isinstance(expected, float) else expected), key
    assert found["name"] == recipe


@pytest.mark.parametrize("recipe", RECIPES)
def test_builds_and_takes_a_step_with_its_own_parts(
    recipe: str, compose_settings: Callable[..., dict[str, Any]], tiny_sets: dict[str, Path], tmp_path: Path
) -> None:
    source = leaves(compose_settings(f"+recipe={recipe}"))["data.source._target_"].rsplit(".", 1)[1]
    small = ["data.source.training=4", "data.source.validation=2"] if source == "DrawnScenes" else []
    settings = compose_settings(
        f"+recipe={recipe}",
        *small,
        f"data.root={tiny_sets.get(source, tmp_path / 'scenes')}",
        "data.crop_size=[65,65]",
        "data.base_size=[80,80]",
        "data.evaluate_sizes={square:[65,65],keep_ratio:[80,65]}",
        "data.workers=0",
        "batch_size=2",
        "trainer.max_steps=1",
        "trainer.progress=false",
        "model.backbone_weights=none",
        f"run_dir={tmp_path / 'run'}",
    )
    result = train(config.assemble(settings, {}))
    assert result["status"] == "finished"
    assert 0 <= result["evaluations"][0]["miou"] <= 100
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    losses = [float(row.split(",")[3]) for row in rows[1:] if row.split(",")[3]]
    assert losses
    assert all(map(math.isfinite, losses))


@pytest.mark.parametrize("recipe", RECIPES)
def test_file_is_short_and_says_what_it_reproduces(recipe: str) -> None:
    lines = (config.yamls_folder() / "recipe" / f"{recipe}.yaml").read_text().splitlines()
    header = [line for line in lines if line.startswith("#")]
    assert header[0] == "# @package _global_"
    for word in ("Reproduces|Makes", "Expected", "Hardware", "Command", "Try also"):
        assert any(re.match(f"# ({word}) ", line) for line in header), word
    assert any(f"+recipe={recipe}" in line or "make quickstart" in line for line in header)
    assert len(lines) - len(header) <= 40


@pytest.mark.parametrize("recipe", RECIPES)
def test_has_a_card_and_a_row(recipe: str) -> None:
    card = REPOSITORY / "recipes" / f"{recipe}.md"
    assert f"+recipe={recipe}" in card.read_text()
    assert f"({recipe}.md)" in (REPOSITORY / "recipes" / "README.md").read_text()
