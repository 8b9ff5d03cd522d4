"""Every route of the API, who may call it, and a valid request to it.

Written down apart from the options of the handlers, which it is to check.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tests.support.examples import STORE, USER
from tests.support.matrix import JPEG, SUSPENDED_STORE
from tests.support.shoppers import MODEL

API = "/api/v1"
ADMIN = f"{API}/admin"
ACCOUNT = f"{ADMIN}/accounts/{{channel}}/{{owner_id}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """``who`` may call it: kinds and scopes, or anyone, without a credential. ``suspended``: it
    refuses suspended owners. ``target`` is what an id or a link in the path names, an attribute of
    ``World``. ``changes``: a call has an effect."""

    who: str
    status: int = 200
    body: object = b""
    headers: tuple[tuple[str, str], ...] = ()
    query: str = ""
    suspended: bool = False
    target: str | None = None
    changes: bool = False
    in_path: Mapping[str, str] | None = None

    @property
    def kinds(self) -> set[str]:
        return set(self.who.split())


_STORE = {"store_id": STORE.id}
_USER = {"channel": "b2c", "owner_id": USER.id}
_SUSPENDED = {"channel": "b2b", "owner_id": SUSPENDED_STORE.id}
_GRANT = {"channel": "b2c", "owner_id": USER.id, "amount": 1, "reference": "invoice-1"}
_PICTURES = {"image_urls": [MODEL]}
A_TOKEN = {"shopper_id": "anna", "pictures": 1}
_KEY = (("idempotency-key", "k-1"),)
_HOOKS = f"{API}/webhooks"
_ENDPOINT = f"{_HOOKS}/{{endpoint_id}}"

ROUTES: dict[str, Route] = {
    f"GET {API}/generations": Route(who="user store shopper"),
    f"POST {API}/generations": Route(
        who="user store shopper",
        status=202,
        body={"model_image_url": MODEL},
        suspended=True,
        changes=True,
    ),
    f"POST {API}/generations/batch": Route(
        who="user store",
        status=202,
        body={"items": [{"model_image_url": MODEL}]},
        suspended=True,
        changes=True,
    ),
    f"GET {API}/generations/stats": Route(who="user store shopper"),
    f"GET {API}/generations/{{session_id}}": Route(who="user store shopper", target="final"),
    f"POST {API}/generations/{{session_id}}/cancel": Route(
        who="user store shopper", target="queued", changes=True
    ),
    f"GET {API}/generations/{{session_id}}/events": Route(who="user store shopper", target="final"),
    f"GET {API}/events": Route(who="user store shopper", target="final", query="?ids={session_id}"),
    f"DELETE {API}/generations/{{session_id}}/picture": Route(
        who="user store shopper", target="final", changes=True
    ),
    f"POST {API}/uploads": Route(
        who="user store shopper", status=201, body={"content_type": "image/png"}, suspended=True
    ),
    f"GET {API}/client-tokens": Route(who="store", query="?shopper_id=anna"),
    f"POST {API}/client-tokens": Route(
        who="store", status=201, body=A_TOKEN, suspended=True, changes=True
    ),
    f"DELETE {API}/client-tokens/{{token_id}}": Route(who="store", target="tokens", changes=True),
    f"GET {API}/shoppers/{{shopper_id}}": Route(who="store", in_path={"shopper_id": "anna"}),
    f"GET {API}/credits": Route(who="user store"),
    f"GET {API}/credits/ledger": Route(who="user store"),
    f"GET {API}/credits/alert": Route(who="user store"),
    f"PUT {API}/credits/alert": Route(who="user store", body={"low_credits": 7}, changes=True),
    f"GET {_HOOKS}": Route(who="user store"),
    f"POST {_HOOKS}": Route(
        who="user store", status=201, body={"url": "https://new.example/"}, changes=True
    ),
    f"GET {_ENDPOINT}": Route(who="user store", target="endpoints"),
    f"PATCH {_ENDPOINT}": Route(
        who="user store", body={"description": "new"}, target="endpoints", changes=True
    ),
    f"DELETE {_ENDPOINT}": Route(who="user store", target="endpoints", changes=True),
    f"POST {_ENDPOINT}/rotate": Route(who="user store", target="endpoints", changes=True),
    f"POST {_ENDPOINT}/test": Route(who="user store", status=201, target="endpoints", changes=True),
    f"GET {_ENDPOINT}/deliveries": Route(who="user store", target="endpoints"),
    f"POST {_ENDPOINT}/deliveries/retry": Route(
        who="user store", body={"since": "2000-01-01T00:00:00Z"}, target="endpoints", changes=True
    ),
    f"POST {_HOOKS}/deliveries/{{delivery_id}}/retry": Route(
        who="user store", target="deliveries", changes=True
    ),
    f"POST {API}/generation/create": Route(
        who="store", status=201, body=_PICTURES, suspended=True, changes=True
    ),
    f"GET {API}/generation/{{session_id}}": Route(who="store", target="final"),
    f"GET {API}/credits/balance": Route(who="store"),
    f"GET {API}/stores/config": Route(who="store"),
    f"POST {ADMIN}/grants": Route(who="grants", body=_GRANT, changes=True),
    f"POST {ADMIN}/adjustments": Route(
        who="grants", body={**_GRANT, "reason": "a mistake"}, changes=True
    ),
    f"POST {ADMIN}/stores": Route(
        who="stores", status=201, body={"id": "store-9", "name": "Nine"}, changes=True
    ),
    f"GET {ADMIN}/stores/{{store_id}}": Route(who="read", in_path=_STORE),
    f"PATCH {ADMIN}/stores/{{store_id}}": Route(
        who="stores", body={"name": "New", "reason": "asked"}, in_path=_STORE, changes=True
    ),
    f"GET {ADMIN}/stores/{{store_id}}/keys": Route(who="read", in_path=_STORE),
    f"POST {ADMIN}/stores/{{store_id}}/keys": Route(
        who="keys", status=201, body={"label": "new"}, headers=_KEY, in_path=_STORE, changes=True
    ),
    f"DELETE {ADMIN}/keys/{{key_id}}": Route(who="keys", target="key_id", changes=True),
    f"GET {ACCOUNT}": Route(who="read", in_path=_USER),
    f"GET {ACCOUNT}/ledger": Route(who="read", in_path=_USER),
    f"POST {ACCOUNT}/suspend": Route(
        who="stores", body={"reason": "abuse"}, in_path=_USER, changes=True
    ),
    f"POST {ACCOUNT}/resume": Route(
        who="stores", body={"reason": "over"}, in_path=_SUSPENDED, changes=True
    ),
    f"PUT {ACCOUNT}/plan": Route(
        who="stores", body={"plan": "growth", "reason": "paid"}, in_path=_USER, changes=True
    ),
    "GET /health/live": Route(who="anyone"),
    "GET /health/ready": Route(who="anyone"),
    "GET /files/{key}": Route(who="anyone", target="picture_link"),
    "PUT /uploads/{key}": Route(who="anyone", target="upload_link", body=JPEG, changes=True),
    "GET /": Route(who="anyone", status=307),
    "GET /playground": Route(who="anyone"),
    "GET /playground/{name}": Route(who="anyone", in_path={"name": "playground.js"}),
    "GET /samples/{name}": Route(who="anyone", in_path={"name": "model.png"}),
    "GET /schema/assets/{name}": Route(who="anyone", in_path={"name": "swagger-ui.css"}),
    "GET /schema": Route(who="anyone"),
    "GET /schema/openapi.json": Route(who="anyone"),
}
