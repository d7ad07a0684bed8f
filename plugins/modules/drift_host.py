#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: drift_host
short_description: Looks on a host for differences that no task would see
version_added: 0.2.0
author: The onprem.llm developers
description:
  - Looks for units that are masked, replaced or changed by a drop-in; for members of groups and for open ports that
    nobody declared; for packages of another origin and files of packages that changed; for firewall rules that are not
    the file's; for files where only ours may be, and folders in which others may exchange them; for installed versions
    that changed afterwards.
  - Run it as root. It only reads.
attributes:
  check_mode: {support: full, description: It only reads.}
  diff_mode: {support: none, description: The differences are in the result.}
  idempotent: {support: full, description: It changes nothing.}
options:
  host: {description: Name of the host in the result., type: str, required: true}
  files: {description: Files that tasks answer for., type: list, elements: path, default: []}
  units: {description: Units that tasks answer for., type: list, elements: str, default: []}
  packages: {description: Packages that tasks answer for., type: list, elements: str, default: []}
  groups: {description: Groups that tasks answer for., type: list, elements: str, default: []}
  ports: {description: TCP ports on which something may listen., type: list, elements: int, default: []}
  folders:
    description: Folders, or patterns of them, in which only I(files) may be. Empty looks at none.
    type: list
    elements: str
    default: []
  blank_files:
    description: Files, or patterns, that may hold comments only, at least after C(include_dir = 'conf.d').
    type: list
    elements: str
    default: []
  trees: {description: Folder of installed versions., type: path, required: true}
  firewall: {description: File with the firewall rules., type: path, required: true}
"""

EXAMPLES = r"""
- name: Look where no task looks
  onprem.llm.drift_host:
    host: "{{ inventory_hostname }}"
    files: [/etc/nginx/nginx.conf]
    units: [nginx.service]
    packages: [nginx-light]
    ports: [22, 80, 443]
    folders: [/etc/onprem-llm]
    trees: /opt/onprem-llm
    firewall: /etc/onprem-llm/firewall/firewall.nft
"""

RETURN = r"""
differences:
  description: What was found; C(what), C(how), C(found_by), C(diff), C(host) of each.
  type: list
  elements: dict
  returned: success
"""

import glob
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import config_files
from ansible_collections.onprem.llm.plugins.module_utils.doctor import sockets
from ansible_collections.onprem.llm.plugins.module_utils.doctor import units as doctor_units
from ansible_collections.onprem.llm.plugins.module_utils.drift import host as judge
from ansible_collections.onprem.llm.plugins.module_utils.drift.difference import Difference

# The last of the markers is written by the run that ends the installation; what it still does takes less than this.
MARKERS = (".complete", ".verified")
SETTLED = 5.0
# What an earlier release wrote into versions.
KNOWN = (".proofs",)
PACKAGE = r"${Package}\t${db:Status-Status}\t${source:Package}\t${Pre-Depends}, ${Depends}\n"
TABLE = "nft --stateless --terse list table inet onprem_llm"


def walk(folder: str) -> Iterator[str]:
    """Every file and link below a folder."""
    for where, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(where, name))]
        yield from (os.path.join(where, name) for name in [*names, *links])


def folders(patterns: list[str], trees: str) -> Iterator[str]:
    """Those in which only our files may be, and those of installed versions."""
    for pattern in patterns:
        yield from (where for top in glob.glob(pattern) for where, _, _ in os.walk(top))
    for path in (trees, *glob.glob(f"{trees}/*"), *glob.glob(f"{trees}/*/*")):
        if os.path.isdir(path) and (path == trees or not os.path.islink(path)):
            yield os.path.realpath(path)


def kept_shut(host: str, path: str) -> list[Difference]:
    now, above = os.stat(path), config_files.name_of_user(os.stat(os.path.dirname(path)).st_uid)
    owner, group = config_files.name_of_user(now.st_uid), config_files.name_of_group(now.st_gid)
    return judge.folder(host, path, stat.S_IMODE(now.st_mode), owner, group, above)


def members() -> dict[str, list[str]]:
    """Who is in each group, by its list or as the user's own."""
    found = {one.gr_name: list(one.gr_mem) for one in grp.getgrall()}
    for user in pwd.getpwall():
        name = config_files.name_of_group(user.pw_gid)
        found.setdefault(name, []).append(user.pw_name)
    return found


