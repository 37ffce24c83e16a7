"""Prefix-RFT: what is forced, what each token weighs, and what else enters the loss.

`weights_of` reads the weight of every token off the gradient of the loss by its log-probability, so that all that lies between
the rewards and the update is tested at once.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trl import GRPOConfig, SFTConfig, SFTTrainer

from rftkit import bench, chains, prefix_rft, recording, rft
from rftkit.config import UserError
from rftkit.policy import load_policy
from rftkit.prefix_rft import ALL_TOKENS, FROZEN, LUFFY_LIKE, PLAIN, PREFIX_RFT, SRFT_LIKE, Blend
from rftkit.sft import sft_row
from rftkit.tasks import JIGSAW

CHAINS = chains.task()
HALF = Blend(low=(0.5, 0.5), high=(0.5, 0.5))


def tokens_in_answer(completions, **_):
    """A dense reward: an untrained model earns no other."""
    return [len(set(c[0]["content"].split())) / 12 for c in completions]


def trainer(
    preset, folder, blend=PREFIX_RFT, task=CHAINS, norms_every=0, oracle=prefix_rft.ANSWERS, cls=None, **arguments
):
    policy = load_policy(preset)
    variant = prefix_rft.variant(blend, oracle, norms_every)
    data = recording.lazy_dataset(lambda i: variant.row(task.row(0, i, "train")), 64)
    args = GRPOConfig(
        output_dir=str(folder), beta=0.0, **{**rft.grpo_arguments(preset), **variant.arguments, **arguments},
        **recording.trainer_arguments(preset, 1e-3, 4, 0, 100),
    )  # fmt: skip
    made = (cls or variant.trainer)(
        policy.model, reward_funcs=[tokens_in_answer], args=args, train_dataset=data, processing_class=policy.processor
    )
    made.current_gradient_accumulation_steps = args.gradient_accumulation_steps
    made.model.train()
    return made


def rollouts(made):
    """One update's rollouts, scored: what the loss is given."""
    torch.manual_seed(0)  # TRL shuffles them by the global generator
    return made._prepare_inputs(next(iter(made.get_train_dataloader())))


def loss_of(made, inputs):
    """The loss and the gradient of every parameter."""
    made.model.zero_grad()
    loss = made.compute_loss(made.model, dict(inputs))
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in made.model.named_parameters() if p.grad is not None}


def weights_of(made, inputs):
    """The weight (B, T) of each token's log-probability in the update, times Dr. GRPO's normaliser, and the log-probabilities."""
    seen, original = [], made._get_per_token_logps_and_entropies

    def keep(*args, **kwargs):
        found = original(*args, **kwargs)
        found[0].retain_grad()
        seen.append(found)
        return found

    made._get_per_token_logps_and_entropies = keep
    made.compute_loss(made.model, dict(inputs)).backward()
    del made._get_per_token_logps_and_entropies
    logps, entropies, _ = seen[-1]
    return -logps.grad * len(logps) * made.max_completion_length, logps.detach(), entropies.detach()


def one_by_one(inputs):
    """Rollouts in an order that no shuffle changes: (rows' token ids, prefix length)."""
    lengths = inputs["prefix_mask"].sum(1).tolist()
    masked = [
        ids[m.bool()].tolist() for ids, m in zip(inputs["completion_ids"], inputs["completion_mask"], strict=True)
    ]
    return sorted(zip(masked, lengths, strict=True))


def demonstrations(made, task, n):
    rows = [made.train_dataset[i] for i in range(n)]
    return [made._demonstration(row) for row in rows]


# --- the schedule -----------------------------------------------------------------------------------------------------------


def test_the_lower_bound_falls_along_a_cosine_and_the_upper_one_stays():
    assert prefix_rft.bounds(PREFIX_RFT, 0, 500) == pytest.approx((0.95, 0.95))
    assert prefix_rft.bounds(PREFIX_RFT, 250, 500) == pytest.approx((0.5, 0.95))
    low, high = prefix_rft.bounds(PREFIX_RFT, 500, 500)
    assert (low, high) == pytest.approx((0.05, 0.95))
    assert (low + high) / 2 == pytest.approx(0.5)  # the mean length at the end is half a demonstration, not 5 % of it
    assert prefix_rft.bounds(PREFIX_RFT, 900, 500) == (low, high)
    means = [sum(prefix_rft.bounds(PREFIX_RFT, s, 1000)) / 2 for s in range(1001)]
    assert np.mean(means) == pytest.approx(0.725, abs=1e-3)


