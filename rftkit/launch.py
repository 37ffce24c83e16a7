"""From a preset to several GPUs: the commands and configurations of `accelerate launch` and vLLM, and exports for EasyR1 and verl.

    python -m rftkit launch 02 --preset full --arm rft --processes 8 --dry-run
    python -m rftkit launch 02 --preset full --export easyr1

What is launched is `python -m rftkit train ARM`, the code of the notebooks. None of it has been run on several GPUs yet; with two CPU
processes over gloo DDP and FSDP2 are tested, and every configuration is read by the library that it is meant for, EasyR1's aside: it is
not on PyPI, so that its configuration is held against its published names.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
import yaml

from rftkit import arms, cost, hub, rft
from rftkit.config import Preset, UserError
from rftkit.runs import output_home
from rftkit.train import add_preset, preset_from

CONFIGS = Path(__file__).parent / "configs"
STRATEGIES = ("ddp", "fsdp2", "zero3")
NOTEBOOKS: dict[str, Callable[[Preset], tuple[str, ...]]] = {  # the arms that are launched at a preset
    "02": lambda preset: tuple(arm for arm in arms.NOTEBOOK_02 if arm != "lora_sft" or not preset.lora_rank),
    # self_fresh samples while it trains, on one process
    "04": lambda preset: tuple(arm for arm in arms.NOTEBOOK_04 if arm != "self_fresh"),
    "05": lambda preset: tuple(arm for arm in arms.arms_of(preset.name) if arm.startswith("points_")),
}
VLLM_PORT = 8000


@dataclass(frozen=True)
class Cluster:
    """The machines, as `accelerate launch` counts them: `processes` on each, one a GPU. `rank` is this machine's number."""

    machines: int = 1
    processes: int = 8
    rank: int = 0
    ip: str | None = None  # of machine 0
    port: int = 29500
    server_gpus: int = 1  # of machine 0, beside those of its processes, for vLLM's server

    @property
    def total(self) -> int:
        return self.machines * self.processes


@dataclass(frozen=True)
class Command:
    """Words of a command line, and what its environment holds besides."""

    words: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join(
            [*(f"{key}={shlex.quote(value)}" for key, value in self.environment.items()), shlex.join(self.words)]
        )


# --- accelerate and vLLM -----------------------------------------------------------------------------------------------------


def accelerate_config(strategy: str, cluster: Cluster, cpu: bool = False) -> dict[str, Any]:
    """The shipped configuration of a strategy, with the numbers of the cluster."""
    config = yaml.safe_load((CONFIGS / f"{strategy}.yaml").read_text())
    machines = {"num_machines": cluster.machines, "num_processes": cluster.total, "machine_rank": cluster.rank}
    address = {"main_process_ip": cluster.ip} if cluster.ip else {}
    return {**config, **machines, **address, "main_process_port": cluster.port, "use_cpu": cpu}


def train_command(
    config: Path, arm: str, args: argparse.Namespace, vllm: str, usual: bool, cluster: Cluster
) -> Command:
    """`accelerate launch` of one arm. `usual` says whether the preset as it stands samples by vLLM."""
    fields = [*args.fields, *([["vllm", str(vllm != "off").lower()]] if usual != (vllm != "off") else [])]
    words = ["accelerate", "launch", "--config_file", str(config), "-m", "rftkit", "train", arm]
    words += ["--preset", args.preset, "--seed", str(args.seed)]
    words += [word for name, value in fields for word in ("-p", name, value)]
    url = f"http://{cluster.ip or '127.0.0.1'}:{VLLM_PORT}"
    return Command(tuple(words), {rft.VLLM_SERVER: url} if vllm == "server" else {})


def server_command(preset: Preset, cluster: Cluster) -> Command:
    """vLLM's own server as TRL 1.16 wants it: open for weights over NCCL, log-probabilities after the temperature, and the
    endpoints for images, which vLLM has from 0.30 on."""
    gpus = range(cluster.processes, cluster.processes + cluster.server_gpus)
    words = ["vllm", "serve", preset.model, *(["--revision", preset.revision] if preset.revision else [])]
    words += ["--host", "0.0.0.0", "--port", str(VLLM_PORT), "--tensor-parallel-size", str(cluster.server_gpus)]
    words += ["--max-model-len", str(rft.rollout_tokens(preset)), "--enable-scale-out"]
    words += [
        "--weight-transfer-config",
        json.dumps({"backend": "nccl"}),
        "--logprobs-mode",
        "processed_logprobs",
        "--max-logprobs",
        "-1",
    ]
    return Command(tuple(words), {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus)), "VLLM_SERVER_DEV_MODE": "1"})


