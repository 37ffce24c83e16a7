import contextlib
import itertools
import math
import threading
import time
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rftkit import check, continual, prefix_rft
from rftkit.check import Exercise, Feedback
from rftkit.evals import crossing, value_at
from rftkit.rollouts import Rollout

CHECKS = {
    check.per_example_gradients: check.PER_EXAMPLE_GRADIENTS,
    check.answer_log_likelihood: check.ANSWER_LOG_LIKELIHOOD,
    check.perplexity: check.PERPLEXITY,
    check.one_step_change: check.ONE_STEP_CHANGE,
    check.kl: check.KL,
    check.keep_correct: check.KEEP_CORRECT,
    check.instance_filter: check.INSTANCE_FILTER,
    check.matched_drop: check.MATCHED_DROP,
    check.subspace_distance: check.SUBSPACE_DISTANCE,
    check.principal_angles: check.PRINCIPAL_ANGLES,
    check.trivial_zeros: check.TRIVIAL_ZEROS,
    check.restore_top: check.RESTORE_TOP,
    check.prefix_bounds: check.PREFIX_BOUNDS,
    check.prefix_advantages: check.PREFIX_ADVANTAGES,
    check.token_entropies: check.TOKEN_ENTROPIES,
    check.top_share: check.TOP_SHARE,
    check.fm_metric: check.FM_METRIC,
    check.peak_after_learning: check.PEAK_AFTER_LEARNING,
    check.teacher_forced_accuracy: check.TEACHER_FORCED_ACCURACY,
    check.leaking_filter: check.LEAKING_FILTER,
}
every_check = pytest.mark.parametrize("try_it", CHECKS, ids=lambda c: c.__name__)


# --- answers as learners write them: they share nothing with check.py ------------------------------------------------------------


def gradients_by_autograd(W, X, y, sign=1.0, reduce=None):
    def one(x, k):
        w = W.clone().requires_grad_()
        return torch.autograd.grad(sign * F.log_softmax(w @ x, -1)[k], w)[0]

    each = torch.stack([one(x, k) for x, k in zip(X, y, strict=True)])
    return each if reduce is None else reduce(each)


def gradients_by_vmap(W, X, y):
    score = torch.func.grad(lambda w, x, k: (w @ x).log_softmax(-1).gather(0, k[None])[0])
    return torch.func.vmap(score, (None, 0, 0))(W, X, y)


def gradients_by_loop(W, X, y):
    """With the requires_grad left in, and W changed in place."""
    W.requires_grad_()
    pi = torch.softmax(X @ W.T, -1)
    return torch.stack([torch.outer(torch.eye(5)[k] - p, x) for x, k, p in zip(X, y, pi, strict=True)])


def batch_backward(reduction):
    def fn(W, X, y):
        W.requires_grad_()
        F.cross_entropy(X @ W.T, y, reduction=reduction).backward()
        return W.grad.expand(len(X), -1, -1)

    return fn


def logp(logits, targets, ignored=0.0):
    """Token by token, with Python's numbers."""
    rows = []
    for row, goal in zip(logits.tolist(), targets.tolist(), strict=True):
        rows.append(
            [ignored if k == -100 else z[k] - math.log(sum(map(math.exp, z))) for z, k in zip(row, goal, strict=True)]
        )
    return torch.tensor(rows)


def nll(logits, targets, reduction="none"):
    out = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction=reduction)
    return out.view(targets.shape) if reduction == "none" else out


def shift(logits, targets):
    return -nll(logits[:, :-1].contiguous(), targets[:, 1:].contiguous()).sum(1)


def lengths(targets):
    return (targets >= 0).sum(1)


def ppl_by_loop(logps, targets):
    out = []
    for row, goal in zip(logps, targets, strict=True):
        own = row[goal != -100]
        out.append(2 ** (-own.mean() / math.log(2)))
    return torch.stack(out)


def kl_by_loop(p, q):
    return torch.tensor(
        [
            sum(a * math.log(a / b) for a, b in zip(x, y, strict=True) if a)
            for x, y in zip(p.tolist(), q.tolist(), strict=True)
        ]
    )


def kl_torch(p, q, reduction="none"):
    return F.kl_div(q.log(), p, reduction=reduction)


def keep_by_loop(group):
    kept, texts = [], set()
    for r in reversed(group):
        if r.exact == 1 and r.fmt == 1 and r.text not in texts:
            kept.append(r)
            texts.add(r.text)
    return tuple(kept)


def keep_where(test):
    return lambda group: list({r.text: r for r in group if test(r)}.values())


def drop_by_loop(steps, new, prior, target):
    for i in range(len(steps)):
        if new[i] >= target:
            part = 0 if i == 0 else (new[i] - target) / (new[i] - new[i - 1])
            return 100 * (prior[0] - (part * prior[i - 1] + (1 - part) * prior[i]))
    return None


def drop_by_grid(steps, new, prior, target):
    """Very many steps in place of algebra, as a NumPy number."""
    x = np.linspace(steps[0], steps[-1], 2_000_001)
    reached = np.interp(x, steps, new) >= target - 1e-12
    return 100 * (prior[0] - np.interp(x, steps, prior)[reached.argmax()]) if reached.any() else None


def drop_at_index(pick):
    def fn(steps, new, prior, target):
        return 100 * (prior[0] - prior[pick(list(new), target)]) if max(new) >= target else None

    return fn


def drop_then(change):
    def fn(*case):
        right = drop_by_loop(*case)
        return None if right is None else change(right, case[2])

    return fn


def drop_interp(steps, new, prior, target):
    """value_at a crossing that is the last step where there is none."""
    step = crossing(steps, new, target)
    return 100 * (prior[0] - value_at(steps, prior, steps[-1] if step is None else step))


def rms(x):
    return x.pow(2).mean().sqrt()


def column_cosines(U, V):
    return F.cosine_similarity(U, V, dim=0)


def numpy_angles(A, B, dtype=np.float64, clip=True, qr=lambda x: np.linalg.qr(x)[0]):
    """As NumPy's array, by arccos."""
    cosines = np.linalg.svd(qr(A.numpy().astype(dtype)).T @ qr(B.numpy().astype(dtype)), compute_uv=False)
    with np.errstate(invalid="ignore"):
        return np.arccos(np.clip(cosines, -1, 1) if clip else cosines)


def torch_angles(A, B, clip=True):
    """In float32, as it comes."""
    cosines = torch.linalg.svdvals(torch.linalg.qr(A)[0].T @ torch.linalg.qr(B)[0])
    return torch.arccos(cosines.clip(-1, 1) if clip else cosines)


def angles_by_sines(A, B):
    """In float32 throughout, and yet right: arctan2 of sines and cosines."""
    a, b = torch.linalg.qr(A).Q, torch.linalg.qr(B).Q
    cosines, sines = torch.linalg.svdvals(a.T @ b), torch.linalg.svdvals(b - a @ (a.T @ b))
    return torch.atan2(sines.flip(0), cosines)


def angles_by_projectors(A, B):
    """sin^2 are the eigenvalues of B'(1 - P)B against B'B."""
    A, B = A.double(), B.double()
    rest = B - A @ torch.linalg.lstsq(A, B).solution
    whiten = torch.linalg.inv(torch.linalg.cholesky(B.T @ B))
    return torch.linalg.svdvals(rest @ whiten.T).flip(0).clamp(max=1).asin()


def unit(A):
    return A / A.norm(dim=0, keepdim=True)


def bare(A):
    return A


def symmetric(X):
    """The nearest orthonormal basis another way: X (X'X)^-1/2."""
    values, vectors = np.linalg.eigh(X.T @ X)
    return X @ (vectors / np.sqrt(values)) @ vectors.T


def one_by_one(X):
    """Gram and Schmidt by hand."""
    done = []
    for x in X.T:
        x = x - sum((x @ q) * q for q in done)
        done.append(x / np.linalg.norm(x))
    return np.stack(done, 1)


def restoring(orthonormal=symmetric, ours=None, of_u=True, of_v=True, values=None):
    """Pair by pair, in NumPy; `ours(i, k, n)` says which pairs are the base's."""
    ours = ours or (lambda i, k, n: i < k)

    def fn(base, tuned, k):
        (ub, sb, vb), (ut, st, vt) = (np.linalg.svd(w.numpy(), full_matrices=False) for w in (base, tuned))
        n = len(st)
        u = np.stack([(ub if of_u and ours(i, k, n) else ut)[:, i] for i in range(n)], 1)
        v = np.stack([(vb if of_v and ours(i, k, n) else vt)[i] for i in range(n)], 1)
        s = st if values is None else values(sb, st, k)
        return orthonormal(u) @ np.diag(s) @ orthonormal(v).T

    return fn


