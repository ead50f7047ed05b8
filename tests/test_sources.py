import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featreg.errors import SourceError
from featreg.sources import FolderSource, Sample, Source, files, open_source
from featreg.sources.order import natural_order

PHOTOS = Path(__file__).parent.parent / "photos"


def folder(root, *names):
    """Files at these paths, each holding its own name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))
    return FolderSource(root)


def keys(source):
    return [sample.key for sample in source.samples]


def test_the_targets_of_the_photos_are_those_of_imagefolder():
    datasets = pytest.importorskip("torchvision.datasets")
    expected = datasets.ImageFolder(str(PHOTOS))
    source = FolderSource(PHOTOS)
    assert source.kind == "imagefolder"
    assert list(source.classes) == expected.classes
    found = {str(PHOTOS / sample.key): sample.target for sample in source.samples}
    assert found == dict(expected.samples)
    assert source.skipped == 1


def test_classes_are_in_code_point_order_and_keep_their_place_without_images(tmp_path):
    """As torchvision's ImageFolder has them with allow_empty=True."""
    datasets = pytest.importorskip("torchvision.datasets")
    (tmp_path / "b_empty").mkdir()
    source = folder(tmp_path, "c10/x.jpg", "c9/x.jpg", "C/deep/er/x.jpg", "é/x.jpg")
    expected = datasets.ImageFolder(str(tmp_path), allow_empty=True)
    assert list(source.classes) == expected.classes == ["C", "b_empty", "c10", "c9", "é"]
    assert {str(tmp_path / sample.key): sample.target for sample in source.samples} == dict(expected.samples)


def test_rows_are_in_natural_order(tmp_path):
    assert keys(folder(tmp_path, "10.jpg", "9.jpg", "B.jpg", "a.jpg", "09.jpg")) == [
        "09.jpg",
        "9.jpg",
        "10.jpg",
        "B.jpg",
        "a.jpg",
    ]


@given(st.lists(st.integers(0, 10**30), min_size=2, unique=True))
def test_natural_order_is_the_order_of_the_numbers(numbers):
    names = [f"x{number}y{number}.png" for number in numbers]
    assert sorted(names, key=natural_order) == [f"x{number}y{number}.png" for number in sorted(numbers)]


NAMES = st.text(st.sampled_from("0019ab. é"), max_size=12)


@given(NAMES, NAMES)
def test_natural_order_compares_runs_of_digits_as_numbers_and_the_rest_by_code_points(first, second):
    def order(name):
        parts = re.split("([0-9]+)", name)
        parts[1::2] = map(int, parts[1::2])
        return parts, name

    assert (natural_order(first) < natural_order(second)) == (order(first) < order(second))


@given(st.text(), st.text())
def test_natural_order_is_total(first, second):
    assert (natural_order(first) == natural_order(second)) == (first == second)
    assert (natural_order(first) < natural_order(second)) or (natural_order(first) >= natural_order(second))


def test_every_folder_is_in_natural_order_for_itself(tmp_path):
    source = folder(tmp_path, "a-b/1.png", "a/10.png", "a/9.png", "a/2/x.png", "a.png", "B/1.png")
    assert keys(source) == ["B/1.png", "a/2/x.png", "a/9.png", "a/10.png", "a-b/1.png", "a.png"]


@settings(max_examples=20)
@given(
    st.lists(st.tuples(st.sampled_from(["1", "2", "10", "b", "B-", "é"]), st.integers(0, 120)), unique=True, min_size=1)
)
def test_the_walk_is_in_the_order_of_the_sorted_paths(tmp_path_factory, names):
    paths = [(part, f"{number}.png") for part, number in names]
    source = folder(tmp_path_factory.mktemp("walk"), *map("/".join, paths))
    expected = sorted(paths, key=lambda path: (natural_order(path[0]), int(path[1].removesuffix(".png"))))
    assert keys(source) == ["/".join(path) for path in expected]


def test_the_index_streams_one_listing_a_level(tmp_path, monkeypatch):
    """The third folder is not looked into before the first is through."""
    source = folder(tmp_path, "a/1.png", "a/2.png", "b/1.png", "c/1.png")
    listed = []
    entries = files.entries
    monkeypatch.setattr("featreg.sources.folder.entries", lambda uri: listed.append(uri) or entries(uri))
    index = source.index()
    assert [next(index).key, next(index).key] == ["a/1.png", "a/2.png"]
    assert {uri.rpartition("/")[2] for uri in listed} == {tmp_path.name, "a"}


