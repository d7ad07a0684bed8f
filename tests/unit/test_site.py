# SPDX-License-Identifier: GPL-3.0-or-later
"""What an inventory can contradict itself in. Every sentence names the variable or group, the value and the way out."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.onprem.llm.plugins.module_utils import site

KNOWN = ["inference", "llamacpp", "postgresql", "openldap", "openwebui", "nginx"]
GROUPS = {
    "all": ["gpu1", "web1", "data1"],
    "ungrouped": [],
    "inference": ["gpu1"],
    "llamacpp": ["gpu1"],
    "nginx": ["web1"],
    "openwebui": ["web1"],
    "postgresql": ["data1"],
    "openldap": ["data1"],
}
SITE = {
    "public_name": "llm.corp.example",
    "tls_source": "own_ca",
    "ldap_host": "192.0.2.13",
    "ldap_port": "636",
    "ldap_ca_file": "",
    "ldap_base": "dc=corp,dc=example",
    "ldap_bind_dn": "cn=reader,dc=corp,dc=example",
    "ldap_bind_password": "set",
}
ALL_DO = ", ".join(sorted(KNOWN))


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        ({}, []),
        # Groups of the operator's own are fine, unless they look like one of ours misspelt.
        ({"rack_a": ["gpu1"]}, []),
        (
            {"openwebiu": ["web1"]},
            [
                "inventory: the group 'openwebiu' does nothing. Did you mean 'openwebui'? "
                "(A group of your own needs a name less like one of ours.)"
            ],
        ),
        (
            {"all": ["gpu1", "web1", "data1", "spare"]},
            [
                f"inventory: the host 'spare' is in none of the groups that do something ({ALL_DO}). "
                "Put it into one, or take it out."
            ],
        ),
        (
            {"llamacpp": ["gpu1", "web1"]},
            [
                "inventory: 'web1' is a member of llamacpp but not of inference: engine groups choose among the hosts "
                "of inference. Add it to inference."
            ],
        ),
        (
            {"openwebui": ["data1"]},
            [
                "inventory: 'data1' is a member of openwebui but not of nginx: a web application is reached through "
                "the nginx of its own host. Add it to nginx."
            ],
        ),
        (
            {"postgresql": ["data1", "web1"]},
            [
                "inventory: the group postgresql has 2 members (data1, web1). One database serves a site; leave one.",
            ],
        ),
        (
            {"rollout": ["gpu1"]},
            [
                "inventory: the group rollout has members (gpu1). A run fills it, with the hosts that owe a switch; "
                "leave it empty."
            ],
        ),
        ({"postgresql": []}, ["inventory: openwebui has members but postgresql has none. Put a host into postgresql."]),
        (
            {"nginx": ["web1", "data1"]},
            ["inventory: the group nginx has 2 members (web1, data1). One front door serves a site; leave one."],
        ),
    ],
)
def test_groups(change: dict[str, list[str]], problems: list[str]) -> None:
    assert site.check_groups({**GROUPS, **change}, KNOWN) == problems


def empty(name: str) -> str:
    return (
        f"{name} is empty: nobody could log in. Set it in the inventory (identity.yml), "
        "or put a host into the group openldap and use the directory it brings."
    )


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        ({}, []),
        ({"ldap_host": ""}, [empty("ldap_host")]),
        ({"ldap_base": ""}, [empty("ldap_base")]),
        ({"ldap_bind_dn": "", "ldap_bind_password": ""}, [empty("ldap_bind_dn"), empty("ldap_bind_password")]),
        (
            {"ldap_port": "389"},
            [
                "ldap_port is 389, where LDAP speaks clear text; Open WebUI has no StartTLS. "
                "Use the directory's LDAPS port, usually 636."
            ],
        ),
    ],
)
def test_identity(change: dict[str, str], problems: list[str]) -> None:
    assert site.check_identity({**SITE, **change}, GROUPS) == problems


def test_identity_is_needed_only_by_the_chat_application() -> None:
    assert site.check_identity({}, {**GROUPS, "openwebui": []}) == []


PROVIDED = {"tls_source": "provided", "tls_certificate_file": "/c.crt", "tls_key_file": "/c.key"}


@pytest.mark.parametrize(
    ("change", "exists", "problems"),
    [
        ({}, {}, []),
        (PROVIDED, {"/c.crt": True, "/c.key": True}, []),
        (
            {"public_name": ""},
            {},
            ["public_name is empty. Set the name (or address) under which people reach the service."],
        ),
        (
            {"public_name": "fd00::10"},
            {},
            [
                "public_name is 'fd00::10', and an IPv6 address does not do there (redirects, certificate, the "
                "application's own links). Use a name that leads to it."
            ],
        ),
        ({"tls_source": "acme"}, {}, ["tls_source is 'acme'. Use own_ca or provided."]),
        (
            {**PROVIDED, "tls_key_file": ""},
            {"/c.crt": True},
            [
                "tls_source is provided, but tls_key_file is empty: 'llm.corp.example' has no certificate. "
                "Name the file on this machine, or set tls_source: own_ca."
            ],
        ),
        (
            PROVIDED,
            {"/c.crt": False, "/c.key": True},
            [
                "tls_certificate_file is '/c.crt', and there is no such file on this machine. "
                "Correct the path, or set tls_source: own_ca."
            ],
        ),
        (
            {"ldap_ca_file": "/ad.pem"},
            {"/ad.pem": False},
            ["ldap_ca_file is '/ad.pem', and there is no such file on this machine. Correct the path."],
        ),
        ({"ldap_ca_file": "/ad.pem"}, {"/ad.pem": True}, []),
    ],
)
def test_tls(change: dict[str, Any], exists: dict[str, bool], problems: list[str]) -> None:
    assert site.check_tls({**SITE, **change}, GROUPS, exists) == problems


def test_a_site_without_a_front_door_needs_no_public_name() -> None:
    assert site.check_tls({**SITE, "public_name": ""}, {**GROUPS, "nginx": []}, {}) == []


def test_a_variable_set_in_vain_is_named() -> None:
    said = site.check_shadowed({"doctor_ca_file": "site/tls.yml", "x": "a"}, {"doctor_ca_file": "shared/wiring.yml"})
    assert len(said) == 1
    assert "doctor_ca_file is set in site/tls.yml, and that has no effect: shared/wiring.yml" in said[0]


def test_models_need_hosts_and_hosts_need_an_engine() -> None:
    empty = {**GROUPS, "inference": [], "llamacpp": []}
    known = list(GROUPS)
    assert any(
        "models: 2 are wanted, but the group inference is empty." in p for p in site.check_groups(empty, known, 2)
    )
    assert not any("models:" in p for p in site.check_groups(empty, known, 0))
    idle = {**GROUPS, "inference": [*GROUPS["inference"], "spare"], "all": [*GROUPS.get("all", []), "spare"]}
    assert any("'spare' is a member of inference but of no engine's group" in p for p in site.check_groups(idle, known))


def test_every_host_whose_address_is_a_name_is_named() -> None:
    said = site.check_addresses({"gpu1": "192.0.2.11", "six": "2001:db8::1", "web1": "web1.corp", "data1": "data1"})
    assert [text.split(",")[0] for text in said] == [
        "inventory: fleet_address of web1 is 'web1.corp'",
        "inventory: fleet_address of data1 is 'data1'",
    ]
    assert "Set `ansible_host` (or `fleet_address`) of this host to its address in the fleet's network." in said[0]
