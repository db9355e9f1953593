# SPDX-License-Identifier: Apache-2.0
"""`python -m splitee`: the same command line as `splitee`, without the script on PATH."""

from splitee.cli.main import main

if __name__ == "__main__":
    main()
