"""Alembic's environment: syncd hands its own connection over, inside the transaction of the upgrade."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    version_table="syncd_schema",
    version_table_schema=connection.dialect.default_schema_name,
)
context.run_migrations()
