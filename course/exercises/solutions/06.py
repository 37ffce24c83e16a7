"""Solutions of notebook 06. Each function stands alone; the copies for learners begin with the imports below."""

import math

import torch


def prefix_bounds(step, steps):
    fall = (1 + math.cos(math.pi * step / steps)) / 2  # from 1 to 0 along half a cosine
    return 0.05 + 0.9 * fall, 0.95


def prefix_advantages(rewards, prefixed):
    free = torch.arange(len(rewards)) != prefixed  # the demonstration's success says nothing of how hard the prompt is
    return rewards - rewards[free].mean()


def token_entropies(logits, length):
    logps = logits[:, -length - 1 : -1].log_softmax(-1)  # logits[:, t] are what token t + 1 is drawn from
    return -(logps.exp() * logps).sum(-1)


def top_share(entropies, prefix_mask, share):
    pool = entropies[prefix_mask]  # what is no prefix token is neither counted nor ranked
    top = pool.topk(round(share * len(pool))).indices
    kept = torch.zeros_like(pool, dtype=torch.bool)
    kept[top] = True
    return torch.zeros_like(prefix_mask).masked_scatter(prefix_mask, kept)
