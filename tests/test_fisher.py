import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rftkit import bench, dynamics, estimators, fisher
from rftkit.config import UserError, get_preset
from rftkit.dynamics import CountSketch
from rftkit.evals import Interval
from rftkit.fisher import Fisher
from rftkit.policy import generate, load_policy
from rftkit.tasks import PROBES

LOGITS = torch.tensor([2.0, 0.5, -0.3, 1.1, -1.5], dtype=torch.float64)
REWARDS = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.1], dtype=torch.float64)
SOME = r"layers\.1\..*down_proj"


def toy(logits=LOGITS, rewards=REWARDS, gold=1, greedy=None, x=None, earlier=None):
    """One prompt of five answers, all of them; the earlier task is the same softmax, or other scores with their probabilities."""
    s, pi = fisher.softmax_scores(logits, x)
    f = Fisher(*(earlier or (s, pi)))
    return fisher.group(s, rewards, s[gold], f, float(pi[gold].log()), pi, greedy)


def drawn(n=8, seed=0, logits=LOGITS, rewards=REWARDS):
    """The same prompt, n answers sampled from it."""
    s, pi = fisher.softmax_scores(logits)
    a = torch.multinomial(pi, n, replacement=True, generator=torch.Generator().manual_seed(seed))
    return fisher.group(
        s[a], rewards[a], s[1], Fisher(s, pi), float(pi[1].log()), greedy=float(rewards[logits.argmax()])
    )


# --- five logits, closed forms ------------------------------------------------------------------------------------------------


def test_the_risk_of_five_logits_by_hand():
    """F = diag(pi) - pi pi', and (e_a - pi)' F (e_a - pi) multiplied out."""
    s, pi = fisher.softmax_scores(LOGITS)
    F = torch.diag(pi) - torch.outer(pi, pi)
    two, three = pi.square().sum(), pi.pow(3).sum()
    torch.testing.assert_close(fisher.risk(s, s, pi), pi * (1 - 3 * pi + 2 * two) + three - two**2)
    g = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(fisher.risk(g, s, pi), (g @ F * g).sum(1))
    torch.testing.assert_close(Fisher(s, pi).form(g), g @ F @ g.T)
    torch.testing.assert_close(pi @ s, torch.zeros(5).double())  # scores have mean 0


def test_shared_weights_multiply_by_the_features():
    """logits = W x: F of the earlier prompt is F_logits (x) x_0 x_0', so all risks grow by (x . x_0)^2."""
    x, x0 = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.3, 0.4, 2.0]).double()
    plain = toy(earlier=fisher.softmax_scores(LOGITS.flip(0)))
    shared = toy(x=x, earlier=fisher.softmax_scores(LOGITS.flip(0), x0))
    torch.testing.assert_close(shared.risks, plain.risks * (x @ x0) ** 2)
    assert shared.gold == pytest.approx(plain.gold * float(x @ x0) ** 2)


def test_scores_of_a_softmax_are_gradients():
    x = torch.tensor([0.7, -1.2]).double()
    w = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    s, _ = fisher.softmax_scores((w @ x).detach(), x)
    for a in range(5):
        (g,) = torch.autograd.grad((w @ x).log_softmax(0)[a], w)
        torch.testing.assert_close(s[a], g.flatten())


