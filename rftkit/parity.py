"""A second test bench, independent of every other one here: ParityMNIST of RL's Razor (2509.04259, appendix B.3), on drawn pictures.

A small network learns two tasks at once: to answer a picture of a digit with *any* digit of the same parity, and to name a garment.
Then it is fine-tuned on parity alone. Since five answers are right, methods that reach the same accuracy may end far apart; what each
forgets of the garments is set against how far it went. A reply is one token of ten, so every KL is exact: nothing is sampled.

Of the paper (read in full for our notes): the network 785-512-256-10, whose last input says which task; 500 pictures of each task to
begin with; labels of parity drawn uniformly from the digits of the right parity; the arms "one" (even 0, odd 1), "two" (even 0 or
4, odd 1 or 5), oracle SFT, GRPO with and without KL 0.1, and 0/1 REINFORCE. Ours: pictures drawn here in place of MNIST and
FashionMNIST (nothing is downloaded), batch, group and updates (not given there), few rates in place of fifteen, and two
arms more: "teacher" (labels drawn from the policy that GRPO trained) and "own" (right answers that the base itself gave, drawn once).
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from tqdm import tqdm

from rftkit import drift, predict, runs, spectra
from rftkit.config import UserError
from rftkit.predict import Point

Arm = Literal["one", "two", "oracle", "own", "teacher", "grpo", "grpo_kl", "reinforce"]
ARMS: tuple[Arm, ...] = ("one", "two", "oracle", "own", "teacher", "grpo", "grpo_kl", "reinforce")
ON_POLICY = ("grpo", "grpo_kl", "reinforce")
BASE = "parity_base"
SIDE = 28  # pixels
FOLDER = runs.RECORDED_DIR / "parity"

# --- pictures -------------------------------------------------------------------------------------------------------------------

Stroke = tuple[tuple[float, float], ...]


def _oval(x: float, y: float, width: float, height: float) -> Stroke:
    turn = np.linspace(0, 2 * np.pi, 13)
    return tuple((x + width * math.sin(t), y - height * math.cos(t)) for t in turn)


# each digit as strokes in the unit square, x to the right and y down
DIGITS: tuple[tuple[Stroke, ...], ...] = (
    (_oval(0.5, 0.5, 0.27, 0.42),),
    (((0.36, 0.26), (0.54, 0.08), (0.54, 0.92)),),
    (((0.24, 0.28), (0.34, 0.11), (0.54, 0.07), (0.72, 0.18), (0.73, 0.36), (0.5, 0.62), (0.23, 0.91), (0.79, 0.91)),),
    (
        (
            (0.25, 0.14),
            (0.5, 0.07),
            (0.71, 0.17),
            (0.7, 0.37),
            (0.46, 0.47),
            (0.74, 0.6),
            (0.75, 0.8),
            (0.5, 0.93),
            (0.22, 0.84),
        ),
    ),
    (((0.63, 0.93), (0.63, 0.07), (0.18, 0.65), (0.85, 0.65)),),
    (((0.75, 0.08), (0.31, 0.08), (0.27, 0.45), (0.55, 0.4), (0.76, 0.56), (0.74, 0.81), (0.5, 0.93), (0.22, 0.84)),),
    (
        (
            (0.68, 0.1),
            (0.42, 0.24),
            (0.27, 0.5),
            (0.26, 0.75),
            (0.43, 0.93),
            (0.66, 0.89),
            (0.75, 0.7),
            (0.63, 0.53),
            (0.42, 0.54),
            (0.27, 0.68),
        ),
    ),
    (((0.2, 0.09), (0.8, 0.09), (0.42, 0.93)),),
    (_oval(0.5, 0.27, 0.2, 0.2), _oval(0.5, 0.7, 0.25, 0.23)),
    (
        (
            (0.74, 0.36),
            (0.59, 0.5),
            (0.36, 0.47),
            (0.26, 0.28),
            (0.36, 0.11),
            (0.6, 0.07),
            (0.74, 0.22),
            (0.74, 0.42),
            (0.67, 0.7),
            (0.5, 0.93),
        ),
    ),
)
_SHIRT: Stroke = (
    (0.3, 0.1),
    (0.42, 0.16),
    (0.58, 0.16),
    (0.7, 0.1),
    (0.95, 0.3),
    (0.84, 0.45),
    (0.72, 0.36),
    (0.72, 0.9),
    (0.28, 0.9),
    (0.28, 0.36),
    (0.16, 0.45),
    (0.05, 0.3),
)
_LONG: Stroke = (
    (0.3, 0.1),
    (0.7, 0.1),
    (0.85, 0.24),
    (0.96, 0.84),
    (0.81, 0.87),
    (0.72, 0.42),
    (0.72, 0.9),
    (0.28, 0.9),
    (0.28, 0.42),
    (0.19, 0.87),
    (0.04, 0.84),
    (0.15, 0.24),
)
# garments in the order of FashionMNIST: an outline that is filled, and dark lines on it
GARMENTS: tuple[tuple[Stroke, tuple[Stroke, ...]], ...] = (
    (_SHIRT, ()),
    (((0.3, 0.05), (0.7, 0.05), (0.76, 0.95), (0.57, 0.95), (0.5, 0.35), (0.43, 0.95), (0.24, 0.95)), ()),
    (_LONG, ()),
    (((0.38, 0.05), (0.62, 0.05), (0.6, 0.35), (0.8, 0.95), (0.2, 0.95), (0.4, 0.35)), ()),
    (_LONG, (((0.5, 0.1), (0.5, 0.9)),)),
    (((0.05, 0.7), (0.95, 0.58), (0.95, 0.76), (0.05, 0.82), (0.1, 0.5), (0.22, 0.5), (0.26, 0.68), (0.55, 0.4), (0.68, 0.42), (0.7, 0.6)), ()),
    (_SHIRT, (((0.5, 0.16), (0.5, 0.6)),)),
    (((0.05, 0.78), (0.1, 0.46), (0.4, 0.5), (0.7, 0.6), (0.95, 0.68), (0.95, 0.8)), ()),
    (((0.12, 0.38), (0.3, 0.38), (0.34, 0.14), (0.66, 0.14), (0.7, 0.38), (0.88, 0.38), (0.88, 0.88), (0.12, 0.88)), (((0.38, 0.3), (0.62, 0.3)),)),
    (((0.3, 0.1), (0.6, 0.1), (0.6, 0.55), (0.92, 0.68), (0.92, 0.88), (0.3, 0.88)), ()),
)  # fmt: skip


def picture(rng: np.random.Generator, task: Literal["digit", "garment"], label: int) -> np.ndarray:
    """A (28, 28) drawing in [0, 1]: turned, sheared, scaled, moved and bent at random, strokes of random width, and noise."""
    angle, shear = rng.normal(0, 0.14), rng.normal(0, 0.16)
    size, shift = rng.uniform(14, 21, 2), rng.normal(0, 1.4, 2)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) @ [[1, shear], [0, 1]]

    def placed(stroke: Stroke) -> list[tuple[float, float]]:
        bent = (np.array(stroke) - 0.5 + rng.normal(0, 0.025, (len(stroke), 2))) * size
        return [(float(x), float(y)) for x, y in 2 * (bent @ turn.T + SIDE / 2 + shift)]

    canvas = Image.new("L", (2 * SIDE, 2 * SIDE))
    draw, shade = ImageDraw.Draw(canvas), int(rng.integers(120, 256))
    if task == "digit":
        width = int(rng.integers(3, 8))
        for stroke in DIGITS[label]:
            draw.line(placed(stroke), fill=shade, width=width, joint="curve")
    else:
        outline, lines = GARMENTS[label]
        draw.polygon(placed(outline), fill=shade)
        for line in lines:
            draw.line(placed(line), fill=0, width=4)
    drawn = np.asarray(canvas.reduce(2), float) / 255
    return np.clip(drawn + rng.normal(0, 0.12, drawn.shape), 0, 1)


def pictures(seed: int, task: Literal["digit", "garment"], n: int) -> tuple[Tensor, Tensor]:
    """n inputs (n, 785) and their classes (n,), 0 to 9, all equally often. The last input says which task is asked: +1 parity, -1 garments."""
    if n < 1:
        raise UserError(f"n = {n} pictures: draw at least 1.")
    rng = np.random.default_rng([seed, task == "digit"])
    labels = rng.permutation(np.arange(n) % 10)
    pixels = np.stack([picture(rng, task, int(label)).ravel() for label in labels])
    bit = np.full((n, 1), 1.0 if task == "digit" else -1.0)
    return torch.tensor(np.hstack([pixels, bit]), dtype=torch.float32), torch.tensor(labels)


# --- networks and their numbers -------------------------------------------------------------------------------------------------


def right(parity: Tensor) -> Tensor:
    """(n, 10): which answers are right, for parities (n,) of 0 or 1."""
    return torch.arange(10)[None] % 2 == parity[:, None] % 2


def network(seed: int) -> nn.Sequential:
    """785-512-256-10 with ReLU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(SIDE * SIDE + 1, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10)
        )


