"""python -m ditmoe.train modality=pointcloud: trains, then samples, measures and shows the result.

Torch takes seconds to load: it is imported by what works with it, so that a mistake in the words is answered at once.
"""

import ctypes
import os
import shlex
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig

from ditmoe.config import cli
from ditmoe.distributed import launch, say
from ditmoe.outside import TooFewError, check_number, printable, tell

if TYPE_CHECKING:
    import ditmoe.checkpoint
    import ditmoe.modality
    import ditmoe.training


def train(config: dict[str, Any]) -> None:
    """One run, from its configuration to its pictures; goes on where an earlier one stopped."""
    from ditmoe.modality import Files

    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        shown = folder.relative_to(Path.cwd())
    except ValueError:
        shown = folder
    keep_freed_memory()
    modality = make_modality(config, shown)
    config["finish"] = possible(config["finish"], modality)
    unmeasured = check_finish(config, modality)
    trainer = trained(make_trainer(config, modality, shown), config, unmeasured)
    chosen = HydraConfig.get().runtime.choices["modality"]
    writes = isinstance(modality, Files)
    asking = asked_next(config["conditioning"])
    longer = f"train {own_words(chosen)} name=longer trainer.steps={4 * trainer.options.steps}"
    finish(config["finish"], shown, longer, trainer.step, writes, unmeasured, asking, type(modality))


def trained(
    trainer: "ditmoe.training.Trainer", config: dict[str, Any], unmeasured: str = ""
) -> "ditmoe.training.Trainer":
    """A trainer whose run has reached its end, from where an earlier one in its folder stopped; exits if it is stopped.

    Args:
        unmeasured: why nothing will be measured after it, if it cannot.
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
    return trainer


def make_modality(
    config: dict[str, Any], folder: Path, data_facts: dict[str, Any] | None = None
) -> "ditmoe.modality.Modality":
    """The modality of a configuration; what it takes from its data, such as a codec, all ranks have from the first.

    Args:
        data_facts: of another run on the same data; None is those of the run in this folder, if there is one.
    """
    from ditmoe.config import build
    from ditmoe.training.resume import known_facts

    ranks = launch.ranks()
    if ranks.rank > 0:
        return build.make_modality(config, ranks.broadcast(None))
    modality = build.make_modality(config)
    with build.describing(folder):
        if data_facts := data_facts or known_facts(folder, config):
            modality.restore_facts(data_facts)
    if ranks.size > 1:
        ranks.broadcast(modality.data_facts())
    return modality


def asked_next(conditioning: Mapping[str, Any]) -> str:
    """What to ask for in the next command, as it is typed: a caption that a model of text keeps, or a class."""
    examples = conditioning.get("examples")
    return shlex.quote(f"prompt={examples[0]}") if examples else "label=0"


def possible(options: dict[str, Any], modality: "ditmoe.modality.Modality") -> dict[str, Any]:
    """What can be done after the training of what was asked for; says once what this modality has no contract for."""
    from ditmoe.modality import Files, Metric

    lacks = [c for c in (Files, Metric) if not isinstance(modality, c)]
    without = {"Files": "no pictures on the way and no samples after it", "Metric": "no evaluation after it"}
    for contract in lacks:
        say(f"{modality.name} does not {contract.does} (`{contract.__name__}`): {without[contract.__name__]}")
    kept = options if Files not in lacks else options | {"num": 0}
    return kept if Metric not in lacks else kept | {"evaluate": False}


def check_finish(config: dict[str, Any], modality: "ditmoe.modality.Modality") -> str:
    """Refuse before the training what would fail after it; says why nothing will be measured, where data are too few.

    Raises:
        ValueError: if the samples cannot be drawn, or not be measured.
    """
    from ditmoe.modality import Metric

    options = config["finish"]
    check_number("finish.num", options["num"], 0, whole=True)
    if launch.ranks().rank > 0 or not options["evaluate"]:
        return ""
    try:
        Metric.of(modality, "evaluate").check_evaluation()
    except TooFewError as error:
        return str(error)
    except (ValueError, OSError) as error:
        raise ValueError(f"{error} (or finish.evaluate=false)") from error
    return ""


def keep_freed_memory() -> None:
    """Tell glibc to keep large blocks; it hands them back at every free and gets them again page by page.

    That is a tenth of a training step on a CPU. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        m_mmap_threshold, m_trim_threshold = -3, -1
        mallopt(m_mmap_threshold, 32 << 20)
        mallopt(m_trim_threshold, 1 << 30)


