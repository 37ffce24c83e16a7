import math

import numpy as np
import pytest
import torch

from rftkit import drift, parity, plots, predict
from rftkit.config import UserError
from rftkit.predict import Point

QUICK = parity.Recipe(measured=(10, 40))


@pytest.fixture(scope="module")
def bench():
    return parity.bench(0, n=300, train=600, test=300, updates=120)


# --- pictures -------------------------------------------------------------------------------------------------------------------


def test_pictures_are_drawn_alike_and_told_apart():
    x, y = parity.pictures(3, "digit", 40)
    again, _ = parity.pictures(3, "digit", 40)
    assert x.shape == (40, 785) and torch.equal(x, again) and x[:, :784].min() >= 0 and x[:, :784].max() <= 1
    assert sorted(y.tolist()) == sorted(list(range(10)) * 4) and (x[:, 784] == 1).all()
    z, _ = parity.pictures(3, "garment", 40)
    assert (z[:, 784] == -1).all() and not torch.equal(x[:, :784], z[:, :784])
    assert not torch.equal(parity.pictures(4, "digit", 40)[0], x)
    with pytest.raises(UserError):
        parity.pictures(0, "digit", 0)


@pytest.mark.parametrize("task", ["digit", "garment"])
def test_every_class_is_drawn_and_differs_from_every_other(task):
    means = []
    for label in range(10):
        rng = np.random.default_rng(7)  # the same jitter and noise for all
        means.append(np.mean([parity.picture(rng, task, label) for _ in range(30)], 0))
    gaps = [np.abs(a - b).mean() for i, a in enumerate(means) for b in means[i + 1 :]]
    assert min(gaps) > 0.01 and min(float(m.mean()) for m in means) > 0.05


# --- the base and its labels ------------------------------------------------------------------------------------------------------


def test_the_base_knows_both_tasks_in_part_and_is_the_same_each_time(bench):
    known, prior = parity.accuracy(bench.base, bench)
    assert 0.6 < known < 0.98 and 0.4 < prior < 0.98
    other = parity.bench(0, n=300, train=600, test=300, updates=120)
    assert all(torch.equal(a, b) for a, b in zip(bench.base.parameters(), other.base.parameters(), strict=True))
    answers = bench.base(bench.digits[0]).softmax(-1)[bench.digits[1] % 2 == 0].mean(0)
    assert (answers[::2] > 0.08).all() and answers[::2].sum() > 0.6  # any even digit will do


