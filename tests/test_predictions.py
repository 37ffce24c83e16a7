import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rftkit.config import UserError
from rftkit.predictions import Prediction, calibration, load, scored, store

ROWS = [
    ["update of the OOD peak", 100, "60, 100"],
    ["OOD at SFT's end, %", None, "3.0"],
    ["RFT against the peak", "below", "below"],
    ["change beside the null", "less", "not measured"],
]


def kept(home, notebook="05"):
    return load(home / "predictions" / f"{notebook}.json")


def test_stored_and_read_back(tmp_path):
    assert store("05", ROWS, tmp_path) is ROWS  # so that a table shows them
    assert kept(tmp_path) == [
        Prediction("update of the OOD peak", 100.0, 80.0),
        Prediction("RFT against the peak", "below", "below"),
    ]
    assert not list(tmp_path.rglob("*.part"))


def test_the_first_prediction_counts(tmp_path):
    store("05", [["a", 100, 80]], tmp_path)
    store("05", [["a", 80, 80], ["b", 1.5, 3.0]], tmp_path)
    store("05", [["a", None, 80]], tmp_path)  # a run without a reader
    assert [p.said for p in kept(tmp_path)] == [100, 1.5]


def test_nothing_said_nothing_written(tmp_path):
    store("02", [["a", None, 1.0], ["b", 2, math.nan], ["c", " ", "x"], ["d", "x", None], ["e", math.inf, 1]], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_home_is_that_of_the_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("RFTKIT_HOME", str(tmp_path))
    store("02", [["a", 1, 2]])
    assert (tmp_path / "predictions" / "02.json").exists() and "off by 1" in calibration()


@pytest.mark.parametrize(
    "said, shown, pair",
    [
        (np.float32(1.5), torch.tensor(2.5).item(), (1.5, 2.5)),
        ("40", "12 of 512", (40, 12)),
        (0, "1e-02", (0, 0.01)),
        (3, "4.0 %", (3, 4)),
        (1000, "1,024", (1000, 1024)),
        (5, "sgd", None),
        ("sgd", "see part 6", None),
        (["rft", "sft"], "sft rft", ("rft sft", "sft rft")),
        (True, "yes", ("True", "yes")),
        ("many", 2.0, ("many", "2.0")),
    ],
)
def test_values_as_they_come(said, shown, pair, tmp_path):
    store("02", [["a", said, shown, "more"]], tmp_path)
    assert [(p.said, p.measured) for p in kept(tmp_path, "02")] == [pair] if pair else not list(tmp_path.iterdir())


@given(
    st.none() | st.text() | st.floats() | st.integers() | st.lists(st.text(), max_size=3),
    st.none() | st.text() | st.floats() | st.integers(),
)
def test_whatever_a_reader_writes(tmp_path_factory, said, shown):
    home = tmp_path_factory.mktemp("home")
    store("02", [["a", said, shown]], home)
    assert isinstance(calibration(home), str)


@pytest.mark.parametrize("number", ["2", "../2", "002", ""])
def test_a_notebook_has_two_digits(number, tmp_path):
    with pytest.raises(UserError, match="is no notebook"):
        store(number, ROWS, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "[1]",
        '[{"question": "a"}]',
        '[{"question": "a", "said": "x", "measured": 1.0}]',
        '[{"question": 1, "said": "x", "measured": "x"}]',
        "[" * 100_000,
    ],
)
def test_a_broken_file_is_told(text, tmp_path):
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "02.json").write_text(text)
    for reads in (lambda: calibration(tmp_path), lambda: store("02", [["a", 1, 2]], tmp_path)):
        with pytest.raises(UserError, match="delete the file"):
            reads()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "predictions").touch()
    with pytest.raises(UserError, match="were not written"):
        store("02", [["a", 1, 2]], tmp_path)


def test_scores():
    c = scored(
        [
            Prediction("a", " Below", "below"),
            Prediction("b", "above", "below"),
            Prediction("c", "sft rft far", "sft far rft"),  # of three pairs, two
            Prediction("d", "far x", "sft far rft"),
            Prediction("e, points", 10.0, 12.0),
            Prediction("f, on all, points", 0.0, 4.0),
            Prediction("g", 0.5, 0.25),
            Prediction("h", "sft", "sft far"),
        ]
    )
    assert (c.right, c.words, c.pairs) == (1, 3, ((2, 3), (0, 3)))
    assert c.errors == {"points": [2.0, 4.0], "g": [0.25]}


def test_a_said_item_counts_once_and_unknown_ones_do_not():
    assert scored([Prediction("a", "b c a c x", "a b c")]).pairs == ((1, 3),)


def test_calibration_reads_well(tmp_path):
    assert calibration(tmp_path).startswith("No predictions are stored")
    store("02", [["lost by SFT, points", 40, 30], ["culprit", "rate", "rate"]], tmp_path)
    store("04", [["order", "a b", "b a"], ["same", "x", "y"], ["lost, points", 10, 30], ["nats", 2, "1.5"]], tmp_path)
    (tmp_path / "predictions" / "notes.json").write_text("mine")
    assert calibration(tmp_path).splitlines() == [
        "notebook 02: 1 of 1 words right; points: off by 10",
        "notebook 04: 0 of 1 words right; 0 of 1 pairs in the right order; nats: off by 0.5; points: off by 20",
        "all: 1 of 2 words right; 0 of 1 pairs in the right order; nats: off by 0.5; points: off by 15 on average of 2",
    ]


def test_the_file_is_plain_json(tmp_path):
    store("02", [["a", 1, 2.5]], tmp_path)
    rows = json.loads((tmp_path / "predictions" / "02.json").read_text())
    assert rows == [{"question": "a", "said": 1.0, "measured": 2.5}]
