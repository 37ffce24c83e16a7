"""The run record: what a run was, what it measured, and how runs are compared at matched new-task accuracy.

A record is one JSON file, never a pickle: it can be read by eye, by any tool, and cannot run code.
Runs made on the reader's machine are *live*, those that ship in `course/recorded/` *recorded*: every figure says which.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import math
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from rftkit.config import UserError
from rftkit.evals import Floats, Interval, crossing, paired_interval, t_interval, value_at

RECORDED_DIR = Path(__file__).parent.parent / "course" / "recorded"
PACKAGES = ("rftkit", "torch", "transformers", "trl", "peft", "accelerate", "numpy", "pillow")
_SCHEMA = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERDICTS = {"correct", "wrong", "unparseable"}
_COUNTS = ("seconds", "examples", "tokens", "new_n")
_MOST = dict.fromkeys(_COUNTS, 1e15) | dict.fromkeys(("new_exact", "new_hit", "prior_mean"), 1.0)


@dataclass
class RunRecord:
    """One training run of one seed. Mutable: a run appends to `metrics` and `samples` while it goes.

    A row of `metrics` is an evaluation, {"kind": "eval", "step", "seconds", "examples", "tokens", "new_exact",
    "new_hit", "new_n", "prior": {probe: {"correct", "wrong", "unparseable"}}, "prior_mean"}, accuracies in [0, 1], step
    in updates; or an update, {"kind": "train", "step", "loss", ...}. A row of `samples` is {"step", "prompt",
    "completion", "reward"}. Evaluation steps increase, and the first evaluation is of the model before training.
    """

    name: str
    method: str  # a key of plots.METHOD_STYLE
    preset: str
    seed: int
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    status: str = "running"
    metrics: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    source: str = "live"

    def evals(self) -> list[dict[str, Any]]:
        return [row for row in self.metrics if row["kind"] == "eval"]


def versions() -> dict[str, str]:
    """Versions of Python, the platform and the packages that decide a result. No host name, no path."""
    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


# --- files ------------------------------------------------------------------------------------------------------------


def output_home() -> Path:
    """Where runs are written: the folder named by RFTKIT_HOME, else ./build."""
    return Path(os.environ.get("RFTKIT_HOME") or "build")


def run_dir(home: Path, name: str) -> Path:
    """The folder of run `name` under `home`, made if absent. Raises UserError unless the name is a plain file name."""
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} cannot name a run: use letters, digits, dots, dashes and underscores.")
    path = Path(home) / "runs" / name
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {path} cannot be made ({error.strerror}): set RFTKIT_HOME elsewhere.") from error
    return path


def write_whole(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all: a reader sees the old file or the new one, never half of one. Raises OSError, and
    the old file is then as it was.

    The text goes to a file beside `path`, is flushed to disk, then takes its name in one step.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")  # same folder: a rename is atomic only within a disk
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # else a power cut could leave the new name on an empty file
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def save_record(record: RunRecord, path: Path) -> None:
    """Write the record as JSON (`write_whole`). If that fails (disk full, no permission) UserError says why. NaN and infinities are
    written as null."""
    path = Path(path)
    try:
        write_whole(path, _to_json(record))
    except OSError as error:
        raise UserError(
            f"The run record {path} was not written ({error.strerror or error}), an earlier one is untouched: "
            "free some space or set RFTKIT_HOME to a folder you can write."
        ) from error


def load_record(path: Path) -> RunRecord:
    """Read what `save_record` wrote. Raises UserError if the file is missing, is no JSON, or is no run record."""
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise UserError(f"The run record {path} cannot be read ({error.strerror or error}): check the path.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"The run record {path} is not JSON ({error}): delete it and run again.") from error
    _check(data, path.name)
    return RunRecord(**{f.name: data[f.name] for f in dataclasses.fields(RunRecord)})


def load_recorded(method: str | None = None, preset: str = "tiny", folder: Path = RECORDED_DIR) -> list[RunRecord]:
    """The runs that ship with the course, by method and seed; empty if there are none for this method and preset. Raises UserError for
    a folder of one's own that does not exist."""
    if not Path(folder).is_dir() and Path(folder) != RECORDED_DIR:
        raise UserError(
            f"There is no folder {Path(folder).absolute()}: name the one that holds the recorded runs, from the root on."
        )
    paths = sorted(Path(folder).glob("*.json"))
    records = [dataclasses.replace(load_record(path), source="recorded") for path in paths]
    chosen = [r for r in records if r.preset == preset and method in (None, r.method)]
    return sorted(chosen, key=lambda r: (r.method, r.seed))


