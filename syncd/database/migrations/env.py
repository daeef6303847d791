"""Alembic's environment: syncd hands its own connection over, inside the transaction of the upgrade."""

from alembic import context

from syncd.database.schema import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    version_table="syncd_schema",
    version_table_schema=connection.dialect.default_schema_name,
)
context.run_migrations()
