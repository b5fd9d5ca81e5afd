"""The exact setting for each cause and product: what a new user writes where, to the letter.  Pure.

`{path}` is the tunnel's path, `{name}` the server's, and 127.0.0.1:8443 stands for the address of Qanat's server, as
in the files of deploy/, from which these are taken.  docs/DOCTOR.md has the same in its sections.
"""

from __future__ import annotations

from collections.abc import Collection

from qanat.doctor.products import APACHE, CADDY, CLOUDFLARE, HAPROXY, NGHTTPX, NGINX, SQUID
from qanat.doctor.report import Setting

_NGINX_WEBSOCKET = """\
in the `location` of {path}:
    proxy_http_version 1.1;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection "upgrade";"""
_NGINX_GRPC = """\
in the `server` block:
    listen 443 ssl http2;
in the `location` of {path}, beside its proxy_pass:
    if ($server_protocol = "HTTP/2.0") {{
        grpc_pass grpc://127.0.0.1:8443;
    }}
    client_max_body_size 0;"""
_NGINX_TIMES = """\
in the `location` of {path}:
    proxy_read_timeout 300s;
    proxy_send_timeout 300s;
    grpc_read_timeout 300s;
    grpc_send_timeout 300s;
    client_body_timeout 300s;"""
_HAPROXY_SERVER = """\
in the backend of {path}:
    server qanat 127.0.0.1:8443 proto h2 ws h1"""
_APACHE_WEBSOCKET = """\
in the virtual host (a2enmod proxy proxy_http proxy_wstunnel rewrite):
    RewriteEngine on
    RewriteCond %{{HTTP:Upgrade}} =websocket [NC]
    RewriteRule ^{path}$ ws://127.0.0.1:8443{path} [P]"""
_APACHE_H2C = """\
in the virtual host (a2enmod http2 proxy proxy_http2), in place of its ProxyPass to http://:
    ProxyPass {path} h2c://127.0.0.1:8443{path}
    RequestReadTimeout body=0"""
_CADDY = """\
in the site's block:
    route {path} {{
        @websocket header Upgrade websocket
        reverse_proxy @websocket 127.0.0.1:8443
        reverse_proxy h2c://127.0.0.1:8443
    }}"""
_CADDY_NO_BUFFERS = "in its `reverse_proxy` blocks: take out request_buffers, response_buffers and flush_interval"

