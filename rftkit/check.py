"""Checks for the exercises: they try your function on a few small inputs and say that it is right, or which mistake it makes.

A check computes not only the right answer but also what known misconceptions return. If your numbers equal one of those, you
are told which; otherwise, where they first differ. Whatever your code does, a check returns a `Feedback` and soon.
"""

from __future__ import annotations

import copy
import ctypes
import inspect
import itertools
import math
import re
import textwrap
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rftkit import jigsaw, spectra
from rftkit.dynamics import token_logps
from rftkit.evals import crossing, value_at
from rftkit.rollouts import Rollout

LIMIT = 10.0  # seconds that all the inputs of a check may take together; they need thousandths
Function = Callable[..., Any]


@dataclass(frozen=True, repr=False)
class Feedback:
    """What a check found. `mistake` is the name of a recognised mistake, None if it passed or the mistake is not known."""

    passed: bool
    message: str
    mistake: str | None = None

    def __repr__(self) -> str:
        """The message behind a mark in words, in lines of at most 100 characters."""
        text = f"{'Passed' if self.passed else 'Not yet'}: {self.message}"
        return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


@dataclass(frozen=True)
class Mistake:
    """What to tell the learner, and the functions that make this mistake, each in its own way.

    `shows` is for numbers that are rounding, thus others on each machine: whether results, beside the right ones, look so.
    """

    message: str
    ways: Sequence[Function]
    shows: Callable[[list[Any], list[Any]], bool] = lambda got, right: False


@dataclass(frozen=True)
class Exercise:
    """`read` turns what a function returned into something to compare, or raises _Unreadable; `asked` says what it reads."""

    right: Function
    cases: Sequence[tuple[Any, ...]]
    read: Callable[[Any], Any]
    asked: str
    praise: str
    mistakes: dict[str, Mistake]


class _Unreadable(Exception):
    """What a function returned is of the wrong kind."""


class _TooLong(BaseException):
    """LIMIT is over. No Exception, so that an `except Exception` in a loop does not swallow it."""


# --- try a function and judge it ------------------------------------------------------------------------------------------------


def _judge(fn: Function, exercise: Exercise) -> Feedback:
    """The mistakes are looked for in their order, so the more basic one comes first."""
    if not callable(fn):
        return Feedback(False, f"Pass the function itself, without calling it; this is of type `{type(fn).__name__}`.")
    name = str(getattr(fn, "__name__", ""))
    name = name if name.isidentifier() else "your function"  # a lambda has none
    cases, read = exercise.cases, exercise.read
    got = _limited(
        lambda: [_taken(read, fn(*copy.deepcopy(case))) for case in cases]
    )  # a copy: fn may change its inputs
    if isinstance(got, BaseException):
        return Feedback(False, _failure(fn, name, got, exercise.asked))
    right = [read(exercise.right(*case)) for case in cases]
    if _all_same(got, right):
        return Feedback(True, f"{name} is right on {len(cases)} inputs. {exercise.praise}")
    for key, mistake in exercise.mistakes.items():
        made = any(_all_same(got, [read(way(*case)) for case in cases]) for way in mistake.ways)
        if made or mistake.shows(got, right):
            return Feedback(False, mistake.message, key)
    case, g, r = next(x for x in zip(cases, got, right, strict=True) if not _same(x[1], x[2]))
    return Feedback(False, _difference(name, _call(exercise.right, name, case), g, r, exercise.asked))


def _limited(work: Callable[[], list[Any]]) -> list[Any] | BaseException:
    """What `work` returned, or raised, or _TooLong after LIMIT seconds. In a thread, since only that can be left behind."""
    box: list[Any] = []

    def run() -> None:
        try:
            box.append(work())
        except BaseException as error:  # SystemExit too: exit() in an exercise shall not look like success
            box.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        thread.join(LIMIT)
    finally:  # an interrupt comes here too
        if thread.is_alive():  # an endless loop would keep a core busy for ever: this raises inside it (CPython only)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_TooLong))
    return box[0] if box else _TooLong()


def _failure(fn: Function, name: str, error: BaseException, asked: str) -> str:
    said = " ".join(traceback.format_exception_only(error)[-1].split())[:300].rstrip(" .")
    if isinstance(error, NotImplementedError) and "not implemented for" not in said:  # torch says that of a type
        return f"{name} is not written yet: put your code in place of NotImplementedError, then run this cell again."
    if isinstance(error, _Unreadable):
        return f"{name} returned {error}, but {asked} is asked for."
    if isinstance(error, _TooLong):
        return f"{name} was stopped after {LIMIT:g} seconds. The inputs are tiny: look for a loop that does not end."
    file = getattr(getattr(fn, "__code__", None), "co_filename", None)
    lines = [f.line for f in traceback.extract_tb(error.__traceback__) if f.filename == file and f.line]
    return f"{name} stopped with {said}{f', at `{lines[-1]}`' if lines else ''}."


def _all_same(a: list[Any], b: list[Any]) -> bool:
    return all(map(_same, a, b))


def _same(a: Any, b: Any) -> bool:
    """Equal; for tensors of one shape, to 1e-5 or 1e-4 of the value, NaN being equal to NaN."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
    return type(a) is type(b) and bool(a == b)


def _difference(name: str, call: str, got: Any, right: Any, asked: str) -> str:
    """Where the first difference is, and between what."""
    if not (isinstance(got, Tensor) and isinstance(right, Tensor)):
        return f"{call} should return {_show(right)}, but returned {_show(got)}."
    if got.shape != right.shape:
        return f"{name} returned the shape {tuple(got.shape)}, but {asked} is asked for: here {tuple(right.shape)}."
    at = (~torch.isclose(got, right, rtol=1e-4, atol=1e-5)).nonzero()[0].tolist()
    place = f" at {at}" if at else ""
    wanted, found = _show(right[tuple(at)]), _show(got[tuple(at)])
    why = " Look for 0/0, the logarithm of 0, or 0 times infinity." if found == "nan" else ""
    return f"{call} should return {wanted}{place}, but returned {found}.{why}"


def _call(right: Function, name: str, case: tuple[Any, ...]) -> str:
    named = zip(inspect.signature(right).parameters, case, strict=True)
    return f"{name}({', '.join(f'{key} = {_show(value)}' for key, value in named)})"


def _show(value: Any) -> str:
    """A value on one line, floats with five digits: enough to try it by hand. Of a large tensor only the shape."""
    if isinstance(value, Tensor | np.ndarray):
        return _show(value.tolist()) if math.prod(value.shape) <= 40 else f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, list):
        return f"[{', '.join(map(_show, value))}]"
    if isinstance(value, Rollout):
        return f"{value.text!r} (hit {value.hit:.2g}, exact {value.exact:g}, fmt {value.fmt:g})"
    return f"{value:.5g}" if isinstance(value, float) else repr(value)


# --- read what was returned ---------------------------------------------------------------------------------------------------


def _taken(read: Callable[[Any], Any], value: Any) -> Any:
    """What `read` makes of a value; if anything is odd about the value, that is no crash of the learner's code."""
    try:
        return read(value)
    except Exception as error:
        raise error if isinstance(error, _Unreadable) else _Unreadable(_kind(value)) from error


def _kind(value: Any) -> str:
    kind = f"a value of type `{type(value).__name__}`"
    return "None (does it end in a return?)" if value is None else kind


def _tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.is_complex():
        raise _Unreadable(_kind(value))
    return torch.from_numpy(
        value.detach().cpu().to_dense().double().numpy()
    )  # NumPy takes no tensor that has no numbers


def _array(value: Any) -> Tensor:
    """NumPy's arrays too."""
    plain = isinstance(value, np.ndarray) and value.dtype.kind in "iuf"
    return torch.tensor(value.astype(float).tolist(), dtype=torch.float64) if plain else _tensor(value)


def _number(value: Any) -> Tensor:
    plain = isinstance(value, int | float | np.number) and not isinstance(value, bool | np.complexfloating)
    return torch.tensor(float(value), dtype=torch.float64) if plain else _tensor(value)


def _number_or_none(value: Any) -> Tensor | None:
    return None if value is None else _number(value)


def _pair(value: Any) -> Tensor:
    return torch.stack([_number(item) for item in value]) if isinstance(value, tuple | list) else _array(value)


def _mask(value: Any) -> Tensor:
    """True and False, or 1 and 0, as 1 and 0."""
    plain = value.astype(float) if isinstance(value, np.ndarray) and value.dtype == bool else value
    mask = _array(plain)
    if ((mask != 0) & (mask != 1)).any():
        raise _Unreadable("a tensor that holds other numbers than 0 and 1")
    return mask


def _bools(value: Any) -> list[bool]:
    plain = value.tolist() if isinstance(value, Tensor | np.ndarray) else value
    if not isinstance(plain, list | tuple):
        raise _Unreadable(_kind(value))
    for item in plain:
        if not isinstance(item, bool | np.bool_):
            raise _Unreadable(f"a list that holds {_kind(item)}")
    return [bool(item) for item in plain]


def _texts(value: Any) -> list[str]:
    """The texts of rollouts, sorted: which of two equal replies is kept, and in what order, is left open."""
    if not isinstance(value, list | tuple):
        raise _Unreadable(_kind(value))
    for item in value:
        if not isinstance(item, Rollout):
            raise _Unreadable(f"a list that holds {_kind(item)}")
    return sorted(item.text for item in value)


# --- ways to go wrong that several exercises share ------------------------------------------------------------------------------


def _negated(ways: Sequence[Function]) -> list[Function]:
    return [lambda *a, way=way: -way(*a) for way in ways]


def _either_sign(*ways: Function) -> list[Function]:
    return [*ways, *_negated(ways)]


def _pooled(way: Function) -> list[Function]:
    """Sum or mean over the batch, once or repeated for each example."""
    pools = (lambda each: each.sum(0), lambda each: each.mean(0))
    return [
        *(lambda *a, pool=pool: pool(way(*a)) for pool in pools),
        *(lambda *a, pool=pool: pool(way(*a)).expand_as(way(*a)) for pool in pools),
    ]


# --- notebook 03: one gradient an example -----------------------------------------------------------------------------------------


def _error(W: Tensor, X: Tensor, y: Tensor) -> Tensor:
    """G = y - pi, shape (n, 5), with y as one-hot rows."""
    return torch.eye(len(W))[y] - (X @ W.T).softmax(-1)


def _outer(a: Tensor, x: Tensor) -> Tensor:
    return a[:, :, None] * x[:, None, :]


def _gradients(W: Tensor, X: Tensor, y: Tensor) -> Tensor:
    return _outer(_error(W, X, y), X)


def _of_probability(W: Tensor, X: Tensor, y: Tensor) -> Tensor:
    return _gradients(W, X, y) * (X @ W.T).softmax(-1)[torch.arange(len(y)), y][:, None, None]


def _column_of_A(W: Tensor, X: Tensor, y: Tensor) -> Tensor:
    return _outer(torch.eye(len(W))[y] - (X @ W.T).softmax(-1)[torch.arange(len(y)), y][:, None], X)


_W = torch.tensor([[0.5, -1.0], [0.2, 0.3], [-0.7, 0.4], [0.0, 0.9], [1.1, -0.2]])

PER_EXAMPLE_GRADIENTS = Exercise(
    right=_gradients,
    cases=[
        (_W, torch.tensor([[1.0, 2.0], [-0.5, 1.5], [0.8, -1.2]]), torch.tensor([3, 0, 3])),
        (torch.cat([_W, -_W[:, :1] + 0.3], 1), torch.tensor([[0.6, -0.4, 1.0]]), torch.tensor([1])),
    ],
    read=_tensor,
    asked="a tensor of shape (n, 5, d)",
    praise="Summed over the examples, these are what one backward pass gives; apart, they tell which example pulls where.",
    mistakes={
        "sign_flipped": Mistake(
            "The sign is flipped: these are the gradients of the loss -log pi, made of pi - y. "
            "Those of log pi are made of G = y - pi: look at the order of the difference, or at the sign of what you differentiate.",
            _negated([_gradients]),
        ),
        "whole_batch": Mistake(
            "These are gradients of a mean or a sum over the batch, the same for each example. A backward pass adds up the batch: "
            "differentiate each example's log-probability by itself, or write the outer product of (y - pi) and x for each.",
            _either_sign(*_pooled(_gradients)),
        ),
        "divided_by_n": Mistake(
            "Each gradient is n times too small: the score was averaged over the batch before it was differentiated. Take the sum, or each by itself.",
            _either_sign(lambda W, X, y: _gradients(W, X, y) / len(X)),
        ),
        "transposed": Mistake(
            "Each gradient is transposed. It has the shape of W, (5, d): classes first, (y - pi) along the rows and x along the columns.",
            _either_sign(
                lambda W, X, y: _gradients(W, X, y).mT, lambda W, X, y: _gradients(W, X, y).mT.reshape(len(X), *W.shape)
            ),
        ),
        "normaliser_ignored": Mistake(
            "These are gradients of the logit of y alone: only the row of y is not zero. log softmax also has -log sum exp, whose gradient is -pi, "
            "so a step on one class moves all of them.",
            _either_sign(lambda W, X, y: _outer(torch.eye(len(W))[y], X)),
        ),
        "probability": Mistake(
            "These are gradients of the probability pi(y), not of its logarithm: they are pi(y) times too small. Differentiate log_softmax.",
            _either_sign(_of_probability),
        ),
        "column_of_A": Mistake(
            "You took the column of A = I - 1 pi' that belongs to y, whose entries hold pi(y) only. The gradient of log pi(y) by the logits is its row: y - pi.",
            _either_sign(_column_of_A),
        ),
    },
)


def per_example_gradients(fn: Function) -> Feedback:
    """fn(W (5, d), X (n, d), y (n,)) -> (n, 5, d): of each example, the gradient of log softmax(W x)[y] by W."""
    return _judge(fn, PER_EXAMPLE_GRADIENTS)


# --- notebook 03: log-likelihood and perplexity -------------------------------------------------------------------------------------


def _log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    return token_logps(logits, targets).sum(-1)


def _count(targets: Tensor) -> Tensor:
    return (targets != -100).sum(-1)


def _per_token(logits: Tensor, targets: Tensor) -> Tensor:
    return _log_likelihood(logits, targets) / _count(targets)


