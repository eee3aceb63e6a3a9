"""What a run came to, as the facts of its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from warmstart import calibrate, choosing, config, evaluation, finals, pictured, reporting, runtime, search
from warmstart.choosing import Chosen, Rivalry
from warmstart.data import SPLITS
from warmstart.finals import Plan
from warmstart.judge import Judged
from warmstart.prepare import Prepared
from warmstart.reporting import facts as f
from warmstart.session import Session
from warmstart.tasks import Metric
from warmstart.tune import Trial

NUM_MISTAKES = 24
SCATTER_POINTS = 2000


@dataclass(frozen=True)
class Story:
    """Everything that happened, for the page to tell."""

    session: Session
    data: Prepared
    trials: Sequence[Trial]
    winner: Trial
    rivalries: Sequence[Rivalry]
    judged: Judged
    chosen: Chosen | None = None
    """What the race came to; None where nothing was left to choose."""
    plan: Plan | None = None
    """What the finals came to; None where there were none."""

    @property
    def not_tried(self) -> str:
        """Say why there was no further trial."""
        if self.plan is None:
            return "the command was asked to stop" if self.session.stop.stopped else "it is what was asked for"
        return "" if self.plan.candidate is not None else self.plan.reason


def write(story: Story) -> f.Facts:
    """Assemble the facts, write report, model card and resolved recipe, and close the run."""
    session = story.session
    with session.stage("report"):
        found = assemble(story)
    folder = session.folder.path
    settle(session, story.winner)
    reporting.write(found, folder)
    (folder / "recipe.toml").write_text(session.sourced.to_toml(), encoding="utf-8")
    for name in ("report.html", "report.json", "README.md", "recipe.toml"):
        session.folder.add_file(name)
    session.folder.finish("done")
    return found


def settle(session: Session, winner: Trial) -> None:
    """Write the winner's strategy and options into the recipe, so that it describes the model that was kept."""
    candidate, strategy = winner.candidate, winner.candidate.strategy
    won = {"backbone": candidate.backbone, "data.image_size": candidate.image_size, "strategy.name": strategy.name}
    won |= {f"strategy.{key}": value for key, value in strategy.options.items()} | dict(candidate.settings)
    for key, value in won.items():
        if config.get_key(session.recipe, key) != value:
            session.sourced = session.sourced.decide(key, value, "it won on val")


def assemble(story: Story) -> f.Facts:
    """Turn a story into facts."""
    session, data, judged = story.session, story.data, story.judged
    task = data.task
    regression = task.link == "identity"
    explanations, explained_by = pictured.explanations(data, judged)
    return f.Facts(
        answer=answer(story),
        data=data_facts(data),
        audit=pictured.audit(data, session.stages.get("scan", 0.0) + session.stages.get("audit", 0.0)),
        splits=split_facts(data),
        leaderboard=leaderboard(story),
        short_trials=short_trials(story),
        gradients={} if story.plan is None else dict(story.plan.gradients),
        attempts=attempts(story),
        comparisons=compared(story),
        decisions=tuple(f.Decision(d.key, str(d.value), d.reason) for d in session.decisions),
        metrics=judged.metrics,
        classes=() if regression else class_results(story),
        confusion=confusion(story) if task.kind == "single" else None,
        calibration=None if regression else calibration(story),
        scatters=scatters(story) if regression else (),
        mistakes=pictured.mistakes(data, judged, NUM_MISTAKES),
        explanations=explanations,
        explained_by=explained_by,
        stages=tuple(f.Stage(name, seconds, session.planned.get(name)) for name, seconds in session.stages.items()),
        cache=cache_facts(story),
        environment={**runtime.environment(), "device": _device(story)},
        card=story.winner.trained.card.to_json(),
        recipe=settings(session),
        usage=usage(session.folder.path),
        absent=absent(story),
    )


