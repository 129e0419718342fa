"""`headway drift`: the table, its last line, and its refusals, over a real SQLite database."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from app.cli.drift import drift
from app.monitoring.binning import Bins, ClassBins
from app.registry.baseline import Baseline
from app.storage.counts import BinCounts, CountsStore
from app.storage.database import open_database
from tests.fixtures_models import write_model

cli = typer.Typer()
cli.command()(drift)
Draw = Callable[[np.random.Generator, int], npt.NDArray[Any]]
DRAWS: dict[str, Draw] = {
    "[one]": lambda random, n: random.normal(0, 1, n),
    "two": lambda random, n: random.normal(5, 2, n),
    "three": lambda random, n: random.integers(0, 2, n),
    "answer:classes": lambda random, n: random.integers(0, 3, n),
    "answer:confidence": lambda random, n: random.beta(5, 1, n),
    "answer:entropy": lambda random, n: random.beta(1, 5, n),
}


def _baseline(n: int) -> Baseline:
    random = np.random.default_rng(0)
    drawn = {name: draw(random, n) for name, draw in DRAWS.items()}
    return Baseline(
        "rows [May]", n, {name: Bins.of(drawn[name]) for name in ("[one]", "two", "three")},
        classes=ClassBins.of(drawn["answer:classes"]),
        confidence=Bins.of(drawn["answer:confidence"]), entropy=Bins.of(drawn["answer:entropy"]),
    )  # fmt: skip


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """m@1.0.0 has a baseline of 2,000 inputs, few@1.0.0 one of 100; none@1.0.0 has none."""
    for name, n in (("m", 2000), ("few", 100)):
        files = {"baseline.json": _baseline(n).to_json()}
        write_model(tmp_path / "models", name, files=files, baseline="baseline.json")
    write_model(tmp_path / "models", "none")
    return {
        "HEADWAY_MODELS": str(tmp_path / "models"), "HEADWAY_DATA_DIR": str(tmp_path / "data"), "COLUMNS": "120",
    }  # fmt: skip


def _count(environment: dict[str, str], n: int, model: str = "m", baseline: int = 2000, **changed: Draw) -> None:
    random = np.random.default_rng(1)
    bins = _baseline(baseline).all_bins
    counts = {name: bins[name].count((DRAWS | changed)[name](random, n)) for name in bins}
    minute_ms = time.time_ns() // 60_000_000_000 * 60_000
    rows = BinCounts(model, "1.0.0", minute_ms, {name: tuple(found.tolist()) for name, found in counts.items()})
    with open_database(None, Path(environment["HEADWAY_DATA_DIR"])) as database:
        CountsStore(database).write("worker", [], [rows])


def _run(environment: dict[str, str], *arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, env=environment)


def _lines(environment: dict[str, str], *arguments: str) -> Sequence[str]:
    shown = _run(environment, *arguments)
    assert shown.exit_code == 0, shown.output
    return shown.stdout.rstrip().splitlines()


def test_furthest_feature_first_with_a_line_of_words(environment: dict[str, str]) -> None:
    _count(environment, 1000, two=lambda random, n: random.normal(6.5, 2, n), **{
        "[one]": lambda random, n: np.where(random.random(n) < 0.2, np.nan, random.normal(0.4, 1, n)),
    })  # fmt: skip
    lines = _lines(environment, "m")
    assert lines[0].rstrip() == "m@1.0.0, the last 24 h: 1,000 inputs, against 2,000 of rows [May]"
    assert lines[1].split() == ["n", "PSI", "by", "chance", "JS", "KS", "missing"]
    assert [line.split()[0] for line in lines[2:4]] == ["two", "[one]"]
    cells = lines[2].split()
    assert cells[1] == "1,000"
    assert float(cells[2]) > 0.25
    assert float(cells[3]) == pytest.approx(9 * (1 / 1000 + 1 / 2000), abs=6e-4)
    assert cells[-1] == "0.0%"
    classes = next(line.split() for line in lines if line.startswith("answer:classes"))
    assert classes[-2] == "–"
    said = lines[-1].split("; ")
    assert said[0].startswith("two has moved: PSI 0.")
    assert said[0].endswith(", 0.01 by chance")
    assert said[1].startswith("[one] has moved a little: PSI 0.1")
    assert said[2].startswith("[one] is missing in 2")
    assert said[2].endswith("%, in the baseline in 0%")
    assert len(said) == 3


def test_nothing_has_moved(environment: dict[str, str]) -> None:
    _count(environment, 1000)
    assert _lines(environment, "m")[-1] == "nothing has moved further than chance and 0.1"


def test_too_few_inputs_to_tell(environment: dict[str, str]) -> None:
    _count(environment, 30)
    # Of answers with three classes, and of a column of two values, 30 are enough.
    assert _lines(environment, "m")[-1] == (
        "nothing has moved further than chance and 0.1; too few inputs to tell of answer:confidence, answer:entropy, "
        "[one], two: chance alone gives a PSI of up to 0.30; 95 inputs would do"
    )
    _count(environment, 8)
    assert _lines(environment, "m")[-1].startswith("too few inputs to tell: chance alone gives a PSI of up to 1.13")


def test_too_few_inputs_in_the_baseline(environment: dict[str, str]) -> None:
    _count(environment, 1000, "few", 100)
    said = _lines(environment, "few")[-1]
    assert said.startswith("nothing has moved")
    # 9 (1 / 1000 + 1 / 100) = 0.099
    _count(environment, 400, "few", 100)
    assert _lines(environment, "few")[-1].endswith("a PSI of up to 0.11; 900 inputs would do")


@pytest.mark.parametrize(("n", "cure"), [(60, "180 inputs or more, and as many now,"), (200, "180 inputs or more")])
def test_baseline_so_small_that_no_inputs_would_do(environment: dict[str, str], n: int, cure: str) -> None:
    # 9 / 90 is 0.1 already.
    files = {"baseline.json": _baseline(90).to_json()}
    write_model(Path(environment["HEADWAY_MODELS"]), "tiny", files=files, baseline="baseline.json")
    _count(environment, n, "tiny", 90)
    assert _lines(environment, "tiny")[-1].endswith(f"; a baseline of {cure} would do")


def test_many_features_that_moved_are_not_all_named(environment: dict[str, str]) -> None:
    far: Draw = lambda _, n: np.full(n, 0)  # noqa: E731
    _count(environment, 1000, **dict.fromkeys(DRAWS, far))
    said = _lines(environment, "m")[-1].split("; ")
    assert len(said) == 6
    assert said[-1] == "1 more have moved"


def test_drift_as_json(environment: dict[str, str]) -> None:
    _count(environment, 100)
    found = json.loads(_run(environment, "m", "--json", "--hours", "48", "--version", "1.0.0").stdout)
    assert found["window"]["hours"] == 48
    (version,) = found["versions"]
    assert (version["version"], version["n"], version["baseline"]["n"]) == ("1.0.0", 100, 2000)
    assert set(version["features"][0]["bins"]["labels"]) == {"low", "middle", "high"}
    assert json.loads(_run(environment, "m", "--json", "--hours", "8000").stdout)["versions"][0]["n"] == 100


def test_what_was_not_counted(environment: dict[str, str]) -> None:
    away = _run(environment, "m")
    assert away.exit_code == 1
    assert "there is no database; a server makes it" in away.stderr
    assert away.stderr.rstrip().endswith("the server's HEADWAY_DATA_DIR or HEADWAY_DATABASE_URL")
    assert not Path(environment["HEADWAY_DATA_DIR"]).exists()
    _count(environment, 100)
    assert _lines(environment, "few") == ["few@1.0.0: nothing was counted"]
    (line,) = _lines(environment, "none")
    assert line.endswith("publish a version that has one: headway baseline none@1.0.0 DATA")
    (Path(environment["HEADWAY_MODELS"]) / "empty").mkdir()
    assert _lines(environment, "empty") == ["nothing was counted of empty, and no version of it is released"]
    unknown = _run(environment, "m", "--version", "x")
    assert unknown.exit_code == 1
    assert "m@x was never counted, nor is it released; there are 1.0.0" in unknown.stderr
    assert _run(environment, "m", "--hours", "1e9").exit_code == 1


@pytest.mark.parametrize("has_database", [False, True])
def test_model_that_is_not_there(environment: dict[str, str], has_database: bool) -> None:
    if has_database:
        _count(environment, 100)
    for name, hint in (("other", ""), ("../m", ""), ("m@1.0.0", "; name a version with --version")):
        unknown = _run(environment, name)
        assert unknown.exit_code == 1
        assert f"there is no model '{name}' in " in unknown.stderr
        assert unknown.stderr.rstrip().endswith(f"it has few, m, none{hint}")
    assert Path(environment["HEADWAY_DATA_DIR"]).exists() == has_database


def test_counts_of_a_removed_model(environment: dict[str, str]) -> None:
    _count(environment, 100)
    shutil.rmtree(Path(environment["HEADWAY_MODELS"]) / "m")
    lines = _lines(environment, "m")
    assert lines[0].rstrip() == "m@1.0.0, the last 24 h: 100 inputs, against no baseline"
    assert "the baseline that m@1.0.0 was counted with is no longer there" in lines[-1]


def test_baseline_that_is_damaged(environment: dict[str, str]) -> None:
    _count(environment, 100)
    path = Path(environment["HEADWAY_MODELS"]) / "m" / "1.0.0" / "baseline.json"
    path.write_bytes(b"{}")
    said = _lines(environment, "m")[-1]
    assert said.startswith("the baseline of m@1.0.0 cannot be used: ")
    assert "baseline.json" in said
