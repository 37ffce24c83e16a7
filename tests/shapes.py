"""Folders like the bundled base with random weights in other sizes: what a training costs does not depend on the values."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from rftkit import cost, policy
from rftkit.config import BUNDLED_DIR

TRUE_3B: dict[str, Any] = {}  # nothing replaced
SMALL = {  # the same architecture for a CPU
    "text_config": {
        "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 128,
        "vocab_size": 1000,
    },
    "vision_config": {
        "depth": 2, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2, "out_hidden_size": 256, "fullatt_block_indexes": [1],
    },
}  # fmt: skip


def random_3b(folder, replaced=TRUE_3B, dtype=torch.bfloat16, device="cpu"):
    """Random weights in the architecture of Qwen2.5-VL-3B, tower included, with the bundled processor and its special tokens."""
    sizes = cost.HUB_SHAPES["Qwen/Qwen2.5-VL-3B-Instruct"]().to_dict()
    bundled = Qwen2_5_VLConfig.from_pretrained(BUNDLED_DIR)
    sizes["text_config"]["rope_parameters"]["mrope_section"] = [16, 24, 24]  # as its config.json says
    sizes["text_config"].pop("layer_types", None)
    for part, changes in replaced.items():
        sizes[part] |= changes
    for key in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        sizes[key] = getattr(bundled, key)
    return _save(folder, Qwen2_5_VLConfig(**sizes), dtype, device)


def make_base(folder, dtype=torch.float32, **text):
    """The bundled base with another language model."""
    sizes = Qwen2_5_VLConfig.from_pretrained(BUNDLED_DIR).to_dict()
    half = text["hidden_size"] // text["num_attention_heads"] // 2
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [half // 4, 3 * half // 8, 3 * half // 8]}
    sizes["text_config"] |= {"rope_parameters": rope, **text}
    sizes["text_config"].pop("layer_types", None)
    sizes["vision_config"] |= {"out_hidden_size": text["hidden_size"]}
    return _save(folder, Qwen2_5_VLConfig(**sizes), dtype, "cpu")


def _save(folder, config, dtype, device):
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)  # so that a large model is never there in float32
    try:
        with torch.device(device):
            model = Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(torch.float32)
    model.generation_config.update(eos_token_id=2, pad_token_id=0, do_sample=False)
    model.save_pretrained(folder)
    policy.ImageTextProcessor.from_pretrained(BUNDLED_DIR).save_pretrained(folder)
    return str(folder)


def photographs(folder, n=60):
    """Pictures of the size of COCO's photographs, by the names that RFTKIT_COCO's folder holds."""
    Path(folder).mkdir()
    for i in range(n):
        noise = np.random.default_rng(i).integers(0, 255, (480, 640, 3), dtype=np.uint8)
        Image.fromarray(noise).save(Path(folder) / f"{i:012d}.jpg")
    return str(folder)


def on_cpu(preset, folder):
    """The same preset where there is no GPU: NF4, LoRA and pieces as they are, and fewer of all that only takes time."""
    small = {"max_pixels": 84 * 84, "max_completion": 12, "sft_batch": 4, "rft_prompts": 2, "rft_group": 4}
    return dataclasses.replace(preset, model=folder, device="cpu", dtype="float32", **small)


def nothing_asked(model):
    """An evaluation that costs nothing, for what only the training is measured of."""
    row = {
        "kind": "eval",
        "new_exact": 0.0,
        "new_hit": 0.0,
        "new_unparseable": 1.0,
        "new_n": 1,
        "prior": {},
        "prior_mean": 0.0,
    }
    return row, []
