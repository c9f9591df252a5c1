import os
import pickle
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from small_shards import content, converted

from deeplab_recipes.cli import main
from deeplab_recipes.data import SegmentationDataModule
from deeplab_recipes.data.shards.source import Shards, open_source
from deeplab_recipes.data.shards.tiled_jpeg import is_tiled
from deeplab_recipes.data.sources import ADE20k, CamVid
from deeplab_recipes.data.sources.base import read_pair
from deeplab_recipes.data.sources.shapes import CLASSES

SIZES = {"crop_size": (40, 48), "base_size": (40, 48), "evaluate_sizes": {"square": (36, 44), "keep_ratio": (60, 40)}}


@pytest.fixture
def root(make_ade20k) -> Path:
    return make_ade20k(11, 4, sizes=((40, 52), (44, 36)))


@pytest.fixture
def shards(root, tmp_path) -> Path:
    converted(root, tmp_path / "shards")
    return tmp_path / "shards"


def module(root, source=ADE20k, **settings) -> SegmentationDataModule:
    return SegmentationDataModule(source, root, **{"batch_size": 3, "workers": 0, **SIZES, **settings})


def same(ours: dict, theirs: dict) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_folder(root, shards, workers):
    ours, theirs = module(shards, workers=workers), module(root)
    ours.check()
    assert ours.sampler().steps_per_epoch == theirs.sampler().steps_per_epoch == 3
    for one, other in ((ours.train_dataloader(), theirs.train_dataloader()),):
        assert all(same(a, b) for a, b in zip(one, other, strict=True))
    for one, other in zip(ours.val_dataloader(), theirs.val_dataloader(), strict=True):
        assert all(same(a, b) for a, b in zip(one, other, strict=True))


def test_tiles_change_nothing_but_the_speed(root, tmp_path):
    """The colours of a last column that is filled up are interpolated from the filling."""
    converted(root, tmp_path / "tiled", tiles=True)
    tiled, source = Shards(tmp_path / "tiled"), ADE20k(root)
    assert all(is_tiled(pair.image.read_bytes()) for pair in tiled.pairs("train"))
    for ours, theirs in zip(tiled.pairs("train"), source.pairs("train"), strict=True):
        image, labels = read_pair(ours, tiled)
        expected, expected_labels = read_pair(theirs, source)
        assert np.array_equal(image[:, :-1], expected[:, :-1])
        assert np.array_equal(labels, expected_labels)
    ours, theirs = module(tmp_path / "tiled"), module(root)
    for one, other in zip(ours.train_dataloader(), theirs.train_dataloader(), strict=True):
        assert torch.equal(one["label"], other["label"])
        assert (one["image"] != other["image"]).any(1).float().mean() < 0.05
    with pytest.raises(FileExistsError, match="another tiles: true, now false"):
        converted(root, tmp_path / "tiled", tiles=False)


def test_going_on_in_mid_epoch(root, shards):
    whole = list(module(root).train_dataloader())
    for steps in (1, 2):
        data = module(shards)
        data.load_state_dict({"steps": steps})
        rest = list(data.train_dataloader())
        assert len(rest) == 3 - steps
        assert all(same(a, b) for a, b in zip(rest, whole[steps:], strict=True))


def test_pairs_are_small_and_travel(shards):
    source = pickle.loads(pickle.dumps(Shards(shards)))
    pair = source.pairs("validation")[1]
    assert len(pickle.dumps(pair)) < 500
    assert pickle.loads(pickle.dumps(pair)) == pair
    with pytest.raises(ValueError, match=r"split is 'test'; valid are train, validation"):
        source.pairs("test")


def test_a_folder_with_a_manifest_of_its_own_is_no_shards(root):
    (root / "manifest.json").write_text('{"files": []}')
    assert isinstance(open_source(ADE20k, root), ADE20k)


def test_shards_of_another_source_or_with_other_settings(shards):
    with pytest.raises(ValueError, match=r"holds shards of ADE20k \(150 classes\), but the recipe's data are CamVid"):
        module(shards, source=CamVid)
    with pytest.raises(ValueError, match=r"made with data\.source\.drop_grey=true, this run has false; set data"):
        module(shards, source=partial(ADE20k, drop_grey=False))
    assert isinstance(open_source(partial(ADE20k, drop_grey=True), shards), Shards)


def test_shards_of_other_classes(shards, monkeypatch):
    monkeypatch.setattr(ADE20k, "classes", (*ADE20k.classes[:7], "futon", *ADE20k.classes[8:]))
    with pytest.raises(ValueError, match=r"other classes \(class 7 is 'bed' there and 'futon' in the recipe\)"):
        open_source(ADE20k, shards)
    monkeypatch.setattr(ADE20k, "classes", ADE20k.classes[:7])
    with pytest.raises(ValueError, match=r"class 7 is 'bed' there and none in the recipe"):
        open_source(ADE20k, shards)


