"""Watches a training run: evaluates at chosen updates, writes the record, finds the checkpoint an interrupted run resumes from."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from filelock import FileLock, Timeout
from peft import load_peft_weights, set_peft_model_state_dict
from transformers import PrinterCallback, TrainerCallback

from rftkit import evals, hub, jigsaw, policy, runs
from rftkit.config import Preset, UserError
from rftkit.tasks import Row

# Rows that are drawn when asked for have nothing to cache by, of which `datasets` would warn in every notebook.
logging.getLogger("datasets.fingerprint").addFilter(lambda said: "couldn't be hashed" not in said.getMessage())

EVAL_SEED = 9_000  # held-out rows are the same for every run, so that arms are compared on the same questions


Measure = Callable[[policy.Policy], dict[str, Any]]  # one more row for the record, its "kind" included
# the row of an evaluation, as `evaluate_all` makes it, and some replies
Evaluate = Callable[[policy.Policy], tuple[dict[str, Any], list[dict[str, Any]]]]


@dataclass(frozen=True)
class Before:
    """A finished run that another goes on from: its record, whose rows the new record begins with, and its saved weights."""

    record: runs.RunRecord
    weights: Path

    def settings(self) -> dict[str, Any]:
        """What tells this run from others, for the settings of the run that goes on from it."""
        tag = hashlib.sha256(json.dumps(self.record.config, sort_keys=True).encode()).hexdigest()[:8]
        return {"method": self.record.method, "steps": self.record.evals()[-1]["step"], "settings": tag}


# --- which runs would an arm make? --------------------------------------------------------------------------------------------

_foreseen: ContextVar[list[runs.RunRecord] | None] = ContextVar("foreseen", default=None)


class Unforeseen(Exception):
    """From here on an arm needs the weights of a run that was only foreseen."""


def foresee(arm: Callable[[], Any]) -> tuple[list[runs.RunRecord], bool]:
    """The runs that a call would make, in their order, none of them made: records with their settings and without results. And
    whether they are all, or the call would first have to ask the policy that the last of them trains."""
    token = _foreseen.set([])
    try:
        arm()
        whole = True
    except Unforeseen:
        whole = False
    finally:
        found = _foreseen.get() or []
        _foreseen.reset(token)
    return found, whole


def foreseeing(record: runs.RunRecord | None = None) -> bool:
    """Are runs foreseen, not made? Then `record` is noted, of a run that would be made here."""
    found = _foreseen.get()
    if found is not None and record is not None:
        found.append(record)
    return found is not None


def needs_weights() -> None:
    """To be called where a trained policy is asked. Raises Unforeseen where none was trained."""
    if foreseeing():
        raise Unforeseen


# --- evaluating ---------------------------------------------------------------------------------------------------------------


def held_out(preset: Preset, split: str = "test") -> dict[str, list[Row]]:
    """The new task's and the probes' evaluation rows."""
    return {
        t.name: t.rows(EVAL_SEED, preset.eval_n, split) for t in (hub.new_task(preset), *hub.probes(preset).values())
    }


def evaluate_all(model: policy.Policy, held: dict[str, list[Row]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Greedy accuracy on the new task (exact, and per tile) and on every probe, as one metrics row; and three replies."""
    texts = policy.generate(model, held["jigsaw"])
    samples = [
        {"prompt": r.prompt, "completion": t, "reward": _reward(t, r)}
        for t, r in zip(texts[:3], held["jigsaw"], strict=False)
    ]
    parsed = [jigsaw.parse(t, r.data["rows"], r.data["cols"]) for t, r in zip(texts, held["jigsaw"], strict=True)]
    hits = [jigsaw.hit_fraction(p, r.data["answer"]) for p, r in zip(parsed, held["jigsaw"], strict=True)]
    probes = hub.probes(model.preset)
    replies = {name: policy.generate(model, held[name]) for name in probes}
    counts = {name: evals.evaluate(lambda _: replies[name], task, held[name]) for name, task in probes.items()}  # noqa: B023
    own = {name: scores for name, texts in replies.items() if (scores := hub.published(name, texts, held[name]))}
    row = {
        "kind": "eval",
        "new_exact": sum(h == 1 for h in hits) / len(hits),
        "new_hit": sum(hits) / len(hits),
        "new_unparseable": sum(p.status != "ok" for p in parsed) / len(parsed),
        "new_n": len(hits),
        "prior": {name: asdict(count) for name, count in counts.items()},
        "prior_mean": evals.prior_mean(counts),
        **({"published": own} if own else {}),
    }
    return row, samples


