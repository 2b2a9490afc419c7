"""Core of ensemble-operator: the API, the model library, selection, allocation and serving. Imports no torch, ray or kopf."""

__version__ = "0.1.0"
