"""A run that goes on is one run: with the settings it began with, in its own directory, in one process."""

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_run import SMALL

from deeplab_recipes import config
from deeplab_recipes.locking import only_process
from deeplab_recipes.training import train

Settings = dict[str, Any]
Trained = Callable[..., Settings]
SHORT = [*SMALL, "trainer.max_epochs=2", "trainer.max_steps=1"]


@pytest.fixture
def trained(compose_settings: Callable[..., Settings], tiny_sets: dict[str, Path], tmp_path: Path) -> Trained:
    """Train a step as the command does, in tmp_path/name; gives the result."""

    def call(name: str, *overrides: str, resume: Any = None) -> Settings:
        words = [*SHORT, f"data.root={tiny_sets['ADE20k']}", f"run_dir={tmp_path / name}", *overrides]
        settings = compose_settings(*words)
        return train(config.assemble(settings, {}), resume=resume, settings=settings)

    return call


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("loss.dice=9", "loss.dice=0.0, this run has loss.dice=9"),
        ("schedule=polynomial", "schedule._target_="),
        ("data.flip=0", "data.flip=0.5, this run has data.flip=0"),
    ],
)
def test_resume_refuses_what_changes_the_run(change, words, trained, tmp_path) -> None:
    trained("a")
    before = {name: (tmp_path / "a" / name).read_text() for name in ("config.yaml", "result.json")}
    with pytest.raises(ValueError, match=r"last\.ckpt was trained with") as refusal:
        trained("a", "trainer.max_steps=2", change, resume="auto")
    assert words in str(refusal.value)
    assert before == {name: (tmp_path / "a" / name).read_text() for name in before}


def test_a_run_of_an_earlier_version_goes_on(trained, tmp_path) -> None:
    trained("a")
    path = tmp_path / "a" / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    for later in ("weights", "init", "parameters"):
        del settings[later]
    del settings["data"]["scale_step"], settings["model"]["freeze_backbone"], settings["model"]["batchnorm_scale"]
    settings["model"]["freeze_batchnorm"] = False
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match=r"parameters\.bias_lr=null, this run has parameters\.bias_lr=2"):
        trained("a", "trainer.max_steps=2", "parameters.bias_lr=2.0", resume="auto")
    assert trained("a", "trainer.max_steps=2", resume="auto")["steps"] == 2


def test_resume_from_a_file_has_its_settings_too(trained, tmp_path) -> None:
    trained("a")
    with pytest.raises(ValueError, match=r"loss\.dice=9"):
        trained("b", "trainer.max_steps=2", "loss.dice=9", resume=tmp_path / "a" / "checkpoints" / "last.ckpt")
    assert not (tmp_path / "b").exists()


def test_what_may_change_is_noted(trained, tmp_path) -> None:
    trained("a")
    path = tmp_path / "a" / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "commit": "0" * 40}))
    trained("a", "trainer.max_steps=2", "trainer.evaluate_every=0.34", resume="auto")
    result = trained("a", "trainer.max_steps=3", "trainer.evaluate_every=0.34", resume="auto")
    first, second = result["resumed"]
    assert first["step"] == 1
    assert first["until_then"] == {"commit": "0" * 40}
    assert first["changes"] == {"trainer.max_steps": [1, 2], "trainer.evaluate_every": [1.0, 0.34]}
    assert second == {"step": 2, "until_then": {}, "changes": {"trainer.max_steps": [2, 3]}}
    assert yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())["trainer"]["max_steps"] == 3
    assert "resumed" not in trained("b")


def test_a_checkpoint_of_another_run_does_not_replace_a_run(trained, tmp_path) -> None:
    trained("a")
    trained("b")
    checkpoint = tmp_path / "a" / "checkpoints" / "last.ckpt"
    before = (tmp_path / "b" / "result.json").read_bytes()
    with pytest.raises(FileExistsError, match=r"/b holds a run already, and .*/a/.*last\.ckpt is not of it"):
        trained("b", "trainer.max_steps=2", resume=checkpoint)
    assert (tmp_path / "b" / "result.json").read_bytes() == before
    assert trained("a", "trainer.max_steps=2", resume=checkpoint)["steps"] == 2
    assert trained("c", "trainer.max_steps=3", resume=checkpoint)["steps"] == 3


def hold_in_a_child(path: Path) -> int:
    """Lock a file in a process of its own, which ends only by a kill; returns its number."""
    ready, done = os.pipe()
    child = os.fork()
    if child == 0:
        with only_process(path, "{holder}"):
            os.write(done, b".")
            signal.pause()
    os.read(ready, 1)
    return child


def test_one_process_in_a_run_directory(trained, tmp_path) -> None:
    trained("a")
    before = (tmp_path / "a" / "metrics.csv").read_text()
    other = hold_in_a_child(tmp_path / "a" / ".running")
    try:
        with pytest.raises(ValueError, match=rf"process {other} on {socket.gethostname()} is at work on the run in "):
            trained("a", "trainer.max_steps=2", resume="auto")
        assert (tmp_path / "a" / "metrics.csv").read_text() == before
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    assert trained("a", "trainer.max_steps=2", resume="auto")["steps"] == 2  # a killed one holds nothing


def test_file_system_without_locks_stops_no_run(trained, monkeypatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("deeplab_recipes.locking.fcntl.lockf", refuse)
    assert trained("a")["status"] == "finished"