def _reward(text: str, row: Row) -> float:
    return float(jigsaw.reward_p1(text, row.data["answer"], row.data["rows"], row.data["cols"]).total)


class Recorder(TrainerCallback):
    """Evaluates before the first update and at every step of `eval_steps`; saves the record after each, atomically, and the
    weights at the steps of `save_at`, which must be among them."""

    def __init__(
        self,
        record: runs.RunRecord,
        folder: Path,
        model: policy.Policy,
        eval_steps: set[int],
        measure: Measure | None = None,
        before: runs.RunRecord | None = None,
        evaluate: Evaluate | None = None,
        save_at: set[int] | None = None,
    ):
        self.record, self.folder, self.model, self.eval_steps = record, folder, model, eval_steps
        self.measure, self.save_at = measure, save_at or set()
        self.save_weights: Callable[[Path], Any] = lambda path: model.model.save_pretrained(path)
        last = before.evals()[-1] if before else {"step": 0, "examples": 0}  # of the run that this one goes on from
        self.offset, self.examples_before = last["step"], last["examples"]
        self.until: float | None = None  # stop at the first evaluation with this exact accuracy
        held = {} if evaluate else held_out(model.preset)
        self.evaluate: Evaluate = evaluate or (lambda model: evaluate_all(model, held))
        self.examples_per_step = 0
        self.tokens = self.counted = 0
        self.started = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        done_before = self.offset + state.global_step
        kept = runs.truncate_after(self.record, done_before or -1)  # from the start: nothing is kept
        self.record.metrics, self.record.samples = kept.metrics, kept.samples
        done = [m["seconds"] for m in self.record.metrics if "seconds" in m]
        self.started = time.monotonic() - (done[-1] if done else 0.0)
        self.tokens = max((m["tokens"] for m in self.record.metrics if "tokens" in m), default=0)
        self.counted = int(state.num_input_tokens_seen)  # where the trainer's own counter starts
        if done_before == 0:
            self._evaluate(0)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        wanted = ("loss", "reward", "rewards/hit/mean", "rewards/exact/mean", "rewards/template/mean", "entropy", "kl", "grad_norm",
                  "completions/mean_length", "frac_reward_zero_std", "step_time")  # fmt: skip
        row = {k.replace("/", "_"): v for k, v in (logs or {}).items() if k in wanted or k.startswith("prefix/")}
        if "loss" in row:
            counted = int((logs or {}).get("num_tokens", self.counted))  # none where rollouts are reused
            self.tokens += counted - self.counted if counted >= self.counted else counted  # SFTTrainer counts anew
            self.counted = counted
            self.record.metrics.append(
                {
                    "kind": "train",
                    "step": self.offset + state.global_step,
                    "tokens": self.tokens,
                    "seconds": time.monotonic() - self.started,
                    **row,
                }
            )
        done = self.record.evals()[-1]["step"] if self.record.evals() else -1
        if state.global_step in self.eval_steps and self.offset + state.global_step > done:
            self._evaluate(self.offset + state.global_step)
            if self.until is not None and self.record.evals()[-1]["new_exact"] >= self.until:
                control.should_training_stop = True
        elif control.should_save:  # before the checkpoint is written: a resumed run finds every update up to it
            self._save()

    def _save(self) -> None:
        if policy.is_main():
            runs.save_record(self.record, self.folder / "record.json")

    def _evaluate(self, step: int) -> None:
        paused = time.monotonic()
        row, samples = self.evaluate(self.model)
        if step - self.offset in self.save_at:
            self.save_weights(weights_at(self.folder, step - self.offset))
        if self.measure:
            self.record.metrics.append({"step": step, **self.measure(self.model)})
        seconds = paused - self.started
        self.started += time.monotonic() - paused  # `seconds` is training time: evaluations do not count
        row |= {
            "step": step,
            "seconds": seconds,
            "examples": self.examples_before + (step - self.offset) * self.examples_per_step,
            "tokens": self.tokens,
        }
        self.record.metrics.append(row)
        self.record.samples += [{"step": step, **sample} for sample in samples]
        self._save()
        if policy.is_main():
            print(
                f"{self.record.name}: update {step}, exact {row['new_exact']:.2f}, in part {row['new_hit']:.2f}, "
                f"prior {row['prior_mean']:.3f}, {seconds:.0f} s",
                flush=True,
            )


