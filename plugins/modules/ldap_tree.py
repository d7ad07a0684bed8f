#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: ldap_tree
short_description: Many entries of a directory, brought to what is wanted in one go
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Reads the directory once, compares it with the entries that are wanted, and does only what is missing. Entries and
    attributes that are not named stay as they are.
  - Works on people and groups as well as on the server's own configuration (C(cn=config)); the numbers the server puts
    before values and entries there are understood.
  - Connects to the server's socket on the same host as root (SASL EXTERNAL), so it needs no password.
requirements:
  - python-ldap on the managed host (Debian package C(python3-ldap))
attributes:
  check_mode: {support: full, description: The server is read, and passwords are tried, but nothing is written.}
  diff_mode: {support: full, description: Entries that change, without passwords.}
  idempotent: {support: full, description: Without a difference nothing is written.}
options:
  uri:
    description: The server's socket.
    type: str
    default: ldapi:///
  bases:
    description: Where to look for entries. One search each.
    type: list
    elements: str
    required: true
  entries:
    description: Entries as they shall be, parents before their children.
    type: list
    elements: dict
    required: true
    suboptions:
      dn:
        description:
          - Name of the entry. The first part may lack the server's number (C(olcOverlay=refint,...)).
        type: str
        required: true
      attributes:
        description:
          - Attributes that shall have exactly these values; an empty list removes the attribute.
          - Further values of C(objectClass) are left alone.
        type: dict
        default: {}
      includes:
        description: Attributes that shall have at least these values.
        type: dict
        default: {}
      excludes:
        description: Values that attributes shall not have.
        type: dict
        default: {}
      password:
        description: The entry's password. Tried by logging in, and written when the server refuses it.
        type: str
      initial_password:
        description: Written only while the entry has no password. The person may change it, and it is never reset.
        type: str
  containers:
    description: Entries whose children are listed as RV(unlisted) when O(entries) does not name them.
    type: list
    elements: str
    default: []
  prune:
    description: Delete the unlisted children of O(containers).
    type: bool
    default: false
  timeout:
    description: Seconds to wait for a server that is still starting.
    type: int
    default: 20
"""

EXAMPLES = r"""
- name: A reader and a person
  onprem.llm.ldap_tree:
    bases: ["dc=example,dc=org"]
    entries:
      - dn: cn=reader,dc=example,dc=org
        attributes:
          objectClass: [organizationalRole, simpleSecurityObject]
        password: "{{ lookup('onprem.llm.secret', 'openldap_reader_password') }}"
      - dn: uid=alice,ou=people,dc=example,dc=org
        attributes:
          objectClass: [top, person, organizationalPerson, inetOrgPerson]
          cn: [Alice Ames]
          sn: [Ames]
          mail: [alice@example.org]
        initial_password: "{{ lookup('onprem.llm.secret', 'user_alice') }}"
"""

RETURN = r"""
operations:
  description: What was done (in check mode would be done), without values.
  type: list
  elements: dict
  returned: success
  sample: [{"action": "add", "dn": "uid=alice,ou=people,dc=example,dc=org", "attributes": ["objectClass", "mail"]}]
unlisted:
  description: Entries below O(containers) that O(entries) does not name.
  type: list
  elements: str
  returned: success
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from ansible_collections.onprem.llm.plugins.module_utils import ldap_tree

try:
    import ldap
    import ldap.sasl
except ImportError:
    ldap = None


def encoded(values: list[str]) -> list[bytes]:
    return [value.encode("utf-8", "surrogateescape") for value in values]


def decoded(values: list[bytes]) -> list[str]:
    return [value.decode("utf-8", "surrogateescape") for value in values]


def sentence(error: Exception) -> str:
    """What the server said, e.g. `Object class violation: attribute 'x' not allowed`."""
    details = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
    said = [str(details[key]) for key in ("desc", "info") if details.get(key)]
    return ": ".join(said) or str(error) or type(error).__name__


