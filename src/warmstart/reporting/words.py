"""How the report says things: metric names and their meaning, rounding, durations, the headline."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from warmstart.reporting.facts import Answer, Compared, Facts
from warmstart.tasks import Metric

MISSING = "–"
NB = "\u00a0"
"""No break between a number and its unit."""
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Word:
    """What a metric is called, what it means, and how its number is written."""

    label: str
    meaning: str
    percent: bool = False
    higher_is_better: bool = True
    low: float | None = 0.0
    """Lower end of its scale; None when it has none."""
    high: float | None = 1.0
    """Upper end of its scale; None when it has none."""


METRICS = {
    "accuracy": Word("accuracy", "share of examples whose class was predicted correctly", percent=True),
    "balanced_accuracy": Word("balanced accuracy", "mean over classes of the share found; rare classes count", True),
    "exact_match": Word("exact match", "share of examples with every label right", True),
    "hamming_loss": Word("wrong labels", "share of single yes/no labels that are wrong; 0 is best", True, False),
    "precision": Word("precision", "of those predicted as a class, the share that belongs to it", True),
    "recall": Word("recall", "of those that belong to a class, the share that was found", True),
    "f1": Word("F1", "harmonic mean of precision and recall; 1 is perfect"),
    "auroc": Word("AUROC", "chance that a member of a class ranks above a non-member; 0.5 is guessing, 1 perfect"),
    "average_precision": Word("average precision", "area under precision against recall; 1 is perfect"),
    "log_loss": Word(
        "log loss", "how surprised the predicted probabilities are by the truth; 0 is best", False, False, 0, None
    ),
    "brier": Word("Brier score", "mean squared error of the probabilities; 0 is best", False, False, 0, None),
    "ece": Word("calibration error", "how far confidence is from accuracy, on average (ECE); 0 is best", True, False),
    "mse": Word("mean squared error", "mean of the squared differences; 0 is best", False, False, 0, None),
    "rmse": Word(
        "RMSE", "typical size of the error in target units, large ones weigh more; 0 is best", False, False, 0, None
    ),
    "mae": Word("mean absolute error", "mean size of the error in target units; 0 is best", False, False, 0, None),
    "r2": Word("R²", "share of the variance explained; 0 is always answering the mean, 1 perfect", False, True, None),
    "spearman": Word("Spearman correlation", "whether the order is right; 1 perfect, 0 none", False, True, None),
    "loss": Word("loss", "what training minimises; 0 is best", False, False, 0, None),
}
AVERAGES = {
    "macro": "mean over classes",
    "micro": "all decisions pooled",
    "weighted": "classes weighted by their size",
}
ALIASES = {
    "average_precision": "average_precision|map|ap",
    "auroc": "auroc|roc_auc|auc",
    "log_loss": "log_loss|nll|cross_entropy",
    "exact_match": "exact_match|subset_accuracy",
}


def metric(name: str) -> Word:
    """Return the words of a metric; averages (`macro_f1`), `top5` and unknown names included.

    Example:
        >>> metric("f1_macro").label
        'F1 (macro)'
    """
    if name in METRICS:
        return METRICS[name]
    if top := re.fullmatch(r"top_?(\d+)(_accuracy)?", name):
        k = top.group(1)
        return Word(f"top-{k} accuracy", f"share of examples whose class is among the {k} most likely ones", True)
    key = _base(name)
    if key is None:
        return Word(name.replace("_", " "), "", low=None, high=None)
    word = METRICS[key]
    rest = [part for part in name.split("_") if part in AVERAGES or part in ("after", "before", "calibrated", "raw")]
    hint = "; ".join([word.meaning, *(AVERAGES[part] for part in rest if part in AVERAGES)])
    label = f"{word.label} ({', '.join(rest)})" if rest else word.label
    return Word(label, hint, word.percent, word.higher_is_better, word.low, word.high)


def _base(name: str) -> str | None:
    """Find the longest known metric inside a compound name."""
    parts = f"_{name}_"
    found = [key for key in METRICS if re.search(f"_({ALIASES.get(key, key)})_", parts)]
    return max(found, key=len) if found else None


def value(item: Metric, which: Literal["value", "low", "high"] = "value", *, width: float | None = None) -> str:
    r"""Write a metric's value, low or high with the digits that its interval supports.

    Args:
        item: The metric.
        which: Which of its three numbers.
        width: Width of another interval whose digits to use, so that numbers in one row look alike.

    Example:
        >>> value(Metric("accuracy", 0.88312, 0.8767, 0.8894, 10000, "test"))
        '88.3\xa0%'
    """
    word = metric(item.name)
    scale = 100.0 if word.percent else 1.0
    digits = decimals(scale * (item.high - item.low if width is None else width), percent=word.percent)
    return _number(scale * getattr(item, which), digits) + (f"{NB}%" if word.percent else "")


def interval(item: Metric, *, width: float | None = None) -> str:
    """Write a metric's interval: `87.7 to 88.9 %`."""
    low, high = value(item, "low", width=width), value(item, "high", width=width)
    return f"{low.removesuffix(f'{NB}%')} to {high}"