def test_other_schedules():
    for step in (0, 3, 10):
        assert prefix_rft.bounds(prefix_rft.UNIFORM, step, 10) == pytest.approx((0.05, 0.95))
        assert prefix_rft.bounds(prefix_rft.fixed(0.5), step, 10) == (0.5, 0.5)
    assert prefix_rft.bounds(prefix_rft.UFT_LIKE, 10, 10) == pytest.approx((0.05, 0.05))
    assert prefix_rft.bounds(Blend(over=5), 5, 1000) == prefix_rft.bounds(PREFIX_RFT, 1000, 1000)


@given(st.floats(0, 1), st.integers(0, 9000), st.integers(1, 9000))
def test_bounds_are_in_order_and_lengths_leave_a_token(share, tokens, steps):
    low, high = prefix_rft.bounds(PREFIX_RFT, tokens, steps)
    assert 0 <= low <= high <= 1
    length = prefix_rft.prefix_length(share, tokens)
    assert 0 <= length <= max(0, tokens - 1)
    assert length == min(math.floor(share * tokens), max(0, tokens - 1))


# --- forced tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [CHAINS, JIGSAW])
def test_a_prefix_is_said_word_for_word_and_the_rest_is_the_policys(small_preset, tmp_path, task):
    made = trainer(small_preset, tmp_path, HALF, task)
    inputs = rollouts(made)
    shown = demonstrations(made, task, 64)
    lengths = inputs["prefix_mask"].sum(1)
    assert (lengths > 0).sum() == small_preset.rft_prompts
    for ids, mask, length in zip(inputs["completion_ids"], inputs["completion_mask"], lengths, strict=True):
        if length:
            assert any(ids[:length].tolist() == d[:length] and length == len(d) // 2 for d in shown if len(d) > 1)
            assert mask.sum() > length
    assert not (inputs["prefix_mask"] & (inputs["completion_mask"] == 0)).any()
    plain = rollouts(trainer(small_preset, tmp_path, PLAIN, task))
    free, theirs = [r for r, n in one_by_one(inputs) if not n], [r for r, _ in one_by_one(plain)]
    assert all(
        row in theirs for row in free
    )  # forcing one row moves no other: arms with one seed begin with the same rollouts


@pytest.mark.parametrize("task", [CHAINS, JIGSAW])
@pytest.mark.parametrize("blend", [PLAIN, Blend(low=(0.0, 0.0), high=(0.0, 0.0)), prefix_rft.demos(0.0)])
def test_without_a_prefix_it_is_rft_to_the_last_bit(small_preset, tmp_path, task, blend):
    ours = trainer(small_preset, tmp_path, blend, task)
    plain = trainer(small_preset, tmp_path, blend, task, cls=rft.RFTTrainer)
    inputs, theirs = rollouts(ours), rollouts(plain)
    assert inputs["advantages"].abs().sum() > 0
    for key in ("completion_ids", "completion_mask", "prompt_ids"):
        assert torch.equal(inputs[key], theirs[key])
    (loss, gradients), (their_loss, their_gradients) = loss_of(ours, inputs), loss_of(plain, theirs)
    assert loss == their_loss
    assert all(torch.equal(g, their_gradients[n]) for n, g in gradients.items())


@pytest.mark.parametrize("how", ["dr_grpo", "dr_grpo_prefix", "dr_grpo_prefix_v2"])
def test_a_prompt_without_a_demonstration_is_plain_rft(small_preset, tmp_path, how):
    """Half the rows have none: their groups have the advantages of plain RFT, whatever the estimator."""
    oracle = prefix_rft.Oracle("some", lambda row: row.answer if row.data["level"] < 4 else "")
    made = trainer(small_preset, tmp_path, Blend(low=(0.5, 0.5), advantage=how), oracle=oracle)
    inputs = rollouts(made)
    groups = [inputs["prompt_group"] == g for g in inputs["prompt_group"].unique()]
    free = [g for g in groups if not inputs["prefix_mask"][g].any()]
    assert 0 < len(free) < len(groups)
    rewards = torch.tensor([*made._logs["rewards"]["tokens_in_answer"]])
    for group in free:
        of_group = inputs["advantages"][group]
        assert of_group[:, :1].expand_as(of_group).equal(of_group)
        own = rewards.view(len(groups), -1)[inputs["prompt_group"][group][0]]
        torch.testing.assert_close(of_group[:, 0].sort().values, (own - own.mean()).sort().values)


def test_the_longest_prefix_is_all_but_the_last_token(small_preset, tmp_path):
    made = trainer(small_preset, tmp_path, prefix_rft.fixed(1.0))
    made._note = lambda *_: None
    rows = [made.train_dataset[i] for i in range(4) for _ in range(4)]
    prefixes = made._draw_prefixes(rows)
    budget = small_preset.max_completion - 1  # one token is left to the policy
    assert [prefixes[i] for i in (3, 7, 11, 15)] == [d[:-1][:budget] for d in demonstrations(made, CHAINS, 4)]
    assert not any(prefixes[i] for i in range(16) if i % 4 != 3)
    assert any(len(p) == budget for p in prefixes)


def test_a_prefix_is_drawn_anew_each_update_and_again_after_a_resume(small_preset, tmp_path):
    made = trainer(small_preset, tmp_path, prefix_rft.UNIFORM)
    rows = [made.train_dataset[i] for i in range(4) for _ in range(4)]
    first = made._draw_prefixes(rows)
    assert made._draw_prefixes(rows) == first
    made.state.global_step = 1
    assert made._draw_prefixes(rows) != first


def test_all_rollouts_of_a_prompt_may_go_on_from_one_prefix(small_preset, tmp_path):
    made = trainer(small_preset, tmp_path, dataclasses.replace(HALF, prefixed="all"))
    inputs = rollouts(made)
    assert inputs["prefix_mask"].any(1).all()
    for g in inputs["prompt_group"].unique():
        rows = inputs["prompt_group"] == g
        assert len(inputs["completion_ids"][rows].masked_fill(~inputs["prefix_mask"][rows], -1).unique(dim=0)) == 1


@pytest.mark.parametrize("task", [CHAINS, JIGSAW])
def test_checkpointing_changes_neither_rollouts_nor_the_update(small_preset, tmp_path, task):
    """Its loss goes TRL's own way, where every rollout reads its prompt: a check of the shared one, forced tokens included."""
    made = trainer(small_preset, tmp_path, ALL_TOKENS, task)
    other = trainer(dataclasses.replace(small_preset, checkpointing=True), tmp_path, ALL_TOKENS, task)
    inputs, theirs = rollouts(made), rollouts(other)
    assert torch.equal(inputs["completion_ids"], theirs["completion_ids"])
    (loss, gradients), (their_loss, their_gradients) = loss_of(made, inputs), loss_of(other, theirs)
    assert loss == pytest.approx(their_loss, abs=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, their_gradients[name], atol=1e-5, rtol=1e-3, msg=name)


def test_old_log_probabilities_cover_the_prefix(small_preset, tmp_path):
    """With rollouts reused, the ratio of a forced token is against what the policy itself gave it when the rollout was made."""
    made = trainer(
        dataclasses.replace(small_preset, rft_reuse=2), tmp_path, dataclasses.replace(ALL_TOKENS, low=(0.5, 0.5))
    )
    inputs = rollouts(made)
    weights, logps, _ = weights_of(made, inputs)
    prefix = inputs["prefix_mask"]
    torch.testing.assert_close(inputs["old_per_token_logps"][prefix], logps[prefix], atol=1e-5, rtol=1e-4)
    assert (logps[prefix] < -0.5).all()  # an untrained model finds them unlikely; the forced distribution would say 0
    torch.testing.assert_close(weights[prefix], inputs["advantages"][prefix], atol=1e-4, rtol=1e-3)


# --- advantages ---------------------------------------------------------------------------------------------------------------


def test_advantages_against_hand_computation():
    rewards = torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0]])
    prefixed = torch.tensor([[False, False, False, True]] * 2)
    chosen, forced = prefix_rft.advantages(rewards, prefixed, "dr_grpo")
    assert chosen.tolist() == forced.tolist() == [[-0.5, 0.5, -0.5, 0.5], [0.5, 0.5, -0.5, -0.5]]

    third = 1 / 3
    chosen, forced = prefix_rft.advantages(rewards, prefixed, "dr_grpo_prefix")
    expected = torch.tensor([[-third, 1 - third, -third, 1], [third, third, -2 * third, 0]])  # alone: not centred
    torch.testing.assert_close(chosen, expected)
    torch.testing.assert_close(forced, torch.tensor([[0, 0, 0, 1 - third], [0, 0, 0, -2 * third]]))
    # the two estimators differ by N / (N - 1) on forced tokens
    plain = prefix_rft.advantages(rewards, prefixed, "dr_grpo")[1]
    torch.testing.assert_close(forced[:, 3] * 3 / 4, plain[:, 3])

    chosen, forced = prefix_rft.advantages(rewards, prefixed, "dr_grpo_prefix_v2")
    torch.testing.assert_close(chosen[:, 3], torch.zeros(2))
    torch.testing.assert_close(forced[:, 3], torch.tensor([-third, -2 * third]))  # right or wrong, it is unlearnt


