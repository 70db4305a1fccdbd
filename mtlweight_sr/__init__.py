"""Task weighting for real-world image super-resolution: tasks are parts of a degradation space.

`degradation` makes low-resolution images, `tasks` cuts its space into tasks, `models` and `metrics`
are the field's, `validation`, `references` and `training` run one experiment, and `study` compares
strategies.
"""
