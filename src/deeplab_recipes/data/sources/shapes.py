"""Drawn toy landscapes, written to disk in ADE20k's layout: the data set of the recipe `quickstart`.

All classes take their colours from one box of paints, and the light changes from scene to scene, so colour
alone says little: a roof and a fir may be the same green, a sail and a gable the same rose. What tells them
apart is shape, texture and surroundings, which is what a segmentation network has to learn.

Lengths and positions are in units of the scene's height, x to the right and y downwards.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

Colour = tuple[int, int, int]
Paints = dict[str, Colour]

VERSION = 1  # raise it whenever the drawings change, so that older scenes are not mistaken for these
IGNORE = 255
OVERSAMPLE = 2  # scenes are drawn at twice their size and averaged down, which smooths the edges
PARTS = (("training", "train"), ("validation", "val"))
KEY = {
    "sky": (150, 205, 240),
    "ground": (165, 200, 95),
    "water": (45, 110, 190),
    "road": (120, 120, 130),
    "wall": (245, 215, 150),
    "roof": (185, 60, 55),
    "tree": (40, 120, 65),
    "balloon": (235, 120, 190),
    "boat": (110, 60, 150),
}
CLASSES: tuple[str, ...] = tuple(KEY)
PALETTE: tuple[Colour, ...] = tuple(KEY.values())

PAINTS: Paints = {
    "powder": (168, 208, 234),
    "peach": (247, 198, 156),
    "lilac": (196, 178, 222),
    "cream": (246, 234, 204),
    "mint": (172, 218, 190),
    "rose": (230, 150, 158),
    "wheat": (228, 192, 108),
    "meadow": (140, 186, 98),
    "teal": (78, 156, 164),
    "slate": (118, 130, 150),
    "brick": (196, 92, 76),
    "rust": (216, 130, 66),
    "heather": (142, 108, 166),
    "moss": (92, 132, 76),
}
# Every paint serves several classes; a paint that is listed twice is picked twice as often.
CHOICES = {
    "sky": "powder powder peach lilac cream rose mint",
    "ground": "meadow meadow moss wheat mint cream lilac peach",
    "water": "teal teal powder powder slate lilac heather mint",
    "road": "slate slate cream wheat lilac brick peach",
    "wall": "cream cream peach rose powder wheat mint brick",
    "roof": "brick brick rust slate teal heather moss",
    "tree": "moss moss meadow teal rust rose wheat",
    "balloon": "rose rust brick heather wheat teal meadow",
    "boat": "brick brick cream rust slate teal rose",
}
WOOD, WHITE = (112, 84, 66), (250, 246, 238)
TURN = np.linspace(0, 2 * np.pi, 24, endpoint=False)
CIRCLE = np.stack([np.sin(TURN), -np.cos(TURN)], axis=1)
# A balloon is a circle whose lower half is drawn out and narrowed.
ENVELOPE = np.where(CIRCLE[:, 1:] > 0, CIRCLE * (1, 1.25) * (1 - 0.35 * CIRCLE[:, 1:] ** 2) ** (1, 0), CIRCLE)


class Canvas:
    """A scene in the making: its colours and its classes, at `OVERSAMPLE` times the final size."""

    def __init__(self, height: int, width: int) -> None:
        self.unit = height * OVERSAMPLE
        self.aspect = width / height
        self.image = np.zeros((self.unit, width * OVERSAMPLE, 3), np.uint8)
        self.label = np.zeros(self.image.shape[:2], np.uint8)

    def fill(self, points: object, colour: Colour, name: str | None = None) -> None:
        """Fill a polygon of N x 2 points. Without a class name it is mere decoration: the label stays."""
        corners = [np.rint(np.asarray(points) * (self.unit * 16)).astype(np.int32)]
        cv2.fillPoly(self.image, corners, colour, shift=4)
        if name is not None:
            cv2.fillPoly(self.label, corners, CLASSES.index(name), shift=4)

    def spots(self, rng: np.random.Generator, name: str, count: int, room: float, top: float = 0) -> np.ndarray:
        """Up to `count` random points below `top` with `room` of class `name` to their left and right."""
        free = (self.label == CLASSES.index(name)).astype(np.uint8)
        free[: int(top * self.unit)] = 0
        kernel = np.ones((1, 2 * int(room * self.unit) + 1), np.uint8)
        inside = np.flatnonzero(cv2.erode(free, kernel))
        y, x = np.divmod(rng.choice(inside, count if inside.size else 0), free.shape[1])
        return np.stack([x, y], axis=1) / self.unit


def oval(x: float, y: float, across: float, down: float) -> np.ndarray:
    return CIRCLE * (across, down) + (x, y)


def box(left: float, top: float, right: float, bottom: float) -> list[tuple[float, float]]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def lit(colour: Colour, factor: float) -> Colour:
    """The colour in more light (factor > 1) or in less."""
    red, green, blue = (min(255, int(channel * factor)) for channel in colour)
    return red, green, blue


def pick_paints(rng: np.random.Generator) -> Paints:
    """One paint for each class. In one scene no two classes share a paint, or neighbours might melt together."""
    chosen: dict[str, str] = {}
    for name in rng.permutation(CLASSES):
        wanted = CHOICES[name].split()
        chosen[name] = rng.choice([paint for paint in wanted if paint not in chosen.values()] or wanted)
    return {name: PAINTS[paint] for name, paint in chosen.items()}


def draw_sky(canvas: Canvas, rng: np.random.Generator, colour: Colour, horizon: float) -> None:
    """A gradient that pales towards the horizon, perhaps with a sun and with clouds; all of it is sky."""
    pale = np.linspace(0, 0.55, int(canvas.unit * horizon) + 1)[:, None, None]
    canvas.image[: len(pale)] = (1 - pale) * colour + pale * WHITE
    canvas.label[:] = CLASSES.index("sky")
    if rng.random() < 0.6:
        size = rng.uniform(0.04, 0.08)
        sun = oval(canvas.aspect * rng.random(), horizon * rng.random(), size, size)
        canvas.fill(sun, PAINTS[rng.choice(["wheat", "cream", "rose", "rust"])])
    for _ in range(rng.integers(0, 4)):
        x, y, size = canvas.aspect * rng.random(), horizon * rng.random(), rng.uniform(0.03, 0.06)
        for step in (-1.6, -0.7, 0.3, 1.3):
            puff = size * rng.uniform(0.6, 1.1)
            canvas.fill(oval(x + step * size, y - puff * 0.4, puff * 1.2, puff * 0.7), WHITE)


def draw_land(canvas: Canvas, rng: np.random.Generator, colour: Colour, horizon: float) -> None:
    """The plain up to the horizon, and two ranges of hills behind it."""
    x = np.linspace(0, canvas.aspect, 24)
    for height, light in ((0.16, 0.8), (0.09, 0.9), (0, 1)):
        waves = np.sin(x * rng.uniform(2, 6) + rng.uniform(0, 6)) + 0.4 * np.sin(x * 11 + rng.uniform(0, 6))
        crest = np.minimum(horizon - height * rng.uniform(0.3, 1) * (1 + 0.6 * waves), horizon)
        canvas.fill([*zip(x, crest, strict=True), (canvas.aspect, 1.1), (0, 1.1)], lit(colour, light), "ground")


def draw_grass(canvas: Canvas, rng: np.random.Generator, colour: Colour) -> None:
    """Tufts of three blades, larger towards the viewer."""
    tuft = np.array([(-0.4, 0), (-0.9, -0.8), (-0.1, -0.3), (0, -1), (0.1, -0.3), (0.9, -0.8), (0.4, 0)])
    for x, y in canvas.spots(rng, "ground", 70, 0.02):
        canvas.fill(tuft * (0.006 + 0.022 * y) + (x, y), lit(colour, rng.choice([0.78, 0.86, 1.14])))


def draw_water(canvas: Canvas, rng: np.random.Generator, colour: Colour, horizon: float) -> float:
    """A sea along the horizon or a lake in the plain, with ripples. Returns where the land before it begins."""
    shore = horizon
    if rng.random() < 0.5:
        shore += rng.uniform(0.16, 0.28)
        x = np.linspace(0, canvas.aspect, 24)
        beach = shore + 0.015 * np.sin(x * rng.uniform(3, 9) + rng.uniform(0, 6))
        canvas.fill([(0, horizon), *zip(x, beach, strict=True), (canvas.aspect, horizon)], colour, "water")
    else:
        x, y = canvas.aspect * rng.uniform(0.15, 0.85), rng.uniform(horizon + 0.15, 0.86)
        across, down = rng.uniform(0.3, 0.5), rng.uniform(0.1, 0.14)
        canvas.fill(oval(x, y, across, down), lit(colour, 0.72), "water")
        canvas.fill(oval(x, y + 0.012, across - 0.02, down - 0.012), colour)
    for x, y in canvas.spots(rng, "water", 60, 0.03):
        canvas.fill(oval(x, y, rng.uniform(0.012, 0.035), 0.0045), lit(colour, rng.choice([0.84, 1.16])))
    return shore


def draw_road(canvas: Canvas, rng: np.random.Generator, colour: Colour, start: float) -> None:
    """A road that winds towards the viewer from `start`, with dashes along its middle."""
    aim, foot = canvas.aspect * rng.uniform(0.15, 0.85, 2)
    bend, half = rng.uniform(-0.22, 0.22), rng.uniform(0.13, 0.2)

    def strip(near: np.ndarray, half: float) -> np.ndarray:
        middle = aim + (foot - aim) * near + bend * np.sin(np.pi * near)
        y, reach = start + (1.02 - start) * near, half * (0.06 + near)
        left, right = np.stack([middle - reach, y], axis=1), np.stack([middle + reach, y], axis=1)
        return np.concatenate([left, right[::-1]])

    whole = np.linspace(0, 1, 16)
    canvas.fill(strip(whole, half), lit(colour, 0.78), "road")
    canvas.fill(strip(whole, half * 0.86), colour)
    for begin in np.linspace(0.12, 1, 8) ** 1.7:
        canvas.fill(strip(np.array([begin, begin * 1.18]), half * 0.08), WHITE)


def draw_balloon(canvas: Canvas, rng: np.random.Generator, colour: Colour, horizon: float) -> None:
    """A striped hot-air balloon and its basket."""
    size = rng.uniform(0.07, 0.12)
    x, y = canvas.aspect * rng.uniform(0.06, 0.94), rng.uniform(size, horizon)
    stripes = (colour, PAINTS[rng.choice(CHOICES["boat"].split())])
    ropes = [(x - size * 0.3, y + size), (x + size * 0.3, y + size), (x + size * 0.2, y + size * 1.6)]
    canvas.fill([*ropes, (x - size * 0.2, y + size * 1.6)], lit(colour, 0.6), "balloon")
    canvas.fill(box(x - size * 0.24, y + size * 1.5, x + size * 0.24, y + size * 1.9), WOOD, "balloon")
    for step, squeeze in enumerate((1, 0.72, 0.42, 0.14)):
        canvas.fill(ENVELOPE * (size * squeeze, size) + (x, y), stripes[step % 2], "balloon")


def draw_house(canvas: Canvas, rng: np.random.Generator, paints: Paints, x: float, y: float) -> None:
    """A house that stands at (x, y): boarded walls with windows, perhaps a door, and a roof."""
    wide = rng.uniform(0.2, 0.36) * (0.35 + 0.9 * y)
    tall = wide * rng.uniform(0.5, 1)
    left, right, eaves = x - wide / 2, x + wide / 2, y - tall
    wall = lit(paints["wall"], rng.uniform(0.92, 1.05))
    canvas.fill(box(left, eaves, right, y), wall, "wall")
    for board in np.arange(eaves, y, 0.028):
        canvas.fill(box(left, board, right, board + 0.006), lit(wall, 0.88))
    columns, door = rng.integers(2, 4), rng.integers(0, 2)
    half, top = wide * 0.27 / columns, eaves + tall * 0.25
    for column in range(columns):
        middle = left + wide * (column + 0.5) / columns
        bottom = y if column == door else top + tall * 0.38
        canvas.fill(box(middle - half * 1.3, top - half * 0.3, middle + half * 1.3, bottom), WHITE)
        pane = WOOD if column == door else lit(paints["sky"], 0.6)
        canvas.fill(box(middle - half, top, middle + half, bottom), pane)
    draw_roof(canvas, rng, lit(paints["roof"], rng.uniform(0.9, 1.05)), (left, right, eaves))


def draw_roof(
    canvas: Canvas, rng: np.random.Generator, colour: Colour, wall: tuple[float, float, float]
) -> None:
    """A chimney and a tiled roof, peaked or with a ridge, over a wall given as (left, right, eaves)."""
    left, right, eaves = wall
    wide, middle = right - left, (left + right) / 2
    rise, ridge = wide * rng.uniform(0.35, 0.6), wide * rng.choice([0, rng.uniform(0.2, 0.4)])
    stack = middle + wide * rng.choice([-0.22, 0.22])
    canvas.fill(box(stack - 0.018, eaves - rise * 1.05, stack + 0.018, eaves), lit(colour, 0.75), "roof")
    rows = max(2, int(rise / 0.035))
    for row in range(rows):
        above, below = (ridge + (wide * 0.6 - ridge) * part / rows for part in (row, row + 1))
        top, bottom = (eaves - rise * (1 - part / rows) for part in (row, row + 1))
        sides = [(middle + below, bottom), (middle - below, bottom)]
        canvas.fill([(middle - above, top), (middle + above, top), *sides], colour, "roof")
        canvas.fill(box(middle - below, bottom - 0.007, middle + below, bottom), lit(colour, 0.8))


def draw_tree(canvas: Canvas, rng: np.random.Generator, paints: Paints, x: float, y: float) -> None:
    """A tree rooted at (x, y): a fir of three tiers, or a trunk with a crown."""
    size = rng.uniform(0.09, 0.16) * (0.35 + 0.9 * y)
    colour = lit(paints["tree"], rng.uniform(0.85, 1.08))
    canvas.fill(oval(x, y, size * 0.8, size * 0.14), lit(paints["ground"], 0.8))
    canvas.fill(box(x - size * 0.13, y - size, x + size * 0.13, y), WOOD, "tree")
    if rng.random() < 0.6:
        return draw_crown(canvas, rng, colour, (x, y - size * 0.45), size)
    for tier in range(3):
        low, half = y - size * (0.4 + 0.75 * tier), size * (0.95 - 0.22 * tier)
        tip = (x, low - size * 1.15)
        canvas.fill([(x - half, low), tip, (x + half, low)], lit(colour, 0.8), "tree")
        canvas.fill([(x - half, low), tip, (x + half * 0.3, low)], colour)


def draw_crown(
    canvas: Canvas, rng: np.random.Generator, colour: Colour, foot: tuple[float, float], size: float
) -> None:
    """A crown on its foot (x, y), round and lumpy or as slim as a poplar's, with leaves lit from the left."""
    across, down = (size, size * 0.85) if rng.random() < 0.5 else (size * 0.6, size * 1.4)
    x, y = foot[0], foot[1] - down
    canvas.fill(oval(x, y, across, down), lit(colour, 0.88), "tree")
    for lump in oval(x, y, across * 0.7, down * 0.7)[::3]:
        puff = across * rng.uniform(0.35, 0.5)
        canvas.fill(oval(*lump, puff, puff), lit(colour, 0.88), "tree")
    for turn, reach in zip(rng.choice(CIRCLE, 14), rng.uniform(0, 0.85, 14), strict=True):
        leaf = oval(x + turn[0] * reach * across, y + turn[1] * reach * down, size * 0.13, size * 0.13)
        canvas.fill(leaf, lit(colour, 1.15 if turn.sum() < 0 else 0.72))


