"""The site: how its pages are gathered, and, in headless Chromium, what a reader meets.

The browser looks at a small site (all real pages; notebooks with one made-up figure and table each), or at the built one that
RFTKIT_SITE names, as in RFTKIT_SITE=build/site/html. It is skipped without course/locks/site.txt or without Chromium.
"""

import base64
import json
import os
import re
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from urllib.parse import unquote

import nbformat
import pytest
from browser import CHROMIUM, needs_browser
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from rftkit import jigsaw, plots, site
from rftkit.config import UserError

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="400" height="200"><text y="20" fill="#767676">%s</text></svg>'


def figure(alt, words=b"figure"):
    """An output as `plots.show` makes it."""
    data = base64.b64encode(SVG % words).decode()
    text = f'<figure><img src="data:image/svg+xml;base64,{data}" alt="{alt}" style="max-width:100%"><figcaption>Look.</figcaption></figure>'
    return new_output("display_data", {"text/html": text})


def as_run(source, *outputs, parameters=None):
    """The notebook as papermill would leave it, with `outputs` in the cell of imports."""
    notebook = nbformat.read(source, as_version=4)
    place = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    given = {"preset": "tiny", **(parameters or {})}
    injected = "\n".join(f"{name} = {value!r}" for name, value in given.items())
    notebook.cells.insert(place + 1, new_code_cell(injected, metadata={"tags": ["injected-parameters"]}))
    notebook.cells[place + 2].outputs = list(outputs)
    notebook.metadata["papermill"] = {"parameters": given}
    return notebook


# --- gathering ----------------------------------------------------------------------------------------------------------


def course(tmp_path, *cells):
    """A checkout with one notebook."""
    (tmp_path / "notebooks").mkdir()
    first = [
        new_markdown_cell("# Title"),
        new_code_cell('preset = "tiny"\nseed = 0', metadata={"tags": ["parameters"]}),
    ]
    path = tmp_path / "notebooks/01_toy.ipynb"
    nbformat.write(new_notebook(cells=[*first, new_code_cell("draw()"), *cells]), path)
    (tmp_path / "home/notebooks").mkdir(parents=True)
    return path


def test_a_notebook_that_has_not_run_is_told_in_one_sentence(tmp_path):
    course(tmp_path)
    with pytest.raises(
        UserError, match=r"01_toy.ipynb is not there, .*: run `make run`, or `python -m rftkit run 01`\.$"
    ):
        site.executed_notebooks(tmp_path, tmp_path / "home")


def test_a_notebook_that_stopped_is_refused(tmp_path):
    path = course(tmp_path)
    error = new_output("error", ename="E", evalue="", traceback=[])
    nbformat.write(as_run(path, error), tmp_path / "home/notebooks" / path.name)
    with pytest.raises(UserError, match=r"01_toy\.ipynb stopped at an error"):
        site.executed_notebooks(tmp_path, tmp_path / "home")


def test_a_notebook_that_changed_since_it_ran_is_named(tmp_path, capsys):
    path = course(tmp_path)
    notebook = as_run(path)
    nbformat.write(notebook, tmp_path / "home/notebooks" / path.name)
    assert list(site.executed_notebooks(tmp_path, tmp_path / "home")) == [path]
    assert capsys.readouterr().out == ""
    notebook.cells[-1].source = "draw_otherwise()"
    nbformat.write(notebook, tmp_path / "home/notebooks" / path.name)
    site.executed_notebooks(tmp_path, tmp_path / "home")
    assert "01_toy has changed since it ran" in capsys.readouterr().out


@pytest.mark.parametrize(("parameters", "kept"), [({}, False), ({"seed": 0}, False), ({"seed": 3}, True)])
def test_parameters_are_shown_where_they_are_not_the_defaults(tmp_path, parameters, kept):
    path = course(tmp_path)
    ran = as_run(path, figure("a curve"), parameters=parameters)
    page = site.page_of_notebook(ran, path, tmp_path, lambda text: text, "[Slides](x.md)")
    assert ("seed = 3" in [line for cell in page.cells for line in cell.source.splitlines()]) == kept
    assert page.cells[0].source == "# Title\n\n[Slides](x.md)"
    assert "papermill" not in page.metadata


