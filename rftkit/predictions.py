"""What readers predicted, beside what was measured: kept over the notebooks, so that the last one can say how good they were.

The table that ends a notebook passes its rows through `store`: `table(header, predictions.store("05", rows))`. One JSON file a
notebook, under RFTKIT_HOME. The first prediction of a question counts: one made after looking would be none.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from rftkit.config import UserError
from rftkit.runs import output_home, write_whole

Value = float | str | None
Row = Sequence[Any]  # question, what the reader said, what was measured, and perhaps more


@dataclass(frozen=True)
class Prediction:
    """Two words are equal or not, words with spaces between are an order, numbers are so far off."""

    question: str  # "OOD at SFT's end, %": what stands behind the comma is the unit of numbers
    said: float | str
    measured: float | str

    @property
    def unit(self) -> str:
        return self.question.rpartition(", ")[2] if ", " in self.question else ""


@dataclass(frozen=True)
class Calibration:
    """`pairs`: of each order, (pairs in the right order, pairs). `errors`: absolute errors of numbers, by their unit or question."""

    right: int
    words: int
    pairs: tuple[tuple[int, int], ...]
    errors: dict[str, list[float]]


# --- keep -----------------------------------------------------------------------------------------------------------------------


def store(notebook: str, rows: Sequence[Row], home: Path | None = None) -> Sequence[Row]:
    """Keep what was both said and measured in the rows of the table that ends `notebook` ("05"), and return the rows.

    A number may be written as it is shown: "3.1", "1e-02", "12 of 512", or of several seeds "80, 120" (their mean counts).
    What is None, NaN, "not measured" or no number where one was predicted is left out. Raises UserError if the file cannot be
    read or written.
    """
    path = _path(notebook, home)
    kept = {p.question: p for p in load(path)} if path.exists() else {}
    before = len(kept)
    for question, given, shown, *_ in rows:
        said = _said(given)
        measured = _measured(shown, isinstance(said, float))
        if said is not None and measured is not None:
            kept.setdefault(str(question), Prediction(str(question), said, measured))
    if len(kept) > before:
        _write(path, list(kept.values()))
    return rows


def _path(notebook: str, home: Path | None) -> Path:
    if not re.fullmatch(r"[0-9]{2}", notebook):
        raise UserError(f"{notebook!r} is no notebook: give its number with two digits, such as '05'.")
    return (home or output_home()) / "predictions" / f"{notebook}.json"


def _said(given: Any) -> Value:
    """Whatever a reader may write: a number as text too, an order as a list too."""
    text = " ".join(map(str, given)) if isinstance(given, list | tuple) else "" if given is None else str(given).strip()
    try:
        number = float(text)
    except ValueError:
        return text or None
    return number if math.isfinite(number) else None


def _measured(shown: Any, number: bool) -> Value:
    text = "" if shown is None else str(shown).strip()
    if text in ("", "nan", "not measured", "not told") or text.startswith("see "):
        return None
    if not number:
        return text
    parts = [part.partition(" of ")[0].rstrip("% ").replace(",", "") for part in text.split(", ")]
    try:
        mean = sum(map(float, parts)) / len(parts)
    except ValueError:
        return None
    return mean if math.isfinite(mean) else None


def _write(path: Path, kept: Sequence[Prediction]) -> None:
    text = json.dumps([asdict(p) for p in kept], indent=1, ensure_ascii=False) + "\n"
    try:
        write_whole(path, text.encode("utf-8", "replace").decode("utf-8"))
    except OSError as error:
        raise UserError(f"The predictions {path} were not written ({error}): set RFTKIT_HOME elsewhere.") from error


def load(path: Path) -> list[Prediction]:
    """Read what `store` wrote. Raises UserError."""
    try:
        kept = [Prediction(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
        for p in kept:
            if not isinstance(p.question, str) or {type(p.said), type(p.measured)} not in ({float}, {str}):
                raise ValueError("a row of the wrong kind")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"The predictions {path} cannot be read ({error}): delete the file and predict again."
        ) from error
    return kept


# --- score ----------------------------------------------------------------------------------------------------------------------


def scored(predictions: Sequence[Prediction]) -> Calibration:
    """How good they were."""
    words: list[bool] = []
    pairs: list[tuple[int, int]] = []
    errors: dict[str, list[float]] = {}
    for p in predictions:
        if isinstance(p.said, float) and isinstance(p.measured, float):
            errors.setdefault(p.unit or p.question, []).append(abs(p.said - p.measured))
            continue
        said, measured = (str(value).casefold().split() for value in (p.said, p.measured))
        if len(measured) > 1 and len(said) > 1:
            pairs.append(_in_order(said, measured))
        else:
            words.append(said == measured)
    return Calibration(sum(words), len(words), tuple(pairs), errors)


def _in_order(said: list[str], order: list[str]) -> tuple[int, int]:
    """Of all pairs of the measured order; an item that was not said is in no right pair."""
    place = {item: i for i, item in reversed(list(enumerate(said)))}
    couples = list(combinations(order, 2))
    return sum(a in place and b in place and place[a] < place[b] for a, b in couples), len(couples)


def calibration(home: Path | None = None) -> str:
    """All stored predictions in a few lines to print, notebook by notebook and together. Raises UserError for a broken file."""
    paths = sorted(((home or output_home()) / "predictions").glob("[0-9][0-9].json"))
    stored = {path.stem: load(path) for path in paths}
    if not any(stored.values()):
        return "No predictions are stored: fill in the `my_...` variables and run the notebooks."
    lines = [f"notebook {number}: {_line(scored(kept))}" for number, kept in stored.items()]
    return "\n".join([*lines, f"all: {_line(scored([p for kept in stored.values() for p in kept]))}"])


def _line(c: Calibration) -> str:
    """Numbers of different units have no common mean, so each unit has its own."""
    parts = [f"{c.right} of {c.words} words right"] if c.words else []
    if c.pairs:
        right, n = (sum(column) for column in zip(*c.pairs, strict=True))
        parts.append(f"{right} of {n} pairs in the right order")
    for unit, off in sorted(c.errors.items()):
        parts.append(f"{unit}: off by {sum(off) / len(off):.3g}{f' on average of {len(off)}' if len(off) > 1 else ''}")
    return "; ".join(parts)
