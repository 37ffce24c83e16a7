import dataclasses
import json

import numpy as np
import pytest
import stand_in
import torch

from rftkit import continual, methods, policy, recording, rollouts, runs
from rftkit.config import UserError, get_preset
from rftkit.evals import ProbeCount
from rftkit.policy import generate, load_policy
from rftkit.sft import Data, Lazy, train_sft
from rftkit.tasks import PROBES

PLAN = methods.Plan(
    sft_lr=1e-2, sft_steps=3, slow_steps=4, rft_lr=1e-3, rft_steps=2, instances=16, samples=4, replay=0.1, asked=4, probed=2,
    max_completion=8, save_every=1,
)  # fmt: skip
ORDER = ("color", "exist")


@pytest.fixture
def preset(small_preset):
    return dataclasses.replace(small_preset, eval_batch=16)


def train(preset, method, home, order=ORDER, plan=PLAN, seed=0, **kwargs):
    return continual.run_sequence(
        preset, seed, method, order=order, plan=plan, suite=stand_in.SUITE, home=home, **kwargs
    )


# --- the metrics -------------------------------------------------------------------------------------------------------------

P = np.array([[0.2, 0.3, 0.7], [0.9, 0.4, 0.6], [0.7, 0.8, 0.5], [0.5, 0.6, 0.6]])  # row 0 is before any task


def test_metrics_of_a_matrix_by_hand():
    assert continual.avg_acc(P) == pytest.approx((0.5 + 0.6 + 0.6) / 3)
    # peaks: .9, .8, and .6 of tasks 1 to 3 after the first task; .7 before any is in no reading
    assert continual.forgetting(P) == pytest.approx((-0.4 - 0.2 + 0) / 3)
    assert continual.forgetting(P, "T-1") == pytest.approx((-0.4 - 0.2) / 2)
    assert continual.new_task_gain(P) == pytest.approx(((0.9 - 0.2) + (0.8 - 0.4) + (0.6 - 0.5)) / 3)
    assert continual.backward_transfer(P) == pytest.approx((-0.4 - 0.2) / 2)


def test_the_two_readings_of_the_peak():
    p = P.copy()
    p[1, 2] = 0.9  # task 3 was best before it was trained
    assert continual.forgetting(p) == pytest.approx((-0.4 - 0.2 - 0.3) / 3)
    assert continual.forgetting(p, peak="after_learning") == pytest.approx((-0.4 - 0.2) / 3)
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.random((6, 5))
        strict, lenient = (continual.forgetting(p, peak=peak) for peak in ("all", "after_learning"))
        assert strict <= lenient <= 0
        assert continual.forgetting(p, "T-1") == pytest.approx(strict * 5 / 4)


def test_nothing_is_forgotten_where_nothing_is_learnt():
    flat = np.full((4, 3), 0.3)
    assert continual.forgetting(flat) == 0 == continual.new_task_gain(flat)


@pytest.mark.parametrize("bad", [np.zeros((3, 3)), np.zeros(3), np.zeros((1, 0))])
def test_a_matrix_of_another_shape_is_refused(bad):
    with pytest.raises(UserError, match="T tasks in a row"):
        continual.forgetting(bad)
    with pytest.raises(UserError, match="T - 1"):
        continual.forgetting(np.zeros((2, 1)), "T-1")


def test_counts_are_behind_the_matrix():
    count = ProbeCount(1, 2, 1)
    matrix = continual.Matrix(("a",), ("base", "a"), ((count,), (ProbeCount(4, 0, 0),)))
    assert matrix.accuracy.tolist() == [[0.25], [1.0]] and matrix.unparseable.tolist() == [[0.25], [0.0]]


# --- the runner ----------------------------------------------------------------------------------------------------------------


