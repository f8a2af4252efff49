"""python -m ditmoe.plan model=xl router.num_experts=8: estimates parameters, compute, memory and traffic."""

from typing import Any

from ditmoe.config import cli


def plan(config: dict[str, Any]) -> None:
    """Run the command."""
    from ditmoe.cost.plan import plan  # torch: only after checking the options

    print("\n".join(plan(config)))


def main() -> None:
    """Entry point."""
    cli.run(plan, "plan")


if __name__ == "__main__":
    main()
