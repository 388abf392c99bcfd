"""Matching of names in rules and certificates; a peer's choice of name cannot make it slow."""

from __future__ import annotations

import re

_ASCII_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}
_SPIFFE_ID = re.compile(r"spiffe://[a-z0-9._-]{1,255}(/(?!\.{1,2}(/|\Z))[A-Za-z0-9._-]+)*\Z")

REST = "**"
"""As the outermost part of a pattern: one part or more, of any content."""


def fold(text: str) -> str:
    """The text with A-Z lower-cased and nothing else, as DNS compares names (RFC 4343).

    Wider case folding would make one service's name pass for another's (``strasse`` for ``straße``).
    """
    return text.lower() if text.isascii() else text.translate(_ASCII_LOWER)


def glob(pattern: str, text: str) -> bool:
    """Whether the whole text matches; ``*`` stands for any characters or none, nothing else is special.

    Dots are not special either: a service id has no parts.

    Only the last star is tried again, so the time is at most the product of the lengths. With a regular expression of
    several stars, a peer could choose a name that takes far longer.
    """
    if "*" not in pattern:
        return pattern == text
    if pattern[0] not in ("*", text[:1]):
        return False
    at = start = 0
    star = -1
    for_star = 0
    while start < len(text):
        if at < len(pattern) and pattern[at] == "*":
            star, for_star = at, start
            at += 1
        elif at < len(pattern) and pattern[at] == text[start]:
            at += 1
            start += 1
        elif star >= 0:
            for_star += 1
            at, start = star + 1, for_star
        else:
            return False
    return all(character == "*" for character in pattern[at:])


def match_dns(pattern: str, name: str) -> bool:
    """Whether a DNS name matches, label by label; ``*`` stays in its label, a leading ``**`` takes all above.

    A name with control or other unprintable characters never matches.
    """
    pattern, name = fold(pattern), fold(name)
    # Nearly all comparisons end here.
    if not name.endswith(pattern[pattern.rfind("*") + 1 :]):
        return False
    return name.isprintable() and _parts(pattern.split(".")[::-1], name.split(".")[::-1])


def match_spiffe(pattern: str, uri: str) -> bool:
    """Whether a SPIFFE id matches, segment by segment; ``*`` stays in its segment, a final ``/**`` takes all below.

    An invalid SPIFFE id (SPIFFE-ID section 2) never matches.
    """
    return _SPIFFE_ID.match(uri) is not None and _parts(pattern.split("/"), uri.split("/"))


def _parts(patterns: list[str], parts: list[str]) -> bool:
    """Both lists begin with the outermost part: the top-level domain, the scheme."""
    if patterns[-1] == REST:
        patterns = patterns[:-1]
        if len(parts) <= len(patterns):
            return False
        parts = parts[: len(patterns)]
    return len(patterns) == len(parts) and all(
        part != "" and glob(pattern, part) if "*" in pattern else pattern == part
        for pattern, part in zip(patterns, parts, strict=True)
    )
