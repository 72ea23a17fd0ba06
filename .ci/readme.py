"""Print one of the README's two commands, so that CI runs what a newcomer reads."""

import re
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def main() -> None:
    """Print the first (start) or second (test) fenced block under the heading Start."""
    start = README.read_text(encoding="utf-8").split("\n## Start\n", 1)[1]
    blocks = re.findall(r"^```(?:console|sh|bash)\n(.*?)^```$", start, re.MULTILINE | re.DOTALL)
    sys.stdout.write(blocks[["start", "test"].index(sys.argv[1])])


main()
