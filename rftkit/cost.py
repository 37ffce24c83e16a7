"""`python -m rftkit cost 02 --preset qlora`: the memory, minutes and downloads of a notebook, predicted from its preset.

Memory is counted tensor by tensor, from the shapes of the model (built on the meta device, without weights) and from what PyTorch
keeps for the backward pass; tests/test_cost.py compares both the count and whole trainings with measurements. Time is tokens
times floating-point operations over an assumed share of a card's data sheet: an order of magnitude, printed beside published steps.

Left out of the memory: what an allocator cannot reuse and the CUDA context (`HEADROOM` and `CONTEXT` stand for them in `refusal`),
weights spread over several processes, and what other programs hold. Counted in full though not all at once: gradients and
activations where one micro-step is the whole update. Left out of the time: loading, downloads, rewards, and rollouts sampled for data.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from rftkit import hub, hub_rows, jigsaw, notebooks, policy, runs
from rftkit.config import PRESETS, Preset, UserError, get_preset

GB = 1e9
# bits a weight in NF4 with double quantisation: 4, an 8-bit scale for 64 weights, a 32-bit scale for 256 of those (QLoRA, 2305.14314)
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
TEMPLATE = 30  # tokens of the system prompt and the chat template around a question (assumed; 20 to 30 in Qwen2.5-VL's)
# of the predicted peak, for memory that the allocator holds and cannot use: assumed for CUDA's; for a CPU as glibc's malloc was
# measured at worst (RFT with LoRA: 2.0 GB where its tensors took 1.5)
HEADROOM = {"cuda": 1.1, "cpu": 1.4}
CONTEXT = 0.6 * GB  # CUDA context and the libraries' workspaces (assumed)
TILE = 32_768  # vocabulary entries a tile of TRL's fused head, for at most 4,096 tokens
KEPT_IMAGES = inspect.signature(policy.reuse_features).parameters["keep"].default


def vllm_share() -> float:
    """What vLLM beside the training takes of a GPU's memory, by TRL's default."""
    from trl import GRPOConfig  # heavy, and a notebook that trains nothing has no other use for it

    return GRPOConfig.vllm_gpu_memory_utilization


# --- shapes ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen2.5-VL. `linear` counts the projections of the language model (what NF4 and LoRA apply to), `language` all
    of it with embeddings and head, a tied one once; `lora_width` is the sum of inputs and outputs of all projections."""

    layers: int
    width: int
    kv_width: int
    mlp: int
    vocab: int
    linear: int
    largest_linear: int
    largest: int  # weights of the largest matrix of all
    lora_width: int
    language: int
    vision: int
    vision_width: int
    vision_mlp: int

    @property
    def total(self) -> int:
        return self.language + self.vision


def _hub_config(
    width: int, layers: int, heads: int, kv_heads: int, mlp: int, vocab: int, tied: bool
) -> Qwen2_5_VLConfig:
    text = {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "intermediate_size": mlp, "vocab_size": vocab, "tie_word_embeddings": tied,
    }  # fmt: skip
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": width}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)


# as the config.json of the Hub repositories say
HUB_SHAPES: dict[str, Callable[[], Qwen2_5_VLConfig]] = {
    "Qwen/Qwen2.5-VL-3B-Instruct": lambda: _hub_config(2048, 36, 16, 2, 11_008, 151_936, True),
    "Qwen/Qwen2.5-VL-7B-Instruct": lambda: _hub_config(3584, 28, 28, 4, 18_944, 152_064, False),
}


def shape_of(preset: Preset) -> Shape:
    """The shape of the preset's model. Raises UserError for a model that is neither on this machine nor known."""
    return _shape(str(policy.bundled_folder(preset) or preset.model))


@lru_cache
def _shape(name: str) -> Shape:
    if name in HUB_SHAPES:
        config = HUB_SHAPES[name]()
    else:
        try:
            config = Qwen2_5_VLConfig.from_pretrained(name, local_files_only=True)
        except (OSError, ValueError) as error:
            raise UserError(
                f"The shape of {name} is not known: give a folder with its config.json, or one of {', '.join(HUB_SHAPES)}."
            ) from error
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.tie_weights()
    linears = [module.weight for key, module in model.named_modules() if re.fullmatch(policy.LORA_TARGETS, key)]
    text, vision = config.text_config, config.vision_config
    in_tower = sum(p.numel() for p in model.model.visual.parameters())
    return Shape(
        layers=text.num_hidden_layers, width=text.hidden_size, mlp=text.intermediate_size, vocab=text.vocab_size,
        kv_width=text.hidden_size // text.num_attention_heads * text.num_key_value_heads,
        linear=sum(w.numel() for w in linears), largest_linear=max(w.numel() for w in linears), largest=max(p.numel() for p in model.parameters()),
        lora_width=sum(sum(w.shape) for w in linears), language=sum(p.numel() for p in model.parameters()) - in_tower,
        vision=in_tower, vision_width=vision.hidden_size, vision_mlp=vision.intermediate_size,
    )  # fmt: skip


def count_tokens(text: str) -> int:
    """About how many tokens a text has: a word, a digit, or a sign each. The tokenizer of a Hub model may not be here."""
    return len(re.findall(r"[A-Za-z]+|[0-9]|[^\sA-Za-z0-9]", text))


