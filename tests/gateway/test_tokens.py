"""Tokens: what scopes cover, which signatures count, and that nothing secret gets out."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from celery_streams import (
    ConfigurationError,
    Credentials,
    Slot,
    Streams,
    StreamsSettings,
    TokenRejected,
)
from celery_streams.cli import streams as group
from celery_streams.credentials.sealing import Minted, Sealer, secret_of
from celery_streams.redis.address import parse_address
from celery_streams.tokens import UNRESTRICTED, Access, Scope, Tokens, resource_of, scope
from celery_streams.tokens.keys import signing_key
from tests.conftest import SettingsFor

SECRET = "a secret of more than sixteen bytes"
OTHER = "another secret of more than sixteen bytes"
NAMES = st.text(st.characters(exclude_characters="{}/\\", codec="utf-8"), min_size=1).filter(
    lambda name: (
        name.isprintable()
        and name == name.strip()
        and name not in (".", "..")
        and len(name.encode()) < 255
    )
)


@pytest.fixture
def settings(settings_for: SettingsFor) -> Callable[..., StreamsSettings]:
    """``settings(secret=..., token_...=...)``; nothing is connected."""
    return lambda **given: settings_for("redis://localhost:1/0", **{"secret": SECRET, **given})


@pytest.fixture
def tokens(settings: Callable[..., StreamsSettings]) -> Tokens:
    """Tokens of one secret."""
    return Tokens(settings())


def access(*scopes: str) -> Access:
    """Access by these scopes."""
    return Access(tuple(Scope.parse(each) for each in scopes))


def key_of(settings: StreamsSettings) -> bytes:
    """The HS256 key in use."""
    key = signing_key(settings)
    assert key is not None
    assert isinstance(key.material, bytes)
    return key.material


def claims(**changes: Any) -> dict[str, Any]:
    """Claims that are accepted; a change to ``None`` leaves one out."""
    now = int(time.time())
    good = {"iat": now, "exp": now + 60, "aud": "celery-streams", "scope": "read:*", **changes}
    return {name: value for name, value in good.items() if value is not None}


def b64(value: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def handmade(header: object, payload: object, key: bytes, digest: Any = hashlib.sha256) -> str:
    """A token with an HMAC over whatever header and payload, as an attacker writes it."""
    parts = [each if isinstance(each, bytes) else json.dumps(each).encode()
             for each in (header, payload)]  # fmt: skip
    signed = ".".join(map(b64, parts))
    return f"{signed}.{b64(hmac.digest(key, signed.encode(), digest))}"


def public_pem(private: Any) -> str:
    """The public half, as people configure it."""
    return str(
        private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    )


# Scopes


@pytest.mark.parametrize(
    ("granted", "action", "resource", "allowed"),
    [
        ("read:runs/ab", "read", "runs/ab", True),
        ("read:runs/ab", "read", "runs/ab/default", True),
        ("read:runs/ab", "read", "runs/abc", False),
        ("read:runs/ab", "read", "runs/abc/default", False),
        ("read:runs/ab", "read", "runs/a", False),
        ("read:runs/ab", "read", "runs", False),
        ("read:runs/ab", "read", "sessions/ab/out", False),
        ("read:runs/ab", "write", "runs/ab/default", False),
        ("read:runs/ab", "admin", "runs/ab/default", False),
        ("read:runs/ab/progress", "read", "runs/ab/progress", True),
        ("read:runs/ab/progress", "read", "runs/ab/default", False),
        ("read:runs/ab/progress", "read", "runs/ab", False),
        ("write:sessions/s", "write", "sessions/s/in", True),
        ("write:sessions/s", "write", "sessions/s/out", True),
        ("write:sessions/s", "read", "sessions/s/in", False),
        ("write:sessions/s/in", "write", "sessions/s/in", True),
        ("write:sessions/s/in", "write", "sessions/s/out", False),
        ("read:streams/a/b", "read", "streams/a/b", True),
        ("read:streams/a/b", "read", "streams/a/b/c", False),
        ("read:streams/a/b", "read", "streams/a", False),
        ("read:streams/a/*", "read", "streams/a/b/c", True),
        ("read:streams/a/*", "read", "streams/a", False),
        ("read:streams/a/*", "read", "streams/ab/c", False),
        ("read:streams/runs/x", "read", "runs/x", False),
        ("read:runs/*", "read", "runs/x/default", True),
        ("read:runs/*", "read", "sessions/x/out", False),
        ("read:runs/*", "read", "runs", False),
        ("read:*", "read", "sessions/x/out", True),
        ("read:*", "write", "sessions/x/out", False),
        ("admin:runs/ab", "read", "runs/ab/default", True),
        ("admin:runs/ab", "write", "runs/ab/default", True),
        ("admin:runs/ab", "admin", "runs/ab", True),
        ("admin:runs/ab", "admin", "runs/abc", False),
        ("admin:*", "admin", "metrics", True),
        ("admin:*", "write", "streams/a", True),
        ("read:runs/a%20b", "read", "runs/a b/default", True),
        ("read:runs/%2A", "read", "runs/*", True),
        ("read:runs/%2A", "read", "runs/x", False),
        ("read:*", "read", "runs/../sessions/x", False),
        ("read:*", "read", "runs//x", False),
        ("read:*", "read", "", False),
        ("read:runs/ab", "read", "runs/ab/", False),
    ],
)
def test_a_scope_covers_what_it_names_and_no_more(
    granted: str, action: Any, resource: str, allowed: bool
) -> None:
    """Whole segments, the action or admin, and nothing that could be read in two ways."""
    assert access(granted).allows(action, resource) is allowed


@pytest.mark.parametrize(
    "text",
    [
        "", "read", "read:", "runs/x", "see:runs/x", "READ:runs/x", "read:run/x", "read:runs",
        "read:runs/", "read:/runs/x", "read:runs//x", "read:runs/x/", "read:runs/../x",
        "read:runs/%2e%2e", "read:runs/a%2Fb", "read:runs/a*", "read:*/x", "read:runs/*/x",
        "read:runs/a/b/c", "read:runs/a/b/*", "read:sessions/s/other", "read:runs/a b",
        "read:runs/a\tb", "read:runs/a%0Ab", "read:runs/%zz", "read:runs/%ff", "read:runs/{x}",
        "*:runs/x", "read:runs/" + "x" * 256, None, 7,
    ],
)  # fmt: skip
def test_a_malformed_scope_is_refused_by_name(tokens: Tokens, text: Any) -> None:
    """Each mistake is told when the token is minted, not found when it does not work."""
    with pytest.raises(ConfigurationError, match="scope"):
        tokens.mint([text])


@given(NAMES, NAMES)
def test_a_token_for_one_run_never_covers_another(one: str, other: str) -> None:
    """Whatever the names: equal, one the other's beginning, or with characters of scopes."""
    holder = access(scope("read", "runs", one))
    assert holder.allows("read", resource_of(Slot.run(one, other)))
    assert holder.allows("read", f"runs/{other}") is (one == other)
    assert not holder.allows("write", f"runs/{one}")
    assert not holder.allows("read", f"sessions/{one}/out")


