"""GeneralPoints: the solver against brute force, the verifier against exact arithmetic, any reply gets a verdict."""

import ast
import dataclasses
import itertools
import json
import operator
import time
from collections import Counter
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rftkit import points
from rftkit.config import UserError
from rftkit.points import (
    COSTS,
    OPERATORS,
    PAPER,
    TINY,
    WORDINGS,
    Game,
    Hand,
    answer_text,
    attempts,
    deal,
    feedback,
    parse,
    prompt,
    reachable,
    score,
    solution,
    solvable,
    solve,
    split_of,
    task,
)
from rftkit.scenes import SPLITS

STEPS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
SHORT4 = dataclasses.replace(PAPER, style="short")
HAND = Hand((3, 11, 5), "ten", 12, TINY)
PAPER_HAND = Hand((1, 10, 11, 5), "ten", 24)  # 1 10 10 5
MODES = [(rule, hands) for rule in ("ten", "own") for hands in ("any", "face")]


def rng(seed=0):
    return np.random.default_rng(seed)


def value_of(formula, replace=None):
    """Evaluate by Python's own grammar, with Fractions. None where it divides by zero."""

    def walk(node):
        if isinstance(node, ast.Constant):
            return (replace or {}).get(node.value, Fraction(node.value))
        return STEPS[type(node.op)](walk(node.left), walk(node.right))

    try:
        return walk(ast.parse(formula.strip(), mode="eval").body)
    except ZeroDivisionError:
        return None


def brute_force(numbers, operators):
    """Every fully bracketed formula over every order of the numbers."""
    if len(numbers) == 1:
        return [str(numbers[0])]
    out = []
    for order in set(itertools.permutations(numbers)):
        for cut in range(1, len(order)):
            out += [
                f"({a} {sign} {b})"
                for a in ordered(order[:cut], operators)
                for b in ordered(order[cut:], operators)
                for sign in operators
            ]
    return out


@cache
def ordered(numbers, operators):
    if len(numbers) == 1:
        return [str(numbers[0])]
    return [
        f"({a} {sign} {b})"
        for cut in range(1, len(numbers))
        for a in ordered(numbers[:cut], operators)
        for b in ordered(numbers[cut:], operators)
        for sign in operators
    ]


def said(formula, hand):
    """A reply with this formula and nothing else right about it."""
    return f"; {formula}" if hand.game.style == "short" else json.dumps({"formula": formula})


# ---- games and hands ----


@pytest.mark.parametrize(
    "wrong",
    [
        {"cards": 1}, {"cards": 5}, {"cards": 3.0}, {"cards": True}, {"target": 0}, {"target": "24"}, {"operators": ""},
        {"operators": "++"}, {"operators": "+^"}, {"operators": "-"}, {"operators": "+/"}, {"most": 10}, {"most": 14},
        {"style": "long"}, {"largest": 0}, {"style": "short", "target": 31}, {"style": "short", "largest": 31},
    ],
    ids=str,
)  # fmt: skip
def test_an_impossible_game_is_refused(wrong):
    with pytest.raises(UserError):
        Game(**wrong)


@pytest.mark.parametrize(
    "hand",
    [((1, 2, 3), "ten", 24, PAPER), ((1, 2, 14), "ten", 9, TINY), ((0, 2, 3), "own", 9, TINY),
     ((1, 2, 3), "nine", 9, TINY), ((1, 2, 3), "own", 0, TINY), ((1, 2, 13), "own", 9, Game(3, None, most=12))],
    ids=str,
)  # fmt: skip
def test_an_impossible_hand_is_refused(hand):
    with pytest.raises(UserError):
        Hand(*hand)


def test_a_hand_counts_by_its_rule_and_shows_its_ranks():
    cards = (1, 10, 11, 12, 13)
    for some in itertools.permutations(cards, 4):
        ten, own = Hand(some, "ten", 24), Hand(some, "own", 24, SHORT4)
        assert ten.numbers == tuple(min(r, 10) for r in some) and own.numbers == some
        assert ten.names == tuple({1: "A", 10: "10", 11: "J", 12: "Q", 13: "K"}[r] for r in some)
        assert own.names == tuple({1: "1", 10: "10", 11: "j", 12: "q", 13: "k"}[r] for r in some)


