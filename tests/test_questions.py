"""The question bank: sheets are repeatable and differ, every answer is worked out a second time, by other means."""

import itertools
import math
import re
from collections import Counter
from fractions import Fraction
from statistics import mean, stdev

import numpy as np
import pytest

from rftkit import questions
from rftkit.__main__ import main
from rftkit.config import UserError
from rftkit.scenes import rng_for

DRAWS = 40
FACES = {"ten": 10, "own": 0}  # what J, Q, K count: 10, or their rank


def made(kind):
    return [kind(rng_for("test", kind.__name__, i)) for i in range(DRAWS)]


# --- the answers once more ----


def letters(q):
    return tuple(q.given["original"].index(x) + 1 for x in q.given["shown"])


def inverse(q):
    return tuple(i + 1 for i in np.argsort(q.given["forward"]))


def fixed_twice(q):
    forward = q.given["forward"]
    return sum(forward[x - 1] == i for i, x in enumerate(forward, start=1))


def guessed(q):
    """Right ones counted over all orders; for nine, by inclusion and exclusion."""
    n, k = q.given["n"], q.given["k"]
    if n < 9:
        orders = list(itertools.permutations(range(n)))
        return Fraction(sum(sum(a == b for a, b in enumerate(order)) == k for order in orders), len(orders))
    return Fraction(1, math.factorial(k)) * sum(Fraction((-1) ** j, math.factorial(j)) for j in range(n - k + 1))


def paid(text, answer):
    """Hit + exact + format by the rules that the question tells."""
    blocks = re.findall(r"<answer>(.*?)</answer>", text)
    said = [int(x) for x in blocks[-1].split()] if blocks else []
    hits = [a == b and said.count(a) == 1 for a, b in zip(said, answer, strict=False)]
    form = re.fullmatch(r"<think> [^<]* </think> <answer> [^<]* </answer>", text) and sorted(said) == sorted(answer)
    return sum(hits) / len(answer) * (len(said) <= len(answer)) + (tuple(said) == tuple(answer)) + bool(form)


def paid_each(q):
    return [paid(text, q.given["answer"]) for text in q.given["replies"]]


def best_paid(q):
    return f"`{max(q.given['replies'], key=lambda text: paid(text, q.given['answer']))}`"


def standardised(q):
    rewards = q.given["rewards"]
    return [(r - mean(rewards)) / stdev(rewards) for r in rewards]


def of_two_values(q):
    n = q.given["size"]
    share = q.given["right"] / n
    spread = math.sqrt(n * share * (1 - share) / (n - 1))
    return [[1 - share, -share], [(1 - share) / spread, -share / spread]]


def drops(q):
    found = []
    for _, new, prior in q.given["curves"].values():
        i = next(i for i, x in enumerate(new) if x >= q.given["target"])
        part = (q.given["target"] - new[i - 1]) / (new[i] - new[i - 1])
        found.append(100 * (prior[0] - prior[i - 1] - part * (prior[i] - prior[i - 1])))
    return found


def interval(q):
    gaps = [x - y for x, y in zip(q.given["a"], q.given["b"], strict=True)]
    half = 4.302653 * stdev(gaps) / math.sqrt(3)
    return [mean(gaps), mean(gaps) - half, mean(gaps) + half]


def perplexities(q):
    some = (q.given["short"], q.given["long"])
    return [*(math.prod(x) ** (-1 / len(x)) for x in some), *(-math.log(math.prod(x)) for x in some)]


def steps(q):
    u, v, lr = q.given["u"], q.given["v"], q.given["lr"]
    return [
        lr * sum(a * b for a, b in zip(u, v, strict=True)),
        lr * sum((a > 0) * b - (a < 0) * b for a, b in zip(u, v, strict=True)),
    ]


def squares(q):
    return sum(((i == q.given["right"]) - p) ** 2 for i, p in enumerate(q.given["chances"]))


def kept(q):
    counts = {"correct only": [], "RIF, 1 to 4 of 4": [], "RIF, 1 to 3 of 4": []}
    for group in q.given["groups"]:
        correct = [name for name in group if name in ("right", "right, other words")]
        n = len(set(correct))
        for rule, found in zip(counts, (n, n, n if len(correct) < 4 else 0), strict=True):
            counts[rule].append(found)
    return counts


