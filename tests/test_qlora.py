"""The qlora tier's path on the CPU and a small model: NF4 language model, untouched tower, LoRA trained by both methods."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora import bnb as peft_bnb
from shapes import nothing_asked
from transformers import BitsAndBytesConfig, Qwen2_5_VLForConditionalGeneration

from rftkit import bench, dynamics, export, hub, prefix_rft, recording, rft, runs
from rftkit.__main__ import main
from rftkit.config import UserError, get_preset
from rftkit.policy import LORA_TARGETS, encode, generate, load_policy
from rftkit.rft import train_rft
from rftkit.sft import lora_config, train_sft
from rftkit.tasks import JIGSAW


@pytest.fixture
def preset(small_preset):
    return dataclasses.replace(small_preset, quantize="nf4", lora_rank=4, rft_prompts=2)


def distinct_words(completions, **_):
    return [len(set(c[0]["content"].split())) / 12 for c in completions]


# --- the traps: each looks at the types of modules ------------------------------------------------------------------------------------


def kinds(module):
    return {type(m) for m in module.modules()}


def test_only_the_language_model_is_quantised(preset):
    model = load_policy(preset).model
    projections = [m for n, m in model.named_modules() if re.fullmatch(LORA_TARGETS, n)]
    assert len(projections) == 7 * 2 and {type(m) for m in projections} == {bnb.nn.Linear4bit}
    assert type(model.model.visual.blocks[0].attn.qkv) is torch.nn.Linear and bnb.nn.Linear4bit not in kinds(
        model.model.visual
    )
    assert type(model.lm_head) is torch.nn.Linear
    assert model.lm_head.weight is model.get_input_embeddings().weight  # tied, and not quantised by the other end
    for module in projections:
        state = module.weight.quant_state
        assert state.quant_type == "nf4" and state.nested and module.compute_dtype is torch.float32
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("left_out", "tower", "head"),
    [(None, True, False), (["visual", "lm_head"], True, False), (["model.visual"], False, True)],
)
def test_what_one_would_write_first_quantises_the_wrong_modules(preset, left_out, tower, head):
    """transformers matches names from their start: why `load_policy` names both in full."""
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=left_out)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(preset.model, quantization_config=config)
    assert (bnb.nn.Linear4bit in kinds(model.model.visual)) is tower
    assert isinstance(model.lm_head, bnb.nn.Linear4bit) is head


def test_adapters_sit_on_the_language_model_alone(preset):
    """A list of names alone would reach the tower's MLPs, which bear the same ones."""
    model = get_peft_model(load_policy(preset).model, lora_config(4))
    adapted = [n for n, m in model.named_modules() if isinstance(m, LoraLayer)]
    assert len(adapted) == 7 * 2 and all("language_model.layers" in n for n in adapted)
    assert {type(m) for m in model.modules() if isinstance(m, LoraLayer)} == {peft_bnb.Linear4bit}
    names = ["gate_proj", "up_proj", "down_proj", "q_proj", "k_proj", "v_proj", "o_proj"]
    naive = get_peft_model(load_policy(preset).model, LoraConfig(r=4, target_modules=names))
    assert any("visual" in n for n, m in naive.named_modules() if isinstance(m, LoraLayer))


def test_what_places_an_image_reaches_the_model(preset):
    """Without mm_token_type_ids transformers takes positions along one axis, and says nothing."""
    policy = load_policy(preset)
    inputs = encode(policy, JIGSAW.rows(0, 2))
    assert {"mm_token_type_ids", "image_grid_thw", "pixel_values"} <= inputs.keys()
    with torch.no_grad():
        whole = policy.model(**inputs).logits
        policy.model.model.rope_deltas = None
        flat = policy.model(**{k: v for k, v in inputs.items() if k != "mm_token_type_ids"}).logits
    assert (whole - flat).abs().max() > 1e-3


def test_checkpointing_leaves_gradients_to_adapters(preset, tmp_path):
    """Below an adapter nothing asks for a gradient, and recomputed layers would have none."""
    checked = dataclasses.replace(preset, checkpointing=True)
    record, policy = train_sft(checked, 0, steps=2, evaluate=nothing_asked, home=tmp_path)
    assert policy.model.get_base_model().is_gradient_checkpointing
    assert min(row["grad_norm"] for row in record.metrics if row["kind"] == "train") > 0


# --- the whole path ---------------------------------------------------------------------------------------------------------------


