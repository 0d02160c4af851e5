"""Streams of real images come back, in order; whatever is wrong with one, nothing of it is kept."""

from __future__ import annotations

import io
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.recorded import Recorded
from tests.unit.builders import UUID, Recorder
from vbackup.errors import BusyError, ChainError, NoSpaceError, StorageError, StreamError
from vbackup.model import Backup, Level
from vbackup.operations import restore, stream_restore
from vbackup.operations.restore import RestoreRequest
from vbackup.operations.stream_restore import Received
from vbackup.repository import inspection, manifest, stream_members
from vbackup.repository.choice import Wanted
from vbackup.repository.inspection import Kind
from vbackup.repository.repository import Repository, Stage
from vbackup.repository.stream_tar import BLOCK_BYTES, SUMS, Reader, Writer
from vbackup.stop import Stop


def stream(recorded: Recorded, one: Backup) -> bytes:
    written = io.BytesIO()
    directory = recorded.repository.directory(UUID, one.id)
    stream_members.send(one, directory, written.write, reporter=Recorder(), check=lambda: None)
    return written.getvalue()


def receive(repo: Repository, data: bytes, *, domain: str | None = None) -> list[Received]:
    read = io.BytesIO(data).read
    return stream_restore.run(read, repository=repo, domain=domain, reporter=Recorder(), stop=Stop())


def refused(repo: Repository, data: bytes, match: str, *, domain: str | None = None) -> None:
    """The stream is refused with status 6, and the repository is as it was."""
    before = tree(repo.path)
    with pytest.raises(ChainError, match=match) as caught:
        receive(repo, data, domain=domain)
    assert caught.value.status == 6
    assert tree(repo.path) == before


def tree(path: Path) -> dict[str, bytes]:
    return {
        str(one.relative_to(path)): one.read_bytes() if one.is_file() else b""
        for one in path.rglob("*")
        if one.name != "lock"
    }


def members(data: bytes) -> list[tuple[str, bytes]]:
    reader = Reader(io.BytesIO(data).read)
    member, found = reader.first(), []
    while member is not None:
        found.append((member.name.rpartition("/")[2], b"".join(reader.content(member))))
        if found[-1][0] == SUMS:
            return found[:-1]
        member = reader.next()
    raise AssertionError("no end")


def packed(one: Backup, files: Sequence[tuple[str, bytes]]) -> bytes:
    """A stream with a right form and right digests, of anything."""
    written = io.BytesIO()
    writer = Writer(written.write, f"{UUID}/{one.id}", time_s=0)
    for name, data in files:
        writer.add(name, len(data), iter([data]))
    writer.end()
    return written.getvalue()


def contents(repo: Repository, one: Backup, output: Path) -> dict[str, bytes]:
    """The disks of a backup, restored from the repository."""
    request = RestoreRequest("web", output, Wanted(one.id), checkpoint=False)
    restored = restore.run(request, repository=repo, reporter=Recorder(), stop=Stop())
    return {dev: raw(path) for dev, path in restored.images.items()}


def raw(path: Path) -> bytes:
    output = path.with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, output], check=True)
    return output.read_bytes()


def test_chain_comes_back_byte_for_byte(untouched: Recorded, repo: Repository, tmp_path: Path) -> None:
    for one in untouched.backups:
        [received] = receive(repo, stream(untouched, one), domain="web")
        assert (received.backup, received.is_new) == (one, True)
    assert repo.catalogue(UUID).broken == ()
    for one in untouched.backups:
        assert contents(repo, one, tmp_path / one.id) == untouched.expected(one)


def test_streams_that_follow_each_other_are_one_input(untouched: Recorded, repo: Repository) -> None:
    data = b"".join(stream(untouched, one) for one in untouched.backups)
    assert [one.backup for one in receive(repo, data)] == untouched.backups


def test_backup_that_is_there_already_is_read_and_left(untouched: Recorded, repo: Repository) -> None:
    data = stream(untouched, untouched.backups[0])
    receive(repo, data)
    before = tree(repo.path)
    assert [one.is_new for one in receive(repo, data)] == [False]
    assert tree(repo.path) == before
    refused(repo, data[:-20480], "cut|ends without")


