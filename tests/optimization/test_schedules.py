import math

import pytest
import pytorch_lightning as pl
import tiny
import torch

from deeplab_recipes.optimization import Exponential, InverseTime, constant, cosine, polynomial
from deeplab_recipes.optimization.schedules import by_step


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


def factors(schedule, count: int, **settings) -> list[float]:
    factor = by_step(schedule, total=10, **{"steps_per_epoch": 3, **settings})
    return [factor(step) for step in range(count)]


def test_exponential_by_epoch_and_by_step():
    assert factors(Exponential(0.5), 8) == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert factors(Exponential(0.5, every="step"), 4) == [1, 0.5, 0.25, 0.125]


def test_inverse_time_is_keras_decay():
    assert factors(InverseTime(0.5), 4) == pytest.approx([1, 1 / 1.5, 1 / 2, 1 / 2.5])
    assert factors(InverseTime(0.0), 3) == [1, 1, 1]


def test_a_function_of_tau_spans_the_run():
    assert factors(lambda tau: tau, 3, steps_per_epoch=None) == pytest.approx([0, 0.1, 0.2])
    assert factors(lambda tau: tau, 10, at_last_step=True)[-1] == 1


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: Exponential(1.1), r"schedule.factor is 1.1; it must be in \(0, 1\]"),
        (lambda: Exponential(0), "schedule.factor is 0"),
        (lambda: Exponential(0.5, every="batch"), "'batch'; valid are epoch, step"),
        (lambda: InverseTime(-1), "schedule.decay is -1"),
        (lambda: factors(Exponential(0.5), 1, at_last_step=True), "at_last_step has no effect"),
        (lambda: factors(Exponential(0.5), 1, steps_per_epoch=None), "needs steps_per_epoch"),
    ],
)
def test_what_cannot_work_is_refused(act, message):
    with pytest.raises(ValueError, match=message):
        act()


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