def _padded_as(token: int) -> Function:
    """Padding taken for this token, as clamp(min=0) or an index of -1 does."""
    return lambda logits, targets: _log_likelihood(logits, targets.where(targets != -100, token % logits.shape[-1]))


def _probability_sum(logits: Tensor, targets: Tensor) -> Tensor:
    return token_logps(logits, targets).exp().masked_fill(targets == -100, 0.0).sum(-1)


def _unnormalised(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.gather(-1, targets.clamp(min=0)[..., None])[..., 0].masked_fill(targets == -100, 0.0).sum(-1)


_PAD = -100
_LOGITS = torch.tensor(
    [
        [[1.0, -0.5, 0.3, 2.0], [0.2, 1.4, -1.0, 0.0], [0.6, 0.1, -0.8, 1.2]],
        [[-0.3, 0.9, 0.5, 0.1], [1.5, -1.2, 0.4, 0.7], [0.0, 0.8, 2.1, -0.6]],
    ]
)

ANSWER_LOG_LIKELIHOOD = Exercise(
    right=_log_likelihood,
    cases=[
        (_LOGITS, torch.tensor([[3, 1, _PAD], [0, 2, 1]])),
        (_LOGITS[:, :2].flip(0), torch.tensor([[_PAD, 3], [2, 0]])),
    ],
    read=_tensor,
    asked="a tensor of shape (n,)",
    praise="Padding adds nothing, and a longer answer is less likely: this sum is the s of the theory.",
    mistakes={
        "sign_flipped": Mistake(
            "The sign is flipped: this is the loss, -log pi. Logarithms of probabilities are at most 0; `cross_entropy` returns their negative.",
            _negated([_log_likelihood]),
        ),
        "whole_batch": Mistake(
            "This is one number for the whole batch. Reduce over the tokens of each answer (the last axis) and keep one number an example; "
            "`cross_entropy` needs reduction='none'.",
            _either_sign(
                *_pooled(_log_likelihood),
                lambda logits, targets: _log_likelihood(logits, targets).sum() / _count(targets).sum(),
            ),
        ),
        "padding_counted": Mistake(
            "Padding is counted: where the target is -100 there is no token, yet a token's log-probability was added. Set those places to 0 before the sum.",
            _either_sign(_padded_as(0), _padded_as(-1)),
        ),
        "length_normalised": Mistake(
            "This is the mean over the answer's tokens. The log-likelihood of an answer is the sum: dividing by the length comes with perplexity.",
            _either_sign(_per_token),
        ),
        "padded_length": Mistake(
            "This is the mean over all T places, padding included, so it depends on the longest answer of the batch. Take the sum.",
            _either_sign(lambda logits, targets: token_logps(logits, targets).mean(-1)),
        ),
        "probabilities": Mistake(
            "These are probabilities, multiplied or added, not their logarithms. Take log_softmax, then add.",
            [_probability_sum, lambda logits, targets: _log_likelihood(logits, targets).exp()],
        ),
        "unnormalised": Mistake(
            "You added logits. A logit is a log-probability only once log sum exp over the vocabulary is taken off: use log_softmax(-1).",
            _either_sign(_unnormalised),
        ),
        "shifted": Mistake(
            "Logits and targets are shifted by one position against each other. Here logits[:, t] already predict targets[:, t]: no shift is left to do.",
            _either_sign(
                lambda logits, targets: _log_likelihood(logits[:, :-1], targets[:, 1:]),
                lambda logits, targets: _log_likelihood(logits[:, 1:], targets[:, :-1]),
            ),
        ),
    },
)


def answer_log_likelihood(fn: Function) -> Feedback:
    """fn(logits (n, T, V), targets (n, T), -100 for padding) -> (n,): log pi of each answer, summed over its tokens, in nats.

    logits[:, t] predict targets[:, t], as `dynamics.answer_logits` returns them.
    """
    return _judge(fn, ANSWER_LOG_LIKELIHOOD)


def _surprise(logps: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log pi over the answer's tokens, in nats."""
    return -logps.sum(-1) / _count(targets)


def _perplexity(logps: Tensor, targets: Tensor) -> Tensor:
    return _surprise(logps, targets).exp()


def _batch_perplexity(logps: Tensor, targets: Tensor) -> Tensor:
    return (-logps.sum() / _count(targets).sum()).exp()


def _mean_of_inverses(logps: Tensor, targets: Tensor) -> Tensor:
    return (-logps).exp().masked_fill(targets == -100, 0.0).sum(-1) / _count(targets)


PERPLEXITY = Exercise(
    right=_perplexity,
    cases=[
        (torch.tensor([[-0.5, -1.2, 0.0], [-0.2, -0.7, -1.6]]), torch.tensor([[3, 1, _PAD], [0, 2, 1]])),
        (torch.tensor([[0.0, -2.3], [-0.1, -0.4]]), torch.tensor([[_PAD, 5], [1, 4]])),
    ],
    read=_tensor,
    asked="a tensor of shape (n,)",
    praise="Certainty gives 1 and a blind guess among k tokens gives k, however long the answer.",
    mistakes={
        "sign_missing": Mistake(
            "The sign is missing: this is below 1, the inverse. A perplexity is at least 1, the exponential of the mean of *minus* log pi.",
            [
                lambda logps, targets: (-_surprise(logps, targets)).exp(),
                lambda logps, targets: logps.sum(-1).exp(),
                lambda logps, targets: logps.mean(-1).exp(),
            ],
        ),
        "not_normalised": Mistake(
            "The length normalisation is missing: this grows with each token. Divide the sum by the number of the answer's tokens, then take exp.",
            [lambda logps, targets: (-logps.sum(-1)).exp()],
        ),
        "padding_counted": Mistake(
            "Padding is counted in the length: you divided by T. Divide by the number of targets that are not -100 in each row.",
            [lambda logps, targets: (-logps.mean(-1)).exp()],
        ),
        "whole_batch": Mistake(
            "This is one perplexity of the whole batch. Average over the tokens of each answer (the last axis) and keep one number an example.",
            [
                *_pooled(_perplexity),
                lambda *a: _surprise(*a).mean().exp(),
                lambda *a: _surprise(*a).mean().exp().expand(len(a[0])),
                _batch_perplexity,
                lambda *a: _batch_perplexity(*a).expand(len(a[0])),
            ],
        ),
        "base_2": Mistake(
            "This is 2 to the mean, but the log-probabilities are in nats: take exp. (2 belongs to logarithms of base 2, and would give the same.)",
            [lambda logps, targets: 2 ** _surprise(logps, targets)],
        ),
        "not_exponentiated": Mistake(
            "This is the mean surprise a token in nats: perplexity is its exponential.", _either_sign(_surprise)
        ),
        "mean_of_inverses": Mistake(
            "You averaged 1/pi over the tokens. Average the logarithms first, then take exp: a geometric mean, which one unlikely token cannot rule alone.",
            [_mean_of_inverses, lambda logps, targets: (-logps).exp().mean(-1)],
        ),
    },
)


def perplexity(fn: Function) -> Feedback:
    """fn(logps (n, T), targets (n, T)) -> (n,): exp of the mean of -log pi over each answer's tokens.

    Where targets are -100 there is no token, and logps are 0, as `dynamics.token_logps` returns them.
    """
    return _judge(fn, PERPLEXITY)


# --- notebook 03: what one step does --------------------------------------------------------------------------------------------------


def _change(g_u: Tensor, g_v: Tensor, lr: float) -> Tensor:
    return lr * (g_u @ g_v)


ONE_STEP_CHANGE = Exercise(
    right=_change,
    cases=[
        (torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.4, 0.3, 1.5]), 0.1),
        (torch.tensor([0.6, 1.1]), torch.tensor([-2.0, 0.3]), 0.5),
    ],
    read=_number,
    asked="one number",
    praise="A descent step on -log pi(u) moves the weights by lr * g_u, and log pi(v) by lr * <g_u, g_v>: the same whichever of the two is trained on.",
    mistakes={
        "sign_flipped": Mistake(
            "The sign is flipped. Descent on -log pi(u) is ascent on log pi(u): the weights move by +lr * g_u. "
            "Ask what the step does to u itself: its log-probability must rise.",
            _negated([_change]),
        ),
        "cosine": Mistake(
            "This has the cosine in place of the inner product: the direction without the magnitudes. A long gradient moves more: do not divide by the norms.",
            _either_sign(
                lambda u, v, lr: lr * (u @ v) / (u.norm() * v.norm()), lambda u, v, lr: u @ v / (u.norm() * v.norm())
            ),
        ),
        "lr_missing": Mistake(
            "The learning rate is missing: half the step moves half as far.", _either_sign(lambda u, v, lr: u @ v)
        ),
        "lr_squared": Mistake(
            "The learning rate is in there twice. It scales the step of the weights once, and the change is linear in that step.",
            _either_sign(lambda u, v, lr: lr**2 * (u @ v)),
        ),
        "one_norm": Mistake(
            "You divided by the norm of one gradient: this is a projection. To first order the change is lr times the inner product, with no norm at all.",
            _either_sign(lambda u, v, lr: lr * (u @ v) / u.norm(), lambda u, v, lr: lr * (u @ v) / v.norm()),
        ),
        "one_gradient": Mistake(
            "Only one of the two gradients is in there: that is what a step on an example does to itself. Multiply g_u, which moves the weights, with g_v, which feels it.",
            _either_sign(
                *(lambda u, v, lr, i=i: lr * (u, v)[i] @ (u, v)[i] for i in (0, 1)),
                *(lambda u, v, lr, i=i: lr * (u, v)[i].norm() for i in (0, 1)),
            ),
        ),
        "norms_only": Mistake(
            "You multiplied the norms, which is the most that a step could do. The angle between the gradients counts too: take the inner product.",
            _either_sign(lambda u, v, lr: lr * u.norm() * v.norm()),
        ),
    },
)


def one_step_change(fn: Function) -> Feedback:
    """fn(g_u (d,), g_v (d,), lr) -> number: to first order, the change of log pi(v) by one SGD step of rate lr on -log pi(u).

    g_u and g_v are the gradients of log pi(u) and log pi(v).
    """
    return _judge(fn, ONE_STEP_CHANGE)


# --- notebook 03: Kullback-Leibler divergence ---------------------------------------------------------------------------------------------


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return torch.xlogy(p, p / q).sum(-1)


def _naive_kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(-1)  # NaN where p has a 0


def _either_kl(change: Callable[[Function], Sequence[Function]]) -> list[Function]:
    """A mistake made by who minds the zeros, and by who does not."""
    return [way for base in (_kl, _naive_kl) for way in change(base)]


KL = Exercise(
    right=_kl,
    cases=[
        (torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4]]), torch.tensor([[0.2, 0.5, 0.3], [0.3, 0.3, 0.4]])),
        (torch.tensor([[0.5, 0.5, 0.0, 0.0]]), torch.tensor([[0.6, 0.1, 0.1, 0.2]])),
    ],
    read=_tensor,
    asked="a tensor of shape (n,)",
    praise="It is 0 where p equals q, a zero of p adds nothing, and it counts what p does, so that swapping the two changes it.",
    mistakes={
        "zero_probability": Mistake(
            "It is right but where p has a 0: there 0 * log 0 gave NaN. The limit is 0: a token that p never takes adds nothing. "
            "Use torch.xlogy, or leave those terms out.",
            [_naive_kl],
        ),
        "swapped": Mistake(
            "This is KL(q||p). KL(p||q) weighs the log-ratio by p. Mind `kl_div(a, b)`: it takes log-probabilities first and returns KL(b||exp a).",
            [lambda p, q: _naive_kl(q, p)],
        ),
        "sign_flipped": Mistake(
            "The sign is flipped: a divergence is never negative. Look at which of p and q is above in the ratio.",
            _either_kl(lambda f: _negated([f])),
        ),
        "bits": Mistake(
            "This is in bits. Nats are asked for: take the natural logarithm, not log2.",
            _either_kl(lambda f: [lambda p, q: f(p, q) / math.log(2)]),
        ),
        "whole_batch": Mistake(
            "The rows are added up or averaged. Sum over the vocabulary (the last axis) only: one number a row.",
            _either_kl(_pooled),
        ),
        "vocabulary_mean": Mistake(
            "You averaged over the vocabulary. p already weighs the terms: sum them. (`kl_div` averages unless you say otherwise.)",
            _either_kl(lambda f: [g := lambda p, q: f(p, q) / p.shape[-1], *_pooled(g)]),
        ),
        "cross_entropy": Mistake(
            "This is the cross-entropy, -sum p log q, which is not 0 where p equals q. Take off the entropy of p.",
            [lambda p, q: -(p * q.log()).sum(-1)],
        ),
    },
)


def kl(fn: Function) -> Feedback:
    """fn(p (n, V), q (n, V)) -> (n,): KL(p||q) of each row in nats. q has no zeros, p may."""
    return _judge(fn, KL)


# --- notebook 04: what is kept of rollouts ------------------------------------------------------------------------------------------------


def _group(*replies: str) -> list[Rollout]:
    """Replies to a puzzle of three tiles whose answer is 2 3 1, with the reward they really get."""
    scores = [jigsaw.reward_p1(text, (2, 3, 1), 1, 3) for text in replies]
    return [Rollout(0, i, 0, replies[i], s.hit, s.exact, s.fmt) for i, s in enumerate(scores)]


def _distinct(group: list[Rollout]) -> list[Rollout]:
    return list({r.text: r for r in group}.values())


def _keeping(*keeps: Callable[[Rollout], bool]) -> list[Function]:
    """Rules that keep by such a test, with and without repeats."""
    return [
        lambda group, keep=keep, then=then: then([r for r in group if keep(r)])
        for keep in keeps
        for then in (_distinct, list)
    ]


def _keep_correct(group: list[Rollout]) -> list[Rollout]:
    return _distinct([r for r in group if r.correct])


_RIGHT, _ALSO_RIGHT = (
    f"<think> {words} </think> <answer> 2 3 1 </answer>" for words in ("sky right left", "right , left")
)
_BARE = "<answer> 2 3 1 </answer>"
_PARTLY, _WRONG = (f"<think> sky </think> <answer> {answer} </answer>" for answer in ("2 1 3", "3 1 2"))

