"""A run killed with SIGKILL, again and again, ends with the metrics of one that was left alone."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from rftkit import recording, rft, runs
from rftkit.policy import load_policy
from rftkit.rft import train_rft
from rftkit.sft import train_sft

SCRIPT = """
import sys
from pathlib import Path
from rftkit.config import get_preset
from rftkit import sft, rft
rft.hit = lambda completions, **_: [len(set(c[0]["content"].split())) / 12 for c in completions]  # the untrained earn nothing else
preset = get_preset("tiny", model=sys.argv[2], max_completion=8, rft_prompts=2, rft_group=4, sft_batch=4, eval_n=4, train_n=12)
train = rft.train_rft if sys.argv[1] == "rft" else sft.train_sft
lora = {"lora_rank": 4, "lr": 1e-2} if sys.argv[1] == "lora" else {}
train(preset, 3, steps=8, eval_steps={2, 5, 8}, save_every=2, home=Path(sys.argv[3]), **lora)  # 8 updates: RFT leaves its first epoch
"""
DIES = "from rftkit import recording\nrecording._finish = lambda *_: sys.exit(3)\n"  # trained and saved, and not yet said to be done


def start(method, base, home, script=SCRIPT, **more):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script, method, str(base), str(home)], env=dict(os.environ), **more
    )


def only_record(home):
    (path,) = home.glob("runs/*/record.json")
    return runs.load_record(path)


def comparable(record):
    """The metrics but for what a clock or an allocator decides."""
    drop = ("seconds", "step_time")
    return [{k: v for k, v in row.items() if k not in drop} for row in record.metrics]


@pytest.mark.parametrize("method", ["sft", "lora", "rft"])
def test_a_killed_run_resumes_to_the_same_end(method, small_base, tmp_path):
    assert start(method, small_base, tmp_path / "whole").wait(120) == 0
    whole = only_record(tmp_path / "whole")
    assert whole.status == "done" and [r["step"] for r in whole.evals()] == [0, 2, 5, 8]

    assert max(r["grad_norm"] for r in whole.metrics if r["kind"] == "train") > 0

    home = tmp_path / "killed"
    for checkpoint in (
        "checkpoint-2",
        "checkpoint-6",
    ):  # the second kill lands in the middle of writing it, as often as not
        process = start(method, small_base, home)
        deadline = time.monotonic() + 120
        while not list(home.glob(f"runs/*/{checkpoint}")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert only_record(home).status == "running"
    assert start(method, small_base, home).wait(120) == 0
    killed = only_record(home)
    assert killed.status == "done"
    assert comparable(killed) == comparable(whole)
    assert killed.samples == whole.samples


@pytest.mark.parametrize("method", ["sft", "lora"])
def test_a_run_killed_at_its_very_end_is_not_trained_on(method, small_base, tmp_path):
    """Asked to resume from its last checkpoint, transformers' Trainer makes one update more."""
    script = SCRIPT.replace("preset = ", DIES + "preset = ")
    assert start(method, small_base, tmp_path, script).wait(120) == 3
    (folder,) = tmp_path.glob("runs/*")
    trained = weights(folder / "final")
    (folder / "final").rename(tmp_path / "half written")
    assert only_record(tmp_path).status == "running" and (folder / "checkpoint-8").exists()
    assert start(method, small_base, tmp_path).wait(120) == 0
    record = only_record(tmp_path)
    assert record.status == "done"
    assert [row["step"] for row in record.metrics if row["kind"] == "train"] == list(range(1, 9))
    again = weights(folder / "final")
    assert trained.keys() == again.keys() and all(torch.equal(trained[name], again[name]) for name in trained)


def weights(folder):
    (path,) = folder.glob("*.safetensors")
    return load_file(path)


def test_two_processes_make_a_run_once(small_base, tmp_path):
    """Two notebooks that want the same run: one makes it, the other waits and reads it."""
    both = [start("sft", small_base, tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=240)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert "".join(said).count("update 8,") == 1
    assert "".join(said).count("waiting for it") <= 1  # none where one had ended before the other asked
    assert only_record(tmp_path).status == "done"


def test_a_run_in_the_making_is_waited_for(tmp_path):
    folder = tmp_path / "runs/sft-s0-0"
    ask = f"from pathlib import Path; from rftkit.recording import alone\nwith alone(Path({str(folder)!r})): print('mine')"
    with recording.alone(folder):
        other = subprocess.Popen([sys.executable, "-u", "-c", ask], stdout=subprocess.PIPE, text=True)
        assert "waiting for it" in other.stdout.readline()
        assert other.poll() is None
    assert other.communicate(timeout=60)[0] == "mine\n"


def test_a_run_is_read_where_nothing_can_be_written(tmp_path):
    home = tmp_path / "file"
    home.write_text("no folder can be made below a file, as none can on a medium that may only be read")
    with recording.alone(home / "runs/sft-s0-0"):
        pass


def test_a_half_written_checkpoint_is_passed_over(tmp_path):
    for step, state in ((2, "{}"), (4, '{"global_step": 4'), (6, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert recording.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert recording.last_checkpoint(tmp_path, 1) is None


@pytest.mark.parametrize("train", [train_sft, train_rft])
def test_a_finished_run_is_read_and_a_changed_setting_is_another_run(train, small_preset, tmp_path, monkeypatch):
    monkeypatch.setattr(
        rft, "hit", lambda completions, **_: [len(set(c[0]["content"].split())) / 12 for c in completions]
    )
    first, trained = train(small_preset, 0, steps=2, eval_steps={2}, home=tmp_path)
    again, read = train(small_preset, 0, steps=2, eval_steps={2}, home=tmp_path)
    weights, base = trained.model.state_dict(), load_policy(small_preset).model.state_dict()
    assert any(not torch.equal(v, base[k]) for k, v in weights.items())  # the first update has rate 0: two are needed
    assert all(torch.equal(v, weights[k]) for k, v in read.model.state_dict().items())
    assert json.dumps(again.metrics) == json.dumps(runs.load_record(next(tmp_path.glob("runs/*/record.json"))).metrics)
    train(small_preset, 0, steps=1, eval_steps={1}, lr=1e-5, home=tmp_path)
    assert len(list(tmp_path.glob("runs/*/record.json"))) == 2
    assert first.status == "done"
