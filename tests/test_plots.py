import base64
import dataclasses
import itertools
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from fake_runs import SHAPES, all_noisy, noisy, record
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.text import Text
from PIL import Image

from rftkit import jigsaw, plots, runs
from rftkit.config import UserError

SHORT = record("rft", 7, [(0, 0.0, 0.8), (20, 0.3, 0.8)], name="rft-short-7")


def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (84, 84, 3), np.uint8))


def figures():
    records = all_noisy()
    yield "curves", plots.learning_curves(records)
    yield "two live runs", plots.learning_curves([noisy("sft", 0, "live"), noisy("rft", 0, "live")])
    yield "flat and equal", plots.learning_curves([record(m, 0, [(0, 0.0, 0.8), (50, 0.0, 0.8)]) for m in SHAPES])
    yield "one evaluation", plots.learning_curves([record("sft", 0, [(0, 0.0, 0.8)])])
    yield "drop", plots.matched_drop(runs.matched_table([*records, SHORT], 0.5))
    yield "drop, none reached", plots.matched_drop(runs.matched_table([SHORT], 0.5))
    missed = [dataclasses.replace(SHORT, seed=s, name=f"rft-lr0.0002-beta0.0-seed{s}") for s in range(7)]
    yield "drop, many left out", plots.matched_drop(runs.matched_table([noisy("sft", 0), *missed], 0.5))
    yield "bars", plots.verdict_bars(records[0])
    yield "puzzle", plots.puzzle(jigsaw.make_puzzle(picture(), seed=1))
    yield "wide puzzle", plots.puzzle(jigsaw.make_puzzle(picture(), 2, 3, seed=1, convention="inverse"))


FIGURES = dict(figures())
every_figure = pytest.mark.parametrize("fig", FIGURES.values(), ids=FIGURES.keys())


def texts(fig):
    """(text, box in pixels) of everything written on the figure."""
    renderer = FigureCanvasAgg(fig).get_renderer()
    fig.draw(renderer)
    found = [t for t in fig.findobj(Text) if t.get_visible() and t.get_text().strip()]
    return [
        (t.get_text(), Text.get_window_extent(t, renderer), t) for t in found
    ]  # of an annotation, without its leader


def tick_range(fig):
    """Texts of ticks outside the axes' limits are made but never drawn."""
    out = set()
    for axes in fig.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks() + axis.get_minor_ticks():
                if not axes.axison or not low - 1e-9 <= tick.get_loc() <= high + 1e-9:
                    out |= {tick.label1, tick.label2}
    return out


def drawn(fig):
    found = texts(fig)
    unseen = tick_range(fig)  # known only after drawing
    return [(text, box) for text, box, artist in found if artist not in unseen]


@every_figure
def test_no_two_texts_overlap_and_none_is_cut_off(fig):
    found = drawn(fig)
    assert len(found) > 3
    for text, box in found:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= fig.bbox.x1 and box.y1 <= fig.bbox.y1, f"cut off: {text!r}"
    for (a, box), (b, other) in itertools.combinations(found, 2):
        wide = min(box.x1, other.x1) - max(box.x0, other.x0)
        high = min(box.y1, other.y1) - max(box.y0, other.y0)
        assert wide <= 0 or high <= 1, f"{a!r} overlaps {b!r}"


@every_figure
def test_every_figure_has_alt_text_and_one_svg(fig):
    assert len(plots.alt_text(fig)) > 60 and "nan" not in plots.alt_text(fig)
    svg = plots.to_svg(fig)
    ElementTree.fromstring(svg)
    assert svg == plots.to_svg(fig)
    assert "<dc:date>" not in svg


@every_figure
def test_the_background_is_transparent(fig):
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())
    assert pixels[0, 0, 3] == pixels[-1, -1, 3] == 0
    assert (pixels[..., 3] > 0).any()


