"""The typer application: the root command and the list of subcommands."""

from __future__ import annotations

from typing import Annotated

import typer

from alphalloc.cli import (
    adapter,
    allocate,
    analyze,
    cache,
    compare,
    compare_schedules,
    crosscheck,
    db,
    diff,
    evaluate,
    export,
    inspect,
    keys,
    report,
    schema,
    serve,
    train,
    validate,
    worker,
)

Version = Annotated[bool, typer.Option("--version", "-V", help="Print the version and stop.")]


def build_app() -> typer.Typer:
    """Return the application; its subcommands import what they need when they run, not before."""
    # Plain help: rich would cost 0.1 s of the start, half of what `alphalloc --help` takes.
    app = typer.Typer(name="alphalloc", add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.callback(invoke_without_command=True)(root)
    app.command("analyze")(analyze.analyze)
    app.command("allocate")(allocate.allocate)
    app.command("export")(export.export)
    app.command("diff")(diff.diff)
    app.command("compare")(compare.compare)
    app.command("evaluate")(evaluate.evaluate)
    app.command("compare-schedules")(compare_schedules.compare_schedules)
    app.command("crosscheck")(crosscheck.crosscheck)
    app.command("validate")(validate.validate)
    app.command("inspect")(inspect.inspect)
    app.command("report")(report.report)
    app.command("schema")(schema.schema)
    app.command("serve")(serve.serve)
    app.command("train")(train.train)
    app.command("worker")(worker.worker)
    app.add_typer(adapter.app, name="adapter")
    app.add_typer(cache.app, name="cache")
    app.add_typer(db.app, name="db")
    app.add_typer(keys.app, name="keys")
    return app


def root(context: typer.Context, version: Version = False) -> None:
    """Decide, from a pretrained model's weights alone, where LoRA adaptation capacity should go."""
    if version:
        from alphalloc.documents import package_version

        typer.echo(f"alphalloc {package_version()}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
    else:
        return
    raise typer.Exit
