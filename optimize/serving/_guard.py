"""Whom the small server answers: requests to a name of its own, from its own page or from no page at all.

A page elsewhere that has its name resolve to this machine (DNS rebinding) asks under that name, and a page that only loads
images from here says that it is another site: both are refused.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from optimize.errors import UserError

OWN = ("localhost", "127.0.0.1", "[::1]")
NAME = re.compile(r"[\w.-]+", re.ASCII)
HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::\d{1,5})?", re.ASCII)
WILD = ("", "0.0.0.0", "::")


def answered(host: str, more: Iterable[str] = ()) -> frozenset[str]:
    """The names that a server listening on `host` answers to: this machine's for itself, `host`, its addresses where
    `host` stands for all, and `more`, which the user allows.

    Raises UserError for a further name that is none."""
    names = [*OWN, *([host] if host else []), *(_machine() if host in WILD else [])]
    for name in more:
        if not _is_address(name) and not NAME.fullmatch(name):
            raise UserError(
                f'--allow-host: "{name[:80]}" is no name or address. Give it as browsers show it, without port or http://, e.g. --allow-host box.example.'
            )
        names.append(name)
    return frozenset(_plain(name) for name in names)


def refusal(environ: Mapping[str, Any], hosts: frozenset[str]) -> str:
    """Why a request is not answered; empty where it is."""
    given = environ.get("HTTP_HOST", "")
    match = HOST.fullmatch(given)
    if match is None or _plain(match["name"]) not in hosts:
        return f'Host: "{given[:80]}" is no name of this server. To be asked by it, start it with --allow-host and the name.'
    origin = environ.get("HTTP_ORIGIN")
    if origin is not None and _netloc(origin) != given.lower():
        return f'Origin: "{origin[:80]}" is another site. Only this server\'s own page may ask.'
    site = environ.get("HTTP_SEC_FETCH_SITE", "none").lower()
    if site not in ("none", "same-origin") and environ["PATH_INFO"] != "/":
        return "Sec-Fetch-Site: another site's page asks. Only this server's own page may."
    return ""


def _netloc(origin: str) -> str:
    """Host and port of an origin; empty for what is none."""
    try:
        return urlsplit(origin.lower()).netloc
    except ValueError:
        return ""


def _plain(name: str) -> str:
    """A name as names are compared: small letters, no dot at its end, IPv6 addresses short and in brackets."""
    text = name.strip("[]").lower().rstrip(".")
    if not _is_address(text):
        return text
    address = ipaddress.ip_address(text.partition("%")[0])
    return f"[{address.compressed}]" if address.version == 6 else str(address)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]").partition("%")[0])
    except ValueError:
        return False
    return True


def _machine() -> list[str]:
    """This machine's name and the addresses of its networks."""
    import psutil

    families = (socket.AF_INET, socket.AF_INET6)
    addresses = [a.address for found in psutil.net_if_addrs().values() for a in found if a.family in families]
    name = socket.gethostname()
    return [name, f"{name}.local", *addresses]
