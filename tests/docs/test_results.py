"""The numbers in README and in the pages of results are what the committed rows give."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import json
import math
import statistics
import sys
from functools import partial

import pytest
from scipy import stats

from lightning_fisher.experiment.records.quantities import FIRST
from tests.docs.pages import ROOT

sys.path.insert(0, str(ROOT / "results"))  # whose scripts import one another
made = importlib.import_module("page")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        *((page, partial(made.page, source)) for source, page in made.PAGES.items()),
        (made.INDEX, made.index),
        (made.README, made.readme),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_page_is_what_the_rows_give(path, text):
    assert path.read_text(encoding="utf-8") == text(), "python results/page.py"


def test_readme_has_a_place_for_every_block():
    text = made.README.read_text(encoding="utf-8")
    assert {text.count(mark) for mark in made.MARKS} == {made.TABLE.read_text(encoding="utf-8").count(made.NEXT) + 1}


def test_what_is_said_of_the_demonstration_by_hand():
    """The largest error after the switch, and that of epoch 3, from the files of seed 0."""
    (path,) = (ROOT / "results" / "demo-full").glob("reg=fisher_seed=0-*/history.csv")
    with path.open() as file:
        epochs = [row for row in csv.DictReader(file) if row["val_error"]]
    after = [row for row in epochs if row["regularized"] not in ("", "0", "0.0")]
    text = made.README.read_text(encoding="utf-8")
    assert f"First the error jumps to {max(float(row['val_error']) for row in after):.0f} %" in text
    assert f"In epoch 3 both were at {float(epochs[2]['val_error']):.0f} %" in text


def test_figures_of_the_documentation_are_those_of_the_results():
    found = importlib.util.spec_from_file_location("results_figures", ROOT / "results" / "figures.py")
    figures = importlib.util.module_from_spec(found)
    found.loader.exec_module(figures)
    for name, source in figures.COPIES.items():
        assert (figures.IMAGES / name).read_bytes() == (ROOT / source).read_bytes(), "python results/figures.py"


@pytest.mark.parametrize("path", [*made.PAGES, made.TABLE, made.FOLDERS], ids=lambda path: path.name)
def test_no_number_of_ours_is_typed(path):
    papers = {"8.50", "7.89", "1.33", "1.25", "1.125"}  # of the paper's Table 1; evaluations, by arithmetic
    assert set(made.typed_numbers(path.read_text(encoding="utf-8"))) <= papers


def rows(name, **wanted):
    """The rows of a folder without the package's reader."""
    found = [json.loads(path.read_text()) for path in sorted((ROOT / "results" / name).rglob("result.json"))]
    return [r for r in found if all(r["config"].get(k.replace("__", ".")) == v for k, v in wanted.items())]


def test_a_mean_a_difference_and_a_rank_correlation_by_hand():
    """Three numbers of two pages by the standard library and scipy."""
    text = (ROOT / "docs" / "results-wrong-labels.md").read_text(encoding="utf-8")
    after, before = rows("label_noise_beta-digits", reg__beta=1000), rows("label_noise_beta-digits", reg__beta=0)
    errors = [r["test_error"] for r in after]
    assert f"{statistics.fmean(errors):.2f} ± {statistics.stdev(errors):.2f}" in text

    plain = {r["seed"]: r["test_error"] for r in before}
    differences = [r["test_error"] - plain[r["seed"]] for r in after]
    half = stats.t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences))
    mean = statistics.fmean(differences)
    assert f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]".replace("-", "−") in text

    fit = [r for r in rows("scenario_confusion-digits") if r["train_error"] == 0]
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    tau = stats.kendalltau([r["gamma"] for r in fit], [r["test_error"] for r in fit]).statistic
    assert f"γ̂ {tau:.2f} [" in text


def test_the_measures_that_cards_put_first_are_those_seen_to_be_right_in_all_three_scenarios():
    """As `docs/results-scenarios.md`, README and the card say: no other measure's three intervals lie above 0."""
    found = made.study("scenarios-cifar_small").scenarios.found
    assert len(found) == 3
    judged = set.intersection(*(set(one.judged) for one in found))
    right = {key for key in judged if all(one.judged[key].low > 0 for one in found)}
    assert right == set(FIRST)


