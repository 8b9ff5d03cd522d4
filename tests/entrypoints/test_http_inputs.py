"""The fast checks of a body and its URLs agree with the full ones."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from domain.errors import InvalidInput
from domain.links import _USUAL_URL, MAX_URL_LENGTH, check_link
from entrypoints.http.inputs import _refuse_repeated, decoded
from entrypoints.http.schemas import NewGeneration

URL = "https://a.example/"
DECODER = msgspec.json.Decoder(NewGeneration)

spaces = st.text(" \t\r\n", max_size=2)
# Characters that could be mistaken for a name, or for the end of a string.
texts = st.text('a:,{}[]" \\\u00fc', max_size=8)


@st.composite
def quoted(draw: st.DrawFn, text: str) -> str:
    """``text`` in JSON, in one of the ways to write it."""
    escaped = draw(st.booleans())
    if escaped:
        return '"' + "".join(f"\\u{ord(letter):04x}" for letter in text) + '"'
    return json.dumps(text, ensure_ascii=draw(st.booleans()))


@st.composite
def objects(draw: st.DrawFn, names: list[str], values: dict[str, Any]) -> str:
    """An object with these names in any order, of which one may be repeated."""
    again = draw(st.lists(st.sampled_from(names), max_size=1)) if draw(st.booleans()) else []
    members = []
    for name in draw(st.permutations(names + again)):
        value = draw(values[name])
        between = [draw(spaces) for _ in range(4)]
        members.append(between[0] + draw(quoted(name)) + between[1] + ":" + between[2] + value)
    return "{" + draw(spaces) + ",".join(members) + draw(spaces) + "}"


urls = texts.map(lambda text: URL + text).flatmap(quoted)
accessories = objects(
    ["type", "url"], {"type": texts.map(lambda text: f":{text}").flatmap(quoted), "url": urls}
)
bodies = objects(
    ["model_image_url", "outfit_image_url", "accessories", "prompt"],
    {
        "model_image_url": urls,
        "outfit_image_url": st.just("null") | urls,
        "accessories": st.lists(accessories, max_size=3).map(lambda some: f"[{','.join(some)}]"),
        "prompt": st.just("null") | texts.map(lambda text: f":{text}").flatmap(quoted),
    },
)


def full_check(body: str) -> str | None:
    """The error of the full check, which looks at all names of all objects."""
    try:
        json.loads(body, object_pairs_hook=_refuse_repeated)
    except InvalidInput as error:
        return str(error)
    return None


@given(bodies)
@example('{"model_image_url":"https://a.example/", "prompt": ": \\"a\\":", "prompt": null}')
@example('{"model_image_url":"https://a.example/", "model_image_url" \n\t:"https://a.example/"}')
@example('{"model_image_url":"https://a.example/", "model_image_ur\\u006c":"https://a.example/"}')
def test_fast_check_for_repeated_names_agrees_with_the_full_one(body: str) -> None:
    """It rejects the same bodies, with the same message."""
    try:
        decoded(body.encode(), DECODER)
        found = None
    except InvalidInput as error:
        found = str(error)

    assert found == full_check(body)


def test_both_kinds_of_bodies_are_generated() -> None:
    """With and without repeated names; otherwise the test above would prove nothing."""
    seen: set[bool] = set()

    @given(bodies)
    def look(body: str) -> None:
        msgspec.json.decode(body)
        seen.add(full_check(body) is None)

    look()

    assert seen == {True, False}


def test_two_accessories_are_not_repeated_names() -> None:
    """Each object has its own names."""
    item = '{"type":"a","url":"https://a.example/"}'
    body = f'{{"model_image_url":"{URL}","accessories":[{item},{item}]}}'

    assert len(decoded(body.encode(), DECODER).accessories or ()) == 2


@given(st.from_regex(_USUAL_URL, fullmatch=True))
@example("https://a.example:443/a?b=c&d=%20+~,:")
@example("http://..a/")
@example("http://-.a-:80/")
def test_fast_check_of_urls_agrees_with_the_full_one(url: str) -> None:
    """Every URL that the fast check accepts passes the full check."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("domain.links._USUAL_URL", _Nothing)
        check_link("model_image_url", url)


class _Nothing:
    @staticmethod
    def fullmatch(_: str) -> None:
        """No match, so that every URL gets the full check."""


def test_fast_check_of_urls_has_the_length_limit() -> None:
    """The length is checked first."""
    with pytest.raises(InvalidInput, match="longer"):
        check_link("model_image_url", URL + "x" * MAX_URL_LENGTH)
