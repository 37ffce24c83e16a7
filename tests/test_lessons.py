import re

import numpy as np
import pytest

from rftkit import lessons, points, scenes
from rftkit.config import CARDS_DIR, UserError, get_preset
from rftkit.policy import check_hashes, load_policy


def rows_of(name, n=200):
    return [lessons.LESSONS[name](scenes.rng_for(1, name, i)) for i in range(n)]


def test_every_word_is_known():
    tokenizer = load_policy(get_preset("tiny")).processor.tokenizer
    for name in lessons.LESSONS:
        for row in rows_of(name):
            assert tokenizer.unk_token_id not in tokenizer(row.prompt + " " + row.answer)["input_ids"], row


def test_answers_are_right():
    for row in rows_of("read") + rows_of("play"):
        rule = {card: n for card, n in re.findall(r"\b([jqk]) (?:is|=) (\d+)", row.prompt)}
        cards = re.search(r"cards(?: :| are)? ((?:\w+ )+)\.", row.prompt)[1].split()
        numbers = re.match(r"numbers ([\d ]+?)(?: , so|$)", row.answer)[1].split()
        assert numbers == [rule.get(card, card) for card in cards]
    for row in rows_of("play") + rows_of("expression") + rows_of("sum"):
        text = row.answer.rpartition("expression")[2].strip(" .")
        left, _, right = text.partition(" = ")
        signs, terms = re.findall(r"[+-]", left), [int(n) for n in re.findall(r"\d+", left)]
        assert terms[0] + sum(n if s == "+" else -n for s, n in zip(signs, terms[1:], strict=True)) == int(right)
    for row in rows_of("expression") + rows_of("play"):
        assert f"target {row.answer.rpartition('= ')[2]} ." in row.prompt


def test_the_game_s_reply_never_occurs():
    hand = points.task(points.TINY).row(0, 0).data["hand"]
    rows = [row for name in lessons.LESSONS for row in rows_of(name)]
    assert not any(";" in row.answer or ";" in row.prompt for row in rows)
    assert all(points.parse(row.answer, hand).status == "missing" for row in rows)


def test_no_rule_is_favoured():
    rules = [lessons.a_rule(np.random.default_rng(i)) for i in range(2000)]
    shares = [sum(rule == points.FACES[name] for rule in rules) / len(rules) for name in ("ten", "own")]
    assert shares == pytest.approx([0.15, 0.15], abs=0.025) and len(set(rules)) > 900


def test_the_mixture_is_the_same_for_the_same_seed():
    some = [lessons.lesson_row(4, i) for i in range(300)]
    assert [r.prompt for r in some] == [lessons.lesson_row(4, i).prompt for i in range(300)]
    assert {"read", "play", "expression", "sum", "color"} <= {r.task for r in some}
    assert sum(lessons.SHARES.values()) == pytest.approx(1)


def test_too_few_steps_are_refused(tmp_path):
    with pytest.raises(UserError, match="outside the schedule"):
        lessons.main(tmp_path, tmp_path, 0, -1)


def test_the_bundled_base_is_whole_and_knows_its_lessons():
    check_hashes(CARDS_DIR)
    policy = load_policy(get_preset("tiny", model="bundled-cards"))
    for name, least in {"read": 0.6, "play": 0.4, "expression": 0.5}.items():
        rows = [lessons.LESSONS[name](scenes.rng_for(99, name, i)) for i in range(60)]
        assert lessons._share_of(policy, rows) >= least
