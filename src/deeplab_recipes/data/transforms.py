"""The two published ADE20k pipelines: draws and geometry on the host, colour and normalisation on the device.

`square` is Composer's: image and labels are squashed to a square of the drawn scale (Pillow, with
antialiasing), padded on all sides. `keep_ratio` is mmsegmentation's: the aspect stays (OpenCV, without
antialiasing), padded right and below.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from deeplab_recipes.data.colours import Photometric, change_colours, draw_colour
from deeplab_recipes.data.cropping import Box, Pipeline, crop_image, crop_labels
from deeplab_recipes.data.labels import IGNORE
from deeplab_recipes.data.pictures import Photograph

Size = tuple[int, int]
MEAN_PIXEL = (123, 116, 103)
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
CROP_TRIES = 10
SMALLEST = 33  # side of an image that the models take
PIPELINES = ("square", "keep_ratio")


def resized_size(pipeline: Pipeline, source: Size, base: Size | None, scale: float = 1.0) -> Size:
    """Return the (height, width) that an image of size `source` is resized to.

    Args:
        pipeline: "square": `base` (height, width) times scale, whatever the aspect; "keep_ratio": as large as
            fits into `base` = (long side, short side) times scale.
        source: (height, width) of the image.
        base: see `pipeline`; None: the image's own size, as TensorFlow DeepLab.
        scale: factor on `base`.
    """
    if base is None:
        return max(int(source[0] * scale), 1), max(int(source[1] * scale), 1)
    first, second = max(int(base[0] * scale), 1), max(int(base[1] * scale), 1)
    if pipeline == "square":
        return first, second
    factor = min(max(first, second) / max(source), min(first, second) / min(source))
    return max(int(source[0] * factor + 0.5), 1), max(int(source[1] * factor + 0.5), 1)


def evaluated_size(protocol: Pipeline, source: Size, size: Size) -> Size:
    """Return the (height, width) at which an image of size `source` is evaluated.

    A side that "keep_ratio" would make smaller than the models take is stretched to that: an evaluation does not end
    at an image that is very flat or small.
    """
    height, width = resized_size(protocol, source, size)
    return max(height, SMALLEST), max(width, SMALLEST)


def resize_image(image: np.ndarray, size: Size, pipeline: Pipeline) -> np.ndarray:
    """Resize (H, W, 3) uint8 bilinearly, as the pipeline's original does."""
    if image.shape[:2] == size:
        return image
    if pipeline == "square":
        return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def resize_labels(labels: np.ndarray, size: Size, pipeline: Pipeline) -> np.ndarray:
    """Resize (H, W) uint8 to the nearest pixel, as the pipeline's original does."""
    if labels.shape == size:
        return labels
    if pipeline == "square":
        return np.asarray(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))
    return cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)


def is_varied(labels: np.ndarray, max_class_share: float) -> bool:
    """Whether a crop has at least two classes and none fills `max_class_share` of its labelled pixels."""
    likely = int(_counts(np.ascontiguousarray(labels[::4, ::4])).argmax())
    count, labelled = np.count_nonzero(labels == likely), np.count_nonzero(labels != IGNORE)
    if count == labelled or count / labelled >= max_class_share:
        return False
    if count and (labelled - count) / labelled < max_class_share:  # no other class can fill that share
        return True
    counts = _counts(labels)  # takes longer than all of the above, and is hardly ever needed
    return np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < max_class_share


def _counts(labels: np.ndarray) -> np.ndarray:
    return cv2.calcHist([labels], [0], None, [256], [0, 256])[:IGNORE]


def draw_crop(
    size: Size, crop: Size, max_class_share: float, rng: np.random.Generator, look: Callable[[Box], np.ndarray]
) -> tuple[Box, np.ndarray]:
    """Draw a box inside a picture; redrawn up to ten times until the labels in it are varied.

    Where the picture is smaller than the crop, all of it is taken in that direction. After ten failures the
    eleventh draw stands, as in both originals.

    Args:
        size: (height, width) of the picture.
        crop: (height, width) of the box.
        max_class_share: see `is_varied`.
        rng: where the draws come from.
        look: gives the labels in a box.

    Returns:
        The box and the labels in it.
    """
    height, width = min(crop[0], size[0]), min(crop[1], size[1])
    free = size[0] - height, size[1] - width

    def draw() -> tuple[Box, np.ndarray]:
        box = Box(int(rng.integers(free[0] + 1)), int(rng.integers(free[1] + 1)), height, width)
        return box, look(box)

    box, labels = draw()
    if max_class_share < 1 and any(free):
        for _ in range(CROP_TRIES):
            if is_varied(labels, max_class_share):
                break
            box, labels = draw()
    return box, labels


def draw_scale(scale_range: tuple[float, float], step: float, rng: np.random.Generator) -> float:
    """Draw a scale: any in the range, or with a step above 0 one of those that begin at its low end, as TensorFlow."""
    if step == 0:
        return rng.uniform(*scale_range)
    scales = np.linspace(*scale_range, int((scale_range[1] - scale_range[0]) / step + 1))
    return float(scales[rng.integers(len(scales))])


