"""Environment variables to settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import Settings


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No HEADWAY_ variables, and no .env in the working directory."""
    import os

    for name in [name for name in os.environ if name.startswith("HEADWAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_settings_defaults() -> None:
    settings = Settings()
    assert (settings.host, settings.port, settings.models) == ("127.0.0.1", 8000, Path("models"))
    assert settings.api_keys == ()
    assert settings.workers is None


def test_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PORT": "0", "WORKERS": "3", "CPUS": "1.5", "MODELS": "/srv/models", "STRICT": "true", "DRAIN_SECONDS": "0",
        "UDS": "/run/headway.sock", "LOG_LEVEL": "debug", "ACCESS_LOG_SAMPLE": "0.25",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"HEADWAY_{name}", value)
    settings = Settings()
    assert (settings.port, settings.workers, settings.cpus) == (0, 3, 1.5)
    assert settings.models == Path("/srv/models")
    assert settings.strict is True
    assert settings.drain_seconds == 0
    assert settings.uds == Path("/run/headway.sock")
    assert (settings.log_level, settings.access_log_sample) == ("debug", 0.25)


def test_settings_names_are_not_case_sensitive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("headway_port", "9000")
    assert Settings().port == 9000


def test_settings_given_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWAY_PORT", "9000")
    assert Settings(port=9001).port == 9001


def test_settings_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("HEADWAY_PORT=9002\nHEADWAY_WORKERS=2\nOTHER=1\n")
    monkeypatch.setenv("HEADWAY_WORKERS", "4")
    assert (Settings().port, Settings().workers) == (9002, 4)


@pytest.mark.parametrize(
    ("text", "values"),
    [("", []), ("one", ["one"]), ("one,two", ["one", "two"]), (" one , two ,, ", ["one", "two"]), ("a b", ["a b"])],
)
def test_settings_comma_lists(monkeypatch: pytest.MonkeyPatch, text: str, values: list[str]) -> None:
    monkeypatch.setenv("HEADWAY_API_KEYS", text)
    monkeypatch.setenv("HEADWAY_CORS_ORIGINS", text)
    settings = Settings()
    assert [key.get_secret_value() for key in settings.api_keys] == values
    assert list(settings.cors_origins) == values


def test_settings_never_show_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWAY_API_KEYS", "opensesame")
    settings = Settings()
    assert "opensesame" not in repr(settings) + str(settings) + settings.model_dump_json()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "65536"), ("PORT", "-1"), ("PORT", "http"), ("WORKERS", "0"), ("WORKERS", "two"), ("CPUS", "0"),
        ("CPUS", "-2"), ("STRICT", "perhaps"), ("MAX_BODY_BYTES", "1"), ("DEADLINE_MS", "0"), ("DRAIN_SECONDS", "-1"),
        ("LOG_LEVEL", "loud"), ("LOG_FORMAT", "xml"), ("ACCESS_LOG_SAMPLE", "1.5"), ("MAX_ITEMS", "0"),
    ],
)  # fmt: skip
def test_settings_bad_value_names_the_setting(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"HEADWAY_{name}", value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    (problem,) = caught.value.errors()
    assert problem["loc"] == (name.lower(),)
    assert problem["input"] == value


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"SSL_CERTFILE": "/a.pem"}, "HEADWAY_SSL_CERTFILE and HEADWAY_SSL_KEYFILE are set together or not at all"),
        ({"SSL_KEYFILE": "/a.pem"}, "are set together or not at all"),
        (
            {"ADMIN_TOKEN": "a", "ADMIN_TOKEN_FILE": "/b"},
            "set HEADWAY_ADMIN_TOKEN or HEADWAY_ADMIN_TOKEN_FILE, not both",
        ),
        ({"DEADLINE_MS": "70000"}, "HEADWAY_DEADLINE_MS must not be larger than HEADWAY_MAX_DEADLINE_MS"),
    ],
)
def test_settings_that_contradict_each_other(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], message: str
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(f"HEADWAY_{name}", value)
    with pytest.raises(ValidationError, match=message):
        Settings()


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize(
    ("text", "address"), [("127.0.0.1:8001", ("127.0.0.1", 8001)), ("[::1]:0", ("::1", 0)), (":9000", ("", 9000))]
)
def test_management_address(text: str, address: tuple[str, int]) -> None:
    assert Settings(management_bind=text).management_address == address


@pytest.mark.parametrize("text", ["8001", "localhost", "localhost:", "localhost:http", "localhost:65536"])
def test_management_address_that_is_none(text: str) -> None:
    with pytest.raises(ValidationError, match="write an address and a port"):
        Settings(management_bind=text)


def test_admin_token_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    settings = Settings(admin_token_file=path)
    with pytest.raises(ValueError, match=r"HEADWAY_ADMIN_TOKEN_FILE: .* cannot be read"):
        settings.read_admin_token()
    path.write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        settings.read_admin_token()
    path.write_text("secret\n")
    assert settings.read_admin_token() == "secret"
    assert Settings().read_admin_token() is None
