#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""From one version of Open WebUI to another, and back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: openwebui_switch
short_description: Changes the version of Open WebUI that serves, in steps that a later run can take up
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Each state is a step of a change. What must come between them, such as the dump of a database that may be on another
    host, is done by other tasks. What is begun is written down first, in I(kept)/record.json and as a debt of the host.
  - The new version is tried as a unit of its own, on a port that nobody knows, before people reach it. When it fails,
    nothing is lost but the trial.
attributes:
  check_mode: {support: partial, description: V(compared) and V(settled) say what is; the other steps do nothing.}
  diff_mode: {support: none, description: It shows no files.}
  idempotent: {support: full, description: A step that was taken is taken again without harm.}
options:
  state:
    description:
      - V(compared) says what is to be done for I(name). V(asked) says which PostgreSQL I(environment) leads to.
      - V(found) writes down that the database was not new, and kept as I(dump), before the first version here starts.
      - V(stopped) stops and disables the service, and keeps what people uploaded as I(dump).
      - V(armed) says that the data may be touched from now on, and puts the uploads of I(restores) in their place.
      - V(tried) starts I(name) as I(unit) on a free port, and asks for its readiness, its schema and a login.
      - V(passed) moves the pointer to it. The service itself is started by who configures it.
      - V(withdrawn) ends the trial. V(back) puts the pointer and the uploads back and starts the version before.
      - V(settled) writes down what serves, and removes I(environment).
      - V(pruned) removes uploads that nothing needs any more.
    type: str
    choices: [compared, asked, found, stopped, armed, tried, passed, withdrawn, back, settled, pruned]
    required: true
  root: {description: Folder of the versions., type: path, required: true}
  facts: {description: The host's local facts., type: path, default: /etc/ansible/facts.d/onprem_llm.fact}
  name: {description: Folder name of the version that is wanted., type: str, default: ''}
  dump: {description: Name under which the data are kept., type: str, default: ''}
  restores: {description: Name of the data that a way back brings; empty for an upgrade., type: str, default: ''}
  data: {description: Folder whose C(uploads) people fill., type: path, default: /var/lib/openwebui}
  kept: {description: Folder of the record and of what is kept., type: path, default: /var/lib/onprem-llm/openwebui}
  keep: {description: How many versions are kept\, the one that serves among them., type: int, default: 2}
  unit: {description: Text of the trial's unit; C(@PORT@) becomes its port., type: str, default: ''}
  environment: {description: Environment file of the trial., type: path}
  email: {description: Login of the administrator., type: str, default: ''}
  password: {description: Password of the administrator., type: str, default: ''}
  port: {description: Port of the service., type: int, default: 3000}
  timeout: {description: Seconds a version may take until it answers., type: int, default: 600}
  why: {description: Why the version before is put back., type: str, default: ''}
"""

EXAMPLES = r"""
- name: Compare
  onprem.llm.openwebui_switch:
    state: compared
    root: /opt/onprem-llm/openwebui
    name: 0.12.4-py3.11-0123abcd
"""

RETURN = r"""
current: {description: The version that the pointer leads to., type: str, returned: always}
plan:
  description: "What is to be done: serves, withdraw, switch, dump, restores, back_to, resumes."
  returned: when compared
  type: dict
built: {description: Whether I(name) is there and complete., type: bool, returned: when compared}
restore: {description: The dump that must be restored now\, or nothing., type: str, returned: when withdrawn}
cluster: {description: System identifier of the database's server., type: str, returned: when asked}
dumps: {description: Names of the dumps still needed., type: list, elements: str, returned: when back or settled}
spare: {description: Whether something is kept that nothing needs., type: bool, returned: when settled}
why: {description: What I(why) said., type: str, returned: when withdrawn}
needed: {description: Versions that a way back needs., type: list, elements: str, returned: when settled}
seconds: {description: How long it took until the version answered., type: float, returned: when tried}
"""

import dataclasses
import json
import os
import shutil
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import (
    config_files,
    local_facts,
    openwebui_env,
    openwebui_switch,
    service,
    systemctl,
    transfer,
)
from ansible_collections.onprem.llm.plugins.module_utils.openwebui_switch import Record, SwitchError

UNIT = "openwebui.service"
TRIAL = "openwebui-trial.service"
TRIAL_FILE = Path("/run/systemd/system") / TRIAL
COMPONENT = "openwebui"
# With the application's own driver and address, so that it is the database it sees.
ASK = """
import os, sys, psycopg
with psycopg.connect(os.environ["DATABASE_URL"]) as database:
    print(*(row[0] for row in database.execute(sys.argv[1])))
"""
REVISION = "SELECT version_num FROM alembic_version"
CLUSTER = "SELECT system_identifier FROM pg_control_system()"


def signs_in(port: int, email: str, password: str) -> bool:
    """Whether the account can log in there."""
    body = json.dumps({"email": email, "password": password}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/v1/auths/signin", data=body, headers={"Content-Type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        error.close()
        return False
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Switch:
    """One step; each method is a value of ``state`` and gives its results."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.p: dict[str, Any] = module.params
        self.units = systemctl.Units(module.run_command)
        self.root, self.kept = Path(self.p["root"]), Path(self.p["kept"])
        self.path = self.kept / "record.json"
        self.uploads = Path(self.p["data"]) / "uploads"
        self.current = openwebui_switch.current(self.root)
        self.record: Record = openwebui_switch.read(self.path, self.current)

    # --- small steps

    def wait(self, unit: str, port: int) -> float:
        try:
            return service.wait(unit, f"http://127.0.0.1:{port}/ready", self.p["timeout"], self.units.vital)
        except service.ServiceError as error:
            raise SwitchError(f"{error}\n{self.journal(unit)}") from error

    def journal(self, unit: str) -> str:
        return f"End of its journal (journalctl -u {unit}):\n{self.units.journal(unit, 30)}"

    def ask(self, query: str) -> str:
        """The one column of what the database says."""
        url = openwebui_env.parse(Path(self.p["environment"]).read_text())["DATABASE_URL"]
        # No cache of bytecode: an installed version does not change any more.
        argv = [str(self.root / self.p["name"] / "bin/python"), "-B", "-c", ASK, query]
        code, said, error = self.module.run_command(argv, environ_update={"DATABASE_URL": url})
        if code:
            raise SwitchError(f"The database of Open WebUI does not answer: {error.strip()[-500:]}")
        return str(said).strip()

    def write(self, record: Record, debt: str = "") -> None:
        """The record, and with it what the host says of itself and owes."""
        self.record = record
        self.save()
        debts = [{"what": "rollout", "why": debt}] if debt else []
        facts = None if debt else openwebui_switch.facts(record)
        local_facts.keep(Path(self.p["facts"]), COMPONENT, facts, debts)

    def save(self) -> bool:
        """The record, where it differs; whether it did."""
        wanted = config_files.Wanted(str(self.path), openwebui_switch.render(self.record), mode=0o600)
        difference = config_files.compare(wanted)
        if difference and not self.module.check_mode:
            self.kept.mkdir(mode=0o700, parents=True, exist_ok=True)
            config_files.write(difference, lambda command: (0, ""))
            # What follows may not outlive a power cut that this does not.
            transfer.sync_folder(self.kept)
        return difference is not None

    def dumps(self) -> list[str]:
        """Names of the data that something needs."""
        before = self.record["previous"]
        return [before["dump"]] if before and self.p["keep"] > 1 else []

    def spare(self) -> list[Path]:
        """Uploads that nothing needs any more."""
        folders = self.kept.iterdir() if self.kept.is_dir() else []
        return [path for path in folders if path.is_dir() and path.name not in self.dumps()]

    def owed(self) -> str:
        wanted = self.record["wanted"] or self.record["good"]
        return (
            f"the change of Open WebUI from {self.record['good']['version']} to {wanted['version']} began and did not "
            f"end; its data as they were are kept as {self.record['dump']}"
        )

    # --- the states

    def compared(self) -> dict[str, Any]:
        now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        finished = openwebui_switch.finished(self.root)
        plan = openwebui_switch.plan(self.record, self.current, self.p["name"], self.p["restores"], now, finished)
        built = self.p["name"] in finished
        return {"changed": False, "plan": dataclasses.asdict(plan), "built": built}

    def asked(self) -> dict[str, Any]:
        return {"changed": False, "cluster": self.ask(CLUSTER)}

    def found(self) -> dict[str, Any]:
        self.end_trial()
        if not self.p["dump"]:
            return {"changed": False}
        self.record = {**openwebui_switch.first(""), "previous": openwebui_switch.at("", self.p["dump"])}
        changed = self.save()
        # Should the record be lost, this says what the database's host keeps.
        (self.kept / self.p["dump"]).mkdir(mode=0o700, exist_ok=True)
        return {"changed": changed}

    def stopped(self) -> dict[str, Any]:
        p = self.p
        if self.record["state"] != "trying":
            if os.path.ismount(self.uploads):
                raise SwitchError(
                    f"{self.uploads} is a file system of its own, which cannot give way to what was kept. Nothing was "
                    f"changed. Mount it at {p['data']} instead, with the files in its folder uploads, then run again."
                )
            openwebui_switch.check_room(self.uploads, self.kept)
            if p["restores"]:
                openwebui_switch.check_room(self.kept / p["restores"] / "uploads", self.uploads)
            active = self.units.vital(UNIT)[0] == "active"
            # A run that broke off before has asked already, when the service still ran.
            login = signs_in(p["port"], p["email"], p["password"]) if active else self.record["login"]
            self.record = openwebui_switch.begun(self.record, p["name"], p["dump"], p["restores"], login)
            self.write(self.record, self.owed())
        self.end_trial()
        # Not at boot either: it must not meet data that a newer version has reworked, nor add to what is copied.
        self.units.run(["systemctl", "disable", "--now", UNIT])
        state = self.units.vital(UNIT)[0]
        if state not in ("inactive", "failed"):
            raise SwitchError(f"{UNIT} did not stop: it is {state}. What people write now would be in no dump.")
        if self.record["state"] != "trying":
            openwebui_switch.clone(self.uploads, self.kept / p["dump"] / "uploads")
        return {"changed": True}

    def armed(self) -> dict[str, Any]:
        self.write({**self.record, "state": "trying"}, self.owed())
        if self.record["restores"]:
            openwebui_switch.bring_back(self.kept / self.record["restores"], self.uploads)
        return {"changed": True}

    def tried(self) -> dict[str, Any]:
        p = self.p
        self.write({**self.record, "state": "trying"}, self.owed())
        self.end_trial()
        port = free_port()
        TRIAL_FILE.parent.mkdir(parents=True, exist_ok=True)
        TRIAL_FILE.write_text(p["unit"].replace("@PORT@", str(port)))
        self.units.do("daemon-reload")
        self.units.do("start", TRIAL)
        seconds = self.wait(TRIAL, port)
        tree = self.root / p["name"]
        package = next(tree.glob("lib/python3*/site-packages/open_webui"))
        sources = (file.read_text() for file in package.glob("migrations/versions/*.py"))
        openwebui_switch.check_schema(self.ask(REVISION), sources, openwebui_switch.version_of(p["name"]))
        if self.record["login"] and not signs_in(port, p["email"], p["password"]):
            said = f"{p['email']} could sign in before and cannot now, with the same password"
            if not self.record["restores"]:
                raise SwitchError(f"{said}.\n{self.journal(TRIAL)}")
            self.module.warn(f"{said}: the data are older, and may have the password of then.")
        if not self.record["login"]:
            self.module.warn(
                f"{p['email']} could not sign in with the password of the secrets before the change: no login asked."
            )
        return {"changed": True, "seconds": round(seconds, 1)}

    def passed(self) -> dict[str, Any]:
        self.end_trial()
        if self.record["wanted"]:
            transfer.point(self.root / "current", self.record["wanted"]["pointer"])
            self.write(openwebui_switch.passed(self.record))
        return {"changed": True}

    def withdrawn(self) -> dict[str, Any]:
        self.end_trial()
        restore = self.record["dump"] if self.record["state"] == "trying" else ""
        return {"changed": True, "restore": restore, "why": self.p["why"]}

    def back(self) -> dict[str, Any]:
        good, why = self.record["good"], self.p["why"]
        if self.record["state"] == "trying":
            openwebui_switch.bring_back(self.kept / self.record["dump"], self.uploads)
        transfer.point(self.root / "current", good["pointer"])
        wanted = self.record["wanted"] or good
        debt = (
            f"the change of Open WebUI from {good['version']} to {wanted['version']} failed: {why.splitlines()[0]}"
            if why
            else ""
        )
        # Before it starts: what people write from now on is what counts.
        self.write({**self.record, "state": "failed", "dump": "", "restores": "", "wanted": None, "why": why}, debt)
        # One that failed too often may not be started for a while.
        self.units.run(["systemctl", "reset-failed", UNIT])
        self.units.do("enable", "--now", UNIT)
        self.wait(UNIT, self.p["port"])
        return {"changed": True, "dumps": self.dumps()}

    def settled(self) -> dict[str, Any]:
        if self.record["state"] in ("dumping", "failed"):
            settled: Record = {**self.record, "state": "good", "wanted": None, "dump": "", "restores": "", "why": ""}
            self.record = settled
        if self.current:
            self.record["good"] = openwebui_switch.at(self.current)
        section = openwebui_switch.facts(self.record)
        facts = local_facts.keep(Path(self.p["facts"]), COMPONENT, section, [], self.module.check_mode)
        before = self.record["previous"]
        needed = [before["pointer"]] if before and self.p["keep"] > 1 else []
        changed = self.save() or facts.changed
        # A change that broke off before its trial and is not wanted any more has left it.
        environment = Path(self.p["environment"]) if self.p["environment"] else None
        if environment and environment.exists():
            changed = True
            if not self.module.check_mode:
                environment.unlink()
        return {"changed": changed, "needed": needed, "dumps": self.dumps(), "spare": bool(self.spare())}

    def pruned(self) -> dict[str, Any]:
        spare = self.spare()
        for path in spare:
            shutil.rmtree(path)
        return {"changed": bool(spare)}

    def end_trial(self) -> None:
        if self.units.vital(TRIAL)[0] not in ("inactive", "unknown"):
            self.units.run(["systemctl", "stop", TRIAL])
            self.units.run(["systemctl", "reset-failed", TRIAL])
        if TRIAL_FILE.exists():
            TRIAL_FILE.unlink()
            self.units.do("daemon-reload")
        environment = self.p["environment"]
        if environment and self.p["state"] in ("found", "passed", "withdrawn"):
            Path(environment).unlink(missing_ok=True)


def main() -> None:
    states = [
        "compared",
        "asked",
        "found",
        "stopped",
        "armed",
        "tried",
        "passed",
        "withdrawn",
        "back",
        "settled",
        "pruned",
    ]
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": states, "required": True},
            "root": {"type": "path", "required": True},
            "facts": {"type": "path", "default": "/etc/ansible/facts.d/onprem_llm.fact"},
            "name": {"type": "str", "default": ""},
            "dump": {"type": "str", "default": ""},
            "restores": {"type": "str", "default": ""},
            "data": {"type": "path", "default": "/var/lib/openwebui"},
            "kept": {"type": "path", "default": "/var/lib/onprem-llm/openwebui"},
            "keep": {"type": "int", "default": 2},
            "unit": {"type": "str", "default": ""},
            "environment": {"type": "path"},
            "email": {"type": "str", "default": ""},
            "password": {"type": "str", "default": "", "no_log": True},
            "port": {"type": "int", "default": 3000},
            "timeout": {"type": "int", "default": 600},
            "why": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)
    state = module.params["state"]
    try:
        switch = Switch(module)
        if module.check_mode and state not in ("compared", "settled"):
            module.exit_json(changed=False, current=switch.current)
        result = getattr(switch, state)()
    except (SwitchError, service.ServiceError, config_files.FileError, local_facts.LocalFactsError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result, current=switch.current)


if __name__ == "__main__":
    main()
