"""The verbs. Each reads as what it does, in the order in which it is done."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

from warmstart import catalogue, config, interrupts, options, runtime, sources, trained
from warmstart.cache import Cache, parse_size
from warmstart.config import Recipe, Sourced
from warmstart.errors import RunError, WarmstartError
from warmstart.options import Options
from warmstart.progress import Progress, Silent
from warmstart.reporting.facts import Facts
from warmstart.rundir import RunDir
from warmstart.session import Session
from warmstart.tasks import Metric

if TYPE_CHECKING:
    from warmstart.choosing import Chosen
    from warmstart.contenders import RunsCompared
    from warmstart.data import Dataset, Input
    from warmstart.data.audit_report import AuditReport
    from warmstart.planning import Plan
    from warmstart.trained import TrainedModel

DEFAULT_BUDGET, CHOOSE_BUDGET = 600.0, 300.0


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, what it found, and the model."""

    folder: Path
    facts: Facts
    seconds: float

    @property
    def model(self) -> TrainedModel:
        """Load the model of this run."""
        return trained.load(self.folder)

    @property
    def report(self) -> Path:
        """Return the path of the report."""
        return self.folder / "report.html"

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Return the metrics of the kept model, on test where it was opened."""
        return self.facts.metrics

    def to_json(self) -> dict[str, object]:
        """Return what `--json` prints."""
        facts = self.facts.to_json()
        return {
            "run": str(self.folder),
            "report": str(self.report),
            "seconds": round(self.seconds, 3),
            "planned_seconds": self.facts.answer.planned_seconds,
            "stopped": self.facts.answer.stopped,
            "warnings": list(self.facts.answer.warnings),
            "decisions": facts["decisions"],
            "metrics": facts["metrics"],
        }

    def words(self) -> str:
        """Say the answer in a few lines."""
        answer, metric = self.facts.answer, self.facts.answer.metric
        assert metric is not None
        return "\n".join(
            (
                f"{metric.name} {metric.value:.4f} on {metric.split}",
                f"95 % interval {metric.low:.4f} to {metric.high:.4f}, n = {metric.n}",
                f"{answer.backbone} at {answer.input_size} px, {answer.strategy}; {self.seconds:.0f} s",
                *(warning for warning in answer.warnings if answer.stopped),
                f"report  {self.report}",
                f"use it  warmstart predict {self.folder} FILE…",
            )
        )


def run(data: str | Path | Dataset, *, progress: Progress | None = None, **given: Unpack[Options]) -> Run:
    """Go from raw files to a tested model and a report.

    Audit and split; a race among backbones on cached features; the pick's solved probe; what else the budget allows,
    the rivals' probes and the best strategy that short trials find; keep what validates better, a tie to the cheaper;
    test once. The same call after an interruption goes on.

    Args:
        data: A folder of images, a table, a recipe (.toml), or a dataset in memory.
        progress: Who wants to see the stages.
        given: See `options.Options`; `budget` is 10 minutes when not given.

    Raises:
        WarmstartError: With what to do about it.
    """
    from warmstart import choosing, finals, judge, prepare, soup, tune, writeup

    with opened("run", data, given, progress) as session:
        session.decide("budget", lambda: (DEFAULT_BUDGET, "ten minutes unless told otherwise"))
        ready = prepare.prepare(session, None if isinstance(data, (str, Path)) else data)
        if session.finished:
            return _finished(session)
        chosen = choosing.choose(session, ready)
        trials = [tune.tune(session, ready, chosen.candidate)]
        session.has_answer = True
        ready = prepare.audited(session, ready, choosing.features(session, ready, chosen.candidate))
        with session.stoppable():
            for number, candidate in enumerate(finals.candidates(session, ready, chosen, trials)):
                with session.part(f"trial {number + 2}"):
                    trials.append(tune.tune(session, ready, candidate))
            trials += soup.greedy(session, ready, trials)
        winner, rivalries = choosing.pick(session, ready, trials)
        judged = judge.test_once(session, ready, winner)
        story = writeup.Story(session, ready, trials, winner, rivalries, judged, chosen, finals.told(session))
        facts = writeup.write(story)
        return Run(session.folder.path, facts, session.seconds())


def choose(data: str | Path | Dataset, *, progress: Progress | None = None, **given: Unpack[Options]) -> Chosen:
    """Race pretrained backbones on the data, and say which to start from and how sure that is; test stays sealed.

    Args:
        data: See `run`.
        progress: Who wants to see the stages.
        given: See `options.Options`; `candidates`, `max_params` and `licence` say who takes part, and `budget` is five
            minutes when not given.

    Raises:
        WarmstartError: With what to do about it.
    """
    from warmstart import choosing, prepare

    with scratch("choose", data, given, progress) as session:
        session.decide("budget", lambda: (CHOOSE_BUDGET, "five minutes unless told otherwise"))
        ready = prepare.prepare(session, None if isinstance(data, (str, Path)) else data)
        return choosing.choose(session, ready, share=1.0)


def plan(data: str | Path | Dataset, *, progress: Progress | None = None, **given: Unpack[Options]) -> Plan:
    """Forecast seconds, memory and disk of every backbone and strategy, from seconds of measuring; nothing is trained.

    Args:
        data: See `run`.
        progress: Who wants to see the stages.
        given: See `options.Options`; `candidates`, `max_params` and `licence` say for whom, `budget` and `memory` what
            has to fit.

    Raises:
        WarmstartError: With what to do about it; when nothing fits, with the smallest budget or memory that would do.
    """
    from warmstart import planning, prepare

    given.setdefault("duplicates", "allow")  # test is not opened, and nothing is learned
    with scratch("plan", data, given, progress) as session:
        session.decide("budget", lambda: (DEFAULT_BUDGET, "ten minutes unless told otherwise"))
        ready = prepare.prepare(session, None if isinstance(data, (str, Path)) else data)
        return planning.plan(session, ready)


def finetune(data: str | Path | Dataset, *, progress: Progress | None = None, **given: Unpack[Options]) -> Run:
    """Fine-tune one backbone by one strategy, and validate it; test stays sealed.

    Args:
        data: See `run`.
        progress: Who wants to see the stages.
        given: See `options.Options`; LP-FT when no strategy is given.

    Raises:
        WarmstartError: With what to do about it.
    """
    from warmstart import choosing, judge, prepare, tune, writeup

    with opened("finetune", data, given, progress) as session:
        ready = prepare.prepare(session, None if isinstance(data, (str, Path)) else data)
        if session.finished:
            return _finished(session)
        candidate = choosing.as_told(session)
        trial = tune.tune(session, ready, candidate)
        model = judge.save(session, ready, trial)
        judged = judge.validated(session, ready, trial, model)
        facts = writeup.write(writeup.Story(session, ready, [trial], trial, [], judged))
        return Run(session.folder.path, facts, session.seconds())


def audit(data: str | Path | Dataset, *, progress: Progress | None = None, **given: Unpack[Options]) -> AuditReport:
    """Look for duplicates, leaks, unreadable files and wrong labels, without training.

    Raises:
        WarmstartError: With what to do about it.
    """
    from warmstart import choosing, prepare

    given["duplicates"] = "allow"  # an audit reports overlaps; it does not stop at them
    with scratch("audit", data, given, progress) as session:
        ready = prepare.prepare(session, None if isinstance(data, (str, Path)) else data)
        return prepare.audited(session, ready, choosing.features_if_any(session, ready)).report


def evaluate(
    run_folder: str | Path,
    *,
    split: Literal["val", "test"] = "test",
    again: bool = False,
    progress: Progress | None = None,
) -> tuple[list[Metric], int]:
    """Compute the metrics of a run's model on one of its splits; each opening of test is recorded.

    Returns:
        The metrics, and how often test was opened.

    Raises:
        RunError: No run here, or test was opened with other weights and `again` was not said.
    """
    from warmstart import judge, prepare

    with reopened(run_folder, progress) as session:
        ready = prepare.prepare(session)
        judged = judge.reopen(session, ready, split=split, again=again)
        return list(judged.metrics), judged.openings


def compare(
    run_folders: Sequence[str | Path],
    *,
    split: Literal["val", "test"] | None = None,
    metric: str | None = None,
    group_seeds: bool = True,
) -> RunsCompared:
    """Compare finished runs on the same examples: who is better, and how sure that is.

    It reads the predictions that the runs have left; no data, no model and no opening of test is needed.

    Args:
        run_folders: At least two.
        split: `test` where every run has opened it, else `val`, when not given.
        metric: The task's default when not given.
        group_seeds: Take runs that differ only in `seed` as one.

    Raises:
        WarmstartError: With what to do about it.
    """
    from warmstart import contenders

    return contenders.runs(run_folders, split=split, metric=metric, group_seeds=group_seeds)


def predict(run_folder: str | Path, inputs: Sequence[Input | str]) -> list[dict[str, object]]:
    """Predict new pictures; one that cannot be read gets an `error` in its row and stops nothing.

    Returns:
        For each input `file`, `prediction`, and for classes `confidence` and `probabilities`.
    """
    from warmstart.data import images

    model = trained.load(run_folder)
    rows: list[dict[str, object]] = [{"file": str(item) if isinstance(item, (str, Path)) else ""} for item in inputs]
    good = []
    for at, item in enumerate(inputs):
        try:
            good.append((at, images.open_picture(Path(item) if isinstance(item, str) else item)))
        except images.Unreadable as error:
            rows[at]["error"] = error.reason
    values = model.predict_proba([picture for _, picture in good]) if good else ()
    for (at, _), row in zip(good, values, strict=True):
        rows[at] |= model.told(row)
    return rows


def report(run_folder: str | Path) -> Path:
    """Draw the report of a run again from its facts.

    Raises:
        RunError: No finished run here.
    """
    from warmstart import reporting

    folder = RunDir.load(run_folder).path
    return reporting.write(reporting.read(folder), folder)


@contextmanager
def opened(verb: str, data: object, given: Options, progress: Progress | None) -> Iterator[Session]:
    """Open the run folder of a command, and mark it failed when the command fails.

    A command that is refused before anything was learned leaves no run: corrected, it may use the same folder.
    """
    started = time.monotonic()
    path = data if isinstance(data, (str, Path)) else None
    sourced = options.sourced(path, given)
    _check_names(sourced.recipe)
    fingerprint = f"{verb}-{config.fingerprint(sourced.recipe)}{_content(data)}"
    folder = _open_folder(verb, sourced, given, fingerprint, data)
    with folder:
        try:
            stop = interrupts.Stop.known(folder.stage("stopped"))
            with interrupts.heard_by(stop.hear):
                yield Session(sourced, folder, _cache(given), progress or Silent(), started, stop=stop)
        except WarmstartError:
            folder.give_up()
            raise


@contextmanager
def scratch(verb: str, data: object, given: Options, progress: Progress | None) -> Iterator[Session]:
    """Open a session whose folder is thrown away, for verbs that leave nothing behind."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="warmstart-") as place:
        inside: Options = {**given, "out": Path(place) / verb}
        with opened(verb, data, inside, progress) as session:
            yield session


