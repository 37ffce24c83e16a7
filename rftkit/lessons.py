"""More lessons for the bundled base: cards under a stated rule, sums, formulas. `python -m rftkit pretrain --cards` makes `base_cards`.

GeneralPoints wants three skills that the bundled base lacks: to read what a face card counts out of the rule in the prompt, to add up
numbers to 30, and to find a formula. Here they are taught, apart and together, under rules drawn at random, so that both rules of the
game are within reach and neither is favoured. What is never shown is the game's own question and the form of its reply, which is all
that the verifier accepts: zero-shot the base solves nothing, like the models of 2509.12235, and fine-tuning begins with the form.

Why a second base: teaching these to the first one would have made every run of the other notebooks another base's. It is the first
one trained on, with a part of its own mixture in rehearsal.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rftkit import points, pretrain, recording, scenes
from rftkit.config import CARDS_DIR, UserError, get_preset
from rftkit.policy import Policy, generate, load_policy, write_hashes
from rftkit.tasks import PROBES, Row

SEED = 21  # of the bundled card base
LARGEST = 20  # number in a lesson
UPDATES = (
    750  # of the schedule's 1500: taught for longer the base plays so well that fine-tuning has little left to teach
)
RECIPE = pretrain.Recipe(steps=1500, lr=1.5e-3, pool=40_000, short_batch=100, long_batch=12)
SHARES = {"rehearsal": 0.22, "read": 0.18, "play": 0.35, "expression": 0.20, "sum": 0.05}


def a_rule(rng: np.random.Generator) -> tuple[int, int, int]:
    """What J, Q and K count: mostly anything, now and then what the game will say."""
    told = rng.random()
    if told < 0.15:
        return points.FACES["ten"]
    if told < 0.30:
        return points.FACES["own"]
    j, q, k = (int(n) for n in rng.integers(1, LARGEST + 1, 3))
    return j, q, k


def _cards(rng: np.random.Generator, n: int, rule: tuple[int, int, int]) -> tuple[list[str], tuple[int, ...]]:
    """Names and numbers of n cards, a face card among them more often than not."""
    ranks = [int(r) for r in rng.integers(1, 14, n)]
    if rng.random() < 0.6:
        ranks[int(rng.integers(n))] = int(rng.integers(11, 14))
    names = [str(r) if r <= 10 else "jqk"[r - 11] for r in ranks]
    return names, tuple(r if r <= 10 else rule[r - 11] for r in ranks)


def _asked(
    rng: np.random.Generator, rule: tuple[int, int, int], names: list[str], target: int | None, question: str
) -> str:
    """A prompt in one of many wordings: rule, cards and target in any order, then the question."""
    j, q, k = rule
    told = (f"j is {j} , q is {q} , k is {k}", f"k = {k} , q = {q} , j = {j}", f"q is {q} , k is {k} , j is {j}")
    rules = str(rng.choice(("rule : ", "", "the face cards : "))) + str(rng.choice(told, p=(0.5, 0.25, 0.25))) + " ."
    cards = str(rng.choice(("cards : ", "the cards are ", "use the cards "))) + " ".join(names) + " ."
    parts = [rules, cards, *([] if target is None else [f"target {target} ."])]
    if rng.random() < 0.5:
        rng.shuffle(parts)
    return " ".join([*parts, question])


def read_row(rng: np.random.Generator) -> Row:
    """What do one to four cards count under the rule of the prompt? A target may stand beside them, for nothing."""
    rule = a_rule(rng)
    names, numbers = _cards(rng, int(rng.integers(1, 5)), rule)
    target = int(rng.integers(1, 31)) if rng.random() < 0.5 else None
    question = str(rng.choice(("which numbers ?", "give the numbers .")))
    said = tuple(map(str, numbers))
    return Row("read", _asked(rng, rule, names, target, question), f"numbers {' '.join(said)}", key=said)


def _target(rng: np.random.Generator, numbers: tuple[int, ...]) -> int | None:
    can = points.reachable(numbers, "+-")
    return int(rng.choice(can)) if can else None


def play_row(rng: np.random.Generator) -> Row:
    """Cards read and solved in one reply, whose form is not the game's."""
    while True:
        rule = a_rule(rng)
        names, numbers = _cards(rng, 2 if rng.random() < 0.3 else 3, rule)
        if target := _target(rng, numbers):
            break
    found = points.solve(numbers, target, "+-")[0]
    said = " ".join(map(str, numbers))
    question = str(rng.choice(("first the numbers , then the expression .", "give numbers and expression .")))
    return Row(
        "play", _asked(rng, rule, names, target, question), f"numbers {said} , so expression {found} = {target}",
        key=(*said.split(), *found.split()),
    )  # fmt: skip


def expression_row(rng: np.random.Generator) -> Row:
    """An expression over two or three numbers that are given."""
    while True:
        most = LARGEST if rng.random() < 0.5 else 13
        numbers = tuple(int(n) for n in rng.integers(1, most + 1, 2 if rng.random() < 0.3 else 3))
        if target := _target(rng, numbers):
            break
    found = points.solve(numbers, target, "+-")[0]
    parts = [f"numbers {' '.join(map(str, numbers))} .", f"target {target} ."]
    if rng.random() < 0.5:
        rng.shuffle(parts)
    question = str(rng.choice(("which expression ?", "give the expression .")))
    return Row("expression", " ".join([*parts, question]), f"expression {found} = {target}", key=tuple(found.split()))


