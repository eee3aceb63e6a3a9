"""Everything that a report says, as frozen values: `report.json` is exactly `Facts.to_json()`.

The workflow fills `Facts`; `render` and `card` only read it. Nothing here computes a result, so a page can be
drawn again from its JSON years later. Pictures are data URIs (`pictures.thumbnail`), never paths. A section that has
nothing to show stays empty, and `Facts.absent` may say in one sentence why.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from warmstart.errors import RunError
from warmstart.reporting import jsonable
from warmstart.tasks import Metric

SCHEMA = 1
Status = Literal["ok", "note", "warning", "blocking"]


@dataclass(frozen=True)
class Answer:
    """The top of the page: what was built, how good it is, how sure that is, and what it cost."""

    task: str
    """`classification` or `regression`."""
    kind: Literal["single", "multi", "scalar", "vector"]
    data_name: str
    backbone: str
    """Full name, `source/name`."""
    strategy: str
    metric: Metric | None
    """The primary metric on test; on val when there is no test; its `split` says which."""
    seconds: float
    """Wall time of the whole command."""
    num_classes: int = 0
    """Classes, or target columns of a vector regression."""
    input_size: int | None = None
    """Side of the input in pixels."""
    planned_seconds: float | None = None
    budget_seconds: float | None = None
    baseline: Metric | None = None
    """The same metric of the best constant answer (the commonest class, the mean)."""
    test_openings: int = 0
    """How often this run has opened its test split so far."""
    verdict: str = ""
    """One sentence: why this candidate won, in plain words."""
    warnings: tuple[str, ...] = ()
    """What a reader has to know before trusting the number; a sentence each."""
    stopped: bool = False
    """Whether something was given up because a signal asked to stop."""
    run: str = ""
    """Name of the run folder, not its path."""
    created: str = ""
    """ISO 8601 time at which the run finished."""


@dataclass(frozen=True)
class ClassCount:
    """One class (or target column) and how many examples it has in each split; thumbnails where there is room."""

    name: str
    train: int = 0
    val: int = 0
    test: int = 0
    pictures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Histogram:
    """Counts between edges; used for the targets of a regression.

    Shape:
        edges: K + 1 numbers; counts: K numbers.
    """

    name: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class DataFacts:
    """What the data is."""

    num_examples: int = 0
    num_groups: int | None = None
    classes: tuple[ClassCount, ...] = ()
    targets: tuple[Histogram, ...] = ()
    """Distribution of each target column of a regression."""
    sizes: str = ""
    """Sizes of the pictures in words: `32 × 32` or `from 200 × 180 to 4000 × 3000, median 640 × 480`."""
    modes: dict[str, int] = field(default_factory=dict)
    """How many files of each colour mode, as PIL names it."""
    file_bytes: int | None = None
    licence: str | None = None
    notes: tuple[str, ...] = ()
    """`Dataset.notes`: what the reader decided."""
    pictures: tuple[str, ...] = ()
    """A few examples, when there are no classes to sort them by."""


@dataclass(frozen=True)
class Shown:
    """A picture with its id and a word on it: one side of a pair of duplicates, a suspected label error."""

    id: str
    picture: str = ""
    label: str = ""
    split: str = ""


@dataclass(frozen=True)
class Finding:
    """One check of the audit and what came out of it."""

    name: str
    """`exact duplicates`, `near-duplicates`, `conflicting labels`, `group leakage`, `suspected label errors` …"""
    status: Status
    count: int
    """How many examples, pairs or files in all."""
    text: str
    """What was found and what was done about it, in one sentence."""
    across: int | None = None
    """How many of them lie across splits; None where that means nothing."""
    cases: tuple[tuple[Shown, ...], ...] = ()
    """A few cases, each a tuple of the pictures that belong together."""
    names: tuple[str, ...] = ()
    """Ids or paths with their reason, where there is no picture to show (unreadable files)."""


@dataclass(frozen=True)
class AuditFacts:
    """What the audit found; `raw` is `AuditReport.to_json()`."""

    findings: tuple[Finding, ...] = ()
    num_files: int = 0
    seconds: float | None = None
    raw: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class SplitFacts:
    """How the examples were divided."""

    origin: str = ""
    """`Splits.origin`: how the splits came to be, in a sentence."""
    fingerprint: str = ""
    train: int = 0
    val: int = 0
    test: int = 0
    folds: int = 0
    """Number of folds when selection is by cross-validation."""


@dataclass(frozen=True)
class Series:
    """One line of a chart; points whose y is not finite leave a gap."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """A small line chart: loss over epochs, val accuracy over regularisation strength."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    chosen_x: float | None = None
    """Where the kept checkpoint or the chosen value lies."""
    log_x: bool = False


