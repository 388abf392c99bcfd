"""The one reader of PEM files (RFC 7468): returns every section of a file, or an error with the bad part.

Editors, Windows and ``cat`` leave byte-order marks, CRLF, indentation, remarks, and certificates without a newline
between them. The engine only gets copies written from the parsed sections, so that a check and a handshake agree.
"""

from __future__ import annotations

import base64
import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from intermediate_server.errors import CertificateError

CERTIFICATE = ("CERTIFICATE", "X509 CERTIFICATE")
CRL = ("X509 CRL",)
KEY = ("PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY", "ENCRYPTED PRIVATE KEY")

_MARK = re.compile(rb"-----(BEGIN|END) ([A-Z0-9][A-Z0-9 ]*)-----")
_LIKE_A_MARK = re.compile(rb"-+[ \t]*(BEGIN|END)[ \t]+[A-Z0-9 ]*(?:CERTIFICATE|CRL|KEY)", re.IGNORECASE)
_WHITESPACE = b" \t\r\n\v\f"
_WIDE = ((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


@dataclass(frozen=True, slots=True)
class Section:
    """A section from its BEGIN to its END."""

    label: str
    body: bytes = field(repr=False)
    """The text as in the file."""
    line: int
    """The line of its BEGIN, from 1."""

    def der(self, where: Path | str) -> bytes:
        """Its content. Raises ``CertificateError``."""
        try:
            return base64.b64decode(self.body.translate(None, _WHITESPACE), validate=True)
        except ValueError:
            raise CertificateError(
                f"{where}: the {self.label} that begins in line {self.line} is damaged; replace it"
            ) from None

    def pem(self) -> bytes:
        """The section by itself, in lines of the standard form."""
        lines = b"\n".join(line.strip(_WHITESPACE) for line in self.body.splitlines())
        label = self.label.encode()
        return b"-----BEGIN %b-----\n%b\n-----END %b-----\n" % (label, lines.strip(_WHITESPACE), label)


def read(data: bytes, where: Path | str) -> list[Section]:
    """Every section of a file, in order; ``where`` names it in errors. Raises ``CertificateError``.

    A BEGIN without its END, or a line that only resembles one of the two, is an error: a part of the file would be
    ignored.
    """
    data = _narrow(data, where)
    found: list[Section] = []
    begun: re.Match[bytes] | None = None
    whole: set[int] = set()
    for mark in _MARK.finditer(data):
        whole.add(mark.start(1))
        if (mark[1] == b"BEGIN") is not (begun is None):
            wrong = begun or mark
            missing = "END" if wrong[1] == b"BEGIN" else "BEGIN"
            raise CertificateError(f"{where}: {_name(wrong)} in line {_line(data, wrong)} has no {missing}; repair it")
        if begun is None:
            begun = mark
            continue
        if mark[2] != begun[2]:
            raise CertificateError(f"{where}: {_name(begun)} in line {_line(data, begun)} ends as {_name(mark)}")
        found.append(Section(begun[2].decode(), data[begun.end() : mark.start()], _line(data, begun)))
        begun = None
    if begun is not None:
        raise CertificateError(
            f"{where}: {_name(begun)} in line {_line(data, begun)} has no END; the file is cut short"
        )
    for like in _LIKE_A_MARK.finditer(data):
        if like.start(1) not in whole:
            raise CertificateError(
                f"{where}: line {_line(data, like)} is no BEGIN or END line; write it with five dashes on either side"
            )
    return found


def select(sections: list[Section], labels: tuple[str, ...]) -> Iterator[Section]:
    """The sections with one of the labels."""
    return (section for section in sections if section.label in labels)


def _narrow(data: bytes, where: Path | str) -> bytes:
    """The file with one byte for a character: some editors and shells write two."""
    for bom, encoding in _WIDE:
        if data.startswith(bom):
            try:
                return data.decode(encoding).encode(errors="replace")
            except UnicodeDecodeError:
                raise CertificateError(f"{where}: is damaged UTF-16 text; save it as UTF-8") from None
    return data


def _name(mark: re.Match[bytes]) -> str:
    return mark[2].decode()


def _line(data: bytes, mark: re.Match[bytes]) -> int:
    return data.count(b"\n", 0, mark.start()) + 1
