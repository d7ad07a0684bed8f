# SPDX-License-Identifier: GPL-3.0-or-later
"""One line out, many hosts: fetched once, spread, found damaged, mended; and nobody sees the token. In this order."""

from __future__ import annotations

import json
import os

import pytest
from conftest import one_line, playbook
from lab import (
    ADDRESSES,
    FLEET,
    H1,
    H2,
    LATE,
    MODELS,
    PORTS,
    UNIT,
    Lab,
    Watch,
    changes,
    files_with,
    home_of,
    stranger_reaches,
)

MB = 10**6
NAME = "spread"
DAMAGED = "part-2.bin"
DAMAGE = "/var/lib/model_store/damage.json"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="looking into test hosts from outside needs root")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("hub"))
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def watch(lab):
    watch = Watch(lab.token)
    yield watch
    watch.end()


@pytest.fixture(scope="module")
def model(lab, watch):
    return lab.make("spread", [16 * MB, 16 * MB, 16 * MB])


@pytest.fixture(scope="module")
def wanted(model):
    return {host.name: [model.wanted(NAME)] for host in FLEET}


def test_the_line_is_used_once(lab, model, wanted):
    """Three hosts, one copy from the hub. Meanwhile the fleet's ports are open, to the fleet."""
    lab.hub.rate = 8 * MB
    run = lab.start(wanted, "-vvv", "--diff", model_store_progress="lines")
    assert lab.sends(model, 8 * MB, run), run.output[-3000:]
    reached = {"h2": H2.reaches(FLEET), "stranger": stranger_reaches(FLEET)}
    holding = files_with(H1, lab.token)
    assert lab.sent(model) < model.size, "it was over before it was looked at"
    code, said = lab.finish(run)
    assert code == 0, said[-3000:]
    assert holding == ["600 /run/model_store/request.json"]
    ports = {f"{host.name}:{port}" for host in FLEET for port in PORTS}
    assert reached == {"h2": ports, "stranger": set()}
    for host in FLEET:
        lab.holds(host, model, NAME)
    assert lab.sent(model) <= 1.02 * model.size
    for host in FLEET:
        assert host.run(f"systemctl is-active {UNIT}").stdout.strip() == "inactive"
    assert not H2.reaches([H1])
    lines = said.splitlines()
    for host in FLEET:
        assert any(line.startswith(f"{host.name}: {NAME}: 48.0 MB") for line in lines), said[-2000:]
        assert any(line.startswith(f"{host.name}: all models are here") for line in lines), said[-2000:]


def test_a_second_run_asks_nobody_and_reads_no_file(lab, model, wanted):
    """A byte is damaged behind the manifest's back: it would be found, were the file read. Verifying is for that."""
    damage(H2, model)
    asked = len(lab.hub.requests)
    said = lab.store(wanted)
    assert len(lab.hub.requests) == asked
    assert changes(said) == dict.fromkeys(ADDRESSES, 0), said


def test_a_damaged_byte_is_found_and_only_its_piece_is_mended(lab, model, wanted):
    home = home_of(H2.root, NAME)
    before = {path: (home / path).stat().st_ino for path in model.files}
    result = playbook("playbooks/verify_models.yml", "--limit", "h2")
    said = one_line(result.stdout + result.stderr)
    lab.said.append(result.stdout + result.stderr)
    assert model.repo in said and DAMAGED in said, said
    found = json.loads(H2.output(f"cat {DAMAGE}"))["damaged"]
    assert [(item["repo"], item["path"], len(item["pieces"])) for item in found] == [(model.repo, DAMAGED, 1)]
    assert home_of(H2.root, NAME) == home and {path: (home / path).stat().st_ino for path in model.files} == before

    sent = lab.sent(model)
    lab.store(wanted)
    lab.holds(H2, model, NAME)
    assert lab.sent(model) - sent <= 0.02 * model.size, "more than the damaged piece came from the hub"
    assert not json.loads(H2.output(f"cat {DAMAGE}"))["damaged"]
    again = lab.store(wanted)
    assert changes(again) == dict.fromkeys(ADDRESSES, 0), again


def test_a_host_that_joins_later_takes_from_the_fleet(lab, model, wanted):
    sent = lab.sent(model)
    lab.store({**wanted, LATE.name: [model.wanted(NAME)]})
    lab.holds(LATE, model, NAME)
    assert lab.sent(model) == sent
    for host in FLEET:
        lab.holds(host, model, NAME)


def test_a_full_disk_in_mid_transfer(lab):
    """The message says how much is missing; when there is room again, the next run goes on where it stopped."""
    model = lab.make("full", [100 * MB])
    wanted = {"h1": [model.wanted("full")]}
    lab.hub.rate = 25 * MB
    H1.testhost("fill", str(200 * 1024))  # most of it beforehand, so that the rest is quick
    run = lab.start(wanted)
    assert lab.sends(model, lab.chance.randrange(20 * MB, 80 * MB), run), run.output
    H1.testhost("fill", "4096")
    code, said = lab.finish(run)
    assert code, said
    told = one_line(said)
    assert "model 'full'" in told and "too little" in told and "Make room" in told, told
    assert home_of(H1.root, "full") is None
    assert not list((H1.root / MODELS).glob(f"{model.repo}/*/manifest.json"))
    (H1.root / "var/filler").unlink()
    lab.store(wanted)
    lab.holds(H1, model, "full")
    assert lab.sent(model) - model.size <= 0.01 * model.size


def test_nobody_sees_the_token(lab, watch):
    """T12: not in arguments, journals, facts, nor in what runs print (the first was one with -vvv --diff)."""
    assert watch.seen > 1000 and not watch.found, watch.found
    facts = playbook("playbooks/inspect.yml", "-vvv")
    assert lab.said and not [said for said in (*lab.said, facts.stdout, facts.stderr) if lab.token in said]
    for host in (*FLEET, LATE):
        journal = host.output("journalctl --no-pager -q")
        assert UNIT in journal and lab.token not in journal, f"{host.name}: journal"
        assert not files_with(host, lab.token), f"{host.name}: the token outlived the transfer"


def damage(host, model):
    """One bit of a published file turns, as on a tired disk: neither size nor time tells."""
    place = home_of(host.root, NAME) / DAMAGED
    before = place.stat()
    with place.open("r+b") as file:
        file.seek(model.sizes[DAMAGED] // 3)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))
    os.utime(place, ns=(before.st_atime_ns, before.st_mtime_ns))
