"""Pictures of clouds and meshes: geometry by hand, the nearest surface, the same numbers every time."""

import math

import numpy as np
import pytest
import torch

from datasets.pictures.rendering import FURTHEST, MARGIN, orbit, render_clouds, render_mesh


def square(z, half=0.4):
    """Return two triangles that face the z axis."""
    vertices = torch.tensor([[-half, -half, z], [half, -half, z], [half, half, z], [-half, half, z]])
    return vertices, torch.tensor([[0, 1, 2], [0, 2, 3]])


def front(distance=2.5):
    """Return one camera on the z axis, y up."""
    return orbit(1, elevation=0.0, distance=distance)


def sphere(count=4000):
    points = np.random.default_rng(0).standard_normal((count, 3))
    return torch.from_numpy(points / np.linalg.norm(points, axis=1, keepdims=True)).float()


@pytest.mark.parametrize("up, axis", [("x", 0), ("y", 1), ("z", 2)])
def test_cameras_look_at_the_origin_from_around_the_up_axis(up, axis):
    cameras = orbit(4, up_axis=up, elevation=30.0)
    identity = torch.eye(3).expand(4, 3, 3)
    torch.testing.assert_close(cameras.axes @ cameras.axes.transpose(1, 2), identity, atol=1e-6, rtol=0)
    assert torch.linalg.det(cameras.axes).allclose(torch.ones(4))
    assert cameras.axes[:, 2, axis].allclose(torch.full((4,), 0.5))  # sin 30 degrees
    assert cameras.axes[:, 0, axis].allclose(torch.zeros(4), atol=1e-6)  # the horizon is level
    assert (cameras.axes[:, 1, axis] > 0).all()  # up is up
    place, depth = cameras.project(torch.zeros(1, 3), 64)
    assert place.allclose(torch.full_like(place, 31.5)) and depth.allclose(torch.full_like(depth, 2.5))


def test_the_unit_sphere_fits():
    """The widest circle that the camera sees of the sphere takes MARGIN of the picture."""
    drawn = render_clouds(sphere()[None], front(), 128, kind="depth")[0, 0] > 0
    for extent in (drawn.any(0).sum(), drawn.any(1).sum()):
        assert 128 * MARGIN - 2 <= extent <= 128 * MARGIN + 2 * 2.2 / math.sqrt(4000) * 64 + 2


def test_a_mesh_covers_the_pixels_of_its_projection():
    camera = front()
    for z in (-0.5, 0.3):
        image = render_mesh(*square(z), camera, 65)[0]
        half = camera.focal * 0.4 / (2.5 - z) * 65 / 2  # pixels
        expected = 2 * math.floor(half) + 1  # pixel centres within the square, the middle one at the origin
        assert (image > 0).any(0).sum() == expected and (image > 0).sum() == expected**2


def test_the_nearest_surface_wins_and_depth_is_exact():
    vertices, faces = square(-0.5)
    near, _ = square(0.5, half=0.1)
    both = torch.cat([vertices, near])
    for order in (torch.cat([faces, faces + 4]), torch.cat([faces + 4, faces])):
        image = render_mesh(both, order, front(), 64, kind="depth")[0].float() / 255
        grey = lambda z: 1 - (1 - FURTHEST) * (1 - z) / 2  # noqa: E731
        assert image[32, 32].item() == pytest.approx(grey(0.5), abs=0.003)
        assert image[32, 24].item() == pytest.approx(grey(-0.5), abs=0.003)
        assert image[0, 0] == 0


def test_depth_of_a_slanted_face_under_perspective():
    """A face that runs away from the camera: its depth along the middle row follows the ray through each pixel."""
    vertices = torch.tensor([[-0.5, -0.5, 0.5], [0.5, -0.5, -0.5], [0.5, 0.5, -0.5], [-0.5, 0.5, 0.5]])
    camera = front()
    image = render_mesh(vertices, torch.tensor([[0, 1, 2], [0, 2, 3]]), camera, 129, kind="depth")[0].float() / 255
    for column in (50, 64, 80):
        slope = ((column + 0.5) / 129 * 2 - 1) / camera.focal  # x = slope * depth, and z = -x, depth = 2.5 - z
        depth = 2.5 / (1 - slope)
        assert image[64, column].item() == pytest.approx(1 - (1 - FURTHEST) * (depth - 1.5) / 2, abs=0.004)


def test_left_is_left_and_up_is_up():
    points = torch.tensor([[[-0.5, 0.6, 0.0]]]).expand(1, 1000, 3)  # of many points each is small
    image = render_clouds(points, front(), 65, kind="depth")[0, 0]
    rows, columns = image.nonzero().T.float().mean(1, keepdim=True).round().long().tolist()
    assert rows[0] < 20 and columns[0] < 25


def test_shading_depends_on_the_normal_not_on_its_sign():
    points = torch.rand(1, 500, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    normals = torch.nn.functional.normalize(points, dim=-1)
    one, other = (render_clouds(points, front(), 48, normals=sign * normals) for sign in (1, -1))
    assert torch.equal(one, other)
    facing = render_mesh(*square(0.0), front(), 48)[0].max()
    vertices, faces = square(0.0)
    slanted = vertices @ torch.linalg.matrix_exp(torch.tensor([[0.0, 0, 1], [0, 0, 0], [-1, 0, 0]]))
    assert render_mesh(slanted, faces, front(), 48)[0].max() != facing


def test_equal_input_gives_equal_pictures_however_it_is_cut(monkeypatch):
    clouds = torch.stack([sphere(300) * scale for scale in (0.3, 0.6, 0.9)])
    whole = render_clouds(clouds, orbit(3), 32, kind="depth")
    monkeypatch.setattr("datasets.pictures.rendering.PIXELS_AT_ONCE", 500)
    assert torch.equal(render_clouds(clouds, orbit(3), 32, kind="depth"), whole)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    assert torch.equal(render_clouds(clouds[:, order], orbit(3), 32, kind="depth"), whole)
    alone = torch.cat([render_clouds(cloud[None], orbit(3), 32, kind="depth") for cloud in clouds])
    assert torch.equal(alone, whole)
    vertices, faces = square(0.2)
    cut = render_mesh(vertices, faces, orbit(3), 32)
    monkeypatch.setattr("datasets.pictures.rendering.PIXELS_AT_ONCE", 1 << 24)
    assert torch.equal(render_mesh(vertices, faces.flip(0), orbit(3), 32), cut)


def test_degenerate_triangles_draw_nothing():
    vertices = torch.tensor([[0.0, 0, 0], [0.1, 0, 0], [0.2, 0, 0]])
    assert not render_mesh(vertices, torch.tensor([[0, 1, 2]]), front(), 33).any()


def test_refused():
    with pytest.raises(ValueError, match="distance above 1"):
        orbit(3, distance=0.9)
    with pytest.raises(ValueError, match="an axis x, y or z"):
        orbit(3, up_axis="w")
    with pytest.raises(ValueError, match="shaded pictures need normals"):
        render_clouds(torch.zeros(1, 4, 3), front(), 32)
