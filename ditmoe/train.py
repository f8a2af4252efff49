"""python -m ditmoe.train modality=pointcloud: trains, then samples, evaluates and shows the result.

Torch takes seconds to import, so functions import it: a mistake in the command line is answered at once.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig

from ditmoe.config import cli
from ditmoe.config.command_line import person_words
from ditmoe.distributed import launch
from ditmoe.finishing import check_finish, check_places, finish, next_words, own_words, possible
from ditmoe.outside import printable

if TYPE_CHECKING:
    import torch

    import ditmoe.checkpoint
    import ditmoe.conditioning
    import ditmoe.diffusion
    import ditmoe.modality
    import ditmoe.model
    import ditmoe.parallel
    import ditmoe.training


def train(config: dict[str, Any]) -> None:
    """Train one run and finish with samples; resumes an earlier one in the same folder."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        shown = folder.relative_to(Path.cwd())
    except ValueError:
        shown = folder
    modality = make_modality(config, shown)
    config["finish"] = possible(config["finish"], modality)
    unmeasured = check_finish(config, modality)
    check_places(config["finish"], shown)
    trainer = make_trainer(config, modality, shown)
    run_to_end(trainer, config, unmeasured)
    chosen = HydraConfig.get().runtime.choices["modality"]
    finish(
        config["finish"],
        shown,
        longer=f"train {own_words(chosen)} name=longer trainer.steps={4 * trainer.options.steps}",
        step=trainer.step,
        unmeasured=unmeasured,
        asking=next_words(config, shown),
        kind=type(modality),
    )


def run_to_end(trainer: "ditmoe.training.Trainer", config: dict[str, Any], unmeasured: str = "") -> None:
    """Run a trainer to its last step, resuming a run in its folder; exits with code 130 if stopped earlier.

    Args:
        unmeasured: why nothing can be evaluated afterwards, if so.
    """
    from ditmoe import checkpoint
    from ditmoe.training.resume import resume

    modality = trainer.modality
    if launch.ranks().rank == 0 and (understood := modality.understood()):
        print(understood)
        if unmeasured:
            print(f"note     nothing will be measured: {printable(unmeasured)}")
    with trainer.exclusive_lock():
        if checkpoint.exists(trainer.folder):
            resume(trainer, config)
        num = sum(p.numel() for p in trainer.model.parameters())
        learning = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        where = f"{trainer.device}{trainer.mesh}"
        print(
            f"{modality.name}: {num / 1e6:.2f} M parameters on {where}, "
            f"{'' if learning == num else f'{learning / 1e6:.3g} M of them learn, '}{trainer.options.steps} steps"
        )
        finished = trainer.run()
    if not finished:
        print(f"stopped at step {trainer.step}; the same command goes on from there")
        sys.exit(130)


def make_modality(
    config: dict[str, Any], folder: Path, data_facts: dict[str, Any] | None = None
) -> "ditmoe.modality.Modality":
    """Build the modality; its data facts, such as a fitted codec, are broadcast from rank 0.

    Args:
        data_facts: from another run on the same data; None: from the run in this folder, if there is one. A new run
            with `init=` adopts from the facts there what the weights depend on.
    """
    from ditmoe import checkpoint
    from ditmoe.config import build
    from ditmoe.pretrained.start import adopt_facts
    from ditmoe.training.resume import known_facts

    ranks = launch.ranks()
    if ranks.rank > 0:
        return build.make_modality(config, ranks.broadcast(None))
    modality = build.make_modality(config)
    with build.describing(folder):
        if data_facts := data_facts or known_facts(folder, config):
            modality.restore_facts(data_facts)
        elif config["init"] and not checkpoint.exists(folder):
            adopt_facts(config["init"], modality, config["modality"])
    if ranks.size > 1:
        ranks.broadcast(modality.data_facts())
    return modality


