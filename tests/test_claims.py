"""The ledger: every claim's rule on runs made by hand where it must hold, fail, stay open or be untested; its text, its page, its command."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace as Made

import pytest
import torch
from fake_runs import dynamics_row, eval_row, record
from hypothesis import given as drawn
from hypothesis import strategies as st

from rftkit import blends, claims, evals, fisher, judged, parity, predict, risks, runs, verdicts
from rftkit.__main__ import main
from rftkit.config import UserError
from rftkit.judged import JUDGES, arms_of, judge
from rftkit.verdicts import Values

ROOT = Path(__file__).parent.parent
SEEDS = (0, 1, 2)


def values(*numbers):
    return Values(dict(enumerate(numbers)), {i: (f"run-s{i}",) for i in range(len(numbers))})


# --- runs by hand: of each kind one maker (method, seed, what it found) -> record ---------------------------------------------


def puzzle(method, seed, found):
    """A run on the jigsaw: points lost, update at which half is solved; 0.9 of the prior at first."""
    lost, step, base, top = (*found, *(5, 30, 0.0, 0.9)[len(found) :])
    prior = 0.9 - lost / 100 - seed / 200
    step += seed
    out = record(method, seed, name=f"{method}-s{seed}")
    middle = [eval_row(step, 0.5, prior)] if top > 0.5 else []
    out.metrics = [eval_row(0, base, 0.9), *middle, eval_row(2 * step, top, prior)]
    return out


def imitator(method, seed, found):
    """A run that goes on from RFT's 40 updates: points lost after them."""
    out = record(method, seed, name=f"{method}-s{seed}", config={"after": {"steps": 40}})
    out.metrics = [eval_row(0, 0.0, 0.9), eval_row(40, 0.1, 0.85), eval_row(100, 0.9, 0.85 - found / 100 - seed / 200)]
    return out


def measured(method, seed, found):
    """Rows of dynamics: the bound by update; or, one number alone, the base perplexity."""
    out = record(method, seed, name=f"{method}-s{seed}")
    bounds = found if isinstance(found, dict) else {0: 1.0}
    residual = 2.0 if isinstance(found, dict) else found - 1
    steps = [dynamics_row(step, bound * (1 + seed / 20), residual=residual) for step, bound in bounds.items()]
    out.metrics = [eval_row(0), *steps]
    return out


def test_lbk_is_followed_until_the_residual_first_falls_below_one():
    """What comes after is not looked at, even where a batch has a larger residual once more."""
    run = measured("sft", 0, {})
    of = {0: (90, 9), 12: (1, 5), 20: (2, 3), 24: (4, 1.2), 28: (1, 0.9), 32: (400, 1.5), 40: (9, 0.1)}
    run.metrics = [dynamics_row(step, bound, residual=residual) for step, (bound, residual) in of.items()]
    assert judged.spread(run) == pytest.approx(4)
    run.metrics = run.metrics[:3]
    assert judged.spread(run) is None  # two are no course


def count(share, n=1000):
    return {"correct": round(share * n), "wrong": n - round(share * n), "unparseable": 0}


def points(method, seed, found):
    """By update (ID, OOD), and on validation where that is another pair; `loss`: where it is lowest; `silent`: groups of equals."""
    out = record(method, seed, name=f"{method}-s{seed}")
    for step, (own, other) in found["at"].items():
        row = eval_row(step)
        shares = {"ten-any": own + seed / 200, "own-face": max(0, other - seed / 200)}
        row["cells"] = {cell: count(share) for cell, share in shares.items()}
        seen = found.get("validation", {}).get(step, other)
        row["validation"] = {"ten-any": count(own), "own-face": count(seen)}
        row["loss"] = dict.fromkeys(shares, 0.1 if step == found.get("loss", 20) else 1.0)
        out.metrics.append(row)
    first, last = list(found["at"])[-2:]
    silent = [{"kind": "train", "step": first + 1, "frac_reward_zero_std": found.get("silent", 0.5)}] if last else []
    out.metrics[-1:-1] = silent
    return out


def healed(start, gain, silent=0.5):
    """RFT from an update of SFT on."""
    return {"at": {start: (0.5, 0.4), start + 100: (0.6, 0.4 + gain)}, "silent": silent}


def summed(method, seed, found):
    """A run of notebook 06 as recorded, the bundled base's evaluation first: shares right at the end, points lost on the way."""
    told = {
        "end": 0.5,
        "five": 0.5,
        "three": 0.5,
        "words": 20.0,
        "lost": 5,
        "top": 0.5,
        "gains": (0.5, 0.5, 0.3, 0.3),
    } | found
    out = record(method, seed, name=f"{method}-s{seed}")
    end, prior = told["end"] + seed / 100, 0.8 - told["lost"] / 100 - seed / 200

    def row(step, share, kept, of):
        made = eval_row(step, share, kept)
        made["levels"] = {"3": count(told["three"]), "5": count(told["five"] + seed / 100)}
        made["sampled"] = {"5": [16] * round(100 * of + seed) + [0] * (100 - round(100 * of + seed))}
        return made | {"words": told["words"] + seed / 10}

    out.metrics = [row(0, 0.0, 0.96, 0.0), row(50, 0.26, 0.8, 0.5)]
    early, late, five, three = told["gains"]
    for step, gain in ((60, early), (280, late)):
        by_level = {"prefix_advantage_level_5": five + seed / 100, "prefix_advantage_level_3": three}
        out.metrics.append(
            {"kind": "train", "step": step, "prefix_advantage": gain + (step < 100) * seed / 100} | by_level
        )
    reached = [(100, 0.35), (200, 0.6)]
    out.metrics += [row(step, share, prior, 0.5) for step, share in reached if share < end]
    out.metrics.append(row(290, end, prior, told["top"]))
    return out


