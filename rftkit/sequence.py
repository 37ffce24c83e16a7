"""Seven tasks in a row at the tiny tier: drawn tasks that mirror those of 2507.05386, none of them in the pretraining mixture.

| name | the paper's | here |
|---|---|---|
| science | ScienceQA | a picture, a question and three lettered choices |
| scenetext | TextVQA | two signs: read the big or the small number |
| unanswerable | VizWiz | the thing is not there, or the picture is blurred: "none" |
| compose | GQA | the color of what lies left of, right of, above or below a named object |
| geometry | Geometry3K | steps between two objects, along rows and columns |
| texture | PathVQA | a checked cell: is there one (yes, no), and where (a phrase) |
| clutter | Super-CLEVR | count by shape, or by color and shape, among six to nine objects |

Each is asked with thinking (THINK, the paper's reasoning prompt) or for the answer alone (SHORT, "single word or phrase"). The
bundled base knows no such questions and no such form: `form_base` practises the form on the eight probes first, as
Qwen2.5-VL-Instruct knows it from elsewhere. One extractor reads the answers of all methods.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from rftkit import evals, recording, scenes
from rftkit.config import Preset, UserError
from rftkit.policy import Policy, generate
from rftkit.scenes import CELL, COLORS, GRID, LIGHTS, SHAPES, Cell
from rftkit.sft import Data, Lazy, train_sft
from rftkit.tasks import PROBES, RELATIONS, ROWS, Row, Task, Verdict

SEVEN = ("science", "scenetext", "unanswerable", "compose", "geometry", "texture", "clutter")  # the paper's order
THINK = "think first ."
SHORT = "answer in one word ."
LETTERS = ("j", "k", "q")  # of the choices
NONE = "none"  # there is no answer
BLUR = (5.0, 7.0)  # pixels of the Gaussian: shapes are gone, colors are not

Thing = tuple[str, str | None, int | None]  # shape, color, digit


@dataclass(frozen=True)
class Asked:
    """A drawn question before it is worded for one form: what is thought, in the base's own sentences, and the answer."""

    question: str
    thinking: str
    answer: str
    image: Image.Image | None


# --- pictures -------------------------------------------------------------------------------------------------------------


def _layout(
    rng: np.random.Generator, things: Callable[[], list[Thing]], split: str, fits: Callable[[tuple[Cell, ...]], bool]
) -> tuple[Cell, ...]:
    """Things in different cells of a landscape, drawn until the layout is of the split and fits the question."""
    while True:
        cells = [Cell(place) for place in range(GRID * GRID)]
        drawn = things()
        for place, thing in zip(rng.choice(GRID * GRID, len(drawn), replace=False), drawn, strict=True):
            cells[place] = Cell(int(place), *thing)
        if scenes.split_of(tuple(cells)) == split and fits(tuple(cells)):
            return tuple(cells)


def _objects(rng: np.random.Generator, least: int, most: int) -> list[Thing]:
    """Objects of different shapes, so that "the circle" is one thing."""
    shapes = rng.choice(len(SHAPES), int(rng.integers(least, most + 1)), replace=False)
    return [(SHAPES[i], _one(rng, COLORS), None) for i in shapes]


def _signs(rng: np.random.Generator) -> list[Thing]:
    """Two signs with different numbers."""
    return [("sign", None, int(digit)) for digit in rng.choice(10, 2, replace=False)]


def _one(rng: np.random.Generator, words: tuple[Any, ...] | list[Any]) -> Any:
    return words[int(rng.integers(len(words)))]


def _named(cells: tuple[Cell, ...]) -> list[Cell]:
    return [c for c in cells if c.color]


def _place(cell: Cell) -> str:
    return f"{ROWS[cell.place // GRID]} {LIGHTS[cell.place % GRID]}"


def _always(cells: tuple[Cell, ...]) -> bool:
    return True


