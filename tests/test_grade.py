"""Grading: learners' notebooks as they come, also broken, endless and greedy ones. None of it may raise or hang."""

import json
import re
import sys
import time
from pathlib import Path

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rftkit import grade
from rftkit.config import UserError
from rftkit.exercises import catalogue, make_copy, solutions, stubs
from rftkit.notebooks import read_notebook

ROOT = Path(__file__).parent.parent
ENTRIES = catalogue()
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory hold on Linux only")

RIGHT = "def trivial_zeros(n, k):\n    return max(0, 2 * k - n)\n"
BARE = "def trivial_zeros(n, k):\n    return 0\n"


@pytest.fixture(autouse=True)
def at_the_top(monkeypatch):
    monkeypatch.chdir(ROOT)


def judged(module, seconds=20.0, memory=grade.MEMORY):
    return grade.judge("trivial_zeros", module, seconds, memory)


def written(path, *sources, **metadata):
    cells = [{"cell_type": "code", "metadata": {}, "outputs": [], "source": source} for source in sources]
    path.write_text(
        json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": cells}), encoding="utf-8"
    )
    return path


# --- take the function out ------------------------------------------------------------------------------------------------------


def test_only_the_cell_and_the_imports_it_needs():
    cells = [
        "import os, math as m\nfrom torch import nn, eye\nboom()",
        "import antigravity\nfrom math import *\nfrom . import mine",
        "LIMIT = 0\n\ndef helper(x):\n    return m.ceil(x)\n\ndef trivial_zeros(n, k):\n    'says'\n    return max(LIMIT, helper(2 * k - n))\n\nprint('x' * 9)\nassert boom()\ntrivial_zeros(1, 1)",
        "boom()",
    ]
    assert grade.answer("trivial_zeros", cells) == (
        "import math as m\nfrom math import *\nLIMIT = 0\ndef helper(x):\n    return m.ceil(x)\n"
        'def trivial_zeros(n, k):\n    """says"""\n    return max(LIMIT, helper(2 * k - n))\n'
    )


@pytest.mark.parametrize(
    "cells",
    [
        [BARE, RIGHT],
        [BARE + "\n" + RIGHT],
        ["trivial_zeros = None", "trivial_zeros = lambda n, k: max(0, 2 * k - n)"],
        ["%matplotlib inline\n!ls\n" + RIGHT + "%timeit trivial_zeros(3, 2)\n?max"],
        ["%%time\n" + RIGHT],
        ["from __future__ import annotations\nimport typing", RIGHT.replace("(n, k)", "(n: typing.Any, k)")],
        [RIGHT, "this is no Python", "defend trivial_zeros"],
    ],
    ids=["in two cells", "in one", "lambda", "magics", "cell magic", "future", "noise elsewhere"],
)
def test_last_definition_counts(cells):
    assert judged(grade.answer("trivial_zeros", cells))[0]


def test_a_percent_sign_within_a_text_is_no_magic():
    source = 'NOTE = """\n%d is a number\n"""\n' + RIGHT
    assert "%d is a number" in grade.answer("trivial_zeros", [source])


@pytest.mark.parametrize(
    "cells, says",
    [
        ([RIGHT.replace("trivial", "my")], "There is no function trivial_zeros in the notebook: was it renamed"),
        ([RIGHT, "def trivial_zeros(n, k)\n    return 1"], "cannot be read as Python: expected ':', line 1"),
        (["def trivial_zeros(n, k):\nreturn 1"], "expected an indented block .*, line 2"),
        ([RIGHT + "x = " + "-" * 60_000 + "1"], "nested too deeply"),
        ([RIGHT + "x = " + "(" * 60_000], "too many nested parentheses"),
        ([RIGHT + "\0"], "cannot be read as Python"),
        ([RIGHT + "x = '\ud800'"], "no program may hold"),
        ([RIGHT + "x = 1\n" * 50_000], "longer than 100,000 characters"),
    ],
)
def test_no_answer(cells, says):
    with pytest.raises(grade._NoAnswer, match=says):
        grade.answer("trivial_zeros", cells)


