# SPDX-License-Identifier: GPL-3.0-or-later
"""Asking an LDAP server whether people could sign in through it: TLS, bind, search. Standard library only.

It must run on a host that has nothing installed yet, and say precisely what is wrong, so it speaks the little of the
protocol it needs itself: simple bind and a paged search (RFC 4511, 4515, 2696), over ldaps alone.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PAGE = 500
PAGED_RESULTS = b"1.2.840.113556.1.4.319"
SUCCESS, REFERRAL, NO_SUCH_OBJECT, INVALID_CREDENTIALS = 0, 10, 32, 49
RESULT_NAMES = {
    1: "operationsError", 3: "timeLimitExceeded", 4: "sizeLimitExceeded", 7: "authMethodNotSupported",
    8: "strongerAuthRequired", 10: "referral", 12: "unavailableCriticalExtension", 13: "confidentialityRequired",
    32: "noSuchObject", 34: "invalidDNSyntax", 48: "inappropriateAuthentication", 49: "invalidCredentials",
    50: "insufficientAccessRights", 51: "busy", 52: "unavailable", 53: "unwillingToPerform",
}  # fmt: skip


class LdapProbeError(Exception):
    """What stands between the people of this directory and their login. The text names the setting and the way out."""

    def __init__(self, message: str, reachable: bool = True) -> None:
        super().__init__(message)
        self.reachable = reachable


class LdapRefused(Exception):
    """The server answered an operation with an error."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        name = RESULT_NAMES.get(code, "error")
        super().__init__(f"{name} ({code}){': ' + text if text else ''}")


class ProtocolError(Exception):
    """The other side speaks something that is not LDAP."""


# --- BER, as far as LDAP needs it


