# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a playbook in check mode through ansible-runner, and reads its events."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from ansible import context
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible.utils.path import unfrackpath

from ansible_collections.onprem.llm.plugins.module_utils.drift import events

try:
    import ansible_runner
except ImportError:
    ansible_runner = None

ASKS = ("ask_pass", "become_ask_pass", "ask_vault_pass")
PROMPTS = ("prompt", "prompt_ask_vault_pass")
OPTIONS = {
    "private_key_file": "--private-key",
    "remote_user": "--user",
    "connection": "--connection",
    "connection_password_file": "--connection-password-file",
    "timeout": "--timeout",
    "ssh_common_args": "--ssh-common-args",
    "ssh_extra_args": "--ssh-extra-args",
    "become_method": "--become-method",
    "become_user": "--become-user",
    "become_password_file": "--become-password-file",
    "forks": "--forks",
}


class DriftError(Exception):
    """The look cannot be made. The text says why and what to do."""


def passed_on(given: Any) -> list[str]:
    """Arguments of the present run that the check needs too."""
    asks = [f"--{name.replace('_', '-')}" for name in ASKS if given.get(name)]
    asks += [f"--vault-id {one}" for one in given.get("vault_ids") or () if str(one).split("@", 1)[-1] in PROMPTS]
    if asks:
        raise DriftError(
            f"{asks[0]}: the check runs by itself and cannot ask. Use a key for ssh, sudo without "
            "a password, and --vault-password-file."
        )
    words = ["--check", "--diff"]
    # In one word: the value may begin with a dash.
    words += [f"{option}={given[name]}" for name, option in OPTIONS.items() if given.get(name)]
    words += ["--become"] if given.get("become") else []
    for name, option in (("inventory", "--inventory"), ("vault_ids", "--vault-id")):
        words += [word for one in given.get(name) or () for word in (option, str(one))]
    for path in given.get("vault_password_files") or ():
        words += ["--vault-password-file", str(path)]
    for one in given.get("extra_vars") or ():
        words += ["--extra-vars", f"@{unfrackpath(one[1:])}" if one.startswith("@") else one]
    return words


def stages(playbook: Path) -> list[tuple[Path, list[str]]]:
    """The playbooks that a playbook imports, in order, each with the names of its plays."""
    found = []
    for entry in yaml.safe_load(playbook.read_text()):
        path = playbook.parent / entry["ansible.builtin.import_playbook"]
        found.append((path, [str(play.get("name")) for play in yaml.safe_load(path.read_text())]))
    return found


class ActionModule(ActionBase):
    _requires_connection = False
    _VALID_ARGS = frozenset(("playbook",))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        result["changed"] = False
        playbook = Path(self._task.args["playbook"]).resolve()
        try:
            if ansible_runner is None:
                raise DriftError(
                    "ansible-runner is not installed beside Ansible. It is in requirements/controller.txt."
                )
            words = passed_on(context.CLIARGS)
            limit = context.CLIARGS.get("subset") or ""
            looked = self.check(playbook, words, limit)
            self.go_on(playbook, words, looked)
        except (DriftError, OSError) as error:
            return {**result, "failed": True, "msg": str(error)}
        return {
            **result,
            "differences": [one.as_dict() for one in dict.fromkeys(looked.differences)],
            "not_looked_at": [one.as_dict() for one in looked.broken],
            "known": {host: known.as_dict() for host, known in looked.known.items()},
        }

    def go_on(self, playbook: Path, words: list[str], looked: events.Looked) -> None:
        """Run the later stages for the hosts that fell out, and add what they tell."""
        plays = stages(playbook)
        fell_out: dict[int, list[str]] = {}
        for host, play in looked.broken_in.items():
            stage = next((number for number, (_, names) in enumerate(plays) if play in names), len(plays))
            fell_out.setdefault(stage, []).append(host)
        for first, hosts in fell_out.items():
            for path, _ in plays[first + 1 :]:
                # That a host cannot be reached is said once.
                hosts = [host for host in hosts if host not in looked.unreachable]
                if not hosts:
                    break
                more = self.check(path, words, ",".join(hosts))
                looked.unreachable |= more.unreachable
                looked.differences += more.differences
                looked.broken += [one for one in more.broken if one.host in hosts]
                for host, known in more.known.items():
                    for name, values in vars(known).items():
                        getattr(looked.known.setdefault(host, events.Known()), name).update(values)

    def check(self, playbook: Path, words: list[str], limit: str) -> events.Looked:
        """One run to its end."""
        display, seen = Display(), []

        def take(event: dict[str, Any]) -> bool:
            seen.append(event)
            if event.get("event") == "playbook_on_play_start":
                display.display(f"drift: {event['event_data'].get('name')}", color="dark gray")
            return False

        with tempfile.TemporaryDirectory(prefix="drift.") as folder:
            done = ansible_runner.run(
                private_data_dir=folder,
                project_dir=os.getcwd(),
                playbook=os.fspath(playbook),
                cmdline=shlex.join([*words, *(["--limit", limit] if limit else [])]),
                envvars={"PATH": f"{os.path.dirname(sys.executable)}:{os.environ.get('PATH', '')}"},
                event_handler=take,
                quiet=True,
                settings={"idle_timeout": 0},
            )
            said = done.stdout.read() if done.status != "successful" else ""
        looked = events.read(seen)
        if done.rc and not looked.broken:
            raise DriftError(f"{playbook} did not run: {' '.join(said.split())[-2000:]}")
        return looked
