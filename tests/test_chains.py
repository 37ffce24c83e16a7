import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from rftkit import chains
from rftkit.chains import Chain, Chains
from rftkit.config import CARDS_DIR, UserError, get_preset
from rftkit.evals import ProbeCount
from rftkit.scenes import SPLITS
from rftkit.tasks import Row

GAMES = (Chains(), Chains((2, 6), 9), Chains((3, 5), 9, 18))
EXAMPLE = Chain((17, -9, 16, 4))


def row_of(chain):
    data = {"value": chain.value, "level": chain.level, "chain": chain}
    return Row("chains", chains.prompt(chain), chains.totals_text(chain), data=data)


EXAMPLE_ROW = row_of(EXAMPLE)
STYLES = (chains.oracle, chains.wordy, chains.rewritten, chains.practised, chains.foreign)


def last(text):
    return chains.stated(text)[-1]


def rows(n=300, game=GAMES[0], split="train", seed=0):
    return chains.task(game).rows(seed, n, split)


def steps_of(text):
    """(a, sign, b, c) of each "a sign b = c"."""
    return [
        (int(a), sign, int(b), int(c)) for a, sign, b, c in re.findall(r"([0-9]+) ([+-]) ([0-9]+) = ([0-9]+)", text)
    ]


def holds(a, sign, b, c):
    return c == (a + b if sign == "+" else a - b)


# ---- chains ----


def test_a_chain_says_its_sum():
    assert EXAMPLE.text == "17 - 9 + 16 + 4"
    assert (EXAMPLE.totals, EXAMPLE.value, EXAMPLE.level) == ((17, 8, 24, 28), 28, 4)
    assert chains.prompt(EXAMPLE) == "what is 17 - 9 + 16 + 4 ?"


@pytest.mark.parametrize("game", GAMES)
def test_drawn_chains_obey_the_game(game):
    drawn = [row.data["chain"] for row in rows(400, game)]
    for chain in drawn:
        assert game.terms[0] <= chain.level <= game.terms[1]
        assert all(1 <= abs(term) <= game.most for term in chain.terms) and chain.terms[0] > 0
        assert min(chain.totals) >= 0 and max(chain.totals) <= game.top
    counts = np.bincount([chain.level for chain in drawn])[game.terms[0] :]
    assert len(counts) == len(game.levels) and counts.min() > 0.7 * 400 / len(game.levels)
    assert any(term < 0 for chain in drawn for term in chain.terms) and max(c.value for c in drawn) > game.top - 6


def test_rows_are_functions_of_seed_split_and_index():
    task = chains.task()
    assert task.row(3, 5, "train") == task.row(3, 5, "train")
    assert len({task.row(seed, 5, split).prompt for seed in (0, 1) for split in SPLITS}) == 6
    row = task.row(0, 0)
    assert row.answer == chains.practised(row) and row.data["level"] == row.data["chain"].level
    assert row.image is None and not task.uses_image and task.name == "chains"