# ---- dealing ----


@pytest.mark.parametrize(("rule", "hands"), MODES)
@pytest.mark.parametrize("game", [PAPER, TINY, Game(2, None), Game(4, None, "+-", style="short"), Game(3, 7, most=11)])
def test_deals_are_solvable_and_a_function_of_the_generator(game, rule, hands):
    for seed in range(20):
        hand = deal(rng(seed), game, rule, hands)
        assert hand == deal(rng(seed), game, rule, hands)
        assert len(hand.ranks) == game.cards and all(1 <= r <= game.most for r in hand.ranks)
        assert hand.target == game.target or (game.target is None and 1 <= hand.target <= game.largest)
        assert hands == "any" or max(hand.ranks) > 10
        formula = solution(hand)
        assert value_of(formula) == hand.target
        assert score(answer_text(hand, formula), hand) == points.Outcome("correct", 5.0, ())


def expected_ranks(game, rule, hands):
    """Exact chances of the first card's rank, hands that make nothing left out."""
    chance = np.zeros(14)
    for ranks in itertools.product(range(1, 14), repeat=game.cards):
        faces = sum(r > 10 for r in ranks)
        weight = 1 if hands == "any" else faces  # each face card may be the forced one
        if weight and reachable(Hand(ranks, rule, 1, game).numbers, game.operators, game.largest):
            chance[ranks[0]] += weight
    return chance[1:] / chance.sum()


@pytest.mark.parametrize(("rule", "hands"), MODES)
def test_ranks_have_the_distribution_that_is_promised(rule, hands):
    n, game = 3000, TINY
    draw = rng(11)
    seen = np.bincount([deal(draw, game, rule, hands).ranks[0] for _ in range(n)], minlength=14)[1:]
    expected = n * expected_ranks(game, rule, hands)
    assert ((seen - expected) ** 2 / expected).sum() < 39.1  # 0.9999 quantile of chi-square, 12 degrees of freedom


def test_face_hands_differ_from_any_hands():
    faces = [np.mean([max(deal(draw, TINY, "own", h).ranks) > 10 for _ in range(500)]) for h, draw in
             (("any", rng(1)), ("face", rng(1)))]  # fmt: skip
    assert 0.45 < faces[0] < 0.65 and faces[1] == 1  # 1 - (10/13)**3 = 0.545


def test_a_drawn_target_is_uniform_over_what_the_hand_makes():
    draw, places = rng(5), []
    for _ in range(3000):
        hand = deal(draw, TINY)
        options = reachable(hand.numbers, "+-", 30)
        assert hand.target in options
        if len(options) == 4:
            places.append(options.index(hand.target))
    seen = np.bincount(places, minlength=4)
    assert seen.sum() > 500 and ((seen - seen.mean()) ** 2 / seen.mean()).sum() < 21.1  # 0.9999, 3 degrees of freedom


def test_no_problem_is_in_two_splits_under_either_rule():
    for rule in ("ten", "own"):
        owner = {}
        for ranks in itertools.combinations_with_replacement(range(1, 14), 3):
            for target in (1, 12, 24):
                hand = Hand(ranks, rule, target, TINY)
                assert split_of(hand) == split_of(dataclasses.replace(hand, rule="ten", ranks=ranks[::-1]))
                problem = (tuple(sorted(hand.numbers)), target)
                assert owner.setdefault(problem, split_of(hand)) == split_of(hand)
        share = {s: n / len(owner) for s, n in Counter(owner.values()).items()}
        assert 0.72 < share["train"] < 0.88 and min(share["validation"], share["test"]) > 0.05


def test_dealing_for_a_split_stays_in_it():
    draw = rng(3)
    for split in SPLITS:
        assert {split_of(deal(draw, PAPER, "own", "face", split)) for _ in range(30)} == {split}
    for wrong in ({"split": "dev"}, {"rule": "12"}, {"hands": "some"}):
        with pytest.raises(UserError):
            deal(draw, **wrong)


def test_a_game_without_solvable_hands_says_so(monkeypatch):
    monkeypatch.setattr(points, "_MAX_DRAWS", 200)
    with pytest.raises(UserError, match="solvable"):
        deal(rng(), Game(2, 900))


