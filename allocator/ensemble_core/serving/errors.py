"""What can go wrong with a server; each message is one that a person can act on."""

from __future__ import annotations


class ServingError(RuntimeError):
    """The server cannot be started or reached, or it refuses a request."""


class UnreachableError(ServingError):
    """Nobody answers there, or not over gRPC."""


class SilentError(ServingError):
    """The server is there and does not answer: it is stopped, or starved of its cores."""


class LoadError(ServingError):
    """A model does not load: it does not fit, or its file is broken."""


class StuckError(LoadError):
    """A model's process died while it was loaded, or it takes too long: the server waits for it until it is killed."""