def test_no_chain_is_in_two_splits():
    by_split = {split: {row.data["chain"].terms for row in rows(1500, split=split)} for split in SPLITS}
    assert not by_split["train"] & by_split["test"]
    assert not by_split["train"] & by_split["validation"]
    assert not by_split["test"] & by_split["validation"]
    rng = np.random.default_rng(0)
    anywhere = [chains.split_of(chains.draw(rng)) for _ in range(2000)]
    assert [round(anywhere.count(split) / 2000, 1) for split in ("train", "validation", "test")] == [0.8, 0.1, 0.1]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Chains((1, 3)), "fewest terms must be a whole number from 2 to 9, not 1"),
        (lambda: Chains((4, 3)), "most terms must be a whole number from 4 to 9, not 3"),
        (lambda: Chains(3), "as in \\(2, 5\\), not 3"),
        (lambda: Chains(most=31), "most must be a whole number from 1 to 30, not 31"),
        (lambda: Chains(most=10, top=9), "most must be a whole number from 1 to 9, not 10"),
        (lambda: Chains(top=31), "top must be"),
        (lambda: Chains(most=True), "most must be"),
        (lambda: chains.draw(np.random.default_rng(0), split="exam"), "no split 'exam'"),
        (lambda: chains.weak(1.5), "between 0 and 1, not 1.5"),
        (lambda: chains.wrong_share(-0.1), "between 0 and 1, not -0.1"),
    ],
)
def test_bad_input_is_told(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_an_impossible_split_is_told(monkeypatch):
    monkeypatch.setattr(chains, "_MAX_DRAWS", 200)
    missing = next(s for s in SPLITS if s not in {chains.split_of(Chain(t)) for t in ((1, 1), (1, -1))})
    with pytest.raises(UserError, match="No chain of 2 terms in the split"):
        chains.draw(np.random.default_rng(0), Chains((2, 2), 1), missing)


# ---- demonstrations ----


def test_demonstrations_of_the_example():
    assert chains.oracle(EXAMPLE_ROW) == "17 - 9 = 8 then 8 + 16 = 24 then 24 + 4 = 28"
    assert chains.wordy(EXAMPLE_ROW) == "first 17 - 9 = 8 , then 8 + 16 = 24 , then 24 + 4 = 28"
    assert chains.rewritten(EXAMPLE_ROW) == "17 - 9 + 16 + 4 = 8 + 16 + 4 = 24 + 4 = 28"
    assert chains.practised(EXAMPLE_ROW) == "17 - 9 = 8 ; 8 + 16 = 24 ; 24 + 4 = 28"
    assert chains.foreign(EXAMPLE_ROW) == "start 17 , less 9 = 8 , more 16 = 24 , more 4 = 28"


@pytest.mark.parametrize("shown", [*STYLES, chains.weak(0)])
def test_every_style_of_a_right_demonstration_is_right(shown):
    task = chains.task(GAMES[1])
    for row in rows(game=GAMES[1]):
        assert task.score(shown(row), row) == "correct"
        assert chains.stated(shown(row)) == row.data["chain"].totals[1:]


def test_the_styles_differ_from_the_shortest_sum_on():
    for row in rows():
        assert len({shown(row) for shown in STYLES}) == (5 if row.data["level"] > 2 else 3)


def test_the_rest_of_the_sum_is_written_again():
    for row in rows(game=GAMES[1]):
        text, chain = chains.rewritten(row), row.data["chain"]
        sides = text.split(" = ")
        assert len(text.split()) == chain.level**2 + chain.level - 1 and sides[0] == chain.text
        for i, side in enumerate(sides):
            first, *rest = [int(term) for term in side.replace("+ ", "").replace("- ", "-").split()]
            assert (first, tuple(rest)) == (chain.totals[i], chain.terms[i + 1 :])


def test_the_practised_style_goes_step_by_step():
    for row in rows():
        text, chain = chains.practised(row), row.data["chain"]
        steps = steps_of(text)
        assert len(text.split()) == 6 * (chain.level - 1) - 1 and len(steps) == chain.level - 1
        assert all(holds(*step) for step in steps)
        assert [a for a, *_ in steps] == list(chain.totals[:-1])  # each step goes on from the last total


def test_wrong_demonstrations_err_wherever_a_prefix_may_end():
    differ = []
    for row in (row for row in rows() if row.data["level"] > 2):
        said, right = chains.wrong(3)(row), row.answer
        assert chains.score(said, row.data["chain"]) == "wrong" and 0 <= last(said) <= chains.LARGEST
        longest = int(0.95 * len(right.split()))  # tokens of a prefix
        differ.append(said.split()[:longest] != right.split()[:longest])
    assert sum(differ) > 0.9 * len(differ)  # errors that do not fit into the vocabulary go to the last step


def test_a_weak_oracle_ends_wrong_as_often_as_stated():
    drawn = rows(2000)
    shown = chains.weak(0.25, seed=1)
    texts = [shown(row) for row in drawn]
    found = chains.level_counts(texts, drawn)
    for level, count in found.items():
        stated = 1 - 0.75 ** (level - 1)
        assert abs(1 - count.accuracy - stated) < 4 * (stated * (1 - stated) / count.n) ** 0.5
        assert count.unparseable == 0
    mean_wrong = np.mean([1 - count.accuracy for count in found.values()])
    assert mean_wrong == pytest.approx(chains.wrong_share(0.25), abs=0.04)


def test_a_weak_oracles_errors_carry_on():
    """Each step goes on from what the step before said; a reply ends right just where all its steps are."""
    for row in rows():
        text = chains.weak(0.4)(row)
        steps = steps_of(text)
        assert all(c == a for (*_, c), (a, *_) in zip(steps[:-1], steps[1:], strict=True))
        assert all(0 <= c <= 30 for *_, c in steps)
        assert all(abs(c - (a + b if sign == "+" else a - b)) <= chains.SLIP for a, sign, b, c in steps)
        right = all(holds(*step) for step in steps)
        assert right == (last(text) == row.data["value"]) == (chains.score(text, row.data["chain"]) == "correct")


@pytest.mark.parametrize("shown", [chains.weak(0), chains.weak(0.5), chains.wrong(1)])
def test_wrong_demonstrations_keep_the_terms_in_their_order(shown):
    for row in rows():
        steps = steps_of(shown(row))
        said = (steps[0][0], *(b if sign == "+" else -b for _, sign, b, _ in steps))
        assert said == row.data["chain"].terms


def test_correct_only_shows_the_same_or_nothing():
    drawn = rows(500)
    plain, kept = chains.weak(0.3, seed=2), chains.weak(0.3, seed=2, correct_only=True)
    for row in drawn:
        right = chains.score(plain(row), row.data["chain"]) == "correct"
        assert kept(row) == (plain(row) if right else "")
    assert 0.3 < sum(kept(row) == "" for row in drawn) / 500 < 0.7


def test_every_step_of_a_weak_oracle_may_go_wrong():
    full = Chain((30, -30, 30, -30))  # no room: a slip upwards of 30, or below 0, is no word of the model
    for chain in (full, EXAMPLE, Chain((1, 1))):
        text = chains.weak(1.0)(row_of(chain))
        assert last(text) != chain.value and all(0 <= c <= 30 for *_, c in steps_of(text))


@pytest.mark.parametrize("make", [chains.wrong, lambda seed: chains.weak(0.5, seed)])
def test_demonstrations_depend_on_seed_and_row_alone(make):
    drawn = rows(40)
    assert [make(0)(row) for row in drawn] == [make(0)(row) for row in reversed(drawn)][::-1]
    assert [make(0)(row) for row in drawn] != [make(1)(row) for row in drawn]


def test_all_texts_are_words_of_the_model():
    tokenizer = PreTrainedTokenizerFast.from_pretrained(CARDS_DIR)
    shown = (*STYLES, chains.weak(0.5), chains.wrong())
    for row in rows(200, Chains((2, 6), 20)):
        for text in (row.prompt, *(says(row) for says in shown)):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.unk_token_id not in ids and len(ids) == len(text.split())


# ---- the verifier ----


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("17 - 9 + 16 + 4 = 28 .", (28,)),  # the base's own style
        ("17 - 9 = 8 ; 8 + 16 = 24 ; 24 + 4 = 28", (8, 24, 28)),
        ("17 - 9 + 16 + 4 = 8 + 16 + 4 = 24 + 4 = 28", (8, 24, 28)),
        ("start 17 , less 9 = 8 , more 16 = 24", (8, 24)),
        ("= 28", (28,)),
        ("x = 3 so = 0028 ; that is all .", (3, 28)),
        ("28", ()),  # no "="
        ("", ()),
        ("17 - 9 =", ()),
        ("= 28 ; 24", (28,)),
        ("= 28 = ", (28,)),
        ("= = 28", (28,)),
        ("= - 4", (-4,)),
        ("= -\n4 .", (-4,)),
        ("= 4 -", (4,)),
        ("= - - 4", ()),
        ("= + 4", ()),
        ("= ٢٨", ()),  # digits of another script
        ("= 2 8", (2,)),
        ("= 1234567890", ()),  # no nine of its digits either
        ("= 2٨", (2,)),
    ],
)
def test_the_number_after_each_equals_sign(text, said):
    assert chains.stated(text) == said


