"""Rows: from the hub or a file, in the prompt's frame, split and tokenised."""
