"""Memory and time, measured and predicted; the device and who may use it."""