def answer(story: Story) -> f.Answer:
    """Say what was built, how good it is, and what it cost."""
    session, data, winner, judged = story.session, story.data, story.winner, story.judged
    return f.Answer(
        task=data.task_name,
        kind=data.task.kind,  # type: ignore[arg-type]
        data_name=data.dataset.name,
        backbone=winner.candidate.backbone,
        strategy=winner.candidate.name,
        metric=judged.metrics[0],
        seconds=session.seconds(),
        num_classes=data.task.num_outputs,
        input_size=winner.candidate.image_size,
        planned_seconds=session.planned_seconds,
        budget_seconds=session.recipe.budget,
        baseline=baseline(story),
        test_openings=judged.openings,
        verdict=verdict(story),
        warnings=warnings(story),
        stopped=story.session.stop.stopped,
        run=session.folder.path.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def warnings(story: Story) -> tuple[str, ...]:
    """Say what a reader has to know before trusting the number."""
    blocking = story.data.report.blocking()
    told = [] if blocking is None else [f"Allowed by --duplicates allow: {blocking.problem}."]
    stop = story.session.stop
    if stop.stopped:
        told.append(f"Stopped early by {stop.asked}: this is the best of what was tried by then.")
    near = len(story.data.report.near_test_rows)
    if near:
        have = "example has" if near == 1 else "examples have"
        told.append(f"{near} test {have} a copy or near-copy in train or val; metrics without them are below.")
    return tuple(told)


def verdict(story: Story) -> str:
    """Say why the winner won, in a sentence."""
    if len(story.trials) == 1:
        return story.not_tried or f"{story.winner.candidate.name} was asked for"
    return " ".join(found.words(*titles(story, rival, other)) for rival, other, found in story.rivalries)


def titles(story: Story, *trials: Trial) -> list[str]:
    """Name trials for people, with the backbone where they have different ones."""
    several = len({trial.candidate.backbone for trial in story.trials}) > 1
    return [finals.named(t.candidate) + (f" on {t.candidate.backbone}" if several else "") for t in trials]


def leaderboard(story: Story) -> tuple[f.Ranked, ...]:
    """Tell the race."""
    if story.chosen is None:
        return ()
    pick = story.chosen.candidate
    return tuple(
        f.Ranked(
            row.backbone,
            row.input_size,
            row.strategy,
            None if row.value is None else Metric(story.chosen.metric, row.value, row.low, row.high, row.n, "val"),  # type: ignore[arg-type]
            row.seconds,
            row.num_params,
            row.licence,
            (row.backbone, row.input_size) == (pick.backbone, pick.image_size),
            row.dropped_because,
        )
        for row in story.chosen.leaderboard
        if len(story.chosen.leaderboard) > 1
    )


def short_trials(story: Story) -> tuple[f.ShortTrial, ...]:
    """Tell the short trials."""
    return tuple(
        f.ShortTrial(short.name, short.lr, short.examples, short.value, short.seconds, short.verdict)
        for short in (*(story.plan.shorts if story.plan else ()), *search.told(story.session))
    )


def baseline(story: Story) -> Metric | None:
    """Return the first metric of the best constant answer."""
    data, judged = story.data, story.judged
    train = data.dataset.take(data.splits.train).targets
    assert train is not None
    name = data.task.metrics()[0].name
    constant = evaluation.constant(data.task, train, judged.predictions)
    found = evaluation.metrics(data.task, constant, split=judged.split, seed=story.session.recipe.seed, only=(name,))
    return found[0] if found else None


def data_facts(data: Prepared) -> f.DataFacts:
    """Count classes per split, and show a few pictures of each."""
    dataset, scan = data.dataset, data.scan
    classes: tuple[f.ClassCount, ...] = ()
    if data.task.kind in ("single", "multi"):
        counts = {name: _class_counts(data, data.splits.rows(name)) for name in SPLITS}
        shown = pictured.classes(data)
        classes = tuple(
            f.ClassCount(
                name,
                int(counts["train"][at]),
                int(counts["val"][at]),
                int(counts["test"][at]),
                shown.get(at, ()),
            )
            for at, name in enumerate(data.task.class_names)
        )
    return f.DataFacts(
        num_examples=len(dataset),
        num_groups=None if dataset.groups is None else len(np.unique(dataset.groups)),
        classes=classes,
        targets=_histograms(data),
        sizes=_sizes(scan.sizes),
        modes=dict(data.report.modes),
        notes=dataset.notes,
        pictures=() if classes else pictured.some(data),
    )


def _class_counts(data: Prepared, rows: np.ndarray) -> np.ndarray:
    assert data.dataset.targets is not None
    targets = data.dataset.targets[rows]
    if data.task.kind == "multi":
        return targets.sum(0)
    return np.bincount(targets, minlength=data.task.num_outputs)


def _histograms(data: Prepared) -> tuple[f.Histogram, ...]:
    if data.task.link != "identity":
        return ()
    targets = np.asarray(data.dataset.targets, float).reshape(len(data.dataset), -1)
    found = []
    for column, name in enumerate(data.task.class_names or ("target",)):
        counts, edges = np.histogram(targets[:, column], bins=20)
        found.append(f.Histogram(name, tuple(map(float, edges)), tuple(map(int, counts))))
    return tuple(found)


def _sizes(sizes: np.ndarray) -> str:
    if not len(sizes):
        return ""
    order = np.argsort(sizes.prod(1), kind="stable")
    small, middle, large = (f"{sizes[at][0]} × {sizes[at][1]}" for at in order[[0, len(order) // 2, -1]])
    return small if small == large else f"from {small} to {large}, median {middle}"


def split_facts(data: Prepared) -> f.SplitFacts:
    """Say how the examples were divided."""
    s = data.splits
    return f.SplitFacts(s.origin, s.fingerprint, len(s.train), len(s.val), len(s.test), len(s.folds))


def attempts(story: Story) -> tuple[f.Attempt, ...]:
    """Tell each trial with its metrics on val."""
    seed = story.session.recipe.seed
    told = []
    for trial in story.trials:
        metrics = evaluation.metrics(story.data.task, trial.val, split="val", seed=seed)
        told.append(
            f.Attempt(
                name=finals.named(trial.candidate),
                backbone=trial.candidate.backbone,
                input_size=trial.candidate.image_size,
                metrics=tuple(metrics[:4]),
                seconds=trial.seconds,
                planned_seconds=story.session.planned.get("fit") if trial is _planned(story) else None,
                chosen=trial is story.winner,
                reason=_reason(story, trial),
                curves=trial.curves,
                details={**trial.details, **_cost_of_use(trial, story.trials[0])},
            )
        )
    return tuple(told)


def _cost_of_use(trial: Trial, first: Trial) -> dict[str, str]:
    """Say what an answer of a trial's model costs, beside the first one's."""
    macs, other = (
        choosing.work(each.trained.card, each.candidate.image_size) if each.trained.card.macs else None
        for each in (trial, first)
    )
    if macs is None or other is None:
        return {}
    told = f"{macs / 1e9:.3g} G" + (f", {macs / other:.2f} × the first trial" if macs != other else "")
    return {"multiply-adds per picture": told}


def _planned(story: Story) -> Trial | None:
    """Return the trial that the finals planned."""
    told = None if story.plan is None else story.plan.candidate
    return next((trial for trial in story.trials if trial.candidate == told), None)


def _reason(story: Story, trial: Trial) -> str:
    if len(story.trials) == 1:
        return "the only trial"
    met = [(other, found) for rival, other, found in story.rivalries if rival is trial]
    won = [found for other, found in met if choosing.beats(story.data, trial, other, found)]
    beaten, shown = bool(won), any(found.verdict == "a" for found in won)
    if trial is story.winner and beaten and not shown:
        return "better on val by more than half a point, which may be chance, and as quick to answer"
    if trial is story.winner:
        return "better on val by a paired interval" if beaten else "nothing else was better on val"
    return "another was better on val" if beaten or trial is story.trials[0] else "not better than what is cheaper"


def compared(story: Story) -> tuple[f.Compared, ...]:
    """Tell each paired comparison."""
    told = []
    for rival, other, found in story.rivalries:
        a, b = titles(story, rival, other)
        numbers = (found.metric, found.difference, found.low, found.high, found.verdict, found.n)
        told.append(f.Compared(a, b, *numbers, text=found.words(a, b)))
    return tuple(told)


def class_results(story: Story) -> tuple[f.ClassResult, ...]:
    """Say how each class did."""
    rows = evaluation.per_class(
        story.data.task, story.judged.predictions, split=story.judged.split, seed=story.session.recipe.seed
    )
    return tuple(
        f.ClassResult(
            row.name,
            row.support,
            _value(row.precision),
            _value(row.recall),
            _value(row.f1),
            low=None if row.recall is None else row.recall.low,
            high=None if row.recall is None else row.recall.high,
        )
        for row in rows
    )


def confusion(story: Story) -> f.Confusion:
    """Count true against predicted classes."""
    matrix = evaluation.confusion(story.data.task, story.judged.predictions)
    return f.Confusion.from_matrix(story.data.task.class_names, matrix.tolist(), split=story.judged.split)


def calibration(story: Story) -> f.Calibration | None:
    """Compare reliability before and after the temperature."""
    judged, task = story.judged, story.data.task
    raw = calibrate.scaled(judged.predictions, 1.0, link=task.link)
    found = evaluation.calibration(
        task, raw, judged.model.temperature, split=judged.split, seed=story.session.recipe.seed
    )
    if found is None:
        return None
    before, after = (
        tuple(f.Bin(b.confidence, b.accuracy, b.count) for b in bins) for bins in (found.before, found.after)
    )
    return f.Calibration(
        after, found.ece_before.value, found.ece_after.value, found.temperature, judged.split, bins_before=before
    )


def scatters(story: Story) -> tuple[f.Scatter, ...]:
    """Sample true against predicted numbers."""
    seen = story.judged.predictions
    targets = np.asarray(seen.targets, float).reshape(len(seen.index), -1)
    pick = np.sort(runtime.rng(0, "scatter").permutation(len(targets))[:SCATTER_POINTS])
    return tuple(
        f.Scatter(
            name,
            tuple(map(float, targets[pick, column])),
            tuple(map(float, seen.values[pick, column])),
            len(targets),
            story.judged.split,
        )
        for column, name in enumerate(story.data.task.class_names or ("target",))
    )


def cache_facts(story: Story) -> f.CacheFacts:
    """Say what the cache saved, and which engine computed the rest."""
    found = [one for trial in story.trials for one in trial.extracted] + list(story.judged.extracted)
    table = next((one.engine_table for one in found if one.engine_table), {})
    chosen = next((one.engine for one in found if one.engine != "cache"), "cache")
    engines = tuple(
        f.EngineTime(name, timing.images_per_second, timing.max_difference, name == chosen, timing.refused)
        for name, timing in table.items()
    )
    hits, computed = sum(one.hits for one in found), sum(one.computed for one in found)
    return f.CacheFacts(hits, computed, sum(one.seconds for one in found), engines=engines)


def settings(session: Session) -> tuple[f.Setting, ...]:
    """List the recipe with the origin of each value."""
    recipe = session.recipe
    return tuple(
        f.Setting(key, str(config.get_key(recipe, key)), session.sourced.origins.get(key, config.DEFAULT))
        for key in config.keys(recipe)
        if config.get_key(recipe, key) is not None
    )


def usage(folder: Path) -> tuple[f.Snippet, ...]:
    """Show how to use the model."""
    return (
        f.Snippet("Predict from the command line", f"warmstart predict {folder} new/*.jpg"),
        f.Snippet(
            "Predict from Python",
            f'import warmstart as ws\n\nmodel = ws.load("{folder}")\nmodel.predict(["new/1.jpg", "new/2.jpg"])',
            "python",
        ),
    )


def _device(story: Story) -> str:
    return str(story.session.device) if story.judged.model.built else "none: no network was built"


def absent(story: Story) -> dict[str, str]:
    """Say why a section is empty."""
    found = {}
    if len(story.trials) == 1:
        found["comparisons"] = f"There was one trial: {story.not_tried or 'one was asked for'}."
    if not story.judged.model.built:
        found["explanations"] = "All features were known, so no network was built in this run."
    if story.judged.split != "test":
        found["metrics"] = "Test was not opened: these numbers are from val."
    return found


def _value(metric: Metric | None) -> float | None:
    return None if metric is None else metric.value
