"""The exercises' copies: both run, the solved one passes every check, the other fails each with its own message."""

import copy
import importlib.util
import inspect
import re
from pathlib import Path

import nbformat
import pytest
from test_notebooks import problems

from rftkit import check, exercises, notebooks
from rftkit.config import UserError
from rftkit.exercises import FOLDER, catalogue, make_copy, mistakes, solutions, stubs
from rftkit.notebooks import Plan, execute, kernel_environment, read_notebook

ROOT = Path(__file__).parent.parent
ENTRIES = catalogue()
SOURCES = {path.stem[:2]: read_notebook(path) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
WITH = [number for number, notebook in SOURCES.items() if stubs(notebook)]
each_notebook = pytest.mark.parametrize("number", WITH)
both = pytest.mark.parametrize("solved", [False, True], ids=["student", "solved"])


@pytest.fixture(autouse=True)
def at_the_top(monkeypatch):
    monkeypatch.chdir(ROOT)


def solution_module(number):
    spec = importlib.util.spec_from_file_location(f"solutions_{number}", FOLDER / "solutions" / f"{number}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- what there is --------------------------------------------------------------------------------------------------------------


def test_there_are_exercises():
    assert {"03", "04", "05"} <= set(WITH)


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=lambda entry: entry.name)
def test_solution(entry):
    """Also of exercises whose notebook is not there."""
    found = getattr(check, entry.name)(getattr(solution_module(entry.notebook), entry.name))
    assert found.passed, found.message


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=lambda entry: entry.name)
def test_entry(entry):
    assert entry.difficulty in (1, 2, 3) and 5 <= entry.minutes <= 60 and entry.minutes % 5 == 0
    assert entry.hint[-1] in ".?" and 20 < len(entry.hint) < 180
    assert mistakes(entry.name) and all(re.fullmatch(r"[a-zA-Z0-9_]{1,40}", name) for name in mistakes(entry.name))


@each_notebook
def test_notebook_entries_and_solutions_agree(number):
    given = stubs(SOURCES[number])
    _, answers = solutions(number)
    assert list(given) == list(answers) == [e.name for e in ENTRIES.values() if e.notebook == number]
    for name, stub in given.items():
        assert stub.splitlines()[0] == answers[name].splitlines()[0]  # the same signature
        assert len(inspect.signature(getattr(check, name)).parameters) == 1


@each_notebook
def test_every_stub_that_is_checked_is_seen(number):
    calls = [re.findall(r"check\.(\w+)\(", cell.source) for cell in SOURCES[number].cells if cell.cell_type == "code"]
    assert [name for found in calls for name in found] == list(stubs(SOURCES[number]))


# --- the copies -----------------------------------------------------------------------------------------------------------------


@each_notebook
@both
def test_copy_is_clean(number, solved, tmp_path):
    """The linter of the notebooks accepts a copy but for its size, which is that of a sheet, and the minutes that an exercise may take."""
    name, made = make_copy(number, solved)
    nbformat.validate(made)
    usual = re.compile(r"\d+ cells: keep to|.*difficulty \d of 3 \([^)]*\), about \d+ minutes")
    assert [p for p in problems(made, tmp_path / name) if not usual.match(p)] == []
    assert 10 <= len(made.cells) <= 25
    assert make_copy(number, solved) == (name, made)


@each_notebook
def test_a_part_that_a_copy_names_is_named_with_its_notebook(number):
    text = "\n".join(cell.source for cell in make_copy(number)[1].cells)
    named = re.findall(r"\b[Pp]arts? \d+(.{15})", text)
    assert set(named) <= {f" of notebook {number}"} and (named or number not in ("03", "04", "06"))


@each_notebook
@both
def test_cells_are_nbgraders(number, solved):
    _, made = make_copy(number, solved)
    marked = [cell.metadata.nbgrader for cell in made.cells if "nbgrader" in cell.metadata]
    names = list(stubs(SOURCES[number]))
    assert [m.grade_id for m in marked] == [x for name in names for x in (name, f"check-{name}")]
    for m in marked:
        keys = {"schema_version", "grade_id", "grade", "solution", "locked", "task"} | (
            {"points"} if m.grade else set()
        )
        assert set(m) == keys and m.schema_version == 3 and m.grade == m.locked == (not m.solution)
        assert re.fullmatch(r"[a-zA-Z0-9_-]+", m.grade_id)
    assert sum(m.get("points", 0) for m in marked) == sum(ENTRIES[name].difficulty for name in names)


@each_notebook
def test_taking_the_solutions_out_leaves_the_stubs(number):
    """As nbgrader does: it puts its own lines in place of what stands between the marks."""
    (_, solved), (_, plain) = make_copy(number, True), make_copy(number)
    for one, other in zip(solved.cells, plain.cells, strict=True):
        region = re.compile(r"^    ### BEGIN SOLUTION\n.*?^    ### END SOLUTION", re.M | re.S)
        assert region.sub("    raise NotImplementedError", one.source) == other.source
        assert ("### BEGIN" in one.source) == one.metadata.get("nbgrader", {}).get("solution", False)


