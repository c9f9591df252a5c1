"""The pages for people who come from another program: every option stands there, and what it becomes exists."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from legacy_blocks import (
    ASAHI417,
    ASAHI417_EVERY_FLAG,
    COMPOSER_OWN,
    COMPOSER_TYPICAL,
    SUPERVISELY,
    SUPERVISELY_INFERENCE,
    TONANDR,
    leaves,
)
from omegaconf import OmegaConf
from yaml import safe_load

from deeplab_recipes import cli, config
from deeplab_recipes.legacy import asahi417, bonlime, composer, supervisely, tonandr

RECIPES = Path(__file__).parents[2] / "recipes"
BASE = {  # page -> the recipe that its settings change
    "supervisely": "finetune",
    "tonandr": "voc_dense_prediction_cell",
    "composer": "ade20k_typical",
    "asahi417": "voc_minimal",
    "bonlime": "finetune",
}
TABLES = {
    "supervisely": [*supervisely.TABLE, *supervisely.INFERENCE_TABLE],
    "tonandr": [*tonandr.TABLE],
    "composer": [
        *composer.MODEL,
        *composer.OPTIMIZER,
        *composer.TOP,
        *composer.SCHEDULES,
        *(key for table in composer.SCHEDULES.values() for key in table),
    ],
    "asahi417": [f"--{key}" for key in asahi417.TABLE],
    "bonlime": [*bonlime.TABLE],
}
BLOCKS = {
    "supervisely": [*leaves(SUPERVISELY), *leaves(SUPERVISELY_INFERENCE)],
    "tonandr": [*leaves(TONANDR), "kernel", "rate", "op", "input"],
    "composer": re.findall(r"(\w+):", COMPOSER_TYPICAL + COMPOSER_OWN.replace("https:", "")),
    "asahi417": re.findall(r"(?<=\s)--?[a-z]\w*", ASAHI417 + ASAHI417_EVERY_FLAG),
    "bonlime": [*bonlime.ORDER],
}
WITHOUT = ("not needed", "refused", "no equivalent", "to come: ")
TO_COME = ("predict", "evaluate", "serve")


def rows(page: str) -> Iterator[tuple[str, str, str]]:
    """Give the rows of a page's tables: theirs, ours, remarks."""
    for line in (RECIPES / f"migrating_from_{page}.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if len(cells) == 3 and cells[0] not in ("theirs", "---"):
            yield (cells[0], cells[1], cells[2])


def spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@cache
def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(config.yamls_folder()), version_base="1.3"):
        return OmegaConf.to_container(compose("train", list(overrides)), resolve=False)


GROUPS = {path.name for path in config.yamls_folder().iterdir() if path.is_dir()}


def missing(words: list[str], recipe: str) -> list[str]:
    """Return the settings among overrides that do not exist once their groups are chosen."""
    pairs = [word.lstrip("+").partition("=") for word in words]
    recipes = [name for key, _, name in pairs if key == "recipe"] or [recipe]
    groups = [(key, name) for key, _, name in pairs if key in GROUPS and key != "recipe" and name != "NAME"]
    for group, name in groups:  # of several that a row offers, each is composed alone
        composed(f"{group}={name}")
    known = [composed(f"+recipe={name}", *(f"{g}={n}" for g, n in dict(groups).items())) for name in recipes]
    return [key for key, _, _ in pairs if key not in GROUPS and not all(has(settings, key) for settings in known)]


def has(settings: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(settings, dict) or part not in settings:
            return False
        settings = settings[part]
    return True


@pytest.mark.parametrize("page", BASE)
def test_every_option_stands_in_a_table(page: str) -> None:
    first = " ".join(span for row in rows(page) for span in spans(row[0])).split()
    named = {*first, *(part for span in first for part in span.split("."))}
    kept = {span for row in rows(page) for span in spans(row[2])}
    for option in {*TABLES[page], *BLOCKS[page]}:
        assert option in named or option in kept, option


@pytest.mark.parametrize("page", BASE)
def test_what_an_option_becomes_exists(page: str) -> None:
    counted = 0
    for theirs, ours, remarks in rows(page):
        found = spans(ours)
        assert found or ours.startswith(WITHOUT), f"{theirs}: {ours}"
        if ours.startswith("to come: "):
            assert found[0] in TO_COME
            assert found[0] not in cli.VERBS, f"{theirs}: {found[0]} is there now"
        commands = [span for span in [*found, *spans(remarks)] if span.startswith("deeplab ")]
        assert all(span.split()[1] in cli.VERBS for span in commands), theirs
        # "weights=FILE init=..." are two settings, [name + suffix for ...] none
        settings = [s for s in found if re.match(r"\+?[a-z_][\w.]*=\S+( |$)", s) and not s.startswith("deeplab")]
        counted += len(settings)
        assert missing([word for span in settings for word in span.split()], BASE[page]) == [], theirs
    assert counted >= 10


@pytest.mark.parametrize("page", BASE)
def test_remarks_name_settings_that_exist(page: str) -> None:
    for theirs, _, remarks in rows(page):
        words = [word for span in spans(remarks) if re.match(r"[a-z_][\w.]*=", span) for word in span.split()]
        assert missing(words, BASE[page]) == [], theirs


@pytest.mark.parametrize("page", BASE)
def test_recipes_readme_links_the_page(page: str) -> None:
    assert f"(migrating_from_{page}.md)" in (RECIPES / "README.md").read_text()
    text = (RECIPES / f"migrating_from_{page}.md").read_text()
    assert "deeplab train +from=" in text
    assert "deeplab plan  +from=" in text
    for name in re.findall(r"\((\w+)\.md\)", text):
        assert (RECIPES / f"{name}.md").exists()


def test_every_override_of_a_table_stands_on_its_page() -> None:
    """What the code maps a key to is what the page says: the same setting's name."""
    for page, table in (
        ("supervisely", supervisely.TABLE),
        ("tonandr", tonandr.TABLE),
        ("composer", {**composer.MODEL, **composer.OPTIMIZER, **composer.TOP}),
        ("asahi417", {f"--{key}": row for key, row in asahi417.TABLE.items()}),
        ("bonlime", bonlime.TABLE),
    ):
        ours = {span: [s.partition("=")[0] for s in spans(row[1])] for row in rows(page) for span in spans(row[0])}
        for key, row in table.items():
            for template in row.to.split() if isinstance(getattr(row, "to", None), str) else ():
                assert template.partition("=")[0] in ours[key], key


def test_composers_blocks_have_only_known_words() -> None:
    assert {*leaves(safe_load(COMPOSER_OWN))} - {"schedulers"} <= {
        *(f"model.deeplabv3.{key}" for key in composer.MODEL),
        *(f"optimizer.decoupled_sgdw.{key}" for key in composer.OPTIMIZER),
        *composer.TOP,
    }
