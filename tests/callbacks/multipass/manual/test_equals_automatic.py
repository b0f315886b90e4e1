"""The same training in both modes of Lightning gives the same bits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_fisher import FisherRegularizer
from tests.callbacks.tiny import Classifier, conv_bn_net, image_batches, seeded

BATCHES = image_batches([16] * 4)


def noisy_net():
    return nn.Sequential(conv_bn_net()[:6], nn.Dropout(0.5), nn.Linear(16, 3))


class Drawing(Classifier):
    """Batch-norm, dropout, a counter, a generator of its own and a number that decays."""

    def __init__(self, manual):
        super().__init__(seeded(noisy_net))
        self.automatic_optimization = not manual
        self.noise, self.scale = torch.Generator().manual_seed(0), 1.0

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.scale *= 0.9
        loss = super().training_step((x + self.scale * torch.randn(x.shape, generator=self.noise).to(x), y), batch_idx)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
@pytest.mark.parametrize("options", [{}, {"perturbed": 2}, {"every_n_steps": 2}, {"start": 99}])
def test_bit_for_bit(fit, precision, options):
    runs = []
    for manual in (False, True):
        torch.manual_seed(0)
        regularizer = FisherRegularizer(50.0, num_sub_batches=4, **{"start": 0, **options})
        runs.append(fit(Drawing(manual), BATCHES, regularizer, precision=precision))
    for a, b in zip(runs[0].states, runs[1].states, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in b)
    assert runs[0].trainer.callback_metrics.keys() == runs[1].trainer.callback_metrics.keys()