def test_a_sequence_is_one_record_that_can_be_read(preset, tmp_path):
    found = train(preset, methods.GRPO, tmp_path, stand_in.ORDER)
    path = recording.run_folder(found.record, tmp_path) / "record.json"
    assert path.parent.name.startswith("mock_grpo_color-exist-count-s0-")
    again = continual.load_sequence(path)
    assert again.record == runs.load_record(path) and again.record.status == "done"
    assert again.order == stand_in.ORDER and again.matrix.after == ("base", *stand_in.ORDER)
    assert again.matrix.accuracy.shape == (4, 3) and all(c.n == 4 for row in again.matrix.counts for c in row)
    assert [row["step"] for row in found.record.evals()] == [0, 2, 4, 6] and len(again.prior) == 4
    assert found.record.samples and {s["step"] for s in found.record.samples} == {0, 2, 4, 6}
    assert not any(row["kind"] == "train" for row in found.record.metrics)
    for row in again.stages:
        assert row["cost"]["updates"] == 2 and row["cost"]["rollouts"] == 2 * 4 * 4 and row["cost"]["sampled"] == 0
        assert row["cost"]["tokens"] > 2 * 16 * 8 and row["cost"]["seconds"] > 0 and row["card"] is None
        assert set(row["train"]) >= {"reward", "kl", "loss", "grad_norm", "frac_reward_zero_std"}
    assert again.cost["updates"] == 6 and again.cost["rollouts"] == 3 * 32
    kept = sorted(p.parent.name for p in tmp_path.glob("runs/*/final"))
    assert kept == [again.weights(tmp_path).parent.name] and (again.weights(tmp_path) / "config.json").exists()
    assert not list(tmp_path.glob("runs/*/checkpoint-*"))


def test_each_task_goes_on_from_the_one_before(preset, tmp_path, monkeypatch):
    """The weights at the beginning of each task, by what was loaded; and the same rows are asked after each."""
    began = []
    monkeypatch.setattr(
        continual, "train_sft", lambda *a, f=continual.train_sft, **k: began.append(k["after"]) or f(*a, **k)
    )
    found = train(preset, methods.SFT, tmp_path)
    assert began[0] is None and began[1].weights.parent.name == found.stages[0]["run"]
    model = load_policy(preset)
    policy.load_trained(model, found.weights(tmp_path))
    evaluate = continual.evaluation(stand_in.tasks(preset, True), stand_in.SUITE.probes(preset), PLAN)
    model.preset = dataclasses.replace(preset, max_completion=PLAN.max_completion)
    row, _ = evaluate(model)
    last = found.record.evals()[-1]
    assert {n: row["tasks"][n] for n in ORDER} == last["tasks"] and row["prior"] == last["prior"]
    losses = [row["train"]["loss"] for row in found.stages]
    assert all(x["last"] < x["first"] for x in losses)


def test_from_a_base_that_is_a_finished_run(preset, tmp_path):
    data = Data("lookup", lambda model, folder: Lazy(16, lambda i: PROBES["lookup"].row(0, i, "train")))
    record, trained = train_sft(preset, 0, data=data, lr=1e-2, steps=3, evaluate=no_evaluation, home=tmp_path)
    base = recording.Before(record, recording.run_folder(record, tmp_path) / "final")
    evaluate = continual.evaluation(
        {n: stand_in.tasks(preset, True)[n] for n in ORDER}, stand_in.SUITE.probes(preset), PLAN
    )
    asked, _ = evaluate(dataclasses.replace(trained, preset=dataclasses.replace(preset, max_completion=8)))
    found = train(preset, methods.SFT, tmp_path, base=base)
    first = found.record.evals()[0]
    assert first["step"] == 0 and first["tasks"] == asked["tasks"] and first["prior"] == asked["prior"]
    assert found.stages[0]["cost"]["updates"] == 3 and base.weights.exists()
    assert recording.run_folder(found.record, tmp_path) != recording.run_folder(
        train(preset, methods.SFT, tmp_path).record, tmp_path
    )


def no_evaluation(policy):
    return {"kind": "eval", "new_exact": 0.0, "new_hit": 0.0, "new_n": 1, "prior": {}, "prior_mean": 0.0}, []


class Killed(Exception):
    pass


def comparable(record):
    """The metrics but for what a clock decides and for where the runs lie."""
    rows = json.loads(json.dumps(record.metrics))
    for row in rows:
        row.pop("seconds", None)
        for key in ("seconds", "sampling_seconds"):
            row.get("cost", {}).pop(key, None)
    return rows


