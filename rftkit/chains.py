"""Long sums, a task of several steps with a verifier: "what is 17 - 9 + 16 + 4 ?"

The bundled base that knows cards has seen such sums of two and three numbers, answered in one go: "17 - 9 + 16 = 24 .". Two
styles show the work instead: running totals, "17 - 9 = 8 ; 8 + 16 = 24 ; 24 + 4 = 28", which a base for notebook 06 practises a
little, so that it gets short sums right now and then and long ones hardly ever; and sums written again after each step. The
oracle takes the steps of the first with a word of its own between them. The verifier asks for all running totals, whatever the style.
A chain's *level* is its number of terms: how hard it is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from rftkit.config import UserError
from rftkit.evals import ProbeCount
from rftkit.scenes import SPLITS, rng_for
from rftkit.tasks import Row, Task, Verdict

Demonstrations: TypeAlias = Callable[[Row], str]  # what is shown for a row; "" where there is nothing to show

LARGEST = 30  # the largest number among the words of the bundled model
MAX_TEXT = 20_000  # characters of a reply that are read: its end
SLIP = 3  # by how much a weak oracle's step is out at most
_MAX_TERMS = 9
_MAX_DRAWS = 100_000  # chains drawn before a game counts as impossible
_MAX_TRIES = 200  # errors drawn before the last step alone goes wrong


def _in_range(name: str, value: int, least: int, most: int) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not least <= value <= most:
        raise UserError(f"{name} must be a whole number from {least} to {most}, not {value!r}: correct it.")


# ---- chains ----


@dataclass(frozen=True)
class Chains:
    """Which sums are asked: fewest and most `terms`, `most` the largest term, `top` the largest running total; none is below 0.

    Raises UserError where a value is out of range.
    """

    terms: tuple[int, int] = (2, 5)
    most: int = 20
    top: int = LARGEST

    def __post_init__(self) -> None:
        if not isinstance(self.terms, tuple) or len(self.terms) != 2:
            raise UserError(f"terms must be the fewest and the most, as in (2, 5), not {self.terms!r}: correct it.")
        _in_range("The fewest terms", self.terms[0], 2, _MAX_TERMS)
        _in_range("The most terms", self.terms[1], self.terms[0], _MAX_TERMS)
        _in_range("top", self.top, 1, LARGEST)
        _in_range("most", self.most, 1, self.top)

    @property
    def levels(self) -> tuple[int, ...]:
        return tuple(range(self.terms[0], self.terms[1] + 1))


TINY = Chains()


@dataclass(frozen=True)
class Chain:
    """A sum by its signed terms, as (17, -9, 16, 4)."""

    terms: tuple[int, ...]

    @property
    def totals(self) -> tuple[int, ...]:
        """The running totals, one a term: (17, 8, 24, 28)."""
        return tuple(int(total) for total in np.cumsum(self.terms))

    @property
    def value(self) -> int:
        return sum(self.terms)

    @property
    def level(self) -> int:
        return len(self.terms)

    @property
    def text(self) -> str:
        return _signed(self.terms).removeprefix("+ ")


def split_of(chain: Chain) -> str:
    """The split a chain belongs to, by a hash of its terms in their order: 8:1:1."""
    bucket = hashlib.sha256(repr(chain.terms).encode()).digest()[0] % 10
    return {0: "test", 1: "validation"}.get(bucket, "train")


def draw(rng: np.random.Generator, game: Chains = TINY, split: str | None = None) -> Chain:
    """Draw a level, uniformly, then terms of either sign until the running totals stay in 0..game.top and the chain is in `split`.

    Raises UserError where no such chain turns up.
    """
    if split is not None and split not in SPLITS:
        raise UserError(f"There is no split {split!r}: choose one of {', '.join(SPLITS)}.")
    level = int(rng.integers(game.terms[0], game.terms[1] + 1))
    for _ in range(_MAX_DRAWS):
        terms = rng.integers(1, game.most + 1, level) * np.where(rng.random(level) < 0.5, -1, 1)
        terms[0] = abs(terms[0])
        chain = Chain(tuple(int(term) for term in terms))
        if _within(chain, game.top) and split in (None, split_of(chain)):
            return chain
    raise UserError(
        f"No chain of {level} terms in the split {split!r} turned up in {_MAX_DRAWS} draws: change the game."
    )


def _within(chain: Chain, top: int) -> bool:
    return min(chain.totals) >= 0 and max(chain.totals) <= top


def prompt(chain: Chain) -> str:
    return f"what is {chain.text} ?"


# ---- demonstrations: functions of a row, so that the same row is always shown the same ----


def totals_text(chain: Chain, totals: Sequence[int] | None = None) -> str:
    """The practised style: one step after another, each total restated. 6 (level - 1) - 1 words.

    `totals`, one a term, stand in for the true ones.
    """
    totals = totals or chain.totals
    steps = zip(totals[:-1], chain.terms[1:], totals[1:], strict=True)
    return " ; ".join(f"{before} {_signed([term])} = {after}" for before, term, after in steps)


def rewritten_text(chain: Chain) -> str:
    """Another way to go about it: the whole rest of the sum is written again after each step, so that no step needs a look back at
    the question: "17 - 9 + 16 + 4 = 8 + 16 + 4 = 24 + 4 = 28". About level squared words."""
    rests = (_signed(chain.terms[i:]) for i in range(1, chain.level + 1))
    return " = ".join(f"{total} {rest}".strip() for total, rest in zip(chain.totals, rests, strict=True))


def oracle(row: Row) -> str:
    """The demonstration of a row, right and in the oracle's own style: the practised steps with another word between them, "17 - 9 =
    8 then 8 + 16 = 24 then 24 + 4 = 28". The practised base finds it unlikely, and less so than the styles below."""
    return totals_text(row.data["chain"]).replace(" ; ", " then ")