# --- the seven ------------------------------------------------------------------------------------------------------------


def _science(rng: np.random.Generator, split: str) -> Asked:
    cells = _layout(rng, lambda: _objects(rng, 2, 4), split, _always)
    cell = _one(rng, _named(cells))
    others = [c for c in COLORS if c != cell.color]
    colors = [str(c) for c in rng.permutation([cell.color, *rng.choice(others, len(LETTERS) - 1, replace=False)])]
    letter = LETTERS[colors.index(cell.color)]
    choices = " , ".join(f"{k} {c}" for k, c in zip(LETTERS, colors, strict=True))
    question = f"what color is the {cell.shape} ? {choices} ."
    return Asked(
        question, f"the {cell.shape} is {cell.color} . {letter} {cell.color}", letter, scenes.draw(cells, rng).image
    )


def _scenetext(rng: np.random.Generator, split: str) -> Asked:
    digits = sorted(int(d) for d in rng.choice(10, 2, replace=False))
    signs: list[Thing] = [("sign", None, d) for d in digits]
    cells = _layout(rng, lambda: [*_objects(rng, 0, 3), *signs], split, _always)
    big = bool(rng.random() < 0.5)
    said = str(digits[big])
    thinking = f"the sign says {digits[0]} and {digits[1]} , so {said} ."
    question = f"which {'big' if big else 'small'} number is on the sign ?"
    return Asked(question, thinking, said, scenes.draw(cells, rng).image)


def _unanswerable(rng: np.random.Generator, split: str) -> Asked:
    cells = _layout(rng, lambda: _objects(rng, 1, 4), split, _always)
    case = rng.random()  # half of the questions have an answer, a quarter ask about nothing, a quarter about a blur
    cell = _one(rng, _named(cells))
    image = scenes.draw(cells, rng).image
    shape = cell.shape
    if case < 0.25:
        shape = _one(rng, [s for s in SHAPES if s not in {c.shape for c in cells}])
    elif case < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(*BLUR))))
    question = f"what color is the {shape} ? color , none ."
    if case < 0.5:
        return Asked(question, f"there is no {shape} .", NONE, image)
    assert cell.color
    return Asked(question, f"the {shape} is {cell.color} .", cell.color, image)


def _compose(rng: np.random.Generator, split: str) -> Asked:
    cells = _layout(rng, lambda: _objects(rng, 2, 4), split, lambda cells: bool(_pairs(cells)))
    a, b, way = _one(rng, _pairs(cells))
    word = f"{way} of" if way in ("left", "right") else way
    thinking = f"the {b.shape} is at {_place(b)} . the {a.shape} is at {_place(a)} . the {a.shape} is {a.color} ."
    assert a.color
    return Asked(
        f"{word} the {b.shape} : what color is the one you see ?", thinking, a.color, scenes.draw(cells, rng).image
    )


def _pairs(cells: tuple[Cell, ...]) -> list[tuple[Cell, Cell, str]]:
    """(a, b, way): a is the one object that lies this way of b, in its row or column."""
    found = []
    for b in _named(cells):
        for way in RELATIONS:
            there = [a for a in _named(cells) if _lies(a, b) == way]
            if len(there) == 1:
                found.append((there[0], b, way))
    return found


def _lies(a: Cell, b: Cell) -> str | None:
    """Which way a lies from b, if in the same row or column."""
    (ay, ax), (by, bx) = divmod(a.place, GRID), divmod(b.place, GRID)
    if a is b or (ay != by and ax != bx):
        return None
    if ay == by:
        return "left" if ax < bx else "right"
    return "above" if ay < by else "below"


