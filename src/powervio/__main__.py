"""`python -m powervio`, and the command `powervio`."""

import signal


def main() -> None:
    """Run the command. Ctrl-C while its modules are loaded ends it at once, and is no fault to be traced."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from powervio.cli.main import main as command

    command()


if __name__ == "__main__":
    main()
