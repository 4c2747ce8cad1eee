"""What a configuration asks for and its model has no use for: told by what is trained, before anything is written."""

from jaxdp import transforms
from jaxdp.training._errors import UserError
from jaxdp.training.config._config import Config
from jaxdp.training.tasks._shapes import is_kernel
from jaxdp.training.tasks._task import Task

_SMALLEST_SIDE = transforms.SMALLEST_DENOISED_SIDE

Shapes = dict[str, tuple[int, ...]]


def check_effects(config: Config, task: Task) -> None:
    """Refuse adapters, subspaces and denoising that change nothing.

    Raises:
      UserError: the field, and what it would need.
    """
    trained = [
        {name: tuple(task.params[name].shape) for name in task.trained_paths(phase.train, f"phase.{number}.train")}
        for number, phase in enumerate(config.phase, 1)
    ]
    _check_adapters(config, task, trained)
    spaces = [config.subspace_of(phase) for phase in config.phase]
    inside = [
        _projected(shapes, space.rank) if space.method == "grape" else shapes
        for shapes, space in zip(trained, spaces, strict=True)
    ]
    projects = [space.method == "grape" for space in spaces]
    if any(projects) and all(a == b for a, b, p in zip(trained, inside, projects, strict=True) if p):
        raise UserError(
            f"subspace.rank is {config.subspace.rank}, and no phase in the subspace trains a matrix whose sides are "
            'both larger, so that nothing is projected: lower it, or set subspace.method = "none".'
        )
    if config.denoise.enabled:
        _check_denoised(config, inside)


def _check_adapters(config: Config, task: Task, trained: list[Shapes]) -> None:
    rank = config.lora.rank
    if rank is None:
        return
    if not any("/lora/" in name for shapes in trained for name in shapes):
        raise UserError(
            f'lora.rank is {rank}, but no phase trains an adapter: set train = "lora" in a phase, or remove lora.rank.'
        )
    shapes = {name: x.shape for name, x in task.params.items()}
    sides = [
        min(shape[-2], shapes[f"{name.removesuffix('/a')}/b"][-1])
        for name, shape in shapes.items()
        if name.endswith("/lora/a")
    ]
    if sides and rank > max(sides):
        raise UserError(
            f"lora.rank is {rank}, more than the sides of every matrix that gets an adapter ({max(sides)} at most): "
            "lower it."
        )


def _projected(shapes: Shapes, rank: int) -> Shapes:
    """The shapes of coordinates in the subspaces of grape."""
    return {
        name: (max(shape), rank) if is_kernel(f"{name}']", shape) and min(shape) > rank else shape
        for name, shape in shapes.items()
    }


def _check_denoised(config: Config, trained: list[Shapes]) -> None:
    denoised = {
        name
        for shapes in trained
        for name, shape in shapes.items()
        if transforms.linear_layers(f"['{name}']", shape) and min(shape[-2:]) >= _SMALLEST_SIDE
    }
    if not denoised:
        raise UserError(
            f"denoise.enabled is true, but no phase trains a matrix with both sides of at least {_SMALLEST_SIDE}, so "
            "that nothing is denoised: remove it."
        )
    if config.denoise.spectrum is not None and config.denoise.spectrum not in denoised:
        shown = ", ".join(sorted(denoised)[:4])
        raise UserError(
            f'denoise.spectrum is "{config.denoise.spectrum}", which is no matrix that a phase denoises: use one like '
            f"{shown}."
        )
