"""What the model is asked: eight probes of prior skill, and the jigsaw as the new task.

Every row is a function of (seed, split, index). Image rows are drawn so that no layout of objects occurs in two splits.
A probe reads the answer out of the text and says *correct*, *wrong* or *unparseable*: a forgetting model that answers every
question in jigsaw format is a different finding from one that names the wrong colour.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from PIL import Image

from rftkit import jigsaw, scenes
from rftkit.config import UserError
from rftkit.scenes import COLORS, GRID, GROUNDS, LIGHTS, SHAPES, Cell

Verdict = Literal["correct", "wrong", "unparseable"]

ROWS = ("top", "middle", "bottom")  # how a place is named in an answer
RELATIONS = ("left", "right", "above", "below")
MAX_NUMBER = 18  # the largest number in the probes


@dataclass(frozen=True)
class Row:
    """One question with its reference answer, as the bundled base words it."""

    task: str
    prompt: str
    answer: str
    image: Image.Image | None = None
    key: tuple[str, ...] = ()  # the telling words of the answer
    given: str = ""  # the beginning of `answer` that is context, not a target, when pretraining
    data: dict[str, Any] = field(default_factory=dict)  # what scoring needs beyond the answer
    history: tuple[tuple[str, str], ...] = ()  # turns after the prompt: (reply, what was said to it)


@dataclass(frozen=True)
class Task:
    """A named source of rows with its scoring rule."""

    name: str
    make: Callable[[np.random.Generator, str], Row]  # (generator, split) -> Row
    score: Callable[[str, Row], Verdict]
    uses_image: bool = True

    def row(self, seed: int, index: int, split: str = "test") -> Row:
        """Row `index` of a split: the same on every call. Raises UserError for an unknown split."""
        if split not in scenes.SPLITS:
            raise UserError(f"There is no split {split!r}: choose one of {', '.join(scenes.SPLITS)}.")
        return self.make(scenes.rng_for(seed, self.name, split, index), split)

    def rows(self, seed: int, n: int, split: str = "test") -> list[Row]:
        return [self.row(seed, i, split) for i in range(n)]


# --- layouts ------------------------------------------------------------------------------------------------------------


def _until_split(layout: Callable[[], tuple[Cell, ...]], split: str) -> tuple[Cell, ...]:
    """Draw layouts until one belongs to the split (one in ten does for test, eight in ten for train)."""
    while True:
        cells = layout()
        if scenes.split_of(cells) == split:
            return cells


def _scatter(rng: np.random.Generator, things: list[tuple[str, str | None, int | None]]) -> tuple[Cell, ...]:
    """Put (shape, colour, digit) things into different cells of a landscape."""
    cells = [Cell(place) for place in range(GRID * GRID)]
    for place, thing in zip(rng.choice(GRID * GRID, len(things), replace=False), things, strict=True):
        cells[place] = Cell(int(place), *thing)
    return tuple(cells)


def _pick(rng: np.random.Generator, words: tuple[str, ...], n: int = 1) -> list[str]:
    return [words[i] for i in rng.choice(len(words), n, replace=False)]


def _any_objects(rng: np.random.Generator, least: int = 1, most: int = 5) -> list[tuple[str, str | None, int | None]]:
    """Objects of different shapes, so that "the circle" is one thing; a sign now and then."""
    n = int(rng.integers(least, most + 1))
    things: list[tuple[str, str | None, int | None]] = []
    for shape in _pick(rng, SHAPES, n):
        things.append((shape, str(rng.choice(COLORS)), None))
    if rng.random() < 0.3:
        things.append(("sign", None, int(rng.integers(10))))
    return things


def _place(cell: Cell) -> str:
    return f"{ROWS[cell.place // GRID]} {LIGHTS[cell.place % GRID]}"


# --- the probes ---------------------------------------------------------------------------------------------------------


def _color(rng: np.random.Generator, split: str) -> Row:
    cells = _until_split(lambda: _scatter(rng, _any_objects(rng)), split)
    cell = _one_object(rng, cells)
    assert cell.shape and cell.color
    answer = f"the {cell.shape} is {cell.color} ."
    return Row("color", f"what color is the {cell.shape} ?", answer, scenes.draw(cells, rng).image, (cell.color,))


def _one_object(rng: np.random.Generator, cells: tuple[Cell, ...]) -> Cell:
    named = [c for c in cells if c.color]
    return named[int(rng.integers(len(named)))]


def _count(rng: np.random.Generator, split: str) -> Row:
    color = str(rng.choice(COLORS))
    n = int(rng.integers(0, 5))

    def layout() -> tuple[Cell, ...]:
        others = tuple(c for c in COLORS if c != color)
        more = int(rng.integers(1 if n == 0 else 0, 4))
        colors = [color] * n + [str(rng.choice(others)) for _ in range(more)]
        return _scatter(rng, [(str(rng.choice(SHAPES)), c, None) for c in colors])

    cells = _until_split(layout, split)
    return Row(
        "count", f"how many {color} objects are there ?", f"there are {n} {color} objects .",
        scenes.draw(cells, rng).image, (str(n),),
    )  # fmt: skip


def _ground(rng: np.random.Generator, split: str) -> Row:
    cells = _until_split(lambda: _scatter(rng, _any_objects(rng)), split)
    cell = _one_object(rng, cells)
    place = _place(cell)
    answer = f"the {cell.shape} is at {place} ."
    return Row("ground", f"where is the {cell.shape} ?", answer, scenes.draw(cells, rng).image, tuple(place.split()))


def _exist(rng: np.random.Generator, split: str) -> Row:
    cells = _until_split(lambda: _scatter(rng, _any_objects(rng)), split)
    shown = {c.shape for c in cells}
    yes = bool(rng.random() < 0.5)
    shape = _pick(rng, tuple(s for s in SHAPES if (s in shown) == yes))[0]
    answer = f"yes , there is a {shape} ." if yes else f"no , there is no {shape} ."
    return Row("exist", f"is there a {shape} ?", answer, scenes.draw(cells, rng).image, ("yes" if yes else "no",))


def _relate(rng: np.random.Generator, split: str) -> Row:
    """Two objects in one row or one column: which way does the first lie from the second?"""
    while True:
        cells = _until_split(lambda: _scatter(rng, _any_objects(rng, least=2)), split)
        named = [c for c in cells if c.color]
        pairs = [(a, b) for a in named for b in named if a is not b and (_same_row(a, b) or _same_column(a, b))]
        if pairs:
            break
    a, b = pairs[int(rng.integers(len(pairs)))]
    if _same_row(a, b):
        way = "left" if a.place < b.place else "right"
    else:
        way = "above" if a.place < b.place else "below"
    answer = f"{_place(a)} and {_place(b)} , so {way} ."
    prompt = f"where is the {a.shape} from the {b.shape} ?"
    return Row("relate", prompt, answer, scenes.draw(cells, rng).image, (way, *_place(a).split(), *_place(b).split()))


def _same_row(a: Cell, b: Cell) -> bool:
    return a.place // GRID == b.place // GRID


def _same_column(a: Cell, b: Cell) -> bool:
    return a.place % GRID == b.place % GRID


def _digits(rng: np.random.Generator, split: str) -> Row:
    digit = int(rng.integers(10))

    def layout() -> tuple[Cell, ...]:
        return _scatter(rng, [*(t for t in _any_objects(rng) if t[0] != "sign"), ("sign", None, digit)])

    cells = _until_split(layout, split)
    prompt = "which number is on the sign ?"
    return Row("digits", prompt, f"the sign says {digit} .", scenes.draw(cells, rng).image, (str(digit),))


def _arithmetic(rng: np.random.Generator, split: str) -> Row:
    a, b = int(rng.integers(10)), int(rng.integers(10))
    if rng.random() < 0.5:
        sign, value = "+", a + b
    else:
        a, b = max(a, b), min(a, b)
        sign, value = "-", a - b
    return Row("arithmetic", f"what is {a} {sign} {b} ?", f"{a} {sign} {b} = {value} .", key=(str(value),))


def lookup_row(rng: np.random.Generator, least: int, most: int) -> Row:
    """The index of each of `least` to `most` places, restated in the thinking part."""
    n = int(rng.integers(least, most + 1))
    places = [int(p) for p in rng.integers(0, GRID * GRID, n)]
    listed = place_words(places)
    indices = " ".join(str(p + 1) for p in places)
    return Row(
        "lookup", f"give the index of each place : {listed} . think first .",
        f"<think> {listed} </think> <answer> {indices} </answer>", key=tuple(indices.split()),
        data={"indices": indices},
    )  # fmt: skip


def place_words(places: list[int]) -> str:
    """Places 0 to 8 as the base says them: "sky left hill mid"."""
    return " ".join(f"{GROUNDS[p // GRID]} {LIGHTS[p % GRID]}" for p in places)


def _lookup(rng: np.random.Generator, split: str) -> Row:
    return lookup_row(rng, 1, 4)


# --- scoring ------------------------------------------------------------------------------------------------------------


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+|[0-9]+", text.lower())


def _first(text: str, choices: tuple[str, ...]) -> str | None:
    return next((w for w in _words(text) if w in choices), None)


def _verdict(said: str | None, truth: str) -> Verdict:
    return "unparseable" if said is None else "correct" if said == truth else "wrong"


def _says(choices: tuple[str, ...]) -> Callable[[str, Row], Verdict]:
    """Score the first word of the text that is one of the choices."""
    return lambda text, row: _verdict(_first(text, choices), row.key[0])


def _says_place(text: str, row: Row) -> Verdict:
    """Row and column, both right; either missing makes the answer unparseable."""
    said = (_first(text, ROWS), _first(text, LIGHTS))
    return "unparseable" if None in said else "correct" if said == row.key else "wrong"


def _says_relation(text: str, row: Row) -> Verdict:
    """The last relation word: "left" is also a column, so with "so" in the text only what follows it counts."""
    tail = text.lower().rpartition(" so ")[2]
    said = [w for w in _words(tail) if w in RELATIONS]
    return _verdict(said[-1] if said else None, row.key[0])


def _says_result(text: str, row: Row) -> Verdict:
    """The number after the last "=", or the only number."""
    numbers = re.findall(r"[0-9]+", text.rpartition("=")[2])
    return _verdict(numbers[0] if len(numbers) == 1 else None, row.key[0])


def _says_number(text: str, row: Row) -> Verdict:
    """The only number of the text: a list of nine numbers is no answer to "how many"."""
    numbers = re.findall(r"[0-9]+", text)
    return _verdict(numbers[0] if len(numbers) == 1 else None, row.key[0])


def _says_indices(text: str, row: Row) -> Verdict:
    """The list in the answer block. A list that is too long, even a whole puzzle's, has the asked form and is wrong."""
    body = text.rpartition("<answer>")[2].partition("</answer>")[0]
    numbers = re.findall(r"[0-9]+", body) if "<answer>" in text else []
    return _verdict(" ".join(numbers) or None, row.data["indices"])


