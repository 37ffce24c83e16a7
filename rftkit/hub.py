"""What a tier trains and tests on: drawn scenes for the tiny one, photographs and published benchmarks for the GPU tiers.

The new task of the GPU tiers is the jigsaw over COCO photographs; their probes are POPE, RefCOCO, DocVQA, MME, MMStar and
MMMU, the benchmarks of 2506.23508. Our scores are shares of correct answers, so that all probes can be averaged: MME's published
number is a sum of points, DocVQA's a mean ANLS, POPE's an F1 (`published` gives the latter two). Compare ours before and after
training, not with a paper's.

None of these downloads could be tried where this module was written. Repositories, files and columns are those that the Hub's
pages and lmms-eval's task files show; the tests run the same code on small local data sets of that form.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import os
import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from rftkit import hub_rows, tasks
from rftkit.config import Preset, UserError
from rftkit.hub_rows import Record, Source, load
from rftkit.scenes import rng_for
from rftkit.tasks import Row, Verdict

COCO_FOLDER = (
    "RFTKIT_COCO"  # environment variable: a folder with the pictures of COCO train2014, used instead of the Hub
)
TOKEN = 28  # pixels a side that one visual token of Qwen2.5-VL covers: patch 14 x merge 2
MIN_PIXELS = 56 * 56  # as `policy.load_policy` sets it

Fit = Callable[[Image.Image], Image.Image]


# Commits as the addresses of the Hub's own pages name them; loading them was not tried. None must be pinned at first use:
# until then the newest commit is taken, and stayed with while rows of it are there; the run's record says which one that was.
REVISIONS: dict[str, str | None] = {
    "justram/COCO2014-Images": None,
    "lmms-lab/POPE": "4db1276663dfa5eb8ad16a52d24c31a09e470896",
    "lmms-lab/RefCOCO": "a5dff0b3194715fda69b2d6a0d2aaafb41eaa407",
    "lmms-lab/DocVQA": "59fed3cdc38662abeef8f363171b2ec7c95c165c",
    "lmms-lab/MME": "d6c9023f017b564f7b3ccccf5348166bce8fdbcd",
    "Lin-Chen/MMStar": "bc98d668301da7b14f648724866e57302778ab27",
    "lmms-lab/MMMU": "5f93af86377c18552077e1ffdb193d9f8d2b1343",
}


def _source(repo: str, files: str, *columns: str) -> Source:
    return Source(repo, files, columns, REVISIONS[repo])


SOURCES = {
    "coco": _source("justram/COCO2014-Images", "data/train-*", "image_id", "image"),
    "pope": _source("lmms-lab/POPE", "data/test-*", "image", "question", "answer"),
    "refcoco": _source("lmms-lab/RefCOCO", "data/val-*", "image", "answer", "bbox"),
    "docvqa": _source("lmms-lab/DocVQA", "DocVQA/validation-*", "image", "question", "answers"),
    "mme": _source("lmms-lab/MME", "data/test-*", "image", "question", "answer"),
    "mmstar": _source("Lin-Chen/MMStar", "mmstar.parquet", "image", "question", "answer"),
    # MMMU/MMMU with its thirty subjects in one table, as its README says
    "mmmu": _source("lmms-lab/MMMU", "data/validation-*", "image_1", "question", "options", "question_type", "answer"),
}

# How many photographs are taken: as many of the train split (8 in 10) as the presets have puzzles. The number is no setting of a
# run: an arm that trains on fewer puzzles must be tested on the same photographs as the others.
PHOTOGRAPHS = 25_000


# --- what the other modules ask for ---------------------------------------------------------------------------------------


def new_task(preset: Preset) -> tasks.Task:
    """The jigsaw as this preset plays it: its grid, its wording, its images."""
    if preset.images == "coco":
        picture = partial(photograph, max_pixels=preset.max_pixels)
        return tasks.jigsaw_task(preset.rows, preset.cols, preset.prompt_style, picture)
    if (preset.rows, preset.cols, preset.prompt_style) == (3, 3, "short"):
        return tasks.JIGSAW
    return tasks.jigsaw_task(preset.rows, preset.cols, preset.prompt_style, tasks.landscape)


def probes(preset: Preset) -> dict[str, tasks.Task]:
    """The probes of prior skill, by name. Nothing is downloaded before a row is asked for."""
    if preset.images == "scenes":
        return tasks.PROBES
    fit = partial(fitted, max_pixels=preset.max_pixels)
    tiles = preset.rows * preset.cols
    asked: dict[str, tuple[Callable[[Fit, Record, np.random.Generator], Row], Judge]] = {
        "pope": (_pope, says_yes_no), "refcoco": (_refcoco, says_box), "docvqa": (_docvqa, says_text),
        "mme": (_mme, says_yes_no), "mmstar": (_mmstar, says_letter), "mmmu": (_mmmu, says_letter),
    }  # fmt: skip
    return {name: _benchmark(name, partial(ask, fit), _scorer(judge, tiles)) for name, (ask, judge) in asked.items()}


def revisions(preset: Preset) -> dict[str, str]:
    """The commit of every Hub data set that the preset reads, for the run's record."""
    if preset.images == "scenes":
        return {}
    local = os.environ.get(COCO_FOLDER)
    sources = [source for name, source in SOURCES.items() if name != "coco" or not local]
    return {f"data {source.repo}": hub_rows.commit(source) or "not resolved" for source in sources}


