import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from deeplab_recipes.checkpoints import FORMAT_VERSION, AtomicCheckpointIO
from deeplab_recipes.data.dataset import collate_by_size
from deeplab_recipes.data.device import normalize
from deeplab_recipes.data.transforms import MEAN, STD, EvaluationTransform
from deeplab_recipes.inference import Predictor, load_predictor
from deeplab_recipes.losses import SegmentationLoss
from deeplab_recipes.model import DeepLab, build_deeplab
from deeplab_recipes.module import SegmentationModule

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]

SIZES = {"square": [48, 40], "keep_ratio": [128, 40]}
PALETTE = [[10 * c, 255 - 10 * c, c] for c in range(5)]


def card(model: DeepLab, protocol: str) -> dict:
    return {
        "format_version": FORMAT_VERSION,
        "classes": ["a", "b", "c", "d", "e"],
        "palette": PALETTE,
        "model": dict(model.arguments),
        "protocol": protocol,
        "evaluate_sizes": SIZES,
        "mean": list(MEAN),
        "std": list(STD),
    }


@pytest.fixture(scope="module")
def network() -> DeepLab:
    torch.manual_seed(0)
    model = build_deeplab(5, backbone="mobilenet_v2", width_multiplier=0.35, aspp_channels=16, output_stride=16)
    torch.nn.init.normal_(model.head.conv_seg.weight)
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.momentum = 1.0  # with the statistics of one batch, classes differ from place to place
    images = np.stack([photograph(height, 80)[:80] for height in (80, 88, 96)])
    with torch.no_grad():
        model(normalize(torch.from_numpy(images).permute(0, 3, 1, 2)))
    return model.eval()


@pytest.fixture(scope="module", params=SIZES)
def protocol(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def checkpoint(network, protocol, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("run") / f"{protocol}.ckpt"
    module = SegmentationModule(
        network, loss=SegmentationLoss(), optimizer=tiny.sgd, schedule=tiny.falling, num_classes=5
    )
    AtomicCheckpointIO().save_checkpoint({"state_dict": module.state_dict(), "deeplab": card(network, protocol)}, path)
    return path


def photograph(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height * width)
    blocks = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return blocks.repeat(8, 0).repeat(8, 1)[:height, :width]


@pytest.mark.parametrize(("height", "width"), [(48, 40), (41, 57), (33, 100), (127, 35), (17, 23), (9, 200)])
def test_labels_have_the_size_of_the_image(checkpoint, height, width):
    predictor = load_predictor(checkpoint)
    labels = predictor(photograph(height, width))
    assert labels.shape == (height, width)
    assert labels.dtype == np.uint8
    assert labels.max() < 5
    logits = predictor.logits(photograph(height, width))
    assert logits.shape == (5, height, width)
    np.testing.assert_array_equal(logits.argmax(0).numpy(), labels)


def test_a_predictor_knows_what_its_checkpoint_does(checkpoint, network):
    predictor = load_predictor(str(checkpoint))
    assert predictor.classes == ("a", "b", "c", "d", "e")
    assert predictor.palette == tuple(map(tuple, PALETTE))
    assert not predictor.model.training
    for name, value in network.state_dict().items():
        assert torch.equal(predictor.model.state_dict()[name], value)


@contextmanager
def every_warning() -> Iterator[None]:
    """Torch gives some warnings once only."""
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


@pytest.mark.parametrize("change", ["read_only", "turned", "flipped", "pillow"])
def test_any_memory_layout_will_do_without_a_warning(checkpoint, change):
    predictor = load_predictor(checkpoint)
    for height, width in ((48, 40), (57, 41)):  # as it is, and resized
        image = photograph(height, width)
        expected = predictor(image)
        if change == "read_only":
            image.setflags(write=False)
        elif change == "turned":
            image = np.ascontiguousarray(image.transpose(1, 0, 2)).transpose(1, 0, 2)
        elif change == "flipped":
            image = np.ascontiguousarray(image[:, ::-1])[:, ::-1]
        else:
            image = Image.fromarray(image)
        with warnings.catch_warnings(), every_warning():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(predictor(image), expected)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((40, 40), np.uint8),
        np.zeros((40, 40, 4), np.uint8),
        np.zeros((3, 40, 40), np.uint8),
        np.zeros((1, 40, 40, 3), np.uint8),
        np.zeros((40, 40, 3), np.float32),
        np.zeros((40, 40, 3), np.int64),
        np.zeros((0, 40, 3), np.uint8),
    ],
    ids=lambda image: f"{image.shape} {image.dtype}",
)
def test_what_is_no_photograph_is_refused(network, image):
    with pytest.raises(ValueError, match=r"must be \(H, W, 3\) uint8 RGB; this one is \("):
        Predictor(network, card(network, "square"))(image)