def check(preset: Preset, strategy: str, vllm: str, cluster: Cluster) -> None:
    """Raise UserError for what cannot work together."""
    if min(cluster.machines, cluster.processes, cluster.server_gpus) < 1 or not 0 <= cluster.rank < cluster.machines:
        raise UserError(
            "Machines, processes and server GPUs are at least 1, and --machine-rank counts machines from 0: mend the numbers."
        )
    if cluster.machines > 1 and not cluster.ip:
        raise UserError("Several machines must find the first: give its address with --main-process-ip.")
    if preset.quantize != "none" and strategy != "ddp":
        raise UserError(
            f"NF4 weights cannot be sharded by {strategy}: take --strategy ddp, where each GPU holds them all."
        )
    if preset.quantize != "none" and vllm != "off":
        raise UserError(
            "vLLM cannot be handed 4-bit weights (an open bug of TRL, trl#4973): take --vllm off, or -p quantize none."
        )
    if preset.device == "cpu" and (strategy != "ddp" or vllm != "off"):
        raise UserError(
            f"The preset {preset.name!r} trains on the CPU, without sharding and without vLLM: take --strategy ddp --vllm off."
        )
    for name in ("sft_batch", "rft_prompts"):
        if getattr(preset, name) % cluster.total:
            raise UserError(
                f"{cluster.total} processes do not divide {name} = {getattr(preset, name)}: take fewer, or set it with -p."
            )


def check_installed(strategy: str, vllm: str) -> None:
    """Raise UserError for a library that the commands need and that is not here."""
    if strategy == "zero3" and find_spec("deepspeed") is None:
        raise UserError(
            "DeepSpeed is not installed and zero3 needs it: pip install deepspeed, or take --strategy fsdp2."
        )
    if vllm != "off" and find_spec("vllm") is None:
        raise UserError("vLLM is not installed: pip install -r course/locks/vllm.txt, or take --vllm off.")


def check_gpus(cluster: Cluster, server: bool) -> None:
    """Raise UserError where this machine has fewer GPUs than its processes and vLLM's server are to have."""
    found, served = torch.cuda.device_count(), cluster.server_gpus if server else 0
    if found < cluster.processes + served:
        beside = f" and {served} for vLLM's server" if server else ""
        raise UserError(
            f"{cluster.processes} processes want a GPU each{beside}, and this machine has {found}: set --processes to at most "
            f"{max(0, found - served)}, a number that divides the prompts and the batch of an update."
        )


def run(commands: Sequence[Command], server: Command | None) -> int:
    """Run the commands one after another, beside the server, and no longer than that. Returns the first exit code that is not 0."""
    serving = subprocess.Popen(server.words, env={**os.environ, **server.environment}) if server else None
    try:
        for command in commands:
            # accelerate's own script may not be on the path of the interpreter that runs us
            words = [sys.executable, "-m", "accelerate.commands.launch", *command.words[2:]]
            trained = subprocess.Popen(words, env={**os.environ, **command.environment})
            while trained.poll() is None:
                if serving and serving.poll() is not None:
                    trained.terminate()
                    trained.wait()
                    raise UserError(f"vLLM's server ended with exit code {serving.returncode}: see above what it said.")
                time.sleep(1)
            if trained.returncode:
                return trained.returncode
        return 0
    finally:
        if serving:
            serving.terminate()
            serving.wait()


# --- EasyR1 and verl ---------------------------------------------------------------------------------------------------------

REWARD = '''"""The reward of 2506.23508, for {library}."""

from rftkit.jigsaw import reward_p1

ROWS, COLS = {rows}, {cols}


def score(reply, truth):
    reward = reward_p1(reply, tuple(map(int, truth.split())), ROWS, COLS)
    return {{"{total}": reward.total, "hit": reward.hit, "exact": reward.exact, "format": reward.fmt}}


'''
CALLS = {
    "easyr1": ("overall", "REWARD_NAME, REWARD_TYPE = \"jigsaw\", \"batch\"  # read by EasyR1\n\n\ndef compute_score(reward_inputs):\n    return [score(i[\"response\"], i[\"ground_truth\"]) for i in reward_inputs]\n"),
    "verl": ("score", "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n    return score(solution_str, ground_truth)\n"),
}  # fmt: skip
DATA = '''"""Writes the puzzles that {library} trains on, beside this file: python data.py"""

from pathlib import Path

from rftkit.launch import write_rows
from rftkit.train import preset_from

preset = preset_from({preset!r}, {fields!r})
for split, n in (("train", preset.train_n), ("test", preset.eval_n)):
    write_rows(preset, {seed}, split, n, {library!r}, Path(__file__).parent / f"{{split}}.parquet")
'''


