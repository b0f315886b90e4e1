"""A process whose penalty explodes leaves its own share out; the others need not know, and all stay equal."""

from __future__ import annotations

import math

import pytest
import torch

from tests.callbacks.numbers_loop import BETA, WARNING, Cliff, M, batches, without_u
from tests.callbacks.numbers_worker import STEEP
from tests.callbacks.tiny import seeded
from tests.processes import run_ranks
from tests.reference.losses import batch_loss
from tests.reference.penalty import penalty
from tests.reference.regularized_training import snapshot


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("numbers")
    children = run_ranks("tests.callbacks.numbers_worker:main", 2, folder, str(folder))
    logs = "\n".join(child.output[-1500:] for child in children)
    assert [child.code for child in children] == [0, 0], logs
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def expected_states():
    """The mean of both ranks' plain gradients, and of the shares of the penalty that are finite."""
    net = seeded(Cliff).double().train()
    opt, states = without_u(net.parameters()), []
    for batch, (x, y) in enumerate(batches(STEEP)):
        opt.zero_grad()
        shares = [
            penalty(net, half, labels, alpha=1e-4, num_sub_batches=M // 2)[1]
            for rank, (half, labels) in enumerate(zip(x.tensor_split(2), y.tensor_split(2), strict=True))
            if not (rank == 0 and batch in STEEP)
        ]
        batch_loss(net(x.double()), y).backward()
        for share in shares:
            for parameter, addend in zip(net.parameters(), share, strict=True):
                parameter.grad += BETA * addend / 2
        opt.step()
        states.append(snapshot(net))
    return states


def test_weights_are_those_of_the_finite_shares(ranks, assert_close_states):
    expected = expected_states()
    for rank in ranks:
        assert_close_states(rank["states"], expected)


def test_the_ranks_agree_bit_for_bit(ranks):
    for a, b in zip(ranks[0]["states"], ranks[1]["states"], strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_every_rank_logs_that_a_share_was_left_out(ranks):
    for rank in ranks:
        assert [math.isnan(value) for value in rank["penalties"]] == [batch in STEEP for batch in range(6)]


def test_the_process_concerned_counts_and_warns(ranks):
    assert [rank["left out"] for rank in ranks] == [2, 0]
    told = [[line for line in rank["warnings"] if WARNING in line] for rank in ranks]
    assert [len(lines) for lines in told] == [1, 0]
    assert "on process 0" in told[0][0]


def test_a_measurement_that_is_nan_on_one_rank_is_nan_on_all(ranks):
    """Nobody waits for a process that died of its subset."""
    assert [math.isnan(value) for rank in ranks for value in rank["gammas"]] == [True, True]
    told = [[line for line in rank["warnings"] if "counts the subset as nan" in line] for rank in ranks]
    assert sorted(len(lines) for lines in told) == [0, 1]
