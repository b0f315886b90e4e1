"""LightningModules and models that nobody here wrote, under the regularizer and the metric."""
