"""Composed colour scenes with a class per pixel: `bundled:fashion-scenes`.

One to four items of the bundled data set at random place, scale, rotation and colour on a textured background.
Everything is a function of split and index; training and test scenes share no item. The backgrounds are eight textures
that all scenes share, at lower contrast than the items: with a background of its own for each scene, methods that match
views learn the background and nothing else.
"""

import functools
import hashlib
import math
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from halfseen.data.bundled import CLASS_NAMES, SIDE, load_fashion
from halfseen.data.sources import Source, Split
from halfseen.errors import DataError
from halfseen.ops.randomness import numpy_generator

MIN_SIZE, MAX_SIZE = 32, 224
MAX_ITEMS = 4
NUM_TEXTURES = 8
# Part of the fingerprint: to be raised whenever a scene changes by a pixel.
VERSION = 1

ITEM_THRESHOLD = 12  # grey values up to this are background, in the items' own images
LARGEST_FILLED_HOLE = 25.0  # pixels; larger ones are real, between straps and handles
MAIN_SCALE = (0.5, 0.8)  # side of the dominant item's image, as a share of the scene's side
MAX_TURN = 30.0  # degrees, either way
# All other items together cover at most this share of the dominant item's area, so that it is dominant for certain.
OTHERS_SHARE = 0.8
_SHADES = np.arange(256, dtype=np.float32)
DARKEST = 0.3  # shade of an item's black; the backgrounds lie below most of the items


class Layout(NamedTuple):
    """What the scenes of a split are made of; positions and scales are shares of the scene's side.

    Item 0 is the dominant one; it lies on top of the others.

    Attributes:
        num_items: int64 [n], 1 to 4.
        items: int64 [n, 4], index of each item among the split's images.
        centres: float64 [n, 4, 2], x and y.
        scales: float64 [n, 4], side of the item's image.
        turns: float64 [n, 4], degrees.
        tints: float32 [n, 4, 3], RGB in [0, 1].
        textures: int64 [n].
        offsets: float64 [n, 2], where the texture is cut, in [0, 1).
    """

    num_items: Int[np.ndarray, " n"]
    items: Int[np.ndarray, "n 4"]
    centres: Float[np.ndarray, "n 4 2"]
    scales: Float[np.ndarray, "n 4"]
    turns: Float[np.ndarray, "n 4"]
    tints: Float32[np.ndarray, "n 4 3"]
    textures: Int[np.ndarray, " n"]
    offsets: Float[np.ndarray, "n 2"]


class Scene(NamedTuple):
    """image: uint8 [S, S, 3], RGB; mask: uint8 [S, S], 0 = background, 1 to 10 = class + 1."""

    image: UInt8[np.ndarray, "S S 3"]
    mask: UInt8[np.ndarray, "S S"]


class SceneSource(Source):
    """The scenes of one split, composed when they are read.

    The label of a scene is the class of its dominant item, the one with the largest visible area.
    """

    is_sound = True

    def __init__(self, split: Split, size: int) -> None:
        if not MIN_SIZE <= size <= MAX_SIZE:
            raise DataError(
                f"data.scene_size: got {size}, expected {MIN_SIZE} to {MAX_SIZE} pixels for bundled:fashion-scenes."
            )
        self.name, self.split, self.size, self.class_names = "bundled:fashion-scenes", split, size, CLASS_NAMES
        fashion = load_fashion(split)
        self.layout = draw_layout(split)
        self.labels = fashion.labels[self.layout.items[:, 0]]

    def path(self, index: int) -> str:
        return f"{self.name}/{self.split}#{index}"

    def read(self, index: int, shrink_to: int | None = None) -> UInt8[np.ndarray, "S S 3"]:
        return compose_scene(self.split, self.layout, index, self.size).image

    @property
    def has_masks(self) -> bool:
        return True

    @property
    def mask_names(self) -> tuple[str, ...]:
        return ("background", *CLASS_NAMES)

    def mask(self, index: int) -> UInt8[np.ndarray, "S S"]:
        return self.read_with_mask(index).mask

    def read_with_mask(self, index: int) -> Scene:
        return compose_scene(self.split, self.layout, index, self.size)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"fashion-scenes/{VERSION}/{self.split}/{self.size}".encode())
        digest.update(load_fashion(self.split).images.tobytes())
        return digest.hexdigest()

    def __getstate__(self) -> tuple[Split, int]:
        return self.split, self.size

    def __setstate__(self, state: tuple[Split, int]) -> None:
        # Layout and items are drawn again in another process: cheaper than sending them.
        SceneSource.__init__(self, *state)