# --- pictures -------------------------------------------------------------------------------------------------------------------


def smart_size(width: int, height: int, max_pixels: int) -> tuple[int, int]:
    """Width and height that Qwen2.5-VL's processor gives an image: multiples of 28, their product within the limits."""
    if max(width, height) > 200 * min(width, height):
        raise UserError(f"An image of {width}x{height} pixels is too long for Qwen2.5-VL (at most 200 to 1): crop it.")
    w, h = (round(side / TOKEN) * TOKEN for side in (width, height))
    if w * h > max_pixels:
        shrink = math.sqrt(width * height / max_pixels)
        w, h = (max(TOKEN, math.floor(side / shrink / TOKEN) * TOKEN) for side in (width, height))
    elif w * h < MIN_PIXELS:
        grow = math.sqrt(MIN_PIXELS / (width * height))
        w, h = (math.ceil(side * grow / TOKEN) * TOKEN for side in (width, height))
    return w, h


def fitted(image: Image.Image, max_pixels: int) -> Image.Image:
    """The image as RGB in the size that the processor would make of it, so that the processor leaves it alone.

    Qwen2.5-VL names places in pixels of the image it sees; here that is the very image of the row, and nothing needs scaling. A
    row also takes less memory. At `qlora`'s 336x336 pixels most print of a DocVQA page cannot be read: give a larger `max_pixels`
    to measure reading.
    """
    return image.convert("RGB").resize(smart_size(*image.size, max_pixels), Image.Resampling.BICUBIC)


# --- COCO photographs, for the jigsaw ---------------------------------------------------------------------------------------


def photograph(rng: np.random.Generator, split: str, max_pixels: int) -> Image.Image:
    """Any photograph of the split, drawn with replacement, in the processor's size.

    From the folder named by RFTKIT_COCO, which should hold COCO train2014 (the images of 2506.23508 and 2505.23590); else from
    the first `PHOTOGRAPHS` of justram/COCO2014-Images on the Hub. The latter is the train part of Karpathy's split at a reduced size: it includes pictures
    of val2014, and so, unlike train2014, may share pictures with POPE. RefCOCO's pictures are from train2014 in either case;
    the jigsaw shows the model the pictures, never the answers. Neither source could be tried here.
    """
    where = (os.environ.get(COCO_FOLDER), SOURCES["coco"])
    names, read = _photographs(*where)
    pool = _pool(*where, split)
    if not pool:
        raise UserError(f"None of the {len(names)} photographs belongs to the split {split}: use a larger folder.")
    index = pool[int(rng.integers(len(pool)))]
    try:
        return fitted(read(index), max_pixels)
    except OSError as error:
        raise UserError(
            f"The photograph {names[index]} cannot be read ({error}): replace or delete the file."
        ) from error


@lru_cache
def _photographs(folder: str | None, source: Source) -> tuple[tuple[str, ...], Callable[[int], Image.Image]]:
    """The names of all photographs, and what opens the i-th."""
    if folder is None:
        data = load(source, PHOTOGRAPHS)
        return tuple(str(i) for i in data.column("image_id")), lambda i: data[i]["image"]
    if not Path(folder).is_dir():
        raise UserError(
            f"{COCO_FOLDER} names {folder}, which is no folder: set it to the one that holds train2014's images."
        )
    names = tuple(
        sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith((".jpg", ".jpeg", ".png")))
    )
    if not names:
        raise UserError(
            f"{COCO_FOLDER} names {folder}, which holds no .jpg or .png: set it to the folder of train2014."
        )
    return names, lambda i: Image.open(Path(folder) / names[i])


