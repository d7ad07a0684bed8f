# SPDX-License-Identifier: GPL-3.0-or-later
"""Files over BitTorrent, between the hosts of a fleet and nobody else.

A file is a torrent of version 2 (BEP 52) made from its key, size and tree hash alone, so every host makes the same one
and nothing but those three must be told. libtorrent does the rest; here it is kept from everything that would reach
beyond the fleet: no DHT, no discovery, no port mapping, no trackers, and an address filter.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils.model_store import pieces as trees
from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import Pieces, StoreError

#: Seconds between looks at what libtorrent has to say, and between counts of bytes.
TICK, COUNT = 0.1, 1.0
#: Seconds for a port to open.
PATIENCE = 5.0
PLAIN = 2  # libtorrent's word for "no encryption"
SETTINGS: dict[str, Any] = {
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "enable_outgoing_utp": False,
    "enable_incoming_utp": False,
    "out_enc_policy": PLAIN,
    "in_enc_policy": PLAIN,
    "max_retry_port_bind": 0,
    "listen_system_port_fallback": False,
    "alert_queue_size": 100_000,
    "connections_limit": 2000,
    "listen_queue_size": 200,
    "connection_speed": 500,
    # A host that has not begun yet refuses; it is asked again.
    "min_reconnect_time": 1,
    "max_failcount": 30,
    "peer_timeout": 20,
    # Everybody gives to everybody: all work for the same end.
    "unchoke_slots_limit": -1,
    "allowed_fast_set_size": 0,
    "request_timeout": 10,
    "suggest_mode": 0,
    # Enough on the way for a fast line.
    "max_out_request_queue": 2000,
    "max_allowed_in_request_queue": 4000,
    "send_buffer_watermark": 4 << 20,
    "send_buffer_low_watermark": 256 << 10,
    "max_queued_disk_bytes": 32 << 20,
    "aio_threads": 4,
    "hashing_threads": 2,
}


def library() -> Any:
    """libtorrent, or StoreError with the way to it."""
    try:
        import libtorrent
    except ImportError as error:
        raise StoreError(
            f"libtorrent is missing ({error}): hosts cannot share models. Install Debian's python3-libtorrent, "
            "or let each host fetch for itself (`share_models: false`)."
        ) from error
    return libtorrent


def taken(address: str, port: int, reason: str) -> StoreError:
    """The error of a port that cannot be opened."""
    return StoreError(
        f"{address}:{port}, where the hosts of a fleet share models, cannot be opened: {reason}. See with "
        f"`ss -ltnp sport = :{port}` who has it, and whether the address is this host's."
    )


def torrent(key: str, size: int, pieces: Pieces) -> dict[bytes, Any]:
    """The torrent of a file of at least one byte; equal arguments give equal torrents."""
    name, root = key.encode(), trees.root(size, pieces)
    layer = b"".join(bytes.fromhex(digest) for digest in pieces.hashes)
    return {
        b"info": {
            b"name": name,
            b"piece length": pieces.size,
            b"meta version": 2,
            b"file tree": {name: {b"": {b"length": size, b"pieces root": root}}},
        },
        b"piece layers": {root: layer} if size > pieces.size else {},
    }


@dataclass
class Share:
    """One file in the swarm."""

    handle: Any
    path: Path
    error: OSError | None = None
    flushing: bool = False
    """All pieces came; libtorrent has hashed them, but may still hold some in memory."""
    whole: bool = False
    """And now all of them are in the file."""


class Swarm:
    """A libtorrent session on one address. Errors of the disk come out of ``progress``."""

    def __init__(
        self, address: str, port: int, peers: Sequence[str], folder: Path, changed: Callable[[], None]
    ) -> None:
        """``peers`` are the addresses of the others. ``folder`` is for hard links, so that libtorrent's files keep
        their names whatever becomes of ours; it is emptied. ``changed`` is called when a file is complete."""
        self._lt = lt = library()
        self._peers, self._port, self._folder, self._changed = tuple(peers), port, folder, changed
        self._shares: dict[str, Share] = {}
        self._gone = (0, 0)  # bytes received and sent by torrents that were dropped
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self.received = self.sent = 0
        self._counted = 0.0
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._empty()
        literal = f"[{address}]" if ":" in address else address
        own = {
            "listen_interfaces": f"{literal}:{port}",
            "outgoing_interfaces": address,
            "alert_mask": lt.alert.category_t.error_notification
            | lt.alert.category_t.status_notification
            | lt.alert.category_t.storage_notification,
        }
        self._session = lt.session({**SETTINGS, **own})
        only = lt.ip_filter()
        blocked = lt.ip_filter_flags.blocked if hasattr(lt, "ip_filter_flags") else 1
        only.add_rule("0.0.0.0", "255.255.255.255", blocked)
        only.add_rule("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", blocked)
        for peer in self._peers:
            only.add_rule(peer, peer, 0)
        self._session.set_ip_filter(only)
        self._listen(address, port)
        self._thread = threading.Thread(target=self._watch, name="swarm", daemon=True)
        self._thread.start()

    def _listen(self, address: str, port: int) -> None:
        """Wait until the port is open."""
        lt, end = self._lt, time.monotonic() + PATIENCE
        while time.monotonic() < end:
            for alert in self._session.pop_alerts():
                if isinstance(alert, lt.listen_succeeded_alert):
                    return
                if isinstance(alert, lt.listen_failed_alert):
                    raise taken(address, port, alert.error.message())
            time.sleep(TICK / 10)
        raise taken(address, port, f"no word in {PATIENCE:.0f} seconds")

    def give(self, key: str, path: Path, size: int, pieces: Pieces, *, call: bool = True) -> None:
        """Share a complete file. What is read from it is hashed again before it leaves.

        ``call``: connect to all peers; else wait until they do.
        """
        flags = self._lt.torrent_flags
        self._add(key, path, size, pieces, flags.seed_mode | flags.upload_mode, call)

    def take(self, key: str, path: Path, size: int, pieces: Pieces) -> None:
        """Complete a file that may be there in part or not at all; its good pieces are kept.

        OSError when the disk has no room for it.
        """
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "rb") as file:
            if os.fstat(file.fileno()).st_size < size:
                os.posix_fallocate(file.fileno(), 0, size)  # a disk without room shows now
        self._add(key, path, size, pieces, 0, True)

    def _add(self, key: str, path: Path, size: int, pieces: Pieces, flags: int, call: bool) -> None:
        lt = self._lt
        with self._lock:
            self.drop(key)
            link = self.place(key)
            try:
                os.link(path, link)
            except OSError:  # a file of another disk, published as a link
                link.symlink_to(path)
            wanted = lt.add_torrent_params()
            wanted.ti = lt.torrent_info(torrent(key, size, pieces))
            wanted.save_path = str(self._folder)
            wanted.flags = flags | lt.torrent_flags.apply_ip_filter | lt.torrent_flags.disable_pex
            handle = self._session.add_torrent(wanted)
            self._shares[key] = Share(handle, path)
            for peer in self._peers if call else ():
                handle.connect_peer((peer, self._port))

    def place(self, key: str) -> Path:
        """Where a shared file can be read, whatever its name is elsewhere."""
        return self._folder / key

    def knows(self, key: str) -> bool:
        return key in self._shares

    def progress(self, key: str) -> tuple[int, bool]:
        """(bytes of the file that came and are right, whether all are in the file). Raises OSError of our disk."""
        share = self._shares[key]
        if share.error is not None:
            raise share.error
        status = share.handle.status()
        return int(status.total_wanted_done), share.whole

    def drop(self, key: str) -> None:
        """Leave a file as it is and share it no more."""
        with self._lock:
            share = self._shares.pop(key, None)
            if share is not None:
                status = share.handle.status()
                self._gone = (
                    self._gone[0] + int(status.total_payload_download),
                    self._gone[1] + int(status.total_payload_upload),
                )
                self._session.remove_torrent(share.handle)
            self.place(key).unlink(missing_ok=True)

    def _watch(self) -> None:
        # Not wait_for_alert: libtorrent 2.0.8 hands out an alert that its own thread may be moving, and crashes.
        while not self._closed.wait(TICK):
            alerts = self._session.pop_alerts()
            with self._lock:
                by_handle = {share.handle: share for share in self._shares.values()}
                for alert in alerts:
                    if isinstance(alert, self._lt.file_error_alert) and alert.handle in by_handle:
                        share = by_handle[alert.handle]
                        share.error = OSError(alert.error.value(), alert.error.message(), str(share.path))
                    elif isinstance(alert, self._lt.cache_flushed_alert) and alert.handle in by_handle:
                        by_handle[alert.handle].whole = by_handle[alert.handle].flushing
                self._look()
            if alerts:
                self._changed()

    def _look(self) -> None:
        """Ask for the write of what came whole; once in a while, count."""
        counting = time.monotonic() - self._counted > COUNT
        received, sent = self._gone
        for share in self._shares.values():
            if share.flushing and not counting:
                continue
            status = share.handle.status()
            received, sent = received + int(status.total_payload_download), sent + int(status.total_payload_upload)
            if status.is_seeding and not share.flushing:
                share.flushing = True
                share.handle.flush_cache()
        if counting:
            self.received, self.sent, self._counted = received, sent, time.monotonic()

    def close(self) -> None:
        self._closed.set()
        self._thread.join(2)
        with self._lock:
            for key in list(self._shares):
                self.drop(key)
        self._session = None  # with its end it lets go of the port
        self._empty()

    def _empty(self) -> None:
        for path in self._folder.iterdir():
            with contextlib.suppress(OSError):
                path.unlink()
