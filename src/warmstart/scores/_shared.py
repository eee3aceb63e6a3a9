"""What several scores need: outputs beside targets, likelihood by way of hidden classes, principal components."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from warmstart.scores import Evidence


def agreement(outputs: np.ndarray, evidence: Evidence, *, by_hits: bool) -> np.ndarray:
    """Compare outputs with the targets: hits, or each example's part of R².

    Shape:
        outputs: float (N, C), in the units of `Evidence.columns`. Returns float64 (N,), whose mean is accuracy or R².
    """
    columns = evidence.columns
    if by_hits and evidence.kind == "single":
        return (outputs.argmax(axis=1) == evidence.targets).astype("float64")
    if by_hits and evidence.kind == "multi":
        return ((outputs > 0.5) == (columns > 0.5)).mean(axis=1)
    errors = ((outputs - columns) ** 2).sum(axis=1)
    return 1.0 - errors / ((columns - columns.mean(axis=0)) ** 2).sum(axis=1).mean()


def log_likelihood(probabilities: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return log Σ_z P(y_i | z) θ_iz, P(y | z) as the examples themselves have it.

    Shape:
        probabilities: float64 (N, Z), θ. columns: one-hot targets, float64 (N, C). Returns float64 (N,).
    """
    import numpy as np

    joint = columns.T @ probabilities  # (C, Z), N times P(y, z)
    mass = joint.sum(axis=0)
    given = np.divide(joint, mass, out=np.zeros_like(joint), where=mass > 0)
    likelihood = ((probabilities @ given.T) * columns).sum(axis=1)
    return np.log(np.maximum(likelihood, np.finfo(np.float64).tiny))


def principal(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return principal components (N, R) of features (N, D), and the variance of each (R,), the largest first."""
    import numpy as np

    left, values, _ = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    return left * values, values**2 / len(features)
