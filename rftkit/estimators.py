"""What TRL's trainers lack for tasks in a row: other advantages in our GRPO trainer, the KL reference of one's choice, and SFT that
is held to where it began.

TRL has an RLOOTrainer, which reads each prompt G times; here RLOO and ReMax are GRPO with other advantages, so that the estimator is
all that differs between two arms. `tests/test_estimators.py` holds advantages and gradients against trl.RLOOTrainer.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from peft import load_peft_weights, set_peft_model_state_dict
from transformers import Qwen2_5_VLForConditionalGeneration

from rftkit.config import UserError
from rftkit.policy import sharded
from rftkit.rft import RFTTrainer, Variant
from rftkit.sft import LongestFirst

Estimator: TypeAlias = Literal["grpo", "rloo", "remax"]
Reference: TypeAlias = Literal["original", "previous"]


def advantages(rewards: torch.Tensor, how: Estimator, greedy: torch.Tensor | None = None) -> torch.Tensor:
    """Advantages (n, G) of the G rollouts of n prompts from their rewards (n, G).

    - "grpo": (r - mean) / (std + 1e-4), std with n - 1, as TRL has it (the code of 2507.05386 adds 1e-6).
    - "rloo": r_i - (mean of the other G - 1).
    - "remax": r - `greedy`, the rewards (n,) of the greedy replies.

    A group whose rewards are all equal has advantages of 0 by the first two, but not by the third: where the greedy reply is right
    and all rollouts are wrong, ReMax still unlearns the rollouts.
    """
    if how == "remax":
        if greedy is None:
            raise UserError("ReMax measures against the greedy reply: pass its reward for each prompt.")
        return rewards - greedy[:, None]
    if rewards.shape[1] < 2:
        raise UserError(f"{how} needs two rollouts a prompt or more, not {rewards.shape[1]}: sample more.")
    if how == "rloo":
        return rewards - (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)


class EstimatorTrainer(RFTTrainer):
    """RFTTrainer with the advantages of `estimator`, and with a KL reference that is known.

    TRL's own reference is read from the folder that the model's config names, which is the untrained base whatever was trained
    since. "previous" is the model as it is when the trainer is built, before a checkpoint is read: the end of the task before.
    "original" are the weights in the folder `original`, or TRL's own where that is None.
    """

    generation_config: Any

    def __init__(
        self,
        *args: Any,
        estimator: Estimator = "grpo",
        reference: Reference = "previous",
        original: Path | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.estimator = estimator
        self._greedy: list[list[int]] = []  # (n,) token ids of the greedy reply to each prompt
        self._greedy_rewards: torch.Tensor | None = None
        if estimator == "remax" and not self._generates_shared:
            raise UserError("ReMax asks model.generate for greedy replies, on one process: set use_vllm=False.")
        if self.beta:
            if sharded():
                raise UserError(
                    "The KL reference of sharded weights cannot be chosen: train without KL, or one whole model a GPU."
                )
            self._refer_to(reference, original)

    def _refer_to(self, reference: Reference, original: Path | None) -> None:
        if (
            self.ref_model is None
        ):  # adapters: TRL keeps a copy of the one that it was given as "ref", else takes none of them
            given = "ref" in self.model.peft_config
            if reference == "original" and original is not None and given:
                set_peft_model_state_dict(self.model, load_peft_weights(str(original)), adapter_name="ref")
            elif reference == "original" and given:
                self.model.delete_adapter("ref")
        elif reference == "previous":
            self.ref_model.load_state_dict(self.model.state_dict())
        elif original is not None:
            saved = Qwen2_5_VLForConditionalGeneration.from_pretrained(original, dtype=self.ref_model.dtype)
            self.ref_model.load_state_dict(saved.state_dict())

    def _generate_shared(
        self, prompt_ids: list[list[int]], fields: dict[str, Any], size: int
    ) -> tuple[list[list[int]], None]:
        said = super()._generate_shared(prompt_ids, fields, size)
        if self.estimator == "remax" and self.model.training:
            sampling: Any = self.generation_config
            self.generation_config = copy.deepcopy(sampling)
            self.generation_config.update(do_sample=False, temperature=None, top_p=None, top_k=None, min_p=None)
            try:
                self._greedy, _ = super()._generate_shared(prompt_ids[::size], fields, 1)
            finally:
                self.generation_config = sampling
        return said

    def _calculate_rewards(
        self, inputs: list[Any], prompts: list[Any], completions: list[Any], ids: list[Any]
    ) -> torch.Tensor:
        parts = super()._calculate_rewards(inputs, prompts, completions, ids)
        self._rewards = self._total(parts)  # (B,)
        if self.estimator == "remax" and self.model.training:
            texts = self.processing_class.batch_decode(self._greedy, skip_special_tokens=True)
            replies = [[{"role": "assistant", "content": text}] for text in texts]
            size = self.num_generations
            self._greedy_rewards = self._total(
                super()._calculate_rewards(inputs[::size], prompts[::size], replies, self._greedy)
            )
        return parts

    def _total(self, parts: torch.Tensor) -> torch.Tensor:
        return (parts * self.reward_weights.to(parts.device)).nansum(1)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if self.estimator != "grpo" and self.model.training:
            groups = self._rewards.view(-1, self.num_generations)
            first = self.accelerator.process_index * len(inputs)  # rewards are gathered from all processes
            every = advantages(groups, self.estimator, self._greedy_rewards).flatten()
            output["advantages"] = every[first : first + len(inputs)]
        return output


def variant(estimator: Estimator = "grpo", reference: Reference = "previous", original: Path | None = None) -> Variant:
    """What 2507.05386 changes of `train_rft`: the loss is the mean over all tokens of the update (TRL's "dapo"), the ratio is
    clipped to [1 - .2, 1 + .3].

    With one update a batch of rollouts (`preset.rft_reuse` = 1) the ratio is 1 and nothing is clipped; the paper takes four.
    """
    return Variant(
        partial(EstimatorTrainer, estimator=estimator, reference=reference, original=original),
        {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.3},
        settings={"estimator": estimator, "reference": reference},
    )


class AnchoredTrainer(LongestFirst):
    """SFT with strength / 2 x |w - w0|^2 added to the loss; w0 are the trained weights as they are when the trainer is built, before
    a checkpoint is read: the end of the task before."""

    def __init__(self, *args: Any, strength: float, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if sharded():
            raise UserError("Sharded weights have no penalty here: train one whole model a GPU, or by another method.")
        self.strength = strength
        self._start = {n: p.detach().float().clone() for n, p in self.model.named_parameters() if p.requires_grad}

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, *outputs = found if return_outputs else (found,)
        if self.model.training:  # once an update, however many micro-batches it is made of
            loss = loss + self.penalty() / self.current_gradient_accumulation_steps
        return (loss, *outputs) if return_outputs else loss

    def penalty(self) -> torch.Tensor:
        moved = [(p - self._start[n]).square().sum() for n, p in self.model.named_parameters() if p.requires_grad]
        return self.strength / 2 * torch.stack(moved).sum()
