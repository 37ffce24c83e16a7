"""The linter of the notebooks: each rule below keeps one of them readable, runnable or accessible."""

import copy
import itertools
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from rftkit import claims, evals, judged, verdicts
from rftkit.config import UserError
from rftkit.notebooks import declared_parameters

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

IMAGE = re.compile(r"!\[(?P<alt>[^\]]*)\]\((?P<src>[^)\s]+)[^)]*\)")
LINK = re.compile(r"\]\((?P<target>[^)\s]+)[^)]*\)")
COLAB = re.compile(r"colab\.research\.google\.com/github/[^/]+/[^/]+/blob/[^/]+/(?P<path>[^)\s\"?#]+)")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.M | re.S)
HOT = re.compile(
    r"^\s*\[[^\]]+\]:\s*(https?:\S+\.(?:png|jpe?g|gif|svg|webp)\b\S*)", re.M | re.I
)  # an image's address, by reference

# A number that looks like a result: with a unit, or with a decimal point.
UNITS = r"%|percent|(?:percentage )?points?|nats?|degrees|[GMk]B|min|minutes?|seconds?|hours?"
RESULT = re.compile(rf"(?<![\w.$-])\d[\d,]*(?:\.\d+)?\s?(?:{UNITS})(?!\w)|(?<![\w.$-])\d+\.\d+(?![\w.])")
GRADE = re.compile(r"\[(?:[ABCDFPRTX]|2ND|ABS|CODE)(?:[ ,;:][^\]]*)?\]")
# What looks like one and is none: a rule, a setting of ours, a consequence of arithmetic.
NO_RESULTS = {
    r"95 ?%": "the level of every interval",
    r"(?m)^\| time.*$": "the row of the first table that says what the notebook costs, which its last cell measures",
    r"[Tt]heorem \d\.\d": "a theorem's number",
    rf"\b(?:{judged.SMALL:g}|{judged.MUCH:g}|{judged.BREAKS:g})(?: and {judged.BREAKS:g})? points": "limits of the ledger's rules",
    r"less than 1 %|70 % of what": "limits of the ledger's rules for notebook 05",
    r"first solves 5 %": "the setting of the arms that begin from RFT's first successes",
    r"at 25 %(?: and at 90 %)?|at 90 %": "targets at which arms are compared besides the usual one",
    r"by about 1 nat|by 0\.05 nats|by 1\.6 at a time": "sizes of steps that a cell takes",
    r"have t = 4\.3": "Student's quantile for three seeds, held against evals.t_quantile below",
    r"would take 12 GB": "three billion numbers of four bytes",
    r"not at 90 degrees": "a right angle",
}
FORBIDDEN = {
    r"(?<![\w.])(eval|exec)\(": "calls eval or exec",
    r"\b(notebook_)?login\(": "asks for a login",
    r"push_to_hub": "pushes to the Hub",
    r"\bpickle\b": "uses pickle",
    r"trust_remote_code": "trusts remote code",
    r"tqdm\.(auto|notebook)": "uses a tqdm that stands still under papermill",
    r"(?<![\w.:/])/(home|root|tmp|work|mnt|content|Users)/|\b[A-Z]:\\\\?Users": "holds an absolute path",
}


def problems(notebook, path):
    """Everything that is wrong with one notebook, as sentences."""
    found = [*metadata_problems(notebook, path), *parameter_problems(notebook, path)]
    if not 35 <= len(notebook.cells) <= 60:
        found.append(f"{len(notebook.cells)} cells: keep to 35 to 60")
    for number, cell in enumerate(notebook.cells, start=1):
        check = code_problems if cell.cell_type == "code" else markdown_problems
        found += [f"cell {number}: {text}" for text in check(cell, path)]
    return found + list(heading_problems(notebook))


def metadata_problems(notebook, path):
    if not re.fullmatch(r"\d\d_[a-z0-9_]+\.ipynb", path.name):
        yield "the file name is not NN_words.ipynb"
    if "widgets" in notebook.metadata:
        yield "carries metadata.widgets"
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "its kernel is not python3"
    minutes = notebook.metadata.get("rftkit", {}).get("minutes", {}).get("tiny")
    if not (isinstance(minutes, int | float) and minutes > 0):
        yield "metadata.rftkit.minutes.tiny does not tell its cost"


def parameter_problems(notebook, path):
    try:
        declared = declared_parameters(notebook, path.name)
    except UserError as error:
        yield str(error)
        return
    if declared.get("preset") != "tiny":
        yield 'the parameters do not set preset = "tiny"'
    if type(declared.get("seed")) is not int:
        yield "the parameters do not set a whole seed"


