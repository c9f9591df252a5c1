"""JPEGs of which a part can be decoded: the same coefficients, cut into tiles by restart markers.

A JPEG is one long Huffman code in which every block refers to the one before, so that a crop cannot be reached without
reading all before it. With a restart marker after every few blocks each piece stands for itself (ITU-T T.81, E.1.4 and
F.1.2.3). `tile` puts the markers in without touching a coefficient, and `Tiled` makes of the pieces under a crop a
JPEG of their own, which any decoder turns into the pixels that the whole has there.
"""

import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import simplejpeg

from deeplab_recipes.data.files import File
from deeplab_recipes.data.pictures import Jpeg, decode_jpeg, unreadable

INTERVAL = 4  # MCUs (of 16 x 16 pixels as a rule) in a tile
MOST_TILES = 32_000
MARGIN = 2  # pixels around a crop: colours are interpolated from their neighbours
MARK = b"deeplab tiles 1"
NOTE = struct.Struct("<HBBH")  # after the mark: true width, height and width of an MCU, where the size stands
NOTE_AT = 6 + len(MARK)
SIZE = struct.Struct(">HH")
SOF0, SOF1, DHT, SOS, DRI = 0xC0, 0xC1, 0xC4, 0xDA, 0xDD
KEPT = {SOF0, SOF1, DHT, 0xDB, 0xE0, 0xEE}  # with quantisation tables, and what tells which colours they are
STANDALONE = {0x01, *range(0xD0, 0xD9)}
RESTARTS = [bytes((0xFF, 0xD0 + i)) for i in range(8)]
RESTART = re.compile(b"\xff[\xd0-\xd7]")


class CannotTile(ValueError):
    """The JPEG is of a kind that has no tiles: progressive, arithmetic, damaged, or with unusual Huffman tables."""


@dataclass(frozen=True)
class Component:
    """What the frame and scan headers say of Y, Cb or Cr: blocks in an MCU, and its Huffman tables."""

    blocks: int
    dc: int
    ac: int


@dataclass(frozen=True)
class Frame:
    """A baseline JPEG, taken apart.

    Args:
        segments: all marker segments before the scan, (marker, payload).
        scan_header: payload of SOS.
        entropy: the scan's bytes, stuffing included.
    """

    segments: list[tuple[int, bytes]]
    scan_header: bytes
    entropy: bytes

    def payload(self, *markers: int) -> bytes:
        """Return the first segment of these markers."""
        return next(payload for marker, payload in self.segments if marker in markers)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        frame = self.payload(SOF0, SOF1)
        return int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")

    @property
    def mcu(self) -> tuple[int, int]:
        """(height, width) of an MCU in pixels."""
        factors = self.payload(SOF0, SOF1)[7::3]
        if len(factors) == 1:
            return 8, 8
        return 8 * max(f & 15 for f in factors), 8 * max(f >> 4 for f in factors)

    def components(self) -> list[Component]:
        """Return them in the order of the scan."""
        frame, scan = self.payload(SOF0, SOF1), self.scan_header
        factors = {frame[6 + 3 * i]: frame[7 + 3 * i] for i in range(frame[5])}
        if scan[0] != len(factors):
            raise CannotTile("it has several scans")
        found = []
        for i in range(scan[0]):
            name, tables = scan[1 + 2 * i], scan[2 + 2 * i]
            blocks = (factors[name] >> 4) * (factors[name] & 15) if scan[0] > 1 else 1
            found.append(Component(blocks, tables >> 4, tables & 15))
        return found

    def huffman(self) -> dict[tuple[int, int], dict[tuple[int, int], int]]:
        """Return for each (class, number) of a table: (length, code) -> symbol."""
        tables = {}
        for payload in (p for marker, p in self.segments if marker == DHT):
            at = 0
            while at < len(payload):
                counts = payload[at + 1 : at + 17]
                symbols = payload[at + 17 : at + 17 + sum(counts)]
                tables[payload[at] >> 4, payload[at] & 15] = _codes(counts, symbols)
                at += 17 + sum(counts)
        return tables


