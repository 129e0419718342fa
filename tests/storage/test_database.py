"""Schema, failures and secrets of a database, with real files and a real server."""

from __future__ import annotations

import shutil
import sqlite3
import stat
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from app.errors import FeedbackUnavailable
from app.storage.database import Database, open_database
from app.storage.feedback import FeedbackStore, Outcome
from app.storage.postgresql import PostgresqlBackend
from app.storage.schema import MIGRATIONS, REVISION_TABLE, Schema
from app.storage.sqlite import FILE_NAME
from app.storage.tables import metadata
from tests.fixtures_postgresql import PASSWORD, Postgresql
from tests.running import PATIENCE_SECONDS, ROOT, heed_rights
from tests.storage.conftest import OPEN, Place, make_row

HEAD = Schema().head
NEXT = f"{int(HEAD) + 1:04}"

_NEXT = f"""
import sqlalchemy as sa
from alembic import op
revision = "{NEXT}"
down_revision = "{HEAD}"
def upgrade():
    op.add_column("feedback", sa.Column("note", sa.Text))
    op.create_table("another", sa.Column("id", sa.Integer, primary_key=True))
"""


@pytest.fixture
def next_migrations(tmp_path: Path) -> Path:
    """The migrations of a Headway that is newer by one revision."""
    directory = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, directory)
    (directory / f"r{NEXT}_note.py").write_text(_NEXT)
    return directory


def test_migrations_make_the_tables(database: Database) -> None:
    with database.reading() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": REVISION_TABLE, "compare_server_default": True}
        )
        assert compare_metadata(context, metadata) == []


def test_upgrade_is_done_once(place: Place) -> None:
    with place.open() as database:
        assert database.read_schema().revision is None
        assert database.upgrade() is None
        assert database.upgrade() == Schema().head
        state = database.read_schema()
        assert (state.revision, state.head, state.fault) == (Schema().head, Schema().head, None)
        database.check_schema()


def test_looking_at_a_database_does_not_make_it(sqlite_place: Place) -> None:
    with sqlite_place.open() as database:
        assert database.read_schema().fault == "it has no tables of Headway; run: headway db upgrade"
    assert not sqlite_place.data_dir.exists()


def test_new_sqlite_is_made_by_its_first_use(sqlite_place: Place) -> None:
    with sqlite_place.open() as database:
        assert FeedbackStore(database).add([make_row(1)]) == [Outcome.RECORDED]
        with database.reading() as connection:
            pragmas = [
                connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")
            ]
    assert pragmas == ["wal", 2]
    assert stat.S_IMODE(sqlite_place.data_dir.stat().st_mode) == 0o700


def test_new_postgresql_is_made_by_the_command_alone(postgresql_place: Place) -> None:
    with postgresql_place.open() as database:
        for _ in range(2):
            with pytest.raises(FeedbackUnavailable, match="has no tables of Headway; run: headway db upgrade"):
                FeedbackStore(database).add([make_row(1)])
        with postgresql_place.open() as other:
            other.upgrade()
        assert FeedbackStore(database).add([make_row(1)]) == [Outcome.RECORDED]


def test_processes_that_race_make_one_sqlite(sqlite_place: Place) -> None:
    program = "sys.stdin.readline()\nprint(store.add([row(1)])[0].value)\n"
    _race(sqlite_place, program, sorted(["recorded", "repeated", "repeated", "repeated"]))


def test_upgrades_that_race(place: Place) -> None:
    _race(place, "sys.stdin.readline()\nprint(database.upgrade())\n", [HEAD, HEAD, HEAD, "None"])


def _race(place: Place, program: str, answers: list[str]) -> None:
    """Four processes that have imported all they need begin at one time."""
    warm = "import sqlalchemy, alembic.migration, alembic.operations, alembic.script\nfrom app.storage import queries\n"
    processes = [place.start(f"{warm}print('ready', flush=True)\n{program}") for _ in answers]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert sorted(process.communicate(timeout=PATIENCE_SECONDS)[0].strip() for process in processes) == answers
    assert {process.returncode for process in processes} == {0}


