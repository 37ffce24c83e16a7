"""The seven tasks of 2507.05386 as published on the Hub, for the GPU tiers, and the three probes of general ability it reports.

| name | set | train | test | rule |
|---|---|---|---|---|
| science | ScienceQA, questions with a picture | 6,218 | 2,017 | letter |
| scenetext | TextVQA, with the words an OCR program read | 34,602 | 5,000, the published validation split | text |
| unanswerable | VizWiz | 6.6k on the Hub, 20.5k from RFTKIT_VIZWIZ | 4,319, the published validation split | text |
| compose | GQA, balanced | 943k, of which the paper took about 80k | 12.6k, testdev | text, yes_no |
| geometry | Geometry3K | 2,101 | 601 | value |
| texture | PathVQA | about 19.7k | about 6.7k | text, yes_no |
| clutter | Super-CLEVR, the 8,642 questions of MathV360K | about 8,000 | about 642 | text, yes_no |

Of a larger set the first `TRAINED` questions are taken to train on, and those that are asked for, shuffled, to test.

`tasks` words each row with thinking or for the answer alone, `verdict` judges a reply, `accuracy` is the reward. None of these
downloads could be tried where this module was written. What was seen of repositories, files, columns and commits, and what is
assumed, stands beside each; the tests run the same code on small local data sets of that form.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import string
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rftkit import hub, hub_rows, math_data, sequence
from rftkit.config import Preset, UserError
from rftkit.hub import Fit
from rftkit.hub_rows import Record, Source, load
from rftkit.scenes import rng_for
from rftkit.tasks import Row, Task, Verdict

VIZWIZ_FOLDER = "RFTKIT_VIZWIZ"  # environment variable: a folder with VizWiz's own train.json and train/*.jpg

# Commits as addresses of the Hub's own pages name them; loading them was not tried. None: the newest, as in `hub.REVISIONS`.
REVISIONS: dict[str, str | None] = {
    "lmms-lab/ScienceQA": "69dd4d6b67373d38f96a5badd5d24d0eb5bcdc50",  # the newest when seen
    "lmms-lab/textvqa": None,  # the newest when seen begins with 9c0699c
    "lmms-lab/VizWiz-VQA": "d428a2dae984f79cf1b9d99467dfa883e0c30686",  # the newest when seen
    "lmms-lab/GQA": "388eadb3fad5cc6818bf6e2ac7a64d809c6e59e7",  # three of the four folders were seen in it
    "lmms-lab/LLaVA-OneVision-Data": None,  # Super-CLEVR was seen in 546423e, VizWiz in aae4aca, no commit with both
    "hiyouga/geometry3k": None,  # the card was seen at 37e4933
    "flaviagiammarino/path-vqa": None,
    "TIGER-Lab/MMLU-Pro": None,
}


def _source(repo: str, files: str, columns: tuple[str, ...]) -> Source:
    return Source(repo, files, columns, REVISIONS[repo])


# Seen: on pages of the Hub or in lmms-eval's task files. Assumed: not seen, told by `hub_rows.load` if it is wrong.
_MATH_V360K = ("image", "conversations")  # seen: id, image, conversations (from, value), data_source
SOURCES: dict[str, dict[str, Source]] = {
    # seen: both files, all columns, 6,218 and 2,017 rows. The card no longer lists the train split; by the
    # repository's size its file is still there
    "science": {
        split: _source("lmms-lab/ScienceQA", f"ScienceQA-IMG/{split}-*", ("image", "question", "choices", "answer", "hint", "solution"))
        for split in ("train", "test")
    },
    # seen: files; columns and sizes on the card of a duplicate. The test split comes without answers
    "scenetext": {
        split: _source("lmms-lab/textvqa", f"data/{files}-*", ("image", "question", "answers", "ocr_tokens"))
        for split, files in (("train", "train"), ("test", "validation"))
    },
    # seen: files of both; columns and size of the test split. This repository has no train split, and none was found
    # elsewhere with all ten answers: the train source is a sample of MathV360K with one answer each. That it holds pictures of
    # VizWiz's train split only is assumed
    "unanswerable": {
        "train": _source("lmms-lab/LLaVA-OneVision-Data", "VizWiz(MathV360K)/train-*", _MATH_V360K),
        "test": _source("lmms-lab/VizWiz-VQA", "data/val-*", ("image", "question", "answers")),
    },
    # seen: folders, files and sizes; imageId, question, answer and id, image in lmms-eval. Assumed: the same columns in train
    "compose": {
        "train": _source("lmms-lab/GQA", "train_balanced_instructions/train-*", ("imageId", "question", "answer")),
        "train pictures": _source("lmms-lab/GQA", "train_balanced_images/train-*", ("id", "image")),
        "test": _source("lmms-lab/GQA", "testdev_balanced_instructions/testdev-*", ("imageId", "question", "answer")),
        "test pictures": _source("lmms-lab/GQA", "testdev_balanced_images/testdev-*", ("id", "image")),
    },
    # seen: files, columns, sizes, all on the card
    "geometry": {
        split: _source("hiyouga/geometry3k", f"data/{split}-*", ("images", "problem", "answer")) for split in ("train", "test")
    },
    # seen: sizes, files of the validation split, columns in public code. Assumed: the others are named alike
    "texture": {
        split: _source("flaviagiammarino/path-vqa", f"data/{split}-*", ("image", "question", "answer"))
        for split in ("train", "test")
    },
    # seen: files, size. zhhxte/mllm_cl_clevr, which the paper's code names, was not found. The released test file has 642
    # questions in MathV360K's wording, and that set has 8,642: so 8,000 to train is derived. Which 642 is not known
    "clutter": {
        split: _source("lmms-lab/LLaVA-OneVision-Data", "Super-CLEVR(MathV360K)/train-*", _MATH_V360K)
        for split in ("train", "test")
    },
}  # fmt: skip
MMLU_PRO = _source(
    "TIGER-Lab/MMLU-Pro", "data/test-*", ("question", "options", "answer")
)  # seen: file, columns, 12,032 rows

TRAINED = 20_000  # questions to train on that are taken of a set: as many as the presets draw; the paper took more of GQA and TextVQA

# What is asked for at the end of a prompt, by rule.
_WANTED = {
    "letter": "the letter of the right option", "text": "a single word or a short phrase", "value": "the value",
    "yes_no": "yes or no",
}  # fmt: skip


# --- what the other modules ask for ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Published(Task):
    """A published set with a split to train on and one to test on, each in an order drawn from the seed.

    Training goes on for as many epochs as are asked for, each in an order of its own; testing asks a question at most once.
    """

    size: Callable[[str, int], int]  # how many of so many questions a split has
    question: Callable[[str, int], Row]

    def row(self, seed: int, index: int, split: str = "test") -> Row:
        if split == "test":
            return self.question(split, hub.place(seed, self.name, index, partial(self.size, split)))
        n = self.size(split, TRAINED)
        if index < 0:
            raise UserError(f"{self.name} has {n} questions in {split}, so none with index {index}: ask for fewer.")
        epoch, place = divmod(index, n)
        return self.question(split, int(_order(seed, self.name, split, epoch, n)[place]))

    def rows(self, seed: int, n: int, split: str = "test") -> list[Row]:
        return [self.row(seed, i, split) for i in range(self.size(split, n) if split == "test" else n)]


@lru_cache(maxsize=32)
def _order(seed: int, name: str, split: str, epoch: int, n: int) -> np.ndarray:
    return rng_for(seed, name, split, epoch, "order").permutation(n)


def tasks(preset: Preset, thinking: bool = True) -> dict[str, Task]:
    """The seven in the paper's order; pictures in the processor's size for `preset.max_pixels`. Downloads at the first row.

    Row.data holds strings and numbers only and the same keys for all seven: target, accepted, letters, rule, name, thinking.
    With `thinking`, Row.answer is "<think> ... </think> <answer> ... </answer>". Only ScienceQA comes with reasoning; the
    other demonstrations have an empty block, and to imitate them is to unlearn thinking: the paper's SFT is `thinking=False`.
    """
    fit = partial(hub.fitted, max_pixels=preset.max_pixels)
    return {name: _published(name, ask, fit, thinking) for name, ask in _ASK.items()}


def probes(preset: Preset, thinking: bool = False) -> dict[str, Task]:
    """General ability: MMMU, MMLU-Pro and POPE, asked both ways in the paper. MMMU and POPE are `hub.probes`'s."""
    known = hub.probes(preset)
    found = {"mmmu": known["mmmu"], "mmlu_pro": _mmlu_pro(), "pope": known["pope"]}
    if not thinking:
        return found
    return {name: _thoughtful(task, "yes_no" if name == "pope" else "letter") for name, task in found.items()}


