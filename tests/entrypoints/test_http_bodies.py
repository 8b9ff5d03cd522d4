"""The bodies of all calls: a name that is given twice is refused, whatever the call's defaults."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from domain.errors import InvalidInput
from entrypoints.http.admin_schemas import (
    NewAdjustment,
    NewGrant,
    NewKey,
    NewPlan,
    NewStore,
    StoreChanges,
    Suspension,
)
from entrypoints.http.app import create_app  # noqa: F401 - makes all bodies
from entrypoints.http.batch_schemas import BatchItem, NewBatch
from entrypoints.http.client_token_schemas import NewClientToken
from entrypoints.http.inputs import StrictBody, decoded
from entrypoints.http.original import OriginalRequest
from entrypoints.http.schemas import NewGeneration, NewUpload
from entrypoints.http.webhook_schemas import EndpointChanges, FailedSince, NewAlert, NewEndpoint

OWNER = {"channel": "b2b", "owner_id": "store-1"}
URL = "https://x.example/a.jpg"
BODIES: dict[type[msgspec.Struct], dict[str, Any]] = {
    NewGeneration: {"model_image_url": URL, "outfit_image_url": URL},
    NewBatch: {"items": [{"model_image_url": URL, "idempotency_key": "k-1"}]},
    BatchItem: {"model_image_url": URL, "idempotency_key": "k-1"},
    NewUpload: {"content_type": "image/png"},
    NewGrant: OWNER | {"amount": 5, "reference": "r"},
    NewAdjustment: OWNER | {"amount": 5, "reference": "r", "reason": "x"},
    NewStore: {"id": "store-1", "name": "Shop"},
    StoreChanges: {"name": "Shop", "plan": "growth"},
    NewKey: {"label": "till 1"},
    Suspension: {"reason": "x"},
    NewPlan: {"plan": "growth"},
    NewClientToken: {"shopper_id": "ann", "origin": "https://a.example", "pictures": 1},
    NewEndpoint: {"url": URL, "events": ["credits.low"], "description": "x"},
    EndpointChanges: {"url": URL, "events": ["credits.low"], "description": "x", "enabled": False},
    FailedSince: {"since": "2026-01-01T12:00:00Z"},
    NewAlert: {"low_credits": 5},
    OriginalRequest: {"image_urls": [URL], "prompt": "x"},
}


def kinds(body: type[Any] = StrictBody) -> Iterator[type[Any]]:
    for kind in body.__subclasses__():
        if hasattr(kind, "decoder"):
            yield kind.decoder.type
        yield from kinds(kind)


def test_every_body_is_tried() -> None:
    assert set(kinds()) | {NewGeneration, NewBatch, BatchItem} == set(BODIES)


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, body in BODIES.items() for name in body]
)
def test_repeated_name_is_refused(kind: type[msgspec.Struct], name: str) -> None:
    """As the first or as the last of two, and written with an escape."""
    decoder = msgspec.json.Decoder(kind)
    body = json.dumps(BODIES[kind])
    value = json.dumps(BODIES[kind][name])

    decoded(body.encode(), decoder)
    for again in (name, f"\\u{ord(name[0]):04x}{name[1:]}"):
        for twice in (f'{{"{again}":{value},{body[1:]}', f'{body[:-1]},"{again}":{value}}}'):
            with pytest.raises(InvalidInput, match="is given more than once"):
                decoded(twice.encode(), decoder)


@pytest.mark.parametrize(
    "ignored", [b'"\xff"', b"[" * 2_000 + b"]" * 2_000, b"1" * 5_000], ids=["text", "deep", "long"]
)
def test_ignored_field_that_cannot_be_read(ignored: bytes) -> None:
    """The original ignores unknown fields, unless they are no JSON that everybody can read."""
    body = b'{"image_urls":["%s"],"x":%s}' % (URL.encode(), ignored)

    with pytest.raises(InvalidInput, match="body"):
        decoded(body, msgspec.json.Decoder(OriginalRequest))


def test_prompt_of_the_original_is_printable() -> None:
    body = json.dumps({"image_urls": [URL], "prompt": "a\0b"}).encode()

    with pytest.raises(InvalidInput, match="prompt"):
        decoded(body, msgspec.json.Decoder(OriginalRequest))