def test_the_same_answer_as_in_evaluation(checkpoint, network, protocol, tmp_path):
    """Evaluated against the predictor's own labels, the module is right everywhere."""
    predictor = load_predictor(checkpoint)
    size = (48, 40) if protocol == "square" else (45, 70)  # `square` squashes the labels, so only its own size is exact
    image = photograph(*size)
    labels = predictor(image)
    assert len(np.unique(labels)) > 1
    sample = EvaluationTransform(protocol, tuple(SIZES[protocol]))(image, labels)
    batch = collate_by_size([sample])
    batch = [{**part, "image": normalize(part["image"])} for part in batch]
    module = SegmentationModule(
        network, loss=SegmentationLoss(), optimizer=tiny.sgd, schedule=tiny.falling, num_classes=5
    )
    tiny.trainer(tmp_path).validate(module, tiny.loader([batch]), verbose=False)
    assert module.evaluation["miou"] == 100


def test_another_output_stride(checkpoint):
    image = photograph(64, 72)
    normal, finer = load_predictor(checkpoint), load_predictor(checkpoint, output_stride=8)
    assert (normal.model.output_stride, finer.model.output_stride) == (16, 8)
    weights, same = normal.model.state_dict(), finer.model.state_dict()
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert not torch.equal(normal.logits(image), finer.logits(image))
    with pytest.raises(ValueError, match="output_stride"):
        load_predictor(checkpoint, output_stride=7)


def test_loading_leaves_the_random_numbers_alone(checkpoint):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load_predictor(checkpoint)
    assert torch.equal(torch.rand(1), expected)


def test_a_missing_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_predictor(tmp_path / "none.ckpt")


@pytest.mark.parametrize(
    ("arguments", "rates"),
    [
        ({"backbone": "xception41", "head": "tensorflow"}, {3: 36}),
        ({"head": "tensorflow_short", "padding": "same"}, {}),
        ({"head": "dense_prediction_cell", "width_divisor": 1}, {0: 2}),
    ],
)
def test_tensorflows_family_at_another_output_stride(arguments, rates, tmp_path):
    torch.manual_seed(0)
    narrow = {} if "backbone" in arguments else {"backbone": "mobilenet_v2", "width_multiplier": 0.35}
    model = build_deeplab(5, aspp_channels=8, output_stride=16, **narrow, **arguments).eval()
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, "deeplab": card(model, "keep_ratio")}, tmp_path / "a.ckpt")
    predictor = load_predictor(tmp_path / "a.ckpt", output_stride=8)
    dense = build_deeplab(**{**model.arguments, "output_stride": 8}).eval()
    dense.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, 35, 62)
    with torch.no_grad():
        assert torch.equal(predictor.model(images), dense(images))
        assert predictor.model.backbone(images).high.shape[-2:] == (5, 8)
        assert model.backbone(images).high.shape[-2:] == (3, 4)
    branches = predictor.model.head.encoder.branches
    assert {i: branches[i].depthwise.conv.dilation[0] for i in rates} == rates
    assert predictor(photograph(35, 62)).shape == (35, 62)
