"""What an evaluation found and how sure it is: verdict counts, intervals, and where a curve first reaches a target.

Two sources of chance need two intervals. Over the held-out *examples* of one run: the bootstrap, which needs many.
Over *seeds*: Student's t on one number a seed, since resampling three numbers gives intervals that are far too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rftkit.config import UserError
from rftkit.tasks import Row, Task

Floats = NDArray[np.float64]


# --- counting ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProbeCount:
    """Verdicts on one probe. *Unparseable* is apart from *wrong*: a lost format is no lost skill."""

    correct: int
    wrong: int
    unparseable: int

    def __post_init__(self) -> None:
        if min(self.correct, self.wrong, self.unparseable) < 0:
            raise UserError(f"A count cannot be negative: {self}.")

    @property
    def n(self) -> int:
        return self.correct + self.wrong + self.unparseable

    @property
    def accuracy(self) -> float:
        """Share of correct answers among all, the unparseable included. Raises UserError when nothing was counted."""
        if self.n == 0:
            raise UserError("No example was evaluated, so there is no accuracy: evaluate at least one row.")
        return self.correct / self.n

    def outcomes(self) -> Floats:
        """One 1 or 0 an example, shape (n,): what `bootstrap_interval` takes. The order of the examples is lost."""
        return np.repeat([1.0, 0.0], [self.correct, self.wrong + self.unparseable])


def evaluate(generate_fn: Callable[[list[Row]], list[str]], task: Task, rows: list[Row]) -> ProbeCount:
    """Generate one answer a row and count the verdicts.

    `generate_fn(rows)` returns one text a row, in order. Raises UserError if there are no rows or a text is missing.
    """
    if not rows:
        raise UserError(f"There are no {task.name} rows to evaluate: pass at least one.")
    texts = generate_fn(rows)
    if len(texts) != len(rows):
        raise UserError(f"{len(rows)} rows got {len(texts)} answers: generate_fn must return one text a row.")
    verdicts = [task.score(text, row) for text, row in zip(texts, rows, strict=True)]
    return ProbeCount(*(verdicts.count(verdict) for verdict in ("correct", "wrong", "unparseable")))


def prior_mean(prior: Mapping[str, ProbeCount]) -> float:
    """Mean accuracy of the probes, each probe with the same weight whatever its number of rows."""
    if not prior:
        raise UserError("There are no probes to average: evaluate at least one.")
    return math.fsum(count.accuracy for count in prior.values()) / len(prior)


# --- intervals --------------------------------------------------------------------------------------------------------


class Interval(NamedTuple):
    """A mean with its two-sided interval; unpacks as (mean, lo, hi)."""

    mean: float
    lo: float
    hi: float


def bootstrap_interval(
    values: Sequence[float] | Floats, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Percentile bootstrap of the mean of `values`, shape (n,): for the examples of one run.

    Do not use it over a handful of seeds (see `t_interval`), nor on outcomes that are all equal: it then has no width.
    """
    x = _finite(values)
    _check_level(level)
    if resamples < 100:
        raise UserError(f"{resamples} resamples are too few for an interval: use at least 100.")
    rng = np.random.default_rng(seed)
    means = np.array([x[rng.integers(len(x), size=len(x))].mean() for _ in range(resamples)])
    lo, hi = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(x.mean()), float(lo), float(hi))


