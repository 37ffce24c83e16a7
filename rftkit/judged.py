"""What became of each claim, computed: one function a claim takes run records and returns its parts (see `verdicts`).

The parts are those that the notebooks state before they look, with the same limits. Nothing here reads a file.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from rftkit import arms as course
from rftkit import blends, continual, evals, fisher, parity, predict, risks, runs, spectra, two_stage
from rftkit.config import UserError
from rftkit.predict import Point
from rftkit.runs import RunRecord
from rftkit.two_stage import ID, OOD
from rftkit.verdicts import SEEDS, Part, Values, before, combine, every, part, within

Arms = Mapping[str, Mapping[int, RunRecord]]  # method -> seed -> run
Study = dict[str, Any]  # as two_stage.load_study returns it
Reading = tuple[
    Literal["T", "T-1"], Literal["all", "after_learning"]
]  # of FM: its normaliser, and where the peak is sought

SMALL = 2.0  # points that count as none
MUCH = 5.0  # points: the line between little and much
BREAKS = 10.0  # points: a run that lost more was broken (notebook 04)
SPAN = 3.0  # a kernel bound that stays within this factor has settled (notebook 03)
SUMS_TARGET, SUMS_LATER = course.SUMS_TARGET, 0.6  # accuracies at which forgetting is compared in notebook 06
WELL, ALIKE = 0.8, 0.1  # of R^2 in notebook 08: explains forgetting well; explains as much
NEAR_ORACLE = 3.0  # points (notebook 08)


# --- what claims are judged by ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """Runs, studies of weights (two_stage.study), the accuracy on the jigsaw at which arms are compared, and how FM is read; points of
    ParityMNIST with their bases (parity.sweep), and the parity accuracy at which its arms are compared; risks of updates by seed."""

    arms: Arms
    studies: Sequence[Study] = ()
    target: float = course.TARGET
    reading: Reading = ("T", "all")
    points: Sequence[Point] = ()
    goal: float = parity.TARGET
    risks: Mapping[int, risks.Study] = field(default_factory=dict)


def arms_of(records: Sequence[RunRecord]) -> dict[str, dict[int, RunRecord]]:
    """The finished runs by method and seed; those of notebook 06 from the practised base on, whole ones only.

    Raises UserError if presets are mixed or a seed comes twice.
    """
    found: dict[str, dict[int, RunRecord]] = {}
    if len(presets := {r.preset for r in records}) > 1:
        raise UserError(f"Runs of the presets {', '.join(sorted(presets))} share no verdict: judge those of one.")
    for record in (r for r in records if r.status == "done" and r.evals()):
        if record.method.startswith("sums_"):
            record = blends.from_base(record)
            if not record.evals() or record.evals()[-1]["step"] != blends.TINY.steps:
                continue
        if record.seed in found.setdefault(record.method, {}):
            raise UserError(
                f"Seed {record.seed} of {record.method!r} comes twice: keep one run of each, see prefer_live."
            )
        found[record.method][record.seed] = record
    return found


Measure = Callable[[RunRecord], float | None]


def each(given: Given, method: str, of: Measure) -> Values:
    """of(run) of each seed of an arm. Raises UserError for a run that does not hold what is asked for."""
    found, missed = {}, []
    for seed, record in given.arms.get(method, {}).items():
        try:
            value = of(record)
        except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
            raise UserError(f"Run {record.name!r} lacks what it is judged by ({error!r}): make it again.") from error
        if value is None or not math.isfinite(value):
            missed.append(record.name)
        else:
            found[seed] = float(value)
    return Values(found, {seed: (given.arms[method][seed].name,) for seed in found}, tuple(missed))


def minus(given: Given, a: str, b: str, of: Measure) -> Values:
    """of(run of `a`) minus of(run of `b`), paired by seed."""
    return combine(lambda x, y: x - y, each(given, a, of), each(given, b, of))


def drop(target: float) -> Measure:
    """Points of the prior lost where new accuracy first reaches the target."""

    def lost(record: RunRecord) -> float | None:
        found = runs.at_matched(record, target)
        return found["drop"] if found else None

    return lost


def arrival(target: float) -> Measure:
    """The update at which new accuracy first reaches the target."""

    def step(record: RunRecord) -> float | None:
        found = runs.at_matched(record, target)
        return found["step"] if found else None

    return step


# --- 02, SFT and RFT (2506.23508) -----------------------------------------------------------------------------------------------


def p1_c2(given: Given) -> list[Part]:
    at_most = each(given, "rft", lambda r: 100 * float(runs.curve(r, "new_exact")[1].max()))
    return [
        part(f"solved before training, %, below {MUCH:g}", each(given, "rft", lambda r: 100 * r.evals()[0]["new_exact"]), MUCH, -1, form=".1f"),
        every(f"solved at best, %, each run at least {100 * given.target:g}", at_most, 100 * given.target),
    ]  # fmt: skip


def p1_c3(given: Given) -> list[Part]:
    first, second = (each(given, method, arrival(given.target)) for method in ("sft", "rft"))
    return [before(f"updates until {given.target:.0%}, all of SFT's before all of RFT's", first, second)]


def p1_c4(given: Given) -> list[Part]:
    lost = each(given, "sft", drop(given.target))
    return [part(f"points lost by SFT at {given.target:.0%}, above {MUCH:g}", lost, MUCH)]


def p1_c5(given: Given) -> list[Part]:
    lost = drop(given.target)
    return [
        part(f"points lost by RFT at {given.target:.0%}, below {MUCH:g}", each(given, "rft", lost), MUCH, -1),
        part("points lost, SFT minus RFT", minus(given, "sft", "rft", lost)),
    ]


# --- 03, learning dynamics --------------------------------------------------------------------------------------------------------

SOURCES = {"sft": "answers", "sft_foreign": "re-ordered", "sft_far": "foreign", "sft_rollouts": "rollouts"}
ORDER = (("sft", "sft_foreign"), ("sft_foreign", "sft_rollouts"))
MIDDLE = range(16, 37)  # updates that are called the middle of training


def _dynamics(record: RunRecord) -> list[dict[str, Any]]:
    return [row for row in record.metrics if row["kind"] == "dynamics"]


def kernel(record: RunRecord, when: Callable[[int], bool], key: str = "bound") -> float | None:
    """LBK, or its numerator ("moved"): geometric mean over probes and over the evaluations whose update `when` picks; None where it was
    not measured, as on a GPU."""
    rows = [list(row[key].values()) for row in _dynamics(record) if when(row["step"])]
    logs = [np.log(some).mean() for some in rows if None not in some]
    return float(np.exp(np.mean(logs))) if logs else None


def span(record: RunRecord, when: Callable[[int], bool]) -> float | None:
    """Largest LBK over smallest of the evaluations whose update `when` picks; None for fewer than three."""
    steps = [row["step"] for row in _dynamics(record) if when(row["step"])]
    found = [kernel(record, functools.partial(operator.eq, x)) or math.nan for x in steps]
    return max(found) / min(found) if len(found) > 2 else None


def spread(record: RunRecord) -> float | None:
    """`span` from update 12 until the residual first falls below 1: later there is little left to fit."""
    rows = [row for row in _dynamics(record) if row["step"] >= 12]
    late = {row["step"] for row in itertools.takewhile(lambda row: row["residual"] >= 1, rows)}
    return span(record, late.__contains__)


def quotient(given: Given, a: str, b: str, when: Callable[[int], bool], key: str = "bound") -> Part:
    """Of two sources' kernels, seed by seed: is it above 1?"""
    of = (each(given, method, lambda r: kernel(r, when, key)) for method in (a, b))
    says = f"{'LBK' if key == 'bound' else 'numerator'} of {SOURCES[a]} over that of {SOURCES[b]}, above 1"
    return part(says, combine(operator.truediv, *of), 1.0, form=".2g", log=True)