def _geometry(rng: np.random.Generator, split: str) -> Asked:
    cells = _layout(rng, lambda: _objects(rng, 2, 4), split, _always)
    named = _named(cells)
    a, b = (named[i] for i in rng.choice(len(named), 2, replace=False))
    down, across = abs(a.place // GRID - b.place // GRID), abs(a.place % GRID - b.place % GRID)
    thinking = f"{_place(a)} and {_place(b)} , so {down} + {across} = {down + across} ."
    question = f"how many tiles are there from the {a.shape} to the {b.shape} ?"
    return Asked(question, thinking, str(down + across), scenes.draw(cells, rng).image)


def _texture(rng: np.random.Generator, split: str) -> Asked:
    cells = _layout(rng, lambda: _objects(rng, 1, 3), split, _always)
    image = scenes.draw(cells, rng).image
    cell = _one(rng, _named(cells))
    case = rng.random()  # six in ten ask where, two whether one is there that is, two whether one is there that is not
    if case < 0.8:
        image = checked(image, cell.place)
    if case < 0.6:
        return Asked("where is the grid ?", f"the grid is at {_place(cell)} .", _place(cell), image)
    question = "is there a grid ?"
    if case < 0.8:
        return Asked(question, "yes , there is a grid .", "yes", image)
    return Asked(question, "no , there is no grid .", "no", image)


def checked(image: Image.Image, place: int, size: int = 3, shade: float = 0.35) -> Image.Image:
    """The picture with a check pattern, squares of `size` pixels, over one cell: every other square is darkened to `shade`."""
    y, x = np.mgrid[:CELL, :CELL] // size
    row, column = divmod(place, GRID)
    pixels = np.asarray(image, np.float32).copy()
    cell = pixels[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
    cell[(y + x) % 2 == 0] *= shade
    return Image.fromarray(pixels.astype(np.uint8))


def _clutter(rng: np.random.Generator, split: str) -> Asked:
    shape, color = _one(rng, SHAPES), _one(rng, COLORS) if rng.random() < 0.5 else None
    n = int(rng.integers(0 if color else 1, 5))

    def things() -> list[Thing]:
        total = int(rng.integers(max(6, n + 2), 10))
        same = [(shape, color or _one(rng, COLORS), None) for _ in range(n)]
        # what is told apart by one of the two words only, then anything else
        near: list[Thing] = [(shape, _one(rng, [c for c in COLORS if c != color]), None)] if color else []
        near += [(_one(rng, _but(shape)), color, None)] if color and rng.random() < 0.5 else []
        return [
            *same,
            *near,
            *((_one(rng, _but(shape)), _one(rng, COLORS), None) for _ in range(total - n - len(near))),
        ]

    cells = _layout(rng, things, split, _always)
    what = f"{color} {shape}" if color else shape
    question = f"how many {what} objects are there ?"
    return Asked(question, f"there are {n} {what} objects .", str(n), scenes.draw(cells, rng).image)


def _but(shape: str) -> list[str]:
    return [s for s in SHAPES if s != shape]


_DRAWN: dict[str, Callable[[np.random.Generator, str], Asked]] = {
    "science": _science, "scenetext": _scenetext, "unanswerable": _unanswerable, "compose": _compose, "geometry": _geometry,
    "texture": _texture, "clutter": _clutter,
}  # fmt: skip


# --- wording ----------------------------------------------------------------------------------------------------------------


def worded(name: str, asked: Asked, thinking: bool) -> Row:
    """The question in one of the two forms, with the reply that demonstrates it."""
    prompt = f"{asked.question} {THINK if thinking else SHORT}"
    reply = f"<think> {asked.thinking} </think> <answer> {asked.answer} </answer>" if thinking else asked.answer
    data = {"target": asked.answer, "name": name, "thinking": int(thinking)}
    return Row(name, prompt, reply, asked.image, tuple(asked.answer.split()), data=data)


def tasks_of(thinking: bool = True) -> dict[str, Task]:
    """The seven drawn tasks in the paper's order. row.data: "target", the answer in plain words, "name" and "thinking" (0 or 1)."""

    def task(name: str, drawn: Callable[[np.random.Generator, str], Asked]) -> Task:
        return Task(name, lambda rng, split: worded(name, drawn(rng, split), thinking), score)

    return {name: task(name, _DRAWN[name]) for name in SEVEN}


def tasks(preset: Preset, thinking: bool = True) -> dict[str, Task]:
    """The seven of the preset's tier: drawn, or those of the paper from the Hub."""
    if preset.images == "scenes":
        return tasks_of(thinking)
    from rftkit import sequence_hub  # it builds on this module

    return sequence_hub.tasks(preset, thinking)


# --- scoring: one extractor for all methods, whatever they were asked for -----------------------------------------------------

ANSWERS = frozenset(
    {
        *LETTERS,
        *COLORS,
        NONE,
        "yes",
        "no",
        *map(str, range(31)),
        *(f"{row} {light}" for row in ROWS for light in LIGHTS),
    }
)


def extract(text: str) -> str | None:
    """The answer of a reply in plain words, as `said` finds it; else None."""
    return " ".join(re.findall(r"[a-z]+|[0-9]+", said(text).lower())) or None


def said(text: str) -> str:
    """What the last closed answer block of a reply holds, "" where there are other tags only; the whole of a reply without tags."""
    if not re.search(r"</?(?:think|answer)>", text):
        return text
    return (re.findall(r"<answer>([^<]*)</answer>", text) or [""])[-1]


def score(text: str, row: Row) -> Verdict:
    """Right is the target alone. Another answer is wrong if it answers some question of the seven, anything else unparseable: a
    sentence, a list, no closed answer block."""
    said = extract(text)
    return "correct" if said == row.data["target"] else "wrong" if said in ANSWERS else "unparseable"


def form_ok(text: str) -> bool:
    """Whether a reply is a reasoning block, then an answer block, and nothing else. As in the paper, what is in them does not matter."""
    return bool(re.fullmatch(r"\s*<think>[^<]+</think>\s*<answer>[^<]+</answer>\s*", text))


def accuracy(completions: list[Any], target: list[str], **_: Any) -> list[float]:
    """0.9 for the right answer, else 0, in the form that TRL calls."""
    return [0.9 * (extract(c[0]["content"]) == t) for c, t in zip(completions, target, strict=True)]


def form(completions: list[Any], **_: Any) -> list[float]:
    """0.1 for a reply in form (`form_ok`), else 0."""
    return [0.1 * form_ok(c[0]["content"]) for c in completions]


# --- the practised form ------------------------------------------------------------------------------------------------------


# What the base practises before the sequence begins. The eight probes, plain, with THINK and with SHORT. And four kinds of
# questions that are new, on what the probes ask for: some that have no answer, some with lettered choices, what is at a place, and
# *open* ones with several right answers, of which one is drawn. The open ones make it sample: asked something new it answers like the nearest
# question that it knows, and always the same unless that question has many answers.


@dataclass(frozen=True)
class FormPlan:
    """SFT of `steps` updates at `lr`; the shares of questions some of which have no answer, with choices, about a place and open, the rest being the probes'
    own, a share `plain` of these as they are; `thinking` is the share of the others that is asked with reasoning."""

    steps: int = 300
    lr: float = 5e-4
    absent: float = 0.1
    letters: float = 0.14
    at: float = 0.1
    open: float = 0.28
    plain: float = 0.35
    thinking: float = 0.6
    asked: int = 50  # questions of each probe in the evaluation, in each form


FORM = FormPlan()
# relations and sums take longest to be said in the new form, and look-ups are kept alive
_PRACTISED = (*PROBES, "relate", "relate", "arithmetic", "lookup", "lookup")


def form_row(seed: int, index: int, plan: FormPlan = FORM) -> Row:
    """Row `index` of the practised form."""
    rng = scenes.rng_for(seed, "form", index)
    kind, thinking = rng.random(), bool(rng.random() < plan.thinking)
    for name, share, drawn in (
        ("absent", plan.absent, _absent),
        ("letters", plan.letters, _letters),
        ("at", plan.at, _at),
        ("open", plan.open, _open),
    ):
        if kind < share:
            return worded(name, drawn(rng), thinking)
        kind -= share
    row = PROBES[_one(rng, _PRACTISED)].row(seed, index, "train")
    return row if rng.random() < plan.plain or row.task == "lookup" else in_form(row, thinking)


def form_rows(seed: int, n: int, plan: FormPlan = FORM) -> Lazy:
    """`n` rows of the practised form, drawn when asked for."""
    return Lazy(n, lambda i: form_row(seed, i, plan))


def in_form(row: Row, thinking: bool) -> Row:
    """A probe's row asked in one of the two forms: its usual sentence is the reasoning, its telling words the answer. A look-up is
    asked with reasoning as it is, and has no other form."""
    key = row.key[:1] if row.task == "relate" else row.key
    return worded(row.task, Asked(row.prompt, row.answer, " ".join(key), row.image), thinking)


def form_base(preset: Preset, home: Path | None = None, plan: FormPlan = FORM) -> recording.Before:
    """What every method goes on from, the same for all seeds: the bundled base once it knows the form.

    Raises UserError for another tier than the tiny one, whose model knows it already.
    """
    if preset.images != "scenes":
        raise UserError(
            f"The model of the preset {preset.name!r} knows the form: it needs no practice, so begin with it as it is."
        )
    # the wording is part of the run's settings: a changed question makes another base
    said = "\n".join(f"{row.prompt} {row.answer}" for row in (form_row(0, i, plan) for i in range(64)))
    digest = hashlib.sha256(said.encode()).hexdigest()[:8]
    data = Data(f"the form {plan} {digest}", lambda policy, folder: form_rows(0, preset.train_n, plan))
    record, _ = train_sft(
        preset, 0, name="sequence_form", data=data, lr=plan.lr, steps=plan.steps, save_at={plan.steps}, evaluate=_form_evaluation(plan),
        home=home,
    )  # fmt: skip
    return recording.Before(record, recording.weights_at(recording.run_folder(record, home), plan.steps))


def _form_evaluation(plan: FormPlan) -> recording.Evaluate:
    """The probes with THINK (new_exact: answered; new_hit: in form), with SHORT ("direct"), and plain ("prior")."""
    plain = {name: task.rows(recording.EVAL_SEED, plan.asked) for name, task in PROBES.items()}
    asked = {
        t: [in_form(r, t) for name, rows in plain.items() if name != "lookup" for r in rows] for t in (True, False)
    }

    def evaluate(policy: Policy) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        said = {t: generate(policy, rows) for t, rows in asked.items()}
        verdicts = {t: [score(x, r) for x, r in zip(said[t], rows, strict=True)] for t, rows in asked.items()}
        prior = {
            name: evals.evaluate(lambda some: generate(policy, some), PROBES[name], rows)
            for name, rows in plain.items()
        }
        n = len(asked[True])
        row = {
            "kind": "eval",
            "new_exact": verdicts[True].count("correct") / n,
            "new_hit": sum(map(form_ok, said[True])) / n,
            "new_unparseable": verdicts[True].count("unparseable") / n,
            "new_n": n,
            "direct": verdicts[False].count("correct") / n,
            "prior": {name: asdict(count) for name, count in prior.items()},
            "prior_mean": evals.prior_mean(prior),
        }
        samples = [
            {"prompt": r.prompt, "completion": x, "reward": float(v == "correct")}
            for r, x, v in list(zip(asked[True], said[True], verdicts[True], strict=True))[:: plan.asked]
        ]
        return row, samples

    return evaluate


def _absent(rng: np.random.Generator) -> Asked:
    """Half of the things asked for are there."""
    cells = _layout(rng, lambda: _objects(rng, 1, 5), "train", _always)
    image = scenes.draw(cells, rng).image
    cell = _one(rng, _named(cells))
    shape = cell.shape if rng.random() < 0.5 else _one(rng, [s for s in SHAPES if s not in {c.shape for c in cells}])
    question = f"where is the {shape} ? place , none ."
    if shape != cell.shape:
        return Asked(question, f"there is no {shape} .", NONE, image)
    return Asked(question, f"the {shape} is at {_place(cell)} .", _place(cell), image)


def _letters(rng: np.random.Generator) -> Asked:
    digits = [int(d) for d in rng.choice(10, len(LETTERS), replace=False)]
    k = int(rng.integers(len(LETTERS)))
    cells = _layout(rng, lambda: [*_objects(rng, 0, 4), ("sign", None, digits[k])], "train", _always)
    choices = " , ".join(f"{a} {d}" for a, d in zip(LETTERS, digits, strict=True))
    said = f"the sign says {digits[k]} . {LETTERS[k]} {digits[k]}"
    return Asked(f"which number is on the sign ? {choices} .", said, LETTERS[k], scenes.draw(cells, rng).image)


def _at(rng: np.random.Generator) -> Asked:
    """What is at a place, where the probes ask for the place of a thing: one of the objects, or one of two signs."""
    signs = bool(rng.random() < 0.5)
    least, most = (0, 3) if signs else (1, 5)
    cells = _layout(rng, lambda: [*_objects(rng, least, most), *(_signs(rng) if signs else [])], "train", _always)
    cell, image = (
        _one(rng, [c for c in cells if (c.digit is not None) == signs and c.shape]),
        scenes.draw(cells, rng).image,
    )
    if signs:
        said, question = f"the sign at {_place(cell)} says {cell.digit} .", "which number is on the sign ?"
        return Asked(f"at {_place(cell)} : {question}", said, str(cell.digit), image)
    said, question = f"the {cell.shape} at {_place(cell)} is {cell.color} .", "what color is the one you see ?"
    return Asked(f"at {_place(cell)} : {question}", said, str(cell.color), image)


def _open(rng: np.random.Generator) -> Asked:
    """A question that several answers are right to: one is drawn."""
    about = _one(rng, ("color", "place", "number", "count", "exist", "pair"))
    least, most = {"number": (0, 3), "pair": (2, 5)}.get(about, (1, 5))
    signs = _signs(rng) if about == "number" else []
    cells = _layout(rng, lambda: [*_objects(rng, least, most), *signs], "train", _always)
    image, named = scenes.draw(cells, rng).image, _named(cells)
    if about == "number":
        sign = _one(rng, [c for c in cells if c.digit is not None])
        return Asked(
            "which number is on one sign ?", f"the sign at {_place(sign)} says {sign.digit} .", str(sign.digit), image
        )
    if about == "exist":
        shape = _one(rng, SHAPES)
        if shape in {c.shape for c in cells}:
            return Asked("is there one ?", f"yes , there is a {shape} .", "yes", image)
        return Asked("is there one ?", f"no , there is no {shape} .", "no", image)
    if about == "pair":  # all that are there, or all but the two
        a, b = (named[i] for i in rng.choice(len(named), 2, replace=False))
        n = len(named) - _one(rng, (0, 2))
        question = f"how many objects are there with the {a.shape} and the {b.shape} ?"
        return Asked(question, f"{_place(a)} and {_place(b)} , so {n} .", str(n), image)
    cell = _one(rng, named)
    if about == "color":
        return Asked("what color is the one you see ?", f"the {cell.shape} is {cell.color} .", str(cell.color), image)
    if about == "place":
        return Asked("where is the one you see ?", f"the {cell.shape} is at {_place(cell)} .", _place(cell), image)
    n = sum(c.color == cell.color for c in cells)
    return Asked("how many are there ?", f"there are {n} {cell.color} objects .", str(n), image)
