"""The shelf of recorded runs: what is missing, what it costs, who makes it, and that a killed command leaves nothing half done."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fake_runs import eval_row, record

from rftkit import arms, recording, runs, shelf
from rftkit.config import UserError, get_preset
from rftkit.shelf import Job

TINY = get_preset("tiny")
EVERY = sorted(runs.RECORDED_DIR.rglob("tiny-*.json"))


@pytest.fixture
def empty(tmp_path):
    """A shelf without a run, beside the course's."""
    return shelf.shelf_of(TINY, tmp_path / "shelf", tmp_path / "home")


# --- what is recorded ---------------------------------------------------------------------------------------------------------


def test_every_arm_is_recorded_with_three_seeds_and_todays_settings():
    """And nothing else is: each file belongs to an arm. If this fails, `python -m rftkit record` makes what is missing."""
    here = shelf.shelf_of(TINY)
    jobs, looked = shelf.to_do(here, list(arms.ARMS), None)
    assert jobs == {}
    assert looked == len(list(runs.RECORDED_DIR.glob("tiny-*.json"))) >= 3 * len(arms.ARMS)


def test_a_shipped_record_is_as_the_shelf_would_write_it(tmp_path):
    assert {path.parent.name for path in EVERY} >= {"recorded"}
    for path in EVERY:
        runs.save_record(shelf.slimmed(runs.load_record(path)), tmp_path / "again.json")
        assert (tmp_path / "again.json").read_bytes() == path.read_bytes(), path.name


def test_of_an_update_of_notebook_06_five_digits_and_what_is_shown_are_kept():
    update = {"kind": "train", "step": 1, "loss": 1 / 3, "prefix_entropy": 2 / 3, "rewards_hit_mean": 0.5, "tokens": 7}
    whole = record("sums_rft", 0, metrics=[eval_row(0, 1 / 3), update])
    evaluation, slim = shelf.slimmed(whole).metrics
    assert evaluation == whole.metrics[0]
    assert slim == {"kind": "train", "step": 1, "loss": 0.33333, "prefix_entropy": 0.66667, "tokens": 7}
    of_02 = record("rft", 0, metrics=[update])
    assert shelf.slimmed(of_02) == of_02


# --- which runs an arm would make ---------------------------------------------------------------------------------------------


def names(found):
    return [(r.method, r.seed) for r in found]


def test_runs_are_foreseen_and_none_is_made(empty):
    def of(arm):
        return recording.foresee(lambda: arms.ARMS[arm](TINY, 1, empty.home))

    own, whole = of("sft_rft_lr")
    assert names(own) == [("sft_rft_lr", 1)] and whole and own[0].config["lr"] == TINY.rft_lr
    chain, whole = of("points_rft_40")
    assert names(chain) == [("points_sft", 1), ("points_rft_40", 1)] and whole
    assert chain[1].config["after"] == {
        "method": "points_sft",
        "steps": 40,
        "settings": chain[1].config["after"]["settings"],
    }
    first, whole = of("self_once")  # samples from what rft_first trains
    assert names(first) == [("rft_first", 1)] and not whole
    assert not (empty.home / "runs").exists() and not recording.foreseeing()


def test_what_is_foreseen_is_what_is_made(small_preset, tmp_path):
    preset = replace(small_preset, sft_steps=2)
    made, _ = arms.sft_rft_lr(preset, 0, tmp_path)
    ((foreseen,), _) = recording.foresee(lambda: arms.sft_rft_lr(preset, 0, tmp_path))
    assert foreseen.config == made.config and recording.finished(foreseen, tmp_path)
    assert not recording.finished(replace(foreseen, seed=1), tmp_path)
    assert not recording.finished(replace(foreseen, config=foreseen.config | {"lr": 0.5}), tmp_path)


def test_an_error_while_foreseeing_leaves_no_trace():
    with pytest.raises(UserError):
        recording.foresee(lambda: arms.points_rft(7)(TINY, 0, None))
    assert not recording.foreseeing()


# --- the same settings --------------------------------------------------------------------------------------------------------


def shipped(name):
    return runs.load_record(runs.RECORDED_DIR / f"tiny-{name}.json")


def changed(made, **settings):
    preset = {key[7:]: value for key, value in settings.items() if key.startswith("preset_")}
    own = {key: value for key, value in settings.items() if not key.startswith("preset_")}
    return replace(made, config=made.config | own | {"preset": made.config["preset"] | preset})


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"lr": 0.5}, ["lr"]),
        ({"base": "0", "eval_steps": [60]}, ["base", "eval_steps"]),
        ({"data": "other-0123456789ab"}, ["data"]),
        ({"preset_eval_n": 7, "preset_model": "x"}, ["preset eval_n", "preset model"]),
        ({"data": "rft-rollouts-0123456789ab"}, []),  # another seed's texts
        (
            {"preset_sft_steps": 3, "preset_kl_beta": 0.5, "preset_micro_batch": 4},
            [],
        ),  # its own steps, beta, ... say it
        ({"later": 1}, []),  # a setting that the record does not know yet
    ],
)
def test_settings_that_decide_make_another_run(settings, names):
    made = shipped("sft_rollouts-s0")
    assert shelf.other_settings(made, changed(made, **settings)) == names