def visual_tokens(preset: Preset) -> int:
    """Tokens of an image at the pixel budget: one for 28 x 28 pixels."""
    return preset.max_pixels // hub.TOKEN**2


def prompt_tokens(preset: Preset) -> int:
    """Tokens of a puzzle as the model reads it."""
    question = jigsaw.prompt(preset.rows, preset.cols, style=preset.prompt_style)
    return visual_tokens(preset) + count_tokens(question) + TEMPLATE


# --- what an arm does -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """One training: `algorithm` sft or rft ("none" evaluates only), of `steps` updates, evaluated `evaluations` times; `answer` is
    the tokens of a completion, `beta` the KL coefficient."""

    name: str
    algorithm: str
    preset: Preset
    steps: int
    answer: int
    evaluations: int
    beta: float = 0.0


def work_of(preset: Preset, name: str) -> Work:
    """The training of the arm `name` of rftkit/arms.py. Raises UserError for an arm that is not known.

    GeneralPoints and sums, whose prompts have no picture, are counted as if they had one.
    """
    from rftkit import arms, two_stage  # they import the trainers

    if name not in (known := arms.arms_of(preset.name)):
        raise UserError(f"There is no arm {name!r}: choose from {', '.join(known)}.")
    if name.startswith("points_"):
        preset, plan = two_stage.plan_of(preset)
        if name.startswith("points_rft"):
            return Work(name, "rft", preset, plan.rft_steps, preset.max_completion, 2)
        return Work(name, "sft", preset, plan.checkpoints[-1], preset.max_completion, 1 + len(plan.checkpoints))
    if name.startswith(("sums_", "jigsaw_")):
        return _blended(preset, name)
    if name.startswith("seven_"):
        return _in_a_row(preset, name)
    bare = count_tokens(jigsaw.answer_text(tuple(range(1, preset.rows * preset.cols + 1)))) + 2
    if "rft" in name.split("_")[:2] and not name.startswith("sft"):
        steps = max(1, preset.rft_steps // 10) if name == "rft_early" else preset.rft_steps
        beta = preset.kl_beta if name == "rft_kl" else preset.rft_beta
        return Work(name, "rft", preset, steps, preset.max_completion, 1 + len(arms._slow(steps)), beta)
    longer = {"sft_rft_lr": 3, "lora_sft": 2}.get(name, 1)
    if name == "lora_sft":
        preset = dataclasses.replace(preset, lora_rank=preset.lora_rank or 8)
    steps = longer * preset.sft_steps
    schedule = arms._slow(steps) if longer > 1 else arms._fast(steps)
    answer = bare if name in ("sft", "sft_rft_lr", "lora_sft") else preset.max_completion
    return Work(name, "sft", preset, steps, answer, 1 + len(schedule))


def _blended(preset: Preset, name: str) -> Work:
    """An arm of notebook 06. SFT followed by RFT is counted as RFT; making the practised base, and where RFT starts from, is not."""
    from rftkit import blends

    plan, kind = blends.TINY, "sft" if name in ("sums_sft", "jigsaw_sft") else "rft"
    if name.startswith("jigsaw_"):
        return Work(name, kind, preset, preset.rft_steps, preset.max_completion, 1 + -(-preset.rft_steps // 20))
    preset = blends.own_preset(preset, plan)
    return Work(
        name, kind, preset, plan.steps, preset.max_completion, 1 + plan.evaluations + len(plan.first) * (kind == "sft")
    )


def _in_a_row(preset: Preset, name: str) -> Work:
    """A sequence of notebook 07, all its tasks as one training; the practised base and replies that are sampled for data are not counted."""
    from rftkit.methods import METHODS, ORDER_A, PLANS

    plan, method = PLANS[preset.name], METHODS[name.removeprefix("seven_").removesuffix("_b")]
    preset = dataclasses.replace(preset, max_completion=plan.max_completion)
    tasks, beta = len(ORDER_A), plan.beta if method.family == "rft" and method.kl else 0.0
    stages = 1 if method.data == "joint" else tasks
    return Work(
        name, method.family, preset, tasks * getattr(plan, method.updates), plan.max_completion, stages + 1, beta
    )


# --- memory ------------------------------------------------------------------------------------------------------------------

Bytes = dict[str, float]  # part: bytes


@dataclass(frozen=True)
class Numbers:
    """Bytes of a number: of an unquantised `weight`, of the residual `stream`, and of what matrices are multiplied in (`compute`)."""

    weight: int
    stream: int
    compute: int


def numbers_of(preset: Preset) -> Numbers:
    if preset.device == "cpu":
        return Numbers(4, 4, 4)  # float32, without autocast
    weight = 4 if preset.dtype == "float32" else 2
    return Numbers(weight, weight if preset.lora_rank else 4, 2)  # recording.run makes what it trains float32


def trained_weights(work: Work) -> int:
    preset, shape = work.preset, shape_of(work.preset)
    if work.algorithm == "none":
        return 0
    if preset.lora_rank:
        return preset.lora_rank * shape.lora_width
    return shape.language + (0 if preset.freeze_vision else shape.vision)


def weight_bytes(preset: Preset) -> Bytes:
    """The model itself: the language model's projections (in NF4 if quantised), what else it has, and the vision tower."""
    shape, size = shape_of(preset), numbers_of(preset)
    language = size.weight if preset.lora_rank else size.stream
    linear = shape.linear * (NF4_BITS / 8 if preset.quantize == "nf4" else language)
    return {
        "projections" + (" (NF4)" if preset.quantize == "nf4" else ""): linear,
        "embeddings, head, norms": (shape.language - shape.linear) * language,
        "vision tower": shape.vision
        * (4 if policy.wide_tower(preset) else size.weight if preset.freeze_vision else size.stream),
    }


