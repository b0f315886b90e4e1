"""What the callbacks print never ends a training, in a program of the user's own."""

from __future__ import annotations

import io
import sys

import lightning as L
import pytest
import torch

from lightning_fisher.announcements import announce
from lightning_fisher.callbacks import FisherRegularizer


class Closed(io.TextIOWrapper):
    """A pipe that nobody reads any more."""

    def write(self, text: str) -> int:
        raise BrokenPipeError("gone")


class Classifier(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(4, 2)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def stream(kind: str) -> io.TextIOWrapper:
    if kind == "closed pipe":
        return Closed(io.BytesIO(), encoding="utf-8")
    found = io.TextIOWrapper(io.BytesIO(), encoding="ascii" if kind == "ascii" else "utf-8", write_through=True)
    if kind == "closed file":
        found.close()
    return found


@pytest.mark.parametrize("kind", ["ascii", "closed pipe", "closed file"])
def test_the_switch_is_passed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = stream(kind)
    data = torch.utils.data.TensorDataset(torch.randn(16, 4), torch.randint(2, (16,)))
    regularizer = FisherRegularizer(beta=1.0, num_sub_batches=2, start=1)
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[regularizer],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    monkeypatch.setattr(sys, "stdout", out)
    trainer.fit(Classifier(), torch.utils.data.DataLoader(data, batch_size=8))
    monkeypatch.undo()
    assert regularizer.switch_step == 2
    if kind == "ascii":
        assert b"regularized phase begins after 1 epochs" in out.buffer.getvalue()
        assert b"beta = 1, alpha = 0.0001" in out.buffer.getvalue()


def test_letters_stay_where_they_can(capsys: pytest.CaptureFixture[str]) -> None:
    class Printer:
        def print(self, *args: object) -> None:
            print(*args)

    announce(Printer(), "β = 1")
    assert capsys.readouterr().out == "β = 1\n"
