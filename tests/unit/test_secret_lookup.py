# SPDX-License-Identifier: GPL-3.0-or-later
"""Secrets: created once with the right modes, stable, vault-able, the same for runs that start together."""

from __future__ import annotations

import multiprocessing
import re
import stat
from pathlib import Path

import pytest
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.vault import VaultLib, VaultSecret
from ansible.template import Templar

from ansible_collections.onprem.llm.plugins.lookup import secret


def look_up(folder: Path | str, *names: str, password: bytes | None = None, begin: bool = True) -> list[str]:
    loader = DataLoader()
    if password:
        loader.set_vault_secrets([("default", VaultSecret(password))])
    plugin = secret.LookupModule(loader=loader, templar=Templar(loader=loader))
    return plugin.run(list(names), {"secrets_dir": str(folder), "secrets_begin": begin})


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_created_with_the_right_modes_and_stable(tmp_path: Path) -> None:
    folder = tmp_path / "site/secrets"
    first = look_up(folder, "one", "two")
    assert all(re.fullmatch(r"[A-Za-z0-9]{32}", value) for value in first)
    assert first[0] != first[1]
    assert mode(folder) == 0o700
    assert mode(folder / "one") == 0o600
    assert sorted(p.name for p in folder.iterdir()) == ["one", "two"]
    assert look_up(folder, "one", "two") == first


def test_what_the_operator_wrote_is_read(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("  chosen by hand\n")
    assert look_up(tmp_path, "one") == ["chosen by hand"]


def test_a_file_encrypted_with_ansible_vault_is_read(tmp_path: Path) -> None:
    vault = VaultLib([("default", VaultSecret(b"open sesame"))])
    (tmp_path / "one").write_bytes(vault.encrypt("in the vault\n"))
    assert look_up(tmp_path, "one", password=b"open sesame") == ["in the vault"]
    with pytest.raises(AnsibleError, match="vault"):
        look_up(tmp_path, "one")


def test_an_empty_file_is_no_secret(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("\n")
    with pytest.raises(AnsibleError) as caught:
        look_up(tmp_path, "one")
    assert f"the secret file {tmp_path}/one is empty: restore it, or delete it to get a new one" in str(caught.value)


@pytest.mark.parametrize("name", ["../one", "a/b", "", "a b", "a\n"])
def test_a_name_that_is_no_plain_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(AnsibleError) as caught:
        look_up(tmp_path, name)
    assert f"'{name}' is no name for a secret: use letters, digits and _.@-" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [".", ".."])
def test_a_folder_is_no_secret(tmp_path: Path, name: str) -> None:
    with pytest.raises(AnsibleError):
        look_up(tmp_path, name)


def test_a_missing_folder_setting_is_named() -> None:
    with pytest.raises(AnsibleError) as caught:
        look_up("", "one")
    assert "secrets_dir is not set: it names the folder of this site's secrets" in str(caught.value)


def test_no_secret_is_made_up_where_the_site_has_none(tmp_path: Path) -> None:
    """A second operator, without the folder: an engine with another key than the door's would answer nobody."""
    with pytest.raises(AnsibleError) as caught:
        look_up(tmp_path / "secrets", "engine_api_key", begin=False)
    said = f"{tmp_path}/secrets has neither the secret engine_api_key nor a CA (tls/ca.crt)"
    assert said in str(caught.value)
    assert "Copy that folder from the control host that did it; for a new site run site.yml" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "secrets/tls").mkdir(parents=True)
    (tmp_path / "secrets/tls/ca.crt").write_text("the site's CA\n")
    assert len(look_up(tmp_path / "secrets", "user_carol", begin=False)[0]) == secret.LENGTH


def test_runs_that_start_together_get_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    with multiprocessing.get_context("fork").Pool(8) as pool:
        values = pool.starmap(look_up, [(folder, "one")] * 64, chunksize=1)
    assert len({value for found in values for value in found}) == 1
    assert [p.name for p in folder.iterdir()] == ["one"]