def torch_restored(base, tuned, k):
    Ub, _, Vbh = torch.linalg.svd(base, full_matrices=False)
    Ut, S, Vth = torch.linalg.svd(tuned, full_matrices=False)
    U, V = torch.cat([Ub[:, :k], Ut[:, k:]], 1), torch.cat([Vbh[:k], Vth[k:]]).T
    (P, _, Qh), (X, _, Yh) = (torch.linalg.svd(M, full_matrices=False) for M in (U, V))
    return P @ Qh @ torch.diag(S) @ (X @ Yh).T


def rows_for_columns(base, tuned, k):
    Ub, _, Vb = torch.linalg.svd(base, full_matrices=False)
    Ut, S, Vt = torch.linalg.svd(tuned, full_matrices=False)
    Ut[:, :k], Vt[:, :k] = Ub[:, :k], Vb[:, :k]
    return Ut @ torch.diag(S) @ Vt


def bounds_by(fall, first=0.95, last=0.05, high=lambda low: 0.95):
    """low from a curve `fall` of step / steps, 1 at its start."""

    def fn(step, steps):
        low = last + fall(step / steps) * (first - last)
        return low, high(low)

    return fn


def half_cosine(x):
    return 0.5 + math.cos(x * math.pi) / 2


def package_advantages(how):
    """The package's, of the prefix tokens where the rollout has a prefix."""

    def fn(rewards, prefixed):
        with_prefix = torch.arange(len(rewards))[None] == prefixed
        chosen, forced = prefix_rft.advantages(rewards[None], with_prefix, how)
        return torch.where(with_prefix, forced, chosen)[0]

    return fn


def advantages_by_loop(rewards, prefixed, prefixed_is=None, baseline=None):
    r = rewards.tolist()
    free = [x for i, x in enumerate(r) if i != prefixed]
    m = sum(free) / len(free)
    made = [x - (m if baseline is None else baseline(r, free, m)) for x in r]
    made[prefixed] = r[prefixed] - m if prefixed_is is None else prefixed_is(r, r[prefixed], m)
    return torch.tensor(made)


def standardised(r, prefixed, of=lambda r, free: free, **kwargs):
    free = np.delete(r.numpy(), prefixed)
    values = of(r.numpy(), free)
    return (r.numpy() - values.mean()) / (values.std(**kwargs) + 1e-4)


def entropies_by_categorical(logits, length, after=0):
    end = logits.shape[1] - 1 + after
    return torch.distributions.Categorical(logits=logits[:, end - length : end]).entropy()


def entropies_by_loop(logits, length):
    rows = []
    for sequence in logits.tolist():
        own = []
        for z in sequence[-length - 1 : -1]:
            total = sum(map(math.exp, z))
            own.append(-sum(math.exp(x) / total * math.log(math.exp(x) / total) for x in z))
        rows.append(own)
    return torch.tensor(rows)


def plogp(logits, length, dim=-1, log=torch.log, shift=1):
    p = logits.softmax(dim)[:, -length - shift : -shift or None]
    return -(p * log(p)).sum(-1)


def top_by_threshold(entropies, prefix_mask, share, pool=None, below=False, strict=False):
    pool = entropies[prefix_mask] if pool is None else pool(entropies, prefix_mask)
    limit = pool.quantile(share if below else 1 - share)
    kept = entropies <= limit if below else entropies > limit if strict else entropies >= limit
    return kept & prefix_mask


def top_by_loop(entropies, prefix_mask, share):
    places = [tuple(p) for p in prefix_mask.nonzero().tolist()]
    places.sort(key=lambda p: -float(entropies[p]))
    kept = np.zeros(tuple(entropies.shape), bool)
    for place in places[: round(share * len(places))]:
        kept[place] = True
    return kept


def top_each_row(entropies, prefix_mask, share):
    kept = torch.zeros_like(prefix_mask)
    for i, (h, own) in enumerate(zip(entropies, prefix_mask, strict=True)):
        if own.any():
            kept[i] = own & (h >= h[own].topk(math.ceil(share * own.sum().item())).values.min())
    return kept


def fm_by_loop(
    P,
    normaliser,
    first=lambda j: 1,
    last=None,
    over=lambda T, normaliser: T - (normaliser == "T-1"),
    of=lambda end, peak: end - peak,
):
    rows, total = P.tolist(), 0.0
    T = len(rows) - 1
    for j in range(T):
        total += of(rows[-1][j], max(row[j] for row in rows[first(j) : last]))
    return total / over(T, normaliser)


def peaks_by_loop(P, first=lambda j: j + 1, last=None):
    rows = P.tolist()
    return torch.tensor(
        [max((row[j] for row in rows[first(j) : last]), default=rows[-1][j]) for j in range(len(rows[0]))]
    )


def answer_of(tokens):
    return tokens[tokens.index(1) + 1 :] if 1 in tokens else None


def say(next_token, tokens):
    """Goes on until END."""
    tokens, n = list(tokens), len(tokens)
    while True:
        tokens.append(next_token(tokens))
        if tokens[-1] == check.END:
            return tokens[n:]


def accuracies(forced=True, free=True, whole_forced=False, whole_free=False):
    """The two, each made from gold tokens or the model's own, and asked for as a whole or behind ANSWER."""

    def fn(next_token, prompts, replies):
        found = []
        for use_gold, whole in ((forced, whole_forced), (not free, whole_free)):
            right = 0
            for prompt, gold in zip(prompts, replies, strict=True):
                said = (
                    [next_token(prompt + gold[:i]) for i in range(len(gold))] if use_gold else say(next_token, prompt)
                )
                if use_gold:
                    start = 0 if whole else gold.index(check.ANSWER) + 1
                    right += said[start:] == gold[start:]
                else:
                    right += (said if whole else answer_of(said)) == (gold if whole else answer_of(gold))
            found.append(right / len(prompts))
        return tuple(found)

    return fn


def token_accuracy(next_token, prompts, replies):
    parts = []
    for prompt, gold in zip(prompts, replies, strict=True):
        start = gold.index(check.ANSWER) + 1
        parts.append(np.mean([next_token(prompt + gold[:i]) == gold[i] for i in range(start, len(gold))]))
    return float(np.mean(parts)), accuracies()(next_token, prompts, replies)[1]


def going_on_from_gold_reasoning(next_token, prompts, replies):
    forced, right = accuracies()(next_token, prompts, replies)[0], 0
    for prompt, gold in zip(prompts, replies, strict=True):
        start = gold.index(check.ANSWER) + 1
        right += say(next_token, prompt + gold[:start]) == gold[start:]
    return forced, right / len(prompts)


def looked_one_ahead(next_token, prompts, replies):
    right = 0
    for prompt, gold in zip(prompts, replies, strict=True):
        ids = prompt + gold
        predictions = [next_token(ids[: i + 1]) for i in range(len(ids))]  # predictions[i] is of ids[i + 1]
        start = len(prompt) + gold.index(check.ANSWER) + 1
        right += predictions[start:] == ids[start:]
    return right / len(prompts), accuracies()(next_token, prompts, replies)[1]


def filter_by_loop(
    ask, questions, answers, n, prompt="{q}", keep=lambda c, n: c > 0, stop=False, same=lambda r, a: r == a
):
    kept = []
    for q, a in zip(questions, answers, strict=True):
        count = 0
        for reply in ask(prompt.format(q=q, a=a), n):
            count += same(reply, a)
            if stop and count:
                break
        kept.append(keep(count, n))
    return kept


def filtering(**how):
    return lambda *case: filter_by_loop(*case, **how)


