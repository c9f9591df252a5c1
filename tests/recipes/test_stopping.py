"""A run that is stopped, or killed, and goes on is the run that never stopped."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
import stopping
import torch
from small_run import SMALL

STEPS = stopping.STEPS
TIMES = ("seconds", "images_per_second")


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: row[key] for key in row if key not in TIMES} for row in csv.DictReader(file)]


def final(folder: Path, steps: int) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == steps
    momenta = checkpoint["optimizer_states"][0]["state"]
    return {**checkpoint["state_dict"], **{f"momentum {i}": s["momentum_buffer"] for i, s in momenta.items()}}


def assert_same_weights(whole: Path, resumed: Path, steps: int = STEPS) -> None:
    expected, found = final(whole, steps), final(resumed, steps)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def assert_same_run(whole: Path, resumed: Path, steps: int = STEPS) -> None:
    assert_same_weights(whole, resumed, steps)
    assert rows(resumed) == rows(whole)


def assert_same_samples(whole: Path, resumed: Path, rank: int, *, steps: int = STEPS) -> None:
    # The step that was interrupted is in the list once: the signal lets it finish.
    expected, found = ((folder / f"samples.{rank}").read_text() for folder in (whole, resumed))
    assert found == expected
    assert len(expected.splitlines()) == steps


@pytest.mark.parametrize(
    ("world_size", "workers", "stops"),
    [(1, 0, range(1, STEPS)), (1, 2, (1, 5)), (2, 0, (3,)), (2, 2, (1, 4))],
    ids=["1 device, every step", "1 device, workers", "2 devices", "2 devices, workers"],
)
def test_sigterm_saves_and_the_run_goes_on(world_size, workers, stops, tiny_sets, tmp_path):
    printed = forked.run(
        "stopping", "stop_and_go_on", world_size, tiny_sets["ADE20k"], tmp_path, workers, world_size, *stops
    )
    for stop in stops:
        run = tmp_path / f"stopped_{stop}"
        # Two devices stop together at the next third step or evaluation.
        assert f"stopped: SIGTERM after step {stop if world_size == 1 else {1: 2, 3: 3, 4: 4}[stop]}; go on" in printed
        assert (run / "codes.0").read_text() == "75 0"
        for rank in range(world_size):
            assert_same_samples(tmp_path / "whole", run, rank)
        assert_same_run(tmp_path / "whole", run)
    if world_size == 2:
        assert (run / "codes.1").read_text() == "0 0"


def started(root: Path, run_dir: Path, *overrides: str) -> subprocess.Popen:
    """The real command, in a process group of its own."""
    words = [*SMALL, *stopping.LENGTH, f"data.root={root}", f"run_dir={run_dir}", "resume=auto", *overrides]
    command = [sys.executable, "-m", "deeplab_recipes", "train", *words]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, *, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.02)


@pytest.mark.parametrize(("notice", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_whole_process_group_is_notified(notice, code, tiny_sets, tmp_path):
    endless = ["trainer.max_epochs=9999", "trainer.max_steps=-1", "data.workers=2"]
    process = started(tiny_sets["ADE20k"], tmp_path / "run", *endless)
    wait_for(tmp_path / "run" / "metrics.csv")
    os.killpg(process.pid, notice)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == code, printed
    lines = printed.splitlines()
    assert len(lines) == 1 + ("note:" in printed), printed
    assert f"stopped: {notice.name} after step" in lines[-1]
    status = json.loads((tmp_path / "run" / "result.json").read_text())["status"]
    assert status.startswith(f"stopped: {notice.name} after step")


def test_processes_that_lightning_started_stop_together(tiny_sets, tmp_path):
    endless = ["trainer.max_epochs=9999", "trainer.max_steps=-1", "trainer.devices=2", "data.workers=0"]
    process = started(tiny_sets["ADE20k"], tmp_path / "run", *endless)
    wait_for(tmp_path / "run" / "metrics.csv")
    os.kill(process.pid, signal.SIGTERM)  # the first process only
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 75, printed
    assert "stopped: SIGTERM after step" in printed
    assert "Traceback" not in printed


def test_twenty_kills_at_random_moments(tiny_sets, tmp_path):
    """Saving after every step makes a kill in the middle of it likely; each time the run goes on from what is whole."""
    forked.run("stopping", "train_whole", 1, tiny_sets["ADE20k"], tmp_path / "whole")
    printed = forked.run("stopping", "kill_and_go_on", 1, tiny_sets["ADE20k"], tmp_path / "killed", 20)
    kills = [int(word) for word in printed.split("killed after steps ")[1].split()[:20]]
    assert len(kills) == 20
    assert_same_run(tmp_path / "whole", tmp_path / "killed", stopping.MANY_STEPS)
    left = {path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()}
    assert left == {"best.ckpt", "last.ckpt"}  # nothing half-written stays behind


def test_sigterm_before_the_first_step_saves_too(tiny_sets, tmp_path):
    printed = forked.run("stopping", "stop_before_the_first_step", 1, tiny_sets["ADE20k"], tmp_path / "run")
    assert "stopped: SIGTERM after step 1; go on" in printed
    assert "code 75" in printed
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_sigterm_while_starting_asks_to_be_started_again(tiny_sets, tmp_path):
    printed = forked.run("stopping", "stop_while_looking_at_the_checkpoint", 1, tiny_sets["ADE20k"], tmp_path / "run")
    assert "stopped: SIGTERM; go on with run_dir=... resume=auto" in printed
    assert "code 75 True" in printed


def test_sigterm_before_the_libraries_are_there(tmp_path):
    words = ["train", "+recipe=quickstart", "data.root=data", f"run_dir={tmp_path / 'run'}"]
    program = f"""
