-- Pictures are deleted some time after their sessions ended. image_deleted_at says when all that the
-- image storage may have held of a session was gone; delete_again_at is recovery's, for trying.

ALTER TABLE generation_sessions
    ADD COLUMN image_deleted_at timestamptz,
    ADD COLUMN delete_again_at timestamptz,
    ADD CONSTRAINT image_deleted_only_when_final
        CHECK (image_deleted_at IS NULL OR status IN ('completed', 'failed'));

-- What may have something in the image storage: a picture of ours, or what an attempt at one left
-- behind. It holds nothing that was deleted, so finding what is due costs the same for ever.
CREATE INDEX sessions_with_image ON generation_sessions (status_changed_at)
    WHERE image_deleted_at IS NULL AND ((status = 'completed' AND object_key IS NOT NULL)
        OR (status = 'failed' AND attempt > 0));

CREATE TRIGGER image_stays_deleted BEFORE UPDATE OF image_deleted_at ON generation_sessions
    FOR EACH ROW
    WHEN (OLD.image_deleted_at IS NOT NULL
        AND NEW.image_deleted_at IS DISTINCT FROM OLD.image_deleted_at)
    EXECUTE FUNCTION refuse('a picture that was deleted does not come back');
