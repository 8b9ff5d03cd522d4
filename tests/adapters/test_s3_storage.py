"""Picture storage in S3: what no other storage can get wrong."""

import asyncio
import dataclasses
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from adapters.storage.s3 import S3Bucket, S3PictureStorage, cors_rule, s3_store
from domain.errors import Refused, StorageUnavailable
from domain.picture_ports import Picture
from domain.sessions import StoredPicture
from tests.support.servers import bucket_at, new_bucket

pytestmark = pytest.mark.anyio

KEY = "stores/store:1/generated/1"
JPEG = Picture(data=b"a jpeg", media_type="image/jpeg")
LIFETIME = timedelta(hours=6)
FOUND = {"Last-Modified": "Wed, 21 Oct 2026 07:28:00 GMT", "ETag": "e"}
LAST_MODIFIED = "Tue, 24 Nov 2026 12:00:00 GMT"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def find(storage: S3PictureStorage) -> object:
    return await storage.find(KEY)


async def save(storage: S3PictureStorage) -> object:
    return await storage.save(KEY, JPEG)


async def delete(storage: S3PictureStorage) -> object:
    await storage.delete(KEY)
    return None


async def read_upload(storage: S3PictureStorage) -> object:
    return await storage.read_upload(KEY + ".jpg", max_bytes=1_000)


async def count_uploads(storage: S3PictureStorage) -> object:
    return await storage.count_uploads("uploads/2026-11-24/b2b/s", limit=10)


async def delete_uploads(storage: S3PictureStorage) -> object:
    return await storage.delete_uploads_before(datetime(2026, 11, 24, tzinfo=UTC), limit=10)


CALLS = [find, save, delete, read_upload, count_uploads, delete_uploads]


def storage_in(bucket: S3Bucket, *, conditional_put: bool = True) -> S3PictureStorage:
    return S3PictureStorage(
        s3_store(bucket), url_lifetime=LIFETIME, conditional_put=conditional_put
    )


class LookedTooEarly(S3PictureStorage):
    """Finds nothing, because another worker saves its picture just after this one has looked."""

    async def find(self, _: str) -> StoredPicture | None:
        return None


