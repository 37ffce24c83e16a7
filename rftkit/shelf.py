"""The shelf of recorded runs (`course/recorded`): which of them are missing or have other settings than today's, and what it takes to
make them again.

`python -m rftkit record` can be killed at any point and started again: an interrupted run goes on from its last checkpoint, a finished one
is read, and what stands on the shelf with today's settings is left alone. Several processes may share the work: each run is locked by the
one that makes it, with a lock of the operating system, which ends with its process, so that none is ever stale.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import transformers

from rftkit import arms, claims, guide, recording, risks, rollouts, runs, two_stage
from rftkit.config import PRESETS, Preset, UserError
from rftkit.policy import Policy
from rftkit.runs import RunRecord
from rftkit.train import preset_from

SEEDS = (0, 1, 2)  # of every arm; those of which more are recorded keep more
PAUSE = 10.0  # seconds between two looks at what other processes hold

# Fields of a preset that decide nothing by themselves: a run's own settings hold what became of them (its rate, steps, batch, ...), or
# no result depends on them.
UNDECIDING = {
    "sft_lr", "rft_lr", "lora_lr", "sft_batch", "sft_steps", "rft_steps", "rft_prompts", "rft_group", "rft_reuse", "rft_beta",
    "kl_beta", "lora_rank", "micro_batch", "checkpointing", "eval_batch",
}  # fmt: skip
# The same where a run's own settings are not known.
NEVER_DECIDING = {"lora_lr", "kl_beta", "micro_batch", "checkpointing", "eval_batch"}

# What is kept of an update of notebook 06, besides its prefixes: there are a hundred of these runs.
KEPT = {"kind", "step", "seconds", "examples", "tokens", "loss", "grad_norm", "reward", "entropy", "completions_mean_length",
        "frac_reward_zero_std"}  # fmt: skip


class Job(NamedTuple):
    """One recorded run."""

    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.arm}-s{self.seed}"


@dataclass(frozen=True)
class Shelf:
    """Where the runs of a preset are recorded. `home` holds the live runs, their weights and checkpoints."""

    folder: Path
    preset: Preset
    home: Path
    known: dict[str, list[RunRecord]] = field(default_factory=dict)  # those of the course, by arm

    def path(self, job: Job) -> Path:
        return self.folder / f"{self.preset.name}-{job}.json"

    def beside(self, job: Job) -> Path | None:
        """The file that is made of a run's weights and stands beside its record: RFT's rollouts, the study of what SFT and RFT did to
        the weights in notebook 05, or the risks of updates in notebook 07."""
        if job.arm == "rft":
            return self.folder / arms.ROLLOUTS_DIR.name / f"{self.preset.name}-rft-s{job.seed}.jsonl"
        if job.arm == STUDIED and self.preset.name == "tiny":
            return self.folder / two_stage.STUDIES_DIR.name / f"weights-s{job.seed}.json"
        if job.arm == AT_RISK and self.preset.name == "tiny":
            return self.folder / risks.FOLDER.name / f"risks-s{job.seed}.json"
        return None


IMITATE_RFT = ("sft_rollouts", "sft_dft")  # how arms begin that learn from the file of RFT's rollouts of their seed
STUDIED = f"points_rft_{max(two_stage.PLANS['tiny'].checkpoints)}"  # RFT from SFT's end
AT_RISK = "seven_grpo_b"  # GRPO in the second order, at whose end the risk of updates is measured once more


def shelf_of(preset: Preset, folder: Path = runs.RECORDED_DIR, home: Path | None = None) -> Shelf:
    known: dict[str, list[RunRecord]] = {}
    for record in runs.load_recorded(preset=preset.name):
        known.setdefault(record.method, []).append(record)
    return Shelf(folder, preset, home or runs.output_home(), known)


def slimmed(record: RunRecord) -> RunRecord:
    """The record as it ships: whole; of notebook 06 without what no figure shows of an update, to five digits."""
    if not record.method.startswith(("sums_", "jigsaw_")):
        return record
    return replace(record, metrics=[_slim(row) if row["kind"] == "train" else row for row in record.metrics])


def _slim(row: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in row.items() if key in KEPT or key.startswith("prefix_")}
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in kept.items()}


# --- the same settings? -------------------------------------------------------------------------------------------------------


def decisive(config: dict[str, Any], undeciding: Collection[str] = UNDECIDING) -> dict[str, Any]:
    """The settings that a run's results depend on, but for what differs from seed to seed: a digest of the texts it learns, and how
    many updates the run had taken that it goes on from."""
    own = json.loads(json.dumps(config))  # tuples as lists
    found = {f"preset {key}": value for key, value in own.pop("preset", {}).items() if key not in undeciding}
    if own.get("after"):
        own["after"] = own["after"]["method"]
    if "data" in own:
        own["data"] = re.sub(r"-[0-9a-f]{12}$", "", own["data"])
    return own | found


def other_settings(record: RunRecord, foreseen: RunRecord) -> list[str]:
    """Names of the settings in which a recorded run differs from the one that its arm would make today; empty if it may stand.

    A setting that the record lacks came later, and was made so that runs without it stay what they were. Where the arm's own run
    cannot be foreseen (it learns what another run's policy says), what it shares with that run is compared, the preset's rates, steps
    and batches included.
    """
    own = record.method == foreseen.method
    mine, todays = (decisive(r.config, UNDECIDING if own else NEVER_DECIDING) for r in (record, foreseen))
    keys = mine.keys() if own else {k for k in mine if k == "base" or k.startswith("preset ")}
    return sorted(key for key in keys if mine[key] != todays.get(key))


def foreseen(shelf: Shelf, job: Job) -> list[RunRecord]:
    """The runs that a job would make or read, as far as can be told, its own last."""
    return recording.foresee(lambda: arms.ARMS[job.arm](shelf.preset, job.seed, shelf.home))[0]


def recorded_run(shelf: Shelf, job: Job) -> RunRecord | None:
    path = shelf.path(job)
    return runs.load_record(path) if path.exists() else None


def missing(shelf: Shelf, job: Job, wanted: RunRecord) -> str:
    """Why a job is to be done, "" if it is not. `wanted` is the run that its arm would make today, of any seed."""
    record = recorded_run(shelf, job)
    if record is None or record.status != "done":
        return "not there"
    if others := other_settings(record, wanted):
        return f"other settings ({', '.join(others)})"
    beside = shelf.beside(job)
    return f"{beside.name} is not there" if beside and not beside.exists() else ""


def upstream(job: Job, foreseen: Sequence[RunRecord]) -> set[Job]:
    """The runs that a job goes on from or learns from; `foreseen` are those of its arm, its own last, of any seed."""
    before = {Job(r.method, job.seed) for r in foreseen[:-1]}
    return before | ({Job("rft", job.seed)} if job.arm.startswith(IMITATE_RFT) else set())


# --- what is to be done, and what it costs --------------------------------------------------------------------------------------


def seeds_of(shelf: Shelf, arm: str) -> list[int]:
    return sorted({*SEEDS, *(r.seed for r in shelf.known.get(arm, []))})


def to_do(
    shelf: Shelf, names: Sequence[str], seeds: Sequence[int] | None, again: bool = False
) -> tuple[dict[Job, str], int]:
    """The jobs to be done, each with the reason, in an order in which one process does not wait for itself; and how many were looked
    at. With `again` all of them."""
    found, looked = {}, 0
    for arm in names:
        jobs = [Job(arm, seed) for seed in (seeds if seeds is not None else seeds_of(shelf, arm))]
        wanted = foreseen(shelf, jobs[0])[-1]  # settings are those of every seed
        looked += len(jobs)
        for job in jobs:
            if why := missing(shelf, job, wanted) or ("asked for" if again else ""):
                found[job] = why
    order = list(arms.ARMS)
    return dict(sorted(found.items(), key=lambda item: (item[0].seed, order.index(item[0].arm)))), looked


def outdated(shelf: Shelf, jobs: Collection[Job]) -> list[Job]:
    """Runs that stand, but go on from one that has other settings than today's, or learn from its rollouts."""
    made = {job for job in jobs if recorded_run(shelf, job)}
    if not made:
        return []
    before = {arm: foreseen(shelf, Job(arm, SEEDS[0])) for arm in arms.ARMS}
    standing = [Job(arm, seed) for arm in arms.ARMS for seed in seeds_of(shelf, arm)]
    return [job for job in standing if job not in jobs and upstream(job, before[job.arm]) & made]


def seconds_of(record: RunRecord) -> tuple[float, float]:
    """Seconds of training of the run that a record goes on from, 0 if there is none, and of its own; evaluations are in neither."""
    rows = record.evals()
    after = (record.config.get("after") or {}).get("steps", 0)
    before = max(row["seconds"] for row in rows if row["step"] <= after) if after else 0.0
    return before, rows[-1]["seconds"] - before


def usual_seconds(shelf: Shelf, method: str) -> float | None:
    """Mean seconds of the recorded runs of a method, or of that part of other runs which went on from it; None if there are none."""
    own = [seconds_of(r)[1] for r in shelf.known.get(method, [])]
    every = (r for some in shelf.known.values() for r in some)
    found = own or [seconds_of(r)[0] for r in every if (r.config.get("after") or {}).get("method") == method]
    return statistics.mean(found) if found else None


def cost(shelf: Shelf, jobs: Sequence[Job]) -> tuple[float, list[str]]:
    """Seconds of training that the jobs will take, by the recorded runs' own, and the runs that none is recorded of.

    A run that others go on from is counted once, if its weights are not under `home`.
    """
    needed: set[tuple[str, int]] = set(jobs)
    of_arm: dict[
        str, list[RunRecord]
    ] = {}  # by the first of its jobs: but for a few, other seeds have the same settings
    for job in jobs:
        if job.arm not in of_arm:
            of_arm[job.arm] = foreseen(shelf, job)
        before = (replace(r, seed=job.seed) for r in of_arm[job.arm])
        needed |= {(r.method, r.seed) for r in before if not recording.finished(r, shelf.home)}
    seconds, unknown = 0.0, []
    for method, seed in sorted(needed):
        if (usual := usual_seconds(shelf, method)) is None:
            unknown.append(f"{method}-s{seed}")
        else:
            seconds += usual
    return seconds, unknown


def told(shelf: Shelf, jobs: dict[Job, str], looked: int) -> str:
    """What will be made, why, and what it costs."""
    first = f"{looked - len(jobs)} of {looked} runs stand in {shelf.folder} with today's settings."
    if not jobs:
        return first
    seconds, unknown = cost(shelf, list(jobs))
    hours = f"about {seconds / 3600:.1f} hours of training on one core by the recorded runs' own seconds"
    lines = [first, f"To make: {len(jobs)} runs, {hours}; evaluations come on top."]
    if unknown:
        lines.append(f"Not in these hours, since they are not recorded: {', '.join(unknown)}.")
    for arm, why in dict.fromkeys((job.arm, why) for job, why in jobs.items()):
        mine = ", ".join(str(job.seed) for job, reason in jobs.items() if (job.arm, reason) == (arm, why))
        lines.append(f"  {arm}, seed {mine}: {why}")
    if old := outdated(shelf, jobs):
        lines.append(
            f"These stand but learn from runs that will be made again: {', '.join(map(str, old))}. Make them again afterwards, with --again --arms."
        )
    return "\n".join(lines)


# --- making them ----------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def held(home: Path, own: Sequence[str], read: Sequence[str] = ()) -> Iterator[bool]:
    """Hold the locks of these runs, those of `own` alone, those that are only `read` together with other readers. False, and none is
    held, where another process has one. Where the system has no such locks (Windows) it is always True: start one process there."""
    try:
        import fcntl
    except ImportError:
        yield True
        return
    folder = home / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = dict.fromkeys(read, fcntl.LOCK_SH) | dict.fromkeys(own, fcntl.LOCK_EX)
    with contextlib.ExitStack() as stack:
        ours = True
        for name, kind in sorted(wanted.items()):
            file = stack.enter_context(open(folder / f"{name}.lock", "a"))
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                ours = False
                break
        if not ours:
            stack.close()
        yield ours


def make(shelf: Shelf, job: Job) -> None:
    """Make one run, or read it if it is finished, and put its record on the shelf, last of what belongs to it."""
    record, policy = arms.ARMS[job.arm](shelf.preset, job.seed, shelf.home)
    if (path := shelf.beside(job)) is not None:
        _make_beside(shelf, job, policy, path)
    runs.save_record(slimmed(record), shelf.path(job))


def _make_beside(shelf: Shelf, job: Job, policy: Policy, path: Path) -> None:
    if job.arm == "rft":
        rollouts.save(arms.sampled_from(policy, job.seed), path)
    elif job.arm == AT_RISK:
        risks.save(risks.study(shelf.preset, job.seed, policy, shelf.home), path)
    else:
        two_stage.save_study(two_stage.study(shelf.preset, job.seed, home=shelf.home), path)


def work(shelf: Shelf, jobs: Sequence[Job], again: bool = False) -> dict[Job, str]:
    """Do the jobs that no other process is doing or has done meanwhile. Returns those that failed, with what was wrong."""
    left, needs, failed, told_so = list(jobs), dict[Job, list[RunRecord]](), dict[Job, str](), False
    while left:
        waiting = []
        for job in left:
            if job not in needs:
                needs[job] = foreseen(shelf, job)
            done = {str(Job(r.method, r.seed)): recording.finished(r, shelf.home) for r in needs[job]}
            own = {str(job), *(name for name, is_done in done.items() if not is_done)}
            read = done.keys() | {str(other) for other in upstream(job, needs[job])}
            with held(shelf.home, sorted(own), sorted(read - own)) as ours:
                if not ours:
                    waiting.append(job)
                elif again or missing(shelf, job, needs[job][-1]):
                    print(f"{job}:", flush=True)
                    try:
                        make(shelf, job)
                    except UserError as error:
                        failed[job] = str(error)
                        print(f"{job} failed: {error}", flush=True)
        if len(waiting) == len(left):
            if not told_so:
                print(
                    f"Another process makes what is left, or what that needs: {', '.join(map(str, waiting))}.",
                    flush=True,
                )
            told_so = True
            time.sleep(PAUSE)
        left = waiting
    return failed


def main(argv: list[str]) -> int:
    """Make the recorded runs again that are missing or have other settings than today's: each arm and seed, resuming what was
    interrupted. Several of these commands may run at once."""
    parser = argparse.ArgumentParser(prog="python -m rftkit record", description=main.__doc__)
    parser.add_argument("--arms", nargs="+", default=list(arms.ARMS), help="some arms (default: all)")
    usual = " ".join(map(str, SEEDS))
    parser.add_argument(
        "--seeds", type=int, nargs="+", help=f"some seeds (default: {usual}, and what else is recorded)"
    )
    parser.add_argument("--preset", default="tiny", choices=list(PRESETS))
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("FIELD", "VALUE"), dest="fields",
        help="replace a field of the preset; may be repeated, and wants --out",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=runs.RECORDED_DIR, help="where records go (default: the course's folder)"
    )
    parser.add_argument("--again", action="store_true", help="also those that stand there with today's settings")
    parser.add_argument("--plan", action="store_true", help="say what would be made, and what it would cost")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.arms if name not in arms.ARMS]:
        raise UserError(f"There is no arm {unknown[0]!r}: choose from {', '.join(arms.ARMS)}.")
    course = args.out.resolve() == runs.RECORDED_DIR.resolve()
    if args.fields and course:
        raise UserError("Runs with other settings are not the course's: give them a folder of their own with --out.")
    transformers.logging.disable_progress_bar()  # one for each policy that is looked at
    shelf = shelf_of(preset_from(args.preset, args.fields), args.out)
    jobs, looked = to_do(shelf, args.arms, args.seeds, args.again)
    print(told(shelf, jobs, looked), flush=True)
    if args.plan:
        return 0
    failed = work(shelf, list(jobs), args.again)
    if jobs and course and args.preset == "tiny":
        _write_readme(shelf.home)
    return int(bool(failed))


def _write_readme(home: Path) -> None:
    """Renew the README's tables and figures and the guide, one process at a time: each reads a page, changes its part and writes it."""
    while True:
        with held(home, ["readme"]) as ours:
            if ours:
                arms.write_results()
                claims.write(arms.ROOT / "README.md", claims.recorded())
                guide.write(arms.ROOT / "course/guide.md", guide.given_of())
                return
        time.sleep(1)
