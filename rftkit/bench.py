"""`python -m rftkit bench`: seconds and memory of an RFT step, the kit beside plain TRL, step by step in turn; of a Prefix-RFT step
beside an RFT step; and seconds of one gradient an example, batched, beside a loop with one backward pass each.

Both trainers start from the same weights and get the same puzzles and the same random numbers, so their rollouts, rewards and
losses must agree; the table prints by how much they do. GRPO's loss is near 0 by construction while the policy is the one that
sampled, so that the losses agree says little: that the rewards stay equal update after update says that the weights do. The
gradients themselves are compared in tests/test_rft.py.

With a preset for a GPU: whole updates of SFT and RFT, the kit's and plain TRL's with the same settings, and their memory at the peak.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import trl
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from rftkit import dynamics, hub, prefix_rft, recording, rft, sft, tasks
from rftkit.config import Preset, UserError, get_preset
from rftkit.policy import Policy, compute_dtype, load_policy
from rftkit.runs import output_home
from rftkit.tasks import Row

MOST_PREFIX = 1.25  # what a Prefix-RFT step may cost, in RFT steps
PROC = Path("/proc/self")  # Linux alone says how much memory a process used at most; elsewhere the table says nan


class PlainTrainer(rft.SampledTrainer):
    """TRL's trainer as it comes, but for the seed of its rollouts, which is the kit's, so that both sample the same, and for the
    tokens that are never sampled, which have no share in the loss."""

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(self.args.seed * 1_000_003 + self.state.global_step)
            return super()._generate_single_turn(*args, **kwargs)


@dataclass
class Side:
    """One trainer and what was measured of it."""

    name: str
    trainer: GRPOTrainer
    batches: Any
    seconds: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)


PLAIN_TRL = rft.Variant(PlainTrainer)


def make_side(name: str, variant: rft.Variant, preset: Preset, folder: str, steps: int) -> Side:
    policy = load_policy(preset)
    if variant is PLAIN_TRL:
        del policy.model.model.get_image_features  # back to the class's own: no reuse of features
    task = hub.new_task(preset)
    dataset = recording.lazy_dataset(lambda i: variant.row(task.row(0, i, "train")), preset.train_n)
    args = GRPOConfig(
        output_dir=folder,
        beta=preset.rft_beta,
        **{**rft.grpo_arguments(preset), **variant.arguments},
        **recording.trainer_arguments(preset, preset.rft_lr, steps, 0, steps + 1),
    )
    trainer = variant.trainer(
        policy.model, reward_funcs=[rft.hit, rft.exact, rft.template], args=args, train_dataset=dataset,
        processing_class=policy.processor,
    )  # fmt: skip
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return Side(name, trainer, iter(trainer.get_train_dataloader()))


def step(side: Side) -> None:
    """One update: rollouts, rewards, loss, gradient, AdamW."""
    batch = next(side.batches)
    _reset_peak()
    before = _status("VmRSS")
    started = time.perf_counter()
    loss = side.trainer.training_step(side.trainer.model, batch, None)
    torch.nn.utils.clip_grad_norm_(side.trainer.model.parameters(), 1.0)
    side.trainer.optimizer.step()
    side.trainer.optimizer.zero_grad()
    side.trainer.state.global_step += 1
    side.seconds.append(time.perf_counter() - started)
    side.megabytes.append(_status("VmHWM") - before)
    side.losses.append(loss.item())
    side.rewards.append(side.trainer._metrics["train"]["reward"][-1])


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        (PROC / "clear_refs").write_text("5")  # start the high-water mark anew


def _status(key: str) -> float:
    """Megabytes, from Linux's account of this process; nan where there is none."""
    with contextlib.suppress(OSError):
        line = next(x for x in (PROC / "status").read_text().splitlines() if x.startswith(key))
        return int(line.split()[1]) / 1024
    return float("nan")


def compare(preset: Preset, steps: int = 12, warm_up: int = 2) -> tuple[Side, Side]:
    """The kit beside plain TRL."""
    return _in_turn({"rftkit": rft.PLAIN, "plain TRL": PLAIN_TRL}, preset, steps, warm_up)


def compare_prefix(preset: Preset, steps: int = 12, warm_up: int = 2) -> tuple[Side, Side]:
    """Prefix-RFT beside RFT, both by the kit and by Dr. GRPO; prefixes are as long as half-way through a run, 0.725 on average."""
    blend = replace(prefix_rft.PREFIX_RFT, low=(0.5, 0.5))
    plain = replace(prefix_rft.variant(prefix_rft.PLAIN), trainer=rft.RFTTrainer)
    return _in_turn({"Prefix-RFT": prefix_rft.variant(blend), "RFT": plain}, preset, steps, warm_up)


def _in_turn(variants: dict[str, rft.Variant], preset: Preset, steps: int, warm_up: int) -> tuple[Side, Side]:
    """Run both sides in turn for `steps` measured steps."""
    with TemporaryDirectory() as folder:
        first, second = (
            make_side(name, variant, preset, folder, steps + warm_up) for name, variant in variants.items()
        )
        for i in tqdm(range(steps + warm_up), desc="steps of each", mininterval=5):
            for side in (first, second) if i % 2 else (second, first):
                step(side)
                if i < warm_up:  # first steps pay for compilation and caches
                    side.seconds.clear()
                    side.megabytes.clear()
    return first, second


