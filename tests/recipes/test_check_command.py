"""deeplab check as its user calls it: exit codes, what it prints and what it leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deeplab_recipes import config
from deeplab_recipes.cli import main
from deeplab_recipes.data.shards.convert import convert
from deeplab_recipes.data.sources import CamVid

WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from deeplab_recipes.cli import main; main()"


def deeplab_check(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder of its own; an import of torch fails in it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WITHOUT_TORCH, "check", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """A sound set in CamVid's layout."""
    rng, root = np.random.default_rng(0), tmp_path / "a set, ä"
    for part, count in (("train", 6), ("val", 2)):
        for i in range(count):
            for name, low, high, shape in ((part, 0, 256, (3, 4, 3)), (f"{part}annot", 0, 12, (3, 4))):
                pixels = rng.integers(low, high, shape, dtype=np.uint8).repeat(20, 0).repeat(20, 1)
                (root / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def test_sound_set_is_0(camvid: Path, tmp_path: Path) -> None:
    answer = deeplab_check("data=camvid", f"data.root='{camvid}'", "data.workers=2", folder=tmp_path)
    assert answer.returncode == 0, answer.stderr
    (left,) = (tmp_path / "runs" / "check").iterdir()
    assert sorted(path.name for path in left.iterdir()) == ["contact_sheet.png", "report.json", "report.txt"]
    assert json.loads((left / "report.json").read_text())["sound"] is True
    assert (left / "report.txt").read_text() in answer.stdout + "\n"
    assert f"more in runs/check/{left.name}" in answer.stdout
    assert answer.stderr == ""


def test_wrong_set_is_1_with_every_problem(camvid: Path, tmp_path: Path) -> None:
    (camvid / "trainannot" / "0.png").unlink()
    (camvid / "train" / "1.png").unlink()
    (camvid / "val" / "0.png").write_bytes((camvid / "val" / "0.png").read_bytes()[:60])
    ade = np.resize(np.arange(151, dtype=np.uint8), (60, 80))
    Image.fromarray(ade).save(camvid / "trainannot" / "2.png")
    answer = deeplab_check("data=camvid", f"data.root='{camvid}'", "output=out", "sheet_pairs=0", folder=tmp_path)
    assert answer.returncode == 1
    for words in (
        "problem: train: 1 image without a label",
        "problem: train: 1 label without an image",
        "problem: validation: 1 file cannot be read",
        "problem: train: 1 pair with labels that do not fit the 11 classes",
        "guess: values up to 150, as ADE20k's (0 = unlabelled, 1..150): did you mean data=ade20k?",
        "4 problems",
    ):
        assert words in answer.stdout
    assert answer.stderr == ""
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.json", "report.txt"]


def test_a_recipe_names_the_data_too(camvid: Path, tmp_path: Path) -> None:
    recipe = ("+recipe=camvid_mobilenet_v2", f"data.root='{camvid}'", "data.on_corrupt=skip")
    (camvid / "train" / "3.png").write_bytes(b"nothing")
    answer = deeplab_check(*recipe, folder=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "remark: train: 1 file cannot be read: data.on_corrupt=skip leaves them out" in answer.stdout


def test_shards_are_checked_as_a_folder_is(camvid: Path, tmp_path: Path) -> None:
    for image in sorted((camvid / "train").iterdir()):  # JPEGs are stored as tiles, and wider than they are
        Image.open(image).save(image.with_suffix(".jpg"))
        image.unlink()
    convert(CamVid, camvid, tmp_path / "shards", workers=0, progress=False)
    answer = deeplab_check("data=camvid", f"data.root={tmp_path / 'shards'}", "output=out", folder=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "11 classes, 8 pairs read" in answer.stdout
    (chunk, *_) = sorted((tmp_path / "shards").rglob("*.bin"))
    content = bytearray(chunk.read_bytes())
    content[-1] ^= 1
    chunk.write_bytes(content)
    answer = deeplab_check("data=camvid", f"data.root={tmp_path / 'shards'}", "output=again", folder=tmp_path)
    assert answer.returncode == 1
    assert "is damaged: the bytes of" in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data=camvid"], "data.root is not set"),
        (["data=camvid", "data.root=nowhere"], "data.root=nowhere is not a folder; expected train/"),
        (["data=camvid", "data.root=."], "train is not a folder; check data.root"),
        (["data=keep_ratio", "data.root=ROOT"], "data.source is not set; choose a data set: data=NAME"),
        (["data=camvid", "data.root=ROOT", "output=file/out"], "output=file/out cannot be written"),
        (["data=camvid", "data.root=ROOT", "sheet_pairs=-1"], "sheet_pairs is -1; it takes a whole number of at least"),
        (["data=camvid", "data.root=ROOT", "data.workers=few"], "data.workers is 'few'"),
        (["data=camvid", "data.root=ROOT", "data.on_corrupt=stop"], "data.on_corrupt is 'stop'; valid are raise, skip"),
        (["data=camvid", "data.root=ROOT", "+outptu=x"], "unknown setting outptu; did you mean output?"),
        (["data=camvid", "data.root=ROOT", "+data.source.drop=1"], "unknown setting data.source.drop"),
        (["data=voc", "data.source.training_lst=x"], "did you mean data.source.training_list"),
        (["data=camvid", "data.root=ROOT", "outptu=x"], "unknown setting outptu; did you mean output?"),
        (["data=camvd", "data.root=ROOT"], "there is no data 'camvd'; did you mean camvid?"),
        (["data=camvid,ade20k", "data.root=ROOT"], "data=camvid,ade20k names several values"),
        (["-m", "data=camvid,ade20k", "data.root=ROOT"], "a check is of one data set"),
    ],
)
def test_wrong_settings_are_2(
    camvid: Path,
    tmp_path: Path,
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["deeplab", "check", *(a.replace("ROOT", f"'{camvid}'") for a in arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    shown = capfd.readouterr().err
    assert stop.value.code == 2, shown
    assert words in shown
    assert shown.count("error:") == 1
    assert not (tmp_path / "runs" / "check").exists()


def test_every_setting_of_its_own_acts(compose_settings: Any) -> None:
    """`output` and `sheet_pairs` are shown to act above; those it shares with `train` are in test_every_leaf_acts."""
    own = config.leaves(compose_settings(verb="check")).keys() - config.leaves(compose_settings()).keys()
    assert own == {"output", "sheet_pairs"}
