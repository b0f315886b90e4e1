"""LightningModules as other projects ship them: Lightning's demos, pytorch-forecasting."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from lightning.pytorch.demos import BoringModel, DemoModel, LightningLSTM, LightningTransformer, SimpleLSTM, Transformer
from lightning.pytorch.demos.boring_classes import ManualOptimBoringModel
from pytorch_forecasting import NaNLabelEncoder, QuantileLoss, TemporalFusionTransformer, TimeSeriesDataSet
from torch import nn

from tests.compatibility.case import SAMPLES, Case, Fisher
from tests.reference.samples import to_double

WORDS, LENGTH = 12, 5


def vectors():
    return [torch.randn(32) for _ in range(SAMPLES)]


def towards_ones(module, batch):
    return (module(batch) - 1).pow(2).mean()


def summed(module, batch):
    return torch.relu(module.l1(batch)).sum()


def ones_as_targets(samples):
    inputs = torch.stack(samples)
    return inputs, torch.ones(len(samples), 2)


def squared(outputs, targets):
    return (outputs - targets).pow(2).mean(1)


def outputs_summed(outputs, targets):
    return outputs.sum(1)


class Translator(LightningTransformer):
    """Smaller, and without its download."""

    def __init__(self):
        super().__init__(WORDS)
        self.model = Transformer(WORDS, ninp=16, nhid=16, nlayers=1)

    def prepare_data(self):
        pass


class StatefulLSTM(LightningLSTM):
    """Carries its hidden state from batch to batch; smaller, and without its download."""

    def __init__(self):
        super().__init__(WORDS)
        self.model = SimpleLSTM(WORDS, ninp=8, nhid=8, nlayers=1, dropout=0.0)

    def prepare_data(self):
        pass


def sequences():
    words = [torch.randint(WORDS, (LENGTH + 1,)) for _ in range(SAMPLES)]
    return [(line[:-1], line[1:]) for line in words]


def translation_loss(module, batch):
    return F.nll_loss(module(*batch), batch[1].flatten())


def both_as_inputs(samples):
    source, target = (torch.stack(part) for part in zip(*samples, strict=True))
    return (source, target), target


class ByClass(nn.Module):
    """Samples first and classes second again: the demo flattens them."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, source, target):
        return self.module(source, target).view(*target.shape, WORDS).transpose(1, 2)


@functools.cache
def sales():
    """Three series of a sine with noise, encoders of 6 steps, 2 steps to forecast."""
    time = np.tile(np.arange(20), 3)
    noise = np.random.default_rng(0).normal(size=60)
    frame = pd.DataFrame({"time": time, "shop": np.repeat(["a", "b", "c"], 20), "sold": np.sin(time / 3) + 0.3 * noise})
    return TimeSeriesDataSet(
        frame,
        time_idx="time",
        target="sold",
        group_ids=["shop"],
        min_encoder_length=6,
        max_encoder_length=6,
        max_prediction_length=2,
        static_categoricals=["shop"],
        time_varying_known_reals=["time"],
        time_varying_unknown_reals=["sold"],
        categorical_encoders={"shop": NaNLabelEncoder()},
    )


def forecaster():
    return TemporalFusionTransformer.from_dataset(
        sales(),
        hidden_size=4,
        attention_head_size=2,
        hidden_continuous_size=2,
        dropout=0.1,
        loss=QuantileLoss([0.1, 0.5]),
        optimizer="sgd",
        learning_rate=[0.01, 0.001],
        output_size=2,
        log_interval=-1,
    )


def windows():
    return [sales()[2 * i] for i in range(SAMPLES)]


def quantile_loss(module, batch):
    x, (y, _) = to_double(batch)
    return pinball(module(x)["prediction"], y).mean()


def forecast_pair(samples):
    x, (y, _) = sales()._collate_fn(samples)
    return x, y


class Forecast(nn.Module):
    """Dict of inputs to quantiles, for the metric."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, **x):
        return self.module(x)["prediction"]


def pinball(prediction, target):
    errors = target.unsqueeze(-1) - prediction
    quantiles = errors.new_tensor([0.1, 0.5])
    return 2 * torch.maximum((quantiles - 1) * errors, quantiles * errors).mean((1, 2))


CASES = [
    Case(
        "BoringModel, a dict from training_step",
        "Lightning's demos",
        BoringModel,
        vectors,
        towards_ones,
        fisher=Fisher(ones_as_targets, loss_fn=squared),
        regularizer={"start": "first_lr_drop"},
    ),
    Case(
        "ManualOptimBoringModel",
        "Lightning's demos",
        ManualOptimBoringModel,
        vectors,
        towards_ones,
        fisher=Fisher(ones_as_targets, loss_fn=squared),
        oracle={"scheduler": None},
    ),
    Case(
        "DemoModel, a summed loss",
        "Lightning's demos",
        lambda: DemoModel(out_dim=60, learning_rate=1e-3),
        vectors,
        summed,
        fisher=Fisher(ones_as_targets, loss_fn=outputs_summed),
        tolerance=1e-10,
    ),
    Case(
        "LightningTransformer, dropout, nn.Transformer",
        "Lightning's demos",
        Translator,
        sequences,
        translation_loss,
        fisher=Fisher(both_as_inputs, ByClass),
    ),
    Case(
        "Temporal Fusion Transformer, dict batches, own list of outputs",
        "pytorch-forecasting",
        forecaster,
        windows,
        quantile_loss,
        sales()._collate_fn,
        Fisher(forecast_pair, Forecast, pinball),
        {"start": "first_lr_drop"},
    ),
]
REFUSED = [
    Case(
        "LightningLSTM, hidden state carried from batch to batch",
        "Lightning's demos",
        StatefulLSTM,
        sequences,
        refused="runs on parts of a batch.*keep no state from batch to batch",
        why="the state of a whole batch doesn't fit its parts",
    ),
]
