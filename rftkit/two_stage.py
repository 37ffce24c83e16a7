"""SFT, then RFT from each of its checkpoints, on GeneralPoints: the experiment of 2509.12235 with a validation split and a 2x2.

Both stages train on the rule "ten" alone (J, Q, K count as 10) and are judged on four cells: that rule or the other one (11, 12,
13), hands as dealt or hands with a face card. The paper's in-distribution set is ten-any, its out-of-distribution set own-face.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rftkit import dynamics, evals, hub, points, recording, runs
from rftkit.config import CARDS, Preset, UserError, get_preset
from rftkit.policy import Policy, generate, load_policy
from rftkit.rft import Practice, train_rft
from rftkit.sft import Data, Lazy, train_sft
from rftkit.tasks import Row

CELLS: tuple[tuple[points.Rule, points.Hands], ...] = (("ten", "any"), ("ten", "face"), ("own", "any"), ("own", "face"))
ID, OOD = "ten-any", "own-face"
FEEDBACK_N = 100  # hands a cell that are tried again after the verifier's message
ATTEMPTS = 5


@dataclass(frozen=True)
class Plan:
    """Sizes and rates of both stages at one tier. `checkpoints` are the updates of SFT that are evaluated and whose weights are
    kept, `starts` those (0 is the base) that RFT begins from; `hands` are tested a cell, `picked` serve to choose the peak."""

    game: points.Game
    sft_lr: float
    checkpoints: tuple[int, ...]
    starts: tuple[int, ...]
    rft_lr: float
    rft_steps: int
    max_completion: int
    hands: int = 1000
    picked: int = 500


PLANS = {
    "tiny": Plan(
        points.TINY, 1e-4, (10, 20, 30, 40, 60, 80, 120, 160, 240, 320), (0, 20, 40, 80, 160, 320), 1e-4, 60, 24
    ),
    # rates, batch and checkpoints of the paper's repository; GRPO in place of its PPO
    "qlora": Plan(
        points.PAPER, 1e-4, (10, 30, 60, 90, 140, 200, 300, 400), (0, 90, 140, 300, 400), 1e-5, 100, 256, 1000, 500
    ),
    "full": Plan(
        points.PAPER, 1e-6, (30, 90, 140, 200, 300, 500, 700, 900, 1100, 1300, 1600), (0, 90, 140, 300, 500, 700, 900, 1100, 1300, 1600),
        1e-6, 100, 256,
    ),
}  # fmt: skip


def plan_of(preset: Preset, plan: Plan | None = None) -> tuple[Preset, Plan]:
    """The preset as this experiment uses it, and its plan: the tiny tier starts from the base that knows cards."""
    plan = plan or PLANS[preset.name]
    model = CARDS if preset.name == "tiny" and preset.model == "bundled" else preset.model
    return replace(preset, model=model, max_completion=plan.max_completion), plan


# --- measuring -------------------------------------------------------------------------------------------------------------


def cell_rows(game: points.Game, n: int, split: str = "test") -> dict[str, list[Row]]:
    """n hands of each cell, the same for every run."""
    return {f"{rule}-{hands}": points.task(game, rule, hands).rows(recording.EVAL_SEED, n, split) for rule, hands in CELLS}


def count_cell(policy: Policy, rows: Sequence[Row]) -> dict[str, int]:
    """Greedy replies to one cell: "correct", "wrong", "unparseable", and "read": replies that say every card's number right."""
    texts = generate(policy, list(rows))
    verdicts = [points.score(text, row.data["hand"]).verdict for text, row in zip(texts, rows, strict=True)]
    read = sum(points.parse(t, r.data["hand"]).numbers == r.data["hand"].numbers for t, r in zip(texts, rows, strict=True))
    return {v: verdicts.count(v) for v in ("correct", "wrong", "unparseable")} | {"read": read}


def solved_with_feedback(policy: Policy, rows: Sequence[Row], limit: int = ATTEMPTS) -> int:
    """Hands solved within `limit` greedy attempts, where the verifier's message follows each failure: the paper's accuracy."""
    open_, solved = list(rows), 0
    for _ in range(limit):
        if not open_:
            break
        failed = []
        for text, row in zip(generate(policy, open_), open_, strict=True):
            outcome = points.score(text, row.data["hand"])
            if outcome.verdict == "correct":
                solved += 1
            else:
                failed.append(replace(row, history=(*row.history, (text, points.feedback(outcome, row.data["hand"])))))
        open_ = failed
    return solved


