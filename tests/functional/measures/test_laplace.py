"""The log-evidence's determinant against laplace-torch: its stored numbers, and itself where it is installed.

``tests/data/laplace.npz``: laplace-torch 0.3 (classification, all weights, full, empirical Fisher by curvlinops) at the
weights after six steps of SGD on the batches of ``methods.npz``, all 96 samples, prior precision 0.1, 1 and 10:
``log_det_ratio = ln|H + δI| − W ln δ``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_fisher.functional import fisher_log_det, log_spectrum
from lightning_fisher.functional.measures import evidence_log_det
from tests.reference.methods import batches, network

STORED = np.load(Path(__file__).parents[2] / "data" / "laplace.npz", allow_pickle=False)


def trained():
    module = network()
    module.load_state_dict({n: torch.from_numpy(STORED[f"weights/{n}"]) for n, _ in module.named_parameters()})
    x, y = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    return module, x, y


def evidences():
    module, x, y = trained()
    found = fisher_log_det(module, x, y)
    logs = log_spectrum(found.gram, found.log_norms)
    return [evidence_log_det(logs, delta=delta).item() for delta in STORED["prior_precision"]]


def test_stored_numbers():
    assert evidences() == pytest.approx(STORED["laplace/ef/log_det_ratio"].tolist(), abs=1e-8)


def test_the_marginal_likelihood():
    """``−Σℓ − ½ (ln|I + ξ/δ| + δ‖w‖²)``, their whole number."""
    nll, theta = STORED["laplace/nll_sum"].item(), STORED["laplace/theta_sq"].item()
    pairs = zip(evidences(), STORED["prior_precision"], strict=True)
    whole = [-nll - 0.5 * (value + delta * theta) for value, delta in pairs]
    assert whole == pytest.approx(STORED["laplace/ef/log_marginal_likelihood"].tolist(), abs=1e-8)


def test_itself():
    laplace = pytest.importorskip("laplace", reason="pip install laplace-torch")
    curvature = pytest.importorskip("laplace.curvature.curvlinops")
    module, x, y = trained()
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16)
    for delta, found in zip(STORED["prior_precision"], evidences(), strict=True):
        whole = laplace.Laplace(
            module,
            "classification",
            subset_of_weights="all",
            hessian_structure="full",
            prior_precision=float(delta),
            backend=curvature.CurvlinopsEF,
        )
        whole.fit(data)
        assert found == pytest.approx(float(whole.log_det_ratio), abs=1e-6)
