"""bench sampling: the parts of `swiftvideo sample`, the published model sizes."""

import json

import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, UMT5Config, UMT5EncoderModel

from bench import sampling

PUBLISHED = 5_680_910_336       # parameters of umT5-xxl's encoder
IMAGE_HALF = 520                # tensors of CLIP's image half


def test_a_tiny_clip_is_measured_part_by_part(tmp_path, capsys):
    file = tmp_path / "sampling.json"
    words = "--preset", "tiny", "--size", "32x48", "--frames", "5", "--json", str(file)
    assert sampling.main([*words]) == 0
    parts = json.loads(file.read_text())["parts"]
    assert list(parts) == ["text encoder", "image encoder", "VAE, encoding", "4 steps", "VAE, decoding",
                           "25 guided"]
    assert all(seconds > 0 for seconds, _ in parts.values())
    assert "5 frames of 32x48" in capsys.readouterr().out


def test_its_encoders_have_the_published_sizes():
    with torch.device("meta"):
        text = UMT5EncoderModel(UMT5Config(**sampling.UMT5))
        image = CLIPVisionModelWithProjection(CLIPVisionConfig(**sampling.CLIP))
    assert sum(p.numel() for p in text.parameters()) == PUBLISHED
    assert len(image.state_dict()) == IMAGE_HALF
