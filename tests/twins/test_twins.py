"""Each ADE20k recipe, trained for 20 steps in float64 beside the original (see originals.py), takes the same steps."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import numpy as np
import originals
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn

from deeplab_recipes import config
from deeplab_recipes.checkpoints import Checkpoints
from deeplab_recipes.training import Run, quiet

STEPS, EARLY, BATCH = 20, 3, 4
PAIR_STEPS, PAIR_BATCH = 10, 8  # over two devices: with two images each, batch norm makes rounding errors grow
# All that is changed of a recipe: a smaller network and smaller pictures, no colours (which are drawn on the device),
# and float64. Everything else that acts on a step is the recipe's.
SMALL = (
    "model.backbone_weights=none",
    "data.crop_size=[33,33]",
    "data.base_size=[40,40]",
    "data.evaluate_sizes={square:[33,33],keep_ratio:[40,40]}",
    "data.photometric=none",
    "data.workers=0",
    f"batch_size={BATCH}",
    f"trainer.max_steps={STEPS}",
    "trainer.precision=64-true",
    "trainer.accelerator=cpu",
    "trainer.progress=false",
    "~logger",
)
BACKBONE = {"ade20k_mmseg_160k": "resnet50_v1c"}


@pytest.fixture(autouse=True)
def _free_memory():
    """A run refers to itself in circles, and holds a gigabyte in float64."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """One epoch of 20 batches in ADE20k's layout, a third of the pixels unlabelled and unevenly so."""
    return make_pictures(tmp_path_factory.mktemp("pictures"))