def copied(net: nn.Sequential) -> nn.Sequential:
    other = network(0)
    other.load_state_dict(net.state_dict())
    return other


@dataclass(frozen=True)
class Bench:
    """One seed's pictures and base: digits to fine-tune on, and held-out digits and garments. x (n, 785), y (n,) classes."""

    seed: int
    base: nn.Sequential
    train: tuple[Tensor, Tensor]
    digits: tuple[Tensor, Tensor]
    garments: tuple[Tensor, Tensor]


def bench(seed: int, n: int = 500, train: int = 2000, test: int = 1000, updates: int = 300) -> Bench:
    """Draw the pictures and train the base on n of each task, together (AdamW, 1e-3, batches of 64 of each)."""
    digits, garments = pictures(4 * seed, "digit", n), pictures(4 * seed, "garment", n)
    net, generator = network(seed), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.0)
    for _ in range(updates):
        i, j = (torch.randint(n, (64,), generator=generator) for _ in range(2))
        answers = _draw(right(digits[1][i]).float(), generator)  # any digit of the right parity, another one each time
        x, y = torch.cat([digits[0][i], garments[0][j]]), torch.cat([answers, garments[1][j]])
        _step(optimiser, nn.functional.cross_entropy(net(x), y))
    held = pictures(4 * seed + 2, "digit", test), pictures(4 * seed + 2, "garment", test)
    return Bench(seed, net, pictures(4 * seed + 1, "digit", train), *held)


