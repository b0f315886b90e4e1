"""The functions of torch whose per-sample weight gradients have a rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_fisher.functional.gram.rules.base import Rule
from lightning_fisher.functional.gram.rules.convolution import Convolution
from lightning_fisher.functional.gram.rules.elementwise import SCALES, SHIFTS, Scale, Shift
from lightning_fisher.functional.gram.rules.embedding import Embedding
from lightning_fisher.functional.gram.rules.linear import Linear, Product, ShiftedProduct
from lightning_fisher.functional.gram.rules.normalization import BatchNorm, ChannelNorm, TrailingNorm

RULES: dict[Any, Rule] = {
    rule.function: rule
    for rule in (
        Linear(),
        *(Product(function) for function in (torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__)),
        *(ShiftedProduct(function) for function in (torch.addmm, Tensor.addmm)),
        *(Scale(function) for function in SCALES),
        *(Shift(function) for function in SHIFTS),
        *(Convolution(function) for function in (torch.conv1d, torch.conv2d, torch.conv3d)),
        BatchNorm(F.batch_norm),
        ChannelNorm(F.group_norm),
        ChannelNorm(F.instance_norm),
        TrailingNorm(F.layer_norm),
        TrailingNorm(F.rms_norm),
        Embedding(),
    )
}
