"""The model library: the state of everything, as files in a folder or a bucket."""

from ensemble_core.library.joined import Joined, JoinedModel, join
from ensemble_core.library.library import Library
from ensemble_core.library.searches import Fenced, TrialState
from ensemble_core.library.splits import LabelledIds, make_header
from ensemble_core.library.store import LocalStore, S3Store, Store, open_store, storage_at

__all__ = [
    "Fenced",
    "Joined",
    "JoinedModel",
    "LabelledIds",
    "Library",
    "LocalStore",
    "S3Store",
    "Store",
    "TrialState",
    "join",
    "make_header",
    "open_store",
    "storage_at",
]
