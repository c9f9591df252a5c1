"""Archives from strangers: nothing leaves the folder, and nothing swells."""

import errno
import io
import lzma
import os
import tarfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import pytest

from deeplab_recipes.fetching import unpack as module
from deeplab_recipes.fetching.unpack import unpack

PLACES = {"set/images": "images", "set/list.txt": "lists/list.txt"}
FILES = {"set/images/a b.jpg": b"a", "set/images/deep/ü.jpg": b"b", "set/list.txt": b"c", "set/readme": b"d"}


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "home" / "into"
    folder.mkdir(parents=True)
    return folder


def make_zip(path: Path, entries: dict[str, bytes]) -> Path:
    with ZipFile(path, "w", ZIP_DEFLATED) as packed:
        for name, content in entries.items():
            packed.writestr(ZipInfo(name) if name.endswith("/") else name, content)
    return path


def make_tar(path: Path, entries: dict[str, bytes], mode: str = "w:gz", *others: tarfile.TarInfo) -> Path:
    with tarfile.open(path, mode) as packed:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
        for info in others:
            packed.addfile(info)
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


MAKERS: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {
    "zip": make_zip,
    "tar": lambda path, entries: make_tar(path, entries, "w"),
    "tgz": make_tar,
    "tar.bz2": lambda path, entries: make_tar(path, entries, "w:bz2"),
    "tar.xz": lambda path, entries: make_tar(path, entries, "w:xz"),
}


def found(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("prefix", ["", "./", "mirror-main/"])
def test_the_wanted_parts_are_unpacked_wherever_they_lie(kind, prefix, tmp_path, into):
    archive = MAKERS[kind](tmp_path / "archive", {prefix + name: content for name, content in FILES.items()})
    unpack(archive, into, PLACES)
    assert found(into) == {"images/a b.jpg": b"a", "images/deep/ü.jpg": b"b", "lists/list.txt": b"c"}


ESCAPES = ["../evil", "/tmp/evil", "set/images/../../../evil", "C:\\evil", "\\evil", "set\\..\\..\\evil", "set/.."]


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz"])
@pytest.mark.parametrize("name", ESCAPES)
def test_a_path_that_leaves_the_folder_is_refused(kind, name, tmp_path, into):
    archive = MAKERS[kind](tmp_path / "archive", {**FILES, name: b"evil"})
    with pytest.raises(ValueError, match="would leave the folder"):
        unpack(archive, into, PLACES)
    assert not [path for path in tmp_path.rglob("*") if "evil" in path.name]


LINKS = {
    "symlink out": special("set/images/x", tarfile.SYMTYPE, "/etc"),
    "symlink inside": special("set/images/x", tarfile.SYMTYPE, "a b.jpg"),
    "hard link": special("set/images/x", tarfile.LNKTYPE, "../../../etc/passwd"),
    "device": special("set/images/x", tarfile.CHRTYPE),
    "fifo": special("set/images/x", tarfile.FIFOTYPE),
}


@pytest.mark.parametrize("link", LINKS)
def test_links_and_devices_are_refused(link, tmp_path, into):
    archive = make_tar(tmp_path / "archive", FILES, "w:gz", LINKS[link])
    with pytest.raises(ValueError, match=r"'set/images/x' is a (link|device)"):
        unpack(archive, into, PLACES)


def test_nothing_is_written_through_a_symlink(tmp_path, into):
    outside = tmp_path / "outside"
    outside.mkdir()
    with tarfile.open(tmp_path / "archive", "w") as packed:
        packed.addfile(special("set/readme", tarfile.SYMTYPE, str(outside)))  # not wanted, so never made
        packed.addfile(special("images", tarfile.SYMTYPE, str(outside)))
        info = tarfile.TarInfo("set/images/evil")
        info.size = 4
        packed.addfile(info, io.BytesIO(b"evil"))
    unpack(tmp_path / "archive", into, {"set/images": "images"})
    assert found(into) == {"images/evil": b"evil"}
    assert not list(outside.iterdir())


def test_a_symlink_in_a_zip_is_refused(tmp_path, into):
    link = ZipInfo("set/images/x")
    link.external_attr = 0o120777 << 16
    with ZipFile(tmp_path / "archive", "w") as packed:
        packed.writestr(link, "/etc")
    with pytest.raises(ValueError, match="is a link"):
        unpack(tmp_path / "archive", into, PLACES)


@pytest.mark.parametrize("kind", ["zip", "tgz", "tar.xz"])
def test_a_bomb_is_refused(kind, tmp_path, into, monkeypatch):
    monkeypatch.setattr(module, "ALWAYS_ALLOWED", 1 << 20)
    archive = MAKERS[kind](tmp_path / "archive", {**FILES, "set/images/bomb": bytes(30 << 20)})
    with pytest.raises(ValueError, match="refused as a bomb"):
        unpack(archive, into, PLACES)
    assert sum(map(len, found(into).values())) < 4 << 20


def test_a_bomb_of_many_small_files_is_refused(tmp_path, into, monkeypatch):
    monkeypatch.setattr(module, "MOST_ENTRIES", 50)
    archive = make_tar(tmp_path / "archive", {f"set/images/{i}": b"" for i in range(60)})
    with pytest.raises(ValueError, match="more than 50 entries"):
        unpack(archive, into, PLACES)


def test_a_zip_that_understates_its_bomb_is_refused(tmp_path, into, monkeypatch):
    monkeypatch.setattr(module, "ALWAYS_ALLOWED", 1 << 20)
    archive = make_zip(tmp_path / "archive", {"set/images/bomb": bytes(30 << 20), "set/list.txt": b""})
    content = archive.read_bytes().replace((30 << 20).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    archive.write_bytes(content)
    with pytest.raises(ValueError, match=r"bomb|damaged"):
        unpack(archive, into, PLACES)
    assert sum(map(len, found(into).values())) < 4 << 20


def test_a_tar_header_that_fills_the_memory_is_refused(tmp_path, into, monkeypatch):
    monkeypatch.setattr(module, "LONGEST_HEADER", 1 << 16)
    header = special("x", tarfile.XHDTYPE)
    header.size = 1 << 20
    content = header.tobuf() + bytes(1 << 20)
    (tmp_path / "archive").write_bytes(lzma.compress(content))
    with pytest.raises(ValueError, match="header of 1,048,576 bytes"):
        unpack(tmp_path / "archive", into, PLACES)


def test_a_tar_cut_between_two_files_is_named(tmp_path, into):
    archive = make_tar(tmp_path / "archive", FILES, "w")
    archive.write_bytes(archive.read_bytes().rstrip(b"\0").ljust(1024 * len(FILES), b"\0"))
    with pytest.raises(ValueError, match="is damaged or cut short"):
        unpack(archive, into, PLACES)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_an_archive_cut_short_is_named(kind, share, tmp_path, into):
    archive = MAKERS[kind](tmp_path / "archive", {f"set/images/{i}": os.urandom(4096) for i in range(20)})
    content = archive.read_bytes()
    end = len(content.rstrip(b"\0"))  # a tar is padded
    archive.write_bytes(content[: int(end * share)])
    with pytest.raises(ValueError, match=f"{archive} is damaged or cut short"):
        unpack(archive, into, PLACES)


def test_a_changed_byte_is_found(tmp_path, into):
    archive = make_zip(tmp_path / "archive", {"set/images/a": bytes(range(256)) * 40, "set/list.txt": b""})
    content = bytearray(archive.read_bytes())
    content[200] ^= 1
    archive.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        unpack(archive, into, PLACES)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html>log in</html>", "but a web page"),
        (b"", "no zip or tar"),
        (b"RIFF" * 200, "no zip or tar"),
    ],
)
def test_what_is_no_archive_is_named(content, said, tmp_path, into):
    (tmp_path / "archive").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        unpack(tmp_path / "archive", into, PLACES)