def _quotients(given: Given, when: Callable[[int], bool]) -> list[Part]:
    return [quotient(given, a, b, when) for a, b in ORDER]


def p1_c8_start(given: Given) -> list[Part]:
    return _quotients(given, lambda step: step == 0)


def p1_c8_middle(given: Given) -> list[Part]:
    return _quotients(given, lambda step: step in MIDDLE)


def p1_c8_settles(given: Given) -> list[Part]:
    return [
        every(f"largest LBK over smallest, update 12 to residual below 1, {name}, no run over {SPAN:g}", each(given, method, spread), SPAN, -1, form=",.1f",
            log=True)
        for method, name in SOURCES.items()
    ]  # fmt: skip


def p1_c9_order(given: Given) -> list[Part]:
    def perplexity(record: RunRecord) -> float | None:
        found = course.predictors(record)
        return found["perplexity"] if found else None

    own, near, far = (each(given, method, perplexity) for method in ("sft_rollouts", "sft_foreign", "sft_far"))
    ratio = combine(lambda x, *others: x / min(others), own, near, far)
    return [
        every(
            "base perplexity of rollouts over the lower of other reasoning's, each seed below 1",
            ratio,
            1.0,
            -1,
            form=".2g",
            log=True,
        )
    ]


# --- 04, data or algorithm -------------------------------------------------------------------------------------------------------

HIGHEST = f"x{max(course.RATES):g}"


def p1_c6(given: Given) -> list[Part]:
    lost = drop(given.target)
    sft, rollouts, rft = (each(given, method, lost) for method in ("sft", "sft_rollouts", "rft"))
    return [
        part("answer-only minus rollouts", minus(given, "sft", "sft_rollouts", lost)),
        part("rollouts minus the middle of answer-only and RFT", combine(lambda a, b, c: b - (a + c) / 2, sft, rollouts, rft), sign=-1),
        part("updates, rollouts minus RFT", minus(given, "sft_rollouts", "rft", arrival(given.target)), sign=-1),
    ]  # fmt: skip


def _reasoning(given: Given, method: str) -> list[Part]:
    lost, name = drop(given.target), SOURCES[method]
    return [
        part(f"answer-only minus {name}", minus(given, "sft", method, lost)),
        part(f"{name} minus rollouts", minus(given, method, "sft_rollouts", lost)),
    ]


def p1_c7_near(given: Given) -> list[Part]:
    return _reasoning(given, "sft_foreign")


def p1_c7_far(given: Given) -> list[Part]:
    return _reasoning(given, "sft_far")


def p1_c11(given: Given) -> list[Part]:
    return [part(f"early minus RFT, below {MUCH:g}", minus(given, "sft_early", "rft", drop(given.target)), MUCH, -1)]


def p1_c12(given: Given) -> list[Part]:
    lost, rollouts = drop(given.target), f"sft_rollouts_{HIGHEST}"
    return [
        part("highest rate, answer-only minus rollouts", minus(given, f"sft_{HIGHEST}", rollouts, lost)),
        part(f"rollouts at the highest rate, below {BREAKS:g}", each(given, rollouts, lost), BREAKS, -1),
    ]


