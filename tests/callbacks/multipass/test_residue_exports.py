"""What could be exported or compiled before training still can."""

from __future__ import annotations

import pytest
import torch

from lightning_fisher import FisherRegularizer
from tests.callbacks.leftovers import BATCHES, monitor, regularizer
from tests.callbacks.tiny import Classifier, mlp, seeded


def exported(module, x):
    return torch.export.export(module, (x,), strict=False).module()(x)


def scripted(module, x):
    return torch.jit.script(module)(x)


def traced(module, x):
    return torch.jit.trace(module, x)(x)


def compiled(module, x):
    return torch.compile(module, backend="eager", fullgraph=True)(x)


def through_onnx(module, x):
    """Run by ONNX's reference evaluator."""
    pytest.importorskip("onnxscript")
    onnx = pytest.importorskip("onnx")
    program = torch.onnx.export(module, (x,), dynamo=True, verbose=False)
    inputs = {program.model.graph.inputs[0].name: x.numpy()}
    (result,) = onnx.reference.ReferenceEvaluator(program.model_proto).run(None, inputs)
    return torch.from_numpy(result)


def fitted(fit, *callbacks):
    module = Classifier(seeded(mlp))
    fit(module, BATCHES, *callbacks)
    return module.eval()


@pytest.mark.parametrize("way", [exported, scripted, traced, compiled, through_onnx], ids=lambda way: way.__name__)
@pytest.mark.parametrize("part", ["network", "module"])
@pytest.mark.filterwarnings("ignore")
def test_what_could_be_exported_still_can(fit, way, part):
    """The network and the LightningModule give, exported, what they give."""
    x = BATCHES[0][0]
    module = fitted(fit, regularizer(), monitor())
    module = module.net if part == "network" else module
    assert torch.allclose(way(module, x), module(x), rtol=1e-5, atol=1e-6)


class Silent(Classifier):
    """Logs nothing: compiling Lightning's logging takes seconds."""

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])


def test_a_compiled_lightning_module(fit):
    """Trained like the plain one; its compiled `training_step` is wrapped."""
    plain, module = Silent(seeded(mlp)), Silent(seeded(mlp))
    for each in (plain, torch.compile(module, backend="eager")):
        fit(each, BATCHES[:2], FisherRegularizer(5.0, num_sub_batches=2, start=0))
    for a, b in zip(plain.parameters(), module.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)