def test_sequence_is_that_of_arrival(untouched: Recorded, repo: Repository) -> None:
    """A stage that was lost and made again counts from one, and a director gives all its streams."""
    full = untouched.backups[0]
    files = members(stream(untouched, full))
    first = files[0][1].decode()
    receive(repo, stream(untouched, full))
    later_id = "20261201T000000Z-full"
    renamed = manifest.text_of({**manifest.parse_json(first), "id": later_id})
    written = io.BytesIO()
    writer = Writer(written.write, f"{UUID}/{later_id}", time_s=0)
    for name, data in [("manifest.json", renamed.encode()), *files[1:]]:
        writer.add(name, len(data), iter([data]))
    writer.end()
    [received] = receive(repo, written.getvalue())
    assert received.backup.sequence == 2
    assert [one.id for one in repo.catalogue(UUID).history.backups] == [full.id, later_id]


def test_directory_gets_the_disks_of_the_last_stream(untouched: Recorded, tmp_path: Path) -> None:
    last = untouched.backups[-1]
    data = b"".join(stream(untouched, one) for one in untouched.backups)
    restored, received = stream_restore.run_to_directory(
        io.BytesIO(data).read, tmp_path / "new" / "web", reporter=Recorder(), stop=Stop()
    )
    written = set((tmp_path / "new" / "web").iterdir())
    assert [one.backup.id for one in received] == [one.id for one in untouched.backups]
    assert set(restored.files) == written
    assert {dev: raw(path) for dev, path in restored.images.items()} == untouched.expected(last)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new", tmp_path / "new" / "web")} == {0o711}
    names = {path.name for path in (tmp_path / "new" / "web").iterdir()}
    assert names == {"domain.xml", "nvram", *(f"{dev}.{end}" for dev in restored.images for end in ("qcow2", "raw"))}


@pytest.mark.parametrize("is_new", [True, False])
def test_directory_is_as_it_was_if_a_stream_is_bad(untouched: Recorded, tmp_path: Path, is_new: bool) -> None:
    output = tmp_path / "web"
    if not is_new:
        output.mkdir()
        (output / ".vbackup-streams").mkdir()  # of a run that was killed
    data = stream(untouched, untouched.backups[0]) + stream(untouched, untouched.backups[1])[:-40960]
    with pytest.raises(StreamError):
        stream_restore.run_to_directory(io.BytesIO(data).read, output, reporter=Recorder(), stop=Stop())
    assert not output.exists() if is_new else [*output.iterdir()] == []


def test_directory_that_has_files_or_is_in_use_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    def read(_size: int) -> bytes:
        raise AssertionError

    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="is not empty"):
        stream_restore.run_to_directory(read, tmp_path, reporter=Recorder(), stop=Stop())
    (tmp_path / "file").unlink()
    with stream_restore._claimed(tmp_path):
        (tmp_path / stream_restore._CHAIN).mkdir()
        with pytest.raises(BusyError, match="Another vbackup restores"):
            stream_restore.run_to_directory(read, tmp_path, reporter=Recorder(), stop=Stop())
        assert (tmp_path / stream_restore._CHAIN).exists()  # hours of the other's reading


def test_directory_in_a_repository_is_refused(repo: Repository) -> None:
    with pytest.raises(StorageError, match="where only backups belong"):
        stream_restore.run_to_directory(io.BytesIO().read, repo.path / "new" / "out", reporter=Recorder(), stop=Stop())
    assert not (repo.path / "new").exists()


# what is refused


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.3, 0.6, 0.95])
def test_stream_that_is_cut(untouched: Recorded, repo: Repository, share: float) -> None:
    data = stream(untouched, untouched.backups[0]).rstrip(b"\0")
    refused(repo, data[: int(len(data) * share)], "cut off|ends without|no stream")


def test_nothing_and_something_else(untouched: Recorded, repo: Repository) -> None:
    refused(repo, b"", "no stream on standard input")
    refused(repo, b"\0" * 10240, "no stream on standard input")
    refused(repo, untouched.path(untouched.backups[0]).read_bytes(), "no stream of vbackup")


def test_stream_without_its_beginning(untouched: Recorded, repo: Repository) -> None:
    data = stream(untouched, untouched.backups[0])
    refused(repo, data[data.index(f"{UUID}/{untouched.backups[0].id}/vda".encode()) :], "not with a manifest")


def test_streams_in_another_order(untouched: Recorded, repo: Repository) -> None:
    one, two, three = untouched.backups[:3]
    refused(repo, stream(untouched, two), "is missing")
    receive(repo, stream(untouched, one))
    refused(repo, stream(untouched, three), "is missing")


