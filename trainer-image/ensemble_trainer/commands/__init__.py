"""The verbs of `ensemble` that train."""
