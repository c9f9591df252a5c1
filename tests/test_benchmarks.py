"""What the benchmark scripts work out, write and refuse; nothing is trained."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
import yaml
from benchmark_script import script

REPOSITORY = Path(__file__).resolve().parents[1]
TABLE = REPOSITORY / "recipes" / "README.md"


reproduce, beside = script("reproduce"), script("beside_mmsegmentation")


@pytest.fixture
def finished(tmp_path) -> Callable[..., Path]:
    """Leave what a run leaves, as far as it is read."""

    def make(
        seed: int,
        *overrides: str,
        miou: float = 85.0,
        recipe: str = "quickstart",
        protocol: str = "keep_ratio",
        **other,
    ) -> Path:
        folder = tmp_path / f"{recipe}_{seed}_{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        settings = reproduce.composed(recipe, [*overrides, f"seed={seed}"])
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        evaluations = [
            {"checkpoint": "last", "protocol": protocol, "miou": miou},
            {"checkpoint": "best", "protocol": protocol, "miou": miou + 1},
        ]
        result = {
            "recipe": recipe, "status": "finished", "seed": seed, "batch_size": 8, "bn_batch": 8, "world_size": 1,
            "steps": 1000, "precision": "bf16-mixed", "hardware": "2 CPU cores", "versions": {"torch": "2.15.0"},
            "commit": "0123456789abcdef", "dirty": False, "published": settings["published"], "hours": 0.04,
            "deviations": [f"seed: 17 -> {seed}"], "data": {"fingerprint": "f"}, "images_per_second": 58.8,
            "evaluations": evaluations, **other,
        }  # fmt: skip
        (folder / "result.json").write_text(json.dumps(result))
        return folder

    return make


@pytest.fixture
def runs(finished) -> list:
    return [reproduce.read_run(finished(seed, miou=miou)) for seed, miou in ((19, 3.0), (17, 1.0), (18, 2.0))]


# Statistics.


def test_statistics_of_known_values():
    three = reproduce.summarise([1.0, 2.0, 3.0])
    assert (three.count, three.mean, three.deviation) == (3, 2.0, 1.0)
    assert three.margin == pytest.approx(2.4841, abs=1e-4)  # t(0.975, 2) = 4.3027, over the square root of 3
    five = reproduce.summarise([10.0, 12.0, 11.0, 13.0, 14.0])
    assert five.deviation == pytest.approx(2.5**0.5)
    assert five.margin == pytest.approx(2.7764 * (2.5 / 5) ** 0.5, abs=1e-3)


def test_one_value_has_no_deviation():
    assert reproduce.summarise([7.0]) == reproduce.Summary(1, 7.0, None, None)


def test_the_table_that_is_printed(runs):
    text = reproduce.report("quickstart", runs)
    lines = text.splitlines()
    assert [line.split(" | ")[:3] for line in lines if line.startswith("| 1")] == [
        ["| 17", "1.00", "2.00"],
        ["| 18", "2.00", "3.00"],
        ["| 19", "3.00", "4.00"],
    ]
    assert "| mean ± sample standard deviation (n=3) | 2.00 ± 1.00 | 3.00 ± 1.00 |" in text
    assert "| 95 % t-interval of the mean | -0.48 to 4.48 | 0.52 to 5.48 |" in text
    assert "`python train.py +recipe=quickstart seed=N`, N = 17, 18, 19" in lines
    assert lines[-2:] == [
        "Nothing is published for this recipe.",
        "Nothing differs from the recipe (but for the seed).",
    ]


def test_one_run_is_printed_without_an_interval(runs):
    text = reproduce.report("quickstart", runs[:1])
    assert "| mean (n=1) | 3.00 | 4.00 |" in text
    assert "interval" not in text
    assert "±" not in text


def test_what_was_published_and_what_differs_are_printed(finished):
    overrides = ("data.root=/data/somewhere/ade", "trainer.max_epochs=2", "model.backbone_weights=/home/me/w.pth")
    deviations = ["trainer.max_epochs: 128 -> 2", "model.backbone_weights: imagenet1k_v2 -> /home/me/w.pth"]
    folder = finished(17, *overrides, recipe="ade20k_composer", protocol="square", deviations=deviations)
    text = reproduce.report("ade20k_composer", [reproduce.read_run(folder)])
    assert "| published (square) | 45.764 ± 0.29 |" in text
    assert "Published: Composer model card, DeepLabv3+, 8 x A100, 4.67 h." in text
    assert "- trainer.max_epochs: 128 -> 2\n- model.backbone_weights: imagenet1k_v2 -> w.pth" in text
    assert "data.root=ade" in text
    assert "/home" not in text
    assert "/data" not in text


# The row.


@pytest.fixture
def places(tmp_path) -> dict[str, Path]:
    table = tmp_path / "copy" / "README.md"
    table.parent.mkdir()
    table.write_bytes(TABLE.read_bytes())
    return {"table": table, "results": table.parent}


def cell(table: Path, recipe: str) -> str:
    _, column, cells = reproduce.row_of(table.read_text(), recipe)
    return cells[column].strip()


def test_a_full_run_takes_the_place_of_the_number(runs, places):
    file = reproduce.write("quickstart", runs, "the table", **places)
    new = f"[2.00 ± 1.00](../benchmarks/results/{file.name}) (3 seeds)"
    assert cell(places["table"], "quickstart").split("; ")[0] == new
    before, after = TABLE.read_text().splitlines(), places["table"].read_text().splitlines()
    number, column, cells = reproduce.row_of(TABLE.read_text(), "quickstart")
    assert [line for i, line in enumerate(after) if i != number] == [
        line for i, line in enumerate(before) if i != number
    ]
    changed = after[number].split("|")
    assert changed[:column] + changed[column + 1 :] == cells[:column] + cells[column + 1 :]
    assert file.name.endswith("_reproduce_quickstart.md")
    assert "the table" in file.read_text()


def test_a_shorter_schedule_stands_beside_the_number(finished, places):
    before = cell(places["table"], "camvid_mobilenet_v2").split("; ")[0]
    overrides = ("trainer.max_epochs=8", "data.root=/d/camvid", "model.backbone_weights=/d/w.pth")
    for miou in (50.0, 51.0):  # the second time in the place of the first
        made = [finished(s, *overrides, recipe="camvid_mobilenet_v2", miou=miou + s) for s in (17, 18)]
        runs = [reproduce.read_run(folder) for folder in made]
        file = reproduce.write("camvid_mobilenet_v2", runs, "", **places)
        new = f"[{miou + 17.5:.2f} ± 0.71](../benchmarks/results/{file.name}) (2 seeds, 8 of 22 epochs)"
        assert cell(places["table"], "camvid_mobilenet_v2").split("; ") == [before, new]
        assert file.name.endswith("_reproduce_camvid_mobilenet_v2_8_of_22_epochs_seeds_17_18.md")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ((), []),
        (("trainer.max_epochs=4",), ["4 of 10 epochs"]),
        (("trainer.max_epochs=20",), ["20 epochs in place of 10"]),
        (("trainer.max_steps=100",), ["100 steps in place of 10 epochs"]),
        (("optimizer.lr=0.05", "data.crop_size=[65, 65]"), ["optimizer.lr=0.05", "data.crop_size=[65,65]"]),
        (("trainer.precision=32-true", "seed=3", "data.root=elsewhere"), []),
    ],
)
def test_the_row_says_what_is_not_the_recipes(overrides, words):
    settings = [reproduce.composed("quickstart", given) for given in ((), overrides)]
    assert sorted(reproduce.qualifiers(*settings, " `python train.py +recipe=quickstart` ")) == sorted(words)


def test_a_schedule_in_steps_counts_as_one_change():
    settings = [reproduce.composed("ade20k_mmseg_160k", given) for given in ((), ("trainer.max_steps=100",))]
    assert reproduce.qualifiers(*settings, "") == ["100 of 160000 steps"]


@pytest.mark.parametrize(
    ("before", "new", "after"),
    [
        ("not run", "1 (3 seeds)", "1 (3 seeds)"),
        ("not run", "1 (3 seeds, 1 of 9 epochs)", "not run; 1 (3 seeds, 1 of 9 epochs)"),
        ("2 (seed 17); 1 (seed 17, a=1)", "3 (3 seeds)", "3 (3 seeds); 1 (seed 17, a=1)"),
        ("2 (seed 17); 1 (seed 17, a=1)", "3 (3 seeds, a=1)", "2 (seed 17); 3 (3 seeds, a=1)"),
        ("2 (seed 17, a=1)", "[3](../b.md) (3 seeds)", "[3](../b.md) (3 seeds); 2 (seed 17, a=1)"),
    ],
)
def test_an_entry_takes_the_place_of_its_like(before, new, after):
    assert reproduce.merged(before, new) == after


# Refusals.


def refusal(recipe: str, *folders: Path) -> str:
    with pytest.raises(ValueError, match=r".") as raised:
        reproduce.require_comparable(recipe, [reproduce.read_run(folder) for folder in folders])
    return str(raised.value)


def test_runs_of_another_recipe_are_refused(finished):
    assert "is a run of quickstart, not of ade20k_typical" in refusal("ade20k_typical", finished(17))


def test_the_same_seed_twice_is_refused(finished):
    assert "have the same seed (17)" in refusal("quickstart", finished(17), finished(17))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.lr=0.05", "optimizer.lr is 0.05 and 0.13"),
        ("trainer.max_epochs=4", "trainer.max_epochs is 4 and 10"),
        ("trainer.evaluate_every=5", "trainer.evaluate_every is 5 and 2"),
    ],
)
def test_other_settings_are_refused(finished, override, said):
    message = refusal("quickstart", finished(17), finished(18, override))
    assert "differ in more than the seed" in message
    assert said in message


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"precision": "32-true"}, "precision is 32-true and bf16-mixed"),
        ({"bn_batch": 4}, "bn_batch is 4 and 8"),
        ({"data": {"fingerprint": "g"}}, "data is another set"),
        ({"protocol": "square"}, "protocol is square and keep_ratio"),
    ],
)
def test_runs_that_came_out_otherwise_are_refused(finished, other, said):
    assert said in refusal("quickstart", finished(17), finished(18, **other))


def test_neutral_settings_may_differ(finished):
    folders = finished(17), finished(18, "data.root=elsewhere", "data.workers=0", "pictures=0")
    reproduce.require_comparable("quickstart", [reproduce.read_run(folder) for folder in folders])


def test_another_protocol_than_the_published_is_refused(finished):
    message = refusal("ade20k_composer", finished(17, recipe="ade20k_composer", protocol="keep_ratio"))
    assert "by the protocol keep_ratio, the published number by square" in message


def test_a_record_that_was_cut_is_named(finished):
    path = finished(17) / "result.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(ValueError, match=f"{path} cannot be read"):
        reproduce.read_run(path.parent)


@pytest.mark.parametrize(
    "overrides",
    [["schedule=cosine"], ["schedule=cosine", "schedule.alpha_f=0.5"], ["optimizer=adamw", "optimizer.lr=0.003"]],
)
def test_the_printed_command_makes_such_a_run(overrides, finished):
    run = reproduce.read_run(finished(17, *overrides))
    program, recipe, *words = reproduce.command("quickstart", run).removesuffix(" seed=N").split(" ", 3)[1:]
    assert (program, recipe) == ("train.py", "+recipe=quickstart")
    assert words[0].split() == overrides
    assert reproduce.differences(reproduce.composed("quickstart", words[0].split()), run.settings) == {}


def test_runs_of_different_commits_are_told(finished):
    runs = [reproduce.read_run(finished(17)), reproduce.read_run(finished(18, commit="fedcba9876543210"))]
    assert "The runs are of different commits." in reproduce.report("quickstart", runs)
    assert "different commits" not in reproduce.report("quickstart", runs[:1])
    resumed = [{"step": 3, "until_then": {"commit": "fedcba9876543210"}, "changes": {}}]
    runs[1] = reproduce.read_run(finished(18, resumed=resumed))
    assert "different commits, and were resumed from fedcba9876." in reproduce.report("quickstart", runs)


def test_other_seeds_have_a_file_of_their_own(runs, finished, places):
    first = reproduce.write("quickstart", runs, "", **places)
    other = [reproduce.read_run(finished(seed)) for seed in (4, 3)]
    assert reproduce.write("quickstart", other, "", **places).name.endswith("_reproduce_quickstart_seeds_3_4.md")
    assert first.exists()


def test_unfinished_runs_are_refused(finished, tmp_path):
    with pytest.raises(ValueError, match="has not finished \\(stopped: KeyboardInterrupt\\)"):
        reproduce.read_run(finished(17, status="stopped: KeyboardInterrupt"))
    with pytest.raises(ValueError, match=r"holds no run: there is no result\.json"):
        reproduce.read_run(tmp_path)


@pytest.mark.parametrize("text", ["", "17,", "17,17", "1,01", "a", "1.5", "-1"])
def test_seeds_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="different whole numbers"):
        reproduce.seeds(text)


@pytest.mark.parametrize("override", ["seed=3", "run_dir=a", "+recipe=quickstart", "-m"])
def test_settings_that_the_script_sets_are_refused(override):
    with pytest.raises(ValueError, match="cannot be given here"):
        reproduce.require_overrides([override], reading=False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["quickstar"], "there is no recipe 'quickstar'; did you mean quickstart?"),
        (["quickstart", "--", "optimizer.lrr=1"], "Could not override 'optimizer.lrr'"),
        (["quickstart", "--read", "nowhere", "--", "optimizer.lr=1"], "leave the settings after -- out"),
        (["quickstart", "--read", "nowhere"], "nowhere holds no run"),
    ],
)
def test_the_command_line_gives_one_message(words, said, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *words])
    with pytest.raises(SystemExit) as raised:
        reproduce.main()
    assert str(raised.value).startswith("error: ")
    assert said in str(raised.value)


def test_a_row_that_is_missing_is_named():
    with pytest.raises(ValueError, match="no row for ade20k_hot"):
        reproduce.row_of(TABLE.read_text(), "ade20k_hot")


# Which seeds are run.


@pytest.fixture
def commands(monkeypatch) -> list[list[str]]:
    """Commands that would have been run; each fails."""
    given: list[list[str]] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        given.append(command[1:])
        return SimpleNamespace(returncode=2)

    monkeypatch.setattr(subprocess, "run", run)
    return given


def test_a_finished_run_is_read_and_not_run(finished, commands):
    run = reproduce.run_seed("quickstart", 17, finished(17, "trainer.max_epochs=1"), ["trainer.max_epochs=1"])
    assert run.result["seed"] == 17
    assert commands == []


def test_an_unfinished_run_goes_on(finished, commands):
    folder = finished(17, "trainer.max_epochs=1", status="running")
    with pytest.raises(ValueError, match="seed 17: the command ended with status 2"):
        reproduce.run_seed("quickstart", 17, folder, ["trainer.max_epochs=1"])
    assert commands == [
        ["train.py", "+recipe=quickstart", "trainer.max_epochs=1", "seed=17", f"run_dir={folder}", "resume=auto"]
    ]


@pytest.mark.parametrize("override", ["trainer.max_epochs=2", "trainer.precision=32-true", "data.root=elsewhere"])
def test_a_run_directory_with_other_settings_is_refused(finished, commands, override):
    with pytest.raises(ValueError, match=r"holds a run with other settings.*choose another --runs"):
        reproduce.run_seed("quickstart", 17, finished(17), [override])
    assert commands == []


# beside_mmsegmentation.py


@pytest.fixture
def weights(tmp_path) -> Path:
    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v2()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0  # statistics of one batch, so that no layer's output fades away
    network(torch.randn(4, 3, 64, 64))
    torch.save({k: v for k, v in network.state_dict().items() if not k.startswith("classifier")}, tmp_path / "w.pth")
    return tmp_path / "w.pth"


def test_their_backbone_with_torchvisions_weights_is_torchvisions(weights):
    from mmseg.models.backbones import MobileNetV2

    theirs = MobileNetV2(out_indices=(1, 6))  # undilated: nothing of this package is needed to compare
    theirs.eval()
    beside.fill_backbone(theirs, weights)
    network = torchvision.models.mobilenet_v2().eval()
    network.load_state_dict(torch.load(weights, weights_only=True), strict=False)
    image = torch.randn(1, 3, 97, 65)
    with torch.no_grad():
        low, high = theirs(image)
        assert torch.allclose(low, network.features[:4](image), rtol=0, atol=1e-5)
        assert torch.allclose(high, network.features[:18](image), rtol=0, atol=1e-5)


def test_both_networks_are_the_same_at_stride_16(weights):
    segmentor, ours = beside.their_segmentor(65), beside.our_network(beside.CLASSES, weights=str(weights))
    beside.fill_backbone(segmentor.backbone, weights)
    beside.require_same_network(segmentor, ours)
    segmentor.backbone.layer6[1].conv[1].conv.dilation = segmentor.backbone.layer6[1].conv[1].conv.padding = (1, 1)
    with pytest.raises(ValueError, match="high features differ"):
        beside.require_same_network(segmentor, ours)


def test_layers_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="layer 0 is"):
        beside.copy_layers(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(3, 5, 3))
    with pytest.raises(ValueError, match="1 and 2 convolutions"):
        beside.copy_layers(
            torch.nn.Conv2d(3, 4, 3), torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        )


def test_both_metrics_score_the_same():
    generator = torch.Generator().manual_seed(0)
    pairs = [[torch.randint(0, beside.CLASSES, (20, 30), generator=generator) for _ in range(2)] for _ in range(3)]
    for _, truth in pairs:
        truth[:5] = beside.IGNORE
    found = beside.score(pairs)
    assert found["miou"] == pytest.approx(found["miou_by_mmsegmentation"], abs=1e-9)
    assert sum(found["truth"]) == 3 * 15 * 30
    with pytest.raises(ValueError, match="different areas"):
        beside.require_same_areas(torch.eye(beside.CLASSES).double(), torch.zeros(4, beside.CLASSES).double())


@pytest.mark.parametrize(
    ("ours", "said"), [([50.0, 51.0, 52.0], "not below"), ([49.1, 50.1, 51.1], "not below"), ([48.0, 49, 50], "BELOW")]
)
def test_verdict(ours, said):
    assert f"Our mean is {said} theirs by more than one standard deviation of theirs (1.00" in beside.verdict(
        ours, [50.0, 51.0, 52.0]
    )


def test_no_verdict_on_one_seed():
    assert beside.verdict([50.0], [50.0, 51.0]).startswith("No verdict")


def test_kept_runs_of_other_settings_are_refused(tmp_path):
    keep = tmp_path / "runs.json"
    setting = beside.Setting("data", "weights", 300, 256, "32-true")
    assert beside.kept_runs(setting, keep) == {}
    keep.write_text(json.dumps({"setting": vars(setting), "runs": {"ours/17": {}}}))
    assert list(beside.kept_runs(setting, keep)) == ["ours/17"]
    with pytest.raises(ValueError, match="steps=300, this is steps=10"):
        beside.kept_runs(beside.Setting("data", "weights", 10, 256, "32-true"), keep)


backbones = script("backbones")


def test_every_backbone_is_measured_beside_those_who_have_it():
    names = {"resnet18", "resnet50", "resnet50_v1c", "mobilenet_v2", "xception41"}
    rows = {group[0].backbone: [row.name for row in group] for group in backbones.groups(sorted(names), [16])}
    peers = ["segmentation_models_pytorch", "mmsegmentation"]
    assert rows == {
        "mobilenet_v2": ["ours", "ours, padding=same", *peers],
        "resnet18": ["ours", *peers],
        "resnet50": ["ours", "torchvision", *peers],
        "resnet50_v1c": ["ours", "mmsegmentation"],
        "xception41": ["ours", "segmentation_models_pytorch"],
    }
    every = list(backbones.BACKBONES)
    assert [group[0].backbone for group in backbones.groups(every, [8])] == every


def counted(row) -> tuple[int, int]:
    network = backbones.OWNERS[row.owner][0](row)
    return sum(parameter.numel() for parameter in network.parameters()), backbones.flops(network, 65)


@pytest.mark.filterwarnings("ignore:Fail to import")
@pytest.mark.parametrize(
    ("name", "owner"),
    [("resnet50", "torchvision"), ("resnet18", "mmsegmentation"), ("mobilenet_v2", "mmsegmentation")],
)
@pytest.mark.parametrize("stride", [8, 16])
def test_the_same_net_does_equal_work(name, owner, stride):
    mine, theirs = (counted(backbones.Contestant(name, stride, who)) for who in ("ours", owner))
    assert theirs == mine


def test_a_net_is_timed_in_both_layouts():
    size = backbones.Size(crop=33, batch=2, device="cpu", threads=1, steps=1)
    turns = backbones.Turns(backbones.ours(backbones.Contestant("mobilenet_v2", 16, "ours")), size)
    before = [parameter.clone() for parameter in turns.network.parameters()]
    for layout in backbones.LAYOUTS:
        assert turns.take("inference", layout)["seconds"] > 0
    assert all(torch.equal(a, b) for a, b in zip(before, turns.network.parameters(), strict=True))
    assert turns.take("train", "channels last")["seconds"] > 0
    assert not all(torch.equal(a, b) for a, b in zip(before, turns.network.parameters(), strict=True))
    assert next(turns.network.parameters()).is_contiguous(memory_format=torch.channels_last)


def measured(owner: str, seconds: list[float], **other) -> SimpleNamespace:
    times = {(w, layout): [factor * s for s in seconds] for w in ("inference", "train") for layout, factor in
             (("channels last", 2.0), ("NCHW", 1.0))}  # fmt: skip
    row = backbones.Contestant("resnet18", 16, owner)
    worker = backbones.Worker(row, None, None, parameters=11_180_000, flops=2_000_000_000, seconds=times, **other)
    worker.peak = {"channels last": 1e9, "NCHW": 2e9}
    return worker


def test_rows_name_the_better_layout_and_the_ratio_within_rounds():
    size = backbones.Size(513, 4, "cpu", 2, 1)
    first, peer = measured("ours", [1.0, 2.0, 1.0]), measured("mmsegmentation", [1.5, 3.0, 4.0])
    assert backbones.line(first, first, size) == (
        "| resnet18 | 16 | ours | 11.18 M | 2.00 | 4 (NCHW) | - | 4 (NCHW) | - | 2.00 GB |"
    )
    assert backbones.line(peer, first, size) == (
        "| resnet18 | 16 | mmsegmentation | 11.18 M | 2.00 (equal work) | 1.333 (NCHW) | 1.50 | 1.333 (NCHW) | 1.50 | "
        "2.00 GB |"
    )


def test_a_missing_package_is_a_row():
    row = backbones.Contestant("resnet18", 16, "segmentation_models_pytorch")
    said = backbones.reason(ModuleNotFoundError("no"), row)
    assert said == "not installed: pip install segmentation-models-pytorch"
    worker = backbones.Worker(row, None, None, error=said)
    assert backbones.line(worker, worker, None) == f"| resnet18 | 16 | {row.owner} | {said} | - | - | - | - | - | - |"


@pytest.mark.parametrize(("epochs", "words"), [(1.0, "1 epoch of"), (0.5, "0.5 epochs of"), (4.0, "4 epochs of")])
def test_fine_tuning_counts_epochs_in_words(epochs, words):
    fine_tuning = script("fine_tuning")
    result = {
        "hardware": "2 CPU cores",
        "versions": {"torch": "2.15.0"},
        "precision": "32-true",
        "commit": "0123456789abcdef",
        "evaluations": [{"checkpoint": "last", "miou": 12.25}],
    }
    text = fine_tuning.report({"backbone frozen": result}, epochs)
    assert text.startswith(f"# Fine-tuning on CamVid, {words} the camvid_mobilenet_v2 recipe\n")
    assert "| backbone frozen | 12.25 | `model.freeze_backbone=true` |" in text
