"""The published trainings made of the originals' parts and formulas. Nothing here comes from the package.

torchvision's ResNet and mmsegmentation's head with Composer's loss, optimizers and schedules; and mmsegmentation's own
segmentor, losses and schedule. One loop plays all devices: each takes its share of the batch with a batch norm of its
own (torch refuses SyncBatchNorm on a CPU), and their gradients are averaged.
"""

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CLASSES, IGNORE, SEED = 150, 255, 17
Batch = dict[str, Tensor]


def normalised(images: Tensor, content: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) to float64; outside (top, left, height, width) of the content is padding, which is 0."""
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
    filled = torch.zeros_like(images, dtype=torch.float64)
    for i, (top, left, height, width) in enumerate(content.int().tolist()):
        window = (i, slice(None), slice(top, top + height), slice(left, left + width))
        filled[window] = ((images.double() - mean) / std)[window]
    return filled


def seed_step(step: int, rank: int) -> None:
    """Dropout is drawn from (seed, step, rank)."""
    torch.manual_seed(int(np.random.SeedSequence([SEED, step, rank]).generate_state(1, np.uint64)[0]) // 2)


class Composer(nn.Module):
    """Composer's DeepLabv3+ on a ResNet-18: freshly drawn, kaiming_normal and bn_ones."""

    def __init__(self) -> None:
        super().__init__()
        from mmseg.models.decode_heads import DepthwiseSeparableASPPHead

        torch.manual_seed(SEED)
        self.backbone = _dilated_resnet18()
        self.head = DepthwiseSeparableASPPHead(
            in_channels=512,
            channels=512,
            dilations=(1, 12, 24, 36),
            c1_in_channels=64,
            c1_channels=48,
            dropout_ratio=0.1,
            num_classes=CLASSES,
            norm_cfg={"type": "BN"},
            align_corners=False,
        )
        for layer in (*self.backbone.modules(), *self.head.modules()):
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.data.fill_(1)
                layer.bias.data.fill_(0)

    def forward(self, images: Tensor) -> Tensor:
        net = self.backbone
        low = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(images)))))
        high = net.layer4(net.layer3(net.layer2(low)))
        logits = self.head([low, high])
        return nn.functional.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy over the pixels that are not ignored."""
        log_p = torch.log_softmax(self(images), dim=1)
        counted = labels != IGNORE
        scores = log_p.permute(0, 2, 3, 1)[counted]
        return -scores[torch.arange(len(scores)), labels[counted].long()].mean()


def _dilated_resnet18() -> nn.Module:
    """Layer 3 keeps stride 8 with rate 2 behind its first convolution, layer 4 with 4 behind a first of 2."""
    net = torchvision.models.resnet18()
    for layer, first, rest in ((net.layer3, 1, 2), (net.layer4, 2, 4)):
        for i, block in enumerate(layer):
            for j, convolution in enumerate((block.conv1, block.conv2)):
                rate = first if (i, j) == (0, 0) else rest
                convolution.stride, convolution.dilation, convolution.padding = (1, 1), (rate, rate), (rate, rate)
        layer[0].downsample[0].stride = (1, 1)
    del net.fc, net.avgpool
    return net


class Mmsegmentation(nn.Module):
    """mmsegmentation's deeplabv3plus_r50-d8 as its ADE20k configurations set it up: 512 channels, auxiliary head."""

    def __init__(self) -> None:
        super().__init__()
        from mmseg.models.segmentors import EncoderDecoder

        norm = {"type": "BN"}
        shared = {"dropout_ratio": 0.1, "num_classes": CLASSES, "norm_cfg": norm, "align_corners": False}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about avg_non_ignore, which these configurations leave at its default
            self.segmentor = EncoderDecoder(
                backbone={
                    "type": "ResNetV1c",
                    "depth": 50,
                    "dilations": (1, 1, 2, 4),
                    "strides": (1, 2, 1, 1),
                    "norm_cfg": norm,
                    "contract_dilation": True,
                },
                decode_head={
                    "type": "DepthwiseSeparableASPPHead",
                    "in_channels": 2048,
                    "in_index": 3,
                    "channels": 512,
                    "dilations": (1, 12, 24, 36),
                    "c1_in_channels": 256,
                    "c1_channels": 48,
                    "loss_decode": {"type": "CrossEntropyLoss", "loss_weight": 1.0},
                    **shared,
                },
                auxiliary_head={
                    "type": "FCNHead",
                    "in_channels": 1024,
                    "in_index": 2,
                    "channels": 256,
                    "num_convs": 1,
                    "concat_input": False,
                    "loss_decode": {"type": "CrossEntropyLoss", "loss_weight": 0.4},
                    **shared,
                },
                train_cfg={},
                test_cfg={"mode": "whole"},
            )

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The sum that mmsegmentation's runner trains on."""
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        samples = [SegDataSample(gt_sem_seg=PixelData(data=label.long()[None])) for label in labels]
        losses = self.segmentor.loss(images, samples)
        total = sum(value for name, value in losses.items() if "loss" in name)
        # The sum over pixels is divided by their number + 1.2e-7, which float32 rounds away and float64 does not.
        return total * (labels.numel() + torch.finfo(torch.float32).eps) / labels.numel()


