"""Every Prometheus metric, with its labels and buckets. The names are a contract: docs/reference/metrics.md.

With several workers each writes into files of its own slot and a scrape adds them up. Built once a process, after
the fork, because the slot decides which files are written.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, values
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.samples import Sample

from app.deferred import DeferredHistograms, HistogramRows

DURATION_BUCKETS = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
)  # fmt: skip
DIFFERENCE_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
STAGES = ("decode", "preprocess", "queue", "inference", "postprocess")
UNKNOWN = "unknown"
# Computed from the database (source="database"), which may be that of many replicas: aggregate them with max.
QUALITY_GAUGES = {
    "accuracy_ratio": "Share of labelled answers whose first label was right, in a window of feedback.",
    "precision_ratio": "Precision, the mean over the classes, in a window of feedback.",
    "recall_ratio": "Recall, the mean over the classes, in a window of feedback.",
    "f1_ratio": "F1, the mean over the classes, in a window of feedback.",
    "labelled_answers": "Answers with a label or a value in a window of feedback.",
    "calibration_error_ratio": "Expected calibration error in a window of feedback.",
    "absolute_error": "Mean absolute error of a regression in a window of feedback.",
    "mean_rating": "Mean rating, 1 to 5, in a window of feedback.",
}


class ModelMetrics:
    """The metrics of one version with their labels bound: `.labels()` in a request costs three times as much."""

    def __init__(self, metrics: Metrics, model: str, version: str) -> None:
        self._metrics = metrics
        self._labels = (model, version)
        self._requests: dict[tuple[str, int], Counter] = {}
        self._durations: dict[str, Histogram] = {}
        self._stages = {stage: metrics.stage_duration.labels(model, version, stage) for stage in STAGES}
        self._all_stages = HistogramRows(self._stages[stage] for stage in STAGES)
        self._batch_size = metrics.batch_size.labels(model, version)
        self._low_confidence: Counter | None = None
        self._failed: Counter | None = None
        self._last_answer: Gauge | None = None
        self.in_flight = metrics.in_flight_requests.labels(model)

    def count(self, protocol: str, code: int, duration_seconds: float) -> None:
        """Count one answered request. Only successful answers enter the duration: refusals would flatter it."""
        counter = self._requests.get((protocol, code))
        if counter is None:
            counter = self._metrics.requests.labels(protocol, *self._labels, str(code))
            self._requests[protocol, code] = counter
        counter.inc()
        if code < 400:
            duration = self._durations.get(protocol)
            if duration is None:
                duration = self._metrics.request_duration.labels(protocol, *self._labels)
                self._durations[protocol] = duration
            self._metrics.deferred.observe(duration, duration_seconds)
            if self._last_answer is None:
                self._last_answer = self._metrics.last_answer.labels(*self._labels)
            self._metrics.deferred.set(self._last_answer, time.time())
            return
        if self._failed is None:
            self._failed = self._metrics.failed_seconds.labels(*self._labels)
        self._failed.inc(duration_seconds)

    def observe_stage(self, stage: str, seconds: float) -> None:
        self._metrics.deferred.observe(self._stages[stage], seconds)

    def observe_stages(self, seconds: tuple[float, ...]) -> None:
        """One value for each of STAGES, in their order."""
        self._metrics.deferred.observe_row(self._all_stages, seconds)

    def observe_batch(self, rows: int) -> None:
        self._metrics.deferred.observe(self._batch_size, rows)

    def count_violation(self, input: str, kind: str, action: str, values: int) -> None:
        self._metrics.input_violations.labels(*self._labels, input, kind, action).inc(values)

    def count_low_confidence(self, answers: int) -> None:
        """Also 0: the metric is there from the first answer on."""
        if self._low_confidence is None:
            self._low_confidence = self._metrics.low_confidence.labels(*self._labels)
        if answers:
            self._low_confidence.inc(answers)


class ShownGauges:
    """A gauge whose series come and go: one of several processes cannot be taken away, and becomes NaN."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge
        self._shown: set[tuple[str, ...]] = set()

    def show(self, found: Mapping[tuple[str, ...], float]) -> None:
        """`found` is all that is known now, by its labels."""
        for labels in self._shown - found.keys():
            self._gauge.labels(*labels).set(math.nan)
        for labels, value in found.items():
            self._gauge.labels(*labels).set(value)
        self._shown = set(found)


