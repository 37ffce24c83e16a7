"""Every figure of the kit: one colour, line style and marker a method, labels beside the lines, alt text from the data.

Figures are transparent, since a notebook may be white or near-black. No grey has a contrast of 4.5 with both white and
#111 (4.35 is the most that arithmetic allows), so text is #767676: 4.54 on white, 4.62 on black, 4.16 on #111. Lines
and marks need 3:1 and have it on all three. The method colours were searched for distance under the three kinds of
colour blindness (at least 20 in CIELAB, see the tests); line style and marker tell methods apart without any colour.
"""

from __future__ import annotations

import base64
import html
import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter, ScalarFormatter

from rftkit import jigsaw
from rftkit.config import UserError
from rftkit.evals import ProbeCount, mean_curve
from rftkit.runs import MatchedRow, RunRecord, curve

INK = "#767676"


@dataclass(frozen=True)
class Style:
    """How a method looks in every figure."""

    label: str
    color: str
    line: str | tuple[float, tuple[float, ...]]  # a matplotlib line style
    marker: str


METHOD_STYLE = {
    "sft": Style("SFT answer-only", "#a84537", "-", "o"),
    "sft_rft_lr": Style("SFT at RFT's learning rate", "#bc8700", (0, (5, 1.5)), "s"),
    "lora_sft": Style("LoRA-SFT", "#9e38b1", (0, (1, 1.2)), "D"),
    "rft": Style("RFT (GRPO)", "#4649fb", "-", "^"),
    "rft_kl": Style("RFT with KL", "#459f9d", (0, (5, 1.2, 1, 1.2)), "v"),
}
VERDICT_STYLE = {"correct": ("#459f9d", ""), "wrong": ("#c2523f", "////"), "unparseable": (INK, "...")}  # colour, hatch

_RC = {
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none", "font.size": 10,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "axes.titlecolor": INK, "axes.titlesize": 11,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "hatch.linewidth": 1,
    "svg.fonttype": "none", "svg.hashsalt": "rftkit",
}  # fmt: skip


def style_of(method: str) -> Style:
    if method not in METHOD_STYLE:
        raise UserError(f"No style is set for method {method!r}: use one of {', '.join(METHOD_STYLE)}, or add one.")
    return METHOD_STYLE[method]


# --- figures ----------------------------------------------------------------------------------------------------------


@rc_context(_RC)
def learning_curves(records: Sequence[RunRecord], target: float = 0.5) -> Figure:
    """New-task exact accuracy and prior accuracy against updates: a thin line a seed, a thick one the mean over seeds.

    Updates are on a log scale from the first evaluation after training began, linear before it, so that 0 is shown.
    The dotted line is the new-task accuracy at which `runs.matched_table` compares.
    """
    groups = _by_method(records)
    fig = Figure(figsize=(11.5, max(4.2, 1.6 + 0.5 * len(groups))))
    left, right = fig.subplots(1, 2)
    fig.subplots_adjust(left=0.055, right=0.815, bottom=0.2, top=0.91, wspace=0.8)
    _curve_panel(left, groups, "new_exact")
    _curve_panel(right, groups, "prior_mean")
    left.set_title("New task: exact accuracy", loc="left")
    right.set_title("Prior probes: mean accuracy", loc="left")
    left.axhline(target, color=INK, lw=1, ls=":")
    left.annotate(f"matched at {target:.0%}", (0, target), (2, 3), textcoords="offset points", fontsize=8, color=INK)
    _caption(fig, "Thin: one seed. Thick: mean over seeds. Live: run here. Recorded: shipped with the course.")
    text = "Two line charts against updates; here from the first to the last evaluation, mean over seeds. "
    for method, runs in groups.items():
        text += f"{style_of(method).label} ({_seeds(runs)}): "
        text += f"new task {_ends(runs, 'new_exact')}, prior {_ends(runs, 'prior_mean')}. "
    return _describe(fig, text.rstrip())


