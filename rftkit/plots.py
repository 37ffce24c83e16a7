"""Every figure of the kit: one colour, line style and marker a method, labels beside the lines, alt text from the data.

Figures are transparent, since a notebook may be white or near-black. No grey has a contrast of 4.5 with both white and
#111 (4.35 is the most that arithmetic allows), so text is #767676: 4.54 on white, 4.62 on black, 4.16 on #111. Lines
and marks need 3:1 and have it on all three. The colours of methods that share a figure were searched for distance under
the three kinds of colour blindness (at least 20 in CIELAB, see the tests); line style and marker tell methods apart
without any colour. A cell of a heat map is light and opaque whatever the page is, so its number is black.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter, ScalarFormatter
from numpy.typing import ArrayLike

from rftkit import jigsaw
from rftkit.config import UserError
from rftkit.evals import Floats, Interval, ProbeCount, mean_curve, t_interval
from rftkit.runs import MatchedRow, RunRecord, curve

if TYPE_CHECKING:  # torch is slow to import and no figure needs it
    from PIL.Image import Image

    from rftkit.spectra import Change, MatrixReport

INK = "#767676"


@dataclass(frozen=True)
class Style:
    """How a method looks in every figure."""

    label: str
    color: str
    line: str | tuple[float, tuple[float, ...]]  # a matplotlib line style
    marker: (
        str | tuple[int, int, int] | tuple[tuple[int, int], ...]
    )  # a matplotlib marker, or (sides, style, angle), or corners


HOURGLASS = ((-1, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
BOW = ((-1, -1), (-1, 1), (1, -1), (1, 1), (-1, -1))
HOUSE = ((-1, -1), (1, -1), (1, 0), (0, 1), (-1, 0), (-1, -1))
TOWER = ((-1, -2), (1, -2), (1, 2), (-1, 2), (-1, -2))
BRICK = ((-2, -1), (2, -1), (2, 1), (-2, 1), (-2, -1))
KITE = ((0, -2), (1, 1), (0, 2), (-1, 1), (0, -2))
FLAG = ((-1, -1), (1, -1), (-1, 1), (-1, -1))
SAIL = ((1, -1), (1, 1), (-1, 1), (1, -1))
TRAPEZE = ((-2, -1), (2, -1), (1, 1), (-1, 1), (-2, -1))
BOWL = ((-1, -1), (1, -1), (2, 1), (-2, 1), (-1, -1))
ROOF = ((-2, 0), (0, 2), (2, 0), (2, -2), (0, 0), (-2, -2), (-2, 0))
VALLEY = ((-2, 0), (0, -2), (2, 0), (2, 2), (0, 0), (-2, 2), (-2, 0))
ELL = ((-1, -1), (1, -1), (1, 0), (0, 0), (0, 1), (-1, 1), (-1, -1))
TEE = ((-2, 2), (2, 2), (2, 1), (1, 1), (1, -2), (-1, -2), (-1, 1), (-2, 1), (-2, 2))
UP = ((0, 2), (2, 0), (1, 0), (1, -2), (-1, -2), (-1, 0), (-2, 0), (0, 2))
DOWN = ((0, -2), (2, 0), (1, 0), (1, 2), (-1, 2), (-1, 0), (-2, 0), (0, -2))
EAST = ((2, 0), (0, 2), (0, 1), (-2, 1), (-2, -1), (0, -1), (0, -2), (2, 0))
WEST = ((-2, 0), (0, 2), (0, 1), (2, 1), (2, -1), (0, -1), (0, -2), (-2, 0))
CUP = ((-2, 2), (-2, -2), (2, -2), (2, 2), (1, 2), (1, -1), (-1, -1), (-1, 2), (-2, 2))
GATE = ((-2, -2), (-2, 2), (2, 2), (2, -2), (1, -2), (1, 1), (-1, 1), (-1, -2), (-2, -2))
CROWN = ((-2, -2), (2, -2), (2, 2), (1, 0), (0, 2), (-1, 0), (-2, 2), (-2, -2))
STAIRS = ((-2, -2), (2, -2), (2, 2), (1, 2), (1, 0), (-1, 0), (-1, -1), (-2, -1), (-2, -2))
GIRDER = (
    (-2, 2),
    (-1, 2),
    (-1, 1),
    (1, 1),
    (1, 2),
    (2, 2),
    (2, -2),
    (1, -2),
    (1, -1),
    (-1, -1),
    (-1, -2),
    (-2, -2),
    (-2, 2),
)
STAND = ((-2, -2), (2, -2), (2, -1), (1, -1), (1, 2), (-1, 2), (-1, -1), (-2, -1), (-2, -2))
HOOK = ((1, 2), (-2, 2), (-2, 1), (0, 1), (0, -2), (1, -2), (1, 2))
BOLT = ((0, 2), (2, 2), (0, 0), (2, 0), (-1, -2), (0, -1), (-2, -1), (0, 2))
ZED = ((-2, 2), (2, 2), (2, 1), (0, -1), (2, -1), (2, -2), (-2, -2), (-2, -1), (0, 1), (-2, 1), (-2, 2))
ESS = ((2, 2), (-2, 2), (-2, 1), (0, -1), (-2, -1), (-2, -2), (2, -2), (2, -1), (0, 1), (2, 1), (2, 2))
DART = ((0, 2), (2, -2), (0, -1), (-2, -2), (0, 2))
FISH = ((-2, 0), (0, 2), (1, 0), (2, 2), (2, -2), (1, 0), (0, -2), (-2, 0))
SPOOL = ((-2, 2), (2, 2), (1, 0), (2, -2), (-2, -2), (-1, 0), (-2, 2))
SKEW = ((-2, -1), (1, -1), (2, 1), (-1, 1), (-2, -1))
CHEVRON = ((-2, -2), (0, 0), (-2, 2), (0, 2), (2, 0), (0, -2), (-2, -2))
NOTCH = ((-2, -2), (-2, 2), (0, 1), (2, 2), (2, -2), (-2, -2))


METHOD_STYLE = {
    "sft": Style("SFT answer-only", "#a84537", "-", "o"),
    "sft_rft_lr": Style("SFT at RFT's learning rate", "#bc8700", (0, (5, 1.5)), "s"),
    "lora_sft": Style("LoRA-SFT", "#9e38b1", (0, (1, 1.2)), "D"),
    "rft": Style("RFT (GRPO)", "#4649fb", "-", "^"),
    "rft_kl": Style("RFT with KL", "#459f9d", (0, (5, 1.2, 1, 1.2)), "v"),
    "sft_foreign": Style("SFT on re-ordered reasoning", "#ff2d0f", (0, (5, 1.5)), "P"),
    "sft_far": Style("SFT on foreign reasoning", "#ff09a6", (0, (1, 1.2)), "X"),
    "sft_rollouts": Style("SFT on RFT rollouts", "#05a2c2", (0, (5, 1.2, 1, 1.2)), "*"),
    "sft_early": Style("SFT on early-RFT thinking", "#b78a7b", (0, (9, 2)), "d"),
    "self_once": Style("Own rollouts, once", "#9e7cff", (0, (2.5, 1.2)), "<"),
    "self_fresh": Style("Own rollouts, fresh", "#9a2ab4", (0, (5, 1.2, 1, 1.2, 1, 1.2)), ">"),
    "sft_dft": Style("RFT rollouts, DFT loss", "#526278", (0, (9, 1.5, 3, 1.5)), HOURGLASS),
    "points_sft": Style("SFT on cards", "#a84537", "-", "p"),
    "points_sft_diverse": Style("SFT on cards, many wordings", "#bc8700", (0, (5, 1.5)), BOW),
    "points_rft": Style("RFT on cards", "#4649fb", "-", HOUSE),
    "sums_practice": Style("Practised base", INK, (0, (1, 2.5)), "h"),
    "sums_sft": Style("SFT on sums", "#a84537", "-", TOWER),
    "sums_rft": Style("RFT on sums", "#4649fb", "-", BRICK),
    "sums_prefix": Style("Prefix-RFT", "#05a2c2", (0, (5, 1.2, 1, 1.2)), KITE),
    "sums_sft_rft": Style("SFT, then RFT", "#9e7cff", (0, (9, 2)), TRAPEZE),
    "sums_luffy": Style("LUFFY-like", "#ff2d0f", (0, (5, 1.5)), BOWL),
    "sums_uft": Style("UFT-like", "#b78a7b", (0, (1, 1.2)), ROOF),
    "sums_srft": Style("SRFT-like", "#9a2ab4", (0, (5, 1.2, 1, 1.2, 1, 1.2)), VALLEY),
    "sums_rl_sft": Style("RFT + 0.01 SFT loss", "#ff09a6", (0, (2.5, 1.2)), ELL),
    "sums_rl_more_sft": Style("RFT + 0.1 SFT loss", "#526278", (0, (9, 1.5, 3, 1.5)), TEE),
    "sums_practised": Style("Prefix-RFT, practised style", "#9e7cff", (0, (9, 2)), FLAG),
    "sums_wordy": Style("Prefix-RFT, wordy style", "#bc8700", (0, (5, 1.5)), SAIL),
    "sums_foreign": Style("Prefix-RFT, foreign style", "#9a2ab4", (0, (2.5, 1.2)), "8"),
    "jigsaw_sft": Style("SFT, foreign words", "#a84537", "-", (3, 1, 0)),
    "jigsaw_rft": Style("RFT (Dr. GRPO)", "#4649fb", "-", (4, 1, 45)),
    "jigsaw_prefix": Style("Prefix-RFT, foreign words", "#05a2c2", (0, (5, 1.2, 1, 1.2)), (6, 1, 0)),
    "seven_sft": Style("SFT", "#a84537", "-", DOWN),
    "seven_grpo": Style("GRPO", "#4649fb", "-", UP),
    "seven_rloo": Style("RLOO", "#05a2c2", (0, (5, 1.2, 1, 1.2)), (5, 0, 180)),
    "seven_remax": Style("ReMax", "#9a2ab4", (0, (1, 1.2)), CROWN),
    "seven_joint": Style("Joint SFT", "#526278", (0, (9, 2)), GIRDER),
    "seven_sft_rft_lr": Style("SFT at RFT's rate", "#b78a7b", (0, (5, 1.5)), CUP),
    "seven_sft_same_updates": Style("SFT, RFT's updates", "#ff2d0f", (0, (2.5, 1.2)), GATE),
    "seven_self": Style("SFT on own right replies", "#9e7cff", (0, (9, 1.5, 3, 1.5)), STAND),
    "seven_replay": Style("SFT with replay", "#ff09a6", (0, (1, 1.2)), EAST),
    "seven_l2": Style("SFT held by L2", "#05a2c2", (0, (5, 1.2, 1, 1.2, 1, 1.2)), (4, 1, 0)),
    "seven_grpo_previous": Style("GRPO, KL to the task before", "#9e7cff", (0, (9, 2)), WEST),
    "seven_grpo_no_kl": Style("GRPO without KL", "#05a2c2", (0, (5, 1.5)), "H"),
    "seven_grpo_direct": Style("GRPO, direct answers", "#ff09a6", (0, (2.5, 1.2)), STAIRS),
    "seven_sft_direct": Style("SFT, direct answers", "#ff2d0f", (0, (1, 1.2)), HOOK),
    "seven_rif": Style("RIF, 1 to 8 right", "#05a2c2", (0, (5, 1.5)), (8, 1, 0)),
    "seven_rif_mixed": Style("RIF, 1 to 7 right", "#9a2ab4", (0, (9, 2)), (3, 1, 180)),
    "seven_rif_random": Style("As many at random", "#ff2d0f", (0, (1, 1.2)), BOLT),
    "seven_sft_b": Style("SFT, order B", "#ff2d0f", (0, (5, 1.5)), (5, 1, 180)),
    "seven_grpo_b": Style("GRPO, order B", "#05a2c2", (0, (9, 2)), (7, 0, 0)),
    "parity_one": Style("SFT, one digit each", "#a84537", "-", NOTCH),
    "parity_two": Style("SFT, two digits each", "#ff2d0f", (0, (5, 1.5)), SPOOL),
    "parity_oracle": Style("Oracle SFT", "#05a2c2", (0, (5, 1.2, 1, 1.2)), DART),
    "parity_own": Style("Own right answers, once", "#9e7cff", (0, (2.5, 1.2)), CHEVRON),
    "parity_teacher": Style("SFT, drawn from GRPO", "#b78a7b", (0, (9, 2)), SKEW),
    "parity_grpo": Style("GRPO on parity", "#4649fb", "-", FISH),
    "parity_grpo_kl": Style("GRPO with KL 0.1", "#526278", (0, (9, 1.5, 3, 1.5)), ZED),
    "parity_reinforce": Style("REINFORCE, 0 or 1", "#9a2ab4", (0, (5, 1.2, 1, 1.2, 1, 1.2)), ESS),
}
# The methods that share a figure, in notebooks 02, 04, 05, 06 (mixtures, styles, jigsaw), 07 (estimators, kinds of SFT, KL and
# thinking, filters, orders) and 08 (ParityMNIST): within a group colours differ to every eye.
COMPANY = (
    ("sft", "sft_rft_lr", "lora_sft", "rft", "rft_kl"),
    ("sft", "sft_foreign", "sft_far", "sft_rollouts", "sft_early", "self_once", "self_fresh", "sft_dft", "rft"),
    ("points_sft", "points_sft_diverse", "points_rft"),
    (
        "sums_sft",
        "sums_rft",
        "sums_prefix",
        "sums_sft_rft",
        "sums_luffy",
        "sums_uft",
        "sums_srft",
        "sums_rl_sft",
        "sums_rl_more_sft",
    ),
    ("sums_practice", "sums_sft", "sums_rft", "sums_prefix", "sums_practised", "sums_wordy", "sums_foreign"),
    ("jigsaw_sft", "jigsaw_rft", "jigsaw_prefix"),
    ("seven_sft", "seven_grpo", "seven_rloo", "seven_remax", "seven_joint"),
    (
        "seven_sft",
        "seven_grpo",
        "seven_sft_rft_lr",
        "seven_sft_same_updates",
        "seven_self",
        "seven_replay",
        "seven_l2",
    ),
    ("seven_sft", "seven_grpo", "seven_grpo_previous", "seven_grpo_no_kl", "seven_grpo_direct", "seven_sft_direct"),
    ("seven_sft", "seven_grpo", "seven_rif", "seven_rif_mixed", "seven_rif_random"),
    ("seven_sft", "seven_grpo", "seven_sft_b", "seven_grpo_b"),
    (
        "parity_one",
        "parity_two",
        "parity_oracle",
        "parity_own",
        "parity_teacher",
        "parity_grpo",
        "parity_grpo_kl",
        "parity_reinforce",
    ),
)
VERDICT_STYLE = {"correct": ("#459f9d", ""), "wrong": ("#c2523f", "////"), "unparseable": (INK, "...")}  # colour, hatch
POINT = "#4649fb"  # of scatters of no method
HEAT = LinearSegmentedColormap.from_list("heat", ["#ec7d4c", "#f2f2f2", "#6d9df0"])  # black reads on every shade
HATCH = "#b8561f"  # of negative cells

_RC = {
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none", "font.size": 10,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "axes.titlecolor": INK, "axes.titlesize": 11,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "hatch.linewidth": 1,
    "svg.fonttype": "none", "svg.hashsalt": "rftkit",
}  # fmt: skip


def style_of(method: str) -> Style:
    """The style of a method; of one that is named by the update it starts from, as points_rft_160, that of points_rft."""
    family = method if method in METHOD_STYLE else re.sub(r"_\d+$", "", method)
    if family not in METHOD_STYLE:
        raise UserError(f"No style is set for method {method!r}: use one of {', '.join(METHOD_STYLE)}, or add one.")
    return METHOD_STYLE[family]


RUN_NAME = re.compile(r"(?P<method>\w+?)(?:_(?P<start>\d+)|_x(?P<times>[\d.]+))?-s(?P<seed>\d+)")


def run_labels(names: Iterable[str]) -> str:
    """Runs as figures call their methods: "rft_kl-s0", "rft_kl-s1" are "RFT with KL, seeds 0 and 1". Of a method without a style: the name."""
    seeds: dict[str, list[str]] = {}
    for name in names:
        found = RUN_NAME.fullmatch(name)
        if found is None or found["method"] not in METHOD_STYLE:
            seeds[name] = []
            continue
        start = f" from update {found['start']}" if found["start"] else ""
        rate = f", rate x {found['times']}" if found["times"] else ""
        seeds.setdefault(METHOD_STYLE[found["method"]].label + start + rate, []).append(found["seed"])
    return "; ".join(label + _seeds_told(of) for label, of in seeds.items())


def _left_out(excluded: Sequence[str]) -> str:
    return f"Never reached it, so left out: {run_labels(excluded)}." if excluded else "Every run reached the target."


def _seeds_told(seeds: Sequence[str]) -> str:
    if len(seeds) < 2:
        return "".join(f", seed {seed}" for seed in seeds)
    return f", seeds {', '.join(seeds[:-1])} and {seeds[-1]}"


# --- figures ----------------------------------------------------------------------------------------------------------


@rc_context(_RC)
def learning_curves(records: Sequence[RunRecord], target: float = 0.5) -> Figure:
    """New-task exact accuracy and prior accuracy against updates: a thin line a seed, a thick one the mean over seeds.

    Updates are on a log scale from the first evaluation after training began, linear before it, so that 0 is shown.
    The dotted line is the new-task accuracy at which `runs.matched_table` compares.
    """
    groups = _by_method(records)
    fig = Figure(figsize=(12, max(4.2, 1.6 + 0.5 * len(groups))))
    left, right = fig.subplots(1, 2)
    fig.subplots_adjust(left=0.055, right=0.805, bottom=0.2, top=0.91, wspace=0.86)
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
    caption = f"Large: mean, with Student's t 95% interval over seeds. Small: one seed. {_left_out(excluded)}"
    fig, ((axes,),) = _canvas(8.5, 0.35 + 0.62 * len(table), caption, left=2.42)
    for y, row in enumerate(table):
        style = style_of(row.method)
        axes.plot(row.drops, [y + 0.22] * len(row.drops), **_marks(style, 4, alpha=0.8))
        if not math.isnan(row.lo):
            axes.plot([row.lo, row.hi], [y, y], color=style.color, lw=2.2, marker="|", ms=9)
        axes.plot([row.mean], [y], **_marks(style, 9))
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
    text = f"Dot chart of prior accuracy lost, in percentage points, at {table[0].target:.0%} on the new task. "
    for row in table:
        text += f"{style_of(row.method).label} ({_row_seeds(row)}): {_drop_text(row)}. "
    return _describe(fig, text + _left_out(excluded))


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


# --- figures of learning dynamics (notebooks 03 and 04) ---------------------------------------------------------------


@rc_context(_RC)
def first_order(predicted: ArrayLike, measured: ArrayLike, lr: float) -> Figure:
    """What one SGD step did against its first-order prediction: changes of log pi(y|x), shape (train, prior), in nats.

    R² is the share of the measured changes' variance that the prediction explains, 1 - SS_res / SS_tot. The prediction
    is not fitted, so R² is negative where it does worse than the mean.
    """
    x, y = _numbers(predicted, "predicted changes", 2), _numbers(measured, "measured changes", 2)
    if x.shape != y.shape:
        raise UserError(
            f"Predictions {x.shape} and measurements {y.shape} differ in shape: pass both of the same rows."
        )
    total = float(((y - y.mean()) ** 2).sum())
    if total == 0:
        raise UserError("The measured changes are all equal, so there is no variance to explain: raise lr or add rows.")
    share = 1 - float(((y - x) ** 2).sum()) / total
    said = f"R² = {share:.3f}" if share > -10 else f"R² = {share:.1e}"
    caption = f"{x.size} pairs of a training and a prior row. R²: share of the variance of the measured that the "
    caption += "predicted explains. Dotted: measured as predicted."
    fig, ((axes,),) = _canvas(5.6, 4.55, caption, left=0.9)
    axes.plot(x.ravel(), y.ravel(), "o", color=POINT, ms=4, alpha=0.7, ls="none")
    _identity(axes, min(x.min(), y.min(), 0.0), max(x.max(), y.max(), 0.0))
    axes.set_xlabel("predicted change of log-probability (nats)")
    axes.set_ylabel("measured change (nats)")
    axes.set_title(f"One SGD step, learning rate {lr:g}: {said}", loc="left")
    text = f"Scatter of measured against predicted change of log-probability by one SGD step of rate {lr:g}: {said} "
    text += f"over {x.size} pairs, predicted {_span_text(x)} nats, measured {_span_text(y)} nats."
    return _describe(fig, text)


@rc_context(_RC)
def loglog(series: Sequence[tuple[str, ArrayLike, ArrayLike]], xlabel: str, ylabel: str, slope: float = 2.0) -> Figure:
    """Lines (label, x, y), all positive, on log axes, each with its least-squares slope, and a guide of slope `slope`.

    A remainder of order eta^2 has slope 2 against the learning rate.
    """
    curves = [(textwrap.fill(label, 24), *_log_points(label, x, y)) for label, x, y in series]
    if not curves:
        raise UserError("There are no series to draw: pass at least one (label, x, y).")
    fits = [float(np.polyfit(np.log(x), np.log(y), 1)[0]) for _, x, y in curves]
    caption = f"Slopes: least squares in logs over all points of a line. Dotted: a guide of slope {slope:g}, no data."
    fig, ((axes,),) = _canvas(8.5, 3.6, caption, left=0.85, right=2.3, top=0.15)
    styles = list(itertools.islice(itertools.cycle(METHOD_STYLE.values()), len(curves)))
    for (_, x, y), style in zip(curves, styles, strict=True):
        axes.plot(x, y, color=style.color, ls=style.line, marker=style.marker, ms=5.5, lw=1.8)
    _, x, y = min(curves, key=lambda curve: float(np.log(curve[2]).mean()))  # the guide runs under the lowest line
    ends = np.array([min(x.min() for _, x, _ in curves), max(x.max() for _, x, _ in curves)])
    guide = np.exp(np.log(y).mean() + slope * (np.log(ends) - np.log(x).mean())) / 3
    axes.plot(ends, guide, color=INK, ls=":", lw=1.4)
    _log_axis(axes, "x", ends)
    _log_axis(axes, "y", np.concatenate([guide, *(y for _, _, y in curves)]))
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    lines = [*curves, ("a guide", ends, guide)]
    labels = [f"{label}\nslope {fit:.2f}" for (label, _, _), fit in zip(lines, [*fits, slope], strict=True)]
    at = [(float(x[x.argmax()]), float(y[x.argmax()])) for _, x, y in lines]
    _side_labels(axes, at, labels, [*styles, Style("a guide", INK, ":", "")])
    text = f"Line chart, both axes on log scales, of {ylabel} against {xlabel}, with a guide of slope {slope:g}. "
    parts = [f"{c[0]}: slope {fit:.2f}, {_span_text(c[2])}" for c, fit in zip(curves, fits, strict=True)]
    return _describe(fig, (text + ". ".join(parts) + ".").replace("\n", " "))


@rc_context(_RC)
def symmetry(panels: Sequence[tuple[str, ArrayLike]]) -> Figure:
    """Is the change of v by a step on u that of u by a step on v? One panel a (title, changes (n, n)), a dot a pair.

    The asymmetry is the root mean square of M - M' over that of M, both off the diagonal: 0 is symmetric, sqrt(2) what
    unrelated numbers have.
    """
    tables = [(title, *_mirror(title, matrix)) for title, matrix in panels]
    if not tables:
        raise UserError("There is no matrix to draw: pass at least one (title, changes).")
    n = len(tables)
    caption = "A dot: one pair of rows. On the dotted line both changes are equal. Asymmetry: root mean square of the "
    caption += "difference over that of the changes; 0% is symmetric, unrelated numbers have 141%."
    width = 1.15 + 2.9 * n + 0.95 * (n - 1)
    fig, (row,) = _canvas(width, 2.9, caption, left=0.9, top=0.6, cols=n, gap=0.95)
    texts = []
    for axes, (title, x, y, share) in zip(row, tables, strict=True):
        axes.plot(x, y, "o", color=POINT, ms=4, alpha=0.7, ls="none")
        limit = float(np.abs([x, y]).max())
        _identity(axes, -limit, limit)
        axes.set_xlabel("change of v by a step on u (nats)")
        axes.set_title(f"{textwrap.fill(title, 30)}\nasymmetry {100 * share:.3g}%", loc="left", fontsize=10)
        texts.append(f"{title}: asymmetry {100 * share:.3g}% over {len(x)} pairs, changes up to {limit:.1e} nats")
    row[0].set_ylabel("change of u by a step on v (nats)")
    text = "Scatters of what u does to v against what v does to u, with the identity. "
    return _describe(fig, f"{text}{'. '.join(texts)}.")


@rc_context(_RC)
def microscope(changes: ArrayLike, train_labels: Sequence[str], prior_labels: Sequence[str]) -> Figure:
    """Heat map of what a step on each training row did to each prior row: changes (train, prior) in nats."""
    values = _numbers(changes, "changes", 2)
    caption = "Row: the training example that takes a step. Column: the prior answer that it moves."
    fig = _heat(values, train_labels, prior_labels, "Change of log-probability by one step (nats)", caption)
    text = f"Heat map of the change of log-probability, in nats, of {len(prior_labels)} prior answers by one step on "
    text += f"each of {len(train_labels)} examples. {_row_texts(values, train_labels, prior_labels)}"
    return _describe(fig, text)


@rc_context(_RC)
def directions(table: Mapping[str, Mapping[str, float]]) -> Figure:
    """Heat map of {method: {probe: cosine}}: the cosine of the mean gradients of a method's rows and of a probe's."""
    if not table:
        raise UserError("The table has no method to draw: pass {method: {probe: cosine}}.")
    probes = list(next(iter(table.values())))
    if any(set(row) != set(probes) for row in table.values()):
        raise UserError("The methods were measured on different probes: pass the cosine of each with the same ones.")
    values = _numbers([[row[probe] for probe in probes] for row in table.values()], "cosines", 2)
    labels = [style_of(method).label for method in table]
    caption = "Positive: a small step on the method's rows helps the probe, to first order. Negative: it harms it."
    fig = _heat(values, labels, probes, "Cosine of the mean gradients: training rows and probe", caption)
    text = "Heat map of the cosine of the mean gradients of a method's training rows and of a probe's rows. "
    return _describe(fig, text + _row_texts(values, labels, probes))


@rc_context(_RC)
def kernel_terms(records: Sequence[RunRecord]) -> Figure:
    """LBK, its numerator and the residual |G|² against updates, log scales, from the rows that `dynamics.measure` made.

    LBK and its numerator are geometric means over probes; a thick line is the geometric mean over seeds.
    """
    bare = [r.name for r in records if not _measured(r)]
    if records and len(bare) == len(records):
        raise UserError("No run holds dynamics rows to draw: make one with an arm that measures them.")
    groups = _by_method([r for r in records if _measured(r)])
    caption = "Thin: one seed. Thick: geometric mean over seeds. The first two are geometric means over probes. "
    caption += _all_seeds(groups)
    caption += f" Not measured, so left out: {', '.join(bare)}." if bare else ""
    height = max(1.9, 0.24 * len(groups) + 0.2)
    fig, panels = _canvas(8.5, 3 * height + 1.2, caption, left=0.85, right=2.3, rows=3, gap=0.6, sharex=True)
    ends = []
    text = "Three line charts against updates, log scales; here from the first to the last, geometric mean over seeds. "
    _update_axis(panels[-1, 0], np.unique([row["step"] for r in records for row in _measured(r)]))
    for (axes,), (key, title) in zip(panels, KERNEL_TERMS.items(), strict=True):
        means = _term_panel(axes, groups, key)
        axes.set_title(title, loc="left")
        styles = [style_of(method) for method in means]
        parts = [f"{s.label} {y[0]:.1e} to {y[-1]:.1e}" for s, (_, y) in zip(styles, means.values(), strict=True)]
        text += f"{title}: {', '.join(parts)}. "
        ends.append((axes, [(x[-1], y[-1]) for x, y in means.values()], [s.label for s in styles], styles))
    for panel in ends:  # now that all panels' shared scale is final
        _side_labels(*panel)
    return _describe(fig, text.rstrip())


@rc_context(_RC)
def rate_sweep(rows: Sequence[tuple[str, float, MatchedRow]]) -> Figure:
    """Prior accuracy lost at matched new-task accuracy against learning rate, one line a family (a key of METHOD_STYLE).

    `rows` holds (family, learning rate, its row of `runs.matched_table`).
    """
    if not rows:
        raise UserError("There are no rates to draw: pass (family, learning rate, row of runs.matched_table).")
    if len({row.target for _, _, row in rows}) > 1:
        raise UserError("These rows were matched at different accuracies: make all of them at one target.")
    rates, target = sorted({lr for _, lr, _ in rows}), rows[0][2].target
    ordered = sorted(rows, key=lambda row: row[1])
    families = {f: [(lr, row) for g, lr, row in ordered if g == f] for f in dict.fromkeys(f for f, _, _ in rows)}
    excluded = [name for _, _, row in rows for name in row.excluded]
    caption = f"Large: mean, with Student's t 95% interval over seeds. Small: one seed. {_left_out(excluded)}"
    drops = [drop for _, _, row in rows for drop in row.drops]
    reach = min(drops, default=0.0) - 20, max(drops, default=0.0) + 20  # of the axis: two seeds may have any interval
    if any(row.lo < reach[0] or row.hi > reach[1] for _, _, row in rows):
        caption += " Intervals that leave the frame are cut."
    fig, ((axes,),) = _canvas(8.5, 3.4, caption, left=0.75, right=2.3)
    for k, (family, line) in enumerate(families.items()):
        _rate_line(axes, style_of(family), line, 1.1 ** (k - (len(families) - 1) / 2))
    axes.axhline(0, color=INK, lw=1, ls=":")
    axes.set_xscale("log")
    axes.set_xlim(rates[0] / 1.4, rates[-1] * 1.4)
    _ticks(axes.xaxis, rates)
    axes.set_ylim(max(axes.get_ylim()[0], reach[0]), min(axes.get_ylim()[1], reach[1]))
    _drop_axis(axes)
    axes.set_xlabel("learning rate (log scale)")
    axes.set_title(f"Forgetting where the new task first reaches {target:.0%}", loc="left")
    _rate_labels(axes, families)
    text = f"Line chart of prior accuracy lost, in points, at {target:.0%} on the new task, against learning rate. "
    for family, line in families.items():
        points = "; ".join(f"at {lr:g} {_drop_text(row)} ({_row_seeds(row)})" for lr, row in line)
        text += f"{style_of(family).label}: {points}. "
    return _describe(fig, text + _left_out(excluded))


Point = tuple[str, float, float]  # method, predictor, drop in percentage points


@rc_context(_RC)
def explanation(panels: Sequence[tuple[str, bool, Sequence[Point], Interval]]) -> Figure:
    """What goes with forgetting? A panel a predictor: (its name, log scale or not, points, correlation with interval)."""
    if not panels or not all(points for _, _, points, _ in panels):
        raise UserError("A panel has no points to draw: pass (xlabel, log_x, [(method, x, drop), ...], correlation).")
    cols = min(3, len(panels))
    caption = "One kind of mark a method, named at the right by the height of its mean drop. In brackets: the interval."
    rows = math.ceil(len(panels) / cols)
    size = (3.05 + 2.7 * cols + 0.35 * (cols - 1), 3.0 * rows + 1.15 * (rows - 1))
    fig, grid = _canvas(
        *size, caption, left=0.75, right=2.3, bottom=0.8, rows=rows, cols=cols, gap=(0.35, 1.15), sharey=True
    )
    for axes, panel in zip(grid.flat, panels, strict=False):  # the last row may have room
        _predictor_panel(axes, panel)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    _drop_axis(grid[0, 0])
    for axes in grid[1:, 0]:
        axes.set_ylabel(grid[0, 0].get_ylabel())
    for k in range(0, len(panels), cols):
        row = panels[k : k + cols]
        _method_labels(grid.flat[k + len(row) - 1], [point for panel in row for point in panel[2]])
    texts = [f"against {name}: {_correlation(r)}, {len(points)} points" for name, _, points, r in panels]
    drops = _means([p for panel in panels for p in panel[2]])
    text = f"Scatters of prior accuracy lost, in percentage points, {'; '.join(texts)}. Mean drop: "
    return _describe(fig, text + ", ".join(f"{style_of(m).label} {drop:.1f}" for m, drop in drops.items()) + ".")


# --- figures of two stages and of weights (notebook 05) -----------------------------------------------------------------


@rc_context(_RC)
def cells_over_updates(records: Sequence[RunRecord]) -> Figure:
    """Share of hands solved, and of hands whose cards are all read right, in the four cells of rule and hands against updates.

    Thin: one seed. Thick: mean over seeds with Student's t intervals; a single run has none, since its hands repeat few
    problems. One or two methods.
    """
    groups = _by_method(records)
    bare = [r.name for r in records if not r.evals() or "cells" not in r.evals()[0]]
    if bare or len(groups) > 2:
        raise UserError(f"Runs without cells ({', '.join(bare) or 'none'}), or more than two methods: leave some out.")
    names = list(records[0].evals()[0]["cells"])
    spans = ", intervals over seeds" if len(records) > len(groups) else ""
    caption = f"Filled marks: solved at the first attempt{spans}. Open marks, dotted: all cards read right. "
    caption += f"Thin: one seed. {_all_seeds(groups)}"
    fig, grid = _canvas(
        8.5, 5.5, caption, left=0.75, right=2.0, rows=2, cols=2, gap=(0.3, 0.75), sharex=True, sharey=True
    )
    text = (
        "Four line charts against updates, a cell of rule and hands each; here from the first to the last evaluation. "
    )
    drawn = {}
    for axes, name in zip(grid.flat, names, strict=True):
        axes.set_title(CELL_TITLES.get(name, name), loc="left", fontsize=10)
        drawn[axes] = {m: _cell_lines(axes, style_of(m), some, name) for m, some in groups.items()}
        said = [f"{style_of(m).label}, {_cell_text(*lines)}" for m, lines in drawn[axes].items()]
        text += f"{CELL_TITLES.get(name, name)}: {'; '.join(said)}. "
    _update_axis(grid[1, 0], np.unique([row["step"] for r in records for row in r.evals()]))
    grid[1, 1].set_xlabel(grid[1, 0].get_xlabel())
    grid[0, 0].set_ylim(-0.04, 1.04)
    _percent(grid[0, 0], "y")
    labels = [f"{textwrap.fill(style_of(m).label, 22)}\n{what}" for m in groups for what in ("solved", "cards read")]
    for axes in grid[:, 1]:
        ends = [(float(x[-1]), float(y[-1])) for lines in drawn[axes].values() for x, y in lines]
        _side_labels(axes, ends, labels, [style_of(m) for m in groups for _ in range(2)])
    return _describe(fig, text + _all_seeds(groups))


CELL_TITLES = {
    "ten-any": "J, Q, K = 10, hands as dealt (ID)",
    "ten-face": "J, Q, K = 10, a face card",
    "own-any": "J, Q, K = 11-13, hands as dealt",
    "own-face": "J, Q, K = 11-13, a face card (OOD)",
}


@rc_context(_RC)
def restoration(sft_records: Sequence[RunRecord], rft_records: Sequence[RunRecord]) -> Figure:
    """SFT's curve out of distribution and in it, and at each start of RFT an arrow from SFT's checkpoint to RFT's end.

    An RFT record's start is the number that its method ends on. Means over seeds, with Student's t intervals, and each seed.
    """
    if not sft_records or not rft_records:
        raise UserError("There is nothing to restore: pass runs of SFT, and runs of RFT from its checkpoints.")
    starts = sorted({_start_of(r) for r in rft_records})
    both = {"points_sft": list(sft_records), "points_rft": list(rft_records)}
    caption = "Thick and large: mean over seeds, with Student's t 95% interval. Thin and small: one seed. An arrow leads from SFT's "
    caption += "checkpoint (ring) to where RFT from it ended, which stands to its right to be seen. "
    caption += f"SFT: {_seeds(sft_records)}. RFT: {len(rft_records)} runs. Intervals that leave the frame are cut."
    fig, panels = _canvas(8.5, 5.6, caption, left=0.75, right=1.75, rows=2, gap=0.6, sharex=True)
    steps = np.unique([row["step"] for r in sft_records for row in r.evals()])
    _update_axis(panels[1, 0], steps)
    panels[1, 0].set_xlim(-0.3 * max(steps[:2]), 1.6 * max(steps[-1], starts[-1]))
    text = "Two charts against updates of SFT. "
    for (axes,), cell, title in zip(
        panels, ("own-face", "ten-any"), ("Out of distribution", "In distribution"), strict=True
    ):
        line = _mean_line(axes, style_of("points_sft"), [_cell_curve(r, cell) for r in sft_records], marks=False)
        ends = {start: [_cell_curve(r, cell)[1][-1] for r in rft_records if _start_of(r) == start] for start in starts}
        top = max(
            1e-3,
            *(v for values in ends.values() for v in values),
            *(_cell_curve(r, cell)[1].max() for r in sft_records),
        )
        for start, values in ends.items():
            _arrival(axes, start, steps, float(np.interp(start, *line)), values)
        axes.set_ylim(-0.04 * top, 1.25 * top)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(PercentFormatter(1, 0 if top > 0.08 else 1))
        axes.set_title(f"{title}: hands solved at the first attempt", loc="left")
        axes.set_xlabel("")
        last = (float(_beside(starts[-1], steps)), float(np.mean(ends[starts[-1]])))
        _side_labels(axes, [(line[0][-1], line[1][-1]), last], ["SFT", "RFT's end"], [style_of(m) for m in both])
        text += f"{title}: SFT from {line[1][0]:.1%} to {line[1][-1]:.1%}, highest {line[1].max():.1%} at update {line[0][line[1].argmax()]:.0f}; "
        parts = [
            f"from update {s} {float(np.interp(s, *line)):.1%} to {np.mean(values):.1%}" for s, values in ends.items()
        ]
        text += f"RFT: {', '.join(parts)}. "
    panels[1, 0].set_xlabel("updates of SFT (log scale)")
    return _describe(fig, text.rstrip())


Reports = Mapping[str, "MatrixReport | None"]  # as spectra.scan returns them


@rc_context(_RC)
def spectra_beside_null(scans: Sequence[Reports]) -> Figure:
    """How singular values and subspaces changed, kind by kind of matrix, each beside its random update of the same norm.

    `scans` holds one set of reports a seed. Angles are medians over the leading directions, trivial zeros left out; the diagonal is the
    share of the update's energy that moves values. What rounding and chance would make is said in the caption: drawn, it would
    stretch the axes over decades.
    """
    kinds: dict[str, list[MatrixReport]] = {}
    for name, report in (pair for reports in scans for pair in reports.items()):
        if report:  # None: not changed
            kinds.setdefault(name.removesuffix(".weight").rsplit(".", 1)[-1], []).append(report)
    if not kinds:
        raise UserError("No matrix has changed, so there is nothing to draw: compare checkpoints that differ.")
    limits = _limits([r for some in kinds.values() for r in some])
    caption = f"A filled circle: one matrix (layers and seeds). A diamond: its random update of the same norm. {limits}"
    height = 0.34 * len(kinds) + 0.15
    fig, grid = _canvas(
        8.5, 2 * height + 0.95, caption, left=1.0, right=0.3, top=0.65, rows=2, cols=2, gap=(0.35, 0.95), sharey=True
    )
    text = "Four dot charts on log scales, medians by kind of matrix; each is the change, then that by a random update of equal norm. "
    for axes, (title, measure) in zip(grid.flat, SPECTRAL.items(), strict=True):
        drawn = [_beside_null(axes, y, some, measure) for y, some in enumerate(kinds.values())]
        _log_axis(axes, "x", np.concatenate(drawn), most=5)
        axes.set_yticks(range(len(kinds)), list(kinds))
        axes.set_ylim(len(kinds) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.set_title(title, loc="left", fontsize=10)
        parts = [
            f"{kind} {_middle(some, 'change', measure)} ({_middle(some, 'null', measure)})"
            for kind, some in kinds.items()
        ]
        text += f"{title}: {', '.join(parts)}. "
    keys = [
        Line2D([], [], color=color, marker=marker, mfc=face, ms=6, ls="none", label=label)
        for label, (marker, color, face) in NULL_MARKS.items()
    ]
    fig.legend(
        handles=keys, loc="upper left", bbox_to_anchor=(0.005, 1), ncols=2, frameon=False, labelcolor=INK, fontsize=9
    )
    return _describe(fig, text + limits)


SPECTRAL: dict[str, Callable[[Change], float]] = {
    "Singular values: |S' - S| / |S|": lambda c: c.values,
    "Share of energy on the diagonal": lambda c: c.diagonal,
    "Left subspace: median angle (degrees)": lambda c: math.degrees(c.left.median),
    "Right subspace: median angle (degrees)": lambda c: math.degrees(c.right.median),
}
NULL_MARKS = {  # marker, colour, face
    "measured": ("o", POINT, POINT),
    "random update": ("D", "#bc8700", "none"),
}


@rc_context(_RC)
def surgery_bars(studies: Sequence[Sequence[Mapping[str, Any]]]) -> Figure:
    """Hands solved out of distribution and in it after each edit of the weights, beside the unedited model (dotted).

    `studies` holds the rows of `two_stage.surgery`, one list a seed, the unedited model first. Behind an edit's name stands its
    length, as a share of the way between the two models. Several seeds have Student's t intervals.
    """
    if not studies or not all(rows and rows[0]["edit"] == "none" for rows in studies):
        raise UserError("There is no surgery to draw: pass lists of rows that begin with the unedited model.")
    edits = [row["edit"] for row in studies[0] if all(row["edit"] in {r["edit"] for r in rows} for rows in studies)]
    by_edit = {edit: [next(row for row in rows if row["edit"] == edit) for rows in studies] for edit in edits}
    norms = {edit: float(np.mean([row["norm"] for row in rows])) for edit, rows in by_edit.items()}
    caption = f"Bars: mean of {len(studies)} seed{'s' * (len(studies) > 1)}. Small marks: one seed. "
    caption += "Intervals: Student's t over seeds, cut at the frame. " if len(studies) > 1 else ""
    caption += "In brackets: length of the edit, in lengths of the way between the two models. Dotted: no edit."
    fig, (row,) = _canvas(8.5, 0.31 * len(edits) + 0.1, caption, left=2.75, cols=2, gap=0.3, sharey=True)
    text = "Bar charts of hands solved after each edit. "
    for axes, cell, title in zip(row, ("own-face", "ten-any"), ("Out of distribution", "In distribution"), strict=True):
        shares = {edit: [_share(r[cell]) for r in rows] for edit, rows in by_edit.items()}
        top = 1.2 * max(1e-3, *(s for some in shares.values() for s in some))
        for y, edit in enumerate(edits):
            _bar(axes, y, shares[edit])
        axes.axvline(float(np.mean(shares["none"])), color=INK, lw=1, ls=":")
        axes.set_xlim(0, top)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(PercentFormatter(1, 0 if top > 0.08 else 1))
        axes.set_title(title, loc="left")
        text += f"{title}: {', '.join(f'{edit} {np.mean(some):.1%}' for edit, some in shares.items())}. "
    row[0].set_yticks(range(len(edits)), [edit if edit == "none" else f"{edit} ({norms[edit]:.2f})" for edit in edits])
    row[0].set_ylim(len(edits) - 0.4, -0.6)
    for axes in row:
        axes.tick_params(axis="y", length=0)
    return _describe(fig, text.rstrip())


@rc_context(_RC)
def spectrum(panels: Sequence[tuple[str, ArrayLike, ArrayLike]]) -> Figure:
    """Singular values (n,), descending or not, beside those (n,) that the Marchenko-Pastur law gives. A panel a (title, values, law)."""
    tables: list[tuple[str, Floats, Floats]] = []
    for title, values, expected in panels:
        s, law = (np.sort(_numbers(x, f"values of {title!r}", 1))[::-1] for x in (values, expected))
        tables.append((title, s, law))
    if not tables or any(len(s) != len(law) for _, s, law in tables):
        raise UserError("There is no spectrum to draw: pass (title, singular values, as many of the law).")
    n = len(tables)
    fig, (row,) = _canvas(
        0.9 + 2.55 * n + 0.55 * (n - 1),
        2.4,
        "Dots: the matrix. Line: a matrix of independent numbers.",
        cols=n,
        gap=0.55,
    )
    texts = []
    for axes, (title, s, law) in zip(row, tables, strict=True):
        axes.plot(range(1, len(s) + 1), s, "o", color=POINT, ms=3.5, ls="none")
        axes.plot(range(1, len(s) + 1), law, color=METHOD_STYLE["points_sft"].color, lw=1.6)
        axes.set_ylim(0, 1.05 * max(s[0], law[0]))
        _linear_axis(axes.yaxis)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_xlabel("number of the value")
        axes.set_title(textwrap.fill(title, 34), loc="left", fontsize=10)
        texts.append(f"{title}: {s[0]:.2g} to {s[-1]:.2g}, law {law[0]:.2g} to {law[-1]:.2g}")
    row[0].set_ylabel("singular value")
    return _describe(fig, f"Singular values in falling order beside the Marchenko-Pastur law. {'; '.join(texts)}.")


@rc_context(_RC)
def angle_profiles(lines: Sequence[tuple[str, ArrayLike]]) -> Figure:
    """Principal angles of subspaces in rising order: lines (label, radians (k,))."""
    curves: list[tuple[str, Floats]] = []
    for label, x in lines:
        curves.append((textwrap.fill(label, 24), np.degrees(np.sort(_numbers(x, f"angles of {label!r}", 1)))))
    if not curves:
        raise UserError("There are no angles to draw: pass at least one (label, angles).")
    fig, ((axes,),) = _canvas(8.5, 3.2, "A mark: one principal angle.", left=0.75, right=2.3, top=0.15)
    styles = list(itertools.islice(itertools.cycle(METHOD_STYLE.values()), len(curves)))
    for (_, angles), style in zip(curves, styles, strict=True):
        axes.plot(
            range(1, len(angles) + 1), angles, color=style.color, ls=style.line, lw=1.6, marker=style.marker, ms=3.5
        )
    axes.set_ylim(-3, 93)
    axes.yaxis.set_major_locator(FixedLocator([0, 30, 60, 90]))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_ylabel("angle (degrees)")
    axes.set_xlabel("number of the angle")
    _side_labels(axes, [(len(a), float(a[-1])) for _, a in curves], [label for label, _ in curves], styles)
    parts = [f"{label}: {a[0]:.2g} to {a[-1]:.2g} degrees, median {np.median(a):.2g}" for label, a in curves]
    return _describe(fig, f"Principal angles in rising order. {'; '.join(parts)}.".replace("\n", " "))


# --- figures of demonstrations in a group (notebook 06) -----------------------------------------------------------------------


@rc_context(_RC)
def prefix_schedule(low: ArrayLike, high: ArrayLike, given: ArrayLike = ()) -> Figure:
    """The bounds (S,) of the share of a demonstration that is given, update by update, and the mean of U(low, high).

    `given` (S,): the mean share that was given in a run, a dot an update.
    """
    a, b = _numbers(low, "lower bounds", 1), _numbers(high, "upper bounds", 1)
    if len(a) != len(b) or (a > b).any():
        raise UserError(
            "These bounds are no schedule: pass as many lower as upper ones, none of them above its upper one."
        )
    x, middle, dots = np.arange(len(a)), (a + b) / 2, np.asarray(given, float)
    caption = f"Band: where the share l is drawn from, uniformly. Dotted: mean over all updates, {middle.mean():.3f}. "
    caption += "Dots: mean over the prompts of an update of a run." if len(dots) else ""
    fig, ((axes,),) = _canvas(8.5, 3.2, caption, left=0.75, right=2.3, top=0.15)
    axes.fill_between(x, a, b, color=POINT, alpha=0.15, lw=0)
    styles = [
        Style("", POINT, "-", "v"),
        Style("", METHOD_STYLE["sums_prefix"].color, "-", "D"),
        Style("", "#a84537", "-", "^"),
    ]
    labels = [
        f"{what}\n{y[0]:.0%} to {y[-1]:.0%}"
        for what, y in (("upper bound", b), ("mean of what is given", middle), ("lower bound", a))
    ]
    for y, style in zip((b, middle, a), styles, strict=True):
        axes.plot(x, y, color=style.color, lw=2)
    axes.axhline(float(middle.mean()), color=INK, lw=1, ls=":")
    axes.plot(np.arange(len(dots)), dots, "o", color=INK, ms=2.2, ls="none")
    axes.set_ylim(-0.03, 1.03)
    _percent(axes, "y")
    axes.set_xlabel("update")
    axes.set_ylabel("share of the demonstration")
    _side_labels(axes, [(float(x[-1]), float(y[-1])) for y in (b, middle, a)], labels, styles)
    text = f"Line chart of the share of a demonstration that is given, over {len(a)} updates: lower bound {a[0]:.2f} to {a[-1]:.2f}, "
    text += f"upper bound {b[0]:.2f} to {b[-1]:.2f}, mean {middle[0]:.2f} to {middle[-1]:.2f}, over all updates {middle.mean():.3f}."
    return _describe(fig, text + (f" Given in a run: mean {dots.mean():.3f}." if len(dots) else ""))


TOKEN_LOOKS = {  # face, edge, hatch
    "kept": (POINT, POINT, ""),
    "clipped": ("none", INK, ""),
    "own": ("none", "#459f9d", "////"),
}
TOKEN_WORDS = {"kept": "forced, in the loss", "clipped": "forced, clipped away", "own": "the policy's own"}


@rc_context(_RC)
def token_strip(rows: Sequence[tuple[str, Sequence[str], ArrayLike, Sequence[str]]]) -> Figure:
    """The entropy of each token of some replies. A panel a (title, tokens, entropies (T,) in nats, kinds: keys of TOKEN_LOOKS)."""
    tables = [
        (title, list(tokens), _numbers(h, f"entropies of {title!r}", 1), list(kinds))
        for title, tokens, h, kinds in rows
    ]
    if (
        not tables
        or any(not len(t) == len(h) == len(k) for _, t, h, k in tables)
        or {k for *_, kinds in tables for k in kinds} - set(TOKEN_LOOKS)
    ):
        raise UserError(
            f"These are no rows of tokens: pass (title, tokens, entropies, kinds), kinds out of {', '.join(TOKEN_LOOKS)}."
        )
    top, wide = max(0.05, *(float(h.max()) for _, _, h, _ in tables)), max(len(t) for _, t, _, _ in tables)
    turned = (
        _inches([token for _, tokens, _, _ in tables for token in tokens]) > 7.5 / wide
    )  # a sign on its side misleads
    caption = "Height: entropy of what the token was drawn from. Tokens are read from left to right."
    n = len(tables)
    foot = 0.1 + (_inches([token for _, tokens, _, _ in tables for token in tokens]) if turned else 0.2)
    fig, grid = _canvas(8.5, 1.05 * n + (foot + 0.4) * (n - 1), caption, top=0.65, bottom=foot, rows=n, gap=foot + 0.4)
    texts = []
    for (axes,), (title, tokens, h, kinds) in zip(grid, tables, strict=True):
        for i, (height, kind) in enumerate(zip(h, kinds, strict=True)):
            face, edge, hatch = TOKEN_LOOKS[kind]
            axes.bar(i, height, 0.7, color=face, edgecolor=edge, hatch=hatch, lw=1)
        axes.set_xticks(range(len(tokens)), tokens, rotation=90 if turned else 0)
        axes.tick_params(axis="x", length=0, labelsize=8.5)
        axes.set_xlim(-0.7, wide - 0.3)
        axes.set_ylim(0, 1.1 * top)
        axes.yaxis.set_major_locator(MaxNLocator(2))
        axes.set_ylabel("nats")
        axes.set_title(title, loc="left", fontsize=10)
        said = {
            k: " ".join(t for t, kind in zip(tokens, kinds, strict=True) if kind == k) or "none" for k in TOKEN_LOOKS
        }
        texts.append(f"{title}: {'; '.join(f'{TOKEN_WORDS[k]}: {words}' for k, words in said.items())}")
    keys = [
        Patch(fc=face, ec=edge, hatch=hatch, label=TOKEN_WORDS[k]) for k, (face, edge, hatch) in TOKEN_LOOKS.items()
    ]
    fig.legend(
        handles=keys, loc="upper left", bbox_to_anchor=(0.005, 1), ncols=3, frameon=False, labelcolor=INK, fontsize=9
    )
    return _describe(fig, f"Bars of the entropy of each token, up to {top:.2g} nats. {'. '.join(texts)}.")


@rc_context(_RC)
def levels_over_updates(records: Sequence[RunRecord]) -> Figure:
    """Share of right replies to sums of each number of terms, and mean accuracy of the probes, against updates, a panel each.

    Thin: one seed. Thick: mean over seeds with Student's t intervals.
    """
    groups = _by_method(records)
    bare = [r.name for r in records if not r.evals() or "levels" not in r.evals()[0]]
    if bare:
        raise UserError(f"Runs without counts by level: {', '.join(bare)}. Leave them out.")
    levels = list(records[0].evals()[0]["levels"])
    rows = math.ceil((len(levels) + 1) / 2)
    spans = ", with Student's t 95% interval" if len(records) > len(groups) else ""
    caption = f"Thick: mean over seeds{spans}. Thin: one seed. {_all_seeds(groups)}"
    height = max(2.3, 0.36 * len(groups))
    fig, grid = _canvas(
        8.5,
        height * rows + 0.6 * (rows - 1),
        caption,
        left=0.75,
        right=2.1,
        rows=rows,
        cols=2,
        gap=(0.3, 0.6),
        sharex=True,
        sharey=True,
    )
    panels = [
        (f"{level} terms, right", [[_level_curve(r, level) for r in some] for some in groups.values()])
        for level in levels
    ]
    panels.append(("Prior probes: mean accuracy", [[curve(r, "prior_mean") for r in some] for some in groups.values()]))
    text = "Line charts against updates; here from the first to the last evaluation, mean over seeds. "
    ends = {}
    for axes, (title, curves) in zip(grid.flat, panels, strict=False):
        axes.set_title(title, loc="left", fontsize=10)
        ends[axes] = {
            m: _mean_line(axes, style_of(m), some, marks=False) for m, some in zip(groups, curves, strict=True)
        }
        text += f"{title}: {', '.join(f'{style_of(m).label} {y[0]:.0%} to {y[-1]:.0%}' for m, (_, y) in ends[axes].items())}. "
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    last = max(row["step"] for r in records for row in r.evals())
    for axes in ends:
        axes.set_xlim(-0.03 * last, 1.03 * last)
        axes.set_ylim(-0.04, 1.04)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_xlabel("updates" if axes in grid[-1] else "")
    _percent(grid[0, 0], "y")
    labels = [textwrap.fill(style_of(m).label, 22) for m in groups]
    for axes in grid[:, 1]:
        if axes in ends:
            _side_labels(
                axes,
                [(float(x[-1]), float(y[-1])) for x, y in ends[axes].values()],
                labels,
                [style_of(m) for m in groups],
            )
    return _describe(fig, text + _all_seeds(groups))


def _level_curve(record: RunRecord, level: str) -> tuple[Floats, Floats]:
    rows = record.evals()
    return np.array([row["step"] for row in rows], float), np.array([_share(row["levels"][level]) for row in rows])


@rc_context(_RC)
def arm_ends(
    rows: Sequence[tuple[str, Sequence[float], Sequence[float]]], marks: Sequence[tuple[str, float, float]] = ()
) -> Figure:
    """Two numbers an arm, one a seed each, in percent: new-task accuracy and accuracy of the probes. Rows (label, new, prior).

    `marks` are up to two upright lines (name, new, prior) to read the rows against, the first dotted, the second dashed.
    """
    if not rows or not all(len(new) == len(prior) > 0 for _, new, prior in rows) or len(marks) > 2:
        raise UserError(
            "There are no arms to draw: pass (label, accuracies, prior accuracies), one of each a seed, and at most two marks."
        )
    counts = sorted({len(new) for _, new, _ in rows})
    caption = f"Large: mean of {' or '.join(map(str, counts))} seeds, with Student's t 95% interval, cut at the frame. Small: one seed. "
    caption += " ".join(f"{line}: {name}." for line, (name, _, _) in zip(("Dotted", "Dashed"), marks, strict=False))
    left = 0.35 + _inches([label for label, _, _ in rows])
    fig, (pair,) = _canvas(8.5, 0.3 * len(rows) + 0.1, caption, left=left, cols=2, gap=0.3, sharey=True)
    text = "Dot charts by arm. "
    titles = ("Sums right, at the end", "Prior probes right, at the end")
    values = ([new for _, new, _ in rows], [prior for _, _, prior in rows])
    upright = ([new for _, new, _ in marks], [prior for _, _, prior in marks])
    for axes, title, arms, lines in zip(pair, titles, values, upright, strict=True):
        for y, seeds in enumerate(arms):
            axes.plot(seeds, [y + 0.22] * len(seeds), "o", color=INK, ms=3, ls="none")
            if len(seeds) > 1:
                _, lo, hi = t_interval(seeds)
                axes.plot([max(lo, 0), min(hi, 100)], [y, y], color=POINT, lw=1.6)
            axes.plot([float(np.mean(seeds))], [y], "D", color=POINT, ms=6, ls="none")
        for ls, x in zip((":", (0, (5, 2))), lines, strict=False):
            axes.axvline(x, color=INK, lw=1, ls=ls)
        axes.set_xlim(-2, 102)
        axes.xaxis.set_major_locator(FixedLocator([0, 25, 50, 75, 100]))
        axes.xaxis.set_major_formatter(PercentFormatter(100, 0))
        axes.tick_params(axis="y", length=0)
        axes.set_title(title, loc="left", fontsize=10)
        text += (
            f"{title}: {', '.join(f'{row[0]} {np.mean(seeds):.1f}%' for row, seeds in zip(rows, arms, strict=True))}. "
        )
    pair[0].set_yticks(range(len(rows)), [label for label, _, _ in rows])
    pair[0].set_ylim(len(rows) - 0.4, -0.6)
    return _describe(fig, text.rstrip())


LEVEL_LOOKS: tuple[tuple[str, str | tuple[float, tuple[float, ...]], str], ...] = (
    ("#05a2c2", "-", "o"),
    ("#bc8700", (0, (5, 1.5)), "s"),
    ("#a84537", (0, (1, 1.2)), "^"),
    ("#4649fb", (0, (9, 2)), "D"),
)


@rc_context(_RC)
def prefix_gains(panels: Sequence[tuple[str, Sequence[RunRecord]]], bins: int = 8) -> Figure:
    """What a prefix gained, r_N - m, by number of terms, in `bins` stretches of the updates. A panel a (title, runs).

    Means over the updates of a stretch, then over seeds, with Student's t intervals. Dotted: the share of a demonstration given.
    """
    found = [(title, [_gains(r, bins) for r in records]) for title, records in panels]
    if (
        not found
        or not all(some and all(some) for _, some in found)
        or len({tuple(g) for _, some in found for g in some}) > 1
    ):
        raise UserError("These runs hold no gains of prefixes by the same levels: pass runs of Prefix-RFT on sums.")
    n, levels = len(found), [key for key in found[0][1][0] if key != "length"]
    caption = f"Means over stretches of updates, then over seeds ({', '.join(f'{title}: {len(some)}' for title, some in found)}), "
    caption += "with Student's t 95% intervals. Dotted: mean share of the demonstration that is given."
    fig, (row,) = _canvas(8.5, 3.0, caption, left=0.75, right=1.75, top=0.4, cols=n, gap=0.3, sharey=True)
    text = "Line charts of the reward with a prefix minus that without, against updates. "
    looks = [Style("", *look) for look in itertools.islice(itertools.cycle(LEVEL_LOOKS), len(levels))]
    for axes, (title, some) in zip(row, found, strict=True):
        ends = [
            _gain_line(axes, look, [g[level] for g in some], shift)
            for shift, (level, look) in enumerate(zip(levels, looks, strict=True))
        ]
        length = np.mean([g["length"][1] for g in some], axis=0)
        axes.plot(some[0]["length"][0], length, color=INK, ls=":", lw=1.6)
        axes.axhline(0, color=INK, lw=0.8)
        axes.set_xlabel("updates")
        axes.set_title(title, loc="left", fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        parts = [
            f"{level} terms {_plain(f'{y[0]:+.2f}')} to {_plain(f'{y[-1]:+.2f}')}"
            for level, (_, y) in zip(levels, ends, strict=True)
        ]
        text += f"{title}: {', '.join(parts)}, given {length[0]:.2f} to {length[-1]:.2f}. "
    row[0].set_ylabel("reward, with prefix minus without")
    last = [(float(x[-1]), float(y[-1])) for x, y in ends]
    _side_labels(
        row[-1],
        [*last, (last[0][0], float(length[-1]))],
        [*(f"{level} terms" for level in levels), "share given"],
        [*looks, Style("", INK, ":", "")],
    )
    return _describe(fig, text.rstrip())


def _gains(record: RunRecord, bins: int) -> dict[str, tuple[Floats, Floats]]:
    """By level (and "length"): the middles of `bins` stretches of the updates, and the mean gain there; {} where there are none."""
    rows = [row for row in record.metrics if row["kind"] == "train" and row.get("prefix_length") is not None]
    if len(rows) < bins:
        return {}
    keys = sorted({key for row in rows for key in row if key.startswith("prefix_advantage_level_")})
    wanted = {key.rsplit("_", 1)[1]: key for key in keys} | {"length": "prefix_length"}
    parts = np.array_split(np.arange(len(rows)), bins)
    at = np.array([np.mean([rows[i]["step"] for i in part]) for part in parts])

    found = {name: (at, np.array([_mean_of(rows, part, key) for part in parts])) for name, key in wanted.items()}
    return {} if any(np.isnan(y).any() for _, y in found.values()) else found


def _mean_of(rows: Sequence[Mapping[str, Any]], part: Iterable[int], key: str) -> float:
    """Over the rows that have it: an update need not hold every level."""
    values = [rows[i][key] for i in part if rows[i].get(key) is not None]
    return float(np.mean(values)) if values else math.nan


def _gain_line(axes: Axes, look: Style, curves: Sequence[tuple[Floats, Floats]], shift: int) -> tuple[Floats, Floats]:
    x, values = curves[0][0], np.array([y for _, y in curves])
    aside = x + (shift - 1) * 0.012 * (x[-1] - x[0])  # else the intervals would hide each other
    axes.plot(aside, values.mean(0), color=look.color, ls=look.line, marker=look.marker, ms=4.5, lw=1.8)
    for at, column in zip(aside, values.T, strict=True):
        if len(column) > 1:
            _, lo, hi = t_interval(column)
            axes.plot([at, at], [max(lo, -1), min(hi, 1)], color=look.color, lw=1)
    return x, values.mean(0)


PassLine = tuple[str, Sequence[int], Sequence[Interval]]  # method, numbers of samples, pass@k with intervals


@rc_context(_RC)
def pass_at_k(panels: Sequence[tuple[str, Sequence[PassLine]]], over: str) -> Figure:
    """pass@k against k, a panel a (title, lines), a line a (method, ks, intervals). `over` says what the intervals are over."""
    if not panels or not all(lines for _, lines in panels):
        raise UserError("There is no pass@k to draw: pass (title, [(method, ks, intervals), ...]).")
    n, caption = len(panels), f"Intervals: 95%, over {over}."
    fig, (row,) = _canvas(8.5, 3.0, caption, left=0.75, right=1.75, top=0.4, cols=n, gap=0.25, sharey=True)
    text = "Line charts of the chance that k samples hold a right reply, against k. "
    for axes, (title, lines) in zip(row, panels, strict=True):
        every = sorted({k for _, ks, _ in lines for k in ks})
        for shift, (method, ks, found) in enumerate(lines):
            style, x = style_of(method), [k * 1.05 ** (shift - (len(lines) - 1) / 2) for k in ks]
            axes.plot(x, [i.mean for i in found], color=style.color, ls=style.line, marker=style.marker, ms=4.5, lw=1.8)
            for at, interval in zip(x, found, strict=True):
                if not math.isnan(interval.lo):
                    axes.plot([at, at], [max(interval.lo, 0), min(interval.hi, 1)], color=style.color, lw=1)
        axes.set_xscale("log", base=2)
        axes.set_xlim(every[0] / 1.3, every[-1] * 1.3)
        _ticks(axes.xaxis, every)
        axes.set_ylim(-0.04, 1.04)
        axes.set_xlabel("k")
        axes.set_title(title, loc="left", fontsize=10)
        parts = [
            f"{style_of(m).label} {found[0].mean:.0%} at {ks[0]} to {found[-1].mean:.0%} at {ks[-1]}"
            for m, ks, found in lines
        ]
        text += f"{title}: {', '.join(parts)}. "
    _percent(row[0], "y")
    row[0].set_ylabel("pass@k")
    styles = [style_of(m) for m, _, _ in lines]
    ends = [(float(ks[-1]), float(found[-1].mean)) for _, ks, found in lines]
    _side_labels(row[-1], ends, [textwrap.fill(s.label, 18) for s in styles], styles)
    return _describe(fig, text.rstrip())


@rc_context(_RC)
def trade_off(records: Sequence[RunRecord], asked: str = "sums right, greedy") -> Figure:
    """Accuracy of the probes against new-task accuracy (`asked`), along training: how much is forgotten for how much is learnt.

    Thin: one seed. Thick: mean over seeds, a mark an evaluation, the last one large.
    """
    groups = _by_method(records)
    caption = f"Each path begins at the base and ends at the large mark. Thick: mean over seeds, evaluation by evaluation. Thin: one seed. {_all_seeds(groups)}"
    fig, ((axes,),) = _canvas(8.5, max(3.6, 0.36 * len(groups)), caption, left=0.75, right=2.3, top=0.15)
    ends, text = [], "Paths of prior accuracy against new-task accuracy, mean over seeds. "
    for method, some in groups.items():
        style = style_of(method)
        for r in some if len(some) > 1 else ():
            axes.plot(
                curve(r, "new_exact")[1], curve(r, "prior_mean")[1], color=style.color, ls=style.line, lw=0.8, alpha=0.5
            )
        x, y = (mean_curve([curve(r, key) for r in some])[1] for key in ("new_exact", "prior_mean"))
        axes.plot(x, y, color=style.color, ls=style.line, marker=style.marker, ms=4, lw=2.0)
        axes.plot(x[-1:], y[-1:], **_marks(style, 9))
        ends.append((float(x[-1]), float(y[-1])))
        text += f"{style.label}: new task {x[0]:.0%} to {x[-1]:.0%}, prior {y[0]:.0%} to {y[-1]:.0%}. "
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    _percent(axes, "x")
    _percent(axes, "y")
    axes.set_xlabel(asked)
    axes.set_ylabel("prior probes right, mean")
    _side_labels(axes, ends, [textwrap.fill(style_of(m).label, 26) for m in groups], [style_of(m) for m in groups])
    return _describe(fig, text + _all_seeds(groups))


# --- figures of tasks in a row (notebook 07) ---------------------------------------------------------------------------


@rc_context(_RC)
def drawn_tasks(rows: Sequence[tuple[str, Image, str, str]], cols: int = 4) -> Figure:
    """One example of each task: (name, picture, question, reply), the texts below the picture."""
    if not rows:
        raise UserError("There are no examples to draw: pass (name, picture, question, reply).")
    down = math.ceil(len(rows) / cols)
    caption = "Below each picture: what is asked, and the reply that demonstrates it."
    fig, panels = _canvas(
        10.5, 3.1 * down, caption, left=0.15, right=0.15, bottom=0.9, rows=down, cols=cols, gap=(0.25, 1.35)
    )
    for axes in panels.flat[len(rows) :]:
        axes.set_visible(False)
    for axes, (name, image, asked, reply) in zip(panels.flat, rows, strict=False):
        axes.imshow(np.asarray(image), interpolation="nearest")
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_axis_off()
        said = "\n".join([*textwrap.wrap(asked, 40), *textwrap.wrap(f"> {reply}", 40)])
        axes.annotate(
            said,
            (0, 0),
            (0, -5),
            xycoords="axes fraction",
            textcoords="offset points",
            va="top",
            fontsize=8,
            linespacing=1.2,
        )
    return _describe(
        fig, "Pictures with questions. " + " ".join(f"{name}: {asked} {reply}" for name, _, asked, reply in rows)
    )


@rc_context(_RC)
def groups_with_signal(rows: Sequence[tuple[str, Sequence[int]]], size: int) -> Figure:
    """Of each task the shares of groups of `size` replies with none, some and all right. Rows (task, right replies of each group)."""
    if not rows or not all(len(right) and min(right) >= 0 and max(right) <= size for _, right in rows):
        raise UserError(f"There are no groups of {size} to draw: pass (task, how many are right in each group).")
    fig, ((axes,),) = _canvas(
        8.5,
        0.4 * len(rows),
        f"Groups of {size} replies at temperature 1. As far as accuracy is paid, only groups with some right (striped) teach GRPO and RLOO anything.",
        left=1.55,
        top=0.65,
    )
    looks = {"none right": (INK, "..."), "some right": ("#4649fb", "////"), "all right": ("#459f9d", "")}
    text = f"Bars of groups of {size} replies, by task. "
    for y, (_, right) in enumerate(rows):
        none, all_ = (sum(n == k for n in right) / len(right) for k in (0, size))
        start, shares = 0.0, {"none right": none, "some right": 1 - none - all_, "all right": all_}
        for what, (color, hatch) in looks.items():
            axes.barh(
                y, shares[what], 0.66, start, color="none" if hatch else color, edgecolor=color, hatch=hatch, lw=1
            )
            start += shares[what]
        text += f"{rows[y][0]}: {', '.join(f'{what} {share:.0%}' for what, share in shares.items())}; {sum(right) / size / len(right):.0%} of replies. "
    axes.set_yticks(range(len(rows)), [f"{name}\n{sum(right) / size / len(right):.0%} right" for name, right in rows])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1.01)
    _percent(axes, "x")
    keys = [Patch(fc="none" if h else c, ec=c, hatch=h, label=v) for v, (c, h) in looks.items()]
    axes.legend(handles=keys, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, labelcolor=INK)
    axes.set_xlabel("share of groups")
    return _describe(fig, text.rstrip())


@rc_context(_RC)
def accuracy_matrices(panels: Sequence[tuple[str, Sequence[str], Sequence[str], ArrayLike]]) -> Figure:
    """Accuracy matrices side by side: (title, what was trained last, tasks, accuracies in [0, 1]); panels share their tasks or not.

    The cell of the task that was trained last has a frame: left below it stands what becomes of a task later.
    """
    if not panels:
        raise UserError("There is no matrix to draw: pass (title, rows, tasks, accuracies).")
    made = [
        (title, list(after), list(tasks), _numbers(p, f"accuracies of {title!r}", 2))
        for title, after, tasks, p in panels
    ]
    for title, after, tasks, p in made:
        if p.shape != (len(after), len(tasks)) or p.min() < 0 or p.max() > 1:
            raise UserError(
                f"The accuracies of {title!r}, of shape {p.shape}, are no shares of {len(after)} rows and {len(tasks)} tasks."
            )
    deep = max(len(after) for _, after, _, _ in made)
    left = 0.25 + _inches([row for _, after, _, _ in made for row in after])
    width = left * len(made) + 0.36 * sum(len(tasks) for _, _, tasks, _ in made)
    caption = "Row: after which training. Column: percent right of a task. Shade: darker is more. Frame: the task just trained."
    fig, (row,) = _canvas(
        max(width, 5.6), 0.34 * deep, caption, left=left, right=0.1 + max(0.0, 5.6 - width), top=0.4,
        bottom=0.1 + _inches([task for _, _, tasks, _ in made for task in tasks]), cols=len(made), gap=left,
    )  # fmt: skip
    text = "Heat maps of accuracy, a row a training, a column a task. "
    for axes, (title, after, tasks, p) in zip(row, made, strict=True):
        _shares(axes, p, [(i, tasks.index(name)) for i, name in enumerate(after) if name in tasks])
        axes.set_ylim(deep - 0.5, -0.5)
        axes.set_xticks(range(len(tasks)), tasks, rotation=90)
        axes.set_yticks(range(len(after)), after)
        axes.tick_params(length=0, labelsize=9)
        axes.spines[:].set_visible(False)
        axes.set_title(title, loc="left", fontsize=10)
        rows_said = [
            f"after {name} {', '.join(f'{100 * x:.0f}' for x in line)}" for name, line in zip(after, p, strict=True)
        ]
        text += f"{title}, percent of {', '.join(tasks)}: {'; '.join(rows_said)}. "
    return _describe(fig, text.rstrip())


def _shares(axes: Axes, p: Floats, framed: Sequence[tuple[int, int]]) -> None:
    """Cells with percentages: white is 0, blue is 1. A frame lies inside its cell, so that it shows on a dark page too."""
    shades = HEAT(0.5 + 0.5 * p)
    for (i, j), value in np.ndenumerate(p):
        shade = to_hex(shades[i, j])
        axes.add_patch(Rectangle((j - 0.48, i - 0.46), 0.96, 0.92, fc=shade, ec="none"))
        box = {"boxstyle": "square,pad=0.1", "facecolor": shade, "edgecolor": "none"}
        axes.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color="black", bbox=box)
    for i, j in framed:
        axes.add_patch(Rectangle((j - 0.41, i - 0.39), 0.82, 0.78, fc="none", ec="black", lw=1.3))
    axes.set_xlim(-0.5, p.shape[1] - 0.5)


@rc_context(_RC)
def gain_and_forgetting(methods: Mapping[str, tuple[Sequence[float], Sequence[float]]], reading: str) -> Figure:
    """FM against new-task gain, both in points, one a seed: {method: (gains, FMs)}. `reading` says which FM it is."""
    if not methods or not all(len(gains) == len(fms) > 0 for gains, fms in methods.values()):
        raise UserError("There is nothing to draw: pass {method: (gains, FMs)}, one of each a seed.")
    caption = (
        f"Large: mean over seeds, with Student's t 95% intervals, cut at the frame. Small: one seed. FM: {reading}."
    )
    fig, ((axes,),) = _canvas(8.5, max(3.4, 0.42 * len(methods)), caption, left=0.75, right=2.5, top=0.15)
    ends, text = [], "Dots of FM against new-task gain, in percentage points, means over seeds. "
    every = [(x, y) for gains, fms in methods.values() for x, y in zip(gains, fms, strict=True)]
    low_x, high_x = min(0.0, *(x for x, _ in every)) - 2, max(5.0, *(x for x, _ in every)) + 4
    low_y, high_y = min(-5.0, *(y for _, y in every)) - 4, max(0.0, *(y for _, y in every)) + 2
    for method, (gains, fms) in methods.items():
        style, x, y = style_of(method), float(np.mean(gains)), float(np.mean(fms))
        axes.plot(gains, fms, **_marks(style, 4, alpha=0.8))
        if len(gains) > 1:
            (_, left, right), (_, low, high) = t_interval(gains), t_interval(fms)
            axes.plot([max(left, low_x), min(right, high_x)], [y, y], color=style.color, lw=1.2)
            axes.plot([x, x], [max(low, low_y), min(high, high_y)], color=style.color, lw=1.2)
        axes.plot([x], [y], **_marks(style, 9))
        ends.append((x, y))
        text += f"{style.label}: gain {x:.1f}, FM {_plain(f'{y:.1f}')}. "
    axes.axhline(0, color=INK, lw=1, ls=":")
    axes.set_xlim(low_x, high_x)
    axes.set_ylim(low_y, high_y)
    _linear_axis(axes.xaxis)
    _linear_axis(axes.yaxis)
    axes.set_xlabel("gain on each task while it is trained (points; right is more learnt)")
    axes.set_ylabel("FM (points; up is less forgotten)")
    _side_labels(axes, ends, [textwrap.fill(style_of(m).label, 26) for m in methods], [style_of(m) for m in methods])
    return _describe(fig, text.rstrip())


@rc_context(_RC)
def over_tasks(methods: Mapping[str, Sequence[tuple[ArrayLike, ArrayLike]]]) -> Figure:
    """Along a sequence: mean accuracy on the tasks trained so far, and of the prior probes. {method: [(P (T + 1, T), prior (T + 1,))]}, one a seed."""
    groups = {
        method: [(_numbers(p, "accuracies", 2), _numbers(prior, "prior accuracies", 1)) for p, prior in runs]
        for method, runs in methods.items()
    }
    shapes = {(p.shape, prior.shape) for runs in groups.values() for p, prior in runs}
    size = next(iter(shapes))[0][1] if shapes else 0
    if not all(groups.values()) or shapes != {((size + 1, size), (size + 1,))}:
        raise UserError(
            "These are no sequences of equally many tasks: pass {method: [(P (T + 1, T), prior (T + 1,)), ...]}."
        )
    fig, ((left, right),) = _canvas(
        11, 3.4, "Thin: one seed. Thick: mean over seeds.", left=0.65, right=2.4, top=0.4, cols=2, gap=0.65
    )
    text, ends = "Line charts against tasks trained. ", []
    for method, some in groups.items():
        style = style_of(method)
        seen = np.array([[p[t, :t].mean() for t in range(1, size + 1)] for p, _ in some])
        old = np.array([prior for _, prior in some])
        for axes, values, at in ((left, seen, range(1, size + 1)), (right, old, range(size + 1))):
            for line in values if len(values) > 1 else ():
                axes.plot(at, line, color=style.color, ls=style.line, lw=0.8, alpha=0.6)
            axes.plot(at, values.mean(0), color=style.color, ls=style.line, lw=2.2, marker=style.marker, ms=5)
        ends.append((float(size), float(old[:, -1].mean())))
        text += f"{style.label} (seeds: {len(some)}): tasks seen {seen[:, 0].mean():.0%} to {seen[:, -1].mean():.0%}, prior {old[:, 0].mean():.0%} to {old[:, -1].mean():.0%}. "
    for axes, title in ((left, "Tasks trained so far: mean accuracy"), (right, "Prior probes: mean accuracy")):
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("tasks trained")
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlim(-0.2, size + 0.2)
        axes.xaxis.set_major_locator(FixedLocator(range(size + 1)))
        _percent(axes, "y")
    _side_labels(right, ends, [textwrap.fill(style_of(m).label, 24) for m in groups], [style_of(m) for m in groups])
    return _describe(fig, text.rstrip())


@rc_context(_RC)
def risk_against_prediction(panels: Sequence[tuple[str, ArrayLike, ArrayLike]], xlabel: str) -> Figure:
    """Measured risk of an estimator's update against a predicted one, a dot a prompt, log scales; panels (title, predicted, measured).

    Where either is 0, as of groups without a signal, there is no dot; the caption counts them.
    """
    if not panels:
        raise UserError("There is nothing to draw: pass (title, predicted, measured).")
    made = [
        (title, _numbers(x, f"predictions of {title!r}", 1), _numbers(y, f"risks of {title!r}", 1))
        for title, x, y in panels
    ]
    if any(x.shape != y.shape for _, x, y in made):
        raise UserError("Predictions and risks differ in number: pass one of each a prompt.")
    kept = [(title, x[(x > 0) & (y > 0)], y[(x > 0) & (y > 0)]) for title, x, y in made]
    if not all(len(x) for _, x, _ in kept):
        raise UserError(
            "A panel has no prompt with a risk above 0: take prompts that the policy gets right now and then."
        )
    left_out = ", ".join(
        f"{title} {len(all_x) - len(x)} of {len(all_x)}"
        for (title, x, _), (_, all_x, _) in zip(kept, made, strict=True)
    )
    caption = f"A dot a prompt. Dotted: measured as predicted. Not drawn, as one of the two is 0: {left_out}."
    fig, (row,) = _canvas(10.5, 3.2, caption, left=0.8, top=0.4, cols=len(kept), gap=0.35, sharex=True, sharey=True)
    both = np.concatenate([np.concatenate([x, y]) for _, x, y in kept])
    text = f"Scatters, log scales, of the measured risk of an update against {xlabel}. "
    for axes, (title, x, y) in zip(row, kept, strict=True):
        axes.plot(x, y, "o", color=POINT, ms=4.5, alpha=0.75, ls="none")
        axes.plot([both.min(), both.max()], [both.min(), both.max()], color=INK, ls=":", lw=1.4)
        _log_axis(axes, "x", both, most=4)
        _log_axis(axes, "y", both, most=6)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel(textwrap.fill(xlabel, 34))
        above = float(np.exp(np.mean(np.log(y / x))))
        text += f"{title}: {len(x)} prompts, measured {above:.3g} times the prediction (geometric mean). "
    row[0].set_ylabel("measured risk")
    return _describe(fig, text.rstrip())


@rc_context(_RC)
def norm_by_pass_rate(lines: Sequence[tuple[str, Mapping[float, tuple[float, int]]]]) -> Figure:
    """Length of a group's gradient against its share of right replies: (label, {pass rate: (mean norm, groups)}), as `fisher.signal` has it.

    Each line over its own largest norm, as estimators differ in scale. The caption counts the groups.
    """
    if not lines or not all(by_rate and max(norm for norm, _ in by_rate.values()) > 0 for _, by_rate in lines):
        raise UserError(
            "There is no gradient to draw: pass (label, {pass rate: (mean norm, groups)}) with a norm above 0."
        )
    first = lines[0][1]
    caption = f"Mean over groups, each line over its own highest point. Groups at each share right: {', '.join(f'{rate:.3g}: {n}' for rate, (_, n) in sorted(first.items()))}."
    fig, ((axes,),) = _canvas(8.5, 3.0, caption, left=0.75, right=2.2, top=0.15)
    looks = [Style("", *look) for look in itertools.islice(itertools.cycle(LEVEL_LOOKS), len(lines))]
    ends, text = [], "Line chart of the relative length of a group's gradient against its share of right replies. "
    for (label, by_rate), look in zip(lines, looks, strict=True):
        x = sorted(by_rate)
        top = max(norm for norm, _ in by_rate.values())
        y = [by_rate[rate][0] / top for rate in x]
        axes.plot(x, y, color=look.color, ls=look.line, marker=look.marker, ms=5, lw=1.8)
        ends.append((x[-1], y[-1]))
        text += f"{label}: {', '.join(f'{b:.2f} at {a:.3g}' for a, b in zip(x, y, strict=True))}. "
    axes.set_xlim(-0.04, 1.04)
    axes.set_ylim(-0.04, 1.06)
    _linear_axis(axes.yaxis)
    _percent(axes, "x")
    axes.set_xlabel("right replies of a group")
    axes.set_ylabel("length of the gradient, relative")
    _side_labels(axes, ends, [textwrap.fill(label, 22) for label, _ in lines], looks)
    return _describe(fig, text.rstrip())


# --- figures of what predicts forgetting (notebook 08) --------------------------------------------------------------------

WORST_SKILL = -1.0  # drawn at the edge from here on


@rc_context(_RC)
def predictor_scores(panels: Sequence[tuple[str, Sequence[tuple[str, Interval, float]]]]) -> Figure:
    """A panel a bench (title, rows), a row a predictor (its name, R² with its interval over methods, skill on a method left out)."""
    if not panels or not all(rows for _, rows in panels):
        raise UserError("A panel has no predictor to draw: pass (title, [(name, R² interval, skill), ...]).")
    names = list(dict.fromkeys(name for _, rows in panels for name, _, _ in rows))
    caption = "Dot and line: R² of the fit, with its interval over methods. Open diamond: 1 − squared error on methods left out over that "
    caption += f"of the others' mean; 0 is no better than the mean, at the left edge {WORST_SKILL:g} or less."
    n = len(panels)
    fig, (row,) = _canvas(
        3.1 + 2.6 * n + 0.3 * (n - 1), 0.4 + 0.36 * len(names), caption, left=2.85, cols=n, gap=0.3, sharey=True
    )
    texts = []
    for axes, (title, rows) in zip(row, panels, strict=True):
        for name, r2, skill in rows:
            y = names.index(name)
            axes.plot([r2.lo, r2.hi], [y - 0.13] * 2, color=POINT, lw=2)
            axes.plot(r2.mean, y - 0.13, "o", color=POINT, ms=6)
            axes.plot(max(skill, WORST_SKILL), y + 0.2, "D", color=HATCH, mfc="none", mew=1.6, ms=6, clip_on=False)
        axes.axvline(0, color=INK, lw=1, ls=":")
        axes.set_xlim(WORST_SKILL, 1.02)
        axes.xaxis.set_major_locator(FixedLocator([-1, -0.5, 0, 0.5, 1]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _plain(f"{value:g}")))
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("share explained")
        told = "; ".join(
            f"{name}: R² {r2.mean:.2f} ({r2.lo:.2f} to {r2.hi:.2f}), left out {skill:.2f}" for name, r2, skill in rows
        )
        texts.append(f"{title}: {told}.")
    row[0].set_ylim(len(names) - 0.4, -0.6)
    row[0].set_yticks(range(len(names)), [textwrap.fill(name, 34) for name in names])
    for axes in row:
        axes.tick_params(axis="y", length=0)
    return _describe(fig, "Dot chart of how well each predictor explains forgetting. " + " ".join(texts))


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
    labels = [f"{style_of(method).label}\n{_seeds(runs)}" for method, runs in groups.items()]
    _side_labels(axes, ends, labels, [style_of(method) for method in groups])


def _marks(style: Style, size: float, **more: Any) -> dict[str, Any]:
    """The method's marks without a line, for `plot`."""
    return {"marker": style.marker, "color": style.color, "ms": size, "ls": "none", **more}


