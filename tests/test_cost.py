"""The cost card: its counts against tensors that PyTorch keeps, its predictions against measured trainings, its refusals."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from shapes import make_base, nothing_asked
from transformers import BitsAndBytesConfig, Qwen2_5_VLForConditionalGeneration

from rftkit import arms, cost, hub, policy, runs
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
    assert rft.refusal(16e9) is None  # a T4
    assert cost.changed(QLORA, rft.smaller(12e9).preset) == ["micro_batch"]
    assert cost.changed(QLORA, rft.smaller(9e9).preset) == ["eval_batch", "checkpointing"]


def test_where_nothing_fits_another_tier_is_named():
    assert "use the preset 'qlora' or a larger machine." in cost.card(FULL, "rft").refusal(24e9)
    assert "use the preset 'tiny' or a larger machine." in cost.card(FULL, "rft").refusal(3e9)
    assert "use the preset 'tiny' or a larger machine." in cost.card(QLORA, "sft").refusal(3e9)


def test_vllm_takes_its_share_of_the_card():
    found = cost.card(FULL, "rft")
    alone = cost.card(dataclasses.replace(FULL, vllm=False, rft_prompts=1), "sft")
    assert found.needed(100e9) - found.needed(0) == pytest.approx(cost.vllm_share() * 100e9)
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


def test_the_qlora_tier_stays_below_its_limits():
    """The issue's limits for measured peaks, held by the predicted ones: 9 GB for SFT, 14 GB for RFT with G = 8 and 512 new tokens."""
    assert (QLORA.rft_group, QLORA.max_completion) == (8, 512)
    assert cost.card(QLORA, "sft").peak < 9e9 and cost.card(QLORA, "rft").peak < 14e9
    assert cost.card(QLORA, "sft", "rft", "rft_kl", "lora_sft").refusal(16e9) is None
    slower = dataclasses.replace(QLORA, micro_batch=8, checkpointing=True)  # the other way to fit
    for device in cost.DEVICES:
        kept, again = (cost.seconds_of(cost.work_of(p, "rft"), device).update for p in (QLORA, slower))
        assert again > 1.4 * kept


def test_an_arm_trains_what_its_function_trains():
    assert cost.work_of(QLORA, "sft").steps == 400 and cost.work_of(QLORA, "lora_sft").steps == 800
    assert cost.work_of(FULL, "lora_sft").preset.lora_rank == 8
    assert cost.work_of(FULL, "rft_kl").beta == 0.04 and cost.work_of(QLORA, "rft").beta == 0
    assert cost.work_of(QLORA, "rft").evaluations == 21
    assert cost.work_of(QLORA, "sft_rollouts").answer == 512 > cost.work_of(QLORA, "sft").answer
    for preset in (get_preset("tiny"), QLORA, FULL):
        assert {cost.work_of(preset, name).algorithm for name in arms.arms_of(preset.name)} == {"sft", "rft"}
    with pytest.raises(UserError, match="There is no arm 'points_rft_160'"):  # an update of tiny's plan
        cost.work_of(QLORA, "points_rft_160")


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
    assert found["lmms-lab/DocVQA"] is None and found["lmms-lab/MMMU"] == pytest.approx(341e6)  # all of its 900
    assert found["lmms-lab/POPE"] == pytest.approx(255e6 * 1000 / 9000)  # ten row groups of a hundred
    assert found["justram/COCO2014-Images"] == pytest.approx(12 * 461e6 * hub.PHOTOGRAPHS / 113_287)
    more = cost.downloads(get_preset("qlora", eval_n=1200))
    assert more["lmms-lab/POPE"] == pytest.approx(2 * found["lmms-lab/POPE"]) and all(
        size is None or more[name] >= size for name, size in found.items()
    )
    assert cost.downloads(get_preset("tiny")) == {}


def test_bad_input_is_told():
    with pytest.raises(UserError, match="The shape of nobody/nothing is not known"):
        cost.card(get_preset("qlora", model="nobody/nothing"), "sft").peak  # noqa: B018
    with pytest.raises(UserError, match="There is no arm 'sfft'"):
        cost.card(QLORA, "sfft")


