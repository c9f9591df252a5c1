import copy
import errno
import inspect
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import tiny
import torch
from torch.utils.data import DataLoader, Dataset

from deeplab_recipes import checkpoints
from deeplab_recipes.checkpoints import (
    ADDED,
    FORMAT_VERSION,
    AtomicCheckpointIO,
    Checkpoints,
    NonFiniteError,
    load_checkpoint,
    require_same_task,
)
from deeplab_recipes.data.sampler import Draw, TrainingSampler
from deeplab_recipes.model import build_deeplab

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*dataloader is not resumable.*"),
    pytest.mark.filterwarnings("ignore:Detected pickle protocol.*"),
]

CARD = {
    "format_version": FORMAT_VERSION,
    "classes": ["road", "car", "sky"],
    "model": {"num_classes": 3, "backbone": "resnet18", "aspp_dilations": [1, 6]},
}
CONTENT = {"deeplab": CARD, "state_dict": {"model.weight": torch.arange(6.0)}}


def saved(path: Path, **changes: object) -> Path:
    AtomicCheckpointIO().save_checkpoint({**CONTENT, **changes}, path)
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# Writing


def test_round_trip(tmp_path):
    path = saved(tmp_path / "run" / "checkpoints" / "last.ckpt")
    content = load_checkpoint(path)
    assert content["deeplab"] == CARD
    assert torch.equal(content["state_dict"]["model.weight"], torch.arange(6.0))
    assert names(path.parent) == {"last.ckpt"}


def fail_halfway(error: BaseException):
    def save(content, file):
        file.write(b"half of a checkpoint")
        raise error

    return save


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    path = saved(tmp_path / "run" / "checkpoints" / "last.ckpt")
    before = path.read_bytes()
    monkeypatch.setattr(torch, "save", fail_halfway(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match=r"No space left on device") as caught:
        AtomicCheckpointIO().save_checkpoint(CONTENT, path)
    message = str(caught.value)
    assert str(path) in message
    assert "unharmed" in message
    assert f"resume=auto run_dir={tmp_path / 'run'}" in message
    assert path.read_bytes() == before
    assert names(path.parent) == {"last.ckpt"}


def test_the_reason_behind_torchs_own_error_is_named(tmp_path, monkeypatch):
    hidden = RuntimeError("unexpected pos 64 vs 0")
    hidden.__context__ = OSError(errno.EDQUOT, "Disk quota exceeded")
    monkeypatch.setattr(torch, "save", fail_halfway(hidden))
    with pytest.raises(OSError, match="Disk quota exceeded; there was none before"):
        AtomicCheckpointIO().save_checkpoint(CONTENT, tmp_path / "last.ckpt")
    assert names(tmp_path) == set()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), pickle.PicklingError("cannot pickle a lambda")])
def test_whatever_stops_the_writing_leaves_no_part_behind(error, tmp_path, monkeypatch):
    path = saved(tmp_path / "last.ckpt")
    monkeypatch.setattr(torch, "save", fail_halfway(error))
    with pytest.raises(type(error)):
        AtomicCheckpointIO().save_checkpoint(CONTENT, path)
    assert names(tmp_path) == {"last.ckpt"}


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot save the checkpoint .*last\.ckpt"):
        AtomicCheckpointIO().save_checkpoint(CONTENT, tmp_path / "file" / "last.ckpt")


@contextmanager
def limited_files(size: int) -> Iterator[None]:
    """Let the system refuse to write files beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_limit_of_the_system_leaves_the_earlier_checkpoint(tmp_path):
    path = saved(tmp_path / "run" / "checkpoints" / "last.ckpt")
    before = path.read_bytes()
    with limited_files(1_000_000), pytest.raises(OSError, match="File too large") as caught:
        saved(path, state_dict={"model.weight": torch.zeros(1_000_000)})
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    assert names(path.parent) == {"last.ckpt"}


# Reading


class Code:
    """Pickles as a call that makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("by", ["torch", "pickle"])