@rc_context(_RC)
def matched_drop(table: Sequence[MatchedRow]) -> Figure:
    """Prior accuracy lost where the new task first reached the target: mean, interval, and a small mark a seed."""
    if not table:
        raise UserError("The table has no rows to draw: pass what runs.matched_table returned.")
    excluded = [name for row in table for name in row.excluded]
    left_out = f"Never reached it, so left out: {', '.join(excluded)}." if excluded else "Every run reached the target."
    caption = f"Large: mean, with Student's t 95% interval over seeds. Small: one seed. {left_out}"
    lines = textwrap.wrap(caption, 105, break_on_hyphens=False)  # the names may be many: the figure makes room
    foot = 0.85 + 0.15 * len(lines)  # inches
    fig = Figure(figsize=(8.5, 0.7 + foot + 0.62 * len(table)))
    axes = fig.subplots()
    fig.subplots_adjust(left=0.285, right=0.97, bottom=foot / fig.get_figheight(), top=1 - 0.35 / fig.get_figheight())
    for y, row in enumerate(table):
        style = style_of(row.method)
        axes.plot(row.drops, [y + 0.22] * len(row.drops), style.marker, color=style.color, ms=4, alpha=0.8, ls="none")
        if not math.isnan(row.lo):
            axes.plot([row.lo, row.hi], [y, y], color=style.color, lw=2.2, marker="|", ms=9)
        axes.plot([row.mean], [y], style.marker, color=style.color, ms=9, ls="none")
        if not row.drops:
            axes.text(0, y, "  no run reached the target", va="center", fontsize=9, color=INK)
    axes.axvline(0, color=INK, lw=1, ls=":")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, -1), max(high, 5))  # a drop of hundredths of a point shall not look large
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.set_yticks(range(len(table)), [f"{style_of(row.method).label}\n{_row_seeds(row)}" for row in table])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("prior accuracy lost (percentage points; right is more forgetting)")
    axes.set_title(f"Forgetting where the new task first reaches {table[0].target:.0%}", loc="left")
    _caption(fig, "\n".join(lines))
    text = f"Dot chart of prior accuracy lost, in percentage points, at {table[0].target:.0%} on the new task. "
    for row in table:
        text += f"{style_of(row.method).label} ({_row_seeds(row)}): {_drop_text(row)}. "
    return _describe(fig, text + left_out)


@rc_context(_RC)
def verdict_bars(record: RunRecord) -> Figure:
    """Correct, wrong and unparseable shares of each probe at the first and the last evaluation of one run."""
    rows = record.evals()
    if not rows or not rows[0]["prior"]:
        raise UserError(f"Run {record.name!r} has no evaluated probes: evaluate it before drawing them.")
    probes = list(rows[0]["prior"])
    fig = Figure(figsize=(8.5, 1.5 + 0.62 * len(probes)))
    axes = fig.subplots()
    fig.subplots_adjust(left=0.21, right=0.97, bottom=0.95 / fig.get_figheight(), top=1 - 0.62 / fig.get_figheight())
    ticks, texts = [], []
    for i, probe in enumerate(probes):
        shares = []
        for j, (when, row) in enumerate((("before", rows[0]), ("after", rows[-1]))):
            count, start, y = ProbeCount(**row["prior"][probe]), 0.0, i + 0.4 * j
            for verdict, (color, hatch) in VERDICT_STYLE.items():
                share = getattr(count, verdict) / max(count.n, 1)
                axes.barh(y, share, 0.34, start, color="none" if hatch else color, edgecolor=color, hatch=hatch, lw=1)
                start += share
            shares.append(f"{count.accuracy:.0%} correct, {count.unparseable / count.n:.0%} unparseable {when}")
            axes.text(-0.01, y, when, ha="right", va="center", fontsize=8, color=INK)
        ticks.append(i + 0.2)
        texts.append(f"{probe}: {'; '.join(shares)}")
    axes.set_yticks(ticks, probes)
    axes.tick_params(axis="y", length=0, pad=42)
    axes.set_ylim(len(probes) - 0.3, -0.4)
    axes.set_xlim(0, 1.01)
    _percent(axes, "x")
    keys = [Patch(fc="none" if h else c, ec=c, hatch=h, label=v) for v, (c, h) in VERDICT_STYLE.items()]
    axes.legend(handles=keys, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, labelcolor=INK)
    what = f"{style_of(record.method).label}, seed {record.seed} ({record.source})"
    span = f"before: step {rows[0]['step']}, after: step {rows[-1]['step']}"
    _caption(fig, f"{what}; {span}.")
    return _describe(fig, f"Bars of the answers to each prior probe, {what}; {span}. {'. '.join(texts)}.")


