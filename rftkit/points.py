"""GeneralPoints: make a target number from a hand of cards, by a formula that uses each card once.

In the paper (2509.12235; first in 2501.17161) four cards make 24. J, Q and K count as 10 in training (rule "ten") and as
11, 12, 13 out of distribution (rule "own"). Their out-of-distribution hands also have at least one face card by force, so
two things change at once. Here rule and hands are separate: the 2x2 tells the one from the other.
A *rank* is 1 (ace) to 13 (king). A *number* is what a card counts under the rule. All arithmetic is exact.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np

from rftkit.config import UserError
from rftkit.scenes import SPLITS
from rftkit.tasks import Row, Task, Verdict

Rule = Literal["ten", "own"]
Hands = Literal["any", "face"]
Status = Literal["ok", "missing", "long", "characters", "grammar", "undefined"]

FACES: dict[str, tuple[int, int, int]] = {"ten": (10, 10, 10), "own": (11, 12, 13)}  # what J, Q, K count
HANDS = ("any", "face")
OPERATORS = "+-*/"
CORRECT = 5.0
# What a fault costs; faults add up. Values of the paper's repository (read in its code).
COSTS = {
    "missing": -3.0, "long": -3.0, "characters": -3.0, "grammar": -3.0, "undefined": -3.0,  # no legal formula
    "foreign": -2.0, "overused": -2.0, "unused": -2.0,  # not the numbers of the hand
    "value": -1.0,  # legal, every card, wrong result
    "limit": -1.0,  # no attempt left
}  # fmt: skip
MAX_TEXT = 20_000  # characters of a reply that are read: its end
MAX_FORMULA = 500  # characters of a legal formula: longer ones would cost time, and no hand needs them
_MAX_DIGITS = 9
_MAX_WORD = 30  # the largest number among the words of the bundled model
_MAX_DRAWS = 20_000  # hands drawn before a game counts as impossible


# ---- checks ----


def _in_range(name: str, value: int, least: int, most: int) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not least <= value <= most:
        raise UserError(f"{name} must be a whole number from {least} to {most}, not {value!r}: correct it.")


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UserError(f"There is no {name} {value!r}: choose {' or '.join(known)}.")


# ---- the game ----


@dataclass(frozen=True)
class Game:
    """The rules that both distributions share.

    cards: 2 to 4. target: the number to make; None draws it for each hand, uniformly from the whole numbers 1..largest
    that the hand can make. operators: which of "+-*/"; a "-" needs the "+" and a "/" the "*". most: the highest rank
    dealt, 11 to 13. style: the prompt; "short" fits the bundled model's vocabulary, "full" asks for JSON.
    Raises UserError where a value is out of range.
    """

    cards: int = 4
    target: int | None = 24
    operators: str = OPERATORS
    most: int = 13
    style: Literal["full", "short"] = "full"
    largest: int = 30

    def __post_init__(self) -> None:
        _in_range("cards", self.cards, 2, 4)
        _in_range("most", self.most, 11, 13)
        top = _MAX_WORD if self.style == "short" else 10**6
        _in_range("largest", self.largest, 1, top)
        if self.target is not None:
            _in_range("target", self.target, 1, top)
        if not self.operators or len(set(self.operators)) < len(self.operators) or set(self.operators) - set(OPERATORS):
            raise UserError(f"operators must be some of {OPERATORS}, each once, not {self.operators!r}: correct it.")
        for inverse, plain in ("-+", "/*"):
            if inverse in self.operators and plain not in self.operators:
                raise UserError(f"A game with {inverse} needs {plain} too: a - (b - c) is a + c - b.")
        _one_of("style", self.style, ("full", "short"))


PAPER = Game()
TINY = Game(cards=3, target=None, operators="+-", style="short")


@dataclass(frozen=True)
class Hand:
    """Cards as dealt, the rule that holds, and the number to make. Raises UserError for a hand the game cannot deal."""

    ranks: tuple[int, ...]
    rule: Rule
    target: int
    game: Game = PAPER

    def __post_init__(self) -> None:
        _one_of("rule", self.rule, tuple(FACES))
        if len(self.ranks) != self.game.cards:
            raise UserError(f"This game is played with {self.game.cards} cards, not {len(self.ranks)}: mend the ranks.")
        for rank in self.ranks:
            _in_range("A rank", rank, 1, self.game.most)
        _in_range("target", self.target, 1, 10**6)

    @property
    def numbers(self) -> tuple[int, ...]:
        """What the cards count, in the order dealt."""
        return _numbers(self.ranks, self.rule)

    @property
    def names(self) -> tuple[str, ...]:
        """How the cards are shown: A 2 ... 10 J Q K, or in the short style 1 2 ... 10 j q k."""
        special = {11: "J", 12: "Q", 13: "K"} | ({1: "A"} if self.game.style == "full" else {})
        names = tuple(special.get(rank, str(rank)) for rank in self.ranks)
        return names if self.game.style == "full" else tuple(name.lower() for name in names)


def _numbers(ranks: Sequence[int], rule: str) -> tuple[int, ...]:
    return tuple(rank if rank <= 10 else FACES[rule][rank - 11] for rank in ranks)


# ---- dealing ----


def split_of(hand: Hand) -> str:
    """The split a hand belongs to, by a hash of its target and its sorted numbers under the rule "ten": 8:1:1.

    The rule in force is left out, so a hand is in one split under both. J for Q keeps the split, since under "ten" that is
    the same sum: no problem in numbers, under either rule, is in two splits.
    """
    key = (tuple(sorted(_numbers(hand.ranks, "ten"))), hand.target)
    bucket = hashlib.sha256(repr(key).encode()).digest()[0] % 10
    return {0: "test", 1: "validation"}.get(bucket, "train")


def deal(
    rng: np.random.Generator,
    game: Game = PAPER,
    rule: Rule = "ten",
    hands: Hands = "any",
    split: str | None = None,
) -> Hand:
    """Draw hands until one is solvable under its rule, as the paper's environment does, and belongs to `split` (None: any).

    "any": every rank uniform over 1..game.most, with replacement. "face": one of them uniform over the face ranks instead,
    at a random position. Solvability shifts the ranks a little, and not the same way under the two rules.
    Raises UserError where no such hand turns up.
    """
    _one_of("rule", rule, tuple(FACES))
    _one_of("hands", hands, HANDS)
    if split is not None:
        _one_of("split", split, SPLITS)
    for _ in range(_MAX_DRAWS):
        hand = _draw(rng, game, rule, hands)
        if hand and split in (None, split_of(hand)) and solvable(hand.numbers, hand.target, game.operators):
            return hand
    raise UserError(f"No solvable hand of the split {split!r} turned up in {_MAX_DRAWS} deals: change the game.")


def _draw(rng: np.random.Generator, game: Game, rule: Rule, hands: Hands) -> Hand | None:
    """A hand, perhaps unsolvable; None where its target is to be drawn and it makes none."""
    ranks = rng.integers(1, game.most + 1, game.cards)
    if hands == "face":
        ranks[rng.integers(game.cards)] = rng.integers(11, game.most + 1)
    dealt = tuple(int(rank) for rank in ranks)
    if game.target is not None:
        return Hand(dealt, rule, game.target, game)
    targets = reachable(_numbers(dealt, rule), game.operators, game.largest)
    return Hand(dealt, rule, targets[int(rng.integers(len(targets)))], game) if targets else None


# ---- solving ----


class _Node(NamedTuple):
    """A formula as a flat sum or product: `tops` are added (multiplied), `unders` subtracted (divided by)."""

    kind: Literal["atom", "sum", "product"]
    value: Fraction
    text: str
    tops: tuple[Any, ...] = ()
    unders: tuple[Any, ...] = ()


def solvable(numbers: Sequence[int], target: int, operators: str = OPERATORS) -> bool:
    """True where some formula over all the numbers has the target as its value."""
    return _makes(tuple(sorted(numbers)), Fraction(target), operators)


def reachable(numbers: Sequence[int], operators: str = OPERATORS, largest: int = 30) -> tuple[int, ...]:
    """The whole numbers 1..largest that formulas over all the numbers make, ascending."""
    return _whole_values(tuple(sorted(numbers)), operators, largest)


def solve(numbers: Sequence[int], target: int, operators: str = OPERATORS) -> list[str]:
    """Every formula over all the numbers that makes the target, fewest brackets first, then by text; [] where none does.

    Formulas that differ by the order of terms or factors, or by brackets that can be opened, are one: the larger term
    comes first. Tokens are separated by spaces. 2 to 4 numbers take milliseconds; results are kept.
    """
    ways = _ways(tuple(sorted(numbers)), Fraction(target), operators)
    return sorted((node.text for node in ways), key=lambda text: (text.count("("), text))


def solution(hand: Hand, rng: np.random.Generator | None = None) -> str:
    """A formula that solves the hand: the first of `solve`, or with `rng` any of them. Raises UserError where none does."""
    formulas = solve(hand.numbers, hand.target, hand.game.operators)
    if not formulas:
        raise UserError(f"No formula over {hand.numbers} makes {hand.target}: deal a solvable hand.")
    return formulas[0 if rng is None else int(rng.integers(len(formulas)))]


def _apply(operator: str, a: Fraction | None, b: Fraction | None) -> Fraction | None:
    """a (operator) b; None where it has no value."""
    if a is None or b is None or (operator == "/" and b == 0):
        return None
    return a + b if operator == "+" else a - b if operator == "-" else a * b if operator == "*" else a / b


@cache
def _splits(numbers: tuple[int, ...]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The ways to part a sorted multiset in two, the smaller part first."""
    found = set()
    for mask in range(1, 2 ** len(numbers) - 1):
        left = tuple(x for i, x in enumerate(numbers) if mask >> i & 1)
        right = tuple(x for i, x in enumerate(numbers) if not mask >> i & 1)
        if (len(left), left) <= (len(right), right):
            found.add((left, right))
    return sorted(found)


