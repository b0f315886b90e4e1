"""The passes over a network: its errors, and its metrics subset by subset."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_fisher.data import LabeledImages, Normalization
from lightning_fisher.experiment.display.terminal import track
from lightning_fisher.experiment.training.final_metrics import make_monitor
from lightning_fisher.functional import (
    fisher_log_det,
    hessian_frobenius_norm,
    hessian_spectral_radius,
    log_spectrum,
    robustness,
)
from lightning_fisher.functional.evaluation.precision import device_types, full_precision
from lightning_fisher.metrics.gram import PARTS, gram_quantities

NAMES = {"log_det": "gamma", **{part: f"gamma_{part}" for part in PARTS}}  # in rows


@dataclass
class Evaluation:
    """What a network says of n images, sample by sample, on the CPU.

    Attributes:
        losses: cross-entropy in nats, float64 ``[n]``.
        predicted: the class with the largest logit ``[n]``.
        wrong: whether it is not the label ``[n]``.
        wrong_top5: whether the label is not among the five largest ``[n]``.
    """

    losses: Tensor
    predicted: Tensor
    wrong: Tensor
    wrong_top5: Tensor


@dataclass
class SubsetMeasurement:
    """The metrics of T subsets of N′ training images.

    Attributes:
        values: the T values of every metric, float64, by name.
        log_eigenvalues: of ξ, natural logarithms, descending, ``[T, N′]``.
        cosine_eigenvalues: of C, descending, ``[T, N′]``.
        ranks: of ξ, ``[T]``.
    """

    values: dict[str, Tensor]
    log_eigenvalues: Tensor
    cosine_eigenvalues: Tensor
    ranks: Tensor


def fetch(
    images: LabeledImages, positions: Tensor, normalization: Normalization, net: nn.Module
) -> tuple[Tensor, Tensor]:
    """Images as the network sees them in evaluation, and labels, on its device."""
    device = next(net.parameters()).device
    pixels, labels = images.__getitems__(positions.tolist())
    return normalization(pixels.to(device)), labels.to(device)


def evaluate(
    net: nn.Module, images: LabeledImages, normalization: Normalization, batch_size: int, what: str
) -> Evaluation:
    """Losses and predictions of all images, in evaluation mode.

    Args:
        net: the network.
        images: with the labels to compare with.
        normalization: of the images.
        batch_size: images in a pass.
        what: shown beside the progress.
    """
    net.eval()
    losses, predicted, wrong, wrong_top5 = [], [], [], []
    with torch.no_grad(), full_precision(device_types(net)):
        for positions in track(torch.arange(len(images)).split(batch_size), what):
            inputs, labels = fetch(images, positions, normalization, net)
            logits = net(inputs).double()
            top = logits.topk(min(5, logits.shape[1]), dim=1).indices
            correct = top == labels[:, None]
            losses.append(F.cross_entropy(logits, labels, reduction="none").cpu())
            predicted.append(top[:, 0].cpu())
            wrong.append(~correct[:, 0].cpu())
            wrong_top5.append(~correct.any(dim=1).cpu())
    return Evaluation(torch.cat(losses), torch.cat(predicted), torch.cat(wrong), torch.cat(wrong_top5))


def measure_subsets(
    net: nn.Module, images: LabeledImages, normalization: Normalization, metric: DictConfig
) -> SubsetMeasurement:
    """Measure the metrics of Sec. 7.1 on the subsets that training measures them on, and both spectra.

    Args:
        net: the network.
        images: the training images with the labels that were trained with.
        normalization: of the images.
        metric: the ``metric`` node.
    """
    monitor = make_monitor(metric, "curve")
    subsets = [torch.tensor(subset) for subset in monitor.subsets(len(images))]
    found = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The Gram matrix of .* has rank")  # the card says it
        for positions in track(subsets, "metrics of the subsets"):
            inputs, labels = fetch(images, positions, normalization, net)
            found.append(_measure_one(net, inputs, labels, metric))
    names = found[0][0]
    return SubsetMeasurement(
        {name: torch.stack([values[name].cpu() for values, *_ in found]) for name in names},
        torch.stack([logs.cpu() for _, logs, _, _ in found]),
        torch.stack([cosines.cpu() for _, _, cosines, _ in found]),
        torch.stack([rank.cpu() for *_, rank in found]),
    )


def _measure_one(
    net: nn.Module, inputs: Tensor, labels: Tensor, metric: DictConfig
) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
    result = fisher_log_det(
        net,
        inputs,
        labels,
        logit_norm=metric.logit_norm,
        batch_norm=metric.batch_norm,
        chunk_size=metric.chunk_size,
        rank_policy="pseudo",
    )
    values = {NAMES.get(name, name): value for name, value in gram_quantities(result).items()}
    values["robustness"] = robustness(net, inputs, chunk_size=metric.chunk_size)
    if metric.hessian:
        how: dict[str, Any] = {"chunk_size": metric.chunk_size}
        values["hessian_frobenius_norm"] = hessian_frobenius_norm(net, inputs, labels, **how).value
        values["hessian_spectral_radius"] = hessian_spectral_radius(net, inputs, labels, **how).value
    logs = log_spectrum(result.gram, result.log_norms, rank=int(result.rank))
    cosines = torch.linalg.eigvalsh(result.gram.cpu()).flip(0)
    return {name: value.detach().double() for name, value in values.items()}, logs, cosines, result.rank
