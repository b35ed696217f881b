"""What a scaling fit predicts, how far it may, and the check: the largest budget held out. Pure functions."""

from dataclasses import dataclass

import numpy as np

from bench.analysis.scaling import Fit, Observations, banded, exponential, fit
from bench.analysis.stats import Interval, interval

MAX_EXTRAPOLATION = 4  # times the largest N or D that was measured


@dataclass(frozen=True)
class HeldOut:
    """The largest budget, predicted from the others and measured."""

    parameters: float
    tokens: float
    predicted: Interval
    measured: Interval

    @property
    def is_inside(self) -> bool | None:
        """Does the measured mean lie in the predicted band? None without a band (one seed)."""
        if self.predicted.low is None or self.predicted.high is None:
            return None
        return self.predicted.low <= self.measured.mean <= self.predicted.high


def predict(fitted: Fit, parameters: float, tokens: float, epochs: float = 1.0) -> Interval | str:
    """The value at N, D and epochs, with its band; or why it is not said: too far from what was measured."""
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
    """Refit without the largest budget (largest D, then N) and predict it; or why that is not possible."""
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
    return HeldOut(*place, predicted, measured)
