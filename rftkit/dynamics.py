"""Learning dynamics: what one training example does to another, after theorems 5.1 and 5.2 of 2506.23508.

Everything is about s(v) = log pi(y_v | x_v), the summed log-probability of an answer, and its gradient g_v by the trained weights.
A plain SGD step of rate eta on example u moves it by

    s(v) after - s(v) before = eta * <g_v, g_u> + O(eta^2),

and at the level of the logits <g_v, g_u> is A_v K_vu G_u, with A_v = I - 1 pi_v^T, G_u = y_u - pi_u and K_vu the kernel of the logits.
The inner product is all that an example can do to another in one small step; the rest of this module measures it, per example, in
batches, exactly or through a random projection, and compares it with what a step really did.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from peft import PeftModel
from torch import Tensor, nn
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from rftkit.config import Preset, UserError
from rftkit.policy import Policy
from rftkit.sft import sft_row
from rftkit.tasks import Row


@dataclass(frozen=True)
class Factors:
    """Gradients of n examples by one Linear layer's weight, as what they are made of: example i's is d[i].T @ x[i].

    d (n, tokens, out) is the gradient at the layer's output, x (n, tokens, in) its input. Exact, made without any product, and
    smaller than the matrices while tokens < out * in / (out + in), which holds for short texts.
    """

    d: Tensor
    x: Tensor

    def __len__(self) -> int:
        return len(self.d)

    def __getitem__(self, index: int) -> Tensor:
        """(out, in): the gradient of one example."""
        return self.d[index].mT @ self.x[index]

    def dense(self) -> Tensor:
        """(n, out, in): all of them."""
        return self.d.mT @ self.x


Block: TypeAlias = Tensor | Factors
Gradients = dict[str, Block]  # name -> (n, *shape of the parameter), or {"sketch": (n, size)}


def dense(block: Block) -> Tensor:
    """(n, *shape of the parameter)"""
    return block.dense() if isinstance(block, Factors) else block


# --- log-probabilities of given answers -----------------------------------------------------------------------------------


def collated(policy: Policy, rows: Sequence[Row]) -> Any:
    """The batch that TRL's collator makes of the rows, "labels" (-100 outside the answers) among it, so that an answer is tokenized
    as in training. Raises UserError unless all rows have an image, or none."""
    if len({row.image is None for row in rows}) != 1:
        raise UserError("Rows with and without an image cannot share a batch: pass them in two calls.")
    collate = DataCollatorForVisionLanguageModeling(policy.processor, completion_only_loss=True)
    batch = collate([sft_row(row) for row in rows]).to(policy.model.device)
    if rows[0].image is None:
        batch.pop("mm_token_type_ids", None)
    return batch


def answer_logits(policy: Policy, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Logits (n, T, V) at the positions that predict the answers, and their targets (n, T), -100 where there is none.

    The model should be in evaluation mode: checkpointing, which only trains, would run the last layer again as a whole. Raises
    UserError unless all rows have an image, or none.
    """
    batch = collated(policy, rows)
    labels = batch.pop("labels")
    start = int((labels != -100).any(0).nonzero()[0]) - 1  # the position before the first target predicts it
    keep = torch.arange(start, labels.shape[1] - 1, device=labels.device)
    with _last_mlp_from(policy.model, start):
        logits = policy.model(**batch, logits_to_keep=keep, use_cache=False).logits
    return logits, labels[:, start + 1 :]


