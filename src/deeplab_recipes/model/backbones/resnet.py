"""torchvision's ResNets at output stride 8, 16 or 32."""

import torchvision
from torch import Tensor

from deeplab_recipes.model.backbones.base import Backbone, dilate


class ResNetBackbone(Backbone):
    """A torchvision ResNet without its classifier; parameters keep torchvision's names.

    Features are those of ``layer1`` (stride 4) and ``layer4`` (the output stride). torchvision's own
    ``replace_stride_with_dilation`` refuses ResNet-18 and -34, hence :func:`dilate`; elsewhere they agree.
    """

    classifier_keys = ("fc.",)

    def __init__(self, architecture: str, *, output_stride: int, width_multiplier: float = 1.0) -> None:
        super().__init__()
        if width_multiplier != 1.0:
            raise ValueError(f"width_multiplier={width_multiplier} is for mobilenet_v2, not {architecture}")
        network = torchvision.models.get_model(architecture)
        self.conv1, self.bn1 = network.conv1, network.bn1
        self.relu, self.maxpool = network.relu, network.maxpool
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4
        dilate([self.layer3, self.layer4], output_stride)
        last = network.fc.in_features
        self.channels = (last // 8, last)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features at stride 4 and at the output stride, sizes rounded up."""
        stem = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        low = self.layer1(stem)
        return low, self.layer4(self.layer3(self.layer2(low)))
