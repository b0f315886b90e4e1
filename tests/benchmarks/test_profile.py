"""Which kind of work an operation counts as."""

from __future__ import annotations

import pytest
import torch

from benchmarks import profile
from benchmarks.contenders_gram import BASELINE, OURS
from benchmarks.networks import QUICK

ALONE = ["weight gradients of single samples: convolutions", "weight gradients of single samples: products"]


@pytest.mark.parametrize(
    ("name", "shapes", "expected"),
    [
        ("aten::mkldnn_convolution", [[8, 3, 32, 32]], "convolutions, forward"),
        ("aten::cudnn_convolution", [[1, 3, 32, 32]], "convolutions, forward"),
        ("aten::convolution_backward", [[8, 16, 32, 32]], "convolutions, backward"),
        ("aten::convolution_backward", [[1, 128, 32, 32]], ALONE[0]),
        ("aten::convolution_backward", [], "convolutions, backward"),
        ("aten::bmm", [[8, 64, 64]], ALONE[1]),
        ("aten::addmm_", [[8, 8]], "Gram products and linear layers"),
        ("aten::native_batch_norm_backward", [[8, 16, 32, 32]], "batch-norm"),
        ("aten::copy_", [[8]], "copies"),
        ("aten::relu", [[8]], "activations and the rest"),
    ],
)
def test_kind(name, shapes, expected):
    assert profile.kind(name, shapes) == expected


def test_plain_passes_have_no_gradients_of_single_samples():
    rows = profile.shares(QUICK["resnet20"], samples=4, rounds=2, device=torch.device("cpu"), say=lambda line: None)
    found = {(row["contender"], row["kind"]): row["ms"] for row in rows}
    assert len(found) == 2 * (len(profile.KINDS) + 1)
    assert all(milliseconds >= 0 for milliseconds in found.values())
    assert [found[BASELINE, name] for name in ALONE] == [0, 0]
    assert sum(found[OURS, name] for name in ALONE) > 0
    assert found[BASELINE, "convolutions, backward"] > 0
