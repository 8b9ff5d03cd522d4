"""All errors of this client are a `WearonError`."""

from wearon_client.models import Session


class WearonError(Exception):
    """Anything that this client raises on its own. ``session_id`` is the session that a call
    had already created or awaited, ``idempotency_key`` the key of a submission: submitting again
    with that key charges it once."""

    session_id: str | None = None
    idempotency_key: str | None = None


class ApiError(WearonError):
    """The API refused a request. ``code`` is for programs, and may be one that this client does not
    know; ``request_id`` finds the request in the service's logs."""

    def __init__(
        self,
        *,
        status: int,
        code: str,
        message: str,
        request_id: str | None,
        retry_after_seconds: float | None,
    ) -> None:
        super().__init__(f"{status} {code}: {message} (request {request_id})")
        self.status = status
        self.code = code
        self.message = message
        self.request_id = request_id
        self.retry_after_seconds = retry_after_seconds


class ConnectionFailed(WearonError):
    """No usable response came, also after all retries. A submission may have arrived."""


class WaitTimeout(WearonError):
    """A session was not final in time. ``last`` is its latest known state, if any. It goes on:
    get or await it again."""

    def __init__(self, session_id: str, last: Session | None) -> None:
        super().__init__(f"session {session_id} was not final in time")
        self.session_id = session_id
        self.last = last


class InvalidWebhook(WearonError):
    """A webhook's signature, time or form is not valid: answer 400, and do not act on it."""
