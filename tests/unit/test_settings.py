# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of variables that a site sets: an old one, a misspelt one, one of the site's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import conventions
import pytest
from conventions import PROJECT, ROLE_NAMES, role

from ansible_collections.onprem.llm.plugins.module_utils import settings
from ansible_collections.onprem.llm.plugins.modules import site_check

RENAMED: dict[str, dict[str, Any]] = {
    "nginx_limit": {"now": "nginx_login_rate", "since": "0.2.0"},
    "certificate_services": {"gone": "Each service looks itself.", "since": "0.1.0"},
}
OPTIONS = ["nginx_login_rate", "nginx_read_timeout", "model_store_keep"]
ROLES = ["nginx", "model_store", "plan"]


def check(*names: str) -> tuple[dict[str, str], dict[str, str]]:
    return settings.check(names, RENAMED, OPTIONS, {*OPTIONS, *settings.SITE.split(), "plan_page"}, ROLES)


def test_an_old_name_says_the_new_one() -> None:
    assert check("nginx_limit")[0] == {"nginx_limit": "is called nginx_login_rate now. Rename it (since 0.2.0)."}


def test_a_name_that_is_gone_says_what_does_it_now() -> None:
    assert check("certificate_services")[0] == {
        "certificate_services": "is gone. Each service looks itself. Take it out (since 0.1.0)."
    }


def test_a_misspelt_setting_is_refused_and_a_stranger_that_begins_like_a_role_is_not() -> None:
    said, doubts = check("nginx_read_timout", "model_store_colour", "plan_b")
    assert said.keys() == {"nginx_read_timout"}
    assert said["nginx_read_timout"].startswith("does nothing. Did you mean nginx_read_timeout?")
    assert doubts.keys() == {"model_store_colour", "plan_b"}
    assert doubts["plan_b"].startswith("is no setting of the role plan (docs/variables.md); it is left alone")


@pytest.mark.parametrize("name", ["build_number", "build_host", "plan_b", "plan_owner", "drift_king", "nginx_flavour"])
def test_a_name_of_the_sites_own_is_no_mistake(name: str) -> None:
    wrong, doubtful = site_check.misnamed([name], PROJECT / "inventories/prod", PROJECT)
    assert not wrong
    assert len(doubtful) == 1


@pytest.mark.parametrize(
    ("given", "meant"),
    [("ngnix_login_rate", "nginx_login_rate"), ("public_nmae", "public_name"), ("ldap_hots", "ldap_host")],
)
def test_a_misspelt_beginning(given: str, meant: str) -> None:
    assert check(given)[0][given] == (
        f"does nothing. Did you mean {meant}? (A variable of your own needs a name less like one of ours.)"
    )


def test_what_is_right_and_what_is_the_sites_own() -> None:
    names = ("nginx_login_rate", "public_name", "plan_page", "rack", "corp_proxy", "lab_network", "planet")
    assert check(*names) == ({}, {})


def test_the_longest_beginning_is_the_owner() -> None:
    assert settings.owner("model_store_x", ["model", "model_store"]) == "model_store"
    assert settings.owner("nginxed", ["nginx"]) == ""


def test_every_name_of_every_shipped_inventory_is_known() -> None:
    """No false alarm: also names of labs, which belong to nobody here."""
    wrong = {}
    for folder in conventions.inventories():
        names = sorted(set().union(*conventions.variables_of(folder).values()) - {"testhost"})
        found = site_check.misnamed([one for one in names if not one.startswith("ansible_")], folder, PROJECT)
        wrong |= {str(folder): found} if any(found) else {}
    assert not wrong


def test_every_setting_is_known() -> None:
    names = [*conventions.root_variables(), *(key for name in ROLE_NAMES for key in role(name).defaults)]
    assert site_check.misnamed(names, PROJECT / "inventories/prod", PROJECT) == ([], [])


def test_names_that_are_read_from_documents_are_those_of_the_site() -> None:
    page = conventions.text(PROJECT / "docs/inventory.md").split("## Site-wide variables")[1].split("## ")[0]
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    told = {name for row in rows for name in re.findall(r"`(\w+)`", row)} - {"doctor_user"}
    assert told <= set(settings.SITE.split()), "docs/inventory.md names more than settings.SITE"


def test_the_file_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "group_vars/all"
    folder.mkdir(parents=True)
    (folder / "web.yml").write_text("certificate_services: [x]\n")
    (tmp_path / "hosts").write_text("[web]\none ansible_host=192.0.2.1\n[web:vars]\nngnix_login_rate=1\n")
    # Ansible reads the files of such a folder.
    (tmp_path / "aaa.yml").mkdir()
    names = ["certificate_services", "ngnix_login_rate", "ldap_hots"]
    said = site_check.misnamed(names, tmp_path, PROJECT)[0]
    assert [one.split(" ")[0] for one in said] == [f"{folder}/web.yml:", "-e", f"{tmp_path}/hosts:"]
    (folder / "more.yml").mkdir()
    assert site_check.names_in(str(folder)) == {"certificate_services": f"{folder}/web.yml"}


def test_a_renamed_setting_has_a_home_and_its_old_name_none() -> None:
    renamed = conventions.load(PROJECT / "meta/renamed.yml") or {}
    options = {key for name in ROLE_NAMES for key in role(name).defaults}
    for old, entry in renamed.items():
        assert old not in options, f"meta/renamed.yml: {old} is a setting still"
        assert set(entry) in ({"now", "since"}, {"gone", "since"}), f"meta/renamed.yml: {old}"
        assert entry.get("now") is None or entry["now"] in {*options, *settings.SITE.split()}, (
            f"meta/renamed.yml: {old}"
        )
