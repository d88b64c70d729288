from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest

from gateway.admin.roles import Role
from gateway.admin.tokens import SIZE_LIMIT_BYTES, TokensError, TokensFile, make_token, parse_tokens
from gateway.settings import Settings, SettingsError, check_settings

SECRET = "s3cret-in-the-wrong-place"
A, B = "a" * 64, "b" * 64


def entry(sha256: str = A, role: str = "guard") -> str:
    return f'{{role: {role}, sha256: "{sha256}"}}'


def test_a_file() -> None:
    holders = parse_tokens(f"# for the pager\npager: {entry(A)}\nann: {entry(B, 'releaser')}\n")
    assert [(holder.name, holder.role, holder.sha256) for holder in holders] == [
        ("pager", Role.GUARD, bytes.fromhex(A)),
        ("ann", Role.RELEASER, bytes.fromhex(B)),
    ]
    assert A not in repr(holders)
    assert parse_tokens("{}") == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "write one line for each token"),
        ("- pager", "write one line for each token"),
        (SECRET, "write one line for each token"),
        ("pager: [", "it is no YAML"),
        (f"pager: {SECRET}", "pager: Expected `object`"),
        (f"pager: {{role: guard, sha256: {SECRET}}}", "its sha256 is not 64 hex digits"),
        (f"pager: {{role: guard, sha256: {A.upper()}}}", "its sha256 is not 64 hex digits"),
        (f"pager: {{role: guard, sha256: {A}, token: {SECRET}}}", "unknown field `token`"),
        (f"pager: {{role: {SECRET}, sha256: {A}}}", "no role: write viewer, guard, operator, releaser"),
        (f"pager: {{sha256: {A}}}", "missing required field `role`"),
        ("pager: {role: guard}", "missing required field `sha256`"),
        (f"pager: {{role: 2, sha256: {A}}}", "$.role"),
        (f"pager: {entry()}\npager: {entry(B)}", "line 2: 'pager' is written twice"),
        (f"pager: {{role: guard, role: releaser, sha256: {A}}}", "'role' is written twice"),
        (f"pager: {entry()}\nann: {entry()}", "the same sha256"),
        (f"a b: {entry()}", "a name is letters"),
        (f"7: {entry()}", "a name is letters"),
        (f"'': {entry()}", "a name is letters"),
        (f"? [a]\n: {entry()}", "a name must be plain text"),
        (f"pager: !!python/object/apply:os.system [{SECRET}]", "it is no YAML"),
    ],
)
def test_what_is_refused_is_named_and_not_shown(text: str, says: str) -> None:
    with pytest.raises(TokensError) as error:
        parse_tokens(text)
    assert says in str(error.value)
    assert SECRET not in str(error.value) and A not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_token_that_is_made_is_what_its_line_says() -> None:
    token, sha256 = make_token()
    assert hashlib.sha256(token.encode()).hexdigest() == sha256
    assert len(token) == len("turnout_") + 64 and token != make_token()[0]


class TestTheFile:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "tokens.yaml"
        path.write_text(f"pager: {entry(A)}\n")
        return path

    def names(self, file: TokensFile) -> list[str]:
        return [holder.name for holder in file.holders]

    def test_is_read_again_when_it_changes(self, path: Path) -> None:
        file = TokensFile(path)
        assert (self.names(file), file.trouble) == (["pager"], "")
        path.write_text(f"ann: {entry(A)}\n")
        file.look()
        assert self.names(file) == ["ann"]
        path.write_text("{}")
        file.look()
        assert (self.names(file), file.trouble) == ([], "")

    @pytest.mark.parametrize("damage", ["refused", "gone", "large", "a directory", "binary"])
    def test_what_is_damaged_leaves_the_last_ones_and_is_said_once(
        self, path: Path, damage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        file = TokensFile(path)
        kept = path.read_text()
        path.unlink()
        if damage == "refused":
            path.write_text("pager: guard")
        elif damage == "large":
            path.write_text("#" * (SIZE_LIMIT_BYTES + 1))
        elif damage == "a directory":
            path.mkdir()
        elif damage == "binary":
            path.write_bytes(b"\xff")
        for _ in range(3):
            file.look()
        assert self.names(file) == ["pager"]
        assert "the tokens of before are in force" in file.trouble and str(path) in file.trouble
        assert [record.levelno for record in caplog.records] == [logging.ERROR]
        if damage == "a directory":
            path.rmdir()
        path.write_text(kept)
        file.look()
        assert (self.names(file), file.trouble) == (["pager"], "")

    def test_a_start_with_a_damaged_one_is_an_error(self, path: Path) -> None:
        path.write_text("nonsense")
        with pytest.raises(TokensError, match="are refused"):
            TokensFile(path)
        with pytest.raises(TokensError, match="cannot be read: No such file"):
            TokensFile(path.parent / "nowhere.yaml")


def test_off_the_loopback_either_kind_of_token_will_do(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="set TURNOUT_ADMIN_TOKEN, or --tokens"):
        check_settings(Settings(admin_host="10.0.0.5"))
    check_settings(Settings(admin_host="10.0.0.5", tokens=tmp_path / "tokens.yaml"))
    check_settings(Settings(admin_host="10.0.0.5", admin_token="5" * 32))