class Service:
    """An S3 service with scripted answers, which records the requests."""

    def __init__(self, answer: Handler) -> None:
        self.requests: list[web.Request] = []
        self._answer = answer
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._record)
        self.server = TestServer(app, host="127.0.0.1")

    async def _record(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        return await self._answer(request)

    def storage(self, **options: bool) -> S3PictureStorage:
        return storage_in(bucket_at(str(self.server.make_url("")), timeout_seconds=0.3), **options)


NewService = Callable[[Handler], Awaitable[Service]]


@pytest.fixture
async def new_service() -> AsyncIterator[NewService]:
    made: list[Service] = []

    async def start(answer: Handler) -> Service:
        made.append(Service(answer))
        await made[-1].server.start_server()
        return made[-1]

    yield start
    for service in made:
        await service.server.close()


async def test_first_picture_stays(s3_url: str) -> None:
    """Even if it was saved between another worker's look and its PUT: the service rejects that PUT,
    and the worker gets the key of the first picture, which is the same."""
    bucket = new_bucket(s3_url)
    first = await storage_in(bucket).save(KEY, JPEG)
    late = LookedTooEarly(s3_store(bucket), url_lifetime=LIFETIME)

    again = await late.save(KEY, Picture(data=b"late", media_type="image/jpeg"))

    assert again == first
    found = await s3_store(bucket).get_async(first.object_key)
    assert bytes(await found.bytes_async()) == JPEG.data
    assert found.attributes["Content-Type"] == "image/jpeg"


async def test_service_without_conditional_puts(new_service: NewService) -> None:
    """``conditional_put=False`` omits the header to which such services answer 501."""

    async def knows_no_conditions(request: web.Request) -> web.Response:
        if request.method == "HEAD":
            return web.Response(status=404)
        return web.Response(
            status=501 if "If-None-Match" in request.headers else 200, headers={"ETag": "e"}
        )

    service = await new_service(knows_no_conditions)

    with pytest.raises(StorageUnavailable):
        await service.storage().save(KEY, JPEG)
    saved = await service.storage(conditional_put=False).save(KEY, JPEG)

    assert saved.object_key == KEY + ".jpg"


async def test_url_is_signed_without_the_service() -> None:
    """It has the key, the expiry and the access key ID, and not the secret."""
    bucket = bucket_at(f"http://127.0.0.1:{unused_port()}")

    url = urlsplit(storage_in(bucket).url(KEY + ".jpg"))

    query = parse_qs(url.query)
    assert url.path == "/pictures/stores/store%3A1/generated/1.jpg"
    assert query["X-Amz-Expires"] == ["21600"]
    assert query["X-Amz-Credential"][0].startswith("us/")
    assert len(bytes.fromhex(query["X-Amz-Signature"][0])) == 32
    assert "hunter2" not in url.geturl()


@pytest.mark.parametrize(
    ("endpoint", "path_style", "begins"),
    [
        (None, True, "https://s3.eu-north-1.amazonaws.com/pictures/stores"),
        (None, False, "https://pictures.s3.eu-north-1.amazonaws.com/stores"),
        (
            "https://a.supabase.co/storage/v1/s3",
            True,
            "https://a.supabase.co/storage/v1/s3/pictures/",
        ),
        ("https://pictures.r2.example", False, "https://pictures.r2.example/stores"),
    ],
)
async def test_bucket_address(endpoint: str | None, path_style: bool, begins: str) -> None:
    """At Amazon or elsewhere, with its name in the path or in the host."""
    bucket = dataclasses.replace(
        bucket_at("http://x"), endpoint=endpoint, path_style=path_style, region="eu-north-1"
    )

    assert storage_in(bucket).url(KEY + ".jpg").startswith(begins)


def test_credentials_are_not_shown() -> None:
    """A bucket and its client may end up in a log."""
    bucket = bucket_at("http://127.0.0.1:1")

    assert "hunter2" not in repr(bucket) + repr(s3_store(bucket))


async def test_refused_connection_raises_storage_unavailable() -> None:
    """From every call, without the address in the message, which an end user may see."""
    storage = storage_in(bucket_at(f"http://127.0.0.1:{unused_port()}", timeout_seconds=0.3))

    outcomes = await asyncio.gather(*(call(storage) for call in CALLS), return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [StorageUnavailable] * len(CALLS)
    assert "127.0.0.1" not in " ".join(map(str, outcomes))


async def test_missing_bucket_raises_storage_unavailable(s3_url: str) -> None:
    """Nothing counts as saved or deleted."""
    storage = storage_in(bucket_at(s3_url, name="none"))

    assert await storage.find(KEY) is None
    with pytest.raises(StorageUnavailable):
        await storage.save(KEY, JPEG)
    with pytest.raises(StorageUnavailable):
        await storage.delete(KEY)


async def test_delete_names_existing_objects_only(new_service: NewService) -> None:
    """Some services reject the deletion of a missing object."""
    asked: list[tuple[str, str, list[str]]] = []

    async def keep_a_jpeg(request: web.Request) -> web.Response:
        if request.method == "HEAD":
            found = request.path.endswith(".jpg")
            return web.Response(headers=FOUND, body=b"x") if found else web.Response(status=404)
        keys = re.findall("<Key>(.*?)</Key>", await request.text())
        asked.append((request.method, request.query_string, keys))
        deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
        return web.Response(text=f"<DeleteResult>{deleted}</DeleteResult>")

    await (await new_service(keep_a_jpeg)).storage().delete(KEY)

    assert asked == [("POST", "delete", [KEY + ".jpg"])]


async def test_error_inside_a_deletion_s_200_is_raised(
    new_service: NewService,
) -> None:
    """The body of the answer has a result for each object."""
    asked: list[str] = []

    async def refuse_inside(request: web.Request) -> web.Response:
        if request.method == "HEAD":
            return web.Response(headers=FOUND, body=b"x")
        keys = re.findall("<Key>.*?</Key>", await request.text())
        asked.extend(keys)
        why = "<Code>AccessDenied</Code><Message>No</Message>"
        errors = "".join(f"<Error>{key}{why}</Error>" for key in keys)
        return web.Response(text=f"<DeleteResult>{errors}</DeleteResult>")

    service = await new_service(refuse_inside)

    with pytest.raises(StorageUnavailable):
        await service.storage().delete(KEY)

    assert len(asked) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 429, 500, 503])
async def test_error_status_is_raised(new_service: NewService, status: int) -> None:
    """Wrong credentials, throttling and faults are not the picture's fault. Each call makes at most
    three tries for each of the three types that a picture may have."""

    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=status)

    services = [await new_service(refuse) for _ in CALLS]

    # At the same time, because each waits before it tries again.
    outcomes = await asyncio.gather(
        *(call(service.storage()) for call, service in zip(CALLS, services, strict=True)),
        return_exceptions=True,
    )

    assert [type(outcome) for outcome in outcomes] == [StorageUnavailable] * len(CALLS)
    assert all(0 < len(service.requests) <= 9 for service in services)