def standing_bytes(work: Work) -> Bytes:
    """What lies in memory throughout a training: weights, adapter, AdamW's two moments, reference model, kept image features."""
    p, shape, size = work.preset, shape_of(work.preset), numbers_of(work.preset)
    trained = trained_weights(work)
    parts = weight_bytes(p)
    if p.lora_rank and trained:
        parts["LoRA, float32"] = 4 * trained
    if trained:
        parts["AdamW, 2 x float32"] = 8 * trained
    if work.beta and not p.lora_rank:  # an adapter is switched off instead
        parts["reference model"] = shape.total * numbers_of(p).stream
    if p.freeze_vision:
        parts[f"features of {KEPT_IMAGES} images"] = KEPT_IMAGES * visual_tokens(p) * shape.width * size.compute
    return parts


@dataclass(frozen=True)
class Batch:
    """What one forward pass sees: `rows` with `queries` tokens each that attend to `keys` tokens, over `images` distinct images."""

    rows: int
    queries: int
    keys: int
    images: int


def layer_bytes(preset: Preset, batch: Batch) -> float:
    """What PyTorch keeps of one decoder layer for its backward pass, where attention never holds its scores (SDPA).

    Per query: both norms' inputs in float32 (and their outputs, to train the norms' weights), the projections' inputs (autocast and
    LoRA make a copy each), queries and attention's output, four tensors of the MLP's width, the mask. Per key: keys and values,
    which SDPA wants repeated for all heads when there is a mask.
    """
    shape, size, lora = shape_of(preset), numbers_of(preset), preset.lora_rank > 0
    copies = 2 if size.stream == size.compute else 5
    if lora and preset.quantize == "none" and size.compute == 2:
        copies = 6  # LoRA on a plain Linear casts its input to float32 first, o_proj's too
    norms = 2 * 4 * shape.width + (0 if lora else 2 * size.stream * shape.width)
    adapter = 7 * preset.lora_rank * size.compute
    query = norms + size.compute * ((copies + 2) * shape.width + 4 * shape.mlp) + adapter
    mask = size.compute * batch.keys
    return batch.rows * (batch.queries * (query + mask) + batch.keys * 2 * size.compute * shape.width)


def activation_bytes(preset: Preset, batch: Batch) -> float:
    """Activations of a forward pass, and the gradients of one layer's while it is passed backward."""
    shape, size = shape_of(preset), numbers_of(preset)
    tokens = batch.rows * batch.queries
    passing = tokens * (3 * size.compute * shape.mlp + 2 * size.stream * shape.width)
    layer = layer_bytes(preset, batch)
    if preset.checkpointing:
        return shape.layers * tokens * size.stream * shape.width + layer + passing
    return shape.layers * layer + passing


def head_bytes(preset: Preset, tokens: int) -> float:
    """TRL's fused head: tiles of logits in place of (tokens, vocabulary); gradients of hidden states and head in float32.

    On a CPU, without Triton, about seven temporaries of a tile's size.
    """
    shape, size = shape_of(preset), numbers_of(preset)
    rows = min(tokens, 4096)
    if preset.device == "cpu":
        tile = rows * max(7 * 4 * min(shape.vocab, TILE), 4096)  # the buffer is TILE wide, so a row touches a page
    else:
        tile = rows * TILE * size.compute
    head = 0 if preset.lora_rank else 4 * shape.vocab * shape.width
    return tile + head + tokens * shape.width * (size.compute + 4)


def image_bytes(preset: Preset, rows: int, distinct: int) -> float:
    """Pixels of `rows` images, and the vision tower's work on the distinct ones."""
    shape, size = shape_of(preset), numbers_of(preset)
    patches = 4 * visual_tokens(preset)
    work = patches * (4 * size.compute * shape.vision_mlp + 10 * 4 * shape.vision_width)
    return rows * patches * 3 * 2 * 14 * 14 * 4 + distinct * work


def cache_bytes(preset: Preset, rows: int) -> float:
    """Keys and values of `rows` sequences at full length, one layer's while it grows, and the last token's logits, four times."""
    shape, size = shape_of(preset), numbers_of(preset)
    length = prompt_tokens(preset) + preset.max_completion
    cache = rows * length * shape.layers * 2 * shape.kv_width * size.compute
    return cache * (1 + 2 / shape.layers) + rows * shape.vocab * 4 * 4


