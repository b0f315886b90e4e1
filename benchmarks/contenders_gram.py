"""Ways to compute ξ of a batch: ours and those of the neighbors, each as its documentation shows it."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_fisher import FisherMetric
from lightning_fisher.functional import gram_matrix

OURS = "Lightning Fisher"
FIRST = f"{OURS}, first call"
BASELINE = "forward + backward"
SUBSETS = 10  # T, of a FisherMetric
TEN, METRIC = f"{SUBSETS} × {BASELINE}", f"FisherMetric, {SUBSETS} subsets"

Call = Callable[[], Tensor]
Prepare = Callable[[nn.Module, Tensor, Tensor], Call]


@dataclass(frozen=True)
class GramContender:
    """One way to compute ξ.

    Attributes:
        prepare: ``(net in evaluation mode, images, labels) → call``; may change the net, which is a copy.
        module: the package it imports, ``None`` for torch itself.
        distribution: the name it is installed by.
        grams: whether the call returns ξ; the baseline returns a loss.
    """

    prepare: Prepare
    module: str | None = None
    distribution: str | None = None
    grams: bool = True

    def missing(self) -> str | None:
        """Why it cannot run here; ``None`` if it can."""
        if self.module is None or importlib.util.find_spec(self.module) is not None:
            return None
        return f"not installed (pip install {self.distribution})"

    def version(self) -> str | None:
        """The version of its package."""
        return None if self.distribution is None else metadata.version(self.distribution)


def _sum_of_grams(per_sample: Iterable[Tensor]) -> Tensor:
    """``Σ_p J_p J_pᵀ``, parameter by parameter: J is never copied into one matrix."""
    return torch.stack([rows @ rows.T for rows in (gradient.flatten(1) for gradient in per_sample)]).sum(0)


def _take(parameters: list[nn.Parameter], attribute: str) -> Iterator[Tensor]:
    """The per-sample gradients that a package left in an attribute, which is freed."""
    for parameter in parameters:
        gradient = getattr(parameter, attribute)
        delattr(parameter, attribute)
        parameter.grad = None
        yield gradient


def _forward_backward(net: nn.Module, images: Tensor, labels: Tensor) -> Call:
    parameters = list(net.parameters())

    def call() -> Tensor:
        loss = F.cross_entropy(net(images), labels)
        torch.autograd.grad(loss, parameters)
        return loss.detach()

    return call


def _ours(net: nn.Module, images: Tensor, labels: Tensor) -> Call:
    return lambda: gram_matrix(net, images, labels)


def _ours_first(net: nn.Module, images: Tensor, labels: Tensor) -> Call:
    return lambda: gram_matrix(copy.deepcopy(net), images, labels)  # nothing is known of a copy


def _ours_metric(net: nn.Module, images: Tensor, labels: Tensor) -> Call:
    def call() -> Tensor:
        metric = FisherMetric()
        for _ in range(SUBSETS):
            metric.update(net, images, labels)
        return metric.compute()["gamma"]

    return call


def _ten_times(net: nn.Module, images: Tensor, labels: Tensor) -> Call:
    once = _forward_backward(net, images, labels)
    return lambda: [once() for _ in range(SUBSETS)][-1]


def _loop(net: nn.Module, images: Tensor, labels: Tensor) -> Call:
    parameters = list(net.parameters())

    def row(j: int) -> Tensor:
        loss = F.cross_entropy(net(images[j : j + 1]), labels[j : j + 1])
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    def call() -> Tensor:
        jacobian = torch.stack([row(j) for j in range(len(labels))])
        return jacobian @ jacobian.T

    return call


def _vmap(net: nn.Module, images: Tensor, labels: Tensor) -> Call:
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    buffers = dict(net.named_buffers())

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = torch.func.functional_call(net, (parameters, buffers), (image[None],))
        return F.cross_entropy(logits, label[None])

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    return lambda: _sum_of_grams(gradients(parameters, images, labels).values())


class FixedBatchNorm(nn.Module):
    """Batch-norm in evaluation mode for Opacus, which takes no layer with buffers and hooks only layers that train."""

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.statistics = layer.running_mean, layer.running_var
        self.eps = layer.eps

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, *self.statistics, self.weight, self.bias, eps=self.eps)


def _fixed_batch_norm_grad_sample(
    layer: FixedBatchNorm, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    normalized = F.batch_norm(activations[0], *layer.statistics, eps=layer.eps)
    return {layer.weight: (normalized * backprops).sum((2, 3)), layer.bias: backprops.sum((2, 3))}


def _opacus(net: nn.Module, images: Tensor, labels: Tensor) -> Call:
    from opacus import GradSampleModule
    from opacus.grad_sample import register_grad_sampler

    register_grad_sampler(FixedBatchNorm)(_fixed_batch_norm_grad_sample)
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, FixedBatchNorm(child))
    net.train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = GradSampleModule(net, loss_reduction="sum")

    def call() -> Tensor:
        F.cross_entropy(wrapped(images), labels, reduction="sum").backward()
        gram = _sum_of_grams(p.grad_sample for p in wrapped.parameters())
        wrapped.zero_grad()
        return gram

    return call


def _backpack(net: nn.Module, images: Tensor, labels: Tensor) -> Call:
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        extend(net)
    loss_fn = extend(nn.CrossEntropyLoss(reduction="sum"))
    parameters = list(net.parameters())

    def call() -> Tensor:
        with backpack(BatchGrad()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss_fn(net(images), labels).backward()
        gram = _sum_of_grams(_take(parameters, "grad_batch"))
        return gram

    return call


def _asdl(net: nn.Module, images: Tensor, labels: Tensor) -> Call:
    from asdl import save_batch_gradient

    parameters = list(net.parameters())

    def closure() -> Tensor:
        loss = F.cross_entropy(net(images), labels, reduction="sum")
        loss.backward()
        return loss

    def call() -> Tensor:
        save_batch_gradient(net, closure)
        gram = _sum_of_grams(_take(parameters, "batch_grad"))
        return gram

    return call


def _nngeometry(net: nn.Module, images: Tensor, labels: Tensor) -> Call:
    from nngeometry import GramMatrix
    from torch.utils.data import DataLoader, TensorDataset

    def losses(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x), y, reduction="none")[:, None]

    loader = DataLoader(TensorDataset(images, labels), batch_size=len(labels))

    def call() -> Tensor:
        gram = GramMatrix(model=net, loader=loader, function=losses).to_torch()
        return gram.reshape(len(labels), len(labels))

    return call


CONTENDERS = {
    BASELINE: GramContender(_forward_backward, grams=False),
    OURS: GramContender(_ours),
    FIRST: GramContender(_ours_first, grams=False),  # the same matrix
    "single-sample loop": GramContender(_loop),
    "torch.func vmap(grad)": GramContender(_vmap),
    "Opacus": GramContender(_opacus, "opacus", "opacus"),
    "BackPACK": GramContender(_backpack, "backpack", "backpack-for-pytorch"),
    "ASDL": GramContender(_asdl, "asdl", "asdfghjkl"),
    "nngeometry": GramContender(_nngeometry, "nngeometry", "nngeometry"),
}

OF_SUBSETS = {TEN: GramContender(_ten_times, grams=False), METRIC: GramContender(_ours_metric, grams=False)}