def open_scenes(split: Split, size: int) -> SceneSource:
    """The source 'bundled:fashion-scenes' at a side of 32 to 224 pixels: 10,000 training or 2,000 test scenes."""
    return SceneSource(split, size)


@functools.cache
def draw_layout(split: Split) -> Layout:
    """All random choices of a split; each item of the split is the dominant one of exactly one scene."""
    fashion = load_fashion(split)
    count = len(fashion.labels)
    generator = numpy_generator("fashion-scenes", split)
    areas = (fashion.images > ITEM_THRESHOLD).sum(axis=(1, 2)).astype(np.float64)

    num_items = generator.choice(np.arange(1, MAX_ITEMS + 1), size=count, p=[0.25, 0.35, 0.25, 0.15])
    others = generator.integers(0, count, size=(count, MAX_ITEMS - 1))
    items = np.concatenate([generator.permutation(count)[:, None], others], axis=1)

    turns = generator.uniform(-MAX_TURN, MAX_TURN, size=(count, MAX_ITEMS))
    main = generator.uniform(*MAIN_SCALE, size=(count, 1))
    shares = generator.uniform(0.4, 1.0, size=others.shape) * OTHERS_SHARE / np.maximum(num_items - 1, 1)[:, None]
    small = main * np.sqrt(shares * areas[items[:, :1]] / areas[others])
    scales = np.concatenate([main, np.minimum(small, MAIN_SCALE[1])], axis=1)

    centres = generator.uniform(0.08, 0.92, size=(count, MAX_ITEMS, 2))
    radians = np.deg2rad(turns[:, 0])
    extent = scales[:, 0] * (np.abs(np.cos(radians)) + np.abs(np.sin(radians)))
    slack = np.maximum(1.0 - extent, 0.0)[:, None]
    centres[:, 0] = 0.5 + slack * generator.uniform(-0.5, 0.5, size=(count, 2))  # the dominant item stays inside

    hues = generator.uniform(0, 360, size=(count, MAX_ITEMS))
    saturations = generator.uniform(0.25, 0.85, size=(count, MAX_ITEMS))
    hsv = np.stack([hues, saturations, np.ones_like(hues)], axis=2).astype(np.float32)
    tints = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    textures = generator.integers(0, NUM_TEXTURES, size=count)
    offsets = generator.uniform(0, 1, size=(count, 2))
    return Layout(num_items, items, centres, scales, turns, tints, textures, offsets)


def compose_scene(split: Split, layout: Layout, index: int, size: int) -> Scene:
    """One scene at `size` pixels.

    Small scenes are drawn at twice their size and averaged down, because an item drawn much smaller than its own 28
    pixels would lose its fine parts.
    """
    side = 2 * size if size < 64 else size
    fashion = load_fashion(split)
    tile = draw_textures(side)[layout.textures[index]]
    top, left = (layout.offsets[index] * side).astype(int)
    canvas = tile[top : top + side, left : left + side].copy()
    mask = np.zeros((side, side), dtype=np.uint8)
    for number in reversed(range(layout.num_items[index])):  # the dominant item last, on top
        item = layout.items[index, number]
        _draw_item(
            canvas,
            mask,
            fashion.images[item],
            class_value=int(fashion.labels[item]) + 1,
            centre=layout.centres[index, number] * side,
            scale=layout.scales[index, number] * side / SIDE,
            turn=layout.turns[index, number],
            tint=layout.tints[index, number],
        )
    if side != size:
        canvas = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
        mask = mask[::2, ::2]
    return Scene(canvas, np.ascontiguousarray(mask))