def wordy(row: Row) -> str:
    """The same with more words: "first 17 - 9 = 8 , then 8 + 16 = 24 , then 24 + 4 = 28"."""
    return "first " + totals_text(row.data["chain"]).replace(" ; ", " , then ")


def rewritten(row: Row) -> str:
    """A right demonstration that goes about it differently (`rewritten_text`)."""
    return rewritten_text(row.data["chain"])


def practised(row: Row) -> str:
    """A right demonstration in the style that the base has practised."""
    return totals_text(row.data["chain"])


def foreign(row: Row) -> str:
    """Right totals in words that the base knows from nowhere near a sum: "start 17 , less 9 = 8 , more 16 = 24 ..."."""
    chain: Chain = row.data["chain"]
    steps = zip(chain.terms[1:], chain.totals[1:], strict=True)
    said = (f"{'less' if term < 0 else 'more'} {abs(term)} = {total}" for term, total in steps)
    return " , ".join([f"start {chain.terms[0]}", *said])


def wrong(seed: int = 0) -> Demonstrations:
    """Each step out by 1 to 3, always. (With the last one alone wrong no prefix would show it: a prefix ends before.)"""
    return weak(1.0, seed)


def weak(share: float, seed: int = 0, correct_only: bool = False) -> Demonstrations:
    """A weaker oracle's, in the practised style, each of whose steps is out by 1 to 3 with probability `share`.

    An error carries on and those of one reply go the same way, so that a share 1 - (1 - share) ** (level - 1) of the replies
    ends wrong (`wrong_share`). correct_only: rows with such a reply are shown nothing, and what is left is easier rows on
    average. Raises UserError for a share outside [0, 1].
    """
    _check_share(share)

    def shown(row: Row) -> str:
        rng, chain = rng_for(seed, "weak", row.prompt), row.data["chain"]
        slips = rng.random(chain.level - 1) < share
        return "" if correct_only and slips.any() else totals_text(chain, _slipped(rng, chain, slips))

    return shown


