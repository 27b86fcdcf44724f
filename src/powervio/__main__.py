"""`python -m powervio`, and the command `powervio`."""

import os
import signal
import sys


def main() -> None:
    """Run the command; Ctrl-C while its modules are loaded is no fault to be traced."""
    try:
        from powervio.cli.main import main as command
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.write(2, b"powervio: interrupted\n")
        sys.exit(130)
    command()


if __name__ == "__main__":
    main()
