"""Scaling fits: observations of parameters N and training tokens D -> fitted loss or error, and predictions.

L = E + A/N^alpha + B/D^beta, fitted as in approach 3 of Hoffmann et al. 2022 (arXiv:2203.15556, eq. 2 and
sec. 3.3): Huber loss of log residuals, terms joined by log-sum-exp, from the best of a grid of starts. If
data is repeated, D is D' = U + U R* (1 - exp(-R/R*)), where U unique tokens are seen R more times
(Muennighoff et al. 2023, arXiv:2305.16264, sec. 3). Pure functions; bands resample seeds, the same in all
cells.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from bench.analysis.stats import MIN_SEEDS, Floats, Interval, interval, t_bound

N_STEPS = 300
_TOLERANCE = 1e-8  # relative gain of a step below which a fit has converged
_SOFTEST, _HARDEST = 1e-10, 1e10  # damping

Model = Callable[[Floats], tuple[Floats, Floats]]  # (K, F) -> values (K, C), their slopes (K, F, C)


def minimise(
    model: Model, targets: Floats, starts: Floats, bounds: tuple[Floats, Floats], delta: float
) -> tuple[Floats, Floats]:
    """Minimise the Huber loss from several starts (K, F); return losses (K,) and parameters (K, F).

    Args:
        model: maps parameters to values and slopes.
        targets: (K, C).
        starts: are clipped to the bounds.
        bounds: lowest and highest parameters, (F,) each.
        delta: the residual from which on the loss is linear.
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
        better = gain >= 0  # False for NaN
        taken = active[better]
        theta[taken], losses[taken] = there[better], losses[taken] - gain[better]
        residuals[taken], slopes[taken] = residuals_there[better], slopes_there[better]
        damping[active] = np.clip(damping[active] * np.where(better, 0.2, 5.0), _SOFTEST, _HARDEST)
        solved = (better & (gain <= _TOLERANCE * (losses[active] + 1e-6))) | (damping[active] >= _HARDEST)
        active = active[~solved]
    return losses, theta


def huber(residuals: Floats, delta: float) -> Floats:
    """Return the summed Huber loss (...) of residuals (..., C), in units of delta^2."""
    size = np.abs(residuals) / delta
    return np.asarray(np.where(size <= 1, size**2 / 2, size - 0.5).sum(axis=-1))


def _step(
    residuals: Floats, slopes: Floats, theta: Floats, bounds: tuple[Floats, Floats], damping: Floats
) -> Floats:
    """Return a damped Gauss-Newton step (K, F); it is 0 along a bound that the loss pushes against."""
    weighted = slopes / np.maximum(1.0, np.abs(residuals))[:, None, :]  # (K, F, C)
    gradient = (weighted @ residuals[..., None])[..., 0]  # (K, F)
    normal = weighted @ slopes.swapaxes(-1, -2)  # (K, F, F)
    held = ((theta <= bounds[0]) & (gradient > 0)) | ((theta >= bounds[1]) & (gradient < 0))
    normal = np.where(held[:, :, None] | held[:, None, :], 0.0, normal)
    ridge = damping[:, None] * np.einsum("kff->kf", normal) + 1e-6 + held  # (K, F)
    normal = normal + np.eye(theta.shape[1]) * ridge[:, None, :]
    return np.asarray(np.linalg.solve(normal, np.where(held, 0.0, -gradient)[..., None])[..., 0])


N_REFITS = 40  # enough to know their spread to 11 %
HUBER_DELTA = 1e-3  # of log residuals
EXPONENTS = (0.01, 3.0)  # bounds, outside which a term is a constant or a step
_N_STARTS = 6  # starts of the grid from which the loss is minimised

_E, _A, _ALPHA, _B, _BETA, _R = range(6)  # log E, log A and log B at the mean log N and D, log R*


