"""Which addresses a fetch may connect to."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.media_address import intranet_socket, is_public, public_socket


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.255.255.255", "168.63.129.16"),
        *("169.254.169.254", "172.31.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.19.0.1"),
        *("198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "::127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "64:ff9b:1::808:808", "100::1"),
        *("2001::1", "2001:0:808:808::", "2001:db8::1", "2002:808:808::1", "3fff::1", "5f00::1"),
        *("fc00::1", "fd00:ec2::254", "fd20:ce::254", "fe80::1", "fe80::1%lo", "fec0::1", "ff02::1"),
    ],
)
def test_an_address_that_is_not_on_the_public_internet_gets_no_socket(address):
    assert not is_public(address)
    with pytest.raises(OSError, match="not a public address"):
        public_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, 80)))


@pytest.mark.parametrize(
    "address",
    [
        *("1.1.1.1", "8.8.8.8", "100.63.0.1", "100.128.0.1", "172.32.0.1", "192.0.1.1", "223.255.255.255"),
        *("2606:4700::1111", "2a00:1450:4001::1", "::ffff:8.8.8.8", "64:ff9b::808:808"),
    ],
)
def test_a_public_address_gets_a_socket(address):
    assert is_public(address)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with public_socket((family, socket.SOCK_STREAM, 0, "", (address, 80))) as unconnected:
        assert unconnected.family == family


@pytest.mark.parametrize(
    "address",
    [
        *("100.100.100.200", "168.63.129.16", "169.254.169.254", "169.254.0.1", "192.0.0.192"),
        *("fd00:ec2::254", "fd20:ce::254", "fe80::1", "fe80::1%lo", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"),
    ],
)
def test_a_clouds_metadata_are_fetched_for_nobody(address):
    with pytest.raises(OSError, match="not a public address"):
        intranet_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, 80)))


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "192.168.1.1", "::1", "fd00::1", "8.8.8.8", "2606:4700::1111"]
)
def test_an_intranet_is_reached_where_that_is_allowed(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with intranet_socket((family, socket.SOCK_STREAM, 0, "", (address, 80))) as unconnected:
        assert unconnected.family == family


@settings(derandomize=True, deadline=None, database=None)
@given(st.ip_addresses())
def test_what_python_calls_private_is_never_public(address):
    if not address.is_global:
        holds_ipv4 = address.version == 6 and (address.ipv4_mapped or address in ipaddress.ip_network("64:ff9b::/96"))
        assert holds_ipv4 or not is_public(str(address))
    if address.version == 4:
        for prefix in ("::ffff:", "64:ff9b::"):
            assert is_public(f"{prefix}{address}") == is_public(str(address))