@contextlib.contextmanager
def _last_mlp_from(model: nn.Module, start: int) -> Iterator[None]:
    """Without the last layer's MLP at positions before `start`: no later position attends to what it says there, and nobody reads it.

    Of the bundled model's four layers that is a sixth of the arithmetic; what is read, and its gradient, stay what they are.
    """
    mlp = model.get_decoder().layers[-1].mlp
    hooks = [
        mlp.register_forward_pre_hook(lambda _, inputs: (inputs[0][:, start:],)),
        mlp.register_forward_hook(lambda _, inputs, output: nn.functional.pad(output, (0, 0, start, 0))),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def token_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probability (n, T) of each target; 0 where there is none, so that padding adds nothing to a sum."""
    logps = logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return logps.masked_fill(targets == -100, 0.0)


def log_likelihoods(policy: Policy, rows: Sequence[Row], batch_size: int = 32) -> tuple[Tensor, Tensor]:
    """s = log pi(y|x) in nats, summed over the answer's tokens, and the number of those tokens; shape (n,) each."""
    sums, counts = torch.zeros(len(rows)), torch.zeros(len(rows), dtype=torch.long)
    with torch.no_grad(), evaluating(policy.model):
        for index in batches(rows, batch_size):
            logits, targets = answer_logits(policy, [rows[i] for i in index])
            into = slice(index[0], index[-1] + 1)
            sums[into] = token_logps(logits, targets).sum(-1).float().cpu()
            counts[into] = (targets != -100).sum(-1).cpu()
    return sums, counts


def perplexity(policy: Policy, rows: Sequence[Row], batch_size: int = 32) -> Tensor:
    """exp(-s / |y|) of each row's answer under the policy, shape (n,): 1 is certain, the vocabulary's size is blind guessing.

    Of the *base* this is the quantity that 2506.23508 puts beside forgetting; its exact normalisation was not found, this is the usual.
    """
    sums, counts = log_likelihoods(policy, rows, batch_size)
    return (-sums / counts).exp()


def batches(rows: Sequence[Row], size: int) -> list[range]:
    """Stretches of at most `size` rows in a row, those with an image apart from those without."""
    if not rows:
        raise UserError("There are no rows to measure: pass at least one.")
    cuts = [0, *(i for i in range(1, len(rows)) if (rows[i].image is None) != (rows[i - 1].image is None)), len(rows)]
    return [range(k, min(k + size, end)) for start, end in itertools.pairwise(cuts) for k in range(start, end, size)]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout, then back to how it was."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)


# --- one gradient an example, in one backward pass -----------------------------------------------------------------------


def per_example_gradients(
    model: nn.Module, score: Callable[[], Tensor], where: str = "", keep: Callable[[str, Tensor], Tensor] | None = None
) -> Gradients:  # fmt: skip
    """The gradient of every example's score by every trained parameter whose name `where` (a regex) is found in.

    `score()` runs the model on a batch and returns (n,) numbers, the i-th a function of the i-th row alone. One forward and one
    backward pass: a layer's input and the gradient at its output, both kept per example, are what its weights' gradients are
    made of, and a Linear layer's stay in this form (`Factors`, to be multiplied out by `dense`). `keep(name, block)` may shrink
    each (n, *shape) block as soon as it is made, by any linear map.

    Raises UserError if nothing matches, or a matching parameter belongs to a layer whose gradient is not known here
    (known: Linear, Embedding, RMSNorm; LoRA's two matrices are Linear).
    """
    names = matching(model, where)
    own = [m for m in model.modules() if any(id(p) in names for p in m.parameters(recurse=False))]
    for module in own:
        if not (isinstance(module, nn.Linear | nn.Embedding) or _is_rms_norm(module)):
            raise UserError(f"Per-example gradients of a {type(module).__name__} are not written: narrow `where`.")
    # (layer, its input, its output), in the order of the forward pass
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((module, inputs[0].detach(), output))

    hooks = [m.register_forward_hook(watch) for m in own]
    try:
        with evaluating(model), torch.enable_grad():
            scores = score()
            total = scores.sum()
    finally:
        for hook in hooks:
            hook.remove()
    # by the layers' outputs alone: autograd then computes no weight's gradient, which would be summed over the batch
    at_outputs = torch.autograd.grad(total, [output for _, _, output in seen])
    blocks: Gradients = {}
    for (module, x, _), d in zip(seen, at_outputs, strict=True):
        if len(d) != len(scores):  # as in the vision tower, whose input is all images' patches in a row
            raise UserError(
                f"A {type(module).__name__} does not see one row an example: narrow `where` to the language model."
            )
        for parameter, make in _layer_gradients(module, x, d):
            if name := names.get(id(parameter)):
                block = keep(name, dense(make())) if keep else make()
                # a tied weight is used twice
                blocks[name] = dense(blocks[name]) + dense(block) if name in blocks else block
    return blocks


def matching(model: nn.Module, where: str) -> dict[int, str]:
    """id -> name of the trained parameters whose name `where` is found in. Raises UserError if there is none."""
    names = {id(p): n for n, p in model.named_parameters() if p.requires_grad and re.search(where, n)}
    if not names:
        raise UserError(f"No trained parameter's name matches {where!r}: see model.named_parameters().")
    return names


def _layer_gradients(module: Any, x: Tensor, d: Tensor) -> Iterator[tuple[Tensor, Callable[[], Block]]]:
    """(parameter, maker of its gradients) of a layer, from its input x (n, ..., in) and the gradient d (n, ..., out) at its output."""
    n = len(d)
    flat, out = x.reshape(n, -1, x.shape[-1]), d.reshape(n, -1, d.shape[-1])  # (n, tokens, features)
    if isinstance(module, nn.Embedding):
        yield module.weight, lambda: _embedding_gradient(x.reshape(n, -1), out, len(module.weight))
    elif isinstance(module, nn.Linear):
        yield module.weight, lambda: Factors(out, flat)
        if module.bias is not None:
            yield module.bias, lambda: out.sum(1)
    else:
        scale = (flat.float().square().mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()
        yield module.weight, lambda: (out * (flat.float() * scale)).sum(1)


def _embedding_gradient(ids: Tensor, d: Tensor, size: int) -> Tensor:
    """(n, tokens) ids and (n, tokens, h) gradients -> (n, size, h): each word collects from where it was read."""
    rows = ids + size * torch.arange(len(ids), device=ids.device)[:, None]
    return (
        d.new_zeros(len(ids) * size, d.shape[-1])
        .index_add_(0, rows.flatten(), d.flatten(0, 1))
        .view(len(ids), size, -1)
    )


def _is_rms_norm(module: nn.Module) -> bool:
    return type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")


def gradients(
    policy: Policy, rows: Sequence[Row], where: str = "", keep: Callable[[str, Tensor], Tensor] | None = None, batch_size: int = 16
) -> Gradients:  # fmt: skip
    """g_v of each row: the gradient of log pi(y|x), summed over the answer's tokens. Leading size n, in the order of the rows.

    Memory: of a Linear layer 4 bytes for each of its tokens' inputs and outputs, of others 4 bytes a weight; with a `CountSketch`
    as `keep` n times its size, and one batch of the largest matrix in passing.
    """
    parts: list[Gradients] = []
    for index in batches(rows, batch_size):
        some = [rows[i] for i in index]
        parts.append(per_example_gradients(policy.model, functools.partial(_scores, policy, some), where, keep))
    return {name: _joined([part[name] for part in parts]) for name in parts[0]}


def _joined(parts: list[Block]) -> Block:
    """One block after the other; shorter rows of factors are padded with zeros, as their tokens are, on the left."""
    if len(parts) == 1:  # all rows fitted one batch: nothing to copy
        return parts[0]
    factors = [part for part in parts if isinstance(part, Factors)]
    if len(factors) < len(parts):
        return torch.cat([dense(part) for part in parts])
    longest = max(part.d.shape[1] for part in factors)

    def padded(side: Tensor) -> Tensor:
        return nn.functional.pad(side, (0, 0, longest - side.shape[1], 0))

    return Factors(torch.cat([padded(part.d) for part in factors]), torch.cat([padded(part.x) for part in factors]))


def _scores(policy: Policy, rows: Sequence[Row]) -> Tensor:
    return token_logps(*answer_logits(policy, rows)).sum(-1)


def inner(a: Gradients, b: Gradients) -> Tensor:
    """All inner products <a_i, b_j>, shape (n_a, n_b), in float32 for each parameter and summed over parameters in float64."""
    if set(a) != set(b):
        raise UserError("These gradients are by different parameters: make both with the same `where` and `keep`.")
    return sum(_products(a[k], b[k]) for k in a)


def _products(a: Block, b: Block) -> Tensor:
    x = dense(a).flatten(1).float()
    return (x @ (x if a is b else dense(b).flatten(1).float()).mT).double()


@dataclass(frozen=True)
class CountSketch:
    """A seeded random projection to `size` numbers that keeps inner products on average (Charikar, Chen, Farach-Colton 2002).

    Each weight is added, with a random sign, to one of `size` buckets. E<Sa, Sb> = <a, b>, with a standard deviation of at most
    sqrt(2 / size) |a| |b|. To be passed as `keep`: a block is projected as soon as it is made and then forgotten.
    """

    size: int = 16_384
    seed: int = 0

    def __call__(self, name: str, block: Tensor) -> Tensor:
        flat = block.flatten(1)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + zlib.crc32(name.encode()))
        bucket = torch.randint(self.size, flat.shape[1:], generator=generator).to(flat.device)
        sign = (2 * torch.randint(2, flat.shape[1:], generator=generator) - 1).to(flat)
        return flat.new_zeros(len(flat), self.size).index_add_(1, bucket, flat * sign)

    @staticmethod
    def total(blocks: Gradients) -> Gradients:
        """The sketch of the whole gradient: the sum of its blocks' sketches."""
        return {"sketch": torch.stack([dense(block) for block in blocks.values()]).sum(0)}


# --- one step, predicted and measured ---------------------------------------------------------------------------------------


def predicted(policy: Policy, train: Sequence[Row], prior: Sequence[Row], lr: float, where: str = "") -> Tensor:
    """First-order change of s(v) by one SGD step on u: lr * <g_u, g_v>, shape (train, prior), in nats."""
    return lr * inner(gradients(policy, train, where), gradients(policy, prior, where))


def one_step(
    policy: Policy, train: Sequence[Row], prior: Sequence[Row], lr: float, optimizer: str = "sgd", mean_loss: bool = False
) -> Tensor:  # fmt: skip
    """What one real step of an optimiser did: s(v) after minus s(v) before, shape (train, prior), in nats.

    Each training row takes its step alone, from the same weights, which are put back. `optimizer` is "sgd" or "adamw" (no weight
    decay, no history: its first step). With `mean_loss` the loss is the mean over the answer's tokens, as trainers have it,
    while the change that is measured stays that of the sum.
    """
    if optimizer not in ("sgd", "adamw"):
        raise UserError(f"There is no optimizer {optimizer!r} here: choose sgd or adamw.")
    before, _ = log_likelihoods(policy, prior)
    changes = []
    for row in train:
        with _stepped(policy, row, lr, optimizer, mean_loss):
            changes.append(log_likelihoods(policy, prior)[0] - before)
    return torch.stack(changes)


@contextlib.contextmanager
def _stepped(policy: Policy, row: Row, lr: float, optimizer: str = "sgd", mean_loss: bool = False) -> Iterator[None]:
    """The policy as it is after one step on the row; the weights are put back at the end."""
    weights = [p for p in policy.model.parameters() if p.requires_grad]
    kept = [w.detach().clone() for w in weights]
    chosen = torch.optim.SGD(weights, lr) if optimizer == "sgd" else torch.optim.AdamW(weights, lr, weight_decay=0.0)
    try:
        chosen.zero_grad()  # of whatever the reader did before
        with evaluating(policy.model), torch.enable_grad():
            logits, targets = answer_logits(policy, [row])
            length = int((targets != -100).sum()) if mean_loss else 1
            (-token_logps(logits, targets).sum() / length).backward()
        chosen.step()
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, kept, strict=True):
                weight.copy_(old)
        chosen.zero_grad()


