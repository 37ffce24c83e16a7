"""Each figure of recorded runs, made again from the records that ship: the README's to the pixel, the notebooks' by the numbers they say."""

import io
import re
import statistics

import numpy as np
import pytest
from PIL import Image

from rftkit import arms, claims, judged, plots, runs, tasks, two_stage
from rftkit.evals import t_interval

ARMS, STUDIES = claims.load_runs()


def of(*methods):
    return [run for method in methods for run in ARMS[method].values()]


def rft_runs():
    return of(*(name for name in ARMS if re.fullmatch(r"points_rft_\d+", name)))


def rates():
    """As notebook 04 draws them: the arms of a family by rate, and RFT."""
    families = {
        "sft": ("sft_rft_lr", "sft", "sft_x3"),
        "sft_rollouts": ("sft_rollouts_x0.1", "sft_rollouts", "sft_rollouts_x3"),
    }
    return [
        (family, ARMS[name][0].config["lr"], runs.matched_table(of(name), arms.TARGET)[0])
        for family, names in ({"rft": ("rft",)} | families).items()
        for name in names
    ]


def lost(method):
    """Mean and interval of the points lost at the matched accuracy, from the records alone."""
    drops = [found["drop"] for run in of(method) if (found := runs.at_matched(run, arms.TARGET))]
    mean, low, high = t_interval(drops)
    return f"{mean:.1f}, interval {low:.1f} to {high:.1f}"


def solved(step_of, cell):
    return f"{100 * statistics.mean(two_stage.at(run, step_of(run), cell) for run in of('points_sft')):.1f}%"


def edited(edit, cell):
    rows = [next(row for row in study["surgery"]["end to peak"] if row["edit"] == edit)[cell] for study in STUDIES]
    return f"{edit} {100 * statistics.mean(c['correct'] / (c['correct'] + c['wrong'] + c['unparseable']) for c in rows):.1f}%"


def matched(methods):
    return plots.matched_drop(runs.matched_table(of(*methods), arms.TARGET))


FIGURES = {  # of which notebook: the figure, and what it must say
    "02 curves": (lambda: plots.learning_curves(of(*arms.NOTEBOOK_02), arms.TARGET), lambda: [
        f"({seeds(method)} recorded): new task 0% to {statistics.mean(run.evals()[-1]['new_exact'] for run in of(method)):.0%}"
        for method in arms.NOTEBOOK_02
    ]),
    "02 matched": (lambda: matched(arms.NOTEBOOK_02), lambda: [lost(m) for m in arms.NOTEBOOK_02 if m != "rft_kl"]),
    "02 bars": (lambda: plots.verdict_bars(ARMS["sft"][0]), lambda: ["SFT answer-only, seed 0 (recorded)", *(
        f"{name}: 100% correct, 0% unparseable before; {c['correct']}% correct, {c['unparseable']}% unparseable after"
        for name, c in ARMS["sft"][0].evals()[-1]["prior"].items()
    )]),
    "03 kernel": (lambda: plots.kernel_terms(of(*judged.SOURCES)), lambda: [
        f"{plots.style_of(method).label} {statistics.geometric_mean(judged.kernel(run, lambda step: step == 0) for run in of(method)):.1e} to"
        for method in judged.SOURCES
    ]),
    "04 matched": (lambda: matched(arms.NOTEBOOK_04), lambda: [lost(m) for m in arms.NOTEBOOK_04]),
    "04 rates": (lambda: plots.rate_sweep(rates()), lambda: [
        f"at {rate:g} {row.mean:.1f}, interval {row.lo:.1f} to {row.hi:.1f} ({seeds_of(row)} recorded)" for _, rate, row in rates()
    ]),
    "05 cells": (lambda: plots.cells_over_updates(of("points_sft")), lambda: [
        f"solved {solved(lambda run: 0, cell)} to {solved(lambda run: 320, cell)}" for cell in (two_stage.ID, two_stage.OOD)
    ]),
    "05 restoration": (lambda: plots.restoration(of("points_sft"), rft_runs()), lambda: [
        f"from update {start} {100 * statistics.mean(two_stage.at(run, start) for run in of(f'points_rft_{start}')):.1f}%"
        for start in two_stage.PLANS["tiny"].starts
    ]),
    "05 spectra": (lambda: plots.spectra_beside_null([study["spectra"]["peak to end"] for study in STUDIES]), lambda: [
        "down_proj", "v_proj", "Left subspace: median angle (degrees)"
    ]),
    "05 surgery": (lambda: plots.surgery_bars([study["surgery"]["end to peak"] for study in STUDIES]), lambda: [
        edited(edit, cell) for edit in ("none", *two_stage.EDITS) for cell in (two_stage.OOD, two_stage.ID)
    ]),
}  # fmt: skip


def seeds(method):
    return f"seeds {min(ARMS[method])}-{max(ARMS[method])}"


def seeds_of(row):
    return f"seeds {min(row.seeds)}-{max(row.seeds)}"


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_of_recorded_runs_says_what_the_records_say(name):
    figure, says = FIGURES[name]
    told = plots.alt_text(figure())
    assert says() and [text for text in says() if text not in told] == []
    assert "live" not in told


def test_the_readmes_question_is_one_of_the_new_task():
    row = tasks.JIGSAW.row(0, 0)
    readme = (arms.ROOT / "README.md").read_text(encoding="utf-8")
    assert f"`{row.prompt}`" in readme and f"`{row.answer}`" in readme
    assert f"![{plots.alt_text(arms.one_jigsaw())}](course/figures/one_jigsaw.png)" in readme


@pytest.mark.parametrize("name", ["one_jigsaw.png", "matched_drop.png", "sft_vs_rft.png", "rollout_sft.png"])
def test_the_readmes_figures_are_those_of_the_records(name):
    """But for single pixels: fonts are rasterised a little differently from machine to machine."""
    made_of = {"matched_drop.png": "02 matched", "sft_vs_rft.png": "02 curves", "rollout_sft.png": "04 matched"}
    figure = arms.one_jigsaw() if name == "one_jigsaw.png" else FIGURES[made_of[name]][0]()
    made = io.BytesIO()
    figure.savefig(made, dpi=150, transparent=True)
    one, other = (
        np.asarray(Image.open(file).convert("RGBA"), float) for file in (made, arms.ROOT / "course/figures" / name)
    )
    assert one.shape == other.shape
    assert (np.abs(one - other).max(axis=-1) > 64).mean() < 0.002
