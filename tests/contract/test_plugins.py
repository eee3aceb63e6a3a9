"""Every plug-in of every kind keeps its contract, and a plug-in that breaks it is told so."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from warmstart import plugins, runtime
from warmstart.check import check_backbone, check_reader, check_score, check_source, check_strategy, check_task
from warmstart.data import Dataset, read
from warmstart.errors import SourceError
from warmstart.models import Card, InputSpec
from warmstart.models.build import backbone
from warmstart.models.model import Model
from warmstart.models.weights import save_backbone
from warmstart.scores import Evidence
from warmstart.strategies import Group
from warmstart.tasks import MetricSpec

COUNTS = {"reader": 5, "source": 6, "task": 2, "method": 0, "strategy": 6, "score": 11}
VARIANTS: dict[str, tuple[dict[str, object], ...]] = {
    "full": ({}, {"batch_norm": "adapt", "lr_decay": 0.5}),
    "gradual": ({}, {"epochs_per_group": 2, "depth": 2}),
    "l2_sp": ({}, {"head": "fresh", "batch_norm": "adapt"}),
    "last_k": ({}, {"k": 2, "batch_norm": "adapt"}, {"k": 99}),
    "lp_ft": ({}, {"depth": 1}),
    "probe": ({}, {"head": "gradient"}, {"head": "gradient", "batch_norm": "adapt"}),
    "classification": ({}, {"label_smoothing": 0.1}, {"class_weights": "balanced"}),
    "regression": ({}, {"loss": "l1"}, {"loss": "huber"}),
    "gbc": ({}, {"covariance": "spherical", "dims": 8}),
    "h_score": ({}, {"shrinkage": False}),
    "knn": ({}, {"k": 1}, {"metric": "euclidean"}),
    "logistic": ({}, {"by": "log_loss", "folds": 3}),
    "loo_ridge": ({}, {"by": "r2"}),
    "nleep": ({}, {"covariance": "diag"}),
    "transrate": ({}, {"unit_rows": True}),
}
"""Options that change what a plug-in does, by its name."""


def variants(kind: str) -> list[object]:
    """List every plug-in of a kind with each of its options."""
    return [
        pytest.param(name, options, id=f"{name}-{number}")
        for name in plugins.names(kind)
        for number, options in enumerate(VARIANTS.get(name, ({},)))
    ]


def test_there_are_as_many_plugins_as_we_know_of() -> None:
    assert {kind: len(plugins.names(kind)) for kind in plugins.FOLDERS} == COUNTS


@pytest.mark.parametrize(("name", "options"), variants("strategy"))
def test_strategies(name: str, options: dict[str, object]) -> None:
    check_strategy(plugins.load("strategy", name)(**options))


@pytest.mark.parametrize(("name", "options"), variants("task"))
def test_tasks(name: str, options: dict[str, object]) -> None:
    check_task(plugins.load("task", name)(**options))


@pytest.mark.parametrize(("name", "options"), variants("score"))
def test_scores(name: str, options: dict[str, object]) -> None:
    check_score(plugins.load("score", name)(**options))


@pytest.mark.parametrize("name", plugins.names("source"))
def test_sources(name: str) -> None:
    source = plugins.load("source", name)()
    if name == "local":
        _shelve("tiny")
    known = {"random": "test_resnet", "stack": "random/test_resnet@32+random/test_vit@48"}.get(name)
    check_source(source, name, known=known, loads=name in ("local", "random", "stack"))


def _shelve(name: str) -> None:
    body = backbone("timm:test_vit", InputSpec(image_size=32), seed=0).eval()
    card = Card(f"local/{name}", arch="timm:test_vit")
    save_backbone(body, card, runtime.shelf_root() / name)


@pytest.mark.parametrize("name", plugins.names("reader"))
def test_readers(name: str, tmp_path: Path) -> None:
    check_reader(plugins.load("reader", name)(), WRITERS[name](tmp_path))


def _folder(root: Path) -> Path:
    for split, label, number in itertools.product(("train", "val"), ("cat", "dog"), range(3)):
        _picture(root / split / label / f"{number}.png", number)
    return root


def _imagenet(root: Path) -> Path:
    for split, label, number in itertools.product(("train", "val"), ("n01440764", "n01443537"), range(2)):
        _picture(root / split / label / f"{label}_{number}.JPEG", number)
    return root


def _table(root: Path) -> Path:
    rows = ["file,label,patient,split"]
    for number in range(6):
        _picture(root / f"{number}.png", number)
        rows.append(f"{number}.png,{'ab'[number % 2]},p{number // 2},{'train' if number < 4 else 'test'}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root / "labels.csv"


def _cifar(root: Path) -> Path:
    (root / "batches.meta.txt").write_text("\n".join(f"class{k}" for k in range(10)) + "\n")
    for name in (*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"):
        pixels = _noise(len(name), 2 * 3072).reshape(2, 3072)
        (root / name).write_bytes(np.concatenate([np.array([[1], [7]], np.uint8), pixels], axis=1).tobytes())
    return root


def _idx(root: Path) -> Path:
    for stem, count in (("train", 4), ("t10k", 2)):
        pixels = _noise(count, count * 28 * 28).tobytes()
        images = struct.pack(">HBBIII", 0, 8, 3, count, 28, 28) + pixels
        (root / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        labels = struct.pack(">HBBI", 0, 8, 1, count) + bytes(range(count))
        (root / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    return root


def _picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_noise(number, 16 * 16 * 3).reshape(16, 16, 3)).save(path)


def _noise(seed: int, count: int) -> np.ndarray:
    return runtime.rng(seed, "pixels").integers(0, 256, count, dtype=np.uint8)


WRITERS: dict[str, Callable[[Path], Path]] = {
    "cifar": _cifar,
    "idx": _idx,
    "image_folder": _folder,
    "imagenet": _imagenet,
    "table": _table,
}
"""Write the smallest data set that each reader reads."""


# What follows breaks each contract on purpose: a check that has never failed has not been seen to work.


def sabotaged(plugin: object, **methods: object) -> object:
    """Give a plug-in other methods."""
    changed = type(f"Sabotaged{type(plugin).__name__}", (type(plugin),), methods)
    return changed(**{field.name: getattr(plugin, field.name) for field in dataclasses.fields(plugin)})  # type: ignore[arg-type]


FULL, PROBE, LAST = (plugins.load("strategy", name) for name in ("full", "probe", "last_k"))


def _lies(change: Callable[[Group], Group]) -> Callable[[object, Model], Sequence[Group]]:
    """Return a `prepare` that declares something else for the first group."""

    def prepare(self: object, model: Model) -> Sequence[Group]:
        first, *rest = FULL(batch_norm="adapt").prepare(model)
        return (change(first), *rest)

    return prepare


def _headless(self: object, model: Model) -> Sequence[Group]:
    return FULL().prepare(model)[:-1]


def _twice(self: object, model: Model) -> Sequence[Group]:
    groups = FULL().prepare(model)
    return (*groups, groups[0])


def _foreign(self: object, model: Model) -> Sequence[Group]:
    return (*PROBE(head="gradient").prepare(model), Group("mine", (torch.nn.Parameter(torch.zeros(3)),)))


def _moody(calls: itertools.count) -> Callable[[object, Model], Sequence[Group]]:
    def prepare(self: object, model: Model) -> Sequence[Group]:
        return LAST(k=1 + next(calls) % 2).prepare(model)

    return prepare


def _meddles(self: object, model: Model) -> Callable[[], torch.Tensor]:
    """Change a frozen weight from within the penalty."""
    frozen, head = next(iter(model.backbone.parameters())), model.head.linear.weight

    def penalty() -> torch.Tensor:
        with torch.no_grad():
            frozen.add_(1e-3)
        return head.square().sum() * 1e-6

    return penalty


def _hidden(self: object, model: Model) -> Sequence[Group]:
    """Let a hook that nobody declares move a buffer of the frozen part."""
    norm = next((m for m in model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)), None)

    def count(*_: object) -> None:
        if norm is not None:
            norm.num_batches_tracked.add_(1)

    model.head.register_forward_hook(count)
    return FULL(batch_norm="still").prepare(model)


def _stiff(self: object, model: Model) -> Callable[[], torch.Tensor]:
    weight = model.head.linear.weight
    return lambda: (weight - weight.detach() + 1e3).square().sum() * 1e3


STRATEGIES = {
    "headless": (FULL(), {"prepare": _headless}, r"the head's \['linear.weight', 'linear.bias'\] are in no group"),
    "twice": (FULL(), {"prepare": _twice}, "a parameter is in two groups"),
    "foreign": (FULL(), {"prepare": _foreign}, "1 parameters in groups are not the model's"),
    "nothing": (FULL(), {"prepare": lambda self, model: ()}, "nothing learns, and head_start is"),
    "backwards": (FULL(), {"prepare": _lies(lambda g: dataclasses.replace(g, lr_scale=-1.0))}, "not positive"),
    "asleep": (
        FULL(),
        {"prepare": _lies(lambda g: dataclasses.replace(g, lr_scale=1e-12))},
        "should have learned and did not move",
    ),
    "moody": (FULL(), {"prepare": _moody(itertools.count())}, "other groups for an equal model"),
    "meddles": (LAST(), {"penalty": _meddles}, "changed in 1 steps and no group|differ between a fit from cut"),
    "hidden": (FULL(), {"prepare": _hidden}, "num_batches_tracked.*changed in 1 steps and no group declares them"),
    "vector": (FULL(), {"penalty": lambda self, m: lambda: m.head.linear.bias}, r"the penalty has shape \(4,\)"),
    "nan": (FULL(), {"penalty": lambda self, m: lambda: m.head.linear.bias.sum() * torch.nan}, "the penalty is nan"),
    "constant": (FULL(), {"penalty": lambda self, m: lambda: torch.ones(())}, "depends on nothing that learns"),
    "stiff": (FULL(), {"penalty": _stiff}, "after 150 steps on 8 examples"),
    "slow": (FULL(), {"lrs": {"adamw": 0.0}}, "the learning rate for adamw is 0.0"),
}


@pytest.mark.parametrize("fault", STRATEGIES)
def test_a_broken_strategy_is_told(fault: str) -> None:
    plugin, methods, said = STRATEGIES[fault]
    with pytest.raises(AssertionError, match=said):
        check_strategy(sabotaged(plugin, **methods))  # type: ignore[arg-type]


def test_a_strategy_that_pulls_at_frozen_weights_is_told() -> None:
    def penalty(self: object, model: Model) -> Callable[[], torch.Tensor]:
        weights = next(iter(model.backbone.parameters()))
        return lambda: weights.square().sum() + model.head.linear.weight.square().sum()

    with pytest.raises(AssertionError, match=r"the penalty pulls at \['backbone.*'\], which are in no group"):
        check_strategy(sabotaged(LAST(), penalty=penalty))  # type: ignore[arg-type]


def test_drifting_statistics_deep_inside_a_layer_group_keep_the_cut_above_them() -> None:
    """A strategy may name one batch-norm layer of a group; what is computed after it must not be cached."""

    def prepare(self: object, model: Model) -> Sequence[Group]:
        norms = tuple(m for m in model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))[:1]
        return (Group("drift", (), norms, statistics="adapt"), *PROBE(head="gradient").prepare(model))

    check_strategy(sabotaged(PROBE(head="gradient"), prepare=prepare))  # type: ignore[arg-type]


CLASSES, NUMBERS = (plugins.load("task", name) for name in ("classification", "regression"))


def _bound(options: object, **methods: object) -> object:
    """Give the bound task of some options other methods."""

    def bind(self: object, dataset: Dataset) -> object:
        return sabotaged(type(options).bind(self, dataset), **methods)  # type: ignore[attr-defined]

    return sabotaged(options, bind=bind)


def _wild_head(self: object, dim: int, *, seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    head = CLASSES().bind(_tiny()).head(dim)
    head.linear.weight.data.normal_(0.0, 2.0, generator=generator)
    return head


def _tiny() -> Dataset:
    return dataclasses.replace(
        read.from_arrays(np.zeros((8, 4, 4, 3), np.uint8), np.arange(8) % 4), class_names=tuple("abcd")
    )


def _by_spread(self: object, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Depend on the batch as a whole, in a way that a first loss hardly shows."""
    return torch.nn.functional.mse_loss(outputs, targets) * (1 + 0.01 * targets.mean())