@dataclass(frozen=True)
class Attempt:
    """One candidate that was trained, or that was planned and left out."""

    name: str
    """The strategy, or any name that tells attempts apart."""
    backbone: str = ""
    input_size: int | None = None
    metrics: tuple[Metric, ...] = ()
    """On val; the first one decides. Empty when the attempt was not made."""
    seconds: float | None = None
    planned_seconds: float | None = None
    chosen: bool = False
    reason: str = ""
    """Why it was chosen, not chosen or not made."""
    curves: tuple[Curve, ...] = ()
    details: dict[str, str] = field(default_factory=dict)
    """Plain facts such as `regularisation: 0.01`, `trained parameters: 12,810`."""


@dataclass(frozen=True)
class Ranked:
    """One line of the race's leaderboard."""

    backbone: str
    input_size: int
    strategy: str = "probe"
    metric: Metric | None = None
    """On the examples of train and val that it was judged on; None when it could not be measured."""
    seconds: float | None = None
    num_params: int | None = None
    licence: str | None = None
    chosen: bool = False
    dropped_because: str = ""
    """Empty for those that were in the race to the end."""


@dataclass(frozen=True)
class ShortTrial:
    """One short trial of a strategy, before the best of them ran in earnest."""

    name: str
    """Strategy and options."""
    lr: float
    examples: int
    """Training examples that it saw, repetitions counted."""
    value: float
    """Of the first metric, on val."""
    seconds: float
    verdict: str


@dataclass(frozen=True)
class Compared:
    """A paired comparison of two attempts on the same examples."""

    a: str
    b: str
    metric: str
    difference: float
    """a minus b."""
    low: float
    high: float
    verdict: Literal["a", "b", "tie"]
    n: int
    split: str = "val"
    text: str = ""
    """What followed from it; the page writes a sentence itself when empty."""


@dataclass(frozen=True)
class Decision:
    """Something that was left open and that warmstart decided."""

    key: str
    value: str
    reason: str


@dataclass(frozen=True)
class ClassResult:
    """How one class did. Metrics that do not apply are None."""

    name: str
    support: int
    """Examples of this class in the split."""
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    average_precision: float | None = None
    low: float | None = None
    """Interval of the recall."""
    high: float | None = None


@dataclass(frozen=True)
class Confusion:
    """Confusion matrix as its non-zero cells, so that a thousand classes stay small.

    Shape:
        cells: (true, predicted, count) with indices into `class_names`.
    """

    class_names: tuple[str, ...]
    cells: tuple[tuple[int, int, int], ...]
    split: str = "test"

    @staticmethod
    def from_matrix(class_names: Sequence[str], matrix: Sequence[Sequence[int]], *, split: str = "test") -> Confusion:
        """Keep the non-zero cells of a (true, predicted) matrix of counts."""
        cells = [(i, j, int(count)) for i, row in enumerate(matrix) for j, count in enumerate(row) if count]
        return Confusion(tuple(class_names), tuple(cells), split)


@dataclass(frozen=True)
class Bin:
    """One bar of a reliability diagram."""

    confidence: float
    """Mean confidence of the predictions in the bin."""
    accuracy: float
    count: int


@dataclass(frozen=True)
class Calibration:
    """Whether 80 % sure means right 80 % of the time."""

    bins: tuple[Bin, ...]
    ece_before: float | None = None
    """Expected calibration error of the raw outputs."""
    ece_after: float | None = None
    """The same after temperature scaling."""
    temperature: float | None = None
    """Fitted on val; outputs are divided by it."""
    split: str = "test"
    bins_before: tuple[Bin, ...] = ()
    """The bins before temperature scaling."""


@dataclass(frozen=True)
class Mistake:
    """A confidently wrong prediction, or a large residual."""

    id: str
    true: str
    predicted: str
    picture: str = ""
    confidence: float | None = None
    """Probability of the predicted class; None for a regression."""


