"""Made-up records of notebook 06: every arm goes on from one practised base; RFT learns a little, Prefix-RFT more, SFT most."""

import math

import numpy as np
from fake_runs import eval_row, record

LEVELS = ("3", "4", "5")
BASE, STEPS = 50, (0, 40, 80, 120, 160, 200, 240)
END = {"sums_rft": 0.42, "sums_prefix": 0.7, "sums_sft": 0.94, "sums_sft_rft": 0.93, "sums_practice": 0.26}
LOST = {"sums_rft": 0.03, "sums_prefix": 0.08, "sums_sft": 0.6, "sums_sft_rft": 0.5}


def row(step, seed, method, base=BASE):
    """An evaluation `step` updates after the practised base, as `blends.evaluation` makes it."""
    rng = np.random.default_rng([seed, step, len(method)])
    learnt = 1 - math.exp(-step / 90)
    share = 0.26 + (END.get(method, 0.6) - 0.26) * learnt
    out = eval_row(base + step, share, 0.9 - LOST.get(method, 0.2) * learnt, n=50)
    out["levels"], out["sampled"] = {}, {}
    for level, harder in zip(LEVELS, (1.3, 1.0, 0.7), strict=True):
        p = min(1.0, max(0.0, share * harder))
        correct = int(rng.binomial(100, p))
        out["levels"][level] = {"correct": correct, "wrong": 100 - correct, "unparseable": 0}
        out["sampled"][level] = [int(c) for c in rng.binomial(16, p * rng.uniform(0.5, 1, 20))]
    out["words"] = 17.0 + 3 * learnt
    out["new_n"] = 300
    return out


def update(step, seed, method, norms):
    """An update `step` after the practised base."""
    rng = np.random.default_rng([seed, step, 7])
    out = {
        "kind": "train",
        "step": BASE + step,
        "tokens": 5000 * step,
        "seconds": 1.0 * step,
        "loss": 0.01,
        "reward": 0.4,
    }
    out |= {"entropy": 0.2, "completions_mean_length": 17.0, "grad_norm": 0.1}
    if method == "sums_rft":
        return out | {"prefix_free_reward": 0.4, "prefix_share": 0.0, "prefix_share_kept": 0.0}
    if method.startswith("sums_sft"):
        return out
    out |= {"prefix_length": 0.95 - 0.45 * step / 240, "prefix_share": 0.1, "prefix_share_kept": 0.02}
    out |= {"prefix_free_reward": 0.4, "prefix_prefixed_reward": 0.6, "prefix_advantage": 0.2, "prefix_entropy": 0.2}
    for k, level in enumerate(LEVELS):
        out[f"prefix_advantage_level_{level}"] = (0.1 + 0.2 * k) * (1 - step / 300) + float(rng.normal(0, 0.05))
    return out | ({"prefix_norm": 0.12, "prefix_norm_free": 0.1, "prefix_norm_all": 0.2} if norms else {})


def run(method="sums_prefix", seed=0, source="recorded", base=BASE):
    """As recorded: the practised base's rows, then the arm's own. `base` = 0: as the figures take it, from the base on."""
    out = record(method, seed, source=source, name=f"{method}-s{seed}", config={"steps": STEPS[-1], "base": "0123"})
    first = [row(0, 9, "sums_practice", base)]
    if base:  # the bundled base, which can do no sum in this form
        first.insert(0, row(0, 9, "sums_practice", 0) | {"new_exact": 0.0, "prior_mean": 0.96})
    out.metrics = first
    for step in range(1, STEPS[-1] + 1):
        update_row = update(step, seed, method, norms=method in ("sums_prefix", "sums_all_tokens") and step % 10 == 1)
        out.metrics.append(update_row | {"step": base + step})
        if step in STEPS:
            out.metrics.append(row(step, seed, method, base))
    text = {"prompt": "what is 5 - 4 + 9 ?", "completion": "5 - 4 = 1 then 1 + 9 = 10", "reward": 1.0}
    out.samples = [{"step": base + step, **text} for step in STEPS for _ in range(3)]
    return out
