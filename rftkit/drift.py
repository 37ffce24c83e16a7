"""How far a run went from its base: KL on the new task (RL's Razor, 2509.04259) and on the prior probes, the way in the weights, the
rotation of their leading subspaces. What may explain forgetting, measured on finished runs whose weights were kept.

| measure | definition | unit |
|---|---|---|
| forward KL | E_x E_{y ~ base} log base(y|x) / tuned(y|x) | nats a reply |
| reverse KL | the same with base and tuned swapped, replies being the tuned policy's | nats a reply |
| ... a token | the expected sum over a reply divided by the expected number of its tokens | nats |
| TV | total variation of the next-token distributions, mean over the tokens of such replies | share, 0 to 1 |
| weights | |W - W_0|_F / |W_0|_F over all numbers of the language model; the same with sums of absolute values | share |
| changed | share of the numbers that differ, and that differ still when both are stored in bfloat16 | share |
| rotation | chordal distance of the leading k-subspaces (`spectra.Angles`), mean over matrices, beside that of a random update | 0 to 1 |

KL between policies is a sum over more replies than there are, but given the tokens so far the sum over the next one is exact. So replies
are sampled from the distribution on the left, and at each of their positions the KL of the two next-token distributions is summed
over the whole vocabulary. By the chain rule the expectation of that is the KL of whole replies, with far less noise than the mean of
log-ratios has. A reply counts up to its end of text, or where it was cut at the longest length.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from torch import Tensor
from tqdm import tqdm

from rftkit import blends, chains, continual, dynamics, hub, methods, points, recording, runs, spectra, two_stage
from rftkit.config import Preset, UserError
from rftkit.policy import Policy, encode, generate_ids, load_policy, load_trained, never_sampled
from rftkit.predict import Point, six_digits
from rftkit.tasks import Row

FOLDER = runs.RECORDED_DIR / "drift"
_SCHEMA = 1
SIDES = ("forward", "reverse")

# --- of two distributions -----------------------------------------------------------------------------------------------------


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in nats, summed over the last axis: p and q are logits (..., V), -inf for what is never said, shape (...).

    Infinite where q rules out what p says. In float64, since a small KL is a difference of nearly equal numbers.
    """
    a, b = p.double().log_softmax(-1), q.double().log_softmax(-1)
    gap = torch.where(a.isneginf(), 0.0, a - b)  # 0 log 0 = 0
    return torch.where(a.isneginf(), 0.0, a.exp() * gap).sum(-1)


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Half the sum of |p - q| over the last axis, from logits (..., V): shape (...), 0 to 1."""
    return (p.double().softmax(-1) - q.double().softmax(-1)).abs().sum(-1) / 2


@dataclass(frozen=True)
class Divergence:
    """A KL between two policies, in nats: of a whole reply and per token, each with its Monte Carlo error (one standard error over
    replies), the mean number of tokens of a reply, the share of replies that were cut, and the total variation per token."""

    reply: float
    reply_error: float
    token: float
    token_error: float
    tokens: float
    cut: float
    tv: float
    replies: int


def summed_up(kls: Sequence[Tensor], tvs: Sequence[Tensor], cut: Sequence[bool] = ()) -> Divergence:
    """From the KL and the TV at each token of each reply, (T_i,) each: replies weigh the same in a reply's, tokens in a token's.

    A ratio of means has the error of its residuals (linearised): std(sum_i - ratio T_i) / (mean T sqrt(n)).
    """
    n = len(kls)
    if n < 2 or len(tvs) != n or min(len(k) for k in kls) < 1:
        raise UserError("A KL needs two replies or more, each with a token: pass more rows.")
    sums = torch.stack([k.double().sum() for k in kls])
    lengths = torch.tensor([float(len(k)) for k in kls], dtype=torch.float64)
    ratio = sums.sum() / lengths.sum()
    return Divergence(
        reply=float(sums.mean()),
        reply_error=float(sums.std() / math.sqrt(n)),
        token=float(ratio),
        token_error=float((sums - ratio * lengths).std() / lengths.mean() / math.sqrt(n)),
        tokens=float(lengths.mean()),
        cut=sum(cut) / n,
        tv=float(torch.cat(list(tvs)).double().mean()),
        replies=n,
    )


# --- of two policies ----------------------------------------------------------------------------------------------------------


def replies(policy: Policy, rows: Sequence[Row], seed: int = 0, max_new_tokens: int | None = None) -> tuple[list[list[int]], list[bool]]:  # fmt: skip
    """One reply to each row at temperature 1, as token ids up to the end of text, and whether it was cut before one."""
    ends = policy.model.generation_config.eos_token_id
    ends = set(ends) if isinstance(ends, list | tuple) else {ends}
    found, cut = [], []
    for ids in generate_ids(policy, list(rows), max_new_tokens, temperature=1.0, seed=seed):
        end = next((i for i, token in enumerate(ids) if token in ends), None)
        found.append(ids if end is None else ids[: end + 1])
        cut.append(end is None)
    return found, cut


@torch.no_grad()
def next_logits(policy: Policy, rows: Sequence[Row], said: Sequence[Sequence[int]], batch_size: int | None = None) -> Iterator[Tensor]:  # fmt: skip
    """For each row and the reply said to it (T_i ids) the logits (T_i, V) that its tokens were drawn from, in order; -inf for image
    tokens, which are never sampled."""
    never = never_sampled(policy)
    with dynamics.evaluating(policy.model):
        for index in dynamics.batches(rows, batch_size or policy.preset.eval_batch):
            inputs = encode(policy, [rows[i] for i in index])
            longest = max(len(said[i]) for i in index)
            pad = policy.processor.tokenizer.pad_token_id
            more = torch.tensor([[*said[i], *[pad] * (longest - len(said[i]))] for i in index])
            given = torch.tensor([[1] * len(said[i]) + [0] * (longest - len(said[i])) for i in index])
            tails = {"input_ids": more, "attention_mask": given, "mm_token_type_ids": torch.zeros_like(more)}
            for key, tail in tails.items():
                if key in inputs:
                    inputs[key] = torch.cat([inputs[key], tail.to(inputs[key])], 1)
            logits = policy.model(**inputs, logits_to_keep=longest + 1, use_cache=False).logits[:, :-1].float()
            logits[..., never] = -torch.inf
            for i, row in zip(index, logits, strict=True):
                yield row[: len(said[i])].cpu()


def divergence(
    left: Policy, right: Policy, rows: Sequence[Row], seed: int = 0, max_new_tokens: int | None = None
) -> Divergence:
    """KL(left || right) over replies that `left` gives to the rows, one each. Both must have one tokenizer."""
    said, cut = replies(left, rows, seed, max_new_tokens)
    kls, tvs = [], []
    for p, q in zip(next_logits(left, rows, said), next_logits(right, rows, said), strict=True):
        kls.append(kl(p, q))
        tvs.append(total_variation(p, q))
    return summed_up(kls, tvs, cut)


def both_ways(
    base: Policy, tuned: Policy, rows: Sequence[Row], seed: int = 0, max_new_tokens: int | None = None
) -> dict[str, Any]:
    """ "forward": KL(base || tuned), "reverse": KL(tuned || base), as plain data."""
    pairs = {"forward": (base, tuned), "reverse": (tuned, base)}
    return {side: asdict(divergence(a, b, rows, seed, max_new_tokens)) for side, (a, b) in pairs.items()}


# --- of two sets of weights ---------------------------------------------------------------------------------------------------


def merged(policy: Policy) -> Policy:
    """The policy with a LoRA adapter added to its weights; as it is, if it has none. Raises UserError for quantised weights."""
    if not isinstance(policy.model, PeftModel):
        return policy
    if policy.preset.quantize != "none":
        raise UserError(
            "An adapter cannot be added to quantised weights without loss: load the base unquantised, quantize='none'."
        )
    return replace(policy, model=policy.model.merge_and_unload())


def language(policy: Policy) -> dict[str, Tensor]:
    """The numbers of the language model by name; the vision tower, which does not train, left out."""
    return {n: p.detach() for n, p in policy.model.named_parameters() if "visual." not in n}


def weight_change(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> dict[str, float]:
    """ "relative" |W - W_0|_F / |W_0|_F, "relative_l1" the same with sums of absolute values, "changed" and "changed_bf16" shares."""
    if not base or base.keys() != tuned.keys() or any(base[n].shape != tuned[n].shape for n in base):
        raise UserError("The two models do not have the same weights: pass a base and what was trained from it.")
    totals = torch.zeros(7, dtype=torch.float64)
    for name, before in base.items():
        w, gap = before.double(), tuned[name].double() - before.double()
        rounded = before.bfloat16() != tuned[name].bfloat16()
        parts = (gap.square().sum(), w.square().sum(), gap.abs().sum(), w.abs().sum(), (gap != 0).sum(), rounded.sum())
        totals += torch.tensor([*(float(x) for x in parts), w.numel()], dtype=torch.float64)
    two, base_two, one, base_one, changed, coarse, n = totals.tolist()
    return {
        "relative": math.sqrt(two / base_two),
        "relative_l1": one / base_one,
        "changed": changed / n,
        "changed_bf16": coarse / n,
    }


def rotation(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], k: int = 16, seed: int = 0) -> dict[str, float]:
    """Chordal distance of the leading k-subspaces, mean over the matrices of `base`: "left", "right", and the same of a random update as
    large as each matrix's own ("left_null", "right_null"). A matrix that did not change counts as 0."""
    totals = dict.fromkeys(("left", "right", "left_null", "right_null"), 0.0)
    for i, (name, before) in enumerate(base.items()):
        if torch.equal(before, tuned[name]):
            continue
        report = spectra.compare(before, tuned[name], k, seed * 1_000_003 + i)
        for side in ("left", "right"):
            totals[side] += getattr(report.change, side).chordal
            totals[f"{side}_null"] += getattr(report.null, side).chordal
    return {key: value / len(base) for key, value in totals.items()}


