"""The ledger: every claim of the papers, what they report, and what became of it here, computed from run records.

`claims.toml` holds the claims and nothing of ours; `judged` holds the rules. `python -m rftkit claims` prints the table, `--write README.md`
puts it between the markers of a page, `--check README.md` fails where the page and the records differ.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import textwrap
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rftkit import arms as course
from rftkit import parity, plots, predict, risks, runs, two_stage, verdicts
from rftkit.config import PRESETS, UserError
from rftkit.judged import JUDGES, Arms, Study, arms_of, judge
from rftkit.predict import Point
from rftkit.verdicts import Part

BEGIN, END = "<!-- ledger: made by `python -m rftkit claims --write`, do not edit -->", "<!-- end of ledger -->"
TEXTS = Path(__file__).parent / "claims.toml"
HEADER = (
    "claim",
    "in our words",
    "the paper's numbers, [grade of evidence]",
    "ours, what decided it (95 % interval over seeds)",
    "seeds",
    "standing",
)
SHOWN = 2  # parts of a claim that the Markdown table has room for
WIDTH = 120  # of the terminal's table


@dataclass(frozen=True)
class Claim:
    """A claim in our words. `numbers` are the paper's, with evidence grades; `expected` says by tier what we would see if it held;
    `live` why no run record decides it, "" if one does."""

    id: str
    paper: str
    statement: str
    numbers: str
    notebook: str
    matched: str
    control: str
    expected: Mapping[str, str]
    live: str = ""


@dataclass(frozen=True)
class Line:
    """A claim and its parts, none where no run record decides it. `files` are of the runs that its values came from."""

    claim: Claim
    parts: tuple[Part, ...]
    files: tuple[str, ...] = ()

    @property
    def standing(self) -> verdicts.Standing:
        return verdicts.standing(self.parts)

    @property
    def word(self) -> str:
        return verdicts.word(self.parts)

    @property
    def seeds(self) -> int:
        """The fewest seeds of a part."""
        return min((len(p.seeds) for p in self.parts), default=0)

    @property
    def missed(self) -> tuple[str, ...]:
        """Runs without a value, as where the matched accuracy was never reached: they entered nothing."""
        return tuple(sorted({name for p in self.parts for name in p.values.missed}))

    @property
    def why(self) -> str:
        """Why it is not tested, "" if it is."""
        if self.standing != "not tested":
            return ""
        if self.missed:
            return f"these did not get where it is compared, so no pair is left: {plots.run_labels(self.missed)}"
        return self.claim.live or "its runs are not recorded"


def load_claims(path: Path = TEXTS) -> list[Claim]:
    """The claims in their order."""
    return [Claim(**entry) for entry in _texts(path)["claim"]]


def _texts(path: Path = TEXTS) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def load_runs(folder: Path = runs.RECORDED_DIR, preset: str = "tiny") -> tuple[dict[str, dict[int, runs.RunRecord]], list[Study]]:  # fmt: skip
    """(finished runs by method and seed, studies of weights) of a folder as `course/recorded`. Raises UserError for one that is not there."""
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder} of run records: pass one that has them, such as course/recorded.")
    studies = sorted((folder / "points").glob("weights-s*.json")) if preset == "tiny" else []
    return arms_of(runs.load_recorded(preset=preset, folder=folder)), [two_stage.load_study(path) for path in studies]


def load_points(folder: Path = runs.RECORDED_DIR) -> list[Point]:
    """The points of ParityMNIST, bases included, of a folder as `course/recorded`: one bench at every tier."""
    return [point for path in sorted((folder / "parity").glob("parity-s*.json")) for point in predict.load(path)]


def load_risks(folder: Path = runs.RECORDED_DIR, preset: str = "tiny") -> dict[int, risks.Study]:
    """The risks of updates by seed of a folder as `course/recorded`."""
    return risks.recorded(folder / "seven") if preset == "tiny" else {}


def recorded(folder: Path = runs.RECORDED_DIR, preset: str = "tiny", only: str = "") -> list[Line]:
    """The ledger of all that a folder as `course/recorded` holds."""
    return ledger(*load_runs(folder, preset), only, points=load_points(folder), risks=load_risks(folder, preset))


def ledger(
    arms: Arms, studies: Sequence[Study] = (), only: str = "", target: float = course.TARGET, points: Sequence[Point] = (),
    goal: float = parity.TARGET, risks: Mapping[int, risks.Study] | None = None,
) -> list[Line]:  # fmt: skip
    """One line a claim; `only` those of the notebook that begins so, as "05". `target` is the accuracy on the jigsaw at which arms
    are compared, `goal` that on ParityMNIST, of which the points are; `risks` are those of updates, by seed."""
    claims = [c for c in load_claims() if c.notebook.startswith(only)]
    if not claims:
        raise UserError(f"No claim belongs to a notebook {only!r}: choose one of {', '.join(_notebooks())}.")
    lines = []
    for claim in claims:
        parts = (
            tuple(judge(claim.id, arms, studies, target, points=points, goal=goal, risks=risks))
            if claim.id in JUDGES
            else ()
        )
        lines.append(Line(claim, parts, _files(parts, arms)))
    return lines


def _notebooks() -> list[str]:
    return sorted({claim.notebook[:2] for claim in load_claims()})


def _files(parts: Sequence[Part], arms: Arms) -> tuple[str, ...]:
    preset = {r.name: r.preset for some in arms.values() for r in some.values()}
    names = dict.fromkeys(name for p in parts for name in p.runs)
    folders = {"parity": "parity", "weights": "points", "risks": "seven"}  # of what is no run
    return tuple(
        f"{preset[name]}-{name}.json" if name in preset else f"{folders[name.partition('-')[0]]}/{name}.json"
        for name in names
    )


# --- as text ------------------------------------------------------------------------------------------------------------------


def size(lines: Sequence[Line]) -> str:
    """How many claims, and controls of ours, came out how."""
    counted = Counter(line.word for line in lines)
    told = ", ".join(f"{counted[word]} {word}" for word in verdicts.WORDS if counted[word])
    return f"{len(lines)} entries: {told}."


def markdown(lines: Sequence[Line]) -> str:
    """The table for the README and the site."""
    rows: list[Sequence[str]] = [HEADER]
    for line in lines:
        claim, seeds = line.claim, "-" if line.why else str(line.seeds)
        rows.append((claim.id, claim.statement, claim.numbers, line.why or _decided(line), seeds, line.word))
    told = f"{size(lines)} {'; '.join(f'{prefix}: {_link(paper)}' for prefix, paper in _texts()['papers'].items())}"
    return f"{as_table(rows)}\n\n{told}; 04- and 07-: controls of ours."


def _link(paper: str) -> str:
    return f"[{paper}](https://arxiv.org/abs/{paper})" if re.fullmatch(r"[0-9.]+", paper) else paper


def _decided(line: Line) -> str:
    """The parts that decide, as many as there is room for; of a claim reproduced in part one that is no and one that is yes."""
    found = verdicts.decisive(line.parts)
    if line.standing == "in part":
        told = [found[0], next(p for p in line.parts if p.verdict == "yes")]
        more, alike = len(line.parts) - len(told), "in the notebook"
    else:
        told, more, alike = found[:SHOWN], len(found) - SHOWN, "alike"
    return "; ".join(p.text for p in told) + (f"; and {more} more {alike}" if more > 0 else "")


def _cell(text: str) -> str:
    for sign, told in (
        ("|", "/"),
        ("<", "&lt;"),
        ("->", "→"),
        ("~", "\\~"),
    ):  # GitHub strikes out what is between two ~
        text = text.replace(sign, told)
    return text


def tables(lines: Sequence[Line]) -> str:
    """Two tables as Markdown, for a notebook: what each claim says and how it stands; and its parts, each with its number."""
    said = [("claim", "in our words", "set against", "the paper's numbers, [grade of evidence]", "standing")]
    said += [
        (x.claim.id, x.claim.statement, x.claim.control, x.claim.numbers, x.word + (f": {x.why}" if x.why else ""))
        for x in lines
    ]
    parts = [("claim", "part", "ours, mean (95 % interval over seeds)", "seeds", "so")]
    parts += [
        (x.claim.id, p.asks, p.told, ", ".join(map(str, p.seeds)) or "none", p.verdict) for x in lines for p in x.parts
    ]
    missed = sorted({name for line in lines for name in line.missed})
    told = "Where a part speaks of each run, its numbers are those of the lowest and the highest one."
    told += f" Runs without a value there, which entered nothing: {plots.run_labels(missed) or 'none'}."
    return "\n\n".join([as_table(said), as_table(parts), told, size(lines)])


def brief(line: Line) -> str:
    """A claim's parts and its standing, a line each."""
    told = [f"  {p.text}" for p in line.parts] or [f"  {line.why}"]
    return "\n".join([*told, f"{line.claim.id}: {line.word}."])


