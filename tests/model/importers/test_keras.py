"""bonlime's Keras weights: every layer finds its place, whatever form of .h5 Keras wrote them in.

That the logits are the running Keras model's is what benchmarks/parity_keras.py shows; it needs TensorFlow.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deeplab_recipes.model.importers.base import build
from deeplab_recipes.model.importers.keras import read

h5py = pytest.importorskip("h5py", reason="h5py is not installed: the extra [keras] has it")

WIDTH = 0.35
OUT = [8, 8, 8, 16, 16, 16, 24, 24, 24, 24, 32, 32, 32, 56, 56, 56, 112]  # of MobileNetV2's blocks at that width
Layers = dict[str, dict[str, tuple[int, ...]]]  # layer -> weight -> shape


def convolution(name: str, before: int, after: int, kernel: int = 1) -> Iterator[tuple[str, dict[str, Any]]]:
    yield name, {"kernel": (kernel, kernel, before, after)}
    yield from norm(name, after)


def norm(name: str, channels: int) -> Iterator[tuple[str, dict[str, Any]]]:
    yield f"{name}_BN", dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), (channels,))


def separable(name: str, before: int, after: int) -> Iterator[tuple[str, dict[str, Any]]]:
    yield f"{name}_depthwise", {"depthwise_kernel": (3, 3, before, 1)}
    yield from norm(f"{name}_depthwise", before)
    yield from convolution(f"{name}_pointwise", before, after)


def mobilenet(classes: int = 4, last: str = "custom_logits_semantic") -> Layers:
    layers = dict(convolution("Conv", 3, 16, 3))
    before = 16
    for i, after in enumerate(OUT):
        prefix = f"expanded_conv_{i}_" if i else "expanded_conv_"
        inner = before * 6 if i else before
        if i:
            layers |= dict(convolution(f"{prefix}expand", before, inner))
        layers[f"{prefix}depthwise"] = {"depthwise_kernel": (3, 3, inner, 1)}
        layers |= dict(norm(f"{prefix}depthwise", inner))
        layers |= dict(convolution(f"{prefix}project", inner, after))
        before = after
    for name, channels in {"image_pooling": before, "aspp0": before, "concat_projection": 512}.items():
        layers |= dict(convolution(name, channels, 256))
    return {**layers, last: {"kernel": (1, 1, 256, classes), "bias": (classes,)}}


def unit(prefix: str, before: int, depths: tuple[int, int, int], *, shortcut: bool = False) -> Layers:
    layers: Layers = {}
    if shortcut:
        layers |= dict(convolution(f"{prefix}_shortcut", before, depths[-1]))
    for i, after in enumerate(depths, 1):
        layers |= dict(separable(f"{prefix}_separable_conv{i}", before, after))
        before = after
    return layers


def xception(classes: int = 3) -> Layers:
    layers = dict(convolution("entry_flow_conv1_1", 3, 32, 3)) | dict(convolution("entry_flow_conv1_2", 32, 64, 3))
    before = 64
    for i, depth in enumerate((128, 256, 728), 1):
        layers |= unit(f"entry_flow_block{i}", before, (depth,) * 3, shortcut=True)
        before = depth
    for i in range(1, 17):
        layers |= unit(f"middle_flow_unit_{i}", 728, (728,) * 3)
    layers |= unit("exit_flow_block1", 728, (728, 1024, 1024), shortcut=True)
    layers |= unit("exit_flow_block2", 1024, (1536, 1536, 2048))
    for name, channels in {"image_pooling": 2048, "aspp0": 2048, "concat_projection": 1280}.items():
        layers |= dict(convolution(name, channels, 256))
    for i in (1, 2, 3):
        layers |= dict(separable(f"aspp{i}", 2048, 256))
    layers |= dict(convolution("feature_projection0", 256, 48))
    layers |= dict(separable("decoder_conv0", 304, 256)) | dict(separable("decoder_conv1", 256, 256))
    return {**layers, "logits_semantic": {"kernel": (1, 1, 256, classes), "bias": (classes,)}}


def write(group: Any, layers: Layers, *, sparse: bool = False) -> dict[str, np.ndarray]:
    """Write weights as Keras 2 does; gives the arrays. Sparse ones are constants that take no room."""
    rng, arrays = np.random.default_rng(0), {}
    group.attrs["layer_names"] = [name.encode() for name in ("input_1", *layers)]
    group.create_group("input_1").attrs["weight_names"] = np.array([], "S1")
    for layer, weights in layers.items():
        inside = group.create_group(layer)
        inside.attrs["weight_names"] = [f"{layer}/{kind}:0".encode() for kind in weights]
        for kind, shape in weights.items():
            path = f"{layer}/{kind}:0"
            if sparse:
                inside.create_dataset(path, shape, np.float32, fillvalue=0.5)
            else:
                arrays[f"{layer}/{kind}"] = rng.uniform(0.5, 1, shape).astype(np.float32)
                inside[path] = arrays[f"{layer}/{kind}"]
    return arrays


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., tuple[Path, dict[str, np.ndarray]]]:
    def save(layers: Layers, **options: Any) -> tuple[Path, dict[str, np.ndarray]]:
        with h5py.File(tmp_path / "m.h5", "w") as file:
            return tmp_path / "m.h5", write(file, layers, **options)

    return save


def test_mobilenet(saved):
    path, arrays = saved(mobilenet())
    found = read(path)
    assert found.model == {
        "num_classes": 4, "backbone": "mobilenet_v2", "width_multiplier": 0.35, "output_stride": 8, "padding": "same",
        "head": "tensorflow_short", "aspp_channels": 256, "align_corners": False,
        "batchnorm_epsilon": {"backbone": 1e-3, "head": 1e-5}, "batchnorm_momentum": {"backbone": 0.001, "head": 0.01},
    }  # fmt: skip
    model = build(found)
    assert (found.unused, found.used) == ({}, len(arrays))
    state = model.state_dict()
    places = {
        "Conv/kernel": "backbone.features.0.0.weight",
        "expanded_conv_project/kernel": "backbone.features.1.conv.1.weight",
        "expanded_conv_3_expand/kernel": "backbone.features.4.conv.0.0.weight",
        "expanded_conv_16_project/kernel": "backbone.features.17.conv.2.weight",
        "concat_projection/kernel": "head.encoder.concat_projection.conv.weight",
        "custom_logits_semantic/kernel": "head.conv_seg.weight",
    }
    for theirs, ours in places.items():
        np.testing.assert_array_equal(state[ours].permute(2, 3, 1, 0), arrays[theirs])
    depthwise = state["backbone.features.4.conv.1.0.weight"]
    np.testing.assert_array_equal(depthwise.permute(2, 3, 0, 1), arrays["expanded_conv_3_depthwise/depthwise_kernel"])
    norms = {"moving_mean": "running_mean", "moving_variance": "running_var", "gamma": "weight", "beta": "bias"}
    for theirs, ours in norms.items():
        key = f"backbone.features.2.conv.3.{ours}"
        np.testing.assert_array_equal(state[key], arrays[f"expanded_conv_1_project_BN/{theirs}"])
    assert (model.backbone.features[0][1].eps, model.head.encoder.image_pool.bn.eps) == (1e-3, 1e-5)
    assert model(torch.zeros(1, 3, 48, 65)).shape == (1, 4, 48, 65)


def test_xception(saved):
    path, _ = saved(xception(), sparse=True)
    found = read(path, output_stride=8)
    model = build(found)
    assert (model.arguments["backbone"], model.arguments["head"], model.output_stride) == (
        "xception65",
        "tensorflow",
        8,
    )
    assert sum(p.numel() for p in model.parameters()) == 41_055_413 - (21 - 3) * 257  # Keras: 41,055,413 with 21
    assert found.unused == {}
    assert found.used == sum(map(len, xception().values()))
    assert all((value == 0.5).all() for key, value in found.state.items() if not key.endswith("tracked"))
    assert read(path).model["output_stride"] == 16
    assert read(path, align_corners=True).model["align_corners"] is True


def test_whole_model_with_its_optimizer_and_names_in_parts(tmp_path):
    """save() puts weights below model_weights; a list of names that is too long for HDF5 is split."""
    with h5py.File(tmp_path / "m.h5", "w") as file:
        root = file.create_group("model_weights")
        write(root, mobilenet(last="logits_semantic"))
        names = root.attrs["layer_names"]
        del root.attrs["layer_names"]
        root.attrs["layer_names0"], root.attrs["layer_names1"] = names[:9], names[9:]
        file.create_group("optimizer_weights")["iterations"] = 1
    found = read(tmp_path / "m.h5")
    build(found)
    assert found.unused == {"optimizer_weights": "the optimizer's state; training begins anew"}


def test_model_within_a_model(tmp_path):
    with h5py.File(tmp_path / "m.h5", "w") as file:
        inside = file.create_group("deeplabv3plus")
        layers = mobilenet()
        arrays = write(inside, layers)
        listed = [(layer, kind) for layer, weights in layers.items() for kind in weights]
        del inside.attrs["layer_names"]
        for layer, kind in listed:
            inside[f"{layer}/{kind}:0"] = inside[layer][f"{layer}/{kind}:0"][()]
        inside.attrs["weight_names"] = [f"{layer}/{kind}:0".encode() for layer, kind in listed]
        file.attrs["layer_names"] = [b"deeplabv3plus"]
    model = build(read(tmp_path / "m.h5"))
    kernel = torch.from_numpy(arrays["custom_logits_semantic/kernel"])
    assert torch.equal(model.head.conv_seg.weight, kernel.permute(3, 2, 0, 1))


def test_weights_that_have_no_place_are_named(saved):
    path, _ = saved(
        {**mobilenet(), "extra": {"kernel": (1, 1, 2, 2)}, "aspp0": {"kernel": (1, 1, 112, 256), "bias": (256,)}}
    )
    found = read(path)
    assert list(found.unused) == ["extra/kernel"]
    with pytest.raises(ValueError, match=r"1 without a place \(head.encoder.branches.0.conv.bias\)"):
        build(found)


@pytest.mark.parametrize(
    ("layers", "hints", "words"),
    [
        ({"dense": {"kernel": (2, 2)}}, {}, "is not of bonlime's Deeplabv3: it has dense, and not"),
        (mobilenet(), {"output_stride": 16}, "output_stride=16, but bonlime's MobileNetV2 is always built at 8"),
        (mobilenet(), {"width_multiplier": 0.5}, r"have \[8, 8, .* which width_multiplier=0.5 does not give"),
        (
            {**mobilenet(), **dict(convolution("expanded_conv_project", 16, 9))},
            {},
            "which no known width_multiplier gives; name it",
        ),
        ({k: v for k, v in xception().items() if "unit_16" not in k}, {}, "its middle flow has 15 units"),
        (xception(), {"width_multiplier": 1.0}, "width_multiplier=1.0 is for MobileNetV2, .* holds an Xception"),
    ],
)
def test_other_models(layers, hints, words, saved):
    path, _ = saved(layers, sparse=True)
    with pytest.raises(ValueError, match=words):
        read(path, **hints)


def test_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.h5"):
        read(tmp_path / "none.h5")
    (tmp_path / "page.h5").write_text("<!DOCTYPE html>")
    with pytest.raises(ValueError, match=r"page\.h5 is no HDF5 file, or is damaged"):
        read(tmp_path / "page.h5")
    with h5py.File(tmp_path / "part.h5", "w") as file:
        file.attrs["layer_names"] = [b"Conv"]
    with pytest.raises(ValueError, match=r"part\.h5 is no HDF5 file, or is damaged .*'Conv' doesn't exist"):
        read(tmp_path / "part.h5")
    with h5py.File(tmp_path / "new.h5", "w") as file:
        file.create_group("layers/conv2d/vars")
    with pytest.raises(
        ValueError, match=r"no layer names, by which weights are found; save them in Keras's older form"
    ):
        read(tmp_path / "new.h5")