@pytest.mark.parametrize(
    ("text", "chain", "verdict"),
    [
        ("17 - 9 + 16 = 24", Chain((17, -9, 16)), "wrong"),  # in one go, though the value is right
        ("17 - 9 = 8", Chain((17, -9)), "correct"),  # of two terms there is but one running total
        ("17 - 9 = 8 ; 8 + 16 = 24", Chain((17, -9, 16)), "correct"),
        ("= 8 = 24 .", Chain((17, -9, 16)), "correct"),  # whatever the words
        ("17 - 9 = 8 ; 8 + 16 = 25", Chain((17, -9, 16)), "wrong"),
        ("17 - 9 = 9 ; 9 + 16 = 24", Chain((17, -9, 16)), "wrong"),  # two errors that cancel
        ("8 + 16 = 24 ; 17 - 9 = 8", Chain((17, -9, 16)), "wrong"),
        ("17 - 9 = 8 ; 8 + 16 = 24 ; 24 = 24", Chain((17, -9, 16)), "wrong"),  # one too many
        ("17 - 9 = 8 ; 8 + 16 =", Chain((17, -9, 16)), "wrong"),
        ("8 ; 24", Chain((17, -9, 16)), "unparseable"),
        ("4 - 8 = - 4", Chain((4, -8)), "correct"),
        ("4 - 8 = 4", Chain((4, -8)), "wrong"),
    ],
)
def test_verdicts_ask_for_every_running_total(text, chain, verdict):
    assert chains.score(text, chain) == verdict
    said = [[{"role": "assistant", "content": text}]]
    assert chains.right(said, chain=[chain], level=[chain.level], trainer_state=None) == [float(verdict == "correct")]


