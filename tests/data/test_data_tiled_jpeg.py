"""Restart markers change no coefficient, and a region is what the whole shows there."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from deeplab_recipes.data.reading import open_photograph
from deeplab_recipes.data.shards import tiled_jpeg
from deeplab_recipes.data.shards.tiled_jpeg import CannotTile, Tiled, tile

FILE = Path("x.jpg")


def jpeg(pixels: np.ndarray, mode: str = "RGB", **options) -> bytes:
    out = BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, "JPEG", **{"quality": 85, **options})
    return out.getvalue()


def coefficients(content: bytes) -> np.ndarray:
    """Decoded without smoothing of colours: what every block holds, to within the rounding of the transform."""
    return simplejpeg.decode_jpeg(content, fastupsample=True)


@pytest.mark.parametrize("shape", [(160, 256), (97, 141), (33, 200), (250, 64), (16, 15)])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_every_region_is_the_wholes(make_photograph, shape, subsampling):
    content = jpeg(make_photograph(1, *shape), subsampling=subsampling)
    whole, tiled = simplejpeg.decode_jpeg(content), Tiled(tile(content), FILE)
    assert tiled.shape == shape
    rng = np.random.default_rng(0)
    for _ in range(30):
        top, left = int(rng.integers(shape[0])), int(rng.integers(shape[1]))
        bottom, right = int(rng.integers(top, shape[0])) + 1, int(rng.integers(left, shape[1])) + 1
        region, expected = tiled.region(top, bottom, left, right), whole[top:bottom, left:right]
        assert region.shape == expected.shape
        inside = slice(0, shape[1] - 1 - left)  # colours of the last column are interpolated from the filling
        assert np.array_equal(region[:, inside], expected[:, inside])
        assert np.abs(region.astype(int) - expected).max(initial=0) < 60
    assert np.array_equal(tiled.pixels()[:, :-1], whole[:, :-1])
    assert tiled.reduced(2).shape == (-(-shape[0] // 2), -(-shape[1] // 2))
    assert tiled.reduced(2).pixels().shape[:2] == tiled.reduced(2).shape


def test_coefficients_stay(make_photograph):
    content = jpeg(make_photograph(2, 128, 192))
    assert np.array_equal(coefficients(tile(content)), coefficients(content))
    assert len(tile(content)) < 1.2 * len(content)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("options", [{}, {"quality": 98}, {"quality": 30}, {"exif": b"Exif\x00\x00" + bytes(900)}])
def test_other_decoders_read_it_too(make_photograph, mode, options):
    content = jpeg(make_photograph(3, 64, 128), mode, **options)
    tiled = tile(content)
    assert np.array_equal(np.asarray(Image.open(BytesIO(tiled))), np.asarray(Image.open(BytesIO(content))))


def test_real_photographs(real_data):
    files = sorted((real_data("ade20k_mini") / "images/validation").iterdir())[::40]
    files += sorted((real_data("camvid") / "val").iterdir())[::50]
    for file in files:
        content = file.read_bytes()
        tiled, whole = Tiled(tile(content), file), simplejpeg.decode_jpeg(content)
        height, width = tiled.shape
        region = tiled.region(height // 3, height // 2, width // 4, width // 2)
        assert np.array_equal(region, whole[height // 3 : height // 2, width // 4 : width // 2])


def test_a_region_takes_less_to_decode(make_photograph, monkeypatch):
    content = tile(jpeg(make_photograph(4, 512, 512)))
    sizes, decode = [], simplejpeg.decode_jpeg

    def watch(data: bytes, **options) -> np.ndarray:
        sizes.append(len(data))
        return decode(data, **options)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", watch)
    Tiled(content, FILE).region(100, 200, 300, 400)
    assert sizes[0] < 0.15 * len(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: jpeg(p, progressive=True), "not a baseline"),
        (lambda p: jpeg(p, restart_marker_rows=1), "restart markers already"),
        (lambda p: jpeg(p)[:-500], "end is missing"),
        (lambda p: jpeg(p)[:40], "headers are damaged"),
    ],
    ids=["progressive", "restarts", "cut", "header"],
)
def test_what_has_no_tiles(make_photograph, spoil, message):
    with pytest.raises(CannotTile, match=message):
        tile(spoil(make_photograph(5, 128, 128)))


def test_tables_that_lack_a_code_are_refused():
    """An encoder that optimises its tables leaves out the sizes of DC differences that do not occur."""
    steps = np.arange(64, dtype=np.uint8).repeat(2)[None, :].repeat(64, 0)
    content = jpeg(np.stack([steps + 120] * 3, -1), optimize=True, quality=95)
    with pytest.raises(CannotTile, match="lack one that its tiles need"):
        tile(content)


def test_files_of_either_kind_are_opened(make_photograph, tmp_path):
    plain, tiled = tmp_path / "plain.jpg", tmp_path / "tiled.jpg"
    plain.write_bytes(jpeg(make_photograph(6, 70, 90)))
    tiled.write_bytes(tile(plain.read_bytes()))
    assert not isinstance(open_photograph(plain), Tiled)
    assert isinstance(open_photograph(tiled), Tiled)
    assert open_photograph(tiled).shape == (70, 90)


def test_a_damaged_note_names_the_file(make_photograph):
    content = tile(jpeg(make_photograph(7, 64, 64)))
    at = content.index(tiled_jpeg.MARK) + len(tiled_jpeg.MARK)
    with pytest.raises(ValueError, match=r"x\.jpg: cannot be read as a picture"):
        Tiled(content[:4] + bytes(2) + content[6:at] + content[at + 500 :], FILE)
