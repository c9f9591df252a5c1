"""mmsegmentation's and Composer's models, made of the originals' own parts. Nothing here comes from the package."""

import warnings
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

MMSEG_HEADS = {"deeplabv3": "ASPPHead", "deeplabv3plus": "DepthwiseSeparableASPPHead"}


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every tensor a value of its own, batch norms' statistics too; logits stay below about 10."""
    generator = torch.Generator().manual_seed(seed)
    ranges = {"running_var": (0.5, 1.5), "weight": (0.2, 0.8), "running_mean": (-0.2, 0.2), "bias": (-0.2, 0.2)}
    for name, tensor in model.state_dict().items():
        kind = name.rpartition(".")[2]
        if kind == "num_batches_tracked":
            tensor.fill_(7)
        elif tensor.ndim == 1:
            low, high = ranges[kind]
            tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
        else:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5)
    return model.eval()


def mmsegmentation(
    depth: int,
    head: str,
    *,
    classes: int = 5,
    channels: int = 512,
    backbone: str = "ResNetV1c",
    strides: tuple[int, ...] = (1, 2, 1, 1),
    dilations: tuple[int, ...] = (1, 1, 2, 4),
    rates: tuple[int, ...] = (1, 12, 24, 36),
    auxiliary: bool = True,
) -> nn.Module:
    """mmsegmentation's EncoderDecoder as its deeplabv3(plus)_r*-d8 configurations set it up."""
    from mmseg.models.segmentors import EncoderDecoder

    norm = {"type": "BN"}
    shared: dict[str, Any] = {"num_classes": classes, "norm_cfg": norm, "align_corners": False, "dropout_ratio": 0.1}
    decode = {"type": MMSEG_HEADS[head], "in_channels": 2048, "in_index": 3, "channels": channels, "dilations": rates}
    decode |= shared | ({"c1_in_channels": 256, "c1_channels": 48} if head == "deeplabv3plus" else {})
    extra = {"type": "FCNHead", "in_channels": 1024, "in_index": 2, "channels": 256, "num_convs": 1} | shared
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about avg_non_ignore
        return EncoderDecoder(
            backbone={
                "type": backbone,
                "depth": depth,
                "dilations": dilations,
                "strides": strides,
                "norm_cfg": norm,
                "contract_dilation": True,
            },
            decode_head=decode,
            auxiliary_head={**extra, "concat_input": False} if auxiliary else None,
            train_cfg={},
            test_cfg={"mode": "whole"},
        )


class Composer(nn.Module):
    """Composer's: torchvision's layers behind its getter, mmsegmentation's head, below two attributes named model."""

    def __init__(self, architecture: str = "resnet50", *, classes: int = 5, plus: bool = True) -> None:
        super().__init__()
        from mmseg.models.decode_heads import ASPPHead, DepthwiseSeparableASPPHead
        from torchvision.models._utils import IntermediateLayerGetter

        network = torchvision.models.get_model(architecture, replace_stride_with_dilation=[False, True, True])
        layers = ["layer1", "layer4"] if plus else ["layer4"]
        settings = {"channels": 512, "dilations": (1, 12, 24, 36), "dropout_ratio": 0.1, "align_corners": False}
        settings |= {"in_channels": 2048, "in_index": -1, "num_classes": classes, "norm_cfg": {"type": "BN"}}
        self.model = nn.Module()
        self.model.backbone = IntermediateLayerGetter(network, return_layers={name: name for name in layers})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if plus:
                self.model.classifier = DepthwiseSeparableASPPHead(c1_in_channels=256, c1_channels=48, **settings)
            else:
                self.model.classifier = ASPPHead(**settings)

    def forward(self, images: Tensor) -> Tensor:
        features = self.model.backbone(images)
        logits = self.model.classifier(tuple(features.values()))
        return nn.functional.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)
