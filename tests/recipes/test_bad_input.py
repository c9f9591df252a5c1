"""Bad input through the real command: one clear message, before training, nothing lost."""

import errno
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import Answer, Command
from PIL import Image

SMALL = [
    "model=deeplabv3plus_resnet18", "model.aspp_channels=16", "data.crop_size=[65,65]", "data.base_size=[80,80]",
    "data.evaluate_sizes={square:[65,65]}", "data.workers=0", "batch_size=4", "trainer.max_steps=4",
    "trainer.evaluate_every=0.34", "pictures=0", "trainer.log_every=1", "trainer.precision=32-true",
]  # fmt: skip


@pytest.fixture
def train(deeplab: Command, tmp_path: Path) -> Command:
    def call(root: Any, *arguments: str) -> Answer:
        return deeplab("train", *SMALL, f"data.root={root}", f"run_dir={tmp_path / 'run'}", *arguments)

    return call


@pytest.fixture
def ade(tiny_sets: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the tiny set, to spoil."""
    shutil.copytree(tiny_sets["ADE20k"], tmp_path / "ade")
    return tmp_path / "ade"


def first(folder: Path, index: int = 0) -> Path:
    return sorted(folder.iterdir())[index]


def refused(answer: Answer, *words: str) -> None:
    assert answer.code != 0
    assert "Traceback" not in answer.err
    assert answer.err.count("error:") == 1
    for word in words:
        assert word in answer.err, answer.err


def test_missing_root(train: Command, tmp_path: Path) -> None:
    refused(train("nowhere"), "data.root=nowhere", "images/ and annotations/")
    assert not (tmp_path / "run").exists()


def test_no_root(deeplab: Command) -> None:
    refused(deeplab("train", "+recipe=ade20k_composer"), "data.root is not set", "data.root=DIR")


def test_empty_root(train: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(train(tmp_path / "empty"), "has no images/ folder")


def test_empty_part(train: Command, ade: Path) -> None:
    shutil.rmtree(ade / "images" / "training")
    (ade / "images" / "training").mkdir()
    refused(train(ade), "images/training holds no image")


def test_image_without_label(train: Command, ade: Path) -> None:
    first(ade / "annotations" / "training").unlink()
    refused(train(ade), "1 of 13 images have no label", "ADE_train_00000000.jpg")


def test_label_without_image(train: Command, ade: Path) -> None:
    first(ade / "images" / "validation").unlink()
    refused(train(ade), "1 of 3 labels have no image", "ADE_val_00000000.png")


def test_label_value_outside_the_classes(train: Command, ade: Path) -> None:
    path = first(ade / "annotations" / "training", 3)
    labels = np.asarray(Image.open(path)).copy()
    labels[5, 5:9] = 151
    Image.fromarray(labels).save(path)
    refused(train(ade), path.name, "label value 151 (4 pixels)", "0..150, 255")


def test_truncated_jpeg_is_named(train: Command, ade: Path, tmp_path: Path) -> None:
    path = first(ade / "images" / "training", 2)
    path.write_bytes(path.read_bytes()[:2000])
    refused(train(ade), path.name, "cannot be read as a picture")
    assert not (tmp_path / "run").exists()


def test_truncated_jpeg_found_by_a_worker_is_named(train: Command, ade: Path) -> None:
    path = first(ade / "images" / "training", 2)
    path.write_bytes(path.read_bytes()[:2000])
    refused(train(ade, "data.check_samples=0", "data.workers=1"), path.name, "cannot be read as a picture")


def test_truncated_jpeg_is_skipped_and_counted_on_request(train: Command, ade: Path, tmp_path: Path) -> None:
    for part, index in (("training", 2), ("validation", 1)):
        path = first(ade / "images" / part, index)
        path.write_bytes(path.read_bytes()[:2000])
    answer = train(ade, "data.on_corrupt=skip")
    assert answer.code == 0, answer.err
    assert "skipped 1 unusable train images" in answer.out
    assert "skipped 1 unusable validation images" in answer.out
    assert "ADE_train_00000002.jpg" in (tmp_path / "run" / "result.json").read_text()


def test_image_and_label_of_different_size(train: Command, ade: Path) -> None:
    path = first(ade / "images" / "training", 1)
    Image.open(path).resize((60, 60)).save(path)
    refused(train(ade), path.name, "60 x 60", "120 x 96", "same size")


def test_batch_that_does_not_divide(train: Command, ade: Path) -> None:
    refused(train(ade, "trainer.devices=3"), "batch_size=4 does not divide over 3 devices; nearest are 3 or 6")
    refused(train(ade, "microbatch_size=3"), "microbatch_size=3 does not divide the 4 images", "2 and 4")


def test_batch_larger_than_the_set(train: Command, ade: Path) -> None:
    refused(train(ade, "batch_size=64"), "batch_size=64 is larger than the training part (12 samples)")


def test_one_sample_per_batch_norm(train: Command, ade: Path) -> None:
    refused(train(ade, "batch_size=1"), "each batch norm would see a single image", "at least 2")
    refused(train(ade, "microbatch_size=1"), "each batch norm would see a single image")


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("+recipe=ade20k_compser", ("no recipe 'ade20k_compser'", "did you mean ade20k_composer")),
        ("model=resnet", ("no model 'resnet'", "deeplabv3plus_resnet101")),
        ("optimizer.lrr=1", ("unknown setting optimizer.lrr", "did you mean optimizer.lr")),
        ("optimzer.lr=1", ("unknown setting optimzer.lr", "did you mean optimizer.lr")),
        ("+optimizer.lrr=1", ("unknown setting optimizer.lrr", "did you mean lr")),
        ("+bathc_size=1", ("unknown setting bathc_size", "did you mean batch_size")),
        ("batch_size=many", ("batch_size is 'many'", "whole number")),
        ("trainer.precision=half", ("trainer.precision is 'half'", "bf16-mixed")),
        ("protocol=squared", ("protocol is 'squared'", "square")),
        (
            "model.dense_prediction_cell=published",
            ("no setting of this model; it is one of model=dense_prediction_cell_mobilenet_v2, model=dense_",),
        ),
        ("model.width_multiplier=0.5", ("no setting of this model; it is one of model=deeplabv3plus_mobilenet_v2, ",)),
        ("optimizer.betas=[0,0]", ("no setting of this optimizer; it is one of optimizer=adam, optimizer=adamw",)),
        ("model.backbone=resnet1", ("resnet1", "resnet101")),
        ("model.output_stride=4", ("4", "8, 16")),
        ("optimizer.lr=-1", ("optimizer", "learning rate")),
        ("optimizer._target_=os.system", ("os.system", "outside the packages")),
        ("optimizer._target_=torch.optim.SDG", ("torch.optim.SDG", "does not exist")),
    ],
)
def test_typo(train: Command, ade: Path, argument: str, words: tuple[str, ...]) -> None:
    refused(train(ade, argument), *words)


@pytest.mark.parametrize("setting", ["loss.auxiliary=0.4", "model.auxiliary_head=true"])
def test_auxiliary_head_and_weight_go_together(train: Command, ade: Path, setting: str) -> None:
    answer = train(ade, setting)
    assert answer.code == 2
    assert "loss.auxiliary" in answer.err
    assert "go together: the head needs a weight above 0" in answer.err


REFUSED = {  # settings -> words of the one message
    "loss.auxiliary=0.4": "go together: the head needs a weight above 0",
    "loss.class_weights=[1,2]": "loss.class_weights has 2 numbers for",
    "loss.class_weights={gras:2}": "loss.class_weights names 'gras', which is no class",
    "loss=cross_entropy_top_k loss.normalize=global microbatch_size=2": "the hard pixels of a global batch cannot",
    "loss=cross_entropy_dice loss.normalize=global microbatch_size=2": "Dice over a global batch has no exact form",
    "weights=none.ckpt": "no checkpoint at none.ckpt",
    "weights=''": "weights is empty; it takes FILE, zoo:NAME or null",
    "weights=zoo:voc_xception": "unknown published model 'voc_xception'; valid: voc_mobilenet_v2",
    "weights=photo.ckpt": "photo.ckpt is no checkpoint that can be read safely",
    "resume=none.ckpt": "no checkpoint at none.ckpt",
    "resume=photo.ckpt": "photo.ckpt is no checkpoint that can be read safely",
    "model.backbone_weights=none.pth": "none.pth is neither a file nor weights that resnet18 has",
    "model.backbone_weights=https://a.org/b.pth": "an address needs its sha256",
    "model.backbone_weights=photo.ckpt": "photo.ckpt is no PyTorch checkpoint",
    "parameters.backbone_lr=0.1 model.freeze_backbone=true": "parameters.backbone_lr=0.1 has no effect: model.freeze_",
    "loss=cross_entropy_ohem": "loss.hard_pixels.min_kept=100000 chooses every pixel: data.crop_size=[65, 65] has 4225",
    "loss.hard_pixels=0.25": "loss.hard_pixels is 0.25; it takes null or a section with _target_, as the YAMLs of its",
    "loss.class_weights=3": "loss.class_weights is 3; it takes a list or {name: value} or a word or null",
    "optimizer.lr=-1": "optimizer: Invalid learning rate: -1",
    "schedule=exponential schedule_ends=at_last_step": "schedule_ends=at_last_step has no effect",
    "data.crop_size=[65]": "data.crop_size is [65]; it takes two whole numbers",
    "data.check_samples=-1": "data.check_samples is -1; it takes a whole number of at least 0",
    "data.scale_range=[2,1]": "data.scale_range is [2, 1]; it takes two numbers",
    "evaluate_batch_size=0": "evaluate_batch_size is 0; it takes a whole number of at least 1",
    "pictures=-1": "pictures is -1; it takes a whole number of at least 0",
    "batch_size=64": "batch_size=64 is larger than the training part (12 samples)",
}


@pytest.mark.parametrize("settings", REFUSED)
def test_plan_refuses_what_training_does(
    train: Command, deeplab: Command, tiny_sets: dict[str, Path], tmp_path: Path, settings: str
) -> None:
    (tmp_path / "photo.ckpt").write_bytes(b"no weights here" * 100)
    root = tiny_sets["ADE20k"]
    trained = train(root, *settings.split())
    planned = deeplab("plan", *SMALL, f"data.root={root}", "measure=false", *settings.split())
    refused(planned, REFUSED[settings])
    assert (trained.code, trained.err) == (2, planned.err)
    assert not (tmp_path / "run").exists()


def test_plan_refuses_a_run_that_training_would_not_touch(train: Command, deeplab: Command, ade: Path) -> None:
    assert train(ade, "trainer.max_steps=1").code == 0
    words = [*SMALL, f"data.root={ade}", "measure=false"]
    refused(deeplab("plan", *words, "run_dir=run"), "run_dir=run holds a run already")
    refused(deeplab("plan", *words, "resume=auto"), "resume=auto needs run_dir=DIR")
    going_on = ("run_dir=run", "resume=auto")
    refused(deeplab("plan", *words, *going_on, "optimizer.lr=0.3"), "was trained with optimizer.lr=0.01, this run has")
    refused(deeplab("plan", *words, *going_on, "trainer.max_steps=1"), "nothing is left to do")
    assert deeplab("plan", *words, *going_on).code == 0


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        ("model.freeze_batchnorm=both", "model.freeze_batchnorm=both keeps statistics that no training has found"),
        (
            "model.freeze_batchnorm=true model.batchnorm_momentum=0.01",
            "model.batchnorm_momentum has no effect with model.",
        ),
        (
            "parameters.last_layers=head",
            "parameters.last_layers=head has no effect while parameters.last_layers_lr is 1",
        ),
        (
            "loss=cross_entropy_top_k loss.hard_pixels.hard_example_mining_step=8",
            "top_k_percent_pixels=0.25 is reached at step 8, and this run ends at step 4, with a share of 0.625",
        ),
        (
            "loss=cross_entropy_top_k loss.hard_pixels.top_k_percent_pixels=1",
            "top_k_percent_pixels=1 chooses every pixel",
        ),
    ],
)
def test_plan_notes_what_has_no_effect(deeplab: Command, tiny_sets: dict[str, Path], settings: str, note: str) -> None:
    answer = deeplab("plan", *SMALL, f"data.root={tiny_sets['ADE20k']}", "measure=false", *settings.split())
    assert answer.code == 0, answer.err
    assert f"note: {note}" in answer.out or f"note: loss.hard_pixels.{note}" in answer.out


def test_plan_says_what_this_machine_lacks(deeplab: Command, ade: Path) -> None:
    """Training refuses it; a plan may be made elsewhere."""
    answer = deeplab(
        "plan", *SMALL, f"data.root={ade}", "measure=false", "trainer.devices=[0]", "trainer.accelerator=cpu"
    )
    assert answer.code == 0, answer.err
    assert "note: not on this machine: trainer.devices=[0] names GPUs" in answer.out


def test_unknown_verb(deeplab: Command) -> None:
    refused(deeplab("trian"), "no verb 'trian'", "did you mean train")


def test_checkpoint_with_other_classes(train: Command, tiny_sets: dict[str, Path], ade: Path, tmp_path: Path) -> None:
    assert train(ade, "trainer.max_steps=1").code == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    answer = train(
        tiny_sets["CamVid"], "data=camvid", f"resume={checkpoint}", f"run_dir={tmp_path / 'other'}", "protocol=square"
    )
    refused(answer, "other classes", "150 there", "11 here")
    answer = train(ade, f"resume={checkpoint}", "model.aspp_channels=32", f"run_dir={tmp_path / 'other'}")
    refused(answer, "another model", "model.aspp_channels is 16 there and 32 here")


def test_no_checkpoint(train: Command, ade: Path, tmp_path: Path) -> None:
    (tmp_path / "photo.ckpt").write_bytes(b"no weights here" * 100)
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.ckpt")
    refused(train(ade, "resume=missing.ckpt"), "no checkpoint at missing.ckpt")
    refused(train(ade, "resume=photo.ckpt"), "photo.ckpt is no checkpoint that can be read safely")
    refused(train(ade, "resume=other.ckpt"), "other.ckpt was not written by deeplab-recipes")


def test_existing_run_is_left_alone(train: Command, ade: Path, tmp_path: Path) -> None:
    assert train(ade, "trainer.max_steps=1").code == 0
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    refused(train(ade), "holds a run already", "resume=auto")
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_resume_auto_without_run_dir(deeplab: Command, ade: Path) -> None:
    refused(deeplab("train", *SMALL, f"data.root={ade}", "resume=auto"), "resume=auto needs run_dir=DIR")


def test_finished_run_has_nothing_to_resume(train: Command, ade: Path) -> None:
    assert train(ade, "trainer.max_steps=1").code == 0
    refused(train(ade, "trainer.max_steps=1", "resume=auto"), "nothing is left to do", "trainer.max_steps")


def test_full_disk_keeps_the_earlier_checkpoint(
    train: Command, ade: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves, save = [], torch.save

    def fail_later(content: Any, file: Any, **options: Any) -> None:
        saves.append(content["global_step"])
        if len(saves) > 1:
            file.write(b"half a checkpoint")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, file, **options)

    monkeypatch.setattr(torch, "save", fail_later)
    answer = train(ade)
    refused(answer, "No space left on device", "last.ckpt is unharmed", "resume=auto")
    monkeypatch.undo()
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == saves[0]
    assert '"status": "stopped: OSError' in (tmp_path / "run" / "result.json").read_text()


def test_nan_loss_stops_names_the_batch_and_keeps_the_last_good_checkpoint(
    train: Command, ade: Path, tmp_path: Path
) -> None:
    assert train(ade, "trainer.max_steps=2", "schedule=constant").code == 0
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    good = last.read_bytes()
    # The resumed optimizer keeps the checkpoint's rate; a huge weight on the loss makes the next step overflow. A run
    # whose settings are known would not go on with another loss.
    (tmp_path / "run" / "config.yaml").unlink()
    answer = train(ade, "trainer.max_steps=9", "schedule=constant", "loss.cross_entropy=1e38", "resume=auto")
    refused(answer, "loss of step", "epoch", "ADE_train_", str(last), "optimizer.lr")
    assert last.read_bytes() == good


def test_unwritable_run_dir(train: Command, ade: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(train(ade, f"run_dir={tmp_path / 'file' / 'run'}"), "file")
