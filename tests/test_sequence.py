import dataclasses
import re
import time
from collections import Counter
from itertools import product

import numpy as np
import pytest

from rftkit import pretrain, recording, scenes, sequence
from rftkit.config import UserError, get_preset
from rftkit.scenes import COLORS, LIGHTS, SHAPES
from rftkit.sequence import LETTERS, NONE, SEVEN
from rftkit.tasks import PROBES, ROWS

FORMS = {(name, t): sequence.tasks_of(t)[name] for name, t in product(SEVEN, (True, False))}
TASKS = sequence.tasks_of(True)


@pytest.fixture
def drawn(monkeypatch):
    """The cells of every scene drawn, in their order."""
    found = []
    draw = scenes.draw
    monkeypatch.setattr(scenes, "draw", lambda cells, rng: found.append(cells) or draw(cells, rng))
    return found


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained("rftkit/base")


def hidden(text):
    """A text with each word of the drawn world, and each number, put down as its kind: what sort of question it is."""
    groups = {
        "SHAPE": SHAPES,
        "COLOR": COLORS,
        "PLACE": (*ROWS, *scenes.GROUNDS, *LIGHTS, *sequence.RELATIONS),
        "NUMBER": ("[0-9]+",),
    }
    for kind, words in groups.items():
        text = re.sub(rf"\b({'|'.join(words)})\b", kind, text)
    return text


@pytest.mark.parametrize(("name", "thinking"), FORMS)
def test_rows_are_functions_of_seed_split_and_index(name, thinking):
    task = FORMS[name, thinking]
    a, b = task.row(3, 5, "train"), task.row(3, 5, "train")
    assert (a.prompt, a.answer, a.key, a.data) == (b.prompt, b.answer, b.key, b.data)
    assert (np.asarray(a.image) == np.asarray(b.image)).all() and a.image.size == (84, 84)
    assert len({(r.prompt, r.answer, r.image.tobytes()) for r in task.rows(3, 10)}) == 10
    other = FORMS[name, not thinking].row(3, 5, "train")  # the same question in the other form
    assert (
        other.data == {**a.data, "thinking": int(not thinking)}
        and (np.asarray(a.image) == np.asarray(other.image)).all()
    )


@pytest.mark.parametrize(("name", "thinking"), FORMS)
def test_the_reference_answer_scores_correct_and_others_do_not(name, thinking):
    task = FORMS[name, thinking]
    rows = task.rows(0, 40)
    assert all(task.score(r.answer, r) == "correct" for r in rows)
    assert all(set(r.data) == {"target", "name", "thinking"} and r.data["name"] == name for r in rows)
    assert all(r.data["target"] in sequence.ANSWERS and " ".join(r.key) == r.data["target"] for r in rows)
    assert all(sequence.form_ok(r.answer) == thinking for r in rows)
    assert all(r.prompt.endswith(sequence.THINK if thinking else sequence.SHORT) for r in rows)
    swapped = [
        task.score(b.answer, a) for a, b in zip(rows, rows[1:], strict=False) if a.data["target"] != b.data["target"]
    ]
    assert swapped and set(swapped) == {"wrong"}
    assert all(
        task.score(text, r) == "unparseable"
        for r in rows
        for text in ("", "yes , there is", "<think> red </think>", "1 2 3")
    )


@pytest.mark.parametrize("name", SEVEN)
def test_no_layout_is_in_two_splits(name, drawn):
    for split in scenes.SPLITS:
        drawn.clear()
        rows = [TASKS[name].row(0, i, split) for i in range(20)]
        assert len(drawn) == len(rows) == 20 and {scenes.split_of(cells) for cells in drawn} == {split}


def test_every_word_is_in_the_vocabulary(tokenizer):
    rows = [r for task in FORMS.values() for r in task.rows(1, 40, "train")] + [
        sequence.form_row(0, i) for i in range(200)
    ]
    ids = tokenizer([f"{r.prompt} {r.answer}" for r in rows])["input_ids"]
    assert all(tokenizer.unk_token_id not in some for some in ids)
    assert max(len(tokenizer(r.answer)["input_ids"]) for task in FORMS.values() for r in task.rows(1, 40)) < 30


@pytest.mark.parametrize("name", SEVEN)
def test_no_answer_can_be_told_from_the_text(name):
    rows = TASKS[name].rows(0, 400, "train")
    counts = Counter(r.data["target"] for r in rows)
    assert max(counts.values()) < 0.6 * len(rows) and len(counts) >= 3
    by_prompt = {}
    for r in rows:  # lettered choices stand in any order, and what they say varies: the question is what comes before
        by_prompt.setdefault(r.prompt.partition(" ? ")[0], []).append(r.data["target"])
    often = [targets for targets in by_prompt.values() if len(targets) >= 8]
    assert often and all(len(set(targets)) > 1 for targets in often)