def since_start(record: RunRecord) -> float:
    """Points of the prior lost at the end since the update at which the run went on from another."""
    return runs.drop_at(record, _last(record)) - runs.drop_at(record, record.config["after"]["steps"])


def once(given: Given) -> list[Part]:
    return [
        part(f"once, lost since its start, above {MUCH:g}", each(given, "self_once", since_start), MUCH),
        part("once minus fresh", minus(given, "self_once", "self_fresh", since_start)),
    ]


def gap(given: Given) -> list[Part]:
    return [part("at RFT's rate, answer-only minus RFT", minus(given, "sft_rft_lr", "rft", drop(given.target)))]


def data(given: Given) -> list[Part]:
    return [
        part(
            "at RFT's rate, answer-only minus rollouts",
            minus(given, "sft_rft_lr", "sft_rollouts_x0.1", drop(given.target)),
        )
    ]


# --- 05, SFT, RFT and singular vectors (2509.12235) -------------------------------------------------------------------------------


def _solved(record: RunRecord, step: int, cell: str = OOD) -> float:
    return 100 * two_stage.at(record, step, cell)


def _last(record: RunRecord) -> int:
    return record.evals()[-1]["step"]


def _at_peak(record: RunRecord, cell: str = OOD) -> float:
    return _solved(record, two_stage.peak(record), cell)


def _at_end(record: RunRecord, cell: str = OOD) -> float:
    return _solved(record, _last(record), cell)


def h1(given: Given) -> list[Part]:
    def on(of: Measure) -> Values:
        return each(given, "points_sft", of)

    return [
        part("peak minus base", on(lambda r: _at_peak(r) - _solved(r, 0))),
        part("peak minus end", on(lambda r: _at_peak(r) - _at_end(r))),
        part("ID, end minus peak", on(lambda r: _at_end(r, ID) - _at_peak(r, ID))),
    ]


def h2(given: Given) -> list[Part]:
    def below(cell: str) -> Values:
        return each(given, "points_sft", lambda r: _at_peak(r) - _solved(r, two_stage.lowest_loss(r, cell)))

    return [
        part(f"peak minus checkpoint of lowest {what} loss", below(cell), contrary=SMALL)
        for what, cell in (("OOD", OOD), ("ID", ID))
    ]


def _start(method: str) -> int:
    return int(method.rsplit("_", 1)[1])


def gain(record: RunRecord) -> float:
    """Points of OOD hands that RFT won since its start."""
    return _at_end(record) - _solved(record, _start(record.method))  # its rows begin with SFT's, up to the start


def signal(record: RunRecord, first: int = 10) -> float | None:
    """Percent of groups, in the first updates of RFT, whose rewards differ: the others teach nothing."""
    start = _start(record.method)
    rows = [
        row
        for row in record.metrics
        if row["kind"] == "train" and row["step"] > start and "frac_reward_zero_std" in row
    ]
    return 100 * (1 - statistics.mean(row["frac_reward_zero_std"] for row in rows[:first])) if rows else None


def h3(given: Given) -> list[Part]:
    first = given.arms.get("points_sft", {})
    method = f"points_rft_{max((_last(r) for r in first.values()), default=0)}"
    peak = each(given, "points_sft", _at_peak)
    return [
        part("RFT from the end minus SFT's end", combine(lambda gained, _: gained, each(given, method, gain), peak)),
        part(f"RFT from the end minus SFT's peak, below {SMALL:g}", combine(lambda x, y: x - y, each(given, method, _at_end), peak), SMALL, -1),
    ]  # fmt: skip


def _starts(given: Given) -> list[str]:
    """The arms of RFT, by the update of SFT from which they begin."""
    return sorted((m for m in given.arms if re.fullmatch(r"points_rft_\d+", m) and given.arms[m]), key=_start)


def h4(given: Given) -> list[Part]:
    gains = [each(given, method, gain) for method in _starts(given)]
    gains = gains if len(gains) > 2 else []  # nothing lies between two starts
    return [
        part("mean gain of inner starts", combine(lambda *x: statistics.mean(x[1:-1]), *gains)),
        part("that minus the mean gain of the outermost two", combine(lambda *x: statistics.mean(x[1:-1]) - (x[0] + x[-1]) / 2, *gains)),
    ]  # fmt: skip


def h5(given: Given) -> list[Part]:
    starts = _starts(given) if len(_starts(given)) > 2 else []
    both = [each(given, method, of) for of in (gain, signal) for method in starts]

    def along(*x: float) -> float:
        gained, taught = x[: len(starts)], x[len(starts) :]
        return float(np.corrcoef(gained, taught)[0, 1]) if np.std(gained) > 0 and np.std(taught) > 0 else math.nan

    return [part(f"correlation of gain and signal over {len(starts)} starts", combine(along, *both), form="+.2f")]


def _compared(given: Given, name: str, of: Callable[[spectra.MatrixReport], float]) -> Values:
    """The median over matrices, one number a study."""
    some = {s["seed"]: [r for r in s["spectra"].get(name, {}).values() if r] for s in given.studies}
    found = {seed: statistics.median(of(r) for r in reports) for seed, reports in some.items() if reports}
    return Values(found, {seed: (f"weights-s{seed}",) for seed in found})


def ways(given: Given) -> list[tuple[str, str]]:
    """(comparison, whose it is); SFT's is from its base where its peak is its end."""
    enough = sum("peak to end" in s["spectra"] for s in given.studies) >= SEEDS
    way = "peak to end" if enough else "base to end"
    return [(way, f"SFT, {way}"), ("end to RFT", "RFT, from SFT's end")]