def test_stream_of_another_domain(untouched: Recorded, repo: Repository) -> None:
    data = stream(untouched, untouched.backups[0])
    for domain in ("db", UUID.replace("1", "2")):
        refused(repo, data, "and not of", domain=domain)
    assert receive(repo, data, domain=UUID.upper())[0].is_new


def test_streams_of_two_domains_are_no_directory(untouched: Recorded, repo: Repository, tmp_path: Path) -> None:
    one, other = untouched.backups[0], UUID.replace("1", "2")
    files = members(stream(untouched, one))
    document = manifest.parse_json(files[0][1].decode())
    text = manifest.text_of({**document, "domain": {"name": "db", "uuid": other}})
    written = io.BytesIO()
    writer = Writer(written.write, f"{other}/{one.id}", time_s=0)
    for name, data in [("manifest.json", text.encode()), *files[1:]]:
        writer.add(name, len(data), iter([data]))
    writer.end()
    with pytest.raises(StreamError, match="of 2 domains"):
        stream_restore.run_to_directory(
            io.BytesIO(stream(untouched, one) + written.getvalue()).read,
            tmp_path / "out",
            reporter=Recorder(),
            stop=Stop(),
        )
    assert not (tmp_path / "out").exists()


def test_repository_with_another_backup_of_that_id(untouched: Recorded, repo: Repository) -> None:
    one = untouched.backups[0]
    data = stream(untouched, one)
    receive(repo, data)
    document = manifest.parse_json(members(data)[0][1].decode())
    text = manifest.text_of({**document, "duration_s": 99.0})
    refused(repo, packed(one, [("manifest.json", text.encode()), *members(data)[1:]]), "another backup")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])  # nothing is changed in it
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), is_cut=st.booleans())
def test_whatever_is_damaged_nothing_wrong_is_kept(untouched: Recorded, at: float, bit: int, is_cut: bool) -> None:
    """A bit of padding, or of a field that nobody reads, may differ; then all that is kept is right."""
    one = untouched.backups[0]
    data = bytearray(stream(untouched, one))
    place = int(at * len(data))
    if is_cut:
        del data[place:]
    else:
        data[place] ^= 1 << bit
    with TemporaryDirectory() as directory:
        repo = Repository.create(Path(directory) / "repo")
        try:
            receive(repo, bytes(data))
        except ChainError:
            # What follows the end of a stream is read as the next stream, and is not valid.
            is_after = place >= len(bytes(data).rstrip(b"\0")) - BLOCK_BYTES
            assert is_after or not (repo.path / UUID).exists()
        kept = repo.directory(UUID, one.id)
        if kept.exists():
            names = {path.name for path in untouched.path(one).parent.iterdir()}
            assert {path.name: path.read_bytes() for path in kept.iterdir()} == {
                name: untouched.path(one, name).read_bytes() for name in names
            }


def swap(files: list[tuple[str, bytes]]) -> None:
    files[-1], files[-2] = files[-2], files[-1]


def drop(files: list[tuple[str, bytes]]) -> None:
    del files[-2]


def twice(files: list[tuple[str, bytes]]) -> None:
    files.append(files[-1])


def longer(files: list[tuple[str, bytes]]) -> None:
    files[-1] = (files[-1][0], files[-1][1] + b"\0")


def shorter(files: list[tuple[str, bytes]]) -> None:
    files[-1] = (files[-1][0], files[-1][1][:-1])


def flipped_image(files: list[tuple[str, bytes]]) -> None:
    data = bytearray(files[-1][1])
    data[-4096] ^= 1
    files[-1] = (files[-1][0], bytes(data))


def flipped_list(files: list[tuple[str, bytes]]) -> None:
    data = bytearray(files[-2][1])
    data[-1] ^= 1
    files[-2] = (files[-2][0], bytes(data))


def huge_list(files: list[tuple[str, bytes]]) -> None:
    files[-2] = (files[-2][0], bytes(1 << 20))


def other_xml(files: list[tuple[str, bytes]]) -> None:
    files[1] = ("domain.xml", files[1][1] + b"<!-- -->")


def other_backing_file(files: list[tuple[str, bytes]]) -> None:
    """The header names a file of the host; its block list says nothing of that."""
    data = bytearray(files[-1][1])
    end = 4096
    name = b"/etc/shadow"
    data[8:20] = end.to_bytes(8, "big") + len(name).to_bytes(4, "big")
    data[end : end + len(name)] = name
    files[-1] = (files[-1][0], bytes(data))


