"""Pictures are kept for the lifetime in the settings, and no longer."""

from contextlib import closing
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from tests.system.deployment import Deployment, eventually


def test_expired_picture_is_deleted(deployment: Deployment) -> None:
    """Its file and its link are gone and its session says so; its credits do not change. A younger
    picture stays. The leftovers of a failed attempt are deleted as well."""
    worker = deployment.start("worker", WEARON_PICTURE_LIFETIME_SECONDS="604800")
    old, young = [deployment.submit().data["session_id"] for _ in range(2)]
    link, young_link = [
        deployment.wait_for(session_id, "completed")["generated_image_url"]
        for session_id in (old, young)
    ]
    failed = deployment.submit(model_image_url=f"{deployment.url}/samples/none.png")
    failed_id = failed.data["session_id"]
    deployment.wait_for(failed_id, "failed")
    left_behind = file_of(deployment, old).with_stem(failed_id)
    left_behind.write_bytes(b"kept by a worker that died before it could say so")
    assert (status_of(link), status_of(young_link)) == (200, 200)

    backdate(deployment, old, failed_id, days=8)
    session = eventually(lambda: (seen := deployment.session(old))["image_expired"] and seen)
    eventually(lambda: not left_behind.exists())

    assert session["status"] == "completed"
    assert session["generated_image_url"] is None
    assert (status_of(link), status_of(young_link)) == (404, 200)
    assert not file_of(deployment, old).exists()
    assert file_of(deployment, young).exists()
    assert deployment.session(young)["image_expired"] is False
    assert deployment.session(failed_id)["image_expired"] is False
    assert deployment.entries(old) == ["debit"]
    assert deployment.entries(failed_id) == ["debit", "refund"]
    assert worker.poll() is None
    deployment.assert_books_are_right()


def file_of(deployment: Deployment, session_id: str) -> Path:
    (row,) = deployment.sql("SELECT object_key FROM generation_sessions WHERE id = $1", session_id)
    return deployment.folder / "data" / "pictures" / str(row["object_key"])


def backdate(deployment: Deployment, *session_ids: str, days: int) -> None:
    """Move the end of sessions ``days`` back, which a trigger would refuse."""
    deployment.sql("ALTER TABLE generation_sessions DISABLE TRIGGER session_is_guarded")
    deployment.sql(
        "UPDATE generation_sessions"
        " SET status_changed_at = status_changed_at - $2 * interval '1 day'"
        " WHERE id = ANY ($1::uuid[])",
        session_ids,
        days,
    )
    deployment.sql("ALTER TABLE generation_sessions ENABLE TRIGGER session_is_guarded")


def status_of(link: str) -> int:
    try:
        with closing(urlopen(link)) as response:
            return int(response.status)
    except HTTPError as error:
        error.close()
        return error.code