@given(
    st.lists(
        st.text(max_size=80)
        | st.sampled_from([RIGHT, BARE, "import a.b as c, d", "def trivial_zeros(", "x: int", "%x"]),
        max_size=6,
    )
)
def test_any_cells_can_be_read(cells):
    try:
        assert "trivial_zeros" in grade.answer("trivial_zeros", cells)
    except grade._NoAnswer as error:
        assert "trivial_zeros" in str(error)


# --- try it ---------------------------------------------------------------------------------------------------------------------


def test_right_and_wrong():
    passed, mistake, message = judged(RIGHT)
    assert passed and mistake is None and message.startswith("trivial_zeros is right")
    assert judged(BARE)[:2] == (False, "always_zero")


STOPS = {
    "exit in the cell": ("import sys\nsys.exit(0)\n" + RIGHT, "stopped with SystemExit: 0"),
    "exit in the function": ("def trivial_zeros(n, k):\n    exit()\n", "stopped with"),
    "exit for good": ("import os\nos._exit(0)\n" + RIGHT, r"ended Python \(exit code 0\)"),
    "killed": ("import os\nos.kill(os.getpid(), 9)\n" + RIGHT, "ended Python"),
    "no such module": ("import no_such_module\n" + RIGHT, "stopped with ModuleNotFoundError"),
    "no endless recursion": (
        "def trivial_zeros(n, k):\n    return trivial_zeros(n, k)\n",
        "stopped with RecursionError",
    ),
    "odd name": ("trivial_zeros = 3\n", "Pass the function itself"),
    "gone": (RIGHT + "del trivial_zeros\n", "stopped with AttributeError"),
    "its repr is huge": (
        "def trivial_zeros(n, k):\n    raise ValueError('x' * 10**7)\n",
        "stopped with ValueError: xxx",
    ),
    "its line is shown": (
        "def trivial_zeros(n, k):\n    return n / 0\n",
        "ZeroDivisionError: division by zero, at `return n / 0`",
    ),
}


@pytest.mark.parametrize("module, says", STOPS.values(), ids=STOPS)
def test_code_that_stops(module, says):
    passed, mistake, message = judged(module)
    assert not passed and mistake is None and len(message) < 1000
    assert re.search(says, message), message


@pytest.mark.parametrize(
    "module",
    [
        "while True:\n    pass\n" + RIGHT,
        "def trivial_zeros(n, k):\n    while True:\n        pass\n",
        "def trivial_zeros(n, k):\n    return 7 ** 10 ** 9\n",  # within one instruction: nothing can be raised there
        "import subprocess, time\nsubprocess.Popen(['sleep', '600'])\ntime.sleep(600)\n" + RIGHT,
    ],
    ids=["cell", "function", "one instruction", "children"],
)
def test_code_without_end(module):
    start = time.monotonic()
    passed, _, message = judged(module, seconds=2.0)
    assert not passed and message.startswith("trivial_zeros and its cell were stopped after 2 seconds")
    assert time.monotonic() - start < 30


@linux
@pytest.mark.parametrize(
    "module",
    [
        "x = [0] * 10**9\n" + RIGHT,
        "import torch\ndef trivial_zeros(n, k):\n    return torch.ones(10**10)[0]\n",
        "x = [0]\nwhile True:\n    x += x\n" + RIGHT,
    ],
    ids=["list", "tensor", "growing"],
)
def test_code_that_wants_memory(module):
    passed, _, message = judged(module, memory=1 << 28)
    assert not passed and ("MemoryError" in message or "memory" in message), message


def test_prints_go_nowhere(capfd):
    loud = "import sys, os\nprint('x' * 10**7)\nos.write(1, b'y' * 10**7)\nsys.stderr.write('z' * 10**7)\n" + RIGHT
    assert judged(loud)[0]
    assert len(capfd.readouterr().out) < 100


def test_files_are_kept_small_and_away(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert judged("open('left.txt', 'w').write('x')\n" + RIGHT)[0]
    assert "stopped with OSError" in judged("open('left.txt', 'w').write('x' * 10**8)\n" + RIGHT)[2]
    assert list(tmp_path.iterdir()) == []


def test_tries_share_nothing():
    spoil = "from rftkit import check\ncheck.TRIVIAL_ZEROS.mistakes.clear()\n"
    assert judged(spoil + BARE)[:2] == (False, None)
    assert judged(BARE)[:2] == (False, "always_zero")


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"[",
        b"{}",
        b"3",
        b'{"passed": 1, "mistake": null, "message": "x"}',
        b'{"passed": true, "mistake": "<b>", "message": "x"}',
        b"[" * 60_000,
    ],
)
def test_what_a_process_says_is_believed_in_its_form_only(said):
    assert grade._verdict(said, "kl", 1)[0] is False


