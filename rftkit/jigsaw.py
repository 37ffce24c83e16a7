"""The jigsaw task: cut and shuffle an image, ask for the order, read the reply, score it.

Words used throughout. A *tile* is a piece as it is shown: tile X is at position X of the shuffled image.
A *place* is a position of the original image. Both are numbered row by row, 1 (top left) to rows*cols (bottom right).
An answer is a permutation of 1..rows*cols, written in one of two conventions, each the inverse of the other:

- "forward": number X is the place where tile X belongs. The default of Jigsaw-R1 (2505.23590, section 3) [A].
- "inverse": number Y is the tile that belongs at place Y.

Which of the two 2506.23508 uses is unknown: no source we could read says so. Whoever mixes them up scores a right reply
as wrong, except for the permutations that are their own inverse (all of a 2x1 puzzle, so test on three tiles or more).
"""

from __future__ import annotations

import dataclasses
import operator
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .config import UserError

CONVENTIONS = ("forward", "inverse")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_SEPARATORS = str.maketrans(dict.fromkeys(",;()[]{}", " "))
_MAX_DIGITS = 9  # longer numbers are no index of any grid, and int() refuses more than 4300 digits
_SEAM = re.compile(r"</think>\s*+<answer>")  # possessive: never gives whitespace back, so it cannot backtrack


# ---- the puzzle ----


@dataclass(frozen=True)
class Puzzle:
    """A shuffled RGB image and its solution.

    `answer` is in `convention`; `permutation` is the forward answer whatever the convention:
    permutation[X-1] is the place of tile X.
    """

    image: Image.Image
    answer: tuple[int, ...]
    permutation: tuple[int, ...]
    rows: int
    cols: int
    convention: str


def trim(image: Image.Image, rows: int, cols: int) -> Image.Image:
    """Return `image` as RGB, its right and bottom trimmed so that rows divide the height and cols the width.

    Pillow converts: transparency is dropped, values over 255 of 16-bit, 32-bit and float images are clipped.
    """
    _check_grid(rows, cols)
    if not isinstance(image, Image.Image):
        raise UserError(f"A puzzle needs a PIL image, not {type(image).__name__}: open it with PIL.Image.open.")
    width, height = image.size
    if width < cols or height < rows:
        raise UserError(
            f"An image of {width}x{height} pixels is smaller than {rows} rows by {cols} columns: enlarge it."
        )
    try:
        rgb = image.convert("RGB")
    except (ValueError, OSError) as error:
        raise UserError(f"The image (mode {image.mode}) cannot be read as RGB: {error}; convert it first.") from error
    return rgb.crop((0, 0, width - width % cols, height - height % rows))


def cut(image: Image.Image, rows: int, cols: int) -> list[Image.Image]:
    """Return the rows*cols equal pieces of the trimmed image, row by row."""
    whole = trim(image, rows, cols)
    w, h = whole.width // cols, whole.height // rows
    return [whole.crop((c * w, r * h, c * w + w, r * h + h)) for r in range(rows) for c in range(cols)]


