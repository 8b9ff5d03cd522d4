-- Who may call: stores and their origins, client tokens of shoppers, service keys of operators'
-- services. What an account is allowed: its plan, its rates, its suspension. And who changed what.

CREATE TABLE stores (
    id         text        PRIMARY KEY CHECK (id ~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$'),
    name       text        NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    origins    text[]      NOT NULL DEFAULT '{}' CHECK (cardinality(origins) <= 100),
    created_at timestamptz NOT NULL DEFAULT now()
);
-- Every store has an account.
INSERT INTO credit_accounts (channel, owner_id, balance)
SELECT DISTINCT 'b2b', owner_id, 0 FROM api_keys WHERE channel = 'b2b'
ON CONFLICT DO NOTHING;
INSERT INTO stores (id, name)
SELECT owner_id, owner_id FROM credit_accounts WHERE channel = 'b2b';

-- A rate is kept as the time at which it would be unused again (GCRA). The debit writes the account
-- anyway, so the rate costs no statement of its own. NULL means that it is unused.
-- Refunds that count against an account: those of the hour that began at refunds_hour, and those of
-- the hour before it.
ALTER TABLE credit_accounts
    ADD COLUMN total_adjusted bigint NOT NULL DEFAULT 0,
    ADD COLUMN plan text NOT NULL DEFAULT 'default'
        CHECK (plan IN ('default', 'starter', 'growth', 'scale', 'enterprise')),
    ADD COLUMN suspended_at timestamptz,
    ADD COLUMN minute_unused_at timestamptz,
    ADD COLUMN hour_unused_at timestamptz,
    ADD COLUMN refunds_hour timestamptz,
    ADD COLUMN refunds_now bigint NOT NULL DEFAULT 0,
    ADD COLUMN refunds_before bigint NOT NULL DEFAULT 0,
    DROP CONSTRAINT balance_is_its_totals,
    ADD CONSTRAINT balance_is_its_totals
        CHECK (balance = total_granted - total_debited + total_refunded + total_adjusted) NOT VALID;

-- An adjustment takes a mistaken grant back. The reference of a grant or an adjustment is the
-- caller's own, and is used once.
ALTER TABLE credit_ledger
    ADD COLUMN reference text CHECK (length(reference) BETWEEN 1 AND 255),
    DROP CONSTRAINT amount_matches_kind,
    ADD CONSTRAINT amount_matches_kind CHECK (
        (kind = 'grant' AND amount > 0) OR (kind = 'debit' AND amount < 0)
        OR (kind = 'refund' AND amount > 0) OR (kind = 'adjustment' AND amount < 0)
    ) NOT VALID,
    DROP CONSTRAINT session_matches_kind,
    ADD CONSTRAINT session_matches_kind
        CHECK ((kind IN ('grant', 'adjustment')) = (session_id IS NULL)) NOT VALID;
CREATE UNIQUE INDEX one_entry_per_reference ON credit_ledger (reference)
    WHERE reference IS NOT NULL;

-- Sign-up grants of each day (UTC), which are capped.
CREATE TABLE signup_days (
    day    date   PRIMARY KEY,
    grants bigint NOT NULL CHECK (grants >= 0)
);

-- Whether a user's account has no ledger entry, or does not exist. Called only while the
-- day is locked, so no other user can sign up meanwhile. VOLATILE, so that it sees what was committed until then.
CREATE FUNCTION is_new_user(owner_id text) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN NOT EXISTS (
        SELECT FROM credit_accounts AS account
        WHERE account.channel = 'b2c' AND account.owner_id = $1
            AND (account.total_granted > 0 OR account.sessions_created > 0));
END $$;

-- A shopper is a person in a store's shop, by the store's own id. "seen_at" is when it last got a
-- client token.
CREATE TABLE shoppers (
    store_id          text        NOT NULL REFERENCES stores,
    shopper_id        text        NOT NULL CHECK (length(shopper_id) BETWEEN 1 AND 128),
    seen_at           timestamptz NOT NULL DEFAULT now(),
    refunds_hour      timestamptz,
    refunds_now       bigint      NOT NULL DEFAULT 0,
    refunds_before    bigint      NOT NULL DEFAULT 0,
    PRIMARY KEY (store_id, shopper_id)
);
CREATE INDEX shoppers_by_age ON shoppers (seen_at);

-- "used" counts the pictures of a token: a debit takes one, a refund gives it back. "submissions"
-- only grows, so that refunds cannot be looped.
CREATE TABLE client_tokens (
    id           uuid        PRIMARY KEY,
    store_id     text        NOT NULL,
    shopper_id   text        NOT NULL,
    token_sha256 text        NOT NULL UNIQUE CHECK (token_sha256 ~ '^[0-9a-f]{64}$'),
    origin       text        NOT NULL,
    pictures     integer     NOT NULL CHECK (pictures BETWEEN 1 AND 1000),
    used         integer     NOT NULL DEFAULT 0 CHECK (used BETWEEN 0 AND pictures),
    submissions  integer     NOT NULL DEFAULT 0 CHECK (submissions BETWEEN used AND 3 * pictures),
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz NOT NULL CHECK (expires_at <= created_at + interval '1 hour 1 minute'),
    revoked_at   timestamptz,
    FOREIGN KEY (store_id, shopper_id) REFERENCES shoppers
);
CREATE INDEX client_tokens_of_shopper ON client_tokens (store_id, shopper_id, created_at DESC);
CREATE INDEX client_tokens_by_expiry ON client_tokens (expires_at);

ALTER TABLE generation_sessions
    ADD COLUMN shopper_id text,
    ADD COLUMN client_token_id uuid,
    ADD COLUMN age_verified boolean,
    ADD COLUMN erased_at timestamptz;
CREATE INDEX sessions_of_shopper
    ON generation_sessions (channel, owner_id, shopper_id, created_at DESC, id DESC)
    WHERE shopper_id IS NOT NULL;
-- The sessions that may still be refunded to their token.
CREATE INDEX sessions_unfinished_of_token ON generation_sessions (client_token_id)
    WHERE client_token_id IS NOT NULL
        AND (status IN ('queued', 'processing') OR (status = 'failed' AND NOT refunded));

-- Called only while the account is locked, so no other session of its tokens can be created.
-- VOLATILE, so that it sees what was committed until then.
CREATE FUNCTION count_unfinished_of_token(client_token_id uuid, up_to bigint) RETURNS bigint
    LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN (
        SELECT count(*) FROM (
            SELECT FROM generation_sessions AS s
            WHERE s.client_token_id = $1 AND s.status IN ('queued', 'processing')
            LIMIT $2) AS unfinished);
END $$;

DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION is_new_user SET search_path = pg_catalog, %I, pg_temp',
        current_schema);
    EXECUTE format('ALTER FUNCTION count_unfinished_of_token SET search_path = pg_catalog, %I,'
        ' pg_temp', current_schema);