def _codes(counts: bytes, symbols: bytes) -> dict[tuple[int, int], int]:
    """Canonical Huffman codes (T.81, C.2)."""
    codes, code, at = {}, 0, 0
    for length, count in enumerate(counts, start=1):
        for _ in range(count):
            codes[length, code] = symbols[at]
            code, at = code + 1, at + 1
        code <<= 1
    return codes


def parse(content: bytes) -> Frame:
    """Take a JPEG apart.

    Raises:
        CannotTile: if it is not a whole baseline JPEG of one scan.
    """
    segments, at = [], 2
    while True:
        if at + 4 > len(content) or content[at] != 0xFF:
            raise CannotTile("its headers are damaged")
        marker = content[at + 1]
        if marker == 0xFF or marker in STANDALONE:
            at += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(content[at + 2 : at + 4], "big")
        payload = content[at + 4 : at + 2 + length]
        at += 2 + length
        if marker == SOS:
            break
        if 0xC0 <= marker <= 0xCF and marker not in (SOF0, SOF1, DHT, 0xC8, 0xCC):
            raise CannotTile("it is not a baseline JPEG")
        segments.append((marker, payload))
    markers = {marker for marker, _ in segments}
    if not markers & {SOF0, SOF1} or 0xCC in markers:
        raise CannotTile("it is not a baseline JPEG")
    end = content.rfind(b"\xff\xd9")
    if end < at:
        raise CannotTile("its end is missing")
    return Frame(segments, payload, content[at:end])


