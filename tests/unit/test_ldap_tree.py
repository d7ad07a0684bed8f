# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.onprem.llm.plugins.module_utils import ldap_tree
from ansible_collections.onprem.llm.plugins.module_utils.ldap_tree import (
    Add,
    Change,
    Delete,
    Found,
    Modify,
    TreeError,
    Wanted,
    make_plan,
)

BASE = "dc=example,dc=org"
ALICE = f"uid=alice,ou=people,{BASE}"
BOB = f"uid=bob,ou=people,{BASE}"
STAFF = f"cn=staff,ou=groups,{BASE}"
PERSON = {"objectClass": ["person", "inetOrgPerson"], "uid": ["alice"], "mail": ["alice@example.org"]}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (ALICE, "UID=Alice, ou=People,DC=example, dc=org", True),
        (ALICE, BOB, False),
        ("gidNumber=0+uidNumber=0,cn=peercred", "uidNumber=0 + gidNumber=0,cn=peercred", True),
        (r"cn=Ames\, Alice,ou=people", r"cn=ames\, alice, ou=people", True),
        (r"cn=Ames\, Alice,ou=people", "cn=Ames,ou=people", False),
        ("olcOverlay={0}memberof,cn=config", "olcOverlay=memberof,cn=config", False),
    ],
)
def test_names_are_compared_as_the_server_does(one: str, other: str, same: bool) -> None:
    assert (ldap_tree.normal_dn(one) == ldap_tree.normal_dn(other)) is same


def changes(wanted: dict[str, Any], found: dict[str, list[str]], **options: Any) -> list[Change]:
    """What an entry that is there needs."""
    plan = make_plan([Wanted(ALICE, **wanted)], [Found(ALICE, found)], **options)
    if not plan.operations:
        return []
    (operation,) = plan.operations
    assert isinstance(operation, Modify)
    return operation.changes


@pytest.mark.parametrize(
    ("wanted", "found", "expected"),
    [
        # exactly these values
        ({"mail": ["a@x"]}, {"mail": ["a@x"]}, []),
        ({"mail": ["a@x"]}, {"Mail": ["a@x"]}, []),
        ({"mail": ["b@x"]}, {"mail": ["a@x"]}, [Change("replace", "mail", ["b@x"])]),
        ({"mail": ["a@x"]}, {}, [Change("replace", "mail", ["a@x"])]),
        ({"mail": ["a@x"]}, {"mail": ["a@x", "b@x"]}, [Change("delete", "mail", ["b@x"])]),
        (
            {"mail": ["a@x", "c@x"]},
            {"mail": ["a@x", "b@x"]},
            [Change("add", "mail", ["c@x"]), Change("delete", "mail", ["b@x"])],
        ),
        ({"olcRootPW": []}, {"olcRootPW": ["{SSHA}x"]}, [Change("replace", "olcRootPW", [])]),
        ({"olcRootPW": []}, {}, []),
        # what is not named stays
        ({"mail": ["a@x"]}, {"mail": ["a@x"], "description": ["by hand"]}, []),
        # order of other values does not matter, spelling of names neither
        ({"mail": ["a@x", "b@x"]}, {"mail": ["b@x", "a@x"]}, []),
        ({"member": [ALICE]}, {"member": ["UID=alice, ou=people,dc=example,dc=org"]}, []),
        # a class somebody added is theirs
        ({"objectClass": ["person"]}, {"objectClass": ["Person", "posixAccount"]}, []),
        ({"objectClass": ["person"]}, {"objectClass": ["top"]}, [Change("add", "objectClass", ["person"])]),
        # numbered values: the order counts, the numbers do not
        ({"olcAccess": ["to a", "to b"]}, {"olcAccess": ["{0}to a", "{1}to b"]}, []),
        ({"olcAccess": ["to a", "to b"]}, {"olcAccess": ["{1}to b", "{0}to a"]}, []),
        (
            {"olcAccess": ["to b", "to a"]},
            {"olcAccess": ["{0}to a", "{1}to b"]},
            [Change("replace", "olcAccess", ["to b", "to a"])],
        ),
        ({"olcOverlay": ["refint"]}, {"olcOverlay": ["{1}refint"]}, []),
        # `{ARGON2}` is no number
        ({"olcPasswordHash": ["{ARGON2}"]}, {"olcPasswordHash": ["{ARGON2}"]}, []),
        (
            {"olcPasswordHash": ["{ARGON2}"]},
            {"olcPasswordHash": ["{SSHA}"]},
            [Change("replace", "olcPasswordHash", ["{ARGON2}"])],
        ),
    ],
)
def test_exact_values(wanted: dict[str, list[str]], found: dict[str, list[str]], expected: list[Change]) -> None:
    assert changes({"attributes": wanted}, found) == expected


@pytest.mark.parametrize(
    ("includes", "excludes", "found", "expected"),
    [
        ([ALICE], [], [], [Change("add", "member", [ALICE])]),
        ([ALICE], [], [ALICE, "cn=by hand"], []),
        ([ALICE], [BOB], [ALICE, "cn=by hand"], []),
        ([ALICE], [BOB], [BOB, "cn=by hand"], [Change("add", "member", [ALICE]), Change("delete", "member", [BOB])]),
        ([], ["UID=Bob,ou=people,dc=example,dc=org"], [BOB], [Change("delete", "member", [BOB])]),
        ([BOB], [BOB], [BOB], []),
    ],
)
def test_some_values(includes: list[str], excludes: list[str], found: list[str], expected: list[Change]) -> None:
    wanted = {"includes": {"member": includes}, "excludes": {"member": excludes}}
    assert changes(wanted, {"member": found}) == expected


