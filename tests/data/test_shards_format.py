import json

import numpy as np
import pytest

from deeplab_recipes.data.shards import label_codec
from deeplab_recipes.data.shards.manifest import Chunk, Manifest, Origin, Sample, describe_source
from deeplab_recipes.data.sources import ADE20k, CamVid


@pytest.mark.parametrize("shape", [(1, 1), (36, 44), (300, 5)])
def test_labels_come_back(make_patches, shape):
    for labels in (make_patches(3, *shape, values=150), np.full(shape, 255, np.uint8), make_patches(1, *shape).T):
        packed = label_codec.pack(labels)
        unpacked = label_codec.unpack(packed)
        assert np.array_equal(unpacked, labels)
        assert unpacked.dtype == np.uint8
        assert unpacked.flags.writeable
        assert label_codec.size(packed[: label_codec.HEADER_BYTES]) == labels.shape


def test_labels_that_are_none(make_patches):
    packed = label_codec.pack(make_patches(3, 30, 40))
    for wrong in (b"", b"\x89PNG" + packed[4:], packed[:8]):
        with pytest.raises(ValueError, match="no packed labels"):
            label_codec.unpack(wrong)
    with pytest.raises(ValueError, match="have format 9, this program reads 1"):
        label_codec.unpack(packed[:3] + b"\x09" + packed[4:])
    for wrong in (packed[:-20], packed[:30] + b"\0\0\0\0" + packed[34:], packed[:4] + b"\x05" + packed[5:]):
        with pytest.raises(ValueError, match=r"packed labels (are damaged|hold)"):
            label_codec.unpack(wrong)
    with pytest.raises(ValueError, match=r"labels are \(H, W\) uint8, these are \(3, 4\) int64"):
        label_codec.pack(np.zeros((3, 4), np.int64))


def manifest() -> Manifest:
    samples = [Sample("ä \n.jpg", "b.png", 20, 100, 10, 1, 2), Sample("broken.jpg", "c.png", 130, 0, 0, 0, 0)]
    origin = Origin(describe_source(CamVid), CamVid.classes, CamVid.palette, ("train",), 16)
    return Manifest(origin, {"train": [Chunk("train/chunk-0-0.bin", 200, "ab", "cd", samples)]})


def test_manifest_comes_back():
    content = manifest().to_bytes()
    read = Manifest.from_bytes(content, place="there")
    assert read == manifest()
    assert read.counts() == {"train": 2}
    assert read.unusable() == ["broken.jpg"]
    values = json.loads(content)
    assert (values["format_version"], values["counts"], values["source"]["name"]) == (1, {"train": 2}, "CamVid")
    assert values["sha256"] == read.seal


def test_manifest_with_any_byte_changed_is_refused():
    content = manifest().to_bytes()
    for at in range(0, len(content), 7):
        wrong = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        with pytest.raises(ValueError, match=r"there/manifest\.json is damaged, .*deeplab convert"):
            Manifest.from_bytes(wrong, place="there")
        with pytest.raises(ValueError, match="is damaged"):
            Manifest.from_bytes(content[:at], place="there")


def test_manifest_of_another_version(monkeypatch):
    monkeypatch.setattr("deeplab_recipes.data.shards.manifest.FORMAT_VERSION", 2)
    content = manifest().to_bytes()
    monkeypatch.undo()
    with pytest.raises(ValueError, match="of version 2, this program reads version 1; convert the data again"):
        Manifest.from_bytes(content, place="there")


def test_a_source_is_described_with_its_defaults():
    assert describe_source(ADE20k) == {"name": "ADE20k", "settings": {"drop_grey": True}}
