"""Memory and time, measured and predicted; the device and its lock."""
