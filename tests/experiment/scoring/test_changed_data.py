"""A run is scored on the images it was trained with: an archive that was overwritten since is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.experiment.scored import SCORE, run_in

OWN = ["data=arrays", "data.path=a.npz", "data.num_classes=3", "data.channels=1", "data.image_size=8"]
QUICK = ["model.net.width=2", "model.max_epochs=1", "reg=none", "metric.at_end=none", "metric.every_n_validations=null"]


def archive(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrays = {f"{split}_images": rng.integers(256, size=(60, 8, 8), dtype=np.uint8) for split in ("train", "test")}
    np.savez(path, **arrays, train_labels=np.arange(60) % 3, test_labels=np.arange(60) % 3)


def test_an_overwritten_archive_is_refused(tmp_path: Path) -> None:
    archive(tmp_path / "a.npz", 0)
    trained = run_in(tmp_path, *OWN, *QUICK, "metric.subset_size=10", "hydra.run.dir=run")
    assert trained.code == 0, trained.err
    assert "54 training, 6 validation" in trained.out  # a tenth by default
    assert "± nan" not in trained.out
    score = [*SCORE, "score.checkpoint=run"]

    archive(tmp_path / "a.npz", 1)
    changed = run_in(tmp_path, *score)
    assert changed.code == 1
    assert "`a.npz` to hold the images that the run `" in changed.err
    assert "its content has changed since" in changed.err
    assert changed.err.count("\n") == 1

    on_purpose = run_in(tmp_path, *score, "+data.path=a.npz", figures=False)
    assert on_purpose.code == 0, on_purpose.err
    assert "`a.npz` holds other images than the run `" in on_purpose.out

    archive(tmp_path / "moved.npz", 0)
    (tmp_path / "a.npz").unlink()
    moved = run_in(tmp_path, *score, "+data.path=moved.npz", figures=False)
    assert moved.code == 0, moved.err
    assert "other images" not in moved.out