def _versus_null(of: Callable[[spectra.Change], float]) -> Callable[[spectra.MatrixReport], float]:
    return lambda r: of(r.change) / of(r.null)


def _angle(c: spectra.Change) -> float:
    return (c.left.median + c.right.median) / 2


def _of_chance(r: spectra.MatrixReport) -> float:
    return (r.change.left.chordal / r.chance[0] + r.change.right.chordal / r.chance[1]) / 2


def h6(given: Given) -> list[Part]:
    parts = []
    for name, who in ways(given):
        null = _compared(given, name, _versus_null(lambda c: c.values))
        parts += [
            part(f"{who}: values change, %, below 1", _compared(given, name, lambda r: 100 * r.change.values), 1.0, -1, form=".2f"),
            part(f"{who}: values, as a multiple of the null's, below 1", null, 1.0, -1, form=".2f"),
        ]  # fmt: skip
    return parts


def h7(given: Given) -> list[Part]:
    parts = []
    for name, who in ways(given):
        rounding = _compared(given, name, lambda r: _angle(r.change) / _angle(r.floor))
        chordal = _compared(given, name, _versus_null(lambda c: c.left.chordal + c.right.chordal))
        parts += [
            part(f"{who}: angle in multiples of the rounding's, above 2", rounding, 2.0, form=",.0f"),
            part(f"{who}: median angle as a multiple of the null's, above 1", _compared(given, name, _versus_null(_angle)), 1.0, form=".2f"),
            part(f"{who}: chordal distance as a multiple of the null's, above 1", chordal, 1.0, form=".2f"),
            part(f"{who}: chordal distance, of chance, below 0.95", _compared(given, name, _of_chance), 0.95, -1, form=".2f"),
        ]  # fmt: skip
    return parts


def _edited(given: Given, which: str, edit: str) -> Values:
    """Percent of OOD hands solved after an edit of the weights, one number a study."""
    found = {}
    for study in given.studies:
        counts = next((row[OOD] for row in study["surgery"].get(which, []) if row["edit"] == edit), None)
        if counts:
            found[study["seed"]] = 100 * counts["correct"] / sum(counts[v] for v in ("correct", "wrong", "unparseable"))
    return Values(found, {seed: (f"weights-s{seed}",) for seed in found})


def edits(given: Given, which: str, a: str, b: str) -> Values:
    return combine(lambda x, y: x - y, _edited(given, which, a), _edited(given, which, b))


BACK, ON = "end to peak", "RFT to end"  # SFT's end edited towards its peak, RFT's model towards that end


def h8(given: Given) -> list[Part]:
    return [
        part("vector swap minus none", edits(given, BACK, "swap vectors", "none")),
        within(
            f"values swap minus none, within {SMALL:g} either way", edits(given, BACK, "swap values", "none"), SMALL
        ),
        part("vector swap minus rollback 100 %", edits(given, BACK, "swap vectors", "rollback 100 %"), contrary=SMALL),
        part(
            "vector swap minus random edit as long", edits(given, BACK, "swap vectors", "random, as long as the swap")
        ),
    ]


def h9(given: Given) -> list[Part]:
    whole = edits(given, BACK, "swap vectors", "none")

    def beyond(edit: str) -> Values:
        return combine(lambda x, y: x - 0.7 * y, edits(given, BACK, edit, "none"), whole)

    quarter = edits(given, BACK, "first quarter", "rollback of the first quarter")
    return [
        part("the whole vector swap minus none", whole),
        part("top 20 %, beyond 70 % of it", beyond("top 20 %")),
        part("top 20 % minus random 20 %", edits(given, BACK, "top 20 %", "random 20 %"), contrary=SMALL),
        part("first quarter of the layers, beyond 70 % of it", beyond("first quarter")),
        part("first quarter minus its plain rollback", quarter, contrary=SMALL),
    ]


def h10(given: Given) -> list[Part]:
    back = edits(given, ON, "swap vectors", "rollback 100 %")
    return [
        part("RFT's model minus SFT's end", edits(given, ON, "none", "rollback 100 %")),
        part("vector swap minus none", edits(given, ON, "swap vectors", "none"), sign=-1),
        part("vector swap minus going back wholly", back, sign=-1, contrary=-SMALL),
    ]


def id_at_peak(given: Given) -> Values:
    """ID points at the OOD peak beyond those at the end: what stopping there costs, where it is negative."""
    return each(given, "points_sft", lambda r: _at_peak(r, ID) - _at_end(r, ID))


def id_of_wordings(given: Given) -> Values:
    """ID points at the end, many wordings minus one."""
    many, one = (each(given, arm, lambda r: _at_end(r, ID)) for arm in ("points_sft_diverse", "points_sft"))
    return combine(lambda x, y: x - y, many, one)


def c1(given: Given) -> list[Part]:
    one = each(given, "points_sft", _at_end)
    fall = each(given, "points_sft_diverse", lambda r: _at_peak(r) - _at_end(r))
    return [
        part(
            "end, many wordings minus one", combine(lambda x, y: x - y, each(given, "points_sft_diverse", _at_end), one)
        ),
        part(f"many wordings, peak minus end, below {SMALL:g}", combine(lambda x, _: x, fall, one), SMALL, -1),
    ]


# --- 06, Prefix-RFT (2507.01679) -------------------------------------------------------------------------------------------------


def _right(record: RunRecord) -> float:
    return 100 * record.evals()[-1]["new_exact"]


def _right_of(level: int) -> Measure:
    return lambda record: 100 * evals.ProbeCount(**record.evals()[-1]["levels"][str(level)]).accuracy