def weighed(q):
    p, n = q.given["chances"], 4
    rare = min(p)
    return [sum(-math.log(x) for x in p) / n, sum(-x * math.log(x) for x in p) / n, 1 - rare, rare - rare**2]


def counted(ranks, rule):
    return [rank if rank <= 10 else FACES[rule] or rank for rank in ranks]


def worked_out(formula):
    """(numbers, value or None) of a sum, read from left to right."""
    words = formula.split()
    numbers = [int(word) for word in words if word.isdigit()]
    if words[1::2] != [word for word in words if word in "+-"] or len(words) % 2 == 0:
        return numbers, None
    return numbers, numbers[0] + sum(n if sign == "+" else -n for sign, n in zip(words[1::2], numbers[1:], strict=True))


def makes(numbers, target):
    every = itertools.product(itertools.permutations(numbers), itertools.product((1, -1), repeat=2))
    return any(a + s * b + t * c == target for (a, b, c), (s, t) in every)


def solved(q):
    """The formulas are checked; whether the other rule solves it is found by going through all sums."""
    numbers = counted(q.given["ranks"], q.given["rule"])
    for formula in q.value[0]:
        used, value = worked_out(formula)
        assert sorted(used) == sorted(numbers) and value == q.given["target"]
    assert bool(q.value[0]) == makes(numbers, q.given["target"])
    other = counted(q.given["ranks"], "own" if q.given["rule"] == "ten" else "ten")
    return [q.value[0], makes(other, q.given["target"])]


def fault_sum(formula, q):
    numbers, (used, value) = Counter(counted(q.given["ranks"], q.given["rule"])), worked_out(formula)
    cost = 3 * (value is None) + 2 * bool(Counter(used) - numbers) + 2 * bool(numbers - Counter(used))
    return -cost if cost else 5 if value == q.given["target"] else -1


def fault_sums(q):
    return [fault_sum(formula, q) for formula in q.given["formulas"]]


def accepted(q):
    right = [x for x in q.choices if fault_sum(x.strip("`").partition(" =")[0], q) == 5]
    assert len(right) == 1
    return right[0]


def zeros(q):
    n, small, large = (q.given[key] for key in ("n", "small", "large"))
    c = small / n
    return [0, 2 * large - n, math.degrees(math.acos(2 * math.sqrt(c * (1 - c))))]


def normals(q):
    a, b = (np.cross(*plane) for plane in np.array(q.given["planes"]))
    return [0.0, math.degrees(math.acos(abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b)))]


def root(q):
    return math.dist(q.given["before"], q.given["after"])


def scheduled(q):
    angle = math.pi * q.given["step"] / q.given["steps"]
    low = 0.05 + 0.9 * math.cos(angle / 2) ** 2  # half-angle: (1 + cos x) / 2
    share = low + q.given["quarter"] * (0.95 - low)
    return [low, (low + 0.95) / 2, math.floor(share * q.given["tokens"] + 1e-9)]


def of_prefix(q):
    m = mean(q.given["free"])
    return [q.given["last"] - mean([*q.given["free"], q.given["last"]]), q.given["last"] - m, -m]


def three_highest(q):
    tokens = [(h, row, i) for row, name in enumerate(("first", "second")) for i, h in enumerate(q.given[name], start=1)]
    best = sorted(tokens)[-3:]
    return [sorted(i for _, row, i in best if row == wanted) for wanted in (0, 1)]


def drawn_without(q):
    n, c, k = (q.given[key] for key in "nck")
    hands = list(itertools.combinations([1] * c + [0] * (n - c), k))
    return [sum(map(any, hands)) / len(hands), 1 - (1 - c / n) ** k]


def forgotten(q):
    rows = q.given["matrix"]
    gaps = [rows[-1][j] - max(row[j] for row in rows) for j in range(len(rows))]
    return [mean(rows[-1]), sum(gaps) / len(rows), sum(gaps) / (len(rows) - 1)]


def others(q):
    rewards = q.given["rewards"]
    return [r - mean(rewards[:i] + rewards[i + 1 :]) for i, r in enumerate(rewards)]


def best_minus_last(p, own):
    """Sum over tasks of last minus best, row 0 left out; with `own` from the task's own training on."""
    last = len(p) - 1
    return sum(p[last][j] - max(p[t][j] for t in range(1, last + 1) if t > j or not own) for j in range(last))


