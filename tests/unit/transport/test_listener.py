"""Who may connect, what a listener leaves behind, and what is said where nobody can listen."""

from __future__ import annotations

import errno
import gc
import os
import socket
import stat
import time
import warnings
from pathlib import Path

import pytest

from precopy.errors import PeerError, UsageError
from precopy.transport import Address, Listener, connect
from precopy.transport.address import UNIX_PATH_BYTES
from support.streams import SOON, Background, close_all, pair_at, receive, serve_one


class TestListener:
    def test_the_system_chooses_a_port(self) -> None:
        with Listener(Address(host="127.0.0.1")) as listener:
            assert listener.address.port > 0
            assert str(listener.address) == f"tcp:127.0.0.1:{listener.address.port}"

    @pytest.mark.parametrize("umask", [0, 0o002, 0o022, 0o077, 0o177, 0o777])
    def test_a_socket_is_its_user_s_alone_before_it_listens_and_has_its_name_after_that(
        self, umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, modes = tmp_path / "socket", []
        listen = socket.socket.listen

        class Watched(socket.socket):
            def listen(self, *args: int) -> None:
                (aside,) = tmp_path.iterdir()
                modes.append(stat.S_IMODE(aside.stat().st_mode))
                assert aside != path
                with socket.socket(socket.AF_UNIX) as early, pytest.raises(ConnectionRefusedError):
                    early.connect(str(aside))
                listen(self, *args)

        monkeypatch.setattr("precopy.transport.sockets.socket.socket", Watched)
        before = os.umask(umask)
        try:
            with Listener(Address(path=str(path))):
                assert modes == [0o600]
                assert list(tmp_path.iterdir()) == [path]
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
                assert os.umask(umask) == umask
        finally:
            os.umask(before)

    def test_a_file_that_comes_while_it_is_about_to_listen_is_left_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, listen = tmp_path / "socket", socket.socket.listen

        class Late(socket.socket):
            def listen(self, *args: int) -> None:
                listen(self, *args)
                path.write_text("mine", encoding="utf-8")

        monkeypatch.setattr("precopy.transport.sockets.socket.socket", Late)
        with pytest.raises(UsageError, match="Address already in use; a file that is no socket has this name"):
            Listener(Address(path=str(path)))
        assert path.read_text(encoding="utf-8") == "mine"
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize("why", [errno.EPERM, errno.EOPNOTSUPP])
    def test_where_files_cannot_have_two_names(self, why: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_link(*_: object, **__: object) -> None:
            raise OSError(why, os.strerror(why))

        monkeypatch.setattr(os, "link", no_link)
        near, far = pair_at(Address(path=str(tmp_path / "socket")), SOON)
        near.send([b"x"])
        assert receive(far, 1) == b"x"
        close_all(near, far)
        assert list(tmp_path.iterdir()) == []

    def test_a_name_beside_which_there_is_no_room(self, tmp_path: Path) -> None:
        room = UNIX_PATH_BYTES - len(os.fsencode(tmp_path)) - 1
        folder = tmp_path / ("d" * (room - 3))
        folder.mkdir()
        path = folder / "s"
        with Listener(Address(path=str(path))):
            assert list(folder.iterdir()) == [path]
        assert not path.exists()

    def test_the_socket_file_is_there_while_it_listens(self, tmp_path: Path) -> None:
        path = tmp_path / "socket"
        with Listener(Address(path=str(path))):
            assert stat.S_ISSOCK(path.stat().st_mode)
        assert not path.exists()

    def test_a_stale_socket_file_is_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "socket"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        near, far = pair_at(Address(path=str(path)), SOON)
        near.send([b"x"])
        assert receive(far, 1) == b"x"
        close_all(near, far)
        assert not path.exists()

    def test_a_live_address_is_refused_and_stays_alive(self, address: Address) -> None:
        with Listener(address) as first:
            with pytest.raises(UsageError, match="cannot listen at"):
                Listener(first.address)
            accepted = Background(lambda: serve_one(first))
            near = connect(first.address, SOON)
            assert receive(near, 2) == b"ok"
            near.close()
            accepted.result()

    def test_another_listener_that_looks_whether_it_is_alive_is_no_peer(self, tmp_path: Path) -> None:
        with Listener(Address(path=str(tmp_path / "socket"))) as first:
            with pytest.raises(UsageError):
                Listener(first.address)
            near = connect(first.address, SOON)
            near.send([b"it is me"])
            far = first.accept(SOON)
            assert receive(far, 8) == b"it is me"
            close_all(near, far)

    def test_a_directory_is_left_alone(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="cannot listen"):
            Listener(Address(path=str(tmp_path)))
        assert tmp_path.is_dir()

    def test_a_file_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "precious"
        path.write_text("mine", encoding="utf-8")
        with pytest.raises(UsageError, match="Address already in use"):
            Listener(Address(path=str(path)))
        assert path.read_text(encoding="utf-8") == "mine"

    def test_a_listener_that_cannot_be_leaves_no_socket_open(self, tmp_path: Path) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with pytest.raises(UsageError):
                Listener(Address(path=str(tmp_path)))
            gc.collect()
        assert [str(warning.message) for warning in caught] == []

    def test_a_directory_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="No such file"):
            Listener(Address(path=str(tmp_path / "no" / "socket")))

    def test_a_file_that_took_its_place_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "socket"
        listener = Listener(Address(path=str(path)))
        path.unlink()
        path.write_text("mine", encoding="utf-8")
        listener.close()
        assert path.read_text(encoding="utf-8") == "mine"

    def test_closing_twice_is_harmless(self, address: Address) -> None:
        listener = Listener(address)
        listener.close()
        listener.close()

    def test_wake_ends_an_accept(self, address: Address) -> None:
        with Listener(address) as listener:
            waiting = Background(lambda: listener.accept(SOON))
            time.sleep(0.05)
            assert waiting.is_alive()
            listener.wake()
            with pytest.raises(PeerError, match="no connection at"):
                waiting.result()

    def test_peers_are_named(self, address: Address) -> None:
        near, far = pair_at(address, SOON)
        assert str(near.peer).startswith("unix:" if address.path else "tcp:")
        assert ("peer at unix:" if address.path else "tcp:") in far.peer
        close_all(near, far)

    def test_no_descriptor_is_left_over(self, address: Address) -> None:
        before = len(os.listdir("/proc/self/fd"))
        near, far = pair_at(address, SOON)
        close_all(near, far)
        assert len(os.listdir("/proc/self/fd")) == before


class TestAdvice:
    """What nobody can listen at is said with what to do, whoever listens: guests, standbys, control sockets."""

    @pytest.mark.parametrize(
        ("path", "says"),
        [
            (
                "file",
                "Address already in use; a file that is no socket has this name, and is left as it is: use another",
            ),
            ("folder", "a directory has this name, and is left as it is: use another path"),
            ("link", "a file that is no socket has this name"),
            ("taken", "another program listens there: use another path, or end that program"),
            ("missing/x", "missing is not there: use a path in a directory that is there"),
            ("file/x", "file is no directory: use a path in a directory that is there"),
            ("/proc/x", "no such|no socket can be made in /proc|No such file"),
        ],
    )
    def test_unix(self, tmp_path: Path, path: str, says: str) -> None:
        (tmp_path / "file").write_text("mine")
        (tmp_path / "folder").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "file")
        with Listener(Address(path=str(tmp_path / "taken"))):
            with pytest.raises(UsageError, match=says) as refused:
                Listener(Address(path=str(tmp_path / path)))
            assert refused.value.exit_code == 2
        assert (tmp_path / "file").read_text() == "mine"

    def test_tcp(self) -> None:
        with Listener(Address(host="127.0.0.1", port=0)) as first:
            says = "another program listens there: use another port, or 0 for one that is free"
            with pytest.raises(UsageError, match=says):
                Listener(first.address)
