"""Reports over rows: tables and figures. ``python -m lightning_fisher.experiment.report FOLDER``."""
