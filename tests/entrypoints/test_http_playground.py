"""The playground as the API serves it; tests/browser uses it."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.images.samples import draw_sample
from config import policies
from config.options import Environment, Storage
from config.settings import Settings
from entrypoints.http import playground as module
from tests.support.http import GENERATIONS, PLAYGROUND, PUBLIC_URL, Api

pytestmark = pytest.mark.anyio

FOLDER = Path(module.__file__).parent / "static" / "playground"
NAMES = sorted(path.name for path in FOLDER.iterdir() if path.name != "index.html")
MOST_BYTES = 150_000
SAMPLES = ("model", "outfit", "suit", "hat", "bag")


@pytest.fixture(scope="module")
def api() -> Api:
    return Api()


async def test_page_has_a_policy_of_its_own(api: Api) -> None:
    """Its own files and pictures only; no inline code, no form that is sent, no frame."""
    page = await api.get("/playground", owner=None)

    policy = page.headers["content-security-policy"].split("; ")
    assert policy == [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        f"img-src 'self' {PUBLIC_URL} blob: data:",
        f"connect-src 'self' {PUBLIC_URL}",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    ]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "set-cookie" not in page.headers


async def test_page_loads_nothing_but_its_files(api: Api) -> None:
    """Everything that it refers to exists here, and it has no code or style of its own, which the
    policy would stop."""
    text = (await api.get("/playground", owner=None)).body.decode()

    references = set(re.findall(r'(?:src|href)="([^"]+)"', text))
    assert references == {
        *(f"/playground/{name}" for name in NAMES),
        "/schema",
        "/schema/openapi.json",
    }
    assert not re.search(r"<style|style=|\son[a-z]+=|<script(?![^>]* src=)", text)
    assert not re.search(r"https?://", text.replace(PUBLIC_URL, ""))


@pytest.mark.parametrize("name", ["playground.js", "playground.css"])
def test_files_name_no_other_host_and_store_nothing(name: str) -> None:
    text = (FOLDER / name).read_text("utf-8")

    assert not re.search(r"https?://|//[a-z]+\.|cookie =|localStorage|sessionStorage", text)


async def test_page_is_small(api: Api) -> None:
    """With all pictures that it shows at first."""
    files = [await api.get(f"/playground/{name}", owner=None) for name in NAMES]
    page = await api.get("/playground", owner=None)
    pictures = [draw_sample(f"{name}.png") for name in SAMPLES]

    assert sum(len(part.body) for part in [page, *files]) + sum(map(len, pictures)) < MOST_BYTES
    assert all(file.status == 200 for file in files)


@pytest.mark.parametrize("path", ["/playground", "/playground/playground.js"])
async def test_browser_keeps_what_is_unchanged(api: Api, path: str) -> None:
    """It asks each time, and gets nothing anew unless the file has another tag."""
    first = await api.get(path, owner=None)
    tag = first.headers["etag"]

    again = await api.get(path, owner=None, headers=[("if-none-match", tag)])
    changed = await api.get(path, owner=None, headers=[("if-none-match", '"old"')])

    assert first.headers["cache-control"] == "no-cache"
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
    assert (changed.status, changed.body) == (200, first.body)


@pytest.mark.parametrize("name", ["index.html", "..%2Fplayground.py", "unknown.js", "%00"])
async def test_unknown_file_is_not_found(api: Api, name: str) -> None:
    answer = await api.get(f"/playground/{name}", owner=None)

    assert answer.error == (404, "NOT_FOUND")


async def test_page_without_samples_offers_none() -> None:
    """Outside development there are no sample pictures and no test cards."""
    outside = replace(PLAYGROUND, samples_url=None)

    page = await Api(playground=outside).get("/playground", owner=None)

    assert b'data-samples=""' in page.body
    assert b"SAMPLES_URL" not in page.body


@pytest.mark.parametrize(("playground", "path"), [(PLAYGROUND, "/playground"), (None, "/schema")])
async def test_root_leads_to_a_page_for_people(playground: Any, path: str) -> None:
    api = Api(playground=playground)

    root = await api.get("/", owner=None)
    page = await api.get("/playground", owner=None)

    assert (root.status, root.headers["location"]) == (307, path)
    assert page.status == (200 if playground else 404)


@pytest.mark.parametrize(
    ("samples_url", "host"), [(f"{PUBLIC_URL}/samples", PUBLIC_URL), (None, "images.example.com")]
)
async def test_examples_of_the_document_work_in_development(
    samples_url: str | None, host: str
) -> None:
    """They link to samples that exist; in production they are examples."""
    api = Api(playground=replace(PLAYGROUND, samples_url=samples_url))

    document = await api.get("/schema/openapi.json", owner=None)

    content = document.json["paths"][GENERATIONS]["post"]["requestBody"]["content"]
    (example,) = content["application/json"]["schema"]["examples"]
    links = re.findall(r'"https?://[^"]*/([\w-]+\.(?:png|jpg))"', document.body.decode())
    assert host in example["model_image_url"]
    assert (b"images.example.com" in document.body) is (samples_url is None)
    if samples_url:
        assert all(draw_sample(name) for name in set(links))


async def test_document_ui_keeps_the_token() -> None:
    """A reload of the page would lose it."""
    script = await Api().get("/schema/assets/start.js", owner=None)

    assert b"persistAuthorization: true" in script.body


def test_playground_is_for_development_unless_a_setting_asks() -> None:
    served = [
        settings.serves_playground
        for settings in (
            Settings(environment=Environment.DEVELOPMENT),
            Settings(),
            Settings(playground=True),
        )
    ]

    assert served == [True, False, True]


@pytest.mark.parametrize(
    ("changes", "storage_origin"),
    [
        ({}, "https://s3.eu-central-1.amazonaws.com"),
        ({"s3_path_style": False}, "https://b.s3.eu-central-1.amazonaws.com"),
        ({"s3_endpoint": "https://project.example/storage/v1/s3"}, "https://project.example"),
    ],
)
def test_pictures_in_cloud_storage_are_allowed(changes: Any, storage_origin: str) -> None:
    """The page shows them, and sends uploads there."""
    settings = Settings(
        public_url="https://api.example/wearon",
        storage=Storage.S3,
        s3_bucket="b",
        s3_region="eu-central-1",
        s3_access_key_id="us",
        s3_secret_access_key="signs the links to the pictures",
        **changes,
    )

    assert policies.picture_origins(settings) == ("https://api.example", storage_origin)
