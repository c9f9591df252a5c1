import pytest
import torch
from torch import nn

from deeplab_recipes import planning
from deeplab_recipes.model import DeepLab, build_deeplab
from deeplab_recipes.planning import (
    BatchSplit,
    Published,
    describe,
    deviations,
    estimate_memory,
    forward_flops,
    saved_bytes,
    seconds_per_image,
    split_batch,
)
from deeplab_recipes.trainer import TrainerSettings


def on_meta(**arguments: object) -> DeepLab:
    """A model without memory: planning needs its shapes only."""
    with torch.device("meta"):
        return build_deeplab(**{"num_classes": 150, "backbone": "resnet18", **arguments})


# Batches


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"batch_size": 32, "world_size": 8}, BatchSplit(32, 8, 4, 4, 1, 4)),
        ({"batch_size": 32, "world_size": 8, "sync_batchnorm": True}, BatchSplit(32, 8, 4, 4, 1, 32)),
        ({"batch_size": 32, "world_size": 1, "microbatch_size": 8}, BatchSplit(32, 1, 32, 8, 4, 8)),
        (
            {"batch_size": 32, "world_size": 2, "microbatch_size": 4, "sync_batchnorm": True},
            BatchSplit(32, 2, 16, 4, 4, 8),
        ),
        ({"batch_size": 8, "world_size": 8, "sync_batchnorm": True}, BatchSplit(8, 8, 1, 1, 1, 8)),
        ({"batch_size": 2, "world_size": 2, "frozen_batchnorm": True}, BatchSplit(2, 2, 1, 1, 1, 0)),
        ({"batch_size": 2, "world_size": 1, "microbatch_size": 2}, BatchSplit(2, 1, 2, 2, 1, 2)),
    ],
    ids=str,
)
def test_batches_divide(arguments, expected):
    assert split_batch(**arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0, "world_size": 1}, "batch_size is 0"),
        (
            {"batch_size": 30, "world_size": 8},
            "batch_size=30 does not divide over 8 devices; nearest are 24 or 32",
        ),
        ({"batch_size": 3, "world_size": 8}, "nearest are 8$"),
        (
            {"batch_size": 16, "world_size": 2, "microbatch_size": 3},
            r"microbatch_size=3 .* 8 images .* nearest are 2 and 4",
        ),
        ({"batch_size": 16, "world_size": 2, "microbatch_size": 7}, "nearest are 4 and 8"),
        ({"batch_size": 16, "world_size": 2, "microbatch_size": 16}, "nearest are 4 and 8"),
        (
            {"batch_size": 16, "world_size": 1, "microbatch_size": 0},
            "microbatch_size is 0; it must be at least 1",
        ),
        (
            {"batch_size": 16, "world_size": 1, "microbatch_size": -4},
            "microbatch_size is -4; it must be at least 1",
        ),
    ],
    ids=str,
)
def test_batches_that_do_not_divide_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        split_batch(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": 1, "world_size": 1},
        {"batch_size": 1, "world_size": 1, "sync_batchnorm": True},
        {"batch_size": 8, "world_size": 8},
        {"batch_size": 16, "world_size": 1, "microbatch_size": 1},
    ],
    ids=str,
)
def test_a_single_image_for_batch_norm_is_refused(arguments):
    with pytest.raises(ValueError, match=r"single image.*at least 2 images.*trainer.sync_batchnorm=true"):
        split_batch(**arguments)


# Operations and memory


def test_operations_of_the_published_model():
    flops = forward_flops(on_meta(backbone="resnet101"), 512, 512)
    assert flops / 1e9 == pytest.approx(507, abs=0.5)


def test_operations_by_hand():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 2, 1, bias=False))
    assert forward_flops(network, 10, 12) == 2 * 10 * 12 * (3 * 8 * 9 + 8 * 2)


def test_planning_leaves_the_model_as_it_was():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    forward_flops(network, 40, 40)
    estimate_memory(network, images=2, crop=(40, 40), mixed=True)
    seconds_per_image(network, crop=(40, 40), images=2, autocast=None)
    assert network.training
    assert {p.device.type for p in network.parameters()} == {"cpu"}
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def measured_bytes(network: nn.Module, height: int, width: int) -> int:
    """Bytes that autograd really keeps of two images, halved."""
    storages = {}
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network.train()(torch.randn(2, 3, height, width))
    return sum(storage.nbytes() for key, storage in storages.items() if key not in parameters) // 2


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 1), nn.Sigmoid()),
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Upsample(size=(20, 20), mode="bilinear")),
    ],
    ids=["convolutions", "pooling"],
)
def test_saved_bytes_are_those_that_autograd_keeps(network):
    assert saved_bytes(network, 41, 43) == pytest.approx(measured_bytes(network, 41, 43), rel=0.02)


