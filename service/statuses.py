"""The HTTP status of every error of the library; apart, as the child process of a job needs it and no web framework."""

from __future__ import annotations

from alphalloc import errors

# The nearest class of an error's ancestry decides.
STATUS_OF_ERROR: dict[type[errors.AlphallocError], int] = {
    errors.AlphallocError: 422,
    errors.CheckpointError: 422,
    errors.CheckpointNotFoundError: 404,
    errors.RevisionNotFoundError: 404,
    errors.GatedModelError: 403,
    errors.HubUnreachableError: 503,
    errors.MatrixError: 422,
    errors.SpectrumCheckError: 500,
    errors.AnalysisError: 422,
    errors.DeviceError: 503,
    errors.MemoryBudgetError: 503,
    errors.AllocationError: 422,
    errors.DocumentError: 422,
    errors.AdapterError: 422,
    errors.TrainingError: 422,
    errors.BackendError: 503,
    errors.ServiceError: 502,
    errors.AnalysisFailedError: 409,
    errors.StorageError: 503,
    errors.SettingsError: 422,
    errors.OutputError: 422,
    errors.MissingExtraError: 503,
}


def status_of(error: errors.AlphallocError) -> int:
    """Return the HTTP status of ``error`` by the table above."""
    return next(STATUS_OF_ERROR[kind] for kind in type(error).__mro__ if kind in STATUS_OF_ERROR)