@rc_context(_RC)
def puzzle(given: jigsaw.Puzzle) -> Figure:
    """The shuffled picture, tiles numbered, beside the restored one, each place with the number of its tile."""
    rows, cols = given.rows, given.cols
    tile_at = jigsaw.invert(given.permutation)  # tile_at[Y-1]: the tile for place Y
    solved = jigsaw.restore(given.image, given.permutation, rows, cols)
    box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    fig = Figure(figsize=(7.5, 4.1))
    panels = fig.subplots(1, 2)
    fig.subplots_adjust(left=0.02, right=0.98, bottom=0.12, top=0.9, wspace=0.08)
    shuffled = (panels[0], given.image, range(1, rows * cols + 1), "Shuffled: the number of each tile")
    restored = (panels[1], solved, tile_at, "Restored: which tile goes where")
    for axes, image, numbers, title in (shuffled, restored):
        square = image.height / image.width * cols / rows  # data units are tiles; this makes pixels square
        axes.imshow(np.asarray(image), extent=(0, cols, rows, 0), aspect=square)
        axes.set_title(title, loc="left")
        axes.set_axis_off()
        for k, number in enumerate(numbers):
            row, col = divmod(k, cols)
            axes.text(col + 0.06, row + 0.08, str(number), ha="left", va="top", fontsize=10, color="black", bbox=box)
        axes.vlines(range(1, cols), 0, rows, color="white", lw=1.5)
        axes.hlines(range(1, rows), 0, cols, color="white", lw=1.5)
    answer = ", ".join(map(str, given.answer))
    _caption(fig, f"Answer ({given.convention} convention): {answer}")
    text = f"A jigsaw of {rows} rows and {cols} columns: left, the picture cut and shuffled; right, restored from "
    text += f"tiles {', '.join(map(str, tile_at))} in reading order. Answer ({given.convention} convention): {answer}."
    return _describe(fig, text)


# --- alt text and display ---------------------------------------------------------------------------------------------


def alt_text(fig: Figure) -> str:
    """The description that the figure's function computed from its data."""
    text = getattr(fig, "alt", "")
    if not text:
        raise UserError("This figure has no alt text: draw it with a function of rftkit.plots, or set fig.alt.")
    return str(text)


def to_svg(fig: Figure) -> str:
    """The figure as SVG text, the same on every call: no date, fixed ids."""
    out = io.StringIO()
    with rc_context(_RC):
        fig.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    return out.getvalue()


def show(fig: Figure, takeaway: str) -> None:
    """Display the figure in a notebook as SVG with its alt text, and under it the sentence to take away."""
    from IPython.display import HTML, display  # here, so that the command line needs no IPython

    if not takeaway.strip():
        raise UserError("A figure needs a takeaway: pass the sentence that a reader should remember.")
    data = base64.b64encode(to_svg(fig).encode()).decode()
    image = f'<img src="data:image/svg+xml;base64,{data}" alt="{html.escape(alt_text(fig))}" style="max-width:100%">'
    display(HTML(f"<figure>{image}<figcaption>{html.escape(takeaway)}</figcaption></figure>"))


def _describe(fig: Figure, text: str) -> Figure:
    fig.alt = text  # type: ignore[attr-defined]
    return fig


# --- parts ------------------------------------------------------------------------------------------------------------