def _draw(weights: Tensor, generator: torch.Generator) -> Tensor:
    """One index a row, drawn in proportion to the weights (n, 10)."""
    return torch.multinomial(weights, 1, generator=generator)[:, 0]


def _step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


@torch.no_grad()
def accuracy(net: nn.Sequential, at: Bench) -> tuple[float, float]:
    """Shares of held-out digits whose likeliest answer has the right parity, and of held-out garments that are named right."""
    (x, digit), (z, garment) = at.digits, at.garments
    parity = (net(x).argmax(1) % 2 == digit % 2).float().mean()
    return float(parity), float((net(z).argmax(1) == garment).float().mean())


# --- what is imitated -----------------------------------------------------------------------------------------------------------


def minimal(logits: Tensor, allowed: Tensor) -> Tensor:
    """The distribution (n, 10) on the allowed answers that is nearest to softmax(logits) in KL(q || base): the base's own, the rest cut
    off and scaled up. Lemma 5.1 of 2509.04259, KL = -log of the base's probability of being right. Forward KL to any policy that is
    never wrong is infinite wherever the base can be wrong; of policies q with a little left for wrong answers, spread as the base spreads
    it, the nearest in KL(base || q) keeps the base's proportions among the right ones too.
    """
    return logits.masked_fill(~allowed, -torch.inf).softmax(-1)


