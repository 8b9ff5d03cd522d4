-- People who may use the console, and actions that must not be done twice.

CREATE TABLE operators (
    name            text        PRIMARY KEY CHECK (name ~ '^[a-z0-9][a-z0-9._@-]{0,63}$'),
    role            text        NOT NULL CHECK (role IN ('viewer', 'operator', 'admin')),
    -- Increases with each change that has to end the sign-ins of before.
    epoch           integer     NOT NULL DEFAULT 1,
    -- A slow hash with its salt and costs; NULL until the link was used.
    password_hash   text        CHECK (length(password_hash) BETWEEN 1 AND 500),
    -- Of the one-time link through which the password is set.
    link_sha256     text        CHECK (length(link_sha256) = 64),
    link_expires_at timestamptz,
    made_at         timestamptz NOT NULL DEFAULT now(),
    revoked_at      timestamptz,
    CONSTRAINT link_expires CHECK ((link_sha256 IS NULL) = (link_expires_at IS NULL)),
    CONSTRAINT revoked_has_no_secret
        CHECK (revoked_at IS NULL OR (password_hash IS NULL AND link_sha256 IS NULL))
);
CREATE UNIQUE INDEX operator_of_link ON operators (link_sha256) WHERE link_sha256 IS NOT NULL;

-- An action that a page asks for has an id, so that a form which is sent twice acts once.
ALTER TABLE operator_actions ADD COLUMN action_id uuid;
CREATE UNIQUE INDEX operator_actions_of_id ON operator_actions (action_id)
    WHERE action_id IS NOT NULL;
CREATE INDEX operator_actions_of_actor ON operator_actions (actor, id DESC);
