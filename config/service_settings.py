"""The settings of what a process is made of, and of the HTTP server."""

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from config.options import (
    BaseUrl,
    Database,
    Environment,
    Generator,
    Queue,
    Seconds,
    Storage,
    doc,
)
from domain.watching import StreamLimits

_STREAMS = StreamLimits()


class ServiceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The adapters, and how the API listens."""

    environment: Annotated[
        Environment,
        doc("`development` serves sample pictures and relaxes the production safeguards"),
    ] = Environment.PRODUCTION
    database_url: Annotated[
        Annotated[str, Meta(pattern=r"^postgres(ql)?://\S+$")] | None,
        doc(
            "PostgreSQL, the source of truth for credits and sessions",
            variable="DATABASE_URL",
            example="postgresql://user:password@host:5432/wearon",
            secret=True,
        ),
    ] = None
    redis_url: Annotated[
        Annotated[str, Meta(pattern=r"^(rediss?|unix)://\S+$")] | None,
        doc(
            "Redis, which carries the tasks; `rediss://` uses TLS, `unix://` a socket",
            variable="REDIS_URL",
            example="redis://:password@host:6379/0",
            secret=True,
        ),
    ] = None
    database: Annotated[Database, doc("Where sessions and credits are stored")] = Database.POSTGRES
    queue: Annotated[Queue, doc("What carries the tasks")] = Queue.REDIS
    storage: Annotated[Storage, doc("Where pictures are stored")] = Storage.LOCAL
    generator: Annotated[
        Generator | None,
        doc(
            "What makes the pictures; workers need it, because `local` only pastes the inputs"
            " together. In development `local` is the default"
        ),
    ] = None
    data_dir: Annotated[
        Path, doc("Folder of the `local` storage and of the embedded servers' data")
    ] = Path(".wearon")

    s3_bucket: Annotated[str | None, doc("Bucket of the pictures, for the `s3` storage")] = None
    s3_region: Annotated[str, doc("Region of the bucket; `auto` for R2")] = "us-east-1"
    s3_endpoint: Annotated[
        BaseUrl | None,
        doc(
            "Endpoint of the S3-compatible service; empty for Amazon S3",
            example="https://project.supabase.co/storage/v1/s3",
        ),
    ] = None
    s3_path_style: Annotated[
        bool, doc("`true` puts the bucket name in the path of URLs; `false`: in the host name")
    ] = True
    s3_conditional_put: Annotated[
        bool, doc("`false` if the service does not support `If-None-Match` on PUT")
    ] = True
    s3_seconds: Annotated[
        Seconds, doc("Timeout of one S3 request; a call makes up to three requests")
    ] = 10
    s3_access_key_id: Annotated[
        str | None, doc("S3 access key ID", variable="AWS_ACCESS_KEY_ID", secret=True)
    ] = None
    s3_secret_access_key: Annotated[
        str | None, doc("S3 secret access key", variable="AWS_SECRET_ACCESS_KEY", secret=True)
    ] = None

    host: Annotated[str, doc("Address the API listens on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65_535), doc("Port the API listens on")] = 8000
    api_workers: Annotated[int, Meta(ge=1, le=64), doc("Number of API processes")] = 1
    metrics_host: Annotated[str, doc("Address that `/metrics` is served on")] = "127.0.0.1"
    metrics_port: Annotated[
        int,
        Meta(ge=0, le=65_535),
        doc(
            "Port of `/metrics`, for Prometheus; 0 serves nothing. All API processes of a host"
            " share it; a worker or console beside them needs another one"
        ),
    ] = 0
    http_max_connections: Annotated[
        int,
        Meta(ge=1, le=1_000_000),
        doc(
            "Open connections of one API process, or as many as its file descriptors allow; "
            "further ones get a 503"
        ),
    ] = 16_384
    http_max_headers: Annotated[
        int, Meta(ge=10, le=1_000), doc("Most headers of a request; more get a 431")
    ] = 100
    http_max_header_bytes: Annotated[
        int,
        Meta(ge=4_096, le=1_048_576),
        doc("Largest request line and headers together; larger ones get a 431"),
    ] = 65_536
    http_header_seconds: Annotated[
        Seconds, doc("Deadline for the headers of a request to arrive")
    ] = 10
    http_idle_seconds: Annotated[
        Seconds,
        doc(
            "How long a connection is kept open between requests; keep it longer than the idle "
            "timeout of a proxy in front"
        ),
    ] = 75
    http_write_seconds: Annotated[
        Seconds,
        doc("How long a client may take nothing of a response or a stream before it is cut off"),
    ] = 30
    http_stop_seconds: Annotated[
        int,
        Meta(ge=1, le=3_600),
        doc("How long an API process may take to finish its requests after SIGTERM"),
    ] = 20
    streams_per_owner: Annotated[
        int,
        Meta(ge=1, le=1_000_000),
        doc("Clients of one owner that may wait for events at an API process; more get a 429"),
    ] = _STREAMS.per_owner
    streams_per_shopper: Annotated[
        int, Meta(ge=1, le=1_000_000), doc("The same for one shopper of a store")
    ] = _STREAMS.per_shopper
    stream_seconds: Annotated[
        Seconds, doc("How long a stream of events lasts at most; then the client resumes it")
    ] = _STREAMS.lifetime.total_seconds()
    public_url: Annotated[
        BaseUrl,
        doc(
            "Base URL at which clients reach the API; picture URLs begin with it",
            example="https://wearon.example",
        ),
    ] = "http://127.0.0.1:8000"
    playground: Annotated[
        bool,
        doc("`true` serves `/playground`, a page to try the API; always served in `development`"),
    ] = False
    max_body_bytes: Annotated[
        int,
        Meta(ge=1_024, le=10_000_000),
        doc("Largest request body except for uploads; a larger one gets a 413"),
    ] = 65_536
