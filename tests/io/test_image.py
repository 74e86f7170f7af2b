"""Portraits: formats, orientation, transparency, cover and crop, and one clear line for bad input."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from avatar_jax.io.errors import InputError
from avatar_jax.io.image import fit_portrait, load_mask, load_portrait, within
from tests.io.pictures import bomb

RELAXED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def picture(columns: int = 120, rows: int = 90) -> Image.Image:
    """A smooth picture whose red grows to the right and green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, columns), np.linspace(0, 255, rows))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 128)], axis=-1).astype(np.uint8))


def save(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_portrait(path, height=96, width=96)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(("height", "width"), [(96, 96), (64, 160), (160, 64), (480, 832)])
def test_cover_and_centre_crop_without_bars(kind: str, height: int, width: int, tmp_path: Path) -> None:
    options = {} if kind == "PNG" else {"quality": 95}
    frame = load_portrait(save(picture(), tmp_path / "face.bin", format=kind, **options), height=height, width=width)
    assert frame.shape == (height, width, 3)
    assert frame.dtype == np.uint8
    scale = min(120 / width, 90 / height)
    reach_x, reach_y = width * scale / 120 / 2, height * scale / 90 / 2
    corners = frame[[1, 1, -2, -2], [1, -2, 1, -2]].astype(float)
    expected = [[0.5 + i * reach_x, 0.5 + j * reach_y] for j in (-1, 1) for i in (-1, 1)]
    np.testing.assert_allclose(corners[:, :2], np.array(expected) * 255, atol=12)
    np.testing.assert_allclose(corners[:, 2], 128, atol=6)


def test_a_mask_lies_as_its_portrait_does(tmp_path: Path) -> None:
    """White is 1, black and transparent are 0; the same crop as the portrait; nothing at all is refused."""
    drawn = Image.new("L", (120, 90), 0)
    drawn.paste(255, (15, 0, 60, 90))  # the left half of the centred square
    for image in (drawn, Image.merge("LA", (Image.new("L", drawn.size, 255), drawn))):
        mask = load_mask(save(image, tmp_path / "mask.png"), height=96, width=96)
        assert mask.shape == (96, 96) and mask.dtype == np.float32
        assert mask[:, :46].min() > 0.98 and mask[:, 50:].max() < 0.02 and 0.0 <= mask.min() <= mask.max() <= 1.0
    with pytest.raises(InputError, match=r"black\.png: is all black"):
        load_mask(save(Image.new("L", (8, 8), 0), tmp_path / "black.png"), height=96, width=96)


def test_the_right_size_is_kept_exactly(tmp_path: Path) -> None:
    image = picture(96, 96)
    frame = load_portrait(save(image, tmp_path / "face.png"), height=96, width=96)
    np.testing.assert_array_equal(frame, np.asarray(image))


def test_downscaling_averages(tmp_path: Path) -> None:
    checks = np.tile(np.array([[0, 255], [255, 0]], np.uint8), (480, 480))
    frame = load_portrait(save(Image.fromarray(checks), tmp_path / "face.png"), height=96, width=96)
    assert np.abs(frame[4:-4, 4:-4].astype(int) - 127).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, tmp_path: Path) -> None:
    upright = picture(96, 96)
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> the transpose that a camera made
    stored = upright.transpose(Image.Transpose(back[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(stored, tmp_path / "face.png", exif=exif)
    np.testing.assert_array_equal(load_portrait(path, height=96, width=96), np.asarray(upright))


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    layer = picture(96, 96).convert("RGBA")
    layer.putalpha(Image.fromarray(np.tile(np.array([0] * 48 + [255] * 48, np.uint8), (96, 1))))
    frame = load_portrait(save(layer, tmp_path / "face.png"), height=96, width=96)
    assert (frame[:, :48] == 255).all()
    np.testing.assert_array_equal(frame[:, 48:], np.asarray(picture(96, 96))[:, 48:])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((96, 96), 200 * 256, np.uint16))
    else:
        image = Image.new("RGB", (96, 96), (200, 200, 200)).convert(mode)
    path = save(image, tmp_path / "face.bin", format="JPEG" if mode == "CMYK" else "PNG")
    frame = load_portrait(path, height=32, width=32)
    assert frame.shape == (32, 32, 3)
    assert abs(float(frame.mean()) - (255 if mode == "1" else 200)) < 60


def test_a_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (96, 96), 0)
    image.putpalette([10, 20, 30])
    frame = load_portrait(save(image, tmp_path / "face.png", transparency=0), height=96, width=96)
    assert (frame == 255).all()


@pytest.mark.parametrize("side", [4097, 10_000, 20_000])
def test_bombs_are_refused_without_decoding(side: int, tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb(side, side))
    line = refusal(tmp_path / "bomb.png")
    assert "16 megapixels" in line
    assert "scale the portrait down" in line


def test_the_largest_permitted_size_is_read(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(bomb(4096, 4096))
    assert load_portrait(tmp_path / "large.png", height=96, width=96).shape == (96, 96, 3)


def test_other_files_get_one_clear_line(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "face.png")
    assert "is a directory" in refusal(tmp_path)
    (tmp_path / "text.png").write_text("not an image\n")
    assert "is not a PNG, JPEG or WebP image" in refusal(tmp_path / "text.png")
    (tmp_path / "none.png").touch()
    assert "is empty" in refusal(tmp_path / "none.png")
    assert "is not a PNG" in refusal(save(picture(), tmp_path / "face.tiff"))
    assert "is not a PNG" in refusal(save(picture(), tmp_path / "face.gif"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_half_an_image_is_refused(kind: str, tmp_path: Path) -> None:
    path = save(picture(), tmp_path / "half.bin", format=kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "damaged" in refusal(path) or "is not a PNG" in refusal(path)


@RELAXED
@given(
    st.binary(min_size=1, max_size=3000),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF____WEBP"]),
)
def test_random_bytes_are_refused(tmp_path: Path, data: bytes, magic: bytes) -> None:
    (tmp_path / "garbage.png").write_bytes(magic + data)
    assert "garbage.png: " in refusal(tmp_path / "garbage.png")


@RELAXED
@given(st.data())
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_mutated_images_never_raise_anything_else(kind: str, tmp_path: Path, data: st.DataObject) -> None:
    buffer = io.BytesIO()
    picture(40, 30).save(buffer, format=kind)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 12))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "mutated.bin").write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        assert load_portrait(tmp_path / "mutated.bin", height=32, width=32).shape == (32, 32, 3)
    except InputError as error:
        assert "mutated.bin: " in str(error)


@pytest.mark.parametrize(
    ("height", "width", "found"),
    [
        (1080, 1920, (384, 704)),
        (1920, 1080, (704, 384)),
        (1000, 1000, (512, 512)),
        (300, 300, (320, 320)),
        (896, 1152, (448, 576)),
        (704, 1024, (448, 640)),
    ],
)
def test_the_published_sizes_of_an_area(height: int, width: int, found: tuple[int, int]) -> None:
    assert within(720 * 400, height, width, 64) == found


@given(st.integers(16, 8000), st.integers(16, 8000), st.integers(64 * 64, 2**21))
def test_every_size_fits_its_area(height: int, width: int, area: int) -> None:
    found = within(area, height, width, 64)
    assert found is None or (found[0] * found[1] <= area and found[0] % 64 == found[1] % 64 == 0)
    assert found is not None or max(height, width) > 100 * min(height, width)


def test_a_portrait_on_its_side_is_measured_upright(tmp_path: Path) -> None:
    picture = Image.new("RGB", (1920, 1080))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert fit_portrait(tmp_path / "turned.jpg", area=720 * 400, cell=64) == (704, 384)


def test_a_picture_too_long_for_its_area_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (20000, 1)).save(tmp_path / "long.png")
    with pytest.raises(InputError, match=r"long\.png: 20000 x 1 is too long for 4096 pixels"):
        fit_portrait(tmp_path / "long.png", area=4096, cell=64)