KEEP_CORRECT = Exercise(
    right=_keep_correct,
    cases=[
        (_group(_RIGHT, _PARTLY, _RIGHT, _ALSO_RIGHT, _BARE, _WRONG, "2 3 1"),),
        (_group(_PARTLY, _WRONG),),
        (_group(_ALSO_RIGHT, _RIGHT),),
    ],
    read=_texts,
    asked="a list of Rollout",
    praise="That is rejection sampling: nothing wrong gets in, and no reply counts twice.",
    mistakes={
        "keeps_repeats": Mistake(
            "The right replies are kept, but repeats among them too. A reply sampled twice would be learnt twice: keep one a distinct text.",
            [lambda group: [r for r in group if r.correct]],
        ),
        "ignores_template": Mistake(
            "You keep a right answer that is not in the template (exact is 1, fmt is 0). Imitating it would teach to leave the thinking out: ask for both, "
            "as `Rollout.correct` does.",
            _keeping(lambda r: r.exact == 1),
        ),
        "partly_right": Mistake(
            "You keep replies that do not solve the puzzle. A reward or hit above 0 only says that something was right: ask for exact and fmt to be 1.",
            _keeping(
                lambda r: r.hit > 0,
                lambda r: r.hit > 0 and r.fmt == 1,
                lambda r: r.reward > 0,
                lambda r: r.reward >= 1,
                lambda r: r.reward > 1,
                lambda r: r.fmt == 1,
                lambda r: True,
            ),
        ),
        "drops_group": Mistake(
            "One wrong reply makes you drop the whole group, the right ones too. Look at each reply by itself.",
            [
                lambda group, then=then: then(group) if all(r.correct for r in group) else []
                for then in (_distinct, list)
            ],
        ),
        "one_a_group": Mistake(
            "You keep a single reply of the group. There is more than one right text: keep each of them once.",
            [lambda group, i=i: _keep_correct(group)[i:][:1] for i in (0, -1)],
        ),
    },
)


def keep_correct(fn: Function) -> Feedback:
    """fn(group, the list of Rollout of one prompt) -> list of Rollout: the correct ones, one of each distinct text, in any order."""
    return _judge(fn, KEEP_CORRECT)


def _counted(keep: Callable[[int, int], bool]) -> Function:
    return lambda correct, n: [keep(c, n) for c in correct]


def _rif(correct: list[int], n: int) -> list[bool]:
    return [1 <= c <= n for c in correct]


INSTANCE_FILTER = Exercise(
    right=_rif,
    cases=[([0, 1, 4, 7, 8, 0], 8), ([3, 0, 4, 1, 2], 4)],
    read=_bools,
    asked="a list with one True or False for each prompt",
    praise="Prompts that were never solved are left out: they hold nothing to imitate and give RFT no signal.",
    mistakes={
        "keeps_none_solved": Mistake(
            "You keep prompts with 0 of n right: all their replies are wrong, so there is nothing to learn from. The filter asks for at least 1.",
            [
                _counted(lambda c, n: True),
                _counted(lambda c, n: c < n),
                _counted(lambda c, n: c < 8),
                _counted(lambda c, n: c == 0),
            ],
        ),
        "drops_all_solved": Mistake(
            "You drop prompts with n of n right. That is the other documented reading, 1 to n - 1 (1..7 of 8: equal rewards leave RFT no advantage to learn from). "
            "It is not asked for here: keep 1 to n, n of n too.",
            [_counted(lambda c, n: 1 <= c < n), _counted(lambda c, n: 1 <= c < 8)],
        ),
        "only_all_solved": Mistake(
            "You keep only prompts with n of n right: the easiest, with the least left to learn. One right reply is enough.",
            [_counted(lambda c, n: c == n), _counted(lambda c, n: c == 8)],
        ),
        "majority": Mistake(
            "You ask for half of the replies or more to be right. One right reply is enough.",
            [_counted(lambda c, n: 2 * c > n), _counted(lambda c, n: 2 * c >= n)],
        ),
    },
)


def instance_filter(fn: Function) -> Feedback:
    """fn(correct, n): of each prompt the number of right replies among n -> of each True if it is kept, at 1 to n right.

    Rollout-based instance filtering of 2507.05386, in the reading that keeps n of n.
    """
    return _judge(fn, INSTANCE_FILTER)


# --- notebook 04: the drop at matched accuracy ----------------------------------------------------------------------------------------------

Curve = np.ndarray


def _matched_drop(steps: Curve, new: Curve, prior: Curve, target: float) -> float | None:
    step = crossing(steps, new, target)
    return None if step is None else 100 * (prior[0] - value_at(steps, prior, step))


def _last_crossing(steps: Curve, new: Curve, prior: Curve, target: float) -> float | None:
    ups = [i for i in range(1, len(new)) if new[i - 1] < target <= new[i]]
    i = ups[-1] - 1 if ups else 0
    drop = _matched_drop(steps[i:], new[i:], prior[i:], target)
    return None if drop is None else drop + 100 * (prior[0] - prior[i])


def _drop_at(*picks: Callable[[Curve, float], Any]) -> list[Function]:
    """The drop at one evaluation, picked by `new` and the target; whether or not the target is ever reached, and None if not."""

    def way(pick: Callable[[Curve, float], Any], minded: bool) -> Function:
        return lambda steps, new, prior, target: (
            None if minded and new.max() < target else 100 * (prior[0] - prior[pick(new, target)])
        )

    return [way(pick, minded) for pick in picks for minded in (True, False)]


def _changed(
    reached: Callable[[float, Curve], float] = lambda drop, prior: drop,
    never: Callable[[Curve, Curve], float | None] = lambda new, prior: None,
) -> Function:
    """The right drop, changed; or something else where there is none."""

    def way(steps: Curve, new: Curve, prior: Curve, target: float) -> float | None:
        drop = _matched_drop(steps, new, prior, target)
        return never(new, prior) if drop is None else reached(drop, prior)

    return way


MATCHED_DROP = Exercise(
    right=_matched_drop,
    cases=[
        (
            np.array([0, 10, 20, 30, 40, 50]),
            np.array([0.0, 0.2, 0.6, 0.45, 0.9, 0.8]),
            np.array([0.9, 0.85, 0.7, 0.74, 0.5, 0.4]),
            0.5,
        ),
        (np.array([0, 5, 20]), np.array([0.1, 0.35, 0.3]), np.array([0.8, 0.7, 0.65]), 0.5),
        (np.array([0, 10, 15]), np.array([0.6, 0.7, 0.9]), np.array([0.8, 0.75, 0.6]), 0.5),
    ],
    read=_number_or_none,
    asked="one number or None",
    praise="First crossing, on the line between evaluations, in points; and no number for a run that never got there.",
    mistakes={
        "number_though_never_reached": Mistake(
            "You return a number for a run that never reaches the target. It cannot be compared at that accuracy: return None, and say how many runs are missing.",
            [
                _changed(never=lambda new, prior: 0.0),
                _changed(never=lambda new, prior: math.nan),
                _changed(never=lambda new, prior: 100 * (prior[0] - prior[-1])),
                _changed(never=lambda new, prior: 100 * (prior[0] - prior[new.argmax()])),
            ],
        ),
        "sign_flipped": Mistake(
            "The sign is flipped: a drop is positive when accuracy was lost, the first prior accuracy minus the one at the crossing.",
            [_changed(lambda drop, prior: -drop)],
        ),
        "fraction": Mistake(
            "This is a fraction. The drop is asked for in percentage points: times 100.",
            [_changed(lambda drop, prior: drop / 100), _changed(lambda drop, prior: -drop / 100)],
        ),
        "relative": Mistake(
            "This is the drop relative to the first prior accuracy. Points are a plain difference of accuracies: do not divide.",
            [_changed(lambda drop, prior: drop / prior[0]), _changed(lambda drop, prior: drop / prior[0] / 100)],
        ),
        "last_evaluation": Mistake(
            "You took the last evaluation. How far a run went past the target is how long you let it run: compare where new first reaches the target.",
            _drop_at(lambda new, target: -1),
        ),
        "best_evaluation": Mistake(
            "You took the evaluation with the best new accuracy. Matching means the same accuracy for every run: take the first crossing of the target.",
            _drop_at(lambda new, target: new.argmax()),
        ),
        "last_crossing": Mistake(
            "You took the last time that new rises to the target. It fell below in between: take the first.",
            [_last_crossing],
        ),
        "not_interpolated": Mistake(
            "You took the evaluation nearest to the crossing. The target lies between two evaluations: read the prior accuracy off the line between them, "
            "at the step where the line of new crosses the target.",
            _drop_at(
                lambda new, target: (new >= target).argmax(),
                lambda new, target: max((new >= target).argmax() - 1, 0),
                lambda new, target: abs(new - target).argmin(),
            ),
        ),
    },
)


def matched_drop(fn: Function) -> Feedback:
    """fn(steps, new, prior, target) -> the drop of prior since its first evaluation, in percentage points, where new first reaches target.

    steps, new and prior are NumPy arrays of one evaluation each, accuracies lie in [0, 1]. Linear between evaluations; None if new
    never reaches the target, 0 if it does at the first evaluation.
    """
    return _judge(fn, MATCHED_DROP)


# --- notebook 05: subspaces, whatever their basis -------------------------------------------------------------------------------------------


def _cosines(U: Tensor, V: Tensor) -> Tensor:
    """Of the principal angles, descending."""
    return torch.linalg.svdvals(U.mT @ V).clamp(max=1)


def _root_mean_square_sine(U: Tensor, V: Tensor) -> Tensor:
    return (1 - _cosines(U, V).square()).mean().sqrt()


def _projectors(U: Tensor, V: Tensor) -> Tensor:
    """|UU' - VV'|_F, which is sqrt(2k) times the root mean square sine."""
    return (U @ U.mT - V @ V.mT).norm()


def _own_cosines(U: Tensor, V: Tensor) -> Tensor:
    """Column i with column i."""
    return (U * V).sum(0)


def _assigned_cosines(U: Tensor, V: Tensor) -> Tensor:
    """Each column with another one, all in all as near as can be."""
    all_pairs, rows = (U.mT @ V).abs(), range(U.shape[1])
    return max((all_pairs[rows, list(order)] for order in itertools.permutations(rows)), key=lambda c: float(c.sum()))


def _summed_up(*cosines: Function) -> list[Function]:
    """Distances that learners make of cosines."""
    summaries = (
        lambda c: (1 - c**2).clamp(min=0).mean().sqrt(),
        lambda c: (1 - c**2).mean(),
        lambda c: (1 - c**2).clamp(min=0).sqrt().mean(),
        lambda c: 1 - c.mean(),
        lambda c: (1 - c).clamp(min=0).mean().sqrt(),
        lambda c: (1 - c.mean() ** 2).clamp(min=0).sqrt(),
    )
    return [lambda U, V, of=of, sum_up=sum_up: sum_up(of(U, V)) for of in cosines for sum_up in summaries]


_HALVES = (
    torch.tensor([[1, 1], [1, -1], [1, 1], [1, -1]]).double() / 2
)  # exact: a span beside itself is 0 by any formula
_PLANE = torch.eye(4).double()[:, :2]
_TILTED = torch.tensor([[0, 0.8], [-0.6, 0], [0, 0.6], [-0.8, 0]]).double()
_MIXED = torch.tensor([[0, 1, 0], [-0.64, 0, 0.48], [-0.6, 0, -0.8], [-0.48, 0, 0.36], [0, 0, 0]]).double()

SUBSPACE_DISTANCE = Exercise(
    right=_root_mean_square_sine,
    cases=[
        (_HALVES, _HALVES * torch.tensor([-1.0, 1.0])),  # a sign
        (_PLANE, _TILTED),  # signs and order
        (torch.eye(5).double()[:, :3], _MIXED),  # the axes within the span too
    ],
    read=_number,
    asked="one number",
    praise="It depends on the spans alone: change signs, the order, or the axes within a span, as an SVD may, and it stays.",
    mistakes={
        "signs": Mistake(
            "You compared column by column, with signs. An SVD leaves the sign of each pair (u, v) open, so the same matrix may seem to have turned. "
            "Compare the spans: UU' and VV' do not change with signs.",
            [
                *(
                    lambda U, V, by=by: (U - V).norm() / by(U.shape[1])
                    for by in (lambda k: 1, math.sqrt, lambda k: math.sqrt(2 * k))
                ),
                lambda U, V: (U - V).norm(dim=0).mean(),
                lambda U, V: 1 - _own_cosines(U, V).mean(),
                lambda U, V: (1 - _own_cosines(U, V)).mean().sqrt(),
                lambda U, V: (1 - _own_cosines(U, V).mean() ** 2).sqrt(),
            ],
        ),
        "order": Mistake(
            "You compared the i-th column with the i-th, without signs. Where two singular values cross, their vectors change places, "
            "and that reads as 90 degrees although the span is the same. Compare the spans as wholes.",
            _summed_up(lambda U, V: _own_cosines(U, V).abs()),
        ),
        "matched": Mistake(
            "You looked for a partner for each column. That mends signs and order, but near equal singular values the vectors turn within their span. "
            "Use all of U'V (its Frobenius norm or its singular values), not the largest entry of each row.",
            _summed_up(lambda U, V: (U.mT @ V).abs().amax(0), lambda U, V: (U.mT @ V).abs().amax(1), _assigned_cosines),
        ),
        "always_zero": Mistake(
            "This is 0 for any two spans. Either it is a constant and does not look at U and V, or it is made of the wrong product: U'U and V'V are both "
            "the identity, and UV' has the norm sqrt(k), whatever they are. The projectors are UU' and VV' (n by n), the cosines are in U'V (k by k).",
            [lambda U, V: (U.mT @ U - V.mT @ V).norm()],
        ),
        "similarity": Mistake(
            "This is 1 where the spans are equal: it says how near they are. Made of the cosines, it is to be turned into sines: sin^2 = 1 - cos^2.",
            [
                lambda U, V: _cosines(U, V).square().mean().sqrt(),
                lambda U, V: _cosines(U, V).square().mean(),
                lambda U, V: _cosines(U, V).mean(),
                lambda U, V: _cosines(U, V).norm(),
                lambda U, V: _cosines(U, V).square().sum(),
            ],
        ),
        "unnormalised": Mistake(
            "This grows with the number of columns, so it cannot be compared between different k: divide |UU' - VV'|_F by sqrt(2k), the most that it can be "
            "(both projectors count each angle).",
            [
                _projectors,
                lambda U, V: _projectors(U, V) / math.sqrt(2),
                lambda U, V: _projectors(U, V) / math.sqrt(U.shape[1]),
                lambda U, V: _projectors(U, V) ** 2,
                lambda U, V: _projectors(U, V) ** 2 / 2,
            ],
        ),
        "squared": Mistake(
            "This is the mean of sin^2: the root is missing.",
            [lambda U, V: _root_mean_square_sine(U, V) ** 2],
        ),
        "other_mean": Mistake(
            "The sines are right, but this is their largest, smallest or plain mean. Take the root of the mean of their squares.",
            [
                lambda U, V: (1 - _cosines(U, V) ** 2).sqrt().max(),
                lambda U, V: (1 - _cosines(U, V) ** 2).sqrt().min(),
                lambda U, V: (1 - _cosines(U, V) ** 2).sqrt().mean(),
            ],
        ),
    },
)


