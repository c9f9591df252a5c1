"""The command line answers without torch, and the YAMLs travel with an installed package."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # an import of it fails
sys.argv = {arguments!r}
sys.path.insert(0, {folder!r})
from runpy import run_path
run_path("train.py", run_name="__main__")
"""


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
    assert "check " in done.stderr + done.stdout


def test_plan_needs_no_data() -> None:
    command = [sys.executable, "-m", "deeplab_recipes", "plan", "+recipe=ade20k_composer", "measure=false"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for words in ("20,206", "80,768 (128 epochs of 631)", "60,265,286", "507 GFLOP", "45.764 +/- 0.29 mIoU (square)"):
        assert words in done.stdout
    assert "devices: 8 -> 1" in done.stdout


def test_yamls_travel_with_the_wheel(tmp_path: Path) -> None:
    build = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    wheel = next(build.WheelBuilder(str(REPOSITORY)).build(directory=str(tmp_path), versions=["standard"]))
    names = zipfile.ZipFile(wheel).namelist()
    for file in (REPOSITORY / "yamls").rglob("*.yaml"):
        assert f"deeplab_recipes/yamls/{file.relative_to(REPOSITORY / 'yamls')}" in names
    assert "deeplab_recipes/data/sources/ade20k_classes.csv" in names
    # Hydra finds the sweeper in its namespace package, which other distributions share.
    assert [name for name in names if name.startswith("hydra_plugins/")] == ["hydra_plugins/deeplab_recipes_sweeps.py"]