def test_several_prefixed_rollouts_are_a_group_of_their_own():
    rewards = torch.tensor([[0.0, 1.0, 0.0, 1.0]])
    prefixed = torch.tensor([[False, False, True, True]])
    chosen, forced = prefix_rft.advantages(rewards, prefixed, "dr_grpo_prefix")
    assert chosen.tolist() == [[-0.5, 0.5, -0.5, 0.5]]
    assert forced.tolist() == [[0, 0, -0.25, 0.25]]  # (r - m) / 2


@pytest.mark.parametrize("how", ["dr_grpo", "dr_grpo_prefix", "dr_grpo_prefix_v2"])
def test_groups_without_a_prefix_and_rollouts_without_a_reward(how):
    rewards = torch.tensor([[0.0, 1.0, 1.0, 1.0], [torch.nan, 1.0, 0.0, 0.5]])
    chosen, _ = prefix_rft.advantages(rewards, torch.zeros(2, 4, dtype=torch.bool), how)
    torch.testing.assert_close(chosen, torch.tensor([[-0.75, 0.25, 0.25, 0.25], [0.0, 0.5, -0.5, 0.0]]))


# --- which tokens stay ----------------------------------------------------------------------------------------------------------


def marks(text):
    """Rows of 'p' prefix, 'f' free, '.' padding."""
    rows = [list(row) for row in text.split()]
    return torch.tensor([[c == "p" for c in r] for r in rows]), torch.tensor([[c != "." for c in r] for r in rows])


