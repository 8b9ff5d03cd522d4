"""Requests that schemathesis draws from the OpenAPI document, valid and invalid ones, each sent by
every kind of principal. ``Api`` checks envelope and headers of every answer as well."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from typing import Any, cast

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain.callers import Scope
from domain.watching import StreamLimits
from tests.support.clock import VirtualTimeLoop
from tests.support.examples import STORE
from tests.support.http import PUBLIC_URL, Answer, Api
from tests.support.matrix import Principal, World
from tests.support.routes import ROUTES

PRINCIPALS = ("none", "user", "store", "shopper", "service")
UNDOCUMENTED = {
    "GET /",
    "GET /playground",
    "GET /playground/{name}",
    "GET /samples/{name}",
    "GET /schema",
    "GET /schema/assets/{name}",
    "GET /schema/openapi.json",
}
NEVER_INVALID = {"GET /health/live", "GET /health/ready"}
"""They read nothing of a request."""
SET_BY_US = {"authorization", "content-length", "content-type", "host", "origin"}


class Fuzzer:
    """The operations of the document, and the checks of their responses."""

    def __init__(self) -> None:
        # Imported late: every process that runs tests imports this file.
        import schemathesis  # noqa: PLC0415
        from schemathesis import checks  # noqa: PLC0415
        from schemathesis.core.transport import Response  # noqa: PLC0415
        from schemathesis.specs.openapi import checks as openapi_checks  # noqa: PLC0415

        schema = schemathesis.openapi.from_dict(Api().document)
        found: list[Any] = list(schema.get_all_operations())
        self.operations = {result.ok().label: result.ok() for result in found}
        self._response = Response
        self._checks: list[Any] = [
            checks.not_a_server_error,
            openapi_checks.status_code_conformance,
            openapi_checks.content_type_conformance,
            openapi_checks.response_headers_conformance,
            openapi_checks.response_schema_conformance,
        ]

    def check(self, case: Any, answer: Answer, sent: requests.PreparedRequest) -> None:
        """Raises what is wrong with the answer."""
        response = self._response(
            status_code=answer.status,
            headers={name: [value] for name, value in answer.headers.items()},
            content=answer.body,
            request=sent,
            elapsed=0.0,
            verify=False,
        )
        case.validate_response(response, checks=self._checks)


@cache
def fuzzer() -> Fuzzer:
    return Fuzzer()


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        yield runner


@pytest.fixture
def examples(pytestconfig: pytest.Config) -> int:
    """How many requests to draw for each operation."""
    asked = pytestconfig.getoption("--fuzz-examples")
    return int(asked or (3 if pytestconfig.getoption("--quick") else 6))


async def open_world() -> World:
    world = await World().open()
    # The stream of all sessions ends by itself.
    world.api.watching._limits = StreamLimits(lifetime=timedelta(seconds=1))
    world.principals["service"] = Principal(token=await world.api.service_key(*Scope))
    return world


def real_ids(world: World, name: str) -> dict[str, str]:
    """What the parameters of a path may name, so that not every answer is a 404."""
    own = name if name in world.queued else "store"
    return {
        "session_id": world.final[own],
        "token_id": world.tokens["shopper"],
        "key_id": world.key_id,
        "endpoint_id": world.endpoints.get(name, world.endpoints["store"]),
        "delivery_id": world.deliveries.get(name, world.deliveries["store"]),
        "store_id": STORE.id,
        "channel": STORE.channel,
        "owner_id": STORE.id,
        "shopper_id": "anna",
    }


def prepared(case: Any) -> requests.PreparedRequest:
    """The request as it goes over the network."""
    arguments = case.as_transport_kwargs(base_url=PUBLIC_URL)
    names = ("method", "url", "headers", "params", "data", "json", "cookies")
    return requests.Request(**{name: arguments.get(name) for name in names}).prepare()


async def answer_to(world: World, name: str, sent: requests.PreparedRequest) -> Answer:
    """The answer to the principal, who sends from its own page."""
    headers = [
        (key.lower(), value if isinstance(value, str) else value.decode("latin-1"))
        for key, value in sent.headers.items()
        if key.lower() not in SET_BY_US
    ]
    principal = world.principals[name]
    if principal.token is not None:
        headers.append(("authorization", f"Bearer {principal.token}"))
    if principal.page is not None:
        headers.append(("origin", principal.page))
    body = sent.body or b""
    return await world.api.call(
        str(sent.method),
        sent.path_url,
        owner=None,
        headers=headers,
        body=body.encode() if isinstance(body, str) else body,
        content_type=cast("str | None", sent.headers.get("content-type")),
    )


def test_all_operations_are_drawn() -> None:
    """Those of the document, and no route is missing there but a few."""
    assert fuzzer().operations.keys() == ROUTES.keys() - UNDOCUMENTED


@pytest.mark.parametrize(
    ("label", "validity"),
    [
        (label, validity)
        for label in ROUTES
        for validity in ("valid", "invalid")
        if label not in UNDOCUMENTED and (label not in NEVER_INVALID or validity == "valid")
    ],
)
def test_operation(runner: asyncio.Runner, examples: int, label: str, validity: str) -> None:
    """No 5xx, and the status, content type, headers and body that the document promises."""
    from schemathesis.generation import GenerationMode  # noqa: PLC0415 - as above

    mode = GenerationMode.POSITIVE if validity == "valid" else GenerationMode.NEGATIVE
    world = runner.run(open_world())

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(case=fuzzer().operations[label].as_strategy(mode), is_real=st.booleans())
    def check(case: Any, is_real: bool) -> None:
        for name in PRINCIPALS:
            if is_real:
                ids = real_ids(world, name)
                case.path_parameters.update(
                    {key: ids[key] for key in set(case.path_parameters or {}) & ids.keys()}
                )
            sent = prepared(case)
            fuzzer().check(case, runner.run(answer_to(world, name, sent)), sent)

    check()