@pytest.mark.parametrize(
    ("method", "nth"),
    [(methods.SFT, 2), (methods.SFT, 3), (methods.GRPO_KL_PREVIOUS, 3), (methods.RIF, 3), (methods.L2, 3)],
    ids=lambda x: getattr(x, "name", x),
)
def test_a_killed_sequence_resumes_to_the_same_matrix(method, nth, preset, tmp_path, monkeypatch):
    """Killed at the second evaluation (the end of the first task) or the third (in the second task, after its first checkpoint)."""
    monkeypatch.setattr(rollouts.Rollout, "correct", property(lambda r: r.sample % 2 == r.index % 2 == 0))
    plan = dataclasses.replace(PLAN, rft_steps=4 if method.keep else 2)
    whole = train(preset, method, tmp_path / "whole", plan=plan)
    calls = []

    make = continual.evaluation

    def failing(*args):
        measure = make(*args)

        def evaluate(model):
            calls.append(1)
            if len(calls) == nth:
                raise Killed
            return measure(model)

        return evaluate

    home = tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setattr(continual, "evaluation", failing)
        with pytest.raises(Killed):
            train(preset, method, home, plan=plan)
    assert list(home.glob("runs/*/checkpoint-*"))  # one interval is lost, no more
    calls.clear()
    resumed = train(preset, method, home, plan=plan)
    assert comparable(resumed.record) == comparable(whole.record) and resumed.record.samples == whole.record.samples
    a, b = (load(preset, x, h) for x, h in ((whole, tmp_path / "whole"), (resumed, home)))
    assert all(torch.equal(v, b[k]) for k, v in a.items())


def load(preset, found, home):
    model = load_policy(preset)
    policy.load_trained(model, found.weights(home))
    return model.model.state_dict()


def test_a_finished_sequence_is_read_and_another_setting_is_another_one(preset, tmp_path, monkeypatch):
    first = train(preset, methods.SFT, tmp_path)
    other = train(preset, methods.SFT, tmp_path, plan=dataclasses.replace(PLAN, sft_lr=2e-2))
    turned = train(preset, methods.SFT, tmp_path, order=ORDER[::-1])
    shorter = train(preset, methods.SFT, tmp_path, order=ORDER[:1], plan=dataclasses.replace(PLAN, asked=3))
    again = train(preset, methods.SFT, tmp_path, order=ORDER[:1], plan=dataclasses.replace(PLAN, asked=2))
    assert [x.matrix.counts[1][0].n for x in (shorter, again)] == [3, 2]  # no run is read for one that was asked less
    folders = {recording.run_folder(x.record, tmp_path) for x in (first, other, turned, shorter, again)}
    assert len(folders) == 5 and turned.record.method == "mock_sft_exist-color"
    monkeypatch.setattr(continual, "train_sft", None)
    assert train(preset, methods.SFT, tmp_path).record == runs.load_record(
        recording.run_folder(first.record, tmp_path) / "record.json"
    )


@pytest.mark.parametrize("order", [(), ("color", "color"), ("color", "puzzle")])
def test_an_order_that_is_none_is_refused(preset, tmp_path, order):
    with pytest.raises(UserError, match="no order of tasks"):
        train(preset, methods.SFT, tmp_path, order)


def test_a_record_of_something_else_is_no_sequence(preset, tmp_path):
    found = train(preset, methods.SFT, tmp_path)
    path = tmp_path / "x.json"
    for damage in ("tasks", "cost"):
        record = runs.load_record(recording.run_folder(found.record, tmp_path) / "record.json")
        for row in record.metrics:
            row.pop(damage, None)
        runs.save_record(record, path)
        with pytest.raises(UserError, match="no sequence"):
            continual.load_sequence(path)
    record.metrics = record.metrics[:1]
    runs.save_record(record, path)
    with pytest.raises(UserError, match="sequence of tasks"):
        continual.load_sequence(path)


# --- methods ---------------------------------------------------------------------------------------------------------------------


def test_methods_have_names_of_their_own_and_orders_hold_the_same_tasks():
    assert len(methods.METHODS) == 17 and len({dataclasses.replace(m, name="") for m in methods.METHODS.values()}) == 17
    assert set(methods.ORDER_A) == set(methods.ORDER_B) and methods.ORDER_A != methods.ORDER_B
    assert (
        methods.run_name(methods.RLOO) == "seven_rloo"
        and methods.run_name(methods.RLOO, methods.ORDER_B) == "seven_rloo_b"
    )
    assert methods.run_name(methods.RLOO, ("science", "clutter")) == "seven_rloo_science-clutter"


