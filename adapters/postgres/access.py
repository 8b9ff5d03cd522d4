"""Brings roles, privileges and policies of the database in line with the table in ``roles.py``.

What is in line already is left alone, so a repeated run writes nothing and takes no lock. The
default privileges of the schema are not changed, because other programs may share it: instead,
each migration and the revocations for its new tables are one transaction.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import asyncpg

from adapters.postgres.database import READS_ALL, Connection, Database
from adapters.postgres.roles import (
    FUNCTIONS,
    OWN_ROWS,
    SEQUENCES,
    SUPABASE,
    TABLES,
    USER_COLUMNS,
    VIEWS,
    Group,
    RoleNames,
)

PUBLICATION = "supabase_realtime"
_PUBLIC = "PUBLIC"

_OBJECTS = """
    SELECT c.oid, CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind,
        relname::text AS name, format('%I.%I', nspname, relname) AS target,
        quote_ident(pg_get_userbyid(relowner)) AS owner, relkind = 'r' AND NOT relrowsecurity
        AS unprotected, coalesce(relacl, acldefault('r', relowner)) AS acl
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace
    WHERE nspname = current_schema() AND relname = ANY ($1) AND relkind IN ('r', 'v', 'S')
    UNION ALL
    SELECT p.oid, 'FUNCTION', proname::text,
        format('%I.%I(%s)', nspname, proname, pg_get_function_identity_arguments(p.oid)),
        quote_ident(pg_get_userbyid(proowner)), false, coalesce(proacl, acldefault('f', proowner))
    FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = pronamespace
    WHERE nspname = current_schema() AND proname = ANY ($2)"""

_HELD = f"""
    WITH object AS MATERIALIZED ({_OBJECTS}), item AS (
        SELECT kind, target, '' AS column, acl FROM object
        UNION ALL
        SELECT kind, target, quote_ident(attname), attacl
        FROM object JOIN pg_attribute ON attrelid = object.oid
        WHERE kind = 'TABLE' AND NOT attisdropped AND attacl IS NOT NULL
    )
    SELECT kind, target, item.column, coalesce(quote_ident(rolname), '{_PUBLIC}') AS role,
        privilege_type AS command
    FROM item CROSS JOIN aclexplode(acl) LEFT JOIN pg_roles ON pg_roles.oid = grantee"""  # noqa: S608

_POLICIES = """
    SELECT format('%I.%I', schemaname, tablename) AS target, policyname::text AS name
    FROM pg_policies WHERE schemaname = current_schema()"""

_CLUSTER = """
    SELECT quote_ident(current_schema()) AS schema,
        ARRAY (SELECT rolname::text FROM pg_roles WHERE rolname = ANY ($1)) AS roles,
        ARRAY (SELECT rolname::text FROM pg_roles WHERE rolname = ANY ($1)
            AND NOT has_schema_privilege(oid, current_schema(), 'USAGE')) AS outside,
        EXISTS (SELECT FROM pg_proc JOIN pg_namespace AS n ON n.oid = pronamespace
            WHERE nspname = 'auth' AND proname = 'uid' AND pronargs = 0) AS has_users,
        EXISTS (SELECT FROM pg_publication WHERE pubname = $2) AND NOT EXISTS (
            SELECT FROM pg_publication_tables WHERE pubname = $2
                AND schemaname = current_schema() AND tablename = 'generation_sessions')
        AS unpublished,
        EXISTS (SELECT FROM pg_publication WHERE pubname = $2 AND pg_has_role(pubowner, 'USAGE'))
        AS may_publish"""

# The policies that apply to a role are those of PUBLIC, of the role, and of the roles that it
# inherits from.
_WITHOUT_POLICY = f"""
    WITH object AS MATERIALIZED ({_OBJECTS}), holder AS (
        SELECT DISTINCT object.oid, name, grantee, privilege_type
        FROM object CROSS JOIN LATERAL (
            SELECT * FROM aclexplode(acl)
            UNION ALL SELECT a.* FROM pg_attribute CROSS JOIN aclexplode(attacl) AS a
            WHERE attrelid = object.oid AND NOT attisdropped) AS item
        WHERE kind = 'TABLE'
    )
    SELECT quote_ident(rolname) AS role, name,
        string_agg(privilege_type, ', ' ORDER BY privilege_type) AS commands
    FROM holder JOIN pg_roles ON pg_roles.oid = grantee JOIN pg_class AS c ON c.oid = holder.oid
    WHERE c.relkind = 'r' AND NOT (rolsuper OR rolbypassrls OR pg_has_role(grantee, relowner,
        'USAGE')) AND privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE') AND NOT EXISTS (
            SELECT FROM pg_policy CROSS JOIN unnest(polroles) AS of_policy (role)
            WHERE polrelid = holder.oid AND polcmd::text IN ('*',
                    CASE privilege_type WHEN 'SELECT' THEN 'r' WHEN 'INSERT' THEN 'a'
                    WHEN 'UPDATE' THEN 'w' ELSE 'd' END)
                AND (of_policy.role = 0 OR pg_has_role(grantee, of_policy.role, 'USAGE')))
    GROUP BY rolname, name ORDER BY rolname, name"""  # noqa: S608

_CREATORS = """
    SELECT coalesce(quote_ident(rolname), 'PUBLIC') AS role
    FROM pg_namespace CROSS JOIN aclexplode(nspacl) LEFT JOIN pg_roles ON pg_roles.oid = grantee
    WHERE nspname = current_schema() AND privilege_type = 'CREATE'
        AND (grantee = 0 OR rolname = ANY ($1))
    ORDER BY 1"""

_MAY_CREATE_ROLES = """
    SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user"""
_MISSING_ROLES = """
    SELECT name FROM unnest($1::text[]) WITH ORDINALITY AS asked (name, place)
    WHERE name NOT IN (SELECT rolname FROM pg_roles) ORDER BY place"""


class _Privilege(NamedTuple):
    """``column`` is empty for a whole object."""

    kind: str
    target: str
    column: str
    role: str
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """What the database has of ours."""

    names: RoleNames
    objects: list[asyncpg.Record]
    held: frozenset[_Privilege]
    policies: frozenset[tuple[str, str]]
    cluster: asyncpg.Record

    def role_of(self, group: Group) -> str | None:
        """The group's role; None if it does not exist, or if it owns our tables: an owner has all
        privileges, and no policy applies to it."""
        name = self.names.of(group)
        usable = name in self.cluster["roles"] and name not in self.owners
        return name if usable and (group is not Group.USER or self.cluster["has_users"]) else None

    @property
    def owners(self) -> set[str]:
        return {row["owner"] for row in self.objects}

    @property
    def governed(self) -> set[str]:
        """The roles that keep nothing but what the table grants."""
        return {_PUBLIC, *SUPABASE, *self.names.ours} - self.owners


async def create_roles(database: Database, names: RoleNames) -> None:
    """Create the group roles that are missing, if we may.

    Roles belong to the cluster, so a migration of another database may create them meanwhile."""
    for name in await _missing_roles(database, names):
        if not await database.fetch_value(_MAY_CREATE_ROLES):
            return
        try:
            await database.fetch(f"CREATE ROLE {name} NOLOGIN")
        except (asyncpg.DuplicateObjectError, asyncpg.UniqueViolationError):
            continue


async def apply_access(connection: Connection, names: RoleNames) -> None:
    """Revoke what the table does not grant, then grant what is missing, with the policies.

    In this order, because to revoke a privilege on a table also revokes it on the columns."""
    state = await _read(connection, names)
    if await _run(connection, [*_protections(state), *_revocations(state)]):
        state = await _read(connection, names)
    publications = _publications(state) if state.cluster["may_publish"] else []
    await _run(connection, [*_grants(state), *_new_policies(state), *publications])


async def open_points(database: Database, names: RoleNames) -> list[str]:
    """What an administrator has to do or to know, a line for each."""
    lines = [
        f"this role may not create roles; as an administrator run: CREATE ROLE {name} NOLOGIN;"
        " then `wearon migrate` again"
        for name in await _missing_roles(database, names)
    ]
    async with database.transaction() as connection:
        await connection.execute(READS_ALL)
        state = await _read(connection, names)
        hidden = await connection.fetch(_WITHOUT_POLICY, *_object_names())
        creators = await connection.fetch(_CREATORS, list(SUPABASE))
    lines += [
        f"{name} owns the tables, so it is no group role: choose another WEARON_DATABASE_ROLES"
        for name in sorted({*names.ours} & state.owners)
    ]
    lines += [
        f"{each.role} still has {each.command} on {each.target}: its grantor must revoke it"
        for each in sorted(_excess(state))
    ]
    lines += [
        f"{row['role']} has {row['commands']} on {row['name']}, but no policy: it sees and changes"
        " no row. Put it into a group role (docs/database.md)"
        for row in hidden
    ]
    lines += [
        f"the publication {PUBLICATION} is another role's; as a superuser run: {statement};"
        for statement in _publications(state)
    ]
    return lines + [
        f"{row['role']} may create objects beside ours; as the schema's owner run:"
        f" REVOKE CREATE ON SCHEMA {state.cluster['schema']} FROM {row['role']};"
        for row in creators
    ]


async def _missing_roles(database: Database, names: RoleNames) -> list[str]:
    return [row["name"] for row in await database.fetch(_MISSING_ROLES, names.ours)]


def _object_names() -> tuple[list[str], list[str]]:
    return [*TABLES, *VIEWS, *SEQUENCES], [*FUNCTIONS]


async def _read(connection: Connection, names: RoleNames) -> _State:
    roles = [*names.ours, *SUPABASE]
    cluster = await connection.fetchrow(_CLUSTER, roles, PUBLICATION)
    assert cluster is not None  # noqa: S101 - a SELECT without FROM has one row
    held = await connection.fetch(_HELD, *_object_names())
    return _State(
        names=names,
        objects=await connection.fetch(_OBJECTS, *_object_names()),
        held=frozenset(_Privilege(*row) for row in held),
        policies=frozenset(
            (row["target"], row["name"]) for row in await connection.fetch(_POLICIES)
        ),
        cluster=cluster,
    )


async def _run(connection: Connection, statements: list[str]) -> bool:
    if statements:
        await connection.execute(";\n".join(statements))
    return bool(statements)


def _wanted(state: _State) -> Iterator[_Privilege]:
    for row in state.objects:
        kind, name, target = row["kind"], row["name"], row["target"]
        if kind == "FUNCTION":
            groups: Mapping[Group, Mapping[str, Iterable[str]]] = {
                group: {"EXECUTE": ()} for group in FUNCTIONS[name]
            }
        else:
            groups = {**TABLES, **VIEWS}.get(name, {})
        for group, grants in groups.items():
            if role := state.role_of(group):
                for command, columns in grants.items():
                    for column in columns or ("",):
                        yield _Privilege(kind, target, column, role, command)


def _excess(state: _State) -> set[_Privilege]:
    governed = state.governed
    return {each for each in state.held if each.role in governed} - set(_wanted(state))


def _protections(state: _State) -> list[str]:
    return [
        f"ALTER TABLE {row['target']} ENABLE ROW LEVEL SECURITY"
        for row in state.objects
        if row["unprotected"]
    ]


def _revocations(state: _State) -> list[str]:
    return [
        f"REVOKE {what} ON {kind} {target} FROM {role} CASCADE"
        for (kind, target, role), what in _grouped(_excess(state))
    ]


def _grants(state: _State) -> list[str]:
    usage = [
        f"GRANT USAGE ON SCHEMA {state.cluster['schema']} TO {role}"
        for group in Group
        if (role := state.role_of(group)) in state.cluster["outside"]
    ]
    missing = set(_wanted(state)) - state.held
    return usage + [
        f"GRANT {what} ON {kind} {target} TO {role}"
        for (kind, target, role), what in _grouped(missing)
    ]


def _grouped(privileges: Iterable[_Privilege]) -> Iterator[tuple[tuple[str, str, str], str]]:
    """The privileges of each role on each object, as GRANT lists them."""
    groups = defaultdict[tuple[str, str, str], list[str]](list)
    for each in sorted(privileges):
        columns = f" ({each.column})" if each.column else ""
        groups[each.kind, each.target, each.role].append(each.command + columns)
    for key, commands in groups.items():
        yield key, ", ".join(commands)


def _new_policies(state: _State) -> Iterator[str]:
    for row in state.objects:
        for group, grants in TABLES.get(row["name"], {}).items():
            role, rows = state.role_of(group), OWN_ROWS if group is Group.USER else "true"
            for command in grants if role else ():
                name = f"{state.names.prefix}_{group}_{command.lower()}"
                if (row["target"], name) not in state.policies:
                    using = "" if command == "INSERT" else f" USING ({rows})"
                    check = f" WITH CHECK ({rows})" if command in ("INSERT", "UPDATE") else ""
                    yield (
                        f"CREATE POLICY {name} ON {row['target']} FOR {command} TO {role}"
                        f"{using}{check}"
                    )


def _publications(state: _State) -> list[str]:
    """Sessions reach Realtime with the columns that a user may select. The replica identity stays
    the primary key: a full one would not be covered by the columns, and every UPDATE would fail."""
    if not (state.cluster["unpublished"] and state.role_of(Group.USER)):
        return []
    schema, columns = state.cluster["schema"], ", ".join(USER_COLUMNS)
    return [f"ALTER PUBLICATION {PUBLICATION} ADD TABLE {schema}.generation_sessions ({columns})"]
