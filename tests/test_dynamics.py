import dataclasses
import math

import numpy as np
import pytest
import torch
from peft import get_peft_model

from rftkit import bench, dynamics
from rftkit.config import UserError
from rftkit.policy import freeze_vision, load_policy
from rftkit.sft import lora_config
from rftkit.tasks import JIGSAW, PROBES

ROWS = [*JIGSAW.rows(3, 3, "train"), *PROBES["arithmetic"].rows(3, 2), *PROBES["color"].rows(3, 2)]


@pytest.fixture
def policy(small_preset):
    return load_policy(small_preset)


def slope(x, y):
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def rms(x):
    return float(x.double().square().mean().sqrt())


# --- gradients --------------------------------------------------------------------------------------------------------------


def test_batched_gradients_are_those_of_one_backward_each(policy):
    """Rows of two kinds and several lengths, so that padding, order and the tied embedding all matter."""
    batched = dynamics.gradients(policy, ROWS, batch_size=4)
    policy.model.eval()
    loop = bench.gradients_in_a_loop(policy, ROWS)
    assert set(batched) == set(loop[0]) and any("embed_tokens" in name for name in batched)
    for i, single in enumerate(loop):
        for name, gradient in single.items():
            torch.testing.assert_close(
                batched[name][i], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max() + 1)
            )


def test_what_the_last_mlp_leaves_out_is_read_by_nobody(policy):
    rows = JIGSAW.rows(3, 2, "train")
    policy.model.eval()
    with torch.no_grad():
        logits, targets = dynamics.answer_logits(policy, rows)
        whole = policy.model(**dynamics.collated(policy, rows), use_cache=False).logits
    torch.testing.assert_close(logits, whole[:, -1 - targets.shape[1] : -1])
    assert not policy.model.get_decoder().layers[-1].mlp._forward_pre_hooks


def test_a_subset_and_the_batch_size_change_nothing(policy):
    some = dynamics.gradients(policy, ROWS, where=r"layers\.1\..*down_proj", batch_size=1)
    whole = dynamics.gradients(policy, ROWS)
    assert list(some) == ["model.language_model.layers.1.mlp.down_proj.weight"]
    for name, block in some.items():
        torch.testing.assert_close(dynamics.dense(block), dynamics.dense(whole[name]), rtol=1e-3, atol=1e-5)


def test_an_adapter_s_gradients(policy):
    policy.model = get_peft_model(policy.model, lora_config(4))
    batched = dynamics.gradients(policy, ROWS[:3])
    assert batched and all("lora_" in name for name in batched)
    single = bench.gradients_in_a_loop(policy, ROWS[:3])
    for name, gradient in single[2].items():
        torch.testing.assert_close(batched[name][2], gradient, rtol=1e-3, atol=1e-5)


def test_what_cannot_be_done_is_said(policy):
    with pytest.raises(UserError, match="No trained parameter's name matches 'nothing'"):
        dynamics.gradients(policy, ROWS, where="nothing")
    with pytest.raises(UserError, match="no rows"):
        dynamics.gradients(policy, [])
    with pytest.raises(UserError, match="cannot share a batch"):
        dynamics.answer_logits(policy, ROWS)
    layer = torch.nn.Bilinear(2, 2, 2)
    with pytest.raises(UserError, match="Bilinear are not written"):
        dynamics.per_example_gradients(layer, lambda: torch.zeros(1))
    freeze_vision(policy.model, False)
    with pytest.raises(UserError, match=r"one row an example|are not written"):
        dynamics.gradients(policy, ROWS[:3])
    freeze_vision(policy.model, True)
    with pytest.raises(UserError, match="no optimizer 'adam'"):
        dynamics.one_step(policy, ROWS[:1], ROWS[:1], 0.1, optimizer="adam")
    with pytest.raises(UserError, match="different parameters"):
        dynamics.inner(dynamics.gradients(policy, ROWS[:1], "q_proj"), dynamics.gradients(policy, ROWS[:1], "k_proj"))


def test_padding_adds_nothing_to_a_score(policy):
    """A short answer beside a long one scores as it does alone."""
    short, long = ROWS[0], dataclasses.replace(ROWS[1], answer="<think> sky left hill mid </think> " + ROWS[1].answer)
    together, lengths = dynamics.log_likelihoods(policy, [short, long])
    alone, length = dynamics.log_likelihoods(policy, [short])
    assert together[0] == pytest.approx(float(alone[0]), rel=1e-5) and lengths[0] == length[0] < lengths[1]
    assert dynamics.perplexity(policy, [short])[0] == pytest.approx(math.exp(-alone[0] / length[0]), rel=1e-4)
    assert 50 < dynamics.perplexity(policy, [short])[0] < 5000  # of a model that has learnt nothing, over 200 words


