"""The mathematics that 2507.01679 trains on, for the GPU tiers: OpenR1-Math-46k-8192, with DeepSeek-R1's solutions as demonstrations.

45,714 questions, one solution of less than 8,192 tokens each (2504.14945). Answers are compared by Math-Verify, through TRL's reward.
The download could not be tried where this module was written: the repository, the file and the columns are those that public code
reads, and the test runs this code on a small local file of that form. The newest commit is taken until one is pinned in
`SOURCE`; `revision` says which one that is, for a run's record.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from trl.rewards import accuracy_reward

from rftkit import hub_rows
from rftkit.config import UserError
from rftkit.scenes import SPLITS, rng_for
from rftkit.tasks import Row, Task, Verdict

# The set is taken whole: 300 questions to test, one in a hundred being for tests, would need two thirds of it anyway.
SOURCE = hub_rows.Source("Elliott/Openr1-Math-46k-8192", "openr1.parquet", ("prompt", "target", "reward_model"))


@dataclass(frozen=True, kw_only=True)
class Questions(Task):
    """A published set to train on: row i of a seed and split is a question of that split, each once an epoch, in an order of its own."""

    source: hub_rows.Source

    def row(self, seed: int, index: int, split: str = "train") -> Row:
        pool = _pool(self.source, split)
        epoch, place = divmod(index, len(pool))
        return _row(hub_rows.load(self.source)[pool[_order(seed, split, epoch, len(pool))[place]]])


def openr1(source: hub_rows.Source = SOURCE) -> Task:
    """The set as a task named "openr1". row.answer is R1's solution, "" where there is none; row.data["value"] the right answer.

    The set has one split. Here a hash of the question sends one in a hundred to "validation" and one to "test"; the paper's benchmarks
    are others. Raises UserError without Math-Verify, and at the first row where the set cannot be had or looks otherwise.
    """
    _need_math_verify()

    def make(rng: np.random.Generator, split: str) -> Row:
        pool = _pool(source, split)
        return _row(hub_rows.load(source)[pool[int(rng.integers(len(pool)))]])

    return Questions("openr1", make, lambda text, row: score(text, row.data["value"]), uses_image=False, source=source)


def revision() -> str:
    """The commit of the set, for a run's record."""
    return hub_rows.commit(SOURCE) or "not resolved"


def right(completions: list[Any], value: list[str], **_: Any) -> list[float]:
    """1 for an answer that Math-Verify takes for the right one, else 0: the reward, in the form that TRL calls."""
    return [float(score(c[0]["content"], v) == "correct") for c, v in zip(completions, value, strict=True)]


def score(text: str, value: str) -> Verdict:
    """Math-Verify's verdict on the answer of a reply, which is to be LaTeX, in \\boxed{} at best. `value` is LaTeX without a frame.

    Unparseable is also every reply where the right answer itself cannot be read: nothing could be learnt from it.
    """
    _need_math_verify()
    found: dict[str, list[str]] = {}
    framed = value if "$" in value or "\\boxed" in value else f"\\boxed{{{value}}}"
    (reward,) = accuracy_reward([[{"content": text}]], [framed], log_extra=found.__setitem__)
    if reward is None or found["answer_parsed"] == ["[unparseable]"]:
        return "unparseable"
    return "correct" if reward else "wrong"


def equal(latex: str, truth: str) -> bool | None:
    """Math-Verify's comparison of two answers without a frame; None where it cannot read the first."""
    from math_verify import verify

    said = _read(latex)
    return None if said is None else bool(verify(_read(truth), said, timeout_seconds=2))


def is_number(latex: str) -> bool:
    """Does Math-Verify read a number, without variables?"""
    return bool(getattr(_read(latex), "is_number", False))


def _read(latex: str) -> Any:
    """What Math-Verify makes of an answer, None if nothing but its text."""
    _need_math_verify()
    from math_verify import parse

    found = parse(f"\\boxed{{{latex}}}", parsing_timeout=2)
    return None if not found or isinstance(found[0], str) else found[0]


def _need_math_verify() -> None:
    if importlib.util.find_spec("math_verify") is None:
        raise UserError(
            "Math-Verify compares mathematical answers, and it is not installed: `pip install math-verify==0.9.0`."
        )


def split_of(question: str) -> str:
    """The split of a question by its hash: 98 in 100 to train, 1 each to validation and test. Equal questions share it."""
    bucket = int(rng_for("openr1", question).integers(100))
    return {0: "test", 1: "validation"}.get(bucket, "train")


@lru_cache
def _pool(source: hub_rows.Source, split: str) -> tuple[int, ...]:
    """Where in the set the questions of a split are."""
    if split not in SPLITS:
        raise UserError(f"There is no split {split!r}: choose one of {', '.join(SPLITS)}.")
    prompts = hub_rows.load(source).column("prompt")
    pool = tuple(i for i, turns in enumerate(prompts) if split_of(_turns(turns)[-1]) == split)
    if not pool:
        raise UserError(f"None of the {len(prompts)} questions belongs to the split {split}: use a larger set.")
    return pool


@lru_cache(maxsize=4)
def _order(seed: int, split: str, epoch: int, n: int) -> tuple[int, ...]:
    return tuple(rng_for(seed, "openr1", split, epoch).permutation(n).tolist())


def _row(record: dict[str, Any]) -> Row:
    """The set's system prompt, which asks for the form of the reply, is put before the question: a row's prompt is one turn."""
    target = record["target"]
    value = str(record["reward_model"]["ground_truth"])
    answer = target[0]["content"] if target else ""
    return Row("openr1", "\n\n".join(_turns(record["prompt"])), answer, key=(value,), data={"value": value})


def _turns(turns: list[dict[str, str]]) -> list[str]:
    """The texts of a prompt: a system prompt, if there is one, and the question."""
    roles = [turn["role"] for turn in turns]
    if roles not in (["system", "user"], ["user"]):
        raise UserError(
            f"A prompt of {SOURCE.repo} has the turns {roles} where a system prompt and a question were expected: pin an older commit."
        )
    return [turn["content"] for turn in turns]