@dataclass
class Gradients:
    """Milliseconds an example: the gradients alone, and with all inner products of them after it."""

    loop: list[float] = field(default_factory=list)
    batched: list[float] = field(default_factory=list)
    loop_products: list[float] = field(default_factory=list)
    batched_products: list[float] = field(default_factory=list)
    gap: float = 0.0  # largest relative difference of a gradient


def compare_gradients(policy: Policy, rows: list[Row], times: int = 5) -> Gradients:
    """Both ways in turn, `times` each, on rows whose image features the frozen tower has already made."""
    policy.model.eval()
    found, n = Gradients(), len(rows)
    for turn in range(times + 1):
        started = time.perf_counter()
        loop = gradients_in_a_loop(policy, rows)
        looped = time.perf_counter()
        products_of(loop)
        ended = time.perf_counter()
        ends = {0: loop[0], n - 1: loop[-1]}
        del loop
        again = time.perf_counter()
        batched = dynamics.gradients(policy, rows, batch_size=n)
        made = time.perf_counter()
        dynamics.inner(batched, batched)
        done = time.perf_counter()
        if turn:  # the first pays for caches
            found.loop.append(1000 * (looped - started) / n)
            found.loop_products.append(1000 * (ended - started) / n)
            found.batched.append(1000 * (made - again) / n)
            found.batched_products.append(1000 * (done - again) / n)
        found.gap = max(float((batched[k][i] - g).norm() / g.norm()) for i, one in ends.items() for k, g in one.items())
    return found