import builtins, os, signal, sys
load, sys.argv[1:] = builtins.__import__, {words}
def signal_at_torch(name, *rest, **named):
    if name == "torch":
        os.kill(os.getpid(), signal.SIGTERM)
    return load(name, *rest, **named)
builtins.__import__ = signal_at_torch
from deeplab_recipes.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 75, done.stderr
    assert done.stderr == "stopped: SIGTERM; go on with run_dir=... resume=auto\n"


def test_sigterm_while_drawing_leaves_the_pictures_to_do(tiny_sets, tmp_path):
    printed = forked.run("stopping", "stop_while_drawing", 1, tiny_sets["ADE20k"], tmp_path / "run")
    assert "codes 75 0" in printed
    assert (tmp_path / "run" / "pictures" / "overview.png").exists()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "finished"


def test_signal_in_the_last_step(tiny_sets, tmp_path):
    printed = forked.run("stopping", "stop_in_the_last_step", 1, tiny_sets["ADE20k"], tmp_path)
    assert f"stopped: SIGTERM after step {STEPS}; go on" in printed
    assert "codes 75 0" in printed
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_a_run_cut_by_max_steps_can_be_made_longer(tiny_sets, tmp_path):
    """Lightning counts the epoch that max_steps cut as done, but max_epochs is not reached earlier for that."""
    forked.run("stopping", "train_longer", 1, tiny_sets["ADE20k"], tmp_path)
    assert_same_weights(tmp_path / "whole", tmp_path / "longer", STEPS + 2)
    assert_same_samples(tmp_path / "whole", tmp_path / "longer", 0, steps=STEPS + 2)


@pytest.mark.parametrize(("step", "notice"), [(3, signal.SIGTERM), (STEPS, signal.SIGUSR1), (STEPS, signal.SIGTERM)])
def test_signal_in_an_evaluation(step, notice, tiny_sets, tmp_path):
    """In the middle of a run it is ended first, with a checkpoint in case it cannot be; after training it is not."""
    root, run = tiny_sets["ADE20k"], tmp_path / "run"
    printed = forked.run("stopping", "stop_in_evaluation", 1, root, run, step, int(notice))
    assert f"stopped: {notice.name} after step {step}; go on" in printed
    assert "[0] code 75" in printed
    assert json.loads((run / "result.json").read_text())["status"].startswith(f"stopped: {notice.name}")
    forked.run("stopping", "train_evaluated_by_epoch", 1, root, tmp_path / "whole")
    if step < STEPS:  # killed in the evaluation after all
        during = run / "checkpoints" / "during.ckpt"
        forked.run("stopping", "go_on_from", 1, root, tmp_path / "killed", during)
        assert_same_weights(tmp_path / "whole", tmp_path / "killed")
        found, expected = rows(tmp_path / "killed"), rows(tmp_path / "whole")
        assert all(row in expected for row in found if int(row["step"]) > step)
    forked.run("stopping", "go_on_from", 1, root, run, "auto")
    assert_same_run(tmp_path / "whole", run)


def test_ctrl_c_in_the_last_evaluation(tiny_sets, tmp_path):
    printed = forked.run(
        "stopping", "stop_in_evaluation", 1, tiny_sets["ADE20k"], tmp_path / "run", STEPS, int(signal.SIGINT)
    )
    assert f"stopped: SIGINT after step {STEPS}; go on" in printed
    assert "[0] code 130" in printed


@pytest.mark.parametrize("step", [3, STEPS])
def test_signal_in_an_evaluation_on_two_devices(step, tiny_sets, tmp_path):
    printed = forked.run(
        "stopping", "stop_in_evaluation", 2, tiny_sets["ADE20k"], tmp_path / "run", step, int(signal.SIGTERM)
    )
    assert f"stopped: SIGTERM after step {step}; go on" in printed
    assert "[0] code 75" in printed
    assert "[1] code 0" in printed


def test_second_ctrl_c_stops_at_once(tiny_sets, tmp_path):
    root, run = tiny_sets["ADE20k"], tmp_path / "run"
    assert "interrupted" in forked.run("stopping", "interrupt_twice", 1, root, run)
    steps = [int(line.split()[0]) for line in (run / "samples.0").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 3, 4, 5, 6, 7]  # the checkpoint of the evaluation after step 2 is what there is


def test_losses_of_the_auxiliary_head_are_kept_over_a_stop(tiny_sets, tmp_path):
    forked.run("stopping", "stop_with_auxiliary_head", 1, tiny_sets["ADE20k"], tmp_path)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    assert all(row["auxiliary"] for row in rows(tmp_path / "whole") if row["loss"])
