"""Whole systems for the end-to-end tests: each is brought up once and paid for once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from running_system import Scans, System, read_scans, running

from infaas.cli.output import console
from infaas.client import Client
from infaas.demo import builds, family


@pytest.fixture(scope="session")
def scans() -> Scans:
    return read_scans()


@pytest.fixture
def quick_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Up, empty, and content with few measurements: for a test that everybody runs all the time."""
    settings = {"INFAAS_GENERATOR__PROFILE_BUDGET_S": "0.05", "INFAAS_GENERATOR__MAX_BATCH_SIZE": "4"}
    with running(tmp_path_factory.mktemp("e2e"), settings) as system:
        yield system


@pytest.fixture
def fresh_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Up, and empty."""
    with running(tmp_path_factory.mktemp("e2e")) as system:
        yield system


@pytest.fixture(scope="module")
def fresh_module_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Up, and empty at the beginning of a module."""
    with running(tmp_path_factory.mktemp("e2e")) as system:
        yield system


@pytest.fixture(scope="session")
def family_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """All eight digit classifiers and `simple`, registered by the command line. Tests leave it as they found it."""
    settings = {"INFAAS_CONTROLLER__MAX_BODY_BYTES": str(2**20)}
    with running(tmp_path_factory.mktemp("e2e"), settings) as system:
        for model in family.FAMILY:
            system.register(model, "--detach")
        system.register_simple("--detach")
        with Client(system.endpoints.url) as client:
            builds.wait_for_all(client, [(model.name, 1) for model in client.models()], console(is_error=True))
        yield system