def test_a_thousand_hands_take_a_few_seconds():
    draw, start = rng(8), time.process_time()
    for k in range(1000):
        solution(deal(draw, PAPER, "own", "any", SPLITS[k % 3]))
    assert time.process_time() - start < 12  # about two, measured beside other work; 12 leaves room for a slow machine


# ---- solving ----


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 13), min_size=1, max_size=3), st.sampled_from(["+", "+-", "*", "+*", "*/", OPERATORS]))
def test_the_solver_makes_what_brute_force_makes(numbers, operators):
    made = {value_of(f) for f in brute_force(numbers, operators)}
    whole = {int(v) for v in made if v is not None and v.denominator == 1}
    assert set(reachable(numbers, operators, 30)) == {v for v in whole if 1 <= v <= 30}
    for target in range(-3, 31):
        assert bool(solve(numbers, target, operators)) == solvable(numbers, target, operators) == (target in whole)


@pytest.mark.parametrize("numbers", [(1, 2, 3, 4), (2, 3, 5, 12), (3, 5, 7, 13), (1, 4, 6, 11)])
def test_the_solver_finds_each_formula_once(numbers):
    """Formulas that are one function of the cards count as one: told apart by their value at other, random numbers."""
    other = dict(zip(numbers, (Fraction(int(n), 997) for n in rng(2).integers(10**6, 10**9, 4)), strict=True))
    expected = {value_of(f, other) for f in brute_force(numbers, OPERATORS) if value_of(f) == 24}
    found = [value_of(f, other) for f in solve(numbers, 24)]
    assert len(found) == len(set(found)) and set(found) == expected


def test_the_counts_of_solvable_hands_are_the_known_ones():
    """Of the 1820 hands of four numbers 1 to 13, 1362 make 24; of the 715 of 1 to 10, 566 do."""
    for most, hands, known in ((13, 1820, 1362), (10, 715, 566)):
        all_hands = list(itertools.combinations_with_replacement(range(1, most + 1), 4))
        assert len(all_hands) == hands and sum(solvable(h, 24) for h in all_hands) == known


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 13), min_size=2, max_size=4), st.integers(1, 30), st.integers(0, 9))
def test_every_formula_is_right(numbers, target, seed):
    formulas = solve(numbers, target)
    assert len(set(formulas)) == len(formulas)
    for formula in formulas:
        assert value_of(formula) == target
        assert Counter(int(t) for t in formula.split() if t.isdigit()) == Counter(numbers)
    if formulas and len(numbers) == 4:
        hand = Hand(tuple(numbers), "own", target)
        assert solution(hand) == formulas[0] == solution(dataclasses.replace(hand, ranks=tuple(numbers[::-1])))
        assert solution(hand, rng(seed)) in formulas


def test_famous_hands():
    assert solve((3, 3, 8, 8), 24) == ["8 / ( 3 - 8 / 3 )"]
    assert solve((1, 5, 5, 5), 24) == ["5 * ( 5 - 1 / 5 )"]
    assert solve((1, 1, 1, 1), 24) == [] and not solvable((1, 1, 1, 1), 24)
    assert "( 3 + 2 ) * ( 5 - 5 )" in solve((2, 3, 5, 5), 0)  # 0 * y = 0 for every y
    assert solve((3, 10, 5), 12, "+-") == ["10 + 5 - 3"]
    with pytest.raises(UserError, match="solvable"):
        solution(Hand((1, 1, 1, 1), "ten", 24))


def test_random_solutions_vary():
    hand = Hand((1, 2, 3, 4), "ten", 24)
    draw = rng()
    assert len({solution(hand, draw) for _ in range(50)}) > 1


# ---- the prompt ----


def test_the_short_prompt_and_answer_word_for_word():
    assert prompt(HAND) == "rule : j is 10 , q is 10 , k is 10 . cards : 3 j 5 . target 12 . make a formula ."
    own = dataclasses.replace(HAND, rule="own", target=13)
    assert prompt(own).startswith("rule : j is 11 , q is 12 , k is 13 . cards : 3 j 5 .")
    assert prompt(HAND, explained=False) == "cards : 3 j 5 . target 12 . make a formula ."
    assert answer_text(HAND, solution(HAND)) == "numbers 3 10 5 ; 10 + 5 - 3 = 12"


