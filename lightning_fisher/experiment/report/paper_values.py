"""The numbers the paper reports, to stand beside ours. Errors in per cent, mean and standard deviation."""

from __future__ import annotations

from typing import NamedTuple


class Reported(NamedTuple):
    """A reported mean and its standard deviation, None where the paper gives none."""

    mean: float
    std: float | None = None


class Pair(NamedTuple):
    """Without and with the regularizer."""

    none: Reported
    fisher: Reported


def _pair(none: float, none_std: float, fisher: float, fisher_std: float) -> Pair:
    return Pair(Reported(none, none_std), Reported(fisher, fisher_std))


# Table 1: test error, 5 models; by data set and network.
TABLE_1 = {
    ("cifar10", "cnn"): _pair(8.52, 0.23, 7.55, 0.06),
    ("cifar10", "wrn28_2"): _pair(5.63, 0.20, 5.15, 0.09),
    ("cifar10", "densenet_bc"): _pair(4.61, 0.08, 4.37, 0.06),
    ("cifar10", "resnet20"): _pair(8.50, 0.31, 7.89, 0.13),
    ("cifar100", "cnn"): _pair(31.12, 0.35, 29.27, 0.17),
    ("cifar100", "wrn28_2"): _pair(25.71, 0.24, 23.88, 0.13),
    ("cifar100", "densenet_bc"): _pair(22.54, 0.32, 22.23, 0.21),
}

# Table 2: ImageNet at 128x128, WRN-18-1.5, 3 models; by quantity of the row, gaps by the name of their difference.
TABLE_2 = {
    "test_error": Pair(Reported(35.52, 0.11), Reported(34.99, 0.10)),
    "train_error": Pair(Reported(23.67), Reported(24.0)),
    "gap": Pair(Reported(11.85), Reported(10.99)),
    "test_error_top5": Pair(Reported(14.27), Reported(13.85)),
    "train_error_top5": Pair(Reported(7.33), Reported(7.31)),
    "gap_top5": Pair(Reported(6.94), Reported(6.54)),
}

# Table 3: gamma with rescaled logits, CIFAR-10; by network.
TABLE_3 = {
    "resnet20": _pair(-979.3, 22.3, -1138.1, 11.0),
    "wrn28_2": _pair(-689.6, 24.9, -748.7, 21.3),
    "densenet_bc": _pair(-850.3, 23.5, -886.2, 20.5),
}

# Sec. 7.2.1: ms a step of WRN-18-1.5 on ImageNet at 128x128, batch 128, two GPUs.
STEP_MS = {"wrn18_1_5": Pair(Reported(185.7), Reported(285.6))}