def subspace_distance(fn: Function) -> Feedback:
    """fn(U (n, k), V (n, k), both with orthonormal columns) -> number in [0, 1]: the root mean square sine of the principal angles.

    That is |UU' - VV'|_F / sqrt(2k), `chordal` in `spectra.Angles` (but for the trivial zeros, which that leaves out).
    """
    return _judge(fn, SUBSPACE_DISTANCE)


def _basis(A: Tensor) -> Tensor:
    return torch.linalg.qr(A).Q


def _angles(A: Tensor, B: Tensor) -> Tensor:
    return spectra.principal_angles(_basis(A.double()), _basis(B.double()))


def _in_both_precisions(*ways: Function) -> list[Function]:
    return [*ways, *(lambda A, B, way=way: way(A.double(), B.double()) for way in ways)]


def _arccos(*cosines: Function) -> list[Function]:
    """Of cosines that need not be cosines: clipped or not, sorted (NaN is last then) or not, in float32 and in float64."""
    clip, leave = (lambda c: c.clamp(-1, 1)), (lambda c: c)
    ways = [lambda A, B, of=of, then=then: then(of(A, B)).acos() for of in cosines for then in (clip, leave)]
    return _in_both_precisions(*ways, *(lambda A, B, way=way: way(A, B).sort().values for way in ways))


def _apart(A: Tensor, B: Tensor) -> Tensor:
    """Column i of one basis with column i of the other."""
    return _own_cosines(_basis(A), _basis(B))


_FLOOR = 0.01  # radians; arccos in float32 makes up to about 0.001 of nothing


def _off_near_zero(got: list[Tensor], right: list[Tensor]) -> bool:
    """Large angles are right, small ones are small. A mistake is looked for in wrong results only."""
    pairs = list(zip(got, right, strict=True))
    return all(g.shape == r.shape for g, r in pairs) and all(
        bool(torch.where(r < _FLOOR, g.abs() < _FLOOR, (g - r).abs() < 1e-4).all()) for g, r in pairs
    )


def _nan_near_zero(got: list[Tensor], right: list[Tensor]) -> bool:
    mended = [g.nan_to_num(0).sort().values for g in got]  # a sort puts NaN last
    return any(g.isnan().any() for g in got) and _off_near_zero(mended, right)


def _undone(undo: Callable[[Tensor], Tensor]) -> Callable[[list[Tensor], list[Tensor]], bool]:
    """Right angles, written down in another way; rounding near zero is left for later."""
    return lambda got, right: _off_near_zero([undo(g) for g in got], right)


def _same_span() -> tuple[Tensor, Tensor]:
    """Two bases of one span of 24 dimensions in R^96, so many that some cosine is rounded up. Eighths and whole numbers: exact in float32."""
    drawn = torch.randint(-16, 17, (96, 24), generator=torch.Generator().manual_seed(5)) / 8
    return drawn, drawn @ torch.eye(24).add(torch.eye(24).roll(1, 0)).tril().flip(1)


PRINCIPAL_ANGLES = Exercise(
    right=_angles,
    cases=[
        (
            torch.tensor([[1.0, 2.0], [0.0, 1.0], [1.0, 0.0], [2.0, -1.0]]),
            torch.tensor([[2.0, 1.0], [1.0, 0.0], [0.0, -2.0], [1.0, 1.0]]),
        ),
        (  # 0.0002, whose cosine is 1 in float32, and 60 degrees
            torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]),
            torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0004, 0.0], [0.0, math.sqrt(3)]]),
        ),
        _same_span(),
    ],
    read=_array,
    asked="an array of shape (k,)",
    praise="Orthonormal bases, singular values, and enough digits near 1: what is left at 0 is far below any angle of interest.",
    mistakes={
        "no_qr": Mistake(
            "The columns are not orthonormal: entries of A'B are cosines only if they are, lengths and angles within A and B count otherwise. "
            "Take Q of torch.linalg.qr for both first; unit length alone does not do.",
            _arccos(
                lambda A, B: torch.linalg.svdvals(A.mT @ B),
                lambda A, B: torch.linalg.svdvals((A / A.norm(dim=0)).mT @ (B / B.norm(dim=0))),
                lambda A, B: torch.linalg.svdvals(_basis(A).mT @ B),
                lambda A, B: torch.linalg.svdvals(A.mT @ _basis(B)),
            ),
        ),
        "columns": Mistake(
            "You took the angles between single columns of the two bases. They change with the basis: "
            "the principal angles are the arccos of the singular values of Qa'Qb.",
            _arccos(_apart, lambda A, B: _apart(A, B).abs(), lambda A, B: (_basis(A).mT @ _basis(B)).abs().amax(0)),
        ),
        "degrees": Mistake(
            "These are degrees. Radians are asked for, as torch.acos and numpy.arccos return them.",
            [lambda A, B: _angles(A, B).rad2deg()],
            _undone(torch.deg2rad),
        ),
        "cosines": Mistake(
            "These are the cosines: the arccos is missing.",
            [lambda A, B: _angles(A, B).cos(), lambda A, B: _angles(A, B).cos().flip(0)],
            _undone(lambda g: g.clamp(-1, 1).acos().sort().values),
        ),
        "descending": Mistake(
            "The angles are right, but the largest is first. Singular values come in descending order, so their arccos ascends; leave it so.",
            [lambda A, B: _angles(A, B).flip(0)],
            _undone(lambda g: g.flip(0) if g.ndim == 1 else g),
        ),
        "not_clipped": Mistake(
            "Where the spans share a direction you return NaN: rounding makes its cosine 1.0000001, which has no arccos. "
            "Clip the cosines to at most 1 (and mind that arccos is blind near 1: see to the digits too).",
            [],
            _nan_near_zero,
        ),
        "float_floor": Mistake(
            "Large angles are right, small ones are rounding: near 1, arccos turns an error e into an angle of sqrt(2 e), in float32 0.0003 and more, "
            "and it takes 0.0002 for 0. Use float64 before the QR, or for small angles the arcsin of the singular values of Qb - Qa Qa'Qb.",
            [],
            _off_near_zero,
        ),
    },
)


def principal_angles(fn: Function) -> Feedback:
    """fn(A (n, k), B (n, k), float32, of rank k) -> (k,): angles between the spans of their columns in radians, ascending.

    The columns are not orthonormal. `spectra.principal_angles` wants them so (Bjorck and Golub 1973).
    """
    return _judge(fn, PRINCIPAL_ANGLES)


# --- notebook 05: angles that must be zero ------------------------------------------------------------------------------------------------


def _clipped(count: Callable[[int, int], float]) -> list[Function]:
    return [count, lambda n, k: max(0, count(n, k))]


