"""Made-up run records for tests: every method, SFT half-way at about 30 updates and RFT at about 250."""

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
    "sft_foreign": (45, 0.30, 150),
    "sft_far": (60, 0.42, 200),
    "sft_rollouts": (40, 0.10, 150),
    "sft_early": (55, 0.20, 200),
    "self_once": (40, 0.08, 150),
    "self_fresh": (50, 0.05, 200),
    "sft_dft": (70, 0.06, 200),
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


def dynamics_row(step, bound=1.0, moved=1.0, residual=1.0, cosine=0.1, probes=PROBES):
    """What `dynamics.measure` leaves in a record, with `bound` and `moved` as the geometric means over probes."""
    tilt = np.linspace(-1, 1, len(probes))
    return {
        "kind": "dynamics", "step": step, "perplexity": 1 + residual, "train_norm": 700.0, "prior_norm": 0.02,
        "mean_norm": 300.0, "residual": residual, "spread": 150.0,
        "moved": {p: float(moved * 10**t) for p, t in zip(probes, tilt, strict=True)},
        "bound": {p: float(bound * 10**t) for p, t in zip(probes, tilt, strict=True)},
        "cosine": {p: float(cosine * t) for p, t in zip(probes, tilt, strict=True)},
    }  # fmt: skip


def measured(method, seed, source="recorded"):
    """`noisy`, with a row of dynamics at each evaluation: the residual falls, the kernel's bound rises."""
    out = noisy(method, seed, source)
    k = list(SHAPES).index(method)
    rng = np.random.default_rng([seed, k, 1])
    for row in out.evals():
        left = math.exp(-3 * row["new_exact"] + rng.normal(0, 0.1)) * (1 + k) / 4
        bound = (2 + k) * (1 + row["step"] / 40) * math.exp(rng.normal(0, 0.2))
        out.metrics.append(dynamics_row(row["step"], bound, bound * left * 150, left))
    return out


def all_noisy(seeds=range(3)):
    """Every method; seed 0 of SFT and RFT is live, the rest recorded."""
    live = {("sft", 0), ("rft", 0)}
    return [noisy(m, s, "live" if (m, s) in live else "recorded") for m in SHAPES for s in seeds]
