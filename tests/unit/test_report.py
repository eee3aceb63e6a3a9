"""The report: complete, self-contained, harmless, and true to its JSON."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sample_facts
from warmstart import plugins, reporting
from warmstart.data import Dataset
from warmstart.errors import RunError
from warmstart.reporting import card, charts, facts, pictures, render, svg, words
from warmstart.tasks import Metric

VOID = {"meta", "img", "br", "wbr", "link", "hr", "input"}
HOSTILE = "<script>alert(1)</script>\"'|`${{7*7}}"
ALL = {name: make() for name, make in sample_facts.ALL.items()}
PAGES = {name: render.page(found) for name, found in ALL.items()}
# Read by programs from report.json, not by people from the page.
NOT_ON_THE_PAGE = {"AuditFacts.raw"}


class Parsed(HTMLParser):
    """Collect tags, and complain about those that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.parametrize("name", ALL)
def test_page_is_well_formed_and_fetches_nothing(name: str) -> None:
    page = Parsed(PAGES[name])
    assert not page.open
    for tag, attrs in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}
        assert (attrs.get("src") or "data:").startswith("data:")
        href = attrs.get("href") or "#"
        assert href.startswith("#") or (tag == "a" and href.startswith("https://"))
        assert not any(key.startswith("on") for key in attrs)
        assert tag != "img" or "alt" in attrs
    assert "default-src 'none'" in PAGES[name]
    assert not re.search(r"url\(|@import", PAGES[name])


@pytest.mark.parametrize("name", ALL)
def test_links_of_the_navigation_lead_somewhere(name: str) -> None:
    tags = Parsed(PAGES[name]).tags
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["href"] for tag, attrs in tags if tag == "a" and (attrs["href"] or "").startswith("#")} <= {
        f"#{name}" for name in ids
    }


def test_sections_come_in_the_promised_order() -> None:
    ids = [
        str(a["id"]) for tag, a in Parsed(PAGES["classification"]).tags if tag in ("header", "section") and "id" in a
    ]
    assert ids == [
        "answer", "data", "audit", "splits", "curves", "attempts", "metrics", "confusion", "calibration", "classes",
        "mistakes", "explanations", "stages", "environment", "card", "limits", "recipe", "usage",
    ]  # fmt: skip


def test_answer_comes_first_with_interval_count_and_cost() -> None:
    head = " ".join(" ".join(Parsed(PAGES["classification"].partition("<main>")[0]).text).split())
    for said in ("A classifier for the 10 classes of cifar10", "10,095 test examples", "88.4 to 89.6 %", "8 min 22 s",
                 "8 min 34 s planned", "opened once", "package/efficientnet-lite0", "near-duplicates"):  # fmt: skip
        assert said in head.replace("\xa0", " ")


def strings(value: object, owner: str = "") -> Iterator[tuple[str, str]]:
    """Yield (Class.field, text) for every text in nested facts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from strings(getattr(value, field.name), f"{type(value).__name__}.{field.name}")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from () if owner == "Facts.absent" else strings(key, owner)
            yield from strings(item, owner)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings(item, owner)
    elif isinstance(value, str) and value and not value.startswith("data:"):
        yield owner, value


def test_every_text_of_the_facts_is_on_the_page() -> None:
    codes = {"Answer.kind", "Finding.status", "Snippet.language", "Compared.verdict", "Metric.name", "Compared.metric",
             "Answer.created", "Answer.task", "Facts.card"}  # shown in other words  # fmt: skip
    for name in ("classification", "regression", "multi_label"):
        shown = "".join(Parsed(PAGES[name]).text)
        for owner, text in strings(ALL[name]):
            if owner not in codes | NOT_ON_THE_PAGE:
                assert text in shown or render._capfirst(text) in shown, f"{owner}: {text!r} is not on the page"


def test_every_field_of_the_facts_is_read() -> None:
    folder = Path(render.__file__).parent
    source = "\n".join(
        path.read_text()
        for path in [
            *folder.glob("templates/*.html"),
            *(folder / f"{name}.py" for name in ("render", "charts", "words", "card")),
        ]
    )
    kinds = [
        kind for kind in vars(facts).values() if dataclasses.is_dataclass(kind) and kind.__module__ == facts.__name__
    ]
    assert len(kinds) == 28
    for kind in kinds:
        for field in dataclasses.fields(kind):
            if f"{kind.__name__}.{field.name}" not in NOT_ON_THE_PAGE:
                assert re.search(rf"\.{field.name}\b", source), f"{kind.__name__}.{field.name} is never shown"


def hostile(value: object) -> object:
    """Replace every free text in facts by something nasty."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        keep = {"kind", "status", "language", "verdict", "created", "picture", "overlay", "pictures", "task", "schema"}
        keep |= {"metric"} if isinstance(value, facts.Compared) else set()
        keep |= {"name", "split"} if isinstance(value, Metric) else set()
        return dataclasses.replace(
            value, **{f.name: hostile(getattr(value, f.name)) for f in dataclasses.fields(value) if f.name not in keep}
        )
    if isinstance(value, tuple):
        return tuple(hostile(item) for item in value)
    if isinstance(value, dict):
        return {key: hostile(item) if isinstance(item, str) else item for key, item in value.items()}
    return HOSTILE if isinstance(value, str) else value