@dataclass(frozen=True)
class Explanation:
    """A picture and where the model looked."""

    id: str
    picture: str
    overlay: str
    predicted: str
    true: str = ""
    confidence: float | None = None


@dataclass(frozen=True)
class Scatter:
    """True and predicted values of one target column; a sample of at most some thousand points."""

    name: str
    true: tuple[float, ...]
    predicted: tuple[float, ...]
    n: int
    """How many there were before sampling."""
    split: str = "test"


@dataclass(frozen=True)
class Stage:
    """One stage of the command: seconds planned and seconds spent."""

    name: str
    seconds: float
    planned_seconds: float | None = None


@dataclass(frozen=True)
class EngineTime:
    """One way to run the frozen part, as measured on the first batch."""

    name: str
    images_per_second: float | None = None
    max_difference: float | None = None
    """Largest difference of its outputs from eager PyTorch."""
    chosen: bool = False
    note: str = ""
    """Why it was refused, when it was."""


@dataclass(frozen=True)
class CacheFacts:
    """What the cache saved."""

    hits: int = 0
    computed: int = 0
    seconds: float | None = None
    """Spent on computing features."""
    bytes: int | None = None
    engines: tuple[EngineTime, ...] = ()


@dataclass(frozen=True)
class Setting:
    """One value of the resolved recipe and where it came from."""

    key: str
    value: str
    origin: str
    """`default`, `command line`, `recipe.toml`, `decided` …"""


@dataclass(frozen=True)
class Snippet:
    """Commands or code that a reader can copy."""

    title: str
    code: str
    language: Literal["sh", "python"] = "sh"


@dataclass(frozen=True)
class Facts:
    """All that the page, the JSON and the model card say."""

    answer: Answer
    data: DataFacts = field(default_factory=DataFacts)
    audit: AuditFacts = field(default_factory=AuditFacts)
    splits: SplitFacts = field(default_factory=SplitFacts)
    leaderboard: tuple[Ranked, ...] = ()
    """Candidates of the race, best first."""
    short_trials: tuple[ShortTrial, ...] = ()
    gradients: dict[str, float] = field(default_factory=dict)
    """Layer group → gradient norm relative to weight norm at the probe's solution; empty where it was not needed."""
    attempts: tuple[Attempt, ...] = ()
    comparisons: tuple[Compared, ...] = ()
    decisions: tuple[Decision, ...] = ()
    metrics: tuple[Metric, ...] = ()
    """Every metric of the kept model; a variant names its condition in `split`: `test without near-duplicates`."""
    classes: tuple[ClassResult, ...] = ()
    confusion: Confusion | None = None
    calibration: Calibration | None = None
    scatters: tuple[Scatter, ...] = ()
    """For a regression, one per target column, in the place of the confusion matrix."""
    mistakes: tuple[Mistake, ...] = ()
    explanations: tuple[Explanation, ...] = ()
    explained_by: str = ""
    """Method and paper of the explanations: `explain.METHODS` has the sentences."""
    stages: tuple[Stage, ...] = ()
    cache: CacheFacts | None = None
    environment: dict[str, str] = field(default_factory=dict)
    card: dict[str, object] = field(default_factory=dict)
    """`Card.to_json()` of the backbone."""
    recipe: tuple[Setting, ...] = ()
    usage: tuple[Snippet, ...] = ()
    limits: tuple[str, ...] = ()
    """What the model should not be trusted with, beyond what the page works out itself; a sentence each."""
    absent: dict[str, str] = field(default_factory=dict)
    """Section → one sentence why it is empty. Keys are names of fields of this class."""
    schema: int = SCHEMA

    def to_json(self) -> dict[str, object]:
        """Return a JSON-ready dict; numbers that are not finite become null. `from_json` is its inverse."""
        plain = jsonable.plain(dataclasses.asdict(self))
        assert isinstance(plain, dict)
        return plain

    @staticmethod
    def from_json(facts: Mapping[str, object]) -> Facts:
        """Rebuild facts; unknown keys of newer versions are ignored.

        Raises:
            RunError: This is not the JSON of a report.
        """
        try:
            return jsonable.build(Facts, facts)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(
                f"not a warmstart report: {error}", "run `warmstart report RUN` on the run folder to write it again"
            ) from error

    def dumps(self) -> str:
        """Return the text of `report.json`."""
        return json.dumps(self.to_json(), ensure_ascii=False, indent=1, allow_nan=False) + "\n"
