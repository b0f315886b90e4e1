"""How the sub-batches' gradients of the penalty lie to each other: cosines and what they say of the amortized forms.

``python results/penalty_cosines.py multirun/step_forms-digits``: a line a run (``docs/results.md``). Of a finished
network, on its training batches in order, M = 8: the mean cosine of the g_i, that of the terms g_i − h_i, and the norm
of their mean relative to the root mean square of their norms: 1/√8 = 0.354 where they are orthogonal, 1 where equal.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lightning_fisher.experiment.records.result import read_row
from lightning_fisher.experiment.scoring.subset_metrics import fetch
from lightning_fisher.experiment.scoring.weights import load, read_checkpoint
from lightning_fisher.functional import gradient_divergence, penalty_gradient

M = 8


def cosines(folder: Path) -> tuple[float, float, float]:
    """Means over the full batches of an epoch, in float64."""
    config = OmegaConf.load(folder / "config.yaml")
    net, checkpoint = instantiate(config.model.net), folder / "checkpoints" / "last.ckpt"
    load(net, read_checkpoint(checkpoint), checkpoint, None)
    data = instantiate(config.data)
    data.setup()
    images, labels = fetch(data.train_set, torch.arange(len(data.train_set)), data.normalization, net)
    net, images = net.double().train(), images.double()
    found, size = [], config.model.batch_size
    for start in range(0, len(labels) - size + 1, size):
        batch = slice(start, start + size)
        gradients, terms = [], []
        for x, y in zip(images[batch].chunk(M), labels[batch].chunk(M), strict=True):
            loss = torch.nn.functional.cross_entropy(net(x), y)
            gradients.append(torch.autograd.grad(loss, list(net.parameters())))
            terms.append(penalty_gradient(net, x, y, alpha=config.reg.alpha, num_sub_batches=1)[1])
        flat = torch.stack([torch.cat([part.flatten() for part in term]) for term in terms])
        size_of_mean = flat.mean(0).norm() / flat.norm(dim=1).square().mean().sqrt()
        found.append([gradient_divergence(g).cosine for g in (gradients, terms)] + [size_of_mean])
    return tuple(torch.tensor(found).mean(0).tolist())


def main(sweep: Path) -> None:
    """Print the table of a sweep's folder."""
    for folder in sorted(path.parent for path in sweep.glob("*/result.json")):
        row = read_row(folder)
        assert row is not None
        of_gradients, of_terms, size = cosines(folder)
        print(
            f"{folder.name[:50]:50}  cos g {of_gradients:.3f}  cos (g − h) {of_terms:.3f}  norm of the mean {size:.3f}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
