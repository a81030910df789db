"""Tables, pictures and pages of runs, from plain data, and the recorder that writes the data."""

from rankwise.report.recorder import Recorder as Recorder

__all__ = ["Recorder"]
