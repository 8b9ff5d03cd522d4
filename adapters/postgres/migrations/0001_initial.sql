-- Accounts, their ledger, sessions and API keys.
-- The constraints repeat the invariants of the domain: the store defends itself, also against
-- consumers of the queue that are not ours and write sessions by SQL. TRUNCATE is not guarded: it is
-- a privilege that no consumer needs, and whoever owns the tables could drop the guard as well.

-- The guards below name their rule; which rows break it stands in WHEN, which costs no call.
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% (%)', TG_ARGV[0], coalesce(OLD.id, NEW.id)
        USING ERRCODE = 'restrict_violation';
END $$;

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

CREATE TRIGGER ledger_is_append_only BEFORE UPDATE OR DELETE ON credit_ledger
    FOR EACH ROW EXECUTE FUNCTION refuse('the ledger is append-only');

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
    CONSTRAINT artefact_is_whole CHECK ((object_key IS NULL) = (media_type IS NULL)),
    CONSTRAINT refund_only_when_failed CHECK (NOT refunded OR status = 'failed')
);
CREATE INDEX sessions_of_owner ON generation_sessions (channel, owner_id, created_at DESC, id DESC);
CREATE INDEX sessions_queued ON generation_sessions (created_at, id) WHERE status = 'queued';
CREATE INDEX sessions_processing ON generation_sessions (lease_expires_at)
    WHERE status = 'processing';
CREATE INDEX sessions_without_refund ON generation_sessions (completed_at)
    WHERE status = 'failed' AND NOT refunded;

CREATE TRIGGER session_begins_queued BEFORE INSERT ON generation_sessions
    FOR EACH ROW
    WHEN (NEW.status <> 'queued' OR NEW.attempt <> 0 OR NEW.confirmed OR NEW.refunded)
    EXECUTE FUNCTION refuse('a session begins queued and untouched');

CREATE TRIGGER session_is_kept_to_its_end BEFORE DELETE ON generation_sessions
    FOR EACH ROW
    WHEN (OLD.status IN ('queued', 'processing') OR (OLD.status = 'failed' AND NOT OLD.refunded))
    EXECUTE FUNCTION refuse('a session that is owed its picture or its refund is kept');

CREATE TRIGGER session_stays_what_was_paid BEFORE UPDATE OF
    id, channel, store_id, user_id, created_at, request_id, prompt, model_image_url,
    outfit_image_url, accessories ON generation_sessions
    FOR EACH ROW
    WHEN ((OLD.id, OLD.channel, OLD.store_id, OLD.user_id, OLD.created_at, OLD.request_id,
            OLD.prompt, OLD.model_image_url, OLD.outfit_image_url, OLD.accessories)
        IS DISTINCT FROM (NEW.id, NEW.channel, NEW.store_id, NEW.user_id, NEW.created_at,
            NEW.request_id, NEW.prompt, NEW.model_image_url, NEW.outfit_image_url,
            NEW.accessories))
    EXECUTE FUNCTION refuse('who paid, when and for what cannot be changed');

-- What every writer gets, whatever it knows of: a final status stays and has its time, a failure
-- has its code, and whoever takes a session without a claim spends an attempt, so that the worker
-- of the one before can write no more. No lease is for ever.
CREATE FUNCTION guard_session() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    taken boolean := OLD.status = 'queued' AND NEW.status = 'processing';
BEGIN
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
    IF NEW.status = OLD.status THEN
        NEW.status_changed_at := OLD.status_changed_at;
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
CREATE TRIGGER session_is_guarded BEFORE UPDATE ON generation_sessions
    FOR EACH ROW EXECUTE FUNCTION guard_session();

-- A refund and its session vouch for each other, at the end of the statement that writes both.
CREATE FUNCTION require_failure() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM generation_sessions AS session
            JOIN credit_ledger AS debit ON debit.session_id = session.id AND debit.kind = 'debit'
        WHERE session.id = NEW.session_id AND session.status = 'failed'
            AND (debit.channel, debit.owner_id, debit.amount)
                = (NEW.channel, NEW.owner_id, -NEW.amount)
    ) THEN
        RAISE EXCEPTION 'session %: only what a failed one was charged is refunded, to who paid',
            NEW.session_id USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER refund_has_its_failure AFTER INSERT ON credit_ledger
    FOR EACH ROW WHEN (NEW.kind = 'refund') EXECUTE FUNCTION require_failure();

CREATE FUNCTION require_refund() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM credit_ledger WHERE session_id = NEW.id AND kind = 'debit')
        AND NOT EXISTS (SELECT FROM credit_ledger WHERE session_id = NEW.id AND kind = 'refund')
    THEN
        RAISE EXCEPTION 'session % has no refund', NEW.id USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER refunded_has_its_refund AFTER UPDATE OF refunded ON generation_sessions
    FOR EACH ROW WHEN (NEW.refunded AND NOT OLD.refunded) EXECUTE FUNCTION require_refund();

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
