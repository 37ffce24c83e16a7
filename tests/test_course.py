"""The course's pages: all linked, nothing they name is missing, no measured number of ours is typed in the lecture notes."""

import json
import re
from pathlib import Path

import pytest

from rftkit import arms, plots, questions, runs
from rftkit.__main__ import OWN_COMMANDS

ROOT = Path(__file__).parent.parent
COURSE = ROOT / "course"
PAGES = sorted([*COURSE.glob("*.md"), *COURSE.glob("notes/*.md"), *COURSE.glob("slides/*.md")])
NOTES, DECKS = sorted(COURSE.glob("notes/*.md")), sorted(COURSE.glob("slides/0*.md"))
NOTEBOOKS = {path.name[:2]: path for path in (ROOT / "notebooks").glob("*.ipynb")}
GRADE = r"\[(?:A|B|C|D|P|R|F|T|X|ABS|CODE|LUFFY|2ND|DERIVED)(?:, (?:F|P|R|T|X|CODE|2ND|LUFFY))*\]"

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(COURSE)))
notes = pytest.mark.parametrize("page", NOTES, ids=lambda page: page.name)
decks = pytest.mark.parametrize("page", DECKS, ids=lambda page: page.name)


def prose(text):
    """Without code and without the front matter of a deck."""
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S)
    return re.sub(r"```.*?```", "", text, flags=re.S)


def links(page):
    """Targets of links and pictures, without those of the build (reference definitions)."""
    return [
        target
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text()))
        if not re.match(r"[a-z]+:|#", target)
    ]


def slides(page):
    return re.split(r"^---$", prose(page.read_text()), flags=re.M)


def test_there_is_a_note_and_a_deck_for_each_notebook():
    wanted = [f"{number}.md" for number in sorted(NOTEBOOKS)]
    assert [path.name for path in NOTES] == wanted == [path.name for path in DECKS] and len(wanted) == 8


def test_every_page_is_linked():
    starts = [COURSE / "README.md", COURSE / "syllabus.md"]
    known = {(page.parent / target.split("#")[0]).resolve() for page in starts for target in links(page)}
    every = set(COURSE.rglob("*.md")) - {COURSE / "README.md"}
    assert sorted(str(page.relative_to(COURSE)) for page in every if page.resolve() not in known) == []


@pages
def test_links_lead_somewhere(page):
    assert [target for target in links(page) if not (page.parent / target.split("#")[0]).exists()] == []


@pages
def test_notebooks_and_commands_that_are_named_exist(page):
    text = page.read_text()
    for name in re.findall(r"\b0\d_[a-z_0-9]+\b", text):
        assert (ROOT / "notebooks" / f"{name}.ipynb").is_file(), name
    assert {number for number in re.findall(r"[Nn]otebooks? (\d+)", text)} <= {f"{i:02}" for i in range(1, 9)}
    commands = re.findall(r"python -m rftkit ([a-z]+)", text)
    assert set(commands) <= {*OWN_COMMANDS, "run"}


@pages
def test_lines_are_not_too_long(page):
    lines = page.read_text().splitlines()
    assert [
        line[:60] for line in lines if len(line) > 200 and not line.startswith("![")
    ] == []  # an image's text is one line


@pages
def test_headings_are_in_order(page):
    levels = [len(marks) for marks in re.findall(r"^(#+) ", prose(page.read_text()), flags=re.M)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))


@pages
def test_tables_are_whole(page):
    for block in re.findall(r"(?:^\|.*\n)+", prose(page.read_text()), flags=re.M):
        rows = [re.sub(r"\$[^$]*\$|`[^`]*`", "", line) for line in block.splitlines()]  # a | within these is none
        assert len({row.count("|") for row in rows}) == 1, block
        assert re.fullmatch(r"(\|[-: ]+)+\|", rows[1]), block


def ungraded(text):
    """Lines with a percentage or a number of points, but neither the grade of a source nor the word example."""
    typed = re.compile(r"\d(?:\s?\\?%| (?:percentage )?points?\b| per cent\b)")
    return [line for line in prose(text).splitlines() if typed.search(line) and not re.search(GRADE + "|example", line)]


@notes
def test_notes_type_no_measured_number_of_ours(page):
    assert ungraded(page.read_text()) == []


