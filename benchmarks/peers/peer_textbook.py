"""The textbook loops: listing 2 (head only, SGD 0.01) and listing 1 (everything, Adam with its defaults), batch 64.

They have no schedule, no augmentation and no validation; they go on, epoch after epoch, until the time is up. All
training pictures are trained on. `--variant head` keeps the frozen network in eval mode, which is better than the
listing's own train mode.
"""

from __future__ import annotations

import peer_tools as tools


def main() -> None:
    """Train until the time is up, then predict."""
    job = tools.job()
    import torch
    from torch import nn, optim
    from torch.utils.data import DataLoader

    torch.manual_seed(job.seed)
    network = tools.lite0(job, num_classes=len(job.classes))
    network.classifier = nn.Linear(network.classifier.in_features, len(job.classes))
    everything = job.variant == "full"
    paces = tools.pace(network)
    size, reserve = _plan(job, paces, everything=everything)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(everything or name.startswith("classifier."))
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.Adam(network.parameters()) if everything else optim.SGD(network.classifier.parameters(), lr=0.01)
    data = tools.Pictures(job.train, tools.transform(size))
    loader = DataLoader(data, batch_size=64, shuffle=True, num_workers=2)
    network.train(everything)
    steps = 0
    while job.left() > reserve:
        for images, labels in loader:
            optimizer.zero_grad()
            loss = criterion(network(images), labels)
            loss.backward()
            optimizer.step()
            steps += 1
            if job.left() <= reserve:
                break
    facts = {"image_size": size, "steps": steps, "epochs": round(steps / len(loader), 2)}
    network.eval()
    with torch.no_grad():
        test = DataLoader(
            tools.Pictures([(path, -1) for path in job.test], data.transform), batch_size=64, num_workers=2
        )
        found = torch.cat([network(images).argmax(1) for images, _ in test])
    job.answer([job.classes[label] for label in found.tolist()], facts)


def _plan(job: tools.Job, paces: tools.Pace, *, everything: bool) -> tuple[int, float]:
    """Return the size of pictures and the seconds to keep for test."""
    if everything:
        size, _, reserve = tools.planned(job, paces)
        return size, reserve

    def passes(size: int) -> float:
        return paces.seconds(tools.EPOCHS * len(job.train) + len(job.test), size, training=False)

    size = tools.largest(passes, tools.MARGIN * job.left())
    return size, 1.2 * paces.seconds(len(job.test), size, training=False)


if __name__ == "__main__":
    main()
