"""How much an update risks of what was learnt before, and whether that goes with the variance of the reward (2507.05386, v2 to v4).

The risk of an update direction g is R(g) = g' F g, with F = E_x E_{a ~ pi} s s' the Fisher information of the earlier task at the
weights from which the new task starts, and s = grad log pi(a|x). A step eta * g costs the earlier task a KL divergence of
eta^2 R(g) / 2, to second order. F is never formed: g' F g = E (s . g)^2, so scores of earlier answers are all that is needed, sampled
ones or, where they are few, all of them with their probabilities.

The paper's proposition: E_a R(g_RFT(a)) ~ Var[r] R(g_SFT). With g_RFT(a) = (r - mean) s(a) ("centred" below, action by action) it
takes three steps, of which only the first is an identity:

    E (r - mean)^2 s'Fs  =  Var[r] E s'Fs + Cov((r - mean)^2, s'Fs)     exact
                         ~  Var[r] E s'Fs                                if the covariance is small
                         ~  Var[r] R(g_SFT)                              if the gold answer's score is like those of sampled answers

A `Law` holds all of it apart, and what the estimators that are really run do to it. The core works on plain tensors: scores are rows
of (n, d), whether of five logits or of a model. The formula and the estimators were read in notes on the paper, not in its proof.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from tqdm import tqdm

from rftkit import dynamics
from rftkit.config import UserError
from rftkit.dynamics import CountSketch
from rftkit.evals import Interval
from rftkit.policy import Policy, generate
from rftkit.rollouts import sample_seed
from rftkit.tasks import Row

How = Literal["reinforce", "centred", "rloo", "remax", "grpo"]
EPSILON = 1e-6  # that the paper's code adds to the standard deviation
MOST_BYTES = 3 * 2**30  # of scores kept at once

# --- the core: plain tensors ------------------------------------------------------------------------------------------------


def risk(g: Tensor, scores: Tensor, weights: Tensor | None = None) -> Tensor:
    """R(g) = g' F g of each row of g (n, d), F = sum_j weights_j s_j s_j' over the scores (m, d): shape (n,), float64.

    `weights` (m,) sum to 1; without them all scores count alike, as samples do.
    """
    squares = _products(g, scores).square()
    return squares.mean(1) if weights is None else squares @ weights.double()


def _products(a: Tensor, b: Tensor) -> Tensor:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise UserError(
            f"Vectors of shape {tuple(a.shape)} and {tuple(b.shape)} have no inner products: make both with the same `where` and `sketch`."
        )
    return (a @ b.mT).double()


def advantages(rewards: Tensor, how: How, greedy: float | None = None, probabilities: Tensor | None = None) -> Tensor:
    """What each score is multiplied with, shape of `rewards` (..., n), for groups of n samples along the last axis.

    reinforce: r. centred: r - mean of the group. rloo: r - mean of the others, which is n/(n-1) times centred. remax: r - reward
    of the greedy answer. grpo: centred over the standard deviation (of n - 1, plus EPSILON). With `probabilities` (n,) the rewards are
    those of all answers, means and deviations are the exact ones, and rloo, as of very many samples, is centred.
    """
    if how not in get_args(How):
        raise UserError(f"There is no estimator {how!r} here: choose one of {', '.join(get_args(How))}.")
    if how == "remax" and greedy is None:
        raise UserError("ReMax takes the greedy answer's reward off: pass `greedy`.")
    n = rewards.shape[-1]
    if probabilities is None and n < 2 and how in ("centred", "rloo", "grpo"):
        raise UserError(
            f"{how} compares the samples of a group, and one alone has nothing to compare with: take two or more."
        )
    r = rewards.double()
    if how == "reinforce":
        return r
    if how == "remax":
        return r - greedy
    mean = r.mean(-1, keepdim=True) if probabilities is None else (r @ probabilities.double())[..., None]
    centred = r - mean
    if how == "grpo":
        std = (
            r.std(-1, keepdim=True)
            if probabilities is None
            else (centred.square() @ probabilities.double())[..., None].sqrt()
        )
        return centred / (std + EPSILON)
    return centred * n / (n - 1) if how == "rloo" and probabilities is None else centred


def directions(scores: Tensor, advantages: Tensor, mean: bool = False) -> Tensor:
    """A_i s_i of each rollout, (n, d); with `mean` their average, the group's gradient, (1, d).

    The proposition is about single sampled actions. An update averages over the group (and over prompts), which lowers the risk
    further, by up to n: averages are no part of the formula, and have a risk of their own in `Law`.
    """
    each = advantages.to(scores)[:, None] * scores
    return each.mean(0, keepdim=True) if mean else each


def softmax_scores(logits: Tensor, x: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Scores of all V answers of a softmax, and their probabilities (V,): the toy.

    By the logits (V,) themselves the score of answer a is e_a - pi: (V, V). With logits = W x, by W: its outer product with the features x
    (d,), flattened, (V, V * d), so that prompts share weights.
    """
    pi = logits.softmax(-1)
    by_logits = torch.eye(len(pi)).to(pi) - pi
    return (by_logits if x is None else (by_logits[:, :, None] * x.to(pi)).flatten(1)), pi


