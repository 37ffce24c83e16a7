import dataclasses

import pytest
import torch
from trl import GRPOConfig
from trl.trainer.utils import RepeatSampler

from rftkit import bench, chains, jigsaw, points, recording, rft, runs
from rftkit.config import UserError
from rftkit.policy import load_policy
from rftkit.tasks import JIGSAW


def test_a_kl_term_after_another_run_wants_to_know_its_reference(small_preset, tmp_path):
    before = recording.Before(runs.RunRecord("sft-s0", "sft", "tiny", 0, {}), tmp_path)
    with pytest.raises(UserError, match=r"set beta=0\.0 or choose the reference"):
        rft.train_rft(dataclasses.replace(small_preset, rft_beta=0.04), 0, after=before, home=tmp_path)


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_s_order_is_found_by_its_number(shuffle):
    """The orders are those of TRL's sampler, and one that begins in the third epoch begins with the third order."""
    ours, epoch = [], 0
    like = RepeatSampler(range(7), 2, 3, 2, shuffle, seed=5)
    sampler = rft.EpochSampler(like, lambda: epoch)
    for epoch in range(3):  # noqa: B007  the sampler reads it
        ours.append(list(sampler))
    assert ours == [list(like) for _ in range(3)] and (ours[0] != ours[1]) == shuffle
    assert list(rft.EpochSampler(RepeatSampler(range(7), 2, 3, 2, shuffle, seed=5), lambda: 2)) == ours[2]


def trainer(cls, preset, folder, beta=0.0, task=JIGSAW):
    policy = load_policy(preset)
    if cls is bench.PlainTrainer:
        del policy.model.model.get_image_features
    data = recording.lazy_dataset(lambda i: rft.rft_row(task.row(0, i, "train")), 64)
    args = GRPOConfig(
        output_dir=str(folder),
        beta=beta,
        **rft.grpo_arguments(preset),
        **recording.trainer_arguments(preset, 1e-3, 3, 0, 100),
    )
    made = cls(
        policy.model, reward_funcs=[tokens_in_answer], args=args, train_dataset=data, processing_class=policy.processor
    )  # fmt: skip
    made.current_gradient_accumulation_steps = 1
    made.model.train()
    return made


def tokens_in_answer(completions, **_):
    """A dense reward: an untrained model never solves a puzzle, and without spread there is no loss to compare."""
    return [len(set(c[0]["content"].split())) / 12 for c in completions]


def one_step(made):
    """The batch, the loss, and the gradient of every parameter, of one update."""
    batch = next(iter(made.get_train_dataloader()))
    inputs = made._prepare_inputs(batch)
    loss = made.compute_loss(made.model, dict(inputs))
    loss.backward()
    return inputs, loss.item(), {n: p.grad for n, p in made.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("beta", "reuse", "task"),
    [
        (0.0, 1, JIGSAW), (0.1, 1, JIGSAW), (0.1, 2, JIGSAW), (0.1, 1, points.task(points.TINY)), (0.0, 1, chains.task()),
    ],
)  # fmt: skip
def test_one_update_equals_plain_trl(small_preset, tmp_path, beta, reuse, task):
    """Same rollouts, rewards, advantages, loss and gradients as TRL's own trainer, whose every rollout reads its own prompt."""
    preset = dataclasses.replace(small_preset, rft_reuse=reuse)
    kit, loss, gradients = one_step(trainer(rft.RFTTrainer, preset, tmp_path, beta, task))
    plain, plain_loss, plain_gradients = one_step(trainer(bench.PlainTrainer, preset, tmp_path, beta, task))
    assert kit["advantages"].abs().sum() > 0
    rows, plain_rows = (sorted(map(tuple, x["completion_ids"].tolist())) for x in (kit, plain))
    assert rows == plain_rows
    assert loss == pytest.approx(plain_loss, abs=1e-5)
    assert gradients.keys() == plain_gradients.keys() and not any("visual" in n for n in gradients)
    for name, gradient in plain_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-5, rtol=1e-3, msg=name)


def test_text_prompts_of_different_lengths_are_read_where_they_stand(small_preset, tmp_path):
    """Padding on the left must not move a prompt away from what follows it: rollouts and loss, against a row read alone."""
    made = trainer(rft.RFTTrainer, small_preset, tmp_path, task=chains.task())
    generate, kept = made.model.generate, []

    def keep(**kwargs):
        kwargs["generation_config"].update(output_logits=True, return_dict_in_generate=True)
        kept.append(generate(**kwargs))
        return kept[0].sequences

    made.model.generate = keep
    inputs = made._prepare_inputs(next(iter(made.get_train_dataloader())))
    ids, mask = (torch.cat([inputs[f"prompt_{k}"], inputs[f"completion_{k}"]], 1) for k in ("ids", "mask"))
    made._group, width = inputs["prompt_group"], inputs["prompt_ids"].shape[1]
    assert len(inputs["prompt_mask"].sum(1).unique()) > 1
    alike = dict(zip(map(tuple, kept[0].sequences.tolist()), torch.stack(kept[0].logits, 1), strict=True))
    with torch.no_grad():
        logps = made._get_per_token_logps_and_entropies(made.model, ids, mask, ids.shape[1] - width)[0]
        for row, seen, said in zip(ids, mask.bool(), logps, strict=True):
            alone = made.model(input_ids=row[seen][None]).logits[0, :-1]
            alone[:, made.generation_config.suppress_tokens] = -torch.inf
            n = int(seen[width:].sum())
            expected = alone.log_softmax(-1).gather(-1, row[seen][1:, None])[-n:, 0]
            torch.testing.assert_close(said[:n], expected, atol=1e-4, rtol=1e-4)
            drawn = alike[tuple(row.tolist())][:n]
            drawn[:, made.generation_config.suppress_tokens] = -torch.inf  # these are the logits before that
            torch.testing.assert_close(drawn, alone[-n:], atol=1e-4, rtol=1e-4)


