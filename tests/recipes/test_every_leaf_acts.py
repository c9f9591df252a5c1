"""No setting lies: a changed leaf of the YAMLs changes what is built or what a run leaves, or it is refused."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from hydra import compose, initialize_config_dir
from loopback import Loopback, serving
from omegaconf import OmegaConf
from torch import nn

from deeplab_recipes import cli, config
from deeplab_recipes.data import check
from deeplab_recipes.data.sources.base import read_pair
from deeplab_recipes.training import Run, train

SMALL = [
    "data.crop_size=[65,65]", "data.workers=0", "data.check_samples=2", "pictures=0", "trainer.max_steps=2",
    "trainer.accelerator=cpu", "trainer.devices=1", "trainer.precision=32-true", "trainer.log_every=1",
    "batch_size=4", "model.aspp_channels=16",
]  # fmt: skip
SQUARE = [
    "model.backbone=resnet18",
    "data.base_size=[80,80]",
    "data.evaluate_sizes={square:[65,65],keep_ratio:[80,65]}",
]
EVALUATED = ["data.evaluate_sizes={square:[65,65],keep_ratio:[80,65]}"]
KEPT = ["data.base_size=[90,80]", "data.evaluate_sizes={square:[65,65],keep_ratio:[80,65]}"]
NO_WEIGHTS = "model.backbone_weights=none"
# Together these hold every leaf of every recipe; the first recipe that a leaf acts in is enough.
BASES = {
    "ade20k_composer": ("ADE20k", [*SMALL, *SQUARE, NO_WEIGHTS]),
    "ade20k_typical": ("ADE20k", [*SMALL, *SQUARE, "data.base_size=[40,40]", NO_WEIGHTS]),  # reduced decoding
    "ade20k_mmseg_160k": ("ADE20k", [*SMALL, *KEPT, "model.backbone=resnet50_v1c", NO_WEIGHTS]),
    "camvid_mobilenet_v2": ("CamVid", [*SMALL, *KEPT, NO_WEIGHTS]),
    "quickstart": (None, [*SMALL, *KEPT, "data.source.training=8", "data.source.validation=2"]),
    "voc_dense_prediction_cell": ("PascalVOC", [*SMALL, *KEPT, NO_WEIGHTS]),
    "voc_tensorflow_mobilenet_v2": ("PascalVOC", [*SMALL, *EVALUATED]),
    "voc_minimal": ("PascalVOC", [*SMALL, *EVALUATED]),
    "finetune": ("Supervisely", [*SMALL, *KEPT, "model.backbone=xception41"]),
    "voc_tensorflow_xception65": ("PascalVOC", [*SMALL, *EVALUATED, "model.backbone=xception41"]),
    "voc_mmseg_40k": ("PascalVOC", [*SMALL, *KEPT, "model.backbone=resnet50_v1c", NO_WEIGHTS]),
    "cityscapes_mmseg_80k": ("Cityscapes", [*SMALL, *KEPT, "model.backbone=resnet50_v1c", NO_WEIGHTS]),
}
# How to change a leaf where the general rule gives nothing that could act on so small a run.
CHANGES: dict[str, Any] = {
    "data.max_class_share": 0.01,
    "data.evaluate_sizes.square": [70, 70],
    "data.evaluate_sizes.keep_ratio": [96, 72],
    "data.flip": 0.0,
    "data.scale_range": [0.9, 1.9],
    "trainer.evaluate_every": 0.3,
    "trainer.max_epochs": 0,
    "trainer.sync_batchnorm": None,
    "trainer.num_nodes": 3,
    "trainer.devices": 3,
    "resume": "missing.ckpt",
    "optimizer.dampening": 0.5,
    "microbatch_size": 2,
}


def recipe_settings(recipe: str) -> dict[str, Any]:
    with initialize_config_dir(str(config.yamls_folder()), version_base="1.3"):
        settings = compose("train", [f"+recipe={recipe}", *BASES[recipe][1]])
    return OmegaConf.to_container(settings, resolve=True)


SETTINGS = {recipe: recipe_settings(recipe) for recipe in BASES}
LEAVES = sorted({leaf for settings in SETTINGS.values() for leaf in config.leaves(settings)})


def changed(leaf: str, value: Any) -> Any:
    if leaf in CHANGES:
        return CHANGES[leaf] if CHANGES[leaf] is not None else not value
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1 if isinstance(value, int) else value * 1.7 + 0.1
    if isinstance(value, list):
        return [changed("", item) for item in value] if value else ["bn_ones"]
    return "bogus"


def with_change(settings: dict[str, Any], leaf: str, value: Any) -> dict[str, Any]:
    copy = json.loads(json.dumps(settings))
    *path, last = leaf.split(".")
    section = copy
    for key in path:
        section = section[key]
    section[last] = value
    return copy


def weights(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.is_contiguous()}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def built(run: Run) -> list[Any]:
    loader, evaluation = run.data.train_dataloader(), run.data.val_dataloader()
    return [
        weights(run.network),
        str(run.network),
        run.data.source.classes,
        run.split,
        run.steps,
        run.deviations(),
        str(run.published),
        run.lightning.precision,
        run.lightning.num_nodes,
        torch.are_deterministic_algorithms_enabled(),
        [type(callback) for callback in run.lightning.callbacks],
        run.notes(),
        (loader.num_workers, evaluation.batch_size),
        run.data.dataset("validation", training=False)[0]["image"].tobytes(),
    ]


def left_behind(run: Run, settings: dict[str, Any]) -> list[Any]:
    screen = StringIO()
    with redirect_stderr(screen):
        train(run, resume=settings["resume"])
    result = json.loads((run.run_dir / "result.json").read_text())
    rows = [line.split(",") for line in (run.run_dir / "metrics.csv").read_text().splitlines()]
    header = rows[0]
    timing = [header.index("seconds"), header.index("images_per_second")]
    kept = [[cell for i, cell in enumerate(row) if i not in timing] for row in rows]
    files = sorted(str(p.relative_to(run.run_dir)).split(".tfevents")[0] for p in run.run_dir.rglob("*"))
    changing = ("hours", "images_per_second", "peak_memory", "checkpoint", "data")
    return [
        kept,
        files,
        {k: v for k, v in result.items() if k not in changing},
        bool(screen.getvalue()),
        weights(run.network),
    ]


class Outcome:
    """What settings lead to: an error, or what is built, or (only looked at where that is not enough) what is left."""

    def __init__(self, settings: dict[str, Any], root: Path | None, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.settings, self.folder = json.loads(json.dumps(settings)), folder
        if settings["run_dir"] is None:
            self.settings["run_dir"] = str(folder / "run")
        if settings["data"]["root"] in ("???", "data/quickstart_scenes"):
            self.settings["data"]["root"] = str(root)
        reads: list[Any] = []
        monkeypatch.setattr(check, "read_pair", lambda *pair: reads.append(pair) or read_pair(*pair))
        self.run = config.assemble(self.settings, {})
        self.built = [*built(self.run), len(reads), Path(self.settings["run_dir"]).name]

    def left(self) -> list[Any]:
        return left_behind(self.run, self.settings)


@pytest.fixture(autouse=True)
def _deterministic_again() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def baseline() -> dict[str, tuple[list[Any], list[Any]]]:
    return {}


def differs(
    recipe: str, leaf: str, root: Path | None, folder: Path, monkeypatch: pytest.MonkeyPatch, known: dict
) -> bool:
    if recipe not in known:
        base = Outcome(SETTINGS[recipe], root, folder / "base", monkeypatch)
        known[recipe] = (base.built, base.left())
    value = config.leaves(SETTINGS[recipe])[leaf]
    try:
        other = Outcome(with_change(SETTINGS[recipe], leaf, changed(leaf, value)), root, folder / "other", monkeypatch)
        return other.built != known[recipe][0] or other.left() != known[recipe][1]
    except (ValueError, OSError, TypeError, ImportError):
        return True


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaf_acts(
    leaf: str,
    tiny_sets: dict[str, Path],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    baseline: dict,
) -> None:
    monkeypatch.chdir(tmp_path)
    for recipe, (source, _) in BASES.items():
        if leaf not in config.leaves(SETTINGS[recipe]):
            continue
        root = tiny_sets[source] if source else tmp_path_factory.getbasetemp() / "scenes"
        if differs(recipe, leaf, root, tmp_path / recipe, monkeypatch, baseline):
            return
    pytest.fail(f"changing {leaf} changes nothing in any recipe")


@pytest.mark.parametrize("recipe", BASES)
def test_nothing_differs_without_a_change(
    recipe: str,
    tiny_sets: dict[str, Path],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = BASES[recipe][0]
    root = tiny_sets[source] if source else tmp_path_factory.getbasetemp() / "scenes"
    first, second = (Outcome(SETTINGS[recipe], root, tmp_path / name, monkeypatch) for name in "ab")
    assert first.built == second.built
    assert first.left() == second.left()


def downloaded(folder: Path, **changes: Any) -> list[str]:
    """What `deeplab download` leaves and says with these settings; the archive holds one file of ADE20k."""
    folder.mkdir()
    packed = BytesIO()
    with ZipFile(packed, "w") as archive:
        archive.writestr("ADEChallengeData2016/images/training/ADE_train_00000001.jpg", b"")
    with serving(Loopback(packed.getvalue())) as server:
        settings = {**DOWNLOAD, "root": str(folder / "a"), "address": server.address, **changes}
        screen = StringIO()
        with redirect_stdout(screen):
            try:
                cli.download(OmegaConf.create(settings))
            except (ValueError, OSError) as error:
                screen.write(str(error))
    said = screen.getvalue().replace(str(folder), "").replace(server.address, "")
    return [*sorted(str(path.relative_to(folder)) for path in folder.rglob("*")), said]


DOWNLOAD = {"set": "ade20k", "root": None, "address": None, "verify": False, "keep_archives": False}
DOWNLOAD_CHANGES = {
    "set": "voc",
    "root": "b",
    "address": "missing.zip",
    "verify": True,
    "keep_archives": True,
}


@pytest.mark.parametrize("leaf", DOWNLOAD)
def test_download_leaf_acts(leaf: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = downloaded(tmp_path / "before")
    assert downloaded(tmp_path / "same") == before
    assert downloaded(tmp_path / "changed", **{leaf: DOWNLOAD_CHANGES[leaf]}) != before


def test_download_leaves_are_all_of_them(compose_settings: Callable[..., dict[str, Any]]) -> None:
    assert set(compose_settings(verb="download")) == set(DOWNLOAD)


def test_bases_cover_every_recipe() -> None:
    assert {p.stem for p in (config.yamls_folder() / "recipe").glob("*.yaml")} == set(BASES)


def conversion_settings(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(config.yamls_folder()), version_base="1.3"):
        return OmegaConf.to_container(compose("convert", list(overrides)), resolve=True)


CONVERSION = conversion_settings("data=ade20k")
CONVERSION_LEAVES = sorted(config.leaves(CONVERSION))


def converted(settings: dict[str, Any], root: Path, folder: Path) -> dict[str, bytes]:
    """Return the files that a conversion leaves in `folder`."""
    folder.mkdir()
    settings = json.loads(json.dumps(settings))
    if settings["data"]["root"] == config.MISSING:
        settings["data"]["root"] = str(root)
    base = json.loads(json.dumps({**CONVERSION["data"], "root": settings["data"]["root"]}))
    if settings["output"] == config.MISSING:
        settings["output"] = "shards"
    settings["output"] = str(folder / settings["output"])
    config.assemble_conversion(settings, base)(progress=False)
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("leaf", CONVERSION_LEAVES)
def test_leaf_of_a_conversion_acts(leaf: str, tiny_sets: dict[str, Path], tmp_path: Path) -> None:
    value = config.leaves(CONVERSION)[leaf]
    same = converted(CONVERSION, tiny_sets["ADE20k"], tmp_path / "same")
    try:
        other = with_change(CONVERSION, leaf, changed(leaf, value))
        assert converted(other, tiny_sets["ADE20k"], tmp_path / "other") != same
    except (ValueError, OSError, TypeError):
        return