def _upside_down(self: object) -> Sequence[MetricSpec]:
    return [MetricSpec("rmse", higher_is_better=True)]


def _forgets(self: object, facts: dict[str, object]) -> object:
    return NUMBERS.restore(self, {**facts, "mean": [0.0] * len(facts["mean"])})  # type: ignore[arg-type]


TASKS = {
    "wild head": (_bound(CLASSES(), head=_wild_head), "the loss starts at .*, expected 1.386|the head gives"),
    "summed loss": (
        _bound(CLASSES(), loss=lambda self, o, t: torch.nn.functional.cross_entropy(o, t, reduction="sum")),
        "the loss starts at|the loss of a batch is|must",
    ),
    "no gradient": (
        _bound(NUMBERS(), loss=lambda self, o, t: (o - t).detach().square().mean() + o.sum() * 0),
        "the gradient of .* is 0 everywhere",
    ),
    "batch statistics": (_bound(NUMBERS(), loss=_by_spread), "its micro-batches add up to"),
    "no probabilities": (_bound(CLASSES(), predict=lambda self, o: o.sigmoid()), "probabilities sum to .*, not 1"),
    "other units": (_bound(NUMBERS(), predict=lambda self, o: o * 1.0), "does not turn targets back into their units"),
    "upside down": (_bound(NUMBERS(), metrics=_upside_down), "rmse is .* for a right model and .* for a wrong one"),
    "unknown metric": (_bound(NUMBERS(), metrics=lambda self: [MetricSpec("luck")]), "luck"),
    "forgets": (sabotaged(NUMBERS(), restore=_forgets), r"restore\(to_json\(\)\) says other facts"),
}


