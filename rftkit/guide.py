"""Which method for which need: advice, and beside each piece what was measured here, computed from run records.

The table of course/guide.md and of notebook 08. A piece of advice is a comparison of two arms, or a part of a claim of the ledger;
`python -m rftkit guide --write course/guide.md` renews the page. Nothing here says that the advice is good: the last column does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rftkit import claims, judged, runs
from rftkit.config import PRESETS, UserError
from rftkit.judged import Given
from rftkit.verdicts import SEEDS, Part, Values, part

BEGIN, END = "<!-- guide: made by `python -m rftkit guide --write`, do not edit -->", "<!-- end of guide -->"
HEADER = (
    "what you have",
    "what to do",
    "instead of",
    "seen on (notebook)",
    "points kept by it (95 % over seeds)",
    "seeds",
    "so",
)


@dataclass(frozen=True)
class Advice:
    """In words: what one has, what to do, instead of what, and where that was compared. `kept`: percentage points that it keeps (of prior
    skill, or of what `where` names) beyond the other way, one number a seed. `gained`: points of the new tasks that it learns beyond the
    other way, where the two are not compared at equal accuracy."""

    have: str
    do: str
    instead: str
    where: str
    kept: Callable[[Given], Values]
    gained: Callable[[Given], Values] | None = None


def _arms(a: str, b: str) -> Callable[[Given], Values]:
    """Points that arm b loses beyond arm a, on the jigsaw at the target, paired by seed."""
    return lambda given: judged.minus(given, b, a, judged.drop(given.target))


def _claim(name: str, says: str) -> Callable[[Given], Values]:
    """The values of a part of a claim, by how it begins."""

    def values(given: Given) -> Values:
        found = [p for p in judged.JUDGES[name](given) if p.says.startswith(says)]
        if len(found) != 1:
            raise UserError(f"{name} has {len(found)} parts that begin with {says!r}: name one.")
        return found[0].values

    return values


def _gain(a: str, b: str) -> Callable[[Given], Values]:
    """Points that sequence a gains beyond sequence b, mean over tasks, paired by seed."""
    return lambda given: judged.minus(given, f"seven_{a}", f"seven_{b}", judged.learnt)


JIGSAW, CARDS, SUMS = "jigsaw, equal accuracy", "cards, the other rule (05)", "sums, equal accuracy (06)"
SEVEN, PARITY = "seven tasks, FM (07)", "ParityMNIST, equal accuracy and rates (08)"
ADVICE = (
    Advice("right answers, and time", "SFT at RFT's rate, which is lower", "SFT at its usual rate", f"{JIGSAW} (02)", _arms("sft_rft_lr", "sft")),
    Advice("a verifier, and time", "RFT", "SFT at its usual rate", f"{JIGSAW} (02)", _arms("rft", "sft")),
    Advice("a verifier, and time", "RFT", "SFT at RFT's rate", f"{JIGSAW} (02)", _arms("rft", "sft_rft_lr")),
    Advice("little memory", "LoRA", "SFT of all weights", f"{JIGSAW} (02)", _arms("lora_sft", "sft")),
    Advice("a policy that solves the task", "SFT on its right replies", "SFT on bare answers", f"{JIGSAW} (04)", _arms("sft_rollouts", "sft")),
    Advice(
        "such a policy, and time", "SFT on its right replies at RFT's rate", "SFT on bare answers at RFT's rate", f"{JIGSAW} (04)",
        _arms("sft_rollouts_x0.1", "sft_rft_lr"),
    ),
    Advice("such replies, and SFT's rate", "DFT loss", "plain SFT on them", f"{JIGSAW} (04)", _arms("sft_dft", "sft_rollouts")),
    Advice("reasoning in foreign words", "put it into the base's words", "imitate it as it is", f"{JIGSAW} (04)", _arms("sft_foreign", "sft_far")),
    Advice(
        "a policy that begins to solve the task", "imitate its replies, sampled anew as it learns", "sample them once", "jigsaw, equal updates (04)",
        _claim("04-once", "once minus fresh"),
    ),
    Advice(
        "a skill beside the trained one", "stop at its validation peak", "train to the end", CARDS, _claim("H1", "peak minus end"),
        judged.id_at_peak,
    ),
    Advice("SFT that went too far", "RFT from its end", "leave it", CARDS, _claim("H3", "RFT from the end minus SFT's end")),
    Advice("one wording of the prompt", "many wordings", "the one", CARDS, _claim("C1", "end, many wordings minus one"), judged.id_of_wordings),
    Advice("demonstrations and a verifier", "Prefix-RFT", "SFT", SUMS, _claim("F1", f"points lost at {judged.SUMS_TARGET:.0%}")),
    Advice(
        "the same", "the whole demonstration in the group (LUFFY-like)", "a prefix of it (Prefix-RFT)", SUMS,
        lambda given: judged.minus(given, "sums_prefix", "sums_luffy", judged.drop(judged.SUMS_TARGET)),
    ),
    Advice(
        "a choice of demonstrations", "those in the style it knows", "equally right ones in foreign words", SUMS,
        _claim("F3", f"points lost at {judged.SUMS_TARGET:.0%}, foreign"),
    ),
    Advice(
        "the same", "those in the style it knows", "equally right ones in wordy style", SUMS,
        _claim("F3", f"points lost at {judged.SUMS_TARGET:.0%}, wordy"),
    ),
    Advice("tasks one after another, a verifier", "GRPO", "SFT at RFT's rate", SEVEN, _claim("07-rate", "FM, GRPO minus SFT"), _gain("grpo", "sft_rft_lr")),
    Advice("tasks one after another", "SFT on own right replies", "SFT on demonstrations", SEVEN, _claim("07-self", "FM, own right replies minus SFT"), _gain("self", "sft")),
    Advice("questions of earlier tasks", "replay some", "SFT without", SEVEN, _claim("07-remedies", "FM, replay minus SFT"), _gain("replay", "sft")),
    Advice("such tasks, nothing kept of them", "L2 to each task's start", "SFT without", SEVEN, _claim("07-remedies", "FM, L2 minus SFT"), _gain("l2", "sft")),
    Advice(
        "several right answers to choose from", "labels as the base spreads them", "one fixed answer", PARITY,
        lambda given: judged.more_lost(given, "one", "oracle"),
    ),
    Advice("the same", "labels as the base spreads them", "GRPO", PARITY, lambda given: judged.more_lost(given, "grpo", "oracle")),
    Advice("RL at such rates", "a KL term", "none", PARITY, lambda given: judged.more_lost(given, "grpo", "grpo_kl")),
)  # fmt: skip


def seen(given: Given) -> list[tuple[Advice, Part]]:
    """Each piece of advice and whether it kept more than the other way: is the number above 0?"""
    return [(advice, part(f"{advice.do} against {advice.instead}", advice.kept(given))) for advice in ADVICE]


def word(found: Part) -> str:
    """What a part says of the advice."""
    if not found.seeds:
        return "not recorded"
    if len(found.seeds) < SEEDS:
        return "too few seeds"
    return {"yes": "keeps more", "no": "keeps less", "open": "cannot be told"}[found.verdict]


def beside(advice: Advice, given: Given) -> str:
    """What it learnt beside the other way, in words; nothing where both are compared at equal accuracy, or with too few seeds."""
    if advice.gained is None:
        return ""
    found = part("gain", advice.gained(given))
    words = {"yes": ", gains more", "no": ", gains less", "open": ", gain cannot be told apart"}[found.verdict]
    return f"{words}: {found.told}" if len(found.seeds) >= SEEDS else ""


def markdown(given: Given) -> str:
    """The table: each piece of advice, what was seen, and the word for it."""
    rows: list[Sequence[str]] = [HEADER]
    for a, p in seen(given):
        seeds = ", ".join(map(str, p.seeds)) or "-"
        so = word(p) + beside(a, given)
        rows.append((a.have, a.do, a.instead, a.where, p.told if p.seeds else "-", seeds, so))
    return claims.as_table(rows)


def given_of(folder: Path = runs.RECORDED_DIR, preset: str = "tiny") -> Given:
    """What a folder as `course/recorded` holds."""
    return Given(
        *claims.load_runs(folder, preset), points=claims.load_points(folder), risks=claims.load_risks(folder, preset)
    )


def write(page: Path, given: Given) -> None:
    """Put the table between the page's markers."""
    claims.put(page, markdown(given), BEGIN, END)


def main(argv: list[str]) -> int:
    """Print which method kept more, by what one has, computed from run records."""
    parser = argparse.ArgumentParser(prog="python -m rftkit guide", description=main.__doc__)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--write", type=Path, metavar="FILE", help="put the table between the markers of a page")
    form.add_argument("--check", type=Path, metavar="FILE", help="exit with 1 if the table in a page is another one")
    parser.add_argument(
        "--runs", type=Path, default=runs.RECORDED_DIR, help="folder of run records (default: the course's)"
    )
    parser.add_argument("--preset", default="tiny", choices=list(PRESETS), help="tier of the runs (default: tiny)")
    args = parser.parse_args(argv)
    given = given_of(args.runs, args.preset)
    if args.check:
        if wrong := claims.differences(args.check, markdown(given), BEGIN, END):
            print(
                f"The table in {args.check} is not the computed one: run `python -m rftkit guide --write {args.check}`.",
                file=sys.stderr,
            )
            print("\n".join(wrong), file=sys.stderr)
        return int(bool(wrong))
    if args.write:
        write(args.write, given)
    else:
        print(markdown(given))
    return 0
