import json
import os
import re
import shutil
import time
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_shards import assert_same_samples, content, converted, die, in_another_process

from deeplab_recipes.data.dataset import SegmentationDataset
from deeplab_recipes.data.shards import convert as conversion
from deeplab_recipes.data.shards.source import Shards, open_source
from deeplab_recipes.data.shards.stores import Folder
from deeplab_recipes.data.sources import ADE20k, CamVid
from deeplab_recipes.data.sources import Folder as FolderSource
from deeplab_recipes.data.sources.base import Source
from deeplab_recipes.data.transforms import EvaluationTransform


@pytest.fixture
def root(make_ade20k) -> Path:
    return make_ade20k(11, 4, sizes=((40, 52), (44, 36)))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "made here/shards"


def test_round_trip(root, output):
    summary = converted(root, output)
    shards = Shards(output)
    assert isinstance(shards, Source)
    assert (shards.classes, shards.palette) == (ADE20k.classes, ADE20k.palette)
    for split in ("train", "validation"):
        assert_same_samples(shards, ADE20k(root), split)
    assert 2 < len(list(output.glob("train/*.bin"))) < 11
    assert not (output / ".convert").exists()
    assert re.match(r"11 train and 4 validation pairs of ADE20k in \d+ chunks, 0\.\d MB, in", str(summary))
    assert str(summary).endswith(f"train from them with data.root={output}")


@pytest.mark.parametrize(("name", "source"), [("camvid", CamVid), ("ade20k_mini", partial(ADE20k, drop_grey=False))])
def test_real_data(real_data, output, name, source):
    converted(real_data(name), output, source=source, splits=("validation",), chunk_mb=3, workers=2)
    assert_same_samples(Shards(output), source(real_data(name)), "validation")


def test_odd_names(root, output):
    for kind, ending in (("images", "jpg"), ("annotations", "png")):
        folder = root / kind / "validation"
        for number, name in enumerate(("a b", "ä\n", os.fsdecode(b"\xff")), start=1):
            (folder / f"ADE_val_{number:08d}.{ending}").rename(folder / f"{name}.{ending}")
    converted(root, output, workers=2)
    assert_same_samples(Shards(output), ADE20k(root), "validation")


def test_litdata_reads_them(root, output):
    import litdata

    converted(root, output)
    read = litdata.StreamingDataset(str(output / "validation"), shuffle=False)
    pairs = Shards(output).pairs("validation")
    assert len(read) == len(pairs)
    for i, pair in enumerate(pairs):
        name, image, label = map(bytes, read[i])
        assert (name.decode(), image, label) == (pair.image.name, pair.image.read_bytes(), pair.label.read_bytes())


def test_processes_make_no_difference(root, tmp_path):
    converted(root, tmp_path / "one")
    converted(root, tmp_path / "two", workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def decoded(file) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(file.read_bytes())).convert("RGB"))


def test_images_that_are_no_rgb_file_become_png_and_others_stay(root, output):
    images = sorted((root / "images/training").iterdir())
    for path, mode in zip(images, ("L", "CMYK"), strict=False):
        Image.open(path).convert(mode).save(path)
    Image.open(images[2]).save(images[2], "png")  # whatever its name says
    summary = converted(root, output)
    source, shards = ADE20k(root), Shards(output)
    stored = [pair.image.read_bytes() for pair in shards.pairs("train")]
    for original, pair, name in zip(source.pairs("train"), shards.pairs("train"), stored, strict=True):
        assert name.startswith(b"\x89PNG") == (original.image in images[:3])
        assert np.array_equal(decoded(original.image), decoded(pair.image))
    assert stored[2:] == [path.read_bytes() for path in images[2:]]
    assert "2 images were no RGB JPEG or PNG and are stored as PNG" in str(summary)


