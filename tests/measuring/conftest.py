import sys
from pathlib import Path

# made-up cards are those of the hardware's tests
sys.path.insert(0, str(Path(__file__).parent.parent / "hardware"))
