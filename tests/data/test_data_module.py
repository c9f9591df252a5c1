import hashlib
import os
import signal

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import nn

from deeplab_recipes.data import SegmentationDataModule
from deeplab_recipes.data import module as data_module
from deeplab_recipes.data.sources import ADE20k, CamVid
from deeplab_recipes.data.transforms import EvaluationTransform

SIZES = {"square": (36, 44), "keep_ratio": (60, 40)}


def module(root, source=ADE20k, **settings) -> SegmentationDataModule:
    sizes = {"crop_size": (40, 48), "base_size": (40, 48), "evaluate_sizes": SIZES}
    return SegmentationDataModule(source, root, **{"batch_size": 2, "workers": 0, **sizes, **settings})


def prepared(data: SegmentationDataModule, batch):
    return data.on_after_batch_transfer(batch, 0)


@pytest.mark.parametrize("photometric", ["square", "keep_ratio", "none"])
def test_training_batches(make_ade20k, photometric):
    data = module(make_ade20k(5, 1), photometric=photometric, scale_range=(0.5, 0.9))
    data.check()
    batches = [prepared(data, batch) for batch in data.train_dataloader()]
    assert len(batches) == len(data.train_dataloader()) == 2
    assert data.num_classes == 150
    for batch in batches:
        assert set(batch) == {"image", "label", "index", "corrupt"}
        assert (batch["image"].shape, batch["image"].dtype) == ((2, 3, 40, 48), torch.float32)
        assert batch["image"].is_contiguous(memory_format=torch.channels_last)
        assert (batch["label"].shape, batch["label"].dtype) == ((2, 40, 48), torch.uint8)
        assert (batch["image"][:, :, 0, 0] == 0).all()  # padding in the corner
        assert 0.1 < batch["image"].abs().mean() < 3


@pytest.mark.parametrize("protocol", ["square", "keep_ratio"])
def test_evaluation_batches_are_normalised_parts(make_ade20k, protocol):
    data = module(make_ade20k(2, 5, sizes=((40, 60), (60, 40))), protocol=protocol, evaluate_batch_size=3)
    batches = [prepared(data, batch) for batch in data.val_dataloader()]
    assert len(batches) == 2
    assert sorted(i for batch in batches for part in batch for i in part["index"].tolist()) == list(range(5))
    expected = EvaluationTransform(protocol, SIZES[protocol])(*pair_of(data, 0))
    first = batches[0][0]
    image = torch.from_numpy(expected["image"].copy()).permute(2, 0, 1)[None]
    assert torch.allclose(first["image"][:1], data.normalize(image), atol=1e-6)
    assert np.array_equal(first["label"][0].numpy(), expected["label"])


def pair_of(data: SegmentationDataModule, index: int) -> tuple[np.ndarray, np.ndarray]:
    pair = data.dataset("validation", training=False).pairs[index]
    stored = np.asarray(Image.open(pair.label)).astype(int)
    return np.asarray(Image.open(pair.image)), np.where(stored == 0, 255, stored - 1).astype(np.uint8)


def test_other_splits_can_be_evaluated(make_ade20k):
    loader = module(make_ade20k(5, 1)).evaluation_dataloader("train")
    assert sorted(i for batch in loader for part in batch for i in part["index"].tolist()) == list(range(5))


def test_loaders_leave_the_global_random_state_alone(make_ade20k):
    """Dropout must not depend on the number of workers."""
    root, states = make_ade20k(4, 1), []
    for workers in (0, 1):
        data = module(root, workers=workers)
        torch.manual_seed(3)
        loader = data.train_dataloader()
        for _ in range(2):
            list(loader)
        states.append(torch.get_rng_state())
    torch.manual_seed(3)
    assert all(torch.equal(state, torch.get_rng_state()) for state in states)


