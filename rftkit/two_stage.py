"""SFT, then RFT from each of its checkpoints, on GeneralPoints: the experiment of 2509.12235 with a validation split and a 2x2.

Both stages train on the rule "ten" alone (J, Q, K count as 10) and are judged on four cells: that rule or the other one (11, 12,
13), hands as dealt or hands with a face card. The paper's in-distribution set is ten-any, its out-of-distribution set own-face.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from rftkit import dynamics, evals, hub, points, recording, runs, spectra
from rftkit.config import CARDS, Preset, UserError
from rftkit.policy import Policy, generate, load_trained, model_folder
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
    kept, `starts` those (0 is the base) that RFT begins from; `hands` are tested of ID and of OOD, `picked` of the other two cells;
    as many other hands of ID and OOD serve to choose the peak, and at most `probed` questions are asked of each prior probe."""

    game: points.Game
    sft_lr: float
    checkpoints: tuple[int, ...]
    starts: tuple[int, ...]
    rft_lr: float
    rft_steps: int
    max_completion: int
    hands: int = 1000
    picked: int = 300
    probed: int = 50

    def label(self, what: str) -> str:
        """For the settings of a run: what is trained on, and all that decides what is measured."""
        game = self.game
        target = game.target or f"1 to {game.largest}"
        return f"{what}: {game.cards} cards to {target} by {game.operators}; {self.hands} and {self.picked} hands evaluated"


PLANS = {
    "tiny": Plan(points.TINY, 5e-4, (10, 20, 30, 40, 60, 80, 120, 160, 240, 320), (0, 20, 40, 80, 160, 320), 1e-4, 100, 24),
    # rates, batch and checkpoints of the paper's repository; GRPO in place of its PPO
    "qlora": Plan(
        points.PAPER, 1e-4, (10, 30, 60, 90, 140, 200, 300, 400), (0, 90, 140, 300, 400), 1e-5, 100, 256, probed=200
    ),
    "full": Plan(
        points.PAPER, 1e-6, (30, 90, 140, 200, 300, 500, 700, 900, 1100, 1300, 1600), (0, 90, 140, 300, 500, 700, 900, 1100, 1300, 1600),
        1e-6, 100, 256, probed=500,
    ),
}  # fmt: skip


def plan_of(preset: Preset, plan: Plan | None = None) -> tuple[Preset, Plan]:
    """The preset as this experiment uses it, and its plan: the tiny tier starts from the base that knows cards."""
    plan = plan or PLANS[preset.name]
    model = CARDS if preset.name == "tiny" and preset.model == "bundled" else preset.model
    return replace(
        preset, model=model, max_completion=plan.max_completion, eval_n=min(preset.eval_n, plan.probed)
    ), plan


# --- measuring -------------------------------------------------------------------------------------------------------------


def cell_rows(game: points.Game, n: int, split: str = "test") -> dict[str, list[Row]]:
    """n hands of each cell, the same for every run."""
    return {
        f"{rule}-{hands}": points.task(game, rule, hands).rows(recording.EVAL_SEED, n, split) for rule, hands in CELLS
    }


