"""Folders, CIFAR, idx and ImageNet, each written by hand in the published layout."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

import assets
from warmstart import plugins
from warmstart.data import Dataset, Reader, files, images, read, splits
from warmstart.errors import DataError, RecipeError

RNG = np.random.default_rng(2)


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def labels(data: Dataset) -> dict[str, object]:
    return {data.ids[row]: data[row].target for row in range(len(data))}


def splits_of(data: Dataset) -> dict[str, str]:
    assert data.given_split is not None
    return dict(zip(data.ids, data.given_split.tolist(), strict=True))


def fails(path: Path | str, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        read.read(path, **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_there_are_five_readers_and_each_keeps_the_contract() -> None:
    assert plugins.names("reader") == ("cifar", "idx", "image_folder", "imagenet", "table")
    for name in plugins.names("reader"):
        plugin = plugins.load("reader", name)
        assert isinstance(plugin(), Reader)
        assert plugins.summary(plugin)
        assert all(option.description for option in plugins.options(plugin))


def test_folder_per_class(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    touch(root, "dog/b.JPG", "dog/old/deep/a.png", "cat/z.webp", "cat/notes.txt", ".git/x.png", "cat/.hidden.png")
    touch(root, "loose.tiff", "README.md", "__MACOSX/cat/._z.jpg")
    data = read.read(root)
    assert labels(data) == {"cat/z.webp": "cat", "dog/b.JPG": "dog", "dog/old/deep/a.png": "dog"}
    assert list(data.ids) == sorted(data.ids)
    assert data.inputs[2] == root / "dog/old/deep/a.png"
    assert (data.class_names, data.kind, data.name, data.given_split) == (("cat", "dog"), "single", "photos", None)
    assert data.notes == (
        "1 pictures in ./ belong to no class and are left out",
        "2 files are no pictures by their suffix and are left out",
    )


@pytest.mark.parametrize(("val", "test"), [("val", "test"), ("valid", "testing"), ("Validation", "Test")])
def test_pre_split_folders(tmp_path: Path, val: str, test: str) -> None:
    touch(tmp_path, "train/a/1.png", "train/b/2.png", f"{val}/a/1.png", f"{test}/b/sub/3.png", f"{test}/loose.png")
    touch(tmp_path, "extra/a/9.png")
    data = read.read(tmp_path)
    assert splits_of(data) == {
        "train/a/1.png": "train",
        "train/b/2.png": "train",
        f"{val}/a/1.png": "val",
        f"{test}/b/sub/3.png": "test",
    }
    assert set(labels(data).values()) == {"a", "b"}
    assert set(data.notes) == {
        f"1 pictures in {test}/ belong to no class and are left out",
        "1 pictures in extra/ belong to no class and are left out",
    }


def test_classes_may_be_called_train_and_test_of_a_railway(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.png", "tram/2.png")
    assert labels(read.read(tmp_path)) == {"train/1.png": "train", "tram/2.png": "tram"}


def test_pictures_alone_have_no_targets(tmp_path: Path) -> None:
    data = read.read(touch(tmp_path, "1.png", "2.jpg"))
    assert (data.kind, data.targets, data.notes) == ("none", None, ("no folder per class: pictures without targets",))


def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert fails(empty) == (
        f"no pictures for classes in {empty} (found nothing), "
        "expected CLASS/picture.jpg or train|val|test/CLASS/picture.jpg\n"
        f"  fix: put the pictures of each class into a folder of its own: {empty}/CLASS/"
    )
    assert "(found 1 other files)" in fails(touch(tmp_path / "texts", "a/notes.txt"))
    twice = touch(tmp_path / "twice", "train/a/1.png", "val/a/2.png", "valid/a/3.png")
    assert fails(twice) == f"folders val, valid in {twice} both mean val\n  fix: keep one of them, named val"
    assert fails(tmp_path / "emty") == f"{tmp_path / 'emty'} does not exist\n  fix: did you mean 'empty'?"
    (tmp_path / "a.bin").write_bytes(b"x")
    assert fails(tmp_path / "a.bin").startswith(f"cannot tell how to read {tmp_path / 'a.bin'}, expected a folder of")


def test_links_that_point_upwards_end(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert list(read.read(tmp_path).ids) == ["a/1.png", "b/2.png"]


def test_a_name_that_is_no_text_is_set_aside(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a" / "b\udce9.png").write_bytes(b"x")
    data = read.read(tmp_path)
    assert len(data) == 2
    assert [(one.id, one.reason) for one in data.quarantined] == [("a/b\\xe9.png", "file name is not UTF-8")]


def test_listing_costs_strings_and_paths_are_made_on_demand(tmp_path: Path) -> None:
    data = read.read(touch(tmp_path, *(f"{name}/{row}.png" for name in "ab" for row in range(50))))
    assert isinstance(data.inputs, files.Paths)
    part = data.take(np.array([3, 1]))
    assert isinstance(part.inputs, files.Paths)
    assert list(part.inputs) == [tmp_path / data.ids[3], tmp_path / data.ids[1]]
    assert list(data.inputs[1:3]) == [tmp_path / data.ids[1], tmp_path / data.ids[2]]


def cifar10(root: Path, *, per_file: int = 6) -> tuple[Path, np.ndarray, np.ndarray]:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    planes = RNG.integers(0, 256, (6, per_file, 3, 32, 32), np.uint8)
    targets = RNG.integers(0, 10, (6, per_file), np.uint8)
    for at, name in enumerate([f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]):
        records = [bytes([targets[at, row]]) + planes[at, row].tobytes() for row in range(per_file)]
        (folder / f"{name}.bin").write_bytes(b"".join(records))
    (folder / "batches.meta.txt").write_text("\n".join(f"class{number}" for number in range(10)) + "\n\n")
    return folder, planes.reshape(-1, 3, 32, 32), targets.reshape(-1)


@pytest.mark.parametrize("parent", [False, True])
def test_cifar10(tmp_path: Path, parent: bool) -> None:
    folder, planes, targets = cifar10(tmp_path)
    data = read.read(tmp_path if parent else folder)
    assert (len(data), data.kind, data.name) == (36, "single", "cifar-10")
    assert data.targets is not None
    np.testing.assert_array_equal(data.targets, targets)
    assert data.class_names == tuple(f"class{number}" for number in range(10))
    assert data.given_split is not None
    assert data.given_split.tolist() == ["train"] * 30 + ["test"] * 6
    for row in (0, 7, 35):
        np.testing.assert_array_equal(np.asarray(images.open_picture(data.inputs[row])), planes[row].transpose(1, 2, 0))
    assert (data.ids[0], data.ids[35]) == ("data_batch_1/00000", "test_batch/00005")
    part = data.take(np.array([35, 0])).inputs[0]
    assert isinstance(part, np.ndarray)
    assert isinstance(part.base, np.memmap), "pixels stay in their file"
    assert data.inputs[-1].tobytes() == data.inputs[35].tobytes()  # type: ignore[union-attr]
    with pytest.raises(IndexError):
        data.inputs[36]


@pytest.mark.parametrize(("which", "column"), [("fine", 1), ("coarse", 0)])
def test_cifar100(tmp_path: Path, which: str, column: int) -> None:
    records = RNG.integers(0, 20, (5, 2 + 3072), np.uint8)
    (tmp_path / "train.bin").write_bytes(records[:3].tobytes())
    (tmp_path / "test.bin").write_bytes(records[3:].tobytes())
    for name, count in (("fine", 100), ("coarse", 20)):
        (tmp_path / f"{name}_label_names.txt").write_text("\n".join(f"{name}{at}" for at in range(count)))
    data = read.read(tmp_path, reader=plugins.load("reader", "cifar")(labels=which))
    assert [data[row].target for row in range(5)] == [f"{which}{label}" for label in records[:, column]]
    np.testing.assert_array_equal(data.inputs[4], records[4, 2:].reshape(3, 32, 32).transpose(1, 2, 0))


def test_cifar_that_cannot_be_read(tmp_path: Path) -> None:
    python = tmp_path / "cifar-10-batches-py"
    python.mkdir()
    for name in ("data_batch_1", "batches.meta"):
        (python / name).write_bytes(pickle.dumps({}))
    for path in (python, tmp_path):
        assert fails(path) == (
            f"{path} is the pickled version of CIFAR, and a pickle can run code; expected the binary version\n"
            "  fix: download https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz or "
            "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz and unpack it"
        )
    folder, _, _ = cifar10(tmp_path / "cut")
    (folder / "data_batch_2.bin").write_bytes(b"x" * 5000)
    assert fails(folder).startswith(f"{folder}/data_batch_2.bin has 5000 bytes, which is no whole number of 3073-byte")
    (folder / "test_batch.bin").unlink()
    (folder / "data_batch_2.bin").unlink()
    assert fails(folder).startswith(f"{folder}/test_batch.bin is missing\n  fix: download the archive again")
    (folder / "batches.meta.txt").write_text("one\ntwo")
    cifar10(tmp_path / "few")
    (tmp_path / "few/cifar-10-batches-bin/batches.meta.txt").write_text("one\ntwo")
    assert "has no name in" in fails(tmp_path / "few")


def test_cifar_without_names(tmp_path: Path) -> None:
    folder, _, _ = cifar10(tmp_path)
    (folder / "batches.meta.txt").unlink()
    assert fails(folder) == (
        f"{folder}/batches.meta.txt is missing, so the classes have no names\n"
        "  fix: download it again from https://www.cs.toronto.edu/~kriz/cifar.html"
    )


def idx(root: Path, *, packed: bool, dot: bool = False, count: int = 5) -> tuple[np.ndarray, np.ndarray]:
    root.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, (2, count, 28, 28), np.uint8)
    targets = np.arange(2 * count, dtype=np.uint8).reshape(2, count) % 10
    for at, part in enumerate(("train", "t10k")):
        for what, array in (("images", pixels[at]), ("labels", targets[at])):
            head = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
            name = f"{part}-{what}{'.' if dot else '-'}idx{array.ndim}-ubyte"
            data = head + array.tobytes()
            (root / (name + (".gz" if packed else ""))).write_bytes(gzip.compress(data) if packed else data)
    return pixels.reshape(-1, 28, 28), targets.reshape(-1)


@pytest.mark.parametrize(("packed", "dot"), [(False, False), (True, False), (False, True)])
def test_idx(tmp_path: Path, packed: bool, dot: bool) -> None:
    pixels, targets = idx(tmp_path / "mnist", packed=packed, dot=dot)
    data = read.read(tmp_path / "mnist")
    assert [data[row].target for row in range(10)] == [str(label) for label in targets]
    for row in range(10):
        np.testing.assert_array_equal(data.inputs[row], pixels[row])
    assert splits_of(data)["train/00004"] == "train"
    assert splits_of(data)["t10k/00000"] == "test"
    assert isinstance(data.inputs[0].base, np.memmap) is not packed  # type: ignore[union-attr]


def test_idx_names_and_damage(tmp_path: Path) -> None:
    fashion = tmp_path / "fashion-mnist"
    idx(fashion, packed=False)
    assert read.read(fashion).class_names[9] == "Ankle boot"
    (fashion / "t10k-labels-idx1-ubyte").unlink()
    assert fails(fashion) == (
        f"{fashion}/t10k-labels-idx1-ubyte is missing (with or without .gz)\n  fix: download the file again"
    )
    images_file = fashion / "train-images-idx3-ubyte"
    images_file.write_bytes(images_file.read_bytes()[:-7])
    assert fails(fashion).startswith(f"{images_file} announces (5, 28, 28), 3936 bytes, but has 3929")
    images_file.write_bytes(b"\0\0\x0d\x03" + images_file.read_bytes()[4:])
    assert fails(fashion).startswith(f"{images_file} is no idx file of unsigned bytes in 3 dimensions")
    packed = tmp_path / "packed"
    idx(packed, packed=True)
    gz = packed / "train-images-idx3-ubyte.gz"
    gz.write_bytes(gz.read_bytes()[:300])
    assert fails(packed).startswith(f"{gz} cannot be unpacked (")
    idx(tmp_path / "uneven", packed=False)
    (tmp_path / "uneven/t10k-labels-idx1-ubyte").write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, 2) + b"\0\0")
    assert fails(tmp_path / "uneven").startswith(f"{tmp_path}/uneven has 5 t10k pictures, but 2 labels")


def test_idx_with_too_few_names(tmp_path: Path) -> None:
    idx(tmp_path, packed=False)
    assert fails(tmp_path, reader=plugins.load("reader", "idx")(class_names=("a", "b"))) == (
        f"{tmp_path} has 10 classes, but 2 class_names\n  fix: name every class"
    )


@pytest.mark.assets
def test_the_published_fashion_mnist() -> None:
    data = read.read(assets.fashion_mnist_folder())
    assert splits.make(data, seed=0).origin == "given: train, test; val is 20% of train"
    assert data.targets is not None
    np.testing.assert_array_equal(np.bincount(data.targets), [7000] * 10)
    assert [data[row].target for row in range(3)] == ["Ankle boot", "T-shirt/top", "T-shirt/top"]
    assert images.open_picture(data.inputs[69_999]).size == (28, 28)


def test_imagenet_with_folders(tmp_path: Path) -> None:
    touch(
        tmp_path, "train/n02000000/a.JPEG", "train/n01000000/b.JPEG", "train/n01500000/b.JPEG", "val/n02000000/v.JPEG"
    )
    (tmp_path / "synset_words.txt").write_text("n01000000 crane\nn02000000 crane, bird\nn01500000 tench, Tinca tinca\n")
    data = read.read(tmp_path)
    assert data.class_names == ("crane (n01000000)", "tench", "crane (n02000000)")
    assert labels(data)["train/n01500000/b.JPEG"] == "tench"
    assert splits_of(data)["val/n02000000/v.JPEG"] == "val"


def test_imagenet_as_kaggle_packs_it(tmp_path: Path) -> None:
    root = tmp_path / "ILSVRC/Data/CLS-LOC"
    touch(root, "train/n01000000/a.JPEG", "train/n02000000/b.JPEG", "val/ILSVRC2012_val_00000001.JPEG", "val/odd.JPEG")
    (tmp_path / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\nILSVRC2012_val_00000001,n02000000 1 2 3 4 n02000000 5 6 7 8\n"
    )
    data = read.read(tmp_path)
    assert labels(data)["val/ILSVRC2012_val_00000001.JPEG"] == "n02000000"
    assert data.notes == ("1 pictures in val/ without a class are left out",)
    assert data.inputs[0] == root / "train/n01000000/a.JPEG"


def test_imagenet_with_strange_classes_in_val(tmp_path: Path) -> None:
    touch(tmp_path, "train/n01000000/a.JPEG", "val/n03000000/b.JPEG")
    assert fails(tmp_path) == (
        "1 classes of val are not among the 1 of train (n03000000)\n  fix: add them to train, or remove them from val"
    )


def test_imagenet_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "train/n01000000").mkdir(parents=True)
    assert fails(tmp_path) == (
        f"no pictures in {tmp_path}/train\n  fix: unpack the archive of each class into its folder"
    )


def test_reader_by_name_and_its_options(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/2.png")
    assert len(read.read(tmp_path, reader="image_folder")) == 2
    with pytest.raises(RecipeError) as caught:
        read.read(tmp_path, reader="image_foldr")
    assert str(caught.value) == "unknown reader 'image_foldr'\n  fix: did you mean 'image_folder'?"
    with pytest.raises(RecipeError) as caught:
        read.read(tmp_path, image_column="file", separator="|")
    assert str(caught.value) == (
        f"--image-column, --separator has no effect on {tmp_path}, which is read as image_folder\n  fix: leave it out"
    )
    assert len(read.read(tmp_path, target_type="classes")) == 2, "a hint of the task binds readers that can use it"


PICTURES = RNG.integers(0, 256, (4, 6, 6, 3), np.uint8)


@pytest.mark.parametrize(
    ("targets", "kind", "expected"),
    [
        (None, "none", None),
        (["b", "a", "b", "a"], "single", "b"),
        (np.array([10, 9, 10, 9]), "single", "10"),
        (np.array([0.5, 1, 2, 3]), "scalar", 0.5),
        ([1.0, 2.0, 3.0, 4.0], "scalar", 1.0),
        ([["x", "y"], [], ["y"], ["x"]], "multi", ("x", "y")),
        (np.array([[True, False], [False, True], [True, True], [False, False]]), "multi", ("0",)),
        (np.arange(8.0).reshape(4, 2), "vector", (0.0, 1.0)),
        (np.arange(8).reshape(4, 2), "vector", (0.0, 1.0)),
        ([True, False, True, False], "single", "true"),
    ],
)
def test_arrays(targets: object, kind: str, expected: object) -> None:
    data = read.from_arrays(PICTURES, targets, groups=[1, 1, 2, 2])  # type: ignore[arg-type]
    assert (data.kind, data[0].target, data[2].group) == (kind, expected, "2")
    np.testing.assert_array_equal(data.inputs[3], PICTURES[3])
    assert list(data.ids) == ["000000", "000001", "000002", "000003"]


def test_whole_number_classes_sort_as_numbers() -> None:
    assert read.from_arrays(PICTURES, [10, 9, 10, 9]).class_names == ("9", "10")


def test_mixed_inputs(tmp_path: Path) -> None:
    picture = images.open_picture(PICTURES[0])
    picture.save(tmp_path / "a.png")
    mixed = [PICTURES[0], picture, tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes()]
    data = read.from_arrays(mixed)
    for item in data.inputs:
        np.testing.assert_array_equal(np.asarray(images.open_picture(item)), PICTURES[0])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"targets": [1, 2]}, "4 inputs, but 2 targets\n  fix: give one of each for every input"),
        ({"ids": ["a", "b", "a", "c"]}, "duplicate ids: a\n  fix: give every input its own id, or no ids"),
        (
            {"targets": [1.0, float("nan"), 2.0, None]},
            (
                "2 targets in column 'targets' are missing or NaN (row 2, row 4)\n"
                "  fix: fill them in, or remove those rows"
            ),
        ),
        (
            {"inputs": [1, 2, 3, 4]},
            "4 inputs are no path, bytes, array or picture (0: int, 1: int, 2: int, 3: int)\n  fix: np.asarray(input)",
        ),
        (
            {"inputs": np.zeros((6, 6))},
            "inputs of shape (6, 6), expected (N, H, W) or (N, H, W, 1 to 4)\n  fix: inputs[None] for one picture",
        ),
    ],
)
def test_arrays_that_cannot_be_read(options: dict[str, object], text: str) -> None:
    with pytest.raises(DataError) as caught:
        read.from_arrays(**{"inputs": PICTURES, **options})  # type: ignore[arg-type]
    assert str(caught.value) == text