def test_the_full_prompt_says_all_and_the_answer_is_json():
    text = prompt(PAPER_HAND)
    for part in (
        "A, 10, J, 5",
        "24",
        "+ - * / ( )",
        "J, Q and K count as 10, 10 and 10",
        '"cards"',
        '"number"',
        "once",
    ):
        assert part in text
    assert "11, 12 and 13" in prompt(dataclasses.replace(PAPER_HAND, rule="own"))
    assert "count as" not in prompt(PAPER_HAND, explained=False)
    reply = json.loads(answer_text(PAPER_HAND, "( 10 + 10 ) * 1 + 5"))
    assert reply == {"cards": ["A", "10", "J", "5"], "number": [1, 10, 10, 5], "formula": "(10 + 10) * 1 + 5 = 24"}


@pytest.mark.parametrize("game", [TINY, PAPER])
def test_wordings_differ_and_all_state_hand_target_and_rule(game):
    ranks = (2, 11, 13, 4)[: game.cards]
    for rule in ("ten", "own"):
        hand = Hand(ranks, rule, 24, game)
        texts = [prompt(hand, wording=w) for w in range(WORDINGS)]
        assert len(set(texts)) == WORDINGS >= 6
        for w, text in enumerate(texts):
            assert (" " if game.style == "short" else ", ").join(hand.names) in text and "24" in text
            other = dataclasses.replace(hand, rule="own" if rule == "ten" else "ten")
            assert text != prompt(other, wording=w)
            assert prompt(hand, False, w) == prompt(other, False, w) and len(prompt(hand, False, w)) < len(text)
    for wrong in (-1, WORDINGS, 0.5):
        with pytest.raises(UserError):
            prompt(hand, wording=wrong)


def test_the_bundled_model_knows_every_word():
    from transformers import PreTrainedTokenizerFast

    tok = PreTrainedTokenizerFast.from_pretrained(Path(points.__file__).parent / "base")
    texts, draw = [], rng(4)
    for (rule, hands), game in itertools.product(MODES, (TINY, SHORT4)):
        for _ in range(25):
            hand = deal(draw, game, rule, hands)
            texts += [prompt(hand, e, w) for e in (True, False) for w in range(WORDINGS)]
            texts += [answer_text(hand, f) for f in solve(hand.numbers, hand.target, game.operators)[:5]]
    texts += [feedback(points.Outcome("wrong", 0.0, (reason,)), HAND) for reason in COSTS]
    texts.append(feedback(points.Outcome("correct", 5.0, ()), HAND))
    for text in texts:
        ids = tok(text, add_special_tokens=False)["input_ids"]
        assert tok.unk_token_id not in ids and len(ids) == len(text.split()), text
        assert tok.decode(ids) == text  # one space between tokens: replies come back in the same form


# ---- reading and scoring ----

CASES = [  # 1 10 10 5 make 24; formula, reasons
    ("(10 + 10 + 5) - 1 = 24", ()),
    ("10+10+5-1", ()),
    ("((((10)+(10))+((5)))-1)", ()),
    ("10+10+5-1=99", ()),  # what is claimed is not read
    ("10 + 10 + 5 * 1", ("value",)),
    ("10 + 5 - 1 + 9", ("foreign", "unused")),
    ("10 + 10 + 5", ("unused",)),
    ("10 + 10 + 10 - 5 - 1", ("overused",)),
    ("10 + 10 + 5 + 5 - 5 - 1", ("overused",)),
    ("10 + 10 + 5 - 1 + 0", ("foreign",)),
    ("24", ("foreign", "unused")),
    ("10 * 10 + 5 - 1 + 7 - 5 - 5 ", ("foreign",)),
    ("10 +* 10 + 5 - 1", ("grammar",)),
    ("10 + 10 + 5 - 1 +", ("grammar",)),
    ("(10 + 10 + 5 - 1", ("grammar",)),
    ("10 + 10 + 5 - 1)", ("grammar",)),
    ("(10 + 10)(5 - 1)", ("grammar",)),
    ("10 10 + 5 - 1", ("grammar",)),
    ("-1 + 10 + 10 + 5", ("grammar",)),
    ("10 + 10 + 5 + (-1)", ("grammar",)),
    ("() + 10 + 10 + 5 - 1", ("grammar",)),
    ("10 + 10 +", ("grammar", "unused")),
    ("+", ("grammar",)),
    ("10 // 10", ("grammar", "unused")),
    ("5 ** 10", ("grammar", "unused")),
    ("5 / (10 - 10) + 1", ("undefined",)),
    ("1 / (10 / (10 - 10)) + 5", ("undefined", "overused")),
    ("1.0 + 10 + 10 + 5", ("characters",)),
    ("٣ + 10", ("characters",)),
    ("²", ("characters",)),
    ("J + 10 + 5 - A", ("characters",)),
    ("10 × 10", ("characters",)),
    ("1000000000 + 1", ("characters",)),
    ("1" * 400, ("characters",)),
    ("(" * 300, ("grammar",)),
    ("1+" * 300, ("long",)),
    ("=24", ("missing",)),
    ("", ("missing",)),
    ("   ", ("missing",)),
]  # fmt: skip


