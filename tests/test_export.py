"""`swiftvideo export --to weights`: another dtype with the same header, or a checkpoint's weights."""

import tiny
import torch
from safetensors import safe_open

from swiftvideo_fast.cli import main
from swiftvideo_fast.models import weights
from swiftvideo_fast.models.wan.network import Wan
from swiftvideo_fast.models.wan.sizes import WanConfig
from swiftvideo_fast.train import recipe

SMALL = WanConfig(dim=24, heads=2, layers=1, ffn_dim=32, text_dim=8, freq_dim=16)


def test_storage_changes_and_the_header_stays(tmp_path, capsys):
    net = Wan(SMALL)
    weights.save(net, tmp_path / "a.safetensors", sample={"sampler": "euler"})
    assert main(["export", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]) == 0
    assert "tensors read back equal" in capsys.readouterr().out
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert file.get_tensor("head.head.weight").dtype == torch.bfloat16
        assert "euler" in file.metadata()["about"]
    again = weights.load(tmp_path / "b.safetensors")
    for ours, rounded in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours.bfloat16().float(), rounded)


def test_a_checkpoint_and_a_run_without_final_weights_give_those_of_the_checkpoint(inputs, tmp_path):
    run = recipe.train(tiny.config(inputs, "ccd", run=str(tmp_path / "run")), tiny.TABLES)
    want = weights.load(run / "average.safetensors").state_dict()
    for name in ("average.safetensors", "student.safetensors"):
        (run / name).unlink()
    for i, source in enumerate((run, run / "step-00000006")):
        out = tmp_path / f"{i}.safetensors"
        assert main(["export", str(source), str(out), "--dtype", "float32"], tiny.TABLES) == 0
        got = weights.load(out).state_dict()
        assert all(torch.equal(got[name], tensor) for name, tensor in want.items())


def test_a_damaged_file_leaves_nothing(tmp_path, capsys):
    (tmp_path / "a.safetensors").write_bytes(b"not one")
    assert main(["export", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]) == 2
    assert "damaged" in capsys.readouterr().err
    assert not (tmp_path / "b.safetensors").exists()


def test_what_is_there_is_not_overwritten_by_a_folder(tmp_path, capsys):
    weights.save(Wan(SMALL), tmp_path / "a.safetensors")
    (tmp_path / "out").mkdir()
    assert main(["export", str(tmp_path / "a.safetensors"), str(tmp_path / "out"), "--to", "diffusers"]) == 2
    assert "out exists; choose another" in capsys.readouterr().err