# --- all of it ------------------------------------------------------------------------------------------------------------------


def drift(
    base: Policy, tuned: Policy, rows: Sequence[Row], prior: Sequence[Row] = (), *, k: int = 16, seed: int = 0, max_new_tokens: int | None = None
) -> dict[str, Any]:  # fmt: skip
    """Everything of the module's table, as plain data: "new" and "prior" ("forward" and "reverse", each a `Divergence`), "weights",
    "rotation". KL on the prior is a control: it is nearly what forgetting is.

    Raises UserError where the two are not a base and what was trained from it.
    """
    tuned = merged(tuned)
    before, after = two_stage.matrices(base), two_stage.matrices(tuned)
    return {
        "new": both_ways(base, tuned, rows, seed, max_new_tokens),
        "prior": both_ways(base, tuned, prior, seed, max_new_tokens) if prior else None,
        "weights": weight_change(language(base), language(tuned)),
        "rotation": rotation(before, after, k, seed),
    }


# --- of finished runs -----------------------------------------------------------------------------------------------------------

PRACTISED = {"sums_practice": "practised sums", "sequence_form": "practised form"}  # runs that only make a base


@dataclass(frozen=True)
class Finished:
    """A finished run: its folder, its record, the base that its forgetting is counted from (None: the preset's own model), the update
    at which that base stands, and the kept weights by update of the record."""

    folder: Path
    record: runs.RunRecord
    base: Path | None
    start: int
    weights: Mapping[int, Path]

    @property
    def preset(self) -> Preset:
        known = {f.name for f in fields(Preset)}
        return Preset(**{key: value for key, value in self.record.config["preset"].items() if key in known})

    @property
    def bench(self) -> str:
        """ "points", "sums", "seven" or "jigsaw", by the run's name."""
        head = self.record.method.partition("_")[0]
        return head if head in ("points", "sums", "seven") else "jigsaw"


