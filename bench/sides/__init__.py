"""The sides of the training benchmark: made-up work, our runner, and the peers that do the same work."""
