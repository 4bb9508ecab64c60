"""Whom the small server answers: its own names, and pages of its own."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from optimize.errors import UserError
from optimize.serving._guard import answered, refusal


def request(host: str | None, path: str = "/v1/images", **headers: str) -> dict[str, Any]:
    given = {f"HTTP_{k.upper()}": v for k, v in headers.items()}
    return {"PATH_INFO": path, **({} if host is None else {"HTTP_HOST": host}), **given}


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "127.0.0.1:1",
        "[::1]:8000",
        "[0:0::1]",
        "localhost.",
        "box.example",
        "Box.Example:9",
    ],
)
def test_its_own_names_are_answered_at_any_port(host: str) -> None:
    assert refusal(request(host), answered("127.0.0.1", ["box.example"])) == ""


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example:8000", "192.168.0.7", "0.0.0.0",
     "", None, "localhost, evil.example", "evil@localhost", "localhost/", "localhost:99999999", "[::2]", "xn--a"],
)  # fmt: skip
def test_other_names_are_refused(host: str | None) -> None:
    """A page whose name is made to resolve to this machine asks under that name."""
    said = refusal(request(host), answered("127.0.0.1"))
    assert f'Host: "{host or ""}" is no name of this server. To be asked by it, start it with --allow-host' in said


def test_a_server_open_to_the_network_answers_to_the_machines_addresses_and_to_no_other_name() -> None:
    hosts = answered("0.0.0.0")
    assert refusal(request(socket.gethostname()), hosts) == "" and refusal(request("127.0.0.1:8000"), hosts) == ""
    assert "is no name" in refusal(request("evil.example"), hosts) and "is no name" in refusal(
        request("192.0.2.9"), hosts
    )
    assert refusal(request("192.0.2.9:80"), answered("192.0.2.9")) == ""
    assert refusal(request("[2001:db8::9]"), answered("2001:0db8::0009")) == ""


@pytest.mark.parametrize("name", ["http://box", "box:80", "a b", "*", "", "box/", "x" * 300 + "/"])
def test_a_name_to_allow_that_is_none_is_told(name: str) -> None:
    with pytest.raises(
        UserError, match=r"--allow-host: .* is no name or address\. Give it as browsers show it"
    ) as error:
        answered("127.0.0.1", [name])
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("path", "headers", "said"),
    [
        ("/v1/images", {}, ""),
        ("/v1/images", {"origin": "http://localhost:8000", "sec_fetch_site": "same-origin"}, ""),
        ("/v1/images", {"sec_fetch_site": "none"}, ""),
        ("/", {"sec_fetch_site": "cross-site"}, ""),
        ("/v1/images", {"sec_fetch_site": "cross-site"}, "another site's page asks"),
        ("/v1/model", {"sec_fetch_site": "same-site"}, "another site's page asks"),
        ("/v1/images", {"origin": "http://evil.example"}, 'Origin: "http://evil.example" is another site'),
        ("/v1/images", {"origin": "http://localhost:9"}, "is another site"),
        ("/v1/images", {"origin": "null"}, 'Origin: "null" is another site'),
        ("/v1/images", {"origin": "http://[x"}, "is another site"),
    ],
)
def test_only_its_own_page_may_ask(path: str, headers: dict[str, str], said: str) -> None:
    found = refusal(request("localhost:8000", path, **headers), answered("127.0.0.1"))
    assert (said in found) if said else not found
