"""Whether the queue is known to fail, so that no credit is taken for a push that would fail."""


class QueueGate:
    """Closes when the queue cannot be measured, or when a second push fails in a row. Opens again
    for whoever pushes next once it can be measured, and for all once a push succeeds.

    One failed push alone closes nothing: a single lost connection is repaired by the next push.
    And a measurement alone does not open it for all: Redis answers LLEN also while it rejects every
    LPUSH (a replica, no memory left), so about one push per measurement fails in that case.
    """

    def __init__(self) -> None:
        self._works = True
        self._may_try = False
        self._answers = True

    @property
    def is_open(self) -> bool:
        """Whether a credit may be taken for a push."""
        return self._works or self._may_try

    @property
    def may_answer_again(self) -> bool:
        """Whether another measurement could open it now: the last one got no answer."""
        return not self._answers

    def pushing(self) -> None:
        """A push begins. While the queue is not known to work, others wait for its outcome."""
        self._may_try = False

    def pushed(self) -> None:
        """A push succeeded."""
        self._works = True

    def failed(self) -> None:
        """A push failed. Of pushes that failed together, the first counts."""
        if self._works:
            self._works, self._may_try = False, True

    def measured(self, *, answered: bool) -> None:
        """The queue was measured, or did not answer."""
        self._answers = answered
        if not answered:
            self._works = False
        self._may_try = answered and not self._works