class ShadowMetrics:
    """Those of a version and its shadow, with their labels bound."""

    def __init__(self, metrics: Metrics, model: str, version: str, shadow: str) -> None:
        labels = (model, version, shadow)
        self.agreed, self.disagreed, self.failed, self.dropped = (
            metrics.shadow_requests.labels(*labels, outcome) for outcome in ("agreed", "disagreed", "failed", "dropped")
        )
        self.difference = metrics.shadow_difference.labels(*labels)


class Metrics:
    """All metrics of one process. `directory` and `slot` are given where several workers are added up."""

    def __init__(self, directory: Path | None = None, slot: int = 0) -> None:
        self._directory = directory
        self.deferred = DeferredHistograms()
        _choose_storage(directory, slot)
        self._registry = registry = CollectorRegistry()
        self._models: dict[tuple[str, str], ModelMetrics] = {}
        self._shadows: dict[tuple[str, str, str], ShadowMetrics] = {}
        by_version = ("model", "version")
        self.requests = Counter(
            "headway_requests_total",
            "Requests answered, by HTTP status.",
            ("protocol", *by_version, "code"),
            registry=registry,
        )
        self.request_duration = Histogram(
            "headway_request_duration_seconds",
            "Time from the first byte of a request to the last of its answer, successful answers only.",
            ("protocol", *by_version),
            buckets=DURATION_BUCKETS,
            registry=registry,
        )
        self.failed_seconds = Counter(
            "headway_failed_request_seconds_total",
            "Time spent on requests that were not answered with success.",
            by_version,
            registry=registry,
        )
        self.last_answer = self._gauge(
            "headway_last_answer_timestamp_seconds", "When the last successful answer was given.", by_version, "livemax"
        )
        self.stage_duration = Histogram(
            "headway_stage_duration_seconds",
            "Time spent in each stage of a prediction.",
            (*by_version, "stage"),
            buckets=DURATION_BUCKETS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "headway_batch_size",
            "Rows in each run of a model.",
            by_version,
            buckets=BATCH_BUCKETS,
            registry=registry,
        )
        self.queue_depth = self._gauge("headway_queue_depth", "Works that wait for a thread.", ("model",), "livesum")
        self.in_flight_requests = self._gauge(
            "headway_in_flight_requests", "Requests being answered.", ("model",), "livesum"
        )
        self.rejected = Counter(
            "headway_rejected_total", "Requests refused, by reason.", ("model", "reason"), registry=registry
        )
        self.model_info = self._gauge(
            "headway_model_info", "1 for each released version.", (*by_version, "task", "runtime"), "livemax"
        )
        self.model_state = self._gauge(
            "headway_model_state",
            "Workers in which the version is in this state.",
            (*by_version, "state"),
            "livesum",
        )
        self.model_load = self._gauge(
            "headway_model_load_seconds",
            "Time from digests to warm, the slowest worker.",
            by_version,
            "livemax",
        )
        self.canary_fallback = Counter(
            "headway_canary_fallback_total",
            "Requests of an alias whose version was not there, answered by stable.",
            ("model", "alias"),
            registry=registry,
        )
        self.shadow_requests = Counter(
            "headway_shadow_requests_total",
            "Requests offered to a shadow version; outcome = agreed, disagreed, failed, dropped (no room).",
            ("model", "version", "shadow", "outcome"),
            registry=registry,
        )
        self.shadow_difference = Histogram(
            "headway_shadow_difference",
            "Distance between the answers of a version and its shadow: of the first label's confidence, or the value.",
            ("model", "version", "shadow"),
            buckets=DIFFERENCE_BUCKETS,
            registry=registry,
        )
        self.cascade_answers = Counter(
            "headway_cascade_answers_total",
            "Rows and images that a cascade answered, by the step whose answer was taken.",
            (*by_version, "step"),
            registry=registry,
        )
        self.input_violations = Counter(
            "headway_input_violations_total",
            "Values that a policy found; kind = missing, out_of_range, outlier; action = reject, clip, impute, flag.",
            (*by_version, "input", "kind", "action"),
            registry=registry,
        )
        self.undecodable_images = Counter(
            "headway_undecodable_images_total",
            "Images that could not be decoded; model = unknown where the base64 of an only image could not be.",
            ("model",),
            registry=registry,
        )
        self.low_confidence = Counter(
            "headway_low_confidence_total",
            "Rows and images whose first confidence is below answer.low_confidence of model.yaml, or not finite.",
            by_version,
            registry=registry,
        )
        self.feedback = Counter(
            "headway_feedback_total",
            "Feedback kept; outcome = correct, incorrect (of the first label), value, rating (nothing else was given).",
            (*by_version, "alias", "outcome"),
            registry=registry,
        )
        self.recorded_accuracy = self._gauge(
            "headway_recorded_accuracy_ratio",
            "Top-1 accuracy of the version's evaluation in model.yaml, the newest.",
            by_version,
            "livemax",
        )
        self.quality = {
            name: self._gauge(f"headway_{name}", text, (*by_version, "alias", "window", "source"), "livemostrecent")
            for name, text in QUALITY_GAUGES.items()
        }
        self.input_bins = Counter(
            "headway_input_bin_total",
            "Inputs and answers counted in the bins of the version's baseline, some a second; bin = 0 … or missing.",
            (*by_version, "feature", "bin"),
            registry=registry,
        )
        self.drift_reference = self._gauge(
            "headway_drift_reference_ratio",
            "Share of each bin in the version's baseline, of what is not missing; of bin missing the share of all.",
            (*by_version, "feature", "bin"),
            "livemax",
        )
        self.drift_reference_inputs = self._gauge(
            "headway_drift_reference_inputs", "Inputs that the version's baseline was made of.", by_version, "livemax"
        )
        self.drift_psi = self._gauge(
            "headway_drift_psi",
            "Population stability index against the baseline; feature = others: the largest of those not in bins here.",
            (*by_version, "feature", "window", "source"),
            "livemostrecent",
        )
        self.canary_should_roll_back = self._gauge(
            "headway_canary_should_roll_back",
            "1 where a canary was found worse than stable and still gets traffic.",
            (*by_version, "alias"),
            "livemostrecent",
        )
        self.unrecorded = Counter(
            "headway_record_failures_total", "Answers whose metrics or log line failed.", registry=registry
        )

    def model(self, name: str, version: str) -> ModelMetrics:
        """The bound metrics of a version of the registry; never call it with a name that a caller made up."""
        bound = self._models.get((name, version))
        if bound is None:
            bound = self._models[name, version] = ModelMetrics(self, name, version)
        return bound

    def shadow(self, name: str, version: str, shadow: str) -> ShadowMetrics:
        """The bound metrics of a version and its shadow."""
        bound = self._shadows.get((name, version, shadow))
        if bound is None:
            bound = self._shadows[name, version, shadow] = ShadowMetrics(self, name, version, shadow)
        return bound

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition of all workers and its content type. Reads files: call it outside the event loop."""
        encoder, content_type = choose_encoder(accept)
        return encoder(self._merged()), content_type

    def samples(self) -> Iterator[Sample]:
        """What `render` tells, for programs. Reads files: call it outside the event loop."""
        for family in self._merged().collect():
            yield from family.samples

    def _merged(self) -> CollectorRegistry:
        if self._directory is None:
            return self._registry
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(self._directory))  # type: ignore[no-untyped-call]
        return registry

    def _gauge(self, name: str, documentation: str, labels: tuple[str, ...], mode: str) -> Gauge:
        return Gauge(name, documentation, labels, registry=self._registry, multiprocess_mode=mode)  # type: ignore[arg-type]


def _choose_storage(directory: Path | None, slot: int) -> None:
    """Where the values of metrics built from now on live: in this process, or in the files of a slot."""
    if directory is None:
        values.ValueClass = values.MutexValue
        return
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    # Slots, not process ids: a replacement goes on with the counters of the worker that died.
    values.ValueClass = values.MultiProcessValue(lambda: slot)  # type: ignore[no-untyped-call]
