import gc
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from deeplab_recipes.data.dataset import SegmentationDataset, collate, collate_by_size
from deeplab_recipes.data.reading import read_image
from deeplab_recipes.data.sampler import NOTHING, Draw, EvaluationSampler, TrainingSampler
from deeplab_recipes.data.sources import ADE20k
from deeplab_recipes.data.sources.base import Pair, read_pair
from deeplab_recipes.data.transforms import MEAN_PIXEL, EvaluationTransform, TrainingTransform

TRAINING = TrainingTransform("square", (40, 48), (40, 48), photometric="square")
SQUARE = EvaluationTransform("square", (36, 44))
KEPT = EvaluationTransform("keep_ratio", (60, 40))


@pytest.fixture
def training(make_ade20k) -> SegmentationDataset:
    return SegmentationDataset(ADE20k(make_ade20k(6, 1)), "train", TRAINING, seed=5)


def same(one: dict, other: dict) -> bool:
    assert one.keys() == other.keys()
    return all(np.array_equal(one[key], other[key]) for key in one)


def test_training_sample(training):
    sample = training[Draw(0, 3)]
    assert (sample["image"].shape, sample["image"].dtype) == ((40, 48, 3), np.uint8)
    assert (sample["label"].shape, sample["label"].dtype) == ((40, 48), np.uint8)
    assert (sample["content"].shape, sample["colour"].shape) == ((4,), (5,))
    assert sample["colour"].dtype == np.float32
    assert (sample["index"], sample["corrupt"]) == (3, False)
    assert set(np.unique(sample["label"]).tolist()) <= {0, 1, 2, 3, 4, 255}


def test_sample_is_a_function_of_seed_epoch_and_index(training):
    first = training[Draw(2, 3)]
    training[Draw(2, 4)]
    np.random.seed(0)
    assert same(first, training[Draw(2, 3)])
    other_seed = SegmentationDataset.__new__(SegmentationDataset)
    other_seed.__dict__ = {**training.__dict__, "seed": 6}
    for other in (training[Draw(1, 3)], training[Draw(2, 4)], other_seed[Draw(2, 3)]):
        assert not same({**first, "index": 0}, {**other, "index": 0})


def test_workers_change_nothing(training):
    def epochs(workers: int) -> list[dict]:
        sampler = TrainingSampler(6, 2, seed=5)
        options = {"num_workers": workers, "persistent_workers": workers > 0}
        loader = DataLoader(training, batch_size=2, sampler=sampler, collate_fn=collate, **options)
        batches = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            batches += list(loader)
        return batches

    alone, helped = epochs(0), epochs(2)
    assert len(alone) == len(helped) == 6
    assert all(torch.equal(a[key], b[key]) for a, b in zip(alone, helped, strict=True) for key in a)
    assert not torch.equal(alone[0]["image"], alone[3]["image"])


def test_training_sample_by_bare_index_is_refused(training):
    with pytest.raises(TypeError, match=r"Draw\(epoch, index\)"):
        training[3]


def test_dataset_goes_to_workers_that_do_not_share_memory(training):
    assert same(pickle.loads(pickle.dumps(training))[Draw(1, 2)], training[Draw(1, 2)])


def test_collate(training):
    batch = collate([training[Draw(0, i)] for i in (4, 1, 2)])
    assert (batch["image"].shape, batch["image"].dtype) == ((3, 3, 40, 48), torch.uint8)
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert (batch["label"].shape, batch["label"].dtype) == ((3, 40, 48), torch.uint8)
    assert (batch["content"].shape, batch["colour"].shape) == ((3, 4), (3, 5))
    assert (batch["index"].tolist(), batch["corrupt"].tolist()) == ([4, 1, 2], [False] * 3)
    assert batch["corrupt"].dtype == torch.bool
    assert np.array_equal(batch["image"][1].permute(1, 2, 0).numpy(), training[Draw(0, 1)]["image"])


def test_evaluation_groups_by_size(make_ade20k):
    """keep_ratio: images of one size may have labels of different sizes; those stay apart too."""
    source = ADE20k(make_ade20k(1, 5, sizes=((40, 60), (60, 40), (80, 120))))
    dataset = SegmentationDataset(source, "validation", KEPT)
    groups = collate_by_size([dataset[i] for i in (0, 1, 2, 3, 4, NOTHING)])
    assert [group["index"].tolist() for group in groups] == [[0, 3], [1, 4], [2], [NOTHING]]
    shapes = [(*group["image"].shape[2:], *group["label"].shape[1:]) for group in groups]
    assert shapes == [(40, 60, 40, 60), (60, 40, 60, 40), (40, 60, 80, 120), (33, 33, 33, 33)]
    assert all(group["image"].dtype == torch.uint8 for group in groups)


def test_nothing_sample_is_blank_and_counts_nowhere(make_ade20k):
    dataset = SegmentationDataset(ADE20k(make_ade20k(1, 1)), "validation", SQUARE)
    sample = dataset[NOTHING]
    assert (sample["index"], sample["corrupt"]) == (NOTHING, False)
    assert (sample["label"] == 255).all()
    assert (sample["image"] == MEAN_PIXEL).all()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_validation_image_once_over_all_ranks(make_ade20k, world_size):
    dataset = SegmentationDataset(ADE20k(make_ade20k(1, 5)), "validation", SQUARE)
    seen, steps = [], set()
    for rank in range(world_size):
        sampler = EvaluationSampler(5, rank=rank, world_size=world_size)
        batches = list(DataLoader(dataset, batch_size=2, sampler=sampler, collate_fn=collate_by_size))
        steps.add(len(batches))
        seen += [i for batch in batches for part in batch for i in part["index"].tolist()]
    assert len(steps) == 1
    assert sorted(i for i in seen if i != NOTHING) == list(range(5))


