# SPDX-License-Identifier: GPL-3.0-or-later
"""What a machine is. Sizes are bytes, bandwidths bytes per second; ``None`` means unknown, and ``unknown`` says why."""

from __future__ import annotations

from typing import TypedDict


class Cpu(TypedDict):
    vendor: str
    model: str
    sockets: int
    cores: int
    """Physical cores with at least one CPU online."""
    threads: int
    """Logical CPUs online."""
    threads_per_core: int
    offline: list[int]
    usable: float
    """CPUs this system may use at once: the online ones, or less under a CPU quota (container, virtual machine)."""
    isa: list[str]
    """Of avx, avx2, fma, f16c, avx_vnni, the avx512 family and amx; spelled as /proc/cpuinfo does."""


class Node(TypedDict):
    """A NUMA node. One without CPUs (CXL, HBM) has none."""

    id: int
    socket: int | None
    cpus: list[int]
    cores: int
    memory: int
    available: int | None


class Dimms(TypedDict):
    count: int
    type: str
    speed: int
    """Configured transfers per second, in millions."""
    channels: int
    """Populated channels of the whole machine."""


class Memory(TypedDict):
    total: int
    available: int | None
    limit: int | None
    """Of the container or service, where one is set."""
    dimms: Dimms | None
    bandwidth: int | None
    """Theoretical, of the whole machine: channels x transfers x 8 bytes."""
    measured: dict[str, int] | None
    """NUMA node -> bandwidth read from it by its own CPUs, where measuring was asked for; keys are strings for JSON."""


class Gpu(TypedDict):
    index: int | None
    name: str
    memory: int | None
    compute_capability: str | None
    bandwidth: int | None
    """Of its memory, theoretical."""
    flops: int | None
    """Dense half-precision operations per second with tensor cores, theoretical."""
    pci_address: str | None
    pci_device: str | None
    """vendor:device, as in 10de:2684."""
    numa_node: int | None
    link: int | None
    """Theoretical bandwidth to the host, one way."""
    mig: bool | None


class Driver(TypedDict):
    state: str
    """ok, none, not_loaded, no_gpu, reboot_required, gpu_error or unknown."""
    version: str | None
    cuda: str | None
    """Newest CUDA the driver can run."""
    toolkit: str | None


class Disk(TypedDict):
    """Behind the folder of the models."""

    path: str
    total: int
    free: int
    filesystem: str | None
    network: bool
    rotational: bool | None


class System(TypedDict):
    distribution: str | None
    version: str | None
    kernel: str | None
    glibc: str | None
    python: list[str] | None
    """Versions that are installed, as in 3.11."""
    virtualisation: str | None
    """kvm, vmware ...; none on bare metal."""
    container: str | None


class Hardware(TypedDict):
    id: str
    architecture: str
    cpu: Cpu
    numa: list[Node]
    memory: Memory
    gpus: list[Gpu]
    driver: Driver
    disk: Disk | None
    system: System
    unknown: dict[str, str]
    """Fact -> why it is unknown, and what would make it known."""
