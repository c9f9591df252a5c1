"""Transfers from a server that breaks off, ignores ranges, changes its file, lies, or is not there."""

import errno
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
from loopback import Loopback, serving

from deeplab_recipes.fetching import transfer
from deeplab_recipes.fetching.progress import Meter

CONTENT = bytes(range(256)) * 1000
OTHER = CONTENT[::-1] + b"more"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "FIRST_WAIT", 0.005)


@pytest.fixture
def fetch(tmp_path: Path) -> Callable[..., Path]:
    def run(address: str, *, size: int | None = None, say: Callable[[str], None] = lambda line: None) -> Path:
        return transfer.fetch(address, tmp_path / "set.zip", size=size, advice="Put it there.", say=say)

    return run


def test_a_whole_file_comes_in_one_request(fetch):
    with serving(Loopback(CONTENT)) as server:
        assert fetch(server.address, size=len(CONTENT)).read_bytes() == CONTENT
    assert server.ranges_asked() == [None]


def test_breaks_in_mid_file_are_gone_on_from(fetch):
    with serving(Loopback(CONTENT, breaks=[100_000, 50_000])) as server:
        assert fetch(server.address).read_bytes() == CONTENT
    assert server.ranges_asked() == [None, "bytes=100000-", "bytes=150000-"]


def test_a_server_without_ranges_starts_again(fetch):
    said = []
    with serving(Loopback(CONTENT, ranges=False, breaks=[100_000])) as server:
        assert fetch(server.address, say=said.append).read_bytes() == CONTENT
    assert any("the server cannot go on in mid-file" in line for line in said)


def test_without_a_name_for_its_version_nothing_is_gone_on_from(fetch):
    with serving(Loopback(CONTENT, etag=None, breaks=[100_000])) as server:
        assert fetch(server.address).read_bytes() == CONTENT
    assert server.ranges_asked() == [None, None]


@pytest.mark.parametrize(("etag", "goes_on"), [('W/"1"', False), (None, True), ('W/"1"', True)])
def test_a_weak_name_does_not_promise_the_same_bytes_but_a_date_does(fetch, etag, goes_on):
    modified = "Fri, 01 Mar 2024 10:00:00 GMT" if goes_on else None
    with serving(Loopback(CONTENT, etag=etag, modified=modified, breaks=[100_000])) as server:
        assert fetch(server.address).read_bytes() == CONTENT
    assert server.ranges_asked() == [None, "bytes=100000-" if goes_on else None]


@pytest.mark.parametrize("heeds_if_range", [True, False])
def test_a_file_that_changed_after_a_break_is_not_mixed(fetch, monkeypatch, heeds_if_range):
    with serving(Loopback(CONTENT, breaks=[100_000], heeds_if_range=heeds_if_range)) as server:
        monkeypatch.setattr(transfer.time, "sleep", lambda seconds: change(server))
        assert fetch(server.address).read_bytes() == OTHER


def change(server: Loopback) -> None:
    server.content, server.etag = OTHER, '"2"'


def test_a_file_that_became_shorter_starts_again(fetch, monkeypatch):
    with serving(Loopback(CONTENT, breaks=[100_000], heeds_if_range=False)) as server:
        monkeypatch.setattr(transfer.time, "sleep", lambda seconds: setattr(server, "content", CONTENT[:5000]))
        assert fetch(server.address).read_bytes() == CONTENT[:5000]


def test_a_later_call_goes_on_from_the_part(fetch):
    with serving(Loopback(CONTENT, breaks=[100_000, 0, 0, 0, 0, 0])) as server:
        with pytest.raises(ConnectionError, match="broke off at 100,000 of 256,000 bytes"):
            fetch(server.address)
        server.breaks.clear()
        assert fetch(server.address).read_bytes() == CONTENT
        assert server.ranges_asked()[-1] == "bytes=100000-"
        asked = len(server.requests)
        fetch(server.address)
        assert len(server.requests) == asked, "a whole part needs no request"


def test_a_part_of_another_address_is_not_used(fetch):
    with serving(Loopback(CONTENT, breaks=[100_000, *[0] * 5])) as first, pytest.raises(ConnectionError):
        fetch(first.address)
    with serving(Loopback(OTHER)) as second:
        assert fetch(second.address).read_bytes() == OTHER
    assert second.ranges_asked() == [None]


