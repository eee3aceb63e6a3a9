"""Sources through the libraries' own caches, filled here with random weights in the same format; and what they say."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import timm
import torch
import torchvision
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn

from warmstart import plugins, runtime, sources
from warmstart.errors import CheckpointError, SourceError
from warmstart.models import Card, InputSpec, weights
from warmstart.models.build import backbone
from warmstart.models.chain import ChainBackbone
from warmstart.sources import _network

SMALL = "mobilenetv3_small_050.lamb_in1k"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the Hugging Face library a cache of its own."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put(hub: Path, repository: str, file: str) -> Path:
    """Return where the hub's cache keeps a file."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text("0123abcd")
    (folder / "snapshots" / "0123abcd").mkdir(parents=True, exist_ok=True)
    return folder / "snapshots" / "0123abcd" / file


def torch_cache(file: str) -> Path:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / file


def check_same(subject: object, reference: nn.Module, card: Card) -> None:
    """The classifier that was kept, on the features, says what the library's own network says."""
    assert isinstance(subject, ChainBackbone) and not subject.training and subject.classifier is not None
    size = 64
    pixels = torch.from_numpy(runtime.rng(0).integers(0, 256, (2, 3, size, size), dtype=np.uint8))
    mean, std = (torch.tensor(each).reshape(3, 1, 1) for each in (card.spec.mean, card.spec.std))
    with torch.inference_mode():
        expected = reference.eval()((pixels / 255 - mean) / std)
        torch.testing.assert_close(subject.classifier(subject.features(pixels).pooled), expected, rtol=1e-5, atol=1e-5)
    assert card.weights_hash == weights.weights_hash(subject.state_dict())
    assert (card.dim, card.num_params) == (subject.dim, sum(p.numel() for p in subject.parameters()))


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_timm_weights_come_from_the_hubs_cache(file: str, hub: Path) -> None:
    reference = timm.create_model("mobilenetv3_small_050")
    path = put(hub, f"timm/{SMALL}", file)
    if file.endswith(".bin"):
        torch.save(reference.state_dict(), path)
    else:
        save_file(reference.state_dict(), path)
    subject, card = sources.load("timm/mobilenetv3_small_050")
    check_same(subject, reference, card)
    assert card.name == f"timm/{SMALL}"
    assert (card.licence, card.trained_on, card.arch) == ("apache-2.0", "ImageNet-1k", "timm:mobilenetv3_small_050")
    assert sources.find(f"timm/{SMALL}")[0].fetch(SMALL) == path


def test_safetensors_are_preferred(hub: Path) -> None:
    save_file(timm.create_model("mobilenetv3_small_050").state_dict(), put(hub, f"timm/{SMALL}", "model.safetensors"))
    put(hub, f"timm/{SMALL}", "pytorch_model.bin").write_bytes(b"never read")
    sources.load(f"timm/{SMALL}")


def test_torchvision_weights_come_from_torchs_cache() -> None:
    reference = torchvision.models.mobilenet_v3_small()
    torch.save(reference.state_dict(), path := torch_cache("mobilenet_v3_small-047dcff4.pth"))
    subject, card = sources.load("torchvision/mobilenet_v3_small")
    check_same(subject, reference, card)
    assert card.name == "torchvision/mobilenet_v3_small:IMAGENET1K_V1"
    assert sources.find("torchvision/x")[0].fetch("mobilenet_v3_small:DEFAULT") == path


@pytest.mark.slow
def test_published_files_with_old_names_and_auxiliary_heads_load() -> None:
    """DenseNet's files name layers `norm.1`; GoogLeNet's carry auxiliary classifiers that nobody needs here."""
    dense = torchvision.models.densenet121()
    old = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.") if "denselayer" in name else name: tensor
        for name, tensor in dense.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert len(set(old) - set(dense.state_dict())) == 5 * 58
    torch.save(old, torch_cache("densenet121-a639ec97.pth"))
    check_same(*_swapped(sources.load("torchvision/densenet121"), dense))
    google = torchvision.models.googlenet(init_weights=False, aux_logits=True)
    torch.save(google.state_dict(), torch_cache("googlenet-1378be20.pth"))
    google.aux_logits = False
    check_same(*_swapped(sources.load("torchvision/googlenet"), google))


