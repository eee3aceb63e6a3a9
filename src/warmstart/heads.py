"""Linear heads on cached features are solved, not looped over.

Softmax and sigmoid heads minimise mean cross-entropy + l2/2·‖W‖² by L-BFGS along a path from strong to weak
regularisation, each solution starting from the one before. Identity heads (regression) are ridge solutions from one
eigendecomposition, with exact leave-one-out errors (Allen's PRESS; Hastie, Tibshirani & Friedman, ESL 2009, eq. 7.64).
Features are centred and scaled by the training rows, so one grid of l2 serves every backbone.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from warmstart import runtime
from warmstart.errors import TrainingError

if TYPE_CHECKING:
    from warmstart.models.model import LinearHead

log = logging.getLogger(__name__)

Link = Literal["softmax", "sigmoid", "identity"]
Fold = tuple[np.ndarray, np.ndarray]
L2S = tuple(10.0**power for power in (0.5, 0.0, -0.5, -1.0, -1.5, -2.0, -2.5, -3.0, -4.0, -5.0))
RIDGE_L2S = tuple(10.0**power for power in np.arange(2.0, -6.5, -0.5))
MIDDLE = 1e-2
"""l2 when there is nothing to choose it by."""
ROUGH, FINE = 1e-3, 1e-7
"""A step that gains less than this part of the loss is the last one: along the path, and for the head that is kept."""
PATIENCE = 1
"""How many l2 values in a row may be worse than the best before the path ends."""
LEAST_CURVATURE = 1e-4
"""A class that is hardly ever in doubt gets the units of one with this second derivative of the loss by its output."""
SMALL = 30_000_000
"""Features with fewer numbers than this are solved on one thread: starting threads costs more than they save."""


@dataclass(frozen=True)
class Solved:
    """A linear head on standardised features: `((x - mean) * scale) @ weight.T + bias`.

    Shape:
        weight: float32 (C, D). bias: float32 (C,). mean, scale: float32 (D,).
        out_of_fold: float32 (N, C), the output for each row by the head that did not see it; NaN where none did.
    """

    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    l2: float
    path: tuple[tuple[float, float], ...]
    """(l2, validation loss) in the order they were solved."""
    out_of_fold: np.ndarray

    def outputs(self, features: np.ndarray) -> np.ndarray:
        """Apply the head: (N, D) → float32 (N, C)."""
        folded = self.weight * self.scale
        return features @ folded.T + (self.bias - folded @ self.mean)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what a `LinearHead` holds, under its names."""
        return {"mean": self.mean, "scale": self.scale, "linear.weight": self.weight, "linear.bias": self.bias}

    @staticmethod
    def from_arrays(arrays: Mapping[str, np.ndarray]) -> Solved:
        """Rebuild a head from `arrays`; how it was solved is not known then."""
        weight, bias = arrays["linear.weight"], arrays["linear.bias"]
        return Solved(weight, bias, arrays["mean"], arrays["scale"], np.nan, (), np.empty((0, len(bias)), np.float32))

    def to_module(self) -> LinearHead:
        """Return the head as a torch module."""
        import torch

        from warmstart.models.model import LinearHead

        head = LinearHead(self.weight.shape[1], self.weight.shape[0])
        with torch.no_grad():
            head.mean.copy_(torch.from_numpy(self.mean))
            head.scale.copy_(torch.from_numpy(self.scale))
            head.linear.weight.copy_(torch.from_numpy(self.weight))
            head.linear.bias.copy_(torch.from_numpy(self.bias))
        return head


def solve(
    link: Link,
    features: np.ndarray,
    targets: np.ndarray,
    *,
    train: np.ndarray,
    folds: Sequence[Fold],
    output_weights: np.ndarray | None = None,
) -> Solved:
    """Solve the head on the rows `train`, with the regularisation that does best on the folds.

    Args:
        link: Which loss: cross-entropy over classes, over each class by itself, or squared error.
        features: Rows of train and validation together.
        targets: Class probabilities (one-hot, smoothed or multi-hot), or standardised numbers.
        train: Rows of the final head.
        folds: (train, val) rows to choose the regularisation by; one pair, or several for cross-validation. With
            none, `identity` uses exact leave-one-out and the others the middle of the grid.
        output_weights: Weights of classes in the loss; for `sigmoid`, of each label's positive examples. No effect on
            `identity`.

    Raises:
        TrainingError: Features or targets that are NaN or infinite.

    Shape:
        features: float32 (N, D). targets: float32 (N, C). output_weights: float (C,).
    """
    _refuse_infinite("features", features, "another backbone or data.image_size, or warmstart cache clear")
    _refuse_infinite("targets", targets, "finite targets, and class weights above 0")
    targets, weights = _weighted(link, targets, output_weights)
    count = 1 if features.size < SMALL else runtime.num_cpus()
    with runtime.threads(count):
        if link == "identity":
            return _solve_ridge(features, targets, train, folds)
        return _solve_path(link, features, targets, weights, train, folds)