@dataclass(frozen=True)
class Observations:
    """C cells, and the S seeds that all of them have."""

    parameters: Floats  # (C,)
    tokens: Floats  # (C,) tokens processed in training
    epochs: Floats  # (C,) passes over the unique data
    values: Floats  # (S, C) losses or errors, above 0

    def take(self, cells: NDArray[np.bool_]) -> "Observations":
        """Return some of the cells."""
        return Observations(
            self.parameters[cells], self.tokens[cells], self.epochs[cells], self.values[:, cells]
        )


@dataclass(frozen=True)
class Fit:
    """A fit of the means over seeds, and refits to resampled seeds.

    `free` names the fitted parameters; the others have no term. `refits` is empty for too few seeds.
    """

    seen: Observations
    free: tuple[int, ...]
    best: Floats  # (6,)
    refits: Floats  # (R, 6)

    def exponent(self, name: str) -> Interval | None:
        """Return `alpha`, `beta`, `E` (in the measure's unit) or `R*`; None if it was not fitted."""
        index = {"E": _E, "alpha": _ALPHA, "beta": _BETA, "R*": _R}[name]
        if index not in self.free:
            return None
        found = banded(self.best[index], self.refits[:, index], len(self.seen.values))
        return exponential(found) if name in ("E", "R*") else found

    def is_at_bound(self, name: str) -> bool:
        """Return whether the fit ended at a parameter's bound, where its refits show no spread."""
        index = {"E": _E, "alpha": _ALPHA, "beta": _BETA, "R*": _R}[name]
        low, high = _bounds(self.seen.values.mean(axis=0))[index]
        return bool(min(self.best[index] - low, high - self.best[index]) < 1e-3 * (high - low))

    def is_identified(self, name: str) -> bool:
        """Return whether a parameter's bounds are above 0, less than `MOST_RATIO` apart, and not its "
        "limits."""
        found = self.exponent(name)
        if found is None or self.is_at_bound(name) or found.low is None or found.high is None:
            return False
        return found.low > 0 and found.high < MOST_RATIO * found.low

    def curve(self, parameters: float, tokens: Floats, epochs: Floats | float = 1.0) -> tuple[Floats, Floats]:
        """Return the values at T token counts: (T,) of the fit, (R, T) of the refits."""
        sizes = np.full(len(tokens), float(parameters))
        at = Observations(sizes, tokens, np.broadcast_to(np.float64(epochs), tokens.shape), tokens[None])
        centre = _centre(self.seen)
        return np.exp(_log_value(self.best[None], at, centre))[0], np.exp(_log_value(self.refits, at, centre))


def fit(seen: Observations) -> Fit | str:
    """Return the fit with its refits; or, in one line, why there is none."""
    reason = _refusal(seen)
    if reason:
        return reason
    cells = zip(seen.parameters.tolist(), seen.tokens.tolist(), seen.epochs.tolist(), strict=True)
    return _fit(tuple(cells), tuple(map(tuple, seen.values.tolist())))


@lru_cache(maxsize=2**10)  # cached, since tables and figures need the same fits
def _fit(cells: tuple[tuple[float, float, float], ...], values: tuple[tuple[float, ...], ...]) -> Fit:
    parameters, tokens, epochs = np.array(cells).T
    seen = Observations(parameters, tokens, epochs, np.array(values))
    free = _free(seen)
    means = seen.values.mean(axis=0)
    starts = _starts(seen, means, free)
    losses, ends = _descend(seen, np.broadcast_to(means, (len(starts), len(means))), free, starts)
    best = ends[np.argmin(losses)]
    distinct, which = np.unique(
        _resampled(seen.values), axis=0, return_inverse=True
    )  # few seeds have few distinct resamples
    refits = _descend(seen, distinct, free, np.broadcast_to(best[list(free)], (len(distinct), len(free))))[1]
    return Fit(seen, free, best, refits.reshape(-1, 6)[which.ravel()])


