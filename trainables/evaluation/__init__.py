"""What a model does on held-out rows: loss, greedy text, hidden states."""
