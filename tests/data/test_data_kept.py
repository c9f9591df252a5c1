"""Samples do not depend on what is kept in memory."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from deeplab_recipes.data import kept
from deeplab_recipes.data.dataset import SegmentationDataset, collate
from deeplab_recipes.data.kept import KeptPairs, keep
from deeplab_recipes.data.pictures import Decoded
from deeplab_recipes.data.sampler import Draw, TrainingSampler
from deeplab_recipes.data.sources import ADE20k
from deeplab_recipes.data.transforms import TrainingTransform
from deeplab_recipes.machine import free_memory

TRANSFORM = TrainingTransform("square", (40, 48), (50, 60), photometric="square", reduced_decoding=True)


@pytest.fixture
def source(make_ade20k):
    return ADE20k(make_ade20k(9, 1, sizes=((40, 52), (130, 170))))


def epochs(dataset: SegmentationDataset, workers: int) -> list[dict[str, torch.Tensor]]:
    sampler = TrainingSampler(9, 3, seed=1)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=3, sampler=sampler, collate_fn=collate, num_workers=workers, persistent_workers=workers > 0
    )
    batches = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches += list(loader)
    return batches


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("room", [1.0, 0.5])
def test_samples_are_the_same(source, workers, room):
    plain, kept = (SegmentationDataset(source, "train", TRANSFORM, seed=5) for _ in range(2))
    every = sum(4 * 130 * 170 if i % 2 else 4 * 40 * 52 for i in range(9))
    kept.kept = KeptPairs(9, int(every * room))
    for a, b in zip(epochs(plain, workers), epochs(kept, workers), strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    held = [kept.kept.get(i, kept.pairs[i].image) is not None for i in range(9)]
    assert all(held) if room == 1 else 0 < sum(held) < 9


def test_files_are_read_once(source, monkeypatch):
    dataset = SegmentationDataset(source, "train", TrainingTransform("keep_ratio", (40, 48), (50, 60)), seed=5)
    dataset.kept = keep(dataset.pairs, devices=1)
    for i in range(9):
        dataset[Draw(0, i)]
    for pair in dataset.pairs:
        pair.image.unlink()
        pair.label.unlink()
    assert [dataset[Draw(1, i)]["index"] for i in range(9)] == list(range(9))


def test_a_broken_pair_is_not_kept(source, truncate):
    dataset = SegmentationDataset(source, "train", TRANSFORM, seed=5, on_corrupt="skip")
    dataset.kept = KeptPairs(9, 10**6)
    truncate(dataset.pairs[2].image)
    for epoch in range(2):
        assert dataset[Draw(epoch, 2)]["corrupt"]
    assert dataset.kept.get(2, dataset.pairs[2].image) is None


def test_no_cache_where_memory_is_short(source, monkeypatch):
    pairs = source.pairs("train")
    assert keep(pairs, devices=1).capacity > 0
    needed = keep(pairs, devices=1).capacity
    monkeypatch.setattr(kept, "free_memory", lambda: int(needed / kept.SHARE) + 8)
    assert keep(pairs, devices=1).capacity == needed
    assert keep(pairs, devices=2) is None


def test_a_pickled_copy_is_empty(source):
    full = KeptPairs(2, 1000)
    full.put(1, np.zeros((5, 6, 3), np.uint8), np.ones((5, 6), np.uint8))
    photograph, labels = full.get(1, source.pairs("train")[0].image)
    assert isinstance(photograph, Decoded)
    assert labels.tolist() == np.ones((5, 6)).tolist()
    copy = pickle.loads(pickle.dumps(full))
    copy.put(1, np.zeros((5, 6, 3), np.uint8), np.ones((5, 6), np.uint8))
    assert copy.get(1, source.pairs("train")[0].image) is None


def test_free_memory_is_some_but_not_more_than_there_is():
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < free_memory() <= total