def sequence(method, seed, found):
    """Three tasks in a row: what each gains, how far the first two fall, how the prior changes, percent of the instances kept."""
    told = {"gain": 0.4, "fall": 0.02, "prior": 0.0, "kept": None, "n": 1000} | found
    order, joint = ("x", "y", "z"), method == "seven_joint"
    gain, fall = told["gain"] + seed / 100, told["fall"] + seed / 200
    p = [[0.2] * 3]
    for t in range(1) if joint else range(3):
        last = t == 2 or joint
        p.append(
            [0.2 + (gain - (fall if last and (j < 2 or joint) else 0) if j <= t or joint else 0) for j in range(3)]
        )
    out = record(method, seed, name=f"{method}-s{seed}", config={"order": list(order)})
    for t, row in enumerate(p):
        made = eval_row(10 * t, 0.5, 0.8 + (told["prior"] + seed / 200 if t == len(p) - 1 else 0))
        made["tasks"] = {name: {"correct": round(1000 * max(0, x)), "wrong": 1000 - round(1000 * max(0, x)), "unparseable": 0} for name, x in zip(order, row, strict=True)}  # fmt: skip
        out.metrics.append(made)
        if t:
            card = {"share_kept": told["kept"] / 100 + seed / 100} if told["kept"] else None
            out.metrics.append(
                {"kind": "stage", "step": 10 * t, "task": "joint" if joint else order[t - 1], "card": card}
            )
    return out


def study(seed, found):
    """Of one matrix and of edits; `values`, `median` and `chordal` as multiples of the random update's."""
    told = {"values": 1.0, "change": 0.005, "median": 1.0, "chordal": 1.0, "floor": 1e-6, "chance": 10.0} | found
    off = 1 + seed / 100

    def change(values, angle, chordal):
        side = Made(median=angle, chordal=chordal)
        return Made(values=values, left=side, right=side)

    report = Made(change=change(told["change"] * off, 0.1, 0.5), floor=change(0, told["floor"] * off, 0), chance=(told["chance"] * off,) * 2,
                  null=change(told["change"] / told["values"], 0.1 / (told["median"] * off), 0.5 / (told["chordal"] * off)))  # fmt: skip
    edits = {which: [{"edit": edit, "own-face": count(share + seed / 1000 * (share > 0.15))} for edit, share in some.items()]
             for which, some in found.get("surgery", {}).items()}  # fmt: skip
    return {
        "seed": seed,
        "spectra": {name: {"w": report, "v": None} for name in ("peak to end", "end to RFT")},
        "surgery": edits,
    }


def razor(seed, found):
    """ParityMNIST: points lost at 90 % by arm; the predictors in `by` say them, the others rise from arm to arm, up and down with what is
    lost."""
    lost = {"one": 40, "oracle": 5, "two": 42, "grpo": 4, "grpo_kl": 41} | found.get("lost", {})
    made = [predict.Point("parity", parity.BASE, seed, 0.0, 0.8, {})]
    for i, (arm, at_goal) in enumerate(lost.items()):
        for rate, share, where in (("0.001", 1.5, 20), ("0.001", 2, 60), ("0.003", 2.2, 20)):
            down = share * (at_goal + seed * i / 20)
            told = {
                name: down / 10 if name in found.get("by", ()) else float(i)
                for name in ("forward", "reverse", "weights")
            }
            made.append(
                predict.Point("parity", f"parity_{arm}", seed, down, 0.8 + 0.1 * share, told, f"{rate}, {where}")
            )
    return made


# --- where each claim must hold, and where it must not ------------------------------------------------------------------------

SFT = {"at": {0: (0.0, 0.0), 20: (0.5, 0.4), 320: (0.8, 0.1)}}
FELL = {"at": {0: (0.6, 0.4), 20: (0.5, 0.2), 320: (0.2, 0.5)}, "validation": {20: 0.9}}
FLAT = {"at": {0: (0.0, 0.0), 20: (0.5, 0.4), 320: (0.8, 0.4)}}
WINDOW = {
    f"points_rft_{s}": healed(s, g, q) for s, g, q in ((0, -0.1, 0.9), (20, 0.2, 0.1), (80, 0.2, 0.2), (320, -0.1, 0.8))
}
NO_WINDOW = {f"points_rft_{s}": healed(s, g, q) for s, g, q in ((0, 0.2, 0.9), (20, -0.1, 0.1), (80, -0.1, 0.2), (320, 0.2, 0.8))}  # fmt: skip
DECAY = {"gains": (0.5, 0.2, 0.6, 0.3)}
GROWTH = {"gains": (0.2, 0.5, 0.3, 0.6)}


def risky(seed, found):
    """Risks of updates: two answers a group, each with the same risk, which makes GRPO's twice that of reward minus mean."""
    risk, alone = found.get("risk", 1.0) * (1 + seed / 100), found.get("alone", 1.0) * (1 + seed / 100)

    def group(rewards, norm):
        one = torch.eye(2, dtype=torch.float64)
        return fisher.Group(torch.tensor(rewards).double(), norm**2 * one, risk * one, 1.0, -1.0, task="compose")

    groups = [group([1.0, 0.0], 1.0), group([0.1, 0.0], alone), group([1.0, 0.9], alone)]
    return dict.fromkeys((risks.BASE, risks.AFTER), groups[:1] if "risk" in found else 3 * groups)


def back(**edits):
    known = {"none": 0.1, "swap vectors": 0.1, "swap values": 0.1, "rollback 100 %": 0.1, "random, as long as the swap": 0.1,
             "top 20 %": 0.1, "random 20 %": 0.1, "first quarter": 0.1, "rollback of the first quarter": 0.1}  # fmt: skip
    return {"surgery": {"end to peak": known | {key.replace("_", " "): share for key, share in edits.items()}}}


def on(none, swap, rollback):
    return {"surgery": {"RFT to end": {"none": none, "swap vectors": swap, "rollback 100 %": rollback}}}


RANDOM, HUNDRED, TOP, OTHER = "random, as long as the swap", "rollback 100 %", "top 20 %", "random 20 %"


