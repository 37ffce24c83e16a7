import dataclasses
import json
from dataclasses import asdict

import pytest

from rftkit import arms, blends, methods, recording, runs, shelf, two_stage
from rftkit.config import UserError, get_preset


@pytest.mark.parametrize(("page", "text"), [("README.md", arms.summary), ("course/results.md", arms.results)])
def test_pages_show_what_the_recorded_runs_say(page, text):
    shown = (arms.ROOT / page).read_text().partition(arms.BEGIN)[2].partition(arms.END)[0].strip()
    assert shown == text(), "run `python -m rftkit record`"


def test_an_arm_that_would_repeat_another_is_refused(small_preset):
    with pytest.raises(UserError, match="lora_sft would repeat sft"):
        arms.lora_sft(dataclasses.replace(small_preset, lora_rank=4), 0)


def test_every_arm_is_recorded_with_three_seeds_and_the_settings_of_today():
    records = arms.recorded(tuple(arms.ARMS))
    for arm in arms.ARMS:
        mine = [r for r in records if r.method == arm]
        preset = get_preset("tiny")
        if arm.startswith("points_"):
            preset, _ = two_stage.plan_of(preset)
        if arm.startswith("sums_"):
            preset = blends.own_preset(preset, blends.TINY)
        assert {r.seed for r in mine} >= {0, 1, 2} and len({r.seed for r in mine}) == len(mine), arm
        assert all(r.status == "done" and r.source == "recorded" for r in mine)
        assert all(r.versions["trl"] and r.evals()[0]["step"] == 0 for r in mine)
        if arm.startswith("seven_"):
            assert_sequences_have_todays_settings(arm, mine)
            continue
        assert len({r.config["lr"] for r in mine}) == 1 and len({r.config["steps"] for r in mine}) == 1, arm
        assert {r.config["base"] for r in mine} == {recording.weights_id(preset, None)}, "runs of another base"
        for key in ("model", "eval_n", "rft_group", "sft_batch", "rft_lr"):
            assert {r.config["preset"][key] for r in mine} == {getattr(preset, key)}


def assert_sequences_have_todays_settings(arm, mine):
    name = arm.removeprefix("seven_")
    method, order = methods.METHODS[name.removesuffix("_b")], methods.ORDERS["b" if name.endswith("_b") else "a"]
    plan = methods.PLANS["tiny"]
    for r in mine:
        assert r.config["method"] == json.loads(json.dumps(asdict(method))) and r.config["plan"] == asdict(plan), arm
        assert tuple(r.config["order"]) == order and len(r.evals()) == 1 + (1 if method.data == "joint" else len(order))
    assert len({json.dumps(r.config["base"]) for r in mine}) == 1


def test_probe_table_is_read_where_the_target_was_reached():
    first, last = ({"color": {"correct": n, "wrong": 10 - n, "unparseable": 0}} for n in (10, 4))
    row = {"kind": "eval", "seconds": 1.0, "examples": 1, "tokens": 1, "new_hit": 0.0, "new_n": 10, "prior_mean": 0.9}
    metrics = [
        {**row, "step": 0, "new_exact": 0.0, "prior": first},
        {**row, "step": 6, "new_exact": 0.75, "prior": last},
    ]
    record = runs.RunRecord(name="sft-s0", method="sft", preset="tiny", seed=0, status="done", metrics=metrics)
    assert arms._by_probe([record])[-1] == "| SFT answer-only | 60 |"  # at step 4 of 6: 1.0 - 2/3 * 0.6


def test_an_unknown_arm_is_named():
    with pytest.raises(UserError, match="no arm 'dpo'"):
        shelf.main(["--arms", "dpo"])
