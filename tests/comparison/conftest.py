import sys
from pathlib import Path

# the reports built by hand and the golden files are those of the renderers' tests
sys.path.insert(0, str(Path(__file__).parent.parent / "reporting"))