def join(tiles: Sequence[Image.Image], rows: int, cols: int) -> Image.Image:
    """Paste rows*cols equal pieces row by row, without a gap: the inverse of `cut`."""
    _check_grid(rows, cols)
    if len(tiles) != rows * cols or len({t.size for t in tiles}) != 1:
        raise UserError(f"A {rows}x{cols} grid needs {rows * cols} tiles of one size: pass what cut() returned.")
    w, h = tiles[0].size
    whole = Image.new("RGB", (cols * w, rows * h))
    for k, tile in enumerate(tiles):
        whole.paste(tile, (k % cols * w, k // cols * h))
    return whole


def invert(permutation: Sequence[int]) -> tuple[int, ...]:
    """Return the inverse permutation of 1..n: turns a forward answer into the inverse one, and back."""
    out = [0] * len(permutation)
    for position, value in enumerate(permutation, start=1):
        out[value - 1] = position
    return tuple(out)


def make_puzzle(
    image: Image.Image,
    rows: int = 3,
    cols: int = 3,
    *,
    seed: int,
    index: int = 0,
    convention: str = "forward",
    allow_identity: bool = False,
) -> Puzzle:
    """Shuffle `image` by a permutation drawn uniformly from (seed, index) alone.

    The unshuffled order is drawn again by default (Jigsaw-R1's code allows it [A]): it would be no puzzle.
    The convention changes the answer, never the picture.
    """
    _check_convention(convention)
    pieces = cut(image, rows, cols)
    rng = random.Random(f"jigsaw/{_whole('seed', seed)}/{_whole('index', index)}")
    order = list(range(1, len(pieces) + 1))
    rng.shuffle(order)
    while not allow_identity and order == sorted(order):
        rng.shuffle(order)
    shuffled = join([pieces[place - 1] for place in order], rows, cols)
    answer = tuple(order) if convention == "forward" else invert(order)
    return Puzzle(shuffled, answer, tuple(order), rows, cols, convention)


def restore(
    image: Image.Image, answer: Sequence[int], rows: int, cols: int, convention: str = "forward"
) -> Image.Image:
    """Return the picture that `answer` (right or wrong, but a permutation) makes of the shuffled `image`."""
    _check_convention(convention)
    tiles = cut(image, rows, cols)
    answer = _check_answer(answer, rows, cols)
    order = invert(answer) if convention == "forward" else answer  # order[Y-1]: the tile for place Y
    return join([tiles[tile - 1] for tile in order], rows, cols)


# ---- the prompt and the reply ----


def prompt(rows: int, cols: int, convention: str = "forward", style: str = "full", think: bool = True) -> str:
    """Return the question. "short" fits the bundled model's vocabulary; "full" explains grid, numbers, order and tags.

    Our wording: that of 2506.23508 was not found.
    """
    _check_grid(rows, cols)
    _check_convention(convention)
    forward = convention == "forward"
    if style == "short":
        ask = "give the index of each tile ." if forward else "give the tile of each index ."
        return f"the tiles are shuffled . {ask}" + (" think first ." if think else "")
    if style != "full":
        raise UserError(f"There is no prompt style {style!r}: choose short or full.")
    n = rows * cols
    grid = "\n".join(" ".join(str(r * cols + c + 1) for c in range(cols)) for r in range(rows))
    if forward:
        ask = "For each tile, from tile 1 to tile {n}, give the number of the place where it belongs. "
        ask += "For example, a 2 as the first number means that tile 1 belongs at place 2."
    else:
        ask = "For each place, from place 1 to place {n}, give the number of the tile that belongs there. "
        ask += "For example, a 2 as the first number means that tile 2 belongs at place 1."
    tags = f"write the {n} numbers inside <answer> </answer>, separated by single spaces, and nothing after them."
    return (
        f"An image was cut into {n} equal tiles, {_count(rows, 'row')} by {_count(cols, 'column')}, and the tiles were "
        f"shuffled. You see the shuffled image. Positions are numbered row by row, from left to right:\n{grid}\n"
        "Tile k is the tile you now see at position k. Place k is position k of the original image.\n"
        f"{ask.format(n=n)} Each number from 1 to {n} occurs exactly once.\n"
        + (f"First reason inside <think> </think>, then {tags}" if think else f"Without reasoning, {tags}")
    )


def answer_text(answer: Sequence[int], think: str | None = None) -> str:
    """Return a reply with single spaces around every word and tag, as the bundled tokenizer decodes it."""
    reply = " ".join(["<answer>", *(str(int(i)) for i in answer), "</answer>"])
    if think is None:
        return reply
    return " ".join(["<think>", *([think] if think else []), "</think>", reply])


@dataclass(frozen=True)
class Parsed:
    """What a reply says.

    indices: the numbers of the last complete answer block, () where there is none. 0 stands for a number that can be no
        index: 1.5, -3, more than nine digits, digits of other scripts, superscripts.
    status: "ok" (a permutation of 1..n), else the first that applies of "missing" (no complete block), "count"
        (not n numbers), "range" (a number outside 1..n), "repeat".
    template: the whole reply is one think block, then one answer block, each tag exactly once.
    answer_only_template: the whole reply is one answer block, each answer tag exactly once and no think tag.
    """

    indices: tuple[int, ...]
    status: str
    template: bool
    answer_only_template: bool


def parse(text: str | None, rows: int, cols: int) -> Parsed:
    """Read a reply, whatever it is, in time linear in its length; None counts as empty.

    The block is the last <answer> that has a </answer> after it, up to the first such. Numbers are separated by
    whitespace , ; ( ) [ ] { }; words without a digit are skipped, words with one ("1.5", "3x", "٣") are read as 0, so
    that they keep their position and cannot score. Surrounding whitespace and one final <|im_end|> do not count.
    """
    _check_grid(rows, cols)
    clean = _clean(text)
    close = clean.rfind("</answer>")
    start = clean.rfind("<answer>", 0, max(close, 0))
    found = start >= 0
    block = clean[start + len("<answer>") : clean.find("</answer>", start)] if found else ""
    indices = tuple(_number(w) for w in block.translate(_SEPARATORS).split() if any(map(str.isnumeric, w)))
    counts = tuple(clean.count(tag) for tag in TAGS)
    ends = clean.endswith("</answer>")
    template = counts == (1, 1, 1, 1) and clean.startswith("<think>") and ends and bool(_SEAM.search(clean))
    answer_only = counts == (0, 0, 1, 1) and clean.startswith("<answer>") and ends
    return Parsed(indices, _status(indices, rows * cols) if found else "missing", template, answer_only)


def _clean(text: str | None) -> str:
    return (text or "").strip().removesuffix("<|im_end|>").rstrip()


def _number(word: str) -> int:
    return int(word) if len(word) <= _MAX_DIGITS and word.isascii() and word.isdigit() else 0


def _status(indices: tuple[int, ...], n: int) -> str:
    if len(indices) != n:
        return "count"
    if not all(1 <= i <= n for i in indices):
        return "range"
    return "ok" if len(set(indices)) == n else "repeat"


# ---- the rewards ----


@dataclass(frozen=True)
class Reward:
    """total: the weighted sum. hit in [0, 1], exact and fmt 0.0 or 1.0: its parts before weighting."""

    total: float
    hit: float
    exact: float
    fmt: float


def hit_fraction(parsed: Parsed, answer: Sequence[int], allow_repeats: bool = False) -> float:
    """Return the share of positions with the right index, in [0, 1].

    More numbers than tiles earn 0 (else a model could list every guess); fewer earn for the positions they give.
    A repeated index earns nothing at any of its positions: else nine 1s would earn 1/9 without a look at the image.
    """
    if len(answer) == 0 or len(parsed.indices) > len(answer):
        return 0.0
    times = Counter(parsed.indices)
    pairs = zip(parsed.indices, answer, strict=False)
    return sum(i == a and (allow_repeats or times[i] == 1) for i, a in pairs) / len(answer)


def reward_p1(
    text: str | None,
    answer: Sequence[int],
    rows: int,
    cols: int,
    *,
    w_hit: float = 1.0,
    w_acc: float = 1.0,
    w_fmt: float = 1.0,
    strict: bool = True,
) -> Reward:
    """Hit + accuracy + format, the reward of 2506.23508: three parts of equal weight, at most 3 together.

    The formula and the weights come from a single secondary note [C]; how the paper treats repeats and malformed
    replies was not found, so `strict` is ours. strict: format needs the exact template around a permutation.
    strict=False opens the loopholes, to show what they do: repeats earn, numbers beyond rows*cols are ignored, and
    format is paid for a think block followed by an answer block anywhere in the reply, whatever they hold.
    """
    answer = _check_answer(answer, rows, cols)
    parsed = parse(text, rows, cols)
    if not strict:
        parsed = dataclasses.replace(parsed, indices=parsed.indices[: rows * cols])
    hit = hit_fraction(parsed, answer, allow_repeats=not strict)
    exact = float(parsed.indices == answer)
    fmt = float(parsed.template and parsed.status == "ok" if strict else _has_blocks(_clean(text)))
    return Reward(w_hit * hit + w_acc * exact + w_fmt * fmt, hit, exact, fmt)


def reward_jigsaw_r1(
    text: str | None,
    answer: Sequence[int],
    rows: int,
    cols: int,
    *,
    w_fmt: float = 0.5,
    think: bool = True,
    strict: bool = True,
) -> Reward:
    """1.0 * fraction + 0.5 * format, the reward of Jigsaw-R1 (2505.23590, its code) [A]: at most 1.5, no exact bonus.

    Any reply that is not rows*cols numbers in range earns neither part. strict=False does as their code: repeats earn
    and pass as well formed (all 1s: 1/n + 0.5), and the tags inside the two blocks are not counted. Without `think`
    the reply must be one answer block (ours: in their code it is the answer without tags).
    """
    answer = _check_answer(answer, rows, cols)
    parsed, clean = parse(text, rows, cols), _clean(text)
    readable = parsed.status in (("ok",) if strict else ("ok", "repeat"))
    hit = hit_fraction(parsed, answer, allow_repeats=not strict) if parsed.status in ("ok", "repeat") else 0.0
    if strict:
        shape = parsed.template if think else parsed.answer_only_template
    else:
        first = "<think>" if think else "<answer>"
        shape = clean.startswith(first) and clean.endswith("</answer>") and (not think or _has_blocks(clean))
    fmt = float(shape and readable)
    return Reward(hit + w_fmt * fmt, hit, float(parsed.indices == answer), fmt)


def _has_blocks(clean: str) -> bool:
    """True where <think> ... </think> <answer> ... </answer> occurs somewhere, as a lazy regex would find it."""
    start = clean.find("<think>")
    seam = _SEAM.search(clean, start + len("<think>")) if start >= 0 else None
    return seam is not None and clean.find("</answer>", seam.end()) >= 0


# ---- the shortcut: solve by edges alone ----


def edge_baseline(image: Image.Image, rows: int, cols: int) -> tuple[int, ...]:
    """Return a forward answer for the shuffled `image` that looks at nothing but the tiles' outer pixels.

    Fills places row by row, every tile tried as the first, and keeps the 200 arrangements of least seam cost.
    """
    tiles = [np.asarray(t, dtype=np.float64) for t in cut(image, rows, cols)]
    right = _seam_cost([t[:, -1] for t in tiles], [t[:, 0] for t in tiles])  # [a, b]: b at the right of a
    below = _seam_cost([t[-1] for t in tiles], [t[0] for t in tiles])  # [a, b]: b below a
    states: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for place in range(rows * cols):
        grown = []
        for cost, order in states:
            for tile in set(range(len(tiles))).difference(order):
                side = float(right[order[-1], tile]) if place % cols else 0.0
                top = float(below[order[place - cols], tile]) if place >= cols else 0.0
                grown.append((cost + side + top, (*order, tile)))
        states = sorted(grown)[:200] if place else grown
    return invert([tile + 1 for tile in states[0][1]])


def _seam_cost(ends: list[np.ndarray], starts: list[np.ndarray]) -> np.ndarray:
    """Cost [n, n] of laying edge b (length, 3) against edge a: square roots, so that a few strong edges do not rule."""
    gap = np.abs(np.stack(ends)[:, None] - np.stack(starts)[None])  # [n, n, length, 3]
    return np.sqrt(gap.sum(-1)).sum(-1)


# ---- checks ----


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def _whole(name: str, value: int) -> int:
    try:
        return operator.index(value)
    except TypeError as error:
        raise UserError(f"{name} must be a whole number, not {value!r}: pass an int.") from error


def _check_grid(rows: int, cols: int) -> None:
    if min(_whole("rows", rows), _whole("cols", cols)) < 1:
        raise UserError(f"A grid of {rows}x{cols} is impossible: rows and cols must be 1 or more.")
    if rows * cols < 2:
        raise UserError("A 1x1 grid has nothing to shuffle: use at least two tiles.")


def _check_convention(convention: str) -> None:
    if convention not in CONVENTIONS:
        raise UserError(f"There is no convention {convention!r}: choose {' or '.join(CONVENTIONS)}.")


def _check_answer(answer: Sequence[int], rows: int, cols: int) -> tuple[int, ...]:
    _check_grid(rows, cols)
    values = tuple(answer)
    if Counter(values) != Counter(range(1, rows * cols + 1)):
        raise UserError(f"The answer of a {rows}x{cols} puzzle must hold each of 1 to {rows * cols} once: correct it.")
    return values