PROBES: dict[str, Task] = {
    "color": Task("color", _color, _says(COLORS)),
    "count": Task("count", _count, _says_number),
    "ground": Task("ground", _ground, _says_place),
    "exist": Task("exist", _exist, _says(("yes", "no"))),
    "relate": Task("relate", _relate, _says_relation),
    "digits": Task("digits", _digits, _says_number),
    "arithmetic": Task("arithmetic", _arithmetic, _says_result, uses_image=False),
    "lookup": Task("lookup", _lookup, _says_indices, uses_image=False),
}


# --- the new task -------------------------------------------------------------------------------------------------------


def landscape(rng: np.random.Generator, split: str) -> Image.Image:
    """An ordinary scene with one to five objects."""
    cells = _until_split(lambda: _scatter(rng, _any_objects(rng)), split)
    return scenes.draw(cells, rng).image


def jigsaw_task(rows: int, cols: int, style: str, image_of: Callable[[np.random.Generator, str], Image.Image]) -> Task:
    """The jigsaw on a rows x cols grid, worded in `style` ("short" or "full"), over the images that `image_of` draws."""

    def make(rng: np.random.Generator, split: str) -> Row:
        image = image_of(rng, split)
        return jigsaw_row(jigsaw.make_puzzle(image, rows, cols, seed=int(rng.integers(2**31))), style)

    return Task("jigsaw", make, _score_jigsaw)


