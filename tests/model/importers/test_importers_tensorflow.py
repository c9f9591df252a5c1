from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorflow_files import NORM, GraphWriter, write_checkpoint

from deeplab_recipes import load_predictor
from deeplab_recipes.importing import import_model
from deeplab_recipes.model import build_deeplab
from deeplab_recipes.model.importers import tensorflow
from deeplab_recipes.model.importers.base import build
from deeplab_recipes.model.importers.tensorflow import read

PORTRAIT = "tensorflow/deeplab_mnv2_dm05_portrait_frozen_graph.pb"
# Class 0's logit at 6 x 8 places of each photograph (np.linspace over rows and columns, rounded down), how many pixels
# are of class 1, and how far the logits reach: the graph's own, fed with the photograph, by TensorFlow 2.21.
EXPECTED = {
    "camvid/val/0016E5_07959.jpg": (
        [[4.8044, 4.9144, 4.6834, 5.2143, 6.0333, 5.0450, 2.4060, 2.2106],
         [4.0251, 6.7969, 4.9608, 3.6514, 5.9032, 2.8439, 1.7807, 3.1871],
         [4.7499, 4.9205, 5.6618, 4.1165, 4.4476, 2.2021, 2.6640, 3.1134],
         [4.3941, 5.0914, 4.0189, 2.7492, 1.8438, 1.4091, 1.0702, 3.7775],
         [1.3431, 2.3915, 1.4656, 0.9166, 1.0326, 1.1548, 1.7735, 2.5316],
         [0.4441, -0.1004, 0.4670, 0.5946, 0.6904, 0.2149, 0.3873, 1.3338]], 6712, 15.3126,
    ),
    "ade20k_mini/images/training/ADE_val_00000006.jpg": (
        [[3.1335, 3.9122, 3.6141, 3.5865, 3.4668, 3.2691, 3.4873, 2.3722],
         [5.5798, 4.0024, 3.0241, 3.0298, 2.8458, 2.8682, 3.3456, 3.6689],
         [3.9135, 3.8690, 3.0617, 3.5334, 3.1149, 3.3967, 3.4880, 2.8150],
         [5.1653, 4.1943, 3.5077, 3.1389, 3.4239, 3.6980, 3.5350, 3.4810],
         [4.2218, 4.2241, 4.1274, 4.2572, 4.4340, 4.1467, 1.9837, 2.1812],
         [1.4711, 2.8070, 2.4787, 2.7016, 2.6889, 2.9813, 3.1038, 1.9960]], 0, 15.7901,
    ),
    "ade20k_mini/images/training/ADE_val_00000062.jpg": (
        [[2.1312, 1.6309, 2.6104, 3.8191, 3.0040, 4.1514, 4.3427, 2.7803],
         [1.9672, 3.9782, 2.8071, 2.9692, 2.2703, 4.1979, 3.3218, 2.0621],
         [2.8023, 3.4151, 2.4156, 3.6358, 3.6076, 4.1552, 4.2351, 2.1615],
         [3.8499, 3.8227, 4.1295, 4.9629, 5.1361, 4.5988, 3.5457, 2.9842],
         [1.7814, -0.5287, -0.5878, -1.2872, 0.9019, 2.0971, 0.8353, -0.4042],
         [-0.8465, -1.1428, -1.1462, -1.3228, 0.1169, 0.1529, -0.8583, -0.2151]], 39490, 13.7346,
    ),
}  # fmt: skip
# MobileNetV2 x 0.35 without rounding to a multiple: the first convolution and the 17 blocks; what each is expanded to.
NARROW = (11, 6, 8, 8, 11, 11, 11, 22, 22, 22, 22, 34, 34, 34, 56, 56, 56, 112)
EXPANDED = (11, 40, 48, 48, 64, 64, 64, 136, 136, 136, 136, 208, 208, 208, 336, 336, 336)  # multiples of 8
RATES = (1, 2, 3)


