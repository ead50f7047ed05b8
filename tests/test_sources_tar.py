import contextlib
import gzip
import io
import os
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featreg.errors import SourceError
from featreg.sources import open_source
from featreg.sources.tar import TarSource


def pack(path, members, **options):
    """A tar of (name, bytes), or of TarInfo as they are."""
    with tarfile.open(path, "w", **options) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def rows(source):
    return [(sample.key, sample.target) for sample in source.samples]


def contents(source):
    """The bytes of every row, or what is wrong with it."""
    found = []
    for sample in source.samples:
        try:
            found.append(source.read(sample))
        except SourceError as error:
            found.append(error.problem)
    return found


def test_members_of_one_name_are_one_sample(tmp_path):
    members = [
        ("a/1.jpg", b"one"),
        ("a/1.cls", b"7\n"),
        ("a/1.json", b'{"label": 3}'),
        ("a/2.mask.png", b"mask"),
        ("a/2.cls", b"8"),
        ("a/2.PNG", b"two"),
    ]
    source = TarSource(pack(tmp_path / "x.tar", members))
    assert rows(source) == [("x.tar/a/1", 7), ("x.tar/a/2", 8)]
    assert contents(source) == [b"one", b"two"]
    assert [sample.size for sample in source.samples] == [3, 3]
    assert contents(TarSource(tmp_path / "x.tar", image="mask.png", target="none")) == [b"mask"]
    assert TarSource(tmp_path / "x.tar", image="mask.png", target="none").skipped == 1


NAMES = st.text(st.characters(exclude_characters="\0/.", exclude_categories=["Cs"]), min_size=1, max_size=40)


@settings(max_examples=30)
@given(st.lists(st.tuples(NAMES, st.binary(max_size=3000)), min_size=1, unique_by=lambda pair: pair[0]), st.data())
def test_every_offset_leads_to_the_bytes_of_its_member(tmp_path_factory, samples, data):
    style = data.draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    members = [(f"deep/{name}.png", content) for name, content in samples]
    path = pack(tmp_path_factory.mktemp("tar") / "x.tar", members, format=style)
    source = TarSource(path)
    assert [sample.key for sample in source.samples] == [f"x.tar/deep/{name}" for name, _ in samples]
    assert contents(source) == [content for _, content in samples]


def test_shards_are_in_natural_order_and_their_names_lead_the_keys(tmp_path):
    for number in (10, 9):
        pack(tmp_path / f"{number}.tar", [("1.png", str(number).encode())])
    (tmp_path / ".hidden.tar").write_bytes(b"")
    for path in (tmp_path, tmp_path / "*.tar", tmp_path / "{9..10}.tar", tmp_path / "{10,9}.tar"):
        source = open_source(path)
        assert rows(source) == [("9.tar/1", None), ("10.tar/1", None)]
        assert contents(source) == [b"9", b"10"]
    [alone] = open_source(tmp_path / "10.tar").samples
    assert alone.key == "10.tar/1"


def test_targets_come_from_where_they_are_said_to(tmp_path):
    members = [("1.jpg", b""), ("1.json", b'{"label": 3, "kind": "dog"}'), ("2.jpg", b""), ("2.json", b"[")]
    path = pack(tmp_path / "x.tar", members)
    assert rows(TarSource(path)) == [("x.tar/1", 3), ("x.tar/2", None)]
    named = TarSource(path, target="json:kind", classes=["cat", "dog"])
    assert (rows(named), named.classes) == ([("x.tar/1", 1), ("x.tar/2", None)], ("cat", "dog"))
    with pytest.raises(SourceError, match="no whole number") as caught:
        list(TarSource(path, target="json:kind").index())
    assert "classes=" in caught.value.expected


def test_members_of_a_sample_that_lie_apart_are_noticed(tmp_path):
    path = pack(tmp_path / "x.tar", [("1.jpg", b""), ("2.jpg", b""), ("1.cls", b"1"), ("2.cls", b"2")])
    with pytest.raises(SourceError, match="do not lie together"):
        list(TarSource(path).index())
    assert len(TarSource(path, target="none")) == 2
    reverse = pack(tmp_path / "y.tar", [("1.cls", b"1"), ("2.cls", b"2"), ("1.jpg", b""), ("2.jpg", b"")])
    with pytest.raises(SourceError, match="do not lie together"):
        list(TarSource(reverse).index())


def test_a_document_of_the_whole_archive_is_no_sample(tmp_path):
    source = TarSource(
        pack(tmp_path / "x.tar", [("1.jpg", b"one"), ("about.json", b'{"label": 1}'), ("2.jpg", b"two")])
    )
    assert (contents(source), source.skipped) == ([b"one", b"two"], 1)


class Broken(io.BytesIO):
    """A file whose disk fails behind the first two members."""

    def read(self, size=-1):
        if self.tell() >= 3072:
            raise OSError(5, "Input/output error")
        return super().read(size)


