"""What a caller of /predict sends: JSON, a multipart upload, the bytes of an image, a text or a tensor, decoded to one
shape."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import pybase64
from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from app.api.context import context_of
from app.api.flags import check_flags, may_hold_flags
from app.api.problems import explain_invalid
from app.api.schemas import DEFAULT_TOP_K, PredictRequest
from app.errors import (
    BodyTooLarge,
    HeadwayError,
    InvalidContent,
    InvalidImage,
    InvalidTensor,
    MalformedRequest,
    UnsupportedMediaType,
)
from app.processing.tensor import tensors_from_bytes
from app.registry.servables.servable import Content, ContentKind, Servable
from app.tensors import Tensors

_request_adapter = TypeAdapter(PredictRequest)
_CONTENT_TYPES = "application/json, multipart/form-data, image/*, text/plain or application/octet-stream (a tensor)"
TEXT_TYPE = "text/plain"
TENSOR_TYPE = "application/octet-stream"
_CHARSETS = ("utf-8", "utf8", "us-ascii", "ascii")
# What an image file begins with; of WebP, the four bytes after these are its length.
_IMAGE_BEGINNINGS = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF8", "image/gif"),
    (b"RIFF", "image/webp"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"BM", "image/bmp"),
)


@dataclass(slots=True)
class PredictContent:
    """What was sent, of any content type, decoded: images are bytes, or the error that decoding one gave; the text of
    a raw body is its bytes.

    `tensor` is the bytes of one: what they mean, the model says.
    """

    image: bytes | None = None
    images: list[bytes | HeadwayError] | None = None
    text: str | bytes | None = None
    texts: list[str] | None = None
    inputs: Any = None
    tensor: bytes | None = None
    model: str | None = None
    top_k: int = DEFAULT_TOP_K

    @property
    def kind(self) -> ContentKind:
        if self.inputs is not None or self.tensor is not None:
            return "tensor"
        return "text" if self.text is not None or self.texts is not None else "image"

    @property
    def is_plural(self) -> bool:
        """Whether each item is answered for itself, an error among them."""
        return self.images is not None or self.texts is not None

    @property
    def is_single(self) -> bool:
        return self.image is not None or self.text is not None

    def inputs_for(self, servable: Servable) -> Content | Tensors:
        """What a model gets of it. Raises InvalidTensor for bytes that are no tensor of its input."""
        if self.tensor is None:
            return self._content()
        try:
            return tensors_from_bytes(self.tensor, servable.manifest.input_specs)
        except InvalidTensor as exc:
            raise InvalidTensor(f"{exc}{self.describe_image()}") from exc

    def describe_image(self) -> str:
        """For an error's end: what to do where the bytes sent as a tensor look like an image file, else nothing."""
        for beginning, media_type in _IMAGE_BEGINNINGS:
            if self.tensor is not None and self.tensor.startswith(beginning):
                return f". It looks like an image file: send {media_type} as its Content-Type"
        return ""

    def _content(self) -> Content:
        if self.inputs is not None:
            return Content("tensor", (self.inputs,))
        if self.kind == "text":
            return Content("text", (self.text,) if self.text is not None else tuple(self.texts or ()))
        return Content("image", (self.image,) if self.image is not None else tuple(self.images or ()))


async def parse_content(request: Request, body: bytes, max_items: int) -> PredictContent:
    """Decode a body by its content type.

    Raises UnsupportedMediaType, MalformedRequest, BodyTooLarge for more than `max_items` images or texts, InvalidImage
    for a single image that is not base64.
    """
    content_type = context_of(request.scope).headers.get(b"content-type", b"application/json").decode("latin-1")
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == "application/json" or media_type.endswith("+json"):
        content = _from_json(body)
    elif media_type.startswith("image/"):
        content = PredictContent(image=body, **_parse_query(request))
    elif media_type == TEXT_TYPE:
        _check_charset(content_type)
        content = PredictContent(text=body, **_parse_query(request))
    elif media_type == TENSOR_TYPE:
        content = PredictContent(tensor=body, **_parse_query(request))
    elif media_type == "multipart/form-data":
        content = await _from_multipart(body, request.headers, max_items)
    else:
        hint = " (curl sends this unless told otherwise with -H)" if "urlencoded" in media_type else ""
        raise UnsupportedMediaType(f"Content-Type {media_type!r}{hint} is not taken; send {_CONTENT_TYPES}")
    for what, items in (("images", content.images), ("texts", content.texts)):
        if items is not None and len(items) > max_items:
            raise BodyTooLarge(f"{len(items)} {what} in one request; send at most {max_items}")
    return content


