"""Sums over rows of layer inputs and targets, and the ridge regressions that they determine."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.types import FloatArray, IntArray

Array = np.ndarray[Any, Any]
LAMBDAS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Candidate ridge penalties, as shares of the mean variance of a feature."""
TINY = 1e-12
"""Added to variances, so that constant features keep the matrix regular."""
WORSE = 1.02
"""Held-out error, over the least one so far, that ends the search for weaker penalties."""
WIDE = 1536
"""Features from which linear algebra runs in several threads; for fewer features one thread is faster."""
ROWS_TOGETHER = 2048
"""Rows that are added at a time, at least: the cost of a product of few rows is the size of its result."""
Solution = tuple[FloatArray, FloatArray]
"""A matrix (groups, outputs, features) and a bias (groups, outputs)."""


@contextlib.contextmanager
def threads_for(features: int) -> Iterator[None]:
    """Limit the linear algebra of numpy to one thread for layers below `WIDE` features."""
    if features >= WIDE:
        yield
        return
    with _controller().limit(limits=1, user_api="blas"):
        yield


@functools.cache
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def choose(positions: int, wanted: int, rng: np.random.Generator) -> IntArray:
    """Draw `wanted` of the positions 0 … positions - 1, ascending; all of them where there are no more.

    >>> choose(3, 5, np.random.default_rng(0)).tolist()
    [0, 1, 2]
    """
    if positions <= wanted:
        return np.arange(positions)
    return np.sort(rng.choice(positions, wanted, replace=False))


class Moments:
    """First and second moments of rows x and r, per group, accumulated in float64: groups x features^2 x 8 bytes.

    Args:
        shift: (groups, 1, features), near the mean of x, subtracted from x for precision.
        outputs: elements of r; 0: moments of x alone.
        center: fit a bias; without it, `shift` must be zero.
        like: moments of the same rows x, whose sums are shared.
    """

    def __init__(self, shift: Array, outputs: int, *, center: bool = True, like: Moments | None = None) -> None:
        groups, _, features = shift.shape
        self.shift, self.center, self.like = shift, center, like
        self.n = 0.0
        self.x: FloatArray = np.zeros((groups, features)) if like is None else like.x
        self.xx: FloatArray = np.zeros((groups, features, features)) if like is None else like.xx
        self.r: FloatArray = np.zeros((groups, outputs))
        self.xr: FloatArray = np.zeros((groups, features, outputs))
        self.rr = 0.0

    def add(self, x: Array, r: Array, weight: float = 1.0) -> None:
        """Add rows x (groups, n, features) and r (groups, n, outputs), each of which counts as `weight` rows."""
        if self.shift.any():
            x = x - self.shift
        self.n += weight * x.shape[1]
        transposed = np.swapaxes(weight * x if weight != 1 else x, 1, 2)
        if self.like is None:
            self.x += transposed.sum(axis=2, dtype=np.float64)
            self.xx += transposed @ x
        if self.r.shape[1]:
            self.r += weight * r.sum(axis=1, dtype=np.float64)
            self.xr += transposed @ r
            self.rr += weight * float(np.einsum("gno,gno->", r, r, dtype=np.float64))

    def covariance(self) -> FloatArray:
        """Return the covariance of x, (groups, features, features)."""
        mean = self.x / self.n
        return np.asarray(self.xx / self.n - mean[:, :, None] * mean[:, None, :])

    def mean(self) -> FloatArray:
        """Return the mean of x, (groups, features)."""
        return np.asarray(self.x / self.n + self.shift[:, 0])

    def error(self, solution: Solution) -> float:
        """Return the mean over shifted rows of ||r - matrix x - bias||^2, summed over outputs and groups."""
        matrix, bias = solution
        n = self.n
        square = self.rr / n + float((bias * bias).sum()) - 2 * float(np.einsum("go,go->", bias, self.r)) / n
        if matrix.any():
            square -= 2 * float(np.einsum("gof,gfo->", matrix, self.xr)) / n
            square += float(np.einsum("gof,gof->", matrix @ self.xx, matrix)) / n
            square += 2 * float(np.einsum("go,go->", bias, np.einsum("gof,gf->go", matrix, self.x))) / n
        return square

    def solver(self, penalty: float) -> Callable[[Moments], FloatArray]:
        """Return a function that solves for the matrix with the x of these rows and the r of its argument."""
        from scipy.linalg import cho_factor, cho_solve

        n, (groups, features) = self.n, self.x.shape
        lifted = self.covariance() if self.center else self.xx / n
        ridge = penalty * np.einsum("gff->g", lifted) / features + TINY
        lifted[:, np.arange(features), np.arange(features)] += ridge[:, None]
        factor = spectrum = None
        if groups == 1:
            try:
                factor = cho_factor(lifted[0], check_finite=False)
            except np.linalg.LinAlgError:  # rounding of float32 products made an eigenvalue negative
                spectrum = np.linalg.eigh(lifted[0])

        def solve(moments: Moments) -> FloatArray:
            right = moments.xr / n
            if self.center:
                right = right - (self.x / n)[:, :, None] * (moments.r / n)[:, None, :]
            if factor is not None:
                return np.asarray(cho_solve(factor, right[0], check_finite=False).T[None])
            if spectrum is not None:
                values, vectors = spectrum
                inner = (vectors.T @ right[0]) / np.maximum(values, ridge)[:, None]
                return np.asarray((vectors @ inner).T[None])
            return np.swapaxes(np.linalg.solve(lifted, right), 1, 2)

        return solve

    def bias(self, matrix: FloatArray) -> FloatArray:
        """Return the best bias for a matrix."""
        if not self.center:
            return np.zeros_like(self.r)
        return np.asarray((self.r - np.einsum("gof,gf->go", matrix, self.x)) / self.n)


