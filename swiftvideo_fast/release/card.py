"""The model card of an exported student: sampling settings and example code."""

from swiftvideo_fast import path
from swiftvideo_fast.release.find import Sampling

CODE = {"diffusers": """```python
import torch
from diffusers import WanImageToVideoPipeline
from diffusers.utils import export_to_video, load_image

pipe = WanImageToVideoPipeline.from_pretrained("FOLDER", torch_dtype=torch.bfloat16).to("cuda")
clip = pipe(load_image("first_frame.png"), "what happens", height=480, width=832, num_frames=61,
            num_inference_steps={steps}, guidance_scale={guidance:g}).frames[0]
export_to_video(clip, "clip.mp4", fps=16)
```
Keep the bundled scheduler (`FlowMapEulerDiscreteScheduler`, diffusers 0.39 or later): the default one has
other sigmas, and wastes the last of {steps} steps.
""", "original": """The layout of Wan2.1-Fun-InP: `config.json` and `diffusion_pytorch_model.safetensors`.
Sample with Euler steps on the ladder above; in ComfyUI: ModelSamplingSD3 with shift {shift:g}, sampler euler,
scheduler simple, {steps} steps, cfg {guidance:g}.
"""}


def card(sampling: Sampling, layout: str) -> str:
    """Returns the model card as Markdown."""
    sigmas = ", ".join(f"{t:.4f}" for t in path.ladder(sampling.steps, sampling.shift))
    code = CODE[layout].format(steps=sampling.steps, guidance=sampling.guidance, shift=sampling.shift)
    return f"""---
pipeline_tag: image-to-video
library_name: diffusers
---
# A few-step image-to-video student

Distilled with swiftvideo_fast from an image-to-video Wan 2.1.

| setting | value |
|---|---|
| steps | {sampling.steps} |
| sampler | {sampling.sampler} |
| shift | {sampling.shift:g} |
| guidance | {sampling.guidance:g} |
| sigmas | {sigmas} |

{code}"""
