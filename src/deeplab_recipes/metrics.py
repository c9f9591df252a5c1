"""Mean intersection over union, exact: integer counts summed over the whole set and over all devices."""

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanIoU(Metric):
    """Mean IoU in 0..100, as Composer counts it.

    Pixels with the ignore label are dropped; classes with an empty union are left out of the mean. The state
    is one integer confusion matrix (truth, prediction): sums are exact, and the order does not matter.

    Args:
        num_classes: number of classes C.
        ignore_index: the label that counts nowhere.
    """

    higher_is_better = True
    full_state_update = False
    confusion: Tensor

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        super().__init__()
        self.num_classes, self.ignore_index = num_classes, ignore_index
        zeros = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("confusion", default=zeros, dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch: logits (B, C, H, W) or labels (B, H, W), and true labels (B, H, W).

        Raises:
            ValueError: if the sizes differ, or for a label that is no class.
        """
        if prediction.ndim == target.ndim + 1:
            prediction = prediction.argmax(dim=1)
        if prediction.shape != target.shape:
            shapes = f"{tuple(prediction.shape)} and {tuple(target.shape)}"
            raise ValueError(f"prediction and target have different sizes: {shapes}; resize the logits first")
        self.confusion += confusion_matrix(prediction, target, self.num_classes, self.ignore_index)

    def compute(self) -> Tensor:
        """Return the mean IoU of the classes that occur, 0..100; 0 where nothing was counted."""
        iou = self.per_class()
        return iou.nanmean().nan_to_num()

    def per_class(self) -> Tensor:
        """Return each class's IoU over all devices (C,), float64, 0..100; NaN where the union is empty."""
        with self.sync_context(should_sync=not self._is_synced, should_unsync=not self._is_synced):
            matrix = self.confusion.double()
        intersection = matrix.diagonal()
        union = matrix.sum(0) + matrix.sum(1) - intersection
        return 100 * intersection / union


def confusion_matrix(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Count (truth, prediction) pairs, (C, C) int64; pixels whose truth is `ignore_index` are dropped.

    One bincount over all pixels: ignored ones go to a bin of their own, which is faster than selecting the
    others, and wrong ones to another.

    Raises:
        ValueError: for a label that is no class, be it a true one or a predicted one.
    """
    ignored, wrong = num_classes**2, num_classes**2 + 1
    truth, found = target.long(), prediction.long()
    is_class = (truth >= 0) & (truth < num_classes) & (found >= 0) & (found < num_classes)
    pairs = torch.where(is_class, truth * num_classes + found, wrong)
    pairs = torch.where(truth == ignore_index, ignored, pairs)
    counts = torch.bincount(pairs.flatten(), minlength=wrong + 1)
    if counts[wrong]:
        raise ValueError(
            f"{int(counts[wrong])} pixels have a true or a predicted label that is none of the {num_classes} "
            f"classes; valid are 0 to {num_classes - 1}, and {ignore_index} (ignored) for true labels"
        )
    return counts[:ignored].view(num_classes, num_classes)
