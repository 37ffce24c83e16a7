"""`python -m rftkit launch` and `train`: what they write is read by the library it is meant for, and refusals are one sentence."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, patch_environment
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from trl.scripts import vllm_serve

from rftkit import __main__, arms, jigsaw, launch, rft, runs, two_stage
from rftkit.config import PRESETS, UserError, get_preset

TYPES = {"ddp": DistributedType.MULTI_GPU, "fsdp2": DistributedType.FSDP, "zero3": DistributedType.DEEPSPEED}


def written(tmp_path, *argv):
    assert launch.main([*argv, "--out", str(tmp_path), "--dry-run"]) == 0
    return load_config_from_file(str(tmp_path / "accelerate.yaml")), (
        tmp_path / "commands.sh"
    ).read_text().splitlines()[1:]


def environment_of(tmp_path):
    """What accelerate would put into the environment of the processes."""
    parser = launch_command_parser()
    args = parser.parse_args(["--config_file", str(tmp_path / "accelerate.yaml"), "-m", "rftkit", "train", "rft"])
    args, _, _ = _validate_launch_command(args)
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ""
        return prepare_deepspeed_cmd_env(args)[1], args
    return prepare_multi_gpu_env(args), args


@pytest.mark.parametrize("strategy", launch.STRATEGIES)
def test_accelerate_reads_every_configuration(tmp_path, capsys, strategy):
    plain = load_config_from_file(str(launch.CONFIGS / f"{strategy}.yaml"))
    config, commands = written(
        tmp_path,
        "02",
        "--strategy",
        strategy,
        "--machines",
        "2",
        "--machine-rank",
        "1",
        "--main-process-ip",
        "10.0.0.1",
    )
    assert plain.distributed_type == config.distributed_type == TYPES[strategy]
    assert (config.num_machines, config.num_processes, config.machine_rank) == (2, 16, 1)
    assert (config.main_process_ip, config.main_process_port, config.use_cpu) == ("10.0.0.1", 29500, False)
    assert plain.fsdp_config == config.fsdp_config and plain.deepspeed_config == config.deepspeed_config
    assert [shlex.split(line)[7] for line in commands] == list(arms.NOTEBOOK_02)
    assert capsys.readouterr().out.splitlines()[1:] == commands
    _, args = environment_of(tmp_path)
    assert (args.training_script, args.training_script_args, args.module) == ("rftkit", ["train", "rft"], True)


def test_the_fsdp_plugin_is_built_from_what_accelerate_hands_on(tmp_path):
    written(tmp_path, "02")
    environment, _ = environment_of(tmp_path)
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    with patch_environment(**{k: v for k, v in environment.items() if k not in os.environ}):
        plugin = FullyShardedDataParallelPlugin()
        from transformers import Qwen2_5_VLForConditionalGeneration

        assert (
            plugin.fsdp_version == 2 and plugin.reshard_after_forward is True and not plugin.cpu_ram_efficient_loading
        )
        assert str(plugin.state_dict_type).endswith("FULL_STATE_DICT")
        layers = set(plugin.transformer_cls_names_to_wrap)
    assert layers <= set(Qwen2_5_VLForConditionalGeneration._no_split_modules)


def test_deepspeed_is_told_of_stage_3(tmp_path, monkeypatch):
    written(tmp_path, "02", "--strategy", "zero3")
    environment, _ = environment_of(tmp_path)
    expected = {
        "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3", "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
        "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true", "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
        "ACCELERATE_MIXED_PRECISION": "bf16",
    }  # fmt: skip
    assert {key: environment.get(key) for key in expected} == expected


def test_the_server_is_started_as_trl_starts_it(tmp_path, monkeypatch):
    _, (server, train) = written(
        tmp_path, "02", "--arm", "rft", "--vllm", "server", "--processes", "4", "--server-gpus", "2"
    )
    gpus, dev, *words = shlex.split(server.removesuffix(" &"))
    assert (gpus, dev) == ("CUDA_VISIBLE_DEVICES=4,5", "VLLM_SERVER_DEV_MODE=1")
    assert shlex.split(train)[0] == "RFTKIT_VLLM_SERVER=http://127.0.0.1:8000"
    monkeypatch.setattr(vllm_serve, "is_vllm_available", lambda **_: True)  # as with vLLM 0.31, which the lock names
    preset = get_preset("full")
    script = vllm_serve.ScriptArguments(
        model=preset.model, tensor_parallel_size=2, max_model_len=rft.rollout_tokens(preset)
    )
    usual = vllm_serve.build_command(script)[3:]

    def options(words):
        flags = [i for i, word in enumerate(words) if word.startswith("--")]
        return {words[i]: words[i + 1 : j] for i, j in zip(flags, [*flags[1:], len(words)], strict=True)}

    ours, theirs = options(words[3:]), options(usual[2:])
    assert words[:3] == ["vllm", *usual[:2]] and ours.items() <= theirs.items()
    imposed = ("--enable-scale-out", "--weight-transfer-config", "--logprobs-mode", "--max-logprobs")
    assert all(ours[flag] == theirs[flag] for flag in imposed)


def test_only_machine_0_serves(tmp_path):
    _, commands = written(
        tmp_path,
        "02",
        "--arm",
        "rft",
        "--vllm",
        "server",
        "--machines",
        "2",
        "--machine-rank",
        "1",
        "--main-process-ip",
        "10.0.0.1",
    )
    assert len(commands) == 1 and commands[0].startswith("RFTKIT_VLLM_SERVER=http://10.0.0.1:8000 accelerate launch ")


def test_without_vllm_the_preset_says_so(tmp_path):
    _, (command,) = written(
        tmp_path, "02", "--arm", "rft", "--vllm", "off", "--strategy", "zero3", "-p", "rft_steps", "7"
    )
    assert command.endswith("train rft --preset full --seed 0 -p rft_steps 7 -p vllm false")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["03"], "No training is launched for notebook '03': choose one of 02"),
        (["02", "--arm", "sft_far"], "Notebook 02 has no arm 'sft_far'"),
        (["02", "--processes", "7"], "7 processes do not divide sft_batch = 64"),
        (["02", "--processes", "8", "-p", "rft_prompts", "4"], "8 processes do not divide rft_prompts = 4"),
        (["02", "--machines", "2"], "give its address with --main-process-ip"),
        (["02", "--machine-rank", "1"], "counts machines from 0"),
        (["02", "--processes", "0"], "at least 1"),
        (
            ["02", "-p", "quantize", "nf4", "--strategy", "fsdp2", "--vllm", "off"],
            "NF4 weights cannot be sharded by fsdp2",
        ),
        (
            ["02", "-p", "quantize", "nf4", "--strategy", "zero3", "--vllm", "off"],
            "NF4 weights cannot be sharded by zero3",
        ),
        (["02", "--preset", "qlora", "--vllm", "colocate", "--processes", "4"], "vLLM cannot be handed 4-bit weights"),
        (["02", "--preset", "tiny", "--strategy", "fsdp2", "--processes", "2"], "trains on the CPU, without sharding"),
        (["02", "-p", "sft_lr", "fast"], "sft_lr = fast does not fit"),
        (["02", "-p", "sft_rate", "1"], "no field 'sft_rate'"),
        (["02", "--export", "easyr1", "--arm", "sft"], "easyr1 trains GRPO, and 'sft' is another method"),
        (["02", "--export", "verl", "--preset", "qlora"], "verl trains unquantised weights"),
        (["02", "--export", "verl", "--preset", "tiny"], "verl trains unquantised weights"),
        (["02", "--export", "verl", "-p", "train_n", "63"], "train_n = 63 puzzles make none of rft_prompts = 64"),
        (["02", "--export", "easyr1", "--processes", "7"], "512 an update do not go evenly to 7 processes"),
        (
            ["02", "--export", "verl", "-p", "rft_group", "2", "-p", "rft_prompts", "4"],
            "8 an update do not go evenly to 8",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(tmp_path, capsys, argv, says):
    assert __main__.main(["launch", *argv, "--out", str(tmp_path / "out"), "--dry-run"]) == 2
    captured = capsys.readouterr()
    assert says in captured.err and re.fullmatch(r"rftkit: [^\n]+\.\n", captured.err)
    assert captured.out == "" and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "missing"),
    [
        (["--strategy", "zero3", "--vllm", "off"], "DeepSpeed"),
        (["--arm", "rft"], "vLLM"),
        (["--vllm", "server"], "vLLM"),
    ],
)
def test_what_is_not_installed_is_named(tmp_path, monkeypatch, argv, missing):
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    monkeypatch.setattr(launch.subprocess, "run", lambda *a, **k: pytest.fail("started"))
    monkeypatch.setattr(launch.subprocess, "Popen", lambda *a, **k: pytest.fail("started"))
    with pytest.raises(UserError, match=rf"^{missing} is not installed[^\n]+\.$"):
        launch.main(["02", *argv, "--out", str(tmp_path)])


def test_the_trainer_refuses_vllm_where_it_cannot_work(monkeypatch):
    preset = get_preset("tiny", vllm=True)
    monkeypatch.setattr(rft, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="vLLM is not installed"):
        rft.train_rft(preset, 0)
    with pytest.raises(UserError, match="4-bit"):
        rft.sampler_arguments(get_preset("tiny", vllm=True, quantize="nf4"))


def test_vllm_samples_in_the_training_processes_or_on_a_server(monkeypatch):
    monkeypatch.setattr(rft, "find_spec", lambda name: object())
    preset = get_preset("full")
    assert rft.sampler_arguments(preset) == {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_max_model_length": 576 + 1024 + 512,
    }
    monkeypatch.setenv(rft.VLLM_SERVER, "http://10.0.0.1:8000")
    server = rft.sampler_arguments(preset)
    assert (server["vllm_mode"], server["vllm_server_base_url"]) == ("server", "http://10.0.0.1:8000")
    assert rft.sampler_arguments(get_preset("tiny")) == {}


# --- EasyR1 and verl -----------------------------------------------------------------------------------------------------------

# names of the public example configuration, examples/config.yaml of EasyR1
EASYR1 = {
    "": "data algorithm worker trainer",
    "data": "train_files val_files prompt_key answer_key image_key video_key image_dir video_fps max_prompt_length max_response_length "
    "rollout_batch_size mini_rollout_batch_size val_batch_size format_prompt override_chat_template shuffle seed min_pixels max_pixels "
    "filter_overlong_prompts",
    "algorithm": "adv_estimator disable_kl use_kl_loss kl_penalty kl_coef online_filtering filter_key filter_low filter_high",
    "worker": "actor rollout ref reward",
    "worker.actor": "global_batch_size micro_batch_size_per_device_for_update micro_batch_size_per_device_for_experience max_grad_norm "
    "padding_free dynamic_batching ulysses_size model optim fsdp offload "
    "ppo_epochs clip_ratio_low clip_ratio_high loss_avg_mode",  # these four are fields of its ActorConfig that the example leaves alone
    "worker.actor.model": "model_path enable_gradient_checkpointing trust_remote_code freeze_vision_tower lora",
    "worker.actor.model.lora": "rank alpha target_modules exclude_modules",
    "worker.actor.optim": "lr weight_decay strategy lr_warmup_ratio",
    "worker.actor.fsdp": "enable_full_shard enable_cpu_offload enable_rank0_init torch_dtype",
    "worker.actor.offload": "offload_params offload_optimizer",
    "worker.ref": "fsdp offload",
    "worker.ref.fsdp": "enable_full_shard enable_cpu_offload enable_rank0_init",
    "worker.ref.offload": "offload_params",
    "worker.rollout": "n temperature top_p limit_images gpu_memory_utilization enforce_eager enable_chunked_prefill tensor_parallel_size "
    "disable_tqdm val_override_config",
    "worker.rollout.val_override_config": "temperature top_p n",
    "worker.reward": "reward_function",  # no reward_type: since EasyR1's pull request 558 the file of the function says it
    "trainer": "total_epochs max_steps project_name experiment_name logger nnodes n_gpus_per_node max_try_make_batch val_freq "
    "val_before_train val_only val_generations_to_log save_freq save_limit save_model_only save_checkpoint_path load_checkpoint_path "
    "find_last_checkpoint",
}
# names in verl 0.9.1's own ppo_trainer
VERL = {
    "": "hydra defaults data algorithm actor_rollout_ref reward trainer",
    "hydra": "searchpath",
    "actor_rollout_ref": "model actor ref rollout",
    "actor_rollout_ref.ref": "log_prob_micro_batch_size_per_gpu",
    "reward": "custom_reward_function",
    "data": "train_files val_files image_key train_batch_size max_prompt_length max_response_length shuffle seed filter_overlong_prompts truncation",
    "algorithm": "adv_estimator norm_adv_by_std_in_grpo use_kl_in_reward",
    "actor_rollout_ref.model": "path enable_gradient_checkpointing lora_rank lora_alpha target_modules exclude_modules",
    "actor_rollout_ref.actor": "ppo_mini_batch_size ppo_micro_batch_size_per_gpu ppo_epochs freeze_vision_tower loss_agg_mode entropy_coeff "
    "clip_ratio use_kl_loss kl_loss_coef kl_loss_type optim",
    "actor_rollout_ref.actor.optim": "lr weight_decay lr_warmup_steps clip_grad",
    "actor_rollout_ref.rollout": "name n temperature tensor_model_parallel_size gpu_memory_utilization max_model_len "
    "log_prob_micro_batch_size_per_gpu",
    "reward.custom_reward_function": "path name",
    "trainer": "total_training_steps total_epochs project_name experiment_name logger nnodes n_gpus_per_node test_freq save_freq "
    "default_local_dir",
}


def at(config, path):
    for key in path.split("."):
        config = config[key]
    return config


def sections(config, path=""):
    """(path, its keys) of every mapping."""
    yield path, set(config)
    for key, value in config.items():
        if isinstance(value, dict):
            yield from sections(value, f"{path}.{key}".lstrip("."))


def exported(tmp_path, library, *argv):
    assert launch.main(["02", "--export", library, "--out", str(tmp_path), *argv]) == 0
    return yaml.safe_load((tmp_path / f"{library}.yaml").read_text())


@pytest.mark.parametrize(("library", "names"), [("easyr1", EASYR1), ("verl", VERL)])
@pytest.mark.parametrize("rank", [0, 16])
def test_an_export_keeps_to_the_names_of_the_library(tmp_path, capsys, library, names, rank):
    config = exported(
        tmp_path, library, "-p", "lora_rank", str(rank), "--machines", "2", "--main-process-ip", "10.0.0.1"
    )
    for path, keys in sections(config):
        assert keys <= set(names[path].split()), path
    preset = get_preset("full", lora_rank=rank)
    prompt = "actor_rollout_ref.actor" if library == "verl" else "worker.actor"
    assert at(config, f"{prompt}.optim.lr") == preset.rft_lr and at(config, "trainer.nnodes") == 2
    rollout = "actor_rollout_ref.rollout" if library == "verl" else "worker.rollout"
    assert at(config, f"{rollout}.n") == preset.rft_group
    assert (
        at(config, "actor_rollout_ref.actor.kl_loss_coef" if library == "verl" else "algorithm.kl_coef")
        == preset.rft_beta
    )
    command = capsys.readouterr().out.splitlines()[-1]
    module = {"easyr1": "verl.trainer.main config=", "verl": "verl.trainer.main_ppo --config-path "}[library]
    assert command.startswith(f"python3 -m {module}{tmp_path}")


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("library", ["easyr1", "verl"])
def test_the_exported_reward_is_the_kits_on_the_exported_rows(tmp_path, library):
    config = exported(tmp_path, library)
    path = (
        config["worker"]["reward"]["reward_function"]
        if library == "easyr1"
        else config["reward"]["custom_reward_function"]["path"]
    )
    reward = load(Path(path.removesuffix(":compute_score"))).compute_score
    rows = pyarrow.parquet.read_table(make_data(tmp_path, library)).to_pylist()
    assert len(rows) == 3 and len({row["images"][0]["bytes"] for row in rows}) == 3
    for row in rows:
        truth = row["answer"] if library == "easyr1" else row["reward_model"]["ground_truth"]
        text = row["problem"] if library == "easyr1" else row["prompt"][0]["content"]
        assert text.startswith("<image>") and text.count("<image>") == 1
        right = jigsaw.answer_text(tuple(map(int, truth.split())))
        wrong = jigsaw.answer_text(tuple(reversed(list(map(int, truth.split())))))
        for reply in (right, wrong, "", "<think> 1 </think> <answer> 1 2 </answer>"):
            expected = jigsaw.reward_p1(reply, tuple(map(int, truth.split())), 3, 3).total
            if library == "easyr1":
                found = reward([{"response": reply, "response_length": 1, "ground_truth": truth}])[0]["overall"]
            else:
                found = reward("jigsaw", reply, truth, extra_info={})["score"]
            assert found == expected
        assert jigsaw.reward_p1(right, tuple(map(int, truth.split())), 3, 3).exact == 1
    if library == "easyr1":
        assert load(tmp_path / "reward.py").REWARD_TYPE == "batch"


@pytest.mark.parametrize("library", ["easyr1", "verl"])
def test_there_are_epochs_enough_for_all_steps(tmp_path, library):
    """Of 1,000 puzzles in batches of 64 an epoch has 15 batches, since the last is dropped."""
    config = exported(tmp_path, library, "-p", "train_n", "1000", "-p", "rft_steps", "1000")
    assert config["trainer"]["total_epochs"] * 15 >= 1000 > (config["trainer"]["total_epochs"] - 1) * 15


def make_data(tmp_path, library):
    """What the exported data.py does, on drawn scenes in place of COCO's photographs."""
    source = (tmp_path / "data.py").read_text()
    assert "preset_from('full', [])" in source and f"write_rows(preset, 0, split, n, '{library}'" in source
    compile(source, "data.py", "exec")
    preset = get_preset("full", images="scenes", device="cpu")
    launch.write_rows(preset, 0, "train", 3, library, tmp_path / "train.parquet")
    return tmp_path / "train.parquet"