def effective_tokens(tokens: Floats, epochs: Floats, repeats: Floats | float) -> Floats:
    """Return D' of Muennighoff et al.: the value of D tokens if repeats decay with R* = `repeats`."""
    passes = np.maximum(epochs, 1.0)
    return np.asarray(tokens / passes * (1 - repeats * np.expm1(-(passes - 1) / repeats)))


def _refusal(seen: Observations) -> str:
    """Return why no fit is made; empty if it is."""
    n_cells, free = len(seen.tokens), _free(seen)
    if not seen.values.size:
        return "no seed that all cells share"
    if (seen.values <= 0).any():
        return "a loss or error of 0 has no logarithm"
    if len(free) == 1:
        return f"{_count(n_cells, 'cell')} of one model size and one amount of training: nothing to fit"
    if n_cells <= len(free):
        return f"{_count(n_cells, 'cell')}, {len(free)} parameters: needs {len(free) + 1}"
    for index, name, n in (
        (_ALPHA, "model size", len(_sizes(seen))),
        (_BETA, "amount of training", len(set(_amounts(seen)))),
    ):
        if index in free and n < 3:
            return f"{_count(n, name)} cannot fix an exponent: needs 3"
    return ""


def _count(n: int, name: str) -> str:
    plural = name.replace("amount", "amounts") if "amount" in name else f"{name}s"
    return f"{n} {name if n == 1 else plural}"


def _sizes(seen: Observations) -> NDArray[np.float64]:
    return np.unique(seen.parameters)


def _free(seen: Observations) -> tuple[int, ...]:
    """Return the parameters that the cells can determine."""
    amounts = set(_amounts(seen))
    n_tokens = len({tokens for tokens, _ in amounts})
    repeats = len(amounts) > n_tokens
    free = [_E]
    free += [_A, _ALPHA] if len(_sizes(seen)) > 1 else []
    free += [_B, _BETA] if len(amounts) > 1 else []
    return (*free, *([_R] if repeats else []))


def _amounts(seen: Observations) -> list[tuple[float, float]]:
    """Return log D and log epochs of each cell to 1 %, since whole batches change budgets by less."""
    passes = np.maximum(seen.epochs, 1.0)
    return [(round(t, 2), round(p, 2)) for t, p in zip(np.log(seen.tokens), np.log(passes), strict=True)]


def _centre(seen: Observations) -> tuple[float, float]:
    """Return mean log N and log D; centring makes exponents and factors nearly independent."""
    return float(np.log(seen.parameters).mean()), float(np.log(seen.tokens).mean())


def _terms(theta: Floats, seen: Observations, centre: tuple[float, float]) -> tuple[Floats, Floats, Floats]:
    """Return log terms (..., 3, C), centred log N (C,) and centred log D' (..., C)."""
    log_n = np.log(seen.parameters) - centre[0]
    repeats = np.exp(theta[..., _R, None])
    # without R* in the fit it is infinite, and a repeated token is worth a new one
    worth = effective_tokens(seen.tokens, seen.epochs, np.where(np.isinf(repeats), 1.0, repeats))
    log_d = np.log(np.where(np.isinf(repeats), seen.tokens, worth)) - centre[1]
    terms = [
        theta[..., _E, None] + 0 * log_d,
        theta[..., _A, None] - theta[..., _ALPHA, None] * log_n + 0 * log_d,
        theta[..., _B, None] - theta[..., _BETA, None] * log_d,
    ]
    return np.stack(terms, axis=-2), log_n, log_d


def _log_value(theta: Floats, seen: Observations, centre: tuple[float, float]) -> Floats:
    """Return log L (..., C) of parameters (..., 6)."""
    return np.asarray(np.logaddexp.reduce(_terms(theta, seen, centre)[0], axis=-2))


