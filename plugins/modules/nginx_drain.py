#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: nginx_drain
short_description: Servers that nginx sends no more requests, or again
version_added: 0.2.0
author: The onprem.llm developers
description:
  - Marks servers as C(down) in nginx's upstreams, or takes the mark away, and has nginx read its configuration.
    Answers under way are not touched. It returns when no worker that knows the former configuration accepts requests
    any more.
  - The last server of an upstream is never taken out. One that no upstream names is left out of account, and so is all
    where there is no nginx yet.
  - A configuration that nginx refuses is put back.
attributes:
  check_mode: {support: full, description: Says which servers would be taken out.}
  diff_mode: {support: full, description: Shows the lines.}
  idempotent: {support: full, description: A configuration that is as it should be is not written.}
options:
  path: {description: File with the upstreams\, one server per line., type: path, default: /etc/nginx/nginx.conf}
  servers: {description: "The servers, as C(ADDRESS:PORT) like in the file.", type: list, elements: str, default: []}
  moves:
    description:
      - By server another that gets its requests instead; for C(moved). Of a list of several it is the first that
        answers, and nothing is changed when none does.
    type: dict
    default: {}
  state: {description: Whether they get requests., type: str, choices: [drained, serving, moved], required: true}
  timeout: {description: Seconds to wait until nginx has done so., type: int, default: 30}
"""

EXAMPLES = r"""
- name: Send no more requests there
  onprem.llm.nginx_drain:
    servers: ["192.0.2.11:9101"]
    state: drained
"""

RETURN = r"""
drained: {description: "Servers of I(servers) that are out of service now, or those that were moved to.", type: list,
  elements: str, returned: success}
alone:
  description: Servers that were left in service because an upstream has no other\, and that upstream.
  type: dict
  returned: success
ports: {description: "By address, the ports of the models that the file has there.", type: dict, returned: success}
"""

import contextlib
import functools
import http.client
import os
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import nginx_drain


def workers(master: str) -> set[str]:
    """Processes of nginx that accept requests."""
    found = set()
    for process in Path(f"/proc/{master}/task/{master}/children").read_text().split():
        with contextlib.suppress(OSError):  # ended meanwhile
            if Path(f"/proc/{process}/cmdline").read_bytes().strip(b" \0") == b"nginx: worker process":
                found.add(process)
    return found


@functools.cache
def answers(server: str) -> bool:
    """Whether it would take a request. A host that is lost, or loads its model (503), stays in the upstreams."""
    address, _, port = server.rpartition(":")
    try:
        connection = http.client.HTTPConnection(address.strip("[]"), int(port), timeout=2)
        connection.connect()
    except (OSError, ValueError):
        return False
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status != 503
    except TimeoutError:  # KTransformers computes a token for this, after those of others
        return True
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def chosen(moves: dict[str, str | list[str]]) -> dict[str, str]:
    """The moves, with the first that answers where one is to be chosen. LookupError, with the server, if none does."""
    found = {}
    for server, others in moves.items():
        # Asked one after the other: a host that is lost costs two seconds.
        one = others if isinstance(others, str) else next(filter(answers, others), "")
        if not one:
            raise LookupError(server)
        found[server] = one
    return found


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/etc/nginx/nginx.conf"},
            "servers": {"type": "list", "elements": "str", "default": []},
            "moves": {"type": "dict", "default": {}},
            "state": {"type": "str", "choices": ["drained", "serving", "moved"], "required": True},
            "timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    path, servers, drain = module.params["path"], module.params["servers"], module.params["state"] == "drained"
    try:
        moves = chosen(module.params["moves"]) if module.params["state"] == "moved" else {}
    except LookupError as nobody:
        server = nobody.args[0]
        others = ", ".join(module.params["moves"][server])
        module.fail_json(
            msg=f"{others} shall serve instead of {server} and does not answer (GET /health from this host), so "
            f"{server} serves on and nothing was changed. See there what its service says, or whether this run "
            "reached that host at all (--limit); or do not place the model there. Then run site.yml."
        )
    before = Path(path).read_text() if os.path.exists(path) else ""
    alone = nginx_drain.alone(before, servers, answers) if drain else {}
    out = [server for server in nginx_drain.named(before, servers) if server not in alone] if drain else []
    after = nginx_drain.marked(nginx_drain.moved(before, moves), out if drain else servers, drain)
    out += nginx_drain.named(after, moves.values())
    result = {
        "changed": after != before,
        "drained": out,
        "alone": alone,
        "ports": nginx_drain.ports(after),
        "diff": {"before": before, "after": after, "before_header": path, "after_header": path},
    }

    def write(text: str) -> None:
        fresh = Path(module.tmpdir) / "nginx.conf"
        fresh.write_text(text)
        module.atomic_move(str(fresh), path)

    master = module.run_command(["systemctl", "show", "-P", "MainPID", "nginx.service"])[1].strip()
    # What a run that broke off has marked already may not have been read yet.
    if module.check_mode or not (result["changed"] or out):
        module.exit_json(**result)
    if result["changed"]:
        write(after)
        code, said, error = module.run_command(["nginx", "-t", "-q"])
        if code:
            write(before)
            if module.run_command(["nginx", "-t", "-q"])[0]:
                module.fail_json(
                    msg=f"nginx refuses {path} as it is, whoever gets requests: {said}{error}\nIt goes on with what it "
                    "read before. Run playbooks/web.yml, which writes its configuration anew, then this again."
                )
            module.fail_json(
                msg=f"nginx refuses {path} with {', '.join(servers or moves)} changed; it is as before: {said}{error}"
            )
    if master in ("", "0"):
        module.exit_json(**result)
    former = workers(master)
    code, said, error = module.run_command(["systemctl", "reload", "nginx.service"])
    if code:
        module.fail_json(msg=f"nginx does not read its configuration again (systemctl reload nginx): {said}{error}")
    deadline = time.monotonic() + module.params["timeout"]
    while former & workers(master):
        if time.monotonic() > deadline:
            module.fail_json(
                msg=f"{module.params['timeout']} s after its reload nginx still accepts requests with its former "
                f"configuration (processes {sorted(former & workers(master))}): see journalctl -u nginx and {path}"
            )
        time.sleep(0.05)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