def update_batches(work: Work) -> list[Batch]:
    """The forward passes whose activations live at once in one micro-step: RFT reads a prompt once, then its completions."""
    p, prompt = work.preset, prompt_tokens(work.preset)
    if work.algorithm == "sft":
        rows = math.gcd(p.micro_batch or p.sft_batch, p.sft_batch)  # as in `sft.sft_arguments`
        return [Batch(rows, prompt + work.answer, prompt + work.answer, rows)]
    whole = p.rft_prompts * p.rft_group
    rows = math.gcd(whole, p.micro_batch or (whole if p.device == "cpu" else p.rft_group))  # as in `rft.grpo_arguments`
    groups = -(-rows // p.rft_group)
    if p.checkpointing or p.vllm:  # RFTTrainer falls back to TRL's own pass
        return [Batch(rows, prompt + work.answer, prompt + work.answer, groups)]
    return [Batch(groups, prompt, prompt, groups), Batch(rows, work.answer + 1, prompt + work.answer, 0)]


def phases(work: Work) -> dict[str, Bytes]:
    """What each phase adds to what is standing, by part. Activations of a vision tower that trains are left out."""
    p, shape, size = work.preset, shape_of(work.preset), numbers_of(work.preset)
    dequantised = size.compute * shape.largest_linear if p.quantize == "nf4" else 0.0
    found: dict[str, Bytes] = {
        "evaluation": {
            f"KV cache of {p.eval_batch}": cache_bytes(p, p.eval_batch),
            "images": image_bytes(p, p.eval_batch, p.eval_batch),
            "copies of weights": dequantised,
        }
    }
    if work.algorithm == "none":
        return found
    rollouts = p.rft_prompts * p.rft_group if work.algorithm == "rft" else 0
    if rollouts and not p.vllm:
        found["rollouts"] = {
            f"KV cache of {rollouts}": cache_bytes(p, rollouts),
            "images": image_bytes(p, rollouts, p.rft_prompts),
            "copies of weights": dequantised,
        }
    trained, batches = trained_weights(work), update_batches(work)
    on_gpu, rows = p.device != "cpu", batches[-1].rows
    # of a float32 weight that is trained, autocast keeps a 16-bit copy
    copies = size.compute * (trained if p.lora_rank else shape.linear) if size.compute == 2 else 0
    scored = rows * (work.answer if on_gpu else batches[-1].queries)  # without Triton every position is scored
    found[f"{work.algorithm} update"] = {
        "gradients, float32": 4.0 * trained,
        "activations": sum(activation_bytes(p, batch) for batch in batches),
        "logits, fused head": head_bytes(p, scored),
        "copies of weights": copies + dequantised,
        "images": image_bytes(p, max(rollouts, rows), batches[0].images),
    }
    if on_gpu and work.name.startswith(("sft", "self_once")):  # arms that measure their dynamics
        batch = replace(batches[-1], rows=1, images=1) if p.checkpointing else batches[-1]  # `dynamics.at_once`
        found["gradients of examples"] = {
            "gradients, float32": 4.0 * batch.rows * (trained if p.lora_rank else 0),
            "activations": activation_bytes(replace(p, checkpointing=False), batch),
            "logits": 4 * 4.0 * batch.rows * work.answer * shape.vocab,
            "copies of weights": copies + dequantised,
        }
    found["AdamW step"] = {
        "gradients, float32": 4.0 * trained,
        "temporaries": 4.0
        * (trained if on_gpu else min(trained, shape.largest)),  # all weights at once on a GPU ("foreach")
    }
    return found


# --- time --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """A card by its maker's data sheet: bytes, dense 16-bit operations a second, bytes a second. An `old` one, before Ampere, has no
    bfloat16 (`policy.old_gpu`)."""

    name: str
    memory: float
    flops: float
    bandwidth: float
    old: bool = False

    def runs(self, work: Work) -> Work:
        """The work as this card does it: where the type is left open, an old one takes float16, beside which the tower is float32."""
        if not self.old or work.preset.dtype != "auto":
            return work
        return replace(work, preset=replace(work.preset, dtype="float16"))


DEVICES = (
    Device("T4", 16 * GB, 65e12, 320e9, old=True), Device("L4", 24 * GB, 121e12, 300e9), Device("A100", 80 * GB, 312e12, 2039e9),
    Device("H100", 80 * GB, 989e12, 3350e9), Device("H200", 141 * GB, 989e12, 4800e9),
)  # fmt: skip


@dataclass(frozen=True)
class Speed:
    """What a card reaches, assumed: shares of its data sheet, and seconds that Python spends on a layer for one new token."""

    compute: float = 0.3
    bandwidth: float = 0.6
    layer: float = 0.7e-3
    layer_vllm: float = 0.05e-3  # captured graphs in place of Python


@dataclass(frozen=True)
class Seconds:
    """Of one update, of the rollouts before it, of one evaluation; the latter two if every answer is as long as it may be."""

    update: float
    rollouts: float
    evaluation: float


# Traffic for one NF4 weight that is dequantised before it is multiplied: 4 bits read, 16 written, 16 read again. From version
# 0.50 bitsandbytes multiplies few rows without that, which makes rollouts faster than is said here.
DEQUANTISED = 4.5


def update_flops(work: Work) -> float:
    """Floating-point operations of one update: 2 a weight and token forward, 2 for the gradient of its input, 2 for its own."""
    p, shape = work.preset, shape_of(work.preset)
    batches, full, again = update_batches(work), not work.preset.lora_rank, int(work.preset.checkpointing)
    micro_steps = (p.sft_batch if work.algorithm == "sft" else p.rft_prompts * p.rft_group) / batches[-1].rows
    passes = 2 + full + again + (work.beta > 0)
    total = 2.0 * shape.width * shape.vocab * batches[-1].rows * work.answer * (3 + full)
    for b in batches:
        total += 2.0 * b.rows * b.queries * shape.linear * passes
        total += 4.0 * b.rows * b.queries * b.keys * shape.width * shape.layers * (3 + again)
        total += 2.0 * shape.vision * 4 * visual_tokens(p) * b.images
    return total * micro_steps


def answer_seconds(preset: Preset, rows: int, device: Device, speed: Speed, vllm: bool = False) -> float:
    """Seconds for `rows` answers of `max_completion` tokens side by side: each token reads all weights and the KV cache."""
    shape, size = shape_of(preset), numbers_of(preset)
    a_weight = DEQUANTISED if preset.quantize == "nf4" and not vllm else 2 if size.stream == 2 or vllm else 4 + 2 + 2
    length = prompt_tokens(preset) + preset.max_completion / 2
    read = a_weight * shape.linear + 2 * shape.vocab * shape.width
    read += rows * length * shape.layers * 2 * shape.kv_width * size.compute
    flops = 2.0 * rows * (shape.linear + shape.vocab * shape.width)
    busy = max(read / (speed.bandwidth * device.bandwidth), flops / (speed.compute * device.flops))
    return preset.max_completion * (busy + shape.layers * (speed.layer_vllm if vllm else speed.layer))


def seconds_of(work: Work, device: Device, speed: Speed | None = None) -> Seconds:
    """Predicted seconds on one card: an order of magnitude (the tests ask for a factor of 3 beside published steps)."""
    p, shape, speed = work.preset, shape_of(work.preset), speed or Speed()
    asked = len(hub.probes(p)) + 1
    evaluation = asked * -(-p.eval_n // p.eval_batch) * answer_seconds(p, p.eval_batch, device, speed)
    if work.algorithm == "none":
        return Seconds(0.0, 0.0, evaluation)
    rows = update_batches(work)[-1].rows
    examples = p.sft_batch if work.algorithm == "sft" else p.rft_prompts * p.rft_group
    traffic = 7 * 4.0 * trained_weights(work)  # AdamW reads four and writes three numbers a weight
    if p.quantize == "nf4":
        traffic += examples / rows * (2 + p.checkpointing + (work.beta > 0)) * DEQUANTISED * shape.linear
    update = update_flops(work) / (speed.compute * device.flops) + traffic / (speed.bandwidth * device.bandwidth)
    rollouts = answer_seconds(p, examples, device, speed, p.vllm) / p.rft_reuse if work.algorithm == "rft" else 0.0
    return Seconds(update, rollouts, evaluation)


def seconds_in_all(work: Work, device: Device) -> tuple[float, float]:
    """Of a whole training: its updates with their rollouts, and at most its evaluations."""
    s = seconds_of(work, device)
    return work.steps * (s.update + s.rollouts), work.evaluations * s.evaluation


@dataclass(frozen=True)
class Published:
    """Seconds of a step as somebody else measured them (evidence grade C: one secondary source), and the nearest preset."""

    source: str
    device: str
    seconds: float
    work: Work


_NF4 = get_preset("qlora", model="Qwen/Qwen2.5-VL-7B-Instruct", checkpointing=True, rft_prompts=1, max_pixels=224 * 224)
_BF16 = get_preset(
    "qlora", quantize="none", lora_rank=8, rft_prompts=1, rft_group=2, max_completion=1024, checkpointing=True
)
PUBLISHED = (
    Published(
        "Hugging Face's cookbook, 3B bf16 LoRA GRPO, 2 rollouts of at most 1,024 tokens", "A100", 21.6,
        Work("rft", "rft", _BF16, 307, 1024, 0),
    ),
    Published(
        "TRL's notebook, Qwen2-7B (text) QLoRA GRPO, 8 rollouts of at most 256 tokens", "T4", 94.0,
        Work("rft", "rft", dataclasses.replace(_NF4, max_completion=256), 500, 256, 0),
    ),
    Published(
        "Unsloth's notebook, 7B QLoRA GRPO with vLLM, 4 rollouts of at most 1,024 tokens", "T4", 168.0,
        Work("rft", "rft", dataclasses.replace(_NF4, rft_group=4, max_completion=1024), 142, 1024, 0),
    ),
    Published(
        "Unsloth's notebook, 7B QLoRA SFT, 8 small images with short answers", "T4", 220 / 30,
        Work("sft", "sft", dataclasses.replace(_NF4, sft_batch=8), 30, 60, 0),
    ),
)  # fmt: skip


# --- downloads -----------------------------------------------------------------------------------------------------------------

# Bytes of the files that rftkit/hub.py names, as the file lists of the Hub's pages show them, and the rows in them; of COCO's twelve
# files the first six were seen, of 453 to 465 MB, and its rows are those of Karpathy's train split with restval. Numbers
# of rows serve for this estimate alone. None: not known.
DATA_SIZES: Mapping[str, tuple[float | None, int]] = {
    "coco": (12 * 0.461 * GB, 113_287), "pope": (0.255 * GB, 9_000), "refcoco": (1.143 * GB, 8_811), "docvqa": (None, 5_349),
    "mme": (0.865 * GB, 2_374), "mmstar": (0.042 * GB, 1_500), "mmmu": (0.341 * GB, 900),
}  # fmt: skip


def downloads(preset: Preset) -> dict[str, float | None]:
    """Bytes by what has to be fetched from the Hub unless it is there already; None where the size is not known.

    Of a data set the rows that are streamed, each taken for as large as the mean of the set: an estimate.
    """
    found: dict[str, float | None] = {}
    if preset.model in HUB_SHAPES:
        found[preset.model] = 2.0 * shape_of(preset).total  # published in bfloat16
    if preset.images == "coco":
        for name, (size, rows) in DATA_SIZES.items():
            read = hub.PHOTOGRAPHS if name == "coco" else hub_rows.streamed(preset.eval_n)
            found[hub.SOURCES[name].repo] = size and size * min(1.0, read / rows)
    return found


# --- the card --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Card:
    """What a preset costs with some arms. `peak` is in bytes, on one device; `worst` says in which arm and phase it falls."""

    preset: Preset
    works: tuple[Work, ...]

    @property
    def totals(self) -> dict[tuple[str, str], float]:
        return {
            (work.name, phase): sum(standing_bytes(work).values()) + sum(parts.values())
            for work in self.works
            for phase, parts in phases(work).items()
        }

    @property
    def worst(self) -> tuple[str, str]:
        return max(self.totals, key=lambda key: self.totals[key])

    @property
    def peak(self) -> float:
        return max(self.totals.values())

    @property
    def vllm(self) -> bool:
        return self.preset.vllm and any(work.algorithm == "rft" for work in self.works)

    def needed(self, total_memory: float) -> float:
        """The peak with what is reserved beside it; vLLM in the same process takes its share of all the memory there is."""
        context = CONTEXT if self.preset.device == "cuda" else 0.0
        return self.peak * HEADROOM[self.preset.device] + context + (vllm_share() * total_memory if self.vllm else 0.0)

    def evaluation_share(self, device: Device) -> float:
        """The part of all arms' time on a card that is spent on evaluations, at most."""
        spent = [seconds_in_all(work, device) for work in self.works]
        return sum(e for _, e in spent) / sum(t + e for t, e in spent)

    def refusal(self, total_memory: float) -> str | None:
        """None if `total_memory` bytes will do, else one sentence that says what is missing and which settings would fit."""
        if self.needed(total_memory) <= total_memory:
            return None
        name, phase = self.worst
        says = (
            f"The preset {self.preset.name} needs about {self.needed(total_memory) / GB:.1f} GB (arm {name}, {phase}) "
            f"and there are {total_memory / GB:.1f} GB: "
        )
        smaller = self.smaller(total_memory)
        if smaller is None:
            other = "'qlora'" if self._qlora_fits(total_memory) else "'tiny'"
            return says + f"no smaller batch will fit, so use the preset {other} or a larger machine."
        changes = ", ".join(f"{key}={getattr(smaller.preset, key)}" for key in changed(self.preset, smaller.preset))
        return says + f"set {changes} (then about {smaller.needed(total_memory) / GB:.1f} GB)."

    def smaller(self, total_memory: float) -> Card | None:
        """The card with the cheapest changes that fit: first what leaves the result alone, then what changes the training."""

        def fits(preset: Preset) -> bool:
            return self._like(preset).needed(total_memory) <= total_memory

        lowest = self.preset
        for key in LADDERS:
            options = ladder(lowest, key)
            fitting = [value for value in options if fits(_with(lowest, key, value))]
            lowest = _with(lowest, key, (fitting or options[-1:] or [getattr(lowest, key)])[0])
            if fitting:
                break
        else:
            return None
        for key in changed(self.preset, lowest):  # give back what is not needed
            for value in (getattr(self.preset, key), *ladder(self.preset, key)):
                if fits(option := _with(lowest, key, value)):
                    lowest = option
                    break
        return self._like(lowest)

    def _qlora_fits(self, total_memory: float) -> bool:
        """Whether that tier, perhaps with smaller batches, would do where this one does not."""
        if self.preset.device == "cpu" or self.preset.quantize == "nf4":
            return False
        other = self._like(get_preset("qlora", model=self.preset.model))
        return other.needed(total_memory) <= total_memory or other.smaller(total_memory) is not None

    def _like(self, preset: Preset) -> Card:
        return card(preset, *(work.name for work in self.works if work.algorithm != "none"))

    def text(self, devices: Sequence[Device] = DEVICES) -> str:
        """The card as a page of plain text."""
        return "\n".join([*self._memory_lines(), "", *self._time_lines(devices), "", *self._download_lines()])

    def _memory_lines(self) -> list[str]:
        name, phase = self.worst
        work = next(w for w in self.works if w.name == name)
        lines = [f"Memory at the peak, GB of 10^9 bytes (arm {name}, {phase}):"]
        for part, size in {**standing_bytes(work), **phases(work)[phase]}.items():
            lines.append(f"  {part:32} {size / GB:8.2f}")
        lines.append(f"  {'together':32} {self.peak / GB:8.2f}")
        lines += [
            "Other phases: "
            + "; ".join(f"{a}, {b} {t / GB:.1f}" for (a, b), t in self.totals.items() if (a, b) != (name, phase))
        ]
        beside = f"{HEADROOM[self.preset.device] - 1:.0%} of it for fragmentation" + (
            f" and {CONTEXT / GB} GB for CUDA" if self.preset.device == "cuda" else ""
        )
        lines.append(
            f"A machine should have {beside} besides"
            + (f", and vLLM takes {vllm_share():.0%} of all." if self.vllm else ".")
        )
        return lines

    def _time_lines(self, devices: Sequence[Device]) -> list[str]:
        if self.preset.device == "cpu":
            return ["Time on a CPU is measured, not predicted: see the notebook's own minutes."]
        lines = [
            "Time on one card, an order of magnitude; rollouts and evaluations if every answer is as long as it may be:"
        ]
        lines.append(
            f"  {'':6} {'fits':5} {'arm':14} {'s an update':>12} {'s rollouts':>11} {'updates, h':>11} {'evaluations, h at most':>24} {'share':>6}"
        )
        for device in devices:
            for work in self.works:
                fits = "yes" if Card(self.preset, (device.runs(work),)).needed(device.memory) <= device.memory else "no"
                s = seconds_of(work, device)
                trains, evaluates = (h / 3600 for h in seconds_in_all(work, device))
                lines.append(
                    f"  {device.name:6} {fits:5} {work.name:14} {s.update:12.1f} {s.rollouts:11.1f} {trains:11.1f} "
                    f"{f'{work.evaluations} x {s.evaluation / 3600:.2f} = {evaluates:.1f}':>24} "
                    f"{evaluates / (trains + evaluates):6.0%}"
                )
            if len(self.works) > 1:
                lines.append(
                    f"  {device.name:6} evaluations take at most {self.evaluation_share(device):.0%} of all arms' time together"
                )
        lines.append("Others published (grade C: one secondary source each), and what this page would have said:")
        for p in PUBLISHED:
            s = seconds_of(p.work, next(d for d in DEVICES if d.name == p.device))
            lines.append(f"  {p.source}, {p.device}: {p.seconds:.0f} s a step, here {s.update + s.rollouts:.0f}")
        return lines

    def _download_lines(self) -> list[str]:
        found = downloads(self.preset)
        if not found:
            return ["Downloads: none."]
        lines = ["Downloads, if not here already (of data sets the rows that are needed, by the mean size of a row):"]
        lines += [
            f"  {name:32} {'not known' if size is None else f'{size / GB:.2f} GB'}" for name, size in found.items()
        ]
        return lines


# Each setting with its smallest value and what comes after a value, cheapest first: smaller micro-batches and recomputed
# activations cost time alone, fewer prompts and rollouts make noisier updates, shorter answers and coarser images another task.
LADDERS: dict[str, float] = {
    "micro_batch": 1, "eval_batch": 1, "checkpointing": True, "rft_prompts": 1, "rft_group": 4, "max_completion": 128,
    "max_pixels": 168 * 168,
}  # fmt: skip


def ladder(preset: Preset, key: str) -> list[int]:
    """Values below the preset's, largest first, each half of the one before."""
    if key == "checkpointing":
        return [] if preset.checkpointing else [True]
    value = getattr(preset, key) or preset.sft_batch  # micro_batch 0 is the whole batch
    values = []
    while value // 2 >= LADDERS[key]:
        value //= 2
        values.append(value)
    return values


def _with(preset: Preset, key: str, value: Any) -> Preset:
    changes: dict[str, Any] = {key: value}
    return dataclasses.replace(preset, **changes)


def changed(before: Preset, after: Preset) -> list[str]:
    return [key for key in LADDERS if getattr(before, key) != getattr(after, key)]


def card(preset: Preset, *methods: str) -> Card:
    """The cost of a preset with the arms `methods` of rftkit/arms.py; without any, of evaluating the base alone.

    What an arm trains or samples first for its data is not counted in it: name that arm, too. Raises UserError for an arm that is not
    known; the card does so for a model.
    """
    if not methods:
        return Card(preset, (Work("base", "none", preset, 0, preset.max_completion, 1),))
    return Card(preset, tuple(work_of(preset, name) for name in methods))


# --- a notebook's first cell -------------------------------------------------------------------------------------------------------


def notice(preset: Preset, *methods: str) -> str:
    """The card in a few lines, for the device at hand. Raises UserError, with settings that would fit, where it is too small."""
    found, room = card(preset, *methods), memory_here(preset)
    if refused := found.refusal(room):
        raise UserError(refused)
    name, phase = found.worst
    where = f"arm {name}, {phase}" if methods else "questions to the base"
    said = [f"Memory: about {found.needed(room) / GB:.1f} GB at the peak ({where}), and {room / GB:.1f} GB are there."]
    trained = [work for work in found.works if work.algorithm != "none"]
    if trained:
        said.append(f"Training: {_minutes(trained, preset)}. Evaluations come on top.")
    sizes = downloads(preset)
    known = sum(size for size in sizes.values() if size) / GB
    more = [name for name, size in sizes.items() if size is None]
    said.append(
        f"Downloads, if not here already: {known:.1f} GB" + (f" and {', '.join(more)}." if more else ".")
        if sizes
        else "Downloads: none."
    )
    return "\n".join(said)


def _minutes(works: Sequence[Work], preset: Preset) -> str:
    """Minutes of the updates: predicted for a card of `DEVICES`, taken from the recorded runs on a CPU."""
    if preset.device == "cuda":
        name = torch.cuda.get_device_name()
        device = next((d for d in DEVICES if re.search(rf"\b{d.name}\b", name)), None)  # an L40S is no L4
        if device is None:
            return f"not predicted for {name}; `python -m rftkit cost` says what other cards take"
        return f"about {sum(seconds_in_all(work, device)[0] for work in works) / 60:.0f} minutes on this {device.name}"
    seconds = {work.name: recorded_seconds(work) for work in works}
    said = ", ".join(
        f"{name} {'not recorded' if s is None else f'about {s / 60:.1f} minutes'}" for name, s in seconds.items()
    )
    return f"{said}, by the recorded runs, each on one thread of a busy two-core machine"


def recorded_seconds(work: Work) -> float | None:
    """Seconds of the arm's updates at the pace of its recorded runs; None where there is none."""
    paths = runs.RECORDED_DIR.glob(f"{work.preset.name}-{work.name}-s*.json")
    own = [_own_updates(r) for r in map(runs.load_record, paths) if r.status == "done"]
    if work.name.startswith("seven_"):  # a filter decides how many updates there are: what whole sequences took
        return statistics.median(seconds for _, seconds in own) if own else None
    done = sum(updates for updates, _ in own)
    return work.steps * sum(seconds for _, seconds in own) / done if done else None


def _own_updates(record: runs.RunRecord) -> tuple[float, float]:
    """Updates and seconds of the run itself, without those of the run that it goes on from."""
    rows = record.evals()
    last, begun = rows[-1], rows[-1]["step"] - record.config.get("steps", rows[-1]["step"])
    before = [row["seconds"] for row in rows if row["step"] <= begun]
    return last["step"] - begun, last["seconds"] - (before[-1] if before else 0.0)


# --- the command -------------------------------------------------------------------------------------------------------------------


def memory_here(preset: Preset) -> int:
    """Bytes that this machine has for the preset: the GPU's memory, or what is free of the CPU's. Raises UserError without a GPU."""
    if preset.device == "cpu":
        return psutil.virtual_memory().available
    if not torch.cuda.is_available():
        raise UserError("This preset needs a CUDA GPU and none was found: use the preset 'tiny', or another machine.")
    return torch.cuda.get_device_properties(0).total_memory


def arms_of(path: Path, preset: Preset) -> tuple[str, ...]:
    """The arms that a notebook trains live unless told otherwise, with those that they need first where nothing is recorded."""
    from rftkit import arms, two_stage

    declared = notebooks.declared_parameters(notebooks.read_notebook(path), path.name)
    if path.stem[:2] == "05":
        last = f"points_rft_{max(two_stage.PLANS[preset.name].starts)}"
        return ("points_sft", last) if declared.get("live") else ()
    if path.stem[:2] == "06":
        return ("sums_prefix",) if declared.get("live") else ()
    live = str(declared.get("live_arms", "")).split()
    if "live_arms" not in declared and path.stem[:2] != "01":
        live = ["sft", "rft"] if path.stem[:2] != "03" else ["sft"]
    live = [name for name in live if name in arms.ARMS]
    from_rft = any(name.startswith(("sft_rollouts", "sft_early", "sft_dft", "self_")) for name in live)
    return (*(["rft"] if from_rft and preset.name != "tiny" else []), *live)


def main(argv: list[str]) -> int:
    """Print the cost of a notebook at a preset."""
    parser = argparse.ArgumentParser(prog="python -m rftkit cost", description=__doc__)
    parser.add_argument("notebook", help="its number or name, such as 02")
    parser.add_argument("--preset", default="tiny", help=f"one of {', '.join(PRESETS)} (default: tiny)")
    parser.add_argument(
        "--memory", type=float, help="GB of the device, to be told what would fit (default: this machine's)"
    )
    args = parser.parse_args(argv)
    preset = get_preset(args.preset)
    path = notebooks.find_notebooks([args.notebook], notebooks.notebooks_folder())[0]
    plan = notebooks.make_plan(path, args.preset, {})
    found = card(preset, *arms_of(path, preset))
    print(
        f"{path.stem} at the {preset.name} tier: {preset.model}, arms {' '.join(work.name for work in found.works)}\n"
    )
    print(found.text())
    if plan.minutes is not None:
        where = " on two free cores, up to twice that beside other work" if preset.device == "cpu" else ""
        print(f"\nMeasured: about {plan.minutes:g} minutes{where}.")
    if args.memory is not None or preset.device == "cpu" or torch.cuda.is_available():
        room = args.memory * GB if args.memory is not None else memory_here(preset)
        print("\n" + (found.refusal(room) or f"It fits into {room / GB:.1f} GB."))
    return 0