def as_table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    return "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in (head, ("---",) * len(head), *body))


def plain(lines: Sequence[Line]) -> str:
    """The table for the terminal: each claim with all its parts and the files of the runs behind them."""
    out = []
    for line in lines:
        out += _wrapped(f"{line.claim.id}, {line.word}: {line.claim.statement}", "", "    ")
        out += _wrapped(f"the paper: {line.claim.numbers}", "    ", "      ")
        for p in () if line.why else line.parts:
            seeds = f" [seeds {', '.join(map(str, p.seeds))}]" if p.seeds else ""
            out += _wrapped(f"- {p.text}{seeds}", "    ", "      ")
        if line.files:
            out += _wrapped(f"from {', '.join(_short(line.files))}", "    ", "      ")
        if line.missed and not line.why:
            out += _wrapped(f"left out, having no value there: {', '.join(line.missed)}", "    ", "      ")
        if line.why:
            out += _wrapped(f"because {line.why}", "    ", "      ")
    return "\n".join([*out, "", size(lines)])


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def _short(files: Sequence[str]) -> list[str]:
    """tiny-sft-s{0,1,2}.json for three files."""
    of: dict[str, list[str]] = {}
    for name in files:
        stem, _, seed = name.removesuffix(".json").rpartition("-s")
        of.setdefault(stem, []).append(seed)
    return [
        f"{stem}-s{{{','.join(seeds)}}}.json" if len(seeds) > 1 else f"{stem}-s{seeds[0]}.json"
        for stem, seeds in of.items()
    ]


