"""A search by Optuna that can be killed anywhere: what is proposed, who climbs, and the journal.

Settings are proposed by a tree-structured Parzen estimator over all keys at once (Bergstra et al., 2011; Watanabe,
2023, arXiv 2304.11127). Each trial climbs rungs of growing cost and leaves at the first where it is not in the best
third (asynchronous successive halving, Li et al., 2020, arXiv 1810.05934, algorithm 2). Where we differ: one trial
climbs as far as it may before the next is proposed, since there is one machine.

The study is a file of JSON lines, one per finished trial. The proposal of a trial follows from the seed, its number and
the lines before it, so a command that was killed and repeated proposes the same.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from warmstart import config, runtime
from warmstart.errors import WarmstartError

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

ETA = 3
"""One of this many climbs on; rungs should grow by as much."""
STARTUP = 5
"""Trials, known ones among them, before the estimator has something to say; drawn at random until then."""
LOG_FROM = 10.0
"""A range whose ends are this many times apart is searched on a logarithmic scale."""

Space = Mapping[str, Sequence[object]]
"""What may be tried for each key of the recipe; see `config.is_range`."""
State = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True)
class Rung:
    """One short fit of a trial."""

    value: float
    examples: int
    """Training examples that it saw, repetitions counted."""
    seconds: float


@dataclass(frozen=True)
class Tried:
    """One trial: settings, and how far they climbed."""

    params: Mapping[str, object]
    rungs: tuple[Rung, ...]
    state: State
    because: str = ""
    """Why it left."""
    known: bool = False
    """Whether it was measured before the search began."""

    @property
    def seconds(self) -> float:
        """Return what it took."""
        return sum(rung.seconds for rung in self.rungs)


@dataclass(frozen=True)
class Rules:
    """What a search may do."""

    space: Space
    rungs: tuple[float, ...]
    """Seconds of each rung."""
    trials: int
    seconds: float
    """That its trials may take together, those of an interrupted command included."""
    seed: int = 0
    higher_is_better: bool = True


Measure = Callable[[Mapping[str, object], int], Rung]
"""Settings and number of the rung → what came out; WarmstartError or MemoryError when the settings are no good."""


def explore(
    journal: Path,
    rules: Rules,
    measure: Measure,
    *,
    known: Sequence[Tried] = (),
    queue: Sequence[Mapping[str, object]] = (),
    has_time: Callable[[float], bool] = lambda _: True,
) -> Iterator[Tried]:
    """Yield trials, each once it is in the journal; those that an interrupted command left there come first.

    Args:
        journal: The file of the study; made when it is not there.
        rules: What it may do.
        measure: Fits and judges settings.
        known: Trials that were measured before; the study begins with them.
        queue: Settings to try before any is proposed.
        has_time: Whether there is time for so many seconds.
    """
    study = _opened(journal, rules)
    for one in known[len(study.get_trials(deepcopy=False)) :]:
        study.add_trial(_frozen(one, rules))
    done = [_thawed(trial) for trial in study.get_trials(deepcopy=False)]
    yield from done[len(known) :]
    while len(done) - len(known) < rules.trials:
        spent = sum(one.seconds for one in done if not one.known)
        if spent + rules.rungs[0] > rules.seconds or not has_time(rules.rungs[0]):
            log.info("the search ends after %s of %s trials: its time is up", len(done) - len(known), rules.trials)
            return
        params = _asked(study, rules, len(done) - len(known), queue)
        tried = _climbed(params, rules, measure, done, has_time)
        study.add_trial(_frozen(tried, rules))
        done.append(tried)
        log.info("%s: %s", params, tried.because or f"{tried.rungs[-1].value:.4f}")
        yield tried


def _climbed(
    params: Mapping[str, object],
    rules: Rules,
    measure: Measure,
    done: Sequence[Tried],
    has_time: Callable[[float], bool],
) -> Tried:
    """Let settings climb until they are not in the best third of a rung."""
    same = next((one for one in done if one.params == params and not one.known), None)
    if same is not None:  # a space of few choices runs out of them
        return replace(same, rungs=tuple(replace(rung, seconds=0.0) for rung in same.rungs))
    rungs: list[Rung] = []
    for number, seconds in enumerate(rules.rungs):
        if number and not has_time(seconds):
            return Tried(params, tuple(rungs), "pruned", "its time was up")
        try:
            rungs.append(measure(params, number))
        except (WarmstartError, MemoryError) as error:
            log.warning("%s was left out: %s", params, error)
            return Tried(params, tuple(rungs), "failed", str(error).partition("\n")[0] or "out of memory")
        rivals = [one.rungs[number].value for one in done if len(one.rungs) > number]
        if not math.isfinite(rungs[-1].value):
            return Tried(params, tuple(rungs[:-1]), "failed", "not a number")
        if number + 1 < len(rules.rungs) and not _climbs(rungs[-1].value, rivals, rules):
            return Tried(params, tuple(rungs), "pruned", f"left at rung {number + 1} of {len(rules.rungs)}")
    return Tried(params, tuple(rungs), "complete")


def _climbs(value: float, rivals: Sequence[float], rules: Rules) -> bool:
    """Say whether a value is in the best third of its rung; among few, whether it is the best."""
    sign = 1.0 if rules.higher_is_better else -1.0
    better = sum(sign * rival > sign * value for rival in rivals)
    return better < max(1, (len(rivals) + 1) // ETA)


def _asked(study: optuna.Study, rules: Rules, number: int, queue: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Ask for settings in a copy of the study, so that the journal holds nothing half done."""
    import optuna

    seed = int(runtime.rng(rules.seed, "search", str(number)).integers(2**31))
    with warnings.catch_warnings():  # multivariate was experimental before Optuna 5; remove with optuna>=5
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True)
    copy = optuna.create_study(direction=study.direction, sampler=sampler)
    copy.add_trials(study.get_trials(deepcopy=False))
    if number < len(queue):
        copy.enqueue_trial(dict(queue[number]))
    found = dict(copy.ask(distributions(rules.space)).params)
    return found if number < len(queue) else {key: _short(value, rules.space[key]) for key, value in found.items()}


