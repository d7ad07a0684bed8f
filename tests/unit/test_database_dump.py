# SPDX-License-Identifier: GPL-3.0-or-later
"""A database of a PostgreSQL of this machine, kept and brought back. Where it has none, molecule/openwebui does it."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.onprem.llm.plugins.module_utils import database_dump
from ansible_collections.onprem.llm.plugins.module_utils.database_dump import DumpError, Server

PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/nowhere"))
SOCKETS = Path("/var/run/postgresql")

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not (PROGRAMS / "initdb").exists() or not SOCKETS.is_dir(), reason="no PostgreSQL to start"
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with socket.socket() as probe, tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        os.chmod(folder, 0o777)
        control = ["runuser", "-u", "postgres", "--", str(PROGRAMS / "pg_ctl"), "--silent", f"--pgdata={folder}/data"]
        subprocess.run([*control, "initdb", "-o", "--no-sync"], check=True, cwd="/", stdout=subprocess.DEVNULL)
        options = f"-p {port} -c fsync=off -c listen_addresses= -c unix_socket_directories={SOCKETS}"
        subprocess.run([*control, "start", "-w", "-o", options, "-l", f"{folder}/log"], check=True, cwd="/")
        try:
            yield Server(port)
        finally:
            subprocess.run([*control, "stop", "-m", "immediate"], check=True, cwd="/")


@pytest.fixture
def database(server: Server) -> Iterator[str]:
    server.sql("CREATE ROLE chat LOGIN", "CREATE ROLE reader", "CREATE DATABASE chat OWNER chat")
    server.sql("REVOKE CONNECT, TEMPORARY ON DATABASE chat FROM PUBLIC", "GRANT CONNECT ON DATABASE chat TO reader")
    server.sql(
        'ALTER DATABASE chat SET search_path TO public, "$user"',
        "ALTER ROLE chat IN DATABASE chat SET work_mem = '7MB'",
    )
    yield "chat"
    server.sql("DROP DATABASE chat WITH (FORCE)", "DROP ROLE chat, reader")


SHARED = (
    "SELECT datacl, (SELECT array_agg(setconfig ORDER BY setrole) FROM pg_db_role_setting WHERE setdatabase = d.oid)"
    " FROM pg_database d WHERE datname = 'chat'"
)


def test_it_comes_back_as_it_was_with_its_rights_and_settings(server: Server, database: str, tmp_path: Path) -> None:
    assert database_dump.is_empty(server, database)
    server.sql("SET ROLE chat; CREATE TABLE said (words text)", "INSERT INTO said VALUES ('before')", database=database)
    server.sql("GRANT SELECT ON said TO reader", "CREATE SCHEMA own", "CREATE TABLE own.kept ()", database=database)
    assert not database_dump.is_empty(server, database)
    kept = tmp_path / "kept.dump"
    assert database_dump.dump(server, database, kept) == kept.stat().st_size
    before = server.sql(SHARED), server.run("pg_dump", ["--schema-only", "--create", database])
    # What a newer version does.
    server.sql("UPDATE said SET words = 'after'", "ALTER TABLE said ADD more int", database=database)
    server.sql("CREATE SCHEMA newer", "CREATE TABLE newer.thing ()", "CREATE TABLE said_too ()", database=database)
    server.sql("DROP TABLE own.kept", "REVOKE CREATE ON SCHEMA public FROM chat", database=database)
    database_dump.restore(server, database, kept)
    assert server.sql("SELECT * FROM said", database=database) == "before"
    now = server.sql(SHARED), server.run("pg_dump", ["--schema-only", "--create", database])
    assert [*map(_plain, now)] == [*map(_plain, before)]
    assert server.sql("SELECT datname FROM pg_database ORDER BY 1") == "chat\npostgres\ntemplate0\ntemplate1"


def _plain(text: str) -> list[str]:
    """Without the word that newer programs choose anew each time."""
    return [line for line in text.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]


@pytest.mark.parametrize("size", [0, 20, -30])
def test_a_dump_that_is_not_whole_changes_nothing(server: Server, database: str, tmp_path: Path, size: int) -> None:
    server.sql("CREATE TABLE said AS SELECT repeat('x', 99) || n FROM generate_series(1, 9999) n", database=database)
    kept = tmp_path / "kept.dump"
    database_dump.dump(server, database, kept)
    kept.write_bytes(kept.read_bytes()[:size])
    server.sql("CREATE TABLE newer ()", database=database)
    with pytest.raises(
        DumpError, match=rf"The database chat was not restored from {kept} and is as it was: bash failed"
    ):
        database_dump.restore(server, database, kept)
    assert server.sql("SELECT count(*) FROM said, (SELECT count(*) FROM newer) n", database=database) == "9999"


def test_another_server_than_the_applications_is_refused(server: Server, database: str) -> None:
    here = server.sql("SELECT system_identifier FROM pg_control_system()")
    # As the application asks, without any right.
    server.sql("SET ROLE chat; SELECT system_identifier FROM pg_control_system()", database=database)
    database_dump.check_cluster(server, here, database)
    with pytest.raises(DumpError, match=r"No PostgreSQL answers at port 9 .*openwebui_database_server"):
        database_dump.check_cluster(Server(9), here, database)
    with pytest.raises(DumpError, match=rf"identifier {here}, .* uses 1: the database chat here is not"):
        database_dump.check_cluster(server, "1", database)
