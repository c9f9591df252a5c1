import math

import pytest
import pytorch_lightning as pl
import tiny
import torch

from deeplab_recipes.optimization import constant, cosine, polynomial


def test_published_value():
    assert polynomial(0.5, power=0.9, alpha_f=0.01) == pytest.approx(0.540528, abs=1e-6)


@pytest.mark.parametrize("schedule", [polynomial, cosine])
@pytest.mark.parametrize("alpha_f", [0.0, 0.01, 0.5])
def test_ends_and_clipping(schedule, alpha_f):
    assert schedule(0.0, alpha_f=alpha_f) == 1
    assert schedule(1.0, alpha_f=alpha_f) == pytest.approx(alpha_f, abs=1e-15)
    assert schedule(-0.5, alpha_f=alpha_f) == 1
    assert schedule(1 + 1e-9, alpha_f=alpha_f) == pytest.approx(alpha_f, abs=1e-15)
    values = [schedule(i / 20, alpha_f=alpha_f) for i in range(21)]
    assert values == sorted(values, reverse=True)


def test_values_between():
    assert polynomial(0.25, power=1.0) == 0.75
    assert polynomial(0.25, power=2.0, alpha_f=0.2) == pytest.approx(0.2 + 0.8 * 0.75**2)
    assert cosine(0.5) == pytest.approx(0.5)
    assert cosine(0.25, alpha_f=0.1) == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    assert [constant(tau) for tau in (-1, 0, 0.3, 2)] == [1, 1, 1, 1]


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]


class Recorder(pl.Callback):
    """Notes the learning rate that each step is taken with."""

    def __init__(self):
        self.lrs: list[float] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.lrs.append(trainer.optimizers[0].param_groups[0]["lr"])


LIMITS = [{"max_epochs": 2}, {"max_epochs": -1, "max_steps": 7}, {"max_epochs": 9, "max_steps": 5}]


@pytest.mark.parametrize("limits", LIMITS)
def test_each_optimizer_step_has_the_rate_of_its_share_of_the_run(limits, tmp_path):
    """Microbatches do not advance the schedule, and it spans the smaller limit."""
    recorder = Recorder()
    module = tiny.module(
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.2),
        schedule=polynomial,
        microbatch_size=1,
    )
    trainer = tiny.trainer(tmp_path, callbacks=[recorder], **limits)
    trainer.fit(module, tiny.loader(tiny.batches(3)))
    total = min(limits["max_epochs"] * 3 if limits["max_epochs"] > 0 else 7, limits.get("max_steps", 99))
    assert trainer.global_step == total
    assert recorder.lrs == pytest.approx([0.2 * polynomial(step / total) for step in range(total)], rel=1e-12)


def test_a_schedule_can_end_at_the_last_step(tmp_path):
    recorder = Recorder()
    module = tiny.module(schedule=polynomial, schedule_ends="at_last_step")
    tiny.trainer(tmp_path, callbacks=[recorder]).fit(module, tiny.loader(tiny.batches(3)))
    assert recorder.lrs == pytest.approx([0.3 * polynomial(step / 2) for step in range(3)], rel=1e-12)
    assert recorder.lrs[-1] == 0


def test_a_schedule_can_span_more_steps_than_the_trainer_takes(tmp_path):
    recorder = Recorder()
    module = tiny.module(schedule=polynomial, total_steps=10)
    tiny.trainer(tmp_path, callbacks=[recorder]).fit(module, tiny.loader(tiny.batches(3)))
    assert recorder.lrs == pytest.approx([0.3 * polynomial(step / 10) for step in range(3)], rel=1e-12)
