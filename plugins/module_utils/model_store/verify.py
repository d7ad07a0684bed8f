# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether what was published is still what it was: every byte read again, at leisure."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.onprem.llm.plugins.module_utils import transfer
from ansible_collections.onprem.llm.plugins.module_utils.model_store import damage, manifest, pieces
from ansible_collections.onprem.llm.plugins.module_utils.model_store.damage import Damage
from ansible_collections.onprem.llm.plugins.module_utils.model_store.manifest import MANIFEST, Entry
from ansible_collections.onprem.llm.plugins.module_utils.model_store.store import homes


@dataclass(frozen=True)
class Verified:
    """What a verification did."""

    files: int
    size: int
    damaged: tuple[Damage, ...]


def verify(store: Path, findings: Path, tell: Callable[[str], None] = print) -> Verified:
    """Read every published file again and keep in ``findings`` what is damaged, as soon as it is seen.

    Cut short, it leaves what it found; what an earlier one found about files it did not reach stays.
    """
    bad: list[Damage] = []
    files = size = 0
    known: set[tuple[str, str, str]] = set()
    for home in homes(store):
        shown = manifest.read(home)
        owner, name, revision = home.parts[-3:]
        here = (f"{owner}/{name}", revision)
        if (shown.repo, shown.revision) != here:
            if (home / MANIFEST).exists():  # else removed while it was read
                # Nothing tells what its files were; what is known of them stays known.
                known |= {(one.repo, one.revision, one.path) for one in damage.read(findings).damaged}
                bad.append(Damage(*here, MANIFEST))
                known.add((*here, MANIFEST))
                settle(findings, (*here, MANIFEST), bad[-1])
                tell(f"{home / MANIFEST}: cannot be read, or is another's: nothing tells what the files beside it were")
            continue
        for entry in shown.files:
            key = (shown.repo, shown.revision, entry.path)
            found = _judge(home, entry)
            if found is not None and entry not in manifest.read(home).files:
                continue  # removed or published anew while it was read
            known.add(key)
            files, size = files + 1, size + entry.size
            one = None if found is None else Damage(*key, tuple(found))
            settle(findings, key, one)
            if one is not None:
                bad.append(one)
                tell(f"{home / entry.path}: {words(one, entry)}")
    with _alone(findings):
        still = damage.read(findings).damaged
        damage.write(findings, time.time(), [one for one in still if (one.repo, one.revision, one.path) in known])
    return Verified(files, size, tuple(bad))


def settle(findings: Path, key: tuple[str, str, str], now: Damage | None) -> None:
    """Keep what is known of one file (repo, revision, path): damaged so, or not at all."""
    before = damage.read(findings).damaged
    if any((one.repo, one.revision, one.path) == key for one in before) or now is not None:
        with _alone(findings):
            seen = damage.read(findings)
            others = [one for one in seen.damaged if (one.repo, one.revision, one.path) != key]
            damage.write(findings, seen.checked, [*others, now] if now is not None else others)


def words(one: Damage, entry: Entry) -> str:
    """The damage of a file, for people."""
    if entry.pieces is None or len(one.pieces) == len(entry.pieces.hashes):
        return f"all of its {transfer.human(entry.size)} are damaged or missing"
    return (
        f"{len(one.pieces)} of {len(entry.pieces.hashes)} pieces are damaged "
        f"({transfer.human(len(one.pieces) * entry.pieces.size)} of {transfer.human(entry.size)})"
    )


def _judge(home: Path, entry: Entry) -> list[int] | None:
    """The damaged pieces of a file; an empty list where only the whole can be judged; None when all is well."""
    place = home / entry.path
    try:
        file = os.open(place, os.O_RDONLY)
    except OSError:
        return list(range(len(entry.pieces.hashes))) if entry.pieces is not None else []
    try:
        # What lies in memory says nothing about the disk. What an engine has mapped stays there.
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)
    if entry.pieces is not None:
        return pieces.damaged(place, entry.size, entry.pieces) or None
    try:
        hashes = transfer.hash_file(place, transfer.Hashes(entry.size))
    except OSError:
        return []
    return None if hashes.size == entry.size and hashes.wrong(entry.sha256, "") is None else []


@contextmanager
def _alone(findings: Path) -> Iterator[None]:
    """A verification and a transfer may both have something to say."""
    findings.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(findings.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
