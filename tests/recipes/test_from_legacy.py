"""+from=FILE through the real command: printed as a command line, planned, trained, and overridden."""

import json
import shlex
import sys
from pathlib import Path

import pytest
import small_sets
import yaml
from command import Command

from deeplab_recipes import cli

SUPERVISELY = {
    "lr": 0.002,
    "epochs": 2,
    "val_every": 0.5,
    "batch_size": {"val": 2, "train": 4},
    "input_size": {"width": 64, "height": 48},
    "gpu_devices": [0],
    "data_workers": {"val": 0, "train": 0},
    "dataset_tags": {"val": "val", "train": "train"},
    "special_classes": {"neutral": "neutral", "background": "bg"},
    "weights_init_type": "transfer_learning",
    "backbone": "mobilenet_v2",
}
COMPOSER = """
model: {deeplabv3: {initializers: [kaiming_normal, bn_ones], num_classes: 150, backbone_arch: resnet101,
  is_backbone_pretrained: true, use_plus: true, sync_bn: true}}
optimizer: {sgd: {lr: 0.01, momentum: 0.9, weight_decay: 5.0e-4, dampening: 0, nesterov: false}}
schedulers: [{polynomial: {alpha_f: 0.01, power: 0.9}}]
max_duration: 127ep
train_batch_size: 16
precision: amp
"""
SMALL = ["model.width_multiplier=0.35", "pictures=0", "trainer.progress=false", "trainer.accelerator=cpu", "~logger"]


@pytest.fixture
def project(tmp_path: Path) -> list[str]:
    small_sets.supervisely(tmp_path / "project")
    (tmp_path / "config.json").write_text(json.dumps(SUPERVISELY))
    return ["+from=config.json", "data.root=project", "weights=null"]


def printed_command(text: str) -> list[str]:
    return shlex.split(next(line for line in text.splitlines() if line.startswith("deeplab ")))


def test_a_supervisely_project_trains_from_its_json(deeplab: Command, project: list[str], tmp_path: Path) -> None:
    small = [*SMALL, "trainer.max_steps=1", "trainer.precision=32-true"]
    on_gpu = deeplab("train", *project, *small, "run_dir=gpu")
    assert (on_gpu.code, "trainer.devices=[0] names GPUs" in on_gpu.err) == (2, True)
    small.append("trainer.devices=1")
    answer = deeplab("train", *project, *small, "run_dir=run")
    assert answer.code == 0, answer.err
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert settings["data"]["crop_size"] == [48, 64]
    assert (settings["optimizer"]["lr"], settings["batch_size"], settings["evaluate_batch_size"]) == (0.002, 4, 2)
    assert (settings["trainer"]["devices"], settings["trainer"]["max_epochs"]) == (1, 2)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert 0 <= result["evaluations"][0]["miou"] <= 100
    words = printed_command(answer.err)
    assert "note: data_workers.val=0: data.workers is one number for both parts" in answer.err
    again = deeplab(*words[1:], "run_dir=again")  # without the old file
    assert again.code == 0, again.err
    losses = [(tmp_path / run / "metrics.csv").read_text().splitlines()[1].split(",")[3] for run in ("run", "again")]
    assert losses[0] == losses[1]


def test_a_plan_of_composers_yaml_is_the_recipes(deeplab: Command, tmp_path: Path) -> None:
    (tmp_path / "typical.yaml").write_text(COMPOSER)
    answer = deeplab("plan", "+from=typical.yaml", "measure=false", "trainer.devices=1")
    assert answer.code == 0, answer.err
    assert "plan of ade20k_typical" in answer.out
    differs = answer.out.partition("differs from")[2]
    assert "optimizer" not in differs
    assert "model" not in differs
    other = deeplab("plan", "+from=typical.yaml", "measure=false", "optimizer.lr=0.02", "+recipe=ade20k_composer")
    assert "optimizer.lr: 0.01 -> 0.02" in other.out
    assert printed_command(other.err).count("+recipe=ade20k_composer") == 1


def test_what_the_file_does_not_hold_is_asked_for(deeplab: Command, project: list[str]) -> None:
    answer = deeplab("plan", "+from=config.json", "data.root=project")
    assert answer.code == 2
    assert "weights_init_type=transfer_learning begins with weights that the JSON does not hold" in answer.err
    answer = deeplab("plan", "+from=config.json", "weights=null")
    assert "config.json: the JSON does not say where the project is: data.root=DIR" in answer.err
    answer = deeplab("check", "+from=config.json", "data.root=project", "data.workers=0")
    assert "Supervisely" in answer.err
    assert "11 pairs" in answer.out


def test_other_verbs_and_two_files_are_refused(deeplab: Command, project: list[str]) -> None:
    assert (
        "+from=config.json: download does not take it; train, plan, check do"
        in deeplab("download", "+from=config.json").err
    )
    answer = deeplab("train", "+from=config.json", "+from=config.json")
    assert (answer.code, "one file can be translated at a time" in answer.err) == (2, True)
    assert "+from=no.json is no file" in deeplab("train", "+from=no.json").err


def test_other_ranks_are_started_with_the_settings(project: list[str], tmp_path: Path, monkeypatch, capsys) -> None:
    """They read sys.argv as it was when the first rank's settings were made, whatever becomes of the file."""
    monkeypatch.chdir(tmp_path)
    seen: dict[str, list[str]] = {}
    monkeypatch.setattr(cli, "_run", lambda verb, command: seen.update(command=command, rest=sys.argv[1:]))
    monkeypatch.setattr(sys, "argv", ["deeplab", "train", *project, "-m", "optimizer.lr=0.1,0.2"])
    cli.main()
    assert not any("from=" in word for word in seen["command"])
    assert seen["command"][:3] == ["deeplab", "train", "+recipe=finetune"]
    assert seen["command"][-4:] == ["data.root=project", "weights=null", "-m", "optimizer.lr=0.1,0.2"]
    assert [word for word in seen["rest"] if word.startswith("optimizer.lr")] == ["optimizer.lr=0.1,0.2"]
    assert "deeplab train" in capsys.readouterr().err
    monkeypatch.setenv("LOCAL_RANK", "1")  # as torchrun starts it: it translates for itself, without words
    monkeypatch.setattr(sys, "argv", ["train.py", *project])
    cli.main("train")
    assert seen["command"][:2] == ["train.py", "+recipe=finetune"]
    assert capsys.readouterr().err == ""
