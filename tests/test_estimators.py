import dataclasses
from functools import partial

import pytest
import torch
from trl import GRPOConfig, RLOOConfig, RLOOTrainer, SFTConfig

from rftkit import estimators, recording, rft
from rftkit.config import UserError
from rftkit.policy import Policy, generate, load_policy, load_trained
from rftkit.sft import Data, Lazy, sft_row, train_sft
from rftkit.tasks import JIGSAW, PROBES, Row


def words(completions, **_):
    """A dense reward: an untrained model gets nothing right, and without spread there is no gradient."""
    return [len(set(c[0]["content"].split())) / 12 for c in completions]


def rows(n=16, task=JIGSAW):
    return recording.lazy_dataset(lambda i: rft.rft_row(task.row(0, i, "train")), n)


def trainer(preset, folder, how="grpo", beta=0.0, start=None, loss="dapo", **kwargs):
    policy = load_policy(preset)
    if start:
        load_trained(policy, start, trainable=True)
    made = estimators.variant(how, **kwargs)
    arguments = {**rft.grpo_arguments(preset), **made.arguments, "loss_type": loss}
    args = GRPOConfig(
        output_dir=str(folder), beta=beta, **arguments, **recording.trainer_arguments(preset, 1e-3, 3, 0, 100)
    )
    built = made.trainer(
        policy.model, reward_funcs=[words], args=args, train_dataset=rows(), processing_class=policy.processor
    )
    built.current_gradient_accumulation_steps = 1
    built.model.train()
    return built


def of_different_lengths(made):
    """Cut the rollouts, since an untrained model never ends one. Returns a list that will hold them."""
    generate, said = made._generate_shared, []

    def cut(*args):
        said.extend(ids[: 4 + i % 7] for i, ids in enumerate(generate(*args)[0]))
        return said, None

    made._generate_shared = cut
    return said


def one_step(made):
    inputs = made._prepare_inputs(next(iter(made.get_train_dataloader())))
    loss = made.compute_loss(made.model, dict(inputs))
    loss.backward()
    return inputs, loss.item(), {n: p.grad for n, p in made.model.named_parameters() if p.grad is not None}


# --- advantages ------------------------------------------------------------------------------------------------------------


def test_advantages_on_numbers():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    rloo = estimators.advantages(rewards, "rloo")
    torch.testing.assert_close(rloo[0], torch.tensor([1.0, -1 / 3, -1 / 3, -1 / 3]))
    torch.testing.assert_close(rloo, 4 / 3 * (rewards - rewards.mean(1, keepdim=True)))
    grpo = estimators.advantages(rewards, "grpo")
    torch.testing.assert_close(grpo[0], torch.tensor([1.5, -0.5, -0.5, -0.5]), atol=1e-3, rtol=0)
    assert not grpo[1].any() and not rloo[1].any()
    remax = estimators.advantages(rewards, "remax", torch.tensor([1.0, 0.0]))
    assert remax.tolist() == [[0, -1, -1, -1], [1, 1, 1, 1]]  # a group without spread still moves the policy
    with pytest.raises(UserError, match="greedy"):
        estimators.advantages(rewards, "remax")
    with pytest.raises(UserError, match="two rollouts"):
        estimators.advantages(rewards[:, :1], "rloo")


def test_grpo_is_trl_s_own(small_preset, tmp_path):
    made = trainer(small_preset, tmp_path)
    kept = []
    made._generate_and_score_completions = lambda inputs, f=made._generate_and_score_completions: (
        kept.append(f(inputs)) or kept[0]
    )
    one_step(made)
    told = estimators.advantages(made._rewards.view(4, 4), "grpo").flatten()
    torch.testing.assert_close(kept[0]["advantages"], told)


# --- RLOO is TRL's -----------------------------------------------------------------------------------------------------------


def test_rloo_equals_trl_s_trainer(small_preset, tmp_path):
    """The same rollouts and rewards: the same advantages, and the same gradient where the loss is summed over a rollout's tokens.

    TRL's RLOO sums log-probabilities over a rollout; the paper's code changes the advantages alone and keeps the mean over tokens.
    """
    ours = trainer(small_preset, tmp_path / "a", "rloo", loss="luspo")
    said = of_different_lengths(ours)
    inputs, _, gradients = one_step(ours)

    policy = load_policy(small_preset)
    del policy.model.model.get_image_features
    batch = small_preset.rft_prompts * small_preset.rft_group
    args = RLOOConfig(
        output_dir=str(tmp_path / "b"), beta=0.0, per_device_train_batch_size=batch, num_generations=small_preset.rft_group,
        max_completion_length=small_preset.max_completion, temperature=1.0, normalize_advantages=False,
        **recording.trainer_arguments(small_preset, 1e-3, 3, 0, 100),
    )  # fmt: skip
    theirs = RLOOTrainer(
        policy.model, reward_funcs=[words], args=args, train_dataset=rows(), processing_class=policy.processor
    )
    theirs._generate_single_turn = lambda *args: said
    theirs.current_gradient_accumulation_steps = 1
    theirs.model.train()
    with rft.without_tokens(theirs.model, ours.generation_config.suppress_tokens):  # as ours: they are never sampled
        plain, _, expected = one_step(theirs)

    def by_rollout(x):
        keys = [tuple(p + c) for p, c in zip(x["prompt_ids"].tolist(), x["completion_ids"].tolist(), strict=True)]
        return sorted(zip(keys, x["advantages"].tolist(), strict=True))

    assert inputs["advantages"].abs().sum() > 0.1
    for (row, a), (other, b) in zip(by_rollout(inputs), by_rollout(plain), strict=True):
        assert row == other and a == pytest.approx(b, abs=1e-6)
    assert gradients.keys() == expected.keys()
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-3
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-5, rtol=1e-3, msg=name)


