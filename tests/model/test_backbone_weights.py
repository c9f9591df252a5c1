import argparse
import hashlib
import io
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from loopback import Loopback, serving
from torch import nn

from deeplab_recipes.fetching import cache as cache_module
from deeplab_recipes.fetching import transfer
from deeplab_recipes.model.backbones import Backbone, build_backbone
from deeplab_recipes.model.weights import load_backbone_weights


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(transfer, "FIRST_WAIT", 0.0)
    return tmp_path / "torch" / "hub" / "checkpoints"


def backbone() -> Backbone:
    return build_backbone("resnet18", output_stride=32)


def load(spec: str | Path | None, into: Backbone | None = None) -> None:
    load_backbone_weights(into or backbone(), spec, architecture="resnet18")


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    """What a torchvision file holds: the backbone, and the classifier that has no use here."""
    return {**backbone().state_dict(), "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}


def assert_holds(filled: nn.Module, published: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(value, published[key]) for key, value in filled.state_dict().items())


@pytest.mark.parametrize("spec", [None, "none"])
def test_none_leaves_the_weights(spec):
    network = backbone()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    load(spec, network)
    assert_holds(network, before)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"state_dict": {f"module.backbone.{key}": value for key, value in state.items()}},
        lambda state: {f"model.{key}": value for key, value in state.items()},
        lambda state: {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")},
    ],
)
def test_usual_wrappings(wrap, published, tmp_path):
    torch.save(wrap(published), tmp_path / "weights.pth")
    network = backbone()
    load(tmp_path / "weights.pth", network)
    assert_holds(network, published)


def test_misfit_names_keys_shapes_and_architecture(published, tmp_path):
    state = {key: value for key, value in published.items() if key not in ("bn1.bias", "layer1.0.bn1.weight")}
    state |= {"conv1.weight": torch.zeros(32, 3, 7, 7), "aux.weight": torch.zeros(1)}
    torch.save(state, tmp_path / "f.pth")
    with pytest.raises(ValueError, match="does not fit resnet18") as caught:
        load(tmp_path / "f.pth")
    assert str(caught.value).endswith(
        "tensors 2 missing (bn1.bias, layer1.0.bn1.weight); 1 unexpected (aux.weight); "
        "1 of another shape (conv1.weight (32, 3, 7, 7) for (64, 3, 7, 7))"
    )


def test_misfit_loads_nothing(published, tmp_path):
    torch.save({key: value + 1 for key, value in published.items() if key != "bn1.bias"}, tmp_path / "f.pth")
    network = backbone()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"1 missing \(bn1.bias\)"):
        load(tmp_path / "f.pth", network)
    assert_holds(network, before)


