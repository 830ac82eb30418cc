"""A weight file rewritten: bf16 storage, diffusers' names, the header kept."""

import torch
from safetensors import safe_open

from swiftvideo_fast.cli import main
from swiftvideo_fast.models import weights
from swiftvideo_fast.models.wan.network import Wan, WanConfig

SMALL = WanConfig(dim=24, heads=2, layers=1, ffn_dim=32, text_dim=8, freq_dim=16)


def test_storage_changes_and_the_header_stays(tmp_path):
    net = Wan(SMALL)
    weights.save(net, tmp_path / "a.safetensors", sample={"sampler": "euler"})
    assert main(["export", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]) == 0
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert file.get_tensor("head.head.weight").dtype == torch.bfloat16
        assert "euler" in file.metadata()["about"]
    again = weights.load(tmp_path / "b.safetensors")
    for ours, rounded in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours.bfloat16().float(), rounded)


def test_names_become_those_of_diffusers(tmp_path):
    net = Wan(SMALL)
    weights.save(net, tmp_path / "a.safetensors")
    assert main(["export", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"),
                 "--dtype", "float32", "--diffusers"]) == 0
    theirs, _ = weights.read(tmp_path / "b.safetensors")
    back = weights.from_diffusers(theirs)
    assert all(torch.equal(back[k], v) for k, v in net.state_dict().items())


def test_a_damaged_file_leaves_nothing(tmp_path, capsys):
    (tmp_path / "a.safetensors").write_bytes(b"not one")
    assert main(["export", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]) == 2
    assert "damaged" in capsys.readouterr().err
    assert not (tmp_path / "b.safetensors").exists()