def better(*others, base=0.5, **more):
    """Prefix-RFT above all of the others, or below them."""
    return ({"sums_prefix": {"end": 0.8}} | {name: {"end": base} for name in others} | more,
            {"sums_prefix": {"end": 0.4}} | {name: {"end": base} for name in others} | more)  # fmt: skip


def more_fm(a, b):
    """Sequence `a` forgets less than `b`, or more."""
    less, much = {"fall": 0.02}, {"fall": 0.3}
    return {f"seven_{a}": less, f"seven_{b}": much}, {f"seven_{a}": much, f"seven_{b}": less}


CASES = {  # claim: (maker, where it holds, where it does not)
    "P1-C2": (puzzle, {"rft": (5, 30, 0.0, 0.9)}, {"rft": (5, 30, 0.2, 0.3)}),
    "P1-C3": (puzzle, {"sft": (5, 30), "rft": (5, 200)}, {"sft": (5, 200), "rft": (5, 30)}),
    "P1-C4": (puzzle, {"sft": (30,)}, {"sft": (-5,)}),
    "P1-C5": (puzzle, {"rft": (2,), "sft": (30,)}, {"rft": (20,), "sft": (5,)}),
    "P1-C6": (puzzle, {"sft": (40,), "sft_rollouts": (10,), "rft": (5, 200)}, {"sft": (10,), "sft_rollouts": (40, 300), "rft": (5, 100)}),
    "P1-C7 near": (puzzle, {"sft": (40,), "sft_foreign": (25,), "sft_rollouts": (10,)}, {"sft": (10,), "sft_foreign": (25,), "sft_rollouts": (40,)}),
    "P1-C7 far": (puzzle, {"sft": (40,), "sft_far": (25,), "sft_rollouts": (10,)}, {"sft": (10,), "sft_far": (25,), "sft_rollouts": (40,)}),
    "P1-C8 start": (measured, {"sft": {0: 9.0}, "sft_foreign": {0: 3.0}, "sft_rollouts": {0: 1.0}}, {"sft": {0: 1.0}, "sft_foreign": {0: 3.0}, "sft_rollouts": {0: 9.0}}),
    "P1-C8 middle": (measured, {"sft": {16: 9.0, 36: 9.0}, "sft_foreign": {20: 3.0}, "sft_rollouts": {20: 1.0}}, {"sft": {20: 1.0, 40: 99.0}, "sft_foreign": {20: 3.0}, "sft_rollouts": {20: 9.0}}),
    "P1-C8 settles": (measured, {m: {0: 99.0, 12: 1.0, 20: 2.0, 30: 1.5} for m in judged.SOURCES}, {m: {12: 1.0, 20: 20.0, 30: 9.0} for m in judged.SOURCES}),
    "P1-C9 order": (measured, {"sft_rollouts": 10.0, "sft_foreign": 50.0, "sft_far": 60.0}, {"sft_rollouts": 70.0, "sft_foreign": 50.0, "sft_far": 80.0}),
    "P1-C11": (puzzle, {"sft_early": (5,), "rft": (4,)}, {"sft_early": (30,), "rft": (4,)}),
    "P1-C12": (puzzle, {"sft_x3": (40,), "sft_rollouts_x3": (4,)}, {"sft_x3": (20,), "sft_rollouts_x3": (50,)}),
    "04-gap": (puzzle, {"sft_rft_lr": (20,), "rft": (5,)}, {"sft_rft_lr": (5,), "rft": (20,)}),
    "04-data": (puzzle, {"sft_rft_lr": (20,), "sft_rollouts_x0.1": (5,)}, {"sft_rft_lr": (5,), "sft_rollouts_x0.1": (20,)}),
    "04-once": (imitator, {"self_once": 30, "self_fresh": 8}, {"self_once": 1, "self_fresh": 20}),
    "H1": (points, {"points_sft": SFT}, {"points_sft": FELL}),
    "H2": (points, {"points_sft": SFT | {"loss": 320}}, {"points_sft": SFT}),
    "H3": (points, {"points_sft": SFT, "points_rft_320": {"at": {320: (0.8, 0.1), 420: (0.8, 0.3)}}}, {"points_sft": FELL, "points_rft_320": {"at": {320: (0.8, 0.5), 420: (0.8, 0.4)}}}),
    "H4": (points, WINDOW, NO_WINDOW),
    "H5": (points, WINDOW, NO_WINDOW),
    "H6": (study, {"values": 0.5}, {"values": 2.0, "change": 0.05}),
    "H7": (study, {"median": 2.0, "chordal": 2.0}, {"median": 0.5, "chordal": 0.5, "floor": 0.2, "chance": 0.4}),
    "H8": (study, back(swap_vectors=0.5, **{HUNDRED: 0.3}), back(swap_vectors=0.05, swap_values=0.5, **{RANDOM: 0.5})),
    "H9": (study, back(swap_vectors=0.5, first_quarter=0.5, **{TOP: 0.5}),
           back(swap_vectors=0.05, first_quarter=0.0, **{TOP: 0.0, OTHER: 0.5, "rollback of the first quarter": 0.4})),
    "H10": (study, on(0.6, 0.2, 0.4), on(0.3, 0.5, 0.4)),
    "C1": (points, {"points_sft": SFT, "points_sft_diverse": FLAT}, {"points_sft": FLAT, "points_sft_diverse": SFT}),
    "B1": (summed, {"sums_prefix": {"end": 0.8, "five": 0.8}, "sums_rft": {}}, {"sums_prefix": {"end": 0.4, "five": 0.3}, "sums_rft": {}}),
    "B2": (summed, *better("sums_sft")),
    "B3": (summed, {"sums_rft": {"end": 0.8}, "sums_rl_sft": {}, "sums_rl_more_sft": {}}, {"sums_rft": {"end": 0.4}, "sums_rl_sft": {}, "sums_rl_more_sft": {}}),
    "B4": (summed, *better("sums_sft_rft", "sums_luffy", "sums_uft")),
    "B5": (summed, {"sums_prefix": {"end": 0.8}, "sums_frozen": {}, "sums_rft": {}}, {"sums_prefix": {"end": 0.8}, "sums_frozen": {"end": 0.9}, "sums_rft": {}}),
    "B6": (summed, *better("sums_constant_001", "sums_constant_01", "sums_constant_1")),
    "B7": (summed, {"sums_prefix": {"end": 0.8}, **{f"sums_{x}": {"words": 30.0} for x in ("all_tokens", "top_50", "top_80", "random", "lowest")}},
           {"sums_prefix": {"end": 0.4}, **{f"sums_{x}": {} for x in ("all_tokens", "top_50", "top_80", "random", "lowest")}}),
    "B8": (summed, {"sums_clip_free": {"end": 0.45}, "sums_rft": {}}, {"sums_clip_free": {"end": 0.6}, "sums_rft": {}}),
    "B9": (summed, *better("sums_uniform", "sums_fixed")),
    "B10": (summed, {"sums_prefix": {"end": 0.9}, "sums_rft": {}, "sums_demos_10": {"end": 0.88}, "sums_demos_1": {"end": 0.8}},
            {"sums_prefix": {"end": 0.9}, "sums_rft": {}, "sums_demos_10": {"end": 0.6}, "sums_demos_1": {"end": 0.55}}),
    "B11": (summed, {"sums_rft": {}, "sums_weak": {"end": 0.8}, "sums_practised": {"end": 0.9}}, {"sums_rft": {}, "sums_weak": {"end": 0.4}, "sums_practised": {"end": 0.9}}),
    "B12": (summed, {"sums_prefix": DECAY, "sums_fixed": DECAY}, {"sums_prefix": GROWTH, "sums_fixed": GROWTH}),
    "B13": (summed, {"sums_prefix": {"top": 0.9}, "sums_rft": {"top": 0.4}}, {"sums_prefix": {"top": 0.4}, "sums_rft": {"top": 0.9}}),
    "B14": (summed, {"sums_sft": {"five": 0.8, "three": 0.5}, "sums_rft": {"five": 0.3, "three": 0.9}}, {"sums_sft": {"five": 0.3, "three": 0.9}, "sums_rft": {"five": 0.8, "three": 0.5}}),
    "F1": (summed, {"sums_sft": {"lost": 40, "end": 0.9}, "sums_prefix": {"lost": 5, "end": 0.8}}, {"sums_sft": {"lost": 5, "end": 0.9}, "sums_prefix": {"lost": 40, "end": 0.8}}),
    "F2": (summed, {"sums_rft": {"lost": 20}, "sums_prefix": {"lost": 5}}, {"sums_rft": {"lost": 5}, "sums_prefix": {"lost": 20}}),
    "F3": (summed, {"sums_practised": {"lost": 5}, "sums_wordy": {"lost": 20}, "sums_foreign": {"lost": 30}}, {"sums_practised": {"lost": 40}, "sums_wordy": {"lost": 20}, "sums_foreign": {"lost": 30}}),
    "F4": (puzzle, {"jigsaw_sft": (40,), "jigsaw_prefix": (20,), "jigsaw_rft": (5,)}, {"jigsaw_sft": (5,), "jigsaw_prefix": (20,), "jigsaw_rft": (40,)}),
    "A1": (sequence, {"seven_sft": {"fall": 0.3}}, {"seven_sft": {}}),
    "A2": (sequence, {"seven_sft": {"fall": 0.3}, "seven_grpo": {}, "seven_joint": {}}, {"seven_sft": {"gain": 0.5}, "seven_grpo": {"gain": 0.03, "fall": 0.3}, "seven_joint": {}}),
    "A3": (sequence, {"seven_sft": {"fall": 0.3}, "seven_rloo": {}, "seven_remax": {}}, {"seven_sft": {}, **{f"seven_{x}": {"gain": 0.02, "fall": 0.3} for x in ("rloo", "remax")}}),
    "A4": (sequence, {"seven_sft": {"prior": -0.3}, "seven_grpo": {}}, {"seven_sft": {}, "seven_grpo": {"prior": -0.3}}),
    "A5": (sequence, {"seven_joint": {"prior": -0.3}}, {"seven_joint": {"prior": 0.05}}),
    "A6": (sequence, {"seven_sft": {"fall": 0.3}, "seven_grpo": {}, "seven_grpo_no_kl": {}, "seven_grpo_previous": {}},
           {"seven_sft": {}, "seven_grpo": {}, "seven_grpo_no_kl": {"gain": 0.02, "fall": 0.3}, "seven_grpo_previous": {"fall": 0.3}}),
    "A7": (sequence, {"seven_sft_direct": {"fall": 0.3}, "seven_grpo": {}, "seven_grpo_direct": {}}, {"seven_sft_direct": {}, "seven_grpo": {}, "seven_grpo_direct": {"gain": 0.02, "fall": 0.3}}),
    "A8": (risky, {"risk": 0.6}, {"risk": 8.0}),
    "A9": (risky, {"alone": 0.02}, {"alone": 0.5}),
    "A10": (sequence, {"seven_rif": {"kept": 60, "gain": 0.5}, "seven_grpo": {"gain": 0.5}, "seven_rif_random": {}},
            {"seven_rif": {"kept": 95, "fall": 0.3}, "seven_grpo": {"gain": 0.5}, "seven_rif_random": {}}),
    "07-rate": (sequence, *more_fm("grpo", "sft_rft_lr")),
    "07-updates": (sequence, *more_fm("grpo", "sft_same_updates")),
    "07-self": (sequence, {"seven_self": {}, "seven_sft": {"fall": 0.3}}, {"seven_self": {"gain": 0.02, "fall": 0.3}, "seven_sft": {}}),
    "07-order": (sequence, *more_fm("grpo_b", "sft_b")),
    "07-remedies": (sequence, {"seven_sft": {"fall": 0.5}, "seven_replay": {"fall": 0.3}, "seven_l2": {"fall": 0.3}, "seven_grpo": {}},
                    {"seven_sft": {}, "seven_replay": {"fall": 0.3}, "seven_l2": {"fall": 0.3}, "seven_grpo": {"fall": 0.5}}),
    "R1": (razor, {"by": ("forward",)}, {"by": ("weights",)}),
    "R2": (razor, {"lost": {"one": 40, "two": 20, "grpo": 10, "oracle": 9}}, {"lost": {"one": 10, "two": 20, "grpo": 30, "oracle": 5}}),
    "R3": (razor, {"by": ("forward",)}, {"by": ("weights",)}),
    "R4": (razor, {"by": ("forward", "reverse")}, {"by": ("reverse",)}),
    "R5": (razor, {"lost": {"reinforce": 6}}, {"lost": {"reinforce": 30}}),
    "R6": (razor, {"lost": {"teacher": 6}}, {"lost": {"teacher": 30}}),
}  # fmt: skip


