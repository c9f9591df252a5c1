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

VERSION = 1  # raise it whenever the drawings change, so that older scenes are not mistaken for these
IGNORE = 255
OVERSAMPLE = 2  # scenes are drawn at twice their size and averaged down, which smooths the edges
PARTS = (("training", "train"), ("validation", "val"))
# fmt: off
KEY = {
    "sky": (150, 205, 240), "ground": (165, 200, 95), "water": (45, 110, 190),
    "road": (120, 120, 130), "wall": (245, 215, 150), "roof": (185, 60, 55),
    "tree": (40, 120, 65), "balloon": (235, 120, 190), "boat": (110, 60, 150),
}
PAINTS = {
    "powder": (168, 208, 234), "peach": (247, 198, 156), "lilac": (196, 178, 222), "cream": (246, 234, 204),
    "mint": (172, 218, 190), "rose": (230, 150, 158), "wheat": (228, 192, 108), "meadow": (140, 186, 98),
    "teal": (78, 156, 164), "slate": (118, 130, 150), "brick": (196, 92, 76), "rust": (216, 130, 66),
    "heather": (142, 108, 166), "moss": (92, 132, 76),
}
# fmt: on
CLASSES: tuple[str, ...] = tuple(KEY)
PALETTE: tuple[Colour, ...] = tuple(KEY.values())
# Every paint serves several classes. The first of a list is the usual one, the others are rarer.
USUAL = 4  # times as often
CHOICES = {
    "sky": "powder peach lilac cream rose mint",
    "ground": "meadow wheat mint cream lilac moss",
    "water": "teal powder slate lilac heather mint",
    "road": "slate cream wheat lilac peach rose",
    "wall": "cream peach rose powder wheat mint brick",
    "roof": "brick rust slate teal heather moss",
    "tree": "moss meadow teal rust rose wheat",
    "balloon": "rose rust brick heather wheat teal meadow",
    "boat": "rust brick cream slate teal rose",
}
WOOD, WHITE = (112, 84, 66), (250, 246, 238)
TURN = np.linspace(0, 2 * np.pi, 24, endpoint=False)
CIRCLE = np.stack([np.sin(TURN), -np.cos(TURN)], axis=1)


class Scene:
    """A scene in the making: its colours and its classes, at `OVERSAMPLE` times the final size."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng = rng
        self.unit = height * OVERSAMPLE
        self.aspect = width / height
        self.image = np.zeros((self.unit, width * OVERSAMPLE, 3), np.uint8)
        self.label = np.zeros(self.image.shape[:2], np.uint8)
        self.horizon = rng.uniform(0.36, 0.5)
        self.paints = pick_paints(rng)

    def fill(self, points: object, colour: Colour, name: str | None = None) -> None:
        """Fill a polygon of N x 2 points. Without a class name it is mere decoration: the label stays."""
        corners = [np.rint(np.asarray(points) * (self.unit * 16)).astype(np.int32)]
        cv2.fillPoly(self.image, corners, colour, shift=4)
        if name is not None:
            cv2.fillPoly(self.label, corners, CLASSES.index(name), shift=4)

    def spots(self, name: str, count: int, room: float) -> np.ndarray:
        """Up to `count` random points on the plain with `room` of class `name` to their left and right."""
        free = (self.label == CLASSES.index(name)).astype(np.uint8)
        free[: int((self.horizon + 0.02) * self.unit)] = 0
        kernel = np.ones((1, 2 * int(room * self.unit) + 1), np.uint8)
        inside = np.flatnonzero(cv2.erode(free, kernel))
        y, x = np.divmod(self.rng.choice(inside, count if inside.size else 0), free.shape[1])
        return np.stack([x, y], axis=1) / self.unit


def pick_paints(rng: np.random.Generator) -> dict[str, Colour]:
    """One paint for each class, each used once in a scene if possible, or neighbours might melt together."""
    chosen: dict[str, str] = {}
    for name in rng.permutation(CLASSES):
        usual, *rarer = CHOICES[name].split()
        wanted = [usual] * USUAL + rarer
        chosen[name] = rng.choice([paint for paint in wanted if paint not in chosen.values()] or wanted)
    return {name: PAINTS[paint] for name, paint in chosen.items()}


def oval(x: float, y: float, across: float, down: float) -> np.ndarray:
    """24 points around an oval with the half axes `across` and `down`."""
    return CIRCLE * (across, down) + (x, y)


def box(left: float, top: float, right: float, bottom: float) -> list[tuple[float, float]]:
    """The corners of an upright rectangle."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def lit(colour: Colour, factor: float) -> Colour:
    """The colour in more light (factor > 1) or in less."""
    red, green, blue = (min(255, int(channel * factor)) for channel in colour)
    return red, green, blue


