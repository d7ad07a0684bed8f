# SPDX-License-Identifier: GPL-3.0-or-later
"""The directory: what the reader sees, what people may change, and that nothing goes without TLS."""

from __future__ import annotations

import base64
import time

import pytest
from lab import ADDRESS, CA, host, reachable, score
from lab import converge_openldap as converge

BASE = "dc=example,dc=org"
ALICE = f"uid=alice,ou=people,{BASE}"
BOB = f"uid=bob,ou=people,{BASE}"
READER = f"cn=reader,{BASE}"

testinfra_hosts = ["ansible://data1"]

app1 = host("app1")
data1 = host("data1")


def ask(
    who: str, password: str, *arguments: str, ca: str = CA, program: str = "ldapsearch -LLL -o ldif-wrap=no"
) -> str:
    """From the other host: what the server said, good or bad."""
    words = " ".join("'" + argument + "'" for argument in arguments)
    login = f"-x -H ldaps://{ADDRESS}" + (f" -D {who} -w '{password}'" if who else "")
    base = f"-b {BASE}" if program.startswith("ldapsearch") else ""
    return app1.run(
        f"LDAPTLS_CACERT={ca} LDAPNETWORK_TIMEOUT=5 {program} {login} {base} {words} 2>&1 || true"
    ).stdout.strip()


def change(who: str, password: str, ldif: str) -> str:
    """Tries to modify entries."""
    text = base64.b64encode(ldif.encode()).decode()
    program = f"LDAPTLS_CACERT={CA} ldapmodify -x -H ldaps://{ADDRESS} -D {who} -w '{password}'"
    return app1.run(f"echo {text} | base64 -d | {program} 2>&1").stdout


def stored(dn: str) -> str:
    """The entry as the server keeps it, passwords too."""
    command = f"ldapsearch -Q -LLL -o ldif-wrap=no -Y EXTERNAL -H ldapi:/// -s base -b {dn} '*' memberOf"
    return data1.check_output(command)


def password_hash(dn: str) -> str:
    line = next(line for line in stored(dn).splitlines() if line.startswith("userPassword:: "))
    return base64.b64decode(line.split(":: ")[1]).decode()


@pytest.fixture(scope="module")
def reader(secrets):
    return secrets("openldap_reader_password")


@pytest.fixture(scope="module")
def alice(secrets):
    return secrets("user_alice")


def test_reader_finds_a_person_with_mail_and_groups(reader):
    found = ask(READER, reader, "(uid=alice)", "mail", "memberOf").splitlines()
    assert f"dn: {ALICE}" in found
    assert "mail: alice@example.org" in found
    assert {line for line in found if line.startswith("memberOf")} == {
        f"memberOf: cn=staff,ou=groups,{BASE}",
        f"memberOf: cn=research,ou=groups,{BASE}",
    }


def test_names_in_any_script(reader):
    line = next(line for line in ask(READER, reader, "(uid=bob)", "cn").splitlines() if line.startswith("cn:: "))
    assert base64.b64decode(line.split(":: ")[1]).decode() == "王小波"


def test_reader_sees_no_password_and_changes_nothing(reader):
    found = ask(READER, reader, "(objectClass=*)")
    assert f"dn: {BOB}" in found
    assert "userPassword" not in found
    said = change(READER, reader, f"dn: {ALICE}\nchangetype: modify\nreplace: mail\nmail: x@example.org\n")
    assert "Insufficient access" in said


@pytest.mark.parametrize("arguments", [("(objectClass=*)",), ("-s", "base", "(objectClass=*)")])
def test_anonymous_reads_nothing(arguments):
    said = ask("", "", *arguments)
    assert said == "No such object (32)"


@pytest.mark.parametrize(
    ("dn", "password", "said"),
    [
        (ALICE, "wrong", "Invalid credentials (49)"),
        # T8: a bind with an empty password is a bind as nobody, which careless applications take for success.
        (ALICE, "", "unauthenticated bind (DN with no password) disallowed"),
        (f"uid=nobody,ou=people,{BASE}", "wrong", "Invalid credentials (49)"),
        (READER, "wrong", "Invalid credentials (49)"),
    ],
)
def test_wrong_logins_are_refused(dn, password, said):
    assert said in ask(dn, password, program="ldapwhoami")


def test_login(alice):
    assert ask(ALICE, alice, program="ldapwhoami") == f"dn:{ALICE}"


def test_wrong_ca_is_refused(reader):
    """T8: the certificate is verified, and only this site's CA has signed it."""
    assert "Can't contact LDAP server" in ask(READER, reader, ca="/etc/ssl/certs/ca-certificates.crt")


def test_nothing_listens_without_tls():
    """T8"""
    assert app1.run(f"ldapwhoami -x -H ldap://{ADDRESS} -o nettimeout=3 || echo refused").stdout.endswith("refused\n")
    listening = data1.check_output("ss -Hlnt 'sport = :389'")
    assert listening == ""
    listening = data1.check_output("ss -Hlnt 'sport = :636' | awk '{print $4}' | sort").split()
    assert listening == [f"{ADDRESS}:636", "127.0.0.1:636"]


