"""Rebuilds the bundled base model from nothing: `python -m rftkit pretrain`.

Two stages on two CPU cores. Stage 0 trains the vision tower alone, against the *word embeddings* of the language model: the
merged token of a cell is pulled towards the words that are true of it. Stage 1 freezes the tower and trains the language model
on a mixture of short chat-like answers. Starting from a picture that already speaks the words' language is what makes the
binding of colour and place to *one named* object come within minutes (learnt end to end it stays at chance for thousands of updates).

The jigsaw is not in the mixture: no shuffled landscape is ever drawn, no image is ever answered with indices.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from torch.nn import functional as F
from tqdm import tqdm
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from rftkit import jigsaw, recording, scenes, tasks
from rftkit.config import BUNDLED_DIR, UserError, get_preset
from rftkit.policy import ImageTextProcessor, generate, load_policy, write_hashes
from rftkit.scenes import COLORS, GRID, GROUNDS, LIGHTS, SHAPES, Cell
from rftkit.tasks import PROBES, Row

SEED = 20  # of the bundled base
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
# words of the templates, of the probes, and of tasks that later lessons teach (cards, rules, formulas)
WORDS = """system user assistant you are a helpful . , ? : ; = + - * / ( ) ! the is at there no yes and so of in on to it from
what color where which how many objects number says sign name place tile tiles show each index give think first shuffled last
please look image now left right above below top middle mid row column picture puzzle piece belongs shape described answer
card cards use target rule face j q k ten eleven twelve thirteen make formula numbers expression none word letter then with
because wait check step let me see next start end same other one big small more less than before after order sort copy reverse
new old true false x y n not this that i my solution position positions slot slots goes grid order are"""
PREAMBLES = ("", "", "", "please", "now", "look .", "look at the image .", "please look at the image .")


@dataclass(frozen=True)
class Recipe:
    """How the bundled base was made. Times are for two cores."""

    hidden: int = 192
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 512
    vision_hidden: int = 128
    vision_blocks: int = 3
    init_std: float = 0.07  # about 1/sqrt(hidden): from the library's 0.02 a model this small hardly moves at first
    vision_steps: int = 1500
    vision_batch: int = 64
    vision_lr: float = 2e-3
    steps: int = 2800
    lr: float = 1.5e-3
    pool: int = 60_000  # distinct rows in the mixture
    short_batch: int = 80
    long_batch: int = 32
    key_weight: float = 4.0  # loss weight of a telling word, beside 1 for the words around it


class Clock:
    """Seconds spent on the rebuild, over all sittings of an interrupted one."""

    def __init__(self, path: Path):
        self.path, self.started = path, time.time()
        self.before = float(json.loads(path.read_text())) if path.exists() else 0.0

    def save(self) -> float:
        total = self.before + time.time() - self.started
        self.path.write_text(json.dumps(total))
        return total


# --- the folder: config, tokenizer, processor ----------------------------------------------------------------------------


def vocabulary() -> list[str]:
    words = [*WORDS.split(), *GROUNDS, *LIGHTS, *SHAPES, *COLORS, *tasks.ROWS, *tasks.RELATIONS, *map(str, range(31))]
    return list(dict.fromkeys(words))


def build_processor() -> ImageTextProcessor:
    """Word-level tokenizer, Qwen2.5-VL's image processor and its chat template as TRL ships it."""
    from trl import chat_template_utils

    tokens = [*SPECIAL, *TAGS, "<unk>", *vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in TAGS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        padding_side="left",
    )
    template = Path(chat_template_utils.__file__).parent / "chat_templates" / "qwen2_5_vl.jinja"
    side = GRID * scenes.CELL
    images = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=side * side)
    return ImageTextProcessor(images, fast, chat_template=template.read_text())


