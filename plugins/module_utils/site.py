# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be wrong with a site before any host is looked at: its inventory and its variables."""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils.placement import engines
from ansible_collections.onprem.llm.plugins.module_utils.placement.pins import ROLES

BUILTIN_GROUPS = ("all", "ungrouped")
# The tasks of a host in one of these groups need a host in the other.
NEEDS = {
    "llamacpp": ("inference", "engine groups choose among the hosts of inference"),
    "ollama": ("inference", "engine groups choose among the hosts of inference"),
    "ktransformers": ("inference", "engine groups choose among the hosts of inference"),
    "openwebui": ("nginx", "a web application is reached through the nginx of its own host"),
}
# Groups of which a site has one member at most.
SINGLE = {"postgresql": "One database", "nginx": "One front door", "openldap": "One bundled directory"}


def check_groups(groups: Mapping[str, Sequence[str]], known: Sequence[str], wanted: int = 0) -> list[str]:
    """Misspelt groups, hosts without a task, and group members that lack a group they need."""
    problems = []
    for name in sorted(set(groups) - set(known) - set(BUILTIN_GROUPS)):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
        if near:
            problems.append(
                f"inventory: the group '{name}' does nothing. Did you mean '{near[0]}'? "
                "(A group of your own needs a name less like one of ours.)"
            )
    working = {host for name in known for host in groups.get(name, [])}
    for host in groups.get("all", []):
        if host not in working:
            problems.append(
                f"inventory: the host '{host}' is in none of the groups that do something "
                f"({', '.join(sorted(known))}). Put it into one, or take it out."
            )
    for group, (needed, why) in NEEDS.items():
        for host in groups.get(group, []):
            if host not in groups.get(needed, []):
                problems.append(
                    f"inventory: '{host}' is a member of {group} but not of {needed}: {why}. Add it to {needed}."
                )
    able = list(dict.fromkeys(engines.group(engine) for engine in ROLES))
    for host in groups.get("inference", []):
        if not any(host in groups.get(group, []) for group in able):
            problems.append(
                f"inventory: '{host}' is a member of inference but of no engine's group ({', '.join(able)}): no model "
                "could run there. Add it to one, or take it out of inference."
            )
    if wanted and not groups.get("inference"):
        problems.append(
            f"models: {wanted} are wanted, but the group inference is empty. Put a host into it, or take the models "
            "out."
        )
    for group, what in SINGLE.items():
        members = groups.get(group, [])
        if len(members) > 1:
            problems.append(
                f"inventory: the group {group} has {len(members)} members ({', '.join(members)}). "
                f"{what} serves a site; leave one."
            )
    if groups.get("rollout"):
        problems.append(
            f"inventory: the group rollout has members ({', '.join(groups['rollout'])}). A run fills it, with the "
            "hosts that owe a switch; leave it empty."
        )
    if groups.get("nginx") and not groups.get("openwebui") and not groups.get("inference"):
        problems.append(
            f"inventory: nginx has members ({', '.join(groups['nginx'])}) but openwebui and inference have none: there "
            "is nothing to lead to. Put the same host into openwebui, or hosts that serve models into inference."
        )
    if groups.get("openwebui") and not groups.get("postgresql"):
        problems.append("inventory: openwebui has members but postgresql has none. Put a host into postgresql.")
    return problems


def check_addresses(addresses: Mapping[str, str]) -> list[str]:
    """``addresses``: each host's ``fleet_address``. One name among them, and no host that has it in a rule gets its
    rules at the next boot: other hosts' firewall and database name these hosts by it."""

    def is_address(given: str) -> bool:
        try:
            ipaddress.ip_address(given)
        except ValueError:
            return False
        return True

    return [
        f"inventory: fleet_address of {host} is '{given}', which is no IP address, and rules of the firewall and of "
        "the database on other hosts need one. Set `ansible_host` (or `fleet_address`) of this host to its address in "
        "the fleet's network."
        for host, given in addresses.items()
        if not is_address(given)
    ]


def check_shadowed(site_names: Mapping[str, str], shared_names: Mapping[str, str]) -> list[str]:
    """Variables that a site sets in vain: what all sites share (root group_vars) wins. Both map name to file."""
    return [
        f"{name} is set in {site_names[name]}, and that has no effect: {shared_names[name]} sets it for all sites. "
        "Take it out; what a site decides there has a name of its own (docs/inventory.md)."
        for name in sorted(set(site_names) & set(shared_names))
    ]


def check_identity(site: Mapping[str, Any], groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Who may log in, and against what."""
    problems: list[str] = []
    if not groups.get("openwebui"):
        return problems
    for name in ("ldap_host", "ldap_base", "ldap_bind_dn", "ldap_bind_password"):
        if not site.get(name):
            problems.append(
                f"{name} is empty: nobody could log in. Set it in the inventory (identity.yml), "
                "or put a host into the group openldap and use the directory it brings."
            )
    if str(site.get("ldap_port")) == "389":
        problems.append(
            "ldap_port is 389, where LDAP speaks clear text; Open WebUI has no StartTLS. "
            "Use the directory's LDAPS port, usually 636."
        )
    return problems


def check_tls(site: Mapping[str, Any], groups: Mapping[str, Sequence[str]], exists: Mapping[str, bool]) -> list[str]:
    """``exists`` says of each controller path named by the settings whether a file is there."""
    problems = []
    if groups.get("nginx") and not site.get("public_name"):
        problems.append("public_name is empty. Set the name (or address) under which people reach the service.")
    if ":" in str(site.get("public_name")):
        problems.append(
            f"public_name is '{site['public_name']}', and an IPv6 address does not do there (redirects, certificate, "
            "the application's own links). Use a name that leads to it."
        )
    source = site.get("tls_source")
    if source not in ("own_ca", "provided"):
        problems.append(f"tls_source is '{source}'. Use own_ca or provided.")
    if source == "provided":
        for name in ("tls_certificate_file", "tls_key_file"):
            path = site.get(name)
            if not path:
                problems.append(
                    f"tls_source is provided, but {name} is empty: '{site.get('public_name')}' has no certificate. "
                    "Name the file on this machine, or set tls_source: own_ca."
                )
            elif not exists.get(path):
                problems.append(
                    f"{name} is '{path}', and there is no such file on this machine. "
                    "Correct the path, or set tls_source: own_ca."
                )
    for name in ("ldap_ca_file", "tls_ca_file"):
        path = site.get(name)
        if path and not exists.get(path):
            problems.append(f"{name} is '{path}', and there is no such file on this machine. Correct the path.")
    return problems
