import dataclasses
import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rftkit import drift, recording, runs
from rftkit.config import UserError
from rftkit.policy import generate, generate_ids, load_policy, load_trained
from rftkit.sft import train_sft
from rftkit.tasks import JIGSAW, PROBES

ROWS = [*JIGSAW.rows(5, 3), *PROBES["arithmetic"].rows(5, 3), *PROBES["color"].rows(5, 2)]
FINITE = st.lists(st.floats(-8, 8), min_size=5, max_size=5)


@pytest.fixture
def base(small_preset):
    return load_policy(small_preset)


def moved(preset, size=0.05, seed=3):
    policy, generator = load_policy(preset), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "visual." not in name:
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return policy


# --- two distributions --------------------------------------------------------------------------------------------------------


def test_kl_of_five_logits_in_closed_form():
    p, q = torch.tensor([0.0, 0, -torch.inf, -torch.inf, -torch.inf]), torch.zeros(5)
    assert float(drift.kl(p, q)) == pytest.approx(math.log(5 / 2), abs=1e-14)  # half and half against a fifth each
    assert float(drift.kl(q, p)) == math.inf  # p rules out what q says
    assert float(drift.total_variation(p, q)) == pytest.approx(3 / 5)
    a, b = torch.tensor([2.0, -1, 0, 0, 0]), torch.tensor([-1.0, 2, 0, 0, 0])  # each other's mirror image
    assert float(drift.kl(a, b)) == pytest.approx(float(drift.kl(b, a)))
    assert float(drift.kl(a, b)) == pytest.approx(float(3 * (a.softmax(0)[0] - a.softmax(0)[1])))  # log ratios 3 and -3
    assert (
        abs(float(drift.kl(torch.tensor([0.0, 1, 2, 3, 4]), q)) - float(drift.kl(q, torch.tensor([0.0, 1, 2, 3, 4]))))
        > 0.1
    )


@given(FINITE, FINITE, st.floats(-5, 5))
def test_kl_is_a_divergence(x, y, shift):
    p, q = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    found = float(drift.kl(p, q))
    assert found >= 2 * float(drift.total_variation(p, q)) ** 2 - 1e-12  # Pinsker
    assert found == pytest.approx(float(drift.kl(p + shift, q)), abs=1e-9)  # logits have no zero
    assert float(drift.kl(p, p)) == 0


class Chain:
    """A policy of five tokens, 0 the end: the next one depends on the last. (5, 5) logits a row, rows for tokens 0 to 4 as the last."""

    def __init__(self, seed):
        self.logits = 1.5 * torch.randn(5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def replies(self, length):
        """Every reply, cut at `length`, with its log-probability."""
        for n in range(1, length + 1):
            for body in itertools.product(range(1, 5), repeat=n - 1):
                for end in range(5) if n == length else (0,):
                    reply = [*body, end]
                    at = self.logits.log_softmax(-1)[[1, *reply[:-1]], reply]
                    yield reply, float(at.sum())

    def next(self, reply):
        return self.logits[[1, *reply[:-1]]]


def test_the_sum_over_positions_is_the_kl_of_whole_replies():
    p, q, length = Chain(0), Chain(1), 3
    under_q = {tuple(r): s for r, s in q.replies(length)}
    every = list(p.replies(length))
    assert math.fsum(math.exp(s) for _, s in every) == pytest.approx(1)
    whole = math.fsum(math.exp(s) * (s - under_q[tuple(r)]) for r, s in every)
    stepwise = math.fsum(math.exp(s) * float(drift.kl(p.next(r), q.next(r)).sum()) for r, s in every)
    assert stepwise == pytest.approx(whole, rel=1e-12)

    rng, n = np.random.default_rng(0), 4000
    weights = np.exp([s for _, s in every])
    drawn = [every[i] for i in rng.choice(len(every), n, p=weights / weights.sum())]
    kls = [drift.kl(p.next(r), q.next(r)) for r, _ in drawn]
    found = drift.summed_up(kls, [drift.total_variation(p.next(r), q.next(r)) for r, _ in drawn])
    assert abs(found.reply - whole) < 4 * found.reply_error < 0.1 * whole
    ratios = [s - under_q[tuple(r)] for r, s in drawn]  # the plain estimator, of the same replies
    assert found.reply_error < 0.7 * float(np.std(ratios)) / math.sqrt(n)
    mean_length = math.fsum(math.exp(s) * len(r) for r, s in every)
    assert abs(found.token - whole / mean_length) < 4 * found.token_error


def test_errors_shrink_with_the_root_and_cover():
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 6, 6400)
    kls = [torch.tensor(rng.exponential(2, n)) for n in lengths]
    inside = 0
    for start in range(0, 6400, 64):
        part = drift.summed_up(kls[start : start + 64], kls[start : start + 64])
        inside += abs(part.token - 2) < 1.96 * part.token_error
        assert part.tv == pytest.approx(part.token)
    assert 88 <= inside <= 99
    whole = drift.summed_up(kls, kls)
    assert whole.token_error == pytest.approx(part.token_error / 10, rel=0.4)


