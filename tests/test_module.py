import json
from pathlib import Path

import forked
import pytest
import pytorch_lightning as pl
import tiny
import torch
import torch.nn.functional as F
from tiny import IGNORE
from torch import Tensor, nn

from deeplab_recipes.hard_pixels import OHEM, TopPixels
from deeplab_recipes.losses import SegmentationLoss, dice
from deeplab_recipes.metrics import MeanIoU
from deeplab_recipes.module import SegmentationModule, resize_logits

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]


def weights(module: SegmentationModule) -> list[Tensor]:
    return [p.detach() for p in module.parameters()]


def assert_same(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b.to(a.dtype), rtol=0, atol=tolerance)


def mean_valid(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target, ignore_index=IGNORE)


def mean_all(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none").mean()


MEANS = {"valid": mean_valid, "all": mean_all}


@pytest.mark.parametrize("denominator", MEANS)
@pytest.mark.parametrize("microbatch_size", [None, 1, 2, 3, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_microbatches_train_as_the_whole_batch(denominator, microbatch_size, dtype, tolerance, tmp_path):
    module = tiny.module(SegmentationLoss(denominator=denominator), dtype=dtype, microbatch_size=microbatch_size)
    trainer = tiny.trainer(tmp_path, max_epochs=2)
    trainer.fit(module, tiny.loader(tiny.batches(dtype=dtype)))
    assert trainer.global_step == 6  # one for each batch, whatever its split
    assert_same(weights(module), tiny.by_hand(MEANS[denominator], tiny.batches(), epochs=2), tolerance)


def test_dice_over_microbatches_is_the_mean_of_theirs(tmp_path):
    module = tiny.module(SegmentationLoss(cross_entropy=0, dice=1), microbatch_size=3)
    tiny.trainer(tmp_path).fit(module, tiny.loader(tiny.batches()))

    def expected(logits: Tensor, target: Tensor) -> Tensor:
        return (3 * dice(logits[:3], target[:3]) + dice(logits[3:], target[3:])) / 4

    assert_same(weights(module), tiny.by_hand(expected, tiny.batches()), 1e-12)


def test_global_dice_over_microbatches_is_refused(tmp_path):
    module = tiny.module(SegmentationLoss(dice=1, normalize="global"), microbatch_size=2)
    with pytest.raises(ValueError, match="microbatch_size"):
        tiny.trainer(tmp_path).fit(module, tiny.loader(tiny.batches()))
    whole = tiny.module(SegmentationLoss(dice=1, normalize="global"), microbatch_size=4)
    tiny.trainer(tmp_path).fit(whole, tiny.loader(tiny.batches()))


def test_class_weights_over_microbatches_train_as_the_whole_batch(tmp_path):
    loss = SegmentationLoss(class_weights=[1.0, 3.0, 0.25], denominator="weights")
    module = tiny.module(loss, microbatch_size=1)
    tiny.trainer(tmp_path).fit(module, tiny.loader(tiny.batches()))
    assert_same(weights(module), tiny.by_hand(weighted, tiny.batches()), 1e-12)


def test_hard_pixels_over_microbatches_are_chosen_in_each(tmp_path):
    module = tiny.module(SegmentationLoss(hard_pixels=TopPixels(0.25)), microbatch_size=2)
    tiny.trainer(tmp_path).fit(module, tiny.loader(tiny.batches()))
    assert_same(weights(module), tiny.by_hand(halves(hardest), tiny.batches()), 1e-12)


@pytest.mark.parametrize(("microbatches", "devices"), [(2, 1), (1, 2)])
def test_global_hard_pixels_of_a_split_batch_are_refused(microbatches, devices):
    loss = SegmentationLoss(hard_pixels=OHEM(), normalize="global")
    loss.require_exact(1, 1)
    SegmentationLoss(hard_pixels=OHEM()).require_exact(microbatches, devices)
    with pytest.raises(ValueError, match=r"loss\.normalize=device"):
        loss.require_exact(microbatches, devices)


def test_the_share_of_hard_pixels_follows_the_steps(tmp_path):
    seen = []

    class Noted(TopPixels):
        def choose(self, losses, logits, target, *, ignore_index, step):
            seen.append((step, self.share(step)))
            return super().choose(losses, logits, target, ignore_index=ignore_index, step=step)

    module = tiny.module(SegmentationLoss(hard_pixels=Noted(0.5, 2)), microbatch_size=2)
    tiny.trainer(tmp_path).fit(module, tiny.loader(tiny.batches(4)))
    assert seen == [(step, share) for step, share in enumerate((1.0, 0.75, 0.5, 0.5)) for _ in range(2)]


@pytest.mark.parametrize("microbatch_size", [None, 1])
def test_a_step_reports_the_loss_of_its_batch(microbatch_size, tmp_path):
    outputs = []
    loss = SegmentationLoss(cross_entropy=0.5, dice=2)
    module = tiny.module(loss, microbatch_size=microbatch_size)
    model, batch = tiny.network(), tiny.batches(1)[0]
    module.on_train_batch_end = lambda values, *_: outputs.append(values)
    tiny.trainer(tmp_path).fit(module, tiny.loader([batch]))
    with torch.no_grad():
        size = microbatch_size or 4
        logits = model(batch["image"])
        pieces = zip(logits.split(size), batch["label"].split(size), strict=True)
        overlap = torch.stack([dice(*piece) for piece in pieces]).mean()
        mean = mean_valid(logits, batch["label"].long())
    torch.testing.assert_close(outputs[0]["cross_entropy"], mean)
    torch.testing.assert_close(outputs[0]["dice"], overlap)
    torch.testing.assert_close(outputs[0]["loss"], 0.5 * mean + 2 * overlap)
    assert not any(value.requires_grad for value in outputs[0].values())


def blank(batch: tiny.Batch) -> tiny.Batch:
    return {**batch, "label": torch.full_like(batch["label"], IGNORE)}


@pytest.mark.parametrize("microbatch_size", [None, 1])
@pytest.mark.parametrize("denominator", MEANS)
def test_an_ignored_batch_adds_no_gradient(microbatch_size, denominator, tmp_path):
    module = tiny.module(
        SegmentationLoss(dice=1, denominator=denominator),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        microbatch_size=microbatch_size,
    )
    before = [p.clone() for p in weights(module)]
    tiny.trainer(tmp_path).fit(module, tiny.loader([blank(b) for b in tiny.batches()]))
    assert_same(weights(module), before, 0)
    tiny.trainer(tmp_path).fit(module, tiny.loader([*tiny.batches(), blank(tiny.batches()[0])]))
    assert all(p.isfinite().all() for p in weights(module))
    assert not torch.equal(weights(module)[0], before[0])


def test_bf16_mixed_stays_close_to_float32(tmp_path):
    modules = []
    for precision in ("32-true", "bf16-mixed"):
        module = tiny.module(SegmentationLoss(dice=1), dtype=torch.float32, microbatch_size=2)
        tiny.trainer(tmp_path, precision=precision).fit(module, tiny.loader(tiny.batches(dtype=torch.float32)))
        modules.append(weights(module))
    assert all(p.dtype == torch.float32 for p in modules[1])
    assert_same(*modules, 2e-2)


def trained_with_dropout(folder: Path, *, seed: int, surroundings: int) -> list[Tensor]:
    module = tiny.module(seed=seed, microbatch_size=2)
    module.model = nn.Sequential(nn.Dropout(0.5), module.model)
    torch.manual_seed(surroundings)
    data = tiny.batches(1) * 2  # the same batch twice, with other draws
    tiny.trainer(folder).fit(module, tiny.loader(data))
    return weights(module)


def test_dropout_follows_from_the_seed_alone(tmp_path):
    first = trained_with_dropout(tmp_path, seed=17, surroundings=1)
    assert_same(trained_with_dropout(tmp_path, seed=17, surroundings=2), first, 0)
    other = trained_with_dropout(tmp_path, seed=18, surroundings=1)
    assert not torch.equal(other[0], first[0])


def test_a_checkpoint_carries_the_card(tmp_path):
    card = {"format_version": 1, "classes": ["a", "b", "c"]}
    module = tiny.module(card=card)
    trainer = tiny.trainer(tmp_path)
    trainer.fit(module, tiny.loader(tiny.batches()))
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    saved = torch.load(tmp_path / "some.ckpt", weights_only=True)
    assert saved["deeplab"] == card
    assert {name for name in saved["state_dict"] if not name.startswith("model.")} == set()


@pytest.mark.parametrize("size", [0, -2])
def test_a_microbatch_below_one_is_refused(size):
    with pytest.raises(ValueError, match=f"microbatch_size is {size}"):
        tiny.module(microbatch_size=size)


def evaluation_batches(dtype: torch.dtype = torch.float64) -> list[list[tiny.Batch]]:
    """Images of several sizes, whose labels have sizes of their own."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for height, width in ((7, 6), (5, 9), (8, 8), (4, 11)):
        image = torch.randn(1, 3, height, width, generator=generator, dtype=dtype)
        label = torch.randint(0, 3, (1, 2 * height + 1, width), generator=generator, dtype=torch.uint8)
        label[:, 0] = IGNORE
        made.append([{"image": image, "label": label}])
    return made


def expected_evaluation(data: list[list[tiny.Batch]]) -> MeanIoU:
    metric, model = MeanIoU(3), tiny.network()
    with torch.no_grad():
        for part in (part for batch in data for part in batch):
            size = part["label"].shape[-2:]
            logits = F.interpolate(model(part["image"]), size=size, mode="bilinear", align_corners=False)
            metric.update(logits, part["label"])
    return metric


def test_evaluation_counts_at_the_size_of_the_labels(tmp_path):
    data, module = evaluation_batches(), tiny.module()
    trainer = tiny.trainer(tmp_path)
    for _ in range(2):  # each evaluation counts afresh
        trainer.validate(module, tiny.loader(data), verbose=False)
    expected = expected_evaluation(data)
    assert module.evaluation["miou"] == expected.compute().item()
    assert module.evaluation["per_class"] == expected.per_class().tolist()
    assert trainer.callback_metrics["miou"].item() == pytest.approx(module.evaluation["miou"])


def test_corrupt_samples_are_noted_where_they_are_skipped(tmp_path):
    marks = {"index": torch.tensor([7, 3, 9, 1]), "corrupt": torch.tensor([True, False, True, False])}
    batch = {**tiny.batches(1)[0], **marks}
    module = tiny.module(card={"on_corrupt": "skip"})
    tiny.trainer(tmp_path).fit(module, tiny.loader([batch]), tiny.loader([[batch]]))
    assert module.corrupt == {"train": {7, 9}, "validation": {7, 9}}


def test_resize_logits():
    logits = torch.randn(1, 2, 4, 5)
    assert resize_logits(logits, (4, 5)) is logits
    assert resize_logits(logits, torch.Size([8, 3])).shape == (1, 2, 8, 3)


def test_any_network_that_gives_logits_will_do(tmp_path):
    module = SegmentationModule(
        nn.Conv2d(3, 2, 1), loss=SegmentationLoss(), optimizer=tiny.sgd, schedule=tiny.falling, num_classes=2
    )
    assert module(torch.zeros(1, 3, 5, 5)).shape == (1, 2, 5, 5)


class TwoHeaded(nn.Module):
    """`tiny.network` with a second convolution for auxiliary logits."""

    def __init__(self) -> None:
        super().__init__()
        self.main = tiny.network()
        self.second = nn.Conv2d(3, tiny.CLASSES, 1).double()

    def forward(self, images: Tensor) -> Tensor:
        return self.main(images)

    def forward_with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.main(images), self.second(images)


@pytest.mark.parametrize("microbatch_size", [None, 1])
def test_auxiliary_logits_add_their_weighted_loss(tmp_path, microbatch_size):
    loss = SegmentationLoss(cross_entropy=0.5, dice=0.0 if microbatch_size else 2.0, auxiliary=0.4)
    settings = {"optimizer": tiny.sgd, "schedule": tiny.falling, "num_classes": tiny.CLASSES}
    torch.manual_seed(3)
    module = SegmentationModule(TwoHeaded(), loss=loss, microbatch_size=microbatch_size, **settings)
    reference, batch = TwoHeaded(), tiny.batches(1)[0]
    reference.load_state_dict(module.model.state_dict())
    step = {}
    tiny.trainer(tmp_path, callbacks=[Keep(step)]).fit(module, tiny.loader([batch]))

    def total(logits: Tensor) -> Tensor:
        target = batch["label"].long()
        return 0.5 * mean_valid(logits, target) + loss.weights["dice"] * dice(logits, target)

    optimizer = tiny.sgd(reference.parameters())
    expected = total(reference.main(batch["image"])) + 0.4 * total(reference.second(batch["image"]))
    expected.backward()
    optimizer.step()
    assert_same(weights(module), [p.detach() for p in reference.parameters()], 1e-12)
    assert float(step["loss"]) == pytest.approx(float(expected), abs=1e-12)
    assert float(step["auxiliary"]) > 0


class Keep(pl.Callback):
    """Keeps what a training step returned."""

    def __init__(self, into: dict[str, Tensor]) -> None:
        self.into = into

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.into.update(outputs)


# Two devices: one launch of tests/two_devices.py trains all of these, each rank on its half of every batch.


@pytest.fixture(scope="module")
def two_devices(tmp_path_factory) -> tuple[list[dict], str]:
    """What each rank ended with, and what they printed."""
    folder = tmp_path_factory.mktemp("two_devices")
    printed = forked.run("two_devices", "main", 2, folder, timeout=120)
    results = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name, first in results[0]["weights"].items():
        assert_same(first, results[1]["weights"][name], 0)  # the ranks agree to the last bit
    return results, printed


def halves(mean):
    """The average over two devices of each one's own mean."""
    return lambda logits, target: (mean(logits[:2], target[:2]) + mean(logits[2:], target[2:])) / 2


def weighted(logits: Tensor, target: Tensor) -> Tensor:
    weight = torch.tensor([1.0, 3.0, 0.25], dtype=logits.dtype)
    return F.cross_entropy(logits, target, weight=weight, ignore_index=IGNORE)


def hardest(logits: Tensor, target: Tensor) -> Tensor:
    """The mean over the quarter of the pixels with the highest losses, those of 0 left out."""
    losses = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none").flatten()
    losses = losses.sort(descending=True).values[: losses.numel() // 4]
    return losses.sum() / (losses > 0).sum()


def unlikely(logits: Tensor, target: Tensor) -> Tensor:
    """The losses of the pixels whose class has a probability below 0.4, of 3 for each image at least, by all pixels."""
    losses = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")
    losses = losses[target != IGNORE]
    probability = (-losses.detach()).exp()
    least = probability.sort().values[min(3 * len(target), len(probability) - 1)]
    return losses[probability < max(least, 0.4)].sum() / target.numel()


WHOLE = {
    "global_weights": weighted,
    "global_weights_microbatch_1": weighted,
    "device_top_k": halves(hardest),
    "device_ohem": halves(unlikely),
    "global_valid": mean_valid,
    "global_valid_microbatch_1": mean_valid,
    "global_all": mean_all,
    "global_dice": dice,
    "global_sum": lambda logits, target: 0.375 * mean_valid(logits, target) + 1.125 * dice(logits, target),
    "device_valid": halves(mean_valid),
    "device_valid_microbatch_1": halves(mean_valid),
    "device_all": halves(mean_all),
    "device_dice": halves(dice),
}


@pytest.mark.parametrize("name", WHOLE)
def test_two_devices_train_as_one_on_the_whole_batch(two_devices, name):
    expected = tiny.by_hand(WHOLE[name], tiny.batches(5))
    assert_same(two_devices[0][0]["weights"][name], expected, 1e-9)


def test_the_two_normalisations_differ_on_these_batches():
    """Otherwise the test above would prove nothing."""
    whole, each = (tiny.by_hand(WHOLE[name], tiny.batches(5))[0] for name in ("global_valid", "device_valid"))
    assert (whole - each).abs().max() > 1e-2


def test_one_labelled_pixel_on_two_devices(two_devices):
    batch = tiny.batches(1)[0]
    batch["label"] = torch.full_like(batch["label"], IGNORE)
    batch["label"][3, 2, 2] = 1
    assert_same(two_devices[0][0]["weights"]["one_pixel"], tiny.by_hand(mean_valid, [batch]), 1e-9)


def test_both_devices_count_the_whole_evaluation(two_devices):
    expected = expected_evaluation(evaluation_batches())
    for rank in two_devices[0]:
        assert rank["evaluation"]["miou"] == expected.compute().item()
        assert json.dumps(rank["evaluation"]["per_class"]) == json.dumps(expected.per_class().tolist())


def test_two_devices_print_nothing(two_devices):
    assert two_devices[1] == ""