def revisions() -> dict[str, str]:
    """The commit of every repository that the seven and MMLU-Pro are read from, for the run's record."""
    sources = [MMLU_PRO, *(source for splits in SOURCES.values() for source in splits.values())]
    return {f"data {source.repo}": hub_rows.commit(source) or "not resolved" for source in sources}


def accuracy(
    completions: list[Any], target: list[str], accepted: list[str], letters: list[str], rule: list[str], **_: Any
) -> list[float]:
    """0.9 for a right answer, else 0: the accuracy part of the paper's reward, in the form that TRL calls."""
    asked = zip(completions, target, accepted, letters, rule, strict=True)
    return [0.9 * (verdict(c[0]["content"], *truth) == "correct") for c, *truth in asked]


# --- tables: how many questions a split has, and what reads the i-th ----------------------------------------------------------

Table = tuple[int, Callable[[int], Record]]


def _table(name: str, split: str, n: int) -> Table:
    """Of n questions. Raises UserError for a split other than train and test, and as `hub_rows.load` does."""
    if split not in ("train", "test"):
        raise UserError(f"{name} has no split {split!r} here: use 'train' or 'test'.")
    sources, test = SOURCES[name], split == "test"
    if name == "compose":
        return _joined(sources[split], sources[f"{split} pictures"], n, test)
    folder = os.environ.get(VIZWIZ_FOLDER)
    if folder and (name, test) == ("unanswerable", False):
        return _vizwiz(folder)
    # what is tested on is shuffled, since some of these sets are sorted; what is trained on, all of it or a lot, comes from the beginning
    data = load(sources[split], n, shuffled=test, keep=_PARTS[split] if name == "clutter" else None)
    return len(data), data.__getitem__


