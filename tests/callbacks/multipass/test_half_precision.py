"""Half-precision tensors: promoted where training relies on autocast, refused between the weights and the loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_fisher import FisherRegularizer
from tests.callbacks.tiny import Classifier, image_batches, mlp, seeded

BATCHES = image_batches([16] * 3)


class Encoded(Classifier):
    """A frozen encoder in half precision in front of the network."""

    def __init__(self, kind="linear", dtype=torch.bfloat16):
        super().__init__(seeded(mlp))
        self.kind = kind
        layers = {
            "linear": lambda: nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6)),
            "conv": lambda: nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1)),
            "lstm": lambda: nn.LSTM(6, 6, batch_first=True),
        }
        self.encoder = seeded(layers[kind]).to(dtype).requires_grad_(False)

    def forward(self, x):
        if self.kind == "lstm":
            return self.net(self.encoder(x[:, 0].to(self.encoder.weight_ih_l0.dtype))[0][:, None])
        return self.net(self.encoder(x))


@pytest.mark.parametrize("kind", ["linear", "conv", "lstm"])
@pytest.mark.parametrize("start", [0, 99])
def test_a_frozen_encoder_that_relies_on_autocast(fit, memory_logger, kind, start):
    """Trains, before the switch bit for bit; the penalty is that of the encoder in float32 to its rounding."""
    plain = fit(Encoded(kind), BATCHES, precision="bf16-mixed")
    regularizer = FisherRegularizer(1e-30, num_sub_batches=4, start=start)
    got = fit(Encoded(kind), BATCHES, regularizer, precision="bf16-mixed", logger=memory_logger)
    for a, b in zip(got.states, plain.states, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in b)
    if start == 0:
        found = memory_logger.series("fisher/penalty")[0]
        memory_logger.rows = {}
        exact = Encoded(kind).float()
        fit(exact, BATCHES[:1], regularizer, precision="64-true", logger=memory_logger)
        assert found == pytest.approx(memory_logger.series("fisher/penalty")[0], rel=2e-2)


def test_inputs_in_half_precision(fit, memory_logger):
    halves = [(x.bfloat16(), y) for x, y in BATCHES]
    regularizer = FisherRegularizer(5.0, num_sub_batches=4, start=0)
    fit(Classifier(seeded(mlp)), halves, regularizer, precision="bf16-mixed", logger=memory_logger)
    found = memory_logger.series("fisher/penalty")[0]
    memory_logger.rows = {}
    doubles = [(x.double(), y) for x, y in halves]
    fit(Classifier(seeded(mlp)), doubles, regularizer, precision="64-true", logger=memory_logger)
    assert found == pytest.approx(memory_logger.series("fisher/penalty")[0], rel=1e-3)


class Adapter(nn.Module):
    """Float32 adapters around a frozen base in half precision."""

    def __init__(self, dtype):
        super().__init__()
        self.base = nn.Linear(8, 8).to(dtype).requires_grad_(False)
        self.down, self.up = nn.Linear(8, 2), nn.Linear(2, 8)

    def forward(self, x):
        return self.base(x.to(self.base.weight.dtype)).to(x.dtype) + self.up(self.down(x))


class Between(Classifier):
    """Half precision between the first layer and the loss."""

    def __init__(self, how):
        super().__init__(seeded(mlp))
        self.how, self.adapter = how, seeded(lambda: Adapter(torch.bfloat16))

    def forward(self, x):
        h = self.net[2](self.net[1](self.net[0](x)))
        if self.how == "frozen base":
            h = self.adapter(h)
        elif self.how == "cast":
            h = h.half().float()
        else:
            h = Rounded.apply(h).float()
        return self.net[3](h)

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.bfloat16()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.float()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("how", ["frozen base", "cast", "function"])
@pytest.mark.parametrize("start", [0, 99])
def test_noise_between_the_weights_and_the_loss_is_refused(fit, how, precision, start):
    with pytest.raises(ValueError, match="finite difference is noise") as caught:
        fit(Between(how), BATCHES, FisherRegularizer(num_sub_batches=4, start=start), precision=precision)
    assert "\n" not in str(caught.value)


def test_half_precision_beside_the_loss_is_none_of_our_business(fit):
    class Watches(Classifier):
        def training_step(self, batch, batch_idx):
            logits = self(batch[0])
            self.log("mean", logits.half().float().mean())
            return F.cross_entropy(logits, batch[1])

    fit(Watches(seeded(mlp)), BATCHES, FisherRegularizer(num_sub_batches=4, start=0))


class Reads(Classifier):
    """What frozen half-precision layers and buffers make of the inputs, by autocast, goes into the network."""

    def __init__(self, kind):
        super().__init__(seeded(mlp))
        self.kind = kind
        make = {
            "attention": lambda: nn.MultiheadAttention(6, 2, batch_first=True),
            "embedding": lambda: nn.Embedding(6, 6),
            "gru": lambda: nn.GRU(6, 6, batch_first=True),
        }
        self.layer = seeded(make.get(kind, nn.Identity)).bfloat16().requires_grad_(False)
        torch.manual_seed(0)
        self.register_buffer("texts", torch.randn(3, 3).bfloat16())

    def forward(self, x):
        rows = x[:, 0]
        if self.kind == "attention":
            return self.net(self.layer(rows, rows, rows)[0][:, None])
        if self.kind == "embedding":
            return self.net(self.layer(rows.argmax(2))[:, None])
        if self.kind == "gru":
            return self.net(self.layer(rows.to(self.layer.weight_ih_l0.dtype))[0][:, None])
        logits = self.net(x)  # behind the weights: products with constants that autocast would round
        if self.kind == "texts":
            return 10 * F.normalize(logits, dim=1) @ F.normalize(self.texts, dim=1).T
        return -torch.cdist(logits, self.texts)


@pytest.mark.parametrize("kind", ["attention", "embedding", "gru", "texts", "prototypes"])
def test_layers_and_buffers_that_rely_on_autocast(fit, memory_logger, kind):
    """The penalty is that of float64, up to the rounding of what is frozen."""
    penalties = []
    for precision in ("bf16-mixed", "64-true"):
        memory_logger.rows, module = {}, Reads(kind)
        data = BATCHES[:1]
        if precision == "64-true":
            module, data = module.double(), [(x.double(), y) for x, y in data]
        fit(module, data, FisherRegularizer(1.0, num_sub_batches=4, start=0), precision=precision, logger=memory_logger)
        penalties.append(memory_logger.series("fisher/penalty")[0])
    assert penalties[0] == pytest.approx(penalties[1], rel=3e-2)


def test_a_loss_in_half_precision_is_said_to_round_the_logged_penalty(fit):
    """Its gradient isn't rounded."""

    class Rounds(Classifier):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch[0]), batch[1]).bfloat16()

    weights = []
    for cls in (Rounds, Classifier):
        module = cls(seeded(mlp))
        options = {"start": 0, "num_sub_batches": 4}
        if cls is Rounds:
            with pytest.warns(UserWarning, match=r"Rounds returns a loss in torch\.bfloat16: the penalty"):
                fit(module, BATCHES[:1], FisherRegularizer(100.0, **options))
        else:
            fit(module, BATCHES[:1], FisherRegularizer(100.0, **options))
        weights.append(module.net[1].weight.detach())
    assert torch.allclose(*weights, rtol=1e-5, atol=1e-7)
