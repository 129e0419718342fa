"""The signed ids that go with an answer, one for each row or image, to which feedback refers."""

from __future__ import annotations

import time

from app.engine.call import Answer
from app.monitoring.prediction_id import TOP, Prediction, PredictionIds, new_nonce
from app.registry.servables.servable import Item


def sign_items(answer: Answer, prediction_ids: PredictionIds) -> list[str | None]:
    """None for an item that is an error. All of one answer have one time."""
    at_ms = time.time_ns() // 1_000_000
    ids: list[str | None] = []
    for item in answer.items or ():
        if not isinstance(item, Item):
            ids.append(None)
            continue
        best = item.predictions[:TOP]
        prediction = Prediction(
            answer.model,
            answer.version,
            answer.alias,
            at_ms,
            new_nonce(),
            indices=tuple(one.index for one in best),
            confidence=best[0].confidence if best else None,
            value=item.value,
        )
        ids.append(prediction_ids.sign(prediction))
    return ids