def no_utf8(files: list[tuple[str, bytes]]) -> None:
    files[0] = ("manifest.json", b"\xff" + files[0][1])


def damaged_manifest(files: list[tuple[str, bytes]]) -> None:
    files[0] = ("manifest.json", files[0][1].replace(b'"frozen_ms": 0', b'"frozen_ms": 1'))


def outside(files: list[tuple[str, bytes]]) -> None:
    files.insert(1, ("../../../escaped", b"x"))


def further(files: list[tuple[str, bytes]]) -> None:
    files.insert(1, ("verified.json", b"{}"))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (swap, "should have"),
        (drop, "should have"),
        (twice, "where it should end"),
        (longer, "has .* bytes in the stream"),
        (shorter, "has .* bytes in the stream"),
        (flipped_image, "is damaged: "),
        (flipped_list, "is damaged: "),
        (huge_list, "at most"),
        (other_xml, "bytes in the stream|digest differs"),
        (other_backing_file, "names the backing file '/etc/shadow'"),
        (no_utf8, "no UTF-8"),
        (damaged_manifest, "differs from its digest"),
        (outside, "should have"),
        (further, "should have"),
    ],
)
def test_stream_of_a_right_form_with_wrong_content(
    untouched: Recorded,
    repo: Repository,
    tmp_path: Path,
    change: Callable[[list[tuple[str, bytes]]], None],
    match: str,
) -> None:
    """Whoever can write a stream can also write its digests: the manifest and the block lists decide."""
    one = untouched.backups[0]
    files = members(stream(untouched, one))
    change(files)
    refused(repo, packed(one, files), match)
    assert {path.name for path in tmp_path.iterdir()} == {"repo"}


def test_plain_tar_writes_no_stream(untouched: Recorded, repo: Repository, tmp_path: Path) -> None:
    """It is another order, and other headers; what it unpacks is a backup, and what it packs is for tar."""
    one = untouched.backups[0]
    argv = ["tar", "-cf", tmp_path / "plain.tar", "-C", untouched.repository.path, f"{UUID}/{one.id}"]
    subprocess.run(argv, check=True)
    data = (tmp_path / "plain.tar").read_bytes()
    (tmp_path / "plain.tar").unlink()
    refused(repo, data, "no stream|no plain file|not with a manifest")


def test_unpacked_with_tar_a_stream_is_the_backup(untouched: Recorded, repo: Repository, tmp_path: Path) -> None:
    for one in untouched.backups:
        subprocess.run(["tar", "-xf", "-", "-C", repo.path], check=True, input=stream(untouched, one))
    last = untouched.backups[-1]
    assert repo.catalogue(UUID).broken == ()
    found = inspection.inspect(repo, UUID, check=lambda: None)
    # tar makes directories as it likes, and the name is known when check --repair has read the manifests.
    assert {trouble.kind for trouble in found.troubles} <= {Kind.MODE, Kind.NAMES}
    request = RestoreRequest(UUID, tmp_path / "out", Wanted(last.id), checkpoint=False)
    restored = restore.run(request, repository=repo, reporter=Recorder(), stop=Stop())
    assert {dev: raw(path) for dev, path in restored.images.items()} == untouched.expected(last)


def test_full_filesystem_keeps_nothing(untouched: Recorded, repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(repo.path)
    data = stream(untouched, untouched.backups[0])
    write_pieces = Stage.write_pieces

    def full(stage: Stage, name: str, pieces: Iterator[bytes], *, check: Callable[[], None]) -> tuple[str, int]:
        if name == "vda.qcow2":
            raise NoSpaceError("Cannot write")
        return write_pieces(stage, name, pieces, check=check)

    monkeypatch.setattr(Stage, "write_pieces", full)
    with pytest.raises(NoSpaceError):
        receive(repo, data)
    assert tree(repo.path) == before


def test_what_a_dead_restore_has_left_is_in_nobodys_way(untouched: Recorded, repo: Repository) -> None:
    one = untouched.backups[0]
    left = repo.stage_path(UUID, one.id)
    left.mkdir(parents=True)
    (left / "vda.qcow2").write_bytes(b"half")
    assert receive(repo, stream(untouched, one))[0].is_new
    assert one.level is Level.FULL
