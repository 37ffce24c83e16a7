"""What the qlora tier takes on a GPU, beside plain TRL in one run: random weights in the true 3B architecture, COCO-sized pictures.

`pytest -m gpu tests/gpu/test_measured.py -s` prints the table; it is written to bench/ of RFTKIT_HOME, under the card's name.
"""

import dataclasses

import pytest
import torch
from shapes import photographs, random_3b

from rftkit import bench, cost, hub
from rftkit.config import get_preset

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("true")
    base = random_3b(folder / "base", device="cuda")
    torch.cuda.empty_cache()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(hub.COCO_FOLDER, photographs(folder / "coco"))
        yield dataclasses.replace(get_preset("qlora"), model=base, train_n=64)


@pytest.fixture(scope="module")
def measured(preset):
    found = bench.beside_trl(preset)
    print("\n" + bench.write_table(found, preset).read_text())
    return {(m.method, m.side): m for m in found}


def test_the_settings_are_those_that_are_compared(preset):
    assert (preset.rft_group, preset.max_completion, preset.quantize) == (8, 512, "nf4")
    assert cost.shape_of(preset).total == cost.shape_of(get_preset("qlora")).total


def test_sft_stays_below_9_gb(measured):
    assert measured["sft", "rftkit"].peak < 9e9


def test_rft_stays_below_14_gb(measured):
    assert measured["rft", "rftkit"].peak < 14e9


def test_an_rft_step_is_half_as_fast_again_as_plain_trl(measured):
    assert measured["rft", "plain TRL"].median / measured["rft", "rftkit"].median >= 1.5


def test_an_sft_step_is_no_slower_than_plain_trl(measured):
    assert measured["sft", "plain TRL"].median / measured["sft", "rftkit"].median > 0.95


@pytest.mark.parametrize("method", ["sft", "rft"])
def test_the_predicted_peak_is_near_the_measured_one(method, preset, measured):
    found = cost.card(preset, method)
    predicted = max(total for (_, phase), total in found.totals.items() if phase != "evaluation")
    print(f"{method}: predicted {predicted / 1e9:.2f} GB, measured {measured[method, 'rftkit'].peak / 1e9:.2f} GB")
    assert 0.7 < predicted / measured[method, "rftkit"].peak < 1.4


@pytest.mark.parametrize(
    ("method", "changes"), [("rft", {"micro_batch": 8, "checkpointing": True}), ("rft", {"micro_batch": 4})]
)
def test_predictions_for_other_settings(method, changes, preset):
    other = dataclasses.replace(preset, **changes)
    if cost.card(other, method).refusal(torch.cuda.get_device_properties(0).total_memory):
        pytest.skip("this card is too small for these settings")
    measured = bench.whole_training(other, method, kit=True, steps=1)
    found = cost.card(other, method)
    predicted = max(total for (_, phase), total in found.totals.items() if phase != "evaluation")
    assert 0.7 < predicted / measured.peak < 1.4


def test_predicted_seconds_are_of_the_measured_order(preset, measured):
    device = next((d for d in cost.DEVICES if d.name in torch.cuda.get_device_name()), None)
    if device is None:
        pytest.skip("a card that the cost model does not know")
    for method in ("sft", "rft"):
        s = cost.seconds_of(cost.work_of(preset, method), device)
        assert 1 / 3 < (s.update + s.rollouts) / measured[method, "rftkit"].median < 3
