"""Between the driver and its workers: tasks, inputs, adapters, checkpoints, faults; all through Ray."""
