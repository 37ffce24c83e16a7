"""Grade a learner's notebook: the exercise functions are taken out of it by name, and each is given to its check.

Grading RUNS the learner's code. Each function is judged in a process of its own, with limits on time, memory and file size, so
a mistake (an endless loop, a huge list, exit()) does no harm. These limits are no sandbox: code that means harm, or that wants to
forge its own result, can. Grade the work of people you do not know in a container without network and secrets.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import json
import multiprocessing
import os
import re
import signal
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import rftkit
from rftkit.config import UserError
from rftkit.exercises import Exercise, catalogue, write_out

SECONDS = 60.0  # of a check and the cell before it; a check gives up by itself after check.LIMIT
MEMORY = 2 << 30  # bytes beyond what the check itself holds
_START = 300.0  # seconds until a judging process has imported what it needs, on a busy machine
_LARGEST = 50 << 20  # bytes of a notebook; images in its outputs make most of it
_CELL = 100_000  # characters of a cell: parsing takes far longer beyond


@dataclass(frozen=True)
class Grade:
    """What became of one exercise. `mistake` is the name of a recognised mistake, or None."""

    exercise: str
    passed: bool
    mistake: str | None
    message: str
    minutes: int  # that its author thinks it takes
    points: int
    of: int


# --- read ---------------------------------------------------------------------------------------------------------------------


def code_cells(path: Path) -> list[str]:
    """Sources of the code cells of a notebook, whatever else is odd about it. Raises UserError if it is none."""
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError(f"{path} is larger than {_LARGEST >> 20} MB: clear its outputs and save it again.")
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path.") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no notebook, since it is not JSON: save it again as .ipynb.") from error
    cells = data.get("cells") if isinstance(data, dict) else None
    if not isinstance(cells, list):
        raise UserError(f"{path} is no notebook of format 4, since it has no cells: save it again as .ipynb.")
    code = [cell for cell in cells if isinstance(cell, dict) and cell.get("cell_type") == "code"]
    return [_text(cell.get("source")) for cell in code]


def _text(source: Any) -> str:
    return "".join(map(str, source)) if isinstance(source, list) else str(source)


def expected(cells: Sequence[str], entries: dict[str, Exercise]) -> list[Exercise]:
    """All exercises of the course's notebook of which `cells` define or check most. Raises UserError if they hold none."""
    text = "\n".join(cells)
    named = [e for e in entries.values() if re.search(rf"\bdef {e.name}\b|\bcheck\.{e.name}\(", text)]
    if not named:
        raise UserError("The notebook holds no exercise of the course: grade one made by `python -m rftkit exercises`.")
    numbers = [exercise.notebook for exercise in named]
    return [e for e in entries.values() if e.notebook == max(numbers, key=numbers.count)]


