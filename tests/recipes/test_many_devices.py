"""Several processes compute what one does: training on the same global batch, and evaluation of every image once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import forked
import many_devices
import numpy as np
import pytest
import torch
from PIL import Image
from small_run import SMALL

REPOSITORY = Path(__file__).parents[2]


def on(function: str, root: Path, folder: Path, world_size: int, *arguments: str) -> list[dict]:
    """What each rank found."""
    folder.mkdir(exist_ok=True)
    forked.run("many_devices", function, world_size, root, folder, world_size, *arguments)
    return [torch.load(folder / f"{world_size}_{rank}.pt", weights_only=True) for rank in range(world_size)]


def test_two_processes_train_as_one(tiny_sets, tmp_path):
    (alone,) = on("train", tiny_sets["ADE20k"], tmp_path / "one", 1)
    ranks = on("train", tiny_sets["ADE20k"], tmp_path / "two", 2)
    together = [[*first, *second] for first, second in zip(*(rank["samples"] for rank in ranks), strict=True)]
    assert together == alone["samples"]
    assert len(together) == many_devices.STEPS
    for rank in ranks:
        for ours, theirs in zip(rank["weights"], alone["weights"], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    assert all(torch.equal(a, b) for a, b in zip(*(rank["weights"] for rank in ranks), strict=True))


def test_what_is_frozen_stays_so_on_two_devices(tiny_sets, tmp_path):
    for rank in on("train_frozen", tiny_sets["ADE20k"], tmp_path / "two", 2):
        before, after = rank["before"], rank["after"]
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed
        assert all("running" not in name and "num_batches" not in name for name in changed)
        stages = {int(name.split(".")[2]) for name in changed if name.startswith("backbone.features")}
        assert stages == set(range(7, 18))  # the blocks behind the first three stages
        assert all(before[name].ndim == 4 or ".conv_seg." in name for name in changed)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_synchronised_batch_norm_sees_the_whole_batch(tiny_sets, tmp_path):
    (alone,) = on("train_synchronised", tiny_sets["ADE20k"], tmp_path / "one", 1, "gpu")
    ranks = on("train_synchronised", tiny_sets["ADE20k"], tmp_path / "two", 2, "gpu")
    assert [rank["bn_batch"] for rank in (*ranks, alone)] == [8, 8, 8]
    for ours, theirs in zip(ranks[0]["weights"], alone["weights"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)


def test_without_synchronisation_each_process_normalises_its_own_and_one_note_says_so(tiny_sets, tmp_path):
    """The same plumbing on a CPU, whose batch norm cannot be synchronised; so the weights differ."""
    (alone,) = on("train_synchronised", tiny_sets["ADE20k"], tmp_path / "one", 1, "cpu")
    ranks = on("train_synchronised", tiny_sets["ADE20k"], tmp_path / "two", 2, "cpu")
    assert [rank["bn_batch"] for rank in (*ranks, alone)] == [4, 4, 8]
    assert sum("trainer.sync_batchnorm=true has no effect without a GPU" in note for note in ranks[0]["notes"]) == 1
    farthest = max((a - b).abs().max() for a, b in zip(ranks[0]["weights"], alone["weights"], strict=True))
    assert farthest > 1e-3


@pytest.fixture(scope="module")
def counted_sets(tmp_path_factory) -> Path:
    """Sets with 1, 2, 5 and 7 validation images of different sizes."""
    root, rng = tmp_path_factory.mktemp("counted"), np.random.default_rng(0)
    for images in many_devices.COUNTS:
        for part, prefix, count in (("training", "train", 8), ("validation", "val", images)):
            for i in range(count):
                size = (40 + 4 * (i % 3), 48)
                pictures = {"images": rng.integers(0, 255, (*size, 3), dtype=np.uint8)}
                pictures["annotations"] = rng.integers(0, 151, size, dtype=np.uint8)
                for kind, end in (("images", "jpg"), ("annotations", "png")):
                    path = root / str(images) / kind / part / f"ADE_{prefix}_{i:08d}.{end}"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pictures[kind]).save(path)
    return root


@pytest.fixture(scope="module")
def alone(counted_sets, tmp_path_factory) -> dict:
    return on("evaluate", counted_sets, tmp_path_factory.mktemp("alone"), 1)[0]


@pytest.mark.parametrize("world_size", [2, 3])
def test_evaluation_counts_every_image_once(world_size, alone, counted_sets, tmp_path):
    ranks = on("evaluate", counted_sets, tmp_path, world_size)
    for images in many_devices.COUNTS:
        assert torch.equal(sum(rank[images]["pixels"] for rank in ranks), alone[images]["pixels"])
        for rank in ranks:  # as text, because classes that do not occur are nan
            assert json.dumps(rank[images]["evaluation"]) == json.dumps(alone[images]["evaluation"])
    pixels = [int(alone[images]["pixels"].sum()) for images in many_devices.COUNTS]
    assert pixels == sorted(set(pixels))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_fails_takes_the_others_along(rank, tiny_sets, tmp_path):
    script = Path(__file__).with_name("failing.py")
    command = [sys.executable, str(script), str(tiny_sets["ADE20k"]), str(tmp_path / "run"), str(rank)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    )
    _, printed = process.communicate(timeout=120)  # also waits for the others, which hold the pipe
    assert process.returncode != 0
    message = "error: this one is broken"
    assert (f"[rank 1] {message}" if rank else message) in printed
    assert "Traceback" not in printed
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


COMMANDS = {
    "train.py": [sys.executable, "train.py"],
    "deeplab train": [sys.executable, "-m", "deeplab_recipes", "train"],
    "torchrun train.py": ["torchrun", "train.py"],
    "torchrun deeplab train": ["torchrun", "-m", "deeplab_recipes", "train"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_trains_on_two_devices(command, tiny_sets, tmp_path):
    words = [*SMALL, f"data.root={tiny_sets['ADE20k']}", f"run_dir={tmp_path / 'run'}", "trainer.devices=2"]
    start = list(COMMANDS[command])
    if start[0] == "torchrun":
        agent = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
        start = [*agent, f"--master-port={forked.free_port()}", *start[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*start, *words, "trainer.max_steps=2"], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["world_size"], result["evaluations"][0]["step"]) == ("finished", 2, 2)
    assert done.stdout.count("everything is in") == 1
