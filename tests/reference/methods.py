"""Float64 arrays of the methods' public codes (``tests/data/methods.npz``), and the networks they were computed on.

Six steps of SGD (learning rate 0.1, momentum 0.9 unless a test says otherwise) on six batches of 16;
``RUN/weights/NAME`` is stacked over the steps, ``RUN/loss`` is the loss before each step. Sources:

* ``sam``, ``asam``: davda54/sam 3c3afdb; ``asam_authors``: SamsungLabs/ASAM f156a68
* ``gnp``: zhaoyang-0204/gnp e803362, with ``norm_perturbations=False``
* ``gradreg``: JonasGeiping/fullbatchtraining 5a772a2, class GradRegularizer
* ``fisher_penalty``: the formula of Jastrzebski et al. 2021, by double backward
* ``jacreg``: facebookresearch/jacobian_regularizer 32bb044
* ``entropy_sgd``: ucla-vision/entropy-sgd 61329f9, python/optim.py; ``lua_formula`` is the formula of its Lua version
* ``path_sgd``: bneyshabur/path-sgd 19cb6cc with two mistakes mended (``list_fixed_zeroed``), and the paper's formula
* ``ghost_bn``: eladhoffer/bigBatch 0c69f28 and mosaicml/composer 6405188
* ``large_margin``: google-research large_margin/margin_loss.py 0c1bbe5
* ``fms``: the formula of Hochreiter & Schmidhuber 1997
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

ARRAYS = np.load(Path(__file__).parents[1] / "data" / "methods.npz", allow_pickle=False)


def array(key):
    return torch.from_numpy(ARRAYS[key])


def batches(net="mlp"):
    """Six batches of inputs and labels."""
    return list(zip(array("problem/images" if net == "conv" else "problem/x"), array("problem/y"), strict=True))


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        return self.fc(self.bn2(self.conv2(x)).relu().mean((2, 3)))


def network(net="mlp"):
    """``"mlp"`` (tanh), ``"relu_mlp"`` or ``"conv"`` with its initial weights, float64, training mode."""
    if net == "conv":
        module, group = ConvNet(), "problem/conv/"
    else:
        activation = nn.ReLU if net == "relu_mlp" else nn.Tanh
        layers = nn.Linear(8, 16), activation(), nn.Linear(16, 16), activation(), nn.Linear(16, 5)
        module, group = nn.Sequential(*layers), "problem/mlp/"
    module = module.double()
    weights = {key[len(group) :]: array(key) for key in ARRAYS.files if key.startswith(group)}
    module.load_state_dict(weights, strict=net != "conv")
    return module


def weights_error(module, run, step):
    """Largest difference to the weights of a run after ``step + 1`` steps."""
    return max(
        (p.detach() - array(f"{run}/weights/{n}")[step]).abs().max().item() for n, p in module.named_parameters()
    )


def buffers_error(module, run, step):
    """Largest difference to the batch-norm statistics of a run."""
    buffers = [(n, b) for n, b in module.named_buffers() if f"{run}/buffers/{n}" in ARRAYS]
    assert buffers
    return max((b - array(f"{run}/buffers/{n}")[step]).abs().max().item() for n, b in buffers)


def train(run, net, gradient):
    """Train by ``gradient(module, x, y, t) → (loss, gradients)``; the largest differences of weights and losses.

    Returns the trained module too.
    """
    module = network(net)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    weights = losses = 0.0
    for t, (x, y) in enumerate(batches(net)):
        loss, gradients = gradient(module, x, y, t)
        for parameter, found in zip(module.parameters(), gradients, strict=True):
            parameter.grad = found.clone()
        optimizer.step()
        weights = max(weights, weights_error(module, run, t))
        if f"{run}/loss" in ARRAYS:
            losses = max(losses, abs(loss.item() - ARRAYS[f"{run}/loss"][t]))
    return weights, losses, module
