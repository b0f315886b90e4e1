"""The functions of torch whose per-sample weight gradients have a rule."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from lightning_fisher.functional.gram.rules.base import Rule
from lightning_fisher.functional.gram.rules.convolution import CONVOLUTION
from lightning_fisher.functional.gram.rules.embedding import EMBEDDING
from lightning_fisher.functional.gram.rules.linear import LINEAR
from lightning_fisher.functional.gram.rules.normalization import BATCH_NORM, channel_norm, trailing_norm

RULES: dict[Any, Rule] = {
    F.linear: LINEAR,
    torch.conv1d: CONVOLUTION,
    torch.conv2d: CONVOLUTION,
    torch.conv3d: CONVOLUTION,
    F.batch_norm: BATCH_NORM,
    F.group_norm: channel_norm(F.group_norm),
    F.instance_norm: channel_norm(F.instance_norm),
    F.layer_norm: trailing_norm(F.layer_norm),
    F.rms_norm: trailing_norm(F.rms_norm),
    F.embedding: EMBEDDING,
}