def test_what_is_said_of_the_zoo_on_cifar10_in_words():
    """What matters, what fails over augmentations, what is right over all three, what is best over all networks."""
    zoo = made.study("zoo-cifar_small").zoo
    labels, augmentation, regularizer = "data.confusion_size", "data.augmentation", "reg"
    of = {one.key: one for one in zoo.judged}
    assert zoo.matter == [labels, augmentation, regularizer]
    assert zoo.seen == ["gamma_equal_outputs"]
    low, high = of["layer_sensitivity"].per_option_ends[augmentation]
    assert low < 0 < high  # neither way
    assert min(of["layer_sensitivity"].per_option_ends[option][0] for option in (labels, regularizer)) > 0.5
    scenarios = made.study("scenarios-cifar_small").scenarios.found
    right = [key for key in zoo.right if all(one.judged[key].tau > 0 for one in scenarios)]
    assert {"gamma_equal_outputs", "layer_sensitivity"} <= set(right)
    assert "average_sharpness_l2" not in right  # the best worst case here
    assert max(zoo.judged, key=lambda one: one.worst(zoo.matter)).key == "average_sharpness_l2"
    follow = ("train_loss", "gamma", "frobenius_norm", "spectral_radius", "fisher_rao_norm", "relative_flatness")
    fail = ("robustness", "evidence_log_det", "epochs", "parameter_norm", "path_norm", "distance_from_initialization")
    heavy = ("hessian_trace", "weighted_hessian_trace", "hessian_spectral_radius", "pac_bayes_flatness")
    wrong = (*follow, *fail, *heavy, "pac_bayes_magnitude_flatness", "gamma_direction", "gamma_element")
    assert all(of[key].per_option[augmentation] < 0 for key in wrong)
    assert all(of[key].per_option[regularizer] > 0.5 for key in heavy[:3])
    assert {one.n for one in zoo.judged} == {72, 168}
    forms = {"gamma_layer", "gamma_element", "gamma_filter", "layer_sensitivity"}
    of_all = [one for one in zoo.judged if one.n == 168]
    assert {one.key for one in sorted(of_all, key=lambda one: -one.tau)[:5]} == {*forms, "input_margin"}
    assert all(of[key].partial_low > 0 for key in forms)
    assert max(of[key].tau for key in ("gradient_signal_to_noise", "gradient_noise_scale", "feature_margin")) < 0.1


def test_what_is_said_of_the_papers_size_in_words():
    """Which networks fit, that the rate of the others never dropped, and which measures point the wrong way."""
    paper = made.study("scenario_confusion-paper10k")
    fitted = {row["config"]["data.confusion_size"] for row in paper.settled.rows}
    others = [row for row in paper.rows if row["train_error"] > 1.0]
    assert (paper.n, paper.seeds, paper.settled.n, paper.modified, fitted) == (12, 3, 6, 0, {0, 1000})
    assert {(row["plateaus"], row["epochs"]) for row in others} == {(0, 200)}
    assert all("H200" in row["hardware"]["device"] for row in paper.rows)
    by_hand = [(row["gamma"], row["train_loss"], row["test_error"]) for row in rows("scenario_confusion-paper10k")]
    gamma, loss, error = zip(*by_hand, strict=True)
    assert paper.judged["gamma"].tau == pytest.approx(stats.kendalltau(gamma, error).statistic)
    assert paper.judged["train_loss"].tau == pytest.approx(stats.kendalltau(loss, error).statistic)
    assert paper.judged["train_loss"].tau > paper.judged["gamma"].tau
    assert paper.judged["gamma"].partial < 0
    noise = {"average_sharpness_l2", "gradient_noise_scale", "gradient_signal_to_noise"}
    assert {one.key for one in paper.judged.values() if one.tau < 0} == {"gamma_sensitivity", *noise}
    assert len(made.study("scenario_confusion-paper10k-cpu").rows) == 3
    seconds = [row["seconds_per_epoch"] for row in rows("scenario_confusion-paper10k")]
    page = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    assert f"an epoch took {min(seconds):.1f} to {max(seconds):.1f} s" in page


def test_the_weight_chosen_on_validation_images_by_hand():
    """The least mean validation error, and the paired difference in test error there."""
    validated = made.study("label_noise_beta-digits-validation")
    errors = {}
    for row in rows("label_noise_beta-digits-validation"):
        errors.setdefault(row["config"]["reg.beta"], []).append((row["seed"], row["val_error"], row["test_error"]))
    assert {tuple(sorted(seed for seed, *_ in found)) for found in errors.values()} == {tuple(range(validated.seeds))}
    chosen = min(errors, key=lambda beta: sum(error for _, error, _ in errors[beta]))
    assert validated.least("val_error", "reg.beta") == chosen == 1000
    pairs = zip(sorted(errors[chosen]), sorted(errors[0]), strict=True)
    gain = validated(reg__beta=chosen).less(validated(reg__beta=0), "test_error").mean
    assert gain == pytest.approx(sum(one[2] - other[2] for one, other in pairs) / validated.seeds)


def paired(name, with_it, without):
    """Mean and interval of the paired differences in test error, by scipy; conditions of rows."""
    errors = [{row["seed"]: row["test_error"] for row in rows(name) if one(row)} for one in (with_it, without)]
    pairs = [errors[0][seed] - errors[1][seed] for seed in sorted(errors[0])]
    mean = statistics.fmean(pairs)
    half = stats.t.ppf(0.975, len(pairs) - 1) * stats.sem(pairs)
    return mean, mean - half, mean + half


