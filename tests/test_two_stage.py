import dataclasses
import json

import numpy as np
import pytest
import torch

from rftkit import points, recording, runs, spectra, two_stage
from rftkit.config import UserError, get_preset
from rftkit.policy import load_policy, load_trained
from rftkit.tasks import messages

PLAN = two_stage.Plan(
    points.TINY, 1e-3, (1, 2, 4), (0, 2), 1e-3, 2, 20, hands=8, picked=6
)  # three checkpoints, two starts: mechanics only


@pytest.fixture
def preset(small_preset):
    return dataclasses.replace(small_preset, eval_n=2)


@pytest.fixture
def sft(preset, tmp_path):
    return two_stage.sft_stage(preset, 0, plan=PLAN, home=tmp_path)


def test_every_checkpoint_is_evaluated_on_four_cells_and_kept(sft, preset, tmp_path):
    record, policy = sft
    assert [row["step"] for row in record.evals()] == [0, 1, 2, 4]
    for row in record.evals():
        assert list(row["cells"]) == ["ten-any", "ten-face", "own-any", "own-face"]
        assert all(
            sum(c[v] for v in ("correct", "wrong", "unparseable")) == (8 if n in (two_stage.ID, two_stage.OOD) else 6)
            for n, c in row["cells"].items()
        )
        assert set(row["loss"]) == set(row["cells"]) and row["new_exact"] == row["cells"]["ten-any"]["correct"] / 8
    folder = recording.run_folder(record, tmp_path)
    other = load_policy(dataclasses.replace(preset, max_completion=PLAN.max_completion))
    load_trained(other, recording.weights_at(folder, 4))
    ours = policy.model.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in other.model.state_dict().items())
    load_trained(other, recording.weights_at(folder, 1))
    assert not all(torch.equal(value, ours[name]) for name, value in other.model.state_dict().items())
    runs.save_record(record, tmp_path / "again.json")
    assert runs.load_record(tmp_path / "again.json").evals() == record.evals()


def test_rft_goes_on_from_a_checkpoint_and_from_the_base(sft, preset, tmp_path):
    record, _ = two_stage.rft_stage(preset, 0, 2, plan=PLAN, home=tmp_path)
    assert record.method == "points_rft_2"
    assert [row["step"] for row in record.evals()] == [0, 1, 2, 4]  # SFT's up to the start, then RFT's end
    assert [row["step"] for row in record.metrics if "reward" in row] == [3, 4]
    assert record.evals()[:3] == sft[0].evals()[:3]
    fresh, _ = two_stage.rft_stage(preset, 0, 0, plan=PLAN, home=tmp_path)
    assert [row["step"] for row in fresh.evals()] == [0, 2] and fresh.config[
        "practice"
    ] == "points-ten-any: 3 cards to 1 to 30 by +-; 8 and 6 hands evaluated"
    pulled = dataclasses.replace(preset, rft_beta=0.04)  # a tier whose RFT has a KL term elsewhere
    bare, _ = two_stage.rft_stage(pulled, 0, 0, plan=PLAN, home=tmp_path)
    assert bare.config["beta"] == 0.0 and not any("kl" in row for row in bare.metrics)
    with pytest.raises(UserError, match="no checkpoint of update 3"):
        two_stage.rft_stage(preset, 0, 3, plan=PLAN, home=tmp_path)


def test_the_diverse_arm_has_the_same_hands_in_other_words(preset):
    one, many = (points.task(points.TINY, "ten", "any", wordings=w) for w in ((0,), tuple(range(1, points.WORDINGS))))
    rows = list(zip(one.rows(3, 40, "train"), many.rows(3, 40, "train"), strict=True))
    assert all(a.data["hand"] == b.data["hand"] and a.answer == b.answer and a.prompt != b.prompt for a, b in rows)
    assert len({b.prompt.split(" ")[0] for _, b in rows}) > 3


def test_the_reward_is_the_verifier_s():
    hand = points.task(points.TINY).row(0, 0).data["hand"]
    good = points.answer_text(hand, points.solution(hand))
    said = [[{"content": text}] for text in (good, "no idea", good.replace(";", "; 1 +"))]
    values = two_stage.reward(said, [hand] * 3, rows=None)
    assert values[0] == points.CORRECT and values[1] == points.COSTS["missing"] and values[2] < 0