def code_problems(cell, path):
    if cell.outputs or cell.execution_count is not None:
        yield "carries outputs"
    if (lines := len(cell.source.splitlines())) > 25:
        yield f"{lines} lines of code: keep to 25"
    if not cell.source.strip():
        yield "is empty"
    for pattern, text in FORBIDDEN.items():
        if re.search(pattern, cell.source):
            yield text


def markdown_problems(cell, path):
    text = FENCE.sub("", cell.source)
    for image in IMAGE.finditer(text):
        if not image["alt"].strip():
            yield f"image {image['src']} has no alt text"
        if image["src"].startswith("http") and "colab" not in image["src"]:
            yield f"image {image['src']} is fetched from the network"
    for tag in re.findall(r"<img\b[^>]*>", text):
        if not re.search(r"\balt=[\"'][^\"']*\w", tag):
            yield f"{tag} has no alt text"
    for badge in COLAB.finditer(text):
        if (ROOT / badge["path"]).resolve() != path.resolve():
            yield f"the Colab badge opens {badge['path']}"
    for source in [*re.findall(r"<img\b[^>]*\bsrc=[\"'](https?:[^\"']+)", text), *HOT.findall(text)]:
        yield f"image {source} is fetched from the network"
    for number, block in unsupported(cell.source):
        yield f"{number!r} is neither computed nor graded, and not said to be recorded: {block}"
    for target in LINK.findall(text):
        if not re.match(r"[a-z]+:|#|attachment:", target) and not (path.parent / target.split("#")[0]).exists():
            yield f"links to {target}, which does not exist"
    if re.search(next(p for p, t in FORBIDDEN.items() if "absolute" in t), text):
        yield "holds an absolute path"


def unsupported(source):
    """(number, where it stands) of results typed into prose: in a paragraph, an item or a table row without a grade and without the
    word "recorded"."""
    text = FENCE.sub("", source)
    for inside in (r"(?s)\$\$.*?\$\$", r"\$[^$\n]*\$", r"`[^`\n]*`", r"\]\([^)]*\)", r"\b\d{4}\.\d{4,5}(?:v\d+)?\b"):
        text = re.sub(inside, "]" if inside.startswith(r"\]") else "", text)
    for pattern in NO_RESULTS:
        text = re.sub(pattern, "", text)
    for paragraph in re.split(r"\n\s*\n", text):
        for block in re.split(r"\n(?=\s*(?:\||[-*] |\d+\. ))", paragraph):
            if not GRADE.search(block) and "recorded" not in block.lower():
                yield from ((hit.group(), " ".join(block.split())[:80]) for hit in RESULT.finditer(block))


def heading_problems(notebook):
    text = "\n\n".join(FENCE.sub("", cell.source) for cell in notebook.cells if cell.cell_type == "markdown")
    levels = [len(marks) for marks in re.findall(r"^(#{1,6})\s+\S", text, re.M)]
    first = next((cell for cell in notebook.cells if cell.cell_type == "markdown"), None)
    if first is None or not re.search(r"^# \S", first.source, re.M):
        yield "the first text cell has no title"
    if levels.count(1) > 1:
        yield "has more than one title"
    for above, below in itertools.pairwise(levels):
        if below > above + 1:
            yield f"a heading of level {below} follows one of level {above}"


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert problems(notebook, path) == []


@pytest.mark.parametrize("pattern", NO_RESULTS)
def test_no_exception_is_idle(pattern):
    prose = [cell.source for path in NOTEBOOKS for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"]
    assert any(re.search(pattern, text) for text in prose)


def test_verdicts_in_prose_are_the_ledgers():
    """Where a text says "(P1-C4: reproduced)", or "(04-gap, what it says: contradicted)"."""
    words = {line.claim.id: line.word for line in claims.recorded()}
    typed = re.compile(rf"\(({'|'.join(map(re.escape, words))})(?:, [^()]*)?: ({'|'.join(verdicts.WORDS)})\)")
    prose = [cell.source for path in NOTEBOOKS for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"]
    said = [found for text in prose for found in typed.findall(text)]
    assert len(said) >= 5 and [(name, word) for name, word in said if words[name] != word] == []


def test_the_quantile_in_prose_is_students():
    assert f"{evals.t_quantile(0.975, judged.SEEDS - 1):.1f}" == "4.3"


# The linter itself: a notebook it accepts, and one change for each rule.

PATH = ROOT / "notebooks" / "01_example.ipynb"


def good_notebook():
    cells = [
        new_markdown_cell("# Title\n\n[home](../Makefile) and ![a cat](../LICENSE)"),
        new_code_cell('preset = "tiny"\nseed = 0', metadata={"tags": ["parameters"]}),
        new_markdown_cell("## Part\n\n```\n# a comment, no heading\n```"),
        *[new_code_cell(f"model.eval()  # {i}") for i in range(35)],
    ]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}, "rftkit": {"minutes": {"tiny": 1}}}
    return new_notebook(cells=cells, metadata=metadata)