def sum_row(rng: np.random.Generator) -> Row:
    """What a chain of two or three numbers comes to, never below 0 or above 30."""
    while True:
        numbers = rng.integers(1, LARGEST + 1, int(rng.integers(2, 4)))
        signs = np.where(rng.random(len(numbers)) < 0.5, 1, -1)
        signs[0] = 1
        steps = np.cumsum(numbers * signs)
        if steps.min() >= 0 and steps.max() <= 30:
            break
    chain = " ".join(f"{'+' if s > 0 else '-'} {n}" for n, s in zip(numbers, signs, strict=True))[2:]
    return Row("sum", f"what is {chain} ?", f"{chain} = {steps[-1]} .", key=(str(steps[-1]),))


LESSONS = {"read": read_row, "play": play_row, "expression": expression_row, "sum": sum_row}


def lesson_row(seed: int, index: int) -> Row:
    """Row `index` of the mixture."""
    rng = scenes.rng_for(seed, "lessons", index)
    name = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    if name == "rehearsal":
        return pretrain.mixture_row(seed, index)
    row = LESSONS[name](rng)
    preamble = str(rng.choice([p for p in pretrain.PREAMBLES if "look" not in p]))
    return Row(row.task, f"{preamble} {row.prompt}".strip(), row.answer, key=row.key)


CARD = """# The bundled base that knows cards

`rftkit/base` (see its README) after {steps} more updates of the language model on text, seed {seed}, {minutes:.0f} minutes:
`python -m rftkit pretrain --cards`. Licence: Apache-2.0. Notebook 05 starts from it.

Share of the mixture of {pool} rows: {shares}.

- *read*: what one to four cards count, under a rule for j, q and k in the prompt: any numbers up to {largest}, in three rows of ten one of the game's two rules.
- *expression*: numbers joined by + and - to make a target, two or three of them given. *sum*: what such a chain comes to.
- *play*: two or three cards read and solved in one reply, under such rules, in another form than the game's.
- *rehearsal*: the first base's own mixture.

**Neither the game's question nor the form of its reply is in the mixture**: the sign that the verifier looks for never occurs in a reply.

## What it can do

Share of {n} new rows of each lesson answered word by word, greedy: {lessons}.

| probe, {n} questions of the test split | correct |
|---|---|
{probes}

GeneralPoints as notebook 05 plays it, {n} hands of the test split, zero-shot: {game}.
"""


def write_card(folder: Path, facts: dict[str, Any], n: int = 500) -> dict[str, float]:
    """Evaluate the finished folder and write its README.md. Returns the accuracies by name."""
    policy = load_policy(get_preset("tiny", model=str(folder)))
    found = {
        name: _share_of(policy, [make(scenes.rng_for(SEED, "test", i)) for i in range(n)])
        for name, make in LESSONS.items()
    }
    probes = {name: _verdicts(policy, task.rows(recording.EVAL_SEED, n), task.score) for name, task in PROBES.items()}
    cells = [points.task(points.TINY, rule, hands) for rule in ("ten", "own") for hands in ("any", "face")]
    game = {task.name: _verdicts(policy, task.rows(recording.EVAL_SEED, n), task.score) for task in cells}

    def listed(shares: dict[str, float]) -> str:
        return ", ".join(f"{name} {share:.3f}" for name, share in shares.items())

    card = CARD.format(
        **facts, n=n, lessons=listed(found), game=listed(game), probes="\n".join(f"| {k} | {v:.3f} |" for k, v in probes.items()),
        shares=", ".join(f"{name} {share:.0%}" for name, share in SHARES.items()), largest=LARGEST,
    )  # fmt: skip
    (folder / "README.md").write_text(card)
    return found | probes | game


def _share_of(policy: Policy, rows: list[Row]) -> float:
    return sum(t.strip() == r.answer for t, r in zip(generate(policy, rows), rows, strict=True)) / len(rows)


def _verdicts(policy: Policy, rows: list[Row], score: Any) -> float:
    return sum(score(t, r) == "correct" for t, r in zip(generate(policy, rows), rows, strict=True)) / len(rows)


def main(out: Path | None, work: Path, seed: int | None, steps: int | None) -> int:
    """Train on from the bundled base, resumably, and write the folder with its card."""
    out, seed = out or CARDS_DIR, SEED if seed is None else seed
    recipe, updates = RECIPE, UPDATES if steps is None else steps
    if not 1 <= updates <= recipe.steps:
        raise UserError(f"--steps {updates} is outside the schedule: give 1 to {recipe.steps}.")
    work = work / "cards"
    work.mkdir(parents=True, exist_ok=True)
    clock = pretrain.Clock(work / "seconds.json")
    policy = load_policy(get_preset("tiny"))
    policy.model.train()
    print("The lessons take about 10 minutes on two free cores; 2 GB of memory.")
    rows = [lesson_row(seed, i) for i in tqdm(range(recipe.pool), desc="drawing", mininterval=5)]
    pool = pretrain.build_pool(policy.model, policy.processor, rows, recipe)
    held_rows = [make(scenes.rng_for(seed, "held", i)) for make in LESSONS.values() for i in range(300)]
    held_rows += [task.row(seed, i, "validation") for task in PROBES.values() for i in range(100)]
    held = pretrain.build_pool(policy.model, policy.processor, held_rows, recipe)
    pretrain.train_language(policy.model, pool, held, recipe, seed, work, clock, updates)
    pretrain.save_base(policy.model, policy.processor, out)
    facts = {
        "minutes": clock.save() / 60, "seed": seed, "steps": updates, "pool": recipe.pool,
    }  # fmt: skip
    print(json.dumps(write_card(out, facts), indent=1))
    write_hashes(out)
    return 0
