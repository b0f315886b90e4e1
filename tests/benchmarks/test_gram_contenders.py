"""What is timed as ξ is ξ."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch

from benchmarks import gram
from benchmarks.contenders_gram import BASELINE, CONTENDERS, OURS
from benchmarks.exact import exact_gram
from benchmarks.networks import QUICK, make, random_batch
from benchmarks.process import FailedError
from benchmarks.trained import sharpened, train
from tests.reference.jacobian import gram as reference_gram
from tests.reference.jacobian import jacobian
from tests.reference.logdet import jacobian_log_det

SAMPLES = 6
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def case():
    """A small network in evaluation mode with running statistics that aren't 0 and 1, a batch, and the float64 J."""
    network = QUICK["resnet20"]
    net = make(network, "cpu").train()
    images, labels = random_batch(network, SAMPLES, "cpu")
    with torch.no_grad():
        net(images)
    net.eval()
    return net, images, labels, jacobian(net, images, labels)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name, contender in CONTENDERS.items() if contender.grams])
def test_contender_computes_the_gram_matrix(case, name):
    net, images, labels, rows = case
    if reason := CONTENDERS[name].missing():
        pytest.skip(reason)
    call = gram.prepare(name, net, images, labels)
    expected = reference_gram(rows)
    for _ in range(2):  # the second call must not add to the first
        error = (call().double() - expected).norm() / expected.norm()
        assert error < 1e-5


def test_the_baseline_is_one_forward_and_backward_of_the_batch(case):
    net, images, labels, _ = case
    calls = []
    net = copy.deepcopy(net)
    net[0].register_forward_hook(lambda module, inputs, output: calls.append(("forward", len(output))))
    net[1].register_full_backward_hook(lambda module, inputs, outputs: calls.append(("backward", len(outputs[0]))))
    CONTENDERS[BASELINE].prepare(net, images, labels)()
    assert calls == [("forward", SAMPLES), ("backward", SAMPLES)]


@pytest.mark.parametrize("sharpness", [1.0, 300.0])  # losses of order one, and of 0 for some samples
def test_exact_gram_is_the_reference(case, sharpness):
    net, images, labels, rows = case
    if sharpness != 1:
        net = copy.deepcopy(net)
        with torch.no_grad():
            net.classifier.weight.mul_(sharpness)
            labels = net(images).argmax(1)
        rows = jacobian(net, images, labels)
    exact = exact_gram(net, images, labels)
    assert (exact.gram - reference_gram(rows)).norm() <= 1e-12 * exact.gram.norm()
    assert exact.log_det == pytest.approx(jacobian_log_det(rows).log_det, rel=1e-12)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(copy.deepcopy(net).double()(images.double()), labels)
    assert exact.loss == pytest.approx(loss.item(), rel=1e-12)


def test_training_fits_and_sharpening_lowers_the_loss_alone():
    net, images, labels = train(QUICK["resnet20"], epochs=20, device="cpu")
    assert not net.training
    sharp = sharpened(net, images, labels)
    with torch.no_grad():
        before, after = net(images), sharp(images)
        assert 1e-7 < torch.nn.functional.cross_entropy(after.double(), labels) <= 1.1e-6  # float32 rounds the logits
    assert torch.equal(before.argmax(1), after.argmax(1))
    with pytest.raises(ValueError, match="fits its training images"):
        sharpened(net, images, (labels + 1) % 10)


def test_errors_are_those_of_the_contender(monkeypatch):
    """A contender that is 10 % off in every entry is so in the table, one with a zero row is singular."""
    exact = exact_gram
    wrong = {
        OURS: CONTENDERS[OURS],
        "off": CONTENDERS[OURS].__class__(lambda net, x, y: lambda: 1.1 * exact(net, x, y).gram),
        "zero": CONTENDERS[OURS].__class__(lambda net, x, y: lambda: torch.zeros(len(y), len(y))),
    }
    monkeypatch.setattr(gram, "CONTENDERS", wrong)
    rows = gram.errors(QUICK["resnet20"], samples=SAMPLES, epochs=20, device=CPU, say=pytest.fail)
    assert [row["contender"] for row in rows] == [*wrong] * 2
    for row in rows:
        if row["contender"] == "off":
            assert row["gram_error"] == pytest.approx(0.1)
            assert row["log_det_nats"] == pytest.approx(SAMPLES * math.log(1.1))
            assert row["log_det_error"] == pytest.approx(row["log_det_nats"] / abs(row["log_det"]))
        elif row["contender"] == "zero":
            assert row["gram_error"] == 1
            assert math.isnan(row["log_det_nats"])
        else:
            assert row["gram_error"] < 1e-4
            assert row["log_det_nats"] < 1e-2
    assert rows[0]["loss"] > 1e-5
    assert 1e-7 < rows[3]["loss"] <= 1.1e-6


def test_a_peer_that_fails_is_left_out_and_named(monkeypatch):
    # Times are taken in processes of their own, which see nothing of what is patched here.
    missing = CONTENDERS[OURS].__class__(CONTENDERS[OURS].prepare)
    monkeypatch.setitem(CONTENDERS, "new", missing)
    said = []
    rows = gram.times(QUICK["resnet20"], samples=SAMPLES, rounds=1, thread_counts=[1], device=CPU, say=said.append)
    assert {OURS, "single-sample loop"} <= {row["contender"] for row in rows}
    assert "new" not in {row["contender"] for row in rows}
    assert "left out: new: KeyError: 'new'" in said
    no_images = replace(QUICK["resnet20"], image_size=0)
    with pytest.raises(FailedError, match="Error: "):
        gram.times(no_images, samples=SAMPLES, rounds=1, thread_counts=[1], device=CPU, say=said.append)


def test_a_peer_without_errors_to_show_is_left_out_and_named(monkeypatch):
    def broken(net, images, labels):
        raise NotImplementedError("no such layer\nand more")

    monkeypatch.setitem(CONTENDERS, "Opacus", CONTENDERS[OURS].__class__(broken))
    said = []
    rows = gram.errors(QUICK["resnet20"], samples=SAMPLES, epochs=1, device=CPU, say=said.append)
    assert "Opacus" not in {row["contender"] for row in rows}
    assert "left out: Opacus: NotImplementedError: no such layer" in said
    monkeypatch.setitem(CONTENDERS, OURS, CONTENDERS["Opacus"])
    with pytest.raises(NotImplementedError):
        gram.errors(QUICK["resnet20"], samples=SAMPLES, epochs=1, device=CPU, say=said.append)
