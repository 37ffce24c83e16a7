"""A question bank with numbers of its own for every student: the same seed asks all the same kinds, each with another deal.

A kind is a function of a generator that draws the numbers, works the answer out with the package's own functions and writes text,
answer and worked solution in Markdown. What is drawn depends on (student, seed, place on the sheet, kind) alone, so that a sheet
can be made again when it is to be marked.
"""

from __future__ import annotations

import argparse
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rftkit import (
    continual,
    drift,
    dynamics,
    estimators,
    evals,
    fisher,
    jigsaw,
    parity,
    points,
    predict,
    prefix_rft,
    rif,
    rollouts,
    runs,
    spectra,
)
from rftkit.config import UserError
from rftkit.scenes import rng_for

Rng = np.random.Generator
MOST = 100  # questions on a sheet


@dataclass(frozen=True)
class Question:
    """text, answer and solution are Markdown. difficulty: 1 (look it up and apply it) to 3 (put two ideas together).

    choices: () where the answer is free, else what to choose from, named a, b, c, ...; `answer` then begins with the letter.
    given and value: the numbers drawn and the answer as a number, so that somebody else can work it out again.
    """

    kind: str
    notebook: str
    difficulty: int
    minutes: int
    text: str
    answer: str
    solution: str
    given: dict[str, Any]
    value: Any
    choices: tuple[str, ...] = ()


Kind = Callable[[Rng], Question]


# --- writing --------------------------------------------------------------------------------------------------------------


def _number(x: float, digits: int = 2, signed: bool = False) -> str:
    """Rounded, without "-0.00"."""
    return f"{round(float(x), digits) + 0.0:{'+' if signed else ''}.{digits}f}"


def _numbers(xs: Iterable[float], digits: int = 2, signed: bool = False) -> str:
    return ", ".join(_number(x, digits, signed) for x in xs)


