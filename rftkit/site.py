"""The course as a book in HTML: gathers the executed notebooks and the Markdown pages, and has Sphinx and Marp build them.

`make site` calls it. Pages keep their places, so that their links hold; three are written here: question bank, claims, references.
Needs a checkout, course/locks/site.txt, and the notebooks as `make run` left them; slides need Node.js, too.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from rftkit.config import UserError
from rftkit.notebooks import declared_parameters, find_notebooks, read_notebook
from rftkit.runs import output_home

ROOT = Path(__file__).resolve().parent.parent
# A block of code, a link or picture, or code in a line: whichever begins first.
LINK = re.compile(
    r"^ *```.*?^ *```|\[(?P<text>[^\[\]]*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)|`[^`\n]+`", re.S | re.M
)
# As plots.show writes it; the text is escaped, so that it holds no quotes.
IMAGE = re.compile(r'<img src="data:image/svg\+xml;base64,(?P<svg>[A-Za-z0-9+/=]+)" alt="(?P<alt>[^"]*)"[^>]*>')
LISTED = re.compile(
    r"^\| (?P<name>\d\d-[a-z-]+)\.svg \| \d\d, cell (?P<cell>\d+)(?:, the (?P<which>\w+))?[^|]*\|", re.M
)
PLACES = {"first": 0, "second": 1, "third": 2}
MODEL_CARDS = ("rftkit/base/README.md", "rftkit/base_cards/README.md")
# Latin, Greek, accents, punctuation, letter-like signs, arrows, operators, brackets, mathematical alphabets
MATH_CHARACTERS = "20-7E,A0-FF,2C6-2DD,300-338,370-3FF,2000-22FF,2308-230B,27E6-27EF,2A00-2AFF,1D400-1D7FF"
QUESTIONS_SHOWN = 12
COLOPHON = (
    "## This site",
    "",
    "Built with Sphinx, MyST-NB and the Sphinx Book Theme. Formulas are MathML, made by math-core, and set in STIX Two Math",
    "([SIL Open Font License 1.1](https://openfontlicense.org)). Nothing is loaded from another host.",
)


@dataclass(frozen=True)
class Listed:
    """A row of course/slides/README.md: `name`.svg is a figure of cell `cell` (from 0), `which` of several there."""

    name: str
    cell: int
    which: str | None


@dataclass(frozen=True)
class Slides:
    """What is there of the slides: the folder of figures, the names of missing ones, the decks in HTML (or none)."""

    figures: Path
    missing: tuple[str, ...]
    decks: tuple[Path, ...]


# --- notebooks --------------------------------------------------------------------------------------------------------------


def executed_notebooks(root: Path, home: Path) -> dict[Path, Any]:
    """{source: the notebook as `make run` left it in home/notebooks}.

    One that changed since is named on the screen. Raises UserError unless all are there and ran to their end.
    """
    found = {}
    for source in find_notebooks([], root / "notebooks"):
        path, again = home / "notebooks" / source.name, f"run `make run`, or `python -m rftkit run {source.stem[:2]}`"
        if not path.is_file():
            raise UserError(f"{path} is not there, and the site shows the notebooks as they ran: {again}.")
        notebook = read_notebook(path)
        if any(output.output_type == "error" for cell in notebook.cells for output in cell.get("outputs", [])):
            raise UserError(f"{path} stopped at an error: mend it, then {again}.")
        if [cell.source for cell in own_cells(notebook)] != [cell.source for cell in read_notebook(source).cells]:
            print(f"{source.stem} has changed since it ran, and the site shows it as it was: {again}.", flush=True)
        found[source] = notebook
    return found


def own_cells(notebook: Any) -> list[Any]:
    """The cells without the one with parameters that papermill puts in."""
    return [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]


def page_of_notebook(notebook: Any, source: Path, figures: Path, relink: Callable[[str], str], see: str) -> Any:
    """The notebook as a page: figures as files in `figures`, links mended, `see` below the title, nothing of papermill's.

    The cell with papermill's parameters stays only where one of them is not the notebook's default.
    """
    given = notebook.metadata.pop("papermill", {}).get("parameters", {})
    declared = declared_parameters(read_notebook(source), source.name)
    if all(declared.get(name) == value for name, value in given.items()):
        notebook.cells = own_cells(notebook)
    for i, cell in enumerate(notebook.cells):
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if cell.cell_type == "markdown":
            cell.source = relink(cell.source)
        for j, output in enumerate(cell.get("outputs", [])):
            data = output.get("data", {})
            if "text/html" in data:
                data["text/html"] = figures_to_files(data["text/html"], f"{source.stem[:2]}-{i}-{j}", figures)
    first = next(cell for cell in notebook.cells if cell.cell_type == "markdown")
    first.source = first.source.rstrip() + "\n\n" + see
    return notebook


def figures_to_files(text: str, name: str, folder: Path) -> str:
    """The HTML with each figure written to folder/name-k.svg and shown from there, as a link to it in its full size.

    The style sheet learns that size, as --full, so that text in a figure stays readable on a narrow screen.
    """

    def link(match: re.Match[str]) -> str:
        path = folder / f"{name}-{len(written)}.svg"
        path.write_bytes(base64.b64decode(match["svg"]))
        written.append(path)
        place = f"../_static/figures/{path.name}"
        style = f"--full: {full_width(path)}; max-width: 100%"
        return f'<a href="{place}"><img src="{place}" alt="{match["alt"]}" style="{style}"></a>'

    written: list[Path] = []
    return IMAGE.sub(link, text)


def full_width(path: Path) -> str:
    """The width that an SVG file declares, as CSS; 36rem if it declares none."""
    match = re.search(rb'<svg\b[^>]*?\bwidth="([\d.]+(?:pt|px|in|cm|mm)?)"', path.read_bytes())
    width = match[1].decode() if match else "36rem"
    return f"{width}px" if width[-1].isdigit() else width


# --- slides -----------------------------------------------------------------------------------------------------------------


def listed_figures(text: str) -> list[Listed]:
    """The figures that course/slides/README.md lists."""
    return [Listed(match["name"], int(match["cell"]), match["which"]) for match in LISTED.finditer(text)]


def slide_figure(listed: Listed, source: Any, executed: Any) -> bytes | None:
    """The SVG that `listed` means, None if there is none: of the executed cell with the code of cell `listed.cell` of `source`."""
    if listed.cell >= len(source.cells):
        return None
    code = source.cells[listed.cell].source
    cell = next((cell for cell in own_cells(executed) if cell.source == code), None)
    outputs = [output.get("data", {}).get("text/html", "") for output in (cell or {}).get("outputs", [])]
    found = [match for output in outputs for match in IMAGE.finditer(output)]
    if listed.which == "recorded":
        found = [match for match in found if "recorded" in match["alt"] and "live" not in match["alt"]]
    place = PLACES.get(listed.which or "first", 0)
    return base64.b64decode(found[place]["svg"]) if place < len(found) else None


def write_slide_figures(root: Path, executed: Mapping[Path, Any], folder: Path) -> list[str]:
    """Write the decks' figures to `folder`, and say which ones no executed notebook shows. Returns the names of these."""
    sources = {path.stem[:2]: (read_notebook(path), notebook) for path, notebook in executed.items()}
    missing = []
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    for listed in listed_figures((root / "course/slides/README.md").read_text(encoding="utf-8")):
        pair = sources.get(listed.name[:2])
        svg = slide_figure(listed, *pair) if pair else None
        if svg is None:
            missing.append(listed.name)
        else:
            (folder / f"{listed.name}.svg").write_bytes(svg)
    if missing:
        print(f"Decks show words in place of figures that no executed notebook has: {', '.join(missing)}.", flush=True)
    return missing


