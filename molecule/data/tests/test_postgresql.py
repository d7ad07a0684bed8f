# SPDX-License-Identifier: GPL-3.0-or-later
"""The database: who gets in and who does not, vectors, and what comes back after a crash."""

from __future__ import annotations

import time

import pytest
from lab import ADDRESS, CA, host, one_line, reachable, score
from lab import converge_postgresql as converge

UNIT = "postgresql@17-main"
LOGIN = f"host={ADDRESS} dbname=openwebui user=openwebui connect_timeout=5"
TLS = f"sslmode=verify-full sslrootcert={CA}"

testinfra_hosts = ["ansible://data1"]

app1 = host("app1")
data1 = host("data1")


def psql(target: str, password: str, statement: str = "select current_user") -> str:
    """From the other host: what the server said, good or bad."""
    result = app1.run(
        "PGPASSWORD=%s psql --no-psqlrc -AtX -v ON_ERROR_STOP=1 -c %s %s 2>&1", password, statement, target
    )
    return result.stdout.strip()


def superuser(statement: str, database: str = "postgres") -> str:
    return data1.check_output("cd / && runuser -u postgres -- psql -AtXc %s %s", statement, database)


@pytest.fixture(scope="module")
def password(secrets):
    return secrets("postgresql_openwebui_password")


def test_login_over_tls(password):
    assert psql(f"{LOGIN} {TLS}", password) == "openwebui"
    encrypted = "select ssl, version from pg_stat_ssl where pid = pg_backend_pid()"
    assert psql(f"{LOGIN} {TLS}", password, encrypted) in ("t|TLSv1.3", "t|TLSv1.2")


@pytest.mark.parametrize(
    ("target", "wrong", "said"),
    [
        (f"{LOGIN} sslmode=disable", False, "no encryption"),
        (f"{LOGIN} {TLS}", True, "password authentication failed"),
        (
            f"{LOGIN} sslmode=verify-full sslrootcert=/etc/ssl/certs/ca-certificates.crt",
            False,
            "certificate verify failed",
        ),
        (f"{LOGIN} dbname=postgres {TLS}", False, "no pg_hba.conf entry"),
        (f"{LOGIN} user=postgres {TLS}", False, "no pg_hba.conf entry"),
    ],
)
def test_nobody_else_gets_in(password, target, wrong, said):
    assert said in psql(target, "wrong-password" if wrong else password)


def test_the_port_is_closed_to_strangers():
    assert not reachable(5432)


def test_loopback_wants_the_password(password):
    login = "PGPASSWORD=%s psql -AtXc 'select 1' -h %s -U openwebui openwebui"
    for place in ("127.0.0.1", "/run/postgresql"):
        assert data1.check_output(login, password, place) == "1"
        assert data1.run(login, "wrong-password", place).rc != 0


def test_the_owner_is_no_superuser(password):
    flags = "rolsuper or rolcreatedb or rolcreaterole or rolreplication or rolbypassrls"
    assert psql(f"{LOGIN} {TLS}", password, f"select {flags} from pg_roles where rolname = 'openwebui'") == "f"
    assert superuser("select has_database_privilege('public', 'openwebui', 'CONNECT')") == "f"


def test_vectors_are_searched(password):
    statements = (
        "create temporary table t (n int, v vector(3));"
        " insert into t values (1, '[1,0,0]'), (2, '[0,1,0]');"
        " create index on t using hnsw (v vector_l2_ops);"
        " select n from t order by v <-> '[0,0.9,0.1]' limit 1"
    )
    assert psql(f"{LOGIN} {TLS}", password, statements).splitlines()[-1] == "2"


def test_the_database_speaks_unicode_whatever_the_host_does():
    assert superuser(
        "select pg_encoding_to_char(encoding), datcollate from pg_database where datname = 'openwebui'"
    ) == ("UTF8|C.UTF-8")


def test_sandbox(running):
    running(UNIT)
    assert data1.service(UNIT).is_enabled
    assert score(UNIT) <= 1.5


def test_the_server_comes_back_after_a_crash_with_its_data(password):
    psql(
        f"{LOGIN} {TLS}",
        password,
        "create table if not exists kept (n int); truncate kept; insert into kept values (7)",
    )
    data1.check_output("systemctl kill --signal=KILL --kill-whom=main %s", UNIT)
    deadline = time.monotonic() + 30
    while (answer := psql(f"{LOGIN} {TLS}", password, "select n from kept")) != "7":
        assert time.monotonic() < deadline, answer + data1.check_output("journalctl --no-pager -n 30 -u %s", UNIT)
        time.sleep(1)
    psql(f"{LOGIN} {TLS}", password, "drop table kept")
    # It answers a moment before its start counts as done.
    while not data1.service(UNIT).is_running:
        assert time.monotonic() < deadline
        time.sleep(1)


def test_it_stops_in_good_order():
    data1.check_output("systemctl stop %s", UNIT)
    ended = data1.check_output("systemctl show --property=ActiveState,Result %s", UNIT)
    data1.check_output("systemctl start %s", UNIT)
    assert sorted(ended.split()) == ["ActiveState=inactive", "Result=success"], ended


def test_a_run_that_broke_off_is_made_good_by_the_next():
    """Files were written, the service was not told: as after a run killed between the two."""
    start = "select pg_postmaster_start_time()"
    before = superuser(start)
    data1.check_output("touch /etc/postgresql/17/main/conf.d/onprem-llm.conf")
    assert converge()[:2] == (0, 1)
    assert superuser(start) != before
    data1.check_output("touch /etc/postgresql/17/main/pg_hba.conf")
    before, loaded = superuser(start), superuser("select pg_conf_load_time()")
    assert converge()[:2] == (0, 1)
    assert superuser(start) == before
    assert superuser("select pg_conf_load_time()") != loaded
    assert converge()[:2] == (0, 0)


def test_a_setting_the_server_refuses_never_lands():
    before = data1.check_output("sha256sum /etc/postgresql/17/main/conf.d/onprem-llm.conf")
    code, changed, said = converge(postgresql_settings={"max_conections": 10})
    assert (code, changed) == (2, 0)
    assert 'unrecognized configuration parameter "max_conections"' in one_line(said)
    assert data1.check_output("sha256sum /etc/postgresql/17/main/conf.d/onprem-llm.conf") == before


def test_a_changed_password_is_taken_over(password):
    entry = {"name": "openwebui", "owner": "openwebui", "password": "another-password-1", "extensions": ["vector"]}
    assert converge(postgresql_databases=[entry])[:2] == (0, 1)
    assert psql(f"{LOGIN} {TLS}", "another-password-1") == "openwebui"
    assert converge()[:2] == (0, 1)
    assert psql(f"{LOGIN} {TLS}", password) == "openwebui"