def _side_labels(
    axes: Axes, ends: Sequence[tuple[float, float]], labels: Sequence[str], styles: Sequence[Style]
) -> None:
    """A label and its marker right of the axes for each line, with a leader from the line's end (x, y).

    To be called when the axes' scales and limits are final.
    """
    if not ends:
        return
    # Of lines that end at one height the one that ends first gets the higher label, so that leaders do not cross.
    wanted = axes.transAxes.inverted().transform(axes.transData.transform(ends))  # (labels, 2), fractions of the axes
    width, height = axes.bbox.width / axes.figure.dpi, axes.bbox.height / axes.figure.dpi  # inches
    lines = max(label.count("\n") + 1 for label in labels)
    heights = spread([float(y + 0.03 * (1 - x)) for x, y in wanted], (0.05 + 0.17 * lines) / height, 0.03, 0.98)
    for (x, y), at, label, style in zip(ends, heights, labels, styles, strict=True):
        leader = {"arrowstyle": "-", "color": style.color, "lw": 0.8, "alpha": 0.7, "relpos": (0, 0.5), "shrinkA": 8}
        axes.annotate(
            label, (x, y), (1 + 0.21 / width, at), textcoords="axes fraction", va="center",
            fontsize=9, color=INK, linespacing=1.15, annotation_clip=False, arrowprops=leader,
        )  # fmt: skip
        mark = 1 + 0.135 / width
        axes.plot(mark, at, transform=axes.transAxes, clip_on=False, **_marks(style, 6))


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


