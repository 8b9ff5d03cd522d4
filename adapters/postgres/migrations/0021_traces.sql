-- The trace of the request that created a session, if its caller gave one: recovery pushes the task
-- again with it. Without one, the trace follows from the request's id.
ALTER TABLE generation_sessions ADD COLUMN traceparent text;