def draw_sky(scene: Scene) -> None:
    """A gradient that pales towards the horizon, perhaps with a sun and with clouds; all of it is sky."""
    rng, horizon = scene.rng, scene.horizon
    pale = np.linspace(0, 0.55, int(scene.unit * horizon) + 1)[:, None, None]
    scene.image[: len(pale)] = (1 - pale) * scene.paints["sky"] + pale * WHITE
    scene.label[:] = CLASSES.index("sky")
    if rng.random() < 0.6:
        size = rng.uniform(0.04, 0.08)
        sun = oval(scene.aspect * rng.random(), horizon * rng.random(), size, size)
        scene.fill(sun, PAINTS[rng.choice(["wheat", "cream", "rose", "rust"])])
    for _ in range(rng.integers(0, 4)):
        x, y, size = scene.aspect * rng.random(), horizon * rng.random(), rng.uniform(0.03, 0.06)
        for step in (-1.6, -0.7, 0.3, 1.3):
            puff = size * rng.uniform(0.6, 1.1)
            scene.fill(oval(x + step * size, y - puff * 0.4, puff * 1.2, puff * 0.7), WHITE)


def draw_land(scene: Scene) -> None:
    """The plain up to the horizon, and two ranges of hills behind it."""
    rng, x = scene.rng, np.linspace(0, scene.aspect, 24)
    for height, light in ((0.16, 0.8), (0.09, 0.9), (0, 1)):
        waves = np.sin(x * rng.uniform(2, 6) + rng.uniform(0, 6)) + 0.4 * np.sin(x * 11 + rng.uniform(0, 6))
        crest = scene.horizon - np.maximum(height * rng.uniform(0.3, 1) * (1 + 0.6 * waves), 0)
        outline = [*zip(x, crest, strict=True), (scene.aspect, 1.1), (0, 1.1)]
        scene.fill(outline, lit(scene.paints["ground"], light), "ground")


def draw_grass(scene: Scene) -> None:
    """Tufts of three blades, larger towards the viewer."""
    tuft = np.array([(-0.4, 0), (-0.9, -0.8), (-0.1, -0.3), (0, -1), (0.1, -0.3), (0.9, -0.8), (0.4, 0)])
    for x, y in scene.spots("ground", 50, 0.02):
        shade = lit(scene.paints["ground"], scene.rng.choice([0.78, 0.86, 1.14]))
        scene.fill(tuft * (0.006 + 0.022 * y) + (x, y), shade)


def draw_water(scene: Scene) -> float:
    """A sea along the horizon or a lake in the plain, with ripples. Returns where the near land begins."""
    rng, colour, shore = scene.rng, scene.paints["water"], scene.horizon
    if rng.random() < 0.5:
        shore += rng.uniform(0.16, 0.28)
        x = np.linspace(0, scene.aspect, 24)
        beach = shore + 0.015 * np.sin(x * rng.uniform(3, 9) + rng.uniform(0, 6))
        far = [(scene.aspect, scene.horizon), (0, scene.horizon)]
        scene.fill([*zip(x, beach, strict=True), *far], colour, "water")
    else:
        x, y = scene.aspect * rng.uniform(0.15, 0.85), rng.uniform(scene.horizon + 0.15, 0.86)
        across, down = rng.uniform(0.35, 0.55), rng.uniform(0.11, 0.15)
        scene.fill(oval(x, y, across, down), lit(colour, 0.72), "water")
        scene.fill(oval(x, y + 0.012, across - 0.02, down - 0.012), colour)
    for x, y in scene.spots("water", 50, 0.03):
        scene.fill(oval(x, y, rng.uniform(0.012, 0.035), 0.0045), lit(colour, rng.choice([0.84, 1.16])))
    return shore