def test_numbered_values_are_included_by_their_text() -> None:
    wanted = {"includes": {"olcModuleLoad": ["back_mdb", "memberof"]}}
    assert changes(wanted, {"olcModuleLoad": ["{0}back_mdb"]}) == [Change("add", "olcModuleLoad", ["memberof"])]


@pytest.mark.parametrize(
    ("wanted", "found", "differs", "expected"),
    [
        # a kept password is written when the server refused it
        ({"password": "new"}, {"userPassword": ["{X}old"]}, [ALICE], [Change("replace", "userPassword", ["new"])]),
        ({"password": "same"}, {"userPassword": ["{X}same"]}, [], []),
        # an initial one only to who has none: people change theirs
        ({"initial_password": "first"}, {"userPassword": ["{X}changed"]}, [], []),
        ({"initial_password": "first"}, {}, [], [Change("add", "userPassword", ["first"])]),
    ],
)
def test_passwords(
    wanted: dict[str, str], found: dict[str, list[str]], differs: list[str], expected: list[Change]
) -> None:
    assert changes(wanted, found, passwords_differ=differs) == expected


def test_a_missing_entry_is_added_with_everything() -> None:
    wanted = Wanted(
        ALICE, attributes=PERSON | {"description": []}, includes={"member": [BOB]}, initial_password="first"
    )
    assert make_plan([wanted], []).operations == [Add(ALICE, PERSON | {"member": [BOB], "userPassword": ["first"]})]


def test_entries_keep_their_order_and_deletions_come_last() -> None:
    found = [Found(BOB, {}), Found(f"cn=phone,{BOB}", {}), Found(f"ou=people,{BASE}", {}), Found(BASE, {})]
    plan = make_plan(
        [Wanted(f"ou=groups,{BASE}", {"ou": ["groups"]}), Wanted(ALICE, PERSON)],
        found,
        containers=[f"ou=people,{BASE}"],
        prune=True,
    )
    assert [operation.dn for operation in plan.operations] == [f"ou=groups,{BASE}", ALICE, f"cn=phone,{BOB}", BOB]
    assert isinstance(plan.operations[-1], Delete)


@pytest.mark.parametrize("prune", [True, False])
def test_only_children_of_containers_are_unlisted(prune: bool) -> None:
    found = [Found(BASE, {}), Found(f"ou=people,{BASE}", {}), Found(BOB, {}), Found(f"cn=other,{BASE}", {})]
    plan = make_plan([], found, containers=[f"OU=people, {BASE}"], prune=prune)
    assert plan.unlisted == [BOB]
    assert plan.operations == ([Delete(BOB)] if prune else [])


@pytest.mark.parametrize(
    ("wanted", "found", "there"),
    [
        ("olcOverlay=refint,olcDatabase={1}mdb,cn=config", "olcOverlay={1}refint,olcDatabase={1}mdb,cn=config", True),
        ("olcOverlay=refint,olcDatabase={1}mdb,cn=config", "olcOverlay={1}refint,olcDatabase={2}mdb,cn=config", False),
        ("olcDatabase={1}mdb,cn=config", "olcDatabase={1}mdb,cn=config", True),
        ("olcDatabase={1}mdb,cn=config", "olcDatabase={2}mdb,cn=config", False),
    ],
)
def test_entries_the_server_numbered(wanted: str, found: str, there: bool) -> None:
    plan = make_plan([Wanted(wanted, {"cn": ["x"]})], [Found(found, {"cn": ["x"]})])
    assert (plan.operations == []) is there


def test_an_entry_given_twice_is_refused() -> None:
    with pytest.raises(TreeError, match="more than once: uid=alice"):
        make_plan([Wanted(ALICE), Wanted(ALICE.upper())], [])


def test_passwords_are_in_no_report() -> None:
    wanted = [
        Wanted(ALICE, {"mail": ["a@x"]}, password="kept-secret"),
        Wanted(BOB, PERSON, initial_password="first-secret"),
    ]
    found = [Found(ALICE, {"mail": ["old@x"], "userPassword": ["{ARGON2}hash"]})]
    operations = make_plan(wanted, found, passwords_differ=[ALICE]).operations
    report = str(ldap_tree.difference(operations)) + str(ldap_tree.summary(operations))
    assert "secret" not in report
    assert "hash" not in report
    assert ldap_tree.difference(operations)["before"] == f"dn: {ALICE}\nmail: old@x\nuserPassword: ********\n\n"
    assert "userPassword: ******** (changed)" in ldap_tree.difference(operations)["after"]
    assert ldap_tree.summary(operations)[0] == {"action": "modify", "dn": ALICE, "attributes": ["mail", "userPassword"]}


def test_the_difference_shows_what_is_removed() -> None:
    wanted = [Wanted(STAFF, includes={"member": [ALICE]}, excludes={"member": [BOB]})]
    operations = make_plan(wanted, [Found(STAFF, {"member": [BOB]})]).operations
    assert ldap_tree.difference(operations) == {
        "before": f"dn: {STAFF}\nmember: {BOB}\n\n",
        "after": f"dn: {STAFF}\nmember: {ALICE}\n\n",
    }
