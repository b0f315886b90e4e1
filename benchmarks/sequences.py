"""ξ of networks that are no stacks of convolutions, against the plain loop over single samples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.timing import interleave, rows_of, seconds, threads
from lightning_fisher.functional import gram_matrix

LOOP, FIRST, LATER = "single-sample loop", "Lightning Fisher, first call", "Lightning Fisher"


class Recurrent(nn.Module):
    """An LSTM, of which no layer has a rule."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body, self.head = nn.LSTM(width // 2, width, num_layers=2, batch_first=True), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0][:, -1])


class Shifted(nn.Module):
    """Hugging Face's ``Conv1D``: a linear layer by `torch.addmm`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(0.02 * torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], flat.shape[-1])


class Decoder(nn.Module):
    """A stack of blocks as in GPT-2."""

    def __init__(self, width: int, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "first": nn.LayerNorm(width),
                    "qkv": Shifted(width, 3 * width),
                    "out": Shifted(width, width),
                    "second": nn.LayerNorm(width),
                    "up": Shifted(width, 4 * width),
                    "down": Shifted(4 * width, width),
                }
            )
            for _ in range(depth)
        )
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        count, length, width = x.shape
        for block in self.blocks:
            qkv = block["qkv"](block["first"](x)).view(count, length, 3, self.heads, -1)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + block["out"](attended.transpose(1, 2).reshape(count, length, width))
            x = x + block["down"](F.gelu(block["up"](block["second"](x))))
        return self.head(x[:, -1])


class StateSpace(nn.Module):
    """A selective scan as in Mamba: parameters in a recurrence over time, in Python."""

    def __init__(self, width: int, states: int = 8) -> None:
        super().__init__()
        self.inner = nn.Linear(width, 2 * width, bias=False)
        self.conv = nn.Conv1d(width, width, 4, groups=width, padding=3)
        self.select = nn.Linear(width, 2 * states + 1, bias=False)
        self.step = nn.Parameter(torch.zeros(width))
        self.log_a = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(width, 1))
        self.skip = nn.Parameter(torch.ones(width))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        u, gate = self.inner(x).chunk(2, -1)
        u = F.silu(self.conv(u.transpose(1, 2))[..., :length].transpose(1, 2))
        states = self.log_a.shape[1]
        delta, b, c = self.select(u).split([1, states, states], -1)
        delta = F.softplus(delta + self.step)
        a = -self.log_a.exp()
        state = x.new_zeros(len(x), u.shape[-1], states)
        outputs = []
        for t in range(length):
            state = (delta[:, t, :, None] * a).exp() * state + (delta[:, t] * u[:, t]).unsqueeze(-1) * b[:, t, None]
            outputs.append((state * c[:, t, None]).sum(-1))
        y = torch.stack(outputs, 1) + u * self.skip
        return self.head((y * F.silu(gate)).mean(1))


@dataclass(frozen=True)
class Sequence:
    """A network and the batch it takes."""

    title: str
    make: Callable[[int], nn.Module]
    width: int
    features: int
    length: int
    samples: int = 64

    def prepared(self, device: torch.device) -> tuple[nn.Module, Tensor, Tensor]:
        """The network in evaluation mode with the weights of a seed, inputs and labels."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = self.make(self.width).to(device).eval()
            x = torch.randn(self.samples, self.length, self.features, device=device)
            return net, x, torch.randint(3, (self.samples,), device=device)


SEQUENCES = (
    Sequence("LSTM 2×512", Recurrent, 512, 256, 6),
    Sequence("GPT-2-like, 4 blocks of width 128 by addmm", Decoder, 128, 128, 32),
    Sequence("Mamba-like scan, width 64", StateSpace, 64, 64, 32),
)
QUICK_SEQUENCES = (
    Sequence("LSTM 2×8 (quick)", Recurrent, 8, 4, 3, 6),
    Sequence("GPT-2-like, width 8 (quick)", Decoder, 8, 8, 4, 6),
    Sequence("Mamba-like scan, width 8 (quick)", StateSpace, 8, 8, 4, 6),
)


def times(
    sequences: Iterable[Sequence], *, rounds: int, thread_counts: Iterable[int], device: torch.device
) -> list[dict[str, Any]]:
    """The loop, a first call on a copy that nothing is known of, and later calls."""
    rows = []
    for sequence in sequences:
        net, x, y = sequence.prepared(device)
        parameters = list(net.parameters())

        def loop(net: nn.Module = net, x: Tensor = x, y: Tensor = y, parameters: Any = parameters) -> Tensor:
            found = [
                torch.autograd.grad(F.cross_entropy(net(x[j : j + 1]), y[j : j + 1]), parameters) for j in range(len(y))
            ]
            jacobian = torch.stack([torch.cat([g.flatten() for g in gradients]) for gradients in found])
            return jacobian @ jacobian.T

        calls: dict[str, Callable[[], Tensor]] = {
            LOOP: loop,
            FIRST: lambda net=net, x=x, y=y: gram_matrix(copy.deepcopy(net), x, y),
            LATER: lambda net=net, x=x, y=y: gram_matrix(net, x, y),
        }
        expected = loop()
        for count in thread_counts:
            with threads(count):
                samples = interleave(calls, clock=lambda call: seconds(call, device), rounds=rounds)
            error = ((calls[LATER]() - expected).norm() / expected.norm()).item()
            for row in rows_of(samples, LOOP):
                rows.append({"network": sequence.title, "threads": count, "error": error} | row)
    return rows
