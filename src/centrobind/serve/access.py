"""Who may ask a server: the names it is addressed by, and the token that its clients know."""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from http.cookies import CookieError, SimpleCookie

from centrobind.errors import RunError

COOKIE = "centrobind_token"
SHORTEST_TOKEN = 16  # characters; `openssl rand -hex 8` and longer. Nothing here slows a client that guesses
COOKIE_CHARACTER = re.compile(r"[!#-+\--:<-\[\]-~]")  # what RFC 6265 lets a cookie hold
AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,254})(?::(\d{0,5}))?")


def checked_token(token: str) -> str:
    """The token itself; RunError where it is empty, short, or has characters that a cookie cannot hold.

    An empty token would be known by everybody who sends none, and one with a semicolon or a line break would end the
    cookie early or write another header. The message never shows the token.
    """
    if len(token) < SHORTEST_TOKEN:
        got = f"one of {len(token)}" if token else "an empty one (a variable that is not set?)"
        raise RunError(
            f"token: expected at least {SHORTEST_TOKEN} characters, got {got}; leave it out beyond this machine and a "
            "random one is made, or make one with `openssl rand -hex 16`"
        )
    for place, character in enumerate(token, start=1):
        if not COOKIE_CHARACTER.fullmatch(character):
            raise RunError(
                f"token: character {place} of {len(token)} is U+{ord(character):04X}, which a cookie cannot hold; use "
                "letters, digits and - _ . ~"
            )
    return token


def knows_token(token: str, headers: Mapping[str, str], asked: Iterable[str] = ()) -> bool:
    """Whether a request shows the token: as a bearer, as our cookie, or as one of `asked`, those in its address."""
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        cookie = None
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    shown = [*asked, "" if cookie is None else cookie.value, bearer.strip() if scheme.lower() == "bearer" else ""]
    return any(hmac.compare_digest(candidate.encode(), token.encode()) for candidate in shown)


def host_name(authority: str) -> str | None:
    """The name in a Host header as it is compared: lower case, no port, IPv6 in brackets; None if it is malformed."""
    match = AUTHORITY.fullmatch(authority)
    if match is None or int(match[2] or 0) > 65535:
        return None
    name = match[1].lower()
    if name.startswith("["):
        try:
            return f"[{ipaddress.IPv6Address(name[1:-1])}]"
        except ValueError:
            return None
    return name.removesuffix(".") or None  # the root of the domain name system, which resolvers take as said


def allowed_name(name: str, option: str) -> str:
    """The same for a name that the user gives with an option: an address or a domain name in any script.

    RunError for what is none.
    """
    text = name.strip()
    if ":" in text and not text.startswith("["):
        with suppress(ValueError):  # else a name and a port
            text = f"[{ipaddress.IPv6Address(text.partition('%')[0])}]"
    with suppress(UnicodeError):
        text = text.encode("idna").decode("ascii") if not text.isascii() else text  # as browsers send it
    found = host_name(text)
    if found is None:
        raise RunError(f"{option} {name[:80]!r}: expected the name or address of a machine, such as gallery.example")
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_everywhere(host: str) -> bool:
    """Whether that address stands for every address of this machine: 0.0.0.0 or ::, however it is written."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return False
