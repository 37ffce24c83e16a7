"""What is compared when tasks are learnt in a row: the sets of tasks, their orders, sizes and rates, and each method as a `Method`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from rftkit import estimators, hub, sequence, sequence_hub
from rftkit.config import Preset
from rftkit.sft import Data, Lazy
from rftkit.tasks import Row, Task


@dataclass(frozen=True)
class Suite:
    """Tasks that can be trained in a row, by name, asked with or without thinking; the TRL reward functions of a reply's answer and
    of its form; the probes of prior skill; and the commits of the data sets. All tasks' rows have the same keys of `data`, "target"
    among them."""

    name: str
    tasks: Callable[[Preset, bool], dict[str, Task]]
    accuracy: Callable[..., list[float]]
    form: Callable[..., list[float]]
    probes: Callable[[Preset], dict[str, Task]] = hub.probes
    revisions: Callable[[], dict[str, str]] = dict


DRAWN = Suite("seven", sequence.tasks, sequence.accuracy, sequence.form)
PUBLISHED = Suite(
    "seven", sequence_hub.tasks, sequence_hub.accuracy, sequence.form, sequence_hub.probes, sequence_hub.revisions
)


def seven(preset: Preset) -> Suite:
    """The seven tasks of a preset's tier: drawn, or those of the paper from the Hub."""
    return DRAWN if preset.images == "scenes" else PUBLISHED


ORDER_A = sequence.SEVEN  # the paper's
ORDER_B = ("clutter", "geometry", "scenetext", "texture", "compose", "science", "unanswerable")
ORDERS = {"a": ORDER_A, "b": ORDER_B}


@dataclass(frozen=True)
class Plan:
    """Sizes and rates, for each task of a sequence. A task has `instances` training rows, seen as often as the updates need.

    SFT takes `sft_steps` updates at `sft_lr`; at RFT's rate `slow_steps`, which gain about what RFT gains (tiny: 20, tried with
    seed 0; 30 and 60 gained more). RFT takes `rft_steps` at `rft_lr`; `samples` replies to each instance decide what a filter
    keeps. `asked` rows of each task and `probed` of each probe are asked in an evaluation.
    """

    sft_lr: float = 5e-4
    sft_steps: int = 40
    slow_steps: int = 20
    rft_lr: float = 2e-4
    rft_steps: int = 60
    beta: float = 0.01
    instances: int = 640
    samples: int = 8
    replay: float = 0.01  # of each earlier task's instances
    l2: float = 0.1
    asked: int = 100
    probed: int = 50
    max_completion: int = 40
    save_every: int = 20

    def label(self, what: str) -> str:
        """For the settings of a run: what is trained on, and what is asked after it."""
        return f"{what}; {self.asked} rows a task and {self.probed} a probe evaluated"


PLANS = {
    "tiny": Plan(),
    # rates, beta and samples of the paper's repository, times ten for adapters; the sizes are ours
    "qlora": Plan(1e-4, 100, 400, 1e-5, 100, instances=1600, asked=300, probed=200, max_completion=512),
    "full": Plan(1e-5, 200, 2000, 1e-6, 100, instances=6000, asked=500, probed=500, max_completion=1024),
}


@dataclass(frozen=True)
class Method:
    """How each task of a sequence is learnt. `updates` and `rate` name the fields of `Plan` that say how long and how fast.

    SFT imitates the "gold" replies, those of all tasks at once ("joint"), or the policy's own right ones, sampled before each task
    ("self"); `replay` adds a share of each earlier task's instances, `l2` times half the squared way from the task's beginning is
    added to the loss. RFT has an `estimator` and, with `kl`, a KL term to the `reference`: the sequence's base ("original") or the
    task before ("previous"). `keep` is RIF's rule: how many of `Plan.samples` replies are right, least and most; with `at_random`
    as many instances as the rule keeps are drawn instead. Without `thinking` the answer is asked for directly, and the reward
    is the accuracy's part alone.
    """

    name: str
    family: Literal["sft", "rft"]
    updates: Literal["sft_steps", "slow_steps", "rft_steps"]
    rate: Literal["sft_lr", "rft_lr"]
    thinking: bool = True
    data: Literal["gold", "self", "joint"] = "gold"
    replay: bool = False
    l2: bool = False
    estimator: estimators.Estimator = "grpo"
    kl: bool = True
    reference: estimators.Reference = "original"
    keep: tuple[int, int] | None = None
    at_random: bool = False


