# SPDX-License-Identifier: GPL-3.0-or-later
"""One build for all hosts of a class: who builds it, what counts as complete, and the archive that travels.

A build is a folder, ``tree``, named after its key: everything that changes its bits. Beside it lie, while it is made,
``tree.stage`` (what will be the tree), ``tree.work`` (sources and objects), ``tree.log`` and ``tree.tar``. The stage
becomes the tree by one rename, with the marker in it, so nothing half ever has the tree's name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

from ansible_collections.onprem.llm.plugins.module_utils import systemctl, transfer

MARKER = ".complete"
#: Beside what a killed run compiled: the boot it was compiled in.
BOOT = ".boot"


class BuildError(Exception):
    """The build is not there. The text says why and what to do."""


# --- who builds


class Part(TypedDict):
    """What one host has to do."""

    source: str
    """The host the build comes from; empty when this host has it and nobody needs it."""
    builds: bool
    receives: bool
    gives: list[str]
    """Hosts that receive it from this one."""
    built: bool
    """The source has it already."""


def plan(looks: Mapping[str, Mapping[str, Any]], builders: Sequence[str] = ()) -> dict[str, Part]:
    """Each host's part. ``looks``: by host, in the order of the play, its ``key`` and whether it is ``complete`` there.

    Nothing is built that some host has. Among equals those of ``builders`` come first, then the order of the play.
    """
    parts: dict[str, Part] = {}
    for host, look in looks.items():
        equal = [other for other, its in looks.items() if its["key"] == look["key"]]
        lacking = [other for other in equal if not looks[other]["complete"]]
        having = [other for other in equal if other not in lacking]
        able = having or lacking
        source = next((other for other in able if other in builders), able[0]) if lacking else ""
        parts[host] = {
            "source": source,
            "builds": host == source and not look["complete"],
            "receives": host != source and not look["complete"],
            "gives": [other for other in lacking if other != source] if host == source else [],
            "built": bool(having),
        }
    return parts


# --- where things are


def beside(tree: Path, what: str) -> Path:
    """``tree.stage``, ``tree.work``, ``tree.log`` or ``tree.tar``."""
    return tree.with_name(f"{tree.name}.{what}")


def marker(tree: Path) -> dict[str, Any]:
    """What the marker of a complete tree says; empty when the tree is not complete."""
    try:
        said = json.loads((tree / MARKER).read_text())
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) and said.get("key") == tree.name and said.get("sha256") else {}


@contextmanager
def alone(tree: Path, patience: float = 3600.0) -> Iterator[int]:
    """Be the only one that builds beside this tree. Gives the lock, for a compiler to hold as well.

    A compiler outlives a run that was killed: it is waited for, ``patience`` seconds.
    """
    tree.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(tree.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            transfer.lock(lock, patience)
        except TimeoutError:
            raise BuildError(
                f"something builds in {tree.parent} and did not end within {patience:.0f} seconds; "
                f"`fuser -v {tree.parent}` shows it. End it and run again."
            ) from None
        yield lock
    finally:
        os.close(lock)


# --- building


def prepare(tree: Path, boot_id: Path = systemctl.BOOT_ID) -> None:
    """An empty stage, and a folder to work in: that of a run that was killed, unless the host went down since."""
    stage, work, boot = beside(tree, "stage"), beside(tree, "work"), boot_id.read_text()
    remove(stage)
    # A compiler leaves empty files behind when the power goes, and they look finished.
    if not (work / BOOT).exists() or (work / BOOT).read_text() != boot:
        remove(work)
        work.mkdir(mode=0o755)
        (work / BOOT).write_text(boot)
    stage.mkdir(mode=0o755)
    beside(tree, "log").unlink(missing_ok=True)


def step(tree: Path, argv: Sequence[str], chdir: Path) -> None:
    """Run a command of the build, its output into the log. BuildError with the reason when it fails.

    The command holds the lock, and what it starts does: whoever comes after the kill of this process waits for them.
    """
    log = beside(tree, "log")
    with alone(tree) as lock, log.open("ab") as out:
        out.write(f"$ {' '.join(argv)}\n".encode())
        out.flush()
        start = out.tell()
        try:
            code = subprocess.run(
                ["nice", *argv],
                cwd=chdir,
                env={**os.environ, "LC_ALL": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                pass_fds=[lock],
                check=False,
            ).returncode
        except OSError as error:
            raise BuildError(f"`{' '.join(argv[:2])}` did not start: {error}") from error
    if code:
        said = log.read_bytes()[start:].decode(errors="replace")
        raise BuildError(f"`{' '.join(argv[:2])}` ended with {code}: {cause(said)}\nThe whole log is {log}.")


def cause(log: str, most: int = 3) -> str:
    """The lines of a log that say why something failed: the first errors, or else its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\berror\b[^/]*:|No space left|Killed", line, re.IGNORECASE)]
    return "\n".join(line[:400] for line in (errors[:most] or lines[-1:] or ["it said nothing"]))


