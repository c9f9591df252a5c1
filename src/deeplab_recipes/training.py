"""A run from settings to result.json: build the parts, fit, evaluate, write the record."""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import SIGTERMException

from deeplab_recipes import agreement, locking, planning, record, resuming
from deeplab_recipes.checkpoints import Checkpoints, NonFiniteError, card_of
from deeplab_recipes.data import SegmentationDataModule
from deeplab_recipes.data.files import Piece
from deeplab_recipes.data.packed import spread
from deeplab_recipes.data.sources.base import read_pair
from deeplab_recipes.evaluation.pictures import comparison, picture_names, stack
from deeplab_recipes.inference import load_predictor
from deeplab_recipes.initial_weights import Init, InitialWeights, check_choice, load_initial_weights
from deeplab_recipes.losses import SegmentationLoss
from deeplab_recipes.model import DeepLab
from deeplab_recipes.module import ScheduleEnds, SegmentationModule
from deeplab_recipes.notices import REQUEUE, Stopped, ending_on_notice
from deeplab_recipes.optimization import ParameterRules
from deeplab_recipes.optimization.schedules import Schedule
from deeplab_recipes.reporting import Reporter, class_table, clock
from deeplab_recipes.signals import StopOnSignal, end_launched_processes
from deeplab_recipes.sweeping.pruning import PruneTrial
from deeplab_recipes.trainer import TrainerSettings, keep_freed_memory

PICTURE_WIDTH = 320  # smaller scenes are enlarged to about this in pictures
NOT_APPLICABLE = (
    ".*does not have many workers.*",  # data.workers is chosen from the cores at hand
    ".*exists and is not empty.*",  # the run directory is checked before
    ".*your dataloader is not resumable.*",  # its sampler is: see TrainingSampler
    # A depthwise weight has one input channel, whose stride means nothing.
    r"(?s)Grad strides do not match bucket view strides.*grad.sizes\(\) = \[\d+, 1, ",
    ".*in eval mode at the start of training.*",  # model.freeze_batchnorm asks for it
    ".*isinstance.treespec, LeafSpec.*",  # Lightning's own use of torch
)


