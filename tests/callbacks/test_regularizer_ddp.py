"""Two processes (gloo, CPU) against one on the same global batches, and against each other."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_fisher import FisherMonitor
from tests.callbacks.ddp_worker import BATCHES, EPOCHS, MONITOR, MONITORED, WORLD
from tests.callbacks.tiny import Classifier, mlp, multi_step, seeded, sgd
from tests.reference.regularised_training import train

ROOT = Path(__file__).parents[2]
TIMEOUT = 120  # seconds; the two processes need about 15


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The results of both ranks."""
    folder = tmp_path_factory.mktemp("ddp")
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(WORLD)}
    common |= {"NODE_RANK": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.callbacks.ddp_worker", str(folder)]
    processes = []
    for rank in range(WORLD):
        with (folder / f"rank{rank}.log").open("w") as log:
            env = os.environ | common | {"LOCAL_RANK": str(rank)}
            processes.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log))
    try:
        codes = [process.wait(timeout=TIMEOUT) for process in processes]
    except subprocess.TimeoutExpired:
        codes = None
    finally:
        for process in processes:
            process.kill()
            process.wait()
    logs = "\n".join(f"rank {rank}:\n" + (folder / f"rank{rank}.log").read_text()[-1500:] for rank in range(WORLD))
    assert codes == [0] * WORLD, f"exit codes {codes} (None: over {TIMEOUT} s)\n{logs}"
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(WORLD)]


def oracle(accumulate=1):
    """One process on the global batches, all 8 sub-batches in it."""
    return train(
        seeded(mlp),
        BATCHES,
        epochs=EPOCHS,
        beta=5.0,
        optimizer=sgd,
        scheduler=multi_step(1),
        num_sub_batches=8,
        accumulate=accumulate,
    )


RUNS = {"beta 5": 1, "beta 5, accumulate 2": 2, "beta 5, unused": 1, "beta 5, static graph": 1}


@pytest.mark.parametrize("run", RUNS)
def test_two_processes_equal_one(ranks, assert_close_states, run):
    """Batch by batch to 1e-12: M counts over all processes."""
    expected = oracle(RUNS[run]).states
    for rank in ranks:
        states = [{name: value for name, value in s.items() if name != "unused"} for s in rank[run]["states"]]
        assert_close_states(states, expected)


@pytest.mark.parametrize("run", RUNS)
def test_the_ranks_agree_bit_for_bit(ranks, run):
    for a, b in zip(ranks[0][run]["states"], ranks[1][run]["states"], strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("run", "steps"), [("plain", 12), ("beta 0", 12), ("beta 5", 12), ("beta 5, accumulate 2", 6)])
def test_one_gradient_all_reduce_a_step(ranks, run, steps):
    """The net fits one bucket: as many buckets as optimizer steps, before and after the switch."""
    for rank in ranks:
        assert rank[run]["optimizer_steps"] == steps
        assert rank[run]["buckets"] == steps


def test_zero_beta_is_bit_identical_to_plain(ranks):
    for rank in ranks:
        for a, b in zip(rank["beta 0"]["states"], rank["plain"]["states"], strict=True):
            assert all(torch.equal(a[name], b[name]) for name in b)


def test_an_unused_parameter_stays_where_it_is(ranks):
    for rank in ranks:
        assert torch.equal(rank["beta 5, unused"]["states"][-1]["unused"], torch.ones(5, dtype=torch.float64))


def test_logged_penalty_is_the_global_one(ranks):
    expected = [value for value in oracle().penalties if value is not None]
    for rank in ranks:
        assert rank["beta 5"]["penalties"] == pytest.approx(expected, rel=1e-5)


def test_sub_batches_that_cannot_be_spread_are_refused(ranks):
    for rank in ranks:
        assert rank["refused"] is not None
        assert "num_sub_batches" in rank["refused"]
        assert "2" in rank["refused"]
        assert "5" in rank["refused"]


def test_monitor_equals_one_process(ranks, fit):
    """T subsets split over the ranks: the same subsets, the same mean and spread."""
    module = Classifier(seeded(mlp), scheduler=multi_step(1))
    single = fit(module, BATCHES, FisherMonitor(MONITORED, **MONITOR), max_epochs=EPOCHS, precision="64-true")
    metrics = single.trainer.callback_metrics
    expected = {key: metrics[key].item() for key in metrics if key.startswith("gamma")}
    assert {"gamma", "gamma_std"} <= expected.keys()
    for rank in ranks:
        assert rank["monitor"] == pytest.approx(expected, rel=1e-6)
