"""Two processes equal one, whatever the share of each."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torchmetrics import MetricCollection

from lightning_fisher.metrics import (
    FisherMetric,
    HessianFrobeniusMetric,
    HessianSpectralRadiusMetric,
    local_minima_metrics,
)
from tests.metrics.subsets import same, subsets, updated

TOTAL = 5
SHARES = {"three and two": [[0, 1, 2], [3, 4]], "none and five": [[], [0, 1, 2, 3, 4]]}
METRICS = {
    "fisher": FisherMetric,
    "collection": local_minima_metrics,
    "hessian": lambda: MetricCollection(
        [HessianFrobeniusMetric(num_probes=2), HessianSpectralRadiusMetric(tol=0.3)], compute_groups=False
    ),
}


def share_of_work(rank, folder):
    """Every split of the subsets for every metric, in one process of two."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    results = {}
    try:
        parts = subsets(TOTAL)
        for name, kind in METRICS.items():
            for share, indices in SHARES.items():
                metric = updated(kind(), [parts[t] for t in indices[rank]])
                results[name, share, "all"] = metric.compute()
                # The synchronisation is undone afterwards: accumulation goes on locally.
                updated(metric, [parts[rank]])
                results[name, share, "one more each"] = metric.compute()
                metric.reset()
                updated(metric, parts[rank : rank + 1])
                results[name, share, "after reset"] = metric.compute()
        uneven = updated(FisherMetric(), subsets(1, size=8 + rank))
        try:
            uneven.compute()
        except ValueError as error:
            results["sizes"] = str(error)
        dist.barrier()
    finally:
        dist.destroy_process_group()
    torch.save(results, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(share_of_work, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def alone():
    parts = subsets(TOTAL)
    shares = {"all": parts, "one more each": [*parts, *parts[:2]], "after reset": parts[:2]}
    return {
        (name, state): updated(kind(), chosen).compute()
        for name, kind in METRICS.items()
        for state, chosen in shares.items()
    }


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("state", ["all", "one more each", "after reset"])
def test_two_processes_equal_one(ranks, alone, name, share, state):
    for results in ranks:
        same(results[name, share, state], alone[name, state])


def test_sizes_that_differ_between_processes_are_noticed(ranks):
    for results in ranks:
        assert "same number of samples" in results["sizes"]
        assert "[8, 9]" in results["sizes"]
