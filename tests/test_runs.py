import dataclasses
import errno
import json
import math
import os
import re
import socket

import numpy as np
import pytest
from fake_runs import all_noisy, eval_row, record

from rftkit import runs
from rftkit.config import UserError

RISING = [(0, 0.0, 0.8), (10, 0.4, 0.6), (20, 0.8, 0.2)]  # reaches 0.5 at step 12.5, where the prior is 0.5


def sample_record():
    out = record(rows=RISING, config={"lr": 5e-4}, versions=runs.versions())
    out.metrics.insert(1, {"kind": "train", "step": 5, "loss": 1.25})
    out.samples.append({"step": 10, "prompt": "order?", "completion": "1 2 \u00e9 \u4e2d \U0001f600", "reward": 0.5})
    return out


# --- files


def test_a_record_comes_back_as_it_was(tmp_path):
    path = tmp_path / "deep" / "er" / "record.json"
    runs.save_record(sample_record(), path)
    assert runs.load_record(path) == sample_record()
    assert os.listdir(path.parent) == ["record.json"]


def test_numpy_becomes_plain_and_nan_becomes_null(tmp_path):
    path = tmp_path / "record.json"
    rec = record(rows=RISING)
    rec.metrics[1]["new_exact"] = np.float32(0.5)
    rec.metrics.append(
        {"kind": "train", "step": 20, "loss": math.nan, "reward": np.float64("inf"), "ids": (np.int64(1), 2)}
    )
    runs.save_record(rec, path)
    back = runs.load_record(path).metrics
    assert back[1]["new_exact"] == 0.5
    assert back[-1] == {"kind": "train", "step": 20, "loss": None, "reward": None, "ids": [1, 2]}
    json.loads(path.read_text(), parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))


def fail_with(code):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize(("call", "code"), [("fsync", errno.ENOSPC), ("fsync", errno.EIO), ("replace", errno.EACCES)])
def test_a_failed_write_leaves_the_old_record(tmp_path, monkeypatch, call, code):
    path = tmp_path / "record.json"
    old = sample_record()
    runs.save_record(old, path)
    newer = dataclasses.replace(old, status="failed")
    monkeypatch.setattr(os, call, fail_with(code))
    with pytest.raises(UserError, match=re.escape(os.strerror(code))):
        runs.save_record(newer, path)
    monkeypatch.undo()
    assert runs.load_record(path) == old
    assert os.listdir(tmp_path) == ["record.json"]
    runs.save_record(newer, path)
    assert runs.load_record(path) == newer


def test_a_kill_in_the_middle_leaves_the_old_record(tmp_path, monkeypatch):
    """A killed process runs no clean-up: neither the rename nor the removal of the half-written file happens."""

    class Killed(BaseException):
        pass

    def kill(*args):
        raise Killed

    path = tmp_path / "record.json"
    runs.save_record(sample_record(), path)
    monkeypatch.setattr(os, "replace", kill)
    monkeypatch.setattr("pathlib.Path.unlink", lambda *a, **k: None)
    with pytest.raises(Killed):
        runs.save_record(dataclasses.replace(sample_record(), status="failed"), path)
    monkeypatch.undo()
    assert runs.load_record(path) == sample_record()
    assert len(os.listdir(tmp_path)) == 2  # the orphan is there, hidden, and no *.json
    assert runs.load_recorded(folder=tmp_path)[0].status == "done"
    runs.save_record(sample_record(), path)  # the same process overwrites its orphan
    assert os.listdir(tmp_path) == ["record.json"]


def test_a_folder_in_the_way_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="was not written"):
        runs.save_record(sample_record(), tmp_path / "file" / "record.json")
    with pytest.raises(UserError, match="cannot be made"):
        runs.run_dir(tmp_path / "file", "sft-0")


def test_what_json_cannot_say_is_refused_before_the_file_is_touched(tmp_path):
    path = tmp_path / "record.json"
    runs.save_record(sample_record(), path)
    for bad in ({1, 2}, np.zeros(3), object(), 1j):
        with pytest.raises(UserError, match="is no JSON"):
            runs.save_record(dataclasses.replace(sample_record(), config={"x": bad}), path)
    assert runs.load_record(path) == sample_record()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '{"schema": 1}', "NaN", "[" * 100_000, "\x00"])
def test_a_file_that_is_no_record_is_named(tmp_path, text):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"mine\.json"):
        runs.load_record(path)