@dataclass
class Run:
    """Everything a run is made of, built and checked, before its first step.

    Args:
        name: of the recipe.
        model: called with `num_classes`, gives the network.
        data: the data module.
        loss, optimizer, schedule, schedule_ends: see `SegmentationModule`.
        trainer: how to train.
        seed: of weights, order and draws.
        run_dir: where everything goes.
        parameters: factors on their learning rate, and what has no weight decay.
        microbatch_size: images per pass, or None.
        methods: callbacks that change training, by name.
        logger: called with `save_dir`, gives a Lightning logger; or None.
        pictures: validation images to draw at the end.
        published: what the recipe reproduces (see the recipes), or None.
        overrides: leaves that differ from the recipe: name -> (recipe's, this run's).
        trial: what ties this run to a search, or None.
        weights: a checkpoint, or zoo:NAME, whose weights it begins with; the backbone's own are then not asked for.
        init: what to take of them, see `load_initial_weights`.
    """

    name: str
    model: Callable[..., DeepLab]
    data: SegmentationDataModule
    loss: SegmentationLoss
    optimizer: Callable[..., torch.optim.Optimizer]
    schedule: Schedule
    trainer: TrainerSettings
    seed: int
    run_dir: str | Path
    schedule_ends: ScheduleEnds = "after_last_step"
    parameters: ParameterRules = field(default_factory=ParameterRules)
    microbatch_size: int | None = None
    methods: Mapping[str, pl.Callback] = field(default_factory=dict)
    logger: Callable[..., Logger] | None = None
    pictures: int = 4
    published: planning.Published | None = None
    overrides: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    trial: PruneTrial | None = None
    weights: str | None = None
    init: Init = "transfer_learning"

    def __post_init__(self) -> None:
        check_choice(self.weights, self.init)
        self.begun: InitialWeights | None = None
        self.run_dir = Path(self.run_dir)
        pl.seed_everything(self.seed, verbose=False)
        self.split = planning.split_for(
            self.data.batch_size,
            self.trainer,
            getattr(self.model, "keywords", {}),
            microbatch_size=self.microbatch_size,
        )
        self.data.check()
        self.sampler = self.data.sampler()
        self.checkpoints = Checkpoints(self.run_dir / "checkpoints")
        self.reporter = Reporter(
            self.run_dir / "metrics.csv",
            batch_size=self.data.batch_size,
            every=self.trainer.log_every,
            progress=self.trainer.progress,
        )
        # A search begins a stopped trial anew.
        how = "the same search again goes on" if self.trial else None
        self.stopper = StopOnSignal(self.checkpoints.save, every=self.trainer.log_every, how=how)
        self.lightning = self._build_trainer()
        self.network = self._build_network()

    def _build_trainer(self) -> pl.Trainer:
        with quiet():
            return self.trainer.build(
                callbacks=[
                    self.reporter,
                    self.checkpoints,
                    *self.methods.values(),
                    *([self.trial] if self.trial else []),
                    self.stopper,
                ],
                loggers=[self.logger(save_dir=self.run_dir)] if self.logger else [],
                steps_per_epoch=self.sampler.steps_per_epoch,
                run_dir=self.run_dir,
            )

    def _build_network(self) -> DeepLab:
        return agreement.build_network(
            self.model,
            classes=self.data.source.classes,
            split=self.split,
            loss=self.loss,
            optimizer=self.optimizer,
            parameters=self.parameters,
            schedule=self.schedule,
            schedule_ends=self.schedule_ends,
            count=self.data.count_classes,
            crop=self.data.training_transform.crop_size,
            **({"backbone_weights": None} if self.weights else {}),
        )

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.trainer.steps(self.sampler.steps_per_epoch)

    def deviations(self) -> list[str]:
        """List how this run differs from the published one."""
        return planning.deviations(
            self.overrides, self.published, self.split, self.trainer.resolved_precision(), self.loss.normalize
        )

    def notes(self) -> list[str]:
        """List what was taken of `weights`, and what a user may not expect; see `agreement.notes`."""
        given = getattr(self.model, "keywords", {}).get("backbone_weights") or "none"
        return [
            *([] if self.begun is None else self.begun.notes()),
            *agreement.notes(
                self.network,
                split=self.split,
                loss=self.loss,
                trainer=self.trainer,
                parameters=self.parameters,
                steps=self.steps,
                trained=self.weights is not None,
                trained_backbone=self.weights is not None or str(given).lower() != "none",
            ),
        ]

    def load_initial_weights(self) -> None:
        """Load the weights that this run begins with, where some are named; errors as `load_initial_weights`."""
        if self.weights is not None:
            settings = {"init": self.init, "classes": self.data.source.classes, "card": self.card()}
            self.begun = load_initial_weights(self.network, self.weights, **settings)

    def card(self) -> dict[str, Any]:
        """Return what a checkpoint carries besides weights."""
        parts = {"data": self.data, "network": self.network, "optimizer": self.optimizer}
        return card_of(name=self.name, seed=self.seed, **parts)

    def module(self) -> SegmentationModule:
        """Return the LightningModule."""
        return SegmentationModule(
            self.network,
            loss=self.loss,
            optimizer=self.optimizer,
            schedule=self.schedule,
            schedule_ends=self.schedule_ends,
            num_classes=self.data.num_classes,
            parameters=self.parameters,
            microbatch_size=self.split.microbatch,
            total_steps=self.steps,
            steps_per_epoch=self.sampler.steps_per_epoch,
            seed=self.seed,
            card=self.card(),
        )