def test_what_is_said_of_the_regularizer_where_networks_fit():
    """README, results, choosing: worse than plain networks at β = 100, with right labels and with random ones added."""
    for size in (0, 300):

        def variation(row, name, size=size):
            return f"variation={name}" in row["overrides"] and row["config"]["data.confusion_size"] == size

        both = partial(variation, name="fisher_light"), partial(variation, name="base")
        mean, low, _ = paired("zoo-cifar_small", *both)
        assert low > 0
        fitted = [row["train_error"] for row in rows("zoo-cifar_small") if any(one(row) for one in both)]
        assert max(fitted) <= 1
        study = made.study("zoo-cifar_small")(data__confusion_size=size)
        assert study.variation("fisher_light").less(study.variation("base"), "test_error").mean == pytest.approx(mean)


@pytest.mark.parametrize(
    ("noise", "kind", "method", "sign"),
    [
        (0.0, "evaluations", "sam", 0),
        (0.0, "evaluations", "jacobian", 0),
        (0.0, "evaluations", "gnp", 0),
        (0.0, "evaluations", "fisher", 1),
        (0.0, "evaluations", "fisher_auto", 1),
        (0.0, "evaluations", "entropy_sgd", 1),
        (0.0, "evaluations", "fisher_penalty", 1),
        (0.4, "evaluations", "fisher_auto", -1),
        (0.0, "epochs", "jacobian", -1),
        (0.0, "epochs", "sam", -1),
        (0.0, "epochs", "gnp", -1),
        (0.0, "epochs", "fisher", 0),
        (0.0, "epochs", "fisher_auto", 0),
        (0.4, "epochs", "fisher_auto", 0),
        (0.0, "epochs", "swa", 0),
        (0.4, "epochs", "swa", 0),
    ],
)
def test_what_is_said_of_methods_on_digits(noise, kind, method, sign):
    """Better (−1), worse (1) or not told apart (0) from plain training at an equal budget, by 95 % intervals."""
    study = made.study("methods-digits")(data__label_noise=noise).kind(kind)
    found = study(comparison__name=method).less(study(comparison__name="none"), "test_error")
    assert sign == (found.low > 0) - (found.high < 0)


def test_what_is_said_of_options_on_digits():
    """Batch sizes hardly move the test error, augmentations do, and γ̂ isn't seen to order them."""
    batch, augmentation = (made.study(f"scenario_{name}-digits").zoo for name in ("batch_size", "augmentation"))
    assert not batch.effect("model.batch_size").matters
    assert augmentation.effect("data.augmentation").matters
    for key in ("gamma", "gamma_direction"):
        for one, option in ((batch, "model.batch_size"), (augmentation, "data.augmentation")):
            assert one._of(key).low < 0 < one._of(key).high, (key, option)


def test_what_is_said_of_the_finite_difference():
    """Short fixed steps of any direction beat long ones; backward and central fixed steps are not told apart."""
    study = partial(made.study("differences-digits"), reg__step="fixed")
    for direction in ("backward", "forward", "central"):
        short, long = (study(reg__difference=direction, reg__alpha=alpha) for alpha in (1e-4, 1e-1))
        assert short.less(long, "test_error").high < 0
    for alpha in (1e-4, 1e-3, 1e-2, 1e-1):
        pair = (study(reg__difference=direction, reg__alpha=alpha) for direction in ("backward", "central"))
        found = next(pair).less(next(pair), "test_error")
        assert found.low < 0 < found.high


def test_what_is_said_of_rescaled_logits():
    """γ̂ with logit_norm=0.04 orders regularizers of the zoo the wrong way, γ̂ as it is the right way, by intervals."""
    zoo = made.study("zoo-cifar_small").zoo
    rescaled, plain = (zoo._of(key).per_option_ends["reg"] for key in ("gamma_rescaled", "gamma"))
    assert rescaled[1] < 0 < plain[0]


def test_what_is_said_of_clean_images_at_the_papers_size():
    """Three pairs, all within a few images; the interval holds 0, no gain like the paper's; how β is chosen."""
    study = made.study("methods-paper10k")(data__label_noise=0.0)
    seeds = study.kind("epochs")
    light, plain = seeds(comparison__name="fisher_amortized"), seeds(comparison__name="none")
    of = {row["seed"]: row["test_error"] for row in plain.rows}
    gaps = [row["test_error"] - of[row["seed"]] for row in light.rows]
    assert len(gaps) == 3
    assert max(map(abs, gaps)) <= 0.1  # ten of 10,000 test images
    half = stats.t.ppf(0.975, 2) * stats.sem(gaps)
    assert 7.89 - 8.50 < statistics.mean(gaps) - half < 0 < statistics.mean(gaps) + half
    errors = {row["config"]["reg.beta"]: row["val_error"] for row in study.kind("choose").rows}
    assert {row["config"]["reg.beta"] for row in light.rows} == {min(errors, key=errors.__getitem__)}