@lru_cache
def _joined(questions: Source, pictures: Source, n: int, test: bool) -> Table:
    """GQA keeps questions and pictures apart: many questions name one picture (to train 13, in the mean). The first pictures are
    taken, one for every five questions to train and all 398 to test, then questions about these."""
    shown = load(pictures, max(hub_rows.PART, n // 5))
    place = {key: i for i, key in enumerate(shown.column("id"))}
    keep = (f"of-{len(place)}-pictures", _Names(frozenset(place)))
    asked = load(questions, n, shuffled=test, keep=keep)
    if not len(asked):
        raise UserError(
            f"{questions.repo} has no question about any of {len(place)} pictures: pin another commit of it."
        )

    def read(i: int) -> Record:
        record = asked[i]
        return {**record, "image": shown[place[record["imageId"]]]["image"]}

    return len(asked), read


@dataclass(frozen=True)
class _Names:
    """Does a question name one of these pictures?"""

    pictures: frozenset[str]

    def __call__(self, record: Record) -> bool:
        return record["imageId"] in self.pictures


def _part_of(file: bytes) -> str:
    """642 in 8,642 pictures of Super-CLEVR to test, by the hash of their files: a picture is asked about more than once."""
    return "test" if int.from_bytes(hashlib.sha256(file).digest()[:8], "big") % 8642 < 642 else "train"


_PARTS: dict[str, hub_rows.Keep] = {
    "train": ("to-train", lambda record: _part_of(record["image"]["bytes"]) == "train"),
    "test": ("to-test", lambda record: _part_of(record["image"]["bytes"]) == "test"),
}


@lru_cache
def _vizwiz(folder: str) -> Table:
    """VizWiz's train split as its makers publish it: train.json lists image, question and ten answers; the pictures are in train/."""
    try:
        records = json.loads((Path(folder) / "train.json").read_text(encoding="utf-8"))
        listed = [(str(r["image"]), str(r["question"]), [str(a["answer"]) for a in r["answers"]]) for r in records]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{VIZWIZ_FOLDER} names {folder}, whose train.json cannot be read as VizWiz's ({type(error).__name__}): "
            "put VizWiz's own train.json there and its pictures into train/."
        ) from error

    def read(i: int) -> Record:
        image, question, answers = listed[i]
        try:
            picture = Image.open(Path(folder) / "train" / image).convert("RGB")
        except OSError as error:
            raise UserError(
                f"The picture {image} of VizWiz cannot be read: put it into the folder train of {VIZWIZ_FOLDER}."
            ) from error
        return {"image": picture, "question": question, "answers": answers}

    return len(listed), read


# --- rows -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A question before it is worded for one form. accepted: normalised answers that count as right, for the rule "text"."""

    question: str
    target: str
    rule: str
    accepted: tuple[str, ...] = ()
    letters: str = ""
    reasoning: str = ""
    hint: str = ""  # a line between the question and what is asked for


def _published(name: str, ask: Callable[[Record], Asked], fit: Fit, thinking: bool) -> Published:
    def table(split: str, n: int) -> Table:
        return _table(name, split, TRAINED if split == "train" else n)

    def question(split: str, i: int) -> Row:
        record = table(split, hub_rows.upto(i))[1](i)
        return worded(name, ask(record), fit(_picture(name, record)), thinking)

    def size(split: str, n: int) -> int:
        return min(n, table(split, n)[0])

    def make(rng: np.random.Generator, split: str) -> Row:
        return question(split, int(rng.integers(size(split, hub_rows.PART))))

    return Published(name, make, score, size=size, question=question)


def worded(name: str, asked: Asked, image: Image.Image | None, thinking: bool) -> Row:
    """The question in one of the two forms, with the reply that demonstrates it."""
    prompt = "\n".join(part for part in (asked.question, asked.hint, _ending(asked.rule, thinking)) if part)
    reply = f"<think> {asked.reasoning} </think> <answer> {asked.target} </answer>" if thinking else asked.target
    data = {
        "target": asked.target, "accepted": "\n".join(asked.accepted), "letters": asked.letters, "rule": asked.rule,
        "name": name, "thinking": int(thinking),
    }  # fmt: skip
    return Row(name, prompt, reply, image, (asked.target,), data=data)


def _ending(rule: str, thinking: bool) -> str:
    # a question does not tell that its answer is yes or no
    wanted = _WANTED["text" if rule == "yes_no" else rule]
    return _think(wanted) if thinking else f"Reply with {wanted} and nothing else."


def _think(wanted: str) -> str:
    return f"First reason inside <think></think>, then give the final answer, {wanted}, inside <answer></answer>."


def _picture(name: str, record: Record) -> Image.Image:
    pictures = record["images"] if "images" in record else [record["image"]]
    if len(pictures) != 1 or pictures[0] is None:
        raise UserError(
            f"A question of {name} has {len(pictures)} pictures or an empty one where one was expected: pin another commit."
        )
    return pictures[0]


def _science(record: Record) -> Asked:
    letters = string.ascii_uppercase[: len(record["choices"])]
    if not 0 <= record["answer"] < len(letters):
        raise UserError(
            f"A ScienceQA question has the answer {record['answer']} to {len(letters)} choices: pin another commit."
        )
    context = [record["hint"].strip()] if record["hint"] else []
    question = "\n".join([*context, record["question"].strip(), _options(record["choices"])])
    return Asked(question, letters[record["answer"]], "letter", letters=letters, reasoning=_flat(record["solution"]))


def _scenetext(record: Record) -> Asked:
    words = ", ".join(record["ocr_tokens"] or ())
    return _voted(record, f"Words that a program read in the picture: {words}" if words else "")


def _unanswerable(record: Record) -> Asked:
    hint = "If the picture does not tell, the answer is: unanswerable."
    if "conversations" not in record:
        return _voted(record, hint)
    return dataclasses.replace(_single(*_conversation(record)), hint=hint)


def _one_answer(record: Record) -> Asked:
    return _single(record["question"], record["answer"])


def _geometry(record: Record) -> Asked:
    """Now and then the answer is no number: then its text must be met."""
    target = record["answer"].strip()
    rule = "value" if math_data.is_number(target) else "text"
    return Asked(_clean(record["problem"]), target, rule, (normalised(target),))


def _clutter(record: Record) -> Asked:
    return _single(*_conversation(record))


_ASK: dict[str, Callable[[Record], Asked]] = {
    "science": _science, "scenetext": _scenetext, "unanswerable": _unanswerable, "compose": _one_answer,
    "geometry": _geometry, "texture": _one_answer, "clutter": _clutter,
}  # fmt: skip


def _single(question: str, answer: str) -> Asked:
    """A question with one reference. Super-CLEVR says False where others say no, and at times "No, there is no ..."."""
    target = answer.strip()
    truth = re.match(r"(yes|true|no|false)\s*(?:[,.]|$)", target, re.I)
    if truth:
        return Asked(_clean(question), target, "yes_no", ("yes" if truth[1].lower() in ("yes", "true") else "no",))
    return Asked(_clean(question), target, "text", (normalised(target),))


def _voted(record: Record, hint: str) -> Asked:
    """A question with ten references. See `agreed`."""
    if not record["answers"]:
        raise UserError(
            "A question has no answers, as in a split whose answers are secret: use another file of the set."
        )
    target, *others = agreed(record["answers"])
    return Asked(_clean(record["question"]), target, "text", (target, *others), hint=hint)


def agreed(answers: list[str]) -> tuple[str, ...]:
    """The answers that count as right, normalised, the reference first.

    VQA's accuracy of an answer is min(n / 3, 1) for n of ten people who gave it (the evaluation averages this over the ten
    choices of nine). Our score is right or wrong: right is what three or more gave, and what most gave, who may be fewer.
    The reference is what most gave, of equals the first.
    """
    votes = Counter(filter(None, map(normalised, answers))) or Counter([answers[0].strip().lower()])
    (first, _), *rest = votes.most_common()
    return (first, *(answer for answer, n in rest if n >= 3))


def _conversation(record: Record) -> tuple[str, str]:
    """Question and answer of a row of MathV360K: one turn each.

    Seen: the wording "Hint: ... Question: ...". Assumed: that an answer may begin with "The answer is".
    """
    turns = record["conversations"]
    if [turn["from"] for turn in turns] != ["human", "gpt"]:
        raise UserError(
            f"A row of MathV360K has {len(turns)} turns where a question and an answer were expected: pin another commit."
        )
    asked, said = (turn["value"] for turn in turns)
    hint, _, question = asked.partition("Question:")
    answer = re.sub(r"^\s*(?:the answer is|answer:)[\s:]*", "", said, flags=re.I)
    return question if "Hint:" in hint and question else asked, answer


def _clean(question: str) -> str:
    """Without the place of the picture and without another set's request for a short answer."""
    return question.replace("<image>", "").replace("Answer the question using a single word or phrase.", "").strip()


def _flat(text: str | None) -> str:
    return " ".join((text or "").split())


def _options(options: list[str]) -> str:
    return "\n".join(f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False))


