"""How text from outside stands in a sentence: on one line, printable, and bounded."""

import re
import time
from collections.abc import Sized

SHOWN_CHARACTERS = 200
SHOWN_ITEMS = 20
# Of a longer sentence the beginning and the end are left: what is wrong often stands behind what it is wrong with.
SENTENCE_CHARACTERS = 1000
_END_CHARACTERS = 400

# To the last ``@`` that has no digest behind it: passwords are written with ``/``, ``?`` and ``#`` in them, too.
_USER = re.compile(r"(?s:.*)@(?!sha256:|sha512:)|[^/?#]*@")


def one_line(text: str) -> str:
    r"""Return ``text`` with every character that is not printable written as ``\xNN`` or ``\uNNNN``.

    >>> one_line("a\n[pull] Done")
    'a\\x0a[pull] Done'
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escaped(ord(character)) for character in text)


def one_sentence(text: str) -> str:
    r"""Return ``text`` as :func:`one_line` does, and of more than 999 characters not those in the middle.

    >>> sentence = one_sentence("nothing is at " + "/a" * 5000 + ", nor below it")
    >>> sentence[:20], sentence[-16:], len(sentence)
    ('nothing is at /a/a/a', '/a, nor below it', 999)
    >>> len(one_sentence("a" * 999)), one_sentence("a" * 1000).count("a")
    (999, 996)
    """
    line = one_line(text)
    if len(line) < SENTENCE_CHARACTERS:
        return line
    return line[: SENTENCE_CHARACTERS - len("...") - 1 - _END_CHARACTERS] + "..." + line[-_END_CHARACTERS:]


def beginning(text: str) -> str:
    """Return ``text``, or its beginning where it is long.

    >>> len(beginning("a" * 200)), beginning("a" * 201)[198:]
    (200, 'aa...')
    """
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."


def shown(text: str) -> str:
    r"""Return ``text`` in quotes, or its beginning where it is long as it is written there.

    >>> shown("a\udcff"), len(shown("\udcff" * 200)), len(shown("a" * 200))
    ("'a\\udcff'", 203, 202)
    """
    room = SHOWN_CHARACTERS
    for count, character in enumerate(text):
        room -= len(repr(character)) - 2
        if room < 0:
            return repr(text[:count] + "...")
    return repr(text)


def without_user(text: str) -> str:
    """Return ``text``, which may be a URL and is not trusted, without the user and password that one may name.

    >>> without_user("https://alice:sec/ret@quay.io/app"), without_user("https://quay.io/app@sha256:0")
    ('https://***@quay.io/app', 'https://quay.io/app@sha256:0')
    """
    scheme, mark, rest = text.partition("://")
    user = _USER.match(rest)
    return text if user is None else f"{scheme}{mark}***@{rest[user.end() :]}"


def and_more(items: Sized, shown: int = 1) -> str:
    """Return what a sentence that names the first of ``items``, so many of them, says of the others.

    >>> and_more("a"), and_more("ab"), and_more("abc"), and_more("abc", 2)
    ('', ' and 1 more', ' and 2 more', ' and 1 more')
    """
    return f" and {len(items) - shown} more" if len(items) > shown else ""


def since(seconds: float) -> str:
    """Return `` since`` and a time, which is in seconds since the epoch; nothing for one that no calendar has.

    >>> since(0), since(1e17), since(1e30), since(float("nan"))
    (' since 1970-01-01T00:00:00Z', '', '', '')
    """
    try:
        return time.strftime(" since %Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return ""


def _escaped(code: int) -> str:
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
