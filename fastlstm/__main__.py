"""``python -m fastlstm``: the same as the command ``fastlstm``."""

import sys

from fastlstm.cli import main

if __name__ == "__main__":
    sys.exit(main())
