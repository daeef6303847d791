"""A site's own tables, as Prisma makes them, in a database of either kind."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from support.real_databases import Rows, connected, is_postgresql, query

POSTGRESQL = """
CREATE TABLE "{table}" (
    "id" TEXT NOT NULL,
    "billetwebId" TEXT,
    "billetwebUrl" TEXT,
    "placesTotal" INTEGER,
    "placesLeft" INTEGER,
    "isFull" BOOLEAN NOT NULL DEFAULT false,
    "manualOverride" BOOLEAN NOT NULL DEFAULT false,
    "startsAt" TIMESTAMP(3),
    "updatedAt" TIMESTAMP(3) NOT NULL,
    CONSTRAINT "{table}_pkey" PRIMARY KEY ("id")
)
"""
SQLITE = """
CREATE TABLE "{table}" (
    "id" TEXT NOT NULL PRIMARY KEY,
    "billetwebId" TEXT,
    "billetwebUrl" TEXT,
    "placesTotal" INTEGER,
    "placesLeft" INTEGER,
    "isFull" BOOLEAN NOT NULL DEFAULT false,
    "manualOverride" BOOLEAN NOT NULL DEFAULT false,
    "startsAt" DATETIME,
    "updatedAt" DATETIME NOT NULL
)
"""
MYSQL = """
CREATE TABLE "{table}" (
    "id" VARCHAR(191) NOT NULL,
    "billetwebId" VARCHAR(191) NULL,
    "billetwebUrl" VARCHAR(191) NULL,
    "placesTotal" INTEGER NULL,
    "placesLeft" INTEGER NULL,
    "isFull" BOOLEAN NOT NULL DEFAULT false,
    "manualOverride" BOOLEAN NOT NULL DEFAULT false,
    "startsAt" DATETIME(3) NULL,
    "updatedAt" DATETIME(3) NOT NULL,
    PRIMARY KEY ("id")
) DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci
"""
MAKING = {"sqlite": SQLITE, "postgresql": POSTGRESQL, "mysql": MYSQL}
# A trigger of the site's, and the function that PostgreSQL's needs.
REFUSING = {
    "sqlite": "WHEN NEW.\"billetwebId\" = '{key}' BEGIN SELECT RAISE(ABORT, '{why}'); END",
    "postgresql": "FOR EACH ROW EXECUTE FUNCTION refuse()",
    "mysql": "FOR EACH ROW IF NEW.\"billetwebId\" = '{key}' THEN"
    " SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = '{why}'; END IF",
}
FUNCTION = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN IF NEW."billetwebId" = '{key}' THEN RAISE EXCEPTION '{why}'; END IF; RETURN NEW; END $$
"""
LONG_AGO = "2020-01-02 03:04:05"


def make(url: str, table: str = "Formation", *, unique: bool = True) -> None:
    """Make the table."""
    (making,) = (text for kind, text in MAKING.items() if url.startswith(kind))
    query(url, making.format(table=table))
    if unique:
        query(url, f'CREATE UNIQUE INDEX "{table}_billetwebId_key" ON "{table}"("billetwebId")')


def refuse(url: str, key: str, why: str = "closed by the office") -> None:
    """Have a trigger refuse every change of the row with that key."""
    if url.startswith("postgresql"):
        query(url, FUNCTION.format(key=key, why=why))
    (refusing,) = (text for kind, text in REFUSING.items() if url.startswith(kind))
    query(url, f'CREATE TRIGGER refuse BEFORE UPDATE ON "Formation" {refusing.format(key=key, why=why)}')


@contextmanager
def held(url: str) -> Iterator[None]:
    """Hold the table as the site's own programs do: it can be read, and nobody else writes."""
    with connected(url) as other:
        lock = 'LOCK TABLE "Formation" IN EXCLUSIVE MODE'
        other.execute(f"BEGIN; {lock}" if is_postgresql() else "BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def add(url: str, key: str, table: str = "Formation", **values: Any) -> None:
    """Add a row with that key."""
    values = {"id": f"c{key}", "billetwebId": key, "updatedAt": LONG_AGO} | values
    columns = ", ".join(f'"{name}"' for name in values)
    marks = ", ".join("?" for _ in values)
    query(url, f'INSERT INTO "{table}" ({columns}) VALUES ({marks})', *values.values())


def rows(url: str, *columns: str, table: str = "Formation") -> Rows:
    """Return columns of every row, by their keys."""
    named = ", ".join(f'"{name}"' for name in columns)
    return query(url, f'SELECT {named} FROM "{table}" ORDER BY "billetwebId"')


def row(url: str, key: str, *columns: str) -> tuple[Any, ...]:
    """Return columns of one row."""
    named = ", ".join(f'"{name}"' for name in columns)
    (found,) = query(url, f'SELECT {named} FROM "Formation" WHERE "billetwebId" = ?', key)
    return found
