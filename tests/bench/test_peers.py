"""What makes the comparison with the peers fair: right answers or no row, the same content in each server's form."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bench import wires
from bench.answers import ROWS, find_fault, find_label
from bench.environments import find_digest, is_current
from bench.peer_targets import PASTED_IN, PEERS, _pasted_in
from bench.report import VOID, _chart, _table, describe_target, render_settings
from bench.run import summarise
from bench.targets import Target, headway, plain_fastapi
from bench.wires import Wire, encode_json
from bench.workloads import ROOT, ROW, photo, workloads

FIGURES = {"per_second": 10.0, "p50_ms": 1.0, "p95_ms": 2.0, "p99_ms": 3.0, "errors": 0, "cpu_us": 5.0}


@pytest.fixture
def echo() -> Iterator[str]:
    """A server that answers with what it was sent, and 500 to what is no JSON."""

    class Echo(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200 if body[:1] == b"{" else 500)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_find_label_takes_the_first_that_is_one() -> None:
    answer = '{"label_of": "x", "data": [{"label": "tiger \\"cat\\""}, {"label": "lynx"}]}'
    assert find_label(answer, {"lynx", 'tiger "cat"'}) == 'tiger "cat"'
    assert find_label(answer, {"dog"}) is None


def test_find_fault_is_none_for_right_answers(echo: str) -> None:
    known = {tuple(row): expected for row, expected in ROWS}
    right = Wire("/", wires.JSON, lambda row: encode_json({"label": known[tuple(row)]}))
    assert find_fault(echo, right, "c") is None


def test_find_fault_names_the_first_wrong_answer(echo: str) -> None:
    always = Wire("/", wires.JSON, lambda _: encode_json({"label": "first"}))
    assert find_fault(echo, always, "c") == "says first to [0.5, 3.0, 1.0, 9.0], which is second"
    cat = Wire("/", wires.JSON, lambda _: encode_json({"label": "tiger cat"}))
    assert find_fault(echo, cat, "a") == "says tiger cat to coffee.jpg, which is espresso"


def test_find_fault_names_the_status(echo: str) -> None:
    assert find_fault(echo, Wire("/", "image/jpeg", bytes), "b") == "answers 500 to cat.jpg"


def test_summarise_voids_what_is_void_in_one_round() -> None:
    good, bad = {"a": {"per_second": 5.0}, "c": {"per_second": 7.0}}, {"a": {VOID: "why"}, "c": {"per_second": 9.0}}
    medians = summarise([{"peer": good}, {"peer": bad}, {"peer": good}])
    assert medians == {"peer": {"a": {VOID: "why"}, "c": {"per_second": 7.0}}}


def test_table_shows_a_void_row_with_its_reason() -> None:
    lines = _table({"peer": {VOID: "says dog"}, "Headway": FIGURES})
    assert lines[-1].startswith("| peer | void: says dog |")
    assert {line.count("|") for line in lines} == {lines[0].count("|")}


def test_chart_leaves_a_void_row_out() -> None:
    cases = dict.fromkeys(workloads(), FIGURES)
    chart = _chart({"Headway": cases, "peer": {key: {VOID: "says dog"} for key in workloads()}})
    assert "Headway" in chart
    assert ">peer<" not in chart


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_peer_gets_the_same_content(peer) -> None:  # type: ignore[no-untyped-def]
    target = Target(peer.title, lambda _: [], wires=peer.wires)
    photos, floats = (target.adapt(workloads()[key]) for key in "ac")
    assert photos is not None
    assert floats is not None
    assert base64.b64encode(photo()) in photos.body
    assert json.dumps(ROW).encode() in floats.body
    raw = target.adapt(workloads()["b"])
    assert raw is None or raw.body == photo()


def test_wires_of_headway_are_its_workloads() -> None:
    target = Target("", lambda _: [], wires=wires.HEADWAY)
    assert {key: target.adapt(workloads()[key]) for key in wires.HEADWAY} == {
        key: workloads()[key] for key in wires.HEADWAY
    }


def test_pasted_in_takes_photos_only(tmp_path: Path) -> None:
    pasted = _pasted_in(plain_fastapi(tmp_path, 2))
    assert pasted.name == f"plain FastAPI, {PASTED_IN}"
    assert pasted.environment["BENCH_PIXELS"] == "headway"
    assert pasted.adapt(workloads()["c"]) is None


def test_described_target_names_no_place_of_this_machine(tmp_path: Path) -> None:
    for target in (headway(tmp_path), plain_fastapi(tmp_path, 2)):
        text = json.dumps(describe_target(target))
        assert str(ROOT) not in text
        assert str(tmp_path) not in text
        assert "$PORT" in text


def test_settings_are_listed_once_a_peer() -> None:
    named = Target("peer", lambda _: [], settings="Peer 1.0: workers = cores.")
    assert render_settings([named, _pasted_in(named)]).splitlines() == [
        "",
        "## Settings",
        "",
        "- Peer 1.0: workers = cores.",
    ]
    assert render_settings([]) == ""


def test_environment_is_current_until_its_requirements_change(tmp_path: Path) -> None:
    wanted = tmp_path / "peer.txt"
    wanted.write_text("peer==1.0\n")
    assert not is_current(tmp_path, wanted)
    (tmp_path / ".headway-peer").write_text(find_digest(wanted))
    assert is_current(tmp_path, wanted)
    wanted.write_text("peer==1.1\n")
    assert not is_current(tmp_path, wanted)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_requirements_are_pinned(peer) -> None:  # type: ignore[no-untyped-def]
    lines = (ROOT / "bench/peers/requirements" / f"{peer.name}.txt").read_text().splitlines()
    assert all("==" in line for line in lines)
