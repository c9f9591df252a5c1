"""The command line answers without torch, and the YAMLs travel with an installed package."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from deeplab_recipes.cli import report_errors

REPOSITORY = Path(__file__).parents[1]
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # an import of it fails
sys.argv = {arguments!r}
sys.path.insert(0, {folder!r})
from runpy import run_path
run_path("train.py", run_name="__main__")
"""


DOWNLOAD = """
import sys
sys.modules["torch"] = None
sys.argv = {arguments!r}
sys.path.insert(0, {folder!r})
from deeplab_recipes.cli import main
main()
"""


@pytest.mark.parametrize(("word", "code"), [("--help", 0), ("set=nothing", 2)])
def test_download_does_not_import_torch(word: str, code: int) -> None:
    arguments = ["deeplab", "download", "root=x", word]
    program = DOWNLOAD.format(arguments=arguments, folder=str(REPOSITORY / "src"))
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "keep_archives" in done.stdout or "valid are ade20k" in done.stderr


def test_import_does_not_import_torch_for_its_help() -> None:
    program = DOWNLOAD.format(arguments=["deeplab", "import", "--help"], folder=str(REPOSITORY / "src"))
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "dense_prediction_cell" in done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["+recipe=ade20k_composer", "--cfg", "job"]])
def test_help_and_settings_do_not_import_torch(arguments: list[str]) -> None:
    code = WITHOUT_TORCH.format(arguments=["train.py", *arguments], folder=str(REPOSITORY / "src"))
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "optimizer" in done.stdout


def test_usage_lists_the_verbs() -> None:
    done = subprocess.run([sys.executable, "-m", "deeplab_recipes", "--help"], capture_output=True, text=True)
    assert "train " in done.stderr + done.stdout
    assert "plan " in done.stderr + done.stdout
    assert "download " in done.stderr + done.stdout
    assert "check " in done.stderr + done.stdout


def test_plan_needs_no_data() -> None:
    command = [sys.executable, "-m", "deeplab_recipes", "plan", "+recipe=ade20k_composer", "measure=false"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for words in ("20,206", "80,768 (128 epochs of 631)", "60,265,286", "507 GFLOP", "45.764 +/- 0.29 mIoU (square)"):
        assert words in done.stdout
    assert "devices: 8 -> 1" in done.stdout


def test_plan_counts_the_auxiliary_head() -> None:
    """mmsegmentation's R-101-D8 DeepLabV3+ has 62.68 million parameters with it."""
    command = [sys.executable, "-m", "deeplab_recipes", "plan", "+recipe=ade20k_mmseg_160k", "measure=false"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for words in ("62,682,876", "160,000 (126.7 epochs of 1,263)", "45.47 mIoU (keep_ratio)"):
        assert words in done.stdout


def test_yamls_travel_with_the_wheel(tmp_path: Path) -> None:
    build = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    wheel = next(build.WheelBuilder(str(REPOSITORY)).build(directory=str(tmp_path), versions=["standard"]))
    names = zipfile.ZipFile(wheel).namelist()
    for file in (REPOSITORY / "yamls").rglob("*.yaml"):
        assert f"deeplab_recipes/yamls/{file.relative_to(REPOSITORY / 'yamls')}" in names
    assert "deeplab_recipes/data/sources/ade20k_classes.csv" in names
    # Hydra finds the sweeper in its namespace package, which other distributions share.
    assert [name for name in names if name.startswith("hydra_plugins/")] == ["hydra_plugins/deeplab_recipes_sweeps.py"]


def test_defect_keeps_its_traceback() -> None:
    """A RuntimeError that is nobody's input, nor another process's end, is for whoever mends the program."""
    for message in ("shape '[2, 3]' is invalid for input of size 5", "NCCL error: unhandled system error"):
        with pytest.raises(RuntimeError, match=message[:5]):
            report_errors(lambda message=message: failing(RuntimeError(message)))


@pytest.mark.parametrize("words", ["Connection closed by peer [127.0.0.1]:1", "NCCL communicator was aborted"])
def test_process_that_lost_another_says_so(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="another process of this run did"):
        report_errors(lambda: failing(RuntimeError(words)))
    assert f"error: {words}" in capsys.readouterr().err  # it may be the network after all


@pytest.mark.parametrize(
    ("message", "cause", "words"),
    [
        ("DataLoader worker (pid 12) is killed by signal: Killed. ", None, "most often because memory ran out"),
        ("DataLoader worker (pid(s) 12, 13) exited unexpectedly", None, "set a lower data.workers; go on with run_dir"),
        ("DataLoader worker (pid 12) is killed by signal: Bus error. It is possible", None, "--shm-size"),
        ("DataLoader worker (pid(s) 1) exited unexpectedly", "DataLoader worker (pid 1) is killed by signal: Bus error",
         "--shm-size"),
    ],
)  # fmt: skip
def test_loader_process_that_the_system_ended(
    message: str, cause: str | None, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = RuntimeError(message)
    error.__cause__ = RuntimeError(cause) if cause else None
    with pytest.raises(SystemExit) as stop:
        report_errors(lambda: failing(error))
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_loader_process_that_crashed_is_a_defect() -> None:
    error = RuntimeError("DataLoader worker (pid(s) 12) exited unexpectedly")
    error.__cause__ = RuntimeError("DataLoader worker (pid 12) is killed by signal: Segmentation fault. ")
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        report_errors(lambda: failing(error))


def failing(error: Exception) -> None:
    raise error