RIGHT = {
    check.per_example_gradients: [gradients_by_autograd, gradients_by_vmap, gradients_by_loop, lambda *a: gradients_by_loop(*a).double()],
    check.answer_log_likelihood: [lambda z, t: logp(z, t).sum(1), lambda z, t: -nll(z, t).sum(1)],
    check.perplexity: [ppl_by_loop, lambda s, t: torch.exp(-s.sum(1) / lengths(t)), lambda s, t: ppl_by_loop(s, t) + 1e-6],
    check.one_step_change: [
        lambda u, v, lr: lr * torch.dot(u, v),
        lambda u, v, lr: float(lr * (u * v).sum()),
        lambda u, v, lr: np.float32(sum(a * b for a, b in zip(u.tolist(), v.tolist(), strict=True)) * lr),
    ],
    check.kl: [kl_by_loop, lambda p, q: kl_torch(p, q).sum(-1), lambda p, q: (p * ((p + 1e-9).log() - q.log())).sum(1)],
    check.keep_correct: [keep_by_loop, keep_where(lambda r: r.correct), keep_where(lambda r: r.reward == 3)],
    check.instance_filter: [
        lambda c, n=8: [x > 0 for x in c],
        lambda c, n=8: np.array(c) >= 1,
        lambda c, n=8: tuple(1 <= x <= n for x in c),
        lambda c, n=8: torch.tensor(c) > 0,
    ],
    check.matched_drop: [drop_by_loop, drop_by_grid, lambda *a: drop_by_loop(*(list(x) for x in a[:3]), a[3])],
    check.subspace_distance: [
        lambda U, V: torch.linalg.norm(U @ U.T - V @ V.T) / (2 * U.shape[1]) ** 0.5,
        lambda U, V: float((1 - (U.T @ V).pow(2).sum() / U.shape[1]).clamp(min=0).sqrt()),
        lambda U, V: rms(torch.arccos(torch.linalg.svdvals(U.T @ V).clip(max=1)).sin()),
        lambda U, V: np.linalg.norm(V - U @ (U.T @ V)) / np.sqrt(U.shape[1]),
    ],
    check.principal_angles: [numpy_angles, angles_by_sines, angles_by_projectors, lambda A, B: torch_angles(A.double(), B.double()).float()],
    check.trivial_zeros: [lambda n, k: 2 * k - n if 2 * k > n else 0, lambda n, k: np.maximum(2 * k - n, 0), lambda n, k: torch.tensor(k - min(k, n - k))],
    check.restore_top: [restoring(), torch_restored, lambda *a: torch.from_numpy(restoring()(*a))],
    check.prefix_bounds: [
        lambda s, S: prefix_rft.bounds(prefix_rft.PREFIX_RFT, s, S),
        bounds_by(half_cosine),
        bounds_by(lambda x: math.cos(x * math.pi / 2) ** 2),
        lambda s, S: [0.05 + 0.45 * (1 + np.cos(np.pi * s / S)), 0.95],
        lambda s, S: torch.tensor(bounds_by(half_cosine)(s, S)),
        lambda s, S: np.array(bounds_by(half_cosine)(s, S)),
    ],
    check.prefix_advantages: [
        package_advantages("dr_grpo_prefix"),
        advantages_by_loop,
        lambda r, i: r - r[torch.arange(len(r)) != i].mean(),
        lambda r, i: r.numpy() - np.delete(r.numpy(), i).mean(),
    ],
    check.token_entropies: [entropies_by_categorical, entropies_by_loop, plogp, lambda z, n: plogp(z[:, :-1], n, shift=0)],
    check.top_share: [
        prefix_rft.top_share,
        top_by_loop,
        top_by_threshold,
        lambda e, m, share: top_by_threshold(e, m, share, strict=True).float(),
        lambda e, m, share: top_by_threshold(e, m, share, pool=lambda e, m: e.where(m, torch.nan)[m]),
    ],
    check.fm_metric: [
        lambda P, normaliser: continual.forgetting(P, normaliser),
        lambda P, normaliser: continual.forgetting(P, normaliser, "after_learning"),  # no task peaks before it is trained
        fm_by_loop,
        lambda P, normaliser: (P[-1] - P.max(0).values).sum() / (len(P) - 1 - (normaliser == "T-1")),
        lambda P, normaliser: np.mean(P.numpy()[-1] - P.numpy().max(0)) * (1 if normaliser == "T" else P.shape[1] / (P.shape[1] - 1)),
        lambda P, normaliser: fm_by_loop(P, normaliser) if normaliser == "T" else (P[-1] - P.amax(0))[:-1].mean(),
    ],
    check.peak_after_learning: [
        peaks_by_loop,
        lambda P: torch.stack([P[j + 1 :, j].max() for j in range(P.shape[1])]),
        lambda P: P[1:].tril().amax(0),
        lambda P: np.tril(P[1:].numpy()).max(0),
    ],
    check.teacher_forced_accuracy: [accuracies(), lambda *a: list(accuracies()(*a)), lambda *a: np.array(accuracies()(*a))],
    check.leaking_filter: [
        filter_by_loop,
        filtering(stop=True),
        filtering(prompt="{q} think first ."),
        lambda ask, qs, answers, n: [a in ask(q, n) for q, a in zip(qs, answers, strict=True)],
        lambda ask, qs, answers, n: [any(ask(q, n)[i] == a for i in range(n)) for q, a in zip(qs, answers, strict=True)],
    ],
}  # fmt: skip