def truncate_after(record: RunRecord, step: int) -> RunRecord:
    """A copy without the rows after `step`, running again: a run resumed from its checkpoint repeats the rest."""
    metrics = [row for row in record.metrics if row["step"] <= step]
    samples = [row for row in record.samples if row["step"] <= step]
    return dataclasses.replace(record, metrics=metrics, samples=samples, status="running")


def prefer_live(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Drop each recorded run that a live one of the same method, preset and seed replaces: no seed counts twice."""
    live = {(r.method, r.preset, r.seed) for r in records if r.source == "live"}
    return [r for r in records if r.source == "live" or (r.method, r.preset, r.seed) not in live]


def _to_json(record: RunRecord) -> str:
    data = {"schema": _SCHEMA} | dataclasses.asdict(record)
    try:  # there and back: tuples become lists, and a diverged loss becomes null, since JSON has no NaN
        data = json.loads(json.dumps(data, default=_to_number), parse_constant=lambda _: None)
    except (TypeError, ValueError) as error:
        raise UserError(f"Run {record.name!r} is no JSON ({error}): keep to numbers, text, lists, dicts.") from error
    _check(data, record.name)
    return json.dumps(data, indent=1, allow_nan=False)


def _to_number(value: Any) -> Any:
    if getattr(value, "ndim", None) == 0:  # a scalar of numpy or torch
        return value.item()
    raise TypeError(f"it holds a {type(value).__name__}")


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


# --- what a record must look like -------------------------------------------------------------------------------------


def _check(data: Any, name: str) -> None:
    """Raise UserError naming the first thing that is wrong with a record's data."""

    def need(good: bool, what: str) -> None:
        if not good:
            raise UserError(f"The run record {name!r} is damaged or of another version ({what}): make the run again.")

    need(isinstance(data, dict) and data.get("schema") == _SCHEMA, f"schema is not {_SCHEMA}")
    kinds: dict[str, type] = {
        "name": str, "method": str, "preset": str, "seed": int, "config": dict, "versions": dict,
        "status": str, "metrics": list, "samples": list, "source": str,
    }  # fmt: skip
    for key, kind in kinds.items():
        need(type(data.get(key)) is kind, f"{key} is not {kind.__name__}")
    need(data["status"] in ("running", "done", "failed"), f"status {data['status']!r}")
    need(data["source"] in ("live", "recorded"), f"source {data['source']!r}")
    for row in data["metrics"] + data["samples"]:
        need(type(row) is dict and type(row.get("step")) is int and 0 <= row["step"] < 1e15, "a row without a step")
    need(all(isinstance(row.get("kind"), str) for row in data["metrics"]), "a metrics row without its kind")
    rows = [row for row in data["metrics"] if row["kind"] == "eval"]
    need(all(a["step"] < b["step"] for a, b in itertools.pairwise(rows)), "evaluation steps do not increase")
    for row in rows:
        for key, most in _MOST.items():
            good = type(row.get(key)) in (int, float) and 0 <= row[key] <= most
            need(good, f"{key} of the evaluation at step {row['step']} is no number from 0 to {most:g}")
        need(isinstance(row.get("prior"), dict), f"no prior at step {row['step']}")
        for counts in row["prior"].values():
            whole = isinstance(counts, dict) and all(type(n) is int and n >= 0 for n in counts.values())
            need(whole and set(counts) == _VERDICTS, f"a probe at step {row['step']} is not three counts")


# --- comparing runs ---------------------------------------------------------------------------------------------------


class Matched(TypedDict):
    """A run at the step where it first reached the target; `drop` in percentage points since its first evaluation."""

    step: float
    prior_mean: float
    drop: float


@dataclass(frozen=True)
class MatchedRow:
    """One method at matched new-task accuracy. Drops in percentage points, one a seed; NaN where there is none."""

    method: str
    target: float
    seeds: tuple[int, ...]
    drops: tuple[float, ...]
    mean: float
    lo: float
    hi: float
    excluded: tuple[str, ...]  # names of the runs that never reached the target
    live: tuple[int, ...]  # which of `seeds` are live; the others are recorded


def curve(record: RunRecord, key: str) -> tuple[Floats, Floats]:
    """(steps, values) of a number of the evaluations, as "new_exact" or "prior_mean": shape (evaluations,) each."""
    rows = record.evals()
    if not rows or key not in rows[0]:
        raise UserError(f"Run {record.name!r} has no {key!r} in an evaluation: evaluate it, and ask for what is there.")
    return np.array([row["step"] for row in rows], float), np.array([row[key] for row in rows], float)


def prior_drop(record: RunRecord) -> tuple[Floats, Floats]:
    """The forgetting curve: (steps, percentage points of prior accuracy lost since the first evaluation)."""
    steps, prior = curve(record, "prior_mean")
    return steps, 100 * (prior[0] - prior)


def drop_at(record: RunRecord, step: float) -> float:
    """Percentage points of prior accuracy lost by update `step`, linear between evaluations."""
    return value_at(*prior_drop(record), step)


def at_matched(record: RunRecord, target: float) -> Matched | None:
    """The run where its new-task exact accuracy first reaches `target` in (0, 1]; None if it never does.

    Step and prior are linear between evaluations.
    """
    if not 0 < target <= 1:
        raise UserError(f"The target {target} is not an accuracy to match at: choose one in (0, 1].")
    steps, new = curve(record, "new_exact")
    step = crossing(steps, new, target)
    if step is None:
        return None
    prior = curve(record, "prior_mean")[1]
    at = value_at(steps, prior, step)
    return Matched(step=step, prior_mean=at, drop=float(100 * (prior[0] - at)))


def matched_table(records: Sequence[RunRecord], target: float) -> list[MatchedRow]:
    """One row a method, in order of appearance: mean drop at the target with Student's t interval over seeds.

    A run that did not reach the target is named in `excluded` and counts in nothing: a run that learnt little forgets
    little, which says nothing about the method. Raises UserError if presets are mixed or a seed comes twice.
    """
    _check_comparable(records)
    methods = dict.fromkeys(r.method for r in records)
    return [_matched_row([r for r in records if r.method == method], target) for method in methods]


def _matched_row(records: list[RunRecord], target: float) -> MatchedRow:
    found = [(r, at_matched(r, target)) for r in records]
    drops = {r.seed: m["drop"] for r, m in found if m}
    mean, lo, hi = t_interval(list(drops.values())) if drops else (math.nan, math.nan, math.nan)
    live = tuple(r.seed for r, m in found if m and r.source == "live")
    excluded = tuple(r.name for r, m in found if not m)
    return MatchedRow(records[0].method, target, tuple(drops), tuple(drops.values()), mean, lo, hi, excluded, live)


def paired_drop(records: Sequence[RunRecord], a: str, b: str, target: float) -> tuple[tuple[int, ...], Interval]:
    """(seeds, interval of drop of `a` minus drop of `b` in percentage points), over the seeds where both reached it.

    Raises UserError if there is no such seed.
    """
    rows = {row.method: dict(zip(row.seeds, row.drops, strict=True)) for row in matched_table(records, target)}
    seeds = tuple(sorted(rows.get(a, {}).keys() & rows.get(b, {}).keys()))
    if not seeds:
        raise UserError(f"No seed of both {a!r} and {b!r} reached {target}: lower the target or train longer.")
    return seeds, paired_interval([rows[a][s] for s in seeds], [rows[b][s] for s in seeds])


def _check_comparable(records: Sequence[RunRecord]) -> None:
    if not records:
        raise UserError("There are no runs to compare: make one, or load the recorded ones.")
    if len(presets := {r.preset for r in records}) > 1:
        raise UserError(f"Runs of the presets {', '.join(sorted(presets))} share no table: compare those of one.")
    seen: set[tuple[str, int]] = set()
    for r in records:
        if (r.method, r.seed) in seen:
            raise UserError(f"Seed {r.seed} of {r.method!r} comes twice: keep one run of each, see prefer_live.")
        seen.add((r.method, r.seed))