def test_older_schema_is_upgraded_with_its_rows(place: Place, next_migrations: Path) -> None:
    with place.open() as old:
        old.upgrade()
        FeedbackStore(old).add([make_row(1)])
    with open_database(place.url, place.data_dir, migrations=next_migrations) as database:
        store = FeedbackStore(database)
        with pytest.raises(FeedbackUnavailable, match=f"is {HEAD}, and this Headway needs {NEXT}; run: "):
            store.add([make_row(2)])
        with pytest.raises(FeedbackUnavailable, match="run: headway db upgrade"):
            database.check_schema()
        assert database.upgrade() == HEAD
        assert store.add([make_row(1), make_row(2)]) == [Outcome.REPEATED, Outcome.RECORDED]


def test_newer_schema_is_left_alone(place: Place, next_migrations: Path) -> None:
    with open_database(place.url, place.data_dir, migrations=next_migrations) as newer:
        newer.upgrade()
    with place.open() as database:
        with pytest.raises(FeedbackUnavailable, match=rf"{NEXT} is not known .* made by a newer one; use that"):
            database.check_schema()
        with pytest.raises(FeedbackUnavailable, match=f"cannot be upgraded: its schema {NEXT} is not known"):
            database.upgrade()
        assert database.read_schema().revision == NEXT


def test_server_that_runs_goes_on_while_a_newer_one_upgrades(place: Place, next_migrations: Path) -> None:
    with place.open() as database, open_database(place.url, place.data_dir, migrations=next_migrations) as newer:
        database.upgrade()
        FeedbackStore(database).add([make_row(1)])
        newer.upgrade()
        assert FeedbackStore(newer).add([make_row(2)]) == [Outcome.RECORDED]
        assert FeedbackStore(database).add([make_row(2), make_row(3)]) == [Outcome.REPEATED, Outcome.RECORDED]


def test_schema_without_a_revision(database: Database) -> None:
    with database.writing() as connection:
        connection.exec_driver_sql(f"DELETE FROM {REVISION_TABLE}")
    with pytest.raises(FeedbackUnavailable, match="run: headway db upgrade"):
        database.check_schema()


def test_failed_upgrade_leaves_nothing(place: Place, next_migrations: Path) -> None:
    (next_migrations / f"r{NEXT}_note.py").write_text(_NEXT + "    op.drop_table('nothing')\n")
    with open_database(place.url, place.data_dir, migrations=next_migrations) as database:
        with pytest.raises(FeedbackUnavailable, match="nothing"):
            database.upgrade()
        assert database.read_schema().revision is None
    with place.open() as database:
        database.upgrade()
        FeedbackStore(database).add([make_row(1)])


def test_file_that_is_another_program_s(sqlite_place: Place) -> None:
    sqlite_place.data_dir.mkdir()
    with closing(sqlite3.connect(sqlite_place.data_dir / FILE_NAME)) as other:
        other.execute("CREATE TABLE songs (title TEXT)")
    with sqlite_place.open() as database, pytest.raises(FeedbackUnavailable, match="no tables of Headway"):
        database.check_schema()


def test_migrations_are_modules_of_the_package() -> None:
    assert Schema().revisions == sorted(path.name[1:5] for path in MIGRATIONS.glob("r*.py"))
    with pytest.raises(ValueError, match="holds no migrations"):
        Schema(ROOT / "docs")


def test_sqlalchemy_is_imported_by_the_first_use(tmp_path: Path) -> None:
    """Each worker would pay 0.2 s and its memory for it."""
    program = (
        "names = {'sqlalchemy', 'alembic', 'psycopg'}\nassert not names & set(sys.modules), names & set(sys.modules)\n"
        "open_database('postgresql://u:p@127.0.0.1/d', Path())\nassert not names & set(sys.modules)\n"
        "store.add([row(1)])\nassert names & set(sys.modules) == {'sqlalchemy', 'alembic'}\n"
    )
    subprocess.run([sys.executable, "-c", OPEN + program, "", str(tmp_path)], cwd=ROOT, check=True)
    # Where the tables are there, nobody needs Alembic.
    program = "store.add([row(1)])\nassert 'alembic' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", OPEN + program, "", str(tmp_path)], cwd=ROOT, check=True)


