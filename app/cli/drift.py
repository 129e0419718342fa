"""`headway drift MODEL`: how far what a model is asked, and answers, has moved, from the counts in the database."""

from __future__ import annotations

import math
import time
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from app.cli.console import JsonOption, ModelsOption, emit, failing_cleanly, model_not_found, open_store, read_settings
from app.errors import InvalidContent
from app.settings import Settings

# Of the population stability index. A convention, not a test: Siddiqi, "Credit Risk Scorecards", 2006.
_SMALL, _LARGE = 0.1, 0.25
# Chance is ruled out by Pearson's test at this level; a large PSI of few inputs is noise.
_CHANCE = 0.001
# This share more is missing than in the baseline, of at least so many inputs.
_MISSING, _MISSING_FROM = 0.1, 100
_NAMED = 5


def drift(
    model: Annotated[str, typer.Argument(help="The name of the model.")],
    hours: Annotated[float, typer.Option("--hours", min=0.02, help="What was counted in the last hours.")] = 24,
    version: Annotated[str | None, typer.Option("--version", help="Only of this version.")] = None,
    models: ModelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """How far the inputs and answers of each version are from its baseline; the furthest first."""
    with failing_cleanly():
        found = _describe(read_settings(models=models), model, hours, version)
        emit(as_json, found, lambda: _show(found))


def _describe(settings: Settings, model: str, hours: float, version: str | None) -> dict[str, Any]:
    from app.monitoring.drift import MOST_STEPS, DriftReports
    from app.registry.answers import Answers
    from app.registry.baselines import Baselines
    from app.storage.counts import CountsStore
    from app.storage.database import open_configured

    store = open_store(settings)
    is_there = model in store.model_names()
    with open_configured(settings) as database:
        counts, has_counts = CountsStore(database), database.exists()
        # Those of a model that was removed are kept for a while.
        if not is_there and not (has_counts and counts.bin_versions(model)):
            raise model_not_found(store, model)
        if not has_counts:
            raise InvalidContent(
                f"{database.location}: there is no database; a server makes it that serves a version with a baseline; "
                "give this command the server's HEADWAY_DATA_DIR or HEADWAY_DATABASE_URL"
            )
        release = store.release(model)[0] if is_there else None
        reports = DriftReports(counts, Baselines(store).baseline_of, Answers(store).labels_of)
        return reports.describe(
            model,
            hours,
            time.time_ns() // 1_000_000,
            version=version,
            step_hours=1 if hours <= MOST_STEPS else 24,
            released=release.versions if release is not None else (),
        )


def _show(found: dict[str, Any]) -> Group:
    if not found["versions"]:
        return Group(Text(f"nothing was counted of {found['model']}, and no version of it is released"))
    parts: list[Table | Text] = []
    for version in found["versions"]:
        label = f"{found['model']}@{version['version']}"
        baseline = version["baseline"]
        if parts:
            parts.append(Text())
        if not version["features"]:
            parts.append(Text(f"{label}: nothing was counted" if baseline else version["how"]))
            continue
        against = f"{baseline['n']:,} of {baseline['data']}" if baseline else "no baseline"
        title = f"{label}, the last {found['window']['hours']:g} h: {version['n']:,} inputs, against {against}"
        parts += [_table(title, version["features"]), Text()]
        parts.append(Text(_sentence(version["features"]) if baseline else version["how"]))
    return Group(*parts)


def _table(title: str, features: list[dict[str, Any]]) -> Table:
    table = Table(title=escape(title), title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("", "n", "PSI", "by chance", "JS", "KS", "missing"):
        table.add_column(column, justify="right" if column else "left")
    for feature in sorted(features, key=lambda feature: -_index(feature)):
        distances = feature["from_baseline"] or {}
        names = ("population_stability_index", "expected_by_chance", "jensen_shannon", "kolmogorov_smirnov")
        cells = ["–" if distances.get(name) is None else f"{distances[name]:.3f}" for name in names]
        missing = feature["missing"]["current"]
        table.add_row(
            escape(feature["name"]), f"{feature['n']:,}", *cells, "–" if missing is None else f"{missing:.1%}"
        )
    return table


def _sentence(features: list[dict[str, Any]]) -> str:
    """What the figures say, in one line."""
    moved = sorted(filter(_has_moved, features), key=lambda feature: -_index(feature))
    said = [_tell_moved(feature) for feature in moved[:_NAMED]]
    if len(moved) > _NAMED:
        said.append(f"{len(moved) - _NAMED} more have moved")
    said += [
        f"{feature['name']} is missing in {feature['missing']['current']:.0%}, in the baseline in "
        f"{feature['missing']['reference']:.0%}"
        for feature in features
        if _is_missing_more(feature)
    ]
    if said:
        return "; ".join(said)
    known = [feature for feature in features if feature["from_baseline"]["expected_by_chance"] is not None]
    vague = [feature for feature in known if feature["from_baseline"]["expected_by_chance"] > _SMALL]
    if not known:
        return "nothing was counted in this window"
    if len(vague) == len(known):
        return f"too few inputs to tell: {_tell_vague(vague)}"
    silence = f"nothing has moved further than chance and {_SMALL}"
    names = ", ".join(feature["name"] for feature in vague)
    return f"{silence}; too few inputs to tell of {names}: {_tell_vague(vague)}" if vague else silence


def _tell_moved(feature: dict[str, Any]) -> str:
    how = "has moved" if _index(feature) >= _LARGE else "has moved a little"
    chance = feature["from_baseline"]["expected_by_chance"]
    return f"{feature['name']} {how}: PSI {_index(feature):.2f}, {chance:.2f} by chance"


def _tell_vague(features: list[dict[str, Any]]) -> str:
    """Where chance alone gives more than what counts as moved: how many inputs it takes to be below that."""
    worst = max(features, key=lambda feature: feature["from_baseline"]["expected_by_chance"])
    chance = worst["from_baseline"]["expected_by_chance"]
    degrees = sum(share > 0 for share in worst["bins"]["reference"]) - 1
    of_baseline = chance - degrees / worst["n"]
    if of_baseline > 0.95 * _SMALL:
        least = math.ceil(2 * degrees / _SMALL)
        now = "" if worst["n"] >= least else ", and as many now,"
        cure = f"a baseline of {least:,} inputs or more{now} would do"
    else:
        cure = f"{math.ceil(degrees / (_SMALL - of_baseline)):,} inputs would do"
    return f"chance alone gives a PSI of up to {chance:.2f}; {cure}"


def _has_moved(feature: dict[str, Any]) -> bool:
    distances = feature["from_baseline"]
    if distances["population_stability_index"] is None:
        return False
    beyond = distances["population_stability_index"] - distances["expected_by_chance"]
    return bool(beyond >= _SMALL and distances["chi_squared"]["p_value"] < _CHANCE)


def _is_missing_more(feature: dict[str, Any]) -> bool:
    missing = feature["missing"]
    if feature["n"] + missing["n"] < _MISSING_FROM:
        return False
    return bool(missing["current"] - missing["reference"] >= _MISSING)


def _index(feature: dict[str, Any]) -> float:
    """PSI to the baseline; what has none comes last."""
    index = (feature["from_baseline"] or {}).get("population_stability_index")
    return -1.0 if index is None else float(index)