@given(st.lists(NAMES, min_size=1, max_size=4), st.lists(NAMES, min_size=1, max_size=4))
def test_a_path_is_covered_exactly_or_by_its_star(path: list[str], other: list[str]) -> None:
    """``streams/a/b`` covers one stream; ``streams/a/b/*`` those below it, and not itself."""
    resource = resource_of(Slot.path("/".join(other)))
    exact = scope("read", "streams", *path)
    assert access(exact).allows("read", resource) is (path == other)
    below = len(other) > len(path) and other[: len(path)] == path
    assert access(f"{exact}/*").allows("read", resource) is below


@given(st.text())
def test_a_scope_is_read_back_as_it_was_written(text: str) -> None:
    """Any text is refused, or is a scope whose canonical form means the same and has no blank."""
    try:
        parsed = Scope.parse(text)
    except ConfigurationError:
        return
    assert Scope.parse(str(parsed)) == parsed


@given(st.sampled_from(["runs", "sessions"]), NAMES)
def test_names_from_elsewhere_cannot_become_wildcards(root: str, name: str) -> None:
    """``scope()`` of a session called ``*`` is for that session; it is ASCII without blanks."""
    text = scope("write", root, name)
    assert text.isascii()
    assert " " not in text
    assert Scope.parse(text) == Scope("write", (root, name))