def jigsaw_row(puzzle: jigsaw.Puzzle, style: str = "short") -> Row:
    """A puzzle as a row: its prompt and the answer without any reasoning."""
    prompt = jigsaw.prompt(puzzle.rows, puzzle.cols, puzzle.convention, style)
    data = {"answer": puzzle.answer, "rows": puzzle.rows, "cols": puzzle.cols}
    return Row("jigsaw", prompt, jigsaw.answer_text(puzzle.answer), puzzle.image, data=data)


def _score_jigsaw(text: str, row: Row) -> Verdict:
    parsed = jigsaw.parse(text, row.data["rows"], row.data["cols"])
    if parsed.status != "ok":
        return "unparseable"
    return "correct" if parsed.indices == row.data["answer"] else "wrong"


JIGSAW = jigsaw_task(GRID, GRID, "short", landscape)


def messages(row: Row, system: str | None = None) -> list[dict[str, Any]]:
    """A row as a user's turn, and the turns of its history, in the chat format of transformers and TRL, the image first."""
    content: list[dict[str, Any]] = [{"type": "image", "image": row.image}] if row.image is not None else []
    turns: list[dict[str, Any]] = [{"role": "user", "content": [*content, {"type": "text", "text": row.prompt}]}]
    for reply, answer in row.history:
        turns += [
            {"role": role, "content": [{"type": "text", "text": text}]}
            for role, text in (("assistant", reply), ("user", answer))
        ]
    return turns if system is None else [{"role": "system", "content": system}, *turns]
