"""The training step: the eager and the graph engine behind one Protocol, their batches, the cost of a step."""