class Server:
    """The directory on this host, spoken to as root."""

    def __init__(self, uri: str, timeout: int) -> None:
        self.uri = uri
        deadline = time.monotonic() + timeout
        while True:
            self.connection = ldap.initialize(uri)
            try:
                self.connection.sasl_interactive_bind_s("", ldap.sasl.external())
                return
            except ldap.SERVER_DOWN:
                if time.monotonic() > deadline:
                    raise ldap_tree.TreeError(
                        f"no directory server answers at {uri} within {timeout} s: look at `journalctl -u slapd`"
                    ) from None
                time.sleep(0.2)
            except ldap.LDAPError as error:
                raise ldap_tree.TreeError(f"{uri} refuses root: {sentence(error)}") from error

    def search(self, base: str) -> list[ldap_tree.Found]:
        try:
            rows = self.connection.search_s(base, ldap.SCOPE_SUBTREE, "(objectClass=*)", ["*"])
        except ldap.NO_SUCH_OBJECT:
            raise ldap_tree.TreeError(
                f"the directory server on this host does not hold '{base}'. It was set up for another base; a server"
                " keeps its base for life. Use that one, or purge the package slapd with its data and run again"
            ) from None
        except ldap.LDAPError as error:
            raise ldap_tree.TreeError(f"cannot read '{base}': {sentence(error)}") from error
        return [
            ldap_tree.Found(dn, {name: decoded(values) for name, values in attributes.items()})
            for dn, attributes in rows
            if dn is not None
        ]

    def refuses(self, dn: str, password: str) -> bool:
        connection = ldap.initialize(self.uri)
        try:
            connection.simple_bind_s(dn, password)
        except ldap.INVALID_CREDENTIALS:
            return True
        except ldap.LDAPError as error:
            raise ldap_tree.TreeError(f"cannot try the password of '{dn}': {sentence(error)}") from error
        finally:
            connection.unbind_s()
        return False

    def apply(self, operations: list[ldap_tree.Operation]) -> None:
        """Do them in order. Entries with passwords are sent together: a core hashes one in 20 ms, there are more."""
        sent: list[tuple[int, ldap_tree.Operation]] = []
        for operation in operations:
            together = isinstance(operation, ldap_tree.Add) and "userPassword" in operation.attributes
            if not together:
                self.wait(sent)
            sent.append((self.send(operation), operation))
            if not together:
                self.wait(sent)
        self.wait(sent)

    def send(self, operation: ldap_tree.Operation) -> int:
        actions = {"add": ldap.MOD_ADD, "delete": ldap.MOD_DELETE, "replace": ldap.MOD_REPLACE}
        if isinstance(operation, ldap_tree.Add):
            message: int = self.connection.add(
                operation.dn, [(name, encoded(values)) for name, values in operation.attributes.items()]
            )
        elif isinstance(operation, ldap_tree.Delete):
            message = self.connection.delete(operation.dn)
        else:
            message = self.connection.modify(
                operation.dn,
                [(actions[c.action], c.attribute, encoded(c.values) or None) for c in operation.changes],
            )
        return message

    def wait(self, sent: list[tuple[int, ldap_tree.Operation]]) -> None:
        refused = []
        for message, operation in sent:
            try:
                self.connection.result(message)
            except ldap.LDAPError as error:
                did = type(operation).__name__.lower()
                refused.append(f"the server refuses to {did} '{operation.dn}': {sentence(error)}")
        sent.clear()
        if refused:
            raise ldap_tree.TreeError("; ".join(refused))


def listed(values: Any) -> ldap_tree.Values:
    """Attributes as given by a person: a single value need not be in a list."""
    return {
        str(name): [str(value) for value in (given if isinstance(given, list) else [given])]
        for name, given in values.items()
    }


def wanted_of(entry: dict[str, Any]) -> ldap_tree.Wanted:
    return ldap_tree.Wanted(
        dn=entry["dn"],
        attributes=listed(entry["attributes"]),
        includes=listed(entry["includes"]),
        excludes=listed(entry["excludes"]),
        password=entry["password"],
        initial_password=entry["initial_password"],
    )


def run(module: AnsibleModule) -> dict[str, Any]:
    params = module.params
    wanted = [wanted_of(entry) for entry in params["entries"]]
    server = Server(params["uri"], params["timeout"])
    found = [entry for base in params["bases"] for entry in server.search(base)]
    present = {ldap_tree.normal_dn(entry.dn) for entry in found}
    differ = [
        entry.dn
        for entry in wanted
        if entry.password and ldap_tree.normal_dn(entry.dn) in present and server.refuses(entry.dn, entry.password)
    ]
    plan = ldap_tree.make_plan(
        wanted, found, containers=params["containers"], prune=params["prune"], passwords_differ=differ
    )
    if not module.check_mode:
        server.apply(plan.operations)
    return {
        "changed": bool(plan.operations),
        "operations": ldap_tree.summary(plan.operations),
        "unlisted": plan.unlisted,
        "diff": ldap_tree.difference(plan.operations),
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "uri": {"type": "str", "default": "ldapi:///"},
            "bases": {"type": "list", "elements": "str", "required": True},
            "entries": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "dn": {"type": "str", "required": True},
                    "attributes": {"type": "dict", "default": {}},
                    "includes": {"type": "dict", "default": {}},
                    "excludes": {"type": "dict", "default": {}},
                    "password": {"type": "str", "no_log": True},
                    "initial_password": {"type": "str", "no_log": True},
                },
            },
            "containers": {"type": "list", "elements": "str", "default": []},
            "prune": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 20},
        },
        supports_check_mode=True,
    )
    if ldap is None:
        module.fail_json(msg=missing_required_lib("python-ldap"))
    try:
        module.exit_json(**run(module))
    except ldap_tree.TreeError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
