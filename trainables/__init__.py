"""One trial on one device: the base model, its LoRA adapter, training and measurement.

This package knows nothing of Ray, Optuna or MLflow.
"""

import os

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
"""Nothing here is compiled; but as bitsandbytes is imported, PyTorch would load its compiler: 2 s of each process."""
