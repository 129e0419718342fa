"""A day of the shipped HPA: up under overload, slowly down, no flapping, and why it looks at demand."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from app.errors import InvalidContent
from app.optimize.planning.hpa import Hpa, Metric
from app.optimize.planning.hpa_file import read_hpa
from app.optimize.planning.replay import ANSWER, DEMAND, SUCCESS, Replay, replay
from app.optimize.planning.replay_summary import summarize
from app.optimize.planning.service_model import ServiceModel
from app.optimize.planning.traffic import (
    OVERLOAD_HOUR,
    OVERLOAD_MINUTES,
    STEP_SECONDS,
    Traffic,
    make_day,
    read_traffic,
)
from tests.running import ROOT

HPA = read_hpa(ROOT / "k8s/base/hpa.yaml")
PHOTOS = ServiceModel()
# Callers who wait no longer than the target of the mean: no accepted request can take longer than it.
HURRIED = ServiceModel(deadline_seconds=0.1)
DAY = make_day(600)
BEGIN = OVERLOAD_HOUR * 3600
END = BEGIN + OVERLOAD_MINUTES * 60
DURING = slice(BEGIN // STEP_SECONDS, END // STEP_SECONDS)


@pytest.fixture(scope="module")
def day() -> Replay:
    return replay(HPA, PHOTOS, DAY)


def test_overload_is_ten_times_the_load_and_sheds(day: Replay) -> None:
    before, offered = DAY.per_second[DURING.start - 1], DAY.per_second[DURING]
    assert 8 < offered.mean() / before < 13
    assert day.refused_per_second[DURING.start] / offered[0] > 0.5
    assert day.refused_per_second[: DURING.start].max() < 1e-6


def test_replicas_rise_while_requests_are_shed(day: Replay) -> None:
    """From 3 to 20 within two minutes; then nothing is refused any more, though the overload goes on."""
    assert day.replicas[DURING.start] == 3
    assert day.replicas[DURING.start + 8] == 20
    assert day.ready[DURING.start + 12] == 20
    assert day.refused_per_second[DURING.start + 12 :].max() < 1e-6


def test_replicas_go_slowly(day: Replay) -> None:
    """Not before 300 s after the overload, and at most 10 % a minute, rounded up."""
    downs = [event for event in day.events if event.after < event.before and event.seconds > BEGIN]
    assert 300 <= downs[0].seconds - END < 360
    for earlier, later in pairwise(downs):
        assert later.seconds - earlier.seconds >= 60
    assert all(event.before - event.after <= math.ceil(event.before * 0.1) for event in downs)


def test_no_flapping(day: Replay) -> None:
    """In a quarter of an hour after replicas went none comes back, and the other way round."""
    turns = 0
    for earlier, later in pairwise(day.events):
        if (earlier.after > earlier.before) != (later.after > later.before):
            turns += 1
            assert later.seconds - earlier.seconds > 900
    assert turns == 3  # after the overload, on the way to the afternoon, towards the evening


@pytest.mark.parametrize("seed", range(3))
def test_no_flapping_on_another_day(seed: int) -> None:
    played = replay(HPA, PHOTOS, make_day(600, seed=seed + 1))
    directions = [event.after > event.before for event in played.events]
    assert sum(one != other for one, other in pairwise(directions)) <= 5


def _alone(name: str, target: float) -> Hpa:
    return replace(HPA, metrics=(Metric(name, target),))


def test_mean_of_all_answers_alone_does_not_raise_replicas() -> None:
    """A refusal is a quick answer: the more are refused, the quicker the service looks."""
    played = replay(_alone(ANSWER, 0.1), PHOTOS, DAY)
    assert played.refused_per_second[DURING].min() > 1000
    assert set(played.replicas[DURING]) == {3}


def test_mean_of_successful_answers_alone_does_not_raise_replicas_of_the_hurried() -> None:
    """What is accepted is answered within the deadline, however much is refused."""
    played = replay(_alone(SUCCESS, 0.1), HURRIED, DAY)
    assert played.refused_per_second[DURING].min() > 1000
    assert set(played.replicas) == {3}


@pytest.mark.parametrize("service", [PHOTOS, HURRIED])
def test_demand_alone_raises_replicas(service: ServiceModel) -> None:
    played = replay(_alone(DEMAND, 0.6), service, DAY)
    assert played.replicas[DURING].max() == 20
    assert played.refused_per_second[DURING.start + 16 :].max() < 0.01


def test_replay_is_deterministic(day: Replay) -> None:
    again = replay(HPA, PHOTOS, make_day(600))
    assert again.events == day.events
    assert np.array_equal(again.mean_seconds, day.mean_seconds, equal_nan=True)
    assert make_day(600, seed=1).per_second[0] != DAY.per_second[1]


def test_nothing_is_lost(day: Replay) -> None:
    """What was asked for was refused or has a response time; the hours add up to the day."""
    answered = (DAY.per_second - day.refused_per_second).sum() * STEP_SECONDS
    assert day.histograms.sum() == pytest.approx(answered, rel=1e-9)
    summary = summarize(day)
    assert len(summary.hours) == 24
    assert sum(hour.mean_per_second for hour in summary.hours) / 24 == pytest.approx(summary.total.mean_per_second)
    assert sum(hour.scaled_up + hour.scaled_down for hour in summary.hours) == len(day.events)
    assert summary.pod_hours == pytest.approx(summary.total.mean_replicas * 24)
    assert [hour.name for hour in summary.hours][:2] == ["00:00", "01:00"]


def test_steady_load_by_hand() -> None:
    """900/s of 343/s a pod are 0.875 of three pods: 3 × 0.875 / 0.6 = 4.4, so five, at 0.525.

    For a minute the old three still show what they had before: (3 × 0.79 + 2 × 0.525) / 0.6 = 5.7, a sixth that goes.
    """
    played = replay(HPA, PHOTOS, Traffic(np.full(240, 900.0)))
    assert [(event.before, event.after) for event in played.events] == [(3, 5), (5, 6), (6, 5)]
    (hour,) = summarize(played).hours
    assert (hour.mean_per_second, hour.max_replicas, hour.refused_ratio) == (900, 6, pytest.approx(0, abs=1e-3))
    # Half of the requests find a thread free.
    assert hour.p50_ms == pytest.approx(6.93, rel=0.02)


def test_new_pods_serve_when_they_are_ready() -> None:
    played = replay(HPA, PHOTOS, Traffic(np.full(100, 900.0)), start_up_seconds=120)
    event = played.events[0]
    assert (event.before, event.after) == (3, 5)
    risen = int(np.argmax(played.ready == 5))
    assert risen * STEP_SECONDS - event.seconds == 120


@pytest.mark.parametrize(("least", "most"), [(1, 1), (1, 1000), (1000, 1000)])
def test_from_one_to_a_thousand(least: int, most: int) -> None:
    hpa = read_hpa(ROOT / "k8s/base/hpa.yaml", least, most)
    played = replay(hpa, PHOTOS, Traffic(np.concatenate([np.full(20, 100.0), np.full(60, 300_000.0)])))
    assert played.replicas.min() >= least
    assert played.replicas[-1] == most
    assert np.all(played.ready <= played.replicas)


def test_no_traffic() -> None:
    played = replay(HPA, PHOTOS, Traffic(np.zeros(40)))
    assert (played.events, played.replicas.max(), played.refused_per_second.max()) == ((), 3, 0)
    total = summarize(played).total
    assert (total.p50_ms, total.mean_ms, total.p99_ms, total.refused_ratio) == (None, None, None, 0)


def test_unknown_metric() -> None:
    with pytest.raises(InvalidContent, match="the replay knows no metric 'queue'; it knows cpu, headway_demand_ratio"):
        replay(_alone("queue", 1), PHOTOS, DAY)


def _read(tmp_path: Path, text: str) -> Traffic:
    path = tmp_path / "traffic.csv"
    path.write_text(text, encoding="utf-8")
    return read_traffic(path)


def test_traffic_of_seconds(tmp_path: Path) -> None:
    """A rate holds until the next row, the last as long as the rows are usually apart."""
    traffic = _read(tmp_path, "seconds,requests\n0,10\n30,20\n\n60,0\n")
    assert traffic.per_second.tolist() == [10, 10, 20, 20, 0, 0]
    assert _read(tmp_path, "0,10\n5,40\n10,10\n15,7\n").per_second.tolist() == [20, pytest.approx(7)]


def test_traffic_of_iso_times(tmp_path: Path) -> None:
    traffic = _read(tmp_path, "2026-11-21T07:00:00,5\n2026-11-21T07:00:15Z,6\n2026-11-21T08:00:30+01:00,7")
    assert (traffic.per_second.tolist(), traffic.start_seconds) == ([5, 6, 7], 7 * 3600)
    played = replay(HPA, PHOTOS, traffic)
    assert summarize(played).hours[0].name == "07:00"


BAD_TRAFFIC = {
    "empty": ("", "has 0 rows of traffic"),
    "a header": ("time,rate\n", "has 0 rows"),
    "one row": ("0,1", "has 1 rows"),
    "one column": ("0\n1", "line 1: has 1 columns"),
    "a word": ("0,1\n1,many", "line 2: 'many' is no number of requests per second"),
    "no time": ("0,1\nnoon,3", "line 2: 'noon' is neither seconds nor an ISO time"),
    "negative": ("0,1\n1,-3", "line 2: '-3' requests per second; it must be from 0 to 10000000"),
    "not finite": ("0,1\n1,nan", "line 2: 'nan' requests per second"),
    "infinite time": ("0,1\ninf,1", "line 2: 'inf' is no time"),
    "backwards": ("0,1\n30,1\n15,1", "line 3: the time is not after that of the row before"),
    "mixed": ("0,1\n2026-11-21T07:00:00,1", "line 2: seconds and ISO times are mixed"),
    "a month": ("0,1\n86400,1\n2678400,1", "days long; a replay takes at most 8"),
    "two rows a year apart": ("0,1\n31536000,1", "days long"),
}


@pytest.mark.parametrize("name", BAD_TRAFFIC)
def test_traffic_that_is_refused(tmp_path: Path, name: str) -> None:
    text, message = BAD_TRAFFIC[name]
    with pytest.raises(InvalidContent) as raised:
        _read(tmp_path, text)
    assert message in str(raised.value)


def test_traffic_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidContent, match="cannot be read"):
        read_traffic(tmp_path)
    (tmp_path / "x.csv").write_bytes(b"0,1\n\xff\xfe\x00,2\n")
    with pytest.raises(InvalidContent, match="is not a CSV file"):
        read_traffic(tmp_path / "x.csv")
