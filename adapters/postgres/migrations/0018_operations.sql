-- What operators are shown, beside the sessions themselves.

-- Each worker reports every few seconds, so that its death, its open circuit and what it waits for
-- are seen. A worker that stops deletes its row; the row of one that died stays for a day.
CREATE TABLE workers (
    id              uuid        PRIMARY KEY,
    host            text        NOT NULL CHECK (length(host) BETWEEN 1 AND 100),
    pid             integer     NOT NULL,
    version         text        NOT NULL CHECK (length(version) BETWEEN 1 AND 50),
    started_at      timestamptz NOT NULL,
    seen_at         timestamptz NOT NULL,
    slots           integer     NOT NULL,
    busy            integer     NOT NULL,
    draining        boolean     NOT NULL,
    throttled_until timestamptz,
    limit_is_local  boolean     NOT NULL,
    circuit_until   timestamptz,
    -- A kind of a closed set and a detail, as in attempt_faults.
    circuit_cause   text        CHECK (length(circuit_cause) BETWEEN 1 AND 250),
    done            bigint      NOT NULL,
    failed          bigint      NOT NULL,
    CONSTRAINT circuit_has_its_cause CHECK ((circuit_until IS NULL) = (circuit_cause IS NULL)),
    CONSTRAINT slots_are_counted CHECK (slots > 0 AND busy BETWEEN 0 AND slots)
);
-- Updated every few seconds: half of each page is left for the next version of a row.
ALTER TABLE workers SET (fillfactor = 50);

-- What operators have paused. What is not paused has no row.
CREATE TABLE pauses (
    switch text        PRIMARY KEY CHECK (switch IN ('intake', 'workers')),
    since  timestamptz NOT NULL DEFAULT now(),
    actor  text        NOT NULL CHECK (length(actor) BETWEEN 1 AND 200),
    reason text        NOT NULL CHECK (length(reason) BETWEEN 1 AND 500)
);

-- The latest check of the books: one row.
CREATE TABLE book_checks (
    only_one      boolean     PRIMARY KEY DEFAULT true CHECK (only_one),
    due_at        timestamptz NOT NULL,
    claimed_until timestamptz,
    -- NULL until the first check has ended.
    checked_at    timestamptz,
    took_ms       bigint,
    discrepancies integer,
    first         text        CHECK (length(first) BETWEEN 1 AND 500),
    CONSTRAINT check_is_whole CHECK ((checked_at IS NULL) = (took_ms IS NULL)
        AND (checked_at IS NULL) = (discrepancies IS NULL))
);
INSERT INTO book_checks (due_at) VALUES (now());

-- Failures by code, newest first. Written only when a session fails.
CREATE INDEX failed_by_code ON generation_sessions (error_code, id DESC) WHERE status = 'failed';
-- Why attempts failed lately.
CREATE INDEX attempt_faults_by_time ON attempt_faults (at);