def test_sizes_are_those_of_the_files(tmp_path):
    source = folder(tmp_path, "1.png", "22.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    assert [sample.size for sample in source.samples] == [5, 6, None]


def test_digits_beyond_any_number_are_ordered(tmp_path):
    names = ["x" + "9" * 5000, "x1" + "0" * 5000, "x" + "0" * 9000 + "1"]
    assert sorted(names, key=natural_order) == [names[2], names[0], names[1]]


def test_an_image_at_the_root_makes_it_a_flat_folder(tmp_path):
    source = folder(tmp_path, "a/x.jpg", "x.jpg")
    assert (source.kind, source.classes) == ("folder", None)
    assert {sample.target for sample in source.samples} == {None}


def test_the_kind_that_is_said_decides_whether_there_are_classes(tmp_path):
    folder(tmp_path, "a/x.jpg", "x.jpg")
    classes = open_source(tmp_path, kind="imagefolder")
    assert (classes.kind, classes.classes, classes.stray) == ("imagefolder", ("a",), 1)
    assert [(sample.key, sample.target) for sample in classes.samples] == [("a/x.jpg", 0), ("x.jpg", None)]
    (tmp_path / "x.jpg").unlink()
    flat = open_source(tmp_path, kind="folder")
    assert (flat.kind, flat.classes, [sample.target for sample in flat.samples]) == ("folder", None, [None])
    with pytest.raises(SourceError, match="has no classes"):
        list(open_source(tmp_path / "a", kind="imagefolder").index())


@pytest.mark.parametrize(
    ("names", "stray"), [(("a/x.jpg", "x.jpg", "y.jpg"), 2), (("x.jpg", "y.jpg"), 0), (("a/x.jpg", "b/x.jpg"), 0)]
)
def test_images_beside_folders_of_images_are_counted(tmp_path, names, stray):
    assert folder(tmp_path, *names).stray == stray


def test_an_empty_path_is_not_the_current_folder(tmp_path, monkeypatch):
    folder(tmp_path, "x.jpg")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="empty"):
        open_source("")


def test_suffixes_decide_whatever_their_case_and_the_rest_is_counted(tmp_path):
    source = folder(
        tmp_path, "a.JPG", "b.PnG", "notes.txt", "noend", ".hidden.jpg", ".cache/x.jpg", "c.pdf", "text.jpeg"
    )
    assert keys(source) == ["a.JPG", "b.PnG", "text.jpeg"]
    assert source.skipped == 5


def test_bytes_are_those_of_the_file(tmp_path):
    source = folder(tmp_path, "sub/a b%20#?.jpg", "sub/ü\n'\".jpg")
    assert [source.read(sample) for sample in source.samples] == [os.fsencode(f"{key}") for key in keys(source)]
    assert all(sample.uri.startswith("file:///") and sample.uri.isascii() for sample in source.samples)


def test_a_name_that_is_no_unicode_is_readable_and_its_key_can_be_encoded(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.jpg")
    try:
        Path(os.fsdecode(path)).write_bytes(b"content")
    except OSError:
        pytest.skip("this file system takes Unicode only")
    source = FolderSource(tmp_path)
    assert keys(source) == ["caf\\xe9.jpg"]
    assert source.read(source.samples[0]) == b"content"


def test_a_folder_named_like_an_image_is_a_folder(tmp_path):
    source = folder(tmp_path, "x.jpg/y.jpg")
    assert keys(source) == ["x.jpg/y.jpg"]
    assert source.classes == ("x.jpg",)


def test_a_folder_named_like_an_image_without_images_is_a_row_that_fails(tmp_path):
    source = folder(tmp_path, "a/1.jpg", "a/3.jpg", "b.jpg/notes.txt")
    (tmp_path / "a" / "2.jpg" / "deep.png").mkdir(parents=True)
    (tmp_path / "a" / "here.jpg").symlink_to(tmp_path / "a", target_is_directory=True)
    expected = [("a/1.jpg", 0), ("a/2.jpg/deep.png", 0), ("a/3.jpg", 0), ("a/here.jpg", 0), ("b.jpg", 1)]
    assert [(sample.key, sample.target) for sample in source.samples] == expected
    for row in (1, 3, 4):
        assert source.samples[row].size is None
        with pytest.raises(SourceError, match="no file"):
            source.read(source.samples[row])


def test_links_in_a_circle_end(tmp_path):
    folder(tmp_path, "a/x.jpg")
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "a" / "here").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "a" / "self.png").symlink_to(tmp_path / "a" / "self.png")
    source = FolderSource(tmp_path)
    assert keys(source) == ["a/self.png", "a/x.jpg"]
    assert source.skipped == 2
    with pytest.raises(SourceError, match="cannot be read"):
        source.read(source.samples[0])


def test_folders_that_all_link_to_each_other_are_not_walked_in_every_order(tmp_path):
    """There are 9! orders of them; each folder shows itself and, once over all that is below links, the others."""
    names = [f"{number}" for number in range(9)]
    folder(tmp_path, *(f"{name}/x.jpg" for name in names))
    for name in names:
        for other in names:
            (tmp_path / name / f"to{other}").symlink_to(tmp_path / other, target_is_directory=True)
    found = keys(FolderSource(tmp_path))
    assert found == keys(FolderSource(tmp_path))
    assert {key for key in found if key.count("/") == 1} == {f"{name}/x.jpg" for name in names}
    assert {key for key in found if key.count("/") == 2} == {
        f"{name}/to{other}/x.jpg" for name in names for other in names if name != other
    }
    assert len(found) <= 9 + 9 * 8 + 9


