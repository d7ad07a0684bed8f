# SPDX-License-Identifier: GPL-3.0-or-later
"""The probe against a server that speaks LDAP over real TLS, with certificates made here."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ansible_collections.onprem.llm.plugins.module_utils import ldap_probe as ldap
from ansible_collections.onprem.llm.plugins.module_utils.ldap_probe import integer, octets, split, tlv

PEOPLE = [("alice", "alice@example.org"), ("bob", "bob@example.org"), ("carol", "")]


class Directory:
    """Answers binds and searches, two entries to a page."""

    def __init__(self, people: list[tuple[str, str]], folder: Path, tls: bool = True) -> None:
        self.people = people
        self.filters: list[bytes] = []
        self.context = None
        if tls:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(folder / "server.crt", folder / "server.key")
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError, ValueError):
                if self.context is None:
                    connection.recv(100)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    connection.close()
                    continue
                with self.context.wrap_socket(connection, server_side=True) as secure:
                    self.talk(secure)

    def talk(self, secure: ssl.SSLSocket) -> None:
        while data := secure.recv(65536):
            ((_, message),) = split(data)
            (_, number), (tag, content), *controls = split(message)
            if tag == 0x60:
                _, _, (_, password) = split(content)
                secure.sendall(self.reply(number, 0x61, 0 if password == b"right" else 49))
                continue
            (_, base), *_, (filter_tag, filter_content), _ = split(content)
            self.filters.append(bytes([filter_tag]) + filter_content)
            if base == b"dc=nowhere":
                secure.sendall(self.reply(number, 0x65, 32))
                continue
            (_, control) = next(iter(split(controls[0][1])))
            *_, (_, value) = split(control)
            ((_, pair),) = split(value)
            start = int(list(split(pair))[1][1] or b"0")
            for name, mail in self.people[start : start + 2]:
                attributes = [tlv(0x30, octets("uid"), tlv(0x31, octets(name)))]
                attributes += [tlv(0x30, octets("mail"), tlv(0x31, octets(mail)))] if mail else []
                entry = tlv(0x64, octets(f"uid={name},dc=test"), tlv(0x30, *attributes))
                secure.sendall(tlv(0x30, tlv(0x02, number), entry))
            cookie = str(start + 2) if start + 2 < len(self.people) else ""
            page = octets(tlv(0x30, integer(0), octets(cookie)))
            secure.sendall(self.reply(number, 0x65, 0, tlv(0xA0, tlv(0x30, octets(ldap.PAGED_RESULTS), page))))

    @staticmethod
    def reply(number: bytes, tag: int, code: int, controls: bytes = b"") -> bytes:
        return tlv(0x30, tlv(0x02, number), tlv(tag, integer(code, 0x0A), octets(""), octets("")), controls)


def certificate(folder: Path, name: str, issuer: str | None, address: str = "127.0.0.1") -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.timezone.utc)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    signer = subject if issuer is None else x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)])
    builder = x509.CertificateBuilder(signer, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(
        now + datetime.timedelta(days=1)
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    if issuer is not None:
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        builder = builder.add_extension(names, critical=False)
        loaded = serialization.load_pem_private_key((folder / f"{issuer}.key").read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        signed = builder.sign(loaded, hashes.SHA256())
    else:
        signed = builder.sign(key, hashes.SHA256())
    private = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / f"{name}.key").write_bytes(key.private_bytes(*private))
    (folder / f"{name}.crt").write_bytes(signed.public_bytes(serialization.Encoding.PEM))


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    certificate(folder, "ca", None)
    certificate(folder, "other", None)
    certificate(folder, "server", "ca")
    return folder


@pytest.fixture
def directory(pki: Path) -> Iterator[Directory]:
    server = Directory(list(PEOPLE), pki)
    yield server
    server.listener.close()


def settings(server: Directory, pki: Path) -> ldap.Settings:
    return ldap.Settings(
        host="127.0.0.1",
        port=server.port,
        base="dc=test",
        bind_dn="cn=reader",
        bind_password="right",
        user_filter="(objectClass=person)",
        ca_file=str(pki / "ca.crt"),
        timeout=5,
    )


def test_reads_every_page_and_names_users_without_mail(directory: Directory, pki: Path) -> None:
    asked = settings(directory, pki)
    report = ldap.probe(asked)
    assert (report.users, report.without_mail) == (3, ["carol"])
    assert len(directory.filters) == 2
    (warning,) = report.warnings(asked)
    assert "1 of 3 users below dc=test have no mail and cannot sign in: carol." in warning
    assert "ldap_mail_attribute" in warning


def test_the_certificate_may_come_as_text(directory: Directory, pki: Path) -> None:
    text = (pki / "ca.crt").read_text()
    asked = dataclasses.replace(settings(directory, pki), ca_data=text, ca_file="/not/here/yet.crt")
    assert ldap.probe(asked).users == 3


def test_a_made_up_domain_makes_mail_unnecessary(directory: Directory, pki: Path) -> None:
    asked = dataclasses.replace(settings(directory, pki), mail_domain="example.org")
    assert ldap.probe(asked).without_mail == []


def test_users_who_share_an_address_are_named(directory: Directory, pki: Path) -> None:
    directory.people = [("alice", "same@example.org"), ("bob", "Same@example.org")]
    asked = settings(directory, pki)
    assert ldap.probe(asked).shared_mail == ["same@example.org (alice, bob)"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ca_file": "other.crt"}, "not signed by the authority in .*other.crt.*Set ldap_ca_file.*Nothing was sent"),
        ({"ca_file": "missing.crt"}, "missing.crt: there is no such file.*Set ldap_ca_file"),
        ({"ca_file": "ca.key"}, "ca.key: holds no certificate.*Set ldap_ca_file"),
        ({"host": "localhost"}, "localhost:.*for another name.*Set ldap_host"),
        ({"port": 1}, "127.0.0.1:1: not reachable.*ldap_host and ldap_port"),
        (
            {"bind_password": "wrong"},
            r"cn=reader: invalidCredentials \(49\).*ldap_bind_dn or ldap_bind_password",
        ),
        ({"bind_password": ""}, "ldap_bind_password is empty"),
        ({"base": "dc=nowhere"}, r"base dc=nowhere.*noSuchObject \(32\).*correct ldap_base"),
        ({"user_filter": "objectClass=person"}, "ldap_user_filter is 'objectClass=person'.*one filter in parentheses"),
    ],
)
def test_one_clear_message(directory: Directory, pki: Path, change: dict[str, object], message: str) -> None:
    asked = dataclasses.replace(settings(directory, pki), **change)  # type: ignore[arg-type]
    if "ca_file" in change:
        asked.ca_file = str(pki / str(change["ca_file"]))
    with pytest.raises(ldap.LdapProbeError, match=message):
        ldap.probe(asked)


def test_only_a_server_that_may_still_come_up_counts_as_unreachable(directory: Directory, pki: Path) -> None:
    for change, reachable in ({"port": 1}, False), ({"bind_password": "wrong"}, True):
        asked = dataclasses.replace(settings(directory, pki), **change)
        with pytest.raises(ldap.LdapProbeError) as caught:
            ldap.probe(asked)
        assert caught.value.reachable is reachable


@pytest.mark.parametrize(
    ("people", "message"),
    [
        ([], "no user has the attribute uid.*ldap_base"),
        ([("carol", ""), ("dan", "")], "none of the 2 users has the attribute mail.*carol, dan.*ldap_mail_attribute"),
    ],
)
def test_nobody_could_sign_in(directory: Directory, pki: Path, people: list[tuple[str, str]], message: str) -> None:
    directory.people = people
    with pytest.raises(ldap.LdapProbeError, match=message):
        ldap.probe(settings(directory, pki))


def test_a_port_without_tls(pki: Path) -> None:
    server = Directory([], pki, tls=False)
    with pytest.raises(ldap.LdapProbeError, match=r"does not speak TLS on this port.*ldap_port.*636"):
        ldap.probe(settings(server, pki))
    server.listener.close()


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("(uid=*)", b"\x87\x03uid"),
        ("(uid=a\\2ab)", b"\xa3\x0a\x04\x03uid\x04\x03a*b"),
        ("(cn=a*b*c)", b"\xa4\x0f\x04\x02cn\x30\x09\x80\x01a\x81\x01b\x82\x01c"),
        ("(!(cn=a))", b"\xa2\x09\xa3\x07\x04\x02cn\x04\x01a"),
        ("(|(cn=a)(sn>=c))", b"\xa1\x12\xa3\x07\x04\x02cn\x04\x01a\xa5\x07\x04\x02sn\x04\x01c"),
        ("(m:1.2.840:=x)", b"\xa9\x0f\x81\x07" + b"1.2.840" + b"\x82\x01m\x83\x01x"),
    ],
)
def test_filters(text: str, encoded: bytes) -> None:
    assert ldap.encode_filter(text) == encoded


@pytest.mark.parametrize("text", ["", "uid=a", "(uid=a", "(uid=a))", "(&)", "(!(a=1)(b=2))", "(nonsense)", "((a=1))"])
def test_broken_filters(text: str) -> None:
    with pytest.raises(ValueError, match=r"parenthesis|condition|conditions"):
        ldap.encode_filter(text)


def test_long_elements() -> None:
    for size in (0, 127, 128, 255, 256, 70000):
        assert next(split(octets(b"x" * size))) == (4, b"x" * size)
    assert [value for _, value in split(integer(128) + integer(0))] == [b"\x00\x80", b"\x00"]