def draw_road(scene: Scene, start: float) -> None:
    """A road that winds towards the viewer from the height `start`, with dashes along its middle."""
    rng, colour = scene.rng, scene.paints["road"]
    aim, foot = scene.aspect * rng.uniform(0.15, 0.85, 2)
    bend, wide = rng.uniform(-0.22, 0.22), rng.uniform(0.13, 0.2)

    def strip(near: np.ndarray, half: float) -> np.ndarray:
        middle = aim + (foot - aim) * near + bend * np.sin(np.pi * near)
        y, reach = start + (1.02 - start) * near, half * (0.06 + near)
        left, right = np.stack([middle - reach, y], axis=1), np.stack([middle + reach, y], axis=1)
        return np.concatenate([left, right[::-1]])

    whole = np.linspace(0, 1, 16)
    scene.fill(strip(whole, wide), lit(colour, 0.78), "road")
    scene.fill(strip(whole, wide * 0.86), colour)
    for begin in np.linspace(0.12, 1, 8) ** 1.7:
        scene.fill(strip(np.array([begin, begin * 1.18]), wide * 0.08), WHITE)


def draw_balloon(scene: Scene) -> None:
    """A striped hot-air balloon and its basket."""
    rng, size = scene.rng, scene.rng.uniform(0.07, 0.12)
    x, y = scene.aspect * rng.uniform(0.06, 0.94), rng.uniform(size, scene.horizon)
    colours = (scene.paints["balloon"], PAINTS[rng.choice(CHOICES["boat"].split())])
    ropes = [(-0.3, 1), (0.3, 1), (0.2, 1.6), (-0.2, 1.6)]
    scene.fill(np.array(ropes) * size + (x, y), lit(colours[0], 0.6), "balloon")
    scene.fill(np.array(box(-0.24, 1.5, 0.24, 1.9)) * size + (x, y), WOOD, "balloon")
    below = CIRCLE[:, 1:].clip(0)
    envelope = CIRCLE * np.hstack([1 - 0.35 * below**2, 1 + 0.25 * below])
    for stripe, squeeze in enumerate((1, 0.72, 0.42, 0.14)):
        scene.fill(envelope * (size * squeeze, size) + (x, y), colours[stripe % 2], "balloon")


def draw_house(scene: Scene, x: float, y: float) -> None:
    """A house that stands at (x, y): boarded walls with windows, perhaps a door, and a roof."""
    rng = scene.rng
    wide = rng.uniform(0.2, 0.36) * (0.35 + 0.9 * y)
    tall = wide * rng.uniform(0.5, 1)
    left, right, eaves = x - wide / 2, x + wide / 2, y - tall
    wall = lit(scene.paints["wall"], rng.uniform(0.92, 1.05))
    scene.fill(box(left, eaves, right, y), wall, "wall")
    for board in np.arange(eaves, y, 0.028):
        scene.fill(box(left, board, right, board + 0.006), lit(wall, 0.88))
    columns, door = rng.integers(2, 4), rng.integers(0, 2)
    half, top = wide * 0.27 / columns, eaves + tall * 0.25
    for column in range(columns):
        middle = left + wide * (column + 0.5) / columns
        bottom = y if column == door else top + tall * 0.38
        scene.fill(box(middle - half * 1.3, top - half * 0.3, middle + half * 1.3, bottom), WHITE)
        pane = WOOD if column == door else lit(scene.paints["sky"], 0.6)
        scene.fill(box(middle - half, top, middle + half, bottom), pane)
    draw_roof(scene, left, right, eaves)