def test_the_risk_is_the_divergence_that_a_step_makes():
    s, pi = fisher.softmax_scores(LOGITS)
    g = torch.randn(5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for eta in (0.01, 0.001):
        moved = (LOGITS + eta * g).log_softmax(0)
        kl = float((pi * (pi.log() - moved)).sum())
        assert kl == pytest.approx(float(eta**2 * fisher.risk(g[None], s, pi) / 2), rel=10 * eta)


def test_the_law_of_five_logits_by_hand():
    one = fisher.law(toy(greedy=0.0))
    pi = LOGITS.softmax(0)
    F = torch.diag(pi) - torch.outer(pi, pi)
    q = torch.stack([(e - pi) @ F @ (e - pi) for e in torch.eye(5).double()])
    mean = float(pi @ REWARDS)
    assert one.mean == pytest.approx(mean)
    assert one.variance == pytest.approx(float(pi @ (REWARDS - mean) ** 2))
    assert one.gold == pytest.approx(float(q[1])) and one.sampled == pytest.approx(float(pi @ q))
    wanted = {
        "reinforce": pi @ (REWARDS**2 * q),
        "centred": pi @ ((REWARDS - mean) ** 2 * q),
        "rloo": pi @ ((REWARDS - mean) ** 2 * q),
        "remax": pi @ (REWARDS**2 * q),
        "grpo": pi @ ((REWARDS - mean) ** 2 * q) / one.variance,
    }
    assert one.risk == pytest.approx({how: float(v) for how, v in wanted.items()}, rel=1e-4)
    uphill = sum(pi[a] * REWARDS[a] * (torch.eye(5)[a] - pi) for a in range(5))  # the gradient of the expected reward
    assert one.mean_risk["centred"] == pytest.approx(float(uphill @ F @ uphill))
    assert one.mean_risk["reinforce"] == pytest.approx(one.mean_risk["centred"])  # a baseline changes no expectation


five = st.lists(st.floats(-3, 3), min_size=5, max_size=5).map(lambda x: torch.tensor(x, dtype=torch.float64))
zero_one = st.lists(st.sampled_from([0.0, 0.1, 0.9, 1.0]), min_size=5, max_size=5).map(
    lambda x: torch.tensor(x, dtype=torch.float64)
)


@settings(max_examples=60, deadline=None)
@given(five, zero_one, st.integers(0, 4))
def test_the_first_step_is_an_identity_and_the_variance_is_bounded(logits, rewards, gold):
    for one in (fisher.law(toy(logits, rewards, gold)), fisher.law(drawn(6, gold, logits, rewards))):
        assert one.risk["centred"] == pytest.approx(one.variance * one.sampled + one.covariance, abs=1e-12)
        assert 0 <= one.variance <= 0.25 + 1e-12
        if one.variance * one.sampled > 1e-12:
            assert one.risk["centred"] == pytest.approx(one.predicted * one.swap * one.coupling, rel=1e-6)


def test_where_the_formula_holds_exactly():
    """All answers alike: no covariance, and the gold answer is like any other. Then only grpo leaves it."""
    laws = [
        fisher.law(toy(torch.zeros(5).double(), r.double()))
        for r in torch.eye(5).cumsum(0)[:4] * torch.tensor([[0.5], [1], [0.8], [1]])
    ]
    found = fisher.fits(laws)
    assert found["centred"].slope.mean == pytest.approx(1) and found["centred"].r2 == pytest.approx(1)
    assert found["rloo"] == found["centred"] and "remax" not in found
    for one in laws:
        assert one.risk["centred"] == pytest.approx(one.predicted)
        assert one.risk["grpo"] == pytest.approx(one.gold, rel=1e-4)  # E A^2 = 1: no variance in it


@pytest.mark.parametrize(("logit", "beyond"), [(-4.0, False), (6.0, True)])
def test_where_the_last_step_cannot_hold(logit, beyond):
    """The gold answer's score is long where it is improbable, and vanishes where it is sure; the mean over sampled answers is neither."""
    x = torch.tensor([0.0, logit, 0.0, 0.0, 0.0]).double()
    one = fisher.law(toy(x, torch.eye(5).double()[1]))
    other = toy(
        x, torch.eye(5).double()[1], earlier=(torch.eye(5).double(), torch.full((5,), 0.2).double())
    )  # F = I / 5
    pi = float(x.softmax(0)[1])
    flat = fisher.law(other)
    assert flat.gold == pytest.approx(((1 - pi) ** 2 * (1 + 1 / 4)) / 5)  # |e_g - pi|^2 = (1-p)^2 + (1-p)^2 / 4
    assert flat.sampled == pytest.approx((1 - float(x.softmax(0).square().sum())) / 5)
    assert (flat.swap > 2) if beyond else (flat.swap < 0.7)
    assert one.coupling != pytest.approx(1, abs=0.05)


def test_a_turned_space_and_split_scores_change_nothing():
    g = torch.Generator().manual_seed(3)
    s, f = torch.randn(6, 9, generator=g).double(), torch.randn(4, 9, generator=g).double()
    turn = torch.linalg.qr(torch.randn(9, 9, generator=g).double()).Q
    w = torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
    torch.testing.assert_close(fisher.risk(s @ turn, f @ turn, w), fisher.risk(s, f, w))
    split = torch.cat([f, f]), torch.cat([0.3 * w, 0.7 * w])
    torch.testing.assert_close(fisher.risk(s, *split), fisher.risk(s, f, w))
    torch.testing.assert_close(fisher.risk(s, f), fisher.risk(s, f, torch.full((4,), 0.25)))
    torch.testing.assert_close(fisher.risk(3 * s, f, w), 9 * fisher.risk(s, f, w))


def test_rewards_shifted_and_scaled():
    a, b, c = (fisher.law(toy(rewards=r, greedy=float(r[0]))) for r in (REWARDS, REWARDS + 2, 0.3 * REWARDS))
    for how in ("centred", "rloo", "remax"):
        assert a.risk[how] == pytest.approx(b.risk[how]) and c.risk[how] == pytest.approx(0.09 * a.risk[how])
    assert b.risk["reinforce"] > 4 * a.risk["reinforce"]
    assert a.risk["grpo"] == pytest.approx(b.risk["grpo"]) == pytest.approx(c.risk["grpo"], rel=1e-4)


# --- estimators ------------------------------------------------------------------------------------------------------------------


def test_rloo_leaves_one_out():
    r = torch.rand(3, 8, generator=torch.Generator().manual_seed(0))
    by_loop = torch.tensor([[x - (sum(row) - x) / 7 for x in row] for row in r.tolist()], dtype=torch.float64)
    torch.testing.assert_close(fisher.advantages(r, "rloo"), by_loop)
    torch.testing.assert_close(fisher.advantages(r, "rloo"), 8 / 7 * fisher.advantages(r, "centred"))
    torch.testing.assert_close(fisher.advantages(r, "remax", 0.3), r.double() - 0.3)
    torch.testing.assert_close(fisher.advantages(r, "reinforce"), r.double())


@pytest.mark.parametrize("how", ["grpo", "rloo", "remax"])
def test_advantages_are_those_that_are_trained_with(how):
    """But for what is added to the standard deviation: 1e-4 in TRL, 1e-6 in the paper's code."""
    r = torch.tensor([[0.0, 1.0, 0.1, 1.0], [1.0, 1.0, 1.0, 1.0], [0.9, 0.0, 0.0, 0.0]]).double()
    ours = torch.stack([fisher.advantages(row, how, 0.1) for row in r])
    torch.testing.assert_close(
        ours, estimators.advantages(r, how, torch.full((3,), 0.1, dtype=torch.float64)), rtol=1e-3, atol=1e-9
    )


@pytest.mark.parametrize("right", range(9))
def test_grpo_divides_the_variance_out(right):
    a = fisher.advantages((torch.arange(8) < right).double(), "grpo")
    assert float(a.square().mean()) == pytest.approx(7 / 8 if 0 < right < 8 else 0, rel=1e-4)
    by_torch = torch.arange(8).lt(right).double()
    torch.testing.assert_close(a, (by_torch - by_torch.mean()) / (by_torch.std() + 1e-6))


def test_squared_advantages_on_average():
    """Over groups: rloo n/(n-1) Var, centred (n-1)/n Var, remax Var + (mean - greedy)^2."""
    n, p = 4, 0.3
    r = (torch.rand(200_000, n, generator=torch.Generator().manual_seed(0)) < p).double()
    mean_square = {
        how: float(fisher.advantages(r, how, 1.0).square().mean()) for how in ("rloo", "centred", "remax", "reinforce")
    }
    variance = p * (1 - p)
    wanted = {
        "rloo": n / (n - 1) * variance,
        "centred": (n - 1) / n * variance,
        "remax": variance + 0.49,
        "reinforce": p,
    }
    assert mean_square == pytest.approx(wanted, rel=0.02)


def test_sampled_groups_have_the_exact_law_on_average():
    """E (r_i - mean)^2 q_i over groups of n is ((n-1)/n)^2 (E (r - mu)^2 q + Var E q / (n-1)): the sample's own mean is in it."""
    n, exact = 8, fisher.law(toy())
    laws = [fisher.law(drawn(n, seed)) for seed in range(3000)]
    assert np.mean([one.sampled for one in laws]) == pytest.approx(exact.sampled, rel=0.03)
    centred = ((n - 1) / n) ** 2 * (exact.risk["centred"] + exact.variance * exact.sampled / (n - 1))
    assert np.mean([one.risk["centred"] for one in laws]) == pytest.approx(centred, rel=0.03)
    assert np.mean([one.variance for one in laws]) == pytest.approx((n - 1) / n * exact.variance, rel=0.03)
    for one in laws[:5]:
        assert one.risk["rloo"] == pytest.approx((n / (n - 1)) ** 2 * one.risk["centred"])


def test_directions_have_the_risks_of_the_law():
    one, (s, pi) = drawn(6, 4), fisher.softmax_scores(LOGITS)
    a = torch.multinomial(pi, 6, replacement=True, generator=torch.Generator().manual_seed(4))
    law = fisher.law(one)
    for how in one.estimators:
        made = one.advantages(how)
        assert law.risk[how] == pytest.approx(float(fisher.risk(fisher.directions(s[a], made), s, pi).mean()))
        whole = fisher.directions(s[a], made, mean=True)
        assert whole.shape == (1, 5) and law.mean_risk[how] == pytest.approx(float(fisher.risk(whole, s, pi)))


# --- over prompts ----------------------------------------------------------------------------------------------------------------


def test_a_line_through_the_origin():
    rng = np.random.default_rng(0)
    x = rng.exponential(size=60)
    y = 0.7 * x + 0.05 * rng.normal(size=60)
    found = fisher.fit(x, y)
    assert (
        isinstance(found.slope, Interval)
        and found.slope.lo < 0.7 < found.slope.hi
        and found.slope.hi - found.slope.lo < 0.05
    )
    assert found.slope.mean == pytest.approx(np.linalg.lstsq(x[:, None], y, rcond=None)[0][0])
    assert found.ratio.mean == pytest.approx(y.sum() / x.sum()) and found.r2 > 0.98 and found.n == 60
    assert fisher.fit(x, y) == found != fisher.fit(x, y, seed=1)
    noise = fisher.fit(x, 5 + rng.normal(size=60))
    assert noise.r2 < 0  # worse than the mean of y
    assert math.isnan(fisher.fit(x, np.ones(60)).r2)


def test_selective_updates():
    prompts = [drawn(8, seed) for seed in range(40)]
    flat = dataclasses.replace(prompts[0], rewards=torch.ones(8).double())
    found = fisher.signal([*prompts[:3], flat])
    assert found.norm[3] == 0 and found.pass_rate[3] == 1 and found.flat >= 0.25
    by_hand = fisher.advantages(prompts[1].rewards, "grpo")
    assert float(found.norm[1]) == pytest.approx(float((by_hand @ prompts[1].products @ by_hand).sqrt() / 8))
    many = fisher.signal(prompts, "rloo")
    assert sum(n for _, n in many.by_rate.values()) == 40
    for rate, (norm, n) in many.by_rate.items():
        own = many.norm[(many.pass_rate - rate).abs() < 1e-6]
        assert len(own) == n and float(own.mean()) == pytest.approx(norm) and rate * 8 == round(rate * 8)
    assert float(fisher.signal([toy()]).pass_rate) == pytest.approx(
        float(LOGITS.softmax(0)[[1, 3]].sum())
    )  # 0.1 is no pass


def test_doublings_of_the_predicted_risk():
    laws = [fisher.law(drawn(8, seed)) for seed in range(6)]
    measured, predicted = sum(one.risk["grpo"] for one in laws), sum(one.predicted for one in laws)
    assert 2 ** fisher.doublings(laws, "grpo") == pytest.approx(measured / predicted)
    without = sum(one.variance * one.sampled for one in laws)
    assert 2 ** fisher.doublings(laws, "centred", "sampled") == pytest.approx(
        1 + sum(one.covariance for one in laws) / without
    )
    flat = fisher.law(dataclasses.replace(drawn(), rewards=torch.ones(8).double()))
    assert math.isnan(fisher.doublings([flat], "grpo"))


def test_groups_without_a_right_answer_over_mixed_ones():
    mixed, wrong = (
        dataclasses.replace(drawn(), rewards=torch.tensor([x] + [0.0] * 7).double(), task="a") for x in (1.0, 0.1)
    )
    some = [mixed, wrong] * 3
    assert fisher.over_mixed(some, 0.0) == pytest.approx(1, abs=1e-3)  # GRPO blows the tenth of a point up
    assert fisher.over_mixed(some, 0.0, "centred") == pytest.approx(0.1)
    assert math.isnan(fisher.over_mixed(some, 1.0)) and math.isnan(fisher.over_mixed(some[:5], 0.0))
    longer = [dataclasses.replace(g, products=9 * g.products, task="b") for g in [mixed] * 3]
    assert fisher.over_mixed(some + longer, 0.0, "centred") == pytest.approx(0.1)  # each task by itself


# --- a policy ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(small_preset):
    return load_policy(small_preset)


@pytest.fixture(scope="module")
def unsure():
    """The bundled base with its logits shrunk, so that it gives several answers to one question."""
    policy = load_policy(get_preset("tiny"))
    with torch.no_grad():
        policy.model.model.language_model.norm.weight.mul_(0.6)
    return policy


EXIST = PROBES["exist"].rows(5, 3)


def test_scores_are_those_of_one_backward_each(small):
    rows = [*PROBES["color"].rows(3, 2), *PROBES["arithmetic"].rows(3, 2)]
    answers = ["the ring is red .", "blue", "", "2 + 2 = 4 ."]
    got = fisher.scores(small, rows, answers)
    small.model.eval()
    loop = bench.gradients_in_a_loop(
        small, [dataclasses.replace(r, answer=a) for r, a in zip(rows, answers, strict=True)]
    )
    for mine, single in zip(got, loop, strict=True):
        wanted = torch.cat([single[name].flatten() for name in sorted(single)])
        torch.testing.assert_close(mine, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max() + 1))
    first = fisher.scores(small, rows[:1], answers[:1], SOME, length=1)
    other = fisher.scores(small, rows[:1], ["the sky"], SOME, length=1)
    torch.testing.assert_close(first, other)  # what comes after the first token does not count


