"""Modules that return ``[N]``, ``[N, …]``, tuples, dicts, dataclasses and what transformers returns."""

from __future__ import annotations

from collections import UserDict, namedtuple
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from lightning_fisher.functional import (
    fisher_log_det,
    gram_matrix,
    hessian_frobenius_norm,
    penalty_gradient,
    regularized_gradient,
    robustness,
)
from tests.functional.compare import gradient_error, gram_error
from tests.reference import plain

N = 6
X = torch.randn(N, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 1, 0, 2])
REAL = torch.randn(N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
PARTS = [slice(0, 2), slice(2, 4), slice(4, 6)]


@dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor
    name: str = "a"
    nothing: Any = None


@dataclass(frozen=True)
class Nested:
    parts: dict
    first: Output = field(default=None)  # type: ignore[assignment]


Pair = namedtuple("Pair", "logits hidden")


class Cache:
    """An object that nobody can take apart."""

    def __init__(self, hidden):
        self.hidden = hidden


class Net(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.l, self.o = nn.Linear(6, 5).double(), nn.Linear(5, 3).double()
        self.outputs = outputs

    def forward(self, x):
        hidden = torch.tanh(self.l(x))
        return self.outputs(self.o(hidden), hidden)


def structured(get):
    return lambda outputs, y: cross_entropy(get(outputs), y)


FIRST = lambda z, h: z[:, 0]  # noqa: E731
KINDS = {
    "[N], squared": (Net(FIRST), mse_loss, REAL),
    "[N], binary": (Net(FIRST), binary_cross_entropy_with_logits, (REAL > 0).double()),
    "[N], one a sample": (Net(FIRST), lambda o, y: (o - y).abs(), REAL),
    "[N, 1]": (Net(lambda z, h: z[:, :1]), mse_loss, REAL.unsqueeze(1)),
    "[N, 3, 1]": (Net(lambda z, h: z.unsqueeze(2)), cross_entropy, Y.unsqueeze(1)),
    "tuple": (Net(lambda z, h: (z, h)), structured(lambda o: o[0] * o[1][:, :3]), Y),
    "list": (Net(lambda z, h: [z, h]), structured(lambda o: o[0] * o[1][:, :3]), Y),
    "named tuple": (Net(Pair), structured(lambda o: o.logits + o.hidden[:, :3]), Y),
    "dict": (Net(lambda z, h: {"z": z, "h": h, "n": 3}), structured(lambda o: o["z"] * o["h"].sum(1, True)), Y),
    "dataclass": (Net(Output), structured(lambda o: o.logits if o.name == "a" else None), Y),
    "frozen dataclass in a dict": (
        Net(lambda z, h: {"out": Nested({"z": z}, Output(h, h))}),
        structured(lambda o: o["out"].parts["z"] + o["out"].first.hidden[:, :3]),
        Y,
    ),
    "mapping": (Net(lambda z, h: UserDict(z=z, h=h)), structured(lambda o: o["z"]), Y),
    "with an object": (Net(lambda z, h: {"z": z, "cache": Cache(h)}), structured(lambda o: o["z"]), Y),
    "with integers": (Net(lambda z, h: (z, z.argmax(1))), structured(lambda o: o[0]), Y),
    "with None": (Net(lambda z, h: (z, None)), structured(lambda o: o[0]), Y),
}


@pytest.mark.parametrize(("module", "loss_fn", "targets"), KINDS.values(), ids=KINDS)
def test_whatever_a_module_returns(module, loss_fn, targets):
    mean = lambda outputs, y: loss_fn(outputs, y).mean()  # noqa: E731
    expected = plain.gram(module, X, targets, N, mean)
    for chunk_size in (None, 4):
        assert gram_error(gram_matrix(module, X, targets, loss_fn=loss_fn, chunk_size=chunk_size), expected) < 1e-9
    value, gradient = plain.penalty(module, X, targets, PARTS, [1 / 3] * 3, 1e-2, mean)
    got, got_gradient = penalty_gradient(module, X, targets, alpha=1e-2, num_sub_batches=3, loss_fn=loss_fn)
    assert got.item() == pytest.approx(value, rel=1e-9)
    assert gradient_error(got_gradient, gradient) < 1e-9
    loss, gradient = plain.value_and_gradient(module, X, targets, mean)
    step = regularized_gradient(module, X, targets, beta=0.0, num_sub_batches=3, loss_fn=loss_fn, gradient="shared")
    assert step.loss.item() == pytest.approx(loss, rel=1e-12)
    assert gradient_error(step.gradient, gradient) < 1e-9
    norm = hessian_frobenius_norm(module, X, targets, loss_fn=loss_fn, num_probes=10**6, chunk_size=4)
    assert norm.value.item() == pytest.approx(plain.hessian(module, X, targets, mean).square().sum().item(), rel=1e-9)


class Squeezed(nn.Module):
    """Loses the dimension of a single sample."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.c, self.o = nn.Conv2d(1, 4, 3).double(), nn.Linear(4, 3).double()

    def forward(self, x):
        return self.o(torch.tanh(self.c(x)).mean((2, 3), keepdim=True).squeeze())


class OneNumber(nn.Module):
    """A regression whose output is squeezed altogether: ``[]`` for a single sample."""

    def __init__(self):
        super().__init__()
        self.net = Net(lambda z, h: z[:, :1])

    def forward(self, x):
        return self.net(x).squeeze()


IMAGES = torch.randn(N, 1, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("chunk_size", [None, 1, 4, 5])
def test_squeezed_outputs(chunk_size):
    module = Squeezed()
    alone = lambda outputs, y: cross_entropy(outputs.reshape(-1, 3), y)  # noqa: E731
    expected = plain.gram(module, IMAGES, Y, N, alone)
    assert gram_error(gram_matrix(module, IMAGES, Y, chunk_size=chunk_size), expected) < 1e-9
    fisher_log_det(module, IMAGES, Y)
    rows = []
    for j in range(N):
        one = IMAGES[j : j + 1]
        jacobian = torch.autograd.functional.jacobian(lambda x: module(x).reshape(3).softmax(0), one)
        rows.append(torch.linalg.matrix_norm(jacobian.reshape(3, -1), 2) ** 2)
    for method in ("exact", "power"):
        got = robustness(module, IMAGES, method=method, tol=1e-7, chunk_size=chunk_size, reduction="none")
        torch.testing.assert_close(got, torch.stack(rows), rtol=1e-6, atol=0)


def test_outputs_squeezed_to_one_number():
    module = OneNumber()
    alone = lambda outputs, y: mse_loss(outputs.reshape(-1), y)  # noqa: E731
    expected = plain.gram(module, X, REAL, N, alone)
    assert gram_error(gram_matrix(module, X, REAL, loss_fn=mse_loss), expected) < 1e-9


def tiny_decoder(kind):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 50, "bos_token_id": None, "eos_token_id": None}
    config = {
        "gpt2": lambda: transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=32, **sizes),
        "llama": lambda: transformers.LlamaConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, **sizes
        ),
        "opt": lambda: transformers.OPTConfig(
            hidden_size=16, ffn_dim=24, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=16, **sizes
        ),
    }[kind]()
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval().double()


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
def test_decoders_with_their_default_cache(kind):
    module = tiny_decoder(kind)
    assert module.config.use_cache
    ids = torch.randint(3, 50, (4, 7), generator=torch.Generator().manual_seed(0))
    loss = lambda o, y: cross_entropy(o.logits[:, :-1].flatten(0, 1), y[:, 1:].flatten())  # noqa: E731
    expected = plain.gram(module, {"input_ids": ids}, ids, 4, loss)
    assert gram_error(gram_matrix(module, {"input_ids": ids}, ids, loss_fn=loss), expected) < 1e-6
    value, gradient = plain.penalty(module, {"input_ids": ids}, ids, PARTS[:2], [0.5] * 2, 1e-2, loss)
    got, got_gradient = penalty_gradient(module, {"input_ids": ids}, ids, alpha=1e-2, num_sub_batches=2, loss_fn=loss)
    assert got.item() == pytest.approx(value, rel=1e-4)
    assert gradient_error(got_gradient, gradient) < 1e-4
