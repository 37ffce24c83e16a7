"""What predicts forgetting? One point a run, one number a predictor, and scores that a handful of methods can bear.

Runs of one method are no independent evidence: seeds repeat it, and its rates and checkpoints lie on one path. So seeds are averaged,
each method has the same weight in a fit whatever its number of points, intervals resample methods (a cluster bootstrap), and the
test is a method that the fit has not seen: R^2 may hang on one far method, the error of leaving a method out shows it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rftkit import runs
from rftkit.config import UserError
from rftkit.evals import Floats, Interval

By = Literal["method", "bench"]


@dataclass(frozen=True)
class Point:
    """A run, or one of its checkpoints: where it was measured, percentage points of prior accuracy lost, new-task accuracy (0 to 1), and
    the predictors by name. `where` tells apart what one method has several of, such as rates and updates."""

    bench: str
    method: str
    seed: int
    forgetting: float
    gained: float
    predictors: Mapping[str, float]
    where: str = ""


@dataclass(frozen=True)
class LeftOut:
    """Each method (or bench) predicted by a fit to the others: root mean square error in points, that of the others' mean, 1 - the
    ratio of their squares (0: no better than the mean; negative: worse), and the mean residual of each, measured minus predicted."""

    error: float
    baseline: float
    skill: float
    residuals: Mapping[str, float]

    def worst(self, n: int = 3) -> list[tuple[str, float]]:
        """The n largest residuals by name."""
        return sorted(self.residuals.items(), key=lambda item: -abs(item[1]))[:n]


@dataclass(frozen=True)
class Score:
    """How well a predictor does: R^2 and rank correlation with intervals over methods, and what leaving a method out gives."""

    predictor: str
    points: int
    methods: int
    r2: Interval
    rank: Interval
    left_out: LeftOut


# --- points -------------------------------------------------------------------------------------------------------------------


def averaged(points: Sequence[Point]) -> list[Point]:
    """Seeds of one method at one place as one point, the mean of each number; its `seed` is the number of seeds."""
    groups: dict[tuple[str, str, str], list[Point]] = {}
    for point in points:
        groups.setdefault((point.bench, point.method, point.where), []).append(point)
    return [_mean(group) for group in groups.values()]


def _mean(group: list[Point]) -> Point:
    names = [name for name in group[0].predictors if all(name in p.predictors for p in group)]
    return replace(
        group[0],
        seed=len(group),
        forgetting=float(np.mean([p.forgetting for p in group])),
        gained=float(np.mean([p.gained for p in group])),
        predictors={name: float(np.mean([p.predictors[name] for p in group])) for name in names},
    )


def at_least(points: Sequence[Point], gained: float) -> list[Point]:
    """Points that have learnt the new task to this accuracy: who learns nothing forgets nothing, and says nothing."""
    return [p for p in points if p.gained >= gained]


def save(path: Path, points: Sequence[Point]) -> None:
    """Points as JSON, six digits a number, with the versions that made them. Raises UserError if that fails."""
    plain = [six_digits(asdict(p)) for p in points]
    try:
        text = json.dumps({"versions": runs.versions(), "points": plain}, indent=1, allow_nan=False)
        runs.write_whole(path, text + "\n")
    except (OSError, ValueError) as error:
        raise UserError(
            f"The points {path} were not written ({error}): leave out what is no number, or write elsewhere."
        ) from error


def six_digits(value: Any) -> Any:
    """Every float in it to six digits: far below the Monte Carlo errors, and a third of the size."""
    if isinstance(value, dict):
        return {key: six_digits(some) for key, some in value.items()}
    if isinstance(value, list):
        return [six_digits(some) for some in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def load(path: Path) -> list[Point]:
    """What `save` wrote. Raises UserError for anything else."""
    try:
        return [Point(**point) for point in json.loads(path.read_text(encoding="utf-8"))["points"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} holds no points ({error!r}): make it again.") from error


@dataclass(frozen=True)
class _Table:
    """Predictor x, forgetting y and weight w, (n,) each, and the name of each point's cluster."""

    x: Floats
    y: Floats
    w: Floats
    names: np.ndarray


def _table(points: Sequence[Point], predictor: str, by: By = "method") -> _Table:
    """Only points that have the predictor. Raises UserError for too few, for numbers that are not finite, or all equal."""
    some = [p for p in points if predictor in p.predictors]
    names = np.array([p.bench if by == "bench" else f"{p.bench}/{p.method}" for p in some])
    if len(set(names)) < 3:
        raise UserError(
            f"{len(set(names))} of three {by}s or more have the predictor {predictor!r}: measure it for more of them."
        )
    x, y = np.array([p.predictors[predictor] for p in some], float), np.array([p.forgetting for p in some], float)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        bad = next(n for n, a, b in zip(names, x, y, strict=True) if not math.isfinite(a) or not math.isfinite(b))
        raise UserError(f"{predictor!r} or the forgetting of {bad} is no number: leave that run out, by name.")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise UserError(f"{predictor!r} or the forgetting is the same in all points: there is nothing to explain.")
    return _Table(x, y, _weights(names), names)


