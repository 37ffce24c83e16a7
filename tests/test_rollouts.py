import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rftkit import arms, jigsaw, recording, rollouts, runs
from rftkit.config import UserError, get_preset
from rftkit.policy import load_policy
from rftkit.rollouts import Rollout
from rftkit.sft import Data, Lazy, train_sft
from rftkit.tasks import JIGSAW


def rollout(index=0, text="a", hit=0.0, exact=0.0, fmt=0.0, number=0):
    return Rollout(index, number, 0, text, hit, exact, fmt)


def solved(index=0, text="a", number=0):
    return rollout(index, text, 1.0, 1.0, 1.0, number)


@pytest.fixture
def policy(small_preset):
    return load_policy(small_preset)


def answer_of(index, seed=0):
    return JIGSAW.row(seed, index, "train").data["answer"]


# --- sample -------------------------------------------------------------------------------------------------------------------


def test_a_sample_depends_on_its_own_seed_alone(policy):
    """Alone, in company, and as one of more samples: the same words."""
    many = rollouts.sample(policy, JIGSAW, 3, [5, 6, 7], k=2)
    assert [(r.index, r.sample) for r in many] == [(i, s) for i in (5, 6, 7) for s in (0, 1)]
    alone = rollouts.sample(policy, JIGSAW, 3, [6], k=1)
    assert alone[0] == many[2]
    texts = {r.text for r in many}
    assert len(texts) == 6  # an untrained model: no two samples agree
    assert rollouts.sample(policy, JIGSAW, 3, [6], k=1, step=1)[0].text != alone[0].text
    assert rollouts.sample(policy, JIGSAW, 4, [6], k=1)[0].text != alone[0].text


def test_sampling_draws_from_the_policy_s_distribution(policy):
    """The first word of 600 samples of one puzzle, against the softmax that the model gives it."""
    import torch

    from rftkit.policy import encode, generate

    row = JIGSAW.row(0, 0, "train")
    with torch.no_grad():
        p = policy.model.eval()(**encode(policy, [row])).logits[0, -1].softmax(-1)
    tokens = policy.processor.tokenizer
    likely = p.topk(5)
    n = 600
    texts = generate(policy, [row] * n, max_new_tokens=1, temperature=1.0, seed=list(range(n)), batch_size=200)
    for word, share in zip(likely.indices, likely.values, strict=True):
        seen = texts.count(tokens.decode([word], skip_special_tokens=True)) / n
        assert abs(seen - float(share)) < 4 * (float(share) / n) ** 0.5 + 0.01


def test_sampling_says_what_it_cannot_do(policy):
    for k, temperature in ((0, 1.0), (1, 0.0), (1, 9.0)):
        with pytest.raises(UserError, match="cannot be drawn"):
            rollouts.sample(policy, JIGSAW, 0, [0], k=k, temperature=temperature)


# --- keep ---------------------------------------------------------------------------------------------------------------------


def test_rules():
    group = [solved(text="a"), rollout(text="b", hit=0.5, fmt=1.0), rollout(text="c", hit=1.0, exact=1.0)]
    assert [r.text for r in rollouts.correct_only(group)] == ["a"]  # c has the right numbers in the wrong form
    assert [r.text for r in rollouts.above(1.5)(group)] == ["a", "c"]
    assert rollouts.rif(1, 3)(group) == [group[0]]
    assert rollouts.rif(2, 3)(group) == []
    everything = [solved(text=str(i)) for i in range(8)]
    assert len(rollouts.rif(1, 8)(everything)) == 8 and rollouts.rif(1, 7)(everything) == []
    for bounds in ((0, 8), (3, 2)):
        with pytest.raises(UserError, match="1 <= least <= most"):
            rollouts.rif(*bounds)