def draw_boat(canvas: Canvas, rng: np.random.Generator, paints: Paints, x: float, y: float) -> None:
    """A sailing boat afloat at (x, y), with a large sail and a small one."""
    size = rng.uniform(0.11, 0.15) * (0.35 + 0.9 * y)
    sail, side = PAINTS[rng.choice(CHOICES["wall"].split())], rng.choice([-1, 1])
    canvas.fill(oval(x, y, size * 1.1, size * 0.16), WHITE)
    canvas.fill(box(x - size * 0.06, y - size * 2, x + size * 0.06, y), WOOD, "boat")
    for way, long in ((side, 1), (-side, 0.65)):
        peak, boom = y - size * (0.95 + long), y - size * 0.4
        canvas.fill([(x, peak), (x + way * long * size, boom), (x, boom)], sail, "boat")
        sail = lit(sail, 0.88)
    deck = [(x - size * 1.1, y - size * 0.42), (x + size * 1.1, y - size * 0.42)]
    canvas.fill([*deck, (x + size * 0.75, y), (x - size * 0.75, y)], paints["boat"], "boat")


def draw_props(canvas: Canvas, rng: np.random.Generator, paints: Paints, horizon: float) -> None:
    """Boats, houses and trees, from the back to the front so that near ones hide what is behind them."""
    kinds = ((draw_boat, "water", (1, 3), 0.1), (draw_house, "ground", (1, 4), 0.1), (draw_tree, "ground", (2, 6), 0.03))
    props = []
    for draw, surface, count, room in kinds:
        places = canvas.spots(rng, surface, rng.integers(*count), room, top=horizon + 0.02)
        props += [(draw, x, y) for x, y in places]
    for draw, x, y in sorted(props, key=lambda prop: prop[2]):
        draw(canvas, rng, paints, x, y)