def has_interval(item: Metric) -> bool:
    """Tell whether low and high are numbers."""
    return math.isfinite(item.low) and math.isfinite(item.high)


def decimals(width: float, *, percent: bool = False) -> int:
    """Return how many decimals an interval of this width supports: enough to see its ends apart, no more."""
    if not math.isfinite(width) or width <= 0:
        return 1 if percent else 3
    if percent:
        return 0 if width >= 10 else 1 if width >= 0.3 else 2
    return max(0, min(5, -math.floor(math.log10(width / 4))))


def _number(number: float | None, digits: int) -> str:
    if number is None or not math.isfinite(number):
        return MISSING
    return f"{number:,.{digits}f}".replace("-", "−")


def plain(number: float | None) -> str:
    """Write a number without interval with three significant digits."""
    if number is None or not math.isfinite(number):
        return MISSING
    if number == 0 or 0.001 <= abs(number) < 1e6:
        digits = 0 if number == 0 else max(0, 2 - math.floor(math.log10(abs(number))))
        return f"{number:,.{min(digits, 5)}f}".replace("-", "−")
    mantissa, _, exponent = f"{number:.1e}".partition("e")
    return f"{mantissa} × {power(10.0 ** int(exponent))}".replace("-", "−")


def power(number: float) -> str:
    """Write a power of ten: `10⁻⁵`, and 0.01 to 100 as they are."""
    if 0.01 <= number <= 100:
        return f"{number:g}"
    return "10" + str(round(math.log10(number))).translate(RAISED)


def percent(fraction: float | None, digits: int = 0) -> str:
    """Write a fraction as a percentage; nearly all is not all, so 0.999 is not written as 100 %."""
    if fraction is None or not math.isfinite(fraction):
        return MISSING
    if 0.99 <= fraction < 1 and digits < 2:
        return f"{min(99.9, 100 * fraction):.1f}{NB}%"
    return f"{100 * fraction:.{digits}f}{NB}%"


def count(number: int | None) -> str:
    """Write a count with thousands separators."""
    return MISSING if number is None else f"{number:,}"