@contextmanager
def reopened(run_folder: str | Path, progress: Progress | None) -> Iterator[Session]:
    """Open a finished run again with the recipe that it was run by."""
    path = Path(run_folder)
    folder = RunDir.load(path)  # not `open`, which would make it a run that goes on
    yield Session(config.read_recipe(path / "recipe.toml"), folder, Cache(), progress or Silent())


def _check_names(recipe: Recipe) -> None:
    """Refuse unknown backbones before anything is read or written."""
    if recipe.backbone is not None:
        sources.check(recipe.backbone)
    elif recipe.candidates is not None:
        catalogue.check(recipe.candidates, max_params=recipe.max_params, licence=recipe.licence)


def _open_folder(verb: str, sourced: Sourced, given: Options, fingerprint: str, data: object) -> RunDir:
    """Open the folder that was named, else the first under runs/ that is this run's or free."""
    toml, overwrite = sourced.to_toml(), bool(given.get("overwrite"))
    out = given.get("out")
    if out is not None:
        return RunDir.open(out, recipe=toml, fingerprint=fingerprint, overwrite=overwrite)
    name = _name(verb, sourced, data)
    for number in range(1, 1000):
        path = Path("runs") / (name if number == 1 else f"{name}-{number}")
        if not path.exists() or _is_run(path, fingerprint):
            return RunDir.open(path, recipe=toml, fingerprint=fingerprint, overwrite=overwrite)
    raise RunError(f"runs/ holds 999 runs named {name}", "--out DIR")