# course/locks/verl.txt: where make puts it, or somewhere else
READER = Path(os.environ.get("RFTKIT_VERL") or Path(sys.prefix, "verl")).resolve()
GOOD = {
    "as it is": [],
    "LoRA": ["-p", "lora_rank", "16"],
    "KL": ["-p", "rft_beta", "0.04"],
    "two machines": ["--machines", "2", "--processes", "4", "--main-process-ip", "10.0.0.1"],
}
BAD = {  # what is put into the first, and what verl says of it
    "unknown name": ("trainer.total_steps", 5, "Key 'total_steps' is not in struct"),
    "unknown section": ("actor_rollout_ref.adapter", {"rank": 16}, "Key 'adapter' is not in struct"),
    "text for a number": ("actor_rollout_ref.actor.optim.lr", "slow", "could not be converted to Float"),
    "number for a text": ("trainer.project_name", 5, "trainer.project_name is 5"),
    "unknown loss": ("actor_rollout_ref.actor.loss_agg_mode", "mean", "Invalid loss_agg_mode: mean"),
    "small batch": (
        "data.train_batch_size",
        32,
        r"train_batch_size \(32\) must be >= actor.ppo_mini_batch_size \(64\)",
    ),
    "uneven batch": ("trainer.n_gpus_per_node", 7, r"real_train_batch_size \(512\) must be divisible"),
}


