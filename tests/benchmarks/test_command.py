"""``python -m benchmarks``: everything that runs on a GPU too, here on a CPU and tiny networks."""

from __future__ import annotations

import json

import pytest

from benchmarks.__main__ import main
from benchmarks.contenders_gram import OURS
from benchmarks.contenders_step import FORMS
from benchmarks.networks import NETWORKS, QUICK, make, random_batch
from benchmarks.settings import CPU, GPU, QUICK_TRIAL

TIMED = ["gram", "errors", "many", "sequences", "profile", "step", "loop", "scaling"]


@pytest.mark.filterwarnings("ignore")
def test_quick_run_writes_results_tables_and_figure(tmp_path, capsys):
    assert main([*TIMED, "--quick", "--device", "cpu", "--compile", "eager", "--out", str(tmp_path)]) == 0
    sections = json.loads((tmp_path / "quick.json").read_text())
    assert list(sections) == TIMED
    for section in sections.values():
        assert section["provenance"]["hardware"]["device"] == "cpu"
        assert section["provenance"]["versions"]["torch"]
        assert section["seconds"] > 0
    steps = sections["step"]["tables"]["times"]
    assert {row["network"] for row in steps} == {QUICK["resnet20"].title}
    assert {"plain step", "plain step, torch.compile (eager)", *FORMS} <= {row["contender"] for row in steps}
    loops = {row["contender"] for row in sections["loop"]["tables"]["times"]}
    assert {name for name in loops if name.endswith(", torch.compile (eager)")} == {
        "bare PyTorch loop, torch.compile (eager)",
        "Lightning, torch.compile (eager)",
        'Lightning + SharpnessAware(precision="trainer"), torch.compile (eager)',
    }
    assert all(row["images_per_second"] == pytest.approx(16 / row["seconds"]) for row in steps)
    assert OURS in {row["contender"] for row in sections["gram"]["tables"]["times"]}
    assert {row["along"] for row in sections["scaling"]["tables"]["times"]} == {"N′", "W", "M"}
    printed = capsys.readouterr().out
    report = (tmp_path / "quick.md").read_text()
    for name in ("Lightning + waiting FisherRegularizer", *FORMS, OURS):
        assert name in printed
        assert name in report
    image = (tmp_path / "quick.png").read_bytes()
    assert image.startswith(b"\x89PNG")

    for name in ("quick.md", "quick.png"):
        (tmp_path / name).unlink()
    assert main(["--report", "--name", "quick", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "quick.md").read_text() == report
    assert (tmp_path / "quick.png").exists()


@pytest.mark.parametrize("settings", [CPU, GPU, QUICK_TRIAL], ids=["CPU", "GPU", "quick"])
def test_every_network_that_is_measured_takes_its_images(settings):
    """On a small batch: what a GPU alone measures must not fail there first."""
    names = {*settings.gram_networks, *settings.error_networks, *settings.step_networks, *settings.memory_networks}
    assert names <= NETWORKS.keys() == QUICK.keys()
    for name in names:
        network = settings.networks[name]
        images, labels = random_batch(network, 2, "meta")
        assert make(network, "meta")(images).shape == (2, network.num_classes)
        assert len(labels) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["grams"],
            "Expected sections among ['gram', 'errors', 'many', ",
        ),
        (["--device", "tpu"], "Expected --device to be auto, cpu or cuda, but got 'tpu'."),
        (["--compile", "fast"], "but got 'fast'."),
        (["--report"], "there are none; measure first."),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, tmp_path, capsys):
    assert main([*arguments, "--out", str(tmp_path / "none")]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_a_file_that_is_no_result_is_refused_before_anything_runs(tmp_path, capsys):
    (tmp_path / "cpu.json").write_text("not json")
    assert main(["--out", str(tmp_path), "--name", "cpu"]) == 1
    assert "it is no JSON" in capsys.readouterr().err
    assert (tmp_path / "cpu.json").read_text() == "not json"