def test_killed_at_every_write(root, tmp_path, monkeypatch):
    """In the middle of a file, and right behind it."""
    converted(root, tmp_path / "whole")
    expected, write = content(tmp_path / "whole"), Folder.write
    writes = []
    monkeypatch.setattr(Folder, "write", lambda *a: (writes.append(a[1]), write(*a)))
    converted(root, tmp_path / "counted")
    assert 8 < len(writes) < 25
    assert writes[-1] == "manifest.json"

    def dying(self: Folder, name: str, content: bytes) -> None:
        left.pop()
        if not left and half:
            path = self.path / f"{name}.part"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content[: len(content) // 2])
            die()
        write(self, name, content)
        if not left:
            die()

    for moment in range(1, len(writes) + 1):
        half, left = bool(moment % 2), [None] * moment
        output = tmp_path / f"killed {moment}"
        monkeypatch.setattr(Folder, "write", dying)
        process = in_another_process(lambda to=output: converted(root, to))
        process.join()
        monkeypatch.setattr(Folder, "write", write)
        assert process.exitcode == -9
        records = [json.loads(p.read_bytes())["file"] for p in output.glob(".convert/*-*.json")]
        stamps = {file: (output / file).stat().st_mtime_ns for file in records}
        if not (output / "manifest.json").exists():
            with pytest.raises(FileNotFoundError, match=r"is not finished; run its|no shards"):
                open_source(ADE20k, output) if stamps else Shards(output)
        converted(root, output)
        assert content(output) == expected
        assert all((output / file).stat().st_mtime_ns == stamp for file, stamp in stamps.items())
    assert len(stamps) > 2


@pytest.mark.parametrize("written", [0, 1, 4, 9])
def test_killed_with_several_processes(make_ade20k, tmp_path, written):
    """As soon as some chunks are written, whatever the processes do then."""
    root, output = make_ade20k(60, 10, sizes=((200, 300),)), tmp_path / "killed"
    converted(root, tmp_path / "whole", workers=2, chunk_mb=0.1)
    process = in_another_process(lambda: converted(root, output, workers=2, chunk_mb=0.1))
    while process.is_alive() and not (output / ".convert/plan.json").exists():
        time.sleep(0.001)
    while process.is_alive() and len(list(output.glob(".convert/*-*.json"))) < written:
        time.sleep(0.001)
    process.kill()
    process.join()
    assert converted(root, output, workers=2, chunk_mb=0.1).kept >= written
    assert content(output) == content(tmp_path / "whole")


def test_the_same_again_does_nothing(root, output):
    converted(root, output)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    summary = converted(root, output)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before
    assert summary.kept == len(list(output.rglob("*.bin")))
    assert f"({summary.kept} of them were there already)" in str(summary)


@pytest.mark.parametrize("damage", ["cut", "byte", "gone", "index", "manifest"])
def test_damage_is_mended(root, output, damage):
    converted(root, output)
    expected = content(output)
    path = output / {"index": "train/index.json", "manifest": "manifest.json"}.get(damage, "train/chunk-0-1.bin")
    other = (output / "train/chunk-0-0.bin").stat().st_mtime_ns
    whole = path.read_bytes()
    if damage in ("gone", "index"):
        path.unlink()
    else:
        path.write_bytes(whole[:-3] if damage == "cut" else whole[:90] + bytes([whole[90] ^ 1]) + whole[91:])
    converted(root, output)
    assert content(output) == expected
    if damage != "manifest":
        assert (output / "train/chunk-0-0.bin").stat().st_mtime_ns == other


def test_changed_and_removed_files_are_converted_again(root, output, make_patches):
    converted(root, output, chunk_mb=0.008)
    path = ADE20k(root).pairs("train")[-1].label
    labels = np.asarray(Image.open(path)).copy()
    labels[:3] = 4
    Image.fromarray(labels).save(path)
    kept = converted(root, output, chunk_mb=0.008).kept
    assert kept == len(list(output.rglob("*.bin"))) - 1
    for pair in ADE20k(root).pairs("train")[3:]:
        pair.image.unlink()
        pair.label.unlink()
    converted(root, output, chunk_mb=0.008)
    assert_same_samples(Shards(output), ADE20k(root), "train")
    assert len(list(output.glob("train/*.bin"))) <= 3


def test_a_changed_class_file_is_converted_again(tmp_path, output):
    """Names and colours are the same, but the masks mean something else."""
    for name in ("a", "b", "c"):
        for folder, mode in (("images", "RGB"), ("masks", "L")):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.new(mode, (40, 40), ord(name) - ord("a")).save(tmp_path / folder / f"{name}.png")
    for numbers in ((0, 1, 2), (2, 1, 0)):
        classes = ", ".join(f"{{name: class {i}, value: {value}}}" for i, value in enumerate(numbers))
        (tmp_path / "classes.yaml").write_text(f"classes: [{classes}]\n")
        assert converted(tmp_path, output, source=FolderSource).kept == 0
        assert_same_samples(Shards(output), FolderSource(tmp_path), "train")
    assert converted(tmp_path, output, source=FolderSource).kept > 0


def test_unusable_pairs_keep_their_place(root, output, truncate):
    pairs = ADE20k(root).pairs("train")
    truncate(pairs[2].image)
    with pytest.raises(ValueError, match=f"{pairs[2].image.name}.*replace it or remove the pair"):
        converted(root, output)
    summary = converted(root, output, on_corrupt="skip")
    assert f"1 unusable pairs are empty: {pairs[2].image.name}" in str(summary)
    shards = Shards(output)
    transform = EvaluationTransform("square", (40, 40))
    datasets = [SegmentationDataset(s, "train", transform, on_corrupt="skip") for s in (shards, ADE20k(root))]
    for i in range(len(pairs)):
        ours, theirs = (dataset[i] for dataset in datasets)
        assert ours["corrupt"] == theirs["corrupt"] == (i == 2)
        assert np.array_equal(ours["image"], theirs["image"])
    with pytest.raises(ValueError, match=f"{pairs[2].image.name} could not be read when it was converted"):
        SegmentationDataset(shards, "train", transform)[2]
    with pytest.raises(ValueError, match="replace it or remove"):  # a stricter conversion does not keep it
        converted(root, output)


def test_a_process_that_fails(root, output, truncate):
    pair = ADE20k(root).pairs("train")[7]
    whole = pair.label.read_bytes()
    truncate(pair.label)
    with pytest.raises(ValueError, match=rf"{pair.label.name}.*cannot be read as a picture"):
        converted(root, output, workers=2)
    written = len(list(output.rglob("*.bin")))
    pair.label.write_bytes(whole)
    assert converted(root, output).kept == written > 0


def test_a_process_that_is_killed(root, output, monkeypatch):
    monkeypatch.setattr(conversion, "write_chunk", lambda job, work: die())
    with pytest.raises(ChildProcessError, match=r"was killed \(for want of memory\?\); try data\.workers=1, and the"):
        converted(root, output, workers=2)


def test_a_set_that_does_not_fit_is_not_skipped(root, output):
    for pair in ADE20k(root).pairs("train"):
        Image.fromarray(np.full((40, 52), 200, np.uint8)).save(pair.label)
    with pytest.raises(ValueError, match="label value 200"):
        converted(root, output, on_corrupt="skip", chunk_mb=1)


def test_output_that_holds_something_else(root, output, tmp_path):
    output.mkdir(parents=True)
    (output / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"holds something else \(thesis\.tex\); choose an empty place"):
        converted(root, output)
    (output / "thesis.tex").rename(output / "manifest.json")
    with pytest.raises(FileExistsError, match=r"holds something else \(manifest\.json\)"):
        converted(root, output)
    assert [path.name for path in output.iterdir()] == ["manifest.json"]
    with pytest.raises(FileExistsError, match=r"manifest\.json is a file; choose a folder"):
        converted(root, output / "manifest.json")
    with pytest.raises(FileExistsError, match="holds something else"):
        converted(root, root)


def test_shards_cannot_be_converted_into_themselves(root, output):
    """They would be overwritten while they are read."""
    converted(root, output)
    before = content(output)
    with pytest.raises(FileExistsError, match=r"output=.*shards is data\.root itself.*choose another place"):
        converted(output, output.parent / "." / output.name)
    assert content(output) == before


def test_places_of_another_kind_are_no_folders(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("gs://bucket/shards", "S3://bucket/shards"):
        with pytest.raises(
            ValueError, match=rf"{place} is no place for data; valid are a folder and, for shards, s3://BUCKET"
        ):
            converted(root, place)
        with pytest.raises(ValueError, match=rf"{place} is no place for data"):
            open_source(ADE20k, place)
    assert [path.name for path in tmp_path.iterdir()] == [root.name]


def test_output_of_other_settings(root, output):
    converted(root, output)
    before = content(output)
    with pytest.raises(FileExistsError, match=r'another source: .*"drop_grey": true.*now .*"drop_grey": false'):
        converted(root, output, source=partial(ADE20k, drop_grey=False))
    with pytest.raises(FileExistsError, match=r"another chunk_mb: 0\.01, now 0\.02; choose another output, or"):
        converted(root, output, chunk_mb=0.02)
    with pytest.raises(FileExistsError, match=r'another splits: \["train", "validation"\], now \["train"\]'):
        converted(root, output, splits=("train",))
    assert content(output) == before


def test_output_that_cannot_be_written(root, output, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/shards/\.convert cannot be written \(Not a directory\); choose another"):
        converted(root, tmp_path / "file/shards")
    output.mkdir(parents=True)
    (output / ".convert").mkdir()
    (output / ".convert/plan.json.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"plan\.json cannot be written \(No space left on device\); free some space"):
        converted(root, output)
    converted(root, output)


def test_a_second_conversion_at_the_same_time_is_refused(root, output, monkeypatch):
    monkeypatch.setattr(conversion, "LOCK_SECONDS", 0.1)
    with conversion._alone(output / ".convert", str(output)):
        process = in_another_process(lambda: os._exit(refused(root, output)))
        process.join()
    assert process.exitcode == 7


def refused(root: Path, output: Path) -> int:
    with pytest.raises(BlockingIOError, match=r"another conversion into .* is running; wait until it ends"):
        converted(root, output)
    return 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"splits": ()}, r"splits is \[\]; it takes one or more parts"),
        ({"splits": ("train", "train")}, r"splits is .*each once"),
        ({"splits": ("val",)}, r"split is 'val'; valid are train, validation"),
        ({"chunk_mb": 0}, r"chunk_mb is 0; it must be above 0 and at most 256"),
        ({"chunk_mb": 5000}, r"chunk_mb is 5000"),
        ({"workers": -1}, r"data\.workers is -1; it takes a whole number"),
        ({"workers": "many"}, r"data\.workers is 'many'"),
    ],
)
def test_wrong_settings(root, output, settings, message):
    with pytest.raises(ValueError, match=message):
        converted(root, output, **settings)
    assert not output.exists()


def test_without_litdata(root, output, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "litdata.streaming.writer", None)
    with pytest.raises(ImportError, match=r"litdata is not installed; .*pip install 'deeplab-recipes\[shards\]'"):
        converted(root, output)


def test_shards_can_be_copied(root, output, tmp_path):
    """A conversion's source may be shards: that takes them to a bucket."""
    converted(root, output)
    shutil.rmtree(root / "images" / "training")
    converted(output, tmp_path / "copy")
    assert_same_samples(Shards(tmp_path / "copy"), Shards(output), "train")