def test_the_letter_of_the_right_choice_is_no_hint():
    rows = TASKS["science"].rows(0, 600, "train")
    letters = Counter(r.data["target"] for r in rows)
    assert all(0.27 < letters[letter] / 600 < 0.4 for letter in LETTERS)
    colors = Counter(re.search(rf" {r.data['target']} (\w+)", r.prompt)[1] for r in rows)
    assert all(0.11 < colors[color] / 600 < 0.23 for color in COLORS)
    assert all(len(set(re.findall(r" [jkq] (\w+)", r.prompt))) == len(LETTERS) for r in rows)


# --- the answers, worked out again from the layout ----------------------------------------------------------------------------


def asked(name, drawn, n=60):
    drawn.clear()
    rows = TASKS[name].rows(5, n, "train")
    return zip(rows, drawn, strict=True)


def one(cells, shape):
    (cell,) = [c for c in cells if c.shape == shape]
    return cell


def test_science_names_the_letter_of_the_color(drawn):
    for row, cells in asked("science", drawn):
        shape = re.search(r"the (\w+) \?", row.prompt)[1]
        assert f" {row.data['target']} {one(cells, shape).color} " in row.prompt


def test_scenetext_reads_the_big_or_the_small_sign(drawn):
    words = set()
    for row, cells in asked("scenetext", drawn):
        signs = [c.digit for c in cells if c.digit is not None]
        word = re.match(r"which (big|small) number is on the sign \?", row.prompt)[1]
        words.add(word)
        assert len(signs) == 2 and row.data["target"] == str({"big": max, "small": min}[word](signs))
        assert set(re.findall(r"\d+", row.answer)) == set(map(str, signs))
    assert words == {"big", "small"}


def test_unanswerable_says_none_for_what_is_not_there_or_not_to_be_seen(drawn):
    seen = Counter()
    for row, cells in asked("unanswerable", drawn, 200):
        shape = re.search(r"the (\w+) ", row.prompt)[1]
        there = [c for c in cells if c.shape == shape]
        seen[row.data["target"] == NONE, bool(there), sharp(row.image)] += 1
        if row.data["target"] != NONE:
            assert one(cells, shape).color == row.data["target"]
    assert set(seen) == {(False, True, True), (True, True, False), (True, False, True)}
    assert 0.4 < seen[False, True, True] / 200 < 0.6


def sharp(image):
    """Whether neighbouring pixels differ by noise at least: a blur of several pixels leaves none."""
    return float(np.abs(np.diff(np.asarray(image, float), axis=1)).mean()) > 2


def test_compose_asks_for_the_one_thing_that_lies_there(drawn):
    for row, cells in asked("compose", drawn):
        way, shape = re.match(r"(left|right|above|below)(?: of)? the (\w+) :", row.prompt).groups()
        here = one(cells, shape).place
        line = {
            "left": range(here // 3 * 3, here), "right": range(here + 1, here // 3 * 3 + 3),
            "above": range(here % 3, here, 3), "below": range(here + 3, 9, 3),
        }[way]  # fmt: skip
        assert [c.color for c in cells if c.place in line and c.color] == [row.data["target"]]


def test_geometry_counts_steps_along_rows_and_columns(drawn):
    for row, cells in asked("geometry", drawn):
        a, b = (divmod(one(cells, shape).place, 3) for shape in re.findall(r"the (\w+) ", row.prompt))
        assert int(row.data["target"]) == abs(a[0] - b[0]) + abs(a[1] - b[1]) > 0


def test_texture_tells_whether_and_where_a_cell_is_checked(drawn):
    answers = Counter()
    for row, cells in asked("texture", drawn, 120):
        # a checked cell's neighbouring squares differ by far more than a plain one's
        gray = np.asarray(row.image, float).mean(2)
        found = [c for c in cells if _is_checked(gray, c.place)]
        target = row.data["target"]
        answers[target if target in ("yes", "no") else "where"] += 1
        if target == "no":
            assert not found
        else:
            (cell,) = found
            assert cell.color and target in ("yes", f"{ROWS[cell.place // 3]} {LIGHTS[cell.place % 3]}")
    assert set(answers) == {"yes", "no", "where"}


def _is_checked(gray, place):
    y, x = divmod(place, 3)
    squares = gray[y * 28 : y * 28 + 27, x * 28 : x * 28 + 27].reshape(9, 3, 9, 3).mean((1, 3))
    odd = np.add.outer(np.arange(9), np.arange(9)) % 2 == 1
    return squares[odd].mean() > 1.7 * squares[~odd].mean()


def test_clutter_counts_in_a_crowd(drawn):
    levels = Counter()
    for row, cells in asked("clutter", drawn, 120):
        words = re.match(r"how many (.*) objects", row.prompt)[1].split()
        assert int(row.data["target"]) == sum(set(words) <= set(c.words) for c in cells)
        assert sum(c.color is not None for c in cells) >= 6
        levels[len(words)] += 1
    assert set(levels) == {1, 2}


# --- scoring ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<think> the star is red . </think> <answer> red </answer>", "red"),
        ("<answer> red </answer> <answer> Blue . </answer>", "blue"),
        ("<answer></answer>", None),
        ("<think> red </think>", None),
        ("<answer> red", None),
        ("red", "red"),
        (" Top Left .", "top left"),
        ("the star is red .", "the star is red"),
        ("", None),
        (" . ", None),
        ("3 < 4", "3 4"),
    ],
)
def test_extract_reads_the_answer_block_or_the_whole_text(text, said):
    assert sequence.extract(text) == said