def test_memory_grows_with_images_and_halves_its_activations_in_mixed_precision():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    weights = 3 * 4 * sum(p.numel() for p in network.parameters())
    activations = saved_bytes(network, 64, 64)
    assert estimate_memory(network, images=4, crop=(64, 64), mixed=False) == weights + 4 * activations
    assert estimate_memory(network, images=4, crop=(64, 64), mixed=True) == weights + 2 * activations


def test_time_is_scaled_by_operations(monkeypatch):
    monkeypatch.setattr(planning, "_timed", lambda step: 2.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    network = nn.Conv2d(3, 4, 1, bias=False)
    size = planning.PROBE_SIZE
    seconds = seconds_per_image(network, crop=(2 * size, 3 * size), images=8, autocast=None)
    assert seconds == pytest.approx(2.0 / 2 * 6)


# What differs, and the plan as a text

PUBLISHED = Published(
    "model card", training_images=20206, miou=45.764, miou_std=0.29, protocol="square", devices=8,
    hardware="8 x A100", hours=4.67, bn_batch=32, precision="16-mixed",
)  # fmt: skip


def test_published_in_words():
    assert str(PUBLISHED) == "45.764 +/- 0.29 mIoU (square) in 4.67 h on 8 x A100; model card"
    assert str(Published("a card", 10, miou=40.0, protocol="square")) == "40.0 mIoU (square); a card"
    assert str(Published("nobody", 10)) == "no number (nobody)"


def test_the_published_run_deviates_in_nothing():
    split = split_batch(32, 8, sync_batchnorm=True)
    assert deviations({}, PUBLISHED, split, "16-mixed", "device") == []


def test_deviations_in_words():
    overrides = {"optimizer.lr": (0.01, 0.02), "microbatch_size": (None, 8)}
    assert deviations(overrides, PUBLISHED, split_batch(32, 1, microbatch_size=8), "bf16-mixed", "device") == [
        "optimizer.lr: 0.01 -> 0.02",
        "microbatch_size: unset -> 8",
        "devices: 8 -> 1 (each takes the mean loss of its own images)",
        "images per batch norm: 32 -> 8",
        "precision: 16-mixed -> bf16-mixed",
    ]
    assert deviations(overrides, None, split_batch(32, 1), "bf16-mixed", "device") == [
        "optimizer.lr: 0.01 -> 0.02",
        "microbatch_size: unset -> 8",
    ]
    # A loss over the global batch is the same on any number of devices.
    one = deviations({}, PUBLISHED, split_batch(32, 1), "16-mixed", "global")
    assert one == []


def plan(**changes: object) -> str:
    arguments = {
        "name": "ade20k_composer",
        "model": on_meta(),
        "backbone_weights": "imagenet1k_v2",
        "crop": (512, 512),
        "training_images": 20206,
        "batch_size": 32,
        "microbatch_size": 8,
        "trainer": TrainerSettings(max_epochs=128, precision="32-true", accelerator="cpu", devices=1),
        "published": PUBLISHED,
        "overrides": {"microbatch_size": (None, 8)},
        "normalize": "device",
        "measure": False,
    }
    return describe(**{**arguments, **changes})


def test_a_plan_says_what_a_run_will_do(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    text = " ".join(plan().split())
    for piece in (
        "plan of ade20k_composer",
        "training images 20,206",
        "steps 80,768 (128 epochs of 631)",
        "global batch 32 = 1 x 32 images",
        "microbatch 8 images, accumulated 4 x",
        "images per batch norm 8",
        "512 x 512",
        "backbone weights imagenet1k_v2",
        "precision 32-true",
        "memory per device about",
        "published 45.764 +/- 0.29 mIoU (square)",
        "differs from the published setting in",
        "- microbatch_size: unset -> 8",
        "- devices: 8 -> 1",
    ):
        assert piece in text
    assert "hours here" not in text


def test_a_plan_without_anything_published(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    text = plan(published=None, overrides={}, backbone_weights=None)
    assert text.endswith("nothing differs from the recipe")
    assert "differs from the recipe in\n    - seed: 17 -> 1" in plan(published=None, overrides={"seed": (17, 1)})
    assert "backbone weights       none" in text


def test_one_epoch_is_no_epochs():
    trainer = {"precision": "32-true", "accelerator": "cpu", "devices": 1}
    assert "631 (1 epoch of 631)" in plan(trainer=TrainerSettings(max_epochs=1, **trainer))
    assert "1,262 (2 epochs of 631)" in plan(trainer=TrainerSettings(max_epochs=2, **trainer))


def test_a_plan_with_more_images_in_a_batch_than_there_are():
    with pytest.raises(ValueError, match="batch_size=32 is larger than the training part"):
        plan(training_images=31)


# How long, on what, how precisely


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"max_epochs": 3}, 30),
        ({"max_epochs": 3, "max_steps": 7}, 7),
        ({"max_epochs": 3, "max_steps": 70}, 30),
        ({"max_steps": 70}, 70),
    ],
    ids=str,
)
def test_steps_of_a_run(settings, steps):
    assert TrainerSettings(**settings).steps(10) == steps


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "how long"),
        ({"max_epochs": 0}, "max_epochs is 0"),
        ({"max_epochs": -1}, "max_epochs is -1"),
        ({"max_epochs": 3, "max_steps": 0}, "max_steps is 0"),
        ({"max_epochs": 3, "max_steps": -2}, "max_steps is -2"),
        ({"max_epochs": 3, "evaluate_every": 0}, "evaluate_every is 0"),
        ({"max_epochs": 3, "precision": "16-true"}, "'16-true'; valid are auto"),
        ({"max_epochs": 3, "accelerator": "cuda"}, "'cuda'; valid are auto, gpu, cpu"),
        ({"max_epochs": 3, "num_nodes": 0}, "num_nodes is 0"),
        ({"max_epochs": 3, "devices": 0}, "devices is 0"),
        ({"max_epochs": 3, "devices": -2}, "devices is -2"),
        ({"max_epochs": 3, "devices": []}, r"devices is \[\]"),
        ({"max_epochs": 3, "devices": "all"}, "devices is 'all'; valid are auto, a number"),
    ],
    ids=str,
)
def test_wrong_trainer_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainerSettings(**settings)