def test_of_an_arm_that_is_not_foreseen_what_it_shares_with_the_run_before_is_compared():
    once, first = shipped("self_once-s0"), shipped("rft-s0")
    assert shelf.other_settings(once, first) == []
    assert shelf.other_settings(once, changed(first, base="0", preset_eval_n=7)) == ["base", "preset eval_n"]
    assert shelf.other_settings(once, changed(first, preset_sft_lr=0.5, preset_micro_batch=4)) == ["preset sft_lr"]


def test_a_run_is_missing_if_it_is_not_there_not_done_or_has_other_settings(empty):
    made = shipped("sft-s0")
    job = Job("sft", 0)
    assert shelf.missing(empty, job, made) == "not there"
    runs.save_record(replace(made, status="running"), empty.path(job))
    assert shelf.missing(empty, job, made) == "not there"
    runs.save_record(made, empty.path(job))
    assert shelf.missing(empty, job, made) == ""
    assert shelf.missing(empty, job, changed(made, lr=0.5)) == "other settings (lr)"


def test_what_is_made_of_the_weights_belongs_to_the_run(empty):
    made, job = shipped("rft-s0"), Job("rft", 0)
    runs.save_record(made, empty.path(job))
    assert shelf.missing(empty, job, made) == "tiny-rft-s0.jsonl is not there"
    beside = {arm: empty.beside(Job(arm, 0)) for arm in arms.ARMS}
    assert {arm: path.relative_to(empty.folder) for arm, path in beside.items() if path} == {
        "rft": Path("rollouts/tiny-rft-s0.jsonl"),
        "points_rft_320": Path("points/weights-s0.json"),
        "seven_grpo_b": Path("seven/risks-s0.json"),
    }


# --- what it costs ------------------------------------------------------------------------------------------------------------


def test_a_run_that_others_go_on_from_is_paid_once(empty):
    usual = {arm: shelf.usual_seconds(empty, arm) for arm in ("points_sft", "points_rft_20", "points_rft_40")}
    both, unknown = shelf.cost(empty, [Job("points_rft_20", 0), Job("points_rft_40", 0)])
    assert unknown == [] and both == pytest.approx(sum(usual.values()))
    apart, _ = shelf.cost(empty, [Job("points_rft_20", 0), Job("points_rft_40", 1)])
    assert apart == pytest.approx(sum(usual.values()) + usual["points_sft"])


def test_what_learns_from_a_run_that_is_made_again_is_named(empty):
    """Its own settings are today's, so it stands; but what it learnt from will be another."""
    course = shelf.shelf_of(TINY)
    for arm in ("rft", "sft_rollouts", "sft_dft", "points_sft", "points_rft_40", "points_rft_0"):
        empty.folder.mkdir(exist_ok=True)
        (empty.path(Job(arm, 0))).write_bytes(course.path(Job(arm, 0)).read_bytes())
    every = [job for arm in arms.ARMS for job in [Job(arm, seed) for seed in shelf.seeds_of(empty, arm)]]
    others = [job for job in every if not empty.path(job).exists()]
    assert shelf.outdated(empty, others) == []  # nothing that stands learns from a run that is only missing
    assert shelf.outdated(empty, [*others, Job("points_sft", 0)]) == [Job("points_rft_40", 0)]
    assert shelf.outdated(empty, [*others, Job("rft", 0)]) == [Job("sft_rollouts", 0), Job("sft_dft", 0)]


def test_a_run_on_rfts_rollouts_reads_what_rft_writes(empty):
    own = shelf.foreseen(empty, Job("sft_rollouts", 2))
    assert Job("rft", 2) in shelf.upstream(Job("sft_rollouts", 2), own)
    assert shelf.upstream(Job("sft", 2), shelf.foreseen(empty, Job("sft", 2))) == set()


def test_seconds_are_a_runs_own():
    made = record("self_once", 0, config={"after": {"method": "rft_first", "steps": 40}})
    made.metrics = [eval_row(step) | {"seconds": seconds} for step, seconds in ((0, 0.0), (40, 90.0), (60, 100.0))]
    assert shelf.seconds_of(made) == (90.0, 10.0)
    found = shelf.Shelf(Path(), TINY, Path(), {"self_once": [made]})
    assert (shelf.usual_seconds(found, "self_once"), shelf.usual_seconds(found, "rft_first")) == (10.0, 90.0)
    assert shelf.usual_seconds(found, "rft_early") is None