# --- the toy: a softmax of five logits ---------------------------------------------------------------------------------------


def test_five_logits_by_hand():
    """z = W x, so K_vu = (x_v . x_u) I and the change of log pi(v) is eta (x_v . x_u) A_v[y_v] . G_u."""
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(3, 5, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(5, 3, generator=generator))
    x, y = torch.randn(4, 3, generator=generator), torch.tensor([0, 2, 2, 4])
    logits = (x @ layer.weight.T).detach()
    pi = logits.softmax(-1)
    onehot = torch.eye(5)[y]
    got = dynamics.per_example_gradients(layer, lambda: dynamics.token_logps(layer(x)[:, None], y[:, None]).sum(-1))
    torch.testing.assert_close(got["weight"].dense(), (onehot - pi)[:, :, None] * x[:, None, :])
    a = torch.eye(5) - pi[:, None, :]  # (n, 5, 5): row i is the gradient of log pi_i by the logits
    g = onehot - pi
    torch.testing.assert_close(dynamics.spread(logits[:, None], y[:, None]), a.square().sum((1, 2)))
    torch.testing.assert_close(dynamics.residual(logits[:, None], y[:, None]), g.square().sum(1))
    kernel = x @ x.T
    by_hand = torch.einsum("vk,uk->vu", a[torch.arange(4), y], g) * kernel
    torch.testing.assert_close(dynamics.inner(got, got), by_hand.double(), rtol=1e-4, atol=1e-5)
    moved = torch.einsum("vjk,uk->vuj", a, g) * kernel[..., None]  # all five log-probabilities of v, per unit of eta
    bound = moved.square().sum(-1) / (a.square().sum((1, 2))[:, None] * g.square().sum(1)[None])
    assert (bound <= 5 * kernel.square() + 1e-6).all()  # |K|_F^2 = 5 (x_v . x_u)^2


def test_padding_counts_in_no_norm():
    logits = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(1))
    whole, padded = torch.tensor([[1, 2, 0]]), torch.tensor([[1, 2, -100]])
    for norm in (dynamics.spread, dynamics.residual):
        assert norm(logits, padded) == pytest.approx(float(norm(logits[:, :2], whole[:, :2])))
        assert norm(logits, padded) < norm(logits, whole)


# --- random projections ------------------------------------------------------------------------------------------------------


def test_a_sketch_keeps_inner_products_within_its_stated_error(policy):
    exact = dynamics.gradients(policy, ROWS)
    products = dynamics.inner(exact, exact)
    lengths = products.diagonal().sqrt()
    errors = {}
    for size in (256, 4096):
        off = []
        for seed in range(6):
            sketch = dynamics.CountSketch(size, seed)
            small = sketch.total(dynamics.gradients(policy, ROWS, keep=sketch))
            assert small["sketch"].shape == (len(ROWS), size)
            off.append((dynamics.inner(small, small) - products) / (lengths[:, None] * lengths))
        errors[size] = rms(torch.stack(off))
        assert errors[size] < math.sqrt(2 / size)
        assert abs(float(torch.stack(off).mean())) < 3 * math.sqrt(2 / size / 6)  # no bias
    assert errors[4096] < errors[256] / 2  # 1/sqrt(16) on average


def test_a_sketch_is_the_same_for_the_same_seed(policy):
    a, b, c = (dynamics.gradients(policy, ROWS[:2], "q_proj", dynamics.CountSketch(64, seed)) for seed in (1, 1, 2))
    name = next(iter(a))
    assert torch.equal(a[name], b[name]) and not torch.equal(a[name], c[name])


# --- one step -----------------------------------------------------------------------------------------------------------------


def test_first_order_prediction_and_its_quadratic_remainder(policy):
    before = {k: v.clone() for k, v in policy.model.state_dict().items()}
    products = dynamics.inner(*[dynamics.gradients(policy, ROWS)] * 2)
    unit = 0.1 / float(products.diagonal().max())  # a step that moves the steepest row by about 0.1 nats
    rates, errors = [unit * f for f in (1, 2, 4, 8)], []
    for lr in rates:
        measured = dynamics.one_step(policy, ROWS, ROWS, lr)
        predicted = dynamics.predicted(policy, ROWS, ROWS, lr)
        errors.append(rms(measured - predicted))
        if lr == unit:
            assert 1 - (measured - predicted).var() / measured.var() > 0.95
    assert slope(rates, errors) == pytest.approx(2, abs=0.2)
    assert all(torch.equal(before[k], v) for k, v in policy.model.state_dict().items())  # the weights were put back