def test_missing_and_binary_files_are_user_errors(tmp_path):
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x80\x04")
    for name in ("none.json", "b.json", "."):
        with pytest.raises(UserError):
            runs.load_record(tmp_path / name)


def broken(change):
    data = {"schema": 1} | dataclasses.asdict(record(rows=RISING))
    change(data)
    return data


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda d: d.update(schema=2), "schema"),
        (lambda d: d.pop("method"), "method"),
        (lambda d: d.update(seed="0"), "seed"),
        (lambda d: d.update(seed=True), "seed"),
        (lambda d: d.update(status="over"), "status"),
        (lambda d: d.update(source="made up"), "source"),
        (lambda d: d["metrics"].append(3), "step"),
        (lambda d: d["metrics"].append({"kind": "train", "step": 1.5}), "step"),
        (lambda d: d["metrics"].append({"step": 3}), "kind"),
        (lambda d: d["samples"].append({"prompt": "?"}), "step"),
        (lambda d: d["metrics"].append(eval_row(20)), "do not increase"),
        (lambda d: d["metrics"][1].pop("prior_mean"), "prior_mean"),
        (lambda d: d["metrics"][1].update(new_exact=None), "new_exact"),
        (lambda d: d["metrics"][1].update(new_exact=40), "new_exact"),
        (lambda d: d["metrics"][1].update(prior=[]), "no prior"),
        (lambda d: d["metrics"][1]["prior"]["color"].pop("wrong"), "three counts"),
        (lambda d: d["metrics"][1]["prior"]["color"].update(wrong=-1), "three counts"),
    ],
)
def test_a_damaged_record_says_what_is_wrong(tmp_path, change, what):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(broken(change)))
    with pytest.raises(UserError, match=what) as error:
        runs.load_record(path)
    assert "\n" not in str(error.value)


def test_a_resumed_run_that_was_not_truncated_cannot_be_saved(tmp_path):
    rec = record(rows=[*RISING, (10, 0.4, 0.6)])
    with pytest.raises(UserError, match="do not increase"):
        runs.save_record(rec, tmp_path / "record.json")
    assert os.listdir(tmp_path) == []


def test_truncate_after_drops_what_will_be_repeated():
    rec = sample_record()
    kept = runs.truncate_after(rec, 5)
    assert [row["step"] for row in kept.metrics] == [0, 5] and kept.samples == [] and kept.status == "running"
    assert rec == sample_record()


def test_versions_name_the_libraries_and_nothing_of_the_machine():
    found = runs.versions()
    assert {"python", "platform", "numpy", "torch", "transformers"} <= set(found)
    text = json.dumps(found)
    assert os.sep + "home" not in text and socket.gethostname() not in found.values()


def test_home_and_run_dir(tmp_path, monkeypatch):
    monkeypatch.delenv("RFTKIT_HOME", raising=False)
    assert str(runs.output_home()) == "build"
    monkeypatch.setenv("RFTKIT_HOME", str(tmp_path))
    path = runs.run_dir(runs.output_home(), "sft-0")
    assert path.is_dir() and tmp_path in path.parents
    assert runs.run_dir(runs.output_home(), "sft-0") == path
    for bad in ("", "..", "a/b", "a\\b", "/etc", ".hidden", "a\n", "a b"):
        with pytest.raises(UserError, match="cannot name a run"):
            runs.run_dir(tmp_path, bad)


def test_recorded_runs_say_so(tmp_path):
    for rec in (
        record("sft", 1, RISING),
        record("sft", 0, RISING),
        record("rft", 0, RISING),
        record("sft", 2, preset="full"),
    ):
        runs.save_record(rec, tmp_path / f"{rec.name}.json")
    found = runs.load_recorded(folder=tmp_path)
    assert [(r.method, r.seed, r.source) for r in found] == [
        ("rft", 0, "recorded"),
        ("sft", 0, "recorded"),
        ("sft", 1, "recorded"),
    ]
    assert [r.seed for r in runs.load_recorded("sft", folder=tmp_path)] == [0, 1]
    assert [r.seed for r in runs.load_recorded("sft", "full", tmp_path)] == [2]
    assert runs.load_recorded("rft_kl", folder=tmp_path) == []
    with pytest.raises(UserError, match="no folder"):
        runs.load_recorded(folder=tmp_path / "none")


def test_the_shipped_records_load():
    assert all(r.source == "recorded" for r in runs.load_recorded())


# --- comparing runs