def asymmetry(changes: Tensor) -> float:
    """How far the changes (n, n) of rows by each other are from symmetric, in nats: root mean square of M - M' off the diagonal.

    Theorem 5.2 of 2506.23508: O(eta^2) for one plain SGD step.
    """
    off = ~torch.eye(len(changes), dtype=torch.bool)
    return float((changes - changes.T)[off].double().square().mean().sqrt())


# --- magnitude: the lower bound of the kernel (LBK) ------------------------------------------------------------------------


@dataclass(frozen=True)
class KernelBound:
    """|K_vu|_F^2 >= moved / (spread * residual), to first order; numerator and denominators apart, since a fitted target makes
    the residual, and with it the ratio, anything.

    moved (train, prior): |change of all log-probabilities of v|_F^2 / eta^2. spread (prior,): |A_v|_F^2. residual (train,): |G_u|_F^2.
    """

    moved: Tensor
    spread: Tensor
    residual: Tensor

    @property
    def bound(self) -> Tensor:
        """LBK, shape (train, prior)."""
        return self.moved / (self.spread * self.residual[:, None])


def spread(logits: Tensor, targets: Tensor) -> Tensor:
    """|A|_F^2 summed over the answer's positions, (n,): A = I - 1 pi^T, so V - 2 + V |pi|^2 at each."""
    size = logits.shape[-1]
    each = size - 2 + size * logits.softmax(-1).square().sum(-1)
    return each.masked_fill(targets == -100, 0.0).sum(-1)