END $$;

CREATE TABLE service_keys (
    id         uuid        PRIMARY KEY,
    key_sha256 text        NOT NULL UNIQUE CHECK (key_sha256 ~ '^[0-9a-f]{64}$'),
    label      text        NOT NULL,
    scopes     text[]      NOT NULL
        CHECK (scopes <@ ARRAY['grants', 'stores', 'keys', 'read'] AND cardinality(scopes) > 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz
);
ALTER TABLE api_keys ADD COLUMN prefix text, ADD COLUMN idempotency_key text UNIQUE;
ALTER TABLE service_keys ADD COLUMN prefix text;

-- What operators and their services changed: append-only.
CREATE TABLE operator_actions (
    id       bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at       timestamptz NOT NULL DEFAULT now(),
    actor    text        NOT NULL CHECK (length(actor) BETWEEN 1 AND 200),
    action   text        NOT NULL,
    subject  text        NOT NULL,
    reason   text,
    details  jsonb       NOT NULL DEFAULT '{}'
);
CREATE INDEX operator_actions_of_subject ON operator_actions (subject, id DESC);
CREATE TRIGGER operator_actions_are_append_only BEFORE UPDATE OR DELETE ON operator_actions
    FOR EACH ROW EXECUTE FUNCTION refuse('the audit log is append-only');

-- Erasure. A final session may lose its personal data: links, prompt, shopper. Payer, amounts, times
-- and status stay, so the books stay right. Erased data cannot be restored.
--
-- This function is as before, except that an erased session loses its link and gets no other one.
CREATE OR REPLACE FUNCTION guard_session() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    taken boolean := OLD.status = 'queued' AND NEW.status = 'processing';
BEGIN
    NEW.generated_image_url := nullif(NEW.generated_image_url, '');
    IF NEW.generated_image_url IS DISTINCT FROM OLD.generated_image_url
        AND NEW.generated_image_url !~* '^https?://[^[:space:]]+$' THEN
        RAISE EXCEPTION 'session %: its link is not http(s)', OLD.id
            USING ERRCODE = 'restrict_violation';
    END IF;
    IF taken THEN
        NEW.started_at := now();
    END IF;
    IF taken AND NEW.attempt = OLD.attempt THEN
        NEW.attempt := OLD.attempt + 1;
        NEW.lease_expires_at := NULL;
        NEW.confirmed := true;
    END IF;
    IF NEW.attempt <> OLD.attempt + taken::int
        OR NEW.lease_expires_at > now() + interval '24 hours' THEN
        RAISE EXCEPTION 'session %: attempt % or lease % is not a worker''s', OLD.id,
            NEW.attempt, NEW.lease_expires_at USING ERRCODE = 'restrict_violation';
    END IF;
    IF NEW.delete_again_at > now() + interval '24 hours' THEN
        RAISE EXCEPTION 'session %: its pictures may not be kept until %', OLD.id,
            NEW.delete_again_at USING ERRCODE = 'restrict_violation';
    END IF;
    IF NEW.status = OLD.status THEN
        NEW.status_changed_at := OLD.status_changed_at;
        IF OLD.status IN ('completed', 'failed') AND (
            NEW.object_key IS DISTINCT FROM OLD.object_key
            OR (NEW.generated_image_url IS DISTINCT FROM nullif(OLD.generated_image_url, '')
                AND (OLD.generated_image_url <> '' OR OLD.image_deleted_at IS NOT NULL
                    OR OLD.erased_at IS NOT NULL)
                AND (NEW.erased_at IS NULL OR NEW.generated_image_url IS NOT NULL)))
        THEN
            RAISE EXCEPTION 'session % is %: its picture cannot be changed', OLD.id, OLD.status
                USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN NEW;
    END IF;
    IF OLD.status IN ('completed', 'failed') THEN
        RAISE EXCEPTION 'session % is %: a final status cannot be changed', OLD.id, OLD.status
            USING ERRCODE = 'restrict_violation';
    END IF;
    NEW.status_changed_at := clock_timestamp();
    IF NOT taken THEN
        NEW.lease_expires_at := NULL;
    END IF;
    IF NEW.status IN ('completed', 'failed') THEN
        NEW.completed_at := coalesce(NEW.completed_at, now());
    ELSE
        NEW.completed_at := NULL;
    END IF;
    IF NEW.status = 'failed' THEN
        NEW.error_code := coalesce(NEW.error_code, 'GENERATION_FAILED');
    END IF;
    RETURN NEW;
END $$;
DO $$ BEGIN
    EXECUTE format('ALTER FUNCTION %1$I.guard_session() SET search_path = pg_catalog, %1$I, pg_temp',
        current_schema());
END $$;

-- The guards that depend on the columns, rendered by adapters/sessions/guards.py.
ALTER TABLE generation_sessions DROP CONSTRAINT session_is_sound;
DROP FUNCTION session_is_sound;
CREATE FUNCTION session_is_sound(
    id uuid, channel text, store_id text, user_id text, age_verified boolean, idempotency_key text,
    status text, lease_expires_at timestamptz, provider_job text, completed_at timestamptz,
    object_key text, media_type text, input_tokens integer, output_tokens integer,
    estimated_cost_usd numeric, error_code text, image_deleted_at timestamptz, erased_at
    timestamptz, refunded boolean
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
        WHEN NOT (lease_expires_at IS NULL OR status = 'processing')
            THEN 'it has a lease only while it is processing'
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
    provider_job, completed_at, object_key, media_type, input_tokens, output_tokens,
    estimated_cost_usd, error_code, image_deleted_at, erased_at, refunded
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
