"""Run the migrations on the connection that `Database.migrate` opened. Alembic imports this file."""

from alembic import context

from lipstream.serve.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
