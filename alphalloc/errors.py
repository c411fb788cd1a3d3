"""Every error this project raises on purpose, as one tree.

::

    AlphallocError
    ├── CheckpointError                  the weights cannot be read
    │   ├── CheckpointNotFoundError      no such path, hub id or file in the repository
    │   ├── RevisionNotFoundError        the hub knows the model but not the revision, or it is not a revision at all
    │   ├── GatedModelError              the licence must be accepted, or HF_TOKEN set
    │   ├── HubUnreachableError          offline and not cached, or the hub did not answer
    │   ├── CorruptCheckpointError       the file contradicts its own header
    │   ├── UnsafeCheckpointError        a pickle that carries code
    │   ├── UnsupportedCheckpointError   a format or quantisation that is not read (yet), by name
    │   └── UnknownArchitectureError     no repeated blocks found among the tensor names
    ├── MatrixError                      one matrix has no usable spectrum
    │   ├── MatrixShapeError             not two-dimensional, or empty
    │   ├── NonFiniteWeightError         NaN or infinity among the weights
    │   └── SpectrumCheckError           trace or Frobenius identity broken: a fault of the eigensolver
    ├── AnalysisError                    the analysis as a whole has no answer
    │   ├── UnknownEstimatorError        no estimator of that name
    │   ├── NothingToAnalyzeError        the filters left no matrix
    │   ├── LayerWithoutAlphaError       a layer has no valid alpha and no fill rule was chosen
    │   ├── StrictError                  a matrix was skipped or degenerate and strict mode was asked for
    │   ├── DeviceError                  the device asked for is not there or cannot compute in float64
    │   └── MemoryBudgetError            a matrix needs more memory than the budget allows
    ├── AllocationError                  scores and budget give no schedule
    │   ├── InvalidScoresError           empty, NaN, infinite, zero or negative scores
    │   ├── InvalidBudgetError           its amount or unit makes no sense
    │   ├── InfeasibleBudgetError        below layers x min or above layers x max
    │   ├── InvalidParameterError        beta, bounds, top_k or a rule's own setting is out of range
    │   ├── UnknownRuleError             no allocation rule of that name
    │   └── UnknownRoundingError         no rounding of that name
    ├── DocumentError                    a saved JSON document is not what it should be
    │   └── SchemaVersionError           written by a newer major version
    ├── AdapterError                     a MoE-LoRA adapter cannot be built, loaded or merged
    ├── TrainingError                    a training, evaluation or comparison cannot go on
    │   ├── RecipeError                  a key or value of the recipe makes no sense
    │   └── DatasetError                 the examples are missing, empty or without the fields needed
    ├── BackendError                     the machines that compute matrices cannot be reached or kept failing
    ├── ServiceError                     the allocation service gave no answer that can be used (raised by the client)
    │   ├── ServiceUnreachableError      nothing answered, or it stayed unavailable through all tries
    │   ├── ServiceRefusedError          it answered with a problem document; ``problem`` holds it
    │   └── AnalysisFailedError          the analysis asked for ended as failed or cancelled
    ├── StorageError                     the service's database cannot be read or written now
    ├── SettingsError                    an argument, address or environment variable makes no sense
    ├── OutputError                      a result cannot be written where it was asked for
    └── MissingExtraError                an optional library is not installed

Each class has a stable ``code`` (kebab-case) for machines. A message says what was expected, what came and what to do.
"""

from __future__ import annotations


class AlphallocError(Exception):
    """Base of all errors raised on purpose; ``code`` is stable across versions."""

    code = "alphalloc-error"


class CheckpointError(AlphallocError):
    """The weights cannot be read."""

    code = "checkpoint-error"


class CheckpointNotFoundError(CheckpointError):
    """No such path, hub id or file in the repository."""

    code = "model-not-found"


class RevisionNotFoundError(CheckpointError):
    """The hub knows the model but not the revision, or the text is not a revision at all."""

    code = "revision-not-found"


class GatedModelError(CheckpointError):
    """The licence must be accepted on the model page, or HF_TOKEN set."""

    code = "gated-model"


class HubUnreachableError(CheckpointError):
    """Offline and not cached, or the hub did not answer."""

    code = "hub-unreachable"


class CorruptCheckpointError(CheckpointError):
    """The file contradicts its own header."""

    code = "corrupt-checkpoint"


class UnsafeCheckpointError(CheckpointError):
    """A pickle that carries code; it was not run."""

    code = "unsafe-checkpoint"