def _draw_item(
    canvas: UInt8[np.ndarray, "S S 3"],
    mask: UInt8[np.ndarray, "S S"],
    item: UInt8[np.ndarray, "28 28"],
    class_value: int,
    centre: Float[np.ndarray, "2"],
    scale: float,
    turn: float,
    tint: Float32[np.ndarray, "3"],
) -> None:
    """Pastes one item into canvas and mask. centre: x and y in pixels; scale: canvas pixels per item pixel."""
    side = len(canvas)
    middle = (SIDE - 1) / 2
    x, y = float(centre[0]), float(centre[1])
    # Only the box that the turned item can touch is warped and blended.
    radians = math.radians(turn)
    reach = 0.5 * SIDE * scale * (abs(math.cos(radians)) + abs(math.sin(radians))) + 1
    left, top = max(math.floor(x - reach), 0), max(math.floor(y - reach), 0)
    right, bottom = min(math.ceil(x + reach), side), min(math.ceil(y + reach), side)
    matrix = cv2.getRotationMatrix2D((middle, middle), turn, scale)
    matrix[0, 2] += x - middle - left
    matrix[1, 2] += y - middle - top
    # Coloured at 28 pixels, before the warp, and blended by OpenCV: 2.5 times faster than in NumPy at 224 pixels.
    shades = (DARKEST + (1 - DARKEST) / 255 * _SHADES)[:, None] * (255 * tint)
    layers = np.dstack([np.rint(shades).astype(np.uint8)[item], _silhouette(item)])
    warped = cv2.warpAffine(layers, matrix, (right - left, bottom - top), flags=cv2.INTER_LINEAR)
    cover = warped[..., 3].astype(np.float32) * np.float32(1 / 255)
    below = canvas[top:bottom, left:right]
    below[...] = cv2.blendLinear(cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB), below, cover, 1 - cover)
    mask[top:bottom, left:right][warped[..., 3] > 127] = class_value


def _silhouette(item: UInt8[np.ndarray, "28 28"]) -> UInt8[np.ndarray, "28 28"]:
    """255 where the item is. Small dark spots belong to it; the gaps between straps and below handles do not."""
    shape = (item > ITEM_THRESHOLD).astype(np.uint8)
    contours, hierarchy = cv2.findContours(shape, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for number, contour in enumerate(contours):
        is_hole = hierarchy[0, number, 3] >= 0
        if is_hole and cv2.contourArea(contour) <= LARGEST_FILLED_HOLE:
            cv2.drawContours(shape, contours, number, 1, cv2.FILLED)
    return shape * 255


@functools.lru_cache(maxsize=4)
def draw_textures(side: int) -> UInt8[np.ndarray, "8 W W 3"]:
    """The eight backgrounds, each repeated twice in both directions so that any offset can be cut out."""
    y, x = np.mgrid[0:side, 0:side] / side
    turn = 2 * np.pi
    waves = numpy_generator("fashion-scenes", "clouds")
    clouds = np.zeros_like(x)
    for frequency_x, frequency_y, phase in zip(
        waves.integers(-4, 5, size=16), waves.integers(-4, 5, size=16), waves.uniform(0, turn, size=16), strict=True
    ):
        clouds += np.sin(turn * (frequency_x * x + frequency_y * y) + phase) / 5
    bricks = np.maximum(np.cos(turn * 6 * y), np.cos(turn * (3 * x + 0.5 * (np.floor(6 * y + 0.5) % 2)))) ** 9
    patterns = [
        np.sin(turn * 8 * y),
        np.sign(np.sin(turn * 6 * x)),
        np.sign(np.sin(turn * 5 * x) * np.sin(turn * 5 * y)),
        np.tanh(4 * (np.cos(turn * 7 * x) * np.cos(turn * 7 * y) - 0.4)),
        np.sin(turn * 6 * (x + y)),
        clouds,
        bricks,
        np.sin(turn * (5 * x + 0.4 * np.sin(turn * 2 * y))),
    ]
    bases = [
        (70, 78, 92),
        (92, 80, 70),
        (72, 88, 74),
        (84, 72, 88),
        (88, 88, 76),
        (66, 84, 90),
        (96, 76, 74),
        (76, 76, 80),
    ]
    tiles = [
        np.array(base) + 13 * np.clip(pattern, -1, 1)[:, :, None] for base, pattern in zip(bases, patterns, strict=True)
    ]
    return np.tile(np.rint(np.stack(tiles)).astype(np.uint8), (1, 2, 2, 1))