KERNEL_TERMS = {
    "bound": "LBK: lower bound of the kernel, |K|²",
    "moved": "Numerator of LBK: what a step moves, per unit of rate",
    "residual": "Residual |G|²: what is left to fit",
}


def _all_seeds(groups: dict[str, list[RunRecord]]) -> str:
    said = {method: _seeds(runs) for method, runs in groups.items()}
    if len(set(said.values())) == 1:
        return f"Every line: {next(iter(said.values()))}."
    return "; ".join(f"{style_of(method).label}: {seeds}" for method, seeds in said.items()) + "."


def _measured(record: RunRecord) -> list[dict[str, Any]]:
    return [row for row in record.metrics if row["kind"] == "dynamics"]


def _dynamics(record: RunRecord, key: str) -> tuple[Floats, Floats]:
    """(steps, values) of a number that `dynamics.measure` took, geometric mean over probes; what no log shows is left out."""
    points = []
    for row in _measured(record):
        each = row[key].values() if isinstance(row[key], dict) else [row[key]]
        if all(value and value > 0 for value in each):  # a diverged run holds None
            points.append((row["step"], math.exp(math.fsum(map(math.log, each)) / len(each))))
    steps, values = np.array(points, float).reshape(-1, 2).T
    return steps, values


def _geometric_mean(runs: Sequence[RunRecord], key: str) -> tuple[Floats, Floats] | None:
    """(steps, geometric mean over the runs); None if none of them has the number."""
    logs = [(x, np.log(y)) for x, y in (_dynamics(r, key) for r in runs) if len(x)]
    if not logs:
        return None
    steps, values = mean_curve(logs)
    return steps, np.exp(values)