def residual(logits: Tensor, targets: Tensor) -> Tensor:
    """|G|_F^2 summed over the answer's positions, (n,): G = y - pi, so 1 - 2 pi_y + |pi|^2 at each."""
    pi = logits.softmax(-1)
    right = pi.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return (1 - 2 * right + pi.square().sum(-1)).masked_fill(targets == -100, 0.0).sum(-1)


def kernel_bound(policy: Policy, train: Sequence[Row], prior: Sequence[Row], gain: float = 0.05) -> KernelBound:
    """LBK of every pair, from one real SGD step on each training row (section 5 of 2506.23508, its normalisation is not known).

    eta is chosen row by row so that, to first order, the step raises the row's own log-probability by `gain` nats: small enough
    for the first order, large enough for float32. A row that is fitted to within `gain` has not so much to gain: its step leaves
    the first order and its ratio is no bound any more. No step is longer than 1, lest a row with hardly any gradient wreck the model.

    On a GPU `moved`, and with it the bound, is NaN: there models compute in 16 bit, in which so small a step is lost and the square
    of the rounding is all that would be measured.
    """
    before = _answer_logps(policy, prior)
    exact = policy.model.device.type == "cpu"
    moved, residuals = [], []
    for row in train:
        with torch.no_grad(), evaluating(policy.model):
            residuals.append(residual(*answer_logits(policy, [row]))[0].cpu())
        if not exact:
            moved.append(torch.full((len(prior),), torch.nan))
            continue
        length = max(_squared_norm(policy, row), 1e-12) ** 0.5
        eta = min(gain / length**2, 1 / length)
        with _stepped(policy, row, eta):
            after = _answer_logps(policy, prior)
        moved.append(
            torch.stack([((a - b) / eta).square().sum() for (a, _), (b, _) in zip(after, before, strict=True)])
        )
    return KernelBound(torch.stack(moved), torch.stack([s for _, s in before]), torch.stack(residuals))