def test_code_in_a_file_is_never_run(by, protocol, tmp_path):
    path, trap = tmp_path / "evil.ckpt", tmp_path / "code_has_run"
    content = {**CONTENT, "trap": Code(trap)}
    if by == "torch":
        torch.save(content, path, pickle_protocol=protocol)
    else:
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(ValueError, match=r"evil\.ckpt is no checkpoint that can be read safely") as raised:
        load_checkpoint(path)
    assert "weights_only" not in str(raised.value)  # torch's advice to switch that off
    assert not trap.exists()


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*last\.ckpt"):
        load_checkpoint(tmp_path / "last.ckpt")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match=r"checkpoints is a folder"):
        load_checkpoint(tmp_path / "checkpoints")


def damaged_files() -> dict[str, bytes]:
    generator = np.random.default_rng(0)
    files = {"empty": b"", "text": b"hello, I am a text\n", "zip": b"PK\x03\x04 and nothing else"}
    for i in range(60):  # random bytes can look like anything to an unpickler
        files[f"random_{i}"] = generator.bytes(int(generator.integers(1, 400)))
        files[f"pickle_{i}"] = b"\x80\x02" + generator.bytes(int(generator.integers(1, 60)))
    return files


def test_damaged_files_are_refused(tmp_path):
    whole = saved(tmp_path / "whole.ckpt").read_bytes()
    cut = {f"cut_{n}": whole[:n] for n in (1, 10, 100, len(whole) // 2, len(whole) - 1)}
    for name, content in {**damaged_files(), **cut}.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} (is no checkpoint|was not written).*; deeplab import makes"):
            load_checkpoint(path)


@pytest.mark.parametrize(
    "content",
    [
        {"weight": torch.zeros(2)},
        {"state_dict": {}, "epoch": 3},
        [1, 2],
        torch.zeros(3),
        {"deeplab": {}},
        {"deeplab": 1},
    ],
    ids=["state_dict", "lightning", "list", "tensor", "no_version", "no_card"],
)
def test_files_of_other_programs_are_refused(content, tmp_path):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt was not written by deeplab-recipes.*; deeplab import makes"):
        load_checkpoint(tmp_path / "other.pt")


def test_a_newer_format_is_refused(tmp_path):
    path = saved(tmp_path / "new.ckpt", deeplab={**CARD, "format_version": FORMAT_VERSION + 1})
    with pytest.raises(ValueError, match=f"format {FORMAT_VERSION + 1}, this version reads up to {FORMAT_VERSION}"):
        load_checkpoint(path)


@pytest.mark.parametrize("version", ["2", None, 1.5])
def test_a_version_that_is_no_number_is_refused(version, tmp_path):
    path = saved(tmp_path / "odd.ckpt", deeplab={**CARD, "format_version": version})
    with pytest.raises(ValueError, match="was not written by deeplab-recipes"):
        load_checkpoint(path)


# The same task


def changed(**changes: object) -> dict:
    return {**copy.deepcopy(CARD), **changes}


def test_the_same_task_is_accepted():
    require_same_task("a.ckpt", CARD, changed())


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (changed(classes=["road", "car"]), r"2 there \(road, car\), 3 here \(road, car, sky\)"),
        (changed(classes=["road", "sky", "car"]), "class 1 is 'sky' there and 'car' here"),
        (
            changed(model={**CARD["model"], "backbone": "resnet50"}),
            "model.backbone is 'resnet50' there and 'resnet18' here",
        ),
        (
            changed(model={"num_classes": 3, "backbone": "resnet18"}),
            r"model.aspp_dilations is None there and \[1, 6\] here",
        ),
        (changed(model={**CARD["model"], "extra": 2}), "model.extra is 2 there and None here"),
    ],
    ids=["count", "order", "argument", "lacks", "more"],
)
def test_another_task_is_refused(theirs, message):
    with pytest.raises(ValueError, match=rf"^old\.ckpt .*{message}"):
        require_same_task("old.ckpt", theirs, CARD)


def test_arguments_that_came_later_default_to_what_there_was():
    defaults = {name: p.default for name, p in inspect.signature(build_deeplab).parameters.items()}
    assert {name: defaults[name] for name in ADDED} == ADDED
    arguments = build_deeplab(3, backbone="resnet18", aspp_channels=8).arguments
    first = ("num_classes", "backbone", "head", "width_multiplier", "output_stride", "aspp_dilations", "aspp_channels")
    first = (*first, "dropout", "decoder_channels", "backbone_weights", "initializers")
    old = {name: arguments[name] for name in first}
    require_same_task("old.ckpt", changed(model=old), changed(model=arguments))
    assert build_deeplab(**old).arguments == arguments