def test_repeats_are_dropped_within_a_prompt_and_the_card_says_so():
    drawn = [solved(0, "a b"), solved(0, "a  b", 1), solved(0, "c", 2), rollout(1, "d"), solved(2, "a b")]
    kept = rollouts.keep(drawn, rollouts.correct_only, "a test")
    assert [(r.index, r.text) for r in kept.rollouts] == [(0, "a b"), (0, "c"), (2, "a b")]
    assert kept.card["repeats_dropped"] == 1 and kept.card["kept"] == 3 and kept.card["prompts_kept"] == 2
    assert kept.card["correct_per_prompt"] == {0: 1, 1: 1, 3: 1} and kept.card["solved"] == 4
    assert len(rollouts.keep(drawn, rollouts.correct_only, "a test", per_prompt=1).rollouts) == 2
    nothing = rollouts.keep([rollout()], rollouts.correct_only, "a test")
    assert nothing.card["kept"] == 0 and "None" in rollouts.card_text(nothing.card)
    with pytest.raises(UserError, match="no rollouts"):
        rollouts.keep([], rollouts.correct_only, "a test")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from("abc"), st.booleans()), min_size=1, max_size=20))
def test_what_is_kept_is_distinct_correct_and_in_order(drawn):
    made = [solved(i, t, n) if good else rollout(i, t, number=n) for n, (i, t, good) in enumerate(drawn)]
    kept = rollouts.keep(made, rollouts.correct_only, "a test").rollouts
    assert len({(r.index, r.text) for r in kept}) == len(kept) and all(r.correct for r in kept)
    for r in kept:  # of equal replies the first, and they stay in order
        assert r.sample == min(m.sample for m in made if m.correct and (m.index, m.text) == (r.index, r.text))
    assert all(a.sample < b.sample for a, b in zip(kept, kept[1:], strict=False) if a.index == b.index)
    assert {(r.index, r.text) for r in kept} == {(r.index, r.text) for r in made if r.correct}


# --- files --------------------------------------------------------------------------------------------------------------------


def right_text(index, think="sky left"):
    return jigsaw.answer_text(answer_of(index), think)


def test_a_file_is_scored_anew_when_it_is_read(tmp_path):
    made = [rollouts.scored(JIGSAW.row(0, i, "train"), i, 0, 0, right_text(i)) for i in (0, 3)]
    kept = rollouts.keep(made, rollouts.correct_only, "a test")
    path = tmp_path / "deep" / "some.jsonl"
    rollouts.save(kept, path)
    assert rollouts.load(path, JIGSAW, 0).rollouts == kept.rollouts
    lines = path.read_text().splitlines()
    forged = json.loads(lines[1]) | {"text": "<think> </think> <answer> 1 2 3 </answer>", "exact": 1.0}
    path.write_text("\n".join([lines[0], json.dumps(forged)]))
    assert not rollouts.load(path, JIGSAW, 0).rollouts[0].correct
    assert [p.name for p in path.parent.iterdir()] == ["some.jsonl"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"card": {}}\n{"index": "x"}', '{"card": {}}\n{"index": 1}'])
def test_a_damaged_file_is_one_sentence(tmp_path, text):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match="no file of rollouts"):
        rollouts.load(path, JIGSAW, 0)
    with pytest.raises(UserError, match="cannot be read"):
        rollouts.load(tmp_path / "none.jsonl", JIGSAW, 0)


@pytest.mark.parametrize("seed", range(5))
def test_the_recorded_rollouts_solve_their_puzzles(seed):
    kept = rollouts.load(arms.ROLLOUTS_DIR / f"tiny-rft-s{seed}.jsonl", JIGSAW, seed)
    assert len(kept.rollouts) == kept.card["kept"] > 1000 and all(r.correct for r in kept.rollouts)
    assert len({r.index for r in kept.rollouts}) == len(kept.rollouts)
    learnt = runs.load_record(runs.RECORDED_DIR / f"tiny-sft_rollouts-s{seed}.json")
    assert rollouts.imitate(kept, JIGSAW, seed, "rft-rollouts").name == learnt.config["data"]


# --- data -----------------------------------------------------------------------------------------------------------------------


def test_thinking():
    assert rollouts.thinking("<think> a b </think> <answer> 1 </answer>") == "a b"
    assert rollouts.thinking("<think> a") == rollouts.thinking("a </think>") == rollouts.thinking("") == ""