def read_four_ways(q):
    p = q.given["matrix"]
    sums = [best_minus_last(p, own) for own in (False, True)]
    early = [j for j in range(len(p) - 1) if max(row[j] for row in p[1:]) > max(row[j] for row in p[j + 1 :])]
    assert early == [q.given["early"] - 1]  # else both readings are one, or part at a second place
    return [*(x / n for x in sums for n in (len(p) - 1, len(p) - 2)), early[0] + 1]


def learnt_and_lost(q):
    found = []
    for name in "AB":
        p = q.given[name]
        gain, fm = mean(p[j + 1][j] - p[j][j] for j in range(3)), best_minus_last(p, False) / 3
        found += [gain, fm, -100 * fm / gain]
    assert (found[1] < found[4]) == (found[2] < found[5])  # the better FM has the worse price
    return found


def of_form(q):
    """By counting: for two values the deviations depend on the share alone."""
    n, share = q.given["size"], q.given["bad"] / q.given["size"]
    spread = math.sqrt(share * (1 - share) * n / (n - 1))
    tenth = n / (n - 1) / 10
    return [[share / spread, (share - 1) / spread], [share * tenth, (share - 1) * tenth]]


def tried(q):
    right = q.given["right"]
    kept_ = [[i for i, c in enumerate(right, start=1) if 0 < c < most] for most in (9, 8)]
    shares = [100 * len(some) / len(right) for some in kept_]
    assert shares[0] > shares[1]  # or the two rules could not be told apart
    return [*kept_, *shares, math.ceil(Fraction(q.given["updates"] * len(kept_[0]), len(right)))]


def same_number_and_passes(q):
    n, k, updates = (q.given[key] for key in ("n", "k", "updates"))
    fair = []
    for choice in q.choices:
        amount, steps_ = map(int, re.findall(r"\d+", choice))
        if amount == k and 0 <= steps_ - updates * k / n < 1:  # as many, and as often
            fair.append(choice)
    assert len(fair) == 1
    return fair[0]


def risks(q):
    p, f = q.given["p"], q.given["F"]
    gold, variance = (1 - p) ** 2 * f, p * (1 - p)
    exact = variance * ((1 - p) ** 3 + p**3) * f
    return [gold, variance, gold * variance, exact, ((1 - p) ** 3 + p**3) / (1 - p) ** 2]


def divergences(q):
    def one(p, r):
        return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, r, strict=True))

    return [one(q.given["base"], q.given["tuned"]), one(q.given["tuned"], q.given["base"])]


def nearest_oracle(q):
    """No other policy that is never wrong comes as near, tried on a grid."""
    some = q.given["base"][: q.given["right"]]
    told, least = q.value[:-1], q.value[-1]
    grid = [w for w in itertools.product(range(1, 40), repeat=len(some)) if sum(w) == 40]
    others_ = [sum(a / 40 * math.log(a / 40 / b) for a, b in zip(w, some, strict=True)) for w in grid]
    assert min(others_) >= least - 1e-9
    assert least == pytest.approx(sum(a * math.log(a / b) for a, b in zip(told, some, strict=True)))
    return [*(x / sum(some) for x in some), math.log(1 / sum(some))]


def nats(q):
    all_tokens = list(itertools.chain(*q.given["kls"]))
    return [sum(all_tokens) / len(q.given["kls"]), mean(all_tokens)]


def without_each(q):
    (a, b, c), (ya, yb, yc) = q.given["x"], q.given["y"]
    told = [yb, ya + (yc - ya) * (b - a) / (c - a), yb]
    mean_of_others = [(yb + yc) / 2, (ya + yc) / 2, (ya + yb) / 2]

    def off(said):
        return math.sqrt(mean((y - s) ** 2 for y, s in zip((ya, yb, yc), said, strict=True)))

    return [*told, off(told), off(mean_of_others), 1 - off(told) ** 2 / off(mean_of_others) ** 2]


