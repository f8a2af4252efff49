"""python -m ditmoe.plan model=xl router.num_experts=8: parameters, work, memory and traffic, before any is spent."""

from typing import Any

from ditmoe.config import cli


def plan(config: dict[str, Any]) -> None:
    """The command."""
    from ditmoe.cost.plan import plan  # torch, which a mistake in the words should not wait for

    print("\n".join(plan(config)))


def main() -> None:
    """Entry point."""
    cli.run(plan, "plan")


if __name__ == "__main__":
    main()
