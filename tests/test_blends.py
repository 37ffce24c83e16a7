import dataclasses

import pytest

from rftkit import blends, chains, prefix_rft, recording
from rftkit.config import UserError

PLAN = blends.Plan(practice=2, steps=2, evaluations=2, asked=9, sampled=3)  # mechanics only


@pytest.fixture
def preset(small_preset):
    return dataclasses.replace(small_preset, eval_n=2)


def test_every_arm_goes_on_from_one_practised_base(preset, tmp_path):
    before = blends.practised_base(preset, PLAN, tmp_path)
    record, _ = blends.blend(preset, 3, prefix_rft.PREFIX_RFT, name="sums_prefix", plan=PLAN, home=tmp_path)
    assert [row["step"] for row in record.evals()] == [0, 2, 3, 4] and record.evals()[:2] == before.record.evals()
    learnt, _ = blends.imitate(preset, 3, plan=PLAN, home=tmp_path)
    assert learnt.evals()[:2] == before.record.evals()
    assert recording.weights_at(recording.run_folder(learnt, tmp_path), 1).is_dir()
    other, _ = blends.imitate(preset, 3, oracle=blends.FOREIGN, plan=PLAN, home=tmp_path)
    assert recording.run_folder(other, tmp_path) != recording.run_folder(learnt, tmp_path)


def test_an_evaluation_counts_levels_words_and_samples(preset, tmp_path):
    row = blends.practised_base(preset, PLAN, tmp_path).record.evals()[-1]
    assert set(row["levels"]) <= {"3", "4", "5"} and row["new_n"] == 9
    assert sum(sum(count.values()) for count in row["levels"].values()) == 9
    assert row["new_exact"] == sum(count["correct"] for count in row["levels"].values()) / 9
    assert sum(map(len, row["sampled"].values())) == 3
    assert all(0 <= right <= blends.DRAWS for some in row["sampled"].values() for right in some)
    assert row["words"] >= 0 and 0 <= row["new_hit"] <= 1


def test_oracles_differ_in_name_and_text():
    row = chains.task(blends.GAME).row(0, 0, "train")
    oracles = (
        blends.ORACLE,
        blends.PRACTISED,
        blends.FOREIGN,
        blends.WORDY,
        blends.WRONG,
        blends.weak(0.9),
        blends.weak(0.9, True),
    )
    assert len({oracle.name for oracle in oracles}) == len(oracles)
    right = [chains.score(oracle.says(row), row.data["chain"]) == "correct" for oracle in oracles[:5]]
    assert right == [True, True, True, True, False]


def test_sft_then_rft_takes_as_many_updates_as_the_others(preset, tmp_path):
    plan = dataclasses.replace(PLAN, steps=3, evaluations=3)
    record, _ = blends.sft_then_rft(preset, 0, plan=plan, home=tmp_path)
    learnt, _ = blends.imitate(preset, 0, plan=plan, home=tmp_path)
    assert [row["step"] for row in record.evals()] == [0, 2, 3, 4, 5]
    assert record.evals()[:3] == learnt.evals()[:3] and [row["step"] for row in record.metrics if "reward" in row] == [
        4,
        5,
    ]


def test_arms_differ_and_an_unknown_one_is_told():
    assert len({(how, oracle.name) for how, oracle in blends.BLENDS.values()}) == len(blends.BLENDS)
    assert set(blends.LABELS) == {"sums_sft", "sums_sft_rft", *blends.BLENDS}
    with pytest.raises(UserError, match="no arm 'sums_else'"):
        blends.arm("sums_else", None, 0)
