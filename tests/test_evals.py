import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rftkit import evals
from rftkit.config import UserError
from rftkit.evals import ProbeCount
from rftkit.tasks import PROBES, Row, Task

ECHO = Task("echo", lambda rng, split: Row("echo", "?", "yes"), lambda text, row: text)  # the text is its own verdict


def rows(n):
    return [Row("echo", str(i), "yes") for i in range(n)]


def test_evaluate_counts_each_verdict():
    texts = ["correct", "wrong", "correct", "unparseable", "correct"]
    count = evals.evaluate(lambda rows: texts, ECHO, rows(5))
    assert count == ProbeCount(correct=3, wrong=1, unparseable=1)
    assert (count.n, count.accuracy) == (5, 0.6)
    assert sorted(count.outcomes()) == [0, 0, 1, 1, 1]


def test_evaluate_scores_a_real_probe():
    task = PROBES["arithmetic"]
    asked = task.rows(0, 20)
    assert evals.evaluate(lambda rows: [r.answer for r in rows], task, asked) == ProbeCount(20, 0, 0)
    assert evals.evaluate(lambda rows: ["" for _ in rows], task, asked) == ProbeCount(0, 0, 20)


def test_evaluate_refuses_missing_rows_and_texts():
    with pytest.raises(UserError, match="no echo rows"):
        evals.evaluate(lambda rows: [], ECHO, [])
    with pytest.raises(UserError, match="3 rows got 2 answers"):
        evals.evaluate(lambda rows: ["correct"] * 2, ECHO, rows(3))


def test_counts_must_make_sense():
    with pytest.raises(UserError, match="no accuracy"):
        _ = ProbeCount(0, 0, 0).accuracy
    with pytest.raises(UserError, match="negative"):
        ProbeCount(1, -1, 0)
    with pytest.raises(UserError, match="no probes"):
        evals.prior_mean({})


def test_prior_mean_weighs_probes_not_rows():
    assert evals.prior_mean({"big": ProbeCount(900, 100, 0), "small": ProbeCount(1, 1, 0)}) == pytest.approx(0.7)


# Two-sided 95% is p = 0.975. Printed in any t table (for example the NIST/SEMATECH handbook, 1.3.6.7.2).
@pytest.mark.parametrize(
    ("p", "df", "value"),
    [
        (0.975, 1, 12.706), (0.975, 2, 4.303), (0.975, 3, 3.182), (0.975, 4, 2.776), (0.975, 7, 2.365),
        (0.975, 10, 2.228), (0.975, 30, 2.042), (0.975, 100, 1.984),
        (0.95, 2, 2.920), (0.95, 5, 2.015), (0.995, 2, 9.925), (0.995, 9, 3.250),
    ],
)  # fmt: skip
def test_t_quantile_matches_printed_tables(p, df, value):
    assert evals.t_quantile(p, df) == pytest.approx(value, abs=6e-4)


def test_t_quantile_tends_to_the_normal_one_and_checks_its_input():
    assert evals.t_quantile(0.975, 100_000) == pytest.approx(1.959964, abs=1e-4)
    assert evals.t_quantile(0.5, 3) == pytest.approx(0, abs=1e-9)
    for p, df in ((1.0, 2), (0.3, 2), (0.975, 0)):
        with pytest.raises(UserError, match="t_quantile needs"):
            evals.t_quantile(p, df)


def test_t_interval_by_hand():
    # mean 2, s = 1, n = 3: half width 4.3027 / sqrt(3) = 2.4841
    assert evals.t_interval([1, 2, 3]) == pytest.approx((2, 2 - 2.4841, 2 + 2.4841), abs=1e-4)


def test_t_interval_covers_as_often_as_it_says():
    """Three normal seeds, 2000 times: the t interval holds the truth in 95%, a bootstrap over three in far fewer."""
    rng = np.random.default_rng(0)
    trials = rng.normal(5, 2, size=(2000, 3))
    held = [lo <= 5 <= hi for _, lo, hi in map(evals.t_interval, trials)]
    assert 0.935 < np.mean(held) < 0.965
    narrow = [lo <= 5 <= hi for _, lo, hi in (evals.bootstrap_interval(t, resamples=200) for t in trials[:300])]
    assert np.mean(narrow) < 0.85


def test_one_seed_has_a_mean_and_no_interval():
    mean, lo, hi = evals.t_interval([4.0])
    assert mean == 4 and math.isnan(lo) and math.isnan(hi)


