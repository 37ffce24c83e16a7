"""Rules of judgement: a claim is cut into parts, and a part says that a number lies above (or below) a limit.

A part is "yes" if the whole 95 % interval (Student's t over seeds, differences paired by seed) lies on the claimed side, "no" if it lies
wholly on the other side; where a part asks for more than a control gives, also if it lies wholly under a small number; else, and on fewer
than three seeds, it is "open". These are the rules that the notebooks state before they look.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from rftkit import evals
from rftkit.evals import Interval

Verdict = Literal["yes", "no", "open"]
Standing = Literal["holds", "in part", "does not hold", "open", "not tested"]
Side = Literal["above", "below", "within"]
WORDS = ("reproduced", "reproduced in part", "contradicted", "not at this scale", "open", "not tested")

SEEDS = 3  # no part is decided on fewer


@dataclass(frozen=True)
class Values:
    """One number a seed, the names of the runs behind each, and the runs that have none, as where the matched accuracy was missed."""

    of: Mapping[int, float]
    runs: Mapping[int, tuple[str, ...]]
    missed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """One part of a claim: what it says, its values by seed with their mean and interval (NaN where there is none), the claimed side
    of the limit, the limit for a "no" where that is another one, and the verdict. `told` puts the numbers into words."""

    says: str
    values: Values
    interval: Interval
    limit: float
    side: Side
    contrary: float | None
    verdict: Verdict
    told: str

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted(self.values.of))

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of the runs that the values came from."""
        return tuple(dict.fromkeys(name for seed in self.seeds for name in self.values.runs[seed]))

    @property
    def opposed(self) -> bool:
        """Does the whole interval lie on the other side of the limit itself? A "no" may also mean: too little to count."""
        low, high = self.interval.lo, self.interval.hi
        other = {
            "above": high < self.limit,
            "below": low > self.limit,
            "within": low > self.limit or high < -self.limit,
        }
        return self.verdict == "no" and other[self.side]

    @property
    def asks(self) -> str:
        """What it says, with the limit for a "no" where that is another one."""
        side = "below" if self.side == "above" else "above"
        sense = "" if self.contrary is None or len(self.values.of) < SEEDS else f" (no if all {side} {self.contrary:g})"
        return self.says + sense

    @property
    def text(self) -> str:
        return f"{self.asks}: {self.told}, {self.verdict}"


def combine(how: Callable[..., float], *values: Values) -> Values:
    """how(numbers of one seed) over the seeds that all have."""
    seeds = sorted(set.intersection(*(set(v.of) for v in values))) if values else []
    found = {seed: float(how(*(v.of[seed] for v in values))) for seed in seeds}
    kept = {seed: value for seed, value in found.items() if math.isfinite(value)}
    names = {seed: tuple(dict.fromkeys(name for v in values for name in v.runs[seed])) for seed in kept}
    return Values(kept, names, tuple(dict.fromkeys(name for v in values for name in v.missed)))


def part(
    says: str, values: Values, limit: float = 0.0, sign: int = 1, contrary: float | None = None, form: str = "+.1f", log: bool = False
) -> Part:  # fmt: skip
    """Is the number above the limit (`sign` 1) or below it (-1)? With `log` the interval is that of the logarithms."""
    interval = _interval(values, log)
    other = limit if contrary is None else contrary
    low, high = interval.lo, interval.hi
    yes, no = (low > limit, high < other) if sign > 0 else (high < limit, low > other)
    return _made(says, values, interval, limit, _side(sign), contrary, _verdict(values, yes, no), form)


def within(says: str, values: Values, limit: float, form: str = "+.1f") -> Part:
    """Is the number nearer to 0 than the limit?"""
    interval = _interval(values)
    yes = -limit < interval.lo and interval.hi < limit
    no = interval.lo > limit or interval.hi < -limit
    return _made(says, values, interval, limit, "within", None, _verdict(values, yes, no), form)