def as_json(lines: Sequence[Line]) -> str:
    """Everything, for other programs; NaN as null."""
    return json.dumps([_plain_line(line) for line in lines], indent=1, allow_nan=False, ensure_ascii=False)


def _plain_line(line: Line) -> dict[str, Any]:
    return {
        **asdict(line.claim), "standing": line.standing, "word": line.word, "why": line.why, "seeds": line.seeds,
        "files": list(line.files), "missed": list(line.missed),
        "parts": [
            {
                "text": p.text, "says": p.says, "values": {str(seed): p.values.of[seed] for seed in p.seeds}, "verdict": p.verdict,
                **{key: value if math.isfinite(value) else None for key, value in p.interval._asdict().items()},
                "limit": p.limit, "side": p.side, "contrary": p.contrary, "runs": list(p.runs),
            }
            for p in line.parts
        ],
    }  # fmt: skip


# --- in a page ----------------------------------------------------------------------------------------------------------------


def _parted(page: Path, begin: str, end: str) -> tuple[str, str, str]:
    """The page before, between and after its markers."""
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The page {page} cannot be read ({error}): check the path.") from error
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        what = begin.removeprefix("<!-- ").partition(":")[0]
        raise UserError(
            f"The page {page} has no place for the {what}: put {begin} and {end} there, once, in this order."
        )
    head, _, rest = text.partition(begin)
    between, _, tail = rest.partition(end)
    return head, between, tail


def put(page: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    """Put a text between the page's markers, whole or not at all."""
    head, _, tail = _parted(page, begin, end)
    runs.write_whole(page, f"{head}{begin}\n\n{text}\n\n{end}{tail}")


def write(page: Path, lines: Sequence[Line]) -> None:
    put(page, markdown(lines))


def differences(page: Path, text: str, begin: str = BEGIN, end: str = END) -> list[str]:
    """Lines of the text that the page lacks (+), and those that it has and the text lacks (-)."""
    new, old = text.splitlines(), _parted(page, begin, end)[1].strip().splitlines()
    found = [f"- {row}" for row in old if row not in new] + [f"+ {row}" for row in new if row not in old]
    return found or ([] if new == old else ["the same lines in another order"])


def main(argv: list[str]) -> int:
    """Print what became of each claim of the papers, computed from run records."""
    parser = argparse.ArgumentParser(prog="python -m rftkit claims", description=main.__doc__)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print the table as in the README")
    form.add_argument("--json", action="store_true", help="print everything as JSON")
    form.add_argument("--write", type=Path, metavar="FILE", help="put the table between the markers of a page")
    form.add_argument("--check", type=Path, metavar="FILE", help="exit with 1 if the table in a page is another one")
    parser.add_argument("--only", default="", metavar="NOTEBOOK", help="the claims of one notebook, such as 05")
    parser.add_argument(
        "--runs", type=Path, default=runs.RECORDED_DIR, help="folder of run records (default: the course's)"
    )
    parser.add_argument("--preset", default="tiny", choices=list(PRESETS), help="tier of the runs (default: tiny)")
    args = parser.parse_args(argv)
    if args.only and (args.write or args.check):
        raise UserError("A page holds the ledger of all notebooks: leave out --only.")
    lines = recorded(args.runs, args.preset, args.only)
    if args.write:
        write(args.write, lines)
    elif args.check:
        if wrong := differences(args.check, markdown(lines)):
            print(
                f"The ledger in {args.check} is not the computed one: run `python -m rftkit claims --write {args.check}`.",
                file=sys.stderr,
            )
            print("\n".join(wrong), file=sys.stderr)
            return 1
    else:
        print(as_json(lines) if args.json else markdown(lines) if args.markdown else plain(lines))
        return 0
    print(size(lines))
    return 0
