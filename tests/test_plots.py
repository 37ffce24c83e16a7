import base64
import dataclasses
import itertools
import math
import re
from xml.etree import ElementTree

import fake_points
import fake_sequences
import fake_sums
import numpy as np
import pytest
from fake_runs import PROBES, SHAPES, all_noisy, dynamics_row, measured, noisy, record
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from rftkit import continual, jigsaw, plots, prefix_rft, runs, sequence, spectra
from rftkit.config import UserError
from rftkit.evals import Interval, t_interval

SHORT = record("rft", 7, [(0, 0.0, 0.8), (20, 0.3, 0.8)], name="rft-short-7")


def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (84, 84, 3), np.uint8))


NAN = math.nan
NB04 = plots.COMPANY[1]
TRAIN = [f"jigsaw {k}: 4 2 7 1 3 5 6 8 9" for k in range(5)]
PRIOR = [
    f"{probe}: what is the {probe} of the star that is left of the red circle in this picture?" for probe in PROBES
]


def changes(n=5, m=8, seed=0, size=1e-3):
    rng = np.random.default_rng(seed)
    return size * rng.normal(size=(n, m)) * np.exp(rng.normal(0, 2, (n, m)))


def powers(slope, scale=1.0):
    rates = np.logspace(-6, -3, 7)
    return rates, scale * rates**slope


def matched(drops, excluded=(), live=(), target=0.5):
    mean, lo, hi = t_interval(drops) if drops else (NAN, NAN, NAN)
    return runs.MatchedRow("any", target, tuple(range(len(drops))), tuple(drops), mean, lo, hi, tuple(excluded), live)


def sweep():
    slow = [f"sft_rollouts_lr0.0001-seed{s}" for s in range(3)]
    yield "sft", 1e-3, matched([44.0, 50.0, 47.0], live=(0,))
    yield "sft", 3e-4, matched([31.0, 34.0, 36.0])
    yield "sft", 3e-3, matched([71.0])
    yield "sft_rollouts", 1e-4, matched([], slow)
    yield "sft_rollouts", 1e-3, matched([5.0, 9.0, 7.0])
    yield "sft_rollouts", 3e-3, matched([20.0, 33.0], ["sft_rollouts_lr0.003-seed2"])


def points(scale=1.0, methods=NB04):
    return [(method, scale * (1 + k), 100 * SHAPES[method][1]) for k, method in enumerate(methods)]


def panels():
    yield "base perplexity of the data", True, points(100.0), Interval(0.81, 0.4, 0.95)
    yield "mean cosine with the gradients of the probes", False, points(-0.01), Interval(-0.62, -0.9, -0.1)
    yield "KL to the base", True, points(0.001, ("sft", "sft_far")), Interval(0.1, NAN, NAN)
    yield "distance of weights", False, points(3.0), Interval(0.3, -0.2, 0.7)


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
    yield from dynamics_figures()


def dynamics_figures():
    predicted = changes()
    yield "first order", plots.first_order(predicted, 0.9 * predicted + changes(seed=1, size=1e-4), 1e-6)
    yield "first order, useless", plots.first_order(1e4 * predicted, predicted, 1e-2)
    remainders = [("SGD", *powers(2, 1e5)), ("AdamW with a rather long name", *powers(1)), ("SGD, prior", *powers(2))]
    yield "slopes", plots.loglog(remainders, "learning rate", "remainder (nats)")
    yield "slope on a short span", plots.loglog([("SGD", [4.1, 4.3], [1.0, 1.1])], "learning rate", "remainder", 1.0)
    odd = changes(8, 8)
    both = [("SGD, one step of rate 1e-6", odd + odd.T), ("AdamW, one step of rate 1e-4, mean over the answer", odd)]
    yield "symmetry", plots.symmetry(both)
    yield "symmetry, one panel", plots.symmetry(both[:1])
    yield "microscope", plots.microscope(changes(), TRAIN, PRIOR)
    yield "microscope, one pair without change", plots.microscope([[0.0]], ["a"], ["b"])
    yield "microscope, many", plots.microscope(changes(16, 16, size=30.0), range_of(16), range_of(16))
    cosines = {method: dict(zip(PROBES, changes(1, 8, k, 0.1)[0], strict=True)) for k, method in enumerate(NB04)}
    yield "directions", plots.directions(cosines)
    yield "kernel", plots.kernel_terms([*(measured(m, s) for m in NB04 for s in range(2)), noisy("rft_kl", 4)])
    once = record("sft", 0, [(0, 0.0, 0.8)])
    once.metrics.append(dynamics_row(0))
    yield "kernel, one evaluation", plots.kernel_terms([once])
    yield "sweep", plots.rate_sweep(list(sweep()))
    yield "sweep, none reached", plots.rate_sweep([("sft", 1e-3, matched([], ["sft-lr0.001-seed0"]))])
    yield "explanation", plots.explanation(list(panels())[:3])
    yield "explanation, two rows", plots.explanation(list(panels()))
    yield from weight_figures()


def weight_figures():
    three = [fake_points.sft(seed) for seed in range(3)]
    worded = [fake_points.sft(seed, method="points_sft_diverse") for seed in range(3)]
    yield "cells", plots.cells_over_updates([fake_points.sft(0, "live"), *three[1:]])
    yield "cells, one run", plots.cells_over_updates([fake_points.sft(0, "live")])
    yield "cells, two methods", plots.cells_over_updates([*three, *worded])
    yield "restoration", plots.restoration(three, HEALED)
    yield "restoration, one seed", plots.restoration(three[:1], [fake_points.rft(320)])
    yield "nulls", plots.spectra_beside_null([fake_points.reports(seed) for seed in range(3)])
    yield "nulls, large change", plots.spectra_beside_null([fake_points.reports(0, 3.0)])
    yield "surgery", plots.surgery_bars([fake_points.surgery(seed) for seed in range(3)])
    yield "surgery, one seed", plots.surgery_bars([fake_points.surgery()])
    law = spectra.marchenko_pastur(24, 48, 0.02).quantiles((np.arange(24) + 0.5) / 24)
    yield "spectra", plots.spectrum([("a random matrix", law * 1.01, law), ("the base: layer 0, q_proj", law * 3, law)])
    yield (
        "angles",
        plots.angle_profiles([("chance", np.linspace(0.4, 1.5, 9)), ("base to end", np.linspace(0, 0.1, 9))]),
    )
    yield from sums_figures()


