"""After training, however it ends, attributes, hooks, modes, parameters and buffers are what they were."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback

from lightning_fisher import FisherMetric
from tests.callbacks.leftovers import BATCHES, monitor, regularizer, residue
from tests.callbacks.tiny import Classifier, Ledger, loader


def fingerprint(module):
    """Everything a forward pass, a copy or an export could stumble over, of every submodule."""
    found = {}
    for path, submodule in module.named_modules():
        hooks = {name: len(value) for name, value in vars(submodule).items() if name.endswith("hooks")}
        found[path] = (sorted(vars(submodule)), residue(submodule), hooks, submodule.training)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        found[name] = (id(tensor), type(tensor), tensor.dtype, tensor.requires_grad, tensor.is_leaf)
    return found


class Breaks(torch.nn.Module):
    """Fails in the n-th forward pass with sub-batches, or with a whole batch."""

    def __init__(self, net, size, at):
        super().__init__()
        self.net, self.size, self.at, self.calls = net, size, at, Ledger()

    def forward(self, x):
        self.calls.append(len(x))
        if self.calls.count(self.size) == self.at:
            raise ZeroDivisionError
        return self.net(x)


class FailingMetric(FisherMetric):
    """Fails in the second measurement, not in the trial."""

    def update(self, *args):
        if self.update_count > 1:
            raise ZeroDivisionError
        super().update(*args)


@pytest.mark.parametrize(
    "event", ["fit", "fit and validate", "sub-batch fails", "batch fails", "metric fails", "ctrl-c"]
)
@pytest.mark.usefixtures("interruptible")
def test_the_module_is_what_it_was(fit, event):
    """Compared with the module itself before: attributes, hooks, modes, parameters and buffers as objects."""
    size, at = {"sub-batch fails": (2, 3), "batch fails": (8, 3)}.get(event, (0, 99))
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(36), torch.nn.Linear(36, 3))
    module = Classifier(Breaks(net, size, at))
    fit(module, BATCHES[:1])  # Lightning's own attributes
    module.net.calls.clear()
    before = fingerprint(module)

    class Interrupts(Callback):
        def on_after_backward(self, trainer, pl_module):
            if event == "ctrl-c":
                raise KeyboardInterrupt

    callbacks = [regularizer(), monitor(FailingMetric() if event == "metric fails" else None), Interrupts()]
    if event.startswith("fit"):
        got = fit(module, BATCHES, *callbacks)
        if event.endswith("validate"):
            module.validation_step = lambda batch, batch_idx: None
            got.trainer.validate(module, loader(BATCHES), verbose=False)
            del module.validation_step
    else:
        with pytest.raises((ZeroDivisionError, KeyboardInterrupt, SystemExit)):
            fit(module, BATCHES, *callbacks)
    after = fingerprint(module)
    module.train()
    assert {name: value for name, value in after.items() if before[name] != value} == {}
    assert after.keys() == before.keys()
