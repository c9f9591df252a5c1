"""Fine-tuning through the real command: settings to numbers in the run's record."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import Command
from small_run import SMALL

from deeplab_recipes import config
from deeplab_recipes.checkpoints import load_checkpoint
from deeplab_recipes.training import train

Trained = Callable[..., dict[str, Any]]


@pytest.fixture
def words(tiny_sets: dict[str, Path], tmp_path: Path) -> list[str]:
    return [*SMALL, f"data.root={tiny_sets['ADE20k']}", "trainer.max_steps=1", f"run_dir={tmp_path / 'run'}"]


@pytest.fixture
def trained(compose_settings: Callable[..., dict[str, Any]], words: list[str]) -> Trained:
    """Train as the command does; gives the result."""

    def call(*overrides: str, resume: Any = None) -> dict[str, Any]:
        settings = compose_settings(*words, *overrides)
        return train(config.assemble(settings, {}), resume=resume, settings=settings)

    return call


def test_class_weights_by_name_and_counted(deeplab: Command, words: list[str], tmp_path: Path) -> None:
    assert deeplab("train", *words, "loss.class_weights={wall: 2, sky: 0.5}").code == 0
    given = json.loads((tmp_path / "run" / "result.json").read_text())["class_weights"]
    assert (given["wall"], given["sky"], given["tree"]) == (2, 0.5, 1)
    answer = deeplab("train", *words, f"run_dir={tmp_path / 'b'}", "loss.class_weights=median_frequency")
    assert answer.code == 0, answer.err
    counted = json.loads((tmp_path / "b" / "result.json").read_text())["class_weights"]
    assert len(counted) == 150
    assert len(set(counted.values())) > 10
    answer = deeplab("train", *words, f"run_dir={tmp_path / 'c'}", "loss.class_weights={wal: 2}")
    assert answer.code == 2
    assert "names 'wal', which is no class" in answer.err
    assert not (tmp_path / "c").exists()


TOP_K = ("loss=cross_entropy_top_k",)
OHEM = ("loss=cross_entropy_ohem", "loss.hard_pixels.thresh=0.001", "loss.hard_pixels.min_kept=10")


def first_losses(run: Path) -> list[str]:
    return [row.split(",")[3] for row in (run / "metrics.csv").read_text().splitlines()[1:]]


@pytest.mark.parametrize(
    ("choice", "change"),
    [
        (TOP_K, "loss.hard_pixels=null"),
        (TOP_K, "loss.hard_pixels.top_k_percent_pixels=0.1"),
        (TOP_K, "loss.hard_pixels.hard_example_mining_step=2"),
        (OHEM, "loss.hard_pixels=null"),
        (OHEM, "loss.hard_pixels.thresh=0.1"),
        (OHEM, "loss.hard_pixels.min_kept=100"),
        ((), "loss.denominator=weights"),
    ],
)
def test_loss_settings_change_the_training(choice: tuple, change: str, trained: Trained, tmp_path: Path) -> None:
    choice = (*choice, "loss.class_weights=enet")
    trained(*choice)
    trained(*choice, change, f"run_dir={tmp_path / 'other'}")
    assert first_losses(tmp_path / "run") != first_losses(tmp_path / "other")


def test_hard_pixels_of_a_split_global_batch_are_refused(trained: Trained) -> None:
    with pytest.raises(ValueError, match=r"loss\.normalize=device"):
        trained(*TOP_K, "loss.normalize=global", "microbatch_size=2")


@pytest.mark.parametrize(
    "change",
    [
        "loss.hard_pixels.top_k_percent_pixels=0",
        "+loss.hard_pixels.share=0.1",
        "loss.hard_pixels.hard_example_mining_step=-1",
    ],
)
def test_wrong_hard_pixels_are_refused(change: str, trained: Trained) -> None:
    with pytest.raises(ValueError, match=r"loss\.hard_pixels\."):
        trained("loss=cross_entropy_top_k", change)


def tensors(run: Path) -> dict[str, Any]:
    return load_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]


def test_what_is_frozen_stays_so_after_resume(trained: Trained, tmp_path: Path) -> None:
    frozen = ("model.freeze_backbone=true", "model.freeze_batchnorm=both", "parameters.last_layers_lr=10")
    trained(*frozen)
    first = tensors(tmp_path / "run")
    trained(*frozen, "trainer.max_steps=3", resume="auto")
    second = tensors(tmp_path / "run")
    changed = {name for name in first if not first[name].equal(second[name])}
    assert changed
    assert all(name.startswith("model.head.") and "running" not in name for name in changed)
    with pytest.raises(ValueError, match=r"model\.freeze_backbone is 5 there and 0 here"):
        trained(*frozen, "model.freeze_backbone=false", "trainer.max_steps=4", resume="auto")


def test_a_frozen_random_backbone_is_noted(compose_settings: Callable[..., Any], words: list[str]) -> None:
    run = config.assemble(compose_settings(*words, "model.freeze_backbone=1"), {})
    assert any("keeps random weights" in note for note in run.notes())
    run = config.assemble(compose_settings(*words, "model.freeze_backbone=1", "weights=a.ckpt"), {})
    assert not any("keeps random weights" in note for note in run.notes())


def record(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def moved(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """Names of the tensors that differ by more than what a step at a tiny learning rate does."""
    return {name for name, value in before.items() if not value.allclose(after[name], rtol=0, atol=1e-12)}


def test_weights_of_another_run(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Training that does not learn (the smallest rate) leaves the weights it began with."""
    trained()
    first = tensors(tmp_path / "run")
    file = f"weights={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"
    still = ("optimizer.lr=1.0e-30", "optimizer.weight_decay=0", "model.freeze_batchnorm=true", "seed=3")
    trained(file, "init=continue_training", *still, f"run_dir={tmp_path / 'b'}", "trainer.progress=true")
    assert "note: weights: " in capsys.readouterr().err
    assert not moved(first, tensors(tmp_path / "b"))
    trained(file, *still, f"run_dir={tmp_path / 'c'}")
    assert moved(first, tensors(tmp_path / "c")) == {"model.head.conv_seg.weight", "model.head.conv_seg.bias"}
    begun = record(tmp_path / "c")["weights"]
    assert begun["init"] == "transfer_learning"
    assert set(begun["left_out"]) == {"head.conv_seg.weight", "head.conv_seg.bias"}