class Watcher(pl.LightningModule):
    """Remembers the samples of every step; optimization is manual, as in `SegmentationModule`."""

    def __init__(self, save: dict[int, str]):
        super().__init__()
        self.automatic_optimization = False
        self.weight, self.seen, self.save = nn.Linear(1, 1), [], save

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch["index"].tolist(), batch["image"].sum().item()))
        self.manual_backward(self.weight(torch.ones(1, 1)).sum())
        self.optimizers().step()

    def on_train_batch_end(self, *_):
        if self.global_step in self.save:
            self.trainer.save_checkpoint(self.save[self.global_step])

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches == 6  # makes Lightning ask for the loader early
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("limit", [{"max_epochs": 2}, {"max_epochs": -1, "max_steps": 6}])
def test_resumed_run_sees_the_samples_it_would_have_seen(make_ade20k, tmp_path, limit, workers):
    root = make_ade20k(7, 1)

    def fit(checkpoint=None, save=()):
        watcher = Watcher({step: str(tmp_path / f"{step}.ckpt") for step in save})
        trainer = pl.Trainer(
            **limit,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            check_val_every_n_epoch=None,
            val_check_interval=4,
        )
        data = module(root, workers=workers)
        trainer.fit(watcher, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        return watcher.seen

    whole = fit(save=(1, 2, 3, 4, 5))
    assert [epoch for epoch, _, _ in whole] == [0, 0, 0, 1, 1, 1]
    for step in (1, 2, 3, 4, 5):
        assert fit(str(tmp_path / f"{step}.ckpt")) == whole[step:]


def test_steps_of_a_resumed_run_are_forgotten_by_the_next(make_ade20k):
    data = module(make_ade20k(7, 1))
    whole = [batch["index"].tolist() for batch in data.train_dataloader()]
    data.load_state_dict({"steps": 2})
    assert data.state_dict() == {"steps": 2}
    assert [batch["index"].tolist() for batch in data.train_dataloader()] == whole[2:]
    data.setup("fit")
    assert [batch["index"].tolist() for batch in data.train_dataloader()] == whole


def test_check_looks_at_both_parts(make_ade20k, truncate):
    data = module(make_ade20k(3, 2))
    data.check()
    path = truncate(data.dataset("validation", training=False).pairs[1].label)
    with pytest.raises(ValueError, match=path.name):
        data.check()
    module(data.root, check_samples=0).check()
    module(data.root, on_corrupt="skip").check()


def test_skipped_images_are_marked_in_the_batches(make_ade20k, truncate):
    data = module(make_ade20k(4, 2), on_corrupt="skip", batch_size=4)
    for split, training in (("train", True), ("validation", False)):
        truncate(data.dataset(split, training=training).pairs[1].image)
    (batch,) = [prepared(data, batch) for batch in data.train_dataloader()]
    assert batch["index"][batch["corrupt"]].tolist() == [1]
    parts = [part for batch in data.val_dataloader() for part in prepared(data, batch)]
    assert [part["index"].tolist() for part in parts if part["corrupt"].any()] == [[1]]


def test_batch_larger_than_the_set(make_ade20k):
    with pytest.raises(ValueError, match=r"batch_size=8 is larger than the training part \(5 samples\)"):
        module(make_ade20k(5, 1), batch_size=8).train_dataloader()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pipeline": "squash"}, r"data\.pipeline is 'squash'; valid are square, keep_ratio$"),
        ({"photometric": "strong"}, r"data\.photometric is 'strong'; valid are square, keep_ratio, none$"),
        ({"on_corrupt": "drop"}, r"data\.on_corrupt is 'drop'; valid are raise, skip$"),
        ({"protocol": "sliding"}, r"protocol is 'sliding'; valid are square, keep_ratio$"),
        ({"evaluate_sizes": {"whole": (64, 64)}}, r"data\.evaluate_sizes is 'whole'; valid are square"),
        ({"evaluate_sizes": {"square": (64, 20)}}, r"data\.evaluate_sizes\.square is .*20.*at least 33"),
        ({"protocol": "keep_ratio", "evaluate_sizes": {"square": (64, 64)}}, r"'keep_ratio'; .* square$"),
        ({"crop_size": (32, 64)}, r"data\.crop_size is .*32, 64.*two whole numbers of at least 33"),
        ({"crop_size": 512}, r"data\.crop_size is 512; it takes two whole numbers.*like \[512,512\]"),
        ({"crop_size": (64.5, 64)}, r"data\.crop_size is .*64\.5"),
        ({"crop_size": "64"}, r"data\.crop_size is 64"),
        ({"base_size": (64,)}, r"data\.base_size is"),
        ({"base_size": (64, None)}, r"data\.base_size is"),
        ({"scale_range": (2.0, 0.5)}, r"data\.scale_range is .*0 < low <= high"),
        ({"scale_step": 3.0}, r"data\.scale_step is 3\.0; it takes 0 or a number up to"),
        ({"scale_step": -0.25}, r"data\.scale_step is -0\.25"),
        ({"scale_range": 1.0}, r"data\.scale_range is 1\.0"),
        ({"scale_range": (0.0, 1.0)}, r"data\.scale_range is"),
        ({"scale_range": (0.5, float("inf"))}, r"data\.scale_range is"),
        ({"max_class_share": 1.2}, r"data\.max_class_share is 1\.2; it must be in \[0, 1\]"),
        ({"flip": -0.1}, r"data\.flip is -0\.1"),
        ({"flip": "often"}, r"data\.flip is 'often'"),
        ({"mean": (0.5, 0.5)}, r"data\.mean is .*three numbers"),
        ({"std": (1.0, 0.0, 1.0)}, r"data\.std is .*three numbers above 0"),
        ({"batch_size": 0}, r"batch_size is 0; it takes a whole number of at least 1$"),
        ({"batch_size": 2.5}, r"batch_size is 2\.5"),
        ({"evaluate_batch_size": 0}, r"evaluate_batch_size is 0"),
        ({"workers": -1}, r"data\.workers is -1; it takes a whole number of at least 0 or \"auto\"$"),
        ({"workers": "many"}, r"data\.workers is 'many'"),
        ({"check_samples": -1}, r"data\.check_samples is -1"),
        ({"seed": -3}, r"seed is -3"),
    ],
)
def test_wrong_settings_name_value_and_what_is_valid(make_ade20k, settings, message):
    with pytest.raises(ValueError, match=message):
        module(make_ade20k(1, 1), **settings)