def targets(arm: Arm, at: Bench, teacher: nn.Sequential | None = None) -> Tensor:
    """What an SFT arm draws its labels from, (n, 10), for the training digits. "own" is drawn once by `finetune`, from the oracle's.

    Raises UserError for an arm that learns on-policy, and for "teacher" without one.
    """
    x, digit = at.train
    allowed = right(digit)
    if arm in ("one", "two"):
        shown = torch.zeros(10)
        shown[[0, 1] if arm == "one" else [0, 4, 1, 5]] = 1.0
        return shown * allowed / (1 if arm == "one" else 2)
    if arm in ("oracle", "own"):
        with torch.no_grad():
            return minimal(at.base(x), allowed)
    if arm == "teacher" and teacher is not None:
        with torch.no_grad():
            return teacher(x).softmax(-1)
    raise UserError(
        f"The arm {arm!r} has no labels to draw: choose one, two, oracle, own, or teacher with a trained network."
    )


# --- fine-tuning ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """Sizes of a fine-tuning: digits an update, replies to each on-policy, the KL coefficient of "grpo_kl", and the updates after
    which it is measured, the last of which ends it."""

    batch: int = 64
    group: int = 8
    beta: float = 0.1
    measured: tuple[int, ...] = (20, 60, 150)


RATES = (1e-4, 3e-4, 1e-3, 3e-3)
TARGET = 0.9  # parity accuracy at which arms are compared


def policy_loss(
    logits: Tensor, base_logits: Tensor, allowed: Tensor, arm: Arm, recipe: Recipe, generator: torch.Generator
) -> Tensor:
    """The loss of an on-policy arm, from logits (n, 10): G answers to each digit, drawn from the policy itself, reward 1 if right.

    "reinforce": -r log pi, nothing else, so that wrong answers push nothing; "grpo": r minus the group's mean, over its standard
    deviation; "grpo_kl": beta KL(pi || base) added, exact.
    """
    said = torch.multinomial(logits.detach().softmax(-1), recipe.group, replacement=True, generator=generator)
    reward = allowed.gather(1, said).float()
    if arm == "reinforce":
        weight = reward
    else:
        weight = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-4)
    logps = logits.log_softmax(-1)
    loss = -(weight * logps.gather(1, said)).mean()
    if arm == "grpo_kl":
        loss = loss + recipe.beta * (logps.exp() * (logps - base_logits.log_softmax(-1))).sum(-1).mean()
    return loss


def finetune(
    at: Bench, arm: Arm, rate: float, recipe: Recipe | None = None, watch: Callable[[int, nn.Sequential], None] | None = None,
    teacher: nn.Sequential | None = None,
) -> nn.Sequential:  # fmt: skip
    """Fine-tune a copy of the base on parity alone (AdamW, constant rate); `watch(update, network)` is called where it is measured."""
    if arm not in ARMS or not 0 < rate < 1:
        raise UserError(
            f"There is no arm {arm!r} at rate {rate}: choose from {', '.join(ARMS)}, with a rate in (0, 1)."
        )
    recipe = recipe or Recipe()
    net, generator = copied(at.base), torch.Generator().manual_seed(at.seed)
    x, digit = at.train
    if arm not in ON_POLICY:
        shown = targets(arm, at, teacher)
        if arm == "own":
            shown = nn.functional.one_hot(_draw(shown, generator), 10).float()
    optimiser = torch.optim.AdamW(net.parameters(), rate, weight_decay=0.0)
    for update in range(1, recipe.measured[-1] + 1):
        i = torch.randint(len(x), (recipe.batch,), generator=generator)
        if arm in ON_POLICY:
            with torch.no_grad():
                before = at.base(x[i])
            loss = policy_loss(net(x[i]), before, right(digit[i]), arm, recipe, generator)
        else:
            loss = nn.functional.cross_entropy(net(x[i]), _draw(shown[i], generator))
        _step(optimiser, loss)
        if watch and update in recipe.measured:
            watch(update, net)
    return net


# --- what may explain forgetting --------------------------------------------------------------------------------------------------

PREDICTORS = {
    "forward": "forward KL on the new task", "reverse": "reverse KL on the new task", "tv": "total variation on the new task",
    "l2": "L2 of the next-token distributions", "weights": "weight distance, L2", "weights_l1": "weight distance, L1",
    "fisher": "weight distance, Fisher L2", "spectral": "spectral norm of the change", "rotation": "rotation of leading subspaces",
    "gained": "new-task accuracy",
}  # fmt: skip
CONTROL = "prior"  # forward KL on the old task: nearly the outcome itself


@dataclass(frozen=True)
class Ruler:
    """What `measured` needs of the base, made once."""

    at: Bench
    axes: tuple[spectra.Axes, ...]
    fisher: tuple[Tensor, ...]


def ruler(at: Bench) -> Ruler:
    matrices = [layer.weight.detach() for layer in at.base if isinstance(layer, nn.Linear)]
    return Ruler(at, tuple(spectra.axes(w) for w in matrices[:2]), fisher(at.base, at.digits[0]))


def fisher(net: nn.Sequential, x: Tensor) -> tuple[Tensor, ...]:
    """Diagonal of the Fisher matrix on inputs x (n, 785), one tensor a weight matrix: the mean over x and over the network's own answers
    of squared gradients of log pi. The gradient of an example is d x', so its square is d^2 (x^2)': no loop over examples."""
    seen, h = [], x
    for layer in net:
        if isinstance(layer, nn.Linear):
            seen.append(h.detach())
        h = layer(h)
    outputs = h.detach().softmax(-1)
    found = [torch.zeros_like(layer.weight) for layer in net if isinstance(layer, nn.Linear)]
    for answer in range(10):
        values, inputs = _with_graph(net, x)
        grads = torch.autograd.grad(values.log_softmax(-1)[:, answer].sum(), inputs)
        for total, d, a in zip(found, grads, seen, strict=True):
            total += (outputs[:, answer, None] * d**2).T @ a**2 / len(x)
    return tuple(found)


def _with_graph(net: nn.Sequential, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The logits, and each linear layer's output, to be differentiated by."""
    outputs, h = [], x
    for layer in net:
        h = layer(h)
        if isinstance(layer, nn.Linear):
            outputs.append(h)
    return h, outputs


