# SPDX-License-Identifier: GPL-3.0-or-later
"""Which components a host's sources lack, from what apt says about them."""

from __future__ import annotations

from ansible_collections.onprem.llm.plugins.module_utils.apt_components import HEAD, UNKNOWN, key_of, source

KEY = "/usr/share/keyrings/debian-archive-keyring.gpg"
OWN = "more.sources"
WANTED = ["contrib", "non-free"]


def line(
    release: str,
    component: str = "main",
    *,
    archive: str = "debian",
    key: str = KEY,
    file: str = "os.sources:1",
    code: str = "",
) -> str:
    return f"http://mirror/{archive}/|{release}|{code}|{component}|{key}|/etc/apt/sources.list.d/{file}"


def of(*lines: str) -> str:
    return source("\n".join(lines), "trixie", WANTED, OWN)


def test_a_fresh_host_gets_them_for_each_archive_under_its_key() -> None:
    assert of(line("trixie"), line("trixie-updates"), line("trixie-security", archive="security")) == (
        f"{HEAD}Types: deb\nURIs: http://mirror/debian/\nSuites: trixie trixie-updates\nComponents: contrib non-free\n"
        f"Signed-By: {KEY}\n\n"
        "Types: deb\nURIs: http://mirror/security/\nSuites: trixie-security\nComponents: contrib non-free\n"
        f"Signed-By: {KEY}\n"
    )


def test_what_the_host_has_is_not_named_again() -> None:
    assert of(line("trixie"), line("trixie", "contrib"), line("trixie", "non-free")) == ""
    assert "Components: non-free\n" in of(line("trixie"), line("trixie", "contrib"))
    # trixie-updates has no package in them, and apt says nothing of empty lists.
    assert of(line("trixie"), line("trixie", "contrib"), line("trixie", "non-free"), line("trixie-updates")) == ""


def test_its_own_file_does_not_count() -> None:
    before = of(line("trixie"))
    assert (
        of(line("trixie"), line("trixie", "contrib", file=f"{OWN}:2"), line("trixie", "non-free", file=f"{OWN}:2"))
        == before
    )


def test_archives_of_others_are_left_alone() -> None:
    assert of(line("trixie", key="/etc/apt/keyrings/vendor.gpg")) == ""
    assert of(line("trixie-pgdg"), line("bookworm"), line("trixie-backports")) == ""


def test_a_suite_is_known_by_its_code_name() -> None:
    assert "Suites: stable\n" in of(line("stable", code="trixie"))


def test_a_source_without_a_key_gets_none() -> None:
    assert "Signed-By" not in of(line("trixie", key=""))


DEB822 = f"Types: deb\nURIs: http://mirror/debian\nSuites: trixie\nComponents: main\nSigned-By: {KEY}\n"
LIST = f"deb [arch=amd64 signed-by={KEY}] http://mirror/debian/ trixie main\n"


def test_an_apt_that_tells_no_key_is_read_up_on() -> None:
    targets = line("trixie", key=UNKNOWN)
    asked: list[str] = []

    def read(name: str) -> str:
        asked.append(name)
        return DEB822

    assert f"Signed-By: {KEY}\n" in source(targets, "trixie", WANTED, OWN, read)
    assert asked == ["/etc/apt/sources.list.d/os.sources"]


def test_a_key_is_found_in_both_forms_and_only_for_its_archive() -> None:
    assert key_of(DEB822, "http://mirror/debian/") == KEY
    assert key_of(LIST, "http://mirror/debian/") == KEY
    assert key_of("deb http://other/ trixie main\n" + LIST, "http://mirror/debian/") == KEY
    assert key_of("deb http://mirror/debian trixie main\n", "http://mirror/debian/") == ""
    assert key_of(DEB822, "http://mirror/debian-security/") == ""
