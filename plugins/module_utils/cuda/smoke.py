# SPDX-License-Identifier: GPL-3.0-or-later
"""Proof that a toolkit works: a small kernel, compiled, looked at, and run where there is a GPU."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence

#: Numbers the kernel computes on each device.
COUNT = 1 << 16
PROGRAM = """\
#include <cstdint>
#include <cstdio>
#include <cuda_runtime.h>

__global__ void step(uint32_t *y, uint32_t n) {
  uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = i * 2654435761u + (i >> 7);
}

int main() {
  const uint32_t n = COUNT;
  int devices = 0;
  cudaError_t error = cudaGetDeviceCount(&devices);
  printf("devices=%d error=%d %s\\n", devices, (int)error, cudaGetErrorString(error));
  static uint32_t host[COUNT];
  for (int device = 0; device < devices; device++) {
    uint32_t *y = nullptr;
    uint64_t sum = 0;
    cudaSetDevice(device);
    error = cudaMalloc(&y, sizeof host);
    if (!error) step<<<(n + 255) / 256, 256>>>(y, n);
    if (!error) error = cudaGetLastError();
    if (!error) error = cudaMemcpy(host, y, sizeof host, cudaMemcpyDeviceToHost);
    for (uint32_t i = 0; i < n; i++) sum += host[i];
    int major = 0, minor = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    printf("device=%d capability=%d.%d sum=%llu error=%d %s\\n", device, major, minor, (unsigned long long)sum,
           (int)error, cudaGetErrorString(error));
    cudaFree(y);
  }
  return 0;
}
""".replace("COUNT", str(COUNT))

#: cudaErrorNoDevice; and cudaErrorInsufficientDriver, which a host without the driver's library answers.
NO_DEVICE, NO_DRIVER = 100, 35
#: A GPU that others use: cudaErrorMemoryAllocation, they fill its memory (CUDA itself takes a few hundred MB of it);
#: cudaErrorDevicesUnavailable, one of them has it in exclusive mode.
IN_USE = ("2", "46")


@functools.cache
def expected() -> int:
    """The sum that each device must print."""
    return sum((i * 2654435761 + (i >> 7)) % 2**32 for i in range(COUNT))


def code(capability: str) -> str:
    """8.9 is sm_89."""
    return "sm_" + capability.replace(".", "")


def command(home: str, capabilities: Iterable[str], source: str, program: str) -> list[str]:
    """Compile for exactly these compute capabilities, without PTX."""
    targets = [f"-gencode=arch=compute_{code(one)[3:]},code={code(one)}" for one in capabilities]
    return [f"{home}/bin/nvcc", *targets, f"-I{home}/include", f"-L{home}/lib64", "-o", program, source]


def environment(home: str) -> dict[str, str]:
    """Nothing of the caller's: another toolkit's programs and libraries must not take part."""
    return {"PATH": f"{home}/bin:/usr/bin:/bin", "CUDA_HOME": home, "LD_LIBRARY_PATH": "", "LC_ALL": "C.UTF-8"}


def version_refusal(version: str, told: str, home: str) -> str:
    """Why a home is not the release it should be; empty when it is. told: what its nvcc says it is."""
    if told == version:
        return ""
    return (
        f"{home} should hold CUDA {version}, and its nvcc says it is {told or 'none'}. Look at {home} and the packages "
        "behind "
        "it; removing both and running this again installs them anew."
    )


def list_refusal(home: str, capabilities: Sequence[str], known: Sequence[str]) -> str:
    """Why nvcc cannot compile for these; empty when it can, or when it lists nothing."""
    lacking = [one for one in capabilities if known and one not in known]
    if not lacking:
        return ""
    return (
        f"{home} does not compile for {', '.join(lacking)}: its nvcc lists {known[0]} to {known[-1]}. Choose another "
        "release "
        "(cuda_toolkit_versions), or take it out of cuda_toolkit_architectures."
    )


def compile_refusal(home: str, status: int, said: str, written: bool) -> str:
    """Why a compilation was none; empty when it left a program."""
    if status == 0 and written:
        return ""
    lines = [line for line in said.splitlines() if "error" in line.lower()] or said.splitlines()
    why = " / ".join(line.strip() for line in lines[:3]) or "nvcc said nothing"
    how = f"nvcc ended with {status}" if status else "nvcc ended with 0 and wrote no program"
    return (
        f"{home} does not compile: {how}: {why[:600]}. Look at its host compiler (g++) and its packages; what nvcc "
        "says of "
        "its version counts for nothing."
    )


def code_refusal(home: str, capabilities: Sequence[str], elves: str) -> str:
    """Why a program holds not what was asked for; empty when it does. elves: what ``cuobjdump -lelf`` prints."""
    found = set(re.findall(r"\.(sm_\d+)\w*\.cubin", elves))
    lacking = [code(one) for one in capabilities if code(one) not in found]
    if not lacking:
        return ""
    return (
        f"{home} compiled without an error, and the program holds no code for {', '.join(lacking)} "
        f"(cuobjdump -lelf finds {', '.join(sorted(found)) or 'none'}). Its nvcc is none or damaged: install its "
        "packages anew."
    )


def verdict(output: str, capabilities: Sequence[str], gpus: int, driver: str) -> tuple[str, str]:
    """(what to report, why it fails) of a program's output.

    capabilities: what it was compiled for; gpus: how many the PCI bus shows; driver: its state by nvidia-smi.
    """
    counted = re.search(r"(?m)^devices=(-?\d+) error=(\d+) (.*)$", output)
    if not counted:
        return "", f"compiled, and the program printed no number: {output.strip()[:300] or 'nothing'}"
    if counted[2] == "0" and counted[1] != "0":
        return _sums(output, int(counted[1]), capabilities)
    said = f"cudaGetDeviceCount {counted[2]}: {counted[3]}"
    if gpus and driver == "ok":
        return "", (
            f"compiled, and the program does not reach the GPU that nvidia-smi shows: {said}. A driver too old for "
            "this "
            "release answers 35, one whose library has another version 803: reboot, or choose another release"
        )
    if gpus:
        return f"compiled, not run: the driver is not ready (nvidia-smi: {driver}; {said})", ""
    if int(counted[2]) in (NO_DEVICE, NO_DRIVER):
        return f"compiled, not run: no GPU ({said})", ""
    return "", f"compiled, and on this host without a GPU the program answers {said} instead of {NO_DEVICE}"


def _sums(output: str, count: int, capabilities: Sequence[str]) -> tuple[str, str]:
    right, left_out, busy = 0, [], []
    for device in range(count):
        line = re.search(rf"(?m)^device={device} capability=(\d+\.\d+) (.*)$", output)
        if line and not any(_runs(one, line[1]) for one in capabilities):
            left_out.append(f"GPU {device} has compute capability {line[1]}")
        elif line and line[2].startswith(f"sum={expected()} error=0 "):
            right += 1
        elif line and (failed := re.search(r" error=(\d+ .*)$", line[2])) and failed[1].split()[0] in IN_USE:
            busy.append(f"GPU {device} is in use (CUDA {failed[1]})")
        else:
            said = line[2] if line else "nothing"
            return "", f"compiled, and GPU {device} computes something else: {said} instead of sum={expected()} error=0"
    if left_out:
        left_out[-1] += f", and it was compiled for {', '.join(capabilities)}"
    others = "; ".join(busy + left_out)
    if not right:
        return f"compiled, not run: {others}", ""
    report = f"compiled and run on {right} GPU{'s' if right > 1 else ''}, the numbers are right"
    return report + (f"; not run: {others}" if others else ""), ""


def _runs(compiled: str, capability: str) -> bool:
    """Code for 8.0 runs on 8.0 to 8.9, and on nothing else."""
    made, has = compiled.split("."), capability.split(".")
    return made[0] == has[0] and int(made[1]) <= int(has[1])
