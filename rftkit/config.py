"""Presets: one frozen dataclass holds every knob of a tier, so a notebook never asks which tier it runs on."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BUNDLED = "bundled"  # the small Qwen2.5-VL that ships inside the package
BUNDLED_DIR = Path(__file__).parent / "base"
CARDS = "bundled-cards"  # the same after more lessons in text: cards under a stated rule, sums, formulas (notebook 05)
CARDS_DIR = Path(__file__).parent / "base_cards"


class UserError(ValueError):
    """Bad input, told in one sentence: what was wrong and what to do about it."""


@dataclass(frozen=True)
class Preset:
    """One tier. Sizes are counts, learning rates are AdamW's, `max_completion` is in tokens."""

    name: str
    model: str = BUNDLED  # "bundled", "bundled-cards", a folder, or a Hub id
    revision: str | None = None  # Hub commit, so that a rerun loads the same weights
    prompt_style: str = "short"  # of the jigsaw: "short" fits the bundled vocabulary, "full" explains all
    rows: int = 3  # puzzle grid
    cols: int = 3
    images: str = "scenes"  # "scenes" (drawn) or "coco"
    max_pixels: int = 84 * 84  # the processor shrinks larger images to this area
    max_completion: int = 48  # tokens a rollout may take
    quantize: str = "none"  # "none" or "nf4"
    lora_rank: int = 0  # 0 trains all parameters (of the language model)
    freeze_vision: bool = True
    micro_batch: int = 0  # examples or rollouts on the device at once, the rest accumulated; 0: all of an update (RFT on a GPU: a group)
    checkpointing: bool = False  # recompute activations: less memory, slower, and RFT then reads a prompt G times
    device: str = "cpu"
    dtype: str = "float32"
    sft_lr: float = 1e-3
    rft_lr: float = 1e-4
    lora_lr: float = 2e-3  # LoRA wants about ten times the rate of full fine-tuning
    sft_batch: int = 64  # examples an update
    rft_prompts: int = 16  # distinct prompts an update
    rft_group: int = 8  # G, rollouts a prompt
    sft_steps: int = 60
    rft_steps: int = 220
    rft_beta: float = 0.0  # KL coefficient of the RFT arm; the KL arm uses `kl_beta`
    kl_beta: float = 0.005
    rft_reuse: int = 1  # optimiser steps taken on each batch of rollouts (mu of GRPO)
    train_n: int = 20_000  # puzzles in the training split
    eval_n: int = 100  # held-out examples for the new task and for each probe
    eval_batch: int = 100
    dynamics_where: str = ""  # regex of the trained weights whose gradients are measured; "" takes all
    vllm: bool = False  # rollouts by vLLM instead of model.generate


PRESETS = {
    "tiny": Preset("tiny"),
    "qlora": Preset(
        "qlora",
        model="Qwen/Qwen2.5-VL-3B-Instruct",
        prompt_style="full",
        images="coco",
        max_pixels=336 * 336,
        max_completion=512,
        quantize="nf4",
        lora_rank=16,
        device="cuda",
        dtype="auto",
        sft_lr=1e-4,
        rft_lr=1e-5,
        lora_lr=1e-4,
        sft_batch=16,
        # Two at a time keep RFT below 14 GB. To recompute activations instead (checkpointing=True) would, too, but by the cost model
        # takes half as long again: it has no cache to share, so that each of the G rollouts reads the prompt, thrice.
        micro_batch=2,
        rft_prompts=4,
        sft_steps=400,
        rft_steps=2000,
        kl_beta=0.04,
        eval_n=100,  # 500 would have taken longer to evaluate than to train: `python -m rftkit cost` shows the share
        eval_batch=50,
    ),
    # The papers' scale. 2506.23508 does not publish its rates, batch, group or KL; what it lacks is taken from 2505.23590 (Jigsaw-R1), the
    # nearest recipe that does. Grades: A read in the paper or its code, B two secondary sources, C one, D ours. 7B: model="...-7B-Instruct".
    "full": Preset(
        "full",
        model="Qwen/Qwen2.5-VL-3B-Instruct",
        prompt_style="full",
        images="coco",
        max_pixels=672 * 672,  # D: a COCO photograph, whole
        max_completion=512,  # A of 2505.23590
        device="cuda",
        dtype="float32",  # weights and AdamW in float32 under bfloat16 autocast: at 1e-6 a bfloat16 weight would not move
        sft_lr=1e-5,  # D: 2505.23590 has 1e-6 for SFT too, where it forgets next to nothing
        rft_lr=1e-6,  # A of 2505.23590, but constant here where it decays
        sft_batch=64,  # D
        micro_batch=8,  # D: for memory; no result depends on it
        checkpointing=True,
        rft_prompts=64,  # A of 2505.23590, with 8 rollouts of each
        sft_steps=400,  # B of 2506.23508 for 7B (200 for 3B)
        rft_steps=27_360,  # B of 2506.23508; its batch was not found
        kl_beta=0.04,  # A of 2505.23590, whose RFT is the arm rft_kl therefore
        eval_n=500,
        eval_batch=50,
        # a gradient of all weights would take 12 GB an example; these take 40 MB
        dynamics_where=r"layers\.(5|17|29)\.self_attn\.[kv]_proj\.weight",
        vllm=True,
    ),
}