def test_two_tensors_of_one_name(published, tmp_path):
    torch.save({**published, "module.conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "f.pth")
    with pytest.raises(ValueError, match="holds two tensors of one name"):
        load(tmp_path / "f.pth")


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>Not found", b"resnet\n", bytes(range(256)) * 9])
def test_file_that_is_no_checkpoint(content, tmp_path):
    (tmp_path / "f.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"f\.pth is no PyTorch checkpoint, or is damaged"):
        load(tmp_path / "f.pth")


def test_truncated_checkpoint(published, tmp_path):
    torch.save(published, tmp_path / "f.pth")
    (tmp_path / "f.pth").write_bytes((tmp_path / "f.pth").read_bytes()[:100_000])
    with pytest.raises(ValueError, match="is damaged"):
        load(tmp_path / "f.pth")


class RunsCode:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("content", [RunsCode(), {"arguments": argparse.Namespace(lr=1)}, nn.Conv2d(1, 1, 1)])
def test_objects_are_refused_and_not_run(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "f.pth")
    with pytest.raises(ValueError, match=r"holds Python objects, .* are refused.*model\.state_dict\(\)"):
        load(tmp_path / "f.pth")
    assert not Path("ran").exists()


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}])
def test_checkpoint_without_tensors(content, tmp_path):
    torch.save(content, tmp_path / "f.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        load(tmp_path / "f.pth")


@pytest.mark.parametrize("spec", ["imagenet1k_v2", "imagnet1k_v1", "missing.pth"])
def test_unknown_name_lists_the_valid_ones(spec):
    valid = "valid: none, imagenet1k_v1, FILE, ADDRESS#sha256=HEX"
    with pytest.raises(ValueError, match=f"{spec} is neither .* weights that resnet18 has; {valid}"):
        load(spec)


def test_deep_stems_have_mmsegmentations_weights(monkeypatch):
    asked = []

    def refuse(request, timeout):
        asked.append(request.full_url)
        raise URLError("offline")

    monkeypatch.setattr(transfer, "urlopen", refuse)
    network = build_backbone("resnet50_v1c", output_stride=32)
    with pytest.raises(ConnectionError, match=r"Put that file at .*resnet50_v1c-2cccc1ad.pth"):
        load_backbone_weights(network, "openmmlab", architecture="resnet50_v1c")
    assert asked[0].endswith("/pretrain/third_party/resnet50_v1c-2cccc1ad.pth")
    with pytest.raises(ValueError, match=r"valid: none, openmmlab, FILE"):
        load_backbone_weights(network, "imagenet1k_v1", architecture="resnet50_v1c")


def test_xceptions_have_no_published_name():
    with pytest.raises(ValueError, match=r"weights that xception41 has; valid: none, FILE, ADDRESS#sha256=HEX"):
        load_backbone_weights(backbone(), "imagenet1k_v1", architecture="xception41")


def test_closest_name_is_proposed():
    with pytest.raises(ValueError, match=r"Did you mean 'imagenet1k_v1'\?"):
        load("imagnet1k_v1")


@pytest.mark.parametrize("end", ["", "#sha256=", "#sha256=cafe", "#md5=" + "0" * 32])
def test_address_needs_its_hash(end):
    with pytest.raises(ValueError, match="an address needs its sha256"):
        load("https://example.org/w.pth" + end)


def served(state: dict[str, torch.Tensor], folder: Path) -> tuple[str, str]:
    torch.save(state, folder / "served.pth")
    return (folder / "served.pth").as_uri(), hashlib.sha256((folder / "served.pth").read_bytes()).hexdigest()


def kept(cache: Path) -> list[str]:
    return [path.name for path in cache.glob("[!.]*")]  # but for the locks


def test_address_is_fetched_once(published, tmp_path, cache):
    address, digest = served(published, tmp_path)
    network = backbone()
    load(f"{address}#sha256={digest.upper()}", network)
    assert_holds(network, published)
    assert kept(cache) == [f"served-{digest[:8]}.pth"]
    (tmp_path / "served.pth").unlink()
    load(f"{address}#sha256={digest}")


def test_wrong_hash_names_both_and_keeps_nothing(published, tmp_path, cache):
    address, digest = served(published, tmp_path)
    with pytest.raises(ValueError, match=f"sha256 is {digest}, not {'0' * 64}; the file is removed"):
        load(f"{address}#sha256={'0' * 64}")
    assert kept(cache) == []
    assert (tmp_path / "served.pth").exists()


def test_unreachable_address_says_where_to_put_the_file(cache):
    address = "http://127.0.0.1:9/w.pth"
    with pytest.raises(ConnectionError) as caught:
        load(f"{address}#sha256={'0' * 64}")
    message = str(caught.value)
    assert f"cannot fetch {address}" in message
    assert f"Put that file at {cache / 'w-00000000.pth'}" in message
    assert "model.backbone_weights=FILE" in message
    assert kept(cache) == []


def test_a_transfer_that_breaks_off_goes_on(published, cache):
    content = io.BytesIO()
    torch.save(published, content)
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    with serving(Loopback(content.getvalue(), breaks=[50_000])) as server:
        network = backbone()
        load(f"{server.address}w.pth#sha256={digest}", network)
        assert server.ranges_asked() == [None, "bytes=50000-"]
    assert_holds(network, published)
    assert kept(cache) == [f"w-{digest[:8]}.pth"]


def test_file_address_without_a_file_is_asked_once(tmp_path, capsys):
    with pytest.raises(ConnectionError, match=r"cannot fetch file:.*No such file.*model\.backbone_weights=FILE"):
        load(f"{(tmp_path / 'none.pth').as_uri()}#sha256={'0' * 64}")
    assert "again in" not in capsys.readouterr().err


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "torch").write_bytes(b"")
    with pytest.raises(OSError, match=r"checkpoints cannot be written \(Not a directory\); choose another: TORCH_HOME"):
        load(f"http://127.0.0.1:9/w.pth#sha256={'0' * 64}")


def test_a_file_put_there_by_hand_is_checked_and_stays(cache):
    cache.mkdir(parents=True)
    (cache / "w-00000000.pth").write_bytes(b"another")
    with pytest.raises(ValueError, match=r"w-00000000\.pth: its sha256 is [0-9a-f]{64}, not 0{64} of http.*remove it"):
        load(f"http://127.0.0.1:9/w.pth#sha256={'0' * 64}")
    assert kept(cache) == ["w-00000000.pth"]


def test_torchvision_name_is_checked_by_the_digits_in_its_file_name(published, tmp_path, cache, monkeypatch):
    asked = []

    def fetch(address: str, path: Path, **_: object) -> Path:
        asked.append(address)
        torch.save(published, path)
        return path

    monkeypatch.setattr(cache_module, "fetch", fetch)
    with pytest.raises(ValueError, match=r"sha256 is [0-9a-f]{64}, not f37072fd; the file is removed"):
        load("IMAGENET1K_V1")
    assert asked == ["https://download.pytorch.org/models/resnet18-f37072fd.pth"]
    assert kept(cache) == []


def test_real_weights(mobilenet_weights):
    network = build_backbone("mobilenet_v2", output_stride=16)
    load_backbone_weights(network, str(mobilenet_weights), architecture="mobilenet_v2")
    state = torch.load(mobilenet_weights, weights_only=True)
    for key, value in network.state_dict().items():
        assert key.endswith("num_batches_tracked") or torch.equal(value, state[key])
    with pytest.raises(ValueError, match="does not fit resnet18"):
        load(mobilenet_weights)
    narrow = build_backbone("mobilenet_v2", width_multiplier=0.5)
    with pytest.raises(ValueError, match=r"\(features\.0\.0\.weight \(32, 3, 3, 3\) for \(16, 3, 3, 3\)"):
        load_backbone_weights(narrow, mobilenet_weights, architecture="mobilenet_v2")
