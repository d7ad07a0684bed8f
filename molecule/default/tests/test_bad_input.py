# SPDX-License-Identifier: GPL-3.0-or-later
"""What the operator is told when something cannot work: variable or file, value, way out. The host stays as it was."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import samples
import server
from conftest import one_line, playbook, untouched

testinfra_hosts = ["ansible://box"]

GATEWAY = "10.77.1.1"
MODEL = {"kind": "chat", "revision": "master", "source": "sandbox", "include": ["*.gguf"], "entry": "model.gguf"}
SMALL = {"quantisation": "F16", "published": {
    "architecture": "llama", "block_count": 2, "context_length": 2048, "embedding_length": 64,
    "feed_forward_length": 128, "vocab_size": 256, "head_count": 4, "head_count_kv": 4,
    "key_length": 16, "value_length": 16,
}}  # fmt: skip
PLACEMENT = {"host": "box", "engine": "llamacpp"}


def refused(name: str, *arguments: str, changes: int = 0, **variables: Any) -> str:
    """What a run says that must end with an error, on one line; ``changes`` is how many tasks did something before."""
    result = playbook(f"{name}.yml", *arguments, "--extra-vars", json.dumps(variables))
    assert result.returncode == 2, result.stdout + result.stderr
    assert f"changed={changes} " in result.stdout, result.stdout
    return one_line(result.stdout + result.stderr)


def test_contradictions_are_found_before_any_host_is_asked(host, tmp_path):
    """All of them in one run: groups, placements, ports, sources, certificate."""
    inventory = tmp_path / "more.yml"
    inventory.write_text("openwebiu: {hosts: {box: }}\nllamacpp: {hosts: {spare: }}\n")
    with untouched(host):
        said = refused(
            "site",
            f"--inventory={inventory}",
            models=[
                MODEL | {"name": "one", "repo": "o/one", "source": "nas"},
                MODEL | {"name": "two", "repo": "o/two"},
                MODEL | {"name": "three", "repo": "o/three", "source": ""},
            ],
            placements=[
                PLACEMENT | {"model": "one", "port": 9101},
                PLACEMENT | {"model": "two", "port": 9101},
                PLACEMENT | {"model": "two", "port": 9103, "host": "spare"},
                PLACEMENT | {"model": "two", "port": 9103, "host": "bxo"},
            ],
            public_name="llm.corp.example",
            tls_source="provided",
            tls_key_file="/nowhere/llm.key",
        )
    for sentence in (
        "The inventory contradicts itself; no host was touched.",
        "inventory: the group 'openwebiu' does nothing. Did you mean 'openwebui'?",
        "inventory: 'spare' is a member of llamacpp but not of inference:",
        "Add it to inference.",
        "inventory: fleet_address of spare is 'spare', which is no IP address,",
        "tls_source is provided, but tls_certificate_file is empty: 'llm.corp.example' has no certificate."
        " Name the file on this machine, or set tls_source: own_ca.",
        "tls_key_file is '/nowhere/llm.key', and there is no such file on this machine. Correct the path,",
        "models: 'one' comes from the source 'nas', which is not in `model_sources` (there: modelscope, sandbox)."
        " Add it there, or choose one that is.",
        "models: 'three' has no source. Set it there, or name a catalogue entry that has it.",
        "placements: 'two' on 'box': port 9101 is taken by 'one' on the same host."
        " Give each model of a host its own port.",
        "placements: 'two' on 'spare': the host is no member of the group inference (members: box)."
        " Add it there, or place the model on a member.",
        "placements: 'two' on 'bxo': the host is no member of the group inference (members: box).",
    ):
        assert sentence in said, said
    assert "Gathering Facts" not in said and "PLAY [Inspect" not in said, said


def test_unsupported_system_ends_the_run_before_anything_is_planned(host):
    with untouched(host):
        said = refused("site", supported_systems=["Debian 99"])
    assert "box runs Debian 13" in said, said
    assert "Supported: Debian 99. Nothing was changed. Reinstall the host with one of these, or take it out" in said
    assert "PLAY [Plan" not in said, said


def test_a_damaged_header_is_found_before_a_byte_of_the_model_is_downloaded(host, hub):
    store = "/srv/llm/models"
    with untouched(host):
        said = refused(
            "site",
            models=[MODEL | {"name": "wrong", "repo": "onprem/wrong", "entry": "wrong.gguf"}],
            placements=[],
            model_sources={"sandbox": {"type": "modelscope", "url": hub}},
        )
    assert "wrong: nothing is known of it, so it cannot be planned. wrong.gguf: " in said, said
    assert "byte 0: begins with b'FGUF', a GGUF file begins with b'GGUF'" in said, said
    assert not host.file(f"{store}/onprem/wrong").exists


def test_model_source_without_an_address(host):
    with untouched(host):
        said = refused("playbooks/models", model_sources={"sandbox": {"type": "directory"}})
    assert "`model_sources`: sandbox has no path. Correct it there." in said, said


@pytest.fixture
def hub(tmp_path):
    """A hub of its own with a file that arrives damaged, and one that is damaged at the source."""
    for name, content in (("wrong", samples.gguf()), ("corrupt", samples.gguf()[:-64])):
        folder = tmp_path / "models/onprem" / name
        folder.mkdir(parents=True)
        (folder / f"{name}.gguf").write_bytes(content)
    served = server.Hub(tmp_path, (GATEWAY, 8091))
    served.faults = [server.Fault("wrong", "wrong.gguf")]
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://{GATEWAY}:8091"
    served.shutdown()
    served.server_close()


def test_damaged_files_are_never_published(host, hub):
    """Two models in one run: bytes that are not the promised ones, and promised bytes that are no model."""
    store = "/srv/llm/models"
    try:
        with untouched(host, but=f"{store}|{store}/[.]staging(/.*)?"):
            said = refused(
                "playbooks/models",
                changes=1,  # the transfer was started
                models=[
                    # Damage in the header is found by the plan already; with published figures it goes on.
                    MODEL | {"name": name, "repo": f"onprem/{name}", "entry": f"{name}.gguf", **SMALL}
                    for name in ("wrong", "corrupt")
                ],
                placements=[
                    PLACEMENT | {"model": "wrong", "port": 9101},
                    PLACEMENT | {"model": "corrupt", "port": 9102},
                ],
                model_sources={"sandbox": {"type": "modelscope", "url": hub}},
            )
        for sentence in (
            "model 'wrong':",
            "the bytes are not the ones promised: expected sha256",
            "They were deleted. Run again; if it stays so,",
            f"model 'corrupt': {store}/.staging/onprem--corrupt@master/corrupt.gguf",
            "truncated or corrupt.",
            "The file is what sandbox offers as revision 'master' of onprem/corrupt; it is not published."
            " Choose another revision or file, then delete",
        ):
            assert sentence in said, said
        for name in ("wrong", "corrupt"):
            assert not host.file(f"{store}/onprem/{name}").exists
            assert not host.run(f"test -L /srv/llm/served/{name}").succeeded
    finally:
        host.run(f"rm -rf {store}/.staging/onprem--*")


def test_disk_smaller_than_the_model(host):
    """A real one, of a megabyte."""
    host.check_output("mkdir -p /srv/small && mount -t tmpfs -o size=1m none /srv/small")
    try:
        places = {"models_dir": "/srv/small/models", "served_dir": "/srv/small/served"}
        # The unit may write where the models go, and nowhere else.
        with untouched(host, but="/etc/systemd/system(/model_store.*)?"):
            said = refused("playbooks/models", changes=1, **places)
        assert "must still be stored in /srv/small/models, where 1.0 MB are free:" in said, said
        assert "Nothing was downloaded. Make room there, set `models_dir` to a larger disk, or choose a smaller" in said
        assert host.check_output("ls /srv/small") == ""
    finally:
        host.check_output("umount /srv/small && rmdir /srv/small")
        assert playbook("playbooks/models.yml").returncode == 0


# What the directory answers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_ca(tmp_path_factory) -> Path:
    """The certificate of an authority that signed nothing."""
    folder = tmp_path_factory.mktemp("ca")
    make = "openssl req -x509 -newkey ec -pkeyopt group:P-256 -subj /CN=Other -noenc -keyout ca.key -out ca.crt"
    subprocess.run(make.split(), cwd=folder, check=True, capture_output=True)
    return folder / "ca.crt"


def test_directory_that_cannot_be_reached(host):
    with untouched(host):
        said = refused("playbooks/web", ldap_port=637)
    assert "LDAP server localhost:637: not reachable from this host" in said, said
    assert "Correct ldap_host and ldap_port, or let this host through the firewall in front of the server." in said


def test_directory_that_another_authority_vouches_for(host, other_ca):
    with untouched(host):
        said = refused("playbooks/web", ldap_ca_file=str(other_ca))
    assert "LDAP server localhost:636: its certificate was not signed by the authority in" in said, said
    assert f"{other_ca}: " in said
    assert "Set ldap_ca_file to the certificate of the authority that signed it. Nothing was sent to the server" in said


def test_directory_that_refuses_the_reader(host):
    with untouched(host):
        said = refused("playbooks/web", ldap_bind_password="planted-wrong-password")
    assert "LDAP server localhost:636: refuses the login of cn=reader,dc=sandbox,dc=example:" in said, said
    assert "Correct ldap_bind_dn or ldap_bind_password." in said
    assert "planted-wrong-password" not in said


def test_user_without_mail(host):
    name = "uid=nomail,ou=people,dc=sandbox,dc=example"
    entry = f"dn: {name}\nobjectClass: inetOrgPerson\nuid: nomail\ncn: No Mail\nsn: Mail\n"
    host.check_output(f"echo '{entry}' | ldapadd -Q -Y EXTERNAL -H ldapi:///")
    try:
        with untouched(host):
            said = refused("playbooks/web", ldap_user_filter="(uid=nomail)")
    finally:
        host.check_output(f"ldapdelete -Q -Y EXTERNAL -H ldapi:/// {name}")
    assert "none of the 1 users has the attribute mail, and without a mail address nobody can sign in: nomail." in said
    assert "Name the attribute that holds it in ldap_mail_attribute, give the users one, or let" in said