def test_resume_goes_on_without_the_weights_that_the_run_began_with(trained: Trained, tmp_path: Path) -> None:
    trained()
    file = tmp_path / "run" / "checkpoints" / "last.ckpt"
    copy = tmp_path / "begin.ckpt"
    copy.write_bytes(file.read_bytes())
    command = (f"weights={copy}", f"run_dir={tmp_path / 'b'}")
    trained(*command, resume="auto")  # there is nothing to go on with yet
    begun = record(tmp_path / "b")["weights"]
    copy.unlink()
    assert trained(*command, "trainer.max_steps=2", resume="auto")["steps"] == 2
    assert record(tmp_path / "b")["weights"] == begun
    with pytest.raises(ValueError, match=r"weights=other\.ckpt begins a run, and .*its run began with weights=/"):
        trained("weights=other.ckpt", command[1], "trainer.max_steps=3", resume="auto")
    with pytest.raises(ValueError, match="its run began with weights=null"):
        trained(f"weights={copy}", f"run_dir={tmp_path / 'c'}", "trainer.max_steps=2", resume=file)
    (tmp_path / "run" / "config.yaml").unlink()
    with pytest.raises(ValueError, match="its settings are not beside it"):
        trained(f"weights={copy}", f"run_dir={tmp_path / 'c'}", "trainer.max_steps=2", resume=file)
    assert not (tmp_path / "c").exists()


def test_weights_that_cannot_be_loaded_leave_no_run(deeplab: Command, words: list[str], tmp_path: Path) -> None:
    for change, message in {
        "weights=none.ckpt": "no checkpoint at none.ckpt",
        "weights=zoo:no_such_weights": "no_such_weights",
        "init=continue_training": "there are none: weights=FILE",
        "init=continue": "init is 'continue'; it takes transfer_learning or continue_training",
    }.items():
        answer = deeplab("train", *words, change)
        assert answer.code == 2
        assert message in answer.err
        assert not (tmp_path / "run").exists()


def test_plan_names_them(deeplab: Command, words: list[str], trained: Trained, tmp_path: Path) -> None:
    trained()
    file = tmp_path / "run" / "checkpoints" / "last.ckpt"
    elsewhere = ("measure=false", f"run_dir={tmp_path / 'b'}")
    answer = deeplab("plan", *words, *elsewhere, f"weights={file}")
    assert f"with all others from {file} (transfer_learning)" in answer.out
    assert "note: weights: left out head.conv_seg.weight, head.conv_seg.bias: the last layer" in answer.out
    answer = deeplab("plan", *words, *elsewhere, "weights=zoo:voc_xception65")
    assert "note: zoo:voc_xception65 is fetched when training begins" in answer.out
    answer = deeplab("plan", *words, "measure=false", "resume=auto", "trainer.max_steps=2")
    assert f"note: goes on from {file}, which has done 1 steps" in answer.out


def rates(run: Path) -> list[float]:
    rows = [row.split(",") for row in (run / "metrics.csv").read_text().splitlines()]
    column = rows[0].index("lr")
    return [float(row[column]) for row in rows[1:] if row[column]]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (("schedule=exponential", "schedule.factor=0.5"), [1, 1, 0.5, 0.5]),
        (("schedule=exponential", "schedule.factor=0.5", "schedule.every=step"), [1 / 2, 1 / 4, 1 / 8, 1 / 16]),
        (("schedule=inverse_time", "schedule.decay=1"), [1 / 2, 1 / 3, 1 / 4, 1 / 5]),
    ],
)
def test_schedules_by_step_and_epoch_with_adam(schedule, expected, trained: Trained, tmp_path: Path) -> None:
    """Twelve images in batches of four: three steps are an epoch; a row has the next step's rate."""
    adam = ("optimizer=adam", "parameters=tensorflow", "parameters.backbone_lr=0.1", "trainer.log_every=1")
    trained(*schedule, *adam, "trainer.max_steps=2")
    trained(*schedule, *adam, "trainer.max_steps=4", resume="auto")
    assert rates(tmp_path / "run") == pytest.approx([1e-4 * factor for factor in expected], rel=1e-3)
    with pytest.raises(ValueError, match="at_last_step has no effect"):
        trained(*schedule, *adam, "schedule_ends=at_last_step", f"run_dir={tmp_path / 'b'}")
