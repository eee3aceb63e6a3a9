"""The limits that we set ourselves, over every file under src. A failure lists all offenders."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from warmstart import errors

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src" / "warmstart"
FILES = sorted(SRC.rglob("*.py"))
FUNCTION_LINES, FILE_LINES = 60, 600
HEAVY = ("torch", "torchvision", "timm", "sklearn", "scipy", "onnx", "onnxruntime", "accelerate", "PIL", "matplotlib")
ERRORS = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
Rule = Callable[[Path, ast.Module], Iterator[tuple[int, str]]]


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def _offenders(rule: Rule) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line}: {what}" for path in FILES for line, what in sorted(rule(path, _tree(path)))
    ]


def _dotted(node: ast.expr) -> str:
    """Write `a.b.c` for a chain of attributes, else what stands at its end."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, _dotted(node.func)


def _keyword(call: ast.Call, name: str) -> object:
    value = next((word.value for word in call.keywords if word.arg == name), None)
    return value.value if isinstance(value, ast.Constant) else None


def long_functions(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (lines := _lines(node)) > FUNCTION_LINES:
            yield node.lineno, f"{node.name} has {lines} lines"


def _lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def long_files(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    if (lines := len(path.read_text().splitlines())) > FILE_LINES:
        yield 1, f"{lines} lines"


def prints(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    if path != SRC / "cli.py":
        yield from ((call.lineno, "print") for call, name in _calls(tree) if name == "print")


def bare_excepts(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and _catches_all(node):
            yield node.lineno, "catches everything and does not raise again"


def _catches_all(node: ast.ExceptHandler) -> bool:
    wide = node.type is None or _dotted(node.type) == "BaseException"
    return wide and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node))


def code_in_files(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Find whatever could run code out of a file that a user gives; an exception to catch may be imported."""
    for node in ast.walk(tree):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not all(alias.name.endswith("Error") for alias in node.names):
            modules.append(node.module or "")
        yield from ((node.lineno, f"imports {name}") for name in modules if name.split(".")[0] in UNSAFE_MODULES)
    for call, name in _calls(tree):
        if name in {"torch.save", "joblib.load", "joblib.dump", "eval", "exec", "yaml.load"}:
            yield call.lineno, name
        if name in {"torch.load", "torch.hub.load_state_dict_from_url"} and _keyword(call, "weights_only") is not True:
            yield call.lineno, f"{name} without weights_only=True"
        yield from ((call.lineno, word) for word in ("trust_remote_code", "allow_pickle") if _keyword(call, word))


UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}


def global_randomness(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Find seeds of global generators, unless the block puts the generator back (`torch.random.fork_rng`).

    The loop seeds each step far below the block that puts the generator back, so it is the one file trusted whole.
    """
    put_back = {id(call) for block in ast.walk(tree) if _forks(block) for call, _ in _calls(block)}
    if path == SRC / "fit.py" and any(name == "looptools.own_randomness" for _, name in _calls(tree)):
        return
    for call, name in _calls(tree):
        if name in GLOBAL_SEEDS and id(call) not in put_back:
            yield call.lineno, f"{name}: use a generator from runtime.rng"


GLOBAL_SEEDS = {"torch.manual_seed", "torch.random.manual_seed", "np.random.seed", "random.seed", "set_seed"}


def _forks(node: ast.AST) -> bool:
    return isinstance(node, ast.With) and any(name == "torch.random.fork_rng" for _, name in _calls(node.items[0]))


def silent_publics(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Find public modules, classes and functions without a docstring."""
    if ast.get_docstring(tree) is None:
        yield 1, "module without a docstring"
    bodies = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.ClassDef) and _is_public(node))]
    for node in (node for body in bodies for node in body):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and _is_public(node) and ast.get_docstring(node) is None:
            yield node.lineno, f"{node.name} without a docstring"


def _is_public(node: ast.ClassDef | ast.FunctionDef) -> bool:
    return not node.name.startswith("_") and not any(
        _dotted(decorator) in {"overload", "typing.overload"} for decorator in node.decorator_list
    )


def _messages(tree: ast.Module) -> Iterator[tuple[ast.Call, str]]:
    """Find every place that builds one of our errors."""
    yield from ((call, name) for call, name in _calls(tree) if name.rpartition(".")[2] in ERRORS)


def _literal(node: ast.expr) -> list[str] | None:
    """Return the fixed parts of a string, or None when it is not written on the spot."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
    return None


def careless_messages(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Find errors that are not two lines in our form: what is wrong, then the fix."""
    for call, name in _messages(tree):
        arguments = [*call.args, *(word.value for word in call.keywords)]
        if len(arguments) != 2 and not any(isinstance(node, ast.Starred) for node in arguments):
            yield call.lineno, f"{name} needs the problem and the fix"
            continue
        text = "".join(_literal(arguments[0]) or [])
        if text and not _is_our_form(text):
            yield call.lineno, f"{name}: {text!r} (lower-case start, no full stop, no 'please', not just 'invalid')"


def _is_our_form(text: str) -> bool:
    first = text.split(maxsplit=1)[0]
    shouts = first[0].isupper() and first[1:].islower()
    return not (shouts or text.rstrip().endswith(".") or "please" in text.lower() or text.startswith("invalid"))


RULES: tuple[Rule, ...] = (
    long_functions,
    long_files,
    prints,
    bare_excepts,
    code_in_files,
    global_randomness,
    silent_publics,
    careless_messages,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule: Rule) -> None:
    offenders = _offenders(rule)
    assert not offenders, f"{rule.__name__}:\n" + "\n".join(offenders)


def test_there_are_files_to_look_at() -> None:
    assert SRC / "errors.py" in FILES
    assert len(FILES) >= 10


def test_every_message_has_a_test_on_its_text() -> None:
    """Three words in a row of each error's fixed text stand in some test."""
    tested = _plain(" ".join(path.read_text() for path in sorted((ROOT / "tests").rglob("*.py"))))
    offenders = []
    for path in FILES:
        for call, name in _messages(_tree(path)):
            parts = _literal(call.args[0]) if call.args else None
            windows = _windows(parts or [])
            if windows and not any(window in tested for window in windows):
                offenders.append(f"{path.relative_to(ROOT)}:{call.lineno}: {name}: {''.join(parts or [])!r}")
    assert not offenders, "no test says these words:\n" + "\n".join(offenders).replace("\0", "…")


def _plain(text: str) -> str:
    """Reduce text to words, so that escapes of regular expressions and quotes of source code make no difference."""
    return re.sub(r"[^a-z0-9_]+", " ", re.sub(r"\"\s*\n\s*f?\"|\\.", " ", text).lower())


def _windows(parts: list[str]) -> list[str]:
    """List the runs of three words inside the fixed parts; a short message is its own window."""
    found = []
    for part in "".join(parts).split("\0"):
        words = _plain(part).split()
        found += [" ".join(words[at : at + 3]) for at in range(len(words) - 2)]
    longest = max((_plain(part).strip() for part in "".join(parts).split("\0")), key=len, default="")
    return found or ([longest] if longest else [])


@pytest.mark.parametrize("module", ["warmstart", "warmstart.cli", "warmstart.plugins", "warmstart.config"])
def test_early_modules_import_nothing_heavy(module: str) -> None:
    source = f"import sys, {module}; print(*sorted(set({HEAVY!r}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", source], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


OFFENCES: dict[Rule, str] = {
    long_functions: "def f():\n" + "    pass\n" * FUNCTION_LINES,
    prints: "print(1)",
    bare_excepts: "try:\n    pass\nexcept:\n    pass",
    code_in_files: "torch.load(path)",
    global_randomness: "with torch.random.fork_rng():\n    torch.manual_seed(1)\ntorch.manual_seed(1)",
    silent_publics: '"""Doc."""\ndef f(): ...',
    careless_messages: "raise DataError('Bad thing.', 'fix it')",
}


@pytest.mark.parametrize("rule", OFFENCES, ids=lambda rule: rule.__name__)
def test_the_rule_sees_an_offence(rule: Rule) -> None:
    assert len(list(rule(SRC / "errors.py", ast.parse(OFFENCES[rule])))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.save(x, p)",
        "f(trust_remote_code=True)",
        "np.load(p, allow_pickle=True)",
    ],
)
def test_code_in_files_is_seen(source: str) -> None:
    assert list(code_in_files(SRC / "errors.py", ast.parse(source)))


def test_weights_only_is_allowed() -> None:
    source = "torch.load(path, weights_only=True); np.load(p, allow_pickle=False)"
    assert not list(code_in_files(SRC / "errors.py", ast.parse(source)))
