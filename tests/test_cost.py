"""The cost card: its counts against tensors that PyTorch keeps, its predictions against measured trainings, its refusals."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model
from PIL import Image
from transformers import BitsAndBytesConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from rftkit import arms, cost, policy
from rftkit.__main__ import main
from rftkit.config import BUNDLED_DIR, UserError, get_preset
from rftkit.sft import lora_config
from rftkit.tasks import JIGSAW

QLORA, FULL = get_preset("qlora"), get_preset("full")


# --- counts -----------------------------------------------------------------------------------------------------------------


def test_parameters_are_those_of_the_published_models():
    """7B: its model.safetensors.index.json says total_size 16584333312 (in bfloat16). 3B: 668.7 M of tower on Qwen2.5-3B's 3.09 B."""
    small, large = cost.shape_of(QLORA), cost.shape_of(get_preset("full", model="Qwen/Qwen2.5-VL-7B-Instruct"))
    assert 2 * large.total == 16_584_333_312
    assert small.total == 3_754_622_976
    assert small.language == 3_085_938_688 and small.vision == 668_684_288
    assert small.linear == 36 * (2 * 2048 * 2048 + 2 * 256 * 2048 + 3 * 2048 * 11008)


def test_the_bundled_model_is_counted_from_its_folder():
    shape = cost.shape_of(get_preset("tiny"))
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(BUNDLED_DIR)
    assert shape.total == sum(p.numel() for p in model.parameters())
    assert shape.lora_width * 4 == sum(
        p.numel() for p in get_peft_model(model, lora_config(4)).parameters() if p.requires_grad
    )


def make_base(folder, dtype=torch.float32, device="cpu", **text):
    """A folder like the bundled base, with random weights and other sizes."""
    config = Qwen2_5_VLConfig.from_pretrained(BUNDLED_DIR)
    sizes = config.to_dict()
    half = text["hidden_size"] // text["num_attention_heads"] // 2
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [half // 4, 3 * half // 8, 3 * half // 8]}
    sizes["text_config"] |= {"rope_parameters": rope, **text}
    sizes["text_config"].pop("layer_types", None)
    sizes["vision_config"] |= {"out_hidden_size": text["hidden_size"]}
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**sizes)).to(dtype)
    model.generation_config.update(eos_token_id=2, pad_token_id=0, do_sample=False)
    model.save_pretrained(folder)
    policy.ImageTextProcessor.from_pretrained(BUNDLED_DIR).save_pretrained(folder)
    return str(folder)


MEDIUM = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}


