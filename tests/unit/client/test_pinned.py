import asyncio
import json
import time

import httpx
import openai
import pytest
from unit.client.guest import booted, url
from unit.gateway.world import World, running

from antechamber.client.pinned import http_client, openai_async_http_client, openai_http_client
from antechamber.client.verify import verify_url
from antechamber.gateway import attestation

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attestation, "CACHE_S", 0.0)


def asked(world: World) -> list[dict[str, str]]:
    return [{k.lower(): v for k, v in headers.items()} for _, _, headers, _ in world.engine.requests]


def test_pinned_client_asks_for_attestation_and_gets_the_answer() -> None:
    with running() as world, openai_http_client(url(world), booted(world).policy()) as client:
        answer = client.post(f"{url(world)}/v1/chat/completions", json=CHAT)
    assert answer.json()["choices"][0]["message"]["content"] == "hello"
    assert answer.headers["x-tdx-quote-sha256"] == world.agent.digest
    assert "x-tdx-quote" in answer.headers


def test_pinned_client_serves_the_openai_package_streaming_too() -> None:
    with running() as world, openai_http_client(url(world), booted(world).policy()) as client:
        ai = openai.OpenAI(base_url=f"{url(world)}/v1", api_key="k", http_client=client, max_retries=0)  # type: ignore[arg-type]
        assert ai.chat.completions.create(**CHAT).choices[0].message.content == "hello"  # type: ignore[call-overload]
        events = list(ai.chat.completions.create(**CHAT, stream=True))  # type: ignore[call-overload]
        assert [m.id for m in ai.models.list()] == ["tiny"]
    assert len(events) == 5
    assert all("authorization" not in headers for headers in asked(world))


def test_pinned_client_works_for_asyncio() -> None:
    async def ask(world: World) -> httpx.Response:
        client = openai_async_http_client(url(world), booted(world).policy())
        async with client:
            return await client.post(f"{url(world)}/v1/chat/completions", json=CHAT)

    with running() as world:
        assert asyncio.run(ask(world)).status_code == 200


def test_pinned_client_shows_a_refusal_of_the_gateways() -> None:
    with running() as world, openai_http_client(url(world), booted(world).policy()) as client:
        world.agent.age_s = 1000.0
        time.sleep(0.01)
        answer = client.post(f"{url(world)}/v1/chat/completions", json=CHAT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "attestation.stale")


def test_pinned_client_does_without_the_demand_when_told_so() -> None:
    with running() as world:
        _, pinned = verify_url(url(world), booted(world).policy())
        with http_client(pinned, require_attestation=False) as client:
            answer = client.post(f"{url(world)}/v1/completions", content=json.dumps({}))
    assert "x-tdx-quote" not in answer.headers
    assert answer.headers["x-tdx-quote-sha256"] == world.agent.digest


def test_pinned_client_takes_an_address_that_the_certificate_does_not_name() -> None:
    with running() as world:
        elsewhere = f"https://127.0.0.2:{world.port}"  # not bound: shows only that no name is asked for
        _, pinned = verify_url(f"https://127.0.0.1:{world.port}", booted(world).policy())
        with http_client(pinned) as client:
            assert client.get(f"https://127.0.0.1:{world.port}/v1/models").status_code == 200
            with pytest.raises(Exception, match=r"endpoint\.origin"):
                client.get(f"{elsewhere}/v1/models")