def test_figures_become_files(tmp_path):
    text = figure("a &lt; b", b"one").data["text/html"] + figure("two", b"two").data["text/html"]
    changed = site.figures_to_files(text, "02-5-0", tmp_path)
    assert (tmp_path / "02-5-0-0.svg").read_bytes() == SVG % b"one"
    assert (tmp_path / "02-5-0-1.svg").read_bytes() == SVG % b"two"
    assert '<img src="../_static/figures/02-5-0-0.svg" alt="a &lt; b"' in changed and "base64" not in changed


@pytest.mark.parametrize(
    ("declared", "width"), [(b'width="864pt"', "864pt"), (b'width="40.5"', "40.5px"), (b'viewBox="0 0 9 9"', "36rem")]
)
def test_width_of_a_figure(tmp_path, declared, width):
    (tmp_path / "a.svg").write_bytes(b'<svg height="9" ' + declared + b'><rect width="7"/></svg>')
    assert site.full_width(tmp_path / "a.svg") == width


def test_a_figure_of_the_package_is_found(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    plots.show(plots.puzzle(toy_puzzle()), "Take away.")
    (match,) = site.IMAGE.finditer(shown[0].data)
    assert b"<svg" in base64.b64decode(match["svg"]) and len(match["alt"]) > 30


def toy_puzzle():
    return jigsaw.make_puzzle(Image.new("RGB", (84, 84), "white"), 3, 3, seed=0)


# --- slides -------------------------------------------------------------------------------------------------------------


def test_every_listed_figure_is_read():
    text = (ROOT / "course/slides/README.md").read_text()
    assert len(site.listed_figures(text)) == text.count(".svg |")


@pytest.mark.parametrize(
    ("which", "words"),
    [(None, b"live"), ("first", b"live"), ("second", b"recorded"), ("recorded", b"recorded"), ("third", None)],
)
def test_which_figure_of_a_cell(tmp_path, which, words):
    path = course(tmp_path)
    ran = as_run(path, figure("seed 0 live", b"live"), figure("seeds 0-4 recorded", b"recorded"))
    found = site.slide_figure(site.Listed("01-toy", 2, which), nbformat.read(path, as_version=4), ran)
    assert found == (words and SVG % words)


def test_no_figure_of_a_cell_that_changed(tmp_path):
    path = course(tmp_path)
    ran = as_run(path, figure("seed 0 live"))
    ran.cells[-1].source = "draw_otherwise()"
    source = nbformat.read(path, as_version=4)
    assert site.slide_figure(site.Listed("01-toy", 2, None), source, ran) is None
    assert site.slide_figure(site.Listed("01-toy", 9, None), source, ran) is None


DECK = "---\nmarp: true\n---\n\n# Deck\n\nWhy?\n\n---\n\n## Two\n\n| a |\n|---|\n\n![A curve][01-a] ![B][01-b]\n\n[01-a]: figures/01-a.svg\n"


def test_a_deck_as_a_page():
    text = site.deck_as_page(DECK, "Slides here.")
    assert text.strip().startswith("# Deck\n\nSlides here.") and "\n---\n" not in text and "|---|" in text


def test_a_missing_figure_leaves_its_words():
    text = site.without_figures(DECK, ["01-a"])
    assert "*A figure, not there yet: A curve* ![B][01-b]" in text and "figures/01-a.svg" not in text


@pytest.mark.parametrize("deck", sorted(ROOT.glob("course/slides/[0-9][0-9].md")), ids=lambda path: path.name)
def test_no_deck_needs_more_than_is_listed(deck):
    listed = {f.name for f in site.listed_figures((ROOT / "course/slides/README.md").read_text())}
    assert "][" not in site.without_figures(deck.read_text(), listed)


def test_marp_is_pinned():
    package = json.loads((ROOT / "course/slides/package.json").read_text())
    locked = json.loads((ROOT / "course/slides/package-lock.json").read_text())["packages"]
    for name, version in package["dependencies"].items():
        assert locked[f"node_modules/{name}"]["version"] == version
    assert all("integrity" in entry for name, entry in locked.items() if name)


# --- links and written pages --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("[a](syllabus.md)", "[a](syllabus.md)"),
        ("[a](../README.md#tiers)", "[a](../index.md#tiers)"),
        ("[`b`](exercises/README.md) and [c](https://x.org/y)", "[`b`](exercises/README.md) and [c](https://x.org/y)"),
        ("![d](figures/sft_vs_rft.png)", "![d](figures/sft_vs_rft.png)"),
        ("all [figures](figures).", "all figures."),
        ("`[a](figures)`", "`[a](figures)`"),
        ("```\n[a](figures)\n```", "```\n[a](figures)\n```"),
    ],
)
def test_relink(text, becomes):
    pages = {"README.md": "index.md", "course/x.md": "course/x.md", "course/syllabus.md": "course/syllabus.md"}
    copied = set()
    assert site.relinker(ROOT, "course/x.md", pages, copied)(text) == becomes
    assert copied == {"course/figures/sft_vs_rft.png"} & {
        f"course/{t}" for t in re.findall(r"figures/\w+\.png", text)
    } | ({"course/exercises/README.md"} if "exercises" in text else set())