def every(says: str, values: Values, limit: float, sign: int = 1, form: str = ".0f", log: bool = False) -> Part:
    """Does each single run reach the limit, from below (1) or from above (-1)? "no" if one does not: no interval is asked."""
    found = sorted(values.of.values())
    reached = all(sign * (value - limit) >= 0 for value in found)
    verdict = _verdict(values, reached, not reached)
    made = _made(says, values, _interval(values, log), limit, _side(sign), None, verdict, form)
    return made if len(found) < SEEDS else replace(made, told=f"{found[0]:{form}} to {found[-1]:{form}}")


def before(says: str, first: Values, second: Values, form: str = ".0f") -> Part:
    """Does the slowest of the first runs come before the fastest of the second? Its values are the differences, paired by seed; a run
    that never arrives is the slowest of all."""
    both = combine(lambda a, b: b - a, first, second)
    early, late = sorted(first.of.values()) or [math.nan], sorted(second.of.values()) or [math.nan]
    last_early, last_late = (math.inf if v.missed else some[-1] for v, some in ((first, early), (second, late)))
    verdict = _verdict(both, last_early < late[0], early[0] > last_late)
    made = _made(says, both, _interval(both), 0.0, "above", None, verdict, form)
    if len(both.of) < SEEDS:
        return made
    return replace(made, told=f"{early[0]:{form}} to {early[-1]:{form}} against {late[0]:{form}} to {late[-1]:{form}}")


def _side(sign: int) -> Side:
    return "above" if sign > 0 else "below"


def _interval(values: Values, log: bool = False) -> Interval:
    """NaN where there is no value. Rounded far below what is printed: no verdict, and no sign of a zero, may hang by the last bits."""
    found = [values.of[seed] for seed in sorted(values.of)]
    if not found:
        return Interval(math.nan, math.nan, math.nan)
    made = np.exp(evals.t_interval(np.log(found))).tolist() if log else evals.t_interval(found)
    return Interval(*(round(x, 9) + 0.0 for x in made))


def _verdict(values: Values, yes: bool, no: bool) -> Verdict:
    return "open" if len(values.of) < SEEDS or yes == no else "yes" if yes else "no"


def _made(
    says: str, values: Values, interval: Interval, limit: float, side: Side, contrary: float | None, verdict: Verdict, form: str
) -> Part:  # fmt: skip
    if len(values.of) < SEEDS:
        told = ", ".join(f"{values.of[seed]:{form}}" for seed in sorted(values.of)) or "no value"
        told += "; fewer than three seeds"
    else:
        told = f"{interval.mean:{form}} ({interval.lo:{form}} to {interval.hi:{form}})"
    return Part(says, values, interval, limit, side, contrary, verdict, told)


def standing(parts: Sequence[Part]) -> Standing:
    """ "holds" if every part is yes, "in part" if some are yes and some no, "does not hold" if some are no and none is yes, else "open";
    "not tested" if no part has a value."""
    if not any(p.values.of for p in parts):
        return "not tested"
    found = {p.verdict for p in parts}
    if found == {"yes"}:
        return "holds"
    return "open" if "no" not in found else "in part" if "yes" in found else "does not hold"


def word(parts: Sequence[Part]) -> str:
    """The ledger's word for the standing: a claim that does not hold is *contradicted* if a part's whole interval lies on the other side
    of its limit, else *not at this scale*."""
    if (how := standing(parts)) == "does not hold":
        return "contradicted" if any(p.opposed for p in parts) else "not at this scale"
    return {"holds": "reproduced", "in part": "reproduced in part"}.get(how, how)


def decisive(parts: Sequence[Part]) -> list[Part]:
    """The parts that decide: those that are no, or else open, or else all."""
    order: tuple[Verdict, ...] = ("no", "open", "yes")
    worst = min((order.index(p.verdict) for p in parts), default=0)
    return [p for p in parts if p.verdict == order[worst]]
