-- The latest job that was begun for a session at a provider, as its generator names it: whoever
-- works on the session next asks for that one's picture and does not pay for another.

ALTER TABLE generation_sessions ADD COLUMN provider_job text
    CHECK (provider_job IS NULL OR length(provider_job) BETWEEN 1 AND 200);
