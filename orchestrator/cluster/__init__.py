"""Where trials run: Ray, the nodes and their GPUs, and ready files for clusters."""
