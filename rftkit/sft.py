"""Supervised fine-tuning: TRL's SFTTrainer on (prompt, answer) rows, recorded and resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from rftkit import hub, recording, runs
from rftkit.config import Preset
from rftkit.policy import LORA_TARGETS, Policy, load_policy
from rftkit.tasks import Row


def sft_row(row: Row) -> dict[str, Any]:
    """A row in TRL's prompt-completion form: the loss falls on the completion only."""
    completion = [{"role": "assistant", "content": row.answer}]
    return {"prompt": recording.messages_only(row), "completion": completion, "images": [row.image]}


def train_sft(
    preset: Preset,
    seed: int,
    *,
    name: str = "sft",
    lr: float | None = None,
    steps: int | None = None,
    lora_rank: int | None = None,
    eval_steps: set[int] | None = None,
    save_every: int = 100,
    home: Path | None = None,
) -> tuple[runs.RunRecord, Policy]:
    """Train answer-only SFT on the jigsaw. Returns the run's record and the trained policy.

    `lr` is AdamW's rate (constant after a short warm-up), `steps` the number of updates of `preset.sft_batch` examples,
    `eval_steps` the updates to evaluate at. A finished run with the same settings is
    read instead of repeated; an interrupted one resumes from its last checkpoint.
    """
    rank = preset.lora_rank if lora_rank is None else lora_rank
    lr = (preset.lora_lr if rank else preset.sft_lr) if lr is None else lr
    steps = preset.sft_steps if steps is None else steps
    recording.check_run(lr, steps, eval_steps)
    micro = preset.micro_batch or preset.sft_batch
    config = {"lr": lr, "steps": steps, "batch": preset.sft_batch, "lora_rank": rank}
    policy = load_policy(preset)
    task = hub.new_task(preset)
    dataset = recording.lazy_dataset(lambda i: sft_row(task.row(seed, i, "train")), preset.train_n)

    def build(folder: Path, recorder: recording.Recorder) -> SFTTrainer:
        args = SFTConfig(
            output_dir=str(folder), per_device_train_batch_size=micro,
            gradient_accumulation_steps=-(-preset.sft_batch // micro), max_length=None, completion_only_loss=True,
            **recording.trainer_arguments(preset, lr, steps, seed, save_every),
        )  # fmt: skip
        recorder.examples_per_step = preset.sft_batch
        return SFTTrainer(
            policy.model, args=args, train_dataset=dataset, processing_class=policy.processor,
            peft_config=lora_config(rank) if rank else None, callbacks=[recorder],
        )  # fmt: skip

    return recording.run(policy, name, seed, config, build, eval_steps or {steps}, home), policy


def lora_config(rank: int) -> LoraConfig:
    """LoRA on every projection of the language model, none in the vision tower."""
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LORA_TARGETS, task_type="CAUSAL_LM")
