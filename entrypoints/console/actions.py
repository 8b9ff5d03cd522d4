"""What operators do: each action says what it would do, and does it once."""

from collections.abc import Mapping
from uuid import UUID

from domain.console_actions import Act, Payer, why_not_again
from domain.credits import Owner
from domain.errors import InvalidInput
from domain.operator_ports import Switch
from domain.sessions import GenerationSession, SessionStatus
from entrypoints.console import queries
from entrypoints.console.forms import (
    Action,
    Field,
    Given,
    Outcome,
    Preview,
    amount_of,
    owner_of,
    required_id,
    session_id_of,
)
from entrypoints.console.services import Services


def _owner_path(owner: Owner) -> str:
    return f"/console/owners/{owner.channel}/{owner.id}"


def _session_path(session_id: UUID) -> str:
    return f"/console/sessions/{session_id}"


async def _preview_grant(services: Services, given: Given) -> Preview:
    owner = owner_of(given)
    account = await services.reading.owners.account(owner)
    session_id = queries.id_of(given.get("session", ""), field="session")
    warnings, facts = [], [("Owner", str(owner)), ("Balance now", f"{account.balance:,}")]
    if account.is_unfunded:
        warnings.append("This owner has never had a credit: check the id for a typing error.")
    if session_id is not None:
        session = await services.reading.sessions.get(session_id, owner)
        facts.append(("About session", str(session_id)))
        if session.status is SessionStatus.FAILED:
            warnings.append("This session failed, so its credit was given back already.")
    return Preview(
        title="Grant credits",
        button="Grant",
        back=_owner_path(owner) if session_id is None else _session_path(session_id),
        facts=facts,
        warnings=warnings,
        fields=[Field(name="amount", label="Credits", value=given.get("amount") or "1",
            is_number=True)],
        is_read_by_owner=True,
    )  # fmt: skip


async def _grant(services: Services, given: Given, act: Act) -> Outcome:
    owner = owner_of(given)
    session_id = queries.id_of(given.get("session", ""), field="session")
    booked = await services.actions.grant(owner, amount_of(given), act, session_id=session_id)
    lines = [
        f"Entry {booked.entry.id}: {booked.entry.amount:+,} credit(s).",
        f"{owner} has {booked.account.balance:,} credit(s) now.",
    ]
    return Outcome(
        title="Granted", lines=lines, path=_owner_path(owner), path_label=f"Open {owner.id}"
    )


async def _preview_take_back(services: Services, given: Given) -> Preview:
    owner = owner_of(given)
    account = await services.reading.owners.account(owner)
    return Preview(
        title="Take credits back",
        button="Take back",
        back=_owner_path(owner),
        facts=[("Owner", str(owner)), ("Balance now", f"{account.balance:,}")],
        warnings=["For a mistaken grant: all of the credits, or none if the balance is smaller."],
        fields=[Field(name="amount", label="Credits", value=given.get("amount", ""),
            is_number=True)],
        blocked=None if account.balance else "The balance is 0: nothing can be taken back.",
        is_grave=True,
        is_read_by_owner=True,
    )  # fmt: skip


async def _take_back(services: Services, given: Given, act: Act) -> Outcome:
    owner = owner_of(given)
    booked = await services.actions.take_back(owner, amount_of(given), act)
    line = f"{owner} has {booked.account.balance:,} credit(s) now (entry {booked.entry.id})."
    return Outcome(
        title="Taken back", lines=[line], path=_owner_path(owner), path_label=f"Open {owner.id}"
    )


def _about(session: GenerationSession) -> list[tuple[str, str]]:
    return [
        ("Session", str(session.id)),
        ("Owner", str(session.owner)),
        ("State now", str(session.status)),
    ]


async def _preview_cancel(services: Services, given: Given) -> Preview:
    session = await services.reading.sessions.get(session_id_of(given), None)
    if session.status is SessionStatus.QUEUED:
        warning = "The session fails as CANCELLED, and its credit is given back."
    else:
        warning = "A worker stops the attempt, unless its picture is stored before it hears of it."
    return Preview(
        title="Cancel the session",
        button="Cancel the session",
        back=_session_path(session.id),
        facts=_about(session),
        warnings=[warning],
        blocked="The session has ended." if session.status.is_final else None,
        is_grave=True,
    )


async def _cancel(services: Services, given: Given, act: Act) -> Outcome:
    session = await services.actions.cancel(session_id_of(given), act)
    line = f"The session is {session.status}."
    if not session.status.is_final:
        line = "The worker of this session was told to stop."
    return Outcome(
        title="Cancelled",
        lines=[line],
        path=_session_path(session.id),
        path_label="Open the session",
    )