def _above(given: Given, names: Sequence[str], **labels: str) -> list[Part]:
    """Prefix-RFT minus each of the arms, a gain of less than SMALL being none."""
    found = {name: labels.get(name, blends.LABELS[name]) for name in names}
    return [
        part(f"Prefix-RFT minus {label}", minus(given, "sums_prefix", name, _right), contrary=SMALL)
        for name, label in found.items()
    ]


def b1(given: Given) -> list[Part]:
    return [
        part("Prefix-RFT minus RFT", minus(given, "sums_prefix", "sums_rft", _right)),
        part("on five terms", minus(given, "sums_prefix", "sums_rft", _right_of(5))),
    ]


def b2(given: Given) -> list[Part]:
    return [
        part(
            "Prefix-RFT minus SFT, after equal updates", minus(given, "sums_prefix", "sums_sft", _right), contrary=SMALL
        )
    ]


def b3(given: Given) -> list[Part]:
    arms = {"sums_rl_sft": "0.01", "sums_rl_more_sft": "0.1"}
    return [
        part(f"RFT with {c} of the SFT loss minus RFT, below 0", minus(given, name, "sums_rft", _right), sign=-1)
        for name, c in arms.items()
    ]


def b4(given: Given) -> list[Part]:
    return _above(given, ("sums_sft_rft", "sums_luffy", "sums_uft"))


def b5(given: Given) -> list[Part]:
    frozen = minus(given, "sums_frozen", "sums_rft", _right)
    return [
        *_above(given, ("sums_frozen",), sums_frozen="the frozen prefix"),
        part(f"frozen prefix minus RFT, below {SMALL:g}", frozen, SMALL, -1),
    ]


def b6(given: Given) -> list[Part]:
    names = {
        "sums_constant_001": "constant 0.001",
        "sums_constant_01": "constant 0.01",
        "sums_constant_1": "constant 0.1",
    }
    return _above(given, tuple(names), **names)


def b7(given: Given) -> list[Part]:
    def words(record: RunRecord) -> float:
        return record.evals()[-1]["words"]

    longer = combine(
        lambda x, y: 100 * (x / y - 1), each(given, "sums_all_tokens", words), each(given, "sums_prefix", words)
    )
    compared = _above(given, ("sums_all_tokens", "sums_top_50", "sums_top_80", "sums_random", "sums_lowest"))
    return [*compared, part("words a reply with all prefix tokens, more by, %, above 10", longer, 10.0)]


def b8(given: Given) -> list[Part]:
    clipped = minus(given, "sums_clip_free", "sums_rft", _right)
    return [part(f"RFT with a fifth of its own tokens minus RFT, below {SMALL:g}", clipped, SMALL, -1)]


def b9(given: Given) -> list[Part]:
    return _above(given, ("sums_uniform", "sums_fixed"))


def _left_of_gain(given: Given, name: str, whole: str, share: float) -> Values:
    """What an arm gains over RFT, beyond `share` of what the whole one does."""
    some = (each(given, method, _right) for method in (name, whole, "sums_rft"))
    return combine(lambda x, y, rft: (x - rft) - share * (y - rft), *some)


def b10(given: Given) -> list[Part]:
    return [
        part(
            "10 % of demonstrations, beyond 3/4 of the gain", _left_of_gain(given, "sums_demos_10", "sums_prefix", 0.75)
        ),
        part("1 % of demonstrations, beyond half of it", _left_of_gain(given, "sums_demos_1", "sums_prefix", 0.5)),
    ]


def b11(given: Given) -> list[Part]:
    left = _left_of_gain(given, "sums_weak", "sums_practised", 0.5)
    return [
        part("weak demonstrations minus RFT", minus(given, "sums_weak", "sums_rft", _right), contrary=SMALL),
        part("weak demonstrations, beyond half of the gain of right ones in their style", left),
    ]


def _prefix_gain(level: int, first: float = 0.0, last: float = 1.0) -> Measure:
    """Mean of r_N - m over a stretch of the run, in hundredths of reward; `level` 0 takes sums of all lengths."""
    key = f"prefix_advantage_level_{level}" if level else "prefix_advantage"

    def mean(record: RunRecord) -> float | None:
        steps = _last(record)
        rows = [row for row in record.metrics if row["kind"] == "train" and first * steps < row["step"] <= last * steps]
        found = [row[key] for row in rows if row.get(key) is not None]
        return 100 * statistics.mean(found) if found else None

    return mean


def b12(given: Given) -> list[Part]:
    def apart(name: str, one: Measure, other: Measure) -> Values:
        return combine(lambda x, y: x - y, each(given, name, one), each(given, name, other))

    early, late = _prefix_gain(0, 0, 1 / 3), _prefix_gain(0, 2 / 3)
    return [
        part(
            "Prefix-RFT: gain on five terms minus three, hundredths of reward",
            apart("sums_prefix", _prefix_gain(5), _prefix_gain(3)),
        ),
        part("Prefix-RFT: first third minus last third", apart("sums_prefix", early, late)),
        part("always half: first third minus last third", apart("sums_fixed", early, late)),
    ]


def b13(given: Given) -> list[Part]:
    def passed(row: dict[str, Any]) -> float:
        counts = [c for some in row["sampled"].values() for c in some]
        return statistics.mean(evals.pass_at_k(blends.DRAWS, c, blends.DRAWS) for c in counts)

    def ceiling(name: str) -> Values:
        return each(given, name, lambda r: 100 * (passed(r.evals()[-1]) - passed(r.evals()[0])))

    return [
        part(f"pass@{blends.DRAWS}, Prefix-RFT minus base", ceiling("sums_prefix"), contrary=SMALL),
        part(f"pass@{blends.DRAWS}, RFT minus base, below {SMALL:g}", ceiling("sums_rft"), SMALL, -1),
    ]


