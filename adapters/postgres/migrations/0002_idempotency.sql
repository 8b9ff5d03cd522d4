-- The key under which a caller may repeat a request without being charged again, and a quick look
-- at how many sessions of an owner are unfinished.

ALTER TABLE generation_sessions ADD COLUMN idempotency_key text
    CHECK (idempotency_key IS NULL OR length(idempotency_key) BETWEEN 1 AND 255);
CREATE UNIQUE INDEX one_session_per_key
    ON generation_sessions (channel, owner_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX sessions_active ON generation_sessions (channel, owner_id)
    WHERE status IN ('queued', 'processing');
