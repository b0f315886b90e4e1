"""Values of public implementations of generalization measures, and of ranking protocols, in float64.

``tests/data/measures_small.npz`` is a part of what those implementations returned on two small networks, and on a grid
of 24 runs: the code of Dziugaite et al. (2020), Jiang et al. (2019), Andriushchenko et al. (2023), Petzka et al.
(2021), cockpit on BackPACK, and curvlinops, each recomputed by a naive version. Keys with ``own`` have no public code
behind them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

PATH = Path(__file__).parents[1] / "data" / "measures_small.npz"


@cache
def values():
    """Every array by its key."""
    with np.load(PATH) as data:
        return {key: data[key] for key in data.files}


def value(key):
    """A scalar as a float."""
    return float(values()[key])


class NetworkA(nn.Module):
    """MLP 8-16-16-5 without biases, ReLU."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = (nn.Linear(i, o, bias=False) for i, o in ((8, 16), (16, 16), (16, 5)))
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x):
        return self.fc3(self.relu2(self.fc2(self.relu1(self.fc1(x)))))


class NetworkB(nn.Module):
    """Two convolutions with batch-norm behind each, ReLU, one linear layer."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.fc = nn.Linear(96, 5)

    def forward(self, x):
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        return self.fc(x.flatten(1))


def network(name, which="weights"):
    """Network ``a`` or ``b`` in evaluation mode, with its trained (``weights``) or its initial (``init``) values."""
    net = {"a": NetworkA, "b": NetworkB}[name]().double()
    prefix = f"{name}/{which}/"
    net.load_state_dict({k.removeprefix(prefix): torch.tensor(v) for k, v in values().items() if k.startswith(prefix)})
    return net.eval()


def samples(name):
    """The 64 inputs and classes."""
    return torch.tensor(values()[f"{name}/x"]), torch.tensor(values()[f"{name}/y"])