def _check_charset(content_type: str) -> None:
    """Raises UnsupportedMediaType for another encoding than UTF-8, of which ASCII is a part."""
    for parameter in content_type.split(";")[1:]:
        name, _, charset = parameter.partition("=")
        if name.strip().lower() == "charset" and charset.strip().strip('"').lower() not in _CHARSETS:
            raise UnsupportedMediaType(f"charset {charset.strip()!r} is not taken; send text/plain in UTF-8")


def _from_json(body: bytes) -> PredictContent:
    if not body:
        raise MalformedRequest('the body is empty; send JSON, as {"image": "<base64>"}')
    try:
        wire = _request_adapter.validate_json(body)
    except ValidationError as exc:
        raise MalformedRequest(explain_invalid(exc, PredictRequest.model_fields, '{"image": "<base64>"}')) from exc
    if wire.inputs is not None and may_hold_flags(body):
        by_name = wire.inputs if isinstance(wire.inputs, dict) else {None: wire.inputs}
        for name, values in by_name.items():
            check_flags("inputs" if name is None else f"input {name!r}", values)
    return PredictContent(
        image=decode_base64(wire.image) if wire.image is not None else None,
        images=[_decode_or_error(text) for text in wire.images] if wire.images is not None else None,
        text=wire.text,
        texts=wire.texts,
        inputs=wire.inputs,
        model=wire.model,
        top_k=wire.top_k,
    )


def _parse_query(request: Request) -> dict[str, Any]:
    """What a raw body has beside it."""
    query = request.query_params
    unknown = sorted(set(query) - {"model", "top_k"})
    if unknown:
        raise MalformedRequest(f"unknown query parameter {unknown[0]!r}; there are model and top_k")
    return {"model": query.get("model"), "top_k": _parse_top_k(query.get("top_k"))}


async def _from_multipart(body: bytes, headers: Headers, max_items: int) -> PredictContent:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body
        yield b""

    parser = MultiPartParser(headers, stream(), max_files=max_items, max_fields=8)
    parser.spool_max_size = len(body) + 1  # already in memory: never write it to disk
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as exc:
        message = getattr(exc, "message", None) or "the boundary is missing or wrong"
        raise MalformedRequest(f"the multipart body cannot be read: {message}") from exc
    try:
        uploads, fields = await _read_form(form)
    finally:
        await form.close()
    if not uploads:
        raise MalformedRequest("the form has no file in the field 'image'; with curl: -F image=@photo.jpg")
    top_k = _parse_top_k(fields.get("top_k"))
    if len(uploads) == 1:
        return PredictContent(image=uploads[0], model=fields.get("model"), top_k=top_k)
    return PredictContent(images=list(uploads), model=fields.get("model"), top_k=top_k)


async def _read_form(form: FormData) -> tuple[list[bytes], dict[str, str]]:
    uploads: list[bytes] = []
    fields: dict[str, str] = {}
    for name, value in form.multi_items():
        if name == "image" and isinstance(value, UploadFile):
            uploads.append(await value.read())
        elif name in ("model", "top_k") and isinstance(value, str):
            fields[name] = value
        else:
            raise MalformedRequest(f"field {name!r} is not taken; send a file as 'image', and model and top_k")
    return uploads, fields


def _parse_top_k(text: str | None) -> int:
    if text is None:
        return DEFAULT_TOP_K
    if not text.isascii() or not text.isdigit() or not int(text[:9]) >= 1 or len(text) > 9:
        raise MalformedRequest("top_k must be a whole number of at least 1")
    return int(text)


def decode_base64(text: str) -> bytes:
    """Base64 with or without line breaks, or a data: URL."""
    if text.startswith("data:"):
        header, comma, text = text.partition(",")
        if not comma or not header.endswith(";base64"):
            raise InvalidImage("the data: URL must be of the form data:image/jpeg;base64,…")
    if not text:
        raise InvalidImage("the image is empty; send the bytes of an image file as base64")
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError:
        pass
    try:
        return pybase64.b64decode("".join(text.split()), validate=True)
    except ValueError as exc:
        raise InvalidImage(
            "the image is not base64 (A-Z, a-z, 0-9, +, / and = padding); encode the file's bytes"
        ) from exc


def _decode_or_error(text: str) -> bytes | HeadwayError:
    try:
        return decode_base64(text)
    except InvalidContent as exc:
        return exc
