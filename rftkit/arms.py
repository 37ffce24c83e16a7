"""The arms of notebooks 02 and 04 to 07, by name: the same functions make the live run and the recorded ones (`shelf`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from rftkit import blends, continual, dynamics, hub, jigsaw, recording, rollouts, runs, sequence, tasks, two_stage
from rftkit.config import Preset, UserError, get_preset
from rftkit.evals import t_interval, value_at
from rftkit.methods import METHODS, ORDERS
from rftkit.plots import alt_text, learning_curves, matched_drop, puzzle, run_labels, style_of
from rftkit.policy import Policy, load_policy, load_trained
from rftkit.recording import Before, run_folder
from rftkit.rft import train_rft
from rftkit.sft import Data, answers_only, train_sft

Arm = Callable[[Preset, int, Path | None], tuple[runs.RunRecord, Policy]]
PRIOR_SEED = 77  # of the prior rows whose gradients are measured: neither trained on nor evaluated
ROLLOUTS_DIR = runs.RECORDED_DIR / "rollouts"


def _fast(steps: int) -> set[int]:
    """Evaluations dense where the fastest arm crosses, so that the update at which it reaches the matched accuracy is known.

    Eight in a long run, each at about twice the update of the one before: on a GPU an evaluation costs as much as many updates.
    """
    if steps > 300:
        return {steps // part for part in (64, 32, 16, 8, 4, 2)} | {3 * steps // 4, steps}
    return {s for s in (4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 50, 60, 80, 100, 150, 200, 300) if s < steps} | {steps}


def _slow(steps: int) -> set[int]:
    """Every 20 updates, and in a long run as many times 20 as make 24 evaluations at most."""
    every = 20 * -(-steps // 480)
    return {*range(every, steps, every), steps}


def sft(preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
    """Answer-only SFT at its own learning rate."""
    return imitation(preset, seed, "sft", answers_only(preset, seed), home)


def sft_rft_lr(preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
    """Answer-only SFT at RFT's learning rate: is the rate what forgets?"""
    steps = 3 * preset.sft_steps  # the lower rate needs longer
    return train_sft(preset, seed, name="sft_rft_lr", lr=preset.rft_lr, steps=steps, eval_steps=_slow(steps), home=home)


