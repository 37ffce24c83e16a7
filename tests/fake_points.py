"""Made-up records, reports and surgery of notebook 05: SFT forgets the other rule, RFT gives some of it back."""

import math

import numpy as np
import torch
from fake_runs import eval_row, record

from rftkit import spectra

STEPS = (0, 10, 20, 40, 80, 160, 320)
STARTS = (0, 20, 80, 320)
CELLS = ("ten-any", "ten-face", "own-any", "own-face")
EDITS = (
    "none",
    "swap vectors",
    "swap values",
    "rollback 50 %",
    "random, as long as the swap",
    "top 20 %",
)


def counts(rng, share, read=0.9, n=1000):
    correct = int(rng.binomial(n, min(max(share, 0.0), 1.0)))
    unparseable = (n - correct) // 3
    return {
        "correct": correct,
        "wrong": n - correct - unparseable,
        "unparseable": unparseable,
        "read": int(rng.binomial(n, read)),
    }


def shares(step):
    """By cell: (solved, read)."""
    learnt, gone = step / (step + 60), math.exp(-step / 150)
    other = 0.35 * step / (step + 8) * gone
    return {"ten-any": (0.9 * learnt, 0.98), "ten-face": (0.92 * learnt, 0.98), "own-any": (0.4 * learnt + other, 0.8 * gone), "own-face": (other, 0.7 * gone)}  # fmt: skip


def row(step, seed, given=None):
    rng = np.random.default_rng([seed, step])
    given = given or shares(step)
    out = eval_row(step, given["ten-any"][0], 0.99 - step / 2000)
    out["cells"] = {name: counts(rng, *given[name]) for name in CELLS}
    out["validation"] = {name: counts(rng, *given[name], 500) for name in CELLS}
    out["loss"] = {name: 1.0 - given[name][0] + abs(math.log((step + 1) / 30)) / 10 for name in CELLS}
    out["feedback"] = {
        name: int(rng.binomial(100, min(1.0, given[name][0] + 0.05))) for name in ("ten-any", "own-face")
    }
    return out


def sft(seed=0, source="recorded", method="points_sft", steps=STEPS):
    out = record(method, seed, source=source, name=f"{method}-s{seed}")
    out.metrics = [row(step, seed) for step in steps]
    text = {"prompt": "rule : j is 11", "completion": "numbers 8 10 10 ; 10 + 8 - 10 = 8", "reward": -3.0}
    out.samples = [{"step": step, **text} for step in steps for _ in range(3)]
    return out


def rft(start, seed=0, source="recorded", steps=60):
    """SFT's rows up to its start, some updates with rewards, and one evaluation at the end."""
    out = record(f"points_rft_{start}", seed, source=source, name=f"points_rft_{start}-s{seed}")
    out.metrics = [row(step, seed) for step in STEPS if step <= start]
    for step in range(start + 1, start + steps + 1):
        silent = 0.9 if start == 0 else 0.3
        more = {"loss": 0.0, "reward": -2.0, "frac_reward_zero_std": silent, "entropy": 0.3, "grad_norm": 1.0}
        out.metrics.append({"kind": "train", "step": step, "tokens": 0, "seconds": 0.0, **more})
    healed = {name: (min(1.0, solved + 0.08), read) for name, (solved, read) in shares(start).items()}
    out.metrics.append(row(start + steps, seed, healed))
    out.samples = [{"step": start + steps, "prompt": "rule : j is 11", "completion": "numbers", "reward": -3.0}]
    return out


def reports(seed=0, size=0.02):
    """Of two layers of four kinds of matrix, one of them not changed."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for layer in range(2):
        for kind, shape in (
            ("self_attn.q_proj", (48, 48)),
            ("self_attn.k_proj", (24, 48)),
            ("mlp.down_proj", (48, 96)),
        ):
            base = torch.randn(shape, generator=generator) / 7
            tuned = base + size * torch.randn(shape, generator=generator) / 7
            found[f"model.layers.{layer}.{kind}.weight"] = spectra.compare(base, tuned, 8, seed)
        found[f"model.layers.{layer}.self_attn.v_proj.weight"] = None
    return found


def surgery(seed=0, edits=EDITS):
    rng = np.random.default_rng(seed)
    rows = [
        {"edit": e, "norm": 0.4 * k, "ten-any": counts(rng, 0.9 - 0.1 * k), "own-face": counts(rng, 0.02 + 0.02 * k)}
        for k, e in enumerate(edits)
    ]
    return rows


def study(seed=0):
    """As two_stage.load_study returns it."""
    names = ("base to peak", "base to end", "peak to end", "end to RFT")
    return {
        "seed": seed, "peak": 20, "end": 320, "spectra": {name: reports(seed + k) for k, name in enumerate(names)},
        "surgery": {"end to peak": surgery(seed), "RFT to end": surgery(seed + 9, EDITS[:4])},
    }  # fmt: skip
