import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rftkit import predict
from rftkit.config import UserError
from rftkit.predict import Point


def simulated(slope=10.0, noise=3.0, methods=40, seeds=3, seed=0, scatter=0.0):
    """forgetting = slope x + noise of the method + scatter of the seed; "noise" is a predictor that has nothing to do with it."""
    made = []
    for m in range(methods):
        rng = np.random.default_rng([seed, m])
        x, off, blind = rng.normal(), noise * rng.normal(), rng.normal()
        for s in range(seeds):
            y = slope * x + off + scatter * rng.normal()
            made.append(Point("toy", f"m{m}", s, y, 0.9, {"x": x, "flip": -2 * x + 1, "noise": blind}))
    return made


def one_far(seed=0):
    """Ten methods that the predictor says nothing about, and one that is far out in both."""
    made = [p for p in simulated(slope=0.0, methods=10, seed=seed)]
    return [*made, *(Point("toy", "far", s, 60.0, 0.9, {"x": 15.0, "flip": 0.0, "noise": 0.0}) for s in range(3))]


def test_known_share_is_found():
    """slope^2 / (slope^2 + noise^2) = 100 / 109 of the variance."""
    found = [predict.explained(predict.averaged(simulated(seed=s)), "x") for s in range(30)]
    assert np.mean(found) == pytest.approx(100 / 109, abs=0.02)
    assert np.mean([predict.explained(simulated(seed=s), "noise") for s in range(30)]) < 0.07
    points = simulated()
    assert predict.explained(points, "flip") == pytest.approx(predict.explained(points, "x"))
    assert predict.rank_correlation(points, "flip") == pytest.approx(-predict.rank_correlation(points, "x"))
    exact = simulated(noise=0.0)
    assert predict.explained(exact, "x") == pytest.approx(1) == pytest.approx(predict.rank_correlation(exact, "x"))
    assert predict.left_out(exact, "x").skill > 0.98  # but for the two ends, beyond which nothing is drawn on


def test_a_parabola_needs_its_degree_and_no_scale():
    points = [Point("toy", f"m{i}", 0, (i - 5) ** 2, 0.9, {"x": i * 1e-9}) for i in range(11)]
    assert predict.explained(points, "x", degree=2) == pytest.approx(1) and predict.explained(points, "x") < 1e-9


def test_r2_of_one_far_method_does_not_survive_leaving_it_out():
    points = one_far()
    assert predict.explained(points, "x") > 0.9
    found = predict.score(points, "x", resamples=300)
    assert found.left_out.skill < 0.35 and found.left_out.worst(1)[0][0] == "toy/far"
    assert found.r2.lo < 0.5 < 0.9 < found.r2.hi  # draws without it
    real = predict.score(simulated(), "x", resamples=300)
    assert real.left_out.skill > 0.6 and real.r2.lo > 0.5


def test_a_useless_predictor_is_worse_than_the_mean():
    skills = [predict.left_out(simulated(methods=10, seed=s), "noise").skill for s in range(40)]
    assert np.median(skills) < 0


def test_leaving_out_is_what_it_says():
    """By hand: fit to the others, read off at the method's own place."""
    points = simulated(methods=5, seeds=1)
    x, y = np.array([p.predictors["x"] for p in points]), np.array([p.forgetting for p in points])
    found = predict.left_out(points, "x")
    order = np.argsort(x)
    middle = int(order[2])  # within the others' range
    a, b = np.polyfit(np.delete(x, middle), np.delete(y, middle), 1)
    assert found.residuals[f"toy/m{middle}"] == pytest.approx(y[middle] - (a * x[middle] + b))
    last = int(order[-1])
    a, b = np.polyfit(np.delete(x, last), np.delete(y, last), 1)
    assert found.residuals[f"toy/m{last}"] == pytest.approx(y[last] - (a * x[order[-2]] + b))
    baseline = np.sqrt(np.mean([(y[i] - np.delete(y, i).mean()) ** 2 for i in range(5)]))
    assert found.baseline == pytest.approx(baseline)
    assert found.skill == pytest.approx(1 - (found.error / baseline) ** 2)