def test_the_oracle_is_nearest_among_those_that_are_never_wrong():
    """KL(q || base) over q on the right answers: by optimisation, and in closed form -log of the base's chance to be right."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(6, 10, generator=generator, dtype=torch.float64)
    allowed = parity.right(torch.arange(6) % 2)
    oracle = parity.minimal(logits, allowed)
    assert (oracle[~allowed] == 0).all() and torch.allclose(oracle.sum(1), torch.ones(6, dtype=torch.float64))
    least = drift.kl(oracle.log(), logits)
    chance = (logits.softmax(-1) * allowed).sum(1)
    assert torch.allclose(least, -chance.log())
    free = torch.zeros(6, 10, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([free], 0.1)
    for _ in range(500):
        optimiser.zero_grad()
        drift.kl(free.masked_fill(~allowed, -1e3), logits).sum().backward()
        optimiser.step()
    assert torch.allclose(free.detach().masked_fill(~allowed, -1e3).softmax(-1), oracle, atol=1e-3)
    for _ in range(50):
        other = torch.randn(6, 10, generator=generator, dtype=torch.float64).masked_fill(~allowed, -torch.inf)
        assert (drift.kl(other, logits) >= least - 1e-12).all()


def test_the_oracle_is_nearest_in_forward_kl_too_once_it_may_be_wrong_a_little():
    """Of q = (1 - e) r on the right answers + e w on the wrong ones, KL(base || q) is least where r and w have the base's proportions."""
    logits = 2 * torch.randn(10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    allowed = parity.right(torch.tensor([0]))[0]
    mixed = (
        0.95 * parity.minimal(logits[None], allowed[None])[0] + 0.05 * parity.minimal(logits[None], ~allowed[None])[0]
    )
    least, generator = float(drift.kl(logits, mixed.log())), torch.Generator().manual_seed(2)
    for size in (0.05, 0.5, 3.0):
        for _ in range(30):
            noise = size * torch.randn(10, generator=generator, dtype=torch.float64)
            moved = mixed * noise.exp()
            part = torch.where(allowed, moved / (moved * allowed).sum() * 0.95, moved / (moved * ~allowed).sum() * 0.05)
            assert float(drift.kl(logits, part.log())) >= least - 1e-12


def test_labels_of_each_arm(bench):
    allowed = parity.right(bench.train[1])
    for arm in ("one", "two", "oracle", "own"):
        shown = parity.targets(arm, bench)
        assert (shown[~allowed] == 0).all() and torch.allclose(shown.sum(1), torch.ones(len(shown)), atol=1e-5)
    assert (parity.targets("one", bench).max(1).values == 1).all()
    assert sorted(parity.targets("two", bench).sum(0).nonzero()[:, 0].tolist()) == [0, 1, 4, 5]
    assert torch.allclose(parity.targets("teacher", bench, bench.base), bench.base(bench.train[0]).softmax(-1))
    for arm in ("grpo", "teacher"):
        with pytest.raises(UserError):
            parity.targets(arm, bench)


# --- fine-tuning ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", parity.ON_POLICY)
def test_on_policy_gradients_are_those_of_the_expected_reward(arm):
    """With many answers: REINFORCE's mean gradient is p (1 - p)-like, d E[r] / d logits; GRPO's points the same way."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 10, generator=generator, dtype=torch.float64).requires_grad_()
    allowed = parity.right(torch.tensor([0, 1, 1]))
    recipe = parity.Recipe(group=20_000, beta=0.0)
    loss = parity.policy_loss(logits, logits.detach(), allowed, arm, recipe, generator)
    (found,) = torch.autograd.grad(-loss, logits)
    (exact,) = torch.autograd.grad((logits.softmax(-1) * allowed).sum(1).mean(), logits)
    if arm == "reinforce":
        assert torch.allclose(found, exact, atol=0.01)
    assert (torch.nn.functional.cosine_similarity(found, exact) > 0.99).all()


def test_a_kl_term_pulls_back_to_the_base():
    generator, base = torch.Generator().manual_seed(0), torch.zeros(2, 10, dtype=torch.float64)
    logits = (3 * torch.randn(2, 10, generator=generator, dtype=torch.float64)).requires_grad_()
    allowed = torch.ones(2, 10, dtype=torch.bool)  # all rewards equal: GRPO says nothing, the KL remains
    loss = parity.policy_loss(logits, base, allowed, "grpo_kl", parity.Recipe(beta=0.5), generator)
    assert float(loss) == pytest.approx(0.5 * float(drift.kl(logits, base).mean().detach()), rel=1e-6)


def test_arms_learn_repeat_and_differ(bench):
    before = parity.accuracy(bench.base, bench)[0]
    for arm in ("one", "oracle", "grpo", "reinforce"):
        net = parity.finetune(bench, arm, 1e-3, QUICK)
        assert parity.accuracy(net, bench)[0] > before + 0.02, arm
    again = parity.finetune(bench, "reinforce", 1e-3, QUICK)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    assert not torch.equal(bench.base[0].weight, net[0].weight)
    for arm, rate in (("three", 1e-3), ("one", 0.0)):
        with pytest.raises(UserError):
            parity.finetune(bench, arm, rate)


def test_one_digit_goes_farther_than_the_oracle(bench):
    far, near = (
        parity.measured(parity.ruler(bench), parity.finetune(bench, arm, 1e-3, QUICK), k=8) for arm in ("one", "oracle")
    )
    assert far["forward"] > 3 * near["forward"]


# --- measures -------------------------------------------------------------------------------------------------------------------


def test_fisher_is_the_mean_of_squared_gradients(bench):
    x = bench.digits[0][:6]
    found = parity.fisher(bench.base, x)
    exact = [torch.zeros_like(w) for w in found]
    layers = [layer.weight for layer in bench.base if hasattr(layer, "weight")]
    for row in x:
        logps = bench.base(row[None]).log_softmax(-1)[0]
        for answer in range(10):
            grads = torch.autograd.grad(logps[answer], layers, retain_graph=True)
            for total, grad in zip(exact, grads, strict=True):
                total += logps[answer].exp().detach() * grad**2 / len(x)
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-9)


def test_measures_of_the_base_and_of_a_known_change(bench):
    of = parity.ruler(bench)
    net = parity.copied(bench.base)
    with torch.no_grad():
        net[0].weight.mul_(1.5)
    found = parity.measured(of, net, k=8)
    size = math.sqrt(sum(float(layer.weight.square().sum()) for layer in bench.base if hasattr(layer, "weight")))
    assert found["weights"] == pytest.approx(0.5 * float(bench.base[0].weight.norm()) / size, rel=1e-5)
    assert found["spectral"] == pytest.approx(
        0.5 * float(torch.linalg.matrix_norm(bench.base[0].weight.detach(), 2)), rel=1e-5
    )
    assert found["rotation"] < 1e-5 and found["forward"] > 0 and found["fisher"] > 0
    assert set(found) == {*parity.PREDICTORS, parity.CONTROL}
    with torch.no_grad():  # the same answers to every digit: no drift on the new task, however far the weights
        net.load_state_dict(bench.base.state_dict())
        net[-1].bias.add_(3.0)
    same = parity.measured(of, net, k=8)
    assert same["forward"] == pytest.approx(0, abs=1e-6) and same["reverse"] == pytest.approx(0, abs=1e-6)


def test_a_sweep_gives_points_and_matched_accuracy(bench, tmp_path):
    points = parity.sweep(bench, ("one", "oracle", "teacher"), (3e-4, 1e-3), QUICK)
    assert (
        len(points) == 1 + 3 * 2 * 2
        and points[0].method == parity.BASE
        and points[0].gained == parity.accuracy(bench.base, bench)[0]
    )
    assert {p.method for p in points[1:]} <= set(plots.METHOD_STYLE)
    predict.save(tmp_path / "p.json", points)
    assert len(predict.load(tmp_path / "p.json")) == len(points)
    target = points[0].gained + 0.01
    matched = parity.at_accuracy(points, target)
    assert set(matched) == {"parity_one", "parity_oracle", "parity_teacher"} and all(
        len(v) <= 2 for v in matched.values()
    )
    assert any(matched.values())
    with pytest.raises(UserError, match="base of seed 0"):
        parity.at_accuracy(points[1:], 0.9)
    assert predict.explained(points, "forward") > 0


def test_matched_accuracy_by_hand():
    base = Point("parity", parity.BASE, 3, 0.0, 0.8, {})
    path = [
        Point("parity", "parity_one", 3, lost, gained, {}, f"0.001, {u}")
        for u, gained, lost in ((20, 0.86, 6.0), (60, 0.94, 30.0), (150, 0.9, 40.0))
    ]
    slow = [Point("parity", "parity_one", 3, 1.0, 0.85, {}, "0.0001, 150")]
    assert parity.at_accuracy([base, *path, *slow], 0.9) == {"parity_one": {(3, "0.001"): pytest.approx(18.0)}}
    assert parity.at_accuracy([base, *path, *slow], 0.83)["parity_one"] == {
        (3, "0.001"): pytest.approx(3.0),
        (3, "0.0001"): pytest.approx(0.6),
    }


def test_arms_are_compared_at_the_rates_that_both_get_there_with():
    def path(arm, seed, rate, lost, gained=1.0):
        return Point("parity", f"parity_{arm}", seed, 2 * lost, gained, {}, f"{rate}, 20")

    points = [Point("parity", parity.BASE, seed, 0.0, 0.8, {}) for seed in (0, 1, 2)]
    points += [
        path("one", 0, "0.001", 30.0),
        path("one", 0, "0.003", 50.0),
        path("one", 1, "0.001", 20.0),
        path("one", 2, "0.003", 9.0),
    ]
    points += [
        path("two", 0, "0.001", 20.0),
        path("two", 0, "0.003", 60.0, gained=0.85),
        path("two", 1, "0.001", 24.0),
        path("two", 2, "0.001", 1.0),
    ]
    assert parity.more_lost(points, "one", "two") == pytest.approx({0: 10.0, 1: -4.0})  # of seed 2 no rate is common
    assert parity.more_lost(points, "two", "one") == pytest.approx({0: -10.0, 1: 4.0})
    assert parity.more_lost(points, "one", "two", target=0.84)[0] == pytest.approx((12.0 - 8.0 + 20.0 - 96.0) / 2)
    assert parity.more_lost(points, "one", "grpo") == {}


def test_every_arm_has_a_look():
    assert {f"parity_{arm}" for arm in parity.ARMS} == set(plots.COMPANY[-1])
