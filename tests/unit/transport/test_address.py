"""Addresses as users write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.errors import UsageError
from precopy.transport import Address, parse_address


class TestAddresses:
    @pytest.mark.parametrize(
        ("text", "address"),
        [
            ("unix:/run/x.sock", Address(path="/run/x.sock")),
            ("unix:relative", Address(path="relative")),
            ("unix:/a:b", Address(path="/a:b")),
            ("unix:/" + "x" * 106, Address(path="/" + "x" * 106)),
            ("tcp:host:0", Address(host="host", port=0)),
            ("tcp:10.0.0.1:65535", Address(host="10.0.0.1", port=65535)),
            ("tcp:[::1]:80", Address(host="::1", port=80)),
        ],
    )
    def test_are_parsed_and_printed_alike(self, text: str, address: Address) -> None:
        assert parse_address(text) == address
        assert str(address) == text

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "unix",
            "unix:",
            "tcp:",
            "tcp:host",
            "tcp:host:",
            "tcp::80",
            "tcp:host:65536",
            "tcp:host:-1",
            "tcp:host:+1",
            "tcp:host: 1",
            "tcp:host:http",
            "tcp:host:\u0663",
            "/run/x.sock",
            "udp:host:80",
            "UNIX:/x",
            "unix:/" + "x" * 107,
            "unix:/" + "\u00e4" * 54,
            "tcp:[]:80",
            "tcp:[:80",
            "tcp:]:80",
            "tcp:[::1:80",
            "unix:/\udcff" + "x" * 106,
            "tcp:host:" + "1" * 5000,
            "unix:/a\0b",
            "unix:\0abstract",
            "unix:/\ud800",
            "tcp:a\0b:80",
            "tcp:::1:80",
        ],
    )
    def test_what_is_none_is_refused(self, text: str) -> None:
        with pytest.raises(UsageError):
            parse_address(text)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("tcp:localhost:99999", "the largest port is 65535"),
            ("tcp:localhost", "it has no port"),
            ("tcp:[::1]", "it has no port"),
            ("tcp::7000", "it has no host"),
            ("tcp:::1:7000", "in brackets"),
            ("tcp:host:http", "'http' is not a port"),
            ("tcp:host:", "'' is not a port"),
            ("tcp:a b:7000", "'a b' is not a host"),
            ("unix:/a\0b", "NUL"),
            ("unix:/\ud800", "no path can hold"),
            ("unix:/" + "x" * 107, "longer than 107 bytes"),
        ],
    )
    def test_why_it_is_none(self, text: str, said: str) -> None:
        with pytest.raises(UsageError) as caught:
            parse_address(text)
        assert said in str(caught.value)
        assert "\0" not in str(caught.value)
        assert len(str(caught.value)) < 500

    @given(st.text(max_size=20))
    def test_any_text_is_an_address_or_refused(self, text: str) -> None:
        for candidate in (text, f"unix:{text}", f"tcp:{text}:80"):
            try:
                address = parse_address(candidate)
            except UsageError:
                continue
            assert parse_address(str(address)) == address
