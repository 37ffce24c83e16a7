"""Solutions of notebook 07. Each function stands alone; the copies for learners begin with the imports below."""

import torch

from rftkit import check


def fm_metric(P, normaliser):
    drops = P[-1] - P[1:].amax(0)  # row 0 is before any training
    return drops.sum() / (P.shape[1] - (normaliser == "T-1"))


def peak_after_learning(P):
    return torch.stack([P[j + 1 :, j].max() for j in range(P.shape[1])])


def teacher_forced_accuracy(next_token, prompts, replies):
    forced = free = 0
    for prompt, gold in zip(prompts, replies, strict=True):
        at = gold.index(check.ANSWER) + 1
        forced += all(next_token([*prompt, *gold[:i]]) == gold[i] for i in range(at, len(gold)))
        own = []  # what the model itself says, and nothing of the gold reply
        while len(own) < 20 and check.END not in own:
            own.append(next_token([*prompt, *own]))
        free += check.ANSWER in own and own[own.index(check.ANSWER) + 1 :] == gold[at:]
    return forced / len(prompts), free / len(prompts)


def leaking_filter(ask, questions, answers, n):
    return [answer in ask(question, n) for question, answer in zip(questions, answers, strict=True)]
