"""What `doctor --proxy-config` finds in files, and that its patch cures them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from qanat.base.errors import UsageError
from qanat.doctor.proxy_config import nginx
from qanat.doctor.proxy_config.fault import Tunnel
from qanat.doctor.proxy_config.read import Examined, read_file
from tests.support.broken_proxies import BROKEN as FILES
from tests.support.broken_proxies import Broken
from tests.support.machine.certificates import Authority
from tests.support.machine.deployed import DEPLOY
from tests.support.machine.ports import unused_port
from tests.support.machine.processes import run_qanat
from tests.support.machine.programs import require_program
from tests.support.machine.web import HOST

RECIPES = {
    "nginx.conf": "nginx",
    "haproxy.cfg": "HAProxy",
    "haproxy-two-servers.cfg": "HAProxy",
    "apache.conf": "Apache",
    "Caddyfile": "Caddy",
    "nghttpx-websocket.conf": "nghttpx",
    "nghttpx-http2.conf": "nghttpx",
}

BROKEN = [  # the recipe, what is made wrong in it, the code, and what stands in the line that is named
    ("nginx.conf", [("        proxy_set_header Upgrade $http_upgrade;", "")], "upgrade-dropped", "proxy_pass"),
    ("nginx.conf", [("        proxy_http_version 1.1;", "")], "upgrade-dropped", "proxy_pass"),
    ("nginx.conf", [('Connection "upgrade"', "Connection close")], "upgrade-dropped", "proxy_pass"),
    ("nginx.conf", [("listen 443 ssl http2;", "listen 443 ssl;")], "http2-off", "listen 443 ssl"),
    ("nginx.conf", [("client_max_body_size 0;", "client_max_body_size 8m;")], "body-limit", "client_max_body_size"),
    ("nginx.conf", [("        client_max_body_size 0;", "")], "body-limit", "proxy_pass"),
    ("nginx.conf", [("proxy_read_timeout 60s;", "proxy_read_timeout 10s;")], "idle-cut", "proxy_read_timeout"),
    ("nginx.conf", [("grpc_read_timeout 60s;", "grpc_read_timeout 5s;")], "idle-cut", "grpc_read_timeout"),
    (
        "nginx.conf",
        [("proxy_pass http://127.0.0.1:8443;", "proxy_pass http://127.0.0.1:8443/;")],
        "wrong-path",
        "8443/",
    ),
    ("nginx.conf", [("location = /tunnel", "location = /tunel")], "wrong-path", "server {"),
    ("haproxy.cfg", [(" alpn h2,http/1.1", "")], "http2-off", "bind"),
    ("haproxy.cfg", [(" proto h2 ws h1", "")], "http2-not-to-server", "server qanat"),
    ("haproxy.cfg", [(" ws h1", "")], "upgrade-dropped", "server qanat"),
    ("haproxy.cfg", [("    option forwardfor", "    option http-buffer-request")], "request-held", "buffer-request"),
    ("haproxy.cfg", [("    option forwardfor", "    timeout tunnel 10s")], "idle-cut", "timeout tunnel"),
    ("haproxy.cfg", [("path /tunnel", "path /other")], "wrong-path", "use_backend"),
    ("apache.conf", [("ProxyPass /tunnel h2c://", "ProxyPass /tunnel http://")], "request-held", "ProxyPass"),
    ("apache.conf", [("    RewriteRule ^/tunnel$ ws://127.0.0.1:8443/tunnel [P]", "")], "upgrade-dropped", "ProxyPass"),
    ("apache.conf", [("    RequestReadTimeout body=0", "")], "idle-cut", "ProxyPass"),
    ("apache.conf", [("    Protocols h2 http/1.1", "")], "http2-off", "<VirtualHost"),
    ("apache.conf", [("    SSLEngine on", "    SSLEngine on\n    LimitRequestBody 1000000")], "body-limit", "LimitReq"),
    ("Caddyfile", [("\t\treverse_proxy h2c://127.0.0.1:8443", "")], "http2-not-to-server", "reverse_proxy"),
    ("Caddyfile", [("\t\treverse_proxy @websocket 127.0.0.1:8443", "")], "upgrade-dropped", "reverse_proxy"),
    ("nghttpx-http2.conf", [("add-x-forwarded-for=yes", "backend-read-timeout=10s")], "idle-cut", "read-timeout"),
    ("nghttpx-websocket.conf", [("8443;;proto", "8443;/other;proto")], "wrong-path", "backend="),
]

NGINX = """\
server {
    listen 443;
    location %s {
        proxy_pass http://127.0.0.1:8443%s;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection "upgrade";
        proxy_http_version 1.1;
    }
}
"""


def broken(directory: Path, recipe: str, changes: list[tuple[str, str]]) -> Path:
    text = (DEPLOY / recipe).read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file = directory / recipe
    file.write_text(text)
    return file


def patched(found: Examined, directory: Path) -> Examined:
    """The same file once more, after patch(1) has applied what was printed."""
    require_program("patch")
    subprocess.run(["patch", "-p0", "-s", found.file], input=found.patch, text=True, check=True, cwd=directory)
    return read_file(Path(found.file)).examine(Tunnel())


@pytest.mark.parametrize(("name", "product"), RECIPES.items())
def test_nothing_is_wrong_with_what_we_ship(name: str, product: str) -> None:
    found = read_file(DEPLOY / name).examine(Tunnel())
    assert (found.product, found.faults, found.patch) == (product, (), "")


@pytest.mark.parametrize(("recipe", "changes", "code", "where"), BROKEN)
def test_a_fault_is_named_with_its_line_and_the_patch_cures_it(
    recipe: str, changes: list[tuple[str, str]], code: str, where: str, tmp_path: Path
) -> None:
    file = broken(tmp_path, recipe, changes)
    found = read_file(file).examine(Tunnel())
    lines = file.read_text().splitlines()
    assert [where in lines[fault.line - 1] for fault in found.faults if fault.code == code] == [True]
    assert not patched(found, tmp_path).faults


@pytest.mark.parametrize("one", FILES, ids=lambda one: one.name)
def test_what_people_write_for_a_web_site_is_cured_in_one_patch(one: Broken, tmp_path: Path) -> None:
    file = tmp_path / one.program
    file.write_text(one.text.replace("@SERVER@", "127.0.0.1:8443").replace("@SERVER_PORT@", "8443"))
    found = read_file(file).examine(Tunnel())
    assert {fault.code for fault in found.faults} & one.codes
    assert not patched(found, tmp_path).faults


REWRITES = [  # what leads the tunnel's path to another one at the server, and that path in the URL
    ("nginx.conf", NGINX % ("= /hidden", "/tunnel"), "/hidden"),
    ("nginx.conf", NGINX % ("/public/", "/"), "/public/tunnel"),
    ("nginx.conf", NGINX % ("/tunnel", "/"), "/tunnel"),
    ("Caddyfile", "a {\n\thandle_path /tunnel* {\n\t\treverse_proxy 127.0.0.1:8443\n\t}\n}\n", "/tunnel"),
    ("Caddyfile", "a {\n\thandle_path /x/* {\n\t\treverse_proxy 127.0.0.1:8443\n\t}\n}\n", "/x/tunnel"),
]


@pytest.mark.parametrize(("name", "text", "path"), REWRITES)
def test_a_rewrite_that_leads_to_the_server_is_no_fault(name: str, text: str, path: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(text)
    found = read_file(file).examine(Tunnel(path, found=True))
    assert "wrong-path" not in {fault.code for fault in found.faults}
    assert not re.search("^-.*(proxy_pass|handle_path)", found.patch, re.M)


@pytest.mark.parametrize(("name", "text", "path"), REWRITES)
def test_a_rewrite_is_named_where_no_tunnel_answers(name: str, text: str, path: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(text)
    known = read_file(file)
    (fault,) = (fault for fault in known.examine(Tunnel(path, found=False)).faults if fault.code == "wrong-path")
    assert bool(fault.edits) is (path == "/tunnel")  # else nobody knows what the server serves
    unknown = [fault.code for fault in known.examine(Tunnel(path)).faults]
    assert ("wrong-path" in unknown) is (path == "/tunnel")


def test_a_path_that_was_written_on_purpose_is_left_to_who_wrote_it(tmp_path: Path) -> None:
    file = tmp_path / "site.conf"
    file.write_text(NGINX % ("= /tunnel", "/other"))
    assert "wrong-path" not in {fault.code for fault in read_file(file).examine(Tunnel()).faults}
    file = tmp_path / "Caddyfile"
    file.write_text("a {\n\thandle_path /tunnel {\n\t\trewrite * /o\n\t\treverse_proxy 127.0.0.1:8443\n\t}\n}\n")
    assert "wrong-path" not in {fault.code for fault in read_file(file).examine(Tunnel()).faults}


def test_what_the_measurement_refutes_is_neither_named_nor_changed(tmp_path: Path) -> None:
    file = broken(tmp_path, "nginx.conf", [("        proxy_http_version 1.1;", "        deny 10.0.0.1;")])
    codes = {fault.code for fault in read_file(file).examine(Tunnel()).faults}
    assert codes == {"upgrade-dropped", "forbidden"}
    found = read_file(file).examine(Tunnel(found=True, refuted=frozenset(codes)))
    assert (found.faults, found.patch) == ((), "")


@pytest.mark.parametrize(
    ("location", "behind", "path", "made"),
    [
        ("= /hidden", "/tunnel", "/hidden", "rewrite ^ /tunnel break;"),
        ("/public/", "/", "/public/tunnel", 'rewrite "^/public/(.*)$" "/$1" break;'),
    ],
)
def test_what_comes_over_http2_is_led_where_proxy_pass_leads(
    location: str, behind: str, path: str, made: str, tmp_path: Path
) -> None:
    file = tmp_path / "site.conf"
    file.write_text((NGINX % (location, behind)).replace("listen 443", "listen 443 ssl http2"))
    found = read_file(file).examine(Tunnel(path, found=True))
    assert "http2-not-to-server" in {fault.code for fault in found.faults}
    assert f"+            {made}" in found.patch.splitlines()


def test_apache_leads_a_websocket_where_proxypass_leads(tmp_path: Path) -> None:
    file = tmp_path / "apache.conf"
    file.write_text("<VirtualHost *:443>\n    ProxyPass /hidden h2c://127.0.0.1:8443/tunnel\n</VirtualHost>\n")
    found = read_file(file).examine(Tunnel("/hidden"))
    assert "+    RewriteRule ^/hidden$ ws://127.0.0.1:8443/tunnel [P]" in found.patch.splitlines()


CROWDED = [  # several directives on a line, and what the patch has to keep there
    ("    location = /tunnel { proxy_pass http://127.0.0.1:1/tunnel; }\n", ["location = /tunnel {"]),
    ("    location /tunnel { proxy_pass http://127.0.0.1:1; proxy_read_timeout 5s; } # a }\n", ["# a }"]),
    ('    location = /tunnel { deny 10.0.0.1; add_header A "b;}"; proxy_pass http://127.0.0.1:1; }\n', ['A "b;}";']),
    ("    location = /tunnel {\n\tproxy_set_header A b; proxy_pass http://127.0.0.1:1;}\n", ["proxy_set_header A b;"]),
    ("    location = /a { return 404; } location / { proxy_pass http://127.0.0.1:1; }\n", ["location = /a {", "404"]),
    ("    location = /a { proxy_pass http://127.0.0.1:1; }\n", ["    location = /a {", "    location = /tunnel {"]),
    ("    location = /tunnel { grpc_pass grpc://127.0.0.1:1; }\n", ["grpc_pass grpc://127.0.0.1:1;"]),
]


@pytest.mark.parametrize("in_one_line", [False, True])
@pytest.mark.parametrize(("location", "kept"), CROWDED)
def test_what_is_added_to_a_block_in_one_line_stands_in_that_block(
    location: str, kept: list[str], in_one_line: bool, tmp_path: Path
) -> None:
    issued = Authority(tmp_path).issue(HOST)
    text = (
        f"server {{\n    listen 127.0.0.1:{unused_port()}; listen 127.0.0.1:{unused_port()} ssl;\n"
        f"    ssl_certificate {issued.certificate}; ssl_certificate_key {issued.key};\n{location}}}\n"
    )
    file = tmp_path / "site.conf"
    file.write_text(" ".join(text.split("\n")) + "\n" if in_one_line and "#" not in text else text)
    before = nginx.parse(file.read_text())
    found = read_file(file).examine(Tunnel())
    assert found.faults
    assert not patched(found, tmp_path).faults
    after = nginx.parse(file.read_text())
    ((server, then),) = zip(before.find("server"), after.find("server"), strict=True)
    assert {one.name for one in then.block or []} == {one.name for one in server.block or []}
    assert then.find("listen")[0].words == server.find("listen")[0].words
    assert all(part.strip() in file.read_text() for part in kept)
    main = tmp_path / "nginx.conf"
    main.write_text(f"pid {tmp_path}/pid; events {{ }} http {{ access_log off; include {file}; }}\n")
    subprocess.run([require_program("nginx"), "-t", "-q", "-e", "stderr", "-c", main], check=True)


@pytest.mark.parametrize(
    "location",
    [
        "    location = /tunnel {\n        proxy_pass\n            http://127.0.0.1:1/;\n    }\n",
        "    location = /tunnel {\n        proxy_set_header\n            Connection\n            close;\n"
        "        proxy_pass http://127.0.0.1:1; proxy_read_timeout\n 5s; client_max_body_size\n\n 1m;\n    }\n",
        "    location = /tunnel {\n        deny\n 10.0.0.1;\n        proxy_pass http://127.0.0.1:1;\n    }\n",
        "    location = /tunnel {\n        grpc_pass\n            grpc://127.0.0.1:1\n        ;\n    }\n",
        "    location = /tunnel {\n        proxy_read_timeout # much\n # more\n 5s; # seconds\n"
        '        auth_basic\n            "door #1";\n        proxy_pass http://127.0.0.1:1;\n    }\n',
        "    location = /tunnel { proxy_read_timeout\n 5s; proxy_pass http://127.0.0.1:1; }\n",
    ],
)
def test_a_directive_over_several_lines_is_changed_as_a_whole(location: str, tmp_path: Path) -> None:
    issued = Authority(tmp_path).issue(HOST)
    file = tmp_path / "site.conf"
    file.write_text(
        f"server {{\n    listen\n        127.0.0.1:{unused_port()}\n        ssl;\n"
        f"    ssl_certificate {issued.certificate}; ssl_certificate_key {issued.key};\n{location}}}\n"
    )
    found = read_file(file).examine(Tunnel())
    assert found.faults
    assert not patched(found, tmp_path).faults
    main = tmp_path / "nginx.conf"
    main.write_text(f"pid {tmp_path}/pid; events {{ }} http {{ access_log off; include {file}; }}\n")
    subprocess.run([require_program("nginx"), "-t", "-q", "-e", "stderr", "-c", main], check=True)


def test_a_file_with_nothing_to_change_keeps_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "site.conf"
    file.write_text(" ".join((NGINX % ("= /tunnel", "")).split("\n")).replace("listen 443;", "client_max_body_size 0;"))
    assert read_file(file).examine(Tunnel()).patch == ""


OTHERS = [  # what belongs to other sites, beside the tunnel's part that is as it should be
    (
        "nginx.conf",
        "server {\n    listen 80;\n    location / {\n        return 301 https://$host$request_uri;\n    }\n}\n"
        "server {\n    listen 80;\n    location /shop {\n        proxy_pass http://127.0.0.1:1;\n    }\n}\n",
    ),
    ("haproxy.cfg", "\nbackend shop\n    server shop 127.0.0.1:1\n"),
    ("nghttpx-http2.conf", "backend=127.0.0.1,8443;/tunnel;proto=h2\nbackend=127.0.0.1,1;/shop/\n"),
]


@pytest.mark.parametrize(("recipe", "other"), OTHERS)
def test_what_is_of_other_sites_is_left_alone(recipe: str, other: str, tmp_path: Path) -> None:
    file = tmp_path / recipe
    lines = (DEPLOY / recipe).read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not line.startswith("backend=")) + other)
    assert read_file(file).examine(Tunnel()).faults == ()


def test_a_path_that_is_led_to_the_usual_one_is_the_tunnels(tmp_path: Path) -> None:
    file = tmp_path / "site.conf"
    site = "    location / {\n        root /var/www;\n    }\n}\n"
    file.write_text((NGINX % ("= /hidden", "/tunnel")).removesuffix("}\n") + site)
    found = read_file(file).examine(Tunnel())
    assert [fault.code for fault in found.faults] == ["body-limit"]
    assert not patched(found, tmp_path).faults


def test_everything_at_once_is_cured_in_one_patch(tmp_path: Path) -> None:
    file = tmp_path / "site.conf"
    file.write_text(
        "server {\n    listen 443 ssl;\n    server_name a;\n    client_max_body_size 1m;\n"
        "    location / {\n        proxy_pass http://127.0.0.1:8443;\n        proxy_read_timeout 10s;\n    }\n}\n"
    )
    found = read_file(file).examine(Tunnel())
    codes = {fault.code for fault in found.faults}
    assert codes == {"http2-off", "upgrade-dropped", "http2-not-to-server", "body-limit", "idle-cut"}
    assert not patched(found, tmp_path).faults


def test_the_command_prints_file_line_and_patch_and_changes_nothing(tmp_path: Path) -> None:
    file = broken(tmp_path, "haproxy.cfg", [(" alpn h2,http/1.1", "")])
    before = file.read_text()
    done = run_qanat("doctor", "--proxy-config", file)
    assert done.returncode == 4
    assert f"{file}:17: http2-off: " in done.stdout
    assert "+    bind :443 ssl crt /etc/haproxy/tunnel.example.com.pem alpn h2,http/1.1" in done.stdout
    assert file.read_text() == before


def test_what_is_no_proxy_configuration_is_said(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    file.write_text("buy milk\n")
    with pytest.raises(UsageError, match="is not known as a configuration"):
        read_file(file).examine(Tunnel())