TRIVIAL_ZEROS = Exercise(
    right=lambda n, k: spectra.trivial_zeros(n, k, k),
    cases=[(4096, 768), (1024, 768), (512, 512), (8, 4), (7, 5)],
    read=_number,
    asked="one number",
    praise="Where k + k directions do not fit into n, the excess is shared, whatever the two matrices are. Leave those angles out before you speak of stability.",
    mistakes={
        "always_zero": Mistake(
            "You say that nothing must be shared. Two planes of R^3 meet in a line whatever they are: 2 + 2 directions do not fit into 3.",
            [lambda n, k: 0],
        ),
        "not_clipped": Mistake(
            "This is negative where two subspaces have room beside each other. There none must be shared: at least 0.",
            [lambda n, k: 2 * k - n],
        ),
        "complement": Mistake(
            "This is n - k, the room that the first subspace leaves to the second: so many angles may be other than 0 (k at most). "
            "Asked for is how many of the k angles are not free.",
            [lambda n, k: n - k, lambda n, k: min(k, n - k)],
        ),
        "half": Mistake(
            "You count by how much one subspace exceeds half of the space. Both do, so twice as many are shared: try two planes of R^3.",
            [*_clipped(lambda n, k: k - n / 2), *_clipped(lambda n, k: k - n // 2)],
        ),
        "all_of_them": Mistake(
            "You say that all k angles are 0. So it is only for k = n; beyond half of n it is the excess of k + k over n.",
            [lambda n, k: k, lambda n, k: k if 2 * k > n else 0, lambda n, k: k if 2 * k >= n else 0],
        ),
        "only_whole_space": Mistake(
            "You see the zeros of k = n only. They begin where k exceeds half of n: two planes of R^3 meet in a line.",
            [lambda n, k: k if k == n else 0],
        ),
        "one": Mistake("You say whether an angle must be 0. Asked for is how many.", [lambda n, k: int(2 * k > n)]),
        "off_by_one": Mistake(
            "This is off by one: k = n/2 still fits twice into n, and two planes of R^3 share exactly one direction.",
            [*_clipped(lambda n, k: 2 * k - n + 1), *_clipped(lambda n, k: 2 * k - n - 1)],
        ),
        "share": Mistake(
            "This is a share. The number of angles is asked for: do not divide.",
            [lambda n, k: max(0, 2 * k - n) / k, lambda n, k: max(0, 2 * k - n) / n],
        ),
    },
)


def trivial_zeros(fn: Function) -> Feedback:
    """fn(n, k), 1 <= k <= n -> number: how many of the k principal angles of any two k-subspaces of R^n are 0 whatever they are."""
    return _judge(fn, TRIVIAL_ZEROS)


# --- notebook 05: restored vectors --------------------------------------------------------------------------------------------------------

_SVD = tuple[Tensor, Tensor, Tensor]  # U, S and V (not V')


def _surgery(*builds: Callable[[_SVD, _SVD, int], Tensor]) -> list[Function]:
    """Functions of the matrices, from functions of the base's and the tuned SVD."""

    def way(build: Callable[[_SVD, _SVD, int], Tensor]) -> Function:
        return lambda base, tuned, k: build(_decomposed(base), _decomposed(tuned), k)

    return [way(build) for build in builds]


def _decomposed(W: Tensor) -> _SVD:
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return U, S, Vh.mT


def _top(ours: Tensor, theirs: Tensor, k: int) -> Tensor:
    """The first k columns of `ours`, or values, in place of those of `theirs`."""
    return torch.cat([ours[..., :k], theirs[..., k:]], -1)


def _nearest(X: Tensor) -> Tensor:
    P, _, Qh = torch.linalg.svd(X, full_matrices=False)
    return P @ Qh


def _gram_schmidt(X: Tensor) -> Tensor:
    Q, R = torch.linalg.qr(X)
    return Q * R.diagonal().sign()


def _as_mixed(X: Tensor) -> Tensor:
    return X


def _mixing(*pairs: tuple[Function, Function], values: Callable[[_SVD, _SVD, int], Tensor]) -> list[Function]:
    """U_mix S V_mix', each basis made orthonormal, or not, by its function."""
    return _surgery(
        *(
            lambda b, t, k, f=f, g=g: f(_top(b[0], t[0], k)) * values(b, t, k) @ g(_top(b[2], t[2], k)).mT
            for f, g in pairs
        )
    )


def _tuned_values(b: _SVD, t: _SVD, k: int) -> Tensor:
    return t[1]


_EITHER = (_nearest, _as_mixed)

RESTORE_TOP = Exercise(
    right=lambda base, tuned, k: spectra.restore_top(base, tuned, k, orthonormal=True).matrix,
    cases=[
        (
            torch.tensor([[2.0, 0.3, -0.5], [0.1, 1.2, 0.4], [-0.6, 0.2, 0.7]]).double(),
            torch.tensor([[2.8, -0.5, -0.3], [0.3, 0.7, 1.5], [-0.1, 0.9, 0.3]]).double(),
            2,
        ),
        (
            torch.tensor([[1.5, -0.2, 0.6], [0.4, 1.0, -0.7], [0.9, 0.3, 0.2], [-0.1, 0.8, 0.5]]).double(),
            torch.tensor([[1.1, 0.5, 0.4], [0.8, 1.3, -0.3], [0.6, -0.2, 0.7], [0.2, 1.1, 0.9]]).double(),
            1,
        ),
    ],
    read=_array,
    asked="an array of shape (m, n)",
    praise="Its singular values are those of the tuned matrix exactly, so whatever it changes, it is the vectors.",
    mistakes={
        "not_orthonormal": Mistake(
            "You multiplied U_mix S V_mix' as it is. Columns of two bases are not orthonormal, so S are not the singular values of this product: values changed with the vectors. "
            "Take the nearest orthonormal bases, of U_mix and of V_mix, first.",
            _mixing((_as_mixed, _as_mixed), (_nearest, _as_mixed), (_as_mixed, _nearest), values=_tuned_values),
        ),
        "transposed": Mistake(
            "V is transposed. torch.linalg.svd returns Vh = V': its right singular vectors are rows, so mix rows, Vh[:k], or the columns of Vh.T, "
            "and multiply by V' in the end.",
            _surgery(
                *(lambda b, t, k, f=f: f(_top(b[0], t[0], k)) * t[1] @ f(_top(b[2].mT, t[2].mT, k)) for f in _EITHER),
                *(lambda b, t, k, f=f: f(_top(b[0], t[0], k)) * t[1] @ f(_top(b[2], t[2], k)) for f in _EITHER),
            ),
        ),
        "values_swapped": Mistake(
            "You restored values and kept the tuned vectors. It is the other way round: vectors of the base, values of the tuned matrix.",
            _surgery(
                lambda b, t, k: t[0] * b[1] @ t[2].mT,
                lambda b, t, k: t[0] * _top(b[1], t[1], k) @ t[2].mT,
            ),
        ),
        "base_values": Mistake(
            "The base's values came along with its vectors. Then nobody can tell which of them did it: all values are to be the tuned ones.",
            [
                *_mixing(*((f, f) for f in _EITHER), values=lambda b, t, k: _top(b[1], t[1], k)),
                *_mixing(*((f, f) for f in _EITHER), values=lambda b, t, k: b[1]),
            ],
        ),
        "unchanged": Mistake(
            "This is the tuned matrix as it came: nothing of the base is in it. Put the first k columns of the base's U and V in place of the tuned ones, "
            "make both orthonormal, and multiply anew by the tuned values.",
            [lambda base, tuned, k: tuned],
        ),
        "all_vectors": Mistake(
            "You restored all vectors. Only the first k pairs are to be the base's.",
            _surgery(lambda b, t, k: b[0] * t[1] @ b[2].mT, lambda b, t, k: b[0] * b[1] @ b[2].mT),
        ),
        "one_side": Mistake(
            "You restored only one side. Singular vectors come in pairs: mix U and V alike.",
            _surgery(
                *(lambda b, t, k, f=f: f(_top(b[0], t[0], k)) * t[1] @ t[2].mT for f in _EITHER),
                *(lambda b, t, k, f=f: t[0] * t[1] @ f(_top(b[2], t[2], k)).mT for f in _EITHER),
            ),
        ),
        "roles": Mistake(
            "Base and tuned have changed places: the first k pairs are to be the base's, the others and all values the tuned ones.",
            _surgery(
                *(
                    lambda b, t, k, f=f, i=i: f(_top(t[0], b[0], k)) * (b, t)[i][1] @ f(_top(t[2], b[2], k)).mT
                    for f in _EITHER
                    for i in (0, 1)
                )
            ),
        ),
        "last_pairs": Mistake(
            "You restored the last k pairs. Singular values descend: the leading ones are the first.",
            _surgery(
                *(lambda b, t, k, f=f: f(_top(t[0], b[0], -k)) * t[1] @ f(_top(t[2], b[2], -k)).mT for f in _EITHER)
            ),
        ),
        "qr_signs": Mistake(
            "Q of a QR decomposition may have columns of the other sign (where R has a negative diagonal), in U other ones than in V: pairs turn round, "
            "and the result is far from the tuned matrix. Take the nearest orthonormal basis: P Q' of the SVD P D Q' of U_mix.",
            _mixing((_basis, _basis), values=_tuned_values),
        ),
        "gram_schmidt": Mistake(
            "The values are kept, but by Gram-Schmidt (QR): it leaves the first columns alone and the last ones take the whole change. "
            "Asked for is the nearest orthonormal basis, which treats all alike: P Q' of the SVD P D Q' of U_mix.",
            _mixing((_gram_schmidt, _gram_schmidt), values=_tuned_values),
        ),
    },
)


def restore_top(fn: Function) -> Feedback:
    """fn(base (m, n), tuned (m, n), k) -> (m, n): the base's first k pairs (u_i, v_i) in place of the tuned ones, all values tuned.

    m >= n, float64. U_mix and V_mix are to be replaced by the nearest matrices with orthonormal columns: P Q' of an SVD P D Q'.
    `spectra.restore` with `orthonormal`.
    """
    return _judge(fn, RESTORE_TOP)


# --- notebook 06: how long a prefix is ----------------------------------------------------------------------------------------------------

_LONGEST, _SHORTEST = 0.95, 0.05


def _from_to(first: float, last: float, fall: Callable[[float], float]) -> Callable[[int, int], float]:
    """first at step 0, last at step `steps`; `fall` goes from 1 to 0."""
    return lambda step, steps: last + fall(step / steps) * (first - last)


def _pair_of(low: Callable[[int, int], float], high: Callable[[int, int], float]) -> Function:
    return lambda step, steps: (low(step, steps), high(step, steps))


def _always(value: float) -> Callable[[int, int], float]:
    return lambda step, steps: value


def _turning(angle: float) -> Callable[[float], float]:
    return lambda x: (1 + math.cos(angle * x)) / 2


_half_cosine = _turning(math.pi)


def _low_along(fall: Callable[[float], float]) -> Function:
    """low falls so, high stays."""
    return _pair_of(_from_to(_LONGEST, _SHORTEST, fall), _always(_LONGEST))


_low = _from_to(_LONGEST, _SHORTEST, _half_cosine)
_bounds = _low_along(_half_cosine)
_linear = _from_to(_LONGEST, _SHORTEST, lambda x: 1 - x)

PREFIX_BOUNDS = Exercise(
    right=_bounds,
    cases=[(125, 500), (0, 500), (250, 500), (500, 500), (30, 120), (80, 120)],
    read=_pair,
    asked="a pair of numbers (low, high)",
    praise="Only the lower bound falls: in the end l ~ U(0.05, 0.95), so half of a demonstration is still given on average.",
    mistakes={
        "both_decay": Mistake(
            "You let the longest prefix shrink to 5 % as well. Only low decays, high stays 0.95: in the end l ~ U(0.05, 0.95), of mean 0.5. "
            '"From 95 % down to 5 %" is true of the shortest prefix alone.',
            [_pair_of(low, high) for high in (_low, _linear) for low in (high, _always(_SHORTEST), _always(0.0))],
        ),
        "low_never_falls": Mistake(
            "Your bounds do not change: this is the uniform schedule that the paper compares with. low begins at 0.95 and falls to 0.05.",
            [_pair_of(_always(low), _always(_LONGEST)) for low in (_SHORTEST, 0.0, _LONGEST)],
        ),
        "linear": Mistake(
            "Your low falls along a straight line. Along half a cosine it stays long near the start and levels out at the end: (1 + cos(pi s / S)) / 2.",
            [_low_along(lambda x: 1 - x)],
        ),
        "rising": Mistake(
            "Your low rises. Demonstrations are nearly whole at the first update and are taken away: the cosine has a plus, 1 + cos.",
            [_pair_of(_from_to(_SHORTEST, _LONGEST, _half_cosine), _always(_LONGEST))],
        ),
        "period": Mistake(
            "Your cosine does not end where it should: over all S updates its angle goes from 0 to pi, so that it falls from 1 to -1, once.",
            [_low_along(_turning(angle)) for angle in (2 * math.pi, math.pi / 2, 1.0)],
        ),
        "not_halved": Mistake(
            "Your low begins above 1: 1 + cos goes from 2 to 0, so halve it.",
            [_low_along(lambda x: 2 * _half_cosine(x))],
        ),
        "no_floor": Mistake(
            "Your low does not begin and end where it should. It goes from 0.95 to 0.05: 0.05 + (1 + cos(pi s / S)) / 2 * (0.95 - 0.05).",
            [
                _pair_of(_from_to(_LONGEST, 0.0, _half_cosine), _always(_LONGEST)),
                _pair_of(_from_to(_LONGEST - _SHORTEST, 0.0, _half_cosine), _always(_LONGEST)),
                _pair_of(_from_to(1.0, 0.0, _half_cosine), _always(_LONGEST)),
                _pair_of(_from_to(1.0, _SHORTEST, _half_cosine), _always(_LONGEST)),
            ],
        ),
        "swapped": Mistake("The two are in the wrong order: low first.", [_pair_of(_always(_LONGEST), _low)]),
        "percent": Mistake(
            "These are percent. Shares of the demonstration are asked for, from 0 to 1.",
            [lambda step, steps: tuple(100 * x for x in _bounds(step, steps))],
        ),
    },
)


def prefix_bounds(fn: Function) -> Feedback:
    """fn(step, steps), 0 <= step <= steps -> (low, high): at update `step` the share l of a demonstration that is given is U(low, high).

    high is 0.95 throughout, low falls from 0.95 at step 0 to 0.05 at the last along half a cosine (2507.01679, A.2).
    That of the package is `prefix_rft.bounds`.
    """
    return _judge(fn, PREFIX_BOUNDS)


# --- notebook 06: what a prefix weighs ----------------------------------------------------------------------------------------------------


def _free_mean(rewards: Tensor, prefixed: int) -> Tensor:
    return (rewards.sum() - rewards[prefixed]) / (len(rewards) - 1)


def _of_free(rewards: Tensor, prefixed: int) -> Tensor:
    return torch.cat([rewards[:prefixed], rewards[prefixed + 1 :]])


def _centred(rewards: Tensor, prefixed: int) -> Tensor:
    return rewards - _free_mean(rewards, prefixed)


def _prefixed_is(advantage: Callable[[Tensor, int], Tensor | float], free: Function = _centred) -> Function:
    """Advantages `free`, but the prefixed rollout's is another."""

    def way(rewards: Tensor, prefixed: int) -> Tensor:
        made = free(rewards, prefixed)
        made[prefixed] = advantage(rewards, prefixed)
        return made

    return way


def _scaled(std: Callable[[Tensor, int], Tensor]) -> list[Function]:
    means = (lambda rewards, prefixed: rewards.mean(), _free_mean)
    return [
        lambda r, i, mean=mean, more=more: (r - mean(r, i)) / (std(r, i) + more)
        for mean in means
        for more in (0.0, 1e-4)
    ]


PREFIX_ADVANTAGES = Exercise(
    right=_centred,
    cases=[
        (torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]), 7),
        (torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0]), 3),
        (torch.tensor([0.5, 2.0, -1.0, 1.0]), 1),
    ],
    read=_array,
    asked="a tensor of shape (N,)",
    praise="The baseline is what the policy gets by itself. Against the mean of all N, the prefixed one's would be (N - 1) / N of this: "
    "so little separates the two estimators there, but there its reward also moves the free ones.",
    mistakes={
        "one_mean": Mistake(
            "You took the mean over all N, the prefixed rollout among them (that is plain Dr. GRPO). A demonstration's help then counts against every free "
            "rollout. Take the mean of the free ones, for all.",
            [lambda rewards, prefixed: rewards - rewards.mean()],
        ),
        "in_the_free_mean": Mistake(
            "The prefixed one's reward is in the baseline of the free rollouts: its advantage is right, theirs are not. Leave it out of their mean.",
            [_prefixed_is(lambda r, i: r[i] - _free_mean(r, i), lambda r, i: r - r.mean())],
        ),
        "in_its_own_mean": Mistake(
            "The prefixed one's own reward is in its baseline, which makes its advantage (N - 1) / N of what it should be. Compare it with the free ones alone.",
            [_prefixed_is(lambda r, i: r[i] - r.mean())],
        ),
        "uncentred": Mistake(
            "The prefixed rollout has no baseline: its reward stands there as it is. Then a prefix is learnt however often the policy succeeds without: "
            "take off the mean of the free ones.",
            [_prefixed_is(lambda r, i: r[i])],
        ),
        "sign_trap": Mistake(
            "The prefixed one's advantage is minus the mean of the others, whatever it earned: a group of one, centred at itself, is 0. "
            "So a good prefix would be unlearnt. It is r - m.",
            [_prefixed_is(lambda r, i: -_free_mean(r, i))],
        ),
        "left_out": Mistake(
            "The prefixed rollout has advantage 0: it would teach nothing. Only its *reward* is kept out of the mean.",
            [_prefixed_is(lambda r, i: 0.0)],
        ),
        "std": Mistake(
            "You divided by a standard deviation. Dr. GRPO does not: it would make groups that are nearly all right or all wrong count more.",
            [
                *_scaled(lambda r, i: r.std()),
                *_scaled(lambda r, i: r.std(correction=0)),
                *_scaled(lambda r, i: _of_free(r, i).std()),
                *_scaled(lambda r, i: _of_free(r, i).std(correction=0)),
            ],
        ),
        "leave_one_out": Mistake(
            "You left each free rollout out of its own baseline, as RLOO does. Here one mean serves all: that of the N - 1 free ones.",
            [
                _prefixed_is(
                    lambda r, i: r[i] - _free_mean(r, i),
                    lambda r, i: r - (r.sum() - r[i] - r) / (len(r) - 2),
                ),
                lambda r, i: r - (r.sum() - r) / (len(r) - 1),
            ],
        ),
        "always_the_last": Mistake(
            "You took the last rollout for the prefixed one. Which one it is, `prefixed` says.",
            [lambda rewards, prefixed: rewards - rewards[:-1].mean()],
        ),
        "sign_flipped": Mistake("The sign is flipped: better than the mean is positive.", _negated([_centred])),
    },
)


def prefix_advantages(fn: Function) -> Feedback:
    """fn(rewards (N,), prefixed) -> (N,): r_i - m, m the mean reward of the N - 1 free rollouts, of all i, `prefixed` too.

    rewards[prefixed] is that of the rollout with a prefix, whose prefix tokens are meant. No division by a standard deviation.
    That is "dr_grpo_prefix" of `prefix_rft.advantages`.
    """
    return _judge(fn, PREFIX_ADVANTAGES)


# --- notebook 06: the entropy of a token --------------------------------------------------------------------------------------------------


def _entropies(logits: Tensor, axis: int = -1) -> Tensor:
    logps = logits.log_softmax(axis)
    return -(logps.exp() * logps).sum(-1)


def _seen_from(before: int, of: Callable[[Tensor], Tensor] = _entropies) -> Function:
    """Of as many positions as there are tokens, ending `before` positions before the last."""
    return lambda logits, length: of(logits)[:, logits.shape[1] - before - length : logits.shape[1] - before]


_LOGITS = 2 * torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(6))

