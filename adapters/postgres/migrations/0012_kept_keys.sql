-- A key that was answered 202 is never freed. A session that was confirmed may have been answered,
-- and so may one that recovery fails: only the undo of a submission, before any confirmation, gives
-- its key back.

DROP TRIGGER key_is_kept ON generation_sessions;
CREATE TRIGGER key_is_kept BEFORE UPDATE OF idempotency_key ON generation_sessions
    FOR EACH ROW
    WHEN (NEW.idempotency_key IS DISTINCT FROM OLD.idempotency_key
        AND (NEW.idempotency_key IS NULL AND OLD.status = 'queued' AND NOT OLD.confirmed
            AND NEW.status = 'failed' AND NEW.error_code = 'QUEUE_UNAVAILABLE') IS NOT TRUE)
    EXECUTE FUNCTION refuse('a key is only given back by the undo of its submission');
