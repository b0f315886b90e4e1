"""Path-SGD: steepest descent in a geometry that doesn't see how units are scaled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_fisher.arguments import is_number, require_positive

PROBES = 32  # pairs of inputs whose sum is looked at
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
WEIGHTLESS = (
    nn.ReLU,
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
)


class PathSGD(torch.optim.Optimizer):
    r"""Path-SGD (Neyshabur, Salakhutdinov & Srebro 2015): ``w_e ← w_e − η g_e / κ_e``.

    ``κ_e`` is the sum, over all paths from an input or a bias to an output through the edge e, of the product of the
    other edges' squared weights: the derivative of the squared path norm with respect to ``w_e²``. It is computed as
    the paper has it, by one forward and backward pass of the network with squared weights on an input of ones. The
    step doesn't depend on how the units are scaled: multiplying a ReLU unit's incoming weights by c > 0 and dividing
    its outgoing ones changes neither the function nor what a step makes of it (without momentum).

    An edge that lies on no path (behind dead units whose other weights are zero) has ``κ_e = 0`` and no gradient: it
    stays.

    For networks of linear layers, convolutions and ReLU, without normalization, in any arrangement; averages count as
    fixed edges. Others are refused: in a pass with positive weights and inputs such a network is linear, which is
    checked.

    The published code (bneyshabur/path-sgd) never divides, since it iterates over a generator that is used up. With
    that corrected it adds up κ over the steps, and multiplies the learning rate with a constant that is fixed at the
    first step. This is the paper's formula, which has neither.

    Cost of a step: a forward and backward pass of one sample, in float64.

    Args:
        params: Parameters of ``model``, or groups of them.
        lr: η > 0; in other units than that of SGD, since κ has those of a squared function.
        model: The network itself, not a module that holds losses and metrics beside it.
        input_shape: Shape of one input, without the batch dimension; may be left out where the first layer is
            `torch.nn.Linear`.
        momentum: m: ``b ← m b + g/κ``, ``w ← w − η b``; 0 as in the paper.

    Raises:
        ValueError: If the model is another network, a parameter isn't one of it, or an option doesn't fit.

    Example:
        >>> import torch
        >>> from lightning_fisher.optimizers import PathSGD
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> optimizer = PathSGD(net.parameters(), lr=0.01, model=net)
        >>> torch.nn.functional.cross_entropy(net(torch.randn(8, 3)), torch.randint(2, (8,))).backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        model: nn.Module,
        input_shape: Sequence[int] | None = None,
        momentum: float = 0.0,
    ) -> None:
        require_positive("lr", lr)
        if not is_number(momentum) or not 0 <= momentum < 1:
            raise ValueError(f"Expected argument `momentum` to be a number from 0 to below 1, but got {momentum!r}.")
        refuse_other_networks(model)
        self.model = model
        self.input_shape = _input_shape(model) if input_shape is None else tuple(input_shape)
        refuse_what_is_not_linear(model, self.input_shape)
        super().__init__(params, {"lr": lr, "momentum": momentum})
        known = {id(p) for p in model.parameters()}
        if any(id(p) not in known for group in self.param_groups for p in group["params"]):
            raise ValueError("Expected argument `params` to hold parameters of `model`, but got one that isn't.")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step.

        Args:
            closure: Evaluates the loss with its gradients and returns it; ``None``: the gradients are there.

        Returns:
            What ``closure`` returned, or ``None``.
        """
        loss = None if closure is None else torch.enable_grad()(closure)()
        scales = path_scaling(self.model, self.input_shape)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.grad.layout is not torch.strided:
                    raise ValueError(f"Expected all gradients to be dense, but got {p.grad.layout}.")
                scale = scales[id(p)]
                step = torch.where(scale > 0, p.grad / scale, 0.0).to(p)
                if group["momentum"]:
                    state = self.state[p]
                    if "momentum_buffer" in state:
                        step = state["momentum_buffer"].mul_(group["momentum"]).add_(step)
                    else:
                        state["momentum_buffer"] = step
                p.sub_(step, alpha=group["lr"])
        return loss


def path_scaling(model: nn.Module, input_shape: Sequence[int]) -> dict[int, Tensor]:
    """``κ``, float64, by the parameters' ``id``: the derivative of the squared path norm with respect to ``w²``."""
    with torch.inference_mode(False), torch.enable_grad():
        squares = {name: p.detach().double().square().requires_grad_() for name, p in model.named_parameters()}
        total = _evaluate(model, squares, _ones(model, input_shape)).sum()
        found = torch.autograd.grad(total, list(squares.values()), allow_unused=True, materialize_grads=True)
    return {id(p): kappa for p, kappa in zip(model.parameters(), found, strict=True)}


def refuse_other_networks(model: nn.Module) -> None:
    """Refuse layers that aren't linear or ReLU.

    Raises:
        ValueError: Naming the first one.
    """
    for name, module in model.named_modules():
        weighted = isinstance(module, WEIGHTED) and not isinstance(module, nn.modules.lazy.LazyModuleMixin)
        owns = next(module.parameters(recurse=False), None) is not None
        container = next(module.children(), None) is not None and not owns
        wrapped = getattr(module, "padding_mode", "zeros") != "zeros"
        if (weighted and not wrapped and not list(module.children())) or isinstance(module, WEIGHTLESS) or container:
            continue
        raise ValueError(
            "Expected argument `model` to be a ReLU network without normalization (linear layers, zero-padded "
            f"convolutions, ReLU, averages), but got {type(module).__name__} ({name or 'itself'!r})."
        )


def refuse_what_is_not_linear(model: nn.Module, input_shape: Sequence[int]) -> None:
    """Refuse a forward pass that isn't linear for positive weights without biases and positive inputs.

    Raises:
        ValueError: If ``f(a + b) ≠ f(a) + f(b)``.
    """
    generator = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device

    def positive(shape: Sequence[int], spread: float) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).mul(spread).exp().to(device)

    # Weights and inputs of several magnitudes, so that a maximum is not always the same unit's.
    weights = {
        name: torch.zeros_like(p, dtype=torch.float64)
        if name.rpartition(".")[2] == "bias"
        else positive(p.shape, 1.0) / max(p[0].numel(), 1)
        for name, p in model.named_parameters()
    }
    first, second = (positive((PROBES, *input_shape), 3.0) for _ in range(2))
    with torch.no_grad():
        a, b, both = (_evaluate(model, weights, x) for x in (first, second, first + second))
    if not torch.allclose(a + b, both, rtol=1e-9, atol=0.0):
        raise ValueError(
            "Expected argument `model` to be a ReLU network without normalization, but its forward pass isn't linear "
            "with positive weights and inputs."
        )


def _evaluate(model: nn.Module, weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """The outputs with other weights, dropout off."""
    with _evaluation_mode(model):
        outputs = functional_call(model, weights, (inputs,))
    if not isinstance(outputs, Tensor):
        raise ValueError(f"Expected argument `model` to return a tensor, but got {type(outputs).__name__}.")
    return outputs


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = False
        yield
    finally:
        for module, training in flags:
            module.training = training


def _ones(model: nn.Module, input_shape: Sequence[int]) -> Tensor:
    return torch.ones(1, *input_shape, dtype=torch.float64, device=next(model.parameters()).device)


def _input_shape(model: nn.Module) -> tuple[int, ...]:
    first = next((module for module in model.modules() if isinstance(module, WEIGHTED)), None)
    if not isinstance(first, nn.Linear):
        raise ValueError(
            "Expected argument `input_shape` to be the shape of one input, without the batch dimension, where the "
            f"first layer is {type(first).__name__}, but got None."
        )
    return (first.in_features,)
