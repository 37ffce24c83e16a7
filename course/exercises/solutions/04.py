"""Solutions of notebook 04. Each function stands alone; they need no imports."""


def keep_correct(group):
    return list({rollout.text: rollout for rollout in group if rollout.correct}.values())  # one of each text


def instance_filter(correct, n):
    return [count > 0 for count in correct]  # only what the model never solves is dropped; n of n stays


def matched_drop(steps, new, prior, target):
    reached = (new >= target).nonzero()[0]
    if not len(reached):
        return None  # it never gets there: 0 would say that it got there and lost nothing
    i = reached[0]
    if i == 0:
        return 0.0
    part = (target - new[i - 1]) / (new[i] - new[i - 1])  # of the way from the evaluation before to this one
    return 100 * (prior[0] - (prior[i - 1] + part * (prior[i] - prior[i - 1])))
