"""Bring the database of the settings to the newest revision: ``python -m migrations``."""

from store.database import Database
from store.settings import Settings

if __name__ == "__main__":
    Database(Settings().database).migrate()
