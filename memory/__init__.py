"""What a learner keeps beyond its weights: chunks of the past, prompts, a bottleneck, states of keys.

Methods that keep what was learned are in `continual`; stores that several learners share are `shared` and
`replica`. Nothing here knows of agents, environments or streams.
"""
