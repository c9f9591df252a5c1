"""What a run leaves for those who come later: versions, hardware, commit, hashes and result.json."""

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import resource
import subprocess
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "deeplab-recipes", "torch", "torchvision", "onedl-mmsegmentation", "onedl-mmcv", "pytorch-lightning",
    "torchmetrics", "hydra-core", "numpy", "pillow", "opencv-python", "opencv-python-headless",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that a result depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> dict[str, Any]:
    """Return the git commit of this package's sources and whether they were changed since.

    None outside a checkout, and where the package is merely installed below some other one.
    """
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, check=True, capture_output=True, text=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def hardware(world_size: int, *, gpu: bool) -> str:
    """Return what a run uses: "8 x NVIDIA A100" or "2 CPU cores (AMD EPYC)"."""
    if gpu:
        return f"{world_size} x {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} CPU cores ({_processor()})"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def peak_memory(*, gpu: bool) -> int:
    """Return the most memory used so far in bytes: the GPU's, or else this process's."""
    if gpu:
        return int(torch.cuda.max_memory_allocated())
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * 1024


def sha256(path: str | Path) -> str:
    """Return the hash of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON whole or not at all; what is not finite (NaN: a class does not occur) becomes null."""
    write_text(path, json.dumps(_finite(content), indent=2) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a file whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text)
    temporary.replace(path)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
