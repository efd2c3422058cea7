"""Sums over rows and ridge regressions, against numpy on the rows themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.calibration.moments import LAMBDAS, Moments, Rows, Solution, ridge

Array = np.ndarray[Any, Any]
KINDS = (Moments, Rows)
GROUPS = (1, 3)


def rows_of(n: int, groups: int = 1, features: int = 6, outputs: int = 4, seed: int = 0) -> tuple[Array, Array]:
    """Return x with correlated features and r that depends on it, with noise."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((groups, n, features)) @ rng.standard_normal((groups, features, features))
    r = x @ rng.standard_normal((groups, features, outputs)) + 0.3 * rng.standard_normal((groups, n, outputs)) + 2
    return x.astype(np.float32), r.astype(np.float32)


def added(kind: Any, x: Array, r: Array, *, shift: Array | None = None, parts: int = 3, **how: Any) -> Any:
    shift = x[:, : len(x[0]) // parts].mean(axis=1, keepdims=True) if shift is None else shift
    result = kind(shift, r.shape[2], **how)
    for one, other in zip(np.array_split(x, parts, axis=1), np.array_split(r, parts, axis=1), strict=True):
        result.add(one, other)
    return result


def closed_form(x: Array, r: Array, penalty: float, *, center: bool = True) -> Array:
    """Return (outputs, features) of one group: least squares on rows that are lengthened by the root of the ridge."""
    x, r = x.astype(np.float64), r.astype(np.float64)
    if center:
        x, r = x - x.mean(axis=0), r - r.mean(axis=0)
    _, features = x.shape
    root = np.sqrt(penalty * (x * x).sum() / features)
    longer = np.concatenate([x, root * np.eye(features)]), np.concatenate([r, np.zeros((features, r.shape[1]))])
    return np.linalg.lstsq(*longer, rcond=None)[0].T


def direct_error(x: Array, r: Array, solution: Solution, shift: Array) -> float:
    matrix, bias = solution
    left = r.astype(np.float64) - (x.astype(np.float64) - shift) @ np.swapaxes(matrix, 1, 2) - bias[:, None, :]
    return float((left**2).sum() / x.shape[1])


# ------------------------------------------------------------------------------------------------------------ moments


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_covariance_and_mean_are_those_of_numpy(groups, offset):
    x, r = rows_of(500, groups)
    x = x + np.float32(offset)
    moments = added(Moments, x, r)
    assert moments.n == 500
    for g in range(groups):
        wanted = np.cov(x[g].astype(np.float64), rowvar=False, ddof=0)
        np.testing.assert_allclose(moments.covariance()[g], wanted, rtol=1e-4, atol=1e-4 * np.trace(wanted))
        np.testing.assert_allclose(moments.mean()[g], x[g].mean(axis=0, dtype=np.float64), rtol=1e-6, atol=1e-5)


def test_many_small_batches_lose_nothing():
    x, r = rows_of(200_000, features=3)
    x = x + np.float32(500)
    moments = added(Moments, x, r, parts=1000)
    np.testing.assert_allclose(moments.covariance()[0], np.cov(x[0].astype(np.float64), rowvar=False), rtol=1e-4)


def test_features_alone():
    x, r = rows_of(100)
    alone = added(Moments, x, r[:, :, :0])
    np.testing.assert_array_equal(alone.covariance(), added(Moments, x, r).covariance())


# --------------------------------------------------------------------------------------------------------- regression


@pytest.mark.parametrize("penalty", [1e-5, 0.01, 1.0])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("kind", KINDS)
def test_solution_is_the_closed_form(kind, groups, penalty):
    x, r = rows_of(400, groups)
    rows = added(kind, x, r)
    matrix = rows.solver(penalty)(rows)
    bias = rows.bias(matrix)
    assert (matrix.shape, bias.shape) == ((groups, 4, 6), (groups, 4))
    for g in range(groups):
        wanted = closed_form(x[g], r[g], penalty)
        np.testing.assert_allclose(matrix[g], wanted, rtol=2e-3, atol=2e-3 * np.abs(wanted).max())
        mean = x[g].mean(axis=0, dtype=np.float64) - rows.shift[g, 0]
        np.testing.assert_allclose(bias[g], r[g].mean(axis=0) - matrix[g] @ mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("kind", KINDS)
def test_without_a_bias_rows_count_as_they_are(kind, groups):
    x, r = rows_of(300, groups)
    x = x + 1
    rows = added(kind, x, r, shift=np.zeros_like(x[:, :1]), center=False)
    matrix = rows.solver(0.01)(rows)
    for g in range(groups):
        np.testing.assert_allclose(matrix[g], closed_form(x[g], r[g], 0.01, center=False), rtol=5e-3, atol=5e-3)
    assert rows.bias(matrix).shape == (groups, 4)
    assert not rows.bias(matrix).any()


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("groups", GROUPS)
def test_dual_is_primal_where_there_are_more_features_than_rows(groups, center):
    x, r = rows_of(12, groups, features=40)
    how = {"shift": None if center else np.zeros_like(x[:, :1]), "center": center}
    primal, dual = added(Moments, x, r, **how), added(Rows, x, r, **how)
    assert primal.n == dual.n == 12
    for penalty in (0.01, 1.0):
        matrix = primal.solver(penalty)(primal)
        np.testing.assert_allclose(
            dual.solver(penalty)(dual), matrix, rtol=1e-3, atol=1e-3 * float(np.abs(matrix).max())
        )
        np.testing.assert_allclose(dual.bias(matrix), primal.bias(matrix), atol=1e-4)
        solution = matrix, primal.bias(matrix)
        assert dual.error(solution) == pytest.approx(primal.error(solution), rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_mean_changes_nothing(kind):
    x, r = rows_of(600)
    near, far = added(kind, x, r), added(kind, x + np.float32(2000), r)
    one, two = (rows.solver(0.01)(rows) for rows in (near, far))
    np.testing.assert_allclose(one, two, rtol=2e-3, atol=2e-3 * float(np.abs(one).max()))
    assert far.error((two, far.bias(two))) == pytest.approx(near.error((one, near.bias(one))), rel=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_choice_of_shift_changes_nothing(kind):
    x, r = rows_of(600)
    rng = np.random.default_rng(5)
    one, two = (added(kind, x, r, shift=rng.standard_normal((1, 1, 6)).astype(np.float32)) for _ in range(2))
    matrices = [rows.solver(0.1)(rows) for rows in (one, two)]
    np.testing.assert_allclose(*matrices, rtol=1e-3, atol=1e-4)
    biases = [
        rows.bias(m) - np.einsum("gof,gf->go", m, rows.shift[:, 0])
        for rows, m in zip((one, two), matrices, strict=True)
    ]
    np.testing.assert_allclose(*biases, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("kind", KINDS)
def test_error_is_that_of_the_rows(kind, groups):
    x, r = rows_of(300, groups)
    rows = added(kind, x, r)
    rng = np.random.default_rng(1)
    for scale in (0.0, 1.0):
        solution = scale * rng.standard_normal((groups, 4, 6)), rng.standard_normal((groups, 4))
        assert rows.error(solution) == pytest.approx(direct_error(x, r, solution, rows.shift), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_other_outputs_take_over_the_sums_of_the_features(kind):
    x, r = rows_of(300)
    other = r[:, :, ::-1] * 2 - 1
    first = added(kind, x, r)
    again = added(kind, x, other, shift=first.shift, like=first)
    own = added(kind, x, other, shift=first.shift)
    solve = first.solver(0.01)  # one factorisation for both
    np.testing.assert_allclose(solve(again), own.solver(0.01)(own), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(again.bias(solve(again)), own.bias(solve(own)), atol=1e-5)
    solution = solve(own), own.bias(solve(own))
    assert again.error(solution) == pytest.approx(own.error(solution), rel=1e-4)


# -------------------------------------------------------------------------------------------------------------- ridge


def parted(kind: Any, x: Array, r: Array) -> tuple[Any, Any]:
    cut = x.shape[1] * 3 // 4
    shift = x[:, :cut].mean(axis=1, keepdims=True)
    return added(kind, x[:, :cut], r[:, :cut], shift=shift), added(kind, x[:, cut:], r[:, cut:], shift=shift)


@pytest.mark.parametrize("kind", KINDS)
def test_ridge_takes_the_penalty_that_predicts_held_rows_best(kind):
    for seed in range(5):
        x, r = rows_of(48, features=30, seed=seed)
        train, held = parted(kind, x, r)
        fit = ridge(train, held)
        errors = {}
        for penalty in LAMBDAS:
            matrix = train.solver(penalty)(train)
            errors[penalty] = direct_error(x[:, 36:], r[:, 36:], (matrix, train.bias(matrix)), held.shift)
        assert fit.penalty == min(errors, key=errors.__getitem__)
        assert fit.after == pytest.approx(errors[fit.penalty], rel=1e-3)
        assert fit.before == pytest.approx(float((r[:, 36:].astype(np.float64) ** 2).sum() / 12), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_ridge_leaves_noise_alone(kind):
    infinite = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x, r = (rng.standard_normal((1, 80, n)).astype(np.float32) for n in (60, 5))
        r -= r[:, 60:].mean(axis=1, keepdims=True)  # so that no bias helps on rows held out
        fit = ridge(*parted(kind, x, r))
        assert fit.after <= fit.before
        infinite += np.isinf(fit.penalty)
        if np.isinf(fit.penalty):
            assert not fit.solution[0].any()
    assert infinite >= 15


@pytest.mark.parametrize("kind", KINDS)
def test_ridge_never_gets_worse(kind):
    for seed in range(30):
        rng = np.random.default_rng(seed)
        n, features, groups = (int(rng.integers(low, high)) for low, high in ((4, 60), (1, 40), (1, 4)))
        x, r = rows_of(n, groups, features, seed=seed)
        r = r * np.float32(rng.choice((0.0, 1.0))) + rng.standard_normal(r.shape).astype(np.float32)
        train, held = parted(kind, x, r)
        fit = ridge(train, held, only_bias=bool(seed % 2))
        assert fit.after <= fit.before
        assert fit.after == pytest.approx(
            direct_error(x[:, n * 3 // 4 :], r[:, n * 3 // 4 :], fit.solution, held.shift), rel=1e-3, abs=1e-5
        )


@pytest.mark.parametrize("kind", KINDS)
def test_ridge_of_the_bias_alone(kind):
    x, r = rows_of(200)
    fit = ridge(*parted(kind, x, r), only_bias=True)
    assert np.isinf(fit.penalty)
    assert not fit.solution[0].any()
    np.testing.assert_allclose(fit.solution[1], r[:, :150].mean(axis=1), rtol=1e-4)
    assert fit.after < fit.before


@pytest.mark.parametrize("kind", KINDS)
def test_exact_dependence_is_found(kind):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((1, 800, 5)).astype(np.float32)
    matrix = rng.standard_normal((1, 3, 5))
    fit = ridge(*parted(kind, x, (x @ np.swapaxes(matrix, 1, 2)).astype(np.float32)))
    assert fit.penalty == min(LAMBDAS)
    assert fit.after < 1e-8 * fit.before
    np.testing.assert_allclose(fit.solution[0], matrix, atol=1e-3)


@pytest.mark.parametrize("value", [0.0, 1.0, 1000.3])
@pytest.mark.parametrize("kind", KINDS)
def test_constant_features_do_no_harm(kind, value):
    rng = np.random.default_rng(0)
    x = np.full((1, 200, 50), value, np.float32)
    r = rng.standard_normal((1, 200, 3)).astype(np.float32) + 5
    fit = ridge(*parted(kind, x, r))  # all of them
    assert fit.after <= fit.before
    assert np.isfinite(fit.solution[0]).all()
    x[:, :, :2] += rng.standard_normal((1, 200, 2)).astype(np.float32)  # all but two
    fit = ridge(*parted(kind, x, r + x[:, :, :1]))
    assert fit.after <= fit.before
    assert np.abs(fit.solution[0][0, :, 0] - 1).max() < 0.5


@pytest.mark.parametrize(("kind", "rows"), [(Moments, 4000), (Rows, 400)])
def test_dependent_features_do_no_harm(kind, rows):
    """More features than their rank, and nothing but the ridge between the sums and a singular matrix."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((1, rows, 8)) @ rng.standard_normal((8, 300)) + 50).astype(np.float32)
    r = (x[:, :, :3] - 50 + 0.01 * rng.standard_normal((1, rows, 3))).astype(np.float32)
    for factor in (1.0, 1e3, 1e-3):
        fit = ridge(*parted(kind, x * np.float32(factor), r))
        assert fit.after < 0.01 * fit.before


def test_sums_that_rounding_made_indefinite_still_have_a_solution():
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((1, 2000, 1)) @ rng.standard_normal((1, 40))).astype(np.float32)
    rows = added(Moments, x, x[:, :, :1])
    rows.xx -= 2e-5 * np.trace(rows.xx[0]) / 40 * np.eye(40)  # as rounding does, in layers with many features
    with pytest.raises(np.linalg.LinAlgError):
        np.linalg.cholesky(rows.covariance()[0] + 1e-5 * np.trace(rows.covariance()[0]) / 40 * np.eye(40))
    matrix = rows.solver(1e-5)(rows)
    assert direct_error(x, x[:, :, :1], (matrix, rows.bias(matrix)), rows.shift) < 1e-6
