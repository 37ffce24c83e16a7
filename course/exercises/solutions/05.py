"""Solutions of notebook 05. Each function stands alone; the copies for learners begin with the imports below."""

import torch


def subspace_distance(U, V):
    cosines_squared = (U.T @ V).square().sum()  # summed over the principal angles, whichever bases span the subspaces
    return (1 - cosines_squared / U.shape[1]).clamp(min=0).sqrt()  # rounding may leave -1e-16


def principal_angles(A, B):
    Qa, Qb = torch.linalg.qr(A.double()).Q, torch.linalg.qr(B.double()).Q
    shared = Qa.T @ Qb
    cosines = torch.linalg.svdvals(shared)
    sines = torch.linalg.svdvals(Qb - Qa @ shared).flip(
        0
    )  # of what sticks out of A's span; flipped: small angles first
    return torch.atan2(sines, cosines)  # near 0 the sine tells the angle, near a right angle the cosine


def trivial_zeros(n, k):
    return max(0, 2 * k - n)  # dim(A and B) = 2k - dim(A + B), and A + B has n dimensions at most


def restore_top(base, tuned, k):
    def nearest(X):
        P, _, Qh = torch.linalg.svd(X, full_matrices=False)
        return P @ Qh

    Ub, _, Vbh = torch.linalg.svd(base, full_matrices=False)
    Ut, S, Vth = torch.linalg.svd(tuned, full_matrices=False)
    U = nearest(torch.cat([Ub[:, :k], Ut[:, k:]], 1))  # columns of two bases are not orthogonal to each other
    V = nearest(torch.cat([Vbh[:k], Vth[k:]]).T)
    return U * S @ V.T
