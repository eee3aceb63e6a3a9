"""argv → verb. Exit codes: 0 ok, 1 failed, 2 wrong usage."""

from __future__ import annotations

import inspect
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from warmstart import interrupts, options
from warmstart.errors import RecipeError, WarmstartError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="From raw files to a proven fine-tuned model with one command.",
)
cache_app = typer.Typer(no_args_is_help=True, help="Features that were computed once and are kept.")
app.add_typer(cache_app, name="cache")

SplitFlag = Literal["val", "test"]
DataArgument = Annotated[str, typer.Argument(help="A folder of images, a table, or a recipe (.toml).")]
WordsArgument = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to override.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
INTERRUPTED, TERMINATED = 130, 143
EXAMPLES = 5
"""How many cases of each finding are printed; `--json` has more."""
EXTRA = {
    "recipe": "Recipe file to start from.",
    "out": "Run folder; runs/NAME under the current folder when not given.",
    "overwrite": "Throw away what the run folder holds and begin again.",
    "cache_limit": "Most that the cache may hold, such as 20GB.",
}


def with_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags of `options.Options`, so that they are written once."""
    own = [p for p in inspect.signature(verb).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    hints = get_type_hints(verb, include_extras=True)
    parameters = [p.replace(annotation=hints[p.name]) for p in own]
    for name, kind in get_type_hints(options.Options).items():
        if name == "overrides":
            continue
        text = EXTRA.get(name) or options.describe(name)
        # Numbers arrive as words, which the recipe checks: one error in one form, whichever way a value was given.
        wanted: Any = bool if name == "overwrite" else str | None
        metavar = "<int>" if int in getattr(kind, "__args__", ()) else None
        flag = f"--{name.replace('_', '-')}"
        annotation = Annotated[wanted, typer.Option(flag, help=text, show_default=False, metavar=metavar)]
        default = False if name == "overwrite" else None
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )

    def command(*args: object, **kwargs: object) -> None:
        verb(*args, **kwargs)

    command.__name__, command.__doc__ = verb.__name__, verb.__doc__
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


@app.command()
@with_options
def run(
    data: DataArgument, words: WordsArgument = None, json_: JsonFlag = False, quiet: QuietFlag = False, **given: Any
) -> None:
    """Go from raw files to a tested model and a report."""
    from warmstart import workflow

    _show_run(workflow.run(data, progress=_progress(quiet), **_given(given, words)), json_)


@app.command()
@with_options
def plan(
    data: DataArgument, words: WordsArgument = None, json_: JsonFlag = False, quiet: QuietFlag = False, **given: Any
) -> None:
    """Forecast minutes, memory and disk of every backbone and strategy; nothing is trained."""
    from warmstart import workflow

    found = workflow.plan(data, progress=_progress(quiet), **_given(given, words))
    if json_:
        _print_json(found.to_json())
    else:
        _print(found.words())


@app.command()
@with_options
def choose(
    data: DataArgument, words: WordsArgument = None, json_: JsonFlag = False, quiet: QuietFlag = False, **given: Any
) -> None:
    """Race pretrained backbones on the data and say which to start from; test stays sealed."""
    from warmstart import workflow

    chosen = workflow.choose(data, progress=_progress(quiet), **_given(given, words))
    if json_:
        _print_json(chosen.to_json())
    else:
        for line in chosen.table():
            _print(line)


@app.command()
@with_options
def finetune(
    data: DataArgument, words: WordsArgument = None, json_: JsonFlag = False, quiet: QuietFlag = False, **given: Any
) -> None:
    """Fine-tune one backbone by one strategy and validate it; test stays sealed."""
    from warmstart import workflow

    _show_run(workflow.finetune(data, progress=_progress(quiet), **_given(given, words)), json_)


@app.command()
@with_options
def audit(
    data: DataArgument, words: WordsArgument = None, json_: JsonFlag = False, quiet: QuietFlag = False, **given: Any
) -> None:
    """Look for duplicates, leaks, unreadable files and wrong labels, without training."""
    from warmstart import workflow

    report = workflow.audit(data, progress=_progress(quiet), **_given(given, words))
    if json_:
        _print_json(report.to_json())
    else:
        for finding in report.findings:
            _print(f"{finding.status:8} {finding.name}: {finding.text}")
            cases = [" = ".join(report.dataset.ids[row] for row in case) for case in finding.cases]
            for shown in (cases or finding.names)[:EXAMPLES] if finding.status != "ok" else ():
                _print(f"{'':9}{shown}")
        for note in report.notes[:EXAMPLES]:
            _print(f"{'note':8} {note}")


@app.command()
def evaluate(
    run_folder: RunArgument,
    split: Annotated[SplitFlag, typer.Option(help="val, or test: each opening of test is recorded.")] = "test",
    again: Annotated[bool, typer.Option("--again", help="Open test although other weights have seen it.")] = False,
    json_: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Compute the metrics of a run's model on one of its splits."""
    from warmstart import workflow

    metrics, openings = workflow.evaluate(run_folder, split=split, again=again, progress=_progress(quiet))
    if json_:
        _print_json({"run": str(run_folder), "openings": openings, "metrics": [vars(metric) for metric in metrics]})
        return
    for metric in metrics:
        _print(f"{metric.name:24} {metric.value:.4f}  [{metric.low:.4f}, {metric.high:.4f}]  n={metric.n}")
    if split == "test":
        _print(f"test was opened {openings} time{'s' if openings != 1 else ''}")


