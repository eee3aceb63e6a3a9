"""Temperature scaling: one number, fitted on val, that makes 80 % sure mean right 80 % of the time.

Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks (2017, arXiv 1706.04599), section 4.2.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from warmstart.tasks import Link, Predictions

LOG_LIMIT = 3.0
"""Temperatures lie between e^-3 and e^3, 0.05 and 20."""
HALVINGS = 24
"""The interval of log T is halved this often: to 4e-7."""


def fit_temperature(outputs: np.ndarray, targets: np.ndarray, *, link: Link = "softmax") -> float | None:
    """Find the temperature that gives the targets of val the highest likelihood.

    The negative log-likelihood is convex in 1 / T, so its slope changes sign once. When no prediction is wrong, nothing
    in the data bounds confidence from above, and the temperature stays at 1 or more.

    Args:
        outputs: Raw outputs of the head on val.
        targets: As in `Dataset.targets`.
        link: How outputs become probabilities.

    Returns:
        What to divide outputs by, or None where there is nothing to calibrate (regression, no examples).

    Shape:
        outputs: float (N, C). targets: int64 (N,) or bool (N, C).
    """
    if link == "identity" or len(outputs) == 0:
        return None
    wide = outputs.astype(np.float64)
    low, high = -LOG_LIMIT, LOG_LIMIT
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _slope(wide, targets, np.exp(-middle), link=link) > 0 else (low, middle)
    temperature = float(np.exp((low + high) / 2))
    right = wide.argmax(axis=1) == targets if link == "softmax" else (wide >= 0) == targets
    return max(temperature, 1.0) if right.all() else temperature


def _slope(outputs: np.ndarray, targets: np.ndarray, sharpness: float, *, link: Link) -> float:
    """Differentiate the mean negative log-likelihood of `sharpness * outputs` by the sharpness, which is 1 / T."""
    scores = outputs * sharpness
    if link == "softmax":
        expected = (np.exp(scores - _log_sum_exp(scores)[:, None]) * outputs).sum(axis=1)
        return float((expected - outputs[np.arange(len(targets)), targets]).mean())
    return float(((np.exp(-np.logaddexp(0.0, -scores)) - targets) * outputs).mean())


def scaled(predictions: Predictions, temperature: float | None, *, link: Link) -> Predictions:
    """Return the predictions with outputs divided by the temperature; which class comes first never changes."""
    if temperature is None or link == "identity":
        return predictions
    outputs = predictions.outputs.astype(np.float64) / temperature
    if link == "softmax":
        values = np.exp(outputs - _log_sum_exp(outputs)[:, None])
    else:
        values = np.exp(-np.logaddexp(0.0, -outputs))
    return replace(predictions, outputs=outputs.astype(np.float32), values=values.astype(np.float32))


def _log_sum_exp(outputs: np.ndarray) -> np.ndarray:
    top = outputs.max(axis=1)
    sums: np.ndarray = top + np.log(np.exp(outputs - top[:, None]).sum(axis=1))
    return sums