def test_without_tokens_everything_is_allowed() -> None:
    """``UNRESTRICTED`` is for every action anywhere, and for ever."""
    assert UNRESTRICTED.allows("admin", "metrics")
    assert UNRESTRICTED.allows("write", "streams/a")
    assert UNRESTRICTED.expires_at == float("inf")
    assert UNRESTRICTED.token_id == ""


# Minting and verifying


def test_a_minted_token_says_what_it_is_for(
    tokens: Tokens, settings: Callable[..., StreamsSettings]
) -> None:
    """The registered claims, the scopes between blanks, a key id; each token an id of its own."""
    token = tokens.mint(["read:runs/a", "write:sessions/ü x".replace(" ", "%20")], 90, subject="me")
    content = jwt.decode(token, key_of(settings()), ["HS256"], audience="celery-streams")
    assert content["scope"] == "read:runs/a write:sessions/%C3%BC%20x"
    assert content["sub"] == "me"
    assert content["exp"] - content["iat"] in (90, 91)
    assert jwt.get_unverified_header(token)["alg"] == "HS256"
    assert jwt.get_unverified_header(token)["kid"]
    verified = tokens.verify(token)
    assert (verified.subject, verified.expires_at) == ("me", content["exp"])
    assert verified.token_id == content["jti"]
    assert verified.allows("write", "sessions/ü x/in")
    assert tokens.verify(tokens.mint(["read:*"])).token_id != verified.token_id


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), 400 * 86400])
def test_a_token_has_an_end(tokens: Tokens, ttl: float) -> None:
    """Neither a token that has expired already nor one for ever is minted."""
    with pytest.raises(ConfigurationError, match="lives"):
        tokens.mint(["read:*"], ttl)


def test_a_token_stays_small(tokens: Tokens) -> None:
    """No scopes, 65 scopes, a bare string, or more bytes than a URL takes: told at minting."""
    assert tokens.mint([f"read:runs/{number:036}" for number in range(64)])
    for scopes in ([], [f"read:runs/{number}" for number in range(65)]):
        with pytest.raises(ConfigurationError, match="1 to 64"):
            tokens.mint(scopes)
    with pytest.raises(ConfigurationError, match="list"):
        tokens.mint("read:*")
    with pytest.raises(ConfigurationError, match="bytes"):
        tokens.mint([f"read:runs/{number:0200}" for number in range(60)])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"exp": int(time.time()) - 60}, "expired"),
        ({"exp": None}, "exp"),
        ({"exp": "soon"}, "malformed"),
        ({"exp": 10**400}, "malformed|claim"),
        ({"aud": None}, "aud"),
        ({"aud": "somebody-else"}, "meant for"),
        ({"aud": ["a", "b"]}, "meant for"),
        ({"nbf": int(time.time()) + 3600}, "not valid yet"),
        ({"sub": 7}, "malformed"),
    ],
)
def test_claims_that_do_not_hold_are_refused(
    tokens: Tokens, settings: Callable[..., StreamsSettings], changes: dict[str, Any], told: str
) -> None:
    """A good signature is not enough: expiry and audience are required, and must fit."""
    token = jwt.encode(claims(**changes), key_of(settings()), "HS256")
    with pytest.raises(TokenRejected, match=told) as caught:
        tokens.verify(token)
    assert token not in str(caught.value)