def build_model(recipe: Recipe, processor: ImageTextProcessor, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    ids = processor.tokenizer.convert_tokens_to_ids
    half = recipe.hidden // recipe.heads // 2
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(processor.tokenizer),
            "hidden_size": recipe.hidden,
            "intermediate_size": recipe.mlp,
            "num_hidden_layers": recipe.layers,
            "num_attention_heads": recipe.heads,
            "num_key_value_heads": recipe.kv_heads,
            "max_position_embeddings": 1024,
            "initializer_range": recipe.init_std,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": ids("<|im_end|>"),
            "pad_token_id": ids("<|endoftext|>"),
            # many narrow sections deal the frequencies out to time, height and width in turn; with three wide sections, as in
            # the large model, a head this small would see the width through its slowest frequencies only
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [2] * (half // 2)},
        },
        vision_config={
            "depth": recipe.vision_blocks,
            "hidden_size": recipe.vision_hidden,
            "intermediate_size": 2 * recipe.vision_hidden,
            "num_heads": 4,
            "out_hidden_size": recipe.hidden,
            "window_size": 56,  # one window covers 2x2 cells; the full-attention block covers all
            "fullatt_block_indexes": [recipe.vision_blocks - 1],
            "initializer_range": recipe.init_std,
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.update(eos_token_id=ids("<|im_end|>"), pad_token_id=ids("<|endoftext|>"), do_sample=False)
    return model


# --- stage 0: a vision tower that speaks the words' language ----------------------------------------------------------------

GROUPS = (GROUNDS, LIGHTS, (*SHAPES, "sign"), COLORS, tuple(map(str, range(10))))


def labels_of(cells: tuple[Cell, ...]) -> np.ndarray:
    """(9, 5) index of the true word in each group; -1 where no word of the group is true."""
    out = np.full((len(cells), len(GROUPS)), -1)
    for i, cell in enumerate(cells):
        for g, group in enumerate(GROUPS):
            true = [k for k, word in enumerate(group) if word in cell.words]
            if true:
                out[i, g] = true[0]
    return out


def random_cells(rng: np.random.Generator) -> tuple[Cell, ...]:
    """Landscape or collage, crowded, so that every batch holds many of everything."""
    places = rng.integers(0, GRID * GRID, GRID * GRID) if rng.random() < 0.5 else range(GRID * GRID)
    cells = []
    for place in places:
        kind = rng.random()
        if kind < 0.4:
            cells.append(Cell(int(place), str(rng.choice(SHAPES)), str(rng.choice(COLORS))))
        elif kind < 0.65:
            cells.append(Cell(int(place), "sign", None, int(rng.integers(10))))
        else:
            cells.append(Cell(int(place)))
    return tuple(cells)


def patchify(pixels: np.ndarray) -> torch.Tensor:
    """(n, 84, 84, 3) uint8 -> (n*36, 1176): what the image processor returns, for many images at once."""
    processor = Qwen2VLImageProcessorPil()
    mean, std = np.array(processor.image_mean, np.float32), np.array(processor.image_std, np.float32)
    x = ((pixels.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
    n, c, side, _ = x.shape
    g = side // 28
    x = x.reshape(n, c, g, 2, 14, g, 2, 14).transpose(0, 2, 5, 3, 6, 1, 4, 7)  # n gh gw mh mw c ph pw
    x = np.broadcast_to(x[:, :, :, :, :, :, None], (n, g, g, 2, 2, c, 2, 14, 14))  # twice in time
    return torch.from_numpy(np.ascontiguousarray(x).reshape(n * g * g * 4, -1))


def see(model: Qwen2_5_VLForConditionalGeneration, pixels: np.ndarray) -> torch.Tensor:
    """(n, 84, 84, 3) uint8 -> (n, 9, hidden) merged visual tokens."""
    grid = torch.tensor([[1, 6, 6]] * len(pixels))
    return model.model.visual(patchify(pixels), grid_thw=grid).pooler_output.view(len(pixels), GRID * GRID, -1)


def word_loss(
    tokens: torch.Tensor, labels: torch.Tensor, words: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of each group's words by inner product with the visual token; "no such word" has logit 0.

    tokens (m, hidden), labels (m, 5), words: per group (k, hidden). Returns the loss and the accuracy per group (5,).
    """
    loss, right = tokens.new_zeros(()), []
    target = torch.zeros_like(tokens)
    for g, emb in enumerate(words):
        logits = 8 * torch.cat([tokens.new_full((len(tokens), 1), 0.5), tokens @ emb.T / emb.square().sum(-1)], dim=1)
        loss = loss + F.cross_entropy(logits, labels[:, g] + 1)
        right.append((logits.argmax(1) == labels[:, g] + 1).float().mean())
        target += F.embedding(labels[:, g].clamp(min=0), emb) * (labels[:, g] >= 0)[:, None]
    # the token should be no more than the sum of its words: nothing else for the language model to trip over
    return loss + 0.2 * (tokens - target).square().sum(-1).mean(), torch.stack(right)


def train_vision(
    model: Qwen2_5_VLForConditionalGeneration, processor: ImageTextProcessor, recipe: Recipe, seed: int
) -> list[float]:
    """Stage 0. Returns the accuracy per group of words on 50 validation batches."""
    table = model.get_input_embeddings().weight.detach()
    words = [table[torch.tensor(processor.tokenizer.convert_tokens_to_ids(list(g)))] for g in GROUPS]
    params = list(model.model.visual.parameters())
    optimizer = torch.optim.AdamW(params, lr=recipe.vision_lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.vision_lr, recipe.vision_steps, pct_start=0.1)
    bar = tqdm(range(recipe.vision_steps), desc="vision tower", mininterval=5)
    for step in bar:
        tokens, labels = look(model, scenes.rng_for(seed, "vision", step), "train", recipe.vision_batch)
        loss, right = word_loss(tokens, labels, words)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            bar.write(f"step {step + 1}: loss {loss.item():.3f}, accuracy {[round(v, 3) for v in right.tolist()]}")
    with torch.no_grad():
        checks = [look(model, scenes.rng_for(seed, "check", i), "validation", recipe.vision_batch) for i in range(50)]
        return torch.stack([word_loss(tokens, labels, words)[1] for tokens, labels in checks]).mean(0).tolist()


def look(
    model: Qwen2_5_VLForConditionalGeneration, rng: np.random.Generator, split: str, n: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merged tokens (n*9, hidden) of n random pictures of a split, and their labels (n*9, 5)."""
    batch: list[scenes.Scene] = []
    while len(batch) < n:
        cells = random_cells(rng)
        if scenes.split_of(cells) == split:
            batch.append(scenes.draw(cells, rng))
    labels = torch.from_numpy(np.concatenate([labels_of(s.cells) for s in batch]))
    return see(model, np.stack([s.pixels for s in batch])).flatten(0, 1), labels


# --- stage 1: the mixture --------------------------------------------------------------------------------------------------


def _collage(rng: np.random.Generator) -> tuple[Cell, ...]:
    """Nine cells of nine landscapes, some place always shown twice: so it can never be a shuffled landscape."""
    while True:
        places = rng.integers(0, GRID * GRID, GRID * GRID)
        if len(set(places.tolist())) == GRID * GRID:
            continue
        cells = [Cell(int(p)) for p in places]
        for where in rng.choice(GRID * GRID, int(rng.integers(0, 6)), replace=False):
            cells[where] = Cell(int(places[where]), str(rng.choice(SHAPES)), str(rng.choice(COLORS)))
        if scenes.split_of(tuple(cells)) == "train":
            return tuple(cells)


def collage_row(rng: np.random.Generator) -> Row:
    """Name the place of every tile while thinking, then answer something small about them."""
    cells = _collage(rng)
    places = [c.place for c in cells]
    said = places
    if noise := rng.random() < 0.3:  # thinking that is not of this picture: the answer must be read off the thinking
        said = [int(p) for p in rng.integers(0, GRID * GRID, GRID * GRID)]
    thinking = tasks.place_words(said)
    if rng.random() < 0.4:
        word = str(rng.choice((*GROUNDS, *LIGHTS)))
        prompt, answer = f"how many tiles show {word} ?", str(thinking.split().count(word))
    else:
        n = int(rng.integers(1, MOST_NAMED + 1))
        k = int(rng.integers(GRID * GRID - n + 1))
        which = f"tile {k + 1}" if n == 1 else f"tile {k + 1} to tile {k + n}"
        prompt, answer = f"name the place of {which} .", tasks.place_words(said[k : k + n])
    given = f"<think> {thinking} </think>" if noise else ""
    return Row(
        "collage", f"{prompt} think first .", f"<think> {thinking} </think> <answer> {answer} </answer>",
        scenes.draw(cells, rng).image, key=tuple((thinking + " " + answer).split()), given=given,
    )  # fmt: skip


def lookup_row(rng: np.random.Generator, longest: int) -> Row:
    """The look-up probe with up to `longest` places; now and then the thinking lists other places than the question."""
    row = tasks.lookup_row(rng, 1, longest)
    if rng.random() < 0.7:
        return row
    places = [int(p) for p in rng.integers(0, GRID * GRID, len(row.key))]
    indices = tuple(str(p + 1) for p in places)
    given = f"<think> {tasks.place_words(places)} </think>"
    answer = f"{given} <answer> {' '.join(indices)} </answer>"
    return Row("lookup", row.prompt, answer, key=indices, given=given)


MIXTURE = {
    "color": 0.13, "count": 0.15, "ground": 0.09, "exist": 0.10, "relate": 0.12, "digits": 0.07, "arithmetic": 0.06,
    "lookup": 0.08, "collage": 0.20,
}  # fmt: skip
LONG = ("lookup", "collage")
LONGEST_LOOKUP = 9  # places in a text list
CHECKPOINT_EVERY = 250  # updates
MOST_NAMED = 3  # places of a picture named in one answer: longer lists come from text alone


def mixture_row(seed: int, index: int) -> Row:
    """Row `index` of the pretraining mixture."""
    rng = scenes.rng_for(seed, "mixture", index)
    task = str(rng.choice(list(MIXTURE), p=list(MIXTURE.values())))
    if task == "collage":
        row = collage_row(rng)
    elif task == "lookup":
        row = lookup_row(rng, LONGEST_LOOKUP)
    else:
        row = PROBES[task].row(seed, index, "train")
    preamble = str(rng.choice([p for p in PREAMBLES if row.image is not None or "look" not in p]))
    return Row(row.task, f"{preamble} {row.prompt}".strip(), row.answer, row.image, row.key, row.given, row.data)


@dataclass
class Pool:
    """The mixture as tensors, right-padded: ids (n, L), loss weights (n, L), index of the visual features or -1 (n,)."""

    ids: torch.Tensor
    weights: torch.Tensor
    image: torch.Tensor
    features: torch.Tensor  # (m, 9, hidden)
    long: torch.Tensor  # (n,) bool
    tasks: list[str]


def build_pool(
    model: Qwen2_5_VLForConditionalGeneration, processor: ImageTextProcessor, rows: list[Row], recipe: Recipe
) -> Pool:
    """Tokenize rows and look at their images once: the tower is frozen from here on."""
    tok = processor.tokenizer
    pads = "<|image_pad|>" * (GRID * GRID)
    texts, starts, keys = [], [], []
    for row in rows:
        prompt = processor.apply_chat_template(tasks.messages(row), add_generation_prompt=True, tokenize=False)
        prompt = prompt.replace("<|image_pad|>", pads)
        texts.append(prompt + row.answer + "<|im_end|>")
        starts.append(prompt + row.given)
        keys.append(set(tok.convert_tokens_to_ids(list(row.key))))
    encoded, begun = tok(texts)["input_ids"], tok(starts)["input_ids"]
    width = max(map(len, encoded))
    ids = torch.full((len(rows), width), tok.pad_token_id)
    weights = torch.zeros(len(rows), width)
    for i, (seq, head) in enumerate(zip(encoded, begun, strict=True)):
        ids[i, : len(seq)] = torch.tensor(seq)
        for t in range(len(head), len(seq)):
            weights[i, t] = recipe.key_weight if seq[t] in keys[i] else 1.0
    weights /= weights.sum(1, keepdim=True)  # every example counts the same, however long
    with_image = [i for i, row in enumerate(rows) if row.image is not None]
    image = torch.full((len(rows),), -1)
    image[with_image] = torch.arange(len(with_image))
    features = []
    with torch.no_grad():
        for k in tqdm(range(0, len(with_image), 500), desc="features", mininterval=5):
            features.append(see(model, np.stack([np.asarray(rows[i].image) for i in with_image[k : k + 500]])))
    long = torch.tensor([row.task in LONG for row in rows])
    return Pool(ids, weights, image, torch.cat(features), long, [r.task for r in rows])


def forward(
    model: Qwen2_5_VLForConditionalGeneration, pool: Pool, pick: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, targets and weights at the answer tokens of the rows in `pick`: (m, vocab), (m,), (m,)."""
    ids, weights, image = pool.ids[pick], pool.weights[pick], pool.image[pick]
    width = int((weights > 0).any(0).nonzero().max()) + 1
    ids, weights = ids[:, :width], weights[:, 1:width]
    embeds = model.get_input_embeddings()(ids)
    position = torch.arange(width).expand(3, len(pick), -1).clone()
    seen = image >= 0
    if seen.any():
        is_pad = ids == model.config.image_token_id
        embeds = embeds.masked_scatter(is_pad[..., None], pool.features[image[seen]])
        position[:, seen] = image_positions(int(is_pad[seen][0].nonzero()[0]), width)[:, None]
    hidden = model.model.language_model(inputs_embeds=embeds, position_ids=position, use_cache=False).last_hidden_state
    at = weights > 0
    return model.lm_head(hidden[:, :-1][at]), ids[:, 1:][at], weights[at]


def image_positions(start: int, width: int) -> torch.Tensor:
    """(3, width) multimodal rotary positions of a prompt whose 3x3 image begins at token `start` (get_rope_index, for one image)."""
    n = GRID * GRID
    k = torch.arange(n)
    image = start + torch.stack([torch.zeros_like(k), k // GRID, k % GRID])
    after = torch.arange(start + GRID, start + GRID + width - start - n)
    return torch.cat([torch.arange(start).expand(3, -1), image, after.expand(3, -1)], dim=1)


def train_language(
    model: Qwen2_5_VLForConditionalGeneration,
    pool: Pool,
    held: Pool,
    recipe: Recipe,
    seed: int,
    work: Path,
    clock: Clock,
    stop: int | None = None,
) -> None:
    """Stage 1, resumable: a checkpoint every 250 updates. `stop` ends it early, for tests."""
    params = [p for n, p in model.named_parameters() if "visual" not in n]
    optimizer = torch.optim.AdamW(params, lr=recipe.lr, weight_decay=0.01, betas=(0.9, 0.98))
    warm = 150
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min(
            (s + 1) / warm, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * max(0, s - warm) / max(1, recipe.steps - warm)))
        ),
    )
    first = _resume(model, optimizer, schedule, work)
    by_length = [torch.nonzero(~pool.long).flatten(), torch.nonzero(pool.long).flatten()]
    bar = tqdm(
        range(first, stop or recipe.steps), desc="language model", initial=first, total=recipe.steps, mininterval=10
    )
    for step in bar:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        optimizer.zero_grad()
        sizes = (recipe.short_batch, recipe.long_batch)
        for rows, size in zip(by_length, sizes, strict=True):
            pick = rows[torch.randint(len(rows), (size,), generator=generator)]
            logits, targets, weights = forward(model, pool, pick)
            loss = (F.cross_entropy(logits, targets, reduction="none") * weights).sum() / sum(sizes)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % CHECKPOINT_EVERY == 0:
            bar.write(f"step {step + 1}: " + ", ".join(f"{k} {v:.2f}" for k, v in teacher_forced(model, held).items()))
            _checkpoint(model, optimizer, step + 1, work)
            clock.save()


@torch.no_grad()
def teacher_forced(model: Qwen2_5_VLForConditionalGeneration, pool: Pool) -> dict[str, float]:
    """Share of rows whose telling words all come out right when the words before them are given."""
    out = {}
    for task in dict.fromkeys(pool.tasks):
        pick = torch.tensor([i for i, t in enumerate(pool.tasks) if t == task])
        logits, targets, weights = forward(model, pool, pick)
        counts = (pool.weights[pick] > 0).sum(1)
        heaviest = torch.repeat_interleave(pool.weights[pick].max(1).values, counts)
        right = (logits.argmax(-1) == targets) | (weights < heaviest)
        out[task] = torch.stack([r.all() for r in right.split(counts.tolist())]).float().mean().item()
    return out


def _checkpoint(
    model: Qwen2_5_VLForConditionalGeneration, optimizer: torch.optim.Optimizer, step: int, work: Path
) -> None:
    """Weights and AdamW moments as safetensors, written beside and moved into place."""
    tensors = {f"model.{k}": v.contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"moment.{i}.{k}": v.clone() for k, v in state.items()}
    partial = work / "stage1.partial"
    save_file(tensors, partial, metadata={"step": str(step)})
    os.replace(partial, work / "stage1.safetensors")


def _resume(
    model: Qwen2_5_VLForConditionalGeneration,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    work: Path,
) -> int:
    path = work / "stage1.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        step = int(file.metadata()["step"])
    tensors = load_file(path)
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")}, strict=False)
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("moment."):
            _, i, name = key.split(".")
            state.setdefault(int(i), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for _ in range(step):
        schedule.step()
    return step


# --- the finished folder ---------------------------------------------------------------------------------------------------

CARD = """# The bundled base model

A Qwen2.5-VL (`Qwen2_5_VLForConditionalGeneration`) of {millions:.2f} million parameters, made from nothing by `python -m rftkit pretrain`
in {minutes:.0f} minutes on {threads} CPU threads, seed {seed}, {steps} updates of the language model. It sees drawn 84x84 scenes and
answers in a few words. Licence: Apache-2.0.

It is a test bench, not a useful model. It has no knowledge beyond the drawn world and a vocabulary of {vocab} words.

## What it was trained on

Stage 0, the vision tower alone: each merged visual token (one 28x28 cell) against the embeddings of the words that are true of
the cell. Accuracy a group of words (ground, light, shape, colour, digit), 50 batches of the validation split: {vision}.

Stage 1, the language model with the tower frozen; share of the mixture of {pool} rows:

{mixture}

Think-rows: a *collage* row describes nine tiles of nine different landscapes in `<think>` and then gives one count or up to {most} place names
in `<answer>`; a *lookup* row restates a list of up to {longest} places given as text and answers with their indices. In about three of
ten of these rows the thinking is given and belongs to other places than the question, so that answers are read off the thinking.

**The jigsaw is not in the mixture.** No image is a shuffled landscape (a collage always shows some place twice), no question about an
image is answered with indices, and the jigsaw's prompt never occurs. Its words do: naming tiles and looking up indices are
taught apart, and putting the two together is what fine-tuning has to find.

## What it can do

Held-out test split, greedy, {n} questions each:

| probe | correct | wrong | unparseable |
|---|---|---|---|
{probes}

Jigsaw 3x3, {n} puzzles, zero-shot: {exact:.3f} exact, {hit:.3f} per tile, {bad:.2f} of the replies unparseable. Sampled at temperature 1:
{exact1:.3f} exact, {hit1:.3f} per tile.
"""


def write_card(folder: Path, facts: dict[str, object], n: int = 500) -> dict[str, float]:
    """Evaluate the finished folder on the test split and write its README.md. Returns accuracies by probe."""
    preset = get_preset("tiny", model=str(folder), eval_n=n)
    policy = load_policy(preset)
    row, _ = recording.evaluate_all(policy, recording.held_out(preset))
    puzzles = tasks.JIGSAW.rows(recording.EVAL_SEED, n)
    sampled = [
        jigsaw.reward_p1(text, r.data["answer"], 3, 3)
        for text, r in zip(generate(policy, puzzles, temperature=1.0), puzzles, strict=True)
    ]
    table = [
        f"| {name} | {c['correct'] / n:.3f} | {c['wrong'] / n:.3f} | {c['unparseable'] / n:.3f} |"
        for name, c in row["prior"].items()
    ]
    mixture = "\n".join(f"- {name} {share:.0%}" for name, share in MIXTURE.items())
    card = CARD.format(
        **facts, n=n, probes="\n".join(table), mixture=mixture, exact=row["new_exact"], hit=row["new_hit"], bad=row["new_unparseable"],
        exact1=sum(s.exact for s in sampled) / n, hit1=sum(s.hit for s in sampled) / n, longest=LONGEST_LOOKUP, most=MOST_NAMED,
    )  # fmt: skip
    (folder / "README.md").write_text(card)
    return {name: c["correct"] / n for name, c in row["prior"].items()} | {
        "jigsaw": row["new_exact"],
        "hit": row["new_hit"],
    }


def save_base(model: Qwen2_5_VLForConditionalGeneration, processor: ImageTextProcessor, folder: Path) -> None:
    """Write the folder as the Hub would hold it, with the digest of each file."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_hashes(folder)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m rftkit pretrain", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder of the finished model (default: the bundled one)")
    parser.add_argument("--cards", action="store_true", help="teach the bundled base cards, sums and formulas instead")
    parser.add_argument(
        "--work", type=Path, default=Path("build/pretrain"), help="checkpoints: an interrupted run resumes from here"
    )
    parser.add_argument("--seed", type=int)
    parser.add_argument("--steps", type=int, help="updates of the language model")
    args = parser.parse_args(argv)
    if args.steps is not None and args.steps < 1:
        raise UserError(f"--steps {args.steps} trains nothing: give at least 1.")
    if args.cards:
        from rftkit import lessons  # it builds on this module

        return lessons.main(args.out, args.work, args.seed, args.steps)
    args.out, args.seed = args.out or BUNDLED_DIR, SEED if args.seed is None else args.seed
    recipe = Recipe(steps=args.steps or Recipe.steps)
    args.work.mkdir(parents=True, exist_ok=True)
    clock = Clock(args.work / "seconds.json")
    processor = build_processor()
    model = build_model(recipe, processor, args.seed)
    print("The vision tower takes about 4 minutes, the language model about 35, on two cores; 3 GB of memory.")
    vision = train_or_load_vision(model, processor, recipe, args.seed, args.work)
    clock.save()
    rows = [mixture_row(args.seed, i) for i in tqdm(range(recipe.pool), desc="drawing", mininterval=5)]
    pool = build_pool(model, processor, rows, recipe)
    held_rows = [PROBES[t].row(args.seed, i, "validation") for t in PROBES for i in range(200)]
    train_language(model, pool, build_pool(model, processor, held_rows, recipe), recipe, args.seed, args.work, clock)
    save_base(model, processor, args.out)
    minutes = clock.save() / 60
    facts = {
        "millions": sum(p.numel() for p in model.parameters()) / 1e6, "minutes": minutes, "threads": torch.get_num_threads(),
        "seed": args.seed, "steps": recipe.steps, "vocab": len(processor.tokenizer), "pool": recipe.pool,
        "vision": ", ".join(f"{v:.3f}" for v in vision),
    }  # fmt: skip
    for name, accuracy in write_card(args.out, facts).items():
        print(f"{name:12} {accuracy:.3f}")
    print(f"The base is in {args.out}, after {minutes:.0f} minutes.")
    return 0


def train_or_load_vision(
    model: Qwen2_5_VLForConditionalGeneration, processor: ImageTextProcessor, recipe: Recipe, seed: int, work: Path
) -> list[float]:
    """Stage 0, or what an interrupted run left of it. Freezes the tower."""
    path, partial = work / "stage0.safetensors", work / "stage0.partial"
    if not path.exists():
        accuracy = train_vision(model, processor, recipe, seed)
        save_file(model.model.visual.state_dict(), partial, metadata={"accuracy": json.dumps(accuracy)})
        os.replace(partial, path)
    model.model.visual.load_state_dict(load_file(path))
    model.model.visual.requires_grad_(False)
    with safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {}).get("accuracy", "[]"))
