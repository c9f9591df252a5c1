"""The verb import: a checkpoint that this package's other parts take, and a report that leaves nothing out."""

import errno
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import Command
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from deeplab_recipes import build_deeplab, cli, config, importing, load_predictor
from deeplab_recipes.checkpoints import require_same_training
from deeplab_recipes.model import importers
from deeplab_recipes.model.importers.base import Imported

MODEL = {
    "num_classes": 4,
    "backbone": "mobilenet_v2",
    "width_multiplier": 0.35,
    "output_stride": 16,
    "aspp_channels": 8,
}
NAMES = ("sky", "road", "car", "tree")


@pytest.fixture
def hints() -> dict[str, Any]:
    """What the importer was given."""
    return {}


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch, hints: dict[str, Any]) -> Callable[..., Imported]:
    """Put a small model in the place of what mmsegmentation's importer reads; gives what it was."""

    def put(**changes: Any) -> Imported:
        torch.manual_seed(1)
        state = build_deeplab(**MODEL).state_dict()
        size = {"protocol": "keep_ratio", "evaluate_sizes": {"keep_ratio": [96, 64], "square": [64, 64]}}
        given = {"mean": (1.0, 2.0, 3.0), "std": (4.0, 5.0, 6.0), "classes": NAMES, "size": size, "unused": {}}
        imported = Imported(**{"model": MODEL, "state": state, **given, **changes})

        def read(
            file: Path,
            *,
            output_stride: int | None = None,
            head: str | None = None,
            dense_prediction_cell: Any = None,
            align_corners: bool | None = None,
        ) -> Imported:
            hints.update(file=file.name, output_stride=output_stride, head=head)
            hints.update(dense_prediction_cell=dense_prediction_cell, align_corners=align_corners)
            return imported

        monkeypatch.setattr(importers.mmsegmentation, "read", read)
        return imported

    import deeplab_recipes.model.importers.mmsegmentation  # noqa: F401, to be there for the patch

    return put


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "m.pth").write_bytes(b"weights")
    return tmp_path / "m.pth"


def run(deeplab: Command, *words: str) -> Any:
    return deeplab("import", "source=mmsegmentation", "file=m.pth", "output=out/m.ckpt", *words)


def test_the_checkpoint_predicts_as_the_imported_state_does(source, file, deeplab):
    imported = source(unused={"head.extra": "no place for it"}, palette=((1, 2, 3),) * 4)
    answer = run(deeplab)
    assert answer.code == 0, answer.err
    parameters = sum(value.numel() for value in build_deeplab(**MODEL).parameters())
    for words in (
        "deeplabv3plus on mobilenet_v2: width_multiplier=0.35, output_stride=16, aspp_channels=8\n",
        "4 classes (named in the file): sky, road, car, tree",
        "input: (pixel - [1, 2, 3]) / [4, 5, 6], keep_ratio at 96 x 64",
        f"{parameters:,} parameters; {len(imported.state)} tensors of the file are used, 1 are not",
        "not used: head.extra: no place for it",
        "written to out/m.ckpt",
    ):
        assert words in answer.out
    predictor = load_predictor("out/m.ckpt")
    assert (predictor.classes, predictor.palette) == (NAMES, ((1, 2, 3),) * 4)
    assert all(torch.equal(value, imported.state[key]) for key, value in predictor.model.state_dict().items())
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    pixels = (torch.from_numpy(image).permute(2, 0, 1) - torch.tensor([1.0, 2, 3]).view(3, 1, 1)) / torch.tensor(
        [4.0, 5, 6]
    ).view(3, 1, 1)
    model = build_deeplab(**MODEL).eval()
    model.load_state_dict(imported.state)
    with torch.inference_mode():
        torch.testing.assert_close(predictor.logits(image), model(pixels[None])[0], rtol=0, atol=1e-6)
    content = torch.load("out/m.ckpt", weights_only=True)["deeplab"]
    assert content["imported"]["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert content["recipe"] == "imported from mmsegmentation"
    assert load_predictor("out/m.ckpt", output_stride=8).model.output_stride == 8


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("classes=[a,b,c,d]", ("a", "b", "c", "d")),
        ("classes=names.txt", ("a", "b c", "d", "e")),
        ("classes=classes.yaml", ("p", "q", "r", "s")),
    ],
)
def test_classes_can_be_named(word, names, source, file, deeplab):
    source(classes=None)
    (file.parent / "names.txt").write_text("a\nb c\n\nd\ne\n")
    (file.parent / "classes.yaml").write_text("classes: [{name: p, color: [9, 8, 7]}, q, r, s]")
    assert run(deeplab, word).code == 0
    assert load_predictor("out/m.ckpt").classes == names


