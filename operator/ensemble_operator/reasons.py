"""Reasons of conditions, one word each; the administrator guide explains every one."""

from __future__ import annotations

# Degraded is False.
AS_EXPECTED = "AsExpected"

# Workloads: Jobs and RayJobs of any kind.
SUSPENDED = "Suspended"
STARTING = "Starting"
QUEUED = "Queued"
UNSCHEDULABLE = "Unschedulable"
CLAIM_NOT_READY = "ClaimNotReady"
IMAGE_PULL_FAILED = "ImagePullFailed"
CONTAINER_CONFIG_FAILED = "ContainerConfigFailed"
INTERRUPTED = "Interrupted"
LOST = "Lost"
REPORT_MISSING = "ReportMissing"

# HPOSearch.
TRAINING = "Training"
TRAINED = "Trained"
TRAINING_FAILED = "TrainingFailed"
KUBERAY_MISSING = "KubeRayMissing"
DELETING_LIBRARY = "DeletingLibrary"
LIBRARY_IN_USE = "LibraryInUse"
LIBRARY_DELETION_FAILED = "LibraryDeletionFailed"

# EnsembleSelection.
SOURCES_NOT_READY = "SourcesNotReady"
PROFILING = "Profiling"
SELECTING = "Selecting"
SELECTED = "Selected"
SELECTION_FAILED = "SelectionFailed"
NO_ENSEMBLE = "NoEnsemble"

# EnsembleDeployment.
SELECTION_MISSING = "SelectionMissing"
SELECTION_NOT_READY = "SelectionNotReady"
BUDGET_UNKNOWN = "BudgetUnknown"
OPTIMISING = "Optimising"
OPTIMISATION_FAILED = "OptimisationFailed"
INSUFFICIENT_DEVICES = "InsufficientDevices"
ROLLING_OUT = "RollingOut"
ROLLOUT_FAILED = "RolloutFailed"
SERVING = "Serving"
SCALING = "Scaling"
PODS_FAILING = "PodsFailing"

# Of every kind, by the engine.
INVALID_SPEC = "InvalidSpec"
APPLY_FAILED = "ApplyFailed"
NAME_TAKEN = "NameTaken"
INTERNAL_ERROR = "InternalError"