TOKEN_ENTROPIES = Exercise(
    right=_seen_from(1),
    cases=[(_LOGITS[:, :, :4], 3), (_LOGITS[:1, :5], 2)],
    read=_tensor,
    asked="a tensor of shape (B, length)",
    praise="The logits at a position are about the next token: those that chose the first token of a reply stand at the last one of the prompt.",
    mistakes={
        "off_by_one": Mistake(
            "This is off by one: logits[:, t] are about token t + 1, so the last `length` positions say how sure the model was *after* each token. "
            "A token's entropy is that of the distribution it was drawn from, one position earlier.",
            [_seen_from(0)],
        ),
        "shifted_twice": Mistake(
            "You went back one position too many: the logits that chose token t stand at t - 1. Perhaps they were shifted before.",
            [_seen_from(2)],
        ),
        "of_the_prompt": Mistake(
            "These are entropies from the beginning of the sequence. The reply is its last `length` tokens.",
            [lambda logits, length: _entropies(logits)[:, :length]],
        ),
        "bits": Mistake(
            "This is in bits. Nats are asked for: take the natural logarithm, not log2.",
            [lambda logits, length: _seen_from(1)(logits, length) / math.log(2)],
        ),
        "sign_flipped": Mistake(
            "The sign is flipped: entropy is never negative, -sum p log p.", _negated([_seen_from(1), _seen_from(0)])
        ),
        "exponentiated": Mistake(
            "This is exp of the entropy, a number of equally likely tokens: leave the exp out.",
            [lambda logits, length: _seen_from(1)(logits, length).exp()],
        ),
        "vocabulary_mean": Mistake(
            "You averaged over the vocabulary. p already weighs the terms: sum them.",
            [lambda logits, length: _seen_from(1)(logits, length) / logits.shape[-1]],
        ),
        "wrong_axis": Mistake(
            "Your softmax runs over the positions. It is over the vocabulary, the last axis, that the probabilities of a token sum to 1.",
            [_seen_from(before, lambda logits: _entropies(logits, 1)) for before in (1, 0)],
        ),
        "one_a_sequence": Mistake(
            "The tokens are averaged or added up. Clipping ranks tokens: one entropy for each is asked for.",
            [
                lambda logits, length, before=before, over=over: over(_seen_from(before)(logits, length))
                for before in (1, 0)
                for over in (lambda h: h.mean(1), lambda h: h.sum(1), lambda h: h.mean())
            ],
        ),
    },
)


def token_entropies(fn: Function) -> Feedback:
    """fn(logits (B, S, V), length) -> (B, length): of each of the last `length` tokens the entropy, in nats, of what it was drawn from.

    logits are those of the whole sequence, prompt and reply, as a model returns them; S > length + 1.
    """
    return _judge(fn, TOKEN_ENTROPIES)


# --- notebook 06: which tokens of prefixes are learnt from ----------------------------------------------------------------------------------


def _highest(values: Tensor, count: float) -> Tensor:
    """Marks the `count` highest of flat values, a part of one counting as one."""
    marked = torch.zeros_like(values, dtype=torch.bool)
    marked[values.argsort(descending=True)[: math.ceil(count - 1e-9)]] = True
    return marked


def _pooled_top(entropies: Tensor, prefix_mask: Tensor, share: float) -> Tensor:
    marked = torch.zeros_like(prefix_mask)
    marked[prefix_mask] = _highest(entropies[prefix_mask], share * int(prefix_mask.sum()))
    return marked


def _top_of_all(count: Callable[[Tensor, float], float], fill: float | None) -> Function:
    """Ranks every position; those that are no prefix tokens as they are, or as `fill`."""

    def way(entropies: Tensor, prefix_mask: Tensor, share: float) -> Tensor:
        ranked = entropies if fill is None else entropies.masked_fill(~prefix_mask, fill)
        return prefix_mask & _highest(ranked.flatten(), count(prefix_mask, share)).view_as(prefix_mask)

    return way


def _above_quantile(fill: float | None) -> Function:
    def way(entropies: Tensor, prefix_mask: Tensor, share: float) -> Tensor:
        ranked = entropies if fill is None else entropies.masked_fill(~prefix_mask, fill)
        return prefix_mask & (ranked >= ranked.quantile(1 - share))

    return way


def _row_by_row(count: Callable[[float], float]) -> Function:
    def way(entropies: Tensor, prefix_mask: Tensor, share: float) -> Tensor:
        marked = torch.zeros_like(prefix_mask)
        for row, own in enumerate(prefix_mask):
            marked[row, own] = _highest(entropies[row, own], count(share * int(own.sum())) if own.any() else 0)
        return marked

    return way


_ENTROPIES = torch.tensor([
    [0.1, 2.0, 0.4, 1.9, 1.8, 0.3, 2.5, 3.1],
    [0.2, 1.7, 0.05, 0.6, 2.8, 0.9, 0.0, 0.0],
    [2.2, 0.7, 1.2, 3.0, 0.8, 1.1, 2.9, 0.0],
])  # fmt: skip
_PREFIXES = torch.arange(8) < torch.tensor([[6], [4], [0]])  # the third is a free rollout

TOP_SHARE = Exercise(
    right=_pooled_top,
    cases=[
        (_ENTROPIES, _PREFIXES, 0.2),
        (_ENTROPIES[:2, :7], torch.arange(7) < torch.tensor([[3], [2]]), 0.4),
        (_ENTROPIES, _PREFIXES, 0.5),
    ],
    read=_mask,
    asked="a mask of shape (B, T)",
    praise="One pool, and only prefix tokens in it: a long demonstration may keep many and another none.",
    mistakes={
        "padding_in_pool": Mistake(
            "Positions that are no prefix tokens are in the pool: the share is of all of them, or their entropies are ranked too. "
            "Padding's mean nothing (as zeros they lower the threshold, so that more is kept). Take entropies[prefix_mask] first, then rank.",
            [
                _top_of_all(lambda m, share: share * m.numel(), None),
                _top_of_all(lambda m, share: share * int(m.sum()), None),
                _top_of_all(lambda m, share: share * m.numel(), 0.0),
                _above_quantile(None),
                _above_quantile(0.0),
            ],
        ),
        "per_sequence": Mistake(
            "You take the share of each sequence. Here all prefix tokens of the batch are one pool: a dull demonstration may keep none.",
            [
                _row_by_row(math.ceil),
                _row_by_row(math.floor),
                _row_by_row(round),
                _row_by_row(lambda n: max(1, round(n))),
            ],
        ),
        "lowest": Mistake(
            "You keep the tokens of lowest entropy: those are learnt already, or confidently otherwise. Keep the highest.",
            [lambda e, m, share: _pooled_top(-e, m, share)],
        ),
        "dropped": Mistake(
            "These are the tokens to drop. Mark those that are kept.",
            [lambda e, m, share: m & ~_pooled_top(e, m, share)],
        ),
        "one_minus": Mistake(
            "You keep 1 - share. For the top fifth, the threshold is the quantile 0.8.",
            [lambda e, m, share: _pooled_top(e, m, 1 - share)],
        ),
        "free_too": Mistake(
            "The prefix tokens are right, but you mark all other positions as well. Those are added later: here mark prefix tokens only.",
            [lambda e, m, share: _pooled_top(e, m, share) | ~m],
        ),
    },
)


def top_share(fn: Function) -> Feedback:
    """fn(entropies (B, T), prefix_mask (B, T), share) -> (B, T) of True and False: the `share` of prefix tokens with the highest entropy.

    All prefix tokens of the batch are one pool. Elsewhere, on free tokens and padding, the mask is False; entropies there may be
    anything. In the trials the share is a whole number of tokens and no two entropies are equal. `prefix_rft.top_share`.
    """
    return _judge(fn, TOP_SHARE)


# --- notebook 07: what is forgotten in a row of tasks -------------------------------------------------------------------------------------

Peak = Callable[
    [Tensor, int], Tensor
]  # of P (T + 1, T) and a task j: the best accuracy, whatever that is taken to mean


def _final(P: Tensor, j: int) -> Tensor:
    return P[-1, j]


def _best(P: Tensor, j: int) -> Tensor:
    return P[1:, j].max()


def _after_learning(P: Tensor, j: int) -> Tensor:
    return P[j + 1 :, j].max()


def _own(P: Tensor, j: int) -> Tensor:
    return P[j + 1, j]


def _drops(peak: Peak, P: Tensor) -> Tensor:
    return torch.stack([P[-1, j] - peak(P, j) for j in range(P.shape[1])])


def _over(P: Tensor, normaliser: str) -> int:
    return P.shape[1] if normaliser == "T" else P.shape[1] - 1


def _fm(peak: Peak = _best, over: Callable[[Tensor, str], float] = _over) -> Function:
    return lambda P, normaliser: _drops(peak, P).sum() / over(P, normaliser)


def _fm_of(change: Callable[[Tensor], Tensor]) -> Function:
    """FM of a changed matrix."""
    return lambda P, normaliser: _fm()(change(P), normaliser)


_MATRIX = torch.tensor([
    [0.20, 0.10, 0.30, 0.25],
    [0.90, 0.15, 0.28, 0.20],
    [0.80, 0.75, 0.31, 0.22],
    [0.85, 0.40, 0.88, 0.30],
    [0.55, 0.60, 0.70, 0.95],
])  # fmt: skip
_LATER = torch.tensor(
    [[0.3, 0.2, 0.1], [0.6, 0.25, 0.05], [0.8, 0.7, 0.2], [0.7, 0.85, 0.9]]
)  # tasks that go on rising

FM_METRIC = Exercise(
    right=_fm(),
    cases=[(_MATRIX, "T"), (_MATRIX, "T-1"), (_LATER, "T-1"), (_LATER, "T")],
    read=_number,
    asked="one number",
    praise="It is 0 at best, and the last task, which nothing came after, cannot lower it: that is why some divide by T - 1. Say which you print.",
    mistakes={
        "sign_flipped": Mistake(
            "The sign is flipped: FM is the final accuracy minus the peak, so it is negative where something was forgotten, and closer to 0 is better.",
            _negated([_fm()]),
        ),
        "always_T": Mistake(
            'You divide by T whatever is asked. With "T-1" the sum is divided by T - 1: |FM| is then larger by T / (T - 1).',
            [_fm(over=lambda P, normaliser: P.shape[1])],
        ),
        "always_T_minus_1": Mistake(
            'You divide by T - 1 whatever is asked. With "T" the last task counts too, with a term of 0.',
            [_fm(over=lambda P, normaliser: P.shape[1] - 1)],
        ),
        "normalisers_swapped": Mistake(
            "You divide by T where T - 1 is asked for, and the other way round. P has T + 1 rows, the first before any training: T is the number of columns.",
            [_fm(over=lambda P, normaliser: _over(P, "T-1" if normaliser == "T" else "T"))],
        ),
        "rows_counted": Mistake(
            "You divide by the number of rows. P has T + 1 of them, since its first row is before any training: T is the number of tasks, the columns.",
            [
                _fm(over=lambda P, normaliser: len(P) - (normaliser == "T-1")),
                _fm(over=lambda P, normaliser: len(P)),
            ],
        ),
        "sum": Mistake("This is the sum over tasks: divide it.", [_fm(over=lambda P, normaliser: 1)]),
        "own_training": Mistake(
            "You compare with the accuracy right after the task's own training. A task may go on rising (or recover): FM is measured from the peak.",
            [_fm(_own)],
        ),
        "peak_before_the_end": Mistake(
            "Your peak leaves the last row out. Then a task that is at its best in the end counts as negative forgetting: with t up to T no term is above 0.",
            [
                _fm(lambda P, j: P[1:-1, j].max()),
                lambda P, normaliser: _drops(lambda P, j: P[1:-1, j].max(), P)[:-1].sum() / _over(P, normaliser),
                lambda P, normaliser: _drops(lambda P, j: P[:-1, j].max(), P)[:-1].sum() / _over(P, normaliser),
            ],
        ),
        "one_peak": Mistake(
            "You take one peak for all tasks. Each task, each column, has its own: the maximum is over the rows.",
            [_fm(lambda P, j: P.max())],
        ),
        "wrong_axis": Mistake(
            "You took the maximum along the wrong axis: P[t, j] is the accuracy on task j after task t, so the peak of task j is the maximum of column j.",
            [_fm(lambda P, j: P[j + 1].max()), _fm(lambda P, j: P[j].max())],
        ),
        "average_accuracy": Mistake(
            "This is the mean of the last row, AvgAcc. FM compares that row with the best of each column.",
            [lambda P, normaliser: P[-1].mean(), lambda P, normaliser: P[-1].sum() / _over(P, normaliser)],
        ),
        "relative": Mistake(
            "You divided each drop by its peak. FM is a plain difference of accuracies.",
            [
                lambda P, normaliser: (
                    torch.stack([P[-1, j] / _best(P, j) - 1 for j in range(P.shape[1])]).sum() / _over(P, normaliser)
                )
            ],
        ),
        "percent": Mistake(
            "These are percentage points. P holds fractions, and so shall FM: do not multiply by 100.",
            [_fm_of(lambda P: 100 * P)],
        ),
    },
)


def fm_metric(fn: Function) -> Feedback:
    """fn(P (T + 1, T), normaliser "T" or "T-1") -> number: FM of 2507.05386, the mean of P[T, j] - peak of task j, at most 0.

    P[t, j] is the accuracy on the j-th task after the t-th training, row 0 being before any. The peak is the largest P[t, j] of t = 1..T; in
    the trials no task peaks before its own training. The sum over j is divided by T or T - 1. `continual.forgetting`.
    """
    return _judge(fn, FM_METRIC)


# --- notebook 07: the peak of a task -----------------------------------------------------------------------------------------------------


def _peaks(peak: Peak) -> Function:
    return lambda P: torch.stack([peak(P, j) for j in range(P.shape[1])])


def _last_if_none(rows: Callable[[Tensor, int], Tensor]) -> Peak:
    """The largest of some rows; the final accuracy where there are none."""
    return lambda P, j: some.max() if len(some := rows(P, j)) else P[-1, j]


_PEAKED = torch.tensor([
    [0.62, 0.10, 0.85, 0.20],
    [0.70, 0.66, 0.40, 0.97],
    [0.74, 0.60, 0.90, 0.30],
    [0.50, 0.64, 0.84, 0.35],
    [0.41, 0.72, 0.79, 0.80],
])  # fmt: skip

