"""Which of two checkpoints lies in the better minimum? Their metrics over the same subsets, and the differences.

For run folders, and with figures, this is a command: python run.py score.checkpoint=[first,second]
"""

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_fisher.metrics import local_minima_metrics

T, SIZE = 8, 50  # subsets, and images in each


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def train(images: Tensor, labels: Tensor, file: Path) -> None:
    """Any training; here both networks fit the same labels, one of them 200 random ones besides."""
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        cross_entropy(net(images), labels).backward()
        optimizer.step()
    torch.save(net.state_dict(), file)


def metrics(file: Path, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Every metric of a checkpoint, one value per subset ``[T]``; the subsets are the same for all checkpoints."""
    net = network()
    net.load_state_dict(torch.load(file, weights_only=True))  # tensors only: a checkpoint can't run code
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(T):
        subset = torch.randperm(len(images), generator=generator)[:SIZE]
        metric = local_minima_metrics(logit_norm=0.04)  # the training losses differ
        metric.update(net, images[subset], labels[subset])
        found.append(metric.compute())
    return {name: torch.stack([one[name] for one in found]) for name in found[0] if not name.endswith("_std")}


def main() -> None:
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    clean = images[:400], labels[:400]
    confused = images[:600], torch.cat([labels[:400], torch.randint(10, (200,))])
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, "clean.pt"), Path(folder, "confused.pt")]
        for data, file in zip((clean, confused), files, strict=True):
            train(*data, file)
        first, second = (metrics(file, *clean) for file in files)
    print(f"{'':<16}{'clean':>12}{'confused':>12}   difference ± standard error over {T} subsets")
    for name, one in first.items():
        difference = second[name] - one  # paired: what a subset does to both cancels
        error = difference.std() / T**0.5
        print(f"{name:<16}{one.mean():>12.4g}{second[name].mean():>12.4g}   {difference.mean():+.3g} ± {error:.2g}")


if __name__ == "__main__":
    main()
