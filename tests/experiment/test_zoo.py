"""The networks of a zoo again from their rows, and a measure entered into it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.zoo import enter, networks
from lightning_fisher.experiment.zoo.measuring import add_measures
from lightning_fisher.experiment.zoo.weights import FILE_NAME, find_weights, load_weights
from lightning_fisher.functional import fisher_log_det
from lightning_fisher.functional.measures import distance_from_initialization
from lightning_fisher.metrics import MeasureMetric
from lightning_fisher.models import resnet

TINY = Path(__file__).parents[1] / "data" / "zoo_tiny"  # made by the study's command with tiny networks


@pytest.fixture
def tiny(tmp_path):
    return Path(shutil.copytree(TINY, tmp_path / "zoo"))


def test_the_networks_are_those_of_the_rows():
    """The metrics of the loaded networks on the loaded subsets are what the rows say."""
    found = list(networks(TINY))
    assert len(found) == 8
    for one in found:
        assert not one.net.training
        assert len(one.subsets) == 2
        values = [
            fisher_log_det(one.net, inputs, labels, logit_norm=0.04, residual=False).log_det
            for inputs, labels in one.subsets
        ]
        assert float(sum(values)) / 2 == pytest.approx(one.row["gamma_equal_outputs"], abs=1e-2)


def test_a_measure_that_is_there_already_gets_its_judgment():
    def layer(net, inputs, labels):
        return fisher_log_det(net, inputs, labels, logit_norm=0.04, residual=False, scale="layer").log_det

    entry = enter(layer, TINY, name="mine")
    assert [row["mine"] for row in entry.rows] == pytest.approx([row["gamma_layer"] for row in entry.rows], abs=1e-2)
    cells = {line.split("|")[1].strip(): line.split("|")[2:] for line in entry.text.splitlines() if "|" in line}
    assert cells["mine"][:2] == cells["γ̂ at equal outputs, by layers"][:2]
    assert 1 <= entry.place <= len(cells)


def test_higher_is_better_is_turned():
    def error(net, inputs, labels, sign=1.0):
        return sign * sum(parameter.square().sum() for parameter in net.parameters())

    up = enter(error, TINY, name="norm")
    down = enter(lambda *given: error(*given, sign=-1.0), TINY, name="norm", higher_is_better=True)
    assert down.judged.tau == up.judged.tau


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(ValueError, match="Expected argument `name` to be a new one, but got 'gamma'"):
        enter(lambda *given: 0.0, TINY, name="gamma")


def test_a_measure_that_is_constant_is_refused():
    with pytest.raises(ConfigError, match="Expected at least three networks"):
        enter(lambda *given: 1.0, TINY, name="constant")


def test_missing_weights_are_named(tiny):
    (tiny / FILE_NAME).unlink()
    run = sorted(path for path in tiny.iterdir() if path.is_dir())[0]
    assert find_weights(tiny, run) is None
    with pytest.raises(ConfigError, match=rf"Expected the weights of `{run.name}`.*--train OUT"):
        load_weights(torch.nn.Linear(1, 1), tiny, run)


def test_a_row_of_other_configs_is_refused(tiny):
    file = sorted(tiny.rglob("result.json"))[0]
    row = json.loads(file.read_text())
    row["overrides"].append("model.batch_size=31")
    file.write_text(json.dumps(row))
    with pytest.raises(ConfigError, match=r"the configs that the row .* was made with"):
        next(networks(tiny))


def test_an_archive_that_is_not_there_is_named(tiny):
    """It is part of the hash, but nothing was changed: the file is what lacks."""
    file = sorted(tiny.rglob("result.json"))[0]
    row = json.loads(file.read_text())
    row["overrides"] += ["data=arrays", "data.path=nowhere.npz", "data.num_classes=10"]
    file.write_text(json.dumps(row))
    with pytest.raises(ConfigError, match=r"`data.path` to be an .npz file .* but there is no file 'nowhere.npz'"):
        next(networks(tiny))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least one complete run"):
        next(networks(tmp_path))


def run(*arguments):
    command = [sys.executable, "-m", "lightning_fisher.experiment.zoo", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_says_what_is_there(tiny):
    done = run(tiny)
    assert (done.returncode, done.stdout.strip()) == (0, "8 networks, 8 with weights"), done.stderr
    (tiny / FILE_NAME).unlink()
    done = run(tiny)
    assert done.returncode == 1
    assert "8 networks, 0 with weights" in done.stdout
    assert "--train OUT" in done.stdout
    done = run(tiny / "nothing")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: Expected a folder with at least one complete run")


def test_measures_are_added_to_rows_and_only_where_they_lack(tiny):
    files = sorted(tiny.rglob("result.json"))
    before = [json.loads(file.read_text()) for file in files]
    for file, row in list(zip(files, before, strict=True))[:2]:
        file.write_text(json.dumps({key: value for key, value in row.items() if not key.startswith("gamma_layer")}))
    unchanged = files[2].read_bytes()
    lines: list[str] = []
    assert add_measures(tiny, ["gamma_layer"], lines.append) == 2
    assert lines[0] == "8 networks, 6 with all of 1 measures"
    assert lines[-1].endswith("2 of 2, about 0 s left")
    for file, row in list(zip(files, before, strict=True))[:2]:
        after = json.loads(file.read_text())
        added = after.pop("measured_later")
        assert after.pop("measure_seconds").keys() == row["measure_seconds"].keys()
        names = ("gamma_layer", "gamma_layer_std")
        assert [after.pop(name) for name in names] == pytest.approx([row[name] for name in names], abs=1e-2)
        assert after == {key: value for key, value in row.items() if key not in (*names, "measure_seconds")}
        assert [(one["measures"], one["subsets"]) for one in added] == [(["gamma_layer"], 2)]
    assert files[2].read_bytes() == unchanged
    assert add_measures(tiny, ["gamma_layer"], lines.append) == 0


def test_measures_on_the_first_subsets_only(tiny):
    """The value on them is that of a metric that has seen nothing else."""
    (one, *_) = networks(tiny)
    for path in sorted(path for path in tiny.iterdir() if path.is_dir())[1:]:
        shutil.rmtree(path)
    assert add_measures(tiny, ["hessian_trace"], lambda line: None, subsets=1) == 1
    (row,) = [json.loads(file.read_text()) for file in tiny.rglob("result.json")]
    alone, both = (MeasureMetric(["hessian_trace"], logit_norm=row["config"]["metric.logit_norm"]) for _ in "ab")
    for inputs, labels in one.subsets[:1]:
        alone.update(one.net, inputs, labels)
    for inputs, labels in one.subsets:
        both.update(one.net, inputs, labels)
    assert row["hessian_trace"] == pytest.approx(float(alone.compute()["hessian_trace"]), rel=1e-6)
    assert row["hessian_trace"] != pytest.approx(float(both.compute()["hessian_trace"]), rel=1e-3)
    assert row["measured_later"][0]["subsets"] == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--measure", "hessian_trace", "--subsets", 0), "option `--subsets` to be at least 1, but got 0"),
        (("--subsets", 1), "option `--subsets` with `--measure`, but got 1 without it"),
        (("--measure", "hessian_trace", "--subsets", "few"), "argument --subsets: invalid int value: 'few'"),
    ],
)
def test_a_bad_number_of_subsets_is_one_line(tiny, arguments, line):
    done = run(tiny, *arguments)
    assert done.returncode == 1
    assert line in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_distance_is_from_the_weights_that_the_seed_gives(tiny):
    """Those of a network that is made right after the seed."""
    (one, *_) = networks(tiny)
    for path in sorted(path for path in tiny.iterdir() if path.is_dir())[1:]:
        shutil.rmtree(path)
    add_measures(tiny, ["distance_from_initialization"], lambda line: None)
    (row,) = [json.loads(file.read_text()) for file in tiny.rglob("result.json")]
    torch.manual_seed(row["seed"])
    fresh = resnet(depth=8, num_classes=10, in_channels=1, width=3)
    (inputs, _), *_ = one.subsets
    distance = float(distance_from_initialization(one.net, inputs, fresh))
    assert row["distance_from_initialization"] == pytest.approx(distance, rel=1e-6)


def test_weights_may_stand_beside_the_row(tiny):
    found = list(networks(tiny))
    runs = sorted(path.parent for path in tiny.rglob("result.json"))
    for run, one in zip(runs, found, strict=True):
        torch.save(one.net.state_dict(), run / "weights.pt")
    (tiny / FILE_NAME).unlink()
    assert {find_weights(tiny, run) for run in runs} == {"state dict"}
    for one, again in zip(found, networks(tiny), strict=True):
        for a, b in zip(one.net.state_dict().values(), again.net.state_dict().values(), strict=True):
            assert torch.equal(a, b)


def test_an_unknown_measure_is_one_line(tiny):
    done = run(tiny, "--measure", "sharpnes")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: Expected option `--measure` to ")
    assert "sharpnes" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_network_is_trained_again_from_its_row(tiny, tmp_path):
    (tiny / FILE_NAME).unlink()
    for path in sorted(path for path in tiny.iterdir() if path.is_dir())[1:]:
        shutil.rmtree(path)
    done = run(tiny, "--train", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    (before,) = [json.loads(path.read_text()) for path in tiny.rglob("result.json")]
    (again,) = list(networks(tmp_path / "again"))
    assert again.row["config_hash"] == before["config_hash"]
    assert again.row["test_error"] == pytest.approx(before["test_error"], abs=5.0)
    done = run(tmp_path / "again", "--pack")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again" / FILE_NAME).is_file()