def make_trainer(
    config: dict[str, Any],
    modality: "ditmoe.modality.Modality",
    folder: Path,
    teacher: "ditmoe.checkpoint.Checkpoint | None" = None,
) -> "ditmoe.training.Trainer":
    """Build the trainer with its model, process and optimiser; with a teacher, it distils that."""
    from ditmoe import checkpoint
    from ditmoe.config import build
    from ditmoe.config.facts import facts_of
    from ditmoe.pretrained.teacher import teach
    from ditmoe.training import Options, Trainer, repeat_exactly

    options: Options = build.make_whole(config["trainer"])
    if options.deterministic:
        repeat_exactly()  # before a codec is fitted
    mesh = build.make_whole(config["mesh"])
    model = make_model(config, modality, folder, mesh, -(-options.batch_size // mesh.world))
    process = build.make_whole(config["process"])
    teaching = None
    if teacher is not None:
        fresh = not checkpoint.exists(folder)
        teaching = teach(teacher, config, modality, process, model, mesh, fresh)
    command = "train" if teacher is None else "distill"
    return Trainer(
        model,
        process,
        build.make_objective(config, process),
        modality,
        optimizer=lambda parameters: build.make_optimizer(config, parameters),
        folder=folder,
        preview=make_preview(config, modality, process, model.conditioning.ask(8, modality.classes)),
        carried={"config": config, "facts": facts_of(modality), "command": [command, *person_words()]},
        options=options,
        seed=config["seed"],
        parameters=build.make_whole(config["parameters"]),
        mesh=mesh,
        given=config["given"],
        teaching=teaching,
    )


def make_model(
    config: dict[str, Any],
    modality: "ditmoe.modality.Modality",
    folder: Path,
    mesh: "ditmoe.parallel.Mesh",
    batch_size: int,
) -> "ditmoe.model.DiTMoE":
    """Check that this machine can train the model, and build it at step 0, with new weights or those of `init=`."""
    import torch

    from ditmoe import checkpoint
    from ditmoe.config import build
    from ditmoe.config.limits import check_training, check_width
    from ditmoe.diffusion import torch_generator
    from ditmoe.outside import device as own_device
    from ditmoe.pretrained.start import start_from

    upcycling, lora = build.make_whole(config["upcycle"]), build.make_whole(config["lora"])
    check_width(config["model"])
    build.remember_conditioning(config, modality)
    build.make_tokens(config, modality)  # reads codec and data outside the meta device below
    check_training(config, modality, batch_size, mesh.device or own_device(), mesh.shard * mesh.expert)
    torch.manual_seed(config["seed"])
    with torch.device("meta" if mesh.rank else "cpu"):  # rank 0 sends the others their shards
        model = build.make_model(config, modality)
    if config["init"] and not checkpoint.exists(folder) and mesh.rank == 0:
        start_from(config["init"], model, config["model"], upcycling, config["seed"])
    if lora.rank and not config["init"]:
        raise ValueError(
            "lora.rank adapts the weights of another run: it needs init=, a run or a converted checkpoint"
        )
    if lora.rank and mesh.world > 1:
        raise ValueError(
            f"lora.rank trains in one process, got {mesh.world}: all of the model learns on many"
        )
    lora.attach(model, torch_generator("lora", config["seed"]))
    return model if mesh.world > 1 else model.to(own_device())


def make_preview(
    config: dict[str, Any],
    modality: "ditmoe.modality.Modality",
    process: "ditmoe.diffusion.Process",
    asked: "ditmoe.conditioning.Condition",
) -> "Callable[[torch.nn.Module, Path], None] | None":
    """Make a function that draws samples during training and saves a picture; None if the modality cannot.

    Raises:
        ValueError: if the scheduler does not fit the process, or the samples of `finish` do not fit in memory.
    """
    import torch

    from ditmoe.config import build
    from ditmoe.config.limits import check_request
    from ditmoe.diffusion import Sampling, make_scheduler, try_scheduler
    from ditmoe.diffusion.timesteps import set_timesteps
    from ditmoe.inference import draw
    from ditmoe.modality import Files

    scheduler = build.make(config["scheduler"])
    sampling = Sampling.of(config)
    made = make_scheduler(scheduler, process)
    with build.describing("scheduler"):  # to fail before training, not after it
        try_scheduler(made, process)
    set_timesteps(made, sampling.steps, torch.device("cpu"))
    if config["finish"]["num"]:
        check_request(modality, config["finish"]["num"])

    def preview(model: torch.nn.Module, file: Path) -> None:
        x = draw(model, modality, process, scheduler, sampling, asked, seed=0)
        if launch.rank() == 0 and isinstance(modality, Files):
            modality.save_picture(modality.samples(x, asked), file)

    return preview if isinstance(modality, Files) else None


def main() -> None:
    """Entry point."""
    cli.run(train, "train", many=True)


if __name__ == "__main__":
    main()
