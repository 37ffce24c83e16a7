"""Sample, score, keep: data for SFT that a policy made itself, as in the rollout arms of 2506.23508 and the filter of 2507.05386.

A rollout is one sampled reply. The samples of one prompt form a group; a rule looks at a group and returns what of it to keep.
Every sample has a generator of its own, seeded by (seed, step, prompt, sample), so that it does not depend on what else is in the
batch, and a set of rollouts can grow without drawing the old ones again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rftkit import jigsaw, policy, runs
from rftkit.config import Preset, UserError
from rftkit.recording import last_checkpoint, needs_weights
from rftkit.scenes import GRID, GROUNDS, LIGHTS
from rftkit.sft import Data, Lazy
from rftkit.tasks import ROWS, Row, Task


@dataclass(frozen=True)
class Rollout:
    """One sampled reply to puzzle `index` of the training split, with the three parts of its reward (2506.23508)."""

    index: int
    sample: int
    step: int
    text: str
    hit: float
    exact: float
    fmt: float

    @property
    def reward(self) -> float:
        return self.hit + self.exact + self.fmt

    @property
    def correct(self) -> bool:
        """The whole puzzle solved, in the asked form."""
        return self.exact == 1 and self.fmt == 1


Rule = Callable[[Sequence[Rollout]], list[Rollout]]  # a group in, what is kept of it out

# --- sample ---------------------------------------------------------------------------------------------------------------


def sample(
    model: policy.Policy, task: Task, seed: int, indices: Iterable[int], k: int = 1, step: int = 0, temperature: float = 1.0
) -> list[Rollout]:  # fmt: skip
    """`k` replies to each puzzle, by prompt and sample. `step` tells apart the times that a policy in training is asked again."""
    if k < 1 or not 0 < temperature <= 5:
        raise UserError(
            f"k = {k} samples at temperature {temperature} cannot be drawn: take k >= 1, 0 < temperature <= 5."
        )
    needs_weights()
    out: list[Rollout] = []
    chunk = max(1, model.preset.eval_batch // k)
    indices = list(indices)
    for start in tqdm(range(0, len(indices), chunk), desc=f"rollouts, {k} a prompt", mininterval=10):
        asked = [(i, s) for i in indices[start : start + chunk] for s in range(k)]
        rows = {i: task.row(seed, i, "train") for i in dict.fromkeys(i for i, _ in asked)}
        texts = policy.generate(
            model, [rows[i] for i, _ in asked], temperature=temperature, seed=[sample_seed(seed, step, i, s) for i, s in asked]
        )  # fmt: skip
        out += [scored(rows[i], i, s, step, text) for (i, s), text in zip(asked, texts, strict=True)]
    return out


def sample_seed(seed: int, step: int, index: int, number: int) -> int:
    """The seed of one sample's own generator: 63 bits of a hash of the four numbers."""
    return int(np.random.SeedSequence([seed, step, index, number]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def scored(row: Row, index: int, number: int, step: int, text: str) -> Rollout:
    reward = jigsaw.reward_p1(text, row.data["answer"], row.data["rows"], row.data["cols"])
    return Rollout(index, number, step, text, reward.hit, reward.exact, reward.fmt)


# --- keep -----------------------------------------------------------------------------------------------------------------


def correct_only(group: Sequence[Rollout]) -> list[Rollout]:
    """Rejection sampling: the replies that solve the puzzle."""
    return [r for r in group if r.correct]


def above(least: float) -> Rule:
    """The replies with more than this reward (0 to 3), solved or not."""
    return lambda group: [r for r in group if r.reward > least]


def rif(least: int, most: int) -> Rule:
    """Rollout-based instance filtering of 2507.05386: a puzzle is kept, with its correct replies, if `least` to `most` of its
    replies are correct. With 8 samples both 1..8 and 1..7 can be read out of the paper; 0 of 8 gives RFT no signal."""
    if not 1 <= least <= most:
        raise UserError(f"rif({least}, {most}) keeps nothing sensible: take 1 <= least <= most.")
    return lambda group: correct_only(group) if least <= len(correct_only(group)) <= most else []


@dataclass(frozen=True)
class Kept:
    """What a rule kept, and the data card: what it was kept from."""

    rollouts: tuple[Rollout, ...]
    card: dict[str, Any]


def keep(rollouts: Sequence[Rollout], rule: Rule, source: str, per_prompt: int | None = None) -> Kept:
    """Apply the rule to each group, drop replies that repeat another of the same prompt, keep at most `per_prompt` of each.

    `source` says in words where the rollouts come from and what the rule is; it goes into the card.
    """
    if not rollouts:
        raise UserError("There are no rollouts to keep from: sample some first.")
    groups: dict[int, list[Rollout]] = {}
    for r in rollouts:
        groups.setdefault(r.index, []).append(r)
    passed = {index: rule(group) for index, group in groups.items()}
    distinct = {index: _distinct(some) for index, some in passed.items()}
    kept = tuple(itertools.chain.from_iterable(some[:per_prompt] for some in distinct.values()))
    card = {
        "source": source,
        "prompts": len(groups),
        "samples": len(rollouts),
        "solved": sum(r.correct for r in rollouts),
        "correct_per_prompt": dict(sorted(Counter(len(correct_only(g)) for g in groups.values()).items())),
        "passed_rule": sum(map(len, passed.values())),
        "repeats_dropped": sum(len(passed[i]) - len(distinct[i]) for i in groups),
        "kept": len(kept),
        "prompts_kept": len({r.index for r in kept}),
        "mean_reward_before": float(np.mean([r.reward for r in rollouts])),
        "mean_reward_kept": float(np.mean([r.reward for r in kept])) if kept else None,
        "mean_words_kept": float(np.mean([len(r.text.split()) for r in kept])) if kept else None,
    }
    return Kept(kept, card)


def _distinct(some: list[Rollout]) -> list[Rollout]:
    """The first of each text, in their order."""
    first: dict[str, Rollout] = {}
    for r in some:
        first.setdefault(" ".join(r.text.split()), r)
    return list(first.values())


def card_text(card: dict[str, Any]) -> str:
    """The data card as a Markdown table."""
    shown = {key: f"{value:.2f}" if isinstance(value, float) else str(value) for key, value in card.items()}
    return "\n".join(
        ["| data card | |", "|---|---|", *(f"| {key.replace('_', ' ')} | {value} |" for key, value in shown.items())]
    )


# --- files: what the model said, never what it earned ------------------------------------------------------------------------


def save(kept: Kept, path: Path) -> None:
    """One JSON line for the card, one a reply. Whole or not at all."""
    lines = [
        {"card": kept.card},
        *({"index": r.index, "sample": r.sample, "step": r.step, "text": r.text} for r in kept.rollouts),
    ]
    try:
        runs.write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    except OSError as error:
        raise UserError(
            f"The rollouts {path} were not written ({error.strerror or error}): free some space."
        ) from error


def load(path: Path, task: Task, seed: int) -> Kept:
    """Read what `save` wrote and score it anew against the puzzles: a reward in a file is nobody's word for anything."""
    try:
        first, *lines = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        card = first["card"]
        said = [(int(x["index"]), int(x["sample"]), int(x["step"]), str(x["text"])) for x in lines]
    except OSError as error:
        raise UserError(f"The rollouts {path} cannot be read ({error.strerror or error}): check the path.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no file of rollouts ({error!r}): delete it and sample again.") from error
    return Kept(tuple(scored(task.row(seed, i, "train"), i, s, step, text) for i, s, step, text in said), card)


# --- data for SFT -----------------------------------------------------------------------------------------------------------


def imitate(kept: Kept, task: Task, seed: int, name: str) -> Data:
    """The kept replies as answers to learn. Raises UserError when there are none, or two of one puzzle."""
    return answered(_one_each(kept, lambda r: r.text), task, seed, name)


def right_answers(kept: Kept, task: Task, seed: int, name: str) -> Data:
    """The kept replies' thinking, right or wrong, with the right answer put behind it (2506.23508's self-generated reasoning)."""

    def mended(rollout: Rollout) -> str:
        return jigsaw.answer_text(task.row(seed, rollout.index, "train").data["answer"], thinking(rollout.text))

    return answered(_one_each(kept, mended), task, seed, name)


def _one_each(kept: Kept, text_of: Callable[[Rollout], str]) -> dict[int, str]:
    texts = {r.index: text_of(r) for r in kept.rollouts}
    if len(texts) < len(kept.rollouts):
        raise UserError("Some puzzle has several replies: keep one of each, keep(..., per_prompt=1).")
    return texts


def answered(texts: dict[int, str], task: Task, seed: int, name: str) -> Data:
    """One answer a puzzle, as data whose name holds a digest of the texts."""
    if not texts:
        raise UserError(
            f"Nothing was kept for {name!r}, so there is nothing to imitate: sample more, or loosen the rule."
        )
    items = sorted(texts.items())
    digest = hashlib.sha256(json.dumps(items).encode()).hexdigest()[:12]

    def row(i: int) -> Row:
        index, text = items[i]
        return dataclasses.replace(task.row(seed, index, "train"), answer=text)

    return Data(f"{name}-{digest}", lambda model, folder: Lazy(len(items), row))


def thinking(text: str) -> str:
    """What stands between the first <think> and the </think> after it; empty if there is no such block."""
    _, opened, rest = text.partition("<think>")
    body, closed, _ = rest.partition("</think>")
    return body.strip() if opened and closed else ""


def reworded(preset: Preset, task: Task, seed: int, far: bool = False) -> Data:
    """Right reasoning in words that the base never says about tiles: the stand-in for the GPT-4o rollouts of 2506.23508.

    The tiny tier's base writes "sky left" for a tile of the top left. Near: the same two words turned round, "left sky". Far:
    other words for the row, "top left". No sampling: each tile's place is the true one. With the long prompt both are
    sentences of a template, the far one in a notation. How foreign a text is to a model is measured, by its perplexity, not told.
    """

    def row(i: int) -> Row:
        plain = task.row(seed, i, "train")
        return dataclasses.replace(plain, answer=in_other_words(plain, preset.prompt_style, far))

    return Data(f"reworded-{'far' if far else 'near'}", lambda model, folder: Lazy(preset.train_n, row))


def in_other_words(row: Row, prompt_style: str, far: bool) -> str:
    """The reply to one puzzle that `reworded` shows. Raises UserError for the short wording of a grid that is not 3x3."""
    places = [index - 1 for index in row.data["answer"]]
    said = _short(places, far) if prompt_style == "short" else _long(places, row.data["cols"], far)
    return jigsaw.answer_text(row.data["answer"], said)


def _short(places: list[int], far: bool) -> str:
    if max(places) >= GRID * GRID:
        raise UserError(f"The short wording knows {GRID}x{GRID} grids only: use the prompt style 'full'.")
    name = (
        (lambda p: f"{ROWS[p // GRID]} {LIGHTS[p % GRID]}")
        if far
        else (lambda p: f"{LIGHTS[p % GRID]} {GROUNDS[p // GRID]}")
    )
    return " ".join(name(p) for p in places)


def _long(places: list[int], cols: int, far: bool) -> str:
    name = "t{k}->({r},{c});" if far else "Tile {k} fits in row {r}, column {c}."
    return " ".join(name.format(k=k + 1, r=p // cols + 1, c=p % cols + 1) for k, p in enumerate(places))


class FreshRollouts:
    """Rows sampled from the policy in training, anew every epoch: row i belongs to epoch i // size.

    An epoch asks the policy about the same `prompts` puzzles and takes what the rule keeps, over and over until `size` rows are
    used. Each epoch is saved in `folder` when it is made: a resumed run reads it. The trainer fetches one batch ahead, so
    an epoch is sampled one update before it is learnt from.
    """

    def __init__(
        self, model: policy.Policy, folder: Path, task: Task, seed: int, rule: Rule, size: int, prompts: int, epochs: int, k: int = 1
    ):  # fmt: skip
        self.model, self.folder, self.task, self.seed = model, folder, task, seed
        self.rule, self.size, self.prompts, self.epochs, self.k = rule, size, prompts, epochs, k
        self.current: tuple[int, tuple[Rollout, ...]] = (-1, ())
        if last_checkpoint(folder) is None:  # a run that begins again: what a killed one drew is of another policy
            for old in folder.glob("rollouts-*.jsonl"):
                old.unlink()

    def __len__(self) -> int:
        return self.size * self.epochs

    def __getitem__(self, index: int, /) -> Row:
        epoch, place = divmod(index, self.size)
        if epoch != self.current[0]:
            self.current = (epoch, self._epoch(epoch))
        kept = self.current[1]
        rollout = kept[place % len(kept)]
        return dataclasses.replace(self.task.row(self.seed, rollout.index, "train"), answer=rollout.text)

    def _epoch(self, epoch: int) -> tuple[Rollout, ...]:
        path = self.folder / f"rollouts-{epoch}.jsonl"
        if path.exists() and (earlier := load(path, self.task, self.seed).rollouts):
            return earlier
        drawn = sample(self.model, self.task, self.seed, range(self.prompts), self.k, step=epoch)
        kept = keep(drawn, self.rule, f"the policy in training, epoch {epoch}", per_prompt=1)
        if not kept.rollouts:
            raise UserError(
                f"The policy got none of {self.prompts} puzzles right in epoch {epoch}, so there is nothing to learn from: "
                "start from a policy that solves some, or loosen the rule."
            )
        save(kept, path)
        return kept.rollouts