@pytest.mark.parametrize("fault", TASKS)
def test_a_broken_task_is_told(fault: str) -> None:
    options, said = TASKS[fault]
    with pytest.raises(AssertionError, match=said):
        check_task(options)  # type: ignore[arg-type]


@dataclass(frozen=True)
class BrokenReader:
    """Reads folders with a fault of choice."""

    fault: str
    reads: ClassVar[itertools.count] = itertools.count()

    def matches(self, path: Path) -> bool:
        return self.fault != "shy"

    def read(self, path: Path) -> Dataset:
        dataset = plugins.load("reader", "image_folder")().read(path)
        assert dataset.targets is not None
        match self.fault:
            case "decodes":
                Image.open(dataset.inputs[0])  # type: ignore[arg-type]
            case "short":
                return dataclasses.replace(dataset, targets=dataset.targets[1:])
            case "copies":
                return dataclasses.replace(dataset, ids=[dataset.ids[0]] * len(dataset))
            case "shuffles":
                return dataset.take(np.roll(np.arange(len(dataset)), next(self.reads)))
            case "type":
                return dataclasses.replace(dataset, targets=dataset.targets.astype(np.int32))
            case "range":
                return dataclasses.replace(dataset, targets=dataset.targets + 1)
            case "split":
                return dataclasses.replace(dataset, given_split=np.array(["dev"] * len(dataset)))
            case "empty":
                return dataset.take(np.arange(0))
        return dataset


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("shy", "matches says no"),
        ("decodes", "read decodes pictures"),
        ("short", "targets has 11 rows for 12 ids"),
        ("copies", "11 ids are there more than once"),
        ("shuffles", "another order"),
        ("type", "single targets are int32, expected int64"),
        ("range", "targets 1 to 2 for 2 class names"),
        ("split", r"given_split holds \['dev'\]"),
        ("empty", "no examples"),
    ],
)
def test_a_broken_reader_is_told(fault: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=said):
        check_reader(BrokenReader(fault), _folder(tmp_path))