def get_preset(name: str, /, **overrides: Any) -> Preset:
    """Return the preset `name` with some fields replaced.

    Raises UserError for an unknown preset, an unknown field, or a value of the wrong type or out of range.
    """
    if name not in PRESETS:
        raise UserError(f"There is no preset {name!r}: choose one of {', '.join(PRESETS)}.")
    preset = PRESETS[name]
    fields = {f.name: type(getattr(preset, f.name)) for f in dataclasses.fields(preset)}
    for key, value in overrides.items():
        if key not in fields or key == "name":
            raise UserError(
                f"A preset has no field {key!r}: choose one of {', '.join(sorted(set(fields) - {'name'}))}."
            )
        overrides[key] = _coerce(key, value, fields[key])
    preset = dataclasses.replace(preset, **overrides)
    _check(preset)
    return preset


def _coerce(key: str, value: Any, kind: type) -> Any:
    """Accept 3 for 3.0 and None where None is the default; refuse "3" for 3."""
    if kind is type(None):
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{key} must be {kind.__name__}, not {value!r}: pass a value of that type.")
    return value


def _check(p: Preset) -> None:
    least = {
        "rows": 1, "cols": 1, "max_pixels": 56 * 56, "max_completion": 8, "lora_rank": 0, "micro_batch": 0, "sft_batch": 1,
        "rft_prompts": 1, "rft_group": 2, "sft_steps": 1, "rft_steps": 1, "rft_reuse": 1, "train_n": 1, "eval_n": 1, "eval_batch": 1,
    }  # fmt: skip
    for key, low in least.items():
        if getattr(p, key) < low:
            raise UserError(f"{key} = {getattr(p, key)} is too small: it must be at least {low}.")
    for key in ("sft_lr", "rft_lr", "lora_lr"):
        if not 0 < getattr(p, key) <= 1:
            raise UserError(f"{key} = {getattr(p, key)} is not a learning rate: it must lie in (0, 1].")
    for key in ("rft_beta", "kl_beta"):
        if not 0 <= getattr(p, key) <= 10:
            raise UserError(f"{key} = {getattr(p, key)} is out of range: a KL coefficient lies in [0, 10].")
    choices = {
        "prompt_style": ("short", "full"), "images": ("scenes", "coco"), "quantize": ("none", "nf4"),
        "device": ("cpu", "cuda"), "dtype": ("auto", "float32", "bfloat16", "float16"),
    }  # fmt: skip
    for key, allowed in choices.items():
        if getattr(p, key) not in allowed:
            raise UserError(f"{key} = {getattr(p, key)!r} is not known: choose one of {', '.join(allowed)}.")
    try:
        re.compile(p.dynamics_where)
    except re.error as error:
        raise UserError(
            f"dynamics_where = {p.dynamics_where!r} is no regular expression ({error}): mend it."
        ) from error
    if p.rows * p.cols < 2:
        raise UserError(f"A {p.rows}x{p.cols} grid has nothing to shuffle: use at least two tiles.")