def test_the_loss_knows_the_policy_that_is_sampled(small_preset, tmp_path):
    """Tokens that the sampler suppresses have no share in it: over all that can be drawn first, probabilities sum to 1. In TRL's own
    loss they sum to less, so that the expected gradient of log pi is not 0."""
    for cls in (rft.RFTTrainer, bench.PlainTrainer):
        made = trainer(cls, small_preset, tmp_path)
        never = made.generation_config.suppress_tokens
        with torch.no_grad():  # as probable as it became in runs whose weights do not sum to 0
            made.model.get_output_embeddings().weight[never] = 3 * made.model.get_output_embeddings().weight.mean(0)
        inputs = made._prepare_inputs(next(iter(made.get_train_dataloader())))
        width, size = inputs["prompt_ids"].shape[1], made.model.config.get_text_config().vocab_size
        row = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)[:1, : width + 1]
        keys = ("pixel_values", "image_grid_thw")
        fields = {k: inputs[k] for k in keys} | {"num_images": [1]}
        fields["pixel_values"] = fields["pixel_values"][: int(fields["image_grid_thw"][0].prod())]
        fields["image_grid_thw"] = fields["image_grid_thw"][:1]
        fields["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"][:1, :width], (0, 1))
        made._group = torch.zeros(1, dtype=torch.long)

        def sums(read, made=made, row=row, fields=fields, size=size, never=never):
            total = 0.0
            for token in (t for t in range(size) if t not in never):
                row[0, -1] = token
                total += read(made.model, row, torch.ones_like(row), 1, **fields)[0].exp().item()
            return total

        with torch.no_grad():
            assert sums(made._get_per_token_logps_and_entropies) == pytest.approx(1, abs=1e-4)
            assert sums(made._log_probs) < 0.999  # as TRL has it
        assert made.model.get_output_embeddings().bias is None


def test_an_unfrozen_tower_gets_the_same_gradient(small_preset, tmp_path):
    preset = dataclasses.replace(small_preset, freeze_vision=False)
    _, _, gradients = one_step(trainer(rft.RFTTrainer, preset, tmp_path))
    _, _, plain = one_step(trainer(bench.PlainTrainer, preset, tmp_path))
    name = "model.visual.patch_embed.proj.weight"
    assert plain[name].abs().max() > 1e-4
    torch.testing.assert_close(gradients[name], plain[name], atol=1e-5, rtol=1e-3)


def test_each_prompt_is_read_once_a_group(small_preset, tmp_path, monkeypatch):
    made = trainer(rft.RFTTrainer, small_preset, tmp_path)
    rows = []
    read = rft._read_prompts
    monkeypatch.setattr(rft, "_read_prompts", lambda model, ids, *a: rows.append(len(ids)) or read(model, ids, *a))
    one_step(made)
    assert rows == [4, 4]  # four puzzles of four rollouts: once in generation, once in the loss


def test_rewards_are_the_parts_of_2506_23508():
    truth = (2, 1, 3, 4)
    texts = [
        "<think> a </think> <answer> 2 1 3 4 </answer>",
        "<think> a </think> <answer> 2 1 4 3 </answer>",
        "<answer> 2 1",
        "",
    ]
    completions = [[{"role": "assistant", "content": t}] for t in texts]
    columns = {"answer": [truth] * 4, "rows": [2] * 4, "cols": [2] * 4}
    parts = [f(completions, **columns) for f in (rft.hit, rft.exact, rft.template)]
    assert parts == [[1, 0.5, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]]
    totals = [jigsaw.reward_p1(t, truth, 2, 2).total for t in texts]
    assert [sum(p) for p in zip(*parts, strict=True)] == totals


def test_bench_compares_like_with_like(small_preset, monkeypatch):
    monkeypatch.setattr(rft, "hit", tokens_in_answer)
    kit, plain = bench.compare(small_preset, steps=2, warm_up=1)
    assert len(kit.seconds) == len(plain.seconds) == 2 and min(kit.seconds + plain.seconds) > 0
    assert len(set(kit.rewards)) > 1 and any(abs(x) > 1e-9 for x in kit.losses + kit.rewards)
    assert kit.rewards == pytest.approx(plain.rewards, abs=1e-6)
    assert kit.losses == pytest.approx(plain.losses, abs=1e-4)
