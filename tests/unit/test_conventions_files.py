# SPDX-License-Identifier: GPL-3.0-or-later
"""What no file of the project may contain, and how its files fit together."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import conventions
import pytest
from conventions import PROJECT, lines_with, listed, load, name, root_variables, variables_of

FILES = [path for path in conventions.files() if conventions.text(path)]
OURS = [path for path in FILES if path.name != "LICENSE"]
RUN = [path for path in OURS if not path.is_relative_to(PROJECT / "tests") and path.suffix != ".md"]
YAML = [path for path in RUN if path.suffix in (".yml", ".yaml", ".j2")]


# --- nothing that belongs to one machine or one registry


def test_no_registry_is_named() -> None:
    # In pieces, so that this file does not name them either.
    hosts = [
        ("py" + "pi", "org"),
        ("python" + "hosted", "org"),
        (r"(deb|security|ftp\.\w+|snapshot)\.deb" + "ian", "org"),
        (r"(archive|security|ports)\.ubun" + "tu", "com"),
        ("registry.np" + "mjs", "org"),
    ]
    found = lines_with("|".join(rf"\b{host}\.{top}\b" for host, top in hosts), OURS)
    assert not found, "a package registry is named; use the machine's own settings of apt, pip and npm:" + listed(found)


def test_no_path_of_a_machine() -> None:
    found = lines_with(r"(?<![\w.}~-])/(" + "wo" + r"rk|root)/|(?<![\w.}])/home/[a-z]", OURS)
    assert not found, "a path of somebody's machine:" + listed(found)


def test_every_file_ends_with_a_line() -> None:
    wrong = [name(path) for path in OURS if not conventions.text(path).endswith("\n") or "\r" in conventions.text(path)]
    assert not wrong, "no newline at the end, or carriage returns:" + listed(wrong)


def test_python_files_begin_alike() -> None:
    problems = []
    for path in OURS:
        text = conventions.text(path)
        if path.suffix != ".py" and not text.startswith("#!/usr/bin/env python3"):
            continue
        if "# SPDX-License-Identifier: GPL-3.0-or-later\n" not in text[:120]:
            problems.append(f"{name(path)}: no SPDX line at the top")
        if path.is_relative_to(PROJECT / "tests/fixtures"):
            continue  # kept as they were when the fixture was made
        if "from __future__ import annotations\n" not in text and re.search(r"(?m)^(import|from|def|class) ", text):
            problems.append(f"{name(path)}: no `from __future__ import annotations`")
    assert not problems, listed(problems)


def test_what_can_be_run_says_with_what() -> None:
    problems = []
    for path in OURS:
        runnable, says = os.access(path, os.X_OK), conventions.text(path).startswith("#!")
        if runnable and not says:
            problems.append(f"{name(path)} is executable and has no #! line: chmod -x, or add one")
        # Ansible reads modules; nobody runs them.
        if says and not runnable and not path.is_relative_to(PROJECT / "plugins"):
            problems.append(f"{name(path)} has a #! line and is not executable: chmod +x")
    assert not problems, listed(problems)


# --- supply chain


def test_nothing_floats() -> None:
    found = lines_with(r"state: latest|(?<!ext)[:/@]latest\b|_version: [\"']?latest", RUN)
    assert not found, "`latest` is another thing every day; name the version:" + listed(found)


def test_nothing_is_piped_into_a_shell() -> None:
    found = lines_with(r"(curl|wget)\b[^\n]*\|\s*(sudo\s+)?(ba|da)?sh\b", RUN)
    assert not found, "fetch a file with its checksum in artifacts.yml instead:" + listed(found)


def test_certificates_are_verified() -> None:
    found = lines_with(
        r"validate_certs: *(false|no)\b|--insecure|\bcurl\b[^|\n]* -\w*k\b|verify *= *False|CERT_NONE"
        r"|_create_unverified_context|--no-check-certificate|TLS_REQCERT\s+(never|allow)"
        r"|ssl_?mode[=: ]+(require|allow|prefer)\b",
        RUN,
    )
    assert not found, "a connection that verifies nobody; name the CA instead:" + listed(found)


def test_errors_are_not_ignored() -> None:
    found = lines_with(r"^\s*ignore_errors:", YAML)
    assert not found, "use failed_when, which says which failure is none:" + listed(found)


REQUIREMENTS = [path for path in FILES if path.is_relative_to(PROJECT / "requirements")]
LOCKS = [path for path in REQUIREMENTS if "--hash=" in conventions.text(path)]


def test_there_are_locks() -> None:
    assert {"requirements/controller.txt", "requirements/dev.txt", "requirements/uv.txt"} <= set(map(name, LOCKS))
    without = [
        name(path)
        for path in REQUIREMENTS
        if path.suffix == ".txt" and path not in LOCKS
        if re.search(r"(?m)^[\w.\[\]-]+==", conventions.text(path))
    ]
    assert not without, "a lock without hashes; run `make lock`:" + listed(without)


@pytest.mark.parametrize("lock", LOCKS, ids=name)
def test_a_lock_has_hashes_and_no_address(lock: Path) -> None:
    text = conventions.text(lock)
    requirements = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", text)).splitlines()
    wrong = [line[:60] for line in requirements if not re.match(r"\S+==\S+ .*--hash=sha256:[0-9a-f]{64}", line)]
    assert not wrong, f"{name(lock)}: not pinned by version and hash: {wrong}"
    assert "://" not in text, f"{name(lock)} names an address: use --no-emit-index-url, --no-annotate or --no-header"


def artifacts() -> dict[str, Any]:
    return (load(PROJECT / "group_vars/all/artifacts.yml") or {}).get("artifacts", {})


@pytest.mark.parametrize("key", sorted(artifacts()))
def test_an_artifact_is_complete(key: str) -> None:
    entry = artifacts()[key]
    missing = {"version", "url", "sha256", "size"} - set(entry)
    assert not missing, f"artifacts.yml: {key} lacks {sorted(missing)}"
    checksum, size = entry["sha256"], entry["size"]
    assert checksum is None or re.fullmatch(r"[0-9a-f]{64}", checksum), f"artifacts.yml: {key}: sha256 is no checksum"
    assert (checksum is None) == (size is None), f"artifacts.yml: {key}: run playbooks/lock.yml, it writes both"
    assert str(entry["version"]) in entry["url"], f"artifacts.yml: {key}: the URL does not carry the version"


# --- how files fit together


def test_the_site_is_a_list_of_playbooks() -> None:
    plays = load(PROJECT / "site.yml")
    imported = "ansible.builtin.import_playbook"
    assert all(set(play) == {"name", imported} for play in plays), "site.yml: only named import_playbook"
    missing = [play[imported] for play in plays if not (PROJECT / play[imported]).is_file()]
    assert not missing, f"site.yml imports {missing}, which is not there"


def test_no_variable_is_set_in_the_root_and_in_an_inventory() -> None:
    # A single host's variable wins over the root's; a group's may not.
    root = root_variables()
    found = [
        f"{file}: {key} (also in {root[key]})"
        for inventory in conventions.inventories()
        for file, keys in variables_of(inventory, of_hosts=False).items()
        for key in sorted(keys & set(root))
    ]
    assert not found, "the root's group_vars win without a word; set it in one place only:" + listed(found)


def test_no_variable_is_set_twice_in_one_place() -> None:
    problems = []
    for folder in [PROJECT, *conventions.inventories()]:
        seen: dict[str, str] = {}
        for file in sorted(folder.glob("group_vars/all/*.yml")):
            for key in load(file) or {}:
                if key in seen:
                    problems.append(f"{key}: {seen[key]} and {name(file)}")
                seen[key] = name(file)
    assert not problems, "set in two files of one folder; the last one in the alphabet wins:" + listed(problems)


def test_an_inventory_sets_only_what_something_reads() -> None:
    # Names that a role has, or that some file of the root or of the playbooks reads.
    known = set().union(*(conventions.role(role).defaults for role in conventions.ROLE_NAMES), root_variables())
    for role in conventions.ROLE_NAMES:
        known |= set().union(*conventions.role(role).uses().values())
    readers = ("group_vars", "playbooks", "molecule", ".config")
    for path in conventions.files():
        if path.suffix == ".yml" and path.relative_to(PROJECT).parts[0] in readers and path.name != "molecule.yml":
            known |= conventions.names_used(load(path))
            known |= set(re.findall(r"\['(\w+)'\]", conventions.text(path)))
    problems = []
    for inventory in conventions.inventories():
        local = variables_of(inventory)
        used_here = set().union(*(conventions.names_used(load(PROJECT / file)) for file in local))
        problems += [
            f"{file}: {key}"
            for file, keys in local.items()
            for key in sorted(keys - known - used_here)
            if not key.startswith("ansible_")
        ]
    assert not problems, "nothing reads this; misspelt?" + listed(problems)


@pytest.mark.parametrize("inventory", conventions.inventories(), ids=name)
def test_every_inventory_has_all_groups(inventory: Path) -> None:
    groups = inventory / "groups.yml"
    assert groups.exists(), f"{name(inventory)}: ln -s ../groups.yml (an unknown group is no error for Ansible)"
    assert groups.resolve() == PROJECT / "inventories/groups.yml", (
        f"{name(groups)} must be a link to inventories/groups.yml"
    )


def test_links_lead_somewhere() -> None:
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=PROJECT, capture_output=True, check=True, text=True
    )
    broken = [
        path for path in listing.stdout.split() if (PROJECT / path).is_symlink() and not (PROJECT / path).exists()
    ]
    assert not broken, f"links to nowhere: {broken}"


def test_the_shipped_inventories_are_valid(tmp_path: Path) -> None:
    """Each passes its own validation, which needs no host."""
    runs = {}
    for site in ("prod", "example"):
        command = [
            str(Path(sys.executable).parent / "ansible-playbook"),
            *("playbooks/validate.yml", "-i", f"inventories/{site}"),
            *("-e", f"secrets_dir={tmp_path / site}"),
        ]
        runs[site] = subprocess.Popen(
            command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True
        )
    for site, process in runs.items():
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, f"inventories/{site}:\n{output}"


# --- documents

FOLDERS = "roles|playbooks|inventories|tools|docs|group_vars|tests|requirements|plugins|molecule"
DOCUMENTS = [path for path in OURS if path.suffix == ".md"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_a_document_points_to_what_is_there(document: Path) -> None:
    text = re.sub(r"(?ms)^```.*?^```", "", conventions.text(document))
    text = re.sub(r"(?s)<!--.*?-->", "", text)
    problems = []
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target and not (document.parent / target).exists():
            problems.append(f"the link {target}")
    for mentioned in re.findall(rf"`((?:{FOLDERS})/[\w./-]+)`", text):
        if "secrets" not in mentioned and "NAME" not in mentioned and not (PROJECT / mentioned).exists():
            problems.append(f"the file {mentioned}")
    targets = set(re.findall(r"(?m)^([a-z-]+):", (PROJECT / "Makefile").read_text()))
    problems += [f"`make {goal}`" for goal in re.findall(r"`make ([a-z-]+)", text) if goal not in targets]
    for file, function in re.findall(r"`(test_\w+\.py)::(test_\w+)`", text):
        if not any(path.name == file and f"def {function}(" in conventions.text(path) for path in OURS):
            problems.append(f"the test {file}::{function}")
    assert not problems, f"{name(document)} names what does not exist:" + listed(problems)


def test_what_documents_can_compute_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "tools/docs", "--check"], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
