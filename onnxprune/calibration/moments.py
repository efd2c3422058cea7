"""Sums over rows, and ridge regressions solved from them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from onnxprune.types import FloatArray, IntArray

Array = np.ndarray[Any, Any]
LAMBDAS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridge penalties to choose from, as a share of the mean variance of a feature."""
WIDE = 1536
"""Features from which linear algebra is spread over threads; below that they wait for each other longer than they work."""
ROWS_TOGETHER = 2048
"""Rows to add up at a time, at least: a product of few rows takes as long as its result is large."""
Solution = tuple[FloatArray, FloatArray]
"""A matrix (groups, outputs, features) and a bias (groups, outputs)."""


@contextlib.contextmanager
def threads_for(features: int) -> Iterator[None]:
    """Let numpy's linear algebra use one thread for a layer that is not wide."""
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
    """Return the numbers of `wanted` positions, ascending; all of them where there are no more."""
    if positions <= wanted:
        return np.arange(positions)
    return np.sort(rng.choice(positions, wanted, replace=False))


class Regression(Protocol):
    """Rows x and r, in the form that regressing r on x needs."""

    def error(self, solution: Solution) -> float:
        """Return the mean over rows of |r - matrix x - bias|^2, summed over outputs and groups."""

    def solver(self, penalty: float) -> Callable[[Regression], FloatArray]:
        """Return what gives the matrix for a penalty, from these rows x and the r of what it is called with."""

    def bias(self, matrix: FloatArray) -> FloatArray:
        """Return the best bias beside a matrix."""


class Moments:
    """First and second moments of rows x (features) and r (outputs), per group, accumulated in float64.

    Rows are shifted by `shift`, (groups, 1, features), near their mean, so that nothing is lost where a mean is large against the
    spread. Memory: groups x features^2 x 8 bytes.

    Args:
        shift: the shift.
        outputs: elements of r; 0 to look at x alone.
        centre: whether a bias goes with the regression; else x and r count as they are, and shift has to be zero.
        like: rows x that were added before to another one, in the same order: their sums are taken over, not computed again.
    """

    def __init__(self, shift: Array, outputs: int, *, centre: bool = True, like: Moments | None = None) -> None:
        groups, _, features = shift.shape
        self.shift, self.centre, self.like = shift, centre, like
        self.n = 0
        self.x: FloatArray = np.zeros((groups, features)) if like is None else like.x
        self.xx: FloatArray = np.zeros((groups, features, features)) if like is None else like.xx
        self.r: FloatArray = np.zeros((groups, outputs))
        self.xr: FloatArray = np.zeros((groups, features, outputs))
        self.rr = 0.0

    def add(self, x: Array, r: Array) -> None:
        """Add rows: x (groups, n, features), r (groups, n, outputs)."""
        if self.shift.any():
            x = x - self.shift
        self.n += x.shape[1]
        transposed = np.swapaxes(x, 1, 2)
        if self.like is None:
            self.x += x.sum(axis=1, dtype=np.float64)
            self.xx += transposed @ x
        if self.r.shape[1]:
            self.r += r.sum(axis=1, dtype=np.float64)
            self.xr += transposed @ r
            self.rr += float(np.einsum("gno,gno->", r, r, dtype=np.float64))

    def covariance(self) -> FloatArray:
        """Return the covariance of x, (groups, features, features)."""
        mean = self.x / self.n
        return np.asarray(self.xx / self.n - mean[:, :, None] * mean[:, None, :])

    def mean(self) -> FloatArray:
        """Return the mean of x, (groups, features)."""
        return np.asarray(self.x / self.n + self.shift[:, 0])

    def error(self, solution: Solution) -> float:
        """See `Regression`; the solution is one of the shifted rows."""
        matrix, bias = solution
        n = self.n
        square = self.rr / n + float((bias * bias).sum()) - 2 * float(np.einsum("go,go->", bias, self.r)) / n
        if matrix.any():
            square -= 2 * float(np.einsum("gof,gfo->", matrix, self.xr)) / n
            square += float(np.einsum("gof,gof->", matrix @ self.xx, matrix)) / n
            square += 2 * float(np.einsum("go,go->", bias, np.einsum("gof,gf->go", matrix, self.x))) / n
        return square

    def solver(self, penalty: float) -> Callable[[Moments], FloatArray]:
        """See `Regression`."""
        from scipy.linalg import cho_factor, cho_solve

        n, (groups, features) = self.n, self.x.shape
        lifted = self.covariance() if self.centre else self.xx / n
        ridge = penalty * np.einsum("gff->g", lifted) / features + TINY
        lifted[:, np.arange(features), np.arange(features)] += ridge[:, None]
        factor = spectrum = None
        if groups == 1:
            try:
                factor = cho_factor(lifted[0], check_finite=False)
            except np.linalg.LinAlgError:  # products of float32 rows: rounding left an eigenvalue below zero
                spectrum = np.linalg.eigh(lifted[0])

        def solve(moments: Moments) -> FloatArray:
            right = moments.xr / n
            if self.centre:
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
        """See `Regression`."""
        if not self.centre:
            return np.zeros_like(self.r)
        return np.asarray((self.r - np.einsum("gof,gf->go", matrix, self.x)) / self.n)


