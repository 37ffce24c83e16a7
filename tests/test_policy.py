import importlib.util
import json
import shutil

import pytest
import torch

from rftkit import policy
from rftkit.config import UserError, get_preset
from rftkit.policy import encode, freeze_vision, generate, load_policy, restore, snapshot
from rftkit.tasks import JIGSAW, PROBES


@pytest.fixture
def small(small_preset):
    return load_policy(small_preset)


def damage(folder, how):
    weights = folder / "model.safetensors"
    if how == "missing":
        weights.unlink()
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif how == "altered":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1  # one bit of one weight
        weights.write_bytes(bytes(data))
    elif how == "unlisted":
        (folder / policy.HASHES).unlink()


@pytest.mark.parametrize("how", ["missing", "truncated", "altered", "unlisted"])
def test_damaged_weights_are_refused_in_one_sentence(how, small_base, tmp_path, monkeypatch):
    folder = tmp_path / "base"
    shutil.copytree(small_base, folder)
    monkeypatch.setattr(policy, "BUNDLED_DIR", folder)
    load_policy(get_preset("tiny"))
    damage(folder, how)
    with pytest.raises(UserError) as caught:
        load_policy(get_preset("tiny"))
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and "pretrain" in text


def test_the_bundled_base_is_small_and_whole():
    policy.check_hashes(policy.BUNDLED_DIR)
    assert sum(f.stat().st_size for f in policy.BUNDLED_DIR.iterdir()) <= 16 * 2**20
    assert "model.safetensors" in json.loads((policy.BUNDLED_DIR / policy.HASHES).read_text())


def test_no_torchvision_beside_cpu_torch():
    assert torch.version.cuda or importlib.util.find_spec("torchvision") is None


def counting(policy_, monkeypatch):
    """Count the images that really go through the tower."""
    seen = []
    forward = type(policy_.model.model.visual).forward

    def spy(self, hidden_states, grid_thw, **kwargs):
        seen.append(len(grid_thw))
        return forward(self, hidden_states, grid_thw, **kwargs)

    monkeypatch.setattr(type(policy_.model.model.visual), "forward", spy)
    return seen


def test_features_are_computed_once_per_distinct_image_and_equal_the_plain_path(small, monkeypatch):
    rows = JIGSAW.rows(0, 2)
    inputs = encode(small, [rows[0]] * 3 + [rows[1]] * 3)
    with torch.no_grad():
        plain = load_policy(small.preset)
        del plain.model.model.get_image_features
        expected = plain.model(**inputs).logits
        seen = counting(small, monkeypatch)
        got = [small.model(**inputs).logits for _ in range(2)]
    assert seen == [2]  # six rows, two images, two passes: one look at each
    torch.testing.assert_close(got[0], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got[1], expected, atol=1e-5, rtol=1e-5)


def test_an_unfrozen_tower_is_never_reused(small, monkeypatch):
    inputs = encode(small, [JIGSAW.row(0, 0)] * 2)
    with torch.no_grad():
        small.model(**inputs)  # fills the store
    freeze_vision(small.model, False)
    seen = counting(small, monkeypatch)
    logits = small.model(**inputs).logits
    logits.sum().backward()
    assert seen == [2] and small.model.model.visual.patch_embed.proj.weight.grad.abs().sum() > 0
    with torch.no_grad():
        for p in small.model.model.visual.parameters():
            p.mul_(1.5)
    freeze_vision(small.model, True)
    with torch.no_grad():
        changed = small.model(**inputs).logits
    assert (changed - logits).abs().max() > 1e-3  # the old features did not outlive the old weights


def test_greedy_answers_repeat_and_batching_does_not_matter(small):
    rows = [*JIGSAW.rows(0, 3), *PROBES["arithmetic"].rows(0, 3)]
    one = generate(small, rows, max_new_tokens=6)
    assert one == generate(small, rows, max_new_tokens=6, batch_size=2)
    assert len(one) == 6


def test_sampling_uses_its_own_generator(small):
    rows = JIGSAW.rows(0, 4)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = generate(small, rows, 8, temperature=1.0, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert one == generate(small, rows, 8, temperature=1.0, seed=1)
    assert one != generate(small, rows, 8, temperature=1.0, seed=2)


def test_an_image_token_is_never_sampled(small):
    token = small.processor.image_token_id
    original = small.model.lm_head.forward
    small.model.lm_head.forward = lambda h: original(h).index_fill(-1, torch.tensor([token]), 1e4)
    ids = small.processor.tokenizer(generate(small, JIGSAW.rows(0, 2), 5, temperature=1.0))["input_ids"]
    assert all(token not in row for row in ids)


def test_snapshot_and_restore(small):
    rows = PROBES["color"].rows(0, 2)
    before, weights = generate(small, rows, 6), snapshot(small)
    with torch.no_grad():
        small.model.lm_head.weight.add_(torch.randn_like(small.model.lm_head.weight))
    assert generate(small, rows, 6) != before
    restore(small, weights)
    assert generate(small, rows, 6) == before


def test_lora_targets_leave_the_tower_alone(small):
    import re

    named = [n for n, _ in small.model.named_modules() if re.fullmatch(policy.LORA_TARGETS, n)]
    assert len(named) == 7 * small.model.config.text_config.num_hidden_layers and not any("visual" in n for n in named)


def test_a_model_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(UserError) as caught:
        load_policy(get_preset("tiny", model=str(tmp_path / "nowhere")))
    assert "\n" not in str(caught.value) and "nowhere" in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["qlora", "full"])
def test_a_gpu_preset_without_a_gpu_is_one_sentence(name):
    with pytest.raises(UserError, match="needs a CUDA GPU"):
        load_policy(get_preset(name))


def test_a_checkpoints_own_repetition_penalty_is_not_used(small):
    before = generate(small, PROBES["color"].rows(0, 3), 8)
    small.model.generation_config.repetition_penalty = 5.0
    assert generate(small, PROBES["color"].rows(0, 3), 8) == before


def test_no_rows_have_no_answers(small):
    assert generate(small, []) == [] and generate(small, [], temperature=1.0, seed=[]) == []