def b14(given: Given) -> list[Part]:
    return [
        part("SFT minus RFT, five terms", minus(given, "sums_sft", "sums_rft", _right_of(5))),
        part("RFT minus SFT, three terms", minus(given, "sums_rft", "sums_sft", _right_of(3))),
    ]


def f1(given: Given) -> list[Part]:
    lost, later = (minus(given, "sums_sft", "sums_prefix", drop(target)) for target in (SUMS_TARGET, SUMS_LATER))
    return [
        part(f"points lost at {SUMS_TARGET:.0%}, SFT minus Prefix-RFT", lost, contrary=SMALL),
        part(f"points lost at {SUMS_LATER:.0%}, SFT minus Prefix-RFT", later, contrary=SMALL),
    ]


def f2(given: Given) -> list[Part]:
    lost = minus(given, "sums_prefix", "sums_rft", drop(SUMS_TARGET))
    return [part(f"points lost at {SUMS_TARGET:.0%}, Prefix-RFT minus RFT, below {SMALL:g}", lost, SMALL, -1)]


def f3(given: Given) -> list[Part]:
    return [
        part(f"points lost at {SUMS_TARGET:.0%}, {style} minus practised style", minus(given, f"sums_{style}", "sums_practised", drop(SUMS_TARGET)))
        for style in ("wordy", "foreign")
    ]  # fmt: skip


def f4(given: Given) -> list[Part]:
    pairs = {
        "SFT minus Prefix-RFT": ("jigsaw_sft", "jigsaw_prefix"),
        "Prefix-RFT minus RFT": ("jigsaw_prefix", "jigsaw_rft"),
    }
    lost = drop(given.target)
    return [
        part(f"points lost at {given.target:.0%}, {says}", minus(given, *pair, lost), contrary=SMALL)
        for says, pair in pairs.items()
    ]


# --- 07, tasks in a row (2507.05386) -----------------------------------------------------------------------------------------------


def _matrix(record: RunRecord) -> evals.Floats:
    return continual.Sequence(record).matrix.accuracy


def _fm(given: Given) -> Measure:
    return lambda record: (
        100 * continual.forgetting(_matrix(record), *given.reading) if continual.Sequence(record).in_a_row else None
    )


def _average(record: RunRecord) -> float:
    return 100 * continual.avg_acc(_matrix(record))


def learnt(record: RunRecord) -> float:
    """Gain of a sequence in points: what a task rose by while it was trained, mean over tasks."""
    return 100 * continual.Sequence(record).gain


def _per_hundred(given: Given) -> Measure:
    """Points forgotten for each 100 gained; None where next to nothing was gained."""

    def per_hundred(record: RunRecord) -> float | None:
        fm, gained = _fm(given)(record), learnt(record)
        return None if fm is None or gained <= SMALL else -100 * fm / gained

    return per_hundred


def _first_task(record: RunRecord) -> float:
    p = _matrix(record)
    return 100 * float(p[-1, 0] - p[1:, 0].max())


def _prior_change(record: RunRecord) -> float:
    prior = continual.Sequence(record).prior
    return 100 * float(prior[-1] - prior[0])


def _share_kept(record: RunRecord) -> float | None:
    cards = [row["card"]["share_kept"] for row in continual.Sequence(record).stages if row["card"]]
    return 100 * statistics.mean(cards) if cards else None


def _seven(given: Given, name: str, of: Measure) -> Values:
    return each(given, f"seven_{name}", of)


def _sevens(given: Given, a: str, b: str, of: Measure) -> Values:
    return minus(given, f"seven_{a}", f"seven_{b}", of)


def a1(given: Given) -> list[Part]:
    return [
        part(f"FM of SFT, below {-MUCH:g}", _seven(given, "sft", _fm(given)), -MUCH, -1),
        part(f"first task, end minus peak, below {-MUCH:g}", _seven(given, "sft", _first_task), -MUCH, -1),
    ]


def a2(given: Given) -> list[Part]:
    return [
        part(f"FM of GRPO, above {-MUCH:g}", _seven(given, "grpo", _fm(given)), -MUCH),
        part("FM, GRPO minus SFT", _sevens(given, "grpo", "sft", _fm(given)), contrary=SMALL),
        part(f"AvgAcc, joint minus GRPO, below {MUCH:g}", _sevens(given, "joint", "grpo", _average), MUCH, -1),
        part(f"gain of GRPO, above {MUCH:g}", _seven(given, "grpo", learnt), MUCH),
        part(
            "forgotten of each 100 gained, SFT minus GRPO",
            _sevens(given, "sft", "grpo", _per_hundred(given)),
            contrary=SMALL,
        ),
    ]


def a3(given: Given) -> list[Part]:
    parts = []
    for name, label in (("rloo", "RLOO"), ("remax", "ReMax")):
        parts += [
            part(f"FM of {label}, above {-MUCH:g}", _seven(given, name, _fm(given)), -MUCH),
            part(f"FM, {label} minus SFT", _sevens(given, name, "sft", _fm(given)), contrary=SMALL),
            part(f"gain of {label}, above {MUCH:g}", _seven(given, name, learnt), MUCH),
        ]
    return parts


