from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import subprocess
import sys
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

    @pytest.mark.parametrize(
        "damage", ["refused", "gone", "large", "a directory", "binary", "a FIFO", "0664", "0602"]
    )
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
        elif damage == "a FIFO":
            os.mkfifo(path)
        elif damage.isdigit():
            path.write_text(f"ann: {entry(B)}\n")
            path.chmod(int(damage, 8))
        for _ in range(3):
            file.look()
        assert self.names(file) == ["pager"]
        assert "the tokens of before are in force" in file.trouble and str(path) in file.trouble
        assert [record.levelno for record in caplog.records] == [logging.ERROR]
        if damage == "a directory":
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        path.write_text(kept)
        file.look()
        assert (self.names(file), file.trouble) == (["pager"], "")

    @pytest.mark.parametrize("mode", [0o640, 0o644, 0o400])
    def test_others_may_read_it(self, path: Path, mode: int) -> None:
        path.chmod(mode)
        assert self.names(TokensFile(path)) == ["pager"]

    def test_what_others_may_write_is_refused_with_the_remedy(self, path: Path) -> None:
        path.chmod(0o660)
        with pytest.raises(TokensError, match=rf"\(mode 0660\).*chmod go-w {path}"):
            TokensFile(path)
        os.mkfifo(path.with_name("fifo"))
        with pytest.raises(TokensError, match="no regular file"):
            TokensFile(path.with_name("fifo"))

    def test_a_disk_that_hangs_is_said_and_holds_up_no_exit(self, path: Path) -> None:
        """In a process of its own: what is waited for is its end."""
        code = f"""
import asyncio, threading
from pathlib import Path
from gateway.admin import tokens

tokens.LOOK_S = tokens.HANG_S = 0.01

class Hanging(tokens.TokensFile):
    def look(self):
        threading.Event().wait()

async def main():
    file = Hanging(Path({str(path)!r}))
    run = asyncio.create_task(file.run())
    while not file.trouble:
        await asyncio.sleep(0.01)
    run.cancel()
    print(file.trouble)

asyncio.run(main())
"""
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "no answer for" in done.stdout and "the tokens of before are in force" in done.stdout

    async def test_it_is_looked_at_all_the_time(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gateway.admin.tokens.LOOK_S", 0.01)
        file = TokensFile(path)
        run = asyncio.create_task(file.run())
        for name in ("ann", "bob"):
            path.write_text(f"{name}: {entry(B)}\n")
            async with asyncio.timeout(10):
                while self.names(file) != [name]:
                    await asyncio.sleep(0.01)
        run.cancel()

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