@lru_cache(maxsize=2**14)
def _values(numbers: tuple[int, ...], operators: str) -> frozenset[Fraction]:
    """Every value that a formula over all of a sorted multiset can have."""
    if len(numbers) == 1:
        return frozenset({Fraction(numbers[0])})
    made = {
        _apply(operator, *pair)
        for left, right in _splits(numbers)
        for a in _values(left, operators)
        for b in _values(right, operators)
        for operator in operators
        for pair in ((a, b), (b, a))
    }
    return frozenset(value for value in made if value is not None)


def _meets(numbers: tuple[int, ...], value: Fraction, operators: str) -> Iterator[tuple[Any, ...]]:
    """(operator, numbers of a, a, numbers of b, b) for every last step a (operator) b = value.

    Goes through the values of the smaller part only: what the larger must then have follows from the operator.
    """
    for left, right in _splits(numbers):
        known = _values(right, operators)
        for x in _values(left, operators):
            fits = {value - x, x - value, value + x, value * x}
            fits |= ({value / x} if x else set()) | ({x / value} if value else set())
            for y in known if x == value == 0 else known & fits:  # 0 * y = 0 / y = 0 fixes no y
                for operator in operators:
                    if _apply(operator, x, y) == value:
                        yield operator, left, x, right, y
                    if _apply(operator, y, x) == value:
                        yield operator, right, y, left, x


