"""Trainer settings: how long, on what, and how precisely."""

import ctypes
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import SLURMEnvironment

from deeplab_recipes.checkpoints import AtomicCheckpointIO

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names and numbers of malloc.h
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed", "64-true")
ACCELERATORS = ("auto", "gpu", "cpu")


@dataclass(frozen=True)
class TrainerSettings:
    """How long, on what, and how precisely to train.

    Args:
        max_epochs: passes over the data; null with `max_steps`.
        max_steps: optimizer steps; the smaller of both limits holds, and schedules span it.
        evaluate_every: epochs between evaluations, a fraction is allowed; the end is always evaluated.
        devices: "auto" (all GPUs, or the CPU), a number, or a list of GPU indices.
        num_nodes: machines.
        accelerator: "auto", "gpu" or "cpu".
        precision: "auto" (bf16 where the device computes in it, else 32 bit), "32-true", "bf16-mixed",
            "16-mixed", or "64-true" to compare numbers.
        sync_batchnorm: batch statistics over all GPUs.
        log_every: steps between rows of metrics.csv.
        progress: show the progress bar.
        deterministic: ask torch for algorithms that give the same bits every time.
    """

    max_epochs: int | None = None
    max_steps: int = -1
    evaluate_every: float = 1.0
    devices: int | str | list[int] = "auto"
    num_nodes: int = 1
    accelerator: str = "auto"
    precision: str = "auto"
    sync_batchnorm: bool = False
    log_every: int = 20
    progress: bool = True
    deterministic: bool = False

    def __post_init__(self) -> None:
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise ValueError("trainer.accelerator is 'gpu', but torch sees no CUDA device; use auto or cpu")
        for name, valid in (("precision", PRECISIONS), ("accelerator", ACCELERATORS)):
            if getattr(self, name) not in valid:
                raise ValueError(f"trainer.{name} is {getattr(self, name)!r}; valid are {', '.join(valid)}")
        if self.evaluate_every <= 0:
            raise ValueError(f"trainer.evaluate_every is {self.evaluate_every}; it must be above 0 (epochs)")
        if self.max_epochs is None and self.max_steps == -1:
            raise ValueError("nothing says how long to train: set trainer.max_epochs=N or trainer.max_steps=N")
        for name, none in (("max_epochs", None), ("max_steps", -1), ("num_nodes", 1)):
            value = getattr(self, name)
            if value != none and value < 1:
                raise ValueError(f"trainer.{name} is {value}; it must be at least 1 (default: {none})")
        if not (
            self.devices in ("auto", -1) or (isinstance(self.devices, list) and self.devices) or _counts(self.devices)
        ):
            raise ValueError(
                f"trainer.devices is {self.devices!r}; valid are auto, a number above 0 or a list like [0,1]"
            )

    def on_gpu(self) -> bool:
        """Whether this run uses GPUs."""
        return self.accelerator != "cpu" and torch.cuda.is_available()

    def resolved_precision(self) -> str:
        """Return the precision that the device gets: float16 needs a GPU, a CPU takes bf16 in its place."""
        if self.precision == "16-mixed" and not self.on_gpu():
            return "bf16-mixed"
        if self.precision != "auto":
            return self.precision
        fast = torch.cuda.is_bf16_supported(including_emulation=False) if self.on_gpu() else _cpu_has_bf16()
        return "bf16-mixed" if fast else "32-true"

    def world_size(self) -> int:
        """Return the number of devices over all machines."""
        if (started := _processes_started()) is not None:
            return started
        if isinstance(self.devices, list):
            return len(self.devices) * self.num_nodes
        every = torch.cuda.device_count() if self.on_gpu() else 1
        return (every if self.devices in ("auto", -1) else int(self.devices)) * self.num_nodes

    def steps(self, steps_per_epoch: int) -> int:
        """Return the optimizer steps of a whole run."""
        limits = [self.max_steps] if self.max_steps > 0 else []
        if self.max_epochs is not None:
            limits.append(self.max_epochs * steps_per_epoch)
        return min(limits)

    def problems_here(self) -> list[str]:
        """Return why this machine cannot run this, if so."""
        if isinstance(self.devices, list) and not self.on_gpu():
            return [
                f"trainer.devices={self.devices} names GPUs, this run is on the CPU: trainer.devices=auto or a number"
            ]
        return []

    def build(
        self, *, callbacks: list[pl.Callback], loggers: list[Logger], steps_per_epoch: int, run_dir: Path
    ) -> pl.Trainer:
        """Return the Lightning trainer.

        Raises:
            ValueError: if it would not join the processes that torchrun or SLURM started, or GPUs are named on a CPU.
        """
        for problem in self.problems_here():
            raise ValueError(problem)
        if _slurm_tasks() not in (None, 1) and "SLURM_NTASKS_PER_NODE" not in os.environ:
            raise ValueError(
                f"SLURM started {_slurm_tasks()} tasks without saying how many on each node: start them by "
                "srun --ntasks-per-node=N, not --ntasks=N"
            )
        trainer = pl.Trainer(
            # Steps alone: Lightning counts an epoch as done that max_steps cut, and a longer run would then end early.
            max_epochs=-1,
            max_steps=self.steps(steps_per_epoch),
            val_check_interval=max(1, round(self.evaluate_every * steps_per_epoch)),
            check_val_every_n_epoch=None,
            devices=self._local_devices(),
            num_nodes=self.num_nodes,
            accelerator="gpu" if self.on_gpu() else "cpu",
            precision=self.resolved_precision(),
            sync_batchnorm=self.sync_batchnorm and self.on_gpu(),
            deterministic=self.deterministic,
            callbacks=callbacks,
            logger=loggers,
            plugins=[AtomicCheckpointIO()],
            default_root_dir=run_dir,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,  # `Reporter` decides when something is logged
        )
        if (asked := trainer.num_devices * trainer.num_nodes) != self.world_size():
            raise ValueError(
                f"{self.world_size()} processes were started, but trainer.devices={self.devices} on "
                f"trainer.num_nodes={self.num_nodes} makes {asked}: each would train by itself, or wait "
                "for others; start one for each device"
            )
        return trainer

    def _local_devices(self) -> int | str | list[int]:
        """Return the devices of this machine; torchrun and SLURM say how many processes they started, one for each."""
        if self.devices not in ("auto", -1):
            return self.devices
        if "LOCAL_WORLD_SIZE" in os.environ:
            return int(os.environ["LOCAL_WORLD_SIZE"])
        tasks = _slurm_tasks() if "WORLD_SIZE" not in os.environ else None
        return self.devices if tasks is None else max(1, tasks // self.num_nodes)


def _processes_started() -> int | None:
    """Return how many processes torchrun, SLURM or Lightning started for this run; None where this is the first."""
    return int(os.environ["WORLD_SIZE"]) if "WORLD_SIZE" in os.environ else _slurm_tasks()


def _slurm_tasks() -> int | None:
    """Return the number of tasks where Lightning would take them for the run's processes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is an srun, which a run on one machine does not need
        return int(os.environ["SLURM_NTASKS"]) if SLURMEnvironment.detect() else None


def _counts(value: object) -> bool:
    return isinstance(value, int) and value > 0


def keep_freed_memory() -> None:
    """Let glibc keep the memory that tensors give back, for the rest of this process.

    A training step on a CPU frees and asks again for the same large blocks; by default each goes back to the system
    and is cleared and mapped anew. Elsewhere than under glibc nothing is changed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, 1 << 30)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _cpu_has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
