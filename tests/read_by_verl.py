"""What verl itself makes of exported configurations, up to where it would start a cluster; for tests/test_launch.py.

    PYTHONPATH=FOLDER python tests/read_by_verl.py COMMANDS ANSWERS

FOLDER holds course/locks/verl.txt. COMMANDS is JSON, {name: arguments of `python -m verl.trainer.main_ppo`}; ANSWERS becomes
{name: {"config": ..., "rows": ...} or {"error": ...}}.
"""

import json
import os
import sys
from dataclasses import make_dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import get_type_hints
from unittest.mock import MagicMock

# What verl imports here and does not use to read: the cluster, its batches, a timer, a logger's JSON, and the workers of vLLM, which
# have no other part in this than to say that a LoRA of more than rank 512 is too large.
BLANK = ("ray", "tensordict", "codetiming", "orjson", "verl.workers.rollout.vllm_rollout")


class Blank:
    """Finds the modules of BLANK, and finds them empty."""

    def find_spec(self, name, path=None, target=None):
        blank = any(name == one or name.startswith(one + ".") for one in BLANK)
        return ModuleSpec(name, self, is_package=True) if blank else None

    def create_module(self, spec):
        return MagicMock()

    def exec_module(self, module):
        pass


sys.meta_path.insert(0, Blank())
os.environ["HYDRA_FULL_ERROR"] = "1"  # else it prints errors and exits

from hydra import compose, initialize_config_module  # noqa: E402
from hydra.utils import get_class  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from verl.trainer import main_ppo  # noqa: E402
from verl.trainer.ppo.reward import get_custom_reward_fn  # noqa: E402
from verl.utils.dataset.rl_dataset import RLHFDataset  # noqa: E402

from rftkit.config import BUNDLED_DIR  # noqa: E402
from rftkit.policy import ImageTextProcessor  # noqa: E402


def started(words):
    """The configuration that verl's main starts its cluster with: composed by Hydra, and checked by verl's validate_config."""
    seen = []
    main_ppo.run_ppo = lambda config, task_runner_class: seen.append(config)
    sys.argv[1:] = words
    main_ppo.main()
    return seen[0]


def strict(words):
    """Our file over verl's own ppo_trainer, which is closed: an unknown name raises, and so does a value of another type."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        base = compose("ppo_trainer")
    ours = OmegaConf.load(Path(words[1], f"{words[3]}.yaml"))
    del ours["hydra"], ours["defaults"]
    OmegaConf.set_struct(base, True)
    merged = OmegaConf.merge(base, ours)
    same_types(ours, base)
    return merged


def same_types(ours, base, path=""):
    """Hold values against the fields of verl's dataclass, and against verl's defaults where it has no such field."""
    values = {key: value for key, value in ours.items() if not OmegaConf.is_dict(value)}
    hints = get_type_hints(get_class(base._target_)) if base.get("_target_") else {}
    fields = make_dataclass("Fields", [(key, hints[key]) for key in values if key in hints])
    OmegaConf.merge(OmegaConf.structured(fields), {key: values[key] for key in values if key in hints})
    for key in values.keys() - hints.keys():
        if base[key] is not None and type(values[key]) is not type(base[key]):
            raise TypeError(f"{path}{key} is {values[key]!r}, and {base[key]!r} in verl")
    for key in ours.keys() - values.keys():
        same_types(ours[key], base[key], f"{path}{key}.")


def rows(config):
    """The training rows as verl's data set hands them to a rollout, each with the reward of its own answer, if they were made."""
    if not Path(config.data.train_files).exists():
        return []
    processor, score = ImageTextProcessor.from_pretrained(BUNDLED_DIR), get_custom_reward_fn(config)
    found = []
    for row in RLHFDataset(config.data.train_files, processor.tokenizer, config.data, processor=processor):
        ((role, content),) = [(message["role"], message["content"]) for message in row["raw_prompt"]]
        image, text = content
        truth = row["reward_model"]["ground_truth"]
        reply = f"<think> </think> <answer> {truth} </answer>"
        found.append(
            {
                "role": role, "types": [part["type"] for part in content], "size": image["image"].size, "text": text["text"],
                "truth": truth, "reply": reply, "reward": score(row["data_source"], reply, truth, extra_info=row["extra_info"])["score"],
            }
        )  # fmt: skip
    return found


def answer(words):
    try:
        config = started(words)
        merged = strict(words)
        OmegaConf.resolve(config)
        OmegaConf.resolve(merged)
        assert config == merged, "verl's main reads something else"
        return {"config": OmegaConf.to_container(config), "rows": rows(config)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(json.dumps({name: answer(words) for name, words in json.loads(source.read_text()).items()}))