def reward_source(preset: Preset, library: str) -> str:
    """The file with the reward function: a thin one, that calls rftkit's."""
    total, call = CALLS[library]
    return REWARD.format(library=library, rows=preset.rows, cols=preset.cols, total=total) + call


def write_rows(preset: Preset, seed: int, split: str, n: int, library: str, path: Path) -> None:
    """Write n puzzles as Parquet, in the columns that the library reads; images as PNG, which loses nothing."""
    task, writer = hub.new_task(preset), None
    try:
        for start in range(0, n, 100):
            rows = [task.row(seed, i, split) for i in range(start, min(start + 100, n))]
            table = pyarrow.Table.from_pylist([_exported(row, library) for row in rows])
            writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer:
            writer.close()


def _exported(row: Any, library: str) -> dict[str, Any]:
    png = io.BytesIO()
    row.image.save(png, "PNG")
    problem, truth = "<image>" + row.prompt, " ".join(map(str, row.data["answer"]))
    images = [{"bytes": png.getvalue(), "path": None}]
    if library == "easyr1":
        return {"problem": problem, "answer": truth, "images": images}
    prompt = [{"role": "user", "content": problem}]
    return {
        "data_source": row.task,
        "prompt": prompt,
        "images": images,
        "reward_model": {"style": "rule", "ground_truth": truth},
    }


