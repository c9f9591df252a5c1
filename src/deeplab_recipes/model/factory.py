"""The model: backbone, head, and logits at the size of the images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, distributed, nn
from torch.nn.functional import interpolate
from torch.nn.modules.batchnorm import _BatchNorm

from deeplab_recipes.model.backbones import Backbone, Features, build_backbone
from deeplab_recipes.model.dense_prediction_cell import CellSpec, parse_cell
from deeplab_recipes.model.freezing import batchnorm_choice, frozen_stages, hold_statistics, stop_learning
from deeplab_recipes.model.heads import DECODER_CHANNELS, build_auxiliary_head, build_head, init_weights
from deeplab_recipes.model.initializers import apply_initializers
from deeplab_recipes.model.layers import ease_atrous_depthwise, set_batchnorm
from deeplab_recipes.model.weights import load_backbone_weights
from deeplab_recipes.numerics import at_least_float32

MINIMUM_SIZE = 33
BATCHNORM_MOMENTUM = 0.1  # torch's
PARTS = ("backbone", "head")
PerPart = float | Mapping[str, float] | None


class DeepLab(nn.Module):
    """A backbone and a head, and in training perhaps an auxiliary head.

    Attributes:
        num_classes: channels of the logits.
        output_stride: input size over the size of the backbone's last feature map.
        arguments: those with which :func:`build_deeplab` rebuilds this architecture; builtins, no weights.
    """

    def __init__(
        self, backbone: Backbone, head: nn.Module, arguments: dict[str, Any], auxiliary_head: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.auxiliary_head = auxiliary_head
        self.num_classes: int = arguments["num_classes"]
        self.output_stride: int = arguments["output_stride"]
        self.freeze_batchnorm: str = arguments["freeze_batchnorm"]
        self.freeze_backbone: int = arguments["freeze_backbone"]
        self.arguments = arguments
        stop_learning(self, self.freeze_batchnorm, self.freeze_backbone)
        self.train()

    def train(self, mode: bool = True) -> "DeepLab":
        """Switch to training or evaluation; batch norms with frozen statistics stay in evaluation."""
        super().train(mode)
        hold_statistics(self, self.freeze_batchnorm, self.freeze_backbone)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, num_classes, H, W) for normalised float images (B, 3, H, W), H and W at least 33.

        Raises:
            ValueError: images of another kind, or too small; in training, one image where two are needed.
        """
        return self._logits(self.head, self._features(images), images)

    def forward_with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits, and those of the auxiliary head, both as `forward`.

        Raises:
            ValueError: there is no auxiliary head; or as in `forward`.
        """
        if self.auxiliary_head is None:
            raise ValueError("this model has no auxiliary head: build it with auxiliary_head=True")
        features = self._features(images)
        return self._logits(self.head, features, images), self._logits(self.auxiliary_head, features, images)

    def _features(self, images: Tensor) -> Features:
        _check_images(images)
        if self.training and images.shape[0] == 1:
            self._check_single_image()
        return self.backbone(images)

    def _logits(self, head: nn.Module, features: Features, images: Tensor) -> Tensor:
        # Autocast would resize 16-bit logits in 16 bits, whose rounding moves the borders between classes.
        logits = at_least_float32(head(features))
        return interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=self.head.align_corners)

    def _check_single_image(self) -> None:
        pooling = getattr(self.head, "image_pool", nn.Identity())
        if any(_sees_one_value(module) for module in pooling.modules()):
            raise ValueError(
                "training with one image per device: the batch norm behind the head's image pooling would "
                "see one value per channel. Give each device at least 2 images (microbatch_size >= 2), "
                "synchronise batch norm over several devices, or freeze batch norm"
            )


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        found = f"{images.dtype} {tuple(images.shape)}"
        raise ValueError(f"images must be normalised floats of shape (B, 3, H, W), got {found}")
    height, width = images.shape[-2:]
    if height < MINIMUM_SIZE or width < MINIMUM_SIZE:
        raise ValueError(
            f"images must be at least {MINIMUM_SIZE} x {MINIMUM_SIZE} pixels, got {height} x {width}: "
            "enlarge or pad them, or raise data.crop_size"
        )


def _sees_one_value(module: nn.Module) -> bool:
    if not isinstance(module, _BatchNorm) or not module.training:
        return False
    synchronised = isinstance(module, nn.SyncBatchNorm) and distributed.is_initialized()
    return not (synchronised and distributed.get_world_size(module.process_group) > 1)


def build_deeplab(
    num_classes: int,
    *,
    backbone: str = "resnet101",
    head: str = "deeplabv3plus",
    output_stride: int = 8,
    aspp_dilations: Sequence[int] | None = None,
    aspp_channels: int = 512,
    dropout: float = 0.1,
    backbone_weights: str | None = None,
    initializers: Sequence[str] = (),
    decoder_channels: int = DECODER_CHANNELS,
    width_multiplier: float = 1.0,
    auxiliary_head: bool = False,
    freeze_batchnorm: bool | str = "none",
    freeze_backbone: bool | int = False,
    decoder: bool | None = None,
    image_pooling: bool = True,
    dense_prediction_cell: CellSpec = None,
    align_corners: bool | None = None,
    batchnorm_epsilon: PerPart = None,
    batchnorm_momentum: PerPart = BATCHNORM_MOMENTUM,
    batchnorm_scale: bool = True,
    width_divisor: int = 8,
    padding: str = "symmetric",
    low_level_features: str = "block",
    multi_grid: Sequence[int] | None = None,
) -> DeepLab:
    """Build a DeepLab whose weights follow from torch's global random state.

    The defaults are Composer's ADE20k model: DeepLabv3+ (Chen et al., arXiv:1802.02611) on a ResNet-101.

    Args:
        num_classes: classes, ignored label not counted.
        backbone: a key of ``backbones.BACKBONES``.
        head: a key of ``heads.HEADS``.
        output_stride: 8, 16 or 32.
        aspp_dilations: atrous rates, one branch each (1 is a 1x1 convolution). None: (1, 12, 24, 36) at
            output stride 8, (1, 6, 12, 18) at 16, (1, 3, 6, 9) at 32.
        aspp_channels: channels of each branch of the encoder and of the decoder.
        dropout: probability of dropping a channel: before the last convolution, in TensorFlow's heads at the end of
            the pyramid, or before a dense prediction cell's projection.
        backbone_weights: none, imagenet1k_v1, imagenet1k_v2 (a V1c: openmmlab), a file, or ADDRESS#sha256=HEX
            (see ``weights``).
        initializers: keys of ``initializers.INITIALIZERS``; with backbone weights they act on the head only. Where
            there are none, the heads start as mmsegmentation's ``init_weights()`` leaves them; with some, as in
            Composer, the last convolution keeps its constructor's draw but for what these set.
        decoder_channels: channels to which a decoder reduces the low-level features.
        width_multiplier: factor on mobilenet_v2's channels.
        auxiliary_head: add mmsegmentation's FCN head on the middle features, for training.
        freeze_batchnorm: what batch norms keep in training: "none"; "statistics" (or true): they normalise with the
            running ones and leave these as they are, weights and biases still learn, as TensorFlow DeepLab's
            ``fine_tune_batch_norm=false``; "affine": weights and biases; or "both".
        freeze_backbone: true: all of the backbone stays as it is; N: its first N stages (see ``Backbone.stages``).
            That includes the statistics of their batch norms.
        decoder: whether tensorflow and dense_prediction_cell have one; None: they have.
        image_pooling: whether tensorflow and tensorflow_short have that branch.
        dense_prediction_cell: see ``dense_prediction_cell.parse_cell``.
        align_corners: how maps are resized; None: as the head's original, so True for TensorFlow's.
        batchnorm_epsilon: added to the variance: a number, or ``{"backbone": ..., "head": ...}``. None: 1e-3 in an
            Xception, otherwise torch's 1e-5. TensorFlow's MobileNetV2 has 1e-3, its heads 1e-5.
        batchnorm_momentum: how much of a batch the running statistics take in; in the same forms. TensorFlow's decay d
            is 1 - d here.
        batchnorm_scale: whether the head's batch norms learn a factor.
        width_divisor: mobilenet_v2's channels are multiples of this: 8, in TensorFlow DeepLab 1 at widths but 1.0.
        padding: mobilenet_v2's: symmetric, or same (TensorFlow's); an Xception's first convolution's.
        low_level_features: mobilenet_v2's: block, or depthwise (TensorFlow's).
        multi_grid: factors on the atrous rates of an Xception's last three convolutions, as [1, 2, 4].

    Raises:
        ValueError: an unknown name, a number out of range, weights that do not fit, or a setting that this backbone or
            head would ignore.
        ImportError: mmsegmentation is missing.
        ConnectionError: the weights cannot be fetched.
    """
    shape = _BackboneArguments(
        width_multiplier=width_multiplier,
        width_divisor=width_divisor,
        padding=padding,
        low_level_features=low_level_features,
        multi_grid=multi_grid,
    )
    layers = _HeadArguments(
        output_stride=output_stride,
        aspp_dilations=None if aspp_dilations is None else list(aspp_dilations),
        aspp_channels=aspp_channels,
        dropout=dropout,
        decoder_channels=decoder_channels,
        decoder=decoder,
        image_pooling=image_pooling,
        dense_prediction_cell=dense_prediction_cell,
        align_corners=align_corners,
    )
    norms = _BatchNormArguments(batchnorm_epsilon, batchnorm_momentum, batchnorm_scale)
    features = build_backbone(backbone, output_stride=output_stride, **vars(shape))
    classifier = _build_classifier(head, num_classes, features, layers, low_level_features)
    sizes = {"feature_channels": features.channels, "dropout": dropout}
    auxiliary = build_auxiliary_head(num_classes, **sizes) if auxiliary_head else None
    norms.set_on(features, classifier, auxiliary)
    names = {"num_classes": num_classes, "backbone": backbone, "head": head}
    training = {
        "auxiliary_head": auxiliary_head,
        "freeze_batchnorm": batchnorm_choice(freeze_batchnorm),
        "freeze_backbone": frozen_stages(freeze_backbone, features),
    }
    untrained = {"backbone_weights": None, "initializers": []}
    arguments = {**names, **shape.described(), **layers.described(), **norms.described(), **training, **untrained}
    model = DeepLab(features, classifier, arguments, auxiliary)
    _start(model, initializers, backbone_weights)
    return model


@dataclass(frozen=True)
class _BackboneArguments:
    """Arguments of `build_deeplab` that the backbone is built from."""

    width_multiplier: float
    width_divisor: int
    padding: str
    low_level_features: str
    multi_grid: Sequence[int] | None

    def described(self) -> dict[str, Any]:
        """Return them as builtins."""
        return {**vars(self), "multi_grid": None if self.multi_grid is None else list(self.multi_grid)}


@dataclass(frozen=True)
class _HeadArguments:
    """Arguments of `build_deeplab` that the head is built from."""

    output_stride: int
    aspp_dilations: list[int] | None
    aspp_channels: int
    dropout: float
    decoder_channels: int
    decoder: bool | None
    image_pooling: bool
    dense_prediction_cell: CellSpec
    align_corners: bool | None

    def described(self) -> dict[str, Any]:
        """Return them as builtins: of a cell what its file says, for a checkpoint does without the file.

        The dilations stay as they were given: rebuilt at another output stride, the default has to follow it.
        """
        cell = self.dense_prediction_cell
        return {**vars(self), "dense_prediction_cell": None if cell is None else parse_cell(cell).described()}


@dataclass(frozen=True)
class _BatchNormArguments:
    """Arguments of `build_deeplab` that all batch norms take, or those of a part."""

    epsilon: PerPart
    momentum: PerPart
    scale: bool

    def set_on(self, backbone: Backbone, *heads: nn.Module | None) -> None:
        """Set the batch norms of all parts, in place."""
        if not isinstance(self.scale, bool):
            raise ValueError(f"batchnorm_scale must be true or false, got {self.scale!r}")
        epsilons = _per_part("batchnorm_epsilon", self.epsilon, None)
        momenta = _per_part("batchnorm_momentum", self.momentum, BATCHNORM_MOMENTUM)
        set_batchnorm(backbone, epsilon=epsilons["backbone"], momentum=momenta["backbone"])
        for head in filter(None, heads):
            set_batchnorm(head, epsilon=epsilons["head"], momentum=momenta["head"], scale=self.scale)

    def described(self) -> dict[str, Any]:
        """Return them as builtins."""
        given = {"batchnorm_epsilon": self.epsilon, "batchnorm_momentum": self.momentum}
        given = {name: dict(value) if isinstance(value, Mapping) else value for name, value in given.items()}
        return {**given, "batchnorm_scale": self.scale}


def _build_classifier(
    name: str, num_classes: int, backbone: Backbone, arguments: _HeadArguments, low_level_features: str
) -> nn.Module:
    head = build_head(name, num_classes, feature_channels=backbone.channels, **vars(arguments))
    if low_level_features != "block" and name != "deeplabv3plus" and getattr(head, "decoder", None) is None:
        raise ValueError(f"low_level_features={low_level_features} acts with a decoder only: leave it at block")
    ease_atrous_depthwise(head)
    return head


def _start(model: DeepLab, initializers: Sequence[str], backbone_weights: str | None) -> None:
    """Give the weights the values that training begins with, in place.

    The backbone's weights come last and replace the whole of it, so that the initializers then decide the head.
    """
    if not initializers:
        for head in filter(None, (model.head, model.auxiliary_head)):
            init_weights(head)
    apply_initializers(model, initializers)
    load_backbone_weights(model.backbone, backbone_weights, architecture=model.arguments["backbone"])


def _per_part(name: str, value: PerPart, default: float | None) -> dict[str, float | None]:
    parts = dict(value) if isinstance(value, Mapping) else dict.fromkeys(PARTS, value)
    if unknown := [part for part in parts if part not in PARTS]:
        raise ValueError(f"{name} has {unknown[0]!r}; valid: a number, or {{backbone: ..., head: ...}}")
    for part, number in parts.items():
        number = parts[part] = default if number is None else number
        if number is not None and not (isinstance(number, int | float) and 0 < number <= 1):
            raise ValueError(f"{name} must be above 0 and at most 1 in the {part}, such as 0.001, got {number!r}")
    return {part: parts.get(part, default) for part in PARTS}
