"""One call loads model and processor for a preset; generation, snapshots and the reuse of image features work on what it returns."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from huggingface_hub import snapshot_download
from peft import PeftModel
from safetensors import SafetensorError
from transformers import BitsAndBytesConfig, ProcessorMixin, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
from transformers.generation import LogitsProcessor, LogitsProcessorList
from transformers.modeling_outputs import BaseModelOutputWithPooling

from rftkit.config import BUNDLED, BUNDLED_DIR, CARDS, CARDS_DIR, Preset, UserError
from rftkit.tasks import Row, messages

HASHES = "sha256.json"  # beside the weights: the digest of every file of the folder
# the language model's projections and nothing of the vision tower, whose MLPs bear the same names
LORA_TARGETS = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
T = TypeVar("T")


class ImageTextProcessor(Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor without its video part: the stock one cannot be built where torchvision is absent.

    The attributes of a processor are read off this signature, so leaving the video processor out is all it takes.
    """

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None, **kwargs: Any
    ):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


@dataclass
class Policy:
    """A model with its processor and the preset it was loaded for."""

    model: Any  # Qwen2_5_VLForConditionalGeneration, or peft's wrapper of it
    processor: ImageTextProcessor
    preset: Preset


def load_policy(preset: Preset) -> Policy:
    """Load model and processor of a preset: a bundled base, a folder, or a Hub id.

    The bundled weights are checked against their SHA-256. Raises UserError for missing, truncated or altered files.
    """
    bundled = bundled_folder(preset)
    if bundled:
        check_hashes(bundled)
    folder = str(bundled or preset.model)
    kwargs: dict[str, Any] = {"revision": preset.revision} if preset.revision else {}
    dtype = compute_dtype(preset)  # says so if there is no GPU, before anything is downloaded
    _one_gpu(preset)
    device = join(preset)
    processor = _read(ImageTextProcessor.from_pretrained, folder, **kwargs)
    processor.tokenizer.padding_side = "left"  # generation appends on the right
    processor.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": preset.max_pixels}
    if preset.quantize == "nf4":
        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype,
            # transformers 5 matches from the start of the module's name: "visual" alone would quantise the tower
            llm_int8_skip_modules=["model.visual", "lm_head"],
        )  # fmt: skip
        kwargs["device_map"] = {"": device}
    model = _read(Qwen2_5_VLForConditionalGeneration.from_pretrained, folder, dtype=dtype, **kwargs)
    if preset.quantize == "none":
        model.to(device)
    for module in model.modules():  # on some CPUs an evaluation repacks NF4 weights in a way that training cannot use
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    freeze_vision(model, preset.freeze_vision)
    wide = wide_tower(preset)
    if wide:
        model.model.visual.float()
    if not sharded():  # else all processes must run the tower at the same time
        reuse_features(model, wide=wide)
    return Policy(model, processor, preset)


def bundled_folder(preset: Preset) -> Path | None:
    """Where the bundled model of a preset lies; None for a model that is not bundled."""
    return {BUNDLED: BUNDLED_DIR, CARDS: CARDS_DIR}.get(preset.model)


def model_folder(preset: Preset) -> Path:
    """The folder with the preset's weights. Raises UserError where a Hub model was not downloaded yet."""
    found = bundled_folder(preset) or Path(preset.model)
    if found.is_dir():
        return found
    try:
        return Path(snapshot_download(preset.model, revision=preset.revision, local_files_only=True))
    except (OSError, ValueError) as error:
        raise UserError(
            f"The weights of {preset.model} are not on this machine: load the model once, with a network."
        ) from error


def _read(load: Any, folder: str, **kwargs: Any) -> Any:
    try:
        return load(folder, **kwargs)
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"The model in {folder} cannot be read ({reason}): download it again or name another."
        ) from error