ENTROPIES = torch.tensor(
    [[0.1, 0.2, 0.3, 0.4, 9.0, 9.0], [1.0, 2.0, 3.0, 4.0, 5.0, 9.0], [0.0, 9.0, 9.0, 9.0, 9.0, 9.0]]
)
PREFIX, MASK = marks("ppppff pppppf ff....")


def kept(**changes):
    """The prefix tokens that stay, as (row, column)."""
    found = prefix_rft.kept_tokens(Blend(**changes), ENTROPIES, PREFIX, MASK)
    assert found[MASK & ~PREFIX].all() or changes.get("clip") == "free"
    assert not found[~MASK].any()
    return [tuple(x) for x in (found & PREFIX).nonzero().tolist()]


def test_the_highest_fifth_is_pooled_over_the_batch_or_taken_of_each_sequence():
    assert kept() == [(1, 3), (1, 4)]  # ceil(0.2 * 9), and none of the first row
    assert kept(pool="sequence") == [(0, 3), (1, 4)]
    assert kept(by="lowest") == [(0, 0), (0, 1)]
    assert len(kept(keep=0.5)) == 5
    assert len(kept(keep=1.0)) == 9


def test_a_random_fifth_has_its_size_and_its_seed():
    draws = [
        prefix_rft.kept_tokens(Blend(by="random"), ENTROPIES, PREFIX, MASK, (seed,)) & PREFIX
        for seed in (0, 0, 1, 2, 3)
    ]
    assert all(d.sum() == 2 for d in draws)
    assert torch.equal(draws[0], draws[1]) and any(not torch.equal(draws[0], d) for d in draws)


def test_clipping_free_tokens_leaves_the_prefix_whole():
    found = prefix_rft.kept_tokens(Blend(clip="free"), ENTROPIES, PREFIX, MASK)
    assert (found & PREFIX).equal(PREFIX) and (found & ~PREFIX).sum() == 1  # ceil(0.2 * 5)
    assert not found[~MASK].any()


@given(st.integers(1, 400), st.sampled_from([0.2, 0.1, 0.5, 0.3, 1.0]))
def test_the_share_that_stays_is_rounded_up_once(n, share):
    scores = torch.arange(n, dtype=torch.float)[None]
    found = prefix_rft.top_share(scores, torch.ones(1, n, dtype=torch.bool), share)
    assert found.sum() == math.ceil(round(share * n, 6)) and found[0, -int(found.sum()) :].all()


