# SPDX-License-Identifier: GPL-3.0-or-later
"""A database of this host's PostgreSQL kept as a file, and brought back from it.

The server's own superuser works on its own host: so the client is the server's, no password is needed, and extensions
that only a superuser may create come back too.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ansible_collections.onprem.llm.plugins.module_utils import transfer

#: Bytes of a dump per byte of the database, at most: vectors are longer as text than as numbers, compressed too.
DUMP_SHARE = 1.5
NAME = re.compile(r"[a-z_][a-z0-9_]{0,50}")
GIB = 2**30


class DumpError(Exception):
    """The database could not be kept or brought back. The text says why, what is unchanged and the way out."""


@dataclass(frozen=True)
class Room:
    """Bytes free where dumps and where databases lie; ``shared`` when that is one file system."""

    dumps: int
    databases: int
    shared: bool


def lacking(size: int, room: Room, database: str, folder: str, data: str) -> str:
    """What is too small for a dump of ``size`` bytes and for its return beside the old one; empty when nothing is."""
    dump = int(size * DUMP_SHARE)
    if room.shared:
        wants = {folder: (room.dumps, dump + size)}
    else:
        wants = {folder: (room.dumps, dump), data: (room.databases, size)}
    short = [
        f"{place} has {free / GIB:.1f} GiB free of the {need / GIB:.1f} GiB needed"
        for place, (free, need) in wants.items()
        if free < need
    ]
    if not short:
        return ""
    return (
        f"{database} takes {size / GIB:.1f} GiB; a dump and, should it be needed, its return do not fit: "
        f"{'; '.join(short)}. Nothing was changed. Free that space, then run again."
    )


class Server:
    """The PostgreSQL that listens on ``port`` of this host, as its superuser."""

    def __init__(self, port: int) -> None:
        self.port = str(port)

    def run(
        self, program: str, arguments: Sequence[str], stdin: IO[bytes] | None = None, stdout: IO[bytes] | None = None
    ) -> str:
        """What the program said. DumpError with the end of what it complained of."""
        done = subprocess.run(
            ["runuser", "-u", "postgres", "--", program, *arguments],
            cwd="/",
            env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "PGPORT": self.port},
            stdin=stdin or subprocess.DEVNULL,
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.PIPE,
            check=False,
        )
        if done.returncode:
            raise DumpError(f"{program} failed: {done.stderr.decode(errors='replace').strip()[-2000:]}")
        return (done.stdout or b"").decode(errors="replace").strip()

    def sql(self, *commands: str, database: str = "postgres") -> str:
        """What the commands gave, unaligned. Each is a transaction of its own."""
        arguments = [f"--command={command}" for command in commands]
        return self.run("psql", ["-AtXq", "--set=ON_ERROR_STOP=1", f"--dbname={database}", *arguments])


def identifier(database: str) -> str:
    """As it is: names that would have to be quoted are refused."""
    if not NAME.fullmatch(database):
        raise DumpError(
            f"{database!r} is no plain name of a database. Use lower case letters, digits and _, at most 51."
        )
    return database


def check_room(server: Server, database: str, folder: Path) -> None:
    """DumpError when a dump and its return would not fit."""
    said = server.sql(f"SELECT pg_database_size('{identifier(database)}'), current_setting('data_directory')")
    size, _, data = said.partition("|")
    there = next(place for place in [folder, *folder.parents] if place.exists())
    dumps, databases = os.statvfs(there), os.statvfs(data)
    room = Room(
        dumps.f_bavail * dumps.f_frsize,
        databases.f_bavail * databases.f_frsize,
        os.stat(there).st_dev == os.stat(data).st_dev,
    )
    problem = lacking(int(size), room, database, str(folder), data)
    if problem:
        raise DumpError(problem)


def dump(server: Server, database: str, target: Path) -> int:
    """Keep the database as ``target``, complete or not at all. Bytes of the file."""
    part = target.with_suffix(".part")
    part.unlink(missing_ok=True)
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            server.run("pg_dump", ["--format=custom", f"--dbname={identifier(database)}"], stdout=file)
            os.fsync(file.fileno())
        part.rename(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    transfer.sync_folder(target.parent)
    return target.stat().st_size


def check_there(path: Path, database: str) -> None:
    """DumpError without the dump: what the database holds by now is no longer what it would have to hold."""
    if not path.exists():
        raise DumpError(
            f"The dump {path} is not there, and without it the database {database} cannot become what it was before "
            "the change of version. It was not touched. Put the file back there, then run again."
        )


def check_cluster(server: Server, seen: str, database: str) -> None:
    """DumpError when the application is connected to another server: it is not its database that would be kept."""
    way_out = "Let openwebui_database_host, openwebui_database_server and openwebui_database_port name one server."
    try:
        here = server.sql("SELECT system_identifier FROM pg_control_system()")
    except DumpError as error:
        raise DumpError(f"No PostgreSQL answers at port {server.port} of this host. {way_out} {error}") from error
    if here != seen:
        raise DumpError(
            f"The PostgreSQL at port {server.port} of this host has the identifier {here}, and the one that the "
            f"application uses {seen}: the database {database} here is not the application's. Nothing was changed. "
            f"{way_out}"
        )


def is_empty(server: Server, database: str) -> bool:
    """Whether nobody has made a table yet."""
    tables = "SELECT count(*) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
    return server.sql(tables, database=identifier(database)) == "0"


#: As a new database is: what a newer version made goes too. The database's own rights and settings stay.
EMPTY = """
BEGIN;
SET LOCAL lock_timeout = '60s';
DO $$
DECLARE found name;
BEGIN
  FOR found IN SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' LOOP
    EXECUTE format('DROP SCHEMA %I CASCADE', found);
  END LOOP;
  CREATE SCHEMA public;
  COMMENT ON SCHEMA public IS 'standard public schema';
  GRANT USAGE ON SCHEMA public TO PUBLIC;
  IF current_setting('server_version_num')::int >= 150000 THEN
    ALTER SCHEMA public OWNER TO pg_database_owner;
  ELSE
    GRANT CREATE ON SCHEMA public TO PUBLIC;
  END IF;
END $$;
"""
#: Without the last word, which follows a dump that was read to its end, psql changes nothing.
RESTORE = """
{ printf %s "$1" && pg_restore --file=- && echo 'COMMIT;'; } |
psql -Xq --set=ON_ERROR_STOP=1 --dbname="$2" >/dev/null
"""


def restore(server: Server, database: str, source: Path) -> None:
    """The database comes to hold what ``source`` holds, in one transaction."""
    name = identifier(database)
    check_there(source, name)
    if not server.sql(f"SELECT 1 FROM pg_database WHERE datname = '{name}'"):
        raise DumpError(f"There is no database {name} on this server. Run playbooks/data.yml, then again.")
    server.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    with open(source, "rb") as file:
        try:
            server.run("bash", ["-o", "pipefail", "-c", RESTORE, "restore", EMPTY, name], stdin=file)
        except DumpError as error:
            raise DumpError(f"The database {name} was not restored from {source} and is as it was: {error}") from error
    server.sql("ANALYZE", database=name)


def superfluous(folder: Path, needed: Iterable[str]) -> list[Path]:
    """Dumps that nothing needs, and halves of dumps."""
    kept = set(needed)
    return sorted(
        path
        for path in folder.glob("*")
        if path.suffix == ".part" or (path.suffix == ".dump" and path.stem not in kept)
    )
