"""A 4-bit trial against its 16-bit baseline."""
