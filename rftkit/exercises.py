"""Copies of a notebook's exercises: one for learners, one with the solutions. Both come from the course's own notebook.

The notebook is the source of the text and of each stub (a function that raises NotImplementedError, above a call of
`check.NAME(NAME)`). The solutions lie apart, in `course/exercises/solutions/NN.py`, with difficulty, minutes and a hint of each
in `course/exercises/exercises.toml`. The cells carry nbgrader's metadata; nbgrader itself is not needed.
"""

from __future__ import annotations

import argparse
import ast
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rftkit.config import UserError
from rftkit.notebooks import find_notebooks, notebooks_folder, read_notebook
from rftkit.runs import output_home, write_whole

FOLDER = Path(__file__).parent.parent / "course" / "exercises"

HOW = """Write each function in place of `raise NotImplementedError`, with all that it needs in the same cell or among the \
imports. Then run that cell and the one below it, which says that the function is right, or which mistake it makes. \
What is marked as free needs the notebook itself, and nobody checks it."""

CHECK = """found = check.{name}({name})
print(found)
{points} * found.passed  # the points: nbgrader reads the last value of this cell"""

IMPORTS = """import warnings
{}
warnings.filterwarnings("ignore", message="IProgress not found")  # no progress widgets are used

from rftkit import check"""

PARAMETERS = """preset = "tiny"  # these two are those of every notebook of the course; nothing below depends on them
seed = 0"""


@dataclass(frozen=True)
class Exercise:
    """One exercise: the name of its function, stub, check and solution, and what its author says of it."""

    name: str
    notebook: str  # "03"
    difficulty: int  # 1 to 3
    minutes: int
    hint: str

    @property
    def points(self) -> int:
        return self.difficulty


# --- what there is --------------------------------------------------------------------------------------------------------------


def catalogue(folder: Path = FOLDER) -> dict[str, Exercise]:
    """All exercises by name, in the order of the notebooks. Raises UserError if the course's folder is not there."""
    path = folder / "exercises.toml"
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): run this from a checkout of the course.") from error
    return {name: Exercise(name, nb, **facts) for nb, table in tables.items() for name, facts in table.items()}


def mistakes(name: str) -> tuple[str, ...]:
    """The misconceptions that the check of an exercise names, the more basic ones first."""
    from rftkit import check  # it imports torch, which takes seconds: no command here needs that

    exercise: check.Exercise = getattr(check, name.upper())
    return tuple(exercise.mistakes)


def stubs(notebook: Any) -> dict[str, str]:
    """Source of each stub of a notebook, by name, without the call of its check."""
    found = {}
    for cell in notebook.cells:
        if cell.cell_type == "code" and "NotImplementedError" in cell.source:
            for node in ast.parse(cell.source).body:
                match node:
                    case ast.FunctionDef(name=name, body=[ast.Raise(exc=ast.Name(id="NotImplementedError"))]):
                        if f"check.{name}({name})" in cell.source:
                            found[name] = _lines(cell.source, node)
    return found


def _lines(source: str, node: ast.stmt) -> str:
    """The whole lines of a statement: comments within them stay."""
    return "\n".join(source.splitlines()[node.lineno - 1 : node.end_lineno])


def exercise_text(notebook: Any, number: str) -> str:
    """The section "Exercises" of notebook `number` in Markdown, its own number left out: what stands between the cells included.

    A copy has no parts, so a part that the text names is named with its notebook.
    """
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    section = re.search(r"^## (?:\d+\. )?Exercises$(.*?)(?=^## |\Z)", text, re.M | re.S)
    if section is None:
        raise UserError("The notebook has no section 'Exercises': give it a heading of that name.")
    named = re.sub(r"\b([Pp]arts? \d+(?:(?:,| and| to) \d+)*)", rf"\1 of notebook {number}", section[1].strip())
    return f"## Exercises\n\n{named}"


