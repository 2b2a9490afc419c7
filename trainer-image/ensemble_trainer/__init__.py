"""Training: trials on Ray, proposals by Optuna, asynchronous Hyperband."""