WRONG = {
    check.per_example_gradients: [
        ("whole_batch", batch_backward("mean")),
        ("whole_batch", batch_backward("sum")),
        ("whole_batch", lambda *a: gradients_by_autograd(*a, reduce=lambda g: g.mean(0))),
        ("whole_batch", lambda *a: gradients_by_autograd(*a, reduce=lambda g: g.sum(0, keepdim=True).repeat(len(g), 1, 1))),
        ("sign_flipped", lambda *a: gradients_by_autograd(*a, sign=-1)),
        ("sign_flipped", lambda W, X, y: torch.einsum("nc,nd->ncd", (X @ W.T).softmax(1) - F.one_hot(y, 5), X)),  # pi - y
        ("divided_by_n", lambda *a: gradients_by_autograd(*a) / len(a[1])),
        ("transposed", lambda *a: gradients_by_autograd(*a).transpose(1, 2)),
        ("transposed", lambda W, X, y: torch.einsum("nd,nc->ndc", X, F.one_hot(y, 5) - (X @ W.T).softmax(1)).reshape(-1, *W.shape)),
        ("normaliser_ignored", lambda W, X, y: F.one_hot(y, 5)[:, :, None] * X[:, None]),
        ("probability", lambda W, X, y: gradients_by_autograd(W, X, y) * F.cross_entropy(X @ W.T, y, reduction="none").neg().exp().view(-1, 1, 1)),
        ("column_of_A", lambda W, X, y: torch.stack([torch.outer((torch.eye(5) - torch.ones(5, 1) * (W @ x).softmax(0))[:, k], x) for x, k in zip(X, y, strict=True)])),
    ],
    check.answer_log_likelihood: [
        ("padding_counted", lambda z, t: z.log_softmax(-1).gather(2, t.clamp(min=0)[:, :, None]).sum((1, 2))),
        ("padding_counted", lambda z, t: z.log_softmax(-1).gather(2, t.where(t >= 0, z.shape[2] - 1)[:, :, None]).sum((1, 2))),
        ("length_normalised", lambda z, t: logp(z, t, math.nan).nanmean(1)),
        ("length_normalised", lambda z, t: torch.stack([F.cross_entropy(a, b) for a, b in zip(z, t, strict=True)])),
        ("padded_length", lambda z, t: logp(z, t).mean(1)),
        ("probabilities", lambda z, t: (logp(z, t).exp() * (t >= 0)).sum(1)),
        ("probabilities", lambda z, t: logp(z, t).exp().prod(1)),
        ("unnormalised", lambda z, t: F.nll_loss(z.transpose(1, 2), t, reduction="none").sum(1).neg()),
        ("shifted", shift),
        ("shifted", lambda z, t: shift(z.flip(1), t.flip(1))),
        ("sign_flipped", lambda z, t: nll(z, t).sum(1)),
        ("whole_batch", lambda z, t: nll(z, t, "mean")),
        ("whole_batch", lambda z, t: -nll(z, t, "sum")),
    ],
    check.perplexity: [
        ("not_normalised", lambda s, t: torch.exp(-s.sum(1))),
        ("padding_counted", lambda s, t: torch.exp(-s.mean(1))),
        ("sign_missing", lambda s, t: torch.exp(s.sum(1) / lengths(t))),
        ("base_2", lambda s, t: 2 ** (-s.sum(1) / lengths(t))),
        ("whole_batch", lambda s, t: torch.exp(-s.sum() / (t != -100).sum())),
        ("whole_batch", lambda s, t: torch.full((len(s),), ppl_by_loop(s, t).mean().item())),
        ("whole_batch", lambda s, t: ppl_by_loop(s, t).log().mean().exp()),
        ("not_exponentiated", lambda s, t: ppl_by_loop(s, t).log()),
        ("mean_of_inverses", lambda s, t: torch.stack([(1 / a.exp())[b >= 0].mean() for a, b in zip(s, t, strict=True)])),
    ],
    check.one_step_change: [
        ("sign_flipped", lambda u, v, lr: -lr * u @ v),
        ("cosine", lambda u, v, lr: lr * F.cosine_similarity(u, v, dim=0)),
        ("cosine", lambda u, v, lr: F.cosine_similarity(u, v, dim=0).item()),
        ("lr_missing", lambda u, v, lr: u @ v),
        ("lr_missing", lambda u, v, lr: -u @ v),
        ("lr_squared", lambda u, v, lr: (lr * u) @ (lr * v)),
        ("one_norm", lambda u, v, lr: lr * u @ F.normalize(v, dim=0)),
        ("one_norm", lambda u, v, lr: lr * v @ F.normalize(u, dim=0)),
        ("one_gradient", lambda u, v, lr: lr * u.square().sum()),
        ("one_gradient", lambda u, v, lr: lr * v.square().sum()),
        ("one_gradient", lambda u, v, lr: lr * u.norm()),
        ("norms_only", lambda u, v, lr: lr * u.norm() * v.norm()),
    ],
    check.kl: [
        ("swapped", lambda p, q: kl_torch(q, p).sum(1)),
        ("bits", lambda p, q: (p * (p / q).log2()).sum(1)),
        ("bits", lambda p, q: (p * (p / q).log2()).nansum(1)),
        ("whole_batch", lambda p, q: kl_torch(p, q, "sum")),
        ("whole_batch", lambda p, q: kl_torch(p, q, "batchmean")),
        ("whole_batch", lambda p, q: (p * (p.log() - q.log())).sum()),
        ("vocabulary_mean", lambda p, q: kl_torch(p, q).mean(1)),
        ("vocabulary_mean", lambda p, q: kl_torch(p, q).mean()),  # what reduction="mean" does
        ("zero_probability", lambda p, q: (p * (p.log() - q.log())).sum(1)),
        ("sign_flipped", lambda p, q: (p * (q / p).log()).sum(1)),
        ("cross_entropy", lambda p, q: F.cross_entropy(q.log(), p, reduction="none")),
    ],
    check.keep_correct: [
        ("keeps_repeats", lambda g: [r for r in g if r.correct]),
        ("ignores_template", lambda g: [r for r in g if r.exact]),
        ("ignores_template", keep_where(lambda r: r.reward >= 2)),
        ("partly_right", lambda g: [r for r in g if r.reward > 1]),
        ("partly_right", keep_where(lambda r: r.hit)),
        ("partly_right", keep_where(lambda r: r.fmt)),
        ("partly_right", list),
        ("drops_group", lambda g: [] if any(not r.correct for r in g) else keep_by_loop(g)),
        ("one_a_group", lambda g: list({r.index: r for r in g if r.correct}.values())),
        ("one_a_group", lambda g: [r for r in g if r.correct][:1]),
    ],
    check.instance_filter: [
        ("keeps_none_solved", lambda c, n=8: [0 <= x <= n for x in c]),
        ("keeps_none_solved", lambda c, n=8: [x < n for x in c]),
        ("drops_all_solved", lambda c, n=8: [0 < x < n for x in c]),
        ("drops_all_solved", lambda c, n=8: [x in range(1, 8) for x in c]),
        ("only_all_solved", lambda c, n=8: [x == n for x in c]),
        ("majority", lambda c, n=8: [x / n > 0.5 for x in c]),
    ],
    check.matched_drop: [
        ("last_evaluation", drop_at_index(lambda new, target: len(new) - 1)),
        ("last_evaluation", lambda s, new, prior, target: 100 * (prior[0] - prior[-1])),
        ("best_evaluation", drop_at_index(lambda new, target: new.index(max(new)))),
        ("not_interpolated", drop_at_index(lambda new, target: next(i for i, x in enumerate(new) if x >= target))),
        ("not_interpolated", drop_at_index(lambda new, target: min(range(len(new)), key=lambda i: abs(new[i] - target)))),
        ("fraction", drop_then(lambda drop, prior: drop / 100)),
        ("relative", drop_then(lambda drop, prior: drop / prior[0])),
        ("relative", drop_then(lambda drop, prior: drop / prior[0] / 100)),
        ("sign_flipped", drop_then(lambda drop, prior: -drop)),
        ("number_though_never_reached", lambda *a: drop_by_loop(*a) or 0.0),
        ("number_though_never_reached", lambda *a: math.nan if drop_by_loop(*a) is None else drop_by_loop(*a)),
        ("number_though_never_reached", drop_interp),
        ("last_crossing", lambda s, new, prior, t: drop_by_loop(s, new, prior, t) if new[0] >= t or max(new) < t
         else 100 * (prior[0] - np.interp(t, new[3:5], prior[3:5]))),
    ],
    check.subspace_distance: [
        ("signs", lambda U, V: torch.linalg.norm(U - V)),
        ("signs", lambda U, V: (U - V).norm() / (2 * U.shape[1]) ** 0.5),
        ("signs", lambda U, V: 1 - column_cosines(U, V).mean()),
        ("order", lambda U, V: 1 - column_cosines(U, V).abs().mean()),
        ("order", lambda U, V: rms(torch.arccos(column_cosines(U, V).abs().clip(max=1)).sin())),
        ("order", lambda U, V: (1 - (U.T @ V).diagonal() ** 2).mean().sqrt()),
        ("matched", lambda U, V: 1 - (U.T @ V).abs().max(1).values.mean()),
        ("matched", lambda U, V: (1 - (U.T @ V).pow(2).max(0).values).mean().sqrt()),
        ("always_zero", lambda U, V: 0),
        ("always_zero", lambda U, V: torch.zeros(())),
        ("always_zero", lambda U, V: torch.linalg.norm(U.T @ U - V.T @ V) / (2 * U.shape[1]) ** 0.5),
        ("always_zero", lambda U, V: (1 - (U @ V.T).pow(2).sum() / U.shape[1]).clamp(min=0).sqrt()),
        ("similarity", lambda U, V: (U.T @ V).norm() / U.shape[1] ** 0.5),
        ("similarity", lambda U, V: (U.T @ V).pow(2).sum() / U.shape[1]),
        ("unnormalised", lambda U, V: (U @ U.T - V @ V.T).norm()),
        ("unnormalised", lambda U, V: (U.shape[1] - (U.T @ V).pow(2).sum()).clamp(min=0).sqrt()),
        ("unnormalised", lambda U, V: U.shape[1] - (U.T @ V).pow(2).sum()),
        ("squared", lambda U, V: 1 - (U.T @ V).pow(2).sum() / U.shape[1]),
        ("other_mean", lambda U, V: torch.linalg.matrix_norm(U @ U.T - V @ V.T, 2)),
        ("other_mean", lambda U, V: torch.linalg.svdvals(V - U @ (U.T @ V)).mean()),
    ],
    check.principal_angles: [
        ("no_qr", lambda A, B: numpy_angles(A, B, qr=bare)),
        ("no_qr", lambda A, B: numpy_angles(A, B, np.float32, clip=False, qr=bare)),
        ("no_qr", lambda A, B: numpy_angles(unit(A), unit(B), qr=bare)),
        ("no_qr", lambda A, B: torch.arccos(torch.linalg.svdvals(unit(A).T @ unit(B)).clip(max=1))),
        ("columns", lambda A, B: column_cosines(torch.linalg.qr(A).Q, torch.linalg.qr(B).Q).clamp(-1, 1).arccos().sort()[0]),
        ("columns", lambda A, B: column_cosines(torch.linalg.qr(A.double()).Q, torch.linalg.qr(B.double()).Q).abs().clip(max=1).arccos().sort()[0]),
        ("degrees", lambda A, B: np.degrees(numpy_angles(A, B))),
        ("degrees", lambda A, B: torch_angles(A, B) * 180 / math.pi),
        ("cosines", lambda A, B: torch.linalg.svdvals(torch.linalg.qr(A).Q.T @ torch.linalg.qr(B).Q)),
        ("cosines", lambda A, B: np.cos(numpy_angles(A, B))[::-1]),
        ("descending", lambda A, B: numpy_angles(A, B)[::-1]),
        ("descending", lambda A, B: torch_angles(A, B).flip(0)),
        ("not_clipped", lambda A, B: numpy_angles(A, B, clip=False)),
        ("not_clipped", lambda A, B: numpy_angles(A, B, np.float32, clip=False)),
        ("not_clipped", lambda A, B: torch_angles(A, B, clip=False).sort().values),
        ("float_floor", torch_angles),
        ("float_floor", lambda A, B: numpy_angles(A, B, np.float32)),
        ("float_floor", lambda A, B: torch_angles(A, B).double()),
    ],
    check.trivial_zeros: [
        ("always_zero", lambda n, k: 0),
        ("not_clipped", lambda n, k: k + k - n),
        ("complement", lambda n, k: n - k),
        ("complement", lambda n, k: n - k if 2 * k > n else k),
        ("half", lambda n, k: max(0, k - n // 2)),
        ("half", lambda n, k: max(0.0, k - n / 2)),
        ("all_of_them", lambda n, k: k if k > n / 2 else 0),
        ("only_whole_space", lambda n, k: n if k >= n else 0),
        ("one", lambda n, k: 1 if k > n / 2 else 0),
        ("off_by_one", lambda n, k: max(0, 2 * k - n + 1)),
        ("share", lambda n, k: max(0, 2 - n / k)),
    ],
    check.restore_top: [
        ("not_orthonormal", restoring(bare)),
        ("transposed", rows_for_columns),
        ("transposed", lambda b, t, k: (lambda B, T: torch.cat([B[0][:, :k], T[0][:, k:]], 1) * T[1] @ torch.cat([B[2][:k], T[2][k:]]).T)(
            *(torch.linalg.svd(w, full_matrices=False) for w in (b, t)))),
        ("values_swapped", restoring(bare, lambda i, k, n: False, values=lambda sb, st, k: sb)),
        ("values_swapped", restoring(ours=lambda i, k, n: False, values=lambda sb, st, k: np.r_[sb[:k], st[k:]])),
        ("base_values", restoring(bare, values=lambda sb, st, k: np.r_[sb[:k], st[k:]])),
        ("base_values", restoring(values=lambda sb, st, k: np.r_[sb[:k], st[k:]])),
        ("base_values", restoring(values=lambda sb, st, k: sb)),
        ("all_vectors", restoring(bare, lambda i, k, n: True)),
        ("unchanged", lambda base, tuned, k: tuned),
        ("unchanged", restoring(bare, lambda i, k, n: False)),
        ("one_side", restoring(of_v=False)),
        ("one_side", restoring(bare, of_u=False)),
        ("roles", lambda base, tuned, k: restoring()(tuned, base, k)),
        ("roles", restoring(ours=lambda i, k, n: i >= k)),
        ("last_pairs", restoring(ours=lambda i, k, n: i >= n - k)),
        ("last_pairs", restoring(bare, ours=lambda i, k, n: i >= n - k)),
        ("gram_schmidt", restoring(one_by_one)),
        ("qr_signs", restoring(lambda X: np.linalg.qr(X)[0])),
    ],
    check.prefix_bounds: [
        ("both_decay", lambda s, S: prefix_rft.bounds(prefix_rft.Blend(high=(0.95, 0.05)), s, S)),
        ("both_decay", lambda s, S: (0.05, bounds_by(half_cosine)(s, S)[0])),
        ("both_decay", lambda s, S: (0.0, 0.95 - 0.9 * s / S)),
        ("low_never_falls", lambda s, S: prefix_rft.bounds(prefix_rft.UNIFORM, s, S)),
        ("low_never_falls", lambda s, S: (0.95, 0.95)),
        ("linear", bounds_by(lambda x: 1 - x)),
        ("rising", bounds_by(lambda x: (1 - math.cos(math.pi * x)) / 2)),
        ("period", bounds_by(lambda x: (1 + math.cos(2 * math.pi * x)) / 2)),
        ("period", bounds_by(lambda x: (1 + math.cos(x)) / 2)),
        ("not_halved", bounds_by(lambda x: 1 + math.cos(math.pi * x))),
        ("no_floor", bounds_by(half_cosine, last=0.0)),
        ("no_floor", lambda s, S: (half_cosine(s / S) * (0.95 - 0.05), 0.95)),
        ("swapped", lambda s, S: bounds_by(half_cosine)(s, S)[::-1]),
        ("percent", lambda s, S: [100 * x for x in bounds_by(half_cosine)(s, S)]),
    ],
    check.prefix_advantages: [
        ("one_mean", package_advantages("dr_grpo")),
        ("one_mean", lambda r, i: r - r.mean()),
        ("in_the_free_mean", lambda *a: advantages_by_loop(*a, baseline=lambda r, free, m: sum(r) / len(r))),
        ("in_its_own_mean", lambda *a: advantages_by_loop(*a, prefixed_is=lambda r, own, m: own - sum(r) / len(r))),
        ("uncentred", lambda r, i: prefix_rft.advantages(r[None], torch.arange(len(r))[None] == i, "dr_grpo_prefix")[0][0]),
        ("uncentred", lambda *a: advantages_by_loop(*a, prefixed_is=lambda r, own, m: own)),
        ("sign_trap", package_advantages("dr_grpo_prefix_v2")),
        ("left_out", lambda *a: advantages_by_loop(*a, prefixed_is=lambda r, own, m: 0)),
        ("std", standardised),
        ("std", lambda r, i: standardised(r, i, ddof=1)),
        ("std", lambda r, i: standardised(r, i, of=lambda r, free: r)),
        ("std", lambda r, i: (r - r.mean()) / r.std()),
        ("leave_one_out", lambda r, i: torch.stack([r[k] - r[[j for j in range(len(r)) if j not in (i, k)]].mean() for k in range(len(r))])),
        ("leave_one_out", lambda r, i: torch.stack([r[k] - r[[j for j in range(len(r)) if j != k]].mean() for k in range(len(r))])),
        ("always_the_last", lambda r, i: r - r[:-1].mean()),
        ("sign_flipped", lambda r, i: -advantages_by_loop(r, i)),
    ],
    check.token_entropies: [
        ("off_by_one", lambda z, n: entropies_by_categorical(z, n, after=1)),
        ("off_by_one", lambda z, n: plogp(z, n, shift=0)),
        ("shifted_twice", lambda z, n: entropies_by_categorical(z[:, :-1], n)),
        ("of_the_prompt", lambda z, n: torch.distributions.Categorical(logits=z).entropy()[:, :n]),
        ("bits", lambda z, n: plogp(z, n, log=torch.log2)),
        ("sign_flipped", lambda z, n: -entropies_by_categorical(z, n)),
        ("sign_flipped", lambda z, n: -entropies_by_categorical(z, n, after=1)),
        ("exponentiated", lambda z, n: torch.distributions.Categorical(logits=z[:, -n - 1 : -1]).perplexity()),
        ("vocabulary_mean", lambda z, n: -(z.softmax(-1) * z.log_softmax(-1)).mean(-1)[:, -n - 1 : -1]),
        ("wrong_axis", lambda z, n: plogp(z, n, dim=1)),
        ("wrong_axis", lambda z, n: plogp(z, n, dim=1, shift=0)),
        ("one_a_sequence", lambda z, n: entropies_by_categorical(z, n).mean(-1)),
        ("one_a_sequence", lambda z, n: entropies_by_categorical(z, n, after=1).mean()),
    ],
    check.top_share: [
        ("padding_in_pool", lambda e, m, share: top_by_threshold(e, m, share, pool=lambda e, m: e.flatten())),
        ("padding_in_pool", lambda e, m, share: top_by_threshold(e, m, share, pool=lambda e, m: (e * m).flatten())),
        ("padding_in_pool", lambda e, m, share: m & torch.zeros(m.numel(), dtype=bool).index_fill(
            0, e.flatten().topk(round(share * m.sum().item())).indices, True).view_as(m)),
        ("per_sequence", top_each_row),
        ("per_sequence", lambda e, m, share: torch.stack([prefix_rft.top_share(h[None], own[None], share)[0] for h, own in zip(e, m, strict=True)])),
        ("lowest", lambda e, m, share: top_by_threshold(e, m, share, below=True)),
        ("dropped", lambda e, m, share: m & ~torch.as_tensor(top_by_loop(e, m, share))),
        ("one_minus", lambda e, m, share: top_by_threshold(e, m, 1 - share)),
        ("free_too", lambda e, m, share: ~m | top_by_threshold(e, m, share)),
    ],
    check.fm_metric: [
        ("sign_flipped", lambda P, normaliser: -fm_by_loop(P, normaliser)),
        ("sign_flipped", lambda P, normaliser: (P.amax(0) - P[-1]).sum() / (P.shape[1] - (normaliser == "T-1"))),
        ("always_T", lambda P, normaliser: fm_by_loop(P, "T")),
        ("always_T", lambda P, normaliser: (P[-1] - P.amax(0)).mean()),
        ("always_T_minus_1", lambda P, normaliser: fm_by_loop(P, "T-1")),
        ("always_T_minus_1", lambda P, normaliser: (P[-1] - P.amax(0))[:-1].mean()),
        ("normalisers_swapped", lambda P, normaliser: fm_by_loop(P, "T" if normaliser != "T" else "T-1")),
        ("rows_counted", lambda P, normaliser: fm_by_loop(P, normaliser, over=lambda T, how: T + 1 - (how == "T-1"))),
        ("rows_counted", lambda P, normaliser: (P[-1] - P.amax(0)).sum() / len(P)),
        ("sum", lambda P, normaliser: (P[-1] - P.amax(0)).sum()),
        ("own_training", lambda P, normaliser: (P[-1] - P[1:].diag()).sum() / (P.shape[1] - (normaliser == "T-1"))),
        ("peak_before_the_end", lambda P, normaliser: fm_by_loop(P, normaliser, last=-1)),
        ("peak_before_the_end", lambda P, normaliser: (P[-1] - P[:-1].amax(0))[:-1].sum() / (P.shape[1] - (normaliser == "T-1"))),
        ("one_peak", lambda P, normaliser: (P[-1] - P.max()).sum() / (P.shape[1] - (normaliser == "T-1"))),
        ("wrong_axis", lambda P, normaliser: (P[-1] - P[1:].amax(1)).sum() / (P.shape[1] - (normaliser == "T-1"))),
        ("average_accuracy", lambda P, normaliser: continual.avg_acc(P)),
        ("average_accuracy", lambda P, normaliser: P[-1].sum() / (P.shape[1] - (normaliser == "T-1"))),
        ("relative", lambda P, normaliser: fm_by_loop(P, normaliser, of=lambda end, peak: (end - peak) / peak)),
        ("percent", lambda P, normaliser: 100 * fm_by_loop(P, normaliser)),
    ],
    check.peak_after_learning: [
        ("all_t", lambda P: P.max(0).values),
        ("all_t", lambda P: P.numpy().max(axis=0)),
        ("all_trained", lambda P: P[1:].amax(0)),
        ("before_learning", lambda P: peaks_by_loop(P, lambda j: j)),
        ("before_learning", lambda P: P.tril().amax(0)),
        ("own_row_left_out", lambda P: peaks_by_loop(P, lambda j: j + 2)),
        ("own_row_only", lambda P: P[1:].diagonal()),
        ("own_row_only", lambda P: torch.diag(P)),
        ("wrong_side", lambda P: P[1:].triu().where(P[1:].triu() > 0, P[0]).amax(0)),
        ("end_left_out", lambda P: peaks_by_loop(P, last=-1)),
        ("final", lambda P: P[-1]),
        ("wrong_axis", lambda P: P.max(1).values),
        ("wrong_axis", lambda P: P[1:].numpy().max(1)),
        ("drop", lambda P: P[-1] - peaks_by_loop(P)),
        ("drop", lambda P: peaks_by_loop(P) - P[-1]),
    ],
    check.teacher_forced_accuracy: [
        ("free_is_forced", accuracies(free=False)),
        ("free_is_forced", going_on_from_gold_reasoning),
        ("free_is_forced", lambda *a: (accuracies(whole_forced=True)(*a)[0], going_on_from_gold_reasoning(*a)[1])),
        ("forced_is_free", accuracies(forced=False)),
        ("whole_replies", accuracies(whole_forced=True, whole_free=True)),
        ("whole_replies", accuracies(free=False, whole_forced=True, whole_free=True)),
        ("whole_free", accuracies(whole_free=True)),
        ("whole_forced", accuracies(whole_forced=True)),
        ("token_mean", token_accuracy),
        ("shifted", looked_one_ahead),
        ("swapped", lambda *a: accuracies()(*a)[::-1]),
        ("counts", lambda *a: tuple(len(a[1]) * x for x in accuracies()(*a))),
        ("percent", lambda *a: tuple(100 * x for x in accuracies()(*a))),
    ],
    check.leaking_filter: [
        ("leak", filtering(prompt="{q} the answer is {a} .")),
        ("leak", filtering(prompt="The answer is {a}. Pretend you do not know it: {q}", stop=True)),
        ("leak", filtering(prompt="{q} ({a})", keep=lambda c, n: 0 < c < n)),
        ("keeps_all", lambda ask, qs, answers, n: [True] * len(qs)),
        ("keeps_all", filtering(keep=lambda c, n: 0 <= c <= n)),
        ("inside", filtering(same=lambda r, a: a in r)),
        ("drops_all_solved", filtering(keep=lambda c, n: c in range(1, n))),
        ("one_sample", lambda ask, qs, answers, n: [ask(q, n)[0] == a for q, a in zip(qs, answers, strict=True)]),
        ("only_all_solved", lambda ask, qs, answers, n: [set(ask(q, n)) == {a} for q, a in zip(qs, answers, strict=True)]),
        ("majority", filtering(keep=lambda c, n: c / n >= 0.5)),
        ("inverted", filtering(keep=lambda c, n: not c)),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("try_it", "fn"), [(c, fn) for c, fns in RIGHT.items() for fn in fns])
def test_right_answers_pass(try_it, fn):
    found = try_it(fn)
    assert found.passed and found.mistake is None, found
    assert " is right on " in found.message and str(found).startswith("Passed: ")


@pytest.mark.parametrize(("try_it", "mistake", "fn"), [(c, *case) for c, cases in WRONG.items() for case in cases])
def test_mistakes_are_named(try_it, mistake, fn):
    found = try_it(fn)
    assert (found.passed, found.mistake) == (False, mistake), found
    assert found.message == CHECKS[try_it].mistakes[mistake].message and str(found).startswith("Not yet: ")


@every_check
def test_no_named_mistake_is_left_untried(try_it):
    assert {name for name, _ in WRONG[try_it]} == set(CHECKS[try_it].mistakes)


# --- the inputs tell the mistakes apart ---------------------------------------------------------------------------------------------


def results(exercise, fn):
    return [exercise.read(fn(*case)) for case in exercise.cases]


def clearly_differ(a, b):
    """A hundred times the tolerance of a check, on some input."""

    def differ(x, y):
        if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
            return x.shape != y.shape or not torch.allclose(x, y, rtol=1e-2, atol=1e-3, equal_nan=True)
        return x != y

    return any(map(differ, a, b))


@every_check
def test_mistakes_differ_from_the_right_answer_and_from_each_other(try_it):
    exercise: Exercise = CHECKS[try_it]
    right = results(exercise, exercise.right)
    made = [(name, results(exercise, way)) for name, mistake in exercise.mistakes.items() for way in mistake.ways]
    assert all(clearly_differ(right, result) for _, result in made)
    for (name, a), (other, b) in itertools.combinations(made, 2):
        assert name == other or clearly_differ(a, b), f"{name} and {other} look the same on these inputs"


@every_check
def test_the_right_answers_are_finite(try_it):
    exercise = CHECKS[try_it]
    numbers = [x for x in results(exercise, exercise.right) if isinstance(x, torch.Tensor)]
    assert all(x.isfinite().all() for x in numbers)


# --- whatever the learner's code does -------------------------------------------------------------------------------------------------


def raising(error):
    def mine(*args):
        raise error

    return mine


with warnings.catch_warnings(action="ignore"):  # that nested tensors are a prototype
    NESTED = torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)])


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError


@every_check
def test_a_stub(try_it):
    found = try_it(raising(NotImplementedError()))
    assert not found.passed and found.message.startswith("mine is not written yet")
    assert try_it(raising(NotImplementedError("write me"))).message == found.message


@every_check
@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError("division by zero"), SystemExit(0), KeyboardInterrupt(), RecursionError(), Unprintable(), TimeoutError("x")],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
def test_a_crash(try_it, error):
    found = try_it(raising(error))
    assert not found.passed and found.mistake is None
    assert found.message.startswith("mine stopped with ") and type(error).__name__ in found.message
    assert found.message.endswith(", at `raise error`.")


def test_a_crash_says_where():
    def mine(p, q):
        both = p @ q
        return both

    assert "RuntimeError" in check.kl(mine).message and check.kl(mine).message.endswith(", at `both = p @ q`.")


def test_an_operation_torch_lacks_is_no_stub():
    found = check.kl(lambda p, q: p.long().softmax(-1))
    assert "not written" not in found.message and "not implemented for 'Long'" in found.message


@every_check
@pytest.mark.parametrize(
    "value", ["text", {1: 2}, object(), 1j, torch.tensor(1j), iter([1.0]), [None], True, 10**400, np.zeros((2, 2)), np.array("?"),
              torch.zeros(2, 3, 4), torch.zeros(2, 2).to_sparse(), torch.zeros(2, device="meta"), NESTED],
    ids=lambda v: type(v).__name__,
)  # fmt: skip
def test_a_wrong_type(try_it, value):
    found = try_it(lambda *args: value)
    assert not found.passed and found.mistake is None
    assert found.message.startswith("your function returned ") and one_sentence(found.message)