def test_passwords_are_not_taken_without_tls(reader):
    """T8: and if somebody made it listen, it would still take no password in plain text."""
    data1.check_output("systemctl stop slapd && install -d -o openldap /run/slapd")
    try:
        data1.check_output(
            "systemd-run --quiet --unit=plain-slapd --uid=openldap --property=SupplementaryGroups=onprem-tls"
            " /usr/sbin/slapd -d 0 -F /etc/ldap/slapd.d -h ldap://127.0.0.1:3890"
        )
        said = data1.run(
            "for i in $(seq 100); do ss -Hlnt 'sport = :3890' | grep -q . && break; sleep 0.3; done;"
            f" ldapwhoami -x -H ldap://127.0.0.1:3890 -D {READER} -w '{reader}' 2>&1"
        ).stdout
    finally:
        data1.check_output("systemctl stop plain-slapd; systemctl start slapd")
    assert "Confidentiality required (13)" in said


def test_the_port_is_closed_to_strangers():
    assert not reachable(636)


def test_people_change_their_own_password_and_nothing_else(alice):
    try:
        changed = ask(ALICE, alice, "-a", alice, "-s", "alices own", program="ldappasswd")
        assert changed == ""
        assert ask(ALICE, alice, program="ldapwhoami").startswith("ldap_bind: Invalid credentials")
        own = "alices own"
        assert ask(ALICE, own, program="ldapwhoami") == f"dn:{ALICE}"
        for dn, attribute in (
            (ALICE, "mail"),
            (ALICE, "sn"),
            (BOB, "userPassword"),
            (f"cn=staff,ou=groups,{BASE}", "cn"),
        ):
            said = change(
                ALICE, own, f"dn: {dn}\nchangetype: modify\nreplace: {attribute}\n{attribute}: x@example.org\n"
            )
            assert "Insufficient access" in said or "No such object" in said, f"{dn} {attribute}: {said}"
        # She reads her own entry and nobody else's.
        assert [line for line in ask(ALICE, own).splitlines() if line.startswith("dn:")] == []
        # A program that writes the password in plain text: the server hashes it.
        assert "modifying" in change(
            ALICE, own, f"dn: {ALICE}\nchangetype: modify\nreplace: userPassword\nuserPassword: second own\n"
        )
        assert password_hash(ALICE).startswith("{ARGON2}$argon2id$")
        # A run never puts the first password back.
        assert converge()[:2] == (0, 0)
        assert ask(ALICE, "second own", program="ldapwhoami") == f"dn:{ALICE}"
    finally:
        data1.check_output(f"ldappasswd -Q -Y EXTERNAL -H ldapi:/// -s '{alice}' {ALICE}")


def test_every_password_is_hashed():
    for dn in (ALICE, BOB, READER, f"cn=admin,{BASE}"):
        assert password_hash(dn).startswith("{ARGON2}$argon2id$")


def test_admin_may_do_everything(secrets):
    said = ask(f"cn=admin,{BASE}", secrets("openldap_admin_password"), "(uid=bob)", "userPassword")
    assert "userPassword:: " in said


def test_a_rotated_password_is_taken_over(reader):
    assert converge(openldap_reader_password="another-reader-password")[:2] == (0, 1)
    assert ask(READER, "another-reader-password", program="ldapwhoami") == f"dn:{READER}"
    assert converge()[:2] == (0, 1)
    assert ask(READER, reader, program="ldapwhoami") == f"dn:{READER}"


def test_who_leaves_the_list_is_named_and_deleted_on_demand(reader):
    alone = [
        {"uid": "alice", "cn": "Alice Ames", "sn": "Ames", "mail": "alice@example.org", "password": "first password"}
    ]
    code, changed, said = converge(openldap_people=alone)
    # Alice is in no group any more; bob is left alone, and said to be.
    assert (code, changed) == (0, 1)
    assert f"not in openldap_people or openldap_groups: {BOB}" in " ".join(said.split())
    assert f"memberOf: cn=staff,ou=groups,{BASE}" in stored(BOB)
    assert "memberOf" not in stored(ALICE)

    code, changed, said = converge("--check", "--diff", openldap_people=alone, openldap_prune=True)
    assert (code, changed) == (0, 1)
    assert f"-dn: {BOB}" in said
    assert f"dn: {BOB}" in ask(READER, reader, "(uid=bob)")

    assert converge(openldap_people=alone, openldap_prune=True)[:2] == (0, 1)
    assert ask(READER, reader, "(uid=bob)") == ""
    assert f"member: cn=admin,{BASE}" in stored(f"cn=staff,ou=groups,{BASE}")
    assert converge(openldap_people=alone, openldap_prune=True)[:2] == (0, 0)

    assert converge()[:2] == (0, 1)
    assert f"memberOf: cn=staff,ou=groups,{BASE}" in stored(BOB)
    assert f"cn=admin,{BASE}" not in stored(f"cn=staff,ou=groups,{BASE}")
    assert converge()[:2] == (0, 0)


def test_the_directory_survives_a_crash_and_a_new_certificate(running, reader):
    running("slapd")
    assert data1.service("slapd").is_enabled
    data1.check_output("systemctl kill --signal=KILL --kill-whom=main slapd")
    deadline = time.monotonic() + 20
    while (answer := ask(READER, reader, program="ldapwhoami")) != f"dn:{READER}":
        assert time.monotonic() < deadline, answer + data1.check_output("journalctl --no-pager -n 30 -u slapd")
        time.sleep(1)
    # The server reads its certificate when it starts; one that came later is noticed.
    data1.check_output(f"touch {CA}")
    assert converge()[:2] == (0, 1)
    assert converge()[:2] == (0, 0)


def test_sandbox():
    assert score("slapd") <= 1.5
