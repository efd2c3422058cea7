"""What a layer loses when taps, blocks or directions go and the rest makes up for them: second order, on the Gram matrix of its input.

With H the covariance of the rows that a layer sees and W its matrix, the squared error of its output is

    tr( (W - W') H (W - W')' )

least over all W' that an edit allows. For taps and blocks of channels that is a regression on what stays, the closed form of Optimal Brain
Surgeon for many weights at once (Hassibi and Stork, 1993, eq. 5). For directions it is the reduced rank regression: W' = V V' W with V
the leading eigenvectors of W H W' (Izenman, 1975, "Reduced-rank regression for the multivariate linear model", eq. 2.9; as used on
convolutions by Zhang et al., 2015, "Accelerating Very Deep Convolutional Networks", section 3.1). Separable kernels (Jaderberg et al., 2014,
"Speeding up Convolutional Neural Networks with Low Rank Expansions", section 2.1) are found the same way, with the covariance of what
one column of the kernel sees.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from onnxprune.granularity.edits import Grouped, Kernel, Rank, Split
from onnxprune.granularity.rank import directions, project, spread
from onnxprune.granularity.rewriting import kept_features
from onnxprune.graph.linear import Conv, Linear
from onnxprune.types import FloatArray, IntArray

SWEEPS = 8
"""How often filters and input channels are assigned to blocks in turn, at most."""
TINY = 1e-30


class Gram:
    """A layer, and what weighs errors of its input.

    Args:
        layer: which.
        covariance: (groups, features, features), damped; or (groups, features), its diagonal, where the whole would take too much memory.
        mean: (groups, features) of its input.
    """

    def __init__(self, layer: Linear, covariance: FloatArray, mean: FloatArray) -> None:
        self.layer, self.covariance, self.mean = layer, covariance, mean
        self.matrix, self._bias = layer.effective()
        self.product = self._times(self.matrix)
        self.total = float(np.einsum("gof,gof->", self.product, self.matrix)) + TINY

    def _times(self, matrix: FloatArray) -> FloatArray:
        if self.covariance.ndim == 2:
            return np.asarray(matrix * self.covariance[:, None, :])
        return np.asarray(matrix @ self.covariance)

    def bias(self, matrix: FloatArray) -> FloatArray:
        """Return the bias that keeps the mean of the output with another matrix, (groups, outputs)."""
        return np.asarray(self._bias + np.einsum("gof,gf->go", self.matrix - matrix, self.mean))

    def without(self, edit: Kernel | Split | Grouped) -> tuple[FloatArray, float]:
        """Return the best matrix with what an edit leaves, and its error as a share of the variance of the output."""
        if isinstance(edit, Kernel):
            matrix, caught = self._regressed(self.product, self._features(edit))
            return matrix, max(0.0, 1 - caught / self.total)
        if isinstance(edit, Split):
            small = self._cropped(edit)
            cut = np.zeros(small.shape[0] * small.shape[1], dtype=bool)
            cut[list(edit.filters[: edit.count])] = True
            cut = cut.reshape(small.shape[:2])
            matrix = np.where(cut[:, :, None], small, self.matrix)
            return matrix, max(0.0, float(self.filter_errors(small)[cut].sum()) / self.total)
        keep = kept_features(edit, self.layer)
        matrix = np.zeros_like(self.matrix)
        caught = 0.0
        size = keep.shape[1] // edit.groups
        for block in range(edit.groups):
            rows = list(edit.outputs[block * size : (block + 1) * size])
            index = np.flatnonzero(keep[0, rows[0]])
            part, more = self._regressed(self.product[:, rows], index)
            matrix[:, rows] = part
            caught += more
        return matrix, max(0.0, 1 - caught / self.total)

    def _features(self, edit: Kernel | Split) -> IntArray:
        """Return the features that some taps see."""
        return np.flatnonzero(kept_features(Kernel(edit.layer, edit.taps), self.layer)[0, 0])

    def _cropped(self, edit: Split) -> FloatArray:
        """Return the best matrix if all filters lost the taps that some lose."""
        return self._regressed(self.product, self._features(edit))[0]

    def filter_errors(self, matrix: FloatArray) -> FloatArray:
        """Return the squared error of each output with another matrix, (groups, outputs)."""
        gap = self.matrix - matrix
        return np.asarray(np.einsum("gof,gof->go", self._times(gap), gap))

    def dispensable(self, edit: Split) -> tuple[int, ...]:
        """Return the filters, those that lose least with the taps of an edit in front."""
        order = np.argsort(self.filter_errors(self._cropped(edit)).reshape(-1), kind="stable")
        return (*np.sort(order[: edit.count]).tolist(), *np.sort(order[edit.count :]).tolist())

    def anew(self, edit: Split | Grouped) -> Split | Grouped | None:
        """Return an edit of the same layer with another number of channels in the terms of this one; None where it does not fit."""
        outputs = self.matrix.shape[0] * self.matrix.shape[1]
        if isinstance(edit, Split):
            edit = replace(edit, count=round(edit.count * outputs / len(edit.filters)), filters=tuple(range(outputs)))
            return replace(edit, filters=self.dispensable(edit))
        inputs = self.layer.values.shape[1] if isinstance(self.layer, Conv) else self.matrix.shape[2]
        if outputs % edit.groups or inputs % edit.groups:
            return None
        first, second = self.blocks(edit.groups)
        return replace(edit, inputs=first, outputs=second)

    def _regressed(self, product: FloatArray, index: IntArray) -> tuple[FloatArray, float]:
        """Regress outputs on some features; return the matrix and what it catches of their variance."""
        right = product[:, :, index]
        if self.covariance.ndim == 2:
            part = right / self.covariance[:, None, index]
        elif self.covariance.shape[0] == 1:
            from scipy.linalg import cho_factor, cho_solve

            factor = cho_factor(self.covariance[0][np.ix_(index, index)], check_finite=False)
            part = cho_solve(factor, right[0].T, check_finite=False).T[None]
        else:
            inner = self.covariance[:, index[:, None], index]
            part = np.swapaxes(np.linalg.solve(inner, np.swapaxes(right, 1, 2)), 1, 2)
        matrix = np.zeros((product.shape[0], product.shape[1], self.matrix.shape[2]))
        matrix[:, :, index] = part
        return matrix, float(np.einsum("gof,gof->", right, part))

    def directions(self) -> tuple[FloatArray, FloatArray]:
        """Return (groups, outputs, outputs) directions of the output, the most important one first, and the error without all but the first r, (outputs + 1,)."""
        return _leading(np.asarray(self.product @ np.swapaxes(self.matrix, 1, 2)))

    def separable(self) -> tuple[FloatArray, FloatArray]:
        """Return the same for kernels of one axis after the other: (1, n, n) directions of `spread`, and errors (n + 1,)."""
        layer = self.layer
        assert isinstance(layer, Conv)
        parts = spread(self.matrix, layer)
        first, others = layer.kernel[0], int(np.prod(layer.kernel[1:]))
        if self.covariance.ndim == 2:
            column = self.covariance[0].reshape(-1, first, others).mean(axis=2).reshape(-1)
            product = parts * column
        else:
            cube = self.covariance[0].reshape(-1, first, others, self.matrix.shape[2] // first // others, first, others)
            column = np.einsum("iabjcb->iajc", cube) / others
            product = parts @ column.reshape(parts.shape[1], parts.shape[1])
        return _leading((product @ parts.T)[None])

    def projected(self, basis: FloatArray, rank: int, spatial: bool) -> FloatArray:
        """Return the matrix with the first directions of a basis."""
        return project(self.matrix, self.layer, Rank("", rank, "spatial" if spatial else "channel"), basis)

    def blocks(self, groups: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return an order of the input channels, and of the filters, in which most of the output comes from blocks on the diagonal.

        Balanced co-clustering: a start from the leading singular vectors of the scaled affinities (Dhillon, 2001, "Co-clustering
        documents and words using bipartite spectral graph partitioning", section 4), then filters and channels are assigned in turn, each
        time as a linear assignment.
        """
        from scipy.optimize import linear_sum_assignment

        inputs = self.layer.values.shape[1] if isinstance(self.layer, Conv) else self.matrix.shape[2]
        diagonal = self.covariance if self.covariance.ndim == 2 else np.einsum("gff->gf", self.covariance)
        energy = (self.matrix[0] ** 2 * diagonal[0]).reshape(self.matrix.shape[1], inputs, -1).sum(axis=2)
        scaled = energy / np.sqrt(energy.sum(axis=1, keepdims=True) + TINY) / np.sqrt(energy.sum(axis=0) + TINY)
        vectors = np.linalg.svd(scaled, full_matrices=False)[2]
        order = np.argsort(vectors[min(1, len(vectors) - 1)], kind="stable")
        of_input = np.empty(inputs, dtype=np.int64)
        of_input[order] = np.arange(inputs) // (inputs // groups)
        of_output = np.zeros(energy.shape[0], dtype=np.int64)

        def assigned(gain: FloatArray) -> IntArray:
            size = gain.shape[0] // groups
            rows, columns = linear_sum_assignment(np.repeat(gain, size, axis=1), maximize=True)
            found = np.empty(gain.shape[0], dtype=np.int64)
            found[rows] = columns // size
            return found

        for _ in range(SWEEPS):
            member = np.eye(groups)[of_input]
            of_output = assigned(energy @ member)
            again = assigned(energy.T @ np.eye(groups)[of_output])
            if np.array_equal(again, of_input):
                break
            of_input = again
        return (
            tuple(np.argsort(of_input, kind="stable").tolist()),
            tuple(np.argsort(of_output, kind="stable").tolist()),
        )


def _leading(scatter: FloatArray) -> tuple[FloatArray, FloatArray]:
    values, vectors = directions(scatter)
    values = np.maximum(values, 0)
    left: Any = values.sum() - np.concatenate([[0.0], np.cumsum(values.sum(axis=0))])
    return np.ascontiguousarray(vectors), np.maximum(left / (values.sum() + TINY), 0)
