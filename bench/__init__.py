"""How fast fastlstm is: see README.md. The shapes are the tests' own."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))
