"""Two and four processes equal one, whatever the share of each."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torchmetrics import MetricCollection

from lightning_fisher.metrics import (
    FisherMetric,
    HessianFrobeniusMetric,
    HessianSpectralRadiusMetric,
    MeasureMetric,
    local_minima_metrics,
)
from tests.metrics.subsets import same, subsets, updated
from tests.processes import run_ranks

TOTAL = 5
SHARES = {
    2: {"uneven": [[0, 1, 2], [3, 4]], "all on one": [[], [0, 1, 2, 3, 4]]},
    4: {"uneven": [[0, 4], [1], [2], [3]], "all on one": [[], [], [0, 1, 2, 3, 4], []]},
}
METRICS = {
    "fisher": FisherMetric,
    "collection": local_minima_metrics,
    "measures": lambda: MeasureMetric(["fisher_rao_norm", "path_norm"]),
    "hessian": lambda: MetricCollection(
        [HessianFrobeniusMetric(num_probes=2), HessianSpectralRadiusMetric(tol=0.3)], compute_groups=False
    ),
}


def share_of_work(rank, world, folder):
    """Every split of the subsets for every metric, in one process."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world, timeout=timedelta(seconds=120)
    )
    results = {}
    try:
        parts = subsets(TOTAL)
        for name, kind in METRICS.items():
            for share, indices in SHARES[world].items():
                metric = updated(kind(), [parts[t] for t in indices[rank]])
                results[name, share, "all"] = metric.compute()
                # The synchronization is undone afterwards: accumulation goes on locally.
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


@pytest.fixture(scope="module", params=list(SHARES), ids=lambda world: f"{world} processes")
def ranks(request, tmp_path_factory):
    folder, world = tmp_path_factory.mktemp("gloo"), request.param
    children = run_ranks("tests.metrics.test_distributed:share_of_work", world, folder, world, folder)
    assert [child.code for child in children] == [0] * world, "\n".join(child.output[-1500:] for child in children)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


@pytest.fixture(scope="module")
def alone(ranks):
    parts = subsets(TOTAL)
    shares = {"all": parts, "one more each": [*parts, *parts[: len(ranks)]], "after reset": parts[: len(ranks)]}
    return {
        (name, state): updated(kind(), chosen).compute()
        for name, kind in METRICS.items()
        for state, chosen in shares.items()
    }


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("share", ["uneven", "all on one"])
@pytest.mark.parametrize("state", ["all", "one more each", "after reset"])
def test_processes_equal_one(ranks, alone, name, share, state):
    for results in ranks:
        same(results[name, share, state], alone[name, state])


def test_sizes_that_differ_between_processes_are_noticed(ranks):
    for results in ranks:
        assert "same number of samples" in results["sizes"]
        assert str(list(range(8, 8 + len(ranks)))) in results["sizes"]