def _term_panel(axes: Axes, groups: dict[str, list[RunRecord]], key: str) -> dict[str, tuple[Floats, Floats]]:
    """Draw the lines of one panel of `kernel_terms`; returns each method's mean (steps, values)."""
    means, every = {}, []
    for method, runs in groups.items():
        style = style_of(method)
        for steps, values in (_dynamics(r, key) for r in runs):
            axes.plot(steps, values, color=style.color, ls=style.line, lw=0.8, alpha=0.7)
            every.append(values)
        if mean := _geometric_mean(runs, key):
            width = 2.4 if len(runs) > 1 else 0.8  # one seed is no mean
            axes.plot(*mean, color=style.color, ls=style.line, lw=width, marker=style.marker, ms=4.5)
            means[method] = mean
    if any(map(len, every)):
        _log_axis(axes, "y", np.concatenate(every))
    return means


def _rate_line(axes: Axes, style: Style, line: Sequence[tuple[float, MatchedRow]], shift: float) -> None:
    """Means with intervals and a small mark a seed; `shift` keeps the intervals of two families apart."""
    rates = [lr * shift for lr, _ in line]
    means = [row.mean for _, row in line]  # NaN where no run got there, which breaks the line
    axes.plot(rates, means, color=style.color, ls=style.line, lw=1.8, marker=style.marker, ms=8)
    for x, (_, row) in zip(rates, line, strict=True):
        axes.plot([x * 1.07] * len(row.drops), row.drops, **_marks(style, 4, alpha=0.8))
        if not math.isnan(row.lo):
            axes.plot([x, x], [row.lo, row.hi], color=style.color, lw=1.6, marker="_", ms=8)


