"""The passes over a network: its errors, and its metrics subset by subset."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_fisher.data import LabeledImages, Normalization
from lightning_fisher.experiment.display.terminal import track
from lightning_fisher.experiment.records.quantities import FIRST
from lightning_fisher.experiment.training.final_metrics import GRAM_OPTIONS, make_measures, make_monitor
from lightning_fisher.functional import (
    LayeredLogDet,
    LayerFisher,
    hessian_frobenius_norm,
    hessian_spectral_radius,
    layer_log_dets,
    log_spectrum,
    robustness,
)
from lightning_fisher.functional.evaluation.precision import device_types, full_precision
from lightning_fisher.metrics.gram import PARTS, gram_quantities
from lightning_fisher.module import TOP

NAMES = {"log_det": "gamma", **{part: f"gamma_{part}" for part in PARTS}}  # in rows


@dataclass
class Evaluation:
    """What a network says of n images, sample by sample, on the CPU.

    Attributes:
        losses: cross-entropy in nats, float64 ``[n]``.
        predicted: the class with the largest logit ``[n]``.
        wrong: whether it is not the label ``[n]``.
        wrong_top5: whether the label is not among the five largest ``[n]``; nothing with at most five classes.
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
        layers: what each layer contributes, by name.
    """

    values: dict[str, Tensor]
    log_eigenvalues: Tensor
    cosine_eigenvalues: Tensor
    ranks: Tensor
    layers: dict[str, LayerMeasurement] = field(default_factory=dict)


@dataclass
class LayerMeasurement:
    """What one layer contributes to ξ, over T subsets.

    Attributes:
        parameters: trainable ones.
        share: of γ̂, ``[T]``; see `LayerFisher`.
        log_trace: ``ln tr ξ_l``, ``[T]``.
        log_det: over the non-zero eigenvalues, ``[T]``.
        ranks: of ξ_l, ``[T]``.
        log_eigenvalues: natural logarithms, descending, ``[T, N′]``.
    """

    parameters: int
    share: Tensor
    log_trace: Tensor
    log_det: Tensor
    ranks: Tensor
    log_eigenvalues: Tensor


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
            top = logits.topk(min(TOP, logits.shape[1]), dim=1).indices
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
    further = make_measures(metric, also=FIRST)
    subsets = [torch.tensor(subset) for subset in monitor.subsets(len(images))]
    found = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The Gram matrix of .* has rank")  # the card says it
        for positions in track(subsets, "metrics of the subsets"):
            inputs, labels = fetch(images, positions, normalization, net)
            found.append(_measure_one(net, inputs, labels, metric))
            if further is not None:
                further.update(net, inputs, labels)
    names = found[0][0]
    values = {name: torch.stack([values[name].cpu() for values, *_ in found]) for name in names}
    if further is not None:
        values |= {name: further.subsets(name).cpu() for name in further.states}
    return SubsetMeasurement(
        values,
        torch.stack([logs.cpu() for _, logs, _, _ in found]),
        torch.stack([cosines.cpu() for _, _, cosines, _ in found]),
        torch.stack([result.total.rank.cpu() for *_, result in found]),
        _layers([result.layers for *_, result in found]),
    )


def _layers(found: list[dict[str, LayerFisher]]) -> dict[str, LayerMeasurement]:
    def stacked(name: str, which: str) -> Tensor:
        return torch.stack([getattr(layers[name], which).cpu() for layers in found])

    quantities = ("share", "log_trace", "log_det", "rank", "log_eigenvalues")
    return {
        name: LayerMeasurement(layer.num_parameters, *(stacked(name, which) for which in quantities))
        for name, layer in found[0].items()
    }


def _measure_one(
    net: nn.Module, inputs: Tensor, labels: Tensor, metric: DictConfig
) -> tuple[dict[str, Tensor], Tensor, Tensor, LayeredLogDet]:
    layered = layer_log_dets(net, inputs, labels, **{name: metric[name] for name in GRAM_OPTIONS})
    result = layered.total
    values = {NAMES.get(name, name): value for name, value in gram_quantities(result).items()}
    values["robustness"] = robustness(net, inputs, chunk_size=metric.chunk_size)
    if metric.hessian:
        how: dict[str, Any] = {"chunk_size": metric.chunk_size}
        values["hessian_frobenius_norm"] = hessian_frobenius_norm(net, inputs, labels, **how).value
        values["hessian_spectral_radius"] = hessian_spectral_radius(net, inputs, labels, **how).value
    logs = log_spectrum(result.gram, result.log_norms, rank=int(result.rank))
    cosines = torch.linalg.eigvalsh(result.gram.cpu()).flip(0)
    return {name: value.detach().double() for name, value in values.items()}, logs, cosines, layered