@dataclass(frozen=True)
class Fisher:
    """F of an earlier task as its scores (m, d) and their weights (m,), and how they were made, so that others are made alike.
    `covered` is the share of all answers' probability that is in it: 1 but for an enumeration that leaves answers out.
    """

    scores: Tensor
    weights: Tensor
    where: str = ""
    sketch: CountSketch | None = None
    covered: float = 1.0

    def form(self, g: Tensor) -> Tensor:
        """g_i' F g_j of the rows of g (n, d): (n, n), float64, the risks on its diagonal.

        Squares of sketched inner products are too large on average, by |g|^2 |s|^2 / size, most for vectors that are nearly
        orthogonal, as these are: that is taken off again.
        """
        with_scores = _products(g, self.scores)
        found = with_scores * self.weights.double() @ with_scores.mT
        if self.sketch:
            trace = self.weights.double() @ self.scores.double().square().sum(1)
            found = found - _products(g, g) * trace / self.sketch.size
        return found


@dataclass(frozen=True)
class Group:
    """One prompt of the new task: n sampled answers, or all answers with their `probabilities` (n,).

    rewards (n,); products (n, n) of their scores; risks (n, n) s_i' F s_j, on the diagonal each answer's own; gold is R(g_SFT), the
    risk of the gold answer's score (summed over its tokens, as the answers' are), gold_logp its log-probability in nats. `greedy` is
    the reward of the greedy answer.
    """

    rewards: Tensor
    products: Tensor
    risks: Tensor
    gold: float
    gold_logp: float
    probabilities: Tensor | None = None
    greedy: float | None = None
    task: str = ""

    @property
    def shares(self) -> Tensor:
        """(n,), summing to 1"""
        n = len(self.rewards)
        return (
            torch.full((n,), 1 / n, dtype=torch.float64) if self.probabilities is None else self.probabilities.double()
        )

    @property
    def estimators(self) -> list[How]:
        return [how for how in get_args(How) if how != "remax" or self.greedy is not None]

    def advantages(self, how: How) -> Tensor:
        return advantages(self.rewards, how, self.greedy, self.probabilities)


def group(
    scores: Tensor, rewards: Tensor, gold_score: Tensor, fisher: Fisher, gold_logp: float,
    probabilities: Tensor | None = None, greedy: float | None = None, task: str = "",
) -> Group:  # fmt: skip
    """From scores (n, d), rewards (n,) and the gold answer's score (d,)."""
    if len(scores) != len(rewards):
        raise UserError(f"{len(scores)} scores do not match {len(rewards)} rewards: pass one of each an answer.")
    if probabilities is not None and not math.isclose(float(probabilities.sum()), 1, abs_tol=1e-4):
        raise UserError(
            f"The answers' probabilities add up to {float(probabilities.sum()):.4g}: pass all answers, or normalise."
        )
    both = torch.cat([scores, gold_score[None].to(scores)])
    form, n = fisher.form(both), len(scores)
    return Group(
        rewards.double(),
        _products(scores, scores),
        form[:n, :n],
        float(form[n, n]),
        gold_logp,
        probabilities,
        greedy,
        task,
    )


