"""beta = 0 is plain training, and is called so; the numbers are those without a regularizer."""

from __future__ import annotations

import json
from pathlib import Path

from tests.experiment.conftest import QUICK, Command


def test_beta_zero_is_plain(command: Command, tmp_path: Path) -> None:
    zero = command(*QUICK, "reg.beta=0", "hydra.run.dir=zero")
    plain = command(*(o for o in QUICK if not o.startswith("reg.")), "reg=none", "hydra.run.dir=plain")
    assert (zero.code, plain.code) == (0, 0)
    assert "regularized phase" not in zero.out
    assert "  regularized" not in zero.out
    assert "3 plain epochs (beta 0)" in zero.out
    rows = [json.loads((tmp_path / run / "result.json").read_text()) for run in ("zero", "plain")]
    assert [row["test_loss"] for row in rows] == [rows[0]["test_loss"]] * 2
    assert "step_ms_regularized" not in rows[0]
    header = (tmp_path / "zero" / "history.csv").read_text().splitlines()[0]
    assert "fisher/" not in header
    assert "fisher/" not in (tmp_path / "zero" / "csv" / "version_0" / "metrics.csv").read_text().splitlines()[0]