def finished(home: Path) -> list[Finished]:
    """The finished runs under home/runs, by name, with the weights that they kept; those that only make a base left out, and those
    whose base or weights are gone, which are named. Of a sequence of tasks it is the whole, not its parts."""
    found = []
    for path in sorted((home / "runs").glob("*/record.json")):
        try:
            record = runs.load_record(path)
            if record.status == "done" and record.method not in PRACTISED and not _part_of_sequence(record):
                found.append(_read(path.parent, record))
        except UserError as error:
            tqdm.write(f"{path.parent.name} is left out: {error}")
    return found


def _part_of_sequence(record: runs.RunRecord) -> bool:
    return record.method.startswith("seven_") and "order" not in record.config


def _read(folder: Path, record: runs.RunRecord) -> Finished:
    base, start = _origin(folder.parent, record)
    last, offset = record.evals()[-1]["step"], (record.config.get("after") or {}).get("steps", 0)
    kept = {offset + int(p.name.partition("-")[2]): p for p in folder.glob("weights-*") if _whole(p)}
    end = folder / "final"
    if "order" in record.config:
        stages = [row for row in record.metrics if row["kind"] == "stage"]
        end = folder.parent / stages[-1]["run"] / "final"
    if last not in kept and _whole(end):
        kept[last] = end
    evaluated = {row["step"] for row in record.evals()}
    kept = {step: kept[step] for step in sorted(kept) if step in evaluated and step > start}
    if not kept:
        raise UserError("it kept no weights of an evaluated update; run it again to have them.")
    return Finished(folder, record, base, start, kept)