# --- ReMax: the greedy reply's reward is the baseline --------------------------------------------------------------------------


def test_remax_measures_against_the_greedy_reply(small_preset, tmp_path):
    made = trainer(small_preset, tmp_path, "remax")
    kept = []
    made._generate_and_score_completions = lambda inputs, f=made._generate_and_score_completions: (
        kept.append((inputs, f(inputs))) or kept[0][1]
    )
    _, _, gradients = one_step(made)
    asked, output = kept[0]
    alone = Policy(made.model, made.processing_class, small_preset)
    prompts = [Row("jigsaw", x["prompt"][0]["content"], "", x["image"]) for x in asked[:: small_preset.rft_group]]
    texts = generate(alone, prompts)
    baseline = torch.tensor(words([[{"content": text}] for text in texts]))
    torch.testing.assert_close(made._greedy_rewards, baseline)
    expected = made._rewards.view(4, 4) - baseline[:, None]
    torch.testing.assert_close(output["advantages"].view(4, 4), expected)
    assert (
        made.generation_config.do_sample
        and len(set(made._rewards.tolist())) > 1
        and any(g.abs().max() > 0 for g in gradients.values())
    )


def test_remax_needs_its_own_generation(small_preset, tmp_path, monkeypatch):
    monkeypatch.setattr(estimators.EstimatorTrainer, "_generates_shared", False)
    with pytest.raises(UserError, match="ReMax"):
        trainer(small_preset, tmp_path, "remax")


# --- the loss: mean over tokens --------------------------------------------------------------------------------------------------


def test_the_loss_is_a_mean_over_the_update_s_tokens(small_preset, tmp_path):
    made = trainer(small_preset, tmp_path)
    of_different_lengths(made)
    inputs, loss, _ = one_step(made)
    mask = inputs["completion_mask"].bool()
    lengths = mask.sum(1)
    assert len(lengths.unique()) > 1
    by_token = -(inputs["advantages"] * lengths).sum() / mask.sum()  # the ratio is 1 in the first update on a batch
    by_rollout = -inputs["advantages"].mean()
    assert loss == pytest.approx(float(by_token), abs=1e-6) and abs(loss - float(by_rollout)) > 1e-5
    assert (made.epsilon_low, made.epsilon_high) == (0.2, 0.3)


# --- KL references -----------------------------------------------------------------------------------------------------------------


def moved(preset, folder, size=0.05, seed=0):
    """Weights that are not the preset's."""
    policy = load_policy(preset)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.model.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator))
    policy.model.save_pretrained(folder)
    return folder


