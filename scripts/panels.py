"""The panels of the dashboards: what each asks Prometheus, and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_MODEL = 'model=~"$model"'


@dataclass(frozen=True, slots=True)
class Panel:
    """`queries` are PromQL with the legend of each series; `unit` is one of Grafana's; `kind` its panel type.

    A bar chart is of now, by bin: its queries give one series a bin, and their legends name the bars.
    """

    title: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    kind: str = "timeseries"
    description: str = ""


_BY_VERSION = "{{model}}@{{version}}"
SERVICE = (
    Panel(
        "Requests",
        [(f"sum by (model, version) (rate(headway_requests_total{{{_MODEL}}}[$__rate_interval]))", _BY_VERSION)],
        "reqps",
    ),
    Panel(
        "Errors of the server",
        [
            (
                f'sum by (model, code) (rate(headway_requests_total{{{_MODEL},code=~"5.."}}[$__rate_interval]))',
                "{{model}} {{code}}",
            )
        ],
        "reqps",
        description="5xx; a refusal under overload is one, and burns the error budget.",
    ),
    Panel(
        "Latency of successful answers",
        [
            (
                f"histogram_quantile({quantile}, sum by (model, version, le) "
                f"(rate(headway_request_duration_seconds_bucket{{{_MODEL}}}[$__rate_interval])))",
                f"{_BY_VERSION} p{round(quantile * 100)}",
            )
            for quantile in (0.5, 0.95, 0.99)
        ],
        "s",
    ),
    Panel(
        "Where the time goes",
        [
            (
                f"sum by (stage) (rate(headway_stage_duration_seconds_sum{{{_MODEL}}}[$__rate_interval])) / "
                f"sum by (stage) (rate(headway_stage_duration_seconds_count{{{_MODEL}}}[$__rate_interval]))",
                "{{stage}}",
            )
        ],
        "s",
        description="Mean of each stage of a prediction.",
    ),
    Panel(
        "Refused",
        [
            (
                f"sum by (model, reason) (rate(headway_rejected_total{{{_MODEL}}}[$__rate_interval]))",
                "{{model}} {{reason}}",
            )
        ],
        "reqps",
    ),
    Panel(
        "Versions",
        [(f"sum by (model, version, state) (headway_model_state{{{_MODEL}}}) > 0", f"{_BY_VERSION} {{{{state}}}}")],
        kind="stat",
        description="Workers in which a version is in this state.",
    ),
    Panel(
        "Error budget: share of 5xx, one hour",
        [(f"model:headway_errors:ratio_rate1h{{{_MODEL}}}", "{{model}}")],
        "percentunit",
    ),
    Panel(
        "Latency budget: share over one second, one hour",
        [(f"model:headway_slow:ratio_rate1h{{{_MODEL}}}", "{{model}}")],
        "percentunit",
    ),
    Panel(
        "Time to load",
        [(f"max by (model, version) (headway_model_load_seconds{{{_MODEL}}})", _BY_VERSION)],
        "s",
        "stat",
    ),
)
CAPACITY = (
    Panel(
        "Threads at work",
        [
            (
                "sum by (model) (rate(headway_stage_duration_seconds_sum{"
                f'{_MODEL},stage=~"preprocess|inference|postprocess"}}[$__rate_interval]))',
                "{{model}}",
            )
        ],
        description="Seconds of work a second: as many threads are busy on average.",
    ),
    Panel("Waiting for a thread", [(f"model:headway_queue_depth:sum{{{_MODEL}}}", "{{model}}")]),
    Panel("In flight", [(f"sum by (model) (headway_in_flight_requests{{{_MODEL}}})", "{{model}}")]),
    Panel(
        "Share refused",
        [
            (
                "sum by (model) (rate(headway_rejected_total{"
                f'{_MODEL},reason=~"overload|deadline"}}[$__rate_interval])) / '
                f"sum by (model) (rate(headway_requests_total{{{_MODEL}}}[$__rate_interval]))",
                "{{model}}",
            )
        ],
        "percentunit",
    ),
    Panel(
        "Rows in a run",
        [
            (
                f"sum by (model, version) (rate(headway_batch_size_sum{{{_MODEL}}}[$__rate_interval])) / "
                f"sum by (model, version) (rate(headway_batch_size_count{{{_MODEL}}}[$__rate_interval]))",
                _BY_VERSION,
            )
        ],
    ),
    Panel(
        "Wait in the queue, p99",
        [
            (
                "histogram_quantile(0.99, sum by (model, le) (rate(headway_stage_duration_seconds_bucket{"
                f'{_MODEL},stage="queue"}}[$__rate_interval])))',
                "{{model}}",
            )
        ],
        "s",
    ),
)
_WINDOW = f'{_MODEL},window="1d"'
_BY_ALIAS = "{{model}}@{{version}} ({{alias}})"
QUALITY = (
    *(
        Panel(
            f"{title} of a day",
            [(f"max by (model, version, alias) (headway_{name}_ratio{{{_WINDOW}}})", _BY_ALIAS)],
            "percentunit",
        )
        for title, name in (("Accuracy", "accuracy"), ("Precision", "precision"), ("Recall", "recall"), ("F1", "f1"))
    ),
    Panel(
        "Accuracy against the evaluation",
        [
            (
                f"max by (model, version, alias) (headway_accuracy_ratio{{{_WINDOW}}}) - on (model, version) "
                f"group_left () max by (model, version) (headway_recorded_accuracy_ratio{{{_MODEL}}})",
                _BY_ALIAS,
            )
        ],
        "percentunit",
    ),
    Panel(
        "Labelled answers of a day",
        [(f"max by (model, version, alias) (headway_labelled_answers{{{_WINDOW}}})", _BY_ALIAS)],
    ),
    Panel(
        "Feedback",
        [
            (
                f"sum by (model, version, outcome) (rate(headway_feedback_total{{{_MODEL}}}[$__rate_interval]))",
                "{{model}}@{{version}} {{outcome}}",
            )
        ],
        "reqps",
    ),
    Panel(
        "Canaries worse than stable",
        [(f"max by (model, version, alias) (headway_canary_should_roll_back{{{_MODEL}}})", _BY_ALIAS)],
        kind="stat",
        description="1: and it still gets traffic. GET /models/{name}/canaries says why.",
    ),
)
_BY_FEATURE = "{{version}} {{feature}}"
_LEVEL = "model_version_feature"
_CHOSEN = f'{_MODEL},version="$version",feature="$feature"'
_FROM_DATABASE = "Of all replicas; others is the largest of the features that Prometheus has no bins of."
DRIFT = (
    Panel(
        "PSI of an hour",
        [
            (f"{_LEVEL}:headway_drift:psi_1h{{{_MODEL}}}", _BY_FEATURE),
            (
                f"max by (model, version) ({_LEVEL}:headway_drift:chance_psi_1h{{{_MODEL}}})",
                "{{version}} by chance on average",
            ),
        ],
        description="Population stability index against the baseline. Over 0.25 is large, if chance does not give it.",
    ),
    *(
        Panel(
            f"PSI of {words}, from the database",
            [
                (
                    f'max by (model, version, feature) (headway_drift_psi{{{_MODEL},window="{window}"}})',
                    _BY_FEATURE,
                )
            ],
            description=_FROM_DATABASE,
        )
        for window, words in (("1h", "an hour"), ("1d", "a day"))
    ),
    Panel(
        "Distribution now and in the baseline",
        [
            (f"sum by (bin) ({_LEVEL}_bin:headway_input_bin:ratio_increase1h{{{_CHOSEN}}})", "last hour"),
            (f"sum by (bin) ({_LEVEL}_bin:headway_drift_reference:ratio{{{_CHOSEN}}})", "baseline"),
        ],
        "percentunit",
        "barchart",
        "Of the version and feature above. GET /models/{name}/drift says which values a bin holds.",
    ),
    Panel(
        "Jensen-Shannon distance of an hour",
        [(f"{_LEVEL}:headway_drift:jensen_shannon_1h{{{_MODEL}}}", _BY_FEATURE)],
    ),
    Panel(
        "Inputs of an hour",
        [(f"max by (model, version) ({_LEVEL}:headway_drift_inputs:increase1h{{{_MODEL}}})", "{{version}}")],
        description="Below 100 nobody is alerted: chance moves so few too far.",
    ),
    Panel(
        "Missing values of an hour",
        [(f"{_LEVEL}:headway_missing:ratio_increase1h{{{_MODEL}}}", _BY_FEATURE)],
        "percentunit",
    ),
    Panel(
        "Answers' classes of an hour",
        [
            (
                f'{_LEVEL}_bin:headway_input_bin:ratio_increase1h{{{_MODEL},feature="answer:classes"}}',
                "{{version}} bin {{bin}}",
            )
        ],
        "percentunit",
        description="Bins in the order of the baseline's most frequent classes; the last is of all others.",
    ),
    Panel(
        "Values that a policy found",
        [
            (
                "sum by (model, version, input, kind, action) "
                f"(rate(headway_input_violations_total{{{_MODEL}}}[$__rate_interval]))",
                "{{version}} {{input}} {{kind}} {{action}}",
            )
        ],
        description="A second.",
    ),
    Panel(
        "Images that cannot be decoded",
        [
            (
                'sum by (model) (rate(headway_undecodable_images_total{model=~"$model|unknown"}[$__rate_interval]))',
                "{{model}}",
            )
        ],
        "reqps",
    ),
)
