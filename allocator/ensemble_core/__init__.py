"""The API, the model library, selection, allocation and serving; imports no torch, Ray or Kubernetes client."""

__version__ = "0.1.0"