@lru_cache(maxsize=2**14)
def _makes(numbers: tuple[int, ...], value: Fraction, operators: str) -> bool:
    return value == numbers[0] if len(numbers) == 1 else any(True for _ in _meets(numbers, value, operators))


@lru_cache(maxsize=2**14)
def _whole_values(numbers: tuple[int, ...], operators: str, largest: int) -> tuple[int, ...]:
    if len(numbers) < 4:  # cheap to list, and the parts of larger hands need the list anyhow
        return tuple(sorted(int(v) for v in _values(numbers, operators) if v.denominator == 1 and 1 <= v <= largest))
    return tuple(target for target in range(1, largest + 1) if _makes(numbers, Fraction(target), operators))


@lru_cache(maxsize=2**16)
def _ways(numbers: tuple[int, ...], value: Fraction, operators: str) -> tuple[_Node, ...]:
    """Every formula over all of a sorted multiset with this value, those of one text once."""
    if len(numbers) == 1:
        return (_Node("atom", value, str(numbers[0])),) if value == numbers[0] else ()
    found = {}
    for operator, some, a, others, b in _meets(numbers, value, operators):
        for first in _ways(some, a, operators):
            for second in _ways(others, b, operators):
                node = _join(operator, first, second, value)
                found[node.text] = node
    return tuple(found.values())