def test_the_plan_says_how_much_and_why(empty):
    jobs, looked = shelf.to_do(empty, ["sft", "sft_early"], None)
    assert looked == len(jobs) == 8 and [job.seed for job in jobs] == sorted(job.seed for job in jobs)
    text = shelf.told(empty, jobs, looked)
    assert "0 of 8 runs stand in" in text and "To make: 8 runs, about 0.1 hours of training on one core" in text
    assert "not recorded: rft_early-s0, rft_early-s1, rft_early-s2." in text
    assert "  sft, seed 0, 1, 2, 3, 4: not there" in text
    assert shelf.to_do(empty, ["sft"], [7])[0] == {Job("sft", 7): "not there"}


# --- locks --------------------------------------------------------------------------------------------------------------------


def test_a_run_is_made_by_one_and_read_by_many(tmp_path):
    with shelf.held(tmp_path, ["a"], ["base"]) as first, shelf.held(tmp_path, ["b"], ["base"]) as second:
        assert first and second
        with shelf.held(tmp_path, ["base"]) as third, shelf.held(tmp_path, ["c", "b"]) as fourth:
            assert not third and not fourth
        with shelf.held(tmp_path, ["c"]) as fifth:  # not left held by the one that got only half
            assert fifth
    with shelf.held(tmp_path, ["a", "b", "base"]) as after:
        assert after


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    (tmp_path / "locks").mkdir()
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); time.sleep(99)"
    other = subprocess.Popen([sys.executable, "-c", code, tmp_path / "locks" / "a.lock"], stdout=subprocess.PIPE)
    other.stdout.readline()
    with shelf.held(tmp_path, ["a"]) as taken:
        assert not taken
    other.kill()
    other.wait()
    with shelf.held(tmp_path, ["a"]) as taken:
        assert taken


# --- the command --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--arms", "dpo"], r"There is no arm 'dpo': choose from sft, "),
        (["-p", "eval_n", "6"], r"not the course's: give them a folder of their own with --out"),
        (["-p", "eval", "6", "--out", "x"], r"A preset has no field 'eval'"),
    ],
)
def test_what_is_refused(argv, says):
    with pytest.raises(UserError, match=says):
        shelf.main(argv)


def test_a_failed_run_is_told_and_the_others_are_made(empty, monkeypatch, capsys):
    def fails(preset, seed, home):
        raise UserError("The policy got none right.")

    monkeypatch.setitem(arms.ARMS, "sft", fails)
    monkeypatch.setattr(shelf, "foreseen", lambda here, job: [shipped(f"{job}")])
    monkeypatch.setitem(arms.ARMS, "sft_x3", lambda preset, seed, home: (shipped(f"sft_x3-s{seed}"), None))
    assert shelf.work(empty, [Job("sft", 0), Job("sft_x3", 0)]) == {Job("sft", 0): "The policy got none right."}
    assert [path.name for path in empty.folder.glob("*.json")] == ["tiny-sft_x3-s0.json"]
    assert "sft-s0 failed: The policy got none right." in capsys.readouterr().out


ARMS = ("sft", "sft_rft_lr")


def miniature(base, out):
    fields = {
        "model": base,
        "max_completion": 8,
        "sft_batch": 4,
        "eval_n": 3,
        "eval_batch": 16,
        "train_n": 64,
        "sft_steps": 3,
    }
    changes = [word for key, value in fields.items() for word in ("-p", key, str(value))]
    return ["--arms", *ARMS, "--seeds", "0", "--out", str(out), *changes]


def start(base, out, home):
    env = dict(os.environ) | {"RFTKIT_HOME": str(home)}
    command = [sys.executable, "-W", "ignore", "-m", "rftkit", "record", *miniature(base, out)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def told_by_no_clock(path):
    made = json.loads(path.read_text())
    rows = [{k: v for k, v in row.items() if k not in ("seconds", "step_time")} for row in made["metrics"]]
    return made | {"metrics": rows}


def test_a_killed_command_goes_on_and_two_share_the_work(small_base, tmp_path, monkeypatch, capfd):
    whole, out = tmp_path / "whole", tmp_path / "out"
    monkeypatch.setenv("RFTKIT_HOME", str(tmp_path / "home"))
    assert shelf.main(miniature(small_base, whole)) == 0
    capfd.readouterr()

    killed = start(small_base, out, tmp_path / "again")
    until = time.monotonic() + 240
    while not list((tmp_path / "again").glob("runs/sft_rft_lr-*/record.json")):
        assert killed.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert [path.name for path in out.glob("*.json")] == ["tiny-sft-s0.json"]
    first = (out / "tiny-sft-s0.json").read_bytes()

    both = [start(small_base, out, tmp_path / "again") for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert ("".join(said).count("sft_rft_lr-s0: update 9"), "".join(said).count("sft-s0: update")) == (1, 0)
    assert (out / "tiny-sft-s0.json").read_bytes() == first
    for arm in ARMS:
        name = f"tiny-{arm}-s0.json"
        assert told_by_no_clock(out / name) == told_by_no_clock(whole / name), arm
    assert not list(tmp_path.rglob("*.part"))
    assert shelf.main(miniature(small_base, whole)) == 0
    assert "2 of 2 runs stand in" in capfd.readouterr().out
