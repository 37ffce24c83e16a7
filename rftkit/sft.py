"""Supervised fine-tuning: TRL's SFTTrainer on (prompt, answer) rows, recorded and resumable."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from peft import LoraConfig, PeftModel
from trl import SFTConfig, SFTTrainer

from rftkit import hub, recording, runs
from rftkit.config import Preset, UserError
from rftkit.policy import LORA_TARGETS, Policy, load_policy, processes
from rftkit.tasks import Row


def sft_row(row: Row) -> dict[str, Any]:
    """A row in TRL's prompt-completion form: the loss falls on the completion only."""
    completion = [{"role": "assistant", "content": row.answer}]
    return {
        "prompt": recording.messages_only(row),
        "completion": completion,
        "images": [] if row.image is None else [row.image],
    }


class Rows(Protocol):
    """Rows by number, as a list has them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row: ...


@dataclass(frozen=True)
class Data:
    """What is imitated. `name` is part of the run's settings: other data is another run.

    `rows(policy, folder)` is asked for once, when training begins, with the policy in training and the run's folder: rows may
    be sampled from that policy while it trains (then `ordered`: they are asked for one after another, not shuffled).
    """

    name: str
    rows: Callable[[Policy, Path], Rows]
    ordered: bool = False


@dataclass(frozen=True)
class Lazy:
    """Row i is `make(i)`, drawn when asked for."""

    size: int
    make: Callable[[int], Row]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int, /) -> Row:
        return self.make(index)


def answers_only(preset: Preset, seed: int) -> Data:
    """The new task's own answers, without reasoning: the SFT-Non-Rea arm of 2506.23508."""
    task = hub.new_task(preset)
    return Data("answers", lambda policy, folder: Lazy(preset.train_n, lambda i: task.row(seed, i, "train")))


SEEN = 256  # rows among which the longest is looked for: to draw them all could take longer than to train


class LongestFirst(SFTTrainer):
    """SFTTrainer that can rehearse."""

    _total_train_tokens: int  # TRL's own

    def rehearse(self) -> None:
        """A micro-step on copies of the longest row of the first `SEEN` (`recording.Rehearsal`); none where rows come in order, one by one."""
        if self.args.train_sampling_strategy == "sequential":
            return
        kept = self._total_train_tokens
        rows = [self.train_dataset[i] for i in range(min(SEEN, len(self.train_dataset)))]
        longest = max(rows, key=lambda row: len(row["prompt"][0]["content"]) + len(row["completion"][0]["content"]))
        batch = self.data_collator([copy.deepcopy(longest) for _ in range(self.args.per_device_train_batch_size)])
        self.training_step(self.model_wrapped, batch, None)
        self._total_train_tokens = kept


def train_sft(
    preset: Preset,
    seed: int,
    *,
    name: str = "sft",
    data: Data | None = None,
    loss_type: str = "nll",
    after: recording.Before | None = None,
    measure: recording.Measure | None = None,
    evaluate: recording.Evaluate | None = None,
    save_at: set[int] | None = None,
    lr: float | None = None,
    steps: int | None = None,
    lora_rank: int | None = None,
    eval_steps: set[int] | None = None,
    save_every: int = 100,
    trainer: Callable[..., SFTTrainer] = LongestFirst,
    settings: Mapping[str, Any] | None = None,
    home: Path | None = None,
) -> tuple[runs.RunRecord, Policy]:
    """Train SFT on the jigsaw, on `data` (default: the answers alone). Returns the run's record and the trained policy.

    `lr` is AdamW's rate (constant after a short warm-up), `steps` the number of updates of `preset.sft_batch` examples,
    `loss_type` TRL's "nll" or "dft" (2508.05629), `eval_steps` the updates to evaluate at; `after` is a finished run to go on
    from, `measure` adds a row to the record at each evaluation, `evaluate` takes the place of the jigsaw's, `save_at` names
    evaluations whose weights are kept (`recording.weights_at`), `trainer` makes another loss and `settings` tells the run apart by it. A finished run with the same settings is
    read instead of repeated; an interrupted one resumes from its last checkpoint.
    """
    rank = preset.lora_rank if lora_rank is None else lora_rank
    lr = (preset.lora_lr if rank else preset.sft_lr) if lr is None else lr
    steps = preset.sft_steps if steps is None else steps
    recording.check_run(lr, steps, eval_steps)
    usual = sft_arguments(preset)
    data = data or answers_only(preset, seed)
    if data.ordered and processes() > 1:
        raise UserError(
            f"The rows {data.name!r} are sampled while training, by one process: start one, not {processes()}."
        )
    config = {
        "lr": lr, "steps": steps, "batch": preset.sft_batch, "lora_rank": rank, "data": data.name, "loss_type": loss_type,
        **(settings or {}),
    }  # fmt: skip
    policy = load_policy(preset)

    def build(folder: Path, recorder: recording.Recorder) -> SFTTrainer:
        rows = data.rows(policy, folder)
        args = SFTConfig(
            output_dir=str(folder), **usual, loss_type=loss_type,
            train_sampling_strategy="sequential" if data.ordered else "random",
            **recording.trainer_arguments(preset, lr, steps, seed, save_every),
        )  # fmt: skip
        recorder.examples_per_step = preset.sft_batch
        adapter = (
            lora_config(rank) if rank and not isinstance(policy.model, PeftModel) else None
        )  # `after` brings its own
        made = trainer(
            policy.model, args=args, train_dataset=recording.lazy_dataset(lambda i: sft_row(rows[i]), len(rows)),
            processing_class=policy.processor, peft_config=adapter, callbacks=[recorder],
        )  # fmt: skip
        # transformers counts no tokens for Qwen2.5-VL, whose own forward has no use for the count; TRL's loss has: without it
        # an accumulated update is the mean of its micro-batches' means (the mistake that 2604.23747 found in SFT baselines)
        made.model_accepts_loss_kwargs = True
        return made

    record = recording.run(
        policy, name, seed, config, build, eval_steps or {steps}, home, after=after, measure=measure, evaluate=evaluate, save_at=save_at
    )  # fmt: skip
    return record, policy


def sft_arguments(preset: Preset) -> dict[str, Any]:
    """An update of `preset.sft_batch` examples, `preset.micro_batch` at a time, as arguments of SFTConfig. Raises UserError where
    several processes cannot share it."""
    share = recording.share(preset.sft_batch, "sft_batch")
    micro = math.gcd(preset.micro_batch or share, share)  # an update is of exactly `sft_batch` examples, whatever fits
    return {
        "per_device_train_batch_size": micro, "gradient_accumulation_steps": share // micro, "max_length": None,
        "completion_only_loss": True,
    }  # fmt: skip


def lora_config(rank: int) -> LoraConfig:
    """LoRA on every projection of the language model, none in the vision tower."""
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LORA_TARGETS, task_type="CAUSAL_LM")
