import sys
from pathlib import Path

# made-up cards and traces are those of the Tensor Core tests
sys.path.insert(0, str(Path(__file__).parent.parent / "tensorcores"))