# --- probes of general ability ------------------------------------------------------------------------------------------------


def _mmlu_pro() -> hub.Benchmark:
    """MMLU-Pro: up to ten options, no picture."""

    def data(n: int) -> hub_rows.Rows:
        return load(MMLU_PRO, n, shuffled=True)

    def question(i: int, rng: np.random.Generator) -> Row:
        record = data(hub_rows.upto(i))[i]
        letters, truth = string.ascii_uppercase[: len(record["options"])], record["answer"].strip()
        if truth not in letters:
            raise UserError(
                f"An MMLU-Pro question has the answer {truth!r} to {len(letters)} options: pin another commit."
            )
        prompt = f"{record['question'].strip()}\nOptions:\n{_options(record['options'])}\n{hub.DIRECTLY}"
        return Row("mmlu_pro", prompt, truth, key=(truth,), data={"letters": letters})

    def make(rng: np.random.Generator, split: str) -> Row:
        return question(int(rng.integers(len(data(hub_rows.PART)))), rng)

    def judge(text: str, row: Row) -> Verdict:
        return _verdict(hub.says_letter(hub.final(text), row))

    return hub.Benchmark("mmlu_pro", make, judge, uses_image=False, size=lambda n: len(data(n)), question=question)


def _thoughtful(task: Task, rule: str) -> Task:
    """The same questions with a request for reasoning in place of their last line, which asks for the bare answer."""
    assert isinstance(task, hub.Benchmark)

    def reworded(row: Row) -> Row:
        question, _, _ = row.prompt.rpartition("\n")
        return dataclasses.replace(row, prompt=f"{question}\n{_think(_WANTED[rule])}")

    def make(rng: np.random.Generator, split: str) -> Row:
        return reworded(task.make(rng, split))

    def question(i: int, rng: np.random.Generator) -> Row:
        return reworded(task.question(i, rng))

    return dataclasses.replace(task, make=make, question=question)