async def test_wait_for_a_silent_service_is_bounded(new_service: NewService) -> None:
    """Then every call raises ``StorageUnavailable``."""

    async def say_nothing(_: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    storage = (await new_service(say_nothing)).storage()

    async with asyncio.timeout(10):
        outcomes = await asyncio.gather(*(call(storage) for call in CALLS), return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [StorageUnavailable] * len(CALLS)


async def test_upload_above_the_size_limit_is_not_downloaded(new_service: NewService) -> None:
    """A signed upload URL cannot limit the size, so the size in the header decides."""
    size, sent = 5_000_000_000, 0

    async def pour(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        headers = {"Content-Length": str(size), "ETag": "e", "Last-Modified": LAST_MODIFIED}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        while sent < size:
            await response.write(bytes(1_000_000))
            sent += 1_000_000
        return response

    service = await new_service(pour)

    with pytest.raises(Refused, match="larger than 10 MB"):
        await service.storage().read_upload(KEY + ".jpg", max_bytes=10_000_000)

    assert [request.method for request in service.requests] == ["GET"]
    assert sent < 50_000_000


async def test_deletion_of_uploads_lists_no_later_days(new_service: NewService) -> None:
    """The folder of a later day holds no upload that is old enough; nor does a folder that is not a
    day's. An object's time in the listing decides."""
    listed: list[str] = []
    deleted: list[str] = []

    async def list_two_objects(request: web.Request) -> web.Response:
        if request.method == "POST":
            keys = re.findall("<Key>(.*?)</Key>", await request.text())
            deleted.extend(keys)
            results = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
            return web.Response(text=f"<DeleteResult>{results}</DeleteResult>")
        prefix = request.query["prefix"]
        listed.append(prefix)
        if prefix == "uploads/":
            names = ("2026-11-23", "2026-11-24", "2026-11-25", "2026-11-26", "notes")
            entries = "".join(
                f"<CommonPrefixes><Prefix>uploads/{name}/</Prefix></CommonPrefixes>"
                for name in names
            )
        else:
            entries = "".join(
                f"<Contents><Key>{prefix}b2b/s/{hour}.jpg</Key><Size>1</Size>"
                f"<LastModified>2026-11-24T{hour}:00:00.000Z</LastModified></Contents>"
                for hour in ("11", "12")
            )
        return web.Response(text=f"<ListBucketResult>{entries}</ListBucketResult>")

    storage = (await new_service(list_two_objects)).storage()

    noon = datetime(2026, 11, 24, 12, tzinfo=UTC)
    assert await storage.delete_uploads_before(noon, limit=10) == 2

    assert listed == ["uploads/", "uploads/2026-11-23/", "uploads/2026-11-24/"]
    assert deleted == ["uploads/2026-11-23/b2b/s/11.jpg", "uploads/2026-11-24/b2b/s/11.jpg"]


async def test_single_fault_is_retried(new_service: NewService) -> None:
    """One 500 does not fail the attempt at a picture."""
    answers = iter([500])

    async def falter(request: web.Request) -> web.Response:
        if request.method == "HEAD":
            return web.Response(status=404)
        return web.Response(status=next(answers, 200), headers={"ETag": "e"})

    service = await new_service(falter)

    saved = await service.storage().save(KEY, JPEG)

    assert saved.object_key == KEY + ".jpg"
    assert [request.method for request in service.requests].count("PUT") == 2


async def test_retry_that_finds_our_own_picture_succeeds(new_service: NewService) -> None:
    """The reply to the first PUT is lost; its retry gets 412 because the picture is stored."""
    answers = iter([500, 412])

    async def lose_the_reply(request: web.Request) -> web.Response:
        return web.Response(status=404 if request.method == "HEAD" else next(answers))

    service = await new_service(lose_the_reply)

    saved = await service.storage().save(KEY, JPEG)

    assert saved == StoredPicture(object_key=KEY + ".jpg", media_type="image/jpeg")


def test_cors_rule_has_the_form_of_s3(s3_url: str) -> None:
    """Amazon's own client sends it, and the service keeps it."""
    import boto3  # type: ignore[import-untyped] # noqa: PLC0415 - takes a second

    bucket = new_bucket(s3_url)
    client = boto3.client(
        "s3",
        endpoint_url=s3_url,
        region_name=bucket.region,
        aws_access_key_id=bucket.access_key_id,
        aws_secret_access_key=bucket.secret_access_key,
    )
    rule = cors_rule(["https://shop.example", "capacitor://localhost"])

    client.put_bucket_cors(Bucket=bucket.name, CORSConfiguration=rule)

    assert client.get_bucket_cors(Bucket=bucket.name)["CORSRules"] == rule["CORSRules"]
    client.close()
