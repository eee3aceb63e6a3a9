"""The transcribed listings do what the texts say they do: an oracle has to be right itself."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import textbook

HEAD_ONLY = [textbook.listing2, textbook.listing3, textbook.listing4]


class Small(nn.Module):
    """A network with batch-norm and an `fc`, as small as can be."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.bn = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.fc(torch.relu(self.bn(self.conv(pixels))).mean((2, 3)))


@pytest.fixture
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Small()


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(12) % 3
    pixels = torch.randn(12, 3, 8, 8, generator=generator) + labels[:, None, None, None]
    return [(pixels[at : at + 4], labels[at : at + 4]) for at in range(0, 12, 4)]


@pytest.mark.parametrize("listing", HEAD_ONLY)
def test_head_only_moves_the_head_and_nothing_else(
    listing: Callable[..., textbook.Trained], network: nn.Module, batches: list[tuple[Tensor, Tensor]]
) -> None:
    before = copy.deepcopy(network.state_dict())
    trained = listing(network, batches, num_classes=3, num_epochs=2)
    assert len(trained.losses) == 6
    assert trained.state["fc.weight"].shape == (3, 6)
    assert all(torch.equal(before[name], trained.state[name]) for name in before if not name.startswith("fc"))


@pytest.mark.parametrize("listing", HEAD_ONLY)
def test_train_mode_lets_statistics_drift(
    listing: Callable[..., textbook.Trained], network: nn.Module, batches: list[tuple[Tensor, Tensor]]
) -> None:
    before = network.state_dict()["bn.running_mean"].clone()
    trained = listing(network, batches, num_classes=3, num_epochs=1, drift=True)
    assert not torch.equal(before, trained.state["bn.running_mean"])


def test_listing1_moves_everything(network: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    before = copy.deepcopy(network.state_dict())
    trained = textbook.listing1(network, batches, num_epochs=20)
    assert not any(torch.equal(before[name], trained.state[name]) for name in before if "num_batches" not in name)
    assert trained.losses[-1] < trained.losses[0]


def test_first_head_step_is_the_closed_form(network: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    """SGD on softmax regression: W -= lr (p - y)ᵀ f / B."""
    head = textbook.replace_head(network, 3, seed=7)
    weight, bias = head.weight.detach().clone(), head.bias.detach().clone()
    pixels, labels = batches[0]
    network.eval()
    features = torch.relu(network.bn(network.conv(pixels))).mean((2, 3)).detach()
    error = (features @ weight.T + bias).softmax(1) - nn.functional.one_hot(labels, 3)
    trained = textbook.listing2(network, batches[:1], num_classes=3, num_epochs=1)
    torch.testing.assert_close(trained.state["fc.weight"], weight - 0.01 * error.T @ features / 4)
    torch.testing.assert_close(trained.state["fc.bias"], bias - 0.01 * error.mean(0))


def test_running_loss_is_the_mean_since_the_last(network: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    trained = textbook.listing3(network, batches, num_classes=3, num_epochs=2, every=2)
    assert trained.running == pytest.approx([sum(trained.losses[0:2]) / 2, sum(trained.losses[3:5]) / 2])


def test_a_prepared_head_is_kept(network: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    head = textbook.replace_head(network, 3, seed=7)
    textbook.listing4(network, batches, num_classes=3)
    assert network.get_submodule("fc") is head


def test_accuracy_counts_hits(network: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    outputs = textbook.predict(network, batches)
    hits = (outputs.argmax(1) == torch.cat([labels for _, labels in batches])).sum().item()
    assert textbook.accuracy(network, batches) == pytest.approx(hits / 12)
