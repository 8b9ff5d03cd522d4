-- What an owner's sessions are counted by, so that no question takes longer as they grow in number.

-- unfinished_at_most is never less than the owner's unfinished sessions: whoever creates one adds it
-- here, in the row that the debit changes anyway, and nobody takes it away when it ends, which would
-- make this row hot a second time. Only where it reaches the limit are they counted, and it is set
-- right. The other two are what is refunded and what was ever created.
ALTER TABLE credit_accounts
    ADD COLUMN unfinished_at_most bigint NOT NULL DEFAULT 0 CHECK (unfinished_at_most >= 0),
    ADD COLUMN sessions_created bigint NOT NULL DEFAULT 0 CHECK (sessions_created >= 0),
    ADD COLUMN sessions_refunded bigint NOT NULL DEFAULT 0,
    ADD CONSTRAINT refunded_were_created
        CHECK (sessions_refunded BETWEEN 0 AND sessions_created);
UPDATE credit_accounts AS account
SET sessions_created = entries.debits, sessions_refunded = entries.refunds,
    unfinished_at_most = entries.debits
FROM (
    SELECT channel, owner_id, count(*) FILTER (WHERE kind = 'debit') AS debits,
        count(*) FILTER (WHERE kind = 'refund') AS refunds
    FROM credit_ledger GROUP BY 1, 2
) AS entries
WHERE (account.channel, account.owner_id) = (entries.channel, entries.owner_id);

-- Asked only by whoever holds the account, and then nobody else can create a session. VOLATILE, so
-- that it sees what was committed until then.
CREATE FUNCTION count_unfinished(channel text, owner_id text, up_to bigint) RETURNS bigint
    LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN (
        SELECT count(*) FROM (
            SELECT FROM generation_sessions AS s
            WHERE s.channel = $1 AND s.owner_id = $2 AND s.status IN ('queued', 'processing')
            LIMIT $3) AS unfinished);
END $$;

-- An owner's sessions, newest first, of one status or of each: one index for both, and for counting
-- the unfinished. A change of status makes new entries in every index anyway.
DROP INDEX sessions_of_owner;
DROP INDEX sessions_active;
CREATE INDEX sessions_of_owner
    ON generation_sessions (channel, owner_id, status, created_at DESC, id DESC);
DROP INDEX sessions_without_refund;
CREATE INDEX sessions_without_refund ON generation_sessions (channel, owner_id)
    WHERE status = 'failed' AND NOT refunded;

-- A lease is renewed many times while a picture is made. Without it in an index, and with room in
-- the page, that changes nothing but the row; and so does noting that a task was pushed.
DROP INDEX sessions_processing;
CREATE INDEX sessions_processing ON generation_sessions (status_changed_at)
    WHERE status = 'processing';
ALTER TABLE generation_sessions SET (fillfactor = 85);
-- An account is little and changes with every session.
ALTER TABLE credit_accounts SET (fillfactor = 50);

-- By default a table is vacuumed once a fifth of it is dead: of millions of sessions that would be
-- rare and long, and until then every look at what waits would step over what no longer does.
ALTER TABLE generation_sessions SET (autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_insert_scale_factor = 0.02,
    autovacuum_analyze_scale_factor = 0.02);
ALTER TABLE credit_accounts SET (autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_threshold = 1000);
ALTER TABLE credit_ledger SET (autovacuum_vacuum_insert_scale_factor = 0.02,
    autovacuum_analyze_scale_factor = 0.02);