AGAIN = {
    "read_letters": letters, "other_convention": inverse, "mixed_up": fixed_twice, "blind_guess": guessed,
    "jigsaw_rewards": paid_each, "best_paid": best_paid, "grpo_group": standardised, "binary_group": of_two_values,
    "matched_drop": drops, "three_seeds": interval, "two_perplexities": perplexities, "first_order": steps,
    "residual_size": squares, "kept_replies": kept, "dft_weights": weighed, "card_rules": solved,
    "formula_accepted": accepted, "formula_rewards": fault_sums, "forced_zeros": zeros, "plane_angle": normals,
    "swap_lengths": root, "prefix_drawn": scheduled, "prefix_weight": of_prefix, "top_fifth": three_highest,
    "pass_at_k": drawn_without, "forgetting_measure": forgotten, "leave_one_out": others, "four_readings": read_four_ways,
    "gain_beside_fm": learnt_and_lost, "form_only_group": of_form, "keep_rule": tried, "size_matched": same_number_and_passes,
    "two_answer_risk": risks, "two_kls": divergences, "oracle_distance": nearest_oracle, "reply_and_token": nats,
    "left_out_skill": without_each,
}  # fmt: skip


def flat(value):
    if isinstance(value, dict):
        value = list(value.values())
    return [x for part in value for x in flat(part)] if isinstance(value, list | tuple) else [value]


def test_all_kinds_are_checked_and_there_are_enough():
    assert {kind.__name__ for kind in questions.KINDS} == AGAIN.keys()
    assert len(questions.KINDS) == len(AGAIN) >= 16


@pytest.mark.parametrize("kind", questions.KINDS, ids=lambda kind: kind.__name__)
def test_answers_are_right_by_an_independent_computation(kind):
    for q in made(kind):
        ours, again = flat(q.value), flat(AGAIN[kind.__name__](q))
        assert len(ours) == len(again)
        for a, b in zip(ours, again, strict=True):
            if isinstance(a, str | bool):
                assert a == b, q.text
            else:
                assert float(a) == pytest.approx(float(b), rel=2e-3, abs=1e-4), q.text  # 1e-4 is in GRPO's denominator


@pytest.mark.parametrize("kind", questions.KINDS, ids=lambda kind: kind.__name__)
def test_the_answer_says_the_value(kind):
    for q in made(kind):
        numbers = {x.lstrip("+-") for x in re.findall(r"[-+]?\d+(?:\.\d+)?", q.answer)}
        for x in flat(q.value):
            if isinstance(x, str):
                assert x in q.answer
            elif not isinstance(x, bool):
                said = {f"{abs(round(float(x), digits)):.{digits}f}" for digits in range(5)}
                assert said & numbers, (x, q.answer)


@pytest.mark.parametrize("kind", questions.KINDS, ids=lambda kind: kind.__name__)
def test_text_is_whole(kind):
    for q in made(kind):
        assert (
            q.kind == kind.__name__
            and re.fullmatch(r"0[1-8]", q.notebook)
            and q.difficulty in (1, 2, 3)
            and 2 <= q.minutes <= 15
        )
        for text in (q.text, q.answer, q.solution, *q.choices):
            assert text.strip() and not re.search(r"[{}]|\bnan\b|\bNone\b|tensor|Fraction|-0\.0+\b", text), text
        for block in re.findall(r"(?:^\|.*\n?)+", f"{q.text}\n{q.solution}", re.M):
            assert len({line.count("|") for line in block.splitlines()}) == 1, block


@pytest.mark.parametrize(
    "kind", [questions.best_paid, questions.formula_accepted, questions.size_matched], ids=lambda kind: kind.__name__
)
def test_no_two_choices_are_equal_and_the_letter_is_right(kind):
    letters_ = set()
    for q in made(kind):
        assert len(set(q.choices)) == len(q.choices) == 4
        letter = q.answer[1]
        letters_.add(letter)
        assert q.answer == f"({letter}) {q.choices['abcd'.index(letter)]}"
    assert len(letters_) > 1  # not always the same


@pytest.mark.parametrize("kind", questions.KINDS, ids=lambda kind: kind.__name__)
def test_numbers_differ_from_draw_to_draw(kind):
    assert len({q.text for q in made(kind)}) > DRAWS // 4


# --- sheets ----


def test_the_same_student_and_seed_give_the_same_sheet():
    assert questions.text_of("Ada Example", 7, 8, True) == questions.text_of("  Ada   Example ", 7, 8, True)
    assert questions.sheet("Zoe\u0308", 7, 3) == questions.sheet("Zo\u00eb", 7, 3)


def test_students_have_the_same_kinds_and_other_numbers():
    a, b = (questions.sheet(name, 7, 12) for name in ("student 1", "student 2"))
    assert [q.kind for q in a] == [q.kind for q in b]
    assert sum(x.text == y.text for x, y in zip(a, b, strict=True)) <= 1
    sheets = {questions.text_of(f"student {i}", 7, 2).partition("\n")[2] for i in range(60)}
    assert len(sheets) == 60


