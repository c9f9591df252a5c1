"""Published models: fetched once, unpacked safely, imported and kept."""

import os
import sys
import tempfile
from pathlib import Path

import torch
from filelock import FileLock

from deeplab_recipes import __version__
from deeplab_recipes.fetching.transfer import fetch, note_of
from deeplab_recipes.fetching.unpack import unpack
from deeplab_recipes.importing import Report, import_model
from deeplab_recipes.model.zoo import Published
from deeplab_recipes.record import sha256

GRAPH = "frozen_inference_graph.pb"  # what a TensorFlow model's archive holds beside its checkpoint


def fetch_checkpoint(model: Published) -> Path:
    """Return a published model as a checkpoint, from torch.hub's cache or into it.

    Raises:
        ConnectionError: its file cannot be fetched; says where to put it by hand.
        ValueError: the file is not what was published, or does not unpack.
        OSError: it cannot be written.
    """
    checkpoint = checkpoint_of(model)
    if not checkpoint.exists():
        import_published(model, checkpoint, overwrite=True)
    return checkpoint


def checkpoint_of(model: Published) -> Path:
    """Return where a published model is kept as a checkpoint, once it was fetched."""
    # Another version of this package may import better.
    return _cache() / f"zoo-{model.name}-{__version__}.ckpt"


def import_published(model: Published, output: str | Path, *, overwrite: bool = False) -> Report:
    """Fetch a published model where it is not there yet, and write it as a checkpoint.

    Raises:
        FileExistsError: `output` is there.
        ConnectionError, ValueError, OSError: as `fetch_checkpoint`.
    """
    file = fetch_file(model)
    with tempfile.TemporaryDirectory() as folder:
        if file.name.endswith(".tar.gz"):
            unpack(file, Path(folder), {GRAPH: GRAPH})
            file = Path(folder) / GRAPH
        return import_model(model.source, file, output, classes=model.classes, overwrite=overwrite)


def fetch_file(model: Published) -> Path:
    """Return a published model's own file in torch.hub's cache, checked where its checksum was published.

    Raises:
        ConnectionError, ValueError, OSError: as `fetch_checkpoint`.
    """
    path = _cache() / model.filename
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):  # the processes of a training all ask for it
        return _fetched(model, path)


def _fetched(model: Published, path: Path) -> Path:
    if not path.exists():
        advice = f"Put that file at {path}, and run the same command again"
        part = fetch(model.address, path, size=None, advice=advice, say=lambda line: print(line, file=sys.stderr))
        try:
            _verify(part, model)
        except ValueError:
            part.unlink()
            raise
        os.replace(part, path)
        note_of(path).unlink(missing_ok=True)
    else:
        _verify(path, model)
    return path


def _verify(path: Path, model: Published) -> None:
    found = sha256(path)
    if not found.startswith(model.sha256):
        raise ValueError(
            f"{path}: its sha256 is {found}, that of {model.address} begins with {model.sha256}; remove it and fetch "
            "it again"
        )


def _cache() -> Path:
    return Path(torch.hub.get_dir(), "checkpoints")