def _order(indices: Sequence[int]) -> str:
    return " ".join(map(str, indices))


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *[[str(cell) for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _drawing(letters: Sequence[str], cols: int) -> list[str]:
    return [" ".join(letters[i : i + cols]) for i in range(0, len(letters), cols)]


def _choice(rng: Rng, question: Question, right: str, wrong: Sequence[str]) -> Question:
    """The question with its choices in a drawn order, and the letter of the right one."""
    choices = tuple([right, *wrong][i] for i in rng.permutation(len(wrong) + 1))
    letter = "abcdefgh"[choices.index(right)]
    return replace(question, choices=choices, answer=f"({letter}) {right}", value=right)


# --- 01: the jigsaw -------------------------------------------------------------------------------------------------------


def _puzzle(rng: Rng, grids: Sequence[tuple[int, int]]) -> jigsaw.Puzzle:
    """A puzzle whose two conventions differ."""
    rows, cols = grids[int(rng.integers(len(grids)))]
    while True:
        puzzle = jigsaw.make_puzzle(Image.new("RGB", (cols, rows)), rows, cols, seed=int(rng.integers(2**31)))
        if jigsaw.invert(puzzle.answer) != puzzle.answer:
            return puzzle


def read_letters(rng: Rng) -> Question:
    puzzle = _puzzle(rng, ((2, 2), (2, 3), (3, 2)))
    letters = "ABCDEFGHI"[: len(puzzle.answer)]
    shown = [letters[place - 1] for place in puzzle.permutation]
    rows = zip(_drawing(letters, puzzle.cols), _drawing(shown, puzzle.cols), strict=True)
    steps = "; ".join(f"tile {i} is {x}, of place {letters.index(x) + 1}" for i, x in enumerate(shown, start=1))
    return Question(
        "read_letters", "01", 1, 3,
        "A picture was cut and its tiles were shuffled. Tiles and places are numbered row by row from 1. Write the answer in the "
        "*forward* convention: number X is the place where tile X belongs.\n\n"
        + _table(["original", "shuffled"], list(rows)),
        _order(puzzle.answer),
        f"Go through the shuffled picture: {steps}.",
        {"original": letters, "shown": "".join(shown)}, puzzle.answer,
    )  # fmt: skip


def other_convention(rng: Rng) -> Question:
    puzzle = _puzzle(rng, ((2, 3), (3, 2), (3, 3)))
    inverse = jigsaw.invert(puzzle.answer)
    steps = "; ".join(f"{place} stands at position {tile}" for place, tile in enumerate(inverse, start=1))
    return Question(
        "other_convention", "01", 1, 3,
        f"The forward answer of a {puzzle.rows}x{puzzle.cols} puzzle is `{_order(puzzle.answer)}` (number X is the place where tile X "
        "belongs). Write the answer in the *inverse* convention: number Y is the tile that belongs at place Y.",
        _order(inverse),
        f"Look for each place in the forward answer: {steps}. Applying this twice gives the forward answer back.",
        {"forward": puzzle.answer}, inverse,
    )  # fmt: skip


def mixed_up(rng: Rng) -> Question:
    puzzle = _puzzle(rng, ((2, 3), (3, 3), (3, 4)))
    truth, said = puzzle.answer, jigsaw.invert(puzzle.answer)
    parsed = jigsaw.parse(jigsaw.answer_text(said), puzzle.rows, puzzle.cols)
    right = round(jigsaw.hit_fraction(parsed, truth) * len(truth))
    where = [str(i) for i, (a, b) in enumerate(zip(truth, said, strict=True), start=1) if a == b]
    return Question(
        "mixed_up", "01", 2, 5,
        f"The right answer of a {puzzle.rows}x{puzzle.cols} puzzle is `{_order(truth)}` (forward). A model has the picture wholly right "
        "and writes the *inverse*. How many of its indices does a forward scorer count as right, and how many would a blind guess get "
        "on average?",
        f"{right}; a blind guess gets 1.",
        f"The inverse is `{_order(said)}`. It agrees at position {', '.join(where) or 'none'}: where going from tile to place twice "
        "leads back. Averaged over all puzzles there are 2 such positions, so a mix-up looks like a model that learnt a little. "
        "A blind guess has one right on average, whatever the number of tiles.",
        {"forward": truth}, right,
    )  # fmt: skip


def blind_guess(rng: Rng) -> Question:
    n = int(rng.choice([4, 5, 6, 7, 9]))
    k = int(rng.integers(0, 4)) if n > 4 else int(rng.integers(0, 3))
    deranged = [1, 0]
    for m in range(2, n + 1):
        deranged.append((m - 1) * (deranged[-1] + deranged[-2]))
    share = Fraction(math.comb(n, k) * deranged[n - k], math.factorial(n))
    return Question(
        "blind_guess", "01", 2, 6,
        f"A blind guess is a random order of {n} tiles. What is the probability that exactly {k} of them are right? "
        "(D(m), the number of orders of m things with none in its place, is 1, 0, 1, 2, 9, 44, 265, 1854, 14833, 133496 for m = 0 to 9.)",
        f"{_number(float(share), 4)} (exactly {share})",
        f"Choose the {k} right ones, let no other be right: C({n}, {k}) D({n - k}) / {n}! = "
        f"{math.comb(n, k)} x {deranged[n - k]} / {math.factorial(n)} = {_number(float(share), 4)}.",
        {"n": n, "k": k}, share,
    )  # fmt: skip


def _replies(answer: tuple[int, ...], words: str) -> dict[str, str]:
    """Replies to a puzzle, by what is odd about them."""
    swapped = (answer[1], answer[0], *answer[2:])
    circle = (answer[1], answer[2], answer[0], *answer[3:])
    reply = jigsaw.answer_text
    return {
        "right": reply(answer, words),
        "right, no thinking": reply(answer),
        "two swapped": reply(swapped, words),
        "three in a circle": reply(circle, words),
        "first index repeated": reply([answer[0]] * len(answer), words),
        "one index short": reply(answer[:-1], words),
        "first two only": reply(answer[:2], words),
        "one index too many": reply([*answer, answer[0]], words),
        "no tags": _order(answer),
    }


_RULES = (
    "The reward is hit (share of indices at the right position) + exact (1 if all are right) + format (1 for one think block, then one "
    "answer block that holds a permutation). The strict rules of notebook 01 hold: a repeated index earns no hit, more numbers than "
    "tiles earn no hit."
)


def jigsaw_rewards(rng: Rng) -> Question:
    puzzle = _puzzle(rng, ((2, 2), (2, 3), (3, 3)))
    every = list(_replies(puzzle.answer, "sky left").items())
    drawn = [every[i] for i in rng.permutation(len(every))[:3]]
    found = [jigsaw.reward_p1(text, puzzle.answer, puzzle.rows, puzzle.cols) for _, text in drawn]
    rows = [
        [i, name, *(_number(x) for x in (r.hit, r.exact, r.fmt, r.total))]
        for i, ((name, _), r) in enumerate(zip(drawn, found, strict=True), start=1)
    ]
    return Question(
        "jigsaw_rewards", "01", 2, 6,
        f"The right answer of a {puzzle.rows}x{puzzle.cols} puzzle is `{_order(puzzle.answer)}`. {_RULES} What do these replies earn?\n\n"
        + "\n".join(f"{i}. `{text}`" for i, (_, text) in enumerate(drawn, start=1)),
        "; ".join(f"{i}: {_number(r.total)}" for i, r in enumerate(found, start=1)),
        _table(["reply", "what it is", "hit", "exact", "format", "total"], rows),
        {"answer": puzzle.answer, "replies": [text for _, text in drawn]}, [r.total for r in found],
    )  # fmt: skip


def best_paid(rng: Rng) -> Question:
    puzzle = _puzzle(rng, ((2, 3), (3, 2), (3, 3)))
    every = list(_replies(puzzle.answer, "hill right").items())[1:]  # the perfect one would be too easy
    while True:
        drawn = [every[i][1] for i in rng.permutation(len(every))[:4]]
        paid = [jigsaw.reward_p1(text, puzzle.answer, puzzle.rows, puzzle.cols).total for text in drawn]
        top = sorted(paid, reverse=True)
        if top[0] - top[1] > 0.05:
            break
    best = drawn[paid.index(top[0])]
    question = Question(
        "best_paid", "01", 2, 5,
        f"The right answer of a {puzzle.rows}x{puzzle.cols} puzzle is `{_order(puzzle.answer)}`. {_RULES} Which reply earns most?",
        "", "Totals: " + "; ".join(f"`{text}` {_number(r)}" for text, r in zip(drawn, paid, strict=True)) + ".",
        {"answer": puzzle.answer, "replies": drawn, "paid": paid}, None,
    )  # fmt: skip
    return _choice(rng, question, f"`{best}`", [f"`{text}`" for text in drawn if text != best])


# --- 02: groups, matched accuracy, seeds ----------------------------------------------------------------------------------


def grpo_group(rng: Rng) -> Question:
    rewards = rng.integers(0, 13, int(rng.integers(4, 7))) / 4.0
    while rewards.std() < 0.3:
        rewards = rng.integers(0, 13, len(rewards)) / 4.0
    mean, std = rewards.mean(), rewards.std(ddof=1)
    advantages = (rewards - mean) / (std + 1e-4)  # TRL's, as notebook 02 has it
    return Question(
        "grpo_group", "02", 1, 5,
        f"A group of {len(rewards)} replies to one puzzle earned {_numbers(rewards)}. What are GRPO's advantages? (The standard deviation "
        "divides by G - 1; the 1e-4 in the denominator does not show in two decimals.)",
        _numbers(advantages, signed=True),
        f"Mean {_number(mean, 3)}, standard deviation {_number(std, 3)}; each reward minus the mean, divided by it. The sum is 0, so the "
        "*value* of the loss on fresh samples is 0, and its gradient is not.",
        {"rewards": rewards.tolist()}, advantages.tolist(),
    )  # fmt: skip


def binary_group(rng: Rng) -> Question:
    size = int(rng.choice([6, 8, 10, 12, 16]))
    right = int(rng.integers(1, size))
    rewards = torch.tensor([1.0] * right + [0.0] * (size - right), dtype=torch.float64)
    plain = prefix_rft.advantages(rewards[None], torch.zeros(1, size, dtype=torch.bool), "dr_grpo")[0][0]
    divided, std = estimators.advantages(rewards[None], "grpo")[0], float(rewards.std())
    pairs = [(float(plain[i]), float(divided[i])) for i in (0, -1)]
    return Question(
        "binary_group", "02", 2, 6,
        f"Of a group of {size} replies {right} {'is' if right == 1 else 'are'} right (reward 1), the others wrong (0). Give the advantage of a right "
        "reply and of a wrong one, for Dr. GRPO (no division) and for GRPO (standard deviation with G - 1).",
        f"Dr. GRPO {_numbers([p[0] for p in pairs], 3, True)}; GRPO {_numbers([p[1] for p in pairs], 3, True)}",
        f"Dr. GRPO: 1 - {right}/{size} and 0 - {right}/{size}. GRPO divides both by the standard deviation {_number(std, 3)}, "
        "which is largest where half are right: so groups that are nearly all right or all wrong count more than without it.",
        {"size": size, "right": right}, [list(p) for p in zip(*pairs, strict=True)],
    )  # fmt: skip


def _curve(rng: Rng, steps: Sequence[int]) -> tuple[list[float], list[float]]:
    """New-task and prior accuracy at the steps; the new one rises, the prior falls."""
    new = np.cumsum(rng.integers(5, 30, len(steps)))
    new = np.concatenate([[0], new[:-1]])
    prior = 100 - np.concatenate([[0], np.cumsum(rng.integers(1, 14, len(steps) - 1))])
    return (np.minimum(new, 99) / 100).tolist(), (prior / 100).tolist()


def _record(name: str, steps: Sequence[int], new: Sequence[float], prior: Sequence[float]) -> runs.RunRecord:
    rows = [
        {"kind": "eval", "step": s, "new_exact": a, "prior_mean": p} for s, a, p in zip(steps, new, prior, strict=True)
    ]
    return runs.RunRecord(name, name, "tiny", 0, metrics=rows)


def matched_drop(rng: Rng) -> Question:
    target = float(rng.choice([0.3, 0.4]))
    arms = {"A": [0, 10, 20, 30, 40], "B": [0, 50, 100, 150, 200]}
    while True:
        curves = {name: _curve(rng, steps) for name, steps in arms.items()}
        found = {name: runs.at_matched(_record(name, arms[name], *curves[name]), target) for name in arms}
        drops = {name: at["drop"] for name, at in found.items() if at}
        if (
            len(drops) == 2
            and abs(drops["A"] - drops["B"]) > 1
            and all(target not in new for new, _ in curves.values())
        ):
            break
    ends = {name: 100 * (prior[0] - prior[-1]) for name, (_, prior) in curves.items()}
    more = max(drops, key=lambda name: drops[name])
    rows = [
        [
            name,
            *(
                x
                for pair in zip(arms[name], *curves[name], strict=True)
                for x in ("{}: {:.2f} / {:.2f}".format(*pair),)
            ),
        ]
        for name in arms
    ]
    return Question(
        "matched_drop", "02", 3, 10,
        "Each cell is an evaluation: *update: new-task accuracy / prior accuracy*.\n\n"
        + _table(["arm", *(f"evaluation {i}" for i in range(1, 6))], rows)
        + f"\n\nHow many points of prior accuracy had each arm lost where its new-task accuracy first reached {target:.2f} (linear between "
        "evaluations)? Which arm forgot more at matched accuracy, and what would the last column have told?",
        f"A {_number(drops['A'])}, B {_number(drops['B'])} points: {more} forgot more. The last column says A {_number(ends['A'])}, B {_number(ends['B'])}.",
        "Find the update where the straight line of the new task crosses the target "
        + "; ".join(f"({name}: {_number(at['step'])})" for name, at in found.items() if at)
        + ", read the prior off its own line there, and take it from the first prior. The last column compares arms that learnt different amounts.",
        {"target": target, "curves": {name: (arms[name], *curves[name]) for name in arms}}, [drops["A"], drops["B"]],
    )  # fmt: skip


def three_seeds(rng: Rng) -> Question:
    shift = float(rng.choice([3.0, 8.0, 16.0]))
    b = rng.integers(40, 200, 3) / 10
    a = b + np.round(shift + rng.normal(0, 3.0, 3), 1)
    gap = evals.paired_interval(a.tolist(), b.tolist())
    verdict = (
        "the first forgot more"
        if gap.lo > 0
        else "the first forgot less"
        if gap.hi < 0
        else "they cannot be told apart"
    )
    return Question(
        "three_seeds", "02", 2, 7,
        "Points of prior accuracy lost at the target, one run a seed:\n\n"
        + _table(["arm", "seed 0", "seed 1", "seed 2"], [["first", *(_number(x, 1) for x in a)], ["second", *(_number(x, 1) for x in b)]])
        + "\n\nGive the paired interval of 95 % of the difference (t = 4.303 at two degrees of freedom) and say what may be claimed.",
        f"{_number(gap.mean, 2, True)} ({_number(gap.lo, 2, True)} to {_number(gap.hi, 2, True)}): {verdict}.",
        f"Differences {_numbers(a - b, 1, True)}; their mean is {_number(gap.mean)}, their standard deviation (n - 1) {_number((a - b).std(ddof=1))}; "
        "half the width is 4.303 times that by the root of 3. Pairing takes out what a seed did to both arms.",
        {"a": a.tolist(), "b": b.tolist()}, list(gap),
    )  # fmt: skip


# --- 03: learning dynamics ------------------------------------------------------------------------------------------------


def _surprise(chances: Sequence[float]) -> tuple[float, float]:
    """(nats of the answer, perplexity) of tokens with these chances."""
    p = torch.tensor(chances, dtype=torch.float64)
    logits = torch.stack([p, 1 - p], dim=-1).log()[None]  # a vocabulary of two: this token, or another
    nats = -float(dynamics.token_logps(logits, torch.zeros(1, len(chances), dtype=torch.long)).sum())
    return nats, math.exp(nats / len(chances))


def two_perplexities(rng: Rng) -> Question:
    while True:
        short = rng.choice([0.05, 0.1, 0.2, 0.25], 2).tolist()
        long = rng.choice([0.2, 0.25, 0.4, 0.5, 0.8], int(rng.integers(5, 7))).tolist()
        (s, p), (t, q) = _surprise(short), _surprise(long)
        if p > 1.2 * q and s < 0.95 * t:
            break
    return Question(
        "two_perplexities", "03", 2, 6,
        f"The base gives the tokens of answer 1 the chances {_numbers(short)}, those of answer 2 {_numbers(long)}. Give both perplexities, and "
        "the total surprise of each answer in nats. Which answer is the more foreign one?",
        f"Perplexity {_number(p)} and {_number(q)}; {_number(s)} and {_number(t)} nats. A token: answer 1; as a whole: answer 2.",
        "Surprise is the sum of -ln p, perplexity exp of its mean over the tokens. A short answer of dear tokens has the higher perplexity and "
        "the smaller sum; a gradient is made of the sum, so one number does not replace the other.",
        {"short": short, "long": long}, [p, q, s, t],
    )  # fmt: skip


def first_order(rng: Rng) -> Question:
    while True:
        u, v = rng.integers(-4, 5, (2, 3)).astype(float)
        signs = float(np.sign(u) @ v)
        if abs(u @ v) > 1 and signs != float(np.sign(v) @ u):
            break
    lr = float(rng.choice([0.01, 0.02, 0.05]))
    g_u, g_v = ({"w": torch.tensor(x)[None]} for x in (u, v))
    change = lr * float(dynamics.inner(g_u, g_v))
    return Question(
        "first_order", "03", 2, 6,
        f"The gradient of log pi(u) is ({_numbers(u, 0)}), that of log pi(v) is ({_numbers(v, 0)}). To first order, how does log pi(v) change by one SGD "
        f"step of rate {lr:g} on -log pi(u)? How by AdamW's first step of the same rate, which goes along the sign of the gradient? And is each "
        "of the two symmetric in u and v?",
        f"SGD {_number(change, 3, True)}, symmetric; AdamW {_number(lr * signs, 3, True)}, not symmetric (v on u: {_number(lr * float(np.sign(v) @ u), 3, True)}).",
        f"SGD moves the weights by rate times g_u, so log pi(v) by rate times the inner product, {lr:g} x {_number(float(u @ v), 0)}. AdamW's first step has the "
        f"size of the rate in every weight: rate x sum of sign(g_u) g_v = {lr:g} x {_number(signs, 0)}; exchange u and v and it is another number.",
        {"u": u.tolist(), "v": v.tolist(), "lr": lr}, [change, lr * signs],
    )  # fmt: skip


def residual_size(rng: Rng) -> Question:
    parts = np.sort(rng.choice(np.arange(1, 10), 2, replace=False))
    chances = [float(x) / 10 for x in (parts[0], parts[1] - parts[0], 10 - parts[1])]
    right = int(rng.integers(3))
    logits = torch.tensor(chances, dtype=torch.float64).log()[None, None]
    size = float(dynamics.residual(logits, torch.tensor([[right]])))
    g = [(i == right) - p for i, p in enumerate(chances)]
    return Question(
        "residual_size", "03", 1, 4,
        f"A model gives three answers the chances {_numbers(chances, 1)}; number {right + 1} is right. What is the residual G = y - pi, what is its squared "
        "length, and towards which value does that go as the answer is learnt?",
        f"G = ({_numbers(g, 1, True)}), squared length {_number(size)}; it goes to 0.",
        f"y is 1 at answer {right + 1} and 0 elsewhere. The squares add up to {_number(size)}. The kernel bound divides by it: a fitted row makes the bound large "
        "without any tie between the examples.",
        {"chances": chances, "right": right}, size,
    )  # fmt: skip


# --- 04: whose words ------------------------------------------------------------------------------------------------------


def kept_replies(rng: Rng) -> Question:
    answer = (2, 3, 1)
    kinds = ("right", "right, other words", "right, no thinking", "wrong")
    text = {
        "right": jigsaw.answer_text(answer, "sky left"), "right, other words": jigsaw.answer_text(answer, "left sky"),
        "right, no thinking": jigsaw.answer_text(answer), "wrong": jigsaw.answer_text((3, 2, 1), "sky left"),
    }  # fmt: skip
    groups = [[kinds[i] for i in rng.choice(4, 4, p=[0.4, 0.15, 0.15, 0.3])] for _ in range(3)]
    groups[int(rng.integers(3))] = ["right"] * 4  # one that all replies solve
    counts: dict[str, list[int]] = {"correct only": [], "RIF, 1 to 4 of 4": [], "RIF, 1 to 3 of 4": []}
    for names in groups:
        group = [_rollout(text[name], answer, k) for k, name in enumerate(names)]
        for rule, keeps in zip(counts, (rollouts.correct_only, rollouts.rif(1, 4), rollouts.rif(1, 3)), strict=True):
            counts[rule].append(len({r.text for r in keeps(group)}))
    return Question(
        "kept_replies", "04", 2, 6,
        "Four replies to each of three puzzles. *Right* solves it in the asked form, *right, other words* does so in another text, *right, no thinking* "
        "leaves the think block out.\n\n"
        + _table(["puzzle", "reply 1", "reply 2", "reply 3", "reply 4"], [[i, *names] for i, names in enumerate(groups, start=1)])
        + "\n\nHow many *distinct texts* of each puzzle are kept by rejection sampling (correct only), by RIF with 1 to 4 of 4 correct, by RIF with 1 to 3 of 4?",
        "; ".join(f"{rule}: {_order(found)}" for rule, found in counts.items()),
        "Correct means right *and* in the form; equal texts count once as data, but each counts when RIF counts the correct replies. RIF decides about puzzles: "
        "4 of 4 is where its two readings part.",
        {"groups": groups}, counts,
    )  # fmt: skip


def _rollout(text: str, answer: tuple[int, ...], number: int) -> rollouts.Rollout:
    reward = jigsaw.reward_p1(text, answer, 1, len(answer))
    return rollouts.Rollout(0, number, 0, text, reward.hit, reward.exact, reward.fmt)


def dft_weights(rng: Rng) -> Question:
    chances = rng.choice([0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95], 4, replace=False).tolist()
    nats = [_surprise([p])[0] for p in chances]
    plain, weighed = float(np.mean(nats)), float(np.mean([p * x for p, x in zip(chances, nats, strict=True)]))
    pulls = [1 - min(chances), min(chances) * (1 - min(chances))]
    return Question(
        "dft_weights", "04", 2, 6,
        f"A model gives the four tokens of a target the chances {_numbers(chances)}. Give the mean loss a token of SFT, and of DFT, which weighs each token's loss by "
        "its chance (taken as a constant). For the rarest token: how long is the gradient by its own logit under either?",
        f"SFT {_number(plain, 3)}, DFT {_number(weighed, 3)}; rarest token {_number(pulls[0], 3)} and {_number(pulls[1], 3)}.",
        "SFT: the mean of -ln p. DFT: the mean of -p ln p. The gradient of -ln p by the token's own logit is 1 - p in size; DFT multiplies it by p, so the tokens that "
        "surprise most, which pull hardest in SFT, pull little. (A mean over the tokens divides both by 4.)",
        {"chances": chances}, [plain, weighed, *pulls],
    )  # fmt: skip


# --- 05: GeneralPoints and angles -----------------------------------------------------------------------------------------


def _hand(rng: Rng) -> points.Hand:
    """A hand of three cards with a face card, solvable."""
    rule: points.Rule = "ten" if rng.random() < 0.5 else "own"
    return points.deal(rng, points.TINY, rule, "face")


def card_rules(rng: Rng) -> Question:
    hand = _hand(rng)
    other: points.Rule = "own" if hand.rule == "ten" else "ten"
    twin = points.Hand(hand.ranks, other, hand.target, hand.game)
    ways = [points.solve(h.numbers, h.target, h.game.operators) for h in (hand, twin)]
    return Question(
        "card_rules", "05", 2, 6,
        f"GeneralPoints with + and -, each card once: `{points.prompt(hand)}` What do the cards count, and which formula is right? Is the hand solvable "
        f"under the other rule too ({_face_rule(other)})?",
        f"They count {_order(hand.numbers)}; {' or '.join(f'`{x} = {hand.target}`' for x in ways[0])}. Under the other rule: {f'yes, `{ways[1][0]} = {hand.target}`' if ways[1] else 'no'}.",
        f"Under the other rule the cards count {_order(twin.numbers)}. Hands that both rules solve, or that hold no face card, do not tell whether a model reads the rule.",
        {"ranks": hand.ranks, "rule": hand.rule, "target": hand.target}, [ways[0], bool(ways[1])],
    )  # fmt: skip


def _face_rule(rule: str) -> str:
    return "j, q, k count as {}, {}, {}".format(*points.FACES[rule])


def _faulty(hand: points.Hand, rng: Rng) -> dict[str, str]:
    """Formulas for a hand, by what was done to a right one."""
    words = points.solution(hand, rng).split()
    sign = int(rng.choice(np.arange(1, len(words), 2)))
    flipped = [*words[:sign], "-" if words[sign] == "+" else "+", *words[sign + 1 :]]
    other = points.Hand(hand.ranks, "own" if hand.rule == "ten" else "ten", hand.target, hand.game)
    swap = dict(zip(map(str, hand.numbers), map(str, other.numbers), strict=True))
    return {
        "right": " ".join(words),
        "a card left out": " ".join(words[:-2]),
        "a sign turned": " ".join(flipped),
        "a sign too many": " ".join([words[0], words[1], *words[1:]]),
        "a card twice": " ".join([*words[:-1], words[0]]),
        "the other rule": " ".join(swap.get(word, word) for word in words),
    }


_FAULTS = (
    "A correct formula earns +5. Else faults add up: not a legal formula -3; a number that is not in the hand, or one used too often, -2; a card left out -2; "
    "a legal formula of the right cards with another value -1."
)


def formula_accepted(rng: Rng) -> Question:
    while True:
        hand = _hand(rng)
        made = {name: text for name, text in _faulty(hand, rng).items() if name != "a card twice"}
        verdicts = {name: points.score(points.answer_text(hand, text), hand) for name, text in made.items()}
        right = [name for name, outcome in verdicts.items() if outcome.verdict == "correct"]
        if len(set(made.values())) == len(made) and right == ["right"]:
            break
    wrong = [name for name in made if name != "right"]
    wrong = [wrong[i] for i in rng.permutation(len(wrong))[:3]]
    shown = {name: f"`{made[name]} = {hand.target}`" for name in ("right", *wrong)}
    told = "; ".join(
        f"{shown[name]}: {name} ({', '.join(verdicts[name].reasons)}, {verdicts[name].reward:+.0f})" for name in wrong
    )
    question = Question(
        "formula_accepted", "05", 1, 4,
        f"GeneralPoints: `{points.prompt(hand)}` Each card is used once. Which formula does the verifier accept?",
        "", f"The cards count {_order(hand.numbers)}. Not accepted: {told}. What stands behind = is not read.",
        {"ranks": hand.ranks, "rule": hand.rule, "target": hand.target}, None,
    )  # fmt: skip
    return _choice(rng, question, shown["right"], [shown[name] for name in wrong])


def formula_rewards(rng: Rng) -> Question:
    hand = _hand(rng)
    made = list(dict.fromkeys(_faulty(hand, rng).values()))
    drawn = [made[i] for i in rng.permutation(len(made))[:3]]
    found = [points.score(points.answer_text(hand, text), hand) for text in drawn]
    return Question(
        "formula_rewards", "05", 2, 6,
        f"GeneralPoints: `{points.prompt(hand)}` {_FAULTS} What do these formulas earn, and is each *wrong* or *unparseable* (without a value) if not correct?\n\n"
        + "\n".join(f"{i}. `{text}`" for i, text in enumerate(drawn, start=1)),
        "; ".join(f"{i}: {o.reward:+.0f}, {o.verdict}" for i, o in enumerate(found, start=1)),
        f"The cards count {_order(hand.numbers)}. " + "; ".join(f"{i}: {', '.join(o.reasons) or 'no fault'}" for i, o in enumerate(found, start=1)) + ".",
        {"ranks": hand.ranks, "rule": hand.rule, "target": hand.target, "formulas": drawn}, [o.reward for o in found],
    )  # fmt: skip


def forced_zeros(rng: Rng) -> Question:
    n = int(rng.choice([96, 128, 192, 512, 1024]))
    small, large = (int(n * x) for x in (rng.choice([0.125, 0.25, 0.375]), rng.choice([0.625, 0.75, 0.875])))
    zeros = [spectra.trivial_zeros(n, k, k) for k in (small, large)]
    angle = math.degrees(spectra.chance_angles(n, small).smallest)
    return Question(
        "forced_zeros", "05", 2, 6,
        f"Two subspaces of k dimensions in R^{n} have nothing to do with each other. How many of their principal angles are 0 whatever they are, for k = {small} and for "
        f"k = {large}? For k = {small}, near which angle (in degrees) does the smallest one lie by chance?",
        f"{zeros[0]} and {zeros[1]}; about {_number(angle, 1)} degrees.",
        f"k + k directions do not fit into n: max(0, 2k - n). With c = k/n = {small / n:g} the smallest angle of unrelated subspaces goes to arccos sqrt(4c(1-c)). "
        "So neither a zero angle nor one below 90 degrees is a finding by itself.",
        {"n": n, "small": small, "large": large}, [*zeros, angle],
    )  # fmt: skip


def plane_angle(rng: Rng) -> Question:
    while True:
        planes = rng.integers(-3, 4, (2, 2, 3)).astype(float)  # two planes, each by two vectors of R^3
        if min(np.linalg.norm(np.cross(*plane)) for plane in planes) < 1:
            continue
        bases = [torch.linalg.qr(torch.tensor(plane.T)).Q for plane in planes]
        angles = spectra.principal_angles(*bases).rad2deg().tolist()
        if 15 < angles[1] < 80:
            break
    said = [" and ".join(f"({_numbers(v, 0)})" for v in plane) for plane in planes]
    normals = [np.cross(*plane) for plane in planes]
    return Question(
        "plane_angle", "05", 3, 9,
        f"One plane of R^3 is spanned by {said[0]}, another by {said[1]}. Give their two principal angles in degrees. (The vectors are not orthonormal.)",
        f"{_number(abs(angles[0]), 1)} and {_number(angles[1], 1)}",
        f"Two planes of R^3 share a line, so one angle is 0. The other is the angle of their normals, ({_numbers(normals[0], 0)}) and ({_numbers(normals[1], 0)}), by the absolute "
        "value of the cosine. In general: QR of both, then the singular values of Qa'Qb are the cosines. Angles between the given vectors would change with the basis.",
        {"planes": planes.tolist()}, angles,
    )  # fmt: skip


def swap_lengths(rng: Rng) -> Question:
    before = np.sort(rng.choice(np.arange(10, 90), 3, replace=False))[::-1] / 10
    while True:
        after = before + rng.integers(-8, 9, 3) / 10
        if (np.diff(after) < -0.05).all() and np.abs(after - before).sum() > 0.3 and after[-1] > 0:
            break
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    u, v, x, y = torch.linalg.qr(torch.randn(4, 3, 3, generator=generator, dtype=torch.float64)).Q
    base, tuned = (u * torch.tensor(before.copy())) @ v.T, (x * torch.tensor(after.copy())) @ y.T
    length = float((spectra.swap_vectors(base, tuned).matrix - base).norm())
    return Question(
        "swap_lengths", "05", 3, 7,
        f"A matrix W_b has the singular values {_numbers(before, 1)}; after training, W_t has {_numbers(after, 1)}, and other singular vectors. Put W_b's vectors in W_t and keep "
        "its values: how far (Frobenius norm) is the result from W_b? Put W_b's values in W_t and keep its vectors: how far is the result from W_t? What does that say about "
        "\"swapping vectors restores the skill, swapping values does not\"?",
        f"{_number(length, 3)} both times.",
        f"U_b S_t V_b' - W_b = U_b (S_t - S_b) V_b', and orthonormal factors keep lengths: the root of {' + '.join(_number(d * d) for d in after - before)}. "
        "So where values hardly change, the vector swap is W_b again and the value swap hardly an edit, whatever the mechanism: compare with a plain rollback.",
        {"before": before.tolist(), "after": after.tolist()}, length,
    )  # fmt: skip


# --- 06: prefixes ---------------------------------------------------------------------------------------------------------


def prefix_drawn(rng: Rng) -> Question:
    steps = int(rng.choice([240, 300, 500]))
    step = int(steps * rng.choice([0, 0.25, 0.5, 0.75, 1]))
    low, high = prefix_rft.bounds(prefix_rft.Blend(), step, steps)
    quarter = float(rng.choice([0.25, 0.5, 0.75]))
    share = low + quarter * (high - low)
    lengths = [n for n in range(11, 30) if abs(share * n - round(share * n)) > 0.02]  # rounding must not decide
    tokens = int(rng.choice(lengths))
    length = prefix_rft.prefix_length(share, tokens)
    return Question(
        "prefix_drawn", "06", 2, 6,
        f"Prefix-RFT, update {step} of {steps}: l ~ U(low, 0.95), low falls from 0.95 to 0.05 along half a cosine. Give low and the mean share. If l is drawn {quarter:g} of the way from low "
        f"to 0.95, how many of a demonstration's {tokens} tokens are forced?",
        f"low {_number(low, 3)}, mean {_number((low + high) / 2, 3)}, {length} tokens",
        f"low = 0.05 + (1 + cos(pi x {step}/{steps})) / 2 x 0.9 = {_number(low, 3)}; l = {_number(share, 3)}; L is l times {tokens}, rounded down, and at most {tokens - 1}. "
        "Only the lower bound falls: at the end half a demonstration is still given on average.",
        {"step": step, "steps": steps, "quarter": quarter, "tokens": tokens}, [low, (low + high) / 2, length],
    )  # fmt: skip


def prefix_weight(rng: Rng) -> Question:
    free = (rng.random(7) < rng.choice([0.2, 0.5, 0.8])).astype(float)
    last = float(rng.random() < 0.7)
    rewards = torch.tensor([*free, last], dtype=torch.float64)
    prefixed = torch.tensor([False] * 7 + [True])
    how: tuple[prefix_rft.Advantage, ...] = ("dr_grpo", "dr_grpo_prefix", "dr_grpo_prefix_v2")
    found = [float(prefix_rft.advantages(rewards[None], prefixed[None], each)[1][0, -1]) for each in how]
    m = float(free.mean())
    return Question(
        "prefix_weight", "06", 2, 6,
        f"Seven free rollouts earned {_numbers(free, 0)}, the prefixed one {_number(last, 0)}. What weighs each token of the *prefix* under plain Dr. GRPO (mean of all eight), with r_N - m "
        "(m: mean of the free ones), and with -m? Is the prefix imitated or unlearnt?",
        f"{_numbers(found, 3, True)}; " + "; ".join("imitated" if x > 0 else "unlearnt" if x < 0 else "neither" for x in found),
        f"m = {_number(m, 3)}, mean of all {_number(float(rewards.mean()), 3)}. The first is 7/8 of the second. The third does not see r_N: it never imitates.",
        {"free": free.tolist(), "last": last}, found,
    )  # fmt: skip


def top_fifth(rng: Rng) -> Question:
    first = int(rng.integers(4, 7))
    drawn = rng.choice(np.arange(1, 100), 15, replace=False) / 100
    entropies, among = torch.zeros(2, 11, dtype=torch.float64), torch.zeros(2, 11, dtype=torch.bool)
    for row, some in enumerate((drawn[:first], drawn[first:])):
        entropies[row, : len(some)], among[row, : len(some)] = torch.tensor(some), True
    kept = prefix_rft.top_share(entropies, among, 0.2)
    which = [[i + 1 for i in np.flatnonzero(row.numpy())] for row in kept]
    return Question(
        "top_fifth", "06", 2, 5,
        f"The prefixes of a micro-batch have the entropies {_numbers(drawn[:first])} (first demonstration) and {_numbers(drawn[first:])} (second). The fifth of highest entropy stays in the loss, and "
        "all prefix tokens are one pool. Which tokens of each stay?",
        "; ".join(f"{name}: {', '.join(map(str, some)) or 'none'}" for name, some in zip(("first", "second"), which, strict=True)),
        f"A fifth of 15 is 3: the highest are {_numbers(sorted(drawn, reverse=True)[:3])}. One pool, so a demonstration may keep none. A token that the model is sure not to say has low "
        "entropy and is clipped as well.",
        {"first": drawn[:first].tolist(), "second": drawn[first:].tolist()}, which,
    )  # fmt: skip


def pass_at_k(rng: Rng) -> Question:
    n, k = int(rng.choice([8, 10, 12, 16])), int(rng.integers(2, 5))
    c = int(rng.integers(1, 4))
    unbiased, plugged = evals.pass_at_k(n, c, k), 1 - (1 - c / n) ** k
    return Question(
        "pass_at_k", "06", 2, 5,
        f"Of {n} samples of a problem {c} {'is' if c == 1 else 'are'} right. Give the unbiased estimate of pass@{k}, and the plug-in 1 - (1 - c/n)^k.",
        f"{_number(unbiased, 3)} and {_number(plugged, 3)}",
        f"1 - C({n - c}, {k}) / C({n}, {k}) = 1 - {math.comb(n - c, k)} / {math.comb(n, k)}: the chance that {k} of the {n} samples, drawn without replacement, hold a right one. "
        "The plug-in is lower, and too low on average.",
        {"n": n, "c": c, "k": k}, [unbiased, plugged],
    )  # fmt: skip


# --- 07: tasks in a row ---------------------------------------------------------------------------------------------------


def forgetting_measure(rng: Rng) -> Question:
    size = int(rng.choice([3, 4]))
    table = rng.integers(10, 40, (size, size))
    for j in range(size):
        table[j:, j] = np.maximum(int(rng.integers(75, 97)) - np.arange(size - j) * int(rng.integers(1, 13)), 15)
    last, peak = table[-1], table.max(axis=0)
    drops = last - peak
    whole = np.vstack([table[:1], table]).astype(float)  # a row 0, of before any training, which FM leaves out
    fm = [continual.forgetting(whole, "T"), continual.forgetting(whole, "T-1")]
    return Question(
        "forgetting_measure", "07", 2, 7,
        "Accuracy in percent on task j (column) after training task t (row):\n\n"
        + _table(["after", *(f"task {j}" for j in range(1, size + 1))], [[f"task {t}", *row] for t, row in enumerate(table, start=1)])
        + "\n\nGive AvgAcc, and FM (mean over tasks of last minus best so far) with both normalisers, T and T - 1. Which is nearer to 0, and does that mean less forgetting?",
        f"AvgAcc {_number(last.mean())}; FM {_number(fm[0])} with T, {_number(fm[1])} with T - 1",
        f"Last row minus the best of each column: {_order(drops)}. The last task cannot have been forgotten yet, so T averages a zero in and is nearer to 0: the same "
        "forgetting, another divisor. Compare numbers of one normaliser only.",
        {"matrix": table.tolist()}, [continual.avg_acc(whole), *fm],
    )  # fmt: skip


def leave_one_out(rng: Rng) -> Question:
    rewards = rng.integers(0, 5, 4) / 4
    while rewards.std() == 0:
        rewards = rng.integers(0, 5, 4) / 4
    n = len(rewards)
    own = estimators.advantages(torch.tensor(rewards)[None], "rloo")[0]
    centred = rewards - rewards.mean()
    return Question(
        "leave_one_out", "07", 2, 5,
        f"Four replies earned {_numbers(rewards)}. Give RLOO's advantages (each reward minus the mean of the *other* three). By which factor do they differ from rewards minus the mean of all four?",
        f"{_numbers(own, 3, True)}; factor {_number(n / (n - 1), 3)}",
        f"Rewards minus the mean of all: {_numbers(centred, 4, True)}. Leaving oneself out multiplies that by n/(n-1) = 4/3, so RLOO is Dr. GRPO at another rate. Neither divides by a standard "
        "deviation: there the size of an update still follows the variance of the rewards.",
        {"rewards": rewards.tolist()}, own.tolist(),
    )  # fmt: skip


def _in_a_row(rng: Rng, base: Sequence[int], gains: Sequence[int], losses: Sequence[int]) -> np.ndarray:
    """P (T + 1, T) in percent: each task gains by its own training, and loses up to its `losses` with every task after it."""
    size = len(base)
    p = np.tile(np.array(base), (size + 1, 1))
    for j in range(size):
        p[j + 1 :, j] += gains[j]
        p[j + 2 :, j] -= np.cumsum(rng.integers(0, losses[j] + 1, size - j - 1))
    return np.clip(p, 0, 99)


def _matrix_table(p: np.ndarray) -> str:
    size = p.shape[1]
    rows = [["before any" if t == 0 else f"after task {t}", *row] for t, row in enumerate(p)]
    return _table(["", *(f"task {j}" for j in range(1, size + 1))], rows)


def four_readings(rng: Rng) -> Question:
    size = int(rng.choice([3, 4]))
    draw = [rng.integers(*limits, size).tolist() for limits in ((15, 40), (25, 45), (4, 12))]
    p = _in_a_row(rng, *draw)
    early = int(rng.integers(1, size))  # this task is at its best before its own training
    p[early, early] = p[1:, early].max() + int(rng.integers(3, 15))
    whole = p.astype(float)
    found = [continual.forgetting(whole, n, peak) for peak in ("all", "after_learning") for n in ("T", "T-1")]
    drops = [[int(p[-1, j] - p[first(j) :, j].max()) for j in range(size)] for first in (lambda j: 1, lambda j: j + 1)]
    return Question(
        "four_readings", "07", 3, 9,
        f"{size} tasks were trained in the order of the columns. Accuracy in percent:\n\n{_matrix_table(p)}\n\nGive FM in its four readings: the best over all rows from the first training on, "
        "and the best from the task's own training on, each divided by T and by T - 1. At which task do the two kinds of best differ?",
        f"All rows: {_number(found[0])} with T, {_number(found[1])} with T - 1. From its own training on: {_number(found[2])} and {_number(found[3])}. They differ at task {early + 1}.",
        f"T is {size}, the number of columns; the first row belongs to neither reading. Last minus best, all rows: {_order(drops[0])}; from the own training on: {_order(drops[1])}. "
        f"Task {early + 1} stood highest after task {early}, before it was trained itself. One reading calls that forgetting, the other says that it was never learnt.",
        {"matrix": p.tolist(), "early": early + 1}, [*found, early + 1],
    )  # fmt: skip


def gain_beside_fm(rng: Rng) -> Question:
    while True:
        base = rng.integers(20, 35, 3).tolist()
        much = _in_a_row(rng, base, rng.integers(35, 55, 3).tolist(), [6, 6, 0])
        little = _in_a_row(rng, base, rng.integers(2, 8, 3).tolist(), [3, 3, 0])
        gains = [continual.new_task_gain(p.astype(float)) for p in (much, little)]
        fms = [continual.forgetting(p.astype(float)) for p in (much, little)]
        prices = [100 * -fm / gain for fm, gain in zip(fms, gains, strict=True)]
        if fms[0] < fms[1] < 0 and prices[0] < 0.8 * prices[1]:
            break
    names = ("A", "B") if rng.random() < 0.5 else ("B", "A")  # which of them learns much
    by = {
        name: (p, gain, fm, price)
        for name, p, gain, fm, price in zip(names, (much, little), gains, fms, prices, strict=True)
    }
    tables = "\n\n".join(f"Method {name}:\n\n{_matrix_table(by[name][0])}" for name in "AB")
    told = "; ".join(
        f"{name}: gain {_number(by[name][1])}, FM {_number(by[name][2])}, {_number(by[name][3], 1)} for each 100 gained"
        for name in "AB"
    )
    return Question(
        "gain_beside_fm", "07", 2, 8,
        f"Two methods learnt three tasks in a row from one base. Accuracy in percent:\n\n{tables}\n\nGive the gain of each (mean of what a task's own training gave on it), its FM (all rows from the "
        "first training on, divided by T), and the points forgotten for each 100 gained. Which has the better FM, and is that what one wants to know?",
        f"{told}. FM is better for {names[1]}, which hardly learnt.",
        f"Gain: the mean of the diagonal steps, row j minus row j - 1 in column j. FM is 0 for a method that learns nothing, so it says nothing alone: for what it learnt {names[0]} lost less.",
        {"A": by["A"][0].tolist(), "B": by["B"][0].tolist()}, [x for name in "AB" for x in by[name][1:]],
    )  # fmt: skip


def form_only_group(rng: Rng) -> Question:
    size = int(rng.choice([6, 8, 10, 12]))
    bad = int(rng.integers(1, size // 2 + 1))
    rewards = torch.tensor([0.1] * (size - bad) + [0.0] * bad, dtype=torch.float64)
    pairs = [
        [float(a[0]), float(a[-1])] for a in (fisher.advantages(rewards, "grpo"), fisher.advantages(rewards, "rloo"))
    ]
    return Question(
        "form_only_group", "07", 2, 6,
        f"A right answer earns 0.9, the asked form 0.1. Of {size} replies to a question none is right; {bad} {'is' if bad == 1 else 'are'} malformed, the others are in form. Give the advantage of a reply in "
        "form and of a malformed one, under GRPO (minus mean, over the standard deviation with n - 1; the tiny number that is added to it does not show) and under RLOO. What does the group teach?",
        f"GRPO {_numbers(pairs[0], 3, True)}; RLOO {_numbers(pairs[1], 4, True)}. The form alone.",
        f"Mean {_number(float(rewards.mean()), 4)}, standard deviation {_number(float(rewards.std()), 4)}. GRPO's numbers are those of a group with {size - bad} right and {bad} wrong replies at 1 and 0: "
        "dividing by the deviation blows the tenth up to full size. RLOO's are a tenth of that group's. So under GRPO a question that nobody can solve may still move the model.",
        {"size": size, "bad": bad}, pairs,
    )  # fmt: skip


def keep_rule(rng: Rng) -> Question:
    right = [0, 8, *rng.choice([0, 0, 1, 2, 3, 5, 7, 8, 8], int(rng.integers(6, 9))).tolist()]
    right = [right[i] for i in rng.permutation(len(right))]
    n, updates = len(right), int(rng.choice([40, 60, 100]))
    drawn = [
        rollouts.Rollout(i, k, 0, f"reply {k}", float(k < c), float(k < c), 1.0)
        for i, c in enumerate(right, start=1)
        for k in range(8)
    ]
    kept = [sorted({r.index for r in rif.kept_by(drawn, rule).rollouts}) for rule in ((1, 8), (1, 7))]
    shares, fewer = [100 * len(some) / n for some in kept], -(-updates * len(kept[0]) // n)
    return Question(
        "keep_rule", "07", 1, 5,
        f"Before a task the policy tries each of {n} instances eight times. Right replies, by instance from 1 on: {_order(right)}. Which instances does RIF keep by the released code's rule (1 to 8 right), "
        f"which by the other reading (1 to 7), and what percentage is that? All {n} instances would be trained on for {updates} updates: how many does the first rule leave, at as many passes over the data (rounded up)?",
        f"1 to 8: {_order(kept[0]) or 'none'} ({_number(shares[0], 1)} %); 1 to 7: {_order(kept[1]) or 'none'} ({_number(shares[1], 1)} %); {fewer} updates",
        f"Nothing right is no signal for accuracy, so both rules drop it; all eight right is none either, and there the readings part. {updates} x {len(kept[0])}/{n}, rounded up, is {fewer}. "
        "The policy that tries is the one before *this* task: for the next task it is asked anew.",
        {"right": right, "updates": updates}, [*kept, *shares, fewer],
    )  # fmt: skip


def size_matched(rng: Rng) -> Question:
    n, updates = int(rng.choice([400, 500, 640, 800])), int(rng.choice([50, 60, 80, 100]))
    k = int(n * rng.choice([0.35, 0.45, 0.6, 0.75]))
    fewer = -(-updates * k // n)
    question = Question(
        "size_matched", "07", 2, 4,
        f"A filter keeps {k} of {n} instances, those that the policy solves at least once in eight tries. GRPO trains on them for {fewer} updates, as many passes as {updates} updates are over all {n}. It ends "
        "a little below GRPO on all. Which control tells whether it matters *which* instances are left, and not how many?",
        "", f"It must hold equal how many instances there are *and* how often each is seen: {k} at random, {fewer} updates, same base, order, seeds and rate. {updates} updates on them would be more passes; all {n} "
        f"instances differ in number. What stays unequal is the price: the filter wrote 8 x {n} replies before it began, so compare the cost with those counted in.",
        {"n": n, "k": k, "updates": updates}, None,
    )  # fmt: skip
    wrong = [
        f"{k} instances drawn at random, {updates} updates",
        f"all {n} instances, {fewer} updates",
        f"all {n} instances, {updates} updates",
    ]
    return _choice(rng, question, f"{k} instances drawn at random, {fewer} updates", wrong)


def two_answer_risk(rng: Rng) -> Question:
    p, f = float(rng.choice(np.arange(1, 10)) / 10), float(rng.choice([1, 2, 4]))
    pi, scores = torch.tensor([p, 1 - p], dtype=torch.float64), torch.tensor([[1 - p], [-p]], dtype=torch.float64)
    earlier = fisher.Fisher(torch.tensor([[math.sqrt(f)]], dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    one = fisher.law(fisher.group(scores, torch.tensor([1.0, 0.0]), scores[0], earlier, math.log(p), pi))
    exact, digits = one.risk["centred"], 4
    return Question(
        "two_answer_risk", "07", 3, 9,
        f"A model with one weight chooses between the gold answer, with probability {p:g}, and another one. Their scores (gradients of log pi) are {1 - p:g} and {-p:g}; gold earns 1, the other 0. For the "
        f"earlier tasks F = {f:g}. Give R(g) = g F g of SFT's direction, the variance of the reward, their product (the paper's prediction), and the mean risk of RFT's direction (r - mean) s, exactly. "
        "By which factor is the prediction off?",
        f"R of SFT {_number(one.gold, digits)}, variance {_number(one.variance, digits)}, product {_number(one.predicted, digits)}; exactly {_number(exact, digits)}, {_number(exact / one.predicted)} times that",
        f"SFT: {1 - p:g}^2 x {f:g}. Variance: {p:g} x {1 - p:g}. RFT: gold moves by {1 - p:g} x {1 - p:g}, the other by {-p:g} x {-p:g}; their risks, weighed with their probabilities, add up to "
        f"{p:g} x {1 - p:g}^4 x {f:g} + {1 - p:g} x {p:g}^4 x {f:g}. Two steps lie between: the coupling, {_number(one.coupling, 3)}, and the swap, {_number(one.swap, 3)}; their product is the factor. "
        "Where gold is rare both are far from 1 and nearly cancel; where it is nearly sure, the rare wrong answer carries the risk and the prediction is far too low.",
        {"p": p, "F": f}, [one.gold, one.variance, one.predicted, exact, exact / one.predicted],
    )  # fmt: skip


# --- 08: what forgets, and why ----------------------------------------------------------------------------------------------


def _shares(rng: Rng, n: int, least: int = 1) -> list[float]:
    """n probabilities, multiples of a twentieth and at least `least` of them each, no two alike."""
    while True:
        counts = least + rng.multinomial(20 - n * least, np.ones(n) / n)
        if len(set(counts.tolist())) == n:
            return [int(c) / 20 for c in counts]


def two_kls(rng: Rng) -> Question:
    base, tuned = _shares(rng, 3), _shares(rng, 3)
    while base == tuned:
        tuned = _shares(rng, 3)
    p, q = (torch.tensor(some, dtype=torch.float64).log() for some in (base, tuned))
    forward, reverse = float(drift.kl(p, q)), float(drift.kl(q, p))

    def terms(a: Sequence[float], b: Sequence[float]) -> str:
        return " + ".join(f"{x:g} ln({x:g}/{y:g})" for x, y in zip(a, b, strict=True))

    return Question(
        "two_kls", "08", 1, 5,
        "A reply is one of three tokens. Their probabilities:\n\n"
        + _table(["policy", "a", "b", "c"], [["base", *(f"{x:g}" for x in base)], ["tuned", *(f"{x:g}" for x in tuned)]])
        + "\n\nGive the forward KL, KL(base || tuned), and the reverse KL, KL(tuned || base), in nats. From which of the two policies must replies be sampled to estimate each?",
        f"Forward {_number(forward, 4)}, reverse {_number(reverse, 4)}; from the base for the forward one, from the tuned policy for the reverse one",
        f"The one on the left weighs: forward {terms(base, tuned)}; reverse {terms(tuned, base)}. It is also the one to sample from, since a mean over samples weighs by who drew them.",
        {"base": base, "tuned": tuned}, [forward, reverse],
    )  # fmt: skip


def oracle_distance(rng: Rng) -> Question:
    base, n_right = _shares(rng, 5), int(rng.choice([2, 3]))
    logits = torch.tensor(base, dtype=torch.float64).log()[None]
    allowed = torch.arange(5)[None] < n_right
    nearest = parity.minimal(logits, allowed)[0, :n_right]
    chance = sum(base[:n_right])
    distance = float(drift.kl(parity.minimal(logits, allowed).log(), logits)[0])
    names = "abcde"
    return Question(
        "oracle_distance", "08", 2, 6,
        f"Of five answers the first {n_right} are right. The base says "
        + ", ".join(f"{name} with {x:g}" for name, x in zip(names, base, strict=True))
        + ". Which policy that is never wrong has the least KL(policy || base)? Give its probabilities of the right answers, and that KL in nats. What is its KL(base || policy)?",
        f"{_numbers(nearest, 3)}; {_number(distance, 3)} nats; infinite",
        f"Cut the wrong answers off and scale up the rest: divide by {chance:g}, the base's chance to be right. In each term of the KL the ratio of policy and base is then 1/{chance:g}, so the KL is "
        f"-ln {chance:g}. The base says wrong answers at times and the policy never does, so the other direction is infinite: an oracle is near in reverse KL only.",
        {"base": base, "right": n_right}, [*nearest.tolist(), distance],
    )  # fmt: skip


def reply_and_token(rng: Rng) -> Question:
    lengths = [int(n) for n in rng.permutation([1, 2, 4])]
    kls = [[int(x) / 100 for x in rng.integers(5, 90, n)] for n in lengths]
    found = drift.summed_up([torch.tensor(k, dtype=torch.float64) for k in kls], [torch.zeros(n) for n in lengths])
    means = sum(sum(k) / len(k) for k in kls) / len(kls)
    return Question(
        "reply_and_token", "08", 2, 4,
        "Three replies were sampled from the base. At each of their tokens the KL of the next-token distributions was worked out, in nats:\n\n"
        + _table(["reply", "KL, token by token"], [[i, _numbers(k)] for i, k in enumerate(kls, start=1)])
        + "\n\nGive the KL in nats a reply and in nats a token. Which of the two is the KL of the policies as distributions over whole replies?",
        f"{_number(found.reply, 3)} a reply, {_number(found.token, 3)} a token; the first",
        f"By the chain rule the KL of whole replies is the expected sum over their tokens: {_numbers(map(sum, kls))}, mean {_number(found.reply, 3)}. A token's is all nats over all {sum(lengths)} tokens. "
        f"The mean of the replies' own means, {_number(means, 3)}, is neither: it lets a token of a short reply weigh more.",
        {"kls": kls}, [found.reply, found.token],
    )  # fmt: skip


def left_out_skill(rng: Rng) -> Question:
    low, high = int(rng.integers(1, 4)), int(rng.integers(7, 10))
    middle = int(rng.integers(low + 1, high))
    x = [low, middle, high]
    y = [int(v) for v in (rng.integers(0, 15), rng.integers(5, 50), rng.integers(30, 70))]
    made = [
        predict.Point("bench", name, 0, float(b), 0.9, {"kl": float(a)}) for name, a, b in zip("ABC", x, y, strict=True)
    ]
    found = predict.left_out(made, "kl")
    told = [b - found.residuals[f"bench/{name}"] for name, b in zip("ABC", y, strict=True)]
    others = [(sum(y) - b) / 2 for b in y]
    return Question(
        "left_out_skill", "08", 3, 9,
        "Does KL predict what is forgotten? Three methods, their KL, and the points that they lost:\n\n"
        + _table(["method", "KL", "points lost"], [[name, a, b] for name, a, b in zip("ABC", x, y, strict=True)])
        + "\n\nLeave each method out in turn and predict it by the straight line through the other two, read off at its nearer end where the method lies outside of them. Give the three predictions, their "
        "root mean square error, that of simply naming the mean of the other two, and the skill: 1 - (error / the mean's)^2. What is R² of a line through two points?",
        f"Predictions {_numbers(told, 1)}; error {_number(found.error)}, the mean's {_number(found.baseline)}, skill {_number(found.skill)}. R² is 1, whatever the points are.",
        f"A lies below the other two, so it is given B's {y[1]}; C is given B's, too; B lies on the line from A to C. The means of the others are {_numbers(others, 1)}. Skill 0 is no better than naming "
        "the mean, below 0 is worse: a fit may explain all that it has seen and nothing that it has not.",
        {"x": x, "y": y}, [*told, found.error, found.baseline, found.skill],
    )  # fmt: skip


# --- sheets ---------------------------------------------------------------------------------------------------------------

BANK: dict[str, tuple[Kind, ...]] = {  # notebook: its kinds
    "01": (read_letters, other_convention, mixed_up, blind_guess, jigsaw_rewards, best_paid),
    "02": (grpo_group, binary_group, matched_drop, three_seeds),
    "03": (two_perplexities, first_order, residual_size),
    "04": (kept_replies, dft_weights),
    "05": (card_rules, formula_accepted, formula_rewards, forced_zeros, plane_angle, swap_lengths),
    "06": (prefix_drawn, prefix_weight, top_fifth, pass_at_k),
    "07": (
        forgetting_measure,
        leave_one_out,
        four_readings,
        gain_beside_fm,
        form_only_group,
        keep_rule,
        size_matched,
        two_answer_risk,
    ),
    "08": (two_kls, oracle_distance, reply_and_token, left_out_skill),
}
KINDS: tuple[Kind, ...] = tuple(kind for kinds in BANK.values() for kind in kinds)


def chosen(seed: int, n: int, notebooks: Sequence[str] = ()) -> list[Kind]:
    """The kinds of a sheet of `n` questions about these notebooks (none: all), in their order.

    Drawn from the seed alone, so that all students have the same. Notebooks take turns, and no kind comes twice before all have
    come once.
    """
    if not 1 <= n <= MOST:
        raise UserError(f"A sheet has 1 to {MOST} questions, not {n}: choose a number in between.")
    if unknown := set(notebooks) - BANK.keys():
        raise UserError(f"There are no questions about {', '.join(sorted(unknown))}: choose from {' '.join(BANK)}.")
    rng = rng_for("questions", seed)
    drawn: list[Kind] = []
    while len(drawn) < n:
        mixed = {book: rng.permutation(len(kinds)) for book, kinds in BANK.items()}
        asked = [book for book in rng.permutation(list(BANK)).tolist() if book in (notebooks or BANK)]
        drawn += [BANK[book][mixed[book][i]] for i in range(len(KINDS)) for book in asked if i < len(mixed[book])]
    return sorted(drawn[:n], key=KINDS.index)


def sheet(student: str, seed: int, n: int, notebooks: Sequence[str] = ()) -> list[Question]:
    """The questions of one student. Spaces around and within the name do not count, nor how its accents are encoded."""
    name, kinds = _plain(student), chosen(seed, n, notebooks)
    return [kind(rng_for("questions", name, seed, place, kind.__name__)) for place, kind in enumerate(kinds)]


def _plain(student: str) -> str:
    name = unicodedata.normalize("NFC", " ".join(student.split()))
    if not name:
        raise UserError("The student has no name: give one with --student.")
    return name


def text_of(student: str, seed: int, n: int, answers: bool = False, notebooks: Sequence[str] = ()) -> str:
    """The sheet as Markdown; with `answers` the worked solutions follow, and the seed: who has it can make the answers."""
    questions = sheet(student, seed, n, notebooks)
    lines = [
        f"# Questions for {_plain(student)}",
        "",
        f"{n} questions, about {sum(q.minutes for q in questions)} minutes.",
    ]
    for i, q in enumerate(questions, start=1):
        lines += [
            "",
            f"## Question {i}",
            "",
            f"Notebook {q.notebook}, difficulty {q.difficulty} of 3, {q.minutes} minutes.",
            "",
            q.text,
        ]
        lines += (
            ["", *(f"- ({letter}) {choice}" for letter, choice in zip("abcdefgh", q.choices, strict=False))]
            if q.choices
            else []
        )
    if answers:
        lines += ["", f"# Answers, seed {seed}"]
        for i, q in enumerate(questions, start=1):
            lines += ["", f"## Answer {i}", "", q.answer, "", q.solution]
    return "\n".join(lines) + "\n"


def names_in(file: Path) -> list[str]:
    """The students of a class list, a name a line. Raises UserError for a file that cannot be read, an empty one, or a name that comes twice."""
    try:
        names = [_plain(line) for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The class list {file} cannot be read ({error}): name a text file with a name a line."
        ) from error
    if not names:
        raise UserError(f"The class list {file} is empty: write a name a line.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"In {file} these names come twice, so two would get one sheet: {', '.join(twice)}. Tell them apart."
        )
    return names


def write_class(names: Sequence[str], seed: int, n: int, notebooks: Sequence[str], folder: Path) -> None:
    """A sheet a student in `folder`, and one with answers in `folder`/answers, numbered as in the list."""
    digits = len(str(len(names)))
    for number, name in enumerate(names, start=1):
        file = f"{number:0{digits}}-" + re.sub(r"[^\w-]+", "-", name) + ".md"
        _write(folder / file, text_of(name, seed, n, False, notebooks))
        _write(folder / "answers" / file, text_of(name, seed, n, True, notebooks))


def _write(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"The sheet cannot be written to {file}: {error.strerror}; choose another file.") from error


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m rftkit questions", description="Write a student's sheet of questions, or those of a class."
    )
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--student", help="a name; another name has other numbers in the same kinds of questions")
    who.add_argument("--students", type=Path, metavar="FILE", help="a class list, a name a line; needs --out FOLDER")
    parser.add_argument("--seed", type=int, default=0, help="which kinds are asked, and all numbers (default: 0)")
    parser.add_argument("--n", type=int, default=8, help="how many questions (default: 8)")
    parser.add_argument(
        "--notebooks", nargs="+", default=[], metavar="NN", help="ask about these, such as 01 02 (default: all)"
    )
    parser.add_argument(
        "--answers", action="store_true", help="with answers and worked solutions (a class has them anyway)"
    )
    parser.add_argument(
        "--out", type=Path, help="a Markdown file to write in place of the screen; for a class, a folder"
    )
    args = parser.parse_args(argv)
    if args.students:
        if args.out is None:
            raise UserError("The sheets of a class need a folder: name one with --out.")
        names = names_in(args.students)
        write_class(names, args.seed, args.n, args.notebooks, args.out)
        print(f"Wrote {len(names)} sheets to {args.out}, and those with answers to {args.out / 'answers'}.")
        return 0
    text = text_of(args.student, args.seed, args.n, args.answers, args.notebooks)
    if args.out is None:
        print(text, end="")
        return 0
    _write(args.out, text)
    print(f"Wrote {args.out}.")
    return 0