def sums_figures():
    low, high = np.array([prefix_rft.bounds(prefix_rft.PREFIX_RFT, s, 240) for s in range(241)]).T
    yield "schedule", plots.prefix_schedule(low, high)
    yield "schedule, of a run", plots.prefix_schedule(low, high, (low + high)[1:] / 2)
    yield "schedule, fixed", plots.prefix_schedule([0.5] * 9, [0.5] * 9)
    yield "tokens", plots.token_strip(STRIP)
    yield "tokens, one row", plots.token_strip(STRIP[:1])
    long = ["altogether", *TOKENS]
    yield "tokens, long words", plots.token_strip([("a", long, np.ones(len(long)), ["own"] * len(long))])
    mixtures = [fake_sums.run(m, seed, base=0) for m in plots.COMPANY[3] for seed in range(3)]
    four = [
        fake_sums.run(m, seed, base=0)
        for m in ("sums_sft", "sums_rft", "sums_prefix", "sums_sft_rft")
        for seed in range(3)
    ]
    yield "levels", plots.levels_over_updates(four)
    yield "levels, every mixture", plots.levels_over_updates(mixtures)
    yield "levels, one run", plots.levels_over_updates([fake_sums.run("sums_prefix", 0, "live", base=0)])
    yield "trade-off", plots.trade_off(mixtures)
    yield "trade-off, one run", plots.trade_off(four[:1])
    yield "arms", plots.arm_ends(ARMS, [("RFT", 42.0, 86.0), ("Prefix-RFT", 70.0, 82.0)])
    yield "arms, one", plots.arm_ends([("a rather long name of an arm, 0.001", [50.0], [90.0])])
    prefixed = [[fake_sums.run(m, seed, base=0) for seed in range(3)] for m in ("sums_prefix", "sums_fixed")]
    yield "gains", plots.prefix_gains([("Prefix-RFT", prefixed[0]), ("always half of it", prefixed[1])])
    yield "gains, one run", plots.prefix_gains([("Prefix-RFT, live", prefixed[0][:1])], bins=4)
    yield (
        "pass",
        plots.pass_at_k(
            [(f"{level} terms", passes(("sums_practice", "sums_rft", "sums_prefix", "sums_sft"))) for level in "345"],
            "seeds",
        ),
    )
    yield "pass, one line", plots.pass_at_k([("all", passes(("sums_practice",)))], "problems")
    yield from sequence_figures()


def sequence_figures():
    drawn = sequence.tasks_of()
    rows = [(name, (row := drawn[name].row(0, 0)).image, row.prompt, row.answer) for name in sequence.SEVEN]
    yield "drawn tasks", plots.drawn_tasks(rows)
    yield "drawn tasks, two", plots.drawn_tasks(rows[:2])
    yield "groups", plots.groups_with_signal([(name, RIGHT) for name in sequence.SEVEN], 8)
    yield "groups, one", plots.groups_with_signal([("unanswerable", [0, 0])], 8)
    yield "matrices", plots.accuracy_matrices([matrix_panel(m) for m in ("sft", "grpo", "joint")])
    yield "matrix, short", plots.accuracy_matrices([matrix_panel("sft", ("compose", "clutter"))])
    for k, group in enumerate(plots.COMPANY[6:11]):
        yield f"gain, {k}", plots.gain_and_forgetting({m: gains(m) for m in group}, "T - 1, all t")
    yield (
        "gain, one run",
        plots.gain_and_forgetting({"seven_sft": ([30.0], [0.0])}, "T, t from the task's own training on"),
    )
    yield "tasks", plots.over_tasks({m: paths(m) for m in plots.COMPANY[6] if m != "seven_joint"})
    yield "tasks, one run of two", plots.over_tasks({"seven_sft": [(np.eye(3, 2), np.array([1, 0.9, 0.4]))]})
    yield (
        "risks",
        plots.risk_against_prediction(
            [(how, *risks(k)) for k, how in enumerate(("centred", "RLOO", "GRPO"))], "Var[r] R(g of SFT)"
        ),
    )
    yield "risk, one", plots.risk_against_prediction([("centred", [1.0, 0.0], [0.5, 0.0])], "Var[r] E s'Fs")
    yield (
        "norms",
        plots.norm_by_pass_rate([("RLOO", NORMS), ("GRPO, reward 0 or 1", NORMS), ("GRPO, reward .9 and .1", NORMS)]),
    )
    yield "norm, one rate", plots.norm_by_pass_rate([("RLOO", {0.5: (2.0, 3)})])
    yield "scores", plots.predictor_scores([("ParityMNIST", SCORES), ("the jigsaw, 12 methods", SCORES[:2])])
    yield "scores, one", plots.predictor_scores([("sums", SCORES[:1])])
    group = plots.COMPANY[-1]
    spots = [(m, 0.1 * (i + 1), 4.0 * i) for i, m in enumerate(group)]
    yield "explanation, parity", plots.explanation([("forward KL", True, spots, Interval(0.9, 0.5, 1.0))])


RIGHT = [0, 0, 0, 3, 8, 2, 1, 0, 8, 5]
NORMS = {k / 8: (3 * math.sqrt(k * (8 - k)), 9 - k) for k in range(9)}


SCORES = [
    ("forward KL on the new task, nats a reply", Interval(0.9, 0.7, 0.97), 0.8),
    ("weight distance, L2", Interval(0.3, 0.1, 0.8), -7.0),
    ("new-task accuracy", Interval(0.1, 0.0, 0.4), -0.2),
]


def matrix_panel(method, tasks=None):
    found = [continual.Sequence(fake_sequences.sequence(method, s, tasks=tasks)) for s in range(3)]
    return method, found[0].matrix.after, found[0].order, np.mean([f.matrix.accuracy for f in found], 0)


def paths(method):
    name, _, order = method.removeprefix("seven_").partition("_b")
    del order
    found = [
        continual.Sequence(fake_sequences.sequence(name, s, "b" if method.endswith("_b") else "a")) for s in range(3)
    ]
    return [(f.matrix.accuracy, f.prior) for f in found]


def gains(method):
    if method == "seven_joint":  # one training, no FM
        return [30.0, 33.0, 31.0], [0.0, 0.0, 0.0]
    found = [p for p, _ in paths(method)]
    return [100 * continual.new_task_gain(p) for p in found], [100 * continual.forgetting(p, "T-1") for p in found]


def risks(k):
    x = np.random.default_rng(k).lognormal(0, 2, 40)
    x[:5] = 0
    return x, x * np.random.default_rng(9).lognormal(-k, 0.5, 40)


