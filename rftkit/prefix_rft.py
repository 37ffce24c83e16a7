"""Prefix-RFT (2507.01679): one rollout of each group goes on from the beginning of a demonstration, and learns from it too.

A demonstration's first tokens are *forced*: the policy is made to say them, then goes on by itself. Its rollout is scored like the
others, and its advantage weighs every token of it, the forced ones (imitation) and its own (exploration). All of GRPO is TRL's;
what is added is which tokens are forced, what each token weighs (`Blend` holds all that an arm varies), and measurements.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from transformers.generation import LogitsProcessor, LogitsProcessorList
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from rftkit import recording, runs
from rftkit.config import Preset, UserError
from rftkit.policy import Policy
from rftkit.rft import Practice, RFTTrainer, Variant, rft_row, train_rft
from rftkit.tasks import Row

Advantage: TypeAlias = Literal["dr_grpo", "dr_grpo_prefix", "dr_grpo_prefix_v2"]
By: TypeAlias = Literal["entropy", "lowest", "random"]
Pool: TypeAlias = Literal["batch", "sequence"]
Clip: TypeAlias = Literal["prefix", "free"]
Pair: TypeAlias = tuple[float, float]  # at the first update, at the last


# --- what an arm varies -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blend:
    """How demonstrations are blended into RFT. The defaults are Prefix-RFT's, as far as they are known (2507.01679, A.2).

    A prefix is l of its demonstration's tokens, l ~ U(low, high), where both bounds go from their first to their last value along
    half a cosine in `over` updates (None: in all updates of the run). `keep` of the tokens that `clip` names stay in the loss,
    those of highest entropy, of lowest, or any (`by`), out of the micro-batch or of each sequence (`pool`). `prefix_weight` is a
    constant that takes the place of the advantage on prefix tokens; 0 takes them out of the loss.

    Other mixtures of demonstrations and rollouts: with `whole` the demonstration is forced to its end, so that it is a member of
    the group; `gamma` reshapes the ratio of forced tokens (`reshaped_loss`); `sft` is the coefficient of an added SFT loss on the
    demonstrations of the update's prompts; `entropy_weights` weighs that and the right rollouts as SRFT does.
    Raises UserError for a value out of range.
    """

    prefixed: int | Literal["all"] = 1  # rollouts of a group that get a prefix; 0 is plain RFT
    low: Pair = (0.95, 0.05)
    high: Pair = (0.95, 0.95)
    over: int | None = None
    advantage: Advantage = "dr_grpo"
    keep: float = 0.2
    by: By = "entropy"
    pool: Pool = "batch"
    clip: Clip = "prefix"
    prefix_weight: float | None = None
    share: float = 1.0  # of the prompts that have a demonstration
    whole: bool = False
    gamma: float | None = None
    sft: float = 0.0
    entropy_weights: bool = False

    def __post_init__(self) -> None:
        if self.prefixed != "all" and (not isinstance(self.prefixed, int) or self.prefixed < 0):
            raise UserError(f"prefixed = {self.prefixed!r} is no number of rollouts: give 0 or more, or 'all'.")
        for name in ("low", "high"):
            pair = getattr(self, name)
            if not isinstance(pair, tuple) or len(pair) != 2 or not all(0 <= x <= 1 for x in pair):
                raise UserError(f"{name} = {pair!r} must be two shares of a demonstration, first and last, in [0, 1].")
        if any(a > b for a, b in zip(self.low, self.high, strict=True)):
            raise UserError(f"low = {self.low} lies above high = {self.high}: exchange them.")
        if self.over is not None and self.over < 1:
            raise UserError(f"over = {self.over} is no number of updates: give at least 1.")
        if not 0 < self.keep <= 1 or not 0 <= self.share <= 1:
            raise UserError(f"keep = {self.keep} must lie in (0, 1] and share = {self.share} in [0, 1].")
        for name, kind in (("advantage", Advantage), ("by", By), ("pool", Pool), ("clip", Clip)):
            if getattr(self, name) not in get_args(kind):
                raise UserError(
                    f"{name} = {getattr(self, name)!r} is not known: choose one of {', '.join(get_args(kind))}."
                )
        if self.prefix_weight is not None and not math.isfinite(self.prefix_weight):
            raise UserError(f"prefix_weight = {self.prefix_weight} is no weight: give a finite number, or None.")
        if self.whole and not self.prefixed:
            raise UserError("whole = True needs a rollout to force the demonstration on: set prefixed above 0.")
        if self.entropy_weights and not self.sft:
            raise UserError("entropy_weights = True needs an SFT loss to weigh: set sft above 0.")
        if self.sft < 0 or (self.gamma is not None and self.gamma <= 0):
            raise UserError(f"sft = {self.sft} must be 0 or more and gamma = {self.gamma} above 0: correct them.")
        if self.prefixed == "all" and self.advantage != "dr_grpo":
            raise UserError(f"Without a free rollout {self.advantage} has no baseline: take 'dr_grpo'.")


PREFIX_RFT = Blend()
PLAIN = Blend(prefixed=0)  # RFT by Dr. GRPO
ALL_TOKENS = Blend(keep=1.0)  # no entropy clipping
RANDOM = Blend(by="random")
LOWEST = Blend(by="lowest")
CLIP_FREE = Blend(prefixed=0, clip="free")  # RFT that keeps a fifth of its own tokens: is it the clipping that helps?
UNIFORM = Blend(low=(0.05, 0.05))  # l ~ U(0.05, 0.95) all along


def constant(weight: float) -> Blend:
    """Prefix tokens weigh `weight` whatever the rewards."""
    return Blend(prefix_weight=weight)


def fixed(share: float) -> Blend:
    """Every prefix is this share of its demonstration."""
    return Blend(low=(share, share), high=(share, share))


def demos(share: float) -> Blend:
    """Prefix-RFT where this share of the prompts has a demonstration; the others are plain RFT."""
    return Blend(share=share)


def rl_with_sft(coefficient: float) -> Blend:
    """Plain RFT and an SFT loss, added up."""
    return Blend(prefixed=0, sft=coefficient)


FROZEN = constant(0.0)  # prefixes are given, not learnt
# all rollouts go on from the prefix, which is not learnt: as DR-PO does (2507.01679's Table 8, known from notes on it)
DRPO_LIKE = Blend(prefixed="all", prefix_weight=0.0)
# UFT (2505.16984, known from reviews of it): every rollout goes on from a hint that shrinks, whose likelihood has a small constant
# weight. Theirs is drawn from a binomial law and ends at no hint at all
UFT_LIKE = Blend(prefixed="all", high=(0.95, 0.05), keep=1.0, prefix_weight=0.001)
# LUFFY (2504.14945, known from launch scripts and re-implementations): 7 rollouts and the demonstration, no std, reshaped ratio
LUFFY_LIKE = Blend(whole=True, gamma=0.1, keep=1.0)
# SRFT (2506.19767, known from third-party notes): see `srft_weights`
SRFT_LIKE = Blend(whole=True, gamma=0.1, keep=1.0, sft=1.0, entropy_weights=True)


# --- prefixes ---------------------------------------------------------------------------------------------------------------


def bounds(blend: Blend, step: int, steps: int) -> tuple[float, float]:
    """The bounds (low, high) of l at update `step` of a run of `steps`: last + (1 + cos(pi s / S)) / 2 (first - last)."""
    over = blend.over or steps
    fall = (1 + math.cos(math.pi * min(step / over, 1.0))) / 2
    low, high = (last + fall * (first - last) for first, last in (blend.low, blend.high))
    return min(low, high), high  # rounding must not turn them round


def prefix_length(share: float, tokens: int) -> int:
    """L = floor(l |y*|), at most |y*| - 1, so that at least one token is the policy's own."""
    return max(0, min(math.floor(share * tokens), tokens - 1))