def tile(content: bytes) -> bytes:
    """Return the JPEG with a restart marker after every `INTERVAL` MCUs, and the lengths of the pieces between them.

    Every coefficient stays. Where a row of MCUs is no multiple of the interval it is filled up with flat ones, so the
    stored width grows; the true one is noted. EXIF and other notes are left out.

    Raises:
        CannotTile: if it is of a kind that has no tiles.
    """
    frame = parse(content)
    (height, width), (tall, wide) = frame.size, frame.mcu
    rows, columns = -(-height // tall), -(-width // wide)
    pieces = _Scan(frame).pieces(rows, columns)
    if len(pieces) > MOST_TILES or max(map(len, pieces)) > 0xFFFF:
        raise CannotTile("it is too large")
    filled = -(-columns // INTERVAL) * INTERVAL
    stored_width = width if filled == columns else filled * wide
    segments = [(marker, payload) for marker, payload in frame.segments if marker in KEPT]
    header, sof = _header(segments, frame.scan_header, height, stored_width)
    lengths = np.array([len(piece) for piece in pieces], "<u2").tobytes()
    note = MARK + NOTE.pack(width, tall, wide, sof) + lengths
    app = b"\xff\xeb" + (len(note) + 2).to_bytes(2, "big") + note
    tiled = b"".join([b"\xff\xd8", app, header, join(pieces), b"\xff\xd9"])
    _require_same_pixels(content, tiled, width)
    return tiled


def _header(segments: list[tuple[int, bytes]], scan_header: bytes, height: int, width: int) -> tuple[bytes, int]:
    """Return all between the note and the scan, and where in it the height and width stand."""
    out, at, sof = [], 0, 0
    for marker, payload in [*segments, (DRI, INTERVAL.to_bytes(2, "big")), (SOS, scan_header)]:
        if marker in (SOF0, SOF1):
            payload = payload[:1] + SIZE.pack(height, width) + payload[5:]
            sof = at + 5
        out.append(bytes((0xFF, marker)) + (len(payload) + 2).to_bytes(2, "big") + payload)
        at += len(out[-1])
    return b"".join(out), sof


def _require_same_pixels(content: bytes, tiled: bytes, width: int) -> None:
    before = simplejpeg.decode_jpeg(content)
    after = simplejpeg.decode_jpeg(tiled)[:, :width]
    # The colours of the last column are interpolated from the filling.
    if before.shape != after.shape or not np.array_equal(before[:, :-1], after[:, :-1]):
        raise CannotTile("its pixels would change")


def join(pieces: Sequence[bytes]) -> bytes:
    """Put pieces of a scan together with restart markers, which count from 0 to 7 over and over."""
    between = [part for i, piece in enumerate(pieces) for part in (RESTARTS[(i - 1) & 7], piece)]
    return b"".join(between[1:])


class _Scan:
    """Walks through a scan's Huffman codes and cuts it into pieces that begin with DC levels of their own."""

    def __init__(self, frame: Frame) -> None:
        if RESTART.search(frame.entropy):
            raise CannotTile("it has restart markers already")
        self.data = frame.entropy.replace(b"\xff\x00", b"\xff")
        self.windows = _windows(self.data)
        self.components, codes = frame.components(), frame.huffman()
        try:
            tables = [(codes[0, c.dc], codes[1, c.ac]) for c in self.components]
        except KeyError:
            raise CannotTile("a Huffman table is missing") from None
        self.steps = [(_lookup(dc, _dc_step), _lookup(ac, _ac_step)) for dc, ac in tables]
        self.codes = [tuple({symbol: code for code, symbol in table.items()} for table in pair) for pair in tables]

    def pieces(self, rows: int, columns: int) -> list[bytes]:
        """Return the pieces of all rows of MCUs, each row's last filled up with flat MCUs.

        Raises:
            CannotTile: if the codes do not lead through the scan, or one that is needed is missing.
        """
        position, levels, found = 0, [0] * len(self.components), []
        try:
            for _ in range(rows):
                for first in range(0, columns, INTERVAL):
                    count = min(INTERVAL, columns - first)
                    firsts, position = self._walk(position, levels, count)
                    found.append(self._piece(firsts, position, INTERVAL - count))
        except (IndexError, KeyError):
            raise CannotTile("its codes are damaged, or lack one that its tiles need") from None
        if not 0 <= 8 * len(self.data) - position < 8:
            raise CannotTile("its codes end elsewhere")
        return found

    def _walk(self, position: int, levels: list[int], count: int) -> tuple[list[tuple[int, int, int]], int]:
        """Go through `count` MCUs, keeping DC `levels`.

        Returns:
            For each component where its first DC code begins and ends, and the level; and the position after all.
        """
        windows, firsts = self.windows, []
        for mcu in range(count):
            for number, component in enumerate(self.components):
                dc, ac = self.steps[number]
                for block in range(component.blocks):
                    begin, step = position, dc[windows[position]]
                    position += step >> 8
                    size = step & 255
                    if size:
                        value = windows[position] >> (16 - size)
                        levels[number] += value if value >> (size - 1) else value - (1 << size) + 1
                        position += size
                    if mcu == block == 0:
                        firsts.append((begin, position, levels[number]))
                    k = 1
                    while k < 64:
                        step = ac[windows[position]]
                        position += step >> 8
                        k += step & 255
        return firsts, position

    def _piece(self, firsts: list[tuple[int, int, int]], end: int, missing: int) -> bytes:
        """Return a tile's bytes: its codes as they are, but for the first DC code of each component."""
        bits = 1  # a one in front keeps zeros that follow it
        for number, (_, after, level) in enumerate(firsts):
            size = abs(level).bit_length()
            length, code = self.codes[number][0][size]
            until = firsts[number + 1][0] if number + 1 < len(firsts) else end
            bits = bits << length | code
            bits = bits << size | (level if level > 0 else level + (1 << size) - 1)
            bits = bits << until - after | self._verbatim(after, until)
        for _ in range(missing):
            for (dc, ac), component in zip(self.codes, self.components, strict=True):
                for length, code in [dc[0], ac[0]] * component.blocks:
                    bits = bits << length | code
        padding = -(bits.bit_length() - 1) % 8
        bits = bits << padding | (1 << padding) - 1
        return bits.to_bytes(bits.bit_length() // 8 + 1, "big")[1:].replace(b"\xff", b"\xff\x00")

    def _verbatim(self, begin: int, end: int) -> int:
        cut = int.from_bytes(self.data[begin >> 3 : end + 7 >> 3], "big")
        return cut >> (-end & 7) & (1 << end - begin) - 1


def _windows(data: bytes) -> list[int]:
    """Return the 16 bits that begin at each bit."""
    padded = np.frombuffer(data + bytes(16), np.uint8).astype(np.uint32)
    words = padded[:-2] << 16 | padded[1:-1] << 8 | padded[2:]
    return (words[:, None] >> np.arange(8, 0, -1, dtype=np.uint32) & 0xFFFF).ravel().tolist()


def _lookup(codes: dict[tuple[int, int], int], step: Callable[[int, int], int]) -> list[int]:
    """Return for every 16 bits what to do at the code that they begin with; an unknown one ends its block."""
    table = np.full(1 << 16, 1 << 8 | 64, np.int32)
    for (length, code), symbol in codes.items():
        first = code << (16 - length)
        table[first : first + (1 << (16 - length))] = step(length, symbol)
    return table.tolist()


def _dc_step(length: int, symbol: int) -> int:
    return length << 8 | min(symbol, 15)


def _ac_step(length: int, symbol: int) -> int:
    """Bits to go on, and coefficients: 0 ends the block, 0xF0 skips sixteen zeros."""
    run, size = symbol >> 4, symbol & 15
    return length + size << 8 | (64 if symbol == 0 else run + 1)


# Reading.


class Tiled(Jpeg):
    """A tiled JPEG. What a crop needs is decoded, and little more.

    Args:
        content: what `tile` returned.
        file: where it is from, for messages.

    Raises:
        ValueError: if it is no such thing; names the file.
    """

    def __init__(self, content: bytes, file: File) -> None:
        super().__init__(content, file)
        try:
            width, self.tall, wide, sof = NOTE.unpack_from(content, NOTE_AT)
            end = 4 + int.from_bytes(content[4:6], "big")
            lengths = np.frombuffer(content, "<u2", offset=NOTE_AT + NOTE.size, count=(end - NOTE_AT - NOTE.size) // 2)
        except (struct.error, ValueError) as error:
            raise unreadable(file, error) from None
        self.wide, self.sof = wide * INTERVAL, sof
        self.rows, self.columns = -(-self.shape[0] // self.tall), -(-width // self.wide)
        self.filled = width < self.shape[1]
        self.shape = self.extent = self.shape[0], width
        if lengths.size != self.rows * self.columns:
            raise unreadable(file, ValueError(f"{lengths.size} tiles instead of {self.rows} x {self.columns}"))
        self.lengths = lengths.reshape(self.rows, self.columns).astype(np.int64) + 2  # with the marker behind each
        ends = np.cumsum(self.lengths)
        start = len(content) - int(ends[-1])
        self.ends = ends.reshape(self.lengths.shape) + start
        self.header = content[end:start]

    def reduced(self, factor: int) -> Jpeg:
        """Return it at 1 / `factor` of its size, for a factor of 2, 4 or 8."""
        whole = Jpeg(self.content, self.file, factor)
        whole.shape = whole.shape[0], -(-self.shape[1] // factor)
        whole.extent = self.shape[0] / factor, self.shape[1] / factor
        return whole

    def region(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """Return the pixels of rows [top, bottom) and columns [left, right)."""
        first_row, last_row = max(top - MARGIN, 0) // self.tall, min(-(-(bottom + MARGIN) // self.tall), self.rows)
        first, last = max(left - MARGIN, 0) // self.wide, min(-(-(right + MARGIN) // self.wide), self.columns)
        y, x = first_row * self.tall, first * self.wide
        height = min(last_row * self.tall, self.shape[0]) - y
        width = (last - first) * self.wide if self.filled or last < self.columns else self.shape[1] - x
        part = self._part(slice(first_row, last_row), slice(first, last), height, width)
        return decode_jpeg(part, self.file)[top - y : bottom - y, left - x : right - x]

    def _part(self, rows: slice, columns: slice, height: int, width: int) -> bytearray:
        """Return a JPEG of these tiles: those of a row are copied as one, then the markers are counted anew."""
        lengths, ends = self.lengths[rows, columns], self.ends[rows, columns]
        strips = zip((ends[:, 0] - lengths[:, 0]).tolist(), ends[:, -1].tolist(), strict=True)
        header = bytearray(self.header)
        SIZE.pack_into(header, self.sof, height, width)
        part = bytearray().join([b"\xff\xd8", header, *(self.content[begin:end] for begin, end in strips)])
        markers = np.cumsum(lengths) + (len(header) + 1)
        numbers = np.frombuffer(part, np.uint8)
        numbers[markers] = 0xD0 + (np.arange(markers.size) & 7)
        numbers[-1] = 0xD9
        return part


def is_tiled(content: bytes) -> bool:
    """Whether `tile` made it."""
    return content[6 : 6 + len(MARK)] == MARK
