"""gram_matrix against J J^T of single-sample backward passes, over the whole table of cases."""

from __future__ import annotations

import pytest
import torch

from lightning_fisher.functional import gram_matrix
from tests.functional.compare import gram_error, relative_error
from tests.reference.cases import BATCH_NORM_CASES, BATCH_STATISTICS, CASES, REFUSED, RIGHT_OR_REFUSED, by_name, each
from tests.reference.coupled import coupled_jacobian
from tests.reference.jacobian import gram, jacobian

NETWORKS = ["mlp", "conv2d_deep", "batch_norm2d", "self_attention_batch_first", "embedding", "gru_packed"]


@each(CASES)
def test_float64(case):
    module, inputs, targets = case.build()
    expected = gram(jacobian(module, inputs, targets, loss_fn=case.loss_fn))
    got = gram_matrix(module, inputs, targets, loss_fn=case.loss_fn)
    assert got.dtype == torch.float64
    assert got.shape == expected.shape
    assert not got.requires_grad
    assert gram_error(got, expected) < 1e-9


@each(CASES)
def test_float32(case):
    module, inputs, targets = case.build(torch.float32)
    expected = gram(jacobian(module, inputs, targets, loss_fn=case.loss_fn))
    got = gram_matrix(module, inputs, targets, loss_fn=case.loss_fn)
    assert got.dtype == torch.float64
    assert relative_error(got, expected) < 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_normalized_logits(name):
    module, inputs, targets = by_name(name).build()
    expected = gram(jacobian(module, inputs, targets, logit_norm=0.04))
    assert gram_error(gram_matrix(module, inputs, targets, logit_norm=0.04), expected) < 1e-9


@pytest.mark.parametrize("name", ["loss_mean", "loss_none"])
def test_normalized_logits_reach_a_custom_loss(name):
    case = by_name(name)
    module, inputs, targets = case.build()
    options = {"loss_fn": case.loss_fn, "logit_norm": 0.1}
    expected = gram(jacobian(module, inputs, targets, **options))
    assert gram_error(gram_matrix(module, inputs, targets, **options), expected) < 1e-9


@pytest.mark.parametrize("chunk_size", [2, 3, 4, 5, 10])
@each([*BATCH_NORM_CASES, BATCH_STATISTICS, by_name("mlp"), by_name("gru_packed"), by_name("positions_n")])
def test_coupled_batch_norm(case, chunk_size):
    module, inputs, targets = case.build()
    options = {"chunk_size": chunk_size, "logit_norm": 0.04}
    if len(targets) % chunk_size == 1 and "1d" in case.name and "signals" not in case.name:
        with pytest.raises(ValueError, match=r"more than 1 value per channel|chunk_size"):
            gram_matrix(module, inputs, targets, batch_norm="batch", **options)
        return
    expected = gram(coupled_jacobian(module, inputs, targets, **options))
    got = gram_matrix(module, inputs, targets, batch_norm="batch", **options)
    assert gram_error(got, expected) < 1e-9


def test_coupled_differs_from_eval():
    module, inputs, targets = by_name("batch_norm2d").build()
    coupled = gram_matrix(module, inputs, targets, batch_norm="batch", chunk_size=5)
    assert relative_error(coupled, gram_matrix(module, inputs, targets)) > 0.01


def test_coupled_chunks_default_to_ten():
    case = by_name("batch_norm2d")
    batches = [case.build()[1] + shift for shift in (0.0, 0.5, -1.0)]
    module, inputs, targets = case.build()[0], torch.cat(batches)[:13], torch.arange(13) % 3
    expected = gram(coupled_jacobian(module, inputs, targets, chunk_size=10))
    assert gram_error(gram_matrix(module, inputs, targets, batch_norm="batch"), expected) < 1e-9


@each(REFUSED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_interacting_samples_are_refused(case, dtype):
    module, inputs, targets = case.build(dtype)
    with pytest.raises(ValueError, match=r"(?i)sample|batch"):
        gram_matrix(module, inputs, targets)


@each(RIGHT_OR_REFUSED)
def test_right_or_refused(case):
    module, inputs, targets = case.build()
    expected = gram(jacobian(module, inputs, targets, loss_fn=case.loss_fn))
    try:
        got = gram_matrix(module, inputs, targets, loss_fn=case.loss_fn)
    except (ValueError, NotImplementedError):
        return
    assert gram_error(got, expected) < 1e-9


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch_norm": "train"}, "batch_norm.*eval.*batch.*train"),
        ({"logit_norm": 0.0}, "logit_norm.*0"),
        ({"logit_norm": -1.0}, "logit_norm.*-1"),
        ({"chunk_size": 0}, "chunk_size.*0"),
        ({"batch_norm": "batch", "chunk_size": -3}, "chunk_size.*-3"),
    ],
)
def test_bad_options_are_named(options, text):
    module, inputs, targets = by_name("batch_norm2d").build()
    with pytest.raises(ValueError, match=f"Expected argument.*{text}"):
        gram_matrix(module, inputs, targets, **options)


def test_loss_must_be_one_number_a_sample():
    module, inputs, targets = by_name("extra_dims").build()
    cross_entropy = torch.nn.CrossEntropyLoss(reduction="none")  # [N, L]
    with pytest.raises(ValueError, match="loss_fn"):
        gram_matrix(module, inputs, targets, loss_fn=cross_entropy)


def test_targets_of_another_length_are_refused():
    module, inputs, targets = by_name("mlp").build()
    with pytest.raises(ValueError, match=r"targets|samples|dimension 0"):
        gram_matrix(module, inputs, targets[:-1])


class RoundsByBatchSize(torch.nn.Module):
    """In float32 the output moves by 1e-3 with the size of the batch, as a kink can; in float64 not at all."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(6, 3)

    def forward(self, x):
        x = self.layer(x)
        return x + (1e-3 * len(x) if x.dtype == torch.float32 else 0.0)


def test_rounding_is_not_taken_for_interaction():
    torch.manual_seed(0)
    module, inputs, targets = RoundsByBatchSize(), torch.randn(5, 6), torch.tensor([0, 1, 2, 1, 0])
    expected = gram(jacobian(module, inputs, targets))
    assert relative_error(gram_matrix(module, inputs, targets), expected) < 1e-2
