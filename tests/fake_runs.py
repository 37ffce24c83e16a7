"""Made-up run records for tests: five methods, SFT half-way at about 30 updates and RFT at about 250."""

import math

import numpy as np

from rftkit.runs import RunRecord

PROBES = ("color", "count", "ground", "exist", "relate", "digits", "arithmetic", "lookup")
SHAPES = {  # method: (updates to 50%, prior accuracy lost for good, last step)
    "sft": (30, 0.55, 100),
    "sft_rft_lr": (75, 0.35, 200),
    "lora_sft": (45, 0.30, 150),
    "rft": (250, 0.05, 400),
    "rft_kl": (290, 0.03, 400),
}


def eval_row(step, new=0.0, prior=0.8, n=200, probes=PROBES):
    """An evaluation with the same accuracy `prior` on every probe; one wrong answer in four is unparseable."""
    correct = round(prior * n)
    lost = (n - correct) // 4
    counts = {"correct": correct, "wrong": n - correct - lost, "unparseable": lost}
    return {
        "kind": "eval", "step": step, "seconds": 1.5 * step, "examples": 32 * step, "tokens": 900 * step,
        "new_exact": new, "new_hit": min(1.0, new + 0.1), "new_n": n,
        "prior": {p: dict(counts) for p in probes}, "prior_mean": correct / n,
    }  # fmt: skip


def record(method="sft", seed=0, rows=(), source="live", **fields):
    """A record from (step, new_exact, prior_mean) triples."""
    metrics = [eval_row(*row) for row in rows]
    fields = {"name": f"{method}-{seed}", "preset": "tiny", "status": "done", "metrics": metrics} | fields
    return RunRecord(method=method, seed=seed, source=source, **fields)


def noisy(method, seed, source="recorded"):
    """A run shaped like the real ones: a sigmoid on log updates, and a prior that decays faster for some probes."""
    half, lost, last = SHAPES[method]
    rng = np.random.default_rng([seed, list(SHAPES).index(method)])
    half, lost = half * math.exp(rng.normal(0, 0.08)), lost * math.exp(rng.normal(0, 0.1))
    out = record(method, seed, source=source)
    for step in range(0, last + 1, last // 10):
        row = eval_row(step, 1 / (1 + (half / max(step, 1e-9)) ** 4))
        for k, counts in enumerate(row["prior"].values()):
            accuracy = 0.85 - lost * (1 - math.exp(-step / (0.8 * half))) * (1 + 0.3 * math.sin(k))
            good = int(rng.binomial(200, accuracy))
            unread = int((200 - good) * (0.6 if step and k % 2 else 0.1))
            counts.update(correct=good, wrong=200 - good - unread, unparseable=unread)
        row["prior_mean"] = float(np.mean([counts["correct"] / 200 for counts in row["prior"].values()]))
        out.metrics.append(row)
    return out


def all_noisy(seeds=range(3)):
    """Every method; seed 0 of SFT and RFT is live, the rest recorded."""
    live = {("sft", 0), ("rft", 0)}
    return [noisy(m, s, "live" if (m, s) in live else "recorded") for m in SHAPES for s in seeds]