@pytest.fixture(scope="module")
def verl_answers(tmp_path_factory):
    """{name: what verl makes of it}, in one process for all of GOOD and BAD."""
    if not (READER / "verl").is_dir():
        pytest.skip("verl is not there: make test fetches it, and course/locks/verl.txt says how without make")
    home, commands = tmp_path_factory.mktemp("verl"), {}
    for name, argv in GOOD.items():
        folder = home / name.replace(" ", "_")
        args = launch._parser().parse_args(["02", "--export", "verl", *argv])
        cluster = launch.Cluster(args.machines, args.processes, args.machine_rank, args.main_process_ip)
        command = launch.export(launch.preset_from(args.preset, args.fields), "verl", "rft", args, cluster, folder)
        commands[name] = command.words[3:]
    first = home / "as_it_is"
    make_data(first, "verl")
    for name, (path, value, _) in BAD.items():
        folder, config = home / name.replace(" ", "_"), yaml.safe_load((first / "verl.yaml").read_text())
        above, _, key = path.rpartition(".")
        at(config, above)[key] = value
        launch.write_yaml(folder / "verl.yaml", config)
        commands[name] = ("--config-path", str(folder), "--config-name", "verl")
    (home / "commands.json").write_text(json.dumps(commands))
    script, root = Path(__file__).parent / "read_by_verl.py", Path(launch.__file__).parent.parent
    path = os.pathsep.join(map(str, (READER, root)))
    environment = {**os.environ, "PYTHONPATH": path, "HF_DATASETS_CACHE": str(home / "datasets")}
    words = [sys.executable, script, home / "commands.json", home / "answers.json"]
    done = subprocess.run(words, cwd=home, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((home / "answers.json").read_text())


@pytest.mark.parametrize("name", GOOD)
def test_verls_own_main_reads_what_is_exported(verl_answers, name):
    """By Hydra over its ppo_trainer, through its validate_config, and in the types of its dataclasses."""
    assert "error" not in verl_answers[name], verl_answers[name]["error"]
    config, preset = verl_answers[name]["config"], get_preset("full", lora_rank=16 if name == "LoRA" else 0)
    actor = at(config, "actor_rollout_ref.actor")
    assert actor["optim"]["lr"] == preset.rft_lr
    assert actor["rollout_n"] == preset.rft_group  # put there by verl, from our `rollout`
    assert at(config, "actor_rollout_ref.model.lora_rank") == preset.lora_rank
    assert actor["use_kl_loss"] == (name == "KL") and config["critic"]["enable"] is None
    assert config["trainer"]["nnodes"] * config["trainer"]["n_gpus_per_node"] == 8


@pytest.mark.parametrize("name", BAD)
def test_verl_refuses_what_is_wrong(verl_answers, name):
    """So that the test above can fail."""
    assert re.search(BAD[name][2], verl_answers[name]["error"])


def test_verls_own_data_set_and_loader_take_the_exported_rows_and_reward(verl_answers):
    task = launch.hub.new_task(get_preset("full", images="scenes", device="cpu"))
    rows = verl_answers["as it is"]["rows"]
    assert len(rows) == 3
    for i, row in enumerate(rows):
        own = task.row(0, i, "train")
        answer = tuple(own.data["answer"])
        assert (row["role"], row["types"], row["text"]) == ("user", ["image", "text"], own.prompt)
        assert tuple(row["size"]) == own.image.size and row["truth"] == " ".join(map(str, answer))
        assert row["reward"] == jigsaw.reward_p1(row["reply"], answer, 3, 3).total > 1


# --- one arm, alone and launched -------------------------------------------------------------------------------------------------


def small(base):
    fields = {
        "model": base,
        "sft_steps": 3,
        "sft_batch": 4,
        "rft_prompts": 2,
        "rft_group": 2,
        "max_completion": 8,
        "eval_n": 3,
        "train_n": 64,
    }
    return [word for name, value in fields.items() for word in ("-p", name, str(value))]


def test_train_knows_its_arms(capsys):
    assert __main__.main(["train", "sft_best"]) == 2
    assert re.fullmatch(r"rftkit: There is no arm 'sft_best': choose from sft, [^\n]+\.\n", capsys.readouterr().err)


def test_an_arm_alone_and_launched_on_two_processes(small_base, tmp_path, monkeypatch, capfd):
    """The launch for real, with the gradients that this arm measures before it trains."""
    records = []
    for home, argv in (
        ("one", ["train", "sft"]),
        ("two", ["launch", "02", "--arm", "sft", "--processes", "2", "--main-process-port", "29617"]),
    ):
        monkeypatch.setenv("RFTKIT_HOME", str(tmp_path / home))
        assert __main__.main([*argv, "--preset", "tiny", "--seed", "2", *small(small_base)]) == 0, (
            capfd.readouterr().err[-3000:]
        )
        (path,) = (tmp_path / home).glob("runs/*/record.json")
        records.append(runs.load_record(path))
    one, two = records
    assert one.config == two.config and one.status == two.status == "done"
    for key in ("loss", "grad_norm", "perplexity"):
        pairs = [[row[key] for row in r.metrics if key in row] for r in records]
        assert pairs[0] == pytest.approx(pairs[1], rel=1e-5) and pairs[0]
    assert "sft-s2: done after 3 updates" in capfd.readouterr().out


def test_every_preset_that_is_launched_has_its_strategy(tmp_path):
    for name in PRESETS:
        processes = "2" if name == "tiny" else "4"
        config, commands = written(tmp_path / name, "02", "--preset", name, "--processes", processes)
        wanted = [arm for arm in arms.NOTEBOOK_02 if name != "qlora" or arm != "lora_sft"]  # there SFT is LoRA's
        assert config.use_cpu == (name == "tiny") and len(commands) == len(wanted)


@pytest.mark.parametrize("tier", PRESETS)
def test_cards_are_launched_from_updates_of_the_tier_s_plan(tmp_path, tier):
    _, commands = written(tmp_path, "05", "--preset", tier, "--processes", "2", "--strategy", "ddp", "--vllm", "off")
    starts = [int(n) for command in commands for n in re.findall(r" points_rft_(?:fast_)?(\d+) ", command)]
    plan = two_stage.PLANS[tier]
    assert starts == [*plan.starts, max(plan.starts)] and set(starts[1:]) <= set(plan.checkpoints)


def test_a_server_only_samples_for_rft(tmp_path):
    for arm, served in (("sft", 0), ("rft", 1)):
        _, commands = written(
            tmp_path / arm, "02", "--preset", "full", "--vllm", "server", "--processes", "4", "--arm", arm
        )
        assert sum("vllm serve" in command for command in commands) == served


def test_more_processes_than_gpus_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "check_installed", lambda *_: None)
    monkeypatch.setattr(launch, "run", lambda *_: pytest.fail("started"))
    monkeypatch.setattr(launch.torch.cuda, "device_count", lambda: 8)
    argv = ["02", "--preset", "full", "--arm", "rft", "--vllm", "server", "--out", str(tmp_path)]
    with pytest.raises(UserError, match="8 processes want a GPU each and 1 for vLLM's server, and this machine has 8"):
        launch.main(argv)


def test_training_ends_with_its_server(monkeypatch):
    """The trainers would wait half an hour for an answer."""
    sleeper = launch.Command(("accelerate", "launch", "--version"))
    monkeypatch.setattr(launch, "sys", SimpleNamespace(executable="/bin/sleep"))
    began = time.monotonic()
    popen = subprocess.Popen
    monkeypatch.setattr(
        launch.subprocess,
        "Popen",
        lambda words, **k: popen(["sleep", "60"] if words[0] == "/bin/sleep" else words, **k),
    )
    with pytest.raises(UserError, match="server ended with exit code 3"):
        launch.run([sleeper], launch.Command(("sh", "-c", "exit 3")))
    assert time.monotonic() - began < 30
