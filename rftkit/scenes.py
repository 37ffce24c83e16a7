"""Draws the tiny tier's world: 84x84 pictures of a landscape with objects and a number sign, and their exact labels.

A scene is a 3x3 grid of 28x28 pixel cells. The row of a cell is told by its ground (sky, hill, sand), its column by the
light (it comes from the left), so every cell can be placed from its own pixels. A *collage* has each cell taken from another
landscape: its cells no longer stand where their look says. A merged visual token of the bundled model covers exactly one cell.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

GRID = 3
CELL = 28  # pixels: patch 14 x merge 2
GROUNDS = ("sky", "hill", "sand")  # top, middle, bottom row of a landscape
LIGHTS = ("left", "mid", "right")  # bright, even, dim column
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLORS = ("red", "blue", "yellow", "purple", "white", "black")
SPLITS = ("train", "validation", "test")

_GROUND_RGB = np.array([[150, 205, 240], [95, 165, 85], [215, 180, 125]], np.float32)
_COLOR_RGB = np.array(
    [[215, 35, 35], [30, 50, 200], [250, 230, 40], [140, 40, 170], [252, 252, 252], [15, 15, 15]], np.float32
)
_LIGHT = np.linspace(1.15, 0.55, GRID * CELL, dtype=np.float32)  # brightness from the left edge to the right edge

# 5x7 bitmaps of the digits 0 to 9, a row a number, highest bit on the left
_DIGITS = (
    (14, 17, 19, 21, 25, 17, 14), (4, 12, 4, 4, 4, 4, 14), (14, 17, 1, 2, 4, 8, 31), (31, 2, 4, 2, 1, 17, 14),
    (2, 6, 10, 18, 31, 2, 2), (31, 16, 30, 1, 1, 17, 14), (6, 8, 16, 30, 17, 17, 14), (31, 1, 2, 4, 8, 8, 8),
    (14, 17, 17, 14, 17, 17, 14), (14, 17, 17, 15, 1, 2, 12),
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """What one cell shows. `place` is 0 to 8, row-major, the place its ground and light belong to."""

    place: int
    shape: str | None = None  # one of SHAPES, or "sign"
    color: str | None = None  # one of COLORS; None for a sign
    digit: int | None = None  # on a sign

    @property
    def ground(self) -> str:
        return GROUNDS[self.place // GRID]

    @property
    def light(self) -> str:
        return LIGHTS[self.place % GRID]

    @property
    def words(self) -> tuple[str, ...]:
        """Every word that is true of this cell."""
        rest = (self.shape, self.color, None if self.digit is None else str(self.digit))
        return (self.ground, self.light, *(w for w in rest if w is not None))


@dataclass(frozen=True)
class Scene:
    cells: tuple[Cell, ...]  # nine, in the order shown, row-major
    pixels: np.ndarray  # (84, 84, 3) uint8

    @property
    def image(self) -> Image.Image:
        return Image.fromarray(self.pixels)


def rng_for(*key: int | str) -> np.random.Generator:
    """A generator of its own for a key such as (seed, split, task, index): the same on every machine and Python."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def split_of(cells: tuple[Cell, ...]) -> str:
    """The split a layout belongs to, by its hash: 1 in 10 to test, 1 in 10 to validation. So no layout is ever in two."""
    bucket = hashlib.sha256(repr([c.words for c in cells]).encode()).digest()[0] % 10
    return {0: "test", 1: "validation"}.get(bucket, "train")


def draw(cells: tuple[Cell, ...], rng: np.random.Generator) -> Scene:
    """Paint nine cells. Each landscape has its own tint and light; in a collage every cell has its own."""
    collage = tuple(c.place for c in cells) != tuple(range(GRID * GRID))
    canvas = np.empty((GRID * CELL, GRID * CELL, 3), np.float32)
    tint, light = _weather(rng)
    for where, cell in enumerate(cells):
        if collage:
            tint, light = _weather(rng)
        y, x = divmod(where, GRID)
        canvas[y * CELL : (y + 1) * CELL, x * CELL : (x + 1) * CELL] = _paint(cell, tint, light, rng)
    canvas += rng.normal(0, 4, canvas.shape[:2])[..., None]
    return Scene(cells, np.clip(canvas, 0, 255).astype(np.uint8))


def _weather(rng: np.random.Generator) -> tuple[np.ndarray, float]:
    return rng.normal(0, 5, 3).astype(np.float32), float(rng.uniform(0.97, 1.03))


def _paint(cell: Cell, tint: np.ndarray, light: float, rng: np.random.Generator) -> np.ndarray:
    row, col = divmod(cell.place, GRID)
    shade = _LIGHT[col * CELL : (col + 1) * CELL] * light
    patch = (_GROUND_RGB[row] + tint) * shade[None, :, None] * np.ones((CELL, 1, 1), np.float32)
    if cell.shape is None:
        return patch
    dy, dx = rng.integers(-3, 4, 2)
    if cell.shape == "sign":
        assert cell.digit is not None
        _stamp(patch, np.ones((25, 19), bool), np.array([245, 240, 225], np.float32), dy // 2, dx)
        _stamp(patch, _digit_mask(cell.digit), np.array([20, 20, 20], np.float32), dy // 2, dx)
    else:
        assert cell.color is not None
        size = int(rng.integers(0, 3))
        paint = _COLOR_RGB[COLORS.index(cell.color)] + rng.normal(0, 6, 3).astype(np.float32)
        _stamp(patch, _shape_mask(cell.shape, size), paint, dy, dx)
    return patch


def _stamp(patch: np.ndarray, mask: np.ndarray, color: np.ndarray, dy: int, dx: int) -> None:
    """Colour `mask` into the middle of the patch, moved by (dy, dx) pixels and kept inside."""
    h, w = mask.shape
    top = min(max((CELL - h) // 2 + dy, 0), CELL - h)
    left = min(max((CELL - w) // 2 + dx, 0), CELL - w)
    patch[top : top + h, left : left + w][mask] = color


@cache
def _digit_mask(digit: int) -> np.ndarray:
    bits = np.array([[(row >> (4 - i)) & 1 for i in range(5)] for row in _DIGITS[digit]], bool)
    return np.kron(bits, np.ones((3, 3), bool))  # 21 x 15 pixels


@cache
def _shape_mask(shape: str, size: int) -> np.ndarray:
    """A boolean picture of the shape, 17, 19 or 21 pixels wide."""
    half = 8 + size
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32) / half
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    if shape == "circle":
        return radius <= 1
    if shape == "ring":
        return (radius <= 1) & (radius >= 0.55)
    if shape == "square":
        return np.maximum(abs(x), abs(y)) <= 0.85
    if shape == "triangle":
        return abs(x) <= (y + 1) / 2
    if shape == "cross":
        return np.minimum(abs(x), abs(y)) <= 0.28
    if shape == "star":
        return radius <= 0.68 + 0.32 * np.cos(5 * (angle + np.pi / 2))
    raise ValueError(f"no shape {shape!r}")
