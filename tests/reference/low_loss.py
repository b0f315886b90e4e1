"""Per-sample gradients at any loss, their norms as logarithms: nothing cancels and nothing underflows."""

from __future__ import annotations

import torch

from tests.reference.jacobian import trainable
from tests.reference.output_gradient import scaled_output_gradient
from tests.reference.samples import call, double_copy, take, to_double


def unit_rows(module, inputs, labels):
    """Rows of J divided by their norms ``[N, W]``, and the logarithms of those norms ``[N]``."""
    module = double_copy(module).eval()
    inputs = to_double(inputs)
    parameters = trainable(module)
    rows, log_norms = [], []
    for j in range(len(labels)):
        logits = call(module, take(inputs, slice(j, j + 1)))
        gradient, log_scale = scaled_output_gradient(logits[0], labels[j])
        grads = torch.autograd.grad(logits, parameters, gradient[None], allow_unused=True)
        row = torch.cat(
            [(torch.zeros_like(p) if g is None else g).reshape(-1) for p, g in zip(parameters, grads, strict=True)]
        )
        norm = row.norm()
        rows.append(row / norm)
        log_norms.append(log_scale + norm.log().item())
    return torch.stack(rows), torch.tensor(log_norms, dtype=torch.float64)