@pytest.mark.parametrize("game", [PAPER, SHORT4], ids=["full", "short"])
@pytest.mark.parametrize(("formula", "reasons"), CASES, ids=[c[0][:30] for c in CASES])
def test_scores(game, formula, reasons):
    hand = dataclasses.replace(PAPER_HAND, game=game)
    outcome = score(said(formula, hand), hand)
    assert outcome.reasons == reasons
    assert outcome.reward == (sum(COSTS[r] for r in reasons) if reasons else 5)
    no_value = {"missing", "long", "characters", "grammar", "undefined"} & set(reasons)
    assert outcome.verdict == ("unparseable" if no_value else "wrong" if reasons else "correct")


def test_rewards_are_the_papers():
    def reward(formula):
        return score(said(formula, PAPER_HAND), PAPER_HAND).reward

    assert reward("10 + 10 + 5 - 1") == 5
    assert reward("10 + 10 + 5 + 1") == -1
    assert reward("10 + 10 + 5") == -2
    assert reward("10 + 10 + 5 - 1 - 1") == -2
    assert reward("10 + 10 + 5 - 2") == -4
    assert reward("10 + 10 + 5 -") == -5
    assert reward("ten") == -3


def test_the_face_rule_decides_what_is_foreign():
    hand = Hand((3, 11, 5), "own", 13, TINY)
    assert score("; 11 + 5 - 3 = 13", hand).verdict == "correct"
    assert score("; 10 + 5 - 3 = 13", hand).reasons == ("foreign", "unused")
    assert score("; 11 * 5 - 3", hand).reasons == ("characters",)  # no product in this game


@pytest.mark.parametrize(
    ("text", "formula", "numbers"),
    [
        ('{"cards": ["A"], "number": [1, "10", 10.0, true, -5, [], 12345678901], "formula": "1+2 = 3"}', "1+2",
         (1, 10, 0, 0, 0, 0, 0)),
        ('I think {x} so ```json\n{"number": [1, 2], "formula": "1+2"}\n``` done', "1+2", (1, 2)),
        ('{"formula": "9", "number": [9]} no: {"number": [1, 2], "formula": "1+2"}', "1+2", (1, 2)),
        ('"number": [1, \'2\', x],\n"formula" : "1+2=3", and so on', "1+2", (1, 2, 0)),
        ('{"formula": "1\\u002b2"}', "1+2", ()),
        ('by {x}: {"formula": "1\\u002b2"}', "1+2", ()),
        ('{"number": [], "formula": "1+2"', "1+2", ()),
        ('{"formula": 12}', "", ()),
        ('{"formula": ["1+2"]}', "", ()),
        ('{"formula": null, "number": 3}', "", ()),
        ("formula 1+2", "", ()),
        ("{}", "", ()),
        ("", "", ()),
        (None, "", ()),
        ('{"formula": "1+2", "number": ' + "[" * 5000 + "]" * 5000 + "}", "1+2", (0,)),
        ('{"formula": "1+2"}<|im_end|>', "1+2", ()),
    ],
)  # fmt: skip
def test_full_replies_are_read(text, formula, numbers):
    parsed = parse(text, PAPER_HAND)
    assert parsed.formula == formula
    assert parsed.numbers == numbers or "[[[" in str(text)  # deep lists: refused or read as 0, by what json allows


