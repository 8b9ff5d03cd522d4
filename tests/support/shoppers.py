"""A shop's pages over HTTP: client tokens, and browsers that use them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from domain.credits import Channel, Owner
from tests.support.examples import STORE
from tests.support.http import GENERATIONS, UPLOADS, Answer, Api

CLIENT_TOKENS = "/api/v1/client-tokens"
SHOPPERS = "/api/v1/shoppers"
ORIGIN = "https://shop.example"
OTHER_ORIGIN = "https://m.shop.example"
"""Another origin of the same store."""
OTHER_STORE = Owner(channel=Channel.B2B, id="store-2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Browser:
    """A page that has a client token. Without an ``origin`` it sends none, as a server does."""

    api: Api
    token: str
    token_id: str
    origin: str | None = ORIGIN

    async def call(
        self, method: str, target: str, *, headers: Sequence[tuple[str, str]] = (), **options: Any
    ) -> Answer:
        sent = [("authorization", f"Bearer {self.token}"), *headers]
        if self.origin is not None:
            sent.append(("origin", self.origin))
        return await self.api.call(method, target, owner=None, headers=sent, **options)

    async def get(self, target: str) -> Answer:
        return await self.call("GET", target, content_type=None)

    async def submit(self, *, key: str | None = None, **fields: Any) -> Answer:
        headers = [] if key is None else [("idempotency-key", key)]
        return await self.call(
            "POST", GENERATIONS, headers=headers, body={"model_image_url": MODEL} | fields
        )

    async def submitted(self, **options: Any) -> str:
        """The id of a new session."""
        answer = await self.submit(**options)
        assert answer.status == 202, answer.body
        return str(answer.data["session_id"])

    async def cancel(self, session_id: str) -> Answer:
        return await self.call("POST", f"{GENERATIONS}/{session_id}/cancel")

    async def upload(self) -> Answer:
        return await self.call("POST", UPLOADS, body={"content_type": "image/jpeg"})

    async def listed(self) -> list[str]:
        answer = await self.get(GENERATIONS)
        assert answer.status == 200
        return [item["session_id"] for item in answer.data["items"]]


MODEL = "https://pictures.example/model.jpg"


async def create_token(api: Api, *, store: Owner = STORE, **fields: Any) -> Answer:
    """The answer to a store's request for a client token."""
    body = {"shopper_id": "anna", "origin": ORIGIN} | fields
    return await api.call("POST", CLIENT_TOKENS, owner=store, body=body)


async def browser(
    api: Api, shopper_id: str = "anna", *, store: Owner = STORE, **fields: Any
) -> Browser:
    """The page of a shopper, with a token of its own for 5 pictures."""
    body = {"shopper_id": shopper_id, "pictures": 5} | fields
    answer = await create_token(api, store=store, **body)
    assert answer.status == 201, answer.body
    return Browser(
        api=api,
        token=answer.data["client_token"],
        token_id=answer.data["token_id"],
        origin=answer.data["origin"],
    )
