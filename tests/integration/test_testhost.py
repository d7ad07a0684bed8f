# SPDX-License-Identifier: GPL-3.0-or-later
"""tools/testhost with real hosts: boot, faults, and nothing left afterwards.

Everything happens in a network namespace with state and package cache of its own, so that interfaces, nft tables and
sysctls can be compared exactly, whatever other labs run on this machine. Needs root.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="test hosts need root")

TESTHOST = Path(__file__).resolve().parents[2] / "tools/testhost"
LABS = ("it-one", "it-two")
ONE: dict[str, Any] = {
    "lab": "it-one",
    "network": "10.77.202.0/25",
    "hosts": [
        {"name": "h1", "ip": "10.77.202.11"},
        {"name": "h2", "ip": "10.77.202.12", "aliases": ["second"], "disk": "200M", "cgroup": "limits"},
    ],
}
TWO: dict[str, Any] = {
    "lab": "it-two",
    "network": "10.77.202.128/25",
    "hosts": [{"name": "h1", "ip": "10.77.202.130"}],
}


def program() -> Any:
    """The program as a module, for the names it gives to things."""
    sys.dont_write_bytecode = True
    spec = spec_from_loader("testhost", SourceFileLoader("testhost", str(TESTHOST)))
    assert spec and spec.loader
    module = module_from_spec(spec)
    sys.modules["testhost"] = module
    spec.loader.exec_module(module)
    return module


class Bench:
    """A place for labs, apart from the machine's own."""

    namespace = f"it-testhost-{os.getpid()}"

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.cache = folder / "cache"
        self.environment = dict(os.environ, TESTHOST_STATE=str(self.state), TESTHOST_CACHE=str(self.cache))
        for name in ("http_proxy", "https_proxy", "SUDO_UID", "SUDO_GID"):
            self.environment.pop(name, None)

    def inside(self, *words: str | Path) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.namespace}", *map(str, words)]

    def run(self, *words: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = self.inside(*words)
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, env=self.environment, timeout=120, cwd="/"
        )

    def testhost(self, *words: str, stdin: str = "") -> str:
        done = self.run(TESTHOST, *words, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refusal(self, *words: str, stdin: str = "") -> str:
        done = self.run(TESTHOST, *words, stdin=stdin)
        assert done.returncode == 1, (done.stdout, done.stderr)
        assert done.stderr.count("\n") == 1, done.stderr  # one line, no traceback
        return done.stderr

    def start_up(self, lab: dict[str, Any]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self.inside(TESTHOST, "up"),
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
            cwd="/",
        )
        assert process.stdin
        process.stdin.write(json.dumps(lab))
        process.stdin.close()
        process.stdin = None
        return process

    def ssh(self, host: str, command: str, lab: str = "it-one") -> subprocess.CompletedProcess[str]:
        return self.run("ssh", "-F", self.state / lab / "ssh_config", host, command)

    def traces(self) -> dict[str, list[str]]:
        """Whatever a lab could leave on this machine."""
        module = program()
        names = {module.Lab(lab).bridge for lab in LABS}
        names |= {module.Host(module.Lab(lab), host).id for lab in LABS for host in ("h1", "h2")}

        def ours(paths: list[str]) -> list[str]:
            return sorted(path for path in paths if any(name in path for name in names) or str(self.state) in path)

        settings = "grep -r . /proc/sys/net/ipv4/conf /proc/sys/net/ipv4/ip_forward"
        processes = [
            path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            for path in Path("/proc").glob("[0-9]*/cmdline")
        ]
        cgroups = [str(path) for lab in LABS for path in Path("/sys/fs/cgroup").glob(f"**/testhosts/{lab}")]
        return {
            "interfaces": self.run("ip", "-brief", "link").stdout.splitlines(),
            "nft tables": self.run("nft", "list", "tables").stdout.splitlines(),
            "sysctls": sorted(self.run("sh", "-c", settings).stdout.splitlines()),
            "namespaces": ours(os.listdir("/run/netns")),
            "mounts": ours(Path("/proc/self/mountinfo").read_text().splitlines()),
            "loops": ours([path.read_text() for path in Path("/sys/block").glob("loop*/loop/backing_file")]),
            "machines": ours(os.listdir("/run/systemd/nspawn/propagate"))
            if Path("/run/systemd/nspawn").exists()
            else [],
            "processes": ours(processes),
            "cgroups": cgroups,
            "state": sorted(path.name for path in self.state.glob("*") if path.name != ".lock"),
        }


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    # Only packages get a cache of their own: the base image is the machine's, built if need be.
    tree = Path(
        subprocess.run([TESTHOST, "image", "trixie"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    )
    bench = Bench(tmp_path_factory.mktemp("testhost"))
    bench.cache.mkdir()
    (bench.cache / tree.name).symlink_to(tree)
    subprocess.run(["ip", "netns", "add", bench.namespace], check=True)
    try:
        bench.run("ip", "link", "set", "lo", "up")
        bench.run("sh", "-c", "cd /proc/sys/net/ipv4; echo 0 >ip_forward; echo 0 >conf/all/accept_redirects")
        yield bench
    finally:
        for lab in LABS:
            bench.run(TESTHOST, "down", lab)
        subprocess.run(["ip", "netns", "del", bench.namespace], check=True)


@pytest.fixture(scope="module")
def clean(bench: Bench) -> dict[str, list[str]]:
    """What there is before the first lab, and without the remains of an earlier run."""
    for name in LABS:
        bench.testhost("down", name)
    return bench.traces()


@pytest.fixture(scope="module")
def lab(bench: Bench, clean: dict[str, list[str]]) -> Bench:
    """Lab it-one with two hosts; brought up while it-two comes and goes."""
    ups = [bench.start_up(ONE), bench.start_up(TWO)]
    for process in ups:
        _, errors = process.communicate(timeout=150)
        assert process.returncode == 0, errors
    assert sorted(bench.testhost("list").splitlines()) == [
        "it-one h1 10.77.202.11 up",
        "it-one h2 10.77.202.12 up",
        "it-two h1 10.77.202.130 up",
    ]
    bench.testhost("down", "it-two")
    return bench


def test_forwarding_stays_on_while_a_lab_is_left(lab: Bench) -> None:
    assert lab.run("cat", "/proc/sys/net/ipv4/ip_forward").stdout.strip() == "1"
    assert not [line for line in lab.traces()["cgroups"] if "it-two" in line]


def test_hosts_answer_and_reach_each_other_by_name(lab: Bench) -> None:
    assert lab.ssh("h1", "hostname; sudo id -un").stdout.split() == ["h1", "root"]
    for name in ("h2", "second"):
        banner = lab.ssh("h1", f"exec 3<>/dev/tcp/{name}/22; head -c 4 <&3")
        assert banner.stdout == "SSH-", banner.stderr
    assert lab.ssh("h2", "systemctl is-system-running").stdout.strip() == "running"


def test_exec_passes_input_and_exit_status(lab: Bench) -> None:
    done = lab.run(TESTHOST, "exec", "it-one", "h2", "sh", "-c", "cat; pwd; exit 7", stdin="word\n")
    assert (done.stdout, done.returncode) == ("word\n/root\n", 7)


def test_files_survive_a_power_cut(lab: Bench) -> None:
    assert lab.ssh("h1", "echo kept >file; sync").returncode == 0
    lab.testhost("kill", "it-one", "h1")
    assert "it-one h1 10.77.202.11 off" in lab.testhost("list")
    assert lab.ssh("h1", "true").returncode == 255
    assert "host h1 of lab it-one is off: testhost start it-one h1" in lab.refusal("exec", "it-one", "h1", "true")
    lab.testhost("start", "it-one", "h1")
    assert lab.ssh("h1", "cat file").stdout == "kept\n"


def test_shutdown_and_start(lab: Bench) -> None:
    lab.testhost("stop", "it-one", "h1")
    assert "it-one h1 10.77.202.11 off" in lab.testhost("list")
    lab.testhost("start", "it-one", "h1")
    assert lab.ssh("h1", "true").returncode == 0


def test_network_cut_and_full_disk(lab: Bench) -> None:
    def reaches(seconds: int) -> bool:
        loop = "until (: </dev/tcp/h1/22); do sleep 0.2; done"
        return lab.run(TESTHOST, "exec", "it-one", "h2", "timeout", str(seconds), "bash", "-c", loop).returncode == 0

    lab.testhost("net", "it-one", "h2", "cut")
    assert not reaches(2)
    lab.testhost("net", "it-one", "h2", "loss", "1")  # its table is for `down` to remove
    lab.testhost("net", "it-one", "h2", "heal")
    assert reaches(30)
    lab.testhost("fill", "it-one", "h2")
    full = lab.run(TESTHOST, "exec", "it-one", "h2", "dd", "if=/dev/zero", "of=/var/tmp/more", "bs=64k", "count=1")
    assert "No space left on device" in full.stderr
    assert "has no disk of its own" in lab.refusal("fill", "it-one", "h1")


def test_what_does_not_exist_is_named(lab: Bench) -> None:
    assert "there is no lab it-none; labs that exist: it-one" in lab.refusal("kill", "it-none", "h1")
    assert "lab it-one has no host h9; it has h1, h2" in lab.refusal("kill", "it-one", "h9")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"network": "10.77.202.64/26", "hosts": [{"name": "h1", "ip": "10.77.202.70"}]},
            "network 10.77.202.64/26 overlaps 10.77.202.0/25 of lab it-one: give one of them another network",
        ),
        ({"network": "10.77.202.0/33"}, "lab it-two: network:"),
        ({"network": "10.77.203.0/24"}, "host h1: 10.77.202.130 is no address for a host in 10.77.203.0/24"),
        ({"hosts": []}, "no list `hosts` with at least one host"),
        ({"hosts": TWO["hosts"] * 2}, "host h1: h1 is taken by host h1"),
        ({"hosts": [{"name": "h1"}]}, "lab it-two, host 1: ip is missing"),
        ({"hosts": [{**TWO["hosts"][0], "image": "potato"}]}, "image 'potato' is unknown, known are bookworm, trixie"),
        ({"hosts": [{**TWO["hosts"][0], "dsik": "1G"}]}, "unknown key 'dsik'"),
        ({"hosts": [{**TWO["hosts"][0], "disk": "1 GB"}]}, "disk is '1 GB', a size like 600M or 4G is needed"),
        ({"binds": {"cache": "/cache"}}, "'cache' is no absolute path"),
        ({"lab": "It Two"}, "lab 'It Two': a name is"),
    ],
)
def test_a_wrong_lab_is_refused(lab: Bench, change: dict[str, Any], message: str) -> None:
    assert message in lab.refusal("up", stdin=json.dumps({**TWO, **change}))
    assert not (lab.state / "it-two").exists()