def code(source):
    return lambda nb: nb.cells.append(new_code_cell(source))


def text(source):
    return lambda nb: nb.cells.append(new_markdown_cell(source))


CHANGES = {
    "has 0 cells tagged": lambda nb: nb.cells[1].metadata.clear(),
    "has 2 cells tagged": lambda nb: nb.cells.append(copy.deepcopy(nb.cells[1])),
    "may only set names to single values": lambda nb: nb.cells[1].update(source='preset = "tiny"\nseed = [0]'),
    "do not set preset": lambda nb: nb.cells[1].update(source='preset = "full"\nseed = 0'),
    "do not set a whole seed": lambda nb: nb.cells[1].update(source='preset = "tiny"'),
    "carries outputs": lambda nb: nb.cells[-1].update(execution_count=3),
    "metadata.widgets": lambda nb: nb.metadata.update(widgets={}),
    "not python3": lambda nb: nb.metadata.kernelspec.update(name="conda-env"),
    "does not tell its cost": lambda nb: nb.metadata.pop("rftkit"),
    "34 cells": lambda nb: nb.update(cells=nb.cells[:34]),
    "61 cells": lambda nb: nb.cells.extend(nb.cells[-23:]),
    "26 lines of code": code("x = 1\n" * 26),
    "is empty": code(" \n"),
    "eval or exec": code("y = eval('1')"),
    "login": code("from huggingface_hub import login\nlogin()"),
    "pushes to the Hub": code("model.push_to_hub('x')"),
    "pickle": code("import pickle"),
    "remote code": code("load(trust_remote_code=True)"),
    "stands still": code("from tqdm.auto import tqdm"),
    "cell 39: holds an absolute path": code("open('/home" + "/me/data.csv')"),
    "no alt text": text("![ ](../LICENSE)"),
    "<img src='x.png'> has no alt": text("<img src='x.png'>"),
    "fetched from the network": text("![a dog](https://example.org/dog.png)"),
    "tag.png is fetched": text("<img alt='a dog' src='https://example.org/tag.png'>"),
    "ref.svg is fetched": text("![a dog][dog]\n\n[dog]: https://example.org/ref.svg"),
    "'42.5 %' is neither computed nor graded": text("It solves 42.5 % of them [the rest](../LICENSE)."),
    "'3.1' is neither": text("| arm | lost |\n|---|---|\n| SFT | 51 [C] |\n| RFT | 3.1 |"),
    "'7 points' is neither": text("Recorded runs say so.\n\n- it loses 7 points"),
    "Colab badge opens": text("[x](https://colab.research.google.com/github/o/r/blob/v0.1.0/notebooks/02_other.ipynb)"),
    "links to gone.md": text("[a page](gone.md#part)"),
    "has no title": lambda nb: nb.cells[0].update(source="Hello"),
    "more than one title": text("# Another"),
    "level 4 follows one of level 2": text("#### Deep"),
}


def test_linter_accepts_a_good_notebook():
    assert problems(good_notebook(), PATH) == []


def test_linter_accepts_its_own_badge():
    notebook = good_notebook()
    text("[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
         "(https://colab.research.google.com/github/o/r/blob/v0.1.0/notebooks/01_example.ipynb)")(notebook)  # fmt: skip
    assert problems(notebook, PATH) == []


def test_linter_accepts_numbers_that_someone_vouches_for():
    notebook = good_notebook()
    text("The paper has 42.5 % [C], and 3.1 [2ND, a table].\n\n- In the recorded runs it was 7 points.")(notebook)
    text("A 95 % interval; theorem 5.1; $x = 0.25$ and `p = 0.5`, see [arXiv 2506.23508](https://arxiv.org/abs/2506.23508), part 4.")(notebook)  # fmt: skip
    text("| time | 90 minutes |\n|---|---|\n\n```\n51.1 points\n```\nThree seeds of 4 arms.")(notebook)
    assert problems(notebook, PATH) == []


@pytest.mark.parametrize("says", CHANGES)
def test_linter_finds(says):
    notebook = good_notebook()
    CHANGES[says](notebook)
    found = problems(notebook, PATH)
    assert len(found) >= 1
    assert any(says in problem for problem in found), found