def test_replay_adds_a_share_of_each_earlier_task():
    tasks = stand_in.tasks(None, True)
    color, exist, count = tasks.values()
    data = methods.replayed(count, [color, exist], 5, 200, 0.01)
    rows = data.rows(None, None)
    found = [rows[i] for i in range(len(rows))]
    assert [row.task for row in found] == ["count"] * 200 + ["color"] * 2 + ["exist"] * 2
    assert found[200] == color.row(5, 0, "train") and found[203] == exist.row(5, 1, "train")
    assert len(methods.replayed(color, [], 5, 200, 0.01).rows(None, None)) == 200
    assert data.name != methods.replayed(count, [color], 5, 200, 0.01).name


def test_joint_training_is_one_run_on_all_tasks_of_as_many_updates(preset, tmp_path):
    tasks = list(stand_in.tasks(None, True).values())
    rows = methods.union(tasks, 5, 10).rows(None, None)
    found = [rows[i] for i in range(len(rows))]
    assert len(found) == 30 and {row.task for row in found[:3]} == set(stand_in.ORDER)
    assert sum(row == tasks[1].row(5, 9, "train") for row in found) == 1
    joint = train(preset, methods.JOINT, tmp_path, stand_in.ORDER)
    assert joint.matrix.accuracy.shape == (2, 3) and joint.matrix.after == ("base", "joint")
    assert joint.cost["updates"] == train(preset, methods.SFT, tmp_path, stand_in.ORDER).cost["updates"] == 9
    with pytest.raises(UserError, match="T tasks in a row"):
        continual.forgetting(joint.matrix.accuracy)


def test_rif_trains_on_what_it_kept_and_its_control_on_as_many(preset, tmp_path, monkeypatch):
    monkeypatch.setattr(rollouts.Rollout, "correct", property(lambda r: r.sample < r.index % 5))  # 0 to 4 of 4 right
    asked = []
    monkeypatch.setattr(
        continual, "train_rft", lambda *a, f=continual.train_rft, **k: asked.append((a[0], k)) or f(*a, **k)
    )
    plan = dataclasses.replace(PLAN, rft_steps=4)
    rule, mixed = dataclasses.replace(methods.RIF, keep=(1, 4)), dataclasses.replace(methods.RIF_MIXED, keep=(1, 3))
    control = dataclasses.replace(methods.RIF_RANDOM, keep=(1, 4))
    found = {m.name: train(preset, m, tmp_path, plan=plan) for m in (rule, mixed, control)}
    left = [k["practice"].task.indices for _, k in asked]
    assert left[0] == left[1] == tuple(i for i in range(16) if i % 5) and left[2] == tuple(
        i for i in range(16) if i % 5 in (1, 2, 3)
    )
    assert len(left[4]) == len(left[5]) == len(left[0]) and len({left[0], left[4], left[5]}) == 3
    assert [p.train_n for p, _ in asked] == [12, 12, 9, 9, 12, 12] and [k["steps"] for _, k in asked] == [
        3,
        3,
        3,
        3,
        3,
        3,
    ]
    card = found["rif_mixed"].stages[0]["card"]
    assert (card["prompts"], card["prompts_kept"], card["trained_on"], card["at_random"]) == (16, 9, 9, False)
    assert found["rif_random"].stages[0]["card"]["at_random"] and found["rif"].cost["sampled"] == 2 * 16 * 4


