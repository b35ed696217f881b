"""Robust least squares, many at once: Huber's loss by Levenberg-Marquardt with reweighting, within bounds.

Each step solves the weighted normal equations of all K problems together; weights are those of iteratively
reweighted least squares (Huber 1981, sec. 7.8), which bound the loss from above, so that it never rises.
"""

from collections.abc import Callable

import numpy as np

from bench.analysis.stats import Floats

N_STEPS = 300
_TOLERANCE = 1e-8  # relative gain of a step, below which a problem is solved
_SOFTEST, _HARDEST = 1e-10, 1e10  # damping

Model = Callable[[Floats], tuple[Floats, Floats]]  # (K, F) -> values (K, C), their slopes (K, F, C)


def minimise(
    model: Model, targets: Floats, starts: Floats, bounds: tuple[Floats, Floats], delta: float
) -> tuple[Floats, Floats]:
    """The losses (K,) and parameters (K, F) that descents from `starts` (K, F) end at.

    Args:
        model: of the parameters.
        targets: (K, C).
        starts: moved within the bounds where they are not.
        bounds: lowest and highest parameters, (F,) each.
        delta: residuals beyond it count by their size, no longer by their square.
    """
    theta = np.clip(starts, *bounds)
    values, slopes = model(theta)
    residuals = values - targets
    losses = huber(residuals, delta)
    damping, active = np.full(len(theta), 1e-3), np.arange(len(theta))
    for _ in range(N_STEPS):
        if not len(active):
            break
        here = theta[active]
        step = _step(residuals[active] / delta, slopes[active] / delta, here, bounds, damping[active])
        there = np.clip(here + step, *bounds)
        values, slopes_there = model(there)
        residuals_there = values - targets[active]
        gain = losses[active] - huber(residuals_there, delta)
        better = gain >= 0  # NaN is not
        taken = active[better]
        theta[taken], losses[taken] = there[better], losses[taken] - gain[better]
        residuals[taken], slopes[taken] = residuals_there[better], slopes_there[better]
        damping[active] = np.clip(damping[active] * np.where(better, 0.2, 5.0), _SOFTEST, _HARDEST)
        solved = (better & (gain <= _TOLERANCE * (losses[active] + 1e-6))) | (damping[active] >= _HARDEST)
        active = active[~solved]
    return losses, theta


def huber(residuals: Floats, delta: float) -> Floats:
    """Over delta^2: (..., C) -> (...)."""
    size = np.abs(residuals) / delta
    return np.asarray(np.where(size <= 1, size**2 / 2, size - 0.5).sum(axis=-1))


def _step(
    residuals: Floats, slopes: Floats, theta: Floats, bounds: tuple[Floats, Floats], damping: Floats
) -> Floats:
    """(K, F); nothing along a bound that the loss pushes against."""
    weighted = slopes / np.maximum(1.0, np.abs(residuals))[:, None, :]  # (K, F, C)
    gradient = (weighted @ residuals[..., None])[..., 0]  # (K, F)
    normal = weighted @ slopes.swapaxes(-1, -2)  # (K, F, F)
    held = ((theta <= bounds[0]) & (gradient > 0)) | ((theta >= bounds[1]) & (gradient < 0))
    normal = np.where(held[:, :, None] | held[:, None, :], 0.0, normal)
    ridge = damping[:, None] * np.einsum("kff->kf", normal) + 1e-6 + held  # (K, F)
    normal = normal + np.eye(theta.shape[1]) * ridge[:, None, :]
    return np.asarray(np.linalg.solve(normal, np.where(held, 0.0, -gradient)[..., None])[..., 0])
