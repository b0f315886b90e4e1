"""The input Jacobian of the softmax output, one sample and one class at a time."""

from __future__ import annotations

import torch

from tests.reference.samples import call, double_copy, take, to_double


def softmax_jacobian(module, inputs, index):
    """``J [K, D]`` of sample ``index`` in float64: row k the gradient of ``p_k`` by all floating inputs."""
    module = double_copy(module).eval()
    one = take(to_double(inputs), slice(index, index + 1))
    tensors = one if isinstance(one, tuple) else one.values() if isinstance(one, dict) else (one,)
    variables = [t.requires_grad_() for t in tensors if isinstance(t, torch.Tensor) and t.is_floating_point()]
    logits = call(module, one)[0]
    probabilities = torch.exp(logits) / torch.exp(logits).sum()
    rows = []
    for probability in probabilities:
        grads = torch.autograd.grad(probability, variables, retain_graph=True, allow_unused=True)
        pieces = [torch.zeros_like(v) if g is None else g for g, v in zip(grads, variables, strict=True)]
        rows.append(torch.cat([piece.reshape(-1) for piece in pieces]))
    return torch.stack(rows)


def robustness_by_sample(module, inputs, count):
    """Squared largest singular value of each sample's Jacobian, ``[N]``."""
    return torch.stack([torch.linalg.svdvals(softmax_jacobian(module, inputs, j))[0] ** 2 for j in range(count)])