# --- whole notebooks ------------------------------------------------------------------------------------------------------------


def test_solved_and_empty_copies(tmp_path):
    for solved in (True, False):
        path = tmp_path / "copy.ipynb"
        nbformat.write(make_copy("05", solved)[1], path)
        grades = grade.grade(path)
        assert [g.exercise for g in grades] == [e.name for e in ENTRIES.values() if e.notebook == "05"]
        assert all(g.passed == solved and g.points == g.of * solved for g in grades)
        assert solved or all("is not written yet" in g.message for g in grades)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_course_notebooks_with_the_solutions_written_in(path, tmp_path):
    """So a solution needs nothing that its notebook does not import."""
    notebook = read_notebook(path)
    given = stubs(notebook)
    if not given:
        with pytest.raises(UserError, match="holds no exercise of the course"):
            grade.grade(path)
        return
    _, answers = solutions(path.stem[:2])
    for cell in notebook.cells:
        for name, stub in given.items():
            cell.source = cell.source.replace(stub, answers[name])
    nbformat.write(notebook, tmp_path / "mine.ipynb")
    assert [(g.exercise, g.passed) for g in grade.grade(tmp_path / "mine.ipynb")] == [(name, True) for name in given]


def test_one_of_four(tmp_path, capsys):
    path = written(
        tmp_path / "mine.ipynb",
        ["def trivial_zeros(n, k):\n", "    return 0"],
        "def principal_angles(:",
        "check.restore_top(mine)",
    )
    assert grade.main([str(path), "--out", str(tmp_path / "report.json")]) == 1
    data = json.loads((tmp_path / "report.json").read_text())
    by_name = {row["exercise"]: row for row in data["exercises"]}
    assert (data["notebook"], data["points"], data["of"]) == ("mine.ipynb", 0, 9)
    assert by_name["trivial_zeros"]["mistake"] == "always_zero" and by_name["trivial_zeros"]["minutes"] == 10
    assert "cannot be read as Python" in by_name["principal_angles"]["message"]
    assert "There is no function restore_top" in by_name["restore_top"]["message"]
    assert "trivial_zeros: 0 of 1. You say" in capsys.readouterr().out


def test_all_right(tmp_path, capsys):
    imports, answers = solutions("04")
    assert grade.main([str(written(tmp_path / "x.ipynb", imports, *answers.values()))]) == 0
    assert json.loads(capsys.readouterr().out)["points"] == 5


def test_the_notebook_is_the_one_named_most():
    cells = ["def kl(p, q): pass", RIGHT, "check.restore_top(x)"]
    assert {e.notebook for e in grade.expected(cells, ENTRIES)} == {"05"}


@pytest.mark.parametrize(
    "text, says",
    [
        ("not json", "is not JSON"),
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "has no cells"),
        ('{"worksheets": []}', "has no cells"),
        (
            '{"cells": [3, null, {"cell_type": "code"}, {"cell_type": "code", "source": [1, null]}]}',
            "holds no exercise",
        ),
    ],
)
def test_bad_files(text, says, tmp_path):
    (tmp_path / "x.ipynb").write_text(text)
    with pytest.raises(UserError, match=says):
        grade.main([str(tmp_path / "x.ipynb")])


def test_no_file(tmp_path):
    (tmp_path / "binary.ipynb").write_bytes(b"\xff\xfe\x00")
    for name, says in (("gone.ipynb", "cannot be read"), (".", "cannot be read"), ("binary.ipynb", "is not JSON")):
        with pytest.raises(UserError, match=says):
            grade.main([str(tmp_path / name)])


def test_large_file(tmp_path, monkeypatch):
    monkeypatch.setattr(grade, "_LARGEST", 10)
    with pytest.raises(UserError, match="clear its outputs"):
        grade.code_cells(written(tmp_path / "x.ipynb", RIGHT))
