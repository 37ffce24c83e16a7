"""Tasks in a row: a model learns one after another by one method, and is asked about all of them after each (2507.05386).

A sequence is a chain of recorded runs, one a task, each going on from the weights of the one before. What it found is one record: the
accuracy matrix, the probes of prior skill after each task, what each task cost and, where data were filtered, their card.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from rftkit import dynamics, estimators, evals, policy, recording, rif, rollouts, runs
from rftkit.config import Preset, UserError
from rftkit.evals import Floats, ProbeCount
from rftkit.methods import ORDER_A, PLANS, Method, Plan, Suite, replayed, run_name, seven, union
from rftkit.policy import Policy
from rftkit.rft import Practice, train_rft
from rftkit.sft import train_sft
from rftkit.tasks import Row, Task

# --- the matrix and what is read off it ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matrix:
    """Counts behind P: row t after task t (row 0 before any), column j on task j. `after` names the rows, `tasks` the columns."""

    tasks: tuple[str, ...]
    after: tuple[str, ...]
    counts: tuple[tuple[ProbeCount, ...], ...]

    @property
    def accuracy(self) -> Floats:
        """P (T + 1, T), accuracies in [0, 1]."""
        return np.array([[count.accuracy for count in row] for row in self.counts])

    @property
    def unparseable(self) -> Floats:
        """(T + 1, T) shares of replies with no answer in them: a lost form is no lost skill."""
        return np.array([[count.unparseable / count.n for count in row] for row in self.counts])


def avg_acc(matrix: Floats) -> float:
    """AvgAcc: the mean of the last row of P."""
    return float(np.asarray(matrix)[-1].mean())


def forgetting(
    matrix: Floats, normaliser: Literal["T", "T-1"] = "T", peak: Literal["all", "after_learning"] = "all"
) -> float:
    """FM = 1/T' sum over j of P[T][j] - max over t of P[t][j], from P (T + 1, T) with row 0 before any task; <= 0, closer to 0
    is less forgetting. 2507.05386 does not say (as far as its notes tell) which T', nor over which t.

    `normaliser` is T' (the last task cannot have been forgotten yet, hence T - 1). `peak` "all" takes t = 1..T, "after_learning"
    t = j..T. Row 0 is in neither: the formula counts t from the first task that is trained, and a task that was better before
    any training than ever after shows as a negative gain.
    """
    p = _square(matrix)
    size = len(p) - 1
    if normaliser == "T-1" and size < 2:
        raise UserError("One task has no T - 1 to divide by: take normaliser='T', or two tasks.")
    first = [1 if peak == "all" else j + 1 for j in range(size)]
    drops = [p[-1, j] - p[first[j] :, j].max() for j in range(size)]
    return float(sum(drops) / (size if normaliser == "T" else size - 1))


def new_task_gain(matrix: Floats) -> float:
    """Mean over j of P[j][j] - P[j-1][j]: what training on a task gave on that task. Without it FM says nothing: a method that
    learns nothing forgets nothing."""
    p = _square(matrix)
    return float(np.mean([p[j + 1, j] - p[j, j] for j in range(len(p) - 1)]))


def backward_transfer(matrix: Floats) -> float:
    """Mean over j < T of P[T][j] - P[j][j]: the "FM" of some later papers, positive where later tasks helped."""
    p = _square(matrix)
    if len(p) < 3:
        raise UserError("One task has nothing behind it to look back on: take two tasks or more.")
    return float(np.mean([p[-1, j] - p[j + 1, j] for j in range(len(p) - 2)]))


def _square(matrix: Floats) -> Floats:
    p = np.asarray(matrix, float)
    if p.ndim != 2 or len(p) < 2 or p.shape[0] != p.shape[1] + 1:
        raise UserError(
            f"A matrix of shape {p.shape} is not of T tasks in a row: pass P (T + 1, T), its row 0 before any task."
        )
    return p


# --- measuring ----------------------------------------------------------------------------------------------------------------


def evaluation(tasks: Mapping[str, Task], probes: Mapping[str, Task], plan: Plan) -> recording.Evaluate:
    """Greedy replies to the test rows of every task and of every probe, the same rows for all runs.

    In the row "tasks" counts by task, new_exact is their mean accuracy, new_hit the share of replies that have an answer in them.
    """
    seed = recording.EVAL_SEED
    held = {name: task.rows(seed, plan.asked) for name, task in tasks.items()}
    asked = {name: task.rows(seed, plan.probed) for name, task in probes.items()}

    def evaluate(model: Policy) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        rows = [row for some in (*held.values(), *asked.values()) for row in some]
        texts = iter(policy.generate(model, rows))  # all at once, in full batches
        said, old = ({name: [next(texts) for _ in some] for name, some in of.items()} for of in (held, asked))
        counts, prior = _counts(tasks, held, said), _counts(probes, asked, old)
        row = {
            "kind": "eval",
            "new_exact": evals.prior_mean(counts),
            "new_hit": 1 - sum(c.unparseable for c in counts.values()) / sum(c.n for c in counts.values()),
            "new_n": sum(c.n for c in counts.values()),
            "tasks": {name: asdict(count) for name, count in counts.items()},
            "prior": {name: asdict(count) for name, count in prior.items()},
            "prior_mean": evals.prior_mean(prior),
        }
        return row, [
            {"prompt": some[0].prompt, "completion": said[name][0], "reward": float(tasks[name].score(said[name][0], some[0]) == "correct")}
            for name, some in held.items()
        ]  # fmt: skip

    return evaluate


def _counts(
    tasks: Mapping[str, Task], rows: dict[str, list[Row]], texts: dict[str, list[str]]
) -> dict[str, ProbeCount]:
    return {name: evals.evaluate(lambda _: texts[name], tasks[name], rows[name]) for name in rows}  # noqa: B023


def teacher_forced_texts(model: Policy, rows: list[Row]) -> list[str]:
    """What the model finds most likely at each position of a row's answer, given the answer's own tokens before that position."""
    tokenizer, texts = model.processor.tokenizer, []
    with torch.no_grad(), dynamics.evaluating(model.model):
        for index in dynamics.batches(rows, model.preset.eval_batch):
            logits, targets = dynamics.answer_logits(model, [rows[i] for i in index])
            said = logits.argmax(-1).masked_fill(targets == -100, tokenizer.pad_token_id)
            texts += tokenizer.batch_decode(said, skip_special_tokens=True)
    return texts


def teacher_forced(model: Policy, rows: list[Row]) -> Floats:
    """Teacher-forced accuracy of each row, shape (n,): 1 where that text is the answer. How the SFT of 2507.05386 measures itself.

    The text is the answer if and only if greedy generation begins with the answer, to the word, so this hardly flatters as long as
    the whole answer is compared: it even refuses other words for the same. It flatters where only the end of the text is judged,
    as a task's `score` does with `teacher_forced_texts`: the right reasoning has then been given.
    """
    texts = teacher_forced_texts(model, rows)
    return np.array([float(text.split() == row.answer.split()) for text, row in zip(texts, rows, strict=True)])


# --- what a sequence found --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sequence:
    """A sequence, read out of its record."""

    record: runs.RunRecord

    @property
    def order(self) -> tuple[str, ...]:
        return tuple(self.record.config["order"])

    @property
    def stages(self) -> list[dict[str, Any]]:
        """One row a task: "task", "run" (folder), "cost" (updates, rollouts, sampled, tokens, seconds, sampling_seconds), "train" (by
        quantity its mean over the first and last tenth of the updates, and its largest value), "card" of the data or None."""
        return [row for row in self.record.metrics if row["kind"] == "stage"]

    @property
    def matrix(self) -> Matrix:
        counts = [tuple(ProbeCount(**row["tasks"][name]) for name in self.order) for row in self.record.evals()]
        return Matrix(self.order, ("base", *(row["task"] for row in self.stages)), tuple(counts))

    @property
    def in_a_row(self) -> bool:
        """One task after another; joint training is one stage, of all."""
        return all(row["task"] in self.order for row in self.stages)

    @property
    def gain(self) -> float:
        """What a task rose by while it was trained, mean over tasks; of joint training, what it rose by from base to end."""
        p = self.matrix.accuracy
        return new_task_gain(p) if self.in_a_row else float((p[-1] - p[0]).mean())

    @property
    def prior(self) -> Floats:
        """Mean accuracy of the probes before any task and after each, shape (T + 1,)."""
        return np.array([row["prior_mean"] for row in self.record.evals()])

    @property
    def cost(self) -> dict[str, float]:
        """What all tasks together took; evaluations do not count."""
        costs = [row["cost"] for row in self.stages]
        return {key: sum(cost[key] for cost in costs) for key in costs[0]} if costs else {}

    def weights(self, home: Path | None = None) -> Path:
        """The folder of the last task's weights, where the sequence was run."""
        return runs.run_dir(home or runs.output_home(), self.stages[-1]["run"]) / "final"