def given(name, of_seed):
    """What a claim is judged by: seed -> 1 where it holds, 2 where it does not."""
    maker = CASES[name][0]
    if maker is study:
        return {"arms": {}, "studies": [study(seed, CASES[name][which]) for seed, which in of_seed.items()]}
    if maker is razor:
        return {"arms": {}, "points": [p for seed, which in of_seed.items() for p in razor(seed, CASES[name][which])]}
    if maker is risky:
        return {"arms": {}, "risks": {seed: risky(seed, CASES[name][which]) for seed, which in of_seed.items()}}
    made = [
        maker(method, seed, found) for seed, which in of_seed.items() for method, found in CASES[name][which].items()
    ]
    return {"arms": arms_of(made)}


def test_a_run_that_never_arrives_is_the_slowest():
    def values(name, steps, missed=()):
        return Values(dict(enumerate(steps)), {i: (f"{name}-s{i}",) for i in range(len(steps))}, missed)

    slow = values("rft", (100, 120, 140))
    assert verdicts.before("", values("sft", (20, 30, 40)), slow).verdict == "yes"
    assert verdicts.before("", values("sft", (20, 30, 40), ("sft-s3",)), slow).verdict == "open"
    assert verdicts.before("", slow, values("sft", (20, 30, 40))).verdict == "no"
    assert verdicts.before("", slow, values("sft", (20, 30, 40), ("sft-s3",))).verdict == "open"