def test_imitated_rows_and_mended_answers(policy, tmp_path):
    kept = rollouts.Kept((rollout(2, "<think> hm </think> <answer> 1 </answer>"),), {})
    row = rollouts.imitate(kept, JIGSAW, 0, "x").rows(policy, tmp_path)[0]
    assert row.answer == kept.rollouts[0].text and row.data["answer"] == answer_of(2)
    mended = rollouts.right_answers(kept, JIGSAW, 0, "x").rows(policy, tmp_path)[0]
    assert mended.answer == right_text(2, "hm")
    assert rollouts.imitate(kept, JIGSAW, 0, "x").name != rollouts.right_answers(kept, JIGSAW, 0, "x").name
    with pytest.raises(UserError, match="several replies"):
        rollouts.imitate(rollouts.Kept((rollout(2, "a"), rollout(2, "b")), {}), JIGSAW, 0, "x")
    with pytest.raises(UserError, match="nothing to imitate"):
        rollouts.imitate(rollouts.Kept((), {}), JIGSAW, 0, "x")


@pytest.mark.parametrize("far", [False, True])
def test_reworded_reasoning_is_right_in_the_vocabulary_and_fits(policy, tmp_path, far):
    preset, base = get_preset("tiny"), load_policy(get_preset("tiny"))
    rows = rollouts.reworded(preset, JIGSAW, 0, far).rows(policy, tmp_path)
    for i in range(5):
        row = rows[i]
        parsed = jigsaw.parse(row.answer, 3, 3)
        assert parsed.template and parsed.indices == row.data["answer"]
        ids = base.processor.tokenizer(row.answer)["input_ids"]
        assert len(ids) < preset.max_completion and base.processor.tokenizer.unk_token_id not in ids
        words = rollouts.thinking(row.answer).split()
        rows_said, columns_said = (words[0::2], words[1::2]) if far else (words[1::2], words[0::2])
        names = ("top", "middle", "bottom") if far else ("sky", "hill", "sand")
        places = [
            names.index(r) * 3 + ("left", "mid", "right").index(c) for r, c in zip(rows_said, columns_said, strict=True)
        ]
        assert tuple(p + 1 for p in places) == row.data["answer"]
    long = rollouts.reworded(dataclasses.replace(preset, prompt_style="full"), JIGSAW, 0, far).rows(policy, tmp_path)[0]
    assert jigsaw.parse(long.answer, 3, 3).template and long.answer != rows[0].answer


# --- training on it ---------------------------------------------------------------------------------------------------------------


def truthful(group):
    """A rule for a policy that solves nothing: keep the reply to every other puzzle, whatever it is."""
    return [r for r in group if r.index % 2 == 0]


def test_fresh_rollouts_are_drawn_anew_each_epoch_and_read_when_resumed(policy, tmp_path, monkeypatch):
    rows = rollouts.FreshRollouts(policy, tmp_path, JIGSAW, 0, truthful, size=3, prompts=4, epochs=2)
    assert len(rows) == 6
    said = [rows[i].answer for i in range(6)]
    assert said[2] == said[0] and said[0] != said[3]  # two kept, three asked for; another draw in the second epoch
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "trainer_state.json").write_text("{}")
    monkeypatch.setattr(rollouts, "sample", lambda *a, **k: pytest.fail("drawn again"))
    again = rollouts.FreshRollouts(policy, tmp_path, JIGSAW, 0, truthful, size=3, prompts=4, epochs=2)
    assert [again[i].answer for i in range(6)] == said
    (tmp_path / "checkpoint-1" / "trainer_state.json").unlink()  # killed before a checkpoint: it begins anew
    rollouts.FreshRollouts(policy, tmp_path, JIGSAW, 0, truthful, size=3, prompts=4, epochs=2)
    assert not list(tmp_path.glob("rollouts-*"))


