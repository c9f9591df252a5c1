"""The benchmarks that compare imported models with running ones: small runs, and what needs no other program.

Those that run the originals' code take it from DEEPLAB_ORIGINALS, a folder with checkouts of tensorflow/models (models)
and of bonlime/keras-deeplab-v3-plus (bonlime); they skip without it, and without TensorFlow.
"""

import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from benchmark_script import FOLDER, script
from PIL import Image
from torch import nn

keras, mmsegmentation, tensorflow = (script(f"parity_{name}") for name in ("keras", "mmsegmentation", "tensorflow"))
ORIGINALS = "DEEPLAB_ORIGINALS"


@pytest.fixture
def photograph(tmp_path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    folder = tmp_path / "photographs"
    folder.mkdir()
    Image.fromarray(pixels).resize((200, 150), Image.Resampling.BICUBIC).save(folder / "a.png")
    return folder / "a.png"


@pytest.fixture
def original() -> Callable[[str], Path]:
    """Give a checkout of an original, where it and TensorFlow are there."""

    def find(name: str) -> Path:
        if importlib.util.find_spec("tensorflow") is None:
            pytest.skip("needs TensorFlow")
        if not os.environ.get(ORIGINALS):
            pytest.skip(f"{ORIGINALS} is not set; it names the folder that holds {name}")
        return Path(os.environ[ORIGINALS]).resolve() / name

    return find


def whole(name: str, *words: object) -> str:
    """Run a script in a process of its own, since each original changes TensorFlow; gives the last row."""
    command = [sys.executable, str(FOLDER / f"{name}.py"), *map(str, words)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout.strip().splitlines()[-1]


# mmsegmentation


@pytest.mark.filterwarnings("ignore")  # mmsegmentation's own
def test_mmsegmentations_parity_at_small_size(photograph, monkeypatch, capsys):
    changes = {"model.decode_head.channels": 8, "test_pipeline.1.scale": (96, 64)}
    name = "DeepLabV3+ R-50"
    monkeypatch.setattr(mmsegmentation, "original", functools.partial(mmsegmentation.original, **changes))
    monkeypatch.setattr(mmsegmentation, "CONFIGURATIONS", {name: mmsegmentation.CONFIGURATIONS[name]})
    monkeypatch.setattr(mmsegmentation, "SIZES", ((33, 48),))
    monkeypatch.setattr(sys, "argv", ["parity", "--images", str(photograph)])
    monkeypatch.setattr(mmsegmentation.logging, "disable", lambda level: None)  # of the other tests as well
    mmsegmentation.main()
    head, *others = capsys.readouterr().out.strip().splitlines()
    assert "onedl-mmsegmentation 1.4" in head
    table = [line for line in others if line.startswith("|")]  # mmsegmentation has lines of its own
    assert len(table) == 3
    cells = [cell.strip() for cell in table[-1].strip("|").split("|")]
    assert cells[0] == name
    assert all(float(cell) <= 1e-5 for cell in cells[1:4])
    assert float(cells[4]) > 0.01  # a range of 0 would compare nothing
    assert cells[5] == "100.000 %"


def test_mmsegmentations_row_beyond_the_limit_is_an_error():
    found = {"random": 1e-6, "photograph": 2e-6, "whole": 3e-6, "range": 2.04, "labels equal": 0.5}
    assert mmsegmentation.row("a", found) == "| a | 1.0e-06 | 2.0e-06 | 3.0e-06 | 2.0 | 50.000 % |"
    for beyond in (2e-5, float("nan")):
        with pytest.raises(ValueError, match="a differs by"):
            mmsegmentation.row("a", {**found, "random": beyond})


# Keras


def test_keras_numbers():
    theirs = np.array([[[0.0, 4.0], [1.0, 3.0]]])
    ours = np.array([[[0.5, 4.0], [3.0, 2.0]]])
    assert keras.numbers(theirs, ours).tolist() == [2.0, 4.0, 0.5]


def test_keras_row_is_the_worst_of_all_inputs():
    found = [np.array([1e-6, 0.5, 1.0]), np.array([2e-6, 4.0, 0.99995])]
    assert keras.row("a", found) == "| a | 2.0e-06 | 2.0e-06 | 99.995 % |"
    for beyond in ([1e-3, 1.0, 1.0], [0.0, 1.0, 0.99], [np.nan, 1.0, 1.0]):
        with pytest.raises(ValueError, match="the limits are"):
            keras.row("a", [np.array(beyond)])


def test_keras_inputs(photograph):
    random, part = keras.inputs([photograph], (33, 48))
    assert random.shape == part.shape == (1, 33, 48, 3)
    pixels = np.asarray(Image.open(photograph), np.float32)[:33, :48]
    np.testing.assert_allclose(part[0], pixels / 127.5 - 1, atol=1e-6)
    assert np.array_equal(random, next(keras.inputs([], (33, 48))))


def test_keras_whole(original, photograph):
    words = ("--original", original("bonlime"), "--images", photograph, "--only", "alpha 0.5")
    assert whole("parity_keras", *words).startswith("| MobileNetV2, alpha 0.5 | ")


# TensorFlow


class Fake(nn.Module):
    """Logits that are the image's channels, a little beside them in float32."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + (1e-3 if images.dtype == torch.float32 else 0)


class FakePredictor:
    device = torch.device("cpu")
    model = Fake()
    preparation = SimpleNamespace(input=lambda image, device: torch.from_numpy(image).permute(2, 0, 1)[None].float())

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return image.argmax(-1)


def test_tensorflow_numbers():
    images = [np.zeros((2, 3, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)]
    images[0][0, 0], images[1][3, 4] = (0, 0, 10), (0, 10, 0)

    def theirs(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        labels = image.argmax(-1)
        labels[-1, 0] = 1  # otherwise than here
        return labels, image.transpose(2, 0, 1).astype(np.float32)

    difference, equal, classes, theirs_off, ours_off = tensorflow.numbers(theirs, FakePredictor(), images)
    assert difference == pytest.approx(1e-4, rel=1e-2)
    assert equal == (26 - 2) / 26
    assert classes == 3
    assert theirs_off == 0
    assert ours_off == pytest.approx(1e-4, rel=1e-2)


def test_tensorflow_table_is_printed_and_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tensorflow, "heading", lambda: "heading")
    good = tensorflow.Row("a", "random", 5, 2e-5, 0.99995, 21, 1e-5, 2e-5)
    found = [good, tensorflow.Row("b", "random", 5, 2e-3, 1.0, 1, 0.0, 0.0)]
    found.append(tensorflow.Row("c", "random", 5, 0.0, 0.9998, 1, 0.0, 0.0))
    images = [np.zeros((4, 5, 3)), np.zeros((6, 7, 3))]
    assert tensorflow.write_table(iter(found), images, tmp_path / "t.md") == ["b", "c"]
    lines = (tmp_path / "t.md").read_text().splitlines()
    assert capsys.readouterr().out.splitlines() == lines
    assert lines[:3] == ["heading", "", "Photographs of 4 x 5, 6 x 7."]
    assert lines[6] == "| a | random | 5 | 2.0e-05 | 99.9950 | 21 | 1.0e-05 | 2.0e-05 |"
    assert len({line.count("|") for line in lines[4:]}) == 1


def test_tensorflow_options(capsys):
    options = tensorflow.parsed(["--models", "m", "--photographs", "a", "b", "--graph", "g.pb"])
    assert (options.models, options.photographs) == (Path("m"), [Path("a"), Path("b")])
    assert (options.graph, options.images, options.output) == ([Path("g.pb")], 10, None)
    with pytest.raises(SystemExit):
        tensorflow.parsed(["--photographs", "a"])
    assert "--models" in capsys.readouterr().err


def test_tensorflow_photographs_are_of_many_sizes(photograph):
    sizes = [image.shape[:2] for image in tensorflow.photographs([photograph.parent], 4)]
    assert sizes == [(150, 200), (384, 513), (360, 481), (300, 400)]


def test_tensorflow_whole(original, photograph):
    words = ("--models", original("models"), "--photographs", photograph.parent, "--images", 2, "--only", "0.35")
    assert whole("parity_tensorflow", *words, "--threads", 1).startswith("| MobileNetV2 x 0.35")
