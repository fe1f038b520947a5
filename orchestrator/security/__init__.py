"""Who may come near: Ray's token, the sweep's folder, secrets in what others print."""
