"""Builds what watches the service for operators."""

from typing import assert_never

from adapters.credits.postgres import PostgresCreditRepo
from adapters.postgres.database import Database
from config import options, policies
from config.closing import Opened, closing
from config.services import Repositories
from config.settings import Settings
from domain.books import BookChecks
from domain.ports import CreditRepoPort


def books(settings: Settings, *, repositories: Repositories, opened: Opened) -> BookChecks:
    auditor = _auditor(settings, repositories, opened)
    return BookChecks(
        audit=lambda limit: auditor.audit(limit=limit),
        checks=repositories.book_checks,
        policy=policies.books(settings),
    )


def _auditor(settings: Settings, repositories: Repositories, opened: Opened) -> CreditRepoPort:
    """On a connection of its own, because an audit may take minutes."""
    match settings.database:
        case options.Database.POSTGRES:
            return PostgresCreditRepo(closing(opened, Database(**policies.audits(settings))))
        case options.Database.MEMORY:
            return repositories.accounts
        case unknown:
            assert_never(unknown)
