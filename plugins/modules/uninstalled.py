#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: uninstalled
short_description: Takes away from a host what came with a role, as far as it was not there before
version_added: 0.1.0
author: The onprem.llm developers
description:
  - What M(onprem.llm.host_before) wrote down decides. Units that were there before run again as they did; files that
    were there are put back, once; from then on they are the operator's, until the role is installed again. Packages,
    users and groups that were there stay.
  - Packages go when nothing that stays needs them, with what came along with them. Kernels never go.
  - Without a record no package, user or group goes.
  - The order is units, files, packages, users. A call that broke off is finished by the next one.
attributes:
  check_mode: {support: full, description: Says what would go.}
  diff_mode: {support: full, description: Lists what goes.}
  idempotent: {support: full, description: What is gone is no change.}
options:
  before: {description: Folder of the record., type: path, required: true}
  units: {description: Units to stop and disable\; patterns., type: list, elements: str, default: []}
  paths:
    description: Files and folders to remove, or to put back as they were; patterns. What is mounted inside stays.
    type: list
    elements: str
    default: []
  data: {description: Likewise, with consent only., type: list, elements: str, default: []}
  consent: {description: Whether data goes too., type: bool, default: false}
  empty:
    description: Folders that go when nothing is left in them, inner ones first.
    type: list
    elements: path
    default: []
  packages: {description: Packages\; names and patterns., type: list, elements: str, default: []}
  staying: {description: Packages that other roles of the host need\; patterns., type: list, elements: str, default: []}
  users: {description: Users. One whose data stays does too., type: list, elements: str, default: []}
  groups: {description: Groups., type: list, elements: str, default: []}
  accounts:
    description: Users and groups that packages leave behind, each with its package; they go when that is gone.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Take the web server away
  onprem.llm.uninstalled:
    before: /var/lib/onprem-llm/before
    units: [nginx.service]
    paths: [/etc/nginx/nginx.conf, /etc/onprem-llm/nginx]
    packages: [nginx-light]
"""

RETURN = r"""
gone:
  description: What went, or would go, one line each.
  returned: success
  type: list
  elements: str
kept:
  description: What stayed although it was named, and why, one line each.
  returned: success
  type: list
  elements: str
