"""Do 95 % intervals of a difference hold it 95 % of the time, and how often is one of several equal models the better?

Run `python benchmarks/coverage_pairs.py`; it takes about four minutes on one idle core and writes
results/coverage_pairs.json.

Models get an example right when a normal number lies below the quantile of their accuracy; a share `correlation` of its
variance is common to all models. In groups half of the variance is common to the examples of a group. Seeds move a
model's accuracy by 2 points (standard deviation); what is compared is the mean over all seeds that there could be.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import norm

from warmstart import runtime
from warmstart.comparing import Comparison, corrected, many, measured, paired
from warmstart.tasks import Predictions
from warmstart.tasks.classification import Classes

SIZES = (50, 200, 1000, 2000)
ACCURACIES = (0.6, 0.8, 0.9, 0.98)
CORRELATIONS = (0.5, 0.9)
DIFFERENCE = 0.02
RESAMPLES = 200
CANDIDATES = 8
SEED_SPREAD = 0.02
USUAL = 20
"""Mean discordant examples below which an exact test cannot use up its 5 %, and intervals hold more than 95 %."""
TASK = Classes("single", ("no", "yes"))


def models(
    rng: np.random.Generator, num: int, accuracies: Sequence[float], correlation: float, *, group_size: int = 1
) -> list[Predictions]:
    """Draw what models with these accuracies say about the same examples."""
    targets = np.arange(num) % 2
    groups = np.arange(num) // group_size

    def noise() -> np.ndarray:
        own = rng.normal(size=num)
        return own if group_size == 1 else np.sqrt(0.5) * (own + rng.normal(size=groups[-1] + 1)[groups])

    common = noise()
    made = []
    for accuracy in accuracies:
        latent = np.sqrt(correlation) * common + np.sqrt(1 - correlation) * noise()
        said = np.where(latent < norm.ppf(accuracy), targets, 1 - targets)
        values = np.where(np.arange(2) == said[:, None], 0.8, 0.2)
        made.append(Predictions(values, values, np.arange(num), targets, groups if group_size > 1 else None))
    return made


def pairs(num: int, accuracy: float, correlation: float, simulations: int, *, group_size: int = 1) -> dict[str, object]:
    """Count how often the interval holds a difference of 0 and of two points, and how often equals are told apart."""
    held, verdicts, discordant = {0.0: 0, DIFFERENCE: 0}, [], 0.0
    for true, at in itertools.product(held, range(simulations)):
        rng = runtime.rng(at, "pair", num, accuracy, correlation, group_size, true)
        a, b = models(rng, num, (accuracy, accuracy - true), correlation, group_size=group_size)
        found = paired(TASK, a, b, seed=at, resamples=RESAMPLES)
        held[true] += found.low <= true <= found.high
        if true == 0:
            verdicts.append(found.verdict)
            discordant += float((a.values[:, 0] != b.values[:, 0]).sum()) / simulations
    return {
        "n": num,
        "accuracy": accuracy,
        "correlation": correlation,
        "group_size": group_size,
        "mean_discordant": round(discordant, 1),
        "covered_equal": held[0.0] / simulations,
        "covered_different": held[DIFFERENCE] / simulations,
        "false_a": verdicts.count("a") / simulations,
        "false_either": 1 - verdicts.count("tie") / simulations,
    }


def families(num: int, accuracy: float, correlation: float, simulations: int) -> dict[str, object]:
    """Count, for eight equal models, how often anything is said to differ, and how often one of them is lost."""
    said = dict.fromkeys(("fixed_reference", "leader", "leader_drops_a_given_one", "leader_chosen", "all_pairs"), 0)
    for at in range(simulations):
        sides = models(runtime.rng(at, "family", num, accuracy, correlation), num, [accuracy] * CANDIDATES, correlation)
        whole = measured(TASK, sides, seed=at, resamples=RESAMPLES)
        leader = int(np.argmax(whole.values))
        against = many(TASK, sides, reference=leader, seed=at, resamples=RESAMPLES)
        said["leader"] += _any(against)
        every = many(TASK, sides, reference=leader, seed=at, resamples=RESAMPLES, chosen=True)
        said["leader_chosen"] += _any(every)
        said["leader_drops_a_given_one"] += against[0].verdict == "b"
        fixed = [whole.pair(rival, 0) for rival in range(1, CANDIDATES)]
        said["fixed_reference"] += _any(corrected(fixed))
        said["all_pairs"] += _any(
            corrected([whole.pair(a, b) for a, b in itertools.combinations(range(CANDIDATES), 2)])
        )
    shares = {name: count / simulations for name, count in said.items()}
    return {"n": num, "accuracy": accuracy, "correlation": correlation, **shares}


def seeds(num: int, per_model: int, simulations: int) -> dict[str, object]:
    """Count how often means over seeds of two equal recipes are held equal, and how often runs by themselves are."""
    held, wins, alone = 0, 0, 0
    for at in range(simulations):
        rng = runtime.rng(at, "seeds", num, per_model)
        accuracies = 0.85 + SEED_SPREAD * rng.normal(size=2 * per_model)
        sides = models(rng, num, accuracies.tolist(), 0.5)
        members = [list(range(per_model)), list(range(per_model, 2 * per_model))]
        found = measured(TASK, sides, seed=at, resamples=RESAMPLES).means(members, seed=at).pair(0, 1)
        held += found.low <= 0 <= found.high
        wins += found.verdict != "tie"
        alone += paired(TASK, sides[0], sides[per_model], seed=at, resamples=RESAMPLES).verdict != "tie"
    return {
        "n": num,
        "seeds": per_model,
        "covered": held / simulations,
        "false_either": wins / simulations,
        "false_either_of_single_runs": alone / simulations,
    }


def readme(rows: Sequence[dict[str, object]], simulations: int) -> list[dict[str, object]]:
    """Return the lines of the table of results."""
    usual = [row for row in rows if float(str(row["mean_discordant"])) >= USUAL]
    held = [float(str(row[name])) for row in usual for name in ("covered_equal", "covered_different")]
    wrong = [float(str(row["false_a"])) for row in rows]
    return [
        {
            "what": "95 % intervals of the difference between two models' accuracies that hold it",
            "what_zh": "两个模型准确率之差的 95 % 区间包含真值的比例",
            "value": f"{np.mean(held):.3f}",
            "low": f"{min(held):.3f}",
            "high": f"{max(held):.3f}",
            "n": f"{len(held)} × {simulations}",
        },
        {
            "what": "of two equal models the first is called better",
            "what_zh": "两个同样好的模型中前者被误判为更好的比例",
            "value": f"{np.mean(wrong):.3f}",
            "low": f"{min(wrong):.3f}",
            "high": f"{max(wrong):.3f}",
            "n": f"{len(wrong)} × {simulations}",
        },
    ]


def _any(found: Sequence[Comparison]) -> bool:
    return any(one.verdict != "tie" for one in found)


def main() -> None:
    """Run all settings and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "coverage_pairs.json")
    chosen = parser.parse_args()
    started, count = time.perf_counter(), chosen.simulations
    plan: dict[str, list[Callable[[], dict[str, object]]]] = {
        "pairs": [
            lambda n=n, p=p, r=r: pairs(n, p, r, count)  # type: ignore[misc]
            for n, p, r in itertools.product(SIZES, ACCURACIES, CORRELATIONS)
        ],
        "grouped": [
            lambda n=n, p=p: pairs(n, p, 0.5, count, group_size=5)  # type: ignore[misc]
            for n, p in itertools.product((200, 1000), (0.6, 0.9))
        ],
        "families": [
            lambda n=n, p=p, r=r: families(n, p, r, count)  # type: ignore[misc]
            for n, p, r in ((200, 0.8, 0.5), (1000, 0.8, 0.5), (1000, 0.95, 0.9))
        ],
        "seeds": [lambda n=n, s=s: seeds(n, s, count) for n, s in itertools.product((300, 1000), (2, 3, 5))],  # type: ignore[misc]
    }
    rows: dict[str, list[dict[str, object]]] = {}
    for name, settings in plan.items():
        rows[name] = [setting() for setting in settings]
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    result = {
        "what": "share of 95 % intervals of a difference that hold it; share of equal models said to differ",
        "simulations": count,
        "standard_error": round(float(np.sqrt(0.95 * 0.05 / count)), 4),
        "resamples": RESAMPLES,
        "difference": DIFFERENCE,
        "candidates": CANDIDATES,
        "cpu_seconds": round(time.process_time(), 1),
        "environment": runtime.environment(),
        "readme": readme([*rows["pairs"], *rows["grouped"]], count),
        **rows,
    }
    chosen.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
