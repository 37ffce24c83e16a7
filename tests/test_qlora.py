"""The qlora tier's path on the CPU and a small model: NF4 language model, untouched tower, LoRA trained by both methods."""

import dataclasses

import bitsandbytes as bnb
import pytest
import torch

from rftkit import bench, dynamics, recording, rft
from rftkit.policy import load_policy
from rftkit.rft import train_rft
from rftkit.sft import train_sft
from rftkit.tasks import JIGSAW


@pytest.fixture
def preset(small_preset):
    return dataclasses.replace(small_preset, quantize="nf4", lora_rank=4, rft_prompts=2)


def distinct_words(completions, **_):
    return [len(set(c[0]["content"].split())) / 12 for c in completions]


def test_only_the_language_model_is_quantised(preset):
    model = load_policy(preset).model
    assert isinstance(model.model.language_model.layers[0].self_attn.q_proj, bnb.nn.Linear4bit)
    assert not any(isinstance(m, bnb.nn.Linear4bit) for m in model.model.visual.modules())
    assert type(model.lm_head) is torch.nn.Linear


@pytest.mark.parametrize("train", [train_sft, train_rft])
def test_an_adapter_trains_and_is_read_back(train, preset, tmp_path, monkeypatch):
    monkeypatch.setattr(
        rft, "hit", distinct_words
    )  # an untrained model earns nothing else, and learns nothing from nothing
    kwargs = {"beta": 0.1} if train is train_rft else {}
    record, trained = train(preset, 0, steps=2, eval_steps={2}, home=tmp_path, **kwargs)
    names = [n for n, p in trained.model.named_parameters() if p.requires_grad]
    assert names and all("lora_" in n and "visual" not in n for n in names)
    assert {p.dtype for p in trained.model.parameters() if p.requires_grad} == {torch.float32}
    assert any(p.abs().sum() > 0 for n, p in trained.model.named_parameters() if "lora_B" in n)
    _, again = train(preset, 0, steps=2, eval_steps={2}, home=tmp_path, **kwargs)
    weights = dict(trained.model.named_parameters())
    assert all(torch.allclose(p.float(), weights[n].float()) for n, p in again.model.named_parameters() if "lora_" in n)
    assert record.status == "done"


def test_an_adapter_goes_on_from_another_and_has_gradients(preset, tmp_path):
    rows = JIGSAW.rows(0, 3, "train")
    first, trained = train_sft(preset, 0, steps=2, lr=0.01, home=tmp_path)
    after = recording.Before(first, recording.run_folder(first, tmp_path) / "final")
    _, policy = train_sft(preset, 0, name="more", steps=1, lr=1e-12, home=tmp_path, after=after)
    before = {n: p.float() for n, p in trained.model.named_parameters() if "lora_" in n}
    now = {n: p.float() for n, p in policy.model.named_parameters() if p.requires_grad}
    assert set(now) == set(before) and all(torch.allclose(now[n], before[n], atol=1e-6) for n in now)
    batched = dynamics.gradients(policy, rows)
    assert all("lora_" in name for name in batched)
    policy.model.eval()
    for i, single in enumerate(bench.gradients_in_a_loop(policy, rows)):
        for name, gradient in single.items():
            torch.testing.assert_close(batched[name][i], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max() + 1e-3))