@pytest.mark.parametrize(
    ("text", "formula", "numbers"),
    [
        ("numbers 3 10 5 ; 10 + 5 - 3 = 12", "10 + 5 - 3", (3, 10, 5)),
        ("Numbers 3 10 5 ; 10 + 5 - 3 .", "10 + 5 - 3", (3, 10, 5)),
        ("make it . numbers 1 ; 2 + 2 ; 3 = 3\n4", "3", (1,)),
        ("; 10 + 5 - 3<|im_end|>", "10 + 5 - 3", ()),
        ("numbers 3 j ٣ 1.5 ; 10", "10", (3, 0, 0, 0)),
        ("numbers 3 10 5 , so expression 10 + 5 - 3 = 12", "", (3, 10, 5, 0, 0, 0, 10, 0, 5, 0, 3, 0, 12)),
        ("10 + 5 - 3", "", ()),
        (";", "", ()),
        (None, "", ()),
    ],
)
def test_short_replies_are_read(text, formula, numbers):
    parsed = parse(text, HAND)
    assert (parsed.formula, parsed.numbers) == (formula, numbers)


EXPRESSIONS = st.recursive(
    st.integers(0, 13).map(str),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(OPERATORS), inner).map(" ".join), inner.map(lambda e: f"( {e} )")
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(EXPRESSIONS)
def test_the_verifier_calculates_as_python_does(formula):
    parsed = parse(said(formula, PAPER_HAND), PAPER_HAND)
    assert parsed.value == value_of(formula)
    assert parsed.status == ("undefined" if parsed.value is None else "ok")
    assert parsed.operands == tuple(int(t) for t in formula.split() if t.isdigit())


PIECES = ["{", "}", '"', "\\", "[", "]", "(", ")", "+", "-", "*", "/", "=", ":", ",", ";", " ", "\n", "formula", "numbers",
          '"formula": "', '"number": [', "10", "3", "5", "٣", "²", "\0", "\ud800", "<|im_end|>", "İ"]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(max_size=200), st.lists(st.sampled_from(PIECES), max_size=60).map("".join)))
def test_any_text_gets_a_verdict(text):
    for hand in (HAND, PAPER_HAND):
        parsed, outcome = parse(text, hand), score(text, hand)
        assert (outcome.verdict == "unparseable") == (parsed.value is None)
        assert (outcome.reward == 5) == (outcome.verdict == "correct") == (not outcome.reasons)
        assert all(0 <= n < 10**9 for n in (*parsed.numbers, *parsed.operands))
        assert feedback(outcome, hand)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*"()+-*/", "1", "10", "5"]), max_size=14).map(" ".join))
def test_a_grammar_fault_is_what_python_refuses_or_a_sign_before_a_number(formula):
    try:
        tree = ast.parse(formula.strip(), mode="eval")
        kinds = {type(node) for node in ast.walk(tree)}
        legal = not kinds & {ast.UnaryOp, ast.Call, ast.FloorDiv, ast.Pow, ast.Tuple, ast.Starred}
    except SyntaxError:
        legal = False
    parsed = parse(said(formula, PAPER_HAND), PAPER_HAND)
    assert (parsed.status in ("ok", "undefined")) == legal


FAMILIES = ["(", ")", "()", "((1)", "1", "1+", "1*", "9*", "1/0+", '"', '\\"', "\\", "{", "}", "{}", "[", '{"a":', '"formula"',
            '"formula": "', '"number": [', '"number": [1,', "formula ", "numbers ", "formula numbers ", " ", "\n", "=", ";",
            "٣", "1 ", "; 1+", '{"formula": "1+', "<|im_end|>"]  # fmt: skip


