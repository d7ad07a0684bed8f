# SPDX-License-Identifier: GPL-3.0-or-later
"""The transfer program alone, ended by SIGKILL at arbitrary moments: the next one completes what was begun.

ONPREM_KILLS is how many transfers are killed (3), ONPREM_SEED repeats the moments.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[1] / "hub"), str(Path(__file__).parents[1] / "long")]

import server
from transfers import Site

KILLS = int(os.environ.get("ONPREM_KILLS", "3"))
SEED = int(os.environ.get("ONPREM_SEED") or random.SystemRandom().randrange(10**6))
MB = 10**6
BIG = 120 * MB
#: Many small files, so that publishing takes a while too.
SIZES = [BIG, *(10_000 + number for number in range(40))]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[server.Hub]:
    root = tmp_path_factory.mktemp("hub")
    with server.running(root, token="proof-of-silence") as running:
        running.rate = 120 * MB
        yield running


@pytest.fixture(scope="module")
def undisturbed(hub: server.Hub, tmp_path_factory: pytest.TempPathFactory) -> tuple[float, float]:
    """Seconds from a transfer's first byte to its first published file, and to its end."""
    site = Site(hub, tmp_path_factory.mktemp("first"), "first", SIZES, seed=SEED)
    program = site.start()
    begin = site.first_byte(program)
    while not site.visible():
        assert program.poll() is None
        time.sleep(0.001)
    shown = time.monotonic() - begin
    assert program.wait(60) == 0, site.said()
    site.complete()
    seconds = time.monotonic() - begin
    site.clear()
    return shown, seconds


def taken(site: Site, program: subprocess.Popen[bytes]) -> int:
    """Stop the program where it is; the bytes it has taken from the line.

    What the kernel still holds for it (megabytes, when the processor is busy) is lost whatever the program does.
    """
    os.kill(program.pid, signal.SIGSTOP)  # send_signal would reap it where it has just ended
    os.waitid(os.P_PID, program.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    sent = site.sent()
    port = f":{site.hub.server_address[1]:04X}"
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    queues = [socket[4] for socket in sockets if port in socket[1] + socket[2]]
    return sent - sum(int(size, 16) for queue in queues for size in queue.split(":"))


@pytest.mark.parametrize("number", range(1, KILLS + 1))
def test_the_next_transfer_completes_it(
    hub: server.Hub, undisturbed: tuple[float, float], tmp_path: Path, number: int
) -> None:
    print(f"ONPREM_SEED={SEED}")
    chance = random.Random(f"{SEED}-{number}")
    shown, end = undisturbed
    # Every third is killed while it publishes.
    moment = chance.uniform(shown * 0.9, end) if number % 3 == 0 else chance.uniform(0, shown)
    site = Site(hub, tmp_path, f"kill-{number}", SIZES, seed=SEED)
    program = site.start()
    begin = site.first_byte(program)
    time.sleep(max(0.0, begin + moment - time.monotonic()))
    came = taken(site, program)
    program.send_signal(signal.SIGKILL)
    program.wait()
    site.nothing_is_early()

    before = site.sent()
    again = site.start()
    assert again.wait(60) == 0, site.said()
    site.complete()
    twice = came + site.sent() - before - sum(SIZES)
    assert twice <= 0.01 * BIG, f"{twice} bytes were fetched twice, killed after {moment:.2f} s"
    site.clear()


def test_a_transfer_that_is_asked_to_end_ends_and_keeps_what_came(hub: server.Hub, tmp_path: Path) -> None:
    site = Site(hub, tmp_path, "asked", SIZES, seed=SEED)
    program = site.start()
    site.first_byte(program)
    while site.sent() < BIG // 2:
        time.sleep(0.005)
    came = taken(site, program)
    program.send_signal(signal.SIGTERM)
    program.send_signal(signal.SIGCONT)
    assert program.wait(10) != 0
    site.nothing_is_early()
    before = site.sent()
    assert site.start().wait(60) == 0, site.said()
    site.complete()
    assert came + site.sent() - before - sum(SIZES) <= 0.01 * BIG
    site.clear()


def test_the_token_is_in_no_argument_and_in_nothing_others_may_read(hub: server.Hub, tmp_path: Path) -> None:
    """T12"""
    site = Site(hub, tmp_path, "silent", SIZES, seed=SEED)
    program = site.start()
    site.first_byte(program)
    for pid in [program.pid, *site.children(program.pid)]:
        for name in ("cmdline", "environ"):
            assert hub.token.encode() not in Path(f"/proc/{pid}/{name}").read_bytes(), name
    holding = [path for path in tmp_path.rglob("*") if path.is_file() and hub.token.encode() in path.read_bytes()]
    assert [path.name for path in holding] == ["request.json"]
    assert holding[0].stat().st_mode & 0o077 == 0
    assert program.wait(60) == 0, site.said()
    assert hub.token not in site.said() + json.dumps(site.status())
    assert not any(path.is_file() and hub.token.encode() in path.read_bytes() for path in tmp_path.rglob("*"))
    site.clear()