def test_world_size(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    cpu = {"max_epochs": 1, "accelerator": "cpu"}
    assert TrainerSettings(**cpu).world_size() == 1
    assert TrainerSettings(**cpu, devices=2).world_size() == 2
    assert TrainerSettings(max_epochs=1, devices=[0, 3], num_nodes=2).world_size() == 4
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert TrainerSettings(**cpu, devices=2).world_size() == 8


def built_trainer(folder, **settings):
    settings = {"max_epochs": 1, "accelerator": "cpu", "precision": "32-true", **settings}
    return TrainerSettings(**settings).build(callbacks=[], loggers=[], steps_per_epoch=10, run_dir=folder)


def started_by_torchrun(monkeypatch, processes):
    count = str(processes)
    names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
    given = {**dict.fromkeys(names, "0"), "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    for name, value in given.items():
        monkeypatch.setenv(name, value)


def test_torchrun_says_how_many_devices(monkeypatch, tmp_path):
    """With a CPU's one device each process would train by itself, in the same run directory."""
    started_by_torchrun(monkeypatch, 2)
    assert built_trainer(tmp_path).world_size == 2
    assert built_trainer(tmp_path, devices=2).world_size == 2
    with pytest.raises(ValueError, match="2 processes were started"):
        built_trainer(tmp_path, devices=1)
    started_by_torchrun(monkeypatch, 1)
    assert built_trainer(tmp_path).world_size == 1


def started_by_srun(monkeypatch, tasks):
    given = {"SLURM_NTASKS": tasks, "SLURM_NTASKS_PER_NODE": tasks, "SLURM_JOB_NAME": "deeplab", "SLURM_PROCID": 0}
    for name, value in {**given, "SLURM_LOCALID": 0, "SLURM_NODEID": 0}.items():
        monkeypatch.setenv(name, str(value))


def test_srun_says_how_many_devices(monkeypatch, tmp_path):
    """As torchrun; one task with two devices would wait for a second one for ever."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    started_by_srun(monkeypatch, 2)
    assert built_trainer(tmp_path).world_size == 2
    assert built_trainer(tmp_path, devices=2).world_size == 2
    with pytest.raises(ValueError, match=r"2 processes were started, but trainer\.devices=1 on"):
        built_trainer(tmp_path, devices=1)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(ValueError, match=r"SLURM started 2 tasks .* --ntasks-per-node=N, not --ntasks=N"):
        built_trainer(tmp_path)
    started_by_srun(monkeypatch, 1)
    assert built_trainer(tmp_path).world_size == 1
    with pytest.raises(ValueError, match="1 processes were started"):
        built_trainer(tmp_path, devices=2)
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert built_trainer(tmp_path, devices=2).world_size == 2


def test_steps_alone_end_a_run(tmp_path):
    trainer = built_trainer(tmp_path, max_epochs=3, max_steps=15)
    assert (trainer.max_epochs, trainer.max_steps) == (-1, 15)


def test_precision_on_a_cpu():
    settings = {"max_epochs": 1, "accelerator": "cpu"}
    assert TrainerSettings(**settings, precision="16-mixed").resolved_precision() == "bf16-mixed"
    assert TrainerSettings(**settings, precision="32-true").resolved_precision() == "32-true"
    assert TrainerSettings(**settings).resolved_precision() in ("32-true", "bf16-mixed")