def a4(given: Given) -> list[Part]:
    return [
        part(f"probes, end minus base, SFT, below {-MUCH:g}", _seven(given, "sft", _prior_change), -MUCH, -1),
        part(f"probes, end minus base, GRPO, above {-SMALL:g}", _seven(given, "grpo", _prior_change), -SMALL),
        part("probes, GRPO minus SFT", _sevens(given, "grpo", "sft", _prior_change), contrary=SMALL),
    ]


def a5(given: Given) -> list[Part]:
    return [
        part(f"probes, end minus base, joint SFT, below {-SMALL:g}", _seven(given, "joint", _prior_change), -SMALL, -1)
    ]


def a6(given: Given) -> list[Part]:
    return [
        part(f"FM, no KL minus GRPO, above {-SMALL:g}", _sevens(given, "grpo_no_kl", "grpo", _fm(given)), -SMALL),
        part("FM, no KL minus SFT", _sevens(given, "grpo_no_kl", "sft", _fm(given)), contrary=SMALL),
        part(f"gain without KL, above {MUCH:g}", _seven(given, "grpo_no_kl", learnt), MUCH),
        part(
            f"FM, KL to the task before minus GRPO, above {-SMALL:g}",
            _sevens(given, "grpo_previous", "grpo", _fm(given)),
            -SMALL,
        ),
    ]


def a7(given: Given) -> list[Part]:
    return [
        part("direct: FM, GRPO minus SFT", _sevens(given, "grpo_direct", "sft_direct", _fm(given)), contrary=SMALL),
        part(f"direct: gain of GRPO, above {MUCH:g}", _seven(given, "grpo_direct", learnt), MUCH),
        part(
            f"FM of GRPO, direct minus thinking, above {-SMALL:g}",
            _sevens(given, "grpo_direct", "grpo", _fm(given)),
            -SMALL,
        ),
    ]


def _at_place(given: Given, place: str, of: Callable[[Sequence[fisher.Group]], float]) -> Values:
    """of(groups at the base, or after GRPO) of each seed; no value where it is NaN."""
    values = {seed: of(study[place]) for seed, study in given.risks.items()}
    found = {seed: value for seed, value in values.items() if math.isfinite(value)}
    missed = tuple(f"risks-s{seed}" for seed in values.keys() - found.keys())
    return Values(found, {seed: (f"risks-s{seed}",) for seed in found}, missed)


PLACES = {risks.BASE: f"{risks.BASE} (seeds are draws)", risks.AFTER: f"{risks.AFTER} (seeds are policies)"}


def a8(given: Given) -> list[Part]:
    def doublings(how: fisher.How) -> Callable[[Sequence[fisher.Group]], float]:
        return lambda groups: fisher.doublings([fisher.law(g) for g in groups], how)

    ways: dict[fisher.How, str] = {"centred": "reward minus mean", "grpo": "GRPO as run"}
    return [
        within(
            f"log2 of measured over predicted risk, {label}, {says}, within 1",
            _at_place(given, place, doublings(how)),
            1,
            form="+.2f",
        )
        for place, says in PLACES.items()
        for how, label in ways.items()
    ]


def a9(given: Given) -> list[Part]:
    def percent(share: float) -> Callable[[Sequence[fisher.Group]], float]:
        return lambda groups: 100 * fisher.over_mixed(groups, share)

    shares = {"none": 0.0, "all": 1.0}
    return [
        part(
            f"gradient of groups with {word} right over mixed ones, %, {says}, below 10",
            _at_place(given, place, percent(share)),
            10,
            -1,
            form=".0f",
        )
        for place, says in PLACES.items()
        for word, share in shares.items()
    ]


def a10(given: Given) -> list[Part]:
    return [
        part("instances kept, %, below 90", _seven(given, "rif", _share_kept), 90, -1),
        part(f"AvgAcc, RIF minus GRPO, above {-MUCH:g}", _sevens(given, "rif", "grpo", _average), -MUCH),
        part(f"FM, RIF minus GRPO, above {-MUCH:g}", _sevens(given, "rif", "grpo", _fm(given)), -MUCH),
        part("AvgAcc, RIF minus as many at random", _sevens(given, "rif", "rif_random", _average), contrary=SMALL),
    ]


def rate(given: Given) -> list[Part]:
    return [part("FM, GRPO minus SFT at RFT's rate", _sevens(given, "grpo", "sft_rft_lr", _fm(given)), contrary=SMALL)]


def updates(given: Given) -> list[Part]:
    return [
        part(
            "FM, GRPO minus SFT with RFT's updates",
            _sevens(given, "grpo", "sft_same_updates", _fm(given)),
            contrary=SMALL,
        )
    ]


def own_replies(given: Given) -> list[Part]:
    return [
        part("FM, own right replies minus SFT", _sevens(given, "self", "sft", _fm(given)), contrary=SMALL),
        part(f"gain with own right replies, above {MUCH:g}", _seven(given, "self", learnt), MUCH),
    ]


def other_order(given: Given) -> list[Part]:
    return [part("order B: FM, GRPO minus SFT", _sevens(given, "grpo_b", "sft_b", _fm(given)), contrary=SMALL)]


def remedies(given: Given) -> list[Part]:
    arms = {"replay": "replay", "l2": "L2"}
    return [
        *(
            part(f"FM, {label} minus SFT", _sevens(given, name, "sft", _fm(given)), contrary=SMALL)
            for name, label in arms.items()
        ),
        *(
            part(f"FM, GRPO minus {label}", _sevens(given, "grpo", name, _fm(given)), contrary=SMALL)
            for name, label in arms.items()
        ),
    ]