TINY = 1e-12
"""Added to variances, so that a feature that is always the same does no harm."""


class Rows:
    """Rows as they are, for layers with more features than rows: n x n instead of features x features.

    The ridge regression is the same one, by its dual: D = R' (X X' + n lambda I)^-1 X.
    """

    def __init__(self, shift: Array, outputs: int, *, centre: bool = True, like: Rows | None = None) -> None:
        self.shift, self.centre, self.like = shift, centre, like
        self.outputs = outputs
        self.parts: tuple[list[Array], list[Array]] = ([], [])

    @property
    def n(self) -> int:
        """Return the number of rows."""
        return sum(part.shape[1] for part in self.parts[1])

    def add(self, x: Array, r: Array) -> None:
        """Add rows, as in `Moments`."""
        self.parts[1].append(r)
        if self.like is None:
            self.parts[0].append(x - self.shift)

    def _x(self) -> list[Array]:
        return self.parts[0] if self.like is None else self.like._x()

    def _arrays(self) -> tuple[Array, Array]:
        return np.concatenate(self._x(), axis=1), np.concatenate(self.parts[1], axis=1)

    def error(self, solution: Solution) -> float:
        """See `Regression`."""
        matrix, bias = solution
        weights, offset = np.swapaxes(matrix, 1, 2).astype(np.float32), bias[:, None, :]
        left = [r - offset - x @ weights for x, r in zip(self._x(), self.parts[1], strict=True)]
        return sum(float(np.einsum("gno,gno->", part, part, dtype=np.float64)) for part in left) / self.n

    def solver(self, penalty: float) -> Callable[[Rows], FloatArray]:
        """See `Regression`."""
        x, _ = self._arrays()
        if self.centre:
            x = x - x.mean(axis=1, keepdims=True)
        n, features = x.shape[1:]
        kernel = (x @ np.swapaxes(x, 1, 2)).astype(np.float64)
        ridge = penalty * np.einsum("gnn->g", kernel) / features + TINY
        kernel[:, np.arange(n), np.arange(n)] += ridge[:, None]

        def solve(rows: Rows) -> FloatArray:
            _, r = rows._arrays()
            if self.centre:
                r = r - r.mean(axis=1, keepdims=True)
            duals = np.linalg.solve(kernel, r.astype(np.float64))
            return np.asarray(np.swapaxes(duals, 1, 2) @ x)

        return solve

    def bias(self, matrix: FloatArray) -> FloatArray:
        """See `Regression`."""
        x, r = self._arrays()
        if not self.centre:
            return np.zeros((r.shape[0], r.shape[2]))
        return np.asarray(r.mean(axis=1, dtype=np.float64) - np.einsum("gof,gf->go", matrix, x.mean(axis=1)))


@dataclass(frozen=True)
class Fit:
    """A change of a layer: what to add to its matrix and, for the shifted rows, to its bias.

    Attributes:
        solution: matrix and bias; zeros where nothing predicts the rows held out better.
        before, after: mean squared errors on these rows.
        penalty: the ridge penalty that was chosen; infinity where the matrix stays.
    """

    solution: Solution
    before: float
    after: float
    penalty: float


def ridge(train: Any, held: Any, *, only_bias: bool = False) -> Fit:
    """Choose the penalty with which regressing r on x predicts the rows held out best.

    The change of the weights is penalised, not the weights: min |R - D X - c|^2 + lambda |D|^2 (DESIGN: "Repair").
    """
    groups, features = train.shift.shape[0], train.shift.shape[2]
    outputs = (train.r if isinstance(train, Moments) else train.parts[1][0]).shape[-1]
    none = np.zeros((groups, outputs, features))
    before = held.error((none, np.zeros((groups, outputs))))
    best = Fit((none, np.zeros((groups, outputs))), before, before, np.inf)
    penalties = () if only_bias else LAMBDAS[::-1]
    for penalty in (np.inf, *penalties):
        matrix = none if np.isinf(penalty) else train.solver(penalty)(train)
        solution = matrix, train.bias(matrix)
        error = held.error(solution)
        if error < best.after:
            best = Fit(solution, before, error, penalty)
        elif np.isfinite(penalty) and error > WORSE * best.after:
            break  # weaker penalties overfit more
    return best


WORSE = 1.02
