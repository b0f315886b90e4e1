"""Score one network, or compare two: what ``python run.py score.checkpoint=...`` does instead of training."""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lightning_fisher.data import LabeledImages
from lightning_fisher.datamodule import ImageDataModule
from lightning_fisher.experiment.config.config_hash import flat_config
from lightning_fisher.experiment.config.job import Job
from lightning_fisher.experiment.config.score_request import checkpoints
from lightning_fisher.experiment.config.validation import refuse
from lightning_fisher.experiment.display.terminal import WIDTH, print_table, shown
from lightning_fisher.experiment.records import provenance, run_folders
from lightning_fisher.experiment.records.result import plain, write_atomically, write_row
from lightning_fisher.experiment.records.run_folders import CARD
from lightning_fisher.experiment.scoring import card_page
from lightning_fisher.experiment.scoring.card import DATA_NAME, Card, to_json
from lightning_fisher.experiment.scoring.card_figures import plot_gradients, plot_influential, plot_spectrum
from lightning_fisher.experiment.scoring.compare import print_comparison, write_comparison
from lightning_fisher.experiment.scoring.gradient_influence import measure_influence, training_images
from lightning_fisher.experiment.scoring.inputs import check_network, class_names, device, load_images
from lightning_fisher.experiment.scoring.layers.figure import plot_layers
from lightning_fisher.experiment.scoring.network import Subject, check_same_images, make_subject
from lightning_fisher.experiment.scoring.subset_metrics import evaluate, measure_subsets

BATCH = 250  # images in an evaluation pass
METRIC_OPTIONS = ("num_subsets", "subset_size", "logit_norm", "residual", "scale", "batch_norm", "chunk_size", "seed")


def score(job: Job) -> None:
    """Measure the networks of ``score`` and write their cards into the run folder.

    One network: ``card.md``, ``card.json``, four figures, and the row ``result.json`` for reports over a sweep. Two: a
    folder of that kind for each, and the comparison over the same subsets.

    Args:
        job: with a config that was checked.

    Raises:
        ConfigError: in one line, if the request cannot be met.
    """
    cfg, folder, digest = job.cfg, job.folder, job.config_hash
    overrides = job.overrides
    if cfg.trainer.devices not in (1, "1", "auto"):
        raise refuse("trainer.devices", "1 when scoring (a sweep scores several networks at once)", cfg.trainer.devices)
    paths = checkpoints(cfg)
    subjects = [make_subject(cfg, path, overrides, job.choices) for path in paths]
    if len(subjects) == 2:
        check_same_images(subjects[0], subjects[1])
    data = load_images(cfg, subjects[0])
    for subject in subjects:
        subject.net.to(device(cfg.trainer.accelerator)).eval()
        check_network(subject, data)
    classes = class_names(cfg, data)
    if any(subject.checkpoint is not None and folder in subject.checkpoint.resolve().parents for subject in subjects):
        raise refuse("hydra.run.dir", "a folder of its own, not one that holds the checkpoint", folder)
    with run_folders.lock(folder):
        run_folders.check_own(folder)
        if cfg.restart:
            run_folders.clear(folder)
        run_folders.check_same(folder, digest)
        header = f"# config hash: {digest}\n"
        write_atomically(folder / "config.yaml", header + OmegaConf.to_yaml(cfg, resolve=True))
        write_atomically(folder / "overrides.yaml", OmegaConf.to_yaml(overrides))
        made = []
        for number, subject in enumerate(subjects, start=1):
            own = folder / f"{number}-{subject.name}" if len(subjects) > 1 else folder
            own.mkdir(exist_ok=True)
            card = measure(cfg, subject, data, classes)
            write(card, data, own)
            write_row(own, row(cfg, card, overrides, digest))
            if len(subjects) == 1:
                print_card(card, own)
            made.append(card)
        if len(made) == 2:
            write_comparison(made[0], made[1], folder)
            print_comparison(made[0], made[1], folder)


def measure(cfg: DictConfig, subject: Subject, data: ImageDataModule, classes: list[str]) -> Card:
    """Measure one network."""
    print(f"scoring     {subject.name}: {subject.network} on {data.name}", flush=True)
    start = time.perf_counter()
    net, normalization = subject.net, data.normalization
    clean = data.clean_set
    test = evaluate(net, data.test_set, normalization, BATCH, "losses of the test images")
    train = evaluate(net, clean, normalization, BATCH, "losses of the training images")
    subsets = measure_subsets(net, clean, normalization, cfg.metric)
    trained = training_images(clean, data.train_set)
    influence = measure_influence(
        net,
        trained,
        normalization,
        evaluation=train if len(trained) == len(clean) else None,
        samples=cfg.score.samples,
        seed=cfg.metric.seed,
        batch_size=BATCH,
    )
    where = next(net.parameters()).device
    made = {
        "versions": provenance.versions(),
        **provenance.git_commit(),
        "hardware": provenance.hardware(where),
        "metric_seconds": time.perf_counter() - start,
        "peak_memory_mib": provenance.peak_memory_mib(where),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    metric = {key: cfg.metric[key] for key in METRIC_OPTIONS}
    return Card(subject, classes, test, train, subsets, influence, metric, cfg.score.top, made)


def write(card: Card, data: ImageDataModule, folder: Path) -> Sequence[Path]:
    """Write the figures, the page and the numbers of a card."""
    trained: LabeledImages = training_images(data.clean_set, data.train_set)
    figures = [
        plot_spectrum(card, folder / "spectrum.png"),
        plot_layers(card, folder / "layers.png"),
        plot_influential(card, trained, folder / "influential.png"),
        plot_gradients(card, folder / "gradients.png"),
    ]
    write_atomically(folder / CARD, card_page.to_markdown(card, figures))
    write_atomically(folder / DATA_NAME, json.dumps(plain(to_json(card)), indent=1) + "\n")
    return figures


def row(cfg: DictConfig, card: Card, overrides: list[str], digest: str) -> dict[str, Any]:
    """The row of a scored network: that of its run with what was measured now, so that reports rank and group it."""
    subject = card.subject
    scored = {key: value for key, value in flat_config(cfg).items() if key.startswith(("score.", "metric."))}
    scored["score.checkpoint"] = subject.name
    return {
        "study": {"name": "score", "report": "ranking"},
        "choices": subject.choices,
        "overrides": [*subject.overrides, *overrides],
        "seed": subject.config.get("seed", cfg.seed),
        "config_hash": digest,
        **card.quantities(),
        "epochs": subject.epochs,
        "stop_reason": "scored",
        "parameters": card.parameters,
        "training_samples": len(card.influence.log_norms),
        "checkpoint": str(subject.checkpoint) if subject.checkpoint is not None else None,
        "checkpoint_sha256": subject.digest,
        **card.made,
        "config": {**(subject.config or flat_config(cfg)), **scored},
    }


def print_card(card: Card, folder: Path) -> None:
    """Print the table of a card, what its figures show, and where they are."""
    print_table(card_page.HEADINGS, card_page.table(card))
    for sentence in (*card_page.reading(card), *card_page.influence_reading(card)):
        print(textwrap.fill(sentence, WIDTH))
    for name in (CARD, "spectrum.png", "layers.png", "influential.png", "gradients.png"):
        print(f"card    {shown(folder / name)}")
    print(flush=True)
