"""The error of a layer's output when weights go and the others are adjusted: second order, on the Gram matrix of its input.

With H the covariance of the rows that a layer reads and W its matrix, the squared error of its output is

    tr( (W - W') H (W - W')' )

at least over all W' that an edit allows. For taps of a kernel the minimum is a regression on what stays, the closed form of Optimal Brain
Surgeon for many weights at once (Hassibi and Stork, 1993, eq. 5). For directions it is the reduced rank regression, see
`onnxprune.surgery.edits.low_rank`.
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


class Gram:
    """A layer and the covariance of its input.

    Args:
        layer: the layer.
        covariance: (groups, features, features), damped; or (groups, features), its diagonal, where the whole would take too much memory.
        mean: (groups, features) of its input.
    """

    def __init__(self, layer: Linear, covariance: FloatArray, mean: FloatArray) -> None:
        self.layer, self.covariance, self.mean = layer, covariance, mean
        self.matrix, self._bias = layer.effective()
        diagonal = covariance.ndim == 2
        self.product = np.asarray(self.matrix * covariance[:, None, :] if diagonal else self.matrix @ covariance)
        self.total = float(np.einsum("gof,gof->", self.product, self.matrix)) + TINY
        self._leading: dict[str, tuple[FloatArray, FloatArray]] = {}

    def bias(self, matrix: FloatArray) -> FloatArray:
        """Return the bias that keeps the mean of the output with another matrix, (groups, outputs)."""
        return np.asarray(self._bias + np.einsum("gof,gf->go", self.matrix - matrix, self.mean))

    def regressed(self, features: IntArray) -> tuple[FloatArray, float]:
        """Return the best matrix on some input features, and its error as a share of the variance of the output."""
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

    def leading(self, form: str) -> tuple[FloatArray, FloatArray]:
        """Return directions of the output and errors.

        Args:
            form: `channel`, or `spatial`: those of `onnxprune.surgery.edits.low_rank.laid_out`.

        Returns:
            (groups, n, n) directions, the most important one first, and (n + 1,) the error of the first r, as a share of the variance.
        """
        if form not in self._leading:
            parts, product = (self.matrix, self.product) if form == "channel" else self._separable()
            values, vectors = directions(product @ parts.swapaxes(1, 2))
            values = np.maximum(values, 0)
            lost = values.sum() - np.concatenate([[0.0], np.cumsum(values.sum(axis=0))])
            self._leading[form] = np.ascontiguousarray(vectors), np.maximum(lost / (values.sum() + TINY), 0)
        return self._leading[form]

    def _separable(self) -> tuple[FloatArray, FloatArray]:
        """Return the matrix as laid out, and its product with the covariance of what one column of the kernel reads."""
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


def weighing(seen: second_order.Statistics, importance: str) -> FloatArray:
    """Return the covariance of an input, damped; its diagonal, or for an importance of the weights alone ones."""
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