def has_demonstration(row: Row, share: float) -> bool:
    """Whether a row is one of the `share` that have a demonstration: by a hash of what it asks and shows, the same in every run."""
    content = row.prompt.encode() + (row.image.tobytes() if row.image is not None else b"")
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") < share * 2**64


class ForcedTokens(LogitsProcessor):
    """Makes row i say forced[i] first, whatever its logits: after `width` tokens of prompt, until its list is at an end."""

    def __init__(self, forced: Sequence[Sequence[int]], width: int):
        longest = max(map(len, forced))
        self.tokens = torch.tensor([[*ids, *[-1] * (longest - len(ids))] for ids in forced])
        self.width = width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        at = input_ids.shape[1] - self.width
        if at >= self.tokens.shape[1]:
            return scores
        tokens = self.tokens[:, at].to(scores.device)
        rows = (tokens >= 0).nonzero()[:, 0]
        scores = scores.clone()
        scores[rows] = -torch.inf
        scores[rows, tokens[rows]] = 0.0
        return scores


# --- what each token weighs -------------------------------------------------------------------------------------------------


def advantages(rewards: torch.Tensor, prefixed: torch.Tensor, how: Advantage) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages (n, N) of the tokens that each rollout chose itself, and (n, N) of its forced ones, from rewards (n, N).

    `prefixed` (n, N) marks the rollouts with a prefix. With r the rewards, m the mean of the free ones, k the number of prefixed:

    - "dr_grpo": r - (mean of all N), forced tokens too. The paper's text, Eq. 3.
    - "dr_grpo_prefix": free ones r - m; prefixed ones are a group of their own, r - (mean of the k), which for one alone is r *not
      centred*; forced tokens (r - m) / k.
    - "dr_grpo_prefix_v2": as before, but one alone gets r - r = 0, and forced tokens (that - m) / k: for one alone -m, which is
      never positive, so that a right demonstration is *un*learnt the more the better the policy is.

    The last two are how the released code reads; which made the published numbers is not known. A rollout without any reward
    (nan) has advantage 0 and counts in no mean.
    """
    if how == "dr_grpo":
        centred = (rewards - rewards.nanmean(1, keepdim=True)).nan_to_num(nan=0.0)
        return centred, centred
    mean = rewards.masked_fill(prefixed, torch.nan).nanmean(1, keepdim=True)
    own = rewards.masked_fill(~prefixed, torch.nan).nanmean(1, keepdim=True)
    k = prefixed.sum(1, keepdim=True)
    if how == "dr_grpo_prefix":
        chosen, forced = torch.where(k > 1, rewards - own, rewards), (rewards - mean) / k
    else:
        chosen, forced = rewards - own, (rewards - own - mean) / k
    chosen = torch.where(prefixed, chosen, rewards - mean)
    return chosen.nan_to_num(nan=0.0), forced.masked_fill(~prefixed, 0.0).nan_to_num(nan=0.0)


def top_share(scores: torch.Tensor, among: torch.Tensor, share: float) -> torch.Tensor:
    """Marks (B, T) the ceil(share n) tokens of highest score among the n that `among` (B, T) marks; of equals the earlier ones."""
    candidates = among.flatten().nonzero()[:, 0]
    order = scores.flatten()[candidates].argsort(descending=True, stable=True)
    count = math.ceil(share * len(candidates) - 1e-9)  # 0.2 * 15 is a little more than 3
    marked = torch.zeros_like(among.flatten(), dtype=torch.bool)
    marked[candidates[order[:count]]] = True
    return marked.view_as(among)


def kept_tokens(
    blend: Blend, entropies: torch.Tensor, prefix: torch.Tensor, mask: torch.Tensor, seed: Sequence[int] = (0,)
) -> torch.Tensor:
    """Marks (B, T) the tokens that stay in the loss: of those that are clipped the best `keep`, and all others.

    `entropies` (B, T) are the present policy's in nats, `prefix` and `mask` (B, T) mark forced tokens and tokens that are no
    padding. `seed` decides where `by` is "random". The rest stay in the length normaliser, with weight 0.
    """
    if blend.keep == 1:
        return mask
    clipped = mask & (prefix if blend.clip == "prefix" else ~prefix)
    if blend.by == "random":
        scores = torch.from_numpy(np.random.default_rng(seed).random(tuple(mask.shape))).to(mask.device)
    else:
        scores = entropies.detach() if blend.by == "entropy" else -entropies.detach()
    if blend.pool == "batch":
        top = top_share(scores, clipped, blend.keep)
    else:
        top = torch.stack([top_share(s, c, blend.keep) for s, c in zip(scores, clipped, strict=True)])
    return mask & ~clipped | top


# --- losses of other mixtures -------------------------------------------------------------------------------------------------


def clipped_loss(
    logps: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, low: float = 0.2, high: float = 0.2
) -> torch.Tensor:
    """PPO's -min(r A, clip(r, 1 - low, 1 + high) A) of each token, r = pi / pi_old, as TRL computes it; all shapes (B, T)."""
    ratio = (logps - old).exp()
    return -torch.min(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def reshaped_loss(logps: torch.Tensor, advantages: torch.Tensor, gamma: float) -> torch.Tensor:
    """LUFFY's -A p / (p + gamma) of each off-policy token, with p = pi(token), unclipped; all shapes (B, T).

    The demonstrator's own probability is taken for 1. The gradient is that of -A log p times gamma p / (p + gamma)^2: at most 1/4,
    where p = gamma, so that unlikely tokens, which the plain ratio p would hardly move, count.
    """
    p = logps.exp()
    return -advantages * p / (p + gamma)


def srft_weights(entropy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """SRFT's weights of the SFT loss, 0.5 exp(-H), and of right rollouts, 0.1 exp(H), without gradient; H in nats.

    So a sure policy imitates more, and an unsure one is made surer by what it got right. As third-party notes on 2506.19767 tell
    it; they write rewards of +1 and -1 without a baseline, where we keep Dr. GRPO's advantages, and do not say how the ratio of
    the demonstration, which is a member of the group, is formed: we take LUFFY's. H is our mean over the rollouts' own tokens.
    """
    entropy = entropy.detach()
    return 0.5 * (-entropy).exp(), 0.1 * entropy.exp()


# --- the trainer ------------------------------------------------------------------------------------------------------------


class PrefixRFTTrainer(RFTTrainer):
    """RFTTrainer whose rows' "demonstration" (a text, "" for none) is blended in. The last rollouts of a group are the prefixed ones."""

    def __init__(self, *args: Any, blend: Blend, norms_every: int = 0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.blend, self.norms_every = blend, norms_every
        self.top_entropy_quantile = 0.0  # below 1 TRL asks `get_high_entropy_mask` what each token weighs
        self._forced: list[list[int]] = []  # (B,) token ids that each rollout of the next generation begins with
        self._collate = DataCollatorForVisionLanguageModeling(self.processing_class, completion_only_loss=True)
        if blend.prefixed and not self._generates_shared:
            raise UserError(
                "Prefixes are forced in model.generate on one process: set use_vllm=False and start one process."
            )
        if blend.prefixed != "all" and blend.prefixed >= self.num_generations:
            raise UserError(
                f"{blend.prefixed} prefixed rollouts in a group of {self.num_generations} leave none free: take fewer, or 'all'."
            )

    # generation

    def _draw_prefixes(self, inputs: list[dict[str, Any]]) -> list[list[int]]:
        """The tokens (B,) that each rollout begins with; the prefixed rollouts of a prompt share one prefix."""
        size = self.num_generations
        first = 0 if self.blend.prefixed == "all" else size - self.blend.prefixed
        bound = bounds(self.blend, self.state.global_step, self.args.max_steps)
        prefixes: list[list[int]] = []
        for group in range(len(inputs) // size):
            ids = self._demonstration(inputs[group * size]) if first < size else []
            share = np.random.default_rng((self.args.seed, self.state.global_step, group)).uniform(*bound)
            prefix = ids[: min(prefix_length(share, len(ids)), self.max_completion_length - 1)]
            if self.blend.whole and ids:
                prefix = [*ids, self._tokenizer.eos_token_id][: self.max_completion_length]
            if ids:
                self._note("length", min(1.0, len(prefix) / len(ids)))
            prefixes += [prefix if i >= first else [] for i in range(size)]
        return prefixes

    def _demonstration(self, row: dict[str, Any]) -> list[int]:
        """Token ids of a row's demonstration, without an end of text."""
        ids = self._tokenizer(row.get("demonstration", ""), add_special_tokens=False)["input_ids"]
        if self._tokenizer.unk_token_id is not None and self._tokenizer.unk_token_id in ids:
            raise UserError(
                f"The demonstration {row['demonstration'][:60]!r} has words that the model has no token for: word it otherwise."
            )
        return list(ids)

    def _logits_processors(self, width: int) -> LogitsProcessorList | None:
        return LogitsProcessorList([ForcedTokens(self._forced, width)]) if any(self._forced) else None

    def _calculate_rewards(self, *args: Any) -> torch.Tensor:
        parts = super()._calculate_rewards(*args)
        self._rewards = (parts * self.reward_weights.to(parts.device)).nansum(1)  # (B,), as TRL adds them up
        self._rewards[parts.isnan().all(1)] = torch.nan
        return parts

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        training = self.model.training
        self._forced = self._draw_prefixes(inputs) if training else [[]] * len(inputs)
        output = super()._generate_and_score_completions(inputs)
        first = self.accelerator.process_index * len(inputs)  # rewards are gathered from all processes
        self._rewards = self._rewards[first : first + len(inputs)]
        lengths = torch.tensor([len(ids) for ids in self._forced], device=self.accelerator.device)
        output["prefix_mask"] = (
            torch.arange(output["completion_ids"].shape[1], device=lengths.device) < lengths[:, None]
        )
        if training:
            output["advantages"] = self._token_advantages(lengths > 0, output["prefix_mask"])
            self._note_rewards(lengths > 0, inputs)
            if self.blend.sft:
                output |= self._examples(inputs)
        return output

    def _token_advantages(self, prefixed: torch.Tensor, prefix: torch.Tensor) -> torch.Tensor:
        """Advantages (B, T) from the rewards (B,) of the rollouts, of which `prefixed` (B,) have a prefix (B, T)."""
        groups = (-1, self.num_generations)
        chosen, forced = advantages(self._rewards.view(groups), prefixed.view(groups), self.blend.advantage)
        if self.blend.prefix_weight is not None:
            forced = torch.full_like(forced, self.blend.prefix_weight)
        return torch.where(prefix, forced.view(-1, 1), chosen.view(-1, 1))

    def _examples(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Each group's demonstration as TRL's SFTTrainer takes it, in the group's first row, and how many tokens all of them have."""
        examples: list[dict[str, Any] | None] = [None] * len(inputs)
        for i, row in list(enumerate(inputs))[:: self.num_generations]:
            if self._demonstration(row):
                completion = [{"role": "assistant", "content": row["demonstration"]}]
                images = [] if row.get("image") is None else [row["image"]]
                examples[i] = {"prompt": row["prompt"], "completion": completion, "images": images}
        texts = [{**example, "images": []} for example in examples if example]
        tokens = (self._collate(texts)["labels"] != -100).sum() if texts else torch.tensor(0)
        return {"examples": examples, "example_tokens": tokens.to(self.accelerator.device)}

    # the loss

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        self._seen = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        return self._seen

    def get_high_entropy_mask(self, entropies: torch.Tensor, mask: torch.Tensor, threshold: float) -> torch.Tensor:
        """TRL multiplies the loss of each token by this."""
        seed = (self.args.seed, self.state.global_step, self._step)
        prefix, mask = self._now["prefix_mask"], mask.bool()
        self._kept = kept_tokens(self.blend, entropies, prefix, mask, seed)
        self._entropy = entropies.detach()[mask & ~prefix].mean()
        self._note_tokens(entropies.detach(), mask)
        weights = self._kept.float()
        if self.blend.gamma is not None:  # forced tokens have a term of their own
            weights = weights * ~prefix
        if self.blend.entropy_weights:
            weights = torch.where(
                mask & ~prefix & (self._now["advantages"] > 0), weights * srft_weights(self._entropy)[1], weights
            )
        return weights

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._now = inputs
        loss = super()._compute_loss(model, inputs)
        if self.blend.gamma is not None:
            loss = loss + self._normalised(self._forced_loss() * self._kept)
        if self.blend.sft and any(inputs.get("examples", ())):  # none in a piece without the first of a group
            weight = srft_weights(self._entropy)[0] if self.blend.entropy_weights else 1.0
            loss = loss + self.blend.sft * weight * self._sft_loss(model)
        if self.norms_every and self.model.training and self.state.global_step % self.norms_every == 0:
            self._note_norms(loss)
        del self._seen  # the graph
        return loss

    def _forced_loss(self) -> torch.Tensor:
        """The loss (B, T) of forced tokens, none of them clipped away; 0 elsewhere."""
        logps, weights = self._seen[0], self._now["advantages"]
        if self.blend.gamma is not None:
            return reshaped_loss(logps, weights, self.blend.gamma) * self._now["prefix_mask"]
        old = self._now.get("old_per_token_logps", logps.detach())
        return clipped_loss(logps, old, weights, self.epsilon_low, self.epsilon_high) * self._now["prefix_mask"]

    def _normalised(self, losses: torch.Tensor) -> torch.Tensor:
        """Dr. GRPO's sum: over rollouts and the length that they may have."""
        return losses.sum() / (len(losses) * self.max_completion_length) / self._accumulated

    @property
    def _accumulated(self) -> int:
        return self.current_gradient_accumulation_steps if self.model.training else 1

    def _sft_loss(self, model: Any) -> torch.Tensor:
        """-log pi(demonstration, end of text) a token, the mean over all tokens of the update (not the mean of means of 2604.23747)."""
        examples = [dict(example) for example in self._now["examples"] if example]  # the collator writes into them
        if not examples:
            return torch.zeros((), device=self.accelerator.device)
        batch = {k: v.to(self.accelerator.device) for k, v in self._collate(examples).items()}
        with self.accelerator.autocast():
            total = -model(**batch, fused_lm_head=True).log_probs.sum()
        return total / self._now["example_tokens"] * self.args.steps_per_generation / self._accumulated

    # measurements

    def _note(self, name: str, value: float) -> None:
        if not math.isnan(value):  # a mean of none
            self._metrics["train" if self.model.training else "eval"][f"prefix/{name}"].append(value)

    def _note_rewards(self, prefixed: torch.Tensor, inputs: list[dict[str, Any]]) -> None:
        """Rewards of free and of prefixed rollouts, and r_N - m: what a prefix gained, by level where rows have one."""
        groups = (-1, self.num_generations)
        rewards, prefixed = self._rewards.view(groups), prefixed.view(groups)
        free, forced = rewards.masked_fill(prefixed, torch.nan), rewards.masked_fill(~prefixed, torch.nan)
        self._note("free_reward", free.nanmean().item())
        self._note("prefixed_reward", forced.nanmean().item())
        gains = forced.nanmean(1) - free.nanmean(1)
        self._note("advantage", gains.nanmean().item())
        levels = [row.get("level") for row in inputs[:: self.num_generations]]
        for level in sorted({x for x in levels if x is not None}):
            of_level = torch.tensor([x == level for x in levels], device=gains.device)
            self._note(f"advantage_level_{level}", gains[of_level].nanmean().item())

    def _note_tokens(self, entropies: torch.Tensor, mask: torch.Tensor) -> None:
        """The share of forced tokens among all, before and after clipping, and the mean entropy of either kind."""
        prefix = mask & self._now["prefix_mask"]
        self._note("entropy_free", self._entropy.item())
        self._note("entropy", entropies[prefix].mean().item())
        self._note("share", (prefix.sum() / mask.sum()).item())
        self._note("share_kept", ((prefix & self._kept).sum() / self._kept.sum()).item())

    def _note_norms(self, loss: torch.Tensor) -> None:
        """Norms of the micro-batch's gradient: as it is, without forced tokens, and with all of them, none clipped away."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        forced = self._forced_loss()
        parts = [loss, self._normalised(forced * self._kept), self._normalised(forced)]
        whole, kept, every = (_flat_gradient(part, parameters) for part in parts)
        self._note("norm", whole.norm().item())
        self._note("norm_free", (whole - kept).norm().item())
        self._note("norm_all", (whole - kept + every).norm().item())


def _flat_gradient(loss: torch.Tensor, parameters: list[torch.Tensor]) -> torch.Tensor:
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(found, parameters, strict=True)]
    )


# --- training ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Oracle:
    """Who writes the demonstrations: the text for a row, "" for none. `name` is part of the run's settings."""

    name: str
    says: Callable[[Row], str]


ANSWERS = Oracle("answers", lambda row: row.answer)


def variant(blend: Blend, demonstrations: Oracle = ANSWERS, norms_every: int = 0) -> Variant:
    """What Prefix-RFT changes of `train_rft`. Dr. GRPO: no division by the group's standard deviation, one length normaliser."""

    def trainer(*args: Any, **kwargs: Any) -> PrefixRFTTrainer:
        return PrefixRFTTrainer(*args, blend=blend, norms_every=norms_every, **kwargs)

    def columns(row: Row) -> dict[str, Any]:
        shown = demonstrations.says(row) if has_demonstration(row, blend.share) else ""
        return {**rft_row(row), "demonstration": shown}

    settings = {
        "blend": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(blend).items()},
        "demonstrations": demonstrations.name, **({"norms_every": norms_every} if norms_every else {}),
    }  # fmt: skip
    return Variant(trainer, {"loss_type": "dr_grpo", "scale_rewards": "none"}, columns, settings)


def train_prefix_rft(
    preset: Preset,
    seed: int,
    blend: Blend = PREFIX_RFT,
    *,
    name: str = "prefix_rft",
    lr: float | None = None,
    steps: int | None = None,
    practice: Practice | None = None,
    demonstrations: Oracle = ANSWERS,
    norms_every: int = 0,
    after: recording.Before | None = None,
    evaluate: recording.Evaluate | None = None,
    save_at: set[int] | None = None,
    eval_steps: set[int] | None = None,
    save_every: int = 50,
    home: Path | None = None,
) -> tuple[runs.RunRecord, Policy]:
    """Train RFT with demonstrations blended in, by Dr. GRPO without KL. Returns the run's record and the trained policy.

    `norms_every` is the number of updates from one measurement of the gradient's norms to the next (0: none); all else is
    `train_rft`'s. The rows of the record's updates hold "prefix_free_reward", "prefix_prefixed_reward", "prefix_advantage" (r_N - m,
    the mean over groups; "prefix_advantage_level_3" over those of level 3), "prefix_length" (mean L / |y*|), "prefix_share" and
    "prefix_share_kept" (forced tokens among all, before and after clipping), "prefix_entropy" and "prefix_entropy_free" (nats),
    "prefix_norm", "prefix_norm_free", "prefix_norm_all" (`PrefixRFTTrainer._note_norms`).

    Prefix and continuation share the budget of `preset.max_completion` tokens: with demonstrations as long as that, a rollout is
    cut before its answer, scored as wrong, and its prefix unlearnt. Raises UserError for prefixes with vLLM.
    """
    if preset.vllm and blend.prefixed:
        raise UserError("Prefixes are forced in model.generate, not in vLLM: take a preset with vllm=False.")
    return train_rft(
        preset, seed, name=name, lr=lr, steps=steps, beta=0.0, practice=practice, after=after, evaluate=evaluate, save_at=save_at,
        eval_steps=eval_steps, save_every=save_every, home=home, variant=variant(blend, demonstrations, norms_every),
    )  # fmt: skip
