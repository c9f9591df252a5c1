from pathlib import Path

import pytest

from deeplab_recipes.data.files import Piece, size_of
from deeplab_recipes.data.packed import Packed
from deeplab_recipes.data.sources.base import Pair

PAIRS = [Pair(Path(f"images/ä {i}.jpg"), Piece(Path("labels.bin"), 7 * i, 7, f"l/{i}.png")) for i in range(5)]


def test_is_the_list():
    packed = Packed(PAIRS)
    assert len(packed) == 5
    assert list(packed) == PAIRS
    assert packed[-1] == PAIRS[-1]
    assert packed[1:4] == PAIRS[1:4]
    assert packed[::-2] == PAIRS[::-2]


@pytest.mark.parametrize("index", [5, -6])
def test_an_index_outside(index):
    with pytest.raises(IndexError, match="outside a list of 5"):
        Packed(PAIRS)[index]


def test_of_nothing():
    assert list(Packed([])) == []


def test_a_piece_reads_like_a_file(tmp_path):
    (tmp_path / "whole").write_bytes(b"0123456789")
    piece = Piece(tmp_path / "whole", 3, 4, "folder/a.b.png")
    assert piece.read_bytes() == b"3456"
    assert (piece.stem, size_of(piece), str(piece)) == ("a.b", 4, f"{tmp_path / 'whole'}:folder/a.b.png")
    with pytest.raises(ValueError, match=r"whole is cut short: folder/a\.b\.png was to end at byte 12"):
        Piece(tmp_path / "whole", 8, 4, "folder/a.b.png").read_bytes()
