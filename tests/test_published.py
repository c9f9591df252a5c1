"""Published models: the table, and one that is fetched from a loopback server, unpacked, imported and kept."""

import hashlib
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command import Command
from loopback import Loopback, serving

from deeplab_recipes import build_deeplab, load_predictor
from deeplab_recipes.fetching import transfer
from deeplab_recipes.model import zoo
from deeplab_recipes.model.importers.base import Imported
from deeplab_recipes.model.zoo import MODELS, Published
from deeplab_recipes.published import fetch_checkpoint, fetch_file, import_published

MODEL = {"num_classes": 21, "backbone": "mobilenet_v2", "width_multiplier": 0.35, "output_stride": 16}
SIZE = {"protocol": "keep_ratio", "evaluate_sizes": {"keep_ratio": [96, 64]}}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(transfer, "FIRST_WAIT", 0.0)
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Let both importers give a small model, whatever is in the file; gives what was in the files."""
    files: list[bytes] = []

    def importer(file: Path, *, output_stride: int | None = None) -> Imported:
        files.append(file.read_bytes())
        torch.manual_seed(1)
        state = build_deeplab(**MODEL).state_dict()
        return Imported(MODEL, state, (1.0,) * 3, (2.0,) * 3, None, SIZE, {})

    for source in ("mmsegmentation", "tensorflow"):
        monkeypatch.setitem(sys.modules, f"deeplab_recipes.model.importers.{source}", SimpleNamespace(read=importer))
    return files


def served(server: Loopback, content: bytes, *, source: str = "mmsegmentation", name: str = "m.pth") -> Published:
    digits = hashlib.sha256(content).hexdigest()[:8]
    return Published("voc_small", source, f"{server.address}{name}", "voc", {"square": 1.0}, digits)


def packed(*names: str) -> bytes:
    made = BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = len(name)
            archive.addfile(entry, BytesIO(name.encode()))
    return made.getvalue()


def test_table_has_the_published_numbers():
    assert len(MODELS) == 36
    assert MODELS["voc_xception65"].miou == {
        "output stride 16, single scale": 82.20,
        "output stride 8, multi-scale and flip": 83.58,
    }
    best = MODELS["ade20k_mmseg_resnet101_160k"]
    assert list(best.miou.values()) == [45.47, 46.35]
    assert best.address.endswith("/deeplabv3plus_r101-d8_512x512_160k_ade20k_20200615_123232-38ed86bb.pth")
    assert (best.sha256, best.classes, best.source) == ("38ed86bb", "ade20k", "mmsegmentation")
    assert MODELS["cityscapes_mmseg_resnet101_80k"].miou["keep_ratio, multi-scale and flip"] == 82.03
    assert MODELS["voc_mmseg_deeplabv3_resnet50_20k"].miou["keep_ratio, single scale"] == 76.17
    assert list(MODELS["cityscapes_xception71_dpc"].miou.values()) == [80.31]
    assert list(MODELS["ade20k_mobilenet_v2"].miou.values()) == [32.04]


@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
def test_entry_is_whole(model):
    assert model.name.startswith(model.classes)
    assert model.classes in ("voc", "cityscapes", "ade20k")
    assert model.miou
    assert all(1 < value < 100 for value in model.miou.values())
    assert model.address.endswith((".tar.gz", f"-{model.sha256}.pth"))
    assert bool(model.sha256) == (model.source == "mmsegmentation")  # TensorFlow published none
    assert not model.fetched


def test_fetched_imported_and_kept(read, cache, monkeypatch):
    with serving(Loopback(b"weights")) as server:
        model = served(server, b"weights")
        monkeypatch.setitem(MODELS, "voc_small", model)
        path = zoo.fetch("zoo:voc_small")
        assert zoo.fetch("voc_small") == path
        assert len(server.requests) == 1
    assert read == [b"weights"]
    assert load_predictor(path).classes[:2] == ("background", "aeroplane")
    assert sorted(file.name for file in cache.glob("[!.]*")) == ["m.pth", path.name]


def test_archive_is_unpacked(read, cache, tmp_path):
    content = packed(
        "export/model.ckpt.index", "export/._frozen_inference_graph.pb", "export/frozen_inference_graph.pb"
    )
    with serving(Loopback(content)) as server:
        model = replace(served(server, content, source="tensorflow", name="m.tar.gz"), sha256="")
        report = import_published(model, tmp_path / "m.ckpt")
    assert read == [b"export/frozen_inference_graph.pb"]
    assert report.card["recipe"] == "imported from tensorflow"
    with pytest.raises(FileExistsError, match="overwrite=true"):
        import_published(model, tmp_path / "m.ckpt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (packed("../frozen_inference_graph.pb"), "would leave the folder"),
        (packed("export/model.ckpt"), r"holds no frozen_inference_graph\.pb"),
        (packed("export/frozen_inference_graph.pb")[:40], "is damaged or cut short"),
        (b"<!DOCTYPE html>", "is no zip or tar archive but a web page"),
    ],
    ids=["leaves", "lacks", "damaged", "page"],  # an archive holds the time, and parallel tests need one name
)
def test_bad_archives(content, words, read, tmp_path):
    with serving(Loopback(content)) as server:
        model = replace(served(server, content, source="tensorflow", name="m.tar.gz"), sha256="")
        with pytest.raises(ValueError, match=words):
            import_published(model, tmp_path / "m.ckpt")
    assert not (tmp_path / "m.ckpt").exists()


def test_another_file_than_the_published_is_refused(cache):
    with serving(Loopback(b"other")) as server:
        model = served(server, b"weights")
        with pytest.raises(ValueError, match=rf"its sha256 is d9298a10.*, not {model.sha256}; the file is removed"):
            fetch_file(model)
    assert not list(cache.glob("m.pth*[!n]"))
    (cache / "m.pth").write_bytes(b"by hand, but another")
    with pytest.raises(ValueError, match="remove it and fetch it again"):
        fetch_file(model)
    assert (cache / "m.pth").exists()  # a user's own file is not ours to remove


def test_connection_that_breaks_off_goes_on(read):
    content = bytes(range(256)) * 64
    with serving(Loopback(content, breaks=[5000])) as server:
        assert fetch_file(served(server, content)).read_bytes() == content
        assert server.ranges_asked() == [None, "bytes=5000-"]


def test_several_that_ask_at_once_fetch_it_once():
    content = bytes(range(256)) * 256
    with serving(Loopback(content, pause=0.05)) as server, ThreadPoolExecutor(3) as pool:
        model = served(server, content)
        for path in pool.map(fetch_file, [model] * 3):
            assert path.read_bytes() == content
        assert len(server.requests) == 1


def test_offline_it_says_what_to_do(cache, deeplab: Command, read, monkeypatch):
    model = Published("voc_small", "mmsegmentation", "http://127.0.0.1:9/m.pth", "voc", {"square": 1.0})
    monkeypatch.setitem(MODELS, "voc_small", model)
    answer = deeplab("import", "source=zoo", "name=voc_small", "output=m.ckpt")
    assert answer.code == 2
    assert "cannot fetch http://127.0.0.1:9/m.pth" in answer.err
    assert f"Put that file at {cache / 'm.pth'}, and run the same command again" in answer.err
    (cache / "m.pth").write_bytes(b"by hand")
    answer = deeplab("import", "source=zoo", "name=voc_small", "output=m.ckpt")
    assert (answer.code, read) == (0, [b"by hand"]), answer.err
    assert "21 classes (those of voc): background, aeroplane" in answer.out
    assert load_predictor("m.ckpt").classes == load_predictor(fetch_checkpoint(model)).classes


def test_list_of_all(deeplab: Command):
    answer = deeplab("import", "source=zoo")
    assert answer.code == 0, answer.err
    assert "cityscapes_xception71_dpc\n    tensorflow: 80.31 mIoU (output stride 16, single scale)\n" in answer.out
    assert answer.out.count("[never fetched by the authors]") == len(MODELS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["name=voc_xception66", "output=m.ckpt"], "Did you mean 'voc_xception65'?"),
        (["name=voc_xception65"], "output=... is missing: the checkpoint to write"),
        (["name=voc_xception65", "file=m.pb"], "file=m.pb has no part in source=zoo, which takes name, output"),
        (["name=voc_xception65", "output=m.ckpt", "head=tensorflow"], "head=tensorflow has no part in source=zoo"),
        (["name=voc_xception65", "output=m.ckpt", "overwrite=maybe"], "overwrite is 'maybe'; it takes true or false"),
        (["source=mmsegmentation", "name=voc_xception65", "file=m.pth", "output=m.ckpt"], "name=... is for source=zoo"),
    ],
)
def test_wrong_settings(words, message, deeplab: Command):
    answer = deeplab("import", *([] if words[0].startswith("source") else ["source=zoo"]), *words)
    assert answer.code == 2
    assert message in answer.err
