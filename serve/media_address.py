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


class PrivateAddressError(OSError):
    """A connection to an address that is not on the public internet was asked for."""


def is_public(address: str) -> bool:
    """Whether a connection to a numeric address, in canonical form, leaves for the public internet."""
    match ip_address(address):
        case IPv4Address() as ipv4:
            return _is_public_4(ipv4)
        case IPv6Address() as ipv6 if any(ipv6 in network for network in _HOLDING_IPV4):
            return _is_public_4(IPv4Address(int(ipv6) & 0xFFFFFFFF))
        case ipv6:
            return ipv6 in _GLOBAL_UNICAST_6 and not any(ipv6 in network for network in _NOT_PUBLIC_6)


def _is_public_4(address: IPv4Address) -> bool:
    return not any(address in network for network in _NOT_PUBLIC_4)


def public_socket(target: AddrInfoType) -> socket.socket:
    """A socket for a connection to `target`; a socket factory of aiohttp. Raises PrivateAddressError."""
    family, kind, protocol, _, address = target
    if not is_public(str(address[0])):
        raise PrivateAddressError("not a public address")  # one text for all, so that aiohttp joins several into one
    return socket.socket(family, kind, protocol)