def _short(value: object, choices: Sequence[object]) -> object:
    """Return a number of a range with three digits, which is as good and reads well."""
    if not isinstance(value, float) or not config.is_range(choices):
        return value
    low, high = (float(str(end)) for end in choices)
    return min(max(float(f"{value:.3g}"), low), high)


def _opened(journal: Path, rules: Rules) -> optuna.Study:
    """Open the study of a journal, whose last line may be torn and whose lock may be left by a command that was killed.

    The run folder has a lock of its own, so nobody else is at work on this file.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for left in journal.parent.glob(f"{journal.name}.lock*"):
        left.unlink(missing_ok=True)
    if journal.exists():
        text = journal.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            journal.write_bytes(whole)
    backend = JournalFileBackend(str(journal), lock_obj=JournalFileOpenLock(str(journal)))
    return optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        study_name="search",
        direction="maximize" if rules.higher_is_better else "minimize",
        load_if_exists=True,
    )


def _frozen(tried: Tried, rules: Rules) -> optuna.trial.FrozenTrial:
    """Turn a trial into a line of the journal; a failure is one that never reached a value."""
    import optuna
    from optuna.trial import TrialState

    complete = len(tried.rungs) == len(rules.rungs)
    told = {"state": tried.state, "because": tried.because, "known": tried.known}
    return optuna.trial.create_trial(
        state=TrialState.COMPLETE if complete else TrialState.PRUNED,
        value=tried.rungs[-1].value if complete else None,
        params=dict(tried.params),
        distributions=distributions(rules.space),
        intermediate_values={ETA**number: rung.value for number, rung in enumerate(tried.rungs)},
        user_attrs={**told, "rungs": json.dumps([asdict(rung) for rung in tried.rungs])},
    )


def _thawed(trial: optuna.trial.FrozenTrial) -> Tried:
    """Read a line of the journal back."""
    told: Any = trial.user_attrs
    rungs = tuple(Rung(**one) for one in json.loads(told["rungs"]))
    return Tried(trial.params, rungs, told["state"], told["because"], told["known"])


def inside(params: Mapping[str, object], space: Space) -> bool:
    """Say whether every value is among what is tried for its key."""
    for key, choices in space.items():
        value = params[key]
        if not config.is_range(choices):
            if value not in choices:
                return False
        elif not isinstance(value, (int, float)) or not choices[0] <= value <= choices[1]:  # type: ignore[operator]
            return False
    return True


def distributions(space: Space) -> dict[str, optuna.distributions.BaseDistribution]:
    """Turn a space into what Optuna samples from."""
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for key, choices in space.items():
        if not config.is_range(choices):
            found[key] = CategoricalDistribution(tuple(choices))  # type: ignore[arg-type]
            continue
        low, high = choices
        assert isinstance(low, (int, float)) and isinstance(high, (int, float))
        scale = low > 0 and high / low >= LOG_FROM
        if isinstance(low, int) and isinstance(high, int):
            found[key] = IntDistribution(low, high, log=scale)
        else:
            found[key] = FloatDistribution(float(low), float(high), log=scale)
    return found