def test_a_policy_that_solves_nothing_has_nothing_to_learn_from(policy, tmp_path):
    rows = rollouts.FreshRollouts(policy, tmp_path, JIGSAW, 0, rollouts.correct_only, size=3, prompts=4, epochs=2)
    with pytest.raises(UserError, match="none of 4 puzzles"):
        rows[0]


def test_data_asked_in_order_is_learnt_in_order(small_preset, tmp_path):
    asked = []

    def row(i):
        asked.append(i)
        return JIGSAW.row(0, i, "train")

    data = Data("counted", lambda policy, folder: Lazy(8, row), ordered=True)
    train_sft(small_preset, 0, data=data, steps=2, home=tmp_path)
    assert asked == list(range(8))


def test_a_run_goes_on_from_another(small_preset, tmp_path):
    """Its record begins with the other's, its updates count on, its first weights are the other's last."""
    first, _ = train_sft(small_preset, 0, name="sft", steps=2, eval_steps={2}, home=tmp_path)
    weights = recording.run_folder(first, tmp_path) / "final"
    after = recording.Before(first, weights)
    second, _ = train_sft(
        small_preset, 0, name="sft_more", steps=2, eval_steps={1, 2}, home=tmp_path, after=after, lr=1e-12,
        measure=lambda policy: {"kind": "dynamics", "perplexity": 1.0},
    )  # fmt: skip
    assert [m["step"] for m in second.evals()] == [0, 2, 3, 4]
    assert [m["step"] for m in second.metrics if m["kind"] == "dynamics"] == [3, 4]
    assert second.evals()[:2] == first.evals()
    for key in ("prior", "new_exact", "new_hit"):  # at a rate of 1e-12 it is still what the first run had become
        assert second.evals()[2][key] == first.evals()[1][key]
    assert [m["examples"] for m in second.evals()] == [0, 8, 12, 16]
    assert second.config["after"]["method"] == "sft" and second.config["after"]["steps"] == 2
    folder = recording.run_folder(second, tmp_path)  # killed after its evaluations, before its end: it repeats itself
    unfinished = dataclasses.replace(second, status="running")
    runs.save_record(unfinished, folder / "record.json")
    repeated, _ = train_sft(
        small_preset, 0, name="sft_more", steps=2, eval_steps={1, 2}, home=tmp_path, after=after, lr=1e-12
    )  # fmt: skip
    for key in ("step", "examples", "prior", "new_exact"):
        assert [m[key] for m in repeated.evals()] == [m[key] for m in second.evals()]
    again, _ = train_sft(
        small_preset, 0, name="sft_more", steps=2, eval_steps={1, 2}, home=tmp_path, after=after, lr=1e-12
    )  # fmt: skip
    assert again.metrics == repeated.metrics  # read, not repeated


def test_dft_is_another_loss(small_preset, tmp_path):
    losses = []
    for loss_type in ("nll", "dft"):
        record, _ = train_sft(small_preset, 0, steps=1, loss_type=loss_type, home=tmp_path)
        losses.append(next(m["loss"] for m in record.metrics if m["kind"] == "train"))
    assert (
        losses[1] < losses[0] / 5
    )  # each token's loss weighed by its probability, which is small in an untrained model


def test_rft_stops_at_the_accuracy_asked_for(small_preset, tmp_path):
    from rftkit.rft import train_rft

    record, _ = train_rft(small_preset, 0, steps=3, until=0.0, eval_steps={1, 3}, home=tmp_path)
    assert [m["step"] for m in record.evals()] == [0, 1] and record.status == "done"


def test_predictors_are_those_of_the_base():
    record = runs.load_record(runs.RECORDED_DIR / "tiny-sft_rollouts-s0.json")
    found = arms.predictors(record)
    row = next(m for m in record.metrics if m["kind"] == "dynamics")
    assert row["step"] == 0 and found["perplexity"] == row["perplexity"] and found["norm"] == row["train_norm"]
    assert found["direction"] == pytest.approx(sum(row["cosine"].values()) / 8)
    assert arms.predictors(runs.load_record(runs.RECORDED_DIR / "tiny-rft-s0.json")) is None
