"""How many labels an attack changes, over a range of strengths, and how many samples stay right.

R(m, A) is the share of the samples whose label under attack A is another than without it. Attacks are untargeted, and
go against the label that the version gives itself, so that they do not leak the right one.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from app.errors import InvalidContent
from app.optimize.derived import Progress
from app.optimize.examples import Examples
from app.optimize.machine import describe_machine
from app.optimize.robustness.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from app.optimize.robustness.engine import Engine
from app.optimize.robustness.gradients import Gradients, find_gradients
from app.optimize.robustness.space import Pixels, Space, space_of
from app.optimize.robustness.tally import Example, Samples, Tallies
from app.registry.robustness import Measurement
from app.registry.servables.servable import Servable
from app.registry.store import Store
from app.tensors import Array

CORRUPTED = "corruptions"
ATTACKS = ("fgsm", "pgd", "square", "hopskipjump", CORRUPTED)
_BY_GRADIENTS = ("fgsm", "pgd")
_CHUNK = 32
# Answers that a black-box attack asks for each sample.
_QUERIES = {True: 200, False: 2000}  # of photos, of rows
_MOST_SEARCHED = 10_000  # columns: FP32 is too coarse for the steps of HopSkipJump beyond
_LEAST_SIDE = 2
_LIBRARIES = {"onnx": "onnxruntime", "tflite": "ai-edge-litert"}


@dataclass(frozen=True, slots=True)
class Wishes:
    """`attacks`: of ATTACKS and names of corruptions; None: all that can be made. `gradients_from` lends its network to
    FGSM and PGD. `strengths` are of the attacks, not of corruptions, which have five severities."""

    attacks: tuple[str, ...] | None = None
    strengths: tuple[float, ...] | None = None
    limit: int = 100
    seed: int = 0
    queries: int | None = None
    gradients_from: Servable | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """`measurements` by attack and strength; `examples` hold one for each attack that has one, at its least strength.

    `notes` say what could not be attacked, and why.
    """

    n: int
    data: str
    unit: str
    accuracy: float
    measurements: tuple[Measurement, ...]
    examples: tuple[Example, ...]
    skipped: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Run:
    """What attacks share."""

    engine: Engine
    samples: Samples
    wishes: Wishes
    gradients: Gradients | None
    tallies: Tallies

    @property
    def queries(self) -> int:
        return self.wishes.queries or _QUERIES[isinstance(self.engine.space, Pixels)]

    def seed(self, *numbers: object) -> int:
        """The same for the same attack on the same samples, whatever else is measured."""
        return zlib.crc32(repr((self.wishes.seed, *numbers)).encode())


def measure(store: Store, servable: Servable, examples: Examples, wishes: Wishes, progress: Progress) -> Outcome:
    """Attack the version on labelled examples. Needs `require_art`, where not only corruptions are asked for.

    Raises InvalidContent for attacks and strengths that do not go with the model, RunFailed.
    """
    if servable.input_specs[0].datatype == "BYTES":
        raise InvalidContent(f"{servable.name} takes texts; attacks are of photos and of rows of numbers")
    space = space_of(servable)
    _check_attacks(wishes, space)
    engine = Engine(servable, space)
    samples, skipped = _read(engine, examples, wishes)
    strengths = tuple(sorted({float(one) for one in wishes.strengths or space.strengths(samples.values)}))
    space.check_strengths(strengths)
    chosen = tuple(dict.fromkeys(wishes.attacks or _all_attacks(space)))
    gradients, notes = None, []
    if any(attack in _BY_GRADIENTS for attack in chosen):
        gradients, missing = find_gradients(store, engine, wishes.gradients_from, samples.values)
        if gradients is None:
            if wishes.attacks is not None:
                raise InvalidContent(f"fgsm and pgd go by gradients, and there are none: {missing}")
            chosen = tuple(attack for attack in chosen if attack not in _BY_GRADIENTS)
            notes.append(f"not attacked by fgsm and pgd: {missing}")
    run = _Run(engine, samples, wishes, gradients, Tallies(engine, samples))
    for attack in chosen:
        if attack in ATTACKS and attack != CORRUPTED:
            _attack(run, attack, strengths, progress)
    _corrupt(run, chosen, progress)
    measurements = _measurements(run, examples.data, chosen)
    return Outcome(
        len(samples),
        examples.data,
        space.unit,
        float(samples.is_right.mean()),
        measurements,
        run.tallies.first_examples(),
        tuple(skipped),
        tuple(notes),
    )


def _all_attacks(space: Space) -> tuple[str, ...]:
    if isinstance(space, Pixels):
        return (*_BY_GRADIENTS, "square", CORRUPTED)
    return (*_BY_GRADIENTS, "hopskipjump")


def _check_attacks(wishes: Wishes, space: Space) -> None:
    known = (*ATTACKS, *CORRUPTIONS)
    of_photos = ("square", CORRUPTED, *CORRUPTIONS)
    for attack in wishes.attacks or ():
        if attack not in known:
            raise InvalidContent(f"there is no attack {attack!r}; there are {', '.join(known)}")
        if attack in of_photos and not isinstance(space, Pixels):
            raise InvalidContent(f"{attack} is of photos, and the model takes numbers: fgsm, pgd and hopskipjump do")
        if attack == "hopskipjump" and isinstance(space, Pixels):
            raise InvalidContent("hopskipjump is of rows of numbers, and the model takes photos: square asks less")


def _read(engine: Engine, examples: Examples, wishes: Wishes) -> tuple[Samples, list[str]]:
    """At most `limit` samples by the seed; what cannot be answered without an attack is left out."""
    assert examples.classes is not None
    values, labels, is_right, places, skipped = [], [], [], [], []
    order = np.random.default_rng(wishes.seed).permutation(examples.count)
    for number in sorted(order[: wishes.limit].tolist()):
        try:
            one = engine.space.values(examples.read(number))
            label = int(engine.labels(one)[0])
        except (InvalidContent, OSError) as exc:
            skipped.append(f"{examples.where(number)}: {exc}")
        else:
            values.append(one)
            labels.append(label)
            is_right.append(label == examples.classes[number])
            places.append(examples.where(number))
    if not values:
        raise InvalidContent(f"{examples.data}: no sample can be used; the first: {(skipped or ['there is none'])[0]}")
    joined = np.concatenate(values)
    if isinstance(engine.space, Pixels) and min(joined.shape[1:3]) < _LEAST_SIDE:
        raise InvalidContent(f"{engine.servable.name} takes photos of one pixel, which are not attacked")
    return Samples(joined, np.array(labels), np.array(is_right), places), skipped


def _attack(run: _Run, attack: str, strengths: Sequence[float], progress: Progress) -> None:
    """One attack at all strengths."""
    count = len(run.samples)
    advance = progress(attack, count * len(strengths))
    for start in range(0, count, _CHUNK):
        values = run.samples.values[start : start + _CHUNK]
        labels = run.samples.labels[start : start + _CHUNK]
        move = _prepare(run, attack, values, labels, start)
        for strength in strengths:
            run.tallies.add(attack, strength, start, run.engine.space.hold(move(strength), values, strength))
            for _ in values:
                advance()


def _prepare(run: _Run, attack: str, values: Array, labels: Array, start: int) -> Callable[[float], Array]:
    """What moves some samples by a strength."""
    from app.optimize.robustness import attacks

    engine, gradients, queries = run.engine, run.gradients, run.queries
    if attack == "hopskipjump":
        if values.shape[1] > _MOST_SEARCHED:
            raise InvalidContent(f"hopskipjump takes rows of {_MOST_SEARCHED} numbers at most, not {values.shape[1]}")
        seed = run.seed(attack, start)
        nearest = attacks.hopskipjump(engine, values, labels, run.samples.values, seed, queries)
        with np.errstate(invalid="ignore"):
            distances = np.nan_to_num(np.abs(nearest - values).max(axis=1), nan=math.inf)
        return lambda strength: np.where((distances <= np.float32(strength))[:, np.newaxis], nearest, values)
    if attack == "square":
        return lambda strength: attacks.square(
            engine, values, labels, strength, run.seed(attack, start, strength), queries
        )
    assert gradients is not None
    if attack == "pgd":
        return lambda strength: attacks.pgd(
            engine, gradients, values, labels, strength, run.seed(attack, start, strength)
        )
    return lambda strength: attacks.fgsm(engine, gradients, values, labels, strength)


def _corrupt(run: _Run, chosen: Sequence[str], progress: Progress) -> None:
    names = [name for name in CORRUPTIONS if CORRUPTED in chosen or name in chosen]
    if not names:
        return
    values = run.samples.values
    advance = progress(CORRUPTED, len(values) * len(names))
    for name in names:
        for number, pixels in enumerate(values):
            for severity in SEVERITIES:
                rng = np.random.default_rng(run.seed(name, severity, zlib.crc32(pixels.tobytes())))
                moved = corrupt(name, pixels, severity, rng)
                run.tallies.add(name, float(severity), number, moved[np.newaxis].astype(np.float32))
            advance()


def _measurements(run: _Run, data: str, chosen: Sequence[str]) -> tuple[Measurement, ...]:
    n = len(run.samples)
    runtime = run.engine.servable.manifest.runtime
    machine = describe_machine(("numpy", *([_LIBRARIES[runtime]] if runtime in _LIBRARIES else [])))
    common = {"n": n, "data": data, "seed": run.wishes.seed, "accuracy": _share(int(run.samples.is_right.sum()), n)}
    common |= {"cpu": machine["cpu"], "libraries": machine["libraries"]}
    found = [
        Measurement(
            attack=attack,
            strength=strength,
            changed=_share(tally.changed, n),
            robust_accuracy=_share(tally.still_right, n),
            how=_how(run, attack),
            gradients=_whose(run.gradients) if attack in _BY_GRADIENTS else None,
            **common,
        )
        for (attack, strength), tally in run.tallies.found.items()
    ]
    if CORRUPTED in chosen:
        for severity in SEVERITIES:
            ours = [one for one in found if one.attack in CORRUPTIONS and one.strength == severity]
            changed, robust = (
                float(np.mean([getattr(one, key) for one in ours])) for key in ("changed", "robust_accuracy")
            )
            how = f"mean of {len(ours)} corruptions"
            found.append(
                Measurement(
                    attack=CORRUPTED,
                    strength=severity,
                    changed=round(changed, 6),
                    robust_accuracy=round(robust, 6),
                    how=how,
                    **common,
                )
            )
    return tuple(found)


def _share(count: int, n: int) -> float:
    return round(count / n, 6)


def _whose(gradients: Gradients | None) -> str | None:
    if gradients is None:
        return None
    return f"{gradients.source}, a transfer attack" if gradients.is_transfer else gradients.source


def _how(run: _Run, attack: str) -> str:
    unit = run.engine.space.unit
    if attack in CORRUPTIONS:
        return "severity of 1 to 5"
    if attack in ("square", "hopskipjump"):
        return f"L∞, {unit}, {run.queries} queries a sample"
    return f"L∞, {unit}, one step" if attack == "fgsm" else f"L∞, {unit}, 10 steps, one random start"