def _rate_labels(axes: Axes, families: dict[str, list[tuple[float, MatchedRow]]]) -> None:
    found = {f: [(lr, row) for lr, row in line if row.drops] for f, line in families.items()}
    found = {f: line for f, line in found.items() if line}
    if not found:
        axes.text(0.5, 0.6, "no run reached the target", ha="center", fontsize=9, color=INK, transform=axes.transAxes)
    labels = []
    for family, line in found.items():
        live = {seed for _, row in line for seed in row.live}
        recorded = {seed for _, row in line for seed in row.seeds if seed not in row.live}
        labels.append(f"{style_of(family).label}\n{_seed_text(sorted(live), sorted(recorded))}")
    ends = [(line[-1][0], line[-1][1].mean) for line in found.values()]
    _side_labels(axes, ends, labels, [style_of(family) for family in found])


def _predictor_panel(axes: Axes, panel: tuple[str, bool, Sequence[Point], Interval]) -> None:
    """One panel of `explanation`."""
    xlabel, log_x, points, correlation = panel
    values = _numbers([(x, drop) for _, x, drop in points], f"points against {xlabel}", 2)
    for (method, _, _), (x, drop) in zip(points, values, strict=True):
        axes.plot(x, drop, **_marks(style_of(method), 8, alpha=0.85))
    if log_x:
        _log_axis(axes, "x", values[:, 0], most=3)
    else:
        axes.margins(x=0.08)
        _linear_axis(axes.xaxis)
    axes.set_xlabel(textwrap.fill(xlabel + " (log scale)" * log_x, 36))
    axes.set_title(_correlation(correlation), loc="left", fontsize=10)


