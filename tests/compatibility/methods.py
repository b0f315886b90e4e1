"""The methods with extra passes, and what is checked of each: a column and a row of the table."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_fisher import (
    FisherPenalty,
    FisherRegularizer,
    GradientNormPenalty,
    JacobianPenalty,
    SharpnessAware,
)
from tests.callbacks.conftest import Recorder
from tests.callbacks.tiny import Classifier, conv_bn_net, image_batches, loader, mlp, multi_step, seeded, sgd
from tests.processes import run_ranks
from tests.reference import method_training as reference

BATCHES = image_batches([16] * 5)  # one more than is accumulated
EPOCHS = 2
TOLERANCE = 1e-11  # of each tensor's largest entry
LABELS = "lightning_fisher.callbacks.fisher_penalty.draw_labels"


@dataclass(frozen=True)
class Method:
    """A column.

    Attributes:
        name: Its heading.
        make: The callback, with further options.
        nothing: The callbacks with which nothing is to change: parameter 0, and one whose passes run and vanish.
        oracle: ``(net, x, y) → gradients``.
        manual: Whether it works in manual optimization.
    """

    name: str
    make: Callable[..., Callback]
    nothing: tuple[Callable[[], Callback], ...]
    oracle: Callable[[nn.Module, Tensor, Tensor], Any]
    manual: bool = True


TINY = 1e-30  # vanishes in float32
METHODS = (
    Method(
        "`FisherRegularizer`",
        functools.partial(FisherRegularizer, 50.0, num_sub_batches=4, start=0),
        (
            lambda: FisherRegularizer(0.0, num_sub_batches=4, start=0),
            lambda: FisherRegularizer(TINY, num_sub_batches=4, start=0),
        ),
        reference.with_difference(50.0, alpha=1e-4, num_sub_batches=4, difference="backward", step="fixed"),
    ),
    Method(
        "central, normalized",
        functools.partial(
            FisherRegularizer, 5.0, 0.01, 4, start=0, difference="central", step="normalized", gradient="full"
        ),
        (
            lambda: FisherRegularizer(0.0, 0.01, 4, start=0, difference="central", step="normalized"),
            lambda: FisherRegularizer(TINY, 0.01, 4, start=0, difference="central", step="normalized"),
        ),
        reference.with_difference(5.0, alpha=0.01, num_sub_batches=4, difference="central", step="normalized"),
    ),
    Method(
        "`SharpnessAware`",
        functools.partial(SharpnessAware, 0.2),
        (lambda: SharpnessAware(0.0), lambda: SharpnessAware(0.2, weight=TINY, gradient="full")),
        reference.with_sharpness(rho=0.2),
    ),
    Method(
        "ASAM",
        functools.partial(SharpnessAware, 1.0, adaptive=True, eta=0.01),
        (
            lambda: SharpnessAware(0.0, adaptive=True),
            lambda: SharpnessAware(1.0, adaptive=True, weight=TINY, gradient="full"),
        ),
        reference.with_sharpness(rho=1.0, adaptive=True, eta=0.01),
    ),
    Method(
        "m-SAM",
        functools.partial(SharpnessAware, 0.2, num_sub_batches=4),
        (
            lambda: SharpnessAware(0.0, num_sub_batches=4),
            lambda: SharpnessAware(0.2, num_sub_batches=4, weight=TINY, gradient="full"),
        ),
        reference.with_sharpness(rho=0.2, parts=4),
    ),
    Method(
        "`GradientNormPenalty`",
        functools.partial(GradientNormPenalty, 0.2, 0.7),
        (
            lambda: GradientNormPenalty(coefficient=0.0),
            lambda: GradientNormPenalty(coefficient=TINY, gradient="full"),
        ),
        reference.with_gradient_norm(radius=0.2, coefficient=0.7),
    ),
    Method(
        "`FisherPenalty`",
        functools.partial(FisherPenalty, 0.5, step=0.1),
        (lambda: FisherPenalty(0.0), lambda: FisherPenalty(TINY)),
        reference.with_fisher_penalty(0.5, 0.1),
    ),
    Method(
        "`JacobianPenalty`",
        functools.partial(JacobianPenalty, 0.05, None),
        (lambda: JacobianPenalty(0.0), lambda: JacobianPenalty(TINY, None)),
        reference.with_jacobian(0.05),
        manual=False,
    ),
)


class ByHand(Classifier):
    """The same in manual optimization."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self(x), y))
        optimizer.step()