@pytest.mark.parametrize(
    "line", ["lost 51.1 points", "solved 94%", "solved 94 % of them [Q]", "$50\\%$ exact", "95 per cent"]
)
def test_a_typed_number_would_be_found(line):
    assert ungraded(line) == [line]


@pytest.mark.parametrize(
    "line", ["lost 57.2 points [C]", "as an example 94%", "at 17 % [F, X]", "three discussion points", "80 % [2ND]"]
)
def test_a_graded_number_may_stand(line):
    assert ungraded(line) == []


@notes
def test_notes_have_their_parts(page):
    text = page.read_text()
    headings = re.findall(r"^## (.+)$", text, flags=re.M)
    assert headings == [
        "The question",
        "The idea, step by step",
        "What to watch in the figures",
        "Typical misconceptions",
        "What the recorded runs say",
        "Discussion",
    ] or (page.name == "01.md" and headings[4] == "What the runs say")
    assert 900 <= len(text.split()) <= 1500
    discussion = text.partition("## Discussion")[2]
    asked = re.findall(r"^\d\. \*\*.*?\?\*\*(.*?)(?=^\d\. |\Z)", discussion, flags=re.M | re.S)
    assert len(asked) == 3 and all(len(answer.split()) > 20 for answer in asked)


@notes
def test_formulas_are_closed(page):
    text = prose(page.read_text())
    assert text.count("$$") % 2 == 0
    assert all(part.count("$") % 2 == 0 for part in re.sub(r"\$\$.*?\$\$", "", text, flags=re.S).split("\n\n"))


@decks
def test_decks_have_their_size_and_begin_with_a_question(page):
    text = page.read_text()
    assert text.startswith("---\nmarp: true\n") and "\npaginate: true\n" in text
    found = slides(page)
    assert 8 <= len(found) <= 12
    for slide in found:
        assert len(re.findall(r"^#{1,2} ", slide, flags=re.M)) == 1, slide
        assert len(slide.splitlines()) <= 40, slide
    assert "?" in found[0] or "*" in found[0]


@decks
def test_figures_of_decks_have_a_text_and_are_listed(page):
    text, listed = page.read_text(), (COURSE / "slides/README.md").read_text()
    shown = re.findall(r"^!\[([^\]]*)\]\[([^\]]+)\]$", text, flags=re.M)
    defined = dict(re.findall(r"^\[([^\]]+)\]: figures/(\S+)$", text, flags=re.M))
    assert {name for _, name in shown} == defined.keys()
    for alt, name in shown:
        assert len(alt) > 30 and defined[name] == f"{name}.svg" and name.startswith(page.stem)
        assert f"| {name}.svg | {page.stem}, cell " in listed


def draws(cells, number, function):
    """Does the cell show a figure of plots.`function`, itself or by a function of the notebook's own that does?"""
    calls = [f"plots.{function}("]
    for cell in cells:
        parts = re.split(r"^def (\w+)", cell, flags=re.M)[1:]
        calls += [f"{name}(" for name, body in zip(parts[::2], parts[1::2], strict=True) if calls[0] in body]
    return any(call in cells[number] for call in calls)


def test_a_figure_is_found_in_a_cell_or_in_a_function_that_it_calls():
    cells = [
        "def mine():\n    plots.show(plots.curve(1))\n\ndef other():\n    pass",
        "mine()",
        "other()",
        "plots.curve(2)",
    ]
    assert [draws(cells, i, "curve") for i in range(4)] == [True, True, False, True]


def test_listed_figures_are_used_and_their_functions_exist():
    listed = (COURSE / "slides/README.md").read_text()
    rows = re.findall(
        r"^\| (0\d-[a-z-]+)\.svg \| (0\d), cell (\d+)[^|]*\| (?:`plots\.([a-z_]+)`|own) \|", listed, flags=re.M
    )
    assert len(rows) == listed.count(".svg |")
    for name, number, cell, function in rows:
        assert f"[{name}]: figures/{name}.svg" in (COURSE / f"slides/{number}.md").read_text()
        assert not function or hasattr(plots, function)
        cells = ["".join(each["source"]) for each in json.loads(NOTEBOOKS[number].read_text())["cells"]]
        found = draws(cells, int(cell), function) if function else "fig.alt = " in cells[int(cell)]
        assert found, (name, cell)  # the cell is where the list says