@ending_on_notice()
def train(run: Run, *, resume: str | Path | None = None, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Train, evaluate and record a run; returns what result.json holds.

    Args:
        run: the parts.
        resume: a checkpoint to go on from, "auto" for the newest of `run.run_dir` (or a fresh start), or None.
        settings: the resolved settings, for the record.

    Raises:
        FileExistsError: if `run_dir` holds a run and `resume` is neither "auto" nor a checkpoint of that run.
        ValueError: if the checkpoint does not fit, or was trained with other settings (see `resuming`); if another
            process is at work in `run_dir`.
        Stopped: on SIGTERM, SIGUSR1 or Ctrl-C, in training after a checkpoint; see `signals.StopOnSignal`.
        FloatingPointError: when a loss is not finite; names the batch and the last good checkpoint.
        OSError: when a checkpoint cannot be written; the earlier one survives.
    """
    checkpoint, step = _resume_from(run, resume, settings)
    if checkpoint is None:
        run.load_initial_weights()
    run.run_dir.mkdir(parents=True, exist_ok=True)
    with _alone_in(run):
        return _train(run, checkpoint, step, settings)


def _alone_in(run: Run) -> AbstractContextManager[None]:
    """Hold the run directory; the first process does so for all."""
    if not run.lightning.is_global_zero:
        return nullcontext()
    refusal = f"{{holder}} is at work on the run in {run.run_dir}: wait for it, or choose another run_dir"
    return locking.only_process(run.run_dir / ".running", refusal)


def _train(run: Run, checkpoint: Path | None, step: int, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    module = run.module()
    result = _opening_record(run)
    if checkpoint is not None and run.lightning.is_global_zero:
        result["resumed"] = resuming.sessions(checkpoint, step, result, settings)
        result.update(resuming.beginning(checkpoint))
    _write_record(run, result, settings)
    for note in run.notes() if run.lightning.is_global_zero and run.trainer.progress else ():
        print(f"note: {note}", file=sys.stderr)
    if run.trainer.on_gpu():
        torch.cuda.reset_peak_memory_stats()  # of an earlier trial in this process
    else:
        keep_freed_memory()
    try:
        _fit(run, module, checkpoint)
        result.update(_closing_record(run, module))
        if run.lightning.is_global_zero and result["status"] == "finished":
            _draw(run)
    except BaseException as error:
        with suppress(OSError):  # on a full disk this fails too, and must not hide why
            reason = str(error) if isinstance(error, Stopped) else f"{type(error).__name__}: {error}"
            _write_record(run, {**result, "status": f"stopped: {reason}"})
        if not isinstance(error, Stopped):
            end_launched_processes(run.lightning)
        raise
    _write_record(run, result)  # not before the pictures: a finished run has nothing left to do
    if run.lightning.is_global_zero:
        _report(run, result)
    return result


def _fit(run: Run, module: SegmentationModule, checkpoint: Path | None) -> None:
    trainer = run.lightning
    with quiet(), run.stopper.listening():
        try:
            trainer.fit(module, datamodule=run.data, ckpt_path=checkpoint, weights_only=True)
            if run.checkpoints.evaluated_step != trainer.global_step:
                trainer.validate(module, datamodule=run.data, verbose=False)
        except NonFiniteError as error:
            raise FloatingPointError(_explain(run, error)) from None
        except SIGTERMException:  # in that last evaluation, where `StopOnSignal` has no part
            how = run.stopper.how or f"go on with run_dir={run.run_dir} resume=auto"
            message = f"SIGTERM before the last evaluation; {how}"
            raise Stopped(REQUEUE if trainer.is_global_zero else 0, message) from None
        except SystemExit as stop:
            if isinstance(stop.__context__, KeyboardInterrupt):  # which Lightning hides behind exit code 1
                raise KeyboardInterrupt from None
            raise


def _resume_from(run: Run, resume: str | Path | None, settings: Mapping[str, Any] | None) -> tuple[Path | None, int]:
    return resuming.find_checkpoint(
        resume,
        run_dir=run.run_dir,
        weights=run.weights,
        card=run.card(),
        steps=run.steps,
        settings=settings,
        first=run.lightning.is_global_zero,
    )


def _explain(run: Run, error: NonFiniteError) -> str:
    """Say which images were in the batch; the order follows from seed and step."""
    epoch, batch = divmod(error.step, run.sampler.steps_per_epoch)
    pairs = run.data.dataset("train", training=True).pairs
    names = [pairs[i].image.name for i in run.sampler.global_batch(epoch, batch)]
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    last = run.checkpoints.last
    kept = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was saved before it"
    return (
        f"{error} (epoch {epoch}, batch {batch}: {shown}); {kept}. Start a new run with a lower optimizer.lr, or go on "
        "with trainer.precision=32-true if this was a 16-bit one"
    )


def _opening_record(run: Run) -> dict[str, Any]:
    return {
        "recipe": run.name,
        "status": "running",
        "seed": run.seed,
        "world_size": run.split.world_size,
        "batch_size": run.split.batch_size,
        "microbatch_size": run.split.microbatch,
        "bn_batch": run.split.bn_batch,
        "steps": run.steps,
        "precision": run.trainer.resolved_precision(),
        "hardware": record.hardware(run.split.world_size, gpu=run.trainer.on_gpu()),
        "versions": record.versions(),
        **record.commit(),
        "published": asdict(run.published) if run.published else None,
        "deviations": run.deviations(),
        "data": {"root": str(run.data.root), "fingerprint": run.data.fingerprint()},
        **_class_weights(run),
        **({} if run.begun is None else {"weights": run.begun.record()}),
    }


def _class_weights(run: Run) -> dict[str, Any]:
    weights = run.loss.weight_of_class
    return (
        {} if weights is None else {"class_weights": dict(zip(run.data.source.classes, weights.tolist(), strict=True))}
    )


def _closing_record(run: Run, module: SegmentationModule) -> dict[str, Any]:
    best, last = run.checkpoints.best_evaluation, module.evaluation
    common = {"protocol": run.data.protocol, "split": "validation", "tta": False}
    common["output_stride"] = run.network.arguments["output_stride"]
    return {
        "status": "pruned" if run.trial and run.trial.pruned else "finished",
        "images_per_second": round(run.reporter.images_per_second(), 2),
        "hours": round(run.checkpoints.seconds() / 3600, 6),
        "peak_memory": record.peak_memory(gpu=run.trainer.on_gpu()),
        "checkpoint": _best_checkpoint(run),
        "skipped": {split: _names(run, split, indices) for split, indices in module.corrupt.items()},
        "evaluations": [{"checkpoint": "last", **last, **common}, {"checkpoint": "best", **best, **common}],
    }


def _best_checkpoint(run: Run) -> dict[str, str] | None:
    if not run.lightning.is_global_zero:  # only the first process is sure to see the file
        return None
    return {"best": str(run.checkpoints.best), "sha256": record.sha256(run.checkpoints.best)}


def _names(run: Run, split: str, indices: set[int]) -> list[str]:
    pairs = run.data.dataset(split, training=split == "train").pairs
    return [str(pairs[i].image) for i in sorted(indices)]


def _write_record(run: Run, result: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> None:
    if not run.lightning.is_global_zero:
        return
    record.write_json(run.run_dir / "result.json", result)
    if settings is not None:
        record.write_text(run.run_dir / "config.yaml", yaml.safe_dump(dict(settings), sort_keys=False))


def _draw(run: Run) -> None:
    """Draw validation images spread over the part, as the best checkpoint sees them."""
    dataset = run.data.dataset("validation", training=False)
    count = min(run.pictures, len(dataset))
    if count == 0:
        return
    folder = run.run_dir / "pictures"
    folder.mkdir(exist_ok=True)
    predictor = load_predictor(run.checkpoints.best)
    drawn, pairs = [], spread(dataset.pairs, count)
    paths = [PurePath(p.image.name) if isinstance(p.image, Piece) else p.image for p in pairs]
    for pair, name in zip(pairs, picture_names(paths), strict=True):
        image, truth = read_pair(pair, dataset.source)
        scale = max(1, PICTURE_WIDTH // image.shape[1])
        names = {"classes": predictor.classes, "palette": predictor.palette}
        drawn.append(comparison(image, truth, predictor(image), scale=scale, **names))
        drawn[-1].save(folder / f"{name}.png")
    stack(drawn).save(folder / "overview.png")


def _report(run: Run, result: Mapping[str, Any]) -> None:
    last, best = result["evaluations"]
    print(class_table(list(run.data.source.classes), best["per_class"]))
    for split, names in result["skipped"].items():
        if names:
            print(f"skipped {len(names)} unusable {split} images: {', '.join(names[:3])}")
    if result["status"] == "pruned":
        print(f"pruned after step {last['step']} of {run.steps}: behind the other trials of the search")
    rate = f"{result['images_per_second']:.1f} images/s"
    print(f"mIoU {best['miou']:.2f} (best, step {best['step']}), {last['miou']:.2f} (last)  [{run.data.protocol}]")
    print(f"{clock(result['hours'] * 3600)} on {result['hardware']}, {rate}; everything is in {run.run_dir}")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's greetings and a few warnings that do not apply here off the screen."""
    loggers = map(logging.getLogger, ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"))
    levels = [(log, log.level) for log in loggers]
    with warnings.catch_warnings():
        for message in NOT_APPLICABLE:
            warnings.filterwarnings("ignore", message=message)
        for log, _ in levels:
            log.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for log, level in levels:
                log.setLevel(level)
