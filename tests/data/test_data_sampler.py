import numpy as np
import pytest

from deeplab_recipes.data.sampler import NOTHING, Draw, EvaluationSampler, TrainingSampler


def batches(sampler: TrainingSampler) -> list[list[int]]:
    """This rank's indices, batch by batch."""
    share = sampler.batch_size // sampler.world_size
    indices = [draw.index for draw in sampler]
    return [indices[i : i + share] for i in range(0, len(indices), share)]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_together_make_the_global_batch(world_size):
    ranks = [TrainingSampler(22, 4, seed=3, rank=r, world_size=world_size) for r in range(world_size)]
    for epoch in range(3):
        for sampler in ranks:
            sampler.set_epoch(epoch)
        parts = [batches(sampler) for sampler in ranks]
        assert all(len(part) == 5 for part in parts)
        for number, shares in enumerate(zip(*parts, strict=True)):
            assert [index for share in shares for index in share] == ranks[0].global_batch(epoch, number)


def test_last_incomplete_batch_is_dropped_and_nothing_repeats():
    sampler = TrainingSampler(22, 4, seed=3)
    seen = [draw.index for draw in sampler]
    assert (sampler.steps_per_epoch, len(sampler), len(seen)) == (5, 20, 20)
    assert len(set(seen)) == 20
    assert set(seen) < set(range(22))
    assert len(TrainingSampler(22, 4, seed=3, world_size=2)) == 10


def test_order_follows_from_seed_and_epoch():
    def order(seed, epoch):
        sampler = TrainingSampler(50, 5, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 1) == order(0, 1)
    orders = {tuple(d.index for d in order(seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert {draw.epoch for draw in order(0, 7)} == {7}


def test_every_sample_has_its_turn():
    sampler = TrainingSampler(7, 4, seed=0)
    seen = set()
    for epoch in range(12):
        sampler.set_epoch(epoch)
        seen |= {draw.index for draw in sampler}
    assert seen == set(range(7))


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("done", [0, 1, 4, 5, 7])
def test_resumed_run_goes_on_after_its_last_step(world_size, done):
    """With five steps to an epoch: the rest of the epoch that step `done` is in, then the whole next one."""
    epoch, batch = divmod(done, 5)
    for rank in range(world_size):
        steps = {"done": done}
        whole = TrainingSampler(22, 4, seed=3, rank=rank, world_size=world_size)
        resumed = TrainingSampler(
            22, 4, seed=3, rank=rank, world_size=world_size, steps_done=lambda steps=steps: steps["done"]
        )
        for number, start in ((epoch, batch), (epoch + 1, 0)):
            steps["done"] = number * 5 + start
            for sampler in (whole, resumed):
                sampler.set_epoch(number)
            assert batches(resumed) == batches(whole)[start:]
            assert {draw.epoch for draw in resumed} <= {number}


@pytest.mark.parametrize(
    ("batch_size", "world_size", "message"), [(23, 1, "23 is larger .*22"), (6, 4, "6 .*4 devices")]
)
def test_impossible_batches_are_refused(batch_size, world_size, message):
    with pytest.raises(ValueError, match=message):
        TrainingSampler(22, batch_size, seed=0, world_size=world_size)


def test_samples_are_plain_draws():
    first = next(iter(TrainingSampler(3, 1, seed=0)))
    assert first == Draw(0, int(np.random.default_rng([0, 0]).permutation(3)[0]))


@pytest.mark.parametrize("size", [1, 2, 5, 7])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_each_image_once_in_equal_lengths(size, world_size):
    ranks = [EvaluationSampler(size, rank=r, world_size=world_size) for r in range(world_size)]
    parts = [list(sampler) for sampler in ranks]
    assert {len(part) for part in parts} == {len(ranks[0])} == {-(-size // world_size)}
    assert sorted(i for part in parts for i in part if i != NOTHING) == list(range(size))
    assert all(NOTHING not in part[:-1] for part in parts)