class FormulaSGD:
    """SGD with momentum, by hand: weight decay coupled (PyTorch's) or decoupled (Composer's)."""

    def __init__(self, parameters: list[nn.Parameter], *, decay: float, decoupled: bool) -> None:
        self.parameters, self.decay, self.decoupled = parameters, decay, decoupled
        self.buffers: list[Tensor | None] = [None] * len(parameters)

    def step(self, gradients: list[Tensor], factor: float) -> None:
        """Take a step at `factor` times the initial learning rate of 0.01."""
        for i, (p, g) in enumerate(zip(self.parameters, gradients, strict=True)):
            gradient = g if self.decoupled else g + self.decay * p.data
            earlier = self.buffers[i]
            self.buffers[i] = gradient.clone() if earlier is None else 0.9 * earlier + gradient
            if self.decoupled:
                p.data.mul_(1 - factor * self.decay)
            p.data.sub_(0.01 * factor * self.buffers[i])


class TypicalTwin:
    """Composer's "typical" recipe: coupled SGD, polynomial schedule."""

    batch_size, epochs_or_steps = 16, 127 * (20206 // 16)
    model, decay, decoupled = Composer, 5.0e-4, False

    def __init__(self, total: int) -> None:
        self.net, self.total = self.model().double(), total
        self.optimizer = FormulaSGD(list(self.net.parameters()), decay=self.decay, decoupled=self.decoupled)

    def factor(self, step: int) -> float:
        return 0.01 + 0.99 * (1 - step / self.total) ** 0.9

    def apply(self, gradients: list[Tensor], step: int) -> None:
        self.optimizer.step(gradients, self.factor(step))


class ComposerTwin(TypicalTwin):
    """Composer's own recipe: decoupled SGDW, cosine schedule."""

    batch_size, epochs_or_steps = 32, 128 * (20206 // 32)
    decay, decoupled = 2.0e-5, True

    def factor(self, step: int) -> float:
        return (1 + math.cos(math.pi * step / self.total)) / 2


class MmsegTwin:
    """mmsegmentation's: PyTorch's SGD under mmengine's PolyLR."""

    batch_size, epochs_or_steps = 16, 160_000
    model = Mmsegmentation

    def __init__(self, total: int) -> None:
        from mmengine.optim import PolyLR

        self.net = self.model().double()
        self.sgd = torch.optim.SGD(self.net.parameters(), lr=0.01, momentum=0.9, weight_decay=0.0005)
        self.schedule = PolyLR(self.sgd, power=0.9, eta_min=1e-4, begin=0, end=total, by_epoch=False)

    def apply(self, gradients: list[Tensor], step: int) -> None:
        for p, g in zip(self.net.parameters(), gradients, strict=True):
            p.grad = g
        self.sgd.step()
        self.schedule.step()


TWINS: dict[str, Callable[[int], Any]] = {
    "ade20k_typical": TypicalTwin,
    "ade20k_composer": ComposerTwin,
    "ade20k_mmseg_160k": MmsegTwin,
}


def train(twin: Any, batches: list[Batch], *, devices: int, keep: tuple[int, ...]) -> dict[int, list[Tensor]]:
    """Train on uint8 global batches; returns parameters and the first device's statistics after each step of `keep`."""
    replicas = [twin.net, *(copy.deepcopy(twin.net) for _ in range(devices - 1))]
    kept: dict[int, list[Tensor]] = {}
    for step, batch in enumerate(batches):
        gradients = []
        for rank, replica in enumerate(replicas):
            with torch.no_grad():
                for theirs, first in zip(replica.parameters(), twin.net.parameters(), strict=True):
                    theirs.copy_(first)
            images, content, labels = (batch[key].chunk(devices)[rank] for key in ("image", "content", "label"))
            seed_step(step, rank)
            loss = replica.train().loss(normalised(images, content), labels)
            gradients.append(torch.autograd.grad(loss, list(replica.parameters())))
        twin.apply([sum(shares) / devices for shares in zip(*gradients, strict=True)], step)
        if step + 1 in keep:
            kept[step + 1] = [value.detach().clone() for value in twin.net.state_dict().values()]
    return kept