def test_the_symmetry_theorem_holds_for_sgd_and_fails_for_adam_and_one_sided_means(policy):
    products = dynamics.inner(*[dynamics.gradients(policy, ROWS)] * 2)
    unit = 0.1 / float(products.diagonal().max())
    rates = [unit * f for f in (1, 2, 4, 8)]
    changes = [dynamics.one_step(policy, ROWS, ROWS, lr) for lr in rates]
    assert slope(rates, [dynamics.asymmetry(c) for c in changes]) == pytest.approx(2, abs=0.2)
    off = ~torch.eye(len(ROWS), dtype=torch.bool)

    def relative(c):
        return dynamics.asymmetry(c) / rms(c[off])

    assert relative(changes[0]) < 0.1
    mean = dynamics.one_step(policy, ROWS, ROWS, 8 * unit, mean_loss=True)
    assert relative(mean) > 0.2
    small = [1e-5, 2e-5, 4e-5]
    adam = [dynamics.one_step(policy, ROWS, ROWS, lr, "adamw") for lr in small]
    assert slope(small, [dynamics.asymmetry(c) for c in adam]) == pytest.approx(
        1, abs=0.3
    )  # first order: no smaller step helps
    assert relative(adam[0]) > 2 * relative(changes[0])


# --- magnitude and direction --------------------------------------------------------------------------------------------------


def test_a_row_without_a_gradient_does_no_harm(policy):
    """A row that the policy says with certainty: its step would be endless."""
    with torch.no_grad():
        policy.model.lm_head.weight.mul_(0)
        policy.model.model.language_model.norm.weight.mul_(0)
    kernel = dynamics.kernel_bound(policy, ROWS[:1], ROWS[3:])
    assert torch.isfinite(kernel.moved).all()


def test_the_bound_does_not_depend_on_how_small_the_step_is(policy):
    a = dynamics.kernel_bound(policy, ROWS[:2], ROWS[3:], gain=0.02)
    b = dynamics.kernel_bound(policy, ROWS[:2], ROWS[3:], gain=0.05)
    assert a.bound.shape == (2, len(ROWS) - 3) and (a.bound > 0).all()
    torch.testing.assert_close(a.bound, b.bound, rtol=0.1, atol=0)
    assert torch.equal(a.spread, b.spread) and torch.equal(a.residual, b.residual)


def test_cosine_of_means_is_that_of_the_mean_gradients(policy):
    blocks = dynamics.gradients(policy, ROWS)
    flat = torch.cat([dynamics.dense(b).flatten(1) for b in blocks.values()], 1)
    expected = torch.cosine_similarity(flat[:3].mean(0), flat[5:].mean(0), 0)
    assert dynamics.cosine_of_means(dynamics.inner(blocks, blocks), range(3), [5, 6]) == pytest.approx(
        float(expected), abs=1e-5
    )


def test_a_measurement_does_not_depend_on_how_many_examples_fit(small_preset):
    """LoRA's gradients are kept as they are in place of what they are made of, a micro-batch at a time."""
    rows = []
    for micro in (0, 2):
        torch.manual_seed(0)
        loaded = load_policy(dataclasses.replace(small_preset, micro_batch=micro))
        loaded.model = get_peft_model(loaded.model, lora_config(4))
        for name, p in loaded.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.1)
        rows.append(dynamics.measure(loaded, ROWS[:3], ROWS[3:]))
    for key in ("perplexity", "train_norm", "prior_norm", "mean_norm", "residual", "spread"):
        assert rows[0][key] == pytest.approx(rows[1][key], rel=1e-4)
    assert rows[0]["cosine"] == pytest.approx(rows[1]["cosine"], abs=1e-4)
    assert dynamics.at_once(dataclasses.replace(small_preset, micro_batch=8, checkpointing=True)) == 1


def test_a_measurement_is_a_row_for_the_record(policy):
    row = dynamics.measure(policy, ROWS[:3], ROWS[3:])
    assert row["kind"] == "dynamics" and set(row["bound"]) == set(row["moved"]) == set(row["cosine"]) == {
        "arithmetic",
        "color",
    }
    assert all(-1 <= c <= 1 for c in row["cosine"].values())
    numbers = (
        [v for v in row.values() if isinstance(v, float)] + list(row["bound"].values()) + list(row["moved"].values())
    )
    assert all(math.isfinite(v) and v > 0 for v in numbers) and row["mean_norm"] <= row["train_norm"]
