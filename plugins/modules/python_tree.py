#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""Versions of a Python application side by side."""

from __future__ import annotations

DOCUMENTATION = r"""
module: python_tree
short_description: Builds a Python application in a versioned folder, from a lock file with hashes
version_added: 0.1.0
author: The onprem.llm developers
description:
  - With I(state=present), builds the virtual environment I(root)/I(name) from I(lock). Every file is verified by its
    hash, only ready-made wheels are taken, nothing beyond the lock is installed. A marker is written last; a folder
    without it, left by a run that was killed, is built anew.
  - With I(state=pruned), removes finished versions beyond the newest I(keep), and unfinished ones. What the symlink
    I(root)/current points to stays, and what may be gone back to (I(records)). I(root)/NAME.txt (the lock
    file) and I(root)/NAME.proofs go with their version.
  - Packages come from where the host's pip takes them, unless I(index) or I(wheels) says otherwise.
attributes:
  check_mode: {support: full, description: Says whether it would build or remove something.}
  diff_mode: {support: none, description: Shows nothing.}
  idempotent: {support: full, description: A finished version is left alone.}
options:
  state: {description: What to do., type: str, choices: [present, pruned], default: present}
  root: {description: Folder of the versions., type: path, required: true}
  name: {description: Folder name of this version. Required to build., type: str}
  python: {description: The Python to build with., type: path, default: /usr/bin/python3}
  lock: {description: Lock file on the host. Required to build., type: path}
  uv_lock: {description: Lock file of uv\, on the host. Required to build., type: path}
  index: {description: Package index. Empty takes what the host's pip takes., type: str, default: ''}
  wheels: {description: Folder on the host with all wheels\, for hosts without a package index., type: str, default: ''}
  cache: {description: Folder where uv keeps what it fetched., type: path, default: /var/cache/onprem-llm/uv}
  compile: {description: Compile every module now\, rather than when it is first imported., type: bool, default: false}
  keep: {description: How many versions to keep., type: int, default: 2}
  needed: {description: Versions that are never removed., type: list, elements: str, default: []}
  records: {description: Folder of the records of M(onprem.llm.rollout_switch)\; it need not be there., type: path}
"""

EXAMPLES = r"""
- name: Build the version
  onprem.llm.python_tree:
    root: /opt/onprem-llm/openwebui
    name: 0.12.4-py3.11-0123abcd
    lock: /opt/onprem-llm/openwebui/requirements.txt
    uv_lock: /opt/onprem-llm/openwebui/uv.txt
"""

RETURN = r"""
removed: {description: Versions that were removed., type: list, elements: str, returned: success}
source: {description: Where packages came from\, without credentials., type: str, returned: when something was built}
seconds: {description: How long the build took., type: float, returned: when something was built}
"""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import python_tree, transfer
from ansible_collections.onprem.llm.plugins.module_utils.python_tree import MARKER, PythonTreeError
from ansible_collections.onprem.llm.plugins.module_utils.rollout import kept
from ansible_collections.onprem.llm.plugins.module_utils.rollout.record import RecordError


def run(module: AnsibleModule, what: str, argv: list[str], env: dict[str, str]) -> str:
    status, out, error = module.run_command(argv, environ_update=env)
    if status != 0:
        text = python_tree.redact((error or out).strip())
        raise PythonTreeError(f"{what} failed:\n{text[-3000:]}")
    return str(out)


