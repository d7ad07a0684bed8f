# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever a hub does wrong: the right bytes are published, or nothing is and the message says what to do.

  ONPREM_SEED=1 .venv/bin/pytest -q tests/long/test_hub_faults.py -k 17

Each number draws one or two faults of tests/hub, for a file, at a place in it. A transfer that reports success has
every file right. One that reports failure has published nothing, names file, source and address without the token, and
the next one, the hub being well again, completes it.

Environment:
  ONPREM_FAULTS   how many are drawn (200)
  ONPREM_SEED     repeats them
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transfers import Site

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hub"))
import server

FAULTS = int(os.environ.get("ONPREM_FAULTS", "200"))
SEED = int(os.environ.get("ONPREM_SEED") or random.SystemRandom().randrange(10**6))
SIZES = (1_500_000, 600_000, 70_000)
#: Of the file list, which the controller asks for; the program is given it.
LISTING = ("bad-hash", "list-refused", "list-busy", "list-page", "list-cut")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[server.Hub]:
    with server.running(tmp_path_factory.mktemp("hub"), token="proof-of-silence") as running:
        yield running


def draw(chance: random.Random, repo: str) -> server.Fault:
    """A fault of one of the model's files, or of all."""
    kind = chance.choice(sorted(set(server.FAULTS) - set(LISTING)))
    where = chance.choice([repo + "/", *(f"{repo}/part-{number}.bin" for number in range(1, len(SIZES) + 1))])
    value = {
        "wrong": chance.randrange(SIZES[2]),
        "refused": chance.choice([401, 403, 404, 410, 416, 429, 500, 502, 503, 504]),
        "busy": chance.randrange(2),
        "busy-date": chance.randrange(2),
        "slow": chance.choice([100, 400_000]),
        "claim": chance.choice([1, 70_001, 3_000_000]),
        "other-range": chance.choice([1, 4096]),
        "truncated": chance.choice([1, 5000]),
        "unsized": chance.choice([0, 1, 30_000]),
    }.get(kind, chance.randrange(SIZES[2]))
    once = chance.random() < 0.5
    return server.Fault(kind + ("-once" if once else ""), where, value, seconds=chance.choice([0.0, 0.5]))


@pytest.mark.parametrize("number", range(1, FAULTS + 1))
def test_no_false_success(hub: server.Hub, tmp_path: Path, number: int) -> None:
    chance = random.Random(f"{SEED}-{number}")
    site = Site(hub, tmp_path, f"fault-{number}", SIZES, seed=SEED, attempts=2, stall_seconds=1)
    hub.faults = [draw(chance, site.repo) for _ in range(chance.choice([1, 1, 2]))]
    print(f"ONPREM_SEED={SEED}, {hub.faults}")
    hopeless = [fault for fault in hub.faults if fault.kind in server.HOPELESS]
    try:
        code = site.fetch()
    finally:
        hub.faults = []
    assert code in (0, 1), f"exit status {code}\n{site.said()}"
    site.nothing_is_early()
    if code == 0:
        site.complete()
        assert not hopeless, "nobody could have had this file, and it reports success"
    else:
        assert not (site.home / "manifest.json").exists()
        (model,) = site.status()["models"]
        told = model["message"]
        assert any(path in told for path in site.files) and "proof" in told and hub.url in told, told
        assert hub.token not in told + site.said()
        assert site.fetch() == 0, site.said()
        site.complete()
    site.clear()