@torch.no_grad()
def measured(of: Ruler, net: nn.Sequential, k: int = 16) -> dict[str, float]:
    """Everything in PREDICTORS, and CONTROL, of a network that was fine-tuned from the ruler's base; KL in nats, exact."""
    at = of.at
    before, after = at.base(at.digits[0]), net(at.digits[0])
    pairs = [(a.weight, b.weight) for a, b in zip(at.base, net, strict=True) if isinstance(a, nn.Linear)]
    gaps = [b.double() - a.double() for a, b in pairs]
    size = math.sqrt(sum(float(a.double().square().sum()) for a, _ in pairs))
    turned = [gap if len(gap) == len(axes.w) else gap.T for gap, axes in zip(gaps, of.axes, strict=False)]
    changes = [spectra.change(axes, gap, k)[0] for axes, gap in zip(of.axes, turned, strict=True)]
    return {
        "forward": float(drift.kl(before, after).mean()),
        "reverse": float(drift.kl(after, before).mean()),
        "tv": float(drift.total_variation(before, after).mean()),
        "l2": float((before.softmax(-1) - after.softmax(-1)).norm(dim=-1).mean()),
        "weights": math.sqrt(sum(float(gap.square().sum()) for gap in gaps)) / size,
        "weights_l1": sum(float(gap.abs().sum()) for gap in gaps) / sum(float(a.abs().sum()) for a, _ in pairs),
        "fisher": math.sqrt(sum(float((f * gap.square()).sum()) for f, gap in zip(of.fisher, gaps, strict=True))),
        "spectral": max(math.sqrt(float(torch.linalg.eigvalsh(gap @ gap.T)[-1])) for gap in gaps),
        "rotation": sum(c.left.chordal + c.right.chordal for c in changes) / (2 * len(changes)),
        "gained": accuracy(net, at)[0],
        CONTROL: float(drift.kl(at.base(at.garments[0]), net(at.garments[0])).mean()),
    }