def test_references_are_the_base_the_task_before_and_what_trl_takes(small_preset, tmp_path):
    original, start = (
        moved(small_preset, tmp_path / "original", seed=0),
        moved(small_preset, tmp_path / "start", seed=1),
    )
    weights = {}
    for name, kwargs in {
        "previous": {"reference": "previous", "original": original},
        "original": {"reference": "original", "original": original},
        "trl": {"reference": "original"},
    }.items():
        made = trainer(small_preset, tmp_path / name, beta=0.1, start=start, **kwargs)
        weights[name] = {k: v.clone() for k, v in made.ref_model.state_dict().items()}
        inputs, _, _ = one_step(made)
        ids, mask = (torch.cat([inputs[f"prompt_{k}"], inputs[f"completion_{k}"]], 1) for k in ("ids", "mask"))
        made._group = inputs["prompt_group"]
        fields = {k: inputs.get(k) for k in ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")}
        own = made._get_per_token_logps_and_entropies(
            made.model, ids, mask, inputs["completion_ids"].shape[1], **fields
        )[0]
        kl = ((inputs["ref_per_token_logps"] - own) * inputs["completion_mask"]).abs().sum().item()
        assert (kl < 1e-3) == (name == "previous"), name
    for name, folder in (("previous", start), ("original", original)):
        policy = load_policy(small_preset)
        load_trained(policy, folder)
        assert all(torch.equal(v, weights[name][k]) for k, v in policy.model.state_dict().items())
    assert all(torch.equal(v, weights["trl"][k]) for k, v in load_policy(small_preset).model.state_dict().items())


@pytest.mark.parametrize("reference", ["previous", "original"])
def test_references_of_adapters(small_preset, tmp_path, reference):
    """With adapters TRL keeps a copy of the one that training goes on from; the original is another, or none at all."""
    folders = []
    for seed in (0, 1):
        data = {"lora_rank": 4, "lr": 1e-2, "steps": 3, "home": tmp_path, "evaluate": nothing}
        record, _ = train_sft(small_preset, seed, **data)
        folders.append(recording.run_folder(record, tmp_path) / "final")
    made = trainer(small_preset, tmp_path / "a", beta=0.1, start=folders[1], reference=reference, original=folders[0])
    state = {n: p for n, p in made.model.named_parameters() if "lora_B" in n}
    same = [torch.equal(state[n.replace(".default.", ".ref.")], p) for n, p in state.items() if ".default." in n]
    assert same and all(same) == (reference == "previous") and any(same) == (reference == "previous")
    bare = trainer(small_preset, tmp_path / "b", beta=0.1, start=folders[1], reference=reference)
    assert ("ref" in bare.model.peft_config) == (reference == "previous")


def nothing(policy):
    return {"kind": "eval", "new_exact": 0.0, "new_hit": 0.0, "new_n": 1, "prior": {}, "prior_mean": 0.0}, []


# --- SFT held to its beginning -------------------------------------------------------------------------------------------------------


def anchored(preset, folder, strength, **overrides):
    policy = load_policy(preset)
    args = SFTConfig(
        output_dir=str(folder), per_device_train_batch_size=4, max_length=None, completion_only_loss=True,
        **recording.trainer_arguments(preset, 1e-3, 3, 0, 100) | overrides,
    )  # fmt: skip
    task = PROBES["color"]
    data = recording.lazy_dataset(lambda i: sft_row(task.row(0, i, "train")), 16)
    made = estimators.AnchoredTrainer(
        policy.model, args=args, train_dataset=data, processing_class=policy.processor, strength=strength
    )
    made.current_gradient_accumulation_steps = 1
    made.model.train()
    return made


def test_the_penalty_and_its_gradient(small_preset, tmp_path):
    """Loss: plus strength / 2 |w - w0|^2. Gradient: plus strength (w - w0)."""
    made, plain = (anchored(small_preset, tmp_path / str(s), s) for s in (3.0, 0.0))
    batch = next(iter(made.get_train_dataloader()))
    found = []
    for t in (made, plain):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            shifts = {}
            for n, p in t.model.named_parameters():
                if p.requires_grad:
                    shifts[n] = 0.01 * torch.randn(p.shape, generator=generator)
                    p.add_(shifts[n])
        loss = t.compute_loss(t.model, {k: v.clone() for k, v in batch.items()}, num_items_in_batch=torch.tensor(20))
        loss.backward()
        found.append((loss.item(), {n: p.grad.clone() for n, p in t.model.named_parameters() if p.grad is not None}))
    (loss, gradient), (base, without) = found
    assert loss - base == pytest.approx(1.5 * sum(float(s.square().sum()) for s in shifts.values()), rel=1e-3)
    for name, shift in shifts.items():
        torch.testing.assert_close(gradient[name] - without[name], 3 * shift, atol=1e-4, rtol=1e-2)
    made.current_gradient_accumulation_steps = 4  # once an update, not once a micro-batch
    assert made.compute_loss(
        made.model, {k: v.clone() for k, v in batch.items()}, num_items_in_batch=torch.tensor(20)
    ).item() - base == (pytest.approx((loss - base) / 4, rel=1e-3))
    made.model.eval()
    assert made.compute_loss(
        made.model, {k: v.clone() for k, v in batch.items()}, num_items_in_batch=torch.tensor(20)
    ).item() == pytest.approx(base, rel=1e-5)


def test_the_penalty_costs_no_second_pass(small_preset, tmp_path):
    """Asked for its outputs, TRL's trainer runs the model again, with all of its logits."""
    made, passes = anchored(small_preset, tmp_path, 3.0), []
    batch = next(iter(made.get_train_dataloader()))
    made.model.model.language_model.register_forward_hook(lambda *_: passes.append(1))
    made.training_step(made.model, batch, None)
    assert len(passes) == 1
    assert hasattr(made, "rehearse")


def test_a_strong_penalty_keeps_the_weights_where_they_began(small_preset, tmp_path):
    start = load_policy(small_preset).model.state_dict()
    data = Data("color", lambda policy, folder: Lazy(16, lambda i: PROBES["color"].row(0, i, "train")))
    ways, records = [], []
    for strength in (0.0, 100.0):
        record, policy = train_sft(
            dataclasses.replace(small_preset, sft_batch=4, micro_batch=2), 0, data=data, lr=1e-2, steps=6, evaluate=nothing, home=tmp_path,
            trainer=partial(estimators.AnchoredTrainer, strength=strength), settings={"l2": strength},
        )  # fmt: skip
        records.append(recording.run_folder(record, tmp_path))
        ways.append(sum(float((v - start[n]).square().sum()) for n, v in policy.model.state_dict().items()) ** 0.5)
    assert records[0] != records[1] and ways[1] < 0.7 * ways[0]