@every_figure
def test_no_text_and_no_axis_is_black_or_white(fig):
    """Default black would vanish in a dark notebook. The numbers on puzzle tiles stand on a white box of their own."""
    for text, _, artist in texts(fig):
        assert to_hex(artist.get_color()) == plots.INK or artist.get_bbox_patch(), text
    for axes in fig.axes:
        assert {to_hex(spine.get_edgecolor()) for spine in axes.spines.values()} == {plots.INK}
        ticks = [*axes.xaxis.get_ticklines(), *axes.yaxis.get_ticklines()]
        assert {to_hex(tick.get_color()) for tick in ticks} <= {plots.INK}


# --- what the figures say


def words(fig):
    return " ".join(text for text, _ in drawn(fig)).replace("\n", " ")


def test_curves_say_which_seeds_are_live_and_which_recorded():
    fig = FIGURES["curves"]
    for said in (words(fig), plots.alt_text(fig)):
        assert said.count("seeds 0 live, 1-2 recorded") == (4 if said != fig.alt else 2)  # SFT and RFT, on each panel
        assert "LoRA-SFT" in said and "seeds 0-2 recorded" in said
    assert words(FIGURES["two live runs"]).count("seed 0 live") == 4
    assert "recorded" not in plots.alt_text(FIGURES["two live runs"])


def test_curves_draw_the_data_thin_by_seed_and_thick_for_the_mean():
    left = FIGURES["curves"].axes[0]
    color = plots.METHOD_STYLE["sft"].color
    lines = [line for line in left.lines if line.get_color() == color and len(line.get_xdata()) > 1]
    thin = [line for line in lines if line.get_linewidth() < 1]
    (thick,) = [line for line in lines if line.get_linewidth() > 2]
    assert len(thin) == 3
    assert thick.get_ydata() == pytest.approx(np.mean([line.get_ydata() for line in thin], axis=0))
    assert thin[0].get_xdata().tolist() == [row["step"] for row in noisy("sft", 0).metrics]


def test_alt_text_is_computed_from_the_data():
    fig = plots.learning_curves([record("sft", 0, [(0, 0.02, 0.81), (40, 0.97, 0.13)])])
    assert "SFT answer-only (seed 0 live): new task 2% to 97% in 40 updates, prior 81% to 13%" in fig.alt


def test_matched_drop_names_what_it_left_out():
    fig = FIGURES["drop"]
    for said in (words(fig), fig.alt):
        assert "rft-short-7" in said and "50%" in said
    row = runs.matched_table(all_noisy(), 0.5)[0]
    assert f"{row.mean:.1f}, interval {row.lo:.1f} to {row.hi:.1f}" in fig.alt
    assert "no run reached the target" in words(FIGURES["drop, none reached"])
    with pytest.raises(UserError, match="no rows"):
        plots.matched_drop([])


def test_verdict_bars_are_the_shares_of_the_first_and_last_evaluation():
    rec = noisy("sft", 0)
    axes = plots.verdict_bars(rec).axes[0]
    widths = np.array([patch.get_width() for patch in axes.patches]).reshape(8, 2, 3)  # probe, when, verdict
    assert widths.sum(axis=2) == pytest.approx(1)
    last = rec.metrics[-1]["prior"]["count"]
    assert widths[1, 1] == pytest.approx([last[v] / 200 for v in ("correct", "wrong", "unparseable")])
    hatches = {patch.get_hatch() for patch in axes.patches}
    assert len(hatches) == 3
    with pytest.raises(UserError, match="no evaluated probes"):
        plots.verdict_bars(record("sft", 0))


def test_puzzle_shows_each_tile_where_it_belongs():
    """Place Y of the restored picture is labelled with the tile that the shuffled picture shows at that number."""
    puzzle = jigsaw.make_puzzle(picture(), 2, 3, seed=1)
    left, right = plots.puzzle(puzzle).axes
    labels = [[int(t.get_text()) for t in axes.texts] for axes in (left, right)]
    tiles, places = jigsaw.cut(puzzle.image, 2, 3), jigsaw.cut(picture(), 2, 3)
    assert labels[0] == [1, 2, 3, 4, 5, 6]
    assert all(tiles[tile - 1] == place for tile, place in zip(labels[1], places, strict=True))


