"""Pretrained backbone weights: where they come from, and that they really fit."""

import re
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor
from torchvision.models import get_model_weights, list_models

from deeplab_recipes.fetching.cache import fetch_into_cache
from deeplab_recipes.model.backbones import Backbone
from deeplab_recipes.model.choices import did_you_mean
from deeplab_recipes.model.fitting import misfit

ADDRESS = re.compile(r"(https?|file):")
ADDRESS_FORM = "ADDRESS#sha256=HEX"
# torchvision has none with the deep stem; these are the ones that mmsegmentation's models start from.
OPENMMLAB = "https://mmassets.onedl.ai/pretrain/third_party/"
V1C_FILES = {
    "resnet50_v1c": "resnet50_v1c-2cccc1ad.pth",
    "resnet101_v1c": "resnet101_v1c-e67eebb6.pth",
}


def load_backbone_weights(backbone: Backbone, spec: str | None, *, architecture: str) -> None:
    """Load pretrained weights into ``backbone``, in place; every weight or an error.

    Layers that only the ImageNet classifier has (``backbone.classifier_keys``) are left out. A checkpoint may
    keep its tensors under ``state_dict`` or ``model``; their names may begin with ``module.``, ``model.`` or
    ``backbone.``.

    Args:
        backbone: the network to fill.
        spec: None or "none" (nothing happens); a name of torchvision's, such as imagenet1k_v1, or openmmlab for a
            ResNet V1c; a file; or an http, https or file address followed by ``#sha256=`` and its hash. What is
            fetched is kept in torch.hub's checkpoint directory.
        architecture: the backbone's name.

    Raises:
        ValueError: an unknown name, a wrong hash, a file that is no checkpoint or does not fit the network.
        ConnectionError: the file cannot be fetched; says where to put it by hand.
    """
    if spec is None or str(spec).lower() == "none":
        return
    path = _locate(str(spec), architecture)
    _fill(backbone, _tensors(_read(path), path), f"{path} does not fit {architecture}")


def _locate(spec: str, architecture: str) -> Path:
    path = weights_at_hand(spec, architecture)
    if path is not None:
        return path
    if ADDRESS.match(spec):
        return _fetch(*_split_address(spec))
    url = _published(architecture)[spec.lower()]
    filename = Path(url).name  # resnet101-cd907fc2.pth: the digits are the start of its sha256
    return _fetch(url, filename, Path(filename).stem.rpartition("-")[2])


def weights_at_hand(spec: str, architecture: str) -> Path | None:
    """Return the file that ``spec`` names, or None for what is to be fetched; see `load_backbone_weights`.

    Raises:
        ValueError: it is neither a file, nor a name that the architecture has, nor an address with its hash.
    """
    if ADDRESS.match(spec):
        _split_address(spec)
        return None
    published = _published(architecture)
    if spec.lower() in published:
        return None
    path = Path(spec).expanduser()
    if not path.is_file():
        valid = ", ".join(["none", *published, "FILE", ADDRESS_FORM])
        raise ValueError(
            f"backbone_weights={spec} is neither a file nor weights that {architecture} has; valid: "
            f"{valid}{did_you_mean(spec, ['none', *published])}"
        )
    return path


def _published(architecture: str) -> dict[str, str]:
    if architecture in V1C_FILES:
        return {"openmmlab": OPENMMLAB + V1C_FILES[architecture]}
    if architecture not in list_models():
        return {}
    return {entry.name.lower(): entry.url for entry in get_model_weights(architecture)}


def _split_address(spec: str) -> tuple[str, str, str]:
    address, _, sha256 = spec.partition("#sha256=")
    if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"backbone_weights={spec}: an address needs its sha256 (64 digits): {ADDRESS_FORM}")
    name = Path(urlparse(address).path)
    # The hash keeps two files of one name apart in the shared directory.
    return address, f"{name.stem}-{sha256[:8].lower()}{name.suffix}", sha256.lower()


def _fetch(address: str, filename: str, sha256: str) -> Path:
    """Return the checked file in torch.hub's directory; ``sha256`` may be the first digits only."""
    advice = "or give a copy of it: model.backbone_weights=FILE"
    return fetch_into_cache(address, filename, digits=sha256, advice=advice)


def _read(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # foreign bytes fail in many ways, with an IndexError for instance
        if "GLOBAL" in str(error):  # torch's word for a function or class that it will not call
            raise ValueError(
                f"{path} holds Python objects, which could run code and are refused; if you trust it, load "
                "it yourself and save its tensors alone: torch.save(model.state_dict(), FILE)"
            ) from error
        raise ValueError(f"{path} is no PyTorch checkpoint, or is damaged") from error


def _tensors(content: object, path: Path) -> dict[str, Tensor]:
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} holds no state dict (names and tensors), but a {type(content).__name__}")
    state = {re.sub(r"^((module|model|backbone)\.)+", "", str(key)): value for key, value in content.items()}
    if len(state) != len(content):
        raise ValueError(f"{path} holds two tensors of one name once prefixes such as 'module.' are dropped")
    return state


def _fill(backbone: Backbone, state: dict[str, Tensor], complaint: str) -> None:
    state = {key: value for key, value in state.items() if not key.startswith(backbone.classifier_keys)}
    expected = backbone.state_dict()
    # Old files have no count of batches; batch norm with a fixed momentum never reads it.
    problem = misfit(expected, state, optional=[key for key in expected if key.endswith("num_batches_tracked")])
    if problem:
        raise ValueError(f"{complaint}: tensors {problem}")
    backbone.load_state_dict(state, strict=False)


def why_unreadable(error: Exception) -> str:
    """Return torch.load's reason in a line, without its advice to load the file without safety."""
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip() or type(error).__name__
    return text.splitlines()[0][:160]