def test_the_entropy_is_that_of_the_distribution_a_token_was_drawn_from(small_preset, tmp_path):
    """Against a forward pass over whole sequences: the entropy at t is read at the position before t."""
    made = trainer(small_preset, tmp_path)
    inputs = rollouts(made)
    weights, _, entropies = weights_of(made, inputs)
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    with torch.no_grad():
        logits = made.model(input_ids=ids, attention_mask=attention).logits
    logits[..., made.generation_config.suppress_tokens] = -1e4  # never drawn
    logits = logits.log_softmax(-1)
    own = -(logits.exp() * logits).sum(-1)[:, inputs["prompt_ids"].shape[1] - 1 : -1]
    prefix, mask = inputs["prefix_mask"], inputs["completion_mask"].bool()
    torch.testing.assert_close(entropies[mask], own[mask], atol=1e-4, rtol=1e-4)
    threshold = own[prefix].sort(descending=True).values[math.ceil(0.2 * int(prefix.sum())) - 1]
    moved = (weights != 0) & prefix
    assert 0 < moved.sum() <= math.ceil(0.2 * int(prefix.sum()))
    assert (own[moved] >= threshold - 1e-4).all()


# --- the weight of each token in the update -----------------------------------------------------------------------------------


@pytest.mark.parametrize("blend", [PREFIX_RFT, ALL_TOKENS, FROZEN, prefix_rft.constant(0.3)])
def test_tokens_weigh_what_the_blend_says(small_preset, tmp_path, blend):
    made = trainer(small_preset, tmp_path, blend)
    inputs = rollouts(made)
    weights, _, entropies = weights_of(made, inputs)
    prefix, mask = inputs["prefix_mask"], inputs["completion_mask"].bool()
    # against the rewards, which the trainer logs in the order of the prompts
    rewards = torch.tensor([*made._logs["rewards"]["tokens_in_answer"]]).view(small_preset.rft_prompts, -1)
    centred = rewards - rewards.mean(1, keepdim=True)
    for group in inputs["prompt_group"].unique():
        free = weights[(inputs["prompt_group"] == group) & ~prefix.any(1)][:, 0]
        torch.testing.assert_close(free.sort().values, centred[group][:-1].sort().values, atol=1e-6, rtol=1e-4)
        forced = weights[(inputs["prompt_group"] == group)][prefix[inputs["prompt_group"] == group]]
        expected = centred[group, -1] if blend.prefix_weight is None else torch.tensor(blend.prefix_weight)
        moved = forced[forced != 0]
        torch.testing.assert_close(moved, expected.expand_as(moved), atol=1e-6, rtol=1e-4)
    assert not weights[~mask].any()
    found = (weights != 0) & prefix
    if blend == FROZEN:
        assert not found.any()
    elif blend == ALL_TOKENS:
        assert found.sum() > 0.5 * prefix.sum()
    else:
        top = prefix_rft.top_share(entropies, prefix, 0.2)
        assert found[top].any() and not found[~top].any()


def test_the_whole_demonstration_is_a_member_of_the_group(small_preset, tmp_path):
    made = trainer(dataclasses.replace(small_preset, max_completion=32), tmp_path, LUFFY_LIKE)
    inputs = rollouts(made)
    shown = [[*d, made._tokenizer.eos_token_id] for d in demonstrations(made, CHAINS, 64)]
    forced = [(ids, n) for ids, n in one_by_one(inputs) if n]
    assert len(forced) == small_preset.rft_prompts
    assert all(ids in shown and n == len(ids) for ids, n in forced)  # nothing is generated
    weights, logps, _ = weights_of(made, inputs)
    prefix = inputs["prefix_mask"]
    p, a = logps[prefix].exp(), inputs["advantages"][prefix]
    torch.testing.assert_close(weights[prefix], a * 0.1 * p / (p + 0.1) ** 2, atol=1e-6, rtol=1e-3)
    free = ~prefix & inputs["completion_mask"].bool()
    torch.testing.assert_close(weights[free], inputs["advantages"][free], atol=1e-6, rtol=1e-3)


def test_the_reshaped_ratio_against_hand_computation():
    logps = torch.tensor([0.1, 0.9, 0.01]).log().requires_grad_()
    losses = prefix_rft.reshaped_loss(logps, torch.tensor([1.0, 1.0, -2.0]), 0.1)
    assert losses.tolist() == pytest.approx([-0.5, -0.9, 2 * 0.01 / 0.11])
    losses[:2].sum().backward()
    assert logps.grad.tolist() == pytest.approx([-0.25, -0.09, 0])  # gamma p / (p + gamma)^2, greatest at p = gamma


def test_clipping_against_hand_computation():
    logps, old = torch.tensor([1.5, 0.5, 1.5, 0.5]).log(), torch.zeros(4)
    losses = prefix_rft.clipped_loss(logps, old, torch.tensor([1.0, 1.0, -1.0, -1.0]))
    assert losses.tolist() == pytest.approx([-1.2, -0.5, 1.5, 0.8])