def _epochs(preset: Preset) -> int:
    """Enough for all steps: both libraries drop an epoch's last, smaller batch, and verl ends with the last epoch."""
    return -(-preset.rft_steps // (preset.train_n // preset.rft_prompts))


def easyr1_config(preset: Preset, beta: float, seed: int, cluster: Cluster, folder: Path) -> dict[str, Any]:
    """GRPO of this preset in the words of EasyR1's configuration (examples/config.yaml of 2026)."""
    prompt = rft.rollout_tokens(preset) - preset.max_completion
    batch = preset.rft_prompts
    lora = (
        {"lora": {"rank": preset.lora_rank, "alpha": 2 * preset.lora_rank, "exclude_modules": ".*visual.*"}}
        if preset.lora_rank
        else {}
    )
    return {
        "data": {
            "train_files": str(folder / "train.parquet"), "val_files": str(folder / "test.parquet"),
            "prompt_key": "problem", "answer_key": "answer", "image_key": "images", "format_prompt": None,
            "max_prompt_length": prompt, "max_response_length": preset.max_completion, "rollout_batch_size": batch,
            "shuffle": True, "seed": seed, "min_pixels": 56 * 56, "max_pixels": preset.max_pixels, "filter_overlong_prompts": False,
        },
        "algorithm": {
            "adv_estimator": "grpo", "disable_kl": beta == 0, "use_kl_loss": beta > 0, "kl_penalty": "low_var_kl", "kl_coef": beta,
        },
        "worker": {
            "actor": {
                "global_batch_size": batch, "micro_batch_size_per_device_for_update": 2,
                "micro_batch_size_per_device_for_experience": 4, "max_grad_norm": 1.0, "ppo_epochs": preset.rft_reuse,
                "clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "loss_avg_mode": "seq",  # per-sequence mean, as 2506.23508 has it
                "model": {
                    "model_path": preset.model, "enable_gradient_checkpointing": True, "trust_remote_code": False,
                    "freeze_vision_tower": preset.freeze_vision, **lora,
                },
                "optim": {"lr": preset.rft_lr, "weight_decay": 0.0, "strategy": "adamw", "lr_warmup_ratio": 10 / preset.rft_steps},
                "fsdp": {"enable_full_shard": True, "enable_cpu_offload": False, "enable_rank0_init": True},
                "offload": {"offload_params": False, "offload_optimizer": False},
            },
            "rollout": {
                "n": preset.rft_group, "temperature": 1.0, "top_p": 1.0, "limit_images": 1, "gpu_memory_utilization": 0.6,
                "tensor_parallel_size": 1, "val_override_config": {"temperature": 0.0, "n": 1},
            },
            "ref": {
                "fsdp": {"enable_full_shard": True, "enable_cpu_offload": True, "enable_rank0_init": True},
                "offload": {"offload_params": False},
            },
            "reward": {"reward_function": f"{folder / 'reward.py'}:compute_score"},
        },
        "trainer": {
            "total_epochs": _epochs(preset), "max_steps": preset.rft_steps,
            "project_name": "rftkit", "experiment_name": f"{preset.name}-s{seed}", "logger": ["console"],
            "nnodes": cluster.machines, "n_gpus_per_node": cluster.processes, "val_freq": 100, "val_before_train": True,
            "save_freq": 100, "save_limit": 2, "save_checkpoint_path": str(folder / "checkpoints"),
        },
    }  # fmt: skip


def verl_config(preset: Preset, beta: float, seed: int, cluster: Cluster, folder: Path) -> dict[str, Any]:
    """GRPO of this preset as a Hydra configuration on top of verl's own ppo_trainer (verl 0.9.1)."""
    batch, tokens = preset.rft_prompts, rft.rollout_tokens(preset)
    pieces = {"log_prob_micro_batch_size_per_gpu": 4}
    lora = {"target_modules": "all-linear", "exclude_modules": ".*visual.*"} if preset.lora_rank else {}
    return {
        "hydra": {"searchpath": ["pkg://verl.trainer.config"]},
        "defaults": ["ppo_trainer", "_self_"],
        "data": {
            "train_files": str(folder / "train.parquet"), "val_files": str(folder / "test.parquet"), "image_key": "images",
            "train_batch_size": batch, "max_prompt_length": tokens - preset.max_completion, "max_response_length": preset.max_completion,
            "shuffle": True, "seed": seed, "filter_overlong_prompts": False, "truncation": "error",
        },
        "algorithm": {"adv_estimator": "grpo", "norm_adv_by_std_in_grpo": True, "use_kl_in_reward": False},
        "actor_rollout_ref": {
            "model": {
                "path": preset.model, "enable_gradient_checkpointing": True,
                "lora_rank": preset.lora_rank, "lora_alpha": 2 * preset.lora_rank, **lora,
            },
            "actor": {
                "ppo_mini_batch_size": batch, "ppo_micro_batch_size_per_gpu": 2, "ppo_epochs": preset.rft_reuse,
                "freeze_vision_tower": preset.freeze_vision, "loss_agg_mode": "seq-mean-token-mean", "entropy_coeff": 0,
                "clip_ratio": 0.2, "use_kl_loss": beta > 0, "kl_loss_coef": beta, "kl_loss_type": "low_var_kl",
                "optim": {"lr": preset.rft_lr, "weight_decay": 0.0, "lr_warmup_steps": 10, "clip_grad": 1.0},
            },
            "ref": pieces,
            "rollout": {
                "name": "vllm", "n": preset.rft_group, "temperature": 1.0, "tensor_model_parallel_size": 1,
                "gpu_memory_utilization": 0.6, "max_model_len": tokens, **pieces,
            },
        },
        "reward": {"custom_reward_function": {"path": str(folder / "reward.py"), "name": "compute_score"}},
        "trainer": {
            "total_training_steps": preset.rft_steps, "total_epochs": _epochs(preset),
            "project_name": "rftkit", "experiment_name": f"{preset.name}-s{seed}", "logger": ["console"],
            "nnodes": cluster.machines, "n_gpus_per_node": cluster.processes, "test_freq": 100, "save_freq": 100,
            "default_local_dir": str(folder / "checkpoints"),
        },
    }  # fmt: skip


def export(preset: Preset, library: str, arm: str, args: argparse.Namespace, cluster: Cluster, folder: Path) -> Command:
    """Write configuration, reward and the script that makes the data; return the command that trains there.

    Raises UserError where the library cannot train what the preset says, or refuses its batches.
    """
    if arm not in ("rft", "rft_kl"):
        raise UserError(f"{library} trains GRPO, and {arm!r} is another method: take --arm rft or --arm rft_kl.")
    if preset.device == "cpu" or preset.quantize != "none":
        raise UserError(f"{library} trains unquantised weights on GPUs: take --preset full, or -p quantize none.")
    if preset.train_n < preset.rft_prompts:
        raise UserError(
            f"{library} drops a batch that is not full, and train_n = {preset.train_n} puzzles make none of "
            f"rft_prompts = {preset.rft_prompts}: raise train_n with -p."
        )
    rollouts = preset.rft_prompts * preset.rft_group
    if rollouts % math.lcm(2 * cluster.total, 4):  # micro-batches of 2 on each GPU, and of 4 for log-probabilities
        raise UserError(
            f"{library} hands rollouts out in pairs, and {rollouts} an update do not go evenly to {cluster.total} processes: "
            "take fewer, or set rft_prompts with -p."
        )
    beta = preset.kl_beta if arm == "rft_kl" else preset.rft_beta
    make = easyr1_config if library == "easyr1" else verl_config
    write_yaml(folder / f"{library}.yaml", make(preset, beta, args.seed, cluster, folder))
    (folder / "reward.py").write_text(reward_source(preset, library))
    (folder / "data.py").write_text(
        DATA.format(library=library, preset=args.preset, fields=args.fields, seed=args.seed)
    )
    if library == "easyr1":
        return Command(("python3", "-m", "verl.trainer.main", f"config={folder / 'easyr1.yaml'}"))
    return Command(("python3", "-m", "verl.trainer.main_ppo", "--config-path", str(folder), "--config-name", "verl"))


# --- the command ---------------------------------------------------------------------------------------------------------------


def write_yaml(path: Path, config: dict[str, Any]) -> None:
    """Raises UserError where the folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(config, sort_keys=False))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): name another folder with --out.") from error


def _arms(notebook: str, arm: str | None, preset: Preset) -> tuple[str, ...]:
    if notebook.zfill(2) not in NOTEBOOKS:
        raise UserError(f"No training is launched for notebook {notebook!r}: choose one of {', '.join(NOTEBOOKS)}.")
    found = NOTEBOOKS[notebook.zfill(2)](preset)
    if arm is not None and arm not in found:
        raise UserError(f"Notebook {notebook} has no arm {arm!r}: choose one of {', '.join(found)}.")
    return found if arm is None else (arm,)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m rftkit launch", description=main.__doc__)
    parser.add_argument("notebook", help=f"whose arms to train: one of {', '.join(NOTEBOOKS)}")
    parser.add_argument("--arm", help="one arm of the notebook (default: all, one after another)")
    add_preset(parser, "full")
    parser.add_argument("--machines", type=int, default=1)
    parser.add_argument("--processes", type=int, default=8, help="on each machine, one a GPU (default: 8)")
    parser.add_argument("--machine-rank", type=int, default=0, help="number of the machine that this is started on")
    parser.add_argument("--main-process-ip", help="address of machine 0")
    parser.add_argument("--main-process-port", type=int, default=29500)
    parser.add_argument(
        "--strategy",
        choices=STRATEGIES,
        help="how weights lie on the GPUs (default: fsdp2; ddp for a preset on the CPU or in NF4)",
    )
    parser.add_argument(
        "--vllm",
        choices=("colocate", "server", "off"),
        help="where rollouts are sampled (default: colocate, if the preset wants vLLM)",
    )
    parser.add_argument(
        "--server-gpus", type=int, default=1, help="GPUs of vLLM's server, after those of machine 0's processes"
    )
    parser.add_argument(
        "--export", choices=("easyr1", "verl"), help="write the files of another library in place of launching"
    )
    parser.add_argument("--out", help="folder for the files (default: launch/ under $RFTKIT_HOME, else build)")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the commands and write the files, and start nothing"
    )
    return parser


def main(argv: list[str]) -> int:
    """Train a notebook's arms on several GPUs or machines: write the configurations, print the commands, run them."""
    args = _parser().parse_args(argv)
    preset = preset_from(args.preset, args.fields)
    chosen = _arms(args.notebook, args.arm, preset)
    cluster = Cluster(
        args.machines, args.processes, args.machine_rank, args.main_process_ip, args.main_process_port, args.server_gpus
    )
    folder = Path(args.out or output_home() / "launch" / f"{args.notebook.zfill(2)}-{preset.name}").resolve()
    if args.export:
        command = export(preset, args.export, args.arm or "rft", args, cluster, folder)
        print(f"Written to {folder}. Where {args.export} and rftkit are installed, make the data, then train:\n")
        print(f"python {folder / 'data.py'}\n{command}")
        return 0
    whole = preset.device == "cpu" or preset.quantize != "none"
    strategy = args.strategy or ("ddp" if whole else "fsdp2")
    vllm = args.vllm or ("colocate" if preset.vllm else "off")
    check(preset, strategy, vllm, cluster)
    config = folder / "accelerate.yaml"
    write_yaml(config, accelerate_config(strategy, cluster, cpu=preset.device == "cpu"))
    commands = [train_command(config, arm, args, vllm, preset.vllm, cluster) for arm in chosen]
    sampled = any(cost.work_of(preset, arm).algorithm == "rft" for arm in chosen)
    server = server_command(preset, cluster) if vllm == "server" and cluster.rank == 0 and sampled else None
    text = "\n".join(
        [
            f"# on machine {cluster.rank} of {cluster.machines}",
            *([f"{server} &"] if server else []),
            *map(str, commands),
        ]
    )
    (folder / "commands.sh").write_text(text + "\n")
    print(text, flush=True)
    if args.dry_run:
        return 0
    check_installed(strategy, vllm)
    if preset.device == "cuda":
        check_gpus(cluster, server is not None)
    return run(commands, server)
