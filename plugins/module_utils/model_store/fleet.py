# SPDX-License-Identifier: GPL-3.0-or-later
"""One host's part in a fleet that shares its files: who fetches from the hub, who takes from whom, and until when.

Every host sees what the others say (announce) and decides for itself, file by file; since all decide alike, a file
comes over the uplink once. The others follow who fetches it, or who has it: each takes the bytes that came so far from
the one before it, so that the last has them moments after the first. What cannot be taken from start to end, such as
the bad pieces of a damaged file, comes through the swarm.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

from ansible_collections.onprem.llm.plugins.module_utils.model_store import announce, types
from ansible_collections.onprem.llm.plugins.module_utils.model_store.announce import (
    Board,
    Growing,
    Peer,
    Server,
    Stream,
    Watcher,
)
from ansible_collections.onprem.llm.plugins.module_utils.model_store.store import working
from ansible_collections.onprem.llm.plugins.module_utils.model_store.swarm import Swarm, taken
from ansible_collections.onprem.llm.plugins.module_utils.transfer import Watch, part_of

#: (``waiting`` or ``fleet``, bytes of the file that lie here)
Progress = Callable[[str, int], None]
Choice = Literal["take", "follow", "fetch", "wait"]
#: Why a host could not get a file: the bytes were not the ones promised, no source answered, or something else.
Cause = Literal["wrong", "unreachable", ""]

#: Seconds without a byte: after which nothing is said to come, after which an unfinished swarm that nobody completes is
#: left for a hub, after which one is left although somebody should have the file, and after which a host that gives
#: stops waiting for takers.
STALLED, ORPHANED, STUCK, UNASKED = 5.0, 10.0, 120.0, 300.0
#: Seconds until all who begin to follow at the same moment have said so; and until those who brought nothing are asked
#: again.
SETTLE, AGAIN = 0.3, 2.0
#: A file up to this many bytes is taken when somebody has it, by each for itself: a chain would take longer to form.
SMALL = 1 << 20
#: When so many hosts found that no source answers, the others need not.
ENOUGH = 2


def decide(key: str, me: str, peers: Sequence[Peer]) -> Choice:
    """Where a file that ``me`` lacks comes from: taken from who has it, or while it comes to who fetches it.

    ``peers`` are all hosts in the fleet's order, ``me`` among them.
    """
    others = [peer for peer in peers if peer.name != me and peer.life == "live"]
    if any(peer.state.files.get(key) == "complete" for peer in others):
        return "take"
    if any(peer.state.files.get(key) == "fetching" for peer in others):
        return "follow"
    for peer in peers:
        if peer.name == me:
            # Who has not been heard yet may have the file.
            return "wait" if any(peer.life == "unknown" for peer in peers if peer.name != me) else "fetch"
        wanted = peer.state.files.get(key) in ("wanted", "following") and key not in peer.state.failed
        if peer.life == "unknown" or (peer.life == "live" and wanted):
            return "wait"
    raise ValueError(f"{me} is not in its own fleet")


def ahead(key: str, me: str, peers: Sequence[Peer]) -> list[str]:
    """Whom ``me`` may follow, nearest first: back along the fleet's order, over hosts that follow, to one that fetches
    or has the file. Beyond it only such hosts count: who follows there may follow ``me``."""
    at = next(place for place, peer in enumerate(peers) if peer.name == me)
    found, ends = [], 0
    for peer in reversed([*peers[at + 1 :], *peers[:at]]):
        word = peer.state.files.get(key) if peer.life == "live" else None
        ends += word in ("fetching", "complete")
        if word in ("fetching", "complete") or (word == "following" and not ends):
            found.append(peer.name)
    return found if ends else []


def hopeless(key: str, me: str, peers: Sequence[Peer]) -> str:
    """Why this host need not ask the sources either; empty while it should."""
    found = [peer for peer in peers if peer.name != me and peer.state.causes.get(key) == "unreachable"]
    if len(found) < ENOUGH:
        return ""
    names = " and ".join(peer.name for peer in found[:ENOUGH])
    return f"{found[0].state.failed[key]} (so it was on {names}; this host did not ask again)"


def unserved(mine: Iterable[str], me: str, peers: Sequence[Peer]) -> bool:
    """Whether somebody still wants one of the files that are here, or may yet say so."""
    have = set(mine)
    return any(
        peer.life == "unknown"
        or (
            peer.life == "live"
            and any(
                word != "complete" and key in have and key not in peer.state.failed
                for key, word in peer.state.files.items()
            )
        )
        for peer in peers
        if peer.name != me
    )


def _nobody() -> Callable[[bytes], None]:
    return lambda block: None


class _Coming:
    """A file on its way here from other hosts; it lies at ``working(target)`` until it is whole."""

    def __init__(self, key: str, size: int, target: Path, watch: Watch) -> None:
        self.key, self.size, self.target, self.path = key, size, target, working(target)
        self.watch, self.see, self.seen = watch, watch(), 0
        self.here = 0
        self.moved = time.monotonic()
        self.stream: Stream | None = None
        self.chained: float | None = None
        """Since when somebody was seen to fetch it."""
        self.rest: tuple[float, Choice] = (0.0, "wait")
        """Until when nobody is asked again, unless the choice becomes another: nobody had anything."""
        self.passed: set[str] = set()
        """Hosts that were followed and brought nothing."""
        self.distrust: frozenset[str] = frozenset()
        """Hosts that had got wrong bytes of it when what lies here was taken."""
        if part_of(target).exists() and not self.path.exists():
            os.replace(part_of(target), self.path)

    def show(self, block: bytes) -> None:
        self.see(block)
        self.seen += len(block)

    def length(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def growing(self) -> bool:
        """Whether what lies here is the file's beginning. The swarm's files have their whole length at once."""
        return self.stream is not None or self.length() < self.size

    def flows(self) -> bool:
        return self.stream is not None and self.stream.going()

    def at(self, here: int) -> None:
        if here != self.here:
            self.here, self.moved = here, time.monotonic()

    def quiet(self) -> float:
        """Seconds since the last byte."""
        return time.monotonic() - self.moved

    def stop(self) -> None:
        if self.stream is not None:
            self.stream.stop()


class Fleet:
    """Safe for threads: several wants at once are welcome.

    First ``have`` for every file that is here, then ``wants``, which opens the doors; then the rest.
    """

    def __init__(self, fleet: types.Fleet, folder: Path) -> None:
        """``folder`` is for hard links only, on the store's file system; it is emptied. StoreError: no libtorrent."""
        self._fleet = fleet
        self._board = Board(fleet.name)
        self._watchers: dict[str, Watcher] = {}
        self._server: Server | None = None
        self._streams: list[Stream] = []
        self._followed = 0
        """Bytes of streams that ended."""
        self._alarm: threading.Timer | None = None
        self._board.came = self._came
        self._known: dict[str, tuple[int, types.Pieces]] = {}
        self._closed = False
        self._closing = threading.Lock()
        addresses = [address for name, address in fleet.peers if name != fleet.name]
        self._swarm = Swarm(fleet.address, fleet.swarm_port, addresses, folder, self._board.wake)

    @property
    def received(self) -> int:
        """Bytes of files taken from the fleet."""
        with self._board.changed:
            return self._swarm.received + self._followed + sum(stream.received for stream in self._streams)

    @property
    def sent(self) -> int:
        """Bytes of files given to the fleet."""
        return self._swarm.sent + self._board.sent

    def _came(self) -> int:
        """All bytes that came, those from hubs as far as they lie in files."""
        with self._board.changed:
            words = self._board.state.files
            files = [one.path for key, one in self._board.growing.items() if words.get(key) == "fetching"]
        sizes = 0
        for path in files:
            with contextlib.suppress(OSError):
                sizes += path.stat().st_size
        return self.received + sizes

    def wants(self, keys: Iterable[str], warn: Callable[[str], None] = lambda _text: None) -> None:
        """Say what this host will ask for, so that others know whom to leave the fetching to; and be seen from now.
        ``warn`` is told of hosts that were never heard.

        StoreError: the port is taken.
        """
        self._board.update({key: "wanted" for key in keys if key not in self._board.state.files})
        fleet = self._fleet
        others = [(name, address) for name, address in fleet.peers if name != fleet.name]
        try:
            self._server = Server(self._board, fleet.address, fleet.announce_port, {address for _, address in others})
        except OSError as error:
            raise taken(fleet.address, fleet.announce_port, error.strerror or str(error)) from error
        self._watchers = {
            name: Watcher(name, address, fleet.announce_port, fleet.address, self._board.wake)
            for name, address in others
        }
        self._alarm = threading.Timer(announce.UNHEARD, self._lonely, (warn,))
        self._alarm.daemon = True
        self._alarm.start()

    def _lonely(self, warn: Callable[[str], None]) -> None:
        silent = [why for watcher in self._watchers.values() if (why := watcher.unheard())]
        if silent:
            warn(
                f"no answer within {announce.UNHEARD:.0f} s from {', '.join(silent)}: nothing is shared with these "
                f"hosts, and each of them fetches for itself. Is the transfer running there, and may "
                f"{self._fleet.address} reach these ports?"
            )

    def have(self, key: str, path: Path, size: int, pieces: types.Pieces) -> None:
        """The file is here, complete and verified: others may take it. It may be renamed afterwards."""
        if size and not (self._swarm.knows(key) and self._known.get(key) == (size, pieces)):
            # Before the doors are open nobody takes anything yet; later, who waits is told.
            self._swarm.give(key, path, size, pieces, call=self._server is not None)
        with self._board.changed:
            self._known[key] = self._board.sizes[key] = (size, pieces)
            self._board.growing[key] = Growing(self._swarm.place(key), size)
            self._board.set(key, "complete")

    def want(
        self, key: str, size: int, target: Path, progress: Progress, watch: Watch | None = None
    ) -> Literal["done", "fetch"]:
        """Wait until the fleet brought the file to ``target`` (done: now verify it, then ``have``), or until it is
        this host's part to fetch it (fetch: end with ``have`` or ``failed``). What came until then lies where
        transfer.download goes on, and others follow what it writes there.

        ``watch`` is as in transfer.download; it sees the whole file when it came in order, else less.
        Raises OSError of this host's disk, and StoreError once close() was called, or when others found that no source
        answers.
        """
        if size == 0:
            target.touch(mode=0o600)
            return "done"
        coming = _Coming(key, size, target, watch or _nobody)
        self._board.set(key, "wanted")
        try:
            while True:
                if self._closed:
                    raise types.StoreError("the transfer was stopped; what came is kept, the next run goes on")
                wakes, peers = self._board.wakes, self._peers()
                choice = decide(key, self._fleet.name, peers)
                if self._whole(coming, choice):
                    return "done"
                if not self._moves(coming, choice):
                    reason = hopeless(key, self._fleet.name, peers)
                    if reason:
                        raise types.StoreError(reason)
                    self._fetch(coming)
                    return "fetch"
                moving = (coming.flows() or self._swarm.knows(key)) and coming.quiet() < STALLED
                progress("fleet" if moving else "waiting", coming.here)
                with self._board.changed:
                    if self._board.wakes == wakes:
                        self._board.changed.wait(0.25)
        finally:
            coming.stop()

    def _whole(self, coming: _Coming, choice: Choice) -> bool:
        """Whether all of it is here; then it lies at its target."""
        if self._swarm.knows(coming.key):
            here, whole = self._swarm.progress(coming.key)
            coming.at(here)
        else:
            if coming.stream is not None and coming.stream.error is not None:
                raise coming.stream.error
            coming.at(coming.length())
            # What was followed is as good as what the fetching host got: it must have found it right.
            whole = choice == "take" and coming.here == coming.size and coming.growing()
        if whole:
            os.replace(coming.path, coming.target)
        return whole

    def _moves(self, coming: _Coming, choice: Choice) -> bool:
        """Take what can be had from others; False when it is this host's part to fetch the file."""
        key = coming.key
        if coming.stream is not None and coming.flows():
            giver = self._watchers[coming.stream.name].peer()
            # A peer that has it all and sends no more has it in another file.
            ended = giver.state.files.get(key) not in ("fetching", "following", "complete")
            late = choice == "take" and coming.quiet() > STALLED
            if giver.life != "live" or ended or late:
                coming.stream.stop()
                coming.passed.add(coming.stream.name)
        if self._swarm.knows(key):
            return choice in ("follow", "wait") or coming.quiet() < (STUCK if choice == "take" else ORPHANED)
        following = choice in ("follow", "take") and self._follow(coming, choice)
        if choice == "take" and not following:
            self._join(coming)
            return coming.quiet() < STUCK
        # Two may follow each other when who fetched is gone: then nothing flows, and one of them has to fetch.
        return choice != "fetch" or (coming.flows() and coming.quiet() < STALLED)

    def _follow(self, coming: _Coming, choice: Choice) -> bool:
        """Take the file from its start to its end; False when that cannot be, or brought nothing from anybody."""
        peers, now = self._peers(), time.monotonic()
        if not coming.growing():
            return False
        if coming.flows() or coming.here == coming.size:
            return True
        small = coming.size <= SMALL
        if small and choice == "follow":
            return True
        failed = frozenset(peer.name for peer in peers if peer.state.causes.get(coming.key) == "wrong")
        if failed - coming.distrust:
            # These may be the very bytes that came from them.
            coming.path.unlink(missing_ok=True)
            coming.distrust, coming.see, coming.seen = failed, coming.watch(), 0
        coming.path.touch(mode=0o600)
        if coming.chained is None:
            coming.chained = now
            self._board.growing[coming.key] = Growing(coming.path, coming.size)
            if not small:
                self._board.set(coming.key, "following")
        if (now - coming.chained < SETTLE and not small) or (now < coming.rest[0] and choice == coming.rest[1]):
            return True
        if coming.stream is not None and not coming.stream.received:
            coming.passed.add(coming.stream.name)
        found = [name for name in ahead(coming.key, self._fleet.name, peers) if name not in coming.passed]
        if found:
            coming.stream = self._watchers[found[0]].follow(
                coming.key, coming.path, coming.size, coming.show, coming.seen
            )
            with self._board.changed:
                self._followed += sum(stream.received for stream in self._streams if not stream.going())
                self._streams = [*(stream for stream in self._streams if stream.going()), coming.stream]
        else:
            coming.passed.clear()
            coming.stream = None
            coming.rest = (now + AGAIN, choice)
        return bool(found)

    def pieces(self, key: str) -> types.Pieces | None:
        """The tree hash of a file, if it is known here or a peer told."""
        return self._known[key][1] if key in self._known else None

    def failed(self, key: str, message: str, cause: Cause = "") -> None:
        """This host could not get the file: the next one in order tries."""
        self._swarm.drop(key)
        with self._board.changed:
            self._board.growing.pop(key, None)
            self._board.set(key, None)
            self._board.fail(key, message, cause)

    def finish(self) -> None:
        """Give to others until every live one has what this host has."""
        seen, since = None, time.monotonic()
        mine = set(self._board.sizes)
        while not self._closed and unserved(mine, self._fleet.name, peers := self._peers()):
            now = time.monotonic()
            # Who is busy with another file asks for this one later.
            signs = (self.sent, [(peer.state.version, peer.state.came) for peer in peers if peer.life == "live"])
            if signs != seen:
                seen, since = signs, now
            elif now - since > UNASKED:
                break
            with self._board.changed:
                self._board.changed.wait(0.5)

    def close(self) -> None:
        """End at once."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        self._board.close()
        if self._alarm is not None:
            self._alarm.cancel()
        for watcher in self._watchers.values():
            watcher.close()
        if self._server is not None:
            self._server.close()
        self._swarm.close()

    def _peers(self) -> list[Peer]:
        own = Peer(self._fleet.name, "live", self._board.state)
        return [own if name == own.name else self._watchers[name].peer() for name, _ in self._fleet.peers]

    def _join(self, coming: _Coming) -> None:
        key, size = coming.key, coming.size
        for watcher in self._watchers.values():
            if key in self._known:
                break
            peer = watcher.peer()
            if peer.life == "live" and peer.state.files.get(key) == "complete":
                told = watcher.pieces(key)
                if told is not None and told[0] == size:
                    self._known[key] = told
        if key in self._known:
            self._board.growing.pop(key, None)  # from here on it grows in all places
            coming.stop()
            coming.stream = None
            self._swarm.take(key, coming.path, size, self._known[key][1])

    def _fetch(self, coming: _Coming) -> None:
        """Leave what came so far where a download goes on."""
        key = coming.key
        coming.stop()
        self._swarm.drop(key)
        # With pieces the caller brings those that lack. A link is being mended.
        begun = coming.path.exists() and coming.path.stat().st_nlink == 1
        if begun and (coming.growing() or key not in self._known):
            os.replace(coming.path, part_of(coming.target))
        self._board.growing[key] = Growing(part_of(coming.target), coming.size)
        self._board.set(key, "fetching")