def test_at_matched_interpolates_both_curves():
    assert runs.at_matched(record(rows=RISING), 0.5) == pytest.approx({"step": 12.5, "prior_mean": 0.5, "drop": 30.0})
    assert runs.at_matched(record(rows=RISING), 0.81) is None
    for target in (0, -0.1, 1.1, math.nan):
        with pytest.raises(UserError, match="target"):
            runs.at_matched(record(rows=RISING), target)
    with pytest.raises(UserError, match="sft-0"):
        runs.at_matched(record(), 0.5)


def test_prior_drop_is_in_points_since_the_first_evaluation():
    steps, drop = runs.prior_drop(record(rows=RISING))
    assert steps.tolist() == [0, 10, 20]
    assert drop.tolist() == pytest.approx([0, 20, 60])


def test_matched_table_by_hand():
    flat = [(0, 0.0, 0.8), (100, 1.0, 0.8)]
    table = runs.matched_table(
        [
            record("sft", 0, RISING),
            record("rft", 0, flat, "recorded"),
            record("sft", 1, [(0, 0.0, 0.8), (10, 1.0, 0.4)]),
        ],
        0.5,
    )
    assert [row.method for row in table] == ["sft", "rft"]
    sft, rft = table
    assert sft.seeds == (0, 1) and sft.drops == pytest.approx((30, 20)) and sft.mean == pytest.approx(25)
    # t(0.975, 1) = 12.706, s / sqrt(2) = 5
    assert (sft.lo, sft.hi) == pytest.approx((25 - 63.531, 25 + 63.531), abs=1e-2)
    assert sft.live == (0, 1) and rft.live == ()
    assert rft.mean == 0 and math.isnan(rft.lo)


def test_a_run_that_missed_the_target_is_named_and_not_counted():
    """The missed run forgot nothing: were it counted, the mean drop would halve."""
    missed = record("sft", 1, [(0, 0.0, 0.8), (20, 0.49, 0.8)], name="sft-slow-1")
    (row,) = runs.matched_table([record("sft", 0, RISING), missed], 0.5)
    assert row.excluded == ("sft-slow-1",) and row.seeds == (0,) and row.mean == pytest.approx(30)
    (none,) = runs.matched_table([missed], 0.5)
    assert none.seeds == () and math.isnan(none.mean) and none.excluded == ("sft-slow-1",)


def test_runs_that_cannot_be_compared_are_refused():
    one = record("sft", 0, RISING)
    with pytest.raises(UserError, match="no runs"):
        runs.matched_table([], 0.5)
    with pytest.raises(UserError, match="comes twice"):
        runs.matched_table([one, record("sft", 0, RISING, "recorded")], 0.5)
    with pytest.raises(UserError, match="full, tiny"):
        runs.matched_table([one, record("rft", 0, RISING, preset="full")], 0.5)


def test_prefer_live_keeps_one_run_a_seed():
    live, twin, other = (
        record("sft", 0, RISING),
        record("sft", 0, RISING, "recorded"),
        record("sft", 1, RISING, "recorded"),
    )
    assert runs.prefer_live([twin, other, live]) == [other, live]
    assert len(runs.matched_table(runs.prefer_live([twin, other, live]), 0.5)[0].seeds) == 2


def test_paired_drop_uses_the_seeds_that_both_have():
    def fall(method, seed, lost):
        return record(method, seed, [(0, 0.0, 0.8), (10, 1.0, 0.8 - lost)])  # half of it lost at the target

    records = [fall("sft", s, lost) for s, lost in enumerate((0.2, 0.4, 0.6, 0.3))]
    records += [fall("rft", s, lost) for s, lost in enumerate((0.1, 0.3, 0.4))]
    seeds, (mean, lo, hi) = runs.paired_drop(records, "sft", "rft", 0.5)
    assert seeds == (0, 1, 2) and mean == pytest.approx(20 / 3)
    assert (hi - lo) / 2 == pytest.approx(4.3027 * np.std([5, 5, 10], ddof=1) / math.sqrt(3), rel=1e-3)
    with pytest.raises(UserError, match="No seed"):
        runs.paired_drop(records, "sft", "lora_sft", 0.5)


def test_a_realistic_set_of_runs_orders_the_methods():
    table = {row.method: row for row in runs.matched_table(all_noisy(), 0.5)}
    assert all(row.seeds == (0, 1, 2) and not row.excluded for row in table.values())
    assert table["sft"].lo > table["rft"].hi
    assert 20 < runs.at_matched(all_noisy()[0], 0.5)["step"] < 40
