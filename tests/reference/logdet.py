"""ln|J J^T| from J itself, never from a Gram matrix: QR of the normalized rows, or singular values."""

from __future__ import annotations

from typing import NamedTuple

import torch


class LogDet(NamedTuple):
    log_det: float
    magnitude: float
    direction: float


def log_det_by_qr(unit_rows, log_norms):
    """``sum_j 2 ln||g_j|| + ln|C|``, ``C = U U^T``: with ``U^T = Q R``, ``ln|C| = 2 sum ln|r_jj|``."""
    upper = torch.linalg.qr(unit_rows.double().T, mode="r").R
    magnitude = 2 * log_norms.double().sum().item()
    direction = 2 * upper.diagonal().abs().log().sum().item()
    return LogDet(magnitude + direction, magnitude, direction)


def jacobian_log_det(jacobian_matrix):
    """The log-determinant of ``J J^T`` for a J of full row rank."""
    norms = jacobian_matrix.norm(dim=1)
    return log_det_by_qr(jacobian_matrix / norms[:, None], norms.log())


def pseudo_log_det(jacobian_matrix, rank):
    """Log of the product of the ``rank`` non-zero eigenvalues of ``J J^T``: squared singular values."""
    singular_values = torch.linalg.svdvals(jacobian_matrix)
    return 2 * singular_values[:rank].log().sum().item()
