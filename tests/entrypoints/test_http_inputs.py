"""The quick looks at a body say what the long ones say."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from domain.errors import InvalidInput
from domain.submission import _USUAL_URL, MAX_URL_LENGTH, _check_url
from entrypoints.http.inputs import NewGenerationBody, _refuse_repeated, decoded

URL = "https://a.example/"

spaces = st.text(" \t\r\n", max_size=2)
# What looks like a name, or like the end of a text, in the middle of one.
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
    """An object with these names, of which some may come twice, in any order."""
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


def complaint(body: str) -> str | None:
    """The long way: all names of all objects."""
    try:
        json.loads(body, object_pairs_hook=_refuse_repeated)
    except InvalidInput as error:
        return str(error)
    return None


@given(bodies)
@example('{"model_image_url":"https://a.example/", "prompt": ": \\"a\\":", "prompt": null}')
@example('{"model_image_url":"https://a.example/", "model_image_url" \n\t:"https://a.example/"}')
@example('{"model_image_url":"https://a.example/", "model_image_ur\\u006c":"https://a.example/"}')
def test_the_quick_look_for_repeated_names_is_right(body: str) -> None:
    """It refuses exactly what the long one refuses, in the same words."""
    try:
        decoded(body.encode(), NewGenerationBody.decoder)
        found = None
    except InvalidInput as error:
        found = str(error)

    assert found == complaint(body)


def test_bodies_of_both_kinds_are_drawn() -> None:
    """Else the test above would say nothing."""
    seen: set[bool] = set()

    @given(bodies)
    def look(body: str) -> None:
        msgspec.json.decode(body)
        seen.add(complaint(body) is None)

    look()

    assert seen == {True, False}


def test_accessories_may_have_the_same_names() -> None:
    """As soon as there are two."""
    item = '{"type":"a","url":"https://a.example/"}'
    body = f'{{"model_image_url":"{URL}","accessories":[{item},{item}]}}'

    assert len(decoded(body.encode(), NewGenerationBody.decoder).accessories) == 2


@given(st.from_regex(_USUAL_URL, fullmatch=True))
@example("https://a.example:9999/a?b=c&d=%20+~,:")
@example("http://./")
@example("http://-/")
def test_a_usual_url_is_one_that_the_long_way_takes(url: str) -> None:
    """What the quick look lets through, the whole check would too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("domain.submission._USUAL_URL", _Nothing)
        _check_url("model_image_url", url)


class _Nothing:
    @staticmethod
    def fullmatch(_: str) -> None:
        """As if no URL were usual."""


def test_a_usual_url_is_bounded_as_any_other() -> None:
    """Its length is looked at first."""
    with pytest.raises(InvalidInput, match="longer"):
        _check_url("model_image_url", URL + "x" * MAX_URL_LENGTH)
