# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs rollout_switch again and again: each line read is a run's arguments, each line written what came of it.

``{"kill": N}`` beside the arguments: the run ends itself by SIGKILL right before its Nth step. A step is whatever
changes a disk, runs a program or asks a server.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
from typing import Any

import ansible.module_utils.basic as basic

from ansible_collections.onprem.llm.plugins.modules import rollout_switch

STEPS = [(os, name) for name in ("replace", "rename", "symlink", "unlink", "rmdir", "fsync", "chmod", "chown", "mkdir")]
STEPS += [(subprocess, "Popen"), (http.client.HTTPConnection, "request")]  # type: ignore[list-item]


def step_by_step(kill: int) -> None:
    taken = 0

    def counted(real: Any) -> Any:
        def step(*given: Any, **more: Any) -> Any:
            nonlocal taken
            taken += 1
            if taken == kill:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given, **more)

        return step

    for owner, name in STEPS:
        setattr(owner, name, counted(getattr(owner, name)))


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        with tempfile.TemporaryFile("w+") as output:
            child = os.fork()
            if child == 0:
                os.dup2(output.fileno(), 1)
                os.environ["PATH"] = asked["path"] + ":" + os.environ["PATH"]
                basic._ANSIBLE_ARGS = json.dumps({"ANSIBLE_MODULE_ARGS": asked["args"]}).encode()
                basic._ANSIBLE_PROFILE = "legacy"
                step_by_step(asked["kill"])
                try:
                    rollout_switch.main()
                except Exception as error:  # the next run needs its answer
                    print(json.dumps({"failed": True, "msg": f"Traceback: {error!r}"}), flush=True)
                    os._exit(1)
            status = os.waitpid(child, 0)[1]
            output.seek(0)
            said = output.read()
        killed = os.WIFSIGNALED(status)
        print(json.dumps({"killed": True} if killed else json.loads(said)), flush=True)


if __name__ == "__main__":
    main()
