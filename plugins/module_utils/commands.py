# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands of this host, for modules that only look."""

from __future__ import annotations

import os
import subprocess

from ansible_collections.onprem.llm.plugins.module_utils.hardware.tree import NOT_INSTALLED

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/cuda/bin"
TIMEOUT = 60  # seconds; a broken GPU can keep nvidia-smi waiting for ever
NO_ANSWER = 124


def run(argv: list[str]) -> tuple[int, str, str]:
    """Exit status, output and errors of a command, in English. AnsibleModule.run_command has no time limit."""
    environment = {**os.environ, "PATH": PATH, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        return NO_ANSWER, "", f"no answer in {TIMEOUT} seconds"
    except FileNotFoundError:
        return NOT_INSTALLED, "", ""
    except OSError as error:
        return 126, "", str(error)
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
