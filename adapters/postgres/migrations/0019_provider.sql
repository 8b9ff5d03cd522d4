-- Which provider made a picture, so that costs can be summed by it. NULL for what was made before.
ALTER TABLE generation_sessions ADD COLUMN provider text;

ALTER TABLE generation_sessions DROP CONSTRAINT session_is_sound;
DROP FUNCTION session_is_sound;
CREATE FUNCTION session_is_sound(
    id uuid, channel text, store_id text, user_id text, age_verified boolean, idempotency_key text,
    status text, lease_expires_at timestamptz, cancel_requested_at timestamptz, provider_job text,
    completed_at timestamptz, object_key text, media_type text, provider text, input_tokens integer,
    output_tokens integer, estimated_cost_usd numeric, error_code text, image_deleted_at
    timestamptz, erased_at timestamptz, refunded boolean
) RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
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
        WHEN NOT (length(provider) BETWEEN 1 AND 50)
            THEN 'its provider has 1 to 50 characters'
        WHEN NOT (lease_expires_at IS NULL OR status = 'processing')
            THEN 'it has a lease only while it is processing'
        WHEN NOT (cancel_requested_at IS NULL OR status <> 'queued')
            THEN 'it is not queued once its cancellation was requested'
        WHEN NOT ((completed_at IS NOT NULL) = (status IN ('completed', 'failed')))
            THEN 'it has a completed_at exactly if it is final'
        WHEN NOT (status <> 'failed' OR error_code IS NOT NULL)
            THEN 'it has an error code if it failed'
        WHEN NOT ((object_key IS NULL) = (media_type IS NULL))
            THEN 'its picture has both a key and a media type'
        WHEN NOT (object_key = CASE channel
            WHEN 'b2b' THEN 'stores/' || store_id || '/generated/' || id
            ELSE 'generated/' || user_id || '/' || id END || CASE media_type
            WHEN 'image/jpeg' THEN '.jpg' WHEN 'image/png' THEN '.png'
            WHEN 'image/webp' THEN '.webp' ELSE '' END)
            THEN 'its picture has the key of this session'
        WHEN NOT (object_key IS NULL OR status = 'completed')
            THEN 'it has a picture only if it completed'
        WHEN NOT (NOT refunded OR status = 'failed')
            THEN 'it is refunded only if it failed'
        WHEN NOT (image_deleted_at IS NULL OR status IN ('completed', 'failed'))
            THEN 'its images are deleted only if it is final'
        WHEN NOT (input_tokens >= 0 AND output_tokens >= 0 AND estimated_cost_usd >= 0)
            THEN 'its usage is not negative'
        WHEN NOT (age_verified)
            THEN 'its age is verified or not recorded'
        WHEN NOT (erased_at IS NULL OR status IN ('completed', 'failed'))
            THEN 'it is erased only if it is final'
    END;
BEGIN
    IF broken_rule IS NULL THEN
        RETURN true;
    END IF;
    RAISE EXCEPTION 'session % breaks the rule: %', id, broken_rule USING
        ERRCODE = 'check_violation', TABLE = 'generation_sessions', CONSTRAINT = 'session_is_sound';
END $$;
ALTER TABLE generation_sessions ADD CONSTRAINT session_is_sound CHECK (session_is_sound(
    id, channel, store_id, user_id, age_verified, idempotency_key, status, lease_expires_at,
    cancel_requested_at, provider_job, completed_at, object_key, media_type, provider, input_tokens,
    output_tokens, estimated_cost_usd, error_code, image_deleted_at, erased_at, refunded
)) NOT VALID;

DROP TRIGGER session_stays_what_was_paid ON generation_sessions;
CREATE TRIGGER session_stays_what_was_paid BEFORE UPDATE OF
    id, created_at, request_id, channel, store_id, user_id, shopper_id, client_token_id,
    model_image_url, outfit_image_url, accessories, prompt, age_verified
ON generation_sessions FOR EACH ROW
    WHEN (
        NEW.id IS DISTINCT FROM OLD.id
        OR NEW.created_at IS DISTINCT FROM OLD.created_at
        OR NEW.request_id IS DISTINCT FROM OLD.request_id
        OR NEW.channel IS DISTINCT FROM OLD.channel
        OR NEW.store_id IS DISTINCT FROM OLD.store_id
        OR NEW.user_id IS DISTINCT FROM OLD.user_id
        OR (NEW.shopper_id IS DISTINCT FROM OLD.shopper_id
            AND (NEW.erased_at IS NULL OR NEW.shopper_id IS DISTINCT FROM NULL))
        OR NEW.client_token_id IS DISTINCT FROM OLD.client_token_id
        OR (NEW.model_image_url IS DISTINCT FROM OLD.model_image_url
            AND (NEW.erased_at IS NULL OR NEW.model_image_url IS DISTINCT FROM ''))
        OR (NEW.outfit_image_url IS DISTINCT FROM OLD.outfit_image_url
            AND (NEW.erased_at IS NULL OR NEW.outfit_image_url IS DISTINCT FROM NULL))
        OR (NEW.accessories IS DISTINCT FROM OLD.accessories
            AND (NEW.erased_at IS NULL OR NEW.accessories IS DISTINCT FROM '[]'))
        OR (NEW.prompt IS DISTINCT FROM OLD.prompt
            AND (NEW.erased_at IS NULL OR NEW.prompt IS DISTINCT FROM ''))
        OR NEW.age_verified IS DISTINCT FROM OLD.age_verified)
    EXECUTE FUNCTION refuse('who paid, when and for what cannot be changed');

DROP TRIGGER IF EXISTS session_is_erased_as_a_whole ON generation_sessions;
CREATE TRIGGER session_is_erased_as_a_whole BEFORE UPDATE OF erased_at
ON generation_sessions FOR EACH ROW
    WHEN (NEW.erased_at IS DISTINCT FROM OLD.erased_at AND (
            OLD.erased_at IS NOT NULL OR NOT (OLD.status IN ('completed', 'failed'))
            OR NEW.model_image_url IS DISTINCT FROM ''
            OR NEW.outfit_image_url IS DISTINCT FROM NULL
            OR NEW.accessories IS DISTINCT FROM '[]'
            OR NEW.prompt IS DISTINCT FROM ''
            OR NEW.provider_job IS DISTINCT FROM NULL
            OR NEW.generated_image_url IS DISTINCT FROM NULL))
    EXECUTE FUNCTION refuse('only a final session is erased, as a whole and once');
