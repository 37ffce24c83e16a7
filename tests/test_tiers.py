"""What the GPU tiers rest on and a CPU can tell: dtypes by card, micro-batches of RFT, the rehearsal of the longest sample."""

import dataclasses

import pytest
import shapes
import torch
from transformers import Qwen2_5_VLConfig

from rftkit import arms, bench, chains, cost, hub, policy, prefix_rft, recording, rft, runs, sft
from rftkit.__main__ import main
from rftkit.config import UserError, get_preset
from rftkit.policy import compute_dtype, encode, load_policy
from rftkit.rft import train_rft
from rftkit.sft import train_sft
from rftkit.tasks import JIGSAW


def dense(completions, **_):
    """An untrained model never solves a puzzle, and without spread there is no gradient."""
    return [len(set(c[0]["content"].split())) / 12 for c in completions]


PRACTICE = rft.Practice("dense", JIGSAW, (dense,))


# --- dtypes ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def card(monkeypatch):
    """Makes torch say that there is a card of this compute capability."""

    def put(major, minor):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (major, minor))
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)  # as a T4 says, which emulates it

    return put


@pytest.mark.parametrize(("capability", "old"), [((7, 0), True), ((7, 5), True), ((8, 0), False), ((9, 0), False)])
def test_float16_before_ampere_and_bfloat16_since(card, capability, old):
    card(*capability)
    preset = get_preset("qlora")
    assert compute_dtype(preset) is (torch.float16 if old else torch.bfloat16)
    said = recording.trainer_arguments(preset, 1e-4, 10, 0, 5)
    assert (said["bf16"], said["fp16"]) == (not old, old)
    assert policy.wide_tower(preset) is old and not policy.wide_tower(get_preset("tiny"))
    assert cost.weight_bytes(preset)["vision tower"] == (4 if old else 2) * cost.shape_of(preset).vision
    assert compute_dtype(get_preset("full")) is torch.float32