def draw_roof(scene: Scene, left: float, right: float, eaves: float) -> None:
    """A chimney and a tiled roof, peaked or with a ridge, over the wall between `left` and `right`."""
    rng, colour = scene.rng, lit(scene.paints["roof"], scene.rng.uniform(0.9, 1.05))
    wide, middle = right - left, (left + right) / 2
    rise, ridge = wide * rng.uniform(0.35, 0.6), wide * rng.choice([0, rng.uniform(0.2, 0.4)])
    stack = middle + wide * rng.choice([-0.22, 0.22])
    scene.fill(box(stack - 0.018, eaves - rise * 1.05, stack + 0.018, eaves), lit(colour, 0.75), "roof")
    half, top = wide * 0.6, eaves - rise
    gable = [(middle - ridge, top), (middle + ridge, top), (middle + half, eaves), (middle - half, eaves)]
    scene.fill(gable, colour, "roof")
    for down in np.linspace(0, 1, max(3, int(rise / 0.035) + 1))[1:]:
        reach, y = ridge + (half - ridge) * down, top + rise * down
        scene.fill(box(middle - reach, y - 0.007, middle + reach, y), lit(colour, 0.8))


def draw_tree(scene: Scene, x: float, y: float) -> None:
    """A tree rooted at (x, y): its shadow, its trunk, and a crown or the tiers of a fir."""
    size = scene.rng.uniform(0.09, 0.16) * (0.35 + 0.9 * y)
    colour = lit(scene.paints["tree"], scene.rng.uniform(0.85, 1.08))
    scene.fill(oval(x, y, size * 0.8, size * 0.14), lit(scene.paints["ground"], 0.8))
    scene.fill(box(x - size * 0.13, y - size, x + size * 0.13, y), WOOD, "tree")
    if scene.rng.random() < 0.6:
        draw_crown(scene, colour, x, y - size * 0.45, size)
    else:
        draw_tiers(scene, colour, x, y - size * 0.4, size)


def draw_tiers(scene: Scene, colour: Colour, x: float, foot: float, size: float) -> None:
    """Three tiers of branches, lit from the left."""
    for tier in range(3):
        low, half = foot - size * 0.75 * tier, size * (0.95 - 0.22 * tier)
        tip = (x, low - size * 1.15)
        scene.fill([(x - half, low), tip, (x + half, low)], lit(colour, 0.8), "tree")
        scene.fill([(x - half, low), tip, (x + half * 0.3, low)], colour)


def draw_crown(scene: Scene, colour: Colour, x: float, foot: float, size: float) -> None:
    """A lumpy crown, round or as slim as a poplar's, with leaves lit from the left."""
    rng = scene.rng
    across, down = (size, size * 0.85) if rng.random() < 0.5 else (size * 0.6, size * 1.4)
    y = foot - down
    scene.fill(oval(x, y, across, down), lit(colour, 0.88), "tree")
    for lump in oval(x, y, across * 0.7, down * 0.7)[::3]:
        puff = across * rng.uniform(0.35, 0.5)
        scene.fill(oval(*lump, puff, puff), lit(colour, 0.88), "tree")
    for turn, reach in zip(rng.choice(CIRCLE, 14), rng.uniform(0, 0.85, 14), strict=True):
        leaf = oval(x + turn[0] * reach * across, y + turn[1] * reach * down, size * 0.13, size * 0.13)
        scene.fill(leaf, lit(colour, 1.15 if turn.sum() < 0 else 0.72))


def draw_boat(scene: Scene, x: float, y: float) -> None:
    """A sailing boat afloat at (x, y), with a large sail and a small one."""
    size = scene.rng.uniform(0.13, 0.18) * (0.35 + 0.9 * y)
    sail, side = PAINTS[scene.rng.choice(CHOICES["wall"].split())], scene.rng.choice([-1, 1])
    scene.fill(oval(x, y, size * 1.1, size * 0.16), WHITE)
    scene.fill(box(x - size * 0.06, y - size * 2, x + size * 0.06, y), WOOD, "boat")
    for way, long, light in ((side, 1, 1), (-side, 0.65, 0.88)):
        peak, boom = y - size * (0.95 + long), y - size * 0.4
        scene.fill([(x, peak), (x + way * long * size, boom), (x, boom)], lit(sail, light), "boat")
    hull = np.array([(-1.1, -0.42), (1.1, -0.42), (0.75, 0), (-0.75, 0)])
    scene.fill(hull * size + (x, y), scene.paints["boat"], "boat")