# --- attempts with the verifier's message ------------------------------------------------------------------------------------


def test_feedback_is_asked_again_with_all_that_was_said(monkeypatch):
    rows = points.task(points.TINY).rows(0, 3)
    right = {row.prompt: row.answer for row in rows}
    asked = []

    def replies(policy, some):
        asked.append([row.history for row in some])
        # the first is solved at once, the second at the third attempt, the last never
        order = [r.prompt for r in rows]
        return [
            right[r.prompt] if order.index(r.prompt) * 2 <= len(r.history) and r.prompt != order[2] else "numbers"
            for r in some
        ]

    monkeypatch.setattr(two_stage, "generate", replies)
    assert two_stage.solved_with_feedback(None, rows, limit=5) == 2
    assert [len(some) for some in asked] == [3, 2, 2, 1, 1]
    assert (
        asked[2][0]
        == (("numbers", points.feedback(points.score("numbers", rows[1].data["hand"]), rows[1].data["hand"])),) * 2
    )
    assert two_stage.solved_with_feedback(None, rows, limit=2) == 1


def test_turns_alternate():
    row = dataclasses.replace(points.task(points.TINY).row(0, 0), history=(("a", "b"), ("c", "d")))
    turns = messages(row)
    assert [t["role"] for t in turns] == ["user", "assistant", "user", "assistant", "user"]
    assert [t["content"][-1]["text"] for t in turns[1:]] == ["a", "b", "c", "d"]


# --- reading the records ------------------------------------------------------------------------------------------------------


def record_of(validation, test, losses, steps=(0, 10, 20, 30)):
    def cell(solved, n):
        return {"ten-any": {}, "own-face": {"correct": solved, "wrong": n - solved, "unparseable": 0, "read": 0}}

    rows = [
        {"kind": "eval", "step": s, "validation": cell(v, 100), "cells": cell(t, 1000), "loss": {"own-face": x}}
        for s, v, t, x in zip(steps, validation, test, losses, strict=True)
    ]
    return runs.RunRecord("points_sft-s0", "points_sft", "tiny", 0, metrics=rows)


def test_the_peak_is_chosen_on_validation_hands_and_read_on_test_hands():
    record = record_of((0, 40, 40, 10), (0, 300, 350, 100), (3.0, 1.0, 2.0, 0.5))
    assert two_stage.peak(record) == 10  # the earliest of equals, though test hands would say 20
    assert two_stage.lowest_loss(record) == 30
    assert two_stage.at(record, 10) == pytest.approx(0.3) and two_stage.at(
        record, 10, split="validation"
    ) == pytest.approx(0.4)
    with pytest.raises(UserError, match="not evaluated at update 15"):
        two_stage.at(record, 15)


def test_a_run_without_hands_is_told_so():
    record = record_of((0, 1, 2, 3), (0, 1, 2, 3), (3.0, 1.0, 2.0, 0.5))
    for cell in ("ten-any", "elsewhere"):
        with pytest.raises(UserError, match="no cells hands of the cell"):
            two_stage.accuracy(record, cell)
    with pytest.raises(UserError, match="no validation hands"):
        two_stage.peak(dataclasses.replace(record, metrics=[{"kind": "eval", "step": 0}]))


# --- surgery ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def two(preset):
    policy = load_policy(preset)
    base = two_stage.matrices(policy)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in base:
            p = policy.model.get_parameter(name)
            p.add_(0.1 * p.std() * torch.randn(p.shape, generator=generator))
    return policy, base


