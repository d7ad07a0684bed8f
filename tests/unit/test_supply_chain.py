# SPDX-License-Identifier: GPL-3.0-or-later
"""T9: what comes from elsewhere is taken by its checksum only."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import conventions
from conventions import PROJECT


def installed(folder: Path, entry: dict[str, Any]) -> tuple[int, str]:
    """Exit status and words of the role artifact for an entry whose file is ``folder``/x.tar.gz."""
    (folder / "x.tar.gz").write_text("anything")
    entry = {**entry, "url": (folder / "x.tar.gz").as_uri()}
    task = {
        "name": "Install",
        "ansible.builtin.include_role": {"name": "onprem.llm.artifact"},
        "vars": {"artifact": entry, "artifact_dest": str(folder / "dest"), "artifact_mirror": ""},
    }
    play = [{"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": [task]}]
    (folder / "play.yml").write_text(json.dumps(play))
    command = [Path(sys.executable).parent / "ansible-playbook", "-i", "localhost,", folder / "play.yml"]
    done = subprocess.run(
        [*command, "-e", f"ansible_python_interpreter={sys.executable}"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_an_entry_is_taken_with_every_key_that_entries_have(tmp_path: Path) -> None:
    entries = conventions.load(PROJECT / "group_vars/all/artifacts.yml")["artifacts"].values()
    one = {key: value for entry in entries for key, value in entry.items()}
    assert "submodules" in one
    known = {"name": "all", "sha256": hashlib.sha256(b"anything").hexdigest(), "size": 8}
    status, said = installed(tmp_path, {**one, **known})
    assert status == 0, said
    assert (tmp_path / "dest").read_text() == "anything"


def test_an_artifact_without_checksum_is_refused(tmp_path: Path) -> None:
    """Before anything is fetched; and the way out is named."""
    status, said = installed(tmp_path, {"name": "llamacpp_source", "version": "1.0", "sha256": None})
    assert status != 0
    assert "The artifact 'llamacpp_source' (version 1.0) has the checksum null: it was never fetched" in said
    assert "playbooks/lock.yml -i inventories/prod -e lock_only=llamacpp_source" in said
    assert not (tmp_path / "dest").exists()


def test_every_installation_of_python_packages_asks_for_hashes() -> None:
    installs = re.compile(r"""\bpip["']?\)?,? +["']?(?:install|sync)\b""")
    files = [p for p in conventions.files() if p.relative_to(PROJECT).parts[0] in ("plugins", "roles", "tools")]
    found = {path: len(installs.findall(conventions.text(path))) for path in files}
    found = {path: count for path, count in found.items() if count}
    assert {"setup", "python_tree.py"} <= {path.name for path in found}
    for path, count in found.items():
        assert conventions.text(path).count("--require-hashes") >= count, f"{conventions.name(path)}: --require-hashes"
        assert "--only-binary" in conventions.text(path), f"{conventions.name(path)}: wheels only"