def _correlation(r: Interval) -> str:
    return _plain(f"correlation {r.mean:.2f}" + ("" if math.isnan(r.lo) else f" ({r.lo:.2f} to {r.hi:.2f})"))


def _means(points: Sequence[Point]) -> dict[str, float]:
    return {m: float(np.mean([d for n, _, d in points if n == m])) for m in dict.fromkeys(m for m, _, _ in points)}


def _method_labels(axes: Axes, points: Sequence[Point]) -> None:
    """The methods' names right of the axes, each at the height of its mean drop."""
    drops = _means(points)
    edge = axes.get_xlim()[1]
    styles = [style_of(method) for method in drops]
    _side_labels(axes, [(edge, drop) for drop in drops.values()], [style.label for style in styles], styles)


def _drop_axis(axes: Axes) -> None:
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -1), max(high, 5))  # a drop of hundredths of a point shall not look large
    axes.set_ylabel("prior accuracy lost (points)")


# --- cells, arrows, nulls -----------------------------------------------------------------------------------------------


def _share(count: Mapping[str, int], of: str = "correct") -> float:
    return count[of] / max(count["correct"] + count["wrong"] + count["unparseable"], 1)


def _cell_curve(record: RunRecord, cell: str, of: str = "correct") -> tuple[Floats, Floats]:
    """(updates, share of a cell's hands), shape (evaluations,) each."""
    rows = record.evals()
    return np.array([row["step"] for row in rows], float), np.array([_share(row["cells"][cell], of) for row in rows])