@app.command()
def compare(
    run_folders: Annotated[list[Path], typer.Argument(metavar="RUN RUN [RUN]...", help="Run folders.")],
    split: Annotated[
        SplitFlag | None, typer.Option(help="val, or test; test where every run has opened it, when not given.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="Name of a metric; the task's default when not given.")] = None,
    group_seeds: Annotated[
        bool, typer.Option("--group-seeds/--no-group-seeds", help="Take runs that differ only in seed as one.")
    ] = True,
    json_: JsonFlag = False,
) -> None:
    """Compare finished runs on the same examples: who is better, and how sure that is."""
    from warmstart import workflow

    found = workflow.compare(run_folders, split=split, metric=metric, group_seeds=group_seeds)
    if json_:
        _print_json(found.to_json())
    else:
        _print(found.words())


@app.command()
def predict(
    run_folder: RunArgument,
    files: Annotated[list[Path], typer.Argument(help="Pictures.")],
    json_: JsonFlag = False,
) -> None:
    """Predict new pictures with a run's model."""
    from warmstart import workflow

    rows = workflow.predict(run_folder, files)
    if json_:
        _print_json({"run": str(run_folder), "predictions": rows})
        return
    for row in rows:
        shown = row.get("error") or row["prediction"]
        sure = f"  {row['confidence']:.3f}" if row.get("confidence") is not None else ""
        _print(f"{row['file']}  {shown}{sure}")
    if any("error" in row for row in rows):
        raise typer.Exit(1)


@app.command()
def report(run_folder: RunArgument, json_: JsonFlag = False) -> None:
    """Write the report of a run again and print where it is."""
    from warmstart import workflow

    path = workflow.report(run_folder)
    if json_:
        _print_json({"run": str(run_folder), "report": str(path)})
    else:
        _print(str(path))


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(help="backbones, strategies, tasks, readers or sources.")],
    pattern: Annotated[
        str | None, typer.Argument(help="Only names that contain this; of backbones also a glob.")
    ] = None,
    max_params: Annotated[str | None, typer.Option(help="Most parameters of a backbone, such as 30M.")] = None,
    licence: Annotated[str | None, typer.Option(help="permissive: only weights that anybody may use.")] = None,
    source: Annotated[str | None, typer.Option(help="Only backbones of this source.")] = None,
    here: Annotated[bool, typer.Option("--here", help="Only backbones whose weights are on this machine.")] = False,
    sort: Annotated[str | None, typer.Option(help="name, params, macs, accuracy or prior.")] = None,
    json_: JsonFlag = False,
) -> None:
    """List what there is of a kind."""
    from warmstart import catalogue, config

    if kind == "backbones":
        found = catalogue.backbones(
            pattern or "",
            max_params=None if max_params is None else config.parse_count(max_params),
            licence=licence or "any",
            source=source,
            only_here=here,
            sort=sort or "name",
        )
        _show_list(kind, [catalogue.facts(card) for card in found] if json_ else [], catalogue.table(found), json_)
        return
    if max_params or licence or source or here or sort:
        raise RecipeError(
            f"{kind} take no filters; --max-params, --licence, --source, --here and --sort are for backbones",
            f"warmstart list {kind}",
        )
    rows = catalogue.rows(kind, pattern or "")
    _show_list(kind, rows, [f"{row['name']:44} {row['about']}" for row in rows], json_)


