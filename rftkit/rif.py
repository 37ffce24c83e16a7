"""Rollout-based instance filtering (RIF) of 2507.05386: before a task the policy tries each instance some times, and what it never
gets right is not trained on. Also the filter as first released, which leaked the answer.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rftkit import policy, rollouts
from rftkit.config import UserError
from rftkit.policy import Policy
from rftkit.rollouts import Rollout
from rftkit.tasks import Row, Task


def draw(
    model: Policy, task: Task, seed: int, indices: Iterable[int], k: int, path: Path | None = None
) -> list[Rollout]:
    """`k` samples (temperature 1) to each of these rows of the training split, scored by the task.

    With a `path` they are written there as they come, with the seconds that they took, and read back if they are there: a killed run
    goes on drawing where it was. Scores are never read, they are made anew.
    """
    indices = list(indices)
    said = policy.from_main(lambda: _said(path) if path else {})
    verdicts: list[Rollout] = []
    chunk = max(1, model.preset.eval_batch // k)
    for start in tqdm(range(0, len(indices), chunk), desc=f"{task.name}: {k} samples a row", mininterval=10):
        rows = {i: task.row(seed, i, "train") for i in indices[start : start + chunk]}
        asked = [(i, s) for i in rows for s in range(k)]
        new = [(i, s) for i, s in asked if (i, s) not in said]
        seeds = [rollouts.sample_seed(seed, 0, i, s) for i, s in new]
        started = time.monotonic()
        texts = policy.generate(model, [rows[i] for i, _ in new], temperature=1.0, seed=seeds)
        each = (time.monotonic() - started) / max(1, len(new))
        said |= zip(new, texts, strict=True)
        if path and new and policy.is_main():
            with open(path, "a", encoding="utf-8") as file:
                lines = [{"index": i, "sample": s, "text": said[i, s], "seconds": round(each, 4)} for i, s in new]
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        verdicts += [_scored(task, rows[i], i, s, said[i, s]) for i, s in asked]
    return verdicts


def seconds(path: Path) -> float:
    """What the samples in a file that `draw` has read took, however often it was interrupted; 0 for those of a file without seconds."""
    with open(path, encoding="utf-8") as file:
        return math.fsum(json.loads(line).get("seconds", 0.0) for line in file)


def _said(path: Path) -> dict[tuple[int, int], str]:
    """What a file of samples holds. A line that is no sample, as the last one of a killed run may be, ends it."""
    said: dict[tuple[int, int], str] = {}
    good = 0
    try:
        data = path.read_bytes()
        for line in data.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                raise ValueError("cut short")
            x = json.loads(line)
            said[int(x["index"]), int(x["sample"])] = str(x["text"])
            good += len(line)
    except FileNotFoundError:
        return said
    except (ValueError, KeyError, TypeError):
        os.truncate(path, good)
    return said


def _scored(task: Task, row: Row, index: int, number: int, text: str) -> Rollout:
    verdict = task.score(text, row)
    right, read = float(verdict == "correct"), float(verdict != "unparseable")
    return Rollout(index, number, 0, text, right, right, read)


def kept_by(drawn: Sequence[Rollout], rule: tuple[int, int]) -> rollouts.Kept:
    """RIF: the instances with `rule` (least, most) right samples, and their card. 0 right is no signal; whether all right is kept
    is where the paper's code (1 to 8 of 8) and notes on it (1 to 7) part."""
    least, most = rule
    kept = rollouts.keep(drawn, rollouts.rif(least, most), f"the policy before the task; {least} to {most} right")
    return rollouts.Kept(kept.rollouts, card(kept))


def card(kept: rollouts.Kept) -> dict[str, Any]:
    """The data card, with the share of instances kept; without rewards, which are the jigsaw's three parts."""
    told = {key: value for key, value in kept.card.items() if not key.startswith("mean_reward")}
    return {**told, "share_kept": told["prompts_kept"] / told["prompts"]}


@dataclass(frozen=True, kw_only=True)
class Chosen(Task):
    """A task of which only these training rows are left, row i being the i-th of them; other splits are whole."""

    whole: Task
    indices: tuple[int, ...]

    def row(self, seed: int, index: int, split: str = "test") -> Row:
        return self.whole.row(seed, self.indices[index % len(self.indices)] if split == "train" else index, split)


def chosen(task: Task, indices: Iterable[int]) -> Chosen:
    """Raises UserError where nothing is left."""
    left = tuple(sorted(set(indices)))
    if not left:
        raise UserError(f"No instance of {task.name} is left to train on: sample more, or loosen the rule.")
    return Chosen(task.name, task.make, task.score, task.uses_image, whole=task, indices=left)


def leaking(task: Task) -> Task:
    """What not to do: the first filter that 2507.05386 released told the model the answer, and asked it to pretend not to know.

    It then keeps what the model can copy. For showing only; no method uses it.
    """

    def make(rng: np.random.Generator, split: str) -> Row:
        row = task.make(rng, split)
        return replace(row, prompt=f"the answer is {row.data['target']} . {row.prompt}")

    return replace(task, make=make)
