from __future__ import annotations

from harness.__main__ import main
from harness.records import Record, Store


def made(release, status="pass"):
    return Record(
        architecture="llama",
        family="Llama 2 / 3",
        family_class="RabbitLLMLlama2",
        model_class="LlamaForCausalLM",
        dtype="float32",
        release=release,
        backend="sdpa",
        device="cpu",
        status=status,
        time="2026-01-02T03:04:05Z",
    )


def test_records_of_all_releases_are_rendered(tmp_path, capsys):
    for release in ("5.22.2", "5.23.0"):
        Store(tmp_path / "results", release).put([made(release)])
    assert main(["render", "--reports", str(tmp_path)]) == 0
    assert "compatibility.html" in capsys.readouterr().out
    assert "| llama | ✓ pass on all |" in (tmp_path / "compatibility.md").read_text("utf-8")


def test_without_records_it_says_what_to_do(tmp_path, capsys):
    assert main(["render", "--reports", str(tmp_path)]) == 2
    assert "tox -e matrix" in capsys.readouterr().err


def test_a_damaged_record_is_named_and_the_others_are_rendered(tmp_path, caplog):
    Store(tmp_path / "results", "5.0.0").put([made("5.0.0")])
    path = tmp_path / "results" / "transformers-5.0.0.jsonl"
    path.write_text(path.read_text("utf-8") + '{"half a rec\n', encoding="utf-8")
    assert main(["render", "--reports", str(tmp_path)]) == 0
    assert "transformers-5.0.0.jsonl:2" in caplog.text
    assert (tmp_path / "compatibility.md").exists()
