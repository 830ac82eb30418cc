"""Everything that is measured of a set of samples, against one set of real clips.

    judge = Judge(real)
    judge(generated, z, z_teacher) -> {"frechet": 36.2, "frechet_random": ..., "trajectory": ..., ...}
"""

from torch import Tensor

from swiftvideo_fast.evaluate import fidelity
from swiftvideo_fast.evaluate.features import FeatureNet, random_net, trained_net
from swiftvideo_fast.evaluate.frechet import distance, fit


class Judge:
    """real: held-out clips (B, 3, T, H, W) in [-1, 1], whose first frames are the samples' conditions."""

    def __init__(self, real: Tensor, nets: dict[str, FeatureNet] | None = None):
        self.real = real
        self.nets = nets or {"frechet": trained_net(), "frechet_random": random_net()}
        self.gaussians = {name: fit(net.extract(real)) for name, net in self.nets.items()}

    def __call__(self, generated: Tensor, z: Tensor | None = None, z_teacher: Tensor | None = None
                 ) -> dict[str, float]:
        """One value a metric (keys of tables.METRICS); the trajectory error only where latents are given.

        generated: clip i begins with real clip i's first frame.  z, z_teacher: latents of equal shape.
        """
        if generated.shape != self.real.shape:
            raise ValueError(f"Judge: generated is {tuple(generated.shape)}, real {tuple(self.real.shape)}; "
                             "they must match, clip for clip")
        values = {name: distance(self.gaussians[name], fit(net.extract(generated)))
                  for name, net in self.nets.items()}
        if z is not None and z_teacher is not None:
            values["trajectory"] = fidelity.trajectory_error(z, z_teacher).mean().item()
        values["detail"] = fidelity.detail_ratio(generated, self.real)
        values["motion"] = fidelity.motion_ratio(generated, self.real)
        values["psnr"] = fidelity.first_frame_psnr(generated, self.real[:, :, 0]).mean().item()
        return values
