"""The five arms of notebook 02, by name: the same functions make the live run and the recorded ones.

`python -m rftkit record --seeds 1 2` repeats the runs in `course/recorded/`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rftkit import runs
from rftkit.config import Preset, UserError, get_preset
from rftkit.evals import value_at
from rftkit.plots import learning_curves, style_of
from rftkit.policy import Policy
from rftkit.rft import train_rft
from rftkit.sft import train_sft


def _fast(steps: int) -> set[int]:
    """Evaluations dense where the fastest arm crosses, so that the update at which it reaches the matched accuracy is known."""
    return {s for s in (4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 50, 60, 80, 100, 150, 200, 300, 400) if s < steps} | {
        steps
    }


def _slow(steps: int) -> set[int]:
    return {*range(20, steps, 20), steps}


def sft(preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
    """Answer-only SFT at its own learning rate."""
    return train_sft(preset, seed, name="sft", eval_steps=_fast(preset.sft_steps), home=home)


def sft_rft_lr(preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
    """Answer-only SFT at RFT's learning rate: is the rate what forgets?"""
    steps = 3 * preset.sft_steps  # the lower rate needs longer
    return train_sft(preset, seed, name="sft_rft_lr", lr=preset.rft_lr, steps=steps, eval_steps=_slow(steps), home=home)


def lora_sft(preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
    """Answer-only SFT of a low-rank adapter: is the number of free parameters what forgets?"""
    rank = preset.lora_rank or 8
    steps = 2 * preset.sft_steps
    return train_sft(preset, seed, name="lora_sft", lora_rank=rank, steps=steps, eval_steps=_slow(steps), home=home)


def rft(preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
    """GRPO."""
    return train_rft(preset, seed, name="rft", eval_steps=_slow(preset.rft_steps), home=home)


def rft_kl(preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
    """GRPO with a KL term to the base: is the penalty what keeps?"""
    return train_rft(preset, seed, name="rft_kl", beta=preset.kl_beta, eval_steps=_slow(preset.rft_steps), home=home)


ARMS: dict[str, Callable[[Preset, int, Path | None], tuple[runs.RunRecord, Policy]]] = {
    "sft": sft, "sft_rft_lr": sft_rft_lr, "lora_sft": lora_sft, "rft": rft, "rft_kl": rft_kl,
}  # fmt: skip


# --- what the README shows, made from the recorded runs ---------------------------------------------------------------------

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- results: made by `python -m rftkit record`, do not edit -->", "<!-- end of results -->"
TARGET = 0.5  # exact accuracy at which arms are compared


def results(records: list[runs.RunRecord]) -> str:
    """The results as Markdown: every arm at matched accuracy, with t intervals over seeds, and the drop probe by probe."""
    lines = [
        f"At {TARGET:.0%} exact on the new task (Student's t, 95 %, over the seeds named; points of mean accuracy on eight probes):",
        "",
        "| arm | seeds | update | seconds of training, two runs at a time on two cores | prior drop | interval | did not get there |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in runs.matched_table(records, TARGET):
        mine = [r for r in records if r.method == row.method and r.seed in row.seeds]
        at = [runs.at_matched(r, TARGET) for r in mine]
        steps = [m["step"] for m in at if m]
        seconds = [value_at(*runs.curve(r, "seconds"), m["step"]) for r, m in zip(mine, at, strict=True) if m]
        spread = f"{row.lo:.1f} to {row.hi:.1f}" if len(steps) > 1 else "-"
        lines.append(
            f"| {style_of(row.method).label} | {', '.join(map(str, row.seeds)) or '-'} | {_range(steps)} | {_range(seconds)} "
            f"| {f'{row.mean:.1f}' if steps else '-'} | {spread} | {', '.join(row.excluded) or '-'} |"
        )
    return "\n".join(
        [*lines, "", *_by_probe(records), "", "![" + _figure(records).alt + "](course/figures/sft_vs_rft.png)"]
    )


def _range(values: list[float]) -> str:
    return f"{min(values):.0f} to {max(values):.0f}" if values else "-"


def _by_probe(records: list[runs.RunRecord]) -> list[str]:
    """Accuracy on each probe when the run reached the target, linear between evaluations, mean over the runs that got there."""
    probes = list(records[0].evals()[0]["prior"])
    lines = ["Accuracy probe by probe at that point, mean over the same seeds:", ""]
    lines += ["| arm | " + " | ".join(probes) + " |", "|---" * (len(probes) + 1) + "|"]
    for method in dict.fromkeys(r.method for r in records):
        reached = [(r, m["step"]) for r in records if r.method == method and (m := runs.at_matched(r, TARGET))]
        if reached:
            shares = [sum(_accuracy_at(r, probe, step) for r, step in reached) / len(reached) for probe in probes]
            lines.append(f"| {style_of(method).label} | " + " | ".join(f"{share:.2f}" for share in shares) + " |")
    return lines


def _accuracy_at(record: runs.RunRecord, probe: str, step: float) -> float:
    rows = record.evals()
    return value_at(
        [r["step"] for r in rows], [r["prior"][probe]["correct"] / sum(r["prior"][probe].values()) for r in rows], step
    )


def _figure(records: list[runs.RunRecord]) -> Any:
    return learning_curves(records, TARGET)


def recorded() -> list[runs.RunRecord]:
    """The recorded runs of the tiny tier, in the order of the arms."""
    return sorted(runs.load_recorded(), key=lambda r: (list(ARMS).index(r.method), r.seed))


def write_results() -> None:
    """Renew the README's table and figure from the recorded runs."""
    records = recorded()
    figure = _figure(records)
    path = ROOT / "course" / "figures" / "sft_vs_rft.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, transparent=True)
    readme = ROOT / "README.md"
    head, _, rest = readme.read_text().partition(BEGIN)
    readme.write_text(head + BEGIN + "\n\n" + results(records) + "\n\n" + END + rest.partition(END)[2])


def main(argv: list[str]) -> int:
    """Make the recorded runs: each arm and seed, resuming what was interrupted, and copy their records to the course."""
    parser = argparse.ArgumentParser(prog="python -m rftkit record", description=main.__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--preset", default="tiny")
    args = parser.parse_args(argv)
    if unknown := [a for a in args.arms if a not in ARMS]:
        raise UserError(f"There is no arm {unknown[0]!r}: choose from {', '.join(ARMS)}.")
    for seed in args.seeds:
        for arm in args.arms:
            record, _ = ARMS[arm](get_preset(args.preset), seed, None)
            runs.save_record(record, runs.RECORDED_DIR / f"{args.preset}-{arm}-s{seed}.json")
    if args.preset == "tiny":
        write_results()
    return 0