# --- scoring ------------------------------------------------------------------------------------------------------------------


def score(text: str, row: Row) -> Verdict:
    return verdict(text, *(row.data[key] for key in ("target", "accepted", "letters", "rule")))


def verdict(text: str, target: str, accepted: str, letters: str, rule: str) -> Verdict:
    """Judge the answer of a reply by its rule; all but `text` are a row's data.

    letter: the one option that is named. yes_no: yes or true against no or false. value: equal by Math-Verify, of at most 200 characters.
    text: one of the accepted answers, after `normalised`; here only silence is unparseable. The paper compares strings with
    one reference; Geometry3K rounds some references, and like the paper we do not accept an unrounded value for these.
    """
    body = extract(text)
    if body is None:
        return "unparseable"
    if rule == "letter":
        return _verdict(hub.says_letter(body, Row("", "", "", key=(target,), data={"letters": letters})))
    if rule == "yes_no":
        plain = re.sub(r"\bfalse\b", "no", re.sub(r"\btrue\b", "yes", body, flags=re.I), flags=re.I)
        return _verdict(hub.says_yes_no(plain, Row("", "", "", key=(accepted,))))
    if rule == "value":
        return _verdict(math_data.equal(_latex(body), target) if len(body) <= 200 else None)
    plain = normalised(body)
    return _verdict(plain in accepted.split("\n") if plain else None)


