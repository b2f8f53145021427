"""Continual learning: what keeps a learner from forgetting, one method a file.

A method is put around a learner, which is anything with the five things of `Trainable`, and the result is one
again, so that methods stack:

    learner = RegLoRA(Replay(Classifier(64, 10)), rank=4)
    for example in stream:
        learner.learn_one(example)
    learner.consolidate()     # a boundary, a drift, or every so many samples; nothing else tells of tasks

One update is the same for all, and stands in the innermost learner: a batch, `objective` of it, a gradient,
a step. A method changes the network that is trained, or the objective that is descended, when it is made,
and does what else it does before or after the learner's own `learn_one`.
"""
