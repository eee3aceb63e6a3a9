"""The classic PyTorch fine-tuning listings, as practitioners copy them: plain loops, no warmstart.

They are oracles (same data order and same initial head must give the same losses) and the baseline of the benchmarks.
What a listing leaves to the reader is an argument: the network, whose head is `network.<head>`, and the batches.

Listing 1: everything trainable, Adam with its defaults.
Listing 2: head only, SGD lr 0.01 (CIFAR-100, batch 64, 10 epochs).
Listing 3: head only, SGD lr 0.001, momentum 0.9 (CIFAR-10, batch 4, 2 epochs, running loss every 2,000 batches).
Listing 4: head only, SGD lr 0.001, momentum 0.9, tensors moved to the device (any binary set).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn, optim

Batches = Iterable[tuple[Tensor, Tensor]]
"""Normalised pixels float (B, 3, H, W) and labels int64 (B,); iterated anew for every epoch, as a DataLoader is."""


@dataclass(frozen=True)
class Trained:
    """What a loop leaves behind: the loss of every step, and the network's state."""

    losses: list[float]
    state: dict[str, Tensor]
    running: tuple[float, ...] = ()
    """Means that listing 3 prints, one per `every` batches."""


def listing1(model: nn.Module, loader: Batches, *, num_epochs: int = 1) -> Trained:
    """Fine-tune everything with Adam's defaults."""
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.Adam(model.parameters())
    losses = []
    model.train()
    for _ in range(num_epochs):
        for inputs, labels in loader:
            outputs = model(inputs)
            loss = criterion(outputs, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return Trained(losses, _state(model))


def listing2(
    model: nn.Module,
    loader: Batches,
    *,
    num_classes: int = 100,
    num_epochs: int = 10,
    head: str = "fc",
    drift: bool = False,
) -> Trained:
    """Replace the head and fine-tune it alone with SGD 0.01.

    Args:
        drift: Leave the frozen network in train mode, as the listing does: its batch-norm statistics follow the data.
    """
    for param in model.parameters():
        param.requires_grad = False
    fc = replace_head(model, num_classes, head=head)
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(fc.parameters(), lr=0.01)
    losses = []
    model.train(drift)
    for _ in range(num_epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            outputs = model(images)
            loss = criterion(outputs, labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return Trained(losses, _state(model))


def listing3(
    model: nn.Module,
    trainloader: Batches,
    *,
    num_classes: int = 10,
    num_epochs: int = 2,
    head: str = "fc",
    drift: bool = False,
    every: int = 2_000,
) -> Trained:
    """Replace the head and fine-tune it alone with SGD 0.001 and momentum, keeping a running loss."""
    for param in model.parameters():
        param.requires_grad = False
    fc = replace_head(model, num_classes, head=head)
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(fc.parameters(), lr=0.001, momentum=0.9)
    losses, printed = [], []
    model.train(drift)
    for _ in range(num_epochs):
        running_loss = 0.0
        for i, data in enumerate(trainloader, 0):
            inputs, labels = data
            optimizer.zero_grad()
            outputs = model(inputs)
            loss = criterion(outputs, labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            running_loss += loss.item()
            if i % every == every - 1:
                printed.append(running_loss / every)
                running_loss = 0.0
    return Trained(losses, _state(model), tuple(printed))


def listing4(
    model: nn.Module,
    loader: Batches,
    *,
    num_classes: int = 2,
    num_epochs: int = 1,
    head: str = "fc",
    drift: bool = False,
    device: str = "cpu",
) -> Trained:
    """Replace the head and fine-tune it alone with SGD 0.001 and momentum, on a device."""
    for param in model.parameters():
        param.requires_grad = False
    fc = replace_head(model, num_classes, head=head)
    model = model.to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(fc.parameters(), lr=0.001, momentum=0.9)
    losses = []
    model.train(drift)
    for _ in range(num_epochs):
        for batch in loader:
            inputs, labels = batch[0].to(device), batch[1].to(device)
            optimizer.zero_grad()
            outputs = model(inputs)
            loss = criterion(outputs, labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return Trained(losses, _state(model))


def replace_head(model: nn.Module, num_classes: int, *, head: str = "fc", seed: int | None = None) -> nn.Linear:
    """Put a new linear layer in the place of the head, as the listings do with `model.fc = nn.Linear(…)`.

    A network whose head already has `num_classes` outputs keeps it: a test that must start from a known head calls
    this first, with its own `seed` or weights, and the listing then trains that very layer.
    """
    old = model.get_submodule(head)
    assert isinstance(old, nn.Linear), f"{head} is {type(old).__name__}, not a linear layer"
    if old.out_features != num_classes:
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            new = nn.Linear(old.in_features, num_classes)
        parent, _, name = head.rpartition(".")
        setattr(model.get_submodule(parent), name, new)
        old = new
    old.requires_grad_(True)
    return old


def predict(model: nn.Module, batches: Batches) -> Tensor:
    """Return the outputs over batches, as the evaluation loops of the same texts compute them.

    Shape:
        float (N, C).
    """
    model.eval()
    with torch.no_grad():
        return torch.cat([model(inputs) for inputs, _ in batches])


def accuracy(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return the fraction of batches' examples whose highest output is their label."""
    labels = torch.cat([labels for _, labels in batches])
    return float((predict(model, batches).argmax(1) == labels).float().mean())


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone().cpu() for name, value in model.state_dict().items()}