def make_pictures(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for part, prefix, count in (("training", "train", STEPS * BATCH), ("validation", "val", 1)):
        for i in range(count):
            labels = rng.integers(1, 151, (10, 10), dtype=np.uint8)
            labels[rng.random((10, 10)) < rng.random() * 0.7] = 0
            colours = rng.integers(0, 255, (10, 10, 3), dtype=np.uint8)
            for kind, end, pixels in (("images", "jpg", colours), ("annotations", "png", labels)):
                path = root / kind / part / f"ADE_{prefix}_{i:08d}.{end}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.repeat(4, 0).repeat(4, 1)).save(path)
    return root


def built(recipe: str, root: Path, folder: Path, *overrides: str) -> Run:
    words = [f"+recipe={recipe}", f"model.backbone={BACKBONE.get(recipe, 'resnet18')}", *SMALL]
    words += [f"data.root={root}", f"run_dir={folder}", *overrides]
    with initialize_config_dir(str(config.yamls_folder()), version_base="1.3"):
        settings = OmegaConf.to_container(compose("train", words), resolve=True)
    run = config.assemble(settings, {})
    for name, value in run.network.state_dict().items():
        if name.endswith("bn3.weight"):  # an untrained ResNet-50 makes 1e-16 into 1 within a few steps
            value.fill_(0.1)
    return run


def batches(run: Run) -> list[originals.Batch]:
    """What the loader gives, whole global batches: the twin sees the same uint8 images and labels."""
    return [{key: batch[key] for key in ("image", "content", "label")} for batch in run.data.train_dataloader()]


def trained(run: Run) -> list[Tensor]:
    """Train by the package; returns parameters and statistics in the order of the twin's."""
    module = run.module()
    run.lightning.callbacks = [c for c in run.lightning.callbacks if not isinstance(c, Checkpoints)]  # half a gigabyte
    run.run_dir.mkdir(exist_ok=True)
    with quiet():
        run.lightning.fit(module, datamodule=run.data)
    return list(run.network.state_dict().values())


def require_drawn_alike(net: nn.Module, ours: dict[str, Tensor]) -> None:
    """The twin takes our weights; so compare first how those of the heads were drawn with how mmsegmentation does."""
    net.segmentor.decode_head.init_weights()
    net.segmentor.auxiliary_head.init_weights()
    for key, theirs in net.state_dict().items():
        if "_head." in key and key.endswith("conv_seg.bias"):
            assert not ours[key].any(), key
        elif "_head." in key and theirs.dim() == 4:
            spread, expected = ours[key].std().item(), theirs.std().item()
            assert spread == pytest.approx(expected, rel=0.15), f"{key} is drawn with another deviation"
    assert ours["segmentor.decode_head.conv_seg.weight"].std().item() == pytest.approx(0.01, rel=0.05)


def twin_of(run: Run, recipe: str, total: int = STEPS) -> Any:
    """The twin at the same weights. Composer's draws them itself, and has to draw the same."""
    twin = originals.TWINS[recipe](total)
    ours = {key: value.double() for key, value in run.network.state_dict().items()}
    if recipe == "ade20k_mmseg_160k":
        renamed = {f"segmentor.{key.replace('head.', 'decode_head.', 1)}": value for key, value in ours.items()}
        renamed = {key.replace("auxiliary_decode_head", "auxiliary_head"): value for key, value in renamed.items()}
        require_drawn_alike(twin.net, renamed)
        twin.net.load_state_dict(renamed)
    else:
        for (key, value), theirs in zip(ours.items(), twin.net.state_dict().values(), strict=True):
            assert torch.equal(value, theirs.double()), f"{key} starts elsewhere"
    return twin


def farthest(ours: list[Tensor], theirs: list[Tensor]) -> float:
    pairs = zip(ours, theirs, strict=True)
    return max((a.double() - b.double()).abs().max().item() for a, b in pairs)


@pytest.fixture(scope="module")
def reference(pictures, tmp_path_factory) -> Callable[[str], dict[int, list[Tensor]]]:
    """The twins' parameters after EARLY steps and after all; trained once."""
    known: dict[str, dict[int, list[Tensor]]] = {}

    def get(recipe: str) -> dict[int, list[Tensor]]:
        if recipe not in known:
            run = built(recipe, pictures, tmp_path_factory.mktemp("reference"))
            twin = twin_of(run, recipe)
            known[recipe] = originals.train(twin, batches(run), devices=1, keep=(EARLY, STEPS))
        return known[recipe]

    return get


@pytest.mark.parametrize("recipe", originals.TWINS)
def test_twenty_steps_are_the_originals(recipe, reference, pictures, tmp_path):
    run = built(recipe, pictures, tmp_path)
    before = [value.double().clone() for value in run.network.state_dict().values()]
    ours = trained(run)
    assert farthest(ours, reference(recipe)[STEPS]) <= 1e-9
    assert farthest(ours, before) > 1e-2  # the training went somewhere


def test_wrong_initializers_of_mmsegmentations_heads_are_found(pictures, tmp_path):
    twin_of(built("ade20k_mmseg_160k", pictures, tmp_path), "ade20k_mmseg_160k")
    run = built("ade20k_mmseg_160k", pictures, tmp_path, "model.initializers=[kaiming_normal]")
    with pytest.raises(AssertionError, match="is drawn with another deviation"):
        twin_of(run, "ade20k_mmseg_160k")


@pytest.mark.parametrize("recipe", originals.TWINS)
def test_batches_and_length_are_the_originals(recipe):
    with initialize_config_dir(str(config.yamls_folder()), version_base="1.3"):
        settings = OmegaConf.to_container(compose("train", [f"+recipe={recipe}", "trainer.accelerator=cpu"]))
    trainer = config.build(settings["trainer"], "trainer")
    twin = originals.TWINS[recipe]
    per_epoch = settings["published"]["training_images"] // settings["batch_size"]
    assert (settings["batch_size"], trainer.steps(per_epoch)) == (twin.batch_size, twin.epochs_or_steps)


CHANGES = {
    "ade20k_typical": (
        "optimizer.lr=0.0101",
        "optimizer.momentum=0.901",
        "optimizer.weight_decay=5.1e-4",
        "optimizer.dampening=0.01",
        "optimizer.nesterov=true",
        "schedule.power=0.91",
        "schedule.alpha_f=0.011",
        "model.dropout=0.11",
        "model.aspp_dilations=[1,2,24,36]",
        "model.initializers=[]",
        "seed=18",
    ),
    "ade20k_composer": (
        "optimizer.lr=0.0101",
        "optimizer.weight_decay=2.1e-5",
        "schedule.alpha_f=0.001",
        "loss.denominator=all",
        "loss.dice=0.01",
        "model.initializers=[bn_ones]",
        "model.freeze_batchnorm=true",
    ),
    "ade20k_mmseg_160k": (
        "loss.auxiliary=0.41",
        "loss.denominator=valid",
        "schedule.power=1.0",
        "schedule.alpha_f=0.0",
        "optimizer.momentum=0.8",
        "microbatch_size=2",
    ),
}


@pytest.mark.parametrize(("recipe", "change"), [(r, c) for r, changes in CHANGES.items() for c in changes])
def test_a_changed_number_leaves_the_original(recipe, change, reference, pictures, tmp_path):
    run = built(recipe, pictures, tmp_path, change)
    run.lightning.fit_loop.epoch_loop.max_steps = EARLY  # the schedule keeps its length
    assert farthest(trained(run), reference(recipe)[EARLY]) > 1e-9


# Two devices: two processes of the package, and the twin that plays both.


PAIR = (f"batch_size={PAIR_BATCH}", f"trainer.max_steps={PAIR_STEPS}")


def train_on_a_device(recipe: str, root: str, folder: str) -> None:
    run = built(recipe, Path(root), Path(folder) / "run", "trainer.devices=2", *PAIR)
    values = trained(run)
    torch.save(values, Path(folder) / f"{run.lightning.global_rank}.pt")


@pytest.mark.parametrize("recipe", ["ade20k_composer", "ade20k_mmseg_160k"])
def test_two_devices_take_the_originals_steps(recipe, pictures, tmp_path):
    run = built(recipe, pictures, tmp_path / "alone", *PAIR)
    twin = twin_of(run, recipe, PAIR_STEPS)
    theirs = originals.train(twin, batches(run), devices=2, keep=(PAIR_STEPS,))[PAIR_STEPS]
    forked.run("test_twins", "train_on_a_device", 2, recipe, pictures, tmp_path)
    assert farthest(torch.load(tmp_path / "0.pt", weights_only=True), theirs) <= 1e-9