def one_sentence(message):
    return message.endswith(".") and ". " not in message and "\n" not in message


@every_check
def test_no_return(try_it):
    found = try_it(lambda *args: None)
    assert not found.passed and found.mistake is None
    if try_it is check.matched_drop:
        assert found.message.endswith("should return 16.25, but returned None.")
    else:
        asked = CHECKS[try_it].asked
        assert found.message == f"your function returned None (does it end in a return?), but {asked} is asked for."


@pytest.mark.parametrize(
    ("try_it", "fn", "said"),
    [
        (check.kl, lambda p, q: [0.1], "returned a value of type `list`, but a tensor of shape (n,) is asked for."),
        (check.kl, lambda p, q: p, "returned the shape (2, 3), but a tensor of shape (n,) is asked for: here (2,)."),
        (check.kl, lambda p, q: torch.zeros(0), "returned the shape (0,), but a tensor of shape (n,) is asked for: here (2,)."),
        (check.one_step_change, lambda u, v, lr: u * v * lr, "returned the shape (3,), but one number is asked for: here ()."),
        (check.keep_correct, lambda g: [r.text for r in g], "returned a list that holds a value of type `str`, but a list of Rollout is asked for."),
        (check.instance_filter, lambda c, n: [1 for _ in c], "a list that holds a value of type `int`, but a list with one True or False for each prompt"),
        (check.instance_filter, lambda c, n: 3, "returned a value of type `int`, but"),
        (check.matched_drop, lambda *a: "16", "returned a value of type `str`, but one number or None is asked for."),
        (check.subspace_distance, lambda U, V: torch.linalg.svdvals(U.T @ V), "returned the shape (2,), but one number is asked for: here ()."),
        (check.principal_angles, lambda A, B: numpy_angles(A, B)[None], "returned the shape (1, 2), but an array of shape (k,) is asked for: here (2,)."),
        (check.principal_angles, lambda A, B: numpy_angles(A, B)[0], "returned a value of type `float64`, but an array of shape (k,) is asked for."),
        (check.trivial_zeros, lambda n, k: 2 * k > n, "returned a value of type `bool`, but one number is asked for."),
        (check.restore_top, lambda b, t, k: restoring()(b, t, k)[:, :2], "returned the shape (3, 2), but an array of shape (m, n) is asked for: here (3, 3)."),
        (check.prefix_bounds, lambda s, S: 0.5, "returned a value of type `float`, but a pair of numbers (low, high) is asked for."),
        (check.prefix_bounds, lambda s, S: (0.5, 0.95, 1), "returned the shape (3,), but a pair of numbers (low, high)"),
        (check.prefix_bounds, lambda s, S: (0.5, "0.95"), "returned a value of type `str`, but a pair of numbers"),
        (check.prefix_advantages, lambda r, i: r[r != i] if i == 0 else r[:-1], "returned the shape (7,), but a tensor of shape (N,) is asked for: here (8,)."),
        (check.token_entropies, lambda z, n: entropies_by_categorical(z, z.shape[1] - 1), "returned the shape (2, 6), but a tensor of shape (B, length) is asked for: here (2, 3)."),
        (check.top_share, lambda e, m, share: e[m], "returned a tensor that holds other numbers than 0 and 1, but a mask of shape (B, T) is asked for."),
        (check.top_share, lambda e, m, share: m[m], "returned the shape (10,), but a mask of shape (B, T) is asked for: here (3, 8)."),
        (check.fm_metric, lambda P, normaliser: P[-1] - P.amax(0), "returned the shape (4,), but one number is asked for: here ()."),
        (check.peak_after_learning, lambda P: P.tolist(), "returned a value of type `list`, but an array of shape (T,) is asked for."),
        (check.teacher_forced_accuracy, lambda *a: accuracies()(*a)[0], "returned a value of type `float`, but a pair of numbers (forced, free) is asked for."),
        (check.leaking_filter, lambda ask, qs, answers, n: [n for _ in qs], "a list that holds a value of type `int`, but a list with one True or False for each question"),
    ],
)  # fmt: skip
def test_wrong_shapes_and_types_get_one_sentence(try_it, fn, said):
    found = try_it(fn)
    assert not found.passed and found.mistake is None and said in found.message, found