def _squared_norm(policy: Policy, row: Row) -> float:
    """|g|^2 of one row by all trained weights."""
    weights = [p for p in policy.model.parameters() if p.requires_grad]
    with evaluating(policy.model), torch.enable_grad():
        found = torch.autograd.grad(_scores(policy, [row]).sum(), weights, allow_unused=True)
    return float(sum(g.double().square().sum() for g in found if g is not None))


def _answer_logps(policy: Policy, rows: Sequence[Row]) -> list[tuple[Tensor, Tensor]]:
    """Of each row: the log-probabilities (answer length, V) of every word at every position of its answer, and |A|_F^2."""
    out: dict[int, tuple[Tensor, Tensor]] = {}
    with torch.no_grad(), evaluating(policy.model):
        for index in batches(rows, at_once(policy.preset)):
            logits, targets = answer_logits(policy, [rows[i] for i in index])
            logps, spreads = logits.log_softmax(-1), spread(logits, targets)
            for k, i in enumerate(index):
                out[i] = (logps[k][targets[k] != -100].cpu(), spreads[k].cpu())
    return [out[i] for i in range(len(rows))]


# --- direction -------------------------------------------------------------------------------------------------------------


def cosine_of_means(products: Tensor, a: Sequence[int], b: Sequence[int]) -> float:
    """Cosine of the mean gradients of two groups of rows, out of all inner products (n, n) and the groups' indices.

    Positive: a step on one group helps the other, to first order; negative: it harms it.
    """

    def mean(x: Sequence[int], y: Sequence[int]) -> Tensor:
        return products[torch.as_tensor(x)[:, None], torch.as_tensor(y)[None]].mean()

    return float(mean(a, b) / (mean(a, a) * mean(b, b)).sqrt())