class UnsupportedCheckpointError(CheckpointError):
    """A format or quantisation that is not read (yet)."""

    code = "unsupported-checkpoint"


class UnknownArchitectureError(CheckpointError):
    """No repeated blocks found among the tensor names."""

    code = "unknown-architecture"


class MatrixError(AlphallocError):
    """One matrix has no usable spectrum."""

    code = "matrix-error"


class MatrixShapeError(MatrixError):
    """Not two-dimensional, or empty."""

    code = "matrix-shape"


class NonFiniteWeightError(MatrixError):
    """NaN or infinity among the weights."""

    code = "non-finite-weight"


class SpectrumCheckError(MatrixError):
    """The eigenvalues break the trace or the Frobenius identity: a fault of the eigensolver, not of the input."""

    code = "spectrum-check"


class AnalysisError(AlphallocError):
    """The analysis as a whole has no answer."""

    code = "analysis-error"


class UnknownEstimatorError(AnalysisError):
    """No estimator of that name."""

    code = "unknown-estimator"


class NothingToAnalyzeError(AnalysisError):
    """The filters left no matrix."""

    code = "nothing-to-analyze"


class LayerWithoutAlphaError(AnalysisError):
    """A layer has no valid alpha and no fill rule was chosen."""

    code = "layer-without-alpha"


class StrictError(AnalysisError):
    """A matrix was skipped or degenerate and strict mode was asked for."""

    code = "strict"


class DeviceError(AnalysisError):
    """The device asked for is not there or cannot compute in float64."""

    code = "device"


class MemoryBudgetError(AnalysisError):
    """A matrix needs more memory than the budget allows; the message names it and the bytes."""

    code = "memory-budget"


class AllocationError(AlphallocError):
    """Scores and budget give no schedule."""

    code = "allocation-error"


class InvalidScoresError(AllocationError):
    """Empty, NaN, infinite, zero or negative scores."""

    code = "invalid-scores"


class InvalidBudgetError(AllocationError):
    """The budget's amount or unit makes no sense."""

    code = "invalid-budget"


class InfeasibleBudgetError(AllocationError):
    """The budget lies below layers x min or above layers x max."""

    code = "infeasible-budget"


class InvalidParameterError(AllocationError):
    """beta, bounds, top_k or a rule's own setting is out of range."""

    code = "invalid-parameter"


class UnknownRuleError(AllocationError):
    """No allocation rule of that name."""

    code = "unknown-method"


class UnknownRoundingError(AllocationError):
    """No rounding of that name."""

    code = "unknown-rounding"


class DocumentError(AlphallocError):
    """A saved JSON document is not what it should be."""

    code = "invalid-document"


class SchemaVersionError(DocumentError):
    """The document was written by a newer major version."""

    code = "schema-version"


class AdapterError(AlphallocError):
    """A MoE-LoRA adapter cannot be built, loaded or merged."""

    code = "adapter-error"


class TrainingError(AlphallocError):
    """A training, evaluation or comparison cannot go on."""

    code = "training-error"


class RecipeError(TrainingError):
    """A key or value of the recipe makes no sense."""

    code = "invalid-recipe"


class DatasetError(TrainingError):
    """The examples are missing, empty or without the fields needed."""

    code = "invalid-dataset"


class BackendError(AlphallocError):
    """The machines that compute matrices cannot be reached, or a task kept failing on them."""

    code = "backend-error"


class ServiceError(AlphallocError):
    """The allocation service gave no answer that can be used."""

    code = "service-error"


class ServiceUnreachableError(ServiceError):
    """Nothing answered, or the service stayed unavailable through all tries."""

    code = "service-unreachable"


class ServiceRefusedError(ServiceError):
    """The service answered with a problem document; ``problem`` holds it as a dictionary."""

    code = "service-refused"

    def __init__(self, message: str, problem: dict[str, object] | None = None) -> None:
        super().__init__(message)
        self.problem = problem or {}


class AnalysisFailedError(ServiceError):
    """The analysis asked for ended as failed or cancelled."""

    code = "analysis-failed"


class StorageError(AlphallocError):
    """The service's database cannot be read or written now."""

    code = "storage-unavailable"


class SettingsError(AlphallocError):
    """An argument, address or environment variable makes no sense."""

    code = "invalid-settings"


class OutputError(AlphallocError):
    """A result cannot be written where it was asked for."""

    code = "output"


class MissingExtraError(AlphallocError):
    """An optional library is not installed; the message holds the install line."""

    code = "missing-extra"