SFT = Method("sft", "sft", "sft_steps", "sft_lr")
SFT_RFT_LR = replace(SFT, name="sft_rft_lr", updates="slow_steps", rate="rft_lr")
SFT_SAME_UPDATES = replace(SFT, name="sft_same_updates", updates="rft_steps")
SFT_DIRECT = replace(SFT, name="sft_direct", thinking=False)
JOINT = replace(SFT, name="joint", data="joint")
SELF = replace(SFT, name="self", data="self")
REPLAY = replace(SFT, name="replay", replay=True)
L2 = replace(SFT, name="l2", l2=True)
GRPO_KL_ORIGINAL = Method("grpo", "rft", "rft_steps", "rft_lr")
GRPO_KL_PREVIOUS = replace(GRPO_KL_ORIGINAL, name="grpo_previous", reference="previous")
GRPO = GRPO_KL_ORIGINAL  # which of the two is the paper's is not known: its scripts have both
GRPO_NO_KL = replace(GRPO, name="grpo_no_kl", kl=False)
GRPO_DIRECT = replace(GRPO, name="grpo_direct", thinking=False)
RLOO = replace(GRPO, name="rloo", estimator="rloo")
REMAX = replace(GRPO, name="remax", estimator="remax")
RIF = replace(GRPO, name="rif", keep=(1, 8))  # as the paper's code reads
RIF_MIXED = replace(GRPO, name="rif_mixed", keep=(1, 7))  # as notes on the paper tell: groups with a signal
RIF_RANDOM = replace(RIF, name="rif_random", at_random=True)

METHODS = {
    m.name: m
    for m in (SFT, SFT_RFT_LR, SFT_SAME_UPDATES, SFT_DIRECT, JOINT, SELF, REPLAY, L2, GRPO, GRPO_KL_PREVIOUS, GRPO_NO_KL,
              GRPO_DIRECT, RLOO, REMAX, RIF, RIF_MIXED, RIF_RANDOM)
}  # fmt: skip


def run_name(method: Method, order: tuple[str, ...] = ORDER_A, suite: Suite = DRAWN) -> str:
    """How a sequence is called in records and folders: "seven_grpo", "seven_grpo_b" in the second order, else by its tasks."""
    letter = next((letter for letter, known in ORDERS.items() if known == tuple(order)), "-".join(order))
    return f"{suite.name}_{method.name}" + ("" if letter == "a" else f"_{letter}")


# --- data of SFT ----------------------------------------------------------------------------------------------------------------


def replayed(task: Task, earlier: list[Task], seed: int, n: int, share: float) -> Data:
    """n rows of a task, and `share` of n (rounded up) of each earlier one: a buffer that is filled when a task comes."""
    each = math.ceil(share * n) if earlier else 0

    def row(i: int) -> Row:
        of, index = (task, i) if i < n else (earlier[(i - n) // each], (i - n) % each)
        return of.row(seed, index, "train")

    size = n + each * len(earlier)
    name = f"{task.name}, {n} rows" + "".join(f", {each} of {old.name}" for old in earlier)
    return Data(name, lambda model, folder: Lazy(size, row))


def union(tasks: list[Task], seed: int, n: int) -> Data:
    """n rows of each task; the trainer shuffles them."""
    rows = Lazy(n * len(tasks), lambda i: tasks[i % len(tasks)].row(seed, i // len(tasks), "train"))
    return Data(f"{n} rows each of {', '.join(task.name for task in tasks)}", lambda model, folder: rows)
