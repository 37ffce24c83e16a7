import dataclasses
import json

import numpy as np
import pytest

from rftkit import policy, rif, rollouts
from rftkit.config import UserError
from rftkit.tasks import Row, Task


def make(rng, split):
    return Row("toy", f"say {int(rng.integers(1000))}", "yes", data={"target": "yes"})


TOY = Task(
    "toy",
    make,
    lambda text, row: "correct" if text == row.data["target"] else "wrong" if text == "no" else "unparseable",
)


@pytest.fixture
def asked(monkeypatch, small_preset):
    """A model that is right as often as the seeds of its samples say; and what it was asked."""
    calls = []

    def generate(model, rows, temperature, seed):
        calls.extend(seed)
        assert temperature == 1.0 and len(rows) == len(seed)
        return [("yes", "no", "what")[s % 3] for s in seed]

    monkeypatch.setattr(policy, "generate", generate)
    return policy.Policy(None, None, small_preset), calls


def test_samples_are_scored_by_the_task_and_do_not_depend_on_the_batch(asked):
    model, _ = asked
    drawn = rif.draw(model, TOY, 3, range(10), 8)
    assert [(r.index, r.sample) for r in drawn] == [(i, s) for i in range(10) for s in range(8)]
    for r in drawn:
        verdict = ("correct", "wrong", "unparseable")[rollouts.sample_seed(3, 0, r.index, r.sample) % 3]
        assert (r.exact, r.fmt, r.correct) == (verdict == "correct", verdict != "unparseable", verdict == "correct")
    assert rif.draw(model, TOY, 3, [7, 2], 8) == [r for i in (7, 2) for r in drawn if r.index == i]


@pytest.mark.parametrize("left", [0, 1, 200, 10_000])
def test_a_killed_run_goes_on_drawing_where_it_was(asked, tmp_path, left):
    model, calls = asked
    path = tmp_path / "drawn.jsonl"
    whole = rif.draw(model, TOY, 3, range(6), 4, path)
    assert rif.draw(model, TOY, 3, range(6), 4, path) == whole and len(calls) == 24  # nothing is drawn twice
    data = path.read_bytes()
    path.write_bytes(data[:left])
    calls.clear()
    assert rif.draw(model, TOY, 3, range(6), 4, path) == whole
    lines = path.read_text().splitlines()
    assert len(lines) == data.count(b"\n") == 24 and len(calls) == 24 - data[:left].count(b"\n")
    assert rif.seconds(path) == pytest.approx(sum(json.loads(line)["seconds"] for line in lines))


def test_an_interrupted_drawing_has_cost_both_its_parts(asked, tmp_path, monkeypatch):
    model, _ = asked
    path, clock = tmp_path / "drawn.jsonl", iter(range(100))
    monkeypatch.setattr(rif.time, "monotonic", lambda: next(clock))  # each chunk takes a second
    rif.draw(model, TOY, 3, range(6), 4, path)
    chunks = -(-6 // max(1, model.preset.eval_batch // 4))
    assert rif.seconds(path) == pytest.approx(chunks, abs=0.01)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))  # killed after its first row
    assert rif.seconds(path) < chunks
    rif.draw(model, TOY, 3, range(6), 4, path)
    assert rif.seconds(path) == pytest.approx(chunks, abs=0.01)


def test_a_file_s_word_for_a_score_is_not_taken(asked, tmp_path):
    model, _ = asked
    path = tmp_path / "drawn.jsonl"
    path.write_text(json.dumps({"index": 0, "sample": 0, "text": "no", "exact": 1.0, "correct": True}) + "\n")
    assert not rif.draw(model, TOY, 3, [0], 1, path)[0].correct


def group(index, right, of=8):
    return [rollouts.Rollout(index, s, 0, f"text {s}", float(s < right), float(s < right), 1.0) for s in range(of)]


def test_the_two_readings_of_the_rule():
    drawn = [r for i, right in enumerate((0, 1, 4, 7, 8)) for r in group(i, right)]
    assert {r.index for r in rif.kept_by(drawn, (1, 8)).rollouts} == {1, 2, 3, 4}
    mixed = rif.kept_by(drawn, (1, 7))
    assert {r.index for r in mixed.rollouts} == {1, 2, 3}
    card = mixed.card
    assert (card["prompts"], card["samples"], card["prompts_kept"], card["share_kept"]) == (5, 40, 3, 0.6)
    assert card["correct_per_prompt"] == {0: 1, 1: 1, 4: 1, 7: 1, 8: 1} and "1 to 7 right" in card["source"]
    assert not any(key.startswith("mean_reward") for key in card)
    with pytest.raises(UserError, match="keeps nothing"):
        rif.kept_by(drawn, (0, 8))


def test_what_is_chosen_is_all_that_is_trained_on_and_nothing_else_changes():
    task = rif.chosen(TOY, [9, 4, 4])
    assert [task.row(0, i, "train") for i in range(4)] == [TOY.row(0, i, "train") for i in (4, 9, 4, 9)]
    assert task.rows(0, 5) == TOY.rows(0, 5) and task.name == "toy"
    with pytest.raises(UserError, match="No instance of toy"):
        rif.chosen(TOY, [])


def test_the_leaking_filter_shows_the_answer_in_the_prompt_and_scores_as_before():
    leaky = rif.leaking(TOY)
    for plain, told in zip(TOY.rows(0, 5), leaky.rows(0, 5), strict=True):
        assert told == dataclasses.replace(plain, prompt=f"the answer is yes . {plain.prompt}")
        assert leaky.score("yes", told) == "correct" and leaky.score("no", told) == "wrong"
    copies = np.mean([leaky.score(row.prompt.split()[3], row) == "correct" for row in leaky.rows(0, 20)])
    assert copies == 1.0  # whoever copies a word out of the prompt passes