TOKENS = re.split(" ", "3 + 6 = 9 then 9 - 1 = 8 then 8 + 1 = 9 then 9 + 3 = 12")
STRIP = [
    (f"what is {k} + 6 - 1 + 1 + 3 ?", TOKENS, np.linspace(0.5, 0, 23) ** 2,
     ["kept"] * 3 + ["clipped"] * 15 + ["own"] * 5)
    for k in range(3)
]  # fmt: skip
ARMS = [(f"an arm, variant {k}", [40.0 + k, 44.0 + k, 43.0], [80.0, 82.0 - k, 84.0]) for k in range(14)]


def passes(methods):
    ks = (1, 2, 4, 8, 16)
    return [
        (m, ks, [Interval(0.1 * j + 0.05 * i, 0.1 * j, 0.1 * j + 0.1 * i) for i in range(1, 6)])
        for j, m in enumerate(methods)
    ]


HEALED = [fake_points.rft(start, seed) for start in fake_points.STARTS for seed in range(3)]


def range_of(n):
    return [f"row {k}" for k in range(n)]


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
    assert len(plots.alt_text(fig)) > 60 and not re.search(r"\bnan\b", plots.alt_text(fig))
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


def test_runs_are_named_as_in_the_figures():
    kl, rft = (plots.style_of(name).label for name in ("rft_kl", "rft"))
    assert (
        plots.run_labels(["rft_kl-s0", "rft-s2", "rft_kl-s1", "rft_kl-s4"]) == f"{kl}, seeds 0, 1 and 4; {rft}, seed 2"
    )
    cards, rollouts = (plots.style_of(name).label for name in ("points_rft", "sft_rollouts"))
    assert (
        plots.run_labels(["points_rft_160-s1", "sft_rollouts_x0.1-s0"])
        == f"{cards} from update 160, seed 1; {rollouts}, rate x 0.1, seed 0"
    )
    odd = ["parity-s1", "rft-short-7", "sums_demos_10-s0", "\n"]
    assert plots.run_labels(odd) == "; ".join(odd) and plots.run_labels([]) == ""
    missed = [dataclasses.replace(SHORT, name=f"rft_kl-s{seed}", seed=seed, method="rft_kl") for seed in (0, 1)]
    fig = plots.matched_drop(runs.matched_table(missed, 0.5))
    assert all(f"left out: {kl}, seeds 0 and 1." in said for said in (" ".join(words(fig).split()), fig.alt))


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


# --- figures of learning dynamics


def axes_texts(axes):
    return [t.get_text() for t in axes.texts]


def by_color(axes, method, size=2):
    """Lines of a method with at least `size` points, marks beside labels left out."""
    color = plots.METHOD_STYLE[method].color
    return [line for line in axes.lines if line.get_color() == color and len(line.get_xdata()) >= size]


def test_first_order_shows_every_pair_and_the_share_explained():
    x = np.array([[0.0, 1.0], [2.0, 3.0]])
    fig = plots.first_order(x, x + np.array([0.5, -0.5]), 1e-3)
    share = 1 - 4 * 0.5**2 / 4.0  # the measured 0.5, 0.5, 2.5, 2.5 have 4 as sum of squares about their mean
    assert f"R² = {share:.3f}" in words(fig) and f"R² = {share:.3f}" in fig.alt and "0.001" in words(fig)
    dots = fig.axes[0].lines[0]
    assert dots.get_xdata().tolist() == [0, 1, 2, 3] and dots.get_ydata().tolist() == [0.5, 0.5, 2.5, 2.5]
    assert fig.axes[0].get_xlim() == fig.axes[0].get_ylim()
    assert "R² = 1.000" in words(plots.first_order(x, x, 1e-3))
    assert "R² = 0.000" in words(plots.first_order(np.full((2, 2), x.mean()), x, 1e-3))


def test_log_log_prints_the_slope_of_each_line_and_draws_the_guide():
    fig = FIGURES["slopes"]
    assert axes_texts(fig.axes[0]) == [
        "SGD\nslope 2.00", "AdamW with a rather long\nname\nslope 1.00", "SGD, prior\nslope 2.00", "a guide\nslope 2.00",
    ]  # fmt: skip
    (guide,) = [line for line in fig.axes[0].lines if line.get_linestyle() == ":" and len(line.get_xdata()) == 2]
    (x0, x1), (y0, y1) = np.log(guide.get_data())
    assert (y1 - y0) / (x1 - x0) == pytest.approx(2)
    lowest = fig.axes[0].lines[2].get_ydata()
    assert (guide.get_ydata()[0] < lowest).all()
    noisy_line = np.array([1.0, 5.0, 9.0])  # not on a line: least squares in logs
    fit = np.polyfit(np.log([1.0, 2.0, 4.0]), np.log(noisy_line), 1)[0]
    assert f"slope {fit:.2f}" in words(plots.loglog([("x", [1.0, 2.0, 4.0], noisy_line)], "x", "y"))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(1e-30, 1e12), min_size=1, max_size=5))
def test_a_log_axis_shows_all_values_and_at_least_two_ticks(values):
    axes = Figure().subplots()
    plots._log_axis(axes, "y", np.array(values))
    low, high = axes.get_ylim()
    assert low < min(values) and max(values) < high
    ticks = [t for t in axes.yaxis.get_majorticklocs() if low <= t <= high]
    assert 2 <= len(ticks) <= 9


def test_symmetry_pairs_each_two_rows_once_and_says_how_far_off_they_are():
    table = np.array([[9.0, 1.0, 2.0], [3.0, 9.0, 4.0], [2.0, 6.0, 9.0]])
    fig = plots.symmetry([("toy", table), ("odd", table - table.T), ("even", table + table.T)])
    dots = fig.axes[0].lines[0]
    assert dots.get_xdata().tolist() == [1, 2, 4] and dots.get_ydata().tolist() == [3, 2, 6]
    off = ~np.eye(3, dtype=bool)
    share = np.sqrt(((table - table.T)[off] ** 2).mean() / (table[off] ** 2).mean())
    titles = [axes.get_title("left") for axes in fig.axes]
    assert titles == [f"toy\nasymmetry {100 * share:.3g}%", "odd\nasymmetry 200%", "even\nasymmetry 0%"]
    assert f"toy: asymmetry {100 * share:.3g}% over 3 pairs" in fig.alt
    for axes in fig.axes:
        assert axes.get_xlim() == axes.get_ylim() == pytest.approx((-axes.get_xlim()[1], axes.get_xlim()[1]))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0"),
        (0.1, "+0.10"),
        (-0.1234, "−0.12"),
        (12.3, "+12"),
        (-1.5e-5, "−1.5e−5"),
        (150.0, "+1.5e+2"),
        (1, "+1.0"),
    ],
)
def test_cells_hold_a_sign_and_two_digits(value, said):
    assert plots._signed(value) == said