def rehearses(preset: Preset) -> bool:
    """Whether a run begins with a rehearsal: on one GPU, where memory runs out, and not with vLLM, which keeps to a share of it."""
    return preset.device == "cuda" and policy.processes() == 1 and not preset.vllm


class Rehearsal(TrainerCallback):
    """Once, after the first update, when AdamW's moments are there: a micro-step on the longest sample, to no effect.

    What a run needs depends on its longest sample, which may come in its third hour. So it comes first, and if memory runs out it
    does so at update 1. Gradients, random numbers and measurements are put back, and the run goes on as if nothing had been.
    """

    def __init__(self, trainer: Any):
        self.trainer, self.done = trainer, False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.done:
            return
        self.done, made = True, self.trainer
        kept = copy.deepcopy(made._metrics), state.num_input_tokens_seen
        with torch.random.fork_rng():
            made.rehearse()
        made.model.zero_grad()
        made._metrics, state.num_input_tokens_seen = kept


def weights_at(folder: Path, step: int) -> Path:
    """Where a run keeps the weights of an update that it was asked to keep."""
    return folder / f"weights-{step}"


def weights_id(preset: Preset, model: Any) -> str:
    """What the run started from: the bundled weights' SHA-256, or the Hub commit. Runs from other weights are other runs."""
    if bundled := policy.bundled_folder(preset):
        return policy.digest(bundled / "model.safetensors")[:16]
    return str(getattr(model.config, "_commit_hash", None) or preset.revision or "not known")


def last_checkpoint(folder: Path, latest: float = math.inf) -> str | None:
    """The newest complete checkpoint, of update `latest` or before: its trainer_state.json, written last, can be read. A half-written
    one is passed over."""
    for path in sorted(folder.glob("checkpoint-*"), key=_step_of, reverse=True):
        if _step_of(path) > latest:
            continue
        try:
            json.loads((path / "trainer_state.json").read_text())
        except (OSError, ValueError):
            continue
        return str(path)
    return None


def _step_of(checkpoint: str | Path) -> int:
    return int(Path(checkpoint).name.split("-")[1])


