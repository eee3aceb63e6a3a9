"""What the documents say is true: their code runs, commands parse, links lead somewhere, numbers are read."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import typer.main

from warmstart import config, options, plugins
from warmstart.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
GUIDE = sorted((ROOT / "docs" / "guide").glob("*.md"))
FENCE = re.compile(r"(<!-- not run[^>]*-->\n)?^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, language: str) -> Iterator[tuple[bool, str]]:
    """Yield (skipped, code) of every block in a language."""
    for skipped, found, code in FENCE.findall(path.read_text("utf-8")):
        if found == language:
            yield bool(skipped), code


def commands(path: Path) -> list[list[str]]:
    """Return the words of every warmstart command line in shell blocks, comments left out."""
    lines = [line for _, code in blocks(path, "sh") for line in code.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("warmstart ")]


def parsed(words: list[str]) -> dict[str, object]:
    """Parse a command line as the CLI does, without running it."""
    command, names = typer.main.get_command(app), ["warmstart"]
    while hasattr(command, "commands"):
        assert words and words[0] in command.commands, (
            f"warmstart has no verb {words[:1]} in {sorted(command.commands)}"
        )
        command, names, words = command.commands[words[0]], [*names, words[0]], words[1:]
    return dict(command.make_context(" ".join(names), list(words)).params)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_command_line_in_the_documents_parses(path: Path) -> None:
    for words in commands(path):
        given = parsed(words)
        overrides = [str(word) for word in given.get("words") or ()]
        named = {key: given.get(option) for option, key in options.RECIPE_KEYS.items()}
        if words[0] == "show" and given.get("recipe"):
            overrides.insert(0, str(given["recipe"]))
        if given.get("strategy") in (None, *plugins.names("strategy")):  # a page may invent a strategy of the reader's
            config.read_recipe(None, overrides, named)


def test_the_check_of_command_lines_sees_mistakes() -> None:
    for wrong in ("tune photos", "run photos --bugdet 10m", "run", "evaluate runs/a --split dev"):
        with pytest.raises((AssertionError, Exception), match=r"no verb|[Nn]o such option|Missing|not one of"):
            parsed(wrong.split())


def test_documents_hold_as_many_commands_as_they_claim_to_test() -> None:
    assert sum(len(commands(path)) for path in PAGES) >= 50


@pytest.mark.parametrize("path", [path for path in PAGES if any(blocks(path, "python"))], ids=name_of)
def test_python_in_the_documents_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = ModuleType("docs_example")  # dataclasses look up their module by name
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for number, (skipped, code) in enumerate(blocks(path, "python")):
        compiled = compile(code, f"{path.name} block {number}", "exec", dont_inherit=True)
        if not skipped:
            exec(compiled, vars(module))


def test_a_strategy_of_a_package_of_its_own_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, code = next(blocks(ROOT / "docs/guide/extending.md", "python"))
    (tmp_path / "vectors.py").write_text(code)
    points = "[warmstart.strategy]\nvectors = vectors\n"
    about = tmp_path / "vectors-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: vectors\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(tmp_path)
    _forget()
    try:
        assert "vectors" in plugins.names("strategy")
        found = plugins.options(plugins.load("strategy", "vectors"))
        assert [(one.name, one.default) for one in found] == [("lr_scale", 1.0)]
        assert found[0].description.startswith("Learning rate")
        sourced = config.read_recipe(overrides=["strategy=vectors", "lr_scale=0.5"])
        assert sourced.recipe.strategy.options == {"lr_scale": 0.5}
    finally:
        _forget()
        sys.modules.pop("vectors", None)


def _forget() -> None:
    for cached in (plugins.names, plugins.load, plugins.options, plugins._third_party):
        cached.cache_clear()


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text("utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", text)
    for target in (first or second for first, second in targets):
        if not re.match(r"https?://|#", target):
            assert (path.parent / target.partition("#")[0]).exists(), f"{name_of(path)} links to {target}"


def test_the_tables_of_results_are_what_the_measurements_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    import build_results

    for page, text in build_results.pages().items():
        assert page.read_text("utf-8") == text, f"{page.name} is stale; fix: python docs/build_results.py"
        assert len(build_results.BLOCK.findall(text)) == 1
    for name, facts in build_results.results().items():
        assert list(build_results._rows(name, facts, "en")), f"{name}.json has no row in the table"


def test_a_comparison_with_a_peer_is_told_in_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    import build_results

    def runs(seconds: float, accuracy: float) -> list[dict[str, object]]:
        return [{"seconds": seconds, "peak_bytes": 2**30, "facts": {"accuracy": accuracy}}]

    def ratio(slow: str, fast: str, median: float) -> dict[str, object]:
        values = {"median": median, "low": median - 0.5, "high": median + 0.5}
        return {"slow": slow, "fast": fast, "what": "seconds", "n": 5, **values}

    facts = {
        "benchmark": "head_only-lite0-128-folder-5000",
        "parameters": {"epochs": 10, "timed": 2, "backbone": "lite0", "size": 128, "train": 5000},
        "ratios": [ratio("textbook", "command", 20.0), ratio("command", "onnxruntime", 1.1)],
        "runs": {"textbook": runs(400.0, 0.8), "command": runs(20.0, 0.84), "onnxruntime": runs(18.0, 0.0)},
    }
    faster, slower, accuracy = build_results._rows("head_only-x", facts, "en")
    assert (faster.ours, faster.peer) == ("20.0 s", "400.0 s, textbook loop, 10 epochs, 2 of them timed")
    assert faster.sure == "20 × faster (19.5 to 20.5)"
    assert (slower.ours, slower.peer) == ("20.0 s", "18.0 s, one bare pass, ONNX Runtime")
    assert slower.sure == "1.10 × the time (0.60 to 1.60)"
    assert (accuracy.ours, accuracy.peer[:5], accuracy.n) == ("0.840", "0.800", "1")


def test_the_chinese_twin_has_the_same_structure_and_the_same_commands() -> None:
    english, chinese = ROOT / "README.md", ROOT / "README.zh.md"
    assert commands(english) == commands(chinese)
    for pattern in (r"^#+ ", r"^\|", r"^- ", r"^```"):
        counts = [len(re.findall(pattern, page.read_text("utf-8"), re.MULTILINE)) for page in (english, chinese)]
        assert counts[0] == counts[1], f"{counts} lines begin with {pattern}"


def test_the_guide_names_every_plug_in_check_and_key() -> None:
    text = "\n".join(path.read_text("utf-8") for path in GUIDE)
    for kind in ("strategy", "reader", "source", "task", "score"):
        missing = [name for name in plugins.names(kind) if f"`{name}`" not in text]
        assert not missing, f"the guide does not name the {kind} plug-ins {missing}"
    source = (ROOT / "src/warmstart/data/audit_report.py").read_text("utf-8")
    checks = re.findall(r"Finding\(\s*\"([^\"]+)\"", source)
    assert len(checks) == 9
    assert not [name for name in checks if f"| {name} |" not in text]
    known = set(config.keys(config.Recipe()))
    assert not {key for key in known if f"`{key}`" not in text}
    assert not set(re.findall(r"`((?:data|optim|schedule)\.\w+)", text)) - known


def test_the_messages_that_the_guide_explains_are_said() -> None:
    source = "\n".join(path.read_text("utf-8") for path in sorted((ROOT / "src").rglob("*.py")))
    said = re.sub(r"\"\s*\n\s*f?\"", "", source)
    _, _, table = (ROOT / "docs/guide/data.md").read_text("utf-8").partition("## Messages")
    messages = re.findall(r"`([^`]+)`", "".join(line.split("|")[1] for line in table.splitlines() if "`" in line))
    assert len(messages) >= 14
    pieces = {piece.strip(" ,") for message in messages for piece in message.split("…")}
    assert not {piece for piece in pieces if piece not in said}


def test_every_decision_page_is_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text("utf-8")
    for page in sorted(folder.glob("[0-9]*.md")):
        assert f"]({page.name})" in index, f"{page.name} is not in docs/decisions/README.md"


@pytest.mark.parametrize("path", GUIDE, ids=name_of)
def test_guide_pages_are_short(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 150


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_picture_of_the_report_is_small(theme: str) -> None:
    assert (ROOT / "docs" / "images" / f"report-{theme}.png").stat().st_size <= 300_000