@dataclass(frozen=True)
class Law:
    """The proposition at one prompt, its steps apart. The exact one: risk["centred"] = variance * sampled + covariance.

    mean and variance (over n, not n - 1) of the reward, gold = R(g_SFT), sampled = E_a s'Fs, covariance of (r - mean)^2 and s'Fs;
    risk: of each estimator E_a A^2 s'Fs, action by action; mean_risk: that of the average of A s, as an update takes it.

    Of risk, rloo is (n/(n-1))^2 times centred. Were s'Fs the same for all answers, reinforce would exceed centred by mean^2 and remax by
    (mean - greedy)^2 of it, and grpo would not know the variance: E A^2 = (n-1)/n whatever it is, but for groups of equal rewards, where it is 0.
    """

    mean: float
    variance: float
    gold: float
    gold_logp: float
    sampled: float
    covariance: float
    risk: dict[How, float]
    mean_risk: dict[How, float]
    task: str = ""

    @property
    def predicted(self) -> float:
        """Var[r] R(g_SFT), the paper's right-hand side."""
        return self.variance * self.gold

    @property
    def swap(self) -> float:
        """E_a s'Fs / R(g_SFT): what the last step passes over. Far below 1 where the gold answer is improbable."""
        return self.sampled / self.gold if self.gold > 0 else math.nan

    @property
    def coupling(self) -> float:
        """What the covariance multiplies Var[r] E s'Fs with: 1 if there is none. NaN where the rewards are all equal."""
        product = self.variance * self.sampled
        return 1 + self.covariance / product if product > 0 else math.nan


def law(group: Group) -> Law:
    """Exact expectations where the group holds all answers; of samples, their means: the identity holds for these as well."""
    share, r, own = group.shares, group.rewards, group.risks.diagonal()
    mean = float(share @ r)
    squares = (r - mean).square()
    variance, sampled = float(share @ squares), float(share @ own)
    made = {how: group.advantages(how) for how in group.estimators}
    return Law(
        mean, variance, group.gold, group.gold_logp, sampled,
        float(share @ ((squares - variance) * (own - sampled))),
        {how: float(share @ (a.square() * own)) for how, a in made.items()},
        {how: float((share * a) @ group.risks @ (share * a)) for how, a in made.items()},
        group.task,
    )  # fmt: skip