@lru_cache
def _pool(folder: str | None, source: Source, split: str) -> tuple[int, ...]:
    """Where in the list of photographs those of a split are."""
    return tuple(i for i, name in enumerate(_photographs(folder, source)[0]) if split_of(name) == split)


def split_of(name: str) -> str:
    """The split of a photograph, by the hash of its number: 8 in 10 to train, 1 each to validation and test.

    COCO_train2014_000000000009.jpg and the image_id 9 are the same photograph.
    """
    number = re.search(r"[0-9]+$", Path(name).stem[-20:])
    key = number[0].lstrip("0") if number else name
    bucket = int.from_bytes(hashlib.sha256(f"coco {key}".encode()).digest()[:8], "big") % 10
    return {0: "test", 1: "validation"}.get(bucket, "train")


# --- benchmarks: each question at most once ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Benchmark(tasks.Task):
    """A published set in an order drawn from the seed. It is for testing only, and `rows` ends where the set does.

    "validation", whose gradients are measured, is the same questions: nothing is trained or chosen on them.
    """

    size: Callable[[int], int]  # how many of so many questions there are
    question: Callable[[int, np.random.Generator], Row]

    def row(self, seed: int, index: int, split: str = "test") -> Row:
        if split not in ("test", "validation"):
            raise UserError(f"{self.name} is a published benchmark and has no split {split!r} here: use 'test'.")
        return self.question(place(seed, self.name, index, self.size), rng_for(seed, self.name, split, index))

    def rows(self, seed: int, n: int, split: str = "test") -> list[Row]:
        return [self.row(seed, i, split) for i in range(self.size(n))]


def place(seed: int, name: str, index: int, size: Callable[[int], int]) -> int:
    """Which question of a set a seed asks at `index`: each is asked once, in an order drawn for every `hub_rows.PART` of them, so
    that to ask a few one need not have all. Raises UserError beyond the set's end."""
    end = hub_rows.upto(max(0, index))
    first, n = end - hub_rows.PART, size(end)
    if not 0 <= index < n:
        raise UserError(f"{name} has {n} questions, so none with index {index}: ask for fewer.")
    return first + _order(seed, name, first, n - first)[index - first]


@lru_cache
def _order(seed: int, name: str, first: int, n: int) -> tuple[int, ...]:
    return tuple(rng_for(seed, name, "order", first).permutation(n).tolist())


def _benchmark(
    name: str, ask: Callable[[Record, np.random.Generator], Row], score: Callable[[str, Row], Verdict]
) -> Benchmark:
    def data(n: int) -> hub_rows.Rows:
        # shuffled: MME, MMStar and MMMU are sorted by subject, POPE by kind
        return load(SOURCES[name], n, shuffled=True, keep=_ONE_PICTURE if name == "mmmu" else None)

    def question(i: int, rng: np.random.Generator) -> Row:
        return ask(data(hub_rows.upto(i))[i], rng)

    def make(rng: np.random.Generator, split: str) -> Row:
        return question(int(rng.integers(len(data(hub_rows.PART)))), rng)

    return Benchmark(name, make, score, size=lambda n: len(data(n)), question=question)


def _asked_with_one_picture(record: Record) -> bool:
    """Of MMMU only questions with options and one picture, since a row has one."""
    return record["question_type"] == "multiple-choice" and "<image 2>" not in record["question"] + record["options"]


_ONE_PICTURE: hub_rows.Keep = ("one-picture", _asked_with_one_picture)


def _yes_no_row(task: str, record: Record, fit: Fit) -> Row:
    truth = record["answer"].strip().lower()
    if truth not in ("yes", "no"):
        raise UserError(
            f"A question of {task} has the answer {truth!r} where yes or no was expected: pin an older commit."
        )
    question = record["question"].strip().removesuffix("Please answer yes or no.").strip()
    return Row(task, f"{question}\nPlease answer yes or no.", truth.capitalize(), fit(record["image"]), key=(truth,))


