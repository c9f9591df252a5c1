import numpy as np
import pytest
from labelled_set import NAMES, LabelledSet, bands, photograph, relabel, write_pair, write_set
from PIL import Image, ImageDraw

from deeplab_recipes.data.checking.contact_sheet import ACROSS, GAP, MARGIN, PANEL, contact_sheet
from deeplab_recipes.drawing import font_for


def sheet(source, count, parts=("train", "validation")):
    return contact_sheet({part: source.pairs(part) for part in parts}, source, count=count)


def colours(picture) -> set[tuple[int, int, int]]:
    return {colour for _, colour in picture.getcolors(1 << 24)}


@pytest.fixture
def texts(monkeypatch):
    """Each text that is drawn: what, where, and on how large a canvas."""
    drawn, real = [], ImageDraw.ImageDraw.text

    def note(self, place, text, *args, **options):
        drawn.append((text, place, self.im.size))
        return real(self, place, text, *args, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note)
    return drawn


def test_size_follows_the_number_of_pairs(tmp_path):
    source = write_set(tmp_path, train=8, validation=8)
    widths, heights = zip(*(sheet(source, count).size for count in (1, 3, 4, 9)), strict=True)
    cell = 2 * PANEL[0] + GAP + 2 * MARGIN
    assert list(widths) == [cell, *[ACROSS * cell] * 3]
    assert heights[1] < heights[2] < heights[3]


def test_both_parts_are_shown_spread_over_their_pairs(tmp_path, texts):
    sheet(write_set(tmp_path, train=9, validation=5), 6)
    titles = [text for text, _, _ in texts if text.startswith(("train", "validation"))]
    assert titles == [
        *[f"train  train_00{i}" for i in (0, 2, 5, 8)],
        *[f"validation  validation_00{i}" for i in (0, 4)],
    ]


def test_more_than_there_are(tmp_path, texts):
    sheet(write_set(tmp_path, train=2, validation=1), 24)
    assert len([text for text, _, _ in texts if text.startswith(("train", "validation"))]) == 3


def test_palette_and_legend_hold_what_occurs_and_no_more(tmp_path, texts):
    source = write_set(tmp_path, train=3, validation=1)
    for part in ("train", "validation"):
        relabel(source, lambda labels: np.where(labels < 4, 1, 3).astype(np.uint8), part)
    shown = colours(sheet(source, 4))
    assert {source.palette[1], source.palette[3]} <= shown
    assert not {source.palette[c] for c in (0, 2, 4, 5)} & shown
    assert [text for text, _, _ in texts][-2:] == ["tree", "road"]
    assert "not labelled" not in {text for text, _, _ in texts}


def test_regions_carry_their_names_inside_the_panel(tmp_path, texts):
    source = write_set(tmp_path, train=1, validation=0)
    write_pair(tmp_path, "train", "train_000", photograph(0), bands(values=(2, 2, 2, 2, 5, 255)))
    contact_sheet({"train": source.pairs("train")}, source, count=1)
    named = {text: place for text, place, size in texts if size[0] <= PANEL[0]}
    assert named.keys() >= {"sky", "lamp"}
    assert abs(named["sky"][0] - 80) < 20
    assert 150 < named["lamp"][0] < 200
    assert "not labelled" not in named


@pytest.mark.parametrize("size", [(1, 1), (40, 900), (900, 40), (33, 35)])
def test_any_size_of_picture_and_any_length_of_name(tmp_path, texts, size):
    source = LabelledSet(tmp_path, classes=("a very long name " * 9, *NAMES[1:]))
    write_pair(tmp_path, "train", "x" * 200, np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8))
    picture = contact_sheet({"train": source.pairs("train")}, source, count=1)
    assert isinstance(picture, Image.Image)
    assert texts[0][0].startswith("train  ...xxx")


def test_letters_beyond_ascii_are_drawn():
    """Pillow's own typeface draws the same box for all of them."""
    assert len({bytes(font_for(letter).getmask(letter)) for letter in "äößЖ"}) == 4


def test_nothing_to_draw(tmp_path):
    source = write_set(tmp_path)
    assert sheet(source, 0) is None
    assert contact_sheet({"train": [], "validation": []}, source, count=5) is None
