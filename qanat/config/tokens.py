"""The tokens of a client, in a configuration file: written out, from the environment, or in files of their own.

`qanat.config.server` and `qanat.config.servers` call this.
"""

from __future__ import annotations

from qanat.base.errors import UsageError
from qanat.config.document import Place
from qanat.config.secret_files import read_token_file, token_secret
from qanat.config.section import Section


def read_tokens(s: Section, *, most: int) -> list[tuple[bytes, Place]]:
    """Return the secrets of `token` or `token_file`, with their places: at most `most`, and one or the other key.

    A token written out in the file is refused when others can read the file.
    """
    found: list[tuple[bytes, Place]] = []
    texts = {key: s.texts(key, several=most > 1) for key in ("token", "token_file")}
    if "token" in s and "token_file" in s:
        s.refuse("token_file", "and `token` are both given; keep one of them")
    elif "token" not in s and "token_file" not in s:
        s.lacks(f"`{s.name}` needs `token_file` or `token`; `tunnel.py token` makes a token")
    for text in texts["token"]:
        if text.literal and (exposure := s.document.exposure):
            cure = f"{exposure.cure}, or use `token_file`"
            s.refuse("token", f"is in a file that others can read ({cure})", text.place)
        try:
            found.append((token_secret(text.value, "is no token"), text.place))
        except UsageError as error:
            s.refuse("token", str(error), text.place)
    for text in texts["token_file"]:
        secret = s.parsed("token_file", text, None, lambda value: read_token_file(s.resolve(value)))
        if secret is not None:
            found.append((secret, text.place))
    for key in texts:
        s.not_empty(key, "is an empty list")
        if len(texts[key]) > most:
            s.refuse(key, f"has more than {most} entries: one, and a second while it is being changed")
    return found