def wrong_share(share: float, game: Chains = TINY) -> float:
    """Share of the replies of `weak(share)` that end wrong, over the levels of a game."""
    _check_share(share)
    return float(np.mean([1 - (1 - share) ** (level - 1) for level in game.levels]))


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise UserError(f"The share of steps that go wrong must lie between 0 and 1, not {share!r}: correct it.")


def _signed(terms: Sequence[int]) -> str:
    return " ".join(f"{'-' if term < 0 else '+'} {abs(term)}" for term in terms)


def _slipped(rng: np.random.Generator, chain: Chain, slips: np.ndarray) -> tuple[int, ...]:
    """The totals, one a term, where the steps `slips` (level - 1,) are out by 1 to SLIP, all the same way, and all errors carry on.

    Totals beyond the vocabulary are drawn again; where they will not fit in, the last step alone goes wrong.
    """
    totals = np.array(chain.totals)
    for _ in range(_MAX_TRIES if slips.any() else 0):
        out = slips * rng.integers(1, SLIP + 1, len(slips)) * rng.choice((-1, 1))
        said = totals + np.concatenate([[0], out.cumsum()])
        if said.min() >= 0 and said.max() <= LARGEST:
            return tuple(int(total) for total in said)
    if slips.any():
        totals[-1] += 1 if totals[-1] < LARGEST else -1
    return tuple(int(total) for total in totals)


# ---- the verifier ----


def stated(text: str) -> tuple[int, ...]:
    """The number that follows each "=" of a reply, in order; "= - 4" says -4. An "=" without one counts for nothing."""
    numbers = re.findall(r"=\s*((?:-\s*)?[0-9]{1,9})(?![0-9])", text[-MAX_TEXT:])
    return tuple(int("".join(number.split())) for number in numbers)


def score(text: str, chain: Chain) -> Verdict:
    """Right is a reply that states every running total, in order, and nothing else behind an "=": all styles above do.

    The last number alone would be a lottery: two sums of a level share their value in one case of twenty, which is about as often
    as the base gets a long one right, and RFT would practise guessing.
    """
    said = stated(text)
    return "unparseable" if not said else "correct" if said == chain.totals[1:] else "wrong"


def right(completions: list[Any], chain: list[Chain], **_: Any) -> list[float]:
    """1 for a right reply, else 0: the reward, in the form that TRL calls."""
    return [float(score(c[0]["content"], x) == "correct") for c, x in zip(completions, chain, strict=True)]


# ---- the task ----


def task(game: Chains = TINY) -> Task:
    """Long sums as a task of text rows, named "chains". row.answer is right and in the practised style.

    row.data: "value" and "level", numbers, and "chain", the Chain.
    """

    def make(rng: np.random.Generator, split: str) -> Row:
        chain = draw(rng, game, split)
        data = {"value": chain.value, "level": chain.level, "chain": chain}
        return Row("chains", prompt(chain), totals_text(chain), key=(str(chain.value),), data=data)

    return Task("chains", make, lambda text, row: score(text, row.data["chain"]), uses_image=False)


def level_counts(texts: Sequence[str], rows: Sequence[Row]) -> dict[int, ProbeCount]:
    """Verdicts on one reply a row, by level, ascending. Raises UserError where rows and replies do not match."""
    if not rows or len(texts) != len(rows):
        raise UserError(f"{len(texts)} replies do not match {len(rows)} rows: pass one reply a row, and at least one.")
    found: dict[int, list[Verdict]] = {level: [] for level in sorted({row.data["level"] for row in rows})}
    for text, row in zip(texts, rows, strict=True):
        found[row.data["level"]].append(score(text, row.data["chain"]))
    return {
        level: ProbeCount(*(said.count(verdict) for verdict in ("correct", "wrong", "unparseable")))
        for level, said in found.items()
    }
