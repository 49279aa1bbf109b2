"""What images a spec stands for, and how a folder that is wrong is refused: by file, with value, limit and remedy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from store import images
from store.images import DataShape, describe, scan
from store.problems import InvalidSpec
from store.settings import Settings
from store.spec import DataName, DataSpec


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "root").mkdir()
    return Settings(data_root=tmp_path / "root", data_dir=tmp_path / "state")


def paint(path: Path, size: tuple[int, int] = (9, 7)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 30, 40)).save(path)
    return path


@pytest.fixture
def birds(settings: Settings) -> Path:
    folder = settings.data_root / "birds"
    for name in ("crow", "wren"):
        for number in range(6):
            paint(folder / name / f"{number}.png")
    return folder


FOLDER = DataSpec(name="imagefolder", root="birds")


def problem_of(data: DataSpec, settings: Settings, decode: int | None = None) -> images.Problem:
    with pytest.raises(InvalidSpec) as refused:
        describe(data, settings, decode)
    problem = refused.value.problems[0]
    assert problem.field == "data.root"
    assert problem.remedy in problem.message
    return problem


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        (DataSpec(name="digits"), DataShape(8, 1, 10, 1797)),
        (DataSpec(name="digits", image_size=16), DataShape(16, 1, 10, 1797)),
        (DataSpec(name="mnist5k"), DataShape(28, 1, 10, 5000)),
        (DataSpec(name="synthetic"), DataShape(16, 3, 10, 2000)),
        (DataSpec(name="synthetic", classes=4, samples=99, image_size=12), DataShape(12, 3, 4, 99)),
    ],
)
def test_bundled_data_has_a_known_shape(data: DataSpec, shape: DataShape, settings: Settings) -> None:
    assert describe(data, settings) == shape


def test_folder_gives_classes_and_samples(birds: Path, settings: Settings) -> None:
    (birds / "notes.txt").write_text("not an image")
    (birds / "wren" / "notes.txt").write_text("not an image")
    (birds / ".git").mkdir()
    assert describe(FOLDER, settings) == DataShape(32, 3, 2, 12)
    found = scan(FOLDER, settings)
    assert found.classes == ("crow", "wren")
    assert [(path.parent.name, label) for path, label in found.files] == [("crow", 0)] * 6 + [("wren", 1)] * 6
    assert found.files == tuple(sorted(found.files))
    assert found.ignored == 1


def test_nested_folders_belong_to_their_class(birds: Path, settings: Settings) -> None:
    paint(birds / "wren" / "2024" / "deep.jpg")
    assert (birds / "wren" / "2024" / "deep.jpg", 1) in scan(FOLDER, settings).files


@pytest.mark.parametrize("root", ["nowhere", "birds/crow/0.png", "x" * 300])
def test_missing_folder(root: str, birds: Path, settings: Settings) -> None:
    problem = problem_of(DataSpec(name="imagefolder", root=root), settings)
    assert problem.value == root
    assert str(settings.data_root) in str(problem.limit)


@pytest.mark.parametrize("root", ["..", "../outside", "/etc", "birds/../../outside", "a\0b"])
def test_folder_outside_the_data_root(root: str, birds: Path, settings: Settings) -> None:
    (settings.data_root.parent / "outside").mkdir()
    assert "WATTLE_DATA_ROOT" in problem_of(DataSpec(name="imagefolder", root=root), settings).remedy


def test_link_of_the_folder_itself_out_of_the_root(birds: Path, settings: Settings) -> None:
    birds.rename(settings.data_root.parent / "elsewhere")
    birds.symlink_to(settings.data_root.parent / "elsewhere")
    assert "outside the data root" in problem_of(FOLDER, settings).message


def test_link_of_a_file_out_of_the_root(birds: Path, settings: Settings) -> None:
    outside = paint(settings.data_root.parent / "secret.png")
    (birds / "wren" / "link.png").symlink_to(outside)
    problem = problem_of(FOLDER, settings)
    assert problem.value == "wren/link.png"
    assert "leads outside" in problem.message


def test_link_of_a_class_or_sub_folder_is_refused_not_dropped(birds: Path, settings: Settings) -> None:
    (birds / "wren" / "more").symlink_to(birds / "crow")
    assert problem_of(FOLDER, settings).value == "wren/more"
    (birds / "wren" / "more").unlink()
    (birds / "gull").symlink_to(birds / "crow")
    assert problem_of(FOLDER, settings).value == "gull"


def test_link_of_a_file_inside_the_root_is_used(birds: Path, settings: Settings) -> None:
    (birds / "wren" / "again.png").symlink_to(birds / "crow" / "0.png")
    assert len(scan(FOLDER, settings).files) == 13


def test_one_class(birds: Path, settings: Settings) -> None:
    for path in (birds / "crow").iterdir():
        path.unlink()
    (birds / "crow").rmdir()
    problem = problem_of(FOLDER, settings)
    assert problem.value == ["wren"]
    assert "1 class folder," in problem.message


def test_class_with_too_few_images(birds: Path, settings: Settings) -> None:
    for number in range(2, 6):
        (birds / "crow" / f"{number}.png").unlink()
    problem = problem_of(FOLDER, settings)
    assert (problem.value, problem.limit) == (2, "at least 5 images per class")
    assert problem.message.startswith("crow holds 2 images")


def test_no_images_at_all(settings: Settings) -> None:
    for name in ("a", "b"):
        (settings.data_root / "birds" / name).mkdir(parents=True)
    with pytest.raises(InvalidSpec) as refused:
        describe(FOLDER, settings)
    assert [problem.value for problem in refused.value.problems] == [0, 0]


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
def test_corrupt_image_is_named(content: bytes, birds: Path, settings: Settings) -> None:
    (birds / "wren" / "3.png").write_bytes(content)
    assert problem_of(FOLDER, settings).value == "wren/3.png"


def test_truncated_image_is_named(birds: Path, settings: Settings) -> None:
    path = birds / "crow" / "5.png"
    Image.effect_noise((60, 60), 50).save(path)
    os.truncate(path, path.stat().st_size // 2)
    assert problem_of(FOLDER, settings).value == "crow/5.png"


def test_every_corrupt_image_is_named_up_to_a_limit(birds: Path, settings: Settings) -> None:
    for number in range(50):
        (birds / "wren" / f"bad{number:02}.png").write_bytes(b"no")
    with pytest.raises(InvalidSpec) as refused:
        describe(FOLDER, settings)
    assert len(refused.value.problems) == images.MAX_REPORTED


def test_image_that_unfolds_into_gigabytes(birds: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 50)
    assert "9x7 pixels, more than 50" in problem_of(FOLDER, settings).message


def test_a_sample_of_a_large_folder_is_decoded(birds: Path, settings: Settings) -> None:
    (birds / "crow" / "1.png").write_bytes(b"no")
    assert describe(FOLDER, settings, decode=1).samples == 12  # only the first image was read
    assert problem_of(FOLDER, settings, decode=12).value == "crow/1.png"


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100), ("imagenet", 1000)])
def test_data_wattle_does_not_ship(name: DataName, classes: int, settings: Settings) -> None:
    data = DataSpec(name=name, root="there")
    (settings.data_root / "there").mkdir()
    problem = problem_of(data, settings)
    assert problem.limit == list(images.LAYOUTS[name])
    for folder in images.LAYOUTS[name]:
        (settings.data_root / "there" / folder).mkdir()
    assert describe(data, settings).classes == classes


def test_folder_where_none_is_needed(settings: Settings) -> None:
    assert problem_of(DataSpec(name="digits", root="birds"), settings).remedy == "leave data.root out"