def products_of(loop: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    blocks = {name: torch.stack([one[name] for one in loop]) for name in loop[0]}
    return dynamics.inner(blocks, blocks)


def gradients_in_a_loop(policy: Policy, rows: list[Row]) -> list[dict[str, torch.Tensor]]:
    """The gradient of log pi(y|x) of each row by every trained parameter: what one would write first.

    A batch saves the small matrices' poor use of the machine, and, since it keeps a Linear layer's gradients as factors, the
    product that makes a matrix of them; whoever asks for inner products pays for that then. It also leaves out the last layer's MLP
    at prompt positions, as this loop does not.
    """
    parameters = {name: p for name, p in policy.model.named_parameters() if p.requires_grad}
    made = []
    for row in rows:
        batch = dynamics.collated(policy, [row])
        # the loss is a mean over the answer's tokens
        score = -policy.model(**batch, use_cache=False).loss * (batch["labels"] != -100).sum()
        made.append(dict(zip(parameters, torch.autograd.grad(score, list(parameters.values())), strict=True)))
    return made


# --- whole trainings, on a GPU -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """Some updates of one method by one side: seconds of each after the warm-up, and the peak in bytes by torch's account of a GPU."""

    method: str
    side: str
    seconds: tuple[float, ...]
    peak: float

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Clock(TrainerCallback):
    """Seconds of every update, when the device has done all that it was given."""

    def __init__(self, warm_up: int):
        self.warm_up, self.seconds = warm_up, list[float]()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            if state.global_step == self.warm_up:  # AdamW's moments are there
                torch.cuda.reset_peak_memory_stats()
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if state.global_step > self.warm_up:
            self.seconds.append(time.perf_counter() - self.started)


def variety(completions: list[Any], **_: Any) -> list[float]:
    """A reward that differs between any two replies, since a model with random weights earns no other."""
    return [len(set(c[0]["content"].split())) / 512 for c in completions]


def whole_training(preset: Preset, method: str, kit: bool, steps: int = 3, warm_up: int = 1) -> Measured:
    """Train a preset's "sft" or "rft" for some updates, by the kit or by TRL as it comes, with the same settings."""
    policy, task = load_policy(preset), hub.new_task(preset)
    if not kit:
        del policy.model.model.get_image_features  # back to the class's own
    clock, lr = Clock(warm_up), preset.lora_lr if method == "sft" and preset.lora_rank else preset.rft_lr
    with TemporaryDirectory() as folder:
        usual = {
            "output_dir": folder,
            **recording.trainer_arguments(preset, lr, steps + warm_up, 0, steps + warm_up + 1),
        }
        made: dict[str, Any] = {
            "processing_class": policy.processor, "callbacks": [clock],
            "peft_config": sft.lora_config(preset.lora_rank) if preset.lora_rank else None,
        }  # fmt: skip
        row = sft.sft_row if method == "sft" else rft.rft_row
        made["train_dataset"] = recording.lazy_dataset(lambda i: row(task.row(0, i, "train")), preset.train_n)
        if method == "sft":
            maker: Any = sft.LongestFirst if kit else SFTTrainer
            made["args"] = SFTConfig(**usual, **sft.sft_arguments(preset))
        else:
            maker, made["reward_funcs"] = rft.RFTTrainer if kit else GRPOTrainer, [variety]
            made["args"] = GRPOConfig(**usual, **rft.grpo_arguments(preset), beta=preset.rft_beta)
        trainer = maker(policy.model, **made)
        if kit or recording.autocast(preset).get("fp16"):  # plain TRL's bfloat16 adapters fail under float16
            recording.widen(trainer.model)
        trainer.pop_callback(PrinterCallback)
        trainer.train()
    peak = float(torch.cuda.max_memory_allocated()) if preset.device == "cuda" else float("nan")
    del trainer, policy, made
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
    return Measured(method, "rftkit" if kit else "plain TRL", tuple(clock.seconds), peak)


def beside_trl(preset: Preset, steps: int = 3) -> list[Measured]:
    """SFT and RFT, the kit and plain TRL, one after another on the device at hand."""
    return [whole_training(preset, method, kit, steps) for method in ("sft", "rft") for kit in (True, False)]


def table(found: Sequence[Measured], preset: Preset) -> str:
    """What was measured as Markdown, under the name of the card and the settings."""
    device = torch.cuda.get_device_name() if preset.device == "cuda" else "CPU"
    lines = [
        f"{device}, {preset.quantize} + LoRA {preset.lora_rank}, {preset.max_pixels} pixels, G = {preset.rft_group}, "
        f"{preset.max_completion} new tokens, {preset.rft_prompts} prompts and {preset.sft_batch} examples an update, "
        f"torch {torch.__version__}, TRL {trl.__version__}, median of {len(found[0].seconds)} updates", "",
        "| method | side | s an update | peak, GB | times as fast |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for m in found:
        (plain,) = (other.median for other in found if other.method == m.method and other.side == "plain TRL")
        lines.append(f"| {m.method} | {m.side} | {m.median:.2f} | {m.peak / 1e9:.2f} | {plain / m.median:.2f} |")
    return "\n".join(lines)


def write_table(found: Sequence[Measured], preset: Preset) -> Path:
    """Into bench/ of RFTKIT_HOME, under the card's name."""
    name = torch.cuda.get_device_name() if preset.device == "cuda" else "CPU"
    path = output_home() / "bench" / f"{re.sub('[^A-Za-z0-9]+', '-', name)}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(table(found, preset) + "\n")
    return path


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m rftkit bench", description=__doc__)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args(argv)
    preset = get_preset(args.preset)
    if args.steps < 1:
        raise UserError(f"--steps {args.steps} measures nothing: give 1 or more.")
    if preset.device != "cpu":
        compute_dtype(preset)  # says so if there is no GPU
        found = beside_trl(preset, args.steps)
        print(f"{table(found, preset)}\nWritten to {write_table(found, preset)}")
        return 0
    print(f"{preset.rft_prompts} puzzles x {preset.rft_group} rollouts a step, {torch.get_num_threads()} threads")
    kit, plain = compare(preset, args.steps)
    print(f"{'':10} {'s a step (median)':>18} {'min':>6} {'max':>6} {'peak MB over idle':>18}")
    for side in (kit, plain):
        print(
            f"{side.name:10} {statistics.median(side.seconds):18.3f} {min(side.seconds):6.3f} {max(side.seconds):6.3f} "
            f"{max(side.megabytes):18.0f}"
        )
    print(f"{statistics.median(plain.seconds) / statistics.median(kit.seconds):.2f} times as fast as plain TRL")
    print(
        f"first step: reward {kit.rewards[0]:.4f} and {plain.rewards[0]:.4f}, loss {kit.losses[0]:.6f} and {plain.losses[0]:.6f}"
    )
    gap = max(abs(a - b) for a, b in zip(kit.rewards, plain.rewards, strict=True))
    loss_gap = max(abs(a - b) for a, b in zip(kit.losses, plain.losses, strict=True))
    print(f"largest difference over all steps: reward {gap:.2g}, loss {loss_gap:.2g}")
    prefixed, free = compare_prefix(preset, args.steps)
    times, other = statistics.median(prefixed.seconds), statistics.median(free.seconds)
    print(
        f"Prefix-RFT step over RFT step: {times:.3f} s over {other:.3f} s, {times / other:.2f} (at most {MOST_PREFIX})"
    )
    print(
        "\none gradient of log pi(y|x) an example: milliseconds an example, medians; with all inner products after it in brackets"
    )
    policy = load_policy(preset)
    total = [0.0, 0.0]
    for task in (hub.new_task(preset), *tasks.PROBES.values()):  # what notebook 03 takes gradients of
        g = compare_gradients(policy, task.rows(0, 64, "train"))
        loop, batched, loop_all, batched_all = map(
            statistics.median, (g.loop, g.batched, g.loop_products, g.batched_products)
        )
        total[0], total[1] = total[0] + loop, total[1] + batched
        print(
            f"{task.name:12} loop {loop:6.2f} ({loop_all:6.2f}), batched {batched:6.2f} ({batched_all:6.2f}): "
            f"{loop / batched:.1f} ({loop_all / batched_all:.1f}) times as fast; largest relative difference {g.gap:.1g}"
        )
    print(f"as many examples of each: {total[0] / total[1]:.1f} times as fast (at least 4 asked)")
    return 0