def test_edits_have_their_controls(two):
    policy, base = two
    tuned = two_stage.matrices(policy)
    assert len(base) == 2 * 7 and all("visual" not in n and "embed" not in n for n in base)
    made = two_stage.edits(base, tuned)
    for name, b in base.items():
        torch.testing.assert_close(made["rollback 100 %"][name].matrix.float(), b, rtol=1e-4, atol=1e-5)
        swap = made["swap vectors"][name]
        gap = torch.linalg.svdvals(b.double()) - torch.linalg.svdvals(tuned[name].double())
        assert float((swap.matrix.double() - b.double()).norm()) == pytest.approx(
            float(gap.norm()), rel=1e-3
        )  # the identity
        assert made["random, as long as the swap"][name].norm == pytest.approx(swap.norm, rel=1e-3)
        top, drawn = made["top 20 %"][name], made["random 20 %"][name]
        assert not torch.allclose(top.matrix.double(), drawn.matrix.double(), atol=1e-4)
        values = torch.linalg.svdvals(made["top 20 %, orthonormal"][name].matrix.double())
        torch.testing.assert_close(values, torch.linalg.svdvals(tuned[name].double()), rtol=1e-3, atol=1e-4)
    assert {two_stage.layer_of(n) for n in made["last quarter"]} == {1} and len(made["swap vectors"]) == 14


def test_all_pairs_drawn_are_the_base(two):
    policy, base = two
    name, b = next(iter(base.items()))
    tuned = two_stage.matrices(policy)[name]
    made = two_stage.random_pairs(b, tuned, min(b.shape), torch.Generator().manual_seed(0))
    torch.testing.assert_close(made.matrix, b.double())
    assert made.norm == pytest.approx(float((b - tuned).double().norm()), rel=1e-4)
    assert two_stage.random_pairs(b, tuned, 0, torch.Generator().manual_seed(0)).norm == 0


def test_edits_of_two_models_are_refused(two):
    _, base = two
    for other in ({}, {"model.layers.0.x_proj.weight": torch.zeros(2, 2)}):
        with pytest.raises(UserError, match="same matrices"):
            two_stage.edits(other, base)


def test_surgery_counts_and_puts_the_weights_back(two):
    policy, base = two
    before = {k: v.clone() for k, v in policy.model.state_dict().items()}
    rows = two_stage.surgery(policy, base, PLAN, hands=4, only=("swap values", "rollback 100 %"))
    assert [row["edit"] for row in rows] == ["none", "swap values", "rollback 100 %"]
    assert rows[2]["norm"] == pytest.approx(1, rel=1e-3) and 0 < rows[1]["norm"] < 1
    assert all(sum(row["ten-any"][v] for v in ("correct", "wrong", "unparseable")) == 4 for row in rows)
    assert all(torch.equal(v, before[k]) for k, v in policy.model.state_dict().items())


def test_a_study_is_read_as_it_was_written(sft, preset, tmp_path, monkeypatch):
    monkeypatch.setattr(two_stage, "SUBSPACE", 4)
    found = two_stage.study(preset, 0, plan=PLAN, hands=4, home=tmp_path)
    path = tmp_path / "deep" / "weights-s0.json"
    two_stage.save_study(found, path)
    again = two_stage.load_study(path)
    assert set(again["spectra"]) >= {"base to end", "end to RFT"} and again["surgery"] == json.loads(
        json.dumps(found["surgery"])
    )
    report = next(iter(again["spectra"]["base to end"].values()))
    assert isinstance(report, spectra.MatrixReport) and 0 < report.norm < 10 and np.isfinite(report.change.left.median)
    edited = {row["edit"]: row for row in again["surgery"]["end to peak"]}
    back, end = again["surgery"]["RFT to end"][-1], again["surgery"]["end to peak"][0]
    assert back["edit"] == "rollback 100 %" and end["edit"] == "none" and back["norm"] == pytest.approx(1, rel=1e-3)
    assert edited["swap values"]["norm"] < edited["swap vectors"]["norm"]
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match="no study of weights"):
        two_stage.load_study(path)


def test_an_adapter_is_not_studied(preset):
    with pytest.raises(UserError, match="adapter"):
        two_stage.study(dataclasses.replace(preset, lora_rank=4), 0, plan=PLAN)


def test_plans_fit_their_presets():
    for name in ("tiny", "qlora", "full"):
        preset, plan = two_stage.plan_of(get_preset(name))
        assert set(plan.starts) <= {0, *plan.checkpoints} and plan.hands >= 1000
        assert preset.model == ("bundled-cards" if name == "tiny" else "Qwen/Qwen2.5-VL-3B-Instruct")
        assert preset.max_completion == plan.max_completion
    assert two_stage.PLANS["full"].game == points.PAPER