def test_own_right_replies_are_sampled_anew_before_each_task(preset, tmp_path, monkeypatch):
    monkeypatch.setattr(rollouts.Rollout, "correct", property(lambda r: r.index % 2 == 0))
    learnt = []
    monkeypatch.setattr(
        continual, "train_sft", lambda *a, f=continual.train_sft, **k: learnt.append(k["data"]) or f(*a, **k)
    )
    found = train(preset, methods.SELF, tmp_path)
    for place, data in enumerate(learnt):
        rows = data.rows(None, None)
        drawn = [
            json.loads(x)
            for x in (recording.run_folder(found.record, tmp_path) / f"drawn-{place + 1}-{ORDER[place]}.jsonl")
            .read_text()
            .splitlines()
        ]
        own = {(x["index"], x["text"]) for x in drawn}
        task = stand_in.tasks(preset, True)[ORDER[place]]
        assert len(rows) == 8
        for i in range(8):
            index = next(
                n for n in range(16) if task.row(0, n, "train").prompt == rows[i].prompt and (n, rows[i].answer) in own
            )
            assert index % 2 == 0
        assert found.stages[place]["card"]["prompts_kept"] == 8
    monkeypatch.setattr(rollouts.Rollout, "correct", False)
    with pytest.raises(UserError, match="Nothing was kept"):
        train(preset, methods.SELF, tmp_path, seed=1)


@pytest.mark.parametrize(
    "method", [methods.RLOO, methods.REMAX, methods.GRPO_NO_KL, methods.GRPO_DIRECT, methods.SFT_DIRECT, methods.REPLAY, methods.SFT_RFT_LR, methods.SFT_SAME_UPDATES],
    ids=lambda m: m.name,
)  # fmt: skip
def test_every_method_runs(method, preset, tmp_path):
    order = ORDER if method.replay else ORDER[:1]
    found = train(preset, method, tmp_path, order)
    updates = {"sft_rft_lr": 4, "sft_same_updates": 2}.get(method.name, 3 if method.family == "sft" else 2) * len(order)
    assert found.cost["updates"] == updates and found.record.status == "done"
    if method.family == "rft":
        assert found.cost["rollouts"] == updates * 4 * (5 if method is methods.REMAX else 4)
        assert ("kl" in found.stages[0]["train"]) == method.kl
    assert ("think" in found.record.samples[0]["prompt"]) == method.thinking


# --- teacher forcing ---------------------------------------------------------------------------------------------------------------


def test_teacher_forced_accuracy_of_the_whole_answer_is_that_of_greedy_generation():
    model = load_policy(get_preset("tiny", max_completion=24))
    rows = [row for name in ("ground", "count", "arithmetic") for row in PROBES[name].rows(3, 8)]
    asked = [
        dataclasses.replace(row, prompt=f"{row.prompt} think first .") for row in rows
    ]  # no habit of the bundled base
    for some in (rows, asked):
        same = [text.split() == row.answer.split() for text, row in zip(generate(model, some), some, strict=True)]
        assert continual.teacher_forced(model, some).tolist() == same
        assert some is asked or sum(same) > 20


def test_teacher_forcing_flatters_an_answer_behind_reasoning():
    """Another row's places are asked for than the reasoning restates: alone the model is wrong, with the reasoning given it is right."""
    model = load_policy(get_preset("tiny", max_completion=24))
    rows = PROBES["lookup"].rows(3, 21)
    turned = [dataclasses.replace(row, prompt=other.prompt) for row, other in zip(rows, rows[1:], strict=False)]
    score = PROBES["lookup"].score
    free = np.mean([score(text, row) == "correct" for text, row in zip(generate(model, turned), turned, strict=True)])
    texts = continual.teacher_forced_texts(model, turned)
    forced = np.mean([score(text, row) == "correct" for text, row in zip(texts, turned, strict=True)])
    assert free < 0.2 and forced > 0.5 and continual.teacher_forced(model, turned).mean() < 0.2


# --- the seven tasks on the bundled base --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [methods.SFT, methods.GRPO], ids=lambda m: m.name)
def test_two_of_the_seven_tasks_from_end_to_end(method, tmp_path):
    preset = get_preset("tiny", sft_batch=8, rft_prompts=4, rft_group=4)
    plan = methods.Plan(sft_steps=2, rft_steps=2, instances=32, asked=6, probed=2, max_completion=24)
    found = continual.run_sequence(preset, 0, method, order=("compose", "clutter"), plan=plan, home=tmp_path)
    assert found.record.method == f"seven_{method.name}_compose-clutter" and found.matrix.accuracy.shape == (3, 2)
    assert set(found.record.evals()[0]["prior"]) == set(PROBES) and found.prior[0] > 0.9
    assert continual.load_sequence(recording.run_folder(found.record, tmp_path) / "record.json").cost == found.cost
    assert continual.forgetting(found.matrix.accuracy) <= 0