def at_once(preset: Preset) -> int:
    """Examples that `measure` holds on the device: those of a micro-batch, and one where training spares its activations."""
    return 1 if preset.checkpointing else preset.micro_batch or 16


# --- one row of a run's record ---------------------------------------------------------------------------------------------


def measure(policy: Policy, train: Sequence[Row], prior: Sequence[Row], where: str = "") -> dict[str, Any]:
    """Magnitude and direction between rows that a run trains on and rows of the prior probes, as a row of its record.

    Norms and cosines are of the gradients by the weights whose name `where` is found in; the kernel's step moves all trained ones.

    Keys: "perplexity" (of the training answers, geometric mean), "train_norm" and "prior_norm" (root mean square of the norms of g),
    "mean_norm" (norm of the mean of g), "residual", "spread", and by probe: "moved", "bound" (geometric means over pairs) and "cosine".
    """
    size = at_once(policy.preset)
    # LoRA's gradients are smaller than what they are made of, and all of them would fill a small GPU
    keep = (lambda _, block: block.cpu()) if isinstance(policy.model, PeftModel) else None
    kernel = kernel_bound(policy, train, prior)
    products = inner(both := gradients(policy, [*train, *prior], where, keep, size), both)
    n = len(train)
    first = range(n)
    groups = {
        name: [n + i for i, row in enumerate(prior) if row.task == name]
        for name in dict.fromkeys(r.task for r in prior)
    }

    def by_probe(table: Tensor) -> dict[str, float]:
        return {
            name: float(table[:, [i - n for i in index]].clamp(min=1e-30).log().mean().exp())
            for name, index in groups.items()
        }

    squares = products.diagonal()
    return {
        "kind": "dynamics",
        "perplexity": float(perplexity(policy, train, size).log().mean().exp()),
        "train_norm": float(squares[:n].mean().sqrt()),
        "prior_norm": float(squares[n:].mean().sqrt()),
        "mean_norm": float(products[:n, :n].mean().sqrt()),
        "residual": float(kernel.residual.mean()),
        "spread": float(kernel.spread.mean()),
        "moved": by_probe(kernel.moved),
        "bound": by_probe(kernel.bound),
        "cosine": {name: cosine_of_means(products, first, index) for name, index in groups.items()},
    }