async def _preview_again(services: Services, given: Given) -> Preview:
    session = await services.reading.sessions.get(session_id_of(given), None)
    account = await services.reading.owners.account(session.owner)
    choices = [
        (Payer.OWNER.value, f"the owner, who has {account.balance:,}"),
        (Payer.GRANT.value, "us: grant 1 credit first"),
    ]
    warnings = ["A new session is made with the same pictures. The old one stays as it is."]
    if session.shopper is not None:
        warnings.append("The store gets the picture; its shopper does not see the new session.")
    return Preview(
        title="Make the picture again",
        button="Make it again",
        back=_session_path(session.id),
        facts=_about(session),
        warnings=warnings,
        fields=[Field(name="payer", label="Who pays the credit", choices=choices,
            value=given.get("payer") or Payer.OWNER.value)],
        blocked=why_not_again(session),
    )  # fmt: skip


async def _again(services: Services, given: Given, act: Act) -> Outcome:
    payer = given.get("payer", "")
    if payer not in set(Payer):
        raise InvalidInput("payer", f"must be one of {', '.join(Payer)}")
    receipt = await services.actions.again(session_id_of(given), Payer(payer), act)
    session = receipt.session
    return Outcome(
        title="Requested again",
        lines=[f"The new session is {session.id}; the owner has {receipt.credits_remaining:,}"
            " credit(s) left."],
        path=_session_path(session.id),
        path_label="Open the new session",
    )  # fmt: skip


async def _letter_facts(services: Services, letter_id: UUID) -> list[tuple[str, str]]:
    letter = await services.reading.letters.get(letter_id)
    session = "none of ours" if letter.session_id is None else str(letter.session_id)
    return [("Letter", str(letter.id)), ("Reason", letter.reason), ("Session", session)]


async def _preview_requeue(services: Services, given: Given) -> Preview:
    letter_id = required_id(given, "letter")
    return Preview(
        title="Requeue the letter",
        button="Requeue",
        back=f"/console/queue/{letter_id}",
        facts=await _letter_facts(services, letter_id),
        warnings=["A worker takes the message again, behind all tasks. If nothing has changed, the"
            " message comes back here."],
    )  # fmt: skip


async def _requeue(services: Services, given: Given, act: Act) -> Outcome:
    await services.actions.requeue(required_id(given, "letter"), act)
    return _of_letter("Requeued", "The message is at the end of the queue.")


async def _preview_discard(services: Services, given: Given) -> Preview:
    letter_id = required_id(given, "letter")
    return Preview(
        title="Discard the letter",
        button="Discard",
        back=f"/console/queue/{letter_id}",
        facts=await _letter_facts(services, letter_id),
        warnings=["The text is deleted for good. No session changes by this."],
        is_grave=True,
    )


async def _discard(services: Services, given: Given, act: Act) -> Outcome:
    await services.actions.discard(required_id(given, "letter"), act)
    return _of_letter("Discarded", "The letter is deleted.")


def _of_letter(title: str, line: str) -> Outcome:
    return Outcome(title=title, lines=[line], path="/console/queue", path_label="Open the queue")


async def _preview_create_key(services: Services, given: Given) -> Preview:
    owner = owner_of(given)
    await services.reading.owners.require(owner)
    return Preview(
        title="Create an API key",
        button="Create the key",
        back=_owner_path(owner),
        facts=[("Store", owner.id)],
        warnings=["The key spends this store's credits. It is shown once."],
        fields=[Field(name="label", label="What the key is for", is_required=False,
            value=given.get("label", ""))],
    )  # fmt: skip


async def _create_key(services: Services, given: Given, act: Act) -> Outcome:
    owner = owner_of(given)
    issued = await services.actions.create_key(owner, given.get("label", ""), act)
    lines = [f"Key {issued.key.id} of {owner.id}."]
    if issued.secret is None:
        lines.append("It was shown already. If it is lost, revoke it and create another one.")
    return Outcome(
        title="Key created",
        lines=lines,
        path=_owner_path(owner),
        path_label=f"Open {owner.id}",
        secret=issued.secret,
    )