def _join(operator: str, a: _Node, b: _Node, value: Fraction) -> _Node:
    """Write a (operator) b as one flat sum or product: opened brackets, larger terms first."""
    kind: Literal["sum", "product"] = "sum" if operator in "+-" else "product"
    tops, unders = (a.tops, a.unders) if a.kind == kind else ((a,), ())
    more, less = (b.tops, b.unders) if b.kind == kind else ((b,), ())
    if operator in "-/":
        more, less = less, more
    tops, unders = _in_order(tops + more), _in_order(unders + less)
    plus, minus = (" + ", " - ") if kind == "sum" else (" * ", " / ")
    texts = [
        [f"( {n.text} )" if kind == "product" and n.kind == "sum" else n.text for n in ns] for ns in (tops, unders)
    ]
    text = plus.join(texts[0]) + "".join(minus + term for term in texts[1])
    return _Node(kind, value, text, tops, unders)


def _in_order(nodes: tuple[_Node, ...]) -> tuple[_Node, ...]:
    return tuple(sorted(nodes, key=lambda node: (-node.value, node.text)))


# ---- the prompt ----

# Sentences of each wording. A sentence that states the rule is one with {is_}, {equals} or {spelt}.
_SHORT = (
    ("rule : {is_} .", "cards : {cards} .", "target {target} .", "make a formula ."),
    ("cards : {cards} .", "target {target} .", "rule : {is_} .", "make a formula ."),
    ("please make {target} from the cards {cards} .", "the face cards : {equals} ."),
    ("{spelt} .", "the cards are {cards} .", "which formula is {target} ?"),
    ("give the expression with target {target} .", "look at the rule : {equals} .", "use each card : {cards} ."),
    ("the target is {target} .", "first see that {is_} .", "then make it with {cards} ."),
    ("let {equals} .", "use {cards} to make {target} ."),
    ("use the cards {cards} , each one .", "what formula is {target} ?", "please think of the rule : {spelt} ."),
)
_SPELT = {10: "ten", 11: "eleven", 12: "twelve", 13: "thirteen"}
_FULL_RULES = (
    "J, Q and K count as {0}, {1} and {2}, in that order.",
    "The jack is worth {0}, the queen {1} and the king {2}.",
    "Values of the face cards: J = {0}, Q = {1}, K = {2}.",
    "Read every K as {2}, every Q as {1} and every J as {0}.",
)
WORDINGS = len(_SHORT)  # as many in the full style: four sentences for the rule, each early or late


def prompt(hand: Hand, explained: bool = True, wording: int = 0) -> str:
    """The question, in the game's style. Without `explained` the rule is left out.

    `wording` 0 to WORDINGS - 1 picks words, order and the place of the rule: train on one or on many to see whether a
    failure out of distribution is a frozen prompt's (2510.00237). Our wordings, not the repository's.
    """
    _in_range("wording", wording, 0, WORDINGS - 1)
    if hand.game.style == "full":
        return _full_prompt(hand, explained, wording)
    j, q, k = FACES[hand.rule]
    fields = {
        "is_": f"j is {j} , q is {q} , k is {k}",
        "equals": f"k = {k} , q = {q} , j = {j}",
        "spelt": f"q is {_SPELT[q]} , k is {_SPELT[k]} , j is {_SPELT[j]}",
    }
    told = [s for s in _SHORT[wording] if explained or not any("{" + field + "}" in s for field in fields)]
    return " ".join(told).format(cards=" ".join(hand.names), target=hand.target, **fields)


