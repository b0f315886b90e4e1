"""Losses of finished networks on the training images with their own labels, as they are and with rescaled logits.

``python results/clean_losses.py multirun/scenario_confusion-cifar_small``: a line a run, and the correlation of γ̂ with
the mean logarithm of the rescaled losses (``docs/results-random-labels.md``).
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import correlation, linear_regression

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.nn import functional as F

from lightning_fisher.experiment.records.result import read_row
from lightning_fisher.experiment.scoring.subset_metrics import fetch
from lightning_fisher.experiment.scoring.weights import load, read_checkpoint


def losses(folder: Path, logit_norm: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of each clean training image in evaluation mode, and with ``z ← z / (s‖z‖₂)``; float64."""
    config = OmegaConf.load(folder / "config.yaml")
    net, checkpoint = instantiate(config.model.net), folder / "checkpoints" / "last.ckpt"
    load(net, read_checkpoint(checkpoint), checkpoint, None)
    data = instantiate(config.data)
    data.setup()
    clean = torch.arange(len(data.train_set) - data.confusion_size)
    images, labels = fetch(data.train_set, clean, data.normalization, net)
    with torch.no_grad():
        logits = torch.cat([net.eval()(part) for part in images.split(250)]).double()
    rescaled = logits / (logit_norm * logits.norm(dim=1, keepdim=True))
    plain, scaled = (F.cross_entropy(z, labels, reduction="none") for z in (logits, rescaled))
    return plain, scaled


def main(sweep: Path) -> None:
    """Print the table of a sweep's folder."""
    rows, logs = [], []
    for folder in sorted(path.parent for path in sweep.glob("*/result.json")):
        row = read_row(folder)
        assert row is not None
        plain, scaled = losses(folder, row["config"]["metric.logit_norm"])
        rows.append(row)
        logs.append(scaled.log().mean().item())
        print(f"{folder.name[:40]:40}  loss {plain.mean():.1e}  mean ln rescaled {logs[-1]:.2f}  γ̂ {row['gamma']:.0f}")
    gammas = [row["gamma"] for row in rows]
    print(f"correlation {correlation(logs, gammas):.3f}, slope {linear_regression(logs, gammas).slope:.0f} nats")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