def train_prefix(preset, seed, **kwargs):
    practice = rft.Practice("distinct", JIGSAW, (distinct_words,))
    return prefix_rft.train_prefix_rft(preset, seed, practice=practice, **kwargs)


def train_dense(preset, seed, **kwargs):
    return train_rft(preset, seed, practice=rft.Practice("distinct", JIGSAW, (distinct_words,)), **kwargs)


METHODS = {"sft": train_sft, "rft": train_dense, "prefix_rft": train_prefix}


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_adapter_ends_as_one_left_alone(method, preset, tmp_path):
    """In NF4, in pieces, after both a checkpoint and an evaluation."""
    preset, calls = dataclasses.replace(preset, micro_batch=2), []

    def once(policy):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return nothing_asked(policy)

    def train(home, evaluate):
        return METHODS[method](
            preset, 0, lr=1e-2, steps=4, eval_steps={3, 4}, save_every=2, evaluate=evaluate, home=tmp_path / home
        )

    whole, policy = train("whole", nothing_asked)
    with pytest.raises(KeyboardInterrupt):
        train("cut", once)
    again, resumed = train("cut", nothing_asked)
    timed = ("seconds", "step_time")
    mine, theirs = ([{k: v for k, v in row.items() if k not in timed} for row in r.metrics] for r in (again, whole))
    assert mine == theirs and max(row.get("grad_norm", 0) for row in theirs) > 0
    ends = [{n: p for n, p in made.model.named_parameters() if "lora_" in n} for made in (policy, resumed)]
    assert all(torch.equal(ends[0][n], ends[1][n]) for n in ends[0]) and ends[0]
    assert any(p.abs().max() > 0 for n, p in ends[0].items() if "lora_B" in n)


@pytest.mark.parametrize("method", METHODS)
def test_a_merged_run_gives_the_same_replies(method, preset, tmp_path, capsys):
    """Base in NF4, adapter, merge into float32 weights, write, read: through the command, into a model that knows of neither."""
    record, trained = METHODS[method](preset, 0, lr=0.05, steps=3, evaluate=nothing_asked, home=tmp_path)
    run = recording.run_folder(record, tmp_path)
    assert main(["export", str(run), str(tmp_path / "plain")]) == 0
    assert capsys.readouterr().out.endswith(f"Written to {tmp_path / 'plain'}.\n")
    plain = load_policy(dataclasses.replace(preset, model=str(tmp_path / "plain"), quantize="none", lora_rank=0))
    assert (
        not kinds(plain.model) & {bnb.nn.Linear4bit, peft_bnb.Linear4bit}
        and not (tmp_path / "plain/adapter_config.json").exists()
    )
    rows = [*JIGSAW.rows(0, 4), *JIGSAW.rows(5, 2)]
    before = generate(load_policy(preset), rows)
    assert generate(plain, rows) == generate(trained, rows) != before
    inputs = encode(plain, rows)
    with torch.no_grad():
        torch.testing.assert_close(plain.model(**inputs).logits, trained.model(**inputs).logits, atol=1e-3, rtol=1e-3)
    assert (
        json.loads((tmp_path / "plain/processor_config.json").read_text())["processor_class"] == "Qwen2_5_VLProcessor"
    )


def test_what_cannot_be_exported_is_one_sentence(preset, tmp_path, capsys):
    assert main(["export", str(tmp_path), str(tmp_path / "out")]) == 2
    record, _ = train_sft(preset, 0, steps=1, evaluate=nothing_asked, home=tmp_path)
    run = recording.run_folder(record, tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("")
    assert main(["export", str(run), str(tmp_path / "full")]) == 2
    assert "is not empty: name a new folder." in capsys.readouterr().err
    runs.save_record(dataclasses.replace(record, status="running"), run / "record.json")
    assert main(["export", str(run), str(tmp_path / "out")]) == 2
    assert re.search(r"rftkit: The run in [^\n]+ is not finished[^\n]+\.\n$", capsys.readouterr().err)


def test_the_evaluator_is_asked_for_our_probes():
    command = shlex.split(export.evaluator_command(get_preset("qlora"), Path("out/plain")))
    tasks = command[command.index("--tasks") + 1].split(",")
    assert len(tasks) == len(hub.probes(get_preset("qlora"))) + 1 and "docvqa_val" in tasks
    assert f"pretrained=out/plain,max_pixels={336 * 336}" in command
    with pytest.raises(UserError, match="drawn by rftkit itself"):
        export.evaluator_command(get_preset("tiny"), Path("out"))


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
            torch.testing.assert_close(
                batched[name][i], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max() + 1e-3)
            )
