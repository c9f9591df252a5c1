import io
import tarfile
import zipfile

import numpy as np
import pytest
from tensorflow_files import GraphWriter

from deeplab_recipes.model.importers.graph_def import FrozenGraph

PORTRAIT = "tensorflow/deeplab_mnv2_dm05_portrait_frozen_graph.pb"
KERNEL = np.arange(3 * 3 * 2 * 4, dtype=np.float32).reshape(3, 3, 2, 4)


@pytest.fixture
def writer() -> GraphWriter:
    return GraphWriter()


def test_the_portrait_graph(real_data):
    graph = FrozenGraph(real_data(PORTRAIT))
    assert (len(graph.tensors), graph.constants) == (272, 105)
    assert graph.tensors["MobilenetV2/Conv/weights"].shape == (3, 3, 3, 16)
    assert graph.tensors["MobilenetV2/expanded_conv_16/depthwise/depthwise_weights"].shape == (3, 3, 480, 1)
    # As TensorFlow 2.21's make_ndarray reads them.
    np.testing.assert_allclose(graph.tensors["logits/semantic/biases"], [-0.030100849, 0.030100998], rtol=1e-6)
    np.testing.assert_allclose(
        graph.tensors["MobilenetV2/expanded_conv/project/BatchNorm/gamma"][:3],
        [5.6178126, 5.808323, 3.976099],
        rtol=1e-6,
    )
    assert graph.crop_size() == (513, 513)
    assert graph.padding_pixel() == (127.5, 127.5, 127.5)
    assert graph.strides("MobilenetV2/Conv") == (2, 2)
    assert graph.rates("MobilenetV2/expanded_conv_6/depthwise") == (1, 1)
    assert graph.rates("MobilenetV2/expanded_conv_7/depthwise") == (2, 2)
    assert graph.rates("MobilenetV2/expanded_conv_16/depthwise") == (4, 4)
    assert graph.epsilon("MobilenetV2/Conv") == pytest.approx(1e-3)
    assert graph.epsilon("aspp0") == pytest.approx(1.001e-5)
    assert graph.pooling("image_pooling") == (65, 65)
    assert graph.pooling("aspp0") is None
    assert graph.reads_from("aspp0", ["MobilenetV2/expanded_conv_15", "MobilenetV2/expanded_conv_16"]) == (
        "MobilenetV2/expanded_conv_16"
    )


def test_weights_are_told_from_other_constants(writer, tmp_path):
    writer.variable("a/weights", KERNEL)
    writer.variable("a/biases", [1.5, -2.0], "float16")
    writer.constant("Resize/size", [65, 65], "int32")
    graph = FrozenGraph(writer.write(tmp_path / "graph.pb"))
    assert list(graph.tensors) == ["a/weights", "a/biases"]
    assert graph.constants == 1
    np.testing.assert_array_equal(graph.tensors["a/weights"], KERNEL)
    assert graph.tensors["a/biases"].tolist() == [1.5, -2.0]


def test_rates_of_either_form(writer, tmp_path):
    depthwise = KERNEL[..., :1]
    writer.convolution("old", "input", depthwise, depthwise=True, rate=(6, 3))
    writer.convolution("new", "old/Relu", depthwise, depthwise=True, dilations=(1, 4, 2, 1), strides=(1, 2, 2, 1))
    graph = FrozenGraph(writer.write(tmp_path / "graph.pb"))
    assert (graph.rates("old"), graph.strides("old")) == ((6, 3), (1, 1))
    assert (graph.rates("new"), graph.strides("new")) == ((4, 2), (2, 2))
    assert graph.reads_from("new", ["other", "old"]) == "old"
    assert graph.reads_from("old", ["other", "new"]) is None


def test_epsilon_of_a_norm_that_is_not_fused(writer, tmp_path):
    writer.constant("a/BatchNorm/batchnorm/add/y", 0.001)
    writer.variable("a/BatchNorm/moving_variance", [1.0])
    writer.node("Add", "a/BatchNorm/batchnorm/add", "a/BatchNorm/moving_variance/read", "a/BatchNorm/batchnorm/add/y")
    graph = FrozenGraph(writer.write(tmp_path / "graph.pb"))
    assert graph.epsilon("a") == pytest.approx(0.001)
    assert graph.epsilon("b") is None


