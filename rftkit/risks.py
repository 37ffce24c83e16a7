"""What part 14 of notebook 07 measures, recorded: the risk of updates on the seven tasks (`fisher`), at the practised base, to which they
are new, and where GRPO had learnt them in a row (in the second order), one policy a seed. At the base, which is one policy, seeds are
draws of prompts and answers. Files `course/recorded/seven/risks-s0.json` and so on, made by `python -m rftkit record`.

The prompts are test questions: a sequence is trained on questions of its own seed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from rftkit import fisher, methods, runs, sequence
from rftkit.config import Preset, UserError
from rftkit.fisher import Group
from rftkit.policy import Policy, load_policy, load_trained
from rftkit.predict import six_digits
from rftkit.tasks import PROBES, Row

FOLDER = runs.RECORDED_DIR / "seven"
BASE, AFTER = "practised base", "after seven tasks by GRPO"  # where it is measured
# the weights that scores are taken by: one matrix, lest a score have millions of numbers
WHERE = r"layers\.2\..*down_proj"
PROMPTS, SAMPLES = 12, 8  # of each new task, and answers to each prompt
EARLIER, ANSWERS = 4, 16  # rows of each probe that shows a picture, and answers to each, for the Fisher information

Study = Mapping[str, Sequence[Group]]  # place -> groups


def paid(text: str, row: Row) -> float:
    """The reward that RFT pays: 0.9 for the answer, 0.1 for the form."""
    reply = [[{"role": "assistant", "content": text}]]
    return sequence.accuracy(reply, [row.data["target"]])[0] + sequence.form(reply)[0]


def measure(policy: Policy, seed: int, names: Sequence[str] = methods.ORDER_A, prompts: int = PROMPTS) -> list[Group]:
    """`prompts` groups of each of these tasks, with their risks for what the probes ask."""
    shown = [task for task in PROBES.values() if task.uses_image]
    earlier = [task.row(seed, i, "train") for task in shown for i in range(EARLIER)]
    information = fisher.sampled(policy, earlier, ANSWERS, seed, WHERE)
    world = sequence.tasks(policy.preset)
    rows = {name: world[name].rows(seed, prompts, "test") for name in names}
    return [g for some in rows.values() for g in fisher.groups(policy, information, some, paid, SAMPLES, seed)]


def study(preset: Preset, seed: int, end: Policy, home: Path | None = None) -> Study:
    """At the practised base and at `end`, the policy after seven tasks by GRPO."""
    before = sequence.form_base(preset, home)
    preset = replace(preset, max_completion=methods.PLANS[preset.name].max_completion)
    base = load_policy(preset)
    load_trained(base, before.weights)
    return {BASE: measure(base, seed), AFTER: measure(replace(end, preset=preset), seed)}


def save(found: Study, path: Path) -> None:
    """Write a study atomically, a group a line, numbers to six digits."""
    places = {place: [six_digits(_plain(group)) for group in groups] for place, groups in found.items()}
    blocks = [
        json.dumps(place) + ": [\n" + ",\n".join(map(json.dumps, groups)) + "\n]" for place, groups in places.items()
    ]
    runs.write_whole(path, "{" + ",\n".join(blocks) + "}\n")


def _plain(group: Group) -> dict[str, Any]:
    values = {f.name: getattr(group, f.name) for f in fields(group)}
    return {key: v.tolist() if isinstance(v, torch.Tensor) else v for key, v in values.items()}


def load(path: Path) -> Study:
    """A study that `save` wrote. Raises UserError for anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return {place: [_group(values) for values in data[place]] for place in (BASE, AFTER)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} holds no risks of updates ({error!r}): make it again with `python -m rftkit record`."
        ) from error


def _group(values: Mapping[str, Any]) -> Group:
    made = {key: torch.tensor(v, dtype=torch.float64) if isinstance(v, list) else v for key, v in values.items()}
    group = Group(**made)
    n = len(group.rewards)
    if group.risks.shape != (n, n) or group.products.shape != (n, n):
        raise ValueError("risks and products are not n by n")
    return group


def recorded(folder: Path = FOLDER) -> dict[int, Study]:
    """The studies of a folder by seed."""
    return {int(path.stem.removeprefix("risks-s")): load(path) for path in sorted(folder.glob("risks-s*.json"))}
