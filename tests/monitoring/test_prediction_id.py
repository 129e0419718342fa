"""Prediction ids: what is signed comes back, and nothing else is believed."""

from __future__ import annotations

import contextlib
import hashlib
import math
import string
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ExpiredPrediction, ForgedPrediction
from app.monitoring.keys import SigningKeys
from app.monitoring.prediction_id import NONCE_BYTES, Prediction, PredictionIds, new_nonce

DAY_MS = 86_400_000
NOW_MS = 1_795_255_200_000
SECRET = "a secret of more than 16 bytes"
IDS = PredictionIds(SigningKeys.parse([f"7:{SECRET}"]), max_age_seconds=30 * 86_400)
CLASSES = Prediction("digits", "1.1.0", "stable", NOW_MS, b"0123456789", (3, 8, 9), 0.75)
VALUE = Prediction("sum", "1", None, NOW_MS, b"0123456789", value=-2.5)

confidences = st.none() | st.floats(0, 1)
names = st.text(string.ascii_lowercase + "äß-.", min_size=1, max_size=63)
nonces = st.binary(min_size=NONCE_BYTES, max_size=NONCE_BYTES)
indices = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5).map(tuple)
ages = st.integers(-5 * 60_000, 30 * DAY_MS)
classes = st.builds(
    Prediction, names, names, st.none() | names, ages.map(lambda age: NOW_MS - age), nonces, indices, confidences
)
numbers = st.builds(
    Prediction,
    names,
    names,
    st.none() | names,
    ages.map(lambda age: NOW_MS - age),
    nonces,
    value=st.none() | st.floats(allow_nan=False, allow_infinity=False),
)


@given(classes)
def test_classification_comes_back(prediction: Prediction) -> None:
    back = IDS.verify(IDS.sign(prediction), NOW_MS)
    if prediction.confidence is not None:
        assert back.confidence == pytest.approx(prediction.confidence, abs=0.5 / 65534)
        prediction.confidence = back.confidence
    assert back == prediction


@given(numbers)
def test_regression_comes_back_exactly(prediction: Prediction) -> None:
    assert IDS.verify(IDS.sign(prediction), NOW_MS) == prediction


@pytest.mark.parametrize("prediction", [CLASSES, VALUE], ids=["classes", "value"])
def test_token_is_what_the_module_says(prediction: Prediction) -> None:
    """Put together a second time, by hand."""
    parts = [bytes([1, 7]), NOW_MS.to_bytes(8, "big"), b"0123456789"]
    for text in (prediction.model, prediction.version, prediction.alias or ""):
        parts += [bytes([len(text)]), text.encode()]
    if prediction.indices:
        parts += [b"\x01", round(0.75 * 65534).to_bytes(2, "big"), b"\x03"]
        parts += [index.to_bytes(4, "big") for index in prediction.indices]
    else:
        parts += [b"\x02", struct.pack(">d", -2.5)]
    body = b"".join(parts)
    token = body + hashlib.blake2b(body, key=SECRET.encode(), digest_size=16).digest()
    assert IDS.sign(prediction) == urlsafe_b64encode(token).decode().rstrip("=")


def test_indices_after_the_fifth_are_left_out() -> None:
    seven = Prediction("m", "1", None, NOW_MS, b"0123456789", tuple(range(7)), 1.0)
    assert IDS.verify(IDS.sign(seven), NOW_MS).indices == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("given", "expected"), [(math.nan, None), (math.inf, None), (-math.inf, None), (3.7, 1.0), (-1.0, 0.0), (1.0, 1.0)]
)
def test_confidence_that_is_no_probability(given: float, expected: float | None) -> None:
    prediction = Prediction("m", "1", None, NOW_MS, b"0123456789", (1,), given)
    assert IDS.verify(IDS.sign(prediction), NOW_MS).confidence == expected


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_value_that_is_not_finite_is_none(value: float | None) -> None:
    prediction = Prediction("m", "1", None, NOW_MS, b"0123456789", value=value)
    assert IDS.verify(IDS.sign(prediction), NOW_MS).value is None


@pytest.mark.parametrize("prediction", [CLASSES, VALUE], ids=["classes", "value"])
def test_every_flipped_bit_of_the_text_is_found(prediction: Prediction) -> None:
    token = IDS.sign(prediction).encode()
    for place in range(len(token) * 8):
        changed = bytearray(token)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(ForgedPrediction):
            IDS.verify(changed.decode("latin-1"), NOW_MS)


