import sys
from pathlib import Path

# golden files are those of the renderers' tests
sys.path.insert(0, str(Path(__file__).parent.parent / "reporting"))