@pytest.mark.parametrize("kls", [[], [torch.ones(3)], [torch.ones(3), torch.ones(0)]])
def test_too_few_replies_are_refused(kls):
    with pytest.raises(UserError):
        drift.summed_up(kls, kls)


# --- two policies ---------------------------------------------------------------------------------------------------------------


def test_logits_are_those_that_generation_drew_from(base):
    """With images and without, several lengths, one and many at a time."""
    said = generate_ids(base, ROWS)
    for batch in (1, 8):
        for ids, logits in zip(said, drift.next_logits(base, ROWS, said, batch), strict=True):
            assert logits.argmax(-1).tolist() == ids
    short = [ids[: 2 + i] for i, ids in enumerate(said)]
    for whole, part in zip(drift.next_logits(base, ROWS, said), drift.next_logits(base, ROWS, short), strict=True):
        torch.testing.assert_close(whole[: len(part)], part, rtol=0, atol=2e-4)


def test_replies_are_the_sampled_texts_up_to_the_end(base):
    end = base.model.generation_config.eos_token_id
    said, cut = drift.replies(base, ROWS, seed=4, max_new_tokens=40)
    texts = generate(base, ROWS, 40, temperature=1.0, seed=4)
    assert base.processor.tokenizer.batch_decode(said, skip_special_tokens=True) == texts
    for ids, short in zip(said, cut, strict=True):
        assert (ids[-1] == end) is not short and end not in ids[:-1] and len(ids) <= 40
        assert short is (len(ids) == 40 and ids[-1] != end)
    assert not all(cut)


def test_a_policy_is_where_it_is(base):
    for side in drift.both_ways(base, base, ROWS, max_new_tokens=6).values():
        assert side["reply"] == side["token"] == side["tv"] == side["reply_error"] == 0


def test_forward_is_the_reverse_of_the_swapped(base, small_preset):
    other = moved(small_preset)
    a, b = drift.both_ways(base, other, ROWS, max_new_tokens=6), drift.both_ways(other, base, ROWS, max_new_tokens=6)
    assert a["forward"] == b["reverse"] and a["reverse"] == b["forward"]
    assert a["forward"]["reply"] > 0 and a["forward"]["reply"] != a["reverse"]["reply"]


def test_kl_of_two_tokens_against_all_replies_there_are(base, small_preset):
    """The policy's own vocabulary, every reply of two tokens enumerated."""
    other, row = moved(small_preset, 0.2), PROBES["arithmetic"].row(5, 0)
    size, end = base.model.config.text_config.vocab_size, base.model.generation_config.eos_token_id
    said = [[first, 0] for first in range(size)]
    p, q = (
        torch.stack(list(drift.next_logits(policy, [row] * size, said, size))).double().log_softmax(-1)
        for policy in (base, other)
    )
    first, second = p[0, 0], p[:, 1]  # (V,), (V, V): row i after token i
    gap, gaps = (
        torch.where(first.isneginf(), 0.0, first - q[0, 0]),
        torch.where(second.isneginf(), 0.0, second - q[:, 1]),
    )
    goes_on = torch.arange(size) != end
    exact = (first.exp() * gap).sum() + (first.exp() * goes_on * (second.exp() * gaps).sum(-1)).sum()
    found = drift.divergence(base, other, [row] * 200, seed=1, max_new_tokens=2)
    assert found.reply_error < 0.1 * exact and abs(found.reply - exact) < 4 * found.reply_error