def test_a_kernel_that_was_not_measured_is_none():
    row = {"kind": "dynamics", "step": 0, "bound": {"color": 2.0, "count": 8.0}}
    record = runs.RunRecord("sft-s0", "sft", "tiny", 0, {}, metrics=[row])
    assert judged.kernel(record, lambda step: True) == pytest.approx(4.0)
    on_gpu = runs.RunRecord("sft-s0", "sft", "qlora", 0, {}, metrics=[{**row, "bound": {"color": None, "count": None}}])
    assert judged.kernel(on_gpu, lambda step: True) is None


every_claim = pytest.mark.parametrize("name", CASES)


def test_each_rule_has_its_case():
    assert CASES.keys() == JUDGES.keys()


@every_claim
def test_it_holds_where_every_part_does(name):
    parts = judge(name, **given(name, dict.fromkeys(SEEDS, 1)))
    assert [p.text for p in parts if p.verdict != "yes"] == []
    assert (verdicts.standing(parts), verdicts.word(parts)) == ("holds", "reproduced")
    assert all(p.seeds == SEEDS and p.runs and not p.values.missed for p in parts)


@every_claim
def test_it_does_not_hold_where_no_part_does(name):
    parts = judge(name, **given(name, dict.fromkeys(SEEDS, 2)))
    assert [p.text for p in parts if p.verdict == "yes"] == []
    assert verdicts.standing(parts) == "does not hold"
    assert verdicts.word(parts) == ("contradicted" if any(p.opposed for p in parts) else "not at this scale")


@every_claim
def test_two_seeds_decide_nothing(name):
    parts = judge(name, **given(name, {0: 1, 1: 1}))
    assert {p.verdict for p in parts} == {"open"} and verdicts.standing(parts) == "open"


@every_claim
def test_a_seed_that_says_the_contrary_leaves_it_open(name):
    parts = judge(name, **given(name, {0: 1, 1: 2, 2: 1}))
    single = ("P1-C2", "P1-C3", "P1-C8 settles", "P1-C9 order")  # where each run counts, one is enough for a no
    assert all(p.verdict == "open" for p in parts) or name in single
    assert not all(p.verdict == "yes" for p in parts)


@every_claim
def test_without_runs_it_is_not_tested(name):
    parts = judge(name, {}, [])
    assert parts and verdicts.standing(parts) == verdicts.word(parts) == "not tested"


# --- rules --------------------------------------------------------------------------------------------------------------------


def as_in_the_notebooks(says, values, limit=0.0, sign=1, contrary=None, form="+.1f"):
    """`part` as notebooks 05 to 07 have it."""
    if len(values) < 3:
        return f"{says}: {', '.join(f'{v:{form}}' for v in values) or 'no value'}; fewer than three seeds, open"
    mean, lo, hi = evals.t_interval(values)
    other = limit if contrary is None else contrary
    yes, no = (lo > limit, hi < other) if sign > 0 else (hi < limit, lo > other)
    word = "open" if yes == no else "yes" if yes else "no"
    sense = "" if contrary is None else f" (no if all {'below' if sign > 0 else 'above'} {contrary:g})"
    return f"{says}{sense}: {mean:{form}} ({lo:{form}} to {hi:{form}}), {word}"


NUMBER = r"[+-]\d+\.\d"
tenths = st.integers(-200, 200).map(lambda x: x / 10)