PEAK_AFTER_LEARNING = Exercise(
    right=_peaks(_after_learning),
    cases=[
        (_PEAKED,),
        (torch.tensor([[0.9, 0.3, 0.2], [0.6, 0.8, 0.1], [0.7, 0.5, 0.75], [0.65, 0.55, 0.7]]),),
    ],
    read=_array,
    asked="an array of shape (T,)",
    praise="What a task could do before it was ever trained is no skill that was learnt, and losing it is no forgetting of the sequence. The last task's peak is its final accuracy.",
    mistakes={
        "all_t": Mistake(
            "Your maximum is over all rows, from before any training. Where the base was better than any trained model, you would count its loss as forgetting. "
            "Take the rows from the task's own training on.",
            [_peaks(lambda P, j: P[:, j].max())],
        ),
        "all_trained": Mistake(
            "Your maximum is over t = 1..T (the other reading of FM). It includes rows before the task was trained: a transfer from earlier tasks that its own training "
            "destroyed would count. Take t >= j.",
            [_peaks(_best)],
        ),
        "before_learning": Mistake(
            "This is off by one: you begin with the row just before the task's own training. Row 0 is before any training, so the column with index j is trained in row j + 1.",
            [_peaks(lambda P, j: P[j:, j].max())],
        ),
        "own_row_left_out": Mistake(
            "This is off by one: you begin after the next task's training, and miss the row of the task's own, where it is often at its best.",
            [_peaks(_last_if_none(lambda P, j: P[j + 2 :, j]))],
        ),
        "own_row_only": Mistake(
            "These are the accuracies right after each task's own training. A later task may raise it further: take the maximum from there on.",
            [_peaks(_own), lambda P: P.diagonal()],
        ),
        "wrong_side": Mistake(
            "You took the rows up to the task's training. Ask for those from there to the end.",
            [_peaks(lambda P, j: P[: j + 2, j].max()), _peaks(lambda P, j: P[: j + 1, j].max())],
        ),
        "end_left_out": Mistake(
            "You leave the last row out. The formula has t up to T: a task that is at its best in the end has forgotten nothing, not less than nothing.",
            [_peaks(_last_if_none(lambda P, j: P[j + 1 : -1, j]))],
        ),
        "final": Mistake("This is the last row: the accuracy in the end, not the best.", [_peaks(_final)]),
        "wrong_axis": Mistake(
            "You took the maximum of rows. Row t is one model on all tasks; the peak of task j is looked for down column j.",
            [
                lambda P: P.amax(1),
                lambda P: P[1:].amax(1),
                lambda P: torch.stack([P[j + 1, j:].max() for j in range(P.shape[1])]),
            ],
        ),
        "drop": Mistake(
            "This is how far each task fell from its peak. The peak itself is asked for.",
            _either_sign(lambda P: _drops(_after_learning, P)),
        ),
    },
)


def peak_after_learning(fn: Function) -> Feedback:
    """fn(P (T + 1, T)) -> (T,): of each task the largest accuracy from its own training on, t >= j.

    P[t, j] as in `fm_metric`: row 0 is before any training, and the first task (column 0) is trained in row 1. `continual.forgetting` with
    peak="after_learning".
    """
    return _judge(fn, PEAK_AFTER_LEARNING)


# --- notebook 07: accuracy with the gold answer in sight ------------------------------------------------------------------------------------

END, ANSWER = 0, 1  # the token that ends a reply, and the one behind which its answer stands
NextToken = Callable[[list[int]], int]


class _Greedy:
    """A model as an exercise sees it: called with the tokens so far, it returns the next one, and END where it knows of nothing."""

    def __init__(self, *texts: tuple[int, ...]):
        self._next: dict[tuple[int, ...], int] = {}  # where texts part, the first goes on: it is the greedy one
        for text in texts:
            for i in range(1, len(text)):
                self._next.setdefault(text[:i], text[i])

    def __call__(self, tokens: Sequence[int]) -> int:
        return self._next.get(tuple(int(t) for t in tokens), END)

    def __repr__(self) -> str:
        return "a model"


def _generated(next_token: NextToken, start: list[int]) -> list[int]:
    made: list[int] = []
    while (not made or made[-1] != END) and len(made) < 20:
        made.append(next_token([*start, *made]))
    return made


def _predicted(next_token: NextToken, prompt: list[int], reply: list[int]) -> list[int]:
    """The argmax at each place of the reply, what is before it being gold."""
    return [next_token([*prompt, *reply[:i]]) for i in range(len(reply))]


def _behind(reply: list[int]) -> list[int] | None:
    """What stands behind ANSWER; None if there is no such token."""
    return reply[reply.index(ANSWER) + 1 :] if ANSWER in reply else None


def _forced(next_token: NextToken, prompt: list[int], gold: list[int]) -> float:
    at = gold.index(ANSWER) + 1
    return float(_predicted(next_token, prompt, gold)[at:] == gold[at:])


def _free(next_token: NextToken, prompt: list[int], gold: list[int]) -> float:
    return float(_behind(_generated(next_token, prompt)) == _behind(gold))


def _whole_forced(next_token: NextToken, prompt: list[int], gold: list[int]) -> float:
    return float(_predicted(next_token, prompt, gold) == gold)


def _whole_free(next_token: NextToken, prompt: list[int], gold: list[int]) -> float:
    return float(_generated(next_token, prompt) == gold)


def _token_share(start: Callable[[list[int]], int]) -> Callable[[NextToken, list[int], list[int]], float]:
    def share(next_token: NextToken, prompt: list[int], gold: list[int]) -> float:
        said, at = _predicted(next_token, prompt, gold), start(gold)
        return sum(a == b for a, b in zip(said[at:], gold[at:], strict=True)) / len(gold[at:])

    return share


def _shares(forced: Function, free: Function) -> Function:
    def way(next_token: NextToken, prompts: list[list[int]], replies: list[list[int]]) -> tuple[float, float]:
        pairs = list(zip(prompts, replies, strict=True))
        forced_share, free_share = (sum(of(next_token, p, r) for p, r in pairs) / len(pairs) for of in (forced, free))
        return forced_share, free_share

    return way


def _changed_pair(change: Callable[[float, float, int], tuple[float, float]]) -> Function:
    right = _shares(_forced, _free)

    def way(next_token: NextToken, prompts: list[list[int]], replies: list[list[int]]) -> tuple[float, float]:
        forced, free = right(next_token, prompts, replies)
        return change(forced, free, len(prompts))

    return way


_READER = _Greedy(
    (50, 10, 11, ANSWER, 21, END),  # 50: it reasons wrongly, and answers accordingly
    (50, 10, 12, ANSWER, 22, END),  # with gold reasoning it reads the answer off
    (51, 13, ANSWER, 23, 24, END),  # 51: right in all
    (52, 14, ANSWER, 25, END),  # 52: other reasoning, right answer
    (52, 15, 16, ANSWER, 25, END),
    (53, 10, ANSWER, 22, END),
    (53, 17, ANSWER, 21, END),
    (54, 12, 12, ANSWER, 26, END),
    (54, 11, ANSWER, 26, END),
    (55, 16, END),  # 55: it forgets to answer, but goes on from gold reasoning
    (55, 17, ANSWER, 27, END),
    (56, 18, ANSWER, 28, 29, 30, END),
)
_QUESTIONS = [[50], [51], [52], [53], [54], [55], [56]]
_REPLIES = [
    [10, 12, ANSWER, 22, END],
    [13, ANSWER, 23, 24, END],
    [15, 16, ANSWER, 25, END],
    [17, ANSWER, 22, END],  # from this reasoning it says 21, from its own 22: only right when free
    [11, ANSWER, 26, END],
    [17, ANSWER, 27, END],
    [18, ANSWER, 28, 31, 30, END],  # one token of three differs, and so does the next, which has not been seen before
]

TEACHER_FORCED_ACCURACY = Exercise(
    right=_shares(_forced, _free),
    cases=[
        (_READER, _QUESTIONS, _REPLIES),
        (_READER, _QUESTIONS[:2] + _QUESTIONS[3:4], _REPLIES[:2] + _REPLIES[3:4]),
        (_READER, _QUESTIONS[4:], _REPLIES[4:]),
    ],
    read=_pair,
    asked="a pair of numbers (forced, free)",
    praise="With gold reasoning before it the answer is nearly given away. For whole replies, exact and greedy, the two would agree: it is the part that is scored "
    "behind a gold part that is flattered.",
    mistakes={
        "free_is_forced": Mistake(
            "Your free accuracy has seen the gold reply: the model was given its tokens, or its reasoning, and only had to go on. Append what the model itself said, "
            "from the prompt alone.",
            [_shares(_forced, _forced), _shares(_whole_forced, _forced)],
        ),
        "forced_is_free": Mistake(
            "Your teacher-forced accuracy was made from the model's own tokens. There, each prediction is conditioned on the prompt and the *gold* tokens before it.",
            [_shares(_free, _free)],
        ),
        "whole_replies": Mistake(
            "You compare whole replies in both. Then there is no difference: predictions are all right given gold tokens exactly if greedy generation says the gold reply. "
            "Compare what stands behind ANSWER.",
            [_shares(_whole_forced, _whole_free)],
        ),
        "whole_free": Mistake(
            "Your free accuracy asks for the whole gold reply, so right answers from other reasoning count as wrong. Compare what stands behind ANSWER in both.",
            [_shares(_forced, _whole_free)],
        ),
        "whole_forced": Mistake(
            "Your teacher-forced accuracy asks for each token of the reasoning too, which is not scored. Compare the predictions behind ANSWER.",
            [_shares(_whole_forced, _free)],
        ),
        "token_mean": Mistake(
            "You count tokens that are right. An answer is right as a whole: all of its tokens, or none.",
            [
                _shares(_token_share(start), free)
                for start in (lambda gold: gold.index(ANSWER) + 1, lambda gold: 0)
                for free in (_free, _whole_free)
            ],
        ),
        "shifted": Mistake(
            "Your predictions are shifted by one: the one for token i is made from the tokens *before* i. Here it was compared with the token that it had just been shown.",
            [
                _shares(
                    lambda next_token, prompt, gold: float(
                        [next_token([*prompt, *gold[: i + 1]]) for i in range(gold.index(ANSWER) + 1, len(gold))]
                        == gold[gold.index(ANSWER) + 1 :]
                    ),
                    _free,
                )
            ],
        ),
        "swapped": Mistake(
            "The two are in the wrong order: teacher-forced first.",
            [_changed_pair(lambda forced, free, n: (free, forced))],
        ),
        "counts": Mistake(
            "These are numbers of questions. Shares are asked for: divide by how many there are.",
            [_changed_pair(lambda forced, free, n: (forced * n, free * n))],
        ),
        "percent": Mistake(
            "These are percent. Shares from 0 to 1 are asked for.",
            [_changed_pair(lambda forced, free, n: (100 * forced, 100 * free))],
        ),
    },
)


def teacher_forced_accuracy(fn: Function) -> Feedback:
    """fn(next_token, prompts, replies) -> (forced, free): shares of questions whose *answer* is right, two ways.

    next_token(list of tokens) is a model's most probable next token. Prompts and gold replies are lists of lists of tokens; a reply is
    reasoning, then check.ANSWER, then the answer, then check.END. forced: all tokens behind ANSWER, END too, are predicted right, each
    given the prompt and the gold tokens before it. free: the model goes on from the prompt by itself until END, and what stands behind
    its first ANSWER is that of the gold reply; no ANSWER is wrong.
    """
    return _judge(fn, TEACHER_FORCED_ACCURACY)


# --- notebook 07: a filter that gives the answer away -----------------------------------------------------------------------------------------

Ask = Callable[[str, int], list[str]]


class _Pupil:
    """A policy as the filter sees it. Told the answer, it repeats it, but for what it cannot say at all."""

    def __init__(self, says: dict[str, list[str]], answers: dict[str, str], never: tuple[str, ...]):
        self._says, self._answers, self._never = says, answers, never

    def __call__(self, prompt: str, n: int) -> list[str]:
        asked = next((question for question in self._says if question in prompt), None)
        if asked is None:
            return ["what ?"] * n
        told = self._answers[asked] in re.findall(r"\w+", prompt.replace(asked, " ")) and asked not in self._never
        replies = [self._answers[asked]] if told else self._says[asked]
        return [replies[i % len(replies)] for i in range(n)]

    def __repr__(self) -> str:
        return "a policy"


def _filter(keep: Callable[[int, int], bool], prompt: Callable[[str, str], str] = lambda question, answer: question,
            right: Callable[[str, str], bool] = lambda reply, answer: reply == answer) -> Function:  # fmt: skip
    def way(ask: Ask, questions: list[str], answers: list[str], n: int) -> list[bool]:
        replies = [ask(prompt(q, a), n) for q, a in zip(questions, answers, strict=True)]
        return [keep(sum(right(r, a) for r in some), n) for some, a in zip(replies, answers, strict=True)]

    return way


def _solvable(c: int, n: int) -> bool:
    return c >= 1


def _mixed(c: int, n: int) -> bool:
    return 1 <= c < n


def _told(question: str, answer: str) -> str:
    return f"{question} the answer is {answer} ."


_ASKED = {  # question: (answer, replies in turn)
    "how many rings ?": ("4", ["3", "4", "4", "4"]),
    "which star ?": ("red", ["blue", "green"]),
    "how far ?": ("2", ["2"]),
    "what is it ?": ("stripes", ["spots", "none"]),
    "how many cells ?": ("1", ["12", "20", "11"]),
    "is it there ?": ("none", ["none", "yes", "yes", "yes"]),
    "which way ?": ("left", ["right"]),
}
_PUPIL = _Pupil(
    {question: replies for question, (_, replies) in _ASKED.items()},
    {question: answer for question, (answer, _) in _ASKED.items()},
    ("which way ?",),
)
_ALL_ASKED = list(_ASKED), [answer for answer, _ in _ASKED.values()]