@pytest.mark.parametrize(
    ("key", "then", "other"),
    [("auxiliary_head", False, True), ("freeze_batchnorm", "none", "both"), ("freeze_backbone", 0, 2)],
)
def test_older_checkpoint_lacks_arguments_that_came_later(key, then, other):
    now = changed(model={**CARD["model"], key: then})
    require_same_task("old.ckpt", CARD, now)
    with pytest.raises(ValueError, match=f"model.{key} is {then!r} there and {other!r} here"):
        require_same_task("old.ckpt", CARD, changed(model={**CARD["model"], key: other}))


@pytest.mark.parametrize(("old", "new"), [(False, "none"), (True, "statistics")])
def test_older_checkpoint_spells_frozen_batch_norm_as_a_switch(old, new):
    old, new = (changed(model={**CARD["model"], "freeze_batchnorm": value}) for value in (old, new))
    require_same_task("old.ckpt", old, new)


# In training


class Scores(pl.Callback):
    """Replaces each evaluation's mean IoU by the next given one; comes before `Checkpoints`."""

    def __init__(self, *scores: float):
        self.scores = iter(scores)

    def on_validation_end(self, trainer, pl_module):
        pl_module.evaluation = {
            "step": trainer.global_step,
            "miou": next(self.scores),
            "per_class": [1.0, float("nan"), 2.0],
        }


def evaluation() -> DataLoader:
    return tiny.loader([[tiny.batches(1)[0]]])


def fit(folder: Path, *scores: float, **options: object) -> tuple[Checkpoints, pl.Trainer]:
    """Train an epoch for each score (a resumed run asks only for those that are left)."""
    keeper = Checkpoints(folder / "checkpoints")
    trainer = tiny.trainer(
        folder, max_epochs=len(scores), callbacks=[Scores(*scores), keeper], plugins=[AtomicCheckpointIO()]
    )
    trainer.fit(tiny.module(card=CARD), tiny.loader(tiny.batches(2)), evaluation(), weights_only=True, **options)
    return keeper, trainer


def step_of(path: Path) -> int:
    return load_checkpoint(path)["global_step"]


def test_best_and_last(tmp_path):
    keeper, _ = fit(tmp_path, 10.0, 30.0, 20.0, 30.0)
    assert step_of(keeper.last) == 8
    assert step_of(keeper.best) == 4  # the first of two equal ones
    assert keeper.best_evaluation["miou"] == 30
    assert names(keeper.last.parent) == {"last.ckpt", "best.ckpt"}
    assert keeper.best.stat().st_ino != keeper.last.stat().st_ino


def test_best_is_no_second_copy_while_it_is_the_last(tmp_path):
    keeper, _ = fit(tmp_path, 10.0, 20.0)
    assert keeper.best.stat().st_ino == keeper.last.stat().st_ino


def test_best_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(checkpoints.os, "link", refuse)
    keeper, _ = fit(tmp_path, 10.0, 5.0)
    assert (step_of(keeper.best), step_of(keeper.last)) == (2, 4)
    assert names(keeper.last.parent) == {"last.ckpt", "best.ckpt"}


def test_an_evaluation_of_zero_is_a_best_too(tmp_path):
    keeper, _ = fit(tmp_path, 0.0)
    assert step_of(keeper.best) == 2


def test_a_resumed_run_remembers_its_best(tmp_path):
    first, _ = fit(tmp_path, 10.0, 30.0)
    keeper, trainer = fit(tmp_path, 0.0, 0.0, 20.0, ckpt_path=first.last)
    assert trainer.global_step == 6
    assert keeper.best_evaluation["miou"] == 30
    assert (step_of(keeper.best), step_of(keeper.last)) == (4, 6)