def _full_prompt(hand: Hand, explained: bool, wording: int) -> str:
    phrase, late = divmod(wording, 2)
    signs = " ".join(hand.game.operators)
    rule = [_FULL_RULES[phrase].format(*FACES[hand.rule])] if explained else []
    lines = [
        f"This is a game with {hand.game.cards} playing cards: reach exactly {hand.target}.",
        *([] if late else rule),
        f"An ace counts as 1. Your cards: {', '.join(hand.names)}.",
        f"Write one formula that has the value of each card exactly once and equals {hand.target}. Apart from these "
        f"numbers it may hold only {signs} ( ) and a final =.",
        *(rule if late else []),
        "Reply with one JSON object and nothing else:",
        '{"cards": [the cards as shown], "number": [what each counts, in the same order], '
        f'"formula": "your formula = {hand.target}"}}',
    ]
    return "\n".join(lines)


def answer_text(hand: Hand, formula: str) -> str:
    """A reply with this formula: "numbers 3 10 5 ; 10 + 5 - 3 = 12" (short), a JSON object (full)."""
    if hand.game.style == "short":
        return f"numbers {' '.join(map(str, hand.numbers))} ; {formula} = {hand.target}"
    tight = formula.replace("( ", "(").replace(" )", ")")
    return json.dumps({"cards": hand.names, "number": hand.numbers, "formula": f"{tight} = {hand.target}"})


# ---- reading a reply ----


@dataclass(frozen=True)
class Parsed:
    """What a reply says.

    status: "ok" (the formula has a value), else the first that applies of "missing" (there is none), "long" (over
        MAX_FORMULA characters), "characters" (anything but whole numbers of nine digits at most, brackets and the game's
        operators), "grammar" (a sign too many or too few, brackets that do not match, a sign before a number),
        "undefined" (a division by zero).
    numbers: what the reply says the cards count, () where it does not; 0 stands for what is no such number.
    formula: its text up to the "=". operands: its numbers in order, () for the first three faults. value: exact or None.
    """

    status: Status
    numbers: tuple[int, ...] = ()
    formula: str = ""
    operands: tuple[int, ...] = ()
    value: Fraction | None = None


_QUOTED = re.compile(r'"formula"\s*+:\s*+"([^"]*+)"')
_LISTED = re.compile(r'"number"\s*+:\s*+\[([^\]]*+)\]')
_TOKEN = re.compile(r"[0-9]+|\S")


def parse(text: str | None, hand: Hand) -> Parsed:
    """Read a reply, whatever it is, in time linear in its length; None counts as empty, only the end is read (MAX_TEXT).

    Full style: the last {...} that is JSON, else the last "formula": "...". Short style: what follows the last ";",
    up to the end of its line. What stands behind "=" is not read: a wrong result claimed there is
    no fault, as in the paper's environment. Spaces are, unlike there.
    """
    clean = (text or "")[-MAX_TEXT:].strip().removesuffix("<|im_end|>")
    formula, numbers = (_short_fields if hand.game.style == "short" else _json_fields)(clean)
    formula = formula.partition("=")[0].strip()
    if not formula or len(formula) > MAX_FORMULA:
        return Parsed("long" if formula else "missing", numbers, formula[:MAX_FORMULA])
    tokens = _TOKEN.findall(formula)
    if not all(_is_number(t) or t in "()" + hand.game.operators for t in tokens):
        return Parsed("characters", numbers, formula)
    status, value = _evaluate(tokens)
    return Parsed(status, numbers, formula, tuple(int(t) for t in tokens if _is_number(t)), value)