"""

import fnmatch
import os
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils.uninstall import before, files, packages

ENABLED = "/etc/systemd/system"
#: In the path of a file of ours that every role has beside those of the distribution that it replaces.
OURS = "onprem-llm"


class Host:
    """What goes from it, thing by thing; in check mode only said."""

    def __init__(self, module: AnsibleModule, record: before.Before | None) -> None:
        self.module = module
        self.record = record or before.Before()
        self.known = record is not None
        self.folder = Path(module.params["before"])
        self.act = not module.check_mode
        self.copies = self.folder / before.COPIES
        self.returned = self.folder / before.RETURNED
        self.again = False
        self.gone: list[str] = []
        self.kept: list[str] = []

    def run(self, *words: str, check: bool = True) -> str:
        surroundings = {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        return str(self.module.run_command(list(words), check_rc=check, environ_update=surroundings)[1])

    def do(self, *words: str, check: bool = True) -> None:
        if self.act:
            self.run(*words, check=check)

    # --- units

    def units(self, patterns: list[str]) -> None:
        for name in self.loaded(patterns):
            if self.record.had_unit(name):
                continue
            said = self.run("systemctl", "show", "--property=ActiveState,UnitFileState", name)
            state = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
            active = state.get("ActiveState") not in ("inactive", "failed", None)
            enabled = state.get("UnitFileState") in ("enabled", "enabled-runtime")
            if active or enabled:
                self.gone.append(f"unit {name}: stopped and disabled")
                self.do("systemctl", "disable", "--now", name)
            self.do("systemctl", "reset-failed", name, check=False)
        # systemd knows no unit whose file somebody removed, and leaves what enabled it.
        wanting = [f"{ENABLED}/*.{one}/{name}" for one in ("wants", "requires") for name in patterns]
        for path in files.dangling(wanting):
            if not self.record.had_unit(Path(path).name):
                self.gone.append(path)
                if self.act:
                    os.unlink(path)

    def as_before(self, patterns: list[str]) -> None:
        """Units that were here before take up what was put back, and run if they ran."""
        for name in self.loaded(patterns):
            if not self.record.had_unit(name):
                continue
            if self.record.units.get(name) in ("enabled", "disabled"):
                self.do("systemctl", self.record.units[name].removesuffix("d"), name)
            self.do("systemctl", "restart" if name in self.record.running else "stop", name)

    def loaded(self, patterns: list[str]) -> list[str]:
        """Units that match, whether they run or are only on the disk."""
        plain = ("--no-legend", "--no-pager", "--plain", "--all")
        said = self.run("systemctl", "list-units", *plain) + self.run("systemctl", "list-unit-files", *plain[:3])
        names = {line.split()[0] for line in said.splitlines() if line.strip()}
        return sorted(
            name for name in names if "@." not in name and any(fnmatch.fnmatchcase(name, one) for one in patterns)
        )

    # --- files

    def paths(self, patterns: list[str]) -> int:
        """How many changed."""
        changed = 0
        copies = self.theirs(patterns)
        returned = files.copied(patterns, self.returned)
        for path, copy in sorted(copies.items()):
            if not files.same(copy, path):
                self.gone.append(f"{path}: put back as it was")
                changed += 1
                if self.act:
                    files.put_back(copy, path)
        for path in files.existing(patterns):
            if path not in copies and path not in returned:
                goes, stays = files.remove(path, self.act)
                if goes:
                    self.gone.append(path)
                    changed += 1
                self.kept += [f"{one}: something is mounted there" for one in stays]
        return changed

    def theirs(self, patterns: list[str]) -> dict[str, Path]:
        """What is to be put back, and its copy."""
        again = files.copied(patterns, self.returned) if self.again else {}
        return again | files.copied(patterns, self.copies)

    def give_back(self, paths: list[str]) -> None:
        """Of these, what was put back is the operator's again: no later call touches it."""
        for copy in files.copied(paths, self.copies).values() if self.act else ():
            files.shelve(copy, self.copies, self.returned)

    def take_again(self, paths: list[str]) -> None:
        """A role that was installed again without asking host_before has replaced what was put back."""
        self.again = True
        for copy in files.copied(paths, self.returned).values() if self.act else ():
            files.shelve(copy, self.returned, self.copies)

    def data(self, patterns: list[str], units: list[str], consent: bool) -> bool:
        """Whether data stays. What a service holds that was here before us is not ours, consent or not."""
        there = files.existing(patterns)
        foreign = [name for name in self.loaded(units) if self.foreign(name)]
        if there and foreign:
            self.kept += [f"{path}: data of {foreign[0]}, which was not brought by onprem.llm" for path in there]
        elif consent:
            self.paths(patterns)
            return False
        else:
            self.kept += [f"{path}: data, which goes with consent only (uninstall_data=true)" for path in there]
        return bool(there)

    def foreign(self, unit: str) -> bool:
        """Was it here before us? Where nobody wrote that down: is it the distribution's?"""
        if self.known:
            return self.record.had_unit(unit)
        return not self.run("systemctl", "show", "--property=FragmentPath", "--value", unit).startswith("/etc/")

    def empty(self, folders: list[str]) -> None:
        for folder in files.empty(folders):
            self.gone.append(folder)
            if self.act:
                Path(folder).rmdir()

    # --- packages

    def packages(self, wanted: list[str], staying: list[str]) -> None:
        if not wanted:
            return
        native = self.run("dpkg", "--print-architecture").strip()
        there = packages.parse(self.run("dpkg-query", "--show", f"--showformat={packages.SHOW}"), native)
        if not self.known:
            ours = sorted(packages.matching(wanted, there) - packages.matching(staying, there))
            self.kept += [f"package {one}: nobody wrote down whether it was here before" for one in ours]
            return
        automatic = self.run("apt-mark", "showauto").split()
        # What a call that broke off had set out to purge, and files that were there when it did.
        unfinished = self.folder / "going"
        begun = unfinished.read_text().splitlines() if unfinished.exists() else []
        copies = files.held(self.copies) | files.held(self.returned)
        found = [path for path in copies if path in begun or os.path.lexists(path)]
        also_wanted = [one for one in begun if not one.startswith("/")]
        going = packages.going(there, automatic, self.record.packages, [*wanted, *also_wanted], staying)
        if going:
            apt = ("apt-get", "--assume-yes", "--no-auto-remove", "--allow-change-held-packages")
            simulated = self.run(*apt, "--simulate", "purge", *going)
            also = packages.blocked(going, simulated)
            if also:
                self.module.fail_json(
                    msg=f"apt would remove {', '.join(also)} with {', '.join(going)}, and that was not brought by "
                    "onprem.llm. No package was removed. Remove what needs ours yourself (`apt-get --simulate purge "
                    "NAME` shows it), then run this again."
                )
            self.gone += [f"package {one}" for one in going]
            if self.act:
                unfinished.write_text("\n".join([*going, *found]))
                self.run(*apt, "-o", "DPkg::Lock::Timeout=600", "purge", *going)
        if self.act:
            # What a package took with it although it was here before. What a role or somebody else removed stays away.
            for path in found:
                if not os.path.lexists(path):
                    files.put_back(copies[path], path)
            unfinished.unlink(missing_ok=True)
        # Asking apt for a package that is there makes it one that somebody wanted.
        marked = sorted((packages.matching(wanted, there) & set(self.record.automatic)) - set(automatic) - set(going))
        if marked:
            self.gone += [f"package {one}: automatic again" for one in marked]
            self.do("apt-mark", "auto", *marked)

    # --- users

    def left_behind(self, accounts: dict[str, str]) -> None:
        said = self.run("dpkg-query", "--show", f"--showformat={packages.SHOW}")
        there = packages.parse(said, self.run("dpkg", "--print-architecture").strip())
        for name, package in accounts.items():
            if package not in there and package not in self.record.packages:
                self.accounts("user", [name])
                self.accounts("group", [name])

    def accounts(self, kind: str, names: list[str]) -> None:
        old = self.record.users if kind == "user" else self.record.groups
        listed = Path("/etc/passwd" if kind == "user" else "/etc/group").read_text()
        there = {line.split(":")[0] for line in listed.splitlines()}
        for name in names:
            if name in there and self.known and name not in old:
                self.gone.append(f"{kind} {name}")
                self.do(f"{kind}del", name)


