-- Why attempts failed: a row per failed attempt, written by the statement that ends the attempt, so
-- that an attempt that succeeds writes nothing here. The rows go with the session's pictures.
--
-- attempts_excused counts the attempts that were released through no fault of the session: attempt
-- minus attempts_excused is what is bounded. So the claims of an external consumer and of workers that
-- die count, and nobody has to write that. failing_since is when the provider began to fail the
-- session's attempts, if it fails them still. Adding the columns writes no row.

ALTER TABLE generation_sessions
    ADD COLUMN attempts_excused integer NOT NULL DEFAULT 0,
    ADD COLUMN failing_since timestamptz;

CREATE TABLE attempt_faults (
    session_id uuid        NOT NULL,
    attempt    integer     NOT NULL,
    at         timestamptz NOT NULL DEFAULT now(),
    -- NULL if the worker died.
    worker     text        CHECK (length(worker) BETWEEN 1 AND 100),
    code       text        NOT NULL,
    -- A kind of a closed set and a detail: domain/causes.py. Never shown to a customer.
    cause      text        NOT NULL CHECK (length(cause) BETWEEN 1 AND 250),
    PRIMARY KEY (session_id, attempt)
);