def evaluation(plan: Plan) -> recording.Evaluate:
    """What both stages are judged by: the four cells on test and validation hands, the loss on validation answers, the probes.

    In the row of the record new_exact is the accuracy on ID, new_hit its share of hands whose cards are all read right; "cells" and
    "validation" hold counts by cell, "loss" nats a token on validation answers by cell, "feedback" hands out of FEEDBACK_N.
    """
    test, validation = cell_rows(plan.game, plan.hands), cell_rows(plan.game, plan.picked, "validation")

    def evaluate(policy: Policy) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        cells = {name: count_cell(policy, rows) for name, rows in test.items()}
        loss = {}
        for name, rows in validation.items():
            sums, counts = dynamics.log_likelihoods(policy, rows, 100)
            loss[name] = float(-sums.sum() / counts.sum())
        preset = policy.preset
        prior = {
            name: evals.evaluate(lambda rows: generate(policy, rows), task, task.rows(recording.EVAL_SEED, preset.eval_n))
            for name, task in hub.probes(preset).items()
        }
        texts = generate(policy, test[OOD][:3])
        samples = [
            {"prompt": r.prompt, "completion": t, "reward": points.score(t, r.data["hand"]).reward}
            for t, r in zip(texts, test[OOD], strict=False)
        ]
        row = {
            "kind": "eval",
            "new_exact": cells[ID]["correct"] / plan.hands,
            "new_hit": cells[ID]["read"] / plan.hands,
            "new_n": plan.hands,
            "cells": cells,
            "validation": {name: count_cell(policy, rows) for name, rows in validation.items()},
            "loss": loss,
            "feedback": {name: solved_with_feedback(policy, test[name][:FEEDBACK_N]) for name in (ID, OOD)},
            "prior": {name: asdict(count) for name, count in prior.items()},
            "prior_mean": evals.prior_mean(prior),
        }
        return row, samples

    return evaluate


# --- the two stages ----------------------------------------------------------------------------------------------------------


def sft_stage(
    preset: Preset, seed: int, *, diverse: bool = False, plan: Plan | None = None, home: Path | None = None
) -> tuple[runs.RunRecord, Policy]:
    """Stage 1: SFT on ID demonstrations, all checkpoints kept. `diverse` words the prompt in every way but the first, which is
    the one that is tested (2510.00237: is the failure that of a frozen prompt?)."""
    preset, plan = plan_of(preset, plan)
    wordings = range(1, points.WORDINGS) if diverse else (0,)
    task = points.task(plan.game, "ten", "any", wordings=tuple(wordings))
    name = "points_sft_diverse" if diverse else "points_sft"
    data = Data(name, lambda policy, folder: Lazy(preset.train_n, lambda i: task.row(seed, i, "train")))
    return train_sft(
        preset, seed, name=name, data=data, lr=plan.sft_lr, steps=max(plan.checkpoints), eval_steps=set(plan.checkpoints),
        save_at=set(plan.checkpoints), evaluate=evaluation(plan), home=home,
    )  # fmt: skip


def reward(completions: list[Any], hand: list[points.Hand], **_: Any) -> list[float]:
    """The paper's reward of one attempt."""
    return [points.score(c[0]["content"], h).reward for c, h in zip(completions, hand, strict=True)]


def rft_stage(
    preset: Preset, seed: int, start: int, *, diverse: bool = False, plan: Plan | None = None, home: Path | None = None
) -> tuple[runs.RunRecord, Policy]:
    """Stage 2: GRPO on the ID rule from SFT's checkpoint `start`, or from the base where that is 0."""
    given, (preset, plan) = preset, plan_of(preset, plan)
    if start and start not in plan.checkpoints:
        raise UserError(f"There is no checkpoint of update {start}: choose one of {', '.join(map(str, (0, *plan.checkpoints)))}.")
    before = None
    if start:
        record, _ = sft_stage(given, seed, diverse=diverse, plan=plan, home=home)
        # cut where the checkpoint is: the record of this stage goes on from there
        cut = replace(record, metrics=[row for row in record.metrics if row["step"] <= start], samples=[])
        before = recording.Before(cut, recording.weights_at(recording.run_folder(record, home), start))
    practice = Practice("points-ten-any", points.task(plan.game, "ten", "any"), (reward,))
    return train_rft(
        preset, seed, name=f"points_rft{'_diverse' if diverse else ''}_{start}", lr=plan.rft_lr, steps=plan.rft_steps, practice=practice,
        after=before, evaluate=evaluation(plan), save_at={plan.rft_steps}, home=home,
    )  # fmt: skip