def _by_method(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    if not records:
        raise UserError("There are no runs to draw: make one, or load the recorded ones.")
    for record in records:
        style_of(record.method)
    groups = {method: [r for r in records if r.method == method] for method in METHOD_STYLE}
    return {method: runs for method, runs in groups.items() if runs}


def _curve_panel(axes: Axes, groups: dict[str, list[RunRecord]], key: str) -> None:
    """Draw one panel of `learning_curves`: its lines, its axes, and a label a method right of the axes."""
    ends = []
    for method, runs in groups.items():
        style, curves = style_of(method), [curve(r, key) for r in runs]
        for steps, values in curves:
            axes.plot(steps, values, color=style.color, ls=style.line, lw=0.8, alpha=0.7)
        steps, values = mean_curve(curves)
        width = 2.4 if len(runs) > 1 else 0.8  # one seed is no mean
        axes.plot(steps, values, color=style.color, ls=style.line, lw=width, marker=style.marker, ms=4.5)
        ends.append((float(steps[-1]), float(values[-1])))
    every = np.unique(np.concatenate([curve(r, key)[0] for runs in groups.values() for r in runs]))
    _update_axis(axes, every)
    axes.set_ylim(-0.03, 1.03)
    _percent(axes, "y")
    # Of lines that end at one height the one that ends first gets the higher label, so that leaders do not cross.
    wanted = axes.transAxes.inverted().transform(axes.transData.transform(ends))  # (methods, 2), fractions of the axes
    heights = spread([float(y - 0.03 * x) for x, y in wanted], 0.13, 0.03, 0.98)
    for (x, y), height, (method, runs) in zip(ends, heights, groups.items(), strict=True):
        style = style_of(method)
        leader = {"arrowstyle": "-", "color": style.color, "lw": 0.8, "alpha": 0.7, "relpos": (0, 0.5), "shrinkA": 8}
        axes.annotate(
            f"{style.label}\n{_seeds(runs)}", (x, y), (1.07, height), textcoords="axes fraction", va="center",
            fontsize=9, color=INK, linespacing=1.15, annotation_clip=False, arrowprops=leader,
        )  # fmt: skip
        axes.plot(1.045, height, style.marker, color=style.color, ms=6, transform=axes.transAxes, clip_on=False)


def spread(targets: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near `targets` (least squares), in the same order, at least `gap` apart, within [low, high].

    Gaps that do not fit shrink to what does. Neighbours that collide are pooled, as isotonic regression does.
    """
    n = len(targets)
    gap = min(gap, (high - low) / max(n - 1, 1))
    order = sorted(range(n), key=lambda i: targets[i])
    pools: list[tuple[float, int]] = []  # (mean, size); with the gaps taken off, positions only need not to decrease
    for rank, i in enumerate(order):
        mean, size = targets[i] - rank * gap, 1
        while pools and pools[-1][0] > mean:
            other, count = pools.pop()
            mean, size = (mean * size + other * count) / (size + count), size + count
        pools.append((mean, size))
    flat = [mean for mean, size in pools for _ in range(size)]
    out = [0.0] * n
    for rank, i in enumerate(order):
        out[i] = min(max(flat[rank], low), high - (n - 1) * gap) + rank * gap
    return out


def _update_axis(axes: Axes, steps: np.ndarray) -> None:
    """Log scale over the evaluated steps, with step 0 (which no log scale has) a short way left of the first one."""
    positive = steps[steps > 0]
    if len(positive) and positive[-1] > positive[0]:
        axes.set_xscale("symlog", linthresh=float(positive[0]), linscale=0.4)
        ticks = [t for p in range(7) for t in (10**p, 3 * 10**p) if positive[0] <= t <= positive[-1]]
        axes.xaxis.set_major_locator(FixedLocator([0, *ticks]))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("updates (log scale)")


def _percent(axes: Axes, which: str) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    axis.set_major_formatter(PercentFormatter(1, 0))


def _caption(fig: Figure, text: str) -> None:
    fig.text(0.012, 0.15 / fig.get_figheight(), text, ha="left", va="bottom", fontsize=8.5, color=INK, wrap=True)


def _seed_text(live: Sequence[int], recorded: Sequence[int]) -> str:
    """For example "seeds 0 live, 1-2 recorded": which were made here, and which ship with the course."""
    parts = [f"{_spans(seeds)} {source}" for seeds, source in ((live, "live"), (recorded, "recorded")) if seeds]
    many = len(live) + len(recorded) > 1
    return f"seed{'s' * many} {', '.join(parts)}" if parts else "no seed"


def _spans(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] as "0-2, 5"."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _seeds(runs: Sequence[RunRecord]) -> str:
    return _seed_text(*([r.seed for r in runs if r.source == source] for source in ("live", "recorded")))


def _row_seeds(row: MatchedRow) -> str:
    return _seed_text(row.live, [seed for seed in row.seeds if seed not in row.live])


def _ends(runs: Sequence[RunRecord], key: str) -> str:
    steps, values = mean_curve([curve(r, key) for r in runs])
    return f"{values[0]:.0%} to {values[-1]:.0%} in {steps[-1]:.0f} updates"


def _drop_text(row: MatchedRow) -> str:
    if not row.drops:
        return "no run reached the target"
    return f"{row.mean:.1f}" + ("" if math.isnan(row.lo) else f", interval {row.lo:.1f} to {row.hi:.1f}")
