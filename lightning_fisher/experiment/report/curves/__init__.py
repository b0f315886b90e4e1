"""The form ``curves``: the trainings of a study side by side."""
