# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts with a real Debian kernel: one that is booted without it (a test host), and a virtual machine that runs it.

The virtual machine starts from the disk of a test host that was shut down. It is computed instruction by instruction
(QEMU without KVM), with two NUMA nodes, and its network is this machine's, reached through a port on loopback.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

PROJECT = Path(__file__).resolve().parents[2]
TESTHOST = str(PROJECT / "tools/testhost")
STATE = Path(os.environ.get("TESTHOST_STATE") or "/var/lib/testhosts")
NAME = "box"
BOOT_TIMEOUT = 600

# What makes the disk of a test host bootable by itself: its network, which a test host gets from outside.
NETWORK = """
cat >/etc/systemd/system/machine-network.service <<UNIT
[Unit]
Description=Network of the virtual machine
ConditionVirtualization=qemu
Before=ssh.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0 && ip route add default via 10.0.2.2'
[Install]
WantedBy=multi-user.target
UNIT
systemctl --quiet enable machine-network.service
"""


class Play(NamedTuple):
    code: int
    changed: int
    output: str
    seconds: float


def output(*command: str | Path, stdin: str = "") -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stderr}"
    return done.stdout


class Target:
    """A host in group nvidia_driver, reached by ssh. Its folder holds the inventory, the key and the disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ssh_config = folder / "ssh_config"
        self.inventory = folder / "inventory"

    def write_inventory(self, address: str, port: int = 22) -> None:
        """Address and port tell Ansible's lasting connections apart; the name is the same for all."""
        self.inventory.mkdir(parents=True, exist_ok=True)
        host = {
            "ansible_host": address,
            "ansible_port": port,
            "ansible_ssh_common_args": f"-F {self.ssh_config}",
            "ansible_become": True,
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        hosts = {"nvidia_driver": {"hosts": {NAME: host}}}
        (self.inventory / "hosts.yml").write_text(json.dumps(hosts))
        if not (self.inventory / "groups.yml").exists():
            (self.inventory / "groups.yml").symlink_to(PROJECT / "inventories/groups.yml")

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """A shell command as root."""
        ssh = ["ssh", "-F", str(self.ssh_config), NAME, "sudo", "bash", "-s"]
        return subprocess.run(ssh, input=command, capture_output=True, text=True, check=False)

    def says(self, command: str) -> str:
        done = self.run(command)
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def ansible(self, *command: str) -> subprocess.CompletedProcess[str]:
        env = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
        return subprocess.run(
            [str(PROJECT / ".venv/bin" / command[0]), "-i", str(self.inventory), *command[1:]],
            cwd=PROJECT,
            env=env | {"PATH": f"{PROJECT}/.venv/bin:{env['PATH']}", "NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def play(self, title: str, **variables: str) -> Play:
        """playbooks/drivers.yml with these variables. Its output goes into the folder too."""
        begin = time.monotonic()
        extra = [word for name, value in variables.items() for word in ("-e", f"{name}={value}")]
        done = self.ansible("ansible-playbook", "playbooks/drivers.yml", *extra)
        (self.folder / f"{title}.log").write_text(done.stdout)
        changed = re.search(rf"^{NAME} .*\bchanged=(\d+)", done.stdout, re.MULTILINE)
        return Play(done.returncode, int(changed[1]) if changed else -1, done.stdout, time.monotonic() - begin)

    def module(self, name: str, **arguments: str) -> dict[str, Any]:
        """What a module of the collection returns."""
        words = " ".join(f"{key}={value}" for key, value in arguments.items())
        said = self.ansible("ansible", NAME, "-o", "-m", f"onprem.llm.{name}", "-a", words).stdout
        result = re.search(r"^\S+ \| \w+!? => (\{.*\})$", said, re.MULTILINE)
        assert result, said
        found: dict[str, Any] = json.loads(result[1])
        return found


class Host(Target):
    """A booted test host with Debian's kernel package: everything but the running kernel is real."""

    def __init__(self, folder: Path, lab: str, network: str) -> None:
        super().__init__(folder)
        self.lab = lab
        self.network = network
        self.address = network.replace(".0/24", ".11")
        self.ssh_config = STATE / lab / "ssh_config"
        self.root = STATE / lab / "hosts" / NAME / "root"

    def up(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        spec = {"name": NAME, "ip": self.address, "image": "trixie"}
        output(TESTHOST, "up", stdin=json.dumps({"lab": self.lab, "network": self.network, "hosts": [spec]}))
        self.write_inventory(self.address)
        self.says(
            "export DEBIAN_FRONTEND=noninteractive; apt-get update -qq"
            " && apt-get install -y -qq --no-install-recommends linux-image-amd64" + NETWORK
        )

    def down(self) -> None:
        output(TESTHOST, "down", self.lab)

    def pack(self) -> None:
        """The disk of this host, shut down, and what it takes to get in."""
        output(TESTHOST, "stop", self.lab, NAME)
        part = self.folder / "disk.part"
        part.unlink(missing_ok=True)
        archives = self.root / "var/cache/apt/archives"  # of no use to a machine that has them installed
        without = f"mount -t tmpfs none {archives} && mkfs.ext4 -q -d {self.root} {part} 6G"
        output("unshare", "--mount", "sh", "-c", without)
        for name in ("id", "known_hosts"):
            shutil.copy(STATE / self.lab / name, self.folder / name)
        part.rename(self.folder / "disk")


class Machine(Target):
    """A virtual machine from a packed disk, of which it runs a copy.

    Each time it comes up, also after a reboot from inside, it gets the newest kernel of its own disk, as from a boot
    loader.
    """

    def __init__(self, packed: Path) -> None:
        super().__init__(packed / "machine")
        self.packed = packed
        self.disk = self.folder / "disk"
        self.serial = self.folder / "serial.log"
        self.boots = 0
        self._on = False
        self._process: subprocess.Popen[bytes] | None = None
        self._power = threading.Thread(target=self._supply, daemon=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]

    def up(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        output("cp", "--sparse=always", self.packed / "disk", self.disk)
        self.serial.unlink(missing_ok=True)
        self.write_inventory("127.0.0.1", self.port)
        # The host's key came with the disk, under its name.
        self.ssh_config.write_text(f"""Host {NAME} 127.0.0.1
  HostName 127.0.0.1
  Port {self.port}
  User ansible
  IdentityFile {self.packed}/id
  IdentitiesOnly yes
  UserKnownHostsFile {self.packed}/known_hosts
  GlobalKnownHostsFile none
  HostKeyAlias {NAME}
  StrictHostKeyChecking yes
  ConnectTimeout 30
""")
        self._on = True
        self._power.start()
        self.wait()

    def wait(self) -> None:
        """Until it has finished booting."""
        until = time.monotonic() + BOOT_TIMEOUT
        while time.monotonic() < until and self._power.is_alive():
            if self.run("systemctl is-system-running --wait").stdout.strip() in ("running", "degraded"):
                return
            time.sleep(3)
        said = self.serial.read_text(errors="replace") if self.serial.exists() else ""
        raise AssertionError(f"the virtual machine is not up after {BOOT_TIMEOUT} s:\n{said[-3000:]}")

    def down(self) -> None:
        self._on = False
        while self._power.is_alive():  # it may just be coming up again
            if self._process:
                self._process.kill()
            self._power.join(1)
        self.disk.unlink(missing_ok=True)

    def _supply(self) -> None:
        while self._on:
            with (self.folder / "qemu.log").open("ab") as log:
                self._process = subprocess.Popen(self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            self.boots += 1
            if self._process.wait():
                return

    def _command(self) -> list[str]:
        nodes = []
        for node, cpus in enumerate(("0-1", "2-3")):
            nodes += ["-object", f"memory-backend-ram,size=1536M,id=ram{node}"]
            nodes += ["-numa", f"node,nodeid={node},cpus={cpus},memdev=ram{node}"]
        return [
            *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "3072"),
            *("-smp", "4,sockets=2,cores=2", *nodes, "-numa", "dist,src=0,dst=1,val=21"),
            *("-drive", f"file={self.disk},if=virtio,format=raw,cache=unsafe"),
            *("-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{self.port}-:22", "-device", "virtio-net-pci,netdev=net"),
            *("-kernel", self._from_disk("vmlinuz"), "-initrd", self._from_disk("initrd.img")),
            *("-append", "console=ttyS0 root=/dev/vda rw net.ifnames=0"),
            *("-chardev", f"file,id=serial,path={self.serial},append=on", "-serial", "chardev:serial"),
            *("-display", "none", "-monitor", "none", "-no-reboot"),
        ]

    def _from_disk(self, kind: str) -> str:
        """The newest file of /boot of this kind, taken out of the disk."""
        listing = output("debugfs", "-R", "ls -p /boot", self.disk)
        names = re.findall(rf"/({re.escape(kind)}-[^/]+)/", listing)
        newest = max(names, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
        output("debugfs", "-R", f"dump /boot/{newest} {self.folder}/{kind}", self.disk)
        return f"{self.folder}/{kind}"
