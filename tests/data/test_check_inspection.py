import os
import time
from multiprocessing import get_context

import numpy as np
import pytest
from labelled_set import HEIGHT, WIDTH, LabelledSet, bands, photograph, write_pair, write_set
from PIL import Image

from deeplab_recipes.data.checking import inspection
from deeplab_recipes.data.checking.inspection import inspect
from deeplab_recipes.data.sources.base import read_pair


def look(source, processes=0):
    return inspect({part: source.pairs(part) for part in ("train", "validation")}, source, processes=processes)


def kinds(tally) -> list[tuple[str, str]]:
    return [(finding.kind, os.path.basename(finding.file)) for finding in tally.findings]


def test_counts_are_those_of_the_labels_as_read(tmp_path):
    source = write_set(tmp_path)
    for part, tally in look(source).parts.items():
        labels = [read_pair(pair, source)[1] for pair in source.pairs(part)]
        assert tally.pixels.tolist() == sum(np.bincount(label.ravel(), minlength=256) for label in labels).tolist()
        assert tally.images.tolist() == [sum((label == c).any() for label in labels) for c in range(256)]
        assert tally.sizes == {(HEIGHT, WIDTH): len(labels)}
        assert tally.findings == tally.unusable == []


def test_processes_change_nothing(tmp_path, monkeypatch, truncate):
    source = write_set(tmp_path)
    truncate(source.pairs("train")[4].image)
    (tmp_path / "train" / "copy.jpg").write_bytes(source.pairs("train")[0].image.read_bytes())
    Image.fromarray(bands()).save(tmp_path / "trainlabels" / "copy.png")
    monkeypatch.setattr(inspection, "CHUNK", 2)
    alone, together = look(source), look(source, processes=2)
    assert str(alone) == str(together)
    assert len(alone.twins) == 1


@pytest.mark.parametrize("share", [0.05, 0.4, 0.97])
def test_truncated_jpeg_is_found_although_it_is_decoded_small(tmp_path, share):
    source = write_set(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    path = source.pairs("train")[2].image
    Image.fromarray(noise).save(path, quality=95)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    tally = look(source).parts["train"]
    assert kinds(tally) == [("unreadable", path.name)]
    assert tally.unusable == [2]
    assert tally.pixels.sum() == 5 * HEIGHT * WIDTH


def test_what_decoders_pass_over_is_no_hindrance(tmp_path):
    """Bytes between two segments: libjpeg skips them with a warning."""
    source = write_set(tmp_path)
    path = source.pairs("train")[1].image
    content = path.read_bytes()
    path.write_bytes(content[:20] + b"\x00\x00\x00" + content[20:])
    tally = look(source).parts["train"]
    assert kinds(tally) == [("damaged", path.name)]
    assert tally.unusable == []


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "LA"])
def test_modes_of_images_are_noted(tmp_path, mode):
    source = write_set(tmp_path)
    path = source.pairs("validation")[0].image
    Image.open(path).convert(mode).save(path, format="JPEG" if mode in ("L", "CMYK") else "PNG")
    tally = look(source).parts["validation"]
    assert kinds(tally) == [(f"mode {mode}", path.name)]
    assert tally.unusable == []


def test_sixteen_bit_image_cannot_be_used(tmp_path):
    source = write_set(tmp_path)
    path = source.pairs("train")[0].image
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint16)).save(path, format="PNG")
    tally = look(source).parts["train"]
    assert kinds(tally) == [("unreadable", path.name)]
    assert "8 bits a channel" in tally.findings[0].message


def test_camera_orientation_is_noted(tmp_path):
    source = write_set(tmp_path)
    path = source.pairs("train")[0].image
    exif = Image.Exif()
    exif[inspection.ORIENTATION] = 6
    Image.fromarray(photograph(0)).save(path, exif=exif)
    assert kinds(look(source).parts["train"]) == [("turned", path.name)]


@pytest.mark.parametrize(
    ("size", "words"), [((HEIGHT, WIDTH), "turned by 90 degrees"), ((26, 20), "resized (0.5 times)"), ((9, 40), "")]
)
def test_sizes_that_differ(tmp_path, size, words):
    source = write_set(tmp_path)
    path = source.pairs("train")[3].image
    Image.fromarray(photograph(3)).resize(size).save(path)
    tally = look(source).parts["train"]
    assert kinds(tally) == [("size", path.name)]
    assert words in tally.findings[0].message
    assert ("Guess: " in tally.findings[0].message) == bool(words)


