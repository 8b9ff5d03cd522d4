"""Age verification: who has to say it, what is recorded, and that nothing is charged without it."""

from uuid import UUID

import pytest

from domain.age import AgeVerification
from domain.credits import Owner
from domain.errors import AgeVerificationRequired, IdempotencyKeyReused
from domain.submission import SubmissionPolicy
from tests.support.examples import MANY, STORE, USER, a_request
from tests.support.service import Service

pytestmark = pytest.mark.anyio

REQUIRED, OPTIONAL, OFF = AgeVerification
GIVEN = (True, False, None)


def limit(service: Service, b2b: AgeVerification, b2c: AgeVerification) -> None:
    service.limit(
        SubmissionPolicy(max_active=MANY, max_waiting=MANY, age_b2b=b2b, age_b2c=b2c),
    )


@pytest.mark.parametrize(
    ("rule", "recorded"),
    [(OPTIONAL, [True, None, None]), (OFF, [None, None, None])],
)
def test_only_a_verified_age_is_recorded(
    rule: AgeVerification, recorded: list[bool | None]
) -> None:
    """False and a missing value are the same: nothing was verified."""
    assert [rule.recorded(given) for given in GIVEN] == recorded


def test_required_age_is_true() -> None:
    """Everything else is refused."""
    assert REQUIRED.recorded(True) is True
    for given in (False, None):
        with pytest.raises(AgeVerificationRequired):
            REQUIRED.recorded(given)


@pytest.mark.parametrize(("refused", "accepted"), [(STORE, USER), (USER, STORE)], ids=str)
async def test_rule_is_that_of_the_channel(
    service: Service, refused: Owner, accepted: Owner
) -> None:
    """A rule for stores is none for users, and the other way round."""
    rules = {refused: REQUIRED, accepted: OPTIONAL}
    limit(service, b2b=rules[STORE], b2c=rules[USER])

    await service.submitted(accepted)
    with pytest.raises(AgeVerificationRequired):
        await service.submitted(refused)

    assert service.balance(refused) == 1
    assert len(await service.sessions()) == 1


async def test_verified_age_is_recorded_with_the_session(service: Service) -> None:
    """That it was given, for as long as the session is kept."""
    limit(service, b2b=OPTIONAL, b2c=REQUIRED)

    receipt = await service.submitted(age_verified=True)

    assert (await service.session(receipt.session.id)).input.age_verified is True


async def test_replay_needs_the_verified_age_as_well(service: Service) -> None:
    """Refused although the first request had it: the caller never sees the session."""
    limit(service, b2b=OPTIONAL, b2c=REQUIRED)
    await service.submitted(idempotency_key="k", age_verified=True)

    with pytest.raises(AgeVerificationRequired):
        await service.submission.submit(a_request(idempotency_key="k"))


async def test_replay_with_another_age_is_another_request(service: Service) -> None:
    """The field is part of what a replay has to repeat; false is the same as nothing."""
    first = await service.submitted(idempotency_key="k")

    with pytest.raises(IdempotencyKeyReused):
        await service.submission.submit(a_request(idempotency_key="k", age_verified=True))
    replay = await service.submission.submit(a_request(idempotency_key="k", age_verified=False))

    assert replay.session.id == first.session.id


async def test_replay_is_recognised_whatever_it_says_if_the_rule_is_off(service: Service) -> None:
    """A client that begins to send the field may repeat a request that it sent without."""
    limit(service, b2b=OFF, b2c=OFF)
    await service.accounts.grant(USER, 9, note="test")
    found: set[UUID] = set()

    for given in GIVEN:
        request = a_request(idempotency_key="k", age_verified=given)
        found.add((await service.submission.submit(request)).session.id)

    assert len(found) == 1
    assert (await service.session(found.pop())).input.age_verified is None
