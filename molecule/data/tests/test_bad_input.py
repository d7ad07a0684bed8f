# SPDX-License-Identifier: GPL-3.0-or-later
"""What the operator is told when settings cannot work: variable, value and way out. And nothing changes."""

from __future__ import annotations

import pytest
from conftest import INVENTORY, playbook
from lab import converge, host, one_line

PERSON = {"cn": "X", "sn": "X", "mail": "x@example.org", "password": "long enough"}
DATABASE = {"owner": "app", "password": "long enough password"}


@pytest.mark.parametrize(
    ("variables", "sentences"),
    [
        (
            {
                "postgresql_vector": False,
                "postgresql_clients": ["nowhere"],
                "postgresql_databases": [
                    DATABASE | {"name": "My-DB"},
                    DATABASE | {"name": "twice"},
                    DATABASE | {"name": "twice", "owner": "postgres", "password": "short"},
                    DATABASE | {"name": "rag", "extensions": ["vector"], "password": "another long password"},
                ],
            },
            [
                "postgresql_clients names 'nowhere', which is no host of this inventory.",
                "postgresql_databases: name 'My-DB' is no plain identifier. Use lower case letters",
                "postgresql_databases has 'twice' more than once. Keep one entry.",
                "postgresql_databases: 'twice' is owned by postgres, the superuser.",
                "postgresql_databases: the password of 'postgres' has 5 characters. Set at least 12",
                "'rag' wants the extension vector and postgresql_vector is false. Set postgresql_vector: true, or",
                "postgresql_databases: 'app' owns My-DB, twice, rag with different passwords.",
            ],
        ),
        (
            {"postgresql_version": "99"},
            [
                "postgresql-99 and postgresql-99-pgvector: data1 (Debian 13) has no such package, so nothing was"
                " installed."
            ],
        ),
        (
            {
                "openldap_base": "dc=example, dc=org",
                "openldap_clients": ["nowhere"],
                "openldap_reader_password": "short",
                "openldap_groups": ["staff", "a,b"],
                "openldap_people": [
                    PERSON | {"uid": "nomail", "mail": ""},
                    PERSON | {"uid": "badmail", "mail": "badmail"},
                    PERSON | {"uid": "twice"},
                    PERSON | {"uid": "twice", "mail": "other@example.org"},
                    PERSON | {"uid": "same", "mail": "X@example.org"},
                    PERSON | {"uid": "Upper", "mail": "upper@example.org", "password": "short"},
                    PERSON | {"uid": "lost", "mail": "lost@example.org", "groups": ["staff", "sales"]},
                ],
            },
            [
                "openldap_base is 'dc=example, dc=org', which is no name in domain style."
                " Write it like dc=example,dc=org",
                "openldap_clients names 'nowhere', which is no host of this inventory.",
                "openldap_reader_password has 5 characters. Set at least 12",
                "openldap_groups has 'a,b'. Use letters",
                "openldap_people: 'nomail' has no mail. Applications know people by their mail address, and refuse who"
                " has none: add mail to the entry of nomail.",
                "the mail of 'badmail' is 'badmail', which is no mail address. Write it like badmail@example.org.",
                "openldap_people: the uid 'twice' is there more than once. Keep one entry per person.",
                "openldap_people: 'same' has the mail X@example.org of somebody else in the list.",
                "openldap_people: the uid 'Upper' cannot be used to log in. Use lower case letters",
                "openldap_people: the password of 'Upper' has 5 characters.",
                "openldap_people: 'lost' is to be in the group 'sales', which openldap_groups does not have (staff,"
                " a,b). Add it there, or correct the name.",
            ],
        ),
        (
            {"openldap_base": "dc=other,dc=org"},
            ["the directory server on this host does not hold 'dc=other,dc=org'. It was set up for another base"],
        ),
    ],
)
def test_message(variables, sentences):
    code, changed, said = converge(**variables)
    assert (code, changed) == (2, 0), said
    for sentence in sentences:
        assert sentence in one_line(said), said