def test_a_sketch_is_near_and_not_too_large_on_average(small):
    rows = [*PROBES["color"].rows(3, 3), *EXIST]
    answers = [row.answer for row in rows]
    exact = fisher.scores(small, rows, answers)
    wanted = Fisher(exact[3:], torch.full((3,), 1 / 3)).form(exact[:3]).diagonal()
    corrected, plain = [], []
    for seed in range(12):
        sketch = CountSketch(1024, seed)
        made = fisher.scores(small, rows, answers, sketch=sketch)
        assert made.shape == (6, 1024)
        corrected.append(Fisher(made[3:], torch.full((3,), 1 / 3), sketch=sketch).form(made[:3]).diagonal())
        plain.append(fisher.risk(made[:3], made[3:]))
    bias = (exact[:3].double().square().sum(1) * exact[3:].double().square().sum(1).mean()) / 1024
    assert ((torch.stack(plain).mean(0) - wanted) / bias == pytest.approx(1, abs=0.8)) or bool(
        (bias < 0.02 * wanted).all()
    )
    torch.testing.assert_close(torch.stack(corrected).mean(0), wanted, rtol=0.15, atol=float(bias.max()) / 2)


def test_the_sampled_fisher_goes_to_the_enumerated_one(unsure):
    """Answers of one token, whose space is the vocabulary; asked nothing, it does not know what to say."""
    rows = [dataclasses.replace(row, prompt="think first .") for row in EXIST[:2]]
    exact = fisher.first_tokens(unsure, rows, SOME, least=1e-5)
    assert exact.covered == pytest.approx(1, abs=2e-4) and (exact.weights > 0.01).sum() >= 6
    mean = exact.weights.float() @ exact.scores
    assert mean.norm() < 1e-3 * exact.scores.norm(dim=1).max()  # scores have mean 0
    g = fisher.scores(unsure, EXIST, [row.answer for row in EXIST], SOME)
    wanted = fisher.risk(g, exact.scores, exact.weights)
    errors = []
    for per_prompt in (8, 200):
        found = fisher.sampled(unsure, rows, per_prompt, 3, SOME, longest=1)
        assert float(found.weights.sum()) == pytest.approx(1) and len(found.scores) <= 2 * per_prompt
        errors.append(float(((fisher.risk(g, found.scores, found.weights) - wanted) / wanted).abs().max()))
    assert errors[1] < 0.2 and errors[1] < errors[0], errors