def tlv(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def integer(value: int, tag: int = 0x02) -> bytes:
    return tlv(tag, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def octets(value: bytes | str, tag: int = 0x04) -> bytes:
    return tlv(tag, value.encode() if isinstance(value, str) else value)


def split(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The elements that stand one after another in ``data``."""
    place = 0
    while place < len(data):
        end, start = frame(data, place)
        if end > len(data):
            raise ProtocolError("an element is cut off")
        yield data[place], data[start:end]
        place = end


def frame(data: bytes, place: int = 0) -> tuple[int, int]:
    """End of the element at ``place`` and start of its content; end is past ``data`` while more bytes are needed."""
    if len(data) < place + 2:
        return len(data) + 1, 0
    size = data[place + 1]
    start = place + 2
    if size & 0x80:
        count = size & 0x7F
        if count == 0 or count > 4:
            raise ProtocolError("an element has an impossible length")
        if len(data) < start + count:
            return len(data) + 1, 0
        size = int.from_bytes(data[start : start + count], "big")
        start += count
    return start + size, start


# --- search filters


def unescape(text: str) -> bytes:
    """The value of a filter: ``\\2a`` stands for an asterisk."""
    return re.sub(rb"\\([0-9a-fA-F]{2})", lambda hit: bytes([int(hit[1], 16)]), text.encode())


def encode_filter(text: str) -> bytes:
    """``(&(uid=*)(objectClass=person))`` in BER. Raises ValueError with the place that is wrong."""
    encoded, rest = _filter(text.strip(), text)
    if rest:
        raise ValueError(f"there is something after the last parenthesis: '{rest}'")
    return encoded


def _filter(rest: str, whole: str) -> tuple[bytes, str]:
    if not rest.startswith("("):
        raise ValueError(f"a parenthesis is missing before '{rest or whole}'")
    rest = rest[1:].lstrip()
    if rest[:1] in ("&", "|", "!"):
        operator = rest[0]
        rest = rest[1:].lstrip()
        parts = []
        while rest.startswith("("):
            part, rest = _filter(rest, whole)
            rest = rest.lstrip()
            parts.append(part)
        if not parts or (operator == "!" and len(parts) != 1):
            raise ValueError(f"'{operator}' has the wrong number of conditions")
        encoded = tlv({"&": 0xA0, "|": 0xA1, "!": 0xA2}[operator], *parts)
    else:
        item, closing, rest = rest.partition(")")
        if not closing or "(" in item:
            raise ValueError(f"the parenthesis before '{item}' is never closed")
        return _condition(item), rest.lstrip()
    if not rest.startswith(")"):
        raise ValueError("a closing parenthesis is missing")
    return encoded, rest[1:].lstrip()


def _condition(item: str) -> bytes:
    found = re.fullmatch(r"([A-Za-z0-9.;-]*)((?::dn)?(?::[A-Za-z0-9.-]+)?)(:=|>=|<=|~=|=)(.*)", item, re.DOTALL)
    if not found or not (found[1] or found[2]):
        raise ValueError(f"'{item}' is no condition of the form attribute=value")
    attribute, rule, operator, value = found.groups()
    if operator == ":=":
        name = rule.replace(":dn", "", 1).lstrip(":") if rule.startswith(":dn") else rule.lstrip(":")
        return tlv(
            0xA9,
            octets(name, 0x81) if name else b"",
            octets(attribute, 0x82) if attribute else b"",
            octets(unescape(value), 0x83),
            tlv(0x84, b"\xff") if rule.startswith(":dn") else b"",
        )
    if operator != "=":
        return tlv({">=": 0xA5, "<=": 0xA6, "~=": 0xA8}[operator], octets(attribute), octets(unescape(value)))
    if value == "*":
        return octets(attribute, 0x87)
    if "*" not in value:
        return tlv(0xA3, octets(attribute), octets(unescape(value)))
    first, *middle, last = value.split("*")
    parts = [octets(unescape(first), 0x80)] if first else []
    parts += [octets(unescape(part), 0x81) for part in middle if part]
    parts += [octets(unescape(last), 0x82)] if last else []
    return tlv(0xA4, octets(attribute), tlv(0x30, *parts))


# --- a connection


class Connection:
    """An ldaps connection, as far as a bind and a search need it."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext, timeout: float) -> None:
        self._number = 0
        self._waiting = b""
        raw = socket.create_connection((host, port), timeout=timeout)
        try:
            self._socket = context.wrap_socket(raw, server_hostname=host)
        except BaseException:
            raw.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def bind(self, name: str, password: str) -> None:
        self._send(tlv(0x60, integer(3), octets(name), octets(password, 0x80)))
        for tag, content, _ in self._answers():
            if tag == 0x61:
                return self._check(content)

    def search(self, base: str, filter_text: str, attributes: list[str], limit: int) -> Iterator[dict[str, list[str]]]:
        """The entries below ``base``, each {attribute in lower case: values}; ``dn`` is the name."""
        cookie, count = b"", 0
        wanted = tlv(0x30, *(octets(name) for name in attributes))
        while True:
            control = tlv(0x30, octets(PAGED_RESULTS), octets(tlv(0x30, integer(PAGE), octets(cookie))))
            request = tlv(
                0x63, octets(base), integer(2, 0x0A), integer(0, 0x0A), integer(0), integer(0), tlv(0x01, b"\x00"),
                encode_filter(filter_text), wanted,
            )  # fmt: skip
            self._send(request, tlv(0xA0, control))
            cookie = b""
            for tag, content, controls in self._answers():
                if tag == 0x64:
                    count += 1
                    yield self._entry(content)
                elif tag == 0x65:
                    self._check(content)
                    cookie = self._cookie(controls)
                    break
            if not cookie or count >= limit:
                return

    @staticmethod
    def _entry(content: bytes) -> dict[str, list[str]]:
        (_, name), (_, pairs) = split(content)
        entry = {"dn": [name.decode(errors="replace")]}
        for _, pair in split(pairs):
            (_, attribute), (_, values) = split(pair)
            entry[attribute.decode(errors="replace").lower()] = [v.decode(errors="replace") for _, v in split(values)]
        return entry

    @staticmethod
    def _cookie(controls: bytes) -> bytes:
        for _, control in split(controls):
            kind, *rest = [content for _, content in split(control)]
            if kind == PAGED_RESULTS and rest:
                ((_, value),) = split(rest[-1])
                return list(split(value))[1][1]
        return b""

    @staticmethod
    def _check(content: bytes) -> None:
        (_, code), _, (_, text), *_ = split(content)
        number = int.from_bytes(code, "big")
        if number != SUCCESS:
            raise LdapRefused(number, text.decode(errors="replace").strip("\x00 "))

    def _send(self, operation: bytes, controls: bytes = b"") -> None:
        self._number += 1
        self._socket.sendall(tlv(0x30, integer(self._number), operation, controls))

    def _answers(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Operation, its content and the controls of each message that answers the last request."""
        while True:
            end, start = frame(self._waiting)
            while end > len(self._waiting):
                more = self._socket.recv(65536)
                if not more:
                    raise ProtocolError("the server closed the connection")
                self._waiting += more
                end, start = frame(self._waiting)
            message, self._waiting = self._waiting[start:end], self._waiting[end:]
            (_, number), (tag, content), *controls = split(message)
            if int.from_bytes(number, "big") == self._number:
                yield tag, content, controls[0][1] if controls else b""


# --- the probe


@dataclass
class Settings:
    host: str
    port: int
    base: str
    bind_dn: str
    bind_password: str
    user_filter: str
    username_attribute: str = "uid"
    mail_attribute: str = "mail"
    mail_domain: str = ""
    ca_file: str = ""
    ca_data: str = ""
    timeout: float = 10.0
    limit: int = 5000

    @property
    def ca_name(self) -> str:
        return self.ca_file or "the host's own certificate store (ldap_ca_file is empty)"


@dataclass
class Report:
    users: int = 0
    complete: bool = True
    without_mail: list[str] = field(default_factory=list)
    shared_mail: list[str] = field(default_factory=list)

    def warnings(self, settings: Settings) -> list[str]:
        found = []
        if self.without_mail:
            found.append(
                f"{len(self.without_mail)} of {self.users} users below {settings.base} have no "
                f"{settings.mail_attribute} and cannot sign in: {_some(self.without_mail)}. Give each a "
                f"{settings.mail_attribute} in the directory, name the attribute that holds it in ldap_mail_attribute, "
                "or leave them out by ldap_user_filter."
            )
        if self.shared_mail:
            found.append(
                f"Users with the same {settings.mail_attribute} would share one account: {_some(self.shared_mail)}. "
                "Give each an address of their own."
            )
        return found


def _some(names: list[str], count: int = 10) -> str:
    more = len(names) - count
    return ", ".join(names[:count]) + (f" and {more} more" if more > 0 else "")


def judge(settings: Settings, entries: list[dict[str, list[str]]], complete: bool = True) -> Report:
    """What the entries mean for signing in. Raises when nobody could."""
    report = Report(users=len(entries), complete=complete)
    where = f"LDAP server {settings.host}:{settings.port}, base {settings.base}, filter {settings.user_filter}"
    if not entries:
        raise LdapProbeError(
            f"{where}: no user has the attribute {settings.username_attribute}, so nobody could sign in. Correct "
            f"ldap_base, ldap_user_filter or ldap_username_attribute; or check that {settings.bind_dn} may read these "
            "entries."
        )
    owners: dict[str, list[str]] = {}
    for entry in entries:
        name = entry.get(settings.username_attribute.lower(), entry["dn"])[0]
        mail = (entry.get(settings.mail_attribute.lower()) or [""])[0].strip().lower()
        if mail:
            owners.setdefault(mail, []).append(name)
        elif not settings.mail_domain:
            report.without_mail.append(name)
    report.shared_mail = [f"{mail} ({', '.join(names)})" for mail, names in owners.items() if len(names) > 1]
    if len(report.without_mail) == report.users:
        raise LdapProbeError(
            f"{where}: none of the {report.users} users has the attribute {settings.mail_attribute}, and without a "
            f"mail address nobody can sign in: {_some(report.without_mail)}. Name the attribute that holds it in "
            "ldap_mail_attribute, give the users one, or let openwebui_ldap_mail_domain make it up from the user name."
        )
    return report


def context_for(settings: Settings) -> ssl.SSLContext:
    if settings.ca_file and not settings.ca_data and not Path(settings.ca_file).is_file():
        raise LdapProbeError(
            f"CA file {settings.ca_file}: there is no such file on this host. Set ldap_ca_file to the certificate of "
            f"the authority that signed the certificate of {settings.host}.",
            reachable=False,
        )
    try:
        context = ssl.create_default_context(
            cafile=settings.ca_file if settings.ca_file and not settings.ca_data else None,
            cadata=settings.ca_data or None,
        )
    except (ssl.SSLError, ValueError) as error:
        raise LdapProbeError(
            f"CA file {settings.ca_name}: holds no certificate in PEM format ({error}). Set ldap_ca_file to the "
            f"certificate of the authority that signed the certificate of {settings.host}."
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def connect(settings: Settings) -> Connection:
    context = context_for(settings)
    where = f"LDAP server {settings.host}:{settings.port}"
    try:
        return Connection(settings.host, settings.port, context, settings.timeout)
    except ssl.SSLCertVerificationError as error:
        if "match" in error.verify_message or error.verify_code in (62, 64):
            raise LdapProbeError(
                f"{where}: its certificate is valid, but for another name ({error.verify_message}). Set ldap_host to a "
                "name that stands in the certificate, or have the certificate issued with this one."
            ) from error
        raise LdapProbeError(
            f"{where}: its certificate was not signed by the authority in {settings.ca_name}: {error.verify_message}. "
            "Set ldap_ca_file to the certificate of the authority that signed it. Nothing was sent to the server."
        ) from error
    except ssl.SSLError as error:
        raise LdapProbeError(
            f"{where}: does not speak TLS on this port ({error.reason or error}). Only ldaps is possible, there is no "
            "StartTLS: set ldap_port to the server's ldaps port, usually 636."
        ) from error
    except OSError as error:
        reason = str(error) or type(error).__name__
        raise LdapProbeError(
            f"{where}: not reachable from this host ({reason}). Correct ldap_host and ldap_port, or let this host "
            "through the firewall in front of the server. Nothing was changed here.",
            reachable=False,
        ) from error


def probe(settings: Settings) -> Report:
    """Sign in as the reader, look for the users, say what was found. Raises LdapProbeError."""
    where = f"LDAP server {settings.host}:{settings.port}"
    if settings.bind_dn and not settings.bind_password:
        raise LdapProbeError(
            f"{where}: ldap_bind_password is empty. A server takes {settings.bind_dn} with an empty password for an "
            "anonymous visitor. Set ldap_bind_password."
        )
    wanted = f"(&({settings.username_attribute}=*){settings.user_filter})"
    try:
        encode_filter(wanted)
    except ValueError as error:
        raise LdapProbeError(
            f"ldap_user_filter is '{settings.user_filter}': {error}. It must be one filter in parentheses, for example "
            "(objectClass=inetOrgPerson)."
        ) from error
    connection = connect(settings)
    try:
        try:
            connection.bind(settings.bind_dn, settings.bind_password)
        except LdapRefused as error:
            hint = "Correct ldap_bind_dn or ldap_bind_password."
            raise LdapProbeError(f"{where}: refuses the login of {settings.bind_dn}: {error}. {hint}") from error
        attributes = [settings.username_attribute, settings.mail_attribute]
        entries = []
        try:
            for entry in connection.search(settings.base, wanted, attributes, settings.limit):
                entries.append(entry)
        except LdapRefused as error:
            if error.code != 4:  # the server's own limit: what came is enough to judge by
                hint = "There is no such entry: correct ldap_base." if error.code == NO_SUCH_OBJECT else (
                    f"Correct ldap_base or ldap_user_filter, or let {settings.bind_dn} read these entries."
                )  # fmt: skip
                raise LdapProbeError(
                    f"{where}, base {settings.base}, filter {settings.user_filter}: the search failed: {error}. {hint}"
                ) from error
        return judge(settings, entries, complete=len(entries) < settings.limit)
    except ProtocolError as error:
        raise LdapProbeError(f"{where}: does not speak LDAP ({error}). Correct ldap_port.") from error
    except OSError as error:
        raise LdapProbeError(f"{where}: the connection broke ({error}). Try again.", reachable=False) from error
    finally:
        connection.close()