@pytest.mark.parametrize("name", ["microscope", "microscope, many", "directions"])
def test_heat_maps_read_without_colour(name):
    """The sign is in the number and in the hatch; the number stands on an opaque box of its cell's shade."""
    (axes,) = FIGURES[name].axes
    assert len(axes.patches) == len(axes.texts) > 0
    shades = {}
    for cell, text in zip(axes.patches, axes.texts, strict=True):
        said, box = text.get_text(), text.get_bbox_patch()
        assert bool(cell.get_hatch()) == said.startswith("−")
        assert box.get_facecolor() == cell.get_facecolor() and cell.get_facecolor()[3] == 1
        assert contrast(text.get_color(), to_hex(cell.get_facecolor())) >= 4.5
        assert cell.get_x() < text.get_position()[0] < cell.get_x() + cell.get_width()
        assert cell.get_y() < text.get_position()[1] < cell.get_y() + cell.get_height()
        shades[abs(float(said.replace("−", "-")))] = linear(to_hex(cell.get_facecolor())) @ [0.2126, 0.7152, 0.0722]
    assert shades[max(shades)] < shades[min(shades)] - 0.2  # fuller is darker


def test_microscope_puts_each_change_at_its_row_and_column():
    values = np.array([[0.5, -0.25, 0.0], [1e-5, 2.0, -3.0]])
    fig = plots.microscope(values, ["first", "second"], ["a", "b", "a very long question about a star"])
    (axes,) = fig.axes
    assert axes_texts(axes) == ["+0.50", "−0.25", "0", "+1.0e−5", "+2.0", "−3.0"]
    assert [t.get_position() for t in axes.texts] == [(j, i) for i in range(2) for j in range(3)]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["first", "second"]
    assert {t.get_rotation() for t in axes.get_xticklabels()} == {90}
    assert (
        "first: from −0.25 (b) to +0.50 (a). second: from −3.0 (a very long question about a star) to +2.0 (b)."
        in fig.alt
    )
    assert {t.get_rotation() for t in plots.microscope(values, "xy", "abc").axes[0].get_xticklabels()} == {0}


