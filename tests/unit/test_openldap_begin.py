# SPDX-License-Identifier: GPL-3.0-or-later
"""Before slapd is installed: the package is told the directory's name, and somebody else's server is seen."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "roles/openldap/files/begin"
BASE = "dc=corp,dc=example"
Begin = Callable[..., str]


@pytest.fixture
def begin(tmp_path: Path) -> Begin:
    told = tmp_path / "debconf-set-selections"
    told.write_text(f"#!/bin/sh\ncat > {tmp_path}/told\n")
    told.chmod(0o755)

    def call(check: str = "tell") -> str:
        return subprocess.run(
            ["/bin/sh", SCRIPT, tmp_path / "slapd.d", tmp_path / "options", BASE, "corp.example", check],
            env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    return call


def server(folder: Path, *suffixes: str) -> None:
    (folder / "slapd.d/cn=config").mkdir(parents=True)
    (folder / "slapd.d/cn=config.ldif").write_text("dn: cn=config\n")
    for number, suffix in enumerate(suffixes):
        (folder / f"slapd.d/cn=config/olcDatabase={{{number}}}mdb.ldif").write_text(f"olcSuffix: {suffix}\n")


def test_the_package_is_told_the_name_of_the_directory(tmp_path: Path, begin: Begin) -> None:
    assert begin("check") == "told" and not (tmp_path / "told").exists()
    assert begin() == "told"
    assert "slapd slapd/domain string corp.example\n" in (tmp_path / "told").read_text()


@pytest.mark.parametrize(
    ("suffixes", "said"),
    [
        ((BASE.upper(),), ""),
        (("dc=other,dc=org", BASE), ""),
        (("dc=other,dc=org",), "holds dc=other,dc=org"),
        ((f"ou=x,{BASE}",), f"holds ou=x,{BASE}"),
        (("",), "holds no directory yet"),
    ],
)
def test_a_server_of_somebody_else_is_seen(tmp_path: Path, begin: Begin, suffixes: tuple[str, ...], said: str) -> None:
    server(tmp_path, *suffixes)
    assert begin() == said
    (tmp_path / "options").touch()
    assert begin() == "", "with our options it is ours, whatever it holds: the directory itself says more"
    assert not (tmp_path / "told").exists()