def test_a_disk_that_fails_is_no_damage(tmp_path, monkeypatch):
    path = pack(tmp_path / "x.tar", [(f"{row}.png", b"content") for row in range(5)])
    monkeypatch.setattr("featreg.sources.tar.open_file", lambda uri: Broken(path.read_bytes()))
    with pytest.raises(SourceError, match="Input/output error"):
        list(TarSource(path).index())


def test_samples_without_an_image_and_hidden_members_are_counted(tmp_path):
    members = [special("d.jpg", tarfile.DIRTYPE), ("1.txt", b""), (".jpg", b""), ("d/.x.jpg", b""), ("2.jpg", b"two")]
    source = TarSource(pack(tmp_path / "x.tar", members))
    assert source.skipped == 3
    assert contents(source) == [b"two"]


def test_links_devices_and_names_that_lead_out_are_rows_that_fail(tmp_path):
    members = [
        ("ok1.png", b"one"),
        special("sym.png", tarfile.SYMTYPE, "/etc/passwd"),
        special("hard.png", tarfile.LNKTYPE, "ok1.png"),
        special("pipe.png", tarfile.FIFOTYPE),
        ("../../slip.png", b"slip"),
        ("/root.png", b"slip"),
        ("a/../../slip.png", b"slip"),
        ("ok2.png", b"two"),
    ]
    source = TarSource(pack(tmp_path / "x.tar", members))
    before = sorted(os.walk(tmp_path))
    found = contents(source)
    assert [found[0], found[7]] == [b"one", b"two"]
    assert all("link" in said for said in found[1:4])
    assert all("leads out of the archive" in said for said in found[4:7])
    assert sorted(os.walk(tmp_path)) == before


@pytest.mark.parametrize("cut", range(0, 6 * 512, 100))
def test_an_archive_cut_anywhere_keeps_what_is_whole_and_says_so(tmp_path, cut):
    whole = pack(tmp_path / "whole.tar", [("1.png", b"1" * 700), ("2.png", b"2" * 700)]).read_bytes()
    (tmp_path / "x.tar").write_bytes(whole[:cut])
    source = TarSource(tmp_path / "x.tar")
    found = contents(source)
    expected = [b"1" * 700] * (cut >= 512 + 700) + [b"2" * 700] * (cut >= 1536 + 512 + 700)
    assert [content for content in found if isinstance(content, bytes)] == expected
    assert found[-1] == "the archive is truncated or damaged here, and what follows in it is lost"
    assert source.samples[-1].key.startswith("x.tar/at byte ")


def test_a_damaged_archive_does_not_hide_the_others(tmp_path):
    pack(tmp_path / "0.tar", [("1.png", b"zero")])
    pack(tmp_path / "1.tar", [("1.png", b"one"), ("2.png", b"two")])
    pack(tmp_path / "2.tar", [("1.png", b"two")])
    data = bytearray((tmp_path / "1.tar").read_bytes())
    data[1024 + 150] ^= 0xFF  # in the checksum of the second header
    (tmp_path / "1.tar").write_bytes(data)
    found = contents(TarSource(tmp_path))
    assert [found[0], found[1], found[3]] == [b"zero", b"one", b"two"]
    assert "damaged" in found[2]


@settings(max_examples=50)
@given(st.data())
def test_flipped_bits_never_escape_as_anything_else(tmp_path_factory, data):
    path = pack(tmp_path_factory.mktemp("tar") / "x.tar", [(f"{row}.png", bytes([row]) * 600) for row in range(3)])
    damaged = bytearray(path.read_bytes()[: 4 * 1536])
    for place, mask in data.draw(
        st.lists(st.tuples(st.integers(0, len(damaged) - 1), st.integers(1, 255)), max_size=8)
    ):
        damaged[place] ^= mask
    path.write_bytes(damaged)
    source = TarSource(path)
    with contextlib.suppress(SourceError):
        assert len(contents(source)) >= 1


def test_numbers_beyond_all_measure_in_a_header_end(tmp_path):
    """A size of minus 512 would lead back to the member itself, for ever; one of 2^62 beyond any memory."""
    for size in (-512, 2**62):
        info = tarfile.TarInfo("1.png")
        info.size = size
        header = info.tobuf(tarfile.GNU_FORMAT)
        (tmp_path / "x.tar").write_bytes(header + bytes(1024))
        found = contents(TarSource(tmp_path / "x.tar"))
        assert all(isinstance(content, str) for content in found)


def test_a_thousand_long_names_in_a_row_end(tmp_path):
    info = special("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) * 2000)
    assert ["damaged" in said for said in contents(TarSource(tmp_path / "x.tar"))] == [True]


def test_a_compressed_archive_and_one_of_no_images_are_errors(tmp_path):
    plain = pack(tmp_path / "x.tar", [("1.txt", b"")])
    with pytest.raises(SourceError, match="no images found"):
        list(TarSource(plain).index())
    (tmp_path / "y.tar").write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(SourceError, match="is compressed"):
        list(TarSource(tmp_path / "y.tar").index())


def test_a_folder_without_archives_is_an_error(tmp_path):
    with pytest.raises(SourceError, match=r"holds no \.tar"):
        TarSource(tmp_path)
