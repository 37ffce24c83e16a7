"""The five arms of notebook 02, by name: the same functions make the live run and the recorded ones.

`python -m rftkit record --seeds 1 2` repeats the runs in `course/recorded/`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from rftkit import runs
from rftkit.config import Preset, UserError, get_preset
from rftkit.policy import Policy
from rftkit.rft import train_rft
from rftkit.sft import train_sft


def _fast(steps: int) -> set[int]:
    """Evaluations dense where the fastest arm crosses, so that the update at which it reaches the matched accuracy is known."""
    return {s for s in (4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 50, 60, 80, 100, 150, 200, 300, 400) if s < steps} | {
        steps
    }


def _slow(steps: int) -> set[int]:
    return {*range(20, steps, 20), steps}


def sft(preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
    """Answer-only SFT at its own learning rate."""
    return train_sft(preset, seed, name="sft", eval_steps=_fast(preset.sft_steps), home=home)


def sft_rft_lr(preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
    """Answer-only SFT at RFT's learning rate: is the rate what forgets?"""
    steps = 3 * preset.sft_steps  # the lower rate needs longer
    return train_sft(preset, seed, name="sft_rft_lr", lr=preset.rft_lr, steps=steps, eval_steps=_slow(steps), home=home)


def lora_sft(preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
    """Answer-only SFT of a low-rank adapter: is the number of free parameters what forgets?"""
    rank = preset.lora_rank or 8
    steps = 2 * preset.sft_steps
    return train_sft(preset, seed, name="lora_sft", lora_rank=rank, steps=steps, eval_steps=_slow(steps), home=home)


def rft(preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
    """GRPO."""
    return train_rft(preset, seed, name="rft", eval_steps=_slow(preset.rft_steps), home=home)


def rft_kl(preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
    """GRPO with a KL term to the base: is the penalty what keeps?"""
    return train_rft(preset, seed, name="rft_kl", beta=preset.kl_beta, eval_steps=_slow(preset.rft_steps), home=home)


ARMS: dict[str, Callable[[Preset, int, Path | None], tuple[runs.RunRecord, Policy]]] = {
    "sft": sft, "sft_rft_lr": sft_rft_lr, "lora_sft": lora_sft, "rft": rft, "rft_kl": rft_kl,
}  # fmt: skip


def main(argv: list[str]) -> int:
    """Make the recorded runs: each arm and seed, resuming what was interrupted, and copy their records to the course."""
    parser = argparse.ArgumentParser(prog="python -m rftkit record", description=main.__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--preset", default="tiny")
    args = parser.parse_args(argv)
    if unknown := [a for a in args.arms if a not in ARMS]:
        raise UserError(f"There is no arm {unknown[0]!r}: choose from {', '.join(ARMS)}.")
    for seed in args.seeds:
        for arm in args.arms:
            record, _ = ARMS[arm](get_preset(args.preset), seed, None)
            runs.save_record(record, runs.RECORDED_DIR / f"{args.preset}-{arm}-s{seed}.json")
    return 0