def lazy_dataset(make: Callable[[int], dict[str, Any]], n: int) -> Dataset:
    """A dataset whose row `i` is `make(i)`, drawn when it is asked for: nothing is encoded, nothing written to disk."""
    make = lru_cache(maxsize=1024)(make)  # GRPO asks for a row G times in a row

    def transform(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        rows = [make(i) for i in batch["index"]]
        return {key: [row[key] for row in rows] for key in rows[0]}

    return Dataset.from_dict({"index": list(range(n))}).with_transform(transform)


def messages_only(row: Row) -> list[dict[str, Any]]:
    """The prompt in TRL's form: plain text, since the image travels in a column of its own and TRL puts it first."""
    return [{"role": "user", "content": row.prompt}]


def check_run(lr: float, steps: int, eval_steps: set[int] | None) -> None:
    """Raise UserError for settings that cannot train, or evaluations that would never come."""
    if not 0 < lr <= 1:
        raise UserError(f"lr = {lr} is not a learning rate: it must lie in (0, 1].")
    if steps < 1:
        raise UserError(f"steps = {steps} trains nothing: give at least 1.")
    if late := [s for s in eval_steps or () if not 1 <= s <= steps]:
        raise UserError(f"An evaluation at update {late[0]} lies outside the run of {steps} updates: leave it out.")


def share(total: int, what: str) -> int:
    """The part of an update's `total` that falls to each process. Raises UserError where they do not divide it."""
    if total % policy.processes():
        raise UserError(
            f"{policy.processes()} processes cannot share {what} = {total} evenly: start a number of them that divides it."
        )
    return total // policy.processes()


def trainer_arguments(preset: Preset, lr: float, steps: int, seed: int, save_every: int) -> dict[str, Any]:
    """What every arm has in common, as arguments of a transformers Trainer."""
    return {
        "learning_rate": lr,
        "max_steps": steps,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": min(10, steps),
        "seed": seed,
        **autocast(preset),
        "use_cpu": preset.device == "cpu",
        "gradient_checkpointing": preset.checkpointing,
        "optim": "adamw_torch",
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": save_every,
        "save_total_limit": 2,
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
        "report_to": [],
        "disable_tqdm": True,
        "log_level": "error",
    }


def autocast(preset: Preset) -> dict[str, bool]:
    """bfloat16 from compute capability 8.0 on, float16 with loss scaling below, none on a CPU."""
    if preset.device == "cpu":
        return {"bf16": False}
    old = policy.old_gpu()
    return {"bf16": not old, "fp16": old}


@contextlib.contextmanager
def one_thread(preset: Preset) -> Iterator[None]:
    """On the CPU, train on one thread, at the price of about a third more time.

    A run then repeats to the last bit on machines of one kind. Two threads add up in another order, and GRPO makes another run
    of that: seed 0 ended once at half the puzzles solved, once on a plateau with none.
    """
    threads = torch.get_num_threads()
    if preset.device == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _folder(name: str, seed: int, settings: dict[str, Any], home: Path | None) -> Path:
    home = home or runs.output_home()
    if foreseeing():  # nothing is made, no folder either
        return home / "runs" / _folder_name(name, seed, settings)
    return runs.run_dir(home, _folder_name(name, seed, settings))


def _folder_name(name: str, seed: int, settings: dict[str, Any]) -> str:
    tag = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return f"{name}-s{seed}-{tag}"


def finished(record: runs.RunRecord, home: Path | None = None) -> bool:
    """Is there a finished run of these settings under `home`?"""
    path = (
        (home or runs.output_home()) / "runs" / _folder_name(record.method, record.seed, record.config) / "record.json"
    )
    return path.exists() and runs.load_record(path).status == "done"


def run_folder(record: runs.RunRecord, home: Path | None = None) -> Path:
    """Where a live run is kept: its record, and in `final` its weights."""
    return _folder(record.method, record.seed, record.config, home)


def run(
    model: policy.Policy,
    name: str,
    seed: int,
    config: dict[str, Any],
    build: Callable[[Path, Recorder], Any],
    eval_steps: set[int],
    home: Path | None = None,
    *,
    after: Before | None = None,
    measure: Measure | None = None,
    evaluate: Evaluate | None = None,
    save_at: set[int] | None = None,
) -> runs.RunRecord:
    """Read the finished run, or resume or start it. The settings are part of the folder's name: a changed setting is another run."""
    if policy.sharded():
        measure = None  # gradients of single examples want whole weights
    settings = {
        **config,
        "base": weights_id(model.preset, model.model),
        "eval_steps": sorted(eval_steps),
        "preset": {**asdict(model.preset)},
        **({"after": after.settings()} if after else {}),
    }
    begins = after.record.evals()[-1]["step"] if after else 0
    hollow = [{"kind": "eval", "step": begins + step, "examples": 0} for step in (0, *sorted(eval_steps))]
    made = runs.RunRecord(f"{name}-s{seed}", name, model.preset.name, seed, settings, status="done", metrics=hollow)
    if foreseeing(made):
        return made
    folder = _folder(name, seed, settings, home)
    with alone(folder):
        return _made(model, made, folder, build, eval_steps, after, measure, evaluate, save_at)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes from making the run in `folder` at the same time: they wait, and then read it. The lock ends with its
    process. In a folder that may only be read, or on a file system without locks, nobody is kept from anything."""
    lock = FileLock(folder.parent.parent / "locks" / f"{folder.name}.lock")
    with contextlib.ExitStack() as stack:
        if policy.is_main():  # of several processes that make it together the first one holds the lock
            with contextlib.suppress(OSError, NotImplementedError):
                Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    print(f"{folder.name} is being made by another process: waiting for it.", flush=True)
                    lock.acquire()
                stack.callback(lock.release)
        yield


def _made(
    model: policy.Policy,
    wanted: runs.RunRecord,
    folder: Path,
    build: Callable[[Path, Recorder], Any],
    eval_steps: set[int],
    after: Before | None,
    measure: Measure | None,
    evaluate: Evaluate | None,
    save_at: set[int] | None,
) -> runs.RunRecord:
    """The run that is `wanted`: read if it is done, gone on with if it was interrupted, else begun."""
    path = folder / "record.json"
    record = policy.from_main(lambda: runs.load_record(path) if path.exists() else None)
    if record is None:
        record = replace(
            wanted,
            status="running",
            versions=runs.versions() | hub.revisions(model.preset) | policy.companions(),
            metrics=list(after.record.metrics) if after else [],
            samples=list(after.record.samples) if after else [],
        )
    elif record.status == "done":
        policy.load_trained(model, folder / "final")
        return record
    record.status = "running"
    if after:
        policy.load_trained(model, after.weights, trainable=True)
    recorder = Recorder(record, folder, model, eval_steps, measure, after.record if after else None, evaluate, save_at)
    # TRL makes adapters of a quantised model bfloat16, too coarse for small rates, and for one that is there already
    adapter = {n: p.detach().clone() for n, p in model.model.named_parameters() if "lora_" in n}
    trainer = build(folder, recorder)
    widen(trainer.model, adapter)
    model.model = trainer.model  # with peft's wrapper, if the arm has one
    trainer.pop_callback(PrinterCallback)
    if policy.processes() > 1:
        recorder.save_weights = lambda path: trainer.save_model(str(path))  # gathers what is sharded
    end = trainer.args.max_steps
    checkpoint = policy.from_main(lambda: last_checkpoint(folder, end - 1 if policy.sharded() else end))
    if checkpoint and (Path(checkpoint) / "config.json").exists():
        # transformers' own resume matches no name of a Qwen2.5-VL file (they are the Hub's) and says nothing: it would
        # go on from the base. An adapter's names do match.
        policy.load_trained(model, Path(checkpoint))
    if rehearses(model.preset) and hasattr(trainer, "rehearse"):
        trainer.add_callback(Rehearsal(trainer))
    try:
        if checkpoint and _step_of(checkpoint) == end:  # a Trainer that resumes at its end makes one more update
            if (Path(checkpoint) / "adapter_config.json").exists():
                set_peft_model_state_dict(model.model, load_peft_weights(checkpoint))
        else:
            with one_thread(model.preset):
                trainer.train(resume_from_checkpoint=checkpoint)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"The GPU's memory did not suffice at update {trainer.state.global_step}: set a smaller micro_batch or eval_batch, or "
            "checkpointing=True; `python -m rftkit cost` predicts what will fit."
        ) from error
    trainer.save_model(str(folder / "final"))
    record.status = "done"
    policy.from_main(lambda: _finish(record, folder))
    return record


def widen(model: Any, values: dict[str, torch.Tensor] | None = None) -> None:
    """Make what is trained float32, with these values where they are given: float16's loss scaling works on nothing else, and small
    rates get lost in anything coarser."""
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = (values or {}).get(key, parameter.data).float()


def _finish(record: runs.RunRecord, folder: Path) -> None:
    runs.save_record(record, folder / "record.json")
    for old in folder.glob("checkpoint-*"):  # only an unfinished run needs them
        shutil.rmtree(old)
