"""What is recorded, against one float64 backward pass a sample; and that the training doesn't notice."""

from __future__ import annotations

import copy

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_fisher.label_errors import LabelErrorRecorder

INPUTS, LABELS = torch.randn(30, 1, 4, 4, generator=torch.Generator().manual_seed(1)), torch.arange(30) % 3
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Classifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(16, 3)
        )
        self.kept: list[nn.Module] = []

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def on_train_epoch_end(self):
        self.kept.append(copy.deepcopy(self.net))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, [2], 0.5)]


def train(*callbacks, epochs: int = 4, checkpoint=None) -> Classifier:
    module = Classifier()
    torch.manual_seed(3)
    loader = DataLoader(TensorDataset(INPUTS, LABELS), batch_size=10, shuffle=True)
    trainer = Trainer(max_epochs=epochs, callbacks=list(callbacks), accelerator="cpu", **QUIET)
    trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
    return module


def by_hand(net: nn.Module) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Norms, losses and probabilities, sample by sample in float64."""
    net = copy.deepcopy(net).double().eval()
    norms, losses, probabilities = [], [], []
    for image, label in zip(INPUTS.double(), LABELS, strict=True):
        logits = net(image[None])
        loss = -(logits[0, label] - logits[0].exp().sum().log())
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        norms.append(sum((g**2).sum() for g in gradients).sqrt())
        losses.append(loss.detach())
        probabilities.append((logits[0] - logits[0].exp().sum().log()).exp().detach())
    return torch.stack(norms), torch.stack(losses), torch.stack(probabilities)


def test_every_second_epoch_is_recorded_as_by_hand() -> None:
    recorder = LabelErrorRecorder(TensorDataset(INPUTS, LABELS), every_n_epochs=2, batch_size=8, chunk_size=3)
    module = train(recorder)
    scores = recorder.scores()
    assert torch.equal(scores.given_labels, LABELS)
    assert scores.log_norms.shape == (2, 30)
    rates = [0.1, 0.05]  # of the second and the fourth epoch
    assert scores.learning_rates.tolist() == pytest.approx(rates)
    total = 0
    for t, net in enumerate(module.kept[1::2]):
        norms, losses, probabilities = by_hand(net)
        assert torch.allclose(scores.log_norms[t], norms.log(), atol=1e-4)
        assert torch.allclose(scores.losses[t].double(), losses, atol=1e-5)
        total = total + rates[t] * probabilities
    assert torch.allclose(scores.probabilities, total / sum(rates), atol=1e-5)


def test_the_training_is_the_one_without_it() -> None:
    plain, watched = train(), train(LabelErrorRecorder(TensorDataset(INPUTS, LABELS)))
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name


def test_a_resumed_training_goes_on(tmp_path) -> None:
    whole = LabelErrorRecorder(TensorDataset(INPUTS, LABELS))
    train(whole)
    first = LabelErrorRecorder(TensorDataset(INPUTS, LABELS))
    module = train(first, epochs=2)
    module.trainer.save_checkpoint(tmp_path / "half.ckpt")
    second = LabelErrorRecorder(TensorDataset(INPUTS, LABELS))
    train(second, checkpoint=tmp_path / "half.ckpt")
    assert second.scores().log_norms.shape == (4, 30)
    assert torch.equal(second.scores().log_norms[:2], whole.scores().log_norms[:2])
    assert torch.equal(second.scores().given_labels, LABELS)


def test_without_lightning() -> None:
    recorder = LabelErrorRecorder(TensorDataset(INPUTS, LABELS))
    net = Classifier().net.train()
    recorder.record(net, 0.0)
    recorder.record(net, 0.0)
    assert net.training
    assert torch.allclose(recorder.scores().probabilities, by_hand(net)[2], atol=1e-5)
    assert torch.allclose(recorder.scores().score(), by_hand(net)[0].log(), atol=1e-4)


def test_what_does_not_fit_is_refused() -> None:
    data = TensorDataset(INPUTS, LABELS)
    for name in ("every_n_epochs", "batch_size", "chunk_size"):
        with pytest.raises(ValueError, match=f"`{name}` to be an integer of at least 1, but got 0"):
            LabelErrorRecorder(data, **{name: 0})
    with pytest.raises(ValueError, match="at least 3 epochs, but nothing is recorded"):
        LabelErrorRecorder(data, every_n_epochs=3).scores()
    with pytest.raises(ValueError, match=r"logits \[N, K\] for labels \[N\], but got shape \[30, 1, 4, 4\]"):
        LabelErrorRecorder(data).record(nn.Identity(), 0.1)
    with pytest.raises(ValueError, match="give `collate_fn`"):
        LabelErrorRecorder(TensorDataset(INPUTS)).record(nn.Identity(), 0.1)
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", **QUIET)
    with pytest.raises(RuntimeError, match="in one process, but the Trainer has 2"):
        LabelErrorRecorder(data).setup(trainer, Classifier(), "fit")