def test_the_minutes_of_each_plan_add_up():
    text = (COURSE / "syllabus.md").read_text()
    plans = re.findall(r"^## (?!What)(.+?)\n(.*?)^Total: (\d+) minutes\.$", text, flags=re.M | re.S)
    assert [name for name, *_ in plans] == ["One afternoon", "Six weeks", "Twelve weeks"]
    for name, plan, total in plans:
        minutes = [int(x) for x in re.findall(r"^\| (\d+) \|", plan, flags=re.M)]
        assert sum(minutes) == int(total), name
        weeks = [int(week) for week in re.findall(r"\| Week (\d+)", plan)]
        assert sorted(set(weeks)) == list(range(1, {"One afternoon": 0, "Six weeks": 6, "Twelve weeks": 12}[name] + 1))


def test_the_self_test_has_ten_questions_and_answers():
    text = (COURSE / "prerequisites.md").read_text()
    asked, answered = text.partition("## Self test")[2].partition("## Answers")[::2]
    for part in (asked, answered):
        assert re.findall(r"^(\d+)\. ", part, flags=re.M) == [str(i) for i in range(1, 11)]


def test_the_glossary_has_no_word_twice_and_names_a_notebook_for_each():
    rows = re.findall(r"^\| ([^|]+?) \| ([^|]+?) \| (0[1-8]) \|$", (COURSE / "glossary.md").read_text(), flags=re.M)
    words = [word for word, *_ in rows]
    assert len(words) == len(set(words)) >= 80
    assert all(meaning.endswith(".") and 3 < len(meaning.split()) < 45 for _, meaning, _ in rows)
    sections = (COURSE / "glossary.md").read_text().split("\n## ")[1:]
    for section in sections:
        own = [word.casefold() for word in re.findall(r"^\| ([^|]+?) \| [^|]+ \| 0\d \|$", section, flags=re.M)]
        assert own == sorted(own), section[:30]


def test_what_differs_md_says_of_rft_on_the_jigsaw_is_recorded():
    every = runs.load_recorded()
    made = {name: [r for r in every if r.method == name] for name in ("rft", "rft_kl", "jigsaw_rft")}
    arrived = {name: [r for r in some if runs.at_matched(r, arms.TARGET)] for name, some in made.items()}
    assert {name: (len(arrived[name]), len(made[name])) for name in made} == {
        "rft": (5, 5),
        "rft_kl": (1, 3),
        "jigsaw_rft": (1, 3),
    }
    stuck, climbing = sorted(
        (r for r in made["jigsaw_rft"] if r not in arrived["jigsaw_rft"]), key=lambda r: -r.evals()[-1]["new_hit"]
    )
    last = [s["completion"] for s in stuck.samples if s["step"] == stuck.evals()[-1]["step"]]
    assert {len(re.findall(r"\d", text.partition("<answer>")[2])) for text in last} == {7}
    assert climbing.evals()[-1]["new_hit"] > 2 * climbing.evals()[-2]["new_hit"]
    same = ("base", "lr", "steps", "prompts", "group", "beta", "reuse")
    assert len({tuple(r.config[key] for key in same) for name in ("rft", "jigsaw_rft") for r in made[name]}) == 1
    assert all(r.config["blend"]["prefixed"] == 0 == r.config["blend"]["sft"] for r in made["jigsaw_rft"])


def test_the_project_page_has_ten_ideas_with_all_their_parts():
    ideas = re.split(r"^### \d+\. ", (COURSE / "project.md").read_text().partition("## Rubric")[0], flags=re.M)[1:]
    assert len(ideas) == 10
    for idea in ideas:
        assert re.findall(r"^- \*\*(Question|Arms|Control|Cost|If negative)", idea, flags=re.M) == [
            "Question",
            "Arms",
            "Control",
            "Cost",
            "If negative",
        ]


def test_question_bank_and_course_speak_of_the_same_notebooks():
    asked = {kind(questions.rng_for("course", kind.__name__)).notebook for kind in questions.KINDS}
    assert asked >= {path.stem for path in NOTES}