def test_a_block_of_the_readme():
    text = "a\n<!-- results: made by x -->\n\n| t |\n<!-- end of results -->\nb"
    assert site.block(text, "results") == "| t |" and site.block(text, "ledger") == ""
    assert "What became of each claim" not in site.claims_page(text)
    text += "<!-- ledger: made by y -->c<!-- end of ledger -->"
    assert site.claims_page(text).index("What became of each claim\n\nc") < site.claims_page(text).index("| t |")


def test_the_readme_has_its_results():
    assert "| arm |" in site.block((ROOT / "README.md").read_text(), "results")


def test_references_name_papers_and_where_they_are_named():
    texts = {"notes/03.md": "see 2506.23508, 2506.23508", "../index.md": "2506.23508 and 12506.23508"}
    page = site.references_page((ROOT / "CITATION.cff").read_text(), texts)
    row = "| [2506.23508](https://arxiv.org/abs/2506.23508) | [notes 03](notes/03.md), [front page](../index.md) |"
    assert row in page and page.count("| [2506.23508]") == 1 and "12506" not in page
    assert "Zhihao Zhang, Qiaole Dong and others: *Why Reinforcement" in page


def test_every_page_is_in_the_contents_once():
    pages = site.pages_of(ROOT, NOTEBOOKS)
    written = ["course/claims.md", "course/questions.md", "course/references.md"]
    text = site.contents([*pages.values(), *written], (ROOT / "course/README.md").read_text())
    listed = [re.sub(r".*<|>$", "", line) for line in text.splitlines() if line and line[0] not in "`:"]
    assert sorted([*listed, "index.md"]) == sorted([*pages.values(), *written])
    assert "01 Jigsaw construction <notebooks/01_jigsaw_construction.ipynb>" in text
    assert "06 Prefix-RFT <course/notes/06.md>" in text
    assert ":caption: More" not in text  # a new page wants a place


# --- the built site -----------------------------------------------------------------------------------------------------

needs_sphinx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("sphinx", "myst_nb", "math_core", "ziamath")),
    reason="course/locks/site.txt is not installed",
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The folder of pages to look at."""
    if built := os.environ.get("RFTKIT_SITE"):
        return Path(built).resolve()
    home = tmp_path_factory.mktemp("home")
    (home / "notebooks").mkdir()
    table = new_output(
        "display_data",
        {"text/markdown": "| arm | " + " | ".join("abcdefghijkl") + " |\n" + "|---" * 13 + "|\n" + "| number |" * 13},
    )
    wide = new_output("stream", text="a long line " * 40)
    for path in NOTEBOOKS:
        nbformat.write(as_run(path, figure("a figure, made up"), table, wide), home / "notebooks" / path.name)
    executed = site.executed_notebooks(ROOT, home)
    figures = home / "slides/figures"
    missing = site.write_slide_figures(ROOT, executed, figures)
    return site.build_book(ROOT, home, executed, site.Slides(figures, tuple(missing), ()))


class Page(HTMLParser):
    """Links, ids, what is loaded, and pictures of a page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.ids, self.loaded, self.pictures = [], set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids |= {values[key] for key in ("id", "name") if values.get(key)}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "link" and values.get("rel") not in ("index", "search", "next", "prev", "canonical"):
            self.loaded.append(values["href"])
        if tag in ("script", "img", "iframe", "source", "video", "audio", "embed") and "src" in values:
            self.loaded.append(values["src"])
        if tag == "img":
            self.pictures.append(values)


