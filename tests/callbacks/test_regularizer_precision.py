"""The extra gradient under mixed precision and loss scaling, against float64 at the same alpha."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from lightning_fisher import FisherRegularizer
from tests.callbacks.tiny import Classifier, Ledger, conv_bn_net, image_batches, mlp, seeded
from tests.reference.penalty import penalty

BATCH = image_batches([32])
BETA = 1e3  # makes the extra gradient as large as the plain one, so that a difference of the two shows it


def wide_net():
    """Wide enough for bf16 to destroy the finite difference, with smooth and with kinked parts."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 8, 3, stride=2),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(32, 3),
    )


class Gradients(Classifier):
    """Keeps the gradients every optimizer step would use, and the precision its extra passes run in."""

    def __init__(self, net, scale=1.0):
        super().__init__(net)
        self.scale, self.grads, self.passes = scale, [], Ledger()

    def forward(self, x):
        logits = super().forward(x)
        self.passes.append((len(x), logits.dtype, torch.is_autocast_enabled("cpu")))
        return logits

    def backward(self, loss):
        (loss * self.scale).backward()

    def on_before_optimizer_step(self, optimizer):
        self.grads.append([parameter.grad.double().clone() for parameter in self.parameters()])


def flat(grads):
    return torch.cat([grad.reshape(-1) for grad in grads])


def extra_gradient(fit, net, *, plugin=None, beta=BETA, scale=1.0, alpha=1e-4, **options):
    """What the callback adds to the gradient of the first step: with it minus without it."""
    grads = []
    for callbacks in ((), (FisherRegularizer(beta, alpha=alpha, num_sub_batches=4, start=0),)):
        module = Gradients(seeded(net), scale)
        fit(module, BATCH, *callbacks, **options, **({"plugins": plugin()} if plugin else {}))
        grads.append(flat(module.grads[0]))
    return grads[1] - grads[0], module


def expected(net, alpha=1e-4):
    """``grad R`` in float64."""
    return flat(penalty(seeded(net), *BATCH[0], alpha=alpha, num_sub_batches=4, loss_fn=F.cross_entropy)[1])


def cpu_fp16():
    """What ``16-mixed`` is on a GPU: autocast to float16 with a GradScaler."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))


SETTINGS = {
    "32-true": {"precision": "32-true"},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "16-mixed": {"plugin": cpu_fp16},
}


@pytest.mark.parametrize("alpha", [1e-4, 1e-2])
@pytest.mark.parametrize("net", [wide_net, conv_bn_net, mlp])
@pytest.mark.parametrize("setting", SETTINGS)
def test_extra_gradient_under_mixed_precision(fit, setting, net, alpha):
    """Direction and length of ``beta grad R``: the extra passes run in float32, whatever autocast says."""
    extra, module = extra_gradient(fit, net, alpha=alpha, **SETTINGS[setting])
    want = expected(net, alpha)
    assert torch.dot(extra, want) / (extra.norm() * want.norm()) >= 0.99
    assert (extra.norm() / (BETA * want.norm())).item() == pytest.approx(1, rel=0.05)
    *parts, whole = module.passes
    assert all(size == 8 and dtype == torch.float32 and not autocast for size, dtype, autocast in parts)
    assert len(parts) == 8
    assert whole[2] == (setting != "32-true"), "the full pass keeps the user's precision"


def test_autocast_would_have_destroyed_it():
    """The bound above is worth something: the same difference computed under bf16 is another direction."""
    net, (x, y) = seeded(wide_net).train(), BATCH[0]

    def gradient(part):
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(net(x[part]), y[part])
        return torch.autograd.grad(loss, list(net.parameters()))

    total = 0
    for i in range(4):
        part, weights = slice(8 * i, 8 * i + 8), [p.detach().clone() for p in net.parameters()]
        before = gradient(part)
        with torch.no_grad():
            torch._foreach_add_(list(net.parameters()), before, alpha=-1e-4)
        after = gradient(part)
        with torch.no_grad():
            torch._foreach_copy_(list(net.parameters()), weights)
        total = total + (flat(before) - flat(after)).double() / 4
    want = expected(wide_net)
    assert torch.dot(total, want) / (total.norm() * want.norm()) < 0.9


@pytest.mark.parametrize("scale", [2.0, 1024.0, 65536.0])
def test_loss_scaling_scales_the_extra_gradient(fit, scale):
    """A backward pass of ``s * loss`` gives ``s (grad L + beta grad R)``: a scaler can divide it out."""
    options = {"precision": "64-true"}
    extra, _ = extra_gradient(fit, conv_bn_net, **options)
    scaled, _ = extra_gradient(fit, conv_bn_net, scale=scale, **options)
    torch.testing.assert_close(scaled, scale * extra, rtol=1e-9, atol=1e-12 * scale)


def test_extra_gradient_is_linear_in_beta(fit):
    one, _ = extra_gradient(fit, conv_bn_net, beta=10.0, precision="64-true")
    seven, _ = extra_gradient(fit, conv_bn_net, beta=70.0, precision="64-true")
    torch.testing.assert_close(seven, 7 * one, rtol=1e-8, atol=1e-12)


def test_float32_switches_are_off_in_the_extra_passes_only(fit):
    """TF32 is on by default in cuDNN; the flags can be seen without a GPU."""

    def switches():
        return (
            torch.backends.cudnn.allow_tf32,
            torch.backends.cuda.matmul.allow_tf32,
            torch.get_float32_matmul_precision(),
        )

    class Watches(Classifier):
        def __init__(self):
            super().__init__(seeded(mlp))
            self.seen = Ledger()

        def training_step(self, batch, batch_idx):
            self.seen.append(switches())
            return super().training_step(batch, batch_idx)

    before = switches()
    try:
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("medium")
        set_by_user, module = switches(), Watches()
        fit(module, BATCH, FisherRegularizer(1.0, num_sub_batches=4, start=0))
        assert switches() == set_by_user
        *parts, whole = module.seen
        assert whole == set_by_user
        assert len(parts) == 8
        assert all(seen == (False, False, "highest") for seen in parts), parts
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[2])


class WithoutCudnn(Classifier):
    """A recurrent net's usual detour; the context manager reads the TF32 flags."""

    def training_step(self, batch, batch_idx):
        with torch.backends.cudnn.flags(enabled=False):
            return super().training_step(batch, batch_idx)


def test_cudnn_flags_inside_training_step(fit):
    fit(WithoutCudnn(seeded(mlp)), BATCH, FisherRegularizer(1.0, num_sub_batches=4, start=0))


class CastsItself(Classifier):
    """Enters autocast in its own ``training_step``: no setting of the caller's can switch that off."""

    def training_step(self, batch, batch_idx):
        with torch.autocast("cpu", torch.bfloat16):
            return super().training_step(batch, batch_idx)


def test_autocast_inside_training_step_is_no_silent_noise(fit):
    """Either the extra gradient is right, or the callback says what is wrong."""
    modules = [CastsItself(seeded(wide_net)) for _ in range(2)]
    grads = []
    for module in modules:
        module.on_before_optimizer_step = lambda optimizer, module=module: grads.append(
            flat([parameter.grad.double().clone() for parameter in module.parameters()])
        )
    fit(modules[0], BATCH)
    try:
        fit(modules[1], BATCH, FisherRegularizer(BETA, num_sub_batches=4, start=0))
    except Exception as error:
        assert "autocast" in str(error)  # noqa: PT017
        return
    extra, want = grads[1] - grads[0], expected(wide_net)
    assert torch.dot(extra, want) / (extra.norm() * want.norm()) >= 0.99
