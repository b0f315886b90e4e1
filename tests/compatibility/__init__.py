"""LightningModules and models that nobody here wrote, under the regulariser and the metric."""