def test_another_seed_asks_other_things():
    kinds = {tuple(q.kind for q in questions.sheet("a", seed, 5)) for seed in range(8)}
    assert len(kinds) > 4


def test_kinds_repeat_only_when_all_have_come():
    n = len(questions.KINDS)
    assert len(set(questions.chosen(3, n))) == n
    assert max(Counter(questions.chosen(3, n + 5)).values()) == 2
    names = [kind.__name__ for kind in questions.chosen(3, n)]
    assert names == [kind.__name__ for kind in questions.KINDS]  # in the order of the notebooks


def test_notebooks_take_turns():
    books = [q.notebook for q in questions.sheet("a", 7, len(questions.BANK))]
    assert books == list(questions.BANK)


def test_a_sheet_about_some_notebooks():
    sheet = questions.sheet("a", 7, 6, ["03", "01"])
    assert Counter(q.notebook for q in sheet) == {"01": 3, "03": 3}
    assert {q.notebook for q in questions.sheet("a", 7, 9, ["04"])} == {"04"}
    with pytest.raises(UserError, match="no questions about 7, 99: choose from 01"):
        questions.sheet("a", 7, 3, ["99", "7"])


def test_the_bank_files_each_kind_under_its_notebook():
    for book, kinds in questions.BANK.items():
        assert {kind(rng_for("test", kind.__name__)).notebook for kind in kinds} == {book}


@pytest.mark.parametrize("n", [0, -1, questions.MOST + 1])
def test_refuses_a_sheet_of_no_size(n):
    with pytest.raises(UserError, match="1 to"):
        questions.sheet("a", 0, n)


def test_refuses_a_nameless_student():
    with pytest.raises(UserError, match="no name"):
        questions.sheet("  ", 0, 1)


def test_a_class_gets_the_sheets_that_each_student_would_get_alone(tmp_path, capsys):
    names = tmp_path / "class.txt"
    names.write_text("Ada Example\n\n  Bo  Ünal \nÉ/../x\n", encoding="utf-8")
    folder = tmp_path / "sheets"
    ask = ["questions", "--students", str(names), "--seed", "902174553311", "--n", "3", "--notebooks", "02", "07"]
    assert main([*ask, "--out", str(folder)]) == 0
    found = sorted(p.name for p in folder.glob("*.md"))
    assert found == sorted(p.name for p in (folder / "answers").glob("*.md")) and len(found) == 3
    assert [name.split("-")[0] for name in found] == ["1", "2", "3"] and not (tmp_path / "x.md").exists()
    for file, name in zip(found, ("Ada Example", "Bo Ünal", "É/../x"), strict=True):
        for folder_of, answers in ((folder, False), (folder / "answers", True)):
            told = (folder_of / file).read_text(encoding="utf-8")
            assert told == questions.text_of(name, 902174553311, 3, answers, ["02", "07"])
    assert main(ask) == 2 and "--out" in capsys.readouterr().err
    for text, says in (("", "empty"), ("Ada\n Ada \n", "twice")):
        names.write_text(text, encoding="utf-8")
        assert main([*ask, "--out", str(folder)]) == 2 and says in capsys.readouterr().err
    assert main(["questions", "--students", str(tmp_path / "none.txt"), "--out", str(folder)]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_command_line(tmp_path, capsys):
    assert main(["questions", "--student", "Ada", "--seed", "7", "--n", "4"]) == 0
    shown = capsys.readouterr().out
    assert shown == questions.text_of("Ada", 7, 4) and "# Answers" not in shown and "seed" not in shown
    file = tmp_path / "sheets" / "ada.md"
    assert main(["questions", "--student", "Ada", "--seed", "7", "--n", "4", "--answers", "--out", str(file)]) == 0
    assert file.read_text(encoding="utf-8") == questions.text_of("Ada", 7, 4, True)
    assert shown.rstrip() in file.read_text(encoding="utf-8")
    assert main(["questions", "--student", "Ada", "--n", "2", "--notebooks", "05"]) == 0
    assert capsys.readouterr().out.count("Notebook 05") == 2
    assert main(["questions", "--student", "", "--n", "4"]) == 2
    assert main(["questions", "--student", "Ada", "--out", str(tmp_path)]) == 2
    assert "rftkit: " in capsys.readouterr().err