def _slopes(theta: Floats, seen: Observations, free: tuple[int, ...]) -> tuple[Floats, Floats]:
    """Return log L (K, C) of free parameters (K, F), and its derivatives (K, F, C)."""
    whole = _whole(free, theta)
    terms, log_n, log_d = _terms(whole, seen, _centre(seen))
    total = np.logaddexp.reduce(terms, axis=-2)
    share_e, share_n, share_d = np.moveaxis(np.exp(terms - total[:, None, :]), 1, 0)  # (K, C) each
    rows = [share_e, share_n, -share_n * log_n, share_d, -share_d * log_d]
    if _R in free:
        rows.append(-share_d * whole[:, _BETA, None] * _slope(seen, np.exp(whole[:, _R, None])))
    return total, np.stack([rows[index] for index in free], axis=1)


def _slope(seen: Observations, repeats: Floats) -> Floats:
    """Return d log D' / d log R* (K, C) for repeats (K, 1)."""
    passes = np.maximum(seen.epochs, 1.0)
    ratio = (passes - 1) / repeats
    unique = seen.tokens / passes
    gain = -np.expm1(-ratio) - ratio * np.exp(-ratio)
    return np.asarray(unique * repeats * gain / effective_tokens(seen.tokens, seen.epochs, repeats))


def _whole(free: tuple[int, ...], values: Floats) -> Floats:
    """Fill (..., len(free)) up to (..., 6): absent terms are exp(-inf), an absent R* is infinite."""
    theta = np.broadcast_to([-np.inf, -np.inf, 0.0, -np.inf, 0.0, np.inf], (*values.shape[:-1], 6)).copy()
    theta[..., list(free)] = values
    return theta


def _starts(seen: Observations, means: Floats, free: tuple[int, ...]) -> Floats:
    """Return the best starts (K, len(free)) of a grid."""
    level = np.log(means.mean())
    axes = {
        _E: level + np.log([0.03, 0.3, 0.6, 0.9]),
        _A: level + np.log([0.03, 0.1, 0.3, 0.7]),
        _ALPHA: [0.1, 0.3, 0.6, 1.2],
        _B: level + np.log([0.03, 0.1, 0.3, 0.7]),
        _BETA: [0.1, 0.3, 0.6, 1.2],
        _R: np.log([2.0, 8.0, 30.0]),
    }
    grid = np.array(list(product(*(axes[index] for index in free))))
    errors = huber(_log_value(_whole(free, grid), seen, _centre(seen)) - np.log(means), HUBER_DELTA)
    return grid[np.argsort(errors, kind="stable")[:_N_STARTS]]


def _descend(
    seen: Observations, means: Floats, free: tuple[int, ...], starts: Floats
) -> tuple[Floats, Floats]:
    """Fit the means (K, C) from K starts (K, F); return losses (K,) and all parameters (K, 6)."""
    bounds = np.array(_bounds(seen.values.mean(axis=0)))[list(free)].T
    losses, ends = minimise(
        lambda theta: _slopes(theta, seen, free),
        np.log(means),
        starts,
        (bounds[0], bounds[1]),
        HUBER_DELTA,
    )
    return losses, _whole(free, ends)


def _bounds(means: Floats) -> list[tuple[float, float]]:
    """Return the bounds of all six parameters."""
    level = float(np.log(means.max()))
    logs = (level - 12.0, level + 3.0)
    return [logs, logs, EXPONENTS, logs, EXPONENTS, (float(np.log(0.1)), float(np.log(1000.0)))]


def _resampled(values: Floats) -> Floats:
    """Return means (R, C) over resampled seeds, the same in all cells; none for too few seeds."""
    n = len(values)
    if n < MIN_SEEDS:
        return np.empty((0, values.shape[1]))
    draws = np.random.default_rng(0).integers(0, n, (N_REFITS, n))
    return np.asarray(values[np.sort(draws, axis=1)].mean(axis=1))


def banded(best: float, draws: Floats, n_seeds: int) -> Interval:
    """Return a number of the fit with the t interval from its refits (R,); no bounds without refits."""
    if not len(draws):
        return Interval(float(best), None, None, n_seeds)
    half = float(half_width(draws, n_seeds))
    return Interval(float(best), float(best) - half, float(best) + half, n_seeds)