def test_paired_interval_is_on_differences():
    """Seeds differ a lot, the methods by 1: paired sees it, unpaired intervals overlap."""
    a, b = [11.0, 51.2, 90.9], [10.0, 50.0, 90.0]
    mean, lo, hi = evals.paired_interval(a, b)
    assert mean == pytest.approx(np.mean(a) - np.mean(b)) and 0 < lo < 1 < hi < 2
    assert evals.t_interval(a).lo < evals.t_interval(b).hi
    with pytest.raises(UserError, match="cannot be paired"):
        evals.paired_interval([1, 2], [1])


def test_bootstrap_agrees_with_the_standard_error_and_repeats():
    values = ProbeCount(140, 50, 10).outcomes()
    mean, lo, hi = evals.bootstrap_interval(values)
    error = 1.96 * math.sqrt(0.7 * 0.3 / 200)
    assert mean == pytest.approx(0.7)
    assert (lo, hi) == pytest.approx((0.7 - error, 0.7 + error), abs=0.012)
    assert evals.bootstrap_interval(values) == (mean, lo, hi)
    assert evals.bootstrap_interval(values, seed=1) != (mean, lo, hi)
    wide = evals.bootstrap_interval(values, level=0.99)
    assert wide.lo < lo and hi < wide.hi


def test_prior_interval_narrows_with_rows_and_probes():
    few = evals.prior_interval({"a": ProbeCount(70, 30, 0)})
    more = evals.prior_interval({"a": ProbeCount(700, 300, 0)})
    both = evals.prior_interval({"a": ProbeCount(70, 30, 0), "b": ProbeCount(70, 30, 0)})
    assert few.mean == more.mean == pytest.approx(0.7)
    assert few.hi - few.lo > both.hi - both.lo > more.hi - more.lo > 0
    assert few.hi - few.lo == pytest.approx(2 * 1.96 * math.sqrt(0.21 / 100), rel=0.1)


@pytest.mark.parametrize("values", [[], [1, math.nan], [1, math.inf], [[1, 2]]])
def test_intervals_refuse_what_has_no_mean(values):
    for interval in (evals.t_interval, evals.bootstrap_interval):
        with pytest.raises(UserError):
            interval(values)


@pytest.mark.parametrize("level", [0, 1, 95])
def test_a_level_is_a_probability(level):
    with pytest.raises(UserError, match="level"):
        evals.t_interval([1, 2], level)
    with pytest.raises(UserError, match="level"):
        evals.bootstrap_interval([1, 2], level)


def test_crossing_interpolates_to_the_first_time():
    assert evals.crossing([0, 10, 20], [0.0, 0.4, 0.8], 0.5) == 12.5
    assert evals.crossing([0, 10, 20], [0.0, 0.5, 0.8], 0.5) == 10
    assert evals.crossing([0, 10, 20, 30], [0.0, 0.6, 0.2, 0.9], 0.5) == pytest.approx(50 / 6)
    assert evals.crossing([5, 10], [0.7, 0.9], 0.5) == 5
    assert evals.crossing([0, 10], [0.0, 0.499], 0.5) is None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0.01, 1))
def test_crossing_is_where_the_curve_has_the_target(values, target):
    steps = [7 * i for i in range(len(values))]
    step = evals.crossing(steps, values, target)
    if step is None:
        assert max(values) < target
    else:
        at = evals.value_at(steps, values, step)
        assert at == pytest.approx(target) or (step == 0 and values[0] >= target)
        assert all(v < target for s, v in zip(steps, values, strict=True) if s < step - 1e-6)


def test_value_at_does_not_extrapolate():
    assert evals.value_at([0, 10], [1.0, 0.0], 2.5) == 0.75
    for step in (-1, 10.5, math.nan):
        with pytest.raises(UserError, match="outside"):
            evals.value_at([0, 10], [1.0, 0.0], step)


def test_curves_must_be_curves():
    for steps, values in (([0, 0], [1, 2]), ([1, 0], [1, 2]), ([0, 1], [1]), ([], [])):
        with pytest.raises(UserError):
            evals.crossing(steps, values, 0.5)


def test_mean_curve_covers_what_all_seeds_span():
    steps, mean = evals.mean_curve([([0, 10, 20], [0, 1, 2]), ([0, 5, 10], [2, 2, 2])])
    assert steps.tolist() == [0, 5, 10]
    assert mean.tolist() == [1, 1.25, 1.5]
    with pytest.raises(UserError, match="share no step"):
        evals.mean_curve([([0, 1], [0, 0]), ([2, 3], [0, 0])])
    with pytest.raises(UserError, match="no curves"):
        evals.mean_curve([])


