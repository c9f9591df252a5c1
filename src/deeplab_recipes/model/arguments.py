"""What the arguments of a model mean, and those of the same model at another output stride."""

from collections.abc import Mapping
from typing import Any

from deeplab_recipes.model.backbones import OUTPUT_STRIDES, XCEPTIONS
from deeplab_recipes.model.backbones.xception import EPSILON
from deeplab_recipes.model.dense_prediction_cell import RATES_FOR, parse_cell
from deeplab_recipes.model.heads import OPTIONS

WITH_DECODER = OPTIONS["decoder"][1]
TORCHS_EPSILON = 1e-5  # of its batch norms
ALIGNING = (*WITH_DECODER, "tensorflow_short")  # heads whose originals resize with corners aligned


def resolved(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's arguments with what was left to its backbone, head and other arguments filled in.

    Two that are equal are the same network, however each was written. A cell's factor on the rates is that at output
    stride 16, so that it does not depend on the output stride.

    Args:
        arguments: of a model, see ``DeepLab.arguments``.
    """
    found, head = dict(arguments), arguments["head"]
    for key, value in {"align_corners": head in ALIGNING, "decoder": head in WITH_DECODER or None}.items():
        found[key] = value if found.get(key) is None else found[key]
    found["batchnorm_epsilon"] = _epsilon(arguments)
    if head == "dense_prediction_cell":
        cell = parse_cell(arguments.get("dense_prediction_cell"))
        factor = (cell.conv_rate_multiplier or 0) * arguments["output_stride"] / RATES_FOR or 1
        filled = cell.filled(arguments["aspp_channels"], arguments["output_stride"])
        found["dense_prediction_cell"] = {**filled.described(), "conv_rate_multiplier": factor}
    return found


def _epsilon(arguments: Mapping[str, Any]) -> dict[str, float]:
    given = arguments.get("batchnorm_epsilon")
    parts = given if isinstance(given, Mapping) else {"backbone": given, "head": given}
    usual = {"backbone": EPSILON if arguments["backbone"] in XCEPTIONS else TORCHS_EPSILON, "head": TORCHS_EPSILON}
    return {part: value if parts.get(part) is None else parts[part] for part, value in usual.items()}


def at_output_stride(arguments: Mapping[str, Any], output_stride: int) -> dict[str, Any]:
    """Return the arguments with which ``build_deeplab`` builds the same network at another output stride.

    Atrous rates that were left to the output stride follow it by themselves. Given ones are scaled, so that they reach
    as far over the image as before: [1, 8, 12, 18] at 16 are [1, 16, 24, 36] at 8. 1 is a 1x1 convolution and stays.

    Args:
        arguments: of a model, see ``DeepLab.arguments``.
        output_stride: 8, 16 or 32.

    Raises:
        ValueError: for another output stride, or a rate that is no whole number above 1 at it.
    """
    if output_stride not in OUTPUT_STRIDES:
        raise ValueError(f"output_stride must be one of {OUTPUT_STRIDES}, got {output_stride!r}")
    before = arguments["output_stride"]
    found = {**arguments, "output_stride": output_stride}
    if rates := arguments.get("aspp_dilations"):
        found["aspp_dilations"] = [rate if rate == 1 else _scaled(rate, before, output_stride, 2) for rate in rates]
    cell = arguments.get("dense_prediction_cell")
    if isinstance(cell, Mapping) and (factor := cell.get("conv_rate_multiplier")):
        found["dense_prediction_cell"] = {**cell, "conv_rate_multiplier": _scaled(factor, before, output_stride, 1)}
    return found


def _scaled(rate: int, before: int, after: int, least: int) -> int:
    scaled, rest = divmod(rate * before, after)
    if rest or scaled < least:
        raise ValueError(
            f"output_stride={after}: the atrous rate {rate} that the model has at output stride {before} would be "
            f"{rate * before / after:g} there; take one at which it is a whole number above {least - 1}"
        )
    return scaled
