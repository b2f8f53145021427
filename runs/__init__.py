"""A run: configuration, the loop, checkpoints, metrics, progress, evaluation, reports and presets.

Learners live in `agents`, environments in `envs`; the command line in `streamwise`.
"""
