"""Pure: what finished trials amount to. The front, the best trial, savings, ranks, verdicts."""