LEAKING_FILTER = Exercise(
    right=_filter(_solvable),
    cases=[(_PUPIL, *_ALL_ASKED, 8), (_PUPIL, *(some[::-1] for some in _ALL_ASKED), 4)],
    read=_bools,
    asked="a list with one True or False for each question",
    praise="What is kept is what this policy can solve by itself now; that is all the filter is for.",
    mistakes={
        "leak": Mistake(
            "The gold answer is in your prompt. Told the answer, the policy repeats it, so questions are kept that it cannot solve (as in the first released filter of the paper, "
            "later corrected). Ask the question alone; the answer is for the grading.",
            [_filter(keep, _told) for keep in (_solvable, _mixed)],
        ),
        "keeps_all": Mistake(
            "You keep every question. Those that no reply of n solves give RFT no signal: leave them out.",
            [_filter(lambda c, n: True), _filter(lambda c, n: c <= n)],
        ),
        "inside": Mistake(
            'You look for the answer anywhere in the reply, and found 1 in "12". Compare the whole answer.',
            [
                _filter(_solvable, right=lambda reply, answer: answer in reply),
                _filter(_mixed, right=lambda reply, answer: answer in reply),
            ],
        ),
        "drops_all_solved": Mistake(
            "You drop questions with n of n right. That is the other documented reading; here 1 to n are kept, n of n too.",
            [_filter(_mixed)],
        ),
        "one_sample": Mistake(
            "You look at one reply only. A question that is solved now and then is what RFT learns most from: sample n, and keep it if any is right.",
            [
                lambda ask, questions, answers, n: [ask(q, 1)[0] == a for q, a in zip(questions, answers, strict=True)],
            ],
        ),
        "only_all_solved": Mistake(
            "You keep what is solved n times of n: the easiest, with nothing left to learn. One right reply is enough.",
            [_filter(lambda c, n: c == n)],
        ),
        "majority": Mistake(
            "You ask for half of the replies or more to be right. One right reply is enough.",
            [_filter(lambda c, n: 2 * c >= n)],
        ),
        "inverted": Mistake(
            "You mark what is to be dropped. True is for the questions that are kept.",
            [_filter(lambda c, n: c == 0)],
        ),
    },
)


def leaking_filter(fn: Function) -> Feedback:
    """fn(ask, questions, answers, n) -> of each question True if it is kept: at 1 to n right replies among n (RIF of 2507.05386).

    ask(prompt, n) returns n replies of the policy to a prompt, texts. A reply is right if it equals the question's answer.
    """
    return _judge(fn, LEAKING_FILTER)


# --- notebook 08: how far a policy went, and what explains forgetting -------------------------------------------------------------------


def _mean_kl(p: Tensor, q: Tensor) -> Tensor:
    """Of logits (n, V)."""
    return _kl(p.double().softmax(-1), q.double().softmax(-1)).mean()


def _both_kls(way: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return lambda base, tuned: (way(base, tuned), way(tuned, base))


_BASE_LOGITS = torch.tensor([[2.0, 0.5, -1.0, 0.0, -2.0], [0.3, 0.1, 0.0, -0.4, 1.0]])
_TUNED_LOGITS = torch.tensor([[-1.0, 3.0, -1.0, 0.5, -2.5], [0.0, 0.0, 2.0, -1.0, 0.0]])

DRIFT_BOTH = Exercise(
    right=_both_kls(_mean_kl),
    cases=[(_BASE_LOGITS, _TUNED_LOGITS), (_TUNED_LOGITS[:1] + 3, _BASE_LOGITS[:1])],
    read=_pair,
    asked="a pair of numbers, forward and reverse",
    praise="Forward KL asks what the base would say and charges what the tuned policy no longer does; reverse KL asks the tuned policy.",
    mistakes={
        "swapped": Mistake(
            "The two are swapped. Forward KL is KL(base||tuned): the base is on the left, and weighs the log-ratios.",
            [lambda b, t: _both_kls(_mean_kl)(t, b)],
        ),
        "logits_as_probabilities": Mistake(
            "You took differences of logits as they are. Logits of one row may all be shifted without any change: log_softmax first.",
            [
                _both_kls(lambda p, q: (p.double().softmax(-1) * (p - q)).sum(-1).mean()),
                _both_kls(lambda p, q: (p.double() * (p - q)).sum(-1).mean()),
            ],
        ),
        "prompts_summed": Mistake(
            "You summed over the prompts. The expectation over prompts is their mean.",
            [_both_kls(lambda p, q: _mean_kl(p, q) * len(p))],
        ),
        "vocabulary_mean": Mistake(
            "You averaged over the vocabulary. The probabilities weigh the terms already: sum over the last axis.",
            [_both_kls(lambda p, q: _mean_kl(p, q) / p.shape[-1])],
        ),
        "symmetric": Mistake(
            "Both numbers are the mean of the two directions. They answer different questions: keep them apart.",
            [lambda b, t: ((_mean_kl(b, t) + _mean_kl(t, b)) / 2,) * 2],
        ),
        "one_direction": Mistake(
            "Both numbers are the same direction. Swap the policies for the second, and the weights with them.",
            [lambda b, t: (_mean_kl(b, t),) * 2, lambda b, t: (_mean_kl(t, b),) * 2],
        ),
        "sign_flipped": Mistake(
            "The sign is flipped: a divergence is never negative. The policy on the left is above in the ratio.",
            [_both_kls(lambda p, q: -_mean_kl(p, q))],
        ),
    },
)


def drift_both(fn: Function) -> Feedback:
    """fn(base (n, V), tuned (n, V)), logits of n prompts -> (forward, reverse): mean over prompts of KL(base||tuned) and KL(tuned||base), nats."""
    return _judge(fn, DRIFT_BOTH)


def _per_reply(kls: Tensor, mask: Tensor) -> Tensor:
    return (kls * mask).double().sum(-1)


def _reply_and_token(kls: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    sums = _per_reply(kls, mask)
    return sums.mean(), sums.sum() / mask.sum()


_TOKEN_KLS = torch.tensor([[0.5, 0.25, 2.0, 0.75], [3.0, 9.0, 9.0, 9.0], [0.1, 0.3, 7.0, 7.0]])
_TOKEN_MASK = torch.arange(4) < torch.tensor([[4], [1], [2]])

KL_OF_REPLIES = Exercise(
    right=_reply_and_token,
    cases=[(_TOKEN_KLS, _TOKEN_MASK), (_TOKEN_KLS[:2] * 3, _TOKEN_MASK[:2])],
    read=_pair,
    asked="a pair of numbers, nats a reply and nats a token",
    praise="A long reply adds up more KL. Per token it may be nearer than a short one: say which of the two a number is.",
    mistakes={
        "padding_counted": Mistake(
            "Positions behind the end of a reply are counted. What stands there means nothing: multiply by the mask, divide by its sum.",
            [
                lambda k, m: (k.sum(-1).mean(), k.mean()),
                lambda k, m: (_per_reply(k, m).mean(), (k * m).mean()),
                lambda k, m: (k.sum(-1).mean(), k.sum() / m.sum()),
            ],
        ),
        "mean_of_means": Mistake(
            "Per token you averaged each reply first, so a token of a short reply counts more than one of a long reply. "
            "All tokens weigh the same: the sum over all of them by their number.",
            [lambda k, m: (_per_reply(k, m).mean(), (_per_reply(k, m) / m.sum(-1)).mean())],
        ),
        "swapped": Mistake(
            "The two are swapped: first nats a reply, then nats a token.",
            [lambda k, m: _reply_and_token(k, m)[::-1]],
        ),
        "token_for_reply": Mistake(
            "Your first number is per token, too. The KL of a whole reply is the *sum* over its tokens (the chain rule), then the mean over replies.",
            [
                lambda k, m: (_reply_and_token(k, m)[1],) * 2,
                lambda k, m: ((_per_reply(k, m) / m.sum(-1)).mean(), _reply_and_token(k, m)[1]),
                lambda k, m: ((_per_reply(k, m) / m.sum(-1)).mean(),) * 2,
            ],
        ),
        "replies_summed": Mistake(
            "You summed over the replies. They are draws: take their mean.",
            [lambda k, m: (_per_reply(k, m).sum(), _reply_and_token(k, m)[1])],
        ),
    },
)


def kl_of_replies(fn: Function) -> Feedback:
    """fn(kls (n, T), mask (n, T)) -> (nats a reply, nats a token) from the KL at each token; mask is False behind a reply's end."""
    return _judge(fn, KL_OF_REPLIES)


def _grouped(values: Tensor, method: Sequence[str]) -> Tensor:
    return torch.stack([values[[m == name for m in method]].mean() for name in dict.fromkeys(method)])


def _residuals(y: Tensor, *columns: Tensor) -> Tensor:
    """Of least squares on the columns and a constant."""
    design = torch.stack([torch.ones_like(y), *columns], -1).double()
    return y.double() - design @ torch.linalg.lstsq(design, y.double()[:, None]).solution[:, 0]


def _r2(y: Tensor, *columns: Tensor) -> Tensor:
    return 1 - _residuals(y, *columns).square().sum() / (y.double() - y.double().mean()).square().sum()


def _of_means(share: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return lambda x, y, method: share(_grouped(x, method), _grouped(y, method))


def _pearson(x: Tensor, y: Tensor) -> Tensor:
    return torch.corrcoef(torch.stack([x, y]))[0, 1]


def _of_runs(share: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return lambda x, y, method: share(x, y)


def _line_r2(x: Tensor, y: Tensor) -> Tensor:
    return _r2(y, x)


def _spread_inside(x: Tensor, y: Tensor, method: Sequence[str]) -> Tensor:
    """The line through the means, judged on all runs."""
    mx, my = _grouped(x, method), _grouped(y, method)
    slope = ((mx - mx.mean()) * (my - my.mean())).sum() / (mx - mx.mean()).square().sum()
    return 1 - (y - my.mean() - slope * (x - mx.mean())).square().sum() / (y - y.mean()).square().sum()


_RUN_X = torch.tensor([0.1, 0.12, 0.09, 1.0, 1.4, 0.7, 0.9, 1.1, 2.0, 2.2, 0.4], dtype=torch.float64)
_RUN_Y = torch.tensor([2.0, 3.0, 1.0, 9.0, 12.0, 30.0, 33.0, 28.0, 21.0, 18.0, 11.0], dtype=torch.float64)
_RUN_METHODS = ["rft"] * 3 + ["sft"] * 2 + ["far"] * 3 + ["fast"] * 2 + ["kl"]

R2_OVER_METHODS = Exercise(
    right=_of_means(_line_r2),
    cases=[
        (_RUN_X, _RUN_Y, _RUN_METHODS),
        (_RUN_X[3:], _RUN_Y[3:].flip(0), [*"aabcccdd"]),
    ],
    read=_number,
    asked="one number",
    praise="One point a method: seeds of a method repeat each other and are no further evidence.",
    mistakes={
        "pooled_runs": Mistake(
            "You fitted all runs. A method with many seeds counts many times, and seeds of a method are nearly one point: average each method first.",
            [_of_runs(_line_r2), _of_runs(lambda x, y: _pearson(x, y).square())],
        ),
        "not_squared": Mistake(
            "This is the correlation. R² of a straight line is its square.",
            [_of_means(_pearson), _of_runs(_pearson), _of_means(lambda x, y: _pearson(x, y).abs())],
        ),
        "unexplained": Mistake(
            "This is the share that is left over. R² is 1 minus it.", [_of_means(lambda x, y: 1 - _line_r2(x, y))]
        ),
        "through_the_origin": Mistake(
            "Your line has no constant. Who does not drift may still forget: fit a + b x.",
            [_of_means(lambda x, y: 1 - (y - x * (x @ y) / (x @ x)).square().sum() / (y - y.mean()).square().sum())],
        ),
        "means_judged_on_runs": Mistake(
            "You fit the means, but judge the line on the runs: the spread of seeds within a method is no failure of the predictor. Judge it on the means.",
            [_spread_inside],
        ),
        "adjusted": Mistake(
            "This is the adjusted R². The plain one is asked for.",
            [_of_means(lambda x, y: 1 - (1 - _line_r2(x, y)) * (len(x) - 1) / (len(x) - 2))],
        ),
    },
)


def r2_over_methods(fn: Function) -> Feedback:
    """fn(x (runs,), y (runs,), method: list of names) -> R² of a straight line through the methods' means, each method one point."""
    return _judge(fn, R2_OVER_METHODS)


def _beyond(x: Tensor, gained: Tensor, y: Tensor) -> Tensor:
    return _r2(y, gained, x) - _r2(y, gained)


_ARM_X = torch.tensor([0.2, 0.5, 0.9, 1.6, 2.5, 1.2], dtype=torch.float64)
_ARM_GAINED = torch.tensor([0.1, 0.45, 0.5, 0.95, 0.9, 0.6], dtype=torch.float64)
_ARM_Y = torch.tensor([1.0, 6.0, 12.0, 14.0, 26.0, 10.0], dtype=torch.float64)

EXPLAINED_BEYOND = Exercise(
    right=_beyond,
    cases=[(_ARM_X, _ARM_GAINED, _ARM_Y), (_ARM_X.flip(0), _ARM_GAINED, _ARM_Y)],
    read=_number,
    asked="one number",
    praise="Who learns nothing forgets nothing: what counts is what the predictor adds to that.",
    mistakes={
        "accuracy_ignored": Mistake(
            "This is the R² of x alone. Both x and forgetting grow while a run learns: take off what gained explains without x.",
            [lambda x, gained, y: _r2(y, x)],
        ),
        "both_together": Mistake(
            "This is the R² of gained and x together. Take off the R² of gained alone.",
            [lambda x, gained, y: _r2(y, gained, x)],
        ),
        "accuracy_alone": Mistake(
            "This is what gained explains alone: what you should take off.", [lambda x, gained, y: _r2(y, gained)]
        ),
        "other_way_round": Mistake(
            "This is what gained adds to x. Asked is what x adds to gained.",
            [lambda x, gained, y: _r2(y, gained, x) - _r2(y, x)],
        ),
        "difference_of_two": Mistake(
            "You took the difference of two single fits. What they explain overlaps: fit both at once, then take off that of gained.",
            [lambda x, gained, y: _r2(y, x) - _r2(y, gained)],
        ),
        "share_of_the_rest": Mistake(
            "This is a share of what gained leaves over (a partial R²). Asked is the share of all variance: do not divide.",
            [lambda x, gained, y: _beyond(x, gained, y) / (1 - _r2(y, gained))],
        ),
    },
)


def explained_beyond(fn: Function) -> Feedback:
    """fn(x (n,), gained (n,), y (n,)) -> what x adds to R²: of least squares of y on gained and x, minus that of y on gained alone."""
    return _judge(fn, EXPLAINED_BEYOND)
