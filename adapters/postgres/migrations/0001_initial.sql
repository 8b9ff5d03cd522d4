-- Accounts, their ledger, sessions and API keys.
-- The constraints repeat the invariants of the domain: the store defends itself, also against
-- consumers of the queue that are not ours and write sessions by SQL.

CREATE TABLE credit_accounts (
    channel        text        NOT NULL CHECK (channel IN ('b2b', 'b2c')),
    owner_id       text        NOT NULL,
    balance        bigint      NOT NULL CHECK (balance >= 0),
    total_granted  bigint      NOT NULL DEFAULT 0,
    total_debited  bigint      NOT NULL DEFAULT 0,
    total_refunded bigint      NOT NULL DEFAULT 0,
    created_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (channel, owner_id),
    CONSTRAINT balance_is_its_totals
        CHECK (balance = total_granted - total_debited + total_refunded)
);

CREATE TABLE credit_ledger (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    channel    text        NOT NULL,
    owner_id   text        NOT NULL,
    kind       text        NOT NULL,
    amount     bigint      NOT NULL,
    session_id uuid,
    note       text,
    created_at timestamptz NOT NULL DEFAULT now(),
    FOREIGN KEY (channel, owner_id) REFERENCES credit_accounts,
    CONSTRAINT amount_matches_kind CHECK (
        (kind = 'grant' AND amount > 0) OR (kind = 'debit' AND amount < 0)
        OR (kind = 'refund' AND amount > 0)
    ),
    CONSTRAINT session_matches_kind CHECK ((kind = 'grant') = (session_id IS NULL))
);
-- One debit and at most one refund per session. The ledger outlives sessions, so there is no
-- foreign key to them.
CREATE UNIQUE INDEX one_debit_per_session ON credit_ledger (session_id) WHERE kind = 'debit';
CREATE UNIQUE INDEX one_refund_per_session ON credit_ledger (session_id) WHERE kind = 'refund';
CREATE INDEX ledger_of_owner ON credit_ledger (channel, owner_id, id DESC);

CREATE FUNCTION refuse_ledger_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the ledger is append-only: entry % cannot be changed', OLD.id
        USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER ledger_is_append_only BEFORE UPDATE OR DELETE ON credit_ledger
    FOR EACH ROW EXECUTE FUNCTION refuse_ledger_change();

CREATE TABLE generation_sessions (
    id                  uuid        PRIMARY KEY,
    channel             text        NOT NULL,
    store_id            text,
    user_id             text,
    owner_id            text        NOT NULL GENERATED ALWAYS AS (coalesce(store_id, user_id)) STORED,
    status              text        NOT NULL DEFAULT 'queued'
                                    CHECK (status IN ('queued', 'processing', 'completed', 'failed')),
    request_id          text        NOT NULL,
    prompt              text        NOT NULL,
    model_image_url     text        NOT NULL,
    outfit_image_url    text,
    accessories         jsonb       NOT NULL DEFAULT '[]',
    -- The result: ours is kept under object_key; another consumer writes generated_image_url.
    object_key          text,
    media_type          text,
    generated_image_url text,
    error_code          text,
    error_message       text,
    -- The work: confirmed and push_again_at are recovery's, attempt and lease fence the workers.
    confirmed           boolean     NOT NULL DEFAULT false,
    attempt             integer     NOT NULL DEFAULT 0,
    lease_expires_at    timestamptz,
    push_again_at       timestamptz,
    refunded            boolean     NOT NULL DEFAULT false,
    -- clock_timestamp(), not now(): on a busy account a transaction may wait for its turn, and
    -- recovery compares this time with the order of the tasks in the queue.
    created_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    status_changed_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at          timestamptz,
    completed_at        timestamptz,
    processing_time_ms  bigint,
    FOREIGN KEY (channel, owner_id) REFERENCES credit_accounts,
    CONSTRAINT owner_matches_channel CHECK (
        (channel = 'b2b' AND store_id IS NOT NULL AND user_id IS NULL)
        OR (channel = 'b2c' AND user_id IS NOT NULL AND store_id IS NULL)
    ),
    CONSTRAINT lease_only_while_processing
        CHECK (lease_expires_at IS NULL OR status = 'processing'),
    CONSTRAINT final_has_its_time
        CHECK ((completed_at IS NOT NULL) = (status IN ('completed', 'failed'))),
    CONSTRAINT failure_has_its_code CHECK (status <> 'failed' OR error_code IS NOT NULL),
    CONSTRAINT refund_only_when_failed CHECK (NOT refunded OR status = 'failed')
);
CREATE INDEX sessions_of_owner ON generation_sessions (channel, owner_id, created_at DESC, id DESC);
CREATE INDEX sessions_queued ON generation_sessions (created_at, id) WHERE status = 'queued';
CREATE INDEX sessions_processing ON generation_sessions (lease_expires_at)
    WHERE status = 'processing';
CREATE INDEX sessions_without_refund ON generation_sessions (completed_at)
    WHERE status = 'failed' AND NOT refunded;

-- What every writer gets, whatever it knows of: a final status stays, who paid stays, a final row
-- has its time, a failed one its code, and a writer that took no lease has none.
CREATE FUNCTION guard_session() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.id, NEW.channel, NEW.store_id, NEW.user_id, NEW.created_at)
        IS DISTINCT FROM (OLD.id, OLD.channel, OLD.store_id, OLD.user_id, OLD.created_at) THEN
        RAISE EXCEPTION 'session %: who paid and when cannot be changed', OLD.id
            USING ERRCODE = 'restrict_violation';
    END IF;
    IF NEW.status = OLD.status THEN
        RETURN NEW;
    END IF;
    IF OLD.status IN ('completed', 'failed') THEN
        RAISE EXCEPTION 'session % is %: a final status cannot be changed', OLD.id, OLD.status
            USING ERRCODE = 'restrict_violation';
    END IF;
    NEW.status_changed_at := clock_timestamp();
    IF NEW.status <> 'processing' OR NEW.attempt = OLD.attempt THEN
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
CREATE TRIGGER session_is_guarded BEFORE UPDATE ON generation_sessions
    FOR EACH ROW EXECUTE FUNCTION guard_session();

CREATE TABLE api_keys (
    id         uuid        PRIMARY KEY,
    channel    text        NOT NULL CHECK (channel IN ('b2b', 'b2c')),
    owner_id   text        NOT NULL,
    key_sha256 text        NOT NULL UNIQUE CHECK (key_sha256 ~ '^[0-9a-f]{64}$'),
    label      text        NOT NULL,
    created_at timestamptz NOT NULL,
    revoked_at timestamptz
);
CREATE INDEX api_keys_of_owner ON api_keys (channel, owner_id);