# --- weights --------------------------------------------------------------------------------------------------------------------


def test_weight_change_in_closed_form():
    base = {"a": torch.tensor([3.0, 0]), "b": torch.tensor([[4.0, 1.0]])}
    tuned = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([[4.0, 1.0 + 2**-12]])}
    found = drift.weight_change(base, tuned)
    assert found["relative"] == pytest.approx(math.sqrt((1 + 2**-24) / 26))
    assert found["relative_l1"] == pytest.approx((1 + 2**-12) / 8)
    assert found["changed"] == 0.5 and found["changed_bf16"] == 0.25  # a small step is lost in bfloat16
    assert set(drift.weight_change(base, base).values()) == {0.0}
    with pytest.raises(UserError):
        drift.weight_change(base, {"a": tuned["a"]})


def test_rotation_of_known_subspaces():
    w = torch.diag(torch.tensor([10.0, 9, 8, 1, 0.5, 0.2]))
    turned = torch.diag(torch.tensor([10.0, 9, 1, 8, 0.5, 0.2]))  # of three leading directions one is another
    found = drift.rotation({"w": w, "same": w}, {"w": turned, "same": w.clone()}, k=3)
    assert found["left"] == pytest.approx(math.sqrt(1 / 3) / 2, abs=1e-6) == found["right"]  # an equal matrix is a 0
    scaled = drift.rotation({"w": w}, {"w": 1.5 * w}, k=3)
    assert scaled["left"] < 1e-6 < 0.01 < scaled["left_null"]


# --- finished runs ----------------------------------------------------------------------------------------------------------------


def trained(preset, home, **more):
    """The first update of a warm-up has rate 0."""
    return train_sft(preset, 0, steps=3, eval_steps={2, 3}, save_at={2, 3}, lr=1e-2, home=home, **more)[0]


def test_a_run_is_measured_and_resumed(small_preset, tmp_path):
    record = trained(small_preset, tmp_path)
    (run,) = drift.finished(tmp_path)
    assert list(run.weights) == [2, 3] and run.base is None and run.bench == "jigsaw" and run.preset == small_preset
    late = dataclasses.replace(run, weights={3: run.weights[3]})
    drift.measure(late, n=8, k=4, folder=tmp_path / "out")
    shutil.rmtree(run.weights[3])  # a finished checkpoint is not looked at again
    made = drift.measure(run, n=8, k=4, folder=tmp_path / "out")
    assert drift.load(tmp_path / "out") == [json.loads((tmp_path / "out" / f"{run.folder.name}.json").read_text())]
    assert [c["updates"] for c in made["checkpoints"]] == [2, 3]
    near, far = made["checkpoints"]
    assert far["new_exact"] == record.evals()[-1]["new_exact"]
    assert far["drop"] == pytest.approx(runs.prior_drop(record)[1][-1], rel=1e-5, abs=1e-9)
    assert 0 < near["new"]["forward"]["reply"] < far["new"]["forward"]["reply"]
    assert 0 < near["weights"]["relative"] < far["weights"]["relative"] < 1
    assert far["prior"]["forward"]["replies"] == 8 and 0 < far["rotation"]["left"] <= 1
    assert drift.measure(run, n=8, k=4, folder=tmp_path / "out") == made
    assert str(tmp_path) not in json.dumps(made)
    with pytest.raises(UserError, match="no finished run"):
        drift.main([str(tmp_path), "--runs", "another"])


