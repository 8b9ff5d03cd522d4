"""Trace Context: which ``traceparent`` is passed on, and what a session carries without one."""

import pytest

from domain.traces import accepted, trace_id_of, traceparent_of
from tests.support.examples import TRACEPARENT, a_session

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("header", "passed_on"),
    [
        (TRACEPARENT, TRACEPARENT),
        (f"00-{TRACE_ID}-{PARENT_ID}-00", f"00-{TRACE_ID}-{PARENT_ID}-00"),
        # A later version may have more fields; only those of version 00 are passed on.
        (f"cc-{TRACE_ID}-{PARENT_ID}-01", f"00-{TRACE_ID}-{PARENT_ID}-01"),
        (f"cc-{TRACE_ID}-{PARENT_ID}-01-what-comes", f"00-{TRACE_ID}-{PARENT_ID}-01"),
        (f"ff-{TRACE_ID}-{PARENT_ID}-01", None),
        (f"00-{TRACE_ID}-{PARENT_ID}-01-more", None),
        (f"00-{'0' * 32}-{PARENT_ID}-01", None),
        (f"00-{TRACE_ID}-{'0' * 16}-01", None),
        (TRACEPARENT.upper(), None),
        (f"{TRACEPARENT}\n", None),
        (f"00-{TRACE_ID}-{PARENT_ID}", None),
        (f"cc-{TRACE_ID}-{PARENT_ID}-01-{'x' * 1_000}", None),
        ("", None),
    ],
)
def test_valid_traceparent_is_passed_on(header: str, passed_on: str | None) -> None:
    """As https://www.w3.org/TR/trace-context/ has it; anything else begins a new trace."""
    assert accepted(header) == passed_on


def test_trace_of_a_request_follows_from_its_id() -> None:
    """Unless the caller gave a trace, log lines of one request have one trace, which ends with the
    digits of an id of ours; a caller's id makes a valid one, too."""
    assert trace_id_of("req_019b3c2d4e5f0123456789ab") == "00000000019b3c2d4e5f0123456789ab"
    assert trace_id_of("order-4711", TRACEPARENT) == TRACE_ID
    assert trace_id_of("order-4711") == trace_id_of("order-4711") != trace_id_of("order-4712")
    assert accepted(f"00-{trace_id_of('order-4711')}-{PARENT_ID}-00")


def test_session_always_carries_the_same_trace() -> None:
    """The caller's, or one that follows from what the session keeps: a valid one, of its own."""
    given, one, another = a_session(traceparent=TRACEPARENT), a_session(), a_session()

    assert given.trace == TRACEPARENT
    assert accepted(one.trace) == one.trace == traceparent_of(one.id, one.request_id, None)
    assert one.trace != another.trace