# --- over prompts -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """y ~ slope * x over n prompts. The proposition has no intercept, so the line has none; r2 is 1 - sum of squared errors over
    that about the mean of y, so it is negative for a line that is worse than no x at all. ratio is sum of y over sum of x, which
    a few large values rule less than the slope."""

    slope: Interval
    ratio: Interval
    r2: float
    n: int


def fit(x: ArrayLike, y: ArrayLike, seed: int = 0, level: float = 0.95, resamples: int = 2000) -> Fit:
    """Least squares through the origin, with bootstrap intervals over prompts. Raises UserError below four prompts with x > 0."""
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if a.shape != b.shape or a.ndim != 1 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise UserError(
            f"A line needs one finite x and y a prompt, not shapes {a.shape} and {b.shape}: leave NaN out by name."
        )
    if (a > 0).sum() < 4:
        raise UserError(
            f"Only {(a > 0).sum()} prompts have a predicted risk above 0: take more prompts, or more samples of each."
        )
    index = np.random.default_rng(seed).integers(len(a), size=(resamples, len(a)))
    xs, ys = a[index], b[index]
    tails = [(1 - level) / 2, (1 + level) / 2]

    def interval(value: float, above: np.ndarray, below: np.ndarray) -> Interval:
        lo, hi = np.quantile(above[below > 0] / below[below > 0], tails)
        return Interval(value, float(lo), float(hi))

    slope = float(a @ b / (a @ a))
    about = float(((b - b.mean()) ** 2).sum())
    return Fit(
        interval(slope, (xs * ys).sum(1), (xs * xs).sum(1)),
        interval(float(b.sum() / a.sum()), ys.sum(1), xs.sum(1)),
        1 - float(((b - slope * a) ** 2).sum()) / about if about > 0 else math.nan,
        len(a),
    )


def fits(laws: Sequence[Law], predictor: Literal["gold", "sampled"] = "gold", seed: int = 0) -> dict[How, Fit]:
    """Of each estimator its risk, action by action, over Var[r] R(g_SFT), or over Var[r] E s'Fs ("sampled"): the formula without its last step.

    Where a group is small, x and y share the chance of one and the same sample.
    """
    if not laws:
        raise UserError("There are no prompts to fit a line to: pass at least four.")
    x = [one.variance * getattr(one, predictor) for one in laws]
    common = [how for how in get_args(How) if all(how in one.risk for one in laws)]
    return {how: fit(x, [one.risk[how] for one in laws], seed) for how in common}


def doublings(laws: Sequence[Law], how: How, predictor: Literal["gold", "sampled"] = "gold") -> float:
    """log2 of measured over predicted risk, both summed over prompts: 0 where the formula holds, 1 where the risk is twice as large.
    NaN where either sum is 0.

    A statement about the sums, in which a few gold answers that the policy would hardly give weigh most: it may hold where it holds
    for no single prompt. `fit` looks at prompts.
    """
    predicted = sum(one.variance * getattr(one, predictor) for one in laws)
    measured = sum(one.risk[how] for one in laws)
    return math.log2(measured / predicted) if measured > 0 and predicted > 0 else math.nan


@dataclass(frozen=True)
class Signal:
    """Which prompts move the policy. pass_rate (g,) is the share of right answers, norm (g,) the length of the group's gradient.

    flat is the share of groups whose rewards are all equal; by_rate: pass rate -> (mean norm, number of groups).
    """

    flat: float
    pass_rate: Tensor
    norm: Tensor
    by_rate: dict[float, tuple[float, int]]


def signal(groups: Sequence[Group], how: How = "grpo", right: float = 0.5) -> Signal:
    """Selective updates (v6 of 2507.05386): an answer is right if its reward is above `right`."""
    if not groups:
        raise UserError("There are no groups to look at: pass at least one.")
    made = [(g.shares * g.advantages(how), g) for g in groups]
    norm = torch.stack([(a @ g.products @ a).clamp(min=0).sqrt() for a, g in made])
    pass_rate = torch.stack([(g.shares * (g.rewards > right)).sum() for g in groups])
    flat = sum(bool(g.rewards.max() == g.rewards.min()) for g in groups) / len(groups)
    by_rate = {}
    for rate in sorted({round(float(p), 6) for p in pass_rate}):
        own = norm[(pass_rate - rate).abs() < 1e-6]
        by_rate[rate] = (float(own.mean()), len(own))
    return Signal(flat, pass_rate, norm, by_rate)


def over_mixed(groups: Sequence[Group], share: float, how: How = "grpo", least: int = 3) -> float:
    """Mean gradient norm of the groups with this share of right answers over that of those with some right and some wrong, of each task
    by itself, since replies of tasks differ in length; the mean over the tasks with at least `least` groups of either kind, NaN without any."""
    found = []
    for task in dict.fromkeys(group.task for group in groups):
        own = signal([group for group in groups if group.task == task], how)
        inside = own.norm[(own.pass_rate - share).abs() < 1e-6]
        mixed = own.norm[(own.pass_rate > 0) & (own.pass_rate < 1)]
        if min(len(inside), len(mixed)) >= least and mixed.mean() > 0:
            found.append(float(inside.mean() / mixed.mean()))
    return sum(found) / len(found) if found else math.nan


# --- a policy's scores ---------------------------------------------------------------------------------------------------------


def scores(
    policy: Policy, rows: Sequence[Row], answers: Sequence[str], where: str = "", sketch: CountSketch | None = None,
    length: int | None = None, batch_size: int = 16,
) -> Tensor:  # fmt: skip
    """s = grad log pi(answer | row) of each pair, by the trained weights whose name `where` (a regex) is found in: (n, d), float32.

    Summed over the answer's tokens, the one that ends it too, or over its first `length` tokens: all there were of an answer that was
    cut off. d is the number of those weights, or the sketch's size. Raises UserError if (n, d) takes more than MOST_BYTES.
    """
    if len(rows) != len(answers):
        raise UserError(f"{len(rows)} rows do not match {len(answers)} answers: pass one of each.")
    said = [replace(row, answer=answer) for row, answer in zip(rows, answers, strict=True)]
    out = torch.empty(len(said), _width(policy, len(said), where, sketch))
    for index in dynamics.batches(said, batch_size):
        some = [said[i] for i in index]
        out[index[0] : index[-1] + 1] = _flat(
            policy, functools.partial(_log_likelihood, policy, some, length), where, sketch
        )
    return out


def _log_likelihood(policy: Policy, rows: Sequence[Row], length: int | None) -> Tensor:
    logits, targets = dynamics.answer_logits(policy, rows)
    if length is not None:
        own = targets != -100
        targets = targets.masked_fill(own.cumsum(-1) > length, -100)
    return dynamics.token_logps(logits, targets).sum(-1)


def _flat(policy: Policy, score: Callable[[], Tensor], where: str, sketch: CountSketch | None) -> Tensor:
    """(n, d): all parameters' gradients side by side, or their sketches on top of each other."""
    blocks = dynamics.per_example_gradients(
        policy.model, score, where, sketch or (lambda name, block: block.flatten(1))
    )
    found = [dynamics.dense(blocks[name]).float().cpu() for name in sorted(blocks)]
    return torch.stack(found).sum(0) if sketch else torch.cat(found, 1)