def test_debian_12_has_no_pgvector():
    result = playbook("playbooks/data.yml", "-i", "molecule/data/debian12.ini", "--limit", "app1")
    said = one_line(result.stdout)
    assert result.returncode == 2
    assert "postgresql-15-pgvector: app1 (Debian 12) has no such package, so nothing was installed." in said
    assert "Put the group postgresql on a host with Debian 13 or Ubuntu 24.04" in said
    assert "set postgresql_vector: false" in said
    assert "changed=0" in said
    assert not host("app1").package("postgresql-15").is_installed


def test_no_secret_is_in_output_or_logs():
    """T12: even when everything is written anew and the run is as talkative as it gets."""
    planted = "planted-secret-of-the-reader"
    host("data1").check_output("ldapdelete -Q -Y EXTERNAL -H ldapi:/// uid=bob,ou=people,dc=example,dc=org")
    try:
        code, _changed, said = converge("-vvv", "--diff", openldap_reader_password=planted)
    finally:
        assert converge()[:2] == (0, 1)
    assert code == 0
    # Without what these tests themselves typed.
    journal = host("data1").check_output("journalctl --no-pager | grep -v ' sudo\\['")
    values = {file.name: file.read_text().strip() for file in (INVENTORY / "secrets").iterdir() if file.is_file()}
    assert {"user_bob", "postgresql_openwebui_password"} <= set(values)
    for name, value in [*values.items(), ("planted", planted)]:
        assert value not in said, f"{name} is in the output"
        assert value not in journal, f"{name} is in the journal"


def test_a_directory_of_somebody_else_is_left_alone(tmp_path):
    inventory = tmp_path / "openldap.ini"
    inventory.write_text("[openldap]\napp1\n")
    app1 = host("app1")
    with app1.sudo():
        app1.check_output("DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends slapd")
        try:
            before = app1.check_output("systemctl show --property MainPID,DropInPaths slapd")
            result = playbook("playbooks/data.yml", "-i", str(inventory), "--limit", "app1", "--tags", "openldap")
            said = one_line(result.stdout)
            assert result.returncode == 2 and "changed=0" in said, said
            assert "slapd is on app1 already, set up by somebody else: it holds dc=" in said, said
            assert "Put the group openldap on another host" in said
            assert app1.check_output("systemctl show --property MainPID,DropInPaths slapd") == before
        finally:
            app1.check_output("DEBIAN_FRONTEND=noninteractive apt-get purge -qq slapd")


def test_a_database_server_of_somebody_else_is_left_alone(tmp_path):
    inventory = tmp_path / "postgresql.ini"
    inventory.write_text("[postgresql]\napp1\n")
    app1, plain = host("app1"), ("--extra-vars", '{"postgresql_vector": false, "postgresql_databases": []}')

    def refused():
        result = playbook("playbooks/data.yml", "-i", str(inventory), "--limit", "app1", "--tags", "postgresql", *plain)
        said = one_line(result.stdout)
        assert result.returncode == 2 and "changed=0" in said, said
        assert "PostgreSQL is on app1 already, and is not the one that this run would set up: it holds" in said, said
        assert "Put the group postgresql on another host" in said
        return said

    with app1.sudo():
        app1.check_output("DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends postgresql")
        version, cluster = app1.check_output("pg_lsclusters --no-header | awk '{print $1, $2}'").split()
        try:
            app1.check_output("cd / && runuser -u postgres -- createdb theirs")
            rules = app1.check_output("sha256sum /etc/postgresql/*/main/pg_hba.conf")
            # Also one that does not run; then one that only has the port.
            app1.check_output(f"systemctl stop postgresql@{version}-{cluster}")
            assert "holds the database theirs." in refused()
            assert app1.check_output("pg_lsclusters --no-header").split()[3] == "down"
            app1.check_output(f"pg_renamecluster {version} {cluster} other")
            assert f"holds the port 5432 with its cluster {version}/other." in refused()
            app1.check_output(f"pg_renamecluster {version} other {cluster}")
            assert app1.check_output("sha256sum /etc/postgresql/*/main/pg_hba.conf") == rules
        finally:
            app1.check_output(
                f"DEBIAN_FRONTEND=noninteractive apt-get purge -qq postgresql postgresql-{version} postgresql-common"
                " && rm -rf /var/lib/postgresql /etc/postgresql"
            )
