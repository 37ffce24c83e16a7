"""The seven published tasks, on small local copies of the Hub's data sets: the same loader, the same columns, no network."""

import dataclasses
import json
import math
import time

import numpy as np
import pytest
import test_hub
from datasets import Dataset, Features, Image, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pictures

from rftkit import hub, hub_rows, recording, rft, sequence, sequence_hub
from rftkit.config import UserError, get_preset
from rftkit.tasks import Row

PRESET = get_preset("qlora")
N = 12
SPLITS = ("train", "test")
text, letters_of = Value("string"), "ABCDE"
TURNS = {"id": text, "image": Image(), "conversations": [{"from": text, "value": text}], "data_source": text}


# --- small copies -----------------------------------------------------------------------------------------------------


def number(split, i):
    """One number a question: no two splits share any."""
    return i + (100 if split == "train" else 500)


def picture(n):
    noise = np.random.default_rng(n).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Pictures.fromarray(noise).resize((120, 90), Pictures.Resampling.NEAREST)


def votes(i):
    """Ten answers: six say one thing, three another, one a third; now and then nobody can tell."""
    if i % 4 == 3:
        return ["unanswerable"] * 7 + ["unsuitable"] * 2 + ["Two dogs"]
    return [f"Brand {i}"] * 3 + [f"the sign {i}."] * 6 + ["no idea"]


def turns(n):
    question = f"<image>\nHint: Please answer the question and provide the final answer at the end.\nQuestion: What is thing {n}?"
    said = ("Blue", "False", "The answer is True", "No, there is no object larger than the bus", f"{n}")[n % 5]
    return [{"from": "human", "value": question}, {"from": "gpt", "value": said}]


