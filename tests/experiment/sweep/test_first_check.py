"""All jobs of a sweep are checked before the first one trains: one line that names the job, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lightning_fisher.experiment.sweep import jobs
from lightning_fisher.experiment.training import preflight
from tests.experiment.conftest import QUICK, Command, Result

OWN = ["data=arrays", "data.num_classes=3", "data.channels=1", "data.image_size=8", "metric.subset_size=10"]


@pytest.fixture
def refused(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """A sweep that must end before it starts a job."""

    def never(*arguments: object) -> int:
        raise AssertionError("a job was started")

    monkeypatch.setattr(jobs, "_run", never)

    def run(*arguments: str) -> Result:
        done = command("-m", *arguments)
        assert done.code == 1, done.out
        assert done.err.startswith("Error: ")
        assert done.err.count("\n") == 1
        assert not (tmp_path / "multirun").exists()
        return done

    return run


def archive(path: Path, images: int = 60) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"{split}_images": rng.integers(256, size=(images, 8, 8), dtype=np.uint8) for split in ("train", "test")}
    np.savez(path, **arrays, train_labels=np.arange(images) % 3, test_labels=np.arange(images) % 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["reg.beta=0,1O"], ["`reg.beta`", "a number of at least 0, or auto", "`1O`", "job `reg.beta=1O`"]),
        (
            ["model.max_epochs=3,x"],
            ["`model.max_epochs`", "an integer of at least 1", "`x`", "job `model.max_epochs=x`"],
        ),
        (["reg.beta=-1,0"], ["`reg.beta`", "a number of at least 0", "`-1`", "job `reg.beta=-1`"]),
        (["reg.difference=backward,backwards"], ["`reg.difference`", "backward, forward, central", "'backwards'"]),
        (["model.net.depth=8,9"], ["`model.net.depth`", "6 n + 2", "9", "job `model.net.depth=9`"]),
        (["model.optimizer.momentum=0.9,-1", "seed=0,1"], ["model.optimizer", "momentum", "-1", "seed=0"]),
        (["metric.measures=[path_norm],[path_nrm]"], ["`metric.measures`", "path_nrm", "Did you mean `path_norm`?"]),
        (["data.augmentation=no-aug,flip"], ["`data.augmentation`", "flip-only", "'flip'"]),
        (["data.train_size=100,801"], ["`data.train_size`", "1 to 800", "801"]),
        (["metric.subset_size=100,900"], ["`metric.subset_size`", "800", "`900`"]),
        (["reg=fisher,fischer"], ["`reg`", "`fischer`", "Did you mean `fisher`?", "job `reg=fischer`"]),
        (["seed=0,1", "reg.num_sub_batches=8,65"], ["`reg.num_sub_batches`", "64", "`65`", "job `seed=0 reg.num_sub"]),
        (["data=cifar10,digits", "data.download=true"], ["options of 'digits'", "'download'", "job `data=digits`"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and "=" in value[0] else "",
)
def test_a_mistake_in_the_last_job_is_found_first(arguments: list[str], said: list[str], refused: Command) -> None:
    done = refused(*arguments)
    for words in (*said, "no job was started"):
        assert words in done.err


def test_a_missing_file_is_found_first(refused: Command, tmp_path: Path) -> None:
    archive(tmp_path / "a.npz")
    done = refused(*OWN, "data.path=a.npz,missing.npz")
    assert "`data.path`" in done.err
    assert "no file 'missing.npz' (job `data.path=missing.npz`; no job was started)" in done.err


def test_a_refused_sweep_leaves_an_earlier_one_as_it_was(command: Command, tmp_path: Path) -> None:
    done = command("-m", *QUICK, "seed=0", "metric.at_end=none")
    assert done.code == 0, done.err
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert command("-m", *QUICK, "seed=0,x", "metric.at_end=none").code == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    # what is complete is not made again, also where its parts could not be made any more
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preflight, "check_parts", lambda *given: pytest.fail("a complete job was made again"))
        again = command("-m", *QUICK, "seed=0", "metric.at_end=none")
    assert "1 of 1 jobs complete (1 before this command)" in again.out


def test_each_value_is_made_once(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    for name in ("make_module", "made"):
        original = getattr(preflight, name)

        def count(*given: object, _original=original, _name=name, **options: object) -> object:
            made.append(_name if _name == "make_module" else str(given[0]))
            return _original(*given, **options)

        monkeypatch.setattr(preflight, name, count)
    monkeypatch.setattr(jobs, "_run", lambda *given: 1)
    done = command("-m", "seed=0,1,2,3", "reg.alpha=1e-4,1e-3")
    assert "8 failed" in done.out
    assert sorted(made) == ["data", "data", "make_module", "reg", "reg"]  # the network was given the data's images, too


def test_what_is_settled_takes_no_imports(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(preflight, "check_parts", lambda *given: pytest.fail("torch would be imported"))
    monkeypatch.setattr(jobs, "_run", lambda *given: 1)
    done = command("-m", "seed=0,1", "reg.beta=0,10,auto", "data.label_noise=0.0,0.4")
    assert "12 failed" in done.out
    assert "2 failed" in command("-m", "experiment=demo").out


def test_a_job_that_takes_from_others_is_checked_when_it_is_its_turn(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    monkeypatch.setattr(jobs, "_run", lambda *given: started.append(given[1].name) or 1)
    sweep = ["experiment=methods", "size=digits", "comparison=sam", "data.label_noise=0.0"]
    done = command("-m", *sweep, "comparison.job=choose0,epochs0")
    assert [name.rpartition("-")[0] for name in started] == ["job=choose0"]
    assert "Expected a complete run for every value of reg.rho" in done.out + done.err
