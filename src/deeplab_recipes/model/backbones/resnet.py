"""torchvision's ResNets at output stride 8, 16 or 32, also with mmsegmentation's deep stem."""

import torchvision
from torch import Tensor, nn

from deeplab_recipes.model.backbones.base import Backbone, Features, dilate

STEM_CHANNELS = (32, 32, 64)


class ResNetBackbone(Backbone):
    """A torchvision ResNet without its classifier; parameters keep torchvision's names.

    Features are those of ``layer1`` (stride 4), ``layer3`` and ``layer4`` (the output stride). torchvision's own
    ``replace_stride_with_dilation`` refuses ResNet-18 and -34, hence :func:`dilate`; elsewhere they agree.

    Args:
        architecture: torchvision's name.
        output_stride: 8, 16 or 32.
        deep_stem: three 3x3 convolutions in place of the first 7x7, named ``stem``: the variant V1c (He et al., Bag of
            Tricks, arXiv:1812.01187) on which mmsegmentation's DeepLabs stand.
    """

    classifier_keys = ("fc.",)

    def __init__(self, architecture: str, *, output_stride: int, deep_stem: bool = False) -> None:
        super().__init__()
        network = torchvision.models.get_model(architecture)
        if deep_stem:
            self.stem = _deep_stem()
        else:
            self.conv1, self.bn1, self.relu = network.conv1, network.bn1, network.relu
        self.maxpool = network.maxpool
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4
        dilate([self.layer3, self.layer4], output_stride)
        last = network.fc.in_features
        self.channels = (last // 8, last // 2, last)

    def forward(self, images: Tensor) -> Features:
        """Return the features."""
        stem = self.stem(images) if hasattr(self, "stem") else self.relu(self.bn1(self.conv1(images)))
        low = self.layer1(self.maxpool(stem))
        middle = self.layer3(self.layer2(low))
        return Features(low, middle, self.layer4(middle))

    def stages(self) -> list[list[nn.Module]]:
        """Return the stem and the four layers."""
        stem = [self.stem] if hasattr(self, "stem") else [self.conv1, self.bn1]
        return [stem, [self.layer1], [self.layer2], [self.layer3], [self.layer4]]


def _deep_stem() -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(zip((3, *STEM_CHANNELS), STEM_CHANNELS, strict=False)):
        convolution = nn.Conv2d(before, after, 3, stride=2 if i == 0 else 1, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's others
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
