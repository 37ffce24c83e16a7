"""Made-up records of notebook 07: SFT learns most and forgets most, RFT less of both; joint SFT is one run."""

import math

import numpy as np
from fake_runs import eval_row

from rftkit.methods import METHODS, ORDER_A, ORDER_B
from rftkit.runs import RunRecord, save_record

BASE = (0.25, 0.4, 0.42, 0.3, 0.12, 0.2, 0.3)  # by task, before any
DIRECT = (0.5, 0.38, 0.45, 0.33, 0.1, 0.15, 0.25)
GAIN = {"sft": 0.45, "grpo": 0.3}
LOST = {
    "sft": 0.5,
    "grpo": 0.06,
    "self": 0.1,
    "replay": 0.3,
    "l2": 0.3,
    "sft_rft_lr": 0.3,
}  # of what was gained, a task
N = 100


def matrix(method, seed, order):
    """P (T + 1, T), or (2, T) of joint training: shares of N questions."""
    rng = np.random.default_rng([seed, sum(map(ord, method))])
    family = METHODS[method].family
    gain = GAIN["sft" if family == "sft" else "grpo"] * rng.normal(1, 0.08)
    lost = LOST.get(method, LOST["sft" if family == "sft" else "grpo"]) * rng.normal(1, 0.1)
    base = dict(zip(ORDER_A, BASE if METHODS[method].thinking else DIRECT, strict=True))
    rows = [[base[name] for name in order]]
    for t in range(1) if method == "joint" else range(len(order)):
        row = [max(0.0, before - lost * gain * (1 if j < t else 0.4)) for j, before in enumerate(rows[-1])]
        row = [x + gain for x in rows[0]] if method == "joint" else row
        row[t] = max(row[t], rows[-1][t] + gain)
        rows.append([float(np.clip(x + rng.normal(0, 0.01), 0, 1)) for x in row])
    return np.round(np.array(rows) * N).astype(int)


def sequence(method="grpo", seed=0, order="a", source="recorded", tasks=None):
    """A record as `continual.run_sequence` leaves it."""
    names = tuple(tasks or (ORDER_A if order == "a" else ORDER_B))
    counts = matrix(method, seed, names)
    prior = 0.97 * np.exp(
        -LOST.get(method, 0.4 if METHODS[method].family == "sft" else 0.03) * np.arange(len(counts)) / 4
    )
    rft = METHODS[method].family == "rft"
    updates = 60 if rft else 40 * (len(names) if method == "joint" else 1)
    metrics = []
    for t, row in enumerate(counts):
        out = eval_row(t * updates, float(row.mean()) / N, float(prior[t]), n=50)
        out["tasks"] = {
            name: {"correct": int(c), "wrong": N - int(c) - min(3, N - int(c)), "unparseable": min(3, N - int(c))}
            for name, c in zip(names, row, strict=True)
        }
        metrics.append(out)
        if t:
            metrics.append(stage(method, "joint" if method == "joint" else names[t - 1], t, updates, rft, seed))
    config = {
        "suite": "seven",
        "order": list(names),
        "method": {"name": method},
        "plan": {"sft_lr": 5e-4, "rft_lr": 2e-4},
    }
    name = f"seven_{method}{'' if order == 'a' else '_' + order}"
    return RunRecord(f"{name}-s{seed}", name, "tiny", seed, config, {"python": "3"}, "done", metrics, [], source)


def stage(method, task, place, updates, rft, seed):
    filtered = METHODS[method].keep
    left = 640 - 60 * place if filtered else 640
    cost = {
        "updates": updates * left // 640, "rollouts": 128 * updates if rft else 0, "sampled": 5120 if filtered else 0,
        "examples": 64 * updates, "tokens": 1000 * updates, "seconds": 1.0 * updates, "sampling_seconds": 20.0 if filtered else 0.0,
    }  # fmt: skip
    train = {"loss": {"first": 1.0, "last": 0.3, "most": 1.1}}
    if rft:
        kl = 0.02 * place * (1.5 if method == "grpo_no_kl" else 1)
        train = {
            "reward": {"first": 0.4, "last": 0.6, "most": 0.7}, "kl": {"first": 0.0, "last": kl, "most": 2 * kl},
            "frac_reward_zero_std": {"first": 0.4, "last": 0.5 + 0.05 * math.sin(seed), "most": 0.8},
            "grad_norm": {"first": 1.0, "last": 0.6, "most": 2.0},
        }  # fmt: skip
    card = (
        {"prompts": 640, "samples": 5120, "prompts_kept": left, "share_kept": left / 640, "trained_on": left}
        if filtered
        else None
    )
    return {
        "kind": "stage",
        "step": place * updates,
        "task": task,
        "run": f"r{place}",
        "cost": cost,
        "train": train,
        "card": card,
    }


def write(folder, seeds=range(3), methods=tuple(METHODS)):
    """As they ship: one file a sequence."""
    for method in methods:
        for seed in seeds:
            for order in "ab" if method in ("sft", "grpo") else "a":
                found = sequence(method, seed, order)
                save_record(found, folder / f"tiny-{found.name}.json")
