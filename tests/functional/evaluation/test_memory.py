"""A Gram matrix that memory doesn't hold at once is computed in chunks; how much there is, is read where it stands."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn

from lightning_fisher.functional import fisher_log_det, gram_matrix
from lightning_fisher.functional.evaluation import memory
from lightning_fisher.functional.gram import matrix
from lightning_fisher.functional.gram.matrix import TEMPORARIES
from tests.functional.compare import gram_error
from tests.reference.cases import by_name
from tests.reference.jacobian import gram as exact_gram
from tests.reference.jacobian import jacobian


def samples_in_flight(module):
    """The sizes of the batches that a module sees from now on."""
    sizes = []
    module.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    return sizes


def wide(count):
    """A network whose layers' inputs are 8 · (100 + 50) bytes a sample, and samples."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(100, 50), nn.Tanh(), nn.Linear(50, 3)).double()
    return module, torch.randn(count, 100).double(), torch.arange(count) % 3


@pytest.mark.parametrize("name", ["conv2d_deep", "batch_norm2d", "tied_embedding", "dict_input"])
def test_little_memory_gives_the_same_matrix(name, monkeypatch):
    case = by_name(name)
    module, inputs, targets = case.build()
    expected = exact_gram(jacobian(module, inputs, targets, loss_fn=case.loss_fn))
    monkeypatch.setattr(matrix, "available_memory", lambda device: 1.0)
    with pytest.warns(UserWarning, match="computed from chunks of 2 samples"):
        got = gram_matrix(module, inputs, targets, loss_fn=case.loss_fn)
    assert gram_error(got, expected) < 1e-9


def test_as_many_samples_as_memory_holds(monkeypatch):
    module, inputs, targets = wide(40)
    sizes = samples_in_flight(module)
    a_sample = 2 * 8 * (100 + 50)  # twice the inputs of the layers
    monkeypatch.setattr(matrix, "available_memory", lambda device: TEMPORARIES + 12.5 * a_sample)
    with pytest.warns(UserWarning, match=re.escape("of 40 samples needs about 0.0 GiB at once")):
        fisher_log_det(module, inputs, targets)
    assert max(sizes) == 12


@pytest.mark.parametrize("room", [TEMPORARIES + 40 * 2 * 8 * 150, math.inf])
def test_enough_memory_changes_nothing(room, monkeypatch, recwarn):
    module, inputs, targets = wide(40)
    sizes = samples_in_flight(module)
    monkeypatch.setattr(matrix, "available_memory", lambda device: room)
    gram_matrix(module, inputs, targets)
    assert sizes == [2, 40, 20, 20, 1]  # a few, all, and to verify all again and one alone
    assert not recwarn.list


def test_a_given_chunk_size_is_taken(monkeypatch, recwarn):
    module, inputs, targets = wide(10)
    sizes = samples_in_flight(module)
    monkeypatch.setattr(matrix, "available_memory", lambda device: 1.0)
    gram_matrix(module, inputs, targets, chunk_size=10)
    assert max(sizes) == 10
    assert not recwarn.list


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A host with 8 GiB available and no containers."""
    (tmp_path / "meminfo").write_text("MemTotal:       16777216 kB\nMemAvailable:    8388608 kB\nHugePages_Total: 0\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CONTAINERS", [(str(tmp_path), *names) for _, *names in memory.CONTAINERS])
    return tmp_path


CPU = torch.device("cpu")


def test_the_host(machine):
    assert memory.available_memory(CPU) == 8 * 2**30


@pytest.mark.parametrize("text", [None, "", "MemTotal: 5 kB\n", "MemAvailable: many kB\n", "a line\n\n"])
def test_neither_host_nor_container_tells(machine, text):
    (machine / "meminfo").unlink()
    if text is not None:
        (machine / "meminfo").write_text(text)
    assert memory.available_memory(CPU) == math.inf


def test_an_unknown_device_has_no_limit():
    assert memory.available_memory(torch.device("meta")) == math.inf


@pytest.mark.parametrize(
    ("limit", "use", "prefix"),
    [("memory.max", "memory.current", ""), ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")],
)
def test_a_container_counts_the_cache_of_files_as_free(machine, limit, use, prefix):
    (machine / limit).write_text(f"{4 * 2**30}\n")
    (machine / use).write_text(f"{3 * 2**30}\n")
    (machine / "memory.stat").write_text(f"anon 5\n{prefix}inactive_file {2**29}\n{prefix}active_file {2**28}\n")
    assert memory.available_memory(CPU) == 2**30 + 2**29 + 2**28
    (machine / use).write_text(f"{9 * 2**30}\n")
    assert memory.available_memory(CPU) == 0.0
    (machine / limit).write_text("max\n")
    assert memory.available_memory(CPU) == 8 * 2**30


@pytest.mark.gpu
def test_a_gpu_counts_what_torch_holds_as_free():
    device = torch.device("cuda")
    before = memory.available_memory(device)
    block = torch.empty(2**28, dtype=torch.uint8, device=device)
    assert memory.available_memory(device) == pytest.approx(before - 2**28, abs=2**25)
    del block
    assert memory.available_memory(device) == pytest.approx(before, abs=2**25)