@drawn(
    st.lists(tenths, max_size=6),
    st.sampled_from([-5.0, 0.0, 2.0]),
    st.sampled_from([1, -1]),
    st.sampled_from([None, 2.0, -2.0]),
)
def test_a_part_is_judged_as_the_notebooks_judge_it(numbers, limit, sign, contrary):
    found, theirs = (f("x", some, limit, sign, contrary) for f, some in ((verdicts.part, values(*numbers)), (as_in_the_notebooks, numbers)))  # fmt: skip
    (ours, read), (wanted, there) = (
        (re.sub(NUMBER, "#", text.rpartition(": ")[2]), re.findall(NUMBER, text)) for text in (found.text, theirs)
    )
    if len(set(numbers)) > 1:  # of equal ones the last bits may say that they differ from 0
        assert (found.text.rpartition(": ")[0], ours) == (theirs.rpartition(": ")[0], wanted)
        assert [float(x) for x in read] == pytest.approx([float(x) for x in there], abs=0.11)  # halves round either way


def test_a_no_for_too_small_an_advantage_contradicts_nothing():
    small = verdicts.part("x", values(0.1, -0.1, 0.05), contrary=2.0)
    against = verdicts.part("x", values(-1.0, -1.1, -0.9), contrary=2.0)
    assert (small.verdict, small.opposed, verdicts.word([small])) == ("no", False, "not at this scale")
    assert (against.verdict, against.opposed, verdicts.word([against])) == ("no", True, "contradicted")


def test_standings():
    yes, no, open_ = (verdicts.part("x", values(*x)) for x in ((1, 1.1, 1.2), (-1, -1.1, -1.2), (-1, 1, 0.5)))
    assert [verdicts.standing(x) for x in ([yes], [yes, no], [no, open_], [yes, open_], [], [verdicts.part("x", values())])] == [
        "holds", "in part", "does not hold", "open", "not tested", "not tested"
    ]  # fmt: skip
    assert verdicts.word([yes, no]) == "reproduced in part"
    assert verdicts.decisive([yes, no, open_]) == [no] and verdicts.decisive([yes, open_]) == [open_]
    assert verdicts.decisive([yes]) == [yes]


def test_a_logarithmic_part_has_the_interval_of_quotients():
    found = verdicts.part("x", values(2.0, 4.0, 8.0), 1.0, form=".2g", log=True)
    assert found.interval.mean == pytest.approx(4.0)
    assert found.interval.hi / 4 == pytest.approx(4 / found.interval.lo)
    assert found.verdict == "open" and found.interval.lo < 1


def test_an_advantage_that_is_sure_but_small_stays_open():
    assert verdicts.part("x", values(0.9, 1.0, 1.1), contrary=2.0).verdict == "open"


def test_within_asks_for_both_sides():
    told = [
        verdicts.within("x", values(*x), 2.0).verdict
        for x in ((0.1, 0.2, 0.0), (3.0, 3.1, 3.2), (-3.0, -3.1, -3.2), (-3, 3, 0))
    ]
    assert told == ["yes", "no", "no", "open"]


def test_rounding_dust_decides_nothing():
    found = verdicts.part("x", values(1e-17, 1e-17, 1e-17))
    assert (found.verdict, found.told) == ("open", "+0.0 (+0.0 to +0.0)")
    assert verdicts.part("x", values(-1e-17, -1e-17, -1e-17)).told == found.told


def test_a_run_that_missed_the_matched_accuracy_cannot_enter():
    made = [puzzle("sft", seed, (30, 30, 0.0, 0.9 if seed else 0.3)) for seed in range(4)]
    (found,) = judge("P1-C4", arms_of(made))
    assert found.seeds == (1, 2, 3) and found.values.missed == ("sft-s0",) and "sft-s0" not in found.runs
    (nothing,) = judge("P1-C4", arms_of(made[:1]))
    line = claims.Line(claims.load_claims()[3], (nothing,))
    assert (
        line.standing == "not tested"
        and line.why == "these did not get where it is compared, so no pair is left: SFT answer-only, seed 0"
    )


def test_the_target_and_the_reading_of_fm_may_be_others():
    arms = given("P1-C4", dict.fromkeys(SEEDS, 1))["arms"]
    assert "at 25%" in judge("P1-C4", arms, target=0.25)[0].text
    low, high = (judge("P1-C4", arms, target=t)[0].interval.mean for t in (0.25, 0.5))
    assert low == pytest.approx(high / 2)
    arms = given("A1", dict.fromkeys(SEEDS, 1))["arms"]
    first, second = (judge("A1", arms, reading=(normaliser, "all"))[0].interval.mean for normaliser in ("T", "T-1"))
    assert second == pytest.approx(1.5 * first)


def test_on_paritymnist_arms_are_compared_at_the_goal_and_a_seed_that_misses_it_cannot_enter():
    points = given("R5", dict.fromkeys(range(4), 1))["points"]
    (found,) = judge("R5", {}, points=points)
    assert found.seeds == (0, 1, 2, 3) and found.runs == tuple(f"parity-s{s}" for s in range(4))
    assert found.values.of[2] == pytest.approx(6 + 2 * 5 / 20 - (4 + 2 * 3 / 20))
    (nearer,) = judge("R5", {}, points=points, goal=0.85)
    assert nearer.interval.mean == pytest.approx(found.interval.mean / 2) and "at 85%" in nearer.says
    lame = [replace(p, gained=0.8) if (p.seed, p.method) == (1, "parity_reinforce") else p for p in points]
    (rest,) = judge("R5", {}, points=lame)
    assert rest.seeds == (0, 2, 3) and rest.values.missed == ("parity-s1",)


def test_unfinished_runs_and_short_ones_stay_out():
    whole = summed("sums_prefix", 0, {})
    short = replace(whole, seed=1, metrics=whole.metrics[:-1])
    assert arms_of([whole, short, replace(whole, seed=2, status="running")]) == {
        "sums_prefix": {0: blends.from_base(whole)}
    }