# --- pass@k -----------------------------------------------------------------------------------------------------------


def by_subsets(n, c, k):
    """The share of all subsets of k replies that hold one of the c right ones."""
    subsets = list(itertools.combinations(range(n), k))
    return sum(min(subset) < c for subset in subsets) / len(subsets)


def test_pass_at_k_counts_subsets():
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                assert evals.pass_at_k(n, c, k) == pytest.approx(by_subsets(n, c, k), abs=1e-12), (n, c, k)


def test_pass_at_k_at_its_ends():
    assert [evals.pass_at_k(10, 0, k) for k in (1, 5, 10)] == [0, 0, 0]
    assert str(evals.pass_at_k(10, 0, 5)) == "0.0"  # no minus
    assert [evals.pass_at_k(10, c, 10) for c in (1, 5, 10)] == [1, 1, 1]
    assert evals.pass_at_k(10, 3, 1) == pytest.approx(0.3, rel=1e-12)
    assert type(evals.pass_at_k(np.int64(8), np.int64(2), 4)) is float


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_pass_at_k_is_exact_where_binomials_overflow(data):
    n = data.draw(st.integers(2, 3000))
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
    assert evals.pass_at_k(n, c, k) == pytest.approx(float(exact), rel=1e-9, abs=0)


def test_pass_at_k_keeps_its_digits_for_many_replies():
    assert evals.pass_at_k(10**15, 1, 1) == pytest.approx(1e-15, rel=1e-9)
    assert evals.pass_at_k(2048, 1, 1024) == pytest.approx(0.5, rel=1e-12)
    assert 1 - 1e-12 < evals.pass_at_k(10**6, 500_000, 1000) <= 1


def test_pass_at_k_is_unbiased_and_the_plug_in_is_not():
    p, n, k = 0.15, 10, 4
    weights = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    truth = 1 - (1 - p) ** k
    assert sum(w * evals.pass_at_k(n, c, k) for c, w in enumerate(weights)) == pytest.approx(truth, abs=1e-12)
    assert sum(w * (1 - (1 - c / n) ** k) for c, w in enumerate(weights)) < truth - 0.02


@pytest.mark.parametrize(
    ("n", "c", "k", "said"),
    [
        (0, 0, 1, "at least 1 as n, not 0"),
        (8, 9, 2, "0 to 8 as c, not 9"),
        (8, -1, 2, "0 to 8 as c, not -1"),
        (8, 2, 0, "1 to 8 as k, not 0"),
        (8, 2, 9, "1 to 8 as k, not 9"),
        (8.0, 2, 2, "as n, not 8.0"),
        (8, True, 2, "as c, not True"),
        (8, 2, math.nan, "as k, not nan"),
    ],
)
def test_pass_at_k_refuses_nonsense(n, c, k, said):
    with pytest.raises(UserError, match=said):
        evals.pass_at_k(n, c, k)


def test_pass_at_k_interval_covers_and_repeats():
    counts = [0, 0, 1, 8, 3, 0, 8, 2, 0, 5]
    found = evals.pass_at_k_interval(counts, 8, 4, seed=1)
    assert found == evals.pass_at_k_interval(counts, 8, 4, seed=1) != evals.pass_at_k_interval(counts, 8, 4, seed=2)
    assert found.mean == pytest.approx(np.mean([by_subsets(8, c, 4) for c in counts]))
    assert 0 < found.lo < found.mean < found.hi < 1
    wide = evals.pass_at_k_interval(counts * 16, 8, 4)
    assert wide.hi - wide.lo == pytest.approx((found.hi - found.lo) / 4, rel=0.15)  # by the root of the problems
    with pytest.raises(UserError, match="0 to 8 as c"):
        evals.pass_at_k_interval([3, 9], 8, 4)
    with pytest.raises(UserError, match="at least one value"):
        evals.pass_at_k_interval([], 8, 4)


def test_pass_at_k_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth = 1 - math.gamma(6) * math.gamma(2.5) / (
        math.gamma(6.5) * math.gamma(2)
    )  # E[1 - (1-p)^4], p from Beta(1/2, 2)
    hits = 0
    for i in range(100):
        found = evals.pass_at_k_interval(rng.binomial(16, rng.beta(0.5, 2, 60)), 16, 4, seed=i, resamples=300)
        hits += found.lo <= truth <= found.hi
    assert 88 <= hits <= 100
