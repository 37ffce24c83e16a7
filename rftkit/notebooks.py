"""Runs the notebooks with papermill, in the interpreter that runs us, and writes an HTML page of each.

Needs the `course` extra (papermill, nbformat, nbconvert, ipykernel, math-core); they are imported where they are used.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import html
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from rftkit.config import UserError, get_preset
from rftkit.runs import output_home

Scalar = bool | int | float | str | None

KINDS = {bool: "true or false", int: "a whole number", float: "a number", type(None): "a single value"}

MEMORY = 2.5e9  # bytes that a notebook takes at the tiny tier, at most
GRACE = 10.0  # seconds in which an interrupted notebook may end by itself

# The tiny tier needs no network: say so to the Hub client, and keep TRL's and the Hub's telemetry quiet.
OFFLINE = {"CI": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

# nbconvert's page without the scripts that it would load from other hosts: require.js, widgets, MathJax, Mermaid. We need none.
PAGE = """{% extends "index.html.j2" %}
{% block html_head_js %}{% endblock %}
{% block jupyter_widgets %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block html_head_css %}<style>.formula { display: block; overflow: auto hidden; padding: 0.25rem 0; }</style>{% endblock %}
"""


@dataclass(frozen=True)
class Plan:
    """One notebook, checked and ready to run. `minutes` is the cost its author measured, None if unknown."""

    path: Path
    parameters: dict[str, Scalar]
    minutes: float | None


@dataclass(frozen=True)
class Outcome:
    """What became of one notebook. `problem` is None if it ran to its end; `minutes` is wall time."""

    name: str
    minutes: float
    problem: str | None


def notebooks_folder() -> Path:
    """The `notebooks` folder here, or that of the checkout this package was installed from."""
    here = Path("notebooks")
    return here if here.is_dir() else Path(__file__).resolve().parent.parent / "notebooks"


def find_notebooks(names: Sequence[str], folder: Path) -> list[Path]:
    """Paths of the notebooks called `names` (2, 02, 02_sft_vs_rft or sft_vs_rft), or of all. Raises UserError."""
    found = {path.stem: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    if not found:
        raise UserError(f"There are no notebooks in {folder}: run this from the top of a checkout of rftkit.")
    chosen: dict[str, Path] = {}
    for name in names:
        wanted = Path(name).stem
        stem = next((s for s in found if wanted in (s, s[3:]) or wanted.zfill(2) == s[:2]), None)
        if stem is None:
            raise UserError(f"There is no notebook {name!r}: choose from {', '.join(found)}.")
        chosen[stem] = found[stem]
    return list((chosen or found).values())


def read_notebook(path: Path) -> Any:
    """The notebook at `path` as an nbformat node. Raises UserError if it cannot be read."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        raise UserError(f"{path} cannot be read as a notebook: {_first_line(str(error))}.") from error


def declared_parameters(notebook: Any, name: str) -> dict[str, Scalar]:
    """Names and default values in the one cell tagged `parameters`: plain assignments of scalars. Raises UserError."""
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        # papermill itself only warns, and then puts the parameters where the notebook overwrites them
        raise UserError(f"{name} has {len(cells)} cells tagged 'parameters': tag exactly one.")
    try:
        return dict(_assignment(statement) for statement in ast.parse(cells[0].source).body)
    except (SyntaxError, ValueError) as error:
        raise UserError(f"The parameters cell of {name} may only set names to single values: {error}.") from error


def _assignment(statement: ast.stmt) -> tuple[str, Scalar]:
    match statement:
        case (
            ast.Assign(targets=[ast.Name(id=name)], value=node)
            | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as node)
        ):
            value = ast.literal_eval(node)  # literals only: nothing is run
            if value is None or isinstance(value, bool | int | float | str):
                return name, value
    raise ValueError(f"line {statement.lineno} does something else")


