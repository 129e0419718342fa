"""The wire schemas of /predict. They end here: inside, there are calls and arrays."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

DEFAULT_TOP_K = 5
CONTENT_KEYS = ("image", "images", "text", "texts", "inputs")
# Its key was thrown away.
EXAMPLE_ID = (
    "AQAAAAGh_YxpADIQF7l16shn9dMSZWZmaWNpZW50bmV0LWxpdGUwBTEuMS4wBnN0YWJsZQFrhAMAAAEaAAABHQAAARmENHC-dFv8RzyMzEKrzKav"
)
_PREDICTION_ID = "Signed; to be sent back with feedback on this prediction. Absent where the server has no secret."


class PredictRequest(BaseModel):
    """Exactly one of `image`, `images`, `text`, `texts` and `inputs`."""

    model_config = ConfigDict(extra="forbid")

    image: str | None = Field(None, description="One image (JPEG, PNG, WebP, GIF, BMP, TIFF), base64 or a data: URL.")
    images: list[str] | None = Field(None, min_length=1, description="Several images; each is answered for itself.")
    text: str | None = Field(None, description="One text.")
    texts: list[str] | None = Field(None, min_length=1, description="Several texts; each is answered for itself.")
    inputs: list[Any] | dict[str, Any] | None = Field(
        None,
        description="Rows of numbers, as [[0, 1, …], …]; for models of several inputs an object by input name.",
    )
    model: str | None = Field(
        None,
        description="name, name@version or name@alias; the default for this kind of content if left out.",
    )
    top_k: int = Field(DEFAULT_TOP_K, ge=1, description="How many labels each answer has, at most.")
    parameters: dict[str, Any] = Field(default_factory=dict, description="Reserved; must be empty.")

    @model_validator(mode="after")
    def _one_content(self) -> PredictRequest:
        given = [key for key in CONTENT_KEYS if getattr(self, key) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            raise ValueError(f"send exactly one of {', '.join(CONTENT_KEYS)}; this request has {found}")
        if self.parameters:
            raise ValueError(f"there is no parameter {next(iter(self.parameters))!r}; leave parameters out")
        return self


class PredictionRead(BaseModel):
    label: str = Field(examples=["tabby cat"])
    index: int = Field(examples=[281], description="0-based index of the class.")
    confidence: float | None = Field(examples=[0.66], description="Probability in 0…1; null if it was not finite.")


class ItemRead(BaseModel):
    """One entry of `results`: labels or a value, or an error of this item alone."""

    predictions: list[PredictionRead] | None = None
    value: float | None = None
    prediction_id: str | None = Field(None, examples=[EXAMPLE_ID], description=_PREDICTION_ID)
    error: str | None = None
    code: str | None = None


class PredictResponse(BaseModel):
    """`predictions` for one image or text, `value` for one of a regression, `results` for several items or rows,
    `outputs` for models without labels."""

    predictions: list[PredictionRead] | None = None
    value: float | None = None
    prediction_id: str | None = Field(None, examples=[EXAMPLE_ID], description=_PREDICTION_ID)
    unit: str | None = None
    results: list[ItemRead] | None = None
    outputs: dict[str, Any] | None = None
    model: str = Field(examples=["efficientnet-lite0"])
    version: str = Field(examples=["1.1.0"])
    alias: str | None = Field(examples=["stable"])
    request_id: str = Field(examples=["3f0c6d1be2f94a3f8a3c2f6f0d9b7a55"])
    warnings: list[str] | None = Field(
        None,
        description="What was changed or flagged in the inputs by their policies, and outputs that are not finite.",
    )


class ErrorResponse(BaseModel):
    error: str = Field(examples=["there is no model 'resnet'; served are digits, efficientnet-lite0"])
    code: str = Field(examples=["model_not_found"])
    request_id: str = Field(examples=["3f0c6d1be2f94a3f8a3c2f6f0d9b7a55"])