@pytest.fixture(scope="module")
def portrait(real_data, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("portrait") / "portrait.ckpt"
    import_model("tensorflow", real_data(PORTRAIT), output, classes=["background", "person"])
    return output


@pytest.mark.parametrize("name", EXPECTED)
def test_the_portrait_graph_gives_tensorflow_s_answer(portrait, real_data, name):
    image = np.asarray(Image.open(real_data(name)).convert("RGB"))
    predictor = load_predictor(portrait)
    logits, labels = predictor.logits(image).numpy(), predictor(image)
    rows, columns = (np.linspace(0, side - 1, n).astype(int) for side, n in zip(image.shape[:2], (6, 8), strict=True))
    values, persons, reach = EXPECTED[name]
    assert np.abs(logits[0][np.ix_(rows, columns)] - values).max() < 1e-4 * reach
    assert abs(int(labels.sum()) - persons) <= 1e-4 * labels.size
    assert labels.shape == image.shape[:2]


def test_the_portrait_graph_beside_tensorflow(portrait, real_data):
    tf = pytest.importorskip("tensorflow", reason="needs TensorFlow").compat.v1
    definition = tf.GraphDef.FromString(real_data(PORTRAIT).read_bytes())
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(definition, name="")
    predictor = load_predictor(portrait)
    photograph = np.asarray(Image.open(real_data("camvid/val/0016E5_07959.jpg")).convert("RGB"))
    for image in (photograph, photograph[:201, 100:], photograph[3:, :333]):
        with tf.Session(graph=graph) as session:
            labels, logits = session.run(
                ["SemanticPredictions:0", "ResizeBilinear_2:0"], {"ImageTensor:0": image[None]}
            )
        expected = logits[0, : image.shape[0], : image.shape[1]].transpose(2, 0, 1)
        assert np.abs(predictor.logits(image).numpy() - expected).max() < 1e-4 * np.ptp(logits)
        assert (predictor(image) == labels[0]).mean() >= 0.9999


def test_what_the_portrait_graph_tells(real_data):
    found = read(real_data(PORTRAIT))
    assert found.model == {
        "num_classes": 2, "output_stride": 8, "dropout": 0.1, "backbone": "mobilenet_v2", "width_multiplier": 0.5,
        "width_divisor": 1, "padding": "same", "head": "tensorflow_short",
        "aspp_channels": 256, "batchnorm_momentum": {"backbone": 0.003, "head": 0.0003},
        "batchnorm_epsilon": {"backbone": 0.001, "head": 1e-05},
    }  # fmt: skip
    assert (found.mean, found.std) == ((127.5,) * 3, (127.5,) * 3)
    assert found.size == {"protocol": "padded", "evaluate_sizes": {"padded": [513, 513]}}
    assert list(found.unused) == ["105 constants of the graph"]
    assert (found.used, found.classes) == (272, None)
    assert len(found.state) == 272 + 54  # a count for each batch norm besides


def test_another_output_stride_of_the_portrait(portrait):
    predictor = load_predictor(portrait, output_stride=16)
    assert predictor.model.output_stride == 16
    assert predictor(np.zeros((60, 40, 3), np.uint8)).shape == (60, 40)


def unaligned(graph: GraphDef) -> None:
    next(node for node in graph.node if node.op == "ResizeBilinear").attr["align_corners"].b = False


def partly_pooled(graph: GraphDef) -> None:
    next(node for node in graph.node if node.op == "AvgPool").attr["ksize"].list.i[1:3] = [33, 49]


def bounded(graph: GraphDef) -> None:
    next(node for node in graph.node if node.name == "aspp0/Relu").op = "Relu6"


def other_padding(graph: GraphDef) -> None:
    values = next(node for node in graph.node if node.name == "Reshape/tensor").attr["value"].tensor
    values.tensor_content = np.array([123.15, 115.9, 103.06], np.float32).tobytes()


def other_scaling(graph: GraphDef) -> None:
    value = next(node for node in graph.node if node.name == "mul/x").attr["value"].tensor
    del value.float_val[:]
    value.tensor_content = np.float32(1 / 255).tobytes()


def changed(real_data, folder: Path, change) -> Path:
    graph = GraphDef.FromString(real_data(PORTRAIT).read_bytes())
    change(graph)
    path = folder / "changed.pb"
    path.write_bytes(graph.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (unaligned, "changed.pb resizes with corners not aligned"),
        (partly_pooled, r"changed.pb pools \(33, 49\) of the \(65, 65\) features of an image"),
        (bounded, r"changed.pb bounds activations in aspp0 \(use_bounded_activation\)"),
        (other_padding, r"changed.pb pads with \(123.15"),
        (other_scaling, r"changed.pb scales images by \(0.0039"),
    ],
)
def test_a_graph_that_computes_something_else_is_refused(real_data, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read(changed(real_data, tmp_path, change))


def test_a_graph_of_several_scales_is_imported_as_one_pass(real_data, tmp_path):
    def again(graph: GraphDef) -> None:
        layer = next(node for node in graph.node if node.name == "logits/semantic/Conv2D")
        graph.node.add().CopyFrom(layer)
        graph.node[-1].name = "logits_1/semantic/Conv2D"

    found = read(changed(real_data, tmp_path, again))
    assert found.unused["1 further passes"].startswith("the graph averages over scales or flips")


def layer(scope: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(len(scope))
    depthwise = shape[3] == 1 and shape[0] == 3
    kernel = {f"{scope}/{'depthwise_weights' if depthwise else 'weights'}": rng.normal(size=shape).astype(np.float32)}
    channels = shape[2] if depthwise else shape[3]
    return kernel | {f"{scope}/BatchNorm/{part}": rng.uniform(0.5, 1.5, channels).astype(np.float32) for part in NORM}


def separable(scope: str, before: int, after: int) -> dict[str, np.ndarray]:
    return layer(f"{scope}_depthwise", (3, 3, before, 1)) | layer(f"{scope}_pointwise", (1, 1, before, after))


def backbone() -> dict[str, np.ndarray]:
    tensors = layer("MobilenetV2/Conv", (3, 3, 3, NARROW[0]))
    for i, (before, wide, after) in enumerate(zip(NARROW, EXPANDED, NARROW[1:], strict=False)):
        block = f"MobilenetV2/expanded_conv{f'_{i}' if i else ''}"
        tensors |= layer(f"{block}/expand", (1, 1, before, wide)) if i else {}
        tensors |= layer(f"{block}/depthwise", (3, 3, wide, 1)) | layer(f"{block}/project", (1, 1, wide, after))
    return tensors


def logits(channels: int, classes: int = 5) -> dict[str, np.ndarray]:
    values = np.random.default_rng(0).normal(size=(1, 1, channels, classes)).astype(np.float32)
    return {"logits/semantic/weights": values, "logits/semantic/biases": np.arange(classes, dtype=np.float32)}


def encoder(channels: int, rates: int, *, pooling: bool = True) -> dict[str, np.ndarray]:
    one = (1, 1, NARROW[-1], channels)
    tensors = layer("aspp0", one) | (layer("image_pooling", one) if pooling else {})
    for i in range(1, rates + 1):
        tensors |= separable(f"aspp{i}", NARROW[-1], channels)
    return tensors | layer("concat_projection", (1, 1, (pooling + 1 + rates) * channels, channels))


def decoder(channels: int) -> dict[str, np.ndarray]:
    tensors = layer("decoder/feature_projection0", (1, 1, EXPANDED[2], 48))
    tensors |= separable("decoder/decoder_conv0", channels + 48, channels)
    return tensors | separable("decoder/decoder_conv1", channels, channels)


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    """MobileNetV2 x 0.35 with ASPP and decoder."""
    return backbone() | encoder(16, 3) | decoder(16) | logits(16)


def checkpoint(folder: Path, tensors: dict[str, np.ndarray]) -> Path:
    return write_checkpoint(folder / "model.ckpt", tensors, block_entries=50)


def test_a_checkpoint(tensors, tmp_path):
    other = {"MobilenetV2/Conv/weights/Momentum": np.zeros(3, np.float32), "global_step": np.array(7, np.int64)}
    found = read(checkpoint(tmp_path, tensors | other), output_stride=16)
    assert found.model["width_multiplier"] == 0.35
    assert found.model["width_divisor"] == 1
    assert found.model["head"] == "tensorflow"
    assert found.model["decoder"] is True
    assert found.model["low_level_features"] == "depthwise"
    assert found.model["aspp_dilations"] is None
    assert found.model["aspp_channels"] == 16
    assert found.model["decoder_channels"] == 48
    assert found.model["num_classes"] == 5
    assert found.used == len(tensors)
    assert found.unused == {
        "global_step": "counts training steps",
        "MobilenetV2/Conv/weights/Momentum": "the optimizer's state",
    }
    state = build(found).state_dict()
    assert state.keys() == found.state.keys()
    kernel = tensors["aspp2_depthwise/depthwise_weights"]
    for key, expected in {
        "backbone.features.0.0.weight": tensors["MobilenetV2/Conv/weights"].transpose(3, 2, 0, 1),
        "backbone.features.1.conv.0.0.weight": tensors[
            "MobilenetV2/expanded_conv/depthwise/depthwise_weights"
        ].transpose(2, 3, 0, 1),
        "backbone.features.17.conv.3.running_var": tensors[
            "MobilenetV2/expanded_conv_16/project/BatchNorm/moving_variance"
        ],
        "backbone.features.17.conv.1.1.running_mean": tensors[
            "MobilenetV2/expanded_conv_16/depthwise/BatchNorm/moving_mean"
        ],
        "head.encoder.image_pool.bn.weight": tensors["image_pooling/BatchNorm/gamma"],
        "head.encoder.branches.2.depthwise.conv.weight": kernel.transpose(2, 3, 0, 1),
        "head.encoder.concat_projection.bn.bias": tensors["concat_projection/BatchNorm/beta"],
        "head.decoder.conv1.pointwise.conv.weight": tensors["decoder/decoder_conv1_pointwise/weights"].transpose(
            3, 2, 0, 1
        ),
        "head.conv_seg.bias": tensors["logits/semantic/biases"],
    }.items():
        np.testing.assert_array_equal(state[key].numpy(), expected)


def test_batch_norms_without_gamma(tensors, tmp_path):
    del tensors["aspp0/BatchNorm/gamma"]
    found = read(checkpoint(tmp_path, tensors), output_stride=8)
    assert found.state["head.encoder.branches.0.bn.weight"].tolist() == [1.0] * 16
    build(found)


def test_the_short_head(tmp_path):
    found = read(checkpoint(tmp_path, backbone() | encoder(32, 0) | logits(32, 2)), output_stride=32)
    assert (found.model["head"], found.model["num_classes"]) == ("tensorflow_short", 2)
    build(found)


@pytest.mark.parametrize(("rates", "head"), [(0, "tensorflow_short"), (3, "tensorflow")])
def test_heads_without_image_pooling(tmp_path, rates, head):
    tensors = backbone() | encoder(32, rates, pooling=False) | logits(32, 2)
    found = read(checkpoint(tmp_path, tensors), output_stride=32)
    assert (found.model["head"], found.model["image_pooling"]) == (head, False)
    projection = build(found).head.encoder.concat_projection.conv.weight.detach().numpy()
    np.testing.assert_array_equal(projection, tensors["concat_projection/weights"].transpose(3, 2, 0, 1))


def test_a_graph_without_image_pooling(real_data, tmp_path):
    """Half of the projection's inputs, those of the branch, are taken out of the portrait graph with it."""

    def unpooled(graph: GraphDef) -> None:
        kept = [node for node in graph.node if not node.name.startswith(("image_pooling/", "AvgPool"))]
        value = next(node for node in kept if node.name == "concat_projection/weights").attr["value"].tensor
        value.tensor_content = value.tensor_content[len(value.tensor_content) // 2 :]
        value.tensor_shape.dim[2].size //= 2
        del graph.node[:]
        graph.node.extend(kept)

    found, whole = read(changed(real_data, tmp_path, unpooled)), read(real_data(PORTRAIT))
    assert found.model == whole.model | {"image_pooling": False}
    model, features = build(found).eval().head.encoder, torch.rand(2, 160, 5, 7)
    expected = build(whole).eval().head.encoder
    expected.concat_projection.conv.weight.data[:, :256] = 0
    torch.testing.assert_close(model(features), expected(features))


@pytest.mark.parametrize("name", ["xception41", "xception65", "xception71"])
def test_every_tensor_of_an_xception_has_its_place(name):
    """The keys of the whole network follow from the scopes, and the scopes from the keys."""
    with torch.device("meta"):
        network = build_deeplab(3, backbone=name, head="tensorflow", output_stride=16)
    keys = {key for key in network.state_dict() if key.startswith("backbone.")}
    layers = {key.removeprefix("backbone.").rsplit(".", 2)[0] for key in keys}
    scopes = {layer: layer.replace(".", "/") for layer in layers}
    for layer, scope in scopes.items():
        if "/unit_" in scope:
            block, part = scope.rsplit("/", 1)
            scope = f"{block}/xception_module/{part}"
        assert tensorflow._xception_place(scope) == (f"backbone.{layer}.conv", f"backbone.{layer}.bn")


@pytest.fixture
def cell(tmp_path):
    """A cell of a 3x3, a 1x1 and a pooling branch, as TensorFlow writes it at output stride 8."""
    writer, scope = GraphWriter(), "meta_architecture/branch"
    source = writer.convolution("MobilenetV2/Conv", "image", np.zeros((3, 3, 3, 4), np.float32))
    first = writer.convolution(
        f"{scope}0_depthwise", source, np.zeros((3, 3, 4, 1), np.float32), depthwise=True, rate=(2, 12)
    )
    first = writer.convolution(f"{scope}0_pointwise", first, np.zeros((1, 1, 4, 8), np.float32))
    writer.convolution(f"{scope}1", first, np.zeros((1, 1, 8, 8), np.float32))
    pooled = writer.node("AvgPool", "AvgPool", first, ksize=(1, 65, 33, 1))
    writer.convolution(f"{scope}2", pooled, np.zeros((1, 1, 8, 8), np.float32))
    second = writer.convolution(
        f"{scope}3_depthwise", f"{scope}1/Relu", np.zeros((5, 3, 8, 1), np.float32), depthwise=True, rate=(2, 6)
    )
    writer.convolution(f"{scope}3_pointwise", second, np.zeros((1, 1, 8, 8), np.float32))
    return tensorflow._GraphSource(writer.write(tmp_path / "cell.pb"))


def test_a_cell_is_read_from_the_graph(cell):
    scopes = [f"meta_architecture/branch{i}" for i in range(4)]
    assert tensorflow._described_cell(cell, cell.names(), scopes, stride=8) == [
        {"op": "conv", "kernel": [3, 3], "rate": [1, 6], "input": -1},
        {"op": "conv", "kernel": [1, 1], "rate": [1, 1], "input": 0},
        {"op": "pyramid_pooling", "grid_size": [1, 2], "input": 0},
        {"op": "conv", "kernel": [5, 3], "rate": [1, 3], "input": 1},
    ]


def test_a_cell_as_a_hint_is_compared(cell):
    scopes = [f"meta_architecture/branch{i}" for i in range(4)]
    described = tensorflow._described_cell(cell, cell.names(), scopes, stride=8)
    model = {"dense_prediction_cell": described, "aspp_channels": 8, "output_stride": 8}
    tensorflow._require_agreement(cell, model, {"dense_prediction_cell": {"encoder_middle_conf": described}})
    with pytest.raises(ValueError, match=r"dense_prediction_cell=published, but .*cell.pb has dense_prediction_cell="):
        tensorflow._require_agreement(cell, model, {"dense_prediction_cell": "published"})


def test_a_cell_needs_a_hint_where_there_is_no_graph(tmp_path):
    branches = separable("meta_architecture/branch0", NARROW[-1], 8) | separable("meta_architecture/branch1", 8, 8)
    head = branches | layer("meta_architecture/concat_projection", (1, 1, 16, 8))
    prefix = checkpoint(tmp_path, backbone() | head | logits(8))
    with pytest.raises(ValueError, match="how the branches of its dense prediction cell are connected; give"):
        read(prefix, output_stride=16)
    with pytest.raises(ValueError, match="has a cell of 2 branches, dense_prediction_cell another number"):
        read(prefix, output_stride=16, dense_prediction_cell="published")
    spec = [{"op": "conv", "kernel": 3, "rate": 2, "input": -1}, {"op": "conv", "kernel": 3, "rate": 4, "input": 0}]
    build(read(prefix, output_stride=16, dense_prediction_cell=spec))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if not k.startswith("MobilenetV2/")}, "has no MobilenetV2 or xception"),
        (lambda t: {k: v for k, v in t.items() if not k.startswith("logits/")}, "it is a classifier's backbone"),
        (lambda t: {k: v for k, v in t.items() if "expanded_conv_9/" not in k}, "expanded_conv_9/project/weights is"),
        (lambda t: {k: v for k, v in t.items() if not k.startswith("aspp0")}, "has no aspp0 with concat_projection"),
        (lambda t: t | layer("aspp9_squeeze", (1, 1, 2, 2)), "aspp9_squeeze/.* has no place in the models that"),
        (lambda t: t | {"logits/parts/weights": np.zeros((1, 1, 16, 2), np.float32)}, "has 2 last layers"),
        (lambda t: t | {"MobilenetV2/Conv/weights": np.zeros((3, 3, 3, 12), np.float32)}, "no width multiplier gives"),
    ],
)  # fmt: skip
def test_what_is_not_imported_is_refused(tensors, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read(checkpoint(tmp_path, change(tensors)), output_stride=16)


@pytest.mark.parametrize(
    ("hints", "message"),
    [
        ({}, "a checkpoint does not say its output stride; give it: output_stride=16"),
        ({"output_stride": 7}, "output_stride must be one of 8, 16, 32, got 7"),
        ({"output_stride": 16, "width_multiplier": 1.0}, "width_multiplier=1.0, but .* has width_multiplier=0.35"),
        ({"output_stride": 16, "head": "deeplabv3"}, "head=deeplabv3, but .* has head=tensorflow"),
    ],
)
def test_hints_that_are_missing_or_wrong(tensors, tmp_path, hints, message):
    with pytest.raises(ValueError, match=message):
        read(checkpoint(tmp_path, tensors), **hints)


def test_a_hint_that_the_graph_contradicts(real_data):
    with pytest.raises(ValueError, match=r"output_stride=16, but .* has output_stride=8; leave it out"):
        read(real_data(PORTRAIT), output_stride=16)
    with pytest.raises(ValueError, match=r"dense_prediction_cell=published, but .*.pb has none; leave it out"):
        read(real_data(PORTRAIT), dense_prediction_cell="published")
    read(real_data(PORTRAIT), output_stride=8, width_multiplier=0.5, head="tensorflow_short")


@pytest.mark.parametrize("name", ["model.h5", "model.pth", "model.tflite"])
def test_files_of_other_programs(tmp_path, name):
    (tmp_path / name).write_bytes(b"content")
    with pytest.raises(ValueError, match=r"is neither a frozen graph \(.pb\) nor a checkpoint"):
        read(tmp_path / name)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none.pb"):
        read(tmp_path / "none.pb")
    with pytest.raises(FileNotFoundError, match=r"none.index; a checkpoint is"):
        read(tmp_path / "none")
    with pytest.raises(ValueError, match="is a folder; name the frozen graph"):
        read(tmp_path)
