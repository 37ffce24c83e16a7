"""The exercises of notebook 08: right answers pass, and each mistake, made by code that shares nothing with check.py, is named."""

import importlib.util

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from rftkit import check, drift, exercises

CHECKS = (check.drift_both, check.kl_of_replies, check.r2_over_methods, check.explained_beyond)


def exercise(of):
    return getattr(check, of.__name__.upper())


@pytest.fixture(scope="module")
def solutions():
    path = exercises.FOLDER / "solutions" / "08.py"
    spec = importlib.util.spec_from_file_location("solutions_08", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def torch_kl(p, q, reduction="sum"):
    return F.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction=reduction)


def both(one):
    return lambda b, t: (one(b, t), one(t, b))


def means(method, *values):
    names = sorted(set(method))
    return [
        np.array([np.mean([float(v) for v, m in zip(value, method, strict=True) if m == name]) for name in names])
        for value in values
    ]


def line(x, y):
    return stats.linregress(np.asarray(x), np.asarray(y)).rvalue


def share(y, *columns):
    fit = np.linalg.lstsq(np.stack([np.ones(len(y)), *(c.numpy() for c in columns)], 1), y.numpy(), rcond=None)
    return 1 - float(fit[1][0]) / float(((y - y.mean()) ** 2).sum())


def replies(per_reply, per_token):
    return lambda k, m: (per_reply(k, m), per_token(k, m))


def reply(k, m):
    return float(
        np.mean([sum(x for x, ok in zip(r.tolist(), o.tolist(), strict=True) if ok) for r, o in zip(k, m, strict=True)])
    )


def token(k, m):
    return k[m].mean()


def each_token(k, m):
    return torch.stack([r[o].mean() for r, o in zip(k, m, strict=True)]).mean()


RIGHT = [
    (check.drift_both, both(lambda p, q: torch_kl(p, q, "batchmean"))),
    (check.drift_both, lambda b, t: [float(drift.kl(b, t).mean()), float(drift.kl(t, b).mean())]),
    (check.kl_of_replies, replies(reply, token)),
    (check.kl_of_replies, lambda k, m: np.array([reply(k, m), float(token(k, m))])),
    (check.r2_over_methods, lambda x, y, method: line(*means(method, x, y)) ** 2),
    (check.explained_beyond, lambda x, g, y: share(y, x, g) - share(y, g)),
]
WRONG = [
    (check.drift_both, "swapped", lambda b, t: (torch_kl(t, b, "batchmean"), torch_kl(b, t, "batchmean"))),
    (check.drift_both, "logits_as_probabilities", both(lambda p, q: (p.softmax(-1) * (p - q)).sum() / len(p))),
    (check.drift_both, "prompts_summed", both(torch_kl)),
    (check.drift_both, "vocabulary_mean", both(lambda p, q: torch_kl(p, q, "mean"))),
    (
        check.drift_both,
        "symmetric",
        lambda b, t: ((torch_kl(b, t, "batchmean") + torch_kl(t, b, "batchmean")) / 2,) * 2,
    ),
    (check.drift_both, "one_direction", lambda b, t: (torch_kl(b, t, "batchmean"),) * 2),
    (check.drift_both, "sign_flipped", both(lambda p, q: -torch_kl(p, q, "batchmean"))),
    (check.kl_of_replies, "padding_counted", replies(lambda k, m: k.sum(1).mean(), lambda k, m: k.mean())),
    (check.kl_of_replies, "mean_of_means", replies(reply, each_token)),
    (check.kl_of_replies, "swapped", replies(token, reply)),
    (check.kl_of_replies, "token_for_reply", replies(each_token, token)),
    (check.kl_of_replies, "replies_summed", replies(lambda k, m: k[m].sum(), token)),
    (check.r2_over_methods, "pooled_runs", lambda x, y, method: line(x, y) ** 2),
    (check.r2_over_methods, "not_squared", lambda x, y, method: line(*means(method, x, y))),
    (check.r2_over_methods, "unexplained", lambda x, y, method: 1 - line(*means(method, x, y)) ** 2),
    (check.r2_over_methods, "through_the_origin", lambda x, y, method: _origin(*means(method, x, y))),
    (check.r2_over_methods, "means_judged_on_runs", lambda x, y, method: _judged_on(x, y, *means(method, x, y))),
    (
        check.r2_over_methods,
        "adjusted",
        lambda x, y, method: _adjusted(line(*means(method, x, y)) ** 2, len(set(method))),
    ),
    (check.explained_beyond, "accuracy_ignored", lambda x, g, y: share(y, x)),
    (check.explained_beyond, "both_together", lambda x, g, y: share(y, g, x)),
    (check.explained_beyond, "accuracy_alone", lambda x, g, y: share(y, g)),
    (check.explained_beyond, "other_way_round", lambda x, g, y: share(y, g, x) - share(y, x)),
    (check.explained_beyond, "difference_of_two", lambda x, g, y: share(y, x) - share(y, g)),
    (check.explained_beyond, "share_of_the_rest", lambda x, g, y: (share(y, g, x) - share(y, g)) / (1 - share(y, g))),
]


def _origin(x, y):
    slope = np.linalg.lstsq(x[:, None], y, rcond=None)[0][0]
    return 1 - ((y - slope * x) ** 2).sum() / ((y - y.mean()) ** 2).sum()


def _judged_on(x, y, mx, my):
    fit = np.polynomial.Polynomial.fit(mx, my, 1)
    x, y = x.numpy(), y.numpy()
    return 1 - ((y - fit(x)) ** 2).sum() / ((y - y.mean()) ** 2).sum()


def _adjusted(r2, n):
    return 1 - (1 - r2) * (n - 1) / (n - 2)


@pytest.mark.parametrize("of", CHECKS, ids=lambda c: c.__name__)
def test_solutions_pass(of, solutions):
    found = of(getattr(solutions, of.__name__))
    assert found.passed, found.message
    stub = of(lambda *a: None)
    assert not stub.passed and stub.mistake is None


@pytest.mark.parametrize(("of", "fn"), RIGHT)
def test_right_answers_pass(of, fn):
    found = of(fn)
    assert found.passed, found.message


@pytest.mark.parametrize(("of", "mistake", "fn"), WRONG, ids=lambda v: v if isinstance(v, str) else "")
def test_wrong_answers_are_told_their_mistake(of, mistake, fn):
    found = of(fn)
    assert not found.passed and found.mistake == mistake, found.message


def test_every_mistake_was_made():
    for of in CHECKS:
        assert {name for check_, name, _ in WRONG if check_ is of} == set(exercise(of).mistakes)
