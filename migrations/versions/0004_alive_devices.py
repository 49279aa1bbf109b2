"""Remember until when a device counts as alive: its worker says so again and again."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("devices", sa.Column("alive_until", sa.DateTime(timezone=True)))


def downgrade() -> None:
    op.drop_column("devices", "alive_until")
