"""A venv for each peer under the git-ignored `.assets/benchmarks/venvs`.

Peers that take the torch which warmstart itself runs on get that very installation, by links to its distributions and
to nothing else: the same kernels for all, and gigabytes saved. AutoGluon asks for an older torch and brings its own;
Keras runs on TensorFlow. Everything else comes from the package registry. A venv that is complete is left alone.

usage: python -m benchmarks.peers.install [NAME ...]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import common

VENVS = common.SCRATCH / "venvs"
SHARED = re.compile(r"torch|torchvision|triton|nvidia|cuda", re.ASCII)


@dataclass(frozen=True)
class Needs:
    """What a peer's venv holds."""

    packages: tuple[str, ...]
    """Requirements, as pip takes them."""
    torch: bool = True
    """Link the torch and torchvision of this interpreter."""
    told: tuple[str, ...] = ()
    """Distributions whose versions are recorded with a result."""


NEEDS = {
    "textbook": Needs(("timm==1.0.31",), told=("torch", "torchvision", "timm")),
    "sklearn": Needs(("timm==1.0.31", "scikit-learn==1.9.1"), told=("scikit-learn", "torch", "timm")),
    "fastai": Needs(("fastai==2.8.12", "timm==1.0.31"), told=("fastai", "torch", "timm")),
    "transformers": Needs(
        ("transformers==5.23.0", "accelerate==1.15.0", "timm==1.0.31"),
        told=("transformers", "accelerate", "torch", "timm"),
    ),
    "keras": Needs(
        ("keras==3.15.1", "tensorflow-cpu==2.21.0", "safetensors"), torch=False, told=("keras", "tensorflow-cpu")
    ),
    "autogluon": Needs(
        ("autogluon.multimodal==1.6.3", "torch===2.13.0", "torchvision==0.28.0"),
        torch=False,
        told=("autogluon.multimodal", "torch", "timm"),
    ),
}


def main() -> None:
    """Build the venvs that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NEEDS)}")
    for name in parser.parse_args().names or NEEDS:
        print(f"{name}: {build(name)}", flush=True)


def build(name: str) -> str:
    """Build one venv, and say what became of it."""
    needs, folder = NEEDS[name], VENVS / name
    stamp = folder / "installed.json"
    if stamp.exists() and json.loads(stamp.read_text()).get("packages") == list(needs.packages):
        return "is there"
    if not (folder / "bin" / "python").exists():
        venv.create(folder, with_pip=True)
    if needs.torch:
        link(next((folder / "lib").glob("python3*")) / "site-packages")
    command = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", *needs.packages]
    done = subprocess.run([str(word) for word in command], check=False, capture_output=True, text=True)
    if done.returncode:
        (folder / "failed.txt").write_text(f"{' '.join(needs.packages)}\n{done.stdout}\n{done.stderr}")
        return f"failed: {(done.stderr.strip().splitlines() or ['pip gave no reason'])[-1]}"
    stamp.write_text(json.dumps({"packages": needs.packages}))
    return "installed"


def link(site: Path) -> None:
    """Link torch, torchvision and the libraries that they load from this interpreter's site-packages."""
    for own in _shared():
        if not (at := site / own.name).exists():
            at.symlink_to(own)


def _shared() -> Iterator[Path]:
    """Yield the top-level files and folders of the distributions that are shared."""
    for found in importlib.metadata.distributions():
        if not SHARED.match(found.metadata["Name"].lower()):
            continue
        tops = {str(file).split("/")[0] for file in found.files or ()}
        for top in sorted(tops - {"..", "__pycache__"}):
            path = Path(str(found.locate_file(top)))
            if path.exists():
                yield path.resolve()


def missing(name: str) -> str:
    """Say why a peer cannot be run here; nothing where it can."""
    folder = VENVS / name
    if (folder / "installed.json").exists():
        return ""
    if (told := folder / "failed.txt").exists():
        return told.read_text()[-3_000:]
    return f"not installed: python -m benchmarks.peers.install {name}"


def own(name: str) -> Path:
    """Return a command of this interpreter's environment."""
    return Path(sys.executable).with_name(name)


def versions(name: str) -> dict[str, str]:
    """Return the versions that are recorded with a peer's results."""
    script = (
        "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]} | "
        "{'python': sys.version.split()[0]}))"
    )
    python = VENVS / name / "bin" / "python"
    done = subprocess.run([python, "-c", script, *NEEDS[name].told], check=True, capture_output=True, text=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