def uv_of(module: AnsibleModule, root: Path) -> Path:
    """The environment that holds uv, installed unless it is there. Its folder is named after the lock file."""
    p = module.params
    lock = Path(p["uv_lock"]).read_bytes()
    folder = root / f".uv-{hashlib.sha256(lock).hexdigest()[:8]}"
    if (folder / MARKER).exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    run(module, "Making a virtual environment for uv", [p["python"], "-m", "venv", str(folder)], {})
    where = ["--no-index", f"--find-links={p['wheels']}"] if p["wheels"] else []
    where += [f"--index-url={p['index']}"] if p["index"] and not p["wheels"] else []
    pip = [str(folder / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    pip += ["--only-binary=:all:", "--require-hashes", f"--requirement={p['uv_lock']}", *where]
    run(module, "Installing uv with the host's pip", pip, {})
    (folder / MARKER).touch()
    return folder


def build(module: AnsibleModule, tree: Path) -> dict[str, Any]:
    p = module.params
    start = time.monotonic()
    lock = Path(p["lock"]).read_text()
    bare = python_tree.unhashed(lock)
    if bare:
        raise PythonTreeError(f"{p['lock']}: no sha256 for {', '.join(bare)}. Write the file anew with `make lock`.")
    if p["wheels"] and not Path(p["wheels"]).is_dir():
        raise PythonTreeError(f"The folder of wheels is {p['wheels']}, and there is no such folder on this host.")
    uv = uv_of(module, tree.parent)
    settings = python_tree.pip_settings(run(module, "Asking pip", [str(uv / "bin/pip"), "config", "list"], {}))
    env = python_tree.uv_environment(settings, p["index"], p["wheels"], p["cache"])
    source = python_tree.sources(env)
    shutil.rmtree(tree, ignore_errors=True)
    # What was proven of the former one.
    tree.with_name(f"{tree.name}.proofs").unlink(missing_ok=True)
    program = str(uv / "bin/uv")
    run(module, "Making the virtual environment", [program, "venv", "--python", p["python"], str(tree)], env)
    install = [program, "pip", "install", "--quiet", "--python", str(tree), "--no-deps", "--require-hashes"]
    install += ["--only-binary", ":all:", "--requirement", p["lock"]]
    install += ["--no-index"] if "UV_NO_INDEX" in env else []
    install += ["--compile-bytecode"] if p["compile"] else []
    run(module, f"Installing {lock.count('==')} packages from {source}", install, env)
    # The marker must not survive a power cut that the files before it do not.
    os.sync()
    facts = {"lock_sha256": hashlib.sha256(lock.encode()).hexdigest(), "python": p["python"], "source": source}
    part = tree / (MARKER + ".part")
    part.write_text(json.dumps(facts) + "\n")
    part.rename(tree / MARKER)
    return {"source": source, "seconds": round(time.monotonic() - start, 1)}


def prune(module: AnsibleModule, root: Path) -> list[str]:
    pointer = root / "current"
    current = pointer.readlink().name if pointer.is_symlink() else ""
    markers = [marker for marker in root.glob(f"[!.]*/{MARKER}") if not marker.parent.is_symlink()]
    trees = [python_tree.Tree(marker.parent.name, marker.stat().st_mtime) for marker in markers]
    p = module.params
    needed = {*p["needed"], *(kept.names(Path(p["records"]), root) if p["records"] else ())}
    names = python_tree.superfluous(trees, current, p["keep"], needed) if current else []
    finished = {tree.name for tree in trees}
    unfinished = (folder for folder in root.glob("[!.]*") if folder.is_dir() and not folder.is_symlink())
    names += [folder.name for folder in unfinished if current and folder.name not in finished]
    for name in names if not module.check_mode else []:
        # Its marker first: a removal that is cut short leaves nothing that counts as finished.
        (root / name / MARKER).unlink(missing_ok=True)
        shutil.rmtree(root / name)
        for suffix in ("txt", "proofs"):
            (root / f"{name}.{suffix}").unlink(missing_ok=True)
    return names


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "pruned"], "default": "present"},
            "root": {"type": "path", "required": True},
            "name": {"type": "str"},
            "python": {"type": "path", "default": "/usr/bin/python3"},
            "lock": {"type": "path"},
            "uv_lock": {"type": "path"},
            "index": {"type": "str", "default": ""},
            "wheels": {"type": "str", "default": ""},
            "cache": {"type": "path", "default": "/var/cache/onprem-llm/uv"},
            "compile": {"type": "bool", "default": False},
            "keep": {"type": "int", "default": 2},
            "needed": {"type": "list", "elements": "str", "default": []},
            "records": {"type": "path"},
        },
        required_if=[("state", "present", ("name", "lock", "uv_lock"))],
        supports_check_mode=True,
    )
    os.umask(0o022)
    root = Path(module.params["root"])
    try:
        if module.params["state"] == "pruned":
            removed = prune(module, root)
            module.exit_json(changed=bool(removed), removed=removed)
        tree = root / module.params["name"]
        if (tree / MARKER).exists():
            module.exit_json(changed=False, removed=[])
        result = {}
        if not module.check_mode:
            # What a killed run left behind on this host goes on building: it is waited for.
            with transfer.alone(root, tree):
                result = {} if (tree / MARKER).exists() else build(module, tree)
    except (PythonTreeError, RecordError, transfer.BusyError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=True, removed=[], **result)


if __name__ == "__main__":
    main()
