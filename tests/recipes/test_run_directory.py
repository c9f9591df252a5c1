"""What a run leaves, what it shows, and that it goes on where it stopped."""

import csv
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from deeplab_recipes import config, load_predictor
from deeplab_recipes.training import train

Settings = dict[str, Any]
SMALL = [
    "+recipe=ade20k_composer", "model=deeplabv3plus_resnet18", "model.aspp_channels=16", "data.crop_size=[65,65]",
    "data.base_size=[80,80]", "data.evaluate_sizes={square:[65,65],keep_ratio:[80,65]}", "data.workers=0",
    "model.backbone_weights=none", "batch_size=4", "trainer.max_epochs=2", "trainer.max_steps=5", "pictures=2",
    "trainer.evaluate_every=0.67", "trainer.log_every=2", "trainer.precision=32-true", "trainer.progress=false",
]  # fmt: skip


@pytest.fixture
def run(
    compose_settings: Callable[..., Settings], tiny_sets: dict[str, Path], tmp_path: Path
) -> Callable[..., tuple[Path, Settings]]:
    """Train with overrides; gives the run directory and the result."""

    def call(name: str, *overrides: str, resume: Any = None) -> tuple[Path, Settings]:
        settings = compose_settings(
            *SMALL, f"data.root={tiny_sets['ADE20k']}", f"run_dir={tmp_path / name}", *overrides
        )
        return tmp_path / name, train(config.assemble(settings, {}), resume=resume, settings=settings)

    return call


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_contents(run: Callable[..., tuple[Path, Settings]], tiny_sets: dict[str, Path]) -> None:
    folder, result = run("a")
    assert json.loads((folder / "result.json").read_text())["status"] == "finished"
    assert yaml.safe_load((folder / "config.yaml").read_text())["batch_size"] == 4
    assert list((folder / "tensorboard").glob("events*"))
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    keys = {
        "recipe", "seed", "world_size", "bn_batch", "images_per_second", "hours", "peak_memory", "hardware",
        "precision", "versions", "commit", "dirty", "deviations", "data", "checkpoint", "evaluations",
    }  # fmt: skip
    assert keys <= result.keys()
    assert {"protocol", "split", "tta", "output_stride", "miou", "per_class"} <= result["evaluations"][0].keys()
    assert len(result["evaluations"][0]["per_class"]) == 150
    logged = rows(folder)
    assert [row["step"] for row in logged if row["loss"]] == ["2", "4", "5"]
    # Every 0.67 epochs of 3 steps is every 2 steps; the end is evaluated although it falls between.
    assert [row["step"] for row in logged if row["miou"]] == ["2", "4", "5"]
    assert float(logged[-1]["miou"]) == pytest.approx(result["evaluations"][0]["miou"], abs=1e-4)


def test_pictures(run: Callable[..., tuple[Path, Settings]]) -> None:
    folder, _ = run("a")
    names = sorted(p.name for p in (folder / "pictures").iterdir())
    assert names == ["ADE_val_00000000.png", "ADE_val_00000002.png", "overview.png"]
    assert Image.open(folder / "pictures" / names[0]).width > 3 * 120


def test_checkpoint_is_all_that_prediction_needs(run: Callable[..., tuple[Path, Settings]]) -> None:
    folder, result = run("a")
    best = folder / "checkpoints" / "best.ckpt"
    assert result["checkpoint"]["sha256"] == hashlib.sha256(best.read_bytes()).hexdigest()
    predictor = load_predictor(best)
    assert len(predictor.classes) == len(predictor.palette) == 150
    labels = predictor(np.random.default_rng(0).integers(0, 255, (77, 101, 3), dtype=np.uint8))
    assert labels.shape == (77, 101)
    assert labels.dtype == np.uint8


