"""Two and four processes (gloo, CPU) against one on the same global batches, and against each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_fisher import FisherMonitor, FisherRegularizer
from tests.callbacks.tiny import Classifier, mlp, multi_step, seeded
from tests.distributed.fits import BATCHES, EPOCHS, FITS, MONITOR, MONITORED
from tests.distributed.reference import mean_of_ranks, one_process
from tests.processes import run_ranks

WORLDS = (2, 4)
# One process cannot be the reference where the ranks' shares differ in size (each counts alike in DDP), where layers
# see a process's own samples, or where the ranks draw sub-batches.
OWN_SHARES = ("uneven", "batch-norm", "every second step", "half of the sub-batches")
WEIGHTS = [f"net.{layer}.{kind}" for layer in range(5) for kind in ("weight", "bias")]  # no running statistics

Ranks = list[dict[str, Any]]


@pytest.fixture(scope="module", params=WORLDS, ids=lambda world: f"{world} processes")
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """What each rank saw of every fit."""
    world, folder = request.param, tmp_path_factory.mktemp("ranks")
    children = run_ranks("tests.distributed.fits:main", world, folder, world, folder, list(FITS))
    logs = "\n".join(f"rank {rank}:\n{child.output[-1500:]}" for rank, child in enumerate(children))
    assert [child.code for child in children] == [0] * world, logs
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(world)]


def weights(states: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    return [{name: value for name, value in state.items() if name in WEIGHTS} for state in states]


@pytest.mark.parametrize("name", FITS)
def test_ranks_equal_one_process(ranks: Ranks, assert_close_states: Any, name: str) -> None:
    """Batch by batch to 1e-12, M sub-batches over all processes."""
    fit = FITS[name]
    if name == "short last batch":  # the plain reference always makes M parts
        expected = mean_of_ranks(fit, 1)
    else:
        expected = mean_of_ranks(fit, len(ranks)) if name.startswith(OWN_SHARES) else one_process(fit).states
    for rank in ranks:
        assert_close_states(weights(rank[name]["states"]), expected)


@pytest.mark.parametrize("name", FITS)
def test_the_ranks_agree_bit_for_bit(ranks: Ranks, name: str) -> None:
    """Running statistics are a process's own."""
    for rank in ranks[1:]:
        for a, b in zip(weights(ranks[0][name]["states"]), weights(rank[name]["states"]), strict=True):
            assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", FITS)
def test_every_gradient_is_reduced_once_a_step(ranks: Ranks, name: str) -> None:
    """Before and after the switch: by each optimizer step, as many values exchanged as the network has weights."""
    for rank in ranks:
        seen = rank[name]
        size = sum(value.numel() for key, value in seen["states"][0].items() if key in [*WEIGHTS, "unused"])
        assert seen["steps"][-1] == EPOCHS * -(-len(FITS[name].batches) // FITS[name].accumulate)
        assert seen["hooked"] == [size * step for step in seen["steps"]]
        assert seen["reduced"] == seen["hooked"]


def test_zero_beta_is_bit_identical_to_plain(ranks: Ranks) -> None:
    for rank in ranks:
        for a, b in zip(rank["beta 0"]["states"], rank["plain"]["states"], strict=True):
            assert all(torch.equal(a[name], b[name]) for name in b)


@pytest.mark.parametrize("name", [name for name, fit in FITS.items() if fit.unused])
def test_an_unused_parameter_stays_where_it_is(ranks: Ranks, name: str) -> None:
    for rank in ranks:
        assert torch.equal(rank[name]["states"][-1]["unused"], torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("name", ["beta 5", "shared gradient"])
def test_logged_penalty_is_the_global_one(ranks: Ranks, name: str) -> None:
    expected = [value for value in one_process(FITS[name]).penalties if value is not None]
    for rank in ranks:
        assert rank[name]["penalties"] == pytest.approx(expected, rel=1e-5)


def test_monitor_equals_one_process(ranks: Ranks, fit: Any) -> None:
    """Five subsets split over two or four ranks: the same subsets, the same mean and spread."""
    module = Classifier(seeded(mlp), scheduler=multi_step(1))
    single = fit(module, BATCHES, FisherMonitor(MONITORED, **MONITOR), max_epochs=EPOCHS, precision="64-true")
    metrics = single.trainer.callback_metrics
    expected = {key: metrics[key].item() for key in metrics if key.startswith("gamma")}
    assert {"gamma", "gamma_std"} <= expected.keys()
    for rank in ranks:
        assert rank["monitor"] == pytest.approx(expected, rel=1e-12)


def test_resumed_equals_uninterrupted(ranks: Ranks) -> None:
    """Weights, and running statistics of each rank: every rank's random state is in the checkpoint.

    Bit for bit with two processes; gloo adds the gradients of four up in an order that isn't always the same (seen:
    3e-17).
    """
    tolerance = 0.0 if len(ranks) == 2 else 1e-14
    for rank in ranks:
        whole, continued = rank["resumed"]["whole"], rank["resumed"]["continued"]
        for name in whole:
            torch.testing.assert_close(continued[name], whole[name], rtol=0, atol=tolerance)


def test_the_ranks_draw_different_numbers(ranks: Ranks) -> None:
    """So that the test above sees whose random state is restored."""
    statistics = [rank["resumed"]["whole"]["net.3.running_var"] for rank in ranks]
    assert not any(torch.equal(statistics[0], other) for other in statistics[1:])


REFUSALS = {
    "M": ("`num_sub_batches`", "multiple of the {world} processes", "{M}"),
    "k": ("`perturbed`", "multiple of the {world} processes", "1"),
    "batches": ("as many batches on every process", "4.0", "3.0", "sampler"),
    "sharded": ("FisherRegularizer", "ModelParallelStrategy", 'strategy="ddp"'),
    "sharded monitor": ("FisherMonitor", "ModelParallelStrategy", 'strategy="ddp"'),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_before_the_first_step(ranks: Ranks, name: str) -> None:
    """On every rank, in one line: none is left waiting."""
    world = len(ranks)
    for rank in ranks:
        text = rank["refusals"][name]
        assert "\n" not in text
        for word in REFUSALS[name]:
            assert word.format(world=world, M=2 * world + 1) in text, text


def test_synchronized_batch_norm_is_refused(fit: Any) -> None:
    """Its passes wait for the other ranks, which make other passes. (Lightning itself wants GPUs for more than one.)"""
    net = torch.nn.Sequential(seeded(mlp), torch.nn.SyncBatchNorm(3))
    with pytest.raises(ValueError, match=r"SyncBatchNorm layers.*sync_batchnorm=False") as caught:
        fit(Classifier(net), BATCHES, FisherRegularizer(5.0))
    assert "\n" not in str(caught.value)
