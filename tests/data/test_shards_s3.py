"""Shards in a bucket, against a server on this machine."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_shards import assert_same_samples, content, converted, die, in_another_process

from deeplab_recipes.data import SegmentationDataModule
from deeplab_recipes.data.shards import stores
from deeplab_recipes.data.shards.source import Shards
from deeplab_recipes.data.shards.stores import Bucket
from deeplab_recipes.data.sources import ADE20k

SIZES = {"crop_size": (40, 48), "base_size": (40, 48), "evaluate_sizes": {"square": (36, 44)}}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    address = "http://{}:{}".format(*running.get_host_and_port())
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**keys, "AWS_ENDPOINT_URL": address}.items():
            patch.setenv(name, value)
        patch.setattr(stores, "_clients", {})
        yield address
    running.stop()


@pytest.fixture
def place(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A place in a new bucket."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name = f"bucket-{time.time_ns()}"
    stores.client().create_bucket(Bucket=name)
    return f"s3://{name}/some/where"


@pytest.fixture
def root(make_ade20k) -> Path:
    return make_ade20k(9, 3)


def copies(tmp_path: Path) -> list[Path]:
    return sorted(path for path in tmp_path.rglob("*.bin*") if path.suffix != ".lock")


def test_round_trip(root, place, tmp_path):
    summary = converted(root, place, workers=2)
    converted(root, tmp_path / "folder")
    shards = Shards(place, cache=tmp_path / "copies")
    for split in ("train", "validation"):
        pairs = shards.pairs(split)
        assert not copies(tmp_path / "copies" / split)
        assert_same_samples(shards, ADE20k(root), split)
        assert [p.image.crc32 for p in pairs] == [p.image.crc32 for p in Shards(tmp_path / "folder").pairs(split)]
    assert len(copies(tmp_path / "copies")) == len(list((tmp_path / "folder").rglob("*.bin"))) > 3
    assert str(summary).endswith(f"train from them with data.root={place}")
    assert {name for name, _ in Bucket(place).files()} == set(content(tmp_path / "folder"))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_folder(root, place, workers):
    converted(root, place)
    ours, theirs = (
        SegmentationDataModule(ADE20k, where, batch_size=3, workers=n, **SIZES)
        for where, n in ((place, workers), (root, 0))
    )
    assert ours.root == place
    if not workers:
        ours.check()
    for one, other in zip(ours.train_dataloader(), theirs.train_dataloader(), strict=True):
        assert all((one[key] == other[key]).all() for key in other)


def test_copies_are_kept_where_the_user_keeps_such_things(root, place, tmp_path):
    converted(root, place)
    Shards(place).pairs("train")[0].image.read_bytes()
    (path,) = copies(tmp_path)
    assert path.is_relative_to(tmp_path / "cache/deeplab-recipes/shards")
    Shards(place).pairs("train")[0].label.read_bytes()
    assert copies(tmp_path) == [path]
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(ValueError, match=rf"{path} is damaged: .*; delete that file, a copy: it is fetched again"):
        Shards(place).pairs("train")[0].image.read_bytes()
    path.unlink()
    Shards(place).pairs("train")[0].image.read_bytes()


def test_processes_fetch_a_chunk_once(root, place, tmp_path, monkeypatch):
    converted(root, place)
    fetch = Bucket.fetch

    def counted(*arguments, **options):
        (tmp_path / f"fetched by {os.getpid()}").touch()
        time.sleep(0.2)
        fetch(*arguments, **options)

    monkeypatch.setattr(Bucket, "fetch", counted)
    pair = Shards(place, cache=tmp_path).pairs("train")[0]
    processes = [in_another_process(pair.image.read_bytes) for _ in range(4)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(list(tmp_path.glob("fetched by *"))) == 1


def test_what_is_there_is_not_sent_again(root, place, monkeypatch):
    """After a kill at any of the uploads, and with one chunk missing."""
    sent, write = [], Bucket.write

    def noted(self, name, content):
        sent.append(name)
        if len(sent) == last:
            die()
        write(self, name, content)

    monkeypatch.setattr(Bucket, "write", noted)
    last = None
    converted(root, place + "/whole")
    assert sent[-1] == "manifest.json"
    total = len(sent)
    for last in range(2, total + 1, 3):
        output = f"{place}/{last}"
        sent.clear()
        process = in_another_process(lambda to=output: converted(root, to))
        process.join()
        assert process.exitcode == -9
        with pytest.raises(FileNotFoundError, match=r"is not finished; run its deeplab convert command again"):
            Shards(output)
        there = {name for name, _ in Bucket(output).files() if name.endswith(".bin")}
        records = {name for name, _ in Bucket(output).files() if name.endswith(".json") and "-" in name}
        kill, last = last, None
        converted(root, output)
        assert len([name for name in sent if name in there]) == len(there) - len(records) <= 1
        last = kill
        assert dict(Bucket(output).files()) == dict(Bucket(place + "/whole").files())
        assert Bucket(output).read("manifest.json") == Bucket(place + "/whole").read("manifest.json")
    sent.clear()
    last = None
    Bucket(output).remove(["train/chunk-0-1.bin"])
    with pytest.raises(FileNotFoundError, match=rf"{output}/train/chunk-0-1\.bin is missing; run the deeplab convert"):
        Shards(output)
    converted(root, output)
    assert [name for name in sent if name.endswith(".bin")] == ["train/chunk-0-1.bin"]


def test_damaged_objects(root, place, tmp_path):
    converted(root, place)
    bucket, shards = Bucket(place), Shards(place, cache=tmp_path / "copies")
    whole = bucket.read("train/chunk-0-0.bin")
    bucket.write("train/chunk-0-0.bin", whole[:70] + b"?" + whole[71:])
    with pytest.raises(ValueError, match=r"train/chunk-0-0\.bin is damaged: it has another content .*run the deeplab"):
        shards.pairs("train")[0].image.read_bytes()
    bucket.write("train/chunk-0-0.bin", whole[:70])
    with pytest.raises(ValueError, match=r"chunk-0-0\.bin is damaged: it has 70 bytes instead of \d+; run the deeplab"):
        shards.pairs("train")[0].image.read_bytes()
    with pytest.raises(ValueError, match=r"train/chunk-0-0\.bin is damaged: it has 70 bytes instead of"):
        Shards(place)
    assert not copies(tmp_path)
    converted(root, place)
    assert_same_samples(shards, ADE20k(root), "train")


def test_no_room_for_a_copy(root, place, tmp_path):
    converted(root, place)
    shards = Shards(place, cache=tmp_path / "copies")
    image = shards.pairs("train")[0].image
    image.path.parent.mkdir(parents=True)
    image.path.with_name(f"{image.path.name}.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"no copy of a chunk fits at .*No space left.* MB are free there.*data\.cache="):
        image.read_bytes()
    image.read_bytes()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/.* cannot be written"):
        Shards(place, cache=tmp_path / "file").pairs("train")[0].image.read_bytes()


def test_places_that_are_not_there(root, place, monkeypatch, server):
    with pytest.raises(ValueError, match="s3:// names no bucket; expected s3://BUCKET/PREFIX"):
        Shards("s3://")
    with pytest.raises(ValueError, match=r's3://a b/c can be no place in a store .*Invalid bucket name "a b"'):
        Shards("s3://a b/c")
    for action in (Shards, lambda where: converted(root, where)):
        with pytest.raises(FileNotFoundError, match=f"there is no bucket nowhere at {server}; make it, or correct s3"):
            action("s3://nowhere/to/be/found")
    with pytest.raises(FileNotFoundError, match=rf"{place} holds no shards \(no manifest\.json\); make them: deeplab"):
        Shards(place)
    Bucket(place).write("else.txt", b"")
    with pytest.raises(FileExistsError, match=r"holds something else \(else\.txt\)"):
        converted(root, place)
    monkeypatch.setattr(stores, "_clients", {})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"manifest\.json cannot be reached .*127.0.0.1:9.*check AWS_END"):
        Shards(place)


def test_no_keys(place, monkeypatch, tmp_path):
    monkeypatch.setattr(stores, "_clients", {})
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(PermissionError, match=r"no keys for s3://.*AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        Shards(place)


def test_without_boto3(place, monkeypatch):
    monkeypatch.setattr(stores, "_clients", {})
    monkeypatch.setitem(__import__("sys").modules, "boto3.session", None)
    with pytest.raises(ImportError, match=r"boto3 is not installed; .*pip install 'deeplab-recipes\[shards\]'"):
        Shards(place)