def test_extracting_takes_linear_time():
    for nasty in ("<answer>", "<think>a", " ", "<answer> a </answer>", "<think> </think>"):
        start = time.perf_counter()
        sequence.extract(nasty * 20_000), sequence.form_ok(nasty * 20_000)
        assert time.perf_counter() - start < 1


def test_rewards_are_of_answer_and_form():
    said = [
        "<think> a </think> <answer> red </answer>",
        "red",
        "<think> a </think> <answer> blue </answer>",
        "<think> red",
        "",
    ]
    completions = [[{"role": "assistant", "content": text}] for text in said]
    assert sequence.accuracy(completions, ["red"] * 5, name=["x"] * 5) == [0.9, 0.9, 0, 0, 0]
    assert sequence.form(completions, target=["red"] * 5) == [0.1, 0, 0.1, 0, 0]
    assert not sequence.form_ok("<answer> red </answer> <think> a </think>") and not sequence.form_ok(said[0] + " x")


# --- the practised form ---------------------------------------------------------------------------------------------------------


def test_form_rows_practise_old_skills_in_both_forms():
    rows = [sequence.form_row(0, i) for i in range(400)]
    again = sequence.form_rows(0, 400)[7]
    assert (again.prompt, again.answer) == (rows[7].prompt, rows[7].answer)
    kinds = Counter((r.task, r.data.get("thinking", "plain")) for r in rows)
    assert {task for task, _ in kinds} == {*PROBES, "absent", "letters", "at", "open"}
    assert {form for _, form in kinds} == {0, 1, "plain"} and kinds["lookup", 0] == 0
    worded = [r for r in rows if "thinking" in r.data]
    assert all(
        sequence.score(r.answer, r) == "correct" and sequence.form_ok(r.answer) == r.data["thinking"] for r in worded
    )
    plain = [r for r in rows if "thinking" not in r.data]
    assert all(PROBES[r.task].score(r.answer, r) == "correct" for r in plain)
    said = {r.data["target"] for r in worded}
    assert said >= {NONE, "yes", "no", *LETTERS, *COLORS}  # no task needs a word that the base never says


def test_no_question_of_the_seven_is_practised_or_pretrained():
    new = {
        name: {hidden(r.prompt) for thinking in (True, False) for r in FORMS[name, thinking].rows(0, 60, "train")}
        for name in SEVEN
    }
    old = {hidden(sequence.form_row(0, i).prompt) for i in range(400)} | {
        hidden(pretrain.mixture_row(0, i).prompt) for i in range(400)
    }
    assert len(old) > 30
    for name, prompts in new.items():
        assert not prompts & old, name
    every = [prompt for prompts in new.values() for prompt in prompts]
    assert len(every) == len(set(every))  # and no two tasks ask the same


def test_open_questions_have_several_answers(drawn):
    rows = [r for i in range(400) if (r := sequence.form_row(0, i)).task == "open"]
    by_question = {}
    for r in rows:
        by_question.setdefault(hidden(r.prompt).split(" ? ")[0], set()).add(r.data["target"])
    assert len(by_question) == 6 and all(len(answers) > 1 for answers in by_question.values())
    assert by_question["is there one"] == {"yes", "no"}


def test_the_form_base_is_a_run_with_weights(small_preset, tmp_path):
    plan = sequence.FormPlan(steps=2, asked=2)
    before = sequence.form_base(small_preset, tmp_path, plan)
    last = before.record.evals()[-1]
    assert (last["step"], last["new_n"]) == (2, 14) and set(last["prior"]) == set(PROBES) and 0 <= last["direct"] <= 1
    assert (
        before.weights == recording.weights_at(recording.run_folder(before.record, tmp_path), 2)
        and before.weights.is_dir()
    )
    stamp = (before.weights / "config.json").stat().st_mtime_ns
    assert sequence.form_base(small_preset, tmp_path, plan).weights.joinpath("config.json").stat().st_mtime_ns == stamp
    other = sequence.form_base(small_preset, tmp_path, sequence.FormPlan(steps=2, asked=2, letters=0.2))
    assert other.weights != before.weights
    with pytest.raises(UserError, match="knows the form"):
        sequence.form_base(get_preset("qlora"), tmp_path)


def test_every_tier_has_the_seven_in_the_papers_order(small_preset):
    assert tuple(sequence.tasks(small_preset)) == SEVEN == tuple(sequence.tasks(get_preset("qlora")))


def test_another_wording_is_another_base(small_preset, tmp_path, monkeypatch):
    plan = sequence.FormPlan(steps=2, asked=2)
    before = sequence.form_base(small_preset, tmp_path, plan)
    drawn = sequence._open
    monkeypatch.setattr(sequence, "_open", lambda rng: dataclasses.replace(drawn(rng), question="look ."))
    assert sequence.form_base(small_preset, tmp_path, plan).weights != before.weights