def test_runs_that_cannot_be_judged_together_are_refused():
    one = puzzle("sft", 0, (5,))
    with pytest.raises(UserError, match=r"Seed 0 of 'sft' comes twice"):
        arms_of([one, one])
    with pytest.raises(UserError, match=r"share no verdict"):
        arms_of([one, replace(one, preset="qlora")])
    with pytest.raises(UserError, match=r"No run record decides 'P1-C10': ask for one of P1-C2"):
        judge("P1-C10", {})
    bare = replace(summed("sums_prefix", 0, {}), metrics=[{k: v for k, v in r.items() if k != "levels"} for r in summed("sums_prefix", 0, {}).metrics])  # fmt: skip
    with pytest.raises(UserError, match=r"Run 'sums_prefix-s0' lacks what it is judged by \(KeyError\('levels'\)\)"):
        judge("B1", arms_of([bare, summed("sums_rft", 0, {})]))


# --- the texts ------------------------------------------------------------------------------------------------------------------

IDS = [*(f"P1-C{i}" for i in range(1, 14)), *(f"P2-C{i}" for i in range(1, 10)), *(f"H{i}" for i in range(1, 11)), "C1",
       *(f"B{i}" for i in range(1, 15)), *(f"F{i}" for i in range(1, 5)), *(f"A{i}" for i in range(1, 11)), *(f"R{i}" for i in range(1, 7))]  # fmt: skip
RAW = claims._texts()
CONTROLS = {name for name in JUDGES if name[0].isdigit()}


def test_every_claim_of_the_papers_is_here_or_left_out_with_a_reason():
    entries = [entry["id"] for entry in RAW["claim"]]
    assert len(set(entries)) == len(entries)
    whole = {name.split()[0] for name in entries} - CONTROLS  # "P1-C7 near" is a part of P1-C7
    assert whole | RAW["left_out"].keys() == set(IDS) and not whole & RAW["left_out"].keys()
    assert all(len(reason) > 20 for reason in RAW["left_out"].values())


@pytest.mark.parametrize("claim", claims.load_claims(), ids=lambda c: c.id)
def test_an_entry_is_whole(claim):
    assert all(getattr(claim, field.name) for field in fields(claim) if field.name != "live")
    assert bool(claim.live) == (claim.id not in JUDGES), "either run records decide it, or a reason says why not"
    assert set(claim.expected) == {"tiny", "full"} and re.fullmatch(r"\d{4}\.\d{5}|ours", claim.paper)
    there = sorted(path.stem for path in (ROOT / "notebooks").glob("0*.ipynb"))
    assert claim.notebook in there or claim.notebook[:2] > there[-1][:2]
    prefix = (
        next(p for p in sorted(RAW["papers"], key=len, reverse=True) if claim.id.startswith(p))
        if claim.id not in CONTROLS
        else ""
    )
    assert not prefix or RAW["papers"][prefix].split(",")[0] == claim.paper
    assert re.search(r"\[[A-Z2]", claim.numbers) or "not found" in claim.numbers or claim.numbers == "not measured", (
        "a grade"
    )


def test_no_number_of_ours_is_typed():
    known = {field.name for field in fields(claims.Claim)}
    for entry in RAW["claim"]:
        assert entry.keys() <= known
        own = [entry[key] for key in ("statement", "matched", "control")] + list(entry["expected"].values())
        assert not any(re.search(r"\d\.\d", text) for text in own), "a measured number, by its look"


# --- the ledger of the recorded runs ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded():
    return claims.recorded()


def test_nothing_passes_on_fewer_than_three_seeds(recorded):
    decided = [p for line in recorded for p in line.parts if p.verdict != "open"]
    assert decided and min(len(p.seeds) for p in decided) >= 3


def test_a_claim_reproduced_in_part_shows_what_is_and_what_is_not(recorded):
    rows = {
        row.split(" | ")[0].strip("| "): row for row in claims.markdown(recorded).splitlines() if row.startswith("| ")
    }
    mixed = [rows[line.claim.id] for line in recorded if line.standing == "in part"]
    assert mixed
    assert all(re.search(r", yes\b", row) and re.search(r", no\b", row) for row in mixed)


def test_each_line_names_files_that_ship(recorded):
    for line in recorded:
        assert all((runs.RECORDED_DIR / name).is_file() for name in line.files)
        assert bool(line.files) == (line.standing != "not tested")
        assert (line.why != "") == (line.standing == "not tested")


def test_the_recorded_table_agrees_with_the_readmes(recorded):
    """`arms.results` has the same number by other code."""
    lost = next(line for line in recorded if line.claim.id == "P1-C4").parts[0].interval
    assert f"| {lost.mean:.1f} | {lost.lo:.1f} to {lost.hi:.1f} |" in (ROOT / "README.md").read_text()


# --- the command ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shelf(tmp_path):
    """A folder of three runs of SFT and of RFT."""
    for name in ("P1-C3", "P1-C4"):
        for seed in SEEDS:
            for method, found in CASES[name][1].items():
                runs.save_record(puzzle(method, seed, found), tmp_path / f"tiny-{method}-s{seed}.json")
    return tmp_path


def test_the_terminal_shows_parts_seeds_and_files(shelf, capsys):
    assert main(["claims", "--runs", str(shelf), "--only", "02"]) == 0
    out = capsys.readouterr().out
    assert "P1-C4, reproduced: Answer-only SFT forgets badly" in out
    assert re.search(
        r"- points lost by SFT at 50%, above 5: \+30\.5 \(\+29\.3 to \+31\.7\), yes \[seeds 0, 1, 2\]", out
    )
    assert "from tiny-sft-s{0,1,2}.json, tiny-rft-s{0,1,2}.json" in out
    assert "because our probes measure what is kept, not what is gained" in out
    assert out.endswith("5 entries: 3 reproduced, 1 open, 1 not tested.\n")
    assert max(map(len, out.splitlines())) <= claims.WIDTH


