"""Task weighting for real-world image super-resolution: tasks are parts of a degradation space.

`mtlweight_sr.degradation` makes low-resolution images, `tasks` cuts their space into tasks, `models`
and `metrics` are the field's, `validation`, `references` and `training` run one experiment, and
`study` compares strategies.
"""