def _weights(names: np.ndarray) -> Floats:
    """Each cluster weighs the same, and so does each point within it; the sum is 1."""
    _, inverse, sizes = np.unique(names, return_inverse=True, return_counts=True)
    return 1 / (sizes[inverse] * len(sizes))


# --- fits ---------------------------------------------------------------------------------------------------------------------


def _fit(x: Floats, y: Floats, w: Floats, degree: int) -> Callable[[Floats], Floats]:
    """Weighted least squares by a polynomial; a lower degree where there are too few different x."""
    degree = min(degree, len(np.unique(x)) - 1)
    scale = float(np.abs(x).max()) or 1.0  # else squares of small numbers vanish beside 1
    found = np.polynomial.polynomial.polyfit(x / scale, y, degree, w=np.sqrt(w))
    return lambda new: np.asarray(np.polynomial.polynomial.polyval(new / scale, found), np.float64)


def _share(x: Floats, y: Floats, w: Floats, degree: int) -> float:
    """R^2 of the fit, NaN where y does not vary."""
    w = w / w.sum()
    total = float((w * (y - (w * y).sum()) ** 2).sum())
    return 1 - float((w * (y - _fit(x, y, w, degree)(x)) ** 2).sum()) / total if total > 0 else math.nan


def _ranks(values: Floats, w: Floats) -> Floats:
    """The weight below each value and half of the weight at it: ranks in which a method with many points takes no more room."""
    order, inverse = np.unique(values, return_inverse=True)
    at = np.bincount(inverse, w, len(order))
    return (at.cumsum() - at / 2)[inverse]


def _spearman(x: Floats, y: Floats, w: Floats) -> float:
    w = w / w.sum()
    a, b = _ranks(x, w), _ranks(y, w)
    a, b = a - (w * a).sum(), b - (w * b).sum()
    size = math.sqrt(float((w * a * a).sum() * (w * b * b).sum()))
    return float((w * a * b).sum()) / size if size > 0 else math.nan


def explained(points: Sequence[Point], predictor: str, degree: int = 1) -> float:
    """R^2: the share of the variance of forgetting that a polynomial of the predictor explains, methods weighing the same. 2509.04259
    fits degree 2. Not less than 0: it is fitted."""
    t = _table(points, predictor)
    return _share(t.x, t.y, t.w, degree)


def rank_correlation(points: Sequence[Point], predictor: str) -> float:
    """Spearman's, methods weighing the same: needs no unit and no form."""
    t = _table(points, predictor)
    return _spearman(t.x, t.y, t.w)


def _over_methods(
    t: _Table, of: Callable[[Floats, Floats, Floats], float], level: float, resamples: int, seed: int
) -> Interval:
    """Percentile bootstrap that draws methods, all points of a method together; draws of fewer than three different ones are drawn anew."""
    rng, names = np.random.default_rng(seed), np.unique(t.names)
    members = {name: np.flatnonzero(t.names == name) for name in names}
    found: list[float] = []
    while len(found) < resamples:
        drawn = rng.choice(names, len(names))
        if len(set(drawn)) < 3:
            continue
        index = np.concatenate([members[name] for name in drawn])
        value = of(t.x[index], t.y[index], t.w[index])
        found.append(value if math.isfinite(value) else 0.0)  # a draw without variance explains nothing
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(of(t.x, t.y, t.w), float(low), float(high))


def left_out(points: Sequence[Point], predictor: str, degree: int = 1, by: By = "method") -> LeftOut:
    """Predict each method by a fit to the others (or each bench by the other benches), beside the others' mean.

    What lies outside the others' range is read off at its end: a parabola says nothing there.
    """
    t = _table(points, predictor, by)
    residuals, squares, plain = {}, [], []
    for name in np.unique(t.names):
        out = t.names == name
        x, y, w = t.x[~out], t.y[~out], t.w[~out]
        gap = t.y[out] - _fit(x, y, w, degree)(t.x[out].clip(x.min(), x.max()))
        residuals[str(name)] = float(gap.mean())
        squares.append(float((gap**2).mean()))
        plain.append(float(((t.y[out] - (w * y).sum() / w.sum()) ** 2).mean()))
    error, baseline = math.sqrt(np.mean(squares)), math.sqrt(np.mean(plain))
    return LeftOut(error, baseline, 1 - (error / baseline) ** 2 if baseline else math.nan, residuals)


def score(
    points: Sequence[Point], predictor: str, degree: int = 1, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Score:
    """All of it for one predictor, seeds averaged first. The interval of R^2 leans high: few methods are easily fitted."""
    some = averaged(points)
    t = _table(some, predictor)
    return Score(
        predictor, len(t.x), len(np.unique(t.names)),
        _over_methods(t, lambda x, y, w: _share(x, y, w, degree), level, resamples, seed),
        _over_methods(t, _spearman, level, resamples, seed),
        left_out(some, predictor, degree),
    )  # fmt: skip


def ranked(points: Sequence[Point], predictors: Sequence[str], degree: int = 1, **how: int) -> list[Score]:
    """The scores of all predictors over the points that have every one of them, the best first by what leaving a method out gives."""
    both = [p for p in points if all(name in p.predictors for name in predictors)]
    return sorted((score(both, name, degree, **how) for name in predictors), key=lambda s: -s.left_out.skill)
