"""What a statement holds: the phases of a run, and the terms of the guarantee."""

import dataclasses

from dp_accounting import DpEvent

from jaxdp.accounting._events import Sampling, checked_clipping

OUTSIDE_THE_GUARANTEE = (
    "the data on which the initial weights were trained beforehand",
    "the held-out data on which accuracy is reported",
    "the label set and the tokenizer, taken as public",
    "the number of training examples, taken as public",
    "hyperparameters chosen by looking at the training data, by other runs on it included",
    "that the noise is made of floating-point numbers, of finite precision and range, and not of real ones",
    "the pseudorandom generator (Threefry-2x32), taken as truly random, and the secrecy of its key",
    "time, memory use and other side channels of the computer that trains",
)


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase of a run: the same noisy release repeated. `Phase.of` makes one from the objects that run.

    Attributes:
        name: what the phase trains, e.g. `"fine-tuning"`.
        mechanism: what one step releases, in words.
        event: the event of the whole phase; epsilon is computed from it.
        num_steps: number of noisy releases.
        noise_multiplier: standard deviation of the noise divided by the sensitivity.
        clipping_norm: bound on the norm of one example's contribution; None where no single number is.
        sampling: how batches are drawn, in words.
        num_examples: number of training examples; public.
        sampling_probability: probability that an example is drawn in a step.
        expected_batch_size: mean number of examples in a batch.
        padded_batch_size: most examples in a batch.
        rounding: by what share of the clipping norm the noise is larger for what floating-point rounding may add to
            one example's influence on the sum; None in statements that do not say.
        grid: by what share more for rounding sums and noise to a public grid; None where there is no grid.
    """

    name: str
    mechanism: str
    event: DpEvent
    num_steps: int
    noise_multiplier: float
    clipping_norm: float | None
    sampling: str
    num_examples: int
    sampling_probability: float
    expected_batch_size: float
    padded_batch_size: int
    rounding: float | None = None
    grid: float | None = None

    @classmethod
    def of(
        cls,
        *,
        name: str,
        mechanism: str,
        clip: object,
        sampling: Sampling,
        noise_multiplier: float | int,
        num_steps: int,
        clipping_norm: float | int | None = None,
        rounding: float | None = None,
        grid: float | None = None,
    ) -> "Phase":
        """The phase that these objects run, so that no number is typed in twice.

        Args:
            name: what the phase trains.
            mechanism: what one step releases, in words.
            clip: the clipping, whose event is used.
            sampling: how batches are drawn.
            noise_multiplier: standard deviation of the noise divided by the sensitivity.
            num_steps: number of noisy releases, at least 1.
            clipping_norm: bound on the norm of one example's contribution; None where no single number is.
            rounding: what `per_example_grad(loss)(params, batch).slack().total` says of the gradients.
            grid: the grid given to `add_gaussian_noise`.

        Returns:
            The phase with its event.

        Raises:
            ValueError: `num_steps` below 1.
            TypeError: `clip` has no `dp_event`.
        """
        release = checked_clipping(clip).dp_event(float(noise_multiplier))
        return cls(
            name=name,
            mechanism=mechanism,
            event=sampling.event(release, num_steps),
            num_steps=num_steps,
            noise_multiplier=float(noise_multiplier),
            clipping_norm=None if clipping_norm is None else float(clipping_norm),
            sampling=sampling.description,
            num_examples=sampling.num_examples,
            sampling_probability=sampling.sampling_probability,
            expected_batch_size=sampling.expected_batch_size,
            padded_batch_size=sampling.padded_batch_size,
            rounding=rounding,
            grid=grid,
        )


@dataclasses.dataclass(frozen=True)
class Stated:
    """The fields of a `PrivacyStatement`, which says what they are."""

    phases: tuple[Phase, ...]
    epsilon: float
    delta: float
    accountant: str
    accounting_library: str
    jaxdp_version: str
    adjacency: str = "add-or-remove-one"
    unit_of_privacy: str = "one example (one row of the training data)"
    setting: str = "central: whoever trains sees the data; the guarantee is against whoever sees what is released"
    released: str = "the model after every step, thus every checkpoint and everything computed from them"
    hyperparameter_tuning: str = "not covered: the guarantee is for this one run"
    outside_the_guarantee: tuple[str, ...] = OUTSIDE_THE_GUARANTEE
    private_outputs: tuple[str, ...] = ()
    bound: str = ""
