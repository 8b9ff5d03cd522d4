-- Direct access by other roles. Which role may do what is the table in adapters/postgres/roles.py:
-- `wearon migrate` compares the database with it after every migration, and closes what is open.

-- These guards read other tables. A writer that may not read them, or whose rows a policy hides,
-- would be refused without reason or, worse, would find no debit that needs a refund. The functions
-- pin their search_path, and only the triggers may call them.
ALTER FUNCTION require_failure() SECURITY DEFINER;
ALTER FUNCTION require_refund() SECURITY DEFINER;

-- A store's sessions under the name that the original's worker uses. The caller needs its privileges
-- and its policies on the table as well.
CREATE VIEW store_generation_sessions WITH (security_invoker = true) AS
SELECT id, store_id, shopper_id, status, attempt, request_id, prompt, model_image_url,
    outfit_image_url, accessories, generated_image_url, error_code, error_message,
    processing_time_ms, created_at, started_at, completed_at
FROM generation_sessions WHERE channel = 'b2b'
WITH CASCADED CHECK OPTION;