def test_directions_have_methods_as_rows_and_probes_as_columns():
    fig = plots.directions({"sft": {"color": 0.25, "count": -0.5}, "rft": {"count": 0.125, "color": 0.75}})
    (axes,) = fig.axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["SFT answer-only", "RFT (GRPO)"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["color", "count"]
    assert axes_texts(axes) == ["+0.25", "−0.50", "+0.75", "+0.12"]
    assert "SFT answer-only: from −0.50 (count) to +0.25 (color)." in fig.alt


def dynamic(method, seed, rows):
    out = record(method, seed, [(step, 0.0, 0.8) for step, *_ in rows], name=f"{method}-{seed}")
    out.metrics += [dynamics_row(*row) for row in rows]
    return out


def test_kernel_terms_are_geometric_means_over_probes_and_seeds():
    two = [dynamic("sft", s, [(0, 2.0, 3.0, 5.0), (10, 2.0 * 100**s, 3.0 * 100**s, 5.0 * 100**s)]) for s in range(2)]
    fig = plots.kernel_terms([*two, noisy("rft", 0)])
    for axes, start in zip(fig.axes, (2.0, 3.0, 5.0), strict=True):
        *thin, thick = by_color(axes, "sft")
        assert [line.get_ydata().tolist() for line in thin] == [
            pytest.approx([start, start]),
            pytest.approx([start, 100 * start]),
        ]
        assert thick.get_linewidth() > 2 and thick.get_ydata() == pytest.approx([start, 10 * start])
        assert axes_texts(axes) == ["SFT answer-only"]
    assert "Not measured, so left out: rft-0." in words(fig) and "Every line: seeds 0-1 live." in words(fig)
    assert "SFT answer-only 2.0e+00 to 2.0e+01" in fig.alt


def test_kernel_terms_leave_out_what_diverged():
    run = dynamic("sft", 0, [(0, 1.0, 1.0, 1.0), (10, 2.0, 2.0, 2.0), (20, 3.0, 3.0, 3.0)])
    run.metrics[-1]["bound"]["color"] = None  # what a record keeps of NaN
    run.metrics[-1]["residual"] = 0.0
    lengths = [len(by_color(axes, "sft")[0].get_xdata()) for axes in plots.kernel_terms([run]).axes]
    assert lengths == [2, 3, 2]


def test_rate_sweep_is_sorted_by_rate_and_names_what_never_got_there():
    fig = FIGURES["sweep"]
    (axes,) = fig.axes
    line = by_color(axes, "sft", 3)[0]
    assert line.get_ydata().tolist() == [pytest.approx(101 / 3), 47.0, 71.0]
    assert line.get_xdata() / line.get_xdata()[0] == pytest.approx([1, 10 / 3, 10])
    assert math.isnan(by_color(axes, "sft_rollouts", 3)[0].get_ydata()[0])
    assert "sft_rollouts_lr0.0001-seed2; sft_rollouts_lr0.003-seed2" in words(fig)
    assert "sft_rollouts_lr0.003-seed2" in fig.alt and "no run reached the target" in fig.alt
    row = matched([44.0, 50.0, 47.0])
    assert f"at 0.001 47.0, interval {row.lo:.1f} to {row.hi:.1f} (seeds 0 live, 1-2 recorded)" in fig.alt
    spans = [span for span in by_color(axes, "sft") if list(span.get_ydata()) == [row.lo, row.hi]]
    assert len(spans) == 1
    assert "cut" in words(fig)  # two seeds: the interval of their mean is far wider than anything else
    assert axes.get_ylim()[0] >= 5 - 20 and axes.get_ylim()[1] <= 71 + 20
    assert "no run reached" in words(FIGURES["sweep, none reached"])
    assert "cut" not in words(plots.rate_sweep([("sft", 1e-3, matched([1.0, 2.0, 1.5]))]))


def test_explanation_has_a_panel_a_predictor_and_names_each_method_once_a_row():
    fig = FIGURES["explanation"]
    titles = [axes.get_title("left") for axes in fig.axes]
    assert titles == ["correlation 0.81 (0.40 to 0.95)", "correlation −0.62 (−0.90 to −0.10)", "correlation 0.10"]
    assert [axes.get_xscale() for axes in fig.axes] == ["log", "linear", "log"]
    dots = [(line.get_xdata()[0], line.get_ydata()[0], line.get_marker()) for line in fig.axes[0].lines]
    assert dots == [(x, drop, plots.METHOD_STYLE[m].marker) for m, x, drop in points(100.0)]
    labels = {plots.METHOD_STYLE[method].label for method in NB04}
    assert [set(axes_texts(axes)) for axes in fig.axes] == [set(), set(), labels]
    assert "against KL to the base: correlation 0.10, 2 points" in fig.alt and "SFT answer-only 55.0" in fig.alt
    rows = FIGURES["explanation, two rows"].axes
    assert [len(axes.texts) for axes in rows] == [0, 0, 9, 9]


def test_predictor_scores_show_fit_and_skill_apart():
    fig = FIGURES["scores"]
    left, right = fig.axes
    assert len([line for line in left.lines if line.get_marker() == "o"]) == 3
    diamonds = [line for line in left.lines if line.get_marker() == "D"]
    assert [d.get_xdata()[0] for d in diamonds] == [0.8, -1.0, -0.2] and diamonds[0].get_markerfacecolor() == "none"
    assert [line.get_xdata()[0] for line in right.lines if line.get_marker() == "D"] == [0.8, -1.0]
    assert "weight distance, L2: R² 0.30 (0.10 to 0.80), left out -7.00" in fig.alt and "ParityMNIST:" in fig.alt
    with pytest.raises(UserError, match="no predictor"):
        plots.predictor_scores([("empty", [])])


@pytest.mark.parametrize(
    ("draw", "reason"),
    [
        (lambda: plots.first_order([[1.0]], [[1.0, 2.0]], 0.1), "differ in shape"),
        (lambda: plots.first_order([[1.0, 2.0]], [[1.0, 1.0]], 0.1), "all equal"),
        (lambda: plots.first_order([[1.0, NAN]], [[1.0, 1.0]], 0.1), "finite"),
        (lambda: plots.first_order([1.0, 2.0], [1.0, 2.0], 0.1), "no table"),
        (lambda: plots.loglog([], "x", "y"), "no series"),
        (lambda: plots.loglog([("a", [1.0, 2.0], [0.0, 1.0])], "x", "y"), "all positive"),
        (lambda: plots.loglog([("a", [1.0, 1.0], [2.0, 1.0])], "x", "y"), "two x"),
        (lambda: plots.symmetry([]), "no matrix"),
        (lambda: plots.symmetry([("a", np.ones((2, 3)))]), "by each other"),
        (lambda: plots.symmetry([("a", np.eye(3))]), "all zero"),
        (lambda: plots.microscope([[1.0, 2.0]], ["a"], ["b"]), "labels"),
        (lambda: plots.microscope([["a"]], ["a"], ["b"]), "no table of numbers"),
        (lambda: plots.directions({}), "no method"),
        (lambda: plots.directions({"sft": {"color": 1.0}, "rft": {"count": 1.0}}), "different probes"),
        (lambda: plots.directions({"dpo": {"color": 1.0}}), "'dpo'"),
        (lambda: plots.kernel_terms([]), "no runs"),
        (lambda: plots.kernel_terms([noisy("sft", 0)]), "dynamics"),
        (lambda: plots.rate_sweep([]), "no rates"),
        (lambda: plots.rate_sweep([("sft", 0.1, matched([1.0])), ("sft", 0.2, matched([1.0], target=0.9))]), "one target"),
        (lambda: plots.explanation([]), "no points"),
        (lambda: plots.explanation([("x", False, [], Interval(0.0, NAN, NAN))]), "no points"),
        (lambda: plots.explanation([("x", True, [("sft", 0.0, 1.0)], Interval(0.0, NAN, NAN))]), "log scale"),
        (lambda: plots.explanation([("x", False, [("sft", NAN, 1.0)], Interval(0.0, NAN, NAN))]), "finite"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_a_user_error(draw, reason):
    with pytest.raises(UserError, match=reason):
        draw()


# --- figures of two stages and of weights


def test_cells_have_a_panel_each_with_the_share_solved_and_the_share_read():
    run = fake_points.sft(0)
    fig = plots.cells_over_updates([run, fake_points.sft(1)])
    assert [axes.get_title("left") for axes in fig.axes] == [plots.CELL_TITLES[name] for name in fake_points.CELLS]
    for axes, name in zip(fig.axes, fake_points.CELLS, strict=True):
        *thin, mean, read = by_color(axes, "points_sft", 3)
        own = [row["cells"][name] for row in run.evals()]
        assert thin[0].get_ydata().tolist() == [c["correct"] / 1000 for c in own] and len(thin) == 2
        assert mean.get_ydata() == pytest.approx(np.mean([line.get_ydata() for line in thin], axis=0))
        assert read.get_markerfacecolor() == "none" and read.get_linestyle() == ":"  # apart from solved without colour
        other = [row["cells"][name]["read"] for row in fake_points.sft(1).evals()]
        assert read.get_ydata() == pytest.approx([(a["read"] + b) / 2000 for a, b in zip(own, other, strict=True)])
    solved = [np.mean([fake_points.sft(s).evals()[-1]["cells"]["own-face"]["correct"] / 1000 for s in range(2)])]
    assert f"to {solved[0]:.1%} (highest" in fig.alt and "seeds 0-1 recorded" in fig.alt


def test_cells_of_many_runs_have_intervals_over_seeds_and_of_one_none():
    def spans(fig):
        return [list(line.get_ydata()) for line in by_color(fig.axes[0], "points_sft") if len(line.get_xdata()) == 2]

    at_end = [fake_points.sft(s).evals()[-1]["cells"]["ten-any"]["correct"] / 1000 for s in range(3)]
    _, lo, hi = t_interval(at_end)
    assert spans(FIGURES["cells"])[-1] == pytest.approx([max(lo, 0), min(hi, 1)])
    assert "intervals" not in words(FIGURES["cells, one run"]) and "over seeds" in words(FIGURES["cells"])
    assert spans(FIGURES["cells, one run"]) == []


def test_restoration_puts_each_end_of_rft_beside_the_checkpoint_it_started_from():
    fig = FIGURES["restoration"]
    style = plots.style_of("points_rft_320")
    assert style is plots.METHOD_STYLE["points_rft"]
    for axes, cell in zip(fig.axes, ("own-face", "ten-any"), strict=True):
        large = [line for line in axes.lines if line.get_color() == style.color and line.get_markersize() == 7]
        ends = [
            [r.evals()[-1]["cells"][cell]["correct"] / 1000 for r in HEALED if r.method == f"points_rft_{s}"]
            for s in fake_points.STARTS
        ]
        assert [line.get_ydata()[0] for line in large] == [pytest.approx(np.mean(values)) for values in ends]
        places = [line.get_xdata()[0] for line in large]
        assert all(1.2 * start < x < 1.3 * start + 3 for start, x in zip(fake_points.STARTS, places, strict=True))
        rings = [line for line in axes.lines if line.get_markerfacecolor() == "none" and line.get_markersize() == 10]
        assert [line.get_xdata()[0] for line in rings] == list(fake_points.STARTS)
        arrows = [t for t in axes.texts if t.arrow_patch and not t.get_text()]
        assert [t.xyann[0] for t in arrows] == list(fake_points.STARTS)
        fig.draw(FigureCanvasAgg(fig).get_renderer())
        for arrow, ring, end in zip(arrows, rings, large, strict=True):  # some is to be seen between the two marks
            (x0, y0), (x1, y1) = axes.transData.transform([arrow.xyann, arrow.xy])
            covered = (ring.get_markersize() + end.get_markersize()) / 2 * fig.dpi / 72
            assert math.hypot(x1 - x0, y1 - y0) > 1.5 * covered
        assert [t.xy for t in arrows] == [(x, pytest.approx(np.mean(v))) for x, v in zip(places, ends, strict=True)]
    assert "from update 320" in fig.alt and "12 runs" in words(fig)


def test_nulls_stand_beside_every_matrix_that_changed():
    fig = FIGURES["nulls"]
    legend = {t.get_text() for t in fig.legends[0].texts}
    assert legend == set(plots.NULL_MARKS)
    values = fig.axes[0]
    assert [t.get_text() for t in values.get_yticklabels()] == [
        "q_proj",
        "k_proj",
        "down_proj",
    ]  # v_proj did not change
    dots = [line for line in values.lines if line.get_marker() == "o"]
    found = [r for seed in range(3) for r in fake_points.reports(seed).values() if r]
    wide = [r.change.values for r in found if r.shape == (48, 96)]
    assert sorted(dots[2].get_xdata()) == sorted(wide)
    assert len({marker for marker, _, _ in plots.NULL_MARKS.values()}) == 2
    nulls = [line for line in fig.axes[2].lines if line.get_marker() == "D"]
    assert sorted(nulls[2].get_xdata()) == pytest.approx(
        sorted(math.degrees(r.null.left.median) for r in found if r.shape == (48, 96))
    )
    assert f"down_proj {np.median(wide):.2g} (" in fig.alt


def test_rounding_and_chance_are_told_by_number_and_stretch_no_axis():
    fig = FIGURES["nulls"]
    found = [r for seed in range(3) for r in fake_points.reports(seed).values() if r]
    for axes, measure in zip(fig.axes, plots.SPECTRAL.values(), strict=True):
        seen = [measure(change) for r in found for change in (r.change, r.null)]
        low, high = axes.get_xlim()
        assert min(seen) / 2 < low <= min(seen) and max(seen) <= high < 2 * max(seen)
    values = np.median([r.floor.values for r in found])
    angles = math.degrees(np.median([side.median for r in found for side in (r.floor.left, r.floor.right)]))
    for text in (words(fig), fig.alt):
        said = re.search(r"Rounding alone \(medians\): values ([\d.e−]+), angles ([\d.e−]+) degrees", text)
        told = [float(number.replace("−", "-")) for number in said.groups()]
        assert told == [pytest.approx(values, rel=0.5), pytest.approx(angles, rel=0.5)]
        least, most = (math.degrees(math.asin(math.sqrt(1 - 8 / side))) for side in (24, 96))
        assert f": {least:.0f} to {most:.0f} degrees." in text


def test_surgery_says_how_long_each_edit_is_and_shows_every_seed():
    fig = FIGURES["surgery"]
    rows = [fake_points.surgery(seed) for seed in range(3)]
    labels = [t.get_text() for t in fig.axes[0].get_yticklabels()]
    assert labels[0] == "none" and labels[1] == "swap vectors (0.40)"
    for axes, cell in zip(fig.axes, ("own-face", "ten-any"), strict=True):
        shares = np.array([[r[cell]["correct"] / 1000 for r in some] for some in rows])
        assert [bar.get_width() for bar in axes.patches] == pytest.approx(shares.mean(axis=0))
        marks = [line.get_xdata() for line in axes.lines if line.get_marker() == "o"]
        assert np.array(marks) == pytest.approx(shares.T)
        (dotted,) = [line for line in axes.lines if line.get_linestyle() == ":"]
        assert dotted.get_xdata()[0] == pytest.approx(shares[:, 0].mean())
    assert "over seeds" in words(fig) and "Intervals" not in words(FIGURES["surgery, one seed"])
    part = [fake_points.surgery(0), fake_points.surgery(1)[:3]]  # an edit that one seed lacks is left out
    assert len(plots.surgery_bars(part).axes[0].patches) == 3


def test_spectrum_and_angles_are_drawn_in_order():
    left, right = FIGURES["spectra"].axes
    dots, law = left.lines
    assert (np.diff(dots.get_ydata()) < 0).all() and dots.get_ydata() == pytest.approx(1.01 * law.get_ydata())
    assert right.lines[0].get_ydata()[0] == pytest.approx(3 * right.lines[1].get_ydata()[0])
    lines = [line for line in FIGURES["angles"].axes[0].lines if len(line.get_xdata()) == 9]
    assert lines[0].get_ydata() == pytest.approx(np.degrees(np.linspace(0.4, 1.5, 9)))
    assert "base to end: 0 to 5.7 degrees, median 2.9" in FIGURES["angles"].alt


@pytest.mark.parametrize(
    ("draw", "reason"),
    [
        (lambda: plots.cells_over_updates([]), "no runs"),
        (lambda: plots.cells_over_updates([noisy("sft", 0)]), "without cells"),
        (lambda: plots.cells_over_updates([fake_points.sft(method=m) for m in plots.COMPANY[2]]), "more than two"),
        (lambda: plots.restoration([], HEALED), "nothing to restore"),
        (lambda: plots.restoration([fake_points.sft()], [fake_points.sft()]), "starts from"),
        (lambda: plots.spectra_beside_null([]), "No matrix"),
        (lambda: plots.spectra_beside_null([{"a.weight": None}]), "No matrix"),
        (lambda: plots.surgery_bars([]), "no surgery"),
        (lambda: plots.surgery_bars([fake_points.surgery()[1:]]), "unedited"),
        (lambda: plots.spectrum([("a", [1.0, 2.0], [1.0])]), "no spectrum"),
        (lambda: plots.angle_profiles([]), "no angles"),
        (lambda: plots.style_of("points_dpo_3"), "'points_dpo_3'"),
    ],
)
def test_weights_that_cannot_be_drawn_are_user_errors(draw, reason):
    with pytest.raises(UserError, match=reason):
        draw()


# --- figures of demonstrations in a group


def test_the_schedule_is_a_band_whose_mean_is_not_its_lower_bound():
    fig = FIGURES["schedule, of a run"]
    assert "mean 0.95 to 0.50, over all updates 0.725" in fig.alt and "lower bound 0.95 to 0.05" in fig.alt
    low, high = np.array([prefix_rft.bounds(prefix_rft.PREFIX_RFT, s, 240) for s in range(241)]).T
    lines = [line.get_ydata() for line in fig.axes[0].lines if len(line.get_xdata()) == 241]
    for line, y in zip(lines, (high, (low + high) / 2, low), strict=True):
        assert line == pytest.approx(y)
    assert "lower bound 95% to 5%" in words(fig) and "mean of what is given 95% to 50%" in words(fig)
    assert "Dots" in words(fig) and "Dots" not in words(FIGURES["schedule"])


def test_tokens_are_told_apart_without_colour_and_stand_in_order():
    fig = FIGURES["tokens"]
    for axes, (title, tokens, entropies, kinds) in zip(fig.axes, STRIP, strict=True):
        assert [t.get_text() for t in axes.get_xticklabels()] == list(tokens) and axes.get_title("left") == title
        assert [bar.get_height() for bar in axes.patches] == pytest.approx(entropies)
        looks = {
            kind: (bar.get_fc()[3] > 0, bar.get_hatch() or "") for kind, bar in zip(kinds, axes.patches, strict=True)
        }
        assert looks == {"kept": (True, ""), "clipped": (False, ""), "own": (False, "////")}
    assert "forced, in the loss: 3 + 6; forced, clipped away: = 9 then" in fig.alt


def test_levels_have_a_panel_each_and_the_probes_one():
    fig = FIGURES["levels"]
    assert [axes.get_title("left")[:7] for axes in fig.axes] == ["3 terms", "4 terms", "5 terms", "Prior p"]
    runs_ = [fake_sums.run("sums_rft", seed, base=0) for seed in range(3)]
    for axes, level in zip(fig.axes, fake_sums.LEVELS, strict=False):
        *thin, mean = by_color(axes, "sums_rft", len(fake_sums.STEPS))
        shares = [[row["levels"][level]["correct"] / 100 for row in r.evals()] for r in runs_]
        assert [line.get_ydata().tolist() for line in thin] == shares
        assert mean.get_ydata() == pytest.approx(np.mean(shares, axis=0))
    prior = np.mean([[row["prior_mean"] for row in r.evals()] for r in runs_], axis=0)
    assert by_color(fig.axes[3], "sums_rft", len(fake_sums.STEPS))[-1].get_ydata() == pytest.approx(prior)
    assert "interval" in words(fig) and "interval" not in words(FIGURES["levels, one run"])
    assert words(FIGURES["levels, one run"]).count("seed 0 live") == 1


def test_a_path_joins_accuracy_and_prior_of_the_same_evaluation():
    run = fake_sums.run("sums_sft", 0, base=0)
    path = by_color(FIGURES["trade-off, one run"].axes[0], "sums_sft", len(fake_sums.STEPS))[0]
    assert path.get_xdata() == pytest.approx([row["new_exact"] for row in run.evals()])
    assert path.get_ydata() == pytest.approx([row["prior_mean"] for row in run.evals()])


def test_arms_show_every_seed_beside_the_marks():
    fig = FIGURES["arms"]
    for k, axes in enumerate(fig.axes, start=1):
        seeds = [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "o"]
        assert seeds == [row[k] for row in ARMS]
        means = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "D"]
        assert means == pytest.approx([np.mean(row[k]) for row in ARMS])
        spans = [
            list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"
        ]
        assert spans[0] == pytest.approx([t_interval(ARMS[0][k]).lo, t_interval(ARMS[0][k]).hi])
        upright = [
            line.get_xdata()[0] for line in axes.lines if line.get_color() == plots.INK and len(line.get_xdata()) == 2
        ]
        assert upright == ([42.0, 70.0] if k == 1 else [86.0, 82.0])
    assert "Dotted: RFT. Dashed: Prefix-RFT." in words(fig)


def test_gains_are_means_over_stretches_of_updates():
    fig = FIGURES["gains"]
    rows = [
        [row for row in fake_sums.run("sums_prefix", seed, base=0).metrics if row["kind"] == "train"]
        for seed in range(3)
    ]
    first = np.mean([row["prefix_advantage_level_5"] for some in rows for row in some[:30]])
    (line,) = [x for x in fig.axes[0].lines if x.get_color() == plots.LEVEL_LOOKS[2][0] and len(x.get_xdata()) == 8]
    assert line.get_ydata()[0] == pytest.approx(first)
    assert f"5 terms {first:+.2f} to" in fig.alt and "given 0.92 to 0.53" in fig.alt


def test_pass_at_k_draws_every_interval_beside_its_mean():
    axes = FIGURES["pass"].axes[0]
    for method, ks, found in passes(("sums_practice", "sums_rft")):
        (line,) = by_color(axes, method, len(ks))
        assert line.get_ydata().tolist() == [i.mean for i in found]
        spans = [list(x.get_ydata()) for x in by_color(axes, method) if len(x.get_xdata()) == 2]
        assert spans == [[i.lo, i.hi] for i in found]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "2", "4", "8", "16"]


@pytest.mark.parametrize(
    ("draw", "reason"),
    [
        (lambda: plots.prefix_schedule([0.9], [0.1]), "no schedule"),
        (lambda: plots.token_strip([("a", ["b"], [0.1], ["forced"])]), "kept, clipped, own"),
        (lambda: plots.token_strip([("a", ["b", "c"], [0.1], ["own"])]), "no rows"),
        (lambda: plots.levels_over_updates([noisy("sft", 0)]), "without counts"),
        (lambda: plots.arm_ends([]), "no arms"),
        (lambda: plots.arm_ends([("a", [1.0], [])]), "no arms"),
        (lambda: plots.prefix_gains([("RFT", [fake_sums.run("sums_rft")])]), "no gains"),
        (lambda: plots.pass_at_k([("a", [])], "seeds"), "no pass@k"),
        (lambda: plots.trade_off([]), "no runs"),
    ],
)
def test_sums_that_cannot_be_drawn_are_user_errors(draw, reason):
    with pytest.raises(UserError, match=reason):
        draw()


# --- showing


# --- figures of tasks in a row


def test_a_matrix_is_drawn_in_percent_with_a_frame_round_what_was_just_trained():
    p = np.array([[0.2, 0.3], [0.9, 0.25], [0.1, 0.75]])
    fig = plots.accuracy_matrices([("SFT", ("base", "a", "b"), ("a", "b"), p)])
    (axes,) = fig.axes
    assert axes_texts(axes) == ["20", "30", "90", "25", "10", "75"]
    framed = [cell.get_center() for cell in axes.patches if not cell.get_facecolor()[3]]
    assert [tuple(map(round, at)) for at in framed] == [(0, 1), (1, 2)]  # a after a, b after b
    assert "SFT, percent of a, b: after base 20, 30; after a 90, 25; after b 10, 75" in fig.alt
    joint = FIGURES["matrices"].axes[2]
    assert len(joint.patches) == 14 and all(cell.get_facecolor()[3] for cell in joint.patches)


def test_gain_stands_beside_forgetting():
    fig = plots.gain_and_forgetting({"seven_sft": ([40.0, 50.0], [-30.0, -34.0]), "seven_grpo": ([20.0], [-2.0])}, "T")
    large = [line for line in fig.axes[0].lines if line.get_markersize() == 9]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in large] == [(45, -32), (20, -2)]
    assert "SFT: gain 45.0, FM −32.0. GRPO: gain 20.0, FM −2.0." in fig.alt and "FM: T." in words(fig)


def test_along_a_sequence_only_tasks_that_were_trained_count():
    p = np.array([[0.9, 0.1, 0.9], [0.5, 0.1, 0.9], [0.3, 0.7, 0.9], [0.1, 0.2, 0.6]])
    fig = plots.over_tasks({"seven_sft": [(p, [1.0, 0.9, 0.8, 0.4])]})
    left, right = fig.axes
    assert left.lines[0].get_ydata() == pytest.approx([0.5, 0.5, 0.3]) and list(left.lines[0].get_xdata()) == [1, 2, 3]
    assert right.lines[0].get_ydata() == pytest.approx([1, 0.9, 0.8, 0.4])
    assert "tasks seen 50% to 30%, prior 100% to 40%" in fig.alt


def test_groups_are_counted_as_none_some_and_all_right():
    fig = plots.groups_with_signal([("a", [0, 8, 4, 2])], 8)
    assert [bar.get_width() for bar in fig.axes[0].patches] == [0.25, 0.5, 0.25]
    assert "a: none right 25%, some right 50%, all right 25%; 44% of replies" in fig.alt


def test_prompts_without_a_risk_are_counted_not_drawn():
    fig = FIGURES["risks"]
    assert "centred 5 of 40" in words(fig) and all(len(axes.lines[0].get_xdata()) == 35 for axes in fig.axes)
    same = plots.risk_against_prediction([("a", [1.0, 10.0], [2.0, 20.0])], "x")
    assert "measured 2 times the prediction" in same.alt


def test_norms_are_relative_and_their_groups_counted():
    fig = FIGURES["norms"]
    line = fig.axes[0].lines[0]
    assert max(line.get_ydata()) == 1 and line.get_ydata()[0] == line.get_ydata()[-1] == 0
    assert "0.125: 8" in words(fig)


@pytest.mark.parametrize(
    ("draw", "reason"),
    [
        (lambda: plots.drawn_tasks([]), "no examples"),
        (lambda: plots.groups_with_signal([("a", [9])], 8), "no groups of 8"),
        (lambda: plots.accuracy_matrices([]), "no matrix"),
        (lambda: plots.accuracy_matrices([("a", ["base"], ["b"], [[1.5]])]), "no shares"),
        (lambda: plots.accuracy_matrices([("a", ["base"], ["b", "c"], [[0.5]])]), "1 rows and 2 tasks"),
        (lambda: plots.gain_and_forgetting({}, "T"), "nothing to draw"),
        (lambda: plots.gain_and_forgetting({"seven_sft": ([1.0], [])}, "T"), "nothing to draw"),
        (lambda: plots.gain_and_forgetting({"seven_x": ([1.0], [0.0])}, "T"), "'seven_x'"),
        (lambda: plots.over_tasks({}), "no sequences"),
        (lambda: plots.over_tasks({"seven_joint": [(np.ones((2, 7)), np.ones(2))]}), "no sequences"),
        (lambda: plots.risk_against_prediction([], "x"), "nothing to draw"),
        (lambda: plots.risk_against_prediction([("a", [1.0], [1.0, 2.0])], "x"), "differ in number"),
        (lambda: plots.risk_against_prediction([("a", [0.0], [1.0])], "x"), "no prompt"),
        (lambda: plots.norm_by_pass_rate([("a", {0.0: (0.0, 3)})]), "no gradient"),
    ],
)  # fmt: skip
def test_sequences_that_cannot_be_drawn_are_user_errors(draw, reason):
    with pytest.raises(UserError, match=reason):
        draw()


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
@pytest.mark.parametrize(
    ("group", "least"),
    [*zip(plots.COMPANY, (20, 22, 25, 22, 20, 25, 22, 22, 22, 22, 22, 22), strict=True)],
    ids=("02", "04", "05", "06", "06 styles", "jigsaw", "07", "07 SFT", "07 KL", "07 RIF", "07 orders", "08"),
)
def test_methods_that_share_a_figure_differ_in_colour_to_every_eye(group, least, kind):
    for a, b in itertools.combinations([plots.METHOD_STYLE[method].color for method in group], 2):
        assert np.linalg.norm(lab(a, BLINDNESS[kind]) - lab(b, BLINDNESS[kind])) > least, (a, b)


def test_every_method_is_in_company():
    assert {method for group in plots.COMPANY for method in group} == set(plots.METHOD_STYLE)
    assert set(SHAPES) == set(plots.METHOD_STYLE) - {method for group in plots.COMPANY[2:] for method in group}


def test_methods_differ_without_colour():
    styles = plots.METHOD_STYLE.values()
    assert len({s.marker for s in styles}) == len(styles) == len({s.label for s in styles})
    for group in plots.COMPANY:  # dashes too, but for SFT and RFT, the two that everyone knows
        lines = [plots.METHOD_STYLE[method].line for method in group]
        assert len(set(lines)) == len(lines) - 1 and lines.count("-") == 2


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
