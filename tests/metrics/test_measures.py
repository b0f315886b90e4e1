"""Measures of generalization by name, over subsets."""

from __future__ import annotations

import copy

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lightning_fisher.functional import measures as functional
from lightning_fisher.functional.measures import MEASURES
from lightning_fisher.metrics import FisherMetric, FrobeniusNormMetric, MeasureMetric, RobustnessMetric
from lightning_fisher.metrics import measures as module_under_test
from tests.functional.snapshot import changes, snapshot
from tests.metrics.subsets import network, subsets, updated

FEW = {
    "average_sharpness_l2": {"num_draws": 2},
    "average_sharpness_linf": {"num_draws": 2},
    "worst_sharpness_l2": {"num_steps": 2},
    "worst_sharpness_linf": {"num_steps": 2},
    "pac_bayes_flatness": {"num_draws": 1},
    "pac_bayes_magnitude_flatness": {"num_draws": 1},
    "hessian_trace": {"num_products": 6},
    "weighted_hessian_trace": {"num_products": 6},
    "hessian_spectral_radius": {"tol": 0.1},
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:The accuracy drop is not met"),
    pytest.mark.filterwarnings("ignore:No weight noise"),
]


def everything():
    return MeasureMetric("all", initial=network(), options=FEW)


def test_every_measure_is_the_mean_of_its_function():
    net, parts = network(), subsets(2)
    result = updated(MeasureMetric(["fisher_rao_norm", "relative_flatness"]), parts, net).compute()
    for name in ("fisher_rao_norm", "relative_flatness"):
        values = torch.stack([getattr(functional, name)(net, *part) for part in parts])
        torch.testing.assert_close(result[name], values.mean())
        torch.testing.assert_close(result[f"{name}_std"], values.std())


def test_the_papers_four_are_those_of_their_own_metrics():
    net, parts = network(), subsets(2)
    result = updated(MeasureMetric("paper", logit_norm=0.04), parts, net).compute()
    gamma = updated(FisherMetric(logit_norm=0.04), parts, net).compute()
    frobenius = updated(FrobeniusNormMetric(logit_norm=0.04), parts, net).compute()
    robust = updated(RobustnessMetric(), parts, net).compute()
    torch.testing.assert_close(result["gamma"], gamma["gamma"])
    torch.testing.assert_close(result["frobenius_norm"], frobenius["frobenius_norm"])
    torch.testing.assert_close(result["robustness"], robust["robustness"])


def test_all_measures_leave_the_module_as_it_was():
    net = network()
    net[0].weight.grad = torch.ones_like(net[0].weight)
    net[1].eval()
    before, state = snapshot(net), torch.get_rng_state()
    result = updated(everything(), subsets(1), net).compute()
    assert changes(before, snapshot(net)) == []
    assert torch.equal(torch.get_rng_state(), state)
    assert set(result) == set(MEASURES) | {f"{name}_std" for name in MEASURES}
    finite = {name for name in MEASURES if not result[name].isnan()}
    assert finite == set(MEASURES)


def test_what_several_measures_need_is_computed_once(monkeypatch):
    calls = []
    for name in ("fold_batch_norm", "shared_log_det", "decided_gram", "output_margin"):
        function = getattr(module_under_test, name)

        def counted(*args, function=function, name=name, **kwargs):
            calls.append(name)
            return function(*args, **kwargs)

        monkeypatch.setattr(module_under_test, name, counted)
    updated(everything(), subsets(1))
    # γ̂ as it is, by filters and by weights; at rescaled logits, with and without the sizes of layers, one pass.
    assert sorted(calls) == ["decided_gram", "fold_batch_norm", "output_margin", *["shared_log_det"] * 3]


def test_directions():
    assert MeasureMetric("input_margin").higher_is_better is True
    assert MeasureMetric("paper").higher_is_better is False
    assert MeasureMetric("recommended").higher_is_better is None  # input_margin among them
    assert MeasureMetric("participation_ratio").higher_is_better is None


