"""Draw the figures of ``results/`` and their copies in ``docs/images/`` again from the committed rows.

``python results/figures.py`` writes the reports of all studies, with NAMEs those of some; then
the copies. No network is trained or loaded. The figures of the metric card, a training and wrong labels are not made of
rows: ``docs/gallery.md`` names their commands.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from lightning_fisher.experiment.records.curve import read_history
from lightning_fisher.experiment.records.result import require_rows
from lightning_fisher.experiment.report.curves.figure import plot_curves
from lightning_fisher.experiment.report.write_report import report

ROOT = Path(__file__).resolve().parents[1]
RESULTS, IMAGES = ROOT / "results", ROOT / "docs" / "images"
COPIES = {  # figures in the documentation
    "differences_digits.png": "results/differences-digits/lines.png",
    "label_noise_beta_cifar_small.png": "results/label_noise_beta-cifar_small/lines.png",
    "label_noise_beta_digits.png": "results/label_noise_beta-digits/lines.png",
    "methods_cifar_small.png": "results/methods-cifar_small/methods.png",
    "methods_digits.png": "results/methods-digits/methods.png",
    "scenario_confusion_cifar_small.png": "results/scenario_confusion-cifar_small/metrics.png",
    "scenario_confusion_cifar_small_new.png": "results/scenarios-cifar_small/scenario_confusion/metrics.png",
    "scenario_confusion_paper10k.png": "results/scenario_confusion-paper10k/metrics.png",
    "scenario_confusion_paper10k_ranking.png": "results/scenario_confusion-paper10k/ranking.png",
    "scenario_confusion_digits.png": "results/scenario_confusion-digits/metrics.png",
    "scenarios_cifar_small.png": "results/scenarios-cifar_small/scenarios.png",
    "step_forms_digits.png": "results/step_forms-digits/groups.png",
    "zoo_cifar_small.png": "results/zoo-cifar_small/zoo.png",
    "zoo_digits.png": "results/zoo-digits/zoo.png",
    "benchmarks_cpu.png": "benchmarks/results/cpu.png",
}
KINDS = {"scenarios-cifar_small": "scenarios"}  # of reports that are not those of one study


def demonstration() -> None:
    """Draw the demonstration as its command does: seed 0 alone."""
    runs = [(run, row) for run, row in require_rows(RESULTS / "demo-full") if row["seed"] == 0]
    plot_curves([row for _, row in runs], [read_history(run) for run, _ in runs], ["reg"], IMAGES / "demo.png")


def main(names: list[str]) -> None:
    """Write the reports of some studies, all without a name, and the copies."""
    for folder in sorted(written.parent for written in RESULTS.rglob("report.md")):
        name = str(folder.relative_to(RESULTS))
        if any(folder.glob("*.png")) and (not names or name in names):
            report(folder, kind=KINDS.get(name))
    demonstration()
    for name, source in COPIES.items():
        shutil.copyfile(ROOT / source, IMAGES / name)


if __name__ == "__main__":
    main(sys.argv[1:])