def test_srft_weighs_right_rollouts_and_the_sft_loss_by_the_entropy(small_preset, tmp_path):
    imitate, right = prefix_rft.srft_weights(torch.tensor(1.5, requires_grad=True))
    assert (imitate.item(), right.item()) == pytest.approx((0.5 * math.exp(-1.5), 0.1 * math.exp(1.5)))
    assert not imitate.requires_grad
    made = trainer(small_preset, tmp_path, SRFT_LIKE)
    made._sft_loss = lambda model: torch.zeros(())
    inputs = rollouts(made)
    weights, _, entropies = weights_of(made, inputs)
    free = ~inputs["prefix_mask"] & inputs["completion_mask"].bool()
    a = inputs["advantages"][free]
    expected = torch.where(a > 0, 0.1 * math.exp(entropies[free].mean()) * a, a)
    torch.testing.assert_close(weights[free], expected, atol=1e-6, rtol=1e-3)
    # the SFT term comes on top, with its weight
    whole = trainer(small_preset, tmp_path, SRFT_LIKE)
    again = rollouts(whole)
    torch.testing.assert_close(again["completion_ids"], inputs["completion_ids"])
    difference = loss_of(whole, again)[0] - loss_of(made, inputs)[0]
    whole._now = again
    weight = 0.5 * math.exp(-entropies[free].mean())
    assert difference == pytest.approx(weight * whole._sft_loss(whole.model).item(), rel=1e-4)


def test_a_piece_that_holds_a_demonstration_alone_has_a_loss(small_preset, tmp_path):
    """It has no token of its own, so no entropy to weigh anything by."""
    preset = dataclasses.replace(small_preset, micro_batch=1)
    made = trainer(preset, tmp_path, SRFT_LIKE)
    rollouts(made)
    mean = made._metrics["train"]["prefix/entropy_free"]
    losses = []
    for piece in made._buffered_inputs:
        before = len(mean)
        losses.append((made.compute_loss(made.model, dict(piece)).item(), len(mean) > before))
    forced = [loss for loss, free in losses if not free]
    assert len(forced) == preset.rft_prompts and all(math.isfinite(loss) for loss, _ in losses)


# --- the SFT term ---------------------------------------------------------------------------------------------------------------


def trl_sft_loss(preset, folder, rows):
    """What TRL's SFTTrainer, as `train_sft` calls it, says of these rows."""
    policy = load_policy(preset)
    args = SFTConfig(
        output_dir=str(folder), per_device_train_batch_size=len(rows), max_length=None, completion_only_loss=True,
        train_sampling_strategy="sequential", **recording.trainer_arguments(preset, 1e-3, 1, 0, 100),
    )  # fmt: skip
    made = SFTTrainer(
        policy.model, args=args, train_dataset=recording.lazy_dataset(lambda i: sft_row(rows[i]), len(rows)),
        processing_class=policy.processor,
    )  # fmt: skip
    batch = next(iter(made.get_train_dataloader()))
    return made.compute_loss(made.model, batch, num_items_in_batch=(batch["labels"] != -100).sum()).item()


@pytest.mark.parametrize("task", [CHAINS, JIGSAW])
@pytest.mark.parametrize("micro", [16, 4])
def test_the_sft_term_is_trls_sft_loss_of_the_updates_prompts(small_preset, tmp_path, task, micro):
    """In one piece and over micro-batches with demonstrations of different lengths, whose means must not be averaged (2604.23747)."""
    parts = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": 16 // micro}
    made = trainer(small_preset, tmp_path, prefix_rft.rl_with_sft(1.0), task, **parts)
    batch = next(iter(made.get_train_dataloader()))
    total = 0.0
    for made._step in range(16 // micro):
        made._now = made._prepare_inputs(batch)
        total += made._sft_loss(made.model).item()
        first, again = (made._sft_loss(made.model).item() for _ in range(2))
        assert first == pytest.approx(again)  # nothing is used up: rollouts may be reused
    prompts = {(row["prompt"][0]["content"], row["demonstration"]) for row in batch}
    rows = [task.row(0, i, "train") for i in range(64)]
    own = [row for row in rows if (row.prompt, row.answer) in prompts]
    assert len(own) == 4 == len({r.answer for r in own})
    assert total == pytest.approx(trl_sft_loss(small_preset, tmp_path, own), rel=1e-4)


def test_micro_batches_add_up_to_the_whole_update(small_preset, tmp_path):
    """The reshaped and the SFT term among them; entropy clipping is left out, since its pool is the micro-batch."""
    blend = dataclasses.replace(LUFFY_LIKE, sft=0.5)
    whole = trainer(small_preset, tmp_path, blend)
    loss, gradients = loss_of(whole, rollouts(whole))
    made = trainer(small_preset, tmp_path, blend, per_device_train_batch_size=4, gradient_accumulation_steps=4)
    batch, losses = next(iter(made.get_train_dataloader())), []
    torch.manual_seed(0)
    for made._step in range(4):
        losses.append(made.compute_loss(made.model, dict(made._prepare_inputs(batch))))
        losses[-1].backward()
    assert sum(losses).item() == pytest.approx(loss, rel=1e-4)
    for name, parameter in made.model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-3, msg=name)


