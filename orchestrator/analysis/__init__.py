"""Pure: what finished trials amount to. The front, its knee, savings, ranks, verdicts."""