def test_cache_is_for_buckets(shards, tmp_path):
    with pytest.raises(ValueError, match=r"data\.cache=.*is for shards on s3://.*leave it out"):
        module(shards, cache=str(tmp_path))


def test_unfinished_shards(root, shards):
    (shards / ".convert").mkdir()
    (shards / "manifest.json").rename(shards / ".convert" / "plan.json")
    with pytest.raises(
        FileNotFoundError, match=r"into .*shards is not finished; run its deeplab convert command again"
    ):
        module(shards)
    shutil.rmtree(shards / ".convert")
    with pytest.raises(FileNotFoundError, match=r"has no images/ folder"):
        module(shards)


def test_chunks_cut_short_or_missing_are_found_at_the_start(shards):
    path = shards / "train/chunk-0-1.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"train/chunk-0-1\.bin is damaged: it has \d+ bytes instead of \d+; run the"):
        Shards(shards)
    path.unlink()
    (shards / "train/chunk-0-2.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"train/chunk-0-1\.bin is missing \(and 1 more\); run the deeplab"):
        Shards(shards)


def test_any_changed_byte_of_a_sample_is_found_when_it_is_read(shards):
    source = Shards(shards)
    for file, read in ((p.image, p.image.read_bytes) for p in source.pairs("train")[4:5]):
        refuses_changed_bytes(file, read)
    pair = source.pairs("train")[4]
    refuses_changed_bytes(pair.label, lambda: source.labels(pair))


def refuses_changed_bytes(file, read):
    whole = file.path.read_bytes()
    for at in np.linspace(file.offset, file.offset + file.length - 1, 20).astype(int):
        file.path.write_bytes(whole[:at] + bytes([whole[at] ^ 32]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=rf"{file.path.name} is damaged: .*{file.name} .*run the deeplab convert"):
            read()
    file.path.write_bytes(whole[: file.offset + file.length - 1])
    with pytest.raises(ValueError, match=rf"{file.path.name} is cut short: {file.name} begins at byte \d+; run the"):
        read()
    file.path.write_bytes(whole)
    read()


def test_damaged_samples_can_be_skipped(shards):
    source = Shards(shards)
    label = source.pairs("train")[4].label
    content = bytearray(label.path.read_bytes())
    content[label.offset + 9] ^= 1
    label.path.write_bytes(content)
    data = module(shards, on_corrupt="skip", batch_size=11)
    (batch,) = data.train_dataloader()
    assert batch["index"][batch["corrupt"]].tolist() == [4]
    with pytest.raises(ValueError, match="is damaged"):
        module(shards).check()


def test_the_command(make_ade20k, tmp_path, monkeypatch, capfd):
    """Convert, train from it, find a damage, mend it."""
    monkeypatch.chdir(tmp_path)
    scenes = ["data=drawn_scenes", "data.source.training=12", "data.source.validation=3"]
    small = [
        "+recipe=quickstart", *scenes[1:], "trainer.max_steps=2", "pictures=0", "data.workers=0", "batch_size=4",
        "model=deeplabv3plus_mobilenet_v2", "model.width_multiplier=0.35", "model.aspp_channels=16",
        "model.output_stride=32", "model.aspp_dilations=[1,2]", "trainer.accelerator=cpu", "~logger",
    ]  # fmt: skip

    def deeplab(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["deeplab", *words])
        try:
            main()
        except SystemExit as stop:
            if isinstance(stop.code, str):
                return stop.code
        return "".join(capfd.readouterr())

    assert "output is not set; say where the shards go" in deeplab("convert", *scenes)
    assert "data.flip=0.1 has no part in a conversion" in deeplab("convert", *scenes, "output=out", "data.flip=0.1")
    assert "12 train and 3 validation pairs of DrawnScenes" in deeplab("convert", *scenes, "output=out")
    expected = content(tmp_path / "out")
    Path("data").rename("away")
    assert "everything is in first" in deeplab("train", *small, "data.root=out", "run_dir=first")
    assert len(CLASSES) == len(Shards("out").classes)
    assert "training images        12" in deeplab("plan", *small, "data.root=out", "measure=false")
    chunk = Path("out/train/chunk-0-0.bin")
    os.truncate(chunk, 1000)
    answer = deeplab("train", *small, "data.root=out", "run_dir=second")
    assert answer.startswith("error: out/train/chunk-0-0.bin is damaged: it has 1000 bytes instead of")
    assert "run the deeplab convert command that made it again" in answer
    Path("away").rename("data")
    assert "(1 of them was there already)" in deeplab("convert", *scenes, "output=out")
    assert content(tmp_path / "out") == expected