def test_listed_answers_are_weighted_with_their_probabilities(unsure):
    answers = [[row.answer, "yes", "no , there is a ring ."] for row in EXIST]
    found = fisher.enumerated(unsure, EXIST, answers, SOME)
    assert found.scores.shape[0] == 9 and 0 < found.covered < 1
    logp, _ = dynamics.log_likelihoods(unsure, EXIST)
    torch.testing.assert_close(found.weights[::3] * 3, logp.double().exp())
    with pytest.raises(UserError, match="listed twice"):
        fisher.enumerated(unsure, EXIST[:1], [["yes", "yes"]], SOME)


def reward(text, row):
    return 0.9 * (PROBES[row.task].score(text, row) == "correct") + 0.1 * text.endswith(".")


def test_a_policy_s_groups_are_made_of_its_replies(unsure):
    earlier = fisher.sampled(unsure, PROBES["color"].rows(0, 4), 3, 2, SOME, longest=10)
    groups = fisher.groups(unsure, earlier, EXIST, reward, 5, seed=2, longest=10)
    texts = fisher._sample(unsure, EXIST, 5, 2, 1, 10)
    greedy = generate(unsure, EXIST, 10)
    for i, (row, one) in enumerate(zip(EXIST, groups, strict=True)):
        replies = texts[5 * i : 5 * i + 5]
        rewards = [reward(text, row) for text in replies]
        assert (
            one.rewards.tolist() == pytest.approx(rewards)
            and one.greedy == reward(greedy[i], row)
            and one.task == "exist"
        )
        law = fisher.law(one)
        for how in one.estimators:
            made = fisher.update_directions(unsure, row, replies, rewards, how, one.greedy, where=SOME)
            risks = fisher.risk(made, earlier.scores, earlier.weights)
            assert law.risk[how] == pytest.approx(float(risks.mean()), rel=1e-4)
            whole = fisher.update_directions(unsure, row, replies, rewards, how, one.greedy, mean=True, where=SOME)
            assert law.mean_risk[how] == pytest.approx(
                float(fisher.risk(whole, earlier.scores, earlier.weights)), rel=1e-3, abs=1e-9
            )
        gold = fisher.update_directions(unsure, row, replies, rewards, "sft", where=SOME)
        assert law.gold == pytest.approx(float(fisher.risk(gold, earlier.scores, earlier.weights)), rel=1e-4)
        assert law.gold_logp == pytest.approx(float(dynamics.log_likelihoods(unsure, [row])[0]), rel=1e-4)
    again = fisher.variance_law(unsure, PROBES["color"].rows(0, 4), EXIST, reward, 5, 2, 3, SOME, longest=10)
    assert again == [fisher.law(one) for one in groups]