def lora_sft(preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
    """Answer-only SFT of a low-rank adapter: is the number of free parameters what forgets? Raises UserError where all arms train one."""
    if preset.lora_rank:
        raise UserError(
            f"At {preset.name!r} every arm trains an adapter, so lora_sft would repeat sft: choose another arm."
        )
    rank = 8
    steps = 2 * preset.sft_steps
    return train_sft(preset, seed, name="lora_sft", lora_rank=rank, steps=steps, eval_steps=_slow(steps), home=home)


def rft(preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
    """GRPO."""
    return train_rft(preset, seed, name="rft", eval_steps=_slow(preset.rft_steps), home=home)


def rft_kl(preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
    """GRPO with a KL term to the base: is the penalty what keeps?"""
    return train_rft(preset, seed, name="rft_kl", beta=preset.kl_beta, eval_steps=_slow(preset.rft_steps), home=home)


def rft_early(preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
    """A tenth of RFT: "one epoch" of the ten of 2506.23508. Solves nothing yet, and thinks already."""
    steps = max(1, preset.rft_steps // 10)
    return train_rft(preset, seed, name="rft_early", steps=steps, home=home)


def rft_first(preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
    """RFT until it first solves 5 % of the puzzles: the policy that samples from itself begins here, since the base solves none."""
    evals = set(range(max(1, 2 * preset.rft_steps // 5), preset.rft_steps, 10)) | {preset.rft_steps}
    return train_rft(preset, seed, name="rft_first", until=0.05, eval_steps=evals, home=home)


# --- the arms of notebook 04: one algorithm, many data -----------------------------------------------------------------------

PROMPTS = 2048  # puzzles asked for rollouts
# settings that RFT's rollouts do not depend on: with others of these the recorded ones still serve
NOT_RFTS = (
    "sft_lr",
    "sft_batch",
    "sft_steps",
    "micro_batch",
    "lora_lr",
    "kl_beta",
    "eval_n",
    "eval_batch",
    "dynamics_where",
)
EPOCH = 320  # rows of an epoch of the arm that samples from itself anew, out of twice as many puzzles


def imitation(
    preset: Preset, seed: int, name: str, data: Data, home: Path | None = None, after: Before | None = None, **settings: Any
) -> tuple[runs.RunRecord, Policy]:  # fmt: skip
    """SFT on `data`, with its dynamics in the record at every evaluation: eight of its rows, and two of each probe."""
    prior = [row for task in hub.probes(preset).values() for row in task.rows(PRIOR_SEED, 2, "validation")]

    def measure(policy: Policy) -> dict[str, Any]:
        rows = data.rows(policy, Path())
        return dynamics.measure(policy, [rows[i] for i in range(min(8, len(rows)))], prior, preset.dynamics_where)

    # what the data is to the base, as the runs from the base say it of theirs; with LoRA the base has no trained weight
    if after and not data.ordered and not preset.lora_rank:
        first = {"step": 0, **measure(load_policy(preset))}
        after = Before(dataclasses.replace(after.record, metrics=[first, *after.record.metrics]), after.weights)
    steps = settings.pop("steps", preset.sft_steps)
    return train_sft(
        preset, seed, name=name, data=data, steps=steps, eval_steps=_fast(steps), home=home, after=after,
        measure=None if data.ordered else measure, **settings,
    )  # fmt: skip


def rft_rollouts(preset: Preset, seed: int, home: Path | None = None) -> rollouts.Kept:
    """Correct rollouts of the RFT-trained policy, one a puzzle: those that ship with the course, else sampled after training one."""
    path = ROLLOUTS_DIR / f"{preset.name}-rft-s{seed}.jsonl"
    task = hub.new_task(preset)
    usual = get_preset(preset.name, **{key: getattr(preset, key) for key in NOT_RFTS})
    if path.exists() and preset == usual:
        return rollouts.load(path, task, seed)
    _, policy = rft(preset, seed, home)
    return sampled_from(policy, seed)


def sampled_from(rft_policy: Policy, seed: int) -> rollouts.Kept:
    """Correct rollouts of the RFT-trained policy, one a puzzle."""
    return _kept(rft_policy, seed, "the RFT-trained policy, correct only")


def _kept(policy: Policy, seed: int, source: str, rule: rollouts.Rule = rollouts.correct_only) -> rollouts.Kept:
    drawn = rollouts.sample(policy, hub.new_task(policy.preset), seed, range(PROMPTS))
    return rollouts.keep(drawn, rule, f"{source}, seed {seed}", per_prompt=1)


def sft_foreign(preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
    """Right reasoning, the base's words in an order it never uses."""
    data = rollouts.reworded(preset, hub.new_task(preset), seed)
    return imitation(preset, seed, "sft_foreign", data, home)


def sft_far(preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
    """Right reasoning in other words."""
    data = rollouts.reworded(preset, hub.new_task(preset), seed, far=True)
    return imitation(preset, seed, "sft_far", data, home)


def sft_rollouts(preset: Preset, seed: int, home: Path | None = None, **settings: Any) -> tuple[runs.RunRecord, Policy]:
    """Correct rollouts of the RFT-trained policy: RFT's data, SFT's algorithm."""
    name = settings.pop("name", "sft_rollouts")
    data = rollouts.imitate(rft_rollouts(preset, seed, home), hub.new_task(preset), seed, "rft-rollouts")
    return imitation(preset, seed, name, data, home, **settings)


def sft_early(preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
    """Thinking of the policy after a tenth of RFT, with the right answers behind it."""
    _, policy = rft_early(preset, seed, home)
    kept = _kept(policy, seed, "the policy after a tenth of RFT, all replies", rollouts.above(-1))
    return imitation(preset, seed, "sft_early", rollouts.right_answers(kept, hub.new_task(preset), seed, "early"), home)


def sft_dft(preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
    """The same rollouts under TRL's DFT loss (2508.05629), which weighs each token by its probability."""
    return sft_rollouts(preset, seed, home, name="sft_dft", loss_type="dft")


def self_once(preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
    """From the policy that first solves some puzzles: its own correct replies, sampled once (the counter-example of 2510.18874)."""
    before, policy = _first(preset, seed, home)
    kept = _kept(policy, seed, "the starting policy, correct only")
    data = rollouts.imitate(kept, hub.new_task(preset), seed, "self-once")
    return imitation(preset, seed, "self_once", data, home, after=before)


def self_fresh(preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
    """From the same policy: its own correct replies, sampled anew every epoch from what it has become."""
    before, _ = _first(preset, seed, home)
    task = hub.new_task(preset)
    epochs = -(-preset.sft_steps * preset.sft_batch // EPOCH)

    def rows(policy: Policy, folder: Path) -> rollouts.FreshRollouts:
        return rollouts.FreshRollouts(policy, folder, task, seed, rollouts.correct_only, EPOCH, 2 * EPOCH, epochs)

    data = Data(f"self-fresh-{EPOCH}-{2 * EPOCH}", rows, ordered=True)
    return imitation(preset, seed, "self_fresh", data, home, after=before)


RATES = {0.1: 3.0, 3.0: 1.0}  # of the sweep, as multiples of preset.sft_lr, with how much longer the gentle one trains


def sft_rate(times: float) -> Arm:
    """Answer-only SFT at `times` its own learning rate."""

    def arm(preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
        steps, data = round(RATES[times] * preset.sft_steps), answers_only(preset, seed)
        return imitation(preset, seed, f"sft_x{times:g}", data, home, lr=times * preset.sft_lr, steps=steps)

    return arm


def rollouts_rate(times: float) -> Arm:
    """SFT on RFT rollouts at `times` its own learning rate."""

    def arm(preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
        steps = round(RATES[times] * preset.sft_steps)
        return sft_rollouts(preset, seed, home, name=f"sft_rollouts_x{times:g}", lr=times * preset.sft_lr, steps=steps)

    return arm


# --- the arms of notebook 05: GeneralPoints ----------------------------------------------------------------------------------


def points_sft(preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
    """SFT on the game under the rule "ten", in one wording."""
    return two_stage.sft_stage(preset, seed, home=home)


def points_sft_diverse(preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
    """SFT on the same hands in many wordings: the competing explanation of 2510.00237."""
    return two_stage.sft_stage(preset, seed, diverse=True, home=home)


def points_rft(start: int, fast: bool = False) -> Arm:
    """GRPO on the ID rule from SFT's checkpoint `start`, at three times the rate if `fast`."""

    def arm(preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
        return two_stage.rft_stage(preset, seed, start, fast=fast, home=home)

    return arm


# --- the arms of notebook 06: long sums, and the jigsaw with demonstrations in foreign words ---------------------------------------


def sums(name: str) -> Arm:
    """An arm of `blends` on long sums: "sums_sft", "sums_sft_rft" or one of `blends.BLENDS`."""

    def arm(preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
        return blends.arm(name, preset, seed, home)

    return arm


def foreign_jigsaw(name: str) -> Arm:
    """ "jigsaw_sft" or one of `blends.JIGSAW`."""

    def arm(preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
        return blends.jigsaw_arm(name, preset, seed, home)

    return arm


# --- the sequences of notebook 07: seven tasks in a row ----------------------------------------------------------------------------


def seven(name: str) -> Arm:
    """A sequence by the name of its record: "seven_" and one of `methods.METHODS`, with "_b" behind it in the second order."""
    letter = "b" if name.endswith("_b") else "a"
    method = METHODS[name.removeprefix("seven_").removesuffix("_b")]

    def arm(preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
        base = sequence.form_base(preset, home) if preset.images == "scenes" else None
        made = continual.run_sequence(preset, seed, method, order=ORDERS[letter], base=base, home=home)
        recording.needs_weights()
        policy = load_policy(preset)
        load_trained(policy, made.weights(home))
        return made.record, policy

    return arm


def _first(preset: Preset, seed: int, home: Path | None) -> tuple[Before, Policy]:
    record, policy = rft_first(preset, seed, home)
    return Before(record, run_folder(record, home) / "final"), policy


SEVEN = tuple(f"seven_{name}" for name in (*METHODS, "sft_b", "grpo_b"))  # the second order for two of them
ONE_TASK: dict[str, Arm] = {
    "sft": sft, "sft_rft_lr": sft_rft_lr, "lora_sft": lora_sft, "rft": rft, "rft_kl": rft_kl,
    "sft_foreign": sft_foreign, "sft_far": sft_far, "sft_rollouts": sft_rollouts, "sft_early": sft_early,
    "self_once": self_once, "self_fresh": self_fresh, "sft_dft": sft_dft,
    **{f"sft_x{times:g}": sft_rate(times) for times in (3.0,)},  # at a tenth it is sft_rft_lr
    **{f"sft_rollouts_x{times:g}": rollouts_rate(times) for times in RATES},
}  # fmt: skip


def arms_of(tier: str) -> dict[str, Arm]:
    """Every arm by its name. Only notebook 05's have names that hang on the tier: RFT starts from other updates of SFT there."""
    starts = two_stage.PLANS[tier].starts
    return {
        **ONE_TASK,
        "points_sft": points_sft,
        **{f"points_rft_{start}": points_rft(start) for start in starts},
        f"points_rft_fast_{max(starts)}": points_rft(max(starts), fast=True),
        "points_sft_diverse": points_sft_diverse,
        **{name: sums(name) for name in ("sums_sft", "sums_sft_rft", *blends.BLENDS)},
        **{name: foreign_jigsaw(name) for name in ("jigsaw_sft", *blends.JIGSAW)},
        **{name: seven(name) for name in SEVEN},
    }


ARMS = arms_of("tiny")  # those that are recorded


NOTEBOOK_02 = ("sft", "sft_rft_lr", "lora_sft", "rft", "rft_kl")
NOTEBOOK_04 = (
    "sft",
    "sft_foreign",
    "sft_far",
    "sft_rollouts",
    "sft_early",
    "sft_dft",
    "self_once",
    "self_fresh",
    "rft",
)


def predictors(record: runs.RunRecord) -> dict[str, float] | None:
    """What the run's data is to the base, measured before training: "perplexity", "norm" (of a row's gradient, root mean square)
    and "direction" (cosine with the probes' mean gradients, mean over probes). None for a run without such a measurement."""
    rows = [row for row in record.metrics if row["kind"] == "dynamics" and row["step"] == 0]
    if not rows:
        return None
    cosines = rows[0]["cosine"].values()
    return {
        "perplexity": rows[0]["perplexity"],
        "norm": rows[0]["train_norm"],
        "direction": sum(cosines) / len(cosines),
    }


# --- what the README shows, made from the recorded runs ---------------------------------------------------------------------

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- results: made by `python -m rftkit record`, do not edit -->", "<!-- end of results -->"
TARGET = 0.5  # exact accuracy at which arms are compared
SUMS_TARGET = 0.35  # of the sums, in notebook 06: RFT alone does not reach a half


def summary() -> str:
    """What the README shows, as Markdown: the main figure of notebook 02, and its table."""
    first = recorded(NOTEBOOK_02)
    return "\n".join(["![" + alt_text(_matched(first)) + "](course/figures/matched_drop.png)", "", *_table(first)])


def results() -> str:
    """The results of all notebooks as Markdown: every arm at matched accuracy, with t intervals over seeds, and the drop probe by probe."""
    first, data = recorded(NOTEBOOK_02), recorded(NOTEBOOK_04)
    sweep = recorded(tuple(arm for arm in ARMS if arm.startswith(("sft_x", "sft_rollouts_x"))))
    return "\n".join([
        "## SFT and RFT on the jigsaw (notebook 02)", "",
        *_table(first), "", *_by_probe(first), "", "![" + alt_text(learning_curves(first, TARGET)) + "](figures/sft_vs_rft.png)", "",
        "## Other data (notebook 04)", "",
        "One algorithm and one learning rate, RFT's own aside; own rollouts begin from a policy that RFT trained first, whose updates count.", "",
        *_table(data), "", "![" + alt_text(_matched(data)) + "](figures/rollout_sft.png)", "",
        "And at other learning rates, as multiples of SFT's own:", "", *_table(sweep), "",
        "## GeneralPoints (notebook 05)", "",
        "Share of hands solved at the first attempt, in distribution (J, Q, K count as 10) and out of it (11, 12,\n"
        "13, and a face card in every hand); mean over seeds with its t interval of 95 %:", "", *_points(), "",
        "## Sums of three to five terms (notebook 06)", "",
        f"All arms from one practised base, {blends.TINY.steps} updates at one rate: share right at the end; points of the\n"
        f"prior lost since that base, at the end and where {SUMS_TARGET:.0%} of the sums are right (of the runs that got there; SFT, then RFT is still SFT there):", "", *_sums(), "",
        "## Seven tasks in a row (notebook 07)", "",
        "From one practised base. AvgAcc: mean accuracy on all seven at the end. FM: what a task lost from its best to the end, mean over the seven,\n"
        "all points in time. Gain: what a task rose by while it was trained, of joint training from base to end. Probes: change of the prior since\n"
        "that base. All in points.", "", *_sevens(),
    ])  # fmt: skip


def _points() -> list[str]:
    """SFT at its peak and at its end, and what RFT makes of each of SFT's checkpoints."""
    first = {r.seed: r for r in recorded(("points_sft",))}
    if len(first) < 2:
        return ["Not enough runs are recorded."]
    last = max(r.evals()[-1]["step"] for r in first.values())
    peaks = {seed: two_stage.peak(r) for seed, r in first.items()}
    lines = [
        "| | seeds | update | in distribution | out of distribution | change out of distribution by RFT |",
        "|---|---|---|---|---|---|",
    ]

    def line(name: str, runs_: dict[int, runs.RunRecord], steps: dict[int, int], gain: str = "-") -> None:
        shares = [[two_stage.at(r, steps[s], cell) for s, r in runs_.items()] for cell in (two_stage.ID, two_stage.OOD)]
        seen = ", ".join(map(str, runs_))
        lines.append(
            f"| {name} | {seen} | {_range(list(steps.values()))} | {_percent(shares[0])} | {_percent(shares[1])} | {gain} |"
        )

    line("SFT, the peak that validation hands choose", first, peaks)
    line("SFT, last update", first, dict.fromkeys(first, last))
    for arm in (a for a in ARMS if a.startswith("points_rft_")):
        start, after = int(arm.rpartition("_")[2]), {r.seed: r for r in recorded((arm,)) if r.seed in first}
        if len(after) > 1:
            ends = {s: r.evals()[-1]["step"] for s, r in after.items()}
            gains = [two_stage.at(r, ends[s]) - two_stage.at(first[s], start) for s, r in after.items()]
            name = f"RFT from SFT's update {start}" if start else "RFT from the base"
            line(name + ", rate x 3" * ("_fast_" in arm), after, ends, _percent(gains, "+"))
    if diverse := {r.seed: r for r in recorded(("points_sft_diverse",))}:
        line("SFT in many wordings, last update", diverse, {s: r.evals()[-1]["step"] for s, r in diverse.items()})
    return lines


def _sums() -> list[str]:
    """Every arm on long sums: what it learnt, also on the longest, and what it lost."""
    lines = [
        "| arm | seeds | right | right, five terms | lost at the end | lost on the way | got there |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in (arm for arm in ARMS if arm.startswith("sums_")):
        some = [blends.from_base(r) for r in recorded((name,))]
        if len(some) < 2:
            continue
        ends = [r.evals()[-1] for r in some]
        five = [e["levels"]["5"]["correct"] / sum(e["levels"]["5"].values()) for e in ends]
        lost = [r.evals()[0]["prior_mean"] - e["prior_mean"] for r, e in zip(some, ends, strict=True)]
        way = [m["drop"] / 100 for r in some if (m := runs.at_matched(r, SUMS_TARGET))]
        lost_on_the_way = "-" if name == "sums_sft_rft" else _points_of(way)  # there SFT has not ended yet
        seen = ", ".join(str(r.seed) for r in some)
        lines.append(
            f"| {blends.LABELS[name]} | {seen} | {_percent([e['new_exact'] for e in ends])} | {_percent(five)} | {_points_of(lost)} "
            f"| {lost_on_the_way} | {len(way)} of {len(some)} |"
        )
    return lines


def _sevens() -> list[str]:
    """Every sequence of seven tasks: what it knows at the end, what it forgot, and what it had learnt."""
    lines = [
        "| method | seeds | AvgAcc | FM | gain | probes | updates | replies sampled |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in (arm for arm in ARMS if arm.startswith("seven_")):
        some = [continual.Sequence(r) for r in recorded((name,))]
        if len(some) < 2:
            continue
        found = [s.matrix.accuracy for s in some]
        if len(lines) == 2:  # the base is the same for all
            lines.append(f"| the practised base | - | {100 * found[0][0].mean():.1f} | - | - | - | - | - |")
        fm = _points_of([continual.forgetting(p) for p in found]) if all(s.in_a_row for s in some) else "-"
        cost = [s.cost for s in some]
        lines.append(
            f"| {style_of(name).label} | {', '.join(str(s.record.seed) for s in some)} | {_points_of([continual.avg_acc(p) for p in found])} | {fm} "
            f"| {_points_of([s.gain for s in some])} | {_points_of([float(s.prior[-1] - s.prior[0]) for s in some])} "
            f"| {_range([c['updates'] for c in cost])} | {_range([c['rollouts'] + c['sampled'] for c in cost])} |"
        )
    return lines


def _points_of(shares: Sequence[float]) -> str:
    if len(shares) < 2:
        return f"{100 * shares[0]:.1f}" if shares else "-"
    mean, low, high = (round(x, 1) + 0.0 for x in t_interval([100 * share for share in shares]))  # no -0.0
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


def _percent(shares: Sequence[float], sign: str = "") -> str:
    mean, low, high = t_interval([100 * share for share in shares])
    return f"{mean:{sign}.1f} % ({low:.1f} to {high:.1f})"


def _table(records: list[runs.RunRecord]) -> list[str]:
    if not records:
        return ["No run of these arms is recorded."]
    lines = [
        f"Where {TARGET:.0%} of the puzzles are solved (intervals: Student's t, 95 %, over the seeds that got there; seconds of training on one\nthread of a busy machine):",
        "",
        "| arm | seeds that got there | at update | seconds | points of the prior lost | interval | did not get there |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in runs.matched_table(records, TARGET):
        mine = [r for r in records if r.method == row.method and r.seed in row.seeds]
        at = [runs.at_matched(r, TARGET) for r in mine]
        steps = [m["step"] for m in at if m]
        seconds = [value_at(*runs.curve(r, "seconds"), m["step"]) for r, m in zip(mine, at, strict=True) if m]
        spread = f"{row.lo:.1f} to {row.hi:.1f}" if len(steps) > 1 else "-"
        lines.append(
            f"| {_label(row.method)} | {', '.join(map(str, row.seeds)) or '-'} | {_range(steps)} | {_range(seconds)} "
            f"| {f'{row.mean:.1f}' if steps else '-'} | {spread} | {run_labels(row.excluded) or '-'} |"
        )
    return lines


def _label(method: str) -> str:
    """The name of an arm; one of the sweep is named by the arm it varies."""
    family, _, times = method.partition("_x")
    return style_of(family).label + (f", rate x {times}" if times else "")


def _range(values: list[float]) -> str:
    ends = [f"{end:.0f}" for end in (min(values), max(values))] if values else ["-"]
    return " to ".join(dict.fromkeys(ends))


def _by_probe(records: list[runs.RunRecord]) -> list[str]:
    """Accuracy on each probe when the run reached the target, linear between evaluations, mean over the runs that got there."""
    probes = list(records[0].evals()[0]["prior"])
    lines = ["Accuracy probe by probe at that point in percent, mean over the same seeds:", ""]
    lines += ["| arm | " + " | ".join(probes) + " |", "|---" * (len(probes) + 1) + "|"]
    for method in dict.fromkeys(r.method for r in records):
        reached = [(r, m["step"]) for r in records if r.method == method and (m := runs.at_matched(r, TARGET))]
        if reached:
            shares = [sum(_accuracy_at(r, probe, step) for r, step in reached) / len(reached) for probe in probes]
            lines.append(f"| {_label(method)} | " + " | ".join(f"{100 * share:.0f}" for share in shares) + " |")
    return lines


def _accuracy_at(record: runs.RunRecord, probe: str, step: float) -> float:
    rows = record.evals()
    return value_at(
        [r["step"] for r in rows], [r["prior"][probe]["correct"] / sum(r["prior"][probe].values()) for r in rows], step
    )


def _matched(records: list[runs.RunRecord]) -> Figure:
    return matched_drop(runs.matched_table(records, TARGET))


def one_jigsaw() -> Figure:
    """The first test question of the new task, and its solution."""
    row = tasks.JIGSAW.row(0, 0)
    assert row.image is not None
    rows, cols, answer = row.data["rows"], row.data["cols"], row.data["answer"]
    return puzzle(jigsaw.Puzzle(row.image, answer, answer, rows, cols, "forward"))


def recorded(methods: Sequence[str]) -> list[runs.RunRecord]:
    """The recorded runs of the tiny tier of these arms, in their order."""
    return sorted(
        (r for r in runs.load_recorded() if r.method in methods), key=lambda r: (list(methods).index(r.method), r.seed)
    )


def write_results() -> None:
    """Renew the tables and figures of the README and of course/results.md from the recorded runs."""
    folder = ROOT / "course" / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    first = recorded(NOTEBOOK_02)
    figures = {
        "one_jigsaw": one_jigsaw(),
        "matched_drop": _matched(first),
        "sft_vs_rft": learning_curves(first, TARGET),
        "rollout_sft": _matched(recorded(NOTEBOOK_04)),
    }
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150, transparent=True)
    for page, text in ((ROOT / "README.md", summary()), (ROOT / "course" / "results.md", results())):
        head, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        runs.write_whole(page, head + BEGIN + "\n\n" + text + "\n\n" + END + rest.partition(END)[2])
