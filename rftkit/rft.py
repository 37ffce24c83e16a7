"""Reinforcement fine-tuning: TRL's GRPOTrainer with the jigsaw's reward, and with each prompt read once instead of G times.

All of GRPO (sampling schedule, advantages, clipped loss, KL, reference model) is TRL's. What is added here only avoids repeated
work: the G rollouts of a group share their prompt, so the prompt is processed once a group, in generation and in the loss, and
its keys and values are handed to the G continuations. The gradient flows back through the shared prompt, so nothing is
approximated; `tests/test_rft.py` holds losses and gradients against plain TRL's.

And one mismatch of TRL's is mended: it never samples image tokens, but its loss gives them a share of the probability.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import DynamicCache
from transformers.generation import LogitsProcessorList
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl import GRPOConfig, GRPOTrainer
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.utils import RepeatSampler, split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

from rftkit import hub, jigsaw, recording, runs
from rftkit.config import Preset, UserError
from rftkit.policy import Policy, load_policy, never_sampled
from rftkit.sft import lora_config
from rftkit.tasks import Row, Task

# --- rewards: 2506.23508's three parts, as three functions, so that TRL logs each -------------------------------------------


def _scored(completions: list[Any], answer: list[Any], rows: list[int], cols: list[int]) -> list[jigsaw.Reward]:
    texts = [c[0]["content"] for c in completions]
    return [jigsaw.reward_p1(t, a, r, c) for t, a, r, c in zip(texts, answer, rows, cols, strict=True)]


def hit(completions: list[Any], answer: list[Any], rows: list[int], cols: list[int], **_: Any) -> list[float]:
    """Share of tiles placed right."""
    return [float(s.hit) for s in _scored(completions, answer, rows, cols)]


def exact(completions: list[Any], answer: list[Any], rows: list[int], cols: list[int], **_: Any) -> list[float]:
    """1 for a whole puzzle solved."""
    return [float(s.exact) for s in _scored(completions, answer, rows, cols)]


def template(completions: list[Any], answer: list[Any], rows: list[int], cols: list[int], **_: Any) -> list[float]:
    """1 for <think>..</think><answer>..</answer> with a permutation in it."""
    return [float(s.fmt) for s in _scored(completions, answer, rows, cols)]


def rft_row(row: Row) -> dict[str, Any]:
    return {
        "prompt": recording.messages_only(row),
        **({"image": row.image} if row.image is not None else {}),
        **row.data,
    }


@dataclass(frozen=True)
class Practice:
    """What is practised: a task, and TRL reward functions that are given its rows' `data` by name. `name` is part of the run's settings."""

    name: str
    task: Task
    rewards: tuple[Callable[..., list[float]], ...]


# --- the trainer -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def without_tokens(model: Any, ids: Sequence[int]) -> Iterator[None]:
    """The model with a probability of 0 for these tokens, by a bias of its head."""
    head, size = model.get_output_embeddings(), model.config.get_text_config().vocab_size
    bias = torch.zeros(size, dtype=head.weight.dtype, device=head.weight.device)
    bias[list(ids)] = -1e4  # finite in float16 as well: 0 times infinity would be no entropy
    before, head.bias = head.bias, torch.nn.Parameter(bias, requires_grad=False)
    try:
        yield
    finally:
        head.bias = before


class EpochSampler(RepeatSampler):
    """TRL's sampler, which draws one epoch's order after the other from a generator that no checkpoint holds, so that a resumed run would
    begin with the first epoch's again. The orders are the same, each one found by the number of its epoch."""

    def __init__(self, like: RepeatSampler, epoch: Callable[[], int]):
        super().__init__(
            like.data_source, like.mini_repeat_count, like.batch_size, like.repeat_count, like.shuffle, like.seed
        )
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed)
            for _ in range(self.epoch()):
                torch.randperm(self.num_samples, generator=self.generator)
        return super().__iter__()