def test_an_unknown_method_and_no_runs_are_user_errors():
    with pytest.raises(UserError, match="'dpo'"):
        plots.learning_curves([record("dpo", 0, [(0, 0.0, 0.8)])])
    with pytest.raises(UserError, match="no runs"):
        plots.learning_curves([])


# --- showing


def test_show_embeds_svg_alt_text_and_takeaway(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    fig = plots.verdict_bars(noisy("sft", 0))
    fig.alt += ' "quoted" <b>'
    plots.show(fig, "SFT loses 5 < 6 probes.")
    (page,) = [item.data for item in shown]
    tree = ElementTree.fromstring(re.sub(r"<img([^>]*)>", r"<img\1/>", page))
    image = tree.find("img")
    assert image.get("alt") == fig.alt
    assert base64.b64decode(image.get("src").split("base64,")[1]).decode() == plots.to_svg(fig)
    assert tree.find("figcaption").text == "SFT loses 5 < 6 probes."
    with pytest.raises(UserError, match="takeaway"):
        plots.show(fig, " ")
    fig.alt = ""
    with pytest.raises(UserError, match="alt text"):
        plots.show(fig, "x")


# --- colours


def linear(color):
    s = np.array(to_rgb(color))
    return np.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4)


def contrast(a, b):
    """WCAG 2.2 contrast ratio."""
    high, low = sorted((linear(c) @ [0.2126, 0.7152, 0.0722] for c in (a, b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_can_be_read_on_white_and_on_near_black():
    assert contrast(plots.INK, "white") >= 4.5 and contrast(plots.INK, "black") >= 4.5
    best = math.sqrt(contrast("white", "#111111"))  # no single colour does better on both
    assert best < 4.5 and contrast(plots.INK, "#111111") >= best - 0.2


def test_lines_and_marks_stand_out_on_both():
    colors = [s.color for s in plots.METHOD_STYLE.values()] + [color for color, _ in plots.VERDICT_STYLE.values()]
    for color, ground in itertools.product(colors, ("white", "#111111", "black")):
        assert contrast(color, ground) >= 3, (color, ground)


# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def lab(color, matrix):
    xyz = TO_XYZ @ np.clip(np.array(matrix) @ linear(color), 0, 1) / [0.95047, 1, 1.08883]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("kind", BLINDNESS)
def test_methods_differ_in_colour_to_every_eye(kind):
    for a, b in itertools.combinations(plots.METHOD_STYLE.values(), 2):
        assert np.linalg.norm(lab(a.color, BLINDNESS[kind]) - lab(b.color, BLINDNESS[kind])) > 20, (a.label, b.label)


def test_methods_differ_without_colour():
    styles = plots.METHOD_STYLE.values()
    assert len({s.marker for s in styles}) == len(styles) == len({s.label for s in styles})


# --- labels


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=12), st.floats(0.01, 0.3))
def test_spread_keeps_order_gap_and_bounds(targets, gap):
    out = plots.spread(targets, gap, 0.0, 1.0)
    fits = min(gap, 1 / max(len(targets) - 1, 1))
    assert all(-1e-9 <= y <= 1 + 1e-9 for y in out)
    ranked = sorted(range(len(targets)), key=lambda i: targets[i])
    assert all(out[b] - out[a] >= fits - 1e-9 for a, b in itertools.pairwise(ranked))


def test_spread_moves_only_what_collides():
    assert plots.spread([0.9, 0.1, 0.5], 0.1, 0, 1) == pytest.approx([0.9, 0.1, 0.5])
    assert plots.spread([0.5, 0.5, 0.9], 0.1, 0, 1) == pytest.approx([0.45, 0.55, 0.9])
    assert plots.spread([1.0, 1.0], 0.2, 0, 1) == pytest.approx([0.8, 1.0])
    assert plots.spread([], 0.1, 0, 1) == []
