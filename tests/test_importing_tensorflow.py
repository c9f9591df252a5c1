"""The verb on a real frozen graph: alone, and in an archive as TensorFlow's model zoo gives them, from a server."""

import hashlib
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from command import Command
from loopback import Loopback, serving
from PIL import Image

from deeplab_recipes import load_predictor
from deeplab_recipes.model.zoo import MODELS, Published

GRAPH = "tensorflow/deeplab_mnv2_dm05_portrait_frozen_graph.pb"


@pytest.fixture
def graph(real_data) -> Path:
    return real_data(GRAPH)


def test_graph_and_the_same_from_the_zoo(graph, real_data, deeplab: Command, tmp_path, monkeypatch):
    answer = deeplab("import", "source=tensorflow", f"file={graph}", "output=own.ckpt", "classes=[background,person]")
    assert answer.code == 0, answer.err
    for words in (
        "tensorflow_short on mobilenet_v2: output_stride=8, dropout=0.1, width_multiplier=0.5",
        "2 classes (as given): background, person",
        "input: (pixel - [127.5, 127.5, 127.5]) / [127.5, 127.5, 127.5], padded at 513 x 513",
        "not used: ",
    ):
        assert words in answer.out
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with tarfile.open(tmp_path / "portrait.tar.gz", "w:gz", compresslevel=1) as archive:
        archive.add(graph, "portrait/frozen_inference_graph.pb")
    (tmp_path / "names.txt").write_text("background\nperson\n")
    content = (tmp_path / "portrait.tar.gz").read_bytes()
    with serving(Loopback(content)) as server:
        address, digits = f"{server.address}portrait.tar.gz", hashlib.sha256(content).hexdigest()[:8]
        portrait = Published("portrait", "tensorflow", address, str(tmp_path / "names.txt"), {"none": 1.0}, digits)
        monkeypatch.setitem(MODELS, "portrait", portrait)
        answer = deeplab("import", "source=zoo", "name=portrait", "output=zoo.ckpt")
    assert answer.code == 0, answer.err
    image = np.asarray(Image.open(sorted(real_data("camvid/val").iterdir())[0]))
    own, zoo = (load_predictor(f"{name}.ckpt") for name in ("own", "zoo"))
    assert torch.equal(own.logits(image), zoo.logits(image))
    assert own.classes == zoo.classes == ("background", "person")