def _short_fields(text: str) -> tuple[str, tuple[int, ...]]:
    before, _, after = text.lower().rpartition(";") if ";" in text else (text.lower(), "", "")
    listed = before.rpartition("numbers")[2].partition(";")[0] if "numbers" in before else ""
    return after.partition("\n")[0].strip(" :."), _read_numbers(listed.split())


def _json_fields(text: str) -> tuple[str, tuple[int, ...]]:
    end = text.rfind("}")
    try:
        said = json.loads(text[text.rfind("{", 0, max(end, 0)) : end + 1])  # the object we ask for holds no other
    except (ValueError, RecursionError):  # nesting is limited by the parser, long numbers by int()
        said = None
    if isinstance(said, dict) and isinstance(said.get("formula"), str):
        numbers = said.get("number")
        return said["formula"], _read_numbers(numbers if isinstance(numbers, list) else [])
    quoted = _QUOTED.match(text, max(text.rfind('"formula"'), 0))
    listed = _LISTED.match(text, max(text.rfind('"number"'), 0))
    numbers = [word.strip(" \"'\n") for word in listed[1].split(",")] if listed and listed[1].strip() else []
    return quoted[1] if quoted else "", _read_numbers(numbers)


def _read_numbers(said: Iterable[Any]) -> tuple[int, ...]:
    digits = (str(x) if type(x) is int else x for x in said)
    return tuple(int(x) if isinstance(x, str) and _is_number(x) else 0 for x in digits)


def _is_number(word: str) -> bool:
    return len(word) <= _MAX_DIGITS and word.isascii() and word.isdigit()


def _evaluate(tokens: list[str]) -> tuple[Status, Fraction | None]:
    """Work out a formula by two stacks, so that brackets nested to any depth cost no recursion."""
    values: list[Fraction | None] = []
    waiting: list[str] = []
    wants_number = True
    for token in tokens:
        opens = token == "(" or token.isdigit()
        if opens != wants_number:
            return "grammar", None
        if token == "(":
            waiting.append(token)
        elif token.isdigit():
            values.append(Fraction(int(token)))
            wants_number = False
        elif token == ")":
            _work_off(waiting, values, 1)
            if not waiting:
                return "grammar", None
            waiting.pop()
        else:
            _work_off(waiting, values, _rank(token))
            waiting.append(token)
            wants_number = True
    if wants_number:
        return "grammar", None
    _work_off(waiting, values, 1)
    if waiting:
        return "grammar", None
    return ("undefined" if values[0] is None else "ok"), values[0]


def _rank(operator: str) -> int:
    return {"(": 0, "+": 1, "-": 1, "*": 2, "/": 2}[operator]


def _work_off(waiting: list[str], values: list[Fraction | None], least: int) -> None:
    """Apply the operators on top of the stack that bind at least as tightly as `least`."""
    while waiting and _rank(waiting[-1]) >= least:
        b, a = values.pop(), values.pop()
        values.append(_apply(waiting.pop(), a, b))


# ---- scoring ----


@dataclass(frozen=True)
class Outcome:
    """verdict: "unparseable" where the reply has no formula with a value. reward: 5, or the sum of what the faults cost.
    reasons: the faults, keys of COSTS, () for a correct reply."""

    verdict: Verdict
    reward: float
    reasons: tuple[str, ...]


def score(text: str | None, hand: Hand) -> Outcome:
    """Judge one reply by the values of the paper's environment: +5, -1, -2 (twice at most), -3, added up.

    Where its code and we differ: a formula that is cut short or divides by zero costs -3 here (there +1 or -1: it calls
    eval and takes an exception for a partial solution), several slips of grammar cost -3 once, spaces cost nothing.
    """
    parsed = parse(text, hand)
    faults: list[str] = [] if parsed.status == "ok" else [parsed.status]
    if parsed.operands:
        faults += _miscounts(Counter(parsed.operands), Counter(hand.numbers))
    if not faults and parsed.value != hand.target:
        faults.append("value")
    verdict: Verdict = "correct" if not faults else "unparseable" if parsed.value is None else "wrong"
    return Outcome(verdict, sum(COSTS[fault] for fault in faults) if faults else CORRECT, tuple(faults))


