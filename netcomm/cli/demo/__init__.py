"""`netcomm demo`: real files between two real processes, though the connection fails, and the processes too.

The director starts two processes, a listener and a connector, with a fault proxy between them. Each has a queue storage
of its own. While the connector sends, the director resets the connection; kills the listener, and starts another one at
the same port, with the same storage; and kills the connector, and starts another.

The director knows nothing of the outcome. Each process keeps a journal in a shared folder: the connector of what it is
about to send, and of what was accepted; the listener of what has arrived, with the hash of what it really got. At the
end the listener judges, by the two journals and the list of what was to be sent.

A process that is killed between doing something and noting it has a gap in its journal. So the connector numbers each
attempt to send, and notes it before `send` and again after. What was not noted as accepted is sent again when it is
back, as another attempt. If the first one was accepted after all, both arrive; that is a repetition by the sender, of
which netcomm knows nothing, and the judge, which counts by attempt, does not take it for a duplicate.
"""

import sys
from pathlib import Path

import click

_INTERRUPTED = 130  # what a shell says of a command that Ctrl-C has ended


@click.command("demo")
@click.argument("path", required=False, type=click.Path(exists=True, readable=True, path_type=Path))
def command(path: Path | None) -> None:
    """Send files between two processes, and break whatever can break.

    PATH is a file or a folder; without it, the sources of Python's own standard library are sent. A listener and a
    connector are started as processes of their own, on this machine, with a queue storage each. Meanwhile the
    connection is cut, the listener is killed and started anew, and the connector too. The listener checks what
    arrives against what was sent. The exit code is 0 if nothing was lost, nothing was handed over again without
    being marked as redelivered, and every hash is right; and 1 if not.
    """
    # The listener and the connector, which import this package too, need nothing of this.
    from netcomm.cli.demo import director, plan, show

    console = show.make_console()
    try:
        pieces = plan.make(path)
    except plan.NothingToSend as error:
        raise click.BadParameter(str(error), param_hint="PATH") from error
    try:
        with show.Stage(console, pieces, path) as stage:
            report = director.run(pieces, stage)
            stage.progress(report.bytes)
    except KeyboardInterrupt:
        console.print("interrupted; the processes have been ended")
        sys.exit(_INTERRUPTED)
    except plan.DemoError as error:
        raise click.ClickException(str(error)) from error
    show.print_report(console, report)
    sys.exit(0 if report.good else 1)