class SampledTrainer(GRPOTrainer):
    """GRPOTrainer whose log-probabilities are those of the policy that is sampled.

    TRL suppresses image tokens when it samples, and not in the loss. There the expected gradient of log pi over samples is that of
    log(1 - p), p the probability of those tokens, and not 0: wherever the advantages of the sampled tokens sum below 0, as they do
    when the rest is a demonstration's, p grows without bound and no reward ever sees it.
    """

    generation_config: Any

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        # vLLM suppresses nothing, and ZeRO-3 gathers only what it has partitioned itself
        if self.use_vllm or is_deepspeed_zero3_enabled() or not self.generation_config.suppress_tokens:
            return self._log_probs(model, *args, **kwargs)
        with without_tokens(self.accelerator.unwrap_model(model), self.generation_config.suppress_tokens):
            return self._log_probs(model, *args, **kwargs)

    def _log_probs(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)


class RFTTrainer(SampledTrainer):
    """GRPOTrainer that reads a group's prompt once. Falls back to plain TRL where that cannot be done: with vLLM, several processes
    or tools, and in the loss with gradient checkpointing, which has no cache to share (generation does not checkpoint)."""

    _group: torch.Tensor | None = None  # (B,) which rows have the same prompt and image
    # TRL's own
    _buffered_inputs: Any
    _current_train_step_time: float
    generation_config: Any

    @property
    def _generates_shared(self) -> bool:
        return not (self.use_vllm or self.accelerator.num_processes > 1 or self.tools)

    @property
    def _shares_prompts(self) -> bool:
        return self._generates_shared and not self.args.gradient_checkpointing

    def _logits_processors(self, width: int) -> LogitsProcessorList | None:
        """Applied to the logits of the rollouts, whose prompts are padded to `width` tokens; a subclass may force tokens here."""
        return None

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return EpochSampler(super()._get_train_sampler(dataset), lambda: int(self.state.epoch or 0))

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """TRL counts micro-steps from 0 after a resume; its schedule of fresh rollouts needs the count from the first update.

        And TRL shuffles rollouts before it splits them into micro-batches, which tears groups apart and with them the prompts that
        they share. All micro-batches of a batch of rollouts make one update, a sum that no order changes (but for what
        Prefix-RFT picks among the tokens of a micro-batch): here they stay in order.
        """
        if not self.model.training:
            return super()._prepare_inputs(generation_batch)
        if fresh := self._buffered_inputs is None:
            self._step = self.state.global_step * self.args.gradient_accumulation_steps
        pieces = self.args.steps_per_generation
        if pieces == 1 or not self._shares_prompts:
            return super()._prepare_inputs(generation_batch)
        if fresh or self._step % (pieces * self.num_iterations) == 0:
            output = split_pixel_values_by_grid(self._generate_and_score_completions(generation_batch))
            self._buffered_inputs = [unsplit_pixel_values_by_grid(part) for part in split_tensor_dict(output, pieces)]
        return self._buffered_inputs[self._step % pieces]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        size = self.num_generations if self.model.training else self.num_generations_eval
        self._group = torch.arange(len(inputs), device=self.accelerator.device) // size
        output = super()._generate_and_score_completions(inputs)
        output["prompt_group"] = self._group  # survives TRL's shuffle and split, as any batch-first tensor does
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._group = inputs["prompt_group"]
        return super()._compute_loss(model, inputs)

    def rehearse(self) -> None:
        """A micro-step whose rollouts are all as long as they may be (`recording.Rehearsal`)."""
        kept, size = (self._step, self._buffered_inputs, self._current_train_step_time), self.num_generations
        prompts = self.args.generation_batch_size // size
        config, self._buffered_inputs = self.generation_config, None
        self.generation_config = copy.deepcopy(config)
        self.generation_config.min_new_tokens = self.max_completion_length
        rows = [self.train_dataset[i % len(self.train_dataset)] for i in range(prompts) for _ in range(size)]
        try:
            self.training_step(self.model_wrapped, rows, None)
        finally:
            self.generation_config = config
            self._step, self._buffered_inputs, self._current_train_step_time = kept

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], list[Any] | None, dict[str, Any]]:
        """One tokenization a group. The multimodal fields stay one a group: they feed `_generate_single_turn` alone."""
        if not self._generates_shared:
            return super()._tokenize_prompts(prompts)
        size = self.num_generations if self.model.training else self.num_generations_eval
        ids, images, fields = super()._tokenize_prompts(prompts[::size])
        repeat = [i // size for i in range(len(prompts))]
        return [ids[i] for i in repeat], images and [images[i] for i in repeat], fields

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, fields: dict[str, Any], num_generations: int, **kwargs: Any
    ) -> Any:
        """Process each distinct prompt but for its last token, hand its keys and values to the group, and let TRL's `generate` go on.

        The generator is seeded by (seed, update), so that a resumed run draws the rollouts that an uninterrupted one would.
        """
        if not self._generates_shared:
            return super()._generate_single_turn(prompt_ids, images, fields, num_generations, **kwargs)
        with torch.random.fork_rng(devices=[] if self.accelerator.device.type == "cpu" else None):
            torch.manual_seed(self.args.seed * 1_000_003 + self.state.global_step)
            return self._generate_shared(prompt_ids, fields, num_generations)

    def _generate_shared(
        self, prompt_ids: list[list[int]], fields: dict[str, Any], size: int
    ) -> tuple[list[list[int]], None]:
        device, pad, eos = self.accelerator.device, self._tokenizer.pad_token_id, torch.tensor(self.eos_token_ids)
        width = max(map(len, prompt_ids))
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompt_ids], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompt_ids], device=device)
        vision = {k: torch.as_tensor(np.array(v), device=device) for k, v in fields.items() if k != "mm_token_type_ids"}
        if vision:
            types = fields["mm_token_type_ids"]
            vision["mm_token_type_ids"] = torch.tensor([[0] * (width - len(t)) + list(t) for t in types], device=device)
        every = torch.arange(len(prompt_ids), device=device) // size
        first = torch.arange(0, len(prompt_ids), size, device=device)
        with (
            torch.no_grad(),
            unwrap_model_for_generation(
                self.model_wrapped, self.accelerator, generation_kwargs=self.generation_kwargs
            ) as model,
        ):
            cache, deltas = _read_prompts(model, ids[first], mask[first], vision)
            cache.batch_select_indices(every)
            _backbone(model).rope_deltas = deltas[every]
            out = model.generate(
                input_ids=ids, attention_mask=mask, past_key_values=cache, generation_config=self.generation_config,
                logits_processor=self._logits_processors(width),
            )  # fmt: skip
        completions = []
        for row in out[:, width:].cpu():
            ends = torch.isin(row, eos).nonzero()
            completions.append(row[: int(ends[0]) + 1 if len(ends) else len(row)].tolist())
        return completions, None

    def _log_probs(
        self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, logits_to_keep: int,
        batch_size: int | None = None, compute_entropy: bool = False, compute_aux_loss: bool = False, **fields: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:  # fmt: skip
        """Log-probabilities (B, T) of the completions and, if asked for, entropies (B, T), one pass over each distinct prompt."""
        if (
            not self._shares_prompts
            or self._group is None
            or len(self._group) != len(input_ids)
            or compute_aux_loss
            or (batch_size or len(input_ids)) < len(input_ids)  # TRL reads a large batch in pieces to save memory
        ):
            return super()._log_probs(
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size,
                compute_entropy,
                compute_aux_loss,
                **fields,
            )
        prompt = input_ids.shape[1] - logits_to_keep
        _, group = self._group.unique(return_inverse=True)
        first = torch.stack([(group == g).nonzero()[0, 0] for g in range(int(group.max()) + 1)])
        vision = _vision_of(first, fields, prompt)
        cache, deltas = _read_prompts(model, input_ids[first, :prompt], attention_mask[first, :prompt], vision)
        cache.batch_select_indices(group)
        position = attention_mask.cumsum(-1)[:, prompt - 1 :] - 1 + deltas[group]
        labels = input_ids[:, prompt - 1 :].masked_fill(attention_mask[:, prompt - 1 :] == 0, -100)
        with self.accelerator.autocast():
            out = model(
                input_ids=input_ids[:, prompt - 1 :], attention_mask=attention_mask, past_key_values=cache,
                position_ids=position.clamp(min=0).expand(3, -1, -1), labels=labels, fused_lm_head=True,
            )  # fmt: skip
        return out.log_probs[:, -logits_to_keep:], out.entropy[:, -logits_to_keep:] if compute_entropy else None, None


def _backbone(model: Any) -> Any:
    """The Qwen2_5_VLModel inside, below peft's wrapper if there is one."""
    return (model.get_base_model() if hasattr(model, "get_base_model") else model).model


def _read_prompts(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, vision: dict[str, Any]
) -> tuple[DynamicCache, torch.Tensor]:
    """Keys and values of the prompts (n, P) but for their last token, and their rotary offsets (n, 1)."""
    vision = {k: v[:, :-1] if k == "mm_token_type_ids" else v for k, v in vision.items()}
    inputs = {"input_ids": ids[:, :-1], "attention_mask": mask[:, :-1], **vision}
    if not vision:  # the model would count padding on the left as positions, where what follows the prompt does not
        inputs["position_ids"] = (mask[:, :-1].cumsum(-1) - 1).clamp(min=0).expand(3, -1, -1)
    cache = DynamicCache(config=model.config.get_text_config())
    model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    deltas = _backbone(model).rope_deltas if "image_grid_thw" in vision else ids.new_zeros(len(ids), 1)
    return cache, deltas


def _vision_of(first: torch.Tensor, fields: dict[str, Any], prompt: int) -> dict[str, Any]:
    """The image fields of the rows `first`, out of those of the whole batch."""
    if fields.get("pixel_values") is None:
        return {}
    counts, grid = fields["num_images"], fields["image_grid_thw"]
    per_row = grid.split(counts)
    patches = fields["pixel_values"].split([int(g.prod(-1).sum()) for g in per_row])
    return {
        "pixel_values": torch.cat([patches[i] for i in first.tolist()]),
        "image_grid_thw": torch.cat([per_row[i] for i in first.tolist()]),
        "mm_token_type_ids": fields["mm_token_type_ids"][first, :prompt],
    }


@dataclass(frozen=True)
class Variant:
    """What another method changes of `train_rft`: the trainer, arguments of its GRPOConfig, the columns of a row, and what its
    run is known by besides (`settings`)."""

    trainer: Callable[..., RFTTrainer] = RFTTrainer
    arguments: Mapping[str, Any] = field(default_factory=dict)
    row: Callable[[Row], dict[str, Any]] = rft_row
    settings: Mapping[str, Any] = field(default_factory=dict)


PLAIN = Variant()


def train_rft(
    preset: Preset,
    seed: int,
    *,
    name: str = "rft",
    lr: float | None = None,
    steps: int | None = None,
    beta: float | None = None,
    until: float | None = None,
    practice: Practice | None = None,
    variant: Variant = PLAIN,
    after: recording.Before | None = None,
    evaluate: recording.Evaluate | None = None,
    save_at: set[int] | None = None,
    eval_steps: set[int] | None = None,
    save_every: int = 50,
    home: Path | None = None,
) -> tuple[runs.RunRecord, Policy]:
    """Train GRPO, or a `variant` of it, on the jigsaw with the reward of 2506.23508, or on `practice`. Returns the run's record and
    the trained policy.

    An update takes `preset.rft_prompts` puzzles with `preset.rft_group` rollouts each; `beta` is the KL coefficient,
    `until` an exact accuracy at whose first evaluation training ends before `steps`; `after`, `evaluate` and `save_at` are
    `train_sft`'s. A finished run with the same settings is read instead of repeated; an interrupted one resumes from its last
    checkpoint. Raises UserError for settings that do not work together.
    """
    lr = preset.rft_lr if lr is None else lr
    steps = preset.rft_steps if steps is None else steps
    recording.check_run(lr, steps, eval_steps)
    beta = preset.rft_beta if beta is None else beta
    if beta and after and variant.trainer is RFTTrainer:
        raise UserError(
            "TRL's own KL reference is the untrained base, or with LoRA the run gone on from: to go on from a run, set beta=0.0 "
            "or choose the reference with estimators.variant."
        )
    sampler_arguments(preset)  # refuses what does not work before a model is loaded
    policy = load_policy(preset)
    usual = {**grpo_arguments(preset), **sampler_arguments(preset, never_sampled(policy))}
    # rollouts are not saved, so checkpoints lie between two batches of them
    save_every = -(-save_every // preset.rft_reuse) * preset.rft_reuse
    batch = preset.rft_prompts * preset.rft_group
    config = {
        "lr": lr, "steps": steps, "beta": beta, "prompts": preset.rft_prompts, "group": preset.rft_group,
        "reuse": preset.rft_reuse, "lora_rank": preset.lora_rank, **({"until": until} if until is not None else {}),
        **({"practice": practice.name} if practice else {}), **variant.settings,
    }  # fmt: skip
    task, rewards = (practice.task, practice.rewards) if practice else (hub.new_task(preset), (hit, exact, template))
    dataset = recording.lazy_dataset(lambda i: variant.row(task.row(seed, i, "train")), preset.train_n)

    def build(folder: Path, recorder: recording.Recorder) -> RFTTrainer:
        args = GRPOConfig(
            output_dir=str(folder), beta=beta, **{**usual, **variant.arguments},
            **recording.trainer_arguments(preset, lr, steps, seed, save_every),
        )  # fmt: skip
        recorder.examples_per_step, recorder.until = batch, until
        return variant.trainer(
            policy.model, reward_funcs=list(rewards), args=args, train_dataset=dataset, processing_class=policy.processor,
            peft_config=lora_config(preset.lora_rank) if preset.lora_rank and not isinstance(policy.model, PeftModel) else None,
            callbacks=[recorder],
        )  # fmt: skip

    record = recording.run(
        policy, name, seed, config, build, eval_steps or {steps}, home, after=after, evaluate=evaluate, save_at=save_at
    )  # fmt: skip
    return record, policy


def micro_batch(preset: Preset) -> int:
    """Rollouts whose activations are on the device at once: `preset.micro_batch`; by default all of an update on a CPU, else a group."""
    whole = preset.rft_prompts * preset.rft_group
    return preset.micro_batch or (whole if preset.device == "cpu" else preset.rft_group)


def grpo_arguments(preset: Preset) -> dict[str, Any]:
    """GRPO as 2506.23508 writes it: group-standardised advantages, per-sequence mean, clipped ratio, no bias-corrected KL."""
    share = recording.share(preset.rft_prompts, "rft_prompts") * preset.rft_group  # rollouts on this process
    micro = math.gcd(share, micro_batch(preset))
    return {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": share // micro,
        "num_generations": preset.rft_group,
        "num_iterations": preset.rft_reuse,
        "max_completion_length": preset.max_completion,
        "loss_type": "grpo",
        "scale_rewards": "group",
        "temperature": 1.0,
        "use_bias_correction_kl": False,
    }


VLLM_SERVER = "RFTKIT_VLLM_SERVER"  # environment variable: address of a `vllm serve` that samples in place of the training processes


def rollout_tokens(preset: Preset) -> int:
    """Most tokens of a prompt and its rollout: the image at 28 x 28 pixels a token, 1024 for the text, and the completion."""
    return preset.max_pixels // 28**2 + 1024 + preset.max_completion


def sampler_arguments(preset: Preset, never: Sequence[int] = ()) -> dict[str, Any]:
    """Who samples, as arguments of GRPOConfig: model.generate, vLLM beside the training on each GPU, or vLLM's server. Token ids `never`
    are not sampled: an image token in a reply would end the training. vLLM's server is not told so.

    Raises UserError for what is not installed or does not work.
    """
    if not preset.vllm:
        return {}
    if preset.quantize != "none":
        raise UserError("vLLM cannot be handed 4-bit weights (a bug, trl#4973): set vllm=False or quantize='none'.")
    if find_spec("vllm") is None:
        raise UserError("vLLM is not installed: pip install -r course/locks/vllm.txt, or set vllm=False.")
    arguments = {"use_vllm": True, "vllm_max_model_length": rollout_tokens(preset)}
    if address := os.environ.get(VLLM_SERVER):
        return {**arguments, "vllm_mode": "server", "vllm_server_base_url": address, "vllm_server_timeout": 1800.0}
    biased = {"generation_kwargs": {"logit_bias": dict.fromkeys(never, -100.0)}} if never else {}
    return {**arguments, **biased, "vllm_mode": "colocate"}
