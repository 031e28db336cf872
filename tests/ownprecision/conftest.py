import sys
from pathlib import Path

# the mode that counts calls is that of the tracer's tests
sys.path.insert(0, str(Path(__file__).parent.parent / "tracing"))
