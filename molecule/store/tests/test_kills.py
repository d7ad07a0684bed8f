# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever is killed, at whatever moment: nothing half is ever visible, and the next run completes what was begun.

Three hosts fetch a model each, so that every run is hit three times, each at a moment of its own. ONPREM_KILLS is how
often each kind of fault happens (3), ONPREM_SEED repeats the moments.
"""

from __future__ import annotations

import os
import time

import pytest
from lab import FLEET, H1, KILLS, MODELS, SEED, SERVED, UNIT, Host, Lab, at_once, check_published, mounted

MB = 10**6
SIZE = 150 * MB
NAME = "model"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="looking into test hosts from outside needs root")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("hub"))
    lab.hub.rate = 30 * MB
    # What a kill loses lies in our buffer and in the kernel's, which grows to 6 MB when the processor is busy: nothing
    # of a real file, 4 % of these.
    for host in FLEET:
        host.output("tee /etc/sysctl.d/90-lab.conf", stdin="net.ipv4.tcp_rmem = 4096 131072 524288\n")
        host.output("systemctl restart systemd-sysctl")
        assert host.output("sysctl -n net.ipv4.tcp_rmem").split()[-1] == "524288"
    yield lab
    lab.close()


@pytest.fixture(autouse=True)
def seed():
    """In the report of a failure: what repeats it."""
    print(f"ONPREM_SEED={SEED}")


class Round:
    """A model for each of the three hosts, all under the name that the last round's were served by."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.models = {host: lab.make(f"{name}-{host.name}", [SIZE, 12345]) for host in FLEET}
        self.wanted = {host.name: [model.wanted(NAME)] for host, model in self.models.items()}

    def moment(self, host: Host) -> int:
        """Bytes of this host's model that the hub has sent when it happens."""
        return self.lab.chance.randrange(1, SIZE * 95 // 100)

    def completes(self, faults: int = 1) -> None:
        """The run after: everything is there, and next to nothing was fetched again."""
        self.lab.store(self.wanted)
        for host, model in self.models.items():
            self.lab.holds(host, model, NAME)
            again = self.lab.sent(model) - model.size
            asked = [span for path, span in self.lab.hub.requests if path.startswith("/cdn/") and model.repo in path]
            assert again <= 0.01 * SIZE * faults, f"{host.name}: {again} bytes were fetched twice: {asked}"

    def nothing_is_early(self) -> None:
        for host in FLEET:
            check_published(host.root, self.lab.expected)

    def clear(self) -> None:
        """On the hosts the next round's run does it, when the pointer has moved."""
        self.lab.forget(list(self.models.values()))


def rounds(lab, kind):
    """As many as it takes, three faults and fresh models in each."""
    for number in range(-(-KILLS // 3)):
        this = Round(lab, f"{kind}-{number}")
        yield this
        this.clear()


def hits(this, run, fault):
    """The fault, on each host at a moment of its own."""
    moments = {host: this.moment(host) for host in FLEET}

    def one(host):
        assert this.lab.sends(this.models[host], moments[host], run), run.output
        fault(host)

    at_once(one, FLEET)


def test_the_transfer_is_killed(lab):
    for this in rounds(lab, "program"):
        run = lab.start(this.wanted)
        hits(this, run, lambda host: host.output(f"systemctl kill --signal=KILL {UNIT}"))
        this.nothing_is_early()
        lab.finish(run)  # systemd starts the program again, so even this one may end well
        this.completes()


def test_the_host_loses_power(lab, tmp_path):
    for this in rounds(lab, "power"):
        run = lab.start(this.wanted)
        hits(this, run, lambda host: host.testhost("kill"))
        this.nothing_is_early()
        for host in FLEET:
            judge(lab, host, tmp_path)
        run.kill(everything=True)  # it waits for hosts that are gone; that it gives up is ssh's business
        at_once(lambda host: host.testhost("start"), FLEET)
        # What lay in memory only is lost here as little as with a killed program: the machine below goes on.
        this.completes()


def test_the_network_is_cut(lab):
    for this in rounds(lab, "network"):
        run = lab.start(this.wanted)
        durations = {host: lab.chance.uniform(1, 8) for host in FLEET}

        def cut(host, durations=durations):
            host.testhost("net", "cut")
            time.sleep(durations[host])
            host.testhost("net", "heal")

        hits(this, run, cut)
        lab.finish(run)
        this.nothing_is_early()
        this.completes()


def test_ansible_is_killed_and_the_transfer_goes_on(lab):
    """The next run attaches to it: one start, however many runs."""
    for this in rounds(lab, "ansible"):
        started = set()
        for moment in sorted(this.moment(H1) for _ in range(3)):
            run = lab.start(this.wanted)
            assert lab.sends(this.models[H1], moment, run), run.output
            started.add(H1.output(f"systemctl show -P InvocationID {UNIT}"))
            run.kill(everything=lab.chance.random() < 0.5)
        this.nothing_is_early()
        this.completes(faults=0)
        assert len(started) == 1


def test_a_host_frozen_while_it_publishes(lab, tmp_path):
    """On a copy of its disk, as a power cut would leave it, everything visible is complete, and so is what a pointer
    leads to: the model of before, or the new one."""
    for this in rounds(lab, "frozen"):
        run = lab.start(this.wanted)
        seen = at_once(lambda host, this=this, run=run: freeze_at_the_end(lab, this, host, run, tmp_path), FLEET)
        code, said = lab.finish(run)
        assert code == 0, said
        this.completes(faults=0)
        print("models complete on the copies:", seen)


def freeze_at_the_end(lab: Lab, this: Round, host: Host, run, tmp_path) -> list[int]:
    """Freeze a host just when files appear, when the manifest does, and when the pointer has moved; judge the disk."""
    model = this.models[host]
    home = host.root / MODELS / model.repo / model.commit
    pointer = host.root / SERVED / NAME
    seen = []
    for reached in (
        lambda: any(home.glob("*.bin")),
        lambda: (home / "manifest.json").exists(),
        lambda: pointer.is_symlink() and os.readlink(pointer).endswith(model.commit),
    ):
        while not reached():
            assert run.process.poll() is None, run.output
            time.sleep(0.0005)
        time.sleep(lab.chance.uniform(0, 0.02))
        with host.frozen():
            seen.append(judge(lab, host, tmp_path, coming=model.repo))
    return seen


def judge(lab: Lab, host: Host, folder, coming: str = "") -> int:
    """Look at a copy of the disk; returns how many models are complete there."""
    copy = folder / f"{host.name}-{time.monotonic_ns()}.img"
    host.copy_of_the_disk(copy)
    with mounted(copy) as root:
        complete = check_published(root, lab.expected, coming)
    copy.unlink()
    return complete
