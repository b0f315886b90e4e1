"""Cases of normalization layers whose samples do not interact in evaluation mode."""

from __future__ import annotations

import torch
from torch import nn

from tests.reference.case import Case, normal
from tests.reference.cases_conv import IMAGES, SIGNALS, VOLUMES, net
from tests.reference.cases_linear import SEQUENCES, VECTORS, mlp, over_tokens
from tests.reference.modules import Lambda, freeze


def after_conv(norm):
    return net(nn.Conv2d(2, 4, 3), norm)


def two_norms():
    first = (nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    return net(*first, nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))


def frames(self, x):
    """Video: batch-norm over the frames of all samples, folded into one batch."""
    x = torch.tanh(self.norm(self.conv(x.flatten(0, 1)))).unflatten(0, x.shape[:2])
    return self.out(x.mean((1, 3, 4)))


BATCH_NORM_CASES = [
    Case("batch_norm1d", lambda: mlp(nn.BatchNorm1d(8)), VECTORS, train=True),
    Case("batch_norm1d_signals", lambda: net(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4)), SIGNALS),
    Case("batch_norm2d", two_norms, IMAGES, train=True),
    Case("batch_norm2d_no_affine", lambda: after_conv(nn.BatchNorm2d(4, affine=False)), IMAGES),
    Case("batch_norm2d_cumulative", lambda: after_conv(nn.BatchNorm2d(4, momentum=None)), IMAGES, train=True),
    Case("batch_norm2d_first", lambda: net(nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3)), IMAGES),
    Case("batch_norm2d_frozen", lambda: freeze(after_conv(nn.BatchNorm2d(4)), "1.weight", "1.bias"), IMAGES),
    Case("batch_norm2d_bias_only", lambda: freeze(after_conv(nn.BatchNorm2d(4)), "1.weight"), IMAGES),
    Case(
        "batch_norm2d_frames",
        lambda: Lambda(frames, conv=nn.Conv2d(2, 4, 3), norm=nn.BatchNorm2d(4), out=nn.Linear(4, 3)),
        normal(5, 3, 2, 5, 5),
    ),
    Case("batch_norm3d", lambda: net(nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4, eps=1e-2)), VOLUMES),
    Case("batch_norm1d_dropout", lambda: mlp(nn.BatchNorm1d(8), nn.Dropout(0.3)), VECTORS, train=True),
]

NORM_CASES = [
    Case("group_norm", lambda: after_conv(nn.GroupNorm(2, 4)), IMAGES),
    Case("group_norm_vectors", lambda: mlp(nn.GroupNorm(2, 8)), VECTORS),
    Case("group_norm_no_affine", lambda: after_conv(nn.GroupNorm(2, 4, affine=False)), IMAGES),
    Case("layer_norm", lambda: mlp(nn.LayerNorm(8)), VECTORS),
    Case("layer_norm_no_bias", lambda: over_tokens(nn.LayerNorm(6, bias=False)), SEQUENCES),
    Case("layer_norm_n_tokens", lambda: over_tokens(nn.LayerNorm(6)), normal(5, 5, 6)),
    Case("layer_norm_no_affine", lambda: mlp(nn.LayerNorm(8, elementwise_affine=False)), VECTORS),
    Case("layer_norm_image", lambda: after_conv(nn.LayerNorm([4, 4])), IMAGES),
    Case("instance_norm", lambda: after_conv(nn.InstanceNorm2d(4, affine=True)), IMAGES, train=True),
    Case(
        "instance_norm_tracked",
        lambda: net(nn.Conv1d(2, 4, 3), nn.InstanceNorm1d(4, affine=True, track_running_stats=True)),
        SIGNALS,
        train=True,
    ),
    Case("rms_norm", lambda: mlp(nn.RMSNorm(8)), VECTORS),
]