class Killed(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize("earlier", [(), (10.0,)], ids=["no best yet", "an earlier best"])
def test_a_kill_between_last_and_best_loses_no_best(earlier, tmp_path, monkeypatch):
    def kill(*_: object) -> None:
        raise Killed

    first = fit(tmp_path, *earlier)[0].last if earlier else None
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_link", kill)
        with pytest.raises(Killed):
            fit(tmp_path, *(0.0 for _ in earlier[1:]), 30.0, 0.0, ckpt_path=first)
    last = tmp_path / "checkpoints" / "last.ckpt"
    step = step_of(last)
    keeper, _ = fit(tmp_path, 20.0, 20.0, 20.0, 20.0, ckpt_path=last)
    assert (step_of(keeper.best), step_of(keeper.last)) == (step, 8)
    assert (keeper.best_evaluation["miou"], keeper.best_evaluation["step"]) == (30, step)
    assert names(last.parent) == {"last.ckpt", "best.ckpt"}


def test_a_run_resumed_elsewhere_has_a_best_of_its_own(tmp_path):
    """The best checkpoint of the run it comes from is not in its directory."""
    first, _ = fit(tmp_path / "first", 10.0, 30.0)
    again, _ = fit(tmp_path / "second", 20.0, 20.0, 20.0, ckpt_path=first.last)
    assert step_of(again.best) == 6
    assert again.best_evaluation["miou"] == 20


@pytest.mark.parametrize("where", ["parameter", "buffer"])
def test_weights_that_are_not_finite_are_never_saved(where, tmp_path):
    class Poison(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 3:
                target = pl_module.model[0].bias.data if where == "parameter" else pl_module.model.mean
                target[0] = float("nan")

    keeper = Checkpoints(tmp_path)
    module = tiny.module(card=CARD)
    module.model.register_buffer("mean", torch.zeros(2))
    module.model.register_buffer("steps", torch.zeros((), dtype=torch.int64))
    trainer = tiny.trainer(
        tmp_path, max_epochs=2, callbacks=[Poison(), Scores(1.0, 2.0), keeper], plugins=[AtomicCheckpointIO()]
    )
    with pytest.raises(NonFiniteError, match="not finite after step 4") as caught:
        trainer.fit(module, tiny.loader(tiny.batches(2)), evaluation())
    assert caught.value.step == 3
    assert step_of(keeper.last) == step_of(keeper.best) == 2


class Numbers(Dataset):
    """Images that follow from epoch and index, as training samples do."""

    def __getitem__(self, draw: Draw) -> tiny.Batch:
        batch = tiny.batches(1, size=1, seed=100 * draw.epoch + draw.index)[0]
        return {name: value[0] for name, value in batch.items()}


class Data(pl.LightningDataModule):
    """Loads as `SegmentationDataModule` does."""

    def train_dataloader(self) -> DataLoader:
        sampler = TrainingSampler(10, 2, seed=3, steps_done=lambda: self.trainer.global_step)
        return DataLoader(Numbers(), batch_size=2, sampler=sampler)

    def val_dataloader(self) -> DataLoader:
        return evaluation()


class Kill(pl.Callback):
    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == self.step:
            raise ConnectionAbortedError("killed")


def train_through(folder: Path, *, kill: int = 0, resume: Path | None = None, every: int = 3) -> list[torch.Tensor]:
    module = tiny.module(card=CARD)
    callbacks = [Checkpoints(folder), Kill(kill)]
    trainer = tiny.trainer(
        folder, max_epochs=3, callbacks=callbacks, plugins=[AtomicCheckpointIO()],
        val_check_interval=every, check_val_every_n_epoch=None,
    )  # fmt: skip
    trainer.fit(module, datamodule=Data(), ckpt_path=resume, weights_only=True)
    assert trainer.global_step == 15
    return [p.detach().clone() for p in module.parameters()]


@pytest.mark.parametrize(
    ("kill", "every", "kept"), [(5, 3, 3), (8, 3, 6), (9, 3, 6), (6, 5, 5), (11, 5, 10), (14, 7, 7)]
)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(kill, every, kept, tmp_path):
    """Batches, momentum, schedule and evaluations: in the middle of an epoch and at its end."""
    through = train_through(tmp_path / "through", every=every)
    with pytest.raises(ConnectionAbortedError):
        train_through(tmp_path / "killed", kill=kill, every=every)
    last = tmp_path / "killed" / "last.ckpt"
    assert step_of(last) == kept
    resumed = train_through(tmp_path / "killed", resume=last, every=every)
    assert all(torch.equal(a, b) for a, b in zip(resumed, through, strict=True))