def test_a_server_that_promises_too_many_bytes_is_named(fetch):
    with (
        serving(Loopback(CONTENT, claims=1000)) as server,
        pytest.raises(ConnectionError, match=r"broke off at 256,000 of 257,000 bytes|longer than the file"),
    ):
        fetch(server.address)
    assert len(server.requests) >= transfer.ATTEMPTS


def test_another_size_than_published_is_refused_before_the_transfer(fetch, tmp_path):
    with (
        serving(Loopback(CONTENT)) as server,
        pytest.raises(ValueError, match=r"256,000 bytes, the published file 1,000.*verify=false"),
    ):
        fetch(server.address, size=1000)
    assert not list(tmp_path.glob("*.part"))


def test_unavailable_then_well(fetch):
    said = []
    with serving(Loopback(CONTENT, statuses=[503, 429])) as server:
        assert fetch(server.address, say=said.append).read_bytes() == CONTENT
    assert [line.split()[0] for line in said] == ["503", "429"]


@pytest.mark.parametrize(("code", "requests"), [(404, 1), (403, 1), (503, transfer.ATTEMPTS)])
def test_refusals_end_with_the_code_and_the_advice(fetch, code, requests):
    with (
        serving(Loopback(CONTENT, statuses=[code] * 9)) as server,
        pytest.raises(ConnectionError, match=rf"(?s){server.address}.*{code}.*Put it there"),
    ):
        fetch(server.address)
    assert len(server.requests) == requests


def test_no_server_is_one_message(fetch):
    with serving(Loopback(CONTENT)) as server:
        pass
    with pytest.raises(ConnectionError, match=rf"cannot fetch {server.address} \(.*refused.*Put it there"):
        fetch(server.address)


def test_silence_counts_as_a_break(fetch, monkeypatch):
    monkeypatch.setattr(transfer, "SILENCE", 0.1)
    with serving(Loopback(CONTENT, pause=0.3)) as server:
        monkeypatch.setattr(transfer.time, "sleep", lambda seconds: setattr(server, "pause", 0.0))
        assert fetch(server.address).read_bytes() == CONTENT


def test_too_little_room_is_said_before_the_transfer(fetch, monkeypatch):
    room = namedtuple("room", "total used free")(10, 9, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: room)
    with serving(Loopback(CONTENT)) as server, pytest.raises(OSError, match=r"256,000 bytes .* only 1 are free"):
        fetch(server.address)


def test_a_disk_that_fills_up_keeps_the_part(fetch, monkeypatch, tmp_path):
    monkeypatch.setattr(Meter, "add", fill_up)
    with serving(Loopback(CONTENT)) as server:
        with pytest.raises(OSError, match=r"disk is full after [\d,]+ bytes; make room .*with root=DIR"):
            fetch(server.address)
        monkeypatch.undo()
        assert fetch(server.address).read_bytes() == CONTENT
    assert server.ranges_asked()[-1].startswith("bytes=")


def fill_up(meter: Meter, count: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_meter_says_rate_and_time_left():
    with Meter("a set", 1000, done=200) as meter:
        meter.done = 600
        assert meter.line(meter.began + 2) == "a set  600B of 1.00kB  200B/s  00:02 left"
    with Meter("a set", None) as meter:
        assert meter.line(meter.began + 1) == "a set  0.00B  0.00B/s"


def test_the_meter_counts_other_things(capsys, monkeypatch):
    monkeypatch.setattr("deeplab_recipes.fetching.progress.QUIET_SECONDS", 0.0)
    with Meter("check", 20_000, unit="pairs") as meter:
        meter.done = 9_999
        assert meter.line(meter.began + 10) == "check  9,999 pairs of 20,000 pairs  1,000 pairs/s  00:10 left"
        meter.expect(5_000)
        assert "of 25,000 pairs" in meter.line(meter.began + 10)
    with Meter("check", 20_000, unit="pairs", visible=False) as meter:
        meter.add(5)
    assert capsys.readouterr().err == ""


def test_the_meter_prints_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr("deeplab_recipes.fetching.progress.QUIET_SECONDS", 0.0)
    with Meter("x" * 60, 10) as meter:
        meter.reach(5)
    line = capsys.readouterr().err
    assert "5.00B of 10.0B" in line
    assert len(line.split()[0]) == 40