def test_rewards_are_those_of_each_reply_with_its_own_chain():
    drawn = rows(20)
    said = [[{"role": "assistant", "content": chains.oracle(row)}] for row in drawn]
    own, others = [row.data["chain"] for row in drawn], [row.data["chain"] for row in drawn[1:] + drawn[:1]]
    assert chains.right(said, chain=own) == [1.0] * 20
    expected = [float(a.totals[1:] == b.totals[1:]) for a, b in zip(own, others, strict=True)]
    assert chains.right(said, chain=others) == expected and sum(expected) < 3


def nasty(n):
    """Replies of n characters, as a broken policy or a hostile one writes them."""
    found = {part: ("= " + part * n)[:n] for part in ("9", "-", " ", "=", "1 ", "- ", "= ", "= - ")}
    gap = " " * (n - 4)
    return found | {"gap": f"=  {gap}5", "gap to a word": f"=  {gap}x", "minus, gap": f"= -{gap}x"}


def seconds(text):
    """The least of three."""
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        chains.score(text, EXAMPLE)
        taken.append(time.perf_counter() - start)
    return min(taken)


@pytest.mark.parametrize("kind", nasty(10))
def test_the_verifier_takes_linear_time(kind):
    """20 000 characters take a millisecond or a few; with quadratic work they take more than a second."""
    assert seconds(nasty(chains.MAX_TEXT)[kind]) < 0.25
    assert seconds(nasty(10**6)[kind]) < 0.25


def test_of_a_long_reply_the_end_is_read():
    said = chains.oracle(EXAMPLE_ROW)
    assert chains.score(f"= 5 ; {'x ' * chains.MAX_TEXT} {said}", EXAMPLE) == "correct"
    assert chains.score(f"{said} {'x ' * chains.MAX_TEXT}", EXAMPLE) == "unparseable"


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_has_a_verdict(text):
    assert chains.score(text, Chain((3, 4))) in ("correct", "wrong", "unparseable")


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="0123456789 +-;.", max_size=40), st.lists(st.integers(0, 30), min_size=2, max_size=5))
def test_words_without_an_equals_sign_do_not_count(words, totals):
    chain = Chain((totals[0], *(b - a for a, b in zip(totals, totals[1:], strict=False))))
    text = "".join(f"{words} = {total} ;" for total in totals[1:])
    assert chains.score(text, chain) == "correct"
    assert chains.score(f"{text} = 7", chain) == "wrong"


# ---- levels ----


def test_level_counts():
    asked = [row_of(chain) for chain in (Chain((1, 2)), EXAMPLE, Chain((5, -2)))]
    found = chains.level_counts(["1 + 2 = 3", "28", "= 9"], asked)
    assert found == {2: ProbeCount(1, 1, 0), 4: ProbeCount(0, 0, 1)} and list(found) == [2, 4]
    for texts, few in (([], []), (["= 3"], asked)):
        with pytest.raises(UserError, match="one reply a row"):
            chains.level_counts(texts, few)


# ---- the base ----


def test_the_base_gets_short_sums_right_at_times_and_shows_no_running_totals():
    """What the experiment stands on: the base answers in one go, so it has to learn what longer sums are rewarded for."""
    from rftkit.policy import generate, load_policy

    policy = load_policy(get_preset("tiny", model="bundled-cards", max_completion=24))
    asked = rows(400, split="validation")
    texts = [text for seed in (0, 1) for text in generate(policy, asked, temperature=1.0, seed=seed, batch_size=200)]
    found = chains.level_counts(texts, asked * 2)
    assert list(found) == [2, 3, 4, 5]
    assert 0.15 < found[2].accuracy < 0.6
    assert sum(found[level].correct for level in (3, 4, 5)) < 8
    assert sum(len(chains.stated(text)) > 1 for text in texts) < 0.05 * len(texts)
    assert sum(count.unparseable for count in found.values()) < 0.05 * len(texts)
