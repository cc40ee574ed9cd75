"""Who may ask for what: the clients' keys, each with a name and rights.

A file holds one key, or a line for each: `NAME RIGHTS KEY`, so that a new one can be valid beside
the old one while clients change over. What is kept of a key is its SHA-256. A key that is brought
is compared with every one, in a time that says nothing of where they differ, or of which it is.
Knows no protocol; whoever reads the file again has new `Keys`, and the old ones are as they were.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deeprecsys.core import UserError
from deeprecsys.protocol.reasons import Reason, Refusal

INFER, MEMORY, ADMIN, ANY = "infer", "memory", "admin", ""
RIGHTS = (INFER, MEMORY, ADMIN)
_USUAL = frozenset({INFER, MEMORY})  # of a key that stands alone
LEAST_CHARACTERS = 16
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_NEW = "openssl rand -hex 24 makes one"
_OFF = (
    "this is off: it needs a key with the right admin, and this server has none "
    "(--key-file, a line NAME admin KEY)"
)


@dataclass(frozen=True, slots=True)
class Key:
    name: str
    rights: frozenset[str]
    digest: bytes


class Keys:
    """Those of one file; none at all: everybody may ask, but for what needs the right admin."""

    __slots__ = ("_keys",)

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self._keys = tuple(keys)

    @classmethod
    def of(cls, key: str | Keys | None) -> Keys:
        """Of one that stands alone, "default"."""
        if isinstance(key, Keys):
            return key
        return cls() if key is None else cls([Key("default", _USUAL, digest_of(key))])

    @classmethod
    def read(cls, path: str | Path) -> Keys:
        """UserError, which says the line, where they cannot be read or meant."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot read the key {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is no text: a key is printable ASCII") from error
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, path: str = "the key file") -> Keys:
        lines = [(number, words) for number, line in enumerate(text.splitlines(), 1)
                 if (words := line.split()) and not words[0].startswith("#")]  # fmt: skip
        if not lines:
            raise UserError(f"{path} is empty: write the key into it; {_NEW}")
        if len(lines) == 1 and len(lines[0][1]) == 1:
            number, (secret,) = lines[0]
            return cls([Key("default", _USUAL, _digest(secret, f"{path}, line {number}"))])
        keys: list[Key] = []
        for number, words in lines:
            where = f"{path}, line {number}"
            key = _key(words, where)
            for other in keys:
                if other.name == key.name:
                    raise UserError(f"{where}: a second key of the name {key.name}")
                if hmac.compare_digest(other.digest, key.digest):
                    raise UserError(f"{where}: the same key as that of {other.name}; {_NEW}")
            keys.append(key)
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(key.name for key in self._keys)

    @property
    def administered(self) -> bool:
        """Does one have the right admin?"""
        return any(ADMIN in key.rights for key in self._keys)

    def digests(self, right: str) -> list[bytes]:
        """Of those that have it."""
        return [key.digest for key in self._keys if right in key.rights]

    def allows(self, authorization: str | bytes, right: str) -> str | Refusal:
        """The name of whose key a header of that value brings ("" where none is asked for), or why
        this is not for it. `Bearer KEY`; or `Basic`, any name and the key as password, which
        browsers can ask for. right: `ANY` is everyone's who has a key."""
        if right == ADMIN and not self.administered:
            return Refusal(Reason.FORBIDDEN, _OFF)
        if not self._keys:
            return ""
        given = digest_of(_brought(authorization))
        found: Key | None = None
        for key in self._keys:  # all of them
            if hmac.compare_digest(given, key.digest):
                found = key
        if found is None:
            return Refusal(Reason.UNAUTHENTICATED, "a key is needed: Authorization: Bearer KEY")
        if right != ANY and right not in found.rights:
            has = " and ".join(name for name in RIGHTS if name in found.rights)
            return Refusal(
                Reason.FORBIDDEN,
                f"this needs a key with the right {right}; that of {found.name} has {has}",
            )
        return found.name

    def check(self, authorization: str | bytes, right: str) -> str:
        """The same; raises the Refusal."""
        allowed = self.allows(authorization, right)
        if isinstance(allowed, Refusal):
            raise allowed
        return allowed


def digest_of(key: str | bytes) -> bytes:
    return hashlib.sha256(_bytes(key)).digest()


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode(errors="backslashreplace")


def _brought(authorization: str | bytes) -> bytes:
    kind, _, given = _bytes(authorization).strip().partition(b" ")
    if kind.lower() == b"bearer":
        return given.strip()
    if kind.lower() == b"basic":
        try:
            return base64.b64decode(given.strip(), validate=True).partition(b":")[2].strip()
        except ValueError:
            return b""
    return b""


def _key(words: list[str], where: str) -> Key:
    if len(words) != 3:
        raise UserError(f"{where}: write NAME RIGHTS KEY, such as: ranker {INFER} KEY; {_NEW}")
    name, said, secret = words
    if not _NAME.fullmatch(name):
        raise UserError(f"{where}: {name[:80]!r} is no name: letters, digits, dot, _ and -")
    rights = said.split(",")
    for right in rights:
        if right not in RIGHTS:
            known = ", ".join(RIGHTS)
            raise UserError(f"{where}: unknown right {right[:80]!r}; known are {known}")
    return Key(name, frozenset(rights), _digest(secret, where))


def _digest(secret: str, where: str) -> bytes:
    """The key itself is in no message."""
    if not (secret.isascii() and secret.isprintable()):
        raise UserError(f"{where}: a key is printable ASCII; {_NEW}")
    if len(secret) < LEAST_CHARACTERS:
        raise UserError(
            f"{where}: the key has {len(secret)} characters, of at least {LEAST_CHARACTERS}; {_NEW}"
        )
    return digest_of(secret)


__all__ = ["ADMIN", "ANY", "INFER", "MEMORY", "RIGHTS", "Key", "Keys", "digest_of"]