def test_names_and_groups():
    assert MeasureMetric(["fisher_rao_norm", "gamma", "fisher_rao_norm"]).states == ("gamma", "fisher_rao_norm")
    assert MeasureMetric("paper").states == ("gamma", "frobenius_norm", "spectral_radius", "robustness")
    assert set(everything().states) == set(MEASURES)
    assert set(MEASURES) - set(MeasureMetric("all").states) == {"distance_from_initialization"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"measures": "sharpnes"},
            r"Expected argument `measures` to name measures or groups out of .*but got \['sharpnes'\]",
        ),
        ({"measures": []}, r"Expected argument `measures` to name .* but got \[\]"),
        (
            {"measures": "distance_from_initialization"},
            "Expected argument `initial` to be the network before training, which distance_from_initialization needs",
        ),
        ({"options": {"gama": {}}}, "Expected argument `options` to name measures out of .* but got 'gama'"),
        (
            {"measures": "hessian_trace", "options": {"hessian_trace": {"probes": 3}}},
            r"Expected the options of hessian_trace to be out of \('num_products', .*\), but got \['probes'\]",
        ),
        ({"logit_norm": 0.0}, "Expected argument `logit_norm` to be a positive number or None, but got 0.0"),
    ],
)
def test_bad_arguments_are_named_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        MeasureMetric(**arguments)


def test_initial_weights_are_kept_as_they_were():
    initial = network()
    metric = MeasureMetric("distance_from_initialization", initial=initial)
    nn.init.zeros_(initial[0].weight)
    assert float(updated(metric, subsets(1)).compute()["distance_from_initialization"]) == 0
    assert not list(metric.parameters())
    assert not metric.state_dict()


def test_a_layer_without_a_second_derivative():
    net = nn.Sequential(nn.Flatten(), nn.Linear(50, 8), nn.Hardsigmoid(), nn.Linear(8, 3)).double()
    metric = MeasureMetric(["hessian_trace", "fisher_rao_norm", "output_margin"])
    with pytest.warns(UserWarning, match="not implemented.* MeasureMetric counts hessian_trace as nan"):
        updated(metric, subsets(1), net)
    result = metric.compute()
    assert result["hessian_trace"].isnan()
    assert result["fisher_rao_norm"].isfinite()
    assert result["output_margin"].isfinite()


def test_a_diverged_network_is_nan():
    net = network()
    nn.init.constant_(net[5].bias, float("nan"))
    metric = MeasureMetric(["input_margin", "fisher_rao_norm", "relative_flatness", "parameter_norm"])
    with pytest.warns(UserWarning, match="infinite or undefined"):
        result = updated(metric, subsets(1), net).compute()
    assert all(result[name].isnan() for name in metric.states)


def test_mistakes_in_the_data_are_not_hidden():
    ((inputs, targets),) = subsets(1)
    with pytest.raises(ValueError, match=r"Expected class indices in `targets` to be 0…2, but got"):
        MeasureMetric("input_margin").update(network(), inputs, targets + 2)
    with pytest.raises(ValueError, match="Expected argument `targets` to be class indices"):
        MeasureMetric("input_margin").update(network(), inputs, torch.ones(8, 3))


def test_seeds_and_options_reach_the_functions():
    net, parts = network(), subsets(1)
    name = "average_sharpness_l2"
    values = [
        float(updated(MeasureMetric(name, options={name: {"num_draws": 2, "seed": seed}}), parts, net).compute()[name])
        for seed in (0, 0, 1)
    ]
    assert values[0] == values[1] != values[2]


def test_a_module_in_training_is_measured_without_its_trainer(tmp_path):
    """The copies that some measures work on leave the trainer, its data and its callbacks alone."""

    class Fit(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network(torch.float32)

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    class Measure(pl.Callback):
        def __init__(self):
            self.result = None

        def __deepcopy__(self, memo):
            raise AssertionError("the trainer was copied")

        def on_train_epoch_end(self, trainer, module):
            metric = MeasureMetric(["path_norm", "average_sharpness_l2", "pac_bayes_flatness"], options=few)
            self.result = updated(metric, subsets(1, dtype=torch.float32), module).compute()

    few = {name: FEW[name] for name in ("average_sharpness_l2", "pac_bayes_flatness")}
    measure = Measure()
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*subsets(1, dtype=torch.float32)[0]), 4)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_epochs=1, callbacks=[measure], default_root_dir=tmp_path, **options)
    trainer.fit(Fit(), data)
    assert all(measure.result[name].isfinite() for name in ("path_norm", "average_sharpness_l2", "pac_bayes_flatness"))


def test_copies_do_not_share_their_options():
    metric = MeasureMetric("average_sharpness_l2", options={"average_sharpness_l2": {"num_draws": 2}})
    twin = copy.deepcopy(metric)
    twin.options["average_sharpness_l2"]["num_draws"] = 3
    assert metric.options["average_sharpness_l2"]["num_draws"] == 2