@pytest.mark.parametrize(  # in the middle of an epoch of 3 steps, at its end, in the middle of the next
    ("stop", "workers"), [(2, 1), (3, 1), (4, 1), (4, 0)]
)
def test_resumed_run_equals_one_that_never_stopped(
    run: Callable[..., tuple[Path, Settings]], stop: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = ["trainer.evaluate_every=0.34", "trainer.log_every=1", f"data.workers={workers}"]
    whole, result = run("whole", *every)
    checkpoint = keep_checkpoint_of_step(monkeypatch, stop)
    run("stopped", *every)
    resumed, again = run("resumed", *every, resume=checkpoint["path"])
    assert same_weights(whole, resumed)
    assert json.dumps(again["evaluations"][0]) == json.dumps(result["evaluations"][0])
    expected = [r for r in rows(whole) if int(r["step"]) > stop]
    found = [r for r in rows(resumed) if int(r["step"]) > stop]
    for key in ("step", "loss", "lr", "miou"):
        assert [r[key] for r in found] == [r[key] for r in expected]


def keep_checkpoint_of_step(monkeypatch: pytest.MonkeyPatch, step: int) -> dict[str, Path]:
    """Copy the checkpoint that a run writes after `step`, as if it had been stopped then."""
    from deeplab_recipes.checkpoints import AtomicCheckpointIO

    kept: dict[str, Path] = {}
    save = AtomicCheckpointIO.save_checkpoint

    def save_and_copy(self: Any, checkpoint: Settings, path: Any, storage_options: Any = None) -> None:
        save(self, checkpoint, path, storage_options)
        if checkpoint["global_step"] == step and "path" not in kept:
            kept["path"] = Path(path).with_name("kept.ckpt")
            kept["path"].write_bytes(Path(path).read_bytes())

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", save_and_copy)
    return kept


def same_weights(one: Path, other: Path) -> bool:
    a, b = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for folder in (one, other)
    )
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_resume_auto_goes_on_in_the_same_directory(run: Callable[..., tuple[Path, Settings]]) -> None:
    folder, first = run("a", "trainer.max_steps=2", resume="auto")
    _, result = run("a", "trainer.max_steps=4", resume="auto")
    assert result["evaluations"][0]["step"] == 4
    assert result["hours"] > first["hours"]  # of both sessions together
    assert [row["step"] for row in rows(folder) if row["loss"]] == ["2", "4"]


def test_last_checkpoint_knows_the_best_even_if_that_is_the_end(run: Callable[..., tuple[Path, Settings]]) -> None:
    folder, result = run("a", "optimizer.lr=0.1")
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["callbacks"]["Checkpoints"]["best_evaluation"]["step"] == result["evaluations"][1]["step"]


def test_run_killed_before_its_record_still_gets_one(run: Callable[..., tuple[Path, Settings]]) -> None:
    folder, result = run("a")
    (folder / "result.json").write_text(json.dumps({**result, "status": "running"}))
    before = rows(folder)
    _, again = run("a", resume="auto")
    assert again["status"] == "finished"
    assert rows(folder) == before  # evaluated once more, which is no new row
    assert again["images_per_second"] > 0
    assert json.dumps(again["evaluations"][0]) == json.dumps(result["evaluations"][0])


def test_finished_checkpoint_has_nothing_left_for_another_run(run: Callable[..., tuple[Path, Settings]]) -> None:
    folder, _ = run("a")
    checkpoint = folder / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match="has done 5 steps and this run is to have 5: nothing is left"):
        run("b", resume=checkpoint)
    assert not (folder.parent / "b").exists()


@pytest.mark.parametrize("key", ["optimizer.lr=0.5", "seed=3", "batch_size=2"])
def test_resume_refuses_settings_that_the_checkpoint_would_overrule(
    run: Callable[..., tuple[Path, Settings]], key: str
) -> None:
    run("a", "trainer.max_steps=2")
    with pytest.raises(ValueError, match=key.split("=")[0]):
        run("a", "trainer.max_steps=4", key, resume="auto")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_precisions(run: Callable[..., tuple[Path, Settings]], precision: str) -> None:
    _, result = run("a", f"trainer.precision={precision}", "trainer.max_steps=1", "pictures=0")
    on_gpu = torch.cuda.is_available()
    assert result["precision"] == (precision if on_gpu or precision != "16-mixed" else "bf16-mixed")


def test_screen(tiny_sets: dict[str, Path], tmp_path: Path) -> None:
    settings = [f"data.root={tiny_sets['ADE20k']}", f"run_dir={tmp_path / 'run'}", "trainer.progress=true"]
    command = [sys.executable, "-m", "deeplab_recipes", "train", *SMALL[:-1], *settings]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert [line.split("  ")[2][:4] for line in lines if "mIoU" in line] == ["mIoU"] * 3
    assert all(line.startswith(("note: ", "epoch ")) for line in lines), done.stderr
    assert "mIoU" in done.stdout
    assert "wall" in done.stdout
    assert str(tmp_path / "run") in done.stdout