def test_labels_that_do_not_fit_are_told_from_those_that_cannot_be_read(tmp_path, truncate):
    source = write_set(tmp_path)
    pairs = source.pairs("train")
    truncate(pairs[0].label)
    Image.fromarray(bands(values=(0, 77))).save(pairs[1].label)
    pairs[2].label.write_bytes(b"")
    Image.fromarray(photograph(1)).save(pairs[3].label)
    tally = look(source).parts["train"]
    assert [kind for kind, _ in kinds(tally)] == ["unreadable", "labels", "unreadable", "labels"]
    assert tally.unusable == [0, 1, 2, 3]
    assert np.flatnonzero(tally.stored.values).tolist() == [0, 77]
    assert tally.stored.modes == {"L": 1, "RGB": 1}


@pytest.mark.parametrize("kind", ["image", "label"])
def test_decompression_bomb_is_refused(tmp_path, monkeypatch, kind):
    source = write_set(tmp_path)
    big = np.zeros((400, 520), np.uint8)
    write_pair(tmp_path, "train", "bomb", np.stack([big] * 3, axis=2), big)
    if kind == "label":
        Image.fromarray(photograph(0)).save(tmp_path / "train" / "bomb.jpg")
    else:
        Image.fromarray(bands()).save(tmp_path / "trainlabels" / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90_000)
    tally = look(source).parts["train"]
    assert kinds(tally) == [("unreadable", "bomb.jpg" if kind == "image" else "bomb.png")]
    assert "decompression bomb" in tally.findings[0].message


def test_same_image_in_both_parts_by_pixels_not_by_bytes(tmp_path):
    source = write_set(tmp_path)
    content = source.pairs("train")[3].image.read_bytes()
    other = source.pairs("validation")[1]
    other.image.write_bytes(content[:2] + b"\xff\xfe\x00\x06note" + content[2:])
    (twins,) = look(source).twins
    assert twins.places == (("train", 3), ("validation", 1))
    assert not twins.same_labels


def test_images_alike_when_small_are_compared_whole(tmp_path):
    """Chessboards of one and of two pixels have the same mean in every 8 x 8 block."""
    source = write_set(tmp_path)
    rows, columns = np.indices((HEIGHT, WIDTH))
    for index, board in enumerate(((rows + columns) % 2, (rows // 2 + columns // 2) % 2)):
        pixels = np.repeat((40 + 100 * board).astype(np.uint8)[..., None], 3, axis=2)
        Image.fromarray(pixels).save(source.pairs("train")[index].image, quality=100, subsampling=0)
    found = look(source)
    first, second = (found.parts["train"].digests[i] for i in (0, 1))
    assert first == second
    assert found.twins == []


def test_a_jpeg_that_was_saved_as_png_is_the_same_image(tmp_path):
    source = write_set(tmp_path)
    jpeg = source.pairs("train")[2].image
    other = source.pairs("validation")[1].image
    Image.open(jpeg).save(other.with_suffix(".png"))
    other.unlink()
    (twins,) = look(source).twins
    assert twins.places == (("train", 2), ("validation", 1))


class Deadly(LabelledSet):
    def labels(self, pair):
        os._exit(9)


def test_a_reader_that_is_killed_ends_the_check(tmp_path):
    write_set(tmp_path)
    with pytest.raises(OSError, match=r"reading process was ended from outside.*data\.workers=1"):
        look(Deadly(tmp_path), processes=1)


class Beating(LabelledSet):
    def labels(self, pair):
        for _ in range(1500):
            (self.root / "beat").write_text(str(time.monotonic()))
            time.sleep(0.02)
        raise ValueError("nobody ended it")


def test_readers_end_when_the_check_is_killed(tmp_path):
    write_set(tmp_path)
    check = get_context("fork").Process(target=look, args=(Beating(tmp_path), 1))
    check.start()
    beat = tmp_path / "beat"
    assert within_seconds(20, beat.exists)
    check.kill()
    check.join()

    def has_ended() -> bool:
        last = beat.read_text()
        time.sleep(0.3)
        return beat.read_text() == last

    assert within_seconds(5, has_ended)


def within_seconds(seconds, condition) -> bool:
    end = time.monotonic() + seconds
    while not (true := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return true