def _refuse_infinite(what: str, values: np.ndarray, fix: str) -> None:
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise TrainingError(
            f"{len(bad)} of {len(values)} examples have {what} that are NaN or infinite (first: row {bad[0]}), "
            "and a head needs finite numbers",
            fix,
        )


def _weighted(link: Link, targets: np.ndarray, output_weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Turn class weights into targets and the weight of each loss, float32 (N, 1) or (N, C).

    torch weighs each term of a loss, -Σ w_c t_c log p_c; that is the plain loss of targets w_c t_c / S, times
    S = Σ w_c t_c. It matters where targets are smoothed and so have more than one term.
    """
    if output_weights is None or link == "identity":
        return targets, np.ones((len(targets), 1), np.float32)
    terms = targets * output_weights
    weights = terms.sum(1, keepdims=True) if link == "softmax" else terms + (1.0 - targets)
    return (terms / weights).astype(np.float32), weights.astype(np.float32)


def _solve_path(
    link: Link, features: np.ndarray, targets: np.ndarray, weights: np.ndarray, train: np.ndarray, folds: Sequence[Fold]
) -> Solved:
    """Walk the l2 grid downwards on every fold at once, roughly; then solve the best l2 to the end."""
    problems = [_Problem(link, features, targets, weights, fit) for fit, _ in folds]
    path: list[tuple[float, float]] = []
    starts: list[list[np.ndarray]] = []
    for l2 in L2S if folds else ():
        for problem in problems:
            problem.solve(l2, ROUGH)
        starts.append([problem.solution for problem in problems])
        path.append((l2, _mean_loss(link, features, targets, weights, problems, folds)))
        best = min(range(len(path)), key=lambda at: path[at][1])
        if len(path) - 1 - best > PATIENCE:
            break
    best_l2 = path[best][0] if path else MIDDLE
    out_of_fold = np.full((len(features), targets.shape[1]), np.nan, np.float32)
    for problem, start, (_, held_out) in zip(problems, starts[best] if path else (), folds, strict=True):
        problem.solution = start
        out_of_fold[held_out] = problem.solve(best_l2, FINE).outputs(features[held_out])
    single = len(folds) == 1 and np.array_equal(folds[0][0], train)
    final = problems[0].solved if single else _Problem(link, features, targets, weights, train).solve(best_l2, FINE)
    return replace(final, path=tuple(path), out_of_fold=out_of_fold)


def _mean_loss(
    link: Link,
    features: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    problems: Sequence[_Problem],
    folds: Sequence[Fold],
) -> float:
    """Return the mean loss over what each fold held out."""
    total, count = 0.0, 0
    for problem, (_, rows) in zip(problems, folds, strict=True):
        losses, _ = _loss_and_slope(link, problem.solved.outputs(features[rows]), targets[rows])
        total, count = total + float((losses * weights[rows]).sum()), count + len(rows)
    return total / max(count, 1)


class _Problem:
    """One training set of the path, with its warm start.

    L-BFGS works on principal components, for each class in units of the loss's curvature along each of them: mean
    p (1 - p) of the class where the solution stands, times the component's variance, as if the two were independent
    (Böhning, 1992, bounds the Hessian in this form). That takes an eighth of the steps that raw features take.
    """

    def __init__(
        self, link: Link, features: np.ndarray, targets: np.ndarray, weights: np.ndarray, rows: np.ndarray
    ) -> None:
        self.link = link
        self.mean, self.scale = standardisation(features[rows])
        self.inputs, self.basis, self.variance = _principal((features[rows] - self.mean) * self.scale)
        self.turned = len(self.inputs) >= len(self.basis)
        self.targets = targets[rows].astype(np.float32)
        self.weights = weights[rows] / len(rows)
        self.solution = np.zeros((targets.shape[1], len(self.variance) + 1))
        """Weight on the principal components, and bias in the last column."""
        self.l2 = MIDDLE

    def solve(self, l2: float, tolerance: float) -> Solved:
        """Minimise at this l2, from where the previous l2 ended."""
        unit = self._unit(l2)
        start = (self.solution / unit).ravel()
        found = lbfgs(lambda flat: self._loss_and_gradient(flat, l2, unit), start, tolerance=tolerance)
        self.solution, self.l2 = found.reshape(self.solution.shape) * unit, l2
        return self.solved

    @property
    def solved(self) -> Solved:
        """Return the head as it stands, in terms of the features."""
        weight, bias = self.solution[:, :-1].astype(np.float32) @ self.basis.T, self.solution[:, -1].astype(np.float32)
        return Solved(weight, bias, self.mean, self.scale, self.l2, (), np.empty((0, len(bias)), np.float32))

    def _loss_and_gradient(self, flat: np.ndarray, l2: float, unit: np.ndarray) -> tuple[float, np.ndarray]:
        solution = flat.reshape(self.solution.shape) * unit
        weight = solution[:, :-1]
        losses, slopes = _loss_and_slope(self.link, self._outputs(solution), self.targets)
        slopes *= self.weights
        by_weight = slopes.T @ self.inputs  # (C, D) or (C, R)
        by_weight = by_weight @ self.basis if self.turned else by_weight  # (C, R)
        gradient = np.hstack([by_weight + l2 * weight, slopes.sum(0)[:, None]]) * unit
        return float((self.weights * losses).sum() + 0.5 * l2 * np.vdot(weight, weight)), gradient.ravel()

    def _outputs(self, solution: np.ndarray) -> np.ndarray:
        """Return the outputs for the training rows, (N, C)."""
        solution = solution.astype(np.float32)
        weight = solution[:, :-1] @ self.basis.T if self.turned else solution[:, :-1]
        return self.inputs @ weight.T + solution[:, -1]

    def _unit(self, l2: float) -> np.ndarray:
        """Return the length of a unit step in each coordinate of the solution, (C, R + 1)."""
        _, slopes = _loss_and_slope(self.link, self._outputs(self.solution), np.zeros_like(self.targets))
        share = 1.0 if self.link == "softmax" else slopes.shape[1]  # the slopes of sigmoids are p / C
        curvature = (self.weights * slopes * (1.0 - share * slopes)).sum(0, dtype=np.float64)
        curvature = np.maximum(curvature, LEAST_CURVATURE / share)[:, None]  # (C, 1)
        return np.hstack([1.0 / np.sqrt(curvature * self.variance + l2), 1.0 / np.sqrt(curvature)])


def lbfgs(
    objective: Callable[[np.ndarray], tuple[float, np.ndarray]],
    start: np.ndarray,
    *,
    max_steps: int = 200,
    tolerance: float = FINE,
    memory: int = 10,
) -> np.ndarray:
    """Minimise a smooth convex function by L-BFGS (Nocedal & Wright, 2006, algorithm 7.5) with backtracking.

    scipy's L-BFGS-B spends ten times as long on its bounds, which there are none of, as these losses take to compute.

    Args:
        objective: Returns value and gradient.
        start: Where to begin.
        max_steps: Steps at most.
        tolerance: Stop when a step gains less than this part of the value.
        memory: Pairs of steps and gradient changes that are remembered.

    Raises:
        TrainingError: The function is not finite where it begins.

    Shape:
        start: float64 (P,) → float64 (P,).
    """
    pairs: deque[tuple[np.ndarray, np.ndarray, float]] = deque(maxlen=memory)
    value, gradient = objective(start)
    if not np.isfinite(value):
        raise TrainingError(f"the loss of the head is {value} before the first step", "report it, with the data's kind")
    for _ in range(max_steps):
        direction = _two_loops(gradient, pairs)
        slope = float(direction @ gradient)
        size = 1.0 if pairs else min(1.0, 1.0 / max(float(np.abs(gradient).sum()), 1e-12))
        while True:
            moved = start + size * direction
            new_value, new_gradient = objective(moved)
            if new_value <= value + 1e-4 * size * slope or size < 1e-8:
                break
            size *= 0.5
        if not new_value <= value:  # NaN too
            return start
        step, change = moved - start, new_gradient - gradient
        gain, start, value, gradient = value - new_value, moved, new_value, new_gradient
        curvature = float(step @ change)
        if curvature > 1e-12:
            pairs.append((step, change, curvature))
        if gain <= tolerance * max(abs(value), 1e-3):
            break
    return start


def _two_loops(gradient: np.ndarray, pairs: Sequence[tuple[np.ndarray, np.ndarray, float]]) -> np.ndarray:
    """Multiply the gradient by the approximate inverse Hessian, and turn it downhill."""
    direction, weights = -gradient, []
    for step, change, curvature in reversed(pairs):
        weights.append(float(step @ direction) / curvature)
        direction -= weights[-1] * change
    if pairs:
        _, change, curvature = pairs[-1]
        direction *= curvature / float(change @ change)
    for (step, change, curvature), weight in zip(pairs, reversed(weights), strict=True):
        direction += (weight - float(change @ direction) / curvature) * step
    return direction


def _principal(features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the principal components of features, by whichever Gram matrix is smaller.

    Shape:
        features: float32 (N, D). Returns basis (D, R) and variance (R,), R = min(N, D), and before them the features as
        they are where N ≥ D, since turning them costs more than turning what they are multiplied by; else turned,
        (N, R).
    """
    num, dim = features.shape
    if num >= dim:
        variance, basis = np.linalg.eigh(features.T @ features / np.float32(num))
        return features, basis, np.maximum(variance, 0.0)
    variance, left = np.linalg.eigh(features @ features.T / np.float32(num))
    variance = np.maximum(variance, 1e-7 * float(variance[-1]) + 1e-30)
    components = left * np.sqrt(variance * num)
    return components, features.T @ (left / np.sqrt(variance * num)), variance


def _loss_and_slope(link: Link, outputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return losses, (N, 1) for softmax and (N, C) else, and their derivative by the outputs (N, C)."""
    if link == "softmax":
        shifted = outputs - outputs.max(1, keepdims=True)
        exponents = np.exp(shifted)
        total = exponents.sum(1, keepdims=True)
        losses = np.log(total) - (targets * shifted).sum(1, keepdims=True)
        return losses, exponents / total - targets
    from scipy.special import expit

    num = outputs.shape[1]
    losses = (np.logaddexp(0.0, outputs) - targets * outputs) / num
    return losses, (expit(outputs) - targets) / num


def standardisation(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and 1/std of each feature; a feature that never varies gets scale 0 and so no say.

    Shape:
        features: (N, D) → float32 (D,), float32 (D,).
    """
    mean = features.mean(0, dtype=np.float64)
    std = features.std(0, dtype=np.float64)
    alive = std > 1e-6 * max(float(std.max(initial=0.0)), 1e-12)
    scale = np.where(alive, 1.0 / np.where(alive, std, 1.0), 0.0)
    return mean.astype(np.float32), scale.astype(np.float32)


def _solve_ridge(features: np.ndarray, targets: np.ndarray, train: np.ndarray, folds: Sequence[Fold]) -> Solved:
    """Choose l2 by the one validation set given, else by exact leave-one-out over the training rows."""
    ridge = _Ridge(features[train], targets[train])
    single = len(folds) == 1
    out_of_fold = np.full((len(features), targets.shape[1]), np.nan, np.float32)
    rows = folds[0][1] if single else train
    best = (np.inf, RIDGE_L2S[0])
    path = []
    for l2 in RIDGE_L2S:
        outputs = ridge.solved(l2).outputs(features[rows]) if single else ridge.leave_one_out(l2)
        loss = float(((outputs - targets[rows]) ** 2).mean())
        path.append((l2, loss))
        if loss < best[0]:
            best = (loss, l2)
            out_of_fold[rows] = outputs
    final = ridge.solved(best[1])
    return Solved(final.weight, final.bias, final.mean, final.scale, best[1], tuple(path), out_of_fold)


class _Ridge:
    """Ridge regression for every l2 from one singular value decomposition."""

    def __init__(self, features: np.ndarray, targets: np.ndarray) -> None:
        self.mean, self.scale = standardisation(features)
        scaled = (features.astype(np.float64) - self.mean) * self.scale / np.sqrt(len(features))
        self.targets = targets.astype(np.float64)
        self.target_mean = self.targets.mean(0)
        self.left, self.values, self.right = np.linalg.svd(scaled, full_matrices=False)
        self.projected = self.left.T @ (self.targets - self.target_mean)  # (R, K)

    def solved(self, l2: float) -> Solved:
        """Return the head for one l2."""
        shrunk = self.values / (self.values**2 + l2) / np.sqrt(len(self.targets))
        weight = (self.right.T @ (shrunk[:, None] * self.projected)).T  # (K, D)
        bias = self.target_mean
        empty = np.empty((0, len(bias)), np.float32)
        return Solved(weight.astype(np.float32), bias.astype(np.float32), self.mean, self.scale, l2, (), empty)

    def leave_one_out(self, l2: float) -> np.ndarray:
        """Return what the head fitted without each row says of that row, (N, K), without refitting."""
        shrink = self.values**2 / (self.values**2 + l2)
        hat = (self.left**2 * shrink).sum(1) + 1 / len(self.targets)  # the last term is the intercept's own leverage
        fitted = self.target_mean + self.left @ (shrink[:, None] * self.projected)
        residual = (self.targets - fitted) / np.maximum(1.0 - hat, 1e-9)[:, None]
        return (self.targets - residual).astype(np.float32)