@dataclass(frozen=True)
class TrainingTransform:
    """Resize at a random scale, crop, flip and pad; draws colour changes that the device applies.

    Args:
        pipeline: "square" or "keep_ratio", see the module.
        crop_size: (height, width) that every sample leaves with.
        base_size: "square": (height, width) at scale 1; "keep_ratio": (long side, short side) to fit into; None: the
            image's own size.
        scale_range: scale is uniform in it.
        scale_step: distance of the scales that are drawn; 0: any in the range.
        max_class_share: a crop is drawn again when one class fills this share of it; 1 switches the rule off.
        flip: probability of a horizontal flip.
        photometric: which original's colour changes to draw, or "none".
        colours_here: make the colour changes here, on uint8, and not on the device.
        reduced_decoding: decode a JPEG at 1/2, 1/4 or 1/8 of its size where it is going to be at most that large. It
            takes less time, and differs where the original shrinks without smoothing, as "keep_ratio" does.
    """

    pipeline: Pipeline
    crop_size: Size
    base_size: Size | None
    scale_range: tuple[float, float] = (0.5, 2.0)
    scale_step: float = 0.0
    max_class_share: float = 0.75
    flip: float = 0.5
    photometric: Photometric = "none"
    colours_here: bool = False
    reduced_decoding: bool = False

    def __call__(
        self,
        photograph: Photograph,
        labels: np.ndarray,
        rng: np.random.Generator,
        *,
        image_out: np.ndarray | None = None,
        label_out: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Make a sample. Scale and crop are drawn before a pixel is decoded, and only what the crop shows is resized.

        Args:
            photograph: the image.
            labels: (H, W) uint8 of the same size.
            rng: where the draws come from.
            image_out, label_out: where the sample is written, if not to new arrays.

        Returns:
            image (H, W, 3), label (H, W), content (top, left, height, width) and colour (5,).
        """
        scale = draw_scale(self.scale_range, self.scale_step, rng)
        size = resized_size(self.pipeline, labels.shape, self.base_size, scale)

        def look(box: Box) -> np.ndarray:
            return crop_labels(labels, size, box, self.pipeline)

        box, chosen = draw_crop(size, self.crop_size, self.max_class_share, rng, look)
        flip = rng.random() < self.flip
        colour = draw_colour(self.photometric, rng)
        image = crop_image(self._reduced(photograph, size), size, box, self.pipeline)
        if self.colours_here:
            image = change_colours(image, colour, self.photometric)
        image_out = np.empty((*self.crop_size, 3), np.uint8) if image_out is None else image_out
        label_out = np.empty(self.crop_size, np.uint8) if label_out is None else label_out
        content = place(image, chosen, image_out, label_out, self.pipeline, flip=flip)
        return {"image": image_out, "label": label_out, "content": content, "colour": colour}

    def _reduced(self, photograph: Photograph, size: Size) -> Photograph:
        """Have it decoded at a half, a quarter or an eighth where the sample is smaller still."""
        if not self.reduced_decoding:
            return photograph
        shrinks = min(photograph.shape[0] / size[0], photograph.shape[1] / size[1])
        factor = next((f for f in (8, 4, 2) if shrinks >= f), 1)
        return photograph.reduced(factor) if factor > 1 else photograph


def place(
    image: np.ndarray,
    labels: np.ndarray,
    image_out: np.ndarray,
    label_out: np.ndarray,
    pipeline: Pipeline,
    *,
    flip: bool,
) -> np.ndarray:
    """Write a crop into a sample. Around it come the mean pixel and 255: evenly ("square") or right and below.

    Returns:
        The (top, left, height, width) of what is not padding.
    """
    (height, width), size = labels.shape, label_out.shape
    centred = pipeline == "square"
    top = (size[0] - height) // 2 if centred else 0
    left = (size[1] - width) // 2 if centred else 0
    if (height, width) != size:
        image_out.reshape(size[0], -1)[:] = np.tile(np.uint8(MEAN_PIXEL), size[1])  # by rows: pixels are slow
        label_out[:] = IGNORE
    for pixels, out in ((image, image_out), (labels, label_out)):
        inside = out[top : top + height, left : left + width]
        if flip and (height, width) == size:
            cv2.flip(pixels, 1, dst=out)  # much faster than copying pixels[:, ::-1]
        else:
            inside[:] = cv2.flip(pixels, 1) if flip else pixels
    return np.array([top, left, height, width], np.int32)


@dataclass(frozen=True)
class EvaluationTransform:
    """Resize for an evaluation protocol.

    Args:
        protocol: "square" squashes image and labels to `size` = (height, width); "keep_ratio" fits the image
            into `size` = (long side, short side) and leaves the labels at their own size.
        size: see `protocol`.
    """

    protocol: Pipeline
    size: Size

    def __call__(self, image: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """Return image (H, W, 3) and label (H', W'), both uint8."""
        target = evaluated_size(self.protocol, labels.shape, self.size)
        image = resize_image(image, target, self.protocol)
        if self.protocol == "square":
            labels = resize_labels(labels, target, self.protocol)
        return {"image": image, "label": labels}
