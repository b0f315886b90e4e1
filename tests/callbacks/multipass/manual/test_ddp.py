"""Manual optimization with several processes equals the loop of one."""

from __future__ import annotations

import pytest
import torch

from tests.callbacks.multipass.manual import steps
from tests.callbacks.multipass.manual.worker import BETA, NAMES
from tests.callbacks.tiny import seeded
from tests.processes import run_ranks


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def ranks(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("manual")
    children = run_ranks(
        "tests.callbacks.multipass.manual.worker:main", request.param, folder, str(folder), str(request.param)
    )
    logs = "\n".join(child.output[-1500:] for child in children)
    assert [child.code for child in children] == [0] * request.param, logs
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_oracle_of_one_process(ranks, name):
    nets = seeded(steps.networks).double()
    getattr(steps, name).loop(nets, steps.batches(), BETA)
    for rank in ranks:
        for a, b in zip(rank[name], nets.parameters(), strict=True):
            assert (a - b).abs().max() <= 1e-12 * b.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_the_ranks_agree_bit_for_bit(ranks, name):
    for other in ranks[1:]:
        assert all(torch.equal(a, b) for a, b in zip(ranks[0][name], other[name], strict=True))