class Rows:
    """Stored rows, for layers with more features than rows; arguments as for `Moments`.

    The ridge regression is solved in its dual form, n x n: D = R' (X X' + n lambda I)^-1 X.
    """

    def __init__(self, shift: Array, outputs: int, *, center: bool = True, like: Rows | None = None) -> None:
        self.shift, self.center, self.like = shift, center, like
        self.outputs = outputs
        self.parts: tuple[list[Array], list[Array]] = ([], [])

    @property
    def n(self) -> int:
        """Number of rows."""
        return sum(part.shape[1] for part in self.parts[1])

    def add(self, x: Array, r: Array, weight: float = 1.0) -> None:
        """See `Moments.add`; all rows count the same."""
        self.parts[1].append(r)
        if self.like is None:
            self.parts[0].append(x - self.shift)

    def _x(self) -> list[Array]:
        return self.parts[0] if self.like is None else self.like._x()

    def _arrays(self) -> tuple[Array, Array]:
        return np.concatenate(self._x(), axis=1), np.concatenate(self.parts[1], axis=1)

    def error(self, solution: Solution) -> float:
        """See `Moments.error`."""
        matrix, bias = solution
        weights, offset = np.swapaxes(matrix, 1, 2).astype(np.float32), bias[:, None, :]
        left = [r - offset - x @ weights for x, r in zip(self._x(), self.parts[1], strict=True)]
        return sum(float(np.einsum("gno,gno->", part, part, dtype=np.float64)) for part in left) / self.n

    def solver(self, penalty: float) -> Callable[[Rows], FloatArray]:
        """See `Moments.solver`."""
        x, _ = self._arrays()
        if self.center:
            x = x - x.mean(axis=1, keepdims=True)
        n, features = x.shape[1:]
        kernel = (x @ np.swapaxes(x, 1, 2)).astype(np.float64)
        ridge = penalty * np.einsum("gnn->g", kernel) / features + TINY
        kernel[:, np.arange(n), np.arange(n)] += ridge[:, None]

        def solve(rows: Rows) -> FloatArray:
            _, r = rows._arrays()
            if self.center:
                r = r - r.mean(axis=1, keepdims=True)
            duals = np.linalg.solve(kernel, r.astype(np.float64))
            return np.asarray(np.swapaxes(duals, 1, 2) @ x)

        return solve

    def bias(self, matrix: FloatArray) -> FloatArray:
        """See `Moments.bias`."""
        x, r = self._arrays()
        if not self.center:
            return np.zeros((r.shape[0], r.shape[2]))
        return np.asarray(r.mean(axis=1, dtype=np.float64) - np.einsum("gof,gf->go", matrix, x.mean(axis=1)))


@dataclass(frozen=True)
class Fit:
    """The change of a layer by a ridge regression.

    Attributes:
        solution: addends to matrix and bias, for shifted rows; zeros where no penalty lowers the held-out error.
        before, after: mean squared errors on the held-out rows.
        penalty: chosen ridge penalty; infinite where the matrix stays.
    """

    solution: Solution
    before: float
    after: float
    penalty: float


def ridge(train: Any, held: Any, *, only_bias: bool = False) -> Fit:
    """Fit r on x with the penalty that has the least error on held-out rows.

    The change D of the weights is penalized, not the weights: min ||R - D X - c||^2 + lambda ||D||^2.
    """
    groups, features = train.shift.shape[0], train.shift.shape[2]
    outputs = (train.r if isinstance(train, Moments) else train.parts[1][0]).shape[-1]
    none = np.zeros((groups, outputs, features))
    unchanged = none, np.zeros((groups, outputs))
    before = held.error(unchanged)
    best = Fit(unchanged, before, before, np.inf)
    for penalty in (np.inf, *(() if only_bias else LAMBDAS[::-1])):
        matrix = none if np.isinf(penalty) else train.solver(penalty)(train)
        solution = matrix, train.bias(matrix)
        error = held.error(solution)
        if error < best.after:
            best = Fit(solution, before, error, penalty)
        elif np.isfinite(penalty) and error > WORSE * best.after:
            break  # weaker penalties overfit more
    return best