def plural(number: int, one: str, many: str | None = None) -> str:
    """Write a count with its noun: `1 example`, `2,000 examples`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def seconds(duration: float | None) -> str:
    """Write a duration the way a person says it: `0.8 s`, `42 s`, `9 min 30 s`, `2 h 05 min`."""
    if duration is None or not math.isfinite(duration):
        return MISSING
    if duration < 9.95:
        return f"{duration:.1f}{NB}s"
    whole = round(duration)
    if whole < 60:
        return f"{whole}{NB}s"
    if whole < 3600:
        return f"{whole // 60}{NB}min" + (f"{NB}{whole % 60}{NB}s" if whole % 60 else "")
    minutes = round(duration / 60)
    return f"{minutes // 60}{NB}h" + (f"{NB}{minutes % 60:02d}{NB}min" if minutes % 60 else "")


def size(num_bytes: float | None) -> str:
    """Write a size in bytes with decimal units."""
    if num_bytes is None:
        return MISSING
    number = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f}{NB}{unit}" if unit == "B" or number >= 100 else f"{number:.1f}{NB}{unit}"
        number /= 1000
    return f"{number:.1f}{NB}TB"


def when(created: str) -> str:
    """Shorten an ISO 8601 time to the minute."""
    return created.replace("T", " ")[:16]


def joined(items: Iterable[str]) -> str:
    """Join as prose: `a, b and c`."""
    listed = list(items)
    return " and ".join(filter(None, [", ".join(listed[:-1]), listed[-1]])) if listed else ""


def subject(answer: Answer) -> str:
    """Say what was built: `A classifier for the 10 classes of cifar10`."""
    match answer.kind:
        case "single":
            return f"A classifier for the {answer.num_classes:,} classes of {answer.data_name}"
        case "multi":
            return f"A model that gives pictures of {answer.data_name} any of {answer.num_classes:,} labels"
        case "scalar":
            return f"A model that predicts a number for each picture of {answer.data_name}"
        case _:
            return f"A model that predicts {answer.num_classes:,} numbers for each picture of {answer.data_name}"


def headline(answer: Answer) -> str:
    """Say what was built and how good it is, in one sentence."""
    if answer.metric is None:
        return f"{subject(answer)}, not yet measured"
    where = "the test examples" if answer.metric.split == "test" else f"the {answer.metric.split} examples"
    if answer.metric.name == "accuracy":
        return f"{subject(answer)}, right on {value(answer.metric)} of {where}"
    return f"{subject(answer)}, with {metric(answer.metric.name).label} {value(answer.metric)} on {where}"


def openings(times: int) -> str:
    """Say how often the test split was opened."""
    if times == 0:
        return "never opened"
    return "opened once" if times == 1 else f"opened {times} times"


def compared(item: Compared) -> str:
    """Say what a paired comparison means, in a sentence."""
    if item.text:
        return item.text
    if item.verdict == "tie":
        return f"The interval contains zero: {item.n:,} {item.split} examples cannot tell {item.a} from {item.b}."
    better, worse = (item.a, item.b) if item.verdict == "a" else (item.b, item.a)
    return f"{better} is better than {worse}: the interval lies clear of zero."


def cautions(facts: Facts) -> list[str]:
    """Say what stands beside the headline: the workflow's warnings, and that a val number flatters."""
    measured = facts.answer.metric
    if measured is None or measured.split == "test":
        return list(facts.answer.warnings)
    flatters = f"There was no test: the number comes from {measured.split} examples that also chose the model."
    return [flatters, *facts.answer.warnings]


def limits(facts: Facts) -> list[str]:
    """Say what the numbers do not cover: the workflow's own limits, then those that follow from the facts."""
    found = list(facts.limits)
    measured = facts.answer.metric
    if measured is not None and measured.n < 300:
        what = plural(measured.n, f"{measured.split} example")
        found.append(f"Only {what}: the interval is wide, and rare failures are not seen.")
    if facts.answer.test_openings > 1:
        found.append(
            f"Test was opened {facts.answer.test_openings} times, so its later numbers are a little optimistic."
        )
    rare = [item.name for item in facts.classes if item.support < 10]
    if rare:
        shown = joined(rare[:5]) + (f" and {len(rare) - 5} more" if len(rare) > 5 else "")
        found.append(f"Fewer than 10 examples measure {shown}: per-class numbers there are rough.")
    found.append(
        "It was measured on data like its training data; other cameras, places or people need a new measurement."
    )
    return found
