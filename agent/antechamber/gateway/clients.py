"""Who counts as one client, and how much of the gateway one client may have."""

import ipaddress
from collections import Counter

CLIENT_SHARE = 4  # one client has at most this part of the connections, and of the memory for bodies
LEAST_CONNECTIONS = 8  # of one client, however few there are: a browser opens six


def client_of(peer: str) -> str:
    """What counts as one client: an IPv6 host has a whole /64 to choose from."""
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return ""  # all of no address are one
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


class Shares:
    """What each client has now of something scarce: at most `most`. Who has nothing is not remembered."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lent: Counter[str] = Counter()

    def take(self, client: str, amount: int = 1) -> bool:
        """Whether the client may have that much more, and has it now."""
        if self._lent[client] + amount > self._most:
            return False
        self._lent[client] += amount
        return True

    def give_back(self, client: str, amount: int = 1) -> None:
        self._lent[client] -= amount
        if self._lent[client] <= 0:
            del self._lent[client]
