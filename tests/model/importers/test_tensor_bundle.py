import struct

import numpy as np
import pytest
from tensorflow_files import write_checkpoint

from deeplab_recipes.model.importers.tensor_bundle import Checkpoint

RNG = np.random.default_rng(0)
TENSORS = {
    "MobilenetV2/Conv/weights": RNG.normal(size=(3, 3, 3, 8)).astype(np.float32),
    "MobilenetV2/Conv/BatchNorm/gamma": RNG.normal(size=8).astype(np.float32),
    "MobilenetV2/Conv/BatchNorm/beta": RNG.normal(size=8).astype(np.float16),
    "MobilenetV2/expanded_conv/depthwise/depthwise_weights": RNG.normal(size=(3, 3, 8, 1)).astype(np.float32),
    "logits/semantic/biases": RNG.normal(size=300).astype(np.float64),
    "global_step": np.array(30000, np.int64),
}


@pytest.fixture
def prefix(tmp_path):
    return write_checkpoint(tmp_path / "model.ckpt-30000", TENSORS)


@pytest.mark.parametrize("ending", ["", ".index", ".data-00000-of-00001", ".meta"])
def test_every_tensor_comes_back(prefix, ending):
    checkpoint = Checkpoint(f"{prefix}{ending}")
    assert sorted(checkpoint.entries) == sorted(TENSORS)
    for name, values in TENSORS.items():
        found = checkpoint.tensor(name)
        assert found.dtype == values.dtype
        assert checkpoint.shape(name) == values.shape
        np.testing.assert_array_equal(found, values)


def test_a_missing_index(tmp_path):
    (tmp_path / "model.ckpt.meta").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=r"no .*model.ckpt.index; a checkpoint is model.ckpt.index and .data"):
        Checkpoint(tmp_path / "model.ckpt.meta")


def test_a_missing_data_file(prefix):
    prefix.with_name("model.ckpt-30000.data-00000-of-00001").unlink()
    with pytest.raises(FileNotFoundError, match=r"data-00000-of-00001, which holds global_step"):
        Checkpoint(prefix).tensor("global_step")


def test_damaged_values(prefix):
    data = prefix.with_name("model.ckpt-30000.data-00000-of-00001")
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    checkpoint = Checkpoint(prefix)
    checkpoint.tensor("global_step")
    with pytest.raises(ValueError, match="the tensor logits/semantic/biases fails its checksum; copy it anew"):
        checkpoint.tensor("logits/semantic/biases")
    data.write_bytes(content[:-9])
    with pytest.raises(ValueError, match="damaged or cut short"):
        checkpoint.tensor("logits/semantic/biases")


def test_a_damaged_index(prefix):
    index = prefix.with_name("model.ckpt-30000.index")
    whole = index.read_bytes()
    for place in range(0, len(whole), 7):
        content = bytearray(whole)
        content[place] ^= 0x11
        index.write_bytes(content)
        try:
            found = Checkpoint(prefix)
        except ValueError as error:
            assert "is no index of a TensorFlow checkpoint, or is damaged" in str(error)  # noqa: PT017
        else:  # a byte of the padding between the footer's handles and its end
            assert len(found.entries) == len(TENSORS)
    for content in (b"", whole[:-1], whole[:60], whole[20:], b"text " * 40, struct.pack("<Q", 0) * 8):
        index.write_bytes(content)
        with pytest.raises(ValueError, match="is no index of a TensorFlow checkpoint, or is damaged"):
            Checkpoint(prefix)


def test_a_type_that_is_not_read(prefix):
    checkpoint = Checkpoint(prefix)
    entry = checkpoint.entries["global_step"]
    checkpoint.entries["global_step"] = entry._replace(dtype=7)
    with pytest.raises(ValueError, match="global_step is of TensorFlow's type 7, which is not read"):
        checkpoint.tensor("global_step")
    checkpoint.entries["global_step"] = entry._replace(sliced=True)
    with pytest.raises(ValueError, match="global_step is saved in slices"):
        checkpoint.tensor("global_step")


def test_tensorflow_s_own(tmp_path):
    """The real writer, where it is installed."""
    tf = pytest.importorskip("tensorflow", reason="needs TensorFlow").compat.v1
    with tf.Graph().as_default(), tf.Session() as session:
        made = {name: tf.get_variable(name, initializer=values) for name, values in TENSORS.items()}
        session.run(tf.global_variables_initializer())
        prefix = tf.train.Saver(list(made.values())).save(session, str(tmp_path / "model.ckpt"))
    checkpoint = Checkpoint(prefix)
    assert sorted(checkpoint.entries) == sorted(TENSORS)
    for name, values in TENSORS.items():
        np.testing.assert_array_equal(checkpoint.tensor(name), values)