def _pope(fit: Fit, record: Record, rng: np.random.Generator) -> Row:
    """All three kinds of POPE (random, popular, adversarial) together."""
    return _yes_no_row("pope", record, fit)


def _mme(fit: Fit, record: Record, rng: np.random.Generator) -> Row:
    return _yes_no_row("mme", record, fit)


def _refcoco(fit: Fit, record: Record, rng: np.random.Generator) -> Row:
    """Find one object from one of the phrases that people used for it. The set gives x, y, width, height in pixels."""
    phrases = record["answer"]
    phrase = phrases[int(rng.integers(len(phrases)))].strip()
    image = fit(record["image"])
    across, down = image.width / record["image"].width, image.height / record["image"].height
    x, y, w, h = record["bbox"]
    box = (x * across, y * down, (x + w) * across, (y + h) * down)
    answer = json.dumps([{"bbox_2d": [round(v) for v in box], "label": phrase}])
    prompt = f"Locate the {phrase.removeprefix('the ')}, output its bbox coordinates using JSON format."
    return Row("refcoco", prompt, answer, image, data={"box": box})


def _docvqa(fit: Fit, record: Record, rng: np.random.Generator) -> Row:
    answers = tuple(record["answers"])
    prompt = f"{record['question'].strip()}\nAnswer the question using a single word or phrase."
    return Row("docvqa", prompt, answers[0], fit(record["image"]), key=answers)


DIRECTLY = "Answer with the option's letter from the given choices directly."


def _mmstar(fit: Fit, record: Record, rng: np.random.Generator) -> Row:
    """MMStar writes its four options into the question."""
    truth = record["answer"].strip()
    prompt = f"{record['question'].strip()}\n{DIRECTLY}"
    return Row("mmstar", prompt, truth, fit(record["image"]), key=(truth,), data={"letters": "ABCD"})


def _mmmu(fit: Fit, record: Record, rng: np.random.Generator) -> Row:
    """MMMU keeps its options as the text of a Python list."""
    try:
        options = ast.literal_eval(record["options"])  # reads literals only, runs nothing
    except (ValueError, SyntaxError) as error:
        raise UserError(f"The options of an MMMU question cannot be read ({error}): pin an older commit.") from error
    letters = string.ascii_uppercase[: len(options)]
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(letters, options, strict=True))
    prompt = f"{record['question'].strip()}\nOptions:\n{listed}\n{DIRECTLY}"
    truth = record["answer"].strip()
    return Row("mmmu", prompt, truth, fit(record["image_1"]), key=(truth,), data={"letters": letters})


# --- scoring free text --------------------------------------------------------------------------------------------------------

Judge = Callable[[str, Row], bool | None]  # right, wrong, or None for an answer that cannot be read


def _scorer(judge: Judge, tiles: int) -> Callable[[str, Row], Verdict]:
    """Judge what a reply says. A reply that solves a puzzle nobody posed is unparseable: its form is lost, not its content."""

    def score(text: str, row: Row) -> Verdict:
        body = final(text)
        order = body.replace(",", " ").split() if len(body) < 10 * tiles else []
        right = None if sorted(order) == sorted(map(str, range(1, tiles + 1))) else judge(body, row)
        return "unparseable" if right is None else "correct" if right else "wrong"

    return score


def final(text: str) -> str:
    """What a reply says after thinking and inside its answer tags, if it has them: a trained model may carry the habit over.

    Thinking that was cut off says nothing yet.
    """
    tail = text.rpartition("</think>")[2]
    if "<think>" in tail:
        return ""
    _, tag, inside = tail.rpartition("<answer>")
    return (inside.partition("</answer>")[0] if tag else tail).strip().removesuffix("<|im_end|>").strip()


def says_yes_no(body: str, row: Row) -> bool | None:
    """The first word, if it is yes or no; else whichever of the two occurs ("There is no dog."), but not both."""
    words = re.findall(r"[a-z]+", body.lower())
    said = {w for w in words[:1] if w in ("yes", "no")} or {w for w in words if w in ("yes", "no")}
    return said == {row.key[0]} if len(said) == 1 else None