def test_json_holds_everything(shelf, capsys):
    assert main(["claims", "--runs", str(shelf), "--json"]) == 0
    found = {line["id"]: line for line in json.loads(capsys.readouterr().out)}
    assert found["P1-C4"]["word"] == "reproduced" and found["P1-C4"]["files"] == [f"tiny-sft-s{s}.json" for s in SEEDS]
    (part,) = found["P1-C4"]["parts"]
    assert (
        part["values"] == pytest.approx({"0": 30.0, "1": 30.5, "2": 31.0})
        and part["limit"] == 5
        and part["side"] == "above"
    )
    assert found["B1"]["parts"][0]["mean"] is None and found["P1-C10"]["why"].startswith("live only")


def test_a_page_is_written_and_checked(shelf, capsys):
    page = shelf / "page.md"
    page.write_text(f"# Before\n{claims.BEGIN}\nold\n{claims.END}\nAfter | it\n")
    at = ["--runs", str(shelf)]
    assert main(["claims", *at, "--check", str(page)]) == 1
    assert "- old" in capsys.readouterr().err
    assert main(["claims", *at, "--write", str(page)]) == 0
    text = page.read_text()
    assert (
        text.startswith("# Before\n<!-- ledger")
        and text.endswith(f"{claims.END}\nAfter | it\n")
        and "| P1-C4 |" in text
    )
    assert main(["claims", *at, "--check", str(page)]) == 0
    page.write_text(text.replace("+30.5", "+99.9"))
    capsys.readouterr()
    assert main(["claims", *at, "--check", str(page)]) == 1
    err = capsys.readouterr().err
    assert "run `python -m rftkit claims --write" in err and "+99.9" in err and "+30.5" in err


def test_the_markdown_is_one_table(shelf):
    lines = claims.markdown(claims.ledger(*claims.load_runs(shelf))).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + len(claims.load_claims()) and {row.count("|") for row in rows} == {7}
    assert "<" not in "".join(rows) and lines[-1].startswith(f"{len(claims.load_claims())} entries: ")


def test_a_notebook_shows_each_claim_and_each_of_its_parts(shelf):
    lines = claims.ledger(claims.load_runs(shelf)[0], only="02")
    said, parts, note, size = claims.tables(lines).split("\n\n")
    assert [row.split(" | ")[0][2:] for row in said.splitlines()[2:]] == [line.claim.id for line in lines]
    assert "| not tested: our probes measure what is kept, not what is gained |" in said
    assert "| P1-C4 | points lost by SFT at 50%, above 5 | +30.5 (+29.3 to +31.7) | 0, 1, 2 | yes |" in parts
    assert len(parts.splitlines()) == 2 + sum(len(line.parts) for line in lines)
    assert {row.count("|") for row in said.splitlines()} == {row.count("|") for row in parts.splitlines()} == {6}
    assert note.endswith("which entered nothing: none.") and size == claims.size(lines)
    brief = claims.brief(next(line for line in lines if line.claim.id == "P1-C4"))
    assert brief == "  points lost by SFT at 50%, above 5: +30.5 (+29.3 to +31.7), yes\nP1-C4: reproduced."


def test_a_notebook_names_the_runs_that_have_no_value():
    made = [puzzle("sft", seed, (30, 30, 0.0, 0.9 if seed else 0.3)) for seed in range(4)]
    assert "which entered nothing: SFT answer-only, seed 0." in claims.tables(claims.ledger(arms_of(made), only="02"))


def test_the_ledger_takes_another_target():
    arms = given("P1-C4", dict.fromkeys(SEEDS, 1))["arms"]
    at_half, at_quarter = (
        next(line for line in claims.ledger(arms, only="02", target=t) if line.claim.id == "P1-C4") for t in (0.5, 0.25)
    )
    assert at_quarter.parts[0].interval.mean == pytest.approx(at_half.parts[0].interval.mean / 2)


NOTEBOOKS = [path for path in sorted((ROOT / "notebooks").glob("0*.ipynb")) if path.name[:2] in claims._notebooks()[1:]]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_takes_its_verdicts_from_the_ledger(path):
    code = "\n".join("".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code")
    assert "claims.tables(claims.ledger(" in code or "claims.tables(lines)" in code
    assert re.search(rf'claims\.ledger\([^\n]*"{path.name[:2]}"', code)
    assert not re.findall(r"def (standing|part|judge|decisive_parts|verdict)\(", code)
    assert not re.findall(r"\.(?:lo|hi) [<>] ", code), "an interval is judged in the notebook"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--only", "99"], "No claim belongs to a notebook '99': choose one of 01, 02"),
        (["--runs", "nowhere"], "There is no folder nowhere of run records"),
        (["--check", "nowhere.md"], "The page nowhere.md cannot be read"),
        (["--only", "02", "--check", "page.md"], "A page holds the ledger of all notebooks"),
    ],
)
def test_what_is_refused(argv, says, shelf, capsys, monkeypatch):
    monkeypatch.chdir(shelf)
    assert main(["claims", *(() if "--runs" in argv else ("--runs", ".")), *argv]) == 2
    err = capsys.readouterr().err
    assert says in err and re.fullmatch(r"rftkit: [^\n]+\.\n", err)


@pytest.mark.parametrize(
    "text", ["none", f"{claims.END} {claims.BEGIN}", f"{claims.BEGIN} {claims.BEGIN} {claims.END}"]
)
def test_a_page_without_its_markers_is_left_alone(text, shelf, capsys):
    page = shelf / "page.md"
    page.write_text(text)
    assert main(["claims", "--runs", str(shelf), "--write", str(page)]) == 2
    assert "has no place for the ledger" in capsys.readouterr().err and page.read_text() == text


def test_the_readme_shows_the_ledger_of_the_recorded_runs():
    assert main(["claims", "--check", str(ROOT / "README.md")]) == 0, "run `python -m rftkit claims --write README.md`"