def convert(name: str, text: str, default: Scalar) -> Scalar:
    """Read `text` as a value of the type of `default` (any scalar if that is None). Raises UserError."""
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval(text.capitalize() if text in ("true", "false") else text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if default is None and (value is None or isinstance(value, bool | int | float | str)):
        return value
    if type(value) is not type(default):
        raise UserError(f"{name} = {text} does not fit: give {KINDS[type(default)]}, such as {default!r}.")
    return value


def make_plan(path: Path, preset: str, given: dict[str, str]) -> Plan:
    """Read one notebook and check the parameters `given` as text against those it declares. Raises UserError."""
    notebook = read_notebook(path)
    declared = declared_parameters(notebook, path.name)
    parameters: dict[str, Scalar] = {}
    for key, text in {"preset": preset, **given}.items():
        if key not in declared:
            raise UserError(f"{path.stem} has no parameter {key!r}: it takes {', '.join(declared) or 'none'}.")
        parameters[key] = convert(key, text, declared[key])
    minutes = notebook.metadata.get("rftkit", {}).get("minutes", {}).get(preset)
    return Plan(path, parameters, minutes)


@contextlib.contextmanager
def kernel_environment(preset: str, home: Path) -> Iterator[None]:
    """Set what the kernels inherit, and put it back afterwards.

    A kernelspec named python3 that starts *this* interpreter goes into a temporary folder at the head of Jupyter's
    search path: one that the user registered elsewhere cannot take its place, and nothing is registered globally.
    """
    from ipykernel.kernelspec import write_kernel_spec

    package_parent = str(Path(__file__).resolve().parent.parent)  # the kernel imports the same rftkit as we do
    with tempfile.TemporaryDirectory(prefix="rftkit-kernel-") as folder:
        # its warning that a local TCP port is not encrypted would only frighten
        write_kernel_spec(Path(folder) / "kernels" / "python3", extra_arguments=["--log-level=ERROR"])
        values = {"RFTKIT_HOME": str(home)}
        for key, first in (("JUPYTER_PATH", folder), ("PYTHONPATH", package_parent)):
            values[key] = os.pathsep.join(filter(None, (first, os.environ.get(key))))
        if preset == "tiny":
            values |= {key: os.environ.get(key, value) for key, value in OFFLINE.items()}
        before = {key: os.environ.get(key) for key in values}
        os.environ.update(values)
        try:
            yield
        finally:
            for key, old in before.items():
                if old is None:
                    del os.environ[key]
                else:
                    os.environ[key] = old


def execute(plan: Plan, home: Path) -> Outcome:
    """Run one notebook into home/notebooks, as far as it goes, and on success write home/html."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    target = home / "notebooks" / plan.path.name
    start = time.perf_counter()
    problem = None
    run = functools.partial(
        papermill.execute_notebook, plan.path, target, plan.parameters, kernel_name="python3", language="python",
        start_timeout=180, cwd=plan.path.parent, progress_bar={"desc": plan.path.stem, "position": _line},
    )  # fmt: skip
    try:
        try:
            executed = run()
        except RuntimeError as error:
            # Two kernels that start at once may choose one port, and then one dies before its first cell: once more.
            if "before replying" not in str(error):
                raise
            executed = run()
        write_html(executed, home / "html" / f"{plan.path.stem}.html", plan.path.parent)
    except PapermillExecutionError as error:
        where = f"cell {_source_cell(plan.path, error.cell_index)}"
        problem = f"{where} raised {error.ename}: {_first_line(error.evalue)}"
    except RuntimeError as error:  # nbclient: the kernel died or did not start
        problem = f"the kernel stopped, perhaps out of memory: {_first_line(str(error))}"
    except OSError as error:
        problem = f"the result could not be written: {error}"
    return Outcome(plan.path.stem, (time.perf_counter() - start) / 60, problem)


def _source_cell(path: Path, executed_index: int) -> int:
    """Number (from 1) in the source notebook of the cell at `executed_index` (from 0) in the executed one.

    papermill inserts one cell, right after the cell tagged `parameters`.
    """
    tagged = [i for i, cell in enumerate(read_notebook(path).cells) if "parameters" in cell.metadata.get("tags", [])]
    return executed_index + 1 - (executed_index > tagged[0])


def write_html(notebook: Any, path: Path, folder: Path) -> None:
    """Write one self-contained page, without scripts; images that the notebook names relative to `folder` are embedded."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(embed_images=True, raw_template=PAGE)
    exporter.register_filter("markdown2html", _markdown_filter())
    page, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": _title(notebook), "path": str(folder)}})
    path.write_text(page, encoding="utf-8")


def _markdown_filter() -> Any:
    """nbconvert's filter from Markdown to HTML, but for formulas: they become MathML, which browsers set without a script."""
    from jinja2 import pass_context
    from math_core import LatexError
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    def mathml_or_typed(formula: str, block: bool = False) -> str:
        try:
            return mathml(formula, block)
        except LatexError:
            return f"<code>{html.escape(formula)}</code>"

    @pass_context
    def to_html(context: Any, source: str) -> str:
        attachments = context.get("cell", {}).get("attachments", {})
        folder = context["resources"]["metadata"]["path"]
        renderer = IPythonRenderer(escape=False, attachments=attachments, embed_images=True, path=folder)
        renderer.inline_math = mathml_or_typed
        renderer.block_math = lambda body: f'<span class="formula">{mathml_or_typed(body, block=True)}</span>'
        renderer.latex_environment = lambda name, body: renderer.block_math(rf"\begin{{{name}}}{body}\end{{{name}}}")
        return MarkdownWithMath(renderer=renderer).render(source)

    return to_html


def mathml(formula: str, block: bool = False) -> str:
    """A formula in LaTeX as MathML; `block`: it stands in a line of its own. Raises math_core.LatexError where it is not understood."""
    from math_core import LatexToMathML

    return LatexToMathML(annotation=True).convert_with_local_state(formula, displaystyle=block)


def _title(notebook: Any) -> str:
    lines = [line for cell in notebook.cells if cell.cell_type == "markdown" for line in cell.source.splitlines()]
    return next((line[2:].strip() for line in lines if line.startswith("# ")), "rftkit")


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no message")


def run_notebooks(
    names: Sequence[str], preset: str, given: dict[str, str], out: str | None = None, jobs: int | None = None
) -> int:
    """Check everything, say what it will cost, run, and report. Returns 0 if every notebook ran to its end, else 1.

    `given` maps parameter names to their values as text; `jobs` notebooks run at a time (default: `jobs_here`). Raises UserError
    before anything runs.
    """
    given = dict(given)
    preset = given.pop("preset", preset)
    get_preset(preset)
    if jobs is not None and jobs < 1:
        raise UserError(f"{jobs} notebooks at a time cannot run: give --jobs 1 or more.")
    _check_tools()
    plans = [make_plan(path, preset, given) for path in find_notebooks(names, notebooks_folder())]
    jobs = min(jobs or jobs_here(preset), len(plans))
    home = (Path(out) if out else output_home()).resolve()
    _make_folders(home)
    print("\n".join(_cost(plan, preset) for plan in plans), flush=True)
    if jobs > 1:
        print(f"{jobs} at a time (--jobs 1: one after another).", flush=True)
    outcomes = []
    with kernel_environment(preset, home):
        for outcome in _outcomes(plans, home, jobs):
            outcomes.append(outcome)
            if outcome.problem:
                print(f"{outcome.name} failed: {outcome.problem}", flush=True)
                print(f"As far as it went: {home / 'notebooks' / outcome.name}.ipynb", flush=True)
    print(_table(sorted(outcomes, key=lambda outcome: outcome.name)))
    print(f"Pages: {home / 'html'}")
    return int(any(outcome.problem for outcome in outcomes))


def jobs_here(preset: str) -> int:
    """How many notebooks to run at a time: two at the tiny tier, where each takes one thread, if this machine has the cores and the
    memory; else one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 2 if preset == "tiny" and cores > 1 and psutil.virtual_memory().available > 2 * MEMORY else 1


def _outcomes(plans: Sequence[Plan], home: Path, jobs: int) -> Iterator[Outcome]:
    """What becomes of the notebooks, as they end; the longest ones begin first if there are several at a time."""
    if jobs == 1:
        yield from (execute(plan, home) for plan in plans)
        return
    longest = sorted(plans, key=lambda plan: -(plan.minutes or 0.0))
    context = get_context("spawn")
    lines = context.Queue()
    for line in range(jobs):
        lines.put(line)
    with ProcessPoolExecutor(jobs, context, _take_line, (lines,)) as pool, _ended_by_an_interruption(pool):
        running: dict[Future[Outcome], Plan] = {}
        while longest or running:
            while longest and len(running) < jobs:  # no more than that are queued, so that Ctrl-C begins no other one
                plan = longest.pop(0)
                running[pool.submit(execute, plan, home)] = plan
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                ended = running.pop(future)
                try:
                    yield future.result()
                except BrokenProcessPool:
                    lost = [ended, *running.values(), *longest]
                    yield from (
                        Outcome(p.path.stem, 0.0, "its process was killed, perhaps out of memory: try --jobs 1")
                        for p in lost
                    )
                    return


@contextlib.contextmanager
def _ended_by_an_interruption(pool: ProcessPoolExecutor) -> Iterator[None]:
    """Ctrl-C reaches the notebooks' processes, too, but one may lose it at a bad moment, and would go on for minutes: whoever has not
    ended after GRACE seconds is ended. A kernel follows its parent."""
    try:
        yield
    except (KeyboardInterrupt, GeneratorExit):  # the second: interrupted where an outcome was told
        pool.shutdown(wait=False, cancel_futures=True)
        children, end = active_children(), time.monotonic() + GRACE
        for child in children:
            child.join(max(0.0, end - time.monotonic()))
            if child.is_alive():
                child.terminate()
        raise


_line: int | None = None  # of this process's progress bars on the screen, if several processes draw some


def _take_line(lines: Any) -> None:
    global _line
    _line = lines.get()


def _check_tools() -> None:
    names = ("papermill", "nbformat", "nbconvert", "ipykernel", "math_core")
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise UserError(f"Running notebooks needs {', '.join(missing)}: pip install 'rftkit[course]'.")


def _make_folders(home: Path) -> None:
    try:
        for part in ("notebooks", "html"):
            (home / part).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{home} cannot be written ({error.strerror}): name another folder with --out.") from error


def _cost(plan: Plan, preset: str) -> str:
    cost = "cost not measured" if plan.minutes is None else f"about {plan.minutes:g} min"
    return f"{plan.path.stem}: {cost} at the {preset} tier"


def _table(outcomes: Sequence[Outcome]) -> str:
    width = max(len("notebook"), *(len(outcome.name) for outcome in outcomes))
    rows = [f"{'notebook':{width}}  minutes  result"]
    rows += [f"{o.name:{width}}  {o.minutes:7.1f}  {'failed' if o.problem else 'ok'}" for o in outcomes]
    return "\n".join(rows)