def run_here(made):
    """Execute the cells in one namespace, a kernel's worth of seconds cheaper. The feedback and the points by exercise."""
    space, found = {}, {}
    for cell in made.cells:
        if cell.cell_type == "code":
            *body, last = cell.source.rsplit("\n", 1)
            graded = cell.metadata.get("nbgrader", {}).get("grade")
            exec("\n".join(body) if graded else cell.source, space)
            if graded:
                found[cell.metadata.nbgrader.grade_id.removeprefix("check-")] = (space["found"], eval(last, space))
    return found


@each_notebook
def test_student_copy_fails_each_check_with_its_own_message(number, capsys):
    found = run_here(make_copy(number)[1])
    assert list(found) == list(stubs(SOURCES[number]))
    for name, (feedback, points) in found.items():
        assert not feedback.passed and points == 0 and feedback.message.startswith(f"{name} is not written yet")
    assert capsys.readouterr().out.count("Not yet:") == len(found)


@each_notebook
def test_solved_copy_passes_each_check(number, capsys):
    for name, (feedback, points) in run_here(make_copy(number, True)[1]).items():
        assert feedback.passed and points == ENTRIES[name].points, feedback.message


def test_a_kernel_runs_a_copy_to_its_end(tmp_path):
    """Through papermill, one exercise of three solved; with the points that nbgrader would count."""
    (name, made), (_, solved) = make_copy("04"), make_copy("04", True)
    at = next(i for i, cell in enumerate(made.cells) if cell.id == "matched_drop")
    made.cells[at] = solved.cells[at]
    nbformat.write(made, tmp_path / name)
    for part in ("notebooks", "html"):
        (tmp_path / part).mkdir()
    with kernel_environment("tiny", tmp_path):
        assert execute(Plan(tmp_path / name, {}, None), tmp_path).problem is None
    cells = nbformat.read(tmp_path / "notebooks" / name, as_version=4).cells
    results = [o for cell in cells if cell.cell_type == "code" for o in cell.outputs]
    assert [o for o in results if o.output_type == "error" or o.get("name") == "stderr"] == []  # no points there
    points = [int(o["data"]["text/plain"]) for o in results if o.output_type == "execute_result"]
    assert points == [0, 0, ENTRIES["matched_drop"].points]


# --- what can be wrong ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number, says", [("02", "has no checked exercises"), ("99", "There is no notebook '99'")])
def test_no_such_exercises(number, says):
    with pytest.raises(UserError, match=says):
        make_copy(number)


def test_an_exercise_without_an_entry(tmp_path, monkeypatch):
    notebook = copy.deepcopy(SOURCES["04"])
    stub = "def new(x):\n    raise NotImplementedError\n\n\nprint(check.new(new))"
    notebook.cells.append(nbformat.v4.new_code_cell(stub))
    nbformat.write(notebook, tmp_path / "04_x.ipynb")
    monkeypatch.setattr(exercises, "notebooks_folder", lambda: tmp_path)
    with pytest.raises(UserError, match="new of notebook 04: add an entry and a solution"):
        make_copy("04")


def test_only_stubs_with_their_check_are_exercises():
    cells = [
        "def a():\n    raise NotImplementedError",
        "def b():\n    raise NotImplementedError\n\n\ncheck.b(b)",
        "def c():\n    return check.c(c)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    assert stubs(notebook) == {"b": "def b():\n    raise NotImplementedError"}


def test_no_folder_no_section(tmp_path):
    with pytest.raises(UserError, match="run this from a checkout"):
        catalogue(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        solutions("03", tmp_path)
    with pytest.raises(UserError, match="no section 'Exercises'"):
        exercises.exercise_text(nbformat.v4.new_notebook(), "03")


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RFTKIT_HOME", str(tmp_path))
    assert (
        exercises.main(["03"]) == 0
        and exercises.main(["03", "--solutions", "--out", str(tmp_path / "a" / "b.ipynb")]) == 0
    )
    first, second = map(Path, capsys.readouterr().out.split())
    assert first == tmp_path / "exercises" / "03_learning_dynamics_exercises.ipynb"
    assert nbformat.read(first, as_version=4) == make_copy("03")[1]
    assert nbformat.read(second, as_version=4) == make_copy("03", True)[1]
    assert not list(tmp_path.rglob("*.part"))


def test_command_spares_the_notebooks(tmp_path):
    own = notebooks.notebooks_folder() / "03_learning_dynamics.ipynb"
    before = own.read_bytes()
    for out, says in (
        (own, "does not fit"),
        (tmp_path / "x.txt", "does not fit"),
        (tmp_path / "x.ipynb" / "y.ipynb", "was not written"),
    ):
        (tmp_path / "x.ipynb").touch()
        with pytest.raises(UserError, match=says):
            exercises.main(["03", "--out", str(out)])
    assert own.read_bytes() == before


# --- the page -------------------------------------------------------------------------------------------------------------------


def test_readme_lists_every_exercise():
    rows = [
        f"| {e.notebook} | `{e.name}` | {e.difficulty} | {e.minutes} | {', '.join(mistakes(e.name)).replace('_', ' ')} |"
        for e in ENTRIES.values()
    ]
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if re.match(r"\| \d\d \|", line)] == rows
