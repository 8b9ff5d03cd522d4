-- The two guards that depend on the columns of a session. From now on they are rendered from the
-- table of columns (adapters/sessions/columns.py, guards.py), and an error names the broken rule.
--
-- A later migration that adds or changes a column appends what guards.py renders then. The locks
-- take some milliseconds, whatever the number of sessions: NOT VALID means that no row is read.

ALTER TABLE generation_sessions DROP CONSTRAINT session_is_sound;
DROP FUNCTION session_is_sound;
CREATE FUNCTION session_is_sound(
    id uuid, channel text, store_id text, user_id text, idempotency_key text, status text,
    lease_expires_at timestamptz, provider_job text, completed_at timestamptz, object_key text,
    media_type text, input_tokens integer, output_tokens integer, estimated_cost_usd numeric,
    error_code text, image_deleted_at timestamptz, refunded boolean
) RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    broken_rule text := CASE
        WHEN NOT (status IN ('queued', 'processing', 'completed', 'failed'))
            THEN 'its status is one of the four'
        WHEN NOT ((channel = 'b2b' AND store_id IS NOT NULL AND user_id IS NULL)
            OR (channel = 'b2c' AND user_id IS NOT NULL AND store_id IS NULL))
            THEN 'its owner matches its channel'
        WHEN NOT (length(idempotency_key) BETWEEN 1 AND 255)
            THEN 'its idempotency key has 1 to 255 characters'
        WHEN NOT (length(provider_job) BETWEEN 1 AND 200)
            THEN 'its provider job has 1 to 200 characters'
        WHEN NOT (lease_expires_at IS NULL OR status = 'processing')
            THEN 'it has a lease only while it is processing'
        WHEN NOT ((completed_at IS NOT NULL) = (status IN ('completed', 'failed')))
            THEN 'it has a completed_at exactly if it is final'
        WHEN NOT (status <> 'failed' OR error_code IS NOT NULL)
            THEN 'it has an error code if it failed'
        WHEN NOT ((object_key IS NULL) = (media_type IS NULL))
            THEN 'its picture has both a key and a media type'
        WHEN NOT (NOT refunded OR status = 'failed')
            THEN 'it is refunded only if it failed'
        WHEN NOT (image_deleted_at IS NULL OR status IN ('completed', 'failed'))
            THEN 'its images are deleted only if it is final'
        WHEN NOT (num_nulls(input_tokens, output_tokens, estimated_cost_usd) IN (0, 3))
            THEN 'its usage is whole'
        WHEN NOT (input_tokens >= 0 AND output_tokens >= 0 AND estimated_cost_usd >= 0)
            THEN 'its usage is not negative'
    END;
BEGIN
    IF broken_rule IS NULL THEN
        RETURN true;
    END IF;
    RAISE EXCEPTION 'session % breaks the rule: %', id, broken_rule USING
        ERRCODE = 'check_violation', TABLE = 'generation_sessions', CONSTRAINT = 'session_is_sound';
END $$;
ALTER TABLE generation_sessions ADD CONSTRAINT session_is_sound CHECK (session_is_sound(
    id, channel, store_id, user_id, idempotency_key, status, lease_expires_at, provider_job,
    completed_at, object_key, media_type, input_tokens, output_tokens, estimated_cost_usd,
    error_code, image_deleted_at, refunded
)) NOT VALID;

DROP TRIGGER session_stays_what_was_paid ON generation_sessions;
CREATE TRIGGER session_stays_what_was_paid BEFORE UPDATE OF
    id, created_at, request_id, channel, store_id, user_id, model_image_url, outfit_image_url,
    accessories, prompt
ON generation_sessions FOR EACH ROW
    WHEN (
        NEW.id IS DISTINCT FROM OLD.id
        OR NEW.created_at IS DISTINCT FROM OLD.created_at
        OR NEW.request_id IS DISTINCT FROM OLD.request_id
        OR NEW.channel IS DISTINCT FROM OLD.channel
        OR NEW.store_id IS DISTINCT FROM OLD.store_id
        OR NEW.user_id IS DISTINCT FROM OLD.user_id
        OR NEW.model_image_url IS DISTINCT FROM OLD.model_image_url
        OR NEW.outfit_image_url IS DISTINCT FROM OLD.outfit_image_url
        OR NEW.accessories IS DISTINCT FROM OLD.accessories
        OR NEW.prompt IS DISTINCT FROM OLD.prompt)
    EXECUTE FUNCTION refuse('who paid, when and for what cannot be changed');
