-- Webhooks: owners' endpoints, the deliveries to them (an outbox), and the attempts of these.

-- A secret is kept as it is, because messages are signed with it: who reads this table can sign.
-- The second half is the state of sending: the endpoint's turns (see OutboxPort), its window of
-- deliveries in flight, and its circuit, which is open until "paused_until".
CREATE TABLE webhook_endpoints (
    id                    uuid        PRIMARY KEY,
    channel               text        NOT NULL CHECK (channel IN ('b2b', 'b2c')),
    owner_id              text        NOT NULL,
    url                   text        NOT NULL CHECK (length(url) BETWEEN 1 AND 2048),
    events                text[]      NOT NULL CHECK (cardinality(events) > 0
        AND events <@ ARRAY['generation.completed', 'generation.failed', 'credits.low']),
    description           text        NOT NULL CHECK (length(description) <= 200),
    secret                text        NOT NULL CHECK (secret ~ '^whsec_[A-Za-z0-9+/]{32,88}={0,2}$'),
    previous_secret       text,
    previous_secret_until timestamptz,
    created_at            timestamptz NOT NULL DEFAULT now(),
    disabled_at           timestamptz,
    disabled_reason       text        CHECK (disabled_reason IN ('owner', 'gone', 'failing')),
    failures              integer     NOT NULL DEFAULT 0 CHECK (failures >= 0),
    failing_since         timestamptz,
    paused_until          timestamptz,
    window_size           smallint    NOT NULL DEFAULT 1 CHECK (window_size BETWEEN 1 AND 8),
    turn                  bigint      NOT NULL DEFAULT 0,
    leased_until          timestamptz,
    CHECK ((disabled_at IS NULL) = (disabled_reason IS NULL)),
    CHECK ((previous_secret IS NULL) = (previous_secret_until IS NULL))
) WITH (fillfactor = 50); -- Each turn writes its endpoint twice.
CREATE INDEX webhook_endpoints_of_owner
    ON webhook_endpoints (channel, owner_id, created_at DESC, id DESC);

-- Ids only: the payload is built when it is sent. No foreign key, so that the end of a session never
-- waits for a change of an endpoint; recovery deletes what a deleted endpoint leaves.
-- "status_changed_at" is when a pending delivery was created or retried, and when any other ended.
CREATE TABLE webhook_deliveries (
    id                uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    endpoint_id       uuid        NOT NULL,
    event             text        NOT NULL CHECK (event IN ('generation.completed',
        'generation.failed', 'credits.low', 'webhook.test')),
    session_id        uuid,
    status            text        NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'delivered', 'failed', 'expired')),
    created_at        timestamptz NOT NULL DEFAULT now(),
    status_changed_at timestamptz NOT NULL DEFAULT now(),
    next_attempt_at   timestamptz DEFAULT now(),
    attempts          integer     NOT NULL DEFAULT 0,
    failed_attempts   integer     NOT NULL DEFAULT 0,
    CHECK ((status = 'pending') = (next_attempt_at IS NOT NULL)),
    CHECK (event NOT LIKE 'generation.%' OR session_id IS NOT NULL)
);
-- A pending delivery is due at some time, and no other one is. Their indexes have conditions that do
-- not follow from each other, so that no statement can use the wrong one, even on an empty table.
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (endpoint_id, next_attempt_at)
    WHERE next_attempt_at IS NOT NULL;
CREATE INDEX webhook_deliveries_of_endpoint
    ON webhook_deliveries (endpoint_id, created_at DESC, id DESC);
CREATE INDEX webhook_deliveries_failed
    ON webhook_deliveries (endpoint_id, created_at DESC, id DESC)
    WHERE status IN ('failed', 'expired');
CREATE INDEX webhook_deliveries_pending ON webhook_deliveries (status_changed_at)
    WHERE status = 'pending';
CREATE INDEX webhook_deliveries_ended ON webhook_deliveries (status_changed_at)
    WHERE next_attempt_at IS NULL;

CREATE TABLE webhook_attempts (
    delivery_id uuid        NOT NULL,
    number      integer     NOT NULL,
    at          timestamptz NOT NULL,
    http_status smallint,
    error       text        CHECK (length(error) <= 200),
    duration_ms integer     NOT NULL CHECK (duration_ms >= 0),
    response    text        NOT NULL CHECK (length(response) <= 1024),
    PRIMARY KEY (delivery_id, number),
    CHECK ((http_status IS NULL) <> (error IS NULL))
);

-- The balance below which the owner is told; NULL is off.
ALTER TABLE credit_accounts ADD COLUMN low_credits bigint;

-- Whether the end of a session must be told. A look-up of the owner's endpoints at each end would
-- cost the owners without any; so the account says that the owner has, or had, an endpoint, and a
-- session takes that over when it is created. The first endpoint marks the unfinished sessions
-- before it exists.
ALTER TABLE credit_accounts ADD COLUMN has_webhooks boolean NOT NULL DEFAULT false;
ALTER TABLE generation_sessions ADD COLUMN has_webhooks boolean NOT NULL DEFAULT false;

-- The database writes what is to be delivered, so an external consumer's write is told like ours:
-- it needs no privilege on these tables. An undone submission is not told, because its caller was
-- told that there is no session. Recovery, which sets push_again_at, may find one that was accepted.
--
-- The triggers' WHEN are short, because PostgreSQL reads and compiles their text in each statement:
-- with all of the condition there, to claim and to complete a session cost 6 % more.
CREATE FUNCTION tell_of_session() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF NEW.status NOT IN ('completed', 'failed') OR OLD.status IN ('completed', 'failed') THEN
        RETURN NULL;
    END IF;
    IF NEW.error_code = 'QUEUE_UNAVAILABLE' AND NOT NEW.confirmed AND NEW.push_again_at IS NULL THEN
        RETURN NULL;
    END IF;
    INSERT INTO webhook_deliveries (endpoint_id, event, session_id)
    SELECT endpoint.id, 'generation.' || NEW.status, NEW.id FROM webhook_endpoints AS endpoint
    WHERE endpoint.channel = NEW.channel AND endpoint.owner_id = NEW.owner_id
        AND 'generation.' || NEW.status = ANY (endpoint.events);
    RETURN NULL;
END $$;
CREATE TRIGGER end_of_session_is_told AFTER UPDATE OF status ON generation_sessions FOR EACH ROW
    WHEN (NEW.has_webhooks) EXECUTE FUNCTION tell_of_session();

CREATE FUNCTION tell_of_low_credits() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF OLD.balance < NEW.low_credits OR NEW.balance >= NEW.low_credits THEN
        RETURN NULL;
    END IF;
    INSERT INTO webhook_deliveries (endpoint_id, event)
    SELECT endpoint.id, 'credits.low' FROM webhook_endpoints AS endpoint
    WHERE endpoint.channel = NEW.channel AND endpoint.owner_id = NEW.owner_id
        AND 'credits.low' = ANY (endpoint.events);
    RETURN NULL;
END $$;
CREATE TRIGGER low_credits_are_told AFTER UPDATE OF balance ON credit_accounts FOR EACH ROW
    WHEN (NEW.low_credits IS NOT NULL) EXECUTE FUNCTION tell_of_low_credits();

DO $$ BEGIN
    EXECUTE format('ALTER FUNCTION %1$I.tell_of_session()'
        ' SET search_path = pg_catalog, %1$I, pg_temp', current_schema());
    EXECUTE format('ALTER FUNCTION %1$I.tell_of_low_credits()'
        ' SET search_path = pg_catalog, %1$I, pg_temp', current_schema());
END $$;