def seconds(text, hand):
    """The best of three."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        score(text, hand)
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.mark.parametrize("hand", [HAND, PAPER_HAND], ids=["short", "full"])
def test_long_nasty_replies_take_linear_time(hand, monkeypatch):
    monkeypatch.setattr(points, "MAX_TEXT", 10**9)  # without the cut that hides it
    monkeypatch.setattr(points, "MAX_FORMULA", 3000)
    heads = ("", "; ", '{"formula": "')
    for piece, head, tail in itertools.product(FAMILIES, heads, ("", '"}')):
        small, large = (head + piece * (n // len(piece)) + tail for n in (10**4, 10**5))
        assert seconds(large, hand) < 30 * seconds(small, hand) + 0.02, (piece, head, tail)


def test_only_the_end_of_a_reply_is_read():
    right = answer_text(HAND, solution(HAND))
    assert score("word " * points.MAX_TEXT + right, HAND).verdict == "correct"
    assert score(right + " word" * points.MAX_TEXT, HAND).verdict == "unparseable"
    deep = "(" * 10**5 + "1" + ")" * 10**5
    for hand in (HAND, PAPER_HAND):
        assert score(said(deep, hand), hand).verdict == "unparseable"


# ---- attempts and feedback ----


def test_attempts_stop_at_the_first_correct_one_or_at_the_limit():
    right, wrong = answer_text(HAND, solution(HAND)), "; 10 + 5 + 3 = 12"
    assert [o.reward for o in attempts([wrong, right, right], HAND)] == [-1, 5]
    assert [o.reward for o in attempts([wrong] * 9, HAND)] == [-1] * 5 + [-1]
    assert attempts([wrong] * 9, HAND)[-1].reasons == ("limit",)
    assert [o.reasons for o in attempts([wrong, wrong, right], HAND, limit=2)] == [("value",), ("value",), ("limit",)]
    assert [o.verdict for o in attempts([wrong] * 4 + [right], HAND)] == ["wrong"] * 4 + ["correct"]
    assert attempts([], HAND) == ()


def test_attempts_ask_for_no_reply_too_many():
    asked = []

    def replies():
        for k in itertools.count():
            asked.append(k)
            yield "; 3"

    attempts(replies(), HAND, limit=3)
    assert asked == [0, 1, 2]


@pytest.mark.parametrize("hand", [HAND, PAPER_HAND], ids=["short", "full"])
def test_feedback_names_each_fault_and_never_the_solution(hand):
    heard = {reason: feedback(points.Outcome("wrong", -1.0, (reason,)), hand) for reason in COSTS}
    assert (
        len({heard[r] for r in ("missing", "grammar", "undefined", "foreign", "overused", "unused", "value", "limit")})
        == 8
    )
    assert str(hand.target) in heard["value"]
    assert all(solution(hand) not in text for text in heard.values())
    both = feedback(points.Outcome("wrong", -4.0, ("foreign", "unused")), hand)
    assert both != heard["foreign"] and both != heard["unused"]
    assert feedback(points.Outcome("correct", 5.0, ()), hand) not in heard.values()


# ---- the task ----


@pytest.mark.parametrize(("rule", "hands"), MODES)
@pytest.mark.parametrize("game", [TINY, PAPER])
def test_task_rows(game, rule, hands):
    cards = task(game, rule, hands)
    assert cards.name == f"points-{rule}-{hands}" and not cards.uses_image
    seen = {}
    for split in SPLITS:
        for row, again in zip(cards.rows(7, 20, split), cards.rows(7, 20, split), strict=True):
            assert row == again and row.image is None and row.task == cards.name
            hand = row.data["hand"]
            assert (hand.rule, split_of(hand)) == (rule, split)
            assert row.prompt == prompt(hand) and cards.score(row.answer, row) == "correct"
            assert cards.score("", row) == "unparseable"
            assert seen.setdefault((tuple(sorted(hand.ranks)), hand.target), split) == split
    assert cards.rows(7, 5) != cards.rows(8, 5)


def test_arms_of_different_wording_share_their_hands():
    one, many, silent = task(TINY), task(TINY, wordings=range(WORDINGS)), task(TINY, explained=False)
    rows = [t.rows(1, 60, "train") for t in (one, many, silent)]
    for a, b, c in zip(*rows, strict=True):
        assert a.data == b.data == c.data and a.answer == b.answer == c.answer
        assert c.prompt == prompt(a.data["hand"], explained=False)
    used = {w for row in rows[1] for w in range(WORDINGS) if row.prompt == prompt(row.data["hand"], wording=w)}
    assert used == set(range(WORDINGS))


@pytest.mark.parametrize(
    "wrong", [{"rule": "x"}, {"hands": "x"}, {"wordings": ()}, {"wordings": (WORDINGS,)}], ids=str
)  # fmt: skip
def test_an_impossible_task_is_refused_at_once(wrong):
    with pytest.raises(UserError):
        task(**wrong)