def _swapped(loaded: tuple[object, Card], reference: nn.Module) -> tuple[object, nn.Module, Card]:
    return loaded[0], reference, loaded[1]


class Payload:
    """What a hostile pickle looks like."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/warmstart-was-here",)


def test_a_cached_pickle_cannot_run_code(hub: Path, tmp_path: Path) -> None:
    hostile = pickle.dumps({"conv1.weight": Payload()}, protocol=2)
    (path := torch_cache("mobilenet_v3_small-047dcff4.pth")).write_bytes(hostile)
    with pytest.raises(CheckpointError) as caught:
        sources.load("torchvision/mobilenet_v3_small")
    start = f"{path} does not hold torchvision/mobilenet_v3_small:IMAGENET1K_V1 ("
    assert str(caught.value).startswith(start)
    assert str(caught.value).endswith(")\n  fix: delete that file and fetch it again")
    put(hub, f"timm/{SMALL}", "pytorch_model.bin").write_bytes(hostile)
    with pytest.raises(CheckpointError, match=r"does not hold timm/mobilenetv3_small_050\.lamb_in1k"):
        sources.load(f"timm/{SMALL}")
    assert not Path("/tmp/warmstart-was-here").exists()


def test_a_damaged_cache_file_is_named(hub: Path) -> None:
    path = put(hub, f"timm/{SMALL}", "model.safetensors")
    path.write_bytes(b"half a download")
    with pytest.raises(CheckpointError) as caught:
        sources.load(f"timm/{SMALL}")
    assert str(caught.value).startswith(f"{path} does not hold timm/{SMALL} (")
    assert caught.value.fix == "delete that file and fetch it again"


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
        ("timm/resnet18", "timm/resnet18.a1_in1k"),
        ("timm/legacy_senet154", "timm/legacy_senet154.in1k"),
        ("torchvision/resnet50", "torchvision/resnet50:IMAGENET1K_V2"),
        ("torchvision/resnet50:IMAGENET1K_V1", "torchvision/resnet50:IMAGENET1K_V1"),
    ],
)
@pytest.mark.parametrize("asked", ["offline", "unreachable"])
def test_offline_it_says_so_at_once(
    name: str, full: str, asked: str, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", asked == "offline")
    monkeypatch.setattr(_network, "reachable", lambda *_: False)
    start = time.monotonic()
    with pytest.raises(SourceError) as caught:
        sources.load(name)
    assert str(caught.value) == (
        f"no weights for {full} in the local cache, and no network\n"
        f"  fix: run `warmstart fetch {full}` on a connected machine and copy its folder"
    )
    assert time.monotonic() - start < 10


UNKNOWN = {
    "timm/resnet1": "timm has no network 'resnet1'\n  fix: did you mean 'timm/resnet18'?",
    "timm/resnet18.a1_in1": "timm has no weights 'resnet18.a1_in1'\n  fix: did you mean 'timm/resnet18.a1_in1k'?",
    "torchvision/resnet5": "torchvision has no network 'resnet5'\n  fix: did you mean 'torchvision/resnet50'?",
    "torchvision/resnet50:V9": (
        "torchvision has no weights 'resnet50:V9'\n  fix: did you mean 'torchvision/resnet50:IMAGENET1K_V2'?"
    ),
    "package/efficientnet_lite9": (
        "no package with weights 'efficientnet_lite9'\n  fix: did you mean 'package/efficientnet_lite2'?"
    ),
    "random/resnet1": "timm has no architecture 'resnet1'\n  fix: did you mean 'resnet18'?",
    "resnet18": (
        "backbone 'resnet18' names no source and is no folder (expected source/name)\n"
        "  fix: did you mean 'timm/resnet18'?"
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_names_have_a_closest_one(name: str) -> None:
    with pytest.raises(SourceError) as caught:
        sources.load(name)
    assert str(caught.value) == UNKNOWN[name]


def test_a_network_without_published_weights_has_a_way_on() -> None:
    name = next(n for n in timm.list_models("resnet*") if not timm.list_pretrained(f"{n}.*"))
    with pytest.raises(SourceError) as caught:
        sources.load(f"timm/{name}")
    assert str(caught.value) == (
        f"timm publishes no weights for '{name}'\n  fix: random/{name}, or one of `warmstart list backbones`"
    )


def test_random_weights_are_seeded_and_not_for_fetching() -> None:
    one, card = sources.load("random/mobilenetv3_small_050")
    other, again = sources.load("random/timm:mobilenetv3_small_050")
    assert card.weights_hash == again.weights_hash
    assert card.notes == "random weights, seed 0"
    assert isinstance(one, ChainBackbone) and isinstance(other, ChainBackbone) and one.classifier is None
    seeded = plugins.load("source", "random")(seed=1)
    assert seeded.load("mobilenetv3_small_050")[1].weights_hash != card.weights_hash
    with pytest.raises(SourceError) as caught:
        seeded.fetch("resnet18")
    assert str(caught.value) == (
        "random/resnet18 has no weights to fetch\n  fix: use it as it is: --backbone random/resnet18"
    )


def on_shelf(folder: Path) -> Card:
    built = backbone("timm:mobilenetv3_small_050", InputSpec(image_size=32), seed=0).eval()
    return weights.save_backbone(built, Card("local/mine", arch="timm:mobilenetv3_small_050"), folder)


def test_the_shelf_and_paths() -> None:
    folder = runtime.shelf_root() / "mine"
    card = on_shelf(folder)
    for name in ("local/mine", str(folder)):
        assert sources.load(name)[1].weights_hash == card.weights_hash
    (listed,) = plugins.load("source", "local")().available()
    assert listed == card
    with pytest.raises(SourceError) as caught:
        sources.load("local/mime")
    assert str(caught.value) == (
        f"no backbone 'mime' on the shelf {runtime.shelf_root()}\n  fix: did you mean 'local/mine'?"
    )


def test_an_empty_shelf_says_what_belongs_there() -> None:
    with pytest.raises(SourceError) as caught:
        sources.load("local/mine")
    assert caught.value.fix == "give a path, or put a weights folder there"


def test_a_pickle_where_weights_are_expected_is_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "model.pth")
    for name in (tmp_path, tmp_path / "model.pth"):
        with pytest.raises(CheckpointError, match=r"model\.pth is a pickle, which can run code when it is read"):
            sources.load(str(name))


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        sources.load(str(tmp_path))
    assert str(caught.value) == (
        f"no model.safetensors in {tmp_path}\n  fix: give a folder with model.safetensors and card.json"
    )


def test_a_folder_that_timm_saved_loads(tmp_path: Path) -> None:
    reference = timm.create_model("mobilenetv3_small_050", num_classes=7)
    timm.models.save_for_hf(reference, tmp_path, safe_serialization=True)
    facts = json.loads((tmp_path / "config.json").read_text())
    facts["pretrained_cfg"] |= {"mean": [0.5, 0.4, 0.3], "license": "mit"}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    subject, card = sources.load(str(tmp_path))
    check_same(subject, reference, card)
    assert (card.spec.mean, card.licence) == ((0.5, 0.4, 0.3), "mit")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config\.json does not hold the description of a timm network"):
        sources.load(str(tmp_path))


@pytest.mark.slow
def test_cards_are_listed_without_torch_and_quickly() -> None:
    """The first call builds the catalogue, the next ones read it; neither builds a network."""
    code = (
        "import sys, time\nstart = time.perf_counter()\nfrom warmstart import plugins\n"
        "counts = [len(plugins.load('source', name)().available()) for name in plugins.names('source')]\n"
        "print(*counts, time.perf_counter() - start, 'torch' in sys.modules)"
    )
    answers = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        answers.append(done.stdout.split())
    (first, second) = answers
    assert first[:6] == second[:6]
    local, package, random, stack, timm_count, torchvision_count = map(int, second[:6])
    assert (local, random, stack, package) == (0, 0, 0, 9)
    assert timm_count > 1500 and torchvision_count > 100
    assert second[7] == "False"
    assert float(second[6]) < float(first[6])


def test_a_damaged_catalogue_is_built_again() -> None:
    source = plugins.load("source", "torchvision")()
    cards = source.available()
    (path,) = (runtime.cache_root() / "catalogue").glob("torchvision-*.json")
    path.write_text("[{]")
    assert source.available() == cards
    assert source.available()[0].name == "torchvision/alexnet:IMAGENET1K_V1"


def test_every_card_is_complete_enough_to_choose_by() -> None:
    for name in ("timm", "torchvision", "package"):
        cards = plugins.load("source", name)().available()
        assert len({card.name for card in cards}) == len(cards)
        for card in cards:
            assert card.name.startswith(f"{name}/") and card.arch and card.url
            assert 0 < card.spec.crop_fraction <= 1 and card.spec.image_size >= 16


class Hub(BaseHTTPRequestHandler):
    """Just enough of the hub's protocol: a commit, an ETag, bytes, and 404 for everything else."""

    files: ClassVar[dict[str, bytes]] = {}

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        data = self.files.get(self.path.rpartition("/")[2])
        self.send_response(200 if data is not None else 404)
        if data is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        for key, value in (("ETag", '"abc"'), ("X-Repo-Commit", "0" * 40), ("Content-Length", str(len(data or b"")))):
            self.send_header(key, value)
        self.end_headers()
        if with_body and data:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


