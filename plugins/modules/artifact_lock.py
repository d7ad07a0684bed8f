#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fill in what a lock file does not know yet."""

from __future__ import annotations

DOCUMENTATION = r"""
module: artifact_lock
short_description: Resolve checksums, sizes and commits of a lock file
version_added: 0.1.0
author: The onprem.llm developers
description:
  - In a file of artifacts, every entry with C(sha256) null is downloaded once, and its sha256 and size are written.
  - In a model catalogue, every C(revision) that is not a commit is resolved to one by asking the hub.
  - Only those values change in the file. What could be resolved is written even when one source fails; the
    module then fails and names the rest.
  - Runs on the controller, which needs PyYAML (a part of every Ansible installation).
attributes:
  check_mode:
    support: partial
    description: Names the entries that would be resolved. Their values are unknown, because the network is not used.
  diff_mode:
    support: full
    description: Shows the file before and after; in check mode with a question mark for the values.
  idempotent: {support: full, description: A resolved entry is not looked at again.}
options:
  path: {description: The file., type: path, required: true}
  kind:
    description: What the file holds.
    type: str
    required: true
    choices: [artifacts, catalogue]
  only: {description: Resolve this entry only., type: str, default: ''}
  mirror: {description: Address of a mirror for artifacts., type: str, default: ''}
  sources:
    description: Where models come from, NAME to {C(type), C(url)}. Entries from a directory or a mirror are left alone.
    type: dict
    default: {}
  attempts: {description: Attempts in a row without progress before giving up., type: int, default: 5}
  timeout: {description: Seconds without a byte before an attempt is given up., type: int, default: 60}
"""

EXAMPLES = r"""
- name: Resolve the artifacts
  onprem.llm.artifact_lock:
    path: group_vars/all/artifacts.yml
    kind: artifacts
"""

RETURN = r"""
resolved: {description: The entries that were\, or would be\, resolved., type: list, elements: str, returned: success}
"""

import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import artifacts, hubs, transfer

try:
    import yaml
except ImportError:
    yaml = None  # type: ignore[assignment]


def wants(entry: artifacts.Entry, kind: str, sources: dict[str, Any]) -> bool:
    """Whether the entry lacks what the lock would fill in."""
    if kind == "artifacts":
        return entry.values.get("sha256") is None
    # A model with variants has no files of its own.
    if "revision" not in entry.spans:
        return False
    source = sources.get(str(entry.values.get("source")), {})
    return source.get("type") in ("modelscope", "huggingface") and not hubs.is_commit(str(entry.values.get("revision")))


def artifact(entry: artifacts.Entry, mirror: str, source: transfer.Source) -> dict[str, str]:
    """sha256 and size, by fetching the file once."""
    url = entry.values.get("url")
    if not isinstance(url, str) or not url:
        raise artifacts.ArtifactError(f"has no 'url' in the entry '{entry.name}'")
    with tempfile.TemporaryDirectory(prefix="onprem-llm-lock-") as folder:
        target = Path(folder) / "artifact"
        received = transfer.download(artifacts.mirrored(url, mirror), target, source)
        with open(target, "rb") as file:
            problem = artifacts.not_what_it_says(url, file.read(512))
    if problem:
        raise artifacts.ArtifactError(f"{transfer.redact(url)}: {problem}")
    return {"sha256": received.sha256, "size": str(received.size)}


def commit(
    entry: artifacts.Entry, sources: dict[str, Any], source: transfer.Source, known: dict[hubs.Hub, str]
) -> dict[str, str]:
    """The commit of a catalogue entry's revision. Variants often share a repository, so what was asked is kept."""
    of = sources[entry.values["source"]]
    hub = hubs.Hub(of["type"], str(of.get("url")), str(entry.values.get("repo")), str(entry.values.get("revision")))
    if hub not in known:
        known[hub] = hub.commit(lambda url: transfer.fetch_text(url, source))
    return {"revision": known[hub]}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "kind": {"type": "str", "required": True, "choices": ["artifacts", "catalogue"]},
            "only": {"type": "str", "default": ""},
            "mirror": {"type": "str", "default": ""},
            "sources": {"type": "dict", "default": {}},
            "attempts": {"type": "int", "default": 5},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    p = module.params
    path, kind = Path(p["path"]), p["kind"]
    source = transfer.Source(attempts=p["attempts"], timeout=p["timeout"])
    if yaml is None:
        module.fail_json(msg="PyYAML is missing: run this on the controller, with Ansible's own Python")
    try:
        text = path.read_text(encoding="utf-8")
        known = artifacts.entries(text, kind, yaml)
        if p["only"] and p["only"] not in [entry.name for entry in known]:
            names = ", ".join(dict.fromkeys(entry.name for entry in known))
            raise artifacts.ArtifactError(f"has no entry '{p['only']}'. It has: {names}")
        todo = [entry for entry in known if p["only"] in ("", entry.name) and wants(entry, kind, p["sources"])]
        fields = ("sha256", "size") if kind == "artifacts" else ("revision",)
        changes: list[tuple[artifacts.Entry, dict[str, str]]] = []
        commits: dict[hubs.Hub, str] = {}
        failures: list[str] = []
        for entry in todo:
            if module.check_mode:
                changes.append((entry, dict.fromkeys(fields, "?")))
                continue
            # One source that cannot be reached shall not cost the others; what came from them is kept.
            try:
                found = (
                    artifact(entry, p["mirror"], source)
                    if kind == "artifacts"
                    else commit(entry, p["sources"], source, commits)
                )
                changes.append((entry, found))
            except (artifacts.ArtifactError, transfer.TransferError, hubs.HubError) as error:
                failures.append(f"{entry.name}: {error}")
        after = artifacts.replace(text, list(changes))
        if changes and not module.check_mode:
            transfer.write_atomically(path, after, path.stat().st_mode & 0o777)
    except artifacts.ArtifactError as error:
        module.fail_json(msg=f"{path} {error}")
    except OSError as error:
        module.fail_json(msg=f"{path} is not changed: {error}")
    resolved = list(dict.fromkeys(entry.name for entry, _ in changes))
    if failures:
        kept = f"has new values for {', '.join(resolved)}" if resolved else "is not changed"
        module.fail_json(msg=f"{path} {kept}; not resolved:\n" + "\n".join(failures), resolved=resolved)
    module.exit_json(
        changed=bool(todo),
        resolved=resolved,
        diff={"before_header": str(path), "after_header": str(path), "before": text, "after": after},
    )


if __name__ == "__main__":
    main()