@pytest.mark.parametrize(
    ("try_it", "fn", "said"),
    [
        (
            check.kl,
            lambda p, q: kl_by_loop(p, q) + 0.5 * (p[:, 0] == q[:, 0]),
            "mine(p = [[0.7, 0.2, 0.1], [0.3, 0.3, 0.4]], q = [[0.2, 0.5, 0.3], [0.3, 0.3, 0.4]]) should return 0 at [1], but returned 0.5.",
        ),
        (check.one_step_change, lambda u, v, lr: 7, "lr = 0.1) should return 0.055, but returned 7."),
        (check.instance_filter, lambda c, n: [False for _ in c], "mine(correct = [0, 1, 4, 7, 8, 0], n = 8) should return [False, True,"),
        (check.instance_filter, lambda c, n: [True], "but returned [True]."),
        (check.keep_correct, lambda g: [], "(hit 0.33, exact 0, fmt 1)"),
        (check.matched_drop, lambda *a: 3, "target = 0.5) should return 16.25, but returned 3."),
        (check.per_example_gradients, lambda W, X, y: torch.zeros(len(X), *W.shape), " at [0, 0, 0], but returned 0."),
        (check.trivial_zeros, lambda n, k: 7, "mine(n = 4096, k = 768) should return 0, but returned 7."),
        (check.subspace_distance, lambda U, V: 3, "mine(U = [[0.5, 0.5], [0.5, -0.5], [0.5, 0.5], [0.5, -0.5]], V = "),
        (check.principal_angles, lambda A, B: numpy_angles(A, B) + (len(A) > 4), "mine(A = a tensor of shape (96, 24), B = a tensor of shape (96, 24)) should return "),
        (check.restore_top, lambda b, t, k: b + t, ", k = 2) should return "),
        (check.prefix_bounds, lambda s, S: (0.4, 0.95), "mine(step = 125, steps = 500) should return 0.8182 at [0], but returned 0.4."),
        (check.prefix_advantages, lambda r, i: r, ", prefixed = 7) should return 0.71429 at [0], but returned 1."),
        (check.token_entropies, lambda z, n: z[:, -n:, 0], ", length = 3) should return "),
        (check.top_share, lambda e, m, share: m, ", share = 0.2) should return 0 at [0, 0], but returned 1."),
        (check.fm_metric, lambda P, normaliser: 3, "normaliser = 'T') should return -0.17, but returned 3."),
        (check.peak_after_learning, lambda P: P[1], ") should return 0.74 at [0], but returned 0.7."),
        (check.teacher_forced_accuracy, lambda *a: (0.25, 0.5), "mine(next_token = a model, prompts = [[50], [51], "),
        (check.leaking_filter, lambda *a: [False], "mine(ask = a policy, questions = ['how many rings ?', "),
    ],
)  # fmt: skip
def test_an_unknown_mistake_is_shown_where_it_is(try_it, fn, said):
    def mine(*args):
        return fn(*args)

    found = try_it(mine)
    assert not found.passed and found.mistake is None
    assert said in found.message and one_sentence(found.message), found


