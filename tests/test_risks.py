import json
from dataclasses import replace

import pytest
import torch

from rftkit import fisher, risks, sequence
from rftkit.config import UserError, get_preset
from rftkit.policy import load_policy
from rftkit.tasks import Row


@pytest.fixture(scope="module")
def policy():
    return load_policy(get_preset("tiny"))


@pytest.fixture(scope="module")
def found(policy):
    policy = replace(policy, preset=replace(policy.preset, max_completion=12))
    return dict.fromkeys((risks.BASE, risks.AFTER), risks.measure(policy, 0, ["compose", "clutter"], prompts=2))


def test_the_reward_is_that_of_rft():
    row = Row("compose", "?", "<think> x </think> <answer> red </answer>", data={"target": "red"})
    replies = ["<think> x </think> <answer> red </answer>", "red", "<think> x </think> <answer> blue </answer>", "blue"]
    assert [risks.paid(text, row) for text in replies] == pytest.approx([1.0, 0.9, 0.1, 0.0])


def test_groups_of_each_task_and_their_way_through_a_file(found, tmp_path):
    assert [group.task for group in found[risks.BASE]] == ["compose", "compose", "clutter", "clutter"]
    assert all(len(group.rewards) == risks.SAMPLES and group.gold > 0 for group in found[risks.BASE])
    risks.save(found, tmp_path / "risks-s3.json")
    again = risks.recorded(tmp_path)
    assert list(again) == [3] and list(again[3]) == [risks.BASE, risks.AFTER]
    for first, second in zip(found[risks.AFTER], again[3][risks.AFTER], strict=True):
        torch.testing.assert_close(second.risks, first.risks.double(), rtol=1e-5, atol=0)
        assert torch.equal(second.rewards, first.rewards)
        one, other = fisher.law(first), fisher.law(second)
        assert other.risk == pytest.approx(one.risk, rel=1e-4, abs=1e-12) and other.gold == pytest.approx(
            one.gold, rel=1e-5
        )


@pytest.mark.parametrize(
    "damage", ["", "[]", "{}", '{"practised base": [{"rewards": [1]}], "after seven tasks by GRPO": []}']
)
def test_a_damaged_file_is_named(damage, found, tmp_path):
    path = tmp_path / "risks-s0.json"
    path.write_text(damage)
    with pytest.raises(UserError, match=r"risks-s0\.json holds no risks of updates .* `python -m rftkit record`"):
        risks.load(path)
    risks.save(found, path)
    cut = json.loads(path.read_text())
    cut[risks.BASE][0]["risks"].pop()
    path.write_text(json.dumps(cut))
    with pytest.raises(UserError, match="not n by n"):
        risks.load(path)


def test_the_recorded_ones_hold_what_the_ledger_asks_for():
    studies = risks.recorded()
    assert sorted(studies) == [0, 1, 2]
    for study in studies.values():
        for groups in study.values():
            assert [group.task for group in groups] == [name for name in sequence.SEVEN for _ in range(risks.PROMPTS)]
            for one in map(fisher.law, groups):
                assert one.risk["centred"] == pytest.approx(
                    one.variance * one.sampled + one.covariance, rel=1e-4, abs=1e-9
                )