def test_locked_sqlite_is_told_and_recovers(sqlite_place: Place) -> None:
    with sqlite_place.open(wait_seconds=0.05) as database:
        store = FeedbackStore(database)
        store.add([make_row(1)])
        with closing(sqlite3.connect(sqlite_place.data_dir / FILE_NAME, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(
                FeedbackUnavailable, match=r"database is locked.*; another process is writing to it; try"
            ):
                store.add([make_row(2)])
            assert len(store.newest("m")) == 1
            other.execute("ROLLBACK")
        assert store.add([make_row(2)]) == [Outcome.RECORDED]


def test_transaction_that_fails_leaves_nothing(database: Database) -> None:
    def fail() -> None:
        with database.writing() as connection:
            connection.execute(metadata.tables["feedback"].insert(), make_row(1).values())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert FeedbackStore(database).summary().count == 0


def test_file_that_is_no_database(sqlite_place: Place) -> None:
    sqlite_place.data_dir.mkdir()
    path = sqlite_place.data_dir / FILE_NAME
    path.write_bytes(b"something else " * 1000)
    with sqlite_place.open() as database:
        with pytest.raises(FeedbackUnavailable, match=r"file is not a database.*; move this file away"):
            FeedbackStore(database).add([make_row(1)])
        path.unlink()
        assert FeedbackStore(database).add([make_row(1)]) == [Outcome.RECORDED]


def test_sqlite_that_is_removed_is_made_anew(sqlite_place: Place) -> None:
    with sqlite_place.open() as database:
        store = FeedbackStore(database)
        store.add([make_row(1)])
        shutil.rmtree(sqlite_place.data_dir)
        with pytest.raises(FeedbackUnavailable):
            store.add([make_row(2)])
        assert store.add([make_row(2)]) == [Outcome.RECORDED]
    with sqlite_place.open() as database:
        assert FeedbackStore(database).summary().count == 1


def test_directory_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    program = "try: store.add([row(1)])\nexcept Exception as exc: print(type(exc).__name__, exc)"
    command = [sys.executable, "-c", OPEN + program, "", str(tmp_path)]
    for directory in (tmp_path, tmp_path / "data"):
        done = subprocess.run(
            [*command[:-1], str(directory)],
            cwd=ROOT,
            preexec_fn=heed_rights,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.startswith("FeedbackUnavailable ")
        assert "HEADWAY_DATA_DIR" in done.stdout
    tmp_path.chmod(0o755)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("mounting a small disk needs rights that this user has not")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def test_full_disk_is_told_and_recovers(small_disk: Path) -> None:
    with Place(None, small_disk / "data").open() as database:
        store = FeedbackStore(database)
        store.add([make_row(1)])
        ballast = small_disk / "ballast"
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
        rows = [make_row(number) for number in range(1, 1000)]
        with pytest.raises(
            FeedbackUnavailable, match=r"disk (is full|I/O error).*; (free some space|see that its disk)"
        ):
            store.add(rows)
        ballast.unlink()
        assert store.newest("m").received_ms.tolist() == [1]
        assert set(store.add(rows[1:])) == {Outcome.RECORDED}


def test_limit_of_a_file_s_size_is_told_and_recovers(tmp_path: Path) -> None:
    """As a full disk, for users who may not mount one."""
    program = (
        "import resource\nstore.add([row(0)])\nlimits = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))\nrows = [row(n) for n in range(1, 3000)]\n"
        "try: store.add(rows)\nexcept Exception as exc: print(type(exc).__name__, exc)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, limits)\n"
        "print({outcome.value for outcome in store.add(rows)})\n"
    )
    command = [sys.executable, "-c", OPEN + program, "", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("FeedbackUnavailable ")
    assert "see that its disk works and has space left\n{'recorded'}\n" in done.stdout


def test_postgresql_that_is_stopped_and_started(postgresql: Postgresql, postgresql_place: Place) -> None:
    with postgresql_place.open() as database:
        database.upgrade()
        store = FeedbackStore(database)
        store.add([make_row(1)])
        postgresql.stop()
        try:
            for _ in range(2):
                with pytest.raises(FeedbackUnavailable, match="check HEADWAY_DATABASE_URL and that the server runs"):
                    store.add([make_row(2)])
        finally:
            postgresql.start()
        assert store.add([make_row(1), make_row(2)]) == [Outcome.REPEATED, Outcome.RECORDED]


def test_postgresql_that_goes_in_the_middle(postgresql: Postgresql, postgresql_place: Place) -> None:
    def restart_between() -> None:
        with database.writing() as connection:
            connection.execute(metadata.tables["feedback"].insert(), make_row(1).values())
            postgresql.stop()
            postgresql.start()
            connection.execute(metadata.tables["feedback"].insert(), make_row(2).values())

    with postgresql_place.open() as database:
        database.upgrade()
        with pytest.raises(FeedbackUnavailable, match=r"try again in a second|that the server runs"):
            restart_between()
        assert FeedbackStore(database).add([make_row(1), make_row(2)]) == [Outcome.RECORDED, Outcome.RECORDED]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"/test": "/no_such"}, "does not exist.*check HEADWAY_DATABASE_URL"),
        ({"postgres:S": "nobody:S"}, 'role "nobody" does not exist.*check HEADWAY_DATABASE_URL'),
        ({"127.0.0.1": "127.0.0.1.invalid"}, "check HEADWAY_DATABASE_URL and that the server runs"),
    ],
)
def test_postgresql_that_lets_nobody_in(postgresql_place: Place, change: dict[str, str], words: str) -> None:
    url = postgresql_place.url
    assert url is not None
    for old, new in change.items():
        url = url.replace(old, new)
    with open_database(url, Path()) as database, pytest.raises(FeedbackUnavailable, match=words) as caught:
        database.check_schema()
    assert "\n" not in str(caught.value)
    shown = "".join(traceback.format_exception(caught.value)) + database.location
    assert PASSWORD not in shown
    assert ":***@" in database.location


