"""Promises of the command line: what each command prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from qanat.base.version import __version__
from qanat.cli.init_files import Written, write_files
from qanat.cli.main import main
from qanat.cli.output import READER_GONE
from qanat.handshake.tokens import generate_token, parse_token
from tests.support.json_schemas import validator
from tests.support.machine.ports import unused_port
from tests.support.machine.processes import ROOT, SECONDS, TUNNEL, run_qanat

COMMANDS = ("server", "client", "init", "token", "fingerprint", "check", "schema", "demo")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write_files(tmp_path_factory.mktemp("pair"), name="client", url=None, listen=f"127.0.0.1:{unused_port()}")


def said_no(done: subprocess.CompletedProcess[str], code: int = 2) -> str:
    """The message of a refusal, which is one line, perhaps with a hint below it, and never a traceback."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    *_, last = done.stderr.splitlines()
    errors = [line for line in done.stderr.splitlines() if line.startswith("qanat: error: ")]
    assert len(errors) == 1
    assert last == errors[0] or last.startswith("hint: ")
    return done.stderr


# --- help, version, mistakes ------------------------------------------------------------------------


def test_version_names_the_program_and_its_version() -> None:
    done = run_qanat("--version")
    assert (done.returncode, done.stdout) == (0, f"qanat {__version__}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself_and_its_exit_codes(command: str) -> None:
    done = run_qanat(command, "--help")
    assert done.returncode == 0
    assert "exit codes:" in done.stdout
    assert all(f"  {code}  " in done.stdout for code in range(4))
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_the_help_lists_every_command() -> None:
    done = run_qanat("--help")
    assert all(f"    {command}" in done.stdout for command in COMMANDS)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("unknown",),
        ("server",),
        ("check",),
        ("server", "--conf", "x"),
        ("token", "--token", "x"),
        ("client", "-c", "x", "--token", "qanat1-x"),
        ("client", "-c", "x", "--log-format", "xml"),
        ("client", "ws://127.0.0.1/", "--lanes", "many"),
    ],
)
def test_a_mistake_in_the_usage_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    done = run_qanat(*arguments)
    assert done.returncode == 2
    assert "usage:" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "usage", "said"),
    [
        (("clinet",), "[--version] COMMAND", "unknown command 'clinet'; did you mean `client`?"),
        (("xyzzy",), "[--version] COMMAND", "unknown command 'xyzzy'; known are server, client, "),
        (("client", "--nmae", "x"), "client [-h]", "unknown option --nmae; did you mean `--name`?"),
        (("client", "--nmae=x"), "client [-h]", "unknown option --nmae; did you mean `--name`?"),
        (("client", "wss://x/y", "--tokn-file", "x"), "client [-h]", "--tokn-file; did you mean `--token-file`?"),
        (("client", "--token", "ABC"), "client [-h]", "unknown option --token; did you mean `--token-file`?"),
        (("token", "--xyzzy"), "token [-h]", "unknown option --xyzzy; see "),
        (("token", "more"), "token [-h]", "unrecognized arguments: more"),
        (("--verbose", "token"), "[--version] COMMAND", "unknown option --verbose; options stand behind the command"),
    ],
)
def test_a_slip_is_answered_with_what_is_nearest_and_that_commands_usage(
    arguments: tuple[str, ...], usage: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert usage in error
    assert said in error


@pytest.mark.parametrize("command", ["client", "server", "token"])
@pytest.mark.parametrize("joint", [" ", "="])
def test_a_token_on_the_command_line_is_not_repeated(
    command: str, joint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    token = generate_token()
    with pytest.raises(SystemExit):
        main([command, *f"--token{joint}{token}".split(" ")])
    assert token not in capsys.readouterr().err


@pytest.mark.parametrize("command", [("token",), ("--version",), ("check", "-c", "server.yaml")])
def test_small_commands_do_not_load_the_tunnel(command: tuple[str, ...], pair: Written) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", TUNNEL, *command],
        cwd=pair.server_yaml.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"qanat.server.server", "qanat.client.client", "websocket", "simple_websocket", "rich"}


def test_each_small_command_loads_what_it_needs_and_no_settings_for_the_others() -> None:
    for command in (("token",), ("--version",)):
        arguments = [sys.executable, "-X", "importtime", TUNNEL, *command]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
        loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert not loaded & {"yaml", "qanat.config.settings", "qanat.process.log", "cryptography"}


@pytest.mark.parametrize("program", [(TUNNEL,), ("-m", "qanat")])
def test_the_program_has_several_names(program: tuple[str, ...]) -> None:
    arguments = [sys.executable, *program, "token"]
    done = subprocess.run(arguments, cwd=TUNNEL.parent, capture_output=True, text=True, timeout=60)
    assert len(parse_token(done.stdout.strip())) == 32


# --- schema ---------------------------------------------------------------------------------------


def test_the_schema_is_printed_and_what_init_wrote_names_the_installed_copy(pair: Written) -> None:
    done = run_qanat("schema")
    assert (done.returncode, done.stderr) == (0, "")
    for path in (pair.server_yaml, pair.client_yaml):
        first, _, rest = path.read_text().partition("\n")
        url = first.removeprefix("# yaml-language-server: $schema=")
        assert Path(unquote(urlsplit(url).path)).read_text("utf-8") == done.stdout
        validator(json.loads(done.stdout)).validate(yaml.safe_load(rest))


# --- ssh's habits ---------------------------------------------------------------------------------


def test_what_ssh_needs_for_forwards_alone_is_taken_and_ignored(tmp_path: Path) -> None:
    assert "there is no token" in said_no(run_qanat("client", "-N", "ws://127.0.0.1:1/", cwd=tmp_path, HOME=tmp_path))


@pytest.mark.parametrize(
    ("flag", "words"), [("-f", "end the line with &"), ("-g", "0.0.0.0:PORT:HOST:HOSTPORT lets other machines in")]
)
def test_what_ssh_has_and_this_has_not_is_told_with_the_other_way(flag: str, words: str) -> None:
    assert words in said_no(run_qanat("client", flag, "ws://127.0.0.1:1/", "-L", "1:x:2"))


def test_a_services_name_is_told_to_be_none(tmp_path: Path) -> None:
    said = said_no(run_qanat("client", "ws://127.0.0.1:1/", "-L", "8080:db:postgresql", QANAT_TOKEN=generate_token()))
    assert "has a port that is not a number" in said
    assert "a service's name is not looked up" in said


def run_onto(stdout: int, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, TUNNEL, *arguments]
    given = {**os.environ, **environment}
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=SECONDS, env=given)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["token"], ["--help"], ["client", "--help"], ["--version"]])
def test_what_cannot_be_printed_is_said_and_is_no_success(arguments: list[str], unbuffered: str) -> None:
    with open("/dev/full", "wb") as full:
        done = run_onto(full.fileno(), *arguments, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 1
    assert "qanat: error: cannot write the output: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["schema"], ["server", "--help"]])
def test_a_reader_who_has_seen_enough_hears_nothing_more(arguments: list[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = run_onto(write_end, *arguments)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (READER_GONE, "")


def test_what_the_terminal_cannot_show_is_printed_in_escapes(tmp_path: Path) -> None:
    done = run_qanat("init", tmp_path / "b\u00fcro", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "b\\xfcro" in done.stdout


def test_a_relative_file_in_a_directory_that_was_removed_is_a_fault_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    assert main(["check", "-c", "server.yaml"]) == 2
    assert "server.yaml:1:1: cannot be read: No such file or directory" in capsys.readouterr().err


# --- token, fingerprint, init ---------------------------------------------------------------------


def test_each_token_is_new_and_whole() -> None:
    first, second = run_qanat("token").stdout, run_qanat("token").stdout
    assert first != second
    assert len(parse_token(first.strip())) == 32


def test_the_fingerprint_is_the_one_that_init_pinned(pair: Written) -> None:
    done = run_qanat("fingerprint", "-c", pair.server_yaml)
    assert (done.returncode, done.stdout) == (0, pair.fingerprint + "\n")
    assert pair.fingerprint in pair.client_yaml.read_text()


def test_asking_for_a_fingerprint_makes_no_key(tmp_path: Path) -> None:
    written = write_files(tmp_path, name="client", url=None, listen="127.0.0.1:8443")
    written.identity.unlink()
    assert "there is no server key" in said_no(run_qanat("fingerprint", "-c", written.server_yaml))
    assert not written.identity.exists()


def test_init_prints_the_nginx_block_and_what_to_type_next(tmp_path: Path) -> None:
    done = run_qanat("init", "--name", "office", "--url", "wss://example.com/in", cwd=tmp_path)
    assert done.returncode == 0
    assert "location = /in {" in done.stdout
    for name in ("config.example.yaml", "deploy/nginx.conf", "deploy"):
        (path,) = {Path(word.rstrip(").;:,")) for word in done.stdout.split() if word.rstrip(").;:,").endswith(name)}
        assert path.exists()
    python = "python3" if shutil.which("python3") == sys.executable else sys.executable
    assert f"{python} {TUNNEL} server -c server.yaml\n" in done.stdout
    assert f"{python} {TUNNEL} client -c client.yaml\n" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "client.yaml",
        "office.token",
        "server.key",
        "server.yaml",
    ]
    assert (tmp_path / "office.token").read_text().strip() not in done.stdout


def test_a_command_that_init_prints_can_be_pasted_whatever_the_directory_is_called(tmp_path: Path) -> None:
    done = run_qanat("init", "my dir", cwd=tmp_path)
    (line,) = (line for line in done.stdout.splitlines() if " server -c " in line)
    assert shlex.split(line)[-3:] == ["server", "-c", "my dir/server.yaml"]


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "client.yaml").write_text("precious")
    assert "client.yaml" in said_no(run_qanat("init", tmp_path))
    assert (tmp_path / "client.yaml").read_text() == "precious"


# --- check ----------------------------------------------------------------------------------------


def test_check_says_ok_of_what_init_wrote(pair: Written) -> None:
    for path in (pair.server_yaml, pair.client_yaml):
        done = run_qanat("check", "-c", path, cwd=Path("/"))
        assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


def test_check_takes_both_sections_in_one_file(pair: Written) -> None:
    both = pair.server_yaml.with_name("both.yaml")
    both.write_text(pair.server_yaml.read_text() + pair.client_yaml.read_text())
    assert run_qanat("check", "-c", both).stdout == "ok\n"


def test_check_refuses_the_keys_and_certificates_that_a_start_would_refuse(tmp_path: Path) -> None:
    written = write_files(tmp_path, name="client", url=None, listen="127.0.0.1:8443")
    encrypted = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    for name, content in (("key.pem", encrypted), ("cert.pem", b"no certificate")):
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o600)
    pair = "  tls: {certificate: cert.pem, key: key.pem}\n"
    for path in (written.server_yaml, written.client_yaml):
        plain = path.read_text()
        path.write_text(plain.replace("ws://", "wss://") + pair)
        assert "the key must not be encrypted" in said_no(run_qanat("check", "-c", path))
        path.write_text(plain)
    written.identity.write_bytes(encrypted)
    assert "is not an unencrypted private key" in said_no(run_qanat("check", "-c", written.server_yaml))


def test_check_reports_the_faults_of_both_sections_at_once(pair: Written) -> None:
    both = pair.server_yaml.with_name("faulty.yaml")
    server = pair.server_yaml.read_text().replace("identity:", "identiti:")
    client = pair.client_yaml.read_text().replace("url:", "uri:").replace("to:", "too:")
    both.write_text(server + client)
    errors = said_no(run_qanat("check", "-c", both))
    faults = [line for line in errors.splitlines() if line.startswith(f"{both}:")]
    assert len(faults) >= 3
    line_of_fault = 1 + server.split("\n").index(next(line for line in server.split("\n") if "identiti" in line))
    assert any(fault.startswith(f"{both}:{line_of_fault}:3:") and "identity" in fault for fault in faults)


def test_a_file_that_is_not_there_is_said_to_be_so(tmp_path: Path) -> None:
    for command in ("check", "server", "client", "fingerprint"):
        assert "missing.yaml" in said_no(run_qanat(command, "-c", tmp_path / "missing.yaml"))


# --- client from a URL ----------------------------------------------------------------------------


def test_a_client_needs_a_file_or_a_url() -> None:
    assert "either -c FILE or a URL" in said_no(run_qanat("client"))
    for urls in (("ws://127.0.0.1/",), ("ws://127.0.0.1/", "ws://127.0.0.2/")):
        assert "either -c FILE or a URL" in said_no(run_qanat("client", *urls, "-c", "x"))


@pytest.mark.parametrize("option", ["-L", "-R", "--name", "--token-file", "--fingerprint", "--ca-file", "--transport"])
def test_options_for_a_url_do_not_go_with_a_file(option: str, pair: Written) -> None:
    errors = said_no(run_qanat("client", "-c", pair.client_yaml, option, "x"))
    assert f"{option} goes with a URL" in errors


def test_lanes_do_not_go_with_a_file_either_however_few(pair: Written) -> None:
    for lanes in ("0", "4"):
        assert "--lanes goes with a URL" in said_no(run_qanat("client", "-c", pair.client_yaml, "--lanes", lanes))


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("ftp://example.com/", "-L", "1:x:2"), "ftp"),
        (("-L", "1:x:2", "ws://127.0.0.1:1/tunnel", "ftp://example.com/"), "ftp"),
        (("ws://127.0.0.1:1/tunnel", "--transport", "grpc", "--transport", "http2,quic"), "--transport"),
        (("ws://127.0.0.1:1/tunnel", "--lanes", "17"), "--lanes"),
        (("ws://127.0.0.1:1/tunnel", "-L", "nonsense"), "-L"),
        (("ws://127.0.0.1:1/tunnel", "-R", "1:2"), "-R"),
        (("ws://127.0.0.1:1/tunnel", "-L", "1:x:2", "--fingerprint", "SHA256:short"), "fingerprint"),
        (("ws://127.0.0.1:1/tunnel", "-L", "1:x:2", "--name", "a b"), "name"),
        (("ws://127.0.0.1:1/tunnel", "-L", "1:x:2", "--token-file", "missing.token"), "missing.token"),
    ],
)
def test_options_that_cannot_work_are_refused(arguments: tuple[str, ...], fault: str, tmp_path: Path) -> None:
    assert fault in said_no(run_qanat("client", *arguments, cwd=tmp_path, HOME=tmp_path, QANAT_TOKEN=generate_token()))