@dataclass(frozen=True)
class BrokenSource:
    """Offers two networks with a fault of choice."""

    fault: str

    def available(self) -> Sequence[Card]:
        if self.fault == "eager":
            torch.load("nowhere", weights_only=True)
        names = ("mine/one", "mine/one" if self.fault == "copies" else "mine/two")
        return [Card(f"their/{name}" if self.fault == "foreign" else name) for name in names]

    def load(self, name: str) -> tuple[torch.nn.Module, Card]:
        if name not in ("one", "two") and self.fault != "agrees":
            if self.fault == "raw":
                raise KeyError(name)
            raise SourceError(f"no {name!r}", "look elsewhere" if self.fault == "vague" else "did you mean 'mine/one'?")
        body, card = plugins.load("source", "random")().load("test_resnet")
        body = body.train() if self.fault == "training" else body
        return body, dataclasses.replace(card, weights_hash="0" * 32) if self.fault == "hash" else card

    def fetch(self, name: str) -> Path:
        return Path(name)

    def check(self, name: str) -> None:
        if name not in ("one", "two") and self.fault not in ("agrees", "trusting"):
            self.load(name)
        if self.fault == "picky":
            raise SourceError(f"no {name!r}", "did you mean 'mine/one'?")

    def files(self, name: str) -> tuple[Path, ...]:
        return ()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("trusting", r"check\('onex'\) passes, and load refuses it"),
        ("picky", r"check\('one'\) refuses what is available"),
        ("eager", r"available\(\) loads weights"),
        ("copies", "cards share names"),
        ("foreign", r"cards are named \['their/mine/one', 'their/mine/two'\], expected mine/…"),
        ("agrees", "loading 'onex' works"),
        ("raw", "raises KeyError .*, expected SourceError"),
        ("vague", "does not name 'one': no 'onex' look elsewhere"),
        ("training", "the backbone is in train mode"),
        ("hash", "the card says hash 0000"),
    ],
)
def test_a_broken_source_is_told(fault: str, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_source(BrokenSource(fault), "mine", loads=True)  # type: ignore[arg-type]


def test_a_sound_source_of_somebody_else_passes() -> None:
    check_source(BrokenSource("none"), "mine", loads=True)  # type: ignore[arg-type]


def test_a_backbone_that_is_none_is_told() -> None:
    with pytest.raises(AssertionError):
        check_backbone(torch.nn.Linear(2, 2), torch.zeros(2, 3, 8, 8, dtype=torch.uint8))  # type: ignore[arg-type]


KNN, PRIOR = (plugins.load("score", name) for name in ("knn", "prior"))


def _upside_down(self: object, evidence: Evidence, *, seed: int = 0) -> float:
    return -float(KNN().value(evidence))


def _first_rows(self: object, evidence: Evidence, *, seed: int = 0) -> float:
    """Let four examples decide because of where they stand."""
    return float(KNN().value(evidence)) + len(set(evidence.targets[:4]))


def _by_number(self: object, evidence: Evidence, *, seed: int = 0) -> float:
    return float(KNN().value(evidence)) + float(evidence.targets[-1])


def _writes(self: object, evidence: Evidence, *, seed: int = 0) -> float:
    value = float(KNN().value(evidence))
    evidence.features[:] *= 2.0
    return value


def _moody_value(calls: itertools.count) -> Callable[..., float]:
    return lambda self, evidence, *, seed=0: float(KNN().value(evidence)) + 1e-6 * next(calls)


def _fails_when_wide(self: object, evidence: Evidence, *, seed: int = 0) -> float:
    assert evidence.x.shape[0] > evidence.x.shape[1]
    return float(KNN().value(evidence))


SCORES: dict[str, tuple[dict[str, object], str]] = {
    "needless": ({"needs": ()}, "needs nothing, so it can say nothing"),
    "strange": ({"needs": ("moon",)}, r"needs \['moon'\], which no evidence has"),
    "kindless": ({"kinds": ()}, "takes no kind of targets"),
    "unknown": ({"kinds": ("masks",)}, "some are no kinds of targets"),
    "free": ({"cost": ""}, "the cost '' is no sentence"),
    "upside down": ({"value": _upside_down}, "features that tell the targets get -1, useless ones"),
    "first rows": ({"value": _first_rows, "kinds": ("single",)}, "the order of the examples moves the value by"),
    "by number": (
        {"value": _by_number, "kinds": ("single",)},
        "numbers of classes move|order of the examples",
    ),
    "writes": ({"value": _writes}, "the score wrote to the features"),
    "moody": ({"value": _moody_value(itertools.count())}, "two calls with the same seed differ"),
    "short": ({"per_example": lambda self, evidence, *, seed=0: np.ones(3)}, r"per_example has shape \(3,\)"),
    "apart": ({"per_example": lambda self, evidence, *, seed=0: evidence.x[:, 0]}, "per_example has the mean"),
    "wide": ({"value": _fails_when_wide}, "more features than examples: AssertionError"),
}


@pytest.mark.parametrize("fault", SCORES)
def test_a_broken_score_is_told(fault: str) -> None:
    methods, said = SCORES[fault]
    if "value" in methods:
        methods = {**methods, "per_example": None}
    elif "per_example" in methods:
        methods = {**methods, "value": lambda self, evidence, *, seed=0: float(KNN().value(evidence))}
    with pytest.raises(AssertionError, match=said):
        check_score(sabotaged(KNN(), **methods))  # type: ignore[arg-type]


def test_a_score_of_cards_that_changes_its_mind_is_told() -> None:
    calls = itertools.count()
    with pytest.raises(AssertionError, match="two calls differ for package/efficientnet_lite0"):
        check_score(sabotaged(PRIOR(), value=lambda self, evidence, *, seed=0: float(next(calls))))  # type: ignore[arg-type]
