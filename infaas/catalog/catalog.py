"""The durable catalogue: everything that must survive the loss of every process and of the live store."""

from __future__ import annotations

from infaas.catalog.journals import JournalRecords
from infaas.catalog.made import MadeRecords
from infaas.catalog.profilings import ProfilingRecords
from infaas.catalog.registry import RegistryRecords
from infaas.catalog.schema import open_engine


class Catalog(RegistryRecords, MadeRecords, ProfilingRecords, JournalRecords):
    """Tasks, models, versions, variants, profiles, profilings, decisions and audit, in domain words.

    Blocking, and safe to share between threads: run its methods in one. All raise UnavailableError when the database
    cannot be reached; every write is one transaction and leaves its line in the audit log.
    """

    @classmethod
    def open(cls, url: str) -> Catalog:
        """Connect and bring the tables up to date. Raises SettingsError for a URL that cannot be used, UnavailableError
        when the database cannot be reached."""
        catalog = cls.at(url)
        try:
            catalog.prepare()
        except BaseException:
            catalog.close()
            raise
        return catalog

    @classmethod
    def at(cls, url: str) -> Catalog:
        """Connects with the first call, or the first one that finds the database there. Raises SettingsError for a URL
        that cannot be used."""
        return cls(open_engine(url))