def _cell_lines(axes: Axes, style: Style, runs: Sequence[RunRecord], cell: str) -> list[tuple[Floats, Floats]]:
    """Draw a method's lines in one panel of `cells_over_updates`; returns the means (steps, shares) of solved and of read."""
    solved = _mean_line(axes, style, [_cell_curve(r, cell) for r in runs], marks=False)
    read = mean_curve([_cell_curve(r, cell, "read") for r in runs])
    axes.plot(*read, color=style.color, ls=":", lw=1.4, marker=style.marker, ms=4, mfc="none")
    return [solved, read]


def _cell_text(solved: tuple[Floats, Floats], read: tuple[Floats, Floats]) -> str:
    (_, s), (_, r) = solved, read
    return f"solved {s[0]:.1%} to {s[-1]:.1%} (highest {s.max():.1%}), cards read {r[0]:.0%} to {r[-1]:.0%}"


def _mean_line(
    axes: Axes, style: Style, curves: Sequence[tuple[Floats, Floats]], marks: bool = True
) -> tuple[Floats, Floats]:
    """Thin lines, the thick mean with Student's t intervals where there are two seeds, and a small mark a seed."""
    steps, values = mean_curve(curves)
    for x, y in curves if len(curves) > 1 else ():
        axes.plot(x, y, color=style.color, ls=style.line, lw=0.8, alpha=0.6)
    axes.plot(
        steps, values, color=style.color, ls=style.line, lw=2.2 if len(curves) > 1 else 1.2, marker=style.marker, ms=5
    )
    for step in steps if len(curves) > 1 else ():
        at = [float(np.interp(step, x, y)) for x, y in curves]
        _, lo, hi = t_interval(at)
        axes.plot([step, step], [max(lo, 0), min(hi, 1)], color=style.color, lw=1.2, alpha=0.8)
        if marks:
            axes.plot([step] * len(at), at, **_marks(style, 3, alpha=0.6))
    return steps, values