def fit(
    *callbacks: Callback,
    net: Callable[[], nn.Module] = mlp,
    module: Any = None,
    batches: Any = BATCHES,
    seed: int = 3,
    **options: Any,
) -> Recorder:
    """Train on the same batches every epoch."""
    recorder = Recorder()
    with (
        tempfile.TemporaryDirectory() as folder,
        torch.random.fork_rng(devices=[]),
        mock.patch(LABELS, reference.other_labels),
    ):
        quiet: dict[str, Any] = {
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
            "default_root_dir": folder,
            "max_epochs": EPOCHS,
            "use_distributed_sampler": False,
        }
        path = options.pop("ckpt_path", None)
        trainer = Trainer(callbacks=[*callbacks, recorder], **quiet | options)
        torch.manual_seed(seed)
        trainer.fit(module or Classifier(seeded(net), scheduler=multi_step(1)), loader(batches), ckpt_path=path)
    return recorder


def error(states: Any, expected: Any, prefix: str = "net.") -> float:
    """Largest difference to the oracle's states, of each tensor's largest entry."""
    assert len(states) == len(expected)
    return max(
        ((got[prefix + name].double() - want).abs().max() / want.abs().max().clamp_min(1e-30)).item()
        for got, wanted in zip(states, expected, strict=True)
        for name, want in wanted.items()
    )


def oracle(method: Method, **options: Any) -> Any:
    return reference.train(seeded(mlp), BATCHES, method.oracle, weight_decay=1e-3, **options)


def plain_module(kind: Any = Classifier) -> Any:
    return kind(seeded(mlp), optimizer=sgd)


def zero_changes_nothing(method: Method) -> str:
    """Bit for bit: weights, buffers, outputs; clipped, two batches a step, with batch-norm."""
    options = {"net": conv_bn_net, "accumulate_grad_batches": 2, "gradient_clip_val": 0.3}
    expected = fit(**options)
    for make in method.nothing:
        got = fit(make(), **options)
        for state, wanted in zip(got.states, expected.states, strict=True):
            assert all(torch.equal(state[name], wanted[name]) for name in wanted)
        if make is method.nothing[0] or method.manual:
            assert [o["loss"].item() for o in got.outputs] == [o["loss"].item() for o in expected.outputs]
    return "bit-identical"


def equals_the_formula(method: Method) -> str:
    """Every weight after every batch."""
    got = fit(method.make(), module=plain_module(), precision="64-true")
    found = error(got.states, oracle(method, epochs=EPOCHS))
    assert found < TOLERANCE, found
    return "equal"


def accumulates_and_clips(method: Method) -> str:
    """Four batches a step, the last one alone; the norm of the gradient limited."""
    got = fit(
        method.make(),
        module=plain_module(),
        precision="64-true",
        accumulate_grad_batches=4,
        gradient_clip_val=0.3,
    )
    # The step of an epoch's last batch alone is divided by 4 too, as Lightning does.
    expected = oracle(method, epochs=EPOCHS, accumulate=4, clip_norm=0.3)
    found = error(got.states, expected)
    assert found < TOLERANCE, found
    return "equal"