def sweep(
    at: Bench, arms: Sequence[Arm] = ARMS, rates: Sequence[float] = RATES, recipe: Recipe | None = None
) -> list[Point]:
    """Every arm at every rate, measured along the way, and first the base itself, which has no predictors. The teacher is GRPO's
    policy at the largest rate but one, trained first if need be."""
    of, (known, start) = ruler(at), accuracy(at.base, at)
    teacher = finetune(at, "grpo", sorted(rates)[-2:][0], recipe) if "teacher" in arms else None
    points = [Point("parity", BASE, at.seed, 0.0, known, {})]
    for arm in tqdm(arms, "arms", mininterval=5):
        for rate in rates:

            def watch(update: int, net: nn.Sequential, arm: Arm = arm, rate: float = rate) -> None:
                gained, prior = accuracy(net, at)
                points.append(
                    Point(
                        "parity",
                        f"parity_{arm}",
                        at.seed,
                        100 * (start - prior),
                        gained,
                        measured(of, net),
                        f"{rate:g}, {update}",
                    )
                )

            finetune(at, arm, rate, recipe, watch, teacher)
    return points


Run = tuple[int, str]  # a fine-tuning of an arm: seed and rate


def at_accuracy(points: Sequence[Point], target: float) -> dict[str, dict[Run, float]]:
    """By arm, then by (seed, rate): forgetting in points where that run first reaches the target on the new task, linear between
    measurements, the base being the first; runs that never got there are left out. Raises UserError for points without their base.

    Rates that get there differ from arm to arm, and forgetting differs with the rate: compare arms at the same rates.
    """
    bases = {p.seed: p for p in points if p.method == BASE}
    paths: dict[str, dict[Run, list[Point]]] = {}
    for point in points:
        if point.method != BASE:
            if point.seed not in bases:
                raise UserError(
                    f"The base of seed {point.seed} is not among the points: pass all that `sweep` returned."
                )
            key = point.seed, point.where.partition(",")[0]
            paths.setdefault(point.method, {}).setdefault(key, [bases[point.seed]]).append(point)
    return {
        method: {key: lost for key, path in some.items() if (lost := _lost_at(path, target)) is not None} for method, some in paths.items()
    }  # fmt: skip


def more_lost(points: Sequence[Point], a: Arm, b: Arm, target: float = TARGET) -> dict[int, float]:
    """By seed: points that arm `a` loses more than arm `b` where they reach the target, the mean over the rates at which both do.
    A seed without such a rate is left out."""
    lost = at_accuracy(points, target)
    first, second = (lost.get(f"parity_{arm}", {}) for arm in (a, b))
    gaps: dict[int, list[float]] = {}
    for seed, rate in sorted(first.keys() & second.keys()):
        gaps.setdefault(seed, []).append(first[seed, rate] - second[seed, rate])
    return {seed: statistics.mean(some) for seed, some in gaps.items()}


def _lost_at(path: Sequence[Point], target: float) -> float | None:
    for before, after in pairwise(path):
        if before.gained < target <= after.gained:
            share = (target - before.gained) / (after.gained - before.gained)
            return before.forgetting + share * (after.forgetting - before.forgetting)
    return None


def main(argv: list[str]) -> int:
    """Repeat the recorded points of ParityMNIST: every arm at every rate, one file a seed; seeds that are there are left as they are."""
    parser = argparse.ArgumentParser(prog="python -m rftkit parity", description=main.__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for the results (default: the course's)")
    args = parser.parse_args(argv)
    todo = {seed: path for seed in args.seeds if not (path := args.out / f"parity-s{seed}.json").exists()}
    print(f"{len(todo)} seeds to run, about a minute each on one free thread.", flush=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # then it repeats to the last bit
    try:
        for seed, path in todo.items():
            predict.save(path, sweep(bench(seed)))
    finally:
        torch.set_num_threads(threads)
    return 0