# --- 08, RL's Razor on ParityMNIST (2509.04259) ------------------------------------------------------------------------------------


def _of_seeds(given: Given, of: Callable[[Sequence[Point]], float]) -> Values:
    """of(points of all arms, rates and checkpoints of one seed), the base aside."""
    some: dict[int, list[Point]] = {}
    for point in given.points:
        if point.method != parity.BASE:
            some.setdefault(point.seed, []).append(point)
    return Values({s: of(of_seed) for s, of_seed in some.items()}, {s: (f"parity-s{s}",) for s in some})


def _explained(given: Given, predictor: str) -> Values:
    """R^2 of a quadratic fit, as in the paper."""
    return _of_seeds(given, lambda some: predict.explained(some, predictor, degree=2))


def _skill(given: Given, predictor: str) -> Values:
    """Of the same fit on arms that it has not seen: 1 is perfect, 0 no better than the other arms' mean."""
    return _of_seeds(given, lambda some: predict.left_out(some, predictor, degree=2).skill)


def more_lost(given: Given, a: parity.Arm, b: parity.Arm) -> Values:
    """Points that arm `a` of ParityMNIST loses more than `b` where both reach the goal, at the same rates."""
    found = parity.more_lost(given.points, a, b, given.goal)
    without = sorted({p.seed for p in given.points} - found.keys())
    return Values(found, {s: (f"parity-s{s}",) for s in found}, tuple(f"parity-s{s}" for s in without))


def r1(given: Given) -> list[Part]:
    forward, weights = (_explained(given, name) for name in ("forward", "weights"))
    return [
        part(f"R² of forward KL, above {WELL:g}", forward, WELL, form=".2f"),
        part("R², forward KL minus weight distance", combine(operator.sub, forward, weights), form="+.2f"),
    ]


def r2(given: Given) -> list[Part]:
    oracle = f"points lost at {given.goal:.0%}, GRPO minus oracle, within {NEAR_ORACLE:g}"
    return [
        part(f"points lost at {given.goal:.0%}, one digit minus two", more_lost(given, "one", "two")),
        part("two digits minus GRPO", more_lost(given, "two", "grpo")),
        within(oracle, more_lost(given, "grpo", "oracle"), NEAR_ORACLE),
    ]


def r3(given: Given) -> list[Part]:
    forward, weights = (_skill(given, name) for name in ("forward", "weights"))
    return [
        part("skill of forward KL on arms left out, above 0", forward, form=".2f"),
        part("skill, forward KL minus weight distance", combine(operator.sub, forward, weights), form="+.2f"),
    ]


def r4(given: Given) -> list[Part]:
    apart = combine(operator.sub, _explained(given, "reverse"), _explained(given, "forward"))
    return [within(f"R², reverse KL minus forward KL, within {ALIKE:g}", apart, ALIKE, form="+.2f")]


def _forgets_as_grpo(given: Given, arm: parity.Arm, label: str) -> list[Part]:
    says = f"points lost at {given.goal:.0%}, {label} minus GRPO, within {MUCH:g}"
    return [within(says, more_lost(given, arm, "grpo"), MUCH)]


def r5(given: Given) -> list[Part]:
    return _forgets_as_grpo(given, "reinforce", "REINFORCE with 0 and 1")


def r6(given: Given) -> list[Part]:
    return _forgets_as_grpo(given, "teacher", "labels from GRPO's policy")


JUDGES: dict[str, Callable[[Given], list[Part]]] = {
    "P1-C2": p1_c2, "P1-C3": p1_c3, "P1-C4": p1_c4, "P1-C5": p1_c5, "P1-C6": p1_c6, "P1-C7 near": p1_c7_near, "P1-C7 far": p1_c7_far,
    "P1-C8 start": p1_c8_start, "P1-C8 middle": p1_c8_middle, "P1-C8 settles": p1_c8_settles, "P1-C9 order": p1_c9_order,
    "P1-C11": p1_c11, "P1-C12": p1_c12, "04-once": once, "04-gap": gap, "04-data": data,
    "H1": h1, "H2": h2, "H3": h3, "H4": h4, "H5": h5, "H6": h6, "H7": h7, "H8": h8, "H9": h9, "H10": h10, "C1": c1,
    "B1": b1, "B2": b2, "B3": b3, "B4": b4, "B5": b5, "B6": b6, "B7": b7, "B8": b8, "B9": b9, "B10": b10, "B11": b11, "B12": b12,
    "B13": b13, "B14": b14, "F1": f1, "F2": f2, "F3": f3, "F4": f4,
    "A1": a1, "A2": a2, "A3": a3, "A4": a4, "A5": a5, "A6": a6, "A7": a7, "A8": a8, "A9": a9, "A10": a10,
    "07-rate": rate, "07-updates": updates, "07-self": own_replies, "07-order": other_order, "07-remedies": remedies,
    "R1": r1, "R2": r2, "R3": r3, "R4": r4, "R5": r5, "R6": r6,
}  # fmt: skip


def judge(
    name: str, arms: Arms, studies: Sequence[Study] = (), target: float = course.TARGET, reading: Reading = ("T", "all"),
    points: Sequence[Point] = (), goal: float = parity.TARGET, risks: Mapping[int, risks.Study] | None = None,
) -> list[Part]:  # fmt: skip
    """The parts of a claim. Raises UserError for one that no run record decides."""
    if name not in JUDGES:
        raise UserError(f"No run record decides {name!r}: ask for one of {', '.join(JUDGES)}.")
    return JUDGES[name](Given(arms, studies, target, reading, points, goal, risks or {}))