@pytest.mark.parametrize(
    ("try_it", "fn"),
    [
        (check.per_example_gradients, lambda W, X, y: torch.full((len(X), *W.shape), math.nan)),
        (check.answer_log_likelihood, lambda z, t: torch.full((2,), math.nan)),
        (check.perplexity, lambda s, t: ppl_by_loop(s, t) * torch.tensor([1.0, math.nan])),
        (check.one_step_change, lambda u, v, lr: math.nan),
        (check.kl, lambda p, q: torch.full((len(p),), math.nan)),
        (check.matched_drop, lambda *a: math.nan),
        (check.subspace_distance, lambda U, V: math.nan),
        (check.principal_angles, lambda A, B: torch.full((A.shape[1],), math.nan)),
        (check.restore_top, lambda b, t, k: t * math.nan),
        (check.prefix_bounds, lambda s, S: (math.nan, 0.95)),
        (check.prefix_advantages, lambda r, i: r * math.nan),
        (check.token_entropies, lambda z, n: z[:, -n:, 0] * math.nan),
        (check.fm_metric, lambda P, normaliser: math.nan),
        (check.peak_after_learning, lambda P: P[-1] * math.nan),
        (check.teacher_forced_accuracy, lambda *a: (math.nan, 0.5)),
    ],
)
def test_nan_is_told(try_it, fn):
    found = try_it(fn)
    assert not found.passed and found.mistake is None
    assert "but returned nan. Look for 0/0" in found.message


@every_check
@pytest.mark.parametrize("value", [None, 3, torch.zeros(2), [1]])
def test_a_result_in_place_of_a_function(try_it, value):
    found = try_it(value)
    assert not found.passed and found.message.startswith("Pass the function itself, without calling it")


def test_an_endless_loop_is_stopped(monkeypatch):
    monkeypatch.setattr(check, "LIMIT", 0.2)
    before = threading.active_count()

    def mine(p, q):
        while True:
            with contextlib.suppress(Exception):
                p = p + 0

    start = time.perf_counter()
    found = check.kl(mine)
    assert time.perf_counter() - start < 5
    assert found.message.startswith("mine was stopped after 0.2 seconds.")
    end = time.perf_counter() + 10
    while threading.active_count() > before and time.perf_counter() < end:
        time.sleep(0.01)
    assert threading.active_count() == before, "the loop still runs"


def test_inputs_that_are_changed_do_no_harm():
    def mine(logits, targets):
        out = logp(logits, targets).sum(1)
        logits.zero_()
        targets.zero_()
        return out

    def empties(group):
        out = keep_by_loop(group)
        group.clear()
        return out

    assert check.answer_log_likelihood(mine).passed and check.answer_log_likelihood(mine).passed
    assert check.keep_correct(empties).passed and check.keep_correct(empties).passed


def test_gradients_can_be_taken_where_the_reader_switched_them_off():
    with torch.no_grad():
        assert check.per_example_gradients(gradients_by_autograd).passed


def test_rollouts_to_keep_are_as_the_puzzle_scores_them():
    (group,) = check.KEEP_CORRECT.cases[0]
    assert all(isinstance(r, Rollout) for r in group)
    assert [r.correct for r in group] == [True, False, True, True, False, False, False]
    assert (group[4].exact, group[4].fmt) == (1, 0) and 0 < group[1].hit < 1


def test_bases_to_compare_are_orthonormal_and_tell_what_an_svd_leaves_open():
    for U, V in check.SUBSPACE_DISTANCE.cases:
        for basis in (U, V):
            torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]).double())
    assert [round(float(x), 4) for x in results(check.SUBSPACE_DISTANCE, check.SUBSPACE_DISTANCE.right)] == [
        0,
        0.7071,
        0.3464,
    ]


def test_small_angles_are_where_float32_is_blind():
    first, small, same = results(check.PRINCIPAL_ANGLES, check.PRINCIPAL_ANGLES.right)
    assert first.min() > 0.1 and same.max() < 1e-9
    torch.testing.assert_close(small, torch.tensor([2e-4, math.pi / 3]).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("turned", [1e-3, 1e-2, 0.5])
def test_rounding_is_no_excuse_for_wrong_large_angles(turned):
    found = check.principal_angles(lambda A, B: torch_angles(A, B) + turned)
    assert not found.passed and found.mistake is None


def test_rounding_is_taken_for_nothing_else():
    rounded = results(check.PRINCIPAL_ANGLES, torch_angles)
    right = results(check.PRINCIPAL_ANGLES, check.PRINCIPAL_ANGLES.right)
    seen = [name for name, m in check.PRINCIPAL_ANGLES.mistakes.items() if m.shows(rounded, right)]
    assert seen == ["float_floor"]


def test_restored_matrices_keep_the_tuned_values():
    for (base, tuned, k), made in zip(check.RESTORE_TOP.cases, results(check.RESTORE_TOP, restoring()), strict=True):
        kept, mixed = (
            torch.linalg.svdvals(made),
            torch.linalg.svdvals(torch.from_numpy(restoring(bare)(base, tuned, k))),
        )
        torch.testing.assert_close(kept, torch.linalg.svdvals(tuned))
        assert (mixed - kept).abs().max() > 0.01


def test_the_schedule_ends_at_half_a_demonstration():
    """What the exercise's praise says: mean 0.95 at the first update, 0.5 at the last, 0.725 over all (prefix_rft's schedule too)."""
    means = [sum(check.PREFIX_BOUNDS.right(step, 1000)) / 2 for step in range(1001)]
    assert (means[0], means[-1]) == pytest.approx((0.95, 0.5)) and np.mean(means) == pytest.approx(0.725, abs=1e-3)
    assert check.PREFIX_BOUNDS.right(300, 1000) == pytest.approx(prefix_rft.bounds(prefix_rft.PREFIX_RFT, 300, 1000))


def test_the_two_estimators_differ_by_a_factor_for_the_prefix():
    for rewards, prefixed in check.PREFIX_ADVANTAGES.cases:
        n = len(rewards)
        ours = check.PREFIX_ADVANTAGES.right(rewards, prefixed)[prefixed]
        torch.testing.assert_close(rewards[prefixed] - rewards.mean(), (n - 1) / n * ours)


def test_shares_to_keep_are_whole_and_entropies_differ():
    for entropies, mask, share in check.TOP_SHARE.cases:
        own = entropies[mask]
        assert abs(share * len(own) - round(share * len(own))) < 1e-9 and len(own.unique()) == len(own)
        assert check.TOP_SHARE.right(entropies, mask, share).sum() == round(share * len(own))
        assert not mask.all() and entropies[~mask].max() > own.max()  # what is no prefix token would win


def test_readings_of_the_peak_agree_where_fm_is_asked_and_differ_where_the_peak_is():
    for P, normaliser in check.FM_METRIC.cases:
        every = [continual.forgetting(P, normaliser, peak) for peak in ("all", "after_learning")]
        assert every[0] == pytest.approx(every[1]) and every[0] < 0 and (P[1:].amax(0) >= P[0]).all()
    for (P,) in check.PEAK_AFTER_LEARNING.cases:
        last, best = P[-1].double(), check.PEAK_AFTER_LEARNING.right(P)
        assert float((last - best).mean()) == pytest.approx(continual.forgetting(P, "T", "after_learning"))
        assert continual.forgetting(P, "T", "all") < continual.forgetting(P, "T", "after_learning")


def test_whole_replies_show_no_flattery():
    """What the exercise's praise says: predictions are all right given gold tokens exactly if greedy generation says the gold reply."""
    for model, prompts, replies in check.TEACHER_FORCED_ACCURACY.cases:
        forced, free = accuracies(whole_forced=True, whole_free=True)(model, prompts, replies)
        assert forced == free
    forced, free = accuracies()(*check.TEACHER_FORCED_ACCURACY.cases[0])
    assert forced != free


def test_feedback_reads_well_in_a_cell():
    found = Feedback(False, "word " * 40 + "end.")
    assert repr(found) == str(found) and max(map(len, str(found).splitlines())) <= 100
    assert " ".join(str(found).split()) == f"Not yet: {found.message}"
    with pytest.raises(AttributeError):
        found.passed = True


@every_check
def test_messages_are_prose(try_it):
    exercise = CHECKS[try_it]
    for message in [exercise.praise, *(m.message for m in exercise.mistakes.values())]:
        assert message[0].isupper() and message.rstrip(")").endswith(".") and len(message) < 320
