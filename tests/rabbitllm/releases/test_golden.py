from __future__ import annotations

import pytest

from rabbitllm.releases import golden

RECIPE = {"checkpoint": "abc", "dtype": "float32", "shrunk": False}


def test_what_is_written_is_read_again(tmp_path):
    path = tmp_path / "golden.json"
    assert golden.read(path, RECIPE) is None
    made = golden.make("5.0.0", RECIPE, {"tokens": [1], "chat": "\N{SNOWMAN}", "cached": 0.0})
    golden.write(made, path)
    assert golden.read(path, RECIPE) == made
    assert made.values == {"tokens": [1], "chat": "\N{SNOWMAN}"}
    assert [file.name for file in tmp_path.iterdir()] == ["golden.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "holds no golden values"),
        ("[1]", "holds no golden values"),
        ("{}", "holds no golden values"),
        (
            '{"version": 1, "release": "", "recipe": {}, "values": {"tokens": "x"}}',
            "holds no golden values: its tokens cannot be such",
        ),
        (
            '{"version": 1, "release": "", "recipe": {}, "values": {"watched": [], "logits":'
            ' {"digest": "", "largest": 1, "values": [[1]]}}}',
            "holds no golden values: it has not a logit",
        ),
        ('{"version": 9, "release": "", "recipe": {}, "values": {}}', "of version 9, not 1"),
        ('{"version": 1, "release": "", "recipe": {}, "values": {}}', "another checkpoint"),
    ],
)
def test_another_file_is_refused_with_the_way_out(tmp_path, text, message):
    path = tmp_path / "golden.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"{message}.*--golden"):
        golden.read(path, RECIPE)


def test_a_digest_tells_checkpoints_apart(sharp):
    whole, config = golden.digest(sharp, True), golden.digest(sharp, False)
    with (sharp / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    assert golden.digest(sharp, True) != whole
    assert golden.digest(sharp, False) == config
    (sharp / "config.json").write_text("{}")
    assert golden.digest(sharp, False) != config
