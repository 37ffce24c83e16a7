"""The GPU tiers' data, on small local copies of the Hub's data sets: the same loader, the same columns, no network."""

import dataclasses
import json
import time
from functools import cache

import numpy as np
import pytest
from datasets import Dataset, Features, Image, List, Value
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pictures
from PIL import ImageDraw

from rftkit import hub, jigsaw, recording, tasks
from rftkit.config import UserError, get_preset
from rftkit.sft import train_sft
from rftkit.tasks import Row

COCO = get_preset("qlora")
N = 24
PUZZLE_REPLY = "<think> hm </think> <answer> 3 1 2 4 5 6 7 8 9 </answer>"


# --- small copies -----------------------------------------------------------------------------------------------------


def picture(i, size=(120, 90)):
    """A picture that tells its number by its pixels."""
    noise = np.random.default_rng(i).integers(0, 256, (size[1] // 10, size[0] // 10, 3), dtype=np.uint8)
    return Pictures.fromarray(noise).resize(size, Pictures.Resampling.NEAREST)


def framed(i):
    """A grey picture with a red box in it, and the box as x, y, width, height."""
    image = Pictures.new("RGB", (640, 480 + 10 * (i % 3)), (120, 120, 120))
    x, y, w, h = 40 + 15 * i, 30 + 10 * i, 150, 120
    ImageDraw.Draw(image).rectangle((x, y, x + w - 1, y + h - 1), fill=(255, 0, 0))
    return image, [float(v) for v in (x, y, w, h)]


def columns(name):
    """The columns of N questions as the Hub's set has them, with one column more, and their types."""
    text, number = Value("string"), range(N)
    if name == "coco":
        return {"image_id": [100 + i for i in number], "image": [picture(i) for i in number]}, {
            "image_id": Value("int64")
        }
    if name in ("pope", "mme"):
        please = " Please answer yes or no." if name == "mme" else ""
        return {
            "question_id": [str(i) for i in number],
            "question": [f"Is there a thing {i} in the image?{please}" for i in number],
            "answer": [("yes", "no", "Yes", "No ")[i % 4] for i in number],
            "image": [picture(i) for i in number],
        }, {"question_id": text, "question": text, "answer": text}
    if name == "refcoco":
        pairs = [framed(i) for i in number]
        return {
            "question": ["Please provide a short description for this region: "] * N,
            "answer": [[f"the red box {i}", f"box {i} on grey"] for i in number],
            "bbox": [box for _, box in pairs],
            "image": [image for image, _ in pairs],
        }, {"question": text, "answer": List(text), "bbox": List(Value("float32"))}
    if name == "docvqa":
        return {
            "questionId": [str(i) for i in number],
            "question": [f"What is written in line {i}?" for i in number],
            "answers": [[chr(65 + i) * 6 + f" {i}", chr(65 + i) * 3] for i in number],
            "image": [picture(i) for i in number],
        }, {"questionId": text, "question": text, "answers": List(text)}
    if name == "mmstar":
        return {
            "question": [f"Which is it, {i}?\nOptions: A: a cat, B: a dog, C: a hat, D: a log" for i in number],
            "answer": ["ABCD"[i % 4] for i in number],
            "image": [picture(i) for i in number],
        }, {"question": text, "answer": text}
    return {
        "question": [f"See <image 1>. Which one, {i}?" + (" Or <image 2>?" if i % 6 == 5 else "") for i in number],
        "options": [str(["it's", 'a "hat"', "<image 1>", "none", "all"][: 2 + i % 4]) for i in number],
        "question_type": ["open" if i % 6 == 4 else "multiple-choice" for i in number],
        "answer": ["AB"[i % 2] for i in number],
        "image_1": [picture(i) for i in number],
        "image_2": [picture(i) if i % 6 == 5 else None for i in number],
    }, {"question": text, "options": text, "question_type": text, "answer": text, "image_2": Image()}


def write_copy(folder, name):
    """A repository with the wanted file, a README that promises more splits, and a file that must not be touched."""
    source = hub.SOURCES[name]
    data, types = columns(name)
    image = "image_1" if name == "mmmu" else "image"
    made = Dataset.from_dict(data, features=Features(types | {image: Image()}))
    path = folder / name / source.files.replace("*", "00000-of-00001.parquet")
    path.parent.mkdir(parents=True)
    made.to_parquet(str(path))
    (path.parent / "other-00000-of-00001.parquet").write_text("not a parquet file")
    splits = "".join(
        f"  - name: {split}\n    num_examples: 999\n    num_bytes: 999\n" for split in ("train", "validation", "test")
    )
    (folder / name / "README.md").write_text(f"---\ndataset_info:\n  splits:\n{splits}---\n")
    return dataclasses.replace(source, repo=str(folder / name))


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    return {name: write_copy(folder, name) for name in hub.SOURCES}


@pytest.fixture
def local(copies, monkeypatch, tmp_path_factory):
    monkeypatch.delenv(hub.COCO_FOLDER, raising=False)
    monkeypatch.setattr(hub, "SOURCES", copies)
    monkeypatch.setenv("RFTKIT_HOME", str(tmp_path_factory.getbasetemp() / "home"))


@cache
def scorer(name):
    return hub.probes(COCO)[name].score


# --- the drawn tier stays as it was ----------------------------------------------------------------------------------


def test_the_tiny_tier_is_the_drawn_one():
    tiny = get_preset("tiny")
    assert hub.new_task(tiny) is tasks.JIGSAW and hub.probes(tiny) is tasks.PROBES and hub.revisions(tiny) == {}


def test_grid_and_wording_follow_the_preset():
    row = hub.new_task(get_preset("tiny", rows=2, cols=1, prompt_style="full")).row(0, 0)
    assert row.prompt == jigsaw.prompt(2, 1, "forward", "full")
    assert row.data == {"answer": (2, 1), "rows": 2, "cols": 1}
    plain = hub.new_task(get_preset("tiny", prompt_style="full")).row(0, 0)
    assert plain.image.tobytes() == tasks.JIGSAW.row(0, 0).image.tobytes()


# --- benchmarks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", hub.probes(COCO))
def test_a_benchmark_asks_each_question_once_and_again_the_same(name, local):
    task = hub.probes(COCO)[name]
    rows = task.rows(3, 10_000)
    assert len(rows) == (16 if name == "mmmu" else N)
    assert len({r.image.tobytes() for r in rows}) == len(rows)
    again = task.row(3, 5)
    assert (again.prompt, again.answer, again.image.tobytes()) == (
        rows[5].prompt,
        rows[5].answer,
        rows[5].image.tobytes(),
    )
    assert [r.prompt for r in task.rows(4, 99)] != [r.prompt for r in rows]
    assert all(r.task == name and r.image.mode == "RGB" for r in rows)
    with pytest.raises(UserError, match="no split 'train'"):
        task.row(0, 0, "train")
    with pytest.raises(UserError, match="none with index"):
        task.row(0, len(rows))


@pytest.mark.parametrize("name", hub.probes(COCO))
def test_reference_answers_score_correct_and_others_do_not(name, local):
    task = hub.probes(COCO)[name]
    rows = task.rows(0, N)
    assert all(task.score(row.answer, row) == "correct" for row in rows)
    assert all(task.score(f"<think> so </think> <answer> {row.answer} </answer>", row) == "correct" for row in rows)
    assert all(task.score(text, row) == "unparseable" for row in rows for text in ("", PUZZLE_REPLY, "<think> A yes 1"))
    verdicts = {task.score(other.answer, row) for row in rows for other in rows if row.answer != other.answer}
    assert "wrong" in verdicts and (name == "refcoco" or verdicts == {"wrong"})  # neighbouring boxes overlap


def test_a_box_lies_on_its_object_in_the_image_the_model_sees(local):
    for row in hub.probes(COCO)["refcoco"].rows(0, N):
        x1, y1, x2, y2 = json.loads(row.answer)[0]["bbox_2d"]
        seen = np.asarray(row.image).astype(int)
        red = (seen[..., 0] > 200) & (seen[..., 1] < 60)
        inside = np.zeros_like(red)
        inside[y1:y2, x1:x2] = True
        assert (red & inside).sum() / (red | inside).sum() > 0.9
        phrase = json.loads(row.answer)[0]["label"].removeprefix("the ")
        assert row.prompt == f"Locate the {phrase}, output its bbox coordinates using JSON format."


def test_prompts(local):
    rows = {name: task.row(0, 0) for name, task in hub.probes(COCO).items()}
    for name in ("pope", "mme"):
        assert rows[name].prompt.endswith("?\nPlease answer yes or no.") and rows[name].prompt.count("Please") == 1
    assert rows["docvqa"].prompt.endswith("?\nAnswer the question using a single word or phrase.")
    mmmu = hub.probes(COCO)["mmmu"].rows(0, N)
    (longest,) = {r.prompt.partition("Options:")[2] for r in mmmu if len(r.data["letters"]) == 5}
    assert longest.splitlines()[1:6] == ["A. it's", 'B. a "hat"', "C. <image 1>", "D. none", "E. all"]
    assert not any("<image 2>" in r.prompt for r in mmmu)


def test_the_processor_leaves_a_fitted_image_alone():
    smart_resize = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl").smart_resize

    @given(st.integers(1, 4000), st.integers(1, 4000), st.integers(56 * 56, 10**6))
    def check(width, height, most):
        if max(width, height) > 200 * min(width, height):
            with pytest.raises(UserError, match="too long"):
                hub.smart_size(width, height, most)
            return
        size = hub.smart_size(width, height, most)
        assert size[::-1] == smart_resize(height, width, hub.TOKEN, hub.MIN_PIXELS, most)
        if max(size) <= 200 * min(size) and hub.MIN_PIXELS <= size[0] * size[1] <= most:
            assert hub.smart_size(*size, most) == size

    check()


# --- photographs ------------------------------------------------------------------------------------------------------


def folder_of(tmp_path, n=N):
    for i in range(n):
        picture(i).save(tmp_path / f"COCO_train2014_{100 + i:012d}.jpg", quality=95)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_a_photograph_is_in_one_split_whatever_its_source():
    splits = [hub.split_of(f"COCO_train2014_{i:012d}.jpg") for i in range(20_000)]
    assert splits == [hub.split_of(str(i)) for i in range(20_000)]
    for split, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        assert abs(splits.count(split) / 20_000 - share) < 0.01


@pytest.mark.parametrize("where", ["hub", "folder"])
def test_puzzles_of_different_splits_share_no_photograph(where, local, tmp_path, monkeypatch):
    if where == "folder":
        monkeypatch.setenv(hub.COCO_FOLDER, str(folder_of(tmp_path)))
    task = hub.new_task(COCO)
    numbers, read = hub._photographs(str(tmp_path) if where == "folder" else None, hub.SOURCES["coco"])
    known = {hub.fitted(read(i), COCO.max_pixels).tobytes(): hub.split_of(numbers[i]) for i in range(N)}
    assert len(known) == N
    for split in ("train", "validation", "test"):
        rows = task.rows(0, 8, split)
        whole = [hub.photograph(hub.rng_for(0, "jigsaw", split, i), split, COCO.max_pixels) for i in range(8)]
        assert {known[image.tobytes()] for image in whole} == {split}
        for row, image in zip(rows, whole, strict=True):
            restored = jigsaw.restore(row.image, row.data["answer"], 3, 3)
            assert restored.tobytes() == jigsaw.trim(image, 3, 3).tobytes()
        assert rows[2].image.tobytes() == task.row(0, 2, split).image.tobytes()
        assert rows[0].prompt == jigsaw.prompt(3, 3, "forward", "full")


def test_a_bad_folder_is_told_in_one_sentence(tmp_path, monkeypatch):
    def complaint(folder, split="train"):
        monkeypatch.setenv(hub.COCO_FOLDER, str(folder))
        with pytest.raises(UserError) as caught:
            hub.new_task(COCO).row(0, 0, split)
        return str(caught.value)

    assert "is no folder" in complaint(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no .jpg" in complaint(tmp_path / "empty")
    (tmp_path / "one").mkdir()
    (tmp_path / "one/000000000001.jpg").write_bytes(b"\xff\xd8 cut off")
    assert "000000000001.jpg cannot be read" in complaint(tmp_path / "one", hub.split_of("1"))
    other = "test" if hub.split_of("1") != "test" else "train"
    assert f"None of the 1 photographs belongs to the split {other}" in complaint(tmp_path / "one", other)


# --- loading -----------------------------------------------------------------------------------------------------------


def test_a_missing_column_is_named(local, copies, monkeypatch):
    monkeypatch.setattr(
        hub, "SOURCES", copies | {"pope": dataclasses.replace(copies["docvqa"], columns=("image", "answer"))}
    )
    with pytest.raises(UserError, match=r"has no column answer \(expected are image, answer\)"):
        hub.probes(COCO)["pope"].row(0, 0)


@pytest.mark.skipif("__import__('os').environ.get('RFTKIT_HUB') == '1'", reason="the network is on")
def test_without_network_the_user_is_told_what_to_do(monkeypatch):
    monkeypatch.delenv(hub.COCO_FOLDER, raising=False)
    missing = {
        name: dataclasses.replace(source, repo=f"nobody/{name}-of-no-one") for name, source in hub.SOURCES.items()
    }
    monkeypatch.setattr(hub, "SOURCES", missing)
    for task in (hub.new_task(COCO), *hub.probes(COCO).values()):
        with pytest.raises(UserError, match=r"nobody/.* cannot be loaded .*: check the network") as caught:
            task.row(0, 0)
        assert "\n" not in str(caught.value)


def test_revisions_are_commits_or_open():
    assert hub.REVISIONS.keys() == {source.repo for source in hub.SOURCES.values()}
    for commit in hub.REVISIONS.values():
        assert commit is None or (len(commit) == 40 and set(commit) <= set("0123456789abcdef"))


@pytest.mark.hub
@pytest.mark.parametrize("name", ["mmstar", "pope"])
def test_the_hub_has_what_we_expect(name):
    row = hub.probes(COCO)[name].row(0, 0)
    assert hub.probes(COCO)[name].score(row.answer, row) == "correct"


# --- scoring ------------------------------------------------------------------------------------------------------------

YES = Row("pope", "", "Yes", key=("yes",))
B = Row("mmstar", "", "B", key=("B",), data={"letters": "ABCD"})
A_OF_9 = Row("mmmu", "", "A", key=("A",), data={"letters": "ABCDEFGHI"})
BOX = Row("refcoco", "", "", data={"box": (100.0, 50.0, 200.0, 150.0)})
TEXT = Row("docvqa", "", "", key=("University of California", "1998"))


@pytest.mark.parametrize(
    ("row", "text", "verdict"),
    [
        (YES, "Yes", "correct"),
        (YES, "yes, there are two.", "correct"),
        (YES, "No, there is none. Yes?", "wrong"),
        (YES, "There is no dog.", "wrong"),
        (YES, "The answer is **yes**.<|im_end|>", "correct"),
        (YES, "I can say neither yes nor no.", "unparseable"),
        (YES, "I know nothing; yesterday maybe.", "unparseable"),
        (YES, "<think> no, or is it? </think> <answer> yes </answer>", "correct"),
        (YES, "<think> yes yes", "unparseable"),
        (B, "B", "correct"),
        (B, "b", "correct"),
        (B, "(b).", "correct"),
        (B, "(B)", "correct"),
        (B, "B. a dog", "correct"),
        (B, "**B**", "correct"),
        (B, "B is correct", "correct"),
        (B, "The answer is B.", "correct"),
        (B, r"$\boxed{B}$", "correct"),
        (B, "A dog is shown, so (B).", "correct"),
        (B, "I see a dog: B", "correct"),
        (B, "C", "wrong"),
        (B, "A", "wrong"),
        (B, "Answer: A because it is", "wrong"),
        (B, "A is correct", "wrong"),
        (B, "Option A looks right", "wrong"),
        (B, "A or B", "unparseable"),
        (B, "A and not B", "unparseable"),
        (B, "The answer is B, not C.", "unparseable"),
        (B, "E", "unparseable"),
        (B, "An X-ray of B's arm, B-type", "unparseable"),
        (B, "a dog", "unparseable"),
        (B, "A dog", "unparseable"),
        (A_OF_9, "I think the answer is A", "correct"),
        (A_OF_9, "I", "wrong"),
        (BOX, '```json\n[\n\t{"bbox_2d": [101, 52, 198, 149], "label": "cat 7"}\n]\n```', "correct"),
        (BOX, "[100,50,200,150]", "correct"),
        (BOX, "The 2 cats: [100.5, 50, 200, 150.25]", "correct"),
        (BOX, "(100,50),(200,150)", "correct"),
        (BOX, "100 50 200 150.", "correct"),
        (BOX, "x1=100, y1=50, x2=200, y2=150", "correct"),
        (BOX, "[100, 50, 200, 100]", "correct"),  # IoU exactly 0.5
        (BOX, "[100, 50, 200, 99]", "wrong"),
        (BOX, "[0.1, 0.05, 0.2, 0.15]", "wrong"),
        (BOX, "[200, 150, 100, 50]", "wrong"),
        (BOX, "[-100, 50, 200, 150]", "wrong"),
        (BOX, '{"bbox_2d": [101, 52, 198', "unparseable"),
        (BOX, "[1, 2, 3, 4, 5]", "unparseable"),
        (BOX, "the left one", "unparseable"),
        (BOX, "1" * 400 + " 2 3 4", "unparseable"),
        (TEXT, "university of  california", "correct"),
        (TEXT, "Universty of Califormia", "correct"),
        (TEXT, "1998", "correct"),
        (TEXT, "1990", "correct"),  # ANLS 0.75
        (TEXT, "1789", "wrong"),
        (TEXT, "I cannot read it", "wrong"),
        (TEXT, "  ", "unparseable"),
    ],
)
def test_verdicts(row, text, verdict):
    assert scorer(row.task)(text, row) == verdict


@pytest.mark.parametrize("row", [YES, B, A_OF_9, BOX, TEXT], ids=lambda row: row.task)
def test_any_text_gets_a_verdict(row):
    pieces = [
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "[",
        "]",
        "(",
        ",",
        "-",
        ".",
        " A ",
        "B",
        "yes",
        "no",
        "12",
        "\u0663",
    ]

    @given(st.text() | st.lists(st.sampled_from(pieces), max_size=40).map("".join))
    def check(text):
        assert scorer(row.task)(text, row) in ("correct", "wrong", "unparseable")

    check()


@pytest.mark.parametrize(
    "text",
    [
        "[",
        "[1,",
        "[ ",
        "1 ",
        "[1 , 2 , 3 , 4 ",
        "A ",
        "I a",
        "no yes ",
        "<answer>",
        "<think></think>",
        "-",
        "9",
        " ",
        "x",
    ],
)
def test_scoring_time_is_linear(text):
    long = text * (600_000 // len(text))
    for row in (YES, B, A_OF_9, BOX, TEXT):
        start = time.perf_counter()
        scorer(row.task)(long, row)
        assert time.perf_counter() - start < 5  # quadratic time would be hours


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_edit_distance_is_the_fewest_edits(a, b):
    @cache
    def fewest(i, j):
        if i == 0 or j == 0:
            return i + j
        return min(fewest(i - 1, j) + 1, fewest(i, j - 1) + 1, fewest(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    assert hub.edit_distance(a, b) == fewest(len(a), len(b))
    alike = max(len(a), len(b)) >= 2 * hub.edit_distance(a, b)
    assert hub._alike(a, b) == alike


def test_iou():
    assert hub.iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert hub.iou((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert hub.iou((0, 0, 2, 2), (2, 0, 4, 2)) == 0
    assert hub.iou((2, 2, 0, 0), (0, 0, 2, 2)) == 0


def test_anls_by_hand():
    truths = ("University of California", "1998")
    assert hub.anls("university of  california", truths) == 1 and hub.anls("1990", truths) == 0.75
    assert hub.anls("19", truths) == 0.5 and hub.anls("1", truths) == 0 == hub.anls(" ", truths)
    rows = [TEXT] * 4
    said = ["1998", "<think> 1998 </think> <answer> 1990 </answer>", "", "I cannot read it"]
    assert hub.published("docvqa", said, rows) == {"anls": 1.75 / 4}
    assert [TEXT.key and scorer("docvqa")(text, TEXT) for text in said] == [
        "correct",
        "correct",
        "unparseable",
        "wrong",
    ]


def test_pope_by_hand():
    """Three yes said, two of them right; of three true ones one was denied; one reply says nothing."""
    no = dataclasses.replace(YES, key=("no",))
    rows, said = [YES, YES, YES, no, no, no], ["Yes", "Yes, two.", "No", "Yes", "no", "maybe"]
    found = hub.published("pope", said, rows)
    assert found == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "yes": 0.5})
    assert hub.published("pope", ["no"] * 6, rows)["f1"] == 0 and hub.published("mmstar", ["A"], [B]) == {}


# --- together with the trainers -------------------------------------------------------------------------------------------


def test_a_run_trains_on_photographs_and_is_tested_on_the_benchmarks(local, small_preset, tmp_path):
    preset = dataclasses.replace(small_preset, images="coco", eval_n=3)
    record, _ = train_sft(preset, 0, steps=1, eval_steps={1}, home=tmp_path)
    (before, after) = record.evals()
    assert list(before["prior"]) == list(after["prior"]) == ["pope", "refcoco", "docvqa", "mme", "mmstar", "mmmu"]
    assert all(sum(count.values()) == 3 for count in after["prior"].values())
    assert set(after["published"]) == {"pope", "docvqa"} and 0 <= after["published"]["docvqa"]["anls"] <= 1
    assert record.versions.keys() >= hub.revisions(preset).keys() and len(hub.revisions(preset)) == 7
    held = recording.held_out(preset)
    assert [len(rows) for rows in held.values()] == [3] * 7