# --- what cannot be done is said -------------------------------------------------------------------------------------------------


def test_errors(small, monkeypatch):
    r = torch.tensor([0.0, 1.0])
    with pytest.raises(UserError, match="no estimator 'ppo'"):
        fisher.advantages(r, "ppo")
    with pytest.raises(UserError, match="pass `greedy`"):
        fisher.advantages(r, "remax")
    with pytest.raises(UserError, match="two or more"):
        fisher.advantages(r[:1], "grpo")
    with pytest.raises(UserError, match="no inner products"):
        fisher.risk(torch.zeros(2, 3), torch.zeros(2, 4))
    s, pi = fisher.softmax_scores(LOGITS)
    with pytest.raises(UserError, match="do not match"):
        fisher.group(s, r, s[0], Fisher(s, pi), 0.0)
    with pytest.raises(UserError, match=r"add up to 0\.5"):
        fisher.group(s, REWARDS, s[0], Fisher(s, pi), 0.0, pi / 2)
    with pytest.raises(UserError, match="Only 1 prompts"):
        fisher.fit([0, 0, 0, 0, 1], [1, 1, 1, 1, 1])
    with pytest.raises(UserError, match="one finite x and y"):
        fisher.fit([1.0, math.nan], [1.0, 1.0])
    with pytest.raises(UserError, match="no prompts"):
        fisher.fits([])
    with pytest.raises(UserError, match="no groups"):
        fisher.signal([])
    with pytest.raises(UserError, match="do not match 1 answers"):
        fisher.scores(small, EXIST, ["yes"])
    monkeypatch.setattr(fisher, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match="pass a CountSketch"):
        fisher.scores(small, EXIST, ["yes"] * 3)
