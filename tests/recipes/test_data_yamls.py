"""Every YAML of a data set builds and trains, and every setting of its source acts."""

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from small_run import SMALL
from small_sets import COUNTS, write

from deeplab_recipes import config
from deeplab_recipes.cli import main
from deeplab_recipes.data import SegmentationDataModule
from deeplab_recipes.data.shards.convert import convert
from deeplab_recipes.data.shards.source import Shards
from deeplab_recipes.data.sources import Folder
from deeplab_recipes.training import train

PIPELINES = {"square", "keep_ratio", "squashed", "tensorflow"}
DRAWN = {"drawn_scenes"}  # needs no files
SETS = sorted({path.stem for path in (config.yamls_folder() / "data").glob("*.yaml")} - PIPELINES - DRAWN)
SMALLEST = [word for word in SMALL if not word.startswith(("+recipe", "batch_size", "data.evaluate_sizes"))]
SMALLEST += ["data.evaluate_sizes={square:[33,33],keep_ratio:[60,45]}", "batch_size=4", "trainer.max_steps=1"]
Compose = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write(name, tmp_path_factory.mktemp("sets") / name) for name in SETS}


def built(settings: dict[str, Any]) -> SegmentationDataModule:
    data = config.build(settings["data"], "data")
    return data(batch_size=4, evaluate_batch_size=1, protocol="keep_ratio", seed=1)


def content(settings: dict[str, Any]) -> list[Any]:
    """All that a source gives, without the folder."""
    source = built(settings).source
    parts = {split: source.pairs(split) for split in COUNTS}
    names = {split: [pair.image.name for pair in pairs] for split, pairs in parts.items()}
    return [source.classes, source.palette, names, [source.labels(p).tobytes() for p in parts["train"]]]


def changed(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    return value * 1.7 + 0.1 if isinstance(value, float) else "bogus"


@pytest.mark.parametrize("name", SETS)
def test_settings_of_the_source_act(name: str, roots: dict[str, Path], compose_settings: Compose) -> None:
    settings = compose_settings(f"data={name}", f"data.root={roots[name]}", "data.workers=0")
    before = content(settings)
    source = settings["data"]["source"]
    for key, value in list(source.items()):
        if key in ("_target_", "_partial_"):
            continue
        source[key] = changed(value)
        with suppress(ValueError, OSError):  # refused: it was looked at
            assert content(settings) != before, f"data.source.{key} changes nothing"
        source[key] = value
    assert content(settings) == before


@pytest.mark.parametrize("name", SETS)
def test_pipelines_have_the_same_settings(name: str, compose_settings: Compose) -> None:
    """So that what is known of the recipes' settings holds for all."""
    data, known = (compose_settings(f"data={n}")["data"] for n in (name, "ade20k"))
    assert data.keys() == known.keys()
    assert data["evaluate_sizes"].keys() == known["evaluate_sizes"].keys()
    assert data["photometric"] == ("none" if name.endswith("_tensorflow") else data["pipeline"])
    assert (data["pipeline"] == "square") == (name.endswith("_square") or name == "ade20k")


@pytest.mark.parametrize("name", [name for name in SETS if not name.endswith(("_square", "_keep_ratio"))])
def test_a_step_of_training(name: str, roots: dict[str, Path], compose_settings: Compose, tmp_path: Path) -> None:
    words = [*SMALLEST, f"data={name}", f"data.root={roots[name]}", f"run_dir={tmp_path / 'run'}"]
    settings = compose_settings(*words, "protocol=keep_ratio")
    result = train(config.assemble(settings, {}), resume=None, settings=settings)
    evaluation = result["evaluations"][0]
    assert len(evaluation["per_class"]) == len(built(settings).source.classes)
    assert 0 <= evaluation["miou"] <= 100


def test_a_plan_counts_classes_and_images_on_disk(roots: dict[str, Path], compose_settings: Compose) -> None:
    words = ("data=folder", "batch_size=4", "measure=false", "model=deeplabv3plus_resnet18")
    settings = compose_settings(*words, f"data.root={roots['folder']}", verb="plan")
    images = round(0.8 * sum(COUNTS.values()))
    assert f"training images {images}" in " ".join(config.assemble_plan(settings, {}).split())
    with pytest.raises(
        ValueError, match=r"nowhere is not there, and only the data say how many classes: data\.root=DIR"
    ):
        config.assemble_plan(compose_settings(*words, "data.root=nowhere", verb="plan"), {})


def test_a_plan_counts_shards_and_a_check_opens_them(
    roots: dict[str, Path], compose_settings: Compose, tmp_path: Path
) -> None:
    convert(Folder, roots["folder"], tmp_path / "shards", workers=0, progress=False)
    words = ("data=folder", f"data.root={tmp_path / 'shards'}")
    settings = compose_settings(*words, "batch_size=4", "model=deeplabv3plus_resnet18", "measure=false", verb="plan")
    images = round(0.8 * sum(COUNTS.values()))
    assert f"training images {images}" in " ".join(config.assemble_plan(settings, {}).split())
    settings = compose_settings(*words, verb="check")
    assert isinstance(config.assemble_source(settings, settings), Shards)


def spoil_palette(root: Path) -> str:
    path = root / "classes.yaml"
    path.write_text(path.read_text().replace("[40, 200, 40]", "[40, 200, 41]"))
    return "color [40, 200, 40] of 1200 pixels is no class's"


def list_a_class_twice(root: Path) -> str:
    path = root / "classes.yaml"
    path.write_text(path.read_text().replace("box", "door"))
    return "class 'door' is listed twice"


def spoil_bitmap(root: Path) -> str:
    path = root / "ds" / "ann" / "train0.jpg.json"
    content = json.loads(path.read_text())
    content["objects"][1]["bitmap"]["data"] = "not base64"
    path.write_text(json.dumps(content))
    return "train0.jpg.json: object 2 (neutral) has a bitmap that is not base64"


def cut_records(root: Path) -> str:
    path = root / "train.tfrecord"
    path.write_bytes(path.read_bytes()[:-1000])
    return "train.tfrecord: record 8 at byte"


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("folder", spoil_palette),
        ("folder", list_a_class_twice),
        ("supervisely", spoil_bitmap),
        ("tfrecord", cut_records),
    ],
)
def test_bad_data_end_the_command_with_one_message(
    name: str,
    spoil: Callable[[Path], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    root, run_dir = write(name, tmp_path / "data"), tmp_path / "run"
    message = spoil(root)
    command = ["deeplab", "train", *SMALLEST, f"data={name}", f"data.root={root}", f"run_dir={run_dir}"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        main()
    error = capfd.readouterr().err
    assert stop.value.code == 2
    assert error.count("error: ") == 1
    assert message in error
    assert "Traceback" not in error
    assert not run_dir.exists()