SETTINGS: dict[str, dict[str, str]] = {
    "upgrade-dropped": {
        NGINX: _NGINX_WEBSOCKET,
        HAPROXY: f"{_HAPROXY_SERVER}\nand no `http-request del-header Upgrade` or `Connection` on the way there",
        APACHE: _APACHE_WEBSOCKET,
        CADDY: _CADDY,
        NGHTTPX: "backend=127.0.0.1,8443;;proto=http/1.1",
        SQUID: "http_upgrade_request_protocols WebSocket allow all",
        CLOUDFLARE: "Network, WebSockets: on",
    },
    "black-hole": {
        NGINX: _NGINX_TIMES,
        HAPROXY: "in `defaults` or the backend:\n    timeout tunnel 1h",
        APACHE: _APACHE_WEBSOCKET,
        CADDY: _CADDY,
        NGHTTPX: "backend=127.0.0.1,8443;;proto=http/1.1",
        SQUID: "http_upgrade_request_protocols WebSocket allow all",
        CLOUDFLARE: "Network, WebSockets: on; Security, WAF: skip rules for {path}",
    },
    "request-held": {
        NGINX: _NGINX_GRPC,
        HAPROXY: f"no option http-buffer-request\n{_HAPROXY_SERVER}",
        APACHE: _APACHE_H2C,
        CADDY: f"{_CADDY}\n{_CADDY_NO_BUFFERS}",
        NGHTTPX: "backend=127.0.0.1,8443;;proto=h2",
        SQUID: "it cannot pass an open request on over HTTP/2: use `transport: websocket` with\n"
        "http_upgrade_request_protocols WebSocket allow all",
        CLOUDFLARE: "Rules, Configuration Rules, for {path}: request body buffering None; or\n"
        "`transport: grpc` with Network, gRPC: on",
    },
    "answer-held": {
        NGINX: "in the `location` of {path}:\n    proxy_buffering off;\n    proxy_http_version 1.1;\n"
        "    gzip off;\nand no `proxy_ignore_headers X-Accel-Buffering`",
        HAPROXY: "in the backend of {path}:\n    option http-no-delay\nand no `filter compression` or cache there",
        APACHE: f"{_APACHE_H2C}\nand SetEnv no-gzip 1, no mod_cache and no mod_deflate for {{path}}",
        CADDY: f"{_CADDY_NO_BUFFERS}; no `encode` for {{path}}",
        NGHTTPX: "response-header-field-buffer-size stays as it is; take out any script that buffers "
        "(mruby-file=...), and let the backend be:\n    backend=127.0.0.1,8443;;proto=h2",
        SQUID: "cache deny all\nand no ICAP or eCAP service (adaptation_access ... deny all)",
        CLOUDFLARE: "Rules, Configuration Rules, for {path}: response body buffering None; Caching: bypass",
    },
    "http2-off": {
        NGINX: "in the `server` block:\n    listen 443 ssl http2;",
        HAPROXY: "in the frontend:\n    bind :443 ssl crt FILE alpn h2,http/1.1",
        APACHE: "in the virtual host (a2enmod http2):\n    Protocols h2 http/1.1",
        CADDY: "in the global options:\n    servers {{\n        protocols h1 h2\n    }}",
        NGHTTPX: "npn-list=h2,http/1.1",
        SQUID: "it does not speak HTTP/2: use `transport: websocket` or `split`",
        CLOUDFLARE: "Speed, Protocol optimization, HTTP/2: on",
    },
    "http2-not-to-server": {
        NGINX: _NGINX_GRPC,
        HAPROXY: _HAPROXY_SERVER,
        APACHE: _APACHE_H2C,
        CADDY: _CADDY,
        NGHTTPX: "backend=127.0.0.1,8443;;proto=h2",
        SQUID: "it does not speak HTTP/2: use `transport: websocket` or `split`",
        CLOUDFLARE: "Network, gRPC: on, and `transport: grpc`; the origin listens on 443 with TLS and offers h2",
    },
    "grpc-refused": {
        NGINX: f"{_NGINX_GRPC}\nand no rule that refuses application/grpc",
        HAPROXY: f"{_HAPROXY_SERVER}\nand no `http-request deny` for application/grpc",
        APACHE: _APACHE_H2C,
        CADDY: _CADDY,
        NGHTTPX: "backend=127.0.0.1,8443;;proto=h2",
        SQUID: "it does not speak HTTP/2: use `transport: websocket` or `split`",
        CLOUDFLARE: "Network, gRPC: on",
    },
    "body-limit": {
        NGINX: "in the `location` of {path}:\n    client_max_body_size 0;",
        HAPROXY: "take out the `http-request deny` on req.body_size or req.hdr(content-length) for {path}",
        APACHE: "in the virtual host:\n    LimitRequestBody 0",
        CADDY: "take `request_body {{ max_size ... }}` out of the site's block, at least for {path}",
        NGHTTPX: "it has no limit of its own: look at what stands behind it",
        SQUID: "request_body_max_size 0",
        CLOUDFLARE: "100 MB on the Free and Pro plans: use `transport: websocket`, which has no body",
    },
    "idle-cut": {
        NGINX: _NGINX_TIMES,
        HAPROXY: "in `defaults`, or in the frontend and the backend of {path}:\n    timeout client 5m\n"
        "    timeout server 5m\n    timeout tunnel 1h",
        APACHE: "in the virtual host:\n    RequestReadTimeout body=0\n    ProxyTimeout 300\n    Timeout 300",
        CADDY: "take read_timeout, write_timeout and `servers {{ timeouts ... }}` out, or set them to 5m and more",
        NGHTTPX: "backend-read-timeout=5m\nbackend-write-timeout=5m\nstream-read-timeout=5m\nstream-write-timeout=5m",
        SQUID: "read_timeout 15 minutes\nrequest_timeout 15 minutes\nclient_lifetime 1 day",
        CLOUDFLARE: "it cannot be set: `keepalive: {{interval: 15}}` in client.yaml and server.yaml stays below it",
    },
    "one-at-a-time": {
        NGINX: "in the `server` block:\n    http2_max_concurrent_streams 128;",
        HAPROXY: "in `global`:\n    tune.h2.max-concurrent-streams 100",
        APACHE: "H2MaxSessionStreams 100\nH2MaxWorkers 150",
        CADDY: "it has no such limit: look at what stands before or behind it",
        NGHTTPX: "frontend-http2-max-concurrent-streams=100\nbackend-connections-per-frontend=8",
        SQUID: "client_persistent_connections off",
        CLOUDFLARE: "it has no such limit: look at what stands behind it",
    },
    "wrong-path": {
        NGINX: "in the `server` block, with nothing after the port:\n    location = {path} {{\n"
        "        proxy_pass http://127.0.0.1:8443;\n    }}",
        HAPROXY: "in the frontend:\n    use_backend qanat if {{ path {path} }}",
        APACHE: "in the virtual host:\n    ProxyPass {path} h2c://127.0.0.1:8443{path}",
        CADDY: _CADDY,
        NGHTTPX: "backend=127.0.0.1,8443;{path};proto=http/1.1",
        SQUID: "cache_peer 127.0.0.1 parent 8443 0 no-query originserver",
        CLOUDFLARE: "no Worker or redirect rule for {path}",
    },
    "backend-down": {
        NGINX: "in the `location` of {path}, with the address that server.yaml has in `listen`:\n"
        "    proxy_pass http://127.0.0.1:8443;",
        HAPROXY: f"{_HAPROXY_SERVER}\nwith the address that server.yaml has in `listen`, and in the frontend:\n"
        "    use_backend qanat if {{ path {path} }}",
        APACHE: "ProxyPass {path} h2c://127.0.0.1:8443{path}\nwith the address that server.yaml has in `listen`",
        CADDY: f"{_CADDY}\nwith the address that server.yaml has in `listen`",
        NGHTTPX: "backend=127.0.0.1,8443;;proto=http/1.1\nwith the address that server.yaml has in `listen`",
        SQUID: "cache_peer 127.0.0.1 parent 8443 0 no-query originserver",
        CLOUDFLARE: "DNS: the record's address is the origin's; SSL/TLS: Full (strict) if the origin speaks TLS",
    },
    "forbidden": {
        NGINX: "in the `location` of {path}: allow all; and no auth_basic, deny or limit_except there",
        HAPROXY: "take {path} out of the `http-request deny` rules",
        APACHE: "<Location {path}>\n    Require all granted\n</Location>",
        CADDY: "take {path} out of what answers 403 (respond, basic_auth, forward_auth)",
        NGHTTPX: "take {path} out of the rules of its mruby script",
        SQUID: "http_access allow all",
        CLOUDFLARE: "Security, WAF: a rule that skips {path}; no Access there",
    },
    "login-wanted": {
        NGINX: "in the `location` of {path}:\n    auth_basic off;",
        HAPROXY: "take {path} out of the `http-request auth` rule",
        APACHE: "<Location {path}>\n    AuthType None\n    Require all granted\n</Location>",
        CADDY: "take {path} out of basic_auth and forward_auth",
        NGHTTPX: "take {path} out of the rules of its mruby script",
        SQUID: "above the rule that wants a login:\n    http_access allow all",
        CLOUDFLARE: "Access: no application that covers {path}; or a service token under `headers` in client.yaml",
    },
    "redirect": {
        NGINX: "a `location = {path}` of its own, without `return` and `rewrite`",
        HAPROXY: "take {path} out of the `http-request redirect` rules: unless {{ path {path} }}",
        APACHE: "above the rule that redirects:\n    RewriteRule ^{path}$ - [END]",
        CADDY: "take {path} out of the `redir` directive",
        NGHTTPX: "backend=...;{path};... without redirect-if-not-tls",
        SQUID: "take {path} out of url_rewrite_program and deny_info",
        CLOUDFLARE: "Rules: no redirect for {path}; SSL/TLS: Full (strict), which ends redirects in a circle",
    },
    "limited": {
        NGINX: "take `limit_req` and `limit_conn` out of the `location` of {path}",
        HAPROXY: "take {path} out of the `http-request deny deny_status 429` rule",
        APACHE: "switch mod_ratelimit, mod_evasive and mod_qos off for {path}",
        CADDY: "take {path} out of `rate_limit`",
        NGHTTPX: "it limits nothing: look at what stands before or behind it",
        SQUID: "take its address out of `acl ... maxconn`",
        CLOUDFLARE: "Security, WAF, rate limiting rules: none for {path}",
    },
    "proxy-forbids": {
        SQUID: "acl SSL_ports port {port}\nacl Safe_ports port {port}\nhttp_access allow CONNECT SSL_ports",
    },
    "certificate-expired": {
        NGINX: "renew the file of ssl_certificate, then: nginx -s reload",
        HAPROXY: "renew the file of `crt`, then: systemctl reload haproxy",
        APACHE: "renew the file of SSLCertificateFile, then: apachectl graceful",
        CADDY: "caddy reload; it renews by itself where ports 80 and 443 are reachable",
        NGHTTPX: "renew certificate-file, then send nghttpx SIGHUP",
        SQUID: "renew tls-cert, then: squid -k reconfigure",
        CLOUDFLARE: "SSL/TLS, Edge certificates: the certificate of {name}",
    },
    "certificate-name": {
        NGINX: "a `server` block with: server_name {name}; and a certificate for {name} in ssl_certificate",
        HAPROXY: "a certificate for {name} in `bind ... crt`",
        APACHE: "a virtual host with ServerName {name} and its SSLCertificateFile",
        CADDY: "a site block that begins with: {name} {{",
        NGHTTPX: "subcert=KEY:CERT for {name}",
        SQUID: "tls-cert= of a certificate for {name}",
        CLOUDFLARE: "SSL/TLS, Edge certificates: one that covers {name}",
    },
    "certificate-unknown-authority": {
        NGINX: "ssl_certificate: the file with the whole chain (fullchain.pem)",
        HAPROXY: "`crt`: a file with certificate, chain and key, in this order",
        APACHE: "SSLCertificateFile: the file with the whole chain (fullchain.pem)",
        CADDY: "tls FULLCHAIN KEY, with the whole chain",
        NGHTTPX: "certificate-file: the file with the whole chain (fullchain.pem)",
        SQUID: "tls-cert=: the file with the whole chain",
        CLOUDFLARE: "SSL/TLS, Edge certificates: upload the whole chain",
    },
}


def settings_for(code: str, product: str, products: Collection[str], **values: str) -> tuple[Setting, ...]:
    """Return the setting for one product, or where that is none of them those of all `products`."""
    known = SETTINGS.get(code, {})
    chosen = (product,) if product in known else tuple(name for name in products if name in known)
    return tuple(Setting(name, known[name].format(**values)) for name in chosen)