def test_seeds_of_a_method_are_one_point_and_methods_weigh_the_same():
    points = simulated(scatter=1.0)
    one = predict.averaged(points)
    assert len(one) == 40 and all(p.seed == 3 for p in one)
    assert one[0].forgetting == pytest.approx(np.mean([p.forgetting for p in points[:3]]))
    crowd = [*points, *points[:3] * 50]  # a method with many runs gains no weight
    assert predict.explained(crowd, "x") == pytest.approx(predict.explained(points, "x"))
    assert predict.rank_correlation(crowd, "noise") == pytest.approx(predict.rank_correlation(points, "noise"))
    rates = [Point("toy", "m0", s, 1.0, 0.9, {"x": r}, f"rate {r}") for r in (1.0, 2.0) for s in range(2)]
    assert len(predict.averaged(rates)) == 2


def test_intervals_are_over_methods():
    """Runs of a method are no independent evidence: ten times the seeds leave the interval as wide, ten times the methods do not."""
    few, deep, wide = (
        predict.score(simulated(methods=m, seeds=s, noise=8), "x", resamples=300).r2
        for m, s in ((8, 2), (8, 20), (80, 2))
    )
    assert deep.hi - deep.lo == pytest.approx(few.hi - few.lo)
    assert wide.hi - wide.lo < 0.6 * (few.hi - few.lo)
    inside = 0
    for s in range(40):
        found = predict.score(simulated(methods=25, seed=s), "x", resamples=200).r2
        inside += found.lo <= 100 / 109 <= found.hi
    assert inside >= 34


def test_across_benches():
    """The same slope with other units of forgetting: within each bench the predictor is perfect, across benches it is not."""
    rng = np.random.default_rng(0)
    made = []
    for bench, slope in (("a", 1.0), ("b", 10.0), ("c", 40.0)):
        for m in range(6):
            x = float(rng.uniform(0, 1))
            made.append(Point(bench, f"m{m}", 0, slope * x, 0.9, {"x": x, "right": slope * x}))
    for bench in "abc":
        assert predict.explained([p for p in made if p.bench == bench], "x") == pytest.approx(1)
    assert predict.left_out(made, "x", by="bench").skill < 0.1  # 1 within each
    assert set(predict.left_out(made, "right", by="bench").residuals) == {"a", "b", "c"}
    assert [s.predictor for s in predict.ranked(made, ["x", "right"], resamples=100)] == ["right", "x"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=3, max_size=9))
def test_ranks_share_ties(values):
    got = predict._ranks(np.array(values, float), np.ones(len(values)))
    for value, rank in zip(values, got, strict=True):
        assert rank == sum(v < value for v in values) + values.count(value) / 2


def test_rank_correlation_of_equal_weights_is_spearmans():
    rng = np.random.default_rng(0)
    x, y = rng.permutation(9), rng.permutation(9)
    points = [
        Point("toy", f"m{i}", 0, float(b), 0.9, {"x": float(a)}) for i, (a, b) in enumerate(zip(x, y, strict=True))
    ]
    assert predict.rank_correlation(points, "x") == pytest.approx(1 - 6 * float(((x - y) ** 2).sum()) / (9 * 80))


def test_saved_points_come_back(tmp_path):
    points = [Point("toy", "m", 0, 1.5, 0.25, {"x": 1 / 3}, "rate 1")]
    predict.save(tmp_path / "p.json", points)
    (back,) = predict.load(tmp_path / "p.json")
    assert (
        back.predictors == {"x": 0.333333}
        and back.where == "rate 1"
        and "versions" in json.loads((tmp_path / "p.json").read_text())
    )
    with pytest.raises(UserError):
        predict.save(tmp_path / "q.json", [Point("toy", "m", 0, math.nan, 0.25, {})])
    assert not (tmp_path / "q.json").exists()
    (tmp_path / "p.json").write_text('{"points": [{"method": 1}]}')
    with pytest.raises(UserError):
        predict.load(tmp_path / "p.json")


@pytest.mark.parametrize(
    ("points", "says"),
    [
        (simulated(methods=2), "2 of three methods"),
        ([Point("toy", f"m{i}", 0, math.nan, 1, {"x": i}) for i in range(4)], "toy/m0 is no number"),
        ([Point("toy", f"m{i}", 0, float(i), 1, {"x": 1.0}) for i in range(4)], "the same in all points"),
        ([Point("toy", f"m{i}", 0, float(i), 1, {}) for i in range(4)], "0 of three"),
    ],
)
def test_what_cannot_be_scored_is_refused(points, says):
    with pytest.raises(UserError, match=says):
        predict.score(points, "x")


def test_points_that_learnt_nothing_are_left_out():
    points = [Point("toy", f"m{i}", 0, float(i), i / 4, {"x": i}) for i in range(5)]
    assert [p.method for p in predict.at_least(points, 0.5)] == ["m2", "m3", "m4"]
