import csv
import json
import logging
import math
import subprocess
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import tiny
import torch

from deeplab_recipes import record, reporting
from deeplab_recipes.checkpoints import AtomicCheckpointIO, NonFiniteError
from deeplab_recipes.losses import SegmentationLoss
from deeplab_recipes.reporting import FIELDS, Reporter, class_table, clock
from deeplab_recipes.training import quiet

STEPS = 5  # of an epoch


def fit(folder: Path, *, callbacks: tuple = (), every: int = 2, progress: bool = False, **options: object) -> Reporter:
    """Train two epochs with an evaluation after each."""
    reporter = Reporter(folder / "metrics.csv", batch_size=4, every=every, progress=progress)
    resume = options.pop("resume", None)
    loss = options.pop("loss", SegmentationLoss(dice=0.5))
    with quiet():
        options = {"max_epochs": 2, "plugins": [AtomicCheckpointIO()], **options}
        trainer = tiny.trainer(folder, callbacks=[reporter, *callbacks], **options)
        validation = tiny.loader([[tiny.batches(1)[0]]])
        module = tiny.module(loss)
        trainer.fit(module, tiny.loader(tiny.batches(STEPS)), validation, ckpt_path=resume, weights_only=True)
    return reporter


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


class Losses(pl.Callback):
    """Keeps every step's loss and learning rate."""

    def __init__(self):
        self.seen: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.seen.append((outputs["loss"].item(), trainer.optimizers[0].param_groups[0]["lr"]))


# metrics.csv


def test_rows_are_means_over_the_steps_since_the_last_row(tmp_path):
    losses = Losses()
    fit(tmp_path, callbacks=(losses,))
    table = rows(tmp_path)
    assert list(table[0]) == list(FIELDS)
    assert [row["step"] for row in table] == ["2", "4", "5", "5", "7", "9", "10", "10"]
    assert [row["epoch"] for row in table] == ["0.4", "0.8", "1", "1", "1.4", "1.8", "2", "2"]
    training = [row for row in table if row["loss"]]
    windows = [(0, 2), (2, 4), (4, 5), (5, 7), (7, 9), (9, 10)]
    for row, (first, last) in zip(training, windows, strict=True):
        values = [loss for loss, _ in losses.seen[first:last]]
        assert float(row["loss"]) == pytest.approx(sum(values) / len(values), rel=1e-5)
        assert float(row["loss"]) == pytest.approx(float(row["cross_entropy"]) + 0.5 * float(row["dice"]), rel=1e-4)
        assert float(row["images_per_second"]) > 0
        assert not row["miou"]
    assert [bool(row["miou"]) for row in table] == [False, False, False, True] * 2
    seconds = [float(row["seconds"]) for row in table]
    assert seconds == sorted(seconds)


def test_parts_that_a_loss_does_not_have_stay_empty(tmp_path):
    fit(tmp_path, loss=SegmentationLoss())
    assert {row["dice"] for row in rows(tmp_path)} == {""}


class Interrupt(pl.Callback):
    """Saves at one step and fails at another."""

    def __init__(self, path: Path, *, save: int, fail: int):
        self.path, self.save, self.fail = path, save, fail

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.save:
            trainer.save_checkpoint(self.path)
        if trainer.global_step == self.fail:
            raise ConnectionAbortedError("killed")


def test_a_resumed_run_cuts_later_rows_and_goes_on(tmp_path):
    kept = tmp_path / "last.ckpt"
    with pytest.raises(ConnectionAbortedError):
        fit(tmp_path, callbacks=(Interrupt(kept, save=6, fail=9),))
    assert [row["step"] for row in rows(tmp_path)] == ["2", "4", "5", "5", "7", "9"]
    before = rows(tmp_path)[:4]
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("2,10,0.9,0.")  # a row that the killed run did not end
    reporter = fit(tmp_path, resume=kept)
    after = rows(tmp_path)
    assert after[:4] == before
    assert [row["step"] for row in after[4:]] == ["7", "9", "10", "10"]  # as if it had not stopped
    assert float(after[4]["seconds"]) > float(before[-1]["seconds"])  # time goes on, too
    assert reporter.seconds == pytest.approx(float(after[-1]["seconds"]), rel=1e-4)


@pytest.mark.parametrize("content", ["", "epo", ",".join(FIELDS) + "\n"])
def test_a_metrics_file_that_was_only_begun(content, tmp_path):
    (tmp_path / "metrics.csv").write_text(content)
    fit(tmp_path)
    assert [row["step"] for row in rows(tmp_path)][:3] == ["2", "4", "5"]


def test_a_step_beyond_a_million_is_written_in_full(tmp_path):
    reporter = Reporter(tmp_path / "metrics.csv", batch_size=4)
    trainer = SimpleNamespace(is_global_zero=True, global_step=1_234_567, num_training_batches=10, loggers=[])
    reporter._write(trainer, {"miou": 41.23456789})
    assert rows(tmp_path)[0]["step"] == "1234567"
    assert rows(tmp_path)[0]["miou"] == "41.2346"
    assert reporting._keep_rows(tmp_path / "metrics.csv", 1_234_567) == rows(tmp_path)
    assert len(rows(tmp_path)) == 1


def test_every_row_goes_to_the_loggers(tmp_path):
    class Memory(pl.loggers.logger.DummyLogger):
        def __init__(self):
            super().__init__()
            self.seen = []

        def log_metrics(self, *args, **kwargs):
            self.seen.append((kwargs["step"], sorted(args[0])))

    reporter = Reporter(tmp_path / "metrics.csv", batch_size=4)
    memory = Memory()
    trainer = SimpleNamespace(is_global_zero=True, global_step=3, num_training_batches=10, loggers=[memory])
    reporter._write(trainer, {"miou": 4.0})
    assert memory.seen == [(3, ["miou"])]