def draw_props(scene: Scene) -> None:
    """Boats, houses and trees, from the back to the front so that near ones hide what is behind them."""
    rng = scene.rng
    props = [(draw_boat, *place) for place in scene.spots("water", rng.integers(1, 3), 0.1)]
    props += [(draw_house, *place) for place in scene.spots("ground", rng.integers(1, 4), 0.1)]
    props += [(draw_tree, *place) for place in scene.spots("ground", rng.integers(2, 6), 0.03)]
    for draw, x, y in sorted(props, key=lambda prop: prop[2]):
        draw(scene, x, y)


def average_down(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Image and label at the final size. A pixel of which no class has more than half stays unlabelled."""
    height, width = (side // OVERSAMPLE for side in scene.label.shape)
    image = cv2.resize(scene.image, (width, height), interpolation=cv2.INTER_AREA)
    blocks = scene.label.reshape(height, OVERSAMPLE, width, OVERSAMPLE).swapaxes(1, 2)
    four = np.sort(blocks.reshape(height, width, OVERSAMPLE**2))
    clear = (four[..., 0] == four[..., 2]) | (four[..., 1] == four[..., 3])
    return image, np.where(clear, four[..., 1], IGNORE).astype(np.uint8)


def expose(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a camera makes of it: tinted light that falls off to one side, and the sensor's noise."""
    light = rng.uniform(0.88, 1.08) * rng.uniform(0.93, 1.06, 3)
    slope = 1 + rng.uniform(-0.12, 0.12) * np.linspace(-1, 1, image.shape[1])
    noise = rng.standard_normal(image.shape, np.float32) * rng.uniform(2, 6)
    return np.clip(image * (light * slope[:, None]) + noise, 0, 255).astype(np.uint8)


def draw_scene(rng: np.random.Generator, *, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene of `height` x `width` pixels; the generator alone decides what is on it.

    Returns the image, uint8 of height x width x 3 in RGB, and the label, uint8 of height x width with indices
    into `CLASSES`, and 255 where a pixel has no class.
    """
    scene = Scene(rng, height, width)
    draw_sky(scene)
    draw_land(scene)
    start = draw_water(scene) if rng.random() < 0.75 else scene.horizon
    if rng.random() < 0.7:
        draw_road(scene, start)
    draw_grass(scene)
    for _ in range(rng.integers(0, 4)):
        draw_balloon(scene)
    draw_props(scene)
    image, label = average_down(scene)
    return expose(image, rng), label


def write_scenes(root: Path, *, training: int, validation: int, height: int, width: int, seed: int) -> None:
    """Write scenes of `height` x `width` pixels under `root` in ADE20k's layout, unless they are there.

    `images/{training,validation}` gets JPEG files, and `annotations/{training,validation}` PNG files of the
    same names that store 0 for unlabelled and a class's index + 1 otherwise; `scenes.json` tells what was
    asked for. The scenes appear under `root` all at once: a write that is cut off leaves nothing there, and
    of several processes that ask at the same time the first to finish serves them all.

    Raises ValueError if `root` holds scenes of other arguments, or files without a `scenes.json`; these may
    be somebody's own pictures, so they are never overwritten.
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
        try:
            fresh.rename(root)  # never replaces a folder that holds something
        except OSError:
            if not is_written(root, asked):  # else another process was first, with the same scenes
                raise


def save_scene(root: Path, part: int, index: int, image: np.ndarray, label: np.ndarray) -> None:
    """Write one scene as the pair of files that ADE20k has for a photograph; `part` indexes `PARTS`."""
    folder, short = PARTS[part]
    stored = np.where(label == IGNORE, 0, label + 1).astype(np.uint8)
    for kind, pixels, suffix in (("images", image, "jpg"), ("annotations", stored, "png")):
        path = root / kind / folder / f"ADE_{short}_{index:08d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, **({"quality": 92} if suffix == "jpg" else {}))


def is_written(root: Path, asked: dict[str, int]) -> bool:
    """Whether `root` holds the scenes asked for (True) or nothing (False); ValueError if something else."""
    record, fix = root / "scenes.json", "set another data.root or delete that folder"
    if not record.is_file():
        if root.exists() and any(root.iterdir()):
            raise ValueError(f"{root} holds files but no scenes.json, so it is not overwritten: {fix}")
        return False
    there = json.loads(record.read_text())
    if there != asked:
        raise ValueError(f"{root} holds scenes of {there}, but {asked} was asked for: {fix}")
    return True