def _miscounts(used: Counter[int], dealt: Counter[int]) -> list[str]:
    """A number that is not in the hand hides one used too often: one fault of the two."""
    faults = ["foreign"] if used.keys() - dealt.keys() else ["overused"] if used - dealt else []
    return faults + (["unused"] if dealt - used else [])


def attempts(replies: Iterable[str | None], hand: Hand, limit: int = 5) -> tuple[Outcome, ...]:
    """Score replies in turn, up to the first correct one. Where `limit` were wrong, a last outcome of -1 ends the episode.

    The paper's accuracy is the share of hands solved within 5 such attempts, with feedback between them: not pass@1.
    `replies` is read one at a time, so a generator may ask the model for the next once it has the feedback.
    """
    outcomes: list[Outcome] = []
    for reply in replies:
        outcomes.append(score(reply, hand))
        if outcomes[-1].verdict == "correct":
            break
        if len(outcomes) == limit:
            outcomes.append(Outcome("wrong", COSTS["limit"], ("limit",)))
            break
    return tuple(outcomes)


_ADVICE = {  # a sentence in the short style, and in the full one
    "missing": ("there is no formula .", "I found no formula in your reply."),
    "long": ("this is not a formula .", "Your formula is too long."),
    "characters": (
        "this is not a formula .",
        "Your formula has characters other than whole numbers and allowed signs.",
    ),
    "grammar": ("this is not a formula .", "Your formula is malformed."),
    "undefined": ("this is not a number .", "Your formula divides by zero."),
    "foreign": ("use the numbers of the cards .", "You used a number that is not the value of one of your cards."),
    "overused": ("use each card , no more .", "You used a number more often than you hold it."),
    "unused": ("use each card , not less .", "You left out the value of at least one card."),
    "value": ("this is not {target} .", "Your formula does not equal {target}."),
    "limit": ("this is the end .", "No attempts are left."),
}


def feedback(outcome: Outcome, hand: Hand) -> str:
    """The verifier's message for the next turn: names the faults, never the solution. Our words."""
    short = hand.game.style == "short"
    if outcome.verdict == "correct":
        return "yes , this is the solution ." if short else "That is correct."
    said = dict.fromkeys(_ADVICE[reason][0 if short else 1].format(target=hand.target) for reason in outcome.reasons)
    again = [] if "limit" in outcome.reasons else ["make a new formula ." if short else "Try again in the same form."]
    return " ".join([*said, *again])


# ---- the task ----


def task(
    game: Game = PAPER,
    rule: Rule = "ten",
    hands: Hands = "any",
    *,
    wordings: Sequence[int] = (0,),
    explained: bool = True,
) -> Task:
    """GeneralPoints as a task of text rows, named "points-ten-any" and so on; row.data["hand"] is the Hand.

    Each row's wording is drawn from `wordings`. Hands do not depend on `wordings` or `explained`: such arms are paired.
    """
    _one_of("rule", rule, tuple(FACES))
    _one_of("hands", hands, HANDS)
    if not wordings:
        raise UserError(f"A task needs at least one wording: pass some of 0 to {WORDINGS - 1}.")
    for wording in wordings:
        _in_range("wording", wording, 0, WORDINGS - 1)
    name = f"points-{rule}-{hands}"

    def make(rng: np.random.Generator, split: str) -> Row:
        hand = deal(rng, game, rule, hands, split)
        question = prompt(hand, explained, wordings[int(rng.integers(len(wordings)))])
        formula = solution(hand)
        return Row(name, question, answer_text(hand, formula), key=tuple(formula.split()), data={"hand": hand})

    return Task(name, make, lambda text, row: score(text, row.data["hand"]).verdict, uses_image=False)