def says_letter(body: str, row: Row) -> bool | None:
    """The one option that is named, as in "B", "(B)", "B. a cat", "The answer is B"; naming several is no answer."""
    if len(body.strip("().")) == 1:
        body = body.upper()
    said = {m[0] for m in re.finditer(r"(?<![\w'’-])[A-Z](?![\w'’-])", body) if not _is_word(body, m.start())}
    said &= set(row.data["letters"])
    return said == {row.key[0]} if len(said) == 1 else None


def _is_word(body: str, at: int) -> bool:
    """True for an "A" or "I" that is a word of a sentence: a small letter follows, and nothing says that it is an option."""
    if body[at] not in "AI" or not re.match(r" (?!(?:is|or|and|not)\b)[a-z]", body[at + 1 : at + 6]):
        return False
    return not re.search(r"(answer|answer is|option|choice)[\s:*]*$", body[max(0, at - 15) : at], re.I)


_NUMBER = r"-?[0-9]{1,9}+(?:\.[0-9]{1,9}+)?+"
_BOX = re.compile(
    r"[\[(]\s*+" + r"\s*+,\s*+".join([f"({_NUMBER})"] * 4) + r"\s*+[\])]"
)  # possessive: linear on any text


def says_box(body: str, row: Row) -> bool | None:
    """The first [x1, y1, x2, y2] of the text (in JSON as bbox_2d or bare), else its only four numbers; right from IoU 0.5.

    Pixels of the row's image, which is what Qwen2.5-VL answers in; see `fitted`. No other convention is guessed at.
    """
    found = _BOX.search(body)
    numbers = found.groups() if found else re.findall(rf"(?<![\w.]){_NUMBER}(?!\w)", body)
    if len(numbers) != 4:
        return None
    x1, y1, x2, y2 = (float(n) for n in numbers)
    return iou((x1, y1, x2, y2), row.data["box"]) >= 0.5


def iou(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2); 0 where either is empty or inside out."""
    areas = [(x2 - x1) * (y2 - y1) if x2 > x1 and y2 > y1 else 0.0 for x1, y1, x2, y2 in (a, b)]
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return shared / (sum(areas) - shared) if all(areas) else 0.0


def says_text(body: str, row: Row) -> bool | None:
    """Right where the ANLS to any reference is at least 0.5, below which ANLS itself counts 0. Only silence is unparseable."""
    said = " ".join(body.lower().split())
    return any(_alike(said, " ".join(truth.lower().split())) for truth in row.key) if said else None


def anls(said: str, truths: tuple[str, ...]) -> float:
    """1 - distance / longer to the nearest reference, 0 where that is below 0.5 (DocVQA, 2007.00398)."""
    best, said = 0.0, " ".join(said.lower().split())
    for truth in (" ".join(truth.lower().split()) for truth in truths):
        if said and _alike(said, truth):
            best = max(best, 1 - edit_distance(said, truth) / max(len(said), len(truth)))
    return best


def published(name: str, texts: list[str], rows: list[Row]) -> dict[str, float]:
    """What a benchmark's own paper reports, beside our share of correct answers: POPE's precision, recall and F1 of "yes" and its
    share of yes (2305.10355), DocVQA's mean ANLS. {} where that is the share itself, as with IoU at 0.5 and with letters.

    A reply that cannot be read is neither yes nor no here, where POPE's own script takes it for yes unless it holds a no. MME's sum of
    points needs all questions, in pairs: `rftkit.export` hands such a count to lmms-eval.
    """
    if name == "docvqa":
        return {"anls": sum(anls(final(text), row.key) for text, row in zip(texts, rows, strict=True)) / len(rows)}
    if name != "pope":
        return {}
    yes = Row("pope", "", "", key=("yes",))
    said = [says_yes_no(final(text), yes) is True for text in texts]
    true = [row.key == ("yes",) for row in rows]
    both = sum(a and b for a, b in zip(said, true, strict=True))
    precision, recall = both / max(1, sum(said)), both / max(1, sum(true))
    f1 = 2 * precision * recall / (precision + recall) if both else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "yes": sum(said) / len(said)}


def _alike(a: str, b: str) -> bool:
    """1 - distance / longer >= 0.5. A distance is at least the difference in length, so a far longer text needs no look."""
    longer = max(len(a), len(b))
    return longer >= 2 * abs(len(a) - len(b)) and 2 * edit_distance(a, b) <= longer


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's: the fewest insertions, deletions and substitutions that turn a into b. Takes len(a) * len(b) steps."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        corner, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (x != y))
    return row[-1]