def _one_gpu(preset: Preset) -> None:
    """TRL trains in one process only where it sees one GPU, and says so late. Raises UserError."""
    if preset.device.startswith("cuda") and processes() == 1 and (found := torch.cuda.device_count()) > 1:
        raise UserError(
            f"{found} GPUs are visible and one process trains on one: set CUDA_VISIBLE_DEVICES=0 before Python starts, or train on "
            "all of them by `python -m rftkit launch`."
        )


def compute_dtype(preset: Preset) -> torch.dtype:
    """bfloat16 from compute capability 8.0 on, float16 on a T4 (which only emulates bfloat16), as named otherwise."""
    if preset.device == "cuda" and not torch.cuda.is_available():
        raise UserError("This preset needs a CUDA GPU and none was found: use the preset 'tiny', or another machine.")
    if preset.dtype != "auto":
        return getattr(torch, preset.dtype)
    if preset.device == "cpu":
        return torch.float32
    return torch.float16 if old_gpu() else torch.bfloat16


def old_gpu() -> bool:
    """A card before Ampere, such as a T4: it says that it supports bfloat16, and emulates it."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] < 8


def wide_tower(preset: Preset) -> bool:
    """Whether the frozen vision tower is kept in float32: where all else is float16. Its last layers leave float16's range on some
    pictures, and then every answer is "!!!!" (vllm#13817 of Qwen2.5-VL-3B). It sees each picture once, so it costs memory only."""
    narrow = preset.dtype == "float16" or (preset.dtype == "auto" and preset.device == "cuda" and old_gpu())
    return narrow and preset.freeze_vision


def freeze_vision(model: Any, frozen: bool = True) -> None:
    """The tower never trains unless asked to; quantised weights have no gradient to switch on."""
    for parameter in model.model.visual.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(not frozen)


# --- several processes, as `accelerate launch` starts them -----------------------------------------------------------------


def processes() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return int(os.environ.get("RANK", "0")) == 0


def sharded() -> bool:
    """Whether no process holds all weights: FSDP or DeepSpeed, as `accelerate launch` says in the environment."""
    return any(os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true" for name in ("FSDP", "DEEPSPEED"))


def companions() -> dict[str, str]:
    """The number of processes for the run's record, where there are several: their sampled rollouts are others than one's."""
    return {"processes": str(processes())} if processes() > 1 else {}


def join(preset: Preset) -> str:
    """Meet the other processes, if there are any (gloo on the CPU, NCCL on GPUs), and return the device of this one."""
    if processes() == 1:
        return preset.device
    # hours, not NCCL's ten minutes: the others wait while the main process downloads, or writes a checkpoint
    return str(PartialState(cpu=preset.device == "cpu", timeout=timedelta(hours=3)).device)


def from_main(make: Callable[[], T]) -> T:
    """What `make` returns in the main process, in all of them: they agree on what is on the disk, and nobody runs ahead."""
    if processes() == 1:
        return make()
    box: list[Any] = [None]
    if is_main():
        try:
            box = [make()]
        except UserError as error:  # else the others would wait for ever
            box = [error]
    torch.distributed.broadcast_object_list(box)
    if isinstance(box[0], UserError):
        raise box[0]
    return box[0]


def _merge(answers: dict[int, list[int]]) -> dict[int, list[int]]:
    """The answers of all processes together."""
    if processes() == 1:
        return answers
    gathered: list[Any] = [None] * processes()
    torch.distributed.all_gather_object(gathered, answers)
    return {i: ids for part in gathered for i, ids in part.items()}


# --- the bundled folder ---------------------------------------------------------------------------------------------------


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_hashes(folder: Path) -> None:
    files = sorted(p for p in folder.iterdir() if p.name not in (HASHES, "README.md"))
    (folder / HASHES).write_text(json.dumps({p.name: digest(p) for p in files}, indent=1) + "\n")


def check_hashes(folder: Path) -> None:
    """Compare each file of the folder with its recorded SHA-256. Raises UserError naming the first that differs."""
    remedy = "reinstall rftkit, or rebuild the base with `python -m rftkit pretrain`"
    listing = folder / HASHES
    if not listing.exists():
        raise UserError(f"The bundled model is not there ({listing} is missing): {remedy}.")
    for name, expected in json.loads(listing.read_text()).items():
        path = folder / name
        if not path.exists():
            raise UserError(f"The bundled model is not whole ({name} is missing): {remedy}.")
        if digest(path) != expected:
            raise UserError(f"The bundled model is damaged ({name} does not match its SHA-256): {remedy}.")


# --- snapshots ------------------------------------------------------------------------------------------------------------


def snapshot(policy: Policy) -> dict[str, torch.Tensor]:
    """A copy of the weights, to be put back with `restore`.

    Never `copy.deepcopy` a model that a TRL trainer has held: TRL rebinds `model.forward` to the original object, so the copy
    would go on computing with the original's weights.
    """
    return {k: v.detach().clone() for k, v in policy.model.state_dict().items()}


def restore(policy: Policy, weights: dict[str, torch.Tensor]) -> None:
    policy.model.load_state_dict(weights)


def load_trained(policy: Policy, folder: Path, trainable: bool = False) -> None:
    """Put the weights that a finished run saved in `folder` into the policy: a whole model's, or a LoRA adapter's (`trainable`
    if it is to be trained on)."""
    if (folder / "adapter_config.json").exists():
        policy.model = PeftModel.from_pretrained(policy.model, str(folder), is_trainable=trainable)
        return
    if not (folder / "config.json").exists():
        raise UserError(f"The finished run's weights are gone from {folder}: delete its folder and run it again.")
    # the file has the Hub's parameter names, which only from_pretrained translates
    saved = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=policy.model.dtype)
    policy.model.load_state_dict(saved.state_dict())


# --- image features, once per distinct image ----------------------------------------------------------------------------------


def reuse_features(model: Any, keep: int = 512, wide: bool = False) -> None:
    """Let the frozen vision tower see each distinct image once, however often it is asked about.

    A GRPO step asks about one image 2 G times: G rollouts, in generation and in the loss. Here the tower's output is kept by the
    content of the pixels, for the `keep` images used last. While any parameter of the tower wants a gradient, nothing is kept
    and nothing reused, and whatever was kept is dropped, so that features never outlive the weights that made them. A `wide` tower
    is a float32 one in a float16 model, which autocast leaves alone.
    """
    inner = model.model
    plain = type(inner).get_image_features.__get__(inner)
    kept: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def get_image_features(
        pixel_values: torch.Tensor, image_grid_thw: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        if image_grid_thw is None or any(p.requires_grad for p in inner.visual.parameters()):
            kept.clear()
            return plain(pixel_values, image_grid_thw, **kwargs)
        patches = pixel_values.split(image_grid_thw.prod(-1).tolist())
        keys = [_content(p, g) for p, g in zip(patches, image_grid_thw, strict=True)]
        new = {key: i for i, key in enumerate(keys) if key not in kept}
        if new:
            index = list(new.values())
            with torch.no_grad(), _no_autocast(pixel_values.device) if wide else contextlib.nullcontext():
                seen = plain(torch.cat([patches[i] for i in index]), image_grid_thw[index], **kwargs).pooler_output
            if wide:
                seen = [features.to(model.get_input_embeddings().weight.dtype) for features in seen]
            kept.update(zip(new, seen, strict=True))
        features = tuple(kept[key] for key in keys)
        for key in keys:
            kept.move_to_end(key)
        while len(kept) > keep:
            kept.popitem(last=False)
        return BaseModelOutputWithPooling(pooler_output=features)

    inner.get_image_features = get_image_features


def _no_autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, enabled=False)


def _content(patches: torch.Tensor, grid: torch.Tensor) -> bytes:
    """A digest of one image's pixels and grid (bfloat16 has no numpy type: its bits are read as int16)."""
    bits = patches.detach().contiguous().view(torch.int16 if patches.element_size() == 2 else torch.int32).cpu().numpy()
    return hashlib.blake2b(bits.tobytes() + bytes(str(grid.tolist()), "ascii"), digest_size=16).digest()


# --- generation -----------------------------------------------------------------------------------------------------------


def generate(
    policy: Policy,
    rows: list[Row],
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int | Sequence[int] = 0,
    batch_size: int | None = None,
) -> list[str]:
    """The policy's answer to each row: the text of `generate_ids`, special tokens left out."""
    ids = generate_ids(policy, rows, max_new_tokens, temperature, seed, batch_size)
    return (
        policy.processor.tokenizer.batch_decode(ids, skip_special_tokens=True) if ids else []
    )  # of no row it makes one text


@torch.no_grad()
def generate_ids(
    policy: Policy,
    rows: list[Row],
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int | Sequence[int] = 0,
    batch_size: int | None = None,
) -> list[list[int]]:
    """The policy's answer to each row as token ids, padding behind the end included: greedy at temperature 0, else sampled, each row
    from a generator of its own.

    `seed` is one number for all rows or one for each; a row's sample does not depend on the rows beside it. Several processes, which
    must all ask for the same rows, share the work. Rows with and without images are batched apart (transformers cannot mix them). Image tokens are never sampled: one in a
    completion would break the next forward pass.
    """
    model = policy.model
    was_training = model.training
    model.eval()
    answers: dict[int, list[int]] = {}
    rank, several = int(os.environ.get("RANK", "0")), processes()
    # none may stop while another still needs its share of the weights
    together = {"synced_gpus": True} if sharded() else {}
    width = several * (batch_size or policy.preset.eval_batch)
    never = never_sampled(policy)
    seeds = [seed * 1_000_003 + i for i in range(len(rows))] if isinstance(seed, int) else seed
    for with_image in (True, False):
        index = [i for i, row in enumerate(rows) if (row.image is not None) == with_image]
        for start in range(0, len(index), width):
            part = index[start : start + width]
            part = part[rank::several] or part[:1]
            inputs = encode(policy, [rows[i] for i in part])
            noise = LogitsProcessorList([GumbelNoise([seeds[i] for i in part], temperature)] if temperature > 0 else [])
            out = model.generate(
                **inputs, max_new_tokens=max_new_tokens or policy.preset.max_completion, suppress_tokens=never,
                repetition_penalty=1.0, do_sample=False, temperature=None, top_p=None, top_k=None, logits_processor=noise, **together,
            )  # fmt: skip
            answers |= dict(zip(part, out[:, inputs["input_ids"].shape[1] :].tolist(), strict=True))
    model.train(was_training)
    answers = _merge(answers)
    return [answers[i] for i in range(len(rows))]


def never_sampled(policy: Policy) -> list[int]:
    """The ids of the image tokens, whose probability is 0 whenever a policy is sampled."""
    ids: list[int] = policy.processor.tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|video_pad|>"])
    return ids


class GumbelNoise(LogitsProcessor):
    """Makes greedy decoding sample: the argmax of logits / temperature + Gumbel noise is a draw from their softmax.

    Every row draws its noise from its own seed (Gumbel-max trick), where `do_sample=True` would share one stream in a batch.
    """

    def __init__(self, seeds: Sequence[int], temperature: float):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature = temperature

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=g) for g in self.generators])
        return scores / self.temperature - noise.log().to(scores)


def encode(policy: Policy, rows: list[Row]) -> dict[str, torch.Tensor]:
    """Rows as model inputs, left-padded; all of them with an image, or none."""
    inputs = policy.processor.apply_chat_template(
        [messages(row) for row in rows],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        processor_kwargs={"return_tensors": "pt", "padding": True},
    )
    if rows[0].image is None:
        inputs.pop("mm_token_type_ids", None)
    return {k: v.to(policy.model.device) for k, v in inputs.items()}
