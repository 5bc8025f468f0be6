import asyncio
import socket
import ssl

from aiohttp import web

from antechamber.gateway.door import Door


class Flood(socket.socket):
    """A port in whose queue one client always has another connection."""

    accepted = 0

    def accept(self) -> tuple[socket.socket, object]:
        if self.accepted == 2000:
            raise BlockingIOError
        self.accepted += 1
        ours, theirs = socket.socketpair()
        theirs.close()
        ours.setblocking(False)
        return ours, ("192.0.2.1", self.accepted)


async def nothing(_: web.BaseRequest) -> web.StreamResponse:
    return web.Response()


def test_door_leaves_the_loop_to_others_when_one_client_floods_it() -> None:
    async def life(port: Flood) -> int:
        door = Door(nothing, 64, 4, dict)
        accepting = asyncio.create_task(door.accept(port, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)))
        for _ in range(30):
            await asyncio.sleep(0)
        accepting.cancel()
        await door.abort()
        return port.accepted

    with Flood() as port:
        port.setblocking(False)
        assert asyncio.run(life(port)) < 1000
