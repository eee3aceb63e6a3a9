"""From the name of an architecture to a backbone: which library builds it, which chain it is, what its classifier was.

An architecture is written `timm:resnet50` or `torchvision:resnet50`, without the tag of its weights.
"""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from warmstart.errors import SourceError, closest
from warmstart.models import InputSpec
from warmstart.models.chain import ChainBackbone, Group, chain_groups, whole_groups
from warmstart.models.families import TABLES
from warmstart.models.specs import takes_any_size

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

log = logging.getLogger(__name__)


def backbone(arch: str, spec: InputSpec, *, seed: int | None = None) -> ChainBackbone:
    """Build a backbone with random weights, or for weights to come.

    Args:
        arch: `library:name`.
        spec: The input spec of the weights that will be loaded.
        seed: Of the initialisation, or None; see `network`.

    Raises:
        SourceError: The libraries have no such architecture.
    """
    return as_backbone(network(arch, spec, seed=seed), spec, keep_classifier=False)


def network(arch: str, spec: InputSpec, *, seed: int | None = None) -> nn.Module:
    """Build a network as its library does, classifier included, without touching the global generator.

    Args:
        arch: `library:name`.
        spec: The input spec of the weights.
        seed: Of the initialisation; None when weights will be loaded, which leaves out initialisation that takes
            long where the library can leave it out.

    Raises:
        SourceError: The libraries have no such architecture.
    """
    library, name = require(arch)
    with seeded(seed or 0):
        if library == "timm":
            return timm_network(name, image_size=spec.embedded_size or spec.image_size)
        return torchvision_network(name, spec, initialise=seed is not None)


def require(arch: str) -> tuple[str, str]:
    """Return library and name of an architecture.

    Raises:
        SourceError: The libraries have no such architecture.
    """
    library, _, name = arch.partition(":")
    if library not in TABLES:
        raise SourceError(f"architecture {arch!r} names no known library", closest(library, TABLES))
    known = _known_to_timm(name) if library == "timm" else _known_to_torchvision(name)
    if known:
        raise SourceError(f"{library} has no architecture {name!r}", closest(name, known))
    return library, name


def _known_to_timm(name: str) -> Sequence[str]:
    """Return what timm has instead of an architecture; nothing when it has it."""
    import timm

    return () if timm.is_model(name) else timm.list_models()


def _known_to_torchvision(name: str) -> Sequence[str]:
    """Return what torchvision has instead of an architecture; nothing when it has it."""
    import torchvision

    known: list[str] = torchvision.models.list_models(module=torchvision.models)
    return () if name.partition(".")[0] in known else known


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let initialisers draw from a generator of our own: the libraries only know the global one, which is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def timm_network(name: str, cfg: PretrainedCfg | None = None, *, image_size: int | None = None) -> nn.Module:
    """Build a timm network; with `cfg` its weights are loaded from the place that it names.

    Args:
        name: timm's name of the architecture.
        cfg: timm's record of the weights.
        image_size: Side that the weights were trained at, which fixes the shape of a position embedding: timm would
            resample that of other weights than the architecture's default ones. `cfg` says it when not given.

    Raises:
        SourceError: timm has no such architecture.
    """
    import timm

    require(f"timm:{name}")
    size = image_size if cfg is None else cfg.input_size[-1]
    if takes_any_size(name) and size is not None:
        return timm.create_model(
            name, pretrained=cfg is not None, pretrained_cfg=cfg, dynamic_img_size=True, img_size=size
        )
    return timm.create_model(name, pretrained=cfg is not None, pretrained_cfg=cfg)


def torchvision_network(name: str, spec: InputSpec, *, initialise: bool = True) -> nn.Module:
    """Build a torchvision network; its position embedding fits the image size of the spec.

    `vgg16.features` is a VGG without its fully connected layers, for weights that have none.

    Raises:
        SourceError: torchvision has no such architecture.
    """
    import torchvision

    name, _, part = require(f"torchvision:{name}")[1].partition(".")
    options: dict[str, object] = {}
    if name.startswith("vit_"):
        options["image_size"] = spec.image_size
    if name in ("googlenet", "inception_v3"):
        # The auxiliary classifiers only serve training from scratch.
        options |= {"aux_logits": False, "init_weights": initialise}
    if name.startswith("vgg"):
        options["init_weights"] = initialise
    built: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    if part == "features":
        built.avgpool, built.classifier = nn.AdaptiveAvgPool2d((1, 1)), nn.Sequential()
    return built


def as_backbone(network: nn.Module, spec: InputSpec, *, keep_classifier: bool = True) -> ChainBackbone:
    """Take the classifier off a timm or torchvision network and find the chain that it is.

    Args:
        network: With the classifier of its library.
        spec: The input spec of its weights.
        keep_classifier: False when the classifier is not part of the weights.

    Raises:
        SourceError: The network was never meant to classify, so nothing says what its pooled features are.
    """
    library = type(network).__module__.partition(".")[0]
    classifier = _take_classifier_timm(network) if library == "timm" else _take_classifier_torchvision(network)
    chain = TABLES[library].get(type(network).__name__)
    groups = chain_groups(network, chain) if chain else None
    divisible = groups is not None
    if groups is None:
        log.debug("no chain for %s.%s: it can only be cut at its ends", library, type(network).__name__)
        groups = _whole(network)
    dim = _dim(network, classifier)
    kept = classifier if keep_classifier else None
    return ChainBackbone(network, groups, spec=spec, dim=dim, classifier=kept, divisible=divisible)


def _take_classifier_timm(network: nn.Module) -> nn.Linear | None:
    if not hasattr(network, "get_classifier"):
        raise SourceError(f"timm's {type(network).__name__} is no classification network", "warmstart list backbones")
    classifier = network.get_classifier()  # type: ignore[operator]
    network.reset_classifier(0)  # type: ignore[operator]
    return classifier if isinstance(classifier, nn.Linear) else None


def _take_classifier_torchvision(network: nn.Module) -> nn.Linear | None:
    """Put an identity in place of the last linear layer; SqueezeNet classifies by a convolution, which goes whole."""
    if type(network).__name__ == "SqueezeNet":
        network.classifier = nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)))
        return None
    found = [(path, module) for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not found:
        return None
    path, classifier = found[-1]
    network.set_submodule(path, nn.Identity())
    return classifier


def _dim(network: nn.Module, classifier: nn.Linear | None) -> int:
    if classifier is not None:
        return classifier.in_features
    size = getattr(network, "head_hidden_size", None) or getattr(network, "num_features", None)
    return size if isinstance(size, int) else 512  # of SqueezeNet and of a VGG's convolutions, which do not say


def _whole(network: nn.Module) -> tuple[Group, ...]:
    return whole_groups(network, _matched(network) or _top_level(network))


def _matched(network: nn.Module) -> Sequence[tuple[str, Sequence[str]]] | None:
    """Ask timm's `group_matcher` for the order of the parameters."""
    from timm.models import group_parameters

    if not hasattr(network, "group_matcher"):
        return None
    try:
        found = group_parameters(network, network.group_matcher(coarse=True))  # type: ignore[operator]
    except (AttributeError, NotImplementedError, TypeError, ValueError, AssertionError):
        return None
    return [(f"group{index}", names) for index, names in sorted(found.items()) if names]


def _top_level(network: nn.Module) -> Sequence[tuple[str, Sequence[str]]]:
    """Group parameters by the top-level child that holds them, in the order of registration."""
    parts: defaultdict[str, list[str]] = defaultdict(list)
    for name, _ in network.named_parameters():
        parts[name.partition(".")[0]].append(name)
    return list(parts.items())