def test_classes_without_names_are_numbered(source, file, deeplab):
    source(classes=None)
    assert "4 classes (numbered; classes=... names them): class 0, class 1" in run(deeplab).out
    assert load_predictor("out/m.ckpt").palette[1] == (128, 0, 0)


def test_classes_of_a_set_and_the_background_before_them(source, file):
    names, palette, named_by = importing._given("ade20k", 151)
    assert (names[:2], len(names), palette[0], named_by) == (("background", "wall"), 151, (0, 0, 0), "those of ade20k")
    assert importing._given("ade20k", 150)[0][0] == "wall"
    assert importing._given("voc", 21)[0][0] == "background"
    assert len(importing._given("voc", 22)[0]) == 21


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["classes=[a,b]"], "has 2 names, the model 4 classes"),
        (["classes=[a,b,c,a]"], "'a' is there twice"),
        (["classes=nowhere.txt"], "classes=nowhere.txt is neither a file nor one of voc, cityscapes, ade20k, camvid"),
        (["width_multiplier=0.5"], "width_multiplier=0.5 tells nothing of a file of source=mmsegmentation; it takes "
         "output_stride, head, dense_prediction_cell, align_corners"),
        (["source=mmsegmentaton"], "unknown source 'mmsegmentaton'; valid: tensorflow, keras, composer, "
         "mmsegmentation, zoo. Did you mean 'mmsegmentation'?"),
        (["source=???"], "source=... is missing"),
        (["file=null"], "file=... is missing: what that program wrote"),
        (["output=null"], "output=... is missing: the checkpoint to write"),
        (["overwrite=maybe"], "overwrite is 'maybe'; it takes true or false"),
        (["+bogus=1"], "unknown setting bogus"),
        (["output=."], "output=. is a folder"),
    ],
)  # fmt: skip
def test_wrong_settings(words, message, source, file, deeplab):
    source()
    answer = run(deeplab, *words)
    assert answer.code != 0
    assert message in answer.err
    assert not Path("out").exists()


def test_nothing_is_replaced_without_a_word(source, file, deeplab):
    source()
    Path("out").mkdir()
    Path("out/m.ckpt").write_text("mine")
    answer = run(deeplab)
    assert "output=out/m.ckpt is there already; choose another, or replace it: overwrite=true" in answer.err
    assert Path("out/m.ckpt").read_text() == "mine"
    assert run(deeplab, "overwrite=true").code == 0
    assert load_predictor("out/m.ckpt").classes == NAMES
    assert [path.name for path in Path("out").iterdir()] == ["m.ckpt"]


def test_state_that_does_not_fit_writes_nothing(source, file, deeplab):
    imported = source()
    source(state={**imported.state, "head.conv_seg.bias": torch.zeros(3)})
    answer = run(deeplab)
    assert "1 of another shape (head.conv_seg.bias (3,) for (4,))" in answer.err
    assert not Path("out").exists()


def test_a_full_disk_is_called_so(source, file, deeplab, monkeypatch):
    source()
    hidden = RuntimeError("unexpected pos 64 vs 0")
    hidden.__context__ = OSError(errno.ENOSPC, "No space left on device")

    def save(*arguments: object) -> None:
        raise hidden

    monkeypatch.setattr(torch, "save", save)
    assert "cannot write out/m.ckpt: No space left on device; make room, or choose" in run(deeplab).err
    assert list(Path("out").iterdir()) == []


def test_file_and_hints_reach_the_importer(source, file, deeplab, hints):
    source()
    words = ("output_stride=16", "head=deeplabv3plus", "dense_prediction_cell=published", "align_corners=true")
    assert run(deeplab, *words).code == 0
    given = {"dense_prediction_cell": "published", "align_corners": True}
    assert hints == {"file": "m.pth", "output_stride": 16, "head": "deeplabv3plus", **given}


def test_settings_are_those_that_are_tested_here():
    with initialize_config_dir(str(config.yamls_folder()), version_base="1.3"):
        leaves = OmegaConf.to_container(compose("import")).keys()
    changed = {"source", "file", "output", "classes", "overwrite", "output_stride", "width_multiplier", "head"}
    changed |= {"dense_prediction_cell", "align_corners"}
    assert leaves - {"name"} == changed  # test_published.py has the name


def test_imported_weights_are_no_training_to_go_on_with(source, file, deeplab):
    source()
    run(deeplab)
    card = load_predictor("out/m.ckpt").card
    with pytest.raises(ValueError, match=r"begin one with them: weights=out/m.ckpt init=continue_training"):
        require_same_training("out/m.ckpt", card, {**card, "training": {"name": "x"}})


def test_usage_lists_it():
    assert "import    make a checkpoint of another program's weights" in cli._usage([])