def test_a_client_without_a_token_is_told_where_to_put_it(tmp_path: Path) -> None:
    errors = said_no(run_qanat("client", "ws://127.0.0.1:1/tunnel", "-L", "1:x:2", cwd=tmp_path, HOME=tmp_path))
    assert "--token-file" in errors
    assert "QANAT_TOKEN" in errors


def test_a_token_that_is_none_is_refused_without_repeating_it(tmp_path: Path) -> None:
    wrong = generate_token()[:-1] + "!"
    done = run_qanat("client", "ws://127.0.0.1:1/tunnel", "-L", "1:x:2", cwd=tmp_path, HOME=tmp_path, QANAT_TOKEN=wrong)
    assert wrong[7:20] not in said_no(done)


WITHOUT_SOCKS = """
import sys
sys.modules["python_socks"] = None
from qanat.cli import main
sys.exit(main(["client", "ws://127.0.0.1:1/tunnel", "-L", "0:127.0.0.1:9"]))
"""


def test_a_package_that_is_missed_once_it_runs_is_named_too() -> None:
    environment = {**os.environ, "QANAT_TOKEN": generate_token()}
    command = [sys.executable, "-c", WITHOUT_SOCKS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, env=environment)
    assert "the Python package 'python_socks' is not installed for" in said_no(done, 1)


def test_without_its_packages_it_says_which_python_has_them() -> None:
    done = subprocess.run(
        [sys.executable, "-S", TUNNEL, "check", "-c", "config.example.yaml"],
        cwd=TUNNEL.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "is not installed for" in done.stderr
    assert ".venv/bin/python" in done.stderr
    assert "Traceback" not in done.stderr