@app.command()
def show(
    recipe: Annotated[str | None, typer.Argument(help="A recipe file, or the first KEY=VALUE.")] = None,
    words: WordsArgument = None,
) -> None:
    """Print a recipe as it would run, with the origin of every value."""
    from warmstart import config

    is_file = recipe is not None and "=" not in recipe
    overrides = [*([recipe] if recipe is not None and not is_file else []), *(words or [])]
    _print(config.read_recipe(recipe if is_file else None, overrides).to_toml())


@app.command()
def fetch(names: Annotated[list[str], typer.Argument(help="Backbones, as source/name.")]) -> None:
    """Bring weights onto this machine, to use them offline."""
    from warmstart import sources

    for name in names:
        source, rest = sources.find(name)
        _print(f"{name}  {source.fetch(rest)}")


@cache_app.command("info")
def cache_info(json_: JsonFlag = False) -> None:
    """Say where the cache is and what it holds."""
    from warmstart.cache import Cache
    from warmstart.spaces import size_text

    info = Cache().info()
    if json_:
        _print_json({**vars(info), "root": str(info.root), "spaces": [vars(space) for space in info.spaces]})
    else:
        _print(f"{info.root}: {info.num_rows:,} rows, {size_text(info.num_bytes)} of {size_text(info.limit_bytes)}")


@cache_app.command("clear")
def cache_clear() -> None:
    """Delete what the cache holds; it is computed again when needed."""
    from warmstart.cache import Cache
    from warmstart.spaces import size_text

    _print(f"freed {size_text(Cache().clear())}")


def main() -> None:
    """Run the command line; every known error is two lines on standard error."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        with interrupts.heard_by(lambda signum: False):  # nobody listens yet: leave, in order
            app()
    except RecipeError as error:
        _fail(error, 2)
    except WarmstartError as error:
        _fail(error, 1)
    except SystemExit as end:
        if end.code in (INTERRUPTED, TERMINATED):  # typer takes Ctrl-C and leaves without a word
            typer.echo("stopped; the same command goes on from here", err=True)
        raise
    except KeyboardInterrupt:  # before typer was there to take it
        sys.exit(INTERRUPTED)


def _fail(error: WarmstartError, code: int) -> None:
    typer.echo(f"{type(error).__name__}: {error}", err=True)
    sys.exit(code)


def _given(given: dict[str, Any], words: list[str] | None) -> Any:
    return {**given, "overrides": words or ()}


def _progress(quiet: bool) -> Any:
    from warmstart.progress import Silent

    if quiet or not sys.stderr.isatty():
        return Silent()
    from warmstart.bars import Bars

    return Bars()


def _show_run(done: Any, json_: bool) -> None:
    if json_:
        _print_json(done.to_json())
    else:
        _print(done.words())


def _show_list(kind: str, rows: list[dict[str, object]], lines: list[str], json_: bool) -> None:
    if json_:
        _print_json({kind: rows})
    for line in () if json_ else lines:
        _print(line)


def _print(text: str) -> None:
    print(text)


def _print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False, default=float))