def test_what_is_said_of_wrong_labels_at_the_papers_size():
    """Lower in every pair; plain networks end far above their best epoch, which is about the regularized ones' end."""
    study = made.study("methods-paper10k")(data__label_noise=0.4)
    seeds = study.kind("epochs")
    light, plain = seeds(comparison__name="fisher_amortized"), seeds(comparison__name="none")
    of = {row["seed"]: row["test_error"] for row in plain.rows}
    assert all(row["test_error"] < of[row["seed"]] - 5 for row in light.rows)
    errors = {row["config"]["reg.beta"]: row["val_error"] for row in study.kind("choose").rows}
    assert {row["config"]["reg.beta"] for row in light.rows} == {min(errors, key=errors.__getitem__)}
    courses = [
        [
            [epoch["val_error"] for epoch in made.history("methods-paper10k", config_hash=row["config_hash"])]
            for row in of_one
        ]
        for of_one in (plain.rows, light.rows)
    ]
    best, end = (
        [statistics.fmean(one(course) for course in some) for some in courses] for one in (min, lambda c: c[-1])
    )
    assert end[0] > best[0] + 5
    assert end[1] < best[1] + 2
    assert end[0] - best[0] > 0.8 * (end[0] - end[1])  # "most of it"
    assert all(course.index(min(course)) + 1 in range(51, 56) for course in courses[0])
    assert min(course[50] for course in courses[1]) > max(course[50] for course in courses[0])


def test_what_is_said_of_the_generalized_cross_entropy():
    """It helps in 20 epochs and in 60; more than the regularizer in 20, less in 60; q the largest tried in 60."""

    def of(name):
        return lambda row: (
            row["config"]["comparison.name"] == name
            and row["config"]["data.label_noise"] == 0.4
            and row["config"]["comparison.job"].startswith("epochs")
        )

    for study, sign in (("methods-digits", -1), ("methods-digits-60", 1)):
        assert paired(study, of("generalized_cross_entropy"), of("none"))[2] < 0
        _, low, high = paired(study, of("generalized_cross_entropy"), of("fisher"))
        assert min(sign * low, sign * high) > 0
    assert {row["config"]["reg.q"] for row in rows("methods-digits-60") if of("generalized_cross_entropy")(row)} == {
        0.9
    }


def test_readme_has_the_differences_of_the_methods_that_it_names():
    """Of the regularizer and of SAM, from the rows by scipy: not those of another study."""

    def of(name):
        return lambda row: (
            row["config"]["comparison.name"] == name
            and row["config"]["data.label_noise"] == 0.4
            and row["config"]["comparison.job"].startswith("epochs")
        )

    cells = []
    for name in ("fisher", "sam"):
        mean, low, high = paired("methods-cifar_small", of(name), of("none"))
        cells.append(f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]".replace("-", "−"))
    assert f"(minus plain: {' and '.join(cells)})" in made.README.read_text(encoding="utf-8")


def test_what_is_said_of_the_weights_that_validation_chose():
    """Choosing β: 300 to 1000 with wrong labels and 3000 too much, 100 or 10 with right ones."""
    chosen = {0.0: set(), 0.4: set()}
    for name in ("methods-digits", "methods-digits-60", "methods-cifar_small", "methods-paper10k"):
        errors = {}
        for row in made.study(name).kind("choose").rows:
            if row["config"]["comparison.name"] in ("fisher", "fisher_amortized"):
                errors.setdefault(row["config"]["data.label_noise"], {})[row["config"]["reg.beta"]] = row["val_error"]
        for noise, of in errors.items():
            least = min(of, key=of.__getitem__)
            chosen[noise].add(least)
            assert 3000 not in of or of[3000] > of[least] + 3
    assert chosen == {0.0: {10, 100}, 0.4: {300, 1000}}
    assert made.study("label_noise_beta-digits-validation").least("val_error", "reg.beta") == 1000
    assert made.study("select_beta-digits").least("val_error", "reg.beta") == 500


@pytest.mark.parametrize("seed", range(10))
def test_what_is_said_of_the_penalty_in_the_demonstration(seed):
    """README, choosing: within five epochs the penalty falls to a quarter, the variance to a tenth, or less."""
    epochs = [epoch for epoch in made.history("demo-full", reg="fisher", seed=seed) if epoch["regularized"]]
    for key, part in (("fisher/penalty", 4), ("fisher/grad_norm_var", 10)):
        assert epochs[4][key] <= epochs[0][key] / part, key
