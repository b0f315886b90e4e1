"""``python -m lightning_fisher.experiment.report FOLDER``."""

from lightning_fisher.experiment.report.write_report import main

if __name__ == "__main__":
    main()
