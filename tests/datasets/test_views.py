"""ShapeNetRender, its pictures, pictures drawn of other sets, and `prepare render`; what is wrong with them is said by name."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import build_dataset
from datasets.pictures.views import choose_views, open_views
from datasets.prepare import main
from utils.errors import UserError
from utils.seed import generator


@pytest.fixture
def rendered(tmp_path):
    """Return a set of four meshes in two classes, drawn three times each at 24 pixels."""
    import trimesh

    shapes = {
        "chair": {"a": trimesh.creation.box((0.4, 1.0, 0.2)), "b": trimesh.creation.icosphere(2, 0.5)},
        "plane": {"c": trimesh.creation.cylinder(0.2, 1.5), "d": trimesh.creation.torus(0.6, 0.2)},
    }
    for name, group in shapes.items():
        (tmp_path / "in" / name).mkdir(parents=True)
        for stem, mesh in group.items():
            mesh.export(tmp_path / "in" / name / f"{stem}.off")
    out = tmp_path / "ShapeNetRender"
    flags = ["--views", "3", "--size", "24", "--points", "300", "--workers", "1"]
    assert main(["render", str(tmp_path / "in"), "--out", str(out), *flags]) == 0
    return out


def read(folder, **keys):
    return build_dataset({"NAME": "ShapeNetRender", "DATA_PATH": str(folder), "N_POINTS": 300, "npoints": 100, **keys})


def views_of(clouds, **keys):
    return open_views(clouds, **{"size": 16, "views": 2, "kind": "depth", **keys})


def test_published_layout(rendered):
    clouds = read(rendered)
    assert clouds.names == ["chair/a", "chair/b", "plane/c", "plane/d"] and clouds.labels.tolist() == [0, 0, 1, 1]
    assert clouds.points.shape == (4, 300, 3) and clouds.npoints == 100 and clouds.normalize
    assert clouds.sampling == "random" and clouds.up_axis == "y"
    assert [[path.name for path in group] for group in clouds.view_files] == [["00.png", "01.png", "02.png"]] * 4
    assert len(read(rendered, subset="test")) == 4  # as published: no split
    picked = clouds.select([2, 0])
    assert [group[0].parent.parent.name for group in picked.view_files] == ["c", "a"]


def test_pictures_are_resized_as_published(rendered):
    views = views_of(read(rendered))
    pictures = views.load([0, 11])
    assert pictures.shape == (2, 3, 16, 16) and pictures.dtype == torch.uint8
    stored = Image.open(rendered / "ShapeNetRendering" / "plane" / "d" / "rendering" / "02.png").convert("RGB")
    expected = np.asarray(stored.resize((16, 16), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(pictures[1].permute(1, 2, 0).numpy(), expected)
    assert expected.any() and not np.array_equal(pictures[0].numpy(), pictures[1].numpy())


def test_transparent_pixels_show_what_lies_behind(rendered):
    """The published reader drops the alpha channel: black where nothing was drawn."""
    path = rendered / "ShapeNetRendering" / "chair" / "a" / "rendering" / "00.png"
    pixels = np.zeros((24, 24, 4), np.uint8)
    pixels[:, :12] = (10, 20, 30, 255)
    Image.fromarray(pixels).save(path)
    picture = views_of(read(rendered), size=24).load([0])[0]
    assert picture[:, 0, 0].tolist() == [10, 20, 30] and picture[:, 0, 20].tolist() == [0, 0, 0]


def test_drawn_pictures_come_from_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("M2AE_CACHE", str(tmp_path))
    clouds = build_dataset({"NAME": "Synthetic", "clouds": 20, "N_POINTS": 128})
    views = views_of(clouds)
    assert views.counts.tolist() == [2] * 20
    first = views.load([0, 39])
    assert first.shape == (2, 3, 16, 16) and (first.flatten(1).amax(1) > 100).all()
    monkeypatch.setattr("datasets.pictures.views.render_clouds", None)  # a second time nothing is drawn
    assert torch.equal(views_of(clouds).load([0, 39]), first)
    with pytest.raises(TypeError):
        views_of(clouds, size=24)
    with pytest.raises(TypeError):
        views_of(clouds.select(range(10)))


def test_shaded_pictures_use_the_normals_that_there_are():
    clouds = build_dataset({"NAME": "Synthetic", "clouds": 20, "N_POINTS": 128})
    assert views_of(clouds, kind="shaded").load([3]).float().std() > 10
    assert not torch.equal(views_of(clouds, kind="shaded").load([3]), views_of(clouds).load([3]))


def test_views_are_chosen_without_replacement(rendered):
    views = views_of(read(rendered))
    rows = torch.tensor([3, 0, 3])
    drawn = [choose_views(views, rows, 2, generator=generator(0, 0, step, "views")) for step in range(40)]
    for numbers in drawn:
        assert ((numbers >= rows.unsqueeze(1) * 3) & (numbers < rows.unsqueeze(1) * 3 + 3)).all()
        assert (numbers[:, 0] != numbers[:, 1]).all()
    assert len({tuple(numbers[0].tolist()) for numbers in drawn}) == 6  # every ordered pair of three
    again = choose_views(views, rows, 2, generator=generator(0, 0, 5, "views"))
    assert torch.equal(again, drawn[5])


def test_every_process_draws_its_rows_of_the_global_batch(rendered, monkeypatch):
    views = views_of(read(rendered))
    rows = torch.tensor([3, 0, 1, 2])
    whole = choose_views(views, rows, 1, generator=generator(0, 0, 0, "views"))
    monkeypatch.setattr("datasets.pictures.views.world_size", lambda: 2)
    for place in (0, 1):
        monkeypatch.setattr("datasets.pictures.views.rank", lambda place=place: place)
        own = slice(2 * place, 2 * place + 2)
        part = choose_views(views, rows[own], 1, generator=generator(0, 0, 0, "views"))
        assert torch.equal(part, whole[own])


def test_rendering_goes_on_where_it_stopped_and_is_the_same_again(rendered, tmp_path, capsys):
    flags = ["--views", "3", "--size", "24", "--points", "300", "--workers", "1"]
    again = tmp_path / "again"
    assert main(["render", str(tmp_path / "in"), "--out", str(again), *flags]) == 0
    for path in sorted(rendered.rglob("*.p[nl][gy]")):
        assert path.read_bytes() == (again / path.relative_to(rendered)).read_bytes(), path
    assert main(["render", str(tmp_path / "in"), "--out", str(again), *flags]) == 0
    assert "4 of them done before" in capsys.readouterr().out


def break_picture(path, kind):
    if kind == "missing":
        for left in path.parent.glob("*.png"):
            left.unlink()
    elif kind == "cut short":
        path.write_bytes(path.read_bytes()[:60])
    elif kind == "no picture":
        path.write_text("hello")
    else:
        buffer = io.BytesIO()
        Image.new("RGB", {"not square": (24, 20), "another size": (30, 30)}[kind]).save(buffer, "PNG")
        path.write_bytes(buffer.getvalue())


@pytest.mark.parametrize(
    "kind, message",
    [
        ("missing", r"plane/c has no renderings, and its cloud is .*c\.ply; .*prepare render"),
        ("cut short", r"plane.c.rendering.00\.png: the picture of the shape plane/c cannot be read"),
        ("no picture", r"plane.c.rendering.00\.png: the picture of the shape plane/c cannot be read"),
        ("not square", r"shape plane/c has 24 x 20 pixels, and .* has 24 x 24; expected squares of one size"),
        ("another size", r"shape plane/c has 30 x 30 pixels, and .* has 24 x 24; expected squares of one size"),
    ],
)
def test_bad_pictures_are_named(rendered, kind, message):
    break_picture(rendered / "ShapeNetRendering" / "plane" / "c" / "rendering" / "00.png", kind)
    with pytest.raises(UserError, match=message):
        views_of(read(rendered)).load(range(12))


def test_bad_sets_are_named(rendered, tmp_path, caplog):
    with pytest.raises(UserError, match="3 pictures a step are asked, but a shape has 2"):
        clouds = build_dataset({"NAME": "Synthetic", "clouds": 20, "N_POINTS": 64})
        choose_views(views_of(clouds), torch.arange(4), 3, generator=torch.Generator())
    with pytest.raises(UserError, match=r"a\.ply: holds 300 points, N_POINTS 301 are asked"):
        read(rendered, N_POINTS=301)
    with pytest.raises(UserError, match="ShapeNetRendering: folder does not exist"):
        (tmp_path / "empty" / "ShapeNet").mkdir(parents=True)
        read(tmp_path / "empty")
    (rendered / "ShapeNet" / "plane" / "d.ply").unlink()
    assert len(read(rendered)) == 3
    assert "1 shapes have no cloud and are left out, such as plane/d" in caplog.text


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--views", "0"], "--views 0: must be at least 1"),
        (["--size", "4"], "--size 4: must be from 8 to 2048 pixels"),
        (["--kind", "photo"], "--kind photo: is unknown"),
        (["--elevation", "90"], "--elevation 90.0: must lie between"),
    ],
)
def test_bad_flags_of_render(tmp_path, capsys, flags, message):
    assert main(["render", str(tmp_path), "--out", str(tmp_path / "out"), *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_fixture_and_what_check_says_of_it(rendered, tmp_path, capsys):
    data = tmp_path / "tiny"
    assert main(["fixtures", "ShapeNetRender", "--out", str(data), "--clouds", "4", "--points", "64"]) == 0
    clouds = build_dataset(
        {"NAME": "ShapeNetRender", "DATA_PATH": str(data / "ShapeNetRender"), "N_POINTS": 64, "npoints": 32}
    )
    assert len(clouds) == 4 and views_of(clouds).load(range(12)).flatten(1).amax(1).min() > 100
    flags = ["--data_root", str(data), "--any_count"]
    assert main(["check", "ShapeNetRender", *flags]) == 0
    break_picture(clouds.view_files[2][0], "missing")
    assert main(["check", "ShapeNetRender", *flags]) == 2
    assert f"{clouds.names[2]}/rendering/*.png" in capsys.readouterr().out
    assert main(["check", "ShapeNetRender", "--data_root", str(data)]) == 2
    assert "shapes: 3 found, 43,783 published" in capsys.readouterr().out
