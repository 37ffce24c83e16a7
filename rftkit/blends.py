"""The experiment of notebook 06: long sums learnt from demonstrations, from rollouts, and from mixtures of the two (2507.01679).

All arms begin with the same *practised base*: the bundled one that knows cards, after a little SFT on sums whose work is shown, so
that it gets sums of three terms right now and then and longer ones hardly ever. Demonstrations are an oracle's (`chains`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rftkit import chains, evals, hub, math_data, recording, runs
from rftkit import prefix_rft as p
from rftkit.config import BUNDLED, CARDS, Preset, UserError
from rftkit.policy import Policy, generate
from rftkit.prefix_rft import Blend, Oracle, train_prefix_rft
from rftkit.rft import Practice
from rftkit.rollouts import in_other_words, reworded, sample_seed
from rftkit.sft import Data, Lazy, train_sft
from rftkit.tasks import Row, Task

DRAWS = 16  # samples a sum, for pass@k


GAME = chains.Chains(terms=(3, 5), most=9)
PRACTICE = chains.Chains(terms=(2, 5), most=9)


@dataclass(frozen=True)
class Plan:
    """Sizes and rates. `practice` updates of SFT at `practice_lr` make the base; every arm then takes `steps` updates, SFT of
    `preset.sft_batch` demonstrations, the others of `preset.rft_prompts` x `preset.rft_group` rollouts, all at one rate."""

    game: chains.Chains = GAME
    practised: chains.Chains = PRACTICE
    practice: int = 50
    practice_lr: float = 3e-4
    lr: float = 2e-4
    steps: int = 240
    evaluations: int = 6
    max_completion: int = 40
    asked: int = 300
    probed: int = 50
    first: tuple[int, ...] = (
        4,
        8,
        12,
        16,
        20,
        30,
    )  # more evaluations of SFT, which learns most before the others' first
    sampled: int = 60  # sums that are asked DRAWS times at temperature 1 in each evaluation, for pass@k

    @property
    def eval_steps(self) -> set[int]:
        return {self.steps * i // self.evaluations for i in range(1, self.evaluations + 1)}


TINY = Plan()
ORACLE = Oracle("oracle", chains.oracle)
PRACTISED = Oracle("practised", chains.practised)
FOREIGN = Oracle("foreign", chains.foreign)
WORDY = Oracle("wordy", chains.wordy)
REWRITTEN = Oracle("rewritten", chains.rewritten)


def weak(share: float, correct_only: bool = False) -> Oracle:
    return Oracle(f"weak {share}{' correct only' * correct_only}", chains.weak(share, correct_only=correct_only))


WRONG = Oracle("wrong", chains.wrong())


def own_preset(preset: Preset, plan: Plan) -> Preset:
    """The preset as this experiment uses it: the tiny tier starts from the base that knows cards."""
    model = CARDS if preset.name == "tiny" and preset.model == BUNDLED else preset.model
    return replace(preset, model=model, max_completion=plan.max_completion, eval_n=min(preset.eval_n, plan.probed))


# --- measuring -------------------------------------------------------------------------------------------------------------


def evaluation(plan: Plan) -> recording.Evaluate:
    """Greedy replies to the test split, the probes, and for pass@k the right ones of DRAWS samples.

    In the row new_exact is the share of right replies, new_hit that of replies with a total in them, "levels" counts by number of
    terms, "words" the mean length of a reply, "sampled" how many of DRAWS samples are right, one number a sum and level.
    """
    rows = chains.task(plan.game).rows(recording.EVAL_SEED, plan.asked)

    def evaluate(policy: Policy) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        texts = generate(policy, rows)
        levels = chains.level_counts(texts, rows)
        prior = {
            name: evals.evaluate(
                lambda asked: generate(policy, asked), task, task.rows(recording.EVAL_SEED, policy.preset.eval_n)
            )
            for name, task in hub.probes(policy.preset).items()
        }
        samples = [
            {"prompt": r.prompt, "completion": t, "reward": float(chains.score(t, r.data["chain"]) == "correct")}
            for t, r in list(zip(texts, rows, strict=True))[:3]
        ]
        row = {
            "kind": "eval",
            "new_exact": sum(c.correct for c in levels.values()) / len(rows),
            "new_hit": 1 - sum(c.unparseable for c in levels.values()) / len(rows),
            "new_n": len(rows),
            "levels": {str(level): asdict(count) for level, count in levels.items()},
            "words": sum(len(text.split()) for text in texts) / len(texts),
            "sampled": _sampled(policy, rows[: plan.sampled]),
            "prior": {name: asdict(count) for name, count in prior.items()},
            "prior_mean": evals.prior_mean(prior),
        }
        return row, samples

    return evaluate


def _sampled(policy: Policy, rows: Sequence[Row]) -> dict[str, list[int]]:
    """By level, how many of DRAWS replies to each sum are right."""
    asked = [(i, d) for i in range(len(rows)) for d in range(DRAWS)]
    texts = generate(
        policy, [rows[i] for i, _ in asked], temperature=1.0, seed=[sample_seed(recording.EVAL_SEED, 0, i, d) for i, d in asked]
    )  # fmt: skip
    right = [0] * len(rows)
    for (i, _), text in zip(asked, texts, strict=True):
        right[i] += chains.score(text, rows[i].data["chain"]) == "correct"
    found: dict[str, list[int]] = {}
    for row, count in zip(rows, right, strict=True):
        found.setdefault(str(row.data["level"]), []).append(count)
    return found


# --- arms -----------------------------------------------------------------------------------------------------------------


def practised_base(preset: Preset, plan: Plan = TINY, home: Path | None = None) -> recording.Before:
    """What every arm goes on from, the same for all seeds: it stands for a base model."""
    task = chains.task(plan.practised)
    rows = Lazy(preset.train_n, lambda i: replace(row := task.row(0, i, "train"), answer=chains.practised(row)))
    record, _ = train_sft(
        own_preset(preset, plan), 0, name="sums_practice", data=Data(f"practised sums {plan.practised}", lambda policy, folder: rows),
        lr=plan.practice_lr, steps=plan.practice, save_at={plan.practice}, evaluate=evaluation(plan), home=home,
    )  # fmt: skip
    return recording.Before(record, recording.weights_at(recording.run_folder(record, home), plan.practice))


def from_base(record: runs.RunRecord, start: int = TINY.practice) -> runs.RunRecord:
    """A run on sums from the practised base on: updates count from there, and so does forgetting."""
    rows = [row for row in record.metrics if row["step"] > start or (row["step"] == start and row["kind"] == "eval")]
    samples = [{**s, "step": s["step"] - start} for s in record.samples if s["step"] >= start]
    return replace(record, metrics=[{**row, "step": row["step"] - start} for row in rows], samples=samples)


def imitate(
    preset: Preset, seed: int, *, name: str = "sums_sft", oracle: Oracle = ORACLE, plan: Plan = TINY, home: Path | None = None
) -> tuple[runs.RunRecord, Policy]:  # fmt: skip
    """SFT on the demonstrations. The weights at every evaluation are kept: RFT may go on from one."""
    task = chains.task(plan.game)
    rows = Lazy(preset.train_n, lambda i: replace(row := task.row(seed, i, "train"), answer=oracle.says(row)))
    data = Data(f"sums {plan.game}, {oracle.name}", lambda policy, folder: rows)
    return train_sft(
        own_preset(preset, plan), seed, name=name, data=data, lr=plan.lr, steps=plan.steps,
        eval_steps=plan.eval_steps | {step for step in plan.first if step < plan.steps}, save_at=plan.eval_steps, after=practised_base(preset, plan, home), evaluate=evaluation(plan), home=home,
    )  # fmt: skip


def blend(
    preset: Preset,
    seed: int,
    how: Blend = p.PREFIX_RFT,
    *,
    name: str,
    oracle: Oracle = ORACLE,
    plan: Plan = TINY,
    after: recording.Before | None = None,
    norms_every: int = 0,
    home: Path | None = None,
) -> tuple[runs.RunRecord, Policy]:
    """Any mixture of `prefix_rft`, from the practised base or from `after`."""
    practice = Practice(f"sums {plan.game}", chains.task(plan.game), (chains.right,))
    return train_prefix_rft(
        own_preset(preset, plan), seed, how, name=name, lr=plan.lr, steps=plan.steps, practice=practice, demonstrations=oracle,
        norms_every=norms_every, after=after or practised_base(preset, plan, home), evaluate=evaluation(plan), eval_steps=plan.eval_steps,
        home=home,
    )  # fmt: skip


def sft_then_rft(
    preset: Preset, seed: int, *, name: str = "sums_sft_rft", plan: Plan = TINY, home: Path | None = None
) -> tuple[runs.RunRecord, Policy]:
    """A third of the updates SFT, the rest RFT: as many in all as every other arm takes."""
    record, _ = imitate(preset, seed, plan=plan, home=home)
    base = practised_base(preset, plan, home).record.evals()[-1]["step"]
    first = plan.steps // 3
    cut = replace(record, metrics=[row for row in record.metrics if row["step"] <= base + first], samples=[])
    after = recording.Before(cut, recording.weights_at(recording.run_folder(record, home), first))
    rest = replace(plan, steps=plan.steps - first, evaluations=plan.evaluations * 2 // 3)
    return blend(preset, seed, p.PLAIN, name=name, plan=rest, after=after, home=home)


# What varies, by the name of the arm: how demonstrations are blended in, and whose they are.
BLENDS: dict[str, tuple[Blend, Oracle]] = {
    "sums_rft": (p.PLAIN, ORACLE),
    "sums_prefix": (p.PREFIX_RFT, ORACLE),
    # other mixtures (B3, B4)
    "sums_rl_sft": (p.rl_with_sft(0.01), ORACLE),
    "sums_rl_more_sft": (p.rl_with_sft(0.1), ORACLE),
    "sums_uft": (p.UFT_LIKE, ORACLE),
    "sums_luffy": (p.LUFFY_LIKE, ORACLE),
    "sums_srft": (p.SRFT_LIKE, ORACLE),
    # what of Prefix-RFT matters (B5 to B9)
    "sums_frozen": (p.FROZEN, ORACLE),
    "sums_constant_001": (p.constant(0.001), ORACLE),
    "sums_constant_01": (p.constant(0.01), ORACLE),
    "sums_constant_1": (p.constant(0.1), ORACLE),
    "sums_all_tokens": (p.ALL_TOKENS, ORACLE),
    "sums_top_50": (Blend(keep=0.5), ORACLE),
    "sums_top_80": (Blend(keep=0.8), ORACLE),
    "sums_random": (p.RANDOM, ORACLE),
    "sums_lowest": (p.LOWEST, ORACLE),
    "sums_clip_free": (p.CLIP_FREE, ORACLE),
    "sums_uniform": (p.UNIFORM, ORACLE),
    "sums_fixed": (p.fixed(0.5), ORACLE),
    "sums_code": (Blend(advantage="dr_grpo_prefix"), ORACLE),
    "sums_code_v2": (Blend(advantage="dr_grpo_prefix_v2"), ORACLE),
    # how many and whose demonstrations (B10, B11)
    "sums_demos_10": (p.demos(0.1), ORACLE),
    "sums_demos_1": (p.demos(0.01), ORACLE),
    "sums_weak": (p.PREFIX_RFT, weak(0.3)),
    "sums_wrong": (p.PREFIX_RFT, WRONG),
    "sums_practised": (p.PREFIX_RFT, PRACTISED),
    "sums_wordy": (p.PREFIX_RFT, WORDY),
    "sums_foreign": (p.PREFIX_RFT, FOREIGN),
}


LABELS = {
    "sums_sft": "SFT", "sums_sft_rft": "SFT, then RFT", "sums_rft": "RFT", "sums_prefix": "Prefix-RFT", "sums_rl_sft": "RFT + 0.01 SFT loss",
    "sums_rl_more_sft": "RFT + 0.1 SFT loss", "sums_uft": "UFT-like", "sums_luffy": "LUFFY-like", "sums_srft": "SRFT-like",
    "sums_frozen": "prefix not learnt from", "sums_constant_001": "constant weight 0.001", "sums_constant_01": "constant weight 0.01",
    "sums_constant_1": "constant weight 0.1", "sums_all_tokens": "all prefix tokens", "sums_top_50": "top half by entropy",
    "sums_top_80": "top 80 % by entropy", "sums_random": "a random fifth", "sums_lowest": "the lowest fifth",
    "sums_clip_free": "RFT, a fifth of its own tokens", "sums_uniform": "uniform length", "sums_fixed": "always half",
    "sums_code": "the code's estimator", "sums_code_v2": "the code's estimator, v2", "sums_demos_10": "10 % of demonstrations",
    "sums_demos_1": "1 % of demonstrations", "sums_weak": "practised style, weak", "sums_wrong": "practised style, always wrong",
    "sums_practised": "practised style, right", "sums_wordy": "wordy style", "sums_foreign": "foreign style",
}  # fmt: skip


# --- on the jigsaw ---------------------------------------------------------------------------------------------------------------


def jigsaw_arm(name: str, preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
    """The jigsaw with demonstrations that reason rightly in words the base never says ("top left"; `rollouts.in_other_words`):
    "jigsaw_prefix", "jigsaw_rft" (the same trainer without them) and "jigsaw_sft" (SFT on them), all at RFT's rate."""
    oracle = Oracle("far words", lambda row: in_other_words(row, preset.prompt_style, far=True))
    steps = preset.rft_steps
    if name == "jigsaw_sft":
        return train_sft(
            preset, seed, name=name, data=reworded(preset, hub.new_task(preset), seed, far=True), lr=preset.rft_lr, steps=steps,
            eval_steps={*range(20, steps, 20), steps}, home=home,
        )  # fmt: skip
    if name not in JIGSAW:
        raise UserError(f"There is no arm {name!r}: choose jigsaw_sft, {', '.join(JIGSAW)}.")
    return train_prefix_rft(
        preset,
        seed,
        JIGSAW[name],
        name=name,
        demonstrations=oracle,
        eval_steps={*range(20, steps, 20), steps},
        home=home,
    )