def prior_interval(
    prior: Mapping[str, ProbeCount], level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Bootstrap of `prior_mean` over the examples of one run; each probe is resampled within itself.

    A probe is a list of zeros and ones, so resampling its rows is drawing from a binomial at its accuracy. The draws
    have shape (probes, resamples).
    """
    mean = prior_mean(prior)
    _check_level(level)
    rng = np.random.default_rng(seed)
    draws = np.array([rng.binomial(c.n, c.accuracy, size=resamples) / c.n for c in prior.values()])
    lo, hi = np.quantile(draws.mean(axis=0), [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(lo), float(hi))


def t_interval(values: Sequence[float] | Floats, level: float = 0.95) -> Interval:
    """Student's t interval of the mean of one value a seed, shape (n,): mean +- t * s / sqrt(n), s with n - 1.

    One value has no interval: lo and hi are then NaN. Three seeds have t = 4.30 at 0.95, so wide is honest.
    """
    x = _finite(values)
    _check_level(level)
    mean = float(x.mean())
    if len(x) == 1:
        return Interval(mean, math.nan, math.nan)
    half = t_quantile((1 + level) / 2, len(x) - 1) * float(x.std(ddof=1)) / math.sqrt(len(x))
    return Interval(mean, mean - half, mean + half)


def paired_interval(a: Sequence[float] | Floats, b: Sequence[float] | Floats, level: float = 0.95) -> Interval:
    """Student's t interval of the mean of a - b; a[i] and b[i] share a seed, so what it did to both cancels."""
    x, y = _finite(a), _finite(b)
    if len(x) != len(y):
        raise UserError(f"{len(x)} values cannot be paired with {len(y)}: pass one of each a seed.")
    return t_interval(x - y, level)


def correlation(x: Sequence[float] | Floats, y: Sequence[float] | Floats, level: float = 0.95) -> Interval:
    """Pearson's r of the pairs (x[i], y[i]) with Fisher's z interval, which needs four pairs or more.

    Raises UserError for fewer, or where one side does not vary. The pairs must be independent: runs of one arm that differ in
    the seed alone are nearly one point, so average them first.
    """
    a, b = _finite(x), _finite(y)
    if len(a) != len(b) or len(a) < 4:
        raise UserError(f"{len(a)} and {len(b)} values have no correlation interval: pass four pairs or more.")
    if a.std() == 0 or b.std() == 0:
        raise UserError("A side that does not vary correlates with nothing: leave it out.")
    _check_level(level)
    r = float(np.clip(np.corrcoef(a, b)[0, 1], -1, 1))
    z = math.atanh(min(max(r, -1 + 1e-12), 1 - 1e-12))
    half = NormalDist().inv_cdf((1 + level) / 2) / math.sqrt(len(a) - 3)
    return Interval(r, math.tanh(z - half), math.tanh(z + half))


def t_quantile(p: float, df: int) -> float:
    """The value that Student's t with `df` degrees of freedom stays below with probability p, 0.5 <= p < 1."""
    if not 0.5 <= p < 1 or df < 1:
        raise UserError(f"t_quantile needs 0.5 <= p < 1 and df >= 1, not p = {p}, df = {df}.")
    low, high = 0.0, math.pi / 2  # the angle atan(t / sqrt(df)), bounded where t is not
    for _ in range(60):  # halvings: more than the bits of a float
        middle = (low + high) / 2
        low, high = (middle, high) if 0.5 + _t_area(middle, df) / 2 < p else (low, middle)
    return math.tan((low + high) / 2) * math.sqrt(df)


def _t_area(angle: float, df: int) -> float:
    """P(|T| < sqrt(df) * tan(angle)), finite sums: Abramowitz and Stegun 26.7.3 (odd df) and 26.7.4 (even df)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = df % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(1 + odd, df, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


# --- pass@k -----------------------------------------------------------------------------------------------------------


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that k of a problem's n replies, drawn without replacement, hold a right one, if c of the n are right.

    1 - C(n-c, k) / C(n, k): unbiased for the chance that k fresh replies hold one, which 1 - (1 - c/n)^k is not
    (Chen et al. 2021, 2107.03374, Eq. 1). A product of min(c, k) factors in logarithms: no binomial is ever formed.
    """
    for name, value, least, most in (("n", n, 1, math.inf), ("c", c, 0, n), ("k", k, 1, n)):
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or not least <= value <= most:
            bound = f"of {least} to {most:g}" if most < math.inf else f"of at least {least}"
            raise UserError(f"pass@k needs a whole number {bound} as {name}, not {value!r}: correct it.")
    n, c, k = int(n), int(c), int(k)
    if n - c < k:
        return 1.0
    few, many = sorted((c, k))  # C(n-c, k) / C(n, k) is the same for c and k swapped
    return abs(math.expm1(math.fsum(math.log1p(-many / (n - i)) for i in range(few))))


def pass_at_k_interval(
    counts: Sequence[int], n: int, k: int, seed: int = 0, level: float = 0.95, resamples: int = 2000
) -> Interval:
    """Mean pass@k of problems with `counts` (problems,) right replies among n each, and its bootstrap over the problems.

    The few problems of a hard set decide its width: with 30, one problem more or less is 3.3 points.
    """
    return bootstrap_interval([pass_at_k(n, c, k) for c in counts], level, resamples, seed)


# --- curves -----------------------------------------------------------------------------------------------------------


def crossing(steps: Sequence[float] | Floats, values: Sequence[float] | Floats, target: float) -> float | None:
    """First step at which the curve (steps, values) reaches `target`, linear between evaluations; None if never.

    On a noisy curve the first crossing is early on average, for every method alike.
    """
    x, y = _curve(steps, values)
    reached = np.flatnonzero(y >= target)
    if len(reached) == 0:
        return None
    i = int(reached[0])
    if i == 0:
        return float(x[0])
    return float(x[i - 1] + (target - y[i - 1]) / (y[i] - y[i - 1]) * (x[i] - x[i - 1]))


def value_at(steps: Sequence[float] | Floats, values: Sequence[float] | Floats, step: float) -> float:
    """The curve's value at `step`, linear between evaluations. Raises UserError outside them: we do not extrapolate."""
    x, y = _curve(steps, values)
    if not x[0] <= step <= x[-1]:
        raise UserError(f"Step {step} is outside the evaluated steps {x[0]:g} to {x[-1]:g}: choose one inside.")
    return float(np.interp(step, x, y))


def mean_curve(curves: Sequence[tuple[Sequence[float] | Floats, Sequence[float] | Floats]]) -> tuple[Floats, Floats]:
    """Mean over seeds of curves (steps, values), at every step that any of them evaluated and all of them span.

    Where a curve was not evaluated at a step it is read off its straight line. Returns (steps, means), shape (k,) each.
    """
    pairs = [_curve(*curve) for curve in curves]
    if not pairs:
        raise UserError("There are no curves to average: pass at least one.")
    start, end = max(x[0] for x, _ in pairs), min(x[-1] for x, _ in pairs)
    if start > end:
        raise UserError("The curves share no step, so they have no mean: evaluate them at the same steps.")
    every = np.unique(np.concatenate([x for x, _ in pairs]))
    steps = every[(every >= start) & (every <= end)]
    return steps, np.mean([np.interp(steps, x, y) for x, y in pairs], axis=0)


def _curve(steps: Sequence[float] | Floats, values: Sequence[float] | Floats) -> tuple[Floats, Floats]:
    x, y = _finite(steps), _finite(values)
    if len(x) != len(y):
        raise UserError(f"{len(x)} steps do not match {len(y)} values: pass one value a step.")
    if (np.diff(x) <= 0).any():
        raise UserError("The steps of a curve must increase: sort the evaluations and drop repeated ones.")
    return x, y


def _finite(values: Sequence[float] | Floats) -> Floats:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0:
        raise UserError(f"A flat list of at least one value is needed, not one of shape {x.shape}.")
    if not np.isfinite(x).all():
        raise UserError("A value is NaN or infinite: leave that run out, by name, before summing up.")
    return x


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise UserError(f"The level {level} must lie between 0 and 1, as in 0.95.")