def half_width(draws: Floats, n_seeds: int) -> Floats:
    """Return the half width of the t interval of numbers refitted (R, ...) to resampled seeds.

    The spread of resampled means is too small by sqrt((n - 1) / n), and percentiles ignore that it was
    estimated from n seeds: with five seeds they covered a known exponent in 90 % of simulations.
    """
    return np.asarray(t_bound(n_seeds) * draws.std(axis=0) * (n_seeds / (n_seeds - 1)) ** 0.5)


def exponential(of_log: Interval) -> Interval:
    """Convert an interval of a logarithm to one of the number itself."""
    low, high = (None if bound is None else float(np.exp(bound)) for bound in (of_log.low, of_log.high))
    return Interval(float(np.exp(of_log.mean)), low, high, of_log.n)


MOST_RATIO = 10  # of the bounds of a number that counts as identified
MAX_EXTRAPOLATION = 4  # times the largest N or D that was measured


@dataclass(frozen=True)
class HeldOut:
    """The largest budget, as predicted from the others and as measured."""

    parameters: float
    tokens: float
    predicted: Interval
    measured: Interval
    before: float  # the mean at the nearest smaller budget

    @property
    def is_inside(self) -> bool | None:
        """Return whether the measured mean lies in the predicted band; None without a band."""
        return self._holds(self.measured.mean)

    @property
    def is_too_wide(self) -> bool:
        """Return whether the band also holds the mean at the nearest smaller budget.

        Then the check would pass, too, if more training changed nothing, so it identifies no law.
        """
        return self._holds(self.before) is True

    def _holds(self, value: float) -> bool | None:
        if self.predicted.low is None or self.predicted.high is None:
            return None
        return self.predicted.low <= value <= self.predicted.high


def predict(fitted: Fit, parameters: float, tokens: float, epochs: float = 1.0) -> Interval | str:
    """Return the value at N, D and epochs with its band, or why it is too far from what was measured."""
    seen = fitted.seen
    for name, asked, most in (
        ("N", parameters, float(seen.parameters.max())),
        ("D", tokens, float(seen.tokens.max())),
    ):
        if asked > MAX_EXTRAPOLATION * most:
            factor = f"{asked / most:.3g} times the largest measured"
            return f"{name} = {asked:.3g} is {factor}, more than {MAX_EXTRAPOLATION}: no prediction"
    if fitted.exponent("alpha") is None and not np.isclose(parameters, seen.parameters, rtol=0.01).any():
        return f"N = {parameters:.3g} was not measured and the fit has no term in N: no prediction"
    best, draws = fitted.curve(parameters, np.array([tokens], dtype=np.float64), epochs)
    return exponential(banded(np.log(best[0]), np.log(draws[:, 0]), len(seen.values)))


def held_out(seen: Observations) -> HeldOut | str:
    """Refit without the largest budget (largest D, then N) and predict it; or return why it is impossible."""
    last = max(range(len(seen.tokens)), key=lambda i: (seen.tokens[i], seen.parameters[i], -seen.epochs[i]))
    others = np.arange(len(seen.tokens)) != last
    fitted = fit(seen.take(others))
    if isinstance(fitted, str):
        return f"without the largest budget: {fitted}"
    place = float(seen.parameters[last]), float(seen.tokens[last])
    predicted = predict(fitted, *place, float(seen.epochs[last]))
    if isinstance(predicted, str):
        return predicted
    measured = interval(seen.values[:, last].tolist())
    assert measured is not None
    nearest = max(
        np.flatnonzero(others),
        key=lambda i: (seen.parameters[i] == place[0], seen.tokens[i] < place[1], seen.tokens[i]),
    )
    return HeldOut(*place, predicted, measured, float(seen.values[:, nearest].mean()))