def test_clocks_may_differ_a_little(
    tokens: Tokens, settings: Callable[..., StreamsSettings]
) -> None:
    """A token that expired a second ago, or is valid from the next one, is accepted."""
    now = int(time.time())
    token = jwt.encode(claims(exp=now - 1, nbf=now + 2), key_of(settings()), "HS256")
    assert tokens.verify(token).allows("read", "runs/x")


def test_a_token_that_was_good_once_expires_all_the_same(
    tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verified tokens are remembered, their expiry is looked at each time; refusals are not."""
    token = tokens.mint(["read:runs/x"], 60)
    first = tokens.verify(token)
    assert tokens.verify(token) is first
    now = time.time()
    monkeypatch.setattr("celery_streams.tokens.jwts.time.time", lambda: now + 75)
    for _ in range(2):
        with pytest.raises(TokenRejected, match="expired"):
            tokens.verify(token)
    monkeypatch.undo()
    assert tokens.verify(token) is first
    for _ in range(2):
        with pytest.raises(TokenRejected, match="nobody"):
            tokens.verify(token[:-6] + "AAAAAA")


def test_another_issuers_scopes_are_passed_over(
    tokens: Tokens, settings: Callable[..., StreamsSettings]
) -> None:
    """``openid`` and what is malformed grants nothing; a list of scopes is one, too."""
    key = key_of(settings())
    for value in ("openid read:runs/x  profile read:runs/", ["openid", 7, "read:runs/x"]):
        verified = tokens.verify(jwt.encode(claims(scope=value), key, "HS256"))
        assert verified.scopes == (Scope("read", ("runs", "x")),)
    nothing: tuple[Any, ...] = (None, 7, {}, "")
    for other in nothing:
        assert tokens.verify(jwt.encode(claims(scope=other), key, "HS256")).scopes == ()


def test_tokens_survive_a_change_of_the_secret(settings: Callable[..., StreamsSettings]) -> None:
    """The old secret among ``token_secrets`` verifies, whatever key id a token has; then not."""
    old, new = Tokens(settings()), Tokens(settings(secret=OTHER, token_secrets=[SECRET]))
    issued = old.mint(["read:runs/x"])
    assert new.verify(issued).allows("read", "runs/x")
    assert new.verify(new.mint(["read:runs/x"])).allows("read", "runs/x")
    unnamed = jwt.encode(claims(), key_of(settings()), "HS256")
    misnamed = jwt.encode(claims(), key_of(settings()), "HS256", headers={"kid": "?"})
    assert new.verify(unnamed).token_id != ""
    assert new.verify(misnamed).token_id != ""
    with pytest.raises(TokenRejected, match="nobody"):
        Tokens(settings(secret=OTHER)).verify(issued)


def test_the_secret_itself_signs_nothing(
    tokens: Tokens, settings: Callable[..., StreamsSettings]
) -> None:
    """Tokens have a key of their own: neither the secret nor the cache's key is it."""
    with pytest.raises(TokenRejected):
        tokens.verify(jwt.encode(claims(), SECRET, "HS256"))
    sealer = Sealer(secret_of(settings(), parse_address("redis://localhost:1/0")))
    slot = Slot.run("x")
    sealed = sealer.seal(Minted(Credentials(slot, "mint", "grant", 1.0), 0.0))
    assert sealer.open(slot, sealed) is not None
    with pytest.raises(InvalidTag):
        AESGCM(key_of(settings())).decrypt(sealed[1:13], sealed[13:], str(slot).encode())


# Forgeries


def test_a_token_that_names_its_own_algorithm_is_not_believed(
    settings: Callable[..., StreamsSettings],
) -> None:
    """``none``, other HMACs, and a public key used as a shared secret: all refused."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = public_pem(private)
    both = Tokens(settings(token_public_keys=[pem]))
    public_only = Tokens(settings(secret=None, token_public_keys=[pem]))
    key = key_of(settings())
    unsigned = handmade({"alg": "none", "typ": "JWT"}, claims(), key)
    forged = [
        unsigned,
        unsigned.rpartition(".")[0] + ".",
        handmade({"alg": "None"}, claims(), key),
        handmade({"alg": "HS256"}, claims(), pem.encode()),
        handmade({"alg": "HS256"}, claims(), pem.strip().encode()),
        handmade({"alg": "RS256"}, claims(), pem.encode()),
        handmade({"alg": "RS256"}, claims(), key),
        handmade({"alg": ["HS256"]}, claims(), key),
        handmade({"alg": None}, claims(), key),
        handmade({}, claims(), key),
        handmade({"alg": "HS512"}, claims(), key, hashlib.sha512),
        jwt.encode(claims(), private, "RS512"),
        jwt.encode(claims(), private, "PS256"),
        jwt.encode(claims(), rsa.generate_private_key(65537, 2048), "RS256"),
        handmade({"alg": "HS256", "crit": ["exp"]}, claims(), key),
        handmade({"alg": "HS256", "b64": False}, claims(), key),
    ]
    for token in forged:
        for verifier in (both, public_only):
            with pytest.raises(TokenRejected):
                verifier.verify(token)
    assert both.verify(handmade({"alg": "HS256"}, claims(), key)).scopes
    assert public_only.verify(jwt.encode(claims(), private, "RS256")).scopes


def test_changing_any_character_of_a_token_voids_it(tokens: Tokens) -> None:
    """Nothing in a token is outside of the signature."""
    token = tokens.mint(["read:runs/x"])
    for place in range(len(token) - 1):  # the last one has bits that nobody reads
        other = "A" if token[place] != "A" else "B"
        with pytest.raises(TokenRejected):
            tokens.verify(token[:place] + other + token[place + 1 :])


@pytest.mark.parametrize(
    "token",
    [
        "", ".", "..", "...", "a.b.c", "é.ü.ö", "\ud800.x.y", "x" * 7000,
        b64(b"[" * 3000) + ".e30.x", b64(b'{"alg":' + b"[" * 3000) + ".e30.x",
        b64(b"[]") + ".e30.x", b64(b"7") + ".e30.x", b64(b'{"alg":"HS256","kid":7}') + ".e30.x",
        b64(b'{"alg":{}}') + ".e30.x",
    ],
)  # fmt: skip
def test_garbage_is_refused_as_such(tokens: Tokens, token: str) -> None:
    """Also JSON that is nested too deeply to be read."""
    with pytest.raises(TokenRejected):
        tokens.verify(token)


def test_deeply_nested_claims_are_refused(
    tokens: Tokens, settings: Callable[..., StreamsSettings]
) -> None:
    """Even when they are signed."""
    with pytest.raises(TokenRejected):
        tokens.verify(handmade({"alg": "HS256"}, b"[" * 3000, key_of(settings())))


@given(token=st.text(st.characters(max_codepoint=127)) | st.text())
def test_nothing_an_attacker_writes_is_another_error(token: str) -> None:
    """Any text at all is a token that is refused."""
    with pytest.raises(TokenRejected):
        Tokens(StreamsSettings(secret=SECRET)).verify(token)


# Public keys


def private_keys() -> dict[str, Any]:
    """One key for each algorithm."""
    return {
        "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    }


def test_tokens_of_another_issuer_are_verified_by_its_public_keys(
    settings: Callable[..., StreamsSettings], tmp_path: Path
) -> None:
    """RSA, P-256 and Ed25519; as PEM text, as a file of several, and as a key set."""
    keys = private_keys()
    pems = [public_pem(key) for key in keys.values()]
    file = tmp_path / "keys.pem"
    file.write_text("\n".join(pems))
    key_set = tmp_path / "keys.json"
    entries: list[dict[str, Any]] = [
        {"kty": "EC", "crv": "P-384", "x": "A", "y": "A"},
        {"kty": "RSA", "use": "enc", "n": "A", "e": "AQAB"},
        {"kty": "future"},
    ]
    for name, key in keys.items():
        algorithm = jwt.get_algorithm_by_name(name)
        entry = json.loads(algorithm.to_jwk(key.public_key()))
        entries.append({**entry, "kid": f"key {name}", "use": "sig"})
    key_set.write_text(json.dumps({"keys": entries}))
    for given_keys in (pems, [str(file)], [str(key_set)]):
        verifier = Tokens(settings(secret=None, token_public_keys=given_keys))
        for algorithm_name, key in keys.items():
            for headers in (None, {"kid": f"key {algorithm_name}"}):
                token = jwt.encode(claims(), key, algorithm_name, headers=headers)
                assert verifier.verify(token).allows("read", "runs/x")
        with pytest.raises(ConfigurationError, match="CELERY_STREAMS_SECRET"):
            verifier.mint(["read:*"])


def test_a_token_without_an_id_gets_one_that_its_signature_does_not_change(
    settings: Callable[..., StreamsSettings],
) -> None:
    """An ECDSA token signed twice is one token to whoever counts its connections."""
    key = ec.generate_private_key(ec.SECP256R1())
    verifier = Tokens(settings(token_public_keys=[public_pem(key)]))
    content = claims(jti=None)
    first, second = (jwt.encode(content, key, "ES256") for _ in range(2))
    assert first != second
    assert verifier.verify(first).token_id == verifier.verify(second).token_id != ""


def _bad_keys(folder: Path) -> dict[str, str]:
    private = ec.generate_private_key(ec.SECP256R1())
    return {
        "private key": private.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        ).decode(),
        "bits": public_pem(rsa.generate_private_key(65537, 1024)),
        "not supported": public_pem(ec.generate_private_key(ec.SECP384R1())),
        "no PEM public key": "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
        "cannot be read as a file": str(folder / "hidden-name"),
        "secret or private": _written(folder, {"keys": [{"kty": "oct", "k": "AAAA"}]}),
        "no list of keys": _written(folder, {"key": 1}),
        "holds no key": _written(folder, {"keys": []}),
        "that cannot be read": _written(folder, {"keys": [{"kty": "RSA", "n": 1}]}),
    }


def _written(folder: Path, content: object) -> str:
    file = folder / f"{len(list(folder.iterdir()))}.json"
    file.write_text(json.dumps(content))
    return str(file)


def test_keys_that_must_not_be_used_are_told_at_the_start(
    settings: Callable[..., StreamsSettings], tmp_path: Path
) -> None:
    """Private, weak, unsupported or broken ones; the message does not show what was given."""
    for told, text in _bad_keys(tmp_path).items():
        with pytest.raises(ConfigurationError, match=told) as caught:
            _ = Tokens(settings(token_public_keys=[text])).can_verify
        assert "TOKEN_PUBLIC_KEYS, entry 1" in str(caught.value)
        assert text not in str(caught.value)
        assert "hidden-name" not in str(caught.value)


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_secret_is_no_secret(settings: Callable[..., StreamsSettings], empty: str) -> None:
    """What an unset variable in a compose file becomes must not sign tokens."""
    with pytest.raises(ConfigurationError, match="SECRET is empty"):
        Tokens(settings(secret=empty))
    with pytest.raises(ConfigurationError, match="TOKEN_SECRETS is empty"):
        _ = Tokens(settings(token_secrets=[empty])).can_verify


def test_a_short_secret_is_warned_of_once(
    settings: Callable[..., StreamsSettings], caplog: pytest.LogCaptureFixture
) -> None:
    """A line says why, and does not say the secret."""
    with caplog.at_level(logging.WARNING, "celery_streams"):
        Tokens(settings(secret="short-7f3a"))
        Tokens(settings(secret="short-7f3a"))
    (record,) = caplog.records
    assert "10 bytes" in record.getMessage()
    assert "short-7f3a" not in record.getMessage()


def test_secrets_are_in_no_repr(settings: Callable[..., StreamsSettings]) -> None:
    """Neither of settings, nor of keys, nor of what holds them."""
    given = settings(token_secrets=[OTHER])
    shown = f"{given!r} {Tokens(given)!r} {Tokens(given)._accepted!r}"
    assert SECRET not in shown
    assert OTHER not in shown
    assert repr(key_of(given)) not in shown


# Settings, the app, the command


def test_lists_in_the_environment_are_json_or_between_commas(
    settings_for: SettingsFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a PEM text, which has neither; a broken list is refused without being shown."""
    monkeypatch.setenv("CELERY_STREAMS_TOKEN_SECRETS", f'["{OTHER}, too", "b"]')
    monkeypatch.setenv("CELERY_STREAMS_GATEWAY_CORS_ORIGINS", "https://a.test, https://b.test")
    pem = public_pem(ed25519.Ed25519PrivateKey.generate())
    monkeypatch.setenv("CELERY_STREAMS_TOKEN_PUBLIC_KEYS", pem)
    loaded = StreamsSettings.load({}, {"secret": SECRET})
    assert [each.get_secret_value() for each in loaded.token_secrets] == [f"{OTHER}, too", "b"]
    assert loaded.gateway_cors_origins == ("https://a.test", "https://b.test")
    assert loaded.token_public_keys == (pem.strip(),)
    assert Tokens(loaded).can_verify
    monkeypatch.setenv("CELERY_STREAMS_TOKEN_SECRETS", f'["{OTHER}')
    with pytest.raises(ConfigurationError, match="TOKEN_SECRETS") as caught:
        StreamsSettings.load()
    assert OTHER not in str(caught.value)


def test_lists_in_app_conf_are_lists(settings_for: SettingsFor) -> None:
    """``streams_token_secrets`` as Python writes it."""
    app = Celery("listed")
    app.conf.streams_token_secrets = [OTHER]
    loaded = StreamsSettings.load(app.conf)
    assert [each.get_secret_value() for each in loaded.token_secrets] == [OTHER]


def test_streams_mint_tokens_without_connecting(settings: Callable[..., StreamsSettings]) -> None:
    """``streams.token`` needs the secret, and no store."""
    streams = Streams(Celery("minting"), url="redis://localhost:1/0", secret=SECRET)
    verified = Tokens(streams.settings).verify(streams.token(["read:runs/x"], ttl=5))
    assert verified.allows("read", "runs/x/default")
    assert not verified.allows("read", "runs/y/default")
    bare = Streams(Celery("bare"), url="redis://localhost:1/0")
    with pytest.raises(ConfigurationError, match="set CELERY_STREAMS_SECRET"):
        bare.token(["read:runs/x"])


def test_the_command_prints_a_token(settings: Callable[..., StreamsSettings]) -> None:
    """One line on standard output; mistakes are one line on standard error."""
    app = Celery("printing")
    streams = Streams(app, url="redis://localhost:1/0", secret=SECRET)

    def run(*words: str) -> Any:
        context = CLIContext(app=app, no_color=True, workdir=None, quiet=True)
        return CliRunner().invoke(group, ["token", *words], obj=context)

    done = run("read:runs/x", "write:sessions/s/in", "--ttl", "15m")
    assert (done.exit_code, done.stderr) == (0, "")
    verified = Tokens(streams.settings).verify(done.stdout.strip())
    assert verified.allows("write", "sessions/s/in")
    assert 890 < verified.expires_at - time.time() <= 901
    assert run("read:run/x").exit_code == 1
    assert "run" in run("read:run/x").stderr
    assert run("read:runs/x", "--ttl", "soon").exit_code == 2
    assert run().exit_code == 2


def test_without_pyjwt_the_package_works_and_says_what_to_install() -> None:
    """The core imports, and minting tells the extra's name."""
    code = (
        "import sys; sys.modules['jwt'] = None\n"
        "from celery_streams import Streams, ConfigurationError\n"
        f"try: Streams(secret={SECRET!r}, url='redis://localhost:1').token(['read:*'])\n"
        "except ConfigurationError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'pip install "celery-streams[gateway]"' in done.stdout, done.stderr