@pytest.mark.parametrize("every", [0, -1])
def test_rows_every_zero_steps_are_refused(every, tmp_path):
    with pytest.raises(ValueError, match=f"trainer.log_every is {every}"):
        Reporter(tmp_path / "metrics.csv", batch_size=4, every=every)


# A loss that is not finite


@pytest.mark.parametrize("bad", [1, 3, 4, 5, 7, 10])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(bad, value, tmp_path):
    class Spoil(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, *_):
            if trainer.global_step >= bad:
                outputs["loss"].fill_(value)

    reporter = Reporter(tmp_path / "metrics.csv", batch_size=4, every=3, progress=False)
    loaders = tiny.loader(tiny.batches(STEPS)), tiny.loader([[tiny.batches(1)[0]]])
    with quiet():
        trainer = tiny.trainer(tmp_path, max_epochs=2, callbacks=[Spoil(), reporter])
        with pytest.raises(NonFiniteError, match=f"the loss of step {bad} is {value}") as caught:
            trainer.fit(tiny.module(), *loaders)
    assert caught.value.step == bad - 1
    written = [int(row["step"]) for row in rows(tmp_path)] if (tmp_path / "metrics.csv").exists() else []
    assert all(step < bad for step in written)


# What is seen


def test_off_a_terminal_there_is_one_line_per_evaluation_and_nothing_else(tmp_path, capfd, caplog):
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.NOTSET):
        warnings.simplefilter("always")
        fit(tmp_path, progress=True)
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1  step 5  mIoU ")
    assert lines[1].startswith("epoch 2  step 10  mIoU ")
    assert [str(warning.message) for warning in caught] == []
    assert [r.getMessage() for r in caplog.records if r.name.startswith(("pytorch_lightning", "lightning"))] == []


def test_quiet_restores_what_it_changed():
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    before = [log.level for log in loggers]
    with pytest.raises(KeyError), quiet():
        raise KeyError
    assert [log.level for log in loggers] == before
    with pytest.warns(UserWarning, match="other"), quiet():
        warnings.warn("some other warning", stacklevel=1)


def test_without_progress_nothing_is_printed(tmp_path, capfd):
    fit(tmp_path, progress=False)
    assert capfd.readouterr() == ("", "")


def test_long_runs_print_a_line_now_and_then(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(reporting, "QUIET_SECONDS", 0.0)
    fit(tmp_path, progress=True)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 8
    assert lines[0].startswith("epoch 0.4  step 2  loss ")
    assert "images/s" in lines[0]
    assert lines[0].endswith("left")
    assert "left" not in lines[-2]  # of the last step


def test_images_per_second_leaves_the_first_window_out(tmp_path):
    reporter = Reporter(tmp_path / "metrics.csv", batch_size=4)
    assert reporter.images_per_second() == 0
    reporter.rates = [2.0]
    assert reporter.images_per_second() == 2
    reporter.rates = [1.0, 30.0, 10.0, 20.0]
    assert reporter.images_per_second() == 20


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (59.4, "0:59"),
        (59.6, "1:00"),
        (187, "3:07"),
        (3599.7, "1:00:00"),
        (3723, "1:02:03"),
        (360000, "100:00:00"),
    ],
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_class_table():
    table = class_table(["road", "a longer name", "sky"], [12.34, float("nan"), 100.0], width=60)
    assert table.splitlines() == [
        "road           12.3   sky           100.0",
        "a longer name     -",
    ]
    assert class_table(["x" * 200], [1.0]) == f"{'x' * 200}   1.0"
    names, numbers = [f"class {i}" for i in range(150)], [float(i) / 2 for i in range(150)]
    lines = class_table(names, numbers).splitlines()
    assert max(map(len, lines)) <= 100
    assert sum(line.count("class") for line in lines) == 150


# The record


def test_json_without_what_is_not_finite(tmp_path):
    path = tmp_path / "result.json"
    content = {"per_class": [1.5, float("nan"), (2, math.inf)], "name": "NaN", "step": 3, "none": None}
    record.write_json(path, content)
    assert json.loads(path.read_text()) == {
        "per_class": [1.5, None, [2, None]],
        "name": "NaN",
        "step": 3,
        "none": None,
    }
    before = path.read_bytes()
    with pytest.raises(TypeError):
        record.write_json(path, {"tensor": torch.zeros(1)})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_versions_are_those_that_are_installed():
    versions = record.versions()
    assert torch.__version__.startswith(versions["torch"])
    assert {"python", "deeplab-recipes", "pytorch-lightning", "onedl-mmsegmentation"} <= versions.keys()


def test_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert record.sha256(tmp_path / "file") == expected


def test_hardware_and_memory_of_a_cpu():
    assert record.hardware(2, gpu=False).endswith(")")
    assert "CPU cores (" in record.hardware(2, gpu=False)
    assert 10**7 < record.peak_memory(gpu=False) < 10**12


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_commit_and_whether_the_sources_were_changed(tmp_path, monkeypatch):
    source = tmp_path / "src" / "record.py"
    source.parent.mkdir()
    source.write_text("first\n")
    monkeypatch.setattr(record, "__file__", str(source))
    nothing = {"commit": None, "dirty": None}
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert record.commit() == nothing  # no checkout
    git(tmp_path, "init", "--quiet")
    (tmp_path / "other").write_text("of another project\n")
    git(tmp_path, "add", "other")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    assert record.commit() == nothing  # a checkout, but of something else
    git(tmp_path, "add", "src")
    git(tmp_path, "commit", "--quiet", "-m", "two")
    assert record.commit() == {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    source.write_text("second\n")
    assert record.commit()["dirty"] is True
