"""Prediction ids: what was answered, when and by which version, signed, so that feedback needs no record of answers.

A token is base64url without padding (RFC 4648, section 5) of 1 byte format, 1 byte key id, 8 bytes time in ms, 10 bytes
nonce, model, version and alias (1 byte length, UTF-8), kind and content, and 16 bytes of keyed BLAKE2b
(RFC 7693) over all before. Numbers are big-endian. Everyone can read it.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import random
import struct
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from dataclasses import dataclass
from functools import lru_cache

from app.errors import ExpiredPrediction, ForgedPrediction
from app.monitoring.keys import SigningKeys

TOP = 5
NONCE_BYTES = 10
_FORMAT = 1
_CLASSIFICATION, _REGRESSION = 1, 2
_MAC_BYTES = 16
_HEAD = struct.Struct(f">BBQ{NONCE_BYTES}s")
_VALUE = struct.Struct(">Bd")
# Kind, confidence, number of indices, indices.
_CLASSES = tuple(struct.Struct(f">BHB{count}I") for count in range(TOP + 1))
# Confidences are in steps of 1/65534, well below what calibration is measured with.
_CONFIDENCE_STEPS, _NO_CONFIDENCE = 65534, 65535
# The longest that can be signed: three names of 255 bytes.
_LARGEST_BYTES = _HEAD.size + 3 * 256 + _CLASSES[TOP].size + _MAC_BYTES
_LARGEST_CHARACTERS = math.ceil(_LARGEST_BYTES * 4 / 3)
_MOST_CLOCK_SKEW_MS = 5 * 60 * 1000
_TO_URL, _FROM_URL = bytes.maketrans(b"+/", b"-_"), bytes.maketrans(b"-_", b"+/")
_FORGED = "this prediction_id was not signed by this server, or is damaged; send it exactly as the answer had it"


@dataclass(slots=True)
class Prediction:
    """One answer, as its id carries it; a value, to be treated as frozen (frozen ones take four times as long to make).

    `at_ms` is Unix time in ms, `nonce` 10 random bytes, `indices` the classes predicted, best first, at most five.
    `confidence` is that of the first, in 0…1. A regression has no indices. `confidence` and `value` are None where
    the model gave NaN or infinity, and where they do not apply.
    """

    model: str
    version: str
    alias: str | None
    at_ms: int
    nonce: bytes
    indices: tuple[int, ...] = ()
    confidence: float | None = None
    value: float | None = None


class PredictionIds:
    """Signs and verifies. Thread-safe."""

    def __init__(self, keys: SigningKeys, max_age_seconds: float) -> None:
        self._keys = keys
        self._max_age_ms = max_age_seconds * 1e3
        self._signer_id, self._signer_secret = keys.signer.id, keys.signer.secret

    def sign(self, prediction: Prediction) -> str:
        """The id of a prediction. Indices after the fifth are left out.

        Raises ValueError or struct.error for what no answer has: a name of over 255 bytes, an index past 32 bits.
        """
        body = (
            _HEAD.pack(_FORMAT, self._signer_id, prediction.at_ms, prediction.nonce)
            + _pack_names(prediction.model, prediction.version, prediction.alias)
            + _pack_content(prediction)
        )
        token = body + _authenticate(self._signer_secret, body)
        return b2a_base64(token, newline=False).translate(_TO_URL, b"=").decode("ascii")

    def verify(self, text: str, now_ms: int) -> Prediction:
        """The prediction of an id. `now_ms` is Unix time.

        Raises ForgedPrediction for what no key of ours has signed and for what comes from the future by over five
        minutes (the clocks of replicas differ), ExpiredPrediction for what is older than `max_age_seconds`.
        """
        body = self._open(text)
        try:
            prediction = _unpack(body)
        except (struct.error, IndexError, UnicodeDecodeError) as exc:
            raise ForgedPrediction(_FORGED) from exc
        age_ms = now_ms - prediction.at_ms
        if age_ms < -_MOST_CLOCK_SKEW_MS:
            raise ForgedPrediction("this prediction_id is from the future; check the clocks of the servers")
        if age_ms > self._max_age_ms:
            raise ExpiredPrediction(
                f"this prediction is {age_ms / 86_400_000:.1f} days old; feedback is taken for "
                f"{self._max_age_ms / 86_400_000:g} days (HEADWAY_FEEDBACK_DAYS)"
            )
        return prediction

    def _open(self, text: str) -> bytes:
        """What is signed of a token whose signature is right; nothing of it is looked at before but format and key."""
        token = _decode(text)
        if len(token) < _HEAD.size + _MAC_BYTES or token[0] != _FORMAT:
            raise ForgedPrediction(_FORGED)
        body, mac = token[:-_MAC_BYTES], token[-_MAC_BYTES:]
        key = self._keys.find(token[1])
        if key is None or not hmac.compare_digest(mac, _authenticate(key.secret, body)):
            raise ForgedPrediction(_FORGED)
        return body


def new_nonce() -> bytes:
    """Unlike any other; it need not be secret, since it is signed. Asking the system for it takes 8 µs of a request."""
    return random.getrandbits(8 * NONCE_BYTES).to_bytes(NONCE_BYTES, "big")


def _authenticate(secret: bytes, body: bytes) -> bytes:
    """Keyed BLAKE2b (RFC 7693). HMAC-SHA256 of OpenSSL takes 1.4 µs where this takes 0.5, and 12 in a busy worker."""
    return hashlib.blake2b(body, key=secret, digest_size=_MAC_BYTES).digest()


def _decode(text: str) -> bytes:
    """Only what `sign` writes: two texts for one token would make two of one prediction. Raises ForgedPrediction."""
    if len(text) > _LARGEST_CHARACTERS or not text.isascii():
        raise ForgedPrediction(_FORGED)
    data = text.encode("ascii")
    try:
        token = a2b_base64(data.translate(_FROM_URL) + b"=" * (-len(data) % 4))
    except Base64Error as exc:
        raise ForgedPrediction(_FORGED) from exc
    if b2a_base64(token, newline=False).translate(_TO_URL, b"=") != data:
        raise ForgedPrediction(_FORGED)
    return token


@lru_cache(maxsize=256)
def _pack_names(model: str, version: str, alias: str | None) -> bytes:
    packed = b""
    for name in (model, version, alias or ""):
        data = name.encode()
        packed += bytes((len(data),)) + data
    return packed


def _pack_content(prediction: Prediction) -> bytes:
    indices = prediction.indices[:TOP]
    if not indices:
        value = prediction.value
        return _VALUE.pack(_REGRESSION, value if value is not None and math.isfinite(value) else math.nan)
    confidence = prediction.confidence
    steps = _NO_CONFIDENCE
    if confidence is not None and math.isfinite(confidence):
        # A model whose scores are taken as they are may leave 0…1.
        steps = round(min(max(confidence, 0.0), 1.0) * _CONFIDENCE_STEPS)
    return _CLASSES[len(indices)].pack(_CLASSIFICATION, steps, len(indices), *indices)


def _unpack(body: bytes) -> Prediction:
    _, _, at_ms, nonce = _HEAD.unpack_from(body)
    names, at = [], _HEAD.size
    for _ in range(3):
        end = at + 1 + body[at]
        names.append(body[at + 1 : end].decode())
        at = end
    prediction = Prediction(names[0], names[1], names[2] or None, at_ms, nonce)
    if body[at] == _REGRESSION:
        _, value = _VALUE.unpack(body[at:])
        prediction.value = None if math.isnan(value) else value
    elif body[at] == _CLASSIFICATION:
        _, steps, _, *indices = _CLASSES[body[at + 3]].unpack(body[at:])
        prediction.indices = tuple(indices)
        prediction.confidence = None if steps == _NO_CONFIDENCE else steps / _CONFIDENCE_STEPS
    else:
        raise struct.error(f"no kind {body[at]}")
    return prediction
