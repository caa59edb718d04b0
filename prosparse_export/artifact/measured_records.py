"""The sections of prosparse.json that hold measurements."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "ApproximationRecord",
    "FailedCheck",
    "LayerSpeedup",
    "OutputCheck",
    "PartCost",
    "PredictedSpeedup",
    "QualityRecord",
    "SparsityRecord",
    "ThresholdSearch",
    "ThresholdTrial",
    "ValidatedFiles",
    "ValidationRecord",
    "WeightsRecord",
]


@dataclass(frozen=True)
class ThresholdTrial:
    """One setting that ``prosparse calibrate`` tried.

    Attributes:
        value: of the search parameter.
        sparsity: activation sparsity, mean over layers.
        perplexity: on the calibration text.
        thresholds: FATReLU threshold of each layer.
        within: the perplexity is within the limit.
    """

    value: float
    sparsity: float
    perplexity: float
    thresholds: tuple[float, ...]
    within: bool


@dataclass(frozen=True)
class ThresholdSearch:
    """What ``prosparse calibrate`` searched.

    Attributes:
        search_parameter: ``threshold``, or ``energy dropped`` per layer.
        budget: allowed relative increase of perplexity.
        perplexity_limit: the perplexity that the budget allows.
        tokens: of calibration text.
        hidden_act_param: the chosen thresholds as config.json states them.
        chosen: the trial that was taken.
        trials: all trials, by increasing value.
    """

    search_parameter: str
    budget: float
    perplexity_limit: float
    tokens: int
    hidden_act_param: float | tuple[float, ...]
    chosen: ThresholdTrial
    trials: tuple[ThresholdTrial, ...]


@dataclass(frozen=True)
class ApproximationRecord:
    """What ``--approximate`` did, and what it costs.

    Attributes:
        activation: the activation that was thresholded.
        keep: fraction of neurons that stay active.
        thresholds: of each layer.
        texts: SHA-256 of each text file, by name.
        calibration_tokens: tokens that set the thresholds.
        perplexity_tokens: tokens that perplexity was measured on, disjoint from them.
        dense_perplexity: before.
        perplexity: after.
        sparsity: activation sparsity, mean over layers.
        sparsity_by_layer: activation sparsity of each layer.
    """

    activation: str
    keep: float
    thresholds: tuple[float, ...]
    texts: dict[str, str]
    calibration_tokens: int
    perplexity_tokens: int
    dense_perplexity: float
    perplexity: float
    sparsity: float
    sparsity_by_layer: tuple[float, ...]

    @property
    def perplexity_increase(self) -> float:
        """Relative: 0.01 is 1% worse."""
        return self.perplexity / self.dense_perplexity - 1.0


@dataclass(frozen=True)
class LayerSpeedup:
    """Predicted decode speedup of one FFN.

    Attributes:
        layer: layer number.
        speedup: over the dense FFN; 1 if it stays dense.
        sparsity: measured activation sparsity; None if not measured.
    """

    layer: int
    speedup: float
    sparsity: float | None = None


@dataclass(frozen=True)
class PredictedSpeedup:
    """The decode speedup that ``--profile-text`` predicts for the exporting machine.

    Attributes:
        texts: hash of the token ids of each text, by name.
        tokens: of profiling text.
        perplexity: of the checkpoint on that text.
        layers: each FFN.
        decode_speedup: of a whole decode step over the dense baseline.
        decode_seconds: predicted time of a sparse decode step.
        ffn_share: the FFNs' share of the bytes that a dense step reads.
        threads: intra-op threads.
        bandwidth: measured memory bandwidth, bytes per second.
    """

    texts: dict[str, str]
    tokens: int
    perplexity: float
    layers: tuple[LayerSpeedup, ...]
    decode_speedup: float
    decode_seconds: float
    ffn_share: float
    threads: int
    bandwidth: float


@dataclass(frozen=True)
class OutputCheck:
    """Outputs of an optimized file against those of its source, on random inputs.

    Attributes:
        outputs_compared: both files ran.
        reason: why they could not be compared.
        largest_difference: of an output value.
        largest_output: magnitude of the largest output value.
        bound: allowed difference.
        float_activations_difference: largest difference with float32 activations in MatMulNBits.
    """

    outputs_compared: bool
    reason: str | None = None
    largest_difference: float | None = None
    largest_output: float | None = None
    bound: float | None = None
    float_activations_difference: float | None = None


@dataclass(frozen=True)
class QualityRecord:
    """One run against PyTorch; see `prosparse_export.validation.metrics.Quality`."""

    name: str
    tokens: int
    perplexity: float
    reference_perplexity: float
    kl_mean: float
    kl_max: float
    top1: float
    top5: float
    max_abs_diff: float


@dataclass(frozen=True)
class SparsityRecord:
    """Activation sparsity of the artifact.

    Attributes:
        mean: over layers.
        by_layer: in graph order.
        tokens: counted.
        layers: layer numbers.
    """

    mean: float
    by_layer: tuple[float, ...]
    tokens: int
    layers: tuple[int, ...]


@dataclass(frozen=True)
class WeightsRecord:
    """Initializers against the checkpoint; see `prosparse_export.validation.operator_checks.StoredWeights`."""

    compared: int
    share: float
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True)
class FailedCheck:
    """A check that failed: its name, what was measured, what is allowed."""

    name: str
    measured: str
    allowed: str


@dataclass(frozen=True)
class PartCost:
    """What one part of the model costs, alone; see `prosparse_export.validation.QuantizationCost`."""

    module: str
    kl: float
    how: str


@dataclass(frozen=True)
class ValidatedFiles:
    """The files that were validated.

    Attributes:
        sha256: of the graph.
        data_bytes: size of the external data; None if there is none.
        data_sha256: its hash.
    """

    sha256: str
    data_bytes: int | None = None
    data_sha256: str | None = None


@dataclass(frozen=True)
class ValidationRecord:
    """What `prosparse validate` found.

    Attributes:
        passed: every check passed.
        checks: how many there were.
        failed: those that failed.
        bound: allowed difference of a logit.
        exact_against: the dense model that logits were compared with.
        tokens: positions compared.
        texts: hash of the token ids of each text, by name.
        artifact: the files.
        versions: of the packages, the operator library and its ISA.
        quality: each way of running it, against PyTorch with the checkpoint's own weights.
        lossy: the artifact's weights or activations are not the checkpoint's own.
        greedy_match: for each prompt, tokens equal to PyTorch's before the first difference.
        greedy_tokens: tokens generated for each prompt.
        sparsity: None if the artifact has no sparse operator.
        stored_weights: None if weights were not compared.
        quantization_costs: with --explain, the whole artifact's cost, then each part's, in descending order.
    """

    passed: bool
    checks: int
    failed: tuple[FailedCheck, ...]
    bound: float
    exact_against: str
    tokens: int
    texts: dict[str, str]
    artifact: ValidatedFiles
    versions: dict[str, str]
    quality: tuple[QualityRecord, ...]
    lossy: bool
    greedy_match: tuple[int, ...]
    greedy_tokens: int
    sparsity: SparsityRecord | None = None
    stored_weights: WeightsRecord | None = None
    quantization_costs: tuple[PartCost, ...] = ()
