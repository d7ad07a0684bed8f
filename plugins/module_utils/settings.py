# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of variables a site sets: those that have another name now, and those that nothing reads."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

#: What a site decides that belongs to no role (docs/inventory.md).
SITE = (
    "public_name tls_source tls_certificate_file tls_key_file tls_ca_file ldap_host ldap_port ldap_ca_file ldap_base "
    "ldap_bind_dn ldap_bind_password ldap_user_filter ldap_username_attribute ldap_mail_attribute models placements "
    "placement_allow_paging model_sources share_models artifact_mirror fleet_address"
)
#: How alike two names are that somebody mixed up, from 0 to 1. A short name is like many.
ALIKE = 0.86
ALIKE_AFTER_ROLE = 0.75


def words(texts: Iterable[str]) -> set[str]:
    """Every name in pieces of YAML. What is named nowhere is read by nobody."""
    return set().union(*(re.findall(r"\b[a-z][a-z0-9_]*\b", text) for text in texts))


def owner(name: str, roles: Iterable[str]) -> str:
    """The role with whose name a variable begins, empty when there is none."""
    return max((role for role in roles if name.startswith(f"{role}_")), key=len, default="")


def _near(name: str, role: str, settings: Iterable[str]) -> str:
    """The setting that must have been meant. Of a role's settings only what follows its name is compared."""
    rests = {one.removeprefix(f"{role}_"): one for one in settings if one.startswith(role)}
    alike = ALIKE_AFTER_ROLE if role else ALIKE
    found = difflib.get_close_matches(name.removeprefix(f"{role}_"), rests, n=1, cutoff=alike)
    return rests[found[0]] if found else ""


def check(
    given: Iterable[str],
    renamed: Mapping[str, Mapping[str, Any]],
    settings: Collection[str],
    known: Collection[str],
    roles: Collection[str],
) -> tuple[dict[str, str], dict[str, str]]:
    """Names of variables with which something is wrong, and what, as the rest of a sentence; then doubtful ones.

    given: names that are set. renamed: the content of meta/renamed.yml. settings: those of roles. known: every name the
    project mentions. roles: their names.
    """
    problems, doubts = dict[str, str](), dict[str, str]()
    for name in sorted(set(given)):
        old = renamed.get(name)
        if old:
            way_out = (
                f"is called {old['now']} now. Rename it" if "now" in old else f"is gone. {old['gone']} Take it out"
            )
            problems[name] = f"{way_out} (since {old['since']})."
            continue
        if name in known:
            continue
        role = owner(name, roles)
        near = _near(name, role, sorted({*settings, *SITE.split()}))
        if near:
            problems[name] = (
                f"does nothing. Did you mean {near}? (A variable of your own needs a name less like one of ours.)"
            )
        elif role:
            doubts[name] = f"is no setting of the role {role} (docs/variables.md); it is left alone as one of your own."
    return problems, doubts