def answer(name: str, cells: Sequence[str]) -> str:
    """A module with the last cell that defines `name` and the imports that it needs. Raises _NoAnswer, which says why not.

    Of the cell, what only shows something or asserts is left out (so are the calls of checks); of other cells, all but imports.
    """
    own: ast.Module | str | None = None  # what the last cell that defines it holds, or what is wrong with it
    imports: list[ast.Import | ast.ImportFrom] = []
    for source in cells:
        tree = _parse(source)
        if isinstance(tree, str):
            if re.search(rf"^\s*(async\s+)?def\s+{name}\b", source, re.M):
                own = tree
            continue
        imports += [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        if name in _defined(tree):
            own = tree
    if own is None:
        raise _NoAnswer(f"There is no function {name} in the notebook: was it renamed, or its cell deleted?")
    if isinstance(own, str):
        raise _NoAnswer(f"The cell that defines {name} cannot be read as Python: {own}.")
    used = {node.id for node in ast.walk(own) if isinstance(node, ast.Name)}
    body = [node for node in own.body if not isinstance(node, ast.Expr | ast.Assert)]
    ahead = [kept for node in imports for kept in _needed(node, used)]
    first = [node for node in [*ahead, *body] if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    rest = [node for node in [*ahead, *body] if node not in first]
    return "\n".join(map(ast.unparse, [*first, *rest])) + "\n"


class _NoAnswer(Exception):
    """Why an exercise's function cannot be tried."""


def _parse(source: str) -> ast.Module | str:
    """The cell's code without magics, or what is wrong with it."""
    if len(source) > _CELL:
        return f"it is longer than {_CELL:,} characters"
    plain = re.sub(r"^[ \t]*[%!?].*$", lambda line: "#" * len(line[0]), source, flags=re.M)
    said = ""
    for text in (source, plain):  # a line within a text may begin with % as well, so magics go only if need be
        try:
            tree = ast.parse(text)
            ast.unparse(tree)  # as deep as parsing, so it may fail as well
            return tree
        except SyntaxError as error:
            said = f"{error.msg}, line {error.lineno}"
        except (ValueError, RecursionError, MemoryError):
            said = "it is nested too deeply, or holds characters that no program may hold"
    return said


def _defined(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Assign(targets=targets):
                yield from (target.id for target in targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr()):
                yield name


def _needed(node: ast.Import | ast.ImportFrom, used: set[str]) -> Iterator[ast.stmt]:
    """The parts of an import that bind a name in `used`; imports of everything are kept, relative ones cannot work."""
    names = [a for a in node.names if a.name == "*" or (a.asname or a.name.partition(".")[0]) in used]
    if isinstance(node, ast.Import):
        yield from (ast.Import([alias]) for alias in names)
    elif node.module == "__future__":
        yield node
    elif names and not node.level:
        yield ast.ImportFrom(node.module, names, 0)


# --- try ----------------------------------------------------------------------------------------------------------------------


def judge(name: str, module: str, seconds: float = SECONDS, memory: int = MEMORY) -> tuple[bool, str | None, str]:
    """(passed, mistake, message) of the check `name` on the function of that name in the source `module`, in another process.

    The processes are forked from one that has imported the checks already, where the system can fork.
    """
    context: Any = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
    if hasattr(os, "fork"):
        context.set_forkserver_preload(["rftkit.check"])
    with tempfile.TemporaryDirectory(prefix="rftkit-grade-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "answer.py"
        path.write_text(module, encoding="utf-8")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_try, args=(theirs, str(path), name, seconds, memory), daemon=True)
        process.start()
        theirs.close()
        try:
            if not _hear(ours, _START):
                raise UserError("The process that judges did not start: is rftkit.check there, and memory enough?")
            said = _hear(ours, seconds)
        finally:
            _end(process)
            ours.close()
    if said is None:
        why = f"{name} and its cell were stopped after {seconds:g} seconds: look for a loop that does not end."
        return False, None, why
    return _verdict(said, name, process.exitcode)


def _hear(pipe: Connection, seconds: float) -> bytes | None:
    """The next message; empty if the process has ended without one, None if the time is over."""
    try:
        return pipe.recv_bytes(1 << 16) if pipe.poll(seconds) else None
    except (EOFError, OSError):
        return b""


def _end(process: Any) -> None:
    """Its children, too: it leads a group of its own."""
    with contextlib.suppress(OSError, AttributeError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _verdict(said: bytes, name: str, code: int | None) -> tuple[bool, str | None, str]:
    """What the process said, believed only in the form that it must have."""
    try:
        data = json.loads(said)
        passed, mistake, message = data["passed"], data["mistake"], data["message"]
    except (ValueError, RecursionError, KeyError, TypeError):
        passed = mistake = message = None
    known = mistake is None or (isinstance(mistake, str) and re.fullmatch(r"[a-zA-Z0-9_]{1,40}", mistake))
    if type(passed) is not bool or not isinstance(message, str) or not known:
        why = "does it exit, recurse without end, or fill the memory?"
        return False, None, f"{name} or its cell ended Python (exit code {code}): {why}"
    return passed and mistake is None, mistake, message


def _try(pipe: Connection, path: str, name: str, seconds: float, memory: int) -> None:
    """In the other process: load the module, check its function, say what was found. What it prints goes nowhere."""
    with contextlib.suppress(AttributeError, OSError):
        os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    import torch

    from rftkit import check

    torch.set_num_threads(1)
    feedback = getattr(check, name)  # before the learner's code can put another in its place
    os.chdir(Path(path).parent)
    os.environ.update(HOME=str(Path(path).parent), MPLBACKEND="agg", OMP_NUM_THREADS="1")
    _limit(seconds, memory)
    pipe.send_bytes(b"ready")
    try:
        spec = importlib.util.spec_from_file_location("answer", path)
        assert spec is not None and spec.loader is not None
        answers = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(answers)
        found = feedback(getattr(answers, name))
        said = {"passed": found.passed, "mistake": found.mistake, "message": found.message[:4000]}
    except BaseException as error:  # SystemExit, too
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(" .:")
        said = {"passed": False, "mistake": None, "message": f"The cell that defines {name} stopped with {text}."}
    pipe.send_bytes(json.dumps(said).encode())
    os._exit(0)  # a loop left behind in a thread would hold it up


def _limit(seconds: float, memory: int) -> None:
    """Where the system has such limits (all but Windows; of memory, Linux only)."""
    with contextlib.suppress(ImportError):
        import resource

        held = 0
        with contextlib.suppress(OSError):
            held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limits = {"RLIMIT_CPU": int(seconds) + 5, "RLIMIT_FSIZE": 16 << 20, "RLIMIT_CORE": 0}
        if held:
            limits["RLIMIT_AS"] = held + memory
        for key, most in limits.items():
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(getattr(resource, key), (most, most))


# --- report -------------------------------------------------------------------------------------------------------------------


def grade(path: Path, seconds: float = SECONDS, memory: int = MEMORY) -> list[Grade]:
    """Grade all exercises of the notebook at `path`, those that are missing from it too. RUNS its code. Raises UserError."""
    cells = code_cells(path)
    return [_graded(exercise, cells, seconds, memory) for exercise in expected(cells, catalogue())]


def _graded(exercise: Exercise, cells: Sequence[str], seconds: float, memory: int) -> Grade:
    try:
        passed, mistake, message = judge(exercise.name, answer(exercise.name, cells), seconds, memory)
    except _NoAnswer as error:
        passed, mistake, message = False, None, str(error)
    points = exercise.points if passed else 0
    return Grade(exercise.name, passed, mistake, message, exercise.minutes, points, exercise.points)


def report(name: str, grades: Sequence[Grade]) -> dict[str, Any]:
    """The grades and their sums, for JSON."""
    return {
        "notebook": name,
        "rftkit": rftkit.__version__,
        "points": sum(g.points for g in grades),
        "of": sum(g.of for g in grades),
        "exercises": [asdict(g) for g in grades],
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m rftkit grade",
        description="Check the exercises in a learner's notebook. This RUNS code from it: grade strangers' work in a container.",
    )
    parser.add_argument(
        "notebook", type=Path, help="a copy made by `python -m rftkit exercises`, or a notebook of the course"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the JSON goes (default: printed)")
    args = parser.parse_args(argv)
    grades = grade(args.notebook)
    text = json.dumps(report(args.notebook.name, grades), indent=2, ensure_ascii=False) + "\n"
    if args.out:
        write_out(args.out, text)
        for g in grades:
            print(f"{g.exercise}: {g.points} of {g.of}. {g.message}")
    else:
        print(text, end="")
    return 0 if all(g.passed for g in grades) else 1
