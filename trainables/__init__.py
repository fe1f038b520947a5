"""One trial on one device: the base model, its LoRA adapter, training and measurement.

This package knows nothing of Ray, Optuna or MLflow.
"""