def records(name, split):
    """The rows of a split as the Hub's set has them, with one column more, and their types."""
    numbers = [number(split, i) for i in range(N)]
    if name == "science":
        return [
            {
                "image": picture(n), "question": f"Which is it, {n}?", "choices": [f"{c} {n}" for c in "vwxyz"[: 2 + n % 4]],
                "answer": n % 2, "hint": f"Context {n}." if n % 2 else "", "solution": f"Look at\n{n}." if n % 3 else "", "task": "t",
            }
            for n in numbers
        ], {
            "image": Image(), "question": text, "choices": List(text), "answer": Value("int8"), "hint": text, "solution": text,
            "task": text,
        }  # fmt: skip
    if name == "scenetext":
        return [
            {
                "image": picture(n),
                "question": f"what brand is {n}?",
                "answers": votes(n),
                "ocr_tokens": ["NIKE", str(n)][n % 3 :],
            }
            for n in numbers
        ], {"image": Image(), "question": text, "answers": List(text), "ocr_tokens": List(text)}
    if (name, split) == ("unanswerable", "test"):
        return [
            {"image": picture(n), "question": f"What is this, {n}?", "answers": votes(n), "category": "other"}
            for n in numbers
        ], {"image": Image(), "question": text, "answers": List(text), "category": text}
    if name in ("unanswerable", "clutter"):
        return [
            {
                "id": str(n),
                "image": picture(n if name == "unanswerable" else n // 2),
                "conversations": turns(n),
                "data_source": "d",
            }
            for n in (numbers if name == "unanswerable" else range(300))
        ], TURNS
    if name == "compose":
        return [
            {
                "id": str(n),
                "imageId": f"p{n // 2}",
                "question": f"Is it {n}?",
                "answer": ("yes", "no", f"left {n}")[n % 3],
            }
            for n in numbers
        ], {"id": text, "imageId": text, "question": text, "answer": text}
    if name == "pictures":
        return [{"id": f"p{n}", "image": picture(n)} for n in reversed(sorted({n // 2 for n in numbers}))], {
            "id": text,
            "image": Image(),
        }
    if name == "geometry":
        shown = ("{}", "{}.5", "{} \\sqrt {{ 3 }}", "\\frac {{ {} }} {{ 7 }}", "{} y")
        return [
            {"images": [picture(n)], "problem": f"<image>Find $x_{{{n}}}$.", "answer": shown[n % 5].format(n), "id": n}
            for n in numbers
        ], {"images": List(Image()), "problem": text, "answer": text, "id": Value("int64")}
    assert name == "texture"
    return [
        {"image": picture(n).convert("CMYK"), "question": f"what shows {n}?", "answer": ("yes", "no", f"the margins ({n})")[n % 3]}
        for n in numbers
    ], {"image": Image(), "question": text, "answer": text}  # fmt: skip


def copy_of(folder, source, rows, types):
    """A repository with the wanted file and one that must not be touched."""
    path = folder / source.files.replace("*", "00000-of-00001.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=Features(types)).to_parquet(str(path))
    (path.parent / "other-00000-of-00001.parquet").write_text("not a parquet file")
    return dataclasses.replace(source, repo=str(folder))


def pro_rows():
    return [
        {
            "question_id": i,
            "question": f"Which, {i}?",
            "options": [f"o{k}" for k in range(3 + i % 8)],
            "answer": "ABC"[i % 3],
        }
        for i in range(N)
    ], {"question_id": Value("int64"), "question": text, "options": List(text), "answer": text}


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seven")
    made = {}
    for name, sources in sequence_hub.SOURCES.items():
        made[name] = {
            key: copy_of(
                folder / name / key, source, *records("pictures" if "pictures" in key else name, key.split()[0])
            )
            for key, source in sources.items()
        }
    made["clutter"]["test"] = made["clutter"]["train"]
    return made, copy_of(folder / "pro", sequence_hub.MMLU_PRO, *pro_rows())


@pytest.fixture
def local(copies, monkeypatch, tmp_path_factory):
    monkeypatch.delenv(sequence_hub.VIZWIZ_FOLDER, raising=False)
    monkeypatch.setattr(sequence_hub, "SOURCES", copies[0])
    monkeypatch.setattr(sequence_hub, "MMLU_PRO", copies[1])
    monkeypatch.setenv("RFTKIT_HOME", str(tmp_path_factory.getbasetemp() / "home"))


def task_of(name, thinking=True):
    return sequence_hub.tasks(PRESET, thinking)[name]


# --- rows ---------------------------------------------------------------------------------------------------------------


def test_the_seven_are_those_of_the_tiny_tier_in_its_order():
    assert tuple(sequence_hub.tasks(PRESET)) == sequence.SEVEN == tuple(sequence_hub.SOURCES)


@pytest.mark.parametrize("name", sequence.SEVEN)
def test_a_test_question_is_asked_once_and_again_the_same(name, local):
    task = task_of(name)
    rows = task.rows(3, 10_000)
    assert len({row.prompt for row in rows}) == len(rows) == task.size("test", 10_000) and (
        len(rows) == N or name == "clutter"
    )
    again = task.row(3, 5)
    assert (again.prompt, again.data, again.image.tobytes()) == (rows[5].prompt, rows[5].data, rows[5].image.tobytes())
    assert [row.prompt for row in task.rows(4, 99)] != [row.prompt for row in rows]
    for index in (len(rows), -1):
        with pytest.raises(UserError, match="none with index"):
            task.row(0, index)
    with pytest.raises(UserError, match=rf"^{name} has no split 'validation' here: use 'train' or 'test'\.$"):
        task.row(0, 0, "validation")


@pytest.mark.parametrize("name", sequence.SEVEN)
def test_training_goes_on_in_epochs_on_other_pictures_than_the_test(name, local):
    task = task_of(name)
    size = task.size("train", 10_000)
    first, second = (task.rows(0, 2 * size, "train")[k * size : (k + 1) * size] for k in (0, 1))
    asked = [row.prompt for row in first]
    assert len(set(asked)) == size and sorted(asked) == sorted(row.prompt for row in second) != asked
    assert asked != [row.prompt for row in second]
    shown = {row.image.tobytes() for row in first}
    tested = task.rows(0, 10_000)
    assert not shown & {row.image.tobytes() for row in tested} and not set(asked) & {row.prompt for row in tested}
    assert task.make(np.random.default_rng(0), "train").prompt in asked


def test_super_clevr_is_parted_by_picture(local):
    train, test = (task_of("clutter").size(split, 10_000) for split in SPLITS)
    assert train + test == 300 and 5 <= test <= 40 and test % 2 == 0  # two questions a picture
    shares = [sequence_hub._part_of(str(i).encode()) for i in range(20_000)]
    assert abs(shares.count("test") / 20_000 - 642 / 8642) < 0.006


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("name", sequence.SEVEN)
def test_demonstrations_are_right_and_those_of_other_questions_are_not(name, thinking, local):
    task = task_of(name, thinking)
    rows = task.rows(0, N)
    for row in rows:
        assert row.task == name and row.image.mode == "RGB" and row.key == (row.data["target"],)
        assert task.score(row.answer, row) == "correct" and sequence.form_ok(row.answer) == thinking
        assert row.answer.endswith(f"<answer> {row.key[0]} </answer>" if thinking else row.key[0])
        assert task.score(f"hm <think> so </think>\n<answer>{row.key[0]}</answer><|im_end|>", row) == "correct"
        for cut in ("", "<think> blue yes A 12", "<think> a </think>", "<answer> A", "<answer></answer>"):
            assert task.score(cut, row) == "unparseable"
    verdicts = {
        task.score(b.answer, a)
        for a in rows
        for b in rows
        if a.data["accepted"] != b.data["accepted"] or name == "science"
    }
    assert "wrong" in verdicts and (name != "scenetext" or verdicts == {"wrong"})


def test_science_rows(local):
    rows = task_of("science").rows(0, N, "train")
    for row in rows:
        n = int(row.prompt.partition("Which is it, ")[2].partition("?")[0])
        choices = [f"{letter}. {c} {n}" for letter, c in zip(letters_of, "vwxyz"[: 2 + n % 4], strict=False)]
        context = [f"Context {n}."] if n % 2 else []
        end = "First reason inside <think></think>, then give the final answer, the letter of the right option, inside <answer></answer>."
        assert row.prompt.split("\n") == [*context, f"Which is it, {n}?", *choices, end]
        thought = f" Look at {n}. " if n % 3 else "  "
        assert row.answer == f"<think>{thought}</think> <answer> {'AB'[n % 2]} </answer>"
        assert row.data["letters"] == "ABCDE"[: 2 + n % 4]
    assert (
        task_of("science", False)
        .row(0, 0)
        .prompt.endswith("\nReply with the letter of the right option and nothing else.")
    )


def test_prompts_of_the_others(local):
    short = "Reply with a single word or a short phrase and nothing else."
    for row in task_of("scenetext", False).rows(0, N):
        question, *words, end = row.prompt.split("\n")
        n = question.removeprefix("what brand is ").removesuffix("?")
        assert end == short and words == [
            f"Words that a program read in the picture: {w}" for w in ([f"NIKE, {n}"], [n], [])[int(n) % 3]
        ]
    for split in SPLITS:
        prompt = task_of("unanswerable", False).row(0, 0, split).prompt
        assert prompt.split("\n")[1:] == ["If the picture does not tell, the answer is: unanswerable.", short]
    assert task_of("compose", False).row(0, 0).prompt.split("\n")[1:] == [
        short
    ]  # does not tell that the answer is yes or no
    geometry = task_of("geometry", False).row(0, 0)
    assert geometry.prompt.startswith("Find $x_{") and "<image>" not in geometry.prompt
    assert {row.prompt.rpartition("\n")[2] for row in task_of("geometry", False).rows(0, N)} == {
        "Reply with the value and nothing else.",
        short,  # where the answer is no number
    }
    clutter = task_of("clutter", False).row(0, 0).prompt.split("\n")
    assert clutter[0].startswith("What is thing ") and clutter[1:] == [short]
    said = {
        (row.data["target"], row.data["rule"], row.data["accepted"]) for row in task_of("clutter").rows(0, 300, "train")
    }
    assert said >= {
        ("Blue", "text", "blue"),
        ("False", "yes_no", "no"),
        ("True", "yes_no", "yes"),
    }
    assert ("No, there is no object larger than the bus", "yes_no", "no") in said
    assert {(rule, target == right) for target, rule, right in said if target.isdigit()} == {("text", True)}


def test_pictures_have_the_processor_s_size(local):
    small = get_preset("qlora", max_pixels=56 * 56)
    for name, task in sequence_hub.tasks(small).items():
        assert task.row(0, 0).image.size == hub.smart_size(120, 90, 56 * 56), name


def test_gqa_s_pictures_are_found_by_their_name(local):
    shown = {
        hub.fitted(picture(n // 2), PRESET.max_pixels).tobytes(): n // 2 for n in (number("test", i) for i in range(N))
    }
    rows = task_of("compose").rows(0, N)
    assert len(shown) == N // 2
    assert all(
        shown[row.image.tobytes()] == int(row.prompt.partition("Is it ")[2].partition("?")[0]) // 2 for row in rows
    )


def test_of_gqa_some_pictures_are_taken_and_the_questions_about_them(local, tmp_path, monkeypatch):
    monkeypatch.setenv("RFTKIT_HOME", str(tmp_path))
    monkeypatch.setattr(hub_rows, "PART", 4)
    # of six pictures four are taken, of twelve questions those about them
    monkeypatch.setattr(sequence_hub, "TRAINED", 10)
    sources = sequence_hub.SOURCES["compose"]
    taken = {shown["id"] for shown in records("pictures", "train")[0][:4]}
    asked = {r["question"] for r in records("compose", "train")[0] if r["imageId"] in taken}
    rows = task_of("compose").rows(0, 16, "train")
    assert len(asked) == 8 and [sum(row.prompt.startswith(q) for row in rows) for q in sorted(asked)] == [2] * 8
    assert len(hub_rows.load(sources["train pictures"], 4)) == 4 and len(list(tmp_path.rglob("*of-4-pictures"))) == 1


def test_rows_of_the_seven_mix_in_one_data_set_and_are_rewarded(local):
    seven = list(sequence_hub.tasks(PRESET).values())
    rows = [seven[i % 7].row(0, i, "train") for i in range(21)]
    assert len({frozenset(row.data) for row in rows}) == 1 and all(
        isinstance(v, (str, int)) for row in rows for v in row.data.values()
    )
    data = recording.lazy_dataset(lambda i: rft.rft_row(rows[i]), len(rows))[:]
    columns = {key: data[key] for key in rows[0].data}
    right = [[{"role": "assistant", "content": row.answer}] for row in rows]
    assert sequence_hub.accuracy(right, **columns, trainer_state=None) == [0.9] * 21
    silent = [[{"role": "assistant", "content": "<think> who knows </think>"}]] * 21
    assert sequence_hub.accuracy(silent, **columns) == [0.0] * 21


# --- VizWiz from its makers' files --------------------------------------------------------------------------------------


def vizwiz(folder, n=5):
    (folder / "train").mkdir(parents=True)
    listed = []
    for i in range(n):
        picture(900 + i).save(folder / "train" / f"VizWiz_train_{i:08d}.jpg", quality=95)
        answers = [{"answer": a, "answer_confidence": "yes"} for a in votes(i)]
        listed.append(
            {"image": f"VizWiz_train_{i:08d}.jpg", "question": f"What, {i}?", "answers": answers, "answerable": 1}
        )
    (folder / "train.json").write_text(json.dumps(listed))
    return folder


def test_vizwiz_s_own_files_take_the_place_of_the_sample(local, tmp_path, monkeypatch):
    monkeypatch.setenv(sequence_hub.VIZWIZ_FOLDER, str(vizwiz(tmp_path / "vizwiz")))
    task = task_of("unanswerable")
    rows = task.rows(0, 5, "train")
    assert task.size("train", 10_000) == 5 and task.size("test", 10_000) == N
    assert {row.data["accepted"] for row in rows} == {f"sign {i}\nbrand {i}" for i in (0, 1, 2, 4)} | {"unanswerable"}
    (tmp_path / "vizwiz/train/VizWiz_train_00000002.jpg").unlink()
    with pytest.raises(UserError, match=r"picture VizWiz_train_00000002\.jpg of VizWiz cannot be read"):
        task.rows(0, 5, "train")


@pytest.mark.parametrize("content", [None, "[", "{}x", '[{"image": "a.jpg"}]', "[1]"])
def test_bad_vizwiz_files_are_told(content, local, tmp_path, monkeypatch):
    monkeypatch.setenv(sequence_hub.VIZWIZ_FOLDER, str(tmp_path))
    if content is not None:
        (tmp_path / "train.json").write_text(content)
    with pytest.raises(
        UserError, match=r"whose train\.json cannot be read as VizWiz's .*: put VizWiz's own train\.json there"
    ):
        task_of("unanswerable").row(0, 0, "train")


# --- sets that are absent or have changed -----------------------------------------------------------------------------------


def changed(monkeypatch, copies, tmp_path, name, **fields):
    """The set with some fields of its rows replaced."""
    rows, types = records(name, "test")
    source = copy_of(tmp_path / name, sequence_hub.SOURCES[name]["test"], [row | fields for row in rows], types)
    monkeypatch.setattr(sequence_hub, "SOURCES", copies[0] | {name: {**copies[0][name], "test": source}})
    with pytest.raises(UserError) as caught:
        task_of(name).rows(0, N)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "fields", "says"),
    [
        ("science", {"answer": 7}, "has the answer 7 to"),
        ("science", {"image": None}, "an empty one where one was expected"),
        ("scenetext", {"answers": []}, "no answers, as in a split whose answers are secret"),
        ("compose", {"imageId": "gone"}, "has no question about any of"),
        ("geometry", {"images": [picture(1), picture(2)]}, "has 2 pictures"),
        ("clutter", {"conversations": turns(1) * 2}, "has 4 turns"),
    ],
)
def test_a_set_that_has_changed_is_told_in_one_sentence(name, fields, says, local, copies, tmp_path, monkeypatch):
    told = changed(monkeypatch, copies, tmp_path, name, **fields)
    assert says in told and "\n" not in told and ("pin another commit" in told or "use another file" in told)


def test_a_missing_column_is_named(local, copies, monkeypatch):
    odd = dataclasses.replace(copies[0]["geometry"]["test"], columns=("images", "question"))
    monkeypatch.setattr(sequence_hub, "SOURCES", copies[0] | {"geometry": {"test": odd}})
    with pytest.raises(UserError, match="has no column question"):
        task_of("geometry").row(0, 0)


@pytest.mark.skipif("__import__('os').environ.get('RFTKIT_HUB') == '1'", reason="the network is on")
def test_without_network_the_user_is_told_what_to_do(monkeypatch):
    monkeypatch.delenv(sequence_hub.VIZWIZ_FOLDER, raising=False)
    gone = {
        name: {key: dataclasses.replace(source, repo=f"nobody/{name}-of-no-one") for key, source in sources.items()}
        for name, sources in sequence_hub.SOURCES.items()
    }
    monkeypatch.setattr(sequence_hub, "SOURCES", gone)
    monkeypatch.setattr(sequence_hub, "MMLU_PRO", dataclasses.replace(sequence_hub.MMLU_PRO, repo="nobody/pro"))
    for task in (*sequence_hub.tasks(PRESET).values(), sequence_hub.probes(PRESET)["mmlu_pro"]):
        with pytest.raises(UserError, match=r"nobody/.* cannot be loaded .*: check the network") as caught:
            task.row(0, 0)
        assert "\n" not in str(caught.value)


def test_revisions_are_commits_or_open_and_reach_the_loader(monkeypatch, tmp_path):
    monkeypatch.setenv("RFTKIT_HOME", str(tmp_path))
    sources = [sequence_hub.MMLU_PRO, *(s for sources in sequence_hub.SOURCES.values() for s in sources.values())]
    assert sequence_hub.REVISIONS.keys() == {source.repo for source in sources}
    for source in sources:
        commit = sequence_hub.REVISIONS[source.repo]
        assert commit is None or (len(commit) == 40 and set(commit) <= set("0123456789abcdef"))
        assert source.pin == commit and (commit is None or hub_rows.commit(source) == commit)
    monkeypatch.setattr("rftkit.hub_rows.commit", lambda source: source.pin)
    told = sequence_hub.revisions()
    assert len(told) == len(sequence_hub.REVISIONS) and set(told) == {f"data {repo}" for repo in sequence_hub.REVISIONS}
    assert told["data lmms-lab/textvqa"] == "not resolved" and len(told["data lmms-lab/GQA"]) == 40


# --- probes of general ability ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("thinking", [True, False])
def test_probes(thinking, local, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "SOURCES", {name: test_hub.write_copy(tmp_path, name) for name in ("pope", "mmmu")})
    found = sequence_hub.probes(PRESET, thinking)
    assert list(found) == ["mmmu", "mmlu_pro", "pope"] and [t.uses_image for t in found.values()] == [True, False, True]
    for name, task in found.items():
        rows = task.rows(1, 8)
        assert all(task.score(row.answer, row) == "correct" for row in rows)
        assert all(task.score(f"<think> hm </think> <answer> {row.answer} </answer>", row) == "correct" for row in rows)
        assert all(task.score("<think> A yes", row) == "unparseable" for row in rows)
        assert "wrong" in {task.score(a.answer, b) for a in rows for b in rows}
        ends = {row.prompt.rpartition("\n")[2] for row in rows} | {
            task.make(np.random.default_rng(0), "test").prompt.rpartition("\n")[2]
        }
        wanted = "yes or no" if name == "pope" else "the letter of the right option"
        direct = "Please answer yes or no." if name == "pope" else hub.DIRECTLY
        assert ends == {
            f"First reason inside <think></think>, then give the final answer, {wanted}, inside <answer></answer>."
            if thinking
            else direct
        }
    pro = found["mmlu_pro"].rows(0, 99)
    assert (
        len(pro) == N and max(len(row.data["letters"]) for row in pro) == 10 and all(row.image is None for row in pro)
    )
    assert all(row.prompt.count("\n") == len(row.data["letters"]) + 2 for row in pro)


# --- scoring ------------------------------------------------------------------------------------------------------------------


def asked(target, rule, accepted="", letters=""):
    return Row("", "", "", data={"target": target, "accepted": accepted, "letters": letters, "rule": rule})


B = asked("B", "letter", letters="ABCD")
YES, FALSE = asked("yes", "yes_no", "yes"), asked("False", "yes_no", "no")
SIGN = asked("dakota", "text", "dakota\ndakota digital")
TWO = asked("2", "text", "2")
NOBODY = asked("unanswerable", "text", "unanswerable")
ROOT, MIXED, ROUNDED = (asked(t, "value") for t in ("5 \\sqrt { 3 }", "4 \\frac { 4 } { 11 }", "7.85"))


@pytest.mark.parametrize(
    ("row", "said", "judged"),
    [
        (B, "B", "correct"),
        (B, "(b).", "correct"),
        (B, "<think> A or C </think> <answer> B. a dog </answer>", "correct"),
        (B, "<think> B </think> <answer> C </answer>", "wrong"),
        (B, "\\boxed{B}", "correct"),
        (B, "<think> so \\boxed{A} </think> \\boxed{B}", "unparseable"),  # tags, but no answer block
        (B, "A", "wrong"),
        (B, "E", "unparseable"),
        (B, "A or B", "unparseable"),
        (B, "a dog", "unparseable"),
        (B, "<answer>A</answer> no: <answer>B</answer>", "correct"),  # the last word counts
        (YES, "Yes", "correct"),
        (YES, "true", "correct"),
        (YES, "No.", "wrong"),
        (YES, "FALSE", "wrong"),
        (YES, "maybe", "unparseable"),
        (YES, "neither yes nor no", "unparseable"),
        (FALSE, "no, there is none", "correct"),
        (FALSE, "There is no bus.", "correct"),
        (FALSE, "False", "correct"),
        (FALSE, "True", "wrong"),
        (FALSE, "blue", "unparseable"),
        (SIGN, "Dakota", "correct"),
        (SIGN, "The DAKOTA.", "correct"),
        (SIGN, "<answer> Dakota, Digital! </answer>", "correct"),
        (SIGN, "dakotas", "wrong"),
        (SIGN, "it is a dakota", "wrong"),
        (SIGN, "dakota\ndakota digital", "wrong"),
        (SIGN, "...", "unparseable"),
        (SIGN, "  ", "unparseable"),
        (TWO, "two", "correct"),
        (TWO, "2.", "correct"),
        (TWO, "3", "wrong"),
        (NOBODY, "Unanswerable", "correct"),
        (NOBODY, "a camera", "wrong"),
        (NOBODY, "<think> I cannot see", "unparseable"),
        (ROOT, "5\\sqrt{3}", "correct"),
        (ROOT, "$x = 5√3$ cm", "correct"),
        (ROOT, "\\boxed{\\frac{15}{\\sqrt{3}}}", "correct"),
        (ROOT, "8.660254037844386", "correct"),
        (ROOT, "8.66", "wrong"),
        (ROOT, "5", "wrong"),
        (ROOT, "x", "wrong"),
        (ROOT, "5 or 3", "wrong"),
        (ROOT, "...", "unparseable"),
        (ROOT, "5" * 201, "unparseable"),
        (MIXED, "48/11", "correct"),
        (MIXED, "4 + 4/11", "correct"),
        (MIXED, "16/11", "wrong"),
        (ROUNDED, "7.85 inches", "correct"),
        (ROUNDED, "2.5\\pi", "wrong"),
        (ROUNDED, "7.85 in^2", "correct"),
        (ROUNDED, "7.85 m.", "correct"),
        (ROUNDED, "7.85°", "correct"),
        (ROUNDED, "7.85 y", "wrong"),
        (ROUNDED, "7,85", "wrong"),
    ],
)
def test_verdicts(row, said, judged):
    assert sequence_hub.score(said, row) == judged


@pytest.mark.parametrize(
    ("said", "plain"),
    [
        ("The  Histone\nSubunits", "histone subunits"),
        ("a an THE", ""),
        ("U.S.A.", "usa"),
        ("3.50", "3.50"),
        (".5 m.", ".5 m"),
        ("100,978", "100978"),
        ("red, white", "red white"),
        ("2:50 pm", "2:50 pm"),
        ("girl's", "girl's"),
        ("dont", "don't"),
        ("Don’t", "don't"),
        ("x-ray (chest)", "x ray chest"),
        ("Seven", "7"),
        ("none", "0"),
        ("someone", "someone"),
        ("under_score", "under score"),
        ("$5", "$5"),
        ("50%", "50%"),
        ("!?", ""),
    ],
)
def test_answers_are_normalised_as_the_vqa_evaluation_says(said, plain):
    assert sequence_hub.normalised(said) == plain
    assert sequence_hub.normalised(plain) == plain


@pytest.mark.parametrize(
    ("answers", "right"),
    [
        (["nike"] * 10, ("nike",)),
        (["Nike."] * 4 + ["the nike"] * 3 + ["puma"] * 3, ("nike", "puma")),
        (["nike"] * 6 + ["puma"] * 2 + ["asics"] * 2, ("nike",)),
        (["puma", "nike"] * 2 + [str(i) for i in range(11, 17)], ("puma",)),  # nothing has three votes: what came first
        (["?", "", "two"], ("2",)),
        (["?"] * 10, ("?",)),
    ],
)
def test_three_of_ten_make_an_answer_right(answers, right):
    assert sequence_hub.agreed(answers) == right


@pytest.mark.parametrize(
    ("said", "worth"),
    [
        ("48", 48), ("6.0", 6), ("-3", -3), ("1,591 miles", 1591), ("45^{\\circ}", 45), ("45 degrees", 45), ("6 \\sqrt 2", 6 * 2**0.5),
        ("√336", 336**0.5), ("\\frac { 17 } { 2 } \\sqrt { 3 }", 8.5 * 3**0.5), ("-4 \\dfrac{1}{2}", -4.5), ("8\\pi", 8 * math.pi),
        ("8π", 8 * math.pi), ("12\\text{ cm}^2", 12), ("2^3", 8), ("(1+2)(3-1)", 6), ("2 \\cdot 3", 6), ("x \\approx 3.1", 3.1),
    ],
)  # fmt: skip
def test_values(said, worth):
    assert sequence_hub.verdict(said, repr(float(worth)), "", "", "value") == "correct"
    assert sequence_hub.verdict(said, repr(worth + 0.01), "", "", "value") == "wrong"


ALL = {"letter": B, "yes_no": YES, "text": SIGN, "value": ROOT}


@pytest.mark.parametrize("rule", ALL)
def test_any_text_gets_a_verdict(rule):
    pieces = [
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "\\boxed{",
        "}",
        "{",
        "(",
        "\\frac",
        "\\sqrt",
        "^",
        "-",
        "/",
        "1",
        ".",
        "A",
        " no ",
        "=",
        "\u0663",
    ]

    # Math-Verify gives itself seconds, and its time is none of ours
    @settings(deadline=None, max_examples=20 if rule == "value" else 100)
    @given(st.text() | st.lists(st.sampled_from(pieces), max_size=40).map("".join))
    def check(said):
        assert sequence_hub.score(said, ALL[rule]) in ("correct", "wrong", "unparseable")

    check()


@pytest.mark.parametrize(
    "said", ["<answer>", "</answer>", "\\boxed{", "{", ". ", ",1", "a ", "A ", "no ", "'", "(", "1", " ", "<answer>a"]
)
def test_scoring_time_is_linear(said):
    long = said * (400_000 // len(said))
    for row in ALL.values():
        start = time.perf_counter()
        sequence_hub.score(long, row)
        assert time.perf_counter() - start < 5  # quadratic time would be hours


@pytest.mark.hub
@pytest.mark.parametrize("name", ["geometry", "science"])
def test_the_hub_has_what_we_expect(name):
    row = task_of(name).row(0, 0)
    assert task_of(name).score(row.answer, row) == "correct"
