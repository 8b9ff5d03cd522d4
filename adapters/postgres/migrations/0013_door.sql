-- Who may call: stores and their origins, client tokens of shoppers, service keys of operators'
-- services. What an account is allowed: its plan, its rates, its suspension. And who changed what.

CREATE TABLE stores (
    id         text        PRIMARY KEY CHECK (id ~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$'),
    name       text        NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    origins    text[]      NOT NULL DEFAULT '{}' CHECK (cardinality(origins) <= 100),
    created_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO stores (id, name)
SELECT owner_id, owner_id FROM credit_accounts WHERE channel = 'b2b'
UNION SELECT owner_id, owner_id FROM api_keys WHERE channel = 'b2b';

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

-- Whether a user's account has no ledger entry, or does not exist. Called only by whoever holds the
-- day, and then nobody else can sign up. VOLATILE, so that it sees what was committed until then.
CREATE FUNCTION is_new_user(owner_id text) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN NOT EXISTS (
        SELECT FROM credit_accounts AS account
        WHERE account.channel = 'b2c' AND account.owner_id = $1
            AND (account.total_granted > 0 OR account.sessions_created > 0));
END $$;

-- A shopper is a person in a store's shop, by the store's own id.
CREATE TABLE shoppers (
    store_id          text        NOT NULL REFERENCES stores,
    shopper_id        text        NOT NULL CHECK (length(shopper_id) BETWEEN 1 AND 128),
    created_at        timestamptz NOT NULL DEFAULT now(),
    refunds_hour      timestamptz,
    refunds_now       bigint      NOT NULL DEFAULT 0,
    refunds_before    bigint      NOT NULL DEFAULT 0,
    PRIMARY KEY (store_id, shopper_id)
);

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
CREATE INDEX sessions_unfinished_of_token ON generation_sessions (client_token_id)
    WHERE client_token_id IS NOT NULL AND status IN ('queued', 'processing');

-- Called only by whoever holds the account, and then nobody else can create a session of its tokens.
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

-- Rendered by adapters/sessions/guards.py.
DROP TRIGGER session_stays_what_was_paid ON generation_sessions;
CREATE TRIGGER session_stays_what_was_paid BEFORE UPDATE OF
    id, created_at, request_id, channel, store_id, user_id, shopper_id, client_token_id,
    model_image_url, outfit_image_url, accessories, prompt
ON generation_sessions FOR EACH ROW
    WHEN (
        NEW.id IS DISTINCT FROM OLD.id
        OR NEW.created_at IS DISTINCT FROM OLD.created_at
        OR NEW.request_id IS DISTINCT FROM OLD.request_id
        OR NEW.channel IS DISTINCT FROM OLD.channel
        OR NEW.store_id IS DISTINCT FROM OLD.store_id
        OR NEW.user_id IS DISTINCT FROM OLD.user_id
        OR NEW.shopper_id IS DISTINCT FROM OLD.shopper_id
        OR NEW.client_token_id IS DISTINCT FROM OLD.client_token_id
        OR NEW.model_image_url IS DISTINCT FROM OLD.model_image_url
        OR NEW.outfit_image_url IS DISTINCT FROM OLD.outfit_image_url
        OR NEW.accessories IS DISTINCT FROM OLD.accessories
        OR NEW.prompt IS DISTINCT FROM OLD.prompt)
    EXECUTE FUNCTION refuse('who paid, when and for what cannot be changed');