@pytest.mark.parametrize("name", ALL)
def test_hostile_names_stay_text(name: str) -> None:
    nasty = hostile(ALL[name])
    assert isinstance(nasty, facts.Facts)
    page = Parsed(render.page(nasty))
    assert not page.open
    assert "script" not in {tag for tag, _ in page.tags}
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)
    assert HOSTILE in "".join(page.text)
    text = card.markdown(nasty)
    outside = re.sub(r"^(`{3,})(sh|python)\n.*?^\1$", "", text.partition("\n---\n")[2], flags=re.DOTALL | re.MULTILINE)
    assert "<script>" not in re.sub(r"(?<!\\)`[^`\n]*`", "", outside)


def test_only_pictures_may_be_pictures() -> None:
    found = ALL["classification"]
    foreign = "https://example.com/spy.png"
    mistakes = tuple(dataclasses.replace(item, picture=foreign) for item in found.mistakes)
    bad = dataclasses.replace(found, mistakes=mistakes, card={**found.card, "url": "javascript:alert(1)"})
    page = render.page(bad)
    assert foreign not in page
    assert "javascript:" not in "".join(attrs.get("href") or "" for _, attrs in Parsed(page).tags)


@pytest.mark.parametrize("name", ALL)
def test_json_round_trip(name: str) -> None:
    text = ALL[name].dumps()
    back = facts.Facts.from_json(json.loads(text, parse_constant=pytest.fail))
    assert back == ALL[name]
    assert back.dumps() == text


def test_json_is_strict_and_tolerant() -> None:
    odd = facts.Facts(
        facts.Answer(
            "classification", "single", "d", "b", "probe", Metric("accuracy", 0.5, float("nan"), 0.6, 9, "val"), 1.0
        ),
        attempts=(facts.Attempt("p", seconds=float(np.float32(2.5))),),
        schema=facts.SCHEMA,
    )
    told = json.loads(odd.dumps(), parse_constant=pytest.fail)
    told["answer"]["of_a_newer_version"] = {"x": 1}
    back = facts.Facts.from_json(told)
    assert back.answer.metric is not None and np.isnan(back.answer.metric.low)
    assert back.attempts[0].seconds == 2.5
    assert "no interval" in render.page(back)


def test_foreign_json_gives_the_two_line_error() -> None:
    for foreign in ({"hello": 1}, {"answer": [1]}, {"answer": {"task": "x"}}):
        with pytest.raises(RunError) as caught:
            facts.Facts.from_json(foreign)
        assert str(caught.value).startswith("not a warmstart report: ")
        assert "\n  fix: run `warmstart report RUN` on the run folder to write it again" in str(caught.value)


def test_write_and_read(tmp_path: Path) -> None:
    found = ALL["minimal"]
    page = reporting.write(found, tmp_path / "run")
    assert page == tmp_path / "run" / "report.html"
    assert sorted(path.name for path in page.parent.iterdir()) == ["README.md", "report.html", "report.json"]
    assert reporting.read(page.parent) == found
    with pytest.raises(RunError, match=r"cannot read .*report\.json: No such file or directory"):
        reporting.read(tmp_path)


def test_empty_sections_vanish_or_say_why() -> None:
    text = "".join(Parsed(PAGES["minimal"]).text)
    assert "No second attempt: the budget left no room" in text
    assert "Explanations were not asked for." in text
    assert "No curves: the head was solved" in text
    assert "There was no test: the number comes from val examples that also chose the model." in text
    assert 'id="usage"' not in PAGES["minimal"]
    assert "heat maps" in PAGES["regression"].lower() and 'id="confusion"' not in PAGES["regression"]
    assert "no confusion matrix" in PAGES["multi_label"]


def noisy(seed: int, side: int = 96) -> str:
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    return pictures.thumbnail(Image.fromarray(pixels), side)


def test_page_of_a_thousand_classes_stays_small() -> None:
    many = sample_facts.many_classes(1000)
    uri = noisy(0)
    classes = tuple(dataclasses.replace(item, pictures=(uri,) * 6) for item in many.data.classes)
    mistakes = tuple(dataclasses.replace(many.mistakes[0], picture=uri) for _ in range(24))
    heavy = dataclasses.replace(many, data=dataclasses.replace(many.data, classes=classes), mistakes=mistakes)
    assert len(uri) * 6000 > 10 * pictures.LIMIT_BYTES
    page = render.page(heavy)
    assert len(page.encode()) < 3_000_000
    assert page.count("<tr") < 200
    kept = pictures.capped(heavy)
    assert all(item.picture for item in kept.mistakes)
    depths = [len(item.pictures) for item in kept.data.classes]
    assert max(depths) - min(depths) <= 1 or min(depths) == 0