def _whole(folder: Path) -> bool:
    return any(
        (folder / name).is_file()
        for name in ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
    )


def _origin(folder: Path, record: runs.RunRecord) -> tuple[Path | None, int]:
    """The weights that a run's forgetting is counted from, and their update: through all that it goes on from, back to a practised base
    or to the preset's own model."""
    after = record.config.get("after") or ("order" in record.config and record.config.get("base")) or None
    while after:
        tag, method = after["settings"], after["method"]
        before = next(iter(sorted(folder.glob(f"{method}-s*-{tag}"))), None)
        if before is None or not (before / "record.json").is_file():
            raise UserError(f"the run {method} ({tag}) that it goes on from is not beside it; copy its folder there.")
        if method in PRACTISED:
            weights = recording.weights_at(before, after["steps"])
            start = 0 if "order" in record.config else after["steps"]  # a sequence counts from its base on
            return (weights if _whole(weights) else before / "final"), start
        after = runs.load_record(before / "record.json").config.get("after")
    return None, 0


def asked(run: Finished, n: int) -> tuple[list[Row], list[Row], int]:
    """n held-out rows of the run's new task, n of the probes together (as many of each), and the longest reply in tokens."""
    preset, split = run.preset, (recording.EVAL_SEED, n)
    if run.bench == "points":
        rows = points.task(two_stage.PLANS[preset.name].game, "ten", "any").rows(*split)
    elif run.bench == "sums":
        rows = chains.task(blends.TINY.game).rows(*split)
    elif run.bench == "seven":
        tasks = methods.seven(preset).tasks(preset, run.record.config["method"]["thinking"])
        order = run.record.config["order"]
        rows = [row for name in order for row in tasks[name].rows(recording.EVAL_SEED, -(-n // len(order)))]
    else:
        rows = hub.new_task(preset).rows(*split)
    probes = hub.probes(preset).values()
    prior = [row for task in probes for row in task.rows(recording.EVAL_SEED, -(-n // len(probes)))]
    return rows, prior, preset.max_completion


def measure(run: Finished, n: int = 96, k: int = 16, seed: int = 0, folder: Path = FOLDER) -> dict[str, Any]:
    """Measure every kept checkpoint of a run and write folder/NAME.json, whole, after each; what it holds already is not measured again.

    NAME is the run's folder. Of each checkpoint: "step" (of the record), "updates" (since the base), "new_exact", "prior_mean", "drop"
    (percentage points of prior accuracy lost since the base), of a whole sequence of tasks also "gained", and what `drift` returns.
    """
    path = folder / f"{run.folder.name}.json"
    settings = {"schema": _SCHEMA, "n": n, "k": k, "seed": seed}
    made = _kept(path, settings) or {
        "name": run.record.name, "method": run.record.method, "seed": run.record.seed, "preset": run.record.preset, "bench": run.bench,
        "settings": run.folder.name.rpartition("-")[2], "measured": settings, "versions": runs.versions(), "checkpoints": [],
    }  # fmt: skip
    todo = {step: at for step, at in run.weights.items() if step not in {c["step"] for c in made["checkpoints"]}}
    if not todo:
        return made
    base = load_policy(run.preset)
    if run.base:
        load_trained(base, run.base)
    made["base_checked"] = _same_base(run, base)
    rows, prior, longest = asked(run, n)
    evals = {row["step"]: row for row in run.record.evals()}
    first = evals[min(s for s in evals if s >= run.start)]
    for step, at in todo.items():
        tuned = load_policy(run.preset)
        load_trained(tuned, at)
        tuned = merged(tuned)
        same_tower(base, tuned)
        row = evals[step]
        made["checkpoints"].append(six_digits({
            "step": step, "updates": step - run.start, "new_exact": row["new_exact"], "prior_mean": row["prior_mean"],
            "drop": 100.0 * (first["prior_mean"] - row["prior_mean"]), **_gained(run, step),
            **drift(base, tuned, rows, prior, k=k, seed=seed, max_new_tokens=longest),
        }))  # fmt: skip
        made["checkpoints"].sort(key=lambda c: c["step"])
        _write(path, made)
    return made


def _gained(run: Finished, step: int) -> dict[str, float]:
    """What a sequence gained on each task while it was trained: at its end accuracy is what forgetting left of that."""
    whole = "order" in run.record.config and step == run.record.evals()[-1]["step"]
    return {"gained": continual.Sequence(run.record).gain} if whole else {}


def same_tower(base: Policy, tuned: Policy) -> None:
    """Raises UserError unless both have the same vision tower, to the bit: where it was not trained, another one is another base's."""
    theirs = dict(tuned.model.named_parameters())
    towers = {name: p for name, p in base.model.named_parameters() if "visual." in name}
    if base.preset.freeze_vision and any(
        name not in theirs or not torch.equal(p, theirs[name]) for name, p in towers.items()
    ):
        raise UserError("The run was not trained from this base: their vision towers differ; find its own base.")


def _same_base(run: Finished, base: Policy) -> str:
    """How it is known that this is the base: by the digest in the record, or else only by the tower, which is compared in any case."""
    named = run.record.config.get("base")
    if not isinstance(named, str):
        return "vision tower"
    if named != recording.weights_id(run.preset, base.model):
        raise UserError(
            f"{run.folder.name} was trained from the weights {named}, which are not those of this version: run it again."
        )
    return "digest"


def _kept(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    if not path.exists():
        return None
    made = read(path)
    return made if made["measured"] == settings else None


def _write(path: Path, made: Mapping[str, Any]) -> None:
    try:
        runs.write_whole(path, json.dumps(made, indent=1, allow_nan=False) + "\n")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} was not written ({error}): free some space, or name another folder with --out."
        ) from error


def read(path: Path) -> dict[str, Any]:
    """What `measure` wrote. Raises UserError for anything else."""
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
        if made["measured"]["schema"] != _SCHEMA or not all(isinstance(c["drop"], float) for c in made["checkpoints"]):
            raise ValueError("another version")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} holds no measured run ({error!r}): delete it and run `python -m rftkit drift` again."
        ) from error
    return dict(made)


def load(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """The measured runs of a folder by bench, method and seed; none where there are none. Raises UserError where one comes twice."""
    made = [read(path) for path in sorted(Path(folder).glob("*.json"))]
    seen: dict[tuple[str, int], str] = {}
    for one in made:
        key = one["method"], one["seed"]
        if key in seen:
            raise UserError(
                f"{one['name']} was measured with the settings {seen[key]} and {one['settings']}: keep one of the two files."
            )
        seen[key] = one["settings"]
    return sorted(made, key=lambda one: (one["bench"], one["method"], one["seed"]))


PREDICTORS = {
    "forward": "forward KL on the new task, nats a reply", "reverse": "reverse KL on the new task, nats a reply",
    "forward_token": "forward KL on the new task, nats a token", "reverse_token": "reverse KL on the new task, nats a token",
    "tv": "total variation on the new task", "weights": "weight distance, L2", "weights_l1": "weight distance, L1",
    "changed_bf16": "share of weights changed in bfloat16", "rotation": "rotation of leading subspaces", "gained": "learnt: new-task accuracy",
}  # fmt: skip
CONTROL = "prior"  # forward KL on the old tasks: nearly the outcome itself


def points_of(made: Sequence[Mapping[str, Any]], last: bool = True) -> list[Point]:
    """Measured runs as points for `predict`: their last checkpoints, or all. Predictors by the names of PREDICTORS, and CONTROL."""
    found = []
    for one in made:
        for c in one["checkpoints"][-1 if last else 0 :]:
            new, weights, gained = c["new"], c["weights"], c.get("gained", c["new_exact"])
            values = {
                **{side: new[side]["reply"] for side in SIDES}, **{f"{side}_token": new[side]["token"] for side in SIDES},
                "tv": new["forward"]["tv"], "weights": weights["relative"], "weights_l1": weights["relative_l1"],
                "changed_bf16": weights["changed_bf16"], "rotation": (c["rotation"]["left"] + c["rotation"]["right"]) / 2,
                "gained": gained, **({CONTROL: c["prior"]["forward"]["reply"]} if c["prior"] else {}),
            }  # fmt: skip
            where = "" if last else f"update {c['updates']}"
            found.append(Point(one["bench"], one["method"], one["seed"], c["drop"], gained, values, where))
    return found


def main(argv: list[str]) -> int:
    """Measure how far every finished run under HOME/runs went from its base, one JSON a run; go on where an earlier call stopped."""
    parser = argparse.ArgumentParser(prog="python -m rftkit drift", description=main.__doc__)
    parser.add_argument("home", type=Path, help="the folder that holds runs/, as $RFTKIT_HOME")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for the results (default: the course's)")
    parser.add_argument("--runs", nargs="+", metavar="NAME", help="only these, by method or folder")
    parser.add_argument(
        "-n", type=int, default=96, help="prompts of the new task, and of all probes together (default: 96)"
    )
    parser.add_argument("-k", type=int, default=16, help="leading directions whose rotation is measured (default: 16)")
    parser.add_argument("--last", action="store_true", help="only the last checkpoint of each run")
    args = parser.parse_args(argv)
    transformers.utils.logging.disable_progress_bar()  # of loading weights: the bar below is enough
    if args.n < 2 or args.k < 1:
        raise UserError(f"n = {args.n} prompts, k = {args.k} directions: give at least 2 and 1.")
    some = [
        run for run in finished(args.home) if not args.runs or {run.record.method, run.folder.name} & set(args.runs)
    ]
    if args.last:
        some = [replace(run, weights={max(run.weights): run.weights[max(run.weights)]}) for run in some]
    if not some:
        raise UserError(
            f"Under {args.home / 'runs'} is no finished run with weights to measure: pass the folder that training wrote to."
        )
    count = sum(len(run.weights) for run in some)
    print(
        f"{len(some)} runs, {count} checkpoints; at the tier tiny about {count * SECONDS / 60:.0f} minutes on one thread.",
        flush=True,
    )
    with tqdm(total=count, desc="checkpoints", mininterval=5) as bar:
        for run in some:
            begun = time.monotonic()
            with recording.one_thread(run.preset):
                made = measure(run, args.n, args.k, folder=args.out)
            bar.update(len(run.weights))
            end = made["checkpoints"][-1]
            forward = end["new"]["forward"]
            tqdm.write(
                f"{run.folder.name}: forward KL {forward['reply']:.3g} +- {forward['reply_error']:.1g} nats a reply, weights "
                f"{end['weights']['relative']:.2%} away, prior {-end['drop']:+.1f} points, {time.monotonic() - begun:.0f} s"
            )
    return 0


SECONDS = 12  # of a checkpoint at the tier tiny
