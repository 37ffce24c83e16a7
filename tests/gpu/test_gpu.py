"""What only a GPU can tell: the same code on CUDA. Run with `pytest -m gpu` on a machine that has one."""

import dataclasses
import math

import pytest
import torch
from peft import get_peft_model

from rftkit import bench, drift, dynamics, rft, two_stage
from rftkit.policy import encode, load_policy
from rftkit.rft import train_rft
from rftkit.sft import lora_config, train_sft
from rftkit.tasks import JIGSAW, PROBES

pytestmark = pytest.mark.gpu


@pytest.fixture
def preset(small_preset):
    return dataclasses.replace(small_preset, device="cuda", dtype="auto", rft_prompts=2)


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("train", [train_sft, train_rft])
def test_two_updates_on_the_gpu(train, quantize, preset, tmp_path, monkeypatch):
    monkeypatch.setattr(
        rft, "hit", lambda completions, **_: [len(set(c[0]["content"].split())) / 12 for c in completions]
    )
    preset = dataclasses.replace(preset, quantize=quantize, lora_rank=4)
    record, policy = train(preset, 0, steps=2, eval_steps={2}, home=tmp_path)
    assert record.status == "done" and policy.model.device.type == "cuda"
    assert max(row["grad_norm"] for row in record.metrics if row["kind"] == "train") > 0
    assert torch.cuda.max_memory_allocated() > 0


def test_logits_agree_with_the_cpu(small_preset, preset):
    preset = dataclasses.replace(preset, dtype="float32")
    rows = JIGSAW.rows(0, 2)
    logits = []
    for p in (small_preset, preset):
        policy = load_policy(p)
        with torch.no_grad():
            logits.append(policy.model(**encode(policy, rows)).logits.cpu())
    torch.testing.assert_close(logits[0], logits[1], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_dynamics_are_measured_but_for_what_16_bit_cannot_show(preset, quantize):
    policy = load_policy(dataclasses.replace(preset, quantize=quantize, micro_batch=2))
    policy.model = get_peft_model(policy.model, lora_config(4))
    row = dynamics.measure(policy, JIGSAW.rows(0, 3, "train"), PROBES["color"].rows(0, 3, "validation"))
    assert all(math.isnan(value) for key in ("moved", "bound") for value in row[key].values())
    assert row["train_norm"] > 0 and abs(row["cosine"]["color"]) <= 1


def test_weights_are_compared_on_the_cpu(preset, tmp_path):
    preset = dataclasses.replace(preset, dtype="float32")
    base, tuned = load_policy(preset), load_policy(preset)
    with torch.no_grad():
        for name, p in tuned.model.named_parameters():
            if "up_proj" in name:
                p.add_(0.01 * torch.randn_like(p))
    found = drift.drift(base, tuned, JIGSAW.rows(0, 2), max_new_tokens=4)
    assert found["rotation"]["left"] > 0 and found["weights"]
    edits = two_stage.edits(two_stage.matrices(base), two_stage.matrices(tuned))
    assert set(edits) == set(two_stage.EDITS)


def test_per_example_gradients_on_the_gpu(preset):
    preset = dataclasses.replace(preset, dtype="float32")
    policy, rows = load_policy(preset), JIGSAW.rows(0, 3, "train")
    batched = dynamics.gradients(policy, rows)
    policy.model.eval()
    for i, single in enumerate(bench.gradients_in_a_loop(policy, rows)):
        for name, gradient in single.items():
            torch.testing.assert_close(
                batched[name][i], gradient, rtol=1e-2, atol=1e-3 * float(gradient.abs().max() + 1e-3)
            )
    sketch = dynamics.CountSketch(4096)
    small, exact = sketch.total(dynamics.gradients(policy, rows, keep=sketch)), dynamics.inner(batched, batched)
    lengths = exact.diagonal().sqrt()
    assert ((dynamics.inner(small, small) - exact).abs() < 5 * (2 / 4096) ** 0.5 * lengths[:, None] * lengths).all()
