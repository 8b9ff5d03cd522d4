-- The key under which a caller may repeat a request without being charged again, and a quick look
-- at how many sessions of an owner are unfinished.

ALTER TABLE generation_sessions ADD COLUMN idempotency_key text
    CHECK (idempotency_key IS NULL OR length(idempotency_key) BETWEEN 1 AND 255);
CREATE UNIQUE INDEX one_session_per_key
    ON generation_sessions (channel, owner_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX sessions_active ON generation_sessions (channel, owner_id)
    WHERE status IN ('queued', 'processing');

-- VOLATILE, so that it sees what was committed until now, not until the calling statement began.
-- Asked in the WHERE of a debit it is asked again where that had to wait for the account, and then
-- nobody else can take the key: whoever makes a session of this owner debits the account first.
CREATE FUNCTION key_is_taken(channel text, owner_id text, idempotency_key text) RETURNS boolean
    LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN $3 IS NOT NULL AND EXISTS (
        SELECT FROM generation_sessions AS s
        WHERE s.channel = $1 AND s.owner_id = $2 AND s.idempotency_key = $3);
END $$;

-- A key that changed hands would be answered with another request's session, and one that got lost
-- would be charged twice.
CREATE TRIGGER key_is_kept BEFORE UPDATE OF idempotency_key ON generation_sessions
    FOR EACH ROW
    WHEN (NEW.idempotency_key IS DISTINCT FROM OLD.idempotency_key
        AND (NEW.idempotency_key IS NULL AND OLD.status <> 'failed' AND NEW.status = 'failed'
            AND NEW.error_code = 'QUEUE_UNAVAILABLE') IS NOT TRUE)
    EXECUTE FUNCTION refuse('a key is only given back by what fails as never queued');