def test_rl_with_sft_is_the_sum(small_preset, tmp_path):
    made, plain = (trainer(small_preset, tmp_path, b) for b in (prefix_rft.rl_with_sft(0.5), PLAIN))
    inputs, theirs = rollouts(made), rollouts(plain)
    difference = loss_of(made, inputs)[0] - loss_of(plain, theirs)[0]
    made._now = inputs
    assert difference == pytest.approx(0.5 * made._sft_loss(made.model).item(), rel=1e-4)


# --- measurements, runs, bad input ------------------------------------------------------------------------------------------------


def test_norms_with_and_without_forced_tokens(small_preset, tmp_path):
    """Measured beside one another, and against trainers that have these tokens in the loss or not."""
    norms = {}
    for name, blend in (("kept", PREFIX_RFT), ("frozen", FROZEN), ("all", ALL_TOKENS)):
        made = trainer(small_preset, tmp_path, blend, norms_every=1)
        _, gradients = loss_of(made, rollouts(made))
        norms[name] = torch.cat([g.flatten() for g in gradients.values()]).norm().item()
        found = {k: made._metrics["train"][f"prefix/{k}"] for k in ("norm", "norm_free", "norm_all")}
        assert found["norm"] == [pytest.approx(norms[name], rel=1e-3)]
        if name == "kept":
            measured = found
    assert measured["norm_free"] == [pytest.approx(norms["frozen"], rel=1e-3)]
    assert measured["norm_all"] == [pytest.approx(norms["all"], rel=1e-3)]
    assert len({round(x, 4) for x in norms.values()}) == 3


def no_evaluation(policy):
    row = {"kind": "eval", "new_exact": 0.0, "new_hit": 0.0, "new_n": 1, "prior": {}, "prior_mean": 0.0}
    return row, []


PRACTICE = rft.Practice("chains", CHAINS, (tokens_in_answer,))


def train(preset, home, blend=PREFIX_RFT, evaluate=no_evaluation, **changes):
    settings = {"lr": 1e-3, "steps": 4, "eval_steps": {3, 4}, "save_every": 2, "practice": PRACTICE} | changes
    return prefix_rft.train_prefix_rft(preset, 3, blend, evaluate=evaluate, home=home, **settings)


def test_what_is_measured_is_in_the_record(small_preset, tmp_path):
    record, _ = train(small_preset, tmp_path, norms_every=2)
    rows = [row for row in record.metrics if row["kind"] == "train"]
    keys = ["free_reward", "prefixed_reward", "advantage", "length", "share", "share_kept", "entropy", "entropy_free"]
    assert all(f"prefix_{key}" in row for key in keys for row in rows)
    assert any(key.startswith("prefix_advantage_level_") for key in rows[0])
    assert ["prefix_norm" in row for row in rows] == [True, False, True, False]
    for row in rows:
        n, g = small_preset.rft_prompts, small_preset.rft_group
        mean = (row["prefix_free_reward"] * (g - 1) + row["prefix_prefixed_reward"]) / g
        assert row["reward"] == pytest.approx(mean, abs=1e-5) and n * g == 16
        assert row["prefix_advantage"] == pytest.approx(
            row["prefix_prefixed_reward"] - row["prefix_free_reward"], abs=1e-5
        )
        assert 0 < row["prefix_share_kept"] < row["prefix_share"] < 1
    assert record.config["blend"]["keep"] == 0.2 and record.config["demonstrations"] == "answers"