def test_statement_that_waits_too_long(postgresql_place: Place) -> None:
    def wait() -> None:
        with database.reading() as connection:
            connection.exec_driver_sql("SET LOCAL statement_timeout = 1")
            connection.exec_driver_sql("SELECT pg_sleep(60)")

    with postgresql_place.open() as database:
        database.upgrade()
        with pytest.raises(FeedbackUnavailable, match=r"statement timeout.*try again"):
            wait()


@pytest.mark.parametrize(
    "url",
    [
        "mysql://user:Sesame@host/db",
        "sqlite:///Sesame.db",
        "Sesame",
        "postgresql://user:Ses@me@host/db",
        "postgresql://user:Sesame/x@host/db",
        "postgresql://user:Sesame@host:port/db",
    ],
)
def test_url_that_is_none_of_ours(url: str) -> None:
    with pytest.raises(FeedbackUnavailable, match="HEADWAY_DATABASE_URL") as caught:
        open_database(url, Path()).check_schema()
    shown = "".join(traceback.format_exception(caught.value))
    assert "Sesame" not in shown
    assert "Ses@me" not in shown


def test_password_that_a_driver_repeats_is_not_shown() -> None:
    backend = PostgresqlBackend("postgresql://ann:Sesame@host/db?sslpassword=Simsim", 5.0)
    assert backend.redact("Sesame and Simsim of ann") == "*** and *** of ann"
    # What anybody may see anyway is no secret, and a message without it would tell nothing.
    assert PostgresqlBackend("postgresql://ann:ann@host/db", 5.0).redact("role ann") == "role ann"


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_location_has_no_secrets(scheme: str) -> None:
    with open_database(f"{scheme}://ann:Sesame@host:5433/db?sslpassword=Sesame&sslmode=require", Path()) as database:
        assert database.location == "postgresql://ann:***@host:5433/db"
    with open_database(f"{scheme}:///db?host=/run/postgresql&user=ann&password=Sesame", Path()) as database:
        assert database.location == "postgresql:///db?host=%2Frun%2Fpostgresql"


def test_unix_socket(postgresql: Postgresql, postgresql_place: Place) -> None:
    assert postgresql_place.url is not None
    name = postgresql_place.url.rpartition("/")[2]
    url = f"postgresql://postgres@/{name}?host={postgresql.directory}&port={postgresql.port}&application_name=mine"
    with open_database(url, Path()) as database:
        database.upgrade()
        assert FeedbackStore(database).add([make_row(1)]) == [Outcome.RECORDED]