def _width(policy: Policy, n: int, where: str, sketch: CountSketch | None) -> int:
    names = dynamics.matching(policy.model, where)
    width = sketch.size if sketch else sum(p.numel() for p in policy.model.parameters() if id(p) in names)
    if 4 * n * width > MOST_BYTES:
        raise UserError(
            f"{n} scores by {width:,} weights take {4 * n * width / 2**30:.1f} GiB: narrow `where`, or pass a CountSketch."
        )
    return width


def sampled(
    policy: Policy, rows: Sequence[Row], per_prompt: int = 32, seed: int = 0, where: str = "", sketch: CountSketch | None = None,
    longest: int | None = None,
) -> Fisher:  # fmt: skip
    """F of the rows' task from `per_prompt` answers to each, sampled at temperature 1; unbiased for R of any g made apart from them.

    An answer is sampled and scored up to `longest` tokens, the preset's most if None. Where the policy is nearly sure, answers that it
    seldom gives, with their long scores, make much of F: sample many. Texts that recur are scored once, so that this costs little.
    """
    longest = longest or policy.preset.max_completion
    answers = _sample(policy, rows, per_prompt, seed, 0, longest)
    counts = Counter((i // per_prompt, answer) for i, answer in enumerate(answers))
    found = scores(policy, [rows[i] for i, _ in counts], [answer for _, answer in counts], where, sketch, longest)
    return Fisher(found, torch.tensor(list(counts.values()), dtype=torch.float64) / len(answers), where, sketch)


def _sample(policy: Policy, rows: Sequence[Row], k: int, seed: int, step: int, longest: int) -> list[str]:
    """k answers to each row, one row after the other."""
    seeds = [sample_seed(seed, step, i, j) for i in range(len(rows)) for j in range(k)]
    return generate(policy, [row for row in rows for _ in range(k)], longest, temperature=1.0, seed=seeds)


def first_tokens(
    policy: Policy, rows: Sequence[Row], where: str = "", sketch: CountSketch | None = None, least: float = 1e-6
) -> Fisher:  # fmt: skip
    """F of the answers' first token, exact: every token that has a probability of at least `least`, with that probability.

    For answers of one word ("yes", "no") this is F but for the token that ends them; a vocabulary is a small answer space.
    """
    pis = []
    with torch.no_grad(), dynamics.evaluating(policy.model):
        for row in rows:
            pis.append(dynamics.answer_logits(policy, [row])[0][0, 0].softmax(-1).double().cpu())
    ids = [(pi >= least).nonzero()[:, 0] for pi in pis]
    _width(policy, sum(map(len, ids)), where, sketch)
    found = [
        _flat(policy, functools.partial(_first_logps, policy, row, part), where, sketch)
        for row, some in zip(rows, ids, strict=True)
        for part in some.split(32)
    ]
    weights = torch.cat([pi[some] for pi, some in zip(pis, ids, strict=True)]) / len(rows)
    return Fisher(torch.cat(found), weights, where, sketch, float(weights.sum()))


def _first_logps(policy: Policy, row: Row, ids: Tensor) -> Tensor:
    """log pi of each id as the answer's first token; as many rows as ids, since gradients are one a row."""
    logits, _ = dynamics.answer_logits(policy, [row] * len(ids))
    return logits[:, 0].log_softmax(-1)[torch.arange(len(ids)), ids.to(logits.device)]


def enumerated(
    policy: Policy, rows: Sequence[Row], answers: Sequence[Sequence[str]], where: str = "", sketch: CountSketch | None = None
) -> Fisher:  # fmt: skip
    """F from listed answers to each row, weighted with their probabilities. `covered` says how much the lists leave out."""
    if any(len(set(some)) < len(some) for some in answers):
        raise UserError("An answer is listed twice for one row, and would count twice: list each once.")
    asked = [row for row, some in zip(rows, answers, strict=True) for _ in some]
    listed = [answer for some in answers for answer in some]
    logps, _ = dynamics.log_likelihoods(
        policy, [replace(row, answer=answer) for row, answer in zip(asked, listed, strict=True)]
    )
    weights = logps.double().exp() / len(rows)
    return Fisher(scores(policy, asked, listed, where, sketch), weights, where, sketch, float(weights.sum()))


def update_directions(
    policy: Policy, row: Row, replies: Sequence[str], rewards: Sequence[float], how: How | Literal["sft"],
    greedy: float | None = None, mean: bool = False, where: str = "", sketch: CountSketch | None = None,
) -> Tensor:  # fmt: skip
    """The direction, uphill, in which each reply moves the policy, (n, d), or their mean, (1, d): see `advantages`, `directions`.

    "sft" is the score of row.answer, (1, d), whatever the replies.
    """
    if how == "sft":
        return scores(policy, [row], [row.answer], where, sketch)
    made = advantages(torch.as_tensor(rewards, dtype=torch.float64), how, greedy)
    return directions(scores(policy, [row] * len(replies), replies, where, sketch), made, mean)


# --- the law on a policy ---------------------------------------------------------------------------------------------------------


def groups(
    policy: Policy, fisher: Fisher, rows: Sequence[Row], reward: Callable[[str, Row], float], n_samples: int = 8, seed: int = 0,
    longest: int | None = None,
) -> list[Group]:  # fmt: skip
    """Of each row `n_samples` answers at temperature 1 and the greedy one, graded by reward(text, row), and their risks under F.

    Scores are made as those of `fisher`; only one row's are kept at a time. `longest` is the most new tokens, the preset's if None.
    """
    longest = longest or policy.preset.max_completion
    texts = _sample(policy, rows, n_samples, seed, 1, longest)
    greedy = generate(policy, list(rows), longest)
    gold_logps, _ = dynamics.log_likelihoods(policy, rows)
    found = []
    for i, row in enumerate(tqdm(rows, desc="risks", mininterval=10)):
        replies = texts[i * n_samples : (i + 1) * n_samples]
        distinct = {text: k for k, text in enumerate(dict.fromkeys(replies))}
        made = scores(policy, [row] * len(distinct), list(distinct), fisher.where, fisher.sketch, longest)
        gold = scores(policy, [row], [row.answer], fisher.where, fisher.sketch)[0]
        rewards = torch.tensor([float(reward(text, row)) for text in replies], dtype=torch.float64)
        best = float(reward(greedy[i], row))
        scored = made[[distinct[text] for text in replies]]
        found.append(group(scored, rewards, gold, fisher, float(gold_logps[i]), greedy=best, task=row.task))
    return found


def variance_law(
    policy: Policy, earlier_rows: Sequence[Row], new_rows: Sequence[Row], reward: Callable[[str, Row], float], n_samples: int = 8,
    seed: int = 0, per_prompt: int = 32, where: str = "", sketch: CountSketch | None = None, longest: int | None = None,
) -> list[Law]:  # fmt: skip
    """The proposition at each new row, with F from `per_prompt` sampled answers to each earlier row: `sampled`, `groups`, `law` in a row."""
    fisher = sampled(policy, earlier_rows, per_prompt, seed, where, sketch, longest)
    return [law(one) for one in groups(policy, fisher, new_rows, reward, n_samples, seed, longest)]
