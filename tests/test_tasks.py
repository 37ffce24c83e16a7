import numpy as np
import pytest

from rftkit import jigsaw, scenes, tasks
from rftkit.tasks import JIGSAW, PROBES, Row

ALL = {**PROBES, "jigsaw": JIGSAW}


@pytest.mark.parametrize("name", ALL)
def test_rows_are_functions_of_seed_split_and_index(name):
    task = ALL[name]
    a, b = task.row(3, 5, "train"), task.row(3, 5, "train")
    assert (a.prompt, a.answer, a.data) == (b.prompt, b.answer, b.data)
    if a.image is not None:
        assert (np.asarray(a.image) == np.asarray(b.image)).all()
    rows = [task.row(3, i, "train") for i in range(20)]
    assert len({(r.prompt, r.answer, r.image and r.image.tobytes()) for r in rows}) > 10


@pytest.mark.parametrize("name", PROBES)
def test_the_reference_answer_scores_correct_and_others_do_not(name):
    task = PROBES[name]
    rows = task.rows(0, 60)
    assert all(task.score(r.answer, r) == "correct" for r in rows)
    assert all(task.score("", r) == "unparseable" for r in rows)
    # a puzzle's answer has no form of an answer here, except that a look-up asks for a list of indices too: there it is wrong
    said = {task.score("<answer> 3 1 2 4 5 6 7 8 9 </answer>", r) for r in rows}
    assert said == {"wrong" if name == "lookup" else "unparseable"}
    truth = 2 if name == "ground" else 1  # how many telling words make the answer; the rest of a relation's are places
    pairs = [(r, other) for r, other in zip(rows, rows[1:], strict=False) if other.key[:truth] != r.key[:truth]]
    swapped = [task.score(other.answer, r) for r, other in pairs]
    assert swapped and "correct" not in swapped


@pytest.mark.parametrize("name", [n for n, t in ALL.items() if t.uses_image])
def test_no_image_is_in_two_splits(name, monkeypatch):
    """Every layout drawn for a split hashes to that split, so no layout can be in two."""
    drawn = []
    draw = scenes.draw
    monkeypatch.setattr(scenes, "draw", lambda cells, rng: drawn.append(cells) or draw(cells, rng))
    for split in scenes.SPLITS:
        drawn.clear()
        rows = [ALL[name].row(0, i, split) for i in range(30)]
        assert len(drawn) == len(rows) == 30
        assert {scenes.split_of(cells) for cells in drawn} == {split}


def test_existence_is_balanced():
    said = [r.key[0] for r in PROBES["exist"].rows(0, 1000)]
    assert 0.45 < said.count("yes") / 1000 < 0.55


def test_jigsaw_row_restores_to_its_landscape():
    row = JIGSAW.row(0, 0)
    whole = jigsaw.restore(row.image, row.data["answer"], 3, 3)
    tile_rows = np.asarray(whole).reshape(3, 28, 3, 28, 3).mean((1, 3))
    assert (tile_rows[0, :, 2] > tile_rows[2, :, 2] + 20).all()  # sky above sand
    assert JIGSAW.score(row.answer, row) == "correct"
    assert JIGSAW.score("<answer> 1 1 1 1 1 1 1 1 1 </answer>", row) == "unparseable"


def test_relation_reads_the_words_after_so():
    row = Row("relate", "", "", key=("above",))
    score = PROBES["relate"].score
    assert score("top left and bottom left , so above .", row) == "correct"
    assert score("top left and bottom left , so below .", row) == "wrong"
    assert score("9 8 7", row) == "unparseable"


def test_unknown_split_is_refused():
    with pytest.raises(tasks.UserError, match="no split 'dev'"):
        JIGSAW.row(0, 0, "dev")