def installed(root: str) -> float:
    """When a version was complete."""
    return max(os.lstat(path).st_ctime for name in MARKERS if os.path.exists(path := os.path.join(root, name)))


def changed_in(root: str) -> Iterator[tuple[str, float]]:
    """Files and folders of an installed version, and when each changed; Python's own cache is nobody's change."""
    for where, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name != "__pycache__"]
        # The folder itself, by which a file that went is known; its own name may have changed since its last file came.
        if where == root:
            if not set(KNOWN) & set(names):
                yield "./", os.lstat(where).st_mtime
        else:
            yield os.path.relpath(where, root) + "/", os.lstat(where).st_ctime
        for name in names if where != root else set(names).difference(KNOWN):
            path = os.path.join(where, name)
            yield os.path.relpath(path, root), os.lstat(path).st_ctime


def look(module: AnsibleModule) -> list[Difference]:
    p = module.params
    host, files, all_members = p["host"], set(p["files"]), members()

    def said(*command: str) -> str:
        return str(module.run_command(list(command), environ_update={"LC_ALL": "C"})[1])

    def rules(*before: str) -> str:
        """The loaded table; in a namespace of its own, with no other rules, after a command."""
        if not before:
            return said(*TABLE.split())
        return said("unshare", "--net", "sh", "-c", f'"$@" && {TABLE}', "sh", *before)

    def units(names: list[str]) -> list[dict[str, str]]:
        properties = ",".join(judge.UNIT_PROPERTIES)
        return doctor_units.parse(said("systemctl", "show", f"--property={properties}", "--", *names)) if names else []

    names = [doctor_units.full(name) for name in p["units"]]
    shown = units(names)
    found = judge.units(host, shown, files)
    found += judge.users(host, (unit.get("User", "") for unit in shown), all_members)
    # What a timer or another unit starts need not run.
    beside = judge.written(files) - {*names, *(unit.get("Id", "") for unit in shown)}
    found += [one for one in judge.units(host, units(sorted(beside)), files) if one.how != judge.DOWN]
    owners = {config_files.name_of_group(os.lstat(path).st_gid) for path in files if os.path.lexists(path)}
    found += judge.groups(host, owners | set(p["groups"]), all_members)
    if p["packages"]:
        packages = judge.kin(p["packages"], said("dpkg-query", "--show", f"--showformat={PACKAGE}"))
        found += judge.packages(host, said("apt-cache", "policy", *packages))
        found += judge.verified(host, said("dpkg", "--verify", *packages), files)
    found += judge.ports(host, sockets.listeners(), set(p["ports"]))
    if os.path.exists(p["firewall"]):
        found += judge.rules(host, p["firewall"], rules("nft", "--file", p["firewall"]), rules())
    inside = [path for pattern in p["folders"] for folder in glob.glob(pattern) for path in walk(folder)]
    found += judge.foreign(host, inside, files)
    found += [one for path in folders(p["folders"], p["trees"]) for one in kept_shut(host, path)]
    for pattern in p["blank_files"]:
        for path in glob.glob(pattern):
            found += judge.blank(host, path, Path(path).read_text(errors="replace"))
    for marker in glob.glob(f"{p['trees']}/*/*/.complete"):
        root = os.path.dirname(marker)
        if not os.path.islink(root):
            found += judge.tree(host, root, installed(root) + SETTLED, changed_in(root))
    return found


def main() -> None:
    names = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            "host": {"type": "str", "required": True},
            "files": {"type": "list", "elements": "path", "default": []},
            "units": names,
            "packages": names,
            "groups": names,
            "ports": {"type": "list", "elements": "int", "default": []},
            "folders": names,
            "blank_files": names,
            "trees": {"type": "path", "required": True},
            "firewall": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        found = look(module)
    except OSError as error:
        module.fail_json(msg=f"the look at {module.params['host']} ended early: {error}")
    module.exit_json(changed=False, differences=[one.as_dict() for one in found])


if __name__ == "__main__":
    main()
