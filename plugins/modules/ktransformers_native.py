#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a compiled KTransformers is what was asked for."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ktransformers_native
short_description: Verifies what was compiled, by its files, libraries, symbols and a run
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Looks at a source tree (I(source)), at the wheel a build left in a folder (I(folder)), or at an environment in which
    it is installed (I(tree)), and fails with one line when it is not what I(build) says.
  - Of an extension it looks at machine and Python, libnuma and its symbols, the CUDA runtime, missing libraries, GPU
    code, and loads it in a process of its own. It never looks at a build log.
attributes:
  check_mode: {support: full, description: Looks as well\, unless there is nothing yet\, and writes nothing.}
  diff_mode: {support: none, description: Shows nothing.}
  idempotent: {support: full, description: Writes a record once.}
options:
  build: {description: What C(ktransformers_build_info) returned as C(build)., type: dict, required: true}
  source: {description: Folder of an unpacked source., type: path}
  folder: {description: Folder of a build\, with one wheel., type: path}
  record:
    description: Verify the wheel in I(folder) and write its record there. Otherwise the record must be there.
    type: bool
    default: false
  tree: {description: Virtual environment., type: path}
  python: {description: Python that loads the extensions of I(folder). Empty loads none., type: str, default: ''}
  program: {description: Script for the Python of I(tree); it prints C(answers)., type: str, default: ''}
  cuda_home:
    description: >-
      CUDA toolkit. With I(source) it must be the one that I(build) names; with I(folder) its cuobjdump lists GPU code,
      and empty does not look.
    type: str
    default: ''
"""

EXAMPLES = r"""
- name: Verify the wheel and record it
  onprem.llm.ktransformers_native:
    build: "{{ decided.build }}"
    folder: /opt/onprem-llm/ktransformers_build/0.2.3post2-classic-avx2-py3.11-cu12.4-0a1b2c3d.stage
    python: /usr/bin/python3.11
    record: true
"""

RETURN = r"""
wheel: {description: Name of the wheel., type: str, returned: with I(folder)}
sha256: {description: Its checksum., type: str, returned: with I(folder)}
extensions: {description: Of each extension what it needs and uses., type: dict, returned: with I(folder) or I(tree)}
"""

import hashlib
import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import transfer
from ansible_collections.onprem.llm.plugins.module_utils.ktransformers import build, verify

TIMEOUT = 300  # seconds; importing torch from a cold disk takes one minute


def run(argv: list[str]) -> tuple[int, str, str]:
    """AnsibleModule.run_command has no time limit, and hides which signal ended a process."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=TIMEOUT,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        return 124, "", f"no answer in {TIMEOUT} seconds"
    except OSError as error:
        return 127, "", str(error)
    return done.returncode, done.stdout, done.stderr


def look_at_folder(folder: Path, wanted: build.Build, p: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    wheel = verify.only_wheel(folder) if p["record"] else folder / verify.stamp(folder, wanted)
    cuobjdump = f"{p['cuda_home']}/bin/cuobjdump" if p["cuda_home"] else ""
    found = verify.wheel(wheel, wanted, run, python=p["python"], cuobjdump=cuobjdump)
    text = verify.record(wheel, wanted)
    path = folder / verify.RECORD
    changed = p["record"] and not (path.exists() and path.read_text() == text)
    if changed and not check_mode:
        transfer.write_atomically(path, text, 0o644)
    return {
        "changed": changed,
        "wheel": wheel.name,
        "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "extensions": found,
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "build": {"type": "dict", "required": True},
            "source": {"type": "path"},
            "folder": {"type": "path"},
            "record": {"type": "bool", "default": False},
            "tree": {"type": "path"},
            "python": {"type": "str", "default": ""},
            "program": {"type": "str", "default": ""},
            "cuda_home": {"type": "str", "default": ""},
        },
        mutually_exclusive=[("source", "folder", "tree")],
        required_one_of=[("source", "folder", "tree")],
        supports_check_mode=True,
    )
    p = module.params
    wanted = build.from_values(p["build"])
    where = Path(p["source"] or p["folder"] or p["tree"])
    result: dict[str, Any] = {"changed": False}
    if module.check_mode and not where.is_dir():
        module.exit_json(**result)
    try:
        if p["source"]:
            if wanted.cuda:
                verify.toolkit(p["cuda_home"], wanted, run)
            verify.source(where, wanted)
        elif p["folder"]:
            result = look_at_folder(where, wanted, p, module.check_mode)
        else:
            result["extensions"] = verify.installed(where, wanted, run)
            if p["program"]:
                verify.answers(p["program"], where, wanted, run)
    except verify.VerifyError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{where} cannot be looked at: {error}. Nothing was published; run again to build anew.")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
