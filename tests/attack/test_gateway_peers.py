"""TLS peers and agents that are not the ones agreed on."""

import socket
import ssl
import subprocess
import time

import pytest
from unit.gateway.world import END, FakeAgent, certificate, offered, running

from antechamber.errors import HardwareUnavailable, PlatformUnfit
from antechamber.gateway import agent_link, attestation, door, tls


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rules on a shorter clock."""
    monkeypatch.setattr(attestation, "CACHE_S", 0.05)
    monkeypatch.setattr(door, "LINGER_S", 0.2)


def test_tls_1_2_is_refused() -> None:
    with running() as world:
        context = world.context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with (
            socket.create_connection(("localhost", world.port)) as plain,
            pytest.raises((ssl.SSLError, ConnectionError)),
        ):
            context.wrap_socket(plain, server_hostname="localhost")
        assert world.ask("GET", "/health")[0] == 200  # over TLS 1.3


def test_second_connection_does_not_resume_the_first() -> None:
    with running() as world:
        context, seen = world.context(), []
        session = None
        for _ in range(2):
            with context.wrap_socket(
                socket.create_connection(("localhost", world.port)), server_hostname="localhost", session=session
            ) as link:
                link.sendall(b"GET /health HTTP/1.1\r\n" + END + b"\r\n")
                while link.recv(1 << 16):
                    pass
                seen.append((link.version(), link.session_reused, link.session is not None and link.session.has_ticket))
                session = link.session
    assert seen == [("TLSv1.3", False, False)] * 2


@pytest.mark.openssl
def test_openssl_gets_no_session_to_resume_and_no_early_data(tmp_path: object) -> None:
    kept = f"{tmp_path}/session"
    with running() as world:
        asked = ["openssl", "s_client", "-connect", f"localhost:{world.port}", "-tls1_3", "-ign_eof"]
        request = b"GET /health HTTP/1.1\r\n" + END + b"\r\n"
        shown = subprocess.run([*asked, "-sess_out", kept], input=request, capture_output=True, timeout=20).stdout
    assert b"200 OK" in shown
    assert b"NewSessionTicket" not in shown
    assert b"Post-Handshake New Session Ticket" not in shown
    assert b"Max Early Data: 0" in shown or b"Early data was not sent" in shown


@pytest.mark.parametrize(
    "spoil",
    [
        {"fds": 0},
        {"fds": 2},
        {"seals": 0},
        {"raw": b""},
        {"raw": b"nonsense\n"},
        {"raw": b'{"ok":false,"code":"boot.unfinished"}\n'},
        {"raw": b'{"ok":true}\n'},
        {"silent": True},
    ],
)
def test_gateway_refuses_what_is_no_handover(spoil: dict[str, object], tmp_path: object) -> None:
    key, leaf = certificate()
    agent = FakeAgent(f"{tmp_path}/agent.sock", offered(1, leaf, "/engine.sock"), key)
    for name, value in spoil.items():
        setattr(agent, name, value)
    with pytest.raises(PlatformUnfit) as refused:
        agent_link.handover(agent.path)
    agent.close()
    assert refused.value.code == "gateway.handover"
    assert refused.value.exit_status == 69


def test_gateway_refuses_without_an_agent(tmp_path: object) -> None:
    with pytest.raises(HardwareUnavailable) as refused:
        agent_link.handover(f"{tmp_path}/agent.sock")
    assert refused.value.code == "handover.none"


def test_gateway_refuses_a_key_that_is_not_the_certificates(tmp_path: object) -> None:
    (key, _), (_, leaf) = certificate(), certificate()
    agent = FakeAgent(f"{tmp_path}/agent.sock", offered(1, leaf, "/engine.sock"), key)
    with pytest.raises(PlatformUnfit) as refused:
        tls.server_context(agent_link.handover(agent.path))
    agent.close()
    assert refused.value.code == "gateway.key"
    assert "PRIVATE" not in str(refused.value)


def test_port_closes_when_the_agent_ends() -> None:
    """However it ends: a guest that nobody watches serves nobody."""
    with pytest.raises(HardwareUnavailable) as ended:
        _end_of_the_agent()
    assert ended.value.code == "agent.gone"


def _end_of_the_agent() -> None:
    with running() as world:
        world.agent.ended.set()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                world.connect().close()
            except OSError:
                return
            time.sleep(0.05)
        pytest.fail("the port is still open")