async def _preview_revoke_key(services: Services, given: Given) -> Preview:
    key = await services.reading.api_keys.get(required_id(given, "key"))
    if key is None:
        raise InvalidInput("key", "is unknown")
    return Preview(
        title="Revoke an API key",
        button="Revoke the key",
        back=_owner_path(key.owner),
        facts=[("Key", f"{key.prefix or 'wk_'}…"), ("Store", key.owner.id), ("Label", key.label)],
        warnings=["Calls with this key fail within seconds. A revoked key cannot be restored."],
        blocked="The key is revoked already." if key.revoked_at else None,
        is_grave=True,
    )


async def _revoke_key(services: Services, given: Given, act: Act) -> Outcome:
    key = await services.actions.revoke_key(required_id(given, "key"), act)
    return Outcome(
        title="Key revoked",
        lines=[f"{key.prefix or 'wk_'}… of {key.owner.id} is not accepted any more."],
        path=_owner_path(key.owner),
        path_label=f"Open {key.owner.id}",
    )


_PAUSED = {
    Switch.INTAKE: "New requests get a 503 and are not charged. Everything else goes on.",
    Switch.WORKERS: "Workers finish what they have and take no new task. Requests wait.",
}


def _switch(given: Given) -> Switch:
    try:
        return Switch(given.get("switch", ""))
    except ValueError as error:
        raise InvalidInput("switch", f"must be one of {', '.join(Switch)}") from error


def _switches(given: Given) -> Field:
    choices = [(switch.value, switch.value) for switch in Switch]
    value = given.get("switch") or Switch.INTAKE.value
    return Field(name="switch", label="What", value=value, choices=choices)


async def _preview_pause(services: Services, given: Given) -> Preview:
    return Preview(
        title="Pause",
        button="Pause",
        back="/console",
        facts=[(switch.value, what) for switch, what in _PAUSED.items()],
        warnings=await _paused(services),
        fields=[_switches(given)],
        is_grave=True,
    )


async def _paused(services: Services) -> list[str]:
    snapshot = await services.reading.reads.snapshot()
    return [
        f"{pause.switch} paused by {pause.actor} already: {pause.reason}"
        for pause in snapshot.pauses
    ]


async def _pause(services: Services, given: Given, act: Act) -> Outcome:
    switch = _switch(given)
    is_new = await services.actions.pause(switch, act)
    line = _PAUSED[switch] if is_new else "This was paused already; the first reason stays."
    return Outcome(title=f"Paused: {switch}", lines=[line], path="/console", path_label="Overview")


async def _preview_resume(services: Services, given: Given) -> Preview:
    return Preview(
        title="Resume",
        button="Resume",
        back="/console",
        warnings=await _paused(services),
        fields=[_switches(given)],
    )


async def _resume(services: Services, given: Given, act: Act) -> Outcome:
    switch = _switch(given)
    is_new = await services.actions.resume(switch, act)
    line = "Within seconds it goes on." if is_new else "This was not paused."
    return Outcome(title=f"Resumed: {switch}", lines=[line], path="/console", path_label="Overview")


async def _preview_verify(_: Services, __: Given) -> Preview:
    return Preview(
        title="Verify the books",
        button="Verify",
        back="/console",
        warnings=["This reads the whole ledger, for at most 5 minutes. Nothing is changed."],
        needs_reason=False,
    )


async def _verify(services: Services, _: Given, __: Act) -> Outcome:
    found = await services.actions.verify()
    line = "Every balance is the sum of its ledger entries, and every failed session is refunded."
    return Outcome(
        title="Discrepancies found" if found else "The books balance",
        lines=[] if found else [line],
        path="/console",
        path_label="Overview",
        findings=found,
    )


ACTIONS: Mapping[str, Action] = {
    "grant": Action(names=("owner", "session"), preview=_preview_grant, run=_grant),
    "take-back": Action(names=("owner",), preview=_preview_take_back, run=_take_back),
    "cancel": Action(names=("session",), preview=_preview_cancel, run=_cancel),
    "again": Action(names=("session",), preview=_preview_again, run=_again, resumes=True),
    "requeue": Action(names=("letter",), preview=_preview_requeue, run=_requeue),
    "discard": Action(names=("letter",), preview=_preview_discard, run=_discard),
    "create-key": Action(names=("owner",), preview=_preview_create_key, run=_create_key),
    "revoke-key": Action(names=("key",), preview=_preview_revoke_key, run=_revoke_key),
    "pause": Action(names=(), presets=("switch",), preview=_preview_pause, run=_pause),
    "resume": Action(names=(), presets=("switch",), preview=_preview_resume, run=_resume),
    "verify": Action(names=(), preview=_preview_verify, run=_verify, reads=True),
}
