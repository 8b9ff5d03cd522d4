"""The page and the form of each action."""

from typing import Any

from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler

from domain.console_actions import Act, checked_reason
from domain.errors import WearonError
from domain.operators import Operator
from entrypoints.console import queries
from entrypoints.console.actions import ACTIONS
from entrypoints.console.auth import ROLE
from entrypoints.console.forms import Action, Given, required_id
from entrypoints.console.rendering import Pages, person_of
from entrypoints.console.services import ROLES, Services
from entrypoints.http.errors import answer_to
from entrypoints.http.inputs import AnyRequest, Injected


def action_handlers() -> list[HTTPRouteHandler]:
    """A page and a form of each action, with its own role."""
    return [handler for name, action in ACTIONS.items() for handler in _handlers(name, action)]


def _handlers(name: str, action: Action) -> list[HTTPRouteHandler]:
    path, role = f"/console/act/{name}", ROLES[name]

    async def show(
        request: AnyRequest, services: Injected[Services], pages: Injected[Pages]
    ) -> Response[Any]:
        given = {key: queries.text_of(request, key) for key in (*action.names, *action.presets)}
        return await _form(request, services, pages, name, given)

    async def act(
        request: AnyRequest, services: Injected[Services], pages: Injected[Pages]
    ) -> Response[Any]:
        form = {key: str(value) for key, value in (await request.form()).items()}
        try:
            outcome = await action.run(services, form, _act(request, form, action))
        except WearonError as error:
            status = answer_to(error).status
            if status >= 500:
                raise
            return await _form(
                request, services, pages, name, form, problem=str(error), status=status
            )
        return pages.answer(request, "done.html", {"outcome": outcome})

    return [
        get(path, opt={ROLE: role}, name=f"preview {name}")(show),
        post(path, opt={ROLE: role, "reads": action.reads}, name=name, status_code=200)(act),
    ]


def _act(request: AnyRequest, form: Given, action: Action) -> Act:
    person = person_of(request)
    assert person is not None  # noqa: S101 - the door has checked the role
    action_id = required_id(form, "action_id")
    if action.reads:
        return Act(id=action_id, by=Operator(actor=person.operator))
    return Act(id=action_id, by=person.acting(checked_reason(form.get("reason", ""))))


async def _form(
    request: AnyRequest,
    services: Services,
    pages: Pages,
    name: str,
    given: Given,
    *,
    problem: str = "",
    status: int = 200,
) -> Response[Any]:
    """The preview with the state as it is now, after a conflict too; each form has a new id."""
    action = ACTIONS[name]
    preview = await action.preview(services, given)
    data = {
        "action": name,
        "preview": preview,
        "given": {key: given[key] for key in action.names if given.get(key)},
        "reason": given.get("reason", ""),
        "problem": problem,
        "back": preview.back,
    }
    known = given.get("action_id") if action.resumes else None
    only_html = {"action_id": known or services.new_id()}
    return pages.answer(request, "confirm.html", data, only_html=only_html, status=status)