def _is_run(path: Path, fingerprint: str) -> bool:
    try:
        return RunDir.load(path, finished=False).fingerprint == fingerprint
    except RunError:
        return False


def _content(data: object) -> str:
    """Tell data in memory from other data, which has no path for a recipe to know it by."""
    from warmstart.data import Dataset, images

    if not isinstance(data, Dataset):
        return ""
    columns = (data.targets, data.groups, data.given_split)
    inputs = (str(item).encode() if isinstance(item, Path) else images.content_hash(item) for item in data.inputs)
    facts = (data.kind, *data.class_names, *data.ids, *("" if c is None else c.tobytes() for c in columns))
    return f"-{runtime.digest(*facts, *inputs)}"


def _name(verb: str, sourced: Sourced, data: object) -> str:
    recipe = sourced.recipe
    where = Path(recipe.data.path).resolve().stem if recipe.data.path else getattr(data, "name", "data")
    parts = [where, (recipe.backbone or "").rpartition("/")[2], recipe.strategy.name or ""]
    return "-".join(part for part in parts if part) + ("" if verb == "run" else f"-{verb}")


def _cache(given: Options) -> Cache:
    limit = given.get("cache_limit")
    return Cache(limit_bytes=None if limit is None else parse_size(limit, name="--cache-limit"))


def _finished(session: Session) -> Run:
    """Return what a finished run found: repeating its command on the same data costs nothing."""
    from warmstart import reporting

    facts = reporting.read(session.folder.path)
    return Run(session.folder.path, facts, facts.answer.seconds)
