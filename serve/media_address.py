"""Which addresses are on the public internet, and sockets for those alone.

A URL may spell an address in many ways (2130706433, 0x7f.1, [::ffff:127.0.0.1]), and a name may resolve to something
else each time it is asked. So the address is checked where a socket for it is made: there it has its final form, and
what was checked is what gets connected.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from aiohttp.connector import AddrInfoType

# IANA's registries of special-purpose addresses, written out: what `is_global` says differs between Python's patches.
_NOT_PUBLIC_4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this host
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # carrier-grade NAT; Alibaba's metadata
            "127.0.0.0/8",  # loopback
            "168.63.129.16/32",  # Azure's metadata, at an address that looks public
            "169.254.0.0/16",  # link-local; everybody else's metadata
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments; Oracle's metadata
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",  # private
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/3",  # multicast, reserved, broadcast
        ),
    )
)
_GLOBAL_UNICAST_6 = IPv6Network("2000::/3")
"""Outside are loopback, link-local, unique local (AWS's and Google's metadata), multicast and unassigned."""
_NOT_PUBLIC_6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments, among them Teredo, which hides an IPv4 address
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4, which holds an IPv4 address
            "3fff::/20",  # documentation
        ),
    )
)
_HOLDING_IPV4 = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))
"""IPv4-mapped and NAT64: connecting leads to the IPv4 address in the last 32 bits, which may well be public."""


_METADATA_4 = tuple(map(IPv4Network, ("100.100.100.200/32", "168.63.129.16/32", "169.254.0.0/16", "192.0.0.192/32")))
_METADATA_6 = tuple(map(IPv6Network, ("fd00:ec2::254/128", "fd20:ce::254/128", "fe80::/10")))
"""Link-local addresses, and others where clouds tell a machine its secrets: no intranet has its pictures there."""


class PrivateAddressError(OSError):
    """A connection to an address that is not on the public internet was asked for, or not in an intranet either."""


def is_public(address: str) -> bool:
    """Whether a connection to a numeric address, in canonical form, leaves for the public internet."""
    match _reached(address):
        case IPv4Address() as ipv4:
            return not any(ipv4 in network for network in _NOT_PUBLIC_4)
        case ipv6:
            return ipv6 in _GLOBAL_UNICAST_6 and not any(ipv6 in network for network in _NOT_PUBLIC_6)


def is_metadata(address: str) -> bool:
    """Whether a numeric address, in canonical form, is link-local, or one where a cloud tells a machine its secrets."""
    match _reached(address):
        case IPv4Address() as ipv4:
            return any(ipv4 in network for network in _METADATA_4)
        case ipv6:
            return any(ipv6 in network for network in _METADATA_6)


def _reached(address: str) -> IPv4Address | IPv6Address:
    """Where a connection leads."""
    found = ip_address(address.partition("%")[0])  # without its zone: Python 3.11 finds a zoned one in no network
    if isinstance(found, IPv6Address) and any(found in network for network in _HOLDING_IPV4):
        return IPv4Address(int(found) & 0xFFFFFFFF)
    return found


def public_socket(target: AddrInfoType) -> socket.socket:
    """A socket for a connection to `target`; a socket factory of aiohttp. Raises PrivateAddressError."""
    return _socket(target, refused=not is_public(str(target[4][0])))


def intranet_socket(target: AddrInfoType) -> socket.socket:
    """As `public_socket`, for private and loopback addresses too."""
    return _socket(target, refused=is_metadata(str(target[4][0])))


def _socket(target: AddrInfoType, *, refused: bool) -> socket.socket:
    if refused:
        raise PrivateAddressError("not a public address")  # one text for all, so that aiohttp joins several into one
    family, kind, protocol, _, _ = target
    return socket.socket(family, kind, protocol)