def test_charts_take_what_a_run_may_produce() -> None:
    nan = float("nan")
    flat = facts.Curve(
        "loss", "epoch", "loss", (facts.Series("train", (1.0,), (0.5,)), facts.Series("val", (1.0, 2.0), (nan, nan)))
    )
    for curve in (flat, facts.Curve("x", "x", "y", ()), dataclasses.replace(flat, log_x=True, chosen_x=1.0)):
        assert "nan" not in charts.lines(curve)
    assert "nan" not in charts.hero(Metric("r2", -0.3, -1.5, 0.4, 12, "test"))
    assert "nan" not in charts.hero(Metric("my_own", 7.0, nan, nan, 12, "test"))
    one = facts.Scatter("t", (1.0, 1.0), (1.0, nan), 2)
    assert "nan" not in charts.scatter(one) + charts.residuals(one)
    empty = facts.Confusion(("a", "b"), ())
    assert charts.confused_pairs(empty) == [] and charts.matrix_rows(empty)[0][1][0].count == 0


def test_confusion_counts_and_pairs() -> None:
    confusion = facts.Confusion.from_matrix(["a", "b", "c"], [[8, 2, 0], [0, 9, 1], [5, 0, 5]])
    assert confusion.cells == ((0, 0, 8), (0, 1, 2), (1, 1, 9), (1, 2, 1), (2, 0, 5), (2, 2, 5))
    assert charts.confused_pairs(confusion)[0] == charts.Pair("c", "a", 5, 0.5)
    shown = {
        (row, at): cell.count
        for row, (_, cells) in enumerate(charts.matrix_rows(confusion))
        for at, cell in enumerate(cells)
    }
    assert sum(shown.values()) == 30 and shown[2, 0] == 5


@pytest.mark.parametrize(
    ("ends", "expected"),
    [((0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1.0]), ((-3.0, 12.0), [-2, 0, 2, 4, 6, 8, 10, 12]), ((5.0, 5.0), [5.0])],
)
def test_ticks_are_round(ends: tuple[float, float], expected: list[float]) -> None:
    assert svg.ticks(*ends) == pytest.approx(expected) or svg.ticks(*ends) == pytest.approx([0, 5, 10])


def test_numbers_as_a_person_writes_them() -> None:
    assert words.seconds(0.84) == "0.8\xa0s" and words.seconds(570) == "9\xa0min\xa030\xa0s"
    assert words.seconds(3599.7) == "1\xa0h" and words.seconds(7500) == "2\xa0h\xa005\xa0min"
    assert words.size(76_800_000) == "76.8\xa0MB" and words.size(999) == "999\xa0B"
    assert words.percent(0.9996) == "99.9\xa0%" and words.percent(1.0) == "100\xa0%"
    assert words.plain(1.5e-5) == "1.5 × 10⁻⁵" and words.plain(float("nan")) == "–"
    wide, narrow = (
        Metric("accuracy", 0.8512, 0.71, 0.93, 40, "test"),
        Metric("accuracy", 0.8512, 0.85, 0.8525, 9, "test"),
    )
    assert words.value(wide) == "85\xa0%" and words.value(narrow) == "85.12\xa0%"
    assert words.interval(wide) == "71 to 93\xa0%"
    assert words.metric("f1_macro") == words.metric("macro_f1")
    assert words.metric("top_5_accuracy").percent and not words.metric("hamming_loss").higher_is_better


DATA = {
    "single": Dataset(["a", "b"], [b"", b""], "single", np.array([0, 1]), tuple("abcdefghijkl")),
    "multi": Dataset(["a", "b"], [b"", b""], "multi", np.eye(2, dtype=bool), ("x", "y")),
    "scalar": Dataset(["a", "b"], [b"", b""], "scalar", np.array([0.0, 1.0])),
}


@pytest.mark.parametrize(
    ("task", "kind"), [("classification", "single"), ("classification", "multi"), ("regression", "scalar")]
)
def test_metric_words_know_every_metric_of_our_tasks(task: str, kind: str) -> None:
    for spec in plugins.load("task", task)().bind(DATA[kind]).metrics():
        word = words.metric(spec.name)
        assert word.meaning, f"{spec.name} is not explained"
        assert word.higher_is_better == spec.higher_is_better, spec.name


def test_model_card_is_a_model_card() -> None:
    text = card.markdown(ALL["classification"])
    front, _, body = text.removeprefix("---\n").partition("\n---\n")
    assert "license: apache-2.0" in front and "pipeline_tag: image-classification" in front
    assert 'name: "accuracy (test, n=10095, 95% 88.4 to 89.6' in front
    for heading in (
        "Intended use",
        "Training data",
        "Evaluation",
        "Limits",
        "Where the weights come from",
        "How to use",
    ):
        assert f"\n## {heading}\n" in body
    assert "| accuracy | test | 89.0\xa0% | 88.4 to 89.6\xa0% | 10,095 |" in body
    assert "test without near-duplicates" in body
    assert "license: other" in card.markdown(ALL["minimal"])


def test_front_matter_is_yaml() -> None:
    yaml = pytest.importorskip("yaml")
    for name, found in ALL.items():
        for text in (card.front_matter(found), card.front_matter(hostile(found))):  # type: ignore[arg-type]
            front = yaml.safe_load(text.strip("-\n"))
            assert front["model-index"][0]["results"][0]["metrics"], name
