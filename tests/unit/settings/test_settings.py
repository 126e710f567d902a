"""One file, variables over it, flags over both; every mistake is named, and no secret is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from infaas.errors import SettingsError
from infaas.settings import Settings, json_schema, load_settings, without_password


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "infaas.yaml"
    path.write_text(text)
    return path


def test_without_a_file_everything_has_its_default() -> None:
    settings = load_settings(environ={})
    assert settings == Settings()
    assert settings.redis_url == f"unix://{settings.state_dir}/redis.sock"
    assert settings.database_url == f"sqlite:///{settings.state_dir}/catalog.db"
    assert settings.repository_url == str(settings.state_dir / "artifacts")
    assert settings.token() is None


def test_variables_go_over_the_file_and_flags_over_both(tmp_path: Path) -> None:
    path = write(tmp_path, "controller: {http_port: 1, grpc_port: 2, metrics_port: 3}\nworker: {pool: file}\n")
    settings = load_settings(
        path,
        environ={"INFAAS_CONTROLLER__GRPC_PORT": "22", "INFAAS_CONTROLLER__METRICS_PORT": "33"},
        overrides={"controller": {"metrics_port": 333}},
    )
    ports = settings.controller.http_port, settings.controller.grpc_port, settings.controller.metrics_port
    assert ports == (1, 22, 333)
    assert settings.worker.pool == "file"


def test_the_file_is_found_by_its_variable(tmp_path: Path) -> None:
    path = write(tmp_path, "log: {level: debug}")
    assert load_settings(environ={"INFAAS_CONFIG": str(path)}).log.level == "debug"


def test_a_deeply_nested_key_has_a_variable(tmp_path: Path) -> None:
    environ = {"INFAAS_TASKS__digits__DEFAULTS__SLO_LATENCY_MS": "50", "INFAAS_POOLS__GPU__WORKERS": "2"}
    settings = load_settings(environ=environ)
    assert settings.tasks["digits"].defaults.slo_latency_ms == 50
    assert settings.pools["gpu"].workers == 2


def test_numbers_in_variables_stay_text_where_text_is_wanted() -> None:
    environ = {
        "INFAAS_WORKER__ID": "1234",
        "INFAAS_AUTH__TOKEN": "0123456789",
        "INFAAS_WORKER__POOL": "on",
        "INFAAS_STATE_DIR": "/tmp/2024-01-01",
    }
    settings = load_settings(environ=environ)
    assert settings.worker.id == "1234"
    assert settings.token() == "0123456789"
    assert settings.worker.pool == "on"
    assert settings.state_dir == Path("/tmp/2024-01-01")


def test_variables_that_are_no_settings_are_left_alone() -> None:
    environ = {
        "INFAAS_REDIS_SERVER": "/x", "INFAAS_TEST_TRITON": "1", "INFAAS_URL": "http://h", "INFAAS_TOKEN": "t",
        "PATH": "/bin",
    }  # fmt: skip
    assert load_settings(environ=environ) == Settings()


def test_an_empty_variable_unsets_a_key(tmp_path: Path) -> None:
    path = write(tmp_path, "store: {redis_url: 'redis://h'}")
    assert load_settings(path, environ={"INFAAS_STORE__REDIS_URL": ""}).store.redis_url is None


def test_an_unknown_key_is_an_error_that_names_it(tmp_path: Path) -> None:
    for path, environ in (
        (write(tmp_path, "controler: {http_port: 1}"), {}),
        (None, {"INFAAS_CONTROLLER__HTTP_PROT": "1"}),
        (None, {"INFAAS_NOPE": "1"}),
    ):
        with pytest.raises(SettingsError, match=r"unknown setting '(controler|controller.http_prot|nope)'"):
            load_settings(path, environ=environ)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "controller: {http_port: 99999, nope: 1}\nworker: {cores: 0}\nlog: {level: loud}\n")
    with pytest.raises(SettingsError) as error:
        load_settings(path, environ={})
    assert len(error.value.problems) == 4
    for words in ("controller.http_port", "99999", "controller.nope", "worker.cores", "log.level", "loud"):
        assert words in error.value.text


def test_an_inline_worker_and_several_processes_are_refused_with_both_values_and_the_fix() -> None:
    overrides = {"worker": {"inline": True}, "controller": {"processes": 3}, "auth": {"token": "open-sesame"}}
    with pytest.raises(SettingsError) as error:
        load_settings(environ={}, overrides=overrides)
    assert error.value.text == (
        "worker.inline is true and controller.processes is 3, but a worker lives in one process only: "
        "set worker.inline to false, or controller.processes to 1"
    )


@pytest.mark.parametrize(("inline", "processes"), [(True, 1), (False, 3)])
def test_an_inline_worker_goes_with_one_process_and_several_processes_with_workers_of_their_own(
    inline: bool, processes: int
) -> None:
    told = load_settings(environ={"INFAAS_WORKER__INLINE": str(inline), "INFAAS_CONTROLLER__PROCESSES": str(processes)})
    assert (told.worker.inline, told.controller.processes) == (inline, processes)


def test_a_variable_cannot_be_a_section_and_a_value() -> None:
    for environ in (
        {"INFAAS_CONTROLLER": "x", "INFAAS_CONTROLLER__HTTP_PORT": "1"},
        {"INFAAS_CONTROLLER__HTTP_PORT": "1", "INFAAS_CONTROLLER": "x"},
        {"INFAAS_CONTROLLER__HTTP_PORT__X": "1"},
    ):
        with pytest.raises(SettingsError, match=r"(?i)controller"):
            load_settings(environ=environ)


@pytest.mark.parametrize("text", ["- a list", "just text", "a: b: c", "{unclosed"])
def test_a_file_that_is_no_mapping_is_an_error_that_names_it(text: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"infaas\.yaml"):
        load_settings(write(tmp_path, text), environ={})


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="absent"):
        load_settings(tmp_path / "absent.yaml", environ={})


def test_a_file_that_is_not_text_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "infaas.yaml"
    path.write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(SettingsError, match=r"infaas\.yaml"):
        load_settings(path, environ={})


def test_an_empty_file_is_fine(tmp_path: Path) -> None:
    assert load_settings(write(tmp_path, "# nothing\n"), environ={}) == Settings()


def test_a_malformed_variable_is_an_error_that_names_it() -> None:
    with pytest.raises(SettingsError, match="INFAAS_CONTROLLER__HTTP_PORT"):
        load_settings(environ={"INFAAS_CONTROLLER__HTTP_PORT": "{unclosed"})


def test_secrets_are_not_shown() -> None:
    settings = load_settings(environ={"INFAAS_AUTH__TOKEN": "hunter2secret"})
    assert settings.token() == "hunter2secret"
    for shown in (repr(settings), str(settings), settings.model_dump_json()):
        assert "hunter2secret" not in shown


@pytest.mark.parametrize(
    ("environ", "overrides"),
    [
        ({"INFAAS_AUTH": "hunter2secret"}, {}),
        ({"INFAAS_AUTH__TOKEN__X": "hunter2secret"}, {}),
        ({}, {"auth": {"token": ["hunter2secret"]}}),
        ({"INFAAS_CONTROLLER__HOST": "{hunter2secret"}, {}),
        ({"INFAAS_STORE__REDIS_URL": "[redis://u:hunter2secret@h]"}, {}),
        ({"INFAAS_STORE": "redis://u:hunter2secret@h"}, {}),
    ],
)
def test_an_error_about_a_secret_does_not_show_it(environ: dict[str, str], overrides: dict[str, object]) -> None:
    with pytest.raises(SettingsError) as error:
        load_settings(environ=environ, overrides=overrides)
    assert "hunter2secret" not in error.value.text
    assert "hunter2secret" not in "".join(error.value.problems)


def test_a_broken_file_does_not_show_its_lines(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="line 2") as error:
        load_settings(write(tmp_path, 'auth:\n  token: "hunter2secret" x\n'), environ={})
    assert "hunter2secret" not in error.value.text


def test_a_token_may_look_like_anything() -> None:
    for token in ("{a", "[", "null", "0123", "a: b", "#x"):
        assert load_settings(environ={"INFAAS_AUTH__TOKEN": token}).token() == token


def test_a_mapping_or_a_list_may_be_given_whole() -> None:
    settings = load_settings(environ={"INFAAS_POOLS": "{gpu: {workers: 2}}", "INFAAS_WORKER__CORES": "null"})
    assert {name: pool.workers for name, pool in settings.pools.items()} == {"gpu": 2}


def test_the_token_comes_from_its_file_without_the_line_end(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("s3cret\n")
    assert load_settings(environ={"INFAAS_AUTH__TOKEN_FILE": str(path)}).token() == "s3cret"
    path.write_text(" \n")
    with pytest.raises(SettingsError, match="empty"):
        load_settings(environ={"INFAAS_AUTH__TOKEN_FILE": str(path)}).token()
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings(environ={"INFAAS_AUTH__TOKEN_FILE": str(tmp_path / "no")}).token()


def test_the_schema_knows_every_section_and_forbids_others() -> None:
    schema = json_schema()
    assert set(Settings.model_fields) == set(schema["properties"])
    assert schema["additionalProperties"] is False


PLACE = "postgresql://infaas@db/catalogue"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "postgresql://infaas@db/catalogue"),
        ({"INFAAS_CATALOG__PASSWORD": "a@b:/ %"}, "postgresql://infaas:a%40b%3A%2F%20%25@db/catalogue"),
        ({"INFAAS_CATALOG__PASSWORD": "0123"}, "postgresql://infaas:0123@db/catalogue"),
        ({"INFAAS_CATALOG__PASSWORD": "{x"}, "postgresql://infaas:%7Bx@db/catalogue"),
    ],
)
def test_the_databases_password_is_put_into_its_url(environ: dict[str, str], expected: str) -> None:
    assert load_settings(environ={"INFAAS_CATALOG__DATABASE_URL": PLACE, **environ}).database_url == expected


def test_the_databases_password_comes_from_its_file_without_the_line_end(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("s3cret\n")
    environ = {"INFAAS_CATALOG__DATABASE_URL": PLACE, "INFAAS_CATALOG__PASSWORD_FILE": str(path)}
    assert load_settings(environ=environ).database_url == "postgresql://infaas:s3cret@db/catalogue"
    path.write_text("")
    with pytest.raises(SettingsError, match=r"password_file .* is empty"):
        _ = load_settings(environ=environ).database_url


@pytest.mark.parametrize("url", [None, "postgresql://db/catalogue", "postgresql://a:b@db/catalogue"])
def test_a_password_without_a_place_is_refused_and_not_shown(url: str | None) -> None:
    environ = {"INFAAS_CATALOG__PASSWORD": "hunter2secret"} | ({"INFAAS_CATALOG__DATABASE_URL": url} if url else {})
    with pytest.raises(SettingsError, match=r"catalog\.(password|database_url)") as error:
        _ = load_settings(environ=environ).database_url
    assert "hunter2secret" not in error.value.text
    assert ":b@" not in error.value.text


def test_no_secret_is_shown_wherever_it_stands() -> None:
    environ = {
        "INFAAS_AUTH__TOKEN": "hunter2",
        "INFAAS_CATALOG__PASSWORD": "hunter2",
        "INFAAS_CATALOG__DATABASE_URL": "postgresql://u:hunter2/@x@db/c?password=hunter2",
        "INFAAS_STORE__REDIS_URL": "rediss://:hunter2@h:1/0",
    }
    shown = load_settings(environ=environ).shown()
    assert "hunter2" not in str(shown)
    assert shown["store"]["redis_url"] == "rediss://:[hidden]@h:1/0"
    assert shown["catalog"]["database_url"] == "postgresql://u:[hidden]@db/c?password=[hidden]"
    assert shown["controller"]["http_port"] == 8000


@pytest.mark.parametrize(
    ("docker", "said"),
    [
        ({"network": "host"}, "each worker needs an address of its own: name a network of the engine"),
        ({"network": "container:redis"}, "each worker needs an address of its own"),
        ({"volumes": ["artifacts"]}, "'artifacts' is not SOURCE:/PATH or SOURCE:/PATH:ro"),
        ({"volumes": ["./artifacts:/artifacts"]}, "is not SOURCE:/PATH"),
        ({"volumes": ["artifacts:/artifacts:rx"]}, "is not SOURCE:/PATH"),
        ({"user": "0:10001"}, "name a user that is not root"),
        ({"environment": {"INFAAS_WORKER__ID": "me"}}, "INFAAS_WORKER__ID differs from worker to worker"),
        ({"url": "/var/run/docker.sock"}, "fleet.docker.url"),
        ({"cluster": "a b"}, "fleet.docker.cluster"),
        ({"restart": "always"}, "unknown setting 'fleet.docker.restart'"),
    ],
)
def test_what_no_container_can_be_made_with_is_refused(docker: dict[str, object], said: str) -> None:
    overrides = {"store": {"redis_url": "redis://redis"}, "fleet": {"provider": "docker", "docker": docker}}
    with pytest.raises(SettingsError) as raised:
        load_settings(environ={}, overrides=overrides)
    assert said in raised.value.text


def test_workers_in_containers_need_a_store_that_they_reach() -> None:
    with pytest.raises(SettingsError, match=r"set store\.redis_url \(or INFAAS_STORE__REDIS_URL in fleet\.docker"):
        load_settings(environ={"INFAAS_FLEET__PROVIDER": "docker"})
    load_settings(environ={"INFAAS_FLEET__PROVIDER": "docker", "INFAAS_STORE__REDIS_URL": "redis://redis"})


def test_secrets_that_workers_are_told_are_not_shown() -> None:
    told = {"INFAAS_AUTH__TOKEN": "hidden-1", "AWS_SECRET_ACCESS_KEY": "hidden-2", "URL": "redis://:hidden-3@redis"}
    shown = load_settings(
        environ={}, overrides={"fleet": {"docker": {"environment": told | {"MODE": "shown"}}}}
    ).shown()
    assert shown["fleet"]["docker"]["environment"]["MODE"] == "shown"
    assert "hidden-" not in str(shown)


def test_a_mistake_beside_a_secret_does_not_show_it() -> None:
    environment = {"INFAAS_WORKER__ID": "me", "INFAAS_AUTH__TOKEN": "hidden-1", "URL": "redis://:hidden-2@redis"}
    with pytest.raises(SettingsError) as raised:
        load_settings(environ={}, overrides={"fleet": {"docker": {"environment": environment}}})
    assert "hidden-" not in raised.value.text


@pytest.mark.parametrize(
    "url", ["postgresql//a:5ecret/x@h/c", "postgresql:a:5ecret@h", "a:5ecret@h", "postgresql:/a:5ecret@h"]
)
def test_a_password_in_a_misspelt_url_is_not_shown_either(url: str) -> None:
    settings = load_settings(environ={"INFAAS_CATALOG__DATABASE_URL": url, "INFAAS_CATALOG__PASSWORD": "other"})
    with pytest.raises(SettingsError) as error:
        _ = settings.database_url
    assert "5ecret" not in error.value.text
    assert "5ecret" not in str(settings.shown())


@pytest.mark.parametrize(
    "url",
    ["unix://infaas@/run/redis.sock", "redis://infaas@h:6379/0", "rediss://h:1/0", "registry:5000/infaas@sha256:0f"],
)
def test_a_url_without_a_password_is_shown_as_it_is(url: str) -> None:
    assert without_password(url) == url
