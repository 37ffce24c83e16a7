"""Two real processes of `accelerate launch` over gloo, beside one process at the same global batch."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers.generation import LogitsProcessorList

from rftkit import chains, launch, prefix_rft, recording, rft, runs, sft
from rftkit.config import UserError, get_preset
from rftkit.policy import GumbelNoise, generate, load_policy, load_trained, processes
from rftkit.tasks import JIGSAW, PROBES

STEPS = 5


def preset_of(base, **fields):
    settings = {
        "max_completion": 8,
        "rft_prompts": 4,
        "rft_group": 4,
        "sft_batch": 8,
        "eval_n": 5,
        "eval_batch": 2,
        "train_n": 64,
    }
    return get_preset("tiny", model=str(base), **(settings | fields))


def dense(completions, **_):
    """An untrained model never solves a puzzle, and without spread there is no loss to compare."""
    return [len(set(c[0]["content"].split())) / 12 for c in completions]


class Seeded(rft.RFTTrainer):
    """Draws each rollout from a seed of its own, by its place in the whole batch, so that it does not matter which process draws it."""

    _generates_shared = False

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        first = self.accelerator.process_index * len(prompt_ids)
        seeds = [self.state.global_step * 1000 + first + i for i in range(len(prompt_ids))]
        self.generation_config.do_sample = False
        plain = self.model.generate
        noise = LogitsProcessorList([GumbelNoise(seeds, 1.0)])
        self.model.generate = lambda **inputs: plain(**inputs, logits_processor=noise)
        try:
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        finally:
            self.model.generate = plain  # not the class's: FSDP2 puts its own there


def train_both(base, home):
    """SFT on answers of several lengths, accumulated, and GRPO; a preset that says the same to one process and to two."""
    preset = preset_of(base, micro_batch=2)
    sums = chains.task()
    data = sft.Data("sums", lambda policy, folder: sft.Lazy(64, lambda i: sums.row(0, i, "train")))
    sft.train_sft(
        preset, 1, data=data, lr=1e-2, steps=STEPS, eval_steps={2, STEPS}, save_at={2}, save_every=2, home=home
    )
    if processes() > 1:
        evaluate = stops_once(preset)
        for _ in range(2):
            with contextlib.suppress(InterruptedError):
                sft.train_sft(
                    preset,
                    1,
                    name="cut",
                    data=data,
                    lr=1e-2,
                    steps=STEPS,
                    evaluate=evaluate,
                    eval_steps={3, STEPS},
                    save_every=2,
                    home=home,
                )
    practice, variant = rft.Practice("dense", JIGSAW, (dense,)), rft.Variant(Seeded)
    if processes() > 1:
        prefix_rft.train_prefix_rft(
            preset_of(base), 1, prefix_rft.PLAIN, name="plain", practice=practice, steps=2, eval_steps={2}, home=home
        )
    rft.train_rft(
        preset_of(base),
        1,
        practice=practice,
        variant=variant,
        lr=1e-3,
        beta=0.1,
        steps=STEPS,
        eval_steps={STEPS},
        save_every=2,
        home=home,
    )


def stops_once(preset):
    """An evaluation that breaks the run off when it is asked for the second time."""
    calls = []

    def evaluate(policy):
        calls.append(policy)
        if len(calls) == 2:
            raise InterruptedError
        return recording.evaluate_all(policy, recording.held_out(preset))

    return evaluate


def answers(base, folder):
    """Sampled replies of rows with and without images, into a file of each process."""
    rows = [*PROBES["color"].rows(0, 3), *PROBES["arithmetic"].rows(0, 4)]
    texts = generate(load_policy(preset_of(base)), rows, temperature=1.0, seed=7)
    (folder / f"answers-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(texts))


def accelerate(script, *words, strategy="ddp", processes=2):
    """Start a script by `accelerate launch` with the shipped configuration, and return what came of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = launch.accelerate_config(strategy, launch.Cluster(processes=processes, port=port), cpu=True)
    settings["mixed_precision"] = "no"  # bfloat16 would hide what is compared
    path = Path(words[-1]) / "accelerate.yaml"
    launch.write_yaml(path, settings)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(path),
        *script,
        *map(str, words),
    ]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


THIS = [str(Path(__file__))]


@pytest.fixture(scope="module")
def two(small_base, tmp_path_factory):
    home = tmp_path_factory.mktemp("two")
    done = accelerate(THIS, small_base, home)
    assert done.returncode == 0, done.stderr[-3000:]
    return home


@pytest.fixture(scope="module")
def sharded(small_base, tmp_path_factory):
    home = tmp_path_factory.mktemp("sharded")
    done = accelerate(THIS, small_base, home, strategy="fsdp2")
    assert done.returncode == 0, done.stderr[-3000:]
    return home


