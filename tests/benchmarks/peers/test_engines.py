from __future__ import annotations

from pathlib import Path

from transformers import AutoModelForCausalLM

from benchmarks.peers.engines import PEERS, link_as_on_the_hub


def test_a_checkpoint_of_links_loads_and_has_the_hubs_names(tiny: Path, tmp_path: Path) -> None:
    links = link_as_on_the_hub(tiny, tmp_path / "links")
    names = sorted(file.name for file in links.glob("*.safetensors"))
    assert names[0] == f"model-00001-of-{len(names):05}.safetensors"
    assert names[-1] == f"model-{len(names):05}-of-{len(names):05}.safetensors"
    weights = AutoModelForCausalLM.from_pretrained(links, dtype="auto").state_dict()
    for name, weight in PEERS["stock"].load(tiny, "cpu", tmp_path).state_dict().items():
        assert weights[name].equal(weight)


def test_layers_that_accelerate_keeps_on_disk_are_not_in_memory(tiny: Path, tmp_path: Path) -> None:
    model = PEERS["accelerate-disk"].load(tiny, "cpu", tmp_path)
    places = {name: parameter.device.type for name, parameter in model.named_parameters()}
    assert {place for name, place in places.items() if ".layers." in name} == {"meta"}
    assert {place for name, place in places.items() if ".layers." not in name} == {"cpu"}
