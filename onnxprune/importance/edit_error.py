"""Error of a layer's output after weights are removed and the others are adjusted: second order, on the Gram matrix of its input.

With H the covariance of the input rows of a layer and W its matrix, the squared error of the output is the minimum of

    tr( (W - W') H (W - W')' )

over all W' that an edit allows. For taps of a kernel this is a regression on the remaining taps, the closed form of Optimal Brain Surgeon
for several weights (Hassibi and Stork, 1993, eq. 5). For directions it is the reduced rank regression of `onnxprune.surgery.edits.low_rank`.
"""

from __future__ import annotations

import math

import numpy as np

from onnxprune.graph.linear import Conv, Linear
from onnxprune.importance import obs as second_order
from onnxprune.options import WITH_DATA
from onnxprune.surgery.edits.low_rank import directions, laid_out
from onnxprune.types import FloatArray, IntArray

TINY = 1e-30
AT_ONCE = 16
"""Input channels go one by one while fewer than twice as many are left."""


class Gram:
    """A layer and the covariance of its input.

    Args:
        layer: the layer.
        covariance: damped covariance of the input, (groups, features, features), or its diagonal, (groups, features).
        mean: mean of the input, (groups, features).
    """

    def __init__(self, layer: Linear, covariance: FloatArray, mean: FloatArray) -> None:
        self.layer, self.covariance, self.mean = layer, covariance, mean
        self.matrix, self._bias = layer.effective()
        diagonal = covariance.ndim == 2
        self.product = np.asarray(self.matrix * covariance[:, None, :] if diagonal else self.matrix @ covariance)
        self.total = float(np.einsum("gof,gof->", self.product, self.matrix)) + TINY
        self._removal: IntArray | None = None
        self._leading: dict[str, tuple[FloatArray, FloatArray]] = {}

    def bias(self, matrix: FloatArray) -> FloatArray:
        """Return the bias with which another matrix keeps the mean of the output, (groups, outputs)."""
        return np.asarray(self._bias + np.einsum("gof,gf->go", self.matrix - matrix, self.mean))

    def regressed(self, features: IntArray) -> tuple[FloatArray, float]:
        """Return the best matrix that reads only `features`, and its error as a share of the output variance."""
        right = self.product[:, :, features]
        if self.covariance.ndim == 2:
            part = right / self.covariance[:, None, features]
        elif self.covariance.shape[0] == 1:
            from scipy.linalg import cho_factor, cho_solve

            factor = cho_factor(self.covariance[0][np.ix_(features, features)], check_finite=False)
            part = cho_solve(factor, right[0].T, check_finite=False).T[None]
        else:
            inner = self.covariance[:, features[:, None], features]
            part = np.swapaxes(np.linalg.solve(inner, np.swapaxes(right, 1, 2)), 1, 2)
        matrix = np.zeros_like(self.matrix)
        matrix[:, :, features] = part
        return matrix, max(0.0, 1 - float(np.einsum("gof,gof->", right, part)) / self.total)

    def removal(self, width: int) -> IntArray:
        """Return the order in which input channels of `width` features each are missed least, first to go first.

        They go one by one, or 1 / `AT_ONCE` of those left at a time, and the other weights are adjusted after each.
        """
        if self._removal is None:
            self._removal = _removed_by_loss(self.matrix[0], self.covariance[0], width)
        return self._removal

    def leading(self, form: str) -> tuple[FloatArray, FloatArray]:
        """Return (groups, n, n) directions of the output by descending importance, and (n + 1,) errors of the first r directions.

        Errors are shares of the output variance; `form` is `channel` or `spatial`, see `onnxprune.surgery.edits.low_rank.laid_out`.
        """
        if form not in self._leading:
            parts, product = (self.matrix, self.product) if form == "channel" else self._separable()
            values, vectors = directions(product @ parts.swapaxes(1, 2))
            values = np.maximum(values, 0)
            lost = values.sum() - np.concatenate([[0.0], np.cumsum(values.sum(axis=0))])
            self._leading[form] = np.ascontiguousarray(vectors), np.maximum(lost / (values.sum() + TINY), 0)
        return self._leading[form]

    def _separable(self) -> tuple[FloatArray, FloatArray]:
        """Return the `spatial` matrix, and its product with the mean covariance of the inputs of one kernel column."""
        layer = self.layer
        parts = laid_out(self.matrix, layer, "spatial")
        assert isinstance(layer, Conv)
        first, others = layer.kernel[0], math.prod(layer.kernel[1:])
        if self.covariance.ndim == 2:
            return parts, parts * self.covariance[0].reshape(-1, first, others).mean(axis=2).reshape(-1)
        inputs = self.matrix.shape[2] // first // others
        cube = self.covariance[0].reshape(inputs, first, others, inputs, first, others)
        column = np.einsum("iabjcb->iajc", cube) / others
        return parts, parts @ column.reshape(parts.shape[2], parts.shape[2])


def _removed_by_loss(matrix: FloatArray, covariance: FloatArray, width: int) -> IntArray:
    """Return the order of channels of `width` features each; `covariance` is (features, features) or its diagonal."""
    channels = matrix.shape[1] // width
    if covariance.ndim == 1:
        return np.argsort(((matrix**2).sum(axis=0) * covariance).reshape(channels, width).sum(axis=1), kind="stable")
    matrix, inverse = matrix.copy(), np.linalg.inv(covariance)
    left, order = np.arange(channels), []
    while left.size:
        at = left[:, None] * width + np.arange(width)
        columns = np.moveaxis(matrix[:, at], 0, 2)  # (channels, width, outputs)
        inner = inverse[at[:, :, None], at[:, None, :]]
        losses = np.einsum("cst,cts->c", np.linalg.inv(inner), columns @ np.swapaxes(columns, 1, 2))
        first = np.argsort(losses, kind="stable")[: max(1, left.size // AT_ONCE)]
        gone = at[first].reshape(-1)
        gain = np.linalg.solve(inverse[np.ix_(gone, gone)], inverse[gone])
        matrix -= matrix[:, gone] @ gain
        inverse -= inverse[:, gone] @ gain
        order.append(left[first])
        left = np.delete(left, first)
    return np.concatenate(order)


def weighing(seen: second_order.Statistics, importance: str) -> FloatArray:
    """Return the damped covariance of an input, or its diagonal; ones for an importance of the weights alone."""
    groups, features = seen.variance.shape
    mean = seen.variance.mean(axis=1, keepdims=True)
    damping = seen.damping * mean + 1e-12
    if importance not in WITH_DATA:
        return np.ones((groups, features))
    if seen.covariance is None or importance in ("activation", "apoz"):
        return np.asarray(seen.variance + damping)
    lifted = seen.covariance.copy()
    lifted[:, np.arange(features), np.arange(features)] += damping
    return lifted