def load_sequence(path: Path) -> Sequence:
    """A sequence out of its record's file. Raises UserError for a record of another kind."""
    found = Sequence(runs.load_record(path))
    try:
        rows, columns = found.matrix.accuracy.shape
        whole = rows == len(found.stages) + 1 and columns == len(found.order) and bool(found.cost)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} holds no sequence of tasks ({error!r}): pass a record that run_sequence made."
        ) from error
    if not whole:
        raise UserError(f"{path} holds no whole sequence of tasks: run it again.")
    return found


# --- running ------------------------------------------------------------------------------------------------------------------


def run_sequence(
    preset: Preset,
    seed: int,
    method: Method,
    *,
    order: tuple[str, ...] = ORDER_A,
    base: recording.Before | None = None,
    plan: Plan | None = None,
    suite: Suite | None = None,
    home: Path | None = None,
) -> Sequence:
    """Train the tasks of `order` one after another from `base` (None: the preset's own model), evaluate all of them and the probes
    before the first and after each. Joint training is one run on all of them, of as many updates as the sequence.

    Each task is a recorded run, resumed from its last checkpoint if it was interrupted, and read if it is done; so is the whole.
    Of the weights the last task's are kept.
    """
    plan, suite = plan or PLANS[preset.name], suite or seven(preset)
    preset = replace(preset, max_completion=plan.max_completion, train_n=plan.instances)
    world = suite.tasks(preset, method.thinking)
    if len(order) < 1 or len(set(order)) < len(order) or not set(order) <= world.keys():
        raise UserError(f"{', '.join(order)} is no order of tasks: name some of {', '.join(world)}, each once.")
    run = _Run(preset, seed, method, {name: world[name] for name in order}, base, plan, suite, home)
    if recording.foreseeing(run.new_record()):
        return Sequence(run.new_record())
    with recording.alone(run.folder):
        return _in_a_row(run, suite.probes(preset))


