"""The jigsaw: pictures survive the round trip, replies of any kind are read, rewards pay for what they should."""

import dataclasses
import random
import time

import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rftkit import jigsaw
from rftkit.config import UserError
from rftkit.jigsaw import CONVENTIONS, TAGS, hit_fraction, make_puzzle, parse, reward_jigsaw_r1, reward_p1

GRIDS = st.tuples(st.integers(1, 5), st.integers(1, 5)).filter(lambda g: g != (1, 1))
PIECES = [
    *TAGS,
    "<|im_end|>",
    " ",
    "\n",
    ",",
    "[",
    "1",
    "2",
    "3",
    "4",
    "5",
    " 1 2 3 4 ",
    "-3",
    "1.5",
    "٣",
    "²",
    "½",
    "x",
    "<",
    "\0",
]
SOUP = st.lists(st.sampled_from(PIECES), max_size=30).map("".join)
FOUR = (2, 3, 4, 1)  # its inverse differs


def noise(height, width, seed=0, mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def same(a, b):
    return a.size == b.size and a.mode == b.mode and a.tobytes() == b.tobytes()


def reply(*numbers, think="look"):
    return jigsaw.answer_text(numbers, think)


@st.composite
def puzzles(draw):
    rows, cols = draw(GRIDS)
    image = noise(draw(st.integers(rows, 40)), draw(st.integers(cols, 40)), draw(st.integers(0, 99)))
    return image, rows, cols, draw(st.integers(-5, 10**6)), draw(st.integers(0, 10**6))


# ---- the puzzle ----


@given(puzzles())
def test_join_undoes_cut_and_trims_right_and_bottom(case):
    image, rows, cols, *_ = case
    tiles = jigsaw.cut(image, rows, cols)
    whole = jigsaw.join(tiles, rows, cols)
    assert len(tiles) == rows * cols
    assert same(whole, image.crop((0, 0, image.width // cols * cols, image.height // rows * rows)))
    assert 0 <= image.width - whole.width < cols and 0 <= image.height - whole.height < rows


def test_tiles_are_numbered_row_by_row():
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    assert [t.getpixel((0, 0))[0] for t in jigsaw.cut(image, 2, 3)] == [0, 1, 2, 3, 4, 5]


@given(puzzles(), st.booleans())
def test_restore_undoes_make_puzzle_in_both_conventions(case, allow_identity):
    image, rows, cols, seed, index = case
    made = [
        make_puzzle(image, rows, cols, seed=seed, index=index, convention=c, allow_identity=allow_identity)
        for c in CONVENTIONS
    ]
    forward, inverse = made
    n = rows * cols
    assert same(forward.image, inverse.image) and forward.permutation == inverse.permutation == forward.answer
    assert all(
        forward.answer[inverse.answer[k] - 1] == inverse.answer[forward.answer[k] - 1] == k + 1 for k in range(n)
    )
    for p in made:
        assert sorted(p.answer) == list(range(1, n + 1))
        assert allow_identity or p.answer != tuple(range(1, n + 1))
        assert same(jigsaw.restore(p.image, p.answer, rows, cols, p.convention), jigsaw.trim(image, rows, cols))


def test_the_two_conventions_on_a_picture_one_can_check_by_hand():
    image = Image.fromarray(np.array([[10, 20, 30]], dtype=np.uint8))
    seed = next(s for s in range(99) if make_puzzle(image, 1, 3, seed=s).answer == (2, 3, 1))
    forward = make_puzzle(image, 1, 3, seed=seed)
    assert [forward.image.getpixel((x, 0))[0] for x in range(3)] == [20, 30, 10]  # tile 1 (20) belongs at place 2
    assert make_puzzle(image, 1, 3, seed=seed, convention="inverse").answer == (3, 1, 2)  # place 1 (10): tile 3
    wrong = jigsaw.restore(forward.image, (2, 3, 1), 1, 3, "inverse")
    assert [wrong.getpixel((x, 0))[0] for x in range(3)] != [10, 20, 30]


def test_the_identity_is_drawn_only_on_request():
    image = noise(4, 4)
    assert {make_puzzle(image, 2, 1, seed=s).answer for s in range(300)} == {(2, 1)}
    drawn = [make_puzzle(image, 2, 1, seed=s, allow_identity=True).answer for s in range(300)]
    assert 100 < drawn.count((1, 2)) < 200


def test_all_other_permutations_are_equally_likely():
    image = noise(3, 3)
    drawn = [make_puzzle(image, 3, 1, seed=1, index=i).answer for i in range(2000)]
    assert len(set(drawn)) == 5 and all(320 < drawn.count(a) < 480 for a in set(drawn))  # 400 +- 4.5 sd


def test_a_puzzle_depends_on_seed_and_index_alone():
    first = make_puzzle(noise(30, 30), seed=3, index=4)
    random.seed(99)
    np.random.seed(99)
    assert make_puzzle(noise(30, 30), seed=3, index=4) == first
    assert make_puzzle(noise(90, 60, seed=5), seed=3, index=4).answer == first.answer
    others = {make_puzzle(noise(30, 30), seed=s, index=i).answer for s in range(6) for i in range(6)}
    assert len(others) == 36
    assert first.answer == (6, 3, 7, 8, 4, 1, 9, 5, 2)  # a change here voids every recorded run


def test_global_randomness_is_neither_read_nor_moved():
    before, np_before = random.getstate(), np.random.get_state()
    image = noise(30, 30)
    puzzle = make_puzzle(image, seed=0)
    jigsaw.edge_baseline(puzzle.image, 3, 3)
    reward_p1(reply(*puzzle.answer), puzzle.answer, 3, 3)
    after = np.random.get_state()
    assert random.getstate() == before
    assert np.array_equal(np_before[1], after[1]) and np_before[2:] == after[2:]


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "RGBX", "I;16"]
)
def test_every_image_mode_becomes_rgb(mode):
    image = noise(10, 11, mode=mode) if mode not in ("LAB", "PA", "I;16") else Image.new(mode, (11, 10))
    p = make_puzzle(image, 3, 3, seed=0)
    assert p.image.mode == "RGB" and p.image.size == (9, 9)
    assert same(jigsaw.restore(p.image, p.answer, 3, 3), jigsaw.trim(image, 3, 3))


def test_the_input_image_is_left_alone():
    image = noise(10, 11)
    copy = image.copy()
    make_puzzle(image, seed=0)
    assert same(image, copy)


PICTURE = Image.new("RGB", (9, 9))


@pytest.mark.parametrize(
    "call",
    [
        lambda: jigsaw.cut(PICTURE, 1, 1),
        lambda: jigsaw.cut(PICTURE, 0, 3),
        lambda: jigsaw.cut(PICTURE, 3, -1),
        lambda: jigsaw.cut(PICTURE, -1, -2),
        lambda: jigsaw.cut(PICTURE, 2.0, 2),
        lambda: jigsaw.cut(PICTURE, "3", 3),
        lambda: jigsaw.cut(PICTURE, 10, 2),
        lambda: jigsaw.cut(PICTURE, 2, 10),
        lambda: jigsaw.cut(np.zeros((9, 9, 3)), 3, 3),
        lambda: jigsaw.cut(None, 3, 3),
        lambda: jigsaw.join([PICTURE] * 3, 2, 2),
        lambda: jigsaw.join([PICTURE, Image.new("RGB", (8, 9))], 1, 2),
        lambda: make_puzzle(PICTURE, seed=0.5),
        lambda: make_puzzle(PICTURE, seed=0, index=None),
        lambda: make_puzzle(PICTURE, seed=0, convention="backward"),
        lambda: jigsaw.restore(PICTURE, (1, 1, 2, 3), 2, 2),
        lambda: jigsaw.restore(PICTURE, (1, 2, 3), 2, 2),
        lambda: jigsaw.restore(PICTURE, (0, 1, 2, 3), 2, 2),
        lambda: jigsaw.restore(PICTURE, FOUR, 2, 2, "both"),
        lambda: jigsaw.prompt(1, 1),
        lambda: jigsaw.prompt(3, 3, style="long"),
        lambda: jigsaw.prompt(3, 3, convention=""),
        lambda: parse("", 1, 1),
        lambda: reward_p1("", (1, 2, 3), 2, 2),
        lambda: reward_jigsaw_r1("", (1, 2, 3, 3), 2, 2),
    ],
)
def test_bad_input_is_told_in_one_sentence(call):
    with pytest.raises(UserError) as error:
        call()
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message and ". " not in message


def test_a_truncated_file_is_a_user_error(tmp_path):
    noise(60, 60).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with Image.open(tmp_path / "a.png") as image, pytest.raises(UserError):
        make_puzzle(image, seed=0)


# ---- the prompt and the reply ----


def test_short_prompts_are_word_for_word():
    ask = {"forward": "give the index of each tile .", "inverse": "give the tile of each index ."}
    for convention in CONVENTIONS:
        plain = f"the tiles are shuffled . {ask[convention]}"
        assert jigsaw.prompt(3, 3, convention, "short", think=False) == plain
        assert jigsaw.prompt(3, 3, convention, "short") == plain + " think first ."


@given(GRIDS)
def test_full_prompts_say_grid_numbers_and_tags(grid):
    rows, cols = grid
    texts = {(c, t): jigsaw.prompt(rows, cols, c, think=t) for c in CONVENTIONS for t in (True, False)}
    assert len(set(texts.values())) == 4
    for (_, think), text in texts.items():
        assert str(rows * cols) in text and "<answer> </answer>" in text
        assert ("<think>" in text) == think
        assert " ".join(str(k) for k in range(1, cols + 1)) in text.split("\n")
        assert "{" not in text


def test_answer_text():
    assert jigsaw.answer_text((3, 1, 2)) == "<answer> 3 1 2 </answer>"
    assert jigsaw.answer_text([3, 1, 2], "sky left") == "<think> sky left </think> <answer> 3 1 2 </answer>"
    assert jigsaw.answer_text(np.array([2, 1]), "") == "<think> </think> <answer> 2 1 </answer>"


@given(GRIDS, st.integers(0, 99), st.sampled_from(["", " ", "\n", " <|im_end|>", "<|im_end|>\n"]))
def test_own_answers_parse_as_exact(grid, seed, tail):
    rows, cols = grid
    answer = make_puzzle(noise(5, 5), rows, cols, seed=seed).answer
    with_think, bare = parse(reply(*answer) + tail, rows, cols), parse(jigsaw.answer_text(answer) + tail, rows, cols)
    assert with_think == jigsaw.Parsed(answer, "ok", True, False)
    assert bare == jigsaw.Parsed(answer, "ok", False, True)
    assert reward_p1(reply(*answer) + tail, answer, rows, cols) == jigsaw.Reward(3.0, 1.0, 1.0, 1.0)
    assert reward_jigsaw_r1(reply(*answer) + tail, answer, rows, cols) == jigsaw.Reward(1.5, 1.0, 1.0, 1.0)
    assert reward_jigsaw_r1(jigsaw.answer_text(answer) + tail, answer, rows, cols, think=False).total == 1.5


@pytest.mark.parametrize(
    ("text", "indices", "status"),
    [
        (None, (), "missing"),
        ("", (), "missing"),
        ("2 3 4 1", (), "missing"),
        ("<answer> 2 3 4 1", (), "missing"),
        ("2 3 4 1 </answer>", (), "missing"),
        ("</answer> 2 3 4 1 <answer>", (), "missing"),
        ("<ANSWER> 2 3 4 1 </ANSWER>", (), "missing"),
        ("<answer></answer>", (), "count"),
        ("<answer> the sky is up </answer>", (), "count"),
        ("<answer>2 3 4</answer>", (2, 3, 4), "count"),
        ("<answer>2 3 4 1 1</answer>", (2, 3, 4, 1, 1), "count"),
        ("<answer>[[2, 3],\n[4; 1]]</answer>", FOUR, "ok"),
        ("<answer>{2}(3)\t4\u00a01</answer>", FOUR, "ok"),
        ("<answer>02 3 4 1</answer>", FOUR, "ok"),
        ("<answer>order : 2 3 4 1 </answer>", FOUR, "ok"),
        ("<answer>1 2 3 4</answer> or <answer>2 3 4 1</answer>", FOUR, "ok"),
        ("<answer>2 3 4 1</answer> <answer>1 2", FOUR, "ok"),
        ("<answer>1 <answer>2 3 4 1</answer> 4</answer>", FOUR, "ok"),
        ("<answer>2341</answer>", (2341,), "count"),
        ("<answer>2 3 4 4</answer>", (2, 3, 4, 4), "repeat"),
        ("<answer>2 3 4 0</answer>", (2, 3, 4, 0), "range"),
        ("<answer>2 3 4 5</answer>", (2, 3, 4, 5), "range"),
        ("<answer>5 5 5 5</answer>", (5, 5, 5, 5), "range"),
        ("<answer>-2 3 4 1</answer>", (0, 3, 4, 1), "range"),
        ("<answer>2 3 4 1.5</answer>", (2, 3, 4, 0), "range"),
        ("<answer>2.0 3 4 1</answer>", (0, 3, 4, 1), "range"),
        ("<answer>1e0 3 4 1</answer>", (0, 3, 4, 1), "range"),
        ("<answer>2 ٣ 4 1</answer>", (2, 0, 4, 1), "range"),
        ("<answer>2 3 ４ 1</answer>", (2, 3, 0, 1), "range"),
        ("<answer>² 3 4 1</answer>", (0, 3, 4, 1), "range"),
        ("<answer>½</answer>", (0,), "count"),
        ("<answer>2 3 4 " + "12345678901234567890" * 1000 + "</answer>", (2, 3, 4, 0), "range"),
        ("<answer>2 3 4 " + "0" * 5000 + "1</answer>", (2, 3, 4, 0), "range"),
    ],
)
def test_parse_cases(text, indices, status):
    parsed = parse(text, 2, 2)
    assert (parsed.indices, parsed.status) == (indices, status)


@pytest.mark.parametrize(
    ("text", "template", "answer_only"),
    [
        ("<think> a </think> <answer> 1 2 </answer>", True, False),
        ("\n<think></think><answer></answer> <|im_end|>\n", True, False),
        ("<think>\na\n</think>\n\n<answer>x</answer>", True, False),
        ("<answer> 1 2 </answer>", False, True),
        ("<answer> 1 2 </answer><|im_end|>", False, True),
        ("<answer> 1 2 </answer><|im_end|><|im_end|>", False, False),
        ("so <answer> 1 2 </answer>", False, False),
        ("<answer> 1 2 </answer> .", False, False),
        ("<answer> <think> 1 2 </answer>", False, False),
        ("<answer> 1 <answer> 2 </answer>", False, False),
        ("<think> a </think> so <answer> 1 2 </answer>", False, False),
        ("<think> a </think> <answer> 1 2 </answer> done", False, False),
        ("ok <think> a </think> <answer> 1 2 </answer>", False, False),
        ("<think> a <answer> 1 2 </answer> </think>", False, False),
        ("<think> a <think> b </think> <answer> 1 2 </answer>", False, False),
        ("<think> a </think> </think> <answer> 1 2 </answer>", False, False),
        ("<think> a </think> <answer> 1 2 </answer> <answer> 1 2 </answer>", False, False),
        ("<think> a <answer> </think> 1 2 </answer>", False, False),
        ("<answer> 1 2 </answer> <think> a </think>", False, False),
        ("<think> a </answer> <answer> 1 2 </think>", False, False),
        ("<Think> a </Think> <answer> 1 2 </answer>", False, False),
        ("<think><think> a </think> <answer>", False, False),
        ("<answer>", False, False),
        ("</answer><answer>", False, False),
        ("", False, False),
    ],
)
def test_templates(text, template, answer_only):
    parsed = parse(text, 1, 2)
    assert (parsed.template, parsed.answer_only_template) == (template, answer_only)


# ---- the rewards ----


def check_any_reply(text):
    for rows, cols, answer in ((2, 2, FOUR), (1, 2, (2, 1)), (3, 3, (3, 1, 2, 6, 4, 5, 9, 7, 8))):
        n = rows * cols
        parsed = parse(text, rows, cols)
        assert parsed.status in ("ok", "missing", "count", "repeat", "range")
        assert (parsed.status == "ok") == (sorted(parsed.indices) == list(range(1, n + 1)))
        assert not (parsed.template and parsed.answer_only_template)
        strict, lax = (reward_p1(text, answer, rows, cols, strict=s) for s in (True, False))
        for r in (strict, lax):
            assert 0 <= r.hit <= 1 and r.exact in (0, 1) and r.fmt in (0, 1) and r.exact == (r.hit == 1)
            assert r.total == r.hit + r.exact + r.fmt
        assert strict.hit <= lax.hit and strict.exact <= lax.exact and strict.fmt <= lax.fmt
        for think in (True, False):
            strict, lax = (reward_jigsaw_r1(text, answer, rows, cols, think=think, strict=s) for s in (True, False))
            assert all(r.total == r.hit + 0.5 * r.fmt and 0 <= r.total <= 1.5 for r in (strict, lax))
            assert strict.hit <= lax.hit and strict.fmt <= lax.fmt


@given(st.text())
def test_any_text_is_read_and_scored(text):
    check_any_reply(text)


@settings(max_examples=400)
@given(SOUP)
def test_tag_soup_is_read_and_scored(text):
    check_any_reply(text)


@given(SOUP)
def test_any_answer_block_is_read_and_scored(text):
    check_any_reply(f"<think> </think> <answer> {text} </answer>")


@given(GRIDS, st.integers(0, 99), st.data())
def test_a_constant_answer_earns_nothing_unless_lax(grid, seed, data):
    rows, cols = grid
    n = rows * cols
    answer = make_puzzle(noise(5, 5), rows, cols, seed=seed).answer
    text = reply(*[data.draw(st.integers(1, n))] * n)
    assert reward_p1(text, answer, rows, cols).total == 0
    assert reward_jigsaw_r1(text, answer, rows, cols).total == 0
    assert reward_p1(text, answer, rows, cols, strict=False) == jigsaw.Reward(1 / n + 1, 1 / n, 0.0, 1.0)
    assert reward_jigsaw_r1(text, answer, rows, cols, strict=False) == jigsaw.Reward(1 / n + 0.5, 1 / n, 0.0, 1.0)


@pytest.mark.parametrize(
    ("numbers", "strict", "lax"),
    [
        (FOUR, 1, 1),
        ((1, 2, 3, 4), 0, 0),  # all in place: the shuffled picture itself
        ((2, 3, 1, 4), 0.5, 0.5),
        ((2, 3), 0.5, 0.5),
        ((2, 3, 9, 0), 0.5, 0.5),
        ((2, 3, 4, 4), 0.5, 0.75),
        ((2, 2, 4, 4), 0, 0.5),
        ((2, 3, 4, 1, 1), 0, 1),  # lax cuts the fifth number off
        ((), 0, 0),
    ],
)
def test_hits(numbers, strict, lax):
    text = reply(*numbers)
    assert hit_fraction(parse(text, 2, 2), FOUR) == reward_p1(text, FOUR, 2, 2).hit == strict
    assert reward_p1(text, FOUR, 2, 2, strict=False).hit == lax
    if len(numbers) > 4:
        assert hit_fraction(parse(text, 2, 2), FOUR, allow_repeats=True) == 0


def test_jigsaw_r1_pays_nothing_for_a_wrong_length_or_range():
    for numbers in ((2, 3, 4), (2, 3, 4, 1, 1), (2, 3, 4, 5)):
        for strict in (True, False):
            assert reward_jigsaw_r1(reply(*numbers), FOUR, 2, 2, strict=strict).total == 0


def test_format_is_paid_for_form_and_content_unless_lax():
    hollow = "ok <think></think> <answer> lol </answer> bye"
    assert reward_p1(hollow, FOUR, 2, 2).fmt == 0
    assert reward_p1(hollow, FOUR, 2, 2, strict=False).total == 1
    assert reward_p1(jigsaw.answer_text(FOUR), FOUR, 2, 2) == jigsaw.Reward(2.0, 1.0, 1.0, 0.0)
    doubled = "<think> <think> a </think> " + jigsaw.answer_text(FOUR)  # passes a lazy regex
    assert reward_jigsaw_r1(doubled, FOUR, 2, 2).total == 1
    assert reward_jigsaw_r1(doubled, FOUR, 2, 2, strict=False).total == 1.5
    assert reward_jigsaw_r1(reply(*FOUR), FOUR, 2, 2, think=False).fmt == 0


def test_weights():
    r = reward_p1(reply(2, 3, 1, 4), FOUR, 2, 2, w_hit=2, w_acc=5, w_fmt=0.25)
    assert r == jigsaw.Reward(1.25, 0.5, 0.0, 1.0)
    assert reward_p1(reply(*FOUR), FOUR, 2, 2, w_hit=2, w_acc=5, w_fmt=0.25).total == 7.25
    assert reward_jigsaw_r1(reply(*FOUR), FOUR, 2, 2, w_fmt=0).total == 1


def test_results_cannot_be_changed():
    for item in (make_puzzle(PICTURE, seed=0), parse("", 2, 2), reward_p1("", FOUR, 2, 2)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(item, dataclasses.fields(item)[0].name, None)


# ---- time ----

ADVERSARIAL = {
    "open answers": "<answer>",
    "open thinks": "<think>",
    "closed answers": "</answer>",
    "closed thinks": "</think>",
    "answers with a number": "<answer>1 ",
    "blocks": "<answer>1</answer>",
    "thinks and space": "<think></think>" + " " * 50,
    "digits": "1234567890",
    "numbers": "1 ",
    "superscripts": "² ",
    "letters": "abcdefghij",
    "spaces": " ",
    "brackets": "<",
}


def seconds(text):
    best = float("inf")
    for _ in range(3):  # the least of three: the machine may be busy
        start = time.process_time()
        for strict in (True, False):
            reward_p1(text, FOUR, 2, 2, strict=strict)
            reward_jigsaw_r1(text, FOUR, 2, 2, strict=strict)
        best = min(best, time.process_time() - start)
    return best


@pytest.mark.parametrize(
    "frame", ["{}", "<answer>{}</answer>", "<think></think>{}x", "<think></think>{}<answer>1</answer>"]
)
@pytest.mark.parametrize("unit", ADVERSARIAL.values(), ids=ADVERSARIAL.keys())
def test_time_is_linear(unit, frame):
    small, large = (frame.format(unit * (size // len(unit))) for size in (100_000, 1_000_000))
    # Ten times the text: linear work takes ten times as long on any machine, quadratic work a hundred times.
    assert seconds(large) < 30 * max(seconds(small), 0.002)


# ---- photographs ----


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea"])
@pytest.mark.parametrize("size", [None, 84])
def test_photographs_are_solved_by_their_edges_alone(name, size):
    photo = Image.fromarray(getattr(skimage.data, name)())
    photo = photo if size is None else photo.resize((size, size))
    for rows, cols in ((2, 1), (2, 2), (3, 3), (3, 4)):
        for seed in range(3):
            p = make_puzzle(photo, rows, cols, seed=seed)
            guess = jigsaw.edge_baseline(p.image, rows, cols)
            assert guess == p.answer
            assert same(jigsaw.restore(p.image, guess, rows, cols), jigsaw.trim(photo, rows, cols))


def test_the_sides_of_a_single_column_are_no_seam():
    upper, lower = np.full((8, 8), 60, np.uint8), np.full((8, 8), 60, np.uint8)
    upper[0], upper[1:-1, -1], lower[1:-1, 0] = 80, 255, 0  # the sides clash in the right order, match in the wrong one
    p = make_puzzle(Image.fromarray(np.vstack([upper, lower])), 2, 1, seed=0)
    assert jigsaw.edge_baseline(p.image, 2, 1) == p.answer


def test_edges_say_nothing_where_there_are_none():
    tiles = [Image.new("RGB", (6, 6), "white") for _ in range(9)]  # white frames around grey cores
    for k, tile in enumerate(tiles):
        tile.paste((20 * k, 20 * k, 20 * k), (1, 1, 5, 5))
    framed = jigsaw.join(tiles, 3, 3)
    solved = [make_puzzle(framed, seed=s) for s in range(40)]
    hits = [sum(map(int.__eq__, jigsaw.edge_baseline(p.image, 3, 3), p.answer)) for p in solved]
    assert max(hits) < 9 and sum(hits) / 40 < 2  # chance: 1 tile of 9


@given(puzzles())
@settings(max_examples=30, deadline=None)
def test_the_edge_baseline_always_answers(case):
    image, rows, cols, *_ = case
    assert sorted(jigsaw.edge_baseline(image, rows, cols)) == list(range(1, rows * cols + 1))