def complete(tree: Path, said: Mapping[str, Any], sha256: str = "") -> dict[str, Any]:
    """The stage becomes the tree. Returns the marker: ``said``, the key and the checksum, which must be ``sha256``."""
    stage = beside(tree, "stage")
    if not any(stage.iterdir()):
        raise BuildError(f"the build ended well and left nothing in {stage}. Nothing was installed.")
    own = digest(stage)
    if sha256 and own != sha256:
        raise BuildError(f"what was unpacked in {stage} has the sha256 {own}, what was built {sha256}. Run again.")
    written = {**said, "key": tree.name, "sha256": own}
    (stage / MARKER).write_text(json.dumps(written, indent=1, sort_keys=True) + "\n")
    # The name must not survive a power cut that what it names does not.
    os.sync()
    remove(tree)
    stage.rename(tree)
    remove(beside(tree, "work"))
    # Its own, and those of builds that were given up.
    for pattern in ("*.log", "*.tar", "*.tar.part"):
        for path in tree.parent.glob(pattern):
            path.unlink()
    return written


def remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


# --- the archive


class Hashing:
    """A file to write to that hashes what it passes on."""

    def __init__(self, out: BinaryIO | None = None) -> None:
        self.hash = hashlib.sha256()
        self.size = 0
        self._out = out

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self.size += len(data)
        if self._out is not None:
            self._out.write(data)
        return len(data)


def write_tar(tree: Path, out: Any) -> None:
    """The tree without its marker as a tar: the same tree gives the same bytes, on every host.

    Not compressed: programs shrink to half, and that takes longer than sending them to a neighbour.
    """
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.GNU_FORMAT) as archive:
        for path in sorted(tree.rglob("*")):
            if path == tree / MARKER:
                continue
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
                raise BuildError(f"{path} is no file, folder or link: a build holds nothing else")
            member = archive.gettarinfo(path, arcname=str(path.relative_to(tree)))
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            # Of files it is kept: Python's compiled files know that of their source.
            member.mtime = int(member.mtime) if member.isreg() or member.islnk() else 0
            if member.isreg():
                with path.open("rb") as content:
                    archive.addfile(member, content)
            else:
                archive.addfile(member)


def digest(tree: Path) -> str:
    """The sha256 of the tree's archive."""
    hashed = Hashing()
    write_tar(tree, hashed)
    return hashed.hash.hexdigest()


def pack(tree: Path, folder: Path) -> dict[str, Any]:
    """Write the archive of a complete tree into ``folder``, alone. Returns its name, sha256 and size in bytes."""
    said = marker(tree)
    if not said:
        raise BuildError(f"{tree} is not complete")
    remove(folder)
    folder.mkdir(parents=True, mode=0o755)
    with (folder / f"{tree.name}.tar").open("wb") as file:
        hashed = Hashing(file)
        write_tar(tree, hashed)
    if hashed.hash.hexdigest() != said["sha256"]:
        raise BuildError(
            f"{tree} was altered since it was built: its sha256 was {said['sha256']} and is {hashed.hash.hexdigest()}. "
            "Nobody is given it. Remove the folder and run again: it is built anew."
        )
    return {"name": f"{tree.name}.tar", "sha256": said["sha256"], "size": hashed.size}


def unpack(tree: Path) -> None:
    """Unpack ``tree.tar``, which is verified, into the stage."""
    stage = beside(tree, "stage")
    remove(stage)
    stage.mkdir(mode=0o755)
    with tarfile.open(beside(tree, "tar"), "r:") as archive:
        # It comes from our own builder, byte for byte; links may lead out of it.
        archive.extraction_filter = lambda member, path: member
        archive.extractall(stage)