# --- in a notebook ------------------------------------------------------------------------------------------------------------------


def test_a_notice_says_memory_minutes_and_downloads(monkeypatch):
    tiny = get_preset("tiny")
    memory, training, downloads = cost.notice(tiny, "sft", "rft").splitlines()
    assert f"about {cost.card(tiny, 'sft', 'rft').needed(0) / 1e9:.1f} GB" in memory and downloads == "Downloads: none."
    (seconds,) = {r.evals()[-1]["seconds"] for r in runs.load_recorded("rft") if r.seed == 0}
    found = cost.recorded_seconds(cost.work_of(tiny, "rft"))
    assert 0.5 < found / seconds < 2 and f"rft about {found / 60:.1f} minutes" in training
    half = cost.recorded_seconds(cost.work_of(dataclasses.replace(tiny, rft_steps=110), "rft"))
    assert half == pytest.approx(found / 2)
    assert "points_rft_320 about" in cost.notice(tiny, "points_sft", "points_rft_320")
    assert cost.notice(tiny).splitlines()[1:] == ["Downloads: none."]  # nothing is trained


def test_a_notice_refuses_with_a_suggestion(monkeypatch):
    monkeypatch.setattr(cost, "memory_here", lambda preset: 0.75e9)
    with pytest.raises(UserError, match=r"^The preset tiny needs about [^\n]+: set micro_batch=[^\n]+\.$"):
        cost.notice(get_preset("tiny"), "rft")
    assert "Training: sft about" in cost.notice(get_preset("tiny"), "sft")  # the arms that are live decide
    with pytest.raises(UserError, match="There is no arm 'sfft'"):
        cost.notice(get_preset("tiny"), "sfft")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_notice_of_a_gpu_tier_without_a_gpu_is_one_sentence():
    with pytest.raises(UserError, match=r"^This preset needs a CUDA GPU and none was found[^\n]+\.$"):
        cost.notice(QLORA, "sft")


@pytest.mark.parametrize(("name", "says"), [("Tesla T4", "minutes on this T4"), ("Quadro", "not predicted for Quadro")])
def test_a_notice_on_a_gpu(name, says, monkeypatch):
    monkeypatch.setattr(cost, "memory_here", lambda preset: 16e9)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    said = cost.notice(QLORA, "sft", "rft")
    assert says in said and "GB and lmms-lab/DocVQA." in said
    if name == "Tesla T4":
        trained = sum(cost.seconds_in_all(cost.work_of(QLORA, arm), cost.DEVICES[0])[0] for arm in ("sft", "rft"))
        assert f"about {trained / 60:.0f} minutes" in said


def test_the_command_prints_the_card(capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent)
    assert main(["cost", "02", "--preset", "qlora", "--memory", "8"]) == 0
    said = capsys.readouterr().out
    assert "projections (NF4)" in said and "arms sft rft" in said and "not known" in said
    assert (
        said.splitlines()[-1].startswith("The preset qlora needs about")
        and "checkpointing=True" in said.splitlines()[-1]
    )
    assert main(["cost", "1"]) == 0
    said = capsys.readouterr().out
    assert (
        "Downloads: none." in said
        and "Measured: about 0.5 minutes on two free cores, up to twice that beside other work." in said
    )
    assert main(["cost", "77"]) == 2


def test_a_card_without_bfloat16_holds_the_tower_in_float32():
    """Also in a prediction made on another machine: no GPU is at hand here."""
    t4, l4 = (next(d for d in cost.DEVICES if d.name == name) for name in ("T4", "L4"))
    work = cost.card(get_preset("qlora"), "rft").works[0]
    towers = [cost.standing_bytes(d.runs(work))["vision tower"] for d in (t4, l4)]
    assert towers[0] == 2 * towers[1]
    full = dataclasses.replace(work, preset=dataclasses.replace(work.preset, dtype="bfloat16"))
    assert t4.runs(full) == full  # what is asked for is not changed
