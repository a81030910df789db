"""Tables, pictures and pages of runs, from plain data, and the recorder that writes the data."""

from rankwise.report.page.write import write_report as write_report
from rankwise.report.recorder import Recorder as Recorder

__all__ = ["Recorder", "write_report"]
