"""Runs: a learner on a stream, from its settings to its report, killed or not.

Of one agent (`train`, `loop`, `config`, `recorder`, `evaluate`, `report`), of an event model on a log
(`ingest`, and with workers `partitioned`; `serve`, its page and HTTP), of many on Ray (`sweep`), of live
systems that share memories (`up`), of methods side by side (`tasks`, `continual`). They share checkpoints,
storages, presets, and the loop. Learners live in `agents`, environments in `envs`; the command line in
`streamwise`.
"""
