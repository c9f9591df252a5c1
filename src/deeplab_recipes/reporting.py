"""What a run shows and logs while it goes: progress bar, a line per evaluation, metrics.csv, loggers."""

import csv
import math
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from tqdm import tqdm

from deeplab_recipes.checkpoints import NonFiniteError
from deeplab_recipes.optimization.parameter_groups import MULTIPLIER

FIELDS = ("epoch", "step", "seconds", "loss", "cross_entropy", "dice", "auxiliary", "lr", "images_per_second", "miou")
PENDING = "pending_losses"  # key of what is not reported yet in a checkpoint
QUIET_SECONDS = 15.0  # between lines where the output is a file, not a terminal


class Reporter(pl.Callback):
    """Reads the losses off the device every `every` steps (and only then, so that no step waits for it).

    Args:
        csv_path: metrics.csv; a resumed run goes on in it.
        batch_size: global batch size, for images per second.
        every: steps between rows.
        progress: draw the bar (or, where the output is no terminal, print lines).

    Raises:
        FloatingPointError: in training, when a loss is not finite; names the step.
    """

    def __init__(self, csv_path: str | Path, *, batch_size: int, every: int = 20, progress: bool = True) -> None:
        if every < 1:
            raise ValueError(f"trainer.log_every is {every}; it must be at least 1")
        self.csv_path, self.batch_size, self.every, self.progress = (
            Path(csv_path),
            batch_size,
            every,
            progress,
        )
        self.bar: tqdm | None = None
        self.losses: list[dict[str, Tensor]] = []
        self.seconds = 0.0
        self.rates: list[float] = []
        self._earlier_rates: list[float] = []
        self._evaluated = -1  # the step whose mean IoU metrics.csv has since before the run was resumed
        self._window = self._printed = time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar, and cut rows off metrics.csv that the resumed run will write again."""
        self._go_on(trainer, trainer.global_step)
        total = int(trainer.estimated_stepping_batches)
        visible = self.progress and trainer.is_global_zero and sys.stderr.isatty()
        self.bar = tqdm(
            total=total,
            initial=trainer.global_step,
            disable=not visible,
            dynamic_ncols=True,
            unit="step",
            desc="train",
        )
        self._window = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Collect the step's losses; read and report them every `every` steps."""
        self.losses.append(outputs)
        if self.bar is not None:
            self.bar.update()
        if len(self.losses) >= self.every:
            self.flush(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report what was collected; evaluation does not count in images per second."""
        self.flush(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print one line, and go on timing."""
        miou = pl_module.evaluation["miou"]
        # The last evaluation is repeated where a kill came before the record was written.
        if trainer.state.fn != "validate" or trainer.global_step != self._evaluated:
            self._write(trainer, {"miou": miou})
        self._say(trainer, f"{_place(trainer)}  mIoU {miou:.2f}", force=True)
        self._window = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the rest and close the bar."""
        self.flush(trainer)
        if self.bar is not None:
            self.bar.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the terminal tidy."""
        if self.bar is not None:
            self.bar.close()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the losses that were not reported yet: a resumed run writes the rows that this one would have."""
        if self.losses:
            names, table = self._collected(trainer)
            checkpoint[PENDING] = {"names": names, "table": table}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take them back, and the time: a run that has only its last evaluation to do does not start training."""
        self._go_on(trainer, checkpoint["global_step"])
        if PENDING in checkpoint:
            names, table = checkpoint[PENDING]["names"], checkpoint[PENDING]["table"].to(pl_module.device)
            self.losses = [dict(zip(names, row, strict=True)) for row in table]

    def _go_on(self, trainer: pl.Trainer, step: int) -> None:
        if not trainer.is_global_zero:
            return
        rows = _keep_rows(self.csv_path, step)
        self.seconds = float(rows[-1]["seconds"]) if rows else 0.0
        self._evaluated = max((int(row["step"]) for row in rows if row["miou"]), default=-1)
        self._earlier_rates = [float(rate) for row in rows if (rate := row["images_per_second"])]

    def _collected(self, trainer: pl.Trainer) -> tuple[list[str], Tensor]:
        """Return the names of the losses, and a row of them for each step, the mean over devices."""
        names = list(self.losses[0])
        table = torch.stack([torch.stack([row[n].float() for n in names]) for row in self.losses])
        # One that is not finite on any device is so on all, which then stop together.
        return names, trainer.strategy.reduce(table, reduce_op="mean").cpu()

    def flush(self, trainer: pl.Trainer) -> None:
        """Read the collected losses, stop at one that is not finite, and log their means."""
        if not self.losses:
            return
        names, table = self._collected(trainer)
        steps, self.losses = len(self.losses), []
        self._refuse_nonfinite(trainer, table[:, names.index("loss")])
        elapsed = time.perf_counter() - self._window
        self.seconds += elapsed
        rate = steps * self.batch_size / max(elapsed, 1e-9)
        self.rates.append(rate)
        means = dict(zip(names, table.mean(0).tolist(), strict=True))
        group = trainer.optimizers[0].param_groups[0]
        row = {**means, "lr": group["lr"] / group.get(MULTIPLIER, 1.0), "images_per_second": rate}
        self._write(trainer, row)
        text = f"loss {row['loss']:.4f}  lr {row['lr']:.2e}  {rate:.1f} images/s"
        if self.bar is not None:
            self.bar.set_postfix_str(text)
        self._say(trainer, f"{_place(trainer)}  {text}{self._left(trainer, rate)}")
        self._window = time.perf_counter()

    def images_per_second(self) -> float:
        """Return the median rate, the first window (which warms up) left out where there are others.

        Where nothing was left to train, the rates are those of the time before the run was resumed.
        """
        rates = sorted(self.rates[1:] or self.rates or self._earlier_rates)
        return rates[len(rates) // 2] if rates else 0.0

    def _refuse_nonfinite(self, trainer: pl.Trainer, losses: Tensor) -> None:
        bad = (~losses.isfinite()).nonzero().flatten()
        if len(bad):
            step = trainer.global_step - len(losses) + int(bad[0])
            raise NonFiniteError(step, f"the loss of step {step + 1} is {float(losses[bad[0]])}")

    def _write(self, trainer: pl.Trainer, values: dict[str, float]) -> None:
        if not trainer.is_global_zero:
            return
        row = {"epoch": _epoch(trainer), "step": trainer.global_step, "seconds": self.seconds, **values}
        fresh = not self.csv_path.exists()
        with self.csv_path.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            if fresh:
                writer.writeheader()
            writer.writerow({key: value if isinstance(value, int) else f"{value:.6g}" for key, value in row.items()})
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)

    def _left(self, trainer: pl.Trainer, rate: float) -> str:
        steps = int(trainer.estimated_stepping_batches) - trainer.global_step
        return f"  {clock(steps * self.batch_size / rate)} left" if steps else ""

    def _say(self, trainer: pl.Trainer, text: str, *, force: bool = False) -> None:
        if not (self.progress and trainer.is_global_zero):
            return
        terminal = self.bar is not None and not self.bar.disable
        due = time.perf_counter() - self._printed >= QUIET_SECONDS
        if force or (due and not terminal):
            tqdm.write(text, file=sys.stderr)
            self._printed = time.perf_counter()


def clock(seconds: float) -> str:
    """Return 3:07 or 1:02:03."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def class_table(classes: list[str], per_class: list[float], *, width: int = 100) -> str:
    """Return the classes' IoU as text in columns; a dash where a class does not occur."""
    length = max(map(len, classes))
    cells = [
        f"{name:<{length}} {'    -' if math.isnan(iou) else f'{iou:5.1f}'}"
        for name, iou in zip(classes, per_class, strict=True)
    ]
    columns = max(1, width // (length + 9))
    rows = math.ceil(len(cells) / columns)
    return "\n".join("   ".join(cells[r::rows]) for r in range(rows))


def _place(trainer: pl.Trainer) -> str:
    return f"epoch {_epoch(trainer):.4g}  step {trainer.global_step}"


def _epoch(trainer: pl.Trainer) -> float:
    per_epoch = trainer.num_training_batches
    return trainer.global_step / max(per_epoch, 1) if math.isfinite(per_epoch) else 0.0  # nothing was trained yet


def _keep_rows(path: Path, step: int) -> list[dict[str, str]]:
    """Cut off the rows after `step`, and one that a killed run did not end; return the others."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    rows = [row for row in csv.DictReader(line for line in lines if line.endswith("\n")) if int(row["step"]) <= step]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    return rows