def count_cell(policy: Policy, rows: Sequence[Row]) -> dict[str, int]:
    """Greedy replies to one cell: "correct", "wrong", "unparseable", and "read": replies that say every card's number right."""
    texts = generate(policy, list(rows))
    verdicts = [points.score(text, row.data["hand"]).verdict for text, row in zip(texts, rows, strict=True)]
    read = sum(
        points.parse(t, r.data["hand"]).numbers == r.data["hand"].numbers for t, r in zip(texts, rows, strict=True)
    )
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
    """What both stages are judged by: the four cells on test hands, ID and OOD on validation hands, losses there, the probes.

    In the row of the record new_exact is the accuracy on ID, new_hit its share of hands whose cards are all read right; "cells" and
    "validation" hold counts by cell, "loss" nats a token on validation answers by cell, "feedback" hands out of FEEDBACK_N.
    """
    test = {
        name: rows if name in (ID, OOD) else rows[: plan.picked]
        for name, rows in cell_rows(plan.game, plan.hands).items()
    }
    validation = cell_rows(plan.game, plan.picked, "validation")

    def evaluate(policy: Policy) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        cells = {name: count_cell(policy, rows) for name, rows in test.items()}
        loss = {}
        for name, rows in validation.items():
            sums, counts = dynamics.log_likelihoods(policy, rows, 100)
            loss[name] = float(-sums.sum() / counts.sum())
        preset = policy.preset
        prior = {
            name: evals.evaluate(
                lambda rows: generate(policy, rows), task, task.rows(recording.EVAL_SEED, preset.eval_n)
            )
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
            "validation": {name: count_cell(policy, validation[name]) for name in (ID, OOD)},
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
    data = Data(plan.label(name), lambda policy, folder: Lazy(preset.train_n, lambda i: task.row(seed, i, "train")))
    return train_sft(
        preset, seed, name=name, data=data, lr=plan.sft_lr, steps=max(plan.checkpoints), eval_steps=set(plan.checkpoints),
        save_at=set(plan.checkpoints), evaluate=evaluation(plan), home=home,
    )  # fmt: skip


def reward(completions: list[Any], hand: list[points.Hand], **_: Any) -> list[float]:
    """The paper's reward of one attempt."""
    return [points.score(c[0]["content"], h).reward for c, h in zip(completions, hand, strict=True)]


def rft_stage(
    preset: Preset,
    seed: int,
    start: int,
    *,
    diverse: bool = False,
    fast: bool = False,
    plan: Plan | None = None,
    home: Path | None = None,
) -> tuple[runs.RunRecord, Policy]:
    """Stage 2: GRPO on the ID rule from SFT's checkpoint `start`, or from the base where that is 0; `fast` at three times the rate."""
    given, (preset, plan) = preset, plan_of(preset, plan)
    if start and start not in plan.checkpoints:
        raise UserError(
            f"There is no checkpoint of update {start}: choose one of {', '.join(map(str, (0, *plan.checkpoints)))}."
        )
    before = None
    if start:
        record, _ = sft_stage(given, seed, diverse=diverse, plan=plan, home=home)
        # cut where the checkpoint is: the record of this stage goes on from there
        cut = replace(record, metrics=[row for row in record.metrics if row["step"] <= start], samples=[])
        before = recording.Before(cut, recording.weights_at(recording.run_folder(record, home), start))
    practice = Practice(plan.label("points-ten-any"), points.task(plan.game, "ten", "any"), (reward,))
    name = "points_rft" + "_diverse" * diverse + "_fast" * fast
    return train_rft(
        preset, seed, name=f"{name}_{start}", lr=plan.rft_lr * (3 if fast else 1), steps=plan.rft_steps, practice=practice,
        beta=0.0,  # the paper has no KL penalty, and one would pull back to before SFT
        after=before, evaluate=evaluation(plan), save_at={plan.rft_steps}, home=home,
    )  # fmt: skip


# --- reading the records -----------------------------------------------------------------------------------------------------


def accuracy(record: runs.RunRecord, cell: str = OOD, split: str = "cells") -> tuple[evals.Floats, evals.Floats]:
    """(updates, share of hands solved at the first attempt) of a cell, on test hands ("cells") or on "validation" hands.

    Raises UserError for a run that played no such hands.
    """
    rows = record.evals()
    if not rows or not all(row.get(split, {}).get(cell) for row in rows):
        raise UserError(
            f"Run {record.name} has no {split} hands of the cell {cell!r}: pass a run of GeneralPoints, and one of its cells."
        )
    counts = [row[split][cell] for row in rows]
    solved = [c["correct"] / (c["correct"] + c["wrong"] + c["unparseable"]) for c in counts]
    return np.array([row["step"] for row in rows], float), np.array(solved)


def peak(record: runs.RunRecord, by: str = OOD) -> int:
    """The update of the checkpoint that solves most *validation* hands of a cell, the earliest of equals.

    The paper's was chosen on the hands it was reported on, which makes any peak look higher than it is.
    """
    steps, shares = accuracy(record, by, "validation")
    return int(steps[int(shares.argmax())])


def lowest_loss(record: runs.RunRecord, cell: str = OOD) -> int:
    """The update whose loss on a cell's validation answers is lowest: what one would choose by the loss."""
    return int(min(record.evals(), key=lambda row: row["loss"][cell])["step"])


def at(record: runs.RunRecord, step: int, cell: str = OOD, split: str = "cells") -> float:
    """Share of a cell's hands solved at an update that was evaluated."""
    steps, shares = accuracy(record, cell, split)
    if step not in steps:
        raise UserError(
            f"Run {record.name} was not evaluated at update {step}: choose one of {', '.join(f'{s:.0f}' for s in steps)}."
        )
    return float(shares[list(steps).index(step)])


# --- surgery -----------------------------------------------------------------------------------------------------------------

MATRICES = r"language_model.*_proj\.weight|^model\.layers.*_proj\.weight"  # the linear maps of the language model


def matrices(policy: Policy) -> dict[str, torch.Tensor]:
    """A copy of the language model's weight matrices on the CPU, where `spectra` computes; tables and norms left out."""
    return {n: p.detach().cpu().clone() for n, p in policy.model.named_parameters() if re.search(MATRICES, n)}


def edits(
    base: dict[str, torch.Tensor], tuned: dict[str, torch.Tensor], seed: int = 0
) -> dict[str, dict[str, spectra.Edit]]:
    """Every edit of `tuned` towards `base`, by name and matrix: what the paper did, and controls beside it.

    "swap vectors" and "swap values" (all pairs); "top 20 %" and "tail 20 %" of the pairs with their values, beside "random 20 %"; "top 20 %,
    orthonormal" (vectors alone, the mixed bases made orthonormal); "first quarter" and "last quarter" of the layers (vectors swapped
    there), and the first one plainly rolled back; "rollback 25 % .. 100 %" (interpolation), and a Gaussian as long as the vector
    swap, matrix by matrix. The random fifth is a longer edit than the top fifth: pairs of one number in two models need not belong together.
    """
    if not base or base.keys() != tuned.keys():
        raise UserError(
            "The two models do not have the same matrices: pass what `matrices` returns for two states of one model."
        )
    generator = torch.Generator().manual_seed(seed)
    layers = 1 + max(layer_of(name) for name in base)
    made: dict[str, dict[str, spectra.Edit]] = {name: {} for name in EDITS}
    for name, b in base.items():
        t, layer, fifth = tuned[name], layer_of(name), max(1, min(b.shape) // 5)
        whole = made["swap vectors"][name] = spectra.swap_vectors(b, t)
        made["swap values"][name] = spectra.swap_values(b, t)
        made["top 20 %"][name] = spectra.restore_top(b, t, fifth, values="base")
        made["top 20 %, orthonormal"][name] = spectra.restore_top(b, t, fifth, orthonormal=True)
        made["random 20 %"][name] = random_pairs(b, t, fifth, generator)
        made["tail 20 %"][name] = spectra.restore_tail(b, t, fifth, values="base")
        for share in (25, 50, 75, 100):
            made[f"rollback {share} %"][name] = spectra.rollback(b, t, share / 100)
        made["random, as long as the swap"][name] = spectra.random_edit(t, whole.norm, generator)
        if 4 * layer < layers:
            made["first quarter"][name] = whole
            made["rollback of the first quarter"][name] = spectra.rollback(b, t, 1.0)
        if 4 * (layer + 1) > 3 * layers:
            made["last quarter"][name] = whole
    return made


EDITS = (
    "swap vectors", "swap values", "rollback 25 %", "rollback 50 %", "rollback 75 %", "rollback 100 %", "random, as long as the swap",
    "top 20 %", "top 20 %, orthonormal", "random 20 %", "tail 20 %", "first quarter", "rollback of the first quarter", "last quarter",
)  # fmt: skip


def random_pairs(base: torch.Tensor, tuned: torch.Tensor, k: int, generator: torch.Generator) -> spectra.Edit:
    """k pairs of the base, drawn, with their values in place of the tuned ones of the same numbers: the control of "the top k"."""
    (ub, sb, vb), (ut, st, vt) = (torch.linalg.svd(x.double(), full_matrices=False) for x in (base, tuned))
    i = torch.randperm(len(st), generator=generator)[:k]
    change = (ub[:, i] * sb[i]) @ vb[i] - (ut[:, i] * st[i]) @ vt[i]
    return spectra.Edit(tuned.double() + change, float(change.norm()))


def layer_of(name: str) -> int:
    return int(re.search(r"layers\.(\d+)\.", name)[1])  # type: ignore[index]


def surgery(
    policy: Policy, base: dict[str, torch.Tensor], plan: Plan, hands: int | None = None, only: Sequence[str] = EDITS, seed: int = 0
) -> list[dict[str, Any]]:  # fmt: skip
    """Edit the policy's matrices towards `base`, count ID and OOD, put them back. One row an edit: "edit", "norm" (of all matrices
    together, relative to the way from the policy to `base`), and counts by cell. The first row is the unedited policy.
    """
    rows = {name: some for name, some in cell_rows(plan.game, hands or plan.hands).items() if name in (ID, OOD)}
    own = matrices(policy)
    way = (
        math.sqrt(sum(float((base[n] - own[n]).double().square().sum()) for n in own)) or 1.0
    )  # RFT may not have moved

    def counted(edit: str, norm: float) -> dict[str, Any]:
        return {"edit": edit, "norm": norm, **{name: count_cell(policy, some) for name, some in rows.items()}}

    found = [counted("none", 0.0)]
    parameters = dict(policy.model.named_parameters())
    made = edits(base, own, seed)
    for edit in tqdm(only, desc="edits", mininterval=5):
        with torch.no_grad():
            for name, one in made[edit].items():
                parameters[name].copy_(one.matrix)
        found.append(counted(edit, math.sqrt(sum(one.norm**2 for one in made[edit].values())) / way))
        with torch.no_grad():
            for name, weight in own.items():
                parameters[name].copy_(weight)
    return found


def study(
    preset: Preset, seed: int, plan: Plan | None = None, hands: int | None = None, home: Path | None = None
) -> dict[str, Any]:
    """What happened to the weights, for one seed: "peak" (the checkpoint chosen on validation hands), "spectra" (by comparison, the
    reports of `spectra.scan` as plain data) and "surgery" (by pair of models, the rows of `surgery`).

    Comparisons: base to peak, base to end, peak to end (the paper's), and end to RFT from the end. Surgery: the end towards the
    peak (H8, H9), and the model that RFT made of the end back towards the end (H10).
    """
    given, (own, plan) = preset, plan_of(preset, plan)
    if own.lora_rank:
        raise UserError(
            "The weights of an adapter are not studied here: merge it, or compare it by `python -m rftkit spectra`."
        )
    record, _ = sft_stage(given, seed, plan=plan, home=home)
    end = max(plan.checkpoints)
    after, healed = rft_stage(given, seed, end, plan=plan, home=home)
    best = peak(record) or min(plan.checkpoints)  # the base itself may be best
    kept = {step: recording.weights_at(recording.run_folder(record, home), step) for step in plan.checkpoints}
    rft = recording.weights_at(recording.run_folder(after, home), plan.rft_steps)
    start = model_folder(own)
    compared = {"base to peak": (start, kept[best]), "base to end": (start, kept[end]), "peak to end": (kept[best], kept[end]),
                "end to RFT": (kept[end], rft)}  # fmt: skip
    found: dict[str, Any] = {"seed": seed, "peak": best, "end": end, "spectra": {}, "surgery": {}}
    for name, (a, b) in compared.items():
        if a != b:
            reports = spectra.scan(a, b, k=SUBSPACE, match=LANGUAGE)
            found["spectra"][name] = {matrix: report and asdict(report) for matrix, report in reports.items()}
    found["surgery"] = operations(healed, kept[best], kept[end], rft, plan, hands)
    return found


def operations(
    policy: Policy, best: Path, end: Path, rft: Path, plan: Plan, hands: int | None = None
) -> dict[str, list[dict[str, Any]]]:
    """The surgery of a study, from the weights of SFT's peak, of its end and of RFT: the end towards the peak, and RFT towards the end."""
    found = {}
    load_trained(policy, best)
    at_peak = matrices(policy)
    load_trained(policy, end)
    at_end = matrices(policy)
    if best != end:
        found["end to peak"] = surgery(policy, at_peak, plan, hands)
    load_trained(policy, rft)  # all of it: its norms and embeddings are not SFT's
    found["RFT to end"] = surgery(
        policy, at_end, plan, hands, only=("swap vectors", "swap values", "rollback 50 %", "rollback 100 %")
    )
    return found


SUBSPACE = 32  # leading directions that are compared, of 96 at least
LANGUAGE = r"^model\.layers\..*_proj\.weight"  # as spectra names the language model's matrices


STUDIES_DIR = runs.RECORDED_DIR / "points"  # of the recorded studies, weights-s0.json and so on


def load_study(path: Path) -> dict[str, Any]:
    """A study as `study` made it, its reports as MatrixReport. Raises UserError for a file that is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        data["spectra"] = {
            name: {matrix: report and spectra.read_report(report) for matrix, report in reports.items()}
            for name, reports in data["spectra"].items()
        }
        if not all({"edit", "norm", ID, OOD} <= row.keys() for rows in data["surgery"].values() for row in rows):
            raise KeyError("edit")
        int(data["seed"]), int(data["peak"]), int(data["end"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is no study of weights ({error!r}): make it again with `python -m rftkit record`."
        ) from error
    return data


def save_study(found: dict[str, Any], path: Path) -> None:
    """Write a study atomically, one matrix or edit apart."""
    runs.write_whole(path, json.dumps(found, indent=1) + "\n")