@pytest.fixture
def several(request):
    """The folder of the runs of two processes that hold the whole model each, or half of it."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def one(small_base, tmp_path_factory):
    home = tmp_path_factory.mktemp("one")
    train_both(small_base, home)
    answers(small_base, home)
    return home


both = pytest.mark.parametrize("several", ["two", pytest.param("sharded", marks=pytest.mark.slow)], indirect=True)


@both
def test_rft_of_the_blends_runs_on_several_processes(several):
    """Dr. GRPO without prefixes, whose advantages are made of rewards that are gathered from all processes."""
    record, _ = record_of(several, "plain")
    assert record.status == "done"
    assert [row["grad_norm"] > 0 for row in record.metrics if row["kind"] == "train"] == [True, True]


def record_of(home, method):
    (path,) = home.glob(f"runs/{method}-s1-*/record.json")
    return runs.load_record(path), path.parent


def updates(record, key):
    return [row[key] for row in record.metrics if row["kind"] == "train"]


@both
@pytest.mark.parametrize(
    ("method", "keys"), [("sft", ("loss", "grad_norm")), ("rft", ("loss", "reward", "grad_norm", "kl", "entropy"))]
)
def test_the_same_trajectory_as_one_process(one, several, method, keys):
    """To 1e-5 over all updates: float32 sums in another order, no more."""
    alone, together = record_of(one, method)[0], record_of(several, method)[0]
    assert together.status == "done" and together.config == alone.config and together.versions["processes"] == "2"
    for key in keys:
        expected, found = updates(alone, key), updates(together, key)
        assert len(found) == STEPS and max(map(abs, expected)) > 1e-4
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-7), key
    if method == "sft":
        assert updates(alone, "loss")[-1] < 0.9 * updates(alone, "loss")[0]
    assert updates(together, "tokens") == updates(alone, "tokens")
    for a, b in zip(alone.evals(), together.evals(), strict=True):
        assert (a["step"], a["examples"], a["prior"], a["new_hit"]) == (
            b["step"],
            b["examples"],
            b["prior"],
            b["new_hit"],
        )


@both
@pytest.mark.parametrize("method", ["sft", "rft"])
def test_the_same_weights_as_one_process(one, several, small_base, method):
    start = load_policy(preset_of(small_base)).model.state_dict()
    ends = []
    for home in (one, several):
        policy = load_policy(preset_of(small_base))
        load_trained(policy, record_of(home, method)[1] / "final")
        ends.append(policy.model.state_dict())
    moved = max(float((ends[0][k] - v).abs().max()) for k, v in start.items())
    apart = max(float((ends[0][k] - v).abs().max()) for k, v in ends[1].items())
    assert moved > 1e-3 and apart < 0.02 * moved


@both
def test_an_interrupted_run_goes_on_from_its_checkpoint(several):
    cut, whole = record_of(several, "cut")[0], record_of(several, "sft")[0]
    assert cut.status == "done" and [row["step"] for row in cut.evals()] == [0, 3, STEPS]
    assert updates(cut, "loss") == pytest.approx(updates(whole, "loss"), rel=1e-6)


@both
def test_only_the_main_process_writes(several):
    _, folder = record_of(several, "sft")
    # no checkpoint is left, and no half-written record (the README is TRL's, of its last checkpoint)
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "final", "record.json", "weights-2"]
    assert (folder / "weights-2" / "model.safetensors").exists()


def test_processes_share_the_rows_of_an_evaluation(one, two):
    expected, *found = (
        json.loads(p.read_text()) for p in (one / "answers-0.json", two / "answers-0.json", two / "answers-1.json")
    )
    assert found == [expected, expected] and len(set(expected)) > 2


def test_processes_that_do_not_divide_the_batch(small_preset, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "3")
    for train in (sft.train_sft, rft.train_rft):
        with pytest.raises(UserError, match=r"^3 processes cannot share \w+ = 4 evenly: [^\n]+\.$"):
            train(small_preset, 0, home=tmp_path)


def test_rows_that_one_process_samples_while_training(small_preset, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    data = sft.Data("fresh", lambda policy, folder: pytest.fail("asked for rows"), ordered=True)
    with pytest.raises(
        UserError, match=r"^The rows 'fresh' are sampled while training, by one process: start one, not 2\.$"
    ):
        sft.train_sft(small_preset, 0, data=data, home=tmp_path)


def shard_over_gloo():
    """accelerate shards on GPUs alone. Told that these are some, it does the rest for real: FSDP2 itself works over gloo."""
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    torch.distributed.init_process_group("gloo")


if __name__ == "__main__":
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        shard_over_gloo()
    train_both(Path(sys.argv[1]), Path(sys.argv[2]))
    answers(Path(sys.argv[1]), Path(sys.argv[2]))
    train_both(Path(sys.argv[1]), Path(sys.argv[2]))  # finished runs are read, by all processes alike
    if torch.distributed.is_initialized():  # as `rftkit train` ends
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
