"""Shared fixtures. Real data are found through DEEPLAB_DATA; where it is set, missing data fail instead of skipping."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from command import Answer, Command

from deeplab_recipes.cli import main

VARIABLE = "DEEPLAB_DATA"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine make small networks many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the commands that tests start
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Give the path of a file or folder of the real data."""

    def find(name: str) -> Path:
        if not os.environ.get(VARIABLE):
            pytest.skip(f"{VARIABLE} is not set; it names the folder that holds {name}")
        path = Path(os.environ[VARIABLE]).resolve() / name
        if not path.exists():
            pytest.fail(f"{VARIABLE} is set, but {path} does not exist")
        return path

    return find


@pytest.fixture
def deeplab(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Run `deeplab` with arguments, in a folder of its own; gives the exit code and what was printed."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["deeplab", *arguments])
        monkeypatch.delenv("DEEPLAB_RUN_DIR", raising=False)
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
        return Answer(code, *capfd.readouterr())

    return call


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    report = yield
    if report.skipped and os.environ.get(VARIABLE) and VARIABLE in str(report.longrepr):
        report.outcome = "failed"
        report.longrepr = f"skipped for want of data although {VARIABLE} is set: {report.longrepr}"
    return report