def test_one_process_wants_one_gpu(monkeypatch):
    """TRL would say so only when the trainer is built, after all questions to the base."""
    monkeypatch.setattr(policy.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(policy.torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(policy.torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"2 GPUs are visible .* CUDA_VISIBLE_DEVICES=0"):
        load_policy(get_preset("full"))


@pytest.mark.parametrize("processes", [1, 2])
def test_beside_float16_the_tower_is_float32_and_autocast_leaves_it_alone(small_preset, monkeypatch, processes):
    """A tower that leaves float16's range answers what a float32 one does, with whole models in several processes too."""
    monkeypatch.setattr(policy, "processes", lambda: processes)
    monkeypatch.setattr(policy, "join", lambda preset: preset.device)
    rows = JIGSAW.rows(0, 2)
    features = {}
    for dtype in ("float32", "float16"):
        made = load_policy(dataclasses.replace(small_preset, dtype=dtype))
        model = made.model.model
        for block in model.visual.blocks:
            block.mlp.down_proj.weight.data *= 3e5
        inputs = {k: v for k, v in encode(made, rows).items() if k in ("pixel_values", "image_grid_thw")}
        with torch.autocast("cpu", torch.float16, enabled=dtype == "float16"):
            features[dtype] = torch.cat(model.get_image_features(**inputs).pooler_output)
        assert {p.dtype for p in model.visual.parameters()} == {torch.float32}
        assert model.language_model.layers[0].mlp.up_proj.weight.dtype == getattr(torch, dtype)
        inside = []
        model.visual.blocks[-1].register_forward_hook(lambda *args, inside=inside: inside.append(args[-1]))
        model.visual(inputs["pixel_values"].float(), grid_thw=inputs["image_grid_thw"])
        assert inside[0].abs().max() > torch.finfo(torch.float16).max
    assert features["float16"].dtype is torch.float16 and features["float16"].isfinite().all()
    torch.testing.assert_close(features["float16"].float(), features["float32"], rtol=1e-3, atol=2e-3)


# --- pixel budget --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [84, 168, 336])
def test_no_picture_has_more_tokens_than_the_budget(small_preset, side):
    preset = dataclasses.replace(small_preset, max_pixels=side * side)
    made = load_policy(preset)
    rows = [dataclasses.replace(r, image=r.image.resize((900, 700))) for r in JIGSAW.rows(0, 2)]
    grid = encode(made, rows)["image_grid_thw"]
    assert (0.6 * cost.visual_tokens(preset) <= grid.prod(-1) / 4).all() and (
        grid.prod(-1) / 4 <= cost.visual_tokens(preset)
    ).all()


# --- micro-batches of RFT ------------------------------------------------------------------------------------------------------


def one_update(preset, folder, monkeypatch):
    """Gradients of the first update, and how many prompts and rollouts each pass of its loss reads."""
    passes, read = [], rft._read_prompts

    def note(model, ids, *args):
        if torch.is_grad_enabled():
            passes.append(len(ids))
        return read(model, ids, *args)

    made = load_policy(preset)
    data = recording.lazy_dataset(lambda i: rft.rft_row(JIGSAW.row(0, i, "train")), 64)
    args = rft.GRPOConfig(
        output_dir=str(folder), beta=0.1, **rft.grpo_arguments(preset), **recording.trainer_arguments(preset, 1e-3, 3, 0, 100)
    )  # fmt: skip
    trainer = rft.RFTTrainer(
        made.model, reward_funcs=[dense], args=args, train_dataset=data, processing_class=made.processor
    )
    pieces = trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    with monkeypatch.context() as patch:
        patch.setattr(rft, "_read_prompts", note)
        sizes = []
        for _ in range(pieces):
            trainer.training_step(trainer.model, batch, None)
            sizes.append(len(trainer._buffered_inputs[0]["completion_ids"]))
    return {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}, passes, sizes


@pytest.mark.parametrize(("micro", "prompts"), [(8, 2), (4, 1), (2, 1), (1, 1)])
def test_an_update_in_pieces_is_the_whole_one_and_groups_stay_together(
    small_preset, tmp_path, monkeypatch, micro, prompts
):
    """Four groups of four rollouts. TRL's shuffle would put rollouts of up to four puzzles into a piece."""
    whole, passes, sizes = one_update(small_preset, tmp_path, monkeypatch)
    assert passes == [4] and sizes == [16]
    preset = dataclasses.replace(small_preset, micro_batch=micro)
    pieces, passes, sizes = one_update(preset, tmp_path, monkeypatch)
    assert passes == [prompts] * (16 // micro) and sizes == [micro] * (16 // micro)
    assert max(g.abs().max() for g in whole.values()) > 1e-3
    for name, gradient in whole.items():
        torch.testing.assert_close(pieces[name], gradient, atol=1e-5, rtol=1e-3, msg=name)
    (batch, *_) = cost.update_batches(cost.work_of(preset, "rft"))
    assert batch.rows == prompts  # what the cost model counts


# --- the rehearsal ---------------------------------------------------------------------------------------------------------------


def recorded(record):
    drop = ("seconds", "step_time")
    return [{k: v for k, v in row.items() if k not in drop} for row in record.metrics]


def noted(monkeypatch, trainer, measure):
    """What `measure` says of the inputs of every pass of a trainer's loss."""
    seen, plain = [], trainer.compute_loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        seen.append(measure(inputs))
        return plain(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(trainer, "compute_loss", compute_loss)
    return seen


@pytest.mark.parametrize("method", ["rft", "prefix_rft"])
def test_the_longest_rollouts_come_first_and_leave_no_trace(method, small_preset, tmp_path, monkeypatch):
    preset = dataclasses.replace(small_preset, micro_batch=8, max_completion=20)

    def train(home):
        if method == "rft":
            return train_rft(preset, 0, steps=3, lr=1e-2, practice=PRACTICE, evaluate=shapes.nothing_asked, home=home)
        return prefix_rft.train_prefix_rft(
            preset, 0, steps=3, lr=1e-2, practice=PRACTICE, evaluate=shapes.nothing_asked, home=home
        )

    seen = noted(monkeypatch, rft.RFTTrainer, lambda inputs: inputs["completion_mask"].sum(1).tolist())
    plain, trained = train(tmp_path / "plain")
    assert len(seen) == 6 and min(min(lengths) for lengths in seen) < 20
    seen.clear()
    monkeypatch.setattr(recording, "rehearses", lambda preset: True)
    rehearsed, other = train(tmp_path / "rehearsed")
    assert len(seen) == 7 and seen[2] == [20] * 8  # after the first update, once
    assert recorded(rehearsed) == recorded(plain) and max(row.get("grad_norm", 0) for row in recorded(plain)) > 0
    assert all(torch.equal(v, other.model.state_dict()[k]) for k, v in trained.model.state_dict().items())


def test_the_longest_demonstration_comes_first_and_leaves_no_trace(small_preset, tmp_path, monkeypatch):
    preset, sums = dataclasses.replace(small_preset, micro_batch=2), chains.task()
    data = sft.Data("sums", lambda policy, folder: sft.Lazy(64, lambda i: sums.row(0, i, "train")))
    seen = noted(monkeypatch, sft.LongestFirst, lambda inputs: inputs["attention_mask"].sum(1).tolist())
    plain, trained = train_sft(
        preset, 0, data=data, steps=3, lr=1e-2, evaluate=shapes.nothing_asked, home=tmp_path / "plain"
    )
    usual = list(seen)
    seen.clear()
    monkeypatch.setattr(recording, "rehearses", lambda preset: True)
    rehearsed, other = train_sft(
        preset, 0, data=data, steps=3, lr=1e-2, evaluate=shapes.nothing_asked, home=tmp_path / "rehearsed"
    )
    assert len(seen) == len(usual) + 1 and seen[:2] + seen[3:] == usual
    assert len(set(seen[2])) == 1 and seen[2][0] >= max(map(max, usual)) > min(map(min, usual))
    assert recorded(rehearsed) == recorded(plain)
    assert all(torch.equal(v, other.model.state_dict()[k]) for k, v in trained.model.state_dict().items())


def test_a_gpu_run_is_rehearsed_and_a_cpu_run_is_not():
    assert recording.rehearses(get_preset("qlora")) and not recording.rehearses(get_preset("tiny"))
    assert not recording.rehearses(get_preset("full"))  # vLLM takes a share of the memory, from the beginning


def test_memory_that_runs_out_is_one_sentence(small_preset, tmp_path, monkeypatch):
    def no_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(sft.LongestFirst, "compute_loss", no_memory)
    with pytest.raises(UserError, match=r"^The GPU's memory did not suffice at update 0: [^\n]+micro_batch[^\n]+\.$"):
        train_sft(small_preset, 0, steps=1, evaluate=shapes.nothing_asked, home=tmp_path)
    (path,) = tmp_path.glob("runs/*/record.json")
    assert (
        runs.load_record(path).status == "running"
    )  # on a larger card it goes on from there; other settings are another run


# --- evaluations ------------------------------------------------------------------------------------------------------------------


def test_the_tiny_tier_is_evaluated_when_it_always_was():
    assert arms._slow(220) == {*range(20, 220, 20), 220} and arms._slow(180) == {*range(20, 180, 20), 180}
    assert arms._fast(60) == {4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 50, 60}
    assert arms._fast(180) == {4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 50, 60, 80, 100, 150, 180}


@pytest.mark.parametrize("name", ["qlora", "full"])
def test_evaluations_take_less_than_a_third_of_the_time(name):
    """On every card: of RFT, and of what notebook 02 trains live. SFT alone is too short to be looked at for less."""
    preset = get_preset(name)
    for device in cost.DEVICES:
        for chosen in (("rft",), ("sft", "rft")):
            assert cost.card(preset, *chosen).evaluation_share(device) < 1 / 3, (device.name, chosen)
    for steps in (400, 800, 1200, 2000, 27_360):
        for schedule in (arms._slow(steps), arms._fast(steps)):
            assert steps in schedule and 8 <= len(schedule) <= 24 and min(schedule) >= 1


# --- what tests/gpu measures, on a small model and this CPU --------------------------------------------------------------------------


def test_the_random_model_has_the_true_architecture_in_every_part(tmp_path):
    """The builder of tests/gpu, by the same function: only sizes differ from the shapes that the cost model counts."""
    folder = shapes.random_3b(tmp_path, shapes.SMALL)
    config = Qwen2_5_VLConfig.from_pretrained(folder)
    true = cost.HUB_SHAPES["Qwen/Qwen2.5-VL-3B-Instruct"]()
    for part, changes in shapes.SMALL.items():
        ours, theirs = (getattr(c, part).to_dict() for c in (config, true))
        same = ours.keys() & theirs.keys() - {*changes, "rope_parameters", "layer_types", "dtype", "_name_or_path"}
        assert {k: ours[k] for k in same} == {k: theirs[k] for k in same}
    assert config.tie_word_embeddings and config.text_config.rope_parameters["mrope_section"] == [16, 24, 24]
    made = load_policy(get_preset("tiny", model=folder))
    with torch.no_grad():
        assert made.model(**encode(made, JIGSAW.rows(0, 2))).logits.isfinite().all()


def test_what_a_gpu_measures_is_measured_here(tmp_path, monkeypatch):
    """NF4, LoRA, pieces, photographs, plain TRL beside the kit, and the table."""
    monkeypatch.setenv("RFTKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(hub.COCO_FOLDER, shapes.photographs(tmp_path / "coco", 12))
    folder = shapes.random_3b(tmp_path / "base", shapes.SMALL, torch.float32)
    preset = shapes.on_cpu(get_preset("qlora", train_n=16), folder)
    found = bench.beside_trl(preset, steps=1)
    assert [(m.method, m.side) for m in found] == [(a, b) for a in ("sft", "rft") for b in ("rftkit", "plain TRL")]
    assert all(len(m.seconds) == 1 and m.median > 0 for m in found)
    header, _, *rows = bench.write_table(found, preset).read_text().splitlines()
    assert header.startswith("CPU, nf4 + LoRA 16, 7056 pixels, G = 4, 12 new tokens") and len(rows) == 6
    assert [row.split("|")[5].strip() for row in rows if "plain" in row] == ["1.00"] * 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_bench_of_a_gpu_tier_without_a_gpu_is_one_sentence(capsys):
    assert main(["bench", "--preset", "qlora"]) == 2
    assert capsys.readouterr().err.startswith("rftkit: This preset needs a CUDA GPU and none was found")


def test_a_float16_model_trains_a_float32_adapter(small_preset, tmp_path):
    """As on a T4, but for autocast and loss scaling, which a CPU has not in float16: TRL would make the adapter bfloat16."""
    preset = dataclasses.replace(small_preset, quantize="nf4", lora_rank=4, dtype="float16")
    record, trained = train_sft(preset, 0, steps=2, lr=1e-2, evaluate=shapes.nothing_asked, home=tmp_path)
    model = trained.model.get_base_model()
    assert model.model.language_model.layers[0].self_attn.q_proj.base_layer.compute_dtype is torch.float16
    assert model.model.language_model.norm.weight.dtype is torch.float16
    assert {p.dtype for p in model.model.visual.parameters()} == {torch.float32}
    assert {p.dtype for p in trained.model.parameters() if p.requires_grad} == {torch.float32}
    rows = [row for row in record.metrics if row["kind"] == "train"]
    assert all(0 < row["grad_norm"] < 1e3 and 0 < row["loss"] < 1e3 for row in rows)
    assert any(p.abs().max() > 0 for n, p in trained.model.named_parameters() if "lora_B" in n)