def _verdict(right: bool | None) -> Verdict:
    return "unparseable" if right is None else "correct" if right else "wrong"


def extract(text: str) -> str | None:
    """The answer of a reply with its case and signs, which LaTeX and letters need; else None. A \\boxed{} is opened."""
    body = sequence.said(text.replace("<|im_end|>", "")).strip()
    _, box, inside = body.rpartition("\\boxed{")
    return (_opened(inside) if box else body) or None


def _opened(inside: str) -> str:
    """What stands before the brace that closes an open one."""
    depth = 1
    for i, sign in enumerate(inside):
        depth += (sign == "{") - (sign == "}")
        if depth == 0:
            return inside[:i].strip()
    return ""


_NUMBERS = dict(
    zip(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
        map(str, range(11)),
        strict=True,
    )
)
_NUMBERS["none"] = "0"
_CONTRACTIONS = {
    word.replace("'", ""): word
    for word in (
        "ain't", "aren't", "can't", "couldn't", "didn't", "doesn't", "don't", "hadn't", "hasn't", "haven't", "isn't", "mightn't",
        "mustn't", "needn't", "shouldn't", "wasn't", "weren't", "won't", "wouldn't", "that's", "what's", "where's", "who's",
        "there's", "here's", "he's", "she's", "i'm", "i've", "you're", "you've", "they're", "they've", "we've",
    )
}  # fmt: skip


def normalised(answer: str) -> str:
    """An answer as the VQA evaluation compares it, written from its published description (visualqa.org/evaluation).

    Lower case; periods go, except in a decimal; number words become digits; articles go; a contraction gets its apostrophe;
    other punctuation becomes a space, except apostrophe and colon, and except a comma between digits, which goes. The signs
    $ and % are kept: they are no punctuation to us.
    """
    text = re.sub(r"(?<=[0-9]),(?=[0-9])", "", answer.lower().replace("’", "'"))
    text = re.sub(r"\.(?![0-9])|(?<=[a-z])\.", "", text)
    text = re.sub(r"[^\w\s':.$%]|_", " ", text)
    words = (_CONTRACTIONS.get(word, word) for word in text.split())
    return " ".join(_NUMBERS.get(word, word) for word in words if word not in ("a", "an", "the"))


def _latex(answer: str) -> str:
    """Plain signs as LaTeX, without degrees and a unit at the end, in which Math-Verify would see variables."""
    answer = re.sub(r"√\s*([0-9]+)", r"\\sqrt{\1}", answer)
    for sign, latex in (("√", "\\sqrt "), ("π", "\\pi "), ("−", "-"), ("°", ""), ("$", "")):
        answer = answer.replace(sign, latex)
    return re.sub(r"\s(?:[a-z]{2,9}|m)\s?(?:\^\s?\{?[23]\}?)?\.?$", "", answer)
