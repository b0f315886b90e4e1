"""A run that the first version began, before its modules were moved, goes on to the weights it would have had."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from tests.experiment.conftest import Command

# Three of four epochs by 0.1.0, the last two of them regularized, and the weights that 0.1.0 had after the fourth.
BEGUN = Path(__file__).parents[1] / "data" / "run_begun_by_0.1.0"
OPTIONS = [
    "model=cnn",
    "model.net.width=2",
    "+model.net.dropout=0.5",
    "model.max_epochs=4",
    "model.batch_size=200",
    "metric.num_subsets=2",
    "metric.subset_size=10",
    "metric.every_n_validations=1",
    "reg.num_sub_batches=2",
    "trainer.accelerator=cpu",
]


def test_it_continues(command: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(BEGUN, run)
    expected = torch.load(run / "final_weights.pt", weights_only=True)
    (run / "final_weights.pt").unlink()
    before = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    result = command(*OPTIONS, "hydra.run.dir=run")
    assert result.code == 0, result.err
    assert "continuing from run/checkpoints/last.ckpt" in result.out
    after = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert (before["epoch"], after["epoch"]) == (2, 3)
    assert after["state_dict"].keys() == expected.keys()
    for name, value in expected.items():  # bit for bit on the machine that made them
        torch.testing.assert_close(after["state_dict"][name], value, rtol=1e-3, atol=1e-5)
    moved = max(float((before["state_dict"][n] - v).abs().max()) for n, v in expected.items())
    assert moved > 1e-3