def make_trainer(
    config: dict[str, Any],
    modality: "ditmoe.modality.Modality",
    folder: Path,
    teacher: "ditmoe.checkpoint.Checkpoint | None" = None,
) -> "ditmoe.training.Trainer":
    """Model, process, optimiser and trainer of a configuration; with a teacher, of what is distilled from it."""
    import torch

    from ditmoe import checkpoint
    from ditmoe.config import build
    from ditmoe.config.facts import facts_of
    from ditmoe.config.limits import check_request, check_training, check_width
    from ditmoe.diffusion import Sampling, make_scheduler, torch_generator, try_scheduler
    from ditmoe.diffusion.timesteps import set_timesteps
    from ditmoe.inference import draw
    from ditmoe.modality import Files
    from ditmoe.outside import device as own_device
    from ditmoe.pretrained.start import start_from
    from ditmoe.pretrained.teacher import teach
    from ditmoe.training import Options, Trainer, repeat_exactly

    options: Options = build.make(config["trainer"])
    upcycling = build.make(config["upcycle"])
    if options.deterministic:
        repeat_exactly()  # before a codec is fitted
    mesh = build.make(config["mesh"])
    check_width(config["model"])
    build.remember_conditioning(config, modality)
    build.make_tokens(config, modality)  # what it asks of codec and data must have values
    device = mesh.device or own_device()
    batch_size = -(-options.batch_size // mesh.world)
    check_training(config, modality, batch_size, device, mesh.shard * mesh.expert)
    torch.manual_seed(config["seed"])
    with torch.device("meta" if mesh.rank else "cpu"):  # the others get their parts of what rank 0 has
        model = build.make_model(config, modality)
    if config["init"] and not checkpoint.exists(folder) and mesh.rank == 0:
        start_from(config["init"], model, config["model"], upcycling, config["seed"])
    lora = build.make(config["lora"])
    if lora.rank and not config["init"]:
        raise ValueError(
            "lora.rank adapts the weights of another run: it needs init=, a run or a converted checkpoint"
        )
    if lora.rank and mesh.world > 1:
        raise ValueError(
            f"lora.rank trains in one process, got {mesh.world}: all of the model learns on many"
        )
    lora.attach(model, torch_generator("lora", config["seed"]))
    if mesh.world == 1:
        model = model.to(own_device())
    process = build.make(config["process"])
    teaching = None
    if teacher is not None:
        fresh = not checkpoint.exists(folder)
        teaching = teach(teacher, config, modality, process, model, mesh, fresh)
    scheduler = build.make(config["scheduler"])
    sampling = Sampling.of(config)
    made = make_scheduler(scheduler, process)
    with build.describing("scheduler"):  # what cannot meet says so before the training
        try_scheduler(made, process)
    set_timesteps(made, sampling.steps, torch.device("cpu"))
    if config["finish"]["num"]:
        check_request(modality, config["finish"]["num"])
    asked = model.conditioning.ask(8, modality.classes)

    def preview(model: torch.nn.Module, file: Path) -> None:
        x = draw(model, modality, process, scheduler, sampling, asked, seed=0)
        if mesh.rank == 0 and isinstance(modality, Files):
            modality.save_picture(modality.samples(x, asked), file)

    command = "train" if teacher is None else "distill"
    return Trainer(
        model,
        process,
        build.make_objective(config, process),
        modality,
        optimizer=lambda parameters: build.make_optimizer(config, parameters),
        folder=folder,
        carried={"config": config, "facts": facts_of(modality), "command": [command, *cli.person_words()]},
        preview=preview if isinstance(modality, Files) else None,
        options=options,
        seed=config["seed"],
        parameters=build.make(config["parameters"]),
        mesh=mesh,
        given=config["given"],
        teaching=teaching,
    )


def finish(
    options: dict[str, Any],
    folder: Path,
    longer: str,
    step: int,
    writes: bool = True,
    unmeasured: str = "",
    asking: str = "label=0",
    kind: "type[ditmoe.modality.Modality] | None" = None,
) -> None:
    """Sample, measure, and say where everything is and what to type next.

    Args:
        options: what is `possible` of it.
        longer: a command that goes on from here, last of those that are told.
        step: that the run has reached: its own checkpoint is taken, whose configuration is this command's, whatever
            else lies in the folder.
        writes: the modality writes files.
        unmeasured: why nothing can be measured, if it cannot.
        asking: what to ask for next, as it is typed.
        kind: the modality's class, which shows samples on the page of the run.

    What fails of the measuring, though there is enough to measure, is said at the very end, with exit code 1.
    """
    from ditmoe import checkpoint
    from ditmoe.inference import evaluate_checkpoint, sample_checkpoint

    own = checkpoint.place(folder, step)
    run = "./run " if Path(sys.prefix).name == ".venv" and Path("run").is_file() else "python -m ditmoe."
    lines, following = [f"  {_typed(folder / checkpoint.FOLDER)}   the model"], []
    failure: Exception | None = None
    # the paths in this checkpoint are those of the command that wrote it, just now
    out = folder / "samples"
    if options["num"] and (paths := sample_checkpoint(own, num=options["num"], out=out, trust=True)):
        drawn = _typed(paths[0].parent)
        lines += [f"  {_typed(paths[0])}   look at this first", f"  {drawn}   {options['num']} samples"]
        following = [f"  {run}view {drawn}"]
    if options["evaluate"]:
        try:
            if not unmeasured:
                evaluate_checkpoint(own, trust=True)
                lines += [f"  {_typed(folder / 'metrics.json')}   the numbers above"]
        except TooFewError as error:  # the run is well
            unmeasured = str(error)
        except Exception as error:  # a fault, which is said below: model and samples are there
            failure = error
        if unmeasured:
            print(f"note: nothing was measured: {printable(unmeasured)}")
    if page := write_page(folder, kind):
        lines.append(f"  {_typed(page)}   all of it on one page, for a browser")
    draw = (
        f"sample {_typed(folder, 'checkpoint=')} num=16 {asking} seed=1"
        if writes
        else f"export {_typed(folder, 'checkpoint=')} out=..."
    )
    following += [f"  {run}{draw}", f"  {run}{longer}"]
    print("\n".join(["\nWhere things are:", *lines, "\nNext:", *following]))
    if failure and not isinstance(failure, ValueError | OSError):
        raise failure
    if failure:
        if os.environ.get("DITMOE_TRACE"):
            traceback.print_exception(failure)
        tell(f"error: nothing was measured: {cli.explain(failure)}")
        sys.exit(1)


def write_page(folder: Path, kind: "type[ditmoe.modality.Modality] | None") -> Path | None:
    """Show the run on a page; None, and a line, where that fails, which is no fault of the run."""
    if launch.ranks().rank > 0:
        return None
    from ditmoe.reporting import write_report

    try:
        return write_report([folder], kind=kind)
    except Exception as error:
        if os.environ.get("DITMOE_TRACE"):
            traceback.print_exception(error)
        print(f"note: no page of the run was written: {printable(cli.explain(error))}")
        return None


def own_words(modality: str) -> str:
    """The words of this command, for a shell, without the run's name and length."""
    words = cli.person_words()
    kept = [word for word in words if word.lstrip("+").partition("=")[0] not in ("name", "trainer.steps")]
    if not any(word.startswith("modality=") for word in kept):
        kept.insert(0, f"modality={modality}")
    return " ".join(map(shlex.quote, kept))


def _typed(path: Path, word: str = "") -> str:
    """A path as a person types it into a shell, behind the `option=` that takes it."""
    text = str(path)
    if text[0] in "-~'\"" or text == "null":  # an option, a home, Hydra's quotes, none
        text = f"./{text}"
    return shlex.quote(f"{word}{text}")


def main() -> None:
    """Entry point."""
    cli.run(train, "train", many=True)


if __name__ == "__main__":
    main()
