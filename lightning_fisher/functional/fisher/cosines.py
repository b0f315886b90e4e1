"""Cosine similarities of per-sample gradients, and which of their eigenvalues count."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_fisher.functional.gram.matrix import ScaledGram

NOISE = 8  # times √N ε: what passes of machine epsilon ε make of zero eigenvalues of C, measured up to 1.3 times √N ε
ACCURACY = 1e-6  # of ln|ξ|, or of a nat where that is more
DOUBLE = torch.finfo(torch.float64).eps
SUMS = 10  # times machine epsilon: error of entries of C in float64


class Cosines:
    """C, its eigenvalues, and which of them are not zero, of ``ξ = diag(e^l) G diag(e^l)``.

    Attributes:
        cosine: C, with zeros where a gradient is.
        log_norms: ``ln‖∇ℓ_j‖``.
        log_residuals: ``ln‖∂ℓ_j/∂q_j‖``.
        nonzero: Which gradients aren't zero.
        values: Eigenvalues of C.
        kept: Which of them count.
        eps: Machine epsilon of the passes.
        undecided: Whether the error of the passes decides which eigenvalues count, or more than 1e-6 of the result.
    """

    def __init__(self, scaled: ScaledGram, tol: float | None) -> None:
        gram, log_scales, eps, self.log_residuals, values, _ = scaled
        if not bool(torch.isfinite(gram).all()):
            raise ValueError("Expected argument `gram` to be finite, but it has infinite or undefined entries.")
        diagonal = gram.diagonal()
        self.nonzero = (diagonal > 0) & ~torch.isneginf(log_scales)
        norms = torch.where(self.nonzero, diagonal, 1.0).sqrt()
        cosine = gram / norms / norms.unsqueeze(1)
        self.cosine = torch.where(self.nonzero & self.nonzero.unsqueeze(1), cosine, 0.0)
        self.cosine.diagonal().copy_(self.nonzero.double())
        self.log_norms = torch.where(self.nonzero, norms.log() + log_scales, -math.inf)
        if values is None:
            values = torch.linalg.eigvalsh(self.cosine.cpu()).to(gram.device)  # small: faster than on a GPU
        self.values = values
        if tol is None and scaled.values is not None:
            error = len(gram) * (NOISE * DOUBLE) ** 2 * self.values[-1]
        elif tol is None:
            count, passes = len(gram), eps if eps > DOUBLE else 0.0
            error = count * DOUBLE * self.values[-1] + NOISE * math.sqrt(count) * passes
            error = torch.maximum(error, -2 * self.values[0])
        else:
            error = tol * self.values[-1]
        self.kept = self.values > error
        self.eps = eps
        self.from_rows = scaled.values is not None
        self.undecided = tol is None and eps > DOUBLE and not self.known_to(torch.zeros_like(self.log_norms))

    def known_to(self, errors: Tensor) -> bool:
        """Whether errors of the passes decide neither the rank nor more than 1e-6 of ``ln|ξ|``.

        Independent errors ε of the entries move ``ln|C|`` by about ``√2 ε ‖C⁻¹‖_F``, errors e_j of the rows, relative
        to their lengths, ``ln|ξ|`` by at most about ``2 √(Σ_j e_j² (C⁻¹)_jj)``.

        Args:
            errors: e, ``[N]``.
        """
        if int(self.kept.sum()) < int(self.nonzero.sum()) or bool(torch.isinf(errors).any()):
            return False
        values, log_norms = self.values[self.kept], self.log_norms[self.nonzero]
        # Errors of the rows move a singular value by as much.
        error = math.sqrt(2) * self.eps * torch.linalg.vector_norm(1 / (values.sqrt() if self.from_rows else values))
        if self.eps <= DOUBLE:  # sums are no wider than the passes
            error *= SUMS
        if bool(errors.any()):
            inverse = torch.linalg.inv(self.cosine[self.nonzero][:, self.nonzero]).diagonal()
            error += 2 * (errors[self.nonzero].square() * inverse).sum().sqrt()
        log_det = values.log().sum() + 2 * log_norms.sum()
        return bool(error <= ACCURACY * log_det.abs().clamp_min(1.0))
