"""Metrology of weight changes: singular values and subspaces before and after, each beside the change that means nothing.

2509.12235 reads fine-tuning as "singular values stay, singular vectors rotate". To first order d sigma_i = u_i' dW v_i, so of any
small dW without a preference only 1/max(m, n) of the energy moves values: the reading needs nulls. Five are here:

- the matched-norm random update: what a Gaussian dW of the same Frobenius norm does to the same matrix;
- the float floor: what rounding to the stored precision does;
- the chance level: subspaces that have nothing to do with each other;
- the trivial zeros: directions that two large subspaces of a small space must share;
- the Marchenko-Pastur law: the spectrum of a matrix that was only ever initialised.

Then surgery on one matrix (swaps, restorations and their controls), and the scan of whole models. Arithmetic is in float64.
Words: W is (m, n), W = U S V', singular values descend, angles are in radians, left is U (in R^m), right is V (in R^n).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import statistics
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from rftkit import runs
from rftkit.config import BUNDLED, BUNDLED_DIR, CARDS, CARDS_DIR, UserError

_RANK = 1e-7  # singular values below this part of the largest are rounding in a float64 Gram matrix: their vectors are noise
_TRACY_WIDOM = 3.5  # about the 99.9 % point of the Tracy-Widom law of order 1

# --- angles ----------------------------------------------------------------------------------------------------------------


def principal_angles(a: Tensor, b: Tensor) -> Tensor:
    """Angles between the spans of orthonormal columns a (n, k) and b (n, l): min(k, l) radians, ascending, float64.

    Bjorck and Golub (1973): large ones from the cosines, the singular values of a'b, small ones from the sines, those of
    b - a a'b, since arccos near 1 turns a rounding error e into an angle of sqrt(2 e).
    Raises UserError unless both live in the same space and have orthonormal columns.
    """
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b):
        raise UserError(f"Bases {tuple(a.shape)} and {tuple(b.shape)} have no angles: pass (n, k) and (n, l).")
    a, b = (a.double(), b.double()) if a.shape[1] >= b.shape[1] else (b.double(), a.double())
    for basis in (a, b):
        if not (basis.T @ basis - torch.eye(basis.shape[1], dtype=basis.dtype)).abs().max() < 1e-5:
            raise UserError("A basis has columns that are not orthonormal: take the Q of torch.linalg.qr.")
    cosines = a.T @ b
    sines = torch.linalg.svdvals(b - a @ cosines).flip(0).clamp(max=1)
    cosines = torch.linalg.svdvals(cosines).clamp(max=1)
    return torch.where(cosines**2 > 0.5, sines.asin(), cosines.acos()).sort().values


def trivial_zeros(n: int, k: int, other: int) -> int:
    """How many directions a k- and an l-dimensional subspace (l = `other`) of R^n share whatever they are: max(0, k + l - n)."""
    if not 1 <= min(k, other) <= max(k, other) <= n:
        raise UserError(f"Subspaces of {k} and {other} dimensions do not fit into {n}: pass sizes of 1 to n.")
    return max(0, k + other - n)


@dataclass(frozen=True)
class Chance:
    """Two independent uniform k-subspaces of R^n: smallest angle (limit of large n at fixed k/n), mean square of all sines, its root."""

    smallest: float
    chordal: float


def chance_angles(n: int, k: int) -> Chance:
    """Chance level: smallest angle arccos sqrt(4c(1-c)) for c = k/n <= 1/2 (0 above), |P - Q|_F / sqrt(2k) = sqrt(1-c).

    The second is exact at every n, as a root mean square: E tr PQ = k^2/n. The first is the edge of Wachter's law (1980).
    """
    trivial_zeros(n, k, k)
    c = k / n
    return Chance(math.acos(min(1.0, math.sqrt(4 * c * (1 - c)))) if c < 0.5 else 0.0, math.sqrt(1 - c))


def simulate_chance(n: int, k: int, draws: int, seed: int) -> Tensor:
    """Principal angles of `draws` pairs of independent uniform k-subspaces of R^n, (draws, k) radians. For small n: cost is n k^2."""
    trivial_zeros(n, k, k)
    generator = torch.Generator().manual_seed(seed)
    bases = torch.linalg.qr(torch.randn(2, draws, n, k, generator=generator, dtype=torch.float64)).Q
    return torch.stack([principal_angles(a, b) for a, b in zip(*bases, strict=True)])


@dataclass(frozen=True)
class Angles:
    """Of two k-subspaces of R^n, the trivial zeros left out: root mean square of the sines, median and largest angle in radians."""

    chordal: float
    median: float
    largest: float


def summary(angles: Tensor, n: int) -> Angles:
    """Sum up the k principal angles (ascending) of two k-subspaces of R^n, k < n; chance level of `chordal`: sqrt(max(c, 1-c))."""
    if len(angles) >= n:
        raise UserError(f"A subspace of {n} dimensions is all of R^{n}, its angles are 0: take a smaller k.")
    free = angles[trivial_zeros(n, len(angles), len(angles)) :]
    return Angles(float(free.sin().square().mean().sqrt()), float(free.median()), float(free[-1]))


# --- the law of a matrix that was only initialised -------------------------------------------------------------------------


@dataclass(frozen=True)
class MPLaw:
    """Marchenko-Pastur law of the singular values of an (m, n) matrix of i.i.d. entries of standard deviation `std`."""

    m: int
    n: int
    std: float

    @property
    def edges(self) -> tuple[float, float]:
        """std * |sqrt(m) - sqrt(n)| and std * (sqrt(m) + sqrt(n))."""
        return self.std * abs(math.sqrt(self.m) - math.sqrt(self.n)), self.std * (math.sqrt(self.m) + math.sqrt(self.n))

    @property
    def top(self) -> float:
        """What the largest singular value passes once in about 1000 matrices (Johnstone 2001), above the upper edge."""
        m, n = math.sqrt(self.m), math.sqrt(self.n)
        return self.std * math.sqrt((m + n) ** 2 + _TRACY_WIDOM * (m + n) * (1 / m + 1 / n) ** (1 / 3))

    def density(self, s: np.ndarray) -> np.ndarray:
        """Density at singular values s > 0: sqrt((b^2 - s^2)(s^2 - a^2)) / (pi std^2 min(m, n) s) between the edges a and b."""
        (a, b), s = self.edges, np.asarray(s, float)
        inside = np.clip((b**2 - s**2) * (s**2 - a**2), 0, None)
        return np.sqrt(inside) / (np.pi * self.std**2 * min(self.m, self.n) * s)

    def quantiles(self, shares: np.ndarray) -> np.ndarray:
        """Singular values below which the shares (in [0, 1]) of all lie."""
        a, b = (edge**2 for edge in self.edges)
        t = np.linspace(0, np.pi, 20_001)[
            1:
        ]  # s^2 = middle - radius cos t makes the density smooth, the square case too
        squares = (a + b) / 2 - (b - a) / 2 * np.cos(t)
        cumulative = np.cumsum(np.sin(t) ** 2 / squares)
        return np.interp(shares, np.r_[0, cumulative / cumulative[-1]], np.r_[math.sqrt(a), np.sqrt(squares)])


def marchenko_pastur(m: int, n: int, std: float) -> MPLaw:
    """The law, checked. Raises UserError unless m and n are at least 1 and std is positive."""
    if min(m, n) < 1 or not 0 < std < math.inf:
        raise UserError(f"No ({m}, {n}) matrix has a standard deviation of {std}: pass positive numbers.")
    return MPLaw(m, n, std)


@dataclass(frozen=True)
class MPFit:
    """The Marchenko-Pastur law nearest to a spectrum: its std, the distance |s - fit| / |s|, its upper edge, and the largest value."""

    std: float
    rms: float
    edge: float
    top: float
    verdict: Literal["untrained", "trained"]


def looks_untrained(singular_values: Tensor, shape: tuple[int, int]) -> MPFit:
    """Does the spectrum coincide with that of i.i.d. entries? Then it says nothing about training: were the weights loaded?

    "untrained" needs both: a relative RMS of at most 2.5 / min(m, n) (such matrices have 0.5 to 1.6 / min(m, n), the most in 1300
    of them was 2.1), and no value above the top that noise reaches. Training that hides below the edge, or fewer than about 30 values, it cannot see.
    """
    s = np.sort(singular_values.double().numpy())
    if len(s) != min(shape) or not s[-1] > 0:
        raise UserError(
            f"{shape} matrices have {min(shape)} singular values, not {len(s)}, nor all 0: pass all of them."
        )
    unit = marchenko_pastur(*shape, 1.0).quantiles((np.arange(len(s)) + 0.5) / len(s))
    std = float(s @ unit / (unit @ unit))
    rms = float(np.linalg.norm(s - std * unit) / np.linalg.norm(s))
    law = marchenko_pastur(*shape, std)
    same = rms <= 2.5 / len(s) and s[-1] <= law.top
    return MPFit(std, rms, law.edges[1], float(s[-1]), "untrained" if same else "trained")


# --- one matrix, before and after ------------------------------------------------------------------------------------------


def random_update(shape: tuple[int, int], norm: float, generator: torch.Generator) -> Tensor:
    """An isotropic Gaussian matrix of the given Frobenius norm, float64."""
    if not 0 <= norm < math.inf:
        raise UserError(f"{norm} is no norm of an update: pass a number from 0.")
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    return drawn.mul_(norm / drawn.norm())


def rounding_error(matrix: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """What storing numbers like these in `dtype` adds to them: uniform within half a unit in the last place, float64.

    Drawn, not rounded: a matrix that is stored in `dtype` already would round to itself, its trained copy was rounded all the same.
    """
    error = torch.rand(matrix.shape, generator=generator, dtype=torch.float64).sub_(0.5)
    unit = (torch.frexp(matrix).exponent - 1).double().exp2_()  # the power of two at or below each number
    return error.mul_(unit).mul_(torch.finfo(dtype).eps).masked_fill_(matrix == 0, 0.0)


@dataclass(frozen=True)
class Change:
    """What an update did to a matrix. `values` is |S' - S| / |S|, `mean_value` the mean of |s'_i - s_i|, in the weights' unit.

    `left` and `right` are the angles of the leading k-subspaces, `diagonal` is the share of |dW|_F^2 on the diagonal of U' dW V in the
    axes of the matrix before; the rest, 1 - diagonal, is off it. Of a random update the mean share is 1 / max(m, n).
    """

    values: float
    mean_value: float
    left: Angles
    right: Angles
    diagonal: float


@dataclass(frozen=True)
class Axes:
    """A tall matrix w (m >= n) and its decomposition: gram = w'w = v diag(s^2) v', all float64."""

    w: Tensor
    gram: Tensor
    s: Tensor
    v: Tensor


def axes(matrix: Tensor) -> Axes:
    """Singular values and right vectors of a matrix (transposed if it is wide), by its float64 Gram matrix.

    Squaring costs digits: s_i has a relative error of about 1e-16 (s_1 / s_i)^2, so values below 1e-7 s_1 are noise. In
    float32 the error was .3 percent at 1e-3 s_1, and below 3e-4 s_1, the root of its rounding, nothing is left.
    Raises UserError unless the matrix is a finite one, not zero, of floating point numbers.
    """
    _check(matrix)
    w = (matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T).double()
    gram = w.T @ w
    return Axes(w, gram, *_spectrum(gram))


def _check(matrix: Tensor) -> None:
    _check_kind(matrix)
    if not matrix.isfinite().all() or not matrix.any():
        raise UserError("The matrix is all 0 or not finite: the training had diverged, or the file is damaged.")


def _check_kind(matrix: Tensor) -> None:
    if matrix.ndim != 2 or matrix.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        raise UserError(f"{tuple(matrix.shape)} of {matrix.dtype} is no matrix of floats: pass plain weights.")


def _spectrum(gram: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(0).clamp(min=0).sqrt(), vectors.flip(1)


def change(at: Axes, update: Tensor, k: int) -> tuple[Change, Tensor]:
    """What w + update (of w's shape, left being the long side) is beside w, and its singular values."""
    mixed = at.w.T @ update
    s, v = _spectrum(at.gram + mixed + mixed.T + update.T @ update)
    if min(s[k - 1] / s[0], at.s[k - 1] / at.s[0]) < _RANK:
        raise UserError(f"The matrix has no {k} singular values above rounding, so no such subspace: take a smaller k.")
    before, after = at.v[:, :k], v[:, :k]
    left = principal_angles(torch.linalg.qr(at.w @ before).Q, torch.linalg.qr(at.w @ after + update @ after).Q)
    right = principal_angles(before, after)
    real = at.s > _RANK * at.s[0]
    on = (at.v * (mixed @ at.v)).sum(0)[real] / at.s[real]  # u_i' dW v_i, for u_i = w v_i / s_i
    gap = s - at.s
    return Change(
        values=float(gap.norm() / at.s.norm()),
        mean_value=float(gap.abs().mean()),
        left=summary(left, len(at.w)),
        right=summary(right, len(v)),
        diagonal=float(on.square().sum() / update.square().sum()),
    ), s


def random_change(at: Axes, norm: float, k: int, seed: int) -> Change:
    """`change` by a Gaussian update of the given norm, drawn in the matrix's own axes, where it has the same law.

    There w is [diag(s); 0], and of the update's rows below the n-th only their Gram matrix counts: m - n > n of them are
    replaced by the triangular factor of a Wishart matrix (Bartlett 1933). Exact in law, and nothing of size (m, n) is made.
    """
    rng, n = np.random.default_rng(seed), len(at.s)
    below = len(at.w) - n
    drawn = rng.standard_normal((n + min(below, n), n))
    if below > n:
        drawn[n:] = np.triu(drawn[n:])
        np.fill_diagonal(drawn[n:], np.sqrt(rng.chisquare(below - np.arange(n))))
    update = torch.from_numpy(drawn)
    own = torch.zeros_like(update)
    own[:n] = at.s.diag()
    inside = Axes(own, at.s.square().diag(), at.s, torch.eye(n, dtype=torch.float64))
    return change(inside, update.mul_(norm / update.norm()), k)[0]


@dataclass(frozen=True)
class MatrixReport:
    """One matrix before and after, `norm` being |dW|_F / |W|_F: what changed, what a random update of this norm and what rounding
    alone would have changed, and the chance level of `chordal` in the left and the right space."""

    shape: tuple[int, int]
    k: int
    norm: float
    change: Change
    null: Change
    floor: Change
    chance: tuple[float, float]
    base: MPFit
    tuned: MPFit


def compare(base: Tensor, tuned: Tensor, k: int, seed: int = 0) -> MatrixReport:
    """Measure tuned - base (m, n) by k leading directions, k < min(m, n). The floor is that of the coarser of their dtypes.

    Raises UserError for shapes that differ, a k that does not fit, numbers that are not finite, and matrices that are equal.
    """
    if base.shape != tuned.shape or base.ndim != 2 or not 1 <= k < min(base.shape):
        raise UserError(
            f"{tuple(base.shape)} and {tuple(tuned.shape)} cannot be compared at k = {k}: it must be positive and below both sides."
        )
    _check(tuned)
    turned = base.shape[0] < base.shape[1]
    at = axes(base)
    update = (tuned.T if turned else tuned).double() - at.w
    norm = float(update.norm())
    if norm == 0:
        raise UserError("The two matrices are equal: there is no change to measure.")
    changed, s = change(at, update, k)
    del update
    dtype = max(base.dtype, tuned.dtype, key=lambda d: torch.finfo(d).eps)
    m, n = base.shape
    return MatrixReport(
        shape=(m, n),
        k=k,
        norm=norm / float(at.w.norm()),
        change=_sides(changed, turned),
        null=_sides(random_change(at, norm, k, seed), turned),
        floor=_sides(_floor(at, dtype, k, seed), turned),
        chance=(math.sqrt(max(k / m, 1 - k / m)), math.sqrt(max(k / n, 1 - k / n))),
        base=looks_untrained(at.s, (m, n)),
        tuned=looks_untrained(s, (m, n)),
    )


def _floor(at: Axes, dtype: torch.dtype, k: int, seed: int) -> Change:
    return change(at, rounding_error(at.w, dtype, torch.Generator().manual_seed(seed)), k)[0]


def _sides(made: Change, turned: bool) -> Change:
    return dataclasses.replace(made, left=made.right, right=made.left) if turned else made


@dataclass(frozen=True)
class Floor:
    """What rounding to a dtype does to a matrix, and the smallest angle that arccos tells from 0 in that dtype (radians)."""

    change: Change
    arccos: float


def float_floor(matrix: Tensor, dtype: torch.dtype, k: int, seed: int = 0) -> Floor:
    """The change that storing the matrix in `dtype` makes; left and right as for the matrix. An angle below it is no rotation.

    Raises UserError for a k that does not fit, and for what `axes` refuses.
    """
    at, turned = axes(matrix), matrix.shape[0] < matrix.shape[1]
    if not 1 <= k < len(at.s):
        raise UserError(f"{tuple(matrix.shape)} has no floor at k = {k}: it must be positive and below both sides.")
    return Floor(_sides(_floor(at, dtype, k, seed), turned), math.acos(1 - torch.finfo(dtype).eps / 2))


# --- surgery ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edit:
    """An edited copy of the tuned matrix, in its dtype, and the Frobenius norm of the edit: the size that its control must have."""

    matrix: Tensor
    norm: float


def _edit(tuned: Tensor, made: Tensor) -> Edit:
    return Edit(made.to(tuned.dtype), float((made - tuned.double()).norm()))


def _svd(base: Tensor, tuned: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    if base.shape != tuned.shape or base.ndim != 2:
        raise UserError(f"Surgery wants one shape, not {tuple(base.shape)} and {tuple(tuned.shape)}: check the names.")
    return [(u, s, vh.T) for u, s, vh in (torch.linalg.svd(w.double(), full_matrices=False) for w in (base, tuned))]


def swap_vectors(base: Tensor, tuned: Tensor) -> Edit:
    """U_b S_t V_b': the base's vectors, the tuned values. Its distance to the base is |S_t - S_b|_F: where values hardly move this
    is a rollback of the checkpoint, whatever rotation may mean, and `rollback` is its control."""
    (u, _, v), (_, s, _) = _svd(base, tuned)
    return _edit(tuned, u * s @ v.T)


def swap_values(base: Tensor, tuned: Tensor) -> Edit:
    """U_t S_b V_t': the tuned vectors, the base's values. The edit's norm is |S_t - S_b|_F: hardly an edit where values hardly move."""
    (_, s, _), (u, _, v) = _svd(base, tuned)
    return _edit(tuned, u * s @ v.T)


Values = Literal["tuned", "base"]


def restore(
    base: Tensor, tuned: Tensor, top: int = 0, tail: int = 0, values: Values = "tuned", orthonormal: bool = False
) -> Edit:
    """Put the first `top` and the last `tail` pairs (u_i, v_i) of the base in place of the tuned ones: U_mix S V_mix'.

    With values "tuned" this is the "direction" script of 2509.12235's code, with "base" (the values of those pairs too) its "vector"
    script. Both are sums over pairs, so "base" is W_t - sum_i s_i u_i v_i' (tuned pairs) + the same of the base: the clean
    replacement of a component and the mixture of bases are one formula. But columns of two bases are not orthonormal, and U_mix S V_mix'
    has not the values S; `orthonormal` takes the nearest orthonormal bases (polar factors) in their place, and then it has.
    All pairs and "base" give the base itself. Raises UserError for more pairs than there are.
    """
    (ub, sb, vb), (ut, st, vt) = _svd(base, tuned)
    if min(top, tail) < 0 or top + tail > len(st) or values not in ("tuned", "base"):
        raise UserError(f"{top} + {tail} of {len(st)} pairs with values {values!r}: restore at most all of them.")
    index = torch.arange(len(st))
    ours = (index < top) | (index >= len(st) - tail)
    u, v = torch.where(ours, ub, ut), torch.where(ours, vb, vt)
    s = torch.where(ours, sb, st) if values == "base" else st
    if orthonormal:
        u, v = _polar(u), _polar(v)
    return _edit(tuned, u * s @ v.T)


def _polar(basis: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(basis, full_matrices=False)
    return u @ vh


def restore_top(base: Tensor, tuned: Tensor, k: int, **how: Any) -> Edit:
    """`restore` of the k leading pairs."""
    return restore(base, tuned, top=k, **how)


def restore_tail(base: Tensor, tuned: Tensor, k: int, **how: Any) -> Edit:
    """`restore` of the k last pairs."""
    return restore(base, tuned, tail=k, **how)


def rollback(base: Tensor, tuned: Tensor, share: float) -> Edit:
    """W_t + share (W_b - W_t): the straight way back, 0 the tuned matrix, 1 the base. Its norm is share |dW|_F."""
    if base.shape != tuned.shape or not 0 <= share <= 1:
        raise UserError(f"A rollback by {share} to {tuple(base.shape)}: pass one shape and a share in [0, 1].")
    return _edit(tuned, torch.lerp(tuned.double(), base.double(), share))


def random_edit(tuned: Tensor, norm: float, generator: torch.Generator) -> Edit:
    """W_t + a Gaussian matrix of the given norm: an edit that knows nothing, as large as the one it stands beside."""
    return _edit(tuned, tuned.double() + random_update((tuned.shape[0], tuned.shape[1]), norm, generator))


# --- files -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file, not read yet."""

    path: Path
    key: str
    shape: tuple[int, ...]

    def load(self) -> Tensor:
        try:
            with safe_open(self.path, "pt") as file:
                return file.get_tensor(self.key)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.key} of {self.path} cannot be read ({error}): save the model again.") from error


def stored(folder: Path) -> dict[str, Stored]:
    """All tensors of a model folder as the Hub has them: model.safetensors, or the shards that its index names. Nothing is read.

    Names are brought to the Hub's form (model.layers..., visual...), whichever way the state dict was saved.
    Raises UserError for a folder without them, a shard or a tensor of the index that is missing, and names that coincide.
    """
    index = folder / "model.safetensors.index.json"
    listed: dict[str, str] | None = _json(index).get("weight_map", {}) if index.is_file() else None
    names = ["model.safetensors"] if listed is None else sorted(set(listed.values()))
    if bad := [name for name in names if Path(name).name != name or not (folder / name).is_file()]:
        raise UserError(f"{folder} has no {_some(bad)}: pass a folder of save_pretrained, with all its shards.")
    found = [tensor for name in names for tensor in _tensors(folder / name)]
    if lost := sorted((listed or {}).keys() - {t.key for t in found}):
        raise UserError(f"{folder} lacks tensors that its index names ({_some(lost)}): download it again.")
    by_name = {canonical(t.key): t for t in found}
    if len(by_name) != len(found):
        raise UserError(f"Two tensors of {folder} have one name but for prefixes: save the model again.")
    return by_name


def canonical(name: str) -> str:
    """A tensor's name in the Hub's form of Qwen2.5-VL and of text models, whatever prefixes the state dict had."""
    name = re.sub(r"^(?:model\.language_model|language_model\.model)\.", "model.", name)
    return re.sub(r"^model\.visual\.", "visual.", name)


def _tensors(path: Path) -> list[Stored]:
    try:
        with safe_open(path, "pt") as file:
            return [Stored(path, key, tuple(file.get_slice(key).get_shape())) for key in file.keys()]  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is no safetensors file ({error}): download or save the model again.") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError("no object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): download or save it again.") from error
    return data


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


_ODD = (  # options of peft under which the change is more, or other, than alpha/r B A
    "use_rslora", "use_dora", "fan_in_fan_out", "use_qalora", "use_bdlora", "lora_bias", "modules_to_save", "rank_pattern",
    "alpha_pattern", "layer_replication", "alora_invocation_tokens", "target_parameters", "trainable_token_indices",
)  # fmt: skip


def adapter_scale(folder: Path) -> float:
    """lora_alpha, of a plain LoRA adapter. Raises UserError for every kind whose change of the weights is more than alpha/r B A."""
    config = {"bias": "none"} | _json(folder / "adapter_config.json")  # peft's default
    plain = {"peft_type": "LORA", "bias": "none"} | dict.fromkeys(_ODD)
    wrong = [f"{key} = {config.get(key)}" for key, value in plain.items() if (config.get(key) or None) != value]
    if config.get("init_lora_weights", True) not in (True, False, "gaussian"):  # the others change the base's weights
        wrong.append(f"init_lora_weights = {config['init_lora_weights']}")
    alpha = config.get("lora_alpha")
    if wrong or isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise UserError(f"This is no plain LoRA ({', '.join(wrong) or 'no lora_alpha'}): merge it and pass the result.")
    return float(alpha)


def pairs(base_folder: Path, tuned_folder: Path, match: str) -> dict[str, tuple[Stored, Callable[[Tensor], Tensor]]]:
    """name -> (base tensor, function from the base's matrix to the tuned one) of every 2-D weight whose name `match` is found in.

    Embeddings and the output head are left out: they are tables, not maps. Of a LoRA adapter only its own matrices are there.
    Raises UserError naming tensors that only one side has, or that differ in shape, vectors and those that are not matched too: the
    two would not be one model. Only tables may differ in shape (an enlarged vocabulary) and the head be missing (it may be tied).
    """
    try:
        wanted = re.compile(match)
    except re.error as error:
        raise UserError(f"{match!r} is no regular expression ({error}): mend it.") from error

    def chosen(tensors: dict[str, Any]) -> dict[str, Any]:
        return {n: t for n, t in tensors.items() if n.endswith(".weight") and wanted.search(n) and not _TABLE.search(n)}

    base = stored(base_folder)
    if (tuned_folder / "adapter_config.json").is_file():
        found = chosen(_adapter(tuned_folder, base))
        return _some_or_refuse({n: (base[n], found[n]) for n in base if n in found}, match)
    tuned = stored(tuned_folder)
    for here, there, which in ((base, tuned, "tuned"), (tuned, base, "base")):
        if lost := sorted(name for name in here.keys() - there.keys() if not _HEAD.search(name)):
            raise UserError(f"The {which} model has no {_some(lost)}: the two must be checkpoints of one model.")
    both = [n for n in base if n in tuned and not _TABLE.search(n)]
    if differ := [f"{n} ({base[n].shape} and {tuned[n].shape})" for n in both if base[n].shape != tuned[n].shape]:
        raise UserError(f"Shapes differ in {_some(differ)}: the two must be checkpoints of one model.")
    tuned, base = chosen(tuned), chosen(base)
    matrices = {n: (t, lambda _, t=tuned[n]: t.load()) for n, t in base.items() if len(t.shape) == 2}
    return _some_or_refuse(matrices, match)


_TABLE = re.compile(r"embed|lm_head")
_HEAD = re.compile(r"(?:^|\.)lm_head\.weight$")


def _some_or_refuse(found: dict[str, Any], match: str) -> dict[str, Any]:
    if not found:
        raise UserError(f"No weight matrix's name matches {match!r}: widen it, or check the folders.")
    return found


def _adapter(folder: Path, base: dict[str, Stored]) -> dict[str, Callable[[Tensor], Tensor]]:
    """name -> function from the base's matrix to W + alpha/r B A, of every matrix that the adapter changes."""
    alpha, path = adapter_scale(folder), folder / "adapter_model.safetensors"
    if not path.is_file():
        raise UserError(f"The adapter {folder} has no adapter_model.safetensors: save it again with save_pretrained.")
    halves: dict[str, dict[str, Stored]] = {}
    for tensor in _tensors(path):
        if not (parts := re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", tensor.key)):
            raise UserError(f"{tensor.key} is not half of a LoRA pair: merge the adapter and pass the result.")
        halves.setdefault(canonical(f"{parts[1]}.weight"), {})[parts[2]] = tensor
    for name, half in halves.items():
        if half.keys() != {"A", "B"} or name not in base:
            raise UserError(f"The adapter's {name} lacks a half, or its matrix in the base: check the folders.")
        rank, size = half["A"].shape[0], (half["B"].shape[0], half["A"].shape[1])
        if rank != half["B"].shape[1] or base[name].shape != size:
            raise UserError(f"The adapter's {name} is {size}, the base's {base[name].shape}: find its own base.")

    def merged(half: dict[str, Stored]) -> Callable[[Tensor], Tensor]:
        def merge(w: Tensor) -> Tensor:
            a, b = half["A"].load().double(), half["B"].load().double()
            return w.double() + alpha / len(a) * (b @ a)

        return merge

    return {name: merged(half) for name, half in halves.items()}


# --- whole models ----------------------------------------------------------------------------------------------------------
Reports = dict[str, MatrixReport | None]  # name of the matrix -> what was measured, None where the matrices are equal


def scan(
    base_folder: Path, tuned_folder: Path, k: int = 64, match: str = "", out: Path | None = None, seed: int = 0
) -> Reports:
    """`compare` every matrix of two model folders, or of a base and a LoRA adapter, two at a time.

    With `out`, each result is in that file (JSON lines) as soon as it is there, and a scan that was cut goes on behind them.
    The two workers share torch's threads: many threads on one decomposition took twenty times as long as one thread when another
    program held a core. Memory: about 1 GB a worker for 11008 x 2048.
    Raises UserError as `stored`, `pairs` and `compare` do, and for an `out` that belongs to another scan.
    """
    if k < 1:
        raise UserError(f"k = {k} is no number of directions: take a positive one.")
    todo = pairs(base_folder, tuned_folder, match)
    for name, (tensor, _) in todo.items():
        if k >= min(tensor.shape):
            raise UserError(f"k = {k} does not fit {name}, {tensor.shape}: take a smaller k or narrow the match.")
    header = {
        "k": k,
        "seed": seed,
        "match": match,
        "base": _fingerprint(base_folder),
        "tuned": _fingerprint(tuned_folder),
    }
    done = _read(out, header) if out and out.exists() else {}
    left = [name for name in todo if name not in done]
    threads = torch.get_num_threads()
    workers = min(2, threads)
    minutes = sum(_seconds(todo[name][0].shape) for name in left) / 60 / workers
    tqdm.write(
        f"{len(left)} of {len(todo)} matrices to measure, about {minutes:.0f} minutes with {workers} worker(s), less where equal"
    )
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(max(1, threads // workers),))
    try:
        futures = {pool.submit(_scan_one, name, *todo[name], k, seed): name for name in left}
        for future in tqdm(as_completed(futures), "matrices", len(futures), mininterval=5):
            done[futures[future]] = future.result()
            if out:
                _write(out, header, done)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
    return {name: done[name] for name in todo}


def _scan_one(name: str, tensor: Stored, tune: Callable[[Tensor], Tensor], k: int, seed: int) -> MatrixReport | None:
    try:
        base = tensor.load()
        _check_kind(base)  # torch cannot even tell whether float8 is equal
        tuned = tune(base)
        _check_kind(tuned)
        if torch.equal(base, tuned):
            return None
        return compare(base, tuned, k, seed * 1_000_003 + zlib.crc32(name.encode()))
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def _seconds(shape: tuple[int, ...]) -> float:
    """Of `compare` on one core, as timed: 17.5 s for 11008 x 2048, 8.7 s for 2048 x 2048, 0.14 s for 256 x 2048."""
    n, m = sorted(shape)
    return 0.1 + 2.4e-10 * m * n**2 + 7.7e-10 * n**3


def _fingerprint(folder: Path) -> int:
    """Changes whenever a weight file is written: names, sizes and times. The contents of a large model would take longer to read."""
    files = sorted(folder.glob("*.safetensors"))
    return zlib.crc32(json.dumps([(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]).encode())


def _write(path: Path, header: dict[str, Any], done: Reports) -> None:
    """All lines anew into a file beside, which then takes the name: a reader sees the old file or the new one."""
    lines = [header, *({"name": n, "report": r and dataclasses.asdict(r)} for n, r in done.items())]
    try:
        runs.write_whole(path, "".join(json.dumps(line) + "\n" for line in lines))
    except OSError as error:
        raise UserError(f"{path} was not written ({error.strerror or error}): name another file with --out.") from error


def _read(path: Path, header: dict[str, Any]) -> Reports:
    try:
        first, *lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        reports = {str(line["name"]): line["report"] and read_report(line["report"]) for line in lines}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is no scan ({error!r}): delete it or name another file with --out.") from error
    if first != header:
        raise UserError(f"{path} is a scan of other weights, or with another k, seed or match: name another file.")
    return reports


def read_report(data: dict[str, Any]) -> MatrixReport:
    """A report from the plain data that `dataclasses.asdict` made of it."""
    changes = {
        key: Change(**data[key] | {s: Angles(**data[key][s]) for s in ("left", "right")})
        for key in ("change", "null", "floor")
    }
    fits = {key: MPFit(**data[key]) for key in ("base", "tuned")}
    return MatrixReport(**data | changes | fits | {key: tuple(data[key]) for key in ("shape", "chance")})


# --- the table -------------------------------------------------------------------------------------------------------------

# the median angle: the largest hangs on the one gap behind the k-th value, two random updates differ threefold in it
MEASURES: dict[str, Callable[[Change], float]] = {
    "values": lambda c: c.values,
    "left angles": lambda c: c.left.median,
    "right angles": lambda c: c.right.median,
    "energy on the diagonal": lambda c: math.sqrt(c.diagonal),  # as an amplitude, like the others
}
_MARGIN = 1.5  # two random updates differed by at most 1.3, in 448 pairs on the bundled matrices
Cell = tuple[str, str]  # (kind of matrix, quarter of the layers)


def cells(reports: Reports) -> dict[Cell, list[MatrixReport]]:
    """Reports by kind of matrix and quarter of the layers; equal matrices are left out."""
    found: dict[Cell, list[MatrixReport]] = {}
    where = {name: _place(name) for name in reports}
    for name, report in reports.items():
        tower, kind, layer = where[name]
        if report:
            last = max(other for t, _, other in where.values() if t == tower)
            found.setdefault((kind, _quarter(layer, last + 1)), []).append(report)
    return found


def _quarter(layer: int, count: int) -> str:
    same = [i for i in range(count) if i * 4 // count == layer * 4 // count]
    return "-" if not same else f"{same[0]}" if len(same) == 1 else f"{same[0]}-{same[-1]}"


def _place(name: str) -> tuple[str, str, int]:
    """Tower, kind and layer (-1 for none) of a matrix."""
    tower = "visual." if name.startswith("visual.") else ""
    if parts := re.search(r"\.(?:layers|blocks)\.(\d+)\.(.+)\.weight$", name):
        return tower, tower + parts[2], int(parts[1])
    return tower, name.removesuffix(".weight"), -1


def beside_null(some: Sequence[MatrixReport], measure: Callable[[Change], float]) -> Literal["more", "less", "as much"]:
    """Whether matrices changed more or less than under their random updates: all of them, and by half at the median."""
    ratios = [measure(r.change) / max(measure(r.null), 1e-300) for r in some]
    if min(ratios) > 1 and statistics.median(ratios) > _MARGIN:
        return "more"
    return "less" if max(ratios) < 1 and statistics.median(ratios) < 1 / _MARGIN else "as much"


def table(reports: Reports) -> str:
    """One line for each kind of matrix and quarter of the layers: medians, each beside its null, chordal beside chance."""
    head = f"{'matrix':22} {'layers':>6} {'n':>3} {'|dW|/|W|':>8}  {'values (null)':>17}  {'diagonal (null)':>17}"
    head += "".join(f"  {f'{side}, degrees (null)':>22} {'chordal (chance)':>16}" for side in ("left", "right"))
    return "\n".join([head, *(_line(*cell, some) for cell, some in cells(reports).items())])


def _line(kind: str, layers: str, some: Sequence[MatrixReport]) -> str:
    def beside(measure: Callable[[Change], float], form: str) -> str:
        changed, null = (
            statistics.median(measure(c) for c in cs) for cs in ([r.change for r in some], [r.null for r in some])
        )
        return f"{changed:{form}} ({null:{form}})"

    line = f"{kind:22} {layers:>6} {len(some):3} {statistics.median(r.norm for r in some):8.1e}"
    line += f"  {beside(lambda c: c.values, '.1e'):>17}  {beside(lambda c: c.diagonal, '.1e'):>17}"
    for angles, chance in (
        (lambda c: c.left, statistics.median(r.chance[0] for r in some)),
        (lambda c: c.right, statistics.median(r.chance[1] for r in some)),
    ):
        chordal = statistics.median(angles(r.change).chordal for r in some)
        degrees = beside(lambda c, of=angles: math.degrees(of(c).median), ".3g")  # type: ignore[misc]
        line += f"  {degrees:>22} {f'{chordal:.3f} ({chance:.3f})':>16}"
    return line


def verdicts(reports: Reports) -> list[str]:
    """Sentences on what beat its null and what did not, and on matrices that should not be read at all."""
    grouped, lines = cells(reports), []
    for text, measure in MEASURES.items():
        how = {cell: beside_null(some, measure) for cell, some in grouped.items()}
        for word in sorted(set(how.values())):
            than = "as" if word == "as much" else "than"
            who = _by_kind([cell for cell in how if how[cell] == word]) if len(set(how.values())) > 1 else "all"
            lines.append(f"{text}: {word} {than} under a random update of the same norm: {who}.")
    notes: dict[str, Callable[[MatrixReport], bool]] = {
        "no rotation, the median angle is within twice what rounding makes": _at_floor,
        "at chance level, nothing is left of the base's subspace": _at_chance,
        "base with the spectrum of a random matrix (if these are many, were its weights loaded?)": lambda r: _random(
            r.base
        ),
        "tuned with the spectrum of a random matrix": lambda r: _random(r.tuned),
    }
    for text, holds in notes.items():
        if who_all := [name for name, r in reports.items() if r and holds(r)]:
            lines.append(f"{text}: {_some(who_all)}.")
    if equal := [name for name, r in reports.items() if r is None]:
        lines.append(f"not changed at all: {_some(equal)}.")
    return lines


def _by_kind(some: Sequence[Cell]) -> str:
    kinds = {kind: [layers for k, layers in some if k == kind] for kind, _ in some}
    return ", ".join(f"{kind} ({', '.join(layers)})" for kind, layers in kinds.items())


def _random(fit: MPFit) -> bool:
    return fit.verdict == "untrained"


def _at_floor(r: MatrixReport) -> bool:
    return r.change.left.median <= 2 * r.floor.left.median or r.change.right.median <= 2 * r.floor.right.median


def _at_chance(r: MatrixReport) -> bool:
    return r.change.left.chordal > 0.95 * r.chance[0] or r.change.right.chordal > 0.95 * r.chance[1]


def _folder(name: str) -> Path:
    return {BUNDLED: BUNDLED_DIR, CARDS: CARDS_DIR}.get(name, Path(name))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m rftkit spectra", description=scan.__doc__)
    shipped = f"'{BUNDLED}', or '{CARDS}'"
    parser.add_argument("base", help=f"folder of the model before, or {shipped}", type=_folder)
    parser.add_argument("tuned", help=f"folder of the model after, or of a LoRA adapter, or {shipped}", type=_folder)
    parser.add_argument(
        "--k", type=int, default=64, help="leading directions whose subspaces are compared (default: 64)"
    )
    parser.add_argument("--match", default="", metavar="REGEX", help="only matrices whose name this is found in")
    parser.add_argument("--out", type=Path, help="JSON lines, one a matrix; a scan that was cut goes on there")
    args = parser.parse_args(argv)
    reports = scan(args.base, args.tuned, args.k, args.match, args.out)
    if any(reports.values()):
        print(table(reports))
        print(
            "Values: |S' - S| / |S|. Angles: median principal angle of the leading subspaces, trivial zeros left out."
        )
    print("\n".join(verdicts(reports)))
    return 0
