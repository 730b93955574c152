"""StyleNeRF: evaluation forward and one training iteration against the original's order.

The networks are the published widths at 64 pixels ("bench64", spec/stylenerf.md 4.2). Baseline and
ours have the same weights and do the same mathematics: one G step, one D step, 1/4 of a path-length
step and 1/16 of an R1 step. The original's path regulariser is left out of both. Before timing,
images, losses and gradients of the two are compared at the same depths and noise.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from _harness import Report, Timing, arguments, interleave
from _stylenerf_plain import PlainDiscriminator, PlainGenerator, repair_gradients
from torch import Tensor, nn

from nfs.runtime.local import LocalContext
from nfs.stylenerf.cameras import draw_cameras
from nfs.stylenerf.discriminator import Discriminator
from nfs.stylenerf.generator import Generator, RenderOptions
from nfs.stylenerf.losses import fake_loss, lazy_adam, path_lengths, r1_penalty, real_loss
from nfs.stylenerf.rendering import RenderDraws
from nfs.stylenerf.settings import GanSettings, SpeedSettings
from nfs.stylenerf.spec import DiscriminatorSpec, GeneratorSpec
from nfs.stylenerf.task import StyleNerfTask
from nfs.tracking.null import NullTracker
from nfs.training.ema import ema_beta

RESOLUTION, BATCH, KIMG = 64, 4, 20.0
R1_INTERVAL, PL_INTERVAL, PL_SHRINK = 16, 4, 2
LIMITS = {"image": 1e-4, "loss": 1e-8, "gradients": 1e-6}


def main() -> None:
    options = arguments(__doc__, ("--repeats", {"type": int, "default": 3}))
    torch.manual_seed(0)
    generator = Generator(GeneratorSpec(img_resolution=RESOLUTION))
    discriminator = Discriminator(DiscriminatorSpec(img_resolution=RESOLUTION))
    report = Report(
        "stylenerf",
        {"configuration": "bench64", "batch": BATCH, "num_samples": generator.spec.num_samples},
    )
    report.notes.append(
        "iteration = G step + D step + 1/4 of a path-length step + 1/16 of an R1 step; the "
        "original's path regulariser is in neither"
    )
    compare_evaluation(report, copy.deepcopy(generator))
    compare_training(report, copy.deepcopy(generator), copy.deepcopy(discriminator))
    time_forward(report, generator, options.repeats + 1)
    time_iteration(report, generator, discriminator, options.repeats)
    report.ratio("generator forward, eval", "forward plain", "forward nfs", target=1.6)
    report.ratio("training iteration", "iteration plain", "iteration nfs", target=1.4)
    report.ratio("G step + D step", "G+D plain", "G+D nfs")
    report.ratio("G step + D step + path length", "G+D+PL plain", "G+D+PL nfs")
    report.ratio("G step + D step + path length + R1", "G+D+PL+R1 plain", "G+D+PL+R1 nfs")
    report.write(options.out)


def relative(first: Tensor, second: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((first - second).abs().max() / second.abs().max())


def inputs(generator: Generator, batch: int = BATCH) -> tuple[Tensor, Tensor, Tensor]:
    """Return latents, cameras and background codes of one batch."""
    device = next(generator.parameters()).device
    z = torch.randn(batch, generator.z_dim, device=device)
    cameras = draw_cameras(generator.spec.cameras, batch, device=device)
    return z, cameras, torch.randn(batch, generator.background_dim, device=device)


@torch.no_grad()
def compare_evaluation(report: Report, generator: Generator) -> None:
    generator.eval()
    z, cameras, code = inputs(generator)
    ws = generator.mapping(z)
    ours = generator.synthesis(ws, cameras, background_code=code)
    depths = (ours.depths_coarse, ours.depths_fine)
    plain = PlainGenerator(generator)(ws, cameras, code, depths=depths)
    report.check("eval image, relative", relative(ours.image, plain.image), LIMITS["image"])


def compare_training(report: Report, generator: Generator, discriminator: Discriminator) -> None:
    """Compare loss and gradients of a G step, in float64, at the same random numbers."""
    generator, discriminator = generator.double().train(), discriminator.double()
    for block in generator.upsampler.blocks.values():
        for layer in (block.conv0, block.conv1):
            layer.magnitude = layer.magnitude.float()  # both track it in float32
    torch.set_default_dtype(torch.float64)
    state = copy.deepcopy(generator.state_dict())
    z, cameras, code = inputs(generator)
    shape = (BATCH, generator.spec.resolution_vol**2, generator.spec.num_samples)
    behind = (*shape[:2], generator.spec.num_background_samples)
    depths = (torch.rand(shape).sort().values, torch.rand(shape))
    draws = RenderDraws(
        sigma_noise_coarse=torch.randn(shape),
        sigma_noise_fine=torch.randn(shape),
        background_jitter=torch.rand(behind),
        sigma_noise_background=torch.randn(behind),
    )
    ws = generator.mapping(z)
    chosen = RenderOptions(depths=depths)

    def ours() -> Tensor:
        image = generator.synthesis(
            ws, cameras, background_code=code, options=chosen, draws=draws
        ).image
        return real_loss(discriminator(image))

    def plain() -> Tensor:
        image = PlainGenerator(generator)(ws, cameras, code, depths=depths, draws=draws).image
        return real_loss(PlainDiscriminator(discriminator)(image))

    found = []
    networks = nn.ModuleList([generator, discriminator])
    for loss_of in (ours, plain):
        generator.load_state_dict(state)
        networks.zero_grad()
        loss = loss_of()
        torch.autograd.backward(loss, inputs=list(synthesis_parameters(networks)))
        grads = {n: p.grad for n, p in networks.named_parameters() if p.grad is not None}
        found.append((loss.item(), grads))
    torch.set_default_dtype(torch.float32)
    (loss, grads), (wanted, others) = found
    report.check("G loss in float64, relative", abs(loss - wanted) / abs(wanted), LIMITS["loss"])
    total = torch.stack([g.norm() for g in others.values()]).norm()
    worst = max(float((grads[n] - g).norm() / (g.norm() + 1e-3 * total)) for n, g in others.items())
    report.check("gradients in float64, relative", worst, LIMITS["gradients"])


def synthesis_parameters(networks: nn.Module) -> list[nn.Parameter]:
    """Return all parameters but those of the mapping network, which the two share."""
    return [p for n, p in networks.named_parameters() if "mapping_network" not in n]


def time_forward(report: Report, generator: Generator, repeats: int) -> None:
    generator = copy.deepcopy(generator).eval()
    plain = PlainGenerator(generator)
    z, cameras, code = inputs(generator)

    @torch.no_grad()
    def run_ours() -> None:
        generator.synthesis(generator.mapping(z), cameras, background_code=code)

    @torch.no_grad()
    def run_plain() -> None:
        plain(generator.mapping(z), cameras, code)

    cases = {"forward plain": run_plain, "forward nfs": run_ours}
    report.timings |= interleave(cases, repeats=repeats)


def time_iteration(
    report: Report, generator: Generator, discriminator: Discriminator, repeats: int
) -> None:
    settings = gan_settings(BATCH)
    batch = {"image": torch.randint(0, 256, (BATCH, 3, RESOLUTION, RESOLUTION), dtype=torch.uint8)}
    task = StyleNerfTask(copy.deepcopy(generator), copy.deepcopy(discriminator), settings)
    baseline = PlainTrainer(copy.deepcopy(generator), copy.deepcopy(discriminator), settings)
    with tempfile.TemporaryDirectory() as folder:
        task.setup(LocalContext(Path(folder), NullTracker()))
        clock = {"G+D": BATCH, "G+D+PL": PL_INTERVAL * BATCH, "G+D+PL+R1": 0}
        for steps, samples_seen in clock.items():

            def ours(samples_seen: int = samples_seen) -> None:
                task.train_step(batch, samples_seen)

            def plain(steps: str = steps) -> None:
                baseline.step(batch["image"], with_pl="PL" in steps, with_r1="R1" in steps)

            few = repeats if steps == "G+D" else max(1, repeats // 2)
            cases = {f"{steps} plain": plain, f"{steps} nfs": ours}
            report.timings |= interleave(cases, repeats=few, warmup=0)
    for kind in ("plain", "nfs"):
        most, some, rare = (report.timings[f"{steps} {kind}"] for steps in clock)
        report.timings[f"iteration {kind}"] = Timing(
            amortised(most.wall_s, some.wall_median_s, rare.wall_median_s),
            amortised(most.cpu_s, some.cpu_median_s, rare.cpu_median_s),
        )


def gan_settings(batch: int, speed: SpeedSettings | None = None) -> GanSettings:
    """Return the numbers of the training that both sides share."""
    return GanSettings(
        batch_size=batch,
        ema_kimg=KIMG,
        r1_interval=R1_INTERVAL,
        pl_interval=PL_INTERVAL,
        pl_batch_shrink=PL_SHRINK,
        path_pixels=0,
        speed=speed or SpeedSettings(),
    )


def amortised(most: list[float], with_pl: float, with_both: float) -> list[float]:
    """Seconds of an iteration: every 4th has the path-length step, every 16th also R1."""
    both, pl = 1, R1_INTERVAL // PL_INTERVAL - 1
    plain = R1_INTERVAL - both - pl
    return [(plain * seconds + pl * with_pl + both * with_both) / R1_INTERVAL for seconds in most]


class PlainTrainer:
    """All steps as the original orders them: separate passes, loops over parameters.

    Args:
        generator: Weights.
        discriminator: Weights.
        settings: Numbers of the training.
    """

    def __init__(
        self, generator: Generator, discriminator: Discriminator, settings: GanSettings
    ) -> None:
        self.G, self.D, self.settings = generator.train(), discriminator.train(), settings
        self.G_ema = copy.deepcopy(generator)
        lr, betas = lazy_adam(settings.discriminator_lr, settings.betas, settings.r1_interval)
        self.D_optimizer = torch.optim.Adam(self.D.parameters(), lr=lr, betas=betas, eps=1e-8)
        lr, betas = lazy_adam(settings.generator_lr, settings.betas, settings.pl_interval)
        self.pl_mean = torch.zeros((), device=next(generator.parameters()).device)
        self.G_optimizer = torch.optim.Adam(self.G.parameters(), lr=lr, betas=betas, eps=1e-8)

    def step(self, images: Tensor, *, with_pl: bool, with_r1: bool) -> None:
        """One iteration."""
        real = images.float() / 127.5 - 1
        score = PlainDiscriminator(self.D)
        self._phase(self.G, self.G_optimizer, lambda: real_loss(score(self._fakes())))
        if with_pl:
            self._phase(self.G, self.G_optimizer, self._path_length)
        self._phase(
            self.D,
            self.D_optimizer,
            lambda: fake_loss(score(self._fakes())) + real_loss(score(real)),
        )
        if with_r1:
            self._phase(self.D, self.D_optimizer, lambda: self._r1(score, real))
        beta = ema_beta(self.settings.batch_size, self.settings.ema_kimg)
        with torch.no_grad():
            for mine, other in zip(self.G_ema.parameters(), self.G.parameters(), strict=True):
                mine.copy_(other.lerp(mine, beta))
            for mine, other in zip(self.G_ema.buffers(), self.G.buffers(), strict=True):
                mine.copy_(other)

    def _phase(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]
    ) -> None:
        optimizer.zero_grad(set_to_none=True)
        self.G.requires_grad_(network is self.G)
        self.D.requires_grad_(network is self.D)
        torch.autograd.backward(loss())
        repair_gradients(network)
        optimizer.step()

    def _fakes(self) -> Tensor:
        return self._render(self.settings.batch_size)[0]

    def _render(self, count: int) -> tuple[Tensor, Tensor]:
        z, cameras, code = inputs(self.G, count)
        ws = self.G.mapping(z, update_average=True)
        cutoff = self.G.num_ws
        if float(torch.rand(())) < self.settings.style_mixing_prob:
            cutoff = int(torch.randint(1, self.G.num_ws, ()))
        other = self.G.mapping(torch.randn_like(z))
        ws = torch.cat([ws[:, :cutoff], other[:, cutoff:]], dim=1)
        return PlainGenerator(self.G)(ws, cameras, code).image, ws

    def _path_length(self) -> Tensor:
        settings = self.settings
        image, ws = self._render(settings.batch_size // settings.pl_batch_shrink)
        lengths = path_lengths(image, ws, torch.randn_like(image))
        mean = self.pl_mean.lerp(lengths.mean(), settings.pl_decay)
        self.pl_mean = mean.detach()
        penalty = (lengths - mean).square().mean()
        return penalty * settings.pl_weight * settings.pl_interval + 0 * image.mean()

    def _r1(self, score: PlainDiscriminator, real: Tensor) -> Tensor:
        real = real.detach().requires_grad_(True)
        return r1_penalty(score(real), real, self.settings.r1_gamma) * R1_INTERVAL


if __name__ == "__main__":
    main()
