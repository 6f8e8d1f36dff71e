"""What is swapped: encoders, resamplers, projectors, backbones, data sets, tasks, optimizers, engines, trackers."""

__ghostvis__ = True