def solutions(number: str, folder: Path = FOLDER) -> tuple[str, dict[str, str]]:
    """The imports of the solutions of notebook `number`, and the source of each solution by name. Nothing is run."""
    path = folder / "solutions" / f"{number}.py"
    try:
        source = path.read_text(encoding="utf-8")
        body = ast.parse(source).body
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"The solutions {path} cannot be read: {error}.") from error
    imports = [_lines(source, node) for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    return "\n".join(imports), {node.name: _lines(source, node) for node in body if isinstance(node, ast.FunctionDef)}


# --- the copies -----------------------------------------------------------------------------------------------------------------


def make_copy(name: str, solved: bool = False) -> tuple[str, Any]:
    """(file name, notebook) of a copy of the exercises of a notebook: "03", for learners or with the solutions.

    Raises UserError if there is no such notebook, it has no exercises, or an exercise has no entry or no solution.
    """
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    (path,) = find_notebooks([name], notebooks_folder())
    source, number = read_notebook(path), path.stem[:2]
    given, entries = stubs(source), catalogue()
    if not given:
        others = ", ".join(sorted({exercise.notebook for exercise in entries.values()}))
        raise UserError(f"Notebook {number} has no checked exercises: those of {others} have.")
    imports, answers = solutions(number)
    if missing := [key for key in given if key not in entries or key not in answers]:
        raise UserError(f"{', '.join(missing)} of notebook {number}: add an entry and a solution in {FOLDER}.")
    cells = [
        new_markdown_cell(f"# {_title(source)}: exercises\n\n{HOW}", id="head"),
        new_code_cell(PARAMETERS, id="parameters", metadata={"tags": ["parameters"]}),
        new_code_cell(IMPORTS.format(f"\n{imports}\n" if imports else ""), id="imports"),
        new_markdown_cell(exercise_text(source, number), id="text"),
    ]
    for key, stub in given.items():
        cell = _solved(stub, answers[key]) if solved else stub
        facts = {"schema_version": 3, "task": False}  # of nbgrader
        answer = {**facts, "grade_id": key, "grade": False, "solution": True, "locked": False}
        test = {**facts, "grade_id": f"check-{key}", "grade": True, "solution": False, "locked": True}
        points = entries[key].points
        cells += [
            new_markdown_cell(_facts(entries[key]), id=f"about-{key}"),
            new_code_cell(cell, id=key, metadata={"nbgrader": answer}),
            new_code_cell(
                CHECK.format(name=key, points=points),
                id=f"check-{key}",
                metadata={"nbgrader": {**test, "points": points}},
            ),
        ]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    minutes = {"tiny": 0.2}  # the checks take seconds; the imports before them most of it
    copy = new_notebook(
        cells=cells, metadata={**metadata, "language_info": {"name": "python"}, "rftkit": {"minutes": minutes}}
    )
    return f"{path.stem}_{'solutions' if solved else 'exercises'}.ipynb", copy


def _title(notebook: Any) -> str:
    return next(c.source for c in notebook.cells if c.cell_type == "markdown").partition("\n")[0].removeprefix("# ")


def _facts(exercise: Exercise) -> str:
    level = ("a line or two", "some thought", "there is a trap")[exercise.difficulty - 1]
    return (
        f"**`{exercise.name}`**: difficulty {exercise.difficulty} of 3 ({level}), about {exercise.minutes} minutes.\n\n"
        f"<details><summary>Hint</summary>\n\n{exercise.hint}\n\n</details>"
    )


def _solved(stub: str, solution: str) -> str:
    """The stub with the solution's body between nbgrader's marks, so that `nbgrader generate_assignment` takes it out again."""
    kept = stub.splitlines()[:-1]  # all but the raise: the signature, and what it takes and returns
    return "\n".join([*kept, "    ### BEGIN SOLUTION", *solution.splitlines()[1:], "    ### END SOLUTION"])


# --- the command ----------------------------------------------------------------------------------------------------------------


def write_out(path: Path, text: str) -> None:
    """Write what --out names. Raises UserError."""
    try:
        write_whole(path, text)
    except OSError as error:
        raise UserError(f"{path} was not written ({error.strerror or error}): name another with --out.") from error


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m rftkit exercises",
        description="Write a copy of the exercises of a notebook, to hand out or to look up.",
    )
    parser.add_argument("notebook", help="its number or name, such as 03")
    parser.add_argument("--solutions", action="store_true", help="with the solutions; also the source for nbgrader")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: exercises/ in $RFTKIT_HOME, else in build")
    args = parser.parse_args(argv)
    import nbformat

    name, copy = make_copy(args.notebook, args.solutions)
    path = args.out or output_home() / "exercises" / name
    if args.out and (args.out.suffix != ".ipynb" or args.out.resolve().is_relative_to(notebooks_folder().resolve())):
        raise UserError(f"--out {args.out} does not fit: name a file .ipynb outside the course's own notebooks.")
    write_out(path, nbformat.writes(copy) + "\n")
    print(path)
    return 0