@pytest.mark.parametrize("kind", ["image", "label"])
def test_broken_file_raises_and_is_named(training, truncate, kind):
    path = truncate(getattr(training.pairs[2], kind))
    with pytest.raises(ValueError, match=rf"{path.name}: cannot be read as a picture \(.*\); replace it"):
        training[Draw(0, 2)]
    assert not training[Draw(0, 1)]["corrupt"]


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n"])
def test_file_that_is_no_picture(training, content):
    for path in (training.pairs[2].image, training.pairs[3].label):
        path.write_bytes(content)
    for index, name in ((2, "ADE_train_00000003.jpg"), (3, "ADE_train_00000004.png")):
        with pytest.raises(ValueError, match=f"{name}: cannot be read"):
            training[Draw(0, index)]


def test_missing_file_is_named(training):
    training.pairs[2].image.unlink()
    with pytest.raises(ValueError, match=r"ADE_train_00000003\.jpg: cannot be read.*No such file"):
        training[Draw(0, 2)]


def test_huge_picture_is_named(training, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"ADE_train_00000003\.jpg: cannot be read.*exceeds limit"):
        training[Draw(0, 2)]


def test_error_in_a_worker_names_the_file(training, truncate, monkeypatch):
    # torch waits so long for a worker that raised: 5 seconds by default, at the next garbage collection
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    path = truncate(training.pairs[2].image)
    sampler = TrainingSampler(6, 2, seed=0)
    with pytest.raises(ValueError, match=path.name):
        list(DataLoader(training, batch_size=2, sampler=sampler, collate_fn=collate, num_workers=1))
    gc.collect()


def test_sizes_that_differ_name_both_files(training):
    pair = training.pairs[0]
    Image.open(pair.label).resize((30, 40)).save(pair.label)
    with pytest.raises(ValueError, match="must have the same size") as error:
        training[Draw(0, 0)]
    assert f"{pair.image} is 52 x 40 pixels but {pair.label} is 30 x 40" in str(error.value)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
def test_photographs_of_any_8_bit_mode_become_rgb(tmp_path, make_photograph, mode):
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.fromarray(make_photograph(0, 20, 30)).convert(mode).save(path)
    image = read_image(path)
    assert (image.shape, image.dtype) == ((20, 30, 3), np.uint8)


def test_photograph_of_16_bits_is_refused(tmp_path):
    """Pillow would turn everything above 255 into white."""
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((20, 30), 3000, np.uint16)).save(path)
    with pytest.raises(ValueError, match=r"deep\.png: an image must have 8 bits a channel, this one is I;16"):
        read_image(path)


def test_images_are_rgb_as_pillow_reads_them(training):
    pair = training.pairs[0]
    image, labels = read_pair(pair, training.source)
    assert np.array_equal(image, np.asarray(Image.open(pair.image)))
    stored = np.asarray(Image.open(pair.label)).astype(int)
    assert np.array_equal(labels, np.where(stored == 0, 255, stored - 1))


def spoil(pair: Pair, how: str, truncate) -> None:
    if how == "truncated":
        truncate(pair.image)
    elif how == "value":
        Image.fromarray(np.full((40, 52), 200, np.uint8)).save(pair.label)
    else:
        Image.new("L", (30, 40)).save(pair.label)


@pytest.mark.parametrize("how", ["truncated", "value", "size"])
def test_skipped_training_sample_is_blank_and_marked(make_ade20k, truncate, how):
    source = ADE20k(make_ade20k(4, 1))
    sound = SegmentationDataset(source, "train", TRAINING, seed=5)
    others = [sound[Draw(3, i)] for i in (0, 1, 3)]
    spoil(sound.pairs[2], how, truncate)
    skipping = SegmentationDataset(source, "train", TRAINING, seed=5, on_corrupt="skip")
    sample = skipping[Draw(3, 2)]
    assert (sample["index"], sample["corrupt"]) == (2, True)
    assert (sample["image"].shape, sample["label"].shape) == ((40, 48, 3), (40, 48))
    assert (sample["label"] == 255).all()
    assert (sample["image"] == MEAN_PIXEL).all()
    assert all(same(before, skipping[Draw(3, i)]) for before, i in zip(others, (0, 1, 3), strict=True))
    batch = collate([skipping[Draw(3, i)] for i in range(4)])
    assert batch["corrupt"].tolist() == [False, False, True, False]


@pytest.mark.parametrize("transform", [SQUARE, KEPT])
def test_skipped_evaluation_sample_is_blank_and_marked(make_ade20k, truncate, transform):
    source = ADE20k(make_ade20k(1, 3))
    truncate(source.pairs("validation")[1].image)
    dataset = SegmentationDataset(source, "validation", transform, on_corrupt="skip")
    sample = dataset[1]
    assert (sample["index"], sample["corrupt"]) == (1, True)
    assert (sample["label"] == 255).all()
    assert (sample["image"] == MEAN_PIXEL).all()
    groups = collate_by_size([dataset[i] for i in range(3)])
    assert sorted(i for group in groups for i in group["index"].tolist()) == [0, 1, 2]
    assert [i for group in groups for i in group["index"][group["corrupt"]].tolist()] == [1]
