"""``age_verified``: who has to send it, and where it is shown."""

from typing import Any

import pytest

from domain.age import AgeVerification
from domain.credits import Owner
from domain.submission import SubmissionPolicy
from tests.support.examples import MANY, MODEL_URL, STORE, USER
from tests.support.http import GENERATIONS, Api

pytestmark = pytest.mark.anyio

REQUIRED, OPTIONAL, OFF = AgeVerification


async def an_api(rule: AgeVerification) -> Api:
    """With this rule for both channels; both owners have credits."""
    api = Api()
    api.service.limit(
        SubmissionPolicy(max_active=MANY, max_waiting=MANY, age_b2b=rule, age_b2c=rule)
    )
    for owner in (USER, STORE):
        await api.service.accounts.grant(owner, 9, note="test")
    return api


def body(**fields: Any) -> dict[str, Any]:
    return {"model_image_url": MODEL_URL, **fields}


@pytest.mark.parametrize("owner", [USER, STORE], ids=str)
@pytest.mark.parametrize("given", [{}, {"age_verified": None}, {"age_verified": False}], ids=str)
async def test_required_age_is_refused_before_any_charge(
    owner: Owner, given: dict[str, Any]
) -> None:
    """403, on the fast path and off it, also with the key of an accepted request."""
    api = await an_api(REQUIRED)
    key = [("idempotency-key", "k")]
    accepted = await api.submit(owner=owner, body=body(age_verified=True), headers=key)

    fast = await api.submit(owner=owner, body=body(**given))
    replay = await api.submit(owner=owner, body=body(**given), headers=key)
    slow = await api.call("POST", f"{GENERATIONS}/", owner=owner, body=body(**given))

    assert accepted.status == 202
    for answer in (fast, replay, slow):
        assert answer.error == (403, "AGE_VERIFICATION_REQUIRED")
        assert answer.message == "age_verified: must be true"
    assert api.service.balance(owner) == 8


@pytest.mark.parametrize(
    ("rule", "given", "shown"),
    [
        (REQUIRED, True, True),
        (OPTIONAL, True, True),
        (OPTIONAL, False, None),
        (OPTIONAL, None, None),
        (OFF, True, None),
        (OFF, False, None),
    ],
)
async def test_session_shows_that_the_age_was_verified(
    rule: AgeVerification, given: bool | None, shown: bool | None
) -> None:
    """True or null: that it was not verified, and what was sent while nothing is recorded, is not
    kept."""
    api = await an_api(rule)

    session_id = (await api.submit(body=body(age_verified=given))).data["session_id"]

    assert (await api.get(f"{GENERATIONS}/{session_id}")).data["age_verified"] is shown


@pytest.mark.parametrize("given", ["true", 1, "1990-01-01"])
async def test_age_is_true_or_false(given: object) -> None:
    """A birth date is rejected, not kept."""
    api = await an_api(OPTIONAL)

    answer = await api.submit(body=body(age_verified=given))

    assert answer.error == (400, "VALIDATION_ERROR")
    assert answer.message.startswith("age_verified: ")