def _in_a_row(run: _Run, probes: Mapping[str, Task]) -> Sequence:
    """The tasks of the sequence that are not trained yet, one after another."""
    record, path = run.begin()
    base, home = run.base, run.home
    if record.status == "done":
        return Sequence(record)
    evaluate = evaluation(run.tasks, probes, run.plan)
    for place, name in list(enumerate(run.stages))[len(Sequence(record).stages) :]:
        before = base and _from_base(base)
        if place:
            before = recording.Before(record, Sequence(record).weights(home))
        stage, row = run.train(place, name, before, evaluate)
        record.metrics = [x for x in stage.metrics if x["kind"] != "train"] + [row]
        record.samples = stage.samples
        record.status = "done" if name == run.stages[-1] else "running"
        if not policy.is_main():
            continue
        runs.save_record(record, path)
        for old in Sequence(record).stages[:-1]:
            shutil.rmtree(runs.run_dir(home or runs.output_home(), old["run"]) / "final", ignore_errors=True)
    return Sequence(record)


@dataclass(frozen=True)
class _Run:
    """One call of `run_sequence`."""

    preset: Preset
    seed: int
    method: Method
    tasks: dict[str, Task]  # in order
    base: recording.Before | None
    plan: Plan
    suite: Suite
    home: Path | None

    @property
    def name(self) -> str:
        return run_name(self.method, tuple(self.tasks), self.suite)

    @property
    def stages(self) -> tuple[str, ...]:
        return ("joint",) if self.method.data == "joint" else tuple(self.tasks)

    @property
    def folder(self) -> Path:
        return recording.run_folder(self.new_record(), self.home)

    def new_record(self) -> runs.RunRecord:
        config = {
            "suite": self.suite.name, "order": list(self.tasks), "method": asdict(self.method), "plan": asdict(self.plan),
            "preset": asdict(self.preset), "base": self.base.settings() if self.base else None,
        }  # fmt: skip
        return runs.RunRecord(
            f"{self.name}-s{self.seed}",
            self.name,
            self.preset.name,
            self.seed,
            config,
            runs.versions() | self.suite.revisions(),
        )

    def begin(self) -> tuple[runs.RunRecord, Path]:
        path = self.folder / "record.json"
        return policy.from_main(lambda: runs.load_record(path) if path.exists() else self.new_record()), path

    def train(
        self, place: int, name: str, before: recording.Before | None, evaluate: recording.Evaluate
    ) -> tuple[runs.RunRecord, dict[str, Any]]:
        """One task: its run's record, and its row for the sequence's."""
        samples = self.folder / f"drawn-{place + 1}-{name}.jsonl"
        drawn = self.draw(samples, name, before) if self.method.keep or self.method.data == "self" else None
        sampling = rif.seconds(samples) if drawn else 0.0
        common: dict[str, Any] = {
            "name": f"{self.name}_{place + 1}_{name}", "lr": getattr(self.plan, self.method.rate), "after": before,
            "evaluate": evaluate, "save_every": self.plan.save_every, "home": self.home,
        }  # fmt: skip
        train = self.imitate if self.method.family == "sft" else self.practise
        record, card = train(place, name, drawn, common)
        return record, self.row(name, record, before, len(drawn or ()), sampling, card)

    def draw(self, path: Path, name: str, before: recording.Before | None) -> list[rollouts.Rollout]:
        model = policy.load_policy(self.preset)
        if before:
            policy.load_trained(model, before.weights)
        with recording.one_thread(self.preset):
            return rif.draw(model, self.tasks[name], self.seed, range(self.plan.instances), self.plan.samples, path)

    def imitate(
        self, place: int, name: str, drawn: list[rollouts.Rollout] | None, common: dict[str, Any]
    ) -> tuple[runs.RunRecord, dict[str, Any] | None]:
        steps, card = getattr(self.plan, self.method.updates), None
        if drawn:
            kept = rollouts.keep(
                drawn, rollouts.correct_only, "the policy before the task; right replies", per_prompt=1
            )
            data = rollouts.imitate(kept, self.tasks[name], self.seed, f"own replies to {name}")
            card = rif.card(kept)
        elif self.method.data == "joint":
            data, steps = union(list(self.tasks.values()), self.seed, self.plan.instances), steps * len(self.tasks)
        else:
            earlier = list(self.tasks.values())[:place] if self.method.replay else []
            data = replayed(self.tasks[name], earlier, self.seed, self.plan.instances, self.plan.replay)
        if self.method.l2:
            strength = self.plan.l2
            common |= {"trainer": partial(estimators.AnchoredTrainer, strength=strength), "settings": {"l2": strength}}
        data = replace(data, name=self.plan.label(data.name))
        record, _ = train_sft(self.preset, self.seed, data=data, steps=steps, **common)
        return record, card

    def practise(
        self, place: int, name: str, drawn: list[rollouts.Rollout] | None, common: dict[str, Any]
    ) -> tuple[runs.RunRecord, dict[str, Any] | None]:
        method, task, card = self.method, self.tasks[name], None
        steps = getattr(self.plan, method.updates)
        label = f"{self.suite.name}: {task.name}{'' if method.thinking else ', direct'}"
        preset = self.preset
        if drawn and method.keep:
            kept = rif.kept_by(drawn, method.keep)
            left = sorted({r.index for r in kept.rollouts})
            if method.at_random:
                rng = np.random.default_rng([self.seed, place])
                left = sorted(rng.choice(self.plan.instances, len(left), replace=False).tolist())
            task, card = rif.chosen(task, left), kept.card | {"trained_on": len(left), "at_random": method.at_random}
            # as many passes over what is left as the others make over all of it
            steps = -(-steps * len(left) // self.plan.instances)
            preset = replace(preset, train_n=max(len(left), preset.rft_prompts))
            label += f", {len(left)} instances {hashlib.sha256(json.dumps(left).encode()).hexdigest()[:12]}"
        rewards = (self.suite.accuracy, self.suite.form) if method.thinking else (self.suite.accuracy,)
        original = self.base.weights if self.base else None
        record, _ = train_rft(
            preset, self.seed, practice=Practice(self.plan.label(label), task, rewards), beta=self.plan.beta if method.kl else 0.0, steps=steps,
            variant=estimators.variant(method.estimator, method.reference, original), **common,
        )  # fmt: skip
        return record, card

    def row(
        self, name: str, record: runs.RunRecord, before: recording.Before | None, sampled: int, sampling: float, card: dict[str, Any] | None
    ) -> dict[str, Any]:  # fmt: skip
        updates = [row for row in record.metrics if row["kind"] == "train"]
        last, first = record.evals()[-1], before.record.evals()[-1] if before else {}
        rollouts_each = 0
        if self.method.family == "rft":
            rollouts_each = self.preset.rft_prompts * (self.preset.rft_group + (self.method.estimator == "remax"))
        return {
            "kind": "stage", "step": last["step"], "task": name, "run": recording.run_folder(record, self.home).name,
            "cost": {
                "updates": len(updates), "rollouts": rollouts_each * -(-len(updates) // self.preset.rft_reuse), "sampled": sampled,
                **{key: last[key] - first.get(key, 0) for key in ("examples", "tokens", "seconds")}, "sampling_seconds": sampling,
            },
            "train": {key: _summary([x[key] for x in updates if x.get(key) is not None]) for key in SUMMARISED if any(key in x for x in updates)},
            "card": card,
        }  # fmt: skip


SUMMARISED = ("loss", "reward", "kl", "entropy", "grad_norm", "frac_reward_zero_std", "completions_mean_length")


def _summary(values: list[float]) -> dict[str, float] | None:
    tenth = max(1, len(values) // 10)
    if not values:  # all of them diverged
        return None
    return {
        "first": float(np.mean(values[:tenth])),
        "last": float(np.mean(values[-tenth:])),
        "most": float(max(values)),
    }


def _from_base(base: recording.Before) -> recording.Before:
    """The base as the run before the first task: at update 0, so that the first task's run evaluates it."""
    row = {"kind": "eval", "step": 0, "examples": 0, "tokens": 0, "seconds": 0.0}
    return replace(base, record=replace(base.record, metrics=[row], samples=[]))