JIGSAW: dict[str, Blend] = {"jigsaw_rft": p.PLAIN, "jigsaw_prefix": p.PREFIX_RFT}


# --- on competition mathematics, for the GPU tiers ------------------------------------------------------------------------------


def math_arm(
    name: str, preset: Preset, seed: int, *, steps: int = 500, asked: int = 300, source: hub.Source = math_data.SOURCE,
    home: Path | None = None,
) -> tuple[runs.RunRecord, Policy]:  # fmt: skip
    """The paper's own data: OpenR1-Math-46k with DeepSeek-R1's solutions as demonstrations, answers compared by Math-Verify.

    `name` is "math_" and how they are blended in, as in "math_prefix" or "math_rft", or "math_sft". 500 updates as in the paper;
    rates, groups and tokens are the preset's. Evaluated are `asked` held-out questions of the set, not the paper's benchmarks.
    """
    how = BLENDS.get(name.replace("math_", "sums_", 1))
    if name != "math_sft" and how is None:
        raise UserError(
            f"There is no arm {name!r}: choose math_sft, {', '.join(n.replace('sums', 'math') for n in BLENDS)}."
        )
    task = math_data.openr1(source)
    evaluate = _math_evaluation(task, asked)
    evals_at = {max(1, steps * i // 5) for i in range(1, 6)}
    if how is None:
        data = Data(
            f"openr1 {math_data.revision()}",
            lambda policy, folder: Lazy(preset.train_n, lambda i: task.row(seed, i, "train")),
        )
        return train_sft(
            preset, seed, name=name, data=data, steps=steps, eval_steps=evals_at, evaluate=evaluate, home=home
        )
    practice = Practice(f"openr1 {math_data.revision()}", task, (math_data.right,))
    return train_prefix_rft(
        preset,
        seed,
        how[0],
        name=name,
        steps=steps,
        practice=practice,
        eval_steps=evals_at,
        evaluate=evaluate,
        home=home,
    )


def _math_evaluation(task: Task, asked: int) -> recording.Evaluate:
    def evaluate(policy: Policy) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        rows = task.rows(recording.EVAL_SEED, asked)
        texts = generate(policy, rows)
        verdicts = [task.score(text, row) for text, row in zip(texts, rows, strict=True)]
        prior = {
            probe: evals.evaluate(
                lambda some: generate(policy, some), one, one.rows(recording.EVAL_SEED, policy.preset.eval_n)
            )
            for probe, one in hub.probes(policy.preset).items()
        }
        row = {
            "kind": "eval", "new_exact": verdicts.count("correct") / len(rows), "new_hit": 1 - verdicts.count("unparseable") / len(rows),
            "new_n": len(rows), "words": sum(len(text.split()) for text in texts) / len(texts),
            "prior": {name: asdict(count) for name, count in prior.items()}, "prior_mean": evals.prior_mean(prior),
        }  # fmt: skip
        samples = [
            {"prompt": r.prompt, "completion": t, "reward": float(v == "correct")}
            for r, t, v in zip(rows[:3], texts, verdicts, strict=False)
        ]
        return row, samples

    return evaluate


def arm(name: str, preset: Preset, seed: int, home: Path | None = None) -> tuple[runs.RunRecord, Policy]:
    """One arm of notebook 06 by its name: "sums_sft", "sums_sft_rft", or one of `BLENDS`."""
    if name == "sums_sft":
        return imitate(preset, seed, home=home)
    if name == "sums_sft_rft":
        return sft_then_rft(preset, seed, home=home)
    if name not in BLENDS:
        raise UserError(f"There is no arm {name!r}: choose sums_sft, sums_sft_rft, {', '.join(BLENDS)}.")
    how, oracle = BLENDS[name]
    return blend(preset, seed, how, name=name, oracle=oracle, home=home, norms_every=10 if name in NORMS else 0)


NORMS = ("sums_prefix", "sums_all_tokens")  # arms whose gradient is measured with and without prefix tokens