def test_an_archive_without_a_part_says_which(tmp_path, into):
    with pytest.raises(ValueError, match=r"holds no set/list.txt; is it the right file"):
        unpack(make_zip(tmp_path / "archive", {"set/images/a": b""}), into, PLACES)


def test_a_part_in_two_places_is_refused(tmp_path, into):
    archive = make_zip(tmp_path / "archive", {"a/set/images/x": b"1", "b/set/images/y": b"2"})
    with pytest.raises(ValueError, match="holds set/images twice: a and b"):
        unpack(archive, into, PLACES)


def test_a_file_that_occurs_twice_is_refused(tmp_path, into):
    with tarfile.open(tmp_path / "archive", "w") as packed:
        for _ in range(2):
            packed.addfile(tarfile.TarInfo("set/images/x"))
    with pytest.raises(ValueError, match="'set/images/x' twice"):
        unpack(tmp_path / "archive", into, PLACES)


def test_a_file_that_is_a_folder_too_is_refused(tmp_path, into):
    archive = make_tar(tmp_path / "archive", {"set/images": b"file", "set/images/x": b"inside"})
    with pytest.raises(ValueError, match="'set/images/x' twice"):
        unpack(archive, into, PLACES)


def test_resource_forks_are_left_out(tmp_path, into):
    archive = make_zip(tmp_path / "archive", {**FILES, "__MACOSX/set/images/._a b.jpg": b"fork"})
    unpack(archive, into, PLACES)
    assert len(found(into)) == 3


def test_an_encrypted_zip_is_refused(tmp_path, into):
    archive = make_zip(tmp_path / "archive", FILES)
    content = bytearray(archive.read_bytes())
    start = content.index(b"PK\x01\x02")
    content[start + 8] |= 1
    archive.write_bytes(content)
    with pytest.raises(ValueError, match="is encrypted"):
        unpack(archive, into, PLACES)


def test_room_is_looked_for_before(tmp_path, into, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: namedtuple("room", "total used free")(9, 8, 1))
    with pytest.raises(OSError, match=r"1 bytes free, 4 are needed to unpack"):
        unpack(make_zip(tmp_path / "archive", FILES), into, PLACES)


def test_a_disk_that_fills_up_is_named(tmp_path, into, monkeypatch):
    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(OSError, match=r"the disk is full; make room"):
        unpack(make_zip(tmp_path / "archive", FILES), into, PLACES)