def average_down(canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """The scene at its final size. A pixel that no class has more than half of stays unlabelled."""
    height, width = (side // OVERSAMPLE for side in canvas.label.shape)
    image = cv2.resize(canvas.image, (width, height), interpolation=cv2.INTER_AREA)
    blocks = canvas.label.reshape(height, OVERSAMPLE, width, OVERSAMPLE).swapaxes(1, 2)
    four = np.sort(blocks.reshape(height, width, OVERSAMPLE**2))
    clear = (four[..., 0] == four[..., 2]) | (four[..., 1] == four[..., 3])
    return image, np.where(clear, four[..., 1], IGNORE).astype(np.uint8)


def expose(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a camera makes of it: coloured light that falls off to one side, and the sensor's noise."""
    light = rng.uniform(0.85, 1.05) * rng.uniform(0.92, 1.06, 3)
    slope = 1 + rng.uniform(-0.12, 0.12) * np.linspace(-1, 1, image.shape[1])
    noise = rng.standard_normal(image.shape, np.float32) * rng.uniform(2, 7)
    return np.clip(image * (light * slope[:, None]) + noise, 0, 255).astype(np.uint8)


def draw_scene(rng: np.random.Generator, *, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene of `height` x `width` pixels; the generator alone decides what is on it.

    Returns the image, uint8 of height x width x 3 in RGB, and the label, uint8 of height x width with indices
    into `CLASSES`, and 255 where a pixel has no class.
    """
    canvas, paints, horizon = Canvas(height, width), pick_paints(rng), rng.uniform(0.36, 0.5)
    draw_sky(canvas, rng, paints["sky"], horizon)
    draw_land(canvas, rng, paints["ground"], horizon)
    start = draw_water(canvas, rng, paints["water"], horizon) if rng.random() < 0.7 else horizon
    if rng.random() < 0.7:
        draw_road(canvas, rng, paints["road"], start)
    draw_grass(canvas, rng, paints["ground"])
    for _ in range(rng.integers(0, 4)):
        draw_balloon(canvas, rng, paints["balloon"], horizon)
    draw_props(canvas, rng, paints, horizon)
    image, label = average_down(canvas)
    return expose(image, rng), label


def write_scenes(root: Path, *, training: int, validation: int, height: int, width: int, seed: int) -> None:
    """Write scenes of `height` x `width` pixels under `root` in ADE20k's layout, unless they are there already.

    `images/{training,validation}` gets JPEG files and `annotations/{training,validation}` PNG files of the same
    names, which store 0 for unlabelled and a class's index + 1 otherwise; `scenes.json` tells what was asked
    for. The scenes appear under `root` all at once, so a write that is cut off leaves nothing there to repair,
    and of several processes that ask at the same time the first to finish serves them all.

    Raises ValueError if `root` holds scenes of other arguments, or anything that this function did not write.
    """
    asked = {"version": VERSION, "training": training, "validation": validation}
    asked |= {"height": height, "width": width, "seed": seed}
    if is_written(root, asked):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as scratch:
        fresh = Path(scratch) / "scenes"
        for part, count in enumerate((training, validation)):
            for index in range(1, count + 1):
                scene = draw_scene(np.random.default_rng([seed, part, index]), height=height, width=width)
                save_scene(fresh, part, index, *scene)
        (fresh / "scenes.json").write_text(json.dumps(asked, indent=2) + "\n")
        put_in_place(fresh, root, asked)


def save_scene(root: Path, part: int, index: int, image: np.ndarray, label: np.ndarray) -> None:
    folder, short = PARTS[part]
    stored = np.where(label == IGNORE, 0, label + 1).astype(np.uint8)
    for kind, pixels, suffix in (("images", image, "jpg"), ("annotations", stored, "png")):
        path = root / kind / folder / f"ADE_{short}_{index:08d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, **({"quality": 92} if suffix == "jpg" else {}))


def is_written(root: Path, asked: dict[str, int]) -> bool:
    """Whether `root` holds the scenes asked for (True) or nothing (False); ValueError if something else."""
    record = root / "scenes.json"
    if not record.is_file():
        if root.exists() and any(root.iterdir()):
            raise ValueError(f"{root} holds files but no scenes.json; set another data.root or delete the folder")
        return False
    there = json.loads(record.read_text())
    if there != asked:
        raise ValueError(
            f"{root} holds scenes drawn with {there}, but {asked} was asked for; "
            "set another data.root or delete the folder"
        )
    return True


def put_in_place(fresh: Path, root: Path, asked: dict[str, int]) -> None:
    """Move finished scenes to `root`, unless another process has put the same ones there meanwhile."""
    try:
        fresh.rename(root)
    except OSError:  # a folder that is not empty is never replaced
        if not is_written(root, asked):
            raise
