"""``inspect_picture`` on untrusted bytes."""

import pytest

from adapters.images.inspection import inspect_picture
from domain.errors import Refused
from domain.sessions import ErrorCode
from tests.adapters.hostile import SECOND_FRAME, png_that_claims
from tests.support.images import encoded


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (encoded("JPEG"), "image/jpeg"),
        (encoded("JPEG", mode="CMYK", color=0), "image/jpeg"),
        (encoded("MPO", **SECOND_FRAME), "image/jpeg"),
        (encoded("PNG"), "image/png"),
        (encoded("PNG", mode="I;16", color=0), "image/png"),
        (encoded("PNG", size=(16, 16)), "image/png"),
        (png_that_claims(8_000, 5_000), "image/png"),
        (encoded("WEBP"), "image/webp"),
        (encoded("WEBP", lossless=True), "image/webp"),
    ],
)
def test_media_type_comes_from_the_bytes(data: bytes, media_type: str) -> None:
    """JPEG, PNG and WebP are accepted unchanged, including a phone's JPEG with a second frame."""
    picture = inspect_picture(data)

    assert picture.data == data
    assert picture.media_type == media_type


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"<html></html>", id="a page"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", id="svg"),
        pytest.param(encoded("GIF"), id="gif"),
        pytest.param(encoded("BMP"), id="bmp"),
        pytest.param(encoded("TIFF"), id="tiff"),
        pytest.param(b"%PDF-1.7\n" + encoded("JPEG"), id="a picture behind another header"),
        pytest.param(encoded("JPEG")[:3] + encoded("PNG"), id="a png behind a jpeg's signature"),
        pytest.param(encoded("PNG")[:20], id="cut header"),
        pytest.param(b"RIFF\x00\x00\x00\x00WEBPVP8 ", id="webp without a picture"),
        pytest.param(encoded("PNG", **SECOND_FRAME), id="animated png"),
        pytest.param(encoded("WEBP", **SECOND_FRAME), id="animated webp"),
        pytest.param(encoded("PNG", size=(15, 400)), id="too narrow"),
        pytest.param(encoded("PNG", size=(400, 15)), id="too low"),
        pytest.param(png_that_claims(8_000, 5_001), id="just over 40 megapixels"),
        pytest.param(png_that_claims(9_000, 9_000), id="81 megapixels"),
        pytest.param(png_that_claims(9_500, 9_500), id="the size at which Pillow warns"),
        pytest.param(png_that_claims(30_000, 30_000), id="the size at which Pillow raises"),
    ],
)
def test_unusable_pictures_are_refused(data: bytes) -> None:
    """Other formats and damaged, animated, tiny and huge pictures are an ``INVALID_IMAGE``."""
    with pytest.raises(Refused) as refusal:
        inspect_picture(data)

    assert refusal.value.reason == ErrorCode.INVALID_IMAGE