def read_pages(folder):
    return {path: Page(path) for path in sorted(folder.rglob("*.html"))}


@needs_sphinx
def test_links_lead_somewhere_and_nothing_comes_from_another_host(pages):
    parsed = read_pages(pages)
    assert len(parsed) > 20
    dead, remote = [], []
    for path, page in parsed.items():
        for target in page.links + page.loaded:
            if re.match(r"data:|mailto:", target):
                continue
            if re.match(r"(https?:)?//", target):
                remote += [(path.name, target)] if target in page.loaded else []
                continue
            name, _, anchor = unquote(target).partition("#")
            there = (path.parent / name.split("?")[0]).resolve() if name else path
            if not there.is_file() or (anchor and there in parsed and anchor not in parsed[there].ids):
                dead.append((path.name, target))
    assert dead == [] and remote == []
    for path in [*pages.rglob("*.css"), *pages.rglob("*.js")]:
        text = path.read_text(encoding="utf-8", errors="replace")
        assert not re.search(r"(url\(|@import )[\"' ]*(https?:)?//", text), path.name


@needs_sphinx
def test_every_picture_has_a_text_alternative(pages):
    assert [
        (path.name, p)
        for path, page in read_pages(pages).items()
        for p in page.pictures
        if not (p.get("alt") or "").strip()
    ] == []


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


# Text whose contrast with what lies behind it is below 4.5, and what is broken; run in the page.
LOOK = """() => {
  const parse = text => { const n = text.match(/[\\d.]+/g).map(Number); return [n[0], n[1], n[2], n[3] ?? 1]; };
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const rgba = text => {
    if (/^rgba?\\(/.test(text)) return parse(text);
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    const d = canvas.getImageData(0, 0, 1, 1).data; return [d[0], d[1], d[2], d[3] / 255];
  };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
  const light = c => {
    const [r, g, b] = c.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const known = new Map();
  const behind = element => {  // the colour behind the text of an element, and how opaque that text is
    if (!element) return [[255, 255, 255], 1];
    if (!known.has(element)) {
      const style = getComputedStyle(element), own = rgba(style.backgroundColor);
      const [below, opacity] = behind(element.parentElement);
      known.set(element, [over(own, below), opacity * Number(style.opacity)]);
    }
    return known.get(element);
  };
  const faint = new Map();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest('script, style, noscript, template, annotation')) continue;
    if (!element.checkVisibility({checkVisibilityCSS: true, checkOpacity: true})) continue;
    const [below, opacity] = behind(element), colour = rgba(getComputedStyle(element).color);
    colour[3] *= opacity;
    const [a, b] = [light(over(colour, below)), light(below)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) faint.set(`${element.tagName}.${element.className} ${ratio.toFixed(2)}`, walker.currentNode.data.trim().slice(0, 40));
  }
  const images = [...document.images];
  const dark = document.documentElement.dataset.theme === 'dark';
  return {
    faint: [...faint],
    broken: images.filter(i => !i.complete || !i.naturalWidth).map(i => i.src),
    grey: images.filter(i => i.closest('.bd-article') && getComputedStyle(i).backgroundColor !== (dark ? 'rgb(0, 0, 0)' : 'rgb(255, 255, 255)')).map(i => i.src),
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    theme: document.documentElement.dataset.theme,
  };
}"""


