"""Published models: fetched once, unpacked safely, imported and kept."""

import tempfile
from pathlib import Path

from deeplab_recipes import __version__
from deeplab_recipes.fetching.cache import cache_folder, fetch_into_cache
from deeplab_recipes.fetching.unpack import unpack
from deeplab_recipes.importing import Report, import_model
from deeplab_recipes.model.zoo import Published

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
    return cache_folder() / f"zoo-{model.name}-{__version__}.ckpt"


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
    return fetch_into_cache(model.address, model.filename, digits=model.sha256, advice="and run the same command again")