@pytest.mark.parametrize(
    "blend", [dataclasses.replace(PREFIX_RFT, by="random"), dataclasses.replace(LUFFY_LIKE, sft=0.1)]
)
def test_an_interrupted_run_ends_as_one_left_alone(small_preset, tmp_path, blend):
    preset = dataclasses.replace(small_preset, rft_reuse=2)
    whole, policy = train(preset, tmp_path / "whole", blend, steps=6, eval_steps={3, 5, 6})
    calls = []

    def once(policy):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return no_evaluation(policy)

    with pytest.raises(KeyboardInterrupt):
        train(preset, tmp_path / "cut", blend, once, steps=6, eval_steps={3, 5, 6})
    again, resumed = train(preset, tmp_path / "cut", blend, steps=6, eval_steps={3, 5, 6})
    assert len(calls) == 2 and [r["step"] for r in again.evals()] == [0, 3, 5, 6]
    timed = ("seconds", "step_time")
    mine, theirs = ([{k: v for k, v in row.items() if k not in timed} for row in r.metrics] for r in (again, whole))
    assert mine == theirs and max(row.get("grad_norm", 0) for row in theirs) > 0
    assert all(torch.equal(v, resumed.model.state_dict()[k]) for k, v in policy.model.state_dict().items())


def test_an_adapter_trains_too(small_preset, tmp_path):
    record, policy = train(dataclasses.replace(small_preset, lora_rank=4), tmp_path, SRFT_LIKE, steps=2, eval_steps={2})
    assert max(row["grad_norm"] for row in record.metrics if row["kind"] == "train") > 0
    assert any("lora_B" in n and p.abs().max() > 0 for n, p in policy.model.named_parameters())


def test_other_demonstrations_and_other_blends_are_other_runs(small_preset, tmp_path):
    train(small_preset, tmp_path, steps=1, eval_steps={1})
    train(small_preset, tmp_path, FROZEN, steps=1, eval_steps={1})
    oracle = prefix_rft.Oracle("none", lambda row: "")
    record, _ = train(small_preset, tmp_path, steps=1, eval_steps={1}, demonstrations=oracle)
    assert len(list(tmp_path.glob("runs/*/record.json"))) == 3
    assert "prefix_advantage" not in record.metrics[1]


def test_a_share_of_the_prompts_has_a_demonstration():
    rows = CHAINS.rows(0, 2000, "train")
    tenth = [prefix_rft.has_demonstration(row, 0.1) for row in rows]
    assert 150 < sum(tenth) < 250
    assert all(prefix_rft.has_demonstration(row, 1.0) for row in rows[:50])
    assert not any(prefix_rft.has_demonstration(row, 0.0) for row in rows[:50])
    hundredth = [prefix_rft.has_demonstration(row, 0.01) for row in rows]
    assert all(t for t, h in zip(tenth, hundredth, strict=True) if h)
    images = JIGSAW.rows(0, 200, "train")
    assert 60 < sum(prefix_rft.has_demonstration(row, 0.5) for row in images) < 140  # one prompt, many pictures


@pytest.mark.parametrize(
    "bad",
    [
        {"prefixed": -1}, {"prefixed": 0.5}, {"low": (0.5,)}, {"low": 0.5}, {"high": (0.95, 1.2)}, {"low": (0.99, 0.05)}, {"over": 0},
        {"keep": 0.0}, {"keep": 1.5}, {"share": -0.1}, {"sft": -1.0}, {"gamma": 0.0}, {"advantage": "grpo"}, {"by": "top"},
        {"pool": "all"}, {"clip": "none"}, {"prefixed": "all", "advantage": "dr_grpo_prefix"}, {"whole": True, "prefixed": 0},
        {"prefix_weight": math.nan}, {"entropy_weights": True},
    ],
)  # fmt: skip
def test_a_blend_out_of_range_is_refused(bad):
    with pytest.raises(UserError):
        Blend(**bad)


def test_what_cannot_be_trained_is_told(small_preset, tmp_path):
    with pytest.raises(UserError, match="leave none free"):
        trainer(small_preset, tmp_path, Blend(prefixed=4))
    with pytest.raises(UserError, match="vLLM"):
        train(dataclasses.replace(small_preset, vllm=True), tmp_path)
    made = trainer(small_preset, tmp_path, oracle=prefix_rft.Oracle("odd", lambda row: "zwölf = 12"))
    with pytest.raises(UserError, match="zwölf"):
        rollouts(made)


def test_bench_measures_both(small_preset, monkeypatch):
    monkeypatch.setattr(rft, "hit", tokens_in_answer)
    prefixed, plain = bench.compare_prefix(small_preset, steps=2, warm_up=1)
    assert len(prefixed.seconds) == len(plain.seconds) == 2 and min(prefixed.seconds + plain.seconds) > 0
    assert prefixed.trainer._metrics["train"]["prefix/share"] and prefixed.losses != plain.losses