def test_a_mean_pools_everything(writer, tmp_path):
    writer.node("Mean", "Mean", "input")
    writer.node("AvgPool", "AvgPool", "input", ksize=(1, 9, 5, 1))
    writer.convolution("whole", "Mean", KERNEL)
    writer.convolution("parts", "AvgPool:0", KERNEL)
    graph = FrozenGraph(writer.write(tmp_path / "graph.pb"))
    assert graph.pooling("whole") == (0, 0)
    assert graph.pooling("parts") == (9, 5)


def test_the_range_that_a_graph_resizes_to(writer, tmp_path):
    """As export_model.py writes --min_resize_value=300 --max_resize_value=257 --resize_factor=16."""
    scope = "resize_to_range"
    smallest = writer.node("Cast", f"{scope}/Cast", writer.constant(f"{scope}/Cast/x", 300, "int32"))
    largest = writer.node("Cast", f"{scope}/Cast_1", writer.constant(f"{scope}/Cast_1/x", 257, "int32"))
    factor = writer.constant(f"{scope}/mod/y", 16.0)
    less = writer.node("Sub", f"{scope}/sub", largest, writer.constant(f"{scope}/sub/y", 1.0))
    largest = writer.node("Sub", f"{scope}/sub_1", largest, writer.node("FloorMod", f"{scope}/mod", less, factor))
    sides = [writer.node(kind, f"{scope}/{kind}", "height", "width") for kind in ("Minimum", "Maximum")]
    writer.node("RealDiv", f"{scope}/truediv", smallest, sides[0])
    writer.node("RealDiv", f"{scope}/truediv_1", largest, sides[1])
    path = tmp_path / "graph.pb"
    assert FrozenGraph(writer.write(path)).input_range() == {"min": 300, "max": 257, "factor": 16}
    assert FrozenGraph(writer.write(path)).crop_size() is None


def test_without_padding_there_is_no_size_of_it(writer, tmp_path):
    writer.node("Placeholder", "ImageTensor")
    graph = FrozenGraph(writer.write(tmp_path / "graph.pb"))
    assert (graph.crop_size(), graph.padding_pixel(), graph.input_range(), graph.tensors) == (None, None, None, {})


def test_an_archive_of_the_model_zoo(writer, tmp_path):
    writer.variable("a/weights", KERNEL)
    content = writer.graph.SerializeToString()
    path = tmp_path / "model.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, data in (("model/model.ckpt.index", b"x"), ("model/frozen_inference_graph.pb", content)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    np.testing.assert_array_equal(FrozenGraph(path).tensors["a/weights"], KERNEL)
    with tarfile.open(path, "w:gz") as archive:
        archive.add(__file__, "model/readme")
    with pytest.raises(ValueError, match=r"model.tar.gz holds no .pb file"):
        FrozenGraph(path)


def test_a_graph_that_is_cut_short(real_data, tmp_path):
    path = tmp_path / "graph.pb"
    content = real_data(PORTRAIT).read_bytes()
    for end in (1000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:end])
        with pytest.raises(ValueError, match=r"graph.pb is no frozen TensorFlow graph, or is cut short"):
            FrozenGraph(path)


def test_other_files(tmp_path):
    path = tmp_path / "other.pb"
    for content in (b"", b"any text\n" * 50, b"\x89HDF\r\n\x1a\n" + bytes(100), b"\x08\x01\x12\x00"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"other.pb is no frozen TensorFlow graph"):
            FrozenGraph(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", "a torch file")
    with pytest.raises(ValueError, match=r"other.pb is no frozen TensorFlow graph"):
        FrozenGraph(path)
    with pytest.raises(FileNotFoundError):
        FrozenGraph(tmp_path / "none.pb")


def test_quantised_weights_are_refused(writer, tmp_path):
    writer.node("FakeQuantWithMinMaxVars", "quantised", "input")
    with pytest.raises(ValueError, match=r"quantised weights \(operation FakeQuantWithMinMaxVars\)"):
        FrozenGraph(writer.write(tmp_path / "graph.pb"))


def test_a_graph_that_is_not_frozen(writer, tmp_path):
    writer.node("VariableV2", "a/size")
    graph = FrozenGraph(writer.write(tmp_path / "graph.pb"))
    with pytest.raises(ValueError, match=r"a/size is no constant; freeze the graph"):
        graph.constant("a/size")


def test_a_constant_with_too_few_values(writer, tmp_path):
    writer.variable("a/weights", KERNEL)
    writer.graph.node[0].attr["value"].tensor.tensor_content = b"1234567"
    graph = FrozenGraph(writer.write(tmp_path / "graph.pb"))
    with pytest.raises(ValueError, match=r"the tensor a/weights cannot be read"):
        graph.tensors  # noqa: B018