def test_too_little_disk_is_refused(lab: Bench, tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "small", tmp_path], check=True)
    try:
        environment = dict(lab.environment, TESTHOST_STATE=str(tmp_path))
        command = lab.inside(TESTHOST, "up")
        done = subprocess.run(command, input=json.dumps(TWO), capture_output=True, text=True, env=environment)
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert done.returncode == 1
    assert f"lab it-two: {tmp_path} has 8 MiB free, 1024 MiB are needed" in done.stderr
    assert "TESTHOST_STATE" in done.stderr


def test_a_missing_tool_is_named_with_its_package(lab: Bench, tmp_path: Path) -> None:
    for tool in ("python3", "env", "ip", "tc", "nft", "ssh-keygen", "mkfs.ext4", "nsenter"):
        (tmp_path / tool).symlink_to(f"/usr/bin/{tool}")
    code = f"import runpy; runpy.run_path({str(TESTHOST)!r})['check_tools']()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PATH": str(tmp_path)})
    assert "commands are missing:" in done.stderr
    assert "apt-get install --no-install-recommends systemd-container mmdebstrap" in done.stderr


def test_down_keeps_downloads_and_leaves_nothing(lab: Bench, clean: dict[str, list[str]]) -> None:
    archives = "/var/cache/apt/archives"
    assert lab.ssh("h1", f"echo one | sudo tee {archives}/it-fake_1_all.deb").returncode == 0
    lab.testhost("down", "it-one")
    assert lab.traces() == clean
    lab.testhost("down", "it-one")  # nothing there: nothing to do

    lab.testhost("up", stdin=json.dumps(TWO))
    offered = lab.ssh("h1", f"cat {archives}/it-fake_1_all.deb", "it-two")
    assert offered.stdout == "one\n"
    assert lab.ssh("h1", f"echo two | sudo tee {archives}/it-fake_2_all.deb", "it-two").returncode == 0
    lab.testhost("kill", "it-two", "h1")
    lab.testhost("down", "it-two")
    assert lab.traces() == clean
    assert [path.name for path in (lab.cache / "apt/trixie").iterdir()] == ["it-fake_2_all.deb"]


@pytest.mark.parametrize("reached", ["lab.json", "hosts/h1/root", "hosts/h2/console.log", "known_hosts"])
def test_a_half_created_lab_is_cleaned_up(bench: Bench, clean: dict[str, list[str]], reached: str) -> None:
    process = bench.start_up(ONE)
    until = time.monotonic() + 30
    while not (bench.state / "it-one" / reached).exists() and time.monotonic() < until:
        time.sleep(0.001)
    process.kill()
    process.communicate()
    bench.testhost("down", "it-one")
    assert bench.traces() == clean


def test_an_interrupted_up_says_how_to_clean_up(bench: Bench, clean: dict[str, list[str]]) -> None:
    process = bench.start_up(ONE)
    while not (bench.state / "it-one/known_hosts").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert "`testhost down it-one` removes what is there" in errors
    bench.testhost("down", "it-one")
    assert bench.traces() == clean