def without_figures(deck: str, missing: Collection[str]) -> str:
    """The deck with the text alternative, in italics, in place of each missing figure."""
    for name in missing:
        deck = re.sub(rf"!\[([^\]]*)\]\[{name}\]", r"*A figure, not there yet: \1*", deck)
        deck = re.sub(rf"^\[{name}\]: .*\n?", "", deck, flags=re.M)
    return deck


def deck_as_page(deck: str, top: str) -> str:
    """A deck as a page to read: no front matter, no rules between slides, `top` below the title."""
    text = re.sub(r"\A---\n.*?\n---\n", "", deck, flags=re.S)
    text = re.sub(r"^---$", "", text, flags=re.M)
    return re.sub(r"^(# .*)$", rf"\1\n\n{top}", text, count=1, flags=re.M)


def installed_marp(slides: Path, target: Path) -> Path | None:
    """Marp's command, installed into `target` from the lock in `slides` unless it is there. If it cannot be: says why, None."""
    npm, lock = shutil.which("npm"), (slides / "package-lock.json").read_text(encoding="utf-8")
    command, done = target / "node_modules/.bin/marp", target / "installed.json"
    if npm is None:
        print("The decks are pages of the book only: install Node.js 18 or later to have slides, too.", flush=True)
        return None
    if command.exists() and done.is_file() and done.read_text(encoding="utf-8") == lock:
        return command
    target.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(slides / name, target / name)
    try:
        run([npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"], target, "exit code not 0", said=200)
    except UserError as error:
        print(f"The decks are pages of the book only, since npm could not install Marp ({error}).", flush=True)
        return None
    done.write_text(lock, encoding="utf-8")
    return command


def build_decks(root: Path, missing: Collection[str], target: Path) -> list[Path]:
    """Have Marp write each deck to `target` as HTML, and as PDF if Chromium is there. [] without Marp.

    The figures must lie in target/figures. Raises UserError if Marp fails.
    """
    slides = root / "course/slides"
    command = installed_marp(slides, target / "marp")
    if command is None:
        return []
    decks = sorted(slides.glob("[0-9][0-9].md"))
    for deck in decks:
        text = without_figures(deck.read_text(encoding="utf-8"), missing)
        for picture in re.findall(r"\]\(\.\./figures/([\w.-]+)\)", text):
            shutil.copy(root / "course/figures" / picture, target / "figures" / picture)
        (target / deck.name).write_text(text.replace("](../figures/", "](figures/"), encoding="utf-8")
    marp = [str(command), "--no-stdin", *(deck.name for deck in decks)]
    run(marp, target, "Marp failed")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if browser is None:
        print("The slides are there as HTML only: install Chromium to have them as PDF, too.", flush=True)
    else:
        to_pdf = ["--pdf", "--allow-local-files", "--browser-path", browser]
        run([*marp, *to_pdf], target, "Marp could not write the PDF files")
    for deck in decks:
        (target / deck.name).unlink()
    return [target / deck.with_suffix(".html").name for deck in decks]


def run(command: list[str], folder: Path, problem: str, said: int = 2000) -> None:
    """Run a tool quietly. Raises UserError with the last `said` characters of what it said if it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{problem}: {(done.stderr.strip() or done.stdout.strip() or 'it said nothing')[-said:]}")


# --- pages ------------------------------------------------------------------------------------------------------------------


def relinker(root: Path, page: str, pages: Mapping[str, str], copied: set[str]) -> Callable[[str], str]:
    """A function that mends the links of a page's Markdown, the page being named by its path from `root`.

    pages: {path in the repository: path in the book}. A link to another file adds it to `copied`, to be laid beside the
    pages; one to a folder keeps its words alone. Code, links to other hosts and dead ones stay as they are.
    """
    here, place = PurePosixPath(page).parent, PurePosixPath(pages[page]).parent

    def mend(match: re.Match[str]) -> str:
        target = match["target"]
        if target is None or re.match(r"[a-z]+:", target):
            return match[0]
        path = os.path.normpath(here / target)
        if (root / path).is_dir():
            return match["text"]
        if path not in pages:
            if not (root / path).is_file():
                return match[0]
            copied.add(path)
        return f"[{match['text']}]({os.path.relpath(pages.get(path, path), place)}{match['anchor'] or ''})"

    return lambda text: LINK.sub(mend, text)


def block(text: str, name: str) -> str:
    """What stands between <!-- name ... --> and <!-- end of name -->, "" if there is no such block."""
    match = re.search(rf"<!-- {name}\b.*?-->(.*?)<!-- end of {name} -->", text, re.S)
    return match[1].strip() if match else ""


def claims_page(readme: str) -> str:
    """The page of claims: the README's block `ledger` as soon as there is one, and its block `results`."""
    parts = ["# Claims and results", "Each number is computed from recorded runs; none is typed."]
    for name, title in (("ledger", "What became of each claim"), ("results", "What came out at the tiny tier")):
        if text := block(readme, name):
            parts += [f"## {title}", text]
    return "\n\n".join(parts) + "\n"


def questions_page() -> str:
    """The page of the question bank: how to make a sheet, and one with its answers."""
    from rftkit import questions  # imports torch: here, since nothing else needs it

    sheet = questions.text_of("Example", seed=0, n=QUESTIONS_SHOWN, answers=True)
    sheet = re.sub(r"^#", "##", sheet, flags=re.M).replace("## Questions for Example", "## A sheet, as an example", 1)
    commands = (
        'python -m rftkit questions --student "NAME" --seed SEED --n 8             # a sheet, on the screen\n'
        'python -m rftkit questions --student "NAME" --seed SEED --n 8 --answers   # with worked solutions'
    )
    said = f"There are {len(questions.KINDS)} kinds of questions. Each student gets other numbers:"
    return f"# Question bank\n\n{said}\n\n```\n{commands}\n```\n\n{sheet}"


def references_page(citation: str, texts: Mapping[str, str]) -> str:
    """The papers that CITATION.cff lists, then every arXiv number that a page names, with these pages.

    texts: {path of a page in the book: its Markdown}.
    """
    import yaml

    lines = ["# References", "", "## The papers that are tested here", ""]
    for entry in yaml.safe_load(citation).get("references", []):
        parts = [[a.get("name"), a.get("given-names"), a.get("family-names")] for a in entry["authors"]]
        names = ", ".join(" ".join(filter(None, part)) for part in parts).replace(", and others", " and others")
        lines.append(f"- {names}: *{entry['title']}*. [{entry['url'].removeprefix('https://')}]({entry['url']})")
    named: dict[str, list[str]] = {}
    for page, text in texts.items():
        for number in sorted(set(re.findall(r"(?<![\d.])(\d{4}\.\d{5})(?!\d)", text))):
            named.setdefault(number, []).append(page)
    lines += ["", "## Every paper that a page names", "", "| arXiv | named in |", "|---|---|"]
    for number, pages in sorted(named.items()):
        where = ", ".join(f"[{short_name(page)}]({page})" for page in pages)
        lines.append(f"| [{number}](https://arxiv.org/abs/{number}) | {where} |")
    return "\n".join([*lines, "", *COLOPHON]) + "\n"


def short_name(page: str) -> str:
    path = PurePosixPath(page)
    kind = {"notes": "notes ", "slides": "slides ", "notebooks": "notebook "}.get(path.parent.name, "")
    if path.stem == "README":
        return path.parent.name
    return "front page" if path.stem == "index" else kind + (path.stem[:2] if kind else path.stem)


# --- the book ---------------------------------------------------------------------------------------------------------------


def pages_of(root: Path, notebooks: Iterable[Path]) -> dict[str, str]:
    """{path in the repository: path in the book} of all its pages that are not written here."""
    texts = sorted((root / "course").rglob("*.md"))
    paths = [path.relative_to(root).as_posix() for path in [*notebooks, *texts]]
    return {"README.md": "index.md", **{path: path for path in (*paths, *MODEL_CARDS)}}


def contents(pages: Collection[str], course: str) -> str:
    """The table of contents, for the end of the front page, where it is not shown. Every page is in it once.

    course: the Markdown of course/README.md, whose table names the notebooks.
    """
    titles = dict(re.findall(r"^\| \[?(\d\d) ([^\]|]+?)(?:\]| \|)", course, re.M))

    def numbered(folder: str) -> list[str]:
        found = sorted(page for page in pages if re.match(rf"{folder}/\d\d[^/]*$", page))
        numbers = [PurePosixPath(page).name[:2] for page in found]
        return [f"{n} {titles.get(n, '')}".strip() + f" <{page}>" for n, page in zip(numbers, found, strict=True)]

    parts = {
        "Begin": ["The course <course/README.md>", "course/syllabus.md", "Prerequisites <course/prerequisites.md>"],
        "Notebooks": numbered("notebooks"),
        "Lecture notes": numbered("course/notes"),
        "Slides": [*numbered("course/slides"), "How slides are built <course/slides/README.md>"],
        "Practice": [
            "course/exercises/README.md",
            "Question bank <course/questions.md>",
            "course/project.md",
            "Sheet for an afternoon <course/sheet.md>",
            "course/teaching.md",
        ],
        "Look up": [
            "Claims and results <course/claims.md>",
            "Results, arm by arm <course/results.md>",
            "Which method for which need <course/guide.md>",
            "What differs from the papers <course/differs.md>",
            "What it costs <course/measurements.md>",
            "Glossary <course/glossary.md>",
            "References <course/references.md>",
            "The base model <rftkit/base/README.md>",
            "The second base model <rftkit/base_cards/README.md>",
        ],
    }
    named = {re.sub(r".*<|>$", "", entry) for entries in parts.values() for entry in entries}
    parts["More"] = sorted(page for page in pages if page not in named and page != "index.md")
    trees = [
        "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *entries, "```"])
        for caption, entries in parts.items()
        if entries
    ]
    return "\n\n".join(trees) + "\n"


def write_book(root: Path, executed: Mapping[Path, Any], slides: Slides, book: Path) -> None:
    """Lay all pages and files of the book into the folder `book`, as Sphinx's source. It is emptied first."""
    if book.exists():
        shutil.rmtree(book)
    shutil.copytree(root / "course/site", book)
    write_math_font(book / "_static/math.woff")
    pages, copied = pages_of(root, executed), set[str]()
    texts = {place: text_of(root, page, slides) for page, place in pages.items() if page.endswith(".md")}
    for page, place in pages.items():
        if place in texts:
            texts[place] = relinker(root, page, pages, copied)(texts[place])
    texts |= write_notebooks(root, executed, pages, copied, book)
    readme, claims = (root / "README.md").read_text(encoding="utf-8"), "course/claims.md"
    relink = relinker(root, "README.md", {**pages, "README.md": claims}, copied)
    written = {claims: relink(claims_page(readme)), "course/questions.md": questions_page()}
    named = {os.path.relpath(place, "course"): text for place, text in texts.items()}
    written["course/references.md"] = references_page((root / "CITATION.cff").read_text(encoding="utf-8"), named)
    texts["index.md"] += "\n" + contents([*pages.values(), *written], texts["course/README.md"])
    for place, text in {**texts, **written}.items():
        if place.endswith(".md"):
            (book / place).parent.mkdir(parents=True, exist_ok=True)
            (book / place).write_text(text, encoding="utf-8")
    for name in sorted(copied):
        (book / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, book / name)
    copy_slides(slides, book)


def text_of(root: Path, page: str, slides: Slides) -> str:
    """The Markdown of a page, that of a deck as a page to read."""
    text = (root / page).read_text(encoding="utf-8")
    if not re.fullmatch(r"course/slides/\d\d\.md", page):
        return text
    return deck_as_page(without_figures(text, slides.missing), deck_links(PurePosixPath(page).stem, slides.decks))


def write_notebooks(
    root: Path, executed: Mapping[Path, Any], pages: Mapping[str, str], copied: set[str], book: Path
) -> dict[str, str]:
    """Write the executed notebooks and their figures into `book`. Returns {page: its Markdown, without code}."""
    import nbformat

    figures, texts = book / "_static/figures", {}
    for folder in (figures, book / "notebooks"):
        folder.mkdir()
    for source, notebook in executed.items():
        page, number = source.relative_to(root).as_posix(), source.stem[:2]
        there = {
            name: f"course/{part}/{number}.md" for part, name in (("notes", "Lecture notes"), ("slides", "Slides"))
        }
        see = " &middot; ".join(f"[{name}](../{path})" for name, path in there.items() if path in pages)
        shown = page_of_notebook(notebook, source, figures, relinker(root, page, pages, copied), see)
        nbformat.write(shown, book / page)
        texts[page] = "\n".join(cell.source for cell in shown.cells if cell.cell_type == "markdown")
    return texts


def copy_slides(slides: Slides, book: Path) -> None:
    """Lay the decks' figures beside the pages that read like decks, and the decks into the folder that is taken over as it is."""
    extra = book / "extra/decks"
    extra.mkdir(parents=True)
    shutil.copytree(slides.figures, book / "course/slides/figures")
    for deck in slides.decks:
        for path in filter(Path.is_file, (deck, deck.with_suffix(".pdf"))):
            shutil.copy(path, extra / path.name)
    if slides.decks:
        shutil.copytree(slides.figures, extra / "figures")


def deck_links(number: str, decks: Collection[Path]) -> str:
    """Where the deck is to be had as slides; "" if Marp did not build it."""
    deck = next((path for path in decks if path.stem == number), None)
    if deck is None:
        return ""
    kinds = {"as slides": deck, "as PDF": deck.with_suffix(".pdf")}
    links = [f'<a href="../../decks/{path.name}">{kind}</a>' for kind, path in kinds.items() if path.is_file()]
    return f"This deck {', '.join(links)}."


def write_math_font(path: Path) -> None:
    """Write the part of STIX Two Math that formulas need, from the copy in the package ziamath, as a web font."""
    from fontTools import subset

    package = find_spec("ziamath")  # found, not imported: the font is all that is wanted of it
    if package is None or package.origin is None:
        raise UserError("The font for formulas is not there: pip install -r course/locks/site.txt, or run `make site`.")
    options = subset.Options(flavor="woff", layout_features=["*"], name_IDs=["*"], notdef_outline=True)
    font = subset.load_font(Path(package.origin).parent / "fonts/STIXTwoMath-Regular.ttf", options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=subset.parse_unicodes(MATH_CHARACTERS))
    subsetter.subset(font)
    subset.save_font(font, str(path), options)


def check_tools() -> None:
    names = ("sphinx", "myst_nb", "sphinx_book_theme", "math_core", "ziamath")
    if missing := [name for name in names if find_spec(name) is None]:
        raise UserError(
            f"The site needs {', '.join(missing)}: run `make site`, or pip install -r course/locks/site.txt."
        )


def build_slides(root: Path, home: Path, executed: Mapping[Path, Any]) -> Slides:
    """Write the decks' figures to home/slides/figures and, if Node.js is there, the decks to home/slides."""
    figures = home / "slides/figures"
    missing = write_slide_figures(root, executed, figures)
    return Slides(figures, tuple(missing), tuple(build_decks(root, missing, home / "slides")))


def build_book(root: Path, home: Path, executed: Mapping[Path, Any], slides: Slides) -> Path:
    """Build the book into home/site/html and return that folder. A warning of Sphinx's, such as a dead link, is an error.

    Raises UserError if a page is wrong.
    """
    book, pages = home / "site/source", home / "site/html"
    write_book(root, executed, slides, book)
    if pages.exists():
        shutil.rmtree(pages)
    options = ["-q", "-W", "--keep-going", "-E", "-b", "html", "-d", str(home / "site/doctrees")]
    run([sys.executable, "-m", "sphinx", *options, str(book), str(pages)], root, "The site has mistakes")
    for template in (pages / "_static").glob("*.html"):  # the theme's own, left over
        template.unlink()
    return pages


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m rftkit.site", description="Build the course as a book in HTML, and the slides."
    )
    parser.add_argument("--slides", action="store_true", help="the slides and their figures only")
    parser.add_argument(
        "--home", type=Path, help="folder of `make run` (default: $RFTKIT_HOME, else build); the site goes there"
    )
    args = parser.parse_args(argv)
    home = (args.home or output_home()).resolve()
    if not args.slides:
        check_tools()
    executed = executed_notebooks(ROOT, home)
    slides = build_slides(ROOT, home, executed)
    print(f"Slides: {home / 'slides' if slides.decks else slides.figures}", flush=True)
    if not args.slides:
        print(f"Site: {build_book(ROOT, home, executed, slides) / 'index.html'}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"rftkit: {error}", file=sys.stderr)
        sys.exit(2)
