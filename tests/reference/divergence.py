"""Spread of the sub-batch gradients: their norms and the cosines of all pairs."""

from __future__ import annotations

import torch

from tests.reference.penalty import sub_batch_gradients
from tests.reference.samples import double_copy, to_double


def norms_and_cosines(module, inputs, targets, num_sub_batches, loss_fn=None):
    """``||g_i||`` of every sub-batch and the cosine of every pair ``i < j``, as two lists of floats."""
    gradients, _ = sub_batch_gradients(
        double_copy(module), to_double(inputs), to_double(targets), num_sub_batches, loss_fn
    )
    vectors = [torch.cat([g.reshape(-1) for g in grads]) for grads in gradients]
    norms = [vector.norm().item() for vector in vectors]
    cosines = []
    for i in range(len(vectors)):
        for j in range(i + 1, len(vectors)):
            cosines.append(torch.dot(vectors[i], vectors[j]).item() / (norms[i] * norms[j]))
    return norms, cosines