def _start_of(record: RunRecord) -> int:
    if not (found := re.search(r"_(\d+)$", record.method)):
        raise UserError(
            f"Method {record.method!r} does not end on the update it starts from: pass runs as points_rft_40."
        )
    return int(found[1])


def _beside(step: float, steps: np.ndarray, by: float = 0.27) -> float:
    """Right of a step by a width that is about the same anywhere on the scale of `_update_axis`."""
    first = float(steps[steps > 0][0]) if (steps > 0).any() else 1.0
    return step + by * max(step, first)


def _arrival(axes: Axes, start: int, steps: np.ndarray, origin: float, values: Sequence[float]) -> None:
    """RFT's end right of SFT's checkpoint, which has a ring, with the arrow between; interval and seeds further right."""
    style, x, mean = style_of("points_rft"), _beside(start, steps), float(np.mean(values))
    axes.plot([start], [origin], "o", color=style.color, mfc="none", ms=10, mew=1.2, ls="none", zorder=4)
    arrow = {
        "arrowstyle": "-|>,head_width=0.25",
        "color": style.color,
        "lw": 1.4,
        "shrinkA": 5,
        "shrinkB": 4,
        "zorder": 4,
    }
    axes.annotate("", (x, mean), (start, origin), arrowprops=arrow)
    aside = _beside(x, steps, 0.08)
    if len(values) > 1:
        _, lo, hi = t_interval(values)
        axes.plot([aside, aside], [max(lo, 0), min(hi, 1)], color=style.color, lw=0.9)
        axes.plot([aside] * len(values), values, **_marks(style, 3, alpha=0.7))
    axes.plot([x], [mean], **_marks(style, 7))


def _middle(some: Sequence[MatrixReport], of: str, measure: Callable[[Change], float]) -> str:
    return f"{np.median([measure(getattr(r, of)) for r in some]):.2g}"


def _beside_null(axes: Axes, y: int, some: Sequence[MatrixReport], measure: Callable[[Change], float]) -> Floats:
    """One row of `spectra_beside_null`; returns what was drawn."""
    drawn = []
    for label, shift, changes in (
        ("random update", 0.17, [r.null for r in some]),
        ("measured", -0.17, [r.change for r in some]),
    ):
        marker, color, face = NULL_MARKS[label]
        values = [v for v in map(measure, changes) if v > 0]
        axes.plot(values, [y + shift] * len(values), marker, color=color, mfc=face, ms=4.5, alpha=0.8, ls="none")
        drawn += values
    return np.array(drawn)


def _limits(some: Sequence[MatrixReport]) -> str:
    """What rounding alone makes, as medians over matrices, and the angles of subspaces that have nothing to do with each other."""
    values = np.median([r.floor.values for r in some])
    angles = np.degrees(np.median([side.median for r in some for side in (r.floor.left, r.floor.right)]))
    chance = np.degrees(np.arcsin(np.minimum(1.0, [share for r in some for share in r.chance])))
    low, high = f"{chance.min():.0f}", f"{chance.max():.0f}"
    text = f"Rounding alone (medians): values {_plain(f'{values:.1g}')}, angles {_plain(f'{angles:.1g}')} degrees. "
    text += "Subspaces that have nothing to do with each other (angle of their root mean square sine): "
    return text + (f"{low} degrees." if low == high else f"{low} to {high} degrees.")


def _bar(axes: Axes, y: int, shares: Sequence[float]) -> None:
    """One edit in one panel of `surgery_bars`."""
    mean = float(np.mean(shares))
    axes.barh(y, mean, 0.62, color="none" if y else POINT, edgecolor=POINT, alpha=0.9 if y else 0.45, lw=1.1)
    if len(shares) > 1:
        _, lo, hi = t_interval(shares)
        axes.plot(shares, [y] * len(shares), "o", color="#a84537", ms=3.5, ls="none")
        axes.plot([max(lo, 0), hi], [y, y], color="#a84537", lw=1.4)


# --- heat maps --------------------------------------------------------------------------------------------------------


def _heat(values: Floats, rows: Sequence[str], cols: Sequence[str], title: str, caption: str) -> Figure:
    """Cells (rows, cols) with signed numbers: the shade is the size against the largest, negative cells are hatched."""
    if values.shape != (len(rows), len(cols)):
        raise UserError(f"Numbers {values.shape} have {len(rows)} and {len(cols)} labels: pass one a row and a column.")
    side, foot = [_short_label(row) for row in rows], [_short_label(col) for col in cols]
    left = 0.3 + _inches(side)
    cell = max(0.8, (6.5 - left) / len(cols))
    turned = _inches(foot) > cell - 0.04
    key = f"Shade: size, the fullest is {_signed(np.abs(values).max())[1:]}. Blue: positive. Orange, hatched: negative."
    bottom = 0.15 + (_inches(foot) if turned else 0.15 * max(label.count("\n") + 1 for label in foot))
    width = left + cell * len(cols) + 0.2
    fig, ((axes,),) = _canvas(width, 0.4 * len(rows), f"{caption} {key}", left=left, right=0.2, top=0.45, bottom=bottom)
    _cells(axes, values)
    axes.set_xticks(range(len(cols)), foot, rotation=90 if turned else 0)
    axes.set_yticks(range(len(rows)), side)
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    fig.text(0.012, 1 - 0.1 / fig.get_figheight(), title, va="top", fontsize=11, color=INK)
    return fig


def _cells(axes: Axes, values: Floats) -> None:
    shades = HEAT(0.5 + 0.5 * values / (np.abs(values).max() or 1.0))
    for (i, j), value in np.ndenumerate(values):
        shade, hatch = to_hex(shades[i, j]), "//" if value < 0 else ""
        axes.add_patch(Rectangle((j - 0.48, i - 0.46), 0.96, 0.92, fc=shade, ec=HATCH, lw=0, hatch=hatch))
        box = {"boxstyle": "square,pad=0.12", "facecolor": shade, "edgecolor": "none"}  # keeps the hatch off the number
        axes.text(j, i, _signed(value), ha="center", va="center", fontsize=8.5, color="black", bbox=box)
    axes.set_xlim(-0.5, values.shape[1] - 0.5)
    axes.set_ylim(values.shape[0] - 0.5, -0.5)


def _signed(value: float) -> str:
    """Two significant digits with a sign that no one overlooks: "+0.10", "−12", "+1.5e−5", "0"."""
    if value == 0:
        return "0"
    return _plain(f"{value:+#.2g}".rstrip("."))


def _plain(number: str) -> str:
    """1e-05 as 1e−5, with a minus that no one overlooks."""
    return number.replace("e-0", "e-").replace("e+0", "e+").replace("-", "−")


def _short_label(label: str) -> str:
    """At most two lines of at most 28 characters."""
    return textwrap.fill(textwrap.shorten(label, 54, placeholder=" …"), 28, break_on_hyphens=False)


def _inches(labels: Sequence[str]) -> float:
    """About the width of the widest line at 9 points: a character takes 0.075 inches."""
    return 0.075 * max(len(line) for label in labels for line in label.split("\n"))


def _row_texts(values: Floats, rows: Sequence[str], cols: Sequence[str]) -> str:
    """Of each row its least and its greatest cell, for alt texts."""
    texts = []
    for label, row in zip(rows, values, strict=True):
        low, high = int(row.argmin()), int(row.argmax())
        texts.append(f"{label}: from {_signed(row[low])} ({cols[low]}) to {_signed(row[high])} ({cols[high]}).")
    return " ".join(texts)


# --- axes and numbers -------------------------------------------------------------------------------------------------


def _canvas(
    width: float, height: float, caption: str, left: float = 0.75, right: float = 0.25, top: float = 0.35,
    bottom: float = 0.65, rows: int = 1, cols: int = 1, gap: float | tuple[float, float] = 0.0,
    sharex: bool = False, sharey: bool = False,
) -> tuple[Figure, np.ndarray]:  # fmt: skip
    """A figure and its axes (rows, cols), which take `height` inches in all, gaps included, of a figure `width` wide.

    Margins and gaps are in inches; below `bottom`, which is for ticks and labels, the caption has the room it needs.
    """
    lines = textwrap.wrap(caption, int(12.3 * width), break_on_hyphens=False)
    foot = bottom + 0.2 + 0.15 * len(lines)
    total = height + top + foot
    fig = Figure(figsize=(width, total))
    across, down = gap if isinstance(gap, tuple) else (gap, gap)
    spaces = {
        "wspace": across / ((width - left - right - across * (cols - 1)) / cols),
        "hspace": down / ((height - down * (rows - 1)) / rows),
    }
    edges = {"left": left / width, "right": 1 - right / width, "bottom": foot / total, "top": 1 - top / total}
    axes = fig.subplots(rows, cols, squeeze=False, gridspec_kw=spaces | edges, sharex=sharex, sharey=sharey)
    _caption(fig, "\n".join(lines))
    return fig, axes


def _identity(axes: Axes, low: float, high: float) -> None:
    """The same limits and ticks on both axes, a little wider than [low, high], and the line on which y is x."""
    pad = 0.06 * (high - low)
    axes.set_xlim(low - pad, high + pad)
    axes.set_ylim(low - pad, high + pad)
    axes.plot([low, high], [low, high], color=INK, ls=":", lw=1.4, zorder=1)
    _linear_axis(axes.xaxis)
    _linear_axis(axes.yaxis)


def _linear_axis(axis: Axis) -> None:
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _plain(f"{value:.3g}")))


def _log_axis(axes: Axes, which: str, values: Floats, most: int = 9) -> None:
    """A log scale a little wider than the values, with two to `most` ticks of one or, on short spans, of 1, 2 and 5."""
    if not (values > 0).all():
        raise UserError("A log scale has no zero and no negative number: leave those out, or draw on a linear scale.")
    low, high = float(values.min()), float(values.max())
    pad = max(1.2, (high / low) ** 0.06)
    low, high = low / pad, high * pad
    marks = (1, 2, 5) if high < 200 * low else (1,)
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    every = [mark * 10.0**p for p in powers for mark in marks]
    if sum(low <= tick <= high for tick in every) < 2:
        low, high = max(t for t in every if t <= low), min(t for t in every if t >= high)
    inside = [tick for tick in every if low <= tick <= high]
    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    _ticks(axes.xaxis if which == "x" else axes.yaxis, inside[:: math.ceil(len(inside) / most)])


def _ticks(axis: Axis, at: Sequence[float]) -> None:
    axis.set_major_locator(FixedLocator(at))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _plain(f"{value:g}")))
    axis.set_minor_locator(NullLocator())


def _numbers(values: ArrayLike, what: str, ndim: int) -> Floats:
    """As an array of `ndim` dimensions; raises UserError if it is empty, of another shape, or holds what is no number."""
    try:
        out = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"The {what} are no table of numbers ({error}): pass an array.") from error
    if out.ndim != ndim or out.size == 0 or not np.isfinite(out).all():
        kind = "table" if ndim == 2 else "list"
        raise UserError(f"The {what}, of shape {out.shape}, are no {kind} of finite numbers: leave out what is not.")
    return out


def _log_points(label: str, x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
    xs, ys = _numbers(x, f"x of {label!r}", 1), _numbers(y, f"y of {label!r}", 1)
    if xs.shape != ys.shape or len(np.unique(xs)) < 2 or min(xs.min(), ys.min()) <= 0:
        raise UserError(f"Series {label!r} has no slope in logs: pass as many x as y, all positive, at two x or more.")
    return xs, ys


def _mirror(title: str, matrix: ArrayLike) -> tuple[Floats, Floats, float]:
    """M[u, v] and M[v, u] for u < v, shape (pairs,) each, and the root mean square of their difference over that of M."""
    m = _numbers(matrix, f"changes of {title!r}", 2)
    if m.shape[0] != m.shape[1] or len(m) < 2:
        raise UserError(f"The changes of {title!r} have shape {m.shape}: pass those of two rows or more by each other.")
    upper = np.triu_indices(len(m), 1)
    x, y = m[upper], m.T[upper]
    size = float(np.sqrt(np.mean([x**2, y**2])))
    if size == 0:
        raise UserError(f"The changes of {title!r} are all zero, so they have no asymmetry: take a larger step.")
    return x, y, float(np.sqrt(np.mean((x - y) ** 2))) / size


def _span_text(values: Floats) -> str:
    return f"{values.min():.1e} to {values.max():.1e}"


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
