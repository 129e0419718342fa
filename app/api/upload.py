"""The body of POST /update as it comes in: the bytes of one archive, and the fields beside it. Nothing is held."""

from __future__ import annotations

from collections.abc import AsyncIterator

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from app.errors import MalformedRequest, UnsupportedMediaType
from app.registry.storing.archive import ArchiveKind

FILE_FIELD = "file"
_MAX_FIELDS, _MAX_FIELD_BYTES = 16, 2000
# None: the first bytes tell.
_KINDS: dict[str, ArchiveKind | None] = {
    "application/zip": "zip",
    "application/x-zip-compressed": "zip",
    "application/x-tar": "tar",
    "application/gzip": "tar",
    "application/x-gzip": "tar",
    "application/x-compressed-tar": "tar",
    "application/octet-stream": None,
}
_MULTIPART = "multipart/form-data"


class Upload:
    """`fields` is complete once `chunks` has ended."""

    def __init__(self, request: Request) -> None:
        """Raises UnsupportedMediaType for a content type that is no archive."""
        content_type = request.headers.get("content-type", "")
        name, options = parse_options_header(content_type)
        media_type = name.decode("latin-1").lower()
        self.fields: dict[str, str] = dict(request.query_params)
        self._request = request
        self._form: _Form | None = None
        self.kind: ArchiveKind | None = None
        if media_type == _MULTIPART:
            self._form = _Form(options.get(b"boundary", b""))
        elif media_type in _KINDS:
            self.kind = _KINDS[media_type]
        else:
            raise UnsupportedMediaType(
                f"{media_type or 'no Content-Type'} is not taken here; send {', '.join(sorted(_KINDS))}, {_MULTIPART} "
                f"with the archive in the field {FILE_FIELD!r}, or application/json with a path"
            )

    async def chunks(self) -> AsyncIterator[bytes]:
        """The archive. Raises MalformedRequest where a form is broken or has no file."""
        form = self._form
        async for chunk in self._request.stream():
            if form is None:
                yield chunk
                continue
            for part in form.feed(chunk):
                yield part
        if form is not None:
            self.fields |= form.finish()


class _Form:
    """A form read piece by piece: the file is handed on, the fields are kept."""

    def __init__(self, boundary: bytes) -> None:
        if not boundary:
            raise MalformedRequest("the multipart body has no boundary in its Content-Type")
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._on_header_name,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_data,
                "on_end": self._on_end,
            },
        )
        self._fields: dict[str, bytearray] = {}
        self._files = 0
        self._out: list[bytes] = []
        self._name = ""
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._is_complete = False

    def feed(self, data: bytes) -> list[bytes]:
        """What of the file is in `data`."""
        try:
            self._parser.write(data)
        except MultipartParseError as exc:
            raise MalformedRequest(f"the multipart body cannot be read: {exc}") from exc
        out, self._out = self._out, []
        return out

    def finish(self) -> dict[str, str]:
        if not self._is_complete:
            raise MalformedRequest("the multipart body ends in the middle")
        if self._files != 1:
            raise MalformedRequest(f"send one archive in the field {FILE_FIELD!r}; with curl: -F file=@version.tar.gz")
        return {name: bytes(value).decode("utf-8", "replace") for name, value in self._fields.items()}

    def _begin(self) -> None:
        self._disposition = b""
        self._header = (bytearray(), bytearray())

    def _on_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def _on_header_end(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = bytes(value)
        self._header = (bytearray(), bytearray())

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if self._name == FILE_FIELD:
            self._files += 1
        elif len(self._fields) >= _MAX_FIELDS:
            raise MalformedRequest(f"the form has more than {_MAX_FIELDS} fields")
        else:
            self._fields[self._name] = bytearray()

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == FILE_FIELD:
            self._out.append(data[start:end])
            return
        field = self._fields[self._name]
        field.extend(data[start:end])
        if len(field) > _MAX_FIELD_BYTES:
            raise MalformedRequest(f"field {self._name!r} is longer than {_MAX_FIELD_BYTES} bytes")

    def _on_end(self) -> None:
        self._is_complete = True