def main() -> None:
    lists = ("units", "paths", "data", "packages", "staying", "users", "groups")
    module = AnsibleModule(
        argument_spec={
            "before": {"type": "path", "required": True},
            "consent": {"type": "bool", "default": False},
            "empty": {"type": "list", "elements": "path", "default": []},
            "accounts": {"type": "dict", "default": {}},
            **{name: {"type": "list", "elements": "str", "default": []} for name in lists},
        },
        supports_check_mode=True,
    )
    p: dict[str, Any] = module.params
    try:
        host = Host(module, before.read(Path(p["before"])))
        # Before anything: what must not go ends the task.
        files.existing([*p["paths"], *p["data"]])
        if any(OURS in path for path in files.existing(p["paths"])):
            host.take_again([*p["paths"], *p["data"]])
        host.units(p["units"])
        replaced = host.theirs([*p["paths"], *p["data"]])
        # A copy that is still there: a call broke off before the unit ran with it.
        if host.paths([*p["paths"], *replaced]) or replaced:
            host.do("systemctl", "daemon-reload")
            host.as_before(p["units"])
            host.give_back(list(replaced))
        host.packages(p["packages"], p["staying"])
        stays = host.data(p["data"], p["units"], p["consent"])
        if not stays:
            host.accounts("user", p["users"])
            host.accounts("group", p["groups"])
        if p["accounts"]:
            host.left_behind(p["accounts"])
        host.empty(p["empty"])
    except (before.BeforeError, files.FilesError, OSError) as error:
        module.fail_json(msg=str(error))
    for one in host.kept:
        module.warn(f"Kept {one}")
    listed = "".join(f"{one}\n" for one in host.gone)
    module.exit_json(
        changed=bool(host.gone),
        gone=host.gone,
        kept=host.kept,
        diff={"before_header": "what goes", "after_header": "what goes", "before": listed, "after": ""}
        if listed
        else {},
    )


if __name__ == "__main__":
    main()
