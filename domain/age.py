"""Whether a request has to say that the person's age was verified, and what is kept of it."""

from enum import StrEnum

from domain.errors import AgeVerificationRequired


class AgeVerification(StrEnum):
    """The operator's rule for one channel."""

    REQUIRED = "required"
    """Only a request with a verified age is accepted."""
    OPTIONAL = "optional"
    """A verified age is recorded if the request says so."""
    OFF = "off"
    """Nothing is recorded, whatever the request says."""

    def recorded(self, given: bool | None) -> bool | None:
        """What a session keeps of the request's value: True, or None. That an age was not verified
        is not recorded, so a request without the field and one with false are the same request.

        Raises ``AgeVerificationRequired``.
        """
        if self is AgeVerification.REQUIRED and not given:
            raise AgeVerificationRequired("age_verified: must be true")
        return True if given and self is not AgeVerification.OFF else None