def open_tab(browser, theme="light", width=1280):
    """A tab, and the list of what goes wrong in it: messages of errors, and requests that fail or leave this machine."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme, reduced_motion="reduce")
    tab, wrong = context.new_page(), []
    tab.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("requestfailed", lambda request: wrong.append(f"failed: {request.url}"))
    tab.on("request", lambda request: None if re.match("file:|data:|blob:", request.url) else wrong.append(request.url))
    return tab, wrong


@needs_sphinx
@needs_browser
@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 380)])
def test_every_page_can_be_read(pages, browser, theme, width):
    tab, wrong = open_tab(browser, theme, width)
    for path in sorted(pages.rglob("*.html")):
        if path.parent.name == "decks":
            continue
        tab.goto(path.as_uri(), wait_until="load")
        seen = tab.evaluate(LOOK)
        assert seen == {"faint": [], "broken": [], "grey": [], "wide": 0, "theme": theme}, path.relative_to(pages)
        assert wrong == [], path.relative_to(pages)
    tab.context.close()


@needs_sphinx
@needs_browser
def test_results_and_figures_are_to_be_seen(pages, browser):
    tab, wrong = open_tab(browser)
    for name in ("index.html", "course/claims.html"):
        tab.goto((pages / name).as_uri())
        for head, least in (("points of the prior lost", 5), ("standing", 50)):
            table = tab.locator("table").filter(has=tab.locator("th", has_text=head)).first
            assert table.is_visible() and table.locator("tr").count() >= least, (name, head)
    for path in NOTEBOOKS:
        tab.goto((pages / "notebooks" / f"{path.stem}.html").as_uri())
        image = tab.locator("figure img").first
        box = image.bounding_box()
        assert image.is_visible() and box["width"] > 150 and box["height"] > 75, path.stem
        assert tab.locator("figcaption").first.is_visible()
    assert wrong == []
    tab.context.close()


# Cells of verdicts: how many, and those of which a part lies outside the window or outside the box that its table scrolls in.
VERDICTS = """() => {
  const cells = [...document.querySelectorAll('.bd-article table')].flatMap(table => {
    const place = [...(table.tHead?.rows[0].cells ?? [])].findIndex(cell => ['so', 'standing'].includes(cell.textContent.trim()));
    return place < 0 ? [] : [...table.tBodies[0].rows].map(row => row.cells[place]);
  });
  const outside = cells.filter(cell => {
    cell.scrollIntoView({block: 'center', inline: 'nearest'});
    const words = document.createRange();
    words.selectNodeContents(cell);
    const {left, right, top, width} = words.getBoundingClientRect();
    const box = cell.closest('.pst-scrollable-table-container').getBoundingClientRect();
    const under = document.elementFromPoint((left + right) / 2, top + 4);
    return !width || left < Math.max(0, box.left) || right > Math.min(innerWidth, box.right) || !cell.contains(under);
  });
  const scrolled = [...document.querySelectorAll('.pst-scrollable-table-container')].filter(box => box.scrollLeft);
  return [cells.length, outside.map(cell => cell.textContent), scrolled.length];
}"""


@needs_sphinx
@needs_browser
@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 800), ("dark", 380)])
def test_verdicts_are_seen_without_scrolling_sideways(pages, browser, theme, width):
    tab, _ = open_tab(browser, theme, width)
    for name, least in (("course/guide.html", 15), ("course/claims.html", 50)):
        tab.goto((pages / name).as_uri())
        count, outside, scrolled = tab.evaluate(VERDICTS)
        assert count >= least and (outside, scrolled) == ([], 0), name
        stacked = tab.locator("table.stacked", has_text=re.compile("standing|what to do")).first
        assert stacked.count() == (width < 500), name
        if width < 500:  # each cell says what it is, and a row is still a row to a screen reader
            head, last = stacked.locator("thead th").last, stacked.locator("tbody td").last
            assert last.get_attribute("data-head") == head.text_content() and last.get_attribute("role") == "cell"
    tab.context.close()


@needs_sphinx
@needs_browser
def test_formulas_are_set_without_a_script(pages, browser):
    tab, _ = open_tab(browser)
    tab.goto((pages / "course/notes/03.html").as_uri())
    assert tab.locator("math").count() > 40 and tab.locator("script[src*=athJax]").count() == 0
    tall = tab.locator("math[display=block] mfrac").first.bounding_box()
    assert tall["height"] > 25 and "$" not in tab.locator("#the-idea-step-by-step").inner_text()
    assert tab.evaluate("document.fonts.ready.then(() => document.fonts.check('16px \"STIX Two Math\"'))")
    tab.context.close()


FOCUS = """() => {
  const e = document.activeElement, box = e.getBoundingClientRect();
  return {
    text: (e.getAttribute('aria-label') || e.textContent).trim().replace(/\\s+/g, ' ').slice(0, 40),
    seen: box.width > 0 && e.checkVisibility({checkVisibilityCSS: true, checkOpacity: true}),
    inside: e.closest('main, nav, dialog, header, .bd-sidebar-primary')?.className || '',
    target: e.getAttribute('href') || '',
  };
}"""


def tab_through(tab, times):
    stops = []
    for _ in range(times):
        tab.keyboard.press("Tab")
        stops.append(tab.evaluate(FOCUS))
    return stops


@needs_sphinx
@needs_browser
def test_the_keyboard_reaches_search_and_contents(pages, browser):
    tab, wrong = open_tab(browser)
    tab.goto((pages / "course/glossary.html").as_uri())
    stops = tab_through(tab, 8)
    assert stops[0]["text"] == "Skip to main content" and stops[0]["target"] == "#main-content"
    assert all(stop["seen"] for stop in stops), stops
    names = [stop["text"] for stop in stops]
    assert "Search" in names and "The course" in names
    tab.locator("a[href='#main-content']").focus()
    tab.keyboard.press("Enter")
    (stop,) = tab_through(tab, 1)
    assert "bd-sidebar-primary" not in stop["inside"]  # the sidebar is behind us
    assert wrong == []
    tab.context.close()


@needs_sphinx
@needs_browser
def test_the_keyboard_opens_the_contents_on_a_telephone(pages, browser):
    tab, _ = open_tab(browser, width=380)
    tab.goto((pages / "course/glossary.html").as_uri())
    stops = tab_through(tab, 5)
    names = [stop["text"] for stop in stops]
    assert stops[0]["text"] == "Skip to main content" and "Search" in names
    tab.locator(".primary-toggle").focus()
    tab.keyboard.press("Enter")
    assert any(stop["text"] == "Prerequisites" and stop["seen"] for stop in tab_through(tab, 8))
    tab.keyboard.press("Escape")
    tab.get_by_role("link", name="Prerequisites", exact=True).first.wait_for(state="hidden", timeout=5000)
    tab.context.close()


@needs_sphinx
@needs_browser
def test_wide_things_scroll_in_their_own_box_by_the_keyboard(pages, browser):
    tab, _ = open_tab(browser, width=380)
    tab.goto((pages / "notebooks" / f"{NOTEBOOKS[0].stem}.html").as_uri())
    wide = """() => [...document.querySelectorAll('.bd-article *')].filter(e => e.scrollWidth > e.clientWidth + 2 &&
      ['auto', 'scroll'].includes(getComputedStyle(e).overflowX)).map(e => (e.focus(), [e.tagName, document.activeElement === e]))"""
    boxes = tab.evaluate(wide)
    assert {"PRE", "DIV"} <= {tag for tag, _ in boxes} and all(reached for _, reached in boxes), boxes
    tab.context.close()


@needs_sphinx
@needs_browser
def test_the_search_finds_pages_without_a_server(pages, browser):
    tab, wrong = open_tab(browser)
    tab.goto((pages / "course/glossary.html").as_uri())
    tab.keyboard.press("Control+k")
    tab.keyboard.type("perplexity")
    tab.keyboard.press("Enter")
    tab.locator("#search-results li a").nth(2).wait_for(timeout=20000)  # they come one by one
    assert wrong == []
    tab.context.close()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@needs_sphinx
@needs_browser
def test_the_search_of_a_served_site_has_excerpts(pages, browser):
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=pages)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        tab = browser.new_page()
        tab.goto(f"http://127.0.0.1:{server.server_port}/search.html?q=perplexity")
        tab.locator("#search-results li p.context").first.wait_for(timeout=20000)
        tab.close()
        server.shutdown()


@needs_sphinx
@needs_browser
def test_slides_can_be_shown(pages, browser):
    decks = sorted(pages.glob("decks/*.html"))
    if not decks:
        pytest.skip("no slides in this site: they need Node.js")
    tab, wrong = open_tab(browser)
    for deck in decks:
        tab.goto(deck.as_uri())
        assert tab.locator("section").count() >= 8
        assert tab.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)") == []
    assert wrong == []
    tab.context.close()