def test_settings_reach_what_they_set(make_ade20k):
    chosen = {"pipeline": "keep_ratio", "flip": 0.25, "max_class_share": 1, "scale_range": [1, 1.5]}
    data = module(make_ade20k(4, 1), **chosen, seed=9)
    transform = data.training_transform
    assert (transform.pipeline, transform.flip, transform.max_class_share) == ("keep_ratio", 0.25, 1)
    assert (transform.scale_range, transform.crop_size) == ((1, 1.5), (40, 48))
    assert data.sampler().seed == data.dataset("train", training=True).seed == 9
    for workers, count in ((0, 0), (1, 1)):
        loader = module(data.root, workers=workers).train_dataloader()
        assert (loader.num_workers, loader.persistent_workers) == (count, count > 0)
    assert 1 <= module(data.root, workers="auto").train_dataloader().num_workers <= 8


def test_mean_and_std_are_used(make_ade20k):
    data = module(make_ade20k(2, 2), mean=(0, 0, 0), std=(1, 1, 1), photometric="none", scale_range=(1, 1))
    raw = next(iter(data.train_dataloader()))
    assert torch.equal(prepared(data, raw)["image"], raw["image"].float())
    raw = next(iter(data.val_dataloader()))
    assert torch.equal(prepared(data, raw)[0]["image"], raw[0]["image"].float())


def test_fingerprint_changes_with_names_and_sizes_only(make_ade20k):
    root = make_ade20k(3, 2)
    first = module(root).fingerprint()
    assert first == module(root.parent, batch_size=1).fingerprint()
    assert len(first) == len(hashlib.sha256().hexdigest())
    path = root / "images" / "validation" / "ADE_val_00000001.jpg"
    path.write_bytes(path.read_bytes() + b"\0")
    assert module(root).fingerprint() != first


@pytest.mark.parametrize(
    ("name", "source", "pipeline", "base", "steps"),
    [("camvid", CamVid, "keep_ratio", (480, 360), 45), ("ade20k_mini", ADE20k, "square", (128, 128), 164)],
)
def test_real_data_goes_through(real_data, name, source, pipeline, base, steps):
    whose = {"pipeline": pipeline, "photometric": pipeline, "protocol": pipeline}
    settings = {"base_size": base, "crop_size": (96, 96), "batch_size": 8, "check_samples": 2}
    data = module(real_data(name), source, **whose, **settings)
    assert data.sampler().steps_per_epoch == steps
    batch = prepared(data, next(iter(data.train_dataloader())))
    assert batch["image"].shape == (8, 3, 96, 96)
    assert torch.isfinite(batch["image"]).all()
    # photographs of the world (CamVid's are dark), normalised: no zeros, no levels of 0..255
    assert abs(batch["image"].mean()) < 2
    assert 0.3 < batch["image"].std() < 2
    labels = batch["label"][batch["label"] != 255]
    assert 0 <= labels.min() <= labels.max() < data.num_classes


def test_fingerprint_takes_any_file_name(make_ade20k):
    """Names on Linux are bytes; these are no UTF-8."""
    root = make_ade20k(4, 1)
    for kind, suffix in (("images", b".jpg"), ("annotations", b".png")):
        path = min((root / kind / "training").iterdir())
        os.rename(path, os.fsencode(path.parent) + b"/\xff" + suffix)
    assert len(module(root).fingerprint()) == 64


def test_a_signal_while_loader_processes_start_does_not_end_them(make_ade20k, monkeypatch):
    """The whole group gets it; one that was forked a moment ago is not ready for it yet."""
    start = data_module._start_worker

    def signalled(worker: int, *, parent: int) -> None:
        for notice in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            os.kill(os.getpid(), notice)
        start(worker, parent=parent)

    monkeypatch.setattr(data_module, "_start_worker", signalled)
    data = module(make_ade20k(6, 1), workers=2)
    assert len(list(data.train_dataloader())) == len(data.sampler()) // 2
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