def test_of_a_sequence_what_it_gained_is_told_since_accuracy_at_its_end_is_what_forgetting_left():
    record = runs.load_record(runs.RECORDED_DIR / "tiny-seven_sft-s0.json")
    run = drift.Finished(Path(), record, None, 0, {})
    last = record.evals()[-1]
    (gained,) = drift._gained(run, last["step"]).values()
    after = [record.evals()[i + 1]["tasks"][task]["correct"] for i, task in enumerate(record.config["order"])]
    before = [record.evals()[i]["tasks"][task]["correct"] for i, task in enumerate(record.config["order"])]
    asked = sum(last["tasks"]["science"].values())
    assert gained == pytest.approx(sum(a - b for a, b in zip(after, before, strict=True)) / 7 / asked)
    assert gained > last["new_exact"] + 0.2 and drift._gained(run, 0) == {}
    (puzzle,) = runs.load_recorded("rft")[:1]
    assert drift._gained(dataclasses.replace(run, record=puzzle), puzzle.evals()[-1]["step"]) == {}
    for made in drift.load():
        (point,) = drift.points_of([made])
        end = made["checkpoints"][-1]
        assert ("gained" in end) == (made["bench"] == "seven")
        assert point.gained == point.predictors["gained"] == end.get("gained", end["new_exact"])


def test_an_adapter_is_added_to_its_base(small_preset, tmp_path):
    trained(small_preset, tmp_path, lora_rank=2, name="lora_sft")
    (run,) = drift.finished(tmp_path)
    tuned = load_policy(small_preset)
    load_trained(tuned, run.weights[3])
    said = generate_ids(tuned, ROWS)
    adapted = list(drift.next_logits(tuned, ROWS, said))
    whole = drift.merged(tuned)
    for a, b in zip(adapted, drift.next_logits(whole, ROWS, said), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3)
    drift.same_tower(load_policy(small_preset), whole)
    made = drift.measure(run, n=4, k=4, folder=tmp_path / "out")
    assert 0 < made["checkpoints"][-1]["weights"]["changed"] < 1  # tables and norms stay


def test_a_practised_base_is_the_origin(small_preset, tmp_path):
    first = train_sft(small_preset, 0, name="sums_practice", steps=2, save_at={2}, home=tmp_path, lr=1e-2)[0]
    weights = recording.weights_at(recording.run_folder(first, tmp_path), 2)
    middle = train_sft(
        small_preset, 0, name="sums_sft", steps=1, after=recording.Before(first, weights), home=tmp_path
    )[0]
    before = recording.Before(middle, recording.run_folder(middle, tmp_path) / "final")
    last = train_sft(small_preset, 0, name="sums_sft_rft", steps=1, after=before, home=tmp_path)[0]
    found = {run.record.method: run for run in drift.finished(tmp_path)}
    assert set(found) == {"sums_sft", "sums_sft_rft"}
    run = found["sums_sft_rft"]
    assert run.base == weights and run.start == 2 and list(run.weights) == [last.evals()[-1]["step"]] == [4]
    shutil.rmtree(recording.run_folder(middle, tmp_path))
    assert drift.finished(tmp_path) == []


def test_another_base_is_refused(small_preset, tmp_path):
    trained(small_preset, tmp_path)
    (run,) = drift.finished(tmp_path)
    other = load_policy(small_preset)
    with torch.no_grad():
        next(p for n, p in other.model.named_parameters() if "visual." in n).add_(1)
    with pytest.raises(UserError, match="vision towers differ"):
        drift.same_tower(other, load_policy(run.preset))
    run.record.config["base"] = "0123456789abcdef"
    with pytest.raises(UserError, match="0123456789abcdef"):
        drift.measure(run, n=4, k=4, folder=tmp_path / "out")


def test_damaged_and_double_results_are_refused(tmp_path):
    assert drift.load(tmp_path) == []
    one = {
        "name": "sft-s0",
        "method": "sft",
        "seed": 0,
        "bench": "jigsaw",
        "settings": "a",
        "measured": {"schema": 1},
        "checkpoints": [],
    }
    (tmp_path / "a.json").write_text(json.dumps(one))
    assert len(drift.load(tmp_path)) == 1
    (tmp_path / "b.json").write_text(json.dumps(one | {"settings": "b"}))
    with pytest.raises(UserError, match="a and b"):
        drift.load(tmp_path)
    for text in ("[]", "{", json.dumps(one | {"measured": {"schema": 0}})):
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(UserError, match="no measured run"):
            drift.load(tmp_path)