@pytest.fixture
def server() -> Iterator[str]:
    """Serve a hub on this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_fetch_downloads_from_the_hub(file: str, server: str, tmp_path: Path) -> None:
    """The library's own download, against a server on this machine, in a process that is not told to be offline."""
    built = timm.create_model("mobilenetv3_small_050").state_dict()
    place = tmp_path / file
    torch.save(built, place) if file.endswith(".bin") else save_file(built, place)
    Hub.files = {file: place.read_bytes()}
    code = f"from warmstart import sources; s, n = sources.find('timm/{SMALL}'); print(s.fetch(n)); s.load(n)"
    settings = {
        "HF_ENDPOINT": server,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | settings, check=False
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == Hub.files[file]


def test_torch_hub_files_are_downloaded_once_and_checked(server: str) -> None:
    data = b"weights"
    Hub.files = {"net-9f86d081.pth": data, "net-9db5fbdb.pth": data}
    import hashlib

    good = f"net-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    Hub.files[good] = data
    path = _network.torch_hub_file("torchvision/net", f"{server}/{good}")
    assert path.read_bytes() == data
    Hub.files = {"net-9f86d081.pth": data}
    assert _network.torch_hub_file("torchvision/net", f"{server}/{good}") == path
    with pytest.raises(SourceError) as caught:
        _network.torch_hub_file("torchvision/net", f"{server}/net-9f86d081.pth")
    assert str(caught.value).startswith("could not download torchvision/net (invalid hash value")
    assert caught.value.fix == f"try `warmstart fetch torchvision/net` again, or copy the weights into {path.parent}"


def test_reachable(server: str) -> None:
    assert _network.reachable(f"{server}/nothing-here")
    assert not _network.reachable("http://127.0.0.1:9", seconds=1)
    assert not _network.reachable("file:///etc/passwd")


def test_trained_on_is_read_off_the_tag() -> None:
    from warmstart.sources.timm import trained_on

    assert trained_on("augreg_in21k_ft_in1k") == "ImageNet-21k, then ImageNet-1k"
    assert trained_on("lvd142m") == "LVD-142M"
    assert trained_on("something_else") is None


def test_specs_of_cards_match_timms_own() -> None:
    cards = {card.name: card for card in plugins.load("source", "timm")().available()}
    for name in ("tf_efficientnet_lite0.in1k", "vit_small_patch14_dinov2.lvd142m", "inception_v3.tv_in1k"):
        own = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
        spec = cards[f"timm/{name}"].spec
        assert (spec.mean, spec.std, spec.crop_fraction) == (own["mean"], own["std"], own["crop_pct"])
        assert (spec.image_size, spec.interpolation) == (own["input_size"][-1], own["interpolation"])
    assert replace(cards["timm/resnet18.a1_in1k"].spec, image_size=1) != InputSpec()