def mixed_precision(method: Method) -> str:
    """``bf16-mixed``: the method's share of the first step is that of float64 up to float32's rounding."""
    options = {"batches": BATCHES[:1], "max_epochs": 1, "precision": "bf16-mixed"}

    def kind() -> Any:
        return Classifier(seeded(mlp), optimizer=functools.partial(torch.optim.SGD, lr=1.0))

    def gradient(*callbacks: Callback) -> Tensor:
        state = fit(*callbacks, module=kind(), **options).states[0]
        before = dict(kind().named_parameters())
        return torch.cat([(before[n] - state[n]).detach().double().flatten() for n in before])

    make, formula = method.make, method.oracle
    if method.name == "`JacobianPenalty`":  # a weight that stands out of bf16's rounding
        make, formula = functools.partial(JacobianPenalty, 5.0, None), reference.with_jacobian(5.0)
    got, half = gradient(make()), gradient()
    net = seeded(mlp).double()
    x, y = BATCHES[0]
    total = torch.cat([g.flatten() for g in formula(net, x.double(), y)])
    plain = torch.autograd.grad(F.cross_entropy(net(x.double()), y), list(net.parameters()))
    whole = isinstance(make(), (SharpnessAware, GradientNormPenalty))  # both passes in float32
    found, wanted = (got, total) if whole else (got - half, total - torch.cat([g.flatten() for g in plain]))
    error = float((found - wanted).norm() / wanted.norm())
    if method.name == "`JacobianPenalty`":  # a term of the loss, in the precision of the loss
        assert error < 0.05, error
        return "as the loss"
    assert error < 1e-2, error
    return "float32"


def resumes(method: Method) -> str:
    """Stopped in the middle of an epoch: every weight after every batch as uninterrupted."""
    with tempfile.TemporaryDirectory() as folder:
        save = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)
        equal = BATCHES[:1] * 5  # Lightning restarts the loader
        whole = fit(method.make(), save, module=plain_module(), batches=equal)
        path = str(Path(folder) / "step=7.ckpt")
        resumed = fit(method.make(), module=plain_module(), batches=equal, ckpt_path=path)
    for state, wanted in zip(resumed.states, whole.states[7:], strict=True):
        assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    return "bit-identical"


def manual_optimization(method: Method) -> str:
    """The same weights where the step calls backward and the optimizer itself."""
    if not method.manual:
        with pytest.raises(ValueError, match="automatic optimization"):
            fit(method.make(), module=plain_module(ByHand))
        return "refused"
    got = fit(method.make(), module=plain_module(ByHand), precision="64-true")
    found = error(got.states, oracle(method, epochs=EPOCHS))
    assert found < TOLERANCE, found
    return "equal"


def two_processes(method: Method) -> str:
    """Every weight after every batch as on one process with the whole batches; the processes agree bit for bit."""
    ranks = _ranks()
    states = [rank[method.name] for rank in ranks]
    for first, second in zip(*states, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)
    found = error(states[0], oracle(method, epochs=EPOCHS))
    assert found < TOLERANCE, found
    return "equal"


@functools.cache
def _ranks() -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        children = run_ranks("tests.compatibility.methods:worker", 2, Path(folder), folder)
        assert [child.code for child in children] == [0, 0], "\n".join(child.output[-3000:] for child in children)
        return [torch.load(Path(folder) / f"rank{rank}.pt") for rank in range(2)]


def worker(rank: int, folder: str) -> None:
    """One of two processes: every method on its half of every batch."""
    from lightning.pytorch.strategies import DDPStrategy

    torch.set_num_threads(1)
    halves = [tuple(t.tensor_split(2)[rank] for t in batch) for batch in BATCHES]
    states = {}
    for method in METHODS:
        strategy = DDPStrategy(process_group_backend="gloo")
        options = {"devices": 2, "strategy": strategy, "precision": "64-true"}
        states[method.name] = fit(method.make(), module=plain_module(), batches=halves, **options).states
    torch.save(states, Path(folder) / f"rank{rank}.pt")


CHECKS = {
    "parameter 0": zero_changes_nothing,
    "the formula": equals_the_formula,
    "accumulation, clipping": accumulates_and_clips,
    "bf16-mixed": mixed_precision,
    "resumed": resumes,
    "manual optimization": manual_optimization,
    "two processes": two_processes,
}


@functools.cache
def outcome(check: str, method: Method) -> str:
    """What the table says; each check runs once."""
    return CHECKS[check](method)