def kept_bytes(model, rows, length, autocast):
    """Bytes of the tensors that a forward pass through the decoder keeps for the backward pass, weights and their copies aside."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    shapes = {tuple(p.shape) for p in model.parameters() if p.ndim == 2}
    kept = {}

    def keep(tensor):
        cast = tuple(tensor.shape) in shapes or tuple(tensor.T.shape) in shapes if tensor.ndim == 2 else False
        if tensor.untyped_storage().data_ptr() not in weights and not cast:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.randint(10, 1000, (rows, length))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0  # padding, as in any batch of different lengths
    inner = model.get_base_model().model if hasattr(model, "get_base_model") else model.model
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        inner(input_ids=ids, attention_mask=mask, use_cache=False)
    # where is_autocast_enabled is replaced below, leaving the context restores its answer: autocast for every later test
    torch.set_autocast_enabled("cpu", False)
    return sum(t.untyped_storage().nbytes() for t in kept.values())


CASES = {  # what the preset says, the weights' type
    "cpu, all weights": ({"device": "cpu", "quantize": "none", "lora_rank": 0}, torch.float32),
    "cpu, LoRA": ({"device": "cpu", "quantize": "none", "lora_rank": 4}, torch.float32),
    "gpu, all weights": ({"quantize": "none", "lora_rank": 0, "dtype": "float32"}, torch.float32),
    "gpu, LoRA": ({"quantize": "none", "lora_rank": 4}, torch.bfloat16),
    "gpu, NF4 and LoRA": ({"lora_rank": 4}, torch.bfloat16),
}


@pytest.mark.parametrize("case", CASES)
def test_a_layer_keeps_what_the_card_counts(case, tmp_path, monkeypatch):
    changes, dtype = CASES[case]
    autocast = "gpu" in case
    kept = {}
    for layers in (1, 2):
        folder = make_base(tmp_path / str(layers), dtype, num_hidden_layers=layers, **MEDIUM)
        preset = get_preset("qlora", model=folder, **changes)
        quantised = {}
        if preset.quantize == "nf4":
            # peft asks for CUDA's autocast alone, so that on a CPU it would cast and keep copies that it keeps on no GPU
            monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: True)
            quantised["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype,
                llm_int8_skip_modules=["model.visual", "lm_head"],
            )  # fmt: skip
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=dtype, **quantised)
        if preset.lora_rank:
            model = get_peft_model(model, lora_config(4))
            model.enable_input_require_grads()
        kept[layers] = kept_bytes(model.train(), 3, 40, autocast)
    counted = cost.layer_bytes(preset, cost.Batch(3, 40, 40, 0))
    assert kept[2] - kept[1] == pytest.approx(counted, rel=0.02)


def test_nf4_weighs_what_is_counted(tmp_path):
    folder = make_base(tmp_path, torch.bfloat16, num_hidden_layers=2, **MEDIUM)
    preset = get_preset("qlora", model=folder, device="cpu", dtype="bfloat16")
    model = policy.load_policy(preset).model
    bits = 0
    for name, weight in model.named_parameters():
        if "language_model.layers" in name and "proj.weight" in name:
            state = weight.quant_state
            bits += 8 * (weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes)
    shape = cost.shape_of(preset)
    assert bits / shape.linear == pytest.approx(cost.NF4_BITS, rel=0.002)
    rest = sum(p.nbytes for n, p in model.named_parameters() if not ("layers" in n and "proj.weight" in n))
    gpu = cost.weight_bytes(get_preset("qlora", model=folder))
    assert rest == gpu["embeddings, head, norms"] + gpu["vision tower"]


def test_tokens_are_about_those_of_the_processor():
    tiny = policy.load_policy(get_preset("tiny"))
    length = policy.encode(tiny, JIGSAW.rows(0, 1))["input_ids"].shape[1]
    assert length <= cost.prompt_tokens(tiny.preset) <= length + cost.TEMPLATE
    assert cost.visual_tokens(QLORA) == 144


# --- whole trainings, measured --------------------------------------------------------------------------------------------------

SIZES = {  # 33 M parameters with a vocabulary of 16,000
    "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 16_000,
}  # fmt: skip


def nothing_asked(model):
    row = {
        "kind": "eval",
        "new_exact": 0.0,
        "new_hit": 0.0,
        "new_unparseable": 1.0,
        "new_n": 1,
        "prior": {},
        "prior_mean": 0.0,
    }
    return row, []


def train(method, preset, folder, steps=2):
    from rftkit.rft import train_rft
    from rftkit.sft import train_sft

    return {"sft": train_sft, "rft": train_rft}[method](
        preset, 0, steps=steps, evaluate=nothing_asked, home=Path(folder)
    )


def measure(method, settings, folder):
    """In a process of its own: bytes that two updates took at most, beyond what the imports had taken."""
    import resource

    import rftkit.rft
    import rftkit.sft  # noqa: F401

    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    before = int(status["VmRSS"].split()[0])
    train(method, get_preset("tiny", **settings), folder)
    print(json.dumps(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)))


@pytest.fixture(scope="module")
def middling(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("middling"), **SIZES)


RUNS = {
    "sft": {"sft_batch": 16, "micro_batch": 8},
    "sft, checkpointing": {"sft_batch": 16, "micro_batch": 8, "checkpointing": True},
    "rft, KL": {"rft_prompts": 2, "rft_group": 8, "max_completion": 64, "rft_beta": 0.05},
    "rft, LoRA": {"rft_prompts": 2, "rft_group": 8, "max_completion": 64, "lora_rank": 8},
}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's account")
@pytest.mark.parametrize("run", RUNS)
def test_the_predicted_peak_is_near_the_measured_one(run, middling, tmp_path):
    method = run.split(",")[0]
    settings = {"model": middling, "train_n": 64, **RUNS[run]}
    command = f"import test_cost; test_cost.measure({method!r}, {settings!r}, {str(tmp_path)!r})"
    # every tensor from pages of its own: else glibc keeps what was freed, and up to a third more is measured than tensors take
    there = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", command],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        env=there,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    measured = json.loads(done.stdout.splitlines()[-1])
    found = cost.card(get_preset("tiny", **settings), method)
    predicted = max(total for (_, phase), total in found.totals.items() if phase != "evaluation")
    print(f"{run}: predicted {predicted / 1e6:.0f} MB, measured {measured / 1e6:.0f} MB, {predicted / measured:.2f}")
    assert 0.9 < predicted / measured < 1.25


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "changes"), [("sft", {}), ("rft", {"checkpointing": True}), ("rft", {"rft_group": 2, "rft_prompts": 2})]
)  # fmt: skip
def test_the_predicted_peak_is_near_the_gpus(method, changes, tmp_path, monkeypatch):
    """The true 3B shapes with random weights, pictures of COCO's size, NF4 and LoRA: torch's own account of its memory."""
    sizes = {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
    }
    folder = make_base(tmp_path / "base", torch.bfloat16, "cuda", vocab_size=151_936, **sizes)
    monkeypatch.setenv("RFTKIT_COCO", str(tmp_path / "coco"))
    (tmp_path / "coco").mkdir()
    for i in range(60):
        noise = np.random.default_rng(i).integers(0, 255, (480, 640, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "coco" / f"{i}.jpg")
    preset = get_preset("qlora", model=folder, train_n=64, **changes)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    train(method, preset, tmp_path)
    measured = torch.cuda.max_memory_allocated()
    found = cost.card(preset, method)
    predicted = max(total for (_, phase), total in found.totals.items() if phase != "evaluation")
    print(f"{method} {changes}: predicted {predicted / 1e9:.2f} GB, measured {measured / 1e9:.2f} GB")
    assert 0.7 < predicted / measured < 1.4


# --- what the card says ---------------------------------------------------------------------------------------------------------


def test_a_refusal_names_settings_that_fit():
    found = cost.card(QLORA, "sft", "rft")
    assert found.refusal(1e15) is None
    for total in (80e9, 40e9, 24e9, 16e9, 12e9, 9e9, 7.5e9):
        said = found.refusal(total)
        if found.needed(total) <= total:
            assert said is None
            continue
        assert said.count(". ") == 0 and said.endswith(".")
        smaller = found.smaller(total)
        assert smaller.needed(total) <= total
        names = cost.changed(QLORA, smaller.preset)
        assert names and all(f"{name}={getattr(smaller.preset, name)}" in said for name in names)
        for name in names:  # none of the changes is idle
            without = dataclasses.replace(smaller.preset, **{name: getattr(QLORA, name)})
            assert cost.card(without, "sft", "rft").needed(total) > total


def test_a_refusal_changes_what_costs_least_first():
    sft = cost.card(QLORA, "sft")
    assert "micro_batch=1" in sft.refusal(sft.needed(0) - 1e9) and "rft_group" not in sft.refusal(sft.needed(0) - 1e9)
    rft = cost.card(QLORA, "rft")
    assert cost.changed(QLORA, rft.smaller(16e9).preset) == ["checkpointing"]


def test_where_nothing_fits_another_tier_is_named():
    assert "use the preset 'qlora' or a larger machine." in cost.card(FULL, "rft").refusal(24e9)
    assert "use the preset 'tiny' or a larger machine." in cost.card(FULL, "rft").refusal(3e9)
    assert "use the preset 'tiny' or a larger machine." in cost.card(QLORA, "sft").refusal(3e9)


def test_vllm_takes_its_share_of_the_card():
    found = cost.card(FULL, "rft")
    alone = cost.card(dataclasses.replace(FULL, vllm=False, rft_prompts=1), "sft")
    assert found.needed(100e9) - found.needed(0) == pytest.approx(cost.VLLM_SHARE * 100e9)
    assert alone.needed(100e9) == alone.needed(0)


@pytest.mark.parametrize(
    ("changes", "less"),
    [
        ({"micro_batch": 1}, "sft update"), ({"checkpointing": True}, "rft update"), ({"rft_group": 4}, "rft update"),
        ({"max_completion": 256}, "rollouts"), ({"max_pixels": 168 * 168}, "sft update"), ({"rft_prompts": 2}, "rollouts"),
        ({"eval_batch": 4}, "evaluation"), ({"lora_rank": 8}, "AdamW step"),
    ],
)  # fmt: skip
def test_smaller_settings_need_less(changes, less):
    before, after = (cost.card(p, "sft", "rft").totals for p in (QLORA, dataclasses.replace(QLORA, **changes)))
    assert all(after[key] < before[key] for key in before if key[1] == less)


def test_an_arm_trains_what_its_function_trains():
    assert cost.work_of(QLORA, "sft").steps == 400 and cost.work_of(QLORA, "lora_sft").steps == 800
    assert cost.work_of(FULL, "lora_sft").preset.lora_rank == 8
    assert cost.work_of(FULL, "rft_kl").beta == 0.04 and cost.work_of(QLORA, "rft").beta == 0
    assert cost.work_of(QLORA, "rft").evaluations == 101
    assert cost.work_of(QLORA, "sft_rollouts").answer == 512 > cost.work_of(QLORA, "sft").answer
    assert {cost.work_of(QLORA, name).algorithm for name in arms.ARMS} == {"sft", "rft"}
    assert cost.work_of(QLORA, "points_rft_160").algorithm == "rft"


@pytest.mark.parametrize("published", cost.PUBLISHED, ids=lambda p: p.source)
def test_seconds_are_of_the_published_order(published):
    device = next(d for d in cost.DEVICES if d.name == published.device)
    s = cost.seconds_of(published.work, device)
    assert 1 / 3 < (s.update + s.rollouts) / published.seconds < 3


def test_faster_cards_take_less_time_and_speed_is_a_parameter():
    work = cost.work_of(QLORA, "rft")
    seconds = [cost.seconds_of(work, d) for d in cost.DEVICES if d.name != "L4"]
    assert all(a.update >= b.update and a.rollouts >= b.rollouts for a, b in zip(seconds, seconds[1:], strict=False))
    slow = cost.seconds_of(work, cost.DEVICES[0], cost.Speed(compute=0.1))
    assert slow.update > seconds[0].update


def test_downloads_are_counted_or_not_known():
    found = cost.downloads(QLORA)
    assert found["Qwen/Qwen2.5-VL-3B-Instruct"] == 2 * 3_754_622_976
    assert found["lmms-lab/DocVQA"] is None and found["lmms-lab/POPE"] == pytest.approx(255e6)
    assert cost.downloads(get_preset("tiny")) == {}


def test_bad_input_is_told():
    with pytest.raises(UserError, match="The shape of nobody/nothing is not known"):
        cost.card(get_preset("qlora", model="nobody/nothing"), "sft").peak  # noqa: B018
    with pytest.raises(UserError, match="There is no arm 'sfft'"):
        cost.card(QLORA, "sfft")


def test_the_command_prints_the_card(capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent)
    assert main(["cost", "02", "--preset", "qlora", "--memory", "16"]) == 0
    said = capsys.readouterr().out
    assert "projections (NF4)" in said and "arms sft rft" in said and "not known" in said
    assert (
        said.splitlines()[-1].startswith("The preset qlora needs about")
        and "checkpointing=True" in said.splitlines()[-1]
    )
    assert main(["cost", "1"]) == 0
    said = capsys.readouterr().out
    assert "Downloads: none." in said and "Measured: about 0.5 minutes." in said
    assert main(["cost", "77"]) == 2
