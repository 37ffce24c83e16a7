"""Solutions of notebook 08. Each function stands alone; the copies for learners begin with the imports below."""

import numpy as np


def drift_both(base, tuned):
    p, q = base.log_softmax(-1), tuned.log_softmax(-1)
    forward = (p.exp() * (p - q)).sum(-1).mean()  # the base on the left
    reverse = (q.exp() * (q - p)).sum(-1).mean()
    return float(forward), float(reverse)


def kl_of_replies(kls, mask):
    kept = kls[mask].sum()  # what stands behind a reply's end means nothing
    return float(kept / len(kls)), float(kept / mask.sum())


def r2_over_methods(x, y, method):
    names = np.array(method)
    x, y = (np.array([np.asarray(v)[names == name].mean() for name in sorted(set(method))]) for v in (x, y))
    return np.corrcoef(x, y)[0, 1] ** 2  # of a straight line with a constant


def explained_beyond(x, gained, y):
    def share(*columns):
        design = np.stack([np.ones(len(y)), *map(np.asarray, columns)], 1)
        rest = np.asarray(y) - design @ np.linalg.lstsq(design, np.asarray(y), rcond=None)[0]
        return 1 - rest.var() / np.asarray(y).var()

    return share(gained, x) - share(gained)