@given(st.one_of(classes, numbers), st.data())
def test_every_flipped_bit_of_the_bytes_is_found(prediction: Prediction, data: st.DataObject) -> None:
    token = bytearray(_decode(IDS.sign(prediction)))
    place = data.draw(st.integers(0, len(token) * 8 - 1))
    token[place // 8] ^= 1 << place % 8
    with pytest.raises(ForgedPrediction):
        IDS.verify(_encode(token), NOW_MS)


@given(
    st.text()
    | st.text(string.ascii_letters + string.digits + "-_=+/", max_size=300)
    | st.binary().map(lambda data: _encode(b"\x01\x07" + data))
)
def test_arbitrary_text_is_forged(text: str) -> None:
    with pytest.raises(ForgedPrediction):
        IDS.verify(text, NOW_MS)


@pytest.mark.parametrize("change", ["{}=", "{}==", " {}", "{}\n", "{}A", "{}\x00", "{}é", "={}", "{0}{0}", "{0}" * 100])
def test_text_around_a_good_token_is_forged(change: str) -> None:
    with pytest.raises(ForgedPrediction):
        IDS.verify(change.format(IDS.sign(CLASSES)), NOW_MS)


@given(st.binary(max_size=100))
def test_signed_nonsense_is_no_crash(content: bytes) -> None:
    """Another program may hold the key, too. By chance the content may make sense."""
    with contextlib.suppress(ForgedPrediction):
        IDS.verify(_sign_by_hand(content), NOW_MS)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"0123456789", b"0123456789\x01m\x011", b"0123456789\x01m\x011\x00", b"0123456789\x01m\x011\xffa",
        b"0123456789\x01\xff\x011\x00\x02" + bytes(8), b"0123456789\x01m\x011\x00\x03" + bytes(8),
        b"0123456789\x01m\x011\x00\x02" + bytes(9), b"0123456789\x01m\x011\x00\x01\0\0\xff",
        b"0123456789\x01m\x011\x00\x01\0\0\x02" + bytes(7),
    ],
)  # fmt: skip
def test_signed_token_of_another_form_is_forged(content: bytes) -> None:
    with pytest.raises(ForgedPrediction):
        IDS.verify(_sign_by_hand(content), NOW_MS)


def test_key_that_was_removed_and_another_secret_are_forged() -> None:
    token = IDS.sign(CLASSES)
    for setting in ("8:" + SECRET, "7:another secret of some length"):
        with pytest.raises(ForgedPrediction):
            PredictionIds(SigningKeys.parse([setting]), 1e9).verify(token, NOW_MS)


def test_keys_change_without_a_refusal() -> None:
    """Two replicas on either side of each step believe each other."""
    new = "2:another secret of some length"
    steps = [[f"7:{SECRET}"], [f"7:{SECRET}", f"{new}:verify-only"], [new, f"7:{SECRET}"]]
    replicas = [PredictionIds(SigningKeys.parse(step), 1e9) for step in steps]
    for one, other in (replicas[:2], replicas[1:]):
        assert one.verify(other.sign(CLASSES), NOW_MS) == other.verify(one.sign(CLASSES), NOW_MS)
    assert _decode(replicas[2].sign(CLASSES))[1] == 2


@pytest.mark.parametrize(
    ("age_ms", "error"),
    [
        (30 * DAY_MS, None), (30 * DAY_MS + 1, ExpiredPrediction), (10**12, ExpiredPrediction), (0, None),
        (-300_000, None), (-300_001, ForgedPrediction), (-DAY_MS, ForgedPrediction),
    ],
)  # fmt: skip
def test_age_is_held_to_its_limits(age_ms: int, error: type[Exception] | None) -> None:
    token = IDS.sign(CLASSES)
    if error is None:
        assert IDS.verify(token, NOW_MS + age_ms).indices == CLASSES.indices
        return
    with pytest.raises(error):
        IDS.verify(token, NOW_MS + age_ms)


def test_expired_says_how_old_and_how_long() -> None:
    with pytest.raises(ExpiredPrediction, match=r"31\.0 days old; feedback is taken for 30 days"):
        IDS.verify(IDS.sign(CLASSES), NOW_MS + 31 * DAY_MS)


def test_forged_is_forged_however_old() -> None:
    """What is not signed says nothing of its age."""
    with pytest.raises(ForgedPrediction):
        IDS.verify(IDS.sign(CLASSES)[:-4], NOW_MS + 100 * DAY_MS)


def test_longest_names_of_a_registry_are_signed() -> None:
    longest = Prediction("m" * 255, "1" * 255, "a" * 255, NOW_MS, new_nonce(), (2**32 - 1,) * 5, 1.0)
    assert IDS.verify(IDS.sign(longest), NOW_MS) == longest


def _sign_by_hand(content: bytes) -> str:
    """A token of now, whose nonce and the rest are `content`."""
    body = struct.pack(">BBQ", 1, 7, NOW_MS) + content
    return _encode(body + hashlib.blake2b(body, key=SECRET.encode(), digest_size=16).digest())


def _decode(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _encode(token: bytes) -> str:
    return urlsafe_b64encode(token).decode().rstrip("=")