def test_a_store_beside_the_images_is_neither_read_nor_a_class(tmp_path):
    source = folder(tmp_path, "a/x.jpg", "b/x.jpg", "features.zarr/zarr.json", "features.zarr/C5/c/picture.png")
    assert keys(source) == ["a/x.jpg", "b/x.jpg"]
    assert (source.classes, source.skipped) == (("a", "b"), 1)


def test_linked_folders_are_followed(tmp_path):
    folder(tmp_path / "elsewhere", "x.jpg")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert keys(FolderSource(tmp_path / "root")) == ["linked/x.jpg"]


def test_a_broken_link_is_a_row_that_fails(tmp_path):
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing")
    source = FolderSource(tmp_path)
    with pytest.raises(SourceError) as caught:
        source.read(source.samples[0])
    assert "gone.jpg" in caught.value.got


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is unreadable here")
def test_an_unreadable_file_is_a_row_and_an_unreadable_folder_stops_before_the_run(tmp_path):
    source = folder(tmp_path, "a.jpg", "b/c.jpg")
    (tmp_path / "a.jpg").chmod(0)
    with pytest.raises(SourceError, match="Permission denied"):
        source.read(source.samples[0])
    (tmp_path / "b").chmod(0)
    with pytest.raises(SourceError, match="cannot be listed"):
        list(FolderSource(tmp_path).index())
    (tmp_path / "b").chmod(0o700)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_a_row_that_fails_and_not_waited_for(tmp_path):
    folder(tmp_path, "x.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "pipe.jpg")
    source = FolderSource(tmp_path)
    assert (keys(source), source.skipped) == (["link.jpg", "pipe.jpg", "x.jpg"], 1)
    for sample in source.samples[:2]:
        with pytest.raises(SourceError, match="no file"):
            source.read(sample)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a system of its own")
def test_no_more_is_read_than_a_file_is_said_to_have(tmp_path):
    """Files of /proc are said to be empty. This one ends; others wait for what comes, or have more than any memory."""
    (tmp_path / "x.jpg").symlink_to("/proc/self/status")
    source = FolderSource(tmp_path)
    assert source.read(source.samples[0]) == b""


def test_what_the_index_says_is_too_large_is_not_read(tmp_path):
    source = folder(tmp_path, "x.jpg")
    with pytest.raises(SourceError, match="too large"):
        source.read(Sample("x.jpg", source.samples[0].uri, size=2**31 + 1))


def test_a_missing_path_names_what_was_looked_for_and_its_neighbours(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(SourceError) as caught:
        FolderSource(tmp_path / "photo")
    assert str(tmp_path / "photo") in caught.value.got
    assert caught.value.matches == ("photos",)


def test_a_neighbour_of_quite_another_name_is_not_meant(tmp_path):
    (tmp_path / "engine").mkdir()
    with pytest.raises(SourceError) as caught:
        FolderSource(tmp_path / "none")
    assert caught.value.matches == ()


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"")
    with pytest.raises(SourceError, match="not a folder"):
        FolderSource(tmp_path / "x.jpg")


@pytest.mark.parametrize(("names", "said"), [((), "an empty folder"), (("a.txt", ".x.jpg"), "2 other")])
def test_no_images_is_an_error_that_says_what_was_there(tmp_path, names, said):
    with pytest.raises(SourceError, match="no images found") as caught:
        folder(tmp_path, *names).samples  # noqa: B018
    assert said in caught.value.got


def test_open_source_takes_paths_and_sources(tmp_path):
    class Fixed(Source):
        kind = uri = "fixed"
        samples = (Sample("a", "fixed:a"),)

        def read(self, sample):
            return b""

    source = Fixed()
    assert open_source(source) is source
    assert len(source) == 1
    assert list(source.index()) == [Sample("a", "fixed:a")]
    assert len(open_source(str(PHOTOS))) == len(open_source(PHOTOS)) == 12
    with pytest.raises(SourceError, match="not a source"):
        open_source(3)


def test_a_source_of_ones_own_may_stream_and_is_asked_once(tmp_path):
    class Streaming(Source):
        kind = uri = "streaming"
        asked = 0

        def index(self):
            self.asked += 1
            yield Sample("a", "streaming:a")

        def read(self, sample):
            return b""

    source = Streaming()
    assert source.samples == source.samples == (Sample("a", "streaming:a"),)
    assert (len(source), source.asked) == (1, 1)


def test_a_source_without_an_index_says_so():
    class Nothing(Source):
        kind = uri = "nothing"

        def read(self, sample):
            return b""

    with pytest.raises(SourceError, match="Nothing has no samples"):
        len(Nothing())


def test_the_counts_are_there_before_an_index_was_read(tmp_path):
    source = folder(tmp_path, "a/x.jpg", "x.jpg", "y.txt")
    assert (source.stray, source.skipped) == (1, 1)
