"""The jigsaw and the slider to try by hand: readable without scripts, safe with any reply, and they work in a browser."""

import html
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from browser import CHROMIUM, needs_browser
from PIL import Image

from rftkit import interactive, jigsaw
from rftkit.config import UserError

NASTY = '</code><script>alert("x")</script><img src=x onerror=alert(1)> "KEY" & so on'


class Seen(HTMLParser):
    """Tags with their attributes, and all text outside of scripts and styles."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.inside = [], "", []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.inside.pop()

    def handle_data(self, data):
        self.text += "" if self.inside else data

    def of(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def puzzle(convention="forward"):
    pixels = np.random.default_rng(0).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    return jigsaw.make_puzzle(Image.fromarray(pixels), 3, 3, seed=1, convention=convention)


def test_the_jigsaw_is_readable_without_its_script():
    given = puzzle()
    seen = Seen(interactive.jigsaw_by_hand(given, jigsaw.answer_text(given.answer)))
    tiles = [b for b in seen.of("button") if "data-tile" in b]
    assert [int(b["data-tile"]) for b in tiles] == list(range(1, 10))
    assert tuple(int(b["data-home"]) for b in tiles) == given.permutation
    assert "hidden" in next(b for b in seen.of("button") if b.get("class") == "check")  # it does nothing then
    assert " ".join(map(str, given.answer)) in seen.text and "9 of 9 tiles right" in seen.text
    assert len(seen.of("details")) == 1 and all(i["alt"] and i["src"].startswith("data:") for i in seen.of("img"))


def test_a_reply_that_is_no_order_is_said_to_be_none():
    seen = Seen(interactive.jigsaw_by_hand(puzzle(), "no idea"))
    assert "No order of the tiles can be read" in seen.text and "no idea" in seen.text


def test_a_wrong_order_is_counted_and_drawn():
    given = puzzle()
    swapped = (given.answer[1], given.answer[0], *given.answer[2:])
    page = interactive.jigsaw_by_hand(given, jigsaw.answer_text(swapped), who="A & B")
    assert "7 of 9 tiles right" in page and len(Seen(page).of("img")) == 10 and "A &amp; B" in page


@pytest.mark.parametrize("where", ["reply", "who", "name", "cell", "meter"])
def test_no_text_becomes_markup(where):
    page = {
        "reply": lambda: interactive.jigsaw_by_hand(puzzle(), NASTY),
        "who": lambda: interactive.jigsaw_by_hand(puzzle(), "", who=NASTY),
        "name": lambda: interactive.slider({NASTY: "", "b": ""}, NASTY),
        "cell": lambda: interactive.replies([NASTY], [[NASTY]]),
        "meter": lambda: interactive.meters({NASTY: 0.5}),
    }[where]()
    seen = Seen(page)
    assert len(seen.of("script")) == (0 if where in ("cell", "meter") else 1)
    assert not any("onerror" in attrs for _, attrs in seen.tags) and "alert" in html.unescape(page)


def test_the_script_finds_its_own_piece_only():
    one, other = (interactive.slider({"a": text, "b": ""}, "updates") for text in ("x", "y"))
    ids = [re.findall(r' id="([^"]+)"', page) for page in (one, other)]
    assert ids[0] != ids[1] and all(
        f'getElementById("{i[0]}")' in page for i, page in zip(ids, (one, other), strict=True)
    )
    assert one == interactive.slider({"a": "x", "b": ""}, "updates")  # the same on every run
    assert "http" not in one + interactive.jigsaw_by_hand(puzzle(), "")


def test_all_frames_are_there_without_the_script():
    seen = Seen(interactive.slider({f"update {i}": interactive.meters({"solved": i / 4}) for i in range(5)}, "updates"))
    assert [f"update {i}" in seen.text for i in range(5)] == [True] * 5 and "100.0%" in seen.text
    assert "hidden" in next(p for p in seen.of("p") if p.get("class") == "bar")
    assert not any("hidden" in d for d in seen.of("div"))


def test_bad_input_is_told_in_one_sentence():
    with pytest.raises(UserError, match="forward convention"):
        interactive.jigsaw_by_hand(puzzle("inverse"), "")
    with pytest.raises(UserError, match="two frames"):
        interactive.slider({"a": ""}, "updates")
    with pytest.raises(UserError, match="divide first"):
        interactive.meters({"share": 50.0})


@needs_browser
def test_in_a_browser_tiles_are_swapped_and_frames_chosen_by_key():
    from playwright.sync_api import sync_playwright

    given = puzzle()
    frames = {f"update {i}": interactive.meters({"solved": i / 4}) for i in range(5)}
    page_of = interactive.jigsaw_by_hand(given, NASTY) + interactive.slider(frames, "updates")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page, faults = browser.new_page(), []
        page.on("pageerror", lambda fault: faults.append(str(fault)))
        page.on("dialog", lambda dialog: faults.append(dialog.message))
        page.set_content(f"<!doctype html><html lang='en'><body>{page_of}</body></html>")
        tiles, told = page.locator(".tiles button"), page.locator("[role=status]")
        for place in range(1, 10):  # put the tile that belongs there on each place, by keyboard
            homes = [int(tiles.nth(i).get_attribute("data-home")) for i in range(9)]
            if (at := homes.index(place)) != place - 1:
                tiles.nth(at).press("Enter")
                tiles.nth(place - 1).press("Enter")
        page.locator(".check").click()
        assert "9 of 9 tiles are in their place" in told.inner_text()
        order = [int(tiles.nth(i).get_attribute("data-tile")) for i in range(9)]
        assert tuple(order) == jigsaw.invert(given.permutation)
        assert page.locator(".frame:visible").count() == 1
        page.locator("input[type=range]").press("End")
        assert "update 4" in page.locator(".frame:visible").inner_text()
        assert faults == []
        browser.close()
